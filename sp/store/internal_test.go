package store

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wardgate/sp/store/storetest"
)

// Tamper changes the tables behind the API's back.
func (s *Store) Tamper(ctx context.Context, q string, args ...any) error {
	return s.write(ctx, func(t *tx) error { _, err := t.exec(q, args...); return err })
}

func TestDollars(t *testing.T) {
	t.Parallel()
	for q, expected := range map[string]string{
		"SELECT 1":                           "SELECT 1",
		"SELECT ?, '?', \"?\", 'it''s ?', ?": "SELECT $1, '?', \"?\", 'it''s ?', $2",
		"? ? ? ? ? ? ? ? ? ? ?":              "$1 $2 $3 $4 $5 $6 $7 $8 $9 $10 $11",
	} {
		if got := dollars(q); got != expected {
			t.Errorf("%s: expected %s, came %s", q, expected, got)
		}
	}
	if got := sqliteDB.sql("SELECT ?" + skipLocked); got != "SELECT ?" {
		t.Errorf("expected no row lock on SQLite, came %s", got)
	}
}

// Both databases have the same tables, columns, keys and indexes.
func TestSchemasAgree(t *testing.T) {
	t.Parallel()
	var names [2][]string
	for i, d := range []dialect{sqliteDB, postgres} {
		files, err := fs.ReadDir(migrations, path.Join("migrations", d.String()))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			names[i] = append(names[i], f.Name())
		}
	}
	if d := cmp.Diff(names[0], names[1]); d != "" {
		t.Errorf("the migrations of SQLite and PostgreSQL differ:\n%s", d)
	}
	columns := func(url, q string) (out []string) {
		s, err := Open(t.Context(), Options{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		err = s.reader(t.Context()).rows(func(r row) error {
			var line string
			err := r.Scan(&line)
			out = append(out, line)
			return err
		}, q)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(out)
		return out
	}
	const types = `CASE %s WHEN 'BIGINT' THEN 'INTEGER' WHEN 'BYTEA' THEN 'BLOB' ELSE %s END`
	pgType := strings.ReplaceAll(types, "%s", "upper(data_type)")
	lite := columns(storetest.SQLite(t), `SELECT m.name || '.' || c.name || ' ' || c.type || CASE c."notnull" WHEN 1 THEN ' NOT NULL' ELSE '' END
		FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c WHERE m.type = 'table' AND m.name NOT LIKE 'goose%' AND m.name NOT LIKE 'sqlite%'
		UNION ALL SELECT 'index ' || tbl_name || '.' || name FROM sqlite_master WHERE type = 'index' AND name NOT LIKE 'sqlite%'`)
	pg := columns(storetest.Postgres(t), `SELECT table_name || '.' || column_name || ' ' || `+pgType+` || CASE is_nullable WHEN 'NO' THEN ' NOT NULL' ELSE '' END
		FROM information_schema.columns WHERE table_schema = 'public' AND table_name NOT LIKE 'goose%'
		UNION ALL SELECT 'index ' || tablename || '.' || indexname FROM pg_indexes WHERE schemaname = 'public' AND tablename NOT LIKE 'goose%'
			AND indexname NOT LIKE '%\_pkey' AND indexname NOT LIKE '%\_key'`)
	if d := cmp.Diff(lite, pg); d != "" {
		t.Errorf("the tables differ (-SQLite +PostgreSQL):\n%s", d)
	}
	if len(lite) < 60 {
		t.Errorf("expected some 70 columns and indexes, came %d: is the query right?", len(lite))
	}
}

// A write that waits for a lock which another process keeps gives up and says so; a connection that
// breaks in between is replaced.
func TestBusyAndBroken(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s, err := Open(ctx, Options{URL: url, Timeout: 200 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		other, err := Open(ctx, Options{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		event := Event{At: time.Unix(1, 0), Event: "x", Result: ResultOK}
		holding, release := make(chan struct{}), make(chan struct{})
		done := make(chan error)
		go func() {
			done <- other.write(ctx, func(t *tx) error {
				close(holding)
				<-release
				return t.audit(event)
			})
		}()
		<-holding
		if err := s.Record(ctx, event); !errors.Is(err, ErrBusy) {
			t.Errorf("expected the error %q, came %v", ErrBusy, err)
		}
		// Readers do not wait.
		if m, err := s.RecordMark(ctx); err != nil || m.Seq != 0 {
			t.Errorf("expected an empty record, came %+v, %v", m, err)
		}
		close(release)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Record(ctx, event); err != nil {
			t.Error(err)
		}
		if s.d == postgres {
			// The server ends all connections of the first instance, as it does when it is restarted.
			if err := other.reader(ctx).rows(func(row) error { return nil },
				"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); err != nil {
				t.Fatal(err)
			}
			if err := s.Record(ctx, event); err != nil {
				t.Errorf("expected the writer to take a new connection, came %v", err)
			}
			if _, err := s.Claim(ctx, "x", "y", 1, time.Minute, time.Unix(1, 0)); err != nil {
				t.Errorf("expected a new connection, came %v", err)
			}
		}
		m, err := s.VerifyRecord(ctx, Mark{})
		if err != nil || m.Seq < 2 {
			t.Errorf("expected a sound record, came %+v, %v", m, err)
		}
	})
}

// Somebody who can write the tables, and knows how entries are hashed, writes one anew: the next one
// does not fit any more.
func TestRewrittenEntryShows(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s, err := Open(ctx, Options{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		at := time.Unix(1, 0)
		for range 3 {
			if err := s.Record(ctx, Event{At: at, Event: "refused", Who: "mallory", Result: ResultRefused}); err != nil {
				t.Fatal(err)
			}
		}
		trigger := "DROP TRIGGER audit_no_update"
		if s.d == postgres {
			trigger = "DROP TRIGGER audit_no_change ON audit"
		}
		if err := s.Tamper(ctx, trigger); err != nil {
			t.Fatal(err)
		}
		first, err := s.Entries(ctx, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		forged := chain(Hash{}, 1, micro(at), "refused", "alice", "", "", ResultRefused, "null")
		if honest := chain(Hash{}, 1, micro(at), "refused", "mallory", "", "", ResultRefused, "null"); honest != first[0].Hash {
			t.Fatalf("expected the hash %s, came %s: the test's idea of an entry is wrong", honest, first[0].Hash)
		}
		if err := s.Tamper(ctx, "UPDATE audit SET who = 'alice', hash = ? WHERE seq = 1", forged.String()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.VerifyRecord(ctx, Mark{}); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "entry 2") {
			t.Errorf("expected that entry 2 does not fit, came %v", err)
		}
		// A content that does not fit its own hash.
		if err := s.Tamper(ctx, "UPDATE audit SET who = 'bob' WHERE seq = 1"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.VerifyRecord(ctx, Mark{}); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "entry 1") {
			t.Errorf("expected that entry 1 does not fit its hash, came %v", err)
		}
		// An entry that is gone.
		for _, q := range []string{"DROP TRIGGER audit_no_delete", "DELETE FROM audit WHERE seq = 3"} {
			if s.d == postgres && strings.HasPrefix(q, "DROP") {
				continue // it was one trigger
			}
			if err := s.Tamper(ctx, q); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.VerifyRecord(ctx, Mark{Seq: 2, Hash: mustHash(t, s, 2)}); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "entry 3") {
			t.Errorf("expected that entry 3 is missing, came %v", err)
		}
	})
}

func mustHash(t *testing.T, s *Store, seq uint64) Hash {
	t.Helper()
	e, err := s.Entries(t.Context(), seq-1, 1)
	if err != nil || len(e) != 1 {
		t.Fatal(err, e)
	}
	return e[0].Hash
}
