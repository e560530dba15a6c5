package pkichip_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"wardgate/pkichip"
)

// Keys of authorities are made, found, used and deleted without a device's layers, and apart from them.
func TestAuthorityKeys(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.initToken()
	c := b.start(nil)
	made, err := c.GenerateKey(b.ctx(), "policy signer 1", pkichip.P256)
	must(t, err)
	other, err := c.GenerateKey(b.ctx(), "group-a-1-ca", pkichip.P384)
	must(t, err)
	if _, err := c.GenerateKey(b.ctx(), "policy signer 1", pkichip.P256); !errors.Is(err, pkichip.ErrExists) {
		t.Errorf("the same label again: %v", err)
	}
	for _, l := range []string{"", "wardgate-device", "wardgate-service:group-a", "new\nline", "ü", strings.Repeat("n", 65)} {
		if _, err := c.GenerateKey(b.ctx(), l, pkichip.P256); !errors.Is(err, pkichip.ErrBadRequest) {
			t.Errorf("label %q: %v", l, err)
		}
	}
	keys, err := c.Keys(b.ctx())
	must(t, err)
	if len(keys) != 2 {
		t.Fatalf("%d keys, want 2", len(keys))
	}
	digest := sha256.Sum256([]byte("signed"))
	for _, k := range keys {
		want := made
		if k.Label == other.Label {
			want = other
		}
		pub := k.Signer.Public().(*ecdsa.PublicKey)
		if k.Label != want.Label || !pub.Equal(want.Signer.Public()) {
			t.Errorf("key %q is another one than was made", k.Label)
		}
		sig, err := k.Signer.Sign(rand.Reader, digest[:], crypto.SHA256)
		must(t, err)
		if !ecdsa.VerifyASN1(pub, digest[:], sig) {
			t.Errorf("key %q signs wrongly", k.Label)
		}
	}
	// They are no part of a device's token.
	if list, err := c.List(b.ctx()); err != nil || len(list) != 0 {
		t.Errorf("list: %d credentials, %v", len(list), err)
	}
	if err := c.DeleteKey(b.ctx(), pkichip.Key{Label: made.Label, ID: other.ID}); !errors.Is(err, pkichip.ErrNoKey) {
		t.Errorf("another key's ID: %v", err)
	}
	must(t, c.DeleteKey(b.ctx(), made))
	if _, err := made.Signer.Sign(rand.Reader, digest[:], crypto.SHA256); !errors.Is(err, pkichip.ErrNoKey) {
		t.Errorf("signing with a key that was deleted: %v", err)
	}
	if keys, err = c.Keys(b.ctx()); err != nil || len(keys) != 1 || keys[0].Label != other.Label {
		t.Errorf("after the deletion: %d keys, %v", len(keys), err)
	}
}
