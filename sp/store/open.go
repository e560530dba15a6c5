package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite" // registers the driver "sqlite"
)

// Options say where the database is.
type Options struct {
	// URL is sqlite:PATH (such as sqlite:/var/lib/wardgate-sp/centre.db; the folder must exist, the
	// file is made), or postgres://… as libpq knows it. The PostgreSQL database must exist; its
	// tables are made.
	URL string
	// Connections bounds those that are open for reading (and on PostgreSQL for reports and leases);
	// 0: 8. One more is for writing.
	Connections int
	// Poll is how often Wait looks for what other instances wrote; 0: 250 ms.
	Poll time.Duration
	// Timeout bounds one statement's wait for locks, and on PostgreSQL its whole length; 0: 30 s.
	Timeout time.Duration
}

// Store is an open database. Its methods may be called from any number of goroutines.
type Store struct {
	d       dialect
	opt     Options
	db      *sql.DB // readers; on PostgreSQL also the writer's and the free writes' connections
	writeDB *sql.DB // where the writer takes its connection: on SQLite a pool of one

	ops     chan *op
	quit    chan struct{}
	stopped chan struct{}
	closing sync.Once

	decoding chan struct{} // one place: who reads a registry

	mu      sync.Mutex           // guards what follows
	stmts   map[string]*sql.Stmt // readers' prepared statements, SQLite only: pgx keeps its own
	wake    chan struct{}        // closed and replaced when this instance has moved a head
	current *snapshot            // the registry that was decoded last
	seen    Revision             // the newest that was seen to be the current one …
	seenAt  time.Time            // … and when that was asked last

	wc *conn // the writer's connection: the writer alone
}

// Open opens the database, makes or migrates its tables, and checks that it is this program's.
// ctx bounds the opening only.
func Open(ctx context.Context, opt Options) (*Store, error) {
	if opt.Connections <= 0 {
		opt.Connections = 8
	}
	if opt.Poll <= 0 {
		opt.Poll = 250 * time.Millisecond
	}
	if opt.Timeout <= 0 {
		opt.Timeout = 30 * time.Second
	}
	s := &Store{
		opt: opt, ops: make(chan *op), quit: make(chan struct{}), stopped: make(chan struct{}),
		stmts: map[string]*sql.Stmt{}, wake: make(chan struct{}),
		decoding: make(chan struct{}, 1),
	}
	var err error
	switch scheme, rest, _ := strings.Cut(opt.URL, ":"); scheme {
	case "sqlite":
		err = s.openSQLite(rest)
	case "postgres", "postgresql":
		err = s.openPostgres()
	default:
		// The URL itself may hold a password.
		err = invalid("database: expected sqlite:PATH or postgres://…, came the scheme %q", scheme)
	}
	if err != nil {
		return nil, err
	}
	if err := s.migrate(ctx); err != nil {
		_ = s.closeDBs()
		return nil, fmt.Errorf("open the centre's database: %w", kindOf(err))
	}
	go s.writer()
	return s, nil
}

// openSQLite makes the file readable by its owner only: policies with pre-shared keys lie in it.
func (s *Store) openSQLite(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return invalid("database: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: database %s: expected its folder to exist; make it: %w", ErrUnavailable, path, err)
	case err != nil:
		return fmt.Errorf("%w: database %s: %w", ErrUnavailable, path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("%w: database %s: %w", ErrUnavailable, path, err)
	}
	dsn := func(more ...string) string {
		q := url.Values{"_pragma": append([]string{
			fmt.Sprintf("busy_timeout(%d)", s.opt.Timeout.Milliseconds()),
			"journal_mode(WAL)",
			// FULL: a policy that a device has must not be forgotten when the power fails, or its
			// serial would be given to another one.
			"synchronous(FULL)",
			"foreign_keys(1)",
			"trusted_schema(0)",
			"journal_size_limit(67108864)",
			"temp_store(MEMORY)",
		}, more...)}
		return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
	}
	s.d = sqliteDB
	if s.writeDB, err = sql.Open("sqlite", dsn()); err != nil {
		return kindOf(err)
	}
	s.writeDB.SetMaxOpenConns(1)
	if s.db, err = sql.Open("sqlite", dsn("query_only(1)")); err != nil {
		_ = s.writeDB.Close()
		return kindOf(err)
	}
	s.db.SetMaxOpenConns(s.opt.Connections)
	s.db.SetMaxIdleConns(s.opt.Connections)
	return nil
}

func (s *Store) openPostgres() error {
	cfg, err := pgx.ParseConfig(s.opt.URL)
	if err != nil {
		return invalid("database: %w", err) // pgx takes the password out of its message
	}
	ms := fmt.Sprint(s.opt.Timeout.Milliseconds())
	for k, v := range map[string]string{
		"application_name":                    "wardgate-sp",
		"timezone":                            "UTC",
		"client_encoding":                     "UTF8",
		"synchronous_commit":                  "on", // as with SQLite: nothing is forgotten
		"default_transaction_isolation":       "read committed",
		"statement_timeout":                   ms,
		"lock_timeout":                        ms,
		"idle_in_transaction_session_timeout": ms,
	} {
		cfg.RuntimeParams[k] = v
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = min(s.opt.Timeout, 10*time.Second)
	}
	s.d = postgres
	s.db = stdlib.OpenDB(*cfg)
	s.writeDB = s.db
	s.db.SetMaxOpenConns(s.opt.Connections + 1)
	s.db.SetMaxIdleConns(s.opt.Connections + 1)
	s.db.SetConnMaxIdleTime(5 * time.Minute)
	return nil
}

// Close waits for the write that is under way, refuses those that wait, and closes the database.
func (s *Store) Close() error {
	err := ErrClosed
	s.closing.Do(func() {
		close(s.quit)
		<-s.stopped
		err = s.closeDBs()
	})
	return err
}

func (s *Store) closeDBs() error {
	err := s.db.Close()
	if s.writeDB != s.db {
		err = errors.Join(err, s.writeDB.Close())
	}
	return err
}

// Kind returns "sqlite" or "postgres".
func (s *Store) Kind() string { return s.d.String() }

// URL returns where the database is, as it was given: it may hold a password.
func (s *Store) URL() string { return s.opt.URL }
