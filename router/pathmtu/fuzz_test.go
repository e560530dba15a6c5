package pathmtu

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

// seeds are packets of every kind that the functions tell apart.
func seeds(f *testing.F) [][]byte {
	syn4, syn6 := tcp(f, false, 2, mss(1460), option(4), option(8, 1, 2, 3, 4, 5, 6, 7, 8)), tcp(f, true, 0x12, []byte{1}, mss(1440))
	return [][]byte{
		nil,
		syn4, syn6,
		behind(syn6, 0, []byte{6, 0, 5, 2, 0, 0, 1, 0}),
		behind(syn6, 44, []byte{6, 0, 0, 1, 1, 2, 3, 4}),
		behind(syn6, 51, append([]byte{6, 4}, make([]byte, 22)...)),
		udp4(f, 100),
		udp4(f, 1480, 7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0),
		setFrag(udp4(f, 104), flagMF|185),
		setFrag(udp4(f, 104), 185),
		udp6(f, 1460),
	}
}

// FuzzClampMSS: whatever comes, nothing but MSS options and the checksum changes, no MSS rises,
// and a checksum that was right stays right.
func FuzzClampMSS(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s, 1400)
		f.Add(s, 41)
	}
	f.Fuzz(func(t *testing.T, pkt []byte, mtu int) {
		before := bytes.Clone(pkt)
		changed := ClampMSS(pkt, mtu)
		if changed == bytes.Equal(before, pkt) {
			t.Fatalf("changed %v", changed)
		}
		if !changed {
			return
		}
		u, ok := parse(pkt)
		if !ok || u.proto != protoTCP || u.later {
			t.Fatalf("changed %+v", u)
		}
		h, old := pkt[u.off:u.end], before[u.off:u.end]
		a, b := modelMSS(old), modelMSS(h)
		limit := mtu - 40
		if u.v6 {
			limit = mtu - 60
		}
		if len(a) != len(b) || slices.Equal(a, b) {
			t.Fatalf("MSS %v → %v", a, b)
		}
		for i := range a {
			if b[i] != min(a[i], uint16(min(limit, 65535))) {
				t.Fatalf("MSS %v → %v", a, b)
			}
		}
		// Both sums are over the same octets but for what changed, so they agree, or are the two
		// zeros of one's complement.
		if s1, s2 := slowSum(old), slowSum(h); s1%0xffff != s2%0xffff {
			t.Fatalf("sum %#x → %#x", s1, s2)
		}
		end := int(h[12]>>4) * 4
		same := func(x []byte) []byte {
			x = bytes.Clone(x)
			clear(x[u.off+tcpChecksum : u.off+tcpChecksum+2])
			clear(x[u.off+20 : u.off+end])
			return x
		}
		if !bytes.Equal(same(before), same(pkt)) {
			t.Fatal("something else changed")
		}
	})
}

// FuzzFragmentIPv4: what is refused is refused for a reason; what is not comes together again.
func FuzzFragmentIPv4(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s, 68)
		f.Add(s, 576)
	}
	f.Fuzz(func(t *testing.T, pkt []byte, mtu int) {
		before := bytes.Clone(pkt)
		fr, err := FragmentIPv4(pkt, mtu)
		if err != nil {
			return
		}
		total, hl := int(binary.BigEndian.Uint16(pkt[2:])), int(pkt[0]&15)*4
		if fr.Count() == 1 {
			out := make([]byte, total)
			if total > mtu || fr.Put(out, 0) != total || !bytes.Equal(out, pkt[:total]) {
				t.Fatal("not the packet")
			}
			return
		}
		if pkt[6]&0x40 != 0 || total <= mtu {
			t.Fatal("must not be fragmented")
		}
		frag := binary.BigEndian.Uint16(pkt[6:])
		next := int(frag & maskOffset)
		var payload []byte
		for i, b := range pieces(t, pkt, mtu) {
			bh := int(b[0]&15) * 4
			v := binary.BigEndian.Uint16(b[6:])
			switch {
			case len(b) > mtu, int(binary.BigEndian.Uint16(b[2:])) != len(b), slowSum(b[:bh]) != 0xffff:
				t.Fatalf("fragment %d: % x", i, b[:bh])
			case int(v&maskOffset) != next || v&0x8000 != frag&0x8000:
				t.Fatalf("fragment %d at %d, want %d", i, v&maskOffset, next)
			case i < fr.Count()-1 && (v&flagMF == 0 || (len(b)-bh)%8 != 0):
				t.Fatalf("fragment %d ends the packet", i)
			case i == fr.Count()-1 && v&flagMF != frag&flagMF:
				t.Fatal("the last one has not the packet's own \"more fragments\"")
			}
			next += (len(b) - bh) / 8
			payload = append(payload, b[bh:]...)
		}
		if !bytes.Equal(payload, pkt[hl:total]) || !bytes.Equal(before, pkt) {
			t.Fatal("another payload")
		}
	})
}

// FuzzICMP: every answer is sound, is no longer than permitted and gets no answer.
func FuzzICMP(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s, 1400, uint16(1280))
		f.Add(s, 0, uint16(60))
	}
	f.Fuzz(func(t *testing.T, pkt []byte, mtu int, room uint16) {
		before := bytes.Clone(pkt)
		buf := bytes.Repeat([]byte{0xaa}, int(room)+1)
		out := buf[:room]
		n := TooBig(out, pkt, mtu, netip.Addr{})
		Judge(pkt, len(pkt), mtu)
		if buf[room] != 0xaa || !bytes.Equal(before, pkt) {
			t.Fatal("wrote where it must not")
		}
		if n == 0 {
			return
		}
		head, most, least := 28, maxICMPv4, MinIPv4
		if pkt[0]>>4 == 6 {
			head, most, least = 48, maxICMPv6, MinIPv6
		}
		if n > most || n < head || n > len(out) {
			t.Fatalf("%d octets", n)
		}
		_, _, _, _, word, quoted := checkICMP(t, "answer", out[:n])
		if int(word) < least || int(word) > 65535 || !bytes.HasPrefix(pkt, quoted) {
			t.Fatalf("MTU %d", word)
		}
		if Unreachable(make([]byte, MaxICMP), out[:n], 1, 1, netip.Addr{}) != 0 {
			t.Fatal("answers itself")
		}
	})
}
