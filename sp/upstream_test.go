package sp_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp"
	"wardgate/sp/issue"
	"wardgate/sp/store/storetest"
)

// upstream is an issuer elsewhere: a root, and a CA below it that answers requests.
type upstream struct {
	root, mid       *x509.Certificate
	rootKey, midKey *ecdsa.PrivateKey
}

func caCertificate(w *world, name string, pathLen int, pub crypto.PublicKey, parent *x509.Certificate, key crypto.Signer) *x509.Certificate {
	w.Helper()
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(int64(4000 + len(name))), Subject: pkix.Name{CommonName: name}, NotBefore: w.Now().Add(-time.Hour), NotAfter: w.Now().Add(4000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: pathLen, MaxPathLenZero: pathLen == 0, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if parent == nil {
		parent = tpl
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tpl, parent, pub, key))(w)))(w)
}

func newUpstream(w *world) *upstream {
	u := &upstream{rootKey: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(w), midKey: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(w)}
	u.root = caCertificate(w, "Upstream Root", 2, u.rootKey.Public(), nil, u.rootKey)
	u.mid = caCertificate(w, "Upstream CA", 1, u.midKey.Public(), u.root, u.rootKey)
	return u
}

// answer signs a request.
func (u *upstream) answer(w *world, request []byte) *x509.Certificate {
	w.Helper()
	block, _ := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		w.Fatalf("request %q", request)
	}
	csr := must(certs.ParseCSR(block.Bytes))(w)
	return caCertificate(w, csr.Subject.CommonName, 0, csr.PublicKey, u.mid, u.midKey)
}

// A service whose CA is issued elsewhere, by files: request out, certificates in; what is half done is seen
// and goes on, what is wrong is refused and changes nothing.
func TestUpstreamIssuer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	dir := filepath.Dir(w.configFile)
	if err := os.RemoveAll(filepath.Join(dir, "services", "group-a")); err != nil {
		t.Fatal(err)
	}
	c := must(sp.Open(w.context(), sp.Options{Config: w.cfg, Now: w.Now}))(t)
	defer c.Close()
	u, r := newUpstream(w), w.registry()
	if _, err := c.InstallCA(r, "group-a", []*x509.Certificate{u.root}, nil, nil, sp.CAOptions{}); err == nil || !strings.Contains(err.Error(), "--csr FILE") {
		t.Errorf("an answer that nobody asked for: %v", err)
	}
	request, folder, err := c.RequestCA(w.context(), r, "group-a", sp.CAOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if again, _, err := c.RequestCA(w.context(), r, "group-a", sp.CAOptions{}); err != nil || string(again) != string(request) {
		t.Errorf("asked again: %v", err)
	}
	if s := must(c.CAs(r, "group-a"))(t); len(s) != 1 || s[0].State != sp.CAWaits || s[0].Folder != folder || s[0].Key != "file" {
		t.Errorf("while it waits: %+v", s)
	}
	if _, err := c.MakeCA(w.context(), r, "group-a", sp.CAOptions{}); !errors.Is(err, sp.ErrUnfinished) {
		t.Errorf("a CA of our own beside it: %v", err)
	}
	good := u.answer(w, request)
	other := newUpstream(w)
	foreign, _, err := c.RequestCA(w.context(), r, "group-b", sp.CAOptions{}) // another request
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]struct {
		given, anchors []*x509.Certificate
		want           string
	}{
		"a root that only the answer brings": {[]*x509.Certificate{good, u.mid, u.root}, nil, "to one of the 0 anchors"},
		"another anchor":                     {[]*x509.Certificate{good, u.mid, u.root}, []*x509.Certificate{other.root}, "to one of the 1 anchors"},
		"a CA is missing":                    {[]*x509.Certificate{good, u.root}, []*x509.Certificate{u.root}, "Upstream CA"},
		"the answer to another request":      {[]*x509.Certificate{u.answer(w, foreign), u.mid}, []*x509.Certificate{u.root}, "the key that the request was made with"},
		"by somebody else of the same name":  {[]*x509.Certificate{other.answer(w, request), u.mid}, []*x509.Certificate{u.root}, "expected a path"},
	} {
		if _, err := c.InstallCA(r, "group-a", k.given, k.anchors, nil, sp.CAOptions{}); !errors.Is(err, issue.ErrCA) || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: %v, want %q", name, err, k.want)
		}
	}
	made, err := c.InstallCA(r, "group-a", []*x509.Certificate{u.mid, good}, []*x509.Certificate{other.root, u.root}, nil, sp.CAOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.InstallCA(r, "group-a", []*x509.Certificate{u.mid, good}, nil, nil, sp.CAOptions{}); err != nil || again != made {
		t.Errorf("installed again: %q, %v", again, err)
	}
	if s := must(c.CAs(r, "group-a"))(t); len(s) != 1 || s[0].State != sp.CAIssues || s[0].Folder != made {
		t.Errorf("installed: %+v", s)
	}
	if folder, err := c.DiscardCA(w.context(), r, "group-b"); err != nil || folder == "" {
		t.Errorf("given up: %q, %v", folder, err)
	}
	if s := must(c.CAs(r, "group-b"))(t); len(s) != 1 || s[0].State != sp.CAIssues {
		t.Errorf("after a request was given up: %+v", s)
	}

	// It issues, its certificates are good at the centre, and peers are told its root.
	i := w.start()
	i.apply()
	a := w.devices[devA]
	svc, rep := i.enrol(a, "group-a")
	if svc == nil {
		t.Fatalf("%d %s", rep.status, rep.body)
	}
	if svc.Leaf.CheckSignatureFrom(good) != nil {
		t.Errorf("issued by %v", svc.Leaf.Issuer)
	}
	doc, tag := i.policy(a, "")
	for _, s := range doc.Services {
		if s.Name == "group-a" && (len(s.Anchors) != 1 || !must(certs.ParseCertificates([]byte(s.Anchors[0])))(t)[0].Equal(u.root)) {
			t.Errorf("%d anchors of group-a", len(s.Anchors))
		}
	}
	i.settled()
	if r := i.poll(svc, tag, "0"); r.status != 304 {
		t.Errorf("by the service certificate: %d %s", r.status, r.body)
	}
}
