package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/internal/testvectors"
	"wardgate/policy"
	"wardgate/router/control"
)

// guests is hospital A with the product's daemon, and two partners who have other people's routers, in
// guests whose kernels have ESP. Neither knows RFC 4739: the policy has a pre-shared key for each.
type guests struct {
	inet                  *lab.Internet
	provider              *lab.Provider
	a                     *lab.Facility
	archive               *lab.Host
	contracts             []*lab.Contract
	plutoGuest, ikedGuest *lab.Guest
}

// The addresses behind the partners' routers.
var (
	behindLibreswan = netip.MustParseAddr("10.2.1.9")
	behindOpenIKED  = netip.MustParseAddr("10.3.1.7")
)

const guestPSK = "a key of 32 octets and more for "

// TestOtherRouters: wardgated, by the policy that it is given, with libreswan and OpenIKED: set up by either
// side, datagrams and TCP both ways, all keys changed by wardgated while packets cross, ended by either side.
// OpenIKED's suite is one that the policy has to name: the laboratory's own have AEADs only.
func TestOtherRouters(t *testing.T) {
	needRoot(t)
	for _, err := range []error{lab.GuestMissing(), lab.OpenIKEDMissing()} {
		missing(t, err)
	}
	tree, err := lab.LibreswanTree(testvectors.Root())
	missing(t, err)
	t.Parallel()
	g := newGuests(t)
	t.Run("libreswan", func(t *testing.T) { g.libreswan(t, tree) })
	t.Run("OpenIKED", g.openIKED)
}

func missing(t *testing.T, err error) {
	t.Helper()
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
}

func newGuests(t *testing.T) *guests {
	t.Helper()
	ctx := t.Context()
	l := newLab(t, "e2e-guests")
	g := &guests{}
	var err error
	g.inet, err = l.Internet()
	must(t, err)
	g.a, err = l.Facility(g.inet, "a", "hospital A", "a.devices.example", "198.18.0.1")
	must(t, err)
	_, err = g.a.Zone("sz", "SZ", "10.1.2.1/24", map[string]string{"archive": "10.1.2.10"})
	must(t, err)
	g.archive = g.a.Host("archive")
	g.provider, err = lab.NewProvider(lab.GroupA, lab.GroupB)
	must(t, err, g.a.Enrol(ctx, g.provider), g.a.WriteConfig(""), g.a.StartDaemon(ctx))

	for _, p := range []struct {
		name, group, wan string
		behind           netip.Addr
		guest            **lab.Guest
	}{
		{"b", lab.GroupA, "198.18.0.2", behindLibreswan, &g.plutoGuest},
		{"c", lab.GroupB, "198.18.0.3", behindOpenIKED, &g.ikedGuest},
	} {
		peer := &lab.Facility{Name: p.name, Title: "partner " + p.name, DeviceID: p.name + ".devices.example", WAN: netip.MustParseAddr(p.wan), Zones: []*lab.Zone{{Prefix: netip.PrefixFrom(p.behind, 24).Masked()}}}
		c := &lab.Contract{Name: "a-" + p.name, Service: p.group, Parties: [2]*lab.Facility{g.a, peer}}
		archive, other := []string{g.archive.Addr.String()}, []string{p.behind.String()}
		port := []string{fmt.Sprint(lab.EchoPort)}
		for _, proto := range []string{"tcp", "udp", "icmp"} {
			ports := port
			if proto == "icmp" {
				ports = nil
			}
			c.Flows = append(c.Flows,
				lab.Agreed{Name: proto, From: peer, Src: other, Dst: archive, Protocol: proto, Ports: ports},
				lab.Agreed{Name: proto + "-back", From: g.a, Src: archive, Dst: other, Protocol: proto, Ports: ports})
		}
		g.contracts = append(g.contracts, c)

		tap := "tap-" + p.name
		guest, err := l.Guest(ctx, g.inet.Netns, p.name, tap, 256)
		must(t, err, g.inet.IP("link", "set", tap, "master", lab.InternetDev), guest.StartEcho(ctx))
		out, err := guest.Run(ctx, fmt.Sprintf(`set -e
modprobe ipv6
ip addr add %s/24 dev vec0
ip addr add %v/32 dev lo
ip route add 10.1.2.0/24 via %v src %v`, p.wan, p.behind, g.a.WAN, p.behind))
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		*p.guest = guest
	}
	d, err := g.provider.Policy(g.a, g.contracts)
	must(t, err)
	d.Suites = policy.Suites{IKE: []string{"aes256gcm16-prfsha384-ecp384"}, ESP: []string{"aes256gcm16", "aes256-sha384-noesn"}}
	d.Lifetimes = policy.Lifetimes{IKE: policy.Duration(lifeIKE), Child: policy.Duration(lifeChild)}
	for i := range d.Services {
		s := &d.Services[i]
		s.Auth, s.Anchors, s.PSK = policy.AuthPSK, nil, policy.NewSecret([]byte(guestPSK+s.Name))
		d.Connections[i].ServiceID = ""
	}
	d.Peers[1].ESP = policy.ESPNative // OpenIKED; libreswan's packets go in UDP
	must(t, g.a.InstallPolicy(ctx, g.provider, d))
	return g
}

// exchange lets pings, datagrams and TCP connections cross, opened by either side.
func (g *guests) exchange(t *testing.T, guest *lab.Guest, addr netip.Addr) {
	t.Helper()
	ctx := t.Context()
	const ping = "ping -n -q -c 3 -i 0.05 -W 5 "
	out, err := g.archive.Run(ctx, "bash", "-c", ping+addr.String())
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err = guest.Run(ctx, ping+"-I "+addr.String()+" "+g.archive.Addr.String()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	must(t, guest.Exchange(ctx, g.archive.Netns, g.archive.Addr, addr))
}

// reach waits until a ping is answered, the first of which may wake the connection.
func (g *guests) reach(t *testing.T, addr netip.Addr) {
	t.Helper()
	must(t, lab.WaitFor(t.Context(), "a ping to be answered", time.Minute, func() error {
		_, err := g.archive.Run(t.Context(), "ping", "-n", "-q", "-c", "1", "-W", "2", addr.String())
		return err
	}))
}

// flow sends datagrams until done says nil, and wants nearly all of them back: the peers lose those that
// cross the moment at which they take up new keys.
func (g *guests) flow(t *testing.T, addr netip.Addr, what string, done func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	sent, lost := 0, 0
	for err := errors.New(""); err != nil; err = done() {
		r, burstErr := g.archive.Burst(ctx, g.archive.Addr, netip.AddrPortFrom(addr, lab.EchoPort), 100, 10*time.Millisecond, 2*time.Second)
		if burstErr != nil {
			t.Fatalf("waited for: %s: %v", what, err)
		}
		sent += r.Sent
		lost += len(r.Missing)
	}
	t.Logf("%d datagrams until %s; %d did not come back", sent, what, lost)
	if lost > 5+sent/100 {
		t.Errorf("%d of %d datagrams did not come back", lost, sent)
	}
}

// said returns a condition that all words are in a log.
func said(log func() string, words ...string) func() error {
	return func() error {
		text := log()
		for _, w := range words {
			if !strings.Contains(text, w) {
				return fmt.Errorf("it has not said %q", w)
			}
		}
		return nil
	}
}

func (g *guests) libreswan(t *testing.T, tree string) {
	ctx := t.Context()
	s, err := g.plutoGuest.StartLibreswan(ctx, tree, fmt.Sprintf("@a.devices.example @b.devices.example : PSK \"%s%s\"\n", guestPSK, lab.GroupA))
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("pluto said:\n%s", s.Log())
		}
	})
	must(t, s.Add(ctx, "clinic", "ikev2=insist", "left=198.18.0.2", "right=198.18.0.1", "leftid=@b.devices.example", "rightid=@a.devices.example",
		"leftsubnet="+behindLibreswan.String()+"/32", "rightsubnet="+g.archive.Addr.String()+"/32", "authby=secret",
		"ike=aes_gcm256-sha2_384-dh20", "esp=aes_gcm256", "pfs=no", "auto=add"))
	whack := func(args string) {
		t.Helper()
		if out, err := s.Whack(ctx, args); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	// libreswan sets up, and deletes.
	whack("--initiate --name clinic")
	must(t, g.a.WaitState(ctx, "a-b", control.ConnUp, 30*time.Second))
	g.exchange(t, g.plutoGuest, behindLibreswan)
	whack("--terminate --name clinic")
	must(t, g.a.WaitState(ctx, "a-b", control.ConnIdle, 30*time.Second))

	// A packet wakes wardgated, which changes all keys, and deletes.
	g.reach(t, behindLibreswan)
	c, err := g.a.Connection(ctx, "a-b")
	must(t, err)
	if !c.Encap || !strings.HasPrefix(c.ESPSuite, "aes256gcm16") {
		t.Errorf("ESP in UDP %v, suite %s; want it in UDP, and aes256gcm16", c.Encap, c.ESPSuite)
	}
	g.exchange(t, g.plutoGuest, behindLibreswan)
	g.flow(t, behindLibreswan, "wardgated has rekeyed both SAs", said(s.Log, "responder rekeyed Child SA", "responder rekeyed IKE SA"))
	g.exchange(t, g.plutoGuest, behindLibreswan)
	_, err = g.a.Wardgate(ctx, "down", "a-b")
	must(t, err, s.WaitIdle(ctx, "clinic", 30*time.Second))
}

func (g *guests) openIKED(t *testing.T) {
	ctx := t.Context()
	// The key and certificate are there because iked wants some; they prove nothing here.
	id, err := g.provider.Forge(g.contracts[1].Parties[1], lab.GroupB, nil)
	must(t, err)
	s, err := g.ikedGuest.OpenIKED(ctx, "c.devices.example", id.Keys[0], id.Certs[0][0], g.provider.CA.Device.Anchor())
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("iked said:\n%s", s.Log())
		}
	})
	// OpenIKED sets up, and deletes.
	must(t, s.Start(ctx, fmt.Sprintf(`ikev2 "hospital" active esp from %v to %v local 198.18.0.3 peer 198.18.0.1 \
	ikesa enc aes-256-gcm prf hmac-sha2-384 group ecp384 childsa enc aes-256 auth hmac-sha2-384 noesn \
	srcid c.devices.example dstid a.devices.example psk "%s%s"
`, behindOpenIKED, g.archive.Addr, guestPSK, lab.GroupB)), g.a.WaitState(ctx, "a-c", control.ConnUp, 30*time.Second))
	g.reach(t, behindOpenIKED)
	c, err := g.a.Connection(ctx, "a-c")
	must(t, err)
	if c.Encap || !strings.HasPrefix(c.ESPSuite, "aes256-sha384") {
		t.Errorf("ESP in UDP %v, suite %s; want protocol 50, and aes256-sha384", c.Encap, c.ESPSuite)
	}
	g.exchange(t, g.ikedGuest, behindOpenIKED)
	for _, command := range []string{"passive", "reset id FQDN/a.devices.example"} { // passive: it does not come back
		if out, err := s.Ctl(ctx, command); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	must(t, g.a.WaitState(ctx, "a-c", control.ConnIdle, 30*time.Second))

	// A packet wakes wardgated, which changes all keys, and deletes.
	g.reach(t, behindOpenIKED)
	g.exchange(t, g.ikedGuest, behindOpenIKED)
	g.flow(t, behindOpenIKED, "wardgated has rekeyed both SAs", said(s.Log, "ikev2_resp_create_child_sa: rekey ESP", "ikev2_resp_create_child_sa: rekey IKE", "rekeyed as new IKESA"))
	g.exchange(t, g.ikedGuest, behindOpenIKED)
	_, err = g.a.Wardgate(ctx, "down", "a-c")
	must(t, err, g.a.WaitState(ctx, "a-c", control.ConnIdle, 30*time.Second), s.Stop(ctx))
}
