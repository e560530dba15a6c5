package pathmtu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"
)

// udp4 makes an IPv4 packet with a payload of n octets that tell their places, and options.
func udp4(t testing.TB, n int, options ...byte) []byte {
	t.Helper()
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	pkt := serialize(t, ip4(layers.IPProtocolUDP), gopacket.Payload(pattern(n)))
	pkt = slices.Concat(pkt[:20], options, pkt[20:])
	pkt[0] = 0x40 | byte(5+len(options)/4)
	pkt[1] = 0x2e // DSCP and ECN are copied
	binary.BigEndian.PutUint16(pkt[2:], uint16(len(pkt)))
	binary.BigEndian.PutUint16(pkt[4:], 0xbeef)
	return fixIP(pkt)
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

func fixIP(pkt []byte) []byte {
	hl := int(pkt[0]&15) * 4
	pkt[10], pkt[11] = 0, 0
	binary.BigEndian.PutUint16(pkt[10:], ^slowSum(pkt[:hl]))
	return pkt
}

func setFrag(pkt []byte, v uint16) []byte {
	binary.BigEndian.PutUint16(pkt[6:], v)
	return fixIP(pkt)
}

// pieces returns all fragments of pkt, each in a buffer of exactly its size.
func pieces(t testing.TB, pkt []byte, mtu int) [][]byte {
	t.Helper()
	f, err := FragmentIPv4(pkt, mtu)
	if err != nil {
		t.Fatalf("MTU %d: %v", mtu, err)
	}
	var out [][]byte
	for i := range f.Count() {
		b := make([]byte, f.Len(i))
		if n := f.Put(b, i); n != len(b) {
			t.Fatalf("fragment %d: %d octets, said %d", i, n, len(b))
		}
		if f.Put(b[:len(b)-1], i) != 0 {
			t.Fatalf("fragment %d: fits what is too short", i)
		}
		out = append(out, b)
	}
	return out
}

// reassemble is RFC 791, section 3.2, octet by octet: slow and obviously right. It returns the
// packet, or nil when something is missing, twice there and different, or unsound.
func reassemble(t testing.TB, frags [][]byte) []byte {
	t.Helper()
	data := map[int]byte{}
	var first []byte
	end := -1
	for _, f := range frags {
		hl, total := int(f[0]&15)*4, int(binary.BigEndian.Uint16(f[2:]))
		if total != len(f) || slowSum(f[:hl]) != 0xffff {
			t.Fatalf("unsound fragment % x", f[:hl])
		}
		v := binary.BigEndian.Uint16(f[6:])
		at := int(v&maskOffset) * 8
		if at == 0 {
			first = f[:hl]
		}
		if v&flagMF == 0 {
			end = at + total - hl
		} else if (total-hl)%8 != 0 {
			t.Fatal("not a multiple of 8")
		}
		for i, b := range f[hl:] {
			if old, ok := data[at+i]; ok && old != b {
				t.Fatal("fragments contradict each other")
			}
			data[at+i] = b
		}
	}
	if first == nil || end < 0 || len(data) != end {
		return nil
	}
	pkt := bytes.Clone(first)
	for i := range end {
		pkt = append(pkt, data[i])
	}
	binary.BigEndian.PutUint16(pkt[2:], uint16(len(pkt)))
	binary.BigEndian.PutUint16(pkt[6:], binary.BigEndian.Uint16(pkt[6:])&^(flagMF|maskOffset))
	return fixIP(pkt)
}

func TestFragmentIPv4(t *testing.T) {
	router := []byte{148, 4, 0, 0}             // router alert: copied
	record := []byte{7, 7, 4, 0, 0, 0, 0}      // record route: not copied
	security := []byte{130, 5, 1, 2, 3}        // copied, an odd length
	stamp := []byte{68, 8, 5, 0, 9, 9, 9, 9}   // timestamp: not copied
	nop, end := []byte{1}, []byte{0, 148, 148} // behind the end there is nothing
	for _, c := range []struct {
		why     string
		options []byte
		n, mtu  int
		lens    []int
		later   []byte // options of the later fragments
	}{
		{"fits", nil, 100, 120, []int{120}, nil},
		{"fits in more", nil, 100, 1500, []int{120}, nil},
		{"one octet too long", nil, 100, 119, []int{116, 24}, nil},
		{"even", nil, 192, 116, []int{116, 116}, nil},
		{"least MTU", nil, 100, 68, []int{68, 68, 24}, nil},
		{"8 octets each", nil, 20, 28, []int{28, 28, 24}, nil},
		{"copied", router, 100, 68, []int{64, 64, 44}, router},
		{"not copied: later ones have more room", record, 100, 68, []int{68, 68, 32}, nil},
		{"both", slices.Concat(record, nop, router, stamp), 100, 68, []int{64, 64, 60}, router},
		{"padded", slices.Concat(nop, security, nop, nop), 100, 68, []int{68, 68, 48}, append(slices.Clone(security), 0, 0, 0)},
		{"end", slices.Concat(nop, end), 100, 68, []int{64, 68, 32}, nil},
	} {
		pkt := udp4(t, c.n, c.options...)
		frags := pieces(t, pkt, c.mtu)
		var lens []int
		for i, f := range frags {
			lens = append(lens, len(f))
			hl := int(f[0]&15) * 4
			want := c.later
			if i == 0 {
				want = pkt[20 : int(pkt[0]&15)*4]
			}
			if !bytes.Equal(f[20:hl], want) {
				t.Errorf("%s: fragment %d has options % x, want % x", c.why, i, f[20:hl], want)
			}
			if f[1] != pkt[1] || f[8] != pkt[8] || f[9] != pkt[9] || !bytes.Equal(f[4:6], pkt[4:6]) || !bytes.Equal(f[12:20], pkt[12:20]) {
				t.Errorf("%s: fragment %d: header % x", c.why, i, f[:20])
			}
		}
		if !slices.Equal(lens, c.lens) {
			t.Errorf("%s: lengths %v, want %v", c.why, lens, c.lens)
		}
		if got := reassemble(t, frags); !bytes.Equal(got, pkt) {
			t.Errorf("%s: reassembled to\n% x, want\n% x", c.why, got, pkt)
		}
	}
}

func TestFragmentIPv4Refuses(t *testing.T) {
	long := udp4(t, 1000)
	edit := func(f func(p []byte)) []byte { p := bytes.Clone(long); f(p); return p }
	for _, c := range []struct {
		why  string
		pkt  []byte
		mtu  int
		want error
	}{
		{"don't fragment", setFrag(bytes.Clone(long), flagDF), 500, ErrDontFragment},
		{"no room for 8 octets", long, 27, ErrMTU},
		{"no MTU", long, 0, ErrMTU},
		{"negative MTU", long, -100, ErrMTU},
		{"no room with options", udp4(t, 1000, 7, 7, 4, 0, 0, 0, 0), 35, ErrMTU},
		{"empty", nil, 500, ErrHeader},
		{"short", long[:19], 500, ErrHeader},
		{"truncated", long[:len(long)-1], 500, ErrHeader},
		{"IPv6", tcp(t, true, 2), 500, ErrHeader},
		{"header length", edit(func(p []byte) { p[0] = 0x44 }), 500, ErrHeader},
		{"option overruns", udp4(t, 1000, 148, 5, 0, 0), 500, ErrHeader},
		{"option of length 1", udp4(t, 1000, 148, 1, 0, 0), 500, ErrHeader},
		{"option without length", udp4(t, 1000, 1, 1, 1, 148), 500, ErrHeader},
		{"longer than any packet", setFrag(bytes.Clone(long), 8191), 500, ErrHeader},
		{"not the last, and no multiple of 8", setFrag(udp4(t, 1001), flagMF), 500, ErrHeader},
	} {
		if f, err := FragmentIPv4(c.pkt, c.mtu); !errors.Is(err, c.want) || f.Count() != 0 {
			t.Errorf("%s: %v, %d fragments, want %v", c.why, err, f.Count(), c.want)
		}
	}
	if f, err := FragmentIPv4(setFrag(bytes.Clone(long), flagDF), 1500); err != nil || f.Count() != 1 {
		t.Errorf("don't-fragment that fits: %v", err)
	}
	f, _ := FragmentIPv4(long, 500)
	if buf := make([]byte, 600); f.Put(buf, -1) != 0 || f.Put(buf, f.Count()) != 0 {
		t.Error("there is no such fragment")
	}
}

// TestFragmentProperty: whatever is fragmented, also twice, comes together again in any order.
func TestFragmentProperty(t *testing.T) {
	option := rapid.OneOf(
		rapid.Just([]byte{1}),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 6), func(b []byte) []byte { return append([]byte{148, byte(2 + len(b))}, b...) }),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 6), func(b []byte) []byte { return append([]byte{7, byte(2 + len(b))}, b...) }),
	)
	rapid.Check(t, func(rt *rapid.T) {
		options := slices.Concat(rapid.SliceOfN(option, 0, 4).Draw(rt, "options")...)
		pkt := udp4(t, rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 65000)).Draw(rt, "payload"), options...)
		mtu := rapid.IntRange(68, 1600).Draw(rt, "mtu")
		frags := pieces(t, pkt, mtu)
		if rapid.Bool().Draw(rt, "again") {
			less := rapid.IntRange(68, mtu).Draw(rt, "less")
			var again [][]byte
			for _, f := range frags {
				again = append(again, pieces(t, f, less)...)
			}
			frags, mtu = again, less
		}
		for _, f := range frags {
			if len(f) > mtu {
				rt.Fatalf("%d octets, MTU %d", len(f), mtu)
			}
		}
		if got := reassemble(t, rapid.Permutation(frags).Draw(rt, "order")); !bytes.Equal(got, pkt) {
			rt.Fatal("another packet")
		}
		if reassemble(t, frags[1:]) != nil || len(frags) > 1 && reassemble(t, frags[:len(frags)-1]) != nil {
			rt.Fatal("the model does not miss a fragment")
		}
	})
}

// TestFragmentInPlace: from the last to the first, in the buffer that the packet came in.
func TestFragmentInPlace(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		pkt := udp4(t, rapid.IntRange(0, 9000).Draw(rt, "payload"), bytes.Repeat([]byte{148, 4, 1, 2, 7, 4, 3, 4}, rapid.IntRange(0, 5).Draw(rt, "options"))...)
		mtu := rapid.IntRange(68, 1600).Draw(rt, "mtu")
		want := pieces(t, pkt, mtu)
		front := rapid.IntRange(0, 40).Draw(rt, "front")
		gap := rapid.IntRange(0, 60).Draw(rt, "gap")

		f, err := FragmentIPv4(pkt, mtu)
		if err != nil {
			rt.Fatal(err)
		}
		longest := 0
		for i := range f.Count() {
			longest = max(longest, f.Len(i))
		}
		stride := longest + gap
		buf := make([]byte, front+max(len(pkt), stride*f.Count()))
		f, _ = FragmentIPv4(buf[front:front+copy(buf[front:], pkt)], mtu)
		for i := f.Count() - 1; i >= 0; i-- {
			at := front + i*stride
			n := f.Put(buf[at:at+f.Len(i)], i)
			if !bytes.Equal(buf[at:at+n], want[i]) {
				rt.Fatalf("fragment %d of %d", i, f.Count())
			}
		}
		for i := range want {
			if at := front + i*stride; !bytes.Equal(buf[at:at+len(want[i])], want[i]) {
				rt.Fatalf("fragment %d was overwritten", i)
			}
		}
	})
}

func BenchmarkFragmentIPv4(b *testing.B) {
	pkt := udp4(b, 1480)
	buf := make([]byte, 2*1600)
	b.SetBytes(int64(len(pkt)))
	b.ReportAllocs()
	for b.Loop() {
		f, err := FragmentIPv4(pkt, 1400)
		if err != nil {
			b.Fatal(err)
		}
		for i := range f.Count() {
			f.Put(buf[i*1600:], i)
		}
	}
}
