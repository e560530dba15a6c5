package certs_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"
	"testing"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

// A request with all that it can carry comes back, for each kind of key.
func TestCSRRoundTrip(t *testing.T) {
	t.Parallel()
	subject, err := asn1.Marshal(pkix.Name{CommonName: "a.group-a.example", Organization: []string{"Ä"}}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	const binding = "dGhlIGV4cG9ydGVyIG9mIGEgY29ubmVjdGlvbi4uLi4="
	for _, kind := range []labca.KeyType{labca.P256, labca.P384, labca.RSA2048, labca.Ed25519} {
		key, err := labca.NewKey(kind)
		if err != nil {
			t.Fatal(err)
		}
		der, err := certs.CSR{RawSubject: subject, DNSNames: []string{"a.group-a.example", "b.group-a.example"}, Challenge: binding}.Create(rand.Reader, key)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		csr, err := certs.ParseCSR(der)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		text, there, err := certs.ChallengeOf(csr)
		if text != binding || !there || err != nil {
			t.Errorf("%s: challenge %q %v %v", kind, text, there, err)
		}
		if !bytes.Equal(csr.RawSubject, subject) || !slices.Equal(csr.DNSNames, []string{"a.group-a.example", "b.group-a.example"}) {
			t.Errorf("%s: subject %v, names %v", kind, csr.Subject, csr.DNSNames)
		}
	}
}

// Without anything it is a request with an empty subject: the registry knows the names.
func TestCSREmpty(t *testing.T) {
	t.Parallel()
	key, err := labca.NewKey(labca.P256)
	if err != nil {
		t.Fatal(err)
	}
	der, err := certs.CSR{}.Create(rand.Reader, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := certs.ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	text, there, err := certs.ChallengeOf(csr)
	if len(csr.Subject.Names) != 0 || len(csr.DNSNames) != 0 || text != "" || there || err != nil {
		t.Errorf("%v %v %q %v %v", csr.Subject, csr.DNSNames, text, there, err)
	}
	for _, bad := range []string{"a\x00b", "with blank", "ä", strings.Repeat("a", certs.MaxChallenge+1)} {
		if _, err := (certs.CSR{Challenge: bad}).Create(rand.Reader, key); err == nil {
			t.Errorf("challenge %q is written", bad)
		}
	}
}
