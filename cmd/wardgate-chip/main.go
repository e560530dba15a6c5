// Command wardgate-chip is the chip process: it loads the token's PKCS#11 module and serves
// package pkichip over a socket that it inherits. It is started by wardgated and wardgate, not by
// people, and ends when the socket is closed.
//
// It is the only program of Wardgate with C code in it. It parses nothing that comes from the
// network, gives up its rights when told to (--user), cannot be dumped or traced, and is the only
// one that sees the PIN.
//
// Exit codes: 0 the client closed the conversation; 1 the module or the token's PIN source cannot be
// used, and standard error says why; 2 wrong usage.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/user"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wardgate/pkichip/token"
)

func main() {
	err := run()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "wardgate-chip:", err)
	if errors.Is(err, errUsage) {
		os.Exit(2)
	}
	os.Exit(1)
}

var errUsage = errors.New("usage")

func run() error {
	// Whatever happens, nothing of this process's memory gets to a disk or to a debugger.
	debug.SetTraceback("none")
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core dumps: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding traces: %w", err)
	}
	// The client ends this process by closing the socket; a terminal's signals are for the client.
	ignoreSignals()

	cfg := token.Config{PIN: &token.PIN{}}
	var fd, pinFD int
	var userName string
	f := flag.NewFlagSet("wardgate-chip", flag.ContinueOnError)
	f.IntVar(&fd, "fd", -1, "inherited socket to the client")
	f.StringVar(&cfg.Module, "module", "", "path of the PKCS#11 library")
	f.StringVar(&cfg.Label, "token", "", "label of the token")
	f.IntVar(&cfg.Sessions, "sessions", 8, "operations at once")
	f.DurationVar(&cfg.Poll, "poll", 500*time.Millisecond, "how often to look at the token")
	f.StringVar(&cfg.PIN.File, "pin-file", "", "file with the PIN")
	f.StringVar(&cfg.PIN.Credential, "pin-credential", "", "systemd credential with the PIN")
	f.StringVar(&cfg.PIN.Env, "pin-env", "", "environment variable with the PIN")
	f.IntVar(&pinFD, "pin-fd", -1, "inherited pipe with the PIN")
	f.StringVar(&cfg.Refused, "refused", "", "mark of a PIN source that was refused")
	f.StringVar(&userName, "user", "", "user to become")
	if err := f.Parse(os.Args[1:]); err != nil || f.NArg() != 0 {
		return fmt.Errorf("%w: wardgate-chip is started by wardgated and wardgate", errUsage)
	}
	if fd < 3 || cfg.Module == "" {
		return fmt.Errorf("%w: expected --fd and --module; wardgate-chip is started by wardgated and wardgate", errUsage)
	}
	conn, err := socket(fd)
	if err != nil {
		return err
	}
	if pinFD >= 0 {
		pipe := os.NewFile(uintptr(pinFD), "pin")
		err := cfg.PIN.ReadPipe(pipe)
		_ = pipe.Close()
		if err != nil {
			return err
		}
	}
	if userName != "" {
		if err := cfg.PIN.Keep(); err != nil {
			// Told to the client as the token's state, when it asks: the file may yet appear.
			fmt.Fprintln(os.Stderr, "wardgate-chip:", err)
		}
		if err := become(userName); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up new privileges: %w", err)
	}
	srv := token.NewServer(conn)
	cfg.Event = srv.Event
	t, err := token.Open(cfg)
	if err != nil {
		return err
	}
	err = srv.Serve(t)
	// The client is gone. Log out, but do not wait for a module that hangs.
	done := make(chan struct{})
	go func() {
		t.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(200 * time.Millisecond):
	}
	return err
}

// socket takes over the inherited socket.
func socket(fd int) (net.Conn, error) {
	unix.CloseOnExec(fd)
	file := os.NewFile(uintptr(fd), "client")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("%w: --fd %d is no socket: %w", errUsage, fd, err)
	}
	return c, nil
}

// become changes to another user, for good, in all threads.
func become(name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("becoming user %q: %w; create it or correct [token] user", name, err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	ids, err3 := u.GroupIds()
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("becoming user %q: %w", name, err)
	}
	if uid == os.Getuid() && uid == os.Geteuid() {
		return nil
	}
	var groups []int
	for _, s := range ids { // such as the group that may talk to the smart card daemon
		if g, err := strconv.Atoi(s); err == nil {
			groups = append(groups, g)
		}
	}
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("becoming user %q: groups: %w; only root, or a process with CAP_SETGID, can", name, err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("becoming user %q: group: %w", name, err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("becoming user %q: %w; only root, or a process with CAP_SETUID, can", name, err)
	}
	if uid != 0 && syscall.Setresuid(0, 0, 0) == nil {
		return fmt.Errorf("becoming user %q: root's rights did not go away", name)
	}
	// Changing the user may have switched this on again.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding traces: %w", err)
	}
	return nil
}
