package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/internal/testvectors"
)

// tokenBench runs `wardgate token …` against a SoftHSM of its own.
type tokenBench struct {
	t   *testing.T
	dir string
}

func newTokenBench(t *testing.T) *tokenBench {
	t.Helper()
	const module = "/usr/lib/softhsm/libsofthsm2.so"
	if _, err := os.Stat(module); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("SoftHSM is not installed")
		}
		t.Skip("SoftHSM is not installed")
	}
	b := &tokenBench{t, t.TempDir()}
	chip := b.path("wardgate-chip")
	build := exec.Command("go", "build", "-o", chip, "./cmd/wardgate-chip")
	build.Dir = testvectors.Root()
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building wardgate-chip: %v\n%s", err, out)
	}
	b.write("softhsm2.conf", "directories.tokendir = "+b.dir+"/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
	if err := os.Mkdir(b.path("tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", b.path("softhsm2.conf"))
	b.write("pin", "482910\n")
	b.write("so-pin", "99887766\n")
	b.write("wardgated.toml", "[daemon]\nstate_dir = '/x'\n[token]\nmodule = '"+module+"'\nlabel = 'router'\nchip = '"+chip+"'\npin_file = '"+b.path("pin")+"'\n")
	return b
}

func (b *tokenBench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *tokenBench) write(name, text string) string {
	b.t.Helper()
	if err := os.WriteFile(b.path(name), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return b.path(name)
}

// run runs `wardgate token args…`, wants the exit code, and returns what was printed.
func (b *tokenBench) run(exit int, args ...string) string {
	b.t.Helper()
	var out, errs bytes.Buffer
	c := &cli{in: strings.NewReader(""), out: &out, err: &errs, now: time.Now, dial: dial, getenv: os.Getenv}
	got := c.run(append([]string{"token", "--config", b.path("wardgated.toml")}, args...))
	text := out.String() + errs.String()
	if got != exit {
		b.t.Fatalf("wardgate token %s: exit %d, expected %d\n%s", strings.Join(args, " "), got, exit, text)
	}
	if strings.Contains(text, "482910") || strings.Contains(text, "99887766") {
		b.t.Errorf("a PIN was printed: %s", text)
	}
	return text
}

func (b *tokenBench) json(exit int, v any, args ...string) {
	b.t.Helper()
	if err := json.Unmarshal([]byte(b.run(exit, append(args, "--json")...)), v); err != nil {
		b.t.Fatal(err)
	}
}

func (b *tokenBench) has(text string, want ...string) {
	b.t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			b.t.Errorf("%q is not in:\n%s", w, text)
		}
	}
}

// The procedure of TR D.6 in the laboratory: initialise, request, issue, import, check.
func TestTokenLife(t *testing.T) {
	b := newTokenBench(t)
	lab, err := labca.NewLab("", labca.P256, time.Now().Add(-time.Hour), "group-a")
	if err != nil {
		t.Fatal(err)
	}
	a := lab.Services["group-a"]
	devCA := b.write("device-ca.pem", string(certs.EncodePEM(lab.Device.Anchor())))
	svcCA := b.write("group-a-ca.pem", string(certs.EncodePEM(a.Anchor())))

	b.has(b.run(exitToken, "list"), "no token with the label", "wardgate token init")
	b.has(b.run(exitOK, "list", "--tokens"), "(not initialised)")
	b.has(b.run(exitOK, "init", "--new-so-pin-file", b.path("so-pin"), "--new-pin-file", b.path("pin")), "is initialised")
	b.has(b.run(exitRefused, "init", "--new-so-pin-file", b.path("so-pin"), "--new-pin-file", b.path("pin")), "already", "--erase")
	b.has(b.run(exitOK, "list"), "The token is empty")
	b.has(b.run(exitToken, "check"), "no usable device certificate")
	b.has(b.run(exitToken, "csr", "--service", "group-a", "--name", "a.group-a.example"), "layer 1 is empty")

	b.run(exitOK, "csr", "--device", "--name", "a.devices.example", "--out", b.path("device.csr"))
	issue := func(csr string, from *labca.Authority) string {
		t.Helper()
		text, err := os.ReadFile(csr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := from.IssueFromCSR(labca.FromCSR{
			CSR: text, At: time.Now().Add(-time.Minute),
			DeviceAnchors: []*x509.Certificate{lab.Device.Anchor()}, DeviceCA: lab.Device.Intermediates(),
		})
		if err != nil {
			t.Fatal(err)
		}
		return b.write("issued.pem", string(certs.EncodePEM(append([]*x509.Certificate{c}, from.Intermediates()...)...)))
	}
	b.has(b.run(exitOK, "list"), "waits for its certificate")
	pem := issue(b.path("device.csr"), lab.Device)
	b.has(b.run(exitRefused, "import", "--device", "--ca", svcCA, pem), "unknown-ca")
	b.run(exitOK, "import", "--device", "--ca", devCA, pem)

	b.run(exitOK, "csr", "--service", "group-a", "--name", "a.group-a.example", "--key-type", "p384", "--out", b.path("a.csr"))
	pem = issue(b.path("a.csr"), a)
	b.has(b.run(exitOK, "import", "--service", "group-a", "--ca", svcCA, pem), "is on the token")

	var check struct {
		OK          bool
		Label       string
		KeyTypes    []string `json:"key_types"`
		Credentials []tokenEntry
	}
	b.json(exitOK, &check, "check")
	if !check.OK || check.Label != "router" || len(check.Credentials) != 2 || check.Credentials[1].Key != "ECDSA P-384" || check.Credentials[1].State != "ok" || len(check.KeyTypes) < 4 {
		t.Errorf("check: %+v", check)
	}
	b.has(b.run(exitOK, "check"), "device", "service group-a", "a.group-a.example", "ok")

	// Bound to another device: refused, exit 3, in JSON too.
	other, err := labca.NewKey(labca.P256)
	if err != nil {
		t.Fatal(err)
	}
	strange, err := lab.Device.Issue(labca.Request{Public: other.Public(), DNSNames: []string{"b.devices.example"}, At: time.Now().Add(-time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(b.path("a.csr"))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := certs.ParseCSR(text)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := a.Issue(labca.Request{Public: csr.PublicKey, DNSNames: []string{"a.group-a.example"}, At: time.Now().Add(-time.Minute), Device: strange.Raw})
	if err != nil {
		t.Fatal(err)
	}
	badFile := b.write("bad.pem", string(certs.EncodePEM(append([]*x509.Certificate{bad}, a.Intermediates()...)...)))
	var failure struct {
		Error struct{ Code, Title, Hint string }
	}
	b.json(exitRefused, &failure, "import", "--service", "group-a", "--ca", svcCA, badFile)
	if failure.Error.Code != "certificate-not-bound" || failure.Error.Hint == "" {
		t.Errorf("failure: %+v", failure)
	}

	b.run(exitOK, "delete", "--service", "group-a")
	b.has(b.run(exitToken, "delete", "--service", "group-a"), "has nothing for")

	// A wrong PIN: exit 5, and what to do.
	b.write("pin", "000000\n")
	b.has(b.run(exitToken, "check"), "refuses the PIN", "CKR_PIN_INCORRECT", "tries", "hint:")
	if err := os.Chmod(b.path("pin"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.has(b.run(exitToken, "check"), "chmod 600")
	b.has(b.run(exitToken, "check", "--ask-pin"), "terminal")
}

func TestTokenUsage(t *testing.T) {
	b := newTokenBench(t)
	b.run(exitOK, "init", "--new-so-pin-file", b.path("so-pin"), "--new-pin-file", b.path("pin"))
	for _, args := range [][]string{
		{},
		{"nonsense"},
		{"csr"},
		{"csr", "--device"},
		{"csr", "--device", "--service", "x", "--name", "y"},
		{"import"},
		{"import", "--device", "x.pem"},
		{"import", "--ca", "x", "x.pem"},
		{"delete"},
		{"list", "more"},
		{"list", "--module", ""},
		{"csr", "--device", "--name", "a.b", "--key-type", "dsa"},
	} {
		want := exitUsage
		switch strings.Join(args, " ") {
		case "list --module ":
			want = exitOK // the configuration's
		case "csr --device --name a.b --key-type dsa":
			want = exitToken
		}
		b.run(want, args...)
	}
	b.has(b.run(exitFailure, "import", "--device", "--ca", b.path("none"), b.path("none")), "none")
	b.has(b.run(exitToken, "list", "--module", b.path("none.so")), "cannot be loaded")
	b.write("broken.toml", "[token\n")
	b.has(b.run(exitFailure, "--config", b.path("broken.toml"), "list"), "broken.toml")
	b.has(b.run(exitFailure, "--config", b.path("absent.toml"), "list"), "absent.toml")
	b.has(b.run(exitUsage, "init", "--label", "x", "--new-so-pin-file", b.path("wardgated.toml"), "--new-pin-file", b.write("p", "")), "expected")
}
