package issue_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/issue"
)

// caBy makes a CA certificate signed by another one.
func caBy(name string, pub crypto.PublicKey, pathLen int, parent *x509.Certificate, key crypto.Signer, edit func(*x509.Certificate)) *x509.Certificate {
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(name)) + 1000), Subject: pkix.Name{CommonName: name}, NotBefore: t0, NotAfter: t0.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: pathLen, MaxPathLenZero: pathLen == 0, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if edit != nil {
		edit(tpl)
	}
	if parent == nil {
		parent = tpl
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tpl, parent, pub, key))))
}

// An upstream issuer with CAs of its own between its root and ours.
func TestFromUpstream(t *testing.T) {
	t.Parallel()
	rootKey, midKey, key := newKey(), newKey(), newKey()
	root := caBy("Upstream Root", rootKey.Public(), 3, nil, rootKey, nil)
	mid := caBy("Upstream Policy CA", midKey.Public(), 1, root, rootKey, nil)
	cert := caBy("Service group-a Issuing CA", key.Public(), 0, mid, midKey, nil)
	stranger := newCA(t, t0, nil)
	given := []*x509.Certificate{stranger.Root, root, mid, cert}
	ca, err := issue.FromUpstream(given, []*x509.Certificate{stranger.Root, root}, key, t0)
	if err != nil {
		t.Fatal(err)
	}
	if !ca.Root.Equal(root) || !ca.Cert.Equal(cert) || len(ca.Between) != 1 || !ca.Between[0].Equal(mid) {
		t.Errorf("root %v, issuing %v, %d between", ca.Root.Subject, ca.Cert.Subject, len(ca.Between))
	}
	if err := ca.TryOut(rand.Reader, "group-a.example", t0); err != nil {
		t.Error(err)
	}
	dir := filepath.Join(t.TempDir(), "1")
	ca.From = t0.Add(time.Hour)
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	again := must(issue.OpenCA(dir, nil, t0))
	if len(again.Between) != 1 || !again.From.Equal(ca.From) {
		t.Errorf("read back: %d between, from %v", len(again.Between), again.From)
	}
	w := newWorld(t, nil, again)
	c := w.issued(t, t0.Add(2*time.Hour))
	if err := verify(c, w.Anchors(), w.Intermediates(), nil, w.device.Raw, t0.Add(2*time.Hour)); err != nil {
		t.Error(err)
	}

	anchors := []*x509.Certificate{root}
	shortRoot := caBy("Upstream Root", rootKey.Public(), 1, nil, rootKey, nil)
	shortMid := caBy("Upstream Policy CA", midKey.Public(), 0, root, rootKey, nil)
	for name, k := range map[string]struct {
		given, anchors []*x509.Certificate
		key            crypto.Signer
		want           string
	}{
		"another key":              {given, anchors, newKey(), "for the key that the request was made with"},
		"nothing":                  {nil, anchors, key, "got none among 0"},
		"a CA is missing":          {[]*x509.Certificate{cert, root}, anchors, key, "Upstream Policy CA"},
		"an anchor nobody knows":   {given, []*x509.Certificate{stranger.Root}, key, "to one of the 1 anchors"},
		"no anchor":                {given, nil, key, "to one of the 0 anchors"},
		"root without room":        {given, []*x509.Certificate{shortRoot}, key, "pathLenConstraint of at least 2"},
		"CA between without room":  {[]*x509.Certificate{shortMid, cert}, anchors, key, "pathLenConstraint of at least 1"},
		"no path length of our CA": {[]*x509.Certificate{mid, caBy("x", key.Public(), -1, mid, midKey, nil)}, anchors, key, "pathLenConstraint 0"},
		"a leaf":                   {[]*x509.Certificate{mid, caBy("x", key.Public(), -1, mid, midKey, func(c *x509.Certificate) { c.IsCA = false })}, anchors, key, "basicConstraints cA"},
	} {
		if _, err := issue.FromUpstream(k.given, k.anchors, k.key, t0); !errors.Is(err, issue.ErrCA) || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: %v, want %q", name, err, k.want)
		}
	}
	// What only a certificate shows: names that the CA may not certify.
	narrow := caBy("Service group-a Issuing CA", key.Public(), 0, mid, midKey, func(c *x509.Certificate) {
		c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"elsewhere.example"}, true
	})
	ca = must(issue.FromUpstream([]*x509.Certificate{mid, narrow}, anchors, key, t0))
	if err := ca.TryOut(rand.Reader, "group-a.example", t0); !errors.Is(err, issue.ErrCA) || certs.ClassOf(err) == 0 {
		t.Errorf("names that it may not certify: %v", err)
	}
}

// A new CA is published first and issues when its time has come, or when the old one cannot any more.
func TestIssuingBegins(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	old := w.Current()
	next := newCA(t, t0, nil)
	next.From = t0.Add(72 * time.Hour)
	if err := w.Roll(next, t0); err != nil {
		t.Fatal(err)
	}
	if a := w.Anchors(); len(a) != 2 || !a[0].Equal(next.Root) {
		t.Errorf("%d anchors while it is published", len(a))
	}
	if l := must(w.CRLs(t.Context(), t0)); len(l) != 4 {
		t.Errorf("%d lists while it is published", len(l))
	}
	for _, k := range []struct {
		at   time.Time
		want *issue.CA
	}{
		{t0, old},
		{next.From.Add(-time.Second), old},
		{next.From, next},
		{next.From.Add(time.Hour), next},
	} {
		if c := w.issued(t, k.at); c.CheckSignatureFrom(k.want.Cert) != nil {
			t.Errorf("at %v: by %v", k.at, c.Issuer)
		}
	}
	w = newWorld(t, nil)
	ends := w.Current().Cert.NotAfter.Add(-time.Minute)
	late := newCA(t, ends.Add(-time.Hour), nil)
	late.From = ends.Add(time.Hour)
	if err := w.Roll(late, ends); err != nil {
		t.Fatal(err)
	}
	if c := w.issued(t, ends); c.CheckSignatureFrom(late.Cert) != nil {
		t.Error("the old CA ends, and the new one does not issue")
	}
}

// absent is a key on a token that comes and goes.
type absent struct {
	crypto.Signer
	away bool
}

func (a *absent) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	if a.away {
		return nil, fmt.Errorf("%w: the token has been removed", issue.ErrUnavailable)
	}
	return a.Signer.Sign(r, digest, o)
}

// While the key is away nothing is issued, lists that are true go on, and nothing that is not true is told.
func TestKeyIsAway(t *testing.T) {
	t.Parallel()
	key := &absent{Signer: newKey()}
	ca := must(issue.NewCA(issue.CAOptions{Service: "group-a", Domain: "group-a.example", Key: key, NotBefore: t0.Add(-time.Hour), Rand: rand.Reader}))
	w := newWorld(t, nil, ca)
	id := issue.KeyID(ca.Cert)
	c := w.issued(t, t0)
	list := must(w.CRL(t.Context(), id, t0))
	key.away = true
	if _, err := w.Issue(t.Context(), w.request(t0)); !errors.Is(err, issue.ErrUnavailable) {
		t.Errorf("issued: %v", err)
	}
	if n := len(w.rec.All()); n != 1 {
		t.Errorf("%d on the record, want the one before", n)
	}
	stale := list.ThisUpdate.Add(issue.DefaultCRLLife * 3 / 4) // a new one is due, the old one is good
	if l, err := w.CRL(t.Context(), id, stale); err != nil || l.Number.Cmp(list.Number) != 0 {
		t.Errorf("list while the key is away: %v", err)
	}
	if _, err := w.CRL(t.Context(), id, list.NextUpdate); !errors.Is(err, issue.ErrUnavailable) {
		t.Errorf("a list that has ended: %v", err)
	}
	if _, err := w.Revoke(t.Context(), id, issue.SerialText(c.SerialNumber), stale, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := w.CRL(t.Context(), id, stale); !errors.Is(err, issue.ErrUnavailable) {
		t.Errorf("a list that does not name what was revoked: %v", err)
	}
	key.away = false
	if l := must(w.CRL(t.Context(), id, stale)); len(l.RevokedCertificateEntries) != 1 {
		t.Error("the key is back, and the list does not name what was revoked")
	}
	w.issued(t, stale)
}
