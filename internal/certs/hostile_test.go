package certs_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

// tbs is TBSCertificate (RFC 5280, section 4.1), to be put together otherwise than crypto/x509 would.
type tbs struct {
	Version      int `asn1:"optional,explicit,default:0,tag:0"`
	SerialNumber *big.Int
	Signature    asn1.RawValue
	Issuer       asn1.RawValue
	Validity     asn1.RawValue
	Subject      asn1.RawValue
	PublicKey    asn1.RawValue
	Extensions   []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
}

type certificate struct {
	TBS       asn1.RawValue
	Algorithm asn1.RawValue
	Signature asn1.BitString
}

func raw(der []byte) asn1.RawValue { return asn1.RawValue{FullBytes: der} }

func mustDER(t testing.TB, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// remade is cert with changes, signed again by key: with ECDSA and SHA-256, or as algorithm says.
func remade(t testing.TB, cert *x509.Certificate, key crypto.Signer, edit func(*tbs), algorithm []byte, sign func(digest []byte) []byte) []byte {
	t.Helper()
	var c certificate
	if _, err := asn1.Unmarshal(cert.Raw, &c); err != nil {
		t.Fatal(err)
	}
	var body tbs
	if _, err := asn1.Unmarshal(c.TBS.FullBytes, &body); err != nil {
		t.Fatal(err)
	}
	edit(&body)
	if algorithm == nil {
		algorithm = mustDER(t, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}})
		sign = func(d []byte) []byte {
			sig, err := key.Sign(rand.Reader, d, crypto.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			return sig
		}
	}
	body.Signature = raw(algorithm)
	inner := mustDER(t, body)
	d := sha256.Sum256(inner)
	return mustDER(t, certificate{TBS: raw(inner), Algorithm: raw(algorithm), Signature: asn1.BitString{Bytes: sign(d[:]), BitLength: 8 * len(sign(d[:]))}})
}

// rsaKey is a SubjectPublicKeyInfo with any modulus and exponent.
func rsaKey(t testing.TB, n, e *big.Int) []byte {
	t.Helper()
	key := mustDER(t, struct{ N, E *big.Int }{n, e})
	return spki(t, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, []byte{5, 0}, key)
}

func spki(t testing.TB, oid asn1.ObjectIdentifier, params, key []byte) []byte {
	t.Helper()
	id := pkix.AlgorithmIdentifier{Algorithm: oid}
	if params != nil {
		id.Parameters = raw(params)
	}
	return mustDER(t, struct {
		ID  pkix.AlgorithmIdentifier
		Key asn1.BitString
	}{id, asn1.BitString{Bytes: key, BitLength: 8 * len(key)}})
}

// TestKeysOfCertificates: certificates whose key is none, too small, too large to be worth a signature
// check, or absurd. As an end entity's they are refused; between it and the anchor nothing is ever
// verified with them.
func TestKeysOfCertificates(t *testing.T) {
	root, rk := ca(t, "root", nil, nil, nil)
	middle, mk := ca(t, "middle", root, rk, nil)
	leaf, _ := ca(t, "leaf", middle, mk, func(c *x509.Certificate) {
		c.IsCA, c.MaxPathLen, c.KeyUsage = false, 0, x509.KeyUsageDigitalSignature
		c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{certs.EKUIPsecIKE}
	})
	verify := func(leaf []byte, between ...[]byte) error {
		_, err := certs.VerifyChain(certs.Options{Leaf: leaf, Intermediates: between, Anchors: []*x509.Certificate{root}, EKU: certs.EKUIPsecIKE, At: t0})
		return err
	}
	wantClass(t, verify(leaf.Raw, middle.Raw), certs.Unknown)
	mod := func(bits uint) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return n.SetBit(n, 0, 1)
	}
	f4 := big.NewInt(65537)
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der := func(pub any) []byte {
		b, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, ecOID := mustDER(t, asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}), asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	for name, key := range map[string][]byte{
		"RSA of 1 bit":        rsaKey(t, big.NewInt(1), f4),
		"RSA modulus 0":       rsaKey(t, new(big.Int), f4),
		"RSA modulus -1":      rsaKey(t, big.NewInt(-1), f4),
		"RSA of 512 bits":     rsaKey(t, mod(512), f4),
		"RSA of 2047 bits":    rsaKey(t, mod(2047), f4),
		"RSA of 8193 bits":    rsaKey(t, mod(8193), f4),
		"RSA of 100,000 bits": rsaKey(t, mod(100000), f4),
		"RSA, even":           rsaKey(t, new(big.Int).Lsh(big.NewInt(1), 2047), f4),
		"exponent 0":          rsaKey(t, mod(2048), new(big.Int)),
		"exponent 1":          rsaKey(t, mod(2048), big.NewInt(1)),
		"exponent 2":          rsaKey(t, mod(2048), big.NewInt(2)),
		"exponent 3":          rsaKey(t, mod(2048), big.NewInt(3)),
		"exponent -65537":     rsaKey(t, mod(2048), big.NewInt(-65537)),
		"exponent 65536":      rsaKey(t, mod(2048), big.NewInt(65536)),
		"exponent 2^32+1":     rsaKey(t, mod(2048), new(big.Int).SetInt64(1<<32+1)),
		"exponent 2^2047+1":   rsaKey(t, mod(2048), mod(2048)),
		"RSA without numbers": spki(t, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, []byte{5, 0}, nil),
		"RSASSA-PSS key":      spki(t, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}, nil, mustDER(t, struct{ N, E *big.Int }{mod(2048), f4})),
		"P-224":               der(p224.Public()),
		"P-256, infinity":     spki(t, ecOID, p256, []byte{0}),
		"P-256, no point":     spki(t, ecOID, p256, append([]byte{4}, make([]byte, 64)...)),
		"P-256, nothing":      spki(t, ecOID, p256, nil),
		"P-256, cut":          spki(t, ecOID, p256, append([]byte{4}, make([]byte, 63)...)),
		"curve of its own":    spki(t, ecOID, []byte{0x30, 3, 2, 1, 1}, append([]byte{4}, make([]byte, 64)...)),
		"no curve":            spki(t, ecOID, nil, append([]byte{4}, make([]byte, 64)...)),
		"X25519":              der(x25519.Public()),
		"Ed25519, 31 octets":  spki(t, asn1.ObjectIdentifier{1, 3, 101, 112}, nil, make([]byte, 31)),
		"Ed448":               spki(t, asn1.ObjectIdentifier{1, 3, 101, 113}, nil, make([]byte, 57)),
		"unknown algorithm":   spki(t, asn1.ObjectIdentifier{1, 2, 3, 4}, nil, make([]byte, 32)),
		"no algorithm":        {0x30, 4, 0x30, 0, 3, 0},
		"nothing":             {0x30, 0},
	} {
		t.Run(name, func(t *testing.T) {
			withKey := func(b *tbs) { b.PublicKey = raw(key) }
			refused := func(what string, err error) {
				t.Helper()
				if c := certs.ClassOf(err); c != certs.WeakKey && c != certs.Malformed {
					t.Errorf("%s: %v", what, err)
				}
			}
			refused("end entity", verify(remade(t, leaf, mk, withKey, nil, nil), middle.Raw))
			refused("between", verify(leaf.Raw, remade(t, middle, rk, withKey, nil, nil)))
		})
	}
}

// TestPSSParametersOfCertificates: a certificate signed with RSASSA-PSS whose parameters are not those
// of RFC 4055 with one SHA-2 hash throughout is refused before anything is computed with them.
func TestPSSParametersOfCertificates(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: t0.Add(-day), NotAfter: t0.Add(day),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign, SignatureAlgorithm: x509.SHA256WithRSAPSS,
	}
	make := func(tmpl, parent *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	root := make(tmpl, tmpl, key.Public())
	leaf := make(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, NotBefore: t0.Add(-day), NotAfter: t0.Add(day),
		KeyUsage: x509.KeyUsageDigitalSignature, UnknownExtKeyUsage: []asn1.ObjectIdentifier{certs.EKUIPsecIKE}, SignatureAlgorithm: x509.SHA256WithRSAPSS,
	}, root, newKey(t).Public())
	verify := func(der []byte) error {
		_, err := certs.VerifyChain(certs.Options{Leaf: der, Anchors: []*x509.Certificate{root}, EKU: certs.EKUIPsecIKE, At: t0})
		return err
	}
	wantClass(t, verify(leaf.Raw), certs.Unknown)
	sign := func(d []byte) []byte {
		sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, d, &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256})
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	hash := func(oid ...int) pkix.AlgorithmIdentifier {
		return pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.NullRawValue}
	}
	sha256ID, sha384ID, sha1ID := hash(2, 16, 840, 1, 101, 3, 4, 2, 1), hash(2, 16, 840, 1, 101, 3, 4, 2, 2), hash(1, 3, 14, 3, 2, 26)
	mgf := func(h pkix.AlgorithmIdentifier) pkix.AlgorithmIdentifier {
		return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}, Parameters: raw(mustDER(t, h))}
	}
	type params struct {
		Hash    pkix.AlgorithmIdentifier `asn1:"explicit,tag:0"`
		MGF     pkix.AlgorithmIdentifier `asn1:"explicit,tag:1"`
		Salt    *big.Int                 `asn1:"explicit,tag:2"`
		Trailer int                      `asn1:"optional,explicit,tag:3,default:1"`
	}
	pss := func(parameters []byte) []byte {
		id := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}}
		if parameters != nil {
			id.Parameters = raw(parameters)
		}
		return mustDER(t, id)
	}
	of := func(p params) []byte { return pss(mustDER(t, p)) }
	good := params{sha256ID, mgf(sha256ID), big.NewInt(32), 1}
	with := func(edit func(*params)) []byte {
		p := good
		edit(&p)
		return of(p)
	}
	wantClass(t, verify(remade(t, leaf, nil, func(*tbs) {}, of(good), sign)), certs.Unknown)
	for name, algorithm := range map[string][]byte{
		"absent":              pss(nil),
		"NULL":                pss([]byte{5, 0}),
		"empty (SHA-1)":       pss([]byte{0x30, 0}),
		"SHA-1":               with(func(p *params) { p.Hash, p.MGF = sha1ID, mgf(sha1ID) }),
		"two hashes":          with(func(p *params) { p.MGF = mgf(sha384ID) }),
		"unknown hash":        with(func(p *params) { p.Hash = hash(1, 2, 3); p.MGF = mgf(hash(1, 2, 3)) }),
		"another mask":        with(func(p *params) { p.MGF.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 9} }),
		"mask without a hash": with(func(p *params) { p.MGF.Parameters = asn1.RawValue{} }),
		"salt of 0":           with(func(p *params) { p.Salt = new(big.Int) }),
		"salt of -1":          with(func(p *params) { p.Salt = big.NewInt(-1) }),
		"salt of 2^31-1":      with(func(p *params) { p.Salt = big.NewInt(1<<31 - 1) }),
		"salt of 2^80":        with(func(p *params) { p.Salt = new(big.Int).Lsh(big.NewInt(1), 80) }),
		"trailer 2":           with(func(p *params) { p.Trailer = 2 }),
		"rubbish":             pss(bytes.Repeat([]byte{0x30, 0x80}, 40)),
	} {
		t.Run(name, func(t *testing.T) {
			der := remade(t, leaf, nil, func(*tbs) {}, algorithm, sign)
			if c := certs.ClassOf(verify(der)); c != certs.WeakKey && c != certs.Malformed {
				t.Errorf("class %v: %v", c, verify(der))
			}
		})
	}
}

// TestNameConstraints: every form of name that a CA may be bound to (RFC 5280, section 4.2.1.10) binds
// it, wherever on the path it stands; a form that is not understood ends the path.
func TestNameConstraints(t *testing.T) {
	network := func(s string) *net.IPNet {
		_, n, err := net.ParseCIDR(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ip := func(s string) []net.IP { return []net.IP{net.ParseIP(s)} }
	directory := func(critical bool) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			name := mustDER(t, pkix.Name{Organization: []string{"Clinic A"}}.ToRDNSequence())
			base := mustDER(t, asn1.RawValue{Class: 2, Tag: 4, IsCompound: true, Bytes: name})
			subtree := mustDER(t, asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: base})
			permitted := mustDER(t, asn1.RawValue{Class: 2, Tag: 0, IsCompound: true, Bytes: subtree})
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 30}, Critical: critical, Value: mustDER(t, asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: permitted})}}
		}
	}
	for name, c := range map[string]struct {
		ca, leaf func(*x509.Certificate)
		want     certs.Class
	}{
		"permitted name":           {func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"a.example"} }, func(c *x509.Certificate) { c.DNSNames = []string{"x.a.example"} }, certs.Unknown},
		"another name":             {func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"a.example"} }, func(c *x509.Certificate) { c.DNSNames = []string{"x.b.example"} }, certs.NameConstraint},
		"one of two names":         {func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"a.example"} }, func(c *x509.Certificate) { c.DNSNames = []string{"x.a.example", "x.b.example"} }, certs.NameConstraint},
		"name that merely ends so": {func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"a.example"} }, func(c *x509.Certificate) { c.DNSNames = []string{"xa.example"} }, certs.NameConstraint},
		"excluded name":            {func(c *x509.Certificate) { c.ExcludedDNSDomains = []string{"b.example"} }, func(c *x509.Certificate) { c.DNSNames = []string{"x.B.example"} }, certs.NameConstraint},
		"excluded wins": {func(c *x509.Certificate) {
			c.PermittedDNSDomains, c.ExcludedDNSDomains = []string{"example"}, []string{"b.example"}
		}, func(c *x509.Certificate) { c.DNSNames = []string{"b.example"} }, certs.NameConstraint},
		"permitted address":      {func(c *x509.Certificate) { c.PermittedIPRanges = []*net.IPNet{network("192.0.2.0/24")} }, func(c *x509.Certificate) { c.IPAddresses = ip("192.0.2.7") }, certs.Unknown},
		"another address":        {func(c *x509.Certificate) { c.PermittedIPRanges = []*net.IPNet{network("192.0.2.0/24")} }, func(c *x509.Certificate) { c.IPAddresses = ip("192.0.3.7") }, certs.NameConstraint},
		"excluded address":       {func(c *x509.Certificate) { c.ExcludedIPRanges = []*net.IPNet{network("2001:db8::/32")} }, func(c *x509.Certificate) { c.IPAddresses = ip("2001:db8::1") }, certs.NameConstraint},
		"permitted mailbox":      {func(c *x509.Certificate) { c.PermittedEmailAddresses = []string{"a.example"} }, func(c *x509.Certificate) { c.EmailAddresses = []string{"x@a.example"} }, certs.Unknown},
		"another mailbox":        {func(c *x509.Certificate) { c.PermittedEmailAddresses = []string{"a.example"} }, func(c *x509.Certificate) { c.EmailAddresses = []string{"x@b.example"} }, certs.NameConstraint},
		"form that is not known": {directory(true), func(*x509.Certificate) {}, certs.NameConstraint},
		"the same, not critical": {directory(false), func(*x509.Certificate) {}, certs.NameConstraint},
		"hundreds of both":       {func(c *x509.Certificate) { c.PermittedDNSDomains = many("d", 900) }, func(c *x509.Certificate) { c.DNSNames = many("l", 900) }, certs.NameConstraint},
	} {
		t.Run(name, func(t *testing.T) {
			for _, where := range []string{"root", "issuing CA", "CA between"} {
				edit := func(here string) func(*x509.Certificate) {
					if here == where {
						return c.ca
					}
					return nil
				}
				root, rk := ca(t, "root "+name, nil, nil, edit("root"))
				between, bk := ca(t, "between", root, rk, edit("CA between"))
				issuing, ik := ca(t, "issuing", between, bk, edit("issuing CA"))
				leaf, _ := ca(t, "leaf", issuing, ik, func(l *x509.Certificate) {
					l.IsCA, l.MaxPathLen, l.KeyUsage = false, 0, x509.KeyUsageDigitalSignature
					l.UnknownExtKeyUsage = []asn1.ObjectIdentifier{certs.EKUIPsecIKE}
					c.leaf(l)
				})
				_, err := certs.VerifyChain(certs.Options{
					Leaf: leaf.Raw, Intermediates: labca.DER([]*x509.Certificate{issuing, between}), Anchors: []*x509.Certificate{root}, EKU: certs.EKUIPsecIKE, At: t0,
				})
				if got := certs.ClassOf(err); got != c.want || c.want == certs.Unknown && err != nil {
					t.Errorf("constraint in the %s: %v, want %v", where, err, c.want)
				}
			}
		})
	}
}

func many(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = prefix + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676)) + ".example"
	}
	return out
}

// TestStrangeASN1: structures that are deep, endless, huge by their own account, or contain themselves,
// in the place of everything that a peer may send. Each is refused, and soon.
func TestStrangeASN1(t *testing.T) {
	w := newWorld(t)
	o := newOCSPWorld(t)
	nested := func(tag byte, n int) []byte {
		var b []byte
		for range n {
			head := []byte{tag, byte(len(b))}
			switch {
			case len(b) > 0xffff:
				head = []byte{tag, 0x83, byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))}
			case len(b) > 0xff:
				head = []byte{tag, 0x82, byte(len(b) >> 8), byte(len(b))}
			case len(b) > 0x7f:
				head = []byte{tag, 0x81, byte(len(b))}
			}
			b = append(head, b...)
		}
		return b
	}
	blobs := map[string][]byte{
		"nothing":               {},
		"deep sequences":        nested(0x30, 3500),
		"deep sets":             nested(0x31, 3500),
		"deep explicit tags":    nested(0xa0, 3500),
		"indefinite":            bytes.Repeat([]byte{0x30, 0x80}, 4000),
		"indefinite, ended":     append(bytes.Repeat([]byte{0x30, 0x80}, 2000), make([]byte, 4000)...),
		"2^31-1 octets":         {0x30, 0x84, 0x7f, 0xff, 0xff, 0xff, 2, 1, 1},
		"2^32-1 octets":         {0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 2, 1, 1},
		"2^64-1 octets":         {0x30, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"length of 127 octets":  append([]byte{0x30, 0xff}, bytes.Repeat([]byte{0xff}, 127)...),
		"length without octets": {0x30, 0x84},
		"endless tag":           append([]byte{0x3f}, bytes.Repeat([]byte{0xff}, 10000)...),
		"empty elements":        append([]byte{0x30, 0x82, 0x20, 0}, bytes.Repeat([]byte{0x30, 0}, 0x1000)...),
		"endless object":        append([]byte{0x30, 0x82, 0x20, 4, 6, 0x82, 0x20, 0}, bytes.Repeat([]byte{0x80}, 0x2000)...),
		"huge integer":          append([]byte{0x30, 0x82, 0x20, 4, 2, 0x82, 0x20, 0}, bytes.Repeat([]byte{0x7f}, 0x2000)...),
		"zeroes":                make([]byte, 16000),
		"ones":                  bytes.Repeat([]byte{0xff}, 16000),
	}
	// The same where a true certificate has something else.
	strange := func(edit func(*tbs)) []byte { return remade(t, w.svc, newKey(t), edit, nil, nil) }
	for name, b := range blobs {
		blob := b
		blobs[name+" as extension"] = strange(func(c *tbs) {
			c.Extensions = append(c.Extensions, pkix.Extension{Id: certs.OIDRelatedCertificate, Value: blob})
		})
		blobs[name+" as names"] = strange(func(c *tbs) {
			c.Extensions = append(c.Extensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: blob})
		})
		if len(blob) < 15000 {
			blobs[name+" as subject"] = strange(func(c *tbs) {
				c.Subject = raw(append([]byte{0x30, 0x82, byte(len(blob) >> 8), byte(len(blob))}, blob...))
			})
		}
	}
	blobs["many extensions"] = strange(func(c *tbs) {
		for i := range 1000 {
			c.Extensions = append(c.Extensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, i}, Value: []byte{5, 0}})
		}
	})
	blobs["one extension many times"] = strange(func(c *tbs) {
		for range 500 {
			c.Extensions = append(c.Extensions, c.Extensions[0])
		}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for name, b := range blobs {
			opt := w.service(w.svc)
			opt.Leaf = b
			if _, err := certs.VerifyChain(opt); err == nil {
				t.Errorf("%s: accepted as a certificate", name)
			} else if len(err.Error()) > 4000 {
				t.Errorf("%s: a text of %d octets", name, len(err.Error()))
			}
			opt = w.service(w.svc)
			opt.Intermediates, opt.OCSP = [][]byte{b, b, b, b, b, b, b, b}, [][]byte{b, b, b, b}
			if _, err := certs.VerifyChain(opt); err == nil {
				t.Errorf("%s: the path was found without its CA", name)
			}
			if _, err := certs.ParseRelatedCertificate(b); err == nil {
				t.Errorf("%s: accepted as RelatedCertificate", name)
			}
			if _, err := certs.ParseRelatedCertRequest(b); err == nil {
				t.Errorf("%s: accepted as relatedCertRequest", name)
			}
			if _, err := certs.ParseCSR(b); err == nil {
				t.Errorf("%s: accepted as a request", name)
			}
			if _, err := certs.CheckOCSP(b, o.leaf, o.ca, t0); err == nil {
				t.Errorf("%s: accepted as an OCSP response", name)
			}
			if _, err := certs.ParseCRLs(b); err == nil && len(b) > 0 {
				t.Errorf("%s: accepted as a revocation list", name)
			}
			if err := certs.MatchID(w.svc, certs.ID{Type: certs.IDDERASN1DN, Data: b}); err == nil {
				t.Errorf("%s: accepted as a name", name)
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		t.Fatal("it does not end")
	}
}

// TestHugeKeyOfAResponder: the key of an OCSP responder comes with the response, which anybody may have
// made. It is bounded before the response is verified with it.
func TestHugeKeyOfAResponder(t *testing.T) {
	o := newOCSPWorld(t)
	n := new(big.Int).Lsh(big.NewInt(1), 60000)
	huge, err := x509.ParseCertificate(remade(t, o.responder, o.key, func(c *tbs) {
		c.PublicKey = raw(rsaKey(t, n.SetBit(n, 0, 1), big.NewInt(1<<31-1)))
	}, nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der := o.response(ocsp.Good, huge, key, nil)
	_, err = certs.CheckOCSP(der, o.leaf, o.ca, t0)
	wantClass(t, err, certs.WeakKey)
	wantClass(t, o.verify(true, der), certs.CRLMissing)
	wantClass(t, o.verify(false, der), certs.Unknown)
}
