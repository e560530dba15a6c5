package est

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/issue"
)

// replayMemory is for how long requests are remembered: longer than a proof is good for.
const replayMemory = certs.MaxProofAge + 2*certs.MaxProofAhead

// client is who asks, as TLS and the certificate show.
type client struct {
	leaf    *x509.Certificate
	device  *x509.Certificate // the device certificate; nil until known
	service bool              // leaf is a service certificate
	record  issue.Record      // of the service certificate
}

// enroll answers simpleenroll and simplereenroll. The order is: what costs little first, nothing that
// asks the registry before the client is known, and nothing is remembered before all is proven.
func (x *exchange) enroll(w http.ResponseWriter) *Refusal {
	t := x.r.TLS
	switch {
	case t == nil || t.Version < tls.VersionTLS13:
		return refuse(NoTLS, "TLS 1.3", "something older", "use a client that speaks TLS 1.3")
	case len(t.PeerCertificates) == 0:
		if wait, ok := x.s.addresses.Take(AddressKey(x.r.RemoteAddr), x.now); !ok {
			return tooMany("requests of this address", wait)
		}
		return refuse(NoCertificate, "a client certificate in the TLS handshake", "none", "use the device certificate (on the token) and its key for the connection")
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), x.s.cfg.BodyTimeout+x.s.cfg.IssueTimeout)
	defer cancel()
	body, refusal := x.body(w)
	if refusal != nil {
		return refusal
	}
	ctx, cancelIssue := context.WithTimeout(ctx, x.s.cfg.IssueTimeout)
	defer cancelIssue()
	leave, refusal := x.enter(ctx)
	if refusal != nil {
		return refusal
	}
	defer leave()

	c, refusal := x.authenticate(ctx, t)
	if refusal != nil {
		// Verdicts on strangers cost as much as those on members: they are counted.
		if wait, ok := x.s.addresses.Take(AddressKey(x.r.RemoteAddr), x.now); !ok {
			return tooMany("requests of this address", wait).because(refusal)
		}
		return refusal
	}
	key := issue.KeyHash(c.leaf)
	if wait, ok := x.s.clients.Take(x.name+" "+string(key[:]), x.now); !ok {
		return tooMany("enrolments of this device", wait)
	}
	der, refusal := decodeBody(body)
	if refusal != nil {
		return refusal
	}
	csr, refusal := parseRequest(der)
	if refusal != nil {
		return refusal
	}
	if x.service.Curve != nil && !onCurve(csr.PublicKey, x.service.Curve) {
		return refuse(BadCSR, "a key on "+x.service.Curve.Params().Name, certs.KeyName(csr.PublicKey), "make a key of that kind: see csrattrs")
	}
	bound, refusal := x.checkBinding(csr, t)
	if refusal != nil {
		return refusal
	}
	if bound {
		// RFC 9266, section 4.1: a binding is for one authentication on a connection, which is
		// closed thereafter.
		w.Header().Set("Connection", "close")
	}
	proven, refusal := x.checkProof(ctx, csr, c)
	if refusal != nil {
		return refusal
	}
	// A device key must not serve as a service key too: revoking one would not revoke the other.
	if certs.SamePublicKey(c.device.PublicKey, csr.PublicKey) {
		return refuse(DeviceKey, "a key of its own for the service", "the device's key", "make a service key on the token")
	}
	grant, refusal := x.authorize(ctx, c)
	if refusal != nil {
		return refusal
	}
	if refusal := x.checkNames(csr, c, grant.Names); refusal != nil {
		return refusal
	}
	seen, err := x.s.cfg.Replays.Seen(ctx, sha256.Sum256(der), x.now, x.now.Add(replayMemory))
	if err != nil {
		return failure("memory of requests", err)
	}
	issued, err := x.service.CA.Issue(ctx, issue.Request{
		Public: csr.PublicKey, Names: grant.Names, Device: grant.Device, DeviceDER: c.device.Raw,
		Life: grant.Life, Now: x.now, Replayed: seen,
	})
	if err != nil {
		return fromIssue(err)
	}
	out, err := certsOnly(issued.Certificate) // RFC 7030, section 4.2.3: only the certificate that was issued
	if err != nil {
		return internal("certs-only answer", err)
	}
	x.s.cfg.Recorder.Enrolled(context.WithoutCancel(x.r.Context()), Enrolment{
		Operation: x.op, Service: x.name, Device: grant.Device, Client: certs.SubjectOf(c.leaf), Remote: x.r.RemoteAddr,
		Certificate: issued.Certificate, Again: issued.Again, Bound: bound, Proven: proven,
	})
	answer(w, "application/pkcs7-mime; smime-type=certs-only", out)
	return nil
}

// authenticate judges the client's certificate: by the anchors of device certificates, and for
// renewals also by those of this service. Nothing that the client sends becomes an anchor.
func (x *exchange) authenticate(ctx context.Context, t *tls.ConnectionState) (*client, *Refusal) {
	leaf := t.PeerCertificates[0]
	device := x.verifyDevice(leaf, t.PeerCertificates[1:])
	if device == nil {
		return &client{leaf: leaf, device: leaf}, nil
	}
	if certs.ClassOf(device) != certs.UnknownCA {
		return nil, fromCert(BadCertificate, "a device certificate", device)
	}
	service := x.verifyService(leaf)
	switch {
	case certs.ClassOf(service) == certs.UnknownCA:
		return nil, fromCert(BadCertificate, "a device certificate, or for "+opReenroll+" a certificate of this service,", device)
	case service != nil:
		return nil, fromCert(BadCertificate, "a service certificate", service)
	case x.op != opReenroll:
		return nil, refuse(NotForEnrol, "the device certificate for "+opEnroll, "a service certificate", "use the device certificate, or "+opReenroll)
	}
	rec, err := x.service.CA.Find(ctx, leaf)
	switch {
	case errors.Is(err, issue.ErrNotIssued):
		return nil, refuse(BadCertificate, "a certificate that is on this centre's record", "one that is not", "enrol with the device certificate").because(err)
	case err != nil:
		return nil, failure("record of certificates", err)
	case rec.Revoked(x.now):
		e := &certs.Error{Class: certs.Revoked, Role: "service", Subject: certs.SubjectOf(leaf), Expected: "a certificate that is not revoked", Got: "one that is", Do: "enrol with the device certificate if the device still belongs to the service"}
		return nil, fromCert(BadCertificate, "a service certificate", e)
	}
	x.device = rec.Device
	return &client{leaf: leaf, service: true, record: rec}, nil
}

// verifyDevice judges a device certificate as docs/pki.md has it. between are what came with it.
func (x *exchange) verifyDevice(leaf *x509.Certificate, between []*x509.Certificate) error {
	trust := x.s.cfg.Trust()
	var ders [][]byte
	for _, c := range slices.Concat(between, trust.Intermediates) {
		if len(ders) < certs.MaxIntermediates && !slices.ContainsFunc(ders, func(d []byte) bool { return bytes.Equal(d, c.Raw) }) {
			ders = append(ders, c.Raw)
		}
	}
	if _, err := certs.VerifyChain(certs.Options{
		Leaf: leaf.Raw, Intermediates: ders, Anchors: trust.Anchors, CRLs: trust.CRLs, RequireCRL: trust.RequireCRL,
		EKU: certs.EKUIPsecIKE, At: x.now, Role: "device",
	}); err != nil {
		return err
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return &certs.Error{Class: certs.WrongEKU, Role: "device", Subject: certs.SubjectOf(leaf), Expected: "extendedKeyUsage clientAuth", Got: "others", Do: "have the device certificate issued for enrolment, too"}
	}
	return nil
}

// verifyService judges a certificate of this service by the CAs that are in use here.
func (x *exchange) verifyService(leaf *x509.Certificate) error {
	var ders [][]byte
	for _, c := range issue.Above(leaf, x.service.CA.Intermediates()) {
		ders = append(ders, c.Raw)
	}
	_, err := certs.VerifyChain(certs.Options{
		Leaf: leaf.Raw, Intermediates: ders, Anchors: x.service.CA.Anchors(),
		EKU: certs.EKUClientAuth, At: x.now, Role: "service",
	})
	return err
}

// checkBinding links the request to the TLS connection. RFC 7030, section 3.5: what is there must
// be right; whether it must be there is the service's policy.
func (x *exchange) checkBinding(csr *x509.CertificateRequest, t *tls.ConnectionState) (bool, *Refusal) {
	text, there, err := certs.ChallengeOf(csr)
	if err != nil {
		return false, fromCert(Malformed, "a request", err)
	}
	if !there {
		if x.service.Plain {
			return false, nil
		}
		return false, refuse(NoBinding, "a request linked to this TLS connection: challengePassword with its tls-exporter in base64 (RFC 7030, section 3.5; RFC 9266)", "a request without", "make the request after the handshake, with the connection's exporter in it")
	}
	want, err := Binding(t)
	if err != nil {
		return false, internal("TLS exporter", err)
	}
	if subtle.ConstantTimeCompare([]byte(want), []byte(text)) != 1 {
		return false, refuse(WrongBinding, "the tls-exporter of this TLS connection in challengePassword (RFC 9266)", "another value", "make a new request for each connection; a client that cannot link them leaves challengePassword out")
	}
	return true, nil
}

// checkProof finds the device certificate and checks that its key took part in the request: RFC
// 9763, section 3.2. It sets c.device.
func (x *exchange) checkProof(ctx context.Context, csr *x509.CertificateRequest, c *client) (bool, *Refusal) {
	proof, err := certs.RelatedRequestOf(csr)
	if err != nil {
		return false, fromCert(BadProof, "relatedCertRequest", err)
	}
	if proof == nil {
		if !x.service.Plain {
			return false, refuse(NoProof, "a request with relatedCertRequest (RFC 9763)", "none", "have the device's key sign the request on the token")
		}
		if c.device != nil {
			return false, nil // the TLS handshake shows that the client has the device's key
		}
		// A renewal with the service certificate alone: the device is on record.
		device, err := x.s.cfg.Registry.DeviceCertificate(ctx, c.record.Device)
		if err != nil {
			return false, failure("registry", err)
		}
		return false, x.checkDevice(c, device)
	}
	// The proof is signed over issuer and serial number: it names one certificate.
	device := c.device
	if device == nil {
		if device, err = proof.Certificate(); err != nil {
			return false, fromCert(BadProof, "relatedCertRequest", err)
		}
	}
	if !bytes.Equal(proof.Issuer, device.RawIssuer) || proof.Serial.Cmp(device.SerialNumber) != 0 {
		return false, refuse(OtherDevice, "a relatedCertRequest for the device certificate of this connection ("+certs.SubjectOf(device)+")",
			"one for serial number "+hex.EncodeToString(proof.Serial.Bytes()), "make the request with the device certificate that the connection is made with")
	}
	if age := x.now.Sub(proof.Time); age > x.s.cfg.ProofAge {
		return false, refuse(BadProof, "a relatedCertRequest of the last "+x.s.cfg.ProofAge.String(), "one made on "+proof.Time.Format(time.DateTime)+" UTC", "check the device's clock, then make the request again")
	}
	if err := proof.Check(device, x.now); err != nil {
		return false, fromCert(BadProof, "relatedCertRequest", err)
	}
	if c.device == nil {
		if refusal := x.checkDevice(c, device); refusal != nil {
			return false, refusal
		}
	}
	return true, nil
}

// checkDevice judges the device certificate behind a service certificate: valid itself, and the one
// that the service certificate is bound to.
func (x *exchange) checkDevice(c *client, device *x509.Certificate) *Refusal {
	if err := certs.CheckRelated(c.leaf, device.Raw); err != nil {
		return fromCert(OtherDevice, "the device certificate that the service certificate is bound to", err)
	}
	if err := x.verifyDevice(device, nil); err != nil {
		return fromCert(BadCertificate, "a device certificate", err)
	}
	c.device = device
	return nil
}

func (x *exchange) authorize(ctx context.Context, c *client) (Grant, *Refusal) {
	grant, err := x.s.cfg.Registry.Authorize(ctx, Device{Certificate: c.device}, x.name, x.now)
	if denied, ok := errors.AsType[*Denied](err); ok {
		r := &Refusal{Class: NotMember, Expected: denied.Expected, Got: denied.Got, Do: denied.Do, Err: err}
		if denied.RetryAfter > 0 {
			r.Class, r.RetryAfter = Pending, denied.RetryAfter
		}
		return Grant{}, r
	}
	if err != nil {
		return Grant{}, failure("registry", err)
	}
	if grant.Device == "" || len(grant.Names) == 0 {
		return Grant{}, internal("registry", errors.New("a grant without device or names"))
	}
	x.device = grant.Device
	// The record and the registry must speak of the same device.
	if c.service && c.record.Device != grant.Device {
		return Grant{}, refuse(OtherDevice, "a service certificate of device "+certs.Quote(grant.Device), "one of device "+certs.Quote(c.record.Device), "enrol with the device certificate")
	}
	return grant, nil
}

// checkNames: the names come from the registry; a request may repeat them, and ask for no others.
// RFC 7030, section 4.2.2: a renewal's subject and subjectAltName are those of the certificate.
func (x *exchange) checkNames(csr *x509.CertificateRequest, c *client, granted []string) *Refusal {
	asked, refusal := requestedNames(csr)
	if refusal != nil {
		return refusal
	}
	if c.service {
		if csr.Subject.String() != c.leaf.Subject.String() || !sameNames(csr.DNSNames, c.leaf.DNSNames) {
			return refuse(WrongName, "subject and subjectAltName of the certificate that is renewed ("+certs.SubjectOf(c.leaf)+")",
				certs.Quote(csr.Subject.String()+" "+strings.Join(csr.DNSNames, " ")), "repeat them, or enrol anew with the device certificate")
		}
	}
	for _, n := range asked {
		if !slices.ContainsFunc(granted, func(g string) bool { return strings.EqualFold(g, n) }) {
			return refuse(WrongName, "names that the registry has for this device: "+strings.Join(granted, ", "), certs.Quote(n), "ask for these, or for none: they are used then")
		}
	}
	return nil
}

func sameNames(a, b []string) bool {
	fold := func(list []string) []string {
		var out []string
		for _, n := range list {
			out = append(out, strings.ToLower(n))
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	return slices.Equal(fold(a), fold(b))
}

// failure is a back end that did not answer, in time or at all.
func failure(what string, err error) *Refusal {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return busy("none from the "+what, err)
	}
	return internal(what, err)
}

// fromIssue makes a refusal of an error of the CA.
func fromIssue(err error) *Refusal {
	is := func(class Class, expected, do string) *Refusal {
		return refuse(class, expected, err.Error(), do).because(err)
	}
	switch {
	case errors.Is(err, issue.ErrKeyInUse):
		return is(KeyInUse, "a key of its own for each device and service", "make a new key on the token")
	case errors.Is(err, issue.ErrKeyRevoked):
		return is(KeyRevoked, "a key whose certificate was not revoked", "make a new key on the token")
	case errors.Is(err, issue.ErrReplayed):
		return is(Replayed, "a new request", "make a new request, with a new key")
	case errors.Is(err, issue.ErrDuplicate):
		return busy("the same request being answered elsewhere", err)
	case errors.Is(err, issue.ErrUnavailable):
		return busy("none from the service's CA, whose key is away", err)
	case certs.ClassOf(err) == certs.WeakKey:
		return fromCert(BadCSR, "a key", err)
	}
	return failure("CA of the service", err)
}
