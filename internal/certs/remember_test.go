package certs_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

// What was accepted once is remembered, and everything that can change since is looked at all the same.
func TestRememberedPathIsJudgedAgain(t *testing.T) {
	w := newWorld(t)
	a := w.lab.Services["group-a"]
	leaf := w.issue(a, labca.Request{DNSNames: []string{"a.group-a.example"}, Unbound: true})
	opt := w.service(leaf)
	opt.RelatedTo = nil
	verify := func(edit func(*certs.Options)) error {
		o := opt
		if edit != nil {
			edit(&o)
		}
		_, err := certs.VerifyChain(o)
		return err
	}
	for range 2 {
		if err := verify(nil); err != nil {
			t.Fatal(err)
		}
	}
	wantClass(t, verify(func(o *certs.Options) { o.At = leaf.NotAfter.Add(time.Second) }), certs.Expired)
	wantClass(t, verify(func(o *certs.Options) { o.At = leaf.NotBefore.Add(-time.Second) }), certs.NotYetValid)
	wantClass(t, verify(func(o *certs.Options) { o.At = a.Intermediates()[0].NotAfter.Add(time.Second) }), certs.Expired)
	wantClass(t, verify(func(o *certs.Options) { o.Anchors = []*x509.Certificate{w.lab.Device.Anchor()} }), certs.UnknownCA)

	// Another leaf under the same CA, which is known by now.
	altered := bytes.Clone(leaf.Raw)
	altered[len(altered)-4] ^= 1 // in the signature
	wantClass(t, verify(func(o *certs.Options) { o.Leaf = altered }), certs.UnknownCA)
	outside := w.issue(a, labca.Request{DNSNames: []string{"a.group-b.example"}, Unbound: true, IgnoreDomain: true})
	wantClass(t, verify(func(o *certs.Options) { o.Leaf = outside.Raw; o.ID = nil }), certs.NameConstraint)

	if err := a.Revoke(leaf.SerialNumber, t0, 1); err != nil {
		t.Fatal(err)
	}
	lists, err := a.CRLs(t0, day)
	if err != nil {
		t.Fatal(err)
	}
	wantClass(t, verify(func(o *certs.Options) { o.CRLs = lists }), certs.Revoked)
}

// Name constraints of a CA further up count for a new leaf also when the CA below it is known.
func TestNameConstraintsAboveAKnownCA(t *testing.T) {
	w := newWorld(t)
	root, rk := ca(t, "constraining root", nil, nil, func(c *x509.Certificate) {
		c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"devices.example"}, true
	})
	issuing, ik := ca(t, "issuing", root, rk, nil)
	verify := func(name string) error {
		leaf := w.issue(w.lab.Device, labca.Request{DNSNames: []string{name}, SigningCA: issuing, SigningCAKey: ik, IgnoreDomain: true})
		_, err := certs.VerifyChain(certs.Options{
			Leaf: leaf.Raw, Intermediates: [][]byte{issuing.Raw}, Anchors: []*x509.Certificate{root}, EKU: certs.EKUIPsecIKE, At: t0, Role: "device",
		})
		return err
	}
	for range 2 {
		wantClass(t, verify("a.devices.example"), certs.Unknown)
		wantClass(t, verify("a.elsewhere.example"), certs.NameConstraint)
	}
}

// A forged CA between a leaf and the anchor is refused however well known the true one is.
func TestForgedCAInsteadOfAKnownOne(t *testing.T) {
	w := newWorld(t)
	root, rk := ca(t, "true root", nil, nil, nil)
	issuing, ik := ca(t, "issuing", root, rk, nil)
	namesake, nk := ca(t, "true root", nil, nil, nil)
	forged, fk := ca(t, "issuing", namesake, nk, nil)
	try := func(c *x509.Certificate, k crypto.Signer) error {
		leaf := w.issue(w.lab.Device, labca.Request{DNSNames: []string{"a.devices.example"}, SigningCA: c, SigningCAKey: k})
		_, err := certs.VerifyChain(certs.Options{
			Leaf: leaf.Raw, Intermediates: [][]byte{c.Raw}, Anchors: []*x509.Certificate{root}, EKU: certs.EKUIPsecIKE, At: t0, Role: "device",
		})
		return err
	}
	for range 2 {
		wantClass(t, try(issuing, ik), certs.Unknown)
		wantClass(t, try(forged, fk), certs.UnknownCA)
	}
}

func BenchmarkVerifyChain(b *testing.B) {
	w := newWorld(b)
	ca := w.lab.Services["group-a"]
	leaves := make([]*x509.Certificate, 200)
	for i := range leaves {
		leaves[i] = w.issue(ca, labca.Request{DNSNames: []string{"a.group-a.example"}, Unbound: true})
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		opt := w.service(leaves[i%len(leaves)])
		opt.RelatedTo = nil
		if _, err := certs.VerifyChain(opt); err != nil {
			b.Fatal(err)
		}
	}
}

// A path that was accepted has a key, and whoever brings that key spares its signatures, but nothing else.
func TestAcceptedPathHasAKey(t *testing.T) {
	w := newWorld(t)
	a := w.lab.Services["group-a"]
	leaf := w.issue(a, labca.Request{DNSNames: []string{"key.group-a.example"}, Unbound: true})
	opt := w.service(leaf)
	opt.RelatedTo = nil
	opt.ID = nil
	if _, ok := certs.AcceptedPath(opt.Leaf, opt.Intermediates, opt.Anchors); ok {
		t.Error("a path that was never looked at is accepted")
	}
	if _, err := certs.VerifyChain(opt); err != nil {
		t.Fatal(err)
	}
	key, ok := certs.AcceptedPath(opt.Leaf, opt.Intermediates, opt.Anchors)
	if !ok || key != keyOf(opt) {
		t.Errorf("key %x (%v), want %x", key, ok, keyOf(opt))
	}
	if _, ok := certs.AcceptedPath(opt.Leaf, opt.Intermediates, []*x509.Certificate{w.lab.Device.Anchor()}); ok {
		t.Error("the path leads to another anchor")
	}

	forged := opt
	forged.Leaf = bytes.Clone(leaf.Raw)
	forged.Leaf[len(forged.Leaf)-4] ^= 1 // in the signature
	judge := func(edit func(*certs.Options)) error {
		o := forged
		if edit != nil {
			edit(&o)
		}
		_, err := certs.VerifyChain(o)
		return err
	}
	certs.AcceptPath(key)
	wantClass(t, judge(nil), certs.UnknownCA)
	certs.AcceptPath(keyOf(forged)) // as only the holder of a ticket secret could
	if err := judge(nil); err != nil {
		t.Errorf("the key is of no use: %v", err)
	}
	wantClass(t, judge(func(o *certs.Options) { o.At = leaf.NotAfter.Add(time.Second) }), certs.Expired)
	wantClass(t, judge(func(o *certs.Options) { o.Anchors = []*x509.Certificate{w.lab.Device.Anchor()} }), certs.UnknownCA)
}

// keyOf is the sum of all octets of leaf, CAs and anchor, each with its length in front.
func keyOf(o certs.Options) [sha256.Size]byte {
	var b []byte
	for _, der := range append(append([][]byte{o.Leaf}, o.Intermediates...), o.Anchors[0].Raw) {
		b = binary.BigEndian.AppendUint64(b, uint64(len(der)))
		b = append(b, der...)
	}
	return sha256.Sum256(b)
}
