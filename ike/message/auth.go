package message

// Auth is the Authentication payload (RFC 7296, section 3.8).
type Auth struct {
	Generic
	Method AuthMethod
	Data   []byte
}

// NewSignatureAuth returns the AUTH payload of method 14 (RFC 7427, section 3): algorithm is
// the DER AlgorithmIdentifier, at most 255 octets. Error: *EncodeError.
func NewSignatureAuth(algorithm, signature []byte) (*Auth, error) {
	n, err := count8(PayloadAUTH, "length of the AlgorithmIdentifier", len(algorithm))
	if err != nil {
		return nil, err
	}
	data := make([]byte, 0, 1+len(algorithm)+len(signature))
	data = append(append(append(data, n), algorithm...), signature...)
	return &Auth{Method: AuthDigitalSignature, Data: data}, nil
}

// Signature splits the data of method 14 (RFC 7427, section 3) into the DER
// AlgorithmIdentifier and the signature. Error: *SyntaxError.
func (p *Auth) Signature() (algorithm, signature []byte, err error) {
	r := reader{payload: PayloadAUTH, b: p.Data}
	if p.Method != AuthDigitalSignature {
		r.fail("authentication method", "14, Digital Signature", int(p.Method))
	}
	algorithm = r.take("the AlgorithmIdentifier", int(r.u8("the length of the AlgorithmIdentifier")))
	signature = r.rest()
	if r.err != nil {
		return nil, nil, r.err
	}
	return algorithm, signature, nil
}

// PayloadType implements Payload.
func (p *Auth) PayloadType() PayloadType { return PayloadAUTH }

func parseAuth(g Generic, r *reader) *Auth {
	p := &Auth{Generic: g, Method: AuthMethod(r.u8("the authentication method"))}
	r.take("the reserved octets", 3)
	p.Data = r.rest()
	return p
}

func (p *Auth) appendBody(dst []byte) ([]byte, error) {
	return append(append(dst, byte(p.Method), 0, 0, 0), p.Data...), nil
}
