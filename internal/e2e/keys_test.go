package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"regexp"
	"testing"
)

// privateKey says what kind of private key data holds, anywhere in it, in PEM, DER, or DER in base64;
// empty: none.
func privateKey(data []byte) string {
	if bytes.Contains(data, []byte("PRIVATE KEY")) {
		return "a private key in PEM"
	}
	if keyInDER(data) {
		return "a private key in DER"
	}
	for _, m := range inBase64.FindAll(data, -1) {
		m = bytes.TrimRight(m, "=")
		for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			for cut := range 4 { // what is before it may be of the alphabet, too
				if der, err := e.DecodeString(string(m[min(cut, len(m)):])); err == nil && keyInDER(der) {
					return "a private key in base64"
				}
			}
		}
	}
	return ""
}

var inBase64 = regexp.MustCompile(`[A-Za-z0-9+/_-]{40,}=*`)

// keyInDER looks for a SEQUENCE that is a key at every place.
func keyInDER(data []byte) bool {
	for i := range data {
		if data[i] != 0x30 || i+4 > len(data) {
			continue
		}
		n, head := int(data[i+1]), 2
		switch {
		case n == 0x81:
			n, head = int(data[i+2]), 3
		case n == 0x82:
			n, head = int(data[i+2])<<8|int(data[i+3]), 4
		case n > 0x80:
			continue
		}
		if i+head+n > len(data) || n < 16 || data[i+head] != 2 { // all forms begin with a version
			continue
		}
		der := data[i : i+head+n]
		if _, err := x509.ParsePKCS8PrivateKey(der); err == nil {
			return true
		}
		if _, err := x509.ParseECPrivateKey(der); err == nil {
			return true
		}
		if _, err := x509.ParsePKCS1PrivateKey(der); err == nil {
			return true
		}
	}
	return false
}

// What looks for private keys finds them.
func TestPrivateKeysAreFound(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	p8, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	sec1, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	for name, data := range map[string][]byte{
		"PKCS #8": p8, "SEC 1": sec1, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8}),
		"within something": append(append([]byte("0123456789"), sec1...), "abc"...),
		"in JSON":          []byte(`{"key":"` + base64.StdEncoding.EncodeToString(p8) + `"}`),
		"in a JWS":         []byte("e30." + base64.RawURLEncoding.EncodeToString(sec1) + ".AA"),
	} {
		if privateKey(data) == "" {
			t.Errorf("%s: not found", name)
		}
	}
	for name, data := range map[string][]byte{"nothing": nil, "text": []byte("0\x10 and more text than that"), "a public key": public, "in base64": []byte(base64.StdEncoding.EncodeToString(public))} {
		if kind := privateKey(data); kind != "" {
			t.Errorf("%s: taken for %s", name, kind)
		}
	}
}
