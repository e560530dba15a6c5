package sp_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"wardgate/internal/certs"
	"wardgate/internal/testvectors"
	"wardgate/pkichip"
	"wardgate/sp"
	"wardgate/sp/registry/registrytest"
	"wardgate/sp/store/storetest"
)

// hsm is a SoftHSM token of the test's own.
type hsm struct {
	*testing.T
	dir string
	sp.Token
}

func newHSM(t *testing.T) *hsm {
	t.Helper()
	h := &hsm{T: t, dir: t.TempDir()}
	for _, m := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib64/libsofthsm2.so"} {
		if _, err := os.Stat(m); err == nil {
			h.Module = m
			break
		}
	}
	if h.Module == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("SoftHSM is not installed")
		}
		t.Skip("SoftHSM is not installed")
	}
	h.Chip = filepath.Join(h.dir, "wardgate-chip")
	build := exec.Command("go", "build", "-o", h.Chip, "./cmd/wardgate-chip")
	build.Dir = testvectors.Root()
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building wardgate-chip: %v\n%s", err, b)
	}
	h.Label, h.PINFile = "sp", filepath.Join(h.dir, "pin")
	conf := filepath.Join(h.dir, "softhsm2.conf")
	h.Env = []string{"SOFTHSM2_CONF=" + conf}
	for path, text := range map[string]string{
		conf:      "directories.tokendir = " + h.tokens() + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n",
		h.PINFile: "482910\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(h.tokens(), 0o700); err != nil {
		t.Fatal(err)
	}
	c := must(pkichip.Start(t.Context(), pkichip.Options{Binary: h.Chip, Module: h.Module, Env: h.Env, PIN: pkichip.PINSource{Value: []byte("482910"), SOPIN: []byte("99887766")}}))(t)
	must(c.InitToken(t.Context(), h.Label, false))(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *hsm) tokens() string { return filepath.Join(h.dir, "tokens") }

// away takes the token away, as a hand would, and back puts it in again.
func (h *hsm) away() {
	h.Helper()
	if err := errors.Join(os.Rename(h.tokens(), h.tokens()+"-away"), os.Mkdir(h.tokens(), 0o700)); err != nil {
		h.Fatal(err)
	}
}

func (h *hsm) back() {
	h.Helper()
	if err := errors.Join(os.RemoveAll(h.tokens()), os.Rename(h.tokens()+"-away", h.tokens())); err != nil {
		h.Fatal(err)
	}
}

// keys lists the labels of the keys on the token.
func (h *hsm) keys() []string {
	h.Helper()
	c := must(pkichip.Start(h.Context(), pkichip.Options{Binary: h.Chip, Module: h.Module, TokenLabel: h.Label, Env: h.Env, PIN: pkichip.PINSource{File: h.PINFile}}))(h)
	defer c.Close()
	var out []string
	for _, k := range must(c.Keys(h.Context()))(h) {
		out = append(out, k.Label)
	}
	return out
}

// Policies and certificates are signed by keys that are on a token: made there by Init, used by the
// server; nothing is signed while the token is away, everybody is told why, and all goes on when it is back.
func TestKeysOnAToken(t *testing.T) {
	t.Parallel()
	h := newHSM(t)
	w := newWorldWith(t, storetest.SQLite(t), &h.Token)
	w.cfg.Token.Env = h.Env
	dir := filepath.Dir(w.configFile)
	files := must(filepath.Glob(filepath.Join(dir, "services", "*", "1", "*.key")))(t)
	files = append(files, must(filepath.Glob(filepath.Join(dir, "policy*.key")))(t)...)
	if len(files) != 0 {
		t.Errorf("keys in files: %q", files)
	}
	if !strings.HasPrefix(w.cfg.Policy.Key, "pkcs11:token=sp;object=") {
		t.Errorf("policy key %q", w.cfg.Policy.Key)
	}
	if k := h.keys(); len(k) != 8 { // policy, its root, and two for each of three services
		t.Errorf("%d keys on the token: %q", len(k), k)
	}
	i := w.start()
	i.apply()
	a := w.devices[devA]
	doc, tag := i.policy(a, "")
	if connections(doc) != "a-b a-c" {
		t.Errorf("connections %q", connections(doc))
	}
	svc, r := i.enrol(a, "group-a")
	if svc == nil {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if n := len(i.crl(svc.Leaf).RevokedCertificateEntries); n != 0 {
		t.Errorf("%d revoked", n)
	}
	if got := i.ocsp(svc.Leaf); got.Status != ocsp.Good {
		t.Errorf("OCSP: status %d", got.Status)
	}
	i.settled()

	h.away()
	w.eventually("nothing is issued while the token is away", func() bool {
		_, r := i.enrol(w.devices[devB], "group-a")
		return r.status == http.StatusServiceUnavailable && r.header.Get("Retry-After") != "" && strings.Contains(string(r.body), "whose key is away")
	})
	i.recorded("enrolment-refused", "est-busy")
	certificates := must(i.Store().CertificatesOf(w.context(), devB, 0))(t)
	head := i.head(devA)
	for k := range w.content.Contracts {
		if c := &w.content.Contracts[k]; c.Name == "a-b" {
			c.Until = w.Now().Add(time.Hour)
		}
	}
	w.content.Contracts = w.content.Contracts[:1]
	i.apply()
	w.eventually("the work waits with the reason", func() bool {
		q := must(i.Store().Queue(w.context(), "policy"))(t)
		return q.Failing > 0
	})
	if got := i.head(devA); got != head {
		t.Errorf("a policy was made without the signer's key: %+v", got)
	}
	if _, err := i.MakeCA(w.context(), w.registry(), "group-a", sp.CAOptions{}); err == nil {
		t.Error("a CA was made without a token")
	}

	h.back()
	w.pass(time.Minute)
	w.eventually("the policy that waited is made", func() bool { return i.head(devA) != head })
	doc, _ = i.policy(a, tag)
	if connections(doc) == "a-b a-c" {
		t.Errorf("connections %q", connections(doc))
	}
	w.eventually("enrolment goes on", func() bool {
		svc, _ := i.enrol(w.devices[devB], "group-a")
		return svc != nil
	})
	if n := len(must(i.Store().CertificatesOf(w.context(), devB, 0))(t)); n <= len(certificates) {
		t.Errorf("%d certificates, had %d", n, len(certificates))
	}

	// The CA whose making was cut short: the same command goes on, with the keys that it noted down.
	before := must(i.CAs(w.registry(), "group-a"))(t)
	if len(before) != 2 || before[0].State != sp.CAUnfinished || before[1].State != sp.CAIssues {
		t.Errorf("before: %+v", before)
	}
	made := must(i.MakeCA(w.context(), w.registry(), "group-a", sp.CAOptions{}))(t)
	after := must(i.CAs(w.registry(), "group-a"))(t)
	if len(after) != 2 || after[0].State != sp.CAPublished || after[0].Folder != made || !strings.HasPrefix(after[0].Key, "pkcs11:") || after[1].State != sp.CAIssues {
		t.Errorf("after: %+v", after)
	}
	// A request to an upstream issuer that is given up takes its key along.
	keys := len(h.keys())
	request, _, err := i.RequestCA(w.context(), w.registry(), "group-b", sp.CAOptions{})
	if again, _, err2 := i.RequestCA(w.context(), w.registry(), "group-b", sp.CAOptions{}); err != nil || err2 != nil || string(again) != string(request) {
		t.Errorf("request %v, again %v", err, err2)
	}
	if n := len(h.keys()); n != keys+1 {
		t.Errorf("%d keys with the request, had %d", n, keys)
	}
	if _, err := i.MakeCA(w.context(), w.registry(), "group-b", sp.CAOptions{}); !errors.Is(err, sp.ErrUnfinished) {
		t.Errorf("a CA beside a request: %v", err)
	}
	must(i.DiscardCA(w.context(), w.registry(), "group-b"))(t)
	if n := len(h.keys()); n != keys {
		t.Errorf("%d keys after it was given up, had %d", n, keys)
	}
}

// A centre starts without its token and says so; with another key than the certificate's it does not.
func TestTokenAtTheStart(t *testing.T) {
	t.Parallel()
	h := newHSM(t)
	w := newWorldWith(t, storetest.SQLite(t), &h.Token)
	w.cfg.Token.Env = h.Env
	h.away()
	i := w.start()
	i.apply()
	w.eventually("the work waits", func() bool {
		q := must(i.Store().Queue(w.context(), "policy"))(t)
		return q.Failing > 0
	})
	if r := i.poll(&w.devices[devA].tls, "", "0"); r.status != http.StatusNotFound || r.problem(t) != "no-policy" {
		t.Errorf("%d %s", r.status, r.body)
	}
	h.back()
	w.pass(time.Minute)
	i.policy(w.devices[devA], "")
	i.stop()

	for _, label := range h.keys() {
		if strings.HasPrefix(label, "group-a-1-ca-") {
			w.cfg.Policy.Key = "pkcs11:object=" + label
		}
	}
	c := must(sp.Open(w.context(), sp.Options{Config: w.cfg, Now: w.Now}))(t)
	defer c.Close()
	l := must(c.Listen(w.context()))(t)
	if err := c.Serve(w.context(), l); err == nil || !strings.Contains(err.Error(), "expected the certificate's key") {
		t.Errorf("another key: %v", err)
	}
}

// ocsp asks for the status of a certificate.
func (i *instance) ocsp(c *x509.Certificate) *ocsp.Response {
	i.w.Helper()
	all := i.cacerts("group-a")
	k := slices.IndexFunc(all, func(ca *x509.Certificate) bool { return bytes.Equal(ca.SubjectKeyId, c.AuthorityKeyId) })
	if k < 0 {
		i.w.Fatal("cacerts has no issuer of the certificate")
	}
	body := must(ocsp.CreateRequest(c, all[k], nil))(i.w)
	r := must(http.NewRequestWithContext(i.w.context(), http.MethodPost, "http://"+i.status+"/ocsp", bytes.NewReader(body)))(i.w)
	r.Header.Set("Content-Type", "application/ocsp-request")
	res := must(http.DefaultClient.Do(r))(i.w)
	defer res.Body.Close()
	return must(ocsp.ParseResponseForCert(must(io.ReadAll(res.Body))(i.w), c, all[k]))(i.w)
}

// The server's own key on the token: a key that another tool made, by its label.
func TestServerKeyOnAToken(t *testing.T) {
	t.Parallel()
	h := newHSM(t)
	w := newWorld(t, storetest.SQLite(t))
	chip := must(pkichip.Start(t.Context(), pkichip.Options{Binary: h.Chip, Module: h.Module, TokenLabel: h.Label, Env: h.Env, PIN: pkichip.PINSource{File: h.PINFile}}))(t)
	key := must(chip.GenerateKey(t.Context(), "the server's key; made by hand", pkichip.P384))(t)
	dir := filepath.Dir(w.configFile)
	block, _ := pem.Decode(must(os.ReadFile(filepath.Join(dir, "web-root.key")))(t))
	rootKey := must(x509.ParsePKCS8PrivateKey(block.Bytes))(t)
	root := must(certs.ParseCertificates(must(os.ReadFile(filepath.Join(dir, "web-root.pem")))(t)))(t)[0]
	old := must(certs.ParseCertificates(must(os.ReadFile(filepath.Join(dir, "web.pem")))(t)))(t)[0]
	der := must(x509.CreateCertificate(rand.Reader, old, root, key.Signer.Public(), rootKey))(t)
	if err := errors.Join(chip.Close(), os.WriteFile(filepath.Join(dir, "web.pem"), certs.EncodePEM(must(x509.ParseCertificate(der))(t)), 0o600)); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(must(os.ReadFile(w.configFile))(t)), `key = "web.key"`, `key = "pkcs11:object=the%20server%27s%20key%3B%20made%20by%20hand"`, 1)
	text += fmt.Sprintf("\n[token]\nmodule = %q\nlabel = %q\npin_file = %q\nchip = %q\n", h.Module, h.Label, h.PINFile, h.Chip)
	cfg := must(sp.ParseConfig(w.configFile, []byte(text)))(t)
	cfg.Database, cfg.Token.Env = w.cfg.Database, h.Env
	w.cfg = cfg
	i := w.start()
	i.apply()
	if doc, _ := i.policy(w.devices[devA], ""); connections(doc) != "a-b a-c" {
		t.Errorf("connections %q", connections(doc))
	}
}

// Init leaves no keys on the token when it fails.
func TestInitFailsOnAToken(t *testing.T) {
	t.Parallel()
	h := newHSM(t)
	dir := filepath.Join(t.TempDir(), "centre")
	ca := registrytest.DeviceCA(t)
	err := sp.Init(dir, sp.InitOptions{
		Issuer: "sp.example", DeviceAnchors: certs.EncodePEM(ca.Anchor()), Token: &h.Token,
		Services: map[string]string{"group-a": "group-a.example", "group-b": "no domain"},
	}, registrytest.At, rand.Reader)
	if err == nil || !strings.Contains(err.Error(), "domain of service group-b") {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Error("a folder was left behind")
	}
	if k := h.keys(); len(k) != 0 {
		t.Errorf("keys were left behind: %q", k)
	}
}
