package store

import (
	"context"
	"fmt"
	"time"
)

// Heads are numbers that grow when something changes: what an instance compares to see what others
// wrote.
type Heads struct {
	Registry   Revision // of the current registry
	Policy     uint64   // sequence number of the newest policy
	Revocation uint64   // grows when a certificate is given an end
}

// Heads returns the heads: one small query.
func (s *Store) Heads(ctx context.Context) (h Heads, err error) {
	asked := time.Now()
	err = s.reader(ctx).rows(func(r row) error {
		var name string
		var v int64
		if err := r.Scan(&name, &v); err != nil {
			return err
		}
		switch name {
		case "registry":
			h.Registry = Revision(v)
		case "policy":
			h.Policy = uint64(v)
		case "revocation":
			h.Revocation = uint64(v)
		}
		return nil
	}, "SELECT name, value FROM head WHERE name IN ('registry', 'policy', 'revocation')")
	if err != nil {
		return Heads{}, fmt.Errorf("heads: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = max(s.seen, h.Registry)
	if asked.After(s.seenAt) {
		s.seenAt = asked
	}
	return h, nil
}

// Wait returns as soon as the heads differ from those seen: at once for what this instance writes,
// within Options.Poll for what others write. It asks the database once a poll, so an instance has
// one goroutine that waits, and that one tells the devices.
func (s *Store) Wait(ctx context.Context, seen Heads) (Heads, error) {
	timer := time.NewTimer(s.opt.Poll)
	defer timer.Stop()
	for {
		s.mu.Lock()
		wake := s.wake
		s.mu.Unlock()
		h, err := s.Heads(ctx)
		if err != nil {
			return seen, err
		}
		if h != seen {
			return h, nil
		}
		timer.Reset(s.opt.Poll)
		select {
		case <-wake:
		case <-timer.C:
		case <-s.quit:
			return seen, fmt.Errorf("heads: %w", ErrClosed)
		case <-ctx.Done():
			return seen, ctx.Err()
		}
	}
}

func (s *Store) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.wake)
	s.wake = make(chan struct{})
}
