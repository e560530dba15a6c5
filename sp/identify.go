package sp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"slices"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/issue"
	"wardgate/sp/registry"
)

// refusal is a request that is refused, as it is told to the client (RFC 9457) and the record.
type refusal struct {
	Status   int    `json:"status"`
	Title    string `json:"title"`
	Code     string `json:"code"`
	Expected string `json:"expected"`
	Came     string `json:"came"`
	Do       string `json:"do,omitempty"`

	retry int   // seconds after which to ask again; 0: what is usual
	quiet bool  // not for the record
	cause error // for the log; of our own failures the client is told nothing
}

func refuse(status int, code, expected, came, do string) *refusal {
	return &refusal{Status: status, Title: http.StatusText(status), Code: code, Expected: expected, Came: came, Do: do}
}

func failure(err error) *refusal {
	r := refuse(http.StatusServiceUnavailable, "unavailable", "an answer from the centre's database", "none", "ask again later")
	r.cause = err
	return r
}

func fromCertificate(err error) *refusal {
	e, ok := errors.AsType[*certs.Error](err)
	if !ok {
		return failure(err)
	}
	return refuse(http.StatusForbidden, e.Class.Code(), e.Expected, e.Got+" ("+e.Subject+")", e.Do)
}

// identify says which device asks: by its device certificate, or by a service certificate that is bound
// to it. A revoked device is nobody.
func (c *Centre) identify(ctx context.Context, t *tls.ConnectionState) (*registry.Device, *refusal) {
	if t == nil || t.Version < tls.VersionTLS13 || len(t.PeerCertificates) == 0 {
		return nil, refuse(http.StatusForbidden, "no-certificate", "a client certificate over TLS 1.3: the device's, or one of its services'", "none", "connect with the device certificate")
	}
	reg, rev, err := c.recent(ctx)
	if err != nil {
		return nil, failure(err)
	}
	d, no := c.identifyBy(ctx, reg, t)
	if no == nil {
		return d, nil
	}
	// Nobody is refused for what was true a moment ago: a device may just have been registered.
	if now, at, err := c.current(ctx); err != nil {
		return nil, failure(err)
	} else if at != rev {
		return c.identifyBy(ctx, now, t)
	}
	return nil, no
}

// identifyBy is identify by one state of the registry.
func (c *Centre) identifyBy(ctx context.Context, reg *registry.Registry, t *tls.ConnectionState) (*registry.Device, *refusal) {
	now := c.now()
	leaf := t.PeerCertificates[0]
	var d *registry.Device
	switch err := c.verifyDevice(ctx, leaf, t.PeerCertificates[1:], now); {
	case err == nil:
		if d = deviceOf(reg, leaf); d == nil {
			return nil, refuse(http.StatusForbidden, "not-registered", "a device certificate that is registered", certs.SubjectOf(leaf)+", which is not", "ask the SP to register this certificate")
		}
	case certs.ClassOf(err) != certs.UnknownCA:
		return nil, fromCertificate(err)
	default:
		var r *refusal
		if d, r = c.byService(ctx, reg, leaf, now, err); r != nil {
			return nil, r
		}
	}
	if d.State == registry.Revoked {
		return nil, revoked(d)
	}
	return d, nil
}

func revoked(d *registry.Device) *refusal {
	return refuse(http.StatusForbidden, "device-revoked", "a device that takes part", d.Name+", which is revoked", "ask the SP")
}

func (c *Centre) verifyDevice(ctx context.Context, leaf *x509.Certificate, between []*x509.Certificate, now time.Time) error {
	trust, generation := c.auth.trustNow()
	memory, _ := ctx.Value(verdictKey{}).(*verdict)
	if memory.holds(generation, now) {
		return nil
	}
	var ders [][]byte
	for _, k := range slices.Concat(between, trust.Intermediates) {
		if len(ders) < certs.MaxIntermediates && !slices.ContainsFunc(ders, func(d []byte) bool { return bytes.Equal(d, k.Raw) }) {
			ders = append(ders, k.Raw)
		}
	}
	v, err := certs.VerifyChain(certs.Options{
		Leaf: leaf.Raw, Intermediates: ders, Anchors: trust.Anchors, CRLs: trust.CRLs, RequireCRL: trust.RequireCRL,
		EKU: certs.EKUClientAuth, At: now, Role: "device",
	})
	if err == nil {
		memory.keep(generation, now, v.ValidUntil)
	}
	return err
}

// byService finds the device of a service certificate. notDevice is why it is no device certificate.
func (c *Centre) byService(ctx context.Context, reg *registry.Registry, leaf *x509.Certificate, now time.Time, notDevice error) (*registry.Device, *refusal) {
	for _, s := range c.auth.issuing() {
		rec, err := s.Find(ctx, leaf)
		if errors.Is(err, issue.ErrNotIssued) {
			continue
		}
		if err != nil {
			return nil, failure(err)
		}
		var ders [][]byte
		for _, k := range issue.Above(leaf, s.Intermediates()) {
			ders = append(ders, k.Raw)
		}
		d := reg.Device(rec.Device)
		if d == nil {
			return nil, refuse(http.StatusForbidden, "not-registered", "a service certificate of a registered device", "one of "+certs.Quote(rec.Device)+", which is not registered any more", "ask the SP")
		}
		if d.State == registry.Revoked {
			return nil, revoked(d)
		}
		if rec.Revoked(now) {
			return nil, fromCertificate(&certs.Error{Class: certs.Revoked, Subject: certs.SubjectOf(leaf), Expected: "a certificate that is not revoked", Got: "one that is", Do: "connect with the device certificate"})
		}
		if _, err := certs.VerifyChain(certs.Options{
			Leaf: leaf.Raw, Intermediates: ders, Anchors: s.Anchors(), EKU: certs.EKUClientAuth, At: now, Role: "service",
			RelatedTo: reg.Certificate(d.Name).Raw,
		}); err != nil {
			return nil, fromCertificate(err)
		}
		return d, nil
	}
	return nil, fromCertificate(notDevice)
}
