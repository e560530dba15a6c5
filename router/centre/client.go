package centre

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wardgate/internal/certs"
)

// Where the centre's operations are. EST's place is RFC 7030's.
const (
	pathEST    = "/.well-known/est/"
	pathPolicy = "/v1/policy"
	pathReport = "/v1/report"
)

// Bounds on what an answer may be, and on how long it may take.
const (
	maxHeader = 16 << 10
	maxText   = 2 << 10   // a refusal
	maxAttrs  = 16 << 10  // csrattrs, base64
	maxCerts  = 512 << 10 // cacerts and an issued certificate, base64
	maxPolicy = 32 << 20  // docs/policy.md
	maxETag   = 128
	maxRetry  = time.Hour // of Retry-After

	dialTime   = 15 * time.Second // connection and TLS handshake, the token's signature included
	answerTime = 30 * time.Second // for an answer, beside the wait that was asked for
	policyTime = 2 * time.Minute  // for a policy, which may be large and the line slow
)

// client speaks to one centre. It trusts its anchors alone.
type client struct {
	host    string // host:port
	name    string // of the server's certificate
	anchors *x509.CertPool
	clock   Clock
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)

	heard atomic.Int64 // when the centre answered last, whatever it said; Unix time in nanoseconds, 0: never

	mu   sync.Mutex // guards what follows
	kept *session
}

// session keeps its connection, so that a poll costs no signature of the token. Whoever asks by another
// certificate gets another one.
type session struct {
	http.Client
	by []byte // DER of the certificate that its connections are made with
}

func newClient(raw string, anchors []*x509.Certificate, clock Clock, dial func(context.Context, string, string) (net.Conn, error)) (*client, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("address of the centre: expected https://HOST or https://HOST:PORT, got %s", certs.Quote(raw))
	}
	if len(anchors) == 0 {
		return nil, errors.New("anchors of the centre: expected at least one CA certificate, got none; the SP hands it out with the address")
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	c := &client{host: net.JoinHostPort(u.Hostname(), port), name: u.Hostname(), anchors: x509.NewCertPool(), clock: clock, dial: dial}
	for _, a := range anchors {
		c.anchors.AddCert(a)
	}
	return c, nil
}

// session returns the one for a key; any: also the one of another key, where there is one.
func (c *client) session(who Key, anyone bool) *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept != nil && (anyone || bytes.Equal(c.kept.by, who.Cert.Raw)) {
		return c.kept
	}
	t := &http.Transport{
		DialContext: c.dial, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
		TLSHandshakeTimeout: dialTime, IdleConnTimeout: 5 * time.Minute, Protocols: new(http.Protocols),
		TLSClientConfig: c.tls(who),
	}
	t.Protocols.SetHTTP1(true)
	if c.kept != nil {
		c.kept.CloseIdleConnections() // also those that are in use, when they are free
	}
	c.kept = &session{http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, who.Cert.Raw}
	return c.kept
}

// tls returns the configuration of all connections.
func (c *client) tls(who Key) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: c.anchors, ServerName: c.name, NextProtos: []string{"http/1.1"}, Time: c.clock.Now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tlsCertificate(who), nil },
	}
}

func tlsCertificate(k Key) *tls.Certificate {
	t := &tls.Certificate{Certificate: [][]byte{k.Cert.Raw}, PrivateKey: k.Signer, Leaf: k.Cert}
	for _, x := range k.Chain {
		t.Certificate = append(t.Certificate, x.Raw)
	}
	return t
}

// connect makes a TLS connection with the device certificate. It ends with ctx.
func (c *client) connect(ctx context.Context, device Key) (*tls.Conn, error) {
	short, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	raw, err := c.dial(short, "tcp", c.host)
	if err != nil {
		return nil, c.failed(short, err)
	}
	conn := tls.Client(raw, c.tls(device))
	if err := conn.HandshakeContext(short); err != nil {
		_ = raw.Close()
		return nil, c.failed(short, err)
	}
	return conn, nil
}

// alerted reports whether a TLS connection ended by an alert, of either side.
func alerted(err error) bool {
	o, ok := errors.AsType[*net.OpError](err)
	return ok && (o.Op == "remote error" || o.Op == "local error")
}

// failed says what went wrong with a connection.
func (c *client) failed(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return fail(ClockWrong, "a certificate of the centre that is valid now ("+c.clock.Now().UTC().Format(time.RFC3339)+" by this device's clock)",
			err.Error(), "check the device's clock; if it is right, the SP must renew the centre's certificate", err)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fail(TLS, "a certificate of "+c.name+" that the configured anchors know", err.Error(), "check address and anchors with the SP", err)
	}
	if alerted(err) {
		return fail(TLS, "a TLS 1.3 connection", err.Error(), "check address and anchors with the SP", err)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fail(TLS, "a TLS 1.3 connection", err.Error(), "check the address with the SP", err)
	}
	n, isNet := errors.AsType[net.Error](err)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) || isNet && n.Timeout() {
		return fail(TooSlow, "an answer of "+c.host+" in time", "none", "check the network; it is tried again", err)
	}
	return fail(Unreachable, "a connection to "+c.host, err.Error(), "check network, address and firewall; it is tried again", err)
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// read judges an answer. Statuses in ok are the caller's to judge and carry no body that is looked at;
// 200 must be of one of the media types and within limit.
func read(r *http.Response, limit int64, types []string, ok ...int) (*answer, error) {
	a := &answer{status: r.StatusCode, header: r.Header}
	switch s := r.StatusCode; {
	case s == http.StatusOK:
	case slices.Contains(ok, s):
		return a, nil
	case s >= 300 && s < 400:
		return nil, fail(Redirect, "an answer", "a redirect ("+strconv.Itoa(s)+") to "+certs.Quote(r.Header.Get("Location")), "give the address that the SP's centre has itself", nil)
	default:
		return nil, refusal(r)
	}
	if types == nil {
		return a, nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || !slices.Contains(types, kind) {
		return nil, fail(ContentType, "Content-Type "+strings.Join(types, " or "), certs.Quote(r.Header.Get("Content-Type")), "check the address: this does not look like the SP's centre", err)
	}
	if e := r.Header.Get("Content-Encoding"); e != "" {
		return nil, fail(ContentType, "no Content-Encoding", certs.Quote(e), "something between device and centre changes answers", nil)
	}
	tooLarge := func(got string) error {
		return fail(TooLarge, fmt.Sprintf("at most %d octets", limit), got, "ask the SP", nil)
	}
	if r.ContentLength > limit {
		return nil, tooLarge(strconv.FormatInt(r.ContentLength, 10))
	}
	if a.body, err = io.ReadAll(io.LimitReader(r.Body, limit+1)); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fail(Malformed, "a whole answer", fmt.Sprintf("%d octets of it", len(a.body)), "the connection broke off; it is tried again", err)
		}
		return nil, err
	}
	if int64(len(a.body)) > limit {
		return nil, tooLarge("more")
	}
	return a, nil
}

// refusal is an answer that says no, or not now.
func refusal(r *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(r.Body, maxText))
	if err != nil && len(text) == 0 {
		text = []byte("no text")
	}
	e := fail(Refused, "an answer", "", "", nil)
	// The centre refuses with RFC 9457's problem details, its enrolment with a line of text.
	var p struct{ Code, Expected, Came, Do string }
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil && kind == "application/problem+json" && json.Unmarshal(text, &p) == nil && p.Code != "" {
		e.Reason = reason("(" + p.Code + ")")
		e.Expected, e.Got, e.Do = quoteLong(p.Expected), quoteLong(p.Came)+" (HTTP "+strconv.Itoa(r.StatusCode)+")", quoteLong(p.Do)
	} else {
		line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
		e.Got = "HTTP " + strconv.Itoa(r.StatusCode) + " " + quoteLong(line)
		e.Reason = reason(line)
	}
	e.RetryAfter = retryOf(r.Header)
	switch {
	case r.StatusCode == http.StatusAccepted:
		e.Code = Pending
	case r.StatusCode >= 500 || r.StatusCode == http.StatusTooManyRequests || r.StatusCode == http.StatusRequestTimeout:
		e.Code, e.Do = Busy, "it is tried again by itself"
	}
	return e
}

// retryOf returns how long the centre asks to be left alone (RFC 9110, section 10.2.3), at most maxRetry: a
// number of seconds, or a time, which is compared with the answer's own.
func retryOf(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if s, err := strconv.ParseUint(text, 10, 63); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(s, uint64(maxRetry/time.Second))) * time.Second
	}
	until, err1 := http.ParseTime(text)
	date, err2 := http.ParseTime(h.Get("Date"))
	if err1 != nil || err2 != nil {
		return 0
	}
	return min(max(until.Sub(date), 0), maxRetry)
}

// quoteLong is certs.Quote with room for the centre's whole line: what was expected, what came, what to do.
func quoteLong(s string) string {
	const room = 800
	if len(s) > room {
		s = s[:room]
	}
	return strconv.QuoteToASCII(s)
}

// reason finds the class in "enrolment refused (not-a-member): …". Empty: none.
func reason(line string) string {
	_, rest, ok := strings.Cut(line, "(")
	word, _, closed := strings.Cut(rest, ")")
	if !ok || !closed || word == "" || len(word) > 32 || strings.Trim(word, "abcdefghijklmnopqrstuvwxyz-") != "" {
		return ""
	}
	return word
}

// do sends a request over the connection that is kept.
func (c *client) do(ctx context.Context, by *session, method, path string, header http.Header, body []byte, limit int64, types []string, ok ...int) (*answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+c.host+path, bytes.NewReader(body))
	if err != nil {
		return nil, fail(Malformed, "an address", err.Error(), "", err)
	}
	for k, v := range header {
		r.Header[k] = v
	}
	if len(body) == 0 {
		r.Body, r.GetBody, r.ContentLength = nil, nil, 0
	}
	resp, err := by.Do(r)
	if err != nil {
		return nil, c.failed(ctx, err)
	}
	defer resp.Body.Close()
	c.heard.Store(c.clock.Now().UnixNano())
	a, err := read(resp, limit, types, ok...)
	if err != nil {
		if _, known := errors.AsType[*Error](err); !known {
			err = c.failed(ctx, err)
		}
		return nil, err
	}
	return a, nil
}

// close ends the connection that is kept.
func (c *client) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept != nil {
		c.kept.CloseIdleConnections()
	}
}

// decode takes the base64 off an EST answer. White space is tolerated (RFC 8951, section 3.1).
func decode(b []byte) ([]byte, error) {
	b = bytes.Map(func(r rune) rune {
		if r == ' ' || r == '\t' || r == '\r' || r == '\n' {
			return -1
		}
		return r
	}, b)
	out := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
	n, err := base64.StdEncoding.Strict().Decode(out, b)
	if err != nil || n == 0 {
		return nil, fail(Malformed, "DER in base64 (RFC 8951, section 3)", "something else", "check the address: this does not look like the SP's centre", err)
	}
	return out[:n], nil
}

// cacerts returns the certificates that a service's CA hands out. Everybody may ask (RFC 7030, section
// 4.1.2), so any connection will do; who makes one where there is none.
func (c *client) cacerts(ctx context.Context, who Key, service string) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	a, err := c.do(ctx, c.session(who, true), http.MethodGet, pathEST+service+"/cacerts", nil, nil, maxCerts, []string{"application/pkcs7-mime"})
	if err != nil {
		return nil, err
	}
	der, err := decode(a.body)
	if err != nil {
		return nil, err
	}
	return parseCertsOnly(der)
}

// csrattrs returns what a request should contain, in DER; nil: nothing in particular.
func (c *client) csrattrs(ctx context.Context, who Key, service string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	// RFC 7030, section 4.5.2: 204 and 404 say that there are none.
	a, err := c.do(ctx, c.session(who, true), http.MethodGet, pathEST+service+"/csrattrs", nil, nil, maxAttrs, []string{"application/csrattrs"}, http.StatusNoContent, http.StatusNotFound)
	if err != nil || a.status != http.StatusOK {
		return nil, err
	}
	return decode(a.body)
}

// exporter is the channel binding of RFC 9266, section 2.
const exporter = "EXPORTER-Channel-Binding"

// enroll asks for a certificate over a connection of its own, to which csr binds the request.
func (c *client) enroll(ctx context.Context, service, op string, device Key, csr func(binding string) ([]byte, error)) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime+answerTime)
	defer cancel()
	conn, err := c.connect(ctx, device)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })()
	cs := conn.ConnectionState()
	b, err := cs.ExportKeyingMaterial(exporter, nil, 32)
	if err != nil {
		return nil, fail(TLS, "a TLS 1.3 exporter", err.Error(), "", err)
	}
	der, err := csr(base64.StdEncoding.EncodeToString(b))
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.host+pathEST+service+"/"+op, strings.NewReader(base64.StdEncoding.EncodeToString(der)))
	if err != nil {
		return nil, fail(Malformed, "an address", err.Error(), "", err)
	}
	r.Header.Set("Content-Type", "application/pkcs10")
	r.Close = true // RFC 9266, section 4.1: a binding is for one authentication on a connection
	if err := r.Write(conn); err != nil {
		return nil, c.failed(ctx, err)
	}
	in := &io.LimitedReader{R: conn, N: maxHeader}
	resp, err := http.ReadResponse(bufio.NewReader(in), r)
	if err != nil {
		if in.N <= 0 {
			err = fail(TooLarge, fmt.Sprintf("a header of at most %d octets", maxHeader), "more", "check the address: this does not look like the SP's centre", err)
		}
		return nil, c.failed(ctx, err)
	}
	defer resp.Body.Close()
	in.N = 2 * maxCerts // for the body, which read bounds, and its chunks' headers
	a, err := read(resp, maxCerts, []string{"application/pkcs7-mime"})
	if err != nil {
		if ctx.Err() != nil { // the connection was cut because of it
			return nil, c.failed(ctx, ctx.Err())
		}
		if _, known := errors.AsType[*Error](err); !known {
			err = c.failed(ctx, err)
		}
		return nil, err
	}
	if der, err = decode(a.body); err != nil {
		return nil, err
	}
	return parseCertsOnly(der)
}

// policyTypes are the media types of a policy (RFC 7515, section 9.2.1).
var policyTypes = []string{"application/jose", "application/wardgate-policy+jws"}

// policy asks for the policy when it is another than that of etag, and waits so long for one.
func (c *client) policy(ctx context.Context, who Key, etag string, wait time.Duration) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+policyTime)
	defer cancel()
	h := http.Header{}
	if etag != "" {
		h.Set("If-None-Match", etag)
	}
	if wait > 0 {
		h.Set("Prefer", "wait="+strconv.Itoa(int(wait/time.Second))) // RFC 7240, section 4.3
	}
	return c.do(ctx, c.session(who, false), http.MethodGet, pathPolicy, h, nil, maxPolicy, policyTypes, http.StatusNotModified, http.StatusNoContent, http.StatusNotFound)
}

// report tells the state.
func (c *client) report(ctx context.Context, who Key, r Report) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	b, err := json.Marshal(r)
	if err != nil {
		return fail(Malformed, "a report", err.Error(), "", err)
	}
	_, err = c.do(ctx, c.session(who, false), http.MethodPost, pathReport, http.Header{"Content-Type": {"application/json"}}, b, maxText, nil, http.StatusNoContent, http.StatusAccepted)
	return err
}

// validETag reports whether an entity tag can be sent back (RFC 9110, section 8.8.3).
func validETag(s string) bool {
	t, ok := strings.CutPrefix(strings.TrimPrefix(s, "W/"), `"`)
	t, closed := strings.CutSuffix(t, `"`)
	if !ok || !closed || len(s) > maxETag {
		return false
	}
	for i := range len(t) {
		if t[i] <= ' ' || t[i] == '"' || t[i] > '~' {
			return false
		}
	}
	return true
}
