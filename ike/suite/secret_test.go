package suite

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestSecretIsNotPrinted(t *testing.T) {
	s := NewSecret([]byte("geheim!!"))
	type outer struct {
		Exported Secret
		hidden   Secret
		keys     *IKEKeys
	}
	o := outer{s, s, &IKEKeys{SKd: s}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%U", "%p", "%T"} {
		for _, v := range []any{s, &s, o, &o, []Secret{s}, map[string]Secret{"k": s}, o.keys, *o.keys} {
			got := fmt.Sprintf(verb, v)
			for _, leak := range []string{"geheim", fmt.Sprintf("%x", "geheim"), fmt.Sprintf("%X", "geheim"), "103 101 104"} {
				if strings.Contains(got, leak) {
					t.Errorf("%s of %T prints %s", verb, v, got)
				}
			}
		}
	}
	if b, err := json.Marshal(o); err != nil || strings.Contains(string(b), "geheim") || strings.Contains(string(b), "Z2VoZWlt") {
		t.Errorf("%s %v", b, err)
	}
	if s.String() != "secret(8 octets)" {
		t.Error(s.String())
	}
}

func TestSecret(t *testing.T) {
	raw := []byte{1, 2, 3}
	s := NewSecret(raw)
	c := CopySecret(raw)
	if !s.Equal(c) || s.Equal(CopySecret([]byte{1, 2})) || s.Equal(CopySecret([]byte{1, 2, 4})) || s.Equal(Secret{}) || !(Secret{}).Equal(Secret{}) {
		t.Error("Equal")
	}
	shared, clone := s, s.Clone()
	s.Wipe()
	s.Wipe()
	if shared.Len() != 0 || s.Bytes() != nil || raw[0] != 0 || raw[2] != 0 {
		t.Error("Wipe left something")
	}
	if !clone.Equal(c) {
		t.Error("Wipe reached a clone")
	}
	(Secret{}).Wipe()
}
