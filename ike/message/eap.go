package message

import "encoding/binary"

// EAP is the Extensible Authentication Protocol payload (RFC 7296, section 3.16). Wardgate
// understands its frame only, to name it in logs; no Form allows it.
type EAP struct {
	Generic
	Code       EAPCode
	Identifier uint8
	Data       []byte // type and type data
}

// PayloadType implements Payload.
func (p *EAP) PayloadType() PayloadType { return PayloadEAP }

const eapHeaderLen = 4

func parseEAP(g Generic, r *reader) *EAP {
	whole := len(r.b)
	p := &EAP{Generic: g, Code: EAPCode(r.u8("the EAP code")), Identifier: r.u8("the EAP identifier")}
	if n := int(r.u16("the EAP length")); r.err == nil && n != whole {
		r.fail("EAP length", "the "+itoa(whole)+" octets of the payload", n)
	}
	p.Data = r.rest()
	return p
}

func (p *EAP) appendBody(dst []byte) ([]byte, error) {
	n := eapHeaderLen + len(p.Data)
	if n > 0xffff {
		return nil, &EncodeError{Payload: PayloadEAP, Field: "EAP length", Want: "at most 65535", Got: n}
	}
	dst = append(dst, byte(p.Code), p.Identifier)
	dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	return append(dst, p.Data...), nil
}
