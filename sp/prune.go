package sp

import (
	"context"
	"time"

	"wardgate/sp/store"
)

const (
	pruneFirst = time.Minute // after the start
	pruneEvery = time.Hour
	pruneStep  = 500 // rows in one transaction: others write in between
)

// Prune removes from the database what [database] keep and keep_policies do not keep: certificates that
// ended that long ago, work that was done, older policies of each device; and requests that cannot be
// replayed any more. The registry's history and the record stay for ever, and so do the numbers of
// revocation lists and each device's newest policy with its serial number. It can be repeated, by several
// instances at a time.
func (c *Centre) Prune(ctx context.Context) (store.Pruned, error) {
	keep := time.Duration(c.cfg.Database.Keep)
	if keep > 0 {
		// A revocation list names what ended one list's life ago (RFC 5280, section 3.3), and a list
		// lives for two policies' lives.
		keep = max(keep, 4*time.Duration(c.cfg.Policy.Life))
	}
	return c.st.Prune(ctx, store.Prune{Certificates: keep, Jobs: keep, Policies: c.cfg.Database.KeepPolicies, Step: pruneStep}, c.now())
}

// keepSmall prunes every hour until its context ends.
func (c *Centre) keepSmall(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	next := c.now().Add(pruneFirst)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if c.now().Before(next) {
			continue
		}
		next = c.now().Add(pruneEvery)
		done, err := c.Prune(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			c.log.Error("old rows of the database cannot be removed, it is tried again in an hour", "error", err)
		case done != store.Pruned{}:
			c.log.Info("old rows removed", "certificates", done.Certificates, "policies", done.Policies, "requests", done.Requests, "jobs", done.Jobs)
		}
	}
}
