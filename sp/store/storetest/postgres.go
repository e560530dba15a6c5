// Package storetest gives tests of the centre's database both kinds of it: SQLite files in the
// test's own folder, and databases on a PostgreSQL server of the test binary's own.
//
// The server is started by the first test that asks, in a temporary folder, on a Unix socket in
// it and on no network, as a user without rights; Main stops it.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Main runs the tests and stops the server that they started: for TestMain.
//
//	func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, "storetest:", err)
		code = max(code, 1)
	}
	return code
}

// Each runs a test on both databases, in parallel, each time with the URL of a new, empty one.
func Each(t *testing.T, run func(t *testing.T, url string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		run(t, SQLite(t))
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		run(t, Postgres(t))
	})
}

// SQLite returns the URL of a new database in a folder that is removed after the test.
func SQLite(tb testing.TB) string { return "sqlite:" + filepath.Join(tb.TempDir(), "centre.db") }

var databases atomic.Int64

// Postgres returns the URL of a new, empty database, which is dropped after the test. Without
// PostgreSQL on this machine the test is skipped, or fails where CI=true.
func Postgres(tb testing.TB) string {
	tb.Helper()
	s, err := shared()
	if errors.Is(err, errNotInstalled) {
		if os.Getenv("CI") == "true" {
			tb.Fatal(err)
		}
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	name := "t" + strconv.FormatInt(databases.Add(1), 10)
	if err := s.admin("CREATE DATABASE " + name); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.admin("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			tb.Error(err)
		}
	})
	return s.url(name)
}

var errNotInstalled = errors.New("PostgreSQL is not installed: apt-get install postgresql-15")

// server is a running PostgreSQL server.
type server struct {
	dir    string // data, socket, log
	pid    int
	exited chan struct{}
}

var (
	once   sync.Once
	only   *server
	failed error
)

func shared() (*server, error) {
	once.Do(func() { only, failed = start() })
	return only, failed
}

func stop() error {
	once.Do(func() { failed = errors.New("the tests are over") })
	if only == nil {
		return nil
	}
	return only.stop()
}

// binaries returns the folder of the newest server that is installed.
func binaries() (string, error) {
	// Debian keeps each version in a folder of its own.
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	slices.SortFunc(found, func(a, b string) int { return version(a) - version(b) })
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1]), nil
	}
	if p, err := exec.LookPath("postgres"); err == nil {
		return filepath.Dir(p), nil
	}
	return "", errNotInstalled
}

func version(path string) int {
	n, _ := strconv.Atoi(strings.Split(path, "/")[4])
	return n
}

// unprivileged returns whom the server runs as: it refuses root.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
	}
	return nil, errors.New("expected a user postgres or nobody to run the server as, there is neither")
}

func start() (s *server, err error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	who, err := unprivileged()
	if err != nil {
		return nil, err
	}
	// Short: the path of a Unix socket has at most 107 octets.
	dir, err := os.MkdirTemp("", "wgpg")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	if who != nil {
		if err := os.Chown(dir, int(who.Uid), int(who.Gid)); err != nil {
			return nil, err
		}
	}
	data := filepath.Join(dir, "data")
	// A collation that is not that of SQLite, so that an order that depends on it shows.
	initdb := exec.CommandContext(context.Background(), filepath.Join(bin, "initdb"), "-D", data, "-U", "sp", "-A", "trust", "--no-sync", "-E", "UTF8",
		"--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en")
	initdb.Dir, initdb.SysProcAttr = dir, &syscall.SysProcAttr{Credential: who}
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", initdb, err, out)
	}
	logName := filepath.Join(dir, "log")
	log, err := os.Create(logName)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// Nothing here outlives the machine, so nothing is synced; what tests kill are the clients.
	cmd := exec.CommandContext(context.Background(), filepath.Join(bin, "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=",
		"-c", "fsync=off", "-c", "full_page_writes=off", "-c", "shared_buffers=32MB", "-c", "max_connections=200")
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	// A test binary that is killed takes its server with it: a fast shutdown.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who, Pdeathsig: syscall.SIGINT}
	s = &server{dir: dir, exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is about the thread that started the process
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(s.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	s.pid = cmd.Process.Pid
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		last := s.admin("SELECT 1")
		if last == nil {
			return s, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
			continue
		case <-s.exited:
		case <-ctx.Done():
			_ = syscall.Kill(s.pid, syscall.SIGQUIT)
			<-s.exited
		}
		text, _ := os.ReadFile(logName)
		return nil, fmt.Errorf("PostgreSQL did not start: %w\n%s", last, text)
	}
}

func (s *server) stop() error {
	_ = syscall.Kill(s.pid, syscall.SIGINT)
	select {
	case <-s.exited:
	case <-time.After(30 * time.Second):
		_ = syscall.Kill(s.pid, syscall.SIGQUIT)
		<-s.exited
		return errors.Join(errors.New("PostgreSQL did not stop within 30 s"), os.RemoveAll(s.dir))
	}
	return os.RemoveAll(s.dir)
}

func (s *server) url(database string) string {
	return (&url.URL{Scheme: "postgres", User: url.User("sp"), Path: "/" + database, RawQuery: url.Values{"host": {s.dir}, "sslmode": {"disable"}}.Encode()}).String()
}

func (s *server) admin(query string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, query)
	return errors.Join(err, c.Close(ctx))
}
