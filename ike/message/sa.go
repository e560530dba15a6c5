package message

import (
	"encoding/binary"
	"strconv"
	"strings"
)

// SA is the Security Association payload (RFC 7296, section 3.3).
type SA struct {
	Generic
	Proposals []Proposal // at least one
}

// Proposal is one proposal substructure (RFC 7296, section 3.3.1).
type Proposal struct {
	Number     uint8 // 1, 2, 3, … in an offer; the chosen one's in the answer
	Protocol   ProtocolID
	SPI        []byte // none, 8 octets (IKE SA rekeying) or 4 octets (AH, ESP)
	Transforms []Transform
}

// Transform is one transform substructure (RFC 7296, section 3.3.2).
type Transform struct {
	Type       TransformType
	ID         uint16 // EncrID, PRFID, IntegID, KEMethod or SNID, according to Type
	Attributes []Attribute
}

// Attribute is one transform attribute (RFC 7296, section 3.3.5).
type Attribute struct {
	Type  AttributeType // 15 bits
	Value uint16        // short form, if Long is nil
	Long  []byte        // long form, if not nil
}

// NewTransform returns a transform; keyBits 0 means without a Key Length attribute.
func NewTransform(t TransformType, id uint16, keyBits int) Transform {
	tr := Transform{Type: t, ID: id}
	if keyBits != 0 {
		tr.Attributes = []Attribute{{Type: AttributeKeyLength, Value: uint16(keyBits)}}
	}
	return tr
}

// KeyBits returns the value of the Key Length attribute in bits, 0 if there is none. known is
// false if the transform has any attribute that makes it another one than its ID and key
// length say: an unknown or repeated one, or a Key Length in the long form. RFC 7296, section
// 3.3.6: such a transform must not be chosen.
func (t Transform) KeyBits() (bits int, known bool) {
	seen := false
	for _, a := range t.Attributes {
		if a.Type != AttributeKeyLength || a.Long != nil || seen {
			return 0, false
		}
		bits, seen = int(a.Value), true
	}
	return bits, true
}

// PayloadType implements Payload.
func (p *SA) PayloadType() PayloadType { return PayloadSA }

// Values of the "last substructure" fields.
const (
	lastSubstruc   = 0
	moreProposals  = 2
	moreTransforms = 3
)

func parseSA(g Generic, r *reader) *SA {
	p := &SA{Generic: g}
	if len(r.b) == 0 {
		r.fail("number of proposals", "at least 1", 0)
	}
	for len(r.b) > 0 && r.err == nil {
		if !r.limit("proposals", len(p.Proposals)+1, MaxProposals) {
			break
		}
		last := r.u8("a proposal")
		r.u8("a proposal")
		body := r.sub("proposal", int(r.u16("a proposal")), 4)
		prop := parseProposal(&body)
		if r.err = body.end(); r.err != nil {
			break
		}
		checkLast(r, "proposal's last substructure field", last, moreProposals)
		p.Proposals = append(p.Proposals, prop)
	}
	return p
}

// checkLast checks the redundant "last substructure" field against what really follows.
func checkLast(r *reader, field string, got, more uint8) {
	want := uint8(lastSubstruc)
	if len(r.b) > 0 {
		want = more
	}
	if got != want {
		r.fail(field, itoa(int(want)), int(got))
	}
}

func parseProposal(r *reader) Proposal {
	prop := Proposal{Number: r.u8("a proposal"), Protocol: ProtocolID(r.u8("a proposal"))}
	spiSize := int(r.u8("a proposal"))
	count := int(r.u8("a proposal"))
	if spi := r.take("the proposal's SPI", spiSize); spiSize > 0 {
		prop.SPI = spi
	}
	if !r.limit("transforms in a proposal", count, MaxTransforms) {
		return prop
	}
	for i := 0; i < count && r.err == nil; i++ {
		last := r.u8("a transform")
		r.u8("a transform")
		body := r.sub("transform", int(r.u16("a transform")), 4)
		t := parseTransform(&body)
		if r.err = body.end(); r.err != nil {
			break
		}
		checkLast(r, "transform's last substructure field", last, moreTransforms)
		if prop.Transforms == nil {
			// A transform has at least 8 octets, so the count cannot ask for more than came.
			prop.Transforms = make([]Transform, 0, min(count, 1+len(r.b)/8))
		}
		prop.Transforms = append(prop.Transforms, t)
	}
	return prop
}

func parseTransform(r *reader) Transform {
	t := Transform{Type: TransformType(r.u8("a transform"))}
	r.u8("a transform")
	t.ID = r.u16("a transform")
	for len(r.b) > 0 && r.err == nil {
		if !r.limit("attributes in a transform", len(t.Attributes)+1, MaxAttributes) {
			break
		}
		typ := r.u16("an attribute")
		v := r.u16("an attribute")
		a := Attribute{Type: AttributeType(typ &^ 0x8000)}
		if typ&0x8000 != 0 {
			a.Value = v
		} else {
			a.Long = r.take("an attribute's value", int(v))
		}
		t.Attributes = append(t.Attributes, a)
	}
	return t
}

func (p *SA) appendBody(dst []byte) ([]byte, error) {
	if len(p.Proposals) == 0 || len(p.Proposals) > MaxProposals {
		return nil, &EncodeError{Payload: PayloadSA, Field: "number of proposals", Want: "1 to 64", Got: len(p.Proposals)}
	}
	for i := range p.Proposals {
		prop := &p.Proposals[i]
		start := len(dst)
		spiSize, err := count8(PayloadSA, "SPI size", len(prop.SPI))
		if err != nil {
			return nil, err
		}
		if len(prop.Transforms) > MaxTransforms {
			return nil, &EncodeError{Payload: PayloadSA, Field: "number of transforms", Want: "at most 128", Got: len(prop.Transforms)}
		}
		dst = append(dst, more(i, len(p.Proposals), moreProposals), 0, 0, 0,
			prop.Number, byte(prop.Protocol), spiSize, byte(len(prop.Transforms)))
		dst = append(dst, prop.SPI...)
		for j := range prop.Transforms {
			if dst, err = prop.Transforms[j].append(dst, more(j, len(prop.Transforms), moreTransforms)); err != nil {
				return nil, err
			}
		}
		if err := putLength16(dst, start+2, start, PayloadSA, "proposal length"); err != nil {
			return nil, err
		}
	}
	return dst, nil
}

func more(i, n int, v byte) byte {
	if i+1 < n {
		return v
	}
	return lastSubstruc
}

func (t *Transform) append(dst []byte, last byte) ([]byte, error) {
	start := len(dst)
	if len(t.Attributes) > MaxAttributes {
		return nil, &EncodeError{Payload: PayloadSA, Field: "number of attributes", Want: "at most 8", Got: len(t.Attributes)}
	}
	dst = append(dst, last, 0, 0, 0, byte(t.Type), 0)
	dst = binary.BigEndian.AppendUint16(dst, t.ID)
	for _, a := range t.Attributes {
		if a.Type > 0x7fff {
			return nil, &EncodeError{Payload: PayloadSA, Field: "attribute type", Want: "at most 32767", Got: int(a.Type)}
		}
		if a.Long == nil {
			dst = binary.BigEndian.AppendUint16(dst, uint16(a.Type)|0x8000)
			dst = binary.BigEndian.AppendUint16(dst, a.Value)
			continue
		}
		dst = binary.BigEndian.AppendUint16(dst, uint16(a.Type))
		if len(a.Long) > 0xffff {
			return nil, &EncodeError{Payload: PayloadSA, Field: "attribute length", Want: "at most 65535", Got: len(a.Long)}
		}
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(a.Long)))
		dst = append(dst, a.Long...)
	}
	return dst, putLength16(dst, start+2, start, PayloadSA, "transform length")
}

// String returns the registered name of the transform ID with the key length, such as
// "ENCR_AES_GCM_16-256" or "ADDKE1:ml-kem-768".
func (t Transform) String() string {
	var s string
	switch t.Type {
	case TransformENCR:
		s = EncrID(t.ID).String()
	case TransformPRF:
		s = PRFID(t.ID).String()
	case TransformINTEG:
		s = IntegID(t.ID).String()
	case TransformKE:
		s = KEMethod(t.ID).String()
	case TransformSN:
		s = SNID(t.ID).short()
	case TransformADDKE1, TransformADDKE2, TransformADDKE3, TransformADDKE4, TransformADDKE5, TransformADDKE6, TransformADDKE7:
		s = t.Type.String() + ":" + KEMethod(t.ID).String()
	default:
		s = t.Type.String() + ":" + strconv.Itoa(int(t.ID))
	}
	bits, known := t.KeyBits()
	switch {
	case !known:
		s += "-?"
	case bits != 0:
		s += "-" + strconv.Itoa(bits)
	}
	return s
}

// String returns the protocol and the transforms, such as
// "ESP:ENCR_AES_GCM_16-256/ECP_384/NO_ESN".
func (p Proposal) String() string {
	var b strings.Builder
	b.WriteString(p.Protocol.String())
	for i, t := range p.Transforms {
		if i == 0 {
			b.WriteByte(':')
		} else {
			b.WriteByte('/')
		}
		b.WriteString(t.String())
	}
	return b.String()
}
