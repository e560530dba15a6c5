package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/internal/testvectors"
	"wardgate/router/control"
)

// bin is the folder of the binaries under test.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			return m.Run() // every test says that it needs root
		}
		dir, err := os.MkdirTemp("", "wardgate-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		for _, b := range []struct {
			cgo  string
			pkgs []string
		}{
			{"0", []string{"./cmd/wardgated", "./cmd/wardgate", "./cmd/wardgate-lab", "./cmd/wardgate-sp"}},
			{"1", []string{"./cmd/wardgate-chip"}},
		} {
			cmd := exec.Command("go", append([]string{"build", "-o", dir + "/"}, b.pkgs...)...)
			cmd.Dir = testvectors.Root()
			cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
			if out, err := cmd.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "go build %v: %v\n%s", b.pkgs, err, out)
				return 1
			}
		}
		bin = dir
		interruptible()
		return m.Run()
	}())
}

// open are the laboratories that stand: an interrupted test run takes them down too.
var open struct {
	sync.Mutex
	labs map[*lab.Lab]bool
}

func interruptible() {
	open.labs = map[*lab.Lab]bool{}
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-c
		open.Lock()
		for l := range open.labs {
			if err := l.Close(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
		os.RemoveAll(bin)
		os.Exit(130)
	}()
}

// needRoot fails in CI, and skips elsewhere, where the test may not make namespaces.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("network namespaces need root")
	}
	t.Skip("network namespaces need root")
}

// hospital makes the scenario of package lab: tokens made, daemons running, policies installed.
// What the daemons said is logged when the test fails.
func hospital(t *testing.T, name string, change func(h *lab.Hospital)) *lab.Hospital {
	t.Helper()
	h := bareHospital(t, name)
	if change != nil {
		change(h)
	}
	must(t, h.Start(t.Context()), h.InstallPolicies(t.Context()))
	return h
}

// bareHospital makes networks and tokens; no daemon runs.
func bareHospital(t *testing.T, name string) *lab.Hospital {
	t.Helper()
	h, err := lab.NewHospital(t.Context(), newLab(t, name), 0)
	if err != nil {
		t.Fatal(err)
	}
	must(t, h.Enrol(t.Context()))
	return h
}

// newLine makes two facilities with a router between them; no daemon runs.
func newLine(t *testing.T, name string) *lab.Line {
	t.Helper()
	n, err := newLab(t, name).Line(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// newLab opens a laboratory that ends with the test. What its processes said is logged when the
// test fails.
func newLab(t *testing.T, name string) *lab.Lab {
	t.Helper()
	needRoot(t)
	l, err := lab.New(t.Context(), lab.Options{Name: name, Bin: bin})
	if err != nil {
		t.Fatal(err)
	}
	open.Lock()
	open.labs[l] = true
	open.Unlock()
	t.Cleanup(func() {
		if t.Failed() {
			logs, err := filepath.Glob(l.Path("log", "*.log"))
			if err != nil {
				t.Log(err)
			}
			for _, f := range logs {
				text, err := os.ReadFile(f)
				if err != nil {
					text = []byte(err.Error())
				}
				lines := strings.Split(string(text), "\n")
				t.Logf("---- %s\n%s", filepath.Base(f), strings.Join(lines[max(0, len(lines)-25):], "\n"))
			}
		}
		if hold, err := time.ParseDuration(os.Getenv("WARDGATE_E2E_HOLD")); err == nil && t.Failed() {
			time.Sleep(hold) // to look around in the namespaces of a failed test
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		open.Lock()
		delete(open.labs, l)
		open.Unlock()
	})
	return l
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// burst sends numbered datagrams from a host to an echo server on another and wants all answered.
func burst(t *testing.T, from, to *lab.Host, count int, gap time.Duration) lab.BurstResult {
	t.Helper()
	echo, err := to.EchoUDP(addrPort(to, lab.EchoPort))
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	r, err := from.Burst(t.Context(), from.Addr, addrPort(to, lab.EchoPort), count, gap, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Missing) > 0 {
		t.Fatalf("from %v to %v: %d of %d numbered datagrams were lost: %v", from.Addr, to.Addr, len(r.Missing), count, r.Missing)
	}
	return r
}

// wantAudit waits until the facility has an audit record after a sequence number that holds all
// the words, in any of its fields, and returns it.
func wantAudit(t *testing.T, f *lab.Facility, after uint64, words ...string) control.AuditRecord {
	t.Helper()
	var found control.AuditRecord
	err := lab.WaitFor(t.Context(), fmt.Sprintf("an audit record of %s with %q", f.Title, words), 15*time.Second, func() error {
		records, err := f.Audit(after)
		if err != nil {
			return err
		}
		var have []string
		for _, r := range records {
			text := fmt.Sprintf("%s who=%s what=%s where=%s result=%s %v", r.Event, r.Who, r.What, r.Where, r.Result, r.Detail)
			all := true
			for _, w := range words {
				all = all && strings.Contains(text, w)
			}
			if all {
				found = r
				return nil
			}
			have = append(have, text)
		}
		return fmt.Errorf("there are only:\n  %s", strings.Join(have, "\n  "))
	})
	if err != nil {
		t.Error(err)
	}
	return found
}

func lastAudit(t *testing.T, f *lab.Facility) uint64 {
	t.Helper()
	n, err := f.LastAudit()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// within is a context that ends after d, or with the test.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
