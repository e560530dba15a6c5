package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// Job is work that any instance may do: to make Item (such as a device's policy) as it is Wanted
// (such as at a revision of the registry).
//
// The queue holds each item once. Asking again for a higher Wanted while it waits makes one job of
// two; while it is being done, it is done once more afterwards; asking for one that was done already
// does nothing.
//
//	            Enqueue                 Claim                     Finish
//	(nothing) ──────────▶ wanted > done ─────▶ leased until "due" ──────▶ wanted == done
//	                          ▲                      │
//	                          └──── Fail, or the lease runs out (its holder died)
type Job struct {
	Kind   string
	Item   string
	Wanted uint64
	Due    time.Time // not before; zero: at once
}

// Claim is a lease on a job. What was made of it counts only while no other instance has claimed the
// job since: Finish and PutPolicies compare the token, which grows with each claim.
type Claim struct {
	Kind     string
	Item     string
	Wanted   uint64 // what was wanted when it was claimed
	Token    uint64
	Holder   string
	Attempts int       // claims since it was last finished, this one included
	Until    time.Time // the end of the lease
	Error    string    // of the attempt before
}

func checkJobs(jobs []Job, wanted bool) error {
	if len(jobs) > 1_000_000 {
		return invalid("jobs: expected at most 1000000, came %d", len(jobs))
	}
	for _, j := range jobs {
		if err := firstError(checkName("kind of job", j.Kind), checkName("item of job", j.Item)); err != nil {
			return err
		}
		if wanted && (j.Wanted == 0 || j.Wanted > 1<<63-1) {
			return invalid("job %s %s: expected wanted from 1 to 2^63-1, came %d", j.Kind, j.Item, j.Wanted)
		}
	}
	return nil
}

// Enqueue asks for work.
func (s *Store) Enqueue(ctx context.Context, jobs []Job, now time.Time) error {
	err := checkJobs(jobs, true)
	if err == nil {
		err = s.write(ctx, func(t *tx) error { return t.enqueue(jobs, now) })
	}
	if err != nil {
		return fmt.Errorf("enqueue: %w", err)
	}
	return nil
}

func (t *tx) enqueue(jobs []Job, now time.Time) error {
	for _, j := range jobs {
		due := j.Due
		if due.IsZero() {
			due = now
		}
		// Leased work keeps its "due", the end of its lease; what waits becomes due at the earlier time;
		// what is done begins anew.
		if _, err := t.exec(`INSERT INTO job (kind, item, wanted, done, due, token, holder, attempts, error) VALUES (?, ?, ?, 0, ?, 0, '', 0, '')
			ON CONFLICT (kind, item) DO UPDATE SET wanted = excluded.wanted,
				due = CASE WHEN job.holder <> '' THEN job.due WHEN job.wanted > job.done AND job.due < excluded.due THEN job.due ELSE excluded.due END
			WHERE excluded.wanted > job.wanted`, j.Kind, j.Item, int64(j.Wanted), micro(due)); err != nil {
			return err
		}
		t.moved = true
	}
	return nil
}

// Claim leases up to n jobs of a kind that are due, those due first, to a holder for a time. Rows that
// another instance claims at this moment are skipped, not waited for.
func (s *Store) Claim(ctx context.Context, kind, holder string, n int, lease time.Duration, now time.Time) ([]Claim, error) {
	err := firstError(checkName("kind of job", kind), checkName("holder", holder), checkCount("jobs", n))
	if err == nil && (n < 1 || lease <= 0) {
		err = invalid("claim: expected at least one job and a lease that lasts, came %d and %s", n, lease)
	}
	until := now.Add(lease)
	var out []Claim
	if err == nil {
		err = s.writeFree(ctx, func(t *tx) error {
			out = nil
			return t.rows(func(r row) error {
				c := Claim{Kind: kind, Holder: holder, Until: fromMicro(micro(until))}
				var wanted, token int64
				err := r.Scan(&c.Item, &wanted, &token, &c.Attempts, &c.Error)
				c.Wanted, c.Token = uint64(wanted), uint64(token)
				out = append(out, c)
				return err
			}, `WITH free AS MATERIALIZED (
					SELECT kind, item FROM job WHERE kind = ? AND wanted > done AND due <= ? ORDER BY due, item LIMIT ?`+skipLocked+`)
				UPDATE job SET holder = ?, due = ?, token = token + 1, attempts = attempts + 1
				WHERE (kind, item) IN (SELECT kind, item FROM free)
				RETURNING item, wanted, token, attempts, error`,
				kind, micro(now), n, holder, micro(until))
		})
	}
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	slices.SortFunc(out, func(a, b Claim) int { return cmp.Compare(a.Item, b.Item) })
	return out, nil
}

const held = " WHERE kind = ? AND item = ? AND token = ? AND holder = ?"

func (c *Claim) key() []any { return []any{c.Kind, c.Item, int64(c.Token), c.Holder} }

func (c *Claim) lost() error {
	return fmt.Errorf("%w: %s %s (claim %d of %s): another instance has it, or it is finished", ErrLeaseLost, c.Kind, c.Item, c.Token, c.Holder)
}

// Extend makes a lease last until now plus a time.
func (s *Store) Extend(ctx context.Context, c *Claim, lease time.Duration, now time.Time) error {
	until := fromMicro(micro(now.Add(lease)))
	err := s.writeFree(ctx, func(t *tx) error {
		n, err := t.exec("UPDATE job SET due = ?"+held, append([]any{micro(until)}, c.key()...)...)
		if err == nil && n == 0 {
			err = c.lost()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("extend: %w", err)
	}
	c.Until = until
	return nil
}

// Finish says that work is done, for all claims or none. Use PutPolicies where a policy came of it.
func (s *Store) Finish(ctx context.Context, claims []Claim, now time.Time) error {
	err := checkCount("claims", len(claims))
	if err == nil {
		err = s.write(ctx, func(t *tx) error {
			for _, c := range claims {
				if err := t.finish(c, now); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	return nil
}

// finish ends a claim. What was asked for since the claim stays to be done, and is due now.
func (t *tx) finish(c Claim, now time.Time) error {
	n, err := t.exec("UPDATE job SET done = ?, holder = '', due = ?, attempts = 0, error = ''"+held, append([]any{int64(c.Wanted), micro(now)}, c.key()...)...)
	if err == nil && n == 0 {
		err = c.lost()
	}
	return err
}

// Fail gives work back, to be tried again at a time (ErrLeaseLost: somebody has it already).
func (s *Store) Fail(ctx context.Context, c Claim, why string, retry time.Time) error {
	why = cmp.Or(readable(why), "failed")
	err := s.writeFree(ctx, func(t *tx) error {
		n, err := t.exec("UPDATE job SET holder = '', due = ?, error = ?"+held, append([]any{micro(retry), why}, c.key()...)...)
		if err == nil && n == 0 {
			err = c.lost()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("give back: %w", err)
	}
	return nil
}

// Queue says how much work there is.
type Queue struct {
	Waiting int       // due or not
	Leased  int       // claimed, whether or not the lease has run out
	Failing int       // those that failed before
	Next    time.Time // when the next becomes due (a lease runs out); zero: nothing to do
}

// Queue returns how much work of a kind there is.
func (s *Store) Queue(ctx context.Context, kind string) (q Queue, err error) {
	var next int64
	err = s.reader(ctx).one([]any{&q.Waiting, &q.Leased, &q.Failing, &next}, `SELECT
		COALESCE(SUM(CASE WHEN holder = '' THEN 1 ELSE 0 END), 0),
		COALESCE(SUM(CASE WHEN holder <> '' THEN 1 ELSE 0 END), 0),
		COALESCE(SUM(CASE WHEN error <> '' THEN 1 ELSE 0 END), 0),
		COALESCE(MIN(due), 0) FROM job WHERE kind = ? AND wanted > done`, kind)
	if err != nil {
		return Queue{}, fmt.Errorf("queue of %s: %w", kind, err)
	}
	q.Next = fromMicro(next)
	return q, nil
}
