package pathmtu

import (
	"encoding/binary"
	"math/bits"
)

const (
	tcpFlags    = 13 // offsets in the TCP header
	tcpChecksum = 16
	tcpSYN      = 0x02

	optEnd = 0 // RFC 9293, section 3.2; IPv4 has the same two
	optNop = 1
	optMSS = 2
)

// ClampMSS lowers the MSS option of a TCP SYN or SYN/ACK in pkt, so that the segments that answer
// it fit mtu octets with their IP and TCP headers, and reports whether it did. The MSS does not
// count options (RFC 6691, section 2), so the limit is mtu less 40 octets (IPv4) or 60 (IPv6).
// The checksum, which must be complete, is changed by the difference (RFC 1624).
//
// Nothing else is touched: an MSS is never raised; without the option a sender keeps to 536 or
// 1220 (RFC 9293, section 3.7.1) and there is no room to add one; a malformed option and what
// stands behind it are left alone, as receivers do; so is a packet when mtu has no room for headers.
func ClampMSS(pkt []byte, mtu int) bool {
	// Nearly every packet leaves here.
	if len(pkt) < ipv4HeaderLen+tcpHeaderLen {
		return false
	}
	off, limit := ipv6HeaderLen, mtu-ipv6HeaderLen-tcpHeaderLen
	switch pkt[0] >> 4 {
	case 4:
		off, limit = int(pkt[0]&15)*4, mtu-ipv4HeaderLen-tcpHeaderLen
		if pkt[9] != protoTCP {
			return false
		}
	case 6:
		switch pkt[6] {
		case protoTCP:
		case protoHopByHop, protoRouting, protoDestOpts, protoFragment, protoAH, protoMobility:
			return clampBehindExtensions(pkt, limit)
		default:
			return false
		}
	default:
		return false
	}
	if off+tcpHeaderLen > len(pkt) || pkt[off+tcpFlags]&tcpSYN == 0 {
		return false
	}
	return clamp(pkt, limit)
}

// clampBehindExtensions keeps the walk along extension headers out of the way of the rest.
func clampBehindExtensions(pkt []byte, limit int) bool {
	u, ok := parse(pkt)
	if !ok || u.proto != protoTCP || u.later || u.off+tcpHeaderLen > u.end || pkt[u.off+tcpFlags]&tcpSYN == 0 {
		return false
	}
	return clamp(pkt, limit)
}

func clamp(pkt []byte, limit int) (changed bool) {
	u, ok := parse(pkt)
	if !ok || u.later || u.off+tcpHeaderLen > u.end || limit < 1 {
		return false
	}
	h := pkt[u.off:u.end]
	end := int(h[12]>>4) * 4
	if end > len(h) {
		return false
	}
	h = h[:max(end, tcpHeaderLen)]
	for o := tcpHeaderLen; o < len(h); {
		if h[o] == optEnd {
			break
		}
		if h[o] == optNop {
			o++
			continue
		}
		if o+1 >= len(h) {
			break
		}
		n := int(h[o+1])
		if n < 2 || o+n > len(h) {
			break
		}
		// All of them, should there be several: receivers take the last.
		if h[o] == optMSS && n == 4 && int(binary.BigEndian.Uint16(h[o+2:])) > limit {
			putMSS(h, o+2, uint16(limit))
			changed = true
		}
		o += n
	}
	return changed
}

// putMSS changes the 16 bits at h[at:] and the checksum.
func putMSS(h []byte, at int, mss uint16) {
	old := binary.BigEndian.Uint16(h[at:])
	binary.BigEndian.PutUint16(h[at:], mss)
	if at%2 != 0 {
		// The octets are the halves of two words: the low one of one, the high one of the next.
		old, mss = bits.ReverseBytes16(old), bits.ReverseBytes16(mss)
	}
	// RFC 1624, section 3, equation 3: HC' = ~(~HC + ~m + m')
	check := binary.BigEndian.Uint16(h[tcpChecksum:])
	binary.BigEndian.PutUint16(h[tcpChecksum:], ^add(add(^check, ^old), mss))
}
