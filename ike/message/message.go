package message

import "encoding/binary"

// Message is one IKE message, or one fragment of a message, as it stands in a datagram.
type Message struct {
	Header
	// Payloads are those in clear: all of IKE_SA_INIT, none elsewhere (see CheckOuter).
	Payloads Payloads
	// Encrypted is the SK or SKF payload that ends the message; nil if there is none.
	Encrypted *Encrypted

	raw []byte
}

// Parse parses one datagram (without the non-ESP marker of port 4500). The message's length
// field must equal len(b): octets after the message would be outside of what the peers sign.
// The result aliases b.
// Errors: *SyntaxError, *LimitError, *VersionError, *UnsupportedCriticalError.
func Parse(b []byte) (*Message, error) {
	if len(b) > MaxMessage {
		return nil, &SyntaxError{Field: "length of the datagram", Want: "at most 65535", Got: len(b)}
	}
	h, first, length, err := ParseHeader(b)
	if err != nil {
		return nil, err
	}
	if uint64(length) != uint64(len(b)) {
		return nil, &SyntaxError{Field: "length field of the IKE header", Want: "the " + itoa(len(b)) + " octets of the datagram", Got: int(length)}
	}
	m := &Message{Header: h, raw: b}
	m.Payloads, m.Encrypted, err = parseChain(first, b[HeaderLen:])
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Raw returns the received octets of the whole message, as the AUTH payload covers them for
// IKE_SA_INIT (RFC 7296, section 2.15), or nil if m was not parsed.
func (m *Message) Raw() []byte { return m.raw }

// Append encodes m, with its Encrypted payload as it is, and appends it to dst.
// Error: *EncodeError.
func (m *Message) Append(dst []byte) ([]byte, error) {
	start := len(dst)
	last := PayloadNone
	if m.Encrypted != nil {
		last = m.Encrypted.payloadType()
	}
	dst = m.Header.append(dst, PayloadNone, 0)
	first, dst, err := appendChain(dst, m.Payloads, last)
	if err != nil {
		return nil, err
	}
	if m.Encrypted != nil {
		if dst, err = m.Encrypted.append(dst); err != nil {
			return nil, err
		}
	}
	return finish(dst, start, first)
}

// Encode encodes a message without an Encrypted payload: IKE_SA_INIT, or an unprotected error
// answer. Error: *EncodeError.
func Encode(h Header, ps Payloads) ([]byte, error) {
	return (&Message{Header: h, Payloads: ps}).Append(make([]byte, 0, HeaderLen+roomFor(ps)))
}

// finish fills in the header's next payload and length fields.
func finish(dst []byte, start int, first PayloadType) ([]byte, error) {
	n := len(dst) - start
	if n > MaxMessage {
		return nil, &EncodeError{Field: "message length", Want: "at most 65535 octets", Got: n}
	}
	dst[start+16] = byte(first)
	binary.BigEndian.PutUint32(dst[start+24:], uint32(n))
	return dst, nil
}

// CheckOuter checks that the message is protected as its exchange demands: IKE_SA_INIT and
// IKE_SESSION_RESUME entirely in clear, everything else entirely in an SK or SKF payload, with the
// exception of a puzzle's solution in an IKE_AUTH request (see Solution).
// Errors: ErrNotEncrypted (the message may still be an unprotected error answer, a hint at
// best: RFC 7296, section 2.21), ErrClearPayload, *CheckError.
func (m *Message) CheckOuter() error {
	if m.Exchange == ExchangeIKESAInit || m.Exchange == ExchangeIKESessionResume {
		if m.Encrypted != nil {
			return &CheckError{Form: m.initForm(), Problem: ProblemNotAllowed, Payload: m.Encrypted.payloadType()}
		}
		return nil
	}
	if m.Encrypted == nil {
		return ErrNotEncrypted
	}
	if len(m.Payloads) > 0 && m.Solution() == nil {
		return ErrClearPayload
	}
	return nil
}

// Solution returns the Puzzle Solution payload that is all that stands in clear in an IKE_AUTH request,
// in its first fragment if it has several (RFC 8019, section 7.2.2); nil: there is none. What it says
// is covered by the ICV, but has to be judged before that.
func (m *Message) Solution() *PuzzleSolution {
	if m.Exchange != ExchangeIKEAuth || m.IsResponse() || m.Encrypted == nil || m.Encrypted.Number > 1 || len(m.Payloads) != 1 {
		return nil
	}
	ps, _ := m.Payloads[0].(*PuzzleSolution)
	return ps
}

func (m *Message) initForm() Form {
	if m.IsResponse() {
		return FormIKESAInitResponse
	}
	return FormIKESAInitRequest
}
