package est

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Class says why a request was refused. Its Code is stable: it is what records and tests look at. A
// Class is an error, so that errors.Is(refusal, est.NotMember) works.
type Class uint8

// The classes of refusal.
const (
	Internal        Class = iota // our own failure
	BadPath                      // no such operation, or a path that is none
	NoService                    // no such service
	BadMethod                    // GET where POST belongs, or the other way round
	BadType                      // Content-Type
	TooLarge                     // more octets than a request has
	TooSlow                      // the request did not come in time
	TooMany                      // more requests than the limit
	Malformed                    // not a request in base64 and DER
	NoTLS                        // no TLS 1.3
	NoCertificate                // no client certificate
	BadCertificate               // the client's certificate is refused; Err tells the class of internal/certs
	NotForEnrol                  // a service certificate where the device certificate is needed
	BadCSR                       // the request's own signature, key or algorithm
	NoBinding                    // no channel binding
	WrongBinding                 // the binding of another TLS connection
	Replayed                     // a request that came before
	NoProof                      // no relatedCertRequest
	BadProof                     // relatedCertRequest malformed, stale, or not by the device's key
	OtherDevice                  // a proof for, or a certificate bound to, another device certificate
	DeviceKey                    // the key of the device certificate as service key
	KeyInUse                     // a key that is certified for another device
	KeyRevoked                   // a key whose certificate was revoked
	WrongName                    // names that the registry does not grant
	NotMember                    // the registry says no
	Pending                      // the registry says not yet
	Busy                         // too much at once, or the back end did not answer in time
	numberOfClasses = iota
)

var classes = [numberOfClasses]struct {
	name   string
	status int
}{
	Internal:       {"internal", http.StatusInternalServerError},
	BadPath:        {"bad-path", http.StatusNotFound},
	NoService:      {"no-service", http.StatusNotFound},
	BadMethod:      {"bad-method", http.StatusMethodNotAllowed},
	BadType:        {"bad-type", http.StatusUnsupportedMediaType},
	TooLarge:       {"too-large", http.StatusRequestEntityTooLarge},
	TooSlow:        {"too-slow", http.StatusRequestTimeout},
	TooMany:        {"too-many", http.StatusTooManyRequests},
	Malformed:      {"malformed", http.StatusBadRequest},
	NoTLS:          {"no-tls", http.StatusForbidden},
	NoCertificate:  {"no-certificate", http.StatusForbidden},
	BadCertificate: {"bad-certificate", http.StatusForbidden},
	NotForEnrol:    {"not-for-enrol", http.StatusForbidden},
	BadCSR:         {"bad-csr", http.StatusBadRequest},
	NoBinding:      {"no-binding", http.StatusForbidden},
	WrongBinding:   {"wrong-binding", http.StatusForbidden},
	Replayed:       {"replayed", http.StatusConflict},
	NoProof:        {"no-proof", http.StatusForbidden},
	BadProof:       {"bad-proof", http.StatusForbidden},
	OtherDevice:    {"other-device", http.StatusForbidden},
	DeviceKey:      {"device-key", http.StatusForbidden},
	KeyInUse:       {"key-in-use", http.StatusForbidden},
	KeyRevoked:     {"key-revoked", http.StatusForbidden},
	WrongName:      {"wrong-name", http.StatusForbidden},
	NotMember:      {"not-a-member", http.StatusForbidden},
	Pending:        {"pending", http.StatusAccepted},
	Busy:           {"busy", http.StatusServiceUnavailable},
}

// String returns the stable name, such as "wrong-binding".
func (c Class) String() string {
	if int(c) < len(classes) {
		return classes[c].name
	}
	return "class-" + strconv.Itoa(int(c))
}

// Code returns the stable code for records, such as "est-wrong-binding".
func (c Class) Code() string { return "est-" + c.String() }

// Error makes a Class usable as the target of errors.Is.
func (c Class) Error() string { return "enrolment refused: " + c.String() }

// Status returns the HTTP status that goes with the class.
func (c Class) Status() int {
	if int(c) < len(classes) {
		return classes[c].status
	}
	return http.StatusInternalServerError
}

// Refusal is a request that was refused (or, with Pending, put off).
type Refusal struct {
	Class     Class
	Operation string // "simpleenroll"; empty when the path names none
	Service   string // empty when the path names none that is well-formed
	Device    string // the device's name in the registry, as far as it got; may be empty
	Client    string // subject of the client's certificate, escaped; not necessarily verified
	Remote    string // address and port

	Expected, Got, Do string        // foreign text in them is escaped
	RetryAfter        time.Duration // zero: not said
	Err               error         // cause, or nil; of an Internal or Busy one the client is told nothing
}

// Error returns one line: what was expected, what came, and what to do.
func (r *Refusal) Error() string {
	s := "enrolment refused (" + r.Class.String() + ")"
	if r.Class == Pending {
		s = "enrolment not yet answered (" + r.Class.String() + ")"
	}
	if r.Expected != "" {
		s += ": expected " + r.Expected
	}
	if r.Got != "" {
		s += ", got " + r.Got
	}
	if r.Do != "" {
		s += "; " + r.Do
	}
	return s
}

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// Is reports whether target is the class of r.
func (r *Refusal) Is(target error) bool {
	c, ok := target.(Class) //nolint:errorlint // a Class is compared as itself, never wrapped
	return ok && c == r.Class
}

func refuse(c Class, expected, got, do string) *Refusal {
	return &Refusal{Class: c, Expected: expected, Got: got, Do: do}
}

func (r *Refusal) because(err error) *Refusal {
	r.Err = err
	return r
}

func internal(what string, err error) *Refusal {
	return &Refusal{
		Class: Internal, Expected: "an answer", Got: "a failure of the server (" + what + ")", Do: "ask again later; the operator finds the cause in the centre's log",
		Err: fmt.Errorf("%s: %w", what, err),
	}
}

func busy(what string, err error) *Refusal {
	return &Refusal{Class: Busy, Expected: "an answer in time", Got: what, Do: "ask again later", RetryAfter: 10 * time.Second, Err: err}
}
