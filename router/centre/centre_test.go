package centre_test

import (
	"context"
	"crypto/elliptic"
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wardgate/internal/labca"
	"wardgate/router/centre"
)

// bubble runs a test on virtual time.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func TestJoin(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a", "group-b")
		steps, err := w.join(0)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range steps {
			names = append(names, string(s.Name)+" "+s.Service)
		}
		if got, want := strings.Join(names, ", "), "device-certificate , reachability , clock , policy , enrolment group-a, enrolment group-b, report "; got != want {
			t.Errorf("steps %q, want %q", got, want)
		}
		w.settled("group-a", "group-b")
		for _, e := range w.record.enrolled {
			if !e.Bound || !e.Proven || e.Operation != "simpleenroll" {
				t.Errorf("enrolled with %s, bound %v, proven %v", e.Operation, e.Bound, e.Proven)
			}
		}
		if r := w.reports[len(w.reports)-1]; r.PolicySerial != 1 || r.NotAfter.IsZero() || len(r.Connections) != 1 {
			t.Errorf("report %+v", r)
		}
		before := w.cert("group-a")
		if _, err := w.join(0); err != nil || !w.cert("group-a").Equal(before) || w.requests["/.well-known/est/group-a/simpleenroll"] != 1 {
			t.Error("a second join enrols again", err)
		}
	})
}

func TestCurveOfTheService(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		w.set(func() { w.curve = elliptic.P384() })
		if _, err := w.join(0); err != nil {
			t.Fatal(err)
		}
		w.settled("group-a")
	})
}

// power failures: scenario by scenario, at every instant.

type scenario struct {
	name string
	// before takes a fresh world to where the device is switched on.
	before func(w *world)
	want   []string // services in the end
	// always: while it goes on, this service never lacks a valid certificate.
	always string
	// forgets: without the journal it cannot be known what is to be cleaned up.
	forgets bool
}

var scenarios = []scenario{
	{name: "join", want: []string{"group-a", "group-b"}},
	{
		name: "renewal", want: []string{"group-a", "group-b"}, always: "group-a",
		before: func(w *world) { w.first(); time.Sleep(6 * 24 * time.Hour) },
	},
	{
		name: "after a long time without power", want: []string{"group-a", "group-b"},
		before: func(w *world) { w.first(); time.Sleep(60 * 24 * time.Hour) },
	},
	{
		name: "other services", forgets: true, want: []string{"group-b", "group-c"}, always: "group-b",
		before: func(w *world) {
			w.first()
			time.Sleep(8 * time.Hour)
			w.publish("group-b", "group-c")
			w.expire("group-a")
		},
	},
	{
		name: "another device certificate", want: []string{"group-a", "group-b"},
		before: func(w *world) { w.first(); w.token.device = w.newDevice() },
	},
	{
		name: "a key by hand waits", want: []string{"group-a", "group-b"},
		before: func(w *world) {
			if _, err := w.token.Generate(context.Background(), "group-a", nil); err != nil {
				w.Fatal(err)
			}
		},
	},
}

// first joins without power failures.
func (w *world) first() {
	w.Helper()
	if _, err := w.join(0); err != nil {
		w.Fatal(err)
	}
}

// expire makes the certificate of a service one that has ended.
func (w *world) expire(service string) {
	for i := range w.token.certs {
		if c := &w.token.certs[i]; c.service == service {
			old := *c.cert
			old.NotAfter = time.Now().Add(-time.Minute)
			c.cert = &old
		}
	}
}

// scene is a world before a scenario.
func scene(t *testing.T, s *scenario) *world {
	w := newWorld(t, "group-a", "group-b", "group-c")
	w.publish("group-a", "group-b")
	if s.before != nil {
		s.before(w)
	}
	if s.always != "" {
		w.power.each = func() {
			now := time.Now()
			if !slices.ContainsFunc(w.token.list(), func(k centre.Key) bool {
				return k.Service == s.always && k.Cert != nil && k.Signer != nil && now.Before(k.Cert.NotAfter)
			}) {
				t.Errorf("service %s is without a certificate", s.always)
			}
		}
	}
	return w
}

// instants counts the instants of a scenario.
func instants(t *testing.T, s *scenario) (n int) {
	bubble(t, func(t *testing.T) {
		w := scene(t, s)
		if _, err := w.join(0); err != nil {
			t.Fatal(err)
		}
		w.settled(s.want...)
		w.power.mu.Lock()
		n = w.power.n
		w.power.mu.Unlock()
	})
	return n
}

func TestPowerFailsAtEveryInstant(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			n := instants(t, &s)
			if n < 12 {
				t.Fatalf("%d instants: the scenario does nothing", n)
			}
			for i := range 2 * n {
				at, lost := i/2+1, i%2 == 1
				if lost && s.forgets {
					continue
				}
				bubble(t, func(t *testing.T) {
					w := scene(t, &s)
					if _, err := w.join(at); err == nil && !w.power.gone() {
						t.Errorf("the power did not fail at %d", at)
					}
					when := w.power.when
					if lost { // the disk, too
						w.journal.b = nil
					}
					_, err := w.join(0)
					if err != nil {
						t.Errorf("after a failure at %d (%s): %v", at, when, err)
					}
					if lost {
						// A key whose certificate is removed already looks like one that was made by
						// hand; the next renewal clears it up.
						time.Sleep(6 * 24 * time.Hour)
						w.power.each = nil
						w.first()
					}
					w.settled(s.want...)
					if t.Failed() {
						t.Logf("failure at %d (%s), journal lost: %v", at, when, lost)
					}
				})
				if t.Failed() {
					return
				}
			}
		})
	}
}

// TestPowerFailsAgain: several failures in a row, at random instants, with time in between.
func TestPowerFailsAgain(t *testing.T) {
	t.Parallel()
	runs := 60
	if testing.Short() {
		runs = 10
	}
	for i := range runs {
		seed := rand.Uint64()
		s := scenarios[i%len(scenarios)]
		n := 60
		bubble(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			w := scene(t, &s)
			w.power.each = nil // certificates may end while the device is off
			for range 2 + r.IntN(6) {
				_, _ = w.join(1 + r.IntN(n))
				if r.IntN(3) == 0 {
					time.Sleep(time.Duration(r.Int64N(int64(10 * 24 * time.Hour))))
				}
			}
			if _, err := w.join(0); err != nil {
				t.Error(err)
			}
			w.settled(s.want...)
			if t.Failed() {
				t.Logf("seed %d, scenario %s", seed, s.name)
			}
		})
	}
}

// run starts Run and returns how to stop it.
func (w *world) run() (stop func()) {
	w.Helper()
	a, ctx := w.boot(0)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.Errorf("Run: %v", err)
		}
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a", "group-b")
		w.publish("group-a")
		stop := w.run()
		defer stop()
		time.Sleep(time.Second)
		w.settled("group-a")

		// A change is there at once, and what it calls for is enrolled.
		time.Sleep(time.Hour)
		w.publish("group-a", "group-b")
		time.Sleep(3 * time.Second)
		w.settled("group-a", "group-b")
		w.set(func() {
			if got := w.reports[len(w.reports)-1].PolicySerial; got != 3 {
				t.Errorf("the centre was told of serial %d, want 3", got)
			}
		})

		// A poll costs no TLS connection.
		w.mu.Lock()
		dials, polls := w.dials, w.requests["/v1/policy"]
		w.mu.Unlock()
		if polls < 60 || dials > 12 {
			t.Errorf("%d connections for %d polls", dials, polls)
		}

		// Unattended for two weeks: renewed early enough, never without.
		for range 14 * 24 {
			time.Sleep(time.Hour)
			for _, s := range []string{"group-a", "group-b"} {
				if left := time.Until(w.cert(s).NotAfter); left < 24*time.Hour {
					t.Fatalf("%v are left of the certificate of %s", left, s)
				}
			}
		}
		w.settled("group-a", "group-b")
		if n := w.told(centre.EventRenewed); n < 4 || n > 6 {
			t.Errorf("%d renewals in 14 days of 2 certificates of 7 days", n)
		}
		for _, e := range w.record.enrolled[2:] {
			if e.Operation != "simplereenroll" {
				t.Errorf("renewed by %s", e.Operation)
			}
		}
		if n := w.told(centre.EventFailed); n != 0 {
			t.Errorf("%d failures: %v", n, w.events)
		}
	})
}

func TestCentreAway(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		w.set(func() {
			w.cut = true
			w.override = func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
		})
		w.mu.Lock()
		dials := w.dials
		w.mu.Unlock()
		time.Sleep(9 * 24 * time.Hour) // longer than a certificate lives
		w.mu.Lock()
		n := w.dials - dials
		w.mu.Unlock()
		if n < 9*24 || n > 2*9*24*12*3 {
			t.Errorf("%d attempts in 9 days", n)
		}
		w.set(func() { w.cut, w.override = false, nil })
		time.Sleep(time.Hour + time.Minute)
		w.settled("group-a")
		if w.told(centre.EventRecovered) == 0 {
			t.Error("nobody was told that the centre is back")
		}
		w.set(func() {
			if r := w.reports[len(w.reports)-1]; len(r.Errors) == 0 || r.Errors[0].Code == "" {
				t.Errorf("the centre was not told what went wrong: %+v", r)
			}
		})
	})
}

func TestRenewalsSpread(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		times := map[time.Duration]bool{}
		for range 8 {
			w := newWorld(t, "group-a")
			start := time.Now()
			w.first()
			steps, err := w.join(0)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range steps {
				if s.Name == centre.StepService {
					at := must(time.Parse(time.RFC3339, strings.TrimPrefix(s.Text, "renewed from "))).Sub(start)
					if life := 7 * 24 * time.Hour; at < life*2/3-time.Hour || at > life*3/4+time.Hour {
						t.Errorf("renewed after %v", at)
					}
					times[at] = true
				}
			}
		}
		if len(times) < 6 {
			t.Errorf("%d different times of 8", len(times))
		}
	})
}

func TestTokenAway(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		w.token.fail = errors.New("the token has been removed")
		stop := w.run()
		defer stop()
		time.Sleep(time.Hour)
		if n := w.told(centre.EventFailed); n == 0 || n > 4 {
			t.Errorf("%d events", n)
		}
		w.token.locked(func() { w.token.fail = nil })()
		time.Sleep(2 * time.Hour)
		w.settled("group-a")
	})
}

func TestPending(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		w.set(func() { w.pending = 20 * time.Minute })
		stop := w.run()
		defer stop()
		time.Sleep(100 * time.Minute)
		w.mu.Lock()
		n := w.requests["/.well-known/est/group-a/simpleenroll"]
		w.mu.Unlock()
		if n < 3 || n > 6 {
			t.Errorf("asked %d times in 100 minutes, told to wait 20", n)
		}
		w.set(func() { w.pending = 0 })
		time.Sleep(time.Hour)
		w.settled("group-a")
	})
}

func TestNotAMember(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a", "group-b")
		w.set(func() { delete(w.members, "group-a") })
		_, err := w.join(0)
		e, ok := errors.AsType[*centre.Error](err)
		if !ok || e.Code != centre.Refused || e.Reason != "not-a-member" || e.Service != "group-a" || !strings.Contains(e.Got, "ask the SP") {
			t.Fatalf("%v", err)
		}
		if c := w.cert("group-b"); c == nil {
			t.Error("the other service has to wait")
		}
	})
}

// TestKeyRevoked: what the centre says about the key leads to another one.
func TestKeyRevoked(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		// The power fails when the certificate is there and not stored; it is revoked meanwhile.
		for at := 1; ; at++ {
			if _, err := w.join(at); err == nil {
				t.Fatal("never enrolled without being stored")
			}
			if len(w.record.enrolled) == 1 {
				break
			}
		}
		w.journal.b = nil
		c := w.record.enrolled[0].Certificate
		s := w.services["group-a"]
		rec := must(s.Find(context.Background(), c))
		must(s.Revoke(context.Background(), rec.Issuer, rec.Serial, time.Now(), 1))
		if _, err := w.join(0); !errors.Is(err, centre.Refused) {
			t.Fatalf("%v", err)
		}
		if _, err := w.join(0); err != nil {
			t.Fatal(err)
		}
		w.settled("group-a")
		if w.cert("group-a").Equal(c) {
			t.Error("the revoked certificate is in use")
		}
	})
}

// TestTwoCertificates: when the power fails between storing the new certificate and removing the old
// one, and nothing remembers it, the newer one stays.
func TestTwoCertificates(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		w.first()
		time.Sleep(6 * 24 * time.Hour)
		w.power.each = func() {
			w.power.mu.Lock()
			defer w.power.mu.Unlock()
			if len(w.token.certs) == 2 {
				w.power.at = w.power.n + 1
			}
		}
		_, _ = w.join(0)
		w.power.each = nil
		if w.power.when != "after store" {
			t.Fatalf("failed %s", w.power.when)
		}
		w.journal.b = nil
		newer := w.token.certs[1].cert
		w.first()
		w.settled("group-a")
		if !w.cert("group-a").Equal(newer) {
			t.Error("the older one stayed")
		}
		if w.told(centre.EventTidied) != 1 {
			t.Errorf("%v", w.events)
		}
	})
}

// TestLeftWhileJoining: the policy no longer names a service that a key was made for.
func TestLeftWhileJoining(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a", "group-b")
		w.set(func() { delete(w.members, "group-a") })
		if _, err := w.join(0); !errors.Is(err, centre.Refused) {
			t.Fatal(err)
		}
		w.publish("group-b")
		w.first()
		w.settled("group-b")
		if w.told(centre.EventRemoved) != 1 {
			t.Errorf("%v", w.events)
		}
	})
}

// TestLeft: a certificate that is still valid stays until it ends, and serves when the device comes back.
func TestLeft(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a", "group-b")
		w.first()
		before := w.cert("group-a")
		w.publish("group-b")
		w.first()
		w.publish("group-a", "group-b")
		w.first()
		w.settled("group-a", "group-b")
		if !w.cert("group-a").Equal(before) {
			t.Error("it was made anew")
		}
		w.publish("group-b")
		w.first()
		time.Sleep(8 * 24 * time.Hour)
		w.first()
		w.settled("group-b")
	})
}

// TestForeignKeysStay: what nobody began here is not removed.
func TestForeignKeysStay(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a", "group-b")
		w.publish("group-a")
		if _, err := w.token.Generate(context.Background(), "group-b", nil); err != nil {
			t.Fatal(err)
		}
		w.first()
		if n := len(w.token.list()); n != 2 {
			t.Errorf("%d objects, want the key that was made by hand, too", n)
		}
	})
}

// TestPolicyLost: the centre is not told that the device has what it has lost.
func TestPolicyLost(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		w.first()
		w.sink.jws = nil
		w.first()
		if w.sink.jws == nil {
			t.Error("the policy did not come again")
		}
	})
}

func TestJournalLost(t *testing.T) {
	t.Parallel()
	for _, b := range []string{"", "{", "null", `{"format":2}`, `{"format":1,"services":{"group-a":null}}`, "\x00\x00\x00", `[]`} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, "group-a")
			w.first()
			w.journal.b = []byte(b)
			time.Sleep(6 * 24 * time.Hour)
			w.first()
			w.settled("group-a")
		})
	}
}

func TestFile(t *testing.T) {
	t.Parallel()
	f := centre.File(filepath.Join(t.TempDir(), "centre.json"))
	if b, err := f.Load(); b != nil || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	// What a power failure leaves beside it does not matter.
	if err := os.WriteFile(string(f)+".new", []byte("half of a jour"), 0o400); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two"} {
		if err := os.Chmod(string(f)+".new", 0o600); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err := f.Save([]byte(want)); err != nil {
			t.Fatal(err)
		}
		if b, err := f.Load(); string(b) != want || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
	}
	if st, err := os.Stat(string(f)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	list, err := os.ReadDir(filepath.Dir(string(f)))
	if err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if err := centre.File(filepath.Join(string(f), "x")).Save(nil); err == nil {
		t.Error("saved below a file")
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		good := centre.Config{URL: "https://sp.example", Anchors: w.devices.Intermediates(), Token: w.token, Policies: w.sink, Reporter: reporter{}, Journal: w.journal, Clock: centre.SystemClock{}, Rand: strings.NewReader("")}
		if _, err := centre.New(good); err != nil {
			t.Fatal(err)
		}
		for _, u := range []string{"", "sp.example", "http://sp.example", "https://", "https://u@sp.example", "https://sp.example/x", "https://sp.example?x", "https://sp.example#x", "https://%zz"} {
			c := good
			c.URL = u
			if _, err := centre.New(c); err == nil {
				t.Errorf("%q is taken", u)
			}
		}
		none := good
		none.Anchors = nil
		if _, err := centre.New(none); err == nil {
			t.Error("no anchors are taken")
		}
		if _, err := centre.New(centre.Config{}); err == nil {
			t.Error("nothing is taken")
		}
	})
}

// TestRollOver: a new CA whose root the old one has signed is used with the old anchor.
func TestRollOver(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		w.first()
		w.roll("group-a", true)
		time.Sleep(6 * 24 * time.Hour)
		w.first()
		w.settled("group-a")
		if w.told(centre.EventRenewed) != 1 || w.told(centre.EventForeignCA) != 0 {
			t.Errorf("%v", w.events)
		}
	})
}

func TestDeviceCertificate(t *testing.T) {
	t.Parallel()
	for _, age := range []time.Duration{-24 * time.Hour, 50 * 365 * 24 * time.Hour} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, "group-a")
			k := newKey()
			c := must(w.devices.Issue(labca.Request{Public: k.Public(), DNSNames: []string{w.name}, At: time.Now().Add(-age), Life: 365 * 24 * time.Hour}))
			w.token.device = centre.Key{Signer: k, Cert: c}
			steps, err := w.join(0)
			if !errors.Is(err, centre.DeviceCert) || steps[0].Name != centre.StepDevice {
				t.Errorf("%v, %v", steps, err)
			}
		})
	}
}
