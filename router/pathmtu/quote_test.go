package pathmtu

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// outerPacket makes one of our own packets: ESP with this SPI and sequence number, native or in
// UDP, of 1500 octets.
func outerPacket(t testing.TB, v6, encap bool, spi, seq uint32) []byte {
	t.Helper()
	body := binary.BigEndian.AppendUint32(nil, spi)
	body = binary.BigEndian.AppendUint32(body, seq)
	proto := layers.IPProtocolESP
	if encap {
		proto = layers.IPProtocolUDP
		body = append([]byte{0x11, 0x94, 0x11, 0x94, 0, 0, 0, 0}, body...)
	}
	head := 20
	if v6 {
		head = 40
	}
	body = append(body, make([]byte, 1500-head-len(body))...)
	if v6 {
		return serialize(t, ip6(proto), gopacket.Payload(body))
	}
	return serialize(t, ip4(proto), gopacket.Payload(body))
}

// routerSays makes what a raw socket delivers when a router on the way tells about pkt, and quotes
// so many octets of it.
func routerSays(t testing.TB, pkt []byte, typ, code uint8, mtu, quote int) []byte {
	t.Helper()
	v6 := pkt[0]>>4 == 6
	icmp := append([]byte{typ, code, 0, 0, 0, 0, 0, 0}, pkt[:quote]...)
	binary.BigEndian.PutUint32(icmp[4:], uint32(mtu))
	if v6 {
		return icmp
	}
	binary.BigEndian.PutUint16(icmp[2:], ^slowSum(icmp))
	return serialize(t, ip4(layers.IPProtocolICMPv4), gopacket.Payload(icmp))
}

func TestParseOuter(t *testing.T) {
	src4, dst4 := netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("10.2.0.9")
	src6, dst6 := netip.MustParseAddr("fd01::5"), netip.MustParseAddr("fd02::9")
	esp4, udp4 := outerPacket(t, false, false, 0xabcd, 77), outerPacket(t, false, true, 0xabcd, 77)
	esp6, udp6 := outerPacket(t, true, false, 0xabcd, 77), outerPacket(t, true, true, 0xabcd, 77)
	ike4 := outerPacket(t, false, true, 0, 77)
	opt := bytes.Clone(esp4)
	opt = append(append(opt[:20:20], 1, 1, 1, 0), opt[20:]...)
	opt[0] = 0x46
	for _, c := range []struct {
		why string
		msg []byte
		v6  bool
		ok  bool
		o   Outer
	}{
		{"ESP", routerSays(t, esp4, 3, 4, 1400, 548), false, true, Outer{Type: 3, Code: 4, MTU: 1400, Local: src4, Peer: dst4, HasSPI: true, SPI: 0xabcd, HasSeq: true, Seq: 77, Len: 1500}},
		{"ESP, 8 octets, which is enough", routerSays(t, esp4, 3, 4, 1400, 28), false, true, Outer{Type: 3, Code: 4, MTU: 1400, Local: src4, Peer: dst4, HasSPI: true, SPI: 0xabcd, HasSeq: true, Seq: 77, Len: 1500}},
		{"ESP, less", routerSays(t, esp4, 3, 4, 1400, 27), false, true, Outer{Type: 3, Code: 4, MTU: 1400, Local: src4, Peer: dst4, HasSPI: true, SPI: 0xabcd, Len: 1500}},
		{"UDP", routerSays(t, udp4, 3, 4, 1400, 548), false, true, Outer{Type: 3, Code: 4, MTU: 1400, Local: src4, Peer: dst4, Encap: true, LocalPort: 4500, PeerPort: 4500, HasSPI: true, SPI: 0xabcd, HasSeq: true, Seq: 77, Len: 1500}},
		{"UDP, 8 octets, which is too little", routerSays(t, udp4, 3, 4, 1400, 28), false, true, Outer{Type: 3, Code: 4, MTU: 1400, Local: src4, Peer: dst4, Encap: true, LocalPort: 4500, PeerPort: 4500, Len: 1500}},
		{"IKE", routerSays(t, ike4, 3, 4, 1400, 548), false, true, Outer{Type: 3, Code: 4, MTU: 1400, Local: src4, Peer: dst4, Encap: true, LocalPort: 4500, PeerPort: 4500, HasSPI: true, Len: 1500}},
		{"options on the way", routerSays(t, opt, 3, 4, 1400, 100), false, true, Outer{Type: 3, Code: 4, MTU: 1400, Local: src4, Peer: dst4, HasSPI: true, SPI: 0xabcd, HasSeq: true, Seq: 77, Len: 1500}},
		{"old style", routerSays(t, esp4, 3, 4, 0, 28), false, true, Outer{Type: 3, Code: 4, Local: src4, Peer: dst4, HasSPI: true, SPI: 0xabcd, HasSeq: true, Seq: 77, Len: 1500}},
		{"port unreachable has no MTU", routerSays(t, esp4, 3, 3, 1400, 28), false, true, Outer{Type: 3, Code: 3, Local: src4, Peer: dst4, HasSPI: true, SPI: 0xabcd, HasSeq: true, Seq: 77, Len: 1500}},
		{"time exceeded", routerSays(t, esp4, 11, 0, 0, 28), false, true, Outer{Type: 11, Local: src4, Peer: dst4, HasSPI: true, SPI: 0xabcd, HasSeq: true, Seq: 77, Len: 1500}},
		{"IPv6 ESP", routerSays(t, esp6, 2, 0, 1400, 1232), true, true, Outer{V6: true, Type: 2, MTU: 1400, Local: src6, Peer: dst6, HasSPI: true, SPI: 0xabcd, HasSeq: true, Seq: 77, Len: 1500}},
		{"IPv6 UDP", routerSays(t, udp6, 2, 0, 1400, 1232), true, true, Outer{V6: true, Type: 2, MTU: 1400, Local: src6, Peer: dst6, Encap: true, LocalPort: 4500, PeerPort: 4500, HasSPI: true, SPI: 0xabcd, HasSeq: true, Seq: 77, Len: 1500}},
		{"IPv6 unreachable has no MTU", routerSays(t, esp6, 1, 0, 1400, 48), true, true, Outer{V6: true, Type: 1, Local: src6, Peer: dst6, HasSPI: true, SPI: 0xabcd, HasSeq: true, Seq: 77, Len: 1500}},

		{"echo", routerSays(t, esp4, 8, 0, 0, 548), false, false, Outer{}},
		{"IPv6 echo", routerSays(t, esp6, 128, 0, 0, 548), true, false, Outer{}},
		{"about TCP", routerSays(t, tcp(t, false, 2), 3, 4, 1400, 40), false, false, Outer{}},
		{"about IPv6 TCP", routerSays(t, tcp(t, true, 2), 2, 0, 1400, 60), true, false, Outer{}},
		{"about IPv4 in ICMPv6", routerSays(t, esp6, 2, 0, 1400, 0), true, false, Outer{}},
		{"half an IP header", routerSays(t, esp4, 3, 4, 1400, 19), false, false, Outer{}},
		{"half an IPv6 header", routerSays(t, esp6, 2, 0, 1400, 39), true, false, Outer{}},
		{"half a UDP header", routerSays(t, udp4, 3, 4, 1400, 27), false, false, Outer{}},
		{"later fragment", routerSays(t, setFrag(bytes.Clone(esp4), 5), 3, 4, 1400, 548), false, false, Outer{}},
		{"not ICMP", esp4, false, false, Outer{}},
		{"nothing", nil, false, false, Outer{}},
		{"nothing", nil, true, false, Outer{}},
		{"ICMP header alone", routerSays(t, esp4, 3, 4, 1400, 0), false, false, Outer{}},
	} {
		o, ok := ParseOuter(c.msg, c.v6)
		if ok != c.ok || ok && o != c.o {
			t.Errorf("%s: %v\n%+v, want\n%+v", c.why, ok, o, c.o)
		}
	}
	bad := routerSays(t, esp4, 3, 4, 1400, 28)
	bad[len(bad)-1] ^= 1
	if _, ok := ParseOuter(bad, false); ok {
		t.Error("the checksum is wrong")
	}
}

// TestFromTheRouter is the way of a message from the raw socket to the inner sender.
func TestFromTheRouter(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		p := New(Config{Link: 1500, V6: v6})
		typ, code := uint8(3), uint8(4)
		if v6 {
			typ, code = 2, 0
		}
		msg := routerSays(t, outerPacket(t, v6, true, 0xabcd, 77), typ, code, 1400, 548)
		o, ok := ParseOuter(msg, v6)
		if !ok || RuleFor(v6, o.Type, o.Code).Action != LowerMTU {
			t.Fatalf("%+v", o)
		}
		wantVerdict(t, "forged", p.TooBig(o.Quote(76), o.MTU, epoch), NotSent)
		wantVerdict(t, "true", p.TooBig(o.Quote(80), o.MTU, epoch), Lowered)
		wantMTU(t, "true", p, 1400)
	}
}

// FuzzParseOuter: anything may come from outside.
func FuzzParseOuter(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		for _, encap := range []bool{false, true} {
			typ, code := uint8(3), uint8(4)
			if v6 {
				typ, code = 2, 0
			}
			f.Add(routerSays(f, outerPacket(f, v6, encap, 0xabcd, 77), typ, code, 1400, 100), v6)
			f.Add(routerSays(f, outerPacket(f, v6, encap, 0, 77), typ, code, 0, 28), v6)
		}
	}
	f.Fuzz(func(t *testing.T, msg []byte, v6 bool) {
		if !v6 && len(msg) > 20 {
			// Past the checksum, which keeps the fuzzer out.
			if u, ok := parse(msg); ok && !u.v6 && u.end >= u.off+4 {
				msg = bytes.Clone(msg)
				icmp := msg[u.off:u.end]
				icmp[2], icmp[3] = 0, 0
				binary.BigEndian.PutUint16(icmp[2:], ^slowSum(icmp))
			}
		}
		before := bytes.Clone(msg)
		o, ok := ParseOuter(msg, v6)
		if !bytes.Equal(before, msg) {
			t.Fatal("changed")
		}
		if !ok {
			return
		}
		if o.V6 != v6 || o.Peer.Is6() != v6 || o.Local.Is6() != v6 || o.HasSeq && !o.HasSPI || !o.Encap && o.PeerPort != 0 || o.MTU < 0 {
			t.Fatalf("%+v", o)
		}
		p := New(Config{Link: 1500, V6: v6})
		if v := p.TooBig(o.Quote(uint64(o.Seq)), o.MTU, epoch); v.Changed() && (!o.HasSeq || p.MTU() < p.floor) {
			t.Fatalf("%v to %d", v, p.MTU())
		}
	})
}
