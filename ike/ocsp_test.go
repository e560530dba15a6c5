package ike_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

// ocspCA is a service CA whose key the test has.
func ocspCA(t *testing.T) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "group-a"}, NotBefore: iketest.Epoch.Add(-time.Hour), NotAfter: iketest.Epoch.Add(1000 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)))), k
}

// TestStapledOCSP: A wants to know whether B's service certificate stands, has no list, and takes what
// comes beside the certificate (RFC 4806), in both roles.
func TestStapledOCSP(t *testing.T) {
	t.Parallel()
	root, key := ocspCA(t)
	f := facilities()
	b := issue(cas().groupA, "b.group-a.example", labca.P256, f[1].device, func(r *labca.Request) { r.SigningCA, r.SigningCAKey = root, key })
	response := func(status int, from, life time.Duration) func() []byte {
		der := must(ocsp.CreateResponse(root, root, ocsp.Response{
			Status: status, SerialNumber: b.leaf.SerialNumber, ThisUpdate: iketest.Epoch.Add(from), NextUpdate: iketest.Epoch.Add(from + life), RevokedAt: iketest.Epoch,
		}, key))
		return func() []byte { return der }
	}
	for _, c := range []struct {
		name   string
		staple func() []byte
		strict bool
		want   ike.Code
	}{
		{"good", response(ocsp.Good, -time.Hour, 2*time.Hour), true, ""},
		{"revoked", response(ocsp.Revoked, -time.Hour, 2*time.Hour), true, ike.CodeRevoked},
		{"revoked, lenient", response(ocsp.Revoked, -time.Hour, 2*time.Hour), false, ike.CodeRevoked},
		{"ended", response(ocsp.Good, -2*time.Hour, time.Hour), true, ike.CodeNoCRL},
		{"ended, lenient", response(ocsp.Good, -2*time.Hour, time.Hour), false, ""},
		{"unknown", response(ocsp.Unknown, -time.Hour, 2*time.Hour), true, ike.CodeNoCRL},
		{"nonsense", func() []byte { return []byte("nonsense") }, true, ike.CodeNoCRL},
		{"too large", func() []byte { return make([]byte, certs.MaxOCSPBytes+1) }, true, ike.CodeNoCRL},
		{"nothing", func() []byte { return nil }, true, ike.CodeNoCRL},
		{"nothing, lenient", nil, false, ""},
	} {
		for _, role := range []string{"initiator", "responder"} {
			t.Run(c.name+", "+role, func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{edit: func(p *pair) {
					p.cb.LocalAuth[1] = b.auth("service")
					p.cb.LocalAuth[1].OCSP = c.staple
					p.ca.RemoteAuth[1].Anchors, p.ca.RemoteAuth[1].RequireCRL = []*x509.Certificate{root}, c.strict
				}})
				from := p.a
				if role == "initiator" { // B's
					from = p.b
				}
				if err := from.Endpoint.Initiate("a-b", "net"); err != nil {
					t.Fatal(err)
				}
				p.w.For(5 * time.Second)
				if c.want == "" {
					p.counts(1, 1)
					p.carries()
					return
				}
				if len(p.a.Refusals) != 1 || p.a.Refusals[0].Code != c.want || p.a.Refusals[0].Round != 1 {
					t.Errorf("A refused %v, want %s", texts(p.a.Refusals), c.want)
				}
				p.counts(0, 0)
			})
		}
	}
}

// TestOCSPIsAskedFor: the request stands apart from the one for certificates, and nonsense
// that is stapled harms nobody.
func TestOCSPIsAskedFor(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{edit: func(p *pair) {
		p.ca.LocalAuth[0].OCSP = func() []byte { return []byte("for nobody") }
	}})
	found := 0
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if m, err := message.Parse(msg); err == nil && from.Addr() == addrB && msg[18] == byte(message.ExchangeIKESAInit) {
			for _, x := range m.Payloads {
				if r, ok := x.(*message.CertReq); ok && r.Encoding == message.CertOCSP {
					found++
					if len(r.Data) != 0 {
						t.Error("hashes of responders that nobody configured")
					}
				}
			}
		}
		return true
	}
	p.up()
	if found != 1 {
		t.Errorf("%d requests for OCSP responses in IKE_SA_INIT, want 1", found)
	}
}
