package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Messages of a TCP connection (RFC 9329): a prefix, once, from who opened it; then messages, each
// behind its length.
const (
	// StreamPrefix begins what a TCP originator sends (RFC 9329, section 4).
	StreamPrefix = "IKETCP"
	// lengthField is the length of the length, which counts itself (section 3).
	lengthField = 2
	// MaxMessage is the longest message, in octets: what the length can say.
	MaxMessage = 65535 - lengthField
)

// Errors of a stream, after which it must be closed.
var (
	// ErrPrefix: the peer does not speak RFC 9329.
	ErrPrefix = errors.New("wire: the TCP connection does not begin with \"IKETCP\" (RFC 9329, section 4)")
	// ErrLength: nobody knows where the next message begins.
	ErrLength = errors.New("wire: message length on a TCP connection: expected 2 at least, its own length (RFC 9329, section 3)")
)

// nextMessage finds the first message in b: its payload is b[lengthField:end]. An end of 0 means that
// b holds no whole message yet.
func nextMessage(b []byte) (end int, err error) {
	if len(b) < lengthField {
		return 0, nil
	}
	n := int(binary.BigEndian.Uint16(b))
	if n < lengthField {
		return 0, fmt.Errorf("%w, came %d", ErrLength, n)
	}
	if n > len(b) {
		return 0, nil
	}
	return n, nil
}

// Inbox cuts what a TCP connection delivers into messages. Its memory grows with what really came,
// not with what a length says.
type Inbox struct {
	// Buf is all of the memory. The receiver may write in the messages, and before the first one.
	Buf []byte
	// Messages are what the last Fill brought, back to back but for their lengths. They are valid until
	// the next.
	Messages []Span

	headroom   int
	limit      int  // of Buf; at least a longest message more than headroom
	start, end int  // what came and is no message yet: Buf[start:end]
	prefix     int  // octets of the prefix that are still to come
	full       bool // the last read took all of the space
}

// Span is a message in Inbox.Buf.
type Span struct{ Off, Len int }

const (
	inboxFirst = 4 << 10
	inboxSmall = MaxMessage + lengthField
	inboxLarge = 256 << 10
)

// NewInbox makes an inbox with headroom octets free before the first message; with prefix it expects
// the stream to begin with StreamPrefix. It holds 64 KiB at most, until Enlarge.
func NewInbox(headroom int, prefix bool) *Inbox {
	x := &Inbox{Buf: make([]byte, headroom+inboxFirst), headroom: headroom, limit: headroom + inboxSmall, start: headroom, end: headroom}
	if prefix {
		x.prefix = len(StreamPrefix)
	}
	return x
}

// Enlarge lets the inbox hold 256 KiB, so that many messages come at once.
func (x *Inbox) Enlarge() { x.limit = x.headroom + inboxLarge }

// Begun tells whether the prefix has come.
func (x *Inbox) Begun() bool { return x.prefix == 0 }

// Space returns where to read to: never empty. What was read is given to Took.
func (x *Inbox) Space() []byte {
	if x.start > x.headroom {
		x.end = x.headroom + copy(x.Buf[x.headroom:], x.Buf[x.start:x.end])
		x.start = x.headroom
	}
	// More came than there was room for, or half of it is one message: more memory, as far as there may be.
	if have := x.end - x.headroom; (x.full || 2*have >= len(x.Buf)-x.headroom) && len(x.Buf) < x.limit {
		b := make([]byte, min(x.limit, x.headroom+max(2*(len(x.Buf)-x.headroom), inboxFirst)))
		copy(b[x.headroom:], x.Buf[x.headroom:x.end])
		x.Buf = b
	}
	return x.Buf[x.end:]
}

// Took finds the messages in what came, after n more octets did. Empty messages are left out (RFC 9329,
// section 3). After an error the connection is of no use; Messages holds what came before.
func (x *Inbox) Took(n int) error {
	x.Messages = x.Messages[:0]
	x.end += n
	x.full = x.end == len(x.Buf)
	for x.prefix > 0 && x.start < x.end {
		if x.Buf[x.start] != StreamPrefix[len(StreamPrefix)-x.prefix] {
			return ErrPrefix
		}
		x.start++
		x.prefix--
	}
	if x.prefix > 0 {
		return nil
	}
	for {
		end, err := nextMessage(x.Buf[x.start:x.end])
		if err != nil || end == 0 {
			return err
		}
		if end > lengthField {
			x.Messages = append(x.Messages, Span{x.start + lengthField, end - lengthField})
		}
		x.start += end
	}
}

// appendMessage appends parts as one message. Together they are MaxMessage octets at most.
func appendMessage(b []byte, parts ...[]byte) []byte {
	n := lengthField
	for _, p := range parts {
		n += len(p)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}
