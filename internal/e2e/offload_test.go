package e2e

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"wardgate/internal/lab"
)

// everyOffload are ethtool's names for what a device may do in the place of the processor.
var everyOffload = []string{"tx-udp-segmentation", "gso", "tso", "gro", "rx", "tx"}

// device is one that offloads are switched on or off on.
type device struct {
	n   *lab.Netns
	dev string
}

func offloads(ctx context.Context, t *testing.T, on bool, devices ...device) {
	t.Helper()
	for _, d := range devices {
		must(t, d.n.Offload(ctx, d.dev, on, everyOffload...))
	}
}

// Whatever the devices of either side can and cannot do, everything arrives, whole, and every
// packet is accounted for; what the kernel coalesces where it may shows in the counters.
func TestOffloadsOff(t *testing.T) {
	needRoot(t)
	t.Parallel()
	n := newLine(t, "e2e-offload")
	ctx := within(t, 80*time.Second)
	for _, f := range n.Sides {
		f.LogLevel = "info"
	}
	var wan, lan [2][]device
	for i, f := range n.Sides {
		wan[i] = []device{{f.Router, lab.WANDev}, {n.Middle, lab.MiddleDevs[i]}} // both ends of the cable
		lan[i] = []device{{n.Hosts[i].Netns, "eth0"}, {f.Router, f.Zones[0].Dev}}
	}
	must(t, n.Start(ctx, false, "", nil))
	for _, c := range []struct {
		name string
		off  []device
		gro  [2]bool // the router's kernel coalesces what comes from outside
	}{
		{"all on", nil, [2]bool{true, true}},
		{"A's off", wan[0], [2]bool{false, true}},
		{"B's off", wan[1], [2]bool{true, false}},
		{"all off, the hosts' too", slices.Concat(wan[0], wan[1], lan[0], lan[1]), [2]bool{}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			offloads(ctx, t, true, slices.Concat(wan[0], wan[1], lan[0], lan[1])...)
			for _, dev := range lab.MiddleDevs {
				// a veth coalesces what comes from a device that segments no TCP
				must(t, n.Middle.Offload(ctx, dev, false, "tso"))
			}
			offloads(ctx, t, false, c.off...)
			ping(ctx, t, n, false) // what was coalesced before has been counted
			before := [2]map[string]uint64{counters(ctx, t, n.Sides[0]), counters(ctx, t, n.Sides[1])}
			for from := range 2 {
				to := 1 - from
				var streams []*tcpStream
				for i := range 4 {
					streams = append(streams, &tcpStream{
						from: n.Hosts[from], to: n.Hosts[to], src: n.Addr(from, i == 3), dst: netip.AddrPortFrom(n.Addr(to, i == 3), lab.LinePorts[i]),
						size: 8 << 20, seed: uint64(i),
					})
				}
				must(t, together(ctx, streams))
				d := datagrams{
					from: n.Hosts[from], to: n.Hosts[to], src: n.Addr(from, false), dst: netip.AddrPortFrom(n.Addr(to, false), lab.LinePorts[4]),
					count: 2000, ahead: 64, size: func(i int) int { return []int{200, 200, 200, 1400, 1400, 8}[i/5%6] },
				}
				got, err := d.run(ctx)
				must(t, err)
				if got != d.count {
					t.Errorf("%d of %d datagrams arrived from %s", got, d.count, n.Sides[from].Title)
				}
			}
			accounted(ctx, t, n, false)
			for i, f := range n.Sides {
				c1 := counters(ctx, t, f)
				received, sent := c1["socket_in_runs"]-before[i]["socket_in_runs"], c1["socket_out_runs"]-before[i]["socket_out_runs"]
				t.Logf("%s: %d runs of datagrams received, %d sent", f.Title, received, sent)
				if (received > 0) != c.gro[i] {
					t.Errorf("%s received %d runs of datagrams; want some: %v", f.Title, received, c.gro[i])
				}
				// The kernel does what the device does not, or the daemon does and counts it.
				if sent == 0 && c1["socket_out_fallbacks"] == before[i]["socket_out_fallbacks"] {
					t.Errorf("%s sent no run of datagrams at once, and counted no fallback", f.Title)
				}
			}
		})
	}
}

// Against strongSwan at full speed, with the offloads of either side's devices on and off: four
// streams each way, and UDP.
func TestStrongSwanAtFullSpeed(t *testing.T) {
	needStrongSwan(t)
	ports := []uint16{11112, 11113, 11114, 11115}
	h, s := meet(t, "e2e-swan-speed", swanCase{ike: "aes256gcm16-prfsha384-x25519", esp: "aes128gcm16"}, nil, func(h *lab.Hospital) {
		h.AB.Flows[0].Ports = nil
		for _, p := range ports {
			h.AB.Flows[0].Ports = append(h.AB.Flows[0].Ports, strconv.Itoa(int(p)))
		}
	})
	ctx := within(t, 80*time.Second)
	if out, err := s.Ctl(ctx, "--initiate", "--child", "net", "--timeout", "10"); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, s.Log())
	}
	a, b := device{h.A.Router, lab.WANDev}, device{h.B.Router, lab.WANDev}
	for _, c := range []struct {
		name string
		off  []device
	}{{"all on", nil}, {"wardgated's off", []device{a}}, {"strongSwan's off", []device{b}}} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			offloads(ctx, t, true, a, b)
			offloads(ctx, t, false, c.off...)
			for _, back := range []bool{false, true} {
				var streams []*tcpStream
				for i, p := range ports {
					streams = append(streams, &tcpStream{from: h.Modality, to: h.Archive, src: h.Modality.Addr, dst: addrPort(h.Archive, p), size: 6 << 20, seed: uint64(i), back: back})
				}
				must(t, together(ctx, streams))
			}
			d := datagrams{from: h.Modality, to: h.Archive, src: h.Modality.Addr, dst: addrPort(h.Archive, lab.EchoPort), count: 1000, ahead: 16, size: func(i int) int { return 8 + i }}
			got, err := d.run(ctx)
			must(t, err)
			if got != d.count {
				t.Errorf("%d of %d datagrams arrived", got, d.count)
			}
			burst(t, h.Modality, h.Archive, 200, 100*time.Microsecond) // and back
		})
	}
	for name, v := range counters(ctx, t, h.A) {
		if strings.HasPrefix(name, "drop_") && v > 0 && name != "drop_not_unicast" && name != "drop_tun_ring_full" {
			t.Errorf("wardgated: %s is %d; want 0", name, v)
		}
	}
	t.Logf("wardgated: %s", notZero(counters(ctx, t, h.A)))
}
