package centre_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/router/centre"
	"wardgate/sp/est"
	"wardgate/sp/issue"
	"wardgate/sp/issue/issuetest"
)

// All tests run in a bubble of testing/synctest: clock and network are virtual, the enrolment
// server is the real one.

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

var errDead = errors.New("the power has failed")

// power fails at a step: of token, journal, policy, network or centre. Each step has two instants,
// before and after its effect.
type power struct {
	mu   sync.Mutex // guards what follows
	n    int
	at   int // 0: never
	dead bool
	off  context.CancelFunc
	when string // the step at which it failed
	each func() // looked at after each step
}

func (p *power) instant(what string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return errDead
	}
	p.n++
	if p.n == p.at {
		p.dead, p.when = true, what
		p.off()
		return errDead
	}
	return nil
}

func (p *power) step(what string, effect func()) error {
	if err := p.instant("before " + what); err != nil {
		return err
	}
	effect()
	if p.each != nil {
		p.each()
	}
	return p.instant("after " + what)
}

func (p *power) gone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// token is layer 1 and layer 2 in memory, with the rules of the real one.
type token struct {
	p      *power
	w      *world
	mu     sync.Mutex // guards what follows
	next   byte
	device centre.Key
	keys   []tokenKey
	certs  []tokenCert
	fail   error
}

type tokenKey struct {
	service string
	id      byte
	key     *ecdsa.PrivateKey
}

type tokenCert struct {
	service string
	id      byte
	cert    *x509.Certificate
	chain   []*x509.Certificate
}

func (t *token) locked(f func()) func() {
	return func() { t.mu.Lock(); defer t.mu.Unlock(); f() }
}

func (t *token) trouble() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil {
		return t.fail
	}
	if t.p.gone() {
		return errDead
	}
	return nil
}

func (t *token) Device(context.Context) (centre.Key, error) {
	if err := t.trouble(); err != nil {
		return centre.Key{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.device, nil
}

func (t *token) Services(context.Context) ([]centre.Key, error) {
	if err := t.trouble(); err != nil {
		return nil, err
	}
	return t.list(), nil
}

func (t *token) list() []centre.Key {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []centre.Key
	for _, k := range t.keys {
		if !slices.ContainsFunc(t.certs, func(c tokenCert) bool { return c.service == k.service && c.id == k.id }) {
			out = append(out, centre.Key{Service: k.service, ID: []byte{k.id}, Signer: k.key})
		}
	}
	for _, c := range t.certs {
		x := centre.Key{Service: c.service, ID: []byte{c.id}, Cert: c.cert, Chain: c.chain}
		for _, k := range t.keys {
			if k.service == c.service && k.id == c.id {
				x.Signer = k.key
			}
		}
		out = append(out, x)
	}
	return out
}

func (t *token) Generate(_ context.Context, service string, curve elliptic.Curve) (centre.Key, error) {
	if err := t.trouble(); err != nil {
		return centre.Key{}, err
	}
	if curve == nil {
		curve = elliptic.P256()
	}
	k := tokenKey{service: service, key: must(ecdsa.GenerateKey(curve, rand.Reader))}
	err := t.p.step("generate", t.locked(func() { t.next++; k.id = t.next; t.keys = append(t.keys, k) }))
	for err == nil {
		i := slices.IndexFunc(t.list(), func(x centre.Key) bool { return x.Service == service && x.Cert == nil && x.ID[0] != k.id })
		if i < 0 {
			return centre.Key{Service: service, ID: []byte{k.id}, Signer: k.key}, nil
		}
		id := t.list()[i].ID[0]
		err = t.p.step("remove a key that waited", t.locked(func() { t.keys = slices.DeleteFunc(t.keys, func(x tokenKey) bool { return x.id == id }) }))
	}
	return centre.Key{}, err
}

func (t *token) Store(_ context.Context, service string, cert *x509.Certificate, chain, anchors []*x509.Certificate) error {
	if err := t.trouble(); err != nil {
		return err
	}
	if _, err := certs.VerifyChain(certs.Options{
		Leaf: cert.Raw, Intermediates: labca.DER(chain), Anchors: anchors, EKU: certs.EKUIPsecIKE, At: time.Now(), RelatedTo: t.device.Cert.Raw, Role: "service",
	}); err != nil {
		return err
	}
	id := byte(0)
	for _, k := range t.keys {
		if k.service == service && certs.SamePublicKey(k.key.Public(), cert.PublicKey) {
			id = k.id
		}
	}
	if id == 0 {
		return errors.New("the certificate's key is not on the token")
	}
	if !slices.ContainsFunc(t.certs, func(c tokenCert) bool { return c.id == id && c.cert.Equal(cert) }) {
		if err := t.p.step("store", t.locked(func() { t.certs = append(t.certs, tokenCert{service, id, cert, chain}) })); err != nil {
			return err
		}
	}
	return errors.Join(
		t.remove("an old certificate", func(c *tokenCert, _ *tokenKey) bool { return c != nil && c.service == service && !c.cert.Equal(cert) }),
		t.remove("an old key", func(_ *tokenCert, k *tokenKey) bool { return k != nil && k.service == service && k.id != id }))
}

// remove removes one after the other: the power can fail between them.
func (t *token) remove(what string, gone func(c *tokenCert, k *tokenKey) bool) error {
	for {
		t.mu.Lock()
		i := slices.IndexFunc(t.certs, func(c tokenCert) bool { return gone(&c, nil) })
		j := slices.IndexFunc(t.keys, func(k tokenKey) bool { return gone(nil, &k) })
		t.mu.Unlock()
		var err error
		switch {
		case i >= 0:
			err = t.p.step("remove "+what, t.locked(func() { t.certs = slices.Delete(t.certs, i, i+1) }))
		case j >= 0:
			err = t.p.step("remove "+what, t.locked(func() { t.keys = slices.Delete(t.keys, j, j+1) }))
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (t *token) Delete(_ context.Context, service string) error {
	if err := t.trouble(); err != nil {
		return err
	}
	return t.remove("what a service had", func(c *tokenCert, k *tokenKey) bool {
		return c != nil && c.service == service || k != nil && k.service == service
	})
}

// file is a journal file in memory.
type file struct {
	p *power
	b []byte
}

func (f *file) Load() ([]byte, error) { return f.b, nil }
func (f *file) Save(b []byte) error {
	return f.p.step("journal", func() { f.b = slices.Clone(b) })
}

// document stands for a signed policy.
type document struct {
	Device   string   `json:"device"`
	Serial   uint64   `json:"serial"`
	Services []string `json:"services"`
	Forged   bool     `json:"forged,omitempty"`
}

// sink keeps policies as the router does: what is older, forged, or for another device is refused.
type sink struct {
	p   *power
	w   *world
	mu  sync.Mutex // guards what follows
	jws []byte
	all []uint64 // serials that were in force, in order
}

func (s *sink) Installed(context.Context) (centre.Policy, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy(), nil
}

func (s *sink) policy() centre.Policy {
	var d document
	if s.jws == nil {
		return centre.Policy{}
	}
	if err := json.Unmarshal(s.jws, &d); err != nil {
		panic(err)
	}
	p := centre.Policy{Serial: d.Serial}
	for _, n := range d.Services {
		p.Services = append(p.Services, centre.Service{Name: n, Anchors: s.w.anchors[n]})
	}
	return p
}

func (s *sink) Install(_ context.Context, jws []byte) (centre.Policy, error) {
	if s.p.gone() {
		return centre.Policy{}, errDead
	}
	var d document
	s.mu.Lock()
	before := s.policy().Serial
	s.mu.Unlock()
	switch err := json.Unmarshal(jws, &d); {
	case err != nil:
		return centre.Policy{}, err
	case d.Forged:
		return centre.Policy{}, errors.New("policy-signer-untrusted")
	case d.Device != s.w.name:
		return centre.Policy{}, errors.New("policy-other-device")
	case d.Serial < before:
		return centre.Policy{}, errors.New("policy-serial-older")
	case d.Serial > before:
		if err := s.p.step("policy", func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.jws, s.all = slices.Clone(jws), append(s.all, d.Serial)
		}); err != nil {
			return centre.Policy{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy(), nil
}

type reporter struct{}

func (reporter) Report(context.Context) centre.Report {
	return centre.Report{Version: "test", Connections: []centre.ConnectionState{{Name: "b", Up: true}}}
}

// record keeps what the enrolment server reports.
type record struct {
	mu       sync.Mutex // guards what follows
	seen     map[[32]byte]bool
	enrolled []est.Enrolment
	refused  []*est.Refusal
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

func (r *record) Seen(_ context.Context, h [32]byte, _, _ time.Time) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.seen[h]
	r.seen[h] = true
	return was, nil
}

// world is a centre, a network, and one device with what it keeps through a power failure.
type world struct {
	testing.TB
	name     string
	power    *power
	token    *token
	journal  *file
	sink     *sink
	devices  *labca.Authority
	services map[string]*issue.Service
	anchors  map[string][]*x509.Certificate
	webRoot  *x509.Certificate
	webKey   *ecdsa.PrivateKey
	est      *est.Server
	record   *record
	issued   *issuetest.Memory

	mu       sync.Mutex // guards what follows
	doc      document
	changed  chan struct{}
	members  map[string]bool
	pending  time.Duration
	curve    elliptic.Curve
	override func(w http.ResponseWriter, r *http.Request) bool
	cut      bool              // the network is
	by       []string          // first names of the certificates by which policies were asked for and reports made
	refuse   map[string]string // the code with which such a certificate is refused
	dials    int
	requests map[string]int
	reports  []centre.Report
	events   []centre.Event
	listener *listener
	offset   time.Duration // of the device's clock
}

// listener hands out one end of pipes.
type listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *listener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *listener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443} }

// stream is one direction of a connection, with room for what is on its way, as a network has.
type stream struct {
	mu       sync.Mutex // guards what follows
	buf      []byte
	done     bool // nothing more comes
	deadline time.Time
	wake     chan struct{} // closed at each change
}

func (s *stream) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.wake)
	s.wake = make(chan struct{})
}

// end is one end of a connection.
type end struct{ in, out *stream }

func connection() (net.Conn, net.Conn) {
	x, y := &stream{wake: make(chan struct{})}, &stream{wake: make(chan struct{})}
	return end{x, y}, end{y, x}
}

func (e end) Read(p []byte) (n int, err error) {
	for {
		var wake chan struct{}
		var late <-chan time.Time
		e.in.mu.Lock()
		left := time.Until(e.in.deadline)
		switch {
		case !e.in.deadline.IsZero() && left <= 0:
			err = os.ErrDeadlineExceeded
		case len(e.in.buf) > 0:
			n = copy(p, e.in.buf)
			e.in.buf = e.in.buf[n:]
			close(e.in.wake)
			e.in.wake = make(chan struct{})
		case e.in.done:
			err = io.EOF
		case !e.in.deadline.IsZero():
			late = time.After(left)
		}
		wake = e.in.wake
		e.in.mu.Unlock()
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		select {
		case <-wake:
		case <-late:
		}
	}
}

func (e end) Write(p []byte) (int, error) {
	const room = 1 << 18
	for {
		e.out.mu.Lock()
		done, full, wake := e.out.done, len(e.out.buf) > room, e.out.wake
		e.out.mu.Unlock()
		switch {
		case done:
			return 0, io.ErrClosedPipe
		case full:
			<-wake
		default:
			e.out.change(func() { e.out.buf = append(e.out.buf, p...) })
			return len(p), nil
		}
	}
}

func (e end) Close() error {
	e.out.change(func() { e.out.done = true })
	e.in.change(func() { e.in.done, e.in.buf = true, nil })
	return nil
}

func (end) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443} }
func (end) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 4000} }

func (e end) SetReadDeadline(t time.Time) error {
	e.in.change(func() { e.in.deadline = t })
	return nil
}
func (end) SetWriteDeadline(time.Time) error { return nil }
func (e end) SetDeadline(t time.Time) error  { return e.SetReadDeadline(t) }

// wire is the device's end: without power nothing goes through it.
type wire struct {
	net.Conn
	p *power
}

func (c wire) Write(b []byte) (int, error) {
	if c.p.gone() {
		return 0, errDead
	}
	return c.Conn.Write(b)
}

func (w *world) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if w.power.gone() {
		return nil, errDead
	}
	w.mu.Lock()
	cut := w.cut
	w.dials++
	w.mu.Unlock()
	if cut {
		return nil, errors.New("network is unreachable")
	}
	a, b := connection()
	select {
	case w.listener.conns <- b:
		return wire{a, w.power}, nil
	case <-w.listener.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newWorld(t testing.TB, services ...string) *world {
	t.Helper()
	at := time.Now()
	w := &world{
		TB: t, name: "a.devices.example", power: &power{off: func() {}}, services: map[string]*issue.Service{}, anchors: map[string][]*x509.Certificate{},
		record: &record{seen: map[[32]byte]bool{}}, issued: issuetest.NewMemory(), members: map[string]bool{}, changed: make(chan struct{}),
		requests: map[string]int{}, listener: &listener{conns: make(chan net.Conn), done: make(chan struct{})},
	}
	w.devices = must(labca.New(labca.Options{Kind: labca.Device, Name: "device", Domain: "devices.example", At: at.Add(-48 * time.Hour)}))
	w.token = &token{p: w.power, w: w, device: w.newDevice()}
	w.journal, w.sink = &file{p: w.power}, &sink{p: w.power, w: w}
	for _, name := range services {
		ca := must(issue.NewCA(issue.CAOptions{Service: name, Domain: name + ".example", NotBefore: at.Add(-24 * time.Hour), Rand: rand.Reader}))
		w.services[name] = must(issue.NewService(issue.Config{Name: name, Domain: name + ".example", Rand: rand.Reader, Recorder: w.issued}, at, ca))
		w.anchors[name] = w.services[name].Anchors()
		w.members[name] = true
	}
	w.est = must(est.New(est.Config{
		Service: func(name string) (est.Service, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			s, ok := w.services[name]
			return est.Service{CA: s, Curve: w.curve}, ok
		},
		Registry: w, Replays: w.record, Recorder: w.record, Now: time.Now,
		Trust: func() est.Trust {
			return est.Trust{Anchors: []*x509.Certificate{w.devices.Anchor()}, Intermediates: w.devices.Intermediates()}
		},
	}))
	w.webKey = newKey()
	w.webRoot = w.newRoot("SP Web Root", w.webKey)
	w.serve()
	w.publish(services...)
	return w
}

func (w *world) newDevice() centre.Key {
	k := newKey()
	c := must(w.devices.Issue(labca.Request{Public: k.Public(), DNSNames: []string{w.name}, At: time.Now().Add(-36 * time.Hour)}))
	return centre.Key{ID: []byte{0}, Signer: k, Cert: c, Chain: w.devices.Intermediates()}
}

func (w *world) newRoot(name string, key *ecdsa.PrivateKey) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, c, c, key.Public(), key))))
}

// serve starts the centre. Its certificate is of the web root.
func (w *world) serve() {
	key := newKey()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "sp.example"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(5, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"sp.example"},
	}
	cert := tls.Certificate{Certificate: [][]byte{must(x509.CreateCertificate(rand.Reader, c, w.webRoot, key.Public(), w.webKey))}, PrivateKey: key}
	srv := &http.Server{
		Handler: http.HandlerFunc(w.handle), ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: est.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }),
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ServeTLS(w.listener, "", "") }()
	w.Cleanup(func() {
		_ = srv.Close()
		<-done
		time.Sleep(time.Minute) // handlers notice
	})
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// publish makes a new policy for the device.
func (w *world) publish(services ...string) {
	w.set(func() {
		w.doc = document{Device: w.name, Serial: w.doc.Serial + 1, Services: services}
		close(w.changed)
		w.changed = make(chan struct{})
	})
}

// handle answers all requests. The device's power may fail before the centre works on a request, and
// before its answer arrives.
func (w *world) handle(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.requests[r.URL.Path]++
	override := w.override
	w.mu.Unlock()
	if override != nil && override(rw, r) {
		return
	}
	if w.power.instant("before request "+r.URL.Path) != nil {
		panic(http.ErrAbortHandler)
	}
	rec := httptest.NewRecorder()
	switch r.URL.Path {
	case "/v1/policy":
		w.policy(rec, r)
	case "/v1/report":
		if !w.identify(rec, r) {
			break
		}
		var rep centre.Report
		if err := json.NewDecoder(r.Body).Decode(&rep); err != nil {
			w.Errorf("report: %v", err)
		}
		w.set(func() { w.reports = append(w.reports, rep) })
		rec.WriteHeader(http.StatusNoContent)
	default:
		w.est.ServeHTTP(rec, r)
	}
	if w.power.instant("after request "+r.URL.Path) != nil {
		panic(http.ErrAbortHandler)
	}
	maps.Copy(rw.Header(), rec.Header())
	rw.WriteHeader(rec.Code)
	_, _ = rw.Write(rec.Body.Bytes())
}

// identify notes by which certificate the centre is asked, and refuses what the centre does not know or
// what the test refuses.
func (w *world) identify(rw http.ResponseWriter, r *http.Request) bool {
	code := "no-certificate"
	if list := r.TLS.PeerCertificates; len(list) > 0 {
		by := list[0].DNSNames[0]
		w.mu.Lock()
		defer w.mu.Unlock()
		w.by = append(w.by, by)
		code = ""
		switch {
		case w.refuse[by] != "":
			code = w.refuse[by]
		case time.Now().After(list[0].NotAfter):
			code = "cert-expired"
		case by != w.name && !strings.HasPrefix(by, "a.group-"):
			code = "not-registered"
		}
	}
	if code == "" {
		return true
	}
	rw.Header().Set("Content-Type", "application/problem+json")
	rw.WriteHeader(http.StatusForbidden)
	_, _ = fmt.Fprintf(rw, `{"status":403,"code":%q,"expected":"another","came":"this","do":"something"}`, code)
	return false
}

func (w *world) policy(rw http.ResponseWriter, r *http.Request) {
	if !w.identify(rw, r) {
		return
	}
	var wait <-chan time.Time
	if s, ok := strings.CutPrefix(r.Header.Get("Prefer"), "wait="); ok {
		wait = time.After(time.Duration(must(strconv.Atoi(s))) * time.Second)
	} else {
		wait = time.After(0)
	}
	for {
		w.mu.Lock()
		doc, changed := w.doc, w.changed
		w.mu.Unlock()
		etag := fmt.Sprintf("%q", strconv.FormatUint(doc.Serial, 10))
		if r.Header.Get("If-None-Match") != etag {
			rw.Header().Set("ETag", etag)
			rw.Header().Set("Content-Type", "application/jose")
			_, _ = rw.Write(must(json.Marshal(doc)))
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		case <-wait:
			rw.WriteHeader(http.StatusNotModified)
			return
		}
	}
}

func (w *world) Authorize(_ context.Context, d est.Device, service string, _ time.Time) (est.Grant, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.pending > 0:
		return est.Grant{}, &est.Denied{Expected: "an approval", Got: "none yet", Do: "wait", RetryAfter: w.pending}
	case !w.members[service]:
		return est.Grant{}, &est.Denied{Expected: "a member of " + service, Got: "none", Do: "ask the SP"}
	}
	return est.Grant{Device: w.name, Names: []string{"a." + service + ".example"}}, nil
}

func (w *world) DeviceCertificate(context.Context, string) (*x509.Certificate, error) {
	return nil, errors.New("not asked for")
}

// clock is the bubble's, set wrong by an offset.
type clock struct {
	centre.SystemClock
	w *world
}

func (c clock) Now() time.Time {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	return time.Now().Add(c.w.offset)
}

// boot starts the device, whose power fails at an instant (0: it does not).
func (w *world) boot(failAt int) (*centre.Agent, context.Context) {
	w.Helper()
	ctx, off := context.WithCancel(context.Background())
	w.Cleanup(off)
	w.power.mu.Lock()
	w.power.n, w.power.at, w.power.dead, w.power.off, w.power.when = 0, failAt, false, off, ""
	w.power.mu.Unlock()
	a, err := centre.New(centre.Config{
		URL: "https://sp.example", Anchors: []*x509.Certificate{w.webRoot}, Token: w.token, Policies: w.sink, Reporter: reporter{}, Journal: w.journal,
		Clock: clock{w: w}, Rand: rand.Reader, Dial: w.dial,
		Notify: func(e centre.Event) { w.set(func() { w.events = append(w.events, e) }) },
	})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(a.Close)
	return a, ctx
}

// join is one Join from power-on.
func (w *world) join(failAt int) ([]centre.Step, error) {
	w.Helper()
	a, ctx := w.boot(failAt)
	defer a.Close()
	var steps []centre.Step
	err := a.Join(ctx, func(s centre.Step) { steps = append(steps, s) })
	return steps, err
}

// settled checks that each of the services has one key with one certificate, valid and of the service,
// and that there is nothing else on the token.
func (w *world) settled(services ...string) {
	w.Helper()
	var have []string
	for _, k := range w.token.list() {
		have = append(have, k.Service)
		if k.Cert == nil || k.Signer == nil {
			w.Errorf("service %s: half a pair is left", k.Service)
			continue
		}
		if !certs.SamePublicKey(k.Signer.Public(), k.Cert.PublicKey) {
			w.Errorf("service %s: key and certificate do not belong together", k.Service)
		}
		if now := time.Now(); now.After(k.Cert.NotAfter) || now.Before(k.Cert.NotBefore) {
			w.Errorf("service %s: not valid", k.Service)
		}
		if err := certs.CheckRelated(k.Cert, w.token.device.Cert.Raw); err != nil {
			w.Error(err)
		}
	}
	slices.Sort(have)
	want := slices.Sorted(slices.Values(services))
	if !slices.Equal(have, want) {
		w.Errorf("keys on the token: %v, want %v", have, want)
	}
	if !slices.IsSorted(w.sink.all) {
		w.Errorf("policies went back: %v", w.sink.all)
	}
}

// cert returns a service's certificate.
func (w *world) cert(service string) *x509.Certificate {
	w.Helper()
	for _, k := range w.token.list() {
		if k.Service == service && k.Cert != nil {
			return k.Cert
		}
	}
	w.Fatalf("service %s has no certificate", service)
	return nil
}

// told counts events.
func (w *world) told(code centre.EventCode) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, e := range w.events {
		if e.Code == code {
			n++
		}
	}
	return n
}
