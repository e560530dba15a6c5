package tun

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// burstQueue is a queue whose kernel hands over what lies in raws, one after the other.
func burstQueue(raws *[][]byte) *queue {
	q := &queue{conn: &readyKernel{}}
	q.read.burst.init(q)
	q.read.burst.sys = func(_ uintptr, b []byte) (int, unix.Errno) {
		if len(*raws) == 0 {
			return 0, unix.EAGAIN
		}
		raw := (*raws)[0]
		*raws = (*raws)[1:]
		return copy(b, raw), 0
	}
	return q
}

// readyKernel calls once, whatever comes back.
type readyKernel struct{ fakeKernel }

func (*readyKernel) Read(f func(uintptr) bool) error {
	f(0)
	return nil
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

// cutBursts reads everything with spacing as it is drawn, and returns the packets.
func burstProperty(t *rapid.T) {
	var raws, want [][]byte
	for range rapid.IntRange(1, 8).Draw(t, "packets") {
		d := drawDesc(t, rapid.SampledFrom([]int{1400, 65000}).Draw(t, "max"))
		gso := rapid.OneOf(rapid.IntRange(1, 65000), rapid.SampledFrom([]int{100, 1000}), rapid.Just(len(d.data))).Draw(t, "gso")
		gso = max(gso, len(d.data)/300+1)
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
	q := burstQueue(&raws)
	var got [][]byte
	var b Burst
	s := drawSpacing(t)
	arena := make([]byte, 160<<10+1000)
	for {
		if rapid.Bool().Draw(t, "other guess") {
			s = drawSpacing(t)
		}
		buf := arena[rapid.IntRange(0, 1000).Draw(t, "base"):]
		ok, err := q.ReadBurst(&b, buf, s, rapid.Bool().Draw(t, "wait"))
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		s2 := s
		if rapid.Bool().Draw(t, "other spacing") {
			s2 = drawSpacing(t)
		}
		first := bytes.Clone(b.First)
		if err := b.Cut(s2); err != nil {
			t.Fatal(err)
		}
		for i := range b.Count {
			n := b.Full
			if i == b.Count-1 {
				n = b.Last
			}
			got = append(got, bytes.Clone(buf[s2.Front+i*s2.Stride(b.Full):][:n]))
		}
		sameButSums(t, first, got[len(got)-b.Count])
	}
	compare(t, got, want)
	if c := q.Counters(); c.ReadPackets != uint64(len(want)) {
		t.Fatalf("counters %+v, %d packets", c, len(want))
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
