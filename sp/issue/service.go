package issue

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wardgate/internal/certs"
)

// Defaults and limits of a service.
const (
	DefaultLife = 7 * day // docs/pki.md
	MinLife     = time.Hour
	MaxLife     = 90 * day

	// DefaultBackdate is how far notBefore lies before the time of issue, for clocks that are
	// behind the centre's.
	DefaultBackdate = 5 * time.Minute

	// DefaultCRLLife is for how long a list is good: long enough for an outage of the centre.
	DefaultCRLLife = 3 * day

	// MaxNames bounds the DNS names in one certificate.
	MaxNames = 4
	// MaxGenerations bounds the CAs of one service that are in use at the same time.
	MaxGenerations = 8
)

// Config says how a service issues. It is not changed after [NewService].
type Config struct {
	Name   string
	Domain string // names must lie in it; empty: any name that the registry grants

	Life             time.Duration // of certificates; zero: 7 days
	MinLife, MaxLife time.Duration // limits of Request.Life; zero: 1 hour and 90 days
	Backdate         time.Duration // zero: 5 minutes
	CRLLife          time.Duration // zero: 3 days
	// Again is for how long after its issue a certificate is handed out again when the same key
	// is asked for once more (an answer that was lost); after that a new one is issued. Zero:
	// a third of the certificate's life.
	Again time.Duration

	// CRLURL and OCSPURL are put into certificates; empty: left out. "{ca}" in them stands for
	// the issuing CA's KeyID.
	CRLURL, OCSPURL string

	Rand     io.Reader
	Recorder Recorder
}

// Service issues the certificates of one VPN service. It is safe for concurrent use.
type Service struct {
	cfg  Config
	cas  atomic.Pointer[generations] // replaced as a whole by Roll and Retire
	roll sync.Mutex                  // serialises Roll and Retire

	mu   sync.Mutex // guards crls
	crls map[string]*crlState
}

// generations are the CAs in use, newest first: the first one issues.
type generations struct {
	list []*CA
	ocsp []ocspNames // by place in list
}

// NewService makes a service that issues by the first of the CAs; the others are older ones that
// still have certificates in use. now is when the CAs are judged.
func NewService(cfg Config, now time.Time, cas ...*CA) (*Service, error) {
	if !ValidName(cfg.Name) {
		return nil, fmt.Errorf("name of the service: expected 1 to 63 letters, digits, '-', '_' and '.', got %s", certs.Quote(cfg.Name))
	}
	if cfg.Rand == nil || cfg.Recorder == nil {
		return nil, fmt.Errorf("service %s: expected a source of randomness and a recorder, got none", cfg.Name)
	}
	if cfg.Domain != "" && !validDNS(cfg.Domain) {
		return nil, fmt.Errorf("service %s: expected a DNS name as domain, got %s", cfg.Name, certs.Quote(cfg.Domain))
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&cfg.Life, DefaultLife)
	def(&cfg.MinLife, MinLife)
	def(&cfg.MaxLife, MaxLife)
	def(&cfg.Backdate, DefaultBackdate)
	def(&cfg.CRLLife, DefaultCRLLife)
	if cfg.MinLife <= 0 || cfg.Life < cfg.MinLife || cfg.Life > cfg.MaxLife || cfg.Backdate < 0 || cfg.CRLLife <= 0 || cfg.Again < 0 {
		return nil, fmt.Errorf("%w: service %s: expected %v ≤ %v ≤ %v", ErrLife, cfg.Name, cfg.MinLife, cfg.Life, cfg.MaxLife)
	}
	if len(cas) == 0 || len(cas) > MaxGenerations {
		return nil, fmt.Errorf("%w: service %s: expected 1 to %d CAs, got %d", ErrCA, cfg.Name, MaxGenerations, len(cas))
	}
	if err := cas[0].Check(now); err != nil {
		return nil, fmt.Errorf("service %s: %w", cfg.Name, err)
	}
	s := &Service{cfg: cfg, crls: map[string]*crlState{}}
	if err := s.set(cas); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Service) set(cas []*CA) error {
	g := &generations{list: slices.Clone(cas)}
	for i, ca := range cas {
		if ca == nil || ca.Root == nil || ca.Cert == nil || ca.Key == nil {
			return fmt.Errorf("%w: service %s: expected root, issuing CA and key for each CA in use", ErrCA, s.cfg.Name)
		}
		for _, other := range cas[:i] {
			if KeyID(other.Cert) == KeyID(ca.Cert) {
				return fmt.Errorf("%w: service %s: the same issuing CA twice (%s)", ErrCA, s.cfg.Name, KeyID(ca.Cert))
			}
		}
		n, err := namesForOCSP(ca.Cert)
		if err != nil {
			return err
		}
		g.ocsp = append(g.ocsp, n)
	}
	s.cas.Store(g)
	return nil
}

// Name is the service's name.
func (s *Service) Name() string { return s.cfg.Name }

// Current returns the newest CA: the one that issues, or is about to (CA.From).
func (s *Service) Current() *CA { return s.cas.Load().list[0] }

// Issuing returns the CA that issues at now: the newest whose time has come, and which does not end
// too soon. Where there is none such, the newest whose time has come.
func (s *Service) Issuing(now time.Time) *CA {
	list := s.cas.Load().list
	begun := func(ca *CA) bool { return !now.Before(ca.From) && !now.Before(ca.Cert.NotBefore) }
	lasts := func(ca *CA) bool {
		return ca.Cert.NotAfter.Sub(now) >= s.cfg.MinLife && ca.Root.NotAfter.Sub(now) >= s.cfg.MinLife
	}
	for _, is := range []func(*CA) bool{
		func(ca *CA) bool { return begun(ca) && lasts(ca) },
		lasts, // better a CA that not everybody has heard of than none
		begun,
	} {
		if i := slices.IndexFunc(list, is); i >= 0 {
			return list[i]
		}
	}
	return list[0]
}

// CAs returns the CAs in use, the newest first.
func (s *Service) CAs() []*CA { return slices.Clone(s.cas.Load().list) }

// Roll makes next the CA that issues, from CA.From on. Those before it stay in use for what they issued: their
// certificates are handed out by cacerts, and their lists and OCSP answers go on until [Retire].
func (s *Service) Roll(next *CA, now time.Time) error {
	if err := next.Check(now); err != nil {
		return err
	}
	s.roll.Lock()
	defer s.roll.Unlock()
	list := s.cas.Load().list
	if len(list) >= MaxGenerations {
		return fmt.Errorf("%w: expected at most %d CAs in use, got one more; retire those whose certificates have ended", ErrCA, MaxGenerations)
	}
	return s.set(append([]*CA{next}, list...))
}

// Retire takes a CA that no longer issues out of use: no list and no OCSP answer by it any more.
// keyID is its issuing CA's. Certificates by it that have not ended will be refused where lists are
// required.
func (s *Service) Retire(keyID string) error {
	s.roll.Lock()
	defer s.roll.Unlock()
	list := s.cas.Load().list
	i := slices.IndexFunc(list, func(ca *CA) bool { return KeyID(ca.Cert) == keyID })
	switch {
	case i < 0:
		return fmt.Errorf("%w: service %s has no CA %s", ErrUnknownCA, s.cfg.Name, certs.Quote(keyID))
	case i == 0:
		return fmt.Errorf("%w: %s issues; make another one the issuing CA first", ErrCA, keyID)
	}
	return s.set(slices.Delete(slices.Clone(list), i, i+1))
}

// Anchors returns the roots, the current one first: what others trust.
func (s *Service) Anchors() []*x509.Certificate {
	var out []*x509.Certificate
	for _, ca := range s.cas.Load().list {
		out = add(out, ca.Root)
	}
	return out
}

// Intermediates returns what is needed between a certificate of the service and any of the
// anchors: issuing CAs and cross-certificates.
func (s *Service) Intermediates() []*x509.Certificate {
	var out []*x509.Certificate
	for _, ca := range s.cas.Load().list {
		out = add(out, ca.Cert)
		out = add(out, ca.Between...)
		out = add(out, ca.Cross...)
	}
	return out
}

// CACerts returns what EST's cacerts hands out (RFC 7030, section 4.1.3): the current root first,
// then the other roots, then what lies between them and the leaves.
func (s *Service) CACerts() []*x509.Certificate {
	return add(s.Anchors(), s.Intermediates()...)
}

func add(list []*x509.Certificate, more ...*x509.Certificate) []*x509.Certificate {
	for _, c := range more {
		if !slices.ContainsFunc(list, c.Equal) {
			list = append(list, c)
		}
	}
	return list
}

// Request is what to issue. The caller has verified the request, the device and its membership.
type Request struct {
	Public    crypto.PublicKey
	Names     []string // DNS names; the first one becomes the subject's common name
	Device    string   // the device's name in the registry, for the record
	DeviceDER []byte   // the device certificate that the certificate is bound to (RFC 9763)
	Life      time.Duration
	Now       time.Time

	// Replayed says that this very request came before. What was issued for its key is handed out
	// again while it is fresh, and is not renewed by it: ErrReplayed. When nothing was issued (the
	// centre failed in between), it is answered like a new one.
	Replayed bool
}

// Issued is an answer.
type Issued struct {
	Certificate *x509.Certificate
	// Again: the certificate was issued before, for the same key and device, and is handed out
	// once more.
	Again bool
}

// Issue issues a certificate for a device, and records it before returning. Asked again for the
// same key within Config.Again, it returns what it issued before, so that an answer that got lost
// costs nothing; later, the key's new certificate replaces the one before.
//
// Errors: ErrName, ErrLife, ErrCAEnding, ErrKeyInUse, ErrKeyRevoked, ErrReplayed, *certs.Error, and
// those of the recorder and the signer.
func (s *Service) Issue(ctx context.Context, r Request) (*Issued, error) {
	if err := s.judge(&r); err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(r.Public)
	if err != nil {
		return nil, fmt.Errorf("public key of the request: %w", err)
	}
	key := sha256.Sum256(spki)
	// A second turn is needed only when another instance recorded the same key in between.
	for range 3 {
		before, err := s.cfg.Recorder.FindKey(ctx, s.cfg.Name, key)
		known := err == nil
		if err != nil && !errors.Is(err, ErrNotIssued) {
			return nil, err
		}
		if known {
			again, err := s.again(&r, &before)
			if again != nil || err != nil {
				return again, err
			}
		}
		if r.Replayed && known {
			return nil, fmt.Errorf("%w: expected a new request, got the octets of an earlier one; make a new request", ErrReplayed)
		}
		issued, err := s.issue(ctx, &r, key, known, &before)
		if errors.Is(err, ErrDuplicate) {
			continue
		}
		return issued, err
	}
	return nil, fmt.Errorf("%w: another instance of the centre answers the same request; ask again", ErrDuplicate)
}

func (s *Service) judge(r *Request) error {
	if r.Now.IsZero() {
		return errors.New("issuing: expected the time, got the zero time")
	}
	if err := certs.CheckPublicKey(r.Public); err != nil {
		return err
	}
	if r.Device == "" || len(r.DeviceDER) == 0 {
		return errors.New("issuing a service certificate: expected the device and its certificate, got none")
	}
	if len(r.Names) == 0 || len(r.Names) > MaxNames {
		return fmt.Errorf("%w: expected 1 to %d DNS names, got %d", ErrName, MaxNames, len(r.Names))
	}
	for _, n := range r.Names {
		if !validDNS(n) {
			return fmt.Errorf("%w: expected a DNS name without wildcards, got %s", ErrName, certs.Quote(n))
		}
		if !within(n, s.cfg.Domain) {
			return fmt.Errorf("%w: expected a name in %s, got %s", ErrName, s.cfg.Domain, certs.Quote(n))
		}
	}
	if r.Life == 0 {
		r.Life = s.cfg.Life
	}
	if r.Life < s.cfg.MinLife || r.Life > s.cfg.MaxLife {
		return fmt.Errorf("%w: expected %v to %v, got %v", ErrLife, s.cfg.MinLife, s.cfg.MaxLife, r.Life)
	}
	return nil
}

func within(name, domain string) bool {
	n, d := strings.ToLower(name), strings.ToLower(domain)
	return d == "" || n == d || strings.HasSuffix(n, "."+d)
}

// again returns what was issued before when it answers r. Nil: something new must be issued.
func (s *Service) again(r *Request, before *Record) (*Issued, error) {
	if before.Device != r.Device {
		return nil, fmt.Errorf("%w: make a key of its own for each device and service", ErrKeyInUse)
	}
	if !before.RevokedAt.IsZero() {
		return nil, fmt.Errorf("%w on %s: make a new key", ErrKeyRevoked, stamp(before.RevokedAt))
	}
	window := s.cfg.Again
	if window == 0 {
		window = before.NotAfter.Sub(before.NotBefore) / 3
	}
	if r.Now.Before(before.NotBefore) || r.Now.After(before.NotAfter) || r.Now.Sub(before.NotBefore) > window+s.cfg.Backdate || before.Issuer != KeyID(s.Issuing(r.Now).Cert) {
		return nil, nil
	}
	c, err := x509.ParseCertificate(before.DER)
	if err != nil {
		return nil, fmt.Errorf("record of certificate %s: %w", before.Serial, err)
	}
	if !answers(c, r) {
		return nil, nil
	}
	return &Issued{Certificate: c, Again: true}, nil
}

// answers reports whether a certificate is what would be issued for r: the grant or the device
// certificate may have changed since.
func answers(c *x509.Certificate, r *Request) bool {
	return slices.Equal(c.DNSNames, r.Names) && certs.CheckRelated(c, r.DeviceDER) == nil
}

func (s *Service) issue(ctx context.Context, r *Request, key [32]byte, known bool, before *Record) (*Issued, error) {
	ca := s.Issuing(r.Now)
	until := r.Now.Add(r.Life)
	for _, c := range []*x509.Certificate{ca.Cert, ca.Root} {
		if c.NotAfter.Before(until) {
			until = c.NotAfter // no certificate outlives its issuer
		}
	}
	if until.Sub(r.Now) < s.cfg.MinLife {
		return nil, fmt.Errorf("%w: expected at least %v, %s ends on %s; make its successor (roll-over)", ErrCAEnding, s.cfg.MinLife, certs.SubjectOf(ca.Cert), stamp(ca.Cert.NotAfter))
	}
	from := r.Now.Add(-s.cfg.Backdate)
	if from.Before(ca.Cert.NotBefore) {
		from = ca.Cert.NotBefore
	}
	serial, err := newSerial(s.cfg.Rand)
	if err != nil {
		return nil, err
	}
	related, err := certs.NewRelatedCertificate(crypto.SHA256, r.DeviceDER)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: commonName(r.Names[0])}, DNSNames: r.Names,
		NotBefore: from, NotAfter: until, BasicConstraintsValid: true,
		KeyUsage:           x509.KeyUsageDigitalSignature,
		ExtKeyUsage:        []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{certs.EKUIPsecIKE},
		ExtraExtensions:    []pkix.Extension{related},
	}
	id := KeyID(ca.Cert)
	if s.cfg.CRLURL != "" {
		t.CRLDistributionPoints = []string{strings.ReplaceAll(s.cfg.CRLURL, "{ca}", id)}
	}
	if s.cfg.OCSPURL != "" {
		t.OCSPServer = []string{strings.ReplaceAll(s.cfg.OCSPURL, "{ca}", id)}
	}
	c, err := sign(s.cfg.Rand, t, ca.Cert, r.Public, ca.Key)
	if err != nil {
		return nil, err
	}
	rec := Record{
		Service: s.cfg.Name, Issuer: id, Serial: SerialText(serial), Device: r.Device, Key: key,
		DER: c.Raw, NotBefore: c.NotBefore, NotAfter: c.NotAfter, Issued: r.Now,
	}
	if known {
		rec.Replaces = before.Serial
	}
	if err := s.cfg.Recorder.Add(ctx, rec); err != nil {
		return nil, fmt.Errorf("recording a certificate before it is handed out: %w", err)
	}
	return &Issued{Certificate: c}, nil
}

// commonName is the first name, where it fits (ub-common-name, RFC 5280, appendix A.1).
func commonName(name string) string {
	if len(name) > 64 {
		return name[:64]
	}
	return name
}

// Find returns the record of a certificate that claims to be of this service. It is looked up by
// issuer and serial number, and must be the very same octets: ErrNotIssued otherwise.
func (s *Service) Find(ctx context.Context, c *x509.Certificate) (Record, error) {
	for _, ca := range s.cas.Load().list {
		if !bytes.Equal(c.RawIssuer, ca.Cert.RawSubject) || !bytes.Equal(c.AuthorityKeyId, ca.Cert.SubjectKeyId) {
			continue
		}
		r, err := s.cfg.Recorder.Find(ctx, s.cfg.Name, KeyID(ca.Cert), SerialText(c.SerialNumber))
		if err != nil {
			return Record{}, err
		}
		if !bytes.Equal(r.DER, c.Raw) {
			return Record{}, fmt.Errorf("%w: serial number %s belongs to another certificate", ErrNotIssued, r.Serial)
		}
		return r, nil
	}
	return Record{}, fmt.Errorf("%w: expected a certificate by a CA of service %s", ErrNotIssued, s.cfg.Name)
}

// Revoke revokes a certificate of any CA in use. The next list and the next OCSP answer name it.
// reason is a CRLReason (RFC 5280, section 5.3.1); 6 (hold) and 8 (removed) are not supported.
func (s *Service) Revoke(ctx context.Context, issuer, serial string, at time.Time, reason int) (Record, error) {
	switch reason {
	case 0, 1, 2, 3, 4, 5, 9, 10:
	default:
		return Record{}, fmt.Errorf("reason for revocation: expected a CRLReason of RFC 5280, section 5.3.1, but for certificateHold and removeFromCRL, got %d", reason)
	}
	for _, ca := range s.cas.Load().list {
		if KeyID(ca.Cert) == issuer {
			return s.cfg.Recorder.Revoke(ctx, s.cfg.Name, issuer, serial, at, reason)
		}
	}
	return Record{}, fmt.Errorf("%w: service %s has no CA %s", ErrUnknownCA, s.cfg.Name, certs.Quote(issuer))
}
