package tun

import "encoding/binary"

// super is what has to be known of a super-packet to cut it, or of an ordinary packet to complete
// its checksum.
type super struct {
	kind uint8 // gsoNone …

	transport int    // offset of the transport header
	payload   int    // offset of the payload: the headers lie before
	size      int    // payload of each segment but the last
	partial   uint16 // pseudo header's sum without the length
	csumAt    int    // offset of the checksum; 0: nothing to complete
	seq       uint32 // of the first segment
	id        uint16 // of the first segment, IPv4
}

// parse takes a packet and its header. An error means that the two do not fit one another.
func (s *super) parse(h *virtioHeader, pkt []byte) error {
	*s = super{}
	if len(pkt) < ipv4HeaderLen {
		return errHeader
	}
	version := pkt[0] >> 4
	if version != 4 && (version != 6 || len(pkt) < ipv6HeaderLen) {
		return errHeader
	}
	transport := int(h.csumStart)
	csumAt := transport + int(h.csumOffset)
	if h.flags&flagNeedsCsum != 0 && (transport < ipv4HeaderLen || csumAt+2 > len(pkt)) {
		return errHeader
	}
	kind := h.gsoType &^ gsoECN
	if kind == gsoNone {
		if h.flags&flagNeedsCsum != 0 {
			s.transport, s.csumAt = transport, csumAt
		}
		return nil
	}

	if h.flags&flagNeedsCsum == 0 || h.gsoSize == 0 || len(pkt) > 0xffff+ipv6HeaderLen {
		return errHeader
	}
	if version == 4 {
		if int(pkt[0]&15)*4 != transport || len(pkt) > 0xffff {
			return errHeader
		}
		s.id = binary.BigEndian.Uint16(pkt[4:])
	} else if transport < ipv6HeaderLen {
		return errHeader
	}
	var proto uint8
	switch kind {
	case gsoTCPv4, gsoTCPv6:
		if (kind == gsoTCPv4) != (version == 4) || h.csumOffset != tcpCsumOffset || transport+tcpHeaderLen > len(pkt) {
			return errHeader
		}
		n := int(pkt[transport+12]>>4) * 4
		if n < tcpHeaderLen {
			return errHeader
		}
		s.payload, proto = transport+n, protoTCP
		s.seq = binary.BigEndian.Uint32(pkt[transport+4:])
	case gsoUDPL4:
		if h.csumOffset != udpCsumOffset || transport+udpHeaderLen > len(pkt) {
			return errHeader
		}
		s.payload, proto = transport+udpHeaderLen, protoUDP
	default:
		return errGSOType
	}
	if s.payload >= len(pkt) || version == 4 && pkt[9] != proto {
		return errHeader
	}
	s.transport, s.csumAt, s.kind, s.size = transport, csumAt, kind, int(h.gsoSize)
	// The kernel left the sum of the pseudo header in the checksum's place, made with the length
	// of the whole. Taking that length out again is right also where the destination of the
	// pseudo header is not that of the IPv6 header (routing header).
	s.partial = addOnes(binary.BigEndian.Uint16(pkt[csumAt:]), ^uint16(len(pkt)-transport))
	return nil
}

// segmenter cuts one super-packet into packets, as Linux' software GSO does
// (net/ipv4/tcp_offload.c and udp_offload.c describe the same in C). It holds a slice of the
// super-packet until it is done.
type segmenter struct {
	super
	pkt []byte // what is left when nothing is: nil
	at  int    // offset of the payload that comes next
}

// begin takes a packet and its header. An error means that the two do not fit one another.
func (s *segmenter) begin(h *virtioHeader, pkt []byte) error {
	s.pkt = nil
	if err := s.parse(h, pkt); err != nil {
		return err
	}
	s.pkt, s.at = pkt, s.payload
	return nil
}

// done reports that there is nothing left.
func (s *segmenter) done() bool { return s.pkt == nil }

// next writes the next packet into dst and returns its length. errTooSmall: dst is too short, the
// packet is dropped.
func (s *segmenter) next(dst []byte) (n int, err error) {
	if s.kind == gsoNone {
		pkt := s.pkt
		s.pkt = nil
		if len(pkt) > len(dst) {
			return 0, errTooSmall
		}
		n = copy(dst, pkt)
		if s.csumAt != 0 {
			s.complete(dst[:n])
		}
		return n, nil
	}

	pkt, first := s.pkt, s.at == s.payload
	size := min(s.size, len(pkt)-s.at)
	last := s.at+size == len(pkt)
	data, seq, id := pkt[s.at:s.at+size], s.seq, s.id
	s.at += size
	s.seq += uint32(size)
	s.id++ // RFC 6864 does not need it with DF set, but Linux does so and receivers glue by it
	if last {
		s.pkt = nil
	}
	n = s.payload + size
	if n > len(dst) {
		return 0, errTooSmall
	}
	dst = dst[:n]
	copy(dst, pkt[:s.payload])
	copy(dst[s.payload:], data)

	if dst[0]>>4 == 4 {
		binary.BigEndian.PutUint16(dst[2:], uint16(n))
		binary.BigEndian.PutUint16(dst[4:], id)
		putIPv4Checksum(dst[:s.transport])
	} else {
		binary.BigEndian.PutUint16(dst[4:], uint16(n-ipv6HeaderLen))
	}
	l4 := dst[s.transport:]
	if s.kind == gsoUDPL4 {
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	} else {
		binary.BigEndian.PutUint32(l4[4:], seq)
		if !last {
			l4[13] &^= tcpFIN | tcpPSH
		}
		if !first {
			l4[13] &^= tcpCWR // RFC 3168 section 6.1.2: said once
		}
	}
	binary.BigEndian.PutUint16(dst[s.csumAt:], addOnes(s.partial, uint16(len(l4))))
	s.complete(dst)
	return n, nil
}

// TCP flags (RFC 9293 section 3.1).
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpCWR = 0x80
)

// complete replaces the pseudo header's sum by the checksum.
func (s *super) complete(pkt []byte) {
	sum := ^onesSum(pkt[s.transport:], 0)
	if sum == 0 && s.csumAt-s.transport == udpCsumOffset {
		sum = 0xffff // RFC 768: zero means none; the same number in one's complement
	}
	binary.BigEndian.PutUint16(pkt[s.csumAt:], sum)
}
