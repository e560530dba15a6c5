package suite

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"slices"
	"testing"
)

func TestAnnounced(t *testing.T) {
	all := SignatureAnnouncements()
	if len(all) != 9 {
		t.Errorf("%d announcements, want 9", len(all))
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := func(kind sigKind, hash uint16) Announcement {
		return Announcement{AuthDigitalSignature, []byte(canonicalIDs[sigAlg{kind, hash}])}
	}
	for name, c := range map[string]struct {
		pub       any
		announced []Announcement
		first     string
		n         int
	}{
		"RSA, all":              {&rsaKey.PublicKey, all, "RSASSA-PSS with SHA2-256 (method 14)", 2},
		"RSA, PKCS #1 alone":    {&rsaKey.PublicKey, []Announcement{of(sigPKCS1, HashSHA384)}, "RSASSA-PKCS1-v1_5 with SHA2-384 (method 14)", 1},
		"RSA, PSS with SHA-512": {&rsaKey.PublicKey, []Announcement{of(sigECDSA, HashSHA256), of(sigPSS, HashSHA512)}, "RSASSA-PSS with SHA2-512 (method 14)", 1},
		"method 14, whatever":   {&rsaKey.PublicKey, []Announcement{{Method: AuthDigitalSignature}}, "RSASSA-PSS with SHA2-256 (method 14)", 6},
		"ECDSA, SHA-512":        {&ecKey.PublicKey, []Announcement{of(sigECDSA, HashSHA512)}, "ECDSA with SHA2-512 (method 14)", 1},
		"ECDSA, nothing of it":  {&ecKey.PublicKey, []Announcement{of(sigPSS, HashSHA512)}, "ECDSA with SHA2-256 (method 14)", 3},
		"ECDSA, nothing at all": {&ecKey.PublicKey, nil, "ECDSA with SHA2-256 (method 14)", 3},
		"Ed25519, all":          {edKey, all, "Ed25519 with Identity (method 14)", 1},
		"nonsense":              {edKey, []Announcement{{AuthDigitalSignature, []byte{0x30}}, {Method: 200}}, "Ed25519 with Identity (method 14)", 1},
	} {
		schemes, err := SignatureSchemes(c.pub, SignatureHashes())
		if err != nil {
			t.Fatal(err)
		}
		got := Announced(slices.Clone(schemes), c.announced)
		if len(got) != c.n || got[0].String() != c.first {
			t.Errorf("%s: %v, want %d with %s first", name, got, c.n, c.first)
		}
	}
}
