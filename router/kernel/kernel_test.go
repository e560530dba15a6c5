package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lab is hospital A and what is around it.
type lab struct {
	a, lan, dmz, guest, wan      *host
	atLAN, atDMZ, atGuest, atWAN *tap
	k                            *Kernel
	tun                          *tun
	fences                       int
	counted                      map[Reason]Counter
}

func newLab(t *testing.T) *lab {
	t.Helper()
	needRoot(t)
	l := &lab{
		a: newHost(t, "A"), lan: newHost(t, "LAN host"), dmz: newHost(t, "DMZ host"),
		guest: newHost(t, "guest"), wan: newHost(t, "internet"),
	}
	for _, n := range []struct {
		h    *host
		dev  string
		net4 string // first three bytes
		net6 string
		tap  **tap
	}{
		{l.lan, "lan0", "10.1.1.", "fd00:1:1::", &l.atLAN},
		{l.dmz, "dmz0", "10.1.2.", "fd00:1:2::", &l.atDMZ},
		{l.guest, "guest0", "10.1.9.", "fd00:1:9::", &l.atGuest},
		{l.wan, "wan0", "198.51.100.", "2001:db8::", &l.atWAN},
	} {
		veth(t, l.a, n.dev, n.h, "eth0")
		l.a.addr(t, n.dev, n.net4+"1/24", n.net6+"1/64")
		n.h.addr(t, "eth0", n.net4+"10/24", n.net6+"10/64")
		n.h.route(t, "0.0.0.0/0", n.net4+"1", "", 0)
		n.h.route(t, "::/0", n.net6+"1", "", 0)
		*n.tap = n.h.sniff(t, "eth0")
	}
	// The internet answers ARP for everything, so that a leak has where to go.
	l.a.route(t, "0.0.0.0/0", "198.51.100.10", "", 0)
	l.a.route(t, "::/0", "2001:db8::10", "", 0)
	l.tun = l.a.openTun(t)
	return l
}

// routing lets A's kernel forward everything, as a careless administrator would.
func (l *lab) routing(t *testing.T) {
	t.Helper()
	l.a.sysctl(t, "ipv4/ip_forward", "1")
	l.a.sysctl(t, "ipv6/conf/all/forwarding", "1")
}

func (l *lab) state() State {
	return State{
		TunName: tunName, MTU: 1400,
		Zones: []Zone{
			{"hsz", pfx("10.1.1.0/24", "fd00:1:1::/64"), []string{"lan0"}},
			{"dmz", pfx("10.1.2.0/24", "fd00:1:2::/64"), []string{"dmz0"}},
		},
		Remotes:  pfx("10.2.1.0/24", "10.3.1.0/24", "fd00:2:1::/64", "fd00:3:1::/64"),
		Gateways: []netip.Addr{netip.MustParseAddr("203.0.113.2")},
		UDPPorts: []uint16{500, 4500},
	}
}

func pfx(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func (l *lab) open(t *testing.T) *Kernel {
	t.Helper()
	return openIn(t, l.a, Options{})
}

func openIn(t testing.TB, h *host, opt Options) *Kernel {
	t.Helper()
	opt.NetNS, opt.TunName = h.fd, tunName
	opt.Log = func(msg string, kv ...any) { t.Log(append([]any{msg}, kv...)...) }
	k, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

func (l *lab) apply(t *testing.T) {
	t.Helper()
	l.k = l.open(t)
	if err := l.k.Apply(l.state()); err != nil {
		t.Fatal(err)
	}
	l.counted = l.counts(t)
}

func (l *lab) counts(t *testing.T) map[Reason]Counter {
	t.Helper()
	c, err := l.k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// refused waits until exactly these refusals were counted since the last call, one per reason
// given, and none else.
func (l *lab) refused(t *testing.T, reasons ...Reason) {
	t.Helper()
	want := map[Reason]uint64{}
	for _, r := range reasons {
		want[r]++
	}
	deadline := time.Now().Add(patience)
	for {
		got := map[Reason]uint64{}
		now := l.counts(t)
		for r, c := range now {
			if n := c.Packets - l.counted[r].Packets; n > 0 {
				got[r] = n
			}
		}
		if maps.Equal(got, want) {
			l.counted = now
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("refused %v, want %v", got, want)
			l.counted = now
			return
		}
	}
}

// fence sends a packet behind all others to every tap that packets of an attempt could reach,
// and waits for it: what was not seen before it will not come.
func (l *lab) fence(t *testing.T) {
	t.Helper()
	l.fences++
	mark := fmt.Sprintf("fence %d", l.fences)
	for _, f := range []struct {
		net string
		tap *tap
	}{{"10.1.1.", l.atLAN}, {"10.1.2.", l.atDMZ}, {"10.1.9.", l.atGuest}, {"198.51.100.", l.atWAN}} {
		if err := l.a.send(t, f.net+"1:9", f.net+"10:9", mark); err != nil {
			t.Fatalf("fence: %v", err)
		}
		f.tap.want(t, mark, f.net+"1:9", f.net+"10:9")
	}
}

// nowhere checks that the packet came out at no place.
func (l *lab) nowhere(t *testing.T, payload string) {
	t.Helper()
	l.fence(t)
	for _, p := range []*tap{l.atLAN, l.atDMZ, l.atGuest, l.atWAN, l.tun.tap} {
		p.never(t, payload)
	}
}

// careless is everything that an administrator could do to help packets along.
func (l *lab) careless(t *testing.T) {
	t.Helper()
	l.routing(t)
	l.a.admin(t, adminNAT{
		masquerade: []string{"wan0", "lan0", "dmz0", "guest0", tunName},
		dnat: map[string]string{
			"10.2.1.9:104":       "10.1.9.10:104", // a "proxy" for the images of B
			"[fd00:2:1::9]:104":  "[fd00:1:9::10]:104",
			"10.1.1.10:105":      "10.3.1.7:104", // B's packets for a LAN host on to C
			"[fd00:1:1::10]:105": "[fd00:3:1::7]:104",
			"10.1.1.1:106":       "10.3.1.7:104", // B's packets for the router on to C
			"[fd00:1:1::1]:106":  "[fd00:3:1::7]:104",
			"10.1.1.10:107":      "10.1.9.10:107", // B's packets for a LAN host to a guest
			"198.51.100.1:104":   "10.3.1.7:104",  // the internet's packets for A on to C
			"[2001:db8::1]:104":  "[fd00:3:1::7]:104",
		},
		redirect: []uint16{108},
	})
}

// TestNATWouldApply is the control experiment: without our table, the administrator's rules do
// what they say, so the tests below would notice.
func TestNATWouldApply(t *testing.T) {
	l := newLab(t)
	l.careless(t)
	lk := l.a.up(t, tunName)
	if err := l.a.nl.LinkSetUp(lk); err != nil {
		t.Fatal(err)
	}
	l.a.route(t, "10.2.1.0/24", "", tunName, 0)
	l.a.route(t, "10.3.1.0/24", "", tunName, 0)
	send := func(h *host, from, to, payload string) {
		t.Helper()
		if err := h.send(t, from, to, payload); err != nil {
			t.Fatal(err)
		}
	}
	send(l.lan, "10.1.1.10:1000", "10.2.1.9:104", "dnat")
	l.atGuest.want(t, "dnat", "10.1.9.1:1000", "10.1.9.10:104")
	l.tun.inject(t, "10.2.1.9:1000", "10.3.1.7:99", "relay")
	if _, ok, _ := l.tun.find("relay"); !ok {
		deadline := time.After(patience)
		for !ok {
			var more chan struct{}
			if _, ok, more = l.tun.find("relay"); ok {
				break
			}
			select {
			case <-more:
			case <-deadline:
				t.Fatal("the kernel did not relay although everything says so")
			}
		}
	}
}

// TestAllowedTrafficIsNotTranslated (ZONE-4): both directions, with the administrator's NAT.
func TestAllowedTrafficIsNotTranslated(t *testing.T) {
	for _, careless := range []bool{false, true} {
		t.Run(fmt.Sprintf("careless=%v", careless), func(t *testing.T) {
			l := newLab(t)
			if careless {
				l.careless(t)
			}
			l.apply(t)
			for i, c := range []struct {
				h        *host
				tap      *tap
				own, far string
			}{
				{l.lan, l.atLAN, "10.1.1.10:1104", "10.2.1.9:104"},
				{l.lan, l.atLAN, "10.1.1.10:105", "10.2.1.9:105"},
				{l.lan, l.atLAN, "10.1.1.10:107", "10.3.1.7:107"},
				{l.lan, l.atLAN, "10.1.1.10:108", "10.3.1.7:108"},
				{l.dmz, l.atDMZ, "10.1.2.10:108", "10.2.1.9:108"},
				{l.lan, l.atLAN, "[fd00:1:1::10]:1104", "[fd00:2:1::9]:104"},
				{l.lan, l.atLAN, "[fd00:1:1::10]:105", "[fd00:3:1::7]:105"},
				{l.dmz, l.atDMZ, "[fd00:1:2::10]:108", "[fd00:2:1::9]:108"},
			} {
				out, in := fmt.Sprintf("out %d", i), fmt.Sprintf("in %d", i)
				if err := c.h.send(t, c.own, c.far, out); err != nil {
					t.Fatal(err)
				}
				l.tun.want(t, out, c.own, c.far)
				l.tun.inject(t, c.far, c.own, in)
				c.tap.want(t, in, c.far, c.own)
			}
			l.refused(t)
		})
	}
}

// TestNoRelayNoLeak (ZONE-1, ZONE-3, ZONE-8): every attempt, with everything an administrator
// could do wrong, is refused for the right reason and comes out nowhere.
func TestNoRelayNoLeak(t *testing.T) {
	l := newLab(t)
	l.careless(t)
	l.apply(t)
	type attempt struct {
		name     string
		from     *host // nil: out of a tunnel
		src, dst string
		reason   Reason
	}
	for _, a := range []attempt{
		{"B to C", nil, "10.2.1.9:1", "10.3.1.7:104", ReasonRelay},
		{"C to B", nil, "10.3.1.7:1", "10.2.1.9:104", ReasonRelay},
		{"B to B", nil, "10.2.1.9:1", "10.2.1.10:104", ReasonRelay},
		{"B to C with A's source address", nil, "10.1.1.10:1", "10.3.1.7:104", ReasonTunnelSource},
		{"B to C with the router's source address", nil, "10.1.1.1:1", "10.3.1.7:104", ReasonTunnelSource},
		{"B to A with an internet source address", nil, "192.0.2.1:1", "10.1.1.10:104", ReasonTunnelSource},
		{"B to the router", nil, "10.2.1.9:1", "10.1.1.1:22", ReasonTunnelToRouter},
		{"B to the router, redirected", nil, "10.2.1.9:1", "10.1.1.1:108", ReasonTunnelToRouter},
		{"B to the router's port translated to C", nil, "10.2.1.9:1", "10.1.1.1:106", ReasonTunnelToRouter},
		{"B to the guests", nil, "10.2.1.9:1", "10.1.9.10:104", ReasonTunnelToOther},
		{"B to the internet", nil, "10.2.1.9:1", "198.51.100.10:104", ReasonTunnelToOther},
		{"B to A's outer address, translated to C", nil, "10.2.1.9:1", "198.51.100.1:104", ReasonTunnelToOther},
		{"B to multicast", nil, "10.2.1.9:1", "224.0.0.251:5353", ReasonTunnelToOther},
		{"guest to C", l.guest, "10.1.9.10:1", "10.3.1.7:104", ReasonNotFromZone},
		{"guest to C with a zone's address", l.guest, "10.1.1.10:1", "10.3.1.7:104", ReasonNotFromZone},
		{"DMZ host to C with another zone's address", l.dmz, "10.1.1.10:1", "10.3.1.7:104", ReasonNotFromZone},
		{"LAN host to C with B's address", l.lan, "10.2.1.9:1", "10.3.1.7:104", ReasonSpoofed},
		{"LAN host to the internet with B's address", l.lan, "10.2.1.9:1", "198.51.100.10:104", ReasonSpoofed},
		{"LAN host to C with an address of no zone", l.lan, "10.1.9.10:1", "10.3.1.7:104", ReasonNotFromZone},
		{"internet to C", l.wan, "198.51.100.10:1", "10.3.1.7:104", ReasonNotFromZone},
		{"internet to C with a zone's address", l.wan, "10.1.1.10:1", "10.3.1.7:104", ReasonNotFromZone},
		{"internet to A with B's address", l.wan, "10.2.1.9:1", "10.1.1.10:104", ReasonSpoofed},
		{"internet to C with B's address", l.wan, "10.2.1.9:1", "10.3.1.7:104", ReasonSpoofed},
		{"internet to A's outer address, translated to C", l.wan, "198.51.100.10:1", "198.51.100.1:104", ReasonNotFromZone},

		{"B to C", nil, "[fd00:2:1::9]:1", "[fd00:3:1::7]:104", ReasonRelay},
		{"B to C with A's source address", nil, "[fd00:1:1::10]:1", "[fd00:3:1::7]:104", ReasonTunnelSource},
		{"B to the router", nil, "[fd00:2:1::9]:1", "[fd00:1:1::1]:22", ReasonTunnelToRouter},
		{"B to the guests", nil, "[fd00:2:1::9]:1", "[fd00:1:9::10]:104", ReasonTunnelToOther},
		{"B to the internet", nil, "[fd00:2:1::9]:1", "[2001:db8::10]:104", ReasonTunnelToOther},
		{"guest to C", l.guest, "[fd00:1:9::10]:1", "[fd00:3:1::7]:104", ReasonNotFromZone},
		{"DMZ host to C with another zone's address", l.dmz, "[fd00:1:1::10]:1", "[fd00:3:1::7]:104", ReasonNotFromZone},
		{"internet to A with B's address", l.wan, "[fd00:2:1::9]:1", "[fd00:1:1::10]:104", ReasonSpoofed},
		{"internet to C", l.wan, "[2001:db8::10]:1", "[fd00:3:1::7]:104", ReasonNotFromZone},
	} {
		t.Run(a.name+" "+a.src, func(t *testing.T) {
			payload := "attempt " + t.Name()
			if a.from == nil {
				l.tun.inject(t, a.src, a.dst, payload)
			} else if err := a.from.send(t, a.src, a.dst, payload); err != nil {
				t.Fatal(err)
			}
			l.refused(t, a.reason)
			l.nowhere(t, payload)
		})
	}
	for _, to := range []string{"10.3.1.7:104", "10.2.1.9:104"} {
		t.Run("router itself to "+to, func(t *testing.T) {
			for _, src := range []string{"10.1.1.1:1", "198.51.100.1:1", "10.1.1.10:1"} {
				if err := l.a.send(t, src, to, "from router"); !errors.Is(err, unix.EPERM) {
					t.Errorf("sending from %s: %v, want EPERM", src, err)
				}
				l.refused(t, ReasonFromRouter)
			}
			l.nowhere(t, "from router")
		})
	}
}

// TestRoutesOfTheAdministrator: static routes and policy routing that would lead around the walls.
func TestRoutesOfTheAdministrator(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		name, all, wan, bee, own, guestGW := "IPv4", "0.0.0.0/0", "198.51.100.10", "10.2.1.9", "10.1.1.10", "10.1.9.10"
		moved := "10.1.1.77"
		hostRoute, famNo := "10.1.1.77/32", netlink.FAMILY_V4
		beeNet, both := "10.2.1.0/28", "10.2.0.0/15"
		if v6 {
			name, all, wan, bee, own, guestGW = "IPv6", "::/0", "2001:db8::10", "fd00:2:1::9", "fd00:1:1::10", "fd00:1:9::10"
			moved = "fd00:1:1::77"
			hostRoute, famNo = "fd00:1:1::77/128", netlink.FAMILY_V6
			beeNet, both = "fd00:2:1::/96", "fd00:2::/31"
		}
		at := func(addr string, port int) string {
			return netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port)).String()
		}
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.careless(t)
			l.apply(t)
			send := func(payload string) {
				t.Helper()
				if err := l.lan.send(t, at(own, 1000), at(bee, 104), payload); err != nil {
					t.Fatal(err)
				}
			}
			// A more specific route in the main table does not win over ours.
			l.a.route(t, beeNet, wan, "", 0)
			send("specific route")
			l.tun.want(t, "specific route", at(own, 1000), at(bee, 104))

			// A rule before ours does, and then the packet goes nowhere.
			l.a.route(t, both, wan, "", 99)
			l.a.rule(t, 10, 99, famNo)
			send("policy routing")
			l.refused(t, ReasonClearLeak)
			l.nowhere(t, "policy routing")
			r := netlink.NewRule()
			r.Priority, r.Table, r.Family = 10, 99, famNo
			if err := l.a.nl.RuleDel(r); err != nil {
				t.Fatal(err)
			}

			// A LAN host's address behind another interface, then in the tunnel.
			l.a.route(t, hostRoute, guestGW, "", 0)
			l.tun.inject(t, at(bee, 1), at(moved, 104), "moved host")
			l.refused(t, ReasonTunnelToOther)
			l.nowhere(t, "moved host")
			l.a.route(t, hostRoute, "", tunName, 0)
			l.tun.inject(t, at(bee, 1), at(moved, 104), "host in tunnel")
			l.refused(t, ReasonRelay)
			l.nowhere(t, "host in tunnel")

			// The whole internet by the tunnel: guests do not get in.
			l.a.route(t, all, "", tunName, 98)
			l.a.rule(t, 20, 98, famNo)
			from, to := "10.1.9.10", "192.0.2.1"
			if v6 {
				from, to = "fd00:1:9::10", "2001:db8:1::1"
			}
			if err := l.guest.send(t, at(from, 1), at(to, 80), "guest default"); err != nil {
				t.Fatal(err)
			}
			l.refused(t, ReasonNotFromZone)
			if _, ok, _ := l.tun.find("guest default"); ok {
				t.Error("the guest's packet entered the TUN device")
			}
		})
	}
}

// TestDaemonDies (ZONE-8): the TUN device is gone, everything else stays.
func TestDaemonDies(t *testing.T) {
	for _, how := range []string{"killed", "lockdown", "lockdown by a new process", "lockdown by a new process after a flush", "stopped and policy routing"} {
		t.Run(how, func(t *testing.T) {
			l := newLab(t)
			l.careless(t)
			l.apply(t)
			if err := l.lan.send(t, "10.1.1.10:1000", "10.2.1.9:104", "before"); err != nil {
				t.Fatal(err)
			}
			l.tun.want(t, "before", "10.1.1.10:1000", "10.2.1.9:104")
			leak := false
			switch how {
			case "killed":
				l.tun.f.Close()
			case "lockdown":
				if err := l.k.Lockdown(); err != nil {
					t.Fatal(err)
				}
			case "lockdown by a new process", "lockdown by a new process after a flush":
				l.k.Close()
				if strings.HasSuffix(how, "flush") {
					conn, err := nftables.New(nftables.WithNetNSFd(l.a.fd))
					if err != nil {
						t.Fatal(err)
					}
					conn.FlushRuleset()
					if err := conn.Flush(); err != nil {
						t.Fatal(err)
					}
				}
				l.k = l.open(t)
				if err := l.k.Lockdown(); err != nil {
					t.Fatal(err)
				}
			case "stopped and policy routing":
				l.k.Close()
				l.tun.f.Close()
				l.k = l.open(t)
				leak = true
				l.a.route(t, "10.2.0.0/15", "198.51.100.10", "", 99)
				l.a.route(t, "fd00:2::/31", "2001:db8::10", "", 99)
				l.a.rule(t, 10, 99, netlink.FAMILY_V4)
				l.a.rule(t, 10, 99, netlink.FAMILY_V6)
			}
			for i, c := range [][2]string{
				{"10.1.1.10:1000", "10.2.1.9:104"},
				{"10.1.1.10:1000", "10.3.1.7:80"},
				{"[fd00:1:1::10]:1000", "[fd00:2:1::9]:104"},
			} {
				payload := fmt.Sprintf("after %d", i)
				// The host is told by ICMP, so a second send may fail.
				if err := l.lan.send(t, c[0], c[1], payload); err != nil {
					t.Logf("send: %v", err)
				}
				if leak {
					l.refused(t, ReasonClearLeak)
				}
				l.nowhere(t, payload)
			}
			if err := l.a.send(t, "198.51.100.1:1", "10.2.1.9:104", "router"); err == nil {
				t.Error("the router itself could send to B in the clear")
			}
			l.nowhere(t, "router")
			if strings.HasPrefix(how, "lockdown") {
				l.counted = l.counts(t)
				l.tun.inject(t, "10.2.1.9:1", "10.1.1.10:104", "into locked")
				l.refused(t, ReasonLocked)
				l.nowhere(t, "into locked")
			}
			if how == "stopped and policy routing" {
				return
			}
			// And it comes back.
			if how == "killed" {
				l.tun = l.a.openTun(t)
			}
			if err := l.k.Apply(l.state()); err != nil {
				t.Fatal(err)
			}
			if err := l.lan.send(t, "10.1.1.10:1000", "10.2.1.9:104", "again"); err != nil {
				t.Fatal(err)
			}
			l.tun.want(t, "again", "10.1.1.10:1000", "10.2.1.9:104")
			l.tun.inject(t, "10.2.1.9:104", "10.1.1.10:1000", "and back")
			l.atLAN.want(t, "and back", "10.2.1.9:104", "10.1.1.10:1000")
		})
	}
}

// TestForwardingIsForVPNOnly: where the machine was no router, it does not become one.
func TestForwardingIsForVPNOnly(t *testing.T) {
	for _, force6 := range []bool{true, false} {
		t.Run(fmt.Sprintf("force_forwarding=%v", force6), func(t *testing.T) {
			l := newLab(t)
			l.k = openIn(t, l.a, Options{noForce6: !force6})
			l.a.sysctl(t, "ipv6/conf/wan0/accept_ra", "1")
			if err := l.k.Apply(l.state()); err != nil {
				t.Fatal(err)
			}
			l.counted = l.counts(t)
			try := func(h *host, from, to, payload string) {
				t.Helper()
				if err := h.send(t, from, to, payload); err != nil {
					t.Fatal(err)
				}
			}
			try(l.lan, "10.1.1.10:1", "10.2.1.9:2", "vpn4")
			l.tun.want(t, "vpn4", "10.1.1.10:1", "10.2.1.9:2")
			try(l.lan, "[fd00:1:1::10]:1", "[fd00:2:1::9]:2", "vpn6")
			l.tun.want(t, "vpn6", "[fd00:1:1::10]:1", "[fd00:2:1::9]:2")
			try(l.lan, "10.1.1.10:1", "198.51.100.10:2", "ordinary")
			l.refused(t, ReasonNotARouter)
			l.nowhere(t, "ordinary")
			try(l.lan, "[fd00:1:1::10]:1", "[2001:db8::10]:2", "ordinary6")
			l.refused(t, ReasonNotARouter)
			l.nowhere(t, "ordinary6")
			try(l.guest, "[fd00:1:9::10]:1", "[2001:db8::10]:2", "guest6")
			if !force6 {
				l.refused(t, ReasonNotARouter)
				l.a.sysctlIs(t, "ipv6/conf/wan0/accept_ra", "2")
			}
			l.nowhere(t, "guest6")

			// The notes of what was before survive the process, and another Apply.
			l.k.Close()
			l.k = openIn(t, l.a, Options{noForce6: !force6})
			s := l.state()
			s.Zones = s.Zones[:1]
			if err := l.k.Apply(s); err != nil {
				t.Fatal(err)
			}
			l.a.sysctlIs(t, "ipv4/conf/lan0/forwarding", "1")
			l.a.sysctlIs(t, "ipv4/conf/dmz0/forwarding", "0")
			if err := l.k.Remove(); err != nil {
				t.Fatal(err)
			}
			l.a.sysctlIs(t, "ipv4/conf/lan0/forwarding", "0")
			l.a.sysctlIs(t, "ipv4/ip_forward", "0")
			l.a.sysctlIs(t, "ipv6/conf/all/forwarding", "0")
			l.a.sysctlIs(t, "ipv6/conf/wan0/accept_ra", "1")

			// The administrator makes it a router: now ordinary traffic is none of our business.
			l.routing(t)
			if err := l.k.Apply(l.state()); err != nil {
				t.Fatal(err)
			}
			try(l.lan, "10.1.1.10:1", "198.51.100.10:2", "as router")
			l.atWAN.want(t, "as router", "10.1.1.10:1", "198.51.100.10:2")
			try(l.lan, "[fd00:1:1::10]:1", "[2001:db8::10]:2", "as router6")
			l.atWAN.want(t, "as router6", "[fd00:1:1::10]:1", "[2001:db8::10]:2")
			if err := l.k.Remove(); err != nil {
				t.Fatal(err)
			}
			l.a.sysctlIs(t, "ipv4/conf/lan0/forwarding", "1")
		})
	}
}

// TestGatewayInsideRemotePrefix: IKE and ESP between the gateways pass in the clear, nothing else.
func TestGatewayInsideRemotePrefix(t *testing.T) {
	l := newLab(t)
	l.routing(t)
	l.k = l.open(t)
	s := l.state()
	s.Remotes = append(s.Remotes, pfx("198.51.100.8/29", "2001:db8::10/124")...)
	s.Gateways = []netip.Addr{netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8::10")}
	if err := l.k.Apply(s); err != nil {
		t.Fatal(err)
	}
	l.counted = l.counts(t)
	router := l.a.sniff(t, "wan0")
	inner := l.a.listenUDP(t, "198.51.100.1:500")
	if err := l.a.sendMarked(t, "198.51.100.1:4500", "198.51.100.10:4500", "ike out", DefaultMark); err != nil {
		t.Fatal(err)
	}
	l.atWAN.want(t, "ike out", "198.51.100.1:4500", "198.51.100.10:4500")
	if err := l.wan.send(t, "198.51.100.10:500", "198.51.100.1:500", "ike in"); err != nil {
		t.Fatal(err)
	}
	router.want(t, "ike in", "198.51.100.10:500", "198.51.100.1:500")
	inner(t, "ike in")
	// IPv6 has to find its neighbour first, in both directions.
	if err := l.a.sendMarked(t, "[2001:db8::1]:500", "[2001:db8::10]:500", "ike6 out", DefaultMark); err != nil {
		t.Fatal(err)
	}
	l.atWAN.want(t, "ike6 out", "[2001:db8::1]:500", "[2001:db8::10]:500")
	if err := l.wan.send(t, "[2001:db8::10]:4500", "[2001:db8::1]:500", "ike6 in"); err != nil {
		t.Fatal(err)
	}
	router.want(t, "ike6 in", "[2001:db8::10]:4500", "[2001:db8::1]:500")
	l.refused(t)
	if err := l.wan.send(t, "[2001:db8::10]:4500", "[2001:db8::1]:22", "ssh6 in"); err != nil {
		t.Fatal(err)
	}
	l.refused(t, ReasonSpoofed)

	// Nobody listens there: the gateway's ICMP error is part of the conversation.
	if err := l.a.sendMarked(t, "198.51.100.1:53", "198.51.100.10:53", "other port", DefaultMark); !errors.Is(err, unix.EPERM) {
		t.Errorf("other port: %v, want EPERM", err)
	}
	l.refused(t, ReasonFromRouter)
	if err := l.a.send(t, "198.51.100.1:4500", "198.51.100.10:4500", "no mark"); !errors.Is(err, unix.EPERM) {
		t.Errorf("without the mark: %v, want EPERM", err)
	}
	l.refused(t, ReasonFromRouter)
	if err := l.wan.send(t, "198.51.100.10:500", "198.51.100.1:22", "ssh in"); err != nil {
		t.Fatal(err)
	}
	l.refused(t, ReasonSpoofed)
	if err := l.wan.send(t, "198.51.100.10:500", "10.1.1.10:500", "through"); err != nil {
		t.Fatal(err)
	}
	l.refused(t, ReasonSpoofed)
	if err := l.wan.send(t, "198.51.100.11:500", "198.51.100.1:500", "neighbour"); err != nil {
		t.Fatal(err)
	}
	l.refused(t, ReasonSpoofed)
	// What the facility's other addresses get goes by the tunnel.
	if err := l.lan.send(t, "10.1.1.10:1", "198.51.100.10:80", "by tunnel"); err != nil {
		t.Fatal(err)
	}
	l.tun.want(t, "by tunnel", "10.1.1.10:1", "198.51.100.10:80")
}

// TestApplyIsIdempotent: the second time nothing is touched, and foreign things never are.
func TestApplyIsIdempotent(t *testing.T) {
	l := newLab(t)
	l.a.admin(t, adminNAT{masquerade: []string{"wan0"}})
	// Somebody else's route in our table, and our prefix in the main table.
	l.a.route(t, "10.2.1.0/24", "198.51.100.10", "", 0)
	foreign := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("192.0.2.0/24")), Table: DefaultRouteTable, Type: unix.RTN_BLACKHOLE, Protocol: unix.RTPROT_STATIC}
	if err := l.a.nl.RouteAdd(foreign); err != nil {
		t.Fatal(err)
	}
	before := l.snapshot(t)
	l.apply(t)
	gen := l.generation(t)
	for range 3 {
		if err := l.k.Apply(l.state()); err != nil {
			t.Fatal(err)
		}
		changes, err := l.k.syncForTest()
		if err != nil || len(changes) > 0 {
			t.Errorf("changed again: %v, %v", changes, err)
		}
	}
	if g := l.generation(t); g != gen {
		t.Errorf("nftables generation went from %d to %d without need", gen, g)
	}
	// Another state keeps the counters.
	l.tun.inject(t, "10.2.1.9:1", "10.3.1.7:104", "relay")
	l.refused(t, ReasonRelay)
	s := l.state()
	s.Remotes = s.Remotes[1:]
	if err := l.k.Apply(s); err != nil {
		t.Fatal(err)
	}
	l.refused(t)
	if got := l.counts(t)[ReasonRelay].Packets; got != 1 {
		t.Errorf("counter after another Apply is %d, want 1", got)
	}
	routes, err := l.k.ourRoutes()
	if err != nil {
		t.Fatal(err)
	}
	if len(routes) != 6 {
		t.Errorf("%d routes, want 3 into the TUN device and 3 unreachable: %v", len(routes), routes)
	}
	// A change by somebody else is not taken for ours, and does not disturb.
	l.a.admin(t, adminNAT{masquerade: []string{"guest0"}})
	if changes, err := l.k.syncForTest(); err != nil || len(changes) > 0 {
		t.Errorf("somebody else's nftables change made us change %v, %v", changes, err)
	}
	if err := l.k.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := l.k.Remove(); err != nil {
		t.Errorf("second Remove: %v", err)
	}
	if after := l.snapshot(t); !slices.Equal(before, after) {
		t.Errorf("before:\n%s\nafter Remove:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

// snapshot lists tables, routes and rules.
func (l *lab) snapshot(t *testing.T) []string {
	t.Helper()
	var out []string
	conn, err := nftables.New(nftables.WithNetNSFd(l.a.fd))
	if err != nil {
		t.Fatal(err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, tb := range tables {
		out = append(out, "table "+tb.Name)
	}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := l.a.nl.RouteListFiltered(f, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			// The kernel's own come and go with addresses and devices, in their own time.
			if r.Protocol == unix.RTPROT_KERNEL {
				continue
			}
			out = append(out, fmt.Sprintf("route %v table %d proto %d", r.Dst, r.Table, r.Protocol))
		}
		rules, err := l.a.nl.RuleList(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			out = append(out, fmt.Sprintf("rule %d %d", r.Priority, r.Table))
		}
	}
	slices.Sort(out)
	return out
}

func (l *lab) generation(t *testing.T) uint32 {
	t.Helper()
	conn, err := l.k.dialNetfilter()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	g, err := generation(conn)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (k *Kernel) syncForTest() ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sync()
}

// TestRefusedStateChangesNothing: a state that is wrong, and one that the kernel refuses.
func TestRefusedStateChangesNothing(t *testing.T) {
	l := newLab(t)
	l.apply(t)
	gen := l.generation(t)
	s := l.state()
	s.Remotes = append(s.Remotes, netip.MustParsePrefix("10.1.1.128/25"))
	err := l.k.Apply(s)
	if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "10.1.1.0/24") || !strings.Contains(err.Error(), "10.1.1.128/25") {
		t.Errorf("overlap: %v", err)
	}
	if g := l.generation(t); g != gen {
		t.Error("a refused state changed the table")
	}
	if err := l.lan.send(t, "10.1.1.10:1", "10.2.1.9:2", "still"); err != nil {
		t.Fatal(err)
	}
	l.tun.want(t, "still", "10.1.1.10:1", "10.2.1.9:2")
}

// TestWatch: what is destroyed from outside is put back.
func TestWatch(t *testing.T) {
	l := newLab(t)
	l.apply(t)
	s := l.state()
	s.Zones = append(s.Zones, Zone{"late", pfx("10.1.3.0/24"), []string{"late0"}})
	if err := l.k.Apply(s); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	events := make(chan Event, 100)
	done := make(chan error, 1)
	go func() { done <- l.k.Watch(ctx, func(e Event) { events <- e }) }()
	next := func(code, detail string) {
		t.Helper()
		deadline := time.After(patience)
		for {
			select {
			case e := <-events:
				if e.Code == code && strings.Contains(e.Detail, detail) {
					return
				}
				t.Logf("event %+v", e)
			case err := <-done:
				t.Fatalf("Watch ended: %v", err)
			case <-deadline:
				t.Fatalf("no event %q with %q", code, detail)
			}
		}
	}
	works := func(what string) {
		t.Helper()
		if err := l.lan.send(t, "10.1.1.10:1", "10.2.1.9:2", what); err != nil {
			t.Fatal(err)
		}
		l.tun.want(t, what, "10.1.1.10:1", "10.2.1.9:2")
		l.counted = l.counts(t)
		l.tun.inject(t, "10.2.1.9:1", "10.3.1.7:2", "relay after "+what)
		l.refused(t, ReasonRelay)
	}
	conn, err := nftables.New(nftables.WithNetNSFd(l.a.fd))
	if err != nil {
		t.Fatal(err)
	}
	conn.FlushRuleset()
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	next("restored", "nftables table")
	works("flush ruleset")

	// One rule more in our own table.
	table := l.k.table()
	conn.InsertRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Table: table, Name: "forward"}, Exprs: accept()})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	next("restored", "nftables table")
	works("foreign rule")

	// One prefix less in a set.
	set, err := conn.GetSetByName(table, partName(setRemote, ip4, 24))
	if err != nil {
		t.Fatal(err)
	}
	conn.FlushSet(set)
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	next("restored", "nftables table")
	works("flushed set")

	routes, err := l.k.ourRoutes()
	if err != nil {
		t.Fatal(err)
	}
	for r := range routes {
		if err := l.a.nl.RouteDel(r.netlink(l.k)); err != nil {
			t.Fatal(err)
		}
	}
	next("restored", "routes")
	if err := l.a.nl.RuleDel(l.k.ruleFor(netlink.FAMILY_V4)); err != nil {
		t.Fatal(err)
	}
	next("restored", "ip rule")
	works("routes and rule")

	l.a.sysctl(t, "ipv4/conf/lan0/forwarding", "0")
	next("restored", "forwarding")
	works("forwarding")

	veth(t, l.a, "late0", l.guest, "eth1")
	next("interface", "late0")
	l.a.sysctlIs(t, "ipv4/conf/late0/forwarding", "1")

	l.tun.f.Close()
	if _, err := l.a.nl.LinkByName(tunName); err == nil {
		t.Fatal("the TUN device is still there")
	}
	l.tun = l.a.openTun(t)
	next("interface", "TUN device")
	works("new TUN device")

	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch returned %v", err)
	}
}

// TestRefusals (AUD-5): the router learns who tried what.
func TestRefusals(t *testing.T) {
	l := newLab(t)
	l.careless(t)
	l.apply(t)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan Refusal, 100)
	done := make(chan error, 1)
	go func() { done <- l.k.Refusals(ctx, func(r Refusal) { got <- r }) }()
	// Until the group is bound nothing is reported; try until it is.
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var r Refusal
bound:
	for {
		select {
		case r = <-got:
			break bound
		case <-tick.C:
			l.tun.inject(t, "10.2.1.9:4242", "10.3.1.7:104", "relay")
		case err := <-done:
			t.Fatal(err)
		case <-deadline:
			t.Fatal("no refusal reported")
		}
	}
	want := Refusal{
		Time: r.Time, Reason: ReasonRelay, Hook: "prerouting", In: tunName,
		Src: netip.MustParseAddr("10.2.1.9"), Dst: netip.MustParseAddr("10.3.1.7"),
		Proto: unix.IPPROTO_UDP, SrcPort: 4242, DstPort: 104, Length: 33,
	}
	if r != want {
		t.Errorf("got %+v\nwant %+v", r, want)
	}
	if err := l.guest.send(t, "[fd00:1:9::10]:7", "[fd00:3:1::7]:104", "six"); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case r = <-got:
		case <-deadline:
			t.Fatal("no IPv6 refusal reported")
		}
		if r.Src.Is6() {
			break
		}
	}
	if r.Reason != ReasonNotFromZone || r.In != "guest0" || r.DstPort != 104 || r.SrcPort != 7 {
		t.Errorf("got %+v", r)
	}
	// A second listener is told why it gets nothing.
	k2 := l.open(t)
	if err := k2.Refusals(ctx, func(Refusal) {}); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "nflog_group") {
		t.Errorf("second listener: %v, want EPERM and a hint", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Refusals returned %v", err)
	}
}

// TestManyPrefixes: a nation's facilities.
func TestManyPrefixes(t *testing.T) {
	l := newLab(t)
	l.routing(t)
	l.k = l.open(t)
	s := l.state()
	for i := range 5000 {
		s.Remotes = append(s.Remotes,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + i/256), byte(i), 0}), 25),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0xff, byte(i >> 8), byte(i), 0, byte(i)}), 64))
	}
	for i := range 600 {
		s.Zones[0].Prefixes = append(s.Zones[0].Prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 100 + byte(i/256), byte(i), 0}), 25))
	}
	begin := time.Now()
	if err := l.k.Apply(s); err != nil {
		t.Fatal(err)
	}
	t.Logf("first Apply took %v", time.Since(begin))
	begin = time.Now()
	if err := l.k.Apply(s); err != nil {
		t.Fatal(err)
	}
	t.Logf("second Apply took %v", time.Since(begin))
	l.counted = l.counts(t)
	if err := l.lan.send(t, "10.1.1.10:1", "172.35.135.5:2", "last"); err != nil {
		t.Fatal(err)
	}
	l.tun.want(t, "last", "10.1.1.10:1", "172.35.135.5:2")
	l.tun.inject(t, "172.35.135.5:2", "10.1.1.10:1", "back")
	l.atLAN.want(t, "back", "172.35.135.5:2", "10.1.1.10:1")
	l.tun.inject(t, "172.35.135.5:2", "172.16.0.1:1", "relay")
	l.refused(t, ReasonRelay)
	l.tun.inject(t, "172.35.135.130:2", "10.1.1.10:1", "gap")
	l.refused(t, ReasonTunnelSource)
	if err := l.k.Remove(); err != nil {
		t.Fatal(err)
	}
}

// TestManyLengths: prefixes of more lengths than are looked up one by one, in zones and remotes,
// and a gateway among them.
func TestManyLengths(t *testing.T) {
	l := newLab(t)
	l.routing(t)
	l.k = l.open(t)
	s := l.state()
	for bits := 18; bits <= 30; bits++ {
		s.Remotes = append(s.Remotes, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(bits), 0, 0}), bits),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0xff, byte(bits)}), bits*2))
		s.Zones[0].Prefixes = append(s.Zones[0].Prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 100, byte(bits), 0}), max(bits, 24)+1),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0xee, byte(bits)}), bits*2))
	}
	s.Remotes = append(s.Remotes, pfx("198.51.100.200/29")...)
	l.wan.addr(t, "eth0", "198.51.100.201/24")
	s.Gateways = []netip.Addr{netip.MustParseAddr("198.51.100.201")}
	if err := l.k.Apply(s); err != nil {
		t.Fatal(err)
	}
	l.counted = l.counts(t)
	for i, far := range []string{"10.2.1.9:1", "172.18.63.255:1", "172.30.0.3:1", "[fd00:2:1::9]:1", "[fdff:1800::1]:1"} {
		own := "10.1.1.10:2"
		if far[0] == '[' {
			own = "[fd00:1:1::10]:2"
		}
		out, in := fmt.Sprintf("out %d", i), fmt.Sprintf("in %d", i)
		if err := l.lan.send(t, own, far, out); err != nil {
			t.Fatal(err)
		}
		l.tun.want(t, out, own, far)
		l.tun.inject(t, far, own, in)
		l.atLAN.want(t, in, far, own)
	}
	if err := l.a.sendMarked(t, "198.51.100.1:4500", "198.51.100.201:4500", "ike", DefaultMark); err != nil {
		t.Fatal(err)
	}
	l.atWAN.want(t, "ike", "198.51.100.1:4500", "198.51.100.201:4500")
	l.refused(t)
	for _, c := range []struct {
		src, dst string
		reason   Reason
	}{
		{"172.18.64.0:1", "10.1.1.10:2", ReasonTunnelSource},
		{"172.30.0.4:1", "10.1.1.10:2", ReasonTunnelSource},
		{"172.30.0.3:1", "172.18.0.1:2", ReasonRelay},
		{"172.30.0.3:1", "10.1.1.1:2", ReasonTunnelToRouter},
		{"172.30.0.3:1", "10.1.9.10:2", ReasonTunnelToOther},
		{"[fdff:1e00::1]:1", "[fdff:1800::1]:2", ReasonRelay},
		{"[fdff:1f00::1]:1", "[fd00:1:1::10]:2", ReasonTunnelSource},
	} {
		payload := c.src + c.dst
		l.tun.inject(t, c.src, c.dst, payload)
		l.refused(t, c.reason)
		l.nowhere(t, payload)
	}
	if err := l.dmz.send(t, "10.1.1.10:1", "172.30.0.3:2", "wrong zone"); err != nil {
		t.Fatal(err)
	}
	l.refused(t, ReasonNotFromZone)
	l.nowhere(t, "wrong zone")
}

// TestLockdownOfAnotherTable: a new process shuts a table that an older version made, with other
// chains and sets, and keeps what else it says.
func TestLockdownOfAnotherTable(t *testing.T) {
	l := newLab(t)
	l.careless(t)
	l.a.up(t, tunName)
	l.k = l.open(t)
	conn, err := l.k.newConn()
	if err != nil {
		t.Fatal(err)
	}
	b := newBuilder(conn, conn.AddTable(l.k.table()), tunName)
	b.log, b.mark = DefaultLogGroup, DefaultMark
	fillModel(b, &ruleset{state: l.state()})
	if b.err != nil {
		t.Fatal(b.err)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	l.counted = l.counts(t)
	// With a socket there, or the host's ICMP answer would be one more packet to count.
	socket := l.lan.listenUDP(t, "10.1.1.10:104")
	l.tun.inject(t, "10.2.1.9:1", "10.1.1.10:104", "before")
	socket(t, "before")
	l.atLAN.want(t, "before", "10.2.1.9:1", "10.1.1.10:104")
	for range 2 { // it may be told again
		if err := l.k.Lockdown(); err != nil {
			t.Fatal(err)
		}
	}
	l.tun.inject(t, "10.2.1.9:1", "10.1.1.10:104", "into locked")
	l.refused(t, ReasonLocked)
	l.nowhere(t, "into locked")
	if err := l.lan.send(t, "10.2.1.9:1", "198.51.100.10:104", "spoofed"); err != nil {
		t.Fatal(err)
	}
	l.refused(t, ReasonSpoofed)
	l.nowhere(t, "spoofed")
}

// The next process finds what the one before told the kernel.
func TestHeld(t *testing.T) {
	l := newLab(t)
	l.a.up(t, tunName)
	next := l.open(t)
	if got, err := next.Held(); err != nil || len(got) > 0 {
		t.Errorf("of no process: %v, %v", got, err)
	}
	l.apply(t)
	if err := l.k.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := next.Held(); err != nil || !slices.Equal(got, minimal(l.state().Remotes)) {
		t.Errorf("of the process before: %v, %v; want %v", got, err, minimal(l.state().Remotes))
	}
	if _, err := l.k.Held(); !errors.Is(err, ErrClosed) {
		t.Errorf("of one that is closed: %v", err)
	}
}
