package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Prune says what is kept no longer. The registry's history and the record are kept for ever.
type Prune struct {
	Certificates time.Duration // how long after their expiry; 0: they are all kept
	Policies     int           // how many of each device, its newest included; 0: they are all kept
	Jobs         time.Duration // how long after they were done; 0: they are all kept
	Step         int           // rows in one transaction, so that other writes come between; 0: 1000
}

// Pruned counts the rows that were removed.
type Pruned struct{ Requests, Certificates, Policies, Jobs int }

// Prune removes what is kept no longer, and requests whose time to be recognized is over.
func (s *Store) Prune(ctx context.Context, p Prune, now time.Time) (done Pruned, err error) {
	if p.Step <= 0 {
		p.Step = 1000
	}
	loop := func(n *int, q string, args ...any) {
		for more := int64(p.Step); err == nil && more == int64(p.Step); {
			err = s.write(ctx, func(t *tx) (err error) {
				more, err = t.exec(q, append(args[:len(args):len(args)], p.Step)...)
				return err
			})
			if err == nil {
				*n += int(more)
			}
		}
	}
	loop(&done.Requests, "DELETE FROM request WHERE hash IN (SELECT hash FROM request WHERE keep_until < ? ORDER BY keep_until LIMIT ?)", micro(now))
	if p.Certificates > 0 {
		loop(&done.Certificates, "DELETE FROM certificate WHERE (service, issuer, serial) IN (SELECT service, issuer, serial FROM certificate WHERE not_after < ? ORDER BY not_after LIMIT ?)",
			micro(now.Add(-p.Certificates)))
	}
	if p.Policies > 0 {
		if err == nil {
			done.Policies, err = s.prunePolicies(ctx, p)
		}
	}
	if p.Jobs > 0 {
		loop(&done.Jobs, "DELETE FROM job WHERE (kind, item) IN (SELECT kind, item FROM job WHERE wanted <= done AND due < ? LIMIT ?)", micro(now.Add(-p.Jobs)))
	}
	if err != nil {
		return done, fmt.Errorf("prune: %w", err)
	}
	return done, nil
}

// prunePolicies looks for the devices with too many while others write, and then removes a few devices'
// at a time. Serials may have gaps: the ones to stay are counted, not calculated.
func (s *Store) prunePolicies(ctx context.Context, p Prune) (n int, err error) {
	for {
		var devices []string
		err := s.reader(ctx).rows(func(r row) error {
			var d string
			err := r.Scan(&d)
			devices = append(devices, d)
			return err
		}, "SELECT device FROM policy GROUP BY device HAVING COUNT(*) > ? ORDER BY device LIMIT ?", p.Policies, p.Step)
		if err != nil || len(devices) == 0 {
			return n, err
		}
		for _, d := range devices {
			err := s.write(ctx, func(t *tx) error {
				gone, err := t.exec(`DELETE FROM policy WHERE device = ? AND serial < (
					SELECT MIN(serial) FROM (SELECT serial FROM policy WHERE device = ? ORDER BY serial DESC LIMIT ?) AS newest)`, d, d, p.Policies)
				n += int(gone)
				return err
			})
			if err != nil {
				return n, err
			}
		}
	}
}

// Check looks for contradictions: the database's own pages (SQLite), what must be true of the tables,
// and the record's chain. It reads everything. The error is ErrDamaged and lists what is wrong.
func (s *Store) Check(ctx context.Context) error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...))
	}
	if s.d == sqliteDB {
		err := s.reader(ctx).rows(func(r row) error {
			var line string
			if err := r.Scan(&line); err != nil {
				return err
			}
			if line != "ok" {
				fault("the file: %s", line)
			}
			return nil
		}, "PRAGMA integrity_check")
		if err != nil {
			return fmt.Errorf("check: %w", err)
		}
	}
	for _, c := range []struct{ what, q string }{
		{"revisions that are missing", "SELECT (SELECT value FROM head WHERE name = 'registry') - (SELECT COUNT(*) FROM revision)"},
		{"revisions beyond the newest", "SELECT COUNT(*) FROM revision WHERE revision < 1 OR revision > (SELECT value FROM head WHERE name = 'registry')"},
		{"versions of objects that overlap", `SELECT COUNT(*) FROM object AS a JOIN object AS b ON a.kind = b.kind AND a.name = b.name AND a.since < b.since
			WHERE a.until IS NULL OR a.until > b.since`},
		{"versions of objects that end before they begin", "SELECT COUNT(*) FROM object WHERE until <= since"},
		{"newest policies that are not the newest", `SELECT COUNT(*) FROM policy_head AS h
			WHERE NOT EXISTS (SELECT 1 FROM policy AS p WHERE p.device = h.device AND p.serial = h.serial AND p.seq = h.seq AND p.jws_hash = h.jws_hash)
			OR EXISTS (SELECT 1 FROM policy AS p WHERE p.device = h.device AND p.serial > h.serial)`},
		{"policies of devices without a newest one", "SELECT COUNT(*) FROM policy WHERE NOT EXISTS (SELECT 1 FROM policy_head AS h WHERE h.device = policy.device)"},
		{"policies beyond the last sequence number", "SELECT COUNT(*) FROM policy WHERE seq > (SELECT value FROM head WHERE name = 'policy')"},
		{"policies whose order contradicts their serials", `SELECT COUNT(*) FROM policy AS a JOIN policy AS b ON a.device = b.device AND a.serial < b.serial WHERE a.seq >= b.seq`},
		{"devices with two certificates of a service", "SELECT COUNT(*) FROM (SELECT 1 FROM certificate WHERE revoked_at IS NULL GROUP BY service, device HAVING COUNT(*) > 1) AS doubled"},
		{"work done that was never wanted", "SELECT COUNT(*) FROM job WHERE done > wanted"},
	} {
		var n int64
		if err := s.reader(ctx).one([]any{&n}, c.q); err != nil {
			return fmt.Errorf("check: %w", err)
		}
		if n != 0 {
			fault("%s: %d", c.what, n)
		}
	}
	if _, err := s.VerifyRecord(ctx, Mark{}); err != nil {
		faults = append(faults, err)
	}
	if len(faults) > 0 {
		return fmt.Errorf("check: %w", errors.Join(faults...))
	}
	return nil
}
