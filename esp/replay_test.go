package esp

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// slowWindow is the window as RFC 4303 section 3.4.3 describes it, with nothing clever.
type slowWindow struct {
	size, top uint64
	seen      map[uint64]bool
}

func (w *slowWindow) accept(seq uint64) bool {
	if seq == 0 || w.seen[seq] || seq+w.size <= w.top {
		return false
	}
	w.seen[seq] = true
	w.top = max(w.top, seq)
	return true
}

// reconstruct tries all subspaces near the top and takes the one in the window or next ahead.
func (w *slowWindow) reconstruct(low uint32) uint64 {
	bottom := uint64(1)
	if w.top >= w.size {
		bottom = w.top - w.size + 1
	}
	seq := bottom&^0xffffffff | uint64(low)
	if seq < bottom {
		seq += 1 << 32
	}
	return seq
}

func TestReplayWindowModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{1024, 1088, 2048, 4096, 65536}).Draw(t, "size")
		var w replayWindow
		w.init(size)
		model := slowWindow{size: uint64(size), seen: map[uint64]bool{}}
		base := rapid.SampledFrom([]uint64{0, 1000, 1 << 31, 1<<32 - 100, 1<<40 - 5000}).Draw(t, "base")
		if base > 0 {
			w.update(base)
			model.accept(base)
		}
		step := rapid.Custom(func(t *rapid.T) int64 {
			switch rapid.IntRange(0, 4).Draw(t, "kind") {
			case 0:
				return rapid.Int64Range(-3, 3).Draw(t, "near")
			case 1:
				return rapid.Int64Range(-int64(size)-130, 130).Draw(t, "window")
			case 2:
				return -int64(size) + rapid.Int64Range(-2, 2).Draw(t, "edge")
			case 3:
				return rapid.Int64Range(0, 3*int64(size)).Draw(t, "ahead")
			default:
				return rapid.Int64Range(0, 1<<34).Draw(t, "far")
			}
		})
		for _, d := range rapid.SliceOfN(step, 1, 200).Draw(t, "steps") {
			seq := model.top + uint64(d)
			if d < 0 && uint64(-d) > model.top {
				seq = 0
			}
			check := w.check(seq)
			got, want := w.update(seq), model.accept(seq)
			if got != want || check != want {
				t.Fatalf("window %d, top %d, sequence number %d: check %t, update %t, want %t", size, model.top, seq, check, got, want)
			}
			if w.top.Load() != model.top {
				t.Fatalf("top %d, want %d", w.top.Load(), model.top)
			}
		}
	})
}

func TestReconstructModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{1024, 4096, 65536}).Draw(t, "size")
		var w replayWindow
		w.init(size)
		top := rapid.OneOf(
			rapid.Uint64Range(0, 3*65536),
			rapid.Uint64Range(1<<32-3*65536, 1<<32+3*65536),
			rapid.Uint64Range(0, 1<<63),
		).Draw(t, "top")
		w.top.Store(top)
		model := slowWindow{size: uint64(size), top: top}
		// All that lies in the window or not more than 2^32 - W ahead is found.
		seq := top + rapid.Uint64Range(0, 1<<32-65536).Draw(t, "ahead")
		if rapid.Bool().Draw(t, "behind") {
			seq = top - min(top, rapid.Uint64Range(0, uint64(size)-1).Draw(t, "back"))
		}
		if seq == 0 {
			return
		}
		if got, want := w.reconstruct(uint32(seq)), model.reconstruct(uint32(seq)); got != seq || want != seq {
			t.Fatalf("window %d, top %#x, sent %#x: got %#x, model %#x", size, top, seq, got, want)
		}
	})
}

// The sequence number runs over 2^32 with ESN, packets in any order within the window.
func TestESNCrossesSubspace(t *testing.T) {
	for i, s := range suites {
		o, in := pair(t, params(i, true))
		o.seq.Store(1<<32 - 50)
		in.replay.update(1<<32 - 50)
		var pkts [][]byte
		for range 100 {
			pkts = append(pkts, seal(t, o, ipv4(40), NextIPv4))
		}
		for k := range pkts { // every second forwards, then the others backwards
			j := 2 * k
			if j >= len(pkts) {
				j = 2*len(pkts) - 2*k - 1
			}
			if _, _, err := open(in, pkts[j]); err != nil {
				t.Fatalf("%s: packet %d: %v", s.name, j, err)
			}
		}
		for j := range pkts {
			if _, _, err := open(in, pkts[j]); !errors.Is(err, ErrReplay) {
				t.Fatalf("%s: packet %d again: %v", s.name, j, err)
			}
		}
		if top := in.Counters().LastSeq; top != 1<<32+50 {
			t.Fatalf("%s: top %d", s.name, top)
		}
	}
}

// Reordering up to the window loses nothing; beyond it the packet is refused.
func TestReorderingUpToTheWindow(t *testing.T) {
	p := params(0, false)
	p.Replay = 1024
	o, in := pair(t, p)
	first := seal(t, o, ipv4(40), NextIPv4)
	second := seal(t, o, ipv4(40), NextIPv4)
	var last []byte
	for range 1023 {
		last = seal(t, o, ipv4(40), NextIPv4)
	}
	if _, _, err := open(in, last); err != nil { // 1025
		t.Fatal(err)
	}
	if _, _, err := open(in, second); err != nil { // 2: the window is 2 … 1025
		t.Fatalf("1023 behind: %v", err)
	}
	if _, _, err := open(in, first); !errors.Is(err, ErrReplay) {
		t.Fatalf("1024 behind: %v", err)
	}
}

func TestSealOpenProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		i := rapid.IntRange(0, len(suites)-1).Draw(t, "suite")
		esn := rapid.Bool().Draw(t, "esn")
		o, in := pair(t, params(i, esn))
		if esn {
			at := rapid.SampledFrom([]uint64{0, 1<<32 - 3, 1 << 40}).Draw(t, "seq")
			o.seq.Store(at)
			in.replay.top.Store(at)
		}
		for range rapid.IntRange(1, 6).Draw(t, "packets") {
			pkt, next := ipv4(rapid.IntRange(20, 1600).Draw(t, "n")), NextIPv4
			if rapid.Bool().Draw(t, "ipv6") {
				pkt, next = ipv6(rapid.IntRange(40, 1600).Draw(t, "n")), NextIPv6
			}
			// Anything lies around the packet and must stay as it is.
			before, after := rapid.IntRange(0, 20).Draw(t, "before"), rapid.IntRange(0, 20).Draw(t, "after")
			off := before + o.Headroom()
			buf := bytes.Repeat([]byte{0x5a}, off+len(pkt)+o.Tailroom()+after)
			copy(buf[off:], pkt)
			start, end, err := o.Seal(buf, off, len(pkt), next)
			if err != nil {
				t.Fatal(err)
			}
			for j, b := range buf {
				if (j < start || j >= off+len(pkt)+o.Tailroom()) && b != 0x5a {
					t.Fatalf("octet %d outside the packet changed", j)
				}
			}
			if bytes.Contains(buf[start:end], pkt[12:20]) {
				t.Fatal("addresses shine through")
			}
			if rapid.Bool().Draw(t, "damage") {
				bad := bytes.Clone(buf)
				bit := rapid.IntRange(start*8, end*8-1).Draw(t, "bit")
				bad[bit/8] ^= 1 << (bit % 8)
				if _, _, _, err := in.Open(bad, start, end-start); !errors.Is(err, ErrAuth) && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrReplay) {
					t.Fatalf("bit %d: %v", bit, err)
				}
			}
			if rapid.Bool().Draw(t, "cut") {
				if n := rapid.IntRange(0, end-start-1).Draw(t, "n"); true {
					bad := bytes.Clone(buf)
					if _, _, _, err := in.Open(bad, start, n); err == nil {
						t.Fatalf("first %d octets opened", n)
					}
				}
			}
			s, e, gotNext, err := in.Open(buf, start, end-start)
			if err != nil || gotNext != next || !bytes.Equal(buf[s:e], pkt) {
				t.Fatalf("%s: open: %v, next %d", suites[i].name, err, gotNext)
			}
		}
	})
}

func TestDifferentSAsDoNotOpen(t *testing.T) {
	for i := range suites {
		o, _ := pair(t, params(i, false))
		p := params(i, false)
		p.Key[0] ^= 1
		_, otherKey := pair(t, p)
		pkt := seal(t, o, ipv4(40), NextIPv4)
		if p.Encr != EncrAESCBC {
			if _, _, err := open(otherKey, pkt); !errors.Is(err, ErrAuth) {
				t.Errorf("%s: other key: %v", suites[i].name, err)
			}
			p = params(i, false)
			p.Key[len(p.Key)-1] ^= 1
		} else {
			p = params(i, false)
			p.IntegKey[0] ^= 1
		}
		_, otherSalt := pair(t, p)
		if _, _, err := open(otherSalt, pkt); !errors.Is(err, ErrAuth) {
			t.Errorf("%s: other salt or MAC key: %v", suites[i].name, err)
		}
		_, esn := pair(t, params(i, true))
		if _, _, err := open(esn, pkt); !errors.Is(err, ErrAuth) {
			t.Errorf("%s: ESN on one side only: %v", suites[i].name, err)
		}
		p = params(i, false)
		p.SPI++
		_, otherSPI := pair(t, p)
		if _, _, err := open(otherSPI, pkt); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: other SPI: %v", suites[i].name, err)
		}
	}
}
