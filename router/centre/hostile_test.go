package centre_test

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/router/centre"
	"wardgate/sp/issue"
)

// roll gives a service a new CA; with crossed, old and new have signed each other.
func (w *world) roll(service string, crossed bool) {
	w.Helper()
	s := w.services[service]
	next := must(issue.NewCA(issue.CAOptions{Service: service, Domain: service + ".example", NotBefore: time.Now().Add(-time.Hour), Rand: rand.Reader}))
	if crossed {
		next = must(issue.CrossSign(rand.Reader, s.Current(), next, time.Now()))
	}
	if err := s.Roll(next, time.Now()); err != nil {
		w.Fatal(err)
	}
}

func certsOnly(list ...*x509.Certificate) string {
	var all []byte
	for _, c := range list {
		all = append(all, c.Raw...)
	}
	return base64.StdEncoding.EncodeToString(must(pkcs7.DegenerateCertificate(all)))
}

// answer makes the centre answer one path in its own way.
func (w *world) answer(path string, f http.HandlerFunc) {
	w.set(func() {
		w.override = func(rw http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != path {
				return false
			}
			f(rw, r)
			return true
		}
	})
}

func text(kind, body string) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", kind)
		_, _ = rw.Write([]byte(body))
	}
}

const (
	cacerts = "/.well-known/est/group-a/cacerts"
	attrs   = "/.well-known/est/group-a/csrattrs"
	enroll  = "/.well-known/est/group-a/simpleenroll"
	pol     = "/v1/policy"
	p7      = "application/pkcs7-mime"
)

func TestHostile(t *testing.T) {
	t.Parallel()
	foreign := func(w *world) *labca.Authority {
		return must(labca.New(labca.Options{Kind: labca.Service, Name: "group-a", Domain: "group-a.example", At: time.Now().Add(-time.Hour)}))
	}
	drip := func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", p7)
		for r.Context().Err() == nil {
			if _, err := rw.Write([]byte("A")); err != nil {
				return
			}
			_ = http.NewResponseController(rw).Flush()
			time.Sleep(time.Second)
		}
	}
	silent := func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // the server notices that the client is gone when nothing of the request is left
		<-r.Context().Done()
	}
	moved := func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, "https://evil.example/"+strings.Repeat("x", 5000)+"%1b", http.StatusTemporaryRedirect)
	}
	broken := func(kind string) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", kind)
			rw.Header().Set("Content-Length", "1000")
			_, _ = rw.Write([]byte("MIIB"))
			_ = http.NewResponseController(rw).Flush()
			panic(http.ErrAbortHandler)
		}
	}
	flood := func(kind string) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", kind)
			junk := []byte(strings.Repeat("A", 1<<16))
			for range 1 << 10 {
				if _, err := rw.Write(junk); err != nil {
					return
				}
			}
		}
	}
	announced := func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", p7)
		rw.Header().Set("Content-Length", "99999999999")
		_ = http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	}
	headers := func(rw http.ResponseWriter, _ *http.Request) {
		for i := range 1000 {
			rw.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 100))
		}
	}
	policy := func(d document) http.HandlerFunc {
		return text("application/jose", string(must(json.Marshal(d))))
	}
	for _, c := range []struct {
		name string
		do   func(w *world)
		want centre.Code
		// kept: how many keys may wait on the token: 0 where nothing may be made for such a centre.
		kept int
	}{
		{"cacerts of a foreign CA", func(w *world) {
			f := foreign(w)
			w.answer(cacerts, text(p7, certsOnly(append(f.Intermediates(), f.Anchor())...)))
		}, centre.UntrustedCA, 0},
		{"a service whose CA was exchanged", func(w *world) { w.anchors["group-a"] = []*x509.Certificate{foreign(w).Anchor()} }, centre.UntrustedCA, 0},
		{"no anchors in the policy", func(w *world) { w.anchors["group-a"] = nil }, centre.UntrustedCA, 0},
		{"a certificate by a foreign CA", func(w *world) {
			f := foreign(w)
			w.answer(cacerts, text(p7, certsOnly(append(f.Intermediates(), f.Anchor(), w.anchors["group-a"][0])...)))
			w.answerAlso(enroll, func(rw http.ResponseWriter, r *http.Request) {
				csr := readCSR(r)
				leaf := must(f.Issue(labca.Request{Public: csr.PublicKey, DNSNames: []string{"a.group-a.example"}, At: time.Now(), Device: w.token.device.Cert.Raw}))
				text(p7, certsOnly(leaf))(rw, r)
			})
		}, centre.UntrustedCA, 1},
		{"a certificate for another device", func(w *world) {
			w.answer(enroll, func(rw http.ResponseWriter, r *http.Request) {
				csr := readCSR(r)
				is, err := w.services["group-a"].Issue(r.Context(), issue.Request{Public: csr.PublicKey, Names: []string{"a.group-a.example"}, Device: "b", DeviceDER: w.newDevice().Cert.Raw, Now: time.Now()})
				if err != nil {
					w.Error(err)
					return
				}
				text(p7, certsOnly(is.Certificate))(rw, r)
			})
		}, centre.BadCert, 1},
		{"a certificate for another key", func(w *world) {
			w.answer(enroll, func(rw http.ResponseWriter, r *http.Request) {
				is, err := w.services["group-a"].Issue(r.Context(), issue.Request{Public: newKey().Public(), Names: []string{"a.group-a.example"}, Device: w.name, DeviceDER: w.token.device.Cert.Raw, Now: time.Now()})
				if err != nil {
					w.Error(err)
					return
				}
				text(p7, certsOnly(is.Certificate))(rw, r)
			})
		}, centre.BadCert, 1},
		{"cacerts: redirect", func(w *world) { w.answer(cacerts, moved) }, centre.Redirect, 0},
		{"cacerts: HTML", func(w *world) { w.answer(cacerts, text("text/html", "<html>log in</html>")) }, centre.ContentType, 0},
		{"cacerts: compressed", func(w *world) {
			w.answer(cacerts, func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Content-Encoding", "gzip")
				text(p7, "x")(rw, r)
			})
		}, centre.ContentType, 0},
		{"cacerts: no base64", func(w *world) { w.answer(cacerts, text(p7, "%%%%")) }, centre.Malformed, 0},
		{"cacerts: empty", func(w *world) { w.answer(cacerts, text(p7, "")) }, centre.Malformed, 0},
		{"cacerts: no CMS", func(w *world) { w.answer(cacerts, text(p7, "MAA=")) }, centre.Malformed, 0},
		{"cacerts: truncated", func(w *world) { w.answer(cacerts, broken(p7)) }, centre.Malformed, 0},
		{"cacerts: too much", func(w *world) { w.answer(cacerts, flood(p7)) }, centre.TooLarge, 0},
		{"cacerts: too much announced", func(w *world) { w.answer(cacerts, announced) }, centre.TooLarge, 0},
		{"cacerts: drips", func(w *world) { w.answer(cacerts, drip) }, centre.TooSlow, 0},
		{"cacerts: silence", func(w *world) { w.answer(cacerts, silent) }, centre.TooSlow, 0},
		{"cacerts: headers without end", func(w *world) { w.answer(cacerts, headers) }, centre.Unreachable, 0},
		{"csrattrs: malformed", func(w *world) { w.answer(attrs, text("application/csrattrs", "MAI=")) }, centre.Malformed, 0},
		{"csrattrs: another curve", func(w *world) {
			w.answer(attrs, text("application/csrattrs", base64.StdEncoding.EncodeToString([]byte{0x30, 0x12, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x31, 0x05, 0x06, 0x03, 0x2b, 0x81, 0x04})))
		}, centre.Refused, 0},
		{"simpleenroll: redirect", func(w *world) { w.answer(enroll, moved) }, centre.Redirect, 1},
		{"simpleenroll: HTML", func(w *world) { w.answer(enroll, text("text/html", "<html>log in</html>")) }, centre.ContentType, 1},
		{"simpleenroll: truncated", func(w *world) { w.answer(enroll, broken(p7)) }, centre.Malformed, 1},
		{"simpleenroll: too much", func(w *world) { w.answer(enroll, flood(p7)) }, centre.TooLarge, 1},
		{"simpleenroll: drips", func(w *world) { w.answer(enroll, drip) }, centre.TooSlow, 1},
		{"simpleenroll: silence", func(w *world) { w.answer(enroll, silent) }, centre.TooSlow, 1},
		{"simpleenroll: headers without end", func(w *world) { w.answer(enroll, headers) }, centre.TooLarge, 1},
		{"policy: redirect", func(w *world) { w.answer(pol, moved) }, centre.Redirect, 0},
		{"policy: HTML", func(w *world) { w.answer(pol, text("text/html", "<html>log in</html>")) }, centre.ContentType, 0},
		{"policy: truncated", func(w *world) { w.answer(pol, broken("application/jose")) }, centre.Malformed, 0},
		{"policy: too much", func(w *world) { w.answer(pol, flood("application/jose")) }, centre.TooLarge, 0},
		{"policy: silence", func(w *world) { w.answer(pol, silent) }, centre.TooSlow, 0},
		{"policy: none", func(w *world) { w.answer(pol, http.NotFound) }, centre.NoPolicy, 0},
		{"policy: nothing changed, though there is none", func(w *world) {
			w.answer(pol, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNotModified) })
		}, centre.Malformed, 0},
		{"policy: forged", func(w *world) { w.answer(pol, policy(document{Device: w.name, Serial: 9, Forged: true})) }, centre.PolicyBad, 0},
		{"policy: another device's", func(w *world) { w.answer(pol, policy(document{Device: "b", Serial: 9})) }, centre.PolicyBad, 0},
		{"another web root", func(w *world) { w.webRoot = w.newRoot("Other Root", newKey()) }, centre.TLS, 0},
		{"no network", func(w *world) { w.cut = true }, centre.Unreachable, 0},
		{"nobody answers", func(w *world) { _ = w.listener.Close() }, centre.Unreachable, 0},
		{"clock far behind", func(w *world) { w.offset = -2 * time.Hour }, centre.ClockWrong, 0},
		{"clock somewhat behind", func(w *world) { w.offset = -10 * time.Minute }, centre.ClockWrong, 0},
		{"clock ahead", func(w *world) { w.offset = 10 * time.Minute }, centre.ClockWrong, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T) {
				w := newWorld(t, "group-a")
				c.do(w)
				_, err := w.join(0)
				if !errors.Is(err, c.want) {
					t.Fatalf("%v, want %s", err, c.want)
				}
				if strings.Contains(err.Error(), "\x1b") || len(err.Error()) > 4000 {
					t.Errorf("foreign text gets through: %q", err)
				}
				keys := w.token.list()
				for _, k := range keys {
					if k.Cert != nil {
						t.Errorf("a certificate was stored: %s", certs.SubjectOf(k.Cert))
					}
				}
				if len(keys) != c.kept {
					t.Errorf("%d keys on the token, want %d", len(keys), c.kept)
				}
				// With the real centre back it works.
				if c.kept > 0 {
					w.set(func() { w.override = nil })
					w.first()
					w.settled("group-a")
				}
			})
		})
	}
}

// answerAlso is answer for one more path.
func (w *world) answerAlso(path string, f http.HandlerFunc) {
	w.set(func() {
		before := w.override
		w.override = func(rw http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != path {
				return before(rw, r)
			}
			f(rw, r)
			return true
		}
	})
}

func readCSR(r *http.Request) *x509.CertificateRequest {
	b := must(io.ReadAll(r.Body))
	return must(certs.ParseCSR(must(base64.StdEncoding.DecodeString(string(b)))))
}

// TestForeignRootBeside: what no anchor knows is told of and changes nothing.
func TestForeignRootBeside(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		ca := w.services["group-a"]
		w.answer(cacerts, text(p7, certsOnly(append(ca.CACerts(), w.newRoot("Evil Root", newKey()))...)))
		w.first()
		w.settled("group-a")
		if w.told(centre.EventForeignCA) != 1 {
			t.Errorf("%v", w.events)
		}
	})
}

// TestUnknownNewCA: a CA that came without being signed by the one before is not used, and the old
// certificate stays until it ends.
func TestUnknownNewCA(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		w.first()
		before := w.cert("group-a")
		w.roll("group-a", false)
		time.Sleep(6 * 24 * time.Hour)
		if _, err := w.join(0); !errors.Is(err, centre.UntrustedCA) {
			t.Fatalf("%v", err)
		}
		if !w.cert("group-a").Equal(before) {
			t.Error("the certificate was exchanged")
		}
		// The policy names the new anchor: it goes on.
		w.anchors["group-a"] = w.services["group-a"].Anchors()
		w.first()
		w.settled("group-a")
	})
}

// TestRefusedPolicyIsNotHammered: a centre that sends what is refused is asked with growing pauses, and
// an older policy never comes into force.
func TestRefusedPolicyIsNotHammered(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		w.publish("group-a") // serial 2
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		w.set(func() { w.doc.Serial = 1; close(w.changed); w.changed = make(chan struct{}) })
		w.mu.Lock()
		before := w.requests[pol]
		w.mu.Unlock()
		time.Sleep(24 * time.Hour)
		w.mu.Lock()
		n := w.requests[pol] - before
		w.mu.Unlock()
		if n > 24*60/2 || n < 24*60/6 {
			t.Errorf("%d requests in a day", n)
		}
		if w.told(centre.EventFailed) != 1 {
			t.Errorf("%d events of one failure", w.told(centre.EventFailed))
		}
		w.publish("group-a") // serial 2 again, then 3
		w.publish("group-a")
		time.Sleep(6 * time.Minute)
		w.settled("group-a")
		if got := w.sink.all; len(got) != 2 || got[1] != 3 {
			t.Errorf("policies in force: %v", got)
		}
	})
}

// TestNoWait: a centre that does not wait is asked every two seconds and not in a loop.
func TestNoWait(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		w.first()
		w.answer(pol, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNotModified) })
		stop := w.run()
		defer stop()
		time.Sleep(10 * time.Minute)
		w.mu.Lock()
		defer w.mu.Unlock()
		if n := w.requests[pol]; n < 250 || n > 302 {
			t.Errorf("%d requests in 10 minutes", n)
		}
	})
}

// TestBusyCentre: a centre that says no to everything is asked as often as it says itself, or with growing
// pauses; reports, policies and enrolments each on their own.
func TestBusyCentre(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status     int
		retry      string
		most, some int // requests for one path in a day
	}{
		"429 for ten minutes": {http.StatusTooManyRequests, "600", 150, 130},
		"503 for ever":        {http.StatusServiceUnavailable, "99999999999999999999", 25, 20},
		"503":                 {http.StatusServiceUnavailable, "", 24 * 60 / 2, 24 * 60 / 6},
		"500, retry at once":  {http.StatusInternalServerError, "0", 24 * 60 / 2, 24 * 60 / 6},
		"no time at all":      {http.StatusBadGateway, "soon", 24 * 60 / 2, 24 * 60 / 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T) {
				w := newWorld(t, "group-a")
				w.publish("group-a")
				a, ctx := w.boot(0)
				if _, err := a.Poll(ctx, 0); err != nil { // the policy is there, the certificate not
					t.Fatal(err)
				}
				w.set(func() {
					clear(w.requests)
					w.override = func(rw http.ResponseWriter, _ *http.Request) bool {
						if c.retry != "" {
							rw.Header().Set("Retry-After", c.retry)
						}
						rw.WriteHeader(c.status)
						return true
					}
				})
				stop := w.run()
				defer stop()
				time.Sleep(24 * time.Hour)
				w.mu.Lock()
				defer w.mu.Unlock()
				for _, path := range []string{pol, "/v1/report"} {
					if n := w.requests[path]; n > c.most || n < c.some {
						t.Errorf("%s: %d requests in a day, want %d to %d", path, n, c.some, c.most)
					}
				}
				if n := w.requests[cacerts]; n > 200 || n < 15 {
					t.Errorf("cacerts: %d requests in a day", n)
				}
			})
		})
	}
}
