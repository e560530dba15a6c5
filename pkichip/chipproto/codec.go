package chipproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"unicode/utf8"
)

// tag of a field, ascending in a message.
type tag uint8

const (
	tagCode tag = iota + 1
	tagText
	tagDo
	tagRV
	tagTries
	tagOp
	tagClass
	tagSource
	tagLayer
	tagService
	tagKeyID
	tagKeyType
	tagScheme
	tagHash
	tagSalt
	tagData
	tagPublic
	tagCert
	tagChain
	tagAnchor
	tagCRL
	tagReplace
	tagLabel
	tagModule
	tagToken
	tagCred
	tagCanMake
	tagEvent
)

type shape struct {
	must, may []tag
}

// layout is the table of fields: what a message of a type must and may have.
var layout = map[Type]shape{
	TypeHello:      {},
	TypePing:       {},
	TypeStatus:     {},
	TypeTokens:     {},
	TypeList:       {may: []tag{tagLayer}}, // LayerAuthority, or without: the two layers
	TypeMechanisms: {},
	TypeSign:       {must: []tag{tagLayer, tagKeyID, tagScheme, tagHash, tagData}, may: []tag{tagService, tagSalt}},
	TypeGenerate:   {must: []tag{tagLayer, tagKeyType}, may: []tag{tagService}},
	TypeStore:      {must: []tag{tagLayer, tagCert}, may: []tag{tagService, tagChain, tagAnchor, tagCRL, tagReplace}},
	TypeDelete:     {must: []tag{tagLayer, tagService}, may: []tag{tagKeyID}},
	TypeInitToken:  {must: []tag{tagLabel}, may: []tag{tagReplace}},
	TypeEvent:      {must: []tag{tagEvent, tagText}, may: []tag{tagSource, tagCode, tagTries, tagDo}},

	TypeHello | ReplyBit:      {may: []tag{tagModule, tagToken}},
	TypePing | ReplyBit:       {},
	TypeStatus | ReplyBit:     {must: []tag{tagToken}, may: []tag{tagText}},
	TypeTokens | ReplyBit:     {may: []tag{tagToken}},
	TypeList | ReplyBit:       {may: []tag{tagCred}},
	TypeMechanisms | ReplyBit: {may: []tag{tagCanMake}},
	TypeSign | ReplyBit:       {must: []tag{tagData}},
	TypeGenerate | ReplyBit:   {must: []tag{tagKeyID, tagPublic}},
	TypeStore | ReplyBit:      {must: []tag{tagKeyID}},
	TypeDelete | ReplyBit:     {},
	TypeInitToken | ReplyBit:  {must: []tag{tagToken}},
}

// errorShape is that of every reply that carries an error.
var errorShape = shape{must: []tag{tagCode, tagText}, may: []tag{tagDo, tagRV, tagTries, tagOp, tagClass, tagSource}}

// bitset of the table, made once.
type masks struct{ must, all uint64 }

var allowed, errorMasks = func() (map[Type]masks, masks) {
	mk := func(s shape) (m masks) {
		for _, t := range s.must {
			m.must |= 1 << t
			m.all |= 1 << t
		}
		for _, t := range s.may {
			m.all |= 1 << t
		}
		return m
	}
	a := map[Type]masks{}
	for t, s := range layout {
		a[t] = mk(s)
	}
	return a, mk(errorShape)
}()

// repeatable tags and how often they may come.
var repeatable = map[tag]int{
	tagChain: MaxCerts, tagAnchor: MaxCerts, tagCRL: MaxCerts, tagToken: 64, tagCred: MaxObjects, tagCanMake: 16,
}

const headerLen = 1 + 1 + 4 // version, type, request number

// Append appends the frame of m to b. It fails when a field is beyond its bound or not part of
// the type: what is sent is checked by the same table as what is received.
func Append(b []byte, m *Message) ([]byte, error) {
	start := len(b)
	b = append(b, 0, 0, 0, 0, Version, byte(m.Type))
	b = binary.BigEndian.AppendUint32(b, m.ID)
	need := allowed[m.Type].must // fields that are sent although they are zero
	if m.Code != OK && m.Type&ReplyBit != 0 {
		need = errorMasks.must
	}
	b = appendFields(b, m, need)
	n := len(b) - start - 4
	if n > MaxFrame {
		return nil, fmt.Errorf("%w: %v of %d octets, at most %d", ErrFrame, m.Type, n, MaxFrame)
	}
	binary.BigEndian.PutUint32(b[start:], uint32(n))
	if _, err := Parse(b[start+4:]); err != nil {
		return nil, err
	}
	return b, nil
}

func appendFields(b []byte, m *Message, need uint64) []byte {
	raw := func(t tag, v []byte) {
		b = append(b, byte(t))
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	str := func(t tag, s string) {
		if s != "" {
			raw(t, []byte(s))
		}
	}
	octets := func(t tag, v []byte) {
		if len(v) > 0 {
			raw(t, v)
		}
	}
	number := func(t tag, v uint64, size int) {
		if v == 0 && need&(1<<t) == 0 {
			return
		}
		var x [8]byte
		binary.BigEndian.PutUint64(x[:], v)
		raw(t, x[8-size:])
	}
	list := func(t tag, l [][]byte) {
		for _, v := range l {
			raw(t, v)
		}
	}
	number(tagCode, uint64(m.Code), 2)
	if m.Text != "" || need&(1<<tagText) != 0 {
		raw(tagText, []byte(m.Text))
	}
	str(tagDo, m.Do)
	number(tagRV, m.RV, 8)
	if m.Code != OK && m.Tries >= 0 {
		raw(tagTries, []byte{byte(m.Tries)})
	}
	str(tagOp, m.Op)
	str(tagClass, m.Class)
	str(tagSource, m.Source)
	number(tagLayer, uint64(m.Layer), 1)
	str(tagService, m.Service)
	octets(tagKeyID, m.KeyID)
	str(tagKeyType, string(m.KeyType))
	number(tagScheme, uint64(m.Scheme), 1)
	number(tagHash, uint64(m.Hash), 1)
	number(tagSalt, uint64(m.Salt), 2)
	if len(m.Data) > 0 || need&(1<<tagData) != 0 {
		raw(tagData, m.Data)
	}
	octets(tagPublic, m.Public)
	octets(tagCert, m.Cert)
	list(tagChain, m.Chain)
	list(tagAnchor, m.Anchors)
	list(tagCRL, m.CRLs)
	if m.Replace {
		raw(tagReplace, []byte{1})
	}
	str(tagLabel, m.Label)
	str(tagModule, m.Module)
	for i := range m.Tokens {
		raw(tagToken, appendToken(nil, &m.Tokens[i]))
	}
	for i := range m.Creds {
		raw(tagCred, appendCred(nil, &m.Creds[i]))
	}
	for _, k := range m.KeyTypes {
		raw(tagCanMake, []byte(k))
	}
	number(tagEvent, uint64(m.Event), 1)
	return b
}

// Parse parses one frame without its length. All octets of the result are copies.
func Parse(b []byte) (*Message, error) {
	if len(b) < headerLen || len(b) > MaxFrame {
		return nil, fmt.Errorf("%w: %d octets", ErrFrame, len(b))
	}
	if b[0] != Version {
		return nil, fmt.Errorf("%w: expected %d, got %d; install wardgate and wardgate-chip of the same release", ErrVersion, Version, b[0])
	}
	m := &Message{Type: Type(b[1]), ID: binary.BigEndian.Uint32(b[2:]), Tries: -1}
	table, ok := allowed[m.Type]
	if !ok {
		return nil, fmt.Errorf("%w: unknown %v", ErrFrame, m.Type)
	}
	if (m.Type == TypeEvent) != (m.ID == 0) {
		return nil, fmt.Errorf("%w: %v with request number %d", ErrFrame, m.Type, m.ID)
	}
	r := reader{b: b[headerLen:]}
	var seen uint64
	var last tag
	count := 0
	for len(r.b) > 0 {
		t, v, err := r.field()
		if err != nil {
			return nil, fmt.Errorf("%v: %w", m.Type, err)
		}
		if t == last {
			count++
		} else {
			count = 1
		}
		if t < last || t > tagEvent || count > max(1, repeatable[t]) {
			return nil, fmt.Errorf("%w: %v: field %d out of order, unknown or repeated", ErrFrame, m.Type, t)
		}
		if t == tagCode && m.Type&ReplyBit != 0 {
			table = errorMasks
		}
		last = t
		seen |= 1 << t
		if table.all&(1<<t) == 0 {
			return nil, fmt.Errorf("%w: %v: field %d does not belong there", ErrFrame, m.Type, t)
		}
		if err := m.set(t, v); err != nil {
			return nil, fmt.Errorf("%w: %v: field %d: %w", ErrFrame, m.Type, t, err)
		}
	}
	if seen&table.must != table.must {
		return nil, fmt.Errorf("%w: %v: a field is missing", ErrFrame, m.Type)
	}
	if m.Tries >= 0 && m.Code == OK {
		return nil, fmt.Errorf("%w: %v: PIN tries without an error they belong to", ErrFrame, m.Type)
	}
	return m, nil
}

type reader struct{ b []byte }

func (r *reader) field() (tag, []byte, error) {
	if len(r.b) < 5 {
		return 0, nil, fmt.Errorf("%w: %d octets left, a field has at least 5", ErrFrame, len(r.b))
	}
	t, n := tag(r.b[0]), binary.BigEndian.Uint32(r.b[1:])
	if t == 0 || t > 63 || uint64(n) > uint64(len(r.b)-5) {
		return 0, nil, fmt.Errorf("%w: field %d of %d octets, %d left", ErrFrame, t, n, len(r.b)-5)
	}
	v := r.b[5 : 5+n]
	r.b = r.b[5+n:]
	return t, v, nil
}

var (
	errLength = errors.New("wrong length")
	errRange  = errors.New("out of range")
	errText   = errors.New("no UTF-8 text")
)

func text(v []byte, least, most int) (string, error) {
	if len(v) < least || len(v) > most {
		return "", errLength
	}
	if !utf8.Valid(v) {
		return "", errText
	}
	return string(v), nil
}

func octets(v []byte, least, most int) ([]byte, error) {
	if len(v) < least || len(v) > most {
		return nil, errLength
	}
	return append([]byte(nil), v...), nil
}

func number(v []byte, size int, most uint64) (uint64, error) {
	if len(v) != size {
		return 0, errLength
	}
	var n uint64
	for _, c := range v {
		n = n<<8 | uint64(c)
	}
	if n > most {
		return 0, errRange
	}
	return n, nil
}

// small is number for the enumerations of one octet.
func small[T ~uint8](v []byte, most T) (T, error) {
	n, err := number(v, 1, uint64(most))
	return T(n), err
}

func (m *Message) set(t tag, v []byte) (err error) {
	var n uint64
	var s string
	var o []byte
	switch t {
	case tagCode:
		n, err = number(v, 2, uint64(CodeReadOnly))
		if m.Code = Code(n); m.Code == OK && err == nil {
			err = errRange
		}
	case tagText:
		m.Text, err = text(v, 0, MaxText)
	case tagDo:
		m.Do, err = text(v, 1, MaxText)
	case tagRV:
		m.RV, err = number(v, 8, math.MaxUint64)
	case tagTries:
		n, err = number(v, 1, math.MaxInt8)
		m.Tries = int8(n)
	case tagOp:
		m.Op, err = text(v, 1, MaxName)
	case tagClass:
		m.Class, err = text(v, 1, MaxName)
	case tagSource:
		m.Source, err = text(v, 1, 256)
	case tagLayer:
		m.Layer, err = small(v, LayerAuthority)
		if m.Layer == 0 && err == nil {
			err = errRange
		}
	case tagService:
		m.Service, err = text(v, 1, MaxName)
	case tagKeyID:
		m.KeyID, err = octets(v, 1, MaxID)
	case tagKeyType:
		s, err = text(v, 1, 16)
		m.KeyType = KeyType(s)
	case tagScheme:
		m.Scheme, err = small(v, SchemePSS)
	case tagHash:
		m.Hash, err = small(v, HashSHA512)
	case tagSalt:
		n, err = number(v, 2, math.MaxUint16)
		m.Salt = uint16(n)
	case tagData:
		m.Data, err = octets(v, 0, MaxData)
	case tagPublic:
		m.Public, err = octets(v, 1, MaxCert)
	case tagCert:
		m.Cert, err = octets(v, 1, MaxCert)
	case tagChain:
		o, err = octets(v, 1, MaxCert)
		m.Chain = append(m.Chain, o)
	case tagAnchor:
		o, err = octets(v, 1, MaxCert)
		m.Anchors = append(m.Anchors, o)
	case tagCRL:
		o, err = octets(v, 1, MaxFrame)
		m.CRLs = append(m.CRLs, o)
	case tagReplace:
		n, err = number(v, 1, 1)
		m.Replace = n == 1
		if n != 1 && err == nil {
			err = errRange
		}
	case tagLabel:
		m.Label, err = text(v, 1, MaxName)
	case tagModule:
		m.Module, err = text(v, 1, MaxText)
	case tagToken:
		var ti TokenInfo
		ti, err = parseToken(v)
		m.Tokens = append(m.Tokens, ti)
	case tagCred:
		var c Credential
		c, err = parseCred(v)
		m.Creds = append(m.Creds, c)
	case tagCanMake:
		s, err = text(v, 1, 16)
		m.KeyTypes = append(m.KeyTypes, KeyType(s))
	case tagEvent:
		m.Event, err = small(v, EventKind(numEventKind-1))
		if m.Event == 0 && err == nil {
			err = errRange
		}
	default:
		err = errRange
	}
	return err
}

// A token's description: slot, free memory, state, PIN state, initialised, then four strings with
// a length octet each.
func appendToken(b []byte, t *TokenInfo) []byte {
	b = binary.BigEndian.AppendUint64(b, t.Slot)
	b = binary.BigEndian.AppendUint64(b, t.FreePrivate)
	b = append(b, byte(t.State), byte(t.PIN), boolOctet(t.Initialized))
	for _, s := range []string{t.Label, t.Manufacturer, t.Model, t.Serial} {
		if len(s) > 255 {
			s = s[:255]
		}
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	return b
}

func parseToken(v []byte) (t TokenInfo, err error) {
	if len(v) < 19 {
		return t, errLength
	}
	t.Slot, t.FreePrivate = binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])
	if v[16] >= numTokenState || v[17] >= numPINState || v[18] > 1 {
		return t, errRange
	}
	t.State, t.PIN, t.Initialized = TokenState(v[16]), PINState(v[17]), v[18] == 1
	v = v[19:]
	for _, s := range []*string{&t.Label, &t.Manufacturer, &t.Model, &t.Serial} {
		if len(v) < 1 || len(v)-1 < int(v[0]) {
			return t, errLength
		}
		if *s, err = text(v[1:1+int(v[0])], 0, 255); err != nil {
			return t, err
		}
		v = v[1+int(v[0]):]
	}
	if len(v) != 0 {
		return t, errLength
	}
	return t, nil
}

func boolOctet(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// A credential: layer, has-key, then fields as in a message.
func appendCred(b []byte, c *Credential) []byte {
	b = append(b, byte(c.Layer), boolOctet(c.HasKey))
	return appendFields(b, &Message{Service: c.Service, KeyID: c.ID, Public: c.Public, Cert: c.Cert, Chain: c.Chain}, 0)
}

func parseCred(v []byte) (c Credential, err error) {
	if len(v) < 2 {
		return c, errLength
	}
	if v[0] < byte(LayerDevice) || v[0] > byte(LayerAuthority) || v[1] > 1 {
		return c, errRange
	}
	c.Layer, c.HasKey = Layer(v[0]), v[1] == 1
	r := reader{b: v[2:]}
	var m Message
	var last tag
	for len(r.b) > 0 {
		t, f, err := r.field()
		if err != nil {
			return c, err
		}
		if t < last || (t == last && t != tagChain) || len(m.Chain) == MaxCerts {
			return c, errRange
		}
		last = t
		switch t {
		case tagService, tagKeyID, tagPublic, tagCert, tagChain:
		default:
			return c, errRange
		}
		if err := m.set(t, f); err != nil {
			return c, err
		}
	}
	c.Service, c.ID, c.Public, c.Cert, c.Chain = m.Service, m.KeyID, m.Public, m.Cert, m.Chain
	return c, nil
}

// Read reads one message. The length is checked before anything is allocated.
func Read(r io.Reader) (*Message, error) {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n < headerLen || n > MaxFrame {
		return nil, fmt.Errorf("%w: length %d, expected %d to %d", ErrFrame, n, headerLen, MaxFrame)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return Parse(b)
}

// Write writes one message in one call.
func Write(w io.Writer, m *Message) error {
	b, err := Append(nil, m)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}
