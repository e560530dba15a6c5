package issue_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/sp/issue"
	"wardgate/sp/issue/issuetest"
)

var t0 = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

// world is a service with its recorder and one device.
type world struct {
	*issue.Service
	rec    *issuetest.Memory
	device *x509.Certificate
}

func newCA(t testing.TB, at time.Time, key crypto.Signer) *issue.CA {
	t.Helper()
	ca, err := issue.NewCA(issue.CAOptions{Service: "group-a", Organization: "SP", Domain: "group-a.example", NotBefore: at, Key: key, Rand: rand.Reader, CRLURL: "http://sp.example/root.crl"})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newWorld(t testing.TB, edit func(*issue.Config), cas ...*issue.CA) *world {
	t.Helper()
	w := &world{rec: issuetest.NewMemory()}
	if len(cas) == 0 {
		cas = []*issue.CA{newCA(t, t0, nil)}
	}
	cfg := issue.Config{
		Name: "group-a", Domain: "group-a.example", Rand: rand.Reader, Recorder: w.rec,
		CRLURL: "http://sp.example/crl/group-a/{ca}.crl", OCSPURL: "http://sp.example/ocsp",
	}
	if edit != nil {
		edit(&cfg)
	}
	var err error
	if w.Service, err = issue.NewService(cfg, t0, cas...); err != nil {
		t.Fatal(err)
	}
	devices := must(labca.New(labca.Options{Kind: labca.Device, Name: "device", Domain: "devices.example", At: t0.Add(-time.Hour)}))
	w.device = must(devices.Issue(labca.Request{Public: newKey().Public(), DNSNames: []string{"a.devices.example"}, At: t0.Add(-time.Hour)}))
	return w
}

func (w *world) request(at time.Time) issue.Request {
	return issue.Request{Public: newKey().Public(), Names: []string{"a.group-a.example"}, Device: "a.devices.example", DeviceDER: w.device.Raw, Now: at}
}

func (w *world) issued(t testing.TB, at time.Time) *x509.Certificate {
	t.Helper()
	i, err := w.Issue(context.Background(), w.request(at))
	if err != nil {
		t.Fatal(err)
	}
	return i.Certificate
}

func verify(c *x509.Certificate, anchors, between []*x509.Certificate, crls []*x509.RevocationList, device []byte, at time.Time) error {
	_, err := certs.VerifyChain(certs.Options{
		Leaf: c.Raw, Anchors: anchors, Intermediates: labca.DER(between), CRLs: crls, RequireCRL: crls != nil,
		EKU: certs.EKUIPsecIKE, At: at, RelatedTo: device, Role: "service",
	})
	return err
}

func TestIssuedCertificateHasTheProfile(t *testing.T) {
	t.Parallel()
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for name, key := range map[string]crypto.Signer{"P-256": newKey(), "P-384": p384, "Ed25519": ed, "RSA": must(rsa.GenerateKey(rand.Reader, 2048))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, newCA(t, t0, key))
			r := w.request(t0.Add(time.Hour))
			i, err := w.Issue(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			c := i.Certificate
			crls, err := w.CRLs(t.Context(), r.Now)
			if err != nil {
				t.Fatal(err)
			}
			if err := verify(c, w.Anchors(), w.Intermediates(), crls, w.device.Raw, r.Now); err != nil {
				t.Fatalf("a peer refuses it: %v", err)
			}
			if c.NotAfter != r.Now.Add(issue.DefaultLife) || c.NotBefore != r.Now.Add(-issue.DefaultBackdate) {
				t.Errorf("valid %v to %v", c.NotBefore, c.NotAfter)
			}
			if n := c.SerialNumber.BitLen(); n < 120 || n > 127 {
				t.Errorf("serial number of %d bits, want 16 octets, positive", n)
			}
			id := issue.KeyID(w.Current().Cert)
			if want := "http://sp.example/crl/group-a/" + id + ".crl"; !slices.Equal(c.CRLDistributionPoints, []string{want}) {
				t.Errorf("CRL distribution points %v, want %s", c.CRLDistributionPoints, want)
			}
			if c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(c.OCSPServer, []string{"http://sp.example/ocsp"}) {
				t.Errorf("CA %v, usage %v, OCSP %v", c.IsCA, c.KeyUsage, c.OCSPServer)
			}
			got, err := w.Find(t.Context(), c)
			if err != nil || got.Device != r.Device || got.Serial != issue.SerialText(c.SerialNumber) || !bytes.Equal(got.DER, c.Raw) {
				t.Errorf("record %+v, %v", got, err)
			}
		})
	}
}

func TestIssueRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	weak := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	for name, c := range map[string]struct {
		edit func(*issue.Request)
		want error
	}{
		"no name":            {func(r *issue.Request) { r.Names = nil }, issue.ErrName},
		"too many names":     {func(r *issue.Request) { r.Names = slices.Repeat(r.Names, issue.MaxNames+1) }, issue.ErrName},
		"outside the domain": {func(r *issue.Request) { r.Names = []string{"a.group-b.example"} }, issue.ErrName},
		"suffix, not domain": {func(r *issue.Request) { r.Names = []string{"evilgroup-a.example"} }, issue.ErrName},
		"wildcard":           {func(r *issue.Request) { r.Names = []string{"*.group-a.example"} }, issue.ErrName},
		"path in a name":     {func(r *issue.Request) { r.Names = []string{"../../etc.group-a.example"} }, issue.ErrName},
		"NUL in a name":      {func(r *issue.Request) { r.Names = []string{"a\x00.group-a.example"} }, issue.ErrName},
		"life too short":     {func(r *issue.Request) { r.Life = time.Minute }, issue.ErrLife},
		"life too long":      {func(r *issue.Request) { r.Life = 91 * 24 * time.Hour }, issue.ErrLife},
		"weak key":           {func(r *issue.Request) { r.Public = weak.Public() }, certs.WeakKey},
		"CA about to end":    {func(r *issue.Request) { r.Now = w.Current().Cert.NotAfter.Add(-time.Minute) }, issue.ErrCAEnding},
		"CA ended":           {func(r *issue.Request) { r.Now = w.Current().Cert.NotAfter.Add(time.Minute) }, issue.ErrCAEnding},
	} {
		r := w.request(t0)
		c.edit(&r)
		if _, err := w.Issue(t.Context(), r); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	for name, edit := range map[string]func(*issue.Request){
		"no device": func(r *issue.Request) { r.Device = "" }, "no device certificate": func(r *issue.Request) { r.DeviceDER = nil },
		"no time": func(r *issue.Request) { r.Now = time.Time{} },
	} {
		r := w.request(t0)
		edit(&r)
		if _, err := w.Issue(t.Context(), r); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
	if n := len(w.rec.All()); n != 0 {
		t.Errorf("%d certificates recorded", n)
	}
}

func TestNoCertificateOutlivesItsCA(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c := w.issued(t, w.Current().Cert.NotAfter.Add(-2*24*time.Hour))
	if !c.NotAfter.Equal(w.Current().Cert.NotAfter) {
		t.Errorf("certificate until %v, its CA until %v", c.NotAfter, w.Current().Cert.NotAfter)
	}
}

// What cannot be recorded is not handed out.
func TestNothingIsHandedOutUnrecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.rec.Fail(errors.New("disk full"))
	if i, err := w.Issue(t.Context(), w.request(t0)); err == nil {
		t.Fatalf("issued %v", i)
	}
}

func TestSameKeyAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.request(t0)
	first := must(w.Issue(t.Context(), r))
	if first.Again {
		t.Fatal("the first one is said to be handed out again")
	}
	r.Now = t0.Add(time.Hour)
	if second := must(w.Issue(t.Context(), r)); !second.Again || !second.Certificate.Equal(first.Certificate) {
		t.Error("an answer that was lost is not given again")
	}
	r.Replayed = true
	if second := must(w.Issue(t.Context(), r)); !second.Again {
		t.Error("the same request, fresh: not given again")
	}
	r.Now = t0.Add(5 * 24 * time.Hour)
	if _, err := w.Issue(t.Context(), r); !errors.Is(err, issue.ErrReplayed) {
		t.Errorf("the same request days later: got %v, want %v", err, issue.ErrReplayed)
	}
	r.Replayed = false
	renewed := must(w.Issue(t.Context(), r))
	if renewed.Again || renewed.Certificate.Equal(first.Certificate) {
		t.Error("a new request with the same key after two thirds of the life is not answered with a new certificate")
	}
	all := w.rec.All()
	if len(all) != 2 || all[1].Replaces != all[0].Serial {
		t.Errorf("records: %d, the second replaces %q, want %q", len(all), all[len(all)-1].Replaces, all[0].Serial)
	}
	other := r
	other.Device = "b.devices.example"
	if _, err := w.Issue(t.Context(), other); !errors.Is(err, issue.ErrKeyInUse) {
		t.Errorf("the key of another device: got %v", err)
	}
	if _, err := w.Revoke(t.Context(), all[1].Issuer, all[1].Serial, r.Now, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Issue(t.Context(), r); !errors.Is(err, issue.ErrKeyRevoked) {
		t.Errorf("a key whose certificate was revoked: got %v", err)
	}
}

// Two instances, or two connections, ask for the same key at the same time: one certificate.
func TestSameKeyAtTheSameTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.request(t0)
	var wg sync.WaitGroup
	got := make([]*issue.Issued, 8)
	for i := range got {
		wg.Go(func() { got[i], _ = w.Issue(t.Context(), r) })
	}
	wg.Wait()
	for i, g := range got {
		if g == nil || !g.Certificate.Equal(got[0].Certificate) {
			t.Fatalf("asker %d got another certificate than asker 0", i)
		}
	}
	if n := len(w.rec.All()); n != 1 {
		t.Errorf("%d certificates recorded for one key", n)
	}
}

func TestRevocationList(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c := w.issued(t, t0)
	id := issue.KeyID(w.Current().Cert)
	list := func(at time.Time) *x509.RevocationList {
		t.Helper()
		l, err := w.CRL(t.Context(), id, at)
		if err != nil {
			t.Fatal(err)
		}
		if err := certs.CheckCRL(l, w.Current().Cert); err != nil {
			t.Fatal(err)
		}
		return l
	}
	first := list(t0)
	if again := list(t0.Add(time.Hour)); !bytes.Equal(again.Raw, first.Raw) {
		t.Error("nothing was revoked, but the list is another one")
	}
	if later := list(t0.Add(issue.DefaultCRLLife/2 + time.Second)); later.Number.Cmp(first.Number) <= 0 || !later.NextUpdate.After(first.NextUpdate) {
		t.Error("after half of its life the list was not made anew with a higher number")
	}
	at := t0.Add(40 * time.Hour)
	if _, err := w.Revoke(t.Context(), id, issue.SerialText(c.SerialNumber), at, 9); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Revoke(t.Context(), id, issue.SerialText(c.SerialNumber), at, 9); !errors.Is(err, issue.ErrRevoked) {
		t.Errorf("revoked twice: %v", err)
	}
	l := list(at)
	if len(l.RevokedCertificateEntries) != 1 || l.RevokedCertificateEntries[0].ReasonCode != 9 || l.RevokedCertificateEntries[0].SerialNumber.Cmp(c.SerialNumber) != 0 {
		t.Fatalf("list names %v", l.RevokedCertificateEntries)
	}
	crls, err := w.CRLs(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(c, w.Anchors(), w.Intermediates(), crls, w.device.Raw, at); !errors.Is(err, certs.Revoked) {
		t.Errorf("a peer says %v, want revoked", err)
	}
	if l := list(c.NotAfter.Add(issue.DefaultCRLLife - time.Minute)); len(l.RevokedCertificateEntries) != 1 {
		t.Error("the entry is gone before a list after the certificate's end has named it")
	}
	if l := list(c.NotAfter.Add(issue.DefaultCRLLife + time.Minute)); len(l.RevokedCertificateEntries) != 0 {
		t.Error("the entry stays for ever")
	}
	if _, err := w.CRL(t.Context(), "abcd", at); !errors.Is(err, issue.ErrUnknownCA) {
		t.Errorf("list of an unknown CA: %v", err)
	}
	for _, reason := range []int{-1, 6, 7, 8, 11} {
		if _, err := w.Revoke(t.Context(), id, "01", at, reason); err == nil {
			t.Errorf("reason %d accepted", reason)
		}
	}
	if _, err := w.Revoke(t.Context(), id, "01", at, 1); !errors.Is(err, issue.ErrNotIssued) {
		t.Errorf("revoking what was never issued: %v", err)
	}
}

// Old and new CA side by side: whoever knows either anchor accepts certificates of both.
func TestRollOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	old := w.Current()
	before := w.issued(t, t0)
	at := t0.Add(24 * time.Hour)
	next, err := issue.CrossSign(rand.Reader, old, newCA(t, at, nil), at)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Roll(next, at); err != nil {
		t.Fatal(err)
	}
	after := w.issued(t, at)
	crls, err := w.CRLs(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	if len(crls) != 4 {
		t.Errorf("%d lists, want one of each root and issuing CA", len(crls))
	}
	oldPeer, newPeer := []*x509.Certificate{old.Root}, []*x509.Certificate{next.Root}
	// A peer sends what lies between its certificate and the anchors: at most what the profile allows.
	between := w.Intermediates()
	if len(between) > certs.MaxIntermediates {
		t.Fatalf("%d certificates between", len(between))
	}
	for name, c := range map[string]struct {
		cert    *x509.Certificate
		anchors []*x509.Certificate
	}{
		"old certificate, old peer": {before, oldPeer},
		"new certificate, new peer": {after, newPeer},
		"new certificate, old peer": {after, oldPeer},
		"old certificate, new peer": {before, newPeer},
		"old certificate, both":     {before, w.Anchors()},
		"new certificate, both":     {after, w.Anchors()},
	} {
		if err := verify(c.cert, c.anchors, between, crls, w.device.Raw, at); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// RFC 4210, section 4.4: NewWithOld and OldWithNew are self-issued and signed by the other key.
	for i, pair := range [][2]*x509.Certificate{{next.Root, old.Root}, {old.Root, next.Root}} {
		c := next.Cross[i+2]
		if !bytes.Equal(c.RawSubject, c.RawIssuer) || !certs.SamePublicKey(c.PublicKey, pair[0].PublicKey) || pair[1].CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) != nil {
			t.Errorf("cross-certificate %d is not what section 4.4 describes", i+2)
		}
	}
	if got := w.CACerts(); len(got) != 8 || !got[0].Equal(next.Root) {
		t.Errorf("cacerts: %d certificates, want 2 roots, 2 issuing CAs, 4 cross-certificates, the new root first", len(got))
	}
	// The old CA still answers for what it issued, until it is retired.
	oldID := issue.KeyID(old.Cert)
	if _, err := w.Revoke(t.Context(), oldID, issue.SerialText(before.SerialNumber), at, 1); err != nil {
		t.Fatal(err)
	}
	if l := must(w.CRL(t.Context(), oldID, at)); len(l.RevokedCertificateEntries) != 1 {
		t.Error("the old CA's list does not name its certificate")
	}
	if err := w.Retire(issue.KeyID(next.Cert)); err == nil {
		t.Error("the CA that issues was retired")
	}
	if err := w.Retire(oldID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.CRL(t.Context(), oldID, at); !errors.Is(err, issue.ErrUnknownCA) {
		t.Errorf("list of a retired CA: %v", err)
	}
	next.RootKey = nil
	if _, err := issue.CrossSign(rand.Reader, old, next, at); !errors.Is(err, issue.ErrRootOffline) {
		t.Errorf("cross-signing without the root's key: %v", err)
	}
}

// After a roll-over the same key gets a certificate of the new CA, also within the window in which
// the old one would be handed out again.
func TestRollOverRenewsWithTheNewCA(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.request(t0)
	must(w.Issue(t.Context(), r))
	if err := w.Roll(newCA(t, t0, nil), t0); err != nil {
		t.Fatal(err)
	}
	r.Now = t0.Add(time.Minute)
	got := must(w.Issue(t.Context(), r))
	if got.Again || got.Certificate.CheckSignatureFrom(w.Current().Cert) != nil {
		t.Error("the certificate is not by the new CA")
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ca")
	ca := newCA(t, t0, nil)
	next := must(issue.CrossSign(rand.Reader, newCA(t, t0, nil), ca, t0))
	if err := next.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := next.Save(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("written over an existing CA: %v", err)
	}
	got, err := issue.OpenCA(dir, nil, t0)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Root.Equal(ca.Root) || !got.Cert.Equal(ca.Cert) || len(got.Cross) != 4 || got.RootKey == nil {
		t.Error("not what was saved")
	}
	for name, mode := range map[string]fs.FileMode{".": 0o700, "ca.key": 0o600, "root.key": 0o600} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want %v", name, st.Mode(), err, mode)
		}
	}
	// The root's key is taken away (offline), the CA's lies on a token.
	const name = "pkcs11:object=group-a-1-ca"
	var public crypto.PublicKey
	on := func(k crypto.Signer) issue.Keys {
		return func(reference string, pub crypto.PublicKey) (crypto.Signer, error) {
			if public = pub; reference != name {
				return nil, fmt.Errorf("reference %q", reference)
			}
			return k, nil
		}
	}
	token := on(got.Key)
	if err := os.WriteFile(filepath.Join(dir, "ca.uri"), []byte(name+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := issue.OpenCA(dir, token, t0); err == nil || !strings.Contains(err.Error(), "got both") {
		t.Errorf("a key and a reference: %v", err)
	}
	for _, n := range []string{"root.key", "ca.key"} {
		if err := os.Remove(filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := issue.OpenCA(dir, nil, t0); err == nil {
		t.Error("opened without a key")
	}
	if _, err := issue.OpenCA(dir, on(newKey()), t0); !errors.Is(err, issue.ErrCA) {
		t.Errorf("opened with another key: %v", err)
	}
	offline, err := issue.OpenCA(dir, token, t0)
	if err != nil {
		t.Fatal(err)
	}
	if !certs.SamePublicKey(public, ca.Cert.PublicKey) {
		t.Error("the key was asked for with another public key than the certificate's")
	}
	w := newWorld(t, nil, offline)
	if _, err := w.CRL(t.Context(), issue.KeyID(offline.Root), t0); !errors.Is(err, issue.ErrRootOffline) {
		t.Errorf("list of an offline root: %v", err)
	}
	if l := must(w.CRLs(t.Context(), t0)); len(l) != 1 {
		t.Errorf("%d lists with the root offline", len(l))
	}
	rootList := must(newWorld(t, nil, ca).CRL(t.Context(), issue.KeyID(ca.Root), t0))
	if err := os.WriteFile(filepath.Join(dir, "root.crl"), labca.EncodeCRLs([]*x509.RevocationList{rootList}), 0o600); err != nil {
		t.Fatal(err)
	}
	w = newWorld(t, nil, must(issue.OpenCA(dir, token, t0)))
	if l := must(w.CRLs(t.Context(), t0)); len(l) != 2 {
		t.Errorf("%d lists with the root's list brought along", len(l))
	}
	if _, err := issue.OpenCA(dir, token, ca.Cert.NotAfter.Add(time.Hour)); !errors.Is(err, issue.ErrCAEnded) || !errors.Is(err, issue.ErrCA) {
		t.Errorf("an ended CA was opened: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "ca.uri")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.key"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := issue.OpenCA(dir, nil, t0); err == nil || !strings.Contains(err.Error(), "0644") {
		t.Errorf("a key that everybody can read: %v", err)
	}
}

// An upstream issuer signs our request; its CA certificate is judged like our own.
func TestUpstream(t *testing.T) {
	t.Parallel()
	upstream := newCA(t, t0, nil)
	key := newKey()
	csr := must(certs.ParseCSR(must(issue.CARequest(rand.Reader, "SP", "group-a", key))))
	template := func() *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(77), Subject: csr.Subject, NotBefore: t0, NotAfter: t0.Add(1000 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	issueBy := func(tpl *x509.Certificate, by *issue.CA) *issue.CA {
		der := must(x509.CreateCertificate(rand.Reader, tpl, by.Root, csr.PublicKey, by.RootKey))
		return &issue.CA{Root: upstream.Root, Cert: must(x509.ParseCertificate(der)), Key: key}
	}
	good := issueBy(template(), upstream)
	if err := good.Check(t0); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, nil, good)
	c := w.issued(t, t0)
	if err := verify(c, w.Anchors(), w.Intermediates(), nil, w.device.Raw, t0); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]*issue.CA{
		"not a CA":            issueBy(edited(template(), func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero = false, false }), upstream),
		"no cRLSign":          issueBy(edited(template(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign }), upstream),
		"no path length":      issueBy(edited(template(), func(c *x509.Certificate) { c.MaxPathLenZero = false }), upstream),
		"wrong purposes":      issueBy(edited(template(), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), upstream),
		"ended":               issueBy(edited(template(), func(c *x509.Certificate) { c.NotAfter = t0.Add(-time.Second) }), upstream),
		"signed by a foreign": issueBy(template(), newCA(t, t0, nil)),
		"another key":         {Root: upstream.Root, Cert: good.Cert, Key: newKey()},
		"nothing":             {},
	} {
		if err := bad.Check(t0); !errors.Is(err, issue.ErrCA) {
			t.Errorf("%s: got %v", name, err)
		}
		if err := w.Roll(bad, t0); err == nil {
			t.Errorf("%s: rolled over to it", name)
		}
	}
}

func edited(c *x509.Certificate, f func(*x509.Certificate)) *x509.Certificate { f(c); return c }

func TestNames(t *testing.T) {
	t.Parallel()
	for _, n := range []string{"", "-a", ".a", "..", "a/b", "a b", "a\x00", "ä", strings.Repeat("a", 64), "a%2f"} {
		if issue.ValidName(n) {
			t.Errorf("%q is taken as a name", n)
		}
		if _, err := issue.NewCA(issue.CAOptions{Service: n, NotBefore: t0, Rand: rand.Reader}); err == nil {
			t.Errorf("a CA for service %q", n)
		}
		if _, err := issue.CARequest(rand.Reader, "", n, newKey()); err == nil {
			t.Errorf("a request for service %q", n)
		}
	}
	for _, n := range []string{"a", "group-a", "A_1.x", strings.Repeat("a", 63)} {
		if !issue.ValidName(n) {
			t.Errorf("%q is not taken as a name", n)
		}
	}
}

// --- OCSP

func responder(w *world, at time.Time) *issue.Responder {
	return &issue.Responder{Services: func() []*issue.Service { return []*issue.Service{w.Service} }, Now: func() time.Time { return at }}
}

func TestOCSP(t *testing.T) {
	t.Parallel()
	for _, key := range []crypto.Signer{newKey(), must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), must(rsa.GenerateKey(rand.Reader, 2048))} {
		w := newWorld(t, nil, newCA(t, t0, key))
		ca := w.Current().Cert
		good, bad := w.issued(t, t0), w.issued(t, t0)
		foreign := *good
		foreign.SerialNumber = big.NewInt(4711)
		if _, err := w.Revoke(t.Context(), issue.KeyID(ca), issue.SerialText(bad.SerialNumber), t0.Add(time.Minute), 1); err != nil {
			t.Fatal(err)
		}
		for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			for _, c := range []struct {
				cert *x509.Certificate
				want int
			}{{good, ocsp.Good}, {bad, ocsp.Revoked}, {&foreign, ocsp.Unknown}} {
				req := must(ocsp.CreateRequest(c.cert, ca, &ocsp.RequestOptions{Hash: h}))
				a, err := responder(w, t0).Answer(t.Context(), req, t0.Add(time.Hour))
				if err != nil {
					t.Fatal(err)
				}
				got, err := ocsp.ParseResponseForCert(a.DER, c.cert, ca)
				if err != nil {
					t.Fatalf("%v %v: %v", certs.KeyName(key.Public()), h, err)
				}
				if got.Status != c.want || !got.ThisUpdate.Equal(t0.Add(time.Hour)) || !got.NextUpdate.Equal(t0.Add(time.Hour+10*time.Minute)) {
					t.Errorf("%v: status %d, want %d; %v to %v", h, got.Status, c.want, got.ThisUpdate, got.NextUpdate)
				}
				if c.want == ocsp.Revoked && (got.RevocationReason != 1 || !got.RevokedAt.Equal(t0.Add(time.Minute))) {
					t.Errorf("revoked at %v, reason %d", got.RevokedAt, got.RevocationReason)
				}
			}
		}
	}
}

// A certificate whose end is set for later is good until then, and nothing says otherwise for longer.
func TestEndAhead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c, ca := w.issued(t, t0), w.Current().Cert
	end := t0.Add(4 * time.Minute)
	if _, err := w.Revoke(t.Context(), issue.KeyID(ca), issue.SerialText(c.SerialNumber), end, 4); err != nil {
		t.Fatal(err)
	}
	p, req := responder(w, t0), must(ocsp.CreateRequest(c, ca, nil))
	for _, at := range []time.Duration{0, 3 * time.Minute, 4 * time.Minute, 5 * time.Minute} {
		now, want := t0.Add(at), ocsp.Good
		if !now.Before(end) {
			want = ocsp.Revoked
		}
		got := must(ocsp.ParseResponse(must(p.Answer(t.Context(), req, now)).DER, ca))
		if got.Status != want || got.Status == ocsp.Good && got.NextUpdate.After(end) {
			t.Errorf("after %v: status %d until %v, want %d", at, got.Status, got.NextUpdate, want)
		}
		if n := len(must(w.CRL(t.Context(), issue.KeyID(ca), now)).RevokedCertificateEntries); (n == 1) != (want == ocsp.Revoked) {
			t.Errorf("after %v: the list names %d", at, n)
		}
	}
}

// A cached answer does not outlive the state that it tells.
func TestOCSPAfterRevocation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c, ca := w.issued(t, t0), w.Current().Cert
	req := must(ocsp.CreateRequest(c, ca, nil))
	p := responder(w, t0)
	one := must(p.Answer(t.Context(), req, t0))
	if two := must(p.Answer(t.Context(), req, t0.Add(time.Minute))); !bytes.Equal(one.DER, two.DER) {
		t.Error("the same answer was signed twice")
	}
	if three := must(p.Answer(t.Context(), req, t0.Add(6*time.Minute))); bytes.Equal(one.DER, three.DER) {
		t.Error("an answer was used after half of its life")
	}
	if _, err := w.Revoke(t.Context(), issue.KeyID(ca), issue.SerialText(c.SerialNumber), t0, 1); err != nil {
		t.Fatal(err)
	}
	four := must(p.Answer(t.Context(), req, t0.Add(6*time.Minute)))
	if got := must(ocsp.ParseResponse(four.DER, ca)); got.Status != ocsp.Revoked {
		t.Error("the answer from before the revocation was given")
	}
}

func TestOCSPErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c, ca := w.issued(t, t0), w.Current().Cert
	req := must(ocsp.CreateRequest(c, ca, nil))
	p := responder(w, t0)
	status := func(err error) ocsp.ResponseStatus {
		_, parse := ocsp.ParseResponse(issue.OCSPError(err), nil)
		var e ocsp.ResponseError
		if !errors.As(parse, &e) {
			t.Fatalf("not an OCSP answer: %v", parse)
		}
		return e.Status
	}
	for n := range len(req) {
		if _, err := p.Answer(t.Context(), req[:n], t0); status(err) != ocsp.Malformed {
			t.Errorf("%d of %d octets: %v", n, len(req), err)
		}
	}
	if _, err := p.Answer(t.Context(), append(bytes.Clone(req), 0), t0); status(err) != ocsp.Malformed {
		t.Errorf("one octet more: %v", err)
	}
	other := newWorld(t, nil)
	if _, err := p.Answer(t.Context(), must(ocsp.CreateRequest(c, other.Current().Cert, nil)), t0); status(err) != ocsp.Unauthorized {
		t.Errorf("another CA's certificate: %v", err)
	}
	w.rec.Fail(context.DeadlineExceeded)
	if _, err := p.Answer(t.Context(), req, t0); status(err) != ocsp.TryLater {
		t.Errorf("database too slow: %v", err)
	}
	w.rec.Fail(errors.New("disk on fire"))
	if _, err := p.Answer(t.Context(), req, t0); status(err) != ocsp.InternalError {
		t.Errorf("database gone: %v", err)
	}
	w.rec.Fail(nil)
	p.Rate = 3
	var busy int
	for i := range 10 {
		foreign := *c
		foreign.SerialNumber = big.NewInt(int64(i + 1))
		if _, err := p.Answer(t.Context(), must(ocsp.CreateRequest(&foreign, ca, nil)), t0.Add(time.Hour)); err != nil && status(err) == ocsp.TryLater {
			busy++
		}
	}
	if busy != 7 {
		t.Errorf("%d of 10 refused at a rate of 3", busy)
	}
}

// --- over HTTP, and openssl as client

func TestStatusOverHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c, ca := w.issued(t, t0), w.Current().Cert
	mux := http.NewServeMux()
	responder(w, t0).Register(mux, "/status")
	srv := httptest.NewServer(mux)
	defer srv.Close()
	get := func(path string) (*http.Response, []byte) {
		t.Helper()
		r, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		var b bytes.Buffer
		if _, err := b.ReadFrom(r.Body); err != nil {
			t.Fatal(err)
		}
		return r, b.Bytes()
	}
	r, b := get("/status/crl/group-a/" + issue.KeyID(ca) + ".crl")
	if l, err := x509.ParseRevocationList(b); r.StatusCode != 200 || r.Header.Get("Content-Type") != "application/pkix-crl" || err != nil || certs.CheckCRL(l, ca) != nil {
		t.Errorf("list: %v %v %v", r.Status, r.Header, err)
	}
	for _, path := range []string{"/status/crl/group-a/00.crl", "/status/crl/group-b/" + issue.KeyID(ca) + ".crl", "/status/crl/group-a/xx.crl", "/status/crl/group-a/" + issue.KeyID(ca), "/status/crl/..%2f..%2fetc/passwd"} {
		if r, b := get(path); r.StatusCode != 404 || !bytes.Contains(b, []byte(" ")) {
			t.Errorf("%s: %v %q, want 404 with a reason", path, r.Status, b)
		}
	}
	req := must(ocsp.CreateRequest(c, ca, nil))
	r, b = get("/status/ocsp/" + url.PathEscape(base64.StdEncoding.EncodeToString(req)))
	if got, err := ocsp.ParseResponse(b, ca); err != nil || got.Status != ocsp.Good || !strings.Contains(r.Header.Get("Cache-Control"), "max-age=600") {
		t.Errorf("OCSP by GET: %v %v %v", r.Status, err, r.Header)
	}
	r, b = get("/status/ocsp/%2e%2e%2f")
	if r.StatusCode != 400 || len(b) == 0 {
		t.Errorf("OCSP by GET with nonsense: %v %q", r.Status, b)
	}
	for kind, want := range map[string]int{"application/ocsp-request": 200, "text/plain": 415} {
		r, err := http.Post(srv.URL+"/status/ocsp", kind, bytes.NewReader(req))
		if err != nil || r.StatusCode != want {
			t.Errorf("POST as %s: %v %v", kind, r, err)
		}
	}
	if r, err := http.Post(srv.URL+"/status/ocsp", "application/ocsp-request", bytes.NewReader(make([]byte, issue.MaxOCSPBytes+1))); err != nil || r.StatusCode != 413 {
		t.Errorf("POST too large: %v %v", r, err)
	}
}

// openssl sends a nonce and checks that it comes back (RFC 9654).
func TestOpenSSLAsksOCSP(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is not installed; .ci/install installs it")
		}
		t.Skip("openssl is not installed")
	}
	now := time.Now() // openssl judges the answer by the machine's clock
	ca := newCA(t, now.Add(-time.Hour), nil)
	rec := issuetest.NewMemory()
	s := must(issue.NewService(issue.Config{Name: "group-a", Rand: rand.Reader, Recorder: rec}, now, ca))
	mk := func() *x509.Certificate {
		return must(s.Issue(t.Context(), issue.Request{Public: newKey().Public(), Names: []string{"a.group-a.example"}, Device: "a", DeviceDER: []byte{1}, Now: now})).Certificate
	}
	good, bad := mk(), mk()
	if _, err := s.Revoke(t.Context(), issue.KeyID(ca.Cert), issue.SerialText(bad.SerialNumber), now, 1); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	(&issue.Responder{Services: func() []*issue.Service { return []*issue.Service{s} }, Now: time.Now}).Register(mux, "")
	srv := httptest.NewServer(mux)
	defer srv.Close()
	dir := t.TempDir()
	for name, c := range map[string]*x509.Certificate{"root": ca.Root, "ca": ca.Cert, "good": good, "bad": bad} {
		if err := os.WriteFile(filepath.Join(dir, name+".pem"), certs.EncodePEM(c), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"good": "good.pem: good", "bad": "bad.pem: revoked"} {
		cmd := exec.Command(openssl, "ocsp", "-issuer", "ca.pem", "-cert", name+".pem", "-CAfile", "root.pem", "-verify_other", "ca.pem", "-url", srv.URL+"/ocsp", "-nonce")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte(want)) || !bytes.Contains(out, []byte("Response verify OK")) || bytes.Contains(out, []byte("WARNING")) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func FuzzOCSPRequest(f *testing.F) {
	w := newWorld(f, nil)
	c, ca := w.issued(f, t0), w.Current().Cert
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		f.Add(must(ocsp.CreateRequest(c, ca, &ocsp.RequestOptions{Hash: h})))
	}
	f.Add(must(hex.DecodeString("3003300130"))) // truncated
	p := responder(w, t0)
	p.Rate = 1e9
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := p.Answer(t.Context(), b, t0)
		if err != nil {
			if !errors.Is(err, issue.ErrMalformed) && !errors.Is(err, issue.ErrUnknownCA) {
				t.Fatalf("%x: %v", b, err)
			}
			return
		}
		// What we answer, the library can read; it reads the first of several.
		if _, err := ocsp.ParseRequest(b); err == nil && !bytes.Contains(a.DER, ca.RawSubject) {
			t.Fatalf("%x: answer without our name", b)
		}
	})
}

func BenchmarkIssue(b *testing.B) {
	w := newWorld(b, nil)
	r := w.request(t0)
	keys := make([]crypto.PublicKey, 256)
	for i := range keys {
		keys[i] = newKey().Public()
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%len(keys) == 0 {
			b.StopTimer()
			w = newWorld(b, nil)
			r.DeviceDER = w.device.Raw
			b.StartTimer()
		}
		r.Public = keys[i%len(keys)]
		if _, err := w.Issue(context.Background(), r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOCSP(b *testing.B) {
	w := newWorld(b, nil)
	req := must(ocsp.CreateRequest(w.issued(b, t0), w.Current().Cert, nil))
	b.Run("signed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := w.AnswerOCSP(context.Background(), req, t0, time.Minute); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cached", func(b *testing.B) {
		p := responder(w, t0)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.Answer(context.Background(), req, t0); err != nil {
				b.Fatal(err)
			}
		}
	})
}
