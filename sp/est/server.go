package est

import (
	"context"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/issue"
)

// CA issues the certificates of one service. *issue.Service is one.
type CA interface {
	// Issue issues and records a certificate, or hands out again what it issued for the same key.
	Issue(ctx context.Context, r issue.Request) (*issue.Issued, error)
	// Find returns the record of a certificate that it issued; issue.ErrNotIssued.
	Find(ctx context.Context, c *x509.Certificate) (issue.Record, error)
	Anchors() []*x509.Certificate       // roots, the current one first
	Intermediates() []*x509.Certificate // issuing CAs and cross-certificates
}

// Service is one VPN service that devices can enrol for.
type Service struct {
	CA CA
	// Plain serves clients that cannot link their request to the TLS connection and know no
	// relatedCertRequest (curl, strongSwan's pki). What a request contains is checked all the
	// same. strongSwan puts the service before the path, so the handler must be mounted for
	// /SERVICE/.well-known/est/ as well.
	Plain bool
	// Curve is the only kind of key that is certified, and what csrattrs asks for; nil: any
	// that internal/certs allows.
	Curve elliptic.Curve
}

// Device is who asks, as authenticated: the certificate is valid and the client has its key.
type Device struct {
	Certificate *x509.Certificate // the device certificate
}

// Grant is what a device gets.
type Grant struct {
	Device string        // the device's name in the registry
	Names  []string      // DNS names for its certificate of this service, the first one the identity
	Life   time.Duration // zero: the service's
}

// Registry knows devices and memberships. Both methods may be called concurrently.
type Registry interface {
	// Authorize returns what a device gets from a service at now. An error of type *Denied is
	// the registry's no; any other one is a failure.
	Authorize(ctx context.Context, d Device, service string, now time.Time) (Grant, error)
	// DeviceCertificate returns the certificate that a device is registered with. It is asked
	// only for clients of Service.Plain that renew by their service certificate.
	DeviceCertificate(ctx context.Context, device string) (*x509.Certificate, error)
}

// Denied is a registry's no. Expected, Got and Do are shown to the client.
type Denied struct {
	Expected, Got, Do string
	// RetryAfter, if not zero, makes it a "not yet": the request waits for somebody's approval,
	// and the client is to ask again (RFC 7030, section 4.2.3: HTTP 202).
	RetryAfter time.Duration
}

// Error returns the reason.
func (d *Denied) Error() string {
	return "expected " + d.Expected + ", got " + d.Got + "; " + d.Do
}

// Trust is by what device certificates are judged.
type Trust struct {
	Anchors       []*x509.Certificate
	Intermediates []*x509.Certificate // clients need not send them
	CRLs          []*x509.RevocationList
	RequireCRL    bool // also for service certificates, whose state is asked of the CA
}

// Replays remembers requests. The method is one transaction: two instances of the centre may see the
// same request at the same time.
type Replays interface {
	// Seen notes the hash of a request until a time, and reports whether it was there already.
	Seen(ctx context.Context, request [32]byte, now, until time.Time) (bool, error)
}

// Enrolment is a certificate that was handed out.
type Enrolment struct {
	Operation, Service, Device, Client, Remote string

	Certificate *x509.Certificate
	Again       bool // issued before, handed out once more
	Bound       bool // linked to the TLS connection
	Proven      bool // with relatedCertRequest
}

// Recorder is told what happened. It must not block for long; it is called in the request's
// goroutine.
type Recorder interface {
	Enrolled(ctx context.Context, e Enrolment)
	Refused(ctx context.Context, r *Refusal)
}

// Config says what the server serves. It is not changed after [New].
type Config struct {
	// Service returns a service by its name, as it is now. The name is well-formed (issue.ValidName).
	Service  func(name string) (Service, bool)
	Registry Registry
	Trust    func() Trust // as it is now
	Replays  Replays
	Recorder Recorder
	Now      func() time.Time

	// ProofAge is how old a relatedCertRequest may be; zero: 1 hour. Requests come online here,
	// so it is shorter than certs.MaxProofAge.
	ProofAge time.Duration

	BodyTimeout  time.Duration // for a request's body to arrive; zero: 10 seconds
	IssueTimeout time.Duration // for registry, recorder and signer together; zero: 10 seconds
	Concurrent   int           // enrolments worked on at the same time; zero: 64

	// PerClient limits the enrolments of one client certificate, PerAddress all requests of one
	// address (a /64 for IPv6) that are not from a certified device. Zero values: 1 a second with
	// bursts of 30, and 50 a second with bursts of 500.
	PerClient, PerAddress Limit
}

// Limit is a rate with bursts.
type Limit struct {
	PerSecond float64
	Burst     int
}

const (
	defaultProofAge = time.Hour
	defaultTimeout  = 10 * time.Second
	defaultAtOnce   = 64
)

// Server is the http.Handler for /.well-known/est/. It is safe for concurrent use.
type Server struct {
	cfg       Config
	atOnce    chan struct{}
	clients   *Limiter
	addresses *Limiter
}

// New makes a server.
func New(cfg Config) (*Server, error) {
	if cfg.Service == nil || cfg.Registry == nil || cfg.Trust == nil || cfg.Replays == nil || cfg.Recorder == nil || cfg.Now == nil {
		return nil, fmt.Errorf("enrolment server: expected services, registry, trust, replays, recorder and clock, got less; this is a mistake in the caller")
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&cfg.ProofAge, defaultProofAge)
	def(&cfg.BodyTimeout, defaultTimeout)
	def(&cfg.IssueTimeout, defaultTimeout)
	if cfg.Concurrent == 0 {
		cfg.Concurrent = defaultAtOnce
	}
	if cfg.PerClient == (Limit{}) {
		cfg.PerClient = Limit{PerSecond: 1, Burst: 30}
	}
	if cfg.PerAddress == (Limit{}) {
		cfg.PerAddress = Limit{PerSecond: 50, Burst: 500}
	}
	if cfg.ProofAge < 0 || cfg.ProofAge > certs.MaxProofAge || cfg.BodyTimeout < 0 || cfg.IssueTimeout < 0 || cfg.Concurrent < 0 {
		return nil, fmt.Errorf("enrolment server: expected times and numbers that are not negative and a proof of at most %v, got others", certs.MaxProofAge)
	}
	return &Server{
		cfg: cfg, atOnce: make(chan struct{}, cfg.Concurrent),
		clients: NewLimiter(cfg.PerClient), addresses: NewLimiter(cfg.PerAddress),
	}, nil
}
