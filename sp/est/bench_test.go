package est_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"wardgate/internal/labca"
	"wardgate/sp/est"
	"wardgate/sp/issue"
	"wardgate/sp/issue/issuetest"
)

// connected returns the TLS state of a device's connection as the server sees it.
func connected(t testing.TB, w *world, d *device) *tls.ConnectionState {
	t.Helper()
	c := w.dial(t, &d.tls)
	cs := c.ConnectionState()
	cs.PeerCertificates = append(cs.PeerCertificates[:0:0], d.cert)
	cs.PeerCertificates = append(cs.PeerCertificates, w.devices.Intermediates()...)
	return &cs
}

// quick are limits that do not get in a benchmark's way.
func quick(c *est.Config) {
	c.PerClient, c.PerAddress = est.Limit{PerSecond: 1e9, Burst: 1e9}, est.Limit{PerSecond: 1e9, Burst: 1e9}
}

// BenchmarkEnrol: "handler" is the server's work without TLS; "connection" is all of both sides: a
// new TLS 1.3 connection, request and proof made by the device, and the answer.
func BenchmarkEnrol(b *testing.B) {
	b.Run("handler", func(b *testing.B) { handler(b, newWorld(b, t0, quick)) })
	// The device CA's list names 10,000 certificates.
	b.Run("handler, long list", func(b *testing.B) {
		w := newWorld(b, t0, quick)
		for range 10_000 {
			c := must(w.devices.Issue(labca.Request{Public: w.a.key.Public(), DNSNames: []string{"x.devices.example"}, At: t0}))
			if err := w.devices.Revoke(c.SerialNumber, t0, 1); err != nil {
				b.Fatal(err)
			}
		}
		lists := must(w.devices.CRLs(t0, time.Hour))
		w.set(func() { w.trust.CRLs, w.trust.RequireCRL = lists, true })
		handler(b, w)
	})
	b.Run("connection", func(b *testing.B) {
		w := newWorld(b, t0, quick)
		b.ReportAllocs()
		start := cpuTime(b)
		for b.Loop() {
			c := w.dial(b, &w.a.tls)
			body := b64(w.a.request(b, c, "group-a", t0).der())
			if r := c.do(b, post(path("group-a", "simpleenroll"), len(body)), body); r.StatusCode != http.StatusOK {
				b.Fatal(string(r.body))
			}
			c.Close()
		}
		perCPU(b, start)
	})
}

func handler(b *testing.B, w *world) {
	state := connected(b, w, w.a)
	c := w.dial(b, &w.a.tls) // for its shape; the binding is the state's
	bodies := make([][]byte, 512)
	binding := must(est.Binding(state))
	for i := range bodies {
		r := w.a.request(b, c, "group-a", t0)
		r.challenge = binding
		bodies[i] = b64(r.der())
	}
	b.ReportAllocs()
	start := cpuTime(b)
	for i := 0; b.Loop(); i++ {
		if i%len(bodies) == 0 {
			b.StopTimer()
			w.forget()
			b.StartTimer()
		}
		r := httptest.NewRequest(http.MethodPost, path("group-a", "simpleenroll"), bytes.NewReader(bodies[i%len(bodies)]))
		r.Header.Set("Content-Type", "application/pkcs10")
		r.TLS = state
		rec := httptest.NewRecorder()
		w.server.ServeHTTP(rec, r)
		if rec.Code != http.StatusOK {
			b.Fatal(rec.Body)
		}
	}
	perCPU(b, start)
}

// BenchmarkRefuse is what a stranger costs.
func BenchmarkRefuse(b *testing.B) {
	w := newWorld(b, t0, quick)
	state := connected(b, w, w.a)
	for name, edit := range map[string]func(*http.Request){
		"path":        func(r *http.Request) { r.URL.Path = "/.well-known/est/cacerts" },
		"certificate": func(r *http.Request) { s := *state; s.PeerCertificates = s.PeerCertificates[1:]; r.TLS = &s },
		"body":        func(*http.Request) {},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := httptest.NewRequest(http.MethodPost, path("group-a", "simpleenroll"), strings.NewReader("MIIC"))
				r.Header.Set("Content-Type", "application/pkcs10")
				r.TLS = state
				edit(r)
				rec := httptest.NewRecorder()
				w.server.ServeHTTP(rec, r)
				if rec.Code < 400 {
					b.Fatal(rec.Body)
				}
				w.record.mu.Lock()
				w.record.refused = w.record.refused[:0]
				w.record.mu.Unlock()
			}
		})
	}
}

// FuzzServe: any path and any body by a member. Nothing panics, nothing is issued but for requests
// with this connection's binding and the device's proof, and every refusal is on record.
func FuzzServe(f *testing.F) {
	w := newWorld(f, t0, quick)
	w.set(func() { w.plain = map[string]bool{} })
	state := connected(f, w, w.a)
	c := w.dial(f, &w.a.tls)
	r := w.a.request(f, c, "group-a", t0) // the binding of another connection
	f.Add("simpleenroll", "application/pkcs10", b64(r.der()))
	r.challenge = ""
	f.Add("simplereenroll", "application/pkcs10", b64(r.der()))
	f.Add("../simpleenroll", "text/plain", []byte("MII"))
	f.Fuzz(func(t *testing.T, op, kind string, body []byte) {
		r := httptest.NewRequest(http.MethodPost, path("group-a", "simpleenroll"), bytes.NewReader(body))
		r.URL.Path = path("group-a", op)
		r.Header.Set("Content-Type", kind)
		r.TLS = state
		before := len(w.record.refused)
		rec := httptest.NewRecorder()
		w.server.ServeHTTP(rec, r)
		if rec.Code == http.StatusOK {
			t.Fatalf("issued for %q", body)
		}
		if len(w.record.refused) != before+1 || !errors.Is(w.record.lastRefusal(), w.record.lastRefusal().Class) {
			t.Fatal("refused without a record")
		}
		if text := rec.Body.String(); strings.Count(text, "\n") != 1 || rec.Code != w.record.lastRefusal().Class.Status() {
			t.Fatalf("%d %q", rec.Code, text)
		}
		w.record.refused = w.record.refused[:0]
	})
}

// forget starts the record anew, with the same CAs.
func (w *world) forget() {
	w.issued = issuetest.NewMemory()
	w.set(func() {
		for name, s := range w.service {
			w.service[name] = must(issue.NewService(issue.Config{Name: name, Domain: name + ".example", Rand: rand.Reader, Recorder: w.issued}, w.at, s.Current()))
		}
	})
	w.record.mu.Lock()
	defer w.record.mu.Unlock()
	clear(w.record.seen)
	w.record.enrolled = nil
}

// cpuTime is the processor time of this process: on a machine that others use as well, it says more
// than the clock.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func perCPU(b *testing.B, start time.Duration) {
	b.Helper()
	b.ReportMetric(float64(b.N)/(cpuTime(b)-start).Seconds(), "enrolments/cpu-s")
}
