package message

import "encoding/binary"

// CP is the Configuration payload (RFC 7296, section 3.15).
type CP struct {
	Generic
	Type       CfgType
	Attributes []CfgAttribute
}

// CfgAttribute is one configuration attribute (RFC 7296, section 3.15.1).
type CfgAttribute struct {
	Type  CfgAttributeType // 15 bits
	Value []byte
}

// PayloadType implements Payload.
func (p *CP) PayloadType() PayloadType { return PayloadCP }

func parseCP(g Generic, r *reader) *CP {
	p := &CP{Generic: g, Type: CfgType(r.u8("the CFG type"))}
	r.take("the reserved octets", 3)
	for len(r.b) > 0 && r.err == nil {
		if !r.limit("configuration attributes", len(p.Attributes)+1, MaxCfgAttributes) {
			break
		}
		a := CfgAttribute{Type: CfgAttributeType(r.u16("a configuration attribute") &^ 0x8000)}
		a.Value = r.take("an attribute's value", int(r.u16("a configuration attribute")))
		p.Attributes = append(p.Attributes, a)
	}
	return p
}

func (p *CP) appendBody(dst []byte) ([]byte, error) {
	if n := len(p.Attributes); n > MaxCfgAttributes {
		return nil, &EncodeError{Payload: PayloadCP, Field: "number of attributes", Want: "at most 128", Got: n}
	}
	dst = append(dst, byte(p.Type), 0, 0, 0)
	for _, a := range p.Attributes {
		if a.Type > 0x7fff {
			return nil, &EncodeError{Payload: PayloadCP, Field: "attribute type", Want: "at most 32767", Got: int(a.Type)}
		}
		if len(a.Value) > 0xffff {
			return nil, &EncodeError{Payload: PayloadCP, Field: "attribute length", Want: "at most 65535", Got: len(a.Value)}
		}
		dst = binary.BigEndian.AppendUint16(dst, uint16(a.Type))
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(a.Value)))
		dst = append(dst, a.Value...)
	}
	return dst, nil
}
