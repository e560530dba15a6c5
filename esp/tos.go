package esp

// ECN codepoints (RFC 3168 section 5), the two low bits of the IPv4 TOS octet and of the IPv6
// traffic class.
const (
	notECT = 0
	ect1   = 1
	ect0   = 2
	ce     = 3
)

// tosOf returns the TOS octet or traffic class of an IP packet, ok false if there is no header.
func tosOf(pkt []byte) (tos uint8, ok bool) {
	switch {
	case len(pkt) >= 20 && pkt[0]>>4 == 4:
		return pkt[1], true
	case len(pkt) >= 40 && pkt[0]>>4 == 6:
		return pkt[0]<<4 | pkt[1]>>4, true
	}
	return 0, false
}

// OuterTOS returns the TOS octet (traffic class) for the outer header of the inner IP packet: DSCP
// copied (RFC 4301 section 5.1.2, the uniform model of RFC 2983), ECN copied (RFC 6040 section
// 4.1, normal mode; IKEv2 peers need no other, section 4.3). 0 for what is not an IP packet.
func OuterTOS(inner []byte) uint8 {
	tos, _ := tosOf(inner)
	return tos
}

// decapECN is figure 4 of RFC 6040: [inner][outer] to the outgoing codepoint; ecnDrop drops.
const ecnDrop = 0xff

var decapECN = [4][4]uint8{
	notECT: {notECT: notECT, ect0: notECT, ect1: notECT, ce: ecnDrop},
	ect0:   {notECT: ect0, ect0: ect0, ect1: ect1, ce: ce},
	ect1:   {notECT: ect1, ect0: ect1, ect1: ect1, ce: ce},
	ce:     {notECT: ce, ect0: ce, ect1: ce, ce: ce},
}

// DecapECN brings the ECN field of the outer header into the inner IP packet, as RFC 6040
// section 4.2 says, and mends the IPv4 header checksum by the difference (RFC 1624). DSCP of the
// inner header stays as it was. drop is true for congestion experienced on a flow that does not
// understand it, and for what is not an IP packet.
func DecapECN(outerTOS uint8, inner []byte) (drop bool) {
	tos, ok := tosOf(inner)
	if !ok {
		return true
	}
	ecn := decapECN[tos&3][outerTOS&3]
	if ecn == ecnDrop {
		return true
	}
	if ecn == tos&3 {
		return false
	}
	if inner[0]>>4 == 6 {
		inner[1] = inner[1]&^0x30 | ecn<<4
		return false
	}
	inner[1] = tos&^3 | ecn
	// RFC 1624, equation 3: HC' = ~(~HC + ~m + m'), m the 16-bit word of version, IHL and TOS.
	sum := uint32(^(uint16(inner[10])<<8 | uint16(inner[11]))) + uint32(^(uint16(inner[0])<<8 | uint16(tos))) + uint32(inner[0])<<8 + uint32(inner[1])
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	inner[10], inner[11] = ^byte(sum>>8), ^byte(sum)
	return false
}

// ECNAnomaly reports the combinations that RFC 6040 section 4.2 calls "(!!!)" or "(!)": nothing
// that conforms makes them, so the owner SHOULD log them, not too often.
func ECNAnomaly(outerTOS, innerTOS uint8) bool {
	switch in, out := innerTOS&3, outerTOS&3; in {
	case notECT:
		return out != notECT
	case ect1:
		return out == ect0
	case ce:
		return out == ect1
	}
	return false
}
