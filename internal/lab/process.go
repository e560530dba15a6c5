package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program that the lab started and will end.
type Process struct {
	Name string
	PID  int
	Log  string // file with both outputs
	cmd  *exec.Cmd
	done chan struct{}
	err  error // the exit, valid once done is closed
}

// Start runs a program in the background in a namespace, with its outputs in a file of the lab's
// folder, and with extra environment variables.
func (l *Lab) Start(n *Netns, name string, env []string, argv ...string) (*Process, error) {
	return l.start(n, name, env, 0, argv...)
}

// start is Start with flags of clone(2), such as that of a PID namespace, in which the program is PID 1.
func (l *Lab) start(n *Netns, name string, env []string, flags uintptr, argv ...string) (*Process, error) {
	p := &Process{Name: name, Log: l.Path("log", name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = n.Command(context.Background(), argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: flags,
		Setpgid:    true, // the terminal's Ctrl-C goes to the demo alone, which ends its processes in order
		// Should the demo itself be killed, its daemons end too. The signal comes when the
		// starting *thread* ends, hence the spawner below.
		Pdeathsig: syscall.SIGTERM,
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("lab: closed")
	}
	if err := spawn(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.PID = p.cmd.Process.Pid
	if start, ok := startTime(p.PID); ok {
		if err := l.note("pids", fmt.Sprintf("%d %d", p.PID, start)); err != nil {
			_ = p.cmd.Process.Kill()
			return nil, err
		}
	}
	l.procs = append(l.procs, p)
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running returns nil while the process lives, and otherwise why it does not, with the end of its log.
func (p *Process) Running() error {
	select {
	case <-p.done:
		err := p.err
		if err == nil {
			err = errors.New("exit status 0")
		}
		return fmt.Errorf("%s has ended: %w; its last words:\n%s", p.Name, err, p.Tail(12))
	default:
		return nil
	}
}

// Tail returns the last lines of the process's log.
func (p *Process) Tail(lines int) string {
	text, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// signal sends through the process descriptor that os.Process holds: never to a PID used again.
func (p *Process) signal(s unix.Signal) { _ = p.cmd.Process.Signal(s) }

// Kill ends the process without a word to it, as a crash would.
func (p *Process) Kill() {
	p.signal(unix.SIGKILL)
	<-p.done
}

// KillAll is Kill for the process and those that it started, at once, as a power failure would.
func (p *Process) KillAll() error {
	err := unix.Kill(-p.PID, unix.SIGKILL) // its own group; the PID is ours until it is waited for
	p.Kill()
	return err
}

// Signal sends a signal to the process.
func (p *Process) Signal(s syscall.Signal) { p.signal(s) }

// Stop asks the process to end and kills it after the grace.
func (p *Process) Stop(grace time.Duration) error {
	p.signal(unix.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
	}
	p.Kill()
	return fmt.Errorf("%s (PID %d) did not end within %v of SIGTERM and was killed", p.Name, p.PID, grace)
}

// ExitErr returns how the process ended; it waits for that.
func (p *Process) ExitErr() error {
	<-p.done
	return p.err
}

// RSS returns the process's resident memory in bytes, and of its children if any are asked for.
func (p *Process) RSS() (int64, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID), "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("%s: no VmRSS in its status", p.Name)
}

// startTime is field 22 of /proc/PID/stat: with the PID it names a process for good.
func startTime(pid int) (uint64, bool) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, false
	}
	// The program's name stands in brackets and may hold anything, brackets too.
	rest := string(text[strings.LastIndexByte(string(text), ')')+1:])
	f := strings.Fields(rest)
	if len(f) < 20 || f[0] == "Z" {
		return 0, false
	}
	t, err := strconv.ParseUint(f[19], 10, 64)
	return t, err == nil
}

// The spawner is one thread that lives as long as the program and starts all its processes:
// PR_SET_PDEATHSIG counts the death of the parent's thread, and Go's other threads may end.
var (
	spawnOnce sync.Once
	spawnReq  = make(chan spawnRequest)
)

type spawnRequest struct {
	cmd *exec.Cmd
	err chan error
}

func spawn(cmd *exec.Cmd) error {
	spawnOnce.Do(func() {
		go func() {
			runtime.LockOSThread()
			for r := range spawnReq {
				r.err <- r.cmd.Start()
			}
		}()
	})
	r := spawnRequest{cmd, make(chan error, 1)}
	spawnReq <- r
	return <-r.err
}

// Children returns the PIDs of the process's children with a given program name (comm).
func (p *Process) Children(comm string) ([]int, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join("/proc", d.Name(), "stat"))
		if err != nil {
			continue // ended meanwhile
		}
		open, shut := strings.IndexByte(string(text), '('), strings.LastIndexByte(string(text), ')')
		if open < 0 || shut < open {
			continue
		}
		f := strings.Fields(string(text[shut+1:]))
		if string(text[open+1:shut]) == comm && len(f) > 1 && f[1] == strconv.Itoa(p.PID) {
			out = append(out, pid)
		}
	}
	return out, nil
}
