package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Policy is a signed policy for one device.
type Policy struct {
	PolicyHead
	Signer string // who signed: subject or identity of the signer's certificate
	JWS    []byte
}

// PolicyHead is what is known of a policy without its octets.
type PolicyHead struct {
	Device   string
	Serial   uint64   // grows with each policy for the device
	Seq      uint64   // grows with each policy for any device; the store sets it
	Content  Hash     // of what the policy says, without serial and dates: when it is equal, nothing changes for the device
	Revision Revision // of the registry that it was made from
	Created  time.Time
	NotAfter time.Time
	JWSHash  Hash // SHA-256 of the signed file; the store sets it
}

// PutPolicies records signed policies, all or none of them, and finishes the work that they were
// made for: where one of the claims is lost (ErrLeaseLost), none is recorded. So work that two
// instances did is recorded once.
//
// A serial that is not above the device's newest is a *SerialError; the very same file again
// changes nothing. The answer has the head of each policy as it is kept.
func (s *Store) PutPolicies(ctx context.Context, who string, policies []Policy, claims []Claim, now time.Time) ([]PolicyHead, error) {
	err := firstError(checkName("who", who), checkCount("policies", len(policies)), checkCount("claims", len(claims)))
	size := 0
	heads := make([]PolicyHead, len(policies))
	for i := range policies {
		p := &policies[i]
		if err == nil {
			err = firstError(checkName("device", p.Device), checkText("signer", p.Signer, MaxText, true), checkSize("policy", len(p.JWS), MaxPolicy))
		}
		if err == nil && (p.Serial == 0 || p.Serial > 1<<63-1) {
			err = invalid("serial of the policy for %s: expected 1 to 2^63-1, came %d", p.Device, p.Serial)
		}
		size += len(p.JWS)
		heads[i] = p.PolicyHead
		heads[i].Seq, heads[i].JWSHash = 0, sha256.Sum256(p.JWS)
		heads[i].Created, heads[i].NotAfter = fromMicro(micro(p.Created)), fromMicro(micro(p.NotAfter))
	}
	if err == nil && size > MaxBatchOctets {
		err = invalid("policies: expected at most %d octets in one call, came %d: call several times", MaxBatchOctets, size)
	}
	if err == nil {
		err = s.write(ctx, func(t *tx) error { return t.putPolicies(who, policies, heads, claims, now) })
	}
	if err != nil {
		return nil, fmt.Errorf("record policies: %w", err)
	}
	return heads, nil
}

func (t *tx) putPolicies(who string, policies []Policy, heads []PolicyHead, claims []Claim, now time.Time) error {
	for _, c := range claims {
		if err := t.finish(c, now); err != nil {
			return err
		}
	}
	var seq int64
	if err := t.one([]any{&seq}, "SELECT value FROM head WHERE name = 'policy'"); err != nil {
		return err
	}
	first := seq
	for i := range policies {
		p, h := &policies[i], &heads[i]
		var serial, had int64
		var jws string
		err := t.one([]any{&serial, &had, &jws}, "SELECT serial, seq, jws_hash FROM policy_head WHERE device = ?", p.Device)
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return err
		case uint64(serial) == p.Serial && jws == h.JWSHash.String():
			h.Seq = uint64(had)
			continue
		case uint64(serial) >= p.Serial:
			return &SerialError{Device: p.Device, Offered: p.Serial, Newest: uint64(serial)}
		}
		seq++
		h.Seq = uint64(seq)
		if _, err := t.exec("INSERT INTO policy (device, serial, seq, hash, revision, signer, created_at, not_after, jws_hash, jws) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			h.Device, int64(h.Serial), seq, h.Content.String(), int64(h.Revision), p.Signer, micro(h.Created), micro(h.NotAfter), h.JWSHash.String(), p.JWS); err != nil {
			return err
		}
		if err := t.must(`INSERT INTO policy_head (device, serial, seq, hash, revision, created_at, not_after, jws_hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (device) DO UPDATE SET serial = excluded.serial, seq = excluded.seq, hash = excluded.hash, revision = excluded.revision,
			created_at = excluded.created_at, not_after = excluded.not_after, jws_hash = excluded.jws_hash`,
			h.Device, int64(h.Serial), seq, h.Content.String(), int64(h.Revision), micro(h.Created), micro(h.NotAfter), h.JWSHash.String()); err != nil {
			return err
		}
	}
	if seq == first {
		return nil
	}
	if err := t.must("UPDATE head SET value = ? WHERE name = 'policy'", seq); err != nil {
		return err
	}
	t.moved = true
	// The policies are their own record, in order; this one says who had them made, and when.
	return t.audit(Event{At: now, Event: "policies-signed", Who: who, What: strconv.FormatInt(seq-first, 10) + " policies", Result: ResultOK, Detail: map[string]string{
		"first": strconv.FormatInt(first+1, 10), "last": strconv.FormatInt(seq, 10),
	}})
}

const policyHeadColumns = "device, serial, seq, hash, revision, created_at, not_after, jws_hash"

func scanPolicyHead(r row, more ...any) (h PolicyHead, err error) {
	var serial, seq, revision, created, notAfter int64
	var content, jws string
	if err := r.Scan(append([]any{&h.Device, &serial, &seq, &content, &revision, &created, &notAfter, &jws}, more...)...); err != nil {
		return h, err
	}
	h.Serial, h.Seq, h.Revision, h.Created, h.NotAfter = uint64(serial), uint64(seq), Revision(revision), fromMicro(created), fromMicro(notAfter)
	var err2 error
	h.Content, err = parseHash(content)
	h.JWSHash, err2 = parseHash(jws)
	return h, firstError(err, err2)
}

// LatestHead returns the head of a device's newest policy.
func (s *Store) LatestHead(ctx context.Context, device string) (h PolicyHead, err error) {
	list, err := s.heads(ctx, "SELECT "+policyHeadColumns+" FROM policy_head WHERE device = ?", device)
	if err == nil && len(list) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return h, fmt.Errorf("newest policy of %s: %w", device, err)
	}
	return list[0], nil
}

// HeadsOf returns the heads of some devices' newest policies, by device: those of devices that have none
// are not in it. At most MaxBatch devices.
func (s *Store) HeadsOf(ctx context.Context, devices []string) (map[string]PolicyHead, error) {
	err := checkCount("devices", len(devices))
	out := make(map[string]PolicyHead, len(devices))
	for part := range slices.Chunk(devices, inList) {
		if err != nil {
			break
		}
		var list []PolicyHead
		list, err = s.heads(ctx, "SELECT "+policyHeadColumns+" FROM policy_head WHERE device IN "+inMarks, inArgs(part)...)
		for i := range list {
			out[list[i].Device] = list[i]
		}
	}
	if err != nil {
		return nil, fmt.Errorf("newest policies of %d devices: %w", len(devices), err)
	}
	return out, nil
}

// Latest returns a device's newest policy.
func (s *Store) Latest(ctx context.Context, device string) (*Policy, error) {
	return s.policy(ctx, "newest policy of "+device, "SELECT "+policyHeadColumns+", signer, jws FROM policy WHERE device = ? ORDER BY serial DESC LIMIT 1", device)
}

// Policy returns the policy of a serial. ErrTooOld: it was removed by Prune; ErrNotFound: there
// was none.
func (s *Store) Policy(ctx context.Context, device string, serial uint64) (*Policy, error) {
	name := fmt.Sprintf("policy %d of %s", serial, device)
	p, err := s.policy(ctx, name, "SELECT "+policyHeadColumns+", signer, jws FROM policy WHERE device = ? AND serial = ?", device, int64(min(serial, 1<<63-1)))
	if errors.Is(err, ErrNotFound) {
		var oldest int64
		if e := s.reader(ctx).one([]any{&oldest}, "SELECT COALESCE(MIN(serial), 0) FROM policy WHERE device = ?", device); e != nil {
			return nil, fmt.Errorf("%s: %w", name, e)
		}
		if serial < uint64(oldest) {
			return nil, fmt.Errorf("%s: %w: expected one from %d on, those before are kept no longer", name, ErrTooOld, oldest)
		}
	}
	return p, err
}

func (s *Store) policy(ctx context.Context, name, q string, args ...any) (*Policy, error) {
	var p *Policy
	err := s.reader(ctx).rows(func(r row) (err error) {
		p = new(Policy)
		p.PolicyHead, err = scanPolicyHead(r, &p.Signer, &p.JWS)
		return err
	}, q, args...)
	switch {
	case err == nil && p == nil:
		err = ErrNotFound
	case err == nil && Hash(sha256.Sum256(p.JWS)) != p.JWSHash:
		err = fmt.Errorf("%w: the file is not what was stored: its hash differs", ErrDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

func (s *Store) heads(ctx context.Context, q string, args ...any) ([]PolicyHead, error) {
	var out []PolicyHead
	err := s.reader(ctx).rows(func(r row) error {
		h, err := scanPolicyHead(r)
		out = append(out, h)
		return err
	}, q, args...)
	return out, err
}

// ChangesSince returns the devices whose newest policy has a sequence number above seq, in the order
// of these numbers, at most limit (0: MaxPage). Whoever goes on with the last number that it was
// given misses no device; a device that changed several times is there once. 0 returns all.
func (s *Store) ChangesSince(ctx context.Context, seq uint64, limit int) ([]PolicyHead, error) {
	out, err := s.heads(ctx, "SELECT "+policyHeadColumns+" FROM policy_head WHERE seq > ? ORDER BY seq LIMIT ?", int64(min(seq, 1<<63-1)), page(limit))
	if err != nil {
		return nil, fmt.Errorf("policies since %d: %w", seq, err)
	}
	return out, nil
}

// PoliciesExpiring returns the newest policies that end before a time, the first to end first: they
// are to be signed anew, with the same content. Those up to and with after are left out, so that whoever
// goes on with the last one that it was given sees all of them: also behind those that nobody renews.
func (s *Store) PoliciesExpiring(ctx context.Context, before time.Time, after PolicyHead, limit int) ([]PolicyHead, error) {
	out, err := s.heads(ctx, "SELECT "+policyHeadColumns+" FROM policy_head WHERE not_after < ? AND (not_after, device) > (?, ?) ORDER BY not_after, device LIMIT ?",
		micro(before), micro(after.NotAfter), after.Device, page(limit))
	if err != nil {
		return nil, fmt.Errorf("policies that expire: %w", err)
	}
	return out, nil
}
