package suite

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.Hash
	_ "crypto/sha512" // for crypto.Hash
	"math/big"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// SignatureScheme is how one AUTH payload is signed: method, algorithm and hash. The zero value
// is not usable; ChooseSignature makes one. Schemes can be compared with ==.
type SignatureScheme struct {
	method uint8
	alg    sigAlg
	size   int // octets of r and of s, for methods 9 to 11
}

// SignatureHashes returns the hashes that we announce in SIGNATURE_HASH_ALGORITHMS and accept.
func SignatureHashes() []uint16 {
	return []uint16{HashSHA256, HashSHA384, HashSHA512, HashIdentity}
}

// ChooseSignature chooses how to sign with the private key of pub for a peer that announced
// peerHashes (empty: it sent no SIGNATURE_HASH_ALGORITHMS and knows RFC 4754 at best). Errors
// wrap ErrPublicKey or ErrAuthMethod.
func ChooseSignature(pub crypto.PublicKey, peerHashes []uint16) (SignatureScheme, error) {
	s, err := SignatureSchemes(pub, peerHashes)
	if err != nil {
		return SignatureScheme{}, err
	}
	return s[0], nil
}

// SignatureSchemes returns all schemes that are possible, the best first: for RSA keys PSS, then
// PKCS #1 v1.5 for a token that cannot do PSS (RFC 7427 has no way to learn what the peer
// prefers); the hash that matches the strength of the key before stronger ones before weaker
// ones. There is at least one; errors as with ChooseSignature.
func SignatureSchemes(pub crypto.PublicKey, peerHashes []uint16) ([]SignatureScheme, error) {
	if err := CheckPublicKey(pub); err != nil {
		return nil, err
	}
	var list []SignatureScheme
	add := func(kind sigKind, hashes ...uint16) {
		for _, h := range hashes {
			if slices.Contains(peerHashes, h) {
				list = append(list, SignatureScheme{method: AuthDigitalSignature, alg: sigAlg{kind, h}})
			}
		}
	}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		own := curveHash(k.Curve)
		if len(peerHashes) == 0 {
			// RFC 7427, section 3: method 14 only if both sides announced their hashes.
			s, _ := classicScheme(k.Curve)
			return []SignatureScheme{s}, nil
		}
		add(sigECDSA, preferred(own)...)
	case *rsa.PublicKey:
		own := HashSHA256
		if k.N.BitLen() > 3072 {
			own = HashSHA384
		}
		add(sigPSS, preferred(own)...)
		add(sigPKCS1, preferred(own)...)
	case ed25519.PublicKey:
		add(sigEd25519, HashIdentity)
	}
	if len(list) == 0 {
		return nil, wrap(ErrAuthMethod, "no hash for a signature with our %s key: the peer announced %s, we sign with %s", keyName(pub), hashNames(peerHashes), hashNames(SignatureHashes()))
	}
	return list, nil
}

// preferred puts the matching hash first, then the stronger ones, then the weaker ones.
func preferred(own uint16) []uint16 {
	list := []uint16{own}
	for h := own + 1; h <= HashSHA512; h++ {
		list = append(list, h)
	}
	for h := own - 1; h >= HashSHA256; h-- {
		list = append(list, h)
	}
	return list
}

// Method returns the Auth Method octet of the AUTH payload.
func (s SignatureScheme) Method() uint8 { return s.method }

// Hash returns the hash algorithm of RFC 7427.
func (s SignatureScheme) Hash() uint16 { return s.alg.hash }

// String returns "ECDSA with SHA2-384 (method 14)".
func (s SignatureScheme) String() string {
	return s.alg.kind.String() + " with " + HashName(s.alg.hash) + " (method " + strconv.Itoa(int(s.method)) + ")"
}

// SignRequest returns what is given to crypto.Signer.Sign for the octets of AUTH (SignedOctets):
// the digest with its hash or PSS options, or for Ed25519 the octets themselves. The options tell
// the two apart as everywhere: opts.HashFunc() is zero for a message.
func (s SignatureScheme) SignRequest(octets []byte) (digestOrMessage []byte, opts crypto.SignerOpts) {
	h, ok := cryptoHash(s.alg.hash)
	if !ok {
		return octets, crypto.Hash(0)
	}
	d := digest(h, octets)
	if s.alg.kind == sigPSS {
		return d, &rsa.PSSOptions{SaltLength: h.Size(), Hash: h}
	}
	return d, h
}

// Wrap turns what crypto.Signer.Sign returned into the data of the AUTH payload: for method 14
// the AlgorithmIdentifier is put in front, for methods 9 to 11 the DER signature becomes r | s.
// Errors wrap ErrSignature. A caller that wants to be sure of its token verifies the result with
// VerifySignature before sending it.
func (s SignatureScheme) Wrap(signature []byte) ([]byte, error) {
	switch s.method {
	case AuthDigitalSignature:
		id, ok := canonicalIDs[s.alg]
		if !ok {
			return nil, wrap(ErrAuthMethod, "%s", s)
		}
		if len(signature) == 0 {
			return nil, wrap(ErrSignature, "the signer returned nothing")
		}
		return concat([]byte{byte(len(id))}, []byte(id), signature), nil
	case AuthECDSA256, AuthECDSA384, AuthECDSA521:
		return rawECDSA(signature, s.size)
	}
	return nil, wrap(ErrAuthMethod, "scheme with method %d was not made by ChooseSignature", s.method)
}

// VerifySignature verifies the data of a peer's AUTH payload over octets (SignedOctets) with the
// key of its certificate. allowed are the hashes that we announced (SignatureHashes). Errors
// wrap ErrPublicKey, ErrAuthMethod or ErrSignature.
func VerifySignature(pub crypto.PublicKey, method uint8, authData, octets []byte, allowed []uint16) error {
	_, err := verify(pub, method, authData, octets, allowed)
	return err
}

// DescribeAuth names method and algorithm of a peer's AUTH payload, for logs.
func DescribeAuth(method uint8, authData []byte) string {
	switch method {
	case AuthPSK:
		return "pre-shared key"
	case AuthRSA:
		return "RSA (method 1)"
	case AuthECDSA256, AuthECDSA384, AuthECDSA521:
		return classicByMethod(method).String()
	case AuthNull:
		return "NULL"
	case AuthDigitalSignature:
		a, _, err := splitAuthData(authData)
		if err != nil {
			return "unknown signature algorithm (method 14)"
		}
		return SignatureScheme{method: method, alg: a}.String()
	}
	return "method " + strconv.Itoa(int(method))
}

func verify(pub crypto.PublicKey, method uint8, authData, octets []byte, allowed []uint16) (SignatureScheme, error) {
	if err := CheckPublicKey(pub); err != nil {
		return SignatureScheme{}, err
	}
	s := SignatureScheme{method: method}
	signature := authData
	switch method {
	case AuthDigitalSignature:
		var err error
		if s.alg, signature, err = splitAuthData(authData); err != nil {
			return s, err
		}
	case AuthECDSA256, AuthECDSA384, AuthECDSA521:
		s = classicByMethod(method)
	case AuthRSA:
		return s, wrap(ErrAuthMethod, "method 1 (RSA) comes with SHA-1; the peer must use method 14 (RFC 7427)")
	default:
		return s, wrap(ErrAuthMethod, "method %d is not a signature; expected %d (digital signature)", method, AuthDigitalSignature)
	}
	if !slices.Contains(allowed, s.alg.hash) {
		return s, wrap(ErrAuthMethod, "signed with %s; allowed are %s", HashName(s.alg.hash), hashNames(allowed))
	}
	mismatched := func() error {
		return wrap(ErrAuthMethod, "signed as %s, but the certificate has an %s key", s, keyName(pub))
	}
	bad := wrap(ErrSignature, "%s", s)
	h, _ := cryptoHash(s.alg.hash)
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if s.alg.kind != sigECDSA {
			return s, mismatched()
		}
		if method != AuthDigitalSignature {
			own, _ := classicScheme(k.Curve)
			if own != s {
				return s, mismatched()
			}
			der, ok := derECDSA(signature, s.size)
			if !ok {
				return s, wrap(ErrSignature, "%s: %d octets, expected %d", s, len(signature), 2*s.size)
			}
			signature = der
		}
		// VerifyASN1 takes strict DER only and refuses r or s outside of 1 to n-1.
		if !ecdsa.VerifyASN1(k, digest(h, octets), signature) {
			return s, bad
		}
	case *rsa.PublicKey:
		switch s.alg.kind {
		case sigPSS:
			// The salt length is fixed, never found out from the signature.
			if rsa.VerifyPSS(k, h, digest(h, octets), signature, &rsa.PSSOptions{SaltLength: h.Size(), Hash: h}) != nil {
				return s, bad
			}
		case sigPKCS1:
			if rsa.VerifyPKCS1v15(k, h, digest(h, octets), signature) != nil {
				return s, bad
			}
		default:
			return s, mismatched()
		}
	case ed25519.PublicKey:
		if s.alg.kind != sigEd25519 {
			return s, mismatched()
		}
		if !ed25519.Verify(k, octets, signature) {
			return s, bad
		}
	}
	return s, nil
}

// RSA key sizes in bits: below, a key is too weak; above, verification is a way to keep us busy.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// CheckPublicKey says whether a key may be used for AUTH: ECDSA on P-256, P-384 or P-521, RSA of
// 2048 to 8192 bits with an odd exponent of 3 or more, Ed25519. Errors wrap ErrPublicKey.
func CheckPublicKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k == nil || k.Curve == nil || curveHash(k.Curve) == 0 {
			return wrap(ErrPublicKey, "ECDSA key on another curve; expected P-256, P-384 or P-521")
		}
		if !onCurve(k) {
			return wrap(ErrPublicKey, "ECDSA key is not a point of %s", k.Curve.Params().Name)
		}
		return nil
	case *rsa.PublicKey:
		if k == nil || k.N == nil {
			return wrap(ErrPublicKey, "RSA key without modulus")
		}
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return wrap(ErrPublicKey, "RSA key of %d bits; expected %d to %d", n, minRSABits, maxRSABits)
		}
		if k.N.Sign() < 0 || k.N.Bit(0) == 0 {
			return wrap(ErrPublicKey, "RSA modulus is even or negative")
		}
		if k.E < 3 || k.E%2 == 0 || int64(k.E) > 1<<33 {
			return wrap(ErrPublicKey, "RSA exponent %d; expected an odd one from 3 to 2^33", k.E)
		}
		return nil
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return wrap(ErrPublicKey, "Ed25519 key of %d octets; expected %d", len(k), ed25519.PublicKeySize)
		}
		return nil
	}
	return wrap(ErrPublicKey, "key of type %T; expected ECDSA (P-256, P-384, P-521), RSA or Ed25519", pub)
}

func onCurve(k *ecdsa.PublicKey) bool {
	// A key made by hand may lack its coordinates, and ECDH would panic. There is no other way to
	// look at them than the fields that Go 1.26 deprecates.
	//lint:ignore SA1019 see above
	if k.X == nil || k.Y == nil || k.X.Sign() < 0 || k.Y.Sign() < 0 { //nolint:staticcheck // see above
		return false
	}
	_, err := k.ECDH()
	return err == nil
}

// curveHash is the hash of a curve's strength (RFC 4754, section 3), 0 for other curves.
func curveHash(c elliptic.Curve) uint16 {
	switch c {
	case elliptic.P256():
		return HashSHA256
	case elliptic.P384():
		return HashSHA384
	case elliptic.P521():
		return HashSHA512
	}
	return 0
}

// classicScheme is the authentication method of RFC 4754 for a curve.
func classicScheme(c elliptic.Curve) (SignatureScheme, bool) {
	switch c {
	case elliptic.P256():
		return classicByMethod(AuthECDSA256), true
	case elliptic.P384():
		return classicByMethod(AuthECDSA384), true
	case elliptic.P521():
		return classicByMethod(AuthECDSA521), true
	}
	return SignatureScheme{}, false
}

func classicByMethod(method uint8) SignatureScheme {
	switch method {
	case AuthECDSA256:
		return SignatureScheme{method, sigAlg{sigECDSA, HashSHA256}, 32}
	case AuthECDSA384:
		return SignatureScheme{method, sigAlg{sigECDSA, HashSHA384}, 48}
	}
	return SignatureScheme{AuthECDSA521, sigAlg{sigECDSA, HashSHA512}, 66}
}

// rawECDSA turns a DER signature into r | s of size octets each (RFC 4754, section 7).
func rawECDSA(der []byte, size int) ([]byte, error) {
	var r, s big.Int
	var seq cryptobyte.String
	in := cryptobyte.String(der)
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() || !seq.ReadASN1Integer(&r) || !seq.ReadASN1Integer(&s) || !seq.Empty() ||
		r.Sign() <= 0 || s.Sign() <= 0 || r.BitLen() > 8*size || s.BitLen() > 8*size {
		return nil, wrap(ErrSignature, "the signer returned %d octets that are no ECDSA signature in DER", len(der))
	}
	out := make([]byte, 2*size)
	r.FillBytes(out[:size])
	s.FillBytes(out[size:])
	return out, nil
}

// derECDSA is the inverse of rawECDSA.
func derECDSA(raw []byte, size int) ([]byte, bool) {
	if len(raw) != 2*size {
		return nil, false
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[:size]))
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[size:]))
	})
	der, err := b.Bytes()
	return der, err == nil
}

func digest(h crypto.Hash, octets []byte) []byte {
	d := h.New()
	d.Write(octets)
	return d.Sum(nil)
}

func keyName(pub crypto.PublicKey) string {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case *rsa.PublicKey:
		return "RSA " + strconv.Itoa(k.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return "unknown"
}

func hashNames(ids []uint16) string {
	if len(ids) == 0 {
		return "none"
	}
	var b strings.Builder
	for i, id := range ids {
		if i == 10 {
			b.WriteString(" and more")
			break
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(HashName(id))
	}
	return b.String()
}

func itoa(n uint16) string { return strconv.Itoa(int(n)) }
