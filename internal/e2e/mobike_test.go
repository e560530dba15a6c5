package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"wardgate/internal/lab"
	"wardgate/policy"
	"wardgate/router/control"
)

// RES-2: the line's address changes below a tunnel that is in use, in all the ways that happen to a
// facility. The stream in it goes on in the same IKE SA; at an address that the policy does not name, in
// a new one with all proofs; and nothing goes out in the clear meanwhile.
func TestAddressChanges(t *testing.T) {
	t.Parallel()
	n := newLine(t, "e2e-mobike")
	ctx := within(t, 100*time.Second)
	a, mid := n.Sides[0].Router, n.Middle
	must(t,
		a.IP("-6", "addr", "flush", "dev", lab.WANDev), n.Sides[1].Router.IP("-6", "addr", "flush", "dev", lab.WANDev), // or IKE would take that way
		lab.Cable(a, "wan2", mid, "a2"),
		mid.Addr("a2", "198.18.3.254/24"), a.Addr("wan2", "198.18.3.1/24"),
		mid.IP("addr", "add", "192.168.77.254/24", "dev", lab.MiddleDevs[0]))
	anywhere := func(_ int, d *policy.Document) {
		d.Lifetimes.Liveness = policy.Duration(time.Second)
		d.Peers[0].Moves = policy.MovesAnywhere
	}
	n.Sides[0].Everywhere, n.Sides[1].Everywhere = true, true
	must(t, n.Start(ctx, false, "", anywhere))
	echo, err := n.Hosts[1].EchoUDP(addrPort(n.Hosts[1], lab.LinePorts[0]))
	must(t, err)
	defer echo.Close()
	var wires []*lab.Capture
	for _, dev := range []string{lab.MiddleDevs[0], lab.MiddleDevs[1], "a2"} {
		w, err := n.Capture(ctx, mid, "wire-"+dev, dev)
		must(t, err)
		wires = append(wires, w)
	}
	stream, err := n.Hosts[0].Stream(n.Hosts[0].Addr, addrPort(n.Hosts[1], lab.LinePorts[0]), 5*time.Millisecond)
	must(t, err)
	answers := func(what string) {
		t.Helper()
		from := time.Now()
		must(t, lab.WaitFor(ctx, "answers "+what, 30*time.Second, func() error {
			if last := stream.LastAnswer(); !last.After(from.Add(200 * time.Millisecond)) {
				return fmt.Errorf("the last one came %v before", from.Sub(last))
			}
			return nil
		}))
	}
	answers("through a new tunnel")
	before := [2]*control.Connection{connectionOf(ctx, t, n, 0), connectionOf(ctx, t, n, 1)}

	lease := func(dev, addr, via string) error {
		return errors.Join(a.IP("addr", "flush", "dev", dev), a.IP("addr", "add", addr, "dev", dev), a.IP("route", "replace", "default", "via", via))
	}
	nat := func(ports string) func() error {
		return func() error {
			// A NAT that was rebooted knows no flow any more, and takes other ports.
			return errors.Join(
				mid.Nft("table ip nat\ndelete table ip nat\ntable ip nat {\n\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat;\n"+
					"\t\tip saddr 192.168.77.0/24 oifname \""+lab.MiddleDevs[1]+"\" meta l4proto udp masquerade to :"+ports+"\n\t}\n}\n"),
				mid.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }))
		}
	}
	const wan = "198.18.1.254"
	for _, c := range []struct {
		name   string
		change func() error
		here   string // A's address then
		seen   string // how B sees it; empty: the same
		ports  [2]uint16
	}{
		{name: "another lease", change: func() error { return lease(lab.WANDev, "198.18.1.77/24", wan) }, here: "198.18.1.77"},
		{name: "another line", change: func() error {
			return errors.Join(a.IP("link", "set", lab.WANDev, "down"), a.IP("route", "replace", "default", "via", "198.18.3.254"))
		}, here: "198.18.3.1"},
		{name: "behind a NAT", change: func() error {
			return errors.Join(nat("20000-20999")(), a.IP("link", "set", lab.WANDev, "up"), a.IP("link", "set", "wan2", "down"), lease(lab.WANDev, "192.168.77.2/24", "192.168.77.254"))
		}, here: "192.168.77.2", seen: "198.18.2.254", ports: [2]uint16{20000, 20999}},
		{name: "the NAT reboots", change: nat("30000-30999"), here: "192.168.77.2", seen: "198.18.2.254", ports: [2]uint16{30000, 30999}},
		{name: "no NAT any more", change: func() error { return lease(lab.WANDev, "198.18.1.1/24", wan) }, here: "198.18.1.1"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			began := time.Now()
			must(t, c.change())
			if c.seen == "" {
				c.seen, c.ports = c.here, [2]uint16{4500, 4500}
			}
			must(t, lab.WaitFor(ctx, "both ends to follow", 30*time.Second, func() error {
				mine, its := connectionOf(ctx, t, n, 0), connectionOf(ctx, t, n, 1)
				at, err := netip.ParseAddrPort(its.Gateway)
				if err != nil || mine.LocalAddr != c.here || at.Addr().String() != c.seen || at.Port() < c.ports[0] || at.Port() > c.ports[1] {
					return fmt.Errorf("A is at %s, B sends to %s; want %s, and %s with a port of %d", mine.LocalAddr, its.Gateway, c.here, c.seen, c.ports)
				}
				return nil
			}))
			answers("after the change")
			t.Logf("both follow, and the stream goes on, %v after the change", time.Since(began).Round(time.Millisecond))
			for i, b := range before {
				if now := connectionOf(ctx, t, n, i); now.IKESA != b.IKESA || !now.ProvedAt.Equal(b.ProvedAt) {
					t.Errorf("side %d: IKE SA %d, proved at %v; want the same as before, %d at %v", i, now.IKESA, now.ProvedAt, b.IKESA, b.ProvedAt)
				}
			}
		})
	}

	// The policy that is usual: B is told where A is, and A is somewhere else.
	must(t, n.Install(ctx, nil))
	t.Run("an address that the policy does not name", func(t *testing.T) {
		must(t, lease(lab.WANDev, "198.18.1.99/24", wan))
		must(t, lab.WaitFor(ctx, "a new IKE SA from there", 30*time.Second, func() error {
			for i := range n.Sides {
				if now := connectionOf(ctx, t, n, i); now.IKESA == before[i].IKESA || !now.ProvedAt.After(before[i].ProvedAt) {
					return fmt.Errorf("side %d still has IKE SA %d, proved at %v", i, now.IKESA, now.ProvedAt)
				}
			}
			return nil
		}))
		answers("in the new tunnel")
		wantAudit(t, n.Sides[1], 0, "auth-refused", "198.18.1.99", "without new proofs")
	})

	r := stream.Stop(time.Second)
	t.Logf("%d of %d answered; the longest gaps, in datagrams 5 ms apart: %v", r.Received, r.Sent, gaps(r.Missing))

	// B opens the tunnel, and A's address changes.
	must(t, n.Install(ctx, anywhere))
	t.Run("opened by the other side", func(t *testing.T) {
		_, err := n.Sides[0].Wardgate(ctx, "down", "a-b")
		must(t, err, lease(lab.WANDev, "198.18.1.1/24", wan))
		_, err = n.Sides[1].Wardgate(ctx, "up", "a-b")
		must(t, err)
		stream, err = n.Hosts[0].Stream(n.Hosts[0].Addr, addrPort(n.Hosts[1], lab.LinePorts[0]), 5*time.Millisecond)
		must(t, err)
		defer stream.Stop(0)
		answers("through the tunnel that B has opened")
		b := connectionOf(ctx, t, n, 1)
		must(t, lease(lab.WANDev, "198.18.1.78/24", wan))
		must(t, lab.WaitFor(ctx, "B to follow", 30*time.Second, func() error {
			if now := connectionOf(ctx, t, n, 1); now.Gateway != "198.18.1.78:4500" || now.IKESA != b.IKESA {
				return fmt.Errorf("B sends to %s in IKE SA %d; want 198.18.1.78:4500 and %d", now.Gateway, now.IKESA, b.IKESA)
			}
			return nil
		}))
		answers("after the change")
		wantAudit(t, n.Sides[1], 0, "connection-moved", "198.18.1.78:4500")
	})
	must(t, n.Stop())

	for _, w := range wires {
		must(t, w.Stop())
		p, err := w.Wire(lab.Private...)
		must(t, err)
		if len(p.Clear) > 0 {
			t.Errorf("%d packets went out in the clear, such as %s", len(p.Clear), p.Clear[0])
		}
	}
}

func connectionOf(ctx context.Context, t *testing.T, n *lab.Line, side int) *control.Connection {
	t.Helper()
	c, err := n.Sides[side].Connection(ctx, "a-b")
	must(t, err)
	return c
}

// gaps are the lengths of the runs in a list of numbers, where longer than one.
func gaps(missing []int) []int {
	var out []int
	for i := 0; i < len(missing); {
		j := i + 1
		for j < len(missing) && missing[j] == missing[j-1]+1 {
			j++
		}
		if j-i > 1 {
			out = append(out, j-i)
		}
		i = j
	}
	return out
}
