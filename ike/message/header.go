package message

import (
	"encoding/binary"
	"encoding/hex"
)

// HeaderLen is the size of the IKE header in octets.
const HeaderLen = 28

// genericLen is the size of the generic payload header in octets.
const genericLen = 4

// SPI is an IKE SA's security parameter index (8 octets).
type SPI [8]byte

// IsZero reports whether s is the "not yet known" SPI of an IKE_SA_INIT request.
func (s SPI) IsZero() bool { return s == SPI{} }

// String returns 16 hexadecimal digits.
func (s SPI) String() string { return hex.EncodeToString(s[:]) }

// HeaderFlags are the flags of the IKE header (RFC 7296, section 3.1).
type HeaderFlags uint8

// Header flags.
const (
	FlagInitiator HeaderFlags = 0x08 // sent by the original initiator of the IKE SA
	FlagVersion   HeaderFlags = 0x10 // the sender can speak a higher major version
	FlagResponse  HeaderFlags = 0x20 // response to the message with the same Message ID
)

const knownFlags = FlagInitiator | FlagVersion | FlagResponse

// Header is the IKE header (RFC 7296, section 3.1) without the fields that follow from the
// rest of the message: next payload, major version (always 2) and length.
type Header struct {
	SPIi, SPIr SPI // of the original initiator and responder of the IKE SA
	Minor      uint8
	Exchange   ExchangeType
	Flags      HeaderFlags
	MessageID  uint32
}

// IsResponse reports whether the message is a response.
func (h Header) IsResponse() bool { return h.Flags&FlagResponse != 0 }

// FromInitiator reports whether the sender is the original initiator of the IKE SA.
func (h Header) FromInitiator() bool { return h.Flags&FlagInitiator != 0 }

// Response returns the header of the response to h: the same SPIs, exchange and Message ID,
// response flag set and initiator flag inverted (RFC 7296, section 3.1). For the response to
// an IKE_SA_INIT request the caller fills in SPIr.
func (h Header) Response() Header {
	r := h
	r.Minor = 0
	r.Flags = FlagResponse | (h.Flags&FlagInitiator ^ FlagInitiator)
	return r
}

// ParseHeader reads the IKE header at the front of b. first is the type of the first payload,
// length the whole message's length in octets as the sender states it; it is not compared
// with len(b). Errors: *SyntaxError, *VersionError.
func ParseHeader(b []byte) (h Header, first PayloadType, length uint32, err error) {
	if len(b) < HeaderLen {
		return Header{}, 0, 0, &SyntaxError{Field: "length of the datagram", Want: "at least the 28 octets of the IKE header", Got: len(b)}
	}
	copy(h.SPIi[:], b)
	copy(h.SPIr[:], b[8:])
	first = PayloadType(b[16])
	major := b[17] >> 4
	h.Minor = b[17] & 0x0f // RFC 7296, section 2.5: the minor version is ignored
	h.Exchange = ExchangeType(b[18])
	h.Flags = HeaderFlags(b[19]) & knownFlags
	h.MessageID = binary.BigEndian.Uint32(b[20:])
	length = binary.BigEndian.Uint32(b[24:])
	if major != 2 {
		return h, first, length, &VersionError{Major: major, Minor: h.Minor, Header: h}
	}
	return h, first, length, nil
}

// append writes the header with the given length.
func (h Header) append(dst []byte, first PayloadType, length int) []byte {
	dst = append(dst, h.SPIi[:]...)
	dst = append(dst, h.SPIr[:]...)
	dst = append(dst, byte(first), 2<<4|h.Minor&0x0f, byte(h.Exchange), byte(h.Flags&knownFlags))
	dst = binary.BigEndian.AppendUint32(dst, h.MessageID)
	return binary.BigEndian.AppendUint32(dst, uint32(length))
}
