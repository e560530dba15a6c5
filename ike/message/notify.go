package message

import (
	"encoding/binary"
	"net/netip"
)

// Notify is the Notify payload (RFC 7296, section 3.10).
type Notify struct {
	Generic
	Protocol ProtocolID // ProtocolNone unless SPI is there
	SPI      []byte     // of a CHILD SA, 4 octets; else none
	Type     NotifyType
	Data     []byte
}

// firstStatus is the first status notify type (RFC 7296, section 3.10.1).
const firstStatus = 16384

// IsError reports whether t reports an error. RFC 7296, section 3.10.1: an unknown error type
// in a response means that the request failed entirely; in a request it is ignored.
func (v NotifyType) IsError() bool { return v < firstStatus }

// IsStatus reports whether t is a status type; unknown ones are ignored.
func (v NotifyType) IsStatus() bool { return v >= firstStatus }

// NewNotify returns a notify that concerns no particular SA.
func NewNotify(t NotifyType, data ...byte) *Notify { return &Notify{Type: t, Data: data} }

// NewSPINotify returns a notify about the CHILD SA with the given protocol and SPI, such as
// REKEY_SA or CHILD_SA_NOT_FOUND.
func NewSPINotify(t NotifyType, protocol ProtocolID, spi uint32) *Notify {
	return &Notify{Type: t, Protocol: protocol, SPI: binary.BigEndian.AppendUint32(nil, spi)}
}

// NewRekeySA returns N(REKEY_SA): spi is the one that the sender of the notify receives on
// (RFC 7296, section 1.3.3).
func NewRekeySA(protocol ProtocolID, spi uint32) *Notify {
	return NewSPINotify(NotifyRekeySA, protocol, spi)
}

// NewInvalidKE returns N(INVALID_KE_PAYLOAD) that asks for method (RFC 7296, section 1.2).
func NewInvalidKE(method KEMethod) *Notify {
	return &Notify{Type: NotifyInvalidKEPayload, Data: binary.BigEndian.AppendUint16(nil, uint16(method))}
}

// NewSignatureHashAlgorithms returns N(SIGNATURE_HASH_ALGORITHMS) (RFC 7427, section 4).
func NewSignatureHashAlgorithms(hashes ...HashAlgorithm) *Notify {
	n := &Notify{Type: NotifySignatureHashAlgorithms}
	n.Data = make([]byte, 0, 2*len(hashes))
	for _, h := range hashes {
		n.Data = binary.BigEndian.AppendUint16(n.Data, uint16(h))
	}
	return n
}

// SPI32 returns the SPI of an AH or ESP SA; ok is false if there is none of 4 octets.
func (p *Notify) SPI32() (spi uint32, ok bool) {
	if len(p.SPI) != 4 || p.Protocol != ProtocolESP && p.Protocol != ProtocolAH {
		return 0, false
	}
	return binary.BigEndian.Uint32(p.SPI), true
}

// KEMethod returns the method that N(INVALID_KE_PAYLOAD) asks for. Error: *SyntaxError.
func (p *Notify) KEMethod() (KEMethod, error) {
	r := reader{payload: PayloadNotify, b: p.Data}
	m := KEMethod(r.u16("the key exchange method"))
	return m, r.end()
}

// HashAlgorithms returns the list of N(SIGNATURE_HASH_ALGORITHMS). Errors: *SyntaxError,
// *LimitError.
func (p *Notify) HashAlgorithms() ([]HashAlgorithm, error) {
	r := reader{payload: PayloadNotify, b: p.Data}
	if len(p.Data)%2 != 0 {
		r.fail("length of SIGNATURE_HASH_ALGORITHMS", "a multiple of 2 octets", len(p.Data))
	}
	if !r.limit("hash algorithms", len(p.Data)/2, MaxHashAlgorithms) {
		return nil, r.err
	}
	out := make([]HashAlgorithm, len(p.Data)/2)
	for i := range out {
		out[i] = HashAlgorithm(r.u16("a hash algorithm"))
	}
	return out, nil
}

// Err returns the notify as an error: a *PeerError for an error type, nil for a status type
// or a nil notify.
func (p *Notify) Err() error {
	if p == nil || !p.Type.IsError() {
		return nil
	}
	return &PeerError{Type: p.Type, Data: p.Data}
}

// AppendNATDetection appends the octets whose SHA-1 hash is the data of
// NAT_DETECTION_SOURCE_IP and NAT_DETECTION_DESTINATION_IP (RFC 7296, section 2.23): SPIi,
// SPIr, address (4 or 16 octets), port.
func AppendNATDetection(dst []byte, spii, spir SPI, a netip.AddrPort) []byte {
	dst = append(append(dst, spii[:]...), spir[:]...)
	dst = append(dst, a.Addr().Unmap().AsSlice()...)
	return binary.BigEndian.AppendUint16(dst, a.Port())
}

// PayloadType implements Payload.
func (p *Notify) PayloadType() PayloadType { return PayloadNotify }

func parseNotify(g Generic, r *reader) *Notify {
	p := &Notify{Generic: g, Protocol: ProtocolID(r.u8("the protocol ID"))}
	spiSize := int(r.u8("the SPI size"))
	p.Type = NotifyType(r.u16("the notify message type"))
	if spi := r.take("the SPI", spiSize); spiSize > 0 {
		p.SPI = spi
	}
	p.Data = r.rest()
	return p
}

func (p *Notify) appendBody(dst []byte) ([]byte, error) {
	n, err := count8(PayloadNotify, "SPI size", len(p.SPI))
	if err != nil {
		return nil, err
	}
	dst = append(dst, byte(p.Protocol), n)
	dst = binary.BigEndian.AppendUint16(dst, uint16(p.Type))
	return append(append(dst, p.SPI...), p.Data...), nil
}
