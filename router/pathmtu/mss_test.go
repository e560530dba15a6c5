package pathmtu

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"
)

func serialize(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func ip4(proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: net.ParseIP("10.1.0.5"), DstIP: net.ParseIP("10.2.0.9")}
}

func ip6(next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: net.ParseIP("fd01::5"), DstIP: net.ParseIP("fd02::9")}
}

// option makes a TCP option of a kind with the given content.
func option(kind byte, content ...byte) []byte {
	return append([]byte{kind, byte(2 + len(content))}, content...)
}

func mss(n uint16) []byte { return option(2, byte(n>>8), byte(n)) }

// tcp makes a TCP segment over ip with the given flags, and options that are laid down as they
// are, padded with "end of options".
func tcp(t testing.TB, v6 bool, flags byte, options ...[]byte) []byte {
	t.Helper()
	opts := slices.Concat(options...)
	for len(opts)%4 != 0 {
		opts = append(opts, 0)
	}
	seg := make([]byte, 20+len(opts)+3)
	binary.BigEndian.PutUint16(seg, 40000)
	binary.BigEndian.PutUint16(seg[2:], 443)
	binary.BigEndian.PutUint32(seg[4:], 0x01020304)
	seg[12], seg[13] = byte(5+len(opts)/4)<<4, flags
	copy(seg[20:], opts)
	copy(seg[20+len(opts):], "abc")
	var pkt []byte
	if v6 {
		pkt = serialize(t, ip6(layers.IPProtocolTCP), gopacket.Payload(seg))
	} else {
		pkt = serialize(t, ip4(layers.IPProtocolTCP), gopacket.Payload(seg))
	}
	return fixTCP(pkt, len(pkt)-len(seg))
}

// fixTCP computes the TCP checksum of a whole packet whose TCP header is at off.
func fixTCP(pkt []byte, off int) []byte {
	pkt[off+16], pkt[off+17] = 0, 0
	c := ^slowTCPSum(pkt, off)
	pkt[off+16], pkt[off+17] = byte(c>>8), byte(c)
	return pkt
}

// slowTCPSum is RFC 9293, section 3.1, word by word: the sum over pseudo-header and segment.
func slowTCPSum(pkt []byte, off int) uint16 {
	addrs := pkt[12:20]
	if pkt[0]>>4 == 6 {
		addrs = pkt[8:40]
	}
	n := len(pkt) - off
	return slowSum(slices.Concat(addrs, []byte{0, 6, byte(n >> 8), byte(n)}, pkt[off:]))
}

func slowSum(b []byte) uint16 {
	var s uint32
	for i, x := range b {
		if i%2 == 0 {
			s += uint32(x) << 8
		} else {
			s += uint32(x)
		}
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// behind puts IPv6 extension headers, the last of which says TCP, in front of the TCP header.
func behind(pkt []byte, first byte, headers ...[]byte) []byte {
	ext := slices.Concat(headers...)
	out := slices.Concat(pkt[:40], ext, pkt[40:])
	out[6] = first
	binary.BigEndian.PutUint16(out[4:], uint16(len(out)-40))
	return out
}

func TestClampMSS(t *testing.T) {
	const syn, ack, rst = 0x02, 0x10, 0x04
	nop := []byte{1}
	ws, sack, ts := option(3, 7), option(4), option(8, 1, 2, 3, 4, 5, 6, 7, 8)
	for _, c := range []struct {
		why     string
		v6      bool
		flags   byte
		options [][]byte
		mtu     int
		want    []uint16 // MSS options afterwards
		changed bool
	}{
		{"lowered", false, syn, [][]byte{mss(1460)}, 1400, []uint16{1360}, true},
		{"SYN/ACK", false, syn | ack, [][]byte{mss(1460)}, 1400, []uint16{1360}, true},
		{"ECN setup", false, syn | 0xc0, [][]byte{mss(1460)}, 1400, []uint16{1360}, true},
		{"options do not count: RFC 6691", false, syn, [][]byte{mss(1460), sack, ts, nop, ws}, 1400, []uint16{1360}, true},
		{"IPv6", true, syn, [][]byte{mss(1440)}, 1400, []uint16{1340}, true},
		{"IPv6 below its least MTU", true, syn, [][]byte{mss(1220)}, 1198, []uint16{1138}, true},
		{"equal", false, syn, [][]byte{mss(1360)}, 1400, []uint16{1360}, false},
		{"never raised", false, syn, [][]byte{mss(536)}, 1400, []uint16{536}, false},
		{"largest", false, syn, [][]byte{mss(65535)}, 1400, []uint16{1360}, true},
		{"zero", false, syn, [][]byte{mss(0)}, 1400, []uint16{0}, false},
		{"MTU of more than 16 bits", false, syn, [][]byte{mss(65535)}, 70000, []uint16{65535}, false},
		{"at an odd place", false, syn, [][]byte{nop, mss(1460), nop, ws}, 1400, []uint16{1360}, true},
		{"at an odd place, IPv6", true, syn, [][]byte{ws, mss(1440)}, 1301, []uint16{1241}, true},
		{"last", false, syn, [][]byte{sack, ts, ws, nop, mss(1460)}, 1400, []uint16{1360}, true},
		{"twice", false, syn, [][]byte{mss(1460), mss(9000)}, 1400, []uint16{1360, 1360}, true},
		{"no option", false, syn, nil, 1400, nil, false},
		{"no option and an MTU below the default", false, syn, nil, 500, nil, false},
		{"other options only", false, syn, [][]byte{ts, sack}, 1400, nil, false},
		{"not a SYN", false, ack, [][]byte{mss(1460)}, 1400, []uint16{1460}, false},
		{"RST", false, rst, [][]byte{mss(1460)}, 1400, []uint16{1460}, false},
		{"behind the end of options", false, syn, [][]byte{{0}, mss(1460)}, 1400, nil, false},
		{"wrong length", false, syn, [][]byte{option(2, 5)}, 1400, nil, false},
		{"too long", false, syn, [][]byte{option(2, 5, 180, 0)}, 1400, nil, false},
		{"length of zero", false, syn, [][]byte{{9, 0}, mss(1460)}, 1400, nil, false},
		{"length of one", false, syn, [][]byte{{9, 1}, mss(1460)}, 1400, nil, false},
		{"overruns the header", false, syn, [][]byte{{9, 40}, mss(1460)}, 1400, nil, false},
		{"cut off", false, syn, [][]byte{ws, {2}}, 1400, nil, false},
		{"MSS cut off by one octet", false, syn, [][]byte{nop, {2, 4, 5}}, 1400, nil, false},
		{"in front of a malformed option", false, syn, [][]byte{mss(1460), {9, 0}}, 1400, []uint16{1360}, true},
		{"no room for headers", false, syn, [][]byte{mss(1460)}, 40, []uint16{1460}, false},
		{"room for one octet", false, syn, [][]byte{mss(1460)}, 41, []uint16{1}, true},
		{"negative MTU", false, syn, [][]byte{mss(1460)}, -5, []uint16{1460}, false},
	} {
		pkt := tcp(t, c.v6, c.flags, c.options...)
		off := 20
		if c.v6 {
			off = 40
		}
		before := bytes.Clone(pkt)
		if got := ClampMSS(pkt, c.mtu); got != c.changed {
			t.Errorf("%s: changed %v", c.why, got)
		}
		if got := modelMSS(pkt[off:]); !slices.Equal(got, c.want) {
			t.Errorf("%s: MSS %v, want %v", c.why, got, c.want)
		}
		if s := slowTCPSum(pkt, off); s != 0xffff {
			t.Errorf("%s: checksum is wrong: %#x", c.why, s)
		}
		if !c.changed && !bytes.Equal(pkt, before) {
			t.Errorf("%s: packet changed", c.why)
		}
	}
}

// modelMSS returns the values of the well-formed MSS options of a segment.
func modelMSS(seg []byte) (found []uint16) {
	opts := seg[20 : int(seg[12]>>4)*4]
	for len(opts) > 0 && opts[0] != 0 {
		if opts[0] == 1 {
			opts = opts[1:]
			continue
		}
		if len(opts) < 2 || opts[1] < 2 || int(opts[1]) > len(opts) {
			return found
		}
		if opts[0] == 2 && opts[1] == 4 {
			found = append(found, binary.BigEndian.Uint16(opts[2:]))
		}
		opts = opts[opts[1]:]
	}
	return found
}

func TestClampMSSHeaders(t *testing.T) {
	syn6 := tcp(t, true, 2, mss(1440))
	ext := func(next byte, size int) []byte { // size in units of 8 octets, minus 1
		h := make([]byte, 8+8*size)
		h[0], h[1] = next, byte(size)
		return h
	}
	frag := func(offset uint16) []byte { return []byte{6, 0, byte(offset >> 8), byte(offset), 1, 2, 3, 4} }
	ah := append([]byte{6, 4}, make([]byte, 22)...) // 24 octets: (4+2)*4
	var many [][]byte
	for range maxExtension - 1 {
		many = append(many, ext(60, 0))
	}
	opt4 := tcp(t, false, 2, mss(1460))
	opt4 = append(append(bytes.Clone(opt4[:20]), 1, 1, 1, 0), opt4[20:]...)
	opt4[0], opt4[3] = 0x46, byte(len(opt4))
	edit := func(pkt []byte, f func(p []byte)) []byte { p := bytes.Clone(pkt); f(p); return p }
	syn4 := tcp(t, false, 2, mss(1460))
	for _, c := range []struct {
		why  string
		pkt  []byte
		want bool
	}{
		{"hop-by-hop", behind(syn6, 0, ext(6, 0)), true},
		{"destination options of 24 octets", behind(syn6, 60, ext(6, 2)), true},
		{"routing, mobility", behind(syn6, 43, ext(135, 1), ext(6, 0)), true},
		{"authentication header", behind(syn6, 51, ah), true},
		{"atomic fragment", behind(syn6, 44, frag(0)), true},
		{"first fragment", behind(syn6, 44, frag(1)), true},
		{"later fragment", behind(syn6, 44, frag(8)), false},
		{"as many as there may be", behind(syn6, 60, append(slices.Clone(many), ext(6, 0))...), true},
		{"too many", behind(syn6, 60, append(append(slices.Clone(many), ext(60, 0)), ext(6, 0))...), false},
		{"another protocol behind", behind(syn6, 60, ext(17, 0)), false},
		{"cut within an extension", behind(syn6, 60, []byte{6, 20, 0, 0, 0, 0, 0, 0}), false},
		{"IPv4 options", opt4, true},
		{"IPv4 first fragment", edit(syn4, func(p []byte) { p[6] = 0x20 }), true},
		{"IPv4 later fragment", edit(syn4, func(p []byte) { p[7] = 3 }), false},
		{"UDP", edit(syn4, func(p []byte) { p[9] = 17 }), false},
		{"IPv6 UDP", edit(syn6, func(p []byte) { p[6] = 17 }), false},
		{"version 5", edit(syn4, func(p []byte) { p[0] = 0x55 }), false},
		{"longer than it is", edit(syn4, func(p []byte) { p[3]++ }), false},
		{"header length of 16", edit(syn4, func(p []byte) { p[0] = 0x44 }), false},
		{"TCP header longer than the packet", edit(syn4, func(p []byte) { p[32] = 0xf0 }), false},
		{"TCP header one octet longer than the packet", append(edit(syn4, func(p []byte) { p[32] = 0x70 }), 1), false},
		{"TCP header shorter than it can be", edit(syn4, func(p []byte) { p[32] = 0x40 }), false},
		{"octets behind the packet", append(bytes.Clone(syn4), 2, 4, 5, 180), true},
	} {
		before := bytes.Clone(c.pkt)
		if got := ClampMSS(c.pkt, 1300); got != c.want {
			t.Errorf("%s: %v", c.why, got)
		}
		if !c.want && !bytes.Equal(before, c.pkt) {
			t.Errorf("%s: packet changed", c.why)
		}
	}
	for _, pkt := range [][]byte{syn4, syn6, opt4} {
		for n := range pkt {
			if ClampMSS(pkt[:n:n], 1000) {
				t.Errorf("changed the first %d of %d octets", n, len(pkt))
			}
		}
	}
}

// TestClampMSSProperty compares with parsing, changing and computing the checksum anew.
func TestClampMSSProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		v6 := rapid.Bool().Draw(rt, "v6")
		var opts [][]byte
		for range rapid.IntRange(0, 4).Draw(rt, "options") {
			opts = append(opts, rapid.OneOf(
				rapid.Just([]byte{1}),
				rapid.Map(rapid.Uint16(), mss),
				rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 5), func(b []byte) []byte { return option(8, b...) }),
				rapid.SliceOfN(rapid.Byte(), 0, 6),
			).Draw(rt, "option"))
		}
		flags := rapid.Byte().Draw(rt, "flags")
		mtu := rapid.IntRange(0, 66000).Draw(rt, "mtu")
		pkt := tcp(t, v6, flags, opts...)
		off, limit := 20, mtu-40
		if v6 {
			off, limit = 40, mtu-60
		}
		before := modelMSS(pkt[off:])
		changed := ClampMSS(pkt, mtu)
		after := modelMSS(pkt[off:])
		want := slices.Clone(before)
		for i, m := range want {
			if flags&2 != 0 && limit > 0 && int(m) > limit {
				want[i] = uint16(limit)
			}
		}
		if !slices.Equal(after, want) || changed == slices.Equal(before, after) {
			rt.Fatalf("MSS %v → %v, want %v, changed %v", before, after, want, changed)
		}
		if s := slowTCPSum(pkt, off); s != 0xffff {
			rt.Fatalf("checksum is wrong: %#x", s)
		}
	})
}

func BenchmarkClampMSS(b *testing.B) {
	ack4, ack6 := tcp(b, false, 0x10), tcp(b, true, 0x10)
	syn4, syn6 := tcp(b, false, 2, mss(1460), option(4), option(8, 1, 2, 3, 4, 5, 6, 7, 8)), tcp(b, true, 2, mss(1440))
	udp := bytes.Clone(ack4)
	udp[9] = 17
	for _, c := range []struct {
		name string
		pkt  []byte
		set  uint16
	}{{"UDP", udp, 0}, {"ACK4", ack4, 0}, {"ACK6", ack6, 0}, {"SYN4", syn4, 1460}, {"SYN6", syn6, 1440}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			at := 42
			if c.pkt[0]>>4 == 6 {
				at = 62
			}
			for b.Loop() {
				if c.set != 0 {
					binary.BigEndian.PutUint16(c.pkt[at:], c.set)
				}
				if ClampMSS(c.pkt, 1400) != (c.set != 0) {
					b.Fatal("not as expected")
				}
			}
		})
	}
}
