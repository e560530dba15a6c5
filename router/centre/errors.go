package centre

import (
	"errors"
	"time"
)

// Code says what kind of failure it was. It is stable, and an error for errors.Is.
type Code string

// The codes.
const (
	Unreachable  Code = "unreachable"        // no connection
	TLS          Code = "tls"                // a server that the anchors do not know, or no TLS 1.3
	ClockWrong   Code = "clock"              // the device's clock and the centre's differ
	DeviceCert   Code = "device-certificate" // layer 1 is missing, or not valid now
	Refused      Code = "refused"            // the centre says no; Reason tells why
	Pending      Code = "pending"            // the centre says not yet
	Busy         Code = "busy"               // the centre cannot answer now
	TooLarge     Code = "too-large"          // an answer beyond its bounds
	TooSlow      Code = "too-slow"           // an answer that did not come in time
	Redirect     Code = "redirect"           // answers come from the centre itself
	ContentType  Code = "content-type"       // an answer of another kind
	Malformed    Code = "malformed"          // an answer that does not parse
	UntrustedCA  Code = "untrusted-ca"       // a service's CA that the policy's anchors do not know
	BadCert      Code = "certificate"        // an issued certificate that is refused
	TokenFailed  Code = "token"              // the token
	NoPolicy     Code = "no-policy"          // the centre has none for this device
	PolicyBad    Code = "policy-refused"     // the sink refuses it
	JournalError Code = "journal"            // it cannot be written
)

// Error makes a Code usable as the target of errors.Is.
func (c Code) Error() string { return "centre: " + string(c) }

// Error is a failure: what was expected, what came, and what to do.
type Error struct {
	Code              Code
	Service           string // empty: none in particular
	Reason            string // the centre's class of refusal, such as "not-a-member"; may be empty
	Expected, Got, Do string // foreign text in them is escaped
	RetryAfter        time.Duration
	Err               error // cause, or nil
}

// Error returns one line.
func (e *Error) Error() string {
	s := string(e.Code)
	if e.Service != "" {
		s = "service " + e.Service + ": " + s
	}
	s += ": expected " + e.Expected + ", got " + e.Got
	if e.Do != "" {
		s += "; " + e.Do
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the code of e.
func (e *Error) Is(target error) bool {
	c, ok := target.(Code) //nolint:errorlint // a Code is compared as itself, never wrapped
	return ok && c == e.Code
}

func fail(c Code, expected, got, do string, err error) *Error {
	return &Error{Code: c, Expected: expected, Got: got, Do: do, Err: err}
}

func tokenFailed(what string, err error) *Error {
	return fail(TokenFailed, what, err.Error(), "check the token with: wardgate token check", err)
}

// codeOf returns the code of err for reports.
func codeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return "internal"
}

// retryAfter returns how long the centre asked to be left alone.
func retryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.RetryAfter
	}
	return 0
}
