package router

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Upper-layer protocol numbers (IANA) that the flow table treats by name.
const (
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoICMPv6   = 58
	protoUDPLite  = 136
	protoDCCP     = 33
	protoSCTP     = 132
	protoHopByHop = 0
	protoRouting  = 43
	protoFragment = 44
	protoNoNext   = 59
	protoDestOpts = 60
	protoAH       = 51
	protoMobility = 135
)

// TCP flags (RFC 9293, section 3.1).
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
)

// Limits of the walk along IPv6 extension headers: more than this is no ordinary packet.
const (
	maxExtensionHeaders = 8
	maxExtensionBytes   = 512
)

var (
	errTruncated  = errors.New("packet is shorter than its headers say")
	errVersion    = errors.New("not an IPv4 or IPv6 packet")
	errHeader     = errors.New("malformed IP header")
	errExtensions = errors.New("too many IPv6 extension headers")
	errRouting    = errors.New("source routing is not forwarded")
	errTinyFrag   = errors.New("first fragment without the whole transport header")
)

// packet is what the data path knows of an inner packet after one walk over its headers. It
// holds no reference to the packet's bytes.
type packet struct {
	src, dst netip.Addr
	proto    uint8 // upper-layer protocol, behind IPv6 extension headers
	tos      uint8 // traffic class: DSCP and ECN

	// srcPort and dstPort are the ports; for ICMP the type and the code.
	srcPort, dstPort uint16
	noPorts          bool // the upper layer is not visible (later fragment) or has no ports

	icmpID    uint16 // identifier of an ICMP echo
	icmpEcho  bool   // echo request or reply
	icmpReply bool   // echo reply
	icmpError bool   // ICMP error: embedded holds the packet it is about
	embedded  int    // offset of the packet embedded in an ICMP error

	fragment  bool // one of several fragments
	first     bool // the first fragment (offset 0)
	fragID    uint32
	dontFrag  bool // IPv4 DF, and every IPv6 packet
	headerLen int  // IP header with extension headers
}

// parse reads the headers of the inner packet b. It refuses whatever the policy could not be
// sure about: truncated headers, source routing, tiny first fragments (RFC 1858, RFC 3128), long
// chains of extension headers (RFC 8200, section 4).
func (p *packet) parse(b []byte) error {
	*p = packet{}
	if len(b) == 0 {
		return errTruncated
	}
	switch b[0] >> 4 {
	case 4:
		return p.parse4(b)
	case 6:
		return p.parse6(b)
	}
	return errVersion
}

func (p *packet) parse4(b []byte) error {
	if len(b) < 20 {
		return errTruncated
	}
	hl := int(b[0]&0x0f) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if hl < 20 || total < hl {
		return errHeader
	}
	if len(b) < total {
		return errTruncated
	}
	b = b[:total]
	p.src = netip.AddrFrom4([4]byte(b[12:16]))
	p.dst = netip.AddrFrom4([4]byte(b[16:20]))
	p.proto, p.tos, p.headerLen = b[9], b[1], hl
	for o := 20; o < hl; {
		switch b[o] {
		case 0:
			o = hl
		case 1:
			o++
		case 131, 137: // loose and strict source route
			return errRouting
		default:
			if o+1 >= hl || b[o+1] < 2 {
				return errHeader
			}
			o += int(b[o+1])
		}
	}
	frag := binary.BigEndian.Uint16(b[6:])
	p.dontFrag = frag&0x4000 != 0
	offset := frag & 0x1fff
	if frag&0x2000 != 0 || offset != 0 {
		p.fragment, p.first = true, offset == 0
		p.fragID = uint32(binary.BigEndian.Uint16(b[4:]))
		if offset != 0 {
			p.noPorts = true
			if p.proto == protoTCP && offset == 1 {
				// RFC 3128: would overwrite the TCP header that the first fragment was judged by
				return errTinyFrag
			}
			return nil
		}
	}
	return p.parseUpper(b[hl:], hl)
}

func (p *packet) parse6(b []byte) error {
	if len(b) < 40 {
		return errTruncated
	}
	total := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if len(b) < total {
		return errTruncated
	}
	b = b[:total]
	p.src = netip.AddrFrom16([16]byte(b[8:24]))
	p.dst = netip.AddrFrom16([16]byte(b[24:40]))
	if p.src.Is4In6() || p.dst.Is4In6() {
		// RFC 4038, section 4.2: must not appear on the wire; would make one host two addresses
		return errHeader
	}
	p.tos = b[0]<<4 | b[1]>>4
	p.dontFrag = true
	next, o := b[6], 40
	for n := 0; ; n++ {
		switch next {
		case protoHopByHop, protoRouting, protoDestOpts, protoFragment, protoMobility:
		default:
			p.proto, p.headerLen = next, o
			if next == protoNoNext {
				p.noPorts = true
				return nil
			}
			return p.parseUpper(b[o:], o)
		}
		if n == maxExtensionHeaders || o-40 > maxExtensionBytes {
			return errExtensions
		}
		if len(b) < o+8 {
			return errTruncated
		}
		switch next {
		case protoRouting:
			// RFC 8200, section 4.4; RFC 5095: segments left means the packet is on a
			// path of its sender's making
			if b[o+3] != 0 {
				return errRouting
			}
		case protoFragment:
			offset := binary.BigEndian.Uint16(b[o+2:])
			if offset>>3 != 0 || offset&1 != 0 {
				p.fragment, p.first = true, offset>>3 == 0
				p.fragID = binary.BigEndian.Uint32(b[o+4:])
				if !p.first {
					// The upper-layer protocol is what the first fragment says (RFC 8200,
					// section 4.5); flows.go looks it up by fragID.
					p.proto, p.headerLen, p.noPorts = b[o], o+8, true
					return nil
				}
			}
			next, o = b[o], o+8
			continue
		}
		size := (int(b[o+1]) + 1) * 8
		if len(b) < o+size {
			return errTruncated
		}
		next, o = b[o], o+size
	}
}

// parseUpper reads the ports, or the ICMP type and code, from the upper layer u, which begins at
// offset at of the packet.
func (p *packet) parseUpper(u []byte, at int) error {
	var need int
	switch p.proto {
	case protoTCP:
		need = 20
	case protoUDP, protoUDPLite, protoICMP, protoICMPv6, protoSCTP:
		need = 8
	case protoDCCP:
		need = 12
	default:
		p.noPorts = true
		return nil
	}
	if len(u) < need {
		if p.fragment {
			return errTinyFrag
		}
		return errTruncated
	}
	switch p.proto {
	case protoICMP, protoICMPv6:
		t := u[0]
		p.srcPort, p.dstPort = uint16(t), uint16(u[1])
		switch {
		case p.proto == protoICMP && (t == 8 || t == 0), p.proto == protoICMPv6 && (t == 128 || t == 129):
			p.icmpEcho, p.icmpReply = true, t == 0 || t == 129
			p.icmpID = binary.BigEndian.Uint16(u[4:])
		case p.proto == protoICMP && (t == 3 || t == 4 || t == 11 || t == 12), p.proto == protoICMPv6 && t < 128:
			p.icmpError, p.embedded = true, at+8
		}
	default:
		p.srcPort, p.dstPort = binary.BigEndian.Uint16(u), binary.BigEndian.Uint16(u[2:])
	}
	return nil
}

// parseEmbedded reads the packet that an ICMP error quotes: its addresses, protocol and ports. Of
// the quoted packet only the IP header and eight more octets need to be there (RFC 792), so the
// checks are those of a quotation, not of a packet.
func (p *packet) parseEmbedded(b []byte) error {
	*p = packet{}
	if len(b) < 20 {
		return errTruncated
	}
	var u []byte
	switch b[0] >> 4 {
	case 4:
		hl := int(b[0]&0x0f) * 4
		if hl < 20 || len(b) < hl {
			return errHeader
		}
		p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		p.proto, p.headerLen = b[9], hl
		if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			p.noPorts = true
			return nil
		}
		u = b[hl:]
	case 6:
		if len(b) < 40 {
			return errTruncated
		}
		p.src, p.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		p.proto, p.headerLen = b[6], 40
		u = b[40:]
	default:
		return errVersion
	}
	switch p.proto {
	case protoTCP, protoUDP, protoUDPLite, protoSCTP, protoDCCP:
		if len(u) < 4 {
			return errTruncated
		}
		p.srcPort, p.dstPort = binary.BigEndian.Uint16(u), binary.BigEndian.Uint16(u[2:])
	case protoICMP, protoICMPv6:
		if len(u) < 8 {
			return errTruncated
		}
		t := u[0]
		p.srcPort, p.dstPort = uint16(t), uint16(u[1])
		if p.proto == protoICMP && (t == 8 || t == 0) || p.proto == protoICMPv6 && (t == 128 || t == 129) {
			p.icmpEcho, p.icmpReply = true, t == 0 || t == 129
			p.icmpID = binary.BigEndian.Uint16(u[4:])
		}
	default:
		p.noPorts = true
	}
	return nil
}
