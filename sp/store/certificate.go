package store

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"time"
)

// Certificate is one that a service CA issued.
type Certificate struct {
	Service   string
	Issuer    string // the issuing CA: its key identifier, which tells the old one from the new one
	Serial    string // see SerialText
	Device    string // identity in the device certificate that it is bound to
	Key       Hash   // of the subjectPublicKeyInfo
	NotBefore time.Time
	NotAfter  time.Time
	Issued    time.Time
	Request   Hash // of the request that it answers; zero: not recorded
	DER       []byte
	// Ends is when it is revoked: zero when no end is set, and later than now while a device still
	// changes from this certificate to the next. One that was replaced and not revoked ends at NotAfter.
	Ends   time.Time
	Reason Reason // of Ends
}

// Valid reports whether the certificate may be used at a time.
func (c *Certificate) Valid(now time.Time) bool {
	return !now.Before(c.NotBefore) && !now.After(c.NotAfter) && (c.Ends.IsZero() || now.Before(c.Ends))
}

// Revoked reports whether the certificate is revoked at a time, and not merely expired.
func (c *Certificate) Revoked(now time.Time) bool {
	return !c.Ends.IsZero() && !now.Before(c.Ends) && c.Ends.Before(c.NotAfter)
}

// Reason is why a certificate was revoked (RFC 5280, section 5.3.1).
type Reason int

// Reasons.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	PrivilegeWithdrawn   Reason = 9
)

func (r Reason) check() error {
	switch r {
	case Unspecified, KeyCompromise, CACompromise, AffiliationChanged, Superseded, CessationOfOperation, PrivilegeWithdrawn:
		return nil
	}
	// certificateHold and removeFromCRL would make a revoked certificate good again.
	return invalid("reason: expected 0 to 5 or 9 (RFC 5280, section 5.3.1), came %d", int(r))
}

// SerialText is how a serial number is written in this package: lower-case hex, whole octets, without
// leading zero octets.
func SerialText(serial *big.Int) string { return hex.EncodeToString(serial.Bytes()) }

func checkSerial(s string) error {
	// RFC 5280, section 4.1.2.2: positive, at most 20 octets.
	n, ok := new(big.Int).SetString(s, 16)
	if !ok || n.Sign() <= 0 || n.BitLen() > 160 || SerialText(n) != s {
		return invalid("serial: expected 2 to 40 lower-case hex digits, whole octets without leading zeros, came %q", s)
	}
	return nil
}

// Issue is what is recorded with a new certificate.
type Issue struct {
	Certificate Certificate // without Issued and Ends, which Issue sets
	// KeepRequest is until when a copy of the request is recognized; zero: the certificate's NotAfter.
	KeepRequest time.Time
	// Supersede is how long the device's certificate of the same service stays good beside the
	// new one: not longer than until it expires. Negative: there must be none.
	Supersede time.Duration
	// Replaces is the serial number of the certificate for the same key whose place this one takes; for
	// a new key it is empty. So two instances that answer one request make one certificate of it.
	Replaces string
	Who      string // on whose behalf, for the record; empty: the device
}

// Issue records a certificate and the request that it answers, and sets an end to the device's
// certificate of the same service that it replaces, in one transaction: a device has at most one
// certificate of a service without an end.
//
// It is called before the certificate is handed out. The errors: ErrReplay when the request was seen
// before; ErrConflict when the serial number is taken, when the key has a valid certificate that is
// not named in Replaces, or when the device has one and there must be none.
func (s *Store) Issue(ctx context.Context, i Issue, now time.Time) error {
	c := &i.Certificate
	err := firstError(
		checkName("service", c.Service), checkName("issuer", c.Issuer), checkName("device", c.Device), checkSerial(c.Serial),
		checkText("who", i.Who, MaxName, false),
		checkSize("certificate", len(c.DER), MaxCertificate),
	)
	switch {
	case err != nil:
	case !c.NotAfter.After(c.NotBefore) || !c.NotAfter.After(now):
		err = invalid("expected a certificate that ends after it begins and after now, came %s to %s", c.NotBefore, c.NotAfter)
	case c.Key == Hash{}:
		err = invalid("expected the hash of the key, came zeros")
	}
	if err == nil {
		err = s.write(ctx, func(t *tx) error { return t.issue(i, now) })
	}
	if err != nil {
		return fmt.Errorf("record certificate %s of %s for %s: %w", c.Serial, c.Service, c.Device, err)
	}
	return nil
}

func (t *tx) issue(i Issue, now time.Time) error {
	c := &i.Certificate
	keep := i.KeepRequest
	if keep.IsZero() {
		keep = c.NotAfter
	}
	if c.Request != (Hash{}) {
		if err := t.see(Request{Hash: c.Request, Service: c.Service, Device: c.Device, Seen: now, Keep: keep}); err != nil {
			return err
		}
	}
	var device, issuer, serial string
	var notAfter int64
	err := t.one([]any{&device, &serial, &notAfter}, `SELECT device, serial, not_after FROM certificate
		WHERE service = ? AND key_hash = ? AND revoked_at IS NULL ORDER BY issued_at DESC LIMIT 1`, c.Service, c.Key.String())
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return err
	case device != c.Device:
		return fmt.Errorf("%w: expected a key that no other device has, %s has a certificate for it; make a new key", ErrConflict, device)
	case notAfter >= micro(now) && serial != i.Replaces:
		return fmt.Errorf("%w: expected a key without a valid certificate, it has %s until %s", ErrConflict, serial, fromMicro(notAfter))
	}
	serial = ""
	err = t.one([]any{&issuer, &serial, &notAfter}, "SELECT issuer, serial, not_after FROM certificate WHERE service = ? AND device = ? AND revoked_at IS NULL", c.Service, c.Device)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return err
	case notAfter >= micro(now) && i.Supersede < 0:
		return fmt.Errorf("%w: expected no valid certificate, there is %s until %s", ErrConflict, serial, fromMicro(notAfter))
	default:
		// One that has expired ends where it ended.
		end := min(notAfter, micro(now.Add(max(i.Supersede, 0))))
		if err := t.end(c.Service, issuer, serial, end, Superseded); err != nil {
			return err
		}
	}
	n, err := t.exec(`INSERT INTO certificate (service, issuer, serial, device, key_hash, not_before, not_after, issued_at, request, der)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (service, issuer, serial) DO NOTHING`,
		c.Service, c.Issuer, c.Serial, c.Device, c.Key.String(), micro(c.NotBefore), micro(c.NotAfter), micro(now), c.Request.String(), c.DER)
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%w: expected a serial number that was never used, came %s", ErrConflict, c.Serial)
	}
	return t.audit(Event{At: now, Event: "certificate-issued", Who: cmp.Or(i.Who, c.Device), What: c.Service + " " + c.Serial, Result: ResultOK, Detail: map[string]string{
		"device": c.Device, "issuer": c.Issuer, "not_after": c.NotAfter.UTC().Format(time.RFC3339), "replaces": serial, "request": c.Request.String(),
	}})
}

// end sets a certificate's end, and moves the head that lists of revoked certificates are made by.
func (t *tx) end(service, issuer, serial string, at int64, why Reason) error {
	if err := t.must("UPDATE certificate SET revoked_at = ?, revoked_reason = ? WHERE service = ? AND issuer = ? AND serial = ?", at, int(why), service, issuer, serial); err != nil {
		return err
	}
	t.moved = true
	return t.must("UPDATE head SET value = value + 1 WHERE name = 'revocation'")
}

// Revocation is an order to revoke.
type Revocation struct {
	Service string // empty: of every service (then Device is given)
	Issuer  string // with Serial
	Serial  string // empty: all of Device's
	Device  string
	Reason  Reason
	Who     string
	Why     string
}

// Revoke revokes one certificate, or all that a device has of one service or of all, from now on,
// and returns those that it ended. Certificates that have expired or are revoked already stay as
// they are, except that KeyCompromise takes the place of any other reason. ErrNotFound: the device
// never had one, or there is no such serial number.
func (s *Store) Revoke(ctx context.Context, r Revocation, now time.Time) (ended []Certificate, err error) {
	err = firstError(r.Reason.check(), checkText("who", r.Who, MaxName, true), checkText("why", r.Why, MaxText, false),
		checkText("service", r.Service, MaxName, r.Serial != ""), checkText("issuer", r.Issuer, MaxName, r.Serial != ""), checkText("device", r.Device, MaxName, r.Serial == ""))
	if err == nil && r.Serial != "" {
		err = checkSerial(r.Serial)
	}
	if err != nil {
		return nil, fmt.Errorf("revoke: %w", err)
	}
	q, args := certificateColumns+" WHERE service = ? AND issuer = ? AND serial = ?", []any{r.Service, r.Issuer, r.Serial}
	switch {
	case r.Serial != "":
	case r.Service != "":
		q, args = certificateColumns+" WHERE device = ? AND service = ? ORDER BY issued_at", []any{r.Device, r.Service}
	default:
		q, args = certificateColumns+" WHERE device = ? ORDER BY service, issued_at", []any{r.Device}
	}
	err = s.write(ctx, func(t *tx) error {
		var found []Certificate
		if err := t.rows(func(row row) error {
			c, err := scanCertificate(row)
			found = append(found, c)
			return err
		}, q, args...); err != nil {
			return err
		}
		if len(found) == 0 {
			return ErrNotFound
		}
		ended = nil
		for _, c := range found {
			is := !c.Ends.IsZero() && !c.Ends.After(now)
			worse := r.Reason == KeyCompromise && c.Reason != KeyCompromise
			if now.After(c.NotAfter) || is && !worse {
				continue
			}
			if !is {
				c.Ends = fromMicro(micro(now))
			}
			c.Reason = r.Reason
			if err := t.end(c.Service, c.Issuer, c.Serial, micro(c.Ends), c.Reason); err != nil {
				return err
			}
			if err := t.audit(Event{At: now, Event: "certificate-revoked", Who: r.Who, What: c.Service + " " + c.Serial, Result: ResultOK, Detail: map[string]string{
				"device": c.Device, "issuer": c.Issuer, "reason": strconv.Itoa(int(r.Reason)), "why": r.Why,
			}}); err != nil {
				return err
			}
			ended = append(ended, c)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("revoke %s: %w", cmp.Or(r.Serial, r.Device), err)
	}
	return ended, nil
}

const certificateColumns = `SELECT service, issuer, serial, device, key_hash, not_before, not_after, issued_at, request, der,
	COALESCE(revoked_at, 0), COALESCE(revoked_reason, 0) FROM certificate`

func scanCertificate(r row) (c Certificate, err error) {
	var key, request string
	var before, after, issued, ends int64
	var reason int
	if err := r.Scan(&c.Service, &c.Issuer, &c.Serial, &c.Device, &key, &before, &after, &issued, &request, &c.DER, &ends, &reason); err != nil {
		return c, err
	}
	c.NotBefore, c.NotAfter, c.Issued, c.Ends, c.Reason = fromMicro(before), fromMicro(after), fromMicro(issued), fromMicro(ends), Reason(reason)
	var err2 error
	c.Key, err = parseHash(key)
	c.Request, err2 = parseHash(request)
	return c, firstError(err, err2)
}

func (s *Store) certificates(ctx context.Context, q string, args ...any) ([]Certificate, error) {
	var out []Certificate
	err := s.reader(ctx).rows(func(r row) error {
		c, err := scanCertificate(r)
		out = append(out, c)
		return err
	}, q, args...)
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	return out, nil
}

func (s *Store) certificate(ctx context.Context, q string, args ...any) (*Certificate, error) {
	list, err := s.certificates(ctx, q, args...)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("certificates: %w", ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return &list[0], nil
}

// Certificate returns a certificate by its serial number: what OCSP asks.
func (s *Store) Certificate(ctx context.Context, service, issuer, serial string) (*Certificate, error) {
	return s.certificate(ctx, certificateColumns+" WHERE service = ? AND issuer = ? AND serial = ?", service, issuer, serial)
}

// CurrentCertificate returns the device's certificate of a service that no end has been set to. It
// may have expired.
func (s *Store) CurrentCertificate(ctx context.Context, service, device string) (*Certificate, error) {
	return s.certificate(ctx, certificateColumns+" WHERE service = ? AND device = ? AND revoked_at IS NULL", service, device)
}

// CertificateForKey returns the newest certificate of a service for a key, also when it has ended: a
// device that lost the answer asks again with the same key, and may be given the same certificate.
func (s *Store) CertificateForKey(ctx context.Context, service string, key Hash) (*Certificate, error) {
	return s.certificate(ctx, certificateColumns+" WHERE service = ? AND key_hash = ? ORDER BY issued_at DESC, revoked_at IS NULL DESC LIMIT 1", service, key.String())
}

// CertificatesOf returns the newest certificates of a device, of all services, at most limit
// (0: MaxPage), the newest first.
func (s *Store) CertificatesOf(ctx context.Context, device string, limit int) ([]Certificate, error) {
	return s.certificates(ctx, certificateColumns+" WHERE device = ? ORDER BY issued_at DESC, serial LIMIT ?", device, page(limit))
}

// CertificatesInUse returns the certificates of some devices that have neither expired nor ended at a time,
// by device, service and time of issue. At most MaxBatch devices.
func (s *Store) CertificatesInUse(ctx context.Context, devices []string, now time.Time) ([]Certificate, error) {
	if err := checkCount("devices", len(devices)); err != nil {
		return nil, fmt.Errorf("certificates in use: %w", err)
	}
	var out []Certificate
	for part := range slices.Chunk(slices.Compact(slices.Sorted(slices.Values(devices))), inList) {
		list, err := s.certificates(ctx, certificateColumns+" WHERE device IN "+inMarks+" AND not_after >= ? AND (revoked_at IS NULL OR revoked_at > ?) ORDER BY device, service, issued_at",
			append(inArgs(part), micro(now), micro(now))...)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// Expiring returns certificates without an end that expire before a time, those that are first to
// expire first.
func (s *Store) Expiring(ctx context.Context, after, before time.Time, limit int) ([]Certificate, error) {
	return s.certificates(ctx, certificateColumns+" WHERE revoked_at IS NULL AND not_after >= ? AND not_after < ? ORDER BY not_after, service, serial LIMIT ?",
		micro(after), micro(before), page(limit))
}

// Revoked is an entry of a revocation list.
type Revoked struct {
	Serial string
	At     time.Time
	Reason Reason
}

// Revoked returns what an issuing CA's revocation list of now holds: certificates that ended by now and
// that expire after a time (RFC 5280, section 3.3: an entry is on one list beyond its expiry, so
// that is the time of the list before).
func (s *Store) Revoked(ctx context.Context, service, issuer string, expireAfter, now time.Time) ([]Revoked, error) {
	var out []Revoked
	err := s.reader(ctx).rows(func(r row) error {
		var v Revoked
		var at int64
		var reason int
		err := r.Scan(&v.Serial, &at, &reason)
		v.At, v.Reason = fromMicro(at), Reason(reason)
		out = append(out, v)
		return err
	}, `SELECT serial, revoked_at, revoked_reason FROM certificate
		WHERE service = ? AND issuer = ? AND revoked_at IS NOT NULL AND revoked_at <= ? AND revoked_at < not_after AND not_after >= ?
		ORDER BY revoked_at, serial`, service, issuer, micro(now), micro(expireAfter))
	if err != nil {
		return nil, fmt.Errorf("revoked certificates of %s: %w", service, err)
	}
	return out, nil
}

// NextEnd returns the first time after now at which a certificate of an issuing CA ends that has
// been replaced, so that a new revocation list is due; false when there is none.
func (s *Store) NextEnd(ctx context.Context, service, issuer string, now time.Time) (time.Time, bool, error) {
	var at int64
	err := s.reader(ctx).one([]any{&at}, `SELECT COALESCE(MIN(revoked_at), 0) FROM certificate
		WHERE service = ? AND issuer = ? AND revoked_at IS NOT NULL AND revoked_at > ? AND revoked_at < not_after`, service, issuer, micro(now))
	if err != nil {
		return time.Time{}, false, fmt.Errorf("next end of a certificate of %s: %w", service, err)
	}
	return fromMicro(at), at != 0, nil
}

// NextNumber returns 1, 2, 3, … for a name, never the same number twice: for the numbers of
// revocation lists, which never go back (RFC 5280, section 5.2.3).
func (s *Store) NextNumber(ctx context.Context, name string) (n uint64, err error) {
	if err := checkName("number", name); err != nil {
		return 0, err
	}
	err = s.write(ctx, func(t *tx) error {
		var v int64
		err := t.one([]any{&v}, "INSERT INTO head (name, value, hash) VALUES (?, 1, '') ON CONFLICT (name) DO UPDATE SET value = head.value + 1 RETURNING value", "number/"+name)
		n = uint64(v)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("number %s: %w", name, err)
	}
	return n, nil
}

// Request is an enrolment request that was seen.
type Request struct {
	Hash    Hash // SHA-256 of the request as it was received
	Service string
	Device  string
	Seen    time.Time
	Keep    time.Time // until when a copy is recognized
}

// SeeRequest records a request that no certificate is issued for, so that it cannot be used again
// later. ErrReplay: it was seen before. Issue does the same for those that are answered.
func (s *Store) SeeRequest(ctx context.Context, r Request) error {
	err := firstError(checkName("service", r.Service), checkName("device", r.Device))
	if err == nil && !r.Keep.After(r.Seen) {
		err = invalid("expected to keep it for some time, came from %s to %s", r.Seen, r.Keep)
	}
	if err == nil {
		err = s.write(ctx, func(t *tx) error { return t.see(r) })
	}
	if err != nil {
		return fmt.Errorf("request by %s for %s: %w", r.Device, r.Service, err)
	}
	return nil
}

func (t *tx) see(r Request) error {
	n, err := t.exec("INSERT INTO request (hash, service, device, seen_at, keep_until) VALUES (?, ?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING",
		r.Hash.String(), r.Service, r.Device, micro(r.Seen), micro(r.Keep))
	if err == nil && n == 0 {
		var by string
		var at int64
		if err := t.one([]any{&by, &at}, "SELECT device, seen_at FROM request WHERE hash = ?", r.Hash.String()); err != nil {
			return err
		}
		return fmt.Errorf("%w: expected a new request, this one was sent by %s at %s; make a new one", ErrReplay, by, fromMicro(at).Format(time.RFC3339))
	}
	return err
}

// RequestSeen returns what is known of a request: ErrNotFound when it is new.
func (s *Store) RequestSeen(ctx context.Context, hash Hash) (*Request, error) {
	r := &Request{Hash: hash}
	var seen, keep int64
	if err := s.reader(ctx).one([]any{&r.Service, &r.Device, &seen, &keep}, "SELECT service, device, seen_at, keep_until FROM request WHERE hash = ?", hash.String()); err != nil {
		return nil, fmt.Errorf("request %s: %w", hash, err)
	}
	r.Seen, r.Keep = fromMicro(seen), fromMicro(keep)
	return r, nil
}
