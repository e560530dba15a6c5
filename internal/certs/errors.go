package certs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Class says why a certificate was refused. Its String is stable; Code is the same for audit
// records. A Class is an error so that errors.Is(err, certs.Revoked) works.
type Class uint8

// The classes of refusal.
const (
	Unknown         Class = iota // not a refusal of this package
	Malformed                    // not parseable, or a critical extension nobody here understands
	TooLarge                     // beyond a bound on size, number or chain length
	WeakKey                      // key or signature algorithm below the profile
	UnknownCA                    // no path to an anchor
	Expired                      // notAfter has passed
	NotYetValid                  // notBefore has not come
	NotCA                        // an issuer that may not issue (basicConstraints)
	PathLength                   // more CAs below one than its pathLenConstraint allows
	NameConstraint               // a name outside what the CA may certify
	KeyUsage                     // keyUsage forbids what the key is used for
	WrongEKU                     // extendedKeyUsage lacks the purpose
	Revoked                      // on the revocation list
	CRLMissing                   // a revocation list is required and none fits
	CRLExpired                   // the revocation list is not current
	NotBound                     // RelatedCertificate is absent or names another certificate
	IDMismatch                   // the identity claimed is not in the certificate
	CSRSignature                 // the request's self signature does not verify
	ProofOfDevice                // relatedCertRequest is absent, stale or not by the device key
	AnchorsMissing               // no anchor was configured: nothing can be trusted
	numberOfClasses = iota
)

var classNames = [numberOfClasses]string{
	Unknown:        "unknown",
	Malformed:      "malformed",
	TooLarge:       "too-large",
	WeakKey:        "weak-key",
	UnknownCA:      "unknown-ca",
	Expired:        "expired",
	NotYetValid:    "not-yet-valid",
	NotCA:          "not-a-ca",
	PathLength:     "path-length",
	NameConstraint: "name-constraint",
	KeyUsage:       "key-usage",
	WrongEKU:       "wrong-eku",
	Revoked:        "revoked",
	CRLMissing:     "crl-missing",
	CRLExpired:     "crl-expired",
	NotBound:       "not-bound-to-device",
	IDMismatch:     "id-mismatch",
	CSRSignature:   "csr-signature",
	ProofOfDevice:  "proof-of-device",
	AnchorsMissing: "anchors-missing",
}

// String returns the stable name, such as "not-bound-to-device".
func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return "class-" + strconv.Itoa(int(c))
}

// Code returns the stable code for audit records, such as "cert-expired".
func (c Class) Code() string { return "cert-" + c.String() }

// Error makes a Class usable as the target of errors.Is.
func (c Class) Error() string { return "certificate refused: " + c.String() }

// Error is the verdict on a certificate that was refused.
type Error struct {
	Class    Class
	Role     string // what the certificate was for: "device", "service", "policy signer"; may be empty
	Subject  string // whose certificate is at fault, escaped; empty when it could not be parsed
	Expected string
	Got      string // escaped
	Do       string // what to do about it
	Err      error  // cause, or nil
}

// Error returns one line: what is at fault, what was expected, what came and what to do.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Role != "" {
		b.WriteString(e.Role + " ")
	}
	b.WriteString("certificate")
	if e.Subject != "" {
		b.WriteString(" " + e.Subject)
	}
	b.WriteString(" refused (" + e.Class.String() + ")")
	if e.Expected != "" {
		b.WriteString(": expected " + e.Expected)
	}
	if e.Got != "" {
		b.WriteString(", got " + e.Got)
	}
	if e.Do != "" {
		b.WriteString("; " + e.Do)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the class of e.
func (e *Error) Is(target error) bool {
	c, ok := target.(Class) //nolint:errorlint // a Class is compared as itself, never wrapped
	return ok && c == e.Class
}

// ClassOf returns the class of the *Error in err's tree, or Unknown.
func ClassOf(err error) Class {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Class
	}
	return Unknown
}

// maxQuoted bounds foreign text in a message, in octets before escaping.
const maxQuoted = 120

// Quote returns foreign text fit for a message or a log: quoted, every character outside
// printable ASCII escaped, cut after 120 octets.
func Quote(s string) string {
	if len(s) > maxQuoted {
		return strconv.QuoteToASCII(s[:maxQuoted]) + fmt.Sprintf("… (%d octets)", len(s))
	}
	return strconv.QuoteToASCII(s)
}
