package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardgate/policy"
)

// LinePorts are the ports that the contract of a [Line] allows on both hosts, over TCP and UDP.
var LinePorts = []uint16{5201, 5202, 5203, 5204, 5205}

// The addresses of a [Line], side A first.
var (
	lineLAN4  = [2]netip.Prefix{netip.MustParsePrefix("10.1.1.1/24"), netip.MustParsePrefix("10.2.1.1/24")}
	lineLAN6  = [2]netip.Prefix{netip.MustParsePrefix("fd00:1::1/64"), netip.MustParsePrefix("fd00:2::1/64")}
	lineHost4 = [2]netip.Addr{netip.MustParseAddr("10.1.1.10"), netip.MustParseAddr("10.2.1.10")}
	lineHost6 = [2]netip.Addr{netip.MustParseAddr("fd00:1::10"), netip.MustParseAddr("fd00:2::10")}
	lineWAN4  = [2]netip.Prefix{netip.MustParsePrefix("198.18.1.1/24"), netip.MustParsePrefix("198.18.2.1/24")}
	lineWAN6  = [2]netip.Prefix{netip.MustParsePrefix("2001:db8:1::1/64"), netip.MustParsePrefix("2001:db8:2::1/64")}
	lineMid4  = [2]netip.Prefix{netip.MustParsePrefix("198.18.1.254/24"), netip.MustParsePrefix("198.18.2.254/24")}
	lineMid6  = [2]netip.Prefix{netip.MustParsePrefix("2001:db8:1::fe/64"), netip.MustParsePrefix("2001:db8:2::fe/64")}
)

// Line is two facilities with a plain router between them, for tests of the way itself; there are
// IPv4 and IPv6 addresses everywhere:
//
//	host A ── router A ──(a0) middle (b0)── router B ── host B
//
// The middle is where packets are lost, translated, captured, or find a link too small.
type Line struct {
	*Lab
	Provider *Provider
	Sides    [2]*Facility
	Hosts    [2]*Host // Addr is IPv4
	Middle   *Netns
	Contract *Contract
}

// MiddleDevs are the middle's interfaces towards A and B.
var MiddleDevs = [2]string{"a0", "b0"}

// Line makes the networks, tokens and contract. No daemon runs yet.
func (l *Lab) Line(ctx context.Context) (*Line, error) {
	n := &Line{Lab: l}
	var err error
	if n.Provider, err = NewProvider(GroupA); err != nil {
		return nil, err
	}
	if n.Middle, err = l.Netns("mid"); err != nil {
		return nil, err
	}
	for i, side := range []string{"a", "b"} {
		if err := n.side(i, side); err != nil {
			return nil, err
		}
	}
	if err := n.Middle.Sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"); err != nil {
		return nil, err
	}
	var ports []string
	for _, p := range LinePorts {
		ports = append(ports, strconv.Itoa(int(p)))
	}
	n.Contract = &Contract{Name: "a-b", Service: GroupA, Category: policy.CategoryInformation, Parties: n.Sides}
	for i := range n.Sides {
		from := n.Sides[i]
		for family, ends := range map[string][2]string{
			"4": {lineLAN4[i].Masked().String(), lineLAN4[1-i].Masked().String()},
			"6": {lineLAN6[i].Masked().String(), lineLAN6[1-i].Masked().String()},
		} {
			src, dst, icmp := []string{ends[0]}, []string{ends[1]}, "icmp"
			if family == "6" {
				icmp = "icmpv6"
			}
			name := "from-" + from.Name + family
			n.Contract.Flows = append(n.Contract.Flows,
				Agreed{"tcp-" + name, from, src, dst, "tcp", ports},
				Agreed{"udp-" + name, from, src, dst, "udp", ports},
				Agreed{"ping-" + name, from, src, dst, icmp, nil})
		}
	}
	return n, each(n.Sides[:], func(f *Facility) error { return f.Enrol(ctx, n.Provider, GroupA) })
}

func (n *Line) side(i int, name string) error {
	router, err := n.Netns(name)
	if err != nil {
		return err
	}
	if err := noDAD(router, n.Middle); err != nil {
		return err
	}
	f := &Facility{Name: name, Title: "facility " + name, DeviceID: name + ".devices.example", WAN: lineWAN4[i].Addr(), Router: router, Dir: n.Path(name), lab: n.Lab}
	n.Sides[i] = f
	for _, d := range []string{"etc", "state", "run", "tokens"} {
		if err := os.MkdirAll(f.path(d), 0o755); err != nil {
			return err
		}
	}
	z, err := f.Zone("sz", "SZ", lineLAN4[i].String(), map[string]string{"host": lineHost4[i].String()})
	if err != nil {
		return err
	}
	h := f.Host("host")
	n.Hosts[i] = h
	if err := noDAD(h.Netns); err != nil {
		return err
	}
	return errors.Join(
		Cable(router, WANDev, n.Middle, MiddleDevs[i]),
		router.Addr(WANDev, lineWAN4[i].String(), lineWAN6[i].String()),
		n.Middle.Addr(MiddleDevs[i], lineMid4[i].String(), lineMid6[i].String()),
		router.IP("route", "add", "default", "via", lineMid4[i].Addr().String()),
		router.IP("-6", "route", "add", "default", "via", lineMid6[i].Addr().String()),
		router.Addr(z.Dev, lineLAN6[i].String()),
		h.Netns.Addr("eth0", netip.PrefixFrom(lineHost6[i], 64).String()),
		h.IP("-6", "route", "add", "default", "via", lineLAN6[i].Addr().String()),
	)
}

// noDAD lets addresses be used at once, link-local ones too: nobody else has them here.
func noDAD(spaces ...*Netns) error {
	var errs []error
	for _, n := range spaces {
		errs = append(errs, n.Sysctl("net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"))
	}
	return errors.Join(errs...)
}

// Addr is the address of a side's host in one version of IP.
func (n *Line) Addr(side int, v6 bool) netip.Addr {
	if v6 {
		return lineHost6[side]
	}
	return lineHost4[side]
}

// Start starts both daemons afresh with the outer packets in one version of IP, and installs the
// policies; change may alter configurations (what is appended to them) and policies.
func (n *Line) Start(ctx context.Context, v6 bool, extra string, change func(side int, d *policy.Document)) error {
	for i, f := range n.Sides {
		f.WAN = lineWAN4[i].Addr()
		if v6 {
			f.WAN = lineWAN6[i].Addr()
		}
	}
	if err := each(n.Sides[:], func(f *Facility) error {
		if err := f.WriteConfig(extra); err != nil {
			return err
		}
		return f.StartDaemon(ctx)
	}); err != nil {
		return err
	}
	return n.Install(ctx, change)
}

// Install signs and installs a policy on both sides.
func (n *Line) Install(ctx context.Context, change func(side int, d *policy.Document)) error {
	for i, f := range n.Sides {
		d, err := n.Policy(i)
		if err != nil {
			return err
		}
		if change != nil {
			change(i, d)
		}
		if err := f.InstallPolicy(ctx, n.Provider, d); err != nil {
			return err
		}
	}
	return nil
}

// Policy is the next policy document of a side.
func (n *Line) Policy(side int) (*policy.Document, error) {
	d, err := n.Provider.Policy(n.Sides[side], []*Contract{n.Contract})
	if err != nil {
		return nil, err
	}
	d.Zones[0].Prefixes = append(d.Zones[0].Prefixes, lineLAN6[side].Masked().String())
	return d, nil
}

// Stop ends the daemons.
func (n *Line) Stop() error {
	var errs []error
	for _, f := range n.Sides {
		if f.Daemon != nil {
			errs = append(errs, f.Daemon.Stop(stopGrace))
			f.Daemon = nil
		}
	}
	return errors.Join(errs...)
}

// Singly makes every packet between the routers travel alone: segmentation is done before a packet
// reaches the cable, and nothing is coalesced behind it. The routers themselves still hand over and
// are handed whatever they like.
func (n *Line) Singly(ctx context.Context) error {
	var errs []error
	for i, f := range n.Sides {
		errs = append(errs,
			f.Router.Offload(ctx, WANDev, false, "tx-udp-segmentation", "tso", "gro"),
			n.Middle.Offload(ctx, MiddleDevs[i], false, "tx-udp-segmentation", "tso", "gro"))
	}
	return errors.Join(errs...)
}

// Lose makes the middle lose packets in both directions, at random: parts in a thousand.
func (n *Line) Lose(parts int) error {
	const none = "table inet loss\ndelete table inet loss\n"
	if parts == 0 {
		return n.Middle.Nft(none)
	}
	lose := func(side int) string {
		return fmt.Sprintf("\t\tiifname %q numgen random mod 1000 < %d counter drop\n", MiddleDevs[side], parts)
	}
	return n.Middle.Nft(none + "table inet loss {\n\tchain forward {\n\t\ttype filter hook forward priority 0; policy accept;\n" + lose(0) + lose(1) + "\t}\n}\n")
}

var lostLine = regexp.MustCompile(`iifname "(\w+)" numgen .* counter packets (\d+) `)

// Lost is how many packets from each side the middle has lost.
func (n *Line) Lost(ctx context.Context) (lost [2]uint64, err error) {
	out, err := n.Middle.Run(ctx, "nft", "list", "table", "inet", "loss")
	if err != nil {
		return lost, err
	}
	lines := lostLine.FindAllStringSubmatch(out, -1)
	if len(lines) != len(lost) {
		return lost, fmt.Errorf("nft says nothing of what was lost: %s", out)
	}
	for _, m := range lines {
		if lost[slices.Index(MiddleDevs[:], m[1])], err = strconv.ParseUint(m[2], 10, 64); err != nil {
			return lost, err
		}
	}
	return lost, nil
}

// LinkMTU sets the MTU of the link between the middle and a side, at both ends of it.
func (n *Line) LinkMTU(side, mtu int) error {
	return errors.Join(
		n.Middle.IP("link", "set", MiddleDevs[side], "mtu", strconv.Itoa(mtu)),
		n.Sides[side].Router.IP("link", "set", WANDev, "mtu", strconv.Itoa(mtu)))
}

// Masquerade puts a NAT between A and B: what A sends comes from the middle's address, from ports
// of its choice.
func (n *Line) Masquerade() error {
	return n.Middle.Nft(`table inet nat {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "` + MiddleDevs[1] + `" meta l4proto udp masquerade random
		oifname "` + MiddleDevs[1] + `" masquerade
	}
}
`)
}

// CaptureWhole starts tcpdump like [Lab.Capture], with room for every packet of a fast transfer of
// packets that have not been coalesced: none is longer than 2000 octets.
func (l *Lab) CaptureWhole(ctx context.Context, n *Netns, name, dev string) (*Capture, error) {
	return l.capture(ctx, n, name, dev, "-s", "2000", "-B", "65536")
}

// StopWhole ends a capture when tcpdump has written what it was given, and fails when it lost some.
func (c *Capture) StopWhole(ctx context.Context) error {
	size := int64(-1)
	for still := 0; still < 5 && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		at, err := os.Stat(c.File)
		if err != nil {
			return err
		}
		if still++; at.Size() != size {
			size, still = at.Size(), 0
		}
	}
	if err := c.Stop(); err != nil {
		return err
	}
	if words := c.p.Tail(5); !strings.Contains(words, "\n0 packets dropped by kernel") {
		return fmt.Errorf("tcpdump has lost packets: %s", words)
	}
	return nil
}
