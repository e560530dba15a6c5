package centre

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"strings"
)

// maxRefused bounds the certificates that are remembered as refused.
const maxRefused = 64

// ask asks the centre for policies and tells it the state: by a service certificate, which the centre
// ends when it likes, and by the device certificate as long as there is none, or when the centre
// refuses it. Enrolment is not asked for like this: it always takes the device certificate.
func (a *Agent) ask(ctx context.Context, pol Policy, request func(who Key) error) error {
	device, err := a.cfg.Token.Device(ctx)
	switch {
	case err != nil:
		return tokenFailed("the device key and certificate", err)
	case device.Cert == nil || device.Signer == nil:
		return fail(DeviceCert, "a device key with its certificate on the token", "an incomplete layer 1", "the issuer of device certificates puts it there before the device is delivered", nil)
	}
	who := a.identity(ctx, device, pol)
	if err = request(who); who.Service == "" || !refusesCertificate(err) {
		return err
	}
	a.mu.Lock()
	a.by = identity{}
	a.refused = append(a.refused, sha256.Sum256(who.Cert.Raw))
	a.refused = a.refused[max(0, len(a.refused)-maxRefused):]
	a.mu.Unlock()
	a.tell(Event{Code: EventCertRefused, Service: who.Service, Text: "the centre is asked by the device certificate instead", Err: err})
	return request(device)
}

// refusesCertificate reports whether an answer was no because of the certificate that was asked by.
func refusesCertificate(err error) bool {
	e, ok := err.(*Error) //nolint:errorlint // of the client, which wraps none of its own
	return ok && (e.Code == Refused && (strings.HasPrefix(e.Reason, "cert-") || e.Reason == "not-registered") || e.Code == TLS && alerted(e.Err))
}

// identity is a certificate by which the centre is asked, and what it was judged by.
type identity struct {
	cert   *x509.Certificate // nil: none
	device *x509.Certificate
	serial uint64 // of the policy
}

// identity returns the key that the centre is asked by. It stays with a service certificate as long as
// that one is good: another one is another connection.
func (a *Agent) identity(ctx context.Context, device Key, pol Policy) Key {
	a.mu.Lock()
	by, refused := a.by, slices.Clone(a.refused)
	a.mu.Unlock()
	keys, err := a.cfg.Token.Services(ctx)
	if err != nil {
		keys = nil // whoever looks at the services tells
	}
	usable := func(k Key) bool {
		return k.Cert != nil && k.Signer != nil && k.Service != "" && !slices.Contains(refused, sha256.Sum256(k.Cert.Raw))
	}
	good := func(k Key) bool {
		i := slices.IndexFunc(pol.Services, func(s Service) bool { return s.Name == k.Service })
		return usable(k) && i >= 0 && a.judge(device, pol.Services[i], k.Cert, k.Chain) == nil
	}
	best := device
	last := slices.IndexFunc(keys, func(k Key) bool { return usable(k) && k.Cert.Equal(by.cert) })
	switch judged := by.cert != nil && by.device.Equal(device.Cert) && by.serial == pol.Serial && !a.cfg.Clock.Now().After(by.cert.NotAfter); {
	case last >= 0 && judged:
		return keys[last]
	case last >= 0 && good(keys[last]):
		best = keys[last]
	default:
		for _, k := range keys {
			if good(k) && (best.Service == "" || k.Cert.NotAfter.After(best.Cert.NotAfter)) {
				best = k
			}
		}
	}
	by = identity{}
	if best.Service != "" {
		by = identity{best.Cert, device.Cert, pol.Serial}
	}
	a.mu.Lock()
	a.by = by
	a.mu.Unlock()
	return best
}
