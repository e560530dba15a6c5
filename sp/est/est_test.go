package est_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/sp/est"
	"wardgate/sp/issue"
)

func TestEnrolAndRenew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t0, nil)
	key, cert := w.enrol(t, w.a, "group-a")
	if _, err := certs.VerifyChain(certs.Options{
		Leaf: cert.Raw, Anchors: w.service["group-a"].Anchors(), Intermediates: labca.DER(w.service["group-a"].Intermediates()),
		EKU: certs.EKUIPsecIKE, At: t0, RelatedTo: w.a.cert.Raw, ID: &certs.ID{Type: certs.IDFQDN, Data: []byte("a.group-a.example")}, Role: "service",
	}); err != nil {
		t.Fatalf("a peer refuses it: %v", err)
	}
	if !certs.SamePublicKey(cert.PublicKey, key.Public()) {
		t.Fatal("another key was certified")
	}
	e := w.record.enrolled[0]
	if e.Device != w.a.name || e.Service != "group-a" || e.Operation != "simpleenroll" || !e.Bound || !e.Proven || e.Again || !e.Certificate.Equal(cert) {
		t.Errorf("recorded %+v", e)
	}
	// Five days later: renewal with a new key, by the service certificate; and after a long
	// power-off, by the device certificate.
	own := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	for _, c := range []struct {
		after time.Duration
		by    *tls.Certificate
	}{{5 * 24 * time.Hour, &own}, {400 * 24 * time.Hour, &w.a.tls}} {
		now := t0.Add(c.after)
		w.set(func() { w.now = now })
		conn := w.dial(t, c.by)
		r := w.a.request(t, conn, "group-a", now)
		body := b64(r.der())
		got := conn.do(t, post(path("group-a", "simplereenroll"), len(body)), body)
		list := got.certificates(t)
		if len(list) != 1 || list[0].NotAfter.Sub(now) != issue.DefaultLife || !certs.SamePublicKey(list[0].PublicKey, r.key.Public()) {
			t.Errorf("after %v: %d certificates", c.after, len(list))
		}
		if err := certs.CheckRelated(list[0], w.a.cert.Raw); err != nil {
			t.Error(err)
		}
		// RFC 9266, section 4.1.
		if !got.Close {
			t.Error("the connection whose binding was used stays open")
		}
	}
}

func TestHTTPDetails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t0, nil)
	c := w.dial(t, nil)
	got := c.do(t, get(path("group-a", "cacerts")), nil)
	if list := got.certificates(t); len(list) != 2 || !list[0].Equal(w.service["group-a"].Anchors()[0]) {
		t.Errorf("cacerts: %d certificates, want root and issuing CA", len(list))
	}
	if got.Header.Get("Content-Type") != "application/pkcs7-mime" || got.ContentLength != int64(len(got.body)) || len(got.TransferEncoding) != 0 {
		t.Errorf("cacerts: %v, length %d", got.Header, got.ContentLength)
	}
	got = c.do(t, get(path("group-a", "csrattrs")), nil) // the same connection, no certificate
	if got.StatusCode != 200 || got.Header.Get("Content-Type") != "application/csrattrs" {
		t.Errorf("csrattrs: %v %v", got.Status, got.Header)
	}
	if bytes.ContainsAny(got.body, "\r\n \t") {
		t.Error("line breaks in base64")
	}
	c = w.dial(t, &w.a.tls)
	r := w.a.request(t, c, "group-a", t0)
	// RFC 8951, section 3.1: white space in any place; section 3: any Content-Transfer-Encoding.
	var body []byte
	for i, ch := range b64(r.der()) {
		body = append(body, ch)
		if i%64 == 63 {
			body = append(body, "\r\n \t"...)
		}
	}
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: Application/PKCS10; charset=x\r\nContent-Transfer-Encoding: 8bit\r\nContent-Length: %d\r\n\r\n", path("group-a", "simpleenroll"), len(body))
	got = c.do(t, head, body)
	if list := got.certificates(t); len(list) != 1 {
		t.Errorf("%d certificates", len(list))
	}
	if got.Header.Get("Content-Type") != "application/pkcs7-mime; smime-type=certs-only" || got.ContentLength != int64(len(got.body)) {
		t.Errorf("%v, length %d", got.Header, got.ContentLength)
	}
}

func TestCSRAttributes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t0, nil)
	w.set(func() { w.curve = elliptic.P384() })
	oids := func(service string) (plain, kinds []string) {
		r := w.dial(t, nil).do(t, get(path(service, "csrattrs")), nil)
		der := make([]byte, len(r.body))
		n := must(decode(der, r.body))
		s := cryptobyte.String(der[:n])
		var seq cryptobyte.String
		if !s.ReadASN1(&seq, cbasn1.SEQUENCE) || !s.Empty() {
			t.Fatal("no CsrAttrs")
		}
		for !seq.Empty() {
			var oid asn1.ObjectIdentifier
			var attr, set cryptobyte.String
			if seq.PeekASN1Tag(cbasn1.OBJECT_IDENTIFIER) {
				seq.ReadASN1ObjectIdentifier(&oid)
				plain = append(plain, oid.String())
				continue
			}
			var value asn1.ObjectIdentifier
			if !seq.ReadASN1(&attr, cbasn1.SEQUENCE) || !attr.ReadASN1ObjectIdentifier(&oid) || !attr.ReadASN1(&set, cbasn1.SET) || !set.ReadASN1ObjectIdentifier(&value) {
				t.Fatal("malformed attribute")
			}
			kinds = append(kinds, oid.String()+"="+value.String())
		}
		return plain, kinds
	}
	plain, kinds := oids("group-a")
	if fmt.Sprint(plain) != "[1.2.840.113549.1.9.7 1.2.840.113549.1.9.16.2.60]" || fmt.Sprint(kinds) != "[1.2.840.113549.1.9.14=2.5.29.17 1.2.840.10045.2.1=1.3.132.0.34]" {
		t.Errorf("asked for %v %v", plain, kinds)
	}
	if plain, _ := oids("plain"); len(plain) != 0 {
		t.Errorf("asked of any client: %v", plain)
	}
	c := w.dial(t, &w.a.tls)
	body := b64(w.a.request(t, c, "group-a", t0).der())
	w.refused(t, c.do(t, post(path("group-a", "simpleenroll"), len(body)), body), est.BadCSR)
}

// refused checks status, text and record of a refusal.
func (w *world) refused(t *testing.T, r *reply, class est.Class) {
	t.Helper()
	last := w.record.lastRefusal()
	if last == nil {
		t.Fatalf("%s: %q, and no refusal on record; want %v", r.Status, r.body, class)
	}
	if r.StatusCode != class.Status() || !errors.Is(last, class) {
		t.Errorf("got %s, recorded %v; want %d %v\n%s", r.Status, last.Class, class.Status(), class, r.body)
	}
	if ct := r.Header.Get("Content-Type"); ct != "text/plain; charset=utf-8" {
		t.Errorf("Content-Type %q", ct)
	}
	text := string(r.body)
	if !strings.Contains(text, "("+class.String()+")") || !strings.Contains(text, "expected ") || !strings.Contains(text, "got ") || strings.Count(text, "\n") != 1 {
		t.Errorf("reason does not say what was expected and what came in one line: %q", text)
	}
}

// Each refusal that is EST's of issue 4, "Shown by" 5, and some more.
func TestRefusals(t *testing.T) {
	t.Parallel()
	type attempt struct {
		w       *world
		t       *testing.T
		by      *tls.Certificate
		conn    *conn
		service string
		op      string
		req     request
		body    []byte // instead of the request
		head    string // instead of the right one
	}
	for name, c := range map[string]struct {
		before func(a *attempt) // before the connection
		edit   func(a *attempt) // before the request is signed
		want   est.Class
		cause  certs.Class
	}{
		"CSR without proof of the device key": {edit: func(a *attempt) { a.req.related = nil }, want: est.NoProof},
		"proof by another key than the device's": {edit: func(a *attempt) {
			b := a.w.b.proof(t0)
			good := a.w.a.proof(t0)
			// a's names, b's signature
			a.req.related = splice(good, b)
		}, want: est.BadProof, cause: certs.ProofOfDevice},
		"another device's certificate in the proof": {edit: func(a *attempt) { a.req.related = a.w.b.proof(t0) }, want: est.OtherDevice},
		"another device's certificate in TLS":       {before: func(a *attempt) { a.by = &a.w.b.tls }, want: est.OtherDevice},
		"another device's CSR, bound to our connection": {
			before: func(a *attempt) { a.by = &a.w.b.tls; a.service = "group-b" },
			edit:   func(a *attempt) { a.req = a.w.a.request(a.t, a.conn, "group-a", t0) }, want: est.OtherDevice,
		},
		"stale relatedCertRequest":       {edit: func(a *attempt) { a.req.related = a.w.a.proof(t0.Add(-time.Hour - time.Second)) }, want: est.BadProof},
		"relatedCertRequest of tomorrow": {edit: func(a *attempt) { a.req.related = a.w.a.proof(t0.Add(time.Hour)) }, want: est.BadProof, cause: certs.ProofOfDevice},
		"malformed relatedCertRequest":   {edit: func(a *attempt) { a.req.related = []byte{0x30, 0} }, want: est.BadProof, cause: certs.ProofOfDevice},
		"two relatedCertRequests": {edit: func(a *attempt) {
			a.req.extra = [][]byte{attribute(certs.OIDRelatedCertRequest, func(b *cryptobyte.Builder) { b.AddBytes(a.w.b.proof(t0)) })}
		}, want: est.BadProof, cause: certs.ProofOfDevice},
		"no channel binding":            {edit: func(a *attempt) { a.req.challenge = "" }, want: est.NoBinding},
		"binding of another connection": {edit: func(a *attempt) { a.req.challenge = a.w.dial(a.t, a.by).binding(a.t) }, want: est.WrongBinding},
		"a password as binding":         {edit: func(a *attempt) { a.req.challenge = "secret" }, want: est.WrongBinding},
		"wrong binding, where none is asked for": {
			before: func(a *attempt) { a.service = "plain" },
			edit:   func(a *attempt) { a.req.challenge = a.w.dial(a.t, a.by).binding(a.t) }, want: est.WrongBinding,
		},
		"two bindings": {edit: func(a *attempt) {
			a.req.extra = [][]byte{attribute(oidChallenge, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.PrintableString, func(b *cryptobyte.Builder) { b.AddBytes([]byte("x")) })
			})}
		}, want: est.Malformed},
		"binding as BMPString": {edit: func(a *attempt) { a.req.tag = 30 }, want: est.Malformed},
		"binding too long":     {edit: func(a *attempt) { a.req.challenge = strings.Repeat("a", 256) }, want: est.Malformed},

		"no client certificate": {before: func(a *attempt) { a.by = nil }, want: est.NoCertificate},
		"device certificate of a foreign CA": {before: func(a *attempt) {
			foreign := must(labca.New(labca.Options{Kind: labca.Device, Name: "device", Domain: "devices.example", At: t0.Add(-time.Hour)}))
			c := must(foreign.Issue(labca.Request{Public: a.w.a.key.Public(), DNSNames: []string{a.w.a.name}, At: t0.Add(-time.Hour)}))
			a.by = &tls.Certificate{Certificate: append([][]byte{c.Raw}, labca.DER(foreign.Intermediates())...), PrivateKey: a.w.a.key}
		}, want: est.BadCertificate, cause: certs.UnknownCA},
		"device certificate ended": {before: func(a *attempt) {
			a.w.set(func() { a.w.now = t0.Add(11 * 365 * 24 * time.Hour) })
		}, want: est.BadCertificate, cause: certs.Expired},
		"device certificate revoked": {before: func(a *attempt) {
			if err := a.w.devices.Revoke(a.w.a.cert.SerialNumber, t0, 1); err != nil {
				a.t.Fatal(err)
			}
			a.w.set(func() { a.w.trust.CRLs = must(a.w.devices.CRLs(t0, time.Hour)) })
		}, want: est.BadCertificate, cause: certs.Revoked},
		"revocation list required and missing": {before: func(a *attempt) {
			a.w.set(func() { a.w.trust.RequireCRL = true })
		}, want: est.BadCertificate, cause: certs.CRLMissing},
		"device certificate not for TLS": {before: func(a *attempt) {
			c := must(a.w.devices.Issue(labca.Request{Public: a.w.a.key.Public(), DNSNames: []string{a.w.a.name}, At: t0, EKUs: []asn1.ObjectIdentifier{certs.EKUIPsecIKE}}))
			a.by = &tls.Certificate{Certificate: append([][]byte{c.Raw}, labca.DER(a.w.devices.Intermediates())...), PrivateKey: a.w.a.key}
		}, want: est.BadCertificate, cause: certs.WrongEKU},
		"first enrolment with a service certificate": {before: func(a *attempt) {
			key, c := a.w.enrol(a.t, a.w.a, "group-a")
			a.by = &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key}
		}, want: est.NotForEnrol},
		"renewal with another service's certificate": {before: func(a *attempt) {
			key, c := a.w.enrol(a.t, a.w.b, "group-b")
			a.by, a.op = &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key}, "simplereenroll"
		}, want: est.BadCertificate, cause: certs.UnknownCA},
		"renewal with a revoked service certificate": {before: func(a *attempt) {
			key, c := a.w.enrol(a.t, a.w.a, "group-a")
			s := a.w.service["group-a"]
			if _, err := s.Revoke(a.t.Context(), issue.KeyID(s.Current().Cert), issue.SerialText(c.SerialNumber), t0, 1); err != nil {
				a.t.Fatal(err)
			}
			a.by, a.op = &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key}, "simplereenroll"
		}, want: est.BadCertificate, cause: certs.Revoked},
		"renewal with an ended service certificate": {before: func(a *attempt) {
			key, c := a.w.enrol(a.t, a.w.a, "group-a")
			a.w.set(func() { a.w.now = c.NotAfter.Add(time.Second) })
			a.by, a.op = &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key}, "simplereenroll"
		}, want: est.BadCertificate, cause: certs.Expired},
		"service certificate bound to another device": {
			before: func(a *attempt) {
				key, c := a.w.enrol(a.t, a.w.a, "group-a")
				a.by, a.op = &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key}, "simplereenroll"
			},
			edit: func(a *attempt) { a.req.related = a.w.b.proof(t0) }, want: est.OtherDevice, cause: certs.NotBound,
		},
		"service certificate that is not on record": {before: func(a *attempt) {
			ca := a.w.service["group-a"].Current()
			key := newKey()
			tpl := must(a.w.service["group-a"].Issue(a.t.Context(), issue.Request{Public: newKey().Public(), Names: []string{"a.group-a.example"}, Device: a.w.a.name, DeviceDER: a.w.a.cert.Raw, Now: t0})).Certificate
			tpl.ExtraExtensions = nil
			der := must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
				SerialNumber: tpl.SerialNumber, Subject: tpl.Subject, DNSNames: tpl.DNSNames, NotBefore: tpl.NotBefore, NotAfter: tpl.NotAfter,
				KeyUsage: tpl.KeyUsage, ExtKeyUsage: tpl.ExtKeyUsage, UnknownExtKeyUsage: tpl.UnknownExtKeyUsage,
			}, ca.Cert, key.Public(), ca.Key))
			a.by, a.op = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, "simplereenroll"
		}, want: est.BadCertificate},
		"renewal under another name": {
			before: func(a *attempt) {
				key, c := a.w.enrol(a.t, a.w.a, "group-a")
				a.by, a.op = &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key}, "simplereenroll"
			},
			edit: func(a *attempt) { a.req.cn = "b.group-a.example" }, want: est.WrongName,
		},
		"a service that the device is no member of": {before: func(a *attempt) { a.service = "group-b" }, want: est.NotMember},
		"a device that left":                        {before: func(a *attempt) { a.w.registry.set(func(r *registry) { clear(r.members) }) }, want: est.NotMember},
		"a device that nobody registered":           {before: func(a *attempt) { a.w.registry.set(func(r *registry) { clear(r.devices) }) }, want: est.NotMember},
		"approval pending":                          {before: func(a *attempt) { a.w.registry.set(func(r *registry) { r.pending = true }) }, want: est.Pending},
		"another device's name":                     {edit: func(a *attempt) { a.req.names = []string{"b.group-a.example"} }, want: est.WrongName},
		"one name more":                             {edit: func(a *attempt) { a.req.names = append(a.req.names, "x.group-a.example") }, want: est.WrongName},
		"path traversal in a name":                  {edit: func(a *attempt) { a.req.names = []string{"../../a.group-a.example"} }, want: est.WrongName},
		"mail address as name":                      {edit: func(a *attempt) { a.req.names = append(a.req.names, "a@group-a.example") }, want: est.WrongName},
		"path traversal in the common name":         {edit: func(a *attempt) { a.req.names, a.req.cn = nil, "../../etc/passwd" }, want: est.WrongName},

		"the device's own key":  {edit: func(a *attempt) { a.req.key = a.w.a.key }, want: est.DeviceKey},
		"signed by another key": {edit: func(a *attempt) { a.req.badSig = true }, want: est.BadCSR, cause: certs.CSRSignature},
		"weak key":              {edit: func(a *attempt) { a.req.key = must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)) }, want: est.BadCSR, cause: certs.WeakKey},
		"PEM instead of DER":    {edit: func(a *attempt) { a.body = b64([]byte("-----BEGIN CERTIFICATE REQUEST-----\n")) }, want: est.Malformed},
		"no base64":             {edit: func(a *attempt) { a.body = []byte("äöü") }, want: est.Malformed},
		"nothing":               {edit: func(a *attempt) { a.body = []byte{} }, want: est.Malformed},
		"a certificate":         {edit: func(a *attempt) { a.body = b64(a.w.a.cert.Raw) }, want: est.Malformed, cause: certs.Malformed},
		"oversized DER": {edit: func(a *attempt) {
			a.body = b64(append([]byte{0x30, 0x82, 0x41, 0}, make([]byte, certs.MaxCSRBytes)...))
		}, want: est.TooLarge, cause: certs.TooLarge},
		"oversized body": {edit: func(a *attempt) { a.body = make([]byte, est.MaxBody+1) }, want: est.TooLarge},
		"oversized, in chunks": {edit: func(a *attempt) {
			a.head = "POST " + path(a.service, a.op) + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/pkcs10\r\nTransfer-Encoding: chunked\r\n\r\n"
			a.body = fmt.Appendf(nil, "%x\r\n%s\r\n0\r\n\r\n", est.MaxBody+1, bytes.Repeat([]byte("A"), est.MaxBody+1))
		}, want: est.TooLarge},
		"wrong content type": {edit: func(a *attempt) {
			a.head = "POST " + path(a.service, a.op) + " HTTP/1.1\r\nHost: x\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n"
			a.body = []byte{}
		}, want: est.BadType},
		"compressed": {edit: func(a *attempt) {
			a.head = "POST " + path(a.service, a.op) + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/pkcs10\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n"
			a.body = []byte{}
		}, want: est.BadType},
		"GET instead of POST": {edit: func(a *attempt) { a.head, a.body = get(path(a.service, a.op)), []byte{} }, want: est.BadMethod},
		"POST instead of GET": {edit: func(a *attempt) { a.head, a.body = post(path(a.service, "cacerts"), 0), []byte{} }, want: est.BadMethod},
		"no service":          {edit: func(a *attempt) { a.head, a.body = get("/.well-known/est/cacerts"), []byte{} }, want: est.BadPath},
		"no operation":        {edit: func(a *attempt) { a.head, a.body = get("/.well-known/est/group-a/"), []byte{} }, want: est.BadPath},
		"unknown operation":   {edit: func(a *attempt) { a.head, a.body = post(path("group-a", "fullcmc"), 0), []byte{} }, want: est.BadPath},
		"keys made elsewhere": {edit: func(a *attempt) { a.head, a.body = post(path("group-a", "serverkeygen"), 0), []byte{} }, want: est.BadPath},
		"unknown service":     {edit: func(a *attempt) { a.head, a.body = get(path("group-x", "cacerts")), []byte{} }, want: est.NoService},
		"path traversal":      {edit: func(a *attempt) { a.head, a.body = get("/.well-known/est/../cacerts"), []byte{} }, want: est.BadPath},
		"escaped traversal":   {edit: func(a *attempt) { a.head, a.body = get("/.well-known/est/%2e%2e%2fgroup-a/cacerts"), []byte{} }, want: est.BadPath},
		"deeper path":         {edit: func(a *attempt) { a.head, a.body = get("/.well-known/est/x/group-a/cacerts"), []byte{} }, want: est.BadPath},
		"another path":        {edit: func(a *attempt) { a.head, a.body = get("/etc/passwd"), []byte{} }, want: est.BadPath},
		"registry fails": {before: func(a *attempt) {
			a.w.registry.set(func(r *registry) { r.fail = errors.New("secret of the database") })
		}, want: est.Internal},
		"recorder fails": {before: func(a *attempt) { a.w.issued.Fail(errors.New("secret of the database")) }, want: est.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, t0, nil)
			a := &attempt{w: w, t: t, by: &w.a.tls, service: "group-a", op: "simpleenroll"}
			if c.before != nil {
				c.before(a)
			}
			enrolled := len(w.record.enrolled)
			a.conn = w.dial(t, a.by)
			a.req = w.a.request(t, a.conn, a.service, t0)
			w.mu.Lock()
			if now := w.now; now != t0 {
				a.req.related = w.a.proof(now)
			}
			w.mu.Unlock()
			if c.edit != nil {
				c.edit(a)
			}
			if a.body == nil {
				a.body = b64(a.req.der())
			}
			if a.head == "" {
				a.head = post(path(a.service, a.op), len(a.body))
			}
			got := a.conn.do(t, a.head, a.body)
			w.refused(t, got, c.want)
			last := w.record.lastRefusal()
			if c.cause != certs.Unknown && certs.ClassOf(last) != c.cause {
				t.Errorf("cause %v, want %v", certs.ClassOf(last), c.cause)
			}
			if bytes.Contains(got.body, []byte("secret")) {
				t.Errorf("the client is told of our inside: %s", got.body)
			}
			if len(w.record.enrolled) != enrolled {
				t.Error("enrolled all the same")
			}
			if got.StatusCode == http.StatusAccepted && got.Header.Get("Retry-After") != "90" {
				t.Errorf("Retry-After %q", got.Header.Get("Retry-After"))
			}
			if got.StatusCode == http.StatusMethodNotAllowed && got.Header.Get("Allow") == "" {
				t.Error("no Allow")
			}
		})
	}
}

// splice puts the signature of one relatedCertRequest behind the names and time of another.
func splice(names, signature []byte) []byte {
	parts := func(der []byte) (rest, sig []byte) {
		s := cryptobyte.String(der)
		var seq, e cryptobyte.String
		s.ReadASN1(&seq, cbasn1.SEQUENCE)
		all := seq
		for range 3 {
			seq.ReadAnyASN1Element(&e, new(cbasn1.Tag))
		}
		return all[:len(all)-len(seq)], seq
	}
	head, _ := parts(names)
	_, sig := parts(signature)
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(head); b.AddBytes(sig) })
	return b.BytesOrPanic()
}

// A request that was recorded on the way is of no use: not on another connection, not to another
// device, and where no connection is bound, not after its certificate has become old.
func TestReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t0, nil)
	c := w.dial(t, &w.a.tls)
	bound := b64(w.a.request(t, c, "group-a", t0).der())
	c.do(t, post(path("group-a", "simpleenroll"), len(bound)), bound).certificates(t)
	w.refused(t, w.dial(t, &w.a.tls).do(t, post(path("group-a", "simpleenroll"), len(bound)), bound), est.WrongBinding)
	w.refused(t, w.dial(t, &w.b.tls).do(t, post(path("group-a", "simpleenroll"), len(bound)), bound), est.WrongBinding)

	plain := b64(request{key: newKey(), cn: "a.plain.example"}.der())
	again := func() *reply {
		return w.dial(t, &w.a.tls).do(t, post(path("plain", "simpleenroll"), len(plain)), plain)
	}
	first := again().certificates(t)[0]
	if second := again().certificates(t)[0]; !second.Equal(first) {
		t.Error("the same request at once: another certificate")
	}
	if e := w.record.enrolled[len(w.record.enrolled)-1]; !e.Again || e.Bound || e.Proven {
		t.Errorf("recorded %+v", e)
	}
	w.registry.set(func(r *registry) { r.members["b.devices.example plain"] = true })
	other := w.dial(t, &w.b.tls).do(t, post(path("plain", "simpleenroll"), len(plain)), plain)
	w.refused(t, other, est.WrongName) // the request names a
	nameless := b64(request{key: newKey()}.der())
	w.dial(t, &w.a.tls).do(t, post(path("plain", "simpleenroll"), len(nameless)), nameless).certificates(t)
	w.refused(t, w.dial(t, &w.b.tls).do(t, post(path("plain", "simpleenroll"), len(nameless)), nameless), est.KeyInUse)
	w.set(func() { w.now = t0.Add(5 * 24 * time.Hour) })
	w.refused(t, again(), est.Replayed)
}

// An answer that was lost: the device asks again with the same key over a new connection, and gets
// the same certificate. A revoked key is not certified again.
func TestAskAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t0, nil)
	key := newKey()
	ask := func() *reply {
		c := w.dial(t, &w.a.tls)
		r := w.a.request(t, c, "group-a", t0)
		r.key = key
		body := b64(r.der())
		return c.do(t, post(path("group-a", "simpleenroll"), len(body)), body)
	}
	first, second := ask().certificates(t)[0], ask().certificates(t)[0]
	if !first.Equal(second) || len(w.issued.All()) != 1 || !w.record.enrolled[1].Again {
		t.Error("two certificates for one key")
	}
	s := w.service["group-a"]
	if _, err := s.Revoke(t.Context(), issue.KeyID(s.Current().Cert), issue.SerialText(first.SerialNumber), t0, 1); err != nil {
		t.Fatal(err)
	}
	w.refused(t, ask(), est.KeyRevoked)
}

// Without limits one device, or one address, could keep the centre busy.
func TestRateLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t0, func(c *est.Config) {
		c.PerClient = est.Limit{PerSecond: 0.5, Burst: 3}
		c.PerAddress = est.Limit{PerSecond: 1, Burst: 5}
	})
	ask := func(by *tls.Certificate) *reply {
		body := b64(request{key: newKey(), cn: "a.plain.example"}.der())
		return w.dial(t, by).do(t, post(path("plain", "simpleenroll"), len(body)), body)
	}
	for range 3 {
		ask(&w.a.tls).certificates(t)
	}
	r := ask(&w.a.tls)
	w.refused(t, r, est.TooMany)
	if r.Header.Get("Retry-After") != "2" {
		t.Errorf("Retry-After %q, want 2", r.Header.Get("Retry-After"))
	}
	w.refused(t, ask(&w.b.tls), est.NotMember) // another device is not held up
	w.set(func() { w.now = t0.Add(2 * time.Second) })
	ask(&w.a.tls).certificates(t)
	for range 5 {
		w.dial(t, nil).do(t, get(path("plain", "cacerts")), nil).certificates(t)
	}
	w.refused(t, w.dial(t, nil).do(t, get(path("plain", "cacerts")), nil), est.TooMany)
	w.refused(t, ask(nil), est.TooMany)
}

// Who sends slowly, or nothing, is let go.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t0, func(c *est.Config) { c.BodyTimeout = 50 * time.Millisecond })
	c := w.dial(t, &w.a.tls)
	r := c.do(t, post(path("group-a", "simpleenroll"), 400), []byte("MII"))
	w.refused(t, r, est.TooSlow)
	if !r.Close {
		t.Error("the connection stays open")
	}
}

// When all places are taken, one waits for a moment and is then told to come again.
func TestBusy(t *testing.T) {
	t.Parallel()
	release, inside := make(chan struct{}), make(chan struct{}, 1)
	w := newWorld(t, t0, func(c *est.Config) {
		c.Concurrent, c.IssueTimeout = 1, 100*time.Millisecond
		c.Registry = &holding{c.Registry, release, inside}
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		body := b64(request{key: newKey(), cn: "a.plain.example"}.der())
		w.dial(t, &w.a.tls).do(t, post(path("plain", "simpleenroll"), len(body)), body)
	})
	<-inside
	body := b64(request{key: newKey(), cn: "a.plain.example"}.der())
	r := w.dial(t, &w.a.tls).do(t, post(path("plain", "simpleenroll"), len(body)), body)
	w.refused(t, r, est.Busy)
	if r.Header.Get("Retry-After") != "10" {
		t.Errorf("Retry-After %q", r.Header.Get("Retry-After"))
	}
	close(release)
	wg.Wait()
}

// Plain HTTP and old TLS get nowhere, whatever stands in front of the handler.
func TestNoTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t0, nil)
	for name, state := range map[string]*tls.ConnectionState{"none": nil, "1.2": {Version: tls.VersionTLS12, PeerCertificates: []*x509.Certificate{w.a.cert}}} {
		r := httptest.NewRequest(http.MethodPost, path("group-a", "simpleenroll"), strings.NewReader("x"))
		r.TLS = state
		rec := httptest.NewRecorder()
		w.server.ServeHTTP(rec, r)
		if rec.Code != http.StatusForbidden || !errors.Is(w.record.lastRefusal(), est.NoTLS) {
			t.Errorf("TLS %s: %d %s", name, rec.Code, rec.Body)
		}
	}
	if _, err := est.Binding(&tls.ConnectionState{Version: tls.VersionTLS12}); err == nil {
		t.Error("a binding for TLS 1.2")
	}
	conn, err := tls.Dial("tcp", w.addr, &tls.Config{RootCAs: w.roots, ServerName: "localhost", MaxVersion: tls.VersionTLS12, Time: func() time.Time { return t0 }})
	if err == nil {
		conn.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

// Old and new CA side by side: who renews by a certificate of the old one gets one of the new one.
func TestRollOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t0, nil)
	s := w.service["group-a"]
	key, cert := w.enrol(t, w.a, "group-a")
	next := must(issue.NewCA(issue.CAOptions{Service: "group-a", Domain: "group-a.example", NotBefore: t0, Rand: rand.Reader}))
	next = must(issue.CrossSign(rand.Reader, s.Current(), next, t0))
	if err := s.Roll(next, t0); err != nil {
		t.Fatal(err)
	}
	list := w.dial(t, nil).do(t, get(path("group-a", "cacerts")), nil).certificates(t)
	if len(list) != 8 || !list[0].Equal(next.Root) {
		t.Errorf("cacerts: %d certificates", len(list))
	}
	c := w.dial(t, &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key})
	r := w.a.request(t, c, "group-a", t0)
	body := b64(r.der())
	got := c.do(t, post(path("group-a", "simplereenroll"), len(body)), body).certificates(t)[0]
	if got.CheckSignatureFrom(next.Cert) != nil {
		t.Error("not by the new CA")
	}
}

func TestNewRefusesHalfConfigurations(t *testing.T) {
	t.Parallel()
	if _, err := est.New(est.Config{}); err == nil {
		t.Error("a server of nothing")
	}
}
