package issue

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"math/big"
	"time"
)

// Record is one certificate that was issued.
type Record struct {
	Service string   // the service's name
	Issuer  string   // the issuing CA's key identifier, see [KeyID]
	Serial  string   // lower-case hexadecimal, see [SerialText]
	Device  string   // the device's name in the registry
	Key     [32]byte // SHA-256 of the subject's public key (SubjectPublicKeyInfo)
	DER     []byte

	NotBefore, NotAfter time.Time
	Issued              time.Time // when; NotBefore lies somewhat earlier

	// Replaces is the serial number of the certificate for the same key that this one takes the
	// place of (a renewal without a new key); empty for a new key. What is replaced is not
	// revoked: it merely is no longer the one that a repeated request is answered with.
	Replaces string

	// RevokedAt is when it ends before its time; zero: it does not. It may lie ahead: a certificate
	// whose device has a newer one stays good for the time that the change takes.
	RevokedAt time.Time
	Reason    int // CRLReason, RFC 5280, section 5.3.1
}

// Revoked reports whether the certificate is revoked at now.
func (r *Record) Revoked(now time.Time) bool {
	return !r.RevokedAt.IsZero() && !now.Before(r.RevokedAt)
}

// Recorder keeps what was issued. Each method is one transaction; two instances of the centre may
// call it at the same time.
type Recorder interface {
	// Add records a certificate before it is handed out. ErrDuplicate: the key has a
	// certificate that is neither expired at r.NotBefore nor revoked, replaced, or the one named in
	// r.Replaces.
	Add(ctx context.Context, r Record) error
	// Find returns the record of a serial number; ErrNotIssued when there is none.
	Find(ctx context.Context, service, issuer, serial string) (Record, error)
	// FindKey returns the newest record for a public key in a service; ErrNotIssued when there
	// is none.
	FindKey(ctx context.Context, service string, key [32]byte) (Record, error)
	// Revoke marks a certificate as revoked. ErrNotIssued, ErrRevoked.
	Revoke(ctx context.Context, service, issuer, serial string, at time.Time, reason int) (Record, error)
	// Revoked returns the certificates of an issuing CA that are revoked at now and whose NotAfter
	// is not before since.
	Revoked(ctx context.Context, service, issuer string, since, now time.Time) ([]Record, error)
	// NextCRLNumber returns a number that grows with every call for this issuer, from 1.
	NextCRLNumber(ctx context.Context, service, issuer string) (int64, error)
}

// KeyID names a CA in records, file names and addresses: its subject key identifier in
// lower-case hexadecimal, and where it has none, the first 20 octets of its key's SHA-256.
func KeyID(ca *x509.Certificate) string {
	if len(ca.SubjectKeyId) > 0 {
		return hex.EncodeToString(ca.SubjectKeyId)
	}
	h := KeyHash(ca)
	return hex.EncodeToString(h[:20])
}

// KeyHash is the SHA-256 of a certificate's public key (SubjectPublicKeyInfo).
func KeyHash(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// SerialText is how a serial number is written in records: lower-case hexadecimal, whole octets.
func SerialText(n *big.Int) string {
	if n == nil || n.Sign() <= 0 {
		return "00"
	}
	return hex.EncodeToString(n.Bytes())
}
