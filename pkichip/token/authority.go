package token

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"wardgate/internal/certs"
	"wardgate/pkichip/chipproto"
)

// Keys of authorities: those of a token that belongs to a service provider (chipproto.LayerAuthority).
// They are found by their label, whoever made them.

// checkLabel accepts the label of an authority's key: 1 to 64 printable ASCII characters. What begins
// like the labels of a device's token is none.
func checkLabel(s string) *Error {
	ok := s != "" && len(s) <= chipproto.MaxName && !strings.HasPrefix(s, "wardgate-")
	for i := range len(s) {
		ok = ok && 0x20 <= s[i] && s[i] < 0x7f
	}
	if !ok {
		return fail(chipproto.CodeBadRequest, fmt.Sprintf("expected a key's label of 1 to %d printable ASCII characters that does not begin with wardgate-, got %s", chipproto.MaxName, certs.Quote(s)), "give the key another label")
	}
	return nil
}

// Keys lists the authorities' keys: private keys whose public halves are on the token too.
func (t *Token) Keys() ([]chipproto.Credential, *Error) {
	var out []chipproto.Credential
	err := t.with(func(s pkcs11.SessionHandle) error {
		c, err := t.authorities(s)
		if err != nil {
			return err
		}
		out = nil
		for i := range c.private {
			k := &c.private[i]
			pub := c.publicOf(k)
			if pub == nil || len(k.id) == 0 || len(out) == chipproto.MaxObjects {
				continue
			}
			der, err := x509.MarshalPKIXPublicKey(pub)
			if err != nil {
				continue // of a kind that we do not use
			}
			out = append(out, chipproto.Credential{Layer: chipproto.LayerAuthority, Service: k.label, ID: k.id, Public: der, HasKey: true})
		}
		return nil
	})
	return out, err
}

func (t *Token) authorities(s pkcs11.SessionHandle) (*content, error) {
	want := func(l string) bool { return checkLabel(l) == nil }
	var c content
	var err error
	if c.private, err = t.ours(s, pkcs11.CKO_PRIVATE_KEY, want); err != nil {
		return nil, err
	}
	if c.public, err = t.ours(s, pkcs11.CKO_PUBLIC_KEY, want); err != nil {
		return nil, err
	}
	// Tools of other makers leave the public key in a certificate alone.
	c.certs, err = t.ours(s, pkcs11.CKO_CERTIFICATE, want)
	return &c, err
}

// GenerateKey makes an authority's key. A label that a private key has already is CodeExists: what is
// named by it must stay one key.
func (t *Token) GenerateKey(lbl string, kind chipproto.KeyType) (id, spki []byte, _ *Error) {
	if err := checkLabel(lbl); err != nil {
		return nil, nil, err
	}
	r, e := recipeFor(kind)
	if e != nil {
		return nil, nil, e
	}
	t.writeMu.Lock()
	defer t.writeMu.Unlock()
	defer t.forgetAll()
	err := t.with(func(s pkcs11.SessionHandle) error {
		h, err := t.findObjects(s, class(pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_LABEL, lbl))
		if err != nil {
			return err
		}
		if len(h) > 0 {
			return fail(chipproto.CodeExists, "the token has a key with the label "+certs.Quote(lbl)+" already", "give the new key another label")
		}
		pub, newID, err := t.makeKey(s, lbl, r)
		if err != nil {
			return err
		}
		id = newID
		spki, err = x509.MarshalPKIXPublicKey(pub)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return id, spki, nil
}

// DeleteKey removes an authority's key, private and public half. Both label and ID must be right.
func (t *Token) DeleteKey(lbl string, id []byte) *Error {
	if err := checkLabel(lbl); err != nil {
		return err
	}
	if len(id) == 0 {
		return fail(chipproto.CodeBadRequest, "expected the ID of the key that is to be deleted, got none", "see the list of keys")
	}
	t.writeMu.Lock()
	defer t.writeMu.Unlock()
	defer t.forgetAll()
	return t.with(func(s pkcs11.SessionHandle) error {
		c, err := t.authorities(s)
		if err != nil {
			return err
		}
		n := 0
		for _, list := range [][]object{c.private, c.public} {
			for i := range list {
				if list[i].label != lbl || !bytes.Equal(list[i].id, id) {
					continue
				}
				if err := t.p.DestroyObject(s, list[i].h); err != nil {
					return in("C_DestroyObject", err)
				}
				n++
			}
		}
		if n == 0 {
			return fail(chipproto.CodeNoKey, "the token has no key "+certs.Quote(lbl)+" with this ID", "see the list of keys")
		}
		return nil
	})
}
