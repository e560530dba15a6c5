package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options for a [Lab].
type Options struct {
	// Name of the scenario: at most 20 characters of [a-z0-9-], since namespaces are named for
	// it. Two labs of one name exclude one another.
	Name string
	// Bin is the folder of wardgated, wardgate and wardgate-chip.
	Bin string
	// Keep leaves the lab's folder (logs, policies, audit records) behind on Close. Processes
	// and namespaces are always removed.
	Keep bool
}

// Lab is one scenario. Its methods may be called from several goroutines.
type Lab struct {
	Name string
	Dir  string // the lab's folder; gone after Close unless Options.Keep
	Bin  string
	keep bool
	lock *os.File

	mu     sync.Mutex // guards what follows
	procs  []*Process
	spaces []*Netns
	closed bool
}

// New makes the folder of a lab and clears up what a killed run of the same name left behind.
// The context is not kept: an interrupted caller calls Close.
func New(ctx context.Context, o Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("lab: network namespaces need root: run as root")
	}
	if o.Name == "" || len(o.Name) > 20 || strings.Trim(o.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, fmt.Errorf("lab: name %q: want 1 to 20 characters of a-z, 0-9 and -", o.Name)
	}
	bin, err := filepath.Abs(o.Bin)
	if err != nil {
		return nil, err
	}
	base := filepath.Join(os.TempDir(), "wardgate-lab")
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(base, o.Name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lab: another %q is running: wait for it to end", o.Name)
	}
	l := &Lab{Name: o.Name, Dir: filepath.Join(base, o.Name), Bin: bin, keep: o.Keep, lock: lock}
	if err := l.clearLeftovers(); err != nil {
		lock.Close()
		return nil, err
	}
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		lock.Close()
		return nil, err
	}
	return l, ctx.Err()
}

// stopGrace is how long a process may take to end. A daemon waits up to 5 s for its peers ([limits]
// shutdown_deadline), which may have ended before it.
const stopGrace = 10 * time.Second

// Close ends every process of the lab (TERM, a short grace, KILL), removes its namespaces and
// its folder. Calling it again does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	procs, spaces := l.procs, l.spaces
	l.mu.Unlock()
	errs := []error{stopAll(procs, spaces, stopGrace)}
	if l.keep {
		for _, f := range []string{"pids", "netns"} {
			os.Remove(filepath.Join(l.Dir, f))
		}
	} else {
		errs = append(errs, os.RemoveAll(l.Dir))
	}
	os.Remove(l.lock.Name())
	errs = append(errs, l.lock.Close())
	return errors.Join(errs...)
}

// Path returns a path inside the lab's folder, and makes the folder it lies in.
func (l *Lab) Path(elem ...string) string {
	p := filepath.Join(append([]string{l.Dir}, elem...)...)
	_ = os.MkdirAll(filepath.Dir(p), 0o755) // whoever writes the file reports the error
	return p
}

// note appends a line to one of the lists by which a later run clears up.
func (l *Lab) note(list, line string) error {
	f, err := os.OpenFile(l.Path(list), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(line + "\n"); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// clearLeftovers ends what a run that was killed noted. A process is only ended when its start
// time is still the noted one: PIDs are used again.
func (l *Lab) clearLeftovers() error {
	type left struct {
		pid   int
		start uint64
	}
	var procs []left
	for _, line := range readLines(filepath.Join(l.Dir, "pids")) {
		pid, start, _ := strings.Cut(line, " ")
		p, err1 := strconv.Atoi(pid)
		s, err2 := strconv.ParseUint(start, 10, 64)
		if err1 == nil && err2 == nil && p > 1 {
			procs = append(procs, left{p, s})
		}
	}
	alive := func(p left) bool {
		s, ok := startTime(p.pid)
		return ok && s == p.start
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		for _, p := range procs {
			if fd, err := unix.PidfdOpen(p.pid, 0); err == nil {
				if alive(p) { // looked at after the descriptor holds the process
					_ = unix.PidfdSendSignal(fd, sig, nil, 0)
				}
				unix.Close(fd)
			}
		}
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			some := false
			for _, p := range procs {
				some = some || alive(p)
			}
			if !some {
				break
			}
		}
	}
	for _, name := range readLines(filepath.Join(l.Dir, "netns")) {
		if !strings.HasPrefix(name, nsPrefix+l.Name+"-") {
			continue // not a name that this lab makes
		}
		if err := (&Netns{Name: name}).remove(); err != nil {
			return err
		}
	}
	return os.RemoveAll(l.Dir)
}

func readLines(name string) []string {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	var lines []string
	for s := bufio.NewScanner(f); s.Scan(); {
		lines = append(lines, s.Text())
	}
	return lines
}

// WaitFor polls until a condition holds. The error names what was waited for, and the last
// error that the condition gave.
func WaitFor(ctx context.Context, what string, limit time.Duration, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		last := ok()
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %v for %s: %w", limit, what, last)
		case <-tick.C:
		}
	}
}
