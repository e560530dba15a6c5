package certs_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

// A signature that held is remembered for the key, the list and the algorithm that it held for, and for
// nothing else.
func TestListSignatureIsRememberedForOneKey(t *testing.T) {
	withList := func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign }
	one, k1 := ca(t, "root", nil, nil, withList)
	two, k2 := ca(t, "root", nil, nil, withList) // the name, another key
	make := func(c *x509.Certificate, k crypto.Signer, number int64) *x509.RevocationList {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(number), ThisUpdate: t0, NextUpdate: t0.Add(time.Hour),
		}, c, k)
		if err != nil {
			t.Fatal(err)
		}
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	list, other, next := make(one, k1, 1), make(two, k2, 1), make(one, k1, 2)
	for range 3 { // the second time it is remembered
		for _, l := range []*x509.RevocationList{list, next} {
			if err := certs.CheckCRL(l, one); err != nil {
				t.Fatal(err)
			}
			wantClass(t, certs.CheckCRL(l, two), certs.CRLMissing)
		}
		if err := certs.CheckCRL(other, two); err != nil {
			t.Fatal(err)
		}
		wantClass(t, certs.CheckCRL(other, one), certs.CRLMissing)

		for what, edit := range map[string]func(*x509.RevocationList){
			"signed part":       func(l *x509.RevocationList) { l.RawTBSRevocationList[len(l.RawTBSRevocationList)-1] ^= 1 },
			"shorter":           func(l *x509.RevocationList) { l.RawTBSRevocationList = l.RawTBSRevocationList[1:] },
			"signature":         func(l *x509.RevocationList) { l.Signature[len(l.Signature)-1] ^= 1 },
			"another signature": func(l *x509.RevocationList) { l.Signature = next.Signature },
			"algorithm":         func(l *x509.RevocationList) { l.SignatureAlgorithm = x509.ECDSAWithSHA384 },
		} {
			l := *list
			l.RawTBSRevocationList, l.Signature = bytes.Clone(l.RawTBSRevocationList), bytes.Clone(l.Signature)
			edit(&l)
			if err := certs.CheckCRL(&l, one); certs.ClassOf(err) != certs.CRLMissing {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	// What is not the signature is judged each time.
	may := *one
	may.KeyUsage = x509.KeyUsageCertSign
	wantClass(t, certs.CheckCRL(list, &may), certs.KeyUsage)
}

func BenchmarkCheckCRL(b *testing.B) {
	l, c := benchList(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := certs.CheckCRL(l, c); err != nil {
			b.Fatal(err)
		}
	}
}

// benchList is a list of 1,000 certificates, and its issuer.
func benchList(b *testing.B) (*x509.RevocationList, *x509.Certificate) {
	b.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: t0, NotAfter: t0.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		b.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: t0, NextUpdate: t0.Add(time.Hour)}
	for i := range int64(1000) {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(1<<60 + i), RevocationTime: t0, ReasonCode: 1})
	}
	if der, err = x509.CreateRevocationList(rand.Reader, list, c, k); err != nil {
		b.Fatal(err)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		b.Fatal(err)
	}
	return l, c
}

// TestListWithUnknownCritical: a list with a critical extension that is not understood (one for some certificates or reasons only, a delta
// list) is no proof that a certificate is good (RFC 5280, section 5.2); whom it names is refused all the same.
func TestListWithUnknownCritical(t *testing.T) {
	w := newWorld(t)
	root, rk := ca(t, "root", nil, nil, nil)
	leaf := w.issue(w.lab.Device, labca.Request{DNSNames: []string{"a.devices.example"}, SigningCA: root, SigningCAKey: rk})
	list := func(serial *big.Int, ofList, ofEntry []pkix.Extension) *x509.RevocationList {
		tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: t0.Add(-time.Hour), NextUpdate: t0.Add(time.Hour), ExtraExtensions: ofList}
		tmpl.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: serial, RevocationTime: t0.Add(-time.Hour), ExtraExtensions: ofEntry}}
		der, err := x509.CreateRevocationList(rand.Reader, tmpl, root, rk)
		if err != nil {
			t.Fatal(err)
		}
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	verify := func(l *x509.RevocationList, require bool) error {
		_, err := certs.VerifyChain(certs.Options{
			Leaf: leaf.Raw, Anchors: []*x509.Certificate{root}, EKU: certs.EKUIPsecIKE, At: t0, CRLs: []*x509.RevocationList{l}, RequireCRL: require,
		})
		return err
	}
	other := big.NewInt(4711)
	wantClass(t, verify(list(other, nil, nil), true), certs.Unknown)
	for _, arc := range []int{27, 28, 99} { // deltaCRLIndicator, issuingDistributionPoint, nobody's
		critical := []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, arc}, Critical: true, Value: []byte{0x30, 0}}}
		for _, l := range []*x509.RevocationList{list(other, critical, nil), list(other, nil, critical)} {
			wantClass(t, verify(l, true), certs.CRLMissing)
			wantClass(t, verify(l, false), certs.Unknown)
		}
		for _, l := range []*x509.RevocationList{list(leaf.SerialNumber, critical, nil), list(leaf.SerialNumber, nil, critical)} {
			wantClass(t, verify(l, true), certs.Revoked)
			wantClass(t, verify(l, false), certs.Revoked)
		}
	}
}
