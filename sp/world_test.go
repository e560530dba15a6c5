package sp_test

import (
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
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
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
	"wardgate/policy"
	"wardgate/sp"
	"wardgate/sp/est"
	"wardgate/sp/registry"
	"wardgate/sp/registry/registrytest"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

func TestMain(m *testing.M) {
	if os.Getenv(killConfig) != "" {
		fmt.Fprintln(os.Stderr, serveToBeKilled())
		os.Exit(1)
	}
	os.Exit(storetest.Main(m))
}

const (
	devA = "a.devices.example"
	devB = "b.devices.example"
	devC = "c.devices.example"
)

// patience bounds what a test waits for; it is never what passes.
const patience = 60 * time.Second

// device is a router with its key in software.
type device struct {
	name string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	tls  tls.Certificate
}

// world is a centre's folder, a database, and a clock that stands still until it is moved.
type world struct {
	*testing.T
	cfg        *sp.Config
	configFile string
	waits      chan struct{}  // a device waits
	roots      *x509.CertPool // of the server
	signers    []*x509.Certificate
	content    registry.Content
	devices    map[string]*device

	mu  sync.Mutex // guards now
	now time.Time
}

func (w *world) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (w *world) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	w.Cleanup(cancel)
	return ctx
}

// newDevice makes a device with a key that the test has.
func newDevice(t testing.TB, ca *labca.Authority, name string) *device {
	t.Helper()
	d := &device{name: name, key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)}
	d.cert = must(ca.Issue(labca.Request{Public: d.key.Public(), DNSNames: []string{name}, At: registrytest.At.Add(-time.Hour)}))(t)
	d.tls = tls.Certificate{Certificate: [][]byte{d.cert.Raw}, PrivateKey: d.key}
	return d
}

// newWorld makes a folder by Init, and the hospital's registry with devices whose keys we have.
func newWorld(t *testing.T, url string) *world {
	t.Helper()
	return newWorldWith(t, url, nil)
}

func newWorldWith(t *testing.T, url string, token *sp.Token) *world {
	t.Helper()
	w := &world{T: t, now: registrytest.At, content: registrytest.Hospital(), devices: map[string]*device{}, waits: make(chan struct{}, 1000)}
	ca := registrytest.DeviceCA(t)
	for i := range w.content.Devices {
		d := newDevice(t, ca, w.content.Devices[i].Name)
		w.devices[d.name] = d
		w.content.Devices[i].Certificate = string(certs.EncodePEM(d.cert))
	}
	dir := filepath.Join(t.TempDir(), "centre")
	if err := sp.Init(dir, sp.InitOptions{
		Issuer: "sp.example", Organization: "SP", Hosts: []string{"localhost", "127.0.0.1"},
		DeviceAnchors: certs.EncodePEM(ca.Anchor()), DeviceCAs: certs.EncodePEM(ca.Intermediates()...),
		Services: map[string]string{"group-a": "group-a.example", "group-b": "group-b.example", "images": "images.example"},
		Listen:   "127.0.0.1:0", Status: "127.0.0.1:0", StatusURL: "http://sp.example", Token: token,
	}, w.now, rand.Reader); err != nil {
		t.Fatal(err)
	}
	w.configFile = filepath.Join(dir, "wardgate-sp.toml")
	w.cfg = must(sp.LoadConfig(w.configFile))(t)
	w.cfg.Database.URL = url
	w.cfg.Database.Poll = sp.Duration(20 * time.Millisecond)
	w.roots = x509.NewCertPool()
	w.roots.AppendCertsFromPEM(must(os.ReadFile(filepath.Join(dir, "web-root.pem")))(t))
	w.signers = must(certs.ParseCertificates(must(os.ReadFile(filepath.Join(dir, "policy-root.pem")))(t)))(t)
	return w
}

// instance is a running centre.
type instance struct {
	*sp.Centre
	w      *world
	addr   string
	status string
	stop   func()
}

func (w *world) start() *instance {
	w.Helper()
	c := must(sp.Open(w.context(), sp.Options{Config: w.cfg, Now: w.Now, Log: slog.New(&logger{slog.NewTextHandler(w.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}), w.waits})}))(w)
	l := must(c.Listen(w.context()))(w)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Serve(ctx, l) }()
	i := &instance{Centre: c, w: w, addr: l.Devices.Addr().String(), status: l.Status.Addr().String()}
	i.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("serve: %v", err)
		}
		if err := c.Close(); err != nil {
			w.Errorf("close: %v", err)
		}
	})
	w.Cleanup(i.stop)
	return i
}

// logger tells from the log when a device waits.
type logger struct {
	slog.Handler
	waits chan struct{}
}

func (l *logger) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "a device waits for a policy" {
		select {
		case l.waits <- struct{}{}:
		default:
		}
	}
	return l.Handler.Handle(ctx, r)
}

// registry is the content as it is now.
func (w *world) registry() *registry.Registry {
	w.Helper()
	return must(registry.New(w.content))(w)
}

// apply makes the content the registry, by way of files.
func (i *instance) apply() store.Applied {
	i.w.Helper()
	dir := i.w.TempDir()
	must2(sp.Export(dir, i.w.registry()))(i.w)
	p := must(i.Plan(i.w.context(), os.DirFS(dir)))(i.w)
	return must(i.Apply(i.w.context(), p, "test", ""))(i.w)
}

func must2(_, _ int, err error) func(testing.TB) {
	return func(t testing.TB) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// eventually asks until the answer is yes. Nothing is concluded from how long it takes.
func (w *world) eventually(what string, is func() bool) {
	w.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for !is() {
		select {
		case <-t.C:
		case <-deadline.C:
			w.Fatalf("never: %s", what)
		}
	}
}

// settled waits until no work is queued.
func (i *instance) settled() {
	i.w.Helper()
	i.w.eventually("no work is left", func() bool {
		for _, kind := range []string{"policy", "policy-time", "policy-renew"} {
			if q := must(i.Store().Queue(i.w.context(), kind))(i.w); q.Waiting+q.Leased > 0 {
				return false
			}
		}
		return true
	})
}

func (i *instance) head(device string) store.PolicyHead {
	i.w.Helper()
	return must(i.Store().LatestHead(i.w.context(), device))(i.w)
}

// client is an HTTP client of a device; nil certificate: of nobody.
func (w *world) client(c *tls.Certificate) *http.Client {
	cfg := &tls.Config{RootCAs: w.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, Time: w.Now}
	if c != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c, nil }
	}
	tr := &http.Transport{TLSClientConfig: cfg}
	w.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// reply is what came back.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (i *instance) do(c *tls.Certificate, method, path string, header http.Header, body []byte) *reply {
	i.w.Helper()
	r := must(http.NewRequestWithContext(i.w.context(), method, "https://"+i.addr+path, bytes.NewReader(body)))(i.w)
	for k, v := range header {
		r.Header[k] = v
	}
	res := must(i.w.client(c).Do(r))(i.w)
	defer res.Body.Close()
	return &reply{res.StatusCode, res.Header, must(io.ReadAll(res.Body))(i.w)}
}

// poll asks for a policy other than the one that the device has, and waits for it.
func (i *instance) poll(c *tls.Certificate, etag, wait string) *reply {
	i.w.Helper()
	h := http.Header{}
	if etag != "" {
		h.Set("If-None-Match", etag)
	}
	if wait != "" {
		h.Set("Prefer", "wait="+wait)
	}
	return i.do(c, http.MethodGet, "/v1/policy", h, nil)
}

// policy is a poll that must bring a policy that the device accepts.
func (i *instance) policy(d *device, etag string) (*policy.Document, string) {
	i.w.Helper()
	r := i.poll(&d.tls, etag, "50")
	if r.status != http.StatusOK {
		i.w.Fatalf("%s: status %d: %s", d.name, r.status, r.body)
	}
	doc := must(policy.Verify(r.body, policy.VerifyOptions{Anchors: i.w.signers, DeviceCertDER: d.cert.Raw, Now: i.w.Now()}))(i.w)
	return doc, r.header.Get("ETag")
}

func connections(d *policy.Document) string {
	var names []string
	for i := range d.Connections {
		names = append(names, d.Connections[i].Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// problem is a refusal's code.
func (r *reply) problem(t testing.TB) string {
	t.Helper()
	var p struct {
		Status int    `json:"status"`
		Code   string `json:"code"`
	}
	if err := json.Unmarshal(r.body, &p); err != nil {
		t.Fatalf("%d %s: %v", r.status, r.body, err)
	}
	if p.Status != r.status {
		t.Errorf("status %d says %d", r.status, p.Status)
	}
	return p.Code
}

// recorded waits for an event on the record.
func (i *instance) recorded(event, code string) {
	i.w.Helper()
	i.w.eventually(event+" "+code+" on the record", func() bool {
		return slices.ContainsFunc(must(i.Store().Entries(i.w.context(), 0, 0))(i.w), func(e store.Entry) bool {
			return e.Event.Event == event && e.Detail["code"] == code
		})
	})
}

// enrol asks for a certificate of a service, over a connection of its own, as a router does.
func (i *instance) enrol(d *device, service string) (*tls.Certificate, *reply) {
	w := i.w
	w.Helper()
	cfg := &tls.Config{RootCAs: w.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, Time: w.Now, Certificates: []tls.Certificate{d.tls}}
	raw := must((&tls.Dialer{Config: cfg}).DialContext(w.context(), "tcp", i.addr))(w).(*tls.Conn)
	tr := &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return raw, nil }, DisableKeepAlives: true}
	cs := raw.ConnectionState()
	binding := must(est.Binding(&cs))(w)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(w)
	proof := must(certs.NewRelatedCertRequest(rand.Reader, d.cert, d.key, w.Now()))(w)
	body := base64.StdEncoding.EncodeToString(csr(w, key, binding, proof))
	r := must(http.NewRequestWithContext(w.context(), http.MethodPost, "https://localhost"+est.Prefix+service+"/simpleenroll", strings.NewReader(body)))(w)
	r.Header.Set("Content-Type", "application/pkcs10")
	res := must((&http.Client{Transport: tr, Timeout: patience}).Do(r))(w)
	defer res.Body.Close()
	out := &reply{res.StatusCode, res.Header, must(io.ReadAll(res.Body))(w)}
	if out.status != http.StatusOK {
		return nil, out
	}
	p := must(pkcs7.Parse(must(base64.StdEncoding.DecodeString(string(out.body)))(w)))(w)
	return &tls.Certificate{Certificate: [][]byte{p.Certificates[0].Raw}, PrivateKey: key, Leaf: p.Certificates[0]}, out
}

// csr makes a request with channel binding and proof of the device key, which crypto/x509 cannot.
func csr(t testing.TB, key crypto.Signer, binding string, proof []byte) []byte {
	t.Helper()
	attribute := func(oid asn1.ObjectIdentifier, value func(*cryptobyte.Builder)) []byte {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(cbasn1.SET, value)
		})
		return b.BytesOrPanic()
	}
	attrs := [][]byte{
		attribute(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.PrintableString, func(b *cryptobyte.Builder) { b.AddBytes([]byte(binding)) })
		}),
		attribute(certs.OIDRelatedCertRequest, func(b *cryptobyte.Builder) { b.AddBytes(proof) }),
	}
	slices.SortFunc(attrs, bytes.Compare)
	var info cryptobyte.Builder
	info.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(must(asn1.Marshal(pkix.Name{}.ToRDNSequence()))(t))
		b.AddBytes(must(x509.MarshalPKIXPublicKey(key.Public()))(t))
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			for _, a := range attrs {
				b.AddBytes(a)
			}
		})
	})
	tbs := info.BytesOrPanic()
	h := sha256.Sum256(tbs)
	sig := must(key.Sign(rand.Reader, h[:], crypto.SHA256))(t)
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

// crl fetches the list that a certificate points to.
func (i *instance) crl(c *x509.Certificate) *x509.RevocationList {
	i.w.Helper()
	path, ok := strings.CutPrefix(c.CRLDistributionPoints[0], "http://sp.example")
	if !ok {
		i.w.Fatalf("distribution point %q", c.CRLDistributionPoints)
	}
	r := must(http.NewRequestWithContext(i.w.context(), http.MethodGet, "http://"+i.status+path, nil))(i.w)
	res := must(http.DefaultClient.Do(r))(i.w)
	defer res.Body.Close()
	return must(x509.ParseRevocationList(must(io.ReadAll(res.Body))(i.w)))(i.w)
}
