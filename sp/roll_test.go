package sp_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/policy"
	"wardgate/sp"
	"wardgate/sp/est"
	"wardgate/sp/issue"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

// anchors are what a policy has peers trust in a service.
func anchorsOf(t testing.TB, doc *policy.Document, service string) (anchors []*x509.Certificate, lists []*x509.RevocationList) {
	t.Helper()
	for _, s := range doc.Services {
		if s.Name != service {
			continue
		}
		for _, text := range s.Anchors {
			anchors = append(anchors, must(certs.ParseCertificates([]byte(text)))(t)...)
		}
		for _, text := range s.CRLs {
			lists = append(lists, must(certs.ParseCRLs([]byte(text)))(t)...)
		}
	}
	return anchors, lists
}

// cacerts fetches what devices send along with their certificates.
func (i *instance) cacerts(service string) []*x509.Certificate {
	i.w.Helper()
	r := must(http.NewRequestWithContext(i.w.context(), http.MethodGet, "https://"+i.addr+est.Prefix+service+"/cacerts", nil))(i.w)
	res := must(i.w.client(nil).Do(r))(i.w)
	defer res.Body.Close()
	der := must(base64.StdEncoding.DecodeString(string(must(io.ReadAll(res.Body))(i.w))))(i.w)
	return must(pkcs7.Parse(der))(i.w).Certificates
}

// accepted reports whether a peer with a policy accepts a certificate, with revocation lists required.
func accepted(t testing.TB, doc *policy.Document, service string, c *tls.Certificate, between []*x509.Certificate, device []byte, at time.Time) error {
	t.Helper()
	anchors, lists := anchorsOf(t, doc, service)
	return judge(anchors, lists, c, between, device, at)
}

// judge verifies a certificate with what lies between it and the anchors; lists are required where there are some.
func judge(anchors []*x509.Certificate, lists []*x509.RevocationList, c *tls.Certificate, between []*x509.Certificate, device []byte, at time.Time) error {
	use := issue.Above(c.Leaf, between)
	_, err := certs.VerifyChain(certs.Options{
		Leaf: c.Leaf.Raw, Anchors: anchors, Intermediates: labca.DER(use), CRLs: lists, RequireCRL: lists != nil,
		EKU: certs.EKUIPsecIKE, At: at, Role: "service", RelatedTo: device,
	})
	return err
}

// The next CA is published first: policies have both anchors while the old one still issues. It issues when
// everybody had the time to hear of it, and certificates of both are good side by side all the while.
func TestRollOver(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		i := w.start()
		i.apply()
		a, b := w.devices[devA], w.devices[devB]
		oldDoc, tag := i.policy(b, "")
		first, r := i.enrol(a, "group-a")
		if first == nil {
			t.Fatalf("%d %s", r.status, r.body)
		}
		oldCerts := i.cacerts("group-a")
		must(i.MakeCA(w.context(), w.registry(), "group-a", sp.CAOptions{}))(t)
		if s := must(i.CAs(w.registry(), "group-a"))(t); len(s) != 2 || s[0].State != sp.CAPublished || s[1].State != sp.CAIssues || !s[0].From.Equal(w.Now().Add(time.Duration(w.cfg.Policy.Life))) {
			t.Errorf("published: %+v", s)
		}
		w.pass(time.Minute) // files are looked at each minute
		newDoc, tag := i.policy(b, tag)
		if l, _ := anchorsOf(t, newDoc, "group-a"); len(l) != 2 {
			t.Fatalf("%d anchors in the policy, want old and new", len(l))
		}
		second, r := i.enrol(b, "group-a")
		if second == nil {
			t.Fatalf("%d %s", r.status, r.body)
		}
		if !bytes.Equal(second.Leaf.AuthorityKeyId, first.Leaf.AuthorityKeyId) {
			t.Error("the new CA issues before its time")
		}

		// Its time comes.
		w.pass(time.Duration(w.cfg.Services.PublishBefore))
		newDoc, _ = i.policy(b, tag) // half of the policy's life is over too
		third, r := i.enrol(b, "group-a")
		if third == nil {
			t.Fatalf("%d %s", r.status, r.body)
		}
		if bytes.Equal(third.Leaf.AuthorityKeyId, first.Leaf.AuthorityKeyId) {
			t.Error("the old CA issues after the new one's time came")
		}
		if s := must(i.CAs(w.registry(), "group-a"))(t); s[0].State != sp.CAIssues || s[1].State != sp.CAUsed {
			t.Errorf("after its time came: %+v", s)
		}
		newCerts := i.cacerts("group-a")
		for name, k := range map[string]struct {
			cert    *tls.Certificate
			doc     *policy.Document
			between []*x509.Certificate
			device  *device
		}{
			"old certificate, old chain, new policy": {first, newDoc, oldCerts, a},
			"old certificate, new chain, new policy": {first, newDoc, newCerts, a},
			"new certificate, new policy":            {third, newDoc, newCerts, b},
		} {
			if err := accepted(t, k.doc, "group-a", k.cert, k.between, k.device.cert.Raw, w.Now()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		// A peer that slept through it all has the old anchor alone. The old root's signature shows the
		// way to the new CA; without the new CA's list it is refused where lists are required.
		oldAnchors, _ := anchorsOf(t, oldDoc, "group-a")
		if err := judge(oldAnchors, nil, third, newCerts, b.cert.Raw, w.Now()); err != nil {
			t.Errorf("new certificate, old anchor: %v", err)
		}
		if err := accepted(t, oldDoc, "group-a", third, newCerts, b.cert.Raw, w.Now()); err == nil {
			t.Error("new certificate, old policy: accepted without the new CA's list")
		}
		for name, c := range map[string]*tls.Certificate{"old": first, "new": third} {
			if r := i.poll(c, "", "0"); r.status != http.StatusOK {
				t.Errorf("%s certificate at the centre: %d %s", name, r.status, r.body)
			}
			if l := i.crl(c.Leaf); l == nil {
				t.Errorf("%s certificate: no list", name)
			}
		}
	})
}

// --now is for a CA that must go at once.
func TestRollOverNow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t))
	i := w.start()
	i.apply()
	i.policy(w.devices[devA], "")
	first, _ := i.enrol(w.devices[devA], "group-a")
	must(i.MakeCA(w.context(), w.registry(), "group-a", sp.CAOptions{Now: true}))(t)
	before := len(i.cacerts("group-a"))
	w.pass(time.Minute)
	w.eventually("the new CA is taken up", func() bool { return len(i.cacerts("group-a")) > before })
	second, r := i.enrol(w.devices[devB], "group-a")
	if second == nil {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if bytes.Equal(second.Leaf.AuthorityKeyId, first.Leaf.AuthorityKeyId) {
		t.Error("the old CA issues")
	}
}

// A renewal replaces the certificate: the one before is good for the overlap, then it is revoked, and
// none of that makes a policy for anybody.
func TestRenewalSupersedes(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		i := w.start()
		i.apply()
		a, b := w.devices[devA], w.devices[devB]
		_, tagB := i.policy(b, "")
		first, r := i.enrol(a, "group-a")
		if first == nil {
			t.Fatalf("%d %s", r.status, r.body)
		}
		i.settled()
		heads := map[string]store.PolicyHead{devA: i.head(devA), devB: i.head(devB)}
		valid := func() (n int) {
			for _, c := range must(i.Store().CertificatesOf(w.context(), devA, 0))(t) {
				if c.Service == "group-a" && c.Valid(w.Now()) {
					n++
				}
			}
			return n
		}
		w.pass(time.Hour)
		second, r := i.enrol(a, "group-a")
		if second == nil {
			t.Fatalf("%d %s", r.status, r.body)
		}
		overlap := time.Duration(w.cfg.Services.Overlap)
		w.pass(overlap - time.Second)
		for name, c := range map[string]*tls.Certificate{"old": first, "new": second} {
			if r := i.poll(c, "", "0"); r.status != http.StatusOK {
				t.Errorf("%s certificate during the overlap: %d %s", name, r.status, r.body)
			}
		}
		if n := len(i.crl(first.Leaf).RevokedCertificateEntries); n != 0 {
			t.Errorf("%d revoked during the overlap", n)
		}
		w.pass(time.Second)
		if r := i.poll(first, "", "0"); r.status != http.StatusForbidden || r.problem(t) != "cert-revoked" {
			t.Errorf("old certificate after the overlap: %d %s", r.status, r.body)
		}
		if r := i.poll(second, "", "0"); r.status != http.StatusOK {
			t.Errorf("new certificate after the overlap: %d %s", r.status, r.body)
		}
		if n := valid(); n != 1 {
			t.Errorf("%d valid certificates for one service, want 1", n)
		}
		l := i.crl(first.Leaf).RevokedCertificateEntries
		if len(l) != 1 || l[0].SerialNumber.Cmp(first.Leaf.SerialNumber) != 0 || l[0].ReasonCode != int(store.Superseded) {
			t.Errorf("list %+v", l)
		}
		// Everybody is looked at anew, and nobody gets a policy for it.
		i.stop()
		i = w.start()
		w.eventually("the new instance has looked at all devices", func() bool {
			q := must(i.Store().Queue(w.context(), "policy-time"))(t)
			return q.Waiting+q.Leased == 0
		})
		i.settled()
		for name, was := range heads {
			if got := i.head(name); got != was {
				t.Errorf("%s has policy %d, had %d", name, got.Serial, was.Serial)
			}
		}
		if r := i.poll(&b.tls, tagB, "0"); r.status != http.StatusNotModified {
			t.Errorf("b's policy: %d", r.status)
		}
		// The next policy that is made for another reason carries the list.
		w.pass(time.Duration(w.cfg.Policy.Life) / 2)
		doc, _ := i.policy(b, tagB)
		_, lists := anchorsOf(t, doc, "group-a")
		listed := false
		for _, l := range lists {
			for _, e := range l.RevokedCertificateEntries {
				listed = listed || e.SerialNumber.Cmp(first.Leaf.SerialNumber) == 0
			}
		}
		if !listed {
			t.Error("the next policy has no list that names the certificate")
		}
	})
}
