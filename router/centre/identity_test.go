package centre_test

import (
	"slices"
	"testing"
	"time"

	"wardgate/router/centre"
)

// last returns by what the centre was asked the last time.
func (w *world) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.by[len(w.by)-1]
}

// The first policy is asked for by the device certificate, everything after by a service certificate:
// over one connection, until it is renewed.
func TestAskedByServiceCertificate(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a", "group-b")
		w.first()
		if w.by[0] != w.name {
			t.Errorf("first asked by %s", w.by[0])
		}
		stop := w.run()
		defer stop()
		time.Sleep(time.Hour)
		w.mu.Lock()
		asked, dials := slices.Compact(slices.Clone(w.by[2:])), w.dials
		w.mu.Unlock()
		if len(asked) != 1 || asked[0] == w.name {
			t.Errorf("asked by %v", asked)
		}
		before := w.cert("group-a")
		time.Sleep(6 * 24 * time.Hour)
		if w.cert("group-a").Equal(before) {
			t.Fatal("not renewed")
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if slices.Contains(w.by[2:], w.name) {
			t.Error("asked by the device certificate later")
		}
		// Two renewals, of which each is one connection to enrol, and one more for the polls; cacerts
		// and the long poll are in each other's way once.
		if n := w.dials - dials; n > 10 {
			t.Errorf("%d connections in six days", n)
		}
	})
}

// A service certificate that the centre refuses is not used for that again; its successor is.
func TestServiceCertificateRefused(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"cert-revoked", "cert-expired", "cert-not-bound-to-device", "not-registered"} {
		bubble(t, func(t *testing.T) {
			w := newWorld(t, "group-a")
			w.first()
			w.set(func() { w.refuse = map[string]string{"a.group-a.example": code}; w.by = nil })
			stop := w.run()
			defer stop()
			time.Sleep(time.Hour)
			w.set(func() {
				if by := w.by; by[0] != "a.group-a.example" || slices.Contains(by[1:], "a.group-a.example") {
					t.Errorf("%s: asked by %v", code, by)
				}
				w.refuse = nil
			})
			if n := w.told(centre.EventCertRefused); n != 1 {
				t.Errorf("%s: %d events of one certificate", code, n)
			}
			if n := w.told(centre.EventFailed); n != 0 {
				t.Errorf("%s: %d failures: %v", code, n, w.events)
			}
			if code != "cert-revoked" { // the rest of it takes long
				return
			}
			time.Sleep(6 * 24 * time.Hour) // it is renewed
			if w.last() != "a.group-a.example" {
				t.Errorf("after the renewal asked by %s", w.last())
			}
		})
	}
}

// What is refused for another reason is not asked for twice.
func TestRefusedForAnotherReason(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a")
		w.first()
		w.set(func() { w.refuse = map[string]string{"a.group-a.example": "device-revoked"}; w.by = nil })
		if _, err := w.join(0); err == nil {
			t.Fatal("no refusal")
		}
		if slices.Contains(w.by, w.name) {
			t.Errorf("asked by %v", w.by)
		}
	})
}

// Without a valid service certificate it is the device certificate: after a long time without power, and
// where the policy does not know the service any more.
func TestAskedByDeviceCertificateAgain(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		w := newWorld(t, "group-a", "group-b")
		w.publish("group-a")
		w.first()
		w.set(func() { w.by = nil })
		time.Sleep(60 * 24 * time.Hour)
		w.first()
		if w.by[0] != w.name || w.last() != "a.group-a.example" {
			t.Errorf("after a long time: %v", w.by)
		}
		w.publish("group-b")
		w.set(func() { w.by = nil })
		w.first()
		if w.by[0] != "a.group-a.example" || w.last() != "a.group-b.example" {
			t.Errorf("after the move: %v", w.by)
		}
	})
}
