package enroltest

import (
	"context"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"wardgate/internal/labca"
	"wardgate/internal/testvectors"
	"wardgate/pkichip"
	"wardgate/router/centre"
	"wardgate/sp/store/storetest"
)

var softHSM = []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib64/libsofthsm2.so"}

var chipDir string

// chipBinary builds wardgate-chip once.
var chipBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "wardgate-enrol-test-")
	if err != nil {
		return "", err
	}
	chipDir = dir
	out := filepath.Join(dir, "wardgate-chip")
	cmd := exec.Command("go", "build", "-o", out, "./cmd/wardgate-chip")
	cmd.Dir = testvectors.Root()
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building wardgate-chip: %w\n%s", err, b)
	}
	return out, nil
})

// chipToken shows a chip process to the agent, as the router does.
type chipToken struct{ *pkichip.Chip }

func keyOf(c pkichip.Credential) centre.Key {
	return centre.Key{Service: c.Service, ID: c.ID, Signer: c.Signer, Cert: c.Cert, Chain: c.Chain}
}

// Device implements centre.Token.
func (t chipToken) Device(ctx context.Context) (centre.Key, error) {
	c, err := t.Chip.Device(ctx)
	return keyOf(c), err
}

// Services implements centre.Token.
func (t chipToken) Services(ctx context.Context) ([]centre.Key, error) {
	all, err := t.List(ctx)
	var out []centre.Key
	for _, c := range all {
		if c.Layer == pkichip.LayerService {
			out = append(out, keyOf(c))
		}
	}
	return out, err
}

// Generate implements centre.Token.
func (t chipToken) Generate(ctx context.Context, service string, curve elliptic.Curve) (centre.Key, error) {
	kind := pkichip.P256
	if curve == elliptic.P384() {
		kind = pkichip.P384
	}
	c, err := t.Chip.Generate(ctx, pkichip.LayerService, service, kind)
	return keyOf(c), err
}

// Store implements centre.Token.
func (t chipToken) Store(ctx context.Context, service string, cert *x509.Certificate, chain, anchors []*x509.Certificate) error {
	return t.Chip.Store(ctx, pkichip.Store{Layer: pkichip.LayerService, Service: service, Cert: cert, Chain: chain, Anchors: anchors})
}

// newChip makes a SoftHSM token of the test's own and starts its chip process.
func newChip(t *testing.T) *pkichip.Chip {
	t.Helper()
	i := slices.IndexFunc(softHSM, func(m string) bool { _, err := os.Stat(m); return err == nil })
	if i < 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("SoftHSM is not installed")
		}
		t.Skip("SoftHSM is not installed")
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	conf := write("softhsm2.conf", "directories.tokendir = "+filepath.Join(dir, "tokens")+"\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n")
	opt := pkichip.Options{Binary: must(chipBinary())(t), Module: softHSM[i], Env: []string{"SOFTHSM2_CONF=" + conf}, PingTimeout: 10 * time.Second}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	setup := opt
	setup.PIN = pkichip.PINSource{Value: []byte("482910"), SOPIN: []byte("99887766")}
	c := must(pkichip.Start(ctx, setup))(t)
	must(c.InitToken(ctx, "router", false))(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	opt.TokenLabel, opt.PIN = "router", pkichip.PINSource{File: write("pin", "482910\n")}
	c = must(pkichip.Start(ctx, opt))(t)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// With a real token behind a chip process: a device joins, is moved, loses an answer, and comes to the same
// end as with the token that is made for the other tests.
func TestRealToken(t *testing.T) {
	t.Parallel()
	chip := newChip(t)
	// The chip process judges certificates by the machine's clock.
	w := newWorld(t, storetest.SQLite(t), time.Now().Truncate(time.Second), map[string][]string{devA: {"group-a", "group-b"}})
	d := w.newDevice(devA)
	key := must(chip.Generate(w.context(), pkichip.LayerDevice, "", pkichip.P256))(t)
	d.cert = must(w.ca.Issue(labca.Request{Public: key.Public, DNSNames: []string{devA}, At: w.Now().Add(-36 * time.Hour)}))(t)
	if err := chip.Store(w.context(), pkichip.Store{Layer: pkichip.LayerDevice, Cert: d.cert, Chain: w.ca.Intermediates(), Anchors: []*x509.Certificate{w.ca.Anchor()}}); err != nil {
		t.Fatal(err)
	}
	d.key, d.soft, d.token = nil, nil, chipToken{chip}
	d.register()
	w.start()
	w.apply()
	if err := d.join(25); err == nil { // in the middle of the first enrolment
		t.Fatal("the power did not fail")
	}
	if err := d.join(0); err != nil {
		t.Fatal(err)
	}
	d.has("group-a", "group-b")
	before := d.held("group-a").Cert
	w.leave(devA, "group-a")
	w.join(devA, "group-c")
	w.apply()
	if err := d.join(0); err != nil {
		t.Fatal(err)
	}
	w.join(devA, "group-a")
	w.apply()
	if err := d.join(0); err != nil {
		t.Fatal(err)
	}
	d.has("group-a", "group-b", "group-c")
	if d.held("group-a").Cert.Equal(before) {
		t.Error("the revoked certificate is in use again")
	}
}
