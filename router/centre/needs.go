package centre

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"time"
)

// Key is a key on the token with what belongs to it.
type Key struct {
	Service string              // layer 2; empty: the device's
	ID      []byte              // CKA_ID
	Signer  crypto.Signer       // nil: a certificate whose key is missing
	Cert    *x509.Certificate   // nil: waits for its certificate
	Chain   []*x509.Certificate // between Cert and its anchor
}

// Token is the double-layered token. Its methods may be called from several goroutines.
type Token interface {
	// Device returns layer 1: key and certificate.
	Device(ctx context.Context) (Key, error)
	// Services returns all that layer 2 has: also keys without certificate, certificates
	// without key, and, after a power failure during Store, two certificates of one service.
	Services(ctx context.Context) ([]Key, error)
	// Generate makes a key that waits for its certificate, on a curve, or of the device's default kind
	// (nil). A key of the service that still waits is removed; one with a certificate stays in use.
	Generate(ctx context.Context, service string, curve elliptic.Curve) (Key, error)
	// Store writes the certificate of a key that is on the token, and then removes whatever else the
	// service had. Storing what is there already only removes the rest.
	Store(ctx context.Context, service string, cert *x509.Certificate, chain, anchors []*x509.Certificate) error
	// Delete removes all that a service has.
	Delete(ctx context.Context, service string) error
}

// Service is a VPN service that certificates are needed for.
type Service struct {
	Name    string
	Anchors []*x509.Certificate // of its certificates
	CRLs    []*x509.RevocationList
}

// Policy is what has to be known here of a policy.
type Policy struct {
	Serial   uint64    // 0: there is none
	Services []Service // those whose members authenticate by certificate
}

// PolicySink verifies policies and puts them in force.
type PolicySink interface {
	// Installed returns the newest policy that was accepted, also when it has expired since.
	Installed(ctx context.Context) (Policy, error)
	// Install verifies a policy file and puts it in force. It must refuse older ones, and what is not
	// for this device. The same again is no error. After an error nothing has changed.
	Install(ctx context.Context, jws []byte) (Policy, error)
}

// Clock is the time. SystemClock is the real one.
type Clock interface {
	Now() time.Time
	// Wait returns when d has passed or wake has something, with nil, and when ctx ends, with its error.
	Wait(ctx context.Context, d time.Duration, wake <-chan struct{}) error
}

// SystemClock is the machine's clock.
type SystemClock struct{}

// Now implements Clock.
func (SystemClock) Now() time.Time { return time.Now() }

// Wait implements Clock.
func (SystemClock) Wait(ctx context.Context, d time.Duration, wake <-chan struct{}) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
	case <-wake:
	}
	return nil
}

// Report is the state that the centre is told.
type Report struct {
	Version      string            `json:"version"`
	PolicySerial uint64            `json:"policy_serial"`      // filled in by the Agent
	NotAfter     time.Time         `json:"not_after,omitzero"` // of the service certificate that ends first; filled in by the Agent
	Connections  []ConnectionState `json:"connections"`
	Errors       []ReportedError   `json:"errors"` // the Agent adds its own
}

// ConnectionState is how a connection is.
type ConnectionState struct {
	Name   string    `json:"name"`
	Up     bool      `json:"up"`
	Since  time.Time `json:"since,omitzero"`
	Detail string    `json:"detail,omitempty"`
}

// ReportedError is one of the last errors.
type ReportedError struct {
	At   time.Time `json:"at"`
	Code string    `json:"code"`
	Text string    `json:"text"`
}

// Reporter tells the state of the device.
type Reporter interface {
	Report(ctx context.Context) Report
}

// EventCode says what happened. Codes are stable.
type EventCode string

// The events.
const (
	EventPolicy      EventCode = "policy-fetched"
	EventEnrolled    EventCode = "certificate-enrolled"
	EventRenewed     EventCode = "certificate-renewed"
	EventTidied      EventCode = "token-tidied"                // leftovers of an interrupted change are gone
	EventRemoved     EventCode = "service-removed"             // what a service had that the device left
	EventForeignCA   EventCode = "foreign-ca-ignored"          // cacerts named a root that no anchor knows
	EventJournalLost EventCode = "journal-lost"                // it could not be read; the token is the truth
	EventCertRefused EventCode = "service-certificate-refused" // by the centre, when asked for the policy by it
	EventFailed      EventCode = "centre-failed"               // Err tells
	EventRecovered   EventCode = "centre-back"
)

// Event is something that happened.
type Event struct {
	Code     EventCode
	Activity string // of EventFailed and EventRecovered: what failed and works again
	Service  string // empty: none in particular
	Text     string // for people
	Err      error  // *Error, or nil
	Time     time.Time
}
