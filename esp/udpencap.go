package esp

import "encoding/binary"

// Kind says what a datagram on the NAT traversal port is (RFC 3948 section 2).
type Kind uint8

// Kinds of datagrams.
const (
	KindInvalid   Kind = iota // too short for anything, or a reserved SPI
	KindESP                   // ESP packet: SPI in the first four octets
	KindIKE                   // four zero octets, then an IKE message
	KindKeepalive             // the single octet 0xFF
)

// NonESPMarkerLen is the number of zero octets before an IKE message on the NAT traversal port.
const NonESPMarkerLen = 4

// Classify tells ESP, IKE and keepalives apart (RFC 3948 section 2). For KindIKE the message
// begins after NonESPMarkerLen octets.
func Classify(datagram []byte) Kind {
	if len(datagram) < headerLen {
		if len(datagram) == 1 && datagram[0] == 0xff {
			return KindKeepalive
		}
		return KindInvalid
	}
	switch spi := binary.BigEndian.Uint32(datagram); {
	case spi == 0:
		return KindIKE
	case spi < 256:
		return KindInvalid
	default:
		return KindESP
	}
}

// SPIOf returns the SPI of an ESP packet; false when pkt is too short for an ESP header or the
// SPI is one of the reserved 0 … 255 (RFC 4303 section 2.1), which no SA can have.
func SPIOf(pkt []byte) (spi uint32, ok bool) {
	if len(pkt) < headerLen {
		return 0, false
	}
	spi = binary.BigEndian.Uint32(pkt)
	return spi, spi >= 256
}
