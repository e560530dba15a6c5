package certs_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

var t0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

// world is a laboratory with one device and one service certificate bound to it.
type world struct {
	t           testing.TB
	lab         *labca.Lab
	device, svc *x509.Certificate
	key         crypto.Signer
}

func newWorld(t testing.TB) *world {
	t.Helper()
	lab, err := labca.NewLab("", labca.P256, t0.Add(-day), "group-a", "group-b")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, lab: lab}
	w.key = newKey(t)
	w.device = w.issue(lab.Device, labca.Request{DNSNames: []string{"a.devices.example"}})
	w.svc = w.issue(lab.Services["group-a"], labca.Request{DNSNames: []string{"a.group-a.example"}, Device: w.device.Raw})
	return w
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := labca.NewKey(labca.P256)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (w *world) issue(a *labca.Authority, r labca.Request) *x509.Certificate {
	w.t.Helper()
	if r.Public == nil {
		r.Public = newKey(w.t).Public()
	}
	if r.At.IsZero() {
		r.At = t0.Add(-time.Hour)
	}
	c, err := a.Issue(r)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// service returns the options that accept w.svc.
func (w *world) service(leaf *x509.Certificate) certs.Options {
	a := w.lab.Services["group-a"]
	return certs.Options{
		Leaf: leaf.Raw, Intermediates: labca.DER(a.Intermediates()), Anchors: []*x509.Certificate{a.Anchor()},
		EKU: certs.EKUIPsecIKE, At: t0, RelatedTo: w.device.Raw, Role: "service",
		ID: &certs.ID{Type: certs.IDFQDN, Data: []byte("a.group-a.example")},
	}
}

func wantClass(t *testing.T, err error, want certs.Class) {
	t.Helper()
	if want == certs.Unknown {
		if err != nil {
			t.Fatalf("refused: %v", err)
		}
		return
	}
	if err == nil {
		t.Fatalf("accepted, want %v", want)
	}
	if !errors.Is(err, want) || certs.ClassOf(err) != want {
		t.Fatalf("got %v, want class %v", err, want)
	}
	e, _ := errors.AsType[*certs.Error](err)
	if e.Expected == "" || e.Got == "" || e.Do == "" {
		t.Errorf("text lacks what was expected, what came or what to do: %v", err)
	}
	for _, r := range err.Error() {
		if r != '…' && (r < ' ' || r > '~') {
			t.Errorf("unescaped %q in %q", r, err.Error())
		}
	}
}

func TestVerifyChain(t *testing.T) {
	w := newWorld(t)
	a, b := w.lab.Services["group-a"], w.lab.Services["group-b"]
	other := w.issue(w.lab.Device, labca.Request{DNSNames: []string{"b.devices.example"}})
	name := []string{"a.group-a.example"}
	rsaKey := func(bits int) crypto.PublicKey {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return k.Public()
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(r labca.Request) *x509.Certificate {
		if r.DNSNames == nil {
			r.DNSNames = name
		}
		if r.Device == nil {
			r.Device = w.device.Raw
		}
		return w.issue(a, r)
	}
	cases := []struct {
		name string
		leaf *x509.Certificate
		edit func(*certs.Options)
		want certs.Class
	}{
		{name: "accepted", leaf: w.svc},
		{name: "superfluous intermediates do no harm", leaf: w.svc, edit: func(o *certs.Options) {
			o.Intermediates = append(labca.DER(b.Intermediates()), append(o.Intermediates, a.Anchor().Raw, []byte("junk"))...)
		}},
		{name: "RSA 2048 accepted", leaf: issue(labca.Request{Public: rsaKey(2048)})},
		{name: "SHA-384 binding accepted", leaf: issue(labca.Request{Hash: crypto.SHA384})},
		{name: "SHA-512 binding accepted", leaf: issue(labca.Request{Hash: crypto.SHA512})},
		{name: "expired", leaf: issue(labca.Request{At: t0.Add(-3 * day), Life: day}), want: certs.Expired},
		{name: "not yet valid", leaf: issue(labca.Request{At: t0.Add(day)}), want: certs.NotYetValid},
		{name: "CA expired", leaf: issue(labca.Request{Life: 30 * 365 * day}), edit: func(o *certs.Options) { o.At = t0.Add(15 * 365 * day) }, want: certs.Expired},
		{name: "other service's CA", leaf: w.issue(b, labca.Request{DNSNames: []string{"a.group-b.example"}, Device: w.device.Raw}), edit: func(o *certs.Options) {
			o.Intermediates = labca.DER(b.Intermediates())
		}, want: certs.UnknownCA},
		{name: "intermediate missing", leaf: w.svc, edit: func(o *certs.Options) { o.Intermediates = nil }, want: certs.UnknownCA},
		{name: "no anchors", leaf: w.svc, edit: func(o *certs.Options) { o.Anchors = nil }, want: certs.AnchorsMissing},
		{name: "wrong EKU", leaf: issue(labca.Request{EKUs: []asn1.ObjectIdentifier{certs.EKUClientAuth}}), want: certs.WrongEKU},
		{name: "no EKU", leaf: issue(labca.Request{NoEKU: true}), want: certs.WrongEKU},
		{name: "any EKU", leaf: issue(labca.Request{EKUs: []asn1.ObjectIdentifier{{2, 5, 29, 37, 0}}}), want: certs.WrongEKU},
		{name: "policy signer's EKU under a service CA", leaf: issue(labca.Request{EKUs: []asn1.ObjectIdentifier{certs.EKUPolicySigning}}), edit: func(o *certs.Options) { o.EKU = certs.EKUPolicySigning }, want: certs.WrongEKU},
		{name: "key usage", leaf: issue(labca.Request{KeyUsage: x509.KeyUsageKeyEncipherment}), want: certs.KeyUsage},
		{name: "CA certificate as leaf", leaf: issue(labca.Request{IsCA: true}), want: certs.KeyUsage},
		{name: "outside name constraint", leaf: issue(labca.Request{IgnoreDomain: true, DNSNames: []string{"a.group-b.example"}}), want: certs.NameConstraint},
		{name: "weak RSA", leaf: issue(labca.Request{Public: rsaKey(1024), AllowWeakKeys: true}), want: certs.WeakKey},
		{name: "weak curve", leaf: issue(labca.Request{Public: p224.Public(), AllowWeakKeys: true}), want: certs.WeakKey},
		{name: "unknown critical extension", leaf: issue(labca.Request{Extra: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}}), want: certs.Malformed},
		{name: "not bound", leaf: issue(labca.Request{Unbound: true}), want: certs.NotBound},
		{name: "bound to another device", leaf: issue(labca.Request{Device: other.Raw}), want: certs.NotBound},
		{name: "malformed binding", leaf: issue(labca.Request{Unbound: true, Extra: []pkix.Extension{{Id: certs.OIDRelatedCertificate, Value: []byte{0x30, 0}}}}), want: certs.NotBound},
		{name: "another identity", leaf: issue(labca.Request{DNSNames: []string{"c.group-a.example"}}), want: certs.IDMismatch},
		{name: "hostile name", leaf: issue(labca.Request{Subject: pkix.Name{CommonName: "x\x1b[2J\n" + strings.Repeat("é", 500)}, DNSNames: []string{"c.group-a.example"}}), want: certs.IDMismatch},
		{name: "malformed", leaf: w.svc, edit: func(o *certs.Options) { o.Leaf = o.Leaf[:len(o.Leaf)-1] }, want: certs.Malformed},
		{name: "empty", leaf: w.svc, edit: func(o *certs.Options) { o.Leaf = nil }, want: certs.Malformed},
		{name: "too large", leaf: w.svc, edit: func(o *certs.Options) { o.Leaf = make([]byte, certs.MaxCertificateBytes+1) }, want: certs.TooLarge},
		{name: "too many", leaf: w.svc, edit: func(o *certs.Options) { o.Intermediates = make([][]byte, certs.MaxIntermediates+1) }, want: certs.TooLarge},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			opt := w.service(c.leaf)
			if c.edit != nil {
				c.edit(&opt)
			}
			v, err := certs.VerifyChain(opt)
			wantClass(t, err, c.want)
			if err == nil && (len(v.Chain) != 3 || !v.Leaf.Equal(c.leaf) || !v.ValidUntil.Equal(c.leaf.NotAfter)) {
				t.Errorf("verified: %d certificates, valid until %v", len(v.Chain), v.ValidUntil)
			}
			if err != nil && !strings.Contains(err.Error(), "service certificate") {
				t.Errorf("text does not name the role: %v", err)
			}
		})
	}
}

func TestAlteredSignature(t *testing.T) {
	w := newWorld(t)
	opt := w.service(w.svc)
	opt.Leaf = append([]byte(nil), opt.Leaf...)
	opt.Leaf[len(opt.Leaf)-3] ^= 1
	_, err := certs.VerifyChain(opt)
	wantClass(t, err, certs.UnknownCA)
}

func TestEveryTruncation(t *testing.T) {
	w := newWorld(t)
	for n := range w.svc.Raw {
		opt := w.service(w.svc)
		opt.Leaf = w.svc.Raw[:n]
		if _, err := certs.VerifyChain(opt); certs.ClassOf(err) != certs.Malformed {
			t.Fatalf("%d octets: %v", n, err)
		}
	}
}

func TestZeroTimeIsRefused(t *testing.T) {
	w := newWorld(t)
	opt := w.service(w.svc)
	opt.At = time.Time{} // crypto/x509 would take the machine's clock
	if _, err := certs.VerifyChain(opt); err == nil {
		t.Fatal("accepted without a time")
	}
}

// ca makes a CA certificate below parent by hand, for hierarchies that labca would not make.
func ca(t testing.TB, cn string, parent *x509.Certificate, parentKey crypto.Signer, edit func(*x509.Certificate)) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	k := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(cn)) + 1), Subject: pkix.Name{CommonName: cn},
		NotBefore: t0.Add(-day), NotAfter: t0.Add(365 * day), BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if edit != nil {
		edit(tmpl)
	}
	if parent == nil {
		parent, parentKey = tmpl, k
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, k.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, k
}

func TestHierarchies(t *testing.T) {
	w := newWorld(t)
	leafUnder := func(c *x509.Certificate, k crypto.Signer) *x509.Certificate {
		return w.issue(w.lab.Device, labca.Request{DNSNames: []string{"a.devices.example"}, SigningCA: c, SigningCAKey: k})
	}
	verify := func(leaf, root *x509.Certificate, between ...*x509.Certificate) error {
		_, err := certs.VerifyChain(certs.Options{
			Leaf: leaf.Raw, Intermediates: labca.DER(between), Anchors: []*x509.Certificate{root}, EKU: certs.EKUIPsecIKE, At: t0, Role: "device",
		})
		return err
	}
	t.Run("path length", func(t *testing.T) {
		root, rk := ca(t, "root", nil, nil, func(c *x509.Certificate) { c.MaxPathLen = 1 })
		i1, k1 := ca(t, "i1", root, rk, nil)
		i2, k2 := ca(t, "i2", i1, k1, nil)
		wantClass(t, verify(leafUnder(i1, k1), root, i1), certs.Unknown)
		wantClass(t, verify(leafUnder(i2, k2), root, i1, i2), certs.PathLength)
		zero, zk := ca(t, "zero", root, rk, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
		wantClass(t, verify(leafUnder(zero, zk), root, zero), certs.Unknown)
	})
	t.Run("issuer is no CA", func(t *testing.T) {
		k := newKey(t)
		notCA := w.issue(w.lab.Device, labca.Request{DNSNames: []string{"a.devices.example"}, Public: k.Public()})
		err := verify(leafUnder(notCA, k), w.lab.Device.Anchor(), append(w.lab.Device.Intermediates(), notCA)...)
		wantClass(t, err, certs.NotCA)
	})
	t.Run("CA without keyCertSign", func(t *testing.T) {
		root, rk := ca(t, "root", nil, nil, nil)
		i1, k1 := ca(t, "i1", root, rk, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
		wantClass(t, verify(leafUnder(i1, k1), root, i1), certs.KeyUsage)
	})
	t.Run("CA for another purpose", func(t *testing.T) {
		root, rk := ca(t, "root", nil, nil, nil)
		i1, k1 := ca(t, "i1", root, rk, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
		wantClass(t, verify(leafUnder(i1, k1), root, i1), certs.WrongEKU)
		i2, k2 := ca(t, "i2", root, rk, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} })
		wantClass(t, verify(leafUnder(i2, k2), root, i2), certs.Unknown)
	})
	t.Run("chain too long", func(t *testing.T) {
		root, k := ca(t, "root", nil, nil, nil)
		c := root
		var between []*x509.Certificate
		for _, n := range []string{"i", "ii", "iii", "iiii", "iiiii"} {
			c, k = ca(t, n, c, k, nil)
			between = append(between, c)
		}
		wantClass(t, verify(leafUnder(c, k), root, between...), certs.TooLarge)
	})
	t.Run("many intermediates of one name are bounded", func(t *testing.T) {
		// Each pair of same-named CAs doubles the paths to try; the budget ends the search.
		root, rk := ca(t, "root", nil, nil, nil)
		var between []*x509.Certificate
		var c *x509.Certificate
		var k crypto.Signer
		for range 8 {
			c, k = ca(t, "same", root, rk, func(c *x509.Certificate) { c.SubjectKeyId = []byte("same") })
			between = append(between, c)
		}
		wantClass(t, verify(leafUnder(c, k), root, between...), certs.Unknown)
		stranger, sk := ca(t, "same", nil, nil, func(c *x509.Certificate) { c.SubjectKeyId = []byte("same") })
		if err := verify(leafUnder(stranger, sk), root, between...); err == nil {
			t.Fatal("a stranger's certificate was accepted")
		}
	})
	t.Run("the anchor is not taken from the peer", func(t *testing.T) {
		root, rk := ca(t, "root", nil, nil, nil)
		fake, fk := ca(t, "root", nil, nil, nil)
		wantClass(t, verify(leafUnder(fake, fk), root, fake), certs.UnknownCA)
		wantClass(t, verify(leafUnder(root, rk), root, fake), certs.Unknown)
	})
}

func TestRevocation(t *testing.T) {
	w := newWorld(t)
	a := w.lab.Services["group-a"]
	lists := func(at time.Time, life time.Duration) []*x509.RevocationList {
		l, err := a.CRLs(at, life)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	check := func(require bool, l []*x509.RevocationList) error {
		opt := w.service(w.svc)
		opt.CRLs, opt.RequireCRL = l, require
		v, err := certs.VerifyChain(opt)
		if err == nil && require && v.ValidUntil.After(l[0].NextUpdate) {
			t.Errorf("valid until %v, after the list's end", v.ValidUntil)
		}
		return err
	}
	good := lists(t0.Add(-time.Hour), day)
	stale := lists(t0.Add(-3*day), day)
	foreign, err := w.lab.Services["group-b"].CRLs(t0.Add(-time.Hour), day)
	if err != nil {
		t.Fatal(err)
	}
	wantClass(t, check(true, good), certs.Unknown)
	wantClass(t, check(false, nil), certs.Unknown)
	wantClass(t, check(true, nil), certs.CRLMissing)
	wantClass(t, check(true, foreign), certs.CRLMissing)
	wantClass(t, check(true, good[:1]), certs.CRLMissing) // the root's list is missing
	wantClass(t, check(true, stale), certs.CRLExpired)
	wantClass(t, check(false, stale), certs.Unknown)
	wantClass(t, check(true, lists(t0.Add(time.Hour), day)), certs.CRLExpired) // from the future

	forged := *good[0]
	forged.Signature = append([]byte(nil), forged.Signature...)
	forged.Signature[len(forged.Signature)-1] ^= 1
	wantClass(t, check(true, []*x509.RevocationList{&forged, good[1]}), certs.CRLMissing)

	if err := a.Revoke(w.svc.SerialNumber, t0.Add(-time.Minute), 1); err != nil {
		t.Fatal(err)
	}
	if err := a.Revoke(w.svc.SerialNumber, t0, 1); !errors.Is(err, labca.ErrRevoked) {
		t.Fatalf("revoked twice: %v", err)
	}
	if err := a.Revoke(big.NewInt(5), t0, 1); !errors.Is(err, labca.ErrNotIssued) {
		t.Fatalf("revoked a stranger: %v", err)
	}
	bad := lists(t0.Add(-time.Minute), day)
	wantClass(t, check(true, bad), certs.Revoked)
	wantClass(t, check(false, bad), certs.Revoked)
	wantClass(t, check(false, append(good, bad...)), certs.Revoked) // the newer list counts
	wantClass(t, check(false, append(bad, good...)), certs.Revoked)
	wantClass(t, check(false, lists(t0.Add(-3*day), day)), certs.Revoked) // also a stale one
}

func TestMatchID(t *testing.T) {
	w := newWorld(t)
	c := *w.svc
	c.EmailAddresses = []string{"Ops@Clinic.example"}
	c.DNSNames = []string{"a.group-a.example", "*.wild.example"}
	c.IPAddresses = append(c.IPAddresses, []byte{192, 0, 2, 1}, []byte{0x20, 1, 0xd, 0xb8, 15: 1})
	utf8Name := w.issue(w.lab.Device, labca.Request{DNSNames: []string{"x.devices.example"}, Subject: pkix.Name{CommonName: "A  b"}})
	folded, err := asn1.Marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte("a B")}}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		cert *x509.Certificate
		typ  certs.IDType
		data string
		ok   bool
	}{
		{&c, certs.IDFQDN, "a.group-a.example", true},
		{&c, certs.IDFQDN, "A.Group-A.example", true},
		{&c, certs.IDFQDN, "b.group-a.example", false},
		{&c, certs.IDFQDN, "x.wild.example", false},
		{&c, certs.IDFQDN, "*.wild.example", false},
		{&c, certs.IDFQDN, "", false},
		{&c, certs.IDFQDN, "a.group-a.example\x00", false},
		{&c, certs.IDRFC822, "Ops@clinic.example", true},
		{&c, certs.IDRFC822, "ops@clinic.example", false},
		{&c, certs.IDRFC822, "clinic.example", false},
		{&c, certs.IDIPv4Addr, "\xc0\x00\x02\x01", true},
		{&c, certs.IDIPv4Addr, "\xc0\x00\x02\x02", false},
		{&c, certs.IDIPv4Addr, "\xc0\x00\x02", false},
		{&c, certs.IDIPv6Addr, "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01", true},
		{&c, certs.IDIPv6Addr, "\xc0\x00\x02\x01", false},
		{&c, certs.IDDERASN1DN, string(c.RawSubject), true},
		{&c, certs.IDDERASN1DN, string(w.device.RawSubject), false},
		{&c, certs.IDDERASN1DN, "junk", false},
		{utf8Name, certs.IDDERASN1DN, string(folded), true},
		{&c, certs.IDKeyID, "a.group-a.example", false},
		{&c, certs.IDDERASN1GN, "a.group-a.example", false},
		{&c, 77, "a.group-a.example", false},
	} {
		err := certs.MatchID(x.cert, certs.ID{Type: x.typ, Data: []byte(x.data)})
		if x.ok {
			wantClass(t, err, certs.Unknown)
		} else {
			wantClass(t, err, certs.IDMismatch)
		}
	}
}

func TestCheckPublicKey(t *testing.T) {
	n := new(big.Int).Lsh(big.NewInt(1), 2047)
	odd := new(big.Int).Add(n, big.NewInt(1))
	for name, k := range map[string]crypto.PublicKey{
		"even modulus":   &rsa.PublicKey{N: n, E: 65537},
		"exponent 3":     &rsa.PublicKey{N: odd, E: 3},
		"even exponent":  &rsa.PublicKey{N: odd, E: 65538},
		"huge exponent":  &rsa.PublicKey{N: odd, E: 1<<33 + 1},
		"RSA 16384":      &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 16383, 1), E: 65537},
		"nil":            nil,
		"nil RSA":        (*rsa.PublicKey)(nil),
		"empty ECDSA":    &ecdsa.PublicKey{},
		"not a key type": "x",
	} {
		if certs.ClassOf(certs.CheckPublicKey(k)) != certs.WeakKey {
			t.Errorf("%s accepted", name)
		}
	}
	if err := certs.CheckPublicKey(&rsa.PublicKey{N: odd, E: 65537}); err != nil {
		t.Error(err)
	}
}

func TestClassNamesAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for c := certs.Unknown; !strings.HasPrefix(c.String(), "class-"); c++ {
		if c.String() == "" || seen[c.String()] {
			t.Errorf("class %d has name %q", c, c.String())
		}
		seen[c.String()] = true
	}
	if certs.Expired.Code() != "cert-expired" {
		t.Error(certs.Expired.Code())
	}
}
