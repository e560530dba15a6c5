package chipproto

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var id = []byte{1, 2, 3}

// examples has at least one message of every type.
var examples = []Message{
	{Type: TypeHello, ID: 1, Tries: -1},
	{Type: TypePing, ID: 2, Tries: -1},
	{Type: TypeStatus, ID: 3, Tries: -1},
	{Type: TypeTokens, ID: 4, Tries: -1},
	{Type: TypeList, ID: 5, Tries: -1},
	{Type: TypeMechanisms, ID: 6, Tries: -1},
	{Type: TypeSign, ID: 7, Tries: -1, Layer: LayerService, Service: "group-a", KeyID: id, Scheme: SchemePSS, Hash: HashSHA256, Salt: 32, Data: make([]byte, 32)},
	{Type: TypeSign, ID: 7, Tries: -1, Layer: LayerDevice, KeyID: id, Scheme: SchemeEd25519, Hash: HashNone, Data: []byte("message")},
	{Type: TypeGenerate, ID: 8, Tries: -1, Layer: LayerDevice, KeyType: P384},
	{Type: TypeStore, ID: 9, Tries: -1, Layer: LayerService, Service: "x", Cert: id, Chain: [][]byte{id, id}, Anchors: [][]byte{id}, CRLs: [][]byte{id}, Replace: true},
	{Type: TypeDelete, ID: 10, Tries: -1, Layer: LayerService, Service: "x", KeyID: id},
	{Type: TypeInitToken, ID: 11, Tries: -1, Label: "router"},
	{Type: TypeEvent, ID: 0, Tries: -1, Event: EventRemoved, Text: "gone"},
	{Type: TypeEvent, ID: 0, Tries: 2, Event: EventPIN, Text: "wrong", Code: CodePINWrong, Source: "mark", Do: "correct it"},
	{Type: TypeHello | ReplyBit, ID: 1, Tries: -1, Module: "SoftHSM", Tokens: []TokenInfo{{Slot: 1, Label: "x", State: StateReady, PIN: PINGood, Initialized: true, FreePrivate: math.MaxUint64}}},
	{Type: TypePing | ReplyBit, ID: 2, Tries: -1},
	{Type: TypeStatus | ReplyBit, ID: 3, Tries: -1, Tokens: []TokenInfo{{State: StateAbsent}}, Text: "not there"},
	{Type: TypeTokens | ReplyBit, ID: 4, Tries: -1, Tokens: []TokenInfo{{Label: "a"}, {Label: "b"}}},
	{Type: TypeList | ReplyBit, ID: 5, Tries: -1, Creds: []Credential{
		{Layer: LayerDevice, ID: id, Public: id, Cert: id, HasKey: true, Chain: [][]byte{id, id}},
		{Layer: LayerService, Service: "group-a", ID: id},
	}},
	{Type: TypeMechanisms | ReplyBit, ID: 6, Tries: -1, KeyTypes: []KeyType{P256, Ed25519}},
	{Type: TypeSign | ReplyBit, ID: 7, Tries: -1, Data: id},
	{Type: TypeGenerate | ReplyBit, ID: 8, Tries: -1, KeyID: id, Public: id},
	{Type: TypeStore | ReplyBit, ID: 9, Tries: -1, KeyID: id},
	{Type: TypeDelete | ReplyBit, ID: 10, Tries: -1},
	{Type: TypeInitToken | ReplyBit, ID: 11, Tries: -1, Tokens: []TokenInfo{{Label: "router"}}},
	{Type: TypeSign | ReplyBit, ID: 7, Tries: 0, Code: CodePINLocked, Text: "locked", Do: "unlock", RV: 0xa4, Op: "C_Login", Class: "x", Source: "mark"},
}

func TestRoundTrip(t *testing.T) {
	types := map[Type]bool{}
	for i := range examples {
		m := &examples[i]
		types[m.Type] = true
		b, err := Append(nil, m)
		if err != nil {
			t.Fatalf("%v: %v", m.Type, err)
		}
		got, err := Read(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%v: %v", m.Type, err)
		}
		if d := cmp.Diff(m, got); d != "" {
			t.Errorf("%v: %s", m.Type, d)
		}
		for n := range b {
			if _, err := Read(bytes.NewReader(b[:n])); err == nil {
				t.Errorf("%v cut to %d of %d octets was accepted", m.Type, n, len(b))
			}
		}
		for n := range b[4:] { // shortened with a length that fits
			cut, err := Parse(b[4 : 4+n])
			if err == nil {
				again, err := Append(nil, cut)
				if err != nil || !bytes.Equal(again[4:], b[4:4+n]) {
					t.Errorf("%v cut to %d octets parses, but is not canonical", m.Type, n)
				}
			} else if !errors.Is(err, ErrFrame) {
				t.Errorf("%v: untyped error %v", m.Type, err)
			}
		}
	}
	for typ := range layout {
		if !types[typ] {
			t.Errorf("no example of %v", typ)
		}
	}
}

func TestStrict(t *testing.T) {
	frame := func(typ Type, fields ...byte) []byte {
		return append([]byte{Version, byte(typ), 0, 0, 0, 1}, fields...)
	}
	for name, b := range map[string][]byte{
		"empty":                    {},
		"short header":             {Version, 1, 0, 0, 0},
		"another version":          {Version + 1, 1, 0, 0, 0, 1},
		"unknown type":             frame(0x70),
		"request number 0":         {Version, byte(TypePing), 0, 0, 0, 0},
		"event with a number":      frame(TypeEvent, byte(tagText), 0, 0, 0, 0, byte(tagEvent), 0, 0, 0, 1, 1),
		"field of another type":    frame(TypePing, byte(tagLayer), 0, 0, 0, 1, 1),
		"missing field":            frame(TypeGenerate, byte(tagLayer), 0, 0, 0, 1, 1),
		"layer 0":                  frame(TypeGenerate, byte(tagLayer), 0, 0, 0, 1, 0, byte(tagKeyType), 0, 0, 0, 0),
		"layer 3":                  frame(TypeGenerate, byte(tagLayer), 0, 0, 0, 1, 3, byte(tagKeyType), 0, 0, 0, 0),
		"layer of two octets":      frame(TypeGenerate, byte(tagLayer), 0, 0, 0, 2, 0, 1, byte(tagKeyType), 0, 0, 0, 0),
		"out of order":             frame(TypeGenerate, byte(tagKeyType), 0, 0, 0, 0, byte(tagLayer), 0, 0, 0, 1, 1),
		"repeated":                 frame(TypeGenerate, byte(tagLayer), 0, 0, 0, 1, 1, byte(tagLayer), 0, 0, 0, 1, 1, byte(tagKeyType), 0, 0, 0, 0),
		"length beyond the end":    frame(TypeGenerate, byte(tagLayer), 0xff, 0xff, 0xff, 0xff, 1),
		"no UTF-8":                 frame(TypeInitToken, byte(tagLabel), 0, 0, 0, 1, 0xff),
		"error without text":       frame(TypePing|ReplyBit, byte(tagCode), 0, 0, 0, 2, 0, 1),
		"error code 0":             frame(TypePing|ReplyBit, byte(tagCode), 0, 0, 0, 2, 0, 0, byte(tagText), 0, 0, 0, 0),
		"unknown error code":       frame(TypePing|ReplyBit, byte(tagCode), 0, 0, 0, 2, 9, 9, byte(tagText), 0, 0, 0, 0),
		"error and result at once": frame(TypeSign|ReplyBit, byte(tagCode), 0, 0, 0, 2, 0, 1, byte(tagText), 0, 0, 0, 0, byte(tagData), 0, 0, 0, 0),
		"code in a request":        frame(TypePing, byte(tagCode), 0, 0, 0, 2, 0, 1),
		"tag 64":                   frame(TypePing, 64, 0, 0, 0, 0),
		"tag 0":                    frame(TypePing, 0, 0, 0, 0, 0),
	} {
		if m, err := Parse(b); err == nil {
			t.Errorf("%s accepted: %+v", name, m)
		}
	}
	if _, err := Read(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff})); !errors.Is(err, ErrFrame) {
		t.Errorf("a frame of 4 GB: %v", err)
	}
	if _, err := Append(nil, &Message{Type: TypeSign, ID: 1, Tries: -1, Layer: 1, KeyID: id, Scheme: 1, Data: make([]byte, MaxData+1)}); err == nil {
		t.Error("too much data was sent")
	}
	if err := Write(io.Discard, &Message{Type: TypePing, ID: 1, Layer: 1}); err == nil {
		t.Error("a field that does not belong there was sent")
	}
}

func TestTypeNames(t *testing.T) {
	for typ := range layout {
		if typ.String() == "" || typ.String()[:4] == "type" || typ.Timeout() <= 0 {
			t.Errorf("type %d: %q, %v", uint8(typ), typ.String(), typ.Timeout())
		}
	}
}

func TestRoundTripProperty(t *testing.T) {
	text := rapid.StringN(0, 20, MaxName)
	blob := rapid.SliceOfN(rapid.Byte(), 1, 40)
	rapid.Check(t, func(rt *rapid.T) {
		m := Message{Type: TypeList | ReplyBit, ID: rapid.Uint32Min(1).Draw(rt, "id"), Tries: -1}
		for range rapid.IntRange(0, 5).Draw(rt, "n") {
			m.Creds = append(m.Creds, Credential{
				Layer: Layer(rapid.IntRange(1, 2).Draw(rt, "layer")), Service: text.Draw(rt, "service"), ID: blob.Draw(rt, "id"),
				Public: blob.Draw(rt, "public"), Cert: blob.Draw(rt, "cert"), HasKey: rapid.Bool().Draw(rt, "key"),
				Chain: rapid.SliceOfN(blob, 1, 4).Draw(rt, "chain"),
			})
		}
		b, err := Append(nil, &m)
		if err != nil {
			rt.Fatal(err)
		}
		got, err := Parse(b[4:])
		if err != nil {
			rt.Fatal(err)
		}
		if d := cmp.Diff(&m, got); d != "" {
			rt.Fatal(d)
		}
	})
}

// FuzzChipproto: no octets make the parser panic or allocate beyond them, and what it accepts is
// canonical: encoded again it is the same.
func FuzzChipproto(f *testing.F) {
	for i := range examples {
		b, err := Append(nil, &examples[i])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[4:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			return
		}
		again, err := Append(nil, m)
		if err != nil {
			t.Fatalf("parsed, but cannot be encoded: %v", err)
		}
		m2, err := Parse(again[4:])
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(m, m2); d != "" {
			t.Fatal(d)
		}
	})
}
