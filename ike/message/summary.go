package message

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxText bounds, in octets of the original, what SafeText shows of a peer's text.
const maxText = 256

// SafeText makes text that a peer chose safe for a log line or a terminal: characters that do
// not print (control characters, line and paragraph separators, direction overrides),
// backslashes, and octets that are no UTF-8 become escapes (\n, \x1b, \u202e, \\). Text longer
// than 256 octets is cut and marked with "…".
func SafeText(b []byte) string {
	cut := len(b) > maxText
	if cut {
		b = b[:maxText]
	}
	var s strings.Builder
	for len(b) > 0 {
		c, n := utf8.DecodeRune(b)
		switch {
		case c == utf8.RuneError && n == 1:
			const digits = "0123456789abcdef"
			s.WriteString(`\x`)
			s.WriteByte(digits[b[0]>>4])
			s.WriteByte(digits[b[0]&15])
		case c == '\\' || !unicode.IsPrint(c):
			q := strconv.QuoteRune(c)
			s.WriteString(q[1 : len(q)-1])
		default:
			s.WriteRune(c)
		}
		b = b[n:]
	}
	if cut {
		s.WriteString("…")
	}
	return s.String()
}

// Summary returns a line for logs, such as
//
//	IKE_AUTH request 1 [ IDi CERT CERTREQ N(MULT_AUTH) AUTH SA TSi TSr ]
//
// with the payloads of inner, if there are any, in place of the Encrypted payload. An
// unopened one shows as SK or SKF(1/3). It holds nothing but names and numbers: no text that
// the peer chose.
func (m *Message) Summary(inner Payloads) string {
	var s strings.Builder
	m.Header.summary(&s)
	m.Payloads.summary(&s)
	switch {
	case m.Encrypted == nil:
	case inner != nil:
		inner.summary(&s)
	case m.Encrypted.IsFragment():
		s.WriteString("SKF(")
		s.WriteString(strconv.Itoa(int(m.Encrypted.Number)))
		s.WriteByte('/')
		s.WriteString(strconv.Itoa(int(m.Encrypted.Total)))
		s.WriteString(") ")
	default:
		s.WriteString("SK ")
	}
	s.WriteByte(']')
	return s.String()
}

// Summary returns the line of Message.Summary for a message with this header and the payloads
// ps, whether they travel encrypted or not.
func (h Header) Summary(ps Payloads) string {
	var s strings.Builder
	h.summary(&s)
	ps.summary(&s)
	s.WriteByte(']')
	return s.String()
}

func (h Header) summary(s *strings.Builder) {
	s.WriteString(h.Exchange.String())
	if h.IsResponse() {
		s.WriteString(" response ")
	} else {
		s.WriteString(" request ")
	}
	s.WriteString(strconv.FormatUint(uint64(h.MessageID), 10))
	s.WriteString(" [ ")
}

func (ps Payloads) summary(s *strings.Builder) {
	for _, p := range ps {
		switch p := p.(type) {
		case *Notify:
			s.WriteString("N(" + p.Type.short() + ")")
		case *CP:
			s.WriteString("CP(" + p.Type.short() + ")")
		case *EAP:
			s.WriteString("EAP(" + p.Code.short() + ")")
		default:
			s.WriteString(p.PayloadType().short())
		}
		s.WriteByte(' ')
	}
}
