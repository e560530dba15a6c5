package wire

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// seen is a PathError with its quotation kept.
type seen struct {
	PathError
	quoted string
}

// listen receives from s in a goroutine of its own, as a worker does.
func listen(t *testing.T, s *Socket) (datagrams chan got, pathErrors chan seen) {
	t.Helper()
	datagrams, pathErrors = make(chan got, 1000), make(chan seen, 1000)
	s.OnError(func(e PathError) { pathErrors <- seen{e, string(e.Quoted)} })
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := NewBatch(16, 0)
		for s.Receive(b) == nil {
			for _, g := range single(b) {
				datagrams <- g
			}
		}
	}()
	t.Cleanup(func() {
		_ = s.Group().Close()
		<-done
	})
	return datagrams, pathErrors
}

func next[T any](t *testing.T, what string, c chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
	panic("unreachable")
}

// path is two hosts with a router between them; the far side's MTU is less.
func path(t *testing.T, mtu int) (a, b *space) {
	t.Helper()
	a, b = newSpace(t), newSpace(t)
	r := newSpace(t)
	veth(a, "eth0", r, "near")
	veth(r, "far", b, "eth0")
	a.addr("eth0", "198.51.100.1/24", "2001:db8::1/64")
	r.addr("near", "198.51.100.254/24", "2001:db8::fe/64")
	r.addr("far", "203.0.113.254/24", "2001:db8:1::fe/64")
	b.addr("eth0", "203.0.113.2/24", "2001:db8:1::2/64")
	r.mtu("far", mtu)
	b.mtu("eth0", mtu)
	a.route("203.0.113.0/24", "198.51.100.254")
	a.route("2001:db8:1::/64", "2001:db8::fe")
	b.route("198.51.100.0/24", "203.0.113.254")
	b.route("2001:db8::/64", "2001:db8:1::fe")
	r.sysctl("ipv4/ip_forward", "1")
	r.sysctl("ipv6/conf/all/forwarding", "1")
	// The kernel sends few ICMP errors a second.
	for _, s := range []*space{r, b} {
		s.sysctl("ipv4/icmp_ratelimit", "0")
		s.sysctl("ipv4/icmp_msgs_per_sec", "1000000")
		s.sysctl("ipv4/icmp_msgs_burst", "1000000")
		s.sysctl("ipv6/icmp/ratelimit", "0")
	}
	return a, b
}

func far(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("2001:db8:1::2")
	}
	return netip.MustParseAddr("203.0.113.2")
}

// A router on the way has a smaller MTU: what it says comes to OnError, and the kernel does not
// act on it.
func TestPathMTU(t *testing.T) {
	const mtu = 1300
	both(t, func(t *testing.T, v6 bool) {
		a, b := path(t, mtu)
		offender := netip.MustParseAddr("198.51.100.254")
		if v6 {
			offender = netip.MustParseAddr("2001:db8::fe")
		}
		for _, native := range []bool{false, true} {
			queues := 1
			if native {
				queues = 2 // only one of them may tell
			}
			ga := group(t, a, Options{Addr: host(1, v6), Queues: queues}, native)
			gb := group(t, b, Options{Addr: far(v6), Steer: true}, native)
			var errs chan seen
			var more []chan seen
			for _, s := range ga.Sockets() {
				_, e := listen(t, s)
				more = append(more, e)
			}
			errs = more[0]
			datagrams, _ := listen(t, gb.Sockets()[0])
			to := dest(t, far(v6), gb.Port(), host(1, v6))
			x := ga.Sockets()[0].NewSender()
			for i := range 3 {
				spi, seq := uint32(0xc0ffee00+i), uint32(1000+i)
				big := fill(1400, spi, 1)
				binary.BigEndian.PutUint32(big[4:], seq)
				small := fill(mtu-60, spi, 2)
				mustSend(t, x, Message{Buf: big, Dest: to}, Message{Buf: small, Dest: to})
				if got := next(t, "the small datagram", datagrams); got.payload != string(small) {
					t.Errorf("%d octets received, want the %d that fit", len(got.payload), len(small))
				}
				e := next(t, "a path error", errs)
				wantOrigin, wantType, wantCode := OriginICMP, uint8(3), uint8(4)
				if v6 {
					wantOrigin, wantType, wantCode = OriginICMP6, 2, 0
				}
				if e.MTU != mtu || e.Remote != to.remote && !native || e.Remote.Addr() != far(v6) || e.V6 != v6 || e.Origin != wantOrigin ||
					e.Type != wantType || e.Code != wantCode || e.Offender != offender || e.Errno != unix.EMSGSIZE {
					t.Errorf("native %t: %+v from %s", native, e.PathError, e.Origin)
				}
				if len(e.quoted) < 8 || e.quoted[:8] != string(big[:8]) {
					t.Errorf("native %t: quoted %.16x, want %.16x", native, e.quoted, big[:8])
				}
			}
			for _, e := range more[1:] {
				if len(e) > 0 {
					t.Errorf("a second socket was told: %+v", <-e)
				}
			}
			c := ga.Sockets()[0].Counters()
			if c.PathErrors != 3 || c.OutTooBig != 0 {
				t.Errorf("native %t: counters: %+v", native, c)
			}
		}
	})
}

// What is longer than the link's own MTU is not sent; what fits in the same call is.
func TestLinkMTU(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		a, b := pair(t)
		for _, native := range []bool{false, true} {
			ga := group(t, a, Options{Addr: host(1, v6)}, native)
			gb := group(t, b, Options{Addr: host(2, v6)}, native)
			_, errs := listen(t, ga.Sockets()[0])
			head := 28
			if v6 {
				head = 48
			}
			if native {
				head -= 8
			}
			to := dest(t, host(2, v6), gb.Port(), host(1, v6))
			msgs := []Message{
				{Buf: fill(1500-head, 1, 1), Dest: to},
				{Buf: fill(1500-head+1, 1, 2), Dest: to},
				{Buf: fill(20*(1500-head), 1, 3), Segment: 1500 - head, Dest: to},
				{Buf: fill(20*1500, 1, 4), Segment: 1500 - head + 1, Dest: to},
				{Buf: fill(9, 1, 5), Dest: to},
			}
			if n := ga.Sockets()[0].NewSender().Send(msgs); n != 2 {
				t.Errorf("native %t: %d failed, want 2", native, n)
			}
			want := 0
			for i := range msgs {
				if tooBig := i == 1 || i == 3; tooBig != errors.Is(msgs[i].Err, unix.EMSGSIZE) || !tooBig && msgs[i].Err != nil {
					t.Errorf("native %t, message %d: %v", native, i, msgs[i].Err)
				} else if !tooBig {
					want += len(cut(&msgs[i]))
				}
			}
			receive(t, gb.Sockets()[0], NewBatch(64, 0), want)
			if to.hold != 0 {
				t.Error("a run that was too big was taken for one that the device cannot cut")
			}
			e := next(t, "a local error", errs)
			if e.Origin != OriginLocal || e.MTU != 1500 || e.Remote.Addr() != host(2, v6) || e.Errno != unix.EMSGSIZE || e.Offender.IsValid() || len(e.quoted) != 0 {
				t.Errorf("native %t: %+v, origin %s", native, e, e.Origin)
			}
			if c := ga.Sockets()[0].Counters(); c.OutTooBig != 2 {
				t.Errorf("native %t: counters: %+v", native, c)
			}
		}
	})
}

// Errors about earlier datagrams lose no later one, and do not end Receive.
func TestRefusedPort(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		a, b := path(t, 1500)
		ga := group(t, a, Options{Addr: host(1, v6)}, false)
		gb := group(t, b, Options{Addr: far(v6)}, false)
		_, errs := listen(t, ga.Sockets()[0])
		datagrams, _ := listen(t, gb.Sockets()[0])
		nobody, somebody := dest(t, far(v6), 9, host(1, v6)), dest(t, far(v6), gb.Port(), host(1, v6))
		x, y := ga.Sockets()[0].NewSender(), gb.Sockets()[0].NewSender()
		const rounds = 300
		var wg sync.WaitGroup
		wg.Go(func() { // the errors come while datagrams do
			back := dest(t, host(1, v6), ga.Port(), far(v6))
			for range rounds {
				mustSend(t, y, Message{Buf: []byte("back"), Dest: back})
			}
		})
		for range rounds {
			mustSend(t, x, Message{Buf: []byte("x"), Dest: nobody}, Message{Buf: fill(8, 1, 1), Dest: somebody})
		}
		wg.Wait()
		for range rounds {
			next(t, "a datagram", datagrams)
		}
		for range rounds {
			e := next(t, "a path error", errs)
			wantType, wantCode := uint8(3), uint8(3)
			if v6 {
				wantType, wantCode = 1, 4
			}
			if e.Errno != unix.ECONNREFUSED || e.Type != wantType || e.Code != wantCode || e.MTU != 0 || e.Remote != nobody.remote || e.Offender != far(v6) || e.quoted != "x" {
				t.Fatalf("%+v", e)
			}
		}
		for ga.Sockets()[0].Counters().InDatagrams < rounds {
			time.Sleep(time.Millisecond)
		}
		t.Logf("%+v", ga.Sockets()[0].Counters())
	})
}

func TestPathErrorParse(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 15), make([]byte, 16), make([]byte, 40), fill(100, 1, 1)} {
		var e PathError
		if e.parse(b) {
			t.Errorf("%x parsed as %+v", b, e)
		}
	}
	if got := Origin(9).String(); got != "Origin(9)" {
		t.Error(got)
	}
}

func FuzzControl(f *testing.F) {
	b := make([]byte, 64)
	_, n := putControl(b, unix.IPPROTO_IP, unix.IP_RECVERR, 32)
	f.Add(b[:n])
	_, n = putControl(b, unix.IPPROTO_UDP, unix.UDP_GRO, 4)
	f.Add(b[:n])
	_, n = putControl(b, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, 20)
	f.Add(b[:n])
	f.Fuzz(func(t *testing.T, b []byte) {
		var d Datagram
		d.parse(b)
		var e PathError
		e.parse(b)
		for len(b) > 0 {
			_, _, data, rest := nextControl(b)
			if data == nil {
				break
			}
			if len(data)+len(rest)+cmsgHeader > len(b) { // so that it ends
				t.Fatalf("%d octets of data and %d more of %d", len(data), len(rest), len(b))
			}
			b = rest
		}
	})
}

func FuzzStripIPv4(f *testing.F) {
	f.Add([]byte{0x45, 3, 0, 24, 0, 0, 0, 0, 64, 50, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9})
	f.Add([]byte{0x46, 0, 0, 24, 0, 0, 0, 0, 64, 50, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9})
	f.Fuzz(func(t *testing.T, p []byte) {
		d := Datagram{Buf: append(make([]byte, 8), p...), Off: 8, Len: len(p)}
		if !d.stripIPv4() {
			return
		}
		if d.Off < 28 || d.Len < 0 || d.Off+d.Len > len(d.Buf) {
			t.Fatalf("%d octets at %d of %d", d.Len, d.Off, len(d.Buf))
		}
	})
}
