package message

// Payload is one IKE payload. The implementations are pointers to the types of this package:
// *SA, *KE, *ID, *Cert, *CertReq, *Auth, *Nonce, *Notify, *Delete, *VendorID, *TS, *CP, *EAP,
// *PuzzleSolution and *Unknown. (SK and SKF are not among them: see Message.Encrypted.)
type Payload interface {
	// PayloadType returns the number that announces the payload.
	PayloadType() PayloadType
	// IsCritical returns the critical flag of the generic payload header.
	IsCritical() bool
	appendBody(dst []byte) ([]byte, error)
}

// Generic is what every payload has in its generic header (RFC 7296, section 3.2).
type Generic struct {
	// Critical is to be zero for payload types of RFC 7296 and ignored when one is received;
	// kept so that a received message encodes to the same octets.
	Critical bool
}

// IsCritical implements Payload.
func (g Generic) IsCritical() bool { return g.Critical }

const criticalBit = 0x80

// Unknown is a payload of a type that this package does not know, without the critical flag.
// RFC 7296, section 2.5: it is ignored.
type Unknown struct {
	Generic
	Type PayloadType
	Data []byte // payload body
}

// PayloadType implements Payload.
func (p *Unknown) PayloadType() PayloadType { return p.Type }

func (p *Unknown) appendBody(dst []byte) ([]byte, error) { return append(dst, p.Data...), nil }

// Payloads is a chain of payloads, in the order of the message.
type Payloads []Payload

// ParsePayloads parses a chain of payloads that starts with type first and fills all of b: the
// content of an Encrypted payload. The values alias b.
// Errors: *SyntaxError, *LimitError, *UnsupportedCriticalError.
func ParsePayloads(first PayloadType, b []byte) (Payloads, error) {
	ps, enc, err := parseChain(first, b)
	if err == nil && enc != nil {
		// RFC 7296, section 3.14: SK is an outer payload.
		return nil, &SyntaxError{Payload: enc.payloadType(), Field: "nesting depth of the Encrypted payload", Want: "1", Got: 2}
	}
	return ps, err
}

// parseChain parses payloads up to the end of b. An SK or SKF payload ends the chain, because
// its next payload field names the first payload inside it.
func parseChain(first PayloadType, b []byte) (Payloads, *Encrypted, error) {
	ps := Payloads{} // not nil: an empty message was parsed too
	next := first
	for next != PayloadNone {
		r := reader{payload: next, b: b}
		following := PayloadType(r.u8("the generic payload header"))
		critical := r.u8("the generic payload header")&criticalBit != 0
		length := int(r.u16("the generic payload header"))
		body := r.sub("payload", length, genericLen)
		if body.err != nil {
			return nil, nil, body.err
		}
		if next == PayloadSK || next == PayloadSKF {
			// RFC 7296, section 3.14: it must be the last payload in the message.
			if len(r.b) > 0 {
				r.fail("number of octets after the Encrypted payload", "0", len(r.b))
				return nil, nil, r.err
			}
			enc, err := parseEncrypted(next, following, critical, &body)
			return ps, enc, err
		}
		if len(ps) == MaxPayloads {
			return nil, nil, &LimitError{Payload: next, What: "payloads in the message", Max: MaxPayloads, Got: MaxPayloads + 1}
		}
		p, err := parseBody(next, critical, &body)
		if err != nil {
			return nil, nil, err
		}
		ps = append(ps, p)
		b, next = r.b, following
	}
	if len(b) > 0 {
		return nil, nil, &SyntaxError{Field: "number of octets after the last payload", Want: "0", Got: len(b)}
	}
	return ps, nil, nil
}

// ParseBody parses one payload's body (without its generic header) of type t; the values alias
// b. Errors as of ParsePayloads.
func ParseBody(t PayloadType, critical bool, b []byte) (Payload, error) {
	if t == PayloadSK || t == PayloadSKF || t == PayloadNone {
		return nil, &SyntaxError{Payload: t, Field: "payload type", Want: "a payload that stands in clear", Got: int(t)}
	}
	return parseBody(t, critical, &reader{payload: t, b: b})
}

func parseBody(t PayloadType, critical bool, r *reader) (Payload, error) {
	g := Generic{Critical: critical}
	var p Payload
	switch t {
	case PayloadSA:
		p = parseSA(g, r)
	case PayloadKE:
		p = parseKE(g, r)
	case PayloadIDi, PayloadIDr:
		p = parseID(g, t == PayloadIDr, r)
	case PayloadCERT:
		p = parseCert(g, r)
	case PayloadCERTREQ:
		p = parseCertReq(g, r)
	case PayloadAUTH:
		p = parseAuth(g, r)
	case PayloadNonce:
		p = parseNonce(g, r)
	case PayloadNotify:
		p = parseNotify(g, r)
	case PayloadDelete:
		p = parseDelete(g, r)
	case PayloadVendorID:
		p = &VendorID{Generic: g, Data: r.rest()}
	case PayloadTSi, PayloadTSr:
		p = parseTS(g, t == PayloadTSr, r)
	case PayloadCP:
		p = parseCP(g, r)
	case PayloadEAP:
		p = parseEAP(g, r)
	case PayloadPS:
		p = parsePS(g, r)
	default:
		if critical {
			return nil, &UnsupportedCriticalError{Type: t}
		}
		p = &Unknown{Generic: g, Type: t, Data: r.rest()}
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return p, nil
}

// AppendPayloads appends the chain ps to dst and returns the type of its first payload
// (PayloadNone for an empty chain). Error: *EncodeError.
func AppendPayloads(dst []byte, ps Payloads) (PayloadType, []byte, error) {
	return appendChain(dst, ps, PayloadNone)
}

// appendChain appends ps, after which a payload of type last follows.
func appendChain(dst []byte, ps Payloads, last PayloadType) (PayloadType, []byte, error) {
	first := last
	for i, p := range ps {
		if i == 0 {
			first = p.PayloadType()
		}
		next := last
		if i+1 < len(ps) {
			next = ps[i+1].PayloadType()
		}
		var flags byte
		if p.IsCritical() {
			flags = criticalBit
		}
		start := len(dst)
		var err error
		dst, err = p.appendBody(append(dst, byte(next), flags, 0, 0))
		if err != nil {
			return 0, nil, err
		}
		if err := putLength16(dst, start+2, start, p.PayloadType(), "payload length"); err != nil {
			return 0, nil, err
		}
	}
	return first, dst, nil
}

// VendorID is the Vendor ID payload (RFC 7296, section 3.12).
type VendorID struct {
	Generic
	Data []byte
}

// PayloadType implements Payload.
func (p *VendorID) PayloadType() PayloadType { return PayloadVendorID }

func (p *VendorID) appendBody(dst []byte) ([]byte, error) { return append(dst, p.Data...), nil }
