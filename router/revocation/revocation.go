// Package revocation fetches revocation lists and OCSP responses over HTTP, and keeps them until they
// end. It is for connections whose policy wants to know about every certificate, where the lists of the
// policy say nothing about one.
//
// It is only ever given chains that were judged in everything but revocation: the URIs in a certificate
// are an attacker's until the certificate has been verified. What it fetches is judged again by package
// certs; an answer that does not verify is none.
package revocation

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"

	"wardgate/internal/certs"
)

// Bounds.
const (
	fetchTime  = 3 * time.Second  // for one answer; somebody waits for a connection
	failedFor  = time.Minute      // what failed is not asked again before
	noEnd      = 10 * time.Minute // how long an answer is kept that says no end
	maxEntries = 1024             // answers kept
	maxKept    = 64 << 20         // octets of them
	maxURIs    = 4                // looked at in one certificate
	refreshAt  = 2                // an answer is fetched again after 1/refreshAt of its life, while the old one serves
)

// Options of New.
type Options struct {
	Now    func() time.Time
	Client *http.Client // nil: one without proxies that follows no redirects
	// Log is told what was fetched and what failed, as message and key-value pairs; may be nil.
	Log func(msg string, kv ...any)
}

// Fetcher fetches and keeps. Its methods may be called from several goroutines.
type Fetcher struct {
	opt    Options
	ctx    context.Context //nolint:containedctx // of the fetches that nobody waits for any more
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards what follows
	entries map[string]*entry
	size    int // octets
}

// entry is one answer, or the attempt to get it.
type entry struct {
	done    chan struct{} // closed when the attempt is over
	data    []byte
	list    *x509.RevocationList // of a list
	err     error
	from    time.Time // half-way from here to until it is fetched again
	until   time.Time // kept until then
	renewed bool      // its successor is being fetched
}

// New makes a Fetcher.
func New(opt Options) *Fetcher {
	if opt.Log == nil {
		opt.Log = func(string, ...any) {}
	}
	if opt.Client == nil {
		opt.Client = &http.Client{
			Transport: &http.Transport{
				Proxy: nil, ResponseHeaderTimeout: fetchTime, MaxResponseHeaderBytes: 16 << 10, MaxConnsPerHost: 4, IdleConnTimeout: time.Minute, DisableCompression: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	f := &Fetcher{opt: opt, entries: make(map[string]*entry)}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// Close ends what is being fetched, and waits for it. What is asked for afterwards fails.
func (f *Fetcher) Close() {
	f.cancel()
	f.wg.Wait()
	f.opt.Client.CloseIdleConnections()
}

// For returns what is to be had about the certificates of a verified chain, leaf first and anchor last:
// for each certificate below the anchor an OCSP response, or else its issuer's list. The error says what
// could not be had; what was had comes with it.
func (f *Fetcher) For(ctx context.Context, chain []*x509.Certificate) (lists []*x509.RevocationList, responses [][]byte, err error) {
	var errs []error
	for i := 0; i+1 < len(chain); i++ {
		cert, issuer := chain[i], chain[i+1]
		der, err := f.OCSP(ctx, cert, issuer)
		if err == nil {
			responses = append(responses, der)
			continue
		}
		list, err2 := f.list(ctx, cert, issuer)
		if err2 == nil {
			lists = append(lists, list)
			continue
		}
		errs = append(errs, fmt.Errorf("%s: %w", certs.SubjectOf(cert), errors.Join(err, err2)))
	}
	return lists, responses, errors.Join(errs...)
}

var (
	errNoResponder = errors.New("it names no OCSP responder that speaks HTTP")
	errNoList      = errors.New("it names no revocation list that is fetched over HTTP")
)

// OCSP returns a current OCSP response (DER) about cert, which issuer has issued, from the responders
// that cert names (RFC 6960, appendix A.1: POST).
func (f *Fetcher) OCSP(ctx context.Context, cert, issuer *x509.Certificate) ([]byte, error) {
	err := errNoResponder
	for _, uri := range plainHTTP(cert.OCSPServer) {
		id := sha256.Sum256(append(bytes.Clone(cert.Raw), issuer.Raw...))
		var e *entry
		e, err = f.get(ctx, "ocsp "+uri+" "+string(id[:]), func(ctx context.Context) (*entry, error) {
			req, err := ocsp.CreateRequest(cert, issuer, &ocsp.RequestOptions{Hash: crypto.SHA1}) // understood by all; no matter of security
			if err != nil {
				return nil, fmt.Errorf("OCSP request: %w", err)
			}
			der, err := f.fetch(ctx, http.MethodPost, uri, "application/ocsp-request", req, certs.MaxOCSPBytes)
			if err != nil {
				return nil, err
			}
			o, err := certs.CheckOCSP(der, cert, issuer, f.opt.Now())
			if err != nil {
				return nil, err
			}
			return &entry{data: der, from: o.ThisUpdate, until: o.NextUpdate}, nil
		})
		if err == nil {
			return e.data, nil
		}
	}
	return nil, err
}

// list returns a current list of issuer's from where cert says that it is.
func (f *Fetcher) list(ctx context.Context, cert, issuer *x509.Certificate) (*x509.RevocationList, error) {
	err := errNoList
	for _, uri := range plainHTTP(cert.CRLDistributionPoints) {
		id := sha256.Sum256(issuer.Raw)
		var e *entry
		e, err = f.get(ctx, "list "+uri+" "+string(id[:]), func(ctx context.Context) (*entry, error) {
			data, err := f.fetch(ctx, http.MethodGet, uri, "", nil, certs.MaxCRLBytes)
			if err != nil {
				return nil, err
			}
			list, err := x509.ParseRevocationList(data)
			if err != nil {
				return nil, fmt.Errorf("the list at %s: %w", uri, err)
			}
			if err := certs.CheckCRL(list, issuer); err != nil {
				return nil, err
			}
			if !list.NextUpdate.IsZero() && f.opt.Now().After(list.NextUpdate) {
				return nil, fmt.Errorf("the list at %s: expected a current one, came one that ended on %s", uri, list.NextUpdate.UTC().Format(time.RFC3339))
			}
			return &entry{list: list, data: data, from: list.ThisUpdate, until: list.NextUpdate}, nil
		})
		if err == nil {
			return e.list, nil
		}
	}
	return nil, err
}

// plainHTTP returns the URIs that are fetched: http alone, for with https the server's certificate would
// have to be judged first, and its revocation (RFC 5280, section 8).
func plainHTTP(uris []string) []string {
	var out []string
	for _, s := range uris {
		if u, err := url.Parse(s); err == nil && u.Scheme == "http" && u.Host != "" && u.User == nil && len(out) < maxURIs {
			out = append(out, s)
		}
	}
	return out
}

// get returns what is kept under key, or has it fetched, once for all who ask at the same time.
func (f *Fetcher) get(ctx context.Context, key string, fetch func(context.Context) (*entry, error)) (*entry, error) {
	f.mu.Lock()
	now := f.opt.Now()
	e := f.entries[key]
	if e != nil && e.over() {
		switch {
		case !now.Before(e.until):
			f.drop(key)
			e = nil
		case e.err == nil && !e.renewed && now.Sub(e.from) > e.until.Sub(e.from)/refreshAt:
			e.renewed = true
			f.wg.Go(func() { f.renew(key, fetch) })
		}
	}
	if e == nil {
		e = &entry{done: make(chan struct{})}
		f.entries[key] = e
		f.wg.Go(func() { f.run(key, e, fetch) })
	}
	f.mu.Unlock()
	select {
	case <-e.done:
		return e, e.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (e *entry) over() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

// run fetches for an entry that others wait for.
func (f *Fetcher) run(key string, e *entry, fetch func(context.Context) (*entry, error)) {
	got, err := f.attempt(key, fetch)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		e.err, e.until = err, f.opt.Now().Add(failedFor)
	} else {
		e.data, e.list, e.from, e.until = got.data, got.list, got.from, f.end(got)
		f.size += len(e.data)
	}
	close(e.done)
	f.trim(key)
}

// renew replaces an entry that still serves; where that fails it serves until it ends.
func (f *Fetcher) renew(key string, fetch func(context.Context) (*entry, error)) {
	got, err := f.attempt(key, fetch)
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.entries[key]
	switch {
	case old == nil || !old.over():
		return
	case err != nil:
		old.renewed, old.from = false, f.opt.Now() // not again before half of what is left
		return
	}
	got.done, got.until = old.done, f.end(got)
	f.drop(key)
	f.entries[key] = got
	f.size += len(got.data)
	f.trim(key)
}

func (f *Fetcher) end(e *entry) time.Time {
	if e.until.IsZero() {
		return f.opt.Now().Add(noEnd)
	}
	return e.until
}

func (f *Fetcher) attempt(key string, fetch func(context.Context) (*entry, error)) (*entry, error) {
	ctx, cancel := context.WithTimeout(f.ctx, fetchTime)
	defer cancel()
	what, _, _ := bytes.Cut([]byte(key), []byte(" "))
	got, err := fetch(ctx)
	if err != nil {
		f.opt.Log("revocation state cannot be fetched", "what", string(what), "error", err.Error())
		return nil, err
	}
	f.opt.Log("revocation state fetched", "what", string(what), "until", got.until)
	return got, nil
}

func (f *Fetcher) drop(key string) {
	if e := f.entries[key]; e != nil && e.over() {
		f.size -= len(e.data)
		delete(f.entries, key)
	}
}

// trim keeps the bounds: what ends first goes first, but not what was just fetched.
func (f *Fetcher) trim(but string) {
	for len(f.entries) > maxEntries || f.size > maxKept {
		first := ""
		for key, e := range f.entries {
			if key != but && e.over() && (first == "" || e.until.Before(f.entries[first].until)) {
				first = key
			}
		}
		if first == "" {
			return
		}
		f.drop(first)
	}
}

// fetch makes one request.
func (f *Fetcher) fetch(ctx context.Context, method, uri, kind string, body []byte, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, uri, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", uri, err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := f.opt.Client.Do(req)
	if err != nil {
		return nil, err // names the URI
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: expected HTTP 200, came %d", uri, resp.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", uri, err)
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("%s: expected at most %d octets, came more", uri, limit)
	}
	return data, nil
}
