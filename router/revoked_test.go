package router

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ocsp"

	"wardgate/ike"
	"wardgate/internal/certs"
	"wardgate/pkichip"
	"wardgate/router/revocation"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// statusWorld is a CA with an OCSP responder, and a router that knows the CA.
type statusWorld struct {
	r      *Router
	ca     *x509.Certificate
	key    crypto.Signer
	url    string
	asked  atomic.Int32
	status int
}

func newCA(name string) (*x509.Certificate, crypto.Signer) {
	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)))), k
}

func newStatusWorld(t *testing.T) *statusWorld {
	t.Helper()
	w := &statusWorld{status: ocsp.Good}
	w.ca, w.key = newCA("CA")
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.asked.Add(1)
		req := must(ocsp.ParseRequest(must(io.ReadAll(r.Body))))
		_, _ = rw.Write(must(ocsp.CreateResponse(w.ca, w.ca, ocsp.Response{
			Status: w.status, SerialNumber: req.SerialNumber, ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour), RevokedAt: time.Now().Add(-time.Minute),
		}, w.key)))
	}))
	w.url = s.URL
	w.r = &Router{log: zap.NewNop(), revocation: revocation.New(revocation.Options{Now: time.Now})}
	t.Cleanup(func() {
		w.r.revocation.Close()
		s.Close()
	})
	return w
}

func (w *statusWorld) leaf(ca *x509.Certificate, key crypto.Signer, edit func(*x509.Certificate)) *x509.Certificate {
	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<60))), Subject: pkix.Name{CommonName: "b.devices.example"}, DNSNames: []string{"b.devices.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{certs.EKUIPsecIKE}, OCSPServer: []string{w.url}, CRLDistributionPoints: []string{w.url},
	}
	if edit != nil {
		edit(tmpl)
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, ca, k.Public(), key))))
}

func (w *statusWorld) judge(c *x509.Certificate, strict bool) ike.Code {
	err := w.r.verifyPeer(ike.CertQuery{
		Auth: &ike.RemoteAuth{Anchors: []*x509.Certificate{w.ca}, RequireCRL: strict, RelatedToRound: -1, Role: "device"},
		ID:   must(ike.ParseIdentity("b.devices.example")), Leaf: c.Raw, At: time.Now(),
	})
	if err == nil {
		return ""
	}
	return ike.VerdictCode(err)
}

func TestRevocationIsFetched(t *testing.T) {
	w := newStatusWorld(t)
	if code := w.judge(w.leaf(w.ca, w.key, nil), false); code != "" || w.asked.Load() != 0 {
		t.Errorf("where nothing has to be known: %q, asked %d times", code, w.asked.Load())
	}
	good := w.leaf(w.ca, w.key, nil)
	for range 3 {
		if code := w.judge(good, true); code != "" {
			t.Errorf("good: %q", code)
		}
	}
	if w.asked.Load() != 1 {
		t.Errorf("asked %d times about one certificate", w.asked.Load())
	}
	w.status = ocsp.Revoked
	if code := w.judge(w.leaf(w.ca, w.key, nil), true); code != ike.CodeRevoked {
		t.Errorf("revoked: %q", code)
	}
	if code := w.judge(w.leaf(w.ca, w.key, func(c *x509.Certificate) { c.OCSPServer, c.CRLDistributionPoints = nil, nil }), true); code != ike.CodeNoCRL {
		t.Errorf("nothing to be had: %q", code)
	}
}

// TestNothingIsFetchedForStrangers: the places that a certificate names are asked only after it was
// verified in everything else; a certificate that anybody can have made makes us talk to nobody.
func TestNothingIsFetchedForStrangers(t *testing.T) {
	w := newStatusWorld(t)
	rogue, rogueKey := newCA("CA") // the name, another key
	for name, c := range map[string]struct {
		leaf *x509.Certificate
		want ike.Code
	}{
		"another CA":     {w.leaf(rogue, rogueKey, nil), ike.CodeUnknownCA},
		"expired":        {w.leaf(w.ca, w.key, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), ike.CodeExpired},
		"not yet valid":  {w.leaf(w.ca, w.key, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), ike.CodeNotYetValid},
		"other purpose":  {w.leaf(w.ca, w.key, func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }), ike.CodeWrongEKU},
		"other identity": {w.leaf(w.ca, w.key, func(c *x509.Certificate) { c.DNSNames = []string{"x.example"} }), ike.CodeIDMismatch},
	} {
		if code := w.judge(c.leaf, true); code != c.want {
			t.Errorf("%s: %q, want %q", name, code, c.want)
		}
	}
	if n := w.asked.Load(); n > 0 {
		t.Errorf("%d requests for certificates that were refused", n)
	}
}

// TestStaples: what the responder says about our own certificates is there for peers that ask.
func TestStaples(t *testing.T) {
	w := newStatusWorld(t)
	own := &pkichip.Credential{Cert: w.leaf(w.ca, w.key, nil)}
	if w.r.staples.of(own)() != nil {
		t.Error("a staple out of nothing")
	}
	if x := issuerOf(own.Cert, nil, []*x509.Certificate{must2(newCA("other")), w.ca}); x != w.ca {
		t.Error("the issuer was not found")
	}
	w.r.creds = []pkichip.Credential{*own}
	w.r.fetchStaples(t.Context()) // no policy: nothing is known about issuers
	if w.asked.Load() != 0 {
		t.Error("asked without a policy")
	}
}

func must2(c *x509.Certificate, _ crypto.Signer) *x509.Certificate { return c }
