package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"wardgate/internal/lab"
	"wardgate/policy"
)

// ESP travels as protocol 50 where both policies want it and no NAT is on the way, and in UDP
// otherwise, whoever begins.
func TestNativeESP(t *testing.T) {
	needRoot(t)
	t.Parallel()
	n := newLine(t, "e2e-native")
	ctx := within(t, 80*time.Second)
	must(t, n.Singly(ctx))
	for _, c := range []struct {
		name   string
		mode   [2]string
		begins int
		nat    bool
		want   layers.IPProtocol
	}{
		{"both native", [2]string{policy.ESPNative, policy.ESPNative}, 1, false, layers.IPProtocolESP},
		{"A native, A begins", [2]string{policy.ESPNative, policy.ESPUDP}, 0, false, layers.IPProtocolUDP},
		{"A native, B begins", [2]string{policy.ESPNative, policy.ESPUDP}, 1, false, layers.IPProtocolUDP},
		{"both native, a NAT between", [2]string{policy.ESPNative, policy.ESPNative}, 0, true, layers.IPProtocolUDP},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			if c.nat {
				must(t, n.Masquerade())
			}
			must(t, n.Start(ctx, false, "", func(side int, d *policy.Document) { d.Peers[0].ESP = c.mode[side] }))
			defer func() { must(t, n.Stop()) }()
			wire, err := n.CaptureWhole(ctx, n.Middle, "mode-"+strings.ReplaceAll(c.name, " ", "-"), lab.MiddleDevs[1])
			must(t, err)
			if out, err := n.Hosts[c.begins].Run(ctx, "ping", "-n", "-c", "2", "-i", "0.02", "-W", "5", n.Addr(1-c.begins, false).String()); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for from := range 2 {
				s := &tcpStream{from: n.Hosts[from], to: n.Hosts[1-from], src: n.Addr(from, false), dst: netip.AddrPortFrom(n.Addr(1-from, false), lab.LinePorts[0]), size: 1 << 20}
				must(t, s.run(ctx))
			}
			for _, f := range n.Sides {
				conn, err := f.Connection(ctx, "a-b")
				must(t, err)
				if conn.Encap != (c.want == layers.IPProtocolUDP) {
					t.Errorf("%s: status says ESP in UDP %v; want %v", f.Title, conn.Encap, !conn.Encap)
				}
			}
			must(t, wire.StopWhole(ctx))
			packets, err := wire.Packets()
			must(t, err)
			seen := map[layers.IPProtocol]int{}
			from := map[netip.Addr]bool{}
			for _, p := range packets {
				o, ok := outerOf(p)
				if !ok || private(o.src) || private(o.dst) {
					if ok {
						t.Errorf("in the clear: %v", p)
					}
					continue
				}
				if isESP(p, o) {
					seen[o.proto]++
					from[o.src] = true
				}
			}
			if len(seen) != 1 || seen[c.want] < 100 {
				t.Errorf("ESP on the wire by protocol: %v; want only %v", seen, c.want)
			}
			if from[n.Sides[0].WAN] == c.nat {
				t.Errorf("ESP comes from %v; want A's own address: %v", from, !c.nat)
			}
		})
	}
}
