package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
)

// RSA bounds of the profile. The upper one keeps a hostile key from costing seconds to verify.
const (
	MinRSABits     = 2048
	MaxRSABits     = 8192
	minRSAExponent = 65537
	maxRSAExponent = 1<<32 - 1
)

// CheckPublicKey returns nil for a key that the profile allows (RSA of 2048 to 8192 bits with an
// odd exponent from 65537 to 2^32-1; ECDSA on P-256, P-384 or P-521; Ed25519) and otherwise an
// *Error of class WeakKey.
func CheckPublicKey(pub crypto.PublicKey) error {
	const allowed = "RSA of 2048 to 8192 bits with exponent 65537 or more, ECDSA on P-256, P-384 or P-521, or Ed25519"
	weak := func(got string) error {
		return &Error{Class: WeakKey, Expected: allowed, Got: got, Do: "have a certificate issued for a new key of an allowed kind"}
	}
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if k == nil || k.N == nil {
			return weak("an empty RSA key")
		}
		bits, e := k.N.BitLen(), int64(k.E)
		switch {
		case bits < MinRSABits || bits > MaxRSABits:
			return weak(fmt.Sprintf("RSA of %d bits", bits))
		case k.N.Bit(0) == 0:
			return weak("an RSA modulus that is even")
		case e < minRSAExponent || e > maxRSAExponent || e&1 == 0:
			return weak(fmt.Sprintf("RSA exponent %d", e))
		}
		return nil
	case *ecdsa.PublicKey:
		if k == nil || k.Curve == nil {
			return weak("an empty ECDSA key")
		}
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return weak("ECDSA on " + k.Curve.Params().Name)
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return weak(fmt.Sprintf("an Ed25519 key of %d octets", len(k)))
		}
		return nil
	}
	return weak(fmt.Sprintf("a key of type %T", pub))
}

// KeyName names a public key's kind for people: "ECDSA P-256", "RSA 3072", "Ed25519".
func KeyName(pub crypto.PublicKey) string {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return fmt.Sprintf("%T", pub)
}

// SamePublicKey reports whether two public keys are equal.
func SamePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// strongSignature reports whether a certificate or list may be signed with alg: SHA-2 or Ed25519.
func strongSignature(alg x509.SignatureAlgorithm) bool {
	switch alg {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519:
		return true
	}
	return false
}
