package policy

import (
	"errors"
	"fmt"
	"strings"
)

// The kinds of refusal. Every error of Verify, Parse, Compile, Sign and Inspect is one of these
// under errors.Is; Code gives the stable string for audit records.
var (
	ErrTooLarge       = errors.New("policy file too large")
	ErrFormat         = errors.New("not a policy file")
	ErrAlgorithm      = errors.New("signature algorithm not allowed")
	ErrSigner         = errors.New("signer not trusted")
	ErrSignerEKU      = errors.New("signer's certificate is not for signing policies")
	ErrSignerValidity = errors.New("signer's certificate outside its validity")
	ErrSignerRevoked  = errors.New("signer's certificate revoked")
	ErrSignature      = errors.New("bad signature")
	ErrSyntax         = errors.New("policy document not well-formed")
	ErrOtherDevice    = errors.New("policy is for another device")
	ErrSerialOlder    = errors.New("policy is older than the installed one")
	ErrSerialReused   = errors.New("serial number used twice for different policies")
	ErrNotYetValid    = errors.New("policy not yet valid")
	ErrExpired        = errors.New("policy expired")
	ErrInvalid        = errors.New("policy document invalid")
	ErrTests          = errors.New("policy fails its own tests")
	ErrOptions        = errors.New("policy: wrong use of the package")
)

var codes = []struct {
	err  error
	code string
}{
	{ErrTooLarge, "policy-too-large"},
	{ErrFormat, "policy-format"},
	{ErrAlgorithm, "policy-algorithm"},
	{ErrSigner, "policy-signer-untrusted"},
	{ErrSignerEKU, "policy-signer-eku"},
	{ErrSignerValidity, "policy-signer-validity"},
	{ErrSignerRevoked, "policy-signer-revoked"},
	{ErrSignature, "policy-signature"},
	{ErrSyntax, "policy-syntax"},
	{ErrOtherDevice, "policy-other-device"},
	{ErrSerialOlder, "policy-serial-older"},
	{ErrSerialReused, "policy-serial-reused"},
	{ErrNotYetValid, "policy-not-yet-valid"},
	{ErrExpired, "policy-expired"},
	{ErrInvalid, "policy-invalid"},
	{ErrTests, "policy-tests-failed"},
	{ErrOptions, "policy-internal"},
}

// Code returns the stable code of a refusal for audit records, such as "policy-expired";
// "policy-refused" for an error that is not of this package, "" for nil.
func Code(err error) string {
	if err == nil {
		return ""
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return "policy-refused"
}

// RefusedError is a refusal of the file as a whole.
type RefusedError struct {
	Kind     error  // one of the sentinels of this package
	Expected string // what would have been accepted
	Came     string // what was there
	Do       string // what to do about it
	Err      error  // the cause, or nil
}

// Error names the kind, what was expected, what came, and what to do.
func (e *RefusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: expected %s, came %s", e.Kind, e.Expected, e.Came)
	if e.Err != nil {
		fmt.Fprintf(&b, " (%v)", e.Err)
	}
	if e.Do != "" {
		b.WriteString("; ")
		b.WriteString(e.Do)
	}
	return b.String()
}

// Unwrap makes errors.Is see the kind and the cause.
func (e *RefusedError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// FieldError is one fault in the document.
type FieldError struct {
	Path     string `json:"path"`           // JSON pointer (RFC 6901); empty: the whole document
	Line     int    `json:"line,omitempty"` // line in the payload, from 1; 0 when unknown
	Expected string `json:"expected"`
	Came     string `json:"came"`
	Do       string `json:"do,omitempty"`
}

// Error names the place, what was expected, what came, and what to do.
func (e *FieldError) Error() string {
	var b strings.Builder
	if e.Path == "" {
		b.WriteString("the document")
	} else {
		b.WriteString(e.Path)
	}
	if e.Line > 0 {
		fmt.Fprintf(&b, " (line %d)", e.Line)
	}
	fmt.Fprintf(&b, ": expected %s, came %s", e.Expected, e.Came)
	if e.Do != "" {
		b.WriteString("; ")
		b.WriteString(e.Do)
	}
	return b.String()
}

// maxReported bounds the faults that one refusal lists.
const maxReported = 100

// DocumentError lists the faults of a document: at most 100 of them, and how many more there were.
type DocumentError struct {
	Kind   error // ErrSyntax or ErrInvalid
	Faults []*FieldError
	More   int
}

// Error lists the faults, one a line.
func (e *DocumentError) Error() string {
	var b strings.Builder
	n := len(e.Faults) + e.More
	if n == 1 {
		fmt.Fprintf(&b, "%v: %v", e.Kind, e.Faults[0])
		return b.String()
	}
	fmt.Fprintf(&b, "%v: %d faults", e.Kind, n)
	for _, f := range e.Faults {
		b.WriteString("\n  ")
		b.WriteString(f.Error())
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "\n  … and %d more", e.More)
	}
	return b.String()
}

// Unwrap makes errors.Is see the kind and errors.As each fault.
func (e *DocumentError) Unwrap() []error {
	out := []error{e.Kind}
	for _, f := range e.Faults {
		out = append(out, f)
	}
	return out
}

// TestFailure is one test of the policy that did not come out as it must.
type TestFailure struct {
	Index       int         `json:"index"`
	Name        string      `json:"name"`
	Expect      string      `json:"expect"`
	Got         string      `json:"got"`
	Explanation Explanation `json:"explanation"`
}

// TestError lists the tests that failed.
type TestError struct{ Failures []TestFailure }

// Error explains each failing test.
func (e *TestError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: %d failed", ErrTests, len(e.Failures))
	for i, f := range e.Failures {
		if i == maxReported {
			fmt.Fprintf(&b, "\n  … and %d more", len(e.Failures)-i)
			break
		}
		fmt.Fprintf(&b, "\n  /tests/%d %q: expected %s, came %s: %s", f.Index, f.Name, f.Expect, f.Got,
			strings.ReplaceAll(f.Explanation.Text, "\n", " "))
	}
	return b.String()
}

// Unwrap makes errors.Is see the kind.
func (e *TestError) Unwrap() error { return ErrTests }
