package enroltest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"slices"
	"sync"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/router/centre"
)

// token is both layers in memory, with the rules of pkichip: objects are written and removed one by one,
// a key with a certificate stays until its successor is stored, and a certificate is stored only when
// its key is here, it chains to an anchor, and it is bound to the device certificate.
type token struct {
	p      *power
	now    centre.Clock
	mu     sync.Mutex // guards what follows
	device centre.Key
	last   byte
	keys   []tokenKey
	certs  []tokenCert
	fail   error // the token does not answer
}

type tokenKey struct {
	service string
	id      byte
	key     *ecdsa.PrivateKey
}

type tokenCert struct {
	service string
	id      byte
	cert    *x509.Certificate
	chain   []*x509.Certificate
}

func (t *token) locked(f func()) func() {
	return func() { t.mu.Lock(); defer t.mu.Unlock(); f() }
}

func (t *token) trouble() error {
	if t.p.gone() {
		return errDead
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fail
}

// Device implements centre.Token.
func (t *token) Device(context.Context) (centre.Key, error) {
	if err := t.trouble(); err != nil {
		return centre.Key{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.device, nil
}

// Services implements centre.Token.
func (t *token) Services(context.Context) ([]centre.Key, error) {
	if err := t.trouble(); err != nil {
		return nil, err
	}
	return t.list(), nil
}

func (t *token) list() []centre.Key {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []centre.Key
	for _, k := range t.keys {
		x := centre.Key{Service: k.service, ID: []byte{k.id}, Signer: k.key}
		if !slices.ContainsFunc(t.certs, func(c tokenCert) bool { return c.service == k.service && c.id == k.id }) {
			out = append(out, x)
		}
	}
	for _, c := range t.certs {
		x := centre.Key{Service: c.service, ID: []byte{c.id}, Cert: c.cert, Chain: c.chain}
		for _, k := range t.keys {
			if k.service == c.service && k.id == c.id {
				x.Signer = k.key
			}
		}
		out = append(out, x)
	}
	return out
}

// Generate implements centre.Token.
func (t *token) Generate(_ context.Context, service string, curve elliptic.Curve) (centre.Key, error) {
	if err := t.trouble(); err != nil {
		return centre.Key{}, err
	}
	if curve == nil {
		curve = elliptic.P256()
	}
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return centre.Key{}, err
	}
	k := tokenKey{service: service, key: key}
	if err := t.p.step("making a key", t.locked(func() { t.last++; k.id = t.last; t.keys = append(t.keys, k) })); err != nil {
		return centre.Key{}, err
	}
	err = t.remove("removing a key that waited", nil, func(x tokenKey) bool {
		return x.service == service && x.id != k.id && !slices.ContainsFunc(t.certs, func(c tokenCert) bool { return c.service == service && c.id == x.id })
	})
	return centre.Key{Service: service, ID: []byte{k.id}, Signer: key}, err
}

// Store implements centre.Token.
func (t *token) Store(_ context.Context, service string, cert *x509.Certificate, chain, anchors []*x509.Certificate) error {
	if err := t.trouble(); err != nil {
		return err
	}
	if _, err := certs.VerifyChain(certs.Options{
		Leaf: cert.Raw, Intermediates: labca.DER(chain), Anchors: anchors, EKU: certs.EKUIPsecIKE, At: t.now.Now(), RelatedTo: t.device.Cert.Raw, Role: "service",
	}); err != nil {
		return err
	}
	t.mu.Lock()
	i := slices.IndexFunc(t.keys, func(k tokenKey) bool {
		return k.service == service && certs.SamePublicKey(k.key.Public(), cert.PublicKey)
	})
	if i < 0 {
		t.mu.Unlock()
		return errors.New("the certificate's key is not on the token")
	}
	id := t.keys[i].id
	there := slices.ContainsFunc(t.certs, func(c tokenCert) bool { return c.id == id && c.cert.Equal(cert) })
	t.mu.Unlock()
	if !there {
		if err := t.p.step("storing a certificate", t.locked(func() { t.certs = append(t.certs, tokenCert{service, id, cert, chain}) })); err != nil {
			return err
		}
	}
	return t.remove("removing what a service had before",
		func(c tokenCert) bool { return c.service == service && !c.cert.Equal(cert) },
		func(k tokenKey) bool { return k.service == service && k.id != id })
}

// Delete implements centre.Token.
func (t *token) Delete(_ context.Context, service string) error {
	if err := t.trouble(); err != nil {
		return err
	}
	return t.remove("removing a service", func(c tokenCert) bool { return c.service == service }, func(k tokenKey) bool { return k.service == service })
}

// remove removes one object after the other: the power can fail between them.
func (t *token) remove(what string, cert func(tokenCert) bool, key func(tokenKey) bool) error {
	for {
		i, j := -1, -1
		t.mu.Lock()
		if cert != nil {
			i = slices.IndexFunc(t.certs, cert)
		}
		if i < 0 {
			j = slices.IndexFunc(t.keys, key)
		}
		t.mu.Unlock()
		if i < 0 && j < 0 {
			return nil
		}
		if err := t.p.step(what, t.locked(func() {
			if i >= 0 {
				t.certs = slices.Delete(t.certs, i, i+1)
			} else {
				t.keys = slices.Delete(t.keys, j, j+1)
			}
		})); err != nil {
			return err
		}
	}
}
