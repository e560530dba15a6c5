package pathmtu

import (
	"encoding/binary"
	"net/netip"
)

const (
	protoUDP = 17
	protoESP = 50
)

// Outer is an ICMP error from outside about one of our own packets: ESP, or UDP that carries ESP
// or IKE. Nothing of it is authenticated.
type Outer struct {
	V6         bool
	Type, Code uint8
	MTU        int // of "fragmentation needed" and "packet too big", octets; 0: the message has none

	// Of the quoted packet.
	Local, Peer         netip.Addr // its source and its destination
	Encap               bool       // it is UDP
	LocalPort, PeerPort uint16     // with Encap
	HasSPI              bool       // the quotation reaches so far
	SPI                 uint32     // with Encap 0: IKE (RFC 3948, section 2.2)
	HasSeq              bool
	Seq                 uint32
	Len                 int // total length, octets; that of a super-packet when a router met one
}

// ParseOuter reads an ICMP error as a raw socket delivers it: for IPv4 the whole IP packet, for
// IPv6 the ICMPv6 message without IPv6 header, whose checksum the kernel has verified. ok is false
// for everything but an error that quotes ESP or UDP.
//
// A raw socket is the way to hear of these without harm to the data path. With IP_RECVERR an ICMP
// message, whoever sent it, makes the next send call of a UDP socket fail, whatever that call
// sends and to whom.
func ParseOuter(msg []byte, v6 bool) (o Outer, ok bool) {
	o.V6 = v6
	if !v6 {
		u, ok := parse(msg)
		if !ok || u.v6 || u.later || u.proto != protoICMP {
			return Outer{}, false
		}
		msg = msg[u.off:u.end]
		if sum(msg, 0) != 0xffff {
			return Outer{}, false // a raw socket gets what the kernel would drop
		}
	}
	if len(msg) < icmpHeaderLen {
		return Outer{}, false
	}
	o.Type, o.Code = msg[0], msg[1]
	quoted := msg[icmpHeaderLen:]
	if v6 {
		if o.Type >= 128 {
			return Outer{}, false
		}
		if o.Type == 2 {
			o.MTU = int(binary.BigEndian.Uint32(msg[4:]))
		}
		return o, o.quoted6(quoted)
	}
	switch o.Type {
	case 3:
		if o.Code == 4 {
			o.MTU = int(binary.BigEndian.Uint16(msg[6:]))
		}
	case 4, 5, 11, 12:
	default:
		return Outer{}, false
	}
	return o, o.quoted4(quoted)
}

func (o *Outer) quoted4(b []byte) bool {
	if len(b) < ipv4HeaderLen || b[0]>>4 != 4 {
		return false
	}
	hl := int(b[0]&15) * 4
	if hl < ipv4HeaderLen || len(b) < hl || binary.BigEndian.Uint16(b[6:])&maskOffset != 0 {
		return false
	}
	o.Len = int(binary.BigEndian.Uint16(b[2:]))
	o.Local, o.Peer = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	return o.payload(b[9], b[hl:])
}

func (o *Outer) quoted6(b []byte) bool {
	if len(b) < ipv6HeaderLen || b[0]>>4 != 6 {
		return false
	}
	o.Len = ipv6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	o.Local, o.Peer = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	return o.payload(b[6], b[ipv6HeaderLen:])
}

func (o *Outer) payload(proto uint8, b []byte) bool {
	switch proto {
	case protoESP:
	case protoUDP:
		if len(b) < udpHeaderLen {
			return false
		}
		o.Encap = true
		o.LocalPort, o.PeerPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		b = b[udpHeaderLen:]
	default:
		return false
	}
	if len(b) >= 4 {
		o.HasSPI, o.SPI = true, binary.BigEndian.Uint32(b)
	}
	if len(b) >= 8 && !(o.Encap && o.SPI == 0) {
		o.HasSeq, o.Seq = true, binary.BigEndian.Uint32(b[4:])
	}
	return true
}

// Quote returns what Path.TooBig wants to know; last is the last sequence number that the SA with
// o.SPI has sent.
func (o *Outer) Quote(last uint64) Quote {
	return Quote{HasSeq: o.HasSeq, Seq: o.Seq, Last: last, Len: o.Len}
}
