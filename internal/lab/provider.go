package lab

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"sync"
	"time"

	"wardgate/internal/labca"
	"wardgate/policy"
)

// Provider is the laboratory's service provider: it issues certificates and signs policies.
type Provider struct {
	CA *labca.Lab

	mu     sync.Mutex // guards the authorities, which are not safe for concurrent use
	signer crypto.Signer
	chain  []*x509.Certificate // of the policy signer, leaf first, without the anchor
}

// NewProvider makes the authorities (in memory) and a policy signer. services are the groups.
func NewProvider(services ...string) (*Provider, error) {
	at := time.Now().Add(-24 * time.Hour)
	ca, err := labca.NewLab("", labca.P256, at, services...)
	if err != nil {
		return nil, err
	}
	p := &Provider{CA: ca}
	if p.signer, err = labca.NewKey(labca.P256); err != nil {
		return nil, err
	}
	leaf, err := ca.Policy.Issue(labca.Request{Public: p.signer.Public(), DNSNames: []string{"signer.policy.example"}, At: at.Add(time.Hour)})
	if err != nil {
		return nil, err
	}
	p.chain = append([]*x509.Certificate{leaf}, ca.Policy.Intermediates()...)
	return p, nil
}

// Sign signs a policy document. Documents that would be refused at once (bad flows, failing
// tests) are refused here already; see [Provider.SignUnchecked].
func (p *Provider) Sign(d *policy.Document) ([]byte, error) {
	return policy.Sign(d, p.signer, p.chain)
}

// SignUnchecked signs any payload, for tests of what a device must refuse.
func (p *Provider) SignUnchecked(payload []byte) ([]byte, error) {
	return policy.SignPayload(payload, p.signer, p.chain)
}

func (p *Provider) deviceAnchorPEM() string { return certPEM(p.CA.Device.Anchor()) }

func (p *Provider) serviceAnchorPEM(service string) (string, error) {
	a := p.CA.Services[service]
	if a == nil {
		return "", fmt.Errorf("lab: the provider has no service %q", service)
	}
	return certPEM(a.Anchor()), nil
}

// InstallPolicy signs a document and installs it over the control API.
func (f *Facility) InstallPolicy(ctx context.Context, p *Provider, d *policy.Document) error {
	jws, err := p.Sign(d)
	if err != nil {
		return err
	}
	_, err = f.Control().PolicyInstall(ctx, jws)
	return err
}

// InstallJWS hands a policy file to `wardgate policy install` and returns what it said.
func (f *Facility) InstallJWS(ctx context.Context, jws []byte) (string, error) {
	name := f.path("etc", "new-policy.jws")
	if err := os.WriteFile(name, jws, 0o600); err != nil {
		return "", err
	}
	return f.Wardgate(ctx, "policy", "install", name)
}

// fingerprint names a device certificate in a policy.
func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func certPEM(c *x509.Certificate) string { return derPEM(c.Raw) }

func derPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
