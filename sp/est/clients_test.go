package est_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
)

// Clients that we did not write. They judge certificates by the machine's clock.

// tool finds a program, or skips; in CI it must be there.
func tool(t *testing.T, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed; .ci/install installs it", name)
		}
		t.Skipf("%s is not installed", name)
	}
	return p
}

// bench is a folder with what a client is given as files, and a way to run it.
type bench struct {
	*testing.T
	w   *world
	dir string
}

func newBench(t *testing.T) *bench {
	b := &bench{t, newWorld(t, time.Now(), nil), t.TempDir()}
	b.write("web.pem", b.w.rootPEM)
	var chain []byte
	for _, der := range b.w.a.tls.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	b.write("device.pem", chain)
	b.write("device.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(b.w.a.key))}))
	return b
}

func (b *bench) write(name string, data []byte) {
	b.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), data, 0o600); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) read(name string) []byte {
	b.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil {
		b.Fatal(err)
	}
	return data
}

func (b *bench) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), "STRONGSWAN_CONF="+filepath.Join(b.dir, "strongswan.conf"))
	return cmd
}

func (b *bench) run(name string, args ...string) (string, error) {
	cmd := b.command(name, args...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (b *bench) must(name string, args ...string) string {
	b.Helper()
	out, err := b.run(name, args...)
	if err != nil {
		b.Fatalf("%s %s: %v\n%s\nlast refusal: %v", name, strings.Join(args, " "), err, out, b.w.record.lastRefusal())
	}
	return out
}

func TestCurlAndOpenSSL(t *testing.T) {
	t.Parallel()
	curl, openssl := tool(t, "curl"), tool(t, "openssl")
	b := newBench(t)
	url := func(service, op string) string { return b.w.url + path(service, op) }
	common := []string{"-sS", "--http1.1", "--cacert", "web.pem"}

	// cacerts, without a client certificate
	b.must(curl, append(common, "-f", "-o", "ca.b64", url("plain", "cacerts"))...)
	b.must(openssl, "base64", "-A", "-d", "-in", "ca.b64", "-out", "ca.p7")
	b.must(openssl, "pkcs7", "-inform", "DER", "-in", "ca.p7", "-print_certs", "-out", "cas.pem")
	list := []*x509.Certificate(nil)
	for rest := b.read("cas.pem"); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		list = append(list, must(x509.ParseCertificate(block.Bytes)))
	}
	if len(list) != 2 || !list[0].Equal(b.w.service["plain"].Anchors()[0]) {
		t.Fatalf("openssl finds %d certificates", len(list))
	}

	// csrattrs
	b.must(curl, append(common, "-f", "-o", "attrs.b64", url("group-a", "csrattrs"))...)
	b.must(openssl, "base64", "-A", "-d", "-in", "attrs.b64", "-out", "attrs.der")
	if out := b.must(openssl, "asn1parse", "-inform", "DER", "-in", "attrs.der"); !strings.Contains(out, ":challengePassword") || !strings.Contains(out, "Extension Request") {
		t.Errorf("csrattrs:\n%s", out)
	}

	// simpleenroll with the device certificate, simplereenroll with what came of it
	post := func(op, cert, key, csr, out string) []string {
		return append(append([]string(nil), common...), "--cert", cert, "--key", key, "-H", "Content-Type: application/pkcs10", "-H", "Content-Transfer-Encoding: base64",
			"--data-binary", "@"+csr, "-o", out, "-w", "%{http_code}", url("plain", op))
	}
	csr := func(name string) {
		b.must(openssl, "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", name+".key", "-subj", "/CN=a.plain.example", "-addext", "subjectAltName=DNS:a.plain.example", "-outform", "DER", "-out", name+".csr")
		b.must(openssl, "base64", "-in", name+".csr", "-out", name+".b64") // in lines of 64
	}
	unpack := func(name string) *x509.Certificate {
		b.must(openssl, "base64", "-A", "-d", "-in", name+".p7.b64", "-out", name+".p7")
		b.must(openssl, "pkcs7", "-inform", "DER", "-in", name+".p7", "-print_certs", "-out", name+".pem")
		b.must(openssl, "verify", "-CAfile", "cas.pem", name+".pem")
		block, _ := pem.Decode(b.read(name + ".pem"))
		return must(x509.ParseCertificate(block.Bytes))
	}
	csr("first")
	if code := b.must(curl, post("simpleenroll", "device.pem", "device.key", "first.b64", "first.p7.b64")...); code != "200" {
		t.Fatalf("simpleenroll: %s %s", code, b.read("first.p7.b64"))
	}
	if err := certs.CheckRelated(unpack("first"), b.w.a.cert.Raw); err != nil {
		t.Error(err)
	}
	csr("second")
	if code := b.must(curl, post("simplereenroll", "first.pem", "first.key", "second.b64", "second.p7.b64")...); code != "200" {
		t.Fatalf("simplereenroll: %s %s", code, b.read("second.p7.b64"))
	}
	if err := certs.CheckRelated(unpack("second"), b.w.a.cert.Raw); err != nil {
		t.Error(err)
	}
	// Where our own proofs are asked for, such a client is told so.
	args := post("simpleenroll", "device.pem", "device.key", "second.b64", "refused.txt")
	args[len(args)-1] = url("group-a", "simpleenroll")
	if code := b.must(curl, args...); code != "403" || !bytes.Contains(b.read("refused.txt"), []byte("(no-binding)")) {
		t.Errorf("a request without binding: %s %s", code, b.read("refused.txt"))
	}
}

// strongSwan's own EST client, which uses its own TLS and its own parser of HTTP.
func TestStrongSwan(t *testing.T) {
	t.Parallel()
	pki := tool(t, "pki")
	b := newBench(t)
	url := b.w.url + "/plain"
	// strongSwan 5.9 can do TLS 1.3, but offers it only when told to.
	b.write("strongswan.conf", []byte("libtls {\n  version_max = 1.3\n}\n"))

	b.must(pki, "--estca", "--url", url, "--cacert", "web.pem", "--caout", "ca.der", "--force")
	root := b.w.service["plain"].Anchors()[0]
	found := false
	files, err := filepath.Glob(filepath.Join(b.dir, "ca*.der"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		c, err := x509.ParseCertificate(must(os.ReadFile(f)))
		found = found || err == nil && c.Equal(root)
	}
	if !found {
		t.Fatalf("estca wrote %v, none of which is the root", files)
	}

	enrol := func(cert, key, name string) *x509.Certificate {
		t.Helper()
		b.write(name+".key", []byte(b.stdout(pki, "--gen", "--type", "ecdsa", "--size", "256", "--outform", "pem")))
		b.write(name+".csr", []byte(b.stdout(pki, "--req", "--in", name+".key", "--type", "ecdsa", "--dn", "CN=a.plain.example", "--san", "a.plain.example", "--outform", "der")))
		der := b.stdout(pki, "--est", "--url", url, "--cacert", "web.pem", "--cacert", "plain.pem", "--cert", cert, "--key", key, "--in", name+".csr", "--outform", "der")
		c, err := x509.ParseCertificate([]byte(der))
		if err != nil {
			t.Fatalf("est wrote %d octets: %v", len(der), err)
		}
		b.write(name+".pem", certs.EncodePEM(c))
		if err := certs.CheckRelated(c, b.w.a.cert.Raw); err != nil {
			t.Error(err)
		}
		return c
	}
	b.write("plain.pem", certs.EncodePEM(root))
	b.write("one.pem", certs.EncodePEM(b.w.a.cert))
	first := enrol("one.pem", "device.key", "first") // by the device certificate
	second := enrol("first.pem", "first.key", "second")
	if first.Equal(second) {
		t.Error("the same certificate twice for two keys")
	}
}

// stdout runs a program that writes DER to its standard output.
func (b *bench) stdout(name string, args ...string) string {
	b.Helper()
	cmd := b.command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		last := b.w.record.lastRefusal()
		b.Fatalf("%s %s: %v\n%s\nlast refusal: %v", name, strings.Join(args, " "), err, stderr.String(), last)
	}
	return string(out)
}
