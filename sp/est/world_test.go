package est_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/sp/est"
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

// registry is a fake: devices by certificate, members by device and service.
type registry struct {
	mu      sync.Mutex // guards what follows
	devices map[string]*x509.Certificate
	members map[string]bool // "device service"
	fail    error
	pending bool
}

func (r *registry) Authorize(ctx context.Context, d est.Device, service string, _ time.Time) (est.Grant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return est.Grant{}, r.fail
	}
	for name, c := range r.devices {
		if !c.Equal(d.Certificate) {
			continue
		}
		if r.pending {
			return est.Grant{}, &est.Denied{Expected: "an approval", Got: "none yet", Do: "wait", RetryAfter: 90 * time.Second}
		}
		if !r.members[name+" "+service] {
			return est.Grant{}, &est.Denied{Expected: "a member of " + service, Got: "device " + name + ", which is none", Do: "ask the SP to take it in"}
		}
		label, _, _ := strings.Cut(name, ".")
		return est.Grant{Device: name, Names: []string{label + "." + service + ".example"}}, nil
	}
	return est.Grant{}, &est.Denied{Expected: "a registered device", Got: "an unknown one", Do: "register it"}
}

func (r *registry) DeviceCertificate(_ context.Context, device string) (*x509.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.devices[device]; c != nil {
		return c, nil
	}
	return nil, errors.New("no such device")
}

func (r *registry) set(f func(*registry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

// record keeps what the server reports, and what it has seen.
type record struct {
	mu       sync.Mutex // guards what follows
	enrolled []est.Enrolment
	refused  []*est.Refusal
	seen     map[[32]byte]bool
}

func (r *record) Enrolled(_ context.Context, e est.Enrolment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.enrolled = append(r.enrolled, e)
}

func (r *record) Refused(_ context.Context, e *est.Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused = append(r.refused, e)
}

func (r *record) Seen(_ context.Context, h [32]byte, now, until time.Time) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !until.After(now) {
		return false, fmt.Errorf("remembered until %v at %v", until, now)
	}
	was := r.seen[h]
	r.seen[h] = true
	return was, nil
}

func (r *record) lastRefusal() *est.Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.refused) == 0 {
		return nil
	}
	return r.refused[len(r.refused)-1]
}

// device is a token with its first layer.
type device struct {
	name string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	tls  tls.Certificate
}

// world is an enrolment server with two services and two devices: "a" belongs to group-a and
// plain, "b" to group-b. group-a and group-b are for our devices; plain is for any client.
type world struct {
	at      time.Time
	server  *est.Server
	url     string // https://127.0.0.1:port
	addr    string
	roots   *x509.CertPool // of the server's certificate
	rootPEM []byte

	registry *registry
	record   *record
	issued   *issuetest.Memory
	devices  *labca.Authority
	service  map[string]*issue.Service
	a, b     *device

	mu    sync.Mutex // guards what follows
	now   time.Time
	trust est.Trust
	plain map[string]bool
	curve elliptic.Curve
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func newWorld(t testing.TB, at time.Time, edit func(*est.Config)) *world {
	t.Helper()
	w := &world{
		at: at, now: at, issued: issuetest.NewMemory(), service: map[string]*issue.Service{}, plain: map[string]bool{"plain": true},
		registry: &registry{devices: map[string]*x509.Certificate{}, members: map[string]bool{}},
		record:   &record{seen: map[[32]byte]bool{}},
	}
	w.devices = must(labca.New(labca.Options{Kind: labca.Device, Name: "device", Domain: "devices.example", At: at.Add(-48 * time.Hour)}))
	w.trust = est.Trust{Anchors: []*x509.Certificate{w.devices.Anchor()}, Intermediates: w.devices.Intermediates()}
	w.a, w.b = w.newDevice("a.devices.example"), w.newDevice("b.devices.example")
	for _, m := range []string{"a.devices.example group-a", "a.devices.example plain", "b.devices.example group-b"} {
		w.registry.members[m] = true
	}
	for _, name := range []string{"group-a", "group-b", "plain"} {
		ca := must(issue.NewCA(issue.CAOptions{Service: name, Domain: name + ".example", NotBefore: at.Add(-24 * time.Hour), Rand: rand.Reader}))
		w.service[name] = must(issue.NewService(issue.Config{Name: name, Domain: name + ".example", Rand: rand.Reader, Recorder: w.issued}, at, ca))
	}
	cfg := est.Config{
		Service: func(name string) (est.Service, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			s, ok := w.service[name]
			return est.Service{CA: s, Plain: w.plain[name], Curve: w.curve}, ok
		},
		Registry: w.registry, Replays: w.record, Recorder: w.record,
		Trust: func() est.Trust { w.mu.Lock(); defer w.mu.Unlock(); return w.trust },
		Now:   func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now },
	}
	if edit != nil {
		edit(&cfg)
	}
	var err error
	if w.server, err = est.New(cfg); err != nil {
		t.Fatal(err)
	}
	w.listen(t)
	return w
}

func (w *world) newDevice(name string) *device {
	d := &device{name: name, key: newKey()}
	d.cert = must(w.devices.Issue(labca.Request{Public: d.key.Public(), DNSNames: []string{name}, At: w.at.Add(-36 * time.Hour)}))
	d.tls = tls.Certificate{Certificate: [][]byte{d.cert.Raw}, PrivateKey: d.key}
	for _, c := range w.devices.Intermediates() {
		d.tls.Certificate = append(d.tls.Certificate, c.Raw)
	}
	w.registry.set(func(r *registry) { r.devices[name] = d.cert })
	return d
}

// listen starts the server on loopback, with the server's configuration as it is shipped.
func (w *world) listen(t testing.TB) {
	t.Helper()
	rootKey, key := newKey(), newKey()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "SP Web Root"}, NotBefore: w.at.Add(-time.Hour), NotAfter: w.at.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey))))
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert := tls.Certificate{Certificate: [][]byte{must(x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), rootKey))}, PrivateKey: key}
	w.roots, w.rootPEM = x509.NewCertPool(), certs.EncodePEM(root)
	w.roots.AddCert(root)
	srv := est.HTTPServer(w.server, est.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }))
	srv.ErrorLog = log.New(io.Discard, "", 0) // tests fail handshakes on purpose
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	w.url = "https://" + w.addr
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
}

// conn is one TLS connection of a client.
type conn struct {
	*tls.Conn
	r *bufio.Reader
}

func (w *world) dial(t testing.TB, cert *tls.Certificate) *conn {
	t.Helper()
	cfg := &tls.Config{RootCAs: w.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, Time: func() time.Time { return w.at }}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	c, err := (&tls.Dialer{Config: cfg}).DialContext(context.Background(), "tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	tc := c.(*tls.Conn)
	return &conn{tc, bufio.NewReader(tc)}
}

// binding is the connection's tls-exporter, computed as RFC 9266 says and not by the package's help.
func (c *conn) binding(t testing.TB) string {
	t.Helper()
	cs := c.ConnectionState()
	b, err := cs.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b)
}

// reply is what came back.
type reply struct {
	*http.Response
	body []byte
}

// do sends one request over the connection and reads the answer. The octets of head are sent as they are.
func (c *conn) do(t testing.TB, head string, body []byte) *reply {
	t.Helper()
	if _, err := c.Write(append([]byte(head), body...)); err != nil {
		t.Fatal(err)
	}
	return c.read(t)
}

func (c *conn) read(t testing.TB) *reply {
	t.Helper()
	r, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return &reply{r, b}
}

func post(path string, n int) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\nContent-Length: %d\r\n\r\n", path, n)
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n" }

// request is a certification request as our devices make it.
type request struct {
	key       crypto.Signer
	cn        string
	names     []string
	challenge string
	tag       cbasn1.Tag // of the challenge; zero: PrintableString
	related   []byte
	extra     [][]byte // more attributes
	badSig    bool
}

func attribute(oid asn1.ObjectIdentifier, value func(*cryptobyte.Builder)) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1(cbasn1.SET, value)
	})
	return b.BytesOrPanic()
}

var oidChallenge = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}

// der writes the request by hand: internal/certs and crypto/x509 leave out what tests need.
func (r request) der() []byte {
	subject := pkix.Name{CommonName: r.cn}
	var attrs [][]byte
	if len(r.names) > 0 {
		attrs = append(attrs, attribute(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 5, 29, 17})
					b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
						b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
							for _, n := range r.names {
								tag := cbasn1.Tag(2) // dNSName
								if strings.Contains(n, "@") {
									tag = 1
								}
								b.AddASN1(tag.ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(n)) })
							}
						})
					})
				})
			})
		}))
	}
	if r.related != nil {
		attrs = append(attrs, attribute(certs.OIDRelatedCertRequest, func(b *cryptobyte.Builder) { b.AddBytes(r.related) }))
	}
	if r.challenge != "" {
		tag := r.tag
		if tag == 0 {
			tag = cbasn1.PrintableString
		}
		attrs = append(attrs, attribute(oidChallenge, func(b *cryptobyte.Builder) {
			b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(r.challenge)) })
		}))
	}
	attrs = append(attrs, r.extra...)
	slices.SortFunc(attrs, bytes.Compare)
	var info cryptobyte.Builder
	info.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(must(asn1.Marshal(subject.ToRDNSequence())))
		b.AddBytes(must(x509.MarshalPKIXPublicKey(r.key.Public())))
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			for _, a := range attrs {
				b.AddBytes(a)
			}
		})
	})
	tbs := info.BytesOrPanic()
	h := sha256.Sum256(tbs)
	if r.badSig {
		h[0] ^= 1
	}
	sig := must(r.key.Sign(rand.Reader, h[:], crypto.SHA256))
	var out cryptobyte.Builder
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2})
		})
		b.AddASN1BitString(sig)
	})
	return out.BytesOrPanic()
}

func (d *device) proof(at time.Time) []byte {
	return must(certs.NewRelatedCertRequest(rand.Reader, d.cert, d.key, at))
}

// request is the whole of what a device sends for a service over a connection.
func (d *device) request(t testing.TB, c *conn, service string, at time.Time) request {
	label, _, _ := strings.Cut(d.name, ".")
	n := label + "." + service + ".example"
	return request{key: newKey(), cn: n, names: []string{n}, challenge: c.binding(t), related: d.proof(at)}
}

func b64(der []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(der)) }

func path(service, op string) string { return "/.well-known/est/" + service + "/" + op }

// certificates takes a certs-only answer apart.
func (r *reply) certificates(t testing.TB) []*x509.Certificate {
	t.Helper()
	if r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", r.Status, r.body)
	}
	der, err := base64.StdEncoding.Strict().DecodeString(string(r.body))
	if err != nil {
		t.Fatalf("not base64 in one line: %v", err)
	}
	p, err := pkcs7.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Signers) != 0 || len(p.Content) != 0 {
		t.Error("not certs-only")
	}
	return p.Certificates
}

// enrol is a whole enrolment that must work.
func (w *world) enrol(t testing.TB, d *device, service string) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	c := w.dial(t, &d.tls)
	r := d.request(t, c, service, w.at)
	body := b64(r.der())
	list := c.do(t, post(path(service, "simpleenroll"), len(body)), body).certificates(t)
	if len(list) != 1 {
		t.Fatalf("%d certificates", len(list))
	}
	return r.key.(*ecdsa.PrivateKey), list[0]
}
