package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// fakeKernel plays a kernel that refuses: what a sender hands to it lies in sent.
type fakeKernel struct {
	refuseGSO func(to netip.Addr) unix.Errno // what a run meets
	fail      func(to netip.Addr, size int) unix.Errno
	passing   func() unix.Errno // an error that was pending
	stop      func(n int) int   // how many of n messages go before a call stops half-way
	calls     func() unix.Errno // errors of a call: EINTR, EAGAIN
	noMmsg    bool
	sent      []handed
	nCalls    int
}

// fakeSocket is a socket without one.
func fakeSocket(g *Group) *Socket {
	g.stop = -1
	if g.sys.poll == nil {
		g.sys.poll = func(_, _ int, events int16, _ int) (int16, unix.Errno) { return events, 0 }
	}
	return newSocket(g, 0, -1)
}

// handed is a datagram that the kernel took, or a failure.
type handed struct {
	payload string
	to      netip.AddrPort
	tos     int
	fd      uintptr
	err     unix.Errno // ENOBUFS: taken and dropped; otherwise a refusal
}

// sender makes a sender whose system calls are k's.
func (k *fakeKernel) sender(v6, native bool, log func(string, ...any)) *Sender {
	g := &Group{v6: v6, native: native, opt: Options{Log: log}}
	g.sys.sendmsg, g.sys.sendmmsg = k.sendmsg, k.sendmmsg
	g.gso.Store(!native)
	g.mmsgOut.Store(true)
	return fakeSocket(g).NewSender()
}

func (k *fakeKernel) begin() unix.Errno {
	k.nCalls++
	if k.calls != nil {
		return k.calls()
	}
	return 0
}

func (k *fakeKernel) sendmsg(fd uintptr, h *unix.Msghdr) (int, unix.Errno) {
	if e := k.begin(); e != 0 {
		return -1, e
	}
	return 1, k.one(fd, h)
}

func (k *fakeKernel) sendmmsg(fd uintptr, v *mmsghdr, n int) (int, unix.Errno) {
	if k.noMmsg {
		return -1, unix.ENOSYS
	}
	if e := k.begin(); e != 0 {
		return -1, e
	}
	most := n
	if k.stop != nil {
		most = k.stop(n)
	}
	for i, m := range unsafe.Slice(v, n)[:most] {
		before := len(k.sent)
		if e := k.one(fd, &m.hdr); e != 0 {
			if i == 0 {
				return -1, e
			}
			k.sent = k.sent[:before]
			return i, 0 // nobody learns of the error
		}
	}
	return most, 0
}

func (k *fakeKernel) one(fd uintptr, h *unix.Msghdr) unix.Errno {
	if k.passing != nil {
		if e := k.passing(); e != 0 {
			return e
		}
	}
	to := addrPort((*unix.RawSockaddrInet6)(unsafe.Pointer(h.Name)), false)
	p := bytes.Clone(unsafe.Slice(h.Iov.Base, h.Iov.Len))
	limit := maxPayload4
	if to.Addr().Is6() {
		limit = maxPayload6
	}
	segment, tos := 0, 0
	for c := unsafe.Slice(h.Control, h.Controllen); ; {
		level, typ, data, rest := nextControl(c)
		if data == nil {
			break
		}
		c = rest
		switch {
		case level == unix.IPPROTO_UDP && typ == unix.UDP_SEGMENT:
			segment = int(binary.NativeEndian.Uint16(data))
		case typ == unix.IP_TOS || typ == unix.IPV6_TCLASS:
			tos = int(binary.NativeEndian.Uint32(data))
		}
	}
	if segment > 0 {
		if e := k.refuseGSO(to.Addr()); e != 0 {
			return e
		}
		if len(p) > segment*maxSegments {
			return unix.EINVAL
		}
	}
	if len(p) > limit {
		return unix.EMSGSIZE
	}
	size := len(p)
	if segment > 0 {
		size = min(segment, size)
	}
	if k.fail != nil {
		if e := k.fail(to.Addr(), size); e != 0 {
			if e != unix.ENOBUFS {
				k.sent = append(k.sent, handed{to: to, err: e})
				return e
			}
			for _, q := range cut(&Message{Buf: p, Segment: segment}) {
				k.sent = append(k.sent, handed{q, to, tos, fd, e})
			}
			return e
		}
	}
	for _, q := range cut(&Message{Buf: p, Segment: segment}) {
		k.sent = append(k.sent, handed{q, to, tos, fd, 0})
	}
	return 0
}

// Whatever the kernel refuses, and wherever it stops: every datagram is handed over once and in
// order, and exactly those messages fail that had to.
func TestSendModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		native := rapid.IntRange(0, 4).Draw(t, "native") == 0
		var dests []*Dest
		refusal := map[netip.Addr]unix.Errno{}
		mtu := map[netip.Addr]int{}
		for i := range byte(3) {
			d, err := NewDest(netip.AddrPortFrom(host(i+1, v6), 4500), netip.Addr{})
			if err != nil {
				t.Fatal(err)
			}
			dests = append(dests, &d)
			refusal[d.remote.Addr()] = rapid.SampledFrom([]unix.Errno{0, 0, unix.EIO, unix.EINVAL, unix.ENOPROTOOPT, unix.EOPNOTSUPP}).Draw(t, "refusal")
			mtu[d.remote.Addr()] = rapid.SampledFrom([]int{1500, 70000, 300}).Draw(t, "mtu")
		}
		dropping := rapid.Bool().Draw(t, "dropping")
		inRow, quiet := 0, 0
		k := &fakeKernel{
			noMmsg:    rapid.IntRange(0, 4).Draw(t, "no sendmmsg") == 0,
			refuseGSO: func(a netip.Addr) unix.Errno { return refusal[a] },
			fail: func(a netip.Addr, size int) unix.Errno {
				if size > mtu[a] {
					return unix.EMSGSIZE
				}
				if dropping && rapid.IntRange(0, 9).Draw(t, "drop") == 0 {
					return unix.ENOBUFS
				}
				return 0
			},
			stop: func(n int) int { return rapid.OneOf(rapid.Just(n), rapid.IntRange(1, n)).Draw(t, "stop") },
			calls: func() unix.Errno {
				return rapid.SampledFrom([]unix.Errno{0, 0, 0, 0, unix.EINTR, unix.EAGAIN}).Draw(t, "call")
			},
			passing: func() unix.Errno {
				if quiet--; quiet > 0 { // there is no end of errors only if somebody sends them without end
					return 0
				}
				e := rapid.SampledFrom([]unix.Errno{0, 0, 0, unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.EOPNOTSUPP, unix.EMSGSIZE}).Draw(t, "pending")
				if inRow++; e == 0 || inRow == passingTries {
					inRow, quiet = 0, 6
				}
				return e
			},
		}
		if rapid.Bool().Draw(t, "nothing pending") {
			k.passing = nil
		}
		x := k.sender(v6, native, nil)
		const forFragments = 7
		x.s.g.fragments = &fragments{fd: forFragments}
		x.s.g.opt.Addr = host(9, v6)
		for range rapid.IntRange(1, 3).Draw(t, "calls of Send") {
			var msgs []Message
			for i := range rapid.IntRange(1, 90).Draw(t, "messages") {
				n := rapid.OneOf(rapid.IntRange(0, 400), rapid.IntRange(0, 3000), rapid.IntRange(0, 150_000)).Draw(t, "octets")
				m := Message{Buf: fill(n, uint32(i), uint32(i)), Dest: dests[rapid.IntRange(0, 2).Draw(t, "dest")], TOS: rapid.Uint8().Draw(t, "TOS"), Err: unix.EIO}
				m.Fragment = !v6 && rapid.IntRange(0, 3).Draw(t, "may be fragmented") == 0
				if rapid.Bool().Draw(t, "run") {
					m.Segment = rapid.OneOf(rapid.IntRange(max(n/100, 1), 2000), rapid.IntRange(max(n/100, 1), 65535), rapid.Just(max(n/64, 1))).Draw(t, "segment")
				}
				msgs = append(msgs, m)
			}
			k.sent = k.sent[:0]
			failed := x.Send(msgs)
			log, wantFailed := k.sent, 0
			for i := range msgs {
				m := &msgs[i]
				if m.Err != nil {
					wantFailed++
				}
				dropped, tooBig := 0, false
				for j, p := range cut(m) {
					if len(p) > mtu[m.Dest.remote.Addr()] || len(p) > x.limit {
						tooBig = true
						// A refusal is logged once a try; one that is beyond IP's limits is not.
						for len(log) > 0 && log[0].err == unix.EMSGSIZE && log[0].to.Addr() == m.Dest.remote.Addr() {
							log = log[1:]
						}
						break
					}
					if len(log) == 0 {
						t.Fatalf("message %d, datagram %d (%d octets) was not sent; Err %v", i, j, len(p), m.Err)
					}
					port := m.Dest.remote
					if native {
						port = netip.AddrPortFrom(port.Addr(), 0)
					}
					got := log[0]
					log = log[1:]
					if got.payload != p || got.to != port || got.tos != int(m.TOS) {
						t.Fatalf("message %d, datagram %d: %d octets %.8x to %s, class %#x, error %v; want %d octets %.8x to %s, class %#x",
							i, j, len(got.payload), got.payload, got.to, got.tos, got.err, len(p), p, port, m.TOS)
					}
					if (got.fd == forFragments) != m.Fragment {
						t.Fatalf("message %d, datagram %d: may be fragmented: %t; sent by socket %d", i, j, m.Fragment, got.fd)
					}
					if got.err == unix.ENOBUFS {
						dropped++
					}
				}
				want := error(nil)
				if dropped > 0 {
					want = unix.ENOBUFS
				}
				if tooBig {
					want = unix.EMSGSIZE
				}
				var e unix.Errno
				if tooBig && k.passing != nil && errors.As(m.Err, &e) && passing(e) {
					continue // it failed, as it had to, but the last try met a pending error
				}
				if !errors.Is(m.Err, want) || want == nil && m.Err != nil {
					t.Fatalf("message %d of %d octets, segment %d: %v, want %v", i, len(m.Buf), m.Segment, m.Err, want)
				}
			}
			if len(log) > 0 {
				t.Fatalf("%d datagrams too many: %+v", len(log), log[0])
			}
			if failed != wantFailed {
				t.Fatalf("%d failed, want %d", failed, wantFailed)
			}
		}
		for _, d := range dests {
			if d.hold != 0 && refusal[d.remote.Addr()] == 0 {
				t.Fatalf("%s cuts runs, but is given none", d.remote)
			}
		}
	})
}

// A device that refuses is left alone for a while, then asked again, without a datagram lost; it is
// told once.
func TestGSORefused(t *testing.T) {
	for _, e := range []unix.Errno{unix.EIO, unix.EINVAL, unix.ENOPROTOOPT, unix.EOPNOTSUPP} {
		var told []string
		bad, good := host(1, false), host(2, false)
		refused := 0
		k := &fakeKernel{}
		k.refuseGSO = func(a netip.Addr) unix.Errno {
			if a == bad {
				refused++
				return e
			}
			return 0
		}
		x := k.sender(false, false, func(msg string, kv ...any) { told = append(told, msg) })
		toBad, toGood := dest(t, bad, 4500, netip.Addr{}), dest(t, good, 4500, netip.Addr{})
		const each = 10
		rounds := 2*gsoHold + 10
		buf := fill(each*50, 1, 1)
		for range rounds {
			mustSend(t, x, Message{Buf: buf, Segment: 50, Dest: toBad}, Message{Buf: buf, Segment: 50, Dest: toGood})
		}
		if len(k.sent) != 2*each*rounds {
			t.Errorf("%v: %d datagrams, want %d", e, len(k.sent), 2*each*rounds)
		}
		c := x.s.counters()
		if c.Fallbacks != 3 || c.OutRuns != uint64(rounds) || c.OutDatagrams != uint64(2*each*rounds) || c.OutBytes != uint64(2*len(buf)*rounds) {
			t.Errorf("%v: counters %+v", e, c)
		}
		if len(told) != 1 || !strings.Contains(told[0], "UDP_SEGMENT") {
			t.Errorf("%v: told %q, want it once", e, told)
		}
		tries := 1
		if passing(e) {
			tries = 1 + passingTries
		}
		if refused != 3*tries {
			t.Errorf("%v: %d runs tried, want %d", e, refused, 3*tries)
		}
	}
}

// A run is cut into parts of about the same length, the fewest that the kernel takes.
func TestParts(t *testing.T) {
	for _, c := range []struct {
		n, segment int
		v6         bool
		want       []int
	}{
		{64 * 100, 100, false, []int{6400}},
		{65 * 100, 100, false, []int{3300, 3200}},
		{64*100 + 1, 100, false, []int{3300, 3101}},
		{200 * 100, 100, false, []int{5000, 5000, 5000, 5000}},
		{46 * 1400, 1400, false, []int{64400}},
		{47 * 1400, 1400, false, []int{24 * 1400, 23 * 1400}},
		{65507, 1400, false, []int{65507}},
		{65508, 1400, false, []int{24 * 1400, 65508 - 24*1400}},
		{65527, 1400, true, []int{65527}},
		{65528, 1400, true, []int{24 * 1400, 65528 - 24*1400}},
		{100_000, 40_000, false, []int{40_000, 60_000}},
		{80_001, 40_000, false, []int{40_000, 40_001}},
		{100, 100, false, []int{100}},
		{101, 100, false, []int{101}},
		{0, 100, false, []int{0}},
	} {
		k := &fakeKernel{refuseGSO: func(netip.Addr) unix.Errno { return 0 }}
		x := k.sender(c.v6, false, nil)
		m := Message{Buf: make([]byte, c.n), Segment: c.segment, Dest: dest(t, host(1, c.v6), 1, netip.Addr{})}
		var got []int
		for o := 0; o < c.n || len(got) == 0; {
			size, _ := x.cut(&m, o, false)
			got = append(got, size)
			o += size
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d octets in segments of %d: parts %v, want %v", c.n, c.segment, got, c.want)
		}
	}
}

func TestNoSendmmsg(t *testing.T) {
	var told []string
	k := &fakeKernel{noMmsg: true, refuseGSO: func(netip.Addr) unix.Errno { return 0 }}
	x := k.sender(false, false, func(msg string, kv ...any) { told = append(told, msg) })
	to := dest(t, host(1, false), 1, netip.Addr{})
	for range 3 {
		mustSend(t, x, Message{Buf: []byte("a"), Dest: to}, Message{Buf: []byte("b"), Dest: to}, Message{Buf: []byte("c"), Dest: to})
	}
	var all string
	for _, h := range k.sent {
		all += h.payload
	}
	if all != "abcabcabc" || k.nCalls != 9 || len(told) != 1 {
		t.Errorf("sent %q in %d calls, told %q", all, k.nCalls, told)
	}
}

// Errors that are no ICMP message's come back as they are, once.
func TestSendErrors(t *testing.T) {
	for e, field := range map[unix.Errno]func(*Counters) uint64{
		unix.EPERM:        func(c *Counters) uint64 { return c.OutRefused },
		unix.ENETUNREACH:  func(c *Counters) uint64 { return c.OutUnreachable },
		unix.ENETDOWN:     func(c *Counters) uint64 { return c.OutUnreachable },
		unix.ENOBUFS:      func(c *Counters) uint64 { return c.OutNoBuffer },
		unix.EMSGSIZE:     func(c *Counters) uint64 { return c.OutTooBig },
		unix.ENOMEM:       func(c *Counters) uint64 { return c.OutOther },
		unix.EINVAL:       func(c *Counters) uint64 { return c.OutOther },
		unix.EIO:          func(c *Counters) uint64 { return c.OutOther },
		unix.ECONNREFUSED: func(c *Counters) uint64 { return c.OutRefused },
	} {
		k := &fakeKernel{refuseGSO: func(netip.Addr) unix.Errno { return 0 }}
		bad := host(1, false)
		k.fail = func(a netip.Addr, _ int) unix.Errno {
			if a == bad {
				return e
			}
			return 0
		}
		x := k.sender(false, false, nil)
		toBad, toGood := dest(t, bad, 1, netip.Addr{}), dest(t, host(2, false), 1, netip.Addr{})
		msgs := []Message{{Buf: []byte("a"), Dest: toGood}, {Buf: []byte("b"), Dest: toBad}, {Buf: []byte("cccc"), Segment: 1, Dest: toBad}, {Buf: []byte("d"), Dest: toGood}}
		if n := x.Send(msgs); n != 2 || msgs[0].Err != nil || !errors.Is(msgs[1].Err, e) || !errors.Is(msgs[2].Err, e) || msgs[3].Err != nil {
			t.Errorf("%v: %d failed: %v, %v, %v, %v", e, n, msgs[0].Err, msgs[1].Err, msgs[2].Err, msgs[3].Err)
		}
		if c := x.s.counters(); field(&c) != 2 || c.OutDatagrams != 2 || c.Fallbacks != 0 {
			t.Errorf("%v: counters %+v", e, c)
		}
	}
}

// A kernel of long ago: no steering, no UDP_GRO, no UDP_SEGMENT, no IP_RECVERR, no recvmmsg.
func TestOldKernel(t *testing.T) {
	both(t, func(t *testing.T, v6 bool) {
		s := newSpace(t)
		lo := netip.MustParseAddr("127.0.0.1")
		if v6 {
			lo = netip.IPv6Loopback()
		}
		old := linux
		old.filter = func(int, int, *unix.SockFprog) error { return unix.ENOPROTOOPT }
		old.getInt = func(int, int, int) (int, error) { return 0, unix.ENOPROTOOPT }
		old.setInt = func(fd, level, opt, value int) error {
			if level == unix.IPPROTO_UDP || level == unix.IPPROTO_IP && opt == unix.IP_RECVERR || level == unix.IPPROTO_IPV6 && opt == unix.IPV6_RECVERR ||
				level == unix.SOL_SOCKET && (opt == unix.SO_RCVBUFFORCE || opt == unix.SO_SNDBUFFORCE) {
				return unix.ENOPROTOOPT
			}
			return linux.setInt(fd, level, opt, value)
		}
		old.recvmmsg = func(uintptr, *mmsghdr, int) (int, unix.Errno) { return -1, unix.ENOSYS }
		old.sendmmsg = func(uintptr, *mmsghdr, int) (int, unix.Errno) { return -1, unix.ENOSYS }
		var (
			mu   sync.Mutex
			told []string // guarded by mu
			g    *Group
			wg   sync.WaitGroup
		)
		log := func(msg string, kv ...any) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, msg)
		}
		s.in(func() (err error) {
			g, err = open(Options{Addr: lo, Queues: 2, Steer: true, Log: log}, false, old)
			return err
		})
		defer g.Close()
		if got := g.Offloads(); got != (Offloads{}) {
			t.Errorf("offloads %+v", got)
		}
		x := g.Sockets()[0].NewSender()
		to := dest(t, lo, g.Port(), lo)
		msgs := []Message{{Buf: fill(5000, 1, 1), Segment: 1000, Dest: to}, {Buf: fill(10, 1, 2), Dest: to}}
		mustSend(t, x, msgs...)
		want := slices.Concat(cut(&msgs[0]), cut(&msgs[1]))
		// The kernel chooses a socket by addresses and ports: it is the same for all.
		all := make(chan got, 100)
		for _, s := range g.Sockets() {
			wg.Go(func() {
				b := NewBatch(8, 0)
				for err := s.Receive(b); !errors.Is(err, net.ErrClosed); err = s.Receive(b) {
					if err != nil {
						t.Error(err)
						return
					}
					for _, d := range single(b) {
						all <- d
					}
				}
			})
		}
		for i := range want {
			if got := next(t, "a datagram", all); got.payload != want[i] || got.run {
				t.Errorf("datagram %d: %d octets, want %d", i, len(got.payload), len(want[i]))
			}
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		for _, want := range []string{"does not glue", "does not report ICMP", "does not segment", "does not steer", "no recvmmsg", "no sendmmsg"} {
			if n := len(slices.DeleteFunc(slices.Clone(told), func(s string) bool { return !strings.Contains(s, want) })); n != 1 {
				t.Errorf("%q told %d times: %q", want, n, told)
			}
		}
	})
}

// What a raw socket should never deliver, and what is too long, is not handed on; the rest of the
// same call is.
func TestReceiveOddities(t *testing.T) {
	for _, native := range []bool{false, true} {
		good := []byte{0x46, 0xb9, 0, 28, 0, 0, 0, 0, 64, 50, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 1, 1, 1, 1, 'g', 'o', 'o', 'd'}
		packets := [][]byte{{0x45, 0, 0}, good, append([]byte{0x65}, good[1:]...), good[:27], append([]byte{0x44}, good[1:]...), append(slices.Clone(good), 1, 2)}
		g := &Group{native: native}
		g.mmsgIn.Store(true)
		pending := []unix.Errno{unix.ECONNREFUSED, unix.EINTR, unix.EHOSTUNREACH, unix.ENOMEM}
		round := 0
		g.sys.recvmmsg = func(_ uintptr, v *mmsghdr, n int) (int, unix.Errno) {
			if len(pending) > 0 {
				e := pending[0]
				pending = pending[1:]
				return -1, e
			}
			round++
			for i, p := range packets {
				m := &unsafe.Slice(v, n)[i]
				if m.hdr.Namelen != unix.SizeofSockaddrInet6 || m.hdr.Controllen != recvControl || m.hdr.Flags != 0 {
					t.Errorf("round %d, header %d was not reset: %+v", round, i, m.hdr)
				}
				copy(unsafe.Slice(m.hdr.Iov.Base, m.hdr.Iov.Len), p)
				m.len = uint32(len(p))
				m.hdr.Controllen, m.hdr.Namelen, m.hdr.Flags = 0, 16, 0
				if i == 5 && !native {
					m.hdr.Flags = unix.MSG_TRUNC
				}
			}
			return len(packets), 0
		}
		g.sys.recvmsg = func(uintptr, *unix.Msghdr, int) (int, unix.Errno) { return -1, unix.EAGAIN }
		g.sys.poll = func(int, int, int16, int) (int16, unix.Errno) {
			t.Error("waited, while there was something to receive")
			return unix.POLLIN, 0
		}
		s := fakeSocket(g)
		b := NewBatch(8, 24)
		for range 2 {
			if err := s.Receive(b); err != nil {
				t.Fatal(err)
			}
			var all []string
			for i := range b.Datagrams {
				d := &b.Datagrams[i]
				all = append(all, string(d.Payload()))
				if native && (d.TOS != 0xb9 || d.Local != netip.MustParseAddr("192.0.2.2") || d.Off != 24+24) {
					t.Errorf("%+v", *d)
				}
			}
			want := []string{"good", "good"}
			if !native {
				want = nil
				for _, p := range packets[:5] {
					want = append(want, string(p))
				}
			}
			if !slices.Equal(all, want) {
				t.Errorf("native %t: %q, want %q", native, all, want)
			}
		}
		c := s.counters()
		if native && c.InMalformed != 8 || !native && c.InTruncated != 2 || c.InErrors != 3 {
			t.Errorf("native %t: %+v", native, c)
		}
		g.sys.recvmmsg = func(uintptr, *mmsghdr, int) (int, unix.Errno) { return -1, unix.EBADF }
		if err := s.Receive(b); !errors.Is(err, unix.EBADF) {
			t.Errorf("%v, want EBADF", err)
		}
	}
}

// Few messages are asked for when they are large, many when they are small.
func TestBatchAdapts(t *testing.T) {
	b := NewBatch(64, 0)
	for _, c := range []struct{ n, size, want int }{
		{1, 1400, 64}, {4, 4 * 65000, 4}, {2, 2 * 65507, 4}, {4, 4 * 1400, 64}, {3, 3 * 20000, 13}, {5, 0, 64}, {1, 1 << 20, 2},
	} {
		if b.adapt(c.n, c.size); b.vlen != c.want {
			t.Errorf("after %d messages of %d octets: %d are asked for, want %d", c.n, c.size, b.vlen, c.want)
		}
	}
	if b := NewBatch(0, -1); len(b.all) != 1 {
		t.Errorf("%d messages, want 1", len(b.all))
	}
	for i := range b.all {
		if p := b.message(i); len(p) < maxMessage+Tailroom || uintptr(unsafe.Pointer(b.iovs[i].Base)) != uintptr(unsafe.Pointer(&p[0])) {
			t.Fatalf("message %d: %d octets", i, len(p))
		}
	}
}
