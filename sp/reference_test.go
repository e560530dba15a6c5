package sp

import (
	"strings"
	"testing"
)

func TestReference(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		in, out string
		object  string
		id      string
	}{
		{"pkcs11:object=policy", "pkcs11:object=policy", "policy", ""},
		{"pkcs11:id=%01%aB", "pkcs11:id=%01%AB", "", "\x01\xab"},
		{"pkcs11:token=My%20HSM;object=a%3Bb;id=x;type=private", "pkcs11:token=My%20HSM;object=a%3Bb;id=%78", "a;b", "x"},
	} {
		r, err := parseReference(k.in)
		if err != nil || r.object != k.object || string(r.id) != k.id || r.String() != k.out {
			t.Errorf("%q: %+v %q %v", k.in, r, &r, err)
		}
	}
	for in, want := range map[string]string{
		"policy.key":                                 "pkcs11:object=LABEL",
		"pkcs11:":                                    "attributes NAME=VALUE",
		"pkcs11:token=x":                             "an object, an id, or both",
		"pkcs11:object=":                             "attributes NAME=VALUE",
		"pkcs11:object=a;object=b":                   "each once",
		"pkcs11:object=%zz":                          "hexadecimal",
		"pkcs11:object=a;slot-id=3":                  "object, id, token and type",
		"pkcs11:object=a;type=cert":                  "type=private",
		"pkcs11:object=a?pin-value=1":                "module and PIN belong to [token]",
		"pkcs11:object=" + strings.Repeat("a", 2000): "at most 1024 octets",
	} {
		if _, err := parseReference(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in[:min(len(in), 60)], err, want)
		}
	}
	r := reference{object: "a", id: []byte("x")}
	if !r.is("a", []byte("x")) || r.is("a", []byte("y")) || r.is("b", []byte("x")) || !(&reference{id: []byte("x")}).is("b", []byte("x")) || !(&reference{object: "a"}).is("a", nil) {
		t.Error("a reference names another key than it says")
	}
}

// FuzzReference: any line. What is accepted names the same key when it is written again.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"pkcs11:object=policy", "pkcs11:token=t;object=a%3Bb;id=%00%ff;type=private", "pkcs11:object=a?pin-value=1", "pkcs11:;;", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseReference(s)
		if err != nil {
			return
		}
		again, err := parseReference(r.String())
		if err != nil || again.object != r.object || again.token != r.token || string(again.id) != string(r.id) {
			t.Errorf("%q became %q: %+v, %v", s, &r, again, err)
		}
	})
}
