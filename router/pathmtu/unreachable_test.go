package pathmtu

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// checkICMP reads an ICMP error with another codec than ours, checks its lengths and checksums,
// and returns its type, code, second word and what it quotes.
func checkICMP(t *testing.T, why string, b []byte) (src, dst netip.Addr, typ, code uint8, word uint32, quoted []byte) {
	t.Helper()
	var icmp []byte
	if b[0]>>4 == 6 {
		p := gopacket.NewPacket(b, layers.LayerTypeIPv6, gopacket.Default)
		l, ok := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
		if !ok || l.NextHeader != layers.IPProtocolICMPv6 || int(l.Length) != len(b)-40 || l.HopLimit != 64 {
			t.Fatalf("%s: % x", why, b[:40])
		}
		src, dst, icmp = addr(l.SrcIP), addr(l.DstIP), b[40:]
		n := len(icmp)
		if s := slowSum(append(append(bytes.Clone(b[8:40]), 0, 58, byte(n>>8), byte(n)), icmp...)); s != 0xffff {
			t.Errorf("%s: checksum %#x", why, s)
		}
	} else {
		p := gopacket.NewPacket(b, layers.LayerTypeIPv4, gopacket.Default)
		l, ok := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		if !ok || l.Protocol != layers.IPProtocolICMPv4 || int(l.Length) != len(b) || l.TTL != 64 || l.TOS != 0xc0 || l.Flags != layers.IPv4DontFragment {
			t.Fatalf("%s: % x", why, b[:20])
		}
		src, dst, icmp = addr(l.SrcIP), addr(l.DstIP), b[20:]
		if s := slowSum(b[:20]); s != 0xffff {
			t.Errorf("%s: header checksum %#x", why, s)
		}
		if s := slowSum(icmp); s != 0xffff {
			t.Errorf("%s: checksum %#x", why, s)
		}
	}
	return src, dst, icmp[0], icmp[1], binary.BigEndian.Uint32(icmp[4:]), icmp[8:]
}

func addr(b []byte) netip.Addr { a, _ := netip.AddrFromSlice(b); return a }

func udp6(t testing.TB, n int) []byte {
	return serialize(t, ip6(layers.IPProtocolUDP), gopacket.Payload(pattern(n)))
}

func TestTooBigMessage(t *testing.T) {
	router4, router6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		why       string
		pkt       []byte
		mtu       int
		from      netip.Addr
		room      int
		src       string
		typ, code uint8
		word      uint32
		quoted    int
	}{
		{"IPv4", udp4(t, 1480), 1400, router4, 1280, "192.0.2.1", 3, 4, 1400, 548},
		{"IPv4, from whom it is for", udp4(t, 1480), 1400, netip.Addr{}, 1280, "10.2.0.9", 3, 4, 1400, 548},
		{"IPv4, address of the other family", udp4(t, 1480), 1400, router6, 1280, "10.2.0.9", 3, 4, 1400, 548},
		{"IPv4, mapped", udp4(t, 1480), 1400, netip.MustParseAddr("::ffff:192.0.2.1"), 1280, "192.0.2.1", 3, 4, 1400, 548},
		{"IPv4, a short packet", udp4(t, 81), 1400, router4, 1280, "192.0.2.1", 3, 4, 1400, 101},
		{"IPv4, less room", udp4(t, 1480), 1400, router4, 100, "192.0.2.1", 3, 4, 1400, 72},
		{"IPv4, least MTU", udp4(t, 1480), 20, router4, 1280, "192.0.2.1", 3, 4, 68, 548},
		{"IPv4, more than 16 bits", udp4(t, 1480), 100000, router4, 1280, "192.0.2.1", 3, 4, 65535, 548},
		{"IPv6", udp6(t, 1460), 1400, router6, 2000, "2001:db8::1", 2, 0, 1400, 1232},
		{"IPv6, from whom it is for", udp6(t, 1460), 1400, netip.Addr{}, 2000, "fd02::9", 2, 0, 1400, 1232},
		{"IPv6, address of the other family", udp6(t, 1460), 1400, router4, 2000, "fd02::9", 2, 0, 1400, 1232},
		{"IPv6, a short packet", udp6(t, 61), 1400, router6, 2000, "2001:db8::1", 2, 0, 1400, 101},
		{"IPv6, less room", udp6(t, 1460), 1400, router6, 100, "2001:db8::1", 2, 0, 1400, 52},
		{"IPv6, least MTU", udp6(t, 1460), 1198, router6, 2000, "2001:db8::1", 2, 0, 1280, 1232},
	} {
		out := bytes.Repeat([]byte{0xaa}, c.room)
		n := TooBig(out, c.pkt, c.mtu, c.from)
		if n == 0 {
			t.Errorf("%s: nothing", c.why)
			continue
		}
		src, dst, typ, code, word, quoted := checkICMP(t, c.why, out[:n])
		sender := netip.MustParseAddr("10.1.0.5")
		if c.pkt[0]>>4 == 6 {
			sender = netip.MustParseAddr("fd01::5")
		}
		if src != netip.MustParseAddr(c.src) || dst != sender {
			t.Errorf("%s: from %v to %v", c.why, src, dst)
		}
		if typ != c.typ || code != c.code || word != c.word {
			t.Errorf("%s: type %d code %d, %d", c.why, typ, code, word)
		}
		if len(quoted) != c.quoted || !bytes.Equal(quoted, c.pkt[:c.quoted]) {
			t.Errorf("%s: quotes %d octets, want %d", c.why, len(quoted), c.quoted)
		}
		for i, b := range out[n:] {
			if b != 0xaa {
				t.Errorf("%s: wrote at %d behind %d", c.why, n+i, n)
				break
			}
		}
	}
}

func TestUnreachableMessage(t *testing.T) {
	out := make([]byte, MaxICMP)
	n := Unreachable(out, udp4(t, 100), 3, 13, netip.Addr{})
	if _, _, typ, code, word, _ := checkICMP(t, "IPv4", out[:n]); typ != 3 || code != 13 || word != 0 {
		t.Errorf("type %d code %d word %d", typ, code, word)
	}
	n = Unreachable(out, udp6(t, 100), 1, 3, netip.Addr{})
	if _, _, typ, code, word, _ := checkICMP(t, "IPv6", out[:n]); typ != 1 || code != 3 || word != 0 {
		t.Errorf("type %d code %d word %d", typ, code, word)
	}
	junk := append(udp4(t, 100), 1, 2, 3)
	n = Unreachable(out, junk, 3, 1, netip.Addr{})
	if _, _, _, _, _, quoted := checkICMP(t, "junk behind", out[:n]); len(quoted) != 120 {
		t.Errorf("quotes %d octets of a packet of 120", len(quoted))
	}
}

func TestNoAnswer(t *testing.T) {
	v4 := func(f func(p []byte)) []byte { p := udp4(t, 100); f(p); return p }
	v6 := func(f func(p []byte)) []byte { p := udp6(t, 100); f(p); return p }
	icmp4 := func(typ byte) []byte { return v4(func(p []byte) { p[9], p[20] = 1, typ }) }
	icmp6 := func(typ byte) []byte { return v6(func(p []byte) { p[6], p[40] = 58, typ }) }
	src4 := func(a string) []byte {
		return v4(func(p []byte) { b := netip.MustParseAddr(a).As4(); copy(p[12:], b[:]) })
	}
	dst4 := func(a string) []byte {
		return v4(func(p []byte) { b := netip.MustParseAddr(a).As4(); copy(p[16:], b[:]) })
	}
	src6 := func(a string) []byte {
		return v6(func(p []byte) { b := netip.MustParseAddr(a).As16(); copy(p[8:], b[:]) })
	}
	dst6 := func(a string) []byte {
		return v6(func(p []byte) { b := netip.MustParseAddr(a).As16(); copy(p[24:], b[:]) })
	}
	behind6 := func(pkt []byte, h ...byte) []byte { return behind(pkt, 60, append([]byte{58, 0}, h...)) }
	for _, c := range []struct {
		why    string
		pkt    []byte
		answer bool
	}{
		{"ordinary", udp4(t, 100), true},
		{"ordinary", udp6(t, 100), true},
		{"echo request", icmp4(8), true},
		{"unreachable", icmp4(3), false},
		{"source quench", icmp4(4), false},
		{"redirect", icmp4(5), false},
		{"time exceeded", icmp4(11), false},
		{"parameter problem", icmp4(12), false},
		{"ICMP without a type", serialize(t, ip4(layers.IPProtocolICMPv4)), false},
		{"ICMPv6 echo request", icmp6(128), true},
		{"ICMPv6 unreachable", icmp6(1), false},
		{"ICMPv6 error of tomorrow", icmp6(127), false},
		{"ICMPv6 redirect", icmp6(137), false},
		{"ICMPv6 error behind an extension", behind6(icmp6(2), 0, 0, 0, 0, 0, 0), false},
		{"ICMPv6 echo behind an extension", behind6(icmp6(128), 0, 0, 0, 0, 0, 0), true},
		{"ICMPv6 without a type", serialize(t, ip6(layers.IPProtocolICMPv6)), false},
		{"type 1 is no error in IPv4", icmp4(1), true},
		{"ICMPv6 within IPv4 is not ICMP", v4(func(p []byte) { p[9], p[20] = 58, 1 }), true},
		{"first fragment", v4(func(p []byte) { p[6] = 0x20 }), true},
		{"later fragment", v4(func(p []byte) { p[7] = 1 }), false},
		{"IPv6 first fragment", behind(udp6(t, 100), 44, []byte{17, 0, 0, 1, 1, 2, 3, 4}), true},
		{"IPv6 later fragment", behind(udp6(t, 100), 44, []byte{17, 0, 0, 8, 1, 2, 3, 4}), false},
		{"from nobody", src4("0.0.0.0"), false},
		{"from this network", src4("0.1.2.3"), false},
		{"from loopback", src4("127.0.0.1"), false},
		{"from a group", src4("224.0.0.1"), false},
		{"from class E", src4("240.0.0.1"), false},
		{"from everybody", src4("255.255.255.255"), false},
		{"to a group", dst4("239.1.2.3"), false},
		{"to everybody", dst4("255.255.255.255"), false},
		{"to nobody", dst4("0.0.0.0"), false},
		{"IPv6 from nobody", src6("::"), false},
		{"IPv6 from loopback", src6("::1"), false},
		{"IPv6 from a group", src6("ff02::1"), false},
		{"IPv6 to a group", dst6("ff0e::1"), false},
		{"IPv6 to nobody", dst6("::"), false},
		{"empty", nil, false},
		{"version", v4(func(p []byte) { p[0] = 0x75 }), false},
		{"truncated", udp4(t, 100)[:119], false},
		{"IPv6 truncated", udp6(t, 100)[:139], false},
		{"IPv6 header truncated", udp6(t, 100)[:39], false},
	} {
		out := make([]byte, MaxICMP)
		if n := TooBig(out, c.pkt, 1400, netip.Addr{}); (n > 0) != c.answer {
			t.Errorf("%s: TooBig %d octets", c.why, n)
		}
		if n := Unreachable(out, c.pkt, 3, 1, netip.Addr{}); (n > 0) != c.answer {
			t.Errorf("%s: Unreachable %d octets", c.why, n)
		}
	}
	for _, c := range []struct {
		pkt  []byte
		room int
	}{{udp4(t, 100), 27}, {udp6(t, 100), 47}, {udp4(t, 100), 0}} {
		if n := TooBig(make([]byte, c.room), c.pkt, 1400, netip.Addr{}); n != 0 {
			t.Errorf("%d octets in a room of %d", n, c.room)
		}
	}
	// No answer to an answer, however long the chain.
	out, again := make([]byte, MaxICMP), make([]byte, MaxICMP)
	for _, pkt := range [][]byte{udp4(t, 1000), udp6(t, 1400)} {
		if n := TooBig(out, pkt, 1400, netip.Addr{}); n == 0 || TooBig(again, out[:n], 1400, netip.Addr{}) != 0 {
			t.Error("answers itself")
		}
	}
}

func BenchmarkTooBig(b *testing.B) {
	out := make([]byte, MaxICMP)
	for _, c := range []struct {
		name string
		pkt  []byte
	}{{"IPv4", udp4(b, 1480)}, {"IPv6", udp6(b, 1460)}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if TooBig(out, c.pkt, 1400, netip.Addr{}) == 0 {
					b.Fatal("no answer")
				}
			}
		})
	}
}
