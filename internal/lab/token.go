package lab

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"wardgate/internal/labca"
	"wardgate/pkichip"
)

// PIN and security officer's PIN of the laboratory's tokens.
const (
	TokenPIN   = "482910"
	TokenSOPIN = "00112233"
)

// chip starts a chip process of its own for the facility's token.
func (f *Facility) chip(ctx context.Context, label string, pin pkichip.PINSource) (*pkichip.Chip, error) {
	return pkichip.Start(ctx, pkichip.Options{
		Binary: filepath.Join(f.lab.Bin, "wardgate-chip"), Module: softHSM, TokenLabel: label, PIN: pin, Env: f.Env(),
	})
}

// Enrol gives a facility its SoftHSM token, by the product's own chip process: device key and
// certificate, then a service key and certificate for each group, bound to the device. The keys
// are made on the token; what leaves it are requests.
func (f *Facility) Enrol(ctx context.Context, p *Provider, services ...string) (err error) {
	anchor := certPEM(p.CA.Policy.Anchor())
	if f.SP != nil {
		pem, err := os.ReadFile(f.SP.PolicyAnchor())
		if err != nil {
			return err
		}
		anchor = string(pem)
	}
	for name, text := range map[string]string{
		f.path("etc", "softhsm2.conf"): fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n", f.path("tokens")),
		f.pinFile():                    TokenPIN + "\n",
		f.anchorFile():                 anchor,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := f.WriteConfig(""); err != nil { // `wardgate token` reads it
		return err
	}
	blank, err := f.chip(ctx, "", pkichip.PINSource{Value: []byte(TokenPIN), SOPIN: []byte(TokenSOPIN)})
	if err != nil {
		return err
	}
	_, err = blank.InitToken(ctx, f.tokenLabel(), false)
	if err := errors.Join(err, blank.Close()); err != nil {
		return err
	}
	c, err := f.chip(ctx, f.tokenLabel(), pkichip.PINSource{File: f.pinFile()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	device, err := f.certify(ctx, c, p, pkichip.LayerDevice, "", f.DeviceID, nil)
	if err != nil {
		return err
	}
	f.leafDER = device.Raw
	for _, s := range services {
		if _, err := f.certify(ctx, c, p, pkichip.LayerService, s, f.ServiceID(s), device); err != nil {
			return err
		}
	}
	return nil
}

// certify makes a key on the token, has its request answered and stores the certificate.
func (f *Facility) certify(ctx context.Context, c *pkichip.Chip, p *Provider, layer pkichip.Layer, service, name string, device *x509.Certificate) (*x509.Certificate, error) {
	now := time.Now()
	authority := p.CA.Device
	req := labca.FromCSR{At: now.Add(-time.Minute)}
	if layer == pkichip.LayerService {
		if authority = p.CA.Services[service]; authority == nil {
			return nil, fmt.Errorf("lab: the provider has no service %q", service)
		}
		req.DeviceAnchors = []*x509.Certificate{p.CA.Device.Anchor()}
		req.DeviceCA = p.CA.Device.Intermediates()
		req.Device = device
	}
	key, err := c.Generate(ctx, layer, service, pkichip.P256)
	if err != nil {
		return nil, err
	}
	if req.CSR, err = c.CSR(ctx, key, name, now); err != nil {
		return nil, err
	}
	p.mu.Lock()
	cert, err := authority.IssueFromCSR(req)
	p.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("request for %s: %w", name, err)
	}
	if f.handles == nil {
		f.handles = map[string]string{}
	}
	f.handles[service] = hex.EncodeToString(key.ID)
	return cert, c.Store(ctx, pkichip.Store{
		Layer: layer, Service: service, Cert: cert, Chain: authority.Intermediates(),
		Anchors: []*x509.Certificate{authority.Anchor()},
	})
}

// TokenAccess is what another program needs to use the facility's token.
func (f *Facility) TokenAccess() (module, label, pinFile string) {
	return softHSM, f.tokenLabel(), f.pinFile()
}

// tokenHandles returns the CKA_IDs, in hex, of the device key and of a service's key.
func (f *Facility) tokenHandles(service string) ([2]string, error) {
	h := [2]string{f.handles[""], f.handles[service]}
	if h[0] == "" || h[1] == "" {
		return h, fmt.Errorf("lab: %s has no token with keys for %q", f.Title, service)
	}
	return h, nil
}

// SetPIN writes the file from which the chip process reads the PIN.
func (f *Facility) SetPIN(pin string) error {
	return os.WriteFile(f.pinFile(), []byte(pin+"\n"), 0o600)
}

// PullToken takes the token away, as a hand would: SoftHSM's objects vanish from under the
// module. Put it back with the function returned.
func (f *Facility) PullToken() (back func() error, err error) {
	here, away := f.path("tokens"), f.path("tokens-away")
	if err := os.Rename(here, away); err != nil {
		return nil, err
	}
	if err := os.Mkdir(here, 0o755); err != nil {
		return nil, err
	}
	return func() error {
		if err := os.Remove(here); err != nil {
			return err
		}
		return os.Rename(away, here)
	}, nil
}

// Freshen makes the facility, whose daemon does not run, what it was when its token came from the factory:
// the state directory is empty, and the token has what [Facility.Enrol] put on it.
func (f *Facility) Freshen() error {
	for _, dir := range []string{f.path("state"), f.path("tokens")} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return errors.Join(os.Mkdir(f.path("state"), 0o755), os.CopyFS(f.path("tokens"), os.DirFS(f.path("tokens-fresh"))))
}

// Keep remembers the token as it is, for [Facility.Freshen].
func (f *Facility) Keep() error {
	return errors.Join(os.RemoveAll(f.path("tokens-fresh")), os.CopyFS(f.path("tokens-fresh"), os.DirFS(f.path("tokens"))))
}
