package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/router/control"
)

// Over IPv6 alone: IPv4 and IPv6 inside, TCP in both directions, datagrams, pings; and what the
// contract does not name does not pass there either.
func TestIPv6(t *testing.T) {
	needRoot(t)
	t.Parallel()
	n := newLine(t, "e2e-ipv6")
	ctx := within(t, 60*time.Second)
	// Nothing but IPv6 leads from one router to the other.
	for i, f := range n.Sides {
		must(t, f.Router.IP("-4", "addr", "flush", "dev", lab.WANDev), n.Middle.IP("-4", "addr", "flush", "dev", lab.MiddleDevs[i]))
	}
	must(t, n.Start(ctx, true, "", nil))
	wire, err := n.Capture(ctx, n.Middle, "wire", lab.MiddleDevs[0])
	must(t, err)
	for _, v6 := range []bool{true, false} {
		ping(ctx, t, n, v6)
		var streams []*tcpStream
		for from := range 2 {
			for i := range 2 {
				streams = append(streams, &tcpStream{
					from: n.Hosts[from], to: n.Hosts[1-from], src: n.Addr(from, v6), dst: netip.AddrPortFrom(n.Addr(1-from, v6), lab.LinePorts[i]),
					size: 16 << 20, seed: uint64(10*from + i),
				})
			}
		}
		must(t, together(ctx, streams))
		for from := range 2 {
			d := datagrams{
				from: n.Hosts[from], to: n.Hosts[1-from], src: n.Addr(from, v6), dst: netip.AddrPortFrom(n.Addr(1-from, v6), lab.LinePorts[2]),
				count: 1000, ahead: 64, size: func(i int) int { return 8 + i },
			}
			got, err := d.run(ctx)
			must(t, err)
			if got != d.count {
				t.Errorf("IPv6 %v: %d of %d datagrams arrived", v6, got, d.count)
			}
		}
	}
	accounted(ctx, t, n, false)

	// Zones and contract hold for IPv6: a port that is not named, and an address of the zone that
	// the contract names but that nobody answers for, from a host outside it.
	closed := netip.AddrPortFrom(n.Addr(1, true), lab.LinePorts[len(lab.LinePorts)-1]+1)
	d := datagrams{from: n.Hosts[0], to: n.Hosts[1], src: n.Addr(0, true), dst: closed, count: 1, ahead: 1, size: func(int) int { return 64 }}
	if got, err := d.run(ctx); err != nil || got != 0 {
		t.Errorf("a port that the contract does not name: %d datagrams arrived, %v", got, err)
	}
	must(t, n.Hosts[0].Netns.Addr("eth0", "fd00:99::1/64"))
	d = datagrams{from: n.Hosts[0], to: n.Hosts[1], src: netip.MustParseAddr("fd00:99::1"), dst: netip.AddrPortFrom(n.Addr(1, true), lab.LinePorts[3]), count: 1, ahead: 1, size: func(int) int { return 64 }}
	if got, err := d.run(ctx); err != nil || got != 0 {
		t.Errorf("from an address of no zone: %d datagrams arrived, %v", got, err)
	}
	must(t, lab.WaitFor(ctx, "both refusals to be counted", 5*time.Second, func() error {
		s, err := n.Sides[0].Status(ctx)
		if err != nil {
			return err
		}
		refused := map[string]uint64{}
		for _, r := range s.Refused {
			refused[r.Where+"/"+r.Reason] += r.Packets
		}
		if len(refused) < 2 {
			return fmt.Errorf("refused: %v", refused)
		}
		t.Logf("refused: %v", refused)
		return nil
	}))

	for _, f := range n.Sides {
		c, err := f.Connection(ctx, "a-b")
		must(t, err)
		gateway, err := netip.ParseAddrPort(c.Gateway)
		if err != nil || !gateway.Addr().Is6() || c.State != control.ConnUp {
			t.Errorf("%s: %s, by way of %q; want up, by way of an IPv6 address", f.Title, c.State, c.Gateway)
		}
	}
	must(t, wire.Stop())
	w, err := wire.Wire(lab.Private...)
	must(t, err)
	if w.ESP == 0 || w.IKE == 0 || len(w.Clear) > 0 {
		t.Errorf("between the routers: %d packets, %d of IKE, %d of ESP, in the clear: %v", w.Packets, w.IKE, w.ESP, w.Clear)
	}
}
