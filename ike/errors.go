package ike

import (
	"errors"
	"fmt"
)

// Code is the stable name of a class of refusals, for audit records and for tests.
type Code string

// The classes of refusals.
const (
	CodeDeviceOnly       Code = "device-only"        // first round proved, the peer says that no other follows
	CodeServiceFirst     Code = "service-first"      // the service identity came in the first round
	CodeWrongRound       Code = "wrong-round"        // an identity of an earlier round came again
	CodeRoundMissing     Code = "round-missing"      // the next round never came
	CodeTooManyRounds    Code = "too-many-rounds"    // more rounds announced than the connection has
	CodeUnknownIdentity  Code = "unknown-identity"   // no connection knows the identity
	CodeLocalIdentity    Code = "local-identity"     // the peer asks for an identity that we do not have
	CodeIDMismatch       Code = "id-mismatch"        // the certificate does not carry the claimed identity
	CodeUnknownCA        Code = "unknown-ca"         // no path to an anchor of this round
	CodeExpired          Code = "cert-expired"       //
	CodeNotYetValid      Code = "cert-not-yet-valid" //
	CodeRevoked          Code = "cert-revoked"       //
	CodeNoCRL            Code = "crl-missing"        // revocation must be known and is not
	CodeWrongEKU         Code = "cert-wrong-eku"     // not a certificate for IKE
	CodeNotBound         Code = "cert-not-bound"     // service certificate of another device (RFC 9763)
	CodeBadCert          Code = "cert-bad"           // malformed, constraints violated, weak key …
	CodeNoCert           Code = "cert-missing"       // the peer sent no certificate
	CodeBadSignature     Code = "bad-signature"      // AUTH does not prove possession of the key
	CodeAuthMethod       Code = "auth-method"        // another method than the connection demands
	CodeNoProposal       Code = "no-proposal"        // nothing in common
	CodeBadKE            Code = "bad-ke"             // key exchange value malformed or weak
	CodeTSUnacceptable   Code = "ts-unacceptable"    // selectors have nothing in common
	CodeFlooding         Code = "flooding"           // too many half-open IKE SAs
	CodeSyntax           Code = "invalid-syntax"     // malformed message inside a protected exchange
	CodeUnexpected       Code = "unexpected-message" // an exchange at a time when it is not allowed
	CodePeerRefused      Code = "peer-refused"       // the peer refused us with a notify
	CodeCredential       Code = "local-credential"   // our own key could not sign
	CodeNoMultipleAuth   Code = "no-multiple-auth"   // the peer does not do RFC 4739
	CodeNoConnection     Code = "no-connection"      // no connection is configured for the address
	CodeSuiteNotAllowed  Code = "suite-not-allowed"  // negotiated suite is not one of the connection that was found
	CodeUnsupported      Code = "unsupported"        // an unknown critical payload
	CodeRedirect         Code = "redirect"           // a gateway sends us where we do not go (RFC 5685)
	CodeTicket           Code = "ticket"             // a ticket (RFC 5723) that is not taken: full proofs follow
	CodeDuplicatePayload Code = "duplicate-payload"
	CodeAddress          Code = "address"     // an internal address is needed and is not there (RFC 7296, section 3.15.4)
	CodePPK              Code = "ppk-missing" // a postquantum preshared key is required and not there
	CodePuzzle           Code = "puzzle"      // a gateway wants a puzzle solved that we do not solve (RFC 8019)
)

// Errors of the API.
var (
	ErrClosed       = errors.New("ike: endpoint is closed")
	ErrUnknownPeer  = errors.New("ike: no such connection")
	ErrUnknownChild = errors.New("ike: no such CHILD SA")
	ErrUnknownSA    = errors.New("ike: no such IKE SA")
	ErrNoGateway    = errors.New("ike: the connection names no gateway to initiate to")
	ErrPeerDead     = errors.New("ike: the peer does not answer")
	ErrTerminated   = errors.New("ike: terminated")

	errSpent = errors.New("ike: the solution of the puzzle was used before")
)

// RefusedError says why we refused a peer, or why the peer's answer was not good enough.
type RefusedError struct {
	Code  Code
	Round int // authentication round from 0, -1 outside of the rounds
	Text  string
	Err   error // cause, may be nil
}

// Error returns the text with its cause.
func (e *RefusedError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("ike: %s: %s: %v", e.Code, e.Text, e.Err)
	}
	return fmt.Sprintf("ike: %s: %s", e.Code, e.Text)
}

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// PeerNotifyError is an error notify that the peer sent to us.
type PeerNotifyError struct {
	Type     uint16 // notify message type (RFC 7296, section 3.10.1)
	Name     string
	Exchange string // what we had asked for
}

// Error returns what the peer refused, and how.
func (e *PeerNotifyError) Error() string {
	return fmt.Sprintf("ike: the peer answered %s with %s", e.Exchange, e.Name)
}

func refused(code Code, round int, err error, format string, args ...any) *RefusedError {
	return &RefusedError{Code: code, Round: round, Text: fmt.Sprintf(format, args...), Err: err}
}
