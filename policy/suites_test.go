package policy

import "testing"

// TestHybridSuites: suites with additional key exchanges, optional ones too, are allowed; what is
// weak stays weak beside them.
func TestHybridSuites(t *testing.T) {
	w := newWorld(t)
	for in, ok := range map[string]bool{
		"aes256gcm16-prfsha384-x25519-mlkem768":               true,
		"aes256gcm16-prfsha384-ecp384-ke1_mlkem1024-ke1_none": true,
		"aes256gcm16-prfsha384-modp1024-mlkem768":             false,
		"aes256gcm16-prfsha384-x25519-MLKEM768":               false,
	} {
		d := w.document()
		d.Suites.IKE = []string{in, "aes256gcm16-prfsha384-x25519"}
		if _, err := Compile(d); (err == nil) != ok {
			t.Errorf("%s: %v", in, err)
		}
	}
}
