package policy

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The document is read more strictly than encoding/json would: member names are compared exactly,
// unknown and duplicate members, null, and trailing data are faults, and every fault names its JSON
// pointer (RFC 6901) and line. encoding/json checks the syntax; what is below relies on that.

const maxDepth = 8 // the document's own depth is 6

type nodeKind uint8

const (
	kindObject nodeKind = iota
	kindArray
	kindString
	kindNumber
	kindBool
	kindNull
)

var kindNames = [...]string{"an object", "a list", "a string", "a number", "true or false", "null"}

// node is one JSON value and where it starts.
type node struct {
	kind  nodeKind
	start int    // offset in the payload
	text  string // string: unquoted; number, bool: as written
	keys  []string
	kids  []node // object: beside keys; array: the elements
}

// path is the way from the root to a value; it becomes a JSON pointer only when a fault is found.
type path struct {
	up  *path
	key string
	idx int // when key is empty and up is not nil
}

var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")

func (p *path) String() string {
	if p == nil || p.up == nil {
		return ""
	}
	if p.key == "" {
		return p.up.String() + "/" + strconv.Itoa(p.idx)
	}
	return p.up.String() + "/" + pointerEscaper.Replace(p.key)
}

// maxCame bounds what a fault repeats, in bytes; text from the document is quoted and bounded before.
const maxCame = 600

// faults collects what is wrong.
type faults struct {
	list []*FieldError
	more int
}

func (f *faults) add(e *FieldError) {
	if len(f.list) >= maxReported {
		f.more++
		return
	}
	if len(e.Came) > maxCame {
		e.Came = e.Came[:maxCame] + "…"
	}
	f.list = append(f.list, e)
}

func (f *faults) err(kind error) error {
	if len(f.list) == 0 {
		return nil
	}
	return &DocumentError{Kind: kind, Faults: f.list, More: f.more}
}

type scanner struct {
	data   []byte
	pos    int
	faults faults
}

func lineAt(data []byte, off int) int {
	off = min(max(off, 0), len(data))
	return 1 + bytes.Count(data[:off], []byte{'\n'})
}

// parseTree checks the syntax and returns the document as a tree.
func parseTree(data []byte) (node, error) {
	var s scanner
	s.data = data
	if len(data) > MaxFileSize {
		return node{}, &RefusedError{
			Kind: ErrTooLarge, Expected: fmt.Sprintf("at most %d bytes", MaxFileSize),
			Came: fmt.Sprintf("%d bytes", len(data)), Do: "ask the issuer to split or shorten the policy",
		}
	}
	if !utf8.Valid(data) {
		off := 0
		for off < len(data) {
			r, n := utf8.DecodeRune(data[off:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			off += n
		}
		s.faults.add(&FieldError{Line: lineAt(data, off), Expected: "UTF-8 text", Came: fmt.Sprintf("byte 0x%02x at offset %d", data[off], off)})
		return node{}, s.faults.err(ErrSyntax)
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		fe := &FieldError{Expected: "one JSON object and nothing after it (RFC 8259)", Came: err.Error(), Do: "ask the issuer for a whole file"}
		var se *json.SyntaxError
		if errors.As(err, &se) {
			fe.Line = lineAt(data, int(se.Offset)-1)
			fe.Came = fmt.Sprintf("%s at offset %d", se.Error(), se.Offset)
		}
		s.faults.add(fe)
		return node{}, s.faults.err(ErrSyntax)
	}
	root := s.value(nil, 0)
	return root, s.faults.err(ErrSyntax)
}

func (s *scanner) space() {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\r', '\n':
			s.pos++
		default:
			return
		}
	}
}

// value reads the value at pos. The syntax is known to be right; the bounds checks are there so
// that a disagreement with encoding/json could never become a panic.
func (s *scanner) value(p *path, depth int) node {
	if p == nil {
		p = &path{}
	}
	s.space()
	n := node{start: s.pos, kind: kindNull}
	if s.pos >= len(s.data) {
		return n
	}
	if depth > maxDepth {
		s.faults.add(&FieldError{
			Path: p.String(), Line: lineAt(s.data, s.pos),
			Expected: fmt.Sprintf("at most %d levels of lists and objects", maxDepth), Came: "more",
		})
		s.pos = len(s.data)
		return n
	}
	switch s.data[s.pos] {
	case '{':
		n.kind = kindObject
		s.pos++
		seen := map[string]bool{}
		for s.more('}') {
			start := s.pos
			key := s.str(p)
			s.space()
			s.pos++ // the colon
			kp := &path{up: p, key: key}
			if seen[key] {
				s.faults.add(&FieldError{
					Path: kp.String(), Line: lineAt(s.data, start),
					Expected: "each member once", Came: fmt.Sprintf("%q a second time", key), Do: "remove one of them",
				})
			}
			seen[key] = true
			kid := s.value(kp, depth+1)
			n.keys = append(n.keys, key)
			n.kids = append(n.kids, kid)
		}
	case '[':
		n.kind = kindArray
		s.pos++
		for s.more(']') {
			kid := s.value(&path{up: p, idx: len(n.kids)}, depth+1)
			n.kids = append(n.kids, kid)
		}
	case '"':
		n.kind = kindString
		n.text = s.str(p)
	default:
		end := s.pos
		for end < len(s.data) && !bytes.ContainsRune([]byte(" \t\r\n,]}"), rune(s.data[end])) {
			end++
		}
		n.text = string(s.data[s.pos:end])
		s.pos = end
		switch n.text {
		case "null":
		case "true", "false":
			n.kind = kindBool
		default:
			n.kind = kindNumber
		}
	}
	return n
}

// more moves to the next member or element, or over the closing bracket.
func (s *scanner) more(closing byte) bool {
	s.space()
	if s.pos < len(s.data) && s.data[s.pos] == ',' {
		s.pos++
		s.space()
	}
	if s.pos >= len(s.data) {
		return false
	}
	if s.data[s.pos] == closing {
		s.pos++
		return false
	}
	return true
}

// str reads the string at pos.
func (s *scanner) str(p *path) string {
	start := s.pos
	escaped := false
	s.pos++
	for s.pos < len(s.data) && s.data[s.pos] != '"' {
		if s.data[s.pos] == '\\' {
			escaped = true
			s.pos++
		}
		s.pos++
	}
	s.pos = min(s.pos+1, len(s.data))
	if !escaped {
		return string(s.data[min(start+1, len(s.data)):max(s.pos-1, start+1)])
	}
	var out string
	if err := json.Unmarshal(s.data[start:s.pos], &out); err != nil || strings.ContainsRune(out, utf8.RuneError) {
		// encoding/json turns a lone surrogate into U+FFFD without a word.
		s.faults.add(&FieldError{Path: p.String(), Line: lineAt(s.data, start), Expected: "a string of whole Unicode characters", Came: string(s.data[start:s.pos])})
	}
	return out
}

type decoder struct {
	data   []byte
	faults faults
}

func (d *decoder) fault(p *path, n *node, expected, came, do string) {
	d.faults.add(&FieldError{Path: p.String(), Line: lineAt(d.data, n.start), Expected: expected, Came: came, Do: do})
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// decode stores n into v, by the field tags of the document's structs.
func (d *decoder) decode(n *node, v reflect.Value, p *path) {
	want := func(kind nodeKind) bool {
		if n.kind == kind {
			return true
		}
		came := kindNames[n.kind]
		if n.kind == kindNumber || n.kind == kindBool {
			came = n.text
		}
		d.fault(p, n, kindNames[kind], came, "")
		return false
	}
	if v.Type() == reflect.TypeFor[time.Time]() {
		if want(kindString) {
			// time.Parse takes a comma for the point and is lenient in other ways; UnmarshalText is not.
			var t time.Time
			if err := t.UnmarshalText([]byte(n.text)); err != nil {
				d.fault(p, n, "a time by RFC 3339, such as \"2026-04-01T00:00:00Z\"", strconv.Quote(clip(n.text)), "")
				return
			}
			v.Set(reflect.ValueOf(t))
		}
		return
	}
	if reflect.PointerTo(v.Type()).Implements(textUnmarshaler) {
		if want(kindString) {
			if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
				if err := u.UnmarshalText([]byte(n.text)); err != nil {
					expected, came, found := strings.Cut(strings.TrimPrefix(err.Error(), "expected "), ", came ")
					if !found {
						came = "something else"
					}
					d.fault(p, n, expected, came, "")
				}
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if want(kindObject) {
			d.object(n, v, p)
		}
	case reflect.Slice:
		if !want(kindArray) {
			return
		}
		out := reflect.MakeSlice(v.Type(), len(n.kids), len(n.kids))
		for i := range n.kids {
			d.decode(&n.kids[i], out.Index(i), &path{up: p, idx: i})
		}
		v.Set(out)
	case reflect.String:
		if want(kindString) {
			v.SetString(n.text)
		}
	case reflect.Int, reflect.Uint16, reflect.Uint64:
		if !want(kindNumber) {
			return
		}
		bits := v.Type().Bits()
		if v.Kind() == reflect.Int {
			i, err := strconv.ParseInt(n.text, 10, bits)
			if err != nil {
				d.fault(p, n, "a whole number", n.text, "")
				return
			}
			v.SetInt(i)
			return
		}
		u, err := strconv.ParseUint(n.text, 10, bits)
		if err != nil {
			d.fault(p, n, fmt.Sprintf("a whole number from 0 to %d", ^uint64(0)>>(64-bits)), n.text, "")
			return
		}
		v.SetUint(u)
	default:
		d.fault(p, n, "a known type", v.Type().String(), "this is a fault of Wardgate; report it")
	}
}

// fieldTag returns a struct field's JSON name and whether the member may be absent.
func fieldTag(f reflect.StructField) (name string, optional, ok bool) {
	tag, ok := f.Tag.Lookup("json")
	if !ok || !f.IsExported() {
		return "", false, false
	}
	name, opts, _ := strings.Cut(tag, ",")
	return name, opts != "", true
}

func (d *decoder) object(n *node, v reflect.Value, p *path) {
	t := v.Type()
	known := make(map[string]int, t.NumField())
	var names []string
	for i := range t.NumField() {
		if name, _, ok := fieldTag(t.Field(i)); ok {
			known[name] = i
			names = append(names, name)
		}
	}
	present := make(map[string]bool, len(n.keys))
	for i, key := range n.keys {
		kp := &path{up: p, key: key}
		idx, ok := known[key]
		if !ok {
			d.fault(kp, &n.kids[i], "one of "+strings.Join(names, ", "), fmt.Sprintf("unknown member %q", clip(key)), "remove it or correct its spelling")
			continue
		}
		present[key] = true
		d.decode(&n.kids[i], v.Field(idx), kp)
	}
	for i := range t.NumField() {
		if name, optional, ok := fieldTag(t.Field(i)); ok && !optional && !present[name] {
			d.fault(&path{up: p, key: name}, n, fmt.Sprintf("the member %q", name), "none", "add it; docs/policy.md describes it")
		}
	}
}

// Parse reads the JSON payload of a policy file strictly: unknown, duplicate and missing members,
// wrong types, and data after the document are all reported, each with its JSON pointer and line.
// It does not look at the meaning; Compile does. Errors: ErrTooLarge, ErrSyntax (*DocumentError).
func Parse(payload []byte) (*Document, error) {
	root, err := parseTree(payload)
	if err != nil {
		return nil, err
	}
	doc := &Document{payload: bytes.Clone(payload), digest: digestOf(payload)}
	d := decoder{data: payload}
	d.decode(&root, reflect.ValueOf(doc).Elem(), &path{})
	if err := d.faults.err(ErrSyntax); err != nil {
		return nil, err
	}
	return doc, nil
}

// fillLines adds line numbers to faults that know only their JSON pointer.
func fillLines(payload []byte, list []*FieldError) {
	if len(payload) == 0 || len(list) == 0 {
		return
	}
	root, err := parseTree(payload)
	if err != nil {
		return
	}
	unescape := strings.NewReplacer("~1", "/", "~0", "~")
	for _, f := range list {
		n := &root
		for _, step := range strings.Split(f.Path, "/")[1:] {
			next := (*node)(nil)
			switch n.kind {
			case kindObject:
				for i, k := range n.keys {
					if k == unescape.Replace(step) {
						next = &n.kids[i]
					}
				}
			case kindArray:
				if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(n.kids) {
					next = &n.kids[i]
				}
			default:
			}
			if next == nil {
				break // the line of the nearest parent is the best there is
			}
			n = next
		}
		f.Line = lineAt(payload, n.start)
	}
}
