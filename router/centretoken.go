package router

import (
	"context"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"wardgate/internal/certs"
	"wardgate/pkichip"
	"wardgate/policy"
	"wardgate/router/centre"
	"wardgate/router/control"
)

// chip is what the centre's agent needs of the token beside Token; *pkichip.Chip implements it.
type chip interface {
	Device(ctx context.Context) (pkichip.Credential, error)
	List(ctx context.Context) ([]pkichip.Credential, error)
	KeyTypes(ctx context.Context) ([]pkichip.KeyType, error)
	Generate(ctx context.Context, layer pkichip.Layer, service string, kind pkichip.KeyType) (pkichip.Credential, error)
	Store(ctx context.Context, s pkichip.Store) error
	Delete(ctx context.Context, service string) error
}

// centreToken shows the chip to the centre's agent.
type centreToken struct {
	chip
	made func(service string) // told of every new key
}

var _ centre.Token = centreToken{}

func centreKey(c pkichip.Credential) centre.Key {
	return centre.Key{Service: c.Service, ID: c.ID, Signer: c.Signer, Cert: c.Cert, Chain: c.Chain}
}

// Device implements centre.Token.
func (t centreToken) Device(ctx context.Context) (centre.Key, error) {
	c, err := t.chip.Device(ctx)
	return centreKey(c), err
}

// Services implements centre.Token.
func (t centreToken) Services(ctx context.Context) ([]centre.Key, error) {
	all, err := t.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []centre.Key
	for _, c := range all {
		if c.Layer == pkichip.LayerService {
			out = append(out, centreKey(c))
		}
	}
	return out, nil
}

// Generate implements centre.Token.
func (t centreToken) Generate(ctx context.Context, service string, curve elliptic.Curve) (centre.Key, error) {
	can, err := t.KeyTypes(ctx)
	if err != nil {
		return centre.Key{}, err
	}
	want := []pkichip.KeyType{pkichip.P256, pkichip.P384, pkichip.RSA3072}
	switch curve {
	case nil:
	case elliptic.P256():
		want = want[:1]
	case elliptic.P384():
		want = want[1:2]
	default:
		return centre.Key{}, fmt.Errorf("the centre asks for a key on the curve %s: expected P-256 or P-384; ask the service provider", curve.Params().Name)
	}
	i := slices.IndexFunc(want, func(k pkichip.KeyType) bool { return slices.Contains(can, k) })
	if i < 0 {
		return centre.Key{}, fmt.Errorf("the token makes keys of the kinds %v: expected one of %v; it needs another token, or other rules of the service provider", can, want)
	}
	c, err := t.chip.Generate(ctx, pkichip.LayerService, service, want[i])
	if err == nil {
		t.made(service)
	}
	return centreKey(c), err
}

// Store implements centre.Token.
func (t centreToken) Store(ctx context.Context, service string, cert *x509.Certificate, chain, anchors []*x509.Certificate) error {
	return t.chip.Store(ctx, pkichip.Store{Layer: pkichip.LayerService, Service: service, Cert: cert, Chain: chain, Anchors: anchors})
}

// policySink puts policies in force that the centre sent.
type policySink struct {
	r   *Router
	url string
}

// Installed implements centre.PolicySink. A policy that cannot be read is none: the centre sends it
// again, and the serial that is written down apart keeps older ones out.
func (s policySink) Installed(context.Context) (centre.Policy, error) {
	r := s.r
	r.mu.Lock()
	doc := r.doc
	r.mu.Unlock()
	if doc == nil {
		jws, err := os.ReadFile(r.store.file)
		if err != nil {
			return centre.Policy{}, nil //nolint:nilerr // see above
		}
		if doc = r.verifyExpired(jws); doc == nil {
			return centre.Policy{}, nil
		}
	}
	return centrePolicy(doc)
}

// Install implements centre.PolicySink.
func (s policySink) Install(_ context.Context, jws []byte) (centre.Policy, error) {
	doc, _, err := s.r.installPolicy(jws, "centre "+s.url)
	if err != nil {
		return centre.Policy{}, err
	}
	return centrePolicy(doc)
}

// centrePolicy is what the agent has to know of a policy.
func centrePolicy(doc *policy.Document) (centre.Policy, error) {
	p := centre.Policy{Serial: doc.Serial}
	for i := range doc.Services {
		s := &doc.Services[i]
		if s.Auth == policy.AuthPSK {
			continue
		}
		x := centre.Service{Name: s.Name}
		var errs []error
		for _, text := range s.Anchors {
			c, err := certs.ParseCertificates([]byte(text))
			errs = append(errs, err)
			x.Anchors = append(x.Anchors, c...)
		}
		for _, text := range s.CRLs {
			if b, _ := pem.Decode([]byte(text)); b != nil {
				crl, err := x509.ParseRevocationList(b.Bytes)
				errs = append(errs, err)
				if err == nil {
					x.CRLs = append(x.CRLs, crl)
				}
			}
		}
		if err := errors.Join(errs...); err != nil {
			return p, fmt.Errorf("service %s of the policy: %w", s.Name, err)
		}
		p.Services = append(p.Services, x)
	}
	return p, nil
}

// reporter tells the centre how the router is.
type reporter struct{ r *Router }

// Report implements centre.Reporter.
func (p reporter) Report(context.Context) centre.Report {
	now := time.Now()
	rep := centre.Report{Version: p.r.version}
	for _, c := range p.r.connections() {
		s := p.r.connectionStatus(c)
		x := centre.ConnectionState{Name: s.Name, Up: s.State == control.ConnUp, Since: s.Since}
		if s.LastError != nil {
			x.Detail = s.LastError.Code
			rep.Errors = append(rep.Errors, centre.ReportedError{At: s.LastErrorAt, Code: s.LastError.Code, Text: s.Name + ": " + s.LastError.Title})
		}
		rep.Connections = append(rep.Connections, x)
	}
	p.r.mu.Lock()
	for _, e := range []*control.Error{p.r.tokenErr, p.r.policyErr} {
		if e != nil {
			rep.Errors = append(rep.Errors, centre.ReportedError{At: now, Code: e.Code, Text: e.Title})
		}
	}
	p.r.mu.Unlock()
	if len(rep.Errors) > maxReported {
		rep.Errors = rep.Errors[len(rep.Errors)-maxReported:]
	}
	return rep
}

// maxReported bounds the errors in a report.
const maxReported = 32
