package policy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"wardgate/internal/certs"
)

// MediaType is the typ of a policy file's JWS header (RFC 7515, section 4.1.9): it keeps a
// signature made for something else from being taken for a policy.
const MediaType = "wardgate-policy+jws"

// algorithms are the allowed ones (RFC 7518, section 3.1; RFC 8037), strongest reason to be
// here first. No "none", no HMAC, no RSASSA-PKCS1-v1_5: the list is what is accepted, not what
// is refused.
var algorithms = []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.EdDSA, jose.PS256}

func algorithmNames() string {
	names := make([]string, len(algorithms))
	for i, a := range algorithms {
		names[i] = string(a)
	}
	return strings.Join(names, ", ")
}

// maxChainCertificates bounds x5c: the leaf and what certs.VerifyChain takes beside it.
const maxChainCertificates = 1 + certs.MaxIntermediates

// header is the protected header: these members and no others. A "crit" is refused like any
// unknown member, which is what RFC 7515, section 4.1.11 asks of someone who understands no
// extension; so are "jwk", "jku" and "x5u", which would let the file bring its own key.
type header struct {
	Alg string   `json:"alg"`
	Typ string   `json:"typ"`
	X5C []string `json:"x5c"`
}

// envelope is a policy file taken apart, not yet believed.
type envelope struct {
	compact string
	alg     jose.SignatureAlgorithm
	chain   [][]byte // DER, leaf first
	payload []byte
}

func badFormat(expected, came string, err error) error {
	return &RefusedError{Kind: ErrFormat, Expected: expected, Came: came, Do: "fetch the file again from the service provider", Err: err}
}

// base64url decodes one part of a compact JWS. encoding/base64 skips line breaks, and without
// Strict takes several texts for the same bytes; neither is a JWS (RFC 7515, section 2).
func base64url(part string) ([]byte, error) {
	if strings.ContainsAny(part, "\r\n") {
		return nil, errors.New("line break within base64url")
	}
	return base64.RawURLEncoding.Strict().DecodeString(part)
}

// open takes a policy file apart.
func open(file []byte) (*envelope, error) {
	if len(file) > MaxFileSize {
		return nil, &RefusedError{
			Kind: ErrTooLarge, Expected: fmt.Sprintf("at most %d bytes", MaxFileSize),
			Came: fmt.Sprintf("%d bytes", len(file)), Do: "check that this is the right file",
		}
	}
	// A file carried by hand may have got a line end.
	compact := string(bytes.TrimSpace(file))
	const form = "a JWS in compact serialization: three parts of base64url with points between them (RFC 7515)"
	parts := strings.SplitN(compact, ".", 4)
	if len(parts) != 3 {
		came := fmt.Sprintf("%d parts", len(parts))
		switch {
		case compact == "":
			came = "an empty file"
		case compact[0] == '{':
			came = "a JSON object: perhaps a policy that was not signed"
		case len(parts) > 3:
			came = "more than three parts"
		}
		return nil, badFormat(form, came, nil)
	}
	var decoded [3][]byte
	for i, name := range []string{"header", "payload", "signature"} {
		b, err := base64url(parts[i])
		if err != nil {
			return nil, badFormat(form, "a "+name+" that is not base64url", err)
		}
		if len(b) == 0 {
			return nil, badFormat(form, "an empty "+name, nil)
		}
		decoded[i] = b
	}
	root, err := parseTree(decoded[0])
	if err != nil {
		return nil, badFormat("a JSON object as header", "something else", err)
	}
	var h header
	d := decoder{data: decoded[0]}
	d.decode(&root, reflect.ValueOf(&h).Elem(), &path{})
	if err := d.faults.err(ErrFormat); err != nil {
		return nil, badFormat("a header with alg, typ and x5c and nothing else", "another one", err)
	}
	if h.Typ != MediaType {
		return nil, badFormat(fmt.Sprintf("typ %q", MediaType), certs.Quote(h.Typ), nil)
	}
	env := &envelope{compact: compact, payload: decoded[1]}
	for _, a := range algorithms {
		if h.Alg == string(a) {
			env.alg = a
		}
	}
	if env.alg == "" {
		return nil, &RefusedError{Kind: ErrAlgorithm, Expected: "one of " + algorithmNames(), Came: certs.Quote(h.Alg), Do: "the issuer must sign with one of these"}
	}
	if len(h.X5C) == 0 || len(h.X5C) > maxChainCertificates {
		return nil, badFormat(fmt.Sprintf("1 to %d certificates in x5c", maxChainCertificates), fmt.Sprint(len(h.X5C)), nil)
	}
	for i, c := range h.X5C {
		der, err := base64.StdEncoding.Strict().DecodeString(c) // RFC 7515, section 4.1.6: not base64url
		if err != nil || strings.ContainsAny(c, "\r\n") {
			return nil, badFormat("base64 (not base64url) in x5c", fmt.Sprintf("something else at place %d", i), err)
		}
		env.chain = append(env.chain, der)
	}
	return env, nil
}

// keyFits reports whether a public key is of the kind that alg signs with.
func keyFits(alg jose.SignatureAlgorithm, pub crypto.PublicKey) bool {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return alg == jose.ES256 && k.Curve == elliptic.P256() || alg == jose.ES384 && k.Curve == elliptic.P384()
	case *rsa.PublicKey:
		return alg == jose.PS256
	case ed25519.PublicKey:
		return alg == jose.EdDSA
	}
	return false
}

// verifySigner judges the signer's chain.
func (env *envelope) verifySigner(anchors []*x509.Certificate, crls []*x509.RevocationList, at time.Time) (*x509.Certificate, error) {
	v, err := certs.VerifyChain(certs.Options{
		Leaf: env.chain[0], Intermediates: env.chain[1:], Anchors: anchors, CRLs: crls,
		EKU: certs.EKUPolicySigning, At: at, Role: "policy signer",
	})
	if err == nil {
		return v.Leaf, nil
	}
	kind := ErrSigner
	//nolint:exhaustive // the other classes are all "not trusted"
	switch certs.ClassOf(err) {
	case certs.WrongEKU, certs.KeyUsage:
		kind = ErrSignerEKU
	case certs.Expired, certs.NotYetValid:
		kind = ErrSignerValidity
	case certs.Revoked:
		kind = ErrSignerRevoked
	}
	return nil, &RefusedError{
		Kind: kind, Expected: "a policy signer that this device trusts", Came: "one that it does not",
		Do: "have the service provider sign with its policy-signing certificate, or correct the anchors in this device's configuration", Err: err,
	}
}

// verifySignature checks the signature with the signer's key.
func (env *envelope) verifySignature(signer *x509.Certificate) error {
	if !keyFits(env.alg, signer.PublicKey) {
		return &RefusedError{
			Kind: ErrSignature, Expected: "a signature with " + string(env.alg), Came: "a signer's key of another kind: " + certs.KeyName(signer.PublicKey),
			Do: "the issuer must sign with the key of the certificate that it sends",
		}
	}
	const do = "the file was changed after it was signed: fetch it again, and find out who changed it"
	obj, err := jose.ParseSignedCompact(env.compact, algorithms)
	if err != nil {
		return badFormat("a JWS", "something that go-jose does not take", err)
	}
	payload, err := obj.Verify(signer.PublicKey)
	if err != nil {
		return &RefusedError{Kind: ErrSignature, Expected: "a signature by " + certs.SubjectOf(signer), Came: "one that does not verify", Do: do, Err: err}
	}
	if !bytes.Equal(payload, env.payload) {
		return &RefusedError{Kind: ErrSignature, Expected: "the payload that was signed", Came: "another one", Do: do}
	}
	return nil
}

// Inspect reads a policy file without verifying anything, for display only: what it returns may
// have been written by anybody. The chain is the certificates as sent, leaf first. Errors:
// ErrTooLarge, ErrFormat, ErrAlgorithm, ErrSyntax.
func Inspect(file []byte) (doc *Document, chain []*x509.Certificate, err error) {
	env, err := open(file)
	if err != nil {
		return nil, nil, err
	}
	for _, der := range env.chain {
		c, err := certs.ParseCertificate(der)
		if err != nil {
			return nil, nil, badFormat("certificates in x5c", "something else", err)
		}
		chain = append(chain, c)
	}
	doc, err = Parse(env.payload)
	return doc, chain, err
}

// algorithmFor picks the algorithm for a key.
func algorithmFor(pub crypto.PublicKey) (jose.SignatureAlgorithm, bool) {
	for _, a := range algorithms {
		if keyFits(a, pub) {
			return a, true
		}
	}
	return "", false
}

// SignPayload signs a payload as it is, unchecked: for tests that need a bad policy, and for
// tools that made the payload themselves. Sign is what a service provider wants. chain is the
// signer's certificate and the ones between it and the anchor, leaf first.
func SignPayload(payload []byte, signer crypto.Signer, chain []*x509.Certificate) ([]byte, error) {
	if signer == nil || len(chain) == 0 {
		return nil, fmt.Errorf("%w: expected a signer and its certificate, came none", ErrOptions)
	}
	if len(chain) > maxChainCertificates {
		return nil, fmt.Errorf("%w: expected at most %d certificates, came %d", ErrOptions, maxChainCertificates, len(chain))
	}
	if !certs.SamePublicKey(signer.Public(), chain[0].PublicKey) {
		return nil, fmt.Errorf("%w: expected the certificate of the signing key (%s), came that of another: %s",
			ErrOptions, certs.KeyName(signer.Public()), certs.SubjectOf(chain[0]))
	}
	alg, ok := algorithmFor(signer.Public())
	if !ok {
		return nil, &RefusedError{
			Kind: ErrAlgorithm, Expected: "a key for one of " + algorithmNames(), Came: certs.KeyName(signer.Public()),
			Do: "sign with an ECDSA P-256 or P-384, Ed25519 or RSA key",
		}
	}
	x5c := make([]string, len(chain))
	for i, c := range chain {
		x5c[i] = base64.StdEncoding.EncodeToString(c.Raw)
	}
	s, err := jose.NewSigner(
		jose.SigningKey{Algorithm: alg, Key: &opaqueSigner{signer, alg}},
		(&jose.SignerOptions{}).WithType(MediaType).WithHeader("x5c", x5c),
	)
	if err != nil {
		return nil, fmt.Errorf("policy: signing: %w", err)
	}
	obj, err := s.Sign(payload)
	if err != nil {
		return nil, fmt.Errorf("policy: signing: %w", err)
	}
	out, err := obj.CompactSerialize()
	if err != nil {
		return nil, fmt.Errorf("policy: signing: %w", err)
	}
	if len(out) > MaxFileSize {
		return nil, &RefusedError{Kind: ErrTooLarge, Expected: fmt.Sprintf("at most %d bytes", MaxFileSize), Came: fmt.Sprintf("%d bytes", len(out)), Do: "shorten the policy"}
	}
	return []byte(out), nil
}

// opaqueSigner lets go-jose sign with any crypto.Signer, one on a token included.
type opaqueSigner struct {
	signer crypto.Signer
	alg    jose.SignatureAlgorithm
}

// Public returns nil: with a key, go-jose would add a "jwk" to the header.
func (o *opaqueSigner) Public() *jose.JSONWebKey { return nil }

// Algs implements jose.OpaqueSigner.
func (o *opaqueSigner) Algs() []jose.SignatureAlgorithm { return []jose.SignatureAlgorithm{o.alg} }

// SignPayload implements jose.OpaqueSigner. Randomness is an input of this package, and none is
// needed: a nil source makes ECDSA deterministic (RFC 6979), and the salt of PSS may be derived
// from what is signed (RFC 8017, section 9.1: security does not hang on it). A token uses its own.
func (o *opaqueSigner) SignPayload(payload []byte, alg jose.SignatureAlgorithm) ([]byte, error) {
	//nolint:exhaustive // the others are not in algorithms
	switch alg {
	case jose.EdDSA:
		return o.signer.Sign(nil, payload, crypto.Hash(0))
	case jose.PS256:
		sum := sha256.Sum256(payload)
		return o.signer.Sign(&saltReader{seed: sum}, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	case jose.ES256:
		return o.signECDSA(payload, crypto.SHA256, 32)
	case jose.ES384:
		return o.signECDSA(payload, crypto.SHA384, 48)
	}
	return nil, jose.ErrUnsupportedAlgorithm
}

// signECDSA turns the signature of a crypto.Signer, an ASN.1 sequence, into the two integers of
// fixed size that RFC 7518, section 3.4 asks for.
func (o *opaqueSigner) signECDSA(payload []byte, hash crypto.Hash, size int) ([]byte, error) {
	h := hash.New()
	h.Write(payload)
	der, err := o.signer.Sign(nil, h.Sum(nil), hash)
	if err != nil {
		return nil, err
	}
	var r, s big.Int
	var seq cryptobyte.String
	in := cryptobyte.String(der)
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() || !seq.ReadASN1Integer(&r) || !seq.ReadASN1Integer(&s) || !seq.Empty() ||
		r.Sign() <= 0 || s.Sign() <= 0 || r.BitLen() > size*8 || s.BitLen() > size*8 {
		return nil, errors.New("the signer returned something that is no ECDSA signature")
	}
	out := make([]byte, 2*size)
	r.FillBytes(out[:size])
	s.FillBytes(out[size:])
	return out, nil
}

// saltReader gives bytes derived from the message: SHA-256(seed | counter).
type saltReader struct {
	seed [32]byte
	n    uint64
	left []byte
}

// Read implements io.Reader.
func (r *saltReader) Read(p []byte) (int, error) {
	if len(r.left) == 0 {
		r.n++
		sum := sha256.Sum256(binary.BigEndian.AppendUint64(r.seed[:], r.n))
		r.left = sum[:]
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}
