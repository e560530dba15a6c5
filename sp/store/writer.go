package store

import (
	"context"
	"database/sql"
	"fmt"
	"sync/atomic"
)

// maxGroup bounds how many writes share a transaction.
const maxGroup = 128

// writeLock is the advisory lock that a writing transaction holds on PostgreSQL: the first 8 octets
// of SHA-256("wardgate-sp write"), without the sign.
const writeLock int64 = 0x2795af580adbd68d

// op is one write on its way to the writer.
//
//	waiting ──▶ running ──▶ done is sent to
//	    └─────▶ given up (its caller went away before it began)
type op struct {
	ctx   context.Context
	fn    func(*tx) error
	state atomic.Int32
	err   error // the writer's until done
	done  chan error
}

const (
	opWaiting int32 = iota
	opRunning
	opGivenUp
)

// write has fn run in a transaction, perhaps together with others' writes. fn may be run only once
// and must leave nothing behind in its caller's variables that counts when write returns an error.
func (s *Store) write(ctx context.Context, fn func(*tx) error) error {
	o := &op{ctx: ctx, fn: fn, done: make(chan error, 1)}
	select {
	case s.ops <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.quit:
		return ErrClosed
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		if o.state.CompareAndSwap(opWaiting, opGivenUp) {
			return ctx.Err()
		}
		return <-o.done // it is being done: say how it ended
	}
}

// writer does the writes: one goroutine, from Open to Close.
func (s *Store) writer() {
	defer close(s.stopped)
	for {
		var group []*op
		select {
		case o := <-s.ops:
			group = append(group, o)
		case <-s.quit:
			if s.wc != nil {
				_ = s.wc.Conn.Close()
			}
			return
		}
	collect:
		for len(group) < maxGroup {
			select {
			case o := <-s.ops:
				group = append(group, o)
			default:
				break collect
			}
		}
		moved := s.group(group)
		for _, o := range group {
			o.done <- o.err
		}
		if moved {
			s.notify()
		}
	}
}

// deadline bounds a step on PostgreSQL, where the answer of a server that is gone may never come.
func (s *Store) deadline() (context.Context, context.CancelFunc) {
	if s.d == postgres {
		return context.WithTimeout(context.Background(), 2*s.opt.Timeout)
	}
	// SQLite answers. A context that can end would cost a goroutine a statement.
	return context.Background(), func() {}
}

// group does some writes in one transaction and reports whether a head moved. How each ended is in
// its err.
func (s *Store) group(group []*op) (moved bool) {
	ctx, cancel := s.deadline()
	defer cancel()
	refuse := func(err error) {
		for _, o := range group {
			if o.err == nil {
				o.err = err
			}
		}
	}
	c, err := s.begin(ctx)
	if err != nil {
		refuse(err)
		return false
	}
	broken := func(err error) bool {
		s.wc = nil
		c.drop()
		refuse(fmt.Errorf("%w: the writes of a transaction that was broken off: %w", ErrUnavailable, err))
		return false
	}
	alone, wrote := len(group) == 1, 0
	for _, o := range group {
		if !o.state.CompareAndSwap(opWaiting, opRunning) {
			o.err = o.ctx.Err()
			continue
		}
		if !alone {
			if err := c.control(ctx, "SAVEPOINT w"); err != nil {
				return broken(err)
			}
		}
		t := &tx{caller: o.ctx, ctx: ctx, c: c}
		o.err = o.fn(t)
		if o.err == nil {
			wrote++
			moved = moved || t.moved
		} else if !alone {
			if err := c.control(ctx, "ROLLBACK TO SAVEPOINT w"); err != nil {
				return broken(err)
			}
		}
		if !alone {
			if err := c.control(ctx, "RELEASE SAVEPOINT w"); err != nil {
				return broken(err)
			}
		}
	}
	if wrote == 0 {
		if err := c.control(ctx, "ROLLBACK"); err != nil {
			return broken(err)
		}
		return false
	}
	if err := c.control(ctx, "COMMIT"); err != nil {
		s.wc = nil
		c.drop()
		if s.d == postgres {
			err = fmt.Errorf("%w: the database did not confirm the write: %w", ErrUncertain, err)
		}
		refuse(err)
		return false
	}
	return moved
}

// begin starts the writer's transaction, on a new connection when the old one is gone.
func (s *Store) begin(ctx context.Context) (*conn, error) {
	for fresh := false; ; {
		if s.wc == nil {
			raw, err := s.writeDB.Conn(ctx)
			if err != nil {
				return nil, kindOf(err)
			}
			fresh = true
			s.wc = &conn{Conn: raw, d: s.d, stmts: map[string]*sql.Stmt{}}
		}
		var err error
		if s.d == postgres {
			if err = s.wc.control(ctx, "BEGIN"); err == nil {
				err = s.wc.lock(ctx)
			}
		} else {
			err = s.wc.control(ctx, "BEGIN IMMEDIATE")
		}
		if err == nil {
			return s.wc, nil
		}
		s.wc.drop()
		s.wc = nil
		// A connection that died while nobody used it says nothing about the database.
		if fresh {
			return nil, err
		}
	}
}

func (c *conn) lock(ctx context.Context) error {
	rows, err := c.query(ctx, "SELECT pg_advisory_xact_lock(?)", writeLock)
	return each(rows, err, func(row) error { return nil })
}

// writeFree is write for what needs no order among all writes. On PostgreSQL it has a transaction of
// its own and holds no lock but those of its rows; fn must take these in an order that all who take
// them keep to, or without waiting.
func (s *Store) writeFree(ctx context.Context, fn func(*tx) error) error {
	if s.d == sqliteDB {
		return s.write(ctx, fn)
	}
	select {
	case <-s.quit:
		return ErrClosed
	default:
	}
	raw, err := s.db.Conn(ctx)
	if err != nil {
		return kindOf(err)
	}
	c := &conn{Conn: raw, d: s.d}
	if err := c.control(ctx, "BEGIN"); err != nil {
		c.drop()
		return err
	}
	if err := fn(&tx{caller: ctx, ctx: ctx, c: c}); err != nil {
		if c.control(context.WithoutCancel(ctx), "ROLLBACK") != nil {
			c.drop()
		} else {
			_ = raw.Close()
		}
		return err
	}
	if err := c.control(ctx, "COMMIT"); err != nil {
		c.drop()
		return fmt.Errorf("%w: the database did not confirm the write: %w", ErrUncertain, err)
	}
	return raw.Close()
}
