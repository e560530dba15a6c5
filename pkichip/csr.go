package pkichip

import (
	"context"
	"crypto/rand"
	"crypto/x509/pkix"
	"fmt"
	"time"

	"wardgate/internal/certs"
)

// CSR makes a certification request (DER) for a key on the token that was made by Generate or is
// in use. dnsName is the identity asked for. For a service the request carries the proof of the
// device key (RFC 9763, relatedCertRequest) made at now.
func (c *Chip) CSR(ctx context.Context, key Credential, dnsName string, now time.Time) ([]byte, error) {
	if key.Signer == nil {
		return nil, processError(ErrNoKey, name(key.Layer, key.Service)+" has none", "make one first")
	}
	req := certs.CSR{Subject: pkix.Name{CommonName: dnsName}, DNSNames: []string{dnsName}}
	if key.Layer == LayerService {
		device, err := c.Device(ctx)
		if err != nil {
			return nil, err
		}
		if req.Related, err = certs.NewRelatedCertRequest(rand.Reader, device.Cert, device.Signer, now); err != nil {
			return nil, fmt.Errorf("request for service %q: %w", key.Service, err)
		}
	}
	return req.Create(rand.Reader, key.Signer)
}

// Device returns the device's credential (layer 1), or an error that is ErrNoDevice.
func (c *Chip) Device(ctx context.Context) (Credential, error) {
	all, err := c.Credentials(ctx)
	if err != nil {
		return Credential{}, err
	}
	for _, x := range all {
		if x.Layer == LayerDevice {
			return x, nil
		}
	}
	return Credential{}, processError(ErrNoDevice, "", "have a device certificate issued: wardgate token csr --device NAME, then wardgate token import --device")
}
