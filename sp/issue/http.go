package issue

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Responder hands out revocation lists and OCSP answers of several services:
//
//	GET  …/crl/{service}/{ca}.crl
//	POST …/ocsp              application/ocsp-request
//	GET  …/ocsp/{base64}     the same, as RFC 6960, appendix A.1 has it
//
// mounted by [Responder.Register]. Both are signed and may go over plain HTTP (RFC 5280, section 8):
// who checks a certificate by them may have no trusted channel yet. It is safe for concurrent use.
type Responder struct {
	Services func() []*Service // those in operation at the moment
	Now      func() time.Time
	Life     time.Duration // of OCSP answers; zero: 10 minutes
	Timeout  time.Duration // for one answer; zero: 5 seconds

	// Rate is how many answers are signed a second (a token's key is slow), with bursts of as
	// many; zero: 200. What goes beyond is answered tryLater.
	Rate float64

	mu     sync.Mutex // guards what follows
	tokens float64
	last   time.Time
	cache  map[string]*OCSPAnswer // answers without nonce, by request and status
}

const (
	defaultOCSPLife    = 10 * time.Minute
	defaultOCSPTimeout = 5 * time.Second
	defaultOCSPRate    = 200
	maxOCSPCache       = 4096 // answers
)

// Register mounts the responder below prefix ("" or "/status").
func (p *Responder) Register(mux *http.ServeMux, prefix string) {
	mux.HandleFunc("GET "+prefix+"/crl/{service}/{file}", p.serveCRL)
	mux.HandleFunc("POST "+prefix+"/ocsp", p.servePOST)
	mux.HandleFunc("POST "+prefix+"/ocsp/{$}", p.servePOST)
	mux.HandleFunc("GET "+prefix+"/ocsp/{request...}", p.serveGET)
}

func (p *Responder) serveCRL(w http.ResponseWriter, r *http.Request) {
	id, ok := strings.CutSuffix(r.PathValue("file"), ".crl")
	name := r.PathValue("service")
	if _, err := hex.DecodeString(id); !ok || err != nil || !ValidName(name) {
		http.Error(w, "expected …/crl/SERVICE/CA.crl, where CA is the key identifier of the issuing CA in hexadecimal", http.StatusNotFound)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), p.timeout())
	defer cancel()
	for _, s := range p.Services() {
		if s.Name() != name {
			continue
		}
		now := p.Now()
		l, err := s.CRL(ctx, id, now)
		switch {
		case errors.Is(err, ErrUnknownCA), errors.Is(err, ErrRootOffline):
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			w.Header().Set("Retry-After", "10")
			http.Error(w, "the list cannot be made at the moment; ask again later", http.StatusServiceUnavailable)
		default:
			w.Header().Set("Content-Type", "application/pkix-crl") // RFC 2585
			w.Header().Set("Cache-Control", "public, max-age=60")
			w.Header().Set("Last-Modified", l.ThisUpdate.UTC().Format(http.TimeFormat))
			w.Header().Set("ETag", `"`+l.Number.String()+`"`)
			send(w, l.Raw)
		}
		return
	}
	http.Error(w, "expected the name of a service, got one that is not known here", http.StatusNotFound)
}

func (p *Responder) servePOST(w http.ResponseWriter, r *http.Request) {
	if ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); !strings.EqualFold(strings.TrimSpace(ct), "application/ocsp-request") {
		http.Error(w, "expected Content-Type application/ocsp-request (RFC 6960, appendix A.1)", http.StatusUnsupportedMediaType)
		return
	}
	der, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxOCSPBytes))
	if err != nil {
		http.Error(w, fmt.Sprintf("expected a request of at most %d octets", MaxOCSPBytes), http.StatusRequestEntityTooLarge)
		return
	}
	p.answer(w, r, der, false)
}

// serveGET reads the request from the path: base64, then escaped for a URL.
func (p *Responder) serveGET(w http.ResponseWriter, r *http.Request) {
	_, after, _ := strings.Cut(r.URL.EscapedPath(), "/ocsp/")
	text, err := url.PathUnescape(after)
	if err == nil && len(text) > base64.StdEncoding.EncodedLen(MaxOCSPBytes) {
		err = ErrMalformed
	}
	var der []byte
	if err == nil {
		der, err = base64.StdEncoding.DecodeString(text)
	}
	if err != nil {
		http.Error(w, "expected …/ocsp/ with the request in base64 (RFC 6960, appendix A.1)", http.StatusBadRequest)
		return
	}
	p.answer(w, r, der, true)
}

func (p *Responder) answer(w http.ResponseWriter, r *http.Request, der []byte, get bool) {
	ctx, cancel := context.WithTimeout(r.Context(), p.timeout())
	defer cancel()
	w.Header().Set("Content-Type", "application/ocsp-response")
	a, err := p.Answer(ctx, der, p.Now())
	if err != nil {
		w.Header().Set("Cache-Control", "no-store")
		send(w, OCSPError(err))
		return
	}
	// RFC 5019, section 6.2: answers to GET may be cached; a nonce is for one asker alone.
	if get && !a.Nonce {
		w.Header().Set("Cache-Control", fmt.Sprintf("public, no-transform, must-revalidate, max-age=%d", max(0, int(a.NextUpdate.Sub(p.Now()).Seconds()))))
		w.Header().Set("Last-Modified", a.ThisUpdate.UTC().Format(http.TimeFormat))
		w.Header().Set("Expires", a.NextUpdate.UTC().Format(http.TimeFormat))
	} else {
		w.Header().Set("Cache-Control", "no-store")
	}
	send(w, a.DER)
}

func send(w http.ResponseWriter, b []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	_, _ = w.Write(b) // a client that is gone cannot be told
}

// Answer answers an OCSP request about a certificate of any of the services. Answers without a
// nonce are signed once and used again for half of their life, as long as nothing was revoked.
func (p *Responder) Answer(ctx context.Context, der []byte, now time.Time) (*OCSPAnswer, error) {
	req, err := parseOCSP(der)
	if err != nil {
		return nil, err
	}
	life := p.Life
	if life == 0 {
		life = defaultOCSPLife
	}
	for _, s := range p.Services() {
		g := s.cas.Load()
		i := g.find(req.ids)
		if i < 0 {
			continue
		}
		key := ""
		if req.nonce == nil {
			if key, err = s.statusKey(ctx, g.list[i], req, now); err != nil {
				return nil, err
			}
			if a := p.cached(key, now, life); a != nil {
				return a, nil
			}
		}
		if !p.take(now) {
			return nil, errBusy
		}
		a, err := s.answerOCSP(ctx, req, now, life)
		if err == nil && key != "" {
			p.keep(key, a, now)
		}
		return a, err
	}
	return nil, fmt.Errorf("%w: expected a certificate by a service of this SP", ErrUnknownCA)
}

// statusKey names an answer by all that it says but for the time.
func (s *Service) statusKey(ctx context.Context, ca *CA, r *ocspRequest, now time.Time) (string, error) {
	var b strings.Builder
	b.WriteString(KeyID(ca.Cert))
	for i := range r.ids {
		st, err := s.status(ctx, ca, r.ids[i].serial, now)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " %x %t %d %d", r.ids[i].raw, st.known, st.revokedAt.Unix(), st.reason)
	}
	return b.String(), nil
}

func (p *Responder) cached(key string, now time.Time, life time.Duration) *OCSPAnswer {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.cache[key]
	if a == nil || now.Before(a.ThisUpdate) || !now.Before(a.ThisUpdate.Add(life/2)) || now.After(a.NextUpdate) {
		return nil
	}
	return a
}

func (p *Responder) keep(key string, a *OCSPAnswer, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cache == nil {
		p.cache = map[string]*OCSPAnswer{}
	}
	if len(p.cache) >= maxOCSPCache {
		for k, old := range p.cache {
			if !now.Before(old.NextUpdate) {
				delete(p.cache, k)
			}
		}
		if len(p.cache) >= maxOCSPCache {
			clear(p.cache)
		}
	}
	p.cache[key] = a
}

// take asks for one signature.
func (p *Responder) take(now time.Time) bool {
	rate := p.Rate
	if rate == 0 {
		rate = defaultOCSPRate
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last.IsZero() {
		p.tokens = rate
	} else if d := now.Sub(p.last).Seconds(); d > 0 {
		p.tokens = min(rate, p.tokens+d*rate)
	}
	p.last = now
	if p.tokens < 1 {
		return false
	}
	p.tokens--
	return true
}

func (p *Responder) timeout() time.Duration {
	if p.Timeout == 0 {
		return defaultOCSPTimeout
	}
	return p.Timeout
}
