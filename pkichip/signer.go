package pkichip

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"fmt"
	"io"

	"wardgate/pkichip/chipproto"
)

// Signer is a key on the token as a crypto.Signer.
type Signer struct {
	chip    *Chip
	layer   chipproto.Layer
	service string
	id      []byte
	public  crypto.PublicKey
}

// Public returns the public key: *ecdsa.PublicKey, *rsa.PublicKey or ed25519.PublicKey.
func (s *Signer) Public() crypto.PublicKey { return s.public }

// Sign implements crypto.Signer; the random source is the token's own. ECDSA returns an ASN.1
// signature; RSA is PKCS #1 v1.5, or PSS with *rsa.PSSOptions; Ed25519 takes the message itself
// and crypto.Hash(0).
func (s *Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.SignContext(context.Background(), digest, opts)
}

// SignContext is Sign with a context. A context that ends leaves the token alone: the signature
// is made and dropped.
func (s *Signer) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	m := &chipproto.Message{Type: chipproto.TypeSign, Layer: s.layer, Service: s.service, KeyID: s.id, Data: digest}
	h := opts.HashFunc()
	switch h {
	case 0:
		m.Hash = chipproto.HashNone
	case crypto.SHA256:
		m.Hash = chipproto.HashSHA256
	case crypto.SHA384:
		m.Hash = chipproto.HashSHA384
	case crypto.SHA512:
		m.Hash = chipproto.HashSHA512
	default:
		return nil, fmt.Errorf("token signature: expected SHA-256, SHA-384 or SHA-512, got %v", h)
	}
	if h != 0 && len(digest) != h.Size() {
		return nil, fmt.Errorf("token signature: expected a digest of %d octets for %v, got %d", h.Size(), h, len(digest))
	}
	switch k := s.public.(type) {
	case *ecdsa.PublicKey:
		m.Scheme = chipproto.SchemeECDSA
	case ed25519.PublicKey:
		m.Scheme = chipproto.SchemeEd25519
		if o, ok := opts.(*ed25519.Options); ok && o.Context != "" {
			return nil, fmt.Errorf("token signature: Ed25519 with a context is not supported by tokens")
		}
	case *rsa.PublicKey:
		m.Scheme = chipproto.SchemePKCS1v15
		if o, ok := opts.(*rsa.PSSOptions); ok {
			m.Scheme = chipproto.SchemePSS
			salt, err := pssSalt(k, h, o.SaltLength)
			if err != nil {
				return nil, err
			}
			m.Salt = uint16(salt)
		}
	}
	if (m.Scheme == chipproto.SchemeEd25519) != (h == 0) {
		return nil, fmt.Errorf("token signature: a key of type %T does not sign with hash %v", s.public, h)
	}
	r, err := s.chip.request(ctx, m)
	if err != nil {
		return nil, err
	}
	return r.Data, nil
}

// pssSalt resolves the salt length as crypto/rsa does (RFC 8017, section 9.1.1: emLen = ⌈(bits-1)/8⌉).
func pssSalt(k *rsa.PublicKey, h crypto.Hash, salt int) (int, error) {
	most := (k.N.BitLen()-1+7)/8 - 2 - h.Size()
	switch salt {
	case rsa.PSSSaltLengthAuto:
		salt = most
	case rsa.PSSSaltLengthEqualsHash:
		salt = h.Size()
	}
	if salt < 0 || salt > most {
		return 0, fmt.Errorf("token signature: expected a PSS salt of 0 to %d octets, got %d", most, salt)
	}
	return salt, nil
}
