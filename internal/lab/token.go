package lab

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"wardgate/internal/labca"
)

// PIN and security officer's PIN of the laboratory's tokens.
const (
	TokenPIN   = "482910"
	TokenSOPIN = "00112233"
)

// TokenArgs are the arguments of `wardgate token VERB` with what it needs to find the facility's
// token.
func (f *Facility) TokenArgs(verb string, more ...string) []string {
	return append([]string{"token", verb, "--config", f.ConfigFile()}, more...)
}

// Enrol gives a facility its SoftHSM token, by the product's own tools: device key and
// certificate, then a service key and certificate for each group, bound to the device.
func (f *Facility) Enrol(ctx context.Context, p *Provider, services ...string) error {
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n", f.path("tokens"))
	for name, text := range map[string]string{
		f.path("etc", "softhsm2.conf"): conf,
		f.pinFile():                    TokenPIN + "\n",
		f.path("etc", "so-pin"):        TokenSOPIN + "\n",
		f.anchorFile():                 certPEM(p.CA.Policy.Anchor()),
		f.path("etc", "device-ca.pem"): p.deviceAnchorPEM(),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := f.WriteConfig(""); err != nil {
		return err
	}
	if _, err := f.Wardgate(ctx, f.TokenArgs("init", "--so-pin-file", f.path("etc", "so-pin"))...); err != nil {
		return err
	}
	device, err := f.certify(ctx, p, "device", f.DeviceID, nil)
	if err != nil {
		return err
	}
	f.leafDER = device.Raw
	for _, s := range services {
		if _, err := f.certify(ctx, p, s, f.ServiceID(s), device); err != nil {
			return err
		}
	}
	return nil
}

// certify makes a key on the token, has its request answered and imports the certificate.
func (f *Facility) certify(ctx context.Context, p *Provider, layer, name string, device *x509.Certificate) (*x509.Certificate, error) {
	csr, crt, ca := f.path("etc", layer+".csr"), f.path("etc", layer+".pem"), f.path("etc", layer+"-ca.pem")
	args := []string{"--name", name, "--out", csr}
	req := labca.FromCSR{At: time.Now().Add(-time.Minute)}
	authority := p.CA.Device
	if device != nil {
		args = append(args, "--service", layer)
		authority = p.CA.Services[layer]
		if authority == nil {
			return nil, fmt.Errorf("lab: the provider has no service %q", layer)
		}
		req.DeviceAnchors = []*x509.Certificate{p.CA.Device.Anchor()}
		req.DeviceCA = p.CA.Device.Intermediates()
		req.Device = device
	}
	if _, err := f.Wardgate(ctx, f.TokenArgs("csr", args...)...); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(csr)
	if err != nil {
		return nil, err
	}
	req.CSR = text
	p.mu.Lock()
	cert, err := authority.IssueFromCSR(req)
	p.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("request for %s: %w", name, err)
	}
	if err := os.WriteFile(crt, []byte(chainPEM(append([]*x509.Certificate{cert}, authority.Intermediates()...)...)), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Anchor().Raw}), 0o644); err != nil {
		return nil, err
	}
	args = []string{"--cert", crt, "--anchors", ca}
	if device != nil {
		args = append(args, "--service", layer)
	}
	_, err = f.Wardgate(ctx, f.TokenArgs("import", args...)...)
	return cert, err
}
