package certs_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

// ocspWorld is a CA with a leaf and what can speak for it.
type ocspWorld struct {
	t         testing.TB
	w         *world
	ca, leaf  *x509.Certificate
	key       crypto.Signer
	responder *x509.Certificate
	respKey   crypto.Signer
}

func newOCSPWorld(t testing.TB) *ocspWorld {
	t.Helper()
	o := &ocspWorld{t: t, w: newWorld(t)}
	o.ca, o.key = ca(t, "issuing", nil, nil, nil)
	o.leaf = o.w.issue(o.w.lab.Device, labca.Request{DNSNames: []string{"a.devices.example"}, SigningCA: o.ca, SigningCAKey: o.key})
	o.responder, o.respKey = ca(t, "responder", o.ca, o.key, responderCert)
	return o
}

func responderCert(c *x509.Certificate) {
	c.IsCA, c.MaxPathLen = false, 0
	c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
}

// response is one by the issuer itself, or by responder when that is not nil.
func (o *ocspWorld) response(status int, responder *x509.Certificate, key crypto.Signer, edit func(*ocsp.Response)) []byte {
	o.t.Helper()
	r := ocsp.Response{
		Status: status, SerialNumber: o.leaf.SerialNumber, ThisUpdate: t0.Add(-time.Hour), NextUpdate: t0.Add(time.Hour),
		RevokedAt: t0.Add(-2 * time.Hour), RevocationReason: ocsp.KeyCompromise, IssuerHash: crypto.SHA256,
	}
	by := o.ca
	if responder == nil {
		key = o.key
	} else {
		r.Certificate, by = responder, responder
	}
	if edit != nil {
		edit(&r)
	}
	der, err := ocsp.CreateResponse(o.ca, by, r, key)
	if err != nil {
		o.t.Fatal(err)
	}
	return der
}

func (o *ocspWorld) verify(require bool, responses ...[]byte) error {
	_, err := certs.VerifyChain(certs.Options{
		Leaf: o.leaf.Raw, Anchors: []*x509.Certificate{o.ca}, EKU: certs.EKUIPsecIKE, At: t0, Role: "device",
		RequireCRL: require, OCSP: responses,
	})
	return err
}

func TestOCSP(t *testing.T) {
	o := newOCSPWorld(t)
	other, otherKey := ca(t, "another", nil, nil, nil)
	plain, plainKey := ca(t, "no responder", o.ca, o.key, func(c *x509.Certificate) {
		responderCert(c)
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})
	ended, endedKey := ca(t, "ended responder", o.ca, o.key, func(c *x509.Certificate) { responderCert(c); c.NotAfter = t0.Add(-time.Minute) })
	mute, muteKey := ca(t, "responder that may not sign", o.ca, o.key, func(c *x509.Certificate) { responderCert(c); c.KeyUsage = x509.KeyUsageKeyEncipherment })
	foreign, foreignKey := ca(t, "foreign responder", other, otherKey, responderCert)

	for _, c := range []struct {
		name string
		der  []byte
		want certs.Class // where revocation must be known
		ok   bool        // a response that says something
	}{
		{"good, by the issuer", o.response(ocsp.Good, nil, nil, nil), certs.Unknown, true},
		{"good, by a responder", o.response(ocsp.Good, o.responder, o.respKey, nil), certs.Unknown, true},
		{"good, SHA-1 identifiers", o.response(ocsp.Good, nil, nil, func(r *ocsp.Response) { r.IssuerHash = crypto.SHA1 }), certs.Unknown, true},
		{"revoked", o.response(ocsp.Revoked, nil, nil, nil), certs.Revoked, true},
		{"revoked, by a responder", o.response(ocsp.Revoked, o.responder, o.respKey, nil), certs.Revoked, true},
		{"unknown", o.response(ocsp.Unknown, nil, nil, nil), certs.CRLMissing, true},
		{"without an end, fresh", o.response(ocsp.Good, nil, nil, func(r *ocsp.Response) { r.ThisUpdate, r.NextUpdate = t0.Add(-30*time.Minute), time.Time{} }), certs.Unknown, true},
		{"without an end, old", o.response(ocsp.Good, nil, nil, func(r *ocsp.Response) { r.ThisUpdate, r.NextUpdate = t0.Add(-2*time.Hour), time.Time{} }), certs.CRLMissing, false},
		{"ended", o.response(ocsp.Good, nil, nil, func(r *ocsp.Response) { r.NextUpdate = t0.Add(-time.Minute) }), certs.CRLMissing, false},
		{"of the future", o.response(ocsp.Good, nil, nil, func(r *ocsp.Response) { r.ThisUpdate = t0.Add(time.Hour); r.NextUpdate = t0.Add(2 * time.Hour) }), certs.CRLMissing, false},
		{"about another", o.response(ocsp.Good, nil, nil, func(r *ocsp.Response) { r.SerialNumber = big.NewInt(4711) }), certs.CRLMissing, false},
		{"responder without the purpose", o.response(ocsp.Good, plain, plainKey, nil), certs.CRLMissing, false},
		{"responder that has ended", o.response(ocsp.Good, ended, endedKey, nil), certs.CRLMissing, false},
		{"responder that may not sign", o.response(ocsp.Good, mute, muteKey, nil), certs.CRLMissing, false},
		{"responder of another CA", o.response(ocsp.Good, foreign, foreignKey, nil), certs.CRLMissing, false},
		{"revoked, says another CA's responder", o.response(ocsp.Revoked, foreign, foreignKey, nil), certs.CRLMissing, false},
		{"signed by another key", o.response(ocsp.Good, o.responder, otherKey, nil), certs.CRLMissing, false},
		{"no response", []byte{0x30, 3, 10, 1, 6}, certs.CRLMissing, false},
		{"not DER", []byte("nonsense"), certs.CRLMissing, false},
		{"too large", make([]byte, certs.MaxOCSPBytes+1), certs.CRLMissing, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantClass(t, o.verify(true, c.der), c.want)
			lenient := c.want
			if lenient == certs.CRLMissing {
				lenient = certs.Unknown
			}
			wantClass(t, o.verify(false, c.der), lenient)
			if _, err := certs.CheckOCSP(c.der, o.leaf, o.ca, t0); (err == nil) != c.ok {
				t.Errorf("CheckOCSP: %v", err)
			}
		})
	}
}

// TestOCSPOfAnotherCA: the issuer's own key signs a response about a certificate of another CA that has
// the same serial number. It says nothing about ours.
func TestOCSPOfAnotherCA(t *testing.T) {
	o := newOCSPWorld(t)
	twin, _ := ca(t, "twin", nil, nil, nil)
	der, err := ocsp.CreateResponse(twin, o.ca, ocsp.Response{
		Status: ocsp.Good, SerialNumber: o.leaf.SerialNumber, ThisUpdate: t0.Add(-time.Hour), NextUpdate: t0.Add(time.Hour),
	}, o.key)
	if err != nil {
		t.Fatal(err)
	}
	wantClass(t, o.verify(true, der), certs.CRLMissing)
}

// TestOCSPAndList: whoever one of the two names is refused, whatever the other says.
func TestOCSPAndList(t *testing.T) {
	o := newOCSPWorld(t)
	list := func(serials ...*big.Int) *x509.RevocationList {
		tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: t0.Add(-time.Hour), NextUpdate: t0.Add(time.Hour)}
		for _, s := range serials {
			tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: t0.Add(-time.Hour)})
		}
		der, err := x509.CreateRevocationList(rand.Reader, tmpl, o.ca, o.key)
		if err != nil {
			t.Fatal(err)
		}
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, c := range []struct {
		name   string
		status int
		list   *x509.RevocationList
		want   certs.Class
	}{
		{"good and not listed", ocsp.Good, list(), certs.Unknown},
		{"good, but listed", ocsp.Good, list(o.leaf.SerialNumber), certs.Revoked},
		{"revoked, but not listed", ocsp.Revoked, list(), certs.Revoked},
		{"unknown, and not listed", ocsp.Unknown, list(), certs.Unknown},
	} {
		_, err := certs.VerifyChain(certs.Options{
			Leaf: o.leaf.Raw, Anchors: []*x509.Certificate{o.ca}, EKU: certs.EKUIPsecIKE, At: t0, Role: "device",
			RequireCRL: true, CRLs: []*x509.RevocationList{c.list}, OCSP: [][]byte{o.response(c.status, nil, nil, nil)},
		})
		t.Run(c.name, func(t *testing.T) { wantClass(t, err, c.want) })
	}
}

// FuzzOCSP: nothing that is not signed by the issuer is taken, and nothing panics.
func FuzzOCSP(f *testing.F) {
	o := newOCSPWorld(f)
	f.Add(o.response(ocsp.Good, o.responder, o.respKey, nil))
	f.Add(o.response(ocsp.Revoked, nil, nil, nil))
	f.Fuzz(func(t *testing.T, der []byte) {
		r, err := certs.CheckOCSP(der, o.leaf, o.ca, t0)
		if (r == nil) == (err == nil) {
			t.Fatalf("%v and %v", r, err)
		}
	})
}
