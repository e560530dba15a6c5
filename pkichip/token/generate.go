package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"github.com/miekg/pkcs11"

	"wardgate/internal/certs"
	"wardgate/pkichip/chipproto"
)

// idLen is the length of the CKA_ID of our objects: random, because the public key, of which an ID
// is usually derived, is not known before the key is made.
const idLen = 16

type recipe struct {
	mechanism uint
	public    []*pkcs11.Attribute
	alternate []*pkcs11.Attribute // other spelling of the curve, for other modules
}

func recipeFor(k chipproto.KeyType) (recipe, *Error) {
	oid := func(o asn1.ObjectIdentifier) []*pkcs11.Attribute {
		der, err := asn1.Marshal(o)
		if err != nil {
			return nil
		}
		return []*pkcs11.Attribute{attr(pkcs11.CKA_EC_PARAMS, der)}
	}
	rsaKey := func(bits uint) recipe {
		return recipe{mechanism: pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, public: []*pkcs11.Attribute{
			attr(pkcs11.CKA_MODULUS_BITS, bits), attr(pkcs11.CKA_PUBLIC_EXPONENT, exponent),
		}}
	}
	switch k {
	case chipproto.P256:
		return recipe{mechanism: pkcs11.CKM_EC_KEY_PAIR_GEN, public: oid(oidP256)}, nil
	case chipproto.P384:
		return recipe{mechanism: pkcs11.CKM_EC_KEY_PAIR_GEN, public: oid(oidP384)}, nil
	case chipproto.RSA2048:
		return rsaKey(2048), nil
	case chipproto.RSA3072:
		return rsaKey(3072), nil
	case chipproto.Ed25519:
		// PKCS #11 v3.0, section 2.3.10: the OID, or the curve's name as PrintableString.
		return recipe{
			mechanism: ckmECEdwardsKeyPairGen, public: oid(oidEd25519),
			alternate: []*pkcs11.Attribute{attr(pkcs11.CKA_EC_PARAMS, append([]byte{0x13, 12}, "edwards25519"...))},
		}, nil
	}
	return recipe{}, fail(chipproto.CodeBadRequest, fmt.Sprintf("expected a key of type p256, p384, rsa2048, rsa3072 or ed25519, got %s", certs.Quote(string(k))), "")
}

// KeyTypes returns the kinds of key that the token's mechanisms allow for.
func (t *Token) KeyTypes() ([]chipproto.KeyType, *Error) {
	var out []chipproto.KeyType
	err := t.with(func(pkcs11.SessionHandle) error {
		list, err := t.p.GetMechanismList(t.slot)
		if err != nil {
			return in("C_GetMechanismList", err)
		}
		has := map[uint]bool{}
		for _, m := range list {
			has[m.Mechanism] = true
		}
		out = nil
		if has[pkcs11.CKM_EC_KEY_PAIR_GEN] && has[pkcs11.CKM_ECDSA] {
			out = append(out, chipproto.P256, chipproto.P384)
		}
		if has[pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN] && has[pkcs11.CKM_RSA_PKCS] {
			out = append(out, chipproto.RSA2048, chipproto.RSA3072)
		}
		if has[ckmECEdwardsKeyPairGen] && has[ckmEdDSA] {
			out = append(out, chipproto.Ed25519)
		}
		return nil
	})
	return out, err
}

// Generate makes a key pair for a place on the token. What is written to layer 2 is authorised by
// layer 1.
func (t *Token) Generate(l chipproto.Layer, service string, kind chipproto.KeyType) (id, spki []byte, _ *Error) {
	if err := checkPlace(l, service); err != nil {
		return nil, nil, err
	}
	r, e := recipeFor(kind)
	if e != nil {
		return nil, nil, e
	}
	err := t.change(func(s pkcs11.SessionHandle, c *content) error {
		lbl := label(l, service)
		if l == chipproto.LayerService {
			if _, err := t.authorise(s, c); err != nil {
				return err
			}
		} else {
			for i := range c.private {
				if c.private[i].label == lbl && c.certOf(&c.private[i]) != nil {
					return fail(chipproto.CodeExists, "layer 1 has a device key and certificate already", "they are made once; to start anew, initialise the token")
				}
			}
		}
		pub, newID, err := t.makeKey(s, lbl, r)
		if err != nil && wrap("", err).Code == chipproto.CodeFull && c.waits(lbl) {
			if err := t.sweep(s, c, lbl); err != nil {
				return err
			}
			if c, err = t.read(s); err != nil {
				return err
			}
			pub, newID, err = t.makeKey(s, lbl, r)
		}
		if err != nil {
			return err
		}
		if spki, err = x509.MarshalPKIXPublicKey(pub); err != nil {
			return err
		}
		id = newID
		return t.sweep(s, c, lbl) // only now: there is always a key
	})
	if err != nil {
		return nil, nil, err
	}
	return id, spki, nil
}

func (t *Token) makeKey(s pkcs11.SessionHandle, lbl string, r recipe) (crypto.PublicKey, []byte, error) {
	id := make([]byte, idLen)
	if _, err := t.cfg.Rand.Read(id); err != nil {
		return nil, nil, err
	}
	public := []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_VERIFY, true),
		attr(pkcs11.CKA_LABEL, lbl), attr(pkcs11.CKA_ID, id),
	}
	private := []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_LABEL, lbl), attr(pkcs11.CKA_ID, id),
	}
	m := []*pkcs11.Mechanism{pkcs11.NewMechanism(r.mechanism, nil)}
	pubH, privH, err := t.p.GenerateKeyPair(s, m, append(public, r.public...), private)
	if err != nil && r.alternate != nil {
		if again, h, e := t.p.GenerateKeyPair(s, m, append(public, r.alternate...), private); e == nil {
			pubH, privH, err = again, h, nil
		}
	}
	if err != nil {
		return nil, nil, in("C_GenerateKeyPair", err)
	}
	undo := func(err error) (crypto.PublicKey, []byte, error) {
		_ = t.p.DestroyObject(s, privH) // err is the reason that is told
		_ = t.p.DestroyObject(s, pubH)
		return nil, nil, err
	}
	// CHIP-3: not asked for is not enough; the token must say that it is so.
	a, err := t.p.GetAttributeValue(s, privH, []*pkcs11.Attribute{attr(pkcs11.CKA_SENSITIVE, nil), attr(pkcs11.CKA_EXTRACTABLE, nil)})
	if err != nil {
		return undo(in("C_GetAttributeValue", err))
	}
	if !flag(a[0].Value) || flag(a[1].Value) {
		return undo(fail(chipproto.CodeUnsupported, "the token made a key that can be read out", "use a token that keeps keys to itself"))
	}
	pub, err := t.publicKey(s, pubH)
	if err != nil {
		return undo(err)
	}
	if pub == nil {
		return undo(fail(chipproto.CodeUnsupported, "the token's public key cannot be read", "use another kind of key"))
	}
	return pub, id, nil
}

func flag(b []byte) bool { return len(b) > 0 && b[0] != 0 }

// destroy removes everything with this label and ID.
func (t *Token) destroy(s pkcs11.SessionHandle, c *content, lbl string, id []byte) error {
	for _, list := range [][]object{c.certs, c.private, c.public} { // the key last but for its public half
		for i := range list {
			if list[i].is(lbl, id) {
				if err := t.p.DestroyObject(s, list[i].h); err != nil {
					return in("C_DestroyObject", err)
				}
			}
		}
	}
	return nil
}

// authorise is layer 1 authorising a write to layer 2 (CHIP-1): the device's key, certificate and
// their belonging together are shown by a signature over a fresh challenge.
func (t *Token) authorise(s pkcs11.SessionHandle, c *content) (*x509.Certificate, error) {
	var key *object
	var cert *x509.Certificate
	stray := false
	for i := range c.private {
		if k := &c.private[i]; k.label == labelDevice {
			if x := c.certOf(k); x != nil {
				key, cert = k, x
			} else {
				stray = true
			}
		}
	}
	for i := range c.certs {
		stray = stray || c.certs[i].label == labelDevice
	}
	switch {
	case key == nil && stray:
		return nil, fail(chipproto.CodeNoDevice, "layer 1 is incomplete: device key and certificate are not both there, or do not belong together", "import the device certificate that was issued for the device key on this token: `wardgate token import --device`")
	case key == nil:
		return nil, fail(chipproto.CodeNoDevice, "layer 1 is empty: the token has no device key and certificate", "a device gets them before it is delivered: `wardgate token csr --device`, then `wardgate token import --device`")
	}
	challenge := make([]byte, 32)
	if _, err := t.cfg.Rand.Read(challenge); err != nil {
		return nil, err
	}
	msg := append([]byte("wardgate: layer 1 authorises a write to layer 2\x00"), challenge...)
	sum := sha256.Sum256(msg)
	r := SignRequest{Hash: chipproto.HashSHA256, Data: sum[:]}
	switch cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		r.Scheme = chipproto.SchemeECDSA
	case *rsa.PublicKey:
		r.Scheme = chipproto.SchemePKCS1v15
	case ed25519.PublicKey:
		r.Scheme, r.Hash, r.Data = chipproto.SchemeEd25519, chipproto.HashNone, msg
	}
	sig, err := t.sign(s, keyHandle{h: key.h, kind: key.kind}, r)
	if err != nil {
		return nil, err
	}
	ok := false
	switch k := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, sum[:], sig)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, msg, sig)
	}
	if !ok {
		return nil, fail(chipproto.CodeDeviceBroken, "the device key does not sign for the device certificate", "the token is damaged or was tampered with: replace it")
	}
	return cert, nil
}
