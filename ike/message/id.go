package message

import (
	"encoding/hex"
	"net/netip"
)

// ID is the Identification payload, IDi or IDr (RFC 7296, section 3.5).
type ID struct {
	Generic
	Responder bool // IDr
	Type      IDType
	Reserved  [3]byte // zero when sent; kept because the AUTH payload covers it
	Data      []byte
}

// NewIDi and NewIDr return an identity of the given type.
func NewIDi(t IDType, data []byte) *ID { return &ID{Type: t, Data: data} }

// NewIDr is NewIDi for the responder's identity.
func NewIDr(t IDType, data []byte) *ID { return &ID{Responder: true, Type: t, Data: data} }

// PayloadType implements Payload.
func (p *ID) PayloadType() PayloadType {
	if p.Responder {
		return PayloadIDr
	}
	return PayloadIDi
}

// Body returns RestOfInitIDPayload or RestOfRespIDPayload of RFC 7296, section 2.15: the
// payload without its generic header, the octets that enter the AUTH payload's MAC. They are
// a new slice, identical to what was received.
func (p *ID) Body() []byte {
	b := make([]byte, 0, 4+len(p.Data))
	b = append(b, byte(p.Type), p.Reserved[0], p.Reserved[1], p.Reserved[2])
	return append(b, p.Data...)
}

// Addr returns the address of an ID_IPV4_ADDR or ID_IPV6_ADDR, else the zero Addr.
func (p *ID) Addr() netip.Addr {
	if p.Type != IDIPv4Addr && p.Type != IDIPv6Addr {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(p.Data)
	return a
}

// String returns the identity for people: text escaped by SafeText, addresses as usual,
// everything else as type and hexadecimal digits.
func (p *ID) String() string {
	switch p.Type {
	case IDFQDN, IDRFC822Addr:
		return SafeText(p.Data)
	case IDIPv4Addr, IDIPv6Addr:
		if a := p.Addr(); a.IsValid() {
			return a.String()
		}
	default: // binary: in hexadecimal
	}
	return p.Type.String() + ":" + hex.EncodeToString(p.Data[:min(len(p.Data), maxText)])
}

func parseID(g Generic, responder bool, r *reader) *ID {
	p := &ID{Generic: g, Responder: responder, Type: IDType(r.u8("the ID type"))}
	copy(p.Reserved[:], r.take("the reserved octets", 3))
	p.Data = r.rest()
	switch n := len(p.Data); {
	case p.Type == IDIPv4Addr && n != 4:
		r.fail("length of an ID_IPV4_ADDR", "4 octets", n)
	case p.Type == IDIPv6Addr && n != 16:
		r.fail("length of an ID_IPV6_ADDR", "16 octets", n)
	case n == 0 && p.Type != IDNull:
		r.fail("length of the identification data", "at least 1 octet", n)
	}
	return p
}

func (p *ID) appendBody(dst []byte) ([]byte, error) {
	dst = append(dst, byte(p.Type), p.Reserved[0], p.Reserved[1], p.Reserved[2])
	return append(dst, p.Data...), nil
}
