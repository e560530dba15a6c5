package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// maxText bounds one piece of foreign text on a line, characters.
const maxText = 400

// plain makes text that others chose fit for a terminal: what holds anything but printable
// characters (control characters, escape sequences, marks that turn the direction of writing,
// broken UTF-8) is quoted, and what is very long is cut.
func plain(s string) string {
	if utf8.RuneCountInString(s) > maxText {
		n := 0
		for i := range s {
			if n++; n > maxText {
				s = s[:i] + "…"
				break
			}
		}
	}
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) >= 0 {
		return fmt.Sprintf("%q", s)
	}
	return s
}

// plainAll joins several pieces.
func plainAll(list []string, sep string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = plain(s)
	}
	return strings.Join(out, sep)
}

// writeJSON prints a value as indented JSON in which every character that is not printable is
// written as \u…: encoding/json leaves C1 controls and direction marks as they are.
func (c *cli) writeJSON(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return err
	}
	var out strings.Builder
	for _, r := range b.String() {
		switch {
		case r == '\n' || unicode.IsPrint(r) && r != utf8.RuneError:
			out.WriteRune(r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, hi, lo)
		default: // only in strings: outside of them JSON is ASCII
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	_, err := io.WriteString(c.out, out.String())
	return err
}

// answer prints v as JSON, or what text writes.
func (c *cli) answer(v any, text func(p *printer)) error {
	if c.json {
		return c.writeJSON(v)
	}
	p := &printer{colour: c.terminal && c.getenv("NO_COLOR") == "" && c.getenv("TERM") != "dumb"}
	text(p)
	_, err := io.WriteString(c.out, p.b.String())
	return err
}

// printer collects text for people.
type printer struct {
	b      strings.Builder
	colour bool
}

// line writes one line. Arguments must be plain already.
func (p *printer) line(format string, args ...any) {
	fmt.Fprintf(&p.b, format, args...)
	p.b.WriteByte('\n')
}

// Styles, as SGR parameters (ECMA-48, section 8.3.117).
const (
	bold   = "1"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (p *printer) style(sgr, s string) string {
	if !p.colour || sgr == "" {
		return s
	}
	return "\x1b[" + sgr + "m" + s + "\x1b[0m"
}

// table writes rows in columns, two blanks between them. The last column is not padded.
func (p *printer) table(indent string, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(cell))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		b.WriteString(indent)
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-width(cell)+2))
			}
		}
		p.line("%s", strings.TrimRight(b.String(), " "))
	}
}

// width is the number of columns that a terminal gives to s: Japanese names take two for each
// character (Unicode Standard Annex #11), combining marks none.
func width(s string) int {
	n := 0
	for _, r := range s {
		switch {
		case unicode.In(r, unicode.Mn, unicode.Me):
		case r >= 0x1100 && (r <= 0x115f || r >= 0x2e80 && r <= 0xa4cf || r >= 0xac00 && r <= 0xd7a3 ||
			r >= 0xf900 && r <= 0xfaff || r >= 0xfe30 && r <= 0xfe6f || r >= 0xff00 && r <= 0xff60 ||
			r >= 0xffe0 && r <= 0xffe6 || r >= 0x20000 && r <= 0x3fffd):
			n += 2
		default:
			n++
		}
	}
	return n
}

// lowerFirst makes a title fit behind "wardgate: ", unless it begins with an abbreviation.
func lowerFirst(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if next, _ := utf8.DecodeRuneInString(s[n:]); unicode.IsUpper(r) && !unicode.IsUpper(next) {
		return string(unicode.ToLower(r)) + s[n:]
	}
	return s
}

// upperFirst begins a sentence.
func upperFirst(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return s
	}
	return string(unicode.ToUpper(r)) + s[n:]
}

// plural is "1 packet", "12 packets".
func plural[N int | uint64](n N, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
