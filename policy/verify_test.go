package policy

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

func TestSignAndVerify(t *testing.T) {
	w := newWorld(t)
	for _, kind := range []labca.KeyType{labca.P256, labca.P384, labca.RSA2048, labca.Ed25519} {
		t.Run(string(kind), func(t *testing.T) {
			key, err := labca.NewKey(kind)
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := w.signers.Issue(labca.Request{Public: key.Public(), DNSNames: []string{"sp2.example"}, At: at})
			if err != nil {
				t.Fatal(err)
			}
			chain := append([]*x509.Certificate{leaf}, w.signers.Intermediates()...)
			jws, err := Sign(w.document(), key, chain)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Sign(w.document(), key, chain)
			if err != nil || !bytes.Equal(jws, again) {
				t.Errorf("signing twice differs (%v)", err)
			}
			doc, err := Verify(append(jws, '\n'), w.options())
			if err != nil {
				t.Fatal(err)
			}
			if doc.Table() == nil || doc.Digest().IsZero() || doc.Serial != 7 || doc.Table().Serial() != 7 || doc.Table().Digest() != doc.Digest() {
				t.Errorf("document not whole: %+v", doc.Installed())
			}
			got, sent, err := Inspect(jws)
			if err != nil || got.Serial != 7 || len(sent) != len(chain) || got.Table() != nil {
				t.Errorf("Inspect: %v", err)
			}
		})
	}
}

// Issue 2, "Shown by" 5: each refusal has its own kind and code.
func TestVerifyRefuses(t *testing.T) {
	w := newWorld(t)
	good := w.signRaw(t, w.document())
	edited := func(f func(*Document)) []byte {
		d := w.document()
		f(d)
		return w.signRaw(t, d)
	}
	signedBy := func(r labca.Request, a *labca.Authority) []byte {
		key, err := labca.NewKey(labca.P256)
		if err != nil {
			t.Fatal(err)
		}
		r.Public = key.Public()
		if r.DNSNames == nil {
			r.DNSNames = []string{"sp.example"}
		}
		if r.At.IsZero() {
			r.At = at.Add(-time.Minute)
		}
		leaf, err := a.Issue(r)
		if err != nil {
			t.Fatal(err)
		}
		payload, err := json.Marshal(w.document())
		if err != nil {
			t.Fatal(err)
		}
		jws, err := SignPayload(payload, key, append([]*x509.Certificate{leaf}, a.Intermediates()...))
		if err != nil {
			t.Fatal(err)
		}
		return jws
	}
	other, err := labca.New(labca.Options{Kind: labca.Policy, Name: "policy", At: at.Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	revoking, err := labca.New(labca.Options{Kind: labca.Policy, Name: "revoking", At: at.Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	revoked := signedBy(labca.Request{}, revoking)
	_, sent, err := Inspect(revoked)
	if err != nil {
		t.Fatal(err)
	}
	if err := revoking.Revoke(sent[0].SerialNumber, at.Add(-time.Second), 1); err != nil {
		t.Fatal(err)
	}
	crls, err := revoking.CRLs(at, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	// flip changes one character of one part of the JWS.
	flip := func(part, back int) []byte {
		parts := bytes.Split(bytes.Clone(good), []byte("."))
		p := parts[part]
		i := len(p) - back
		if p[i] == 'A' {
			p[i] = 'B'
		} else {
			p[i] = 'A'
		}
		return bytes.Join(parts, []byte("."))
	}
	header := func(f func(h map[string]any)) []byte {
		parts := bytes.Split(bytes.Clone(good), []byte("."))
		b, err := base64.RawURLEncoding.DecodeString(string(parts[0]))
		if err != nil {
			t.Fatal(err)
		}
		var h map[string]any
		if err := json.Unmarshal(b, &h); err != nil {
			t.Fatal(err)
		}
		f(h)
		if b, err = json.Marshal(h); err != nil {
			t.Fatal(err)
		}
		parts[0] = []byte(base64.RawURLEncoding.EncodeToString(b))
		return bytes.Join(parts, []byte("."))
	}
	headerText := func(s string) []byte {
		parts := bytes.Split(bytes.Clone(good), []byte("."))
		parts[0] = []byte(base64.RawURLEncoding.EncodeToString([]byte(s)))
		return bytes.Join(parts, []byte("."))
	}

	for _, c := range []struct {
		name string
		jws  []byte
		opt  func(*VerifyOptions)
		kind error
		code string
		says string // part of the message
	}{
		{name: "changed payload", jws: flip(1, 40), kind: ErrSignature, code: "policy-signature"},
		{name: "changed signature", jws: flip(2, 20), kind: ErrSignature, code: "policy-signature"},
		{name: "signature of another file", jws: append(good[:bytes.LastIndexByte(good, '.'):bytes.LastIndexByte(good, '.')], edited(func(d *Document) { d.Serial = 8 })[bytes.LastIndexByte(good, '.'):]...), kind: ErrSignature, code: "policy-signature"},
		{name: "older serial", jws: good, opt: func(o *VerifyOptions) { o.Installed = Installed{Serial: 8, Digest: Digest{1}} }, kind: ErrSerialOlder, code: "policy-serial-older", says: "expected serial 8 or later, came 7"},
		{name: "older serial, digest lost", jws: good, opt: func(o *VerifyOptions) { o.Installed = Installed{Serial: 8} }, kind: ErrSerialOlder, code: "policy-serial-older"},
		{name: "same serial, other content", jws: good, opt: func(o *VerifyOptions) { o.Installed = Installed{Serial: 7, Digest: Digest{1}} }, kind: ErrSerialReused, code: "policy-serial-reused"},
		{name: "same serial, digest lost", jws: good, opt: func(o *VerifyOptions) { o.Installed = Installed{Serial: 7} }, kind: ErrSerialReused, code: "policy-serial-reused"},
		{name: "other device", jws: edited(func(d *Document) { d.Device.Fingerprint = Digest{1}.String() }), kind: ErrOtherDevice, code: "policy-other-device"},
		{name: "other device's name", jws: edited(func(d *Document) { d.Device.ID = "b.devices.example" }), kind: ErrOtherDevice, code: "policy-other-device", says: "a.devices.example"},
		{name: "no fingerprint", jws: edited(func(d *Document) { d.Device.Fingerprint = "" }), kind: ErrOtherDevice, code: "policy-other-device"},
		{name: "expired", jws: good, opt: func(o *VerifyOptions) { o.Now = at.Add(31 * 24 * time.Hour) }, kind: ErrExpired, code: "policy-expired", says: "one valid until 2026-05-01"},
		{name: "not yet valid", jws: edited(func(d *Document) { d.NotBefore = at.Add(time.Second) }), kind: ErrNotYetValid, code: "policy-not-yet-valid"},
		{name: "signer without the EKU", jws: signedBy(labca.Request{NoEKU: true}, w.signers), kind: ErrSignerEKU, code: "policy-signer-eku"},
		{name: "signer with another EKU", jws: signedBy(labca.Request{EKUs: []asn1.ObjectIdentifier{certs.EKUIPsecIKE}}, w.signers), kind: ErrSignerEKU, code: "policy-signer-eku"},
		{name: "any EKU is not enough", jws: signedBy(labca.Request{EKUs: []asn1.ObjectIdentifier{{2, 5, 29, 37, 0}}}, w.signers), kind: ErrSignerEKU, code: "policy-signer-eku"},
		{name: "signer without digitalSignature", jws: signedBy(labca.Request{KeyUsage: x509.KeyUsageKeyEncipherment}, w.signers), kind: ErrSignerEKU, code: "policy-signer-eku"},
		{name: "a CA as signer", jws: signedBy(labca.Request{IsCA: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}, w.signers), kind: ErrSignerEKU, code: "policy-signer-eku"},
		{name: "device certificate as signer", jws: signedBy(labca.Request{DNSNames: []string{"b.devices.example"}}, w.deviceCA), kind: ErrSigner, code: "policy-signer-untrusted"},
		{name: "another policy CA of the same name", jws: signedBy(labca.Request{}, other), kind: ErrSigner, code: "policy-signer-untrusted"},
		{name: "signer expired", jws: signedBy(labca.Request{At: at.Add(-50 * time.Minute), Life: 10 * time.Minute}, w.signers), kind: ErrSignerValidity, code: "policy-signer-validity"},
		{name: "signer not yet valid", jws: signedBy(labca.Request{At: at.Add(time.Minute)}, w.signers), kind: ErrSignerValidity, code: "policy-signer-validity"},
		{name: "signer revoked", jws: revoked, opt: func(o *VerifyOptions) { o.Anchors, o.CRLs = []*x509.Certificate{revoking.Anchor()}, crls }, kind: ErrSignerRevoked, code: "policy-signer-revoked"},
		{name: "no anchors", jws: good, opt: func(o *VerifyOptions) { o.Anchors = nil }, kind: ErrSigner, code: "policy-signer-untrusted"},
		{name: "failing test", jws: edited(func(d *Document) { d.Tests[1].Expect = ExpectAllow }), kind: ErrTests, code: "policy-tests-failed", says: "no relay"},
		{name: "invalid", jws: edited(func(d *Document) { d.Zones[0].Level = "XSZ" }), kind: ErrInvalid, code: "policy-invalid", says: "/zones/0/level (line "},
		{name: "malformed payload", jws: signText(t, w, `{"format":1`), kind: ErrSyntax, code: "policy-syntax"},

		{name: "empty", jws: nil, kind: ErrFormat, code: "policy-format", says: "an empty file"},
		{name: "unsigned", jws: []byte(`{"format":1}`), kind: ErrFormat, code: "policy-format", says: "not signed"},
		{name: "two parts", jws: []byte("a.b"), kind: ErrFormat, code: "policy-format"},
		{name: "four parts", jws: append(bytes.Clone(good), ".AA"...), kind: ErrFormat, code: "policy-format"},
		{name: "no signature", jws: good[:bytes.LastIndexByte(good, '.')+1], kind: ErrFormat, code: "policy-format"},
		{name: "line break inside", jws: bytes.Replace(good, []byte("."), []byte("\n."), 1), kind: ErrFormat, code: "policy-format"},
		{name: "padding", jws: append(bytes.Clone(good), '='), kind: ErrFormat, code: "policy-format"},
		{name: "too large", jws: bytes.Repeat([]byte("A"), MaxFileSize+1), kind: ErrTooLarge, code: "policy-too-large"},
		{name: "alg none", jws: header(func(h map[string]any) { h["alg"] = "none" }), kind: ErrAlgorithm, code: "policy-algorithm"},
		{name: "alg HS256", jws: header(func(h map[string]any) { h["alg"] = "HS256" }), kind: ErrAlgorithm, code: "policy-algorithm"},
		{name: "alg RS256", jws: header(func(h map[string]any) { h["alg"] = "RS256" }), kind: ErrAlgorithm, code: "policy-algorithm"},
		{name: "alg of another key", jws: header(func(h map[string]any) { h["alg"] = "ES384" }), kind: ErrSignature, code: "policy-signature"},
		{name: "other typ", jws: header(func(h map[string]any) { h["typ"] = "JWT" }), kind: ErrFormat, code: "policy-format", says: MediaType},
		{name: "no typ", jws: header(func(h map[string]any) { delete(h, "typ") }), kind: ErrFormat, code: "policy-format"},
		{name: "crit", jws: header(func(h map[string]any) { h["crit"] = []string{"b64"}; h["b64"] = false }), kind: ErrFormat, code: "policy-format", says: "crit"},
		{name: "own key", jws: header(func(h map[string]any) { h["jwk"] = map[string]any{"kty": "EC"} }), kind: ErrFormat, code: "policy-format"},
		{name: "no chain", jws: header(func(h map[string]any) { h["x5c"] = []string{} }), kind: ErrFormat, code: "policy-format"},
		{name: "chain too long", jws: header(func(h map[string]any) { h["x5c"] = make([]string, maxChainCertificates+1) }), kind: ErrFormat, code: "policy-format"},
		{name: "chain no base64", jws: header(func(h map[string]any) { h["x5c"] = []string{"*"} }), kind: ErrFormat, code: "policy-format"},
		{name: "chain no certificate", jws: header(func(h map[string]any) { h["x5c"] = []string{"AAAA"} }), kind: ErrSigner, code: "policy-signer-untrusted"},
		{name: "alg twice", jws: headerText(`{"alg":"none","alg":"ES256","typ":"wardgate-policy+jws","x5c":[""]}`), kind: ErrFormat, code: "policy-format", says: "second time"},
		{name: "header no JSON", jws: headerText(`{"alg"`), kind: ErrFormat, code: "policy-format"},
		{name: "header no object", jws: headerText(`[]`), kind: ErrFormat, code: "policy-format"},

		{name: "no clock", jws: good, opt: func(o *VerifyOptions) { o.Now = time.Time{} }, kind: ErrOptions, code: "policy-internal"},
		{name: "no device certificate", jws: good, opt: func(o *VerifyOptions) { o.DeviceCertDER = nil }, kind: ErrOptions, code: "policy-internal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			opt := w.options()
			if c.opt != nil {
				c.opt(&opt)
			}
			doc, err := Verify(c.jws, opt)
			if err == nil || doc != nil {
				t.Fatalf("accepted")
			}
			if !errors.Is(err, c.kind) {
				t.Errorf("expected kind %q, came: %v", c.kind, err)
			}
			if Code(err) != c.code {
				t.Errorf("expected code %q, came %q: %v", c.code, Code(err), err)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("expected %q in: %v", c.says, err)
			}
			if s := err.Error(); !strings.Contains(s, "expected ") || !strings.Contains(s, "came ") {
				if !errors.Is(err, ErrOptions) {
					t.Errorf("the message does not say what was expected and what came: %v", s)
				}
			}
			t.Log(err)
		})
	}
}

func signText(t *testing.T, w *world, payload string) []byte {
	t.Helper()
	jws, err := SignPayload([]byte(payload), w.signer, w.chain)
	if err != nil {
		t.Fatal(err)
	}
	return jws
}

// A policy with the serial of the installed one is fine when it is the installed one: a restart
// verifies it again.
func TestSameSerial(t *testing.T) {
	w := newWorld(t)
	jws := w.signRaw(t, w.document())
	doc, err := Verify(jws, w.options())
	if err != nil {
		t.Fatal(err)
	}
	in := doc.Installed()
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var back Installed
	if err := json.Unmarshal(b, &back); err != nil || back != in {
		t.Fatalf("%s: %v", b, err)
	}
	if !in.Same(doc) || (Installed{}).Same(doc) {
		t.Error("Same")
	}
	opt := w.options()
	opt.Installed = in
	if _, err := Verify(jws, opt); err != nil {
		t.Errorf("the installed policy itself: %v", err)
	}
	opt.Installed.Serial--
	if _, err := Verify(jws, opt); err != nil {
		t.Errorf("a newer one: %v", err)
	}
	// Both ends of the validity belong to it.
	for _, now := range []time.Time{doc.NotBefore, doc.NotAfter} {
		opt.Now = now
		if _, err := Verify(jws, opt); err != nil {
			t.Errorf("at %v: %v", now, err)
		}
	}
}

// All truncated prefixes, and every single bit of the header and signature.
func TestVerifyDamage(t *testing.T) {
	w := newWorld(t)
	jws := w.signRaw(t, w.document())
	opt := w.options()
	for n := 0; n < len(jws); n += 1 + len(jws)/700 {
		if _, err := Verify(jws[:n], opt); err == nil {
			t.Fatalf("accepted the first %d of %d bytes", n, len(jws))
		}
	}
	for i := 0; i < len(jws); i += 1 + len(jws)/400 {
		b := bytes.Clone(jws)
		b[i] ^= 1 << (i % 7)
		if _, err := Verify(b, opt); err == nil {
			t.Fatalf("accepted with byte %d changed", i)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	w := newWorld(t)
	wrong := func(f func(*Document)) *Document {
		d := w.document()
		f(d)
		return d
	}
	otherKey, err := labca.NewKey(labca.P256)
	if err != nil {
		t.Fatal(err)
	}
	noEKU, err := w.signers.Issue(labca.Request{Public: w.signer.Public(), DNSNames: []string{"sp.example"}, At: at, NoEKU: true})
	if err != nil {
		t.Fatal(err)
	}
	short, err := w.signers.Issue(labca.Request{Public: w.signer.Public(), DNSNames: []string{"sp.example"}, At: at, Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		doc   *Document
		key   crypto.Signer
		chain []*x509.Certificate
		kind  error
	}{
		{"invalid", wrong(func(d *Document) { d.Serial = 0 }), w.signer, w.chain, ErrInvalid},
		{"failing test", wrong(func(d *Document) { d.Tests[0].Expect = ExpectDeny }), w.signer, w.chain, ErrTests},
		{"another key", w.document(), otherKey, w.chain, ErrOptions},
		{"no chain", w.document(), w.signer, nil, ErrOptions},
		{"no signer", w.document(), nil, w.chain, ErrOptions},
		{"no EKU", w.document(), w.signer, []*x509.Certificate{noEKU}, ErrSignerEKU},
		{"signer ends before the policy", w.document(), w.signer, []*x509.Certificate{short}, ErrSignerValidity},
	} {
		if _, err := Sign(c.doc, c.key, c.chain); !errors.Is(err, c.kind) {
			t.Errorf("%s: expected %v, came %v", c.name, c.kind, err)
		}
	}
}

// badSigner returns what is no signature.
type badSigner struct{ crypto.Signer }

func (badSigner) Sign(_ io.Reader, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	return []byte{0x30, 0x00}, nil
}

func TestSignerFaults(t *testing.T) {
	w := newWorld(t)
	if _, err := SignPayload([]byte("{}"), badSigner{w.signer}, w.chain); err == nil || !strings.Contains(err.Error(), "no ECDSA signature") {
		t.Errorf("%v", err)
	}
}

// The JWS is an ordinary one: go-jose alone verifies it with the key of the certificate.
func TestOrdinaryJWS(t *testing.T) {
	w := newWorld(t)
	obj, err := jose.ParseSignedCompact(string(w.signRaw(t, w.document())), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := obj.Verify(w.signer.Public()); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(w.signers.Anchor())
	if _, err := obj.Signatures[0].Protected.Certificates(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Fatal(err)
	}
}

func TestSecretIsHidden(t *testing.T) {
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		t.Fatal(err)
	}
	d := newWorld(t).document()
	d.Services[1].PSK = NewSecret(raw)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		s := fmt.Sprintf(verb, d.Services[1])
		if strings.Contains(s, fmt.Sprintf("%x", raw[:4])) || strings.Contains(s, string(raw[:4])) || strings.Contains(s, fmt.Sprint(raw[0], raw[1], raw[2])) || !strings.Contains(s, "secret") {
			t.Errorf("%s: %s", verb, s)
		}
	}
	table, err := Compile(d)
	if err != nil {
		t.Fatal(err)
	}
	if got := table.Connections()[2].PSK.Bytes(); !bytes.Equal(got, raw) {
		t.Error("key lost")
	}
}
