package message

import (
	"encoding/binary"
	"slices"
)

// Protector is the protection of one direction of one IKE SA. The sealed part of an Encrypted
// payload is: IV, ciphertext of plaintext, padding and pad length, ICV (RFC 7296, section
// 3.14; RFC 5282).
type Protector interface {
	// SealedLen returns the number of octets that n octets of plaintext become when sealed. It
	// must be exact, at least n, and must not fall when n grows: the length fields of the
	// message are covered by the ICV and are written before sealing.
	SealedLen(n int) int
	// AppendSealed appends the sealed plaintext to dst and returns it: exactly SealedLen more
	// octets. aad is all of the message in front of the sealed part: for an AEAD it is the
	// associated data (RFC 5282, section 5.1), for CBC with HMAC the first part of what the
	// ICV covers. aad is the tail of dst; dst has room, so that nothing needs to move.
	AppendSealed(dst, aad, plaintext []byte) ([]byte, error)
	// Open returns the plaintext without padding. It writes to neither argument. Any error
	// means "not authentic".
	Open(aad, sealed []byte) ([]byte, error)
}

// Encrypted is an SK (RFC 7296, section 3.14) or SKF payload (RFC 7383, section 2.5), sealed.
type Encrypted struct {
	Generic
	// First is the type of the first payload inside; PayloadNone if there is none, and in all
	// fragments but the first.
	First PayloadType
	// Number and Total are the fragment number (from 1) and count; 0 and 0 for SK.
	Number, Total uint16
	// Sealed is IV, ciphertext and ICV.
	Sealed []byte
}

// fragmentHeaderLen is the size of the fragment number and count in an SKF payload.
const fragmentHeaderLen = 4

// IsFragment reports whether e is an SKF payload.
func (e *Encrypted) IsFragment() bool { return e.Total != 0 }

func (e *Encrypted) payloadType() PayloadType {
	if e.IsFragment() {
		return PayloadSKF
	}
	return PayloadSK
}

func parseEncrypted(t, first PayloadType, critical bool, r *reader) (*Encrypted, error) {
	e := &Encrypted{Generic: Generic{Critical: critical}, First: first}
	if t == PayloadSKF {
		e.Number = r.u16("the fragment number")
		e.Total = r.u16("the total of fragments")
		// RFC 7383, sections 2.5 and 2.6.
		switch {
		case e.Total == 0:
			r.fail("total of fragments", "at least 1", 0)
		case e.Number == 0 || e.Number > e.Total:
			r.fail("fragment number", "1 to "+itoa(int(e.Total)), int(e.Number))
		case e.Number > 1 && first != PayloadNone:
			r.fail("next payload field of a later fragment", "0", int(first))
		}
		if !r.limit("fragments", int(e.Total), MaxFragments) {
			return nil, r.err
		}
	}
	e.Sealed = r.rest()
	return e, r.end()
}

// append writes the payload with its generic header.
func (e *Encrypted) append(dst []byte) ([]byte, error) {
	start := len(dst)
	dst = e.appendHeader(dst, 0)
	dst = append(dst, e.Sealed...)
	return dst, putLength16(dst, start+2, start, e.payloadType(), "payload length")
}

// appendHeader writes everything in front of the sealed part; length is the payload's.
func (e *Encrypted) appendHeader(dst []byte, length int) []byte {
	var flags byte
	if e.Critical {
		flags = criticalBit
	}
	dst = append(dst, byte(e.First), flags)
	dst = binary.BigEndian.AppendUint16(dst, uint16(length))
	if e.IsFragment() {
		dst = binary.BigEndian.AppendUint16(dst, e.Number)
		dst = binary.BigEndian.AppendUint16(dst, e.Total)
	}
	return dst
}

// Inner is the content of an Encrypted payload.
type Inner struct {
	First    PayloadType // type of the first payload, PayloadNone if there is none
	Plain    []byte      // the encoded payloads
	Payloads Payloads    // the parsed payloads
	// Solution, where there is one, stands in clear in front of the Encrypted payload, in the first
	// message if there are several (RFC 8019, section 7.2.2). What is received has it in Message.
	Solution *PuzzleSolution
	// Reserved is the second octet of the Encrypted payload's header as received, of the first
	// fragment's where there are several; 0 in what we send. IntAuth covers it.
	Reserved byte
}

// IntAuth returns what the authentication of an IKE_INTERMEDIATE message covers beside in.Plain:
// the IKE header and the header of the Encrypted payload as if nothing was encrypted or cut into
// fragments (RFC 9242, section 3.3.2). in is what was sent with the header h, or received.
func (in Inner) IntAuth(h Header) []byte {
	b := h.append(make([]byte, 0, HeaderLen+genericLen), PayloadSK, HeaderLen+genericLen+len(in.Plain))
	b = append(b, byte(in.First), in.Reserved)
	return binary.BigEndian.AppendUint16(b, uint16(genericLen+len(in.Plain)))
}

// EncodeInner encodes ps as the content of an Encrypted payload. Error: *EncodeError.
func EncodeInner(ps Payloads) (Inner, error) {
	first, plain, err := AppendPayloads(make([]byte, 0, roomFor(ps)), ps)
	if err != nil {
		return Inner{}, err
	}
	return Inner{First: first, Plain: plain, Payloads: ps}, nil
}

// roomFor estimates how many octets ps become, so that they need not be moved while they grow.
func roomFor(ps Payloads) int {
	n := 0
	for _, p := range ps {
		switch p := p.(type) {
		case *Cert:
			n += len(p.Data)
		case *Notify:
			n += len(p.Data)
		case *SA:
			n += 64 * len(p.Proposals)
		}
		n += 64
	}
	return min(n, MaxMessage)
}

// Decrypt opens the SK payload without looking at its content: First and Plain are set. Every
// error means that the message must be dropped silently: ErrNotEncrypted, ErrIsFragment,
// ErrNotAuthentic (wrapped around the Protector's).
func (m *Message) Decrypt(p Protector) (Inner, error) {
	switch {
	case m.Encrypted == nil:
		return Inner{}, ErrNotEncrypted
	case m.Encrypted.IsFragment():
		return Inner{}, ErrIsFragment
	}
	plain, err := m.open(p)
	if err != nil {
		return Inner{}, err
	}
	return Inner{First: m.Encrypted.First, Plain: plain, Reserved: m.reserved()}, nil
}

// Parse sets Payloads from First and Plain. Its errors, those of ParsePayloads, come from an
// authentic message and are answered (see NotifyFor).
func (in *Inner) Parse() error {
	ps, err := ParsePayloads(in.First, in.Plain)
	in.Payloads = ps
	return err
}

// Open is Decrypt and Parse in one: an error that is not one of Decrypt's comes from an
// authentic message.
func (m *Message) Open(p Protector) (Inner, error) {
	in, err := m.Decrypt(p)
	if err != nil {
		return Inner{}, err
	}
	return in, in.Parse()
}

// open authenticates and decrypts the Encrypted payload of a parsed message.
func (m *Message) open(p Protector) ([]byte, error) {
	sealed := m.Encrypted.Sealed
	if len(m.raw) < len(sealed) {
		return nil, ErrNotEncrypted // m was not made by Parse
	}
	aad := m.raw[:len(m.raw)-len(sealed)]
	plain, err := p.Open(aad[:len(aad):len(aad)], sealed)
	if err != nil {
		return nil, &notAuthenticError{cause: err}
	}
	return plain, nil
}

// reserved returns the second octet of the Encrypted payload's header.
func (m *Message) reserved() byte {
	n := len(m.raw) - len(m.Encrypted.Sealed) - genericLen + 1
	if m.Encrypted.IsFragment() {
		n -= fragmentHeaderLen
	}
	return m.raw[n]
}

// notAuthenticError is ErrNotAuthentic with the Protector's reason.
type notAuthenticError struct{ cause error }

func (e *notAuthenticError) Error() string   { return ErrNotAuthentic.Error() + ": " + e.cause.Error() }
func (e *notAuthenticError) Unwrap() []error { return []error{ErrNotAuthentic, e.cause} }

// AppendSealed appends to dst the whole message that carries in as one SK payload.
// Errors: *EncodeError, ErrSealedLength, the Protector's.
func (in Inner) AppendSealed(dst []byte, h Header, p Protector) ([]byte, error) {
	return appendSealed(dst, h, Encrypted{First: in.First}, in.Plain, p, in.Solution)
}

// SealedSize returns the length in octets of the message that carries n octets in one SK
// payload.
func SealedSize(n int, p Protector) int { return HeaderLen + genericLen + p.SealedLen(n) }

// clearLen is the length of what stands in clear in front of the Encrypted payload.
func clearLen(ps *PuzzleSolution) int {
	if ps == nil {
		return 0
	}
	return genericLen + len(ps.Data)
}

func appendSealed(dst []byte, h Header, e Encrypted, plain []byte, p Protector, ps *PuzzleSolution) ([]byte, error) {
	start := len(dst)
	length := genericLen + p.SealedLen(len(plain))
	if e.IsFragment() {
		length += fragmentHeaderLen
	}
	total := HeaderLen + clearLen(ps) + length
	if total > MaxMessage {
		return nil, &EncodeError{Payload: e.payloadType(), Field: "message length", Want: "at most 65535 octets", Got: total}
	}
	dst = slices.Grow(dst, total)
	if ps == nil {
		dst = h.append(dst, e.payloadType(), total)
	} else {
		var err error
		dst = h.append(dst, PayloadPS, total)
		if _, dst, err = appendChain(dst, Payloads{ps}, e.payloadType()); err != nil {
			return nil, err
		}
	}
	dst = e.appendHeader(dst, length)
	aad := dst[start:len(dst):len(dst)]
	out, err := p.AppendSealed(dst, aad, plain)
	if err != nil {
		return nil, err
	}
	if len(out)-start != total {
		return nil, ErrSealedLength
	}
	return out, nil
}

// Seal encodes ps as the content of one SK payload, or, if that message is longer than
// maxMessage octets, as SKF fragments of at most that length each (RFC 7383). Each element of
// the result is one datagram. maxMessage 0 means: never fragment (the peer did not send
// FRAGMENTATION_SUPPORTED). See MaxMessageSize. Errors as of AppendSealed and Fragments.
func Seal(h Header, ps Payloads, p Protector, maxMessage int) ([][]byte, error) {
	in, err := EncodeInner(ps)
	if err != nil {
		return nil, err
	}
	return in.Seal(h, p, maxMessage)
}

// Seal is the function Seal for content that is encoded already.
func (in Inner) Seal(h Header, p Protector, maxMessage int) ([][]byte, error) {
	if maxMessage > 0 && SealedSize(len(in.Plain), p)+clearLen(in.Solution) > maxMessage {
		return in.Fragments(h, p, maxMessage)
	}
	b, err := in.AppendSealed(nil, h, p)
	if err != nil {
		return nil, err
	}
	return [][]byte{b}, nil
}
