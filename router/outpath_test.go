package router

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"wardgate/esp"
	"wardgate/ike"
	"wardgate/policy"
	"wardgate/router/pathmtu"
)

// segments is a TCP stream as a sender's segmentation makes it: n segments of size octets of
// payload and a last one.
func segments(t testing.TB, src, dst string, sport, dport uint16, n, size, last int) [][]byte {
	t.Helper()
	var out [][]byte
	seq := uint32(1000)
	for i := range n + 1 {
		ip := ip4(src, dst, layers.IPProtocolTCP)
		ip.Id, ip.Flags = uint16(i), layers.IPv4DontFragment
		u := &layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), Seq: seq, ACK: true, Window: 500}
		payload := bytes.Repeat([]byte{byte(i)}, size)
		if i == n {
			payload, u.PSH = payload[:last], true
		}
		if err := u.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		out = append(out, serialize(t, ip, u, gopacket.Payload(payload)))
		seq += uint32(len(payload))
	}
	return out
}

// Super-packets and small packets of several connections' flows come out at the other side as
// they went in, each flow in order, in few messages.
func TestBursts(t *testing.T) {
	a, b := pairOfSides(t)
	join(t, a, b, 0)
	stream := segments(t, "10.2.1.9", "10.1.2.10", 4000, 104, 40, 1300, 77)
	if err := b.tun.InjectSuper(0, stream...); err != nil {
		t.Fatal(err)
	}
	want := stream
	for i := range 60 { // small ones of two sizes
		p := udp4(t, "10.2.1.9", "10.1.2.10", 4001, 53, 20+i%2)
		want = append(want, p)
		if err := b.tun.Inject(0, p); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if err := b.out.round(false); err != nil {
			t.Fatal(err)
		}
	}
	for i := range want {
		if got := a.arrived(); !bytes.Equal(got, want[i]) {
			t.Fatalf("packet %d: %x, want %x; dropped %v", i, got, want[i], a.dropped())
		}
	}
	c := b.group.Sockets()[0].Counters()
	if c.OutDatagrams != uint64(len(want)) || c.OutMessages > 62 || c.OutCalls > 8 {
		t.Errorf("%d datagrams in %d messages in %d calls", c.OutDatagrams, c.OutMessages, c.OutCalls)
	}
	if n := len(b.dropped()) + len(a.dropped()); n != 0 {
		t.Errorf("dropped: %v, %v", a.dropped(), b.dropped())
	}
}

// A super-packet that nobody may send is refused once, and counted packet by packet.
func TestBurstRefused(t *testing.T) {
	a, b := pairOfSides(t)
	join(t, a, b, 0)
	if err := b.tun.InjectSuper(0, segments(t, "10.2.1.9", "10.1.2.10", 4000, 22, 9, 1000, 10)...); err != nil {
		t.Fatal(err)
	}
	if err := b.out.round(false); err != nil {
		t.Fatal(err)
	}
	if got := b.dropped()["no-rule"]; got != 10 || len(b.refused) != 1 {
		t.Errorf("%d packets counted, %d refusals recorded", got, len(b.refused))
	}
	if e := b.delivered(); e == nil || e[20] != 3 || e[21] != 13 {
		t.Error("the sender is not told")
	}
	b.silent(a)
}

// A super-packet waits for its connection packet by packet, and goes first.
func TestBurstHeld(t *testing.T) {
	a, b := pairOfSides(t)
	stream := segments(t, "10.2.1.9", "10.1.2.10", 4000, 104, 20, 1300, 5)
	if err := b.tun.InjectSuper(0, stream...); err != nil {
		t.Fatal(err)
	}
	if err := b.out.round(false); err != nil {
		t.Fatal(err)
	}
	if len(b.woken) != 1 {
		t.Fatalf("woken %v", b.woken)
	}
	_, cb := join(t, a, b, 0)
	cb.conn.cur.Store(nil)
	cb.conn.activate(cb, b.out.sendHeld)
	for i := range stream {
		if got := a.arrived(); !bytes.Equal(got, stream[i]) {
			t.Fatalf("packet %d: %x", i, got)
		}
	}
}

// The SA is replaced between the worker's look and the seal: the successor takes the packets.
func TestSealedByTheSuccessor(t *testing.T) {
	a, b := pairOfSides(t)
	_, cb := join(t, a, b, 0)
	old := &childSA{id: 77, conn: cb.conn, localTS: cb.localTS, remoteTS: cb.remoteTS, spacing: cb.spacing, in: cb.in}
	var err error
	if old.out, err = esp.NewOutbound(esp.Params{SPI: 0x7777, Encr: esp.EncrAESGCM16, KeyBits: 128, Key: bytes.Repeat([]byte{9}, 20)}); err != nil {
		t.Fatal(err)
	}
	old.path.Store(cb.path.Load())
	old.out.Close()
	cb.conn.own[0].Store(old) // what the worker sees …
	p := udp4(t, "10.2.1.9", "10.1.2.10", 4000, 53, 30)
	if err := b.tun.Inject(0, p); err != nil {
		t.Fatal(err)
	}
	if ok, err := b.out.q.ReadBurst(&b.out.burst, b.out.arena, b.out.spacing, false); !ok || err != nil {
		t.Fatal(ok, err)
	}
	b.out.take(b.rules.Load(), b.now())
	cb.conn.own[0].Store(nil) // … until now
	b.out.flush(b.now())
	if got := a.arrived(); !bytes.Equal(got, p) {
		t.Errorf("got %x, dropped %v", got, b.dropped())
	}
}

// Each queue may have a CHILD SA of its own; when it goes, the one for all takes over.
func TestOwnSAOfAQueue(t *testing.T) {
	c := newConnection("a-b", heldLimits{}, 3, time.Time{})
	first, second, renewed := &childSA{id: 1, conn: c}, &childSA{id: 2, conn: c, queue: 1}, &childSA{id: 3, conn: c, queue: 1}
	add := func(x *childSA) {
		if c.children == nil {
			c.children = map[ike.ChildID]*childSA{}
		}
		c.children[x.id] = x
		c.activate(x, nil)
	}
	gone := func(x *childSA) {
		c.mu.Lock()
		delete(c.children, x.id)
		c.retire(x)
		c.mu.Unlock()
	}
	want := func(when string, q0, q1 *childSA) {
		t.Helper()
		if c.sendOn(0) != q0 || c.sendOn(1) != q1 {
			t.Errorf("%s: queue 0 on %v, queue 1 on %v", when, c.sendOn(0), c.sendOn(1))
		}
	}
	want("at first", nil, nil)
	add(first)
	want("first", first, first)
	add(second)
	want("second", first, second)
	add(renewed)
	want("renewed", first, renewed)
	gone(second)
	want("the old one went", first, renewed)
	gone(first)
	want("the fallback went", renewed, renewed)
	add(first)
	gone(renewed)
	want("only the fallback is left", first, first)
	c.stopSending()
	want("closing", nil, nil)
}

// Packets that the path does not take: the sender is told, or they are fragmented before they are
// sealed.
func TestPathTakesLess(t *testing.T) {
	a, b := pairOfSides(t)
	_, cb := join(t, a, b, 0)
	path := *cb.path.Load()
	path.mtu = pathmtu.New(pathmtu.Config{Link: 1000})
	cb.path.Store(&path)
	inner := path.innerMTU(cb)
	if want := (1000-28-32)&^3 - 2; inner != want {
		t.Fatalf("inner MTU %d, want %d", inner, want)
	}

	// with don't-fragment
	for _, p := range [][][]byte{
		segments(t, "10.2.1.9", "10.1.2.10", 4000, 104, 5, 1300, 7),
	} {
		if err := b.tun.InjectSuper(0, p...); err != nil {
			t.Fatal(err)
		}
		if err := b.out.round(false); err != nil {
			t.Fatal(err)
		}
		e := b.delivered()
		if e == nil || e[20] != 3 || e[21] != 4 || int(binary.BigEndian.Uint16(e[26:])) != inner {
			t.Fatalf("the sender is told %x", e)
		}
		if e[9] != protoICMP || !bytes.Equal(e[12:16], []byte{10, 1, 2, 10}) || !bytes.Equal(e[16:20], []byte{10, 2, 1, 9}) {
			t.Errorf("by the wrong address: %x", e[:20])
		}
	}
	if got := b.dropped()["too-big"]; got != 6 {
		t.Errorf("%d packets counted", got)
	}
	b.silent(a)

	// without: fragments, none longer than the path takes, that make up the packet
	whole := udp4(t, "10.2.1.9", "10.1.2.10", 4000, 53, 1372)
	b.lan(whole)
	got := append([]byte(nil), whole[:20]...)
	for len(got) < len(whole) {
		f := a.arrived()
		if f == nil {
			t.Fatalf("%d of %d octets came; dropped %v %v", len(got), len(whole), a.dropped(), b.dropped())
		}
		if len(f) > inner || f[6]&0x40 != 0 {
			t.Errorf("fragment of %d octets, flags %02x", len(f), f[6])
		}
		if off := int(binary.BigEndian.Uint16(f[6:])&0x1fff) * 8; off != len(got)-20 {
			t.Errorf("offset %d, want %d", off, len(got)-20)
		}
		got = append(got, f[20:]...)
	}
	if !bytes.Equal(got[20:], whole[20:]) {
		t.Error("the fragments do not make up the packet")
	}

	// TCP is asked for segments that fit, in both directions
	for _, s := range []struct {
		name     string
		src, dst string
		from, to *side
	}{{"out", "10.2.1.9", "10.1.2.10", b, a}} {
		ip := ip4(s.src, s.dst, layers.IPProtocolTCP)
		u := &layers.TCP{SrcPort: 4005, DstPort: 104, SYN: true, Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}}}
		if err := u.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		s.from.lan(serialize(t, ip, u))
		syn := s.to.arrived()
		if got := int(binary.BigEndian.Uint16(syn[42:])); got != inner-40 {
			t.Errorf("%s: MSS %d, want %d", s.name, got, inner-40)
		}
	}
}

// Several connections share an overloaded worker: the heavy one is cut back, the light one keeps
// its packets; with room again nobody is cut back.
func TestFairness(t *testing.T) {
	const (
		ring     = 500 // packets that wait
		step     = 100 * time.Microsecond
		capacity = 20 // packets in a step that a worker can seal and send
		cheap    = 5  // times as many it can read and drop
		heavy    = 60 // offered in a step
		light    = 1
		total    = 40_000 // steps
		settle   = 10_000 // of these
	)
	run := func(f *fairness, fair bool) (lightLost, heavySent, dropped int) {
		var a, b trafficShard
		queue := make([]*trafficShard, 0, ring)
		lost, seen := 0, 0
		offered := 0
		for i := range total {
			now := int64(i) * int64(step)
			for k := range heavy + light { // the packets of both come mixed
				c := &a
				if k == i%heavy {
					c = &b
					if i >= settle {
						offered++
					}
				}
				if len(queue) == ring {
					lost++
					if c == &b && i >= settle {
						lightLost++
					}
					continue
				}
				queue = append(queue, c)
			}
			if fair && i%1000 == 0 {
				seen = lost
			}
			// the worker's part
			f.begin(now, uint64(seen))
			for budget := capacity * cheap; budget >= cheap && len(queue) > 0; {
				c := queue[0]
				queue = queue[1:]
				if f.admit(c, 1) {
					budget -= cheap
					if c == &a && i >= settle {
						heavySent++
					}
					continue
				}
				budget--
				if i >= settle {
					dropped++
					if c == &b {
						lightLost++
					}
				}
			}
		}
		return lightLost * 100 / offered, heavySent, dropped
	}
	without, _, _ := run(&fairness{}, false)
	with, heavySent, dropped := run(&fairness{}, true)
	t.Logf("the light connection loses %d %% without and %d %% with fairness; the heavy one sends %d, %d are dropped", without, with, heavySent, dropped)
	if without < 50 {
		t.Errorf("the model is no overload: %d %% lost", without)
	}
	if with > without/3 {
		t.Errorf("the light connection loses %d %%, without fairness %d %%", with, without)
	}
	if heavySent < (total-settle)*capacity/4 {
		t.Errorf("the heavy connection sends %d packets only", heavySent)
	}

	// One connection alone, and a machine that can follow: nothing is dropped.
	var f fairness
	var alone trafficShard
	for i := range 10_000 {
		f.begin(int64(i)*int64(step), uint64(i))
		if !f.admit(&alone, capacity) {
			t.Fatal("a connection that is alone is cut back")
		}
	}
}

// The ring's drops are an overload for a while, and those from before our start are none.
func TestRingWatch(t *testing.T) {
	name := filepath.Join(t.TempDir(), "tx_dropped")
	write := func(s string) {
		if err := os.WriteFile(name, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("17\n")
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var dropped atomic.Uint64
	w := ringWatch{f: file, dropped: &dropped}
	for _, x := range []struct {
		text  string
		drops uint64
	}{{"17\n", 0}, {"17\n", 0}, {"20\n", 3}, {"20\n", 3}, {"120\n", 103}} {
		write(x.text)
		if err := w.look(); err != nil {
			t.Fatal(err)
		}
		if dropped.Load() != x.drops {
			t.Errorf("%q: %d dropped, want %d", x.text, dropped.Load(), x.drops)
		}
	}
	write("no number\n")
	if w.look() == nil {
		t.Error("no error")
	}
}

// An IPv6 packet of 1280 octets has to arrive however small the path is (RFC 8200, section 5).
func TestSmallPathCarriesIPv6(t *testing.T) {
	local, remote, host, peer := "2001:db8:1:2::/64", "2001:db8:2:1::/64", "2001:db8:1:2::10", "2001:db8:2:1::9"
	rules := func(direction string) []policy.FlowRule {
		return []policy.FlowRule{{Name: "dns", From: []string{remote}, To: []string{host}, Protocol: "udp", Ports: []string{"53"}, Direction: direction}}
	}
	a := newSide(t, policyFor(t, local, remote, rules(policy.DirectionIn)))
	b := newSide(t, policyFor(t, remote, local, rules(policy.DirectionOut)))
	_, cb := join(t, a, b, 0)
	path := *cb.path.Load()
	path.mtu = pathmtu.New(pathmtu.Config{Link: 1000})
	cb.path.Store(&path)
	packet := func(n int) []byte {
		ip, u := ip6(peer, host, layers.IPProtocolUDP), &layers.UDP{SrcPort: 4000, DstPort: 53}
		if err := u.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		return serialize(t, ip, u, gopacket.Payload(make([]byte, n-48)))
	}
	for _, p := range [][]byte{packet(1280), packet(200), packet(1280)} {
		b.lan(p)
		if got := a.arrived(); !bytes.Equal(got, p) {
			t.Fatalf("%d octets: got %d; dropped %v %v", len(p), len(got), a.dropped(), b.dropped())
		}
	}
	b.lan(packet(1300))
	if e := b.delivered(); e == nil || e[40] != 2 || binary.BigEndian.Uint32(e[44:]) != 1280 {
		t.Errorf("a longer one: the sender is told %x", e)
	}
}

// Forged path errors cost a bounded amount of work, and a path in use is looked after even if it
// was forgotten in the moment in which its SA was made.
func TestPathsAreBounded(t *testing.T) {
	var p paths
	now := time.Unix(1000, 0)
	n := 0
	for range 1000 {
		if p.allow(now) {
			n++
		}
	}
	if n != maxPathErrors || !p.allow(now.Add(time.Second)) {
		t.Errorf("%d in a second, want %d, and more in the next", n, maxPathErrors)
	}
	at := ends{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")}
	x := p.between(at, 0)
	p.tend(nil, 0, now) // its SA is not there yet
	p.tend(map[ends]*pathmtu.Path{at: x}, 0, now)
	if p.between(at, 0) != x {
		t.Error("the path of an SA was forgotten")
	}
	if p.between(ends{at.remote, at.remote}, 0) == x {
		t.Error("what is known of a path is taken for one from another address of ours")
	}
	p.tend(nil, 0, now)
	if p.between(at, 0) == x {
		t.Error("a path without an SA is kept")
	}
}
