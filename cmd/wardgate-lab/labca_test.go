package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/policy"
)

// The authority from the command line, with its products judged by OpenSSL too.
func TestLabCA(t *testing.T) {
	dir := t.TempDir()
	path := func(n string) string { return filepath.Join(dir, n) }
	run := func(args ...string) (string, error) {
		cmd := labCACommand()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(append([]string{"--dir", path("ca")}, args...))
		err := cmd.Execute()
		return out.String(), err
	}
	ok := func(args ...string) string {
		t.Helper()
		out, err := run(args...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return out
	}
	refused := func(want string, args ...string) {
		t.Helper()
		if out, err := run(args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, expected %q\n%s", args, err, want, out)
		}
	}
	ok("init", "--service", "group-a")
	ok("init", "--service", "group-b") // added later
	refused("already", "init", "--service", "group-b")
	refused("expected letters", "init", "--service", "../x")

	// A device with its key in a file, and a service for it: once from files, once by request.
	ok("issue-device", "--new-key", path("d.key"), "--name", "d.devices.example", "--out", path("d.pem"))
	ok("issue-service", "--service", "group-a", "--new-key", path("s.key"), "--name", "d.group-a.example", "--device-cert", path("d.pem"), "--out", path("s.pem"))
	refused("outside the authority's domain", "issue-device", "--new-key", path("x.key"), "--name", "d.example.com")
	refused("expected the device certificate", "issue-service", "--service", "group-a", "--new-key", path("x.key"), "--name", "d.group-a.example")
	refused("one of --csr and --new-key", "issue-device")
	refused("lab-ca init", "issue-service", "--service", "group-c", "--new-key", path("x.key"), "--name", "x")

	dk, err := labca.ReadKey(path("d.key"))
	if err != nil {
		t.Fatal(err)
	}
	device, err := readCertificates(path("d.pem"))
	if err != nil {
		t.Fatal(err)
	}
	sk, err := labca.NewKey(labca.P384)
	if err != nil {
		t.Fatal(err)
	}
	request := func(name string, edit func(*certs.CSR)) string {
		t.Helper()
		proof, err := certs.NewRelatedCertRequest(rand.Reader, device[0], dk, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		c := certs.CSR{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, Related: proof}
		if edit != nil {
			edit(&c)
		}
		der, err := c.Create(rand.Reader, sk)
		if err != nil {
			t.Fatal(err)
		}
		p := path(fmt.Sprintf("%s.csr", name))
		if err := os.WriteFile(p, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	ok("issue-service", "--service", "group-b", "--csr", request("d.group-b.example", nil), "--out", path("b.pem"))
	list, err := readCertificates(path("b.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := certs.CheckRelated(list[0], device[0].Raw); err != nil {
		t.Error(err)
	}
	refused("relatedCertRequest", "issue-service", "--service", "group-b", "--csr", request("d.group-b.example", func(c *certs.CSR) { c.Related = nil }))
	old := request("d.group-b.example", func(c *certs.CSR) {
		c.Related, err = certs.NewRelatedCertRequest(rand.Reader, device[0], dk, time.Now().Add(-48*time.Hour))
	})
	refused("made within", "issue-service", "--service", "group-b", "--csr", old)

	// OpenSSL agrees about chain, EKU and path length.
	if _, err := exec.LookPath("openssl"); err == nil {
		out, err := exec.Command("openssl", "verify", "-x509_strict", "-CAfile", path("ca/services/group-a/root.pem"), "-untrusted", path("ca/services/group-a/ca.pem"), path("s.pem")).CombinedOutput()
		if err != nil {
			t.Errorf("openssl verify: %v\n%s", err, out)
		}
	}

	// Revocation: on the list, and no service certificate for a revoked device.
	ok("revoke", "--ca", "device", "--cert", path("d.pem"), "--reason", "1")
	refused("revoked already", "revoke", "--ca", "device", "--cert", path("d.pem"))
	refused("no certificate with this serial", "revoke", "--ca", "device", "--serial", "ab12")
	refused("hexadecimal", "revoke", "--ca", "device", "--serial", "xyz")
	refused("--ca", "crl")
	if out := ok("crl", "--ca", "device", "--out", path("device.crl")); !strings.Contains(out, "1 revoked") {
		t.Error(out)
	}
	if out := ok("list", "--ca", "device"); !strings.Contains(out, "d.devices.example") || !strings.Contains(out, "revoked") {
		t.Error(out)
	}
	refused("revoked", "issue-service", "--service", "group-b", "--csr", request("d.group-b.example", nil))

	for name, mode := range map[string]os.FileMode{"d.key": 0o600, "ca/device/root.key": 0o600, "ca/device/ca.key": 0o600, "ca/device": 0o700} {
		if fi, err := os.Stat(path(name)); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, %v", name, fi.Mode(), err)
		}
	}

	// A policy, signed and accepted by the device that it is for.
	ok("issue-signer", "--new-key", path("p.key"), "--name", "signer.policy.example", "--out", path("p.pem"))
	doc := fmt.Sprintf(`{"format":1,"issuer":"sp.example","device":{"id":"d.devices.example","fingerprint":"sha256:%x"},"serial":7,
		"not_before":%q,"not_after":%q,"suites":{"ike":["aes256gcm16-prfsha384-x25519"],"esp":["aes256gcm16"]},
		"lifetimes":{"ike":"8h","child":"1h","liveness":"30s"},
		"zones":[{"name":"hsz","level":"HSZ","prefixes":["10.1.1.0/24"],"interfaces":["lan0"]}],
		"device_anchors":[],"device_crls":[],"services":[],"peers":[],"connections":[],"tests":[]}`,
		sha256.Sum256(device[0].Raw), time.Now().Add(-time.Minute).UTC().Format(time.RFC3339), time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	if err := os.WriteFile(path("policy.json"), []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run("sign-policy", "--key", path("p.key"), "--cert", path("p.pem"), "--in", path("policy.json"), "--out", path("policy.jws"))
	if err != nil {
		t.Fatalf("sign-policy: %v\n%s", err, out)
	}
	jws, err := os.ReadFile(path("policy.jws"))
	if err != nil {
		t.Fatal(err)
	}
	anchors, err := readCertificates(path("ca/policy/root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := policy.Verify(jws, policy.VerifyOptions{Anchors: anchors, DeviceCertDER: device[0].Raw, Now: time.Now()}); err != nil {
		t.Error(err)
	}
	refused("is not the key of", "sign-policy", "--key", path("d.key"), "--cert", path("p.pem"), "--in", path("policy.json"))
	if _, err := run("sign-policy"); !errors.Is(err, errUsage) {
		t.Errorf("sign-policy without arguments: %v", err)
	}
}
