package enroltest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"wardgate/router/centre"
	"wardgate/sp/registry"
	"wardgate/sp/registry/registrytest"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

const (
	devA = "a.devices.example"
	devB = "b.devices.example"
)

// both runs a test on both databases, with a device a that is a member of group-a and group-b.
func both(t *testing.T, test func(t *testing.T, w *world, d *device)) {
	t.Helper()
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url, registrytest.At, map[string][]string{devA: {"group-a", "group-b"}, devB: {"group-b"}})
		d := w.newDevice(devA)
		w.start()
		w.apply()
		test(t, w, d)
	})
}

// week is longer than a certificate lives; renewal is in the middle of when it is renewed.
const (
	week    = 8 * 24 * time.Hour
	renewal = 6 * 24 * time.Hour
)

// From a token with nothing but its device certificate to a policy and the services that it calls for.
func TestJoinFromNothing(t *testing.T) {
	both(t, func(t *testing.T, w *world, d *device) {
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		d.has("group-a", "group-b")
		if n := len(d.told(centre.EventEnrolled)); n != 2 {
			t.Errorf("%d events of enrolments", n)
		}
		r := must(w.running.Store().Report(w.context(), devA))(t)
		if r.PolicySerial != w.head(devA).Serial || r.Version != "test" || r.NotAfter.IsZero() {
			t.Errorf("the centre was told %+v", r)
		}
		before := d.held("group-a").Cert
		if err := d.join(0); err != nil || !d.held("group-a").Cert.Equal(before) {
			t.Errorf("a second join enrols again: %v", err)
		}
	})
}

// After two thirds of its life a certificate is renewed; the key is another one.
func TestRenewal(t *testing.T) {
	both(t, func(t *testing.T, w *world, d *device) {
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		before := d.held("group-a").Cert
		w.pass(4 * 24 * time.Hour)
		if err := d.join(0); err != nil || !d.held("group-a").Cert.Equal(before) {
			t.Errorf("renewed too early: %v", err)
		}
		w.pass(2 * 24 * time.Hour)
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		d.has("group-a", "group-b")
		after := d.held("group-a").Cert
		if after.Equal(before) || string(after.RawSubjectPublicKeyInfo) == string(before.RawSubjectPublicKeyInfo) {
			t.Error("not renewed with another key")
		}
		if n := len(d.told(centre.EventRenewed)); n != 2 {
			t.Errorf("%d events of renewals", n)
		}
	})
}

// Without power for longer than certificates live: the device certificate gets new ones.
func TestLongPowerOff(t *testing.T) {
	both(t, func(t *testing.T, w *world, d *device) {
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		w.pass(60 * 24 * time.Hour)
		w.eventually("the centre has made the policy anew", time.Second, func() bool { return w.head(devA).NotAfter.After(w.Now()) })
		w.settle()
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		d.has("group-a", "group-b")
	})
}

// The SP moves the device from one service to another while it runs.
func TestMoveBetweenServices(t *testing.T) {
	both(t, func(t *testing.T, w *world, d *device) {
		_, stop := d.run()
		w.eventually("the device has its services", time.Second, func() bool { return d.faults("group-a", "group-b") == nil })
		old := d.service("group-a")
		w.leave(devA, "group-a")
		w.join(devA, "group-c")
		w.apply()
		w.eventually("the device has the other service", time.Second, func() bool {
			return len(w.valid(devA, "group-c")) == 1 && len(w.valid(devA, "group-a")) == 0 && d.sink.serial() == w.head(devA).Serial
		})
		// What it had of the service that it left is revoked, and removed when it has ended.
		if r := w.do(old, "GET", "/v1/policy", nil, nil); r.status != 403 || r.code(t) != "cert-revoked" {
			t.Errorf("by the certificate of the service that it left: %d %s", r.status, r.body)
		}
		w.onRecord("request-refused", "cert-revoked", "a.group-a.example")
		stop()
		w.pass(week)
		w.eventually("the centre has made the policy anew", time.Second, func() bool { return w.head(devA).NotAfter.After(w.Now()) })
		w.settle()
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		d.has("group-b", "group-c")
		if len(d.told(centre.EventRemoved)) != 1 {
			t.Error("nothing was told of the service that was removed")
		}
	})
}

// A device that left a service and comes back gets another certificate: the one that it had is revoked.
func TestLeaveAndComeBack(t *testing.T) {
	both(t, func(t *testing.T, w *world, d *device) {
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		before := d.held("group-a").Cert
		w.leave(devA, "group-a")
		w.apply()
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		w.join(devA, "group-a")
		w.apply()
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		d.has("group-a", "group-b")
		if d.held("group-a").Cert.Equal(before) {
			t.Error("the revoked certificate is in use again")
		}
	})
}

// A service gets its next CA: devices go on, and renew by it.
func TestRollOverOfACA(t *testing.T) {
	both(t, func(t *testing.T, w *world, d *device) {
		_, stop := d.run()
		w.eventually("the device has its services", time.Second, func() bool { return d.faults("group-a", "group-b") == nil })
		before := d.held("group-a").Cert
		w.rollCA("group-a")
		w.eventually("the device has both anchors", time.Second, func() bool {
			p := must(d.sink.Installed(w.context()))(t)
			for _, s := range p.Services {
				if s.Name == "group-a" && len(s.Anchors) == 2 {
					return true
				}
			}
			return false
		})
		if !d.held("group-a").Cert.Equal(before) {
			t.Error("renewed because of the CA alone")
		}
		stop()
		w.pass(renewal)
		w.eventually("the centre has made the policy anew", time.Second, func() bool { return w.head(devA).NotAfter.After(w.Now()) })
		w.settle()
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		d.has("group-a", "group-b")
		if after := d.held("group-a").Cert; string(after.AuthorityKeyId) == string(before.AuthorityKeyId) {
			t.Error("not by the next CA")
		}
	})
}

// A device that waits for its policy when it is revoked is told at once, and gets nothing any more.
func TestRevokedWhileWaiting(t *testing.T) {
	both(t, func(t *testing.T, w *world, d *device) {
		_, stop := d.run()
		defer stop()
		w.eventually("the device has its services", time.Second, func() bool { return d.faults("group-a", "group-b") == nil })
		w.waits()
		must(w.running.RevokeDevice(w.context(), devA, store.KeyCompromise, "test", "stolen"))(t)
		w.eventually("the device is told", time.Second, func() bool {
			for _, e := range d.told(centre.EventFailed) {
				if c, ok := errors.AsType[*centre.Error](e.Err); ok && c.Code == centre.Refused && c.Reason == "device-revoked" {
					return true
				}
			}
			return false
		})
		w.eventually("it is on the record", 0, func() bool { return len(w.recorded("request-refused", "device-revoked")) > 0 })
		if n := len(w.valid(devA, "group-a")); n != 0 {
			t.Errorf("%d certificates of it count", n)
		}
	})
}

// The centre is stopped and another one started: the device notices and goes on.
func TestCentreRestarts(t *testing.T) {
	both(t, func(t *testing.T, w *world, d *device) {
		_, stop := d.run()
		defer stop()
		w.eventually("the device has its services", time.Second, func() bool { return d.faults("group-a", "group-b") == nil })
		w.waits()
		w.running.stop()
		w.start()
		w.settle()
		w.join(devA, "group-c")
		w.apply()
		w.eventually("the device has the next service", time.Second, func() bool { return d.faults("group-a", "group-b", "group-c") == nil })
	})
}

// What changes while a device is away is there when it comes back, and once.
func TestChangeWhileAway(t *testing.T) {
	both(t, func(t *testing.T, w *world, d *device) {
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			w.join(devA, "group-c")
			w.apply()
			w.leave(devA, "group-c")
			w.apply()
		}
		w.leave(devA, "group-b")
		w.join(devA, "group-c")
		w.apply()
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		if n := len(d.sink.all); n != 2 {
			t.Errorf("%d policies were in force, want the first and the last", n)
		}
		if n := len(w.valid(devA, "group-c")); n != 1 {
			t.Errorf("%d certificates of the new service", n)
		}
	})
}

// A device that is suspended keeps its certificates and may come back.
func TestSuspendedAndBack(t *testing.T) {
	both(t, func(t *testing.T, w *world, d *device) {
		_, stop := d.run()
		defer stop()
		w.eventually("the device has its services", time.Second, func() bool { return d.faults("group-a", "group-b") == nil })
		before := d.held("group-a").Cert
		w.entry(devA).State = registry.Suspended
		w.apply()
		w.eventually("the device knows", time.Second, func() bool { return d.sink.serial() == w.head(devA).Serial })
		w.entry(devA).State = registry.Active
		w.apply()
		w.eventually("the device is back", time.Second, func() bool { return d.faults("group-a", "group-b") == nil })
		if !d.held("group-a").Cert.Equal(before) {
			t.Error("another certificate")
		}
	})
}

// Polls and reports are the service certificate's once there is one; enrolment stays with the device's.
func TestByWhichCertificate(t *testing.T) {
	both(t, func(t *testing.T, w *world, d *device) {
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		w.pass(renewal)
		w.eventually("the centre has made the policy anew", time.Second, func() bool { return w.head(devA).NotAfter.After(w.Now()) })
		w.settle()
		d.soft.locked(func() { d.soft.device.Signer = &counting{d.soft.device.Signer, 0} })()
		count := d.soft.device.Signer.(*counting)
		if err := d.join(0); err != nil {
			t.Fatal(err)
		}
		// Reachability once; for each of two renewals the connection and the proof; nothing for polls
		// and reports.
		if count.n != 5 {
			t.Errorf("%d signatures by the device key, want 5", count.n)
		}
		for _, e := range w.entries() {
			if e.Event.Event == "enrolment" && !strings.Contains(e.Detail["client"], "devices.example") {
				t.Errorf("enrolled by %s", e.Detail["client"])
			}
		}
	})
}
