package enroltest

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/router/centre"
	"wardgate/sp/issue"
	"wardgate/sp/issue/issuetest"
)

// front stands where the centre stood, with the centre's own TLS key: whoever got hold of that, and what it
// may not bring about. What it does not answer itself is not found.
func (w *world) front(paths map[string]http.HandlerFunc) (back func()) {
	w.Helper()
	cert := must(tls.LoadX509KeyPair(filepath.Join(w.dir, "web.pem"), filepath.Join(w.dir, "web.key")))(w)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if h := paths[r.URL.Path]; h != nil {
			h(rw, r)
			return
		}
		http.NotFound(rw, r)
	}))
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"http/1.1"}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	w.Cleanup(s.Close)
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.addr
	w.addr = s.Listener.Addr().String()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.addr = was
	}
}

// certsOnly answers with certificates (RFC 7030, section 4.1.3).
func certsOnly(rw http.ResponseWriter, ders ...[]byte) {
	var all []byte
	for _, der := range ders {
		all = append(all, der...)
	}
	b, err := pkcs7.DegenerateCertificate(all)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "application/pkcs7-mime")
	_, _ = io.WriteString(rw, base64.StdEncoding.EncodeToString(b))
}

// refusesAnswer lets a device that knows its policy and has no certificate yet enrol at a front, and checks
// that it refuses with a code, keeps no certificate, tells an event, and tells the centre when it is back.
func refusesAnswer(t *testing.T, code centre.Code, keys int, paths func(w *world, a, b *device) map[string]http.HandlerFunc) {
	t.Helper()
	w, a, b := hostile(t)
	w.leave(devA, "group-b")
	w.apply()
	b.joined()
	agent, ctx := a.boot(0)
	t.Cleanup(agent.Close)
	if _, err := agent.Poll(ctx, 0); err != nil {
		t.Fatal(err)
	}
	back := w.front(paths(w, a, b))
	agent.Close() // the connection to the centre
	_, err := agent.Sync(ctx)
	if !errors.Is(err, code) {
		t.Fatalf("%v, want %s", err, code)
	}
	list := a.keys()
	for _, k := range list {
		if k.Cert != nil {
			t.Errorf("stored %s", certs.SubjectOf(k.Cert))
		}
	}
	if len(list) != keys {
		t.Errorf("%d keys on the token, want %d", len(list), keys)
	}
	if told := a.told(centre.EventFailed); len(told) != 1 || told[0].Service != "group-a" || !errors.Is(told[0].Err, code) {
		t.Errorf("told %v", told)
	}
	back()
	agent.Close()
	if err := agent.Report(ctx); err != nil {
		t.Fatal(err)
	}
	if got := must(w.running.Store().Report(w.context(), devA))(t).Errors; len(got) != 1 || got[0].Code != string(code) {
		t.Errorf("the centre was told %+v", got)
	}
	// At the real centre it works.
	w.pass(time.Hour)
	if _, err := agent.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	w.enrolled[devA+" group-a"] = 1
	a.has("group-a")
}

const (
	pathCACerts = "/.well-known/est/group-a/cacerts"
	pathEnroll  = "/.well-known/est/group-a/simpleenroll"
)

// A service CA that the network offers but the policy's anchors do not know: not even a key is made for it.
func TestRefusedUnknownServiceCA(t *testing.T) {
	refusesAnswer(t, centre.UntrustedCA, 0, func(w *world, _, _ *device) map[string]http.HandlerFunc {
		foreign := must(labca.New(labca.Options{Kind: labca.Service, Name: "group-a", Domain: "group-a.example", At: w.Now().Add(-time.Hour)}))(w)
		return map[string]http.HandlerFunc{pathCACerts: func(rw http.ResponseWriter, _ *http.Request) {
			certsOnly(rw, append(labca.DER(foreign.Intermediates()), foreign.Anchor().Raw)...)
		}}
	})
}

// serviceCA is the centre's own CA of group-a.
func (w *world) serviceCA() *issue.Service {
	w.Helper()
	ca := must(issue.OpenCA(filepath.Join(w.dir, "services", "group-a", "1"), nil, w.Now()))(w)
	return must(issue.NewService(issue.Config{Name: "group-a", Domain: "group-a.example", Rand: rand.Reader, Recorder: issuetest.NewMemory()}, w.Now(), ca))(w)
}

// issued answers a request for a certificate with one that is changed: for whatever key and device.
func (w *world) issued(s *issue.Service, change func(r *issue.Request)) map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		pathCACerts: func(rw http.ResponseWriter, _ *http.Request) {
			certsOnly(rw, append(labca.DER(s.Anchors()), labca.DER(s.Intermediates())...)...)
		},
		pathEnroll: func(rw http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, r.Body))
			if err != nil {
				w.Error(err)
			}
			csr, err := certs.ParseCSR(body)
			if err != nil {
				w.Error(err)
				return
			}
			q := issue.Request{Public: csr.PublicKey, Names: []string{"a.group-a.example"}, Device: devA, DeviceDER: r.TLS.PeerCertificates[0].Raw, Now: w.Now()}
			change(&q)
			is, err := s.Issue(r.Context(), q)
			if err != nil {
				w.Error(err)
				return
			}
			certsOnly(rw, is.Certificate.Raw)
		},
	}
}

// A service certificate of the right CA that is bound to another device.
func TestRefusedCertificateBoundToAnotherDevice(t *testing.T) {
	refusesAnswer(t, centre.BadCert, 1, func(w *world, _, b *device) map[string]http.HandlerFunc {
		return w.issued(w.serviceCA(), func(q *issue.Request) { q.DeviceDER = b.cert.Raw })
	})
}

// One for a key that is not on the token.
func TestRefusedCertificateForAnotherKey(t *testing.T) {
	refusesAnswer(t, centre.BadCert, 1, func(w *world, _, _ *device) map[string]http.HandlerFunc {
		return w.issued(w.serviceCA(), func(q *issue.Request) { q.Public = w.newKey().Public() })
	})
}

// Answers that make no sense, from whoever stands there: the device asks again later, each time later, and
// not sooner than it was told, up to an hour.
func TestNonsenseIsNotHammered(t *testing.T) {
	t.Parallel()
	answer := func(status int, header ...string) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				rw.Header().Set(header[i], header[i+1])
			}
			rw.WriteHeader(status)
			_, _ = io.WriteString(rw, strings.Repeat("nonsense ", 1000))
		}
	}
	for name, c := range map[string]struct {
		do    http.HandlerFunc
		least time.Duration // from the first question for the policy to the fourth
	}{
		"500":                     {answer(500), 10 * time.Second / 2},
		"503":                     {answer(503, "Retry-After", "120"), 6 * time.Minute},
		"429":                     {answer(429, "Retry-After", "600"), 30 * time.Minute},
		"Retry-After of a year":   {answer(503, "Retry-After", "31536000"), 3 * time.Hour},
		"Retry-After without end": {answer(503, "Retry-After", strconv.Itoa(1<<62)+"000"), 3 * time.Hour},
		"a redirect":              {answer(307, "Location", "https://evil.example/"), 10 * time.Second / 2},
		"HTML":                    {answer(200, "Content-Type", "text/html"), 10 * time.Second / 2},
		"a policy of nonsense":    {answer(200, "Content-Type", "application/jose"), 10 * time.Second / 2},
	} {
		t.Run(name, func(t *testing.T) {
			w, a, _ := hostile(t)
			asked := make(chan time.Time, 1000)
			w.front(map[string]http.HandlerFunc{
				"/v1/policy": func(rw http.ResponseWriter, r *http.Request) { asked <- w.Now(); c.do(rw, r) },
				"/v1/report": c.do,
			})
			_, stop := a.run()
			defer stop()
			var times []time.Time
			w.eventually("it asks four times", max(c.least/100, time.Second/2), func() bool {
				for len(asked) > 0 {
					times = append(times, <-asked)
				}
				return len(times) >= 4
			})
			if d := times[3].Sub(times[0]); d < c.least {
				t.Errorf("four times within %v, want no sooner than %v", d, c.least)
			}
		})
	}
}
