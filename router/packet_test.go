package router

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"wardgate/router/pathmtu"
)

func serialize(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		t.Fatal(err)
	}
	return append([]byte(nil), buf.Bytes()...)
}

func ip4(src, dst string, proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
}

func ip6(src, dst string, next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
}

func udp4(t testing.TB, src, dst string, sport, dport uint16, payload int) []byte {
	t.Helper()
	ip := ip4(src, dst, layers.IPProtocolUDP)
	u := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
	if err := u.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	return serialize(t, ip, u, gopacket.Payload(make([]byte, payload)))
}

func tcp4(t testing.TB, src, dst string, sport, dport uint16, fin bool) []byte {
	t.Helper()
	ip := ip4(src, dst, layers.IPProtocolTCP)
	u := &layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), FIN: fin, ACK: true}
	if err := u.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	return serialize(t, ip, u)
}

func echo4(t testing.TB, src, dst string, id uint16, reply bool) []byte {
	t.Helper()
	typ := uint8(layers.ICMPv4TypeEchoRequest)
	if reply {
		typ = layers.ICMPv4TypeEchoReply
	}
	return serialize(t, ip4(src, dst, layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0), Id: id, Seq: 1}, gopacket.Payload("abcdefgh"))
}

func TestParse(t *testing.T) {
	udp6 := func() []byte {
		ip := ip6("2001:db8::1", "2001:db8::2", layers.IPProtocolUDP)
		u := &layers.UDP{SrcPort: 7, DstPort: 9}
		if err := u.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		return serialize(t, ip, u)
	}()
	// the same with a destination options header before the UDP header
	opts6 := append([]byte(nil), udp6[:40]...)
	opts6[6] = protoDestOpts
	binary.BigEndian.PutUint16(opts6[4:], uint16(len(udp6)-40+8))
	opts6 = append(opts6, protoUDP, 0, 1, 4, 0, 0, 0, 0)
	opts6 = append(opts6, udp6[40:]...)

	for _, c := range []struct {
		name         string
		b            []byte
		src, dst     string
		proto        uint8
		sport, dport uint16
		echo, reply  bool
	}{
		{"UDP", udp4(t, "10.0.0.1", "10.0.0.2", 53, 5353, 10), "10.0.0.1", "10.0.0.2", protoUDP, 53, 5353, false, false},
		{"TCP", tcp4(t, "10.0.0.1", "10.0.0.2", 1000, 104, false), "10.0.0.1", "10.0.0.2", protoTCP, 1000, 104, false, false},
		{"echo", echo4(t, "10.0.0.1", "10.0.0.2", 77, false), "10.0.0.1", "10.0.0.2", protoICMP, 8, 0, true, false},
		{"echo reply", echo4(t, "10.0.0.1", "10.0.0.2", 77, true), "10.0.0.1", "10.0.0.2", protoICMP, 0, 0, true, true},
		{"UDP over IPv6", udp6, "2001:db8::1", "2001:db8::2", protoUDP, 7, 9, false, false},
		{"options before UDP", opts6, "2001:db8::1", "2001:db8::2", protoUDP, 7, 9, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p packet
			if err := p.parse(c.b); err != nil {
				t.Fatal(err)
			}
			if p.src != netip.MustParseAddr(c.src) || p.dst != netip.MustParseAddr(c.dst) || p.proto != c.proto ||
				p.srcPort != c.sport || p.dstPort != c.dport || p.icmpEcho != c.echo || p.icmpReply != c.reply {
				t.Errorf("got %+v", p)
			}
			for n := range c.b {
				if err := p.parse(c.b[:n]); err == nil {
					t.Errorf("accepted with %d of %d octets", n, len(c.b))
				}
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	good := udp4(t, "10.0.0.1", "10.0.0.2", 1, 2, 40)
	change := func(f func(b []byte) []byte) []byte { return f(append([]byte(nil), good...)) }
	tcp := tcp4(t, "10.0.0.1", "10.0.0.2", 1, 2, false)
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"empty", nil, errTruncated},
		{"version 5", change(func(b []byte) []byte { b[0] = 0x55; return b }), errVersion},
		{"header length 4 words", change(func(b []byte) []byte { b[0] = 0x44; return b }), errHeader},
		{"total below header", change(func(b []byte) []byte { b[3], b[2] = 10, 0; return b }), errHeader},
		{"loose source route", func() []byte {
			ip := ip4("10.0.0.1", "10.0.0.2", layers.IPProtocolUDP)
			ip.Options = []layers.IPv4Option{{OptionType: 131, OptionLength: 7, OptionData: []byte{4, 10, 0, 0, 3}}, {OptionType: 0}}
			return serialize(t, ip, gopacket.Payload(make([]byte, 8)))
		}(), errRouting},
		{"tiny first fragment", func() []byte {
			b := append([]byte(nil), tcp[:20+8]...)
			b[3] = byte(len(b))
			b[6] = 0x20 // more fragments
			return b
		}(), errTinyFrag},
		{"fragment over the TCP header", func() []byte {
			b := append([]byte(nil), tcp...)
			b[7] = 1 // offset 8
			return b
		}(), errTinyFrag},
		{"IPv4-mapped source", func() []byte {
			ip := ip6("2001:db8::1", "2001:db8::2", layers.IPProtocolUDP)
			u := &layers.UDP{SrcPort: 1, DstPort: 2}
			_ = u.SetNetworkLayerForChecksum(ip)
			b := serialize(t, ip, u)
			a := netip.MustParseAddr("::ffff:10.0.0.1").As16()
			copy(b[8:], a[:])
			return b
		}(), errHeader},
		{"endless extension headers", func() []byte {
			ip := ip6("2001:db8::1", "2001:db8::2", layers.IPProtocol(protoDestOpts))
			var ext []byte
			for range 40 {
				ext = append(ext, protoDestOpts, 0, 1, 4, 0, 0, 0, 0)
			}
			return serialize(t, ip, gopacket.Payload(ext))
		}(), errExtensions},
		{"routing header with segments left", func() []byte {
			ip := ip6("2001:db8::1", "2001:db8::2", layers.IPProtocol(protoRouting))
			return serialize(t, ip, gopacket.Payload(append([]byte{protoUDP, 2, 0, 1, 0, 0, 0, 0}, make([]byte, 24)...)))
		}(), errRouting},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p packet
			if err := p.parse(c.b); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	for _, b := range [][]byte{
		udp4(t, "10.0.0.1", "10.9.0.2", 1, 2, 1200),
		func() []byte {
			ip := ip6("2001:db8::1", "2001:db8:9::2", layers.IPProtocolUDP)
			u := &layers.UDP{SrcPort: 1, DstPort: 2}
			_ = u.SetNetworkLayerForChecksum(ip)
			return serialize(t, ip, u, gopacket.Payload(make([]byte, 1301)))
		}(),
	} {
		var p packet
		if err := p.parse(b); err != nil {
			t.Fatal(err)
		}
		out := make([]byte, 1280)
		code := [2]uint8{3, 13}
		if b[0]>>4 == 6 {
			code = [2]uint8{1, 1}
		}
		n := pathmtu.Unreachable(out, b, code[0], code[1], netip.Addr{})
		var q packet
		if err := q.parse(out[:n]); err != nil {
			t.Fatal(err)
		}
		if q.src != p.dst || q.dst != p.src || !q.icmpError {
			t.Errorf("error packet %+v", q)
		}
		var e packet
		if err := e.parseEmbedded(out[q.embedded:n]); err != nil || e.src != p.src || e.dstPort != 2 {
			t.Errorf("embedded %+v, %v", e, err)
		}
		first := layers.LayerTypeIPv4
		if b[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
		// gopacket recomputes the checksums when it serializes again: they must not change
		pkt := gopacket.NewPacket(out[:n], first, gopacket.Default)
		if pkt.ErrorLayer() != nil {
			t.Fatal(pkt.ErrorLayer().Error())
		}
		var ls []gopacket.SerializableLayer
		for _, l := range pkt.Layers() {
			s, ok := l.(gopacket.SerializableLayer)
			if !ok {
				t.Fatalf("layer %v", l.LayerType())
			}
			if i6, ok := l.(*layers.ICMPv6); ok {
				_ = i6.SetNetworkLayerForChecksum(pkt.NetworkLayer())
			}
			ls = append(ls, s)
		}
		if again := serialize(t, ls...); string(again) != string(out[:n]) {
			t.Errorf("checksums differ:\n%x\n%x", out[:n], again)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(udp4(f, "10.0.0.1", "10.0.0.2", 1, 2, 4))
	f.Add(tcp4(f, "10.0.0.1", "10.0.0.2", 1, 2, true))
	f.Add(echo4(f, "10.0.0.1", "10.0.0.2", 1, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p packet
		if p.parse(b) != nil {
			_ = p.parseEmbedded(b)
			return
		}
		if p.headerLen > len(b) {
			t.Fatalf("header of %d octets in a packet of %d", p.headerLen, len(b))
		}
		if p.proto == protoTCP && !p.noPorts && p.headerLen+14 > len(b) {
			t.Fatal("TCP flags are read beyond the packet")
		}
		if p.icmpError && p.embedded > len(b) {
			t.Fatal("embedded packet beyond the packet")
		}
		if p.icmpError {
			var q packet
			_ = q.parseEmbedded(b[p.embedded:])
		}
	})
}
