// Package labca is a small issuing authority for laboratories, the demonstration and the tests:
// a device CA, a service CA for each VPN service and a CA for policy signers, with the profile
// that a real authority would use (docs/pki.md). Each is a root, an issuing CA below it, and
// leaves below that.
//
// It is not the SP's centre: keys lie in files, and whoever can read the folder can issue. The
// clock is an argument everywhere, so that tests can make certificates of any age.
package labca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"wardgate/internal/certs"
)

// Kind says what an authority issues.
type Kind string

// The kinds of authority.
const (
	Device  Kind = "device"  // device certificates, layer 1 of the token
	Service Kind = "service" // service certificates of one VPN service, layer 2
	Policy  Kind = "policy"  // certificates of policy signers
)

// Errors of the authority. Refusals of a certificate or request are *certs.Error.
var (
	ErrOutsideDomain = errors.New("name outside the authority's domain")
	ErrNotIssued     = errors.New("no certificate with this serial number was issued here")
	ErrRevoked       = errors.New("certificate is revoked already")
	ErrWrongKind     = errors.New("this authority issues something else")
)

// KeyType is a kind of key.
type KeyType string

// The kinds of key that can be made.
const (
	P256    KeyType = "p256"
	P384    KeyType = "p384"
	RSA2048 KeyType = "rsa2048"
	RSA3072 KeyType = "rsa3072"
	Ed25519 KeyType = "ed25519"
)

// NewKey makes a key in software. An empty type means P256.
func NewKey(t KeyType) (crypto.Signer, error) {
	switch t {
	case "", P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case Ed25519:
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return k, err
	}
	return nil, fmt.Errorf("key type: expected p256, p384, rsa2048, rsa3072 or ed25519, got %q", string(t))
}

// Options says how an authority is made.
type Options struct {
	Kind Kind
	Name string // "device", the name of the service, or "policy": becomes part of the subject
	// Domain is the DNS domain below which it may certify names ("devices.example"). It
	// becomes a name constraint of the issuing CA. Empty: no constraint.
	Domain string
	Key    KeyType
	At     time.Time     // notBefore of root and issuing CA
	Life   time.Duration // of the root; zero: 20 years. The issuing CA lives half as long.
	// Direct leaves the issuing CA out: the root issues leaves itself.
	Direct bool
	CRLURL string // CRL distribution point in the certificates; empty: none
}

// Authority is one CA with its root. It is safe for concurrent use.
type Authority struct {
	opt   Options
	root  *x509.Certificate
	rootK crypto.Signer
	ca    *x509.Certificate // the issuing CA; the root itself when Direct
	caK   crypto.Signer
	dir   string // where it is kept; empty: in memory only

	mu     sync.Mutex // guards issued, crlNo and the file that holds them
	issued []Issued
	crlNo  int64
	lock   releaser
}

// Issued records one certificate.
type Issued struct {
	Serial    string     `json:"serial"` // hexadecimal
	Subject   string     `json:"subject"`
	Names     []string   `json:"names,omitempty"`
	NotBefore time.Time  `json:"not_before"`
	NotAfter  time.Time  `json:"not_after"`
	Device    string     `json:"device,omitempty"` // serial number of the device certificate it is bound to
	RevokedAt *time.Time `json:"revoked_at,omitempty"`
	Reason    int        `json:"reason,omitempty"` // CRLReason, RFC 5280 section 5.3.1
}

const (
	year        = 365 * 24 * time.Hour
	defaultLife = 20 * year
	// Lives of leaves. A device certificate lasts as long as the device; service certificates
	// live for days, because they are renewed online (docs/pki.md).
	deviceLife  = 10 * year
	serviceLife = 7 * 24 * time.Hour
	policyLife  = 2 * year
)

// New makes an authority in memory.
func New(opt Options) (*Authority, error) {
	switch opt.Kind {
	case Device, Service, Policy:
	default:
		return nil, fmt.Errorf("kind of authority: expected device, service or policy, got %q", string(opt.Kind))
	}
	if opt.At.IsZero() {
		return nil, errors.New("authority: expected a time to begin at, got the zero time")
	}
	if !ValidName(opt.Name) {
		return nil, fmt.Errorf("name of the authority: expected letters, digits, '-', '.' and '_', at most 64, got %s", certs.Quote(opt.Name))
	}
	if opt.Life == 0 {
		opt.Life = defaultLife
	}
	a := &Authority{opt: opt}
	var err error
	if a.rootK, err = NewKey(opt.Key); err != nil {
		return nil, err
	}
	org := "Wardgate Lab"
	pathLen := 1
	if opt.Direct {
		pathLen = 0
	}
	root := a.caTemplate(pkix.Name{Organization: []string{org}, CommonName: title(opt) + " Root CA"}, opt.Life, pathLen)
	if opt.Direct {
		a.constrain(root)
	}
	if a.root, err = sign(root, root, a.rootK.Public(), a.rootK); err != nil {
		return nil, err
	}
	if opt.Direct {
		a.ca, a.caK = a.root, a.rootK
		return a, nil
	}
	if a.caK, err = NewKey(opt.Key); err != nil {
		return nil, err
	}
	ca := a.caTemplate(pkix.Name{Organization: []string{org}, CommonName: title(opt) + " Issuing CA"}, opt.Life/2, 0)
	a.constrain(ca)
	if a.ca, err = sign(ca, a.root, a.caK.Public(), a.rootK); err != nil {
		return nil, err
	}
	return a, nil
}

// ValidName reports whether s can name an authority or a service: it becomes a file name, a
// certificate's subject and a token's label.
func ValidName(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, c := range s {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_':
		default:
			return false
		}
	}
	return true
}

func title(o Options) string {
	switch o.Kind {
	case Device:
		return "Device"
	case Policy:
		return "Policy"
	case Service:
	}
	return "Service " + o.Name
}

func (a *Authority) caTemplate(subject pkix.Name, life time.Duration, pathLen int) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: newSerial(), Subject: subject,
		NotBefore: a.opt.At, NotAfter: a.opt.At.Add(life),
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: pathLen, MaxPathLenZero: pathLen == 0,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// constrain narrows an issuing CA: to its purposes and to its domain.
func (a *Authority) constrain(t *x509.Certificate) {
	setEKUs(t, a.ekus())
	if a.opt.Domain != "" {
		t.PermittedDNSDomains = []string{a.opt.Domain}
		t.PermittedDNSDomainsCritical = true
	}
	if a.opt.CRLURL != "" && !a.opt.Direct {
		t.CRLDistributionPoints = []string{strings.TrimSuffix(a.opt.CRLURL, "/") + "/root.crl"}
	}
}

// ekus are the purposes of the certificates that the authority issues.
func (a *Authority) ekus() []asn1.ObjectIdentifier {
	if a.opt.Kind == Policy {
		return []asn1.ObjectIdentifier{certs.EKUPolicySigning}
	}
	return []asn1.ObjectIdentifier{certs.EKUIPsecIKE, certs.EKUClientAuth}
}

func setEKUs(t *x509.Certificate, ekus []asn1.ObjectIdentifier) {
	for _, e := range ekus {
		if e.Equal(certs.EKUClientAuth) {
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		} else {
			t.UnknownExtKeyUsage = append(t.UnknownExtKeyUsage, e)
		}
	}
}

// newSerial returns a random positive serial number of 16 octets (RFC 5280, section 4.1.2.2).
func newSerial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read does not fail
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:])
}

func sign(t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for %s: %w", certs.Quote(t.Subject.String()), err)
	}
	return x509.ParseCertificate(der)
}

// Kind, Name and Domain are what the authority was made with.
func (a *Authority) Kind() Kind { return a.opt.Kind }

// Name is the authority's name: for a service CA, the service's.
func (a *Authority) Name() string { return a.opt.Name }

// Domain is the DNS domain below which the authority certifies names; empty: any.
func (a *Authority) Domain() string { return a.opt.Domain }

// Anchor returns the root: what others trust.
func (a *Authority) Anchor() *x509.Certificate { return a.root }

// Intermediates returns the certificates between a leaf and the anchor, which go with the leaf:
// the issuing CA, or nothing when the root issues itself.
func (a *Authority) Intermediates() []*x509.Certificate {
	if a.ca == a.root {
		return nil
	}
	return []*x509.Certificate{a.ca}
}

// Issued returns the record of what was issued, oldest first.
func (a *Authority) Issued() []Issued {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.issued)
}

// Request says what to issue. The zero values stand for the profile; tests set the others to make
// certificates that must be refused.
type Request struct {
	Public   crypto.PublicKey
	Subject  pkix.Name // empty: CN = first DNS name
	DNSNames []string
	At       time.Time     // notBefore
	Life     time.Duration // zero: 10 years for a device, 7 days for a service, 2 years for a signer

	// Device is the DER of the device certificate that a service certificate is bound to.
	Device []byte
	Hash   crypto.Hash // of the binding; zero: SHA-256

	// For negative tests.
	Unbound       bool                    // leave RelatedCertificate out
	EKUs          []asn1.ObjectIdentifier // instead of the profile's
	NoEKU         bool
	KeyUsage      x509.KeyUsage // instead of digitalSignature
	IsCA          bool
	IgnoreDomain  bool             // certify names outside the domain (and so outside the name constraint)
	Extra         []pkix.Extension // more extensions
	SigningCA     *x509.Certificate
	SigningCAKey  crypto.Signer
	AllowWeakKeys bool
}

// Issue issues a certificate and records it.
func (a *Authority) Issue(r Request) (*x509.Certificate, error) {
	if !r.AllowWeakKeys {
		if err := certs.CheckPublicKey(r.Public); err != nil {
			return nil, err
		}
	}
	if r.At.IsZero() {
		return nil, errors.New("issuing: expected a time to begin at, got the zero time")
	}
	if len(r.DNSNames) == 0 {
		return nil, errors.New("issuing: expected at least one DNS name for the certificate, got none")
	}
	if !r.IgnoreDomain {
		for _, n := range r.DNSNames {
			if err := a.within(n); err != nil {
				return nil, err
			}
		}
	}
	t := &x509.Certificate{
		SerialNumber: newSerial(), Subject: r.Subject, DNSNames: r.DNSNames,
		NotBefore: r.At, NotAfter: r.At.Add(a.life(r.Life)),
		BasicConstraintsValid: true, IsCA: r.IsCA,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtraExtensions: r.Extra,
	}
	if t.Subject.CommonName == "" {
		t.Subject.CommonName = r.DNSNames[0]
	}
	if r.KeyUsage != 0 {
		t.KeyUsage = r.KeyUsage
	}
	switch {
	case r.EKUs != nil:
		setEKUs(t, r.EKUs)
	case !r.NoEKU:
		setEKUs(t, a.ekus())
	}
	if a.opt.CRLURL != "" {
		t.CRLDistributionPoints = []string{strings.TrimSuffix(a.opt.CRLURL, "/") + "/ca.crl"}
	}
	record := Issued{}
	if a.opt.Kind == Service && !r.Unbound {
		if len(r.Device) == 0 {
			return nil, errors.New("issuing a service certificate: expected the device certificate that it is bound to, got none")
		}
		hash := r.Hash
		if hash == 0 {
			hash = crypto.SHA256
		}
		ext, err := certs.NewRelatedCertificate(hash, r.Device)
		if err != nil {
			return nil, err
		}
		t.ExtraExtensions = append([]pkix.Extension{ext}, t.ExtraExtensions...)
		if d, err := x509.ParseCertificate(r.Device); err == nil {
			record.Device = hex.EncodeToString(d.SerialNumber.Bytes())
		}
	}
	ca, key := a.ca, a.caK
	if r.SigningCA != nil {
		ca, key = r.SigningCA, r.SigningCAKey
	}
	c, err := sign(t, ca, r.Public, key)
	if err != nil {
		return nil, err
	}
	record.Serial, record.Subject = hex.EncodeToString(c.SerialNumber.Bytes()), c.Subject.String()
	record.Names, record.NotBefore, record.NotAfter = c.DNSNames, c.NotBefore, c.NotAfter
	a.mu.Lock()
	defer a.mu.Unlock()
	a.issued = append(a.issued, record)
	if err := a.save(); err != nil {
		return nil, err
	}
	return c, nil
}

func (a *Authority) life(d time.Duration) time.Duration {
	if d != 0 {
		return d
	}
	switch a.opt.Kind {
	case Device:
		return deviceLife
	case Policy:
		return policyLife
	case Service:
	}
	return serviceLife
}

func (a *Authority) within(name string) error {
	n, d := strings.ToLower(name), strings.ToLower(a.opt.Domain)
	if d == "" || n == d || strings.HasSuffix(n, "."+d) {
		return nil
	}
	return fmt.Errorf("%w: expected a name in %s, got %s; ask the right authority, or choose a name in its domain", ErrOutsideDomain, certs.Quote(d), certs.Quote(name))
}

// FromCSR says how a request is answered.
type FromCSR struct {
	CSR  []byte    // DER or PEM
	At   time.Time // now
	Life time.Duration

	// Name overrides the DNS names that the request asks for. The subject becomes CN=Name.
	Name string

	// For service certificates: the authority that device certificates must come from, and the
	// device certificate when the request does not carry it.
	DeviceAnchors []*x509.Certificate
	DeviceCA      []*x509.Certificate // issuing CAs between it and the anchors
	DeviceCRLs    []*x509.RevocationList
	Device        *x509.Certificate
}

// IssueFromCSR checks a request (signed by its own key; key within the profile; for a service, the
// proof of the device key as RFC 9763 lays down, and the device certificate's own chain) and
// issues what it asks for: only the key and the names are taken from it, the profile is ours.
func (a *Authority) IssueFromCSR(r FromCSR) (*x509.Certificate, error) {
	csr, err := certs.ParseCSR(r.CSR)
	if err != nil {
		return nil, err
	}
	names := csr.DNSNames
	if r.Name != "" {
		names = []string{r.Name}
	}
	if len(names) == 0 && csr.Subject.CommonName != "" {
		names = []string{csr.Subject.CommonName}
	}
	req := Request{Public: csr.PublicKey, DNSNames: names, At: r.At, Life: r.Life}
	if a.opt.Kind == Service {
		device, err := a.provenDevice(csr, r)
		if err != nil {
			return nil, err
		}
		// A device key must not serve as a service key too: revoking one would not revoke the other.
		if certs.SamePublicKey(device.PublicKey, csr.PublicKey) {
			return nil, &certs.Error{Class: certs.ProofOfDevice, Role: "service", Expected: "a key of its own", Got: "the device's key", Do: "make a service key with `wardgate token csr --service`"}
		}
		req.Device = device.Raw
	}
	return a.Issue(req)
}

func (a *Authority) provenDevice(csr *x509.CertificateRequest, r FromCSR) (*x509.Certificate, error) {
	proof, err := certs.RelatedRequestOf(csr)
	if err != nil {
		return nil, err
	}
	if proof == nil {
		return nil, &certs.Error{Class: certs.ProofOfDevice, Role: "service", Expected: "a request with a relatedCertRequest attribute (RFC 9763)", Got: "none", Do: "make the request with `wardgate token csr --service`"}
	}
	device := r.Device
	if device == nil {
		if device, err = proof.Certificate(); err != nil {
			return nil, err
		}
	}
	var between [][]byte
	for _, c := range r.DeviceCA {
		between = append(between, c.Raw)
	}
	// RFC 9763, section 3.2: the related certificate is validated first.
	if _, err := certs.VerifyChain(certs.Options{
		Leaf: device.Raw, Intermediates: between, Anchors: r.DeviceAnchors, CRLs: r.DeviceCRLs,
		EKU: certs.EKUIPsecIKE, At: r.At, Role: "device",
	}); err != nil {
		return nil, err
	}
	if err := proof.Check(device, r.At); err != nil {
		return nil, err
	}
	return device, nil
}

// Revoke puts a certificate on the list. reason is a CRLReason (RFC 5280, section 5.3.1).
func (a *Authority) Revoke(serial *big.Int, at time.Time, reason int) error {
	want := hex.EncodeToString(serial.Bytes())
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.issued {
		e := &a.issued[i]
		if e.Serial != want {
			continue
		}
		if e.RevokedAt != nil {
			return fmt.Errorf("%w: %s, since %s", ErrRevoked, e.Subject, e.RevokedAt.UTC().Format(time.RFC3339))
		}
		at = at.UTC()
		e.RevokedAt, e.Reason = &at, reason
		return a.save()
	}
	return fmt.Errorf("%w: %s; see the list with `wardgate-lab ca list`", ErrNotIssued, want)
}

// CRLs makes the current revocation lists, valid for life from at: the issuing CA's, and the
// root's (empty) when there is an issuing CA below it. Numbers grow with every call.
func (a *Authority) CRLs(at time.Time, life time.Duration) ([]*x509.RevocationList, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.crlNo++
	var entries []x509.RevocationListEntry
	for _, e := range a.issued {
		if e.RevokedAt == nil {
			continue
		}
		n, ok := new(big.Int).SetString(e.Serial, 16)
		if !ok {
			return nil, fmt.Errorf("record of issued certificates: serial number %q is not hexadecimal", e.Serial)
		}
		entries = append(entries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: *e.RevokedAt, ReasonCode: e.Reason})
	}
	one := func(ca *x509.Certificate, key crypto.Signer, entries []x509.RevocationListEntry) (*x509.RevocationList, error) {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(a.crlNo), ThisUpdate: at, NextUpdate: at.Add(life), RevokedCertificateEntries: entries,
		}, ca, key)
		if err != nil {
			return nil, fmt.Errorf("signing the revocation list: %w", err)
		}
		return x509.ParseRevocationList(der)
	}
	first, err := one(a.ca, a.caK, entries)
	if err != nil {
		return nil, err
	}
	lists := []*x509.RevocationList{first}
	if a.ca != a.root {
		l, err := one(a.root, a.rootK, nil)
		if err != nil {
			return nil, err
		}
		lists = append(lists, l)
	}
	return lists, a.save()
}

// DER returns the encodings of certificates, for interfaces that take octets.
func DER(list []*x509.Certificate) [][]byte {
	var out [][]byte
	for _, c := range list {
		out = append(out, bytes.Clone(c.Raw))
	}
	return out
}
