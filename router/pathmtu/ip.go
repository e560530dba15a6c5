package pathmtu

import (
	"encoding/binary"
	"math/bits"
)

const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoRouting  = 43
	protoFragment = 44
	protoAH       = 51
	protoICMPv6   = 58
	protoDestOpts = 60
	protoMobility = 135

	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20
	udpHeaderLen  = 8
	icmpHeaderLen = 8

	flagDF       = 0x4000 // of the IPv4 flags and fragment offset
	flagMF       = 0x2000
	maskOffset   = 0x1fff
	maxExtension = 8 // IPv6 extension headers; more is no ordinary packet
)

// upper says where the upper layer of a packet lies.
type upper struct {
	v6    bool
	proto uint8 // behind extension headers
	off   int   // of the upper layer, or of what is there in a later fragment
	end   int   // of the packet, by its own header
	later bool  // a fragment that is not the first
}

// parse walks over the IP headers of pkt. ok is false for whatever is not an IP packet, is shorter
// than it says, or has more extension headers than any ordinary packet.
func parse(pkt []byte) (u upper, ok bool) {
	if len(pkt) < ipv4HeaderLen {
		return u, false
	}
	switch pkt[0] >> 4 {
	case 4:
		u.off = int(pkt[0]&15) * 4
		u.end = int(binary.BigEndian.Uint16(pkt[2:]))
		u.proto = pkt[9]
		u.later = binary.BigEndian.Uint16(pkt[6:])&maskOffset != 0
		return u, u.off >= ipv4HeaderLen && u.end >= u.off && u.end <= len(pkt)
	case 6:
		if len(pkt) < ipv6HeaderLen {
			return u, false
		}
		u.v6 = true
		u.end = ipv6HeaderLen + int(binary.BigEndian.Uint16(pkt[4:]))
		return u, u.end <= len(pkt) && u.walk(pkt[:u.end])
	}
	return u, false
}

// walk goes along the extension headers of the IPv6 packet (RFC 8200, section 4.1).
func (u *upper) walk(pkt []byte) bool {
	u.proto, u.off = pkt[6], ipv6HeaderLen
	for range maxExtension + 1 {
		unit, plus := 8, 1
		switch u.proto {
		case protoHopByHop, protoRouting, protoDestOpts, protoMobility:
		case protoAH:
			unit, plus = 4, 2 // RFC 4302, section 2.2
		case protoFragment:
			unit = 0
		default:
			return true
		}
		if u.off+8 > len(pkt) {
			return false
		}
		h := pkt[u.off:]
		size := 8
		if unit != 0 {
			size = (int(h[1]) + plus) * unit
		}
		if u.off+size > len(pkt) {
			return false
		}
		fragment := u.proto == protoFragment
		u.proto = h[0]
		u.off += size
		if fragment && binary.BigEndian.Uint16(h[2:])>>3 != 0 {
			u.later = true
			return true
		}
	}
	return false
}

// sum returns the folded one's complement sum (RFC 1071) of b and initial, not inverted. Words are
// added as they lie and swapped once: the sum does not depend on the byte order (section 2 B).
func sum(b []byte, initial uint16) uint16 {
	s := uint64(bits.ReverseBytes16(initial))
	var carry uint64
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(last[:]), 0)
		s += carry
	}
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return bits.ReverseBytes16(uint16(s))
}

// add adds two 16-bit words in one's complement.
func add(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}
