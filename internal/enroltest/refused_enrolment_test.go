package enroltest

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/est"
	"wardgate/sp/registry/registrytest"
	"wardgate/sp/store/storetest"
)

// Issue 4, "Shown by" 5, what the centre refuses: each is answered with a class, stands on the centre's
// record, and brings no certificate. docs/refusals.md has the table.

// hostile starts a centre and devices a (group-a, group-b) and b (group-b).
func hostile(t *testing.T) (w *world, a, b *device) {
	t.Helper()
	t.Parallel()
	w = newWorld(t, storetest.SQLite(t), registrytest.At, map[string][]string{devA: {"group-a", "group-b"}, devB: {"group-b"}})
	a, b = w.newDevice(devA), w.newDevice(devB)
	w.cfg.Services.Plain = []string{"group-b"}
	w.start()
	w.apply()
	t.Cleanup(func() {
		for _, d := range []string{devA, devB} {
			for _, s := range []string{"group-a", "group-b"} {
				if n := len(w.valid(d, s)); n > w.enrolled[d+" "+s] {
					w.Errorf("%s has %d certificates of %s, want %d", d, n, s, w.enrolled[d+" "+s])
				}
			}
		}
	})
	return w, a, b
}

// joined lets a device join as it should.
func (d *device) joined() {
	d.w.Helper()
	if err := d.join(0); err != nil {
		d.w.Fatal(err)
	}
	for _, k := range d.keys() {
		d.w.enrolled[d.name+" "+k.Service] = 1
	}
}

func TestRefusedWithoutProofOfTheDeviceKey(t *testing.T) {
	w, a, _ := hostile(t)
	f := &forger{device: a}
	w.refused(f.ask(func() { f.csr.Related = nil }), est.NoProof, devA)
}

func TestRefusedProofByAnotherKey(t *testing.T) {
	w, a, _ := hostile(t)
	f := &forger{device: a}
	forged := &device{w: w, key: w.newKey(), cert: must(certs.ParseCertificate(a.cert.Raw))(t)}
	w.refused(f.ask(func() {
		// Names and serial number are a's; the signature is not.
		forged.cert.PublicKey = forged.key.Public()
		f.csr.Related = forged.proof(w.Now())
	}), est.BadProof, devA)
}

func TestRefusedAnotherDevicesCertificate(t *testing.T) {
	w, a, b := hostile(t)
	f := &forger{device: a}
	w.refused(f.ask(func() { f.csr.Related = b.proof(w.Now()) }), est.OtherDevice, devA)
	// And the other way round: a's request over b's connection.
	g := &forger{device: a, by: b.tls()}
	w.refused(g.ask(nil), est.OtherDevice, devB)
}

func TestRefusedReplayedRequest(t *testing.T) {
	w, a, b := hostile(t)
	f := &forger{device: a}
	if r := f.ask(nil); r.status != http.StatusOK {
		t.Fatalf("%d %s", r.status, r.body)
	}
	w.enrolled[devA+" group-a"] = 1
	body := f.body()
	for _, by := range []*device{a, b} {
		w.refused(w.send(w.dial(by.tls()), post("group-a", "simpleenroll", len(body)), body), est.WrongBinding, by.name)
	}
	// A service for clients without channel binding remembers requests.
	g := &forger{device: a, service: "group-b"}
	var plain []byte
	if r := g.ask(func() { g.csr.Challenge, g.csr.Related = "", nil; plain = g.body() }); r.status != http.StatusOK {
		t.Fatalf("%d %s", r.status, r.body)
	}
	plain = g.body() // signed once more: another request with the same key
	if r := w.send(w.dial(a.tls()), post("group-b", "simpleenroll", len(plain)), plain); r.status != http.StatusOK {
		t.Fatalf("%d %s", r.status, r.body)
	}
	w.enrolled[devA+" group-b"] = 1
	w.refused(w.send(w.dial(b.tls()), post("group-b", "simpleenroll", len(plain)), plain), est.KeyInUse, devB)
	w.pass(5 * 24 * time.Hour)
	w.refused(w.send(w.dial(a.tls()), post("group-b", "simpleenroll", len(plain)), plain), est.Replayed, devA)
}

func TestRefusedStaleRelatedCertRequest(t *testing.T) {
	w, a, _ := hostile(t)
	f := &forger{device: a}
	w.refused(f.ask(func() { f.csr.Related = a.proof(w.Now().Add(-time.Hour - time.Second)) }), est.BadProof, devA)
}

func TestRefusedRelatedCertRequestOfTheFuture(t *testing.T) {
	w, a, _ := hostile(t)
	f := &forger{device: a}
	w.refused(f.ask(func() { f.csr.Related = a.proof(w.Now().Add(time.Hour)) }), est.BadProof, devA)
}

func TestRefusedWrongChannelBinding(t *testing.T) {
	w, a, _ := hostile(t)
	f := &forger{device: a}
	w.refused(f.ask(func() { f.csr.Challenge = w.binding(w.dial(a.tls())) }), est.WrongBinding, devA)
	w.refused(f.ask(func() { f.csr.Challenge = "" }), est.NoBinding, devA)
}

func TestRefusedRenewalByACertificateOfAnotherDevice(t *testing.T) {
	w, a, b := hostile(t)
	a.joined()
	b.joined()
	// a's service certificate and its key, with the proof of b's device key: the certificate is bound to a.
	f := &forger{device: b, by: a.service("group-b"), service: "group-b", op: "simplereenroll"}
	w.refused(f.ask(nil), est.OtherDevice, devA) // the device on the record of that certificate
}

func TestRefusedPolicyRequestByAForeignCertificate(t *testing.T) {
	w, _, _ := hostile(t)
	other := newWorld(t, storetest.SQLite(t), registrytest.At, map[string][]string{devA: {"group-a"}})
	twin := other.newDevice(devA)
	for code, by := range map[string]*tls.Certificate{"cert-unknown-ca": twin.tls(), "no-certificate": nil} {
		r := w.do(by, http.MethodGet, "/v1/policy", nil, nil)
		if r.status != http.StatusForbidden || r.code(t) != code {
			t.Errorf("%d %s, want %s", r.status, r.body, code)
		}
		w.onRecord("request-refused", code, "")
	}
	// A certificate of the right CA with a's name, which is not the one that is registered.
	second := w.newDevice("stranger.devices.example")
	if r := w.do(second.tls(), http.MethodGet, "/v1/policy", nil, nil); r.status != http.StatusForbidden || r.code(t) != "not-registered" {
		t.Errorf("%d %s", r.status, r.body)
	}
	w.onRecord("request-refused", "not-registered", "stranger")
}

func TestRefusedNoMember(t *testing.T) {
	w, _, b := hostile(t)
	f := &forger{device: b, service: "group-a"}
	w.refused(f.ask(nil), est.NotMember, devB)
}

func TestRefusedUnknownService(t *testing.T) {
	w, a, _ := hostile(t)
	f := &forger{device: a, service: "group-x"}
	w.refused(f.ask(nil), est.NoService, "a.devices.example")
}

func TestRefusedOversized(t *testing.T) {
	w, a, _ := hostile(t)
	big := make([]byte, est.MaxBody+1)
	w.refused(w.send(w.dial(a.tls()), post("group-a", "simpleenroll", len(big)), big), est.TooLarge, "a.devices.example")
	chunked := fmt.Appendf(nil, "%x\r\n%s\r\n0\r\n\r\n", len(big), strings.Repeat("A", len(big)))
	w.refused(w.send(w.dial(a.tls()), "POST /.well-known/est/group-a/simpleenroll HTTP/1.1\r\nHost: x\r\nContent-Type: application/pkcs10\r\nTransfer-Encoding: chunked\r\n\r\n", chunked), est.TooLarge, "a.devices.example")
	r := w.do(a.tls(), http.MethodPost, "/v1/report", http.Header{"Content-Type": {"application/json"}}, []byte(`{"version":"`+strings.Repeat("x", 300<<10)+`"}`))
	if r.status != http.StatusRequestEntityTooLarge || r.code(t) != "too-large" {
		t.Errorf("a report: %d %s", r.status, r.body)
	}
	w.onRecord("request-refused", "too-large", devA)
}

// The centre's limit is ten seconds for a request for a certificate: the test waits for it.
func TestRefusedSlow(t *testing.T) {
	w, a, _ := hostile(t)
	w.refused(w.send(w.dial(a.tls()), post("group-a", "simpleenroll", 400), []byte("MII")), est.TooSlow, "a.devices.example")
}

func TestRefusedMalformed(t *testing.T) {
	w, a, _ := hostile(t)
	for _, body := range []string{"", "no base64 äöü", "MAA=", "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K"} {
		w.refused(w.send(w.dial(a.tls()), post("group-a", "simpleenroll", len(body)), []byte(body)), est.Malformed, devA)
	}
	for _, body := range []string{"{", "{}{}", `{"device":"b.devices.example"}`, "\x00", `{"policy_serial":-1}`} {
		r := w.do(a.tls(), http.MethodPost, "/v1/report", http.Header{"Content-Type": {"application/json"}}, []byte(body))
		if r.status != http.StatusBadRequest || r.code(t) != "malformed" {
			t.Errorf("report %q: %d %s", body, r.status, r.body)
		}
	}
	w.onRecord("request-refused", "malformed", devA)
}

func TestRefusedPathTraversal(t *testing.T) {
	w, a, _ := hostile(t)
	for _, path := range []string{
		"/.well-known/est/../cacerts", "/.well-known/est/%2e%2e%2fgroup-a/cacerts", "/.well-known/est/..%2f..%2fetc/cacerts", "/.well-known/est/group-a/../group-b/cacerts",
		"/v1/../etc/passwd", "/v1/policy/../../etc/passwd", "/v1/policy%2f..%2f..", "/v1//policy", "/v1/policy/b.devices.example", "/../../etc/passwd", "/",
	} {
		before := len(w.recorded("enrolment-refused", est.BadPath.Code()))
		r := w.send(w.dial(a.tls()), "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n", nil)
		if r.status != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
		w.eventually(path+" on the record", 0, func() bool { return len(w.recorded("enrolment-refused", est.BadPath.Code())) > before })
	}
	w.onRecord("enrolment-refused", est.BadPath.Code(), "a.devices.example")
}

func TestRefusedPathTraversalInNames(t *testing.T) {
	w, a, _ := hostile(t)
	f := &forger{device: a}
	for _, name := range []string{"../../a.group-a.example", "b.group-a.example", "a.group-b.example"} {
		r := f.ask(func() {
			f.csr.Subject.CommonName = name
			if !strings.Contains(name, "/") { // certs.CSR writes no such name
				f.csr.DNSNames = []string{name}
			}
		})
		w.refused(r, est.WrongName, devA)
	}
}
