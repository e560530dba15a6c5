package suite

import "testing"

// TestSelectAllocatesItsAnswerOnly: a set-up makes half a dozen choices, most of them about proposals that
// do not go together, and only who asks why needs words for it.
func TestSelectAllocatesItsAnswerOnly(t *testing.T) {
	own := mustParse(ProtocolIKE, "aes256gcm16-prfsha384-x25519-mlkem768", "aes256gcm16-prfsha384-ecp384", "chacha20poly1305-prfsha256-x25519-ecp256")
	offers, err := Offers(own[2:], nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Select(own, offers, SelectOptions{}); err != nil {
			t.Error(err)
		}
	}); n > 1 {
		t.Errorf("%v allocations, want that of the answer", n)
	}
}
