package issue

import (
	"bytes"
	"context"
	"crypto"
	_ "crypto/sha1" //nolint:gosec // names issuers in OCSP requests, signs nothing
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"wardgate/internal/certs"
)

// Written by hand because golang.org/x/crypto/ocsp has neither nonces nor Ed25519 and reads the
// clock. The tests read our answers with it and with openssl.

// Bounds on a request.
const (
	MaxOCSPBytes    = 4 << 10 // octets of DER
	maxOCSPRequests = 8       // certificates asked for in one request
	// RFC 9654, section 2.1: a nonce has 1 to 128 octets; one of more than 32 may be ignored.
	maxNonce     = 128
	maxNonceEcho = 32
)

var (
	oidOCSPBasic = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	oidOCSPNonce = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
)

// ocspHashes are the hashes by which a request may name the issuer (RFC 6960, section 4.1.1).
var ocspHashes = []struct {
	hash crypto.Hash
	oid  asn1.ObjectIdentifier
}{
	{crypto.SHA1, asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}},
	{crypto.SHA256, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}},
	{crypto.SHA384, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}},
	{crypto.SHA512, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}},
}

// ocspNames are the hashes of an issuer's name and key, by place in ocspHashes.
type ocspNames [4]struct{ name, key []byte }

func namesForOCSP(ca *x509.Certificate) (ocspNames, error) {
	var n ocspNames
	spki := cryptobyte.String(ca.RawSubjectPublicKeyInfo)
	var seq cryptobyte.String
	var key []byte
	if !spki.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.SkipASN1(cbasn1.SEQUENCE) || !seq.ReadASN1BitStringAsBytes(&key) {
		return n, fmt.Errorf("%w: its public key cannot be read", ErrCA)
	}
	for i, h := range ocspHashes {
		sum := func(b []byte) []byte { d := h.hash.New(); d.Write(b); return d.Sum(nil) }
		n[i].name, n[i].key = sum(ca.RawSubject), sum(key)
	}
	return n, nil
}

// certID names one certificate in a request; raw is echoed in the answer.
type certID struct {
	raw       []byte
	hash      int // place in ocspHashes
	name, key []byte
	serial    *big.Int
}

type ocspRequest struct {
	ids   []certID
	nonce []byte // the extension's value as it came, or nil
}

// parseOCSP parses a request (RFC 6960, section 4.1.1; DER, strict). Signatures on requests are
// not asked for and not looked at. Errors are ErrMalformed.
func parseOCSP(der []byte) (*ocspRequest, error) {
	bad := func(got string) (*ocspRequest, error) {
		return nil, fmt.Errorf("%w: expected an OCSPRequest (RFC 6960), got %s", ErrMalformed, got)
	}
	if len(der) > MaxOCSPBytes {
		return bad(fmt.Sprintf("%d octets, at most %d are read", len(der), MaxOCSPBytes))
	}
	s := cryptobyte.String(der)
	var outer, tbs, list, exts cryptobyte.String
	var has bool
	explicit := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }
	if !s.ReadASN1(&outer, cbasn1.SEQUENCE) || !s.Empty() || !outer.ReadASN1(&tbs, cbasn1.SEQUENCE) || !outer.SkipOptionalASN1(explicit(0)) || !outer.Empty() {
		return bad("something else")
	}
	if !tbs.SkipOptionalASN1(explicit(0)) || !tbs.SkipOptionalASN1(explicit(1)) || !tbs.ReadASN1(&list, cbasn1.SEQUENCE) || !tbs.ReadOptionalASN1(&exts, &has, explicit(2)) || !tbs.Empty() {
		return bad("a malformed tbsRequest")
	}
	r := &ocspRequest{}
	for !list.Empty() {
		var one, id, alg, name, key, oidRest cryptobyte.String
		var raw cryptobyte.String
		if len(r.ids) == maxOCSPRequests {
			return bad(fmt.Sprintf("more than %d certificates", maxOCSPRequests))
		}
		if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1Element(&raw, cbasn1.SEQUENCE) || !one.SkipOptionalASN1(explicit(0)) || !one.Empty() {
			return bad("a malformed request in the list")
		}
		c := certID{raw: raw, hash: -1, serial: new(big.Int)}
		in := raw
		var oid asn1.ObjectIdentifier
		if !in.ReadASN1(&id, cbasn1.SEQUENCE) || !id.ReadASN1(&alg, cbasn1.SEQUENCE) || !alg.ReadASN1ObjectIdentifier(&oid) ||
			!id.ReadASN1(&name, cbasn1.OCTET_STRING) || !id.ReadASN1(&key, cbasn1.OCTET_STRING) || !id.ReadASN1Integer(c.serial) || !id.Empty() {
			return bad("a malformed CertID")
		}
		if !alg.Empty() && (!alg.ReadASN1(&oidRest, cbasn1.NULL) || !oidRest.Empty() || !alg.Empty()) {
			return bad("a hash algorithm with parameters")
		}
		for i, h := range ocspHashes {
			if h.oid.Equal(oid) {
				c.hash = i
			}
		}
		c.name, c.key = name, key
		r.ids = append(r.ids, c)
	}
	if len(r.ids) == 0 {
		return bad("no certificate asked for")
	}
	if has {
		var seq cryptobyte.String
		if !exts.ReadASN1(&seq, cbasn1.SEQUENCE) || !exts.Empty() {
			return bad("malformed extensions")
		}
		for !seq.Empty() {
			var e, value cryptobyte.String
			var oid asn1.ObjectIdentifier
			var critical bool
			if !seq.ReadASN1(&e, cbasn1.SEQUENCE) || !e.ReadASN1ObjectIdentifier(&oid) || !e.ReadOptionalASN1Boolean(&critical, cbasn1.BOOLEAN, false) ||
				!e.ReadASN1(&value, cbasn1.OCTET_STRING) || !e.Empty() {
				return bad("a malformed extension")
			}
			if !oid.Equal(oidOCSPNonce) {
				if critical {
					return bad("the critical extension " + oid.String() + ", which is not understood")
				}
				continue
			}
			nonce := value
			var octets cryptobyte.String
			if r.nonce != nil || !nonce.ReadASN1(&octets, cbasn1.OCTET_STRING) || !nonce.Empty() || len(octets) == 0 || len(octets) > maxNonce {
				return bad(fmt.Sprintf("a nonce that is not one OCTET STRING of 1 to %d octets (RFC 9654)", maxNonce))
			}
			if len(octets) <= maxNonceEcho {
				r.nonce = value
			}
		}
	}
	return r, nil
}

// status is what a responder says of one certificate.
type status struct {
	known     bool      // was issued here
	revokedAt time.Time // zero: good
	ends      time.Time // when it will be revoked; zero: not known to be
	reason    int
}

// OCSPAnswer is a signed answer.
type OCSPAnswer struct {
	DER        []byte
	ThisUpdate time.Time
	NextUpdate time.Time
	Nonce      bool // the answer carries the request's nonce: nobody else can use it
}

// AnswerOCSP answers an OCSP request about certificates of this service. All certificates of one
// request must be by the same CA, which signs the answer itself: no key but the CA's own may
// speak for it. Errors are ErrMalformed and ErrUnknownCA, and those of the recorder and the signer;
// [OCSPError] makes answers of them.
func (s *Service) AnswerOCSP(ctx context.Context, der []byte, now time.Time, life time.Duration) (*OCSPAnswer, error) {
	r, err := parseOCSP(der)
	if err != nil {
		return nil, err
	}
	return s.answerOCSP(ctx, r, now, life)
}

func (s *Service) answerOCSP(ctx context.Context, r *ocspRequest, now time.Time, life time.Duration) (*OCSPAnswer, error) {
	g := s.cas.Load()
	i := g.find(r.ids)
	if i < 0 {
		return nil, fmt.Errorf("%w: expected certificates by one CA of service %s", ErrUnknownCA, s.cfg.Name)
	}
	ca := g.list[i]
	this := now.UTC().Truncate(time.Second) // GeneralizedTime has no fractions (RFC 5280, section 4.1.2.5.2)
	next := this.Add(life)
	states := make([]status, len(r.ids))
	for j := range r.ids {
		var err error
		if states[j], err = s.status(ctx, ca, r.ids[j].serial, now); err != nil {
			return nil, err
		}
		if end := states[j].ends; !end.IsZero() && end.Before(next) {
			next = end // no answer tells longer than it is true
		}
	}
	var singles cryptobyte.Builder
	singles.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for j := range r.ids {
			single(b, r.ids[j].raw, states[j], this, next)
		}
	})
	responses, err := singles.Bytes()
	if err != nil {
		return nil, err
	}
	out, err := s.signOCSP(ca, responses, r.nonce, this)
	if err != nil {
		return nil, err
	}
	return &OCSPAnswer{DER: out, ThisUpdate: this, NextUpdate: next, Nonce: r.nonce != nil}, nil
}

// find returns the place of the CA that all ids name, or -1.
func (g *generations) find(ids []certID) int {
	for i := range g.list {
		all := true
		for j := range ids {
			h := ids[j].hash
			all = all && h >= 0 && bytes.Equal(ids[j].name, g.ocsp[i][h].name) && bytes.Equal(ids[j].key, g.ocsp[i][h].key)
		}
		if all {
			return i
		}
	}
	return -1
}

func (s *Service) status(ctx context.Context, ca *CA, serial *big.Int, now time.Time) (status, error) {
	rec, err := s.cfg.Recorder.Find(ctx, s.cfg.Name, KeyID(ca.Cert), SerialText(serial))
	switch {
	case errors.Is(err, ErrNotIssued):
		return status{}, nil
	case err != nil:
		return status{}, err
	}
	if !rec.Revoked(now) {
		return status{known: true, ends: rec.RevokedAt}, nil
	}
	return status{known: true, revokedAt: rec.RevokedAt, reason: rec.Reason}, nil
}

const generalizedTime = "20060102150405Z"

func addTime(b *cryptobyte.Builder, t time.Time) {
	b.AddASN1(cbasn1.GeneralizedTime, func(b *cryptobyte.Builder) { b.AddBytes([]byte(t.UTC().Format(generalizedTime))) })
}

// single appends a SingleResponse (RFC 6960, section 4.2.1).
func single(b *cryptobyte.Builder, id []byte, st status, now, next time.Time) {
	explicit := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(id)
		switch {
		case !st.known:
			b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(*cryptobyte.Builder) {}) // unknown
		case st.revokedAt.IsZero():
			b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {}) // good
		default:
			b.AddASN1(explicit(1), func(b *cryptobyte.Builder) {
				addTime(b, st.revokedAt)
				if st.reason != 0 {
					b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(st.reason)) })
				}
			})
		}
		addTime(b, now)
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { addTime(b, next) })
	})
}

func (s *Service) signOCSP(ca *CA, responses, nonce []byte, now time.Time) ([]byte, error) {
	explicit := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }
	var tbs cryptobyte.Builder
	tbs.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(explicit(1), func(b *cryptobyte.Builder) { b.AddBytes(ca.Cert.RawSubject) }) // responderID byName
		addTime(b, now)
		b.AddBytes(responses)
		if nonce == nil {
			return
		}
		b.AddASN1(explicit(1), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidOCSPNonce)
					b.AddASN1OctetString(nonce)
				})
			})
		})
	})
	data, err := tbs.Bytes()
	if err != nil {
		return nil, fmt.Errorf("OCSP answer: %w", err)
	}
	alg, hash, err := algorithmFor(ca.Key.Public())
	if err != nil {
		return nil, err
	}
	digest := data
	if hash != 0 {
		h := hash.New()
		h.Write(data)
		digest = h.Sum(nil)
	}
	sig, err := ca.Key.Sign(s.cfg.Rand, digest, hash)
	if err != nil {
		return nil, fmt.Errorf("signing the OCSP answer: %w", err)
	}
	var basic cryptobyte.Builder
	basic.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(data)
		b.AddBytes(alg)
		b.AddASN1BitString(sig)
	})
	inner, err := basic.Bytes()
	if err != nil {
		return nil, fmt.Errorf("OCSP answer: %w", err)
	}
	var out cryptobyte.Builder
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Enum(0) // successful
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidOCSPBasic)
				b.AddASN1OctetString(inner)
			})
		})
	})
	return out.Bytes()
}

// algorithmFor returns the AlgorithmIdentifier that a CA's key signs with, and the hash.
func algorithmFor(pub crypto.PublicKey) ([]byte, crypto.Hash, error) {
	var oid asn1.ObjectIdentifier
	var hash crypto.Hash
	var null bool
	switch name := certs.KeyName(pub); {
	case name == "ECDSA P-256":
		oid, hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, crypto.SHA256
	case name == "ECDSA P-384":
		oid, hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, crypto.SHA384
	case name == "ECDSA P-521":
		oid, hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, crypto.SHA512
	case name == "Ed25519":
		oid = asn1.ObjectIdentifier{1, 3, 101, 112}
	case len(name) > 4 && name[:4] == "RSA ":
		oid, hash, null = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, crypto.SHA256, true
	default:
		return nil, 0, fmt.Errorf("%w: expected an ECDSA, RSA or Ed25519 key, got %s", ErrCA, name)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if null {
			b.AddASN1NULL()
		}
	})
	der, err := b.Bytes()
	return der, hash, err
}

// OCSPError returns the unsigned answer for an error of [Service.AnswerOCSP] (RFC 6960, section
// 2.3): malformedRequest, unauthorized (RFC 5019, section 2.2.3: no such CA here), tryLater when
// the time ran out, internalError.
func OCSPError(err error) []byte {
	code := byte(2)
	switch {
	case errors.Is(err, ErrMalformed):
		code = 1
	case errors.Is(err, ErrUnknownCA):
		code = 6
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, errBusy), errors.Is(err, ErrUnavailable):
		code = 3
	}
	return []byte{0x30, 0x03, 0x0a, 0x01, code}
}

var errBusy = errors.New("more OCSP requests than the responder signs answers for")
