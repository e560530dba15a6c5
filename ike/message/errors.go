package message

import (
	"errors"
	"fmt"
	"strconv"
)

// Sentinels; compare with errors.Is.
var (
	// ErrSyntax matches every SyntaxError and LimitError.
	ErrSyntax = errors.New("malformed IKE message")
	// ErrNotAuthentic says that the Encrypted payload did not open. Drop the message silently
	// (RFC 7296, section 2.21.4; RFC 7383, section 2.6).
	ErrNotAuthentic = errors.New("message: Encrypted payload is not authentic; drop the message")
	// ErrNotEncrypted says that the message has no SK or SKF payload where one is needed.
	ErrNotEncrypted = errors.New("message: no Encrypted payload; only IKE_SA_INIT travels in clear")
	// ErrIsFragment says that the message is a fragment: use OpenFragment and a Reassembler.
	ErrIsFragment = errors.New("message: is a fragment (SKF); want a whole message (SK)")
	// ErrNotFragment says that the message is no fragment: use Open.
	ErrNotFragment = errors.New("message: is a whole message (SK); want a fragment (SKF)")
	// ErrClearPayload says that payloads stand in clear beside the Encrypted payload. Only the
	// solution of a puzzle may, and no other exchange
	// known to Wardgate does that (RFC 7383, section 2.5.3), and they are not authenticated.
	ErrClearPayload = errors.New("message: unprotected payloads beside the Encrypted payload; refuse the message")
	// ErrDatagramSize says that the maximum datagram size leaves no room for any content.
	ErrDatagramSize = errors.New("message: maximum datagram size leaves no room for a fragment's content; raise it")
	// ErrSealedLength says that a Protector wrote another number of octets than it announced.
	ErrSealedLength = errors.New("message: Protector wrote another length than its SealedLen announced")

	// ErrFragmentReplay says that this fragment is there already. Drop it silently.
	ErrFragmentReplay = errors.New("message: fragment was received before")
	// ErrFragmentStale says that the fragment belongs to a coarser fragmentation of the message
	// than the one being reassembled. Drop it silently (RFC 7383, section 2.6).
	ErrFragmentStale = errors.New("message: fragment of an abandoned, smaller set")
	// ErrFragmentMismatch says that the fragment belongs to another message than the one being
	// reassembled. Drop it.
	ErrFragmentMismatch = errors.New("message: fragment of another message than the one being reassembled")
	// ErrReassemblyLimit says that an authenticated peer sent more than may be kept. RFC 7383,
	// section 5: drop the connection and the fragments.
	ErrReassemblyLimit = errors.New("message: fragments exceed the reassembly limit; drop the connection")
)

// SyntaxError says that octets are no IKE message. To the peer it is INVALID_SYNTAX, if the
// message was authentic.
type SyntaxError struct {
	Payload PayloadType // PayloadNone: the header or the payload chain
	Field   string      // what was read
	Want    string      // what it must be
	Got     int         // what it was
}

// Error implements error.
func (e *SyntaxError) Error() string {
	where := "message"
	if e.Payload != PayloadNone {
		where += ": " + e.Payload.String() + " payload"
	}
	return where + ": " + e.Field + " is " + strconv.Itoa(e.Got) + "; want " + e.Want
}

// Is makes errors.Is(err, ErrSyntax) true.
func (e *SyntaxError) Is(target error) bool { return target == ErrSyntax }

// LimitError says that a message holds more of something than Wardgate accepts.
type LimitError struct {
	Payload PayloadType
	What    string
	Max     int
	Got     int // at least this many
}

// Error implements error.
func (e *LimitError) Error() string {
	return fmt.Sprintf("message: %s payload: %d %s; at most %d are accepted", e.Payload, e.Got, e.What, e.Max)
}

// Is makes errors.Is(err, ErrSyntax) true.
func (e *LimitError) Is(target error) bool { return target == ErrSyntax }

// VersionError says that the message is not of IKE major version 2. RFC 7296, section 2.5: a
// higher version is answered with INVALID_MAJOR_VERSION, IKEv1 is dropped.
type VersionError struct {
	Major, Minor uint8
	Header       Header // of the message, for an answer; only its SPIs and MessageID are meaningful
}

// Error implements error.
func (e *VersionError) Error() string {
	return fmt.Sprintf("message: IKE version is %d.%d; want 2", e.Major, e.Minor)
}

// UnsupportedCriticalError says that the message holds a payload that Wardgate does not know
// and whose sender marked it critical (RFC 7296, section 2.5).
type UnsupportedCriticalError struct {
	Type PayloadType
}

// Error implements error.
func (e *UnsupportedCriticalError) Error() string {
	return fmt.Sprintf("message: payload type %d is unknown and critical; the message must be rejected", uint8(e.Type))
}

// EncodeError says that a value cannot be encoded: a mistake of the caller, not of the peer.
type EncodeError struct {
	Payload PayloadType
	Field   string
	Want    string
	Got     int
}

// Error implements error.
func (e *EncodeError) Error() string {
	return fmt.Sprintf("message: cannot encode %s payload: %s is %d; want %s", e.Payload, e.Field, e.Got, e.Want)
}

// Problem is the kind of a CheckError.
type Problem uint8

// Problems.
const (
	ProblemMissing     Problem = iota + 1 // a mandatory payload is absent
	ProblemDuplicate                      // more payloads of the type than allowed
	ProblemNotAllowed                     // payload has no place in this message
	ProblemProposals                      // number or numbering of the proposals
	ProblemRekeyNotify                    // REKEY_SA notify missing, repeated or without an SPI
)

// String implements fmt.Stringer.
func (p Problem) String() string {
	switch p {
	case ProblemMissing:
		return "missing"
	case ProblemDuplicate:
		return "duplicate"
	case ProblemNotAllowed:
		return "not-allowed"
	case ProblemProposals:
		return "proposals"
	case ProblemRekeyNotify:
		return "rekey-notify"
	}
	return "Problem(" + strconv.Itoa(int(p)) + ")"
}

// CheckError says that well-formed payloads do not make up the message that they should.
type CheckError struct {
	Form    Form
	Problem Problem
	Payload PayloadType
	Got     int // number of such payloads, or the offending value
	Max     int // for ProblemDuplicate
}

// Error implements error.
func (e *CheckError) Error() string {
	at := "message: " + e.Form.String() + ": "
	switch e.Problem {
	case ProblemMissing:
		return at + "mandatory " + e.Payload.String() + " payload is missing"
	case ProblemDuplicate:
		return fmt.Sprintf("%s%d %s payloads; at most %d are allowed", at, e.Got, e.Payload, e.Max)
	case ProblemNotAllowed:
		return at + e.Payload.String() + " payload is not allowed here"
	case ProblemProposals:
		if e.Form.response() {
			return fmt.Sprintf("%s%d proposals; want exactly one, the chosen one", at, e.Got)
		}
		return fmt.Sprintf("%sproposal number %d out of order; want 1, 2, 3, …", at, e.Got)
	case ProblemRekeyNotify:
		return fmt.Sprintf("%s%d valid REKEY_SA notifies; want exactly one with protocol AH or ESP and a 4-octet SPI", at, e.Got)
	}
	return at + e.Problem.String()
}

// PeerError is an error notify that the peer sent, as a Go error.
type PeerError struct {
	Type NotifyType
	Data []byte // notification data, aliases the message
}

// Error implements error.
func (e *PeerError) Error() string { return "peer answered " + e.Type.String() }

// NotifyFor returns the notify that answers a received message that failed with err, or nil
// where the message is to be dropped silently. Whether an answer may be sent at all (only
// when the message was authentic, or within the limits of RFC 7296, section 2.21) is the
// caller's decision.
func NotifyFor(err error) *Notify {
	var critical *UnsupportedCriticalError
	var version *VersionError
	var check *CheckError
	switch {
	case errors.As(err, &critical):
		// RFC 7296, section 2.5: the data is the one-octet payload type.
		return &Notify{Type: NotifyUnsupportedCriticalPayload, Data: []byte{byte(critical.Type)}}
	case errors.As(err, &version):
		if version.Major < 2 {
			return nil
		}
		// RFC 7296, section 2.5: the answer carries the highest version in its header.
		return &Notify{Type: NotifyInvalidMajorVersion}
	case errors.As(err, &check), errors.Is(err, ErrSyntax):
		return &Notify{Type: NotifyInvalidSyntax}
	}
	return nil
}
