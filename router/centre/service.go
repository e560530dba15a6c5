package centre

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"wardgate/internal/certs"
)

// maxServices bounds the services of a device, as docs/policy.md does.
const maxServices = 256

// keyReasons are refusals after which a request with the same key is refused again.
var keyReasons = []string{"key-in-use", "key-revoked", "replayed", "device-key", "bad-csr"}

// renewAt is when a certificate is to be renewed: after two thirds of its life, and somewhat more
// that depends on the certificate alone (up to a twelfth), so that devices which were issued theirs at
// the same time do not come back at the same time, and a restart does not change it.
func renewAt(c *x509.Certificate) time.Time {
	life := c.NotAfter.Sub(c.NotBefore)
	h := sha256.Sum256(c.Raw)
	spread := time.Duration(float64(life/12) * float64(binary.BigEndian.Uint32(h[:])) / (1 << 32))
	return c.NotBefore.Add(life/3*2 + spread)
}

// attempt is when a service that failed is tried again.
type attempt struct {
	failures int
	at       time.Time
	anew     bool // the next request is a simpleenroll without names, because a renewal's were refused
}

// Sync brings each service that the policy names to one key with one valid certificate, as far as
// that is due, and cleans up. It returns when it wants to be called again at the latest. One
// call at a time.
func (a *Agent) Sync(ctx context.Context) (time.Time, error) {
	now := a.cfg.Clock.Now()
	next := now.Add(lookEvery)
	pol, err := a.cfg.Policies.Installed(ctx)
	if err != nil {
		return a.later(ctx, "", next, fail(PolicyBad, "the policy in force", err.Error(), "", err))
	}
	if pol.Serial == 0 {
		return next, nil // nothing is known about services: nothing is made and nothing removed
	}
	if len(pol.Services) > maxServices {
		return next, fail(PolicyBad, fmt.Sprintf("at most %d services", maxServices), fmt.Sprint(len(pol.Services)), "ask the SP", nil)
	}
	device, err := a.device(ctx)
	if err != nil {
		return a.later(ctx, "", next, err)
	}
	var errs []error
	for _, s := range pol.Services {
		at, err := a.service(ctx, device, s)
		if ctx.Err() != nil {
			return next, ctx.Err()
		}
		if err != nil {
			at, err = a.later(ctx, s.Name, next, err)
			errs = append(errs, err)
		} else if a.tries[s.Name] == nil { // else it only waits to be tried again
			a.note("service "+s.Name, s.Name, nil)
		}
		if at.Before(next) {
			next = at
		}
	}
	if err := a.leave(ctx, pol); err != nil {
		at, err := a.later(ctx, "", next, err)
		if at.Before(next) {
			next = at
		}
		errs = append(errs, err)
	} else {
		delete(a.tries, "")
		a.note("service ", "", nil)
	}
	return next, errors.Join(errs...)
}

// later counts a failure and says when to try again.
func (a *Agent) later(ctx context.Context, service string, next time.Time, err error) (time.Time, error) {
	if ctx.Err() != nil {
		return next, ctx.Err()
	}
	if e, ok := errors.AsType[*Error](err); ok && e.Service == "" {
		e.Service = service
	}
	now := a.cfg.Clock.Now()
	t := a.tries[service]
	if t == nil {
		t = &attempt{}
		a.tries[service] = t
	}
	if !now.Before(t.at) { // not merely told again while it waits
		t.failures++
		t.at = now.Add(max(a.backoff(t.failures, maxServiceBackoff), retryAfter(err)))
	}
	a.note("service "+service, service, err)
	return t.at, err
}

// device returns layer 1, judged as far as the device can.
func (a *Agent) device(ctx context.Context) (Key, error) {
	d, err := a.cfg.Token.Device(ctx)
	if err != nil {
		return Key{}, tokenFailed("the device key and certificate", err)
	}
	now := a.cfg.Clock.Now()
	switch {
	case d.Cert == nil || d.Signer == nil:
		return Key{}, fail(DeviceCert, "a device key with its certificate on the token", "an incomplete layer 1", "the issuer of device certificates puts it there before the device is delivered", nil)
	case now.Before(d.Cert.NotBefore):
		return Key{}, fail(DeviceCert, "a device certificate that is valid at "+now.UTC().Format(time.RFC3339), "one that is valid from "+d.Cert.NotBefore.UTC().Format(time.RFC3339), "check the device's clock", nil)
	case now.After(d.Cert.NotAfter):
		return Key{}, fail(DeviceCert, "a device certificate that is valid at "+now.UTC().Format(time.RFC3339), "one that was valid until "+d.Cert.NotAfter.UTC().Format(time.RFC3339), "check the device's clock; if it is right, the issuer of device certificates must renew it", nil)
	}
	return d, nil
}

// layer2 returns what the token has for a service.
func (a *Agent) layer2(ctx context.Context, service string) ([]Key, error) {
	all, err := a.cfg.Token.Services(ctx)
	if err != nil {
		return nil, tokenFailed("the list of keys and certificates", err)
	}
	return slices.DeleteFunc(slices.Clone(all), func(k Key) bool { return k.Service != service }), nil
}

// service does for one service what is due, and returns when something is due again.
func (a *Agent) service(ctx context.Context, device Key, s Service) (time.Time, error) {
	if err := a.finish(ctx, device, s); err != nil {
		return time.Time{}, err
	}
	keys, err := a.layer2(ctx, s.Name)
	if err != nil {
		return time.Time{}, err
	}
	current, tidied, err := a.tidy(ctx, device, s, keys)
	if err != nil {
		return time.Time{}, err
	}
	if tidied {
		if keys, err = a.layer2(ctx, s.Name); err != nil {
			return time.Time{}, err
		}
	}
	now := a.cfg.Clock.Now()
	if current != nil {
		if due := renewAt(current.Cert); now.Before(due) {
			delete(a.tries, s.Name)
			return due, nil
		}
	}
	if t := a.tries[s.Name]; t != nil && now.Before(t.at) {
		return t.at, nil
	}
	cert, err := a.enrol(ctx, device, s, current, keys)
	if err != nil {
		return time.Time{}, err
	}
	delete(a.tries, s.Name)
	return renewAt(cert), nil
}

// judge is the verdict on a service certificate.
func (a *Agent) judge(device Key, s Service, leaf *x509.Certificate, chain []*x509.Certificate) error {
	ders := make([][]byte, 0, len(chain))
	for _, c := range chain {
		ders = append(ders, c.Raw)
	}
	_, err := certs.VerifyChain(certs.Options{
		Leaf: leaf.Raw, Intermediates: ders, Anchors: s.Anchors, CRLs: s.CRLs,
		EKU: certs.EKUIPsecIKE, At: a.cfg.Clock.Now(), RelatedTo: device.Cert.Raw, Role: "service",
	})
	return err
}

// finish puts a certificate on the token that came before a power failure.
func (a *Agent) finish(ctx context.Context, device Key, s Service) error {
	p := a.pending(s.Name)
	if p == nil || p.Certificate == nil {
		return nil
	}
	drop := func() error {
		return a.update(func(j *journal) { j.Services[s.Name].Certificate, j.Services[s.Name].Chain = nil, nil })
	}
	leaf, err := certs.ParseCertificate(p.Certificate)
	if err != nil {
		return drop()
	}
	var chain []*x509.Certificate
	for _, der := range p.Chain {
		c, err := certs.ParseCertificate(der)
		if err != nil {
			return drop()
		}
		chain = append(chain, c)
	}
	keys, err := a.layer2(ctx, s.Name)
	if err != nil {
		return err
	}
	has := slices.ContainsFunc(keys, func(k Key) bool { return k.Signer != nil && certs.SamePublicKey(k.Signer.Public(), leaf.PublicKey) })
	if !has || a.judge(device, s, leaf, chain) != nil {
		return drop() // its key is gone, or it has ended meanwhile: another one is made
	}
	if err := a.cfg.Token.Store(ctx, s.Name, leaf, chain, s.Anchors); err != nil {
		return tokenFailed("to store the certificate of service "+s.Name, err)
	}
	if err := drop(); err != nil {
		return err
	}
	a.tell(Event{Code: EventEnrolled, Service: s.Name, Text: "valid until " + leaf.NotAfter.UTC().Format(time.RFC3339)})
	return nil
}

// tidy returns the service's certificate that counts, or nil, and removes others than that one.
func (a *Agent) tidy(ctx context.Context, device Key, s Service, keys []Key) (current *Key, tidied bool, err error) {
	var good []Key
	with := 0
	for _, k := range keys {
		if k.Cert == nil {
			continue
		}
		with++
		if k.Signer != nil && a.judge(device, s, k.Cert, k.Chain) == nil {
			good = append(good, k)
		}
	}
	if len(good) == 0 {
		return nil, false, nil
	}
	slices.SortFunc(good, func(x, y Key) int { // the newest first
		return cmp.Or(y.Cert.NotBefore.Compare(x.Cert.NotBefore), y.Cert.NotAfter.Compare(x.Cert.NotAfter), bytes.Compare(x.Cert.Raw, y.Cert.Raw))
	})
	if with > 1 {
		if err = a.cfg.Token.Store(ctx, s.Name, good[0].Cert, good[0].Chain, s.Anchors); err != nil {
			return nil, false, tokenFailed("to remove the older certificate of service "+s.Name, err)
		}
		a.tell(Event{Code: EventTidied, Service: s.Name, Text: fmt.Sprintf("%d certificates, one is left", with)})
	}
	return &good[0], with > 1, nil
}

// enrol takes a service from where it is to a new certificate. Each step can be repeated.
func (a *Agent) enrol(ctx context.Context, device Key, s Service, current *Key, keys []Key) (*x509.Certificate, error) {
	// The CA is looked at before a key is made: a centre that offers another one gets nothing.
	list, err := a.client.cacerts(ctx, device, s.Name)
	if err != nil {
		return nil, err
	}
	if err := a.known(s, list); err != nil {
		return nil, err
	}
	var curve elliptic.Curve
	if der, err := a.client.csrattrs(ctx, device, s.Name); err != nil {
		return nil, err
	} else if der != nil {
		if curve, err = parseAttrs(der); err != nil {
			return nil, err
		}
	}
	key, err := a.key(ctx, s.Name, curve, keys)
	if err != nil {
		return nil, err
	}
	op, req := "simpleenroll", certs.CSR{} // the registry knows the names
	t := a.tries[s.Name]
	if current != nil && (t == nil || !t.anew) {
		// RFC 7030, section 4.2.2: a renewal repeats subject and subjectAltName.
		op, req.RawSubject, req.DNSNames = "simplereenroll", current.Cert.RawSubject, current.Cert.DNSNames
	}
	issued, err := a.client.enroll(ctx, s.Name, op, device, func(binding string) ([]byte, error) {
		if req.Related, err = certs.NewRelatedCertRequest(a.cfg.Rand, device.Cert, device.Signer, a.cfg.Clock.Now()); err != nil {
			return nil, tokenFailed("the device key's signature", err)
		}
		req.Challenge = binding
		der, err := req.Create(a.cfg.Rand, key.Signer)
		if err != nil {
			return nil, tokenFailed("the service key's signature", err)
		}
		return der, nil
	})
	if err != nil {
		return nil, a.refusedKey(s.Name, op, err)
	}
	i := slices.IndexFunc(issued, func(c *x509.Certificate) bool { return certs.SamePublicKey(c.PublicKey, key.Signer.Public()) })
	if i < 0 {
		return nil, fail(BadCert, "a certificate for the key on the token", "one for another key", "ask the SP to look at the centre", nil)
	}
	leaf := issued[i]
	chain := between(leaf, list)
	if err := a.judge(device, s, leaf, chain); err != nil {
		code := BadCert
		if certs.ClassOf(err) == certs.UnknownCA {
			code = UntrustedCA
		}
		// What is issued for this key again may be the same.
		return nil, errors.Join(fail(code, "a service certificate by the rules of docs/pki.md", err.Error(), "ask the SP to look at the centre", err),
			a.update(func(j *journal) { j.Services[s.Name].NewKey = true }))
	}
	err = a.update(func(j *journal) {
		p := j.Services[s.Name]
		p.Certificate, p.Chain = leaf.Raw, nil
		for _, c := range chain {
			p.Chain = append(p.Chain, c.Raw)
		}
	})
	if err != nil {
		return nil, err
	}
	if err := a.cfg.Token.Store(ctx, s.Name, leaf, chain, s.Anchors); err != nil {
		return nil, tokenFailed("to store the certificate of service "+s.Name, err)
	}
	if err := a.update(func(j *journal) { j.Services[s.Name] = &pending{} }); err != nil {
		return nil, err
	}
	code := EventEnrolled
	if current != nil {
		code = EventRenewed
	}
	a.tell(Event{Code: code, Service: s.Name, Text: "valid until " + leaf.NotAfter.UTC().Format(time.RFC3339)})
	return leaf, nil
}

// refusedKey remembers what a refusal says about the next request.
func (a *Agent) refusedKey(service, op string, err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	if slices.Contains(keyReasons, e.Reason) {
		return errors.Join(err, a.update(func(j *journal) { j.Services[service].NewKey = true }))
	}
	if e.Reason == "wrong-name" && op == "simplereenroll" {
		t := a.tries[service]
		if t == nil {
			t = &attempt{}
			a.tries[service] = t
		}
		t.anew = true
	}
	return err
}

// key returns the key that waits for its certificate, or makes one. That something was begun is
// written down first, so that nothing lies about that nobody knows of.
func (a *Agent) key(ctx context.Context, service string, curve elliptic.Curve, keys []Key) (Key, error) {
	if a.pending(service) == nil {
		if err := a.update(func(j *journal) { j.Services[service] = &pending{} }); err != nil {
			return Key{}, err
		}
	}
	if !a.pending(service).NewKey {
		for _, k := range keys {
			if k.Cert != nil || k.Signer == nil {
				continue
			}
			if e, ok := k.Signer.Public().(*ecdsa.PublicKey); curve == nil || ok && e.Curve == curve {
				return k, nil
			}
		}
	}
	k, err := a.cfg.Token.Generate(ctx, service, curve)
	if err != nil {
		return Key{}, tokenFailed("to make a key for service "+service, err)
	}
	if a.pending(service).NewKey {
		if err := a.update(func(j *journal) { j.Services[service].NewKey = false }); err != nil {
			return Key{}, err
		}
	}
	return k, nil
}

// known reports whether what cacerts says leads to an anchor. Roots that no anchor knows are told of
// and otherwise left aside.
func (a *Agent) known(s Service, list []*x509.Certificate) error {
	if len(s.Anchors) == 0 {
		return fail(UntrustedCA, "anchors of the service in the policy", "none", "ask the SP for a policy that names them", nil)
	}
	anchored := func(c *x509.Certificate) bool {
		return slices.ContainsFunc(s.Anchors, func(x *x509.Certificate) bool {
			return x.Equal(c) || bytes.Equal(x.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(x) == nil
		})
	}
	n := 0
	var foreign *x509.Certificate
	for _, c := range list {
		switch {
		case anchored(c):
			n++
		case bytes.Equal(c.RawIssuer, c.RawSubject):
			// A new root that the old one has signed is in the list twice: RFC 4210, section 4.4.
			if !slices.ContainsFunc(list, func(x *x509.Certificate) bool { return certs.SamePublicKey(x.PublicKey, c.PublicKey) && anchored(x) }) {
				foreign = c
			}
		}
	}
	if n == 0 {
		return fail(UntrustedCA, "a CA of service "+s.Name+" that the policy's anchors know ("+certs.SubjectOf(s.Anchors[0])+")", "others: "+certs.SubjectOf(list[0]),
			"nothing was requested; ask the SP whether the service has a new CA: the policy must name it first", nil)
	}
	if foreign != nil {
		a.tell(Event{Code: EventForeignCA, Service: s.Name, Text: certs.SubjectOf(foreign)})
	}
	return nil
}

// between returns what of a list may lie between leaf and an anchor: what issued it, what issued
// that, and so on. Roots are left out.
func between(leaf *x509.Certificate, list []*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	issuers := [][]byte{leaf.RawIssuer}
	for len(issuers) > 0 && len(out) < certs.MaxIntermediates {
		name := issuers[0]
		issuers = issuers[1:]
		for _, c := range list {
			if bytes.Equal(c.RawSubject, name) && !bytes.Equal(c.RawSubject, c.RawIssuer) && !slices.Contains(out, c) && len(out) < certs.MaxIntermediates {
				out = append(out, c)
				issuers = append(issuers, c.RawIssuer)
			}
		}
	}
	return out
}

// leave removes what services have that the policy no longer names: keys that wait at once,
// certificates when they have ended (until then the policy decides what they are good for, and
// the device may be taken in again). Only what was begun here is removed.
func (a *Agent) leave(ctx context.Context, pol Policy) error {
	for _, name := range a.begun() {
		if slices.ContainsFunc(pol.Services, func(s Service) bool { return s.Name == name }) {
			continue
		}
		keys, err := a.layer2(ctx, name)
		if err != nil {
			return err
		}
		now := a.cfg.Clock.Now()
		if slices.ContainsFunc(keys, func(k Key) bool { return k.Cert != nil && !now.After(k.Cert.NotAfter) }) {
			continue
		}
		if len(keys) > 0 {
			if err := a.cfg.Token.Delete(ctx, name); err != nil {
				return tokenFailed("to remove what service "+name+" had", err)
			}
			a.tell(Event{Code: EventRemoved, Service: name, Text: "the device is no longer a member"})
		}
		if err := a.update(func(j *journal) { delete(j.Services, name) }); err != nil {
			return err
		}
		delete(a.tries, name)
	}
	return nil
}
