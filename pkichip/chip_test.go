package pkichip_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/internal/testvectors"
	"wardgate/pkichip"
)

const (
	userPIN = "482910"
	soPIN   = "99887766"
	label   = "router"
)

var modules = []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib64/libsofthsm2.so"}

// chipBinary builds wardgate-chip once for all tests; with the race detector where this is.
var chipBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "wardgate-chip-test-")
	if err != nil {
		return "", err
	}
	buildDir = dir
	out := filepath.Join(dir, "wardgate-chip")
	args := []string{"build", "-o", out}
	if raceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./cmd/wardgate-chip")...)
	cmd.Dir = testvectors.Root()
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building wardgate-chip: %w\n%s", err, b)
	}
	return out, nil
})

var buildDir string

func TestMain(m *testing.M) {
	code := m.Run()
	if buildDir != "" {
		_ = os.RemoveAll(buildDir)
	}
	os.Exit(code)
}

// bench is a SoftHSM of the test's own.
type bench struct {
	tb     testing.TB
	dir    string
	module string
	opt    pkichip.Options
	lab    *labca.Lab

	deviceDER []byte // the certificate in layer 1
}

func newBench(tb testing.TB) *bench {
	tb.Helper()
	b := &bench{tb: tb, dir: tb.TempDir()}
	for _, m := range modules {
		if _, err := os.Stat(m); err == nil {
			b.module = m
			break
		}
	}
	if b.module == "" {
		if os.Getenv("CI") == "true" {
			tb.Fatal("SoftHSM is not installed")
		}
		tb.Skip("SoftHSM is not installed")
	}
	bin, err := chipBinary()
	if err != nil {
		tb.Fatal(err)
	}
	must(tb, os.Mkdir(b.tokens(), 0o700))
	conf := filepath.Join(b.dir, "softhsm2.conf")
	must(tb, os.WriteFile(conf, []byte("directories.tokendir = "+b.tokens()+"\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"), 0o600))
	b.setPIN(userPIN)
	b.opt = pkichip.Options{
		Binary: bin, Module: b.module, TokenLabel: label, Env: []string{"SOFTHSM2_CONF=" + conf},
		PIN:  pkichip.PINSource{File: b.pinFile()},
		Poll: 20 * time.Millisecond, PingInterval: 30 * time.Millisecond, PingTimeout: 2 * time.Second,
		MinBackoff: 10 * time.Millisecond, MaxBackoff: 100 * time.Millisecond,
		Log: func(e pkichip.Event) {
			if e.Kind == pkichip.EventModuleOutput {
				fmt.Fprintln(os.Stderr, "wardgate-chip prints:", e.Text)
			}
			if strings.Contains(e.Text, userPIN) || strings.Contains(e.Text, soPIN) {
				tb.Errorf("an event has a PIN in it: %s", e.Text)
			}
		},
	}
	if raceEnabled {
		b.opt.PingTimeout = 5 * time.Second
	}
	return b
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func (b *bench) tokens() string  { return filepath.Join(b.dir, "tokens") }
func (b *bench) pinFile() string { return filepath.Join(b.dir, "pin") }

func (b *bench) setPIN(pin string) {
	b.tb.Helper()
	must(b.tb, os.WriteFile(b.pinFile(), []byte(pin+"\n"), 0o600))
}

func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	b.tb.Cleanup(cancel)
	return ctx
}

// start starts a chip process with changed options.
func (b *bench) start(edit func(*pkichip.Options)) *pkichip.Chip {
	b.tb.Helper()
	opt := b.opt
	if edit != nil {
		edit(&opt)
	}
	c, err := pkichip.Start(b.ctx(), opt)
	must(b.tb, err)
	b.tb.Cleanup(func() { must(b.tb, c.Close()) })
	return c
}

// initToken initialises the token as the command line does.
func (b *bench) initToken() {
	b.tb.Helper()
	c := b.start(func(o *pkichip.Options) {
		o.TokenLabel = ""
		o.PIN = pkichip.PINSource{Value: []byte(userPIN), SOPIN: []byte(soPIN)}
	})
	info, err := c.InitToken(b.ctx(), label, false)
	must(b.tb, err)
	if info.Label != label || !info.Initialized {
		b.tb.Fatalf("token: %+v", info)
	}
	if _, err := c.InitToken(b.ctx(), label, false); !errors.Is(err, pkichip.ErrExists) {
		b.tb.Fatalf("initialised twice: %v", err)
	}
	must(b.tb, c.Close())
}

// ready returns a running chip with a device certificate.
func (b *bench) ready(kind pkichip.KeyType) *pkichip.Chip {
	b.tb.Helper()
	b.initToken()
	c := b.start(nil)
	var err error
	b.lab, err = labca.NewLab("", labca.P256, time.Now().Add(-time.Hour), "group-a", "group-b")
	must(b.tb, err)
	b.device(c, kind)
	return c
}

func (b *bench) device(c *pkichip.Chip, kind pkichip.KeyType) *x509.Certificate {
	b.tb.Helper()
	key, err := c.Generate(b.ctx(), pkichip.LayerDevice, "", kind)
	must(b.tb, err)
	csr, err := c.CSR(b.ctx(), key, "a.devices.example", time.Now())
	must(b.tb, err)
	cert, err := b.lab.Device.IssueFromCSR(labca.FromCSR{CSR: csr, At: time.Now().Add(-time.Minute)})
	must(b.tb, err)
	must(b.tb, c.Store(b.ctx(), b.storeDevice(cert)))
	b.deviceDER = cert.Raw
	return cert
}

func (b *bench) storeDevice(cert *x509.Certificate) pkichip.Store {
	return pkichip.Store{
		Layer: pkichip.LayerDevice, Cert: cert, Chain: b.lab.Device.Intermediates(), Anchors: []*x509.Certificate{b.lab.Device.Anchor()},
	}
}

func (b *bench) storeService(name string, cert *x509.Certificate) pkichip.Store {
	a := b.lab.Services[name]
	return pkichip.Store{
		Layer: pkichip.LayerService, Service: name, Cert: cert, Chain: a.Intermediates(), Anchors: []*x509.Certificate{a.Anchor()},
	}
}

// request makes a service key and its request, and has the certificate issued.
func (b *bench) request(c *pkichip.Chip, service string, kind pkichip.KeyType) *x509.Certificate {
	b.tb.Helper()
	key, err := c.Generate(b.ctx(), pkichip.LayerService, service, kind)
	must(b.tb, err)
	csr, err := c.CSR(b.ctx(), key, "a."+service+".example", time.Now())
	must(b.tb, err)
	cert, err := b.lab.Services[service].IssueFromCSR(labca.FromCSR{
		CSR: csr, At: time.Now().Add(-time.Minute),
		DeviceAnchors: []*x509.Certificate{b.lab.Device.Anchor()}, DeviceCA: b.lab.Device.Intermediates(),
	})
	must(b.tb, err)
	return cert
}

// waitEvent waits for an event of a kind.
func waitEvent(t *testing.T, c *pkichip.Chip, kind pkichip.EventKind) pkichip.Event {
	t.Helper()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for {
		select {
		case e, ok := <-c.Events():
			if !ok {
				t.Fatalf("no event %s before the end", kind)
			}
			if e.Kind == kind {
				return e
			}
		case <-limit.C:
			t.Fatalf("no event %s within 30 s; status %+v", kind, c.Status())
		}
	}
}

// checkSignature signs with every scheme that the key has and verifies.
func checkSignature(s crypto.Signer) error {
	msg := []byte("a message")
	d256, d384, d512 := sha256.Sum256(msg), sha512.Sum384(msg), sha512.Sum512(msg)
	digests := map[crypto.Hash][]byte{crypto.SHA256: d256[:], crypto.SHA384: d384[:], crypto.SHA512: d512[:]}
	switch pub := s.Public().(type) {
	case *ecdsa.PublicKey:
		for h, d := range digests {
			sig, err := s.Sign(rand.Reader, d, h)
			if err != nil {
				return fmt.Errorf("ECDSA %v: %w", h, err)
			}
			if !ecdsa.VerifyASN1(pub, d, sig) {
				return fmt.Errorf("ECDSA with %v does not verify", h)
			}
		}
	case *rsa.PublicKey:
		for h, d := range digests {
			sig, err := s.Sign(rand.Reader, d, h)
			if err != nil {
				return fmt.Errorf("PKCS #1 v1.5 %v: %w", h, err)
			}
			if err := rsa.VerifyPKCS1v15(pub, h, d, sig); err != nil {
				return fmt.Errorf("PKCS #1 v1.5 with %v: %w", h, err)
			}
			for _, salt := range []int{rsa.PSSSaltLengthEqualsHash, rsa.PSSSaltLengthAuto, 0, 20} {
				o := &rsa.PSSOptions{SaltLength: salt, Hash: h}
				sig, err := s.Sign(rand.Reader, d, o)
				if err != nil {
					return fmt.Errorf("PSS %v, salt %d: %w", h, salt, err)
				}
				check := o
				if salt == 0 { // crypto/rsa takes 0 for "any"
					check = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: h}
				}
				if err := rsa.VerifyPSS(pub, h, d, sig, check); err != nil {
					return fmt.Errorf("PSS with %v, salt %d: %w", h, salt, err)
				}
			}
		}
	case ed25519.PublicKey:
		for _, m := range [][]byte{nil, msg, make([]byte, 10000)} {
			sig, err := s.Sign(rand.Reader, m, crypto.Hash(0))
			if err != nil {
				return fmt.Errorf("Ed25519: %w", err)
			}
			if !ed25519.Verify(pub, m, sig) {
				return errors.New("Ed25519 does not verify")
			}
		}
	default:
		return fmt.Errorf("key of type %T", pub)
	}
	return nil
}

// The whole life: initialise, request, issue, import, use; renewed; a second service; deleted.
func TestLife(t *testing.T) {
	for _, kind := range []pkichip.KeyType{pkichip.P256, pkichip.P384, pkichip.RSA2048, pkichip.RSA3072, pkichip.Ed25519} {
		t.Run(string(kind), func(t *testing.T) {
			b := newBench(t)
			c := b.ready(kind)
			first := b.request(c, "group-a", kind)
			must(t, c.Store(b.ctx(), b.storeService("group-a", first)))
			other := b.request(c, "group-b", pkichip.P256)
			must(t, c.Store(b.ctx(), b.storeService("group-b", other)))

			creds, err := c.Credentials(b.ctx())
			must(t, err)
			if len(creds) != 3 || creds[0].Layer != pkichip.LayerDevice || creds[1].Service != "group-a" || creds[2].Service != "group-b" {
				t.Fatalf("credentials: %+v", creds)
			}
			for _, x := range creds {
				must(t, checkSignature(x.Signer))
				if len(x.Chain) != 1 || !certs.SamePublicKey(x.Cert.PublicKey, x.Signer.Public()) {
					t.Errorf("%s: %d intermediates", x.Service, len(x.Chain))
				}
			}
			_, err = certs.VerifyChain(certs.Options{
				Leaf: creds[1].Cert.Raw, Intermediates: labca.DER(creds[1].Chain), Anchors: []*x509.Certificate{b.lab.Services["group-a"].Anchor()},
				EKU: certs.EKUIPsecIKE, At: time.Now(), RelatedTo: creds[0].Cert.Raw,
			})
			must(t, err)

			// Renewal: the old key serves until the new certificate is there, then it is gone.
			second := b.request(c, "group-a", pkichip.P384)
			creds, err = c.Credentials(b.ctx())
			must(t, err)
			if !creds[1].Cert.Equal(first) {
				t.Error("the old certificate does not serve any more")
			}
			must(t, checkSignature(creds[1].Signer))
			must(t, c.Store(b.ctx(), b.storeService("group-a", second)))
			if err := checkSignature(creds[1].Signer); !errors.Is(err, pkichip.ErrNoKey) {
				t.Errorf("the old key still signs: %v", err)
			}
			all, err := c.List(b.ctx())
			must(t, err)
			if len(all) != 3 || !all[1].Cert.Equal(second) {
				t.Errorf("after the renewal: %d credentials", len(all))
			}

			// A request that is given up: the next one takes its place.
			b.request(c, "group-a", pkichip.P256)
			b.request(c, "group-a", pkichip.P256)
			all, err = c.List(b.ctx())
			must(t, err)
			if len(all) != 4 {
				t.Errorf("%d credentials, expected 3 and one that waits", len(all))
			}

			must(t, c.Delete(b.ctx(), "group-a"))
			if err := c.Delete(b.ctx(), "group-a"); !errors.Is(err, pkichip.ErrNoKey) {
				t.Errorf("deleted twice: %v", err)
			}
			all, err = c.List(b.ctx())
			must(t, err)
			if len(all) != 2 || all[1].Service != "group-b" {
				t.Errorf("after deleting: %+v", all)
			}
		})
	}
}

// Keys on the token cannot be read out: pkcs11-tool, a program we did not write, says so.
func TestKeysStayOnTheToken(t *testing.T) {
	tool, err := exec.LookPath("pkcs11-tool")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("pkcs11-tool (opensc) is not installed")
		}
		t.Skip("pkcs11-tool (opensc) is not installed")
	}
	b := newBench(t)
	c := b.ready(pkichip.P256)
	must(t, c.Store(b.ctx(), b.storeService("group-a", b.request(c, "group-a", pkichip.RSA2048))))
	cmd := exec.Command(tool, "--module", b.module, "--token-label", label, "--login", "--pin", userPIN, "--list-objects")
	cmd.Env = append(os.Environ(), b.opt.Env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	for what, n := range map[string]int{
		"Private Key Object": 2, "never extractable": 2, "Access:     sensitive, always sensitive, never extractable, local": 2,
		"label:      wardgate-device\n": 3, "label:      wardgate-service:group-a\n": 3, "Certificate Object": 4,
	} {
		if got := strings.Count(text, what); got != n {
			t.Errorf("%d × %q, expected %d", got, what, n)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestRefusals(t *testing.T) {
	b := newBench(t)
	b.initToken()
	c := b.start(nil)
	var err error
	b.lab, err = labca.NewLab("", labca.P256, time.Now().Add(-10*24*time.Hour), "group-a", "group-b")
	must(t, err)
	a := b.lab.Services["group-a"]

	refuse := func(name string, err error, kind error, class string) {
		t.Helper()
		e, ok := errors.AsType[*pkichip.Error](err)
		if !ok || !errors.Is(err, kind) || e.Class != class || e.Text == "" || e.Do == "" {
			t.Errorf("%s: got %v (class %q), expected %v (class %q)", name, err, e, kind, class)
		}
	}
	// Layer 2 before layer 1.
	_, err = c.Generate(b.ctx(), pkichip.LayerService, "group-a", pkichip.P256)
	refuse("service key without a device", err, pkichip.ErrNoDevice, "")

	// A device key without its certificate is not enough.
	key, err := c.Generate(b.ctx(), pkichip.LayerDevice, "", pkichip.P256)
	must(t, err)
	_, err = c.Generate(b.ctx(), pkichip.LayerService, "group-a", pkichip.P256)
	refuse("service key without a device certificate", err, pkichip.ErrNoDevice, "")

	// A device certificate for another key.
	stranger, err := labca.NewKey(labca.P256)
	must(t, err)
	foreign, err := b.lab.Device.Issue(labca.Request{Public: stranger.Public(), DNSNames: []string{"x.devices.example"}, At: time.Now().Add(-time.Hour)})
	must(t, err)
	refuse("device certificate for another key", c.Store(b.ctx(), b.storeDevice(foreign)), pkichip.ErrKeyNotOnToken, "")

	issue := func(au *labca.Authority, r labca.Request) *x509.Certificate {
		t.Helper()
		if r.DNSNames == nil {
			r.DNSNames = []string{"a." + au.Name() + ".example"}
		}
		if r.At.IsZero() {
			r.At = time.Now().Add(-time.Hour)
		}
		x, err := au.Issue(r)
		must(t, err)
		return x
	}
	device := issue(b.lab.Device, labca.Request{Public: key.Public, DNSNames: []string{"a.devices.example"}})
	wrongCA := b.storeDevice(device)
	wrongCA.Anchors = []*x509.Certificate{a.Anchor()}
	refuse("device certificate by an unknown CA", c.Store(b.ctx(), wrongCA), pkichip.ErrUntrusted, "unknown-ca")
	must(t, c.Store(b.ctx(), b.storeDevice(device)))
	must(t, c.Store(b.ctx(), b.storeDevice(device))) // again: nothing to do

	// Layer 1 is written once.
	_, err = c.Generate(b.ctx(), pkichip.LayerDevice, "", pkichip.P256)
	refuse("second device key", err, pkichip.ErrExists, "")
	renewed := issue(b.lab.Device, labca.Request{Public: key.Public, DNSNames: []string{"a.devices.example"}})
	refuse("second device certificate", c.Store(b.ctx(), b.storeDevice(renewed)), pkichip.ErrExists, "")
	replace := b.storeDevice(renewed)
	replace.Replace = true
	must(t, c.Store(b.ctx(), replace))
	device = renewed

	// Layer 2.
	svc, err := c.Generate(b.ctx(), pkichip.LayerService, "group-a", pkichip.P256)
	must(t, err)
	good := labca.Request{Public: svc.Public, Device: device.Raw}
	with := func(edit func(*labca.Request)) *x509.Certificate {
		r := good
		edit(&r)
		return issue(a, r)
	}
	cases := []struct {
		name  string
		store pkichip.Store
		kind  error
		class string
	}{
		{"key not on the token", b.storeService("group-a", with(func(r *labca.Request) { r.Public = stranger.Public() })), pkichip.ErrKeyNotOnToken, ""},
		{"the device's key", b.storeService("group-a", with(func(r *labca.Request) { r.Public = key.Public })), pkichip.ErrKeyNotOnToken, ""},
		{"another service's CA", b.storeService("group-a", issue(b.lab.Services["group-b"], good)), pkichip.ErrUntrusted, "unknown-ca"},
		{"bound to another device", b.storeService("group-a", with(func(r *labca.Request) { r.Device = foreign.Raw })), pkichip.ErrNotBound, "not-bound-to-device"},
		{"not bound", b.storeService("group-a", with(func(r *labca.Request) { r.Unbound = true })), pkichip.ErrNotBound, "not-bound-to-device"},
		{"expired", b.storeService("group-a", with(func(r *labca.Request) { r.At = time.Now().Add(-8 * 24 * time.Hour) })), pkichip.ErrUntrusted, "expired"},
		{"not yet valid", b.storeService("group-a", with(func(r *labca.Request) { r.At = time.Now().Add(time.Hour) })), pkichip.ErrUntrusted, "not-yet-valid"},
		{"wrong purpose", b.storeService("group-a", with(func(r *labca.Request) { r.NoEKU = true })), pkichip.ErrUntrusted, "wrong-eku"},
		{"key of another service", b.storeService("group-b", issue(b.lab.Services["group-b"], good)), pkichip.ErrKeyNotOnToken, ""},
	}
	noAnchors := b.storeService("group-a", issue(a, good))
	noAnchors.Anchors = nil
	cases = append(cases, struct {
		name  string
		store pkichip.Store
		kind  error
		class string
	}{"no anchors", noAnchors, pkichip.ErrUntrusted, "anchors-missing"})
	revoked := b.storeService("group-a", issue(a, good))
	must(t, a.Revoke(revoked.Cert.SerialNumber, time.Now().Add(-time.Minute), 1))
	revoked.CRLs, err = a.CRLs(time.Now().Add(-time.Second), time.Hour)
	must(t, err)
	cases = append(cases, struct {
		name  string
		store pkichip.Store
		kind  error
		class string
	}{"revoked", revoked, pkichip.ErrUntrusted, "revoked"})
	for _, x := range cases {
		refuse(x.name, c.Store(b.ctx(), x.store), x.kind, x.class)
	}
	creds, err := c.Credentials(b.ctx())
	must(t, err)
	if len(creds) != 1 {
		t.Errorf("something that was refused is on the token: %+v", creds)
	}
	for _, bad := range []string{"", "a/b", "..", "-x", "a b", strings.Repeat("x", 49), "ä"} {
		if _, err := c.Generate(b.ctx(), pkichip.LayerService, bad, pkichip.P256); !errors.Is(err, pkichip.ErrBadRequest) {
			t.Errorf("service %q: %v", bad, err)
		}
	}
	if _, err := c.Generate(b.ctx(), pkichip.LayerService, "group-a", "dsa"); !errors.Is(err, pkichip.ErrBadRequest) {
		t.Errorf("key type dsa: %v", err)
	}
	must(t, c.Store(b.ctx(), b.storeService("group-a", issue(a, good))))
}

func TestSignerRefusesWhatItCannotDo(t *testing.T) {
	b := newBench(t)
	c := b.ready(pkichip.P256)
	d, err := c.Device(b.ctx())
	must(t, err)
	sum := sha256.Sum256(nil)
	for name, f := range map[string]func() ([]byte, error){
		"SHA-1":            func() ([]byte, error) { return d.Signer.Sign(nil, make([]byte, 20), crypto.SHA1) },
		"wrong length":     func() ([]byte, error) { return d.Signer.Sign(nil, sum[:31], crypto.SHA256) },
		"message, no hash": func() ([]byte, error) { return d.Signer.Sign(nil, sum[:], crypto.Hash(0)) },
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s was signed", name)
		}
	}
}

func TestConcurrentSigning(t *testing.T) {
	b := newBench(t)
	c := b.ready(pkichip.P256)
	must(t, c.Store(b.ctx(), b.storeService("group-a", b.request(c, "group-a", pkichip.RSA2048))))
	creds, err := c.Credentials(b.ctx())
	must(t, err)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range 10 {
				if err := checkSignature(creds[i%2].Signer); err != nil {
					t.Error(err)
					return
				}
				if i%5 == 0 {
					if _, err := c.Credentials(b.ctx()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkSignP256(b *testing.B) {
	x := newBench(b)
	c := x.ready(pkichip.P256)
	d, err := c.Device(x.ctx())
	must(b, err)
	sum := sha256.Sum256([]byte("x"))
	b.ResetTimer()
	for b.Loop() {
		if _, err := d.Signer.Sign(nil, sum[:], crypto.SHA256); err != nil {
			b.Fatal(err)
		}
	}
}
