package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func both(t *testing.T, f func(t *testing.T, v6 bool)) {
	for _, v6 := range []bool{false, true} {
		t.Run(version(v6), func(t *testing.T) { f(t, v6) })
	}
}

// roundTrip sends the messages from x to s and compares every octet. It returns how many datagrams
// came in runs.
func roundTrip(t testing.TB, x *Sender, s *Socket, b *Batch, msgs []Message) (inRuns int) {
	t.Helper()
	var want []string
	var tos []uint8
	for i := range msgs {
		for _, p := range cut(&msgs[i]) {
			want = append(want, p)
			tos = append(tos, msgs[i].TOS)
		}
	}
	mustSend(t, x, msgs...)
	for i, g := range receive(t, s, b, len(want)) {
		if g.payload != want[i] {
			t.Fatalf("datagram %d of %d: %d octets %.16x…, want %d octets %.16x…", i, len(want), len(g.payload), g.payload, len(want[i]), want[i])
		}
		if g.tos != tos[i] {
			t.Fatalf("datagram %d: traffic class %#x, want %#x", i, g.tos, tos[i])
		}
		if g.run {
			inRuns++
		}
	}
	return inRuns
}

// Any mix of messages comes out as it went in, by the loopback, which hands runs on as they are.
func TestRoundTrip(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		s := newSpace(t)
		lo := netip.MustParseAddr("127.0.0.1")
		if v6 {
			lo = netip.IPv6Loopback()
		}
		for _, steer := range []bool{true, false} {
			g := group(t, s, Options{Addr: lo, Steer: steer}, false)
			if got, want := g.Offloads(), (Offloads{GRO: steer, GSO: true}); got != want {
				t.Fatalf("offloads %+v, want %+v", got, want)
			}
			x, b := g.Sockets()[0].NewSender(), NewBatch(32, 40)
			to := dest(t, lo, g.Port(), lo)
			longest := maxPayload4
			if v6 {
				longest = 65536 - 48 // the loopback's MTU
			}
			inRuns := 0
			rapid.Check(t, func(rt *rapid.T) {
				sizes := rapid.OneOf(rapid.IntRange(0, 3000), rapid.IntRange(0, longest), rapid.SampledFrom([]int{0, 1, 4, 64, 1400, longest}))
				var msgs []Message
				for total := 0; len(msgs) == 0 || total < 300_000 && rapid.IntRange(0, 9).Draw(rt, "more") > 0; {
					m := Message{Dest: to, TOS: rapid.SampledFrom([]uint8{0, 0, 1, 2, 3, 0xb8}).Draw(rt, "TOS")}
					n := sizes.Draw(rt, "octets")
					if rapid.Bool().Draw(rt, "run") {
						m.Segment = rapid.OneOf(rapid.IntRange(max(n/200, 1), 2000), rapid.IntRange(max(n/200, 1), 65000), rapid.Just(max(n/64, 1))).Draw(rt, "segment")
						n = rapid.OneOf(rapid.Just(n), rapid.IntRange(0, 200_000)).Draw(rt, "octets of the run")
						n = min(n, 200*m.Segment)
					}
					m.Buf = fill(n, 7, uint32(len(msgs)))
					total += n
					msgs = append(msgs, m)
				}
				inRuns += roundTrip(t, x, g.Sockets()[0], b, msgs)
			})
			if (inRuns > 0) != steer {
				t.Errorf("%d datagrams came in runs; UDP_GRO %t", inRuns, steer)
			}
			c := g.Sockets()[0].Counters()
			t.Logf("%+v", c)
			if c.InDatagrams != c.OutDatagrams || c.InBytes != c.OutBytes || c.InDropped != 0 || c.Fallbacks != 0 {
				t.Errorf("counters: %+v", c)
			}
		}
	})
}

// Between two hosts with every combination of offloads.
func TestOffloadsOfDevices(t *testing.T) {
	for _, c := range []struct {
		name       string
		sendOff    []string
		receiveGRO bool
		wantRuns   bool
	}{
		{"all", nil, true, true},
		{"no GRO", nil, false, true}, // the cable hands runs on
		{"no segmentation", []string{"tx-udp-segmentation"}, false, false},
		// Linux' veth leaves GRO out where the sender could have sent super-packets of TCP.
		{"no segmentation, GRO", []string{"tx-udp-segmentation", "tx-tcp-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation", "tx-tcp6-segmentation"}, true, true},
		{"no checksums", []string{"tx-checksum-ip-generic"}, false, false},
		{"no checksums, GRO", []string{"tx-checksum-ip-generic"}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pair(t)
			for _, f := range c.sendOff {
				a.feature("eth0", f, false)
			}
			b.feature("eth0", "rx-gro", c.receiveGRO)
			both(t, func(t *testing.T, v6 bool) {
				ga := group(t, a, Options{Addr: host(1, v6), Steer: true, Log: func(msg string, kv ...any) { t.Log(msg, kv) }}, false)
				gb := group(t, b, Options{Addr: host(2, v6), Steer: true}, false)
				to := dest(t, host(2, v6), gb.Port(), host(1, v6))
				x := ga.Sockets()[0].NewSender()
				inRuns := 0
				for round := range 20 {
					var msgs []Message
					for i, m := range []struct{ n, segment int }{{100, 0}, {48 * 1400, 1400}, {1400*20 + 5, 1400}, {64 * 100, 100}, {300 * 90, 90}, {1452, 0}, {1, 0}, {3000, 1452}} {
						msgs = append(msgs, Message{Buf: fill(m.n, 9, uint32(round*100+i)), Segment: m.segment, Dest: to, TOS: uint8(round)})
					}
					inRuns += roundTrip(t, x, gb.Sockets()[0], NewBatch(64, 0), msgs)
				}
				if c.wantRuns != (inRuns > 0) {
					t.Errorf("%d datagrams came in runs, want some: %t", inRuns, c.wantRuns)
				}
				t.Logf("out %+v", ga.Sockets()[0].Counters())
			})
		})
	}
}

// Datagrams come to the queue of their SPI; IKE and keepalives to the first.
func TestSteering(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		a, b := pair(t)
		for _, n := range []int{2, 3, 4} {
			ga := group(t, a, Options{Addr: host(1, v6)}, false)
			gb := group(t, b, Options{Addr: host(2, v6), Queues: n, Steer: true}, false)
			if !gb.Offloads().Steer || len(gb.Sockets()) != n {
				t.Fatalf("%d sockets, %+v", len(gb.Sockets()), gb.Offloads())
			}
			to := dest(t, host(2, v6), gb.Port(), host(1, v6))
			var msgs []Message
			want := make([][]string, n)
			for i := range 200 {
				spi := uint32(i) * 2654435761
				if i%10 == 0 {
					spi = 0
				}
				m := Message{Buf: fill(50+i*7, spi, uint32(i)), Dest: to}
				switch {
				case i%50 == 49:
					m.Buf = []byte{0xff} // keepalive
					spi = 0
				case i%3 == 0:
					m.Segment = 40
					for o := 40; o+4 <= len(m.Buf); o += 40 { // every datagram of the run
						binary.BigEndian.PutUint32(m.Buf[o:], spi)
					}
					m.Buf = m.Buf[:len(m.Buf)/40*40]
				}
				want[int(spi)%n] = append(want[int(spi)%n], cut(&m)...)
				msgs = append(msgs, m)
			}
			mustSend(t, ga.Sockets()[0].NewSender(), msgs...)
			for q, s := range gb.Sockets() {
				if s.Queue() != q || s.Group() != gb {
					t.Errorf("socket %d says that it is %d", q, s.Queue())
				}
				for i, got := range receive(t, s, NewBatch(16, 8), len(want[q])) {
					if got.payload != want[q][i] {
						t.Fatalf("queue %d of %d, datagram %d: %.8x, want %.8x", q, n, i, got.payload, want[q][i])
					}
				}
			}
		}
	})
}

// A run goes where its first datagram belongs, with all that is in it.
func TestMixedRun(t *testing.T) {
	a, b := pair(t)
	ga := group(t, a, Options{Addr: host(1, false)}, false)
	gb := group(t, b, Options{Addr: host(2, false), Queues: 2, Steer: true}, false)
	m := Message{Segment: 100, Dest: dest(t, host(2, false), gb.Port(), host(1, false))}
	for i := range uint32(10) {
		m.Buf = append(m.Buf, fill(100, 257+i, i)...)
	}
	mustSend(t, ga.Sockets()[0].NewSender(), m)
	want := cut(&m)
	for i, got := range receive(t, gb.Sockets()[1], NewBatch(16, 0), len(want)) {
		if got.payload != want[i] || !got.run {
			t.Errorf("datagram %d: %.8x, want %.8x", i, got.payload, want[i])
		}
	}
}

// Native ESP comes without its IP header, to the queue of its SPI.
func TestNativeESP(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		a, b := pair(t)
		for _, n := range []int{1, 2, 3} {
			ga := group(t, a, Options{Addr: host(1, v6), Queues: n}, true)
			gb := group(t, b, Options{Addr: host(2, v6), Queues: n, Steer: true, Port: 4500}, true)
			if !gb.Native() || gb.V6() != v6 || gb.Port() != 0 || gb.Addr() != host(2, v6) {
				t.Fatalf("native %t, v6 %t, port %d, address %s", gb.Native(), gb.V6(), gb.Port(), gb.Addr())
			}
			to := dest(t, host(2, v6), 4500, host(1, v6)) // whose port is of no use here
			var msgs []Message
			want := make([][]string, n)
			for i := range 100 {
				spi := uint32(i+1) * 2654435761
				m := Message{Buf: fill(32+i, spi, uint32(i)), Dest: to, TOS: uint8(i * 5)}
				if i%4 == 0 {
					m.Segment = len(m.Buf)
					for range 9 {
						m.Buf = append(m.Buf, m.Buf[:m.Segment]...)
					}
				}
				want[int(spi)%n] = append(want[int(spi)%n], cut(&m)...)
				msgs = append(msgs, m)
			}
			mustSend(t, ga.Sockets()[n-1].NewSender(), msgs...)
			tos := map[string]uint8{}
			for i := range msgs {
				for _, p := range cut(&msgs[i]) {
					tos[p] = msgs[i].TOS
				}
			}
			for q, s := range gb.Sockets() {
				batch := NewBatch(16, 8)
				for i, got := range receive(t, s, batch, len(want[q])) {
					if got.payload != want[q][i] {
						t.Fatalf("queue %d of %d, packet %d: %.8x (%d octets), want %.8x (%d)", q, n, i, got.payload, len(got.payload), want[q][i], len(want[q][i]))
					}
					if got.remote != netip.AddrPortFrom(host(1, v6), 0) || got.local != host(2, v6) || got.tos != tos[got.payload] {
						t.Fatalf("queue %d, packet %d: %+v", q, i, got)
					}
				}
				for i := range batch.Datagrams {
					if d := &batch.Datagrams[i]; d.Off < 8 || len(d.Buf)-d.Off-d.Len < Tailroom {
						t.Errorf("payload at %d, %d octets of %d", d.Off, d.Len, len(d.Buf))
					}
				}
			}
			// What a rule of the kernel's filter lets through twice or not at all would be left over.
			for _, s := range gb.Sockets() {
				c := s.Counters()
				if c.InDatagrams == 0 || c.InMalformed+c.InTruncated+c.InDropped != 0 {
					t.Errorf("counters: %+v", c)
				}
			}
		}
	})
}

// A datagram leaves from the address that the destination names, and the receiver learns to which
// it came, also when the sockets are bound to every address.
func TestLocalAddress(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		s := newSpace(t)
		addrs := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")}
		all := netip.IPv4Unspecified()
		if v6 {
			addrs = []netip.Addr{netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2"), netip.MustParseAddr("2001:db8:1::3")}
			all = netip.IPv6Unspecified()
		}
		for _, a := range addrs {
			s.addr("lo", netip.PrefixFrom(a, a.BitLen()).String())
		}
		for _, native := range []bool{false, true} {
			g := group(t, s, Options{Addr: all, Steer: true}, native)
			x, b := g.Sockets()[0].NewSender(), NewBatch(4, 0)
			for _, from := range addrs {
				for _, to := range addrs {
					d := dest(t, to, g.Port(), from)
					if d.Local() != from || d.Remote() != netip.AddrPortFrom(to, g.Port()) {
						t.Errorf("from %s to %s", d.Local(), d.Remote())
					}
					mustSend(t, x, Message{Buf: fill(100, 1, 1), Dest: d})
					got := receive(t, g.Sockets()[0], b, 1)[0]
					if got.remote != netip.AddrPortFrom(from, g.Port()) || got.local != to {
						t.Errorf("native %t: from %s to %s, want from %s to %s", native, got.remote, got.local, from, to)
					}
				}
			}
			// The kernel chooses.
			mustSend(t, x, Message{Buf: fill(100, 1, 1), Dest: dest(t, addrs[1], g.Port(), netip.Addr{})})
			if got := receive(t, g.Sockets()[0], b, 1)[0]; !slices.Contains(addrs, got.remote.Addr()) || got.local != addrs[1] {
				t.Errorf("native %t: from %s to %s", native, got.remote, got.local)
			}
			// An address that is not ours is refused.
			stranger := netip.MustParseAddr("192.0.2.77")
			if v6 {
				stranger = netip.MustParseAddr("2001:db8:77::1")
			}
			msgs := []Message{{Buf: fill(100, 1, 1), Dest: dest(t, addrs[1], g.Port(), stranger)}, {Buf: fill(10, 1, 1), Dest: dest(t, addrs[1], g.Port(), addrs[0])}}
			if n := x.Send(msgs); n != 1 || msgs[0].Err == nil || msgs[1].Err != nil {
				t.Errorf("native %t: %d failed: %v, %v; want the first", native, n, msgs[0].Err, msgs[1].Err)
			}
			receive(t, g.Sockets()[0], b, 1)
		}
	})
}

// Link-local addresses keep the interface they are of.
func TestLinkLocal(t *testing.T) {
	a, b := pair(t)
	a.addr("eth0", "fe80::a/64")
	b.addr("eth0", "fe80::b/64")
	ga := group(t, a, Options{Addr: netip.IPv6Unspecified()}, false)
	gb := group(t, b, Options{Addr: netip.IPv6Unspecified()}, false)
	zone := func(s *space) string { return fmt.Sprint(s.link("eth0").Attrs().Index) }
	to, from := netip.MustParseAddr("fe80::b").WithZone(zone(a)), netip.MustParseAddr("fe80::a")
	mustSend(t, ga.Sockets()[0].NewSender(), Message{Buf: []byte("there"), Dest: dest(t, to, gb.Port(), from)})
	got := receive(t, gb.Sockets()[0], NewBatch(1, 0), 1)[0]
	if want := netip.AddrPortFrom(from.WithZone(zone(b)), ga.Port()); got.remote != want || got.local != netip.MustParseAddr("fe80::b") {
		t.Errorf("from %s to %s, want from %s to fe80::b", got.remote, got.local, want)
	}
	mustSend(t, gb.Sockets()[0].NewSender(), Message{Buf: []byte("back"), Dest: dest(t, got.remote.Addr(), got.remote.Port(), got.local)})
	if got := receive(t, ga.Sockets()[0], NewBatch(1, 0), 1)[0]; got.payload != "back" {
		t.Errorf("%+v", got)
	}
}

// All values of the traffic class, ECN included, both ways.
func TestTrafficClass(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		a, b := pair(t)
		for _, native := range []bool{false, true} {
			g := [2]*Group{group(t, a, Options{Addr: host(1, v6)}, native), group(t, b, Options{Addr: host(2, v6)}, native)}
			for from := range 2 {
				to := dest(t, g[1-from].Addr(), g[1-from].Port(), g[from].Addr())
				x := g[from].Sockets()[0].NewSender()
				var msgs []Message
				for tos := range 256 {
					msgs = append(msgs, Message{Buf: fill(20, 1, uint32(tos)), Dest: to, TOS: uint8(tos)})
				}
				roundTrip(t, x, g[1-from].Sockets()[0], NewBatch(100, 0), msgs)
			}
		}
	})
}

// The mark is on what leaves: a rule that knows it has no route.
func TestMark(t *testing.T) {
	a, b := pair(t)
	r := newRule(0x77)
	a.must(a.nl.RuleAdd(r))
	gb := group(t, b, Options{Addr: host(2, false)}, false)
	for _, mark := range []uint32{0, 0x77} {
		g := group(t, a, Options{Addr: host(1, false), Mark: mark}, false)
		msgs := []Message{{Buf: []byte("x"), Dest: dest(t, host(2, false), gb.Port(), netip.Addr{})}}
		n := g.Sockets()[0].NewSender().Send(msgs)
		if marked := mark != 0; marked != errors.Is(msgs[0].Err, unix.ENETUNREACH) || marked != (n == 1) {
			t.Errorf("mark %#x: %v", mark, msgs[0].Err)
		}
		if c := g.Sockets()[0].Counters(); c.OutUnreachable != uint64(n) {
			t.Errorf("mark %#x: %+v", mark, c)
		}
	}
}

// A receiver that was busy waits again, and is woken again: nothing is left lying.
func TestIdleAfterBusy(t *testing.T) {
	g := group(t, newSpace(t), Options{Addr: netip.MustParseAddr("127.0.0.1"), Steer: true}, false)
	s := g.Sockets()[0]
	datagrams, _ := listen(t, s)
	x, to := s.NewSender(), dest(t, g.Addr(), g.Port(), g.Addr())
	total := uint64(0)
	for round := range 300 {
		for i := range round % 20 {
			mustSend(t, x, Message{Buf: []byte{byte(i)}, Dest: to})
			total++
		}
		for i := range round % 20 {
			if got := next(t, "a datagram", datagrams); got.payload != string([]byte{byte(i)}) {
				t.Fatalf("round %d: %x, want %x", round, got.payload, i)
			}
		}
	}
	if c := s.Counters(); c.InDatagrams != total || c.InWaits == 0 {
		t.Errorf("counters: %+v", c)
	}
}

// With a slow device the send buffer fills: Send waits, and everything leaves in order.
func TestSendWaits(t *testing.T) {
	a, b := pair(t)
	a.must(a.nl.QdiscAdd(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: a.link("eth0").Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       4 << 20, Buffer: 20_000, Limit: 1 << 24,
	}))
	small := linux
	small.setInt = func(fd, level, opt, value int) error {
		if level == unix.SOL_SOCKET && opt == unix.SO_SNDBUFFORCE {
			value = 50_000
		}
		return linux.setInt(fd, level, opt, value)
	}
	var ga *Group
	a.in(func() (err error) {
		ga, err = open(Options{Addr: host(1, false)}, false, small)
		return err
	})
	defer ga.Close()
	gb := group(t, b, Options{Addr: host(2, false)}, false)
	to := dest(t, host(2, false), gb.Port(), host(1, false))
	s := ga.Sockets()[0]
	var wg sync.WaitGroup
	const senders, each = 2, 400
	for k := range senders {
		wg.Go(func() {
			x := s.NewSender()
			for i := range each / 8 {
				var msgs []Message
				for j := range 8 {
					msgs = append(msgs, Message{Buf: fill(1000, uint32(k), uint32(i*8+j)), Dest: to})
				}
				mustSend(t, x, msgs...)
			}
		})
	}
	var count [senders]uint32
	for _, g := range receive(t, gb.Sockets()[0], NewBatch(64, 0), senders*each) {
		k := binary.BigEndian.Uint32([]byte(g.payload))
		if g.payload != string(fill(1000, k, count[k])) {
			t.Fatalf("sender %d: not datagram %d", k, count[k])
		}
		count[k]++
	}
	wg.Wait()
	if c := s.Counters(); c.OutWaits == 0 || c.OutDatagrams != senders*each {
		t.Errorf("counters: %+v", c)
	}
}

func TestCloseWakes(t *testing.T) {
	for _, native := range []bool{false, true} {
		g := group(t, newSpace(t), Options{Addr: netip.IPv4Unspecified(), Queues: 3, Steer: true}, native)
		// A send buffer that never has room.
		g.sys.sendmsg = func(uintptr, *unix.Msghdr) (int, unix.Errno) { return 0, unix.EAGAIN }
		g.sys.poll = full(linux.poll)
		var wg sync.WaitGroup
		for _, s := range g.Sockets() {
			wg.Go(func() {
				if err := s.Receive(NewBatch(4, 0)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Receive: %v, want net.ErrClosed", err)
				}
			})
			x, to := s.NewSender(), dest(t, netip.MustParseAddr("127.0.0.1"), 9, netip.Addr{})
			wg.Go(func() {
				msgs := []Message{{Buf: []byte("x"), Dest: to, Err: unix.EIO}}
				if n := x.Send(msgs); n != 1 || !errors.Is(msgs[0].Err, net.ErrClosed) {
					t.Errorf("Send: %d failed, %v, want net.ErrClosed", n, msgs[0].Err)
				}
			})
		}
		for _, s := range g.Sockets() { // until all of them wait
			for c := s.Counters(); c.InWaits == 0 || c.OutWaits == 0; c = s.Counters() {
				time.Sleep(time.Millisecond)
			}
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := g.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		s := g.Sockets()[0]
		if err := s.Receive(NewBatch(1, 0)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Receive after Close: %v", err)
		}
		msgs := []Message{{}, {Dest: dest(t, netip.MustParseAddr("127.0.0.1"), 9, netip.Addr{})}}
		if n := s.NewSender().Send(msgs); n != 2 || !errors.Is(msgs[1].Err, net.ErrClosed) {
			t.Errorf("Send after Close: %d failed, %v", n, msgs[1].Err)
		}
		if c := s.Counters(); c.OutOther != 3 {
			t.Errorf("counters: %+v", c)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	s := newSpace(t)
	lo := netip.MustParseAddr("127.0.0.1")
	taken := group(t, s, Options{Addr: lo, Queues: 2, Steer: true}, false)
	for _, c := range []struct {
		opt    Options
		native bool
		want   string
		is     error
	}{
		{Options{}, false, "no local address", nil},
		{Options{Addr: lo, Queues: -1}, false, "1 to 256", nil},
		{Options{Addr: lo, Queues: 257}, false, "1 to 256", nil},
		{Options{Addr: lo, Port: taken.Port()}, false, "another IKE daemon", unix.EADDRINUSE},
		{Options{Addr: lo, Port: taken.Port(), Queues: 2, Steer: true}, false, "another IKE daemon", unix.EADDRINUSE},
		{Options{Addr: netip.MustParseAddr("192.0.2.1")}, false, "no interface", unix.EADDRNOTAVAIL},
		{Options{Addr: netip.MustParseAddr("192.0.2.1")}, true, "ESP socket on 192.0.2.1", unix.EADDRNOTAVAIL},
		{Options{Addr: netip.MustParseAddr("2001:db8::1")}, false, "no interface", unix.EADDRNOTAVAIL},
		{Options{Addr: netip.MustParseAddr("fe80::1%nowhere")}, false, `zone "nowhere"`, nil},
	} {
		s.in(func() error {
			g, err := open(c.opt, c.native, linux)
			if err == nil {
				return errors.Join(fmt.Errorf("%+v opened", c.opt), g.Close())
			}
			if !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%+v: %v, want %q", c.opt, err, c.want)
			}
			return nil
		})
	}
}

// Queues of one group share a port that the kernel chose, or a given one.
func TestPorts(t *testing.T) {
	s := newSpace(t)
	both(t, func(t *testing.T, v6 bool) {
		all := netip.IPv4Unspecified()
		if v6 {
			all = netip.IPv6Unspecified()
		}
		for _, port := range []uint16{0, 4500} {
			for _, queues := range []int{0, 1, 4} {
				g := group(t, s, Options{Addr: all, Port: port, Queues: queues, Steer: true}, false)
				if g.Port() == 0 || port != 0 && g.Port() != port || len(g.Sockets()) != max(queues, 1) {
					t.Errorf("port %d, %d sockets", g.Port(), len(g.Sockets()))
				}
				if err := g.Close(); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

func TestNewDestErrors(t *testing.T) {
	for _, c := range []struct{ remote, local, want string }{
		{"0.0.0.0:500", "", "address of a host"},
		{"[::]:500", "", "address of a host"},
		{"192.0.2.1:500", "2001:db8::1", "one IP version"},
		{"[2001:db8::1]:500", "192.0.2.1", "one IP version"},
		{"[fe80::1%nowhere]:500", "", `zone "nowhere"`},
	} {
		var local netip.Addr
		if c.local != "" {
			local = netip.MustParseAddr(c.local)
		}
		if _, err := NewDest(netip.MustParseAddrPort(c.remote), local); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s from %s: %v, want %q", c.remote, c.local, err, c.want)
		}
	}
	if _, err := NewDest(netip.AddrPort{}, netip.Addr{}); err == nil {
		t.Error("the zero address is a destination")
	}
	// An IPv4 address in IPv6 form is an IPv4 address.
	d, err := NewDest(netip.MustParseAddrPort("[::ffff:192.0.2.1]:500"), netip.MustParseAddr("::ffff:192.0.2.2"))
	if err != nil || d.v6 || d.Remote() != netip.MustParseAddrPort("192.0.2.1:500") {
		t.Errorf("%s: %v", d.Remote(), err)
	}
}

func TestMessageErrors(t *testing.T) {
	s := newSpace(t)
	lo := netip.MustParseAddr("127.0.0.1")
	g := group(t, s, Options{Addr: lo}, false)
	ok := dest(t, lo, g.Port(), lo)
	msgs := []Message{
		{Buf: []byte("a")},
		{Buf: []byte("b"), Dest: ok, Err: unix.EIO},
		{Buf: []byte("c"), Dest: dest(t, netip.IPv6Loopback(), 500, netip.Addr{})},
		{Buf: []byte("d"), Dest: ok, Segment: -1},
		{Buf: []byte("e"), Dest: ok, Segment: 65536},
		{Buf: fill(65508, 1, 1), Dest: ok},
		{Buf: fill(65509, 1, 1), Dest: ok, Segment: 65508},
		{Buf: []byte("f"), Dest: ok},
		{Buf: []byte("g"), Dest: ok, Segment: 65535},
	}
	want := []error{ErrNoDest, nil, ErrFamily, ErrSegment, ErrSegment, unix.EMSGSIZE, unix.EMSGSIZE, nil, nil}
	if n := g.Sockets()[0].NewSender().Send(msgs); n != 6 {
		t.Errorf("%d failed, want 6", n)
	}
	for i := range msgs {
		if !errors.Is(msgs[i].Err, want[i]) {
			t.Errorf("message %d: %v, want %v", i, msgs[i].Err, want[i])
		}
	}
	for i, got := range receive(t, g.Sockets()[0], NewBatch(8, 0), 3) {
		if want := []string{"b", "f", "g"}[i]; got.payload != want {
			t.Errorf("datagram %d: %q, want %q", i, got.payload, want)
		}
	}
	if c := g.Sockets()[0].Counters(); c.OutTooBig != 2 || c.OutOther != 4 || c.OutDatagrams != 3 {
		t.Errorf("counters: %+v", c)
	}
	if n := g.Sockets()[0].NewSender().Send(nil); n != 0 {
		t.Errorf("%d of no messages failed", n)
	}
}
