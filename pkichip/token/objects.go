package token

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"wardgate/internal/certs"
	"wardgate/pkichip/chipproto"
)

// Labels of our objects.
const (
	labelDevice  = "wardgate-device"
	labelService = "wardgate-service:"
	chainDevice  = "wardgate-chain:device"
	chainService = "wardgate-chain:service:"
)

// Constants of PKCS #11 v3.0 that miekg/pkcs11 does not have (section 2.3.3 and 2.3.5 there).
const (
	ckkECEdwards           = 0x00000040
	ckmECEdwardsKeyPairGen = 0x00001055
	ckmEdDSA               = 0x00001057
)

// label returns the label of keys and certificate, chainLabel that of the intermediates.
func label(l chipproto.Layer, service string) string {
	switch l {
	case chipproto.LayerDevice:
		return labelDevice
	case chipproto.LayerAuthority:
		return service
	case chipproto.LayerService:
	}
	return labelService + service
}

func chainLabel(l chipproto.Layer, service string) string {
	if l == chipproto.LayerDevice {
		return chainDevice
	}
	return chainService + service
}

// parseLabel is the inverse of label.
func parseLabel(s string) (l chipproto.Layer, service string, ok bool) {
	if s == labelDevice {
		return chipproto.LayerDevice, "", true
	}
	name, ok := strings.CutPrefix(s, labelService)
	return chipproto.LayerService, name, ok && checkName(name) == nil
}

// checkName accepts the name of a service: letters, digits, '-', '.' and '_', at most 48.
func checkName(s string) *Error {
	ok := s != "" && len(s) <= 48 && s[0] != '.' && s[0] != '-'
	for _, c := range s {
		ok = ok && (c == '-' || c == '.' || c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z')
	}
	if !ok {
		return fail(chipproto.CodeBadRequest, fmt.Sprintf("expected a service's name of letters, digits, '-', '.' and '_', at most 48, got %s", certs.Quote(s)), "use the name in the policy")
	}
	return nil
}

// check is checkName for requests: layer 1 has no service.
func checkPlace(l chipproto.Layer, service string) *Error {
	switch {
	case l == chipproto.LayerDevice && service == "":
		return nil
	case l == chipproto.LayerService:
		return checkName(service)
	case l == chipproto.LayerAuthority:
		return checkLabel(service)
	}
	return fail(chipproto.CodeBadRequest, fmt.Sprintf("layer %d with service %s does not exist", l, certs.Quote(service)), "")
}

// maxFind bounds how many objects of a kind are looked at.
const maxFind = 4 * chipproto.MaxObjects

// findObjects returns the handles of the objects that match.
func (t *Token) findObjects(s pkcs11.SessionHandle, template ...*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	if err := t.p.FindObjectsInit(s, template); err != nil {
		return nil, in("C_FindObjectsInit", err)
	}
	var out []pkcs11.ObjectHandle
	for len(out) < maxFind {
		h, _, err := t.p.FindObjects(s, 64)
		if err != nil {
			_ = t.p.FindObjectsFinal(s)
			return nil, in("C_FindObjects", err)
		}
		if len(h) == 0 {
			break
		}
		out = append(out, h...)
	}
	return out, in("C_FindObjectsFinal", t.p.FindObjectsFinal(s))
}

// object is one object of ours.
type object struct {
	h     pkcs11.ObjectHandle
	label string
	id    []byte
	kind  uint             // CKK_… of keys
	pub   crypto.PublicKey // of public keys
	der   []byte           // of certificates
}

func attr(kind uint, value any) *pkcs11.Attribute { return pkcs11.NewAttribute(kind, value) }

func class(c uint) *pkcs11.Attribute { return attr(pkcs11.CKA_CLASS, c) }

// ours reads all objects of a class that are ours.
func (t *Token) ours(s pkcs11.SessionHandle, cls uint, want func(label string) bool) ([]object, error) {
	handles, err := t.findObjects(s, class(cls), attr(pkcs11.CKA_TOKEN, true))
	if err != nil {
		return nil, err
	}
	var out []object
	for _, h := range handles {
		a, err := t.p.GetAttributeValue(s, h, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, nil), attr(pkcs11.CKA_ID, nil)})
		if err != nil {
			return nil, in("C_GetAttributeValue", err)
		}
		o := object{h: h, label: string(a[0].Value), id: a[1].Value}
		if !want(o.label) || len(o.id) > chipproto.MaxID {
			continue
		}
		switch cls {
		case pkcs11.CKO_CERTIFICATE:
			v, err := t.p.GetAttributeValue(s, h, []*pkcs11.Attribute{attr(pkcs11.CKA_VALUE, nil)})
			if err != nil {
				return nil, in("C_GetAttributeValue", err)
			}
			if o.der = v[0].Value; len(o.der) > chipproto.MaxCert {
				continue
			}
		case pkcs11.CKO_PUBLIC_KEY:
			if o.pub, err = t.publicKey(s, h); err != nil {
				return nil, err
			}
		case pkcs11.CKO_PRIVATE_KEY:
			k, err := t.p.GetAttributeValue(s, h, []*pkcs11.Attribute{attr(pkcs11.CKA_KEY_TYPE, nil)})
			if err != nil {
				return nil, in("C_GetAttributeValue", err)
			}
			o.kind = ulong(k[0].Value)
		}
		out = append(out, o)
	}
	return out, nil
}

// ulong reads a CK_ULONG, which is little-endian and of 4 or 8 octets where this runs.
func ulong(b []byte) uint {
	var n uint
	for i := len(b) - 1; i >= 0; i-- {
		n = n<<8 | uint(b[i])
	}
	return n
}

var (
	oidP256    = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	oidP384    = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}
)

// publicKey reads a public key object. One of a kind that we do not use is nil.
func (t *Token) publicKey(s pkcs11.SessionHandle, h pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	get := func(kinds ...uint) ([]*pkcs11.Attribute, error) {
		var q []*pkcs11.Attribute
		for _, k := range kinds {
			q = append(q, attr(k, nil))
		}
		a, err := t.p.GetAttributeValue(s, h, q)
		return a, in("C_GetAttributeValue", err)
	}
	k, err := get(pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return nil, err
	}
	switch ulong(k[0].Value) {
	case pkcs11.CKK_RSA:
		a, err := get(pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT)
		if err != nil {
			return nil, err
		}
		e := new(big.Int).SetBytes(a[1].Value)
		if !e.IsInt64() || e.Int64() > 1<<32 {
			return nil, nil
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(a[0].Value), E: int(e.Int64())}, nil
	case pkcs11.CKK_EC:
		a, err := get(pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT)
		if err != nil {
			return nil, err
		}
		var oid asn1.ObjectIdentifier
		if rest, err := asn1.Unmarshal(a[0].Value, &oid); err != nil || len(rest) != 0 {
			return nil, nil //nolint:nilerr // not a key that we could use
		}
		curve := elliptic.P256()
		if oid.Equal(oidP384) {
			curve = elliptic.P384()
		} else if !oid.Equal(oidP256) {
			return nil, nil
		}
		pub, err := ecdsa.ParseUncompressedPublicKey(curve, point(a[1].Value))
		if err != nil {
			return nil, nil //nolint:nilerr // not a key that we could use
		}
		return pub, nil
	case ckkECEdwards:
		a, err := get(pkcs11.CKA_EC_POINT)
		if err != nil {
			return nil, err
		}
		if p := point(a[0].Value); len(p) == ed25519.PublicKeySize {
			return ed25519.PublicKey(bytes.Clone(p)), nil
		}
	}
	return nil, nil
}

// point unwraps CKA_EC_POINT, which is the DER of an OCTET STRING (PKCS #11 v2.40, section 2.3.3),
// but some modules give the point itself.
func point(b []byte) []byte {
	var p []byte
	if rest, err := asn1.Unmarshal(b, &p); err == nil && len(rest) == 0 {
		return p
	}
	return b
}

// content is everything of ours on the token.
type content struct {
	private, public, certs, chain []object
}

func (t *Token) read(s pkcs11.SessionHandle) (*content, error) {
	mine := func(l string) bool { _, _, ok := parseLabel(l); return ok }
	between := func(l string) bool { return l == chainDevice || strings.HasPrefix(l, chainService) }
	var c content
	var err error
	if c.private, err = t.ours(s, pkcs11.CKO_PRIVATE_KEY, mine); err != nil {
		return nil, err
	}
	if c.public, err = t.ours(s, pkcs11.CKO_PUBLIC_KEY, mine); err != nil {
		return nil, err
	}
	all, err := t.ours(s, pkcs11.CKO_CERTIFICATE, func(l string) bool { return mine(l) || between(l) })
	if err != nil {
		return nil, err
	}
	for _, o := range all {
		if between(o.label) {
			c.chain = append(c.chain, o)
		} else {
			c.certs = append(c.certs, o)
		}
	}
	return &c, nil
}

func (o *object) is(l string, id []byte) bool { return o.label == l && bytes.Equal(o.id, id) }

// publicOf returns the public key that belongs to a private key.
func (c *content) publicOf(k *object) crypto.PublicKey {
	for i := range c.public {
		if c.public[i].is(k.label, k.id) {
			return c.public[i].pub
		}
	}
	// Some tokens keep no public keys: then the certificate has it.
	for i := range c.certs {
		if c.certs[i].is(k.label, k.id) {
			if x, err := x509.ParseCertificate(c.certs[i].der); err == nil {
				return x.PublicKey
			}
		}
	}
	return nil
}

// certsOf returns the certificates of a key, when they are really that key's: one, or two when a
// power failure cut an exchange short. The newest is the first.
func (c *content) certsOf(k *object) []*x509.Certificate {
	pub := c.publicOf(k)
	var out []*x509.Certificate
	for i := range c.certs {
		if !c.certs[i].is(k.label, k.id) {
			continue
		}
		if x, err := x509.ParseCertificate(c.certs[i].der); err == nil && certs.SamePublicKey(x.PublicKey, pub) {
			out = append(out, x)
		}
	}
	slices.SortStableFunc(out, func(x, y *x509.Certificate) int { return y.NotBefore.Compare(x.NotBefore) })
	return out
}

// certOf returns the newest certificate of a key, or nil.
func (c *content) certOf(k *object) *x509.Certificate {
	if l := c.certsOf(k); len(l) > 0 {
		return l[0]
	}
	return nil
}

// chainOf picks the intermediates that lead upwards from cert.
func (c *content) chainOf(l chipproto.Layer, service string, cert *x509.Certificate) [][]byte {
	var pool []*x509.Certificate
	for i := range c.chain {
		if c.chain[i].label == chainLabel(l, service) {
			if x, err := x509.ParseCertificate(c.chain[i].der); err == nil {
				pool = append(pool, x)
			}
		}
	}
	var out [][]byte
	for last := cert; len(out) < certs.MaxChain; {
		var next *x509.Certificate
		for _, x := range pool {
			if bytes.Equal(x.RawSubject, last.RawIssuer) && !x.Equal(last) &&
				(len(last.AuthorityKeyId) == 0 || bytes.Equal(x.SubjectKeyId, last.AuthorityKeyId)) {
				next = x
				break
			}
		}
		if next == nil {
			break
		}
		out = append(out, next.Raw)
		last = next
	}
	return out
}

// List returns what is on the token.
func (t *Token) List() ([]chipproto.Credential, *Error) {
	var out []chipproto.Credential
	err := t.with(func(s pkcs11.SessionHandle) error {
		c, err := t.read(s)
		if err != nil {
			return err
		}
		out = c.credentials()
		return nil
	})
	return out, err
}

func (c *content) credentials() []chipproto.Credential {
	var out []chipproto.Credential
	paired := map[string]bool{}
	for i := range c.private {
		k := &c.private[i]
		l, service, _ := parseLabel(k.label)
		x := chipproto.Credential{Layer: l, Service: service, ID: k.id, HasKey: true}
		if pub := c.publicOf(k); pub != nil {
			if der, err := x509.MarshalPKIXPublicKey(pub); err == nil {
				x.Public = der
			}
		}
		list := c.certsOf(k)
		for _, cert := range list {
			x.Cert, x.Chain = cert.Raw, c.chainOf(l, service, cert)
			paired[k.label+"\x00"+string(k.id)+"\x00"+string(cert.Raw)] = true
			out = append(out, x)
		}
		if len(list) == 0 {
			out = append(out, x)
		}
	}
	for i := range c.certs { // certificates whose key is gone
		o := &c.certs[i]
		if l, service, ok := parseLabel(o.label); ok && !paired[o.label+"\x00"+string(o.id)+"\x00"+string(o.der)] {
			out = append(out, chipproto.Credential{Layer: l, Service: service, ID: o.id, Cert: o.der})
		}
	}
	for i := range c.public { // public keys that belong to nothing
		o := &c.public[i]
		if l, service, ok := parseLabel(o.label); ok && c.orphan(o) && !slices.ContainsFunc(c.certs, func(x object) bool { return x.is(o.label, o.id) }) {
			x := chipproto.Credential{Layer: l, Service: service, ID: o.id}
			if der, err := x509.MarshalPKIXPublicKey(o.pub); err == nil {
				x.Public = der
			}
			out = append(out, x)
		}
	}
	if len(out) > chipproto.MaxObjects {
		out = out[:chipproto.MaxObjects]
	}
	return out
}
