package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strconv"
	"strings"
	"sync"
)

// dialect is what the two databases differ in. Queries are written once: with "?" for arguments, and
// with the row locks that PostgreSQL needs where the global lock is not held.
type dialect int

const (
	sqliteDB dialect = iota
	postgres
)

func (d dialect) String() string {
	if d == postgres {
		return "postgres"
	}
	return "sqlite"
}

// skipLocked ends a query that takes rows which no other instance has taken at this moment. SQLite
// needs nothing: there, who writes is alone.
const skipLocked = " FOR UPDATE SKIP LOCKED"

var rewritten sync.Map // query → query for PostgreSQL

// sql returns a query in the dialect's own words.
func (d dialect) sql(q string) string {
	if d == sqliteDB {
		return strings.ReplaceAll(q, skipLocked, "")
	}
	if r, ok := rewritten.Load(q); ok {
		return r.(string)
	}
	r := dollars(q)
	rewritten.Store(q, r)
	return r
}

// dollars turns each ? outside of quotes into $1, $2, …
func dollars(q string) string {
	var b strings.Builder
	n, quote := 0, rune(0)
	for _, c := range q {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '?':
			n++
			b.WriteByte('$')
			b.WriteString(strconv.Itoa(n))
			continue
		}
		b.WriteRune(c)
	}
	return b.String()
}

// inList is how many values an IN has: always as many, so that it is one statement.
const inList = 64

var inMarks = "(" + strings.TrimSuffix(strings.Repeat("?, ", inList), ", ") + ")"

// inArgs are the arguments for inMarks: at least one value, at most inList; the last one fills up.
func inArgs(list []string) []any {
	out := make([]any, inList)
	for i := range out {
		out[i] = list[min(i, len(list)-1)]
	}
	return out
}

// conn is one connection with its prepared statements.
type conn struct {
	*sql.Conn
	d     dialect
	stmts map[string]*sql.Stmt // SQLite only: pgx prepares and keeps statements itself
}

// drop closes the connection for good: what state its transaction is in is not known.
func (c *conn) drop() {
	_ = c.Raw(func(any) error { return driver.ErrBadConn })
	_ = c.Conn.Close()
}

func (c *conn) prepared(ctx context.Context, q string) (*sql.Stmt, error) {
	if st, ok := c.stmts[q]; ok {
		return st, nil
	}
	st, err := c.PrepareContext(ctx, c.d.sql(q))
	if err == nil {
		c.stmts[q] = st
	}
	return st, err
}

// control runs BEGIN, SAVEPOINT and the like.
func (c *conn) control(ctx context.Context, q string) error {
	_, err := c.exec(ctx, q)
	return err
}

func (c *conn) exec(ctx context.Context, q string, args ...any) (int64, error) {
	var res sql.Result
	var err error
	if c.d == postgres {
		res, err = c.ExecContext(ctx, c.d.sql(q), args...)
	} else {
		var st *sql.Stmt
		if st, err = c.prepared(ctx, q); err == nil {
			res, err = st.ExecContext(ctx, args...)
		}
	}
	if err != nil {
		return 0, kindOf(err)
	}
	n, err := res.RowsAffected()
	return n, kindOf(err)
}

func (c *conn) query(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	if c.d == postgres {
		return c.QueryContext(ctx, c.d.sql(q), args...)
	}
	st, err := c.prepared(ctx, q)
	if err != nil {
		return nil, err
	}
	return st.QueryContext(ctx, args...)
}

// tx is a write under way. Its methods end with the error of the caller's context once that is
// done; a statement itself is not interrupted, because that would end the transaction of the other
// writes too.
type tx struct {
	caller context.Context
	ctx    context.Context
	c      *conn
	moved  bool // a head was moved
}

func (t *tx) exec(q string, args ...any) (int64, error) {
	if err := t.caller.Err(); err != nil {
		return 0, err
	}
	return t.c.exec(t.ctx, q, args...)
}

// must is exec for a statement that changes exactly one row.
func (t *tx) must(q string, args ...any) error {
	n, err := t.exec(q, args...)
	if err == nil && n != 1 {
		return errors.Join(ErrDamaged, errors.New("a statement that must change one row changed "+strconv.FormatInt(n, 10)))
	}
	return err
}

func (t *tx) rows(scan func(row) error, q string, args ...any) error {
	if err := t.caller.Err(); err != nil {
		return err
	}
	rows, err := t.c.query(t.ctx, q, args...)
	return each(rows, err, scan)
}

// one scans the one row of an answer, or says ErrNotFound.
func (t *tx) one(dest []any, q string, args ...any) error {
	return one(t.rows, dest, q, args...)
}

type row interface{ Scan(dest ...any) error }

func each(rows *sql.Rows, err error, scan func(row) error) error {
	if err != nil {
		return kindOf(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return kindOf(err)
		}
	}
	return kindOf(rows.Err())
}

func one(query func(func(row) error, string, ...any) error, dest []any, q string, args ...any) error {
	found := false
	err := query(func(r row) error { found = true; return r.Scan(dest...) }, q, args...)
	if err == nil && !found {
		return ErrNotFound
	}
	return err
}

// reader asks outside of any write.
type reader struct {
	s   *Store
	ctx context.Context
}

func (s *Store) reader(ctx context.Context) reader { return reader{s, ctx} }

func (r reader) rows(scan func(row) error, q string, args ...any) error {
	if r.s.d == postgres {
		rows, err := r.s.db.QueryContext(r.ctx, r.s.d.sql(q), args...)
		return r.closed(each(rows, err, scan))
	}
	st, err := r.s.statement(r.ctx, q)
	if err != nil {
		return r.closed(kindOf(err))
	}
	rows, err := st.QueryContext(r.ctx, args...)
	return r.closed(each(rows, err, scan))
}

func (r reader) one(dest []any, q string, args ...any) error {
	return one(r.rows, dest, q, args...)
}

// closed turns whatever a closed database says into ErrClosed.
func (r reader) closed(err error) error {
	if err == nil || errors.Is(err, ErrNotFound) {
		return err
	}
	select {
	case <-r.s.quit:
		return ErrClosed
	default:
		return err
	}
}

func (s *Store) statement(ctx context.Context, q string) (*sql.Stmt, error) {
	s.mu.Lock()
	st := s.stmts[q]
	s.mu.Unlock()
	if st != nil {
		return st, nil
	}
	st, err := s.db.PrepareContext(ctx, s.d.sql(q))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if first := s.stmts[q]; first != nil {
		_ = st.Close()
		return first, nil
	}
	s.stmts[q] = st
	return st, nil
}
