package token

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"wardgate/internal/certs"
	"wardgate/pkichip/chipproto"
)

// StoreRequest is a certificate that is to be written.
type StoreRequest struct {
	Layer   chipproto.Layer
	Service string
	Cert    []byte
	Chain   [][]byte
	Anchors [][]byte
	CRLs    [][]byte
	Replace bool
}

// Store writes a certificate to its place, when it belongs there: its key is on this token, it
// chains to an anchor that the caller trusts, and, in layer 2, it is bound to this device's
// certificate (RFC 9763). What was there before goes afterwards, so that there is always one.
func (t *Token) Store(r StoreRequest) (id []byte, _ *Error) {
	if err := checkPlace(r.Layer, r.Service); err != nil {
		return nil, err
	}
	role := "service"
	if r.Layer == chipproto.LayerDevice {
		role = "device"
	}
	leaf, err := certs.ParseCertificate(r.Cert)
	if err != nil {
		return nil, refused(err)
	}
	opt := certs.Options{Leaf: r.Cert, Intermediates: r.Chain, EKU: certs.EKUIPsecIKE, At: t.cfg.Now(), Role: role}
	for _, der := range r.Anchors {
		a, err := certs.ParseCertificate(der)
		if err != nil {
			return nil, refused(err)
		}
		opt.Anchors = append(opt.Anchors, a)
	}
	for _, der := range r.CRLs {
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fail(chipproto.CodeBadRequest, "a revocation list cannot be parsed", "fetch it again from its issuer")
		}
		opt.CRLs = append(opt.CRLs, l)
	}
	e := t.change(func(s pkcs11.SessionHandle, c *content) error {
		id, err = t.store(s, c, r, leaf, opt)
		return err
	})
	return id, e
}

// refused translates a verdict of package certs.
func refused(err error) *Error {
	class := certs.ClassOf(err)
	code := chipproto.CodeUntrusted
	if class == certs.NotBound {
		code = chipproto.CodeNotBound
	}
	e := fail(code, err.Error(), "")
	e.Class = class.String()
	if c, ok := errors.AsType[*certs.Error](err); ok {
		short := *c
		short.Do = ""
		e.Text, e.Do = short.Error(), c.Do
	}
	return e
}

func (t *Token) store(s pkcs11.SessionHandle, c *content, r StoreRequest, leaf *x509.Certificate, opt certs.Options) ([]byte, error) {
	lbl := label(r.Layer, r.Service)
	if r.Layer == chipproto.LayerService {
		device, err := t.authorise(s, c)
		if err != nil {
			return nil, err
		}
		opt.RelatedTo = device.Raw
	}
	key, err := c.keyFor(lbl, leaf)
	if err != nil {
		return nil, err
	}
	if r.Layer == chipproto.LayerDevice && !r.Replace {
		for i := range c.private {
			if old := c.certOf(&c.private[i]); c.private[i].label == lbl && old != nil {
				if old.Equal(leaf) {
					return key.id, nil
				}
				return nil, fail(chipproto.CodeExists, "layer 1 has a device certificate already", "use --replace if the device CA has issued a new one; service certificates bound to the old one have to be issued anew")
			}
		}
	}
	v, err := certs.VerifyChain(opt)
	if err != nil {
		return nil, refused(err)
	}
	return key.id, t.exchange(s, c, r, key, v)
}

// keyFor finds the private key of a certificate.
func (c *content) keyFor(lbl string, leaf *x509.Certificate) (*object, error) {
	have := false
	for i := range c.private {
		k := &c.private[i]
		if !certs.SamePublicKey(leaf.PublicKey, c.publicOf(k)) {
			have = have || k.label == lbl
			continue
		}
		if k.label == lbl {
			return k, nil
		}
		return nil, fail(chipproto.CodeKeyNotOnToken, fmt.Sprintf("the certificate is for the key of %s on this token, not for that of %s", k.label, lbl), "import it under its own name")
	}
	text := fmt.Sprintf("the token has no key %s", lbl)
	if have {
		text = fmt.Sprintf("the certificate is for another key than that of %s on this token", lbl)
	}
	return nil, fail(chipproto.CodeKeyNotOnToken, text, "make the key and the request on this token with `wardgate token csr`, and import the certificate that is issued for it")
}

// exchange writes the new objects and then removes the old ones. A power failure in between leaves
// two certificates of a name, of which readers take the newer; the next exchange tidies up. Of what
// is removed the certificate goes last but for intermediates, so that List shows what is left over.
func (t *Token) exchange(s pkcs11.SessionHandle, c *content, r StoreRequest, key *object, v *certs.Verified) error {
	lbl, chainLbl := label(r.Layer, r.Service), chainLabel(r.Layer, r.Service)
	var made []pkcs11.ObjectHandle
	undo := func(err error) error {
		for _, h := range made {
			_ = t.p.DestroyObject(s, h) // err is the reason that is told
		}
		return err
	}
	put := func(have []object, lbl string, id []byte, x *x509.Certificate) error {
		for i := range have {
			if have[i].is(lbl, id) && bytes.Equal(have[i].der, x.Raw) {
				return nil
			}
		}
		serial, err := asn1.Marshal(x.SerialNumber)
		if err != nil {
			return err
		}
		h, err := t.p.CreateObject(s, []*pkcs11.Attribute{
			class(pkcs11.CKO_CERTIFICATE), attr(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509), attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, false),
			attr(pkcs11.CKA_LABEL, lbl), attr(pkcs11.CKA_ID, id), attr(pkcs11.CKA_SUBJECT, x.RawSubject), attr(pkcs11.CKA_ISSUER, x.RawIssuer),
			attr(pkcs11.CKA_SERIAL_NUMBER, serial), attr(pkcs11.CKA_VALUE, x.Raw),
		})
		if err != nil {
			return in("C_CreateObject", err)
		}
		made = append(made, h)
		return nil
	}
	between := v.Chain[1 : len(v.Chain)-1]
	for _, x := range between {
		if err := put(c.chain, chainLbl, chainID(x), x); err != nil {
			return undo(err)
		}
	}
	if err := put(c.certs, lbl, key.id, v.Leaf); err != nil {
		return undo(err)
	}
	drop := func(list []object, gone func(o *object) bool) error {
		for i := range list {
			if gone(&list[i]) {
				if err := t.p.DestroyObject(s, list[i].h); err != nil {
					return in("C_DestroyObject", err)
				}
			}
		}
		return nil
	}
	otherKey := func(o *object) bool { return o.label == lbl && !bytes.Equal(o.id, key.id) }
	kept := false
	steps := []func() error{
		func() error { return drop(c.public, otherKey) },
		func() error { return drop(c.private, otherKey) },
		func() error {
			return drop(c.certs, func(o *object) bool {
				if o.is(lbl, key.id) && bytes.Equal(o.der, v.Leaf.Raw) && !kept {
					kept = true
					return false
				}
				return o.label == lbl
			})
		},
		func() error {
			return drop(c.chain, func(o *object) bool {
				return o.label == chainLbl && !slices.ContainsFunc(between, func(x *x509.Certificate) bool { return bytes.Equal(o.der, x.Raw) })
			})
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// chainID is the CKA_ID of an intermediate: its subject key identifier, so that several fit.
func chainID(x *x509.Certificate) []byte {
	id := x.SubjectKeyId
	if len(id) == 0 || len(id) > chipproto.MaxID {
		id = x.SerialNumber.Bytes()
	}
	if len(id) > chipproto.MaxID {
		id = id[:chipproto.MaxID]
	}
	return id
}

// Delete removes a service: certificate, keys and intermediates. With an ID only what has it.
func (t *Token) Delete(service string, id []byte) *Error {
	if err := checkName(service); err != nil {
		return err
	}
	return t.change(func(s pkcs11.SessionHandle, c *content) error {
		if _, err := t.authorise(s, c); err != nil {
			return err
		}
		n := 0
		for _, list := range [][]object{c.chain, c.public, c.private, c.certs} { // List shows it to the end
			for i := range list {
				o := &list[i]
				chain := o.label == chainLabel(chipproto.LayerService, service)
				if o.label != label(chipproto.LayerService, service) && !chain || id != nil && (chain || !bytes.Equal(o.id, id)) {
					continue
				}
				if err := t.p.DestroyObject(s, o.h); err != nil {
					return in("C_DestroyObject", err)
				}
				n++
			}
		}
		if n == 0 {
			return fail(chipproto.CodeNoKey, fmt.Sprintf("the token has nothing for the service %s", certs.Quote(service)), "see `wardgate token list`")
		}
		return nil
	})
}
