package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"wardgate/internal/lab"
	"wardgate/policy"
)

// captureTOS are DSCP and ECN of what is sent in [TestOnTheWire]: default, EF, AF11 with both
// kinds of ECN-capable transport, CS1 with congestion experienced.
var captureTOS = []int{0, 0xb8, 0x28 | 1, 0x28 | 2, 0x20 | 3}

// Every packet that leaves is ESP that tshark opens and authenticates with the keys exported, has
// the outer header that the RFCs ask for, and holds a packet that was sent, as it was sent. For
// ESP in UDP and as protocol 50, over IPv4 and IPv6.
func TestOnTheWire(t *testing.T) {
	needTshark(t)
	t.Parallel()
	n := newLine(t, "e2e-wire")
	keys := withKeylog(t, n, 0)
	ctx := within(t, 100*time.Second)
	// So that the capture shows packets and not runs of them.
	must(t, n.Singly(ctx))
	for _, c := range []struct {
		name       string
		v6, native bool
	}{
		{"udp4", false, false},
		{"udp6", true, false},
		{"esp4", false, true},
		{"esp6", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			must(t, n.Start(ctx, c.v6, "", func(_ int, d *policy.Document) {
				d.Suites.ESP = []string{"aes256gcm16-noesn"} // tshark knows no extended sequence numbers
				if c.native {
					d.Peers[0].ESP = policy.ESPNative
				}
			}))
			defer func() { must(t, n.Stop()) }()
			wire, err := n.CaptureWhole(ctx, n.Middle, "wire-"+c.name, lab.MiddleDevs[0])
			must(t, err)
			lan, err := n.CaptureWhole(ctx, n.Hosts[0].Netns, "lan-"+c.name, "eth0")
			must(t, err)
			w := sendOfEverything(ctx, t, n)
			must(t, wire.StopWhole(ctx), lan.StopWhole(ctx))
			for _, f := range n.Sides {
				if c := counters(ctx, t, f); c["tun_read_packets"] <= c["tun_read_calls"] {
					t.Errorf("%s: %d packets in %d reads from the TUN: no super-packets were seen", f.Title, c["tun_read_packets"], c["tun_read_calls"])
				}
			}

			esp, others := wireshark(t, wire, keys[0])
			for _, p := range others {
				o, ok := outerOf(p)
				if ok && (private(o.src) || private(o.dst)) {
					t.Errorf("in the clear: %v", p)
				}
			}
			w.check(t, n, esp, c.native)
			w.checkLAN(t, n, lan)
		})
	}
}

func private(a netip.Addr) bool {
	return slices.ContainsFunc(lab.Private, func(p netip.Prefix) bool { return p.Contains(a) })
}

// captured is what was sent while a capture ran.
type captured struct {
	streams   []*tcpStream
	datagrams int // that were sent, and arrived
	pings     int // requests, each of which was answered
}

const pingFill = 0x5a

// sendOfEverything sends TCP in super-packets, UDP small, large and in bursts, and pings, with
// IPv4 and IPv6, in both directions.
func sendOfEverything(ctx context.Context, t *testing.T, n *lab.Line) *captured {
	t.Helper()
	w := &captured{}
	for i, v6 := range []bool{false, true} {
		for from := range 2 {
			to := 1 - from
			s := &tcpStream{
				from: n.Hosts[from], to: n.Hosts[to], src: n.Addr(from, v6), dst: netip.AddrPortFrom(n.Addr(to, v6), lab.LinePorts[0]),
				size: 1 << 20, seed: uint64(1 + 2*i + from), tos: 0x28 * i,
			}
			must(t, s.run(ctx))
			w.streams = append(w.streams, s)
			for j, tos := range captureTOS {
				d := datagrams{
					from: n.Hosts[from], to: n.Hosts[to], src: n.Addr(from, v6), dst: netip.AddrPortFrom(n.Addr(to, v6), lab.LinePorts[1]),
					count: 60, tos: tos, ahead: []int{1, 48}[j%2],
					size: func(i int) int { return []int{8, 50, 1300, 1301, 1302, 9, 500, 500, 500, 17}[i%10] },
				}
				got, err := d.run(ctx)
				must(t, err)
				if got != d.count {
					t.Errorf("%d of %d datagrams arrived", got, d.count)
				}
				w.datagrams += got
			}
			const pings = 5
			out, err := n.Hosts[from].Run(ctx, "ping", "-q", "-n", "-c", strconv.Itoa(pings), "-i", "0.01", "-s", "800", "-p", fmt.Sprintf("%02x", pingFill), "-Q", "0xb8", "-W", "5", n.Addr(to, v6).String())
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			w.pings += pings
		}
	}
	return w
}

func (w *captured) check(t *testing.T, n *lab.Line, esp []sealed, native bool) {
	t.Helper()
	isn := map[netip.AddrPort]uint32{} // initial sequence numbers, by who sends
	tos := map[uint8]bool{}
	parts := make([][]part, len(w.streams)) // of each stream, as they were seen
	datagrams, pings, errs := 0, 0, 0
	for _, e := range esp {
		p, err := e.check(n, native)
		if err == nil {
			err = w.known(p, isn, parts)
		}
		if err != nil {
			if errs++; errs < 10 {
				t.Errorf("frame %d: %v", e.frame, err)
			}
			continue
		}
		tos[e.outer.tos] = true
		switch {
		case p.proto == layers.IPProtocolUDP:
			datagrams++
		case p.isICMP():
			pings++
		}
	}
	if errs > 0 {
		t.Errorf("%d of %d ESP packets are not as they should be", errs, len(esp))
	}
	if datagrams != w.datagrams || pings != 2*w.pings {
		t.Errorf("%d datagrams and %d pings and answers on the wire; want %d and %d", datagrams, pings, w.datagrams, 2*w.pings)
	}
	for i, s := range w.streams {
		if n := covered(parts[i]); n != s.size {
			t.Errorf("stream %d: %d octets on the wire; want %d", i, n, s.size)
		}
	}
	for _, want := range captureTOS {
		if !tos[uint8(want)] {
			t.Errorf("no outer packet with DSCP and ECN %#02x", want)
		}
	}
	t.Logf("%d ESP packets, DSCP and ECN %v", len(esp), tos)
}

// part is what a segment carries of a stream: octets from one offset to before another.
type part struct{ from, to int64 }

// covered is how many octets from the beginning on are in the parts, in whatever order.
func covered(parts []part) (n int64) {
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.from, b.from) })
	for _, p := range parts {
		if p.from <= n {
			n = max(n, p.to)
		}
	}
	return n
}

// check looks at the outer header and parses what is inside.
func (e *sealed) check(n *lab.Line, native bool) (*inner, error) {
	if e.inner == nil {
		return nil, fmt.Errorf("cannot be opened: %s", e.why)
	}
	p, err := parseInner(e.inner)
	if err != nil {
		return nil, err
	}
	o := &e.outer
	proto := layers.IPProtocolUDP
	if native {
		proto = layers.IPProtocolESP
	}
	ttl := uint8(64)
	if o.src == n.Sides[1].WAN {
		ttl-- // it has crossed the middle
	}
	switch {
	case o.proto != proto:
		return nil, fmt.Errorf("it is %v; want %v", o.proto, proto)
	case o.tos != p.tos:
		return nil, fmt.Errorf("outer DSCP and ECN are %#02x, inner ones %#02x; want the same (RFC 4301, section 5.1.2; RFC 6040, section 4.1)", o.tos, p.tos)
	case !o.df:
		return nil, fmt.Errorf("outer don't-fragment is not set")
	case o.frag:
		return nil, fmt.Errorf("it is a fragment")
	case o.ttl != ttl:
		return nil, fmt.Errorf("outer TTL is %d; want %d", o.ttl, ttl)
	case p.ttl != 63:
		return nil, fmt.Errorf("inner TTL is %d; want 63: one hop", p.ttl)
	}
	return p, nil
}

// known tells whether an inner packet is one that was sent.
func (w *captured) known(p *inner, isn map[netip.AddrPort]uint32, parts [][]part) error {
	switch {
	case p.proto == layers.IPProtocolTCP:
		who := netip.AddrPortFrom(p.src, p.srcPort)
		if p.syn {
			isn[who] = p.seq
			return nil
		}
		if len(p.payload) == 0 {
			return nil
		}
		i := slices.IndexFunc(w.streams, func(s *tcpStream) bool { return s.src == p.src && s.dst == netip.AddrPortFrom(p.dst, p.dstPort) })
		first, ok := isn[who]
		if i < 0 || !ok {
			return fmt.Errorf("TCP from %v to %v:%d belongs to no stream", who, p.dst, p.dstPort)
		}
		off := int64(p.seq - first - 1)
		if !isPart(p.payload, w.streams[i].seed, off) {
			return fmt.Errorf("TCP from %v: %d octets from %d on are not those of the stream", who, len(p.payload), off)
		}
		parts[i] = append(parts[i], part{off, off + int64(len(p.payload))})
		return nil
	case p.proto == layers.IPProtocolUDP:
		if !slices.Contains(captureTOS, int(p.tos)) {
			return fmt.Errorf("a datagram with DSCP and ECN %#02x; want one of %#02x", p.tos, captureTOS)
		}
		if len(p.payload) < 8 || !bytes.Equal(p.payload, datagram(int(binary.BigEndian.Uint64(p.payload)), len(p.payload))) {
			return fmt.Errorf("a datagram that was not sent: %x", p.payload)
		}
		return nil
	case p.isICMP():
		const clock = 16 // ping's time comes first
		echo := []uint8{0, 8}
		if p.proto == layers.IPProtocolICMPv6 {
			echo = []uint8{128, 129}
		}
		if slices.Contains(echo, p.icmpType) && len(p.payload) == 800 && bytes.Count(p.payload[clock:], []byte{pingFill}) == 800-clock {
			return nil
		}
		return fmt.Errorf("ICMP of type %d that was not sent: %x", p.icmpType, p.payload)
	}
	return fmt.Errorf("protocol %v was not sent", p.proto)
}

// checkLAN looks at what arrived at host A: forwarded twice, by the two routers, and in no other
// way by the tunnel.
func (w *captured) checkLAN(t *testing.T, n *lab.Line, lan *lab.Capture) {
	t.Helper()
	packets, err := lan.Packets()
	must(t, err)
	arrived := 0
	for i, p := range packets {
		o, ok := outerOf(p)
		if !ok || o.src != n.Addr(1, o.src.Is6()) {
			continue
		}
		if arrived++; o.ttl != 62 {
			t.Errorf("at host A, packet %d: TTL %d; want 62, for two routers: %v", i, o.ttl, p)
			return
		}
	}
	if arrived == 0 {
		t.Error("host A's capture holds nothing from host B")
	}
}
