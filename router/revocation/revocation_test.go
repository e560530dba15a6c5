package revocation_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ocsp"

	"wardgate/internal/certs"
	"wardgate/router/revocation"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

var t0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// world is a CA with its HTTP server, and a fetcher with a clock of its own.
type world struct {
	t          *testing.T
	f          *revocation.Fetcher
	now        atomic.Int64 // after t0
	ca         *x509.Certificate
	key        crypto.Signer
	url        string
	serve      func(w http.ResponseWriter, r *http.Request)
	ocsp, list atomic.Int32 // requests
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t}
	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: t0.Add(-time.Hour), NotAfter: t0.Add(1000 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	w.ca, w.key = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)))), k
	w.serve = w.answer
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/ocsp") {
			w.ocsp.Add(1)
		} else {
			w.list.Add(1)
		}
		w.serve(rw, r)
	}))
	w.url = s.URL
	w.f = revocation.New(revocation.Options{Now: func() time.Time { return t0.Add(time.Duration(w.now.Load())) }})
	t.Cleanup(func() {
		w.f.Close()
		s.Close()
	})
	return w
}

// answer is an honest server's.
func (w *world) answer(rw http.ResponseWriter, r *http.Request) {
	now := t0.Add(time.Duration(w.now.Load()))
	if strings.HasPrefix(r.URL.Path, "/ocsp") {
		req := must(ocsp.ParseRequest(must(io.ReadAll(r.Body))))
		_, _ = rw.Write(must(ocsp.CreateResponse(w.ca, w.ca, ocsp.Response{Status: ocsp.Good, SerialNumber: req.SerialNumber, ThisUpdate: now, NextUpdate: now.Add(2 * time.Hour)}, w.key)))
		return
	}
	_, _ = rw.Write(must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(2 * time.Hour)}, w.ca, w.key)))
}

// leaf is a certificate that names these places.
func (w *world) leaf(responders, lists []string) []*x509.Certificate {
	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<60))), Subject: pkix.Name{CommonName: "leaf"}, NotBefore: t0.Add(-time.Hour), NotAfter: t0.Add(100 * time.Hour),
		OCSPServer: responders, CRLDistributionPoints: lists,
	}
	return []*x509.Certificate{must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, w.ca, k.Public(), w.key)))), w.ca}
}

func (w *world) get(chain []*x509.Certificate) (lists, responses int, err error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	l, r, err := w.f.For(ctx, chain)
	return len(l), len(r), err
}

func (w *world) want(chain []*x509.Certificate, lists, responses int, fails bool) {
	w.t.Helper()
	if l, r, err := w.get(chain); l != lists || r != responses || (err != nil) != fails {
		w.t.Errorf("%d lists, %d responses, %v; want %d and %d", l, r, err, lists, responses)
	}
}

func TestOCSPFirst(t *testing.T) {
	w := newWorld(t)
	chain := w.leaf([]string{w.url + "/ocsp"}, []string{w.url + "/ca.crl"})
	for range 3 {
		w.want(chain, 0, 1, false)
	}
	if w.ocsp.Load() != 1 || w.list.Load() != 0 {
		t.Errorf("asked %d and %d times", w.ocsp.Load(), w.list.Load())
	}
	// After half its life the old one still serves, and its successor comes.
	w.now.Store(int64(61 * time.Minute))
	w.want(chain, 0, 1, false)
	for end := time.Now().Add(20 * time.Second); w.ocsp.Load() < 2 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if w.ocsp.Load() != 2 {
		t.Error("no successor was fetched")
	}
	// What has ended is fetched before it is given out.
	w.now.Store(int64(10 * time.Hour))
	w.want(chain, 0, 1, false)
	if w.ocsp.Load() != 3 {
		t.Errorf("asked %d times", w.ocsp.Load())
	}
}

func TestListWhereThereIsNoResponder(t *testing.T) {
	w := newWorld(t)
	one, two := w.leaf(nil, []string{w.url + "/ca.crl"}), w.leaf(nil, []string{w.url + "/ca.crl"})
	w.want(one, 1, 0, false)
	w.want(two, 1, 0, false) // the same list
	if w.list.Load() != 1 {
		t.Errorf("fetched %d times", w.list.Load())
	}
	// A responder that is down is asked once a minute, and the list takes its place.
	w.serve = func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/ocsp") {
			rw.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.answer(rw, r)
	}
	both := w.leaf([]string{w.url + "/ocsp"}, []string{w.url + "/ca.crl"})
	for range 3 {
		w.want(both, 1, 0, false)
	}
	if w.ocsp.Load() != 1 {
		t.Errorf("a responder that fails was asked %d times", w.ocsp.Load())
	}
	w.now.Store(int64(2 * time.Minute))
	w.want(both, 1, 0, false)
	if w.ocsp.Load() != 2 {
		t.Errorf("after two minutes it was asked %d times", w.ocsp.Load())
	}
}

// TestHostileAnswers: none of them is taken, and none is followed.
func TestHostileAnswers(t *testing.T) {
	w := newWorld(t)
	other := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	forged := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(9), Subject: w.ca.Subject, NotBefore: t0.Add(-time.Hour), NotAfter: t0.Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign,
	}, w.ca, other.Public(), w.key))))
	followed := false
	for name, serve := range map[string]func(http.ResponseWriter, *http.Request){
		"redirect": func(rw http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/followed") {
				followed = true
			}
			http.Redirect(rw, r, r.URL.Path+"/followed", http.StatusFound)
		},
		"too large": func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(make([]byte, certs.MaxCRLBytes+1)) },
		"nonsense":  func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte("nonsense")) },
		"empty":     func(http.ResponseWriter, *http.Request) {},
		"forged list": func(rw http.ResponseWriter, _ *http.Request) {
			_, _ = rw.Write(must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: t0, NextUpdate: t0.Add(time.Hour)}, forged, other)))
		},
		"list that has ended": func(rw http.ResponseWriter, _ *http.Request) {
			_, _ = rw.Write(must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: t0.Add(-2 * time.Hour), NextUpdate: t0.Add(-time.Hour)}, w.ca, w.key)))
		},
		"broken off": func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", "1000")
			_, _ = rw.Write([]byte("x"))
		},
	} {
		w.serve = serve
		w.want(w.leaf([]string{w.url + "/ocsp/" + name[:3]}, []string{w.url + "/" + name[:3]}), 0, 0, true)
		w.now.Add(int64(2 * time.Minute)) // so that what failed is not remembered
	}
	if followed {
		t.Error("a redirect was followed")
	}
}

// TestOnlyPlainHTTP: other schemes are not touched.
func TestOnlyPlainHTTP(t *testing.T) {
	w := newWorld(t)
	https := strings.Replace(w.url, "http://", "https://", 1)
	user := strings.Replace(w.url, "http://", "http://u:p@", 1)
	w.want(w.leaf([]string{https, "ldap://x/y", user, "file:///etc/passwd", "::"}, []string{https, user, "ftp://x"}), 0, 0, true)
	if w.ocsp.Load()+w.list.Load() > 0 {
		t.Error("something was asked")
	}
}

// TestOnceForAll: who asks at the same time is served by one request; who goes away does not end it.
func TestOnceForAll(t *testing.T) {
	w := newWorld(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	var first sync.Once
	w.serve = func(rw http.ResponseWriter, r *http.Request) {
		first.Do(func() { close(arrived) })
		<-release
		w.answer(rw, r)
	}
	chain := w.leaf([]string{w.url + "/ocsp"}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan error, 1)
	go func() { _, err := w.f.OCSP(ctx, chain[0], chain[1]); gone <- err }()
	<-arrived
	cancel()
	if err := <-gone; err == nil {
		t.Error("no error for who went away")
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { w.want(chain, 0, 1, false) })
	}
	close(release)
	wg.Wait()
	if w.ocsp.Load() != 1 {
		t.Errorf("asked %d times", w.ocsp.Load())
	}
}

// TestBounded: however many certificates there are, what is kept is bounded.
func TestBounded(t *testing.T) {
	w := newWorld(t)
	w.serve = func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNotFound) }
	for range 1200 {
		w.want(w.leaf([]string{w.url + "/ocsp"}, nil), 0, 0, true)
	}
	if n := w.f.Kept(); n > 1024 {
		t.Errorf("%d answers are kept", n)
	}
}

func TestClosed(t *testing.T) {
	w := newWorld(t)
	w.f.Close()
	w.want(w.leaf([]string{w.url + "/ocsp"}, []string{w.url + "/l"}), 0, 0, true)
}
