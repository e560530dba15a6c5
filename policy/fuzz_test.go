package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
)

// wellFormedError checks that an error is one of this package's kinds.
func wellFormedError(t *testing.T, err error) {
	t.Helper()
	if code := Code(err); code == "policy-refused" || code == "" || err.Error() == "" {
		t.Fatalf("an error of no kind: %v", err)
	}
}

// FuzzVerify feeds whole files: nothing but the signed bytes is accepted, and nothing panics.
func FuzzVerify(f *testing.F) {
	w := newWorld(f)
	good := w.signRaw(f, w.document())
	opt := w.options()
	doc, err := Verify(good, opt)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("a.b.c"))
	f.Add([]byte(`{"payload":"","signatures":[]}`))
	for i := range 3 {
		parts := bytes.Split(good, []byte("."))
		parts[i] = nil
		f.Add(bytes.Join(parts, []byte(".")))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		got, err := Verify(file, opt)
		if err != nil {
			wellFormedError(t, err)
			if got != nil {
				t.Fatal("a document with an error")
			}
			if _, _, err := Inspect(file); err != nil {
				wellFormedError(t, err)
			}
			return
		}
		if got.Digest() != doc.Digest() || !bytes.Equal(bytes.TrimSpace(file), good) {
			t.Fatalf("accepted what nobody signed: %q", file)
		}
	})
}

// FuzzParse feeds payloads as a signer could have signed them: parsing, compiling, testing and
// explaining never panic, and what is accepted survives being written and read again.
func FuzzParse(f *testing.F) {
	w := newWorld(f)
	d := w.document()
	d.DeviceAnchors, d.Services[0].Anchors = []string{""}, nil
	d.Services[0].Auth, d.Services[0].PSK = AuthPSK, NewSecret(make([]byte, 32))
	for i := range d.Connections {
		d.Connections[i].ServiceID = ""
	}
	d.DeviceAnchors = nil
	small, err := json.MarshalIndent(d, "", " ")
	if err != nil {
		f.Fatal(err)
	}
	if doc, err := Parse(small); err != nil {
		f.Fatal(err)
	} else if _, err := Compile(doc); err != nil {
		f.Fatal(err)
	}
	f.Add(small)
	whole, err := json.Marshal(w.document())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(`{"format":1,"format":1,"x":null}`))
	f.Add([]byte(`[[[[[[[[[[[]]]]]]]]]]]`))
	f.Add([]byte(`"\ud800"`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		doc, err := Parse(payload)
		if err != nil {
			wellFormedError(t, err)
			var de *DocumentError
			if errors.As(err, &de) {
				for _, fault := range de.Faults {
					if fault.Line < 1 || fault.Line > 1+bytes.Count(payload, []byte("\n")) {
						t.Fatalf("line %d: %v", fault.Line, fault)
					}
				}
			}
			return
		}
		// encoding/json, which is laxer, must not see another document.
		var lax Document
		if err := json.Unmarshal(payload, &lax); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		again, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Parse(again)
		if err != nil {
			t.Fatalf("what was written is not read: %v\n%s", err, again)
		}
		once, err := json.Marshal(back)
		if err != nil || !bytes.Equal(again, once) {
			t.Fatalf("not the same again:\n%s\n%s", again, once)
		}
		laxText, err := json.Marshal(&lax)
		if err != nil || !bytes.Equal(again, laxText) {
			t.Fatalf("encoding/json reads another document:\n%s\n%s", again, laxText)
		}
		table, err := Compile(doc)
		if err != nil {
			wellFormedError(t, err)
			return
		}
		if err := table.RunTests(); err != nil {
			wellFormedError(t, err)
		}
		if ch := table.Diff(table); !ch.Empty() {
			t.Fatalf("a policy differs from itself: %+v", ch)
		}
		second, err := Compile(doc)
		if err != nil || !reflect.DeepEqual(second.Rules(), table.Rules()) || !reflect.DeepEqual(second.Kernel(), table.Kernel()) {
			t.Fatalf("compiling twice differs: %v", err)
		}
		for _, r := range table.Rules() {
			table.Explain(OpeningFlow(r.From[0].Addr(), r.To[0].Addr(), protoTCP, 80))
		}
	})
}
