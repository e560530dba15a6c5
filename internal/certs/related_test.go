package certs_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

func TestRelatedCertificateRoundTrip(t *testing.T) {
	der := []byte("any octets")
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		ext, err := certs.NewRelatedCertificate(h, der)
		if err != nil {
			t.Fatal(err)
		}
		if ext.Critical {
			t.Error("the extension must not be critical (RFC 9763, section 4.1)")
		}
		r, err := certs.ParseRelatedCertificate(ext.Value)
		if err != nil {
			t.Fatal(err)
		}
		if r.Hash != h || !r.Matches(der) || r.Matches(der[1:]) {
			t.Errorf("%v: %+v", h, r)
		}
		for n := range ext.Value {
			if _, err := certs.ParseRelatedCertificate(ext.Value[:n]); certs.ClassOf(err) != certs.NotBound {
				t.Errorf("%v cut to %d octets: %v", h, n, err)
			}
		}
		if _, err := certs.ParseRelatedCertificate(append(ext.Value, 0)); err == nil {
			t.Error("something behind the extension was accepted")
		}
	}
	if _, err := certs.NewRelatedCertificate(crypto.SHA1, der); err == nil {
		t.Error("SHA-1 was accepted")
	}
	// The hash of SHA-256 with NULL parameters is legal, too (RFC 5754, section 2).
	ext, _ := certs.NewRelatedCertificate(crypto.SHA256, der)
	withNull := append([]byte{0x30, ext.Value[1] + 2, 0x30, ext.Value[3] + 2}, ext.Value[4:4+ext.Value[3]]...)
	withNull = append(append(withNull, 5, 0), ext.Value[4+ext.Value[3]:]...)
	if r, err := certs.ParseRelatedCertificate(withNull); err != nil || !r.Matches(der) {
		t.Errorf("NULL parameters: %v", err)
	}
	if (certs.RelatedCertificate{Hash: crypto.MD5}).Matches(der) {
		t.Error("MD5 matched")
	}
}

func TestRelatedRequest(t *testing.T) {
	for _, kt := range []labca.KeyType{labca.P256, labca.P384, labca.RSA2048, labca.Ed25519} {
		t.Run(string(kt), func(t *testing.T) {
			w := newWorld(t)
			dk, err := labca.NewKey(kt)
			if err != nil {
				t.Fatal(err)
			}
			device := w.issue(w.lab.Device, labca.Request{DNSNames: []string{"d.devices.example"}, Public: dk.Public()})
			proof, err := certs.NewRelatedCertRequest(rand.Reader, device, dk, t0)
			if err != nil {
				t.Fatal(err)
			}
			sk, err := labca.NewKey(kt)
			if err != nil {
				t.Fatal(err)
			}
			der, err := certs.CSR{Subject: pkix.Name{CommonName: "d.group-a.example"}, DNSNames: []string{"d.group-a.example"}, Related: proof}.Create(rand.Reader, sk)
			if err != nil {
				t.Fatal(err)
			}
			csr, err := certs.ParseCSR(der)
			if err != nil {
				t.Fatal(err)
			}
			if len(csr.DNSNames) != 1 || csr.DNSNames[0] != "d.group-a.example" || !certs.SamePublicKey(csr.PublicKey, sk.Public()) {
				t.Errorf("request: %v", csr.DNSNames)
			}
			r, err := certs.RelatedRequestOf(csr)
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.Certificate()
			if err != nil || !got.Equal(device) {
				t.Fatalf("certificate in the request: %v", err)
			}
			wantClass(t, r.Check(device, t0.Add(time.Hour)), certs.Unknown)
			wantClass(t, r.Check(device, t0.Add(25*time.Hour)), certs.ProofOfDevice)
			wantClass(t, r.Check(device, t0.Add(-time.Hour)), certs.ProofOfDevice)
			wantClass(t, r.Check(w.device, t0), certs.ProofOfDevice) // another device's
			for n := range proof {
				if _, err := certs.ParseRelatedCertRequest(proof[:n]); certs.ClassOf(err) != certs.ProofOfDevice {
					t.Fatalf("cut to %d octets: %v", n, err)
				}
			}
			// The time is signed: another one does not verify.
			moved := bytes.Replace(proof, unixDER(t0), unixDER(t0.Add(time.Second)), 1)
			r2, err := certs.ParseRelatedCertRequest(moved)
			if err != nil {
				t.Fatal(err)
			}
			wantClass(t, r2.Check(device, t0), certs.ProofOfDevice)
			der[len(der)-2] ^= 1
			if _, err := certs.ParseCSR(der); !errors.Is(err, certs.CSRSignature) && !errors.Is(err, certs.Malformed) {
				t.Errorf("altered request: %v", err)
			}
		})
	}
}

func unixDER(at time.Time) []byte {
	u := at.Unix()
	return []byte{2, 4, byte(u >> 24), byte(u >> 16), byte(u >> 8), byte(u)}
}

func TestRelatedRequestNeedsItsOwnKey(t *testing.T) {
	w := newWorld(t)
	_, err := certs.NewRelatedCertRequest(rand.Reader, w.device, newKey(t), t0)
	wantClass(t, err, certs.ProofOfDevice)
}

// OpenSSL reads and verifies the requests that are put together here.
func TestRequestInOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("no openssl")
		}
		t.Skip("no openssl")
	}
	for _, kt := range []labca.KeyType{labca.P256, labca.RSA2048, labca.Ed25519} {
		k, err := labca.NewKey(kt)
		if err != nil {
			t.Fatal(err)
		}
		der, err := certs.CSR{Subject: pkix.Name{CommonName: "x.example"}, DNSNames: []string{"x.example"}, Related: []byte{0x30, 0}}.Create(rand.Reader, k)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("openssl", "req", "-verify", "-noout", "-text")
		cmd.Stdin = bytes.NewReader(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("verify OK")) || !bytes.Contains(out, []byte("DNS:x.example")) {
			t.Errorf("%s: %v\n%s", kt, err, out)
		}
	}
}

func TestParsePEM(t *testing.T) {
	w := newWorld(t)
	both := certs.EncodePEM(w.device, w.svc)
	list, err := certs.ParseCertificates(append([]byte("text before\n"), both...))
	if err != nil || len(list) != 2 || !list[1].Equal(w.svc) {
		t.Fatalf("%d certificates, %v", len(list), err)
	}
	if list, err := certs.ParseCertificates(w.device.Raw); err != nil || len(list) != 1 {
		t.Fatalf("DER: %v", err)
	}
	for name, in := range map[string][]byte{
		"nothing": nil, "text": []byte("hello"), "cut": both[:len(both)-9],
		"another block": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}),
	} {
		if _, err := certs.ParseCertificates(in); err == nil {
			t.Errorf("%s accepted", name)
		}
	}
	crls, err := w.lab.Device.CRLs(t0, day)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := certs.ParseCRLs(labca.EncodeCRLs(crls)); err != nil || len(l) != 2 {
		t.Fatalf("lists: %d, %v", len(l), err)
	}
}

func FuzzRelatedCertificate(f *testing.F) {
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		ext, err := certs.NewRelatedCertificate(h, []byte("x"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(ext.Value)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := certs.ParseRelatedCertificate(b)
		if err == nil && len(r.Value) != r.Hash.Size() {
			t.Errorf("%d octets for %v", len(r.Value), r.Hash)
		}
	})
}

// fixture reads an example from testdata. Fuzz targets start from fixed octets: keys made anew in
// each worker would make coverage differ between them, and the engine would do nothing but
// minimise.
func fixture(f *testing.F, name string) []byte {
	f.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		f.Fatal(err)
	}
	return b
}

func FuzzRelatedCertRequest(f *testing.F) {
	c, err := certs.ParseCertificate(fixture(f, "device.der"))
	if err != nil {
		f.Fatal(err)
	}
	seed := fixture(f, "related-request.der")
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := certs.ParseRelatedCertRequest(b)
		if err != nil {
			return
		}
		_, _ = r.Certificate()
		if r.Check(c, t0) == nil && !bytes.Equal(r.Signature, seed[len(seed)-len(r.Signature):]) {
			t.Error("a proof that nobody signed was accepted")
		}
	})
}

func FuzzParseCSR(f *testing.F) {
	f.Add(fixture(f, "request.der"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if csr, err := x509.ParseCertificateRequest(b); err == nil {
			_, _ = certs.RelatedRequestOf(csr)
			_, _, _ = certs.ChallengeOf(csr)
		}
		_, _ = certs.ParseCSR(b)
	})
}

func FuzzVerifyChain(f *testing.F) {
	root, err := certs.ParseCertificate(fixture(f, "root.der"))
	if err != nil {
		f.Fatal(err)
	}
	leaf, ca := fixture(f, "device.der"), fixture(f, "ca.der")
	f.Add(leaf, ca)
	f.Fuzz(func(t *testing.T, leaf, between []byte) {
		v, err := certs.VerifyChain(certs.Options{
			Leaf: leaf, Intermediates: [][]byte{between}, Anchors: []*x509.Certificate{root},
			EKU: certs.EKUIPsecIKE, At: t0.Add(time.Hour), RelatedTo: leaf, ID: &certs.ID{Type: certs.IDFQDN, Data: leaf},
		})
		if err == nil {
			t.Errorf("accepted %v", v.Leaf.Subject)
		}
	})
}

// The fixtures are what they are meant to be.
func TestFixtures(t *testing.T) {
	var list []*x509.Certificate
	for _, n := range []string{"root.der", "ca.der", "device.der"} {
		b, err := os.ReadFile(filepath.Join("testdata", n))
		if err != nil {
			t.Fatal(err)
		}
		c, err := certs.ParseCertificate(b)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	if _, err := certs.VerifyChain(certs.Options{
		Leaf: list[2].Raw, Intermediates: [][]byte{list[1].Raw}, Anchors: list[:1], EKU: certs.EKUIPsecIKE, At: t0.Add(time.Hour),
	}); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(filepath.Join("testdata", "request.der"))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := certs.ParseCSR(b)
	if err != nil {
		t.Fatal(err)
	}
	r, err := certs.RelatedRequestOf(csr)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Check(list[2], t0); err != nil {
		t.Error(err)
	}
}
