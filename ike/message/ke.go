package message

import "encoding/binary"

// KE is the Key Exchange payload (RFC 7296, section 3.4; RFC 9370).
type KE struct {
	Generic
	Method KEMethod
	Data   []byte // public value, or ML-KEM key or ciphertext
}

// PayloadType implements Payload.
func (p *KE) PayloadType() PayloadType { return PayloadKE }

func parseKE(g Generic, r *reader) *KE {
	p := &KE{Generic: g, Method: KEMethod(r.u16("the key exchange method"))}
	r.u16("the reserved octets")
	p.Data = r.rest()
	return p
}

func (p *KE) appendBody(dst []byte) ([]byte, error) {
	dst = binary.BigEndian.AppendUint16(dst, uint16(p.Method))
	return append(append(dst, 0, 0), p.Data...), nil
}

// Nonce is the Nonce payload (RFC 7296, section 3.9): 16 to 256 octets.
type Nonce struct {
	Generic
	Data []byte
}

// PayloadType implements Payload.
func (p *Nonce) PayloadType() PayloadType { return PayloadNonce }

func parseNonce(g Generic, r *reader) *Nonce {
	p := &Nonce{Generic: g, Data: r.rest()}
	if n := len(p.Data); n < MinNonce || n > MaxNonce {
		r.fail("nonce length", "16 to 256 octets", n)
	}
	return p
}

func (p *Nonce) appendBody(dst []byte) ([]byte, error) {
	if n := len(p.Data); n < MinNonce || n > MaxNonce {
		return nil, &EncodeError{Payload: PayloadNonce, Field: "nonce length", Want: "16 to 256 octets", Got: n}
	}
	return append(dst, p.Data...), nil
}
