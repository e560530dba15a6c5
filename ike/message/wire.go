package message

import (
	"encoding/binary"
	"math"
	"strconv"
)

// reader takes fields off the front of a payload body. The first shortage is remembered, and
// all later reads give zero, so that a parser checks once at the end of a fixed part.
type reader struct {
	payload PayloadType
	b       []byte
	err     error
}

func (r *reader) short(field string, n int) bool {
	if r.err == nil && len(r.b) < n {
		r.err = &SyntaxError{Payload: r.payload, Field: "octets left for " + field, Want: "at least " + itoa(n), Got: len(r.b)}
	}
	return r.err != nil
}

func (r *reader) u8(field string) uint8 {
	if r.short(field, 1) {
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) u16(field string) uint16 {
	if r.short(field, 2) {
		return 0
	}
	v := binary.BigEndian.Uint16(r.b)
	r.b = r.b[2:]
	return v
}

func (r *reader) u32(field string) uint32 {
	if r.short(field, 4) {
		return 0
	}
	v := binary.BigEndian.Uint32(r.b)
	r.b = r.b[4:]
	return v
}

// take returns the next n octets, with no capacity beyond them, so that an append by the
// caller cannot reach the rest of the message.
func (r *reader) take(field string, n int) []byte {
	if r.short(field, n) {
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// rest returns all that is left.
func (r *reader) rest() []byte {
	return r.take("", len(r.b))
}

// sub returns a reader over a substructure of n octets, of which the first done octets were
// read already.
func (r *reader) sub(field string, n, done int) reader {
	if r.err == nil && n < done {
		r.fail(field+" length", "at least "+itoa(done), n)
	}
	if r.err != nil {
		return reader{payload: r.payload, err: r.err}
	}
	return reader{payload: r.payload, b: r.take(field, n-done), err: r.err}
}

// fail records a SyntaxError unless an earlier one stands.
func (r *reader) fail(field, want string, got int) {
	if r.err == nil {
		r.err = &SyntaxError{Payload: r.payload, Field: field, Want: want, Got: got}
	}
}

// limit records a LimitError unless an earlier error stands, and reports whether reading may
// go on.
func (r *reader) limit(what string, got, most int) bool {
	if r.err == nil && got > most {
		r.err = &LimitError{Payload: r.payload, What: what, Max: most, Got: got}
	}
	return r.err == nil
}

// end demands that nothing is left, and returns the first error.
func (r *reader) end() error {
	if len(r.b) > 0 {
		r.fail("number of octets after the last field", "0", len(r.b))
	}
	return r.err
}

func itoa(n int) string {
	if n >= 0 && n < 10 {
		return "0123456789"[n : n+1]
	}
	return strconv.Itoa(n)
}

// putLength16 writes the length of dst from start on into the two octets at dst[at:].
func putLength16(dst []byte, at, start int, p PayloadType, field string) error {
	n := len(dst) - start
	if n > math.MaxUint16 {
		return &EncodeError{Payload: p, Field: field, Want: "at most 65535 octets", Got: n}
	}
	binary.BigEndian.PutUint16(dst[at:], uint16(n))
	return nil
}

// count8 checks a count or length that is sent in one octet.
func count8(p PayloadType, field string, n int) (byte, error) {
	if n > math.MaxUint8 {
		return 0, &EncodeError{Payload: p, Field: field, Want: "at most 255", Got: n}
	}
	return byte(n), nil
}
