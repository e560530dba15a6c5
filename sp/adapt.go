package sp

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/est"
	"wardgate/sp/issue"
	"wardgate/sp/registry"
	"wardgate/sp/store"
)

// recorder is the database as package issue wants it.
type recorder struct {
	st      *store.Store
	overlap time.Duration
	now     func() time.Time
}

var _ issue.Recorder = (*recorder)(nil)

// Add implements issue.Recorder.
func (d *recorder) Add(ctx context.Context, r issue.Record) error {
	err := d.st.Issue(ctx, store.Issue{
		Certificate: store.Certificate{
			Service: r.Service, Issuer: r.Issuer, Serial: r.Serial, Device: r.Device, Key: r.Key,
			NotBefore: r.NotBefore, NotAfter: r.NotAfter, DER: r.DER,
		},
		Supersede: d.overlap, Replaces: r.Replaces,
	}, r.Issued)
	if errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("%w: %w", issue.ErrDuplicate, err)
	}
	if err != nil {
		return err
	}
	// The membership may have ended since it was looked at. Whoever ends it looks for certificates
	// after the registry has changed, and here the registry is looked at after the certificate was
	// recorded: one of the two finds it.
	reg, _, err := d.st.Current(ctx)
	if err != nil {
		return err
	}
	if gone, why := leftService(reg, r.Device, r.Service, d.now()); gone {
		_, err := d.st.Revoke(ctx, store.Revocation{Service: r.Service, Issuer: r.Issuer, Serial: r.Serial, Reason: why, Who: "centre", Why: "the membership ended while the certificate was issued"}, d.now())
		return errors.Join(fmt.Errorf("%w: the membership of %s in %s ended meanwhile", registry.ErrNotMember, r.Device, r.Service), err)
	}
	return nil
}

// leftService reports whether a device has no right to a certificate of a service any more, and with
// which reason the ones it has are revoked. A device that is suspended keeps them: its peers' policies
// shut it out.
func leftService(r *registry.Registry, device, service string, now time.Time) (bool, store.Reason) {
	d, m := r.Device(device), r.Membership(device, service)
	switch {
	case d == nil:
		return true, store.CessationOfOperation
	case d.State == registry.Revoked:
		return true, store.KeyCompromise
	case m == nil, !m.Until.IsZero() && !now.Before(m.Until):
		return true, store.AffiliationChanged
	}
	return false, 0
}

func recordOf(c *store.Certificate) issue.Record {
	r := issue.Record{
		Service: c.Service, Issuer: c.Issuer, Serial: c.Serial, Device: c.Device, Key: c.Key, DER: c.DER,
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, Issued: c.Issued,
	}
	// One that was replaced and may be used to its natural end is not revoked.
	if !c.Ends.IsZero() && c.Ends.Before(c.NotAfter) {
		r.RevokedAt, r.Reason = c.Ends, int(c.Reason)
	}
	return r
}

func notIssued(c *store.Certificate, err error) (issue.Record, error) {
	if errors.Is(err, store.ErrNotFound) {
		return issue.Record{}, fmt.Errorf("%w: %w", issue.ErrNotIssued, err)
	}
	if err != nil {
		return issue.Record{}, err
	}
	return recordOf(c), nil
}

// Find implements issue.Recorder.
func (d *recorder) Find(ctx context.Context, service, issuer, serial string) (issue.Record, error) {
	return notIssued(d.st.Certificate(ctx, service, issuer, serial))
}

// FindKey implements issue.Recorder.
func (d *recorder) FindKey(ctx context.Context, service string, key [32]byte) (issue.Record, error) {
	return notIssued(d.st.CertificateForKey(ctx, service, key))
}

// Revoke implements issue.Recorder.
func (d *recorder) Revoke(ctx context.Context, service, issuer, serial string, at time.Time, reason int) (issue.Record, error) {
	ended, err := d.st.Revoke(ctx, store.Revocation{Service: service, Issuer: issuer, Serial: serial, Reason: store.Reason(reason), Who: "centre"}, at)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return issue.Record{}, fmt.Errorf("%w: %w", issue.ErrNotIssued, err)
	case err != nil:
		return issue.Record{}, err
	case len(ended) == 0:
		return issue.Record{}, fmt.Errorf("%w or has expired: %s of %s", issue.ErrRevoked, serial, service)
	}
	return recordOf(&ended[0]), nil
}

// Revoked implements issue.Recorder. Of each certificate it tells what a list holds.
func (d *recorder) Revoked(ctx context.Context, service, issuer string, since, now time.Time) ([]issue.Record, error) {
	list, err := d.st.Revoked(ctx, service, issuer, since, now)
	if err != nil {
		return nil, err
	}
	out := make([]issue.Record, len(list))
	for i, v := range list {
		out[i] = issue.Record{Service: service, Issuer: issuer, Serial: v.Serial, RevokedAt: v.At, Reason: int(v.Reason)}
	}
	return out, nil
}

// NextCRLNumber implements issue.Recorder.
func (d *recorder) NextCRLNumber(ctx context.Context, service, issuer string) (int64, error) {
	n, err := d.st.NextNumber(ctx, "crl/"+service+"/"+issuer)
	if err == nil && n > 1<<62 {
		err = fmt.Errorf("number of a revocation list: expected less than 2^62, came %d", n)
	}
	return int64(n & (1<<63 - 1)), err
}

// replays is the database as package est wants it.
type replays struct{ st *store.Store }

// Seen implements est.Replays.
func (r replays) Seen(ctx context.Context, request [32]byte, now, until time.Time) (bool, error) {
	// Only the hash counts; whose request it was is on the record of enrolments.
	err := r.st.SeeRequest(ctx, store.Request{Hash: request, Service: "est", Device: "est", Seen: now, Keep: until})
	if errors.Is(err, store.ErrReplay) {
		return true, nil
	}
	return false, err
}

// members is the registry as package est wants it. It is asked of the database each time (one small
// query as long as nothing changed), so that no instance enrols by what was true before.
type members struct{ st *store.Store }

// deviceOf returns the device that a certificate is registered for: the very same certificate, not
// merely its name.
func deviceOf(r *registry.Registry, c *x509.Certificate) *registry.Device {
	for _, name := range c.DNSNames {
		if d := r.Device(name); d != nil && r.Certificate(d.Name).Equal(c) {
			return d
		}
	}
	return nil
}

// Authorize implements est.Registry.
func (m members) Authorize(ctx context.Context, d est.Device, service string, now time.Time) (est.Grant, error) {
	reg, _, err := m.st.Current(ctx)
	if err != nil {
		return est.Grant{}, err
	}
	dev := deviceOf(reg, d.Certificate)
	if dev == nil {
		return est.Grant{}, &est.Denied{Expected: "a device certificate that is registered", Got: certs.SubjectOf(d.Certificate) + ", which is not", Do: "ask the SP to register this certificate"}
	}
	if err := reg.IsMember(dev.Name, service, now); err != nil {
		return est.Grant{}, &est.Denied{Expected: "a member of service " + certs.Quote(service), Got: strings.TrimPrefix(err.Error(), registry.ErrNotMember.Error()+": "), Do: "ask the SP, who decides on memberships"}
	}
	id := reg.ServiceID(reg.Membership(dev.Name, service))
	if id == "" {
		return est.Grant{}, &est.Denied{Expected: "a service that authenticates by certificate", Got: "one with a pre-shared key, which comes with the policy", Do: "fetch the policy"}
	}
	return est.Grant{Device: dev.Name, Names: []string{id}}, nil
}

// DeviceCertificate implements est.Registry.
func (m members) DeviceCertificate(ctx context.Context, device string) (*x509.Certificate, error) {
	reg, _, err := m.st.Current(ctx)
	if err != nil {
		return nil, err
	}
	if c := reg.Certificate(device); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNoDevice, certs.Quote(device))
}
