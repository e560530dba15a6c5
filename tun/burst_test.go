package tun

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// burstQueue is a queue whose kernel hands over what lies in raws, one after the other. Who waits
// when that is used up finds the queue closed.
func burstQueue(raws *[][]byte) *queue {
	q := &queue{}
	q.read.sys = func(_ uintptr, b []byte) (int, unix.Errno) {
		if len(*raws) == 0 {
			return 0, unix.EAGAIN
		}
		raw := (*raws)[0]
		*raws = (*raws)[1:]
		return copy(b, raw), 0
	}
	q.read.wait.closed = &q.closed
	q.read.wait.sys = func([]unix.PollFd, *unix.Timespec) unix.Errno {
		q.closed.Store(true)
		return 0
	}
	return q
}

func drawSpacing(t *rapid.T) Spacing {
	return Spacing{
		Front: rapid.IntRange(0, 60).Draw(t, "front"), Back: rapid.IntRange(0, 50).Draw(t, "back"),
		Align: rapid.SampledFrom([]int{0, 1, 4, 16, 3}).Draw(t, "align"), Trailer: rapid.IntRange(0, 2).Draw(t, "trailer"),
	}
}

func TestStride(t *testing.T) {
	for _, c := range []struct {
		s    Spacing
		n    int
		want int
	}{
		{Spacing{}, 100, 100},
		{Spacing{Front: 16, Back: 18, Align: 4, Trailer: 2}, 1402, 16 + 1402 + 18},
		{Spacing{Front: 16, Back: 18, Align: 4, Trailer: 2}, 1400, 16 + 1400 + 2 + 18},
		{Spacing{Front: 24, Back: 18, Align: 16, Trailer: 2}, 1399, 24 + 1399 + 7 + 18},
		{Spacing{Align: 3, Trailer: 1}, 4, 5},
		{Spacing{Align: 3, Trailer: 1}, 5, 5},
	} {
		if got := c.s.Stride(c.n); got != c.want {
			t.Errorf("%+v, %d octets: %d, want %d", c.s, c.n, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s, n := drawSpacing(t), rapid.IntRange(0, 66000).Draw(t, "n")
		pad := s.Stride(n) - n - s.Front - s.Back
		if pad < 0 || pad > 0 && pad >= s.Align || s.Align > 0 && (n+pad+s.Trailer)%s.Align != 0 {
			t.Fatalf("%+v, %d octets: padding of %d", s, n, pad)
		}
	})
}

// drawRaw draws what the kernel hands over, and the packets that it means.
func drawRaw(t *rapid.T) (raws, want [][]byte) {
	for range rapid.IntRange(1, 8).Draw(t, "packets") {
		d := drawDesc(t, rapid.SampledFrom([]int{1400, 65000}).Draw(t, "max"))
		gso := rapid.OneOf(rapid.IntRange(1, 65000), rapid.SampledFrom([]int{20, 100, 1000}), rapid.Just(len(d.data))).Draw(t, "gso")
		gso = max(gso, len(d.data)/1000+1)
		for range rapid.IntRange(1, 4).Draw(t, "times") {
			d.seq++
			if rapid.Bool().Draw(t, "ordinary") {
				d.data = d.data[:min(len(d.data), 1400)]
				raw := make([]byte, virtioHeaderLen)
				h, p := d.super(0)
				h.gsoType, h.gsoSize = gsoNone, 0
				if rapid.Bool().Draw(t, "complete") {
					h, p = virtioHeader{}, d.build(false)
				}
				h.encode(raw)
				raws, want = append(raws, append(raw, p...)), append(want, d.build(false))
				continue
			}
			raws, want = append(raws, superPacket(d, gso)), append(want, d.segments(gso)...)
		}
		if rapid.IntRange(0, 10).Draw(t, "garbage") == 0 {
			raws = append(raws, make([]byte, rapid.IntRange(0, 40).Draw(t, "n")))
		}
	}
	return raws, want
}

// cutAll reads everything and cuts it with spacings as they are drawn; use is given the packets of
// each burst.
func cutAll(t *rapid.T, q *queue, use func(pkts []Packet)) {
	t.Helper()
	s := drawSpacing(t)
	arena := make([]byte, 160<<10+1000)
	var b Burst
	for {
		if rapid.Bool().Draw(t, "other guess") {
			s = drawSpacing(t)
		}
		buf := arena[rapid.IntRange(0, 1000).Draw(t, "base"):]
		wait := rapid.Bool().Draw(t, "wait")
		ok, err := q.ReadBurst(&b, buf, s, wait)
		if wait && errors.Is(err, ErrClosed) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return
		}
		s2 := s
		if rapid.Bool().Draw(t, "other spacing") {
			s2 = drawSpacing(t)
		}
		first := bytes.Clone(b.First)
		if err := b.Cut(s2); err != nil {
			t.Fatal(err)
		}
		var pkts []Packet
		for i := range b.Count {
			n := b.Full
			if i == b.Count-1 {
				n = b.Last
			}
			pkts = append(pkts, Packet{Buf: buf, Off: s2.Front + i*s2.Stride(b.Full), Len: n})
		}
		sameButSums(t, first, buf[pkts[0].Off:][:pkts[0].Len])
		use(pkts)
	}
}

func burstProperty(t *rapid.T) {
	raws, want := drawRaw(t)
	q := burstQueue(&raws)
	var got [][]byte
	cutAll(t, q, func(pkts []Packet) {
		for _, p := range pkts {
			got = append(got, bytes.Clone(p.Buf[p.Off:][:p.Len]))
		}
	})
	compare(t, got, want)
	size := 0
	for _, p := range want {
		size += len(p)
	}
	if c := q.Counters(); c.ReadPackets != uint64(len(want)) || c.ReadBytes != uint64(size) {
		t.Fatalf("counters %+v, %d packets of %d octets", c, len(want), size)
	}
}

// sameButSums checks that First was what the first packet became, but for what it may differ in.
func sameButSums(t fataler, first, p []byte) {
	t.Helper()
	a, okA := parse(first)
	b, okB := parse(p)
	a.flags, b.flags = a.flags&^(tcpFIN|tcpPSH), b.flags&^(tcpFIN|tcpPSH)
	if okA != okB || okA && !bytes.Equal(a.build(false), b.build(false)) {
		t.Fatalf("First was\n% x, the packet is\n% x", first[:min(len(first), 80)], p[:min(len(p), 80)])
	}
}

func TestBurstModel(t *testing.T) { rapid.Check(t, burstProperty) }

// FuzzBurst: any packets, read with any guess and cut with any spacing, are those of the model.
func FuzzBurst(f *testing.F) { f.Fuzz(rapid.MakeFuzz(burstProperty)) }

// streamProperty is the way through a tunnel without the tunnel: any stream as one kernel hands it
// over, in super-packets and packets of several flows, comes out of the other kernel as the same
// stream, in the order that is allowed.
func streamProperty(t *rapid.T) {
	var raws, want [][]byte
	flows := make([]desc, rapid.IntRange(1, 10).Draw(t, "flows"))
	for i := range flows {
		f := drawDesc(t, 1)
		f.sp, f.flags, f.ttl = uint16(i), tcpACK, 64
		if rapid.Bool().Draw(t, "ordinary headers") {
			f.ipOpt = nil
		}
		flows[i] = f
	}
	for range rapid.IntRange(1, 20).Draw(t, "pieces") {
		f := &flows[rapid.IntRange(0, len(flows)-1).Draw(t, "flow")]
		size := rapid.SampledFrom([]int{1, 100, 1000, 1400}).Draw(t, "size")
		count := rapid.SampledFrom([]int{1, 2, 3, 20, 45, 64}).Draw(t, "count")
		p := *f
		p.data = bytes.Repeat([]byte{byte(len(want))}, min(count*size-rapid.IntRange(0, size-1).Draw(t, "less"), 65000))
		if p.proto == protoTCP && rapid.Bool().Draw(t, "pushed") {
			p.flags |= rapid.SampledFrom([]uint8{tcpPSH, tcpPSH, tcpFIN, tcpCWR}).Draw(t, "flags")
		}
		segments := p.segments(size)
		if rapid.Bool().Draw(t, "super-packet") {
			raws = append(raws, superPacket(p, size))
		} else {
			for _, s := range segments {
				raws = append(raws, append(make([]byte, virtioHeaderLen), s...))
			}
		}
		want = append(want, segments...)
		f.seq += uint32(len(p.data))
		f.id += uint16(len(segments))
	}
	q := burstQueue(&raws)
	out, k := newFakeQueue(Offloads{TCP: rapid.Bool().Draw(t, "tcp offload"), UDP: rapid.Bool().Draw(t, "udp offload")})
	var waiting []Packet // copies, as another host has them
	flush := func() {
		if n, err := out.WriteBatch(waiting); n != len(waiting) || err != nil {
			t.Fatalf("%d of %d written: %v", n, len(waiting), err)
		}
		waiting = nil
	}
	cutAll(t, q, func(pkts []Packet) {
		for _, p := range pkts {
			waiting = append(waiting, batch([][]byte{p.Buf[p.Off:][:p.Len]})...)
		}
		if rapid.Bool().Draw(t, "write") {
			flush()
		}
	})
	flush()
	var got [][]byte
	for _, b := range k.written {
		pkts, err := kernel(b)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, pkts...)
	}
	sameStream(t, want, got)
}

func TestStreamModel(t *testing.T) { rapid.Check(t, streamProperty) }

// FuzzStream: any stream of packets is the same stream after being cut and glued.
func FuzzStream(f *testing.F) { f.Fuzz(rapid.MakeFuzz(streamProperty)) }

// FuzzBurstRaw: any header before any packet, with any spacing. Nothing panics or is written where
// it should not, and what comes out is what the segmenter makes of it.
func FuzzBurstRaw(f *testing.F) {
	for _, d := range []desc{
		{proto: protoTCP, data: make([]byte, 300), flags: 0xff, opt: make([]byte, 12)},
		{proto: protoTCP, v6: true, data: make([]byte, 300), flags: 0x18},
		{proto: protoUDP, data: make([]byte, 300), ipOpt: []byte{1, 1, 1, 1}},
		{proto: protoUDP, v6: true, data: make([]byte, 300), ipOpt: []byte{17, 0, 1, 4, 0, 0, 0, 0}},
		{proto: protoTCP, data: make([]byte, 3000), flags: tcpACK | tcpFIN | tcpPSH | tcpCWR},
	} {
		f.Add(superPacket(d, 100), uint8(24), uint8(0), uint8(18), uint8(4))
		f.Add(superPacket(d, 1), uint8(0), uint8(60), uint8(0), uint8(0))
		f.Add(append(make([]byte, virtioHeaderLen), d.build(false)...), uint8(16), uint8(16), uint8(18), uint8(16))
	}
	f.Fuzz(func(t *testing.T, raw []byte, front, front2, back, align uint8) {
		guess := Spacing{Front: int(front), Back: int(back), Align: int(align), Trailer: 2}
		s := guess
		s.Front = int(front2)
		const guard = 100 // on both sides, not to be touched
		n := int(max(front, front2)) + BurstRoom
		buf := bytes.Repeat([]byte{0xa5}, guard+n+guard)
		room := buf[guard:][:n]
		var want [][]byte
		var seg segmenter
		if len(raw) >= virtioHeaderLen {
			var h virtioHeader
			h.decode(raw)
			pkt := bytes.Clone(raw[virtioHeaderLen:])
			if len(pkt) >= maxRead || seg.begin(&h, pkt) != nil {
				seg.pkt = nil
			}
			for !seg.done() {
				dst := make([]byte, len(pkt))
				n, err := seg.next(dst)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, dst[:n])
			}
		}
		raws := [][]byte{raw}
		q := burstQueue(&raws)
		var got [][]byte
		for {
			var b Burst
			ok, err := q.ReadBurst(&b, room, guess, false)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			if err := b.Cut(s); err != nil {
				if b.Full+MaxOverhead >= s.Stride(b.Full) {
					t.Fatalf("%d packets of %d octets with %+v: %v", b.Count, b.Full, s, err)
				}
				return
			}
			for i := range b.Count {
				n := b.Full
				if i == b.Count-1 {
					n = b.Last
				}
				got = append(got, bytes.Clone(room[s.Front+i*s.Stride(b.Full):][:n]))
			}
		}
		compare(t, got, want)
		if bytes.Count(buf[:guard], []byte{0xa5})+bytes.Count(buf[guard+n:], []byte{0xa5}) != 2*guard {
			t.Fatal("written beyond the buffer")
		}
	})
}

// A super-packet of more packets than there is room for comes as several bursts.
func TestBurstInTurn(t *testing.T) {
	for _, d := range []desc{
		{proto: protoTCP, flags: tcpACK | tcpPSH | tcpFIN | tcpCWR, seq: 1<<32 - 100, id: 0xfff0, data: make([]byte, 1500)},
		{proto: protoTCP, v6: true, flags: tcpACK, data: make([]byte, 1500)},
		{proto: protoUDP, data: make([]byte, 1500), ipOpt: []byte{1, 1, 1, 1}},
	} {
		for i := range d.data {
			d.data[i] = byte(i * 7)
		}
		raws := [][]byte{superPacket(d, 1)}
		q := burstQueue(&raws)
		s := Spacing{Front: 24, Back: 34, Align: 16, Trailer: 2}
		buf := make([]byte, s.Front+BurstRoom)
		var got [][]byte
		bursts := 0
		var b Burst
		for ; ; bursts++ {
			ok, err := q.ReadBurst(&b, buf, s, false)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			if err := b.Cut(s); err != nil {
				t.Fatal(err)
			}
			for i := range b.Count {
				got = append(got, bytes.Clone(buf[s.Front+i*s.Stride(b.Full):][:b.Full]))
			}
		}
		compare(t, got, d.segments(1))
		if c := q.Counters(); bursts < 2 || c.ReadCalls != 1 || c.ReadPackets != 1500 {
			t.Fatalf("%d bursts, counters %+v", bursts, c)
		}
	}
}

// Also in a super-packet a UDP checksum that comes out as zero is sent as all ones (RFC 768).
func TestBurstZeroUDPChecksum(t *testing.T) {
	d := desc{proto: protoUDP, sp: 1, dp: 2, data: make([]byte, 12)}
	one := d
	one.data = make([]byte, 4)
	sum := ^slowSum(one.pseudo(12), one.l4(0))
	for i := range 3 {
		d.data[4*i], d.data[4*i+1] = byte(sum>>8), byte(sum)
	}
	raws := [][]byte{superPacket(d, 4)}
	q := burstQueue(&raws)
	var b Burst
	s := Spacing{Front: 24}
	buf := make([]byte, s.Front+BurstRoom)
	if ok, err := q.ReadBurst(&b, buf, s, false); !ok || err != nil || b.Count != 3 {
		t.Fatal(ok, err, b.Count)
	}
	if err := b.Cut(s); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if p := buf[s.Front+i*s.Stride(b.Full):][:b.Full]; p[26] != 0xff || p[27] != 0xff {
			t.Errorf("packet %d: checksum % x", i, p[26:28])
		}
	}
}

func TestBurstErrors(t *testing.T) {
	d := desc{proto: protoTCP, flags: tcpACK, data: make([]byte, 30000)}
	raws := [][]byte{superPacket(d, 1000)}
	q := burstQueue(&raws)
	s := Spacing{Front: 16}
	buf := make([]byte, s.Front+BurstRoom)
	var b Burst
	if err := b.Cut(s); !errors.Is(err, ErrBufferSize) {
		t.Errorf("nothing to cut: %v", err)
	}
	for _, c := range []struct {
		buf []byte
		s   Spacing
	}{{nil, s}, {buf[1:], s}, {buf, Spacing{Front: 17}}, {buf, Spacing{Front: -1}}, {buf, Spacing{Back: -1}}, {buf, Spacing{Align: -1}}, {buf, Spacing{Trailer: -1}}} {
		if ok, err := q.ReadBurst(&b, c.buf, c.s, true); ok || !errors.Is(err, ErrBufferSize) {
			t.Errorf("%d octets, %+v: %t, %v", len(c.buf), c.s, ok, err)
		}
		if _, err := b.Load(raws[0], c.buf, c.s); !errors.Is(err, ErrBufferSize) {
			t.Errorf("Load, %d octets, %+v: %v", len(c.buf), c.s, err)
		}
	}
	if ok, err := q.ReadBurst(&b, buf, s, true); !ok || err != nil {
		t.Fatal(ok, err)
	}
	for _, s := range []Spacing{{Front: 3000}, {Back: 3000}, {Back: -1}} {
		if err := b.Cut(s); !errors.Is(err, ErrBufferSize) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if err := b.Cut(s); err != nil {
		t.Fatal(err)
	}
	var got [][]byte
	for i := range b.Count {
		got = append(got, buf[s.Front+i*s.Stride(b.Full):][:b.Full])
	}
	compare(t, got, d.segments(1000))
	if err := b.Cut(s); !errors.Is(err, ErrBufferSize) {
		t.Errorf("cut twice: %v", err)
	}
	for _, raw := range [][]byte{nil, make([]byte, 9), make([]byte, 40), make([]byte, 70000)} {
		if rest, err := b.Load(raw, buf, s); err == nil || rest != nil {
			t.Errorf("%d octets that are no packet: no error", len(raw))
		}
	}
}

// What is dropped leaves nothing behind, and what makes no sense is skipped and counted.
func TestBurstDropped(t *testing.T) {
	d := desc{proto: protoUDP, data: make([]byte, 5000)}
	long := append(make([]byte, virtioHeaderLen), make([]byte, maxRead)...)
	long[virtioHeaderLen] = 0x60
	raws := [][]byte{superPacket(d, 1000), {1}, long, superPacket(d, 100), make([]byte, 60), superPacket(d, 1200)}
	q := burstQueue(&raws)
	s := Spacing{Front: 24, Back: 18, Align: 4, Trailer: 2}
	buf := make([]byte, 160<<10)
	var b Burst
	for i, want := range []int{5, 50, 5} {
		if ok, err := q.ReadBurst(&b, buf, s, true); !ok || err != nil || b.Count != want {
			t.Fatalf("%d: %t, %v, %d packets", i, ok, err, b.Count)
		}
	}
	if err := b.Cut(s); err != nil {
		t.Fatal(err)
	}
	for i, want := range d.segments(1200) {
		if got := buf[s.Front+i*s.Stride(b.Full):][:len(want)]; !bytes.Equal(got, want) {
			t.Fatalf("packet %d: % x, want % x", i, got, want)
		}
	}
	if c := q.Counters(); c.Malformed != 3 || c.ReadCalls != 3 || c.ReadPackets != 60 {
		t.Fatalf("counters %+v", c)
	}
}

// Looking whether there is something costs one system call and no memory, and so does reading it.
func TestBurstAllocations(t *testing.T) {
	q, peer := socketQueue(t)
	d := desc{proto: protoTCP, flags: tcpACK, data: make([]byte, 20*1000)}
	in := superPacket(d, 1000)
	s := Spacing{Front: 24, Back: 18, Align: 4, Trailer: 2}
	buf := make([]byte, s.Front+BurstRoom)
	calls := 0
	sys := q.read.sys
	q.read.sys = func(fd uintptr, b []byte) (int, unix.Errno) { calls++; return sys(fd, b) }
	var b Burst
	const runs = 50
	if n := testing.AllocsPerRun(runs, func() {
		if ok, err := q.ReadBurst(&b, buf, s, false); ok || err != nil {
			t.Fatal(ok, err)
		}
		if _, err := unix.Write(peer, in); err != nil {
			t.Fatal(err)
		}
		if ok, err := q.ReadBurst(&b, buf, s, true); !ok || err != nil || b.Count != 20 {
			t.Fatal(ok, err, b.Count)
		}
		if err := b.Cut(s); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if calls != 2*(runs+1) { // AllocsPerRun runs once more to warm up
		t.Errorf("%d system calls, want %d", calls, 2*(runs+1))
	}
}

// BenchmarkCut cuts a super-packet that lies in the cache.
func BenchmarkCut(b *testing.B) {
	for _, c := range []struct {
		name        string
		d           desc
		size, count int
	}{
		{"tcp4/46x1368", desc{proto: protoTCP, flags: tcpACK, opt: make([]byte, 12)}, 1368, 46},
		{"tcp6/46x1348", desc{v6: true, proto: protoTCP, flags: tcpACK, opt: make([]byte, 12)}, 1348, 46},
		{"udp4/45x1392", desc{proto: protoUDP}, 1392, 45},
		{"udp4/64x200", desc{proto: protoUDP}, 200, 64},
	} {
		b.Run(c.name, func(b *testing.B) {
			c.d.data = make([]byte, c.size*c.count)
			s := Spacing{Front: 24, Back: 18, Align: 4, Trailer: 2}
			buf := make([]byte, 160<<10)
			var burst Burst
			if _, err := burst.Load(superPacket(c.d, c.size), buf, s); err != nil {
				b.Fatal(err)
			}
			saved := burst // what is cut again is not what was loaded, but as much work
			b.SetBytes(int64(len(c.d.data)))
			b.ReportAllocs()
			for b.Loop() {
				burst = saved
				if err := burst.Cut(s); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*c.count), "ns/packet")
		})
	}
}
