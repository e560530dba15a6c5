package pkichip_test

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wardgate/pkichip"
)

var digest = sha256.Sum256([]byte("x"))

// steady signs until stop and counts; every error must be typed and prompt.
type steady struct {
	good, bad atomic.Int64
	stop      chan struct{}
	wg        sync.WaitGroup
}

func signSteadily(t *testing.T, s crypto.Signer, allowed ...error) *steady {
	x := &steady{stop: make(chan struct{})}
	for range 4 {
		x.wg.Go(func() {
			for {
				select {
				case <-x.stop:
					return
				default:
				}
				start := time.Now()
				_, err := s.Sign(nil, digest[:], crypto.SHA256)
				if err == nil {
					x.good.Add(1)
					continue
				}
				x.bad.Add(1)
				ok := false
				for _, a := range allowed {
					ok = ok || errors.Is(err, a)
				}
				if e, typed := errors.AsType[*pkichip.Error](err); !ok || !typed || e.Text == "" {
					t.Errorf("signing failed with %v", err)
					return
				}
				if d := time.Since(start); d > 8*time.Second {
					t.Errorf("the error took %v: %v", d, err)
				}
				select { // as a caller would, not in a spin
				case <-x.stop:
					return
				case <-time.After(2 * time.Millisecond):
				}
			}
		})
	}
	return x
}

// more waits until n more signatures were made.
func (x *steady) more(t *testing.T, n int64) {
	t.Helper()
	want := x.good.Load() + n
	limit := time.Now().Add(20 * time.Second)
	for x.good.Load() < want {
		if time.Now().After(limit) {
			t.Fatalf("no more signatures: %d good, %d failed", x.good.Load(), x.bad.Load())
		}
		time.Sleep(time.Millisecond)
	}
}

func (x *steady) end() {
	close(x.stop)
	x.wg.Wait()
}

func deviceSigner(t *testing.T, b *bench, c *pkichip.Chip) crypto.Signer {
	t.Helper()
	d, err := c.Device(b.ctx())
	must(t, err)
	return d.Signer
}

func TestKilledProcess(t *testing.T) {
	b := newBench(t)
	c := b.ready(pkichip.P256)
	x := signSteadily(t, deviceSigner(t, b, c), pkichip.ErrChipRestarting)
	for i := range 3 {
		x.more(t, 20)
		pid := c.Status().PID
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		wantText(t, waitEvent(t, c, pkichip.EventDied), "SIGKILL", "memory ran out")
		waitEvent(t, c, pkichip.EventRestarted)
		if s := c.Status(); s.PID == pid || s.Restarts != i+1 || !s.Running {
			t.Errorf("status after the restart: %+v", s)
		}
	}
	x.more(t, 20)
	x.end()
	if x.bad.Load() == 0 {
		t.Log("no signature was under way when the process was killed")
	}
}

// A chip process that cannot be started again is tried again, with growing pauses; who asks
// meanwhile is told at once.
func TestStartFailsAgainAndAgain(t *testing.T) {
	b := newBench(t)
	bin := filepath.Join(b.dir, "wardgate-chip")
	must(t, os.Link(b.opt.Binary, bin))
	b.opt.Binary = bin
	c := b.ready(pkichip.P256)
	s := deviceSigner(t, b, c)
	must(t, os.Rename(bin, bin+".away"))
	must(t, syscall.Kill(c.Status().PID, syscall.SIGKILL))
	waitEvent(t, c, pkichip.EventDied)
	for _, pause := range []string{"20ms", "40ms", "80ms", "100ms", "100ms"} {
		wantText(t, waitEvent(t, c, pkichip.EventStartFailed), "cannot be started", "check [token] chip", "tried again in "+pause)
	}
	if _, err := s.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, pkichip.ErrChipRestarting) || !strings.Contains(err.Error(), "cannot be started") {
		t.Errorf("signing meanwhile: %v", err)
	}
	must(t, os.Rename(bin+".away", bin))
	waitEvent(t, c, pkichip.EventRestarted)
	must(t, checkSignature(s))
}

func TestHungProcess(t *testing.T) {
	b := newBench(t)
	c := b.ready(pkichip.P256)
	x := signSteadily(t, deviceSigner(t, b, c), pkichip.ErrChipRestarting, pkichip.ErrChipHung)
	x.more(t, 20)
	pid := c.Status().PID
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	start := time.Now()
	e := waitEvent(t, c, pkichip.EventHung)
	if d := time.Since(start); d > 7*time.Second {
		t.Errorf("noticed after %v", d)
	}
	if !strings.Contains(e.Text, "no answer") {
		t.Errorf("event: %s", e.Text)
	}
	waitEvent(t, c, pkichip.EventRestarted)
	x.more(t, 20)
	x.end()
	// The hung process is gone, not left stopped.
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d still exists: %v", pid, err)
	}
}

func TestTokenRemovedAndReturned(t *testing.T) {
	b := newBench(t)
	c := b.ready(pkichip.P256)
	must(t, c.Store(b.ctx(), b.storeService("group-a", b.request(c, "group-a", pkichip.P256))))
	x := signSteadily(t, deviceSigner(t, b, c), pkichip.ErrTokenRemoved)
	away := filepath.Join(b.dir, "away")
	for range 2 {
		x.more(t, 20)
		start := time.Now()
		must(t, os.Rename(b.tokens(), away))
		e := waitEvent(t, c, pkichip.EventRemoved)
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("noticed after %v", d)
		}
		if !strings.Contains(e.Text, "removed") || !strings.Contains(e.Text, "put it back") {
			t.Errorf("event: %s", e.Text)
		}
		_, err := c.Credentials(b.ctx())
		if !errors.Is(err, pkichip.ErrTokenRemoved) {
			t.Errorf("credentials of a token that is away: %v", err)
		}
		if s := c.Status(); !s.Running || !errors.Is(s.LastErr, pkichip.ErrTokenRemoved) {
			t.Errorf("status: %+v", s)
		}
		must(t, os.Rename(away, b.tokens()))
		waitEvent(t, c, pkichip.EventInserted)
		if s := c.Status(); s.LastErr != nil {
			t.Errorf("status: %+v", s)
		}
	}
	x.more(t, 20)
	x.end()
	creds, err := c.Credentials(b.ctx())
	must(t, err)
	if len(creds) != 2 {
		t.Errorf("%d credentials", len(creds))
	}
}

// A token that is not there at the start comes later.
func TestTokenComesLater(t *testing.T) {
	b := newBench(t)
	b.initToken()
	away := filepath.Join(b.dir, "away")
	entries, err := os.ReadDir(b.tokens())
	must(t, err)
	must(t, os.Rename(filepath.Join(b.tokens(), entries[0].Name()), away))
	c := b.start(nil)
	_, err = c.Credentials(b.ctx())
	if !errors.Is(err, pkichip.ErrNoToken) || !errors.Is(err, pkichip.ErrTokenRemoved) || !strings.Contains(err.Error(), label) {
		t.Errorf("no token: %v", err)
	}
	waitEvent(t, c, pkichip.EventRemoved)
	must(t, os.Rename(away, filepath.Join(b.tokens(), entries[0].Name())))
	waitEvent(t, c, pkichip.EventInserted)
	if _, err := c.Credentials(b.ctx()); err != nil {
		t.Error(err)
	}
}

// pinState asks the token about wrong PINs. SoftHSM sets CKF_USER_PIN_COUNT_LOW at the first wrong PIN and clears it at the
// next good one; that is how the tests see whether a PIN was tried.
func pinState(t *testing.T, b *bench) uint8 {
	t.Helper()
	c := b.start(func(o *pkichip.Options) { o.PIN = pkichip.PINSource{} })
	info, err := c.Token(b.ctx())
	must(t, err)
	must(t, c.Close())
	return uint8(info.PIN)
}

func TestWrongPIN(t *testing.T) {
	b := newBench(t)
	must(t, b.ready(pkichip.P256).Close()) // or it would try the wrong PIN, too
	if s := pinState(t, b); s != 1 {
		t.Fatalf("PIN state %d before", s)
	}
	b.setPIN("000000")
	state := filepath.Join(b.dir, "chip.json")
	withState := func(o *pkichip.Options) { o.StateFile = state }
	c := b.start(withState)
	e := waitEvent(t, c, pkichip.EventPINRefused)
	for _, want := range []string{"refuses the PIN", "CKR_PIN_INCORRECT", "tries"} {
		if !strings.Contains(e.Text, want) {
			t.Errorf("event lacks %q: %s", want, e.Text)
		}
	}
	_, err := c.Credentials(b.ctx())
	pe, ok := errors.AsType[*pkichip.Error](err)
	if !ok || !errors.Is(err, pkichip.ErrPIN) || !errors.Is(err, pkichip.ErrPINWrong) || pe.RV != 0xA0 || pe.Op != "C_Login" {
		t.Fatalf("credentials: %#v", err)
	}
	if strings.Contains(err.Error(), "000000") {
		t.Errorf("the error has the PIN in it: %v", err)
	}
	if s := pinState(t, b); s != 2 {
		t.Fatalf("PIN state %d after a wrong PIN", s)
	}
	// A good login elsewhere gives the tries back; from here on a second try would show.
	reset := func() {
		t.Helper()
		d := b.start(func(o *pkichip.Options) { o.PIN = pkichip.PINSource{Value: []byte(userPIN)} })
		_, err := d.Credentials(b.ctx())
		must(t, err)
		must(t, d.Close())
		if s := pinState(t, b); s != 1 {
			t.Fatalf("PIN state %d after a good PIN", s)
		}
	}
	reset()
	must(t, syscall.Kill(c.Status().PID, syscall.SIGKILL)) // a restart does not try again
	waitEvent(t, c, pkichip.EventRestarted)
	wantText(t, waitEvent(t, c, pkichip.EventPINNotTried), "not tried again", "correct the PIN")
	if _, err = c.Credentials(b.ctx()); !errors.Is(err, pkichip.ErrPINNotRetried) {
		t.Errorf("after a restart of the process: %v", err)
	}
	away := filepath.Join(b.dir, "away") // nor does the token's return
	must(t, os.Rename(b.tokens(), away))
	waitEvent(t, c, pkichip.EventRemoved)
	must(t, os.Rename(away, b.tokens()))
	waitEvent(t, c, pkichip.EventPINNotTried)
	must(t, c.Close())
	c = b.start(withState) // nor a restart of the daemon
	if _, err = c.Credentials(b.ctx()); !errors.Is(err, pkichip.ErrPINNotRetried) {
		t.Errorf("after a restart of the daemon: %v", err)
	}
	if s := pinState(t, b); s != 1 {
		t.Errorf("the wrong PIN was tried again: state %d", s)
	}
	// The corrected file is noticed without a restart.
	b.setPIN(userPIN)
	waitEvent(t, c, pkichip.EventRestarted)
	if _, err := c.Credentials(b.ctx()); err != nil {
		t.Errorf("after the PIN was corrected: %v", err)
	}
	must(t, c.Close())
	c = b.start(withState)
	if _, err := c.Credentials(b.ctx()); err != nil {
		t.Errorf("after the PIN was corrected and a restart: %v", err)
	}
}

func TestPINSources(t *testing.T) {
	b := newBench(t)
	b.ready(pkichip.P256)
	creds := filepath.Join(b.dir, "creds")
	must(t, os.Mkdir(creds, 0o700))
	must(t, os.WriteFile(filepath.Join(creds, "wardgate.pin"), []byte(userPIN), 0o400))
	for name, edit := range map[string]func(*pkichip.Options){
		"file": nil,
		"credential": func(o *pkichip.Options) {
			o.PIN = pkichip.PINSource{Credential: "wardgate.pin"}
			o.Env = append(o.Env, "CREDENTIALS_DIRECTORY="+creds)
		},
		"environment": func(o *pkichip.Options) {
			o.PIN = pkichip.PINSource{Env: "MY_PIN"}
			o.Env = append(o.Env, "MY_PIN="+userPIN)
		},
		"typed": func(o *pkichip.Options) { o.PIN = pkichip.PINSource{Value: []byte(userPIN)} },
	} {
		c := b.start(edit)
		if _, err := c.Device(b.ctx()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	typed := []byte(userPIN)
	c := b.start(func(o *pkichip.Options) { o.PIN = pkichip.PINSource{Value: typed} })
	if string(typed) != strings.Repeat("\x00", len(typed)) {
		t.Error("the typed PIN was not wiped")
	}
	// It was given to one process alone: that one is not replaced.
	must(t, syscall.Kill(c.Status().PID, syscall.SIGKILL))
	waitEvent(t, c, pkichip.EventDied)
	for limit := time.Now().Add(5 * time.Second); ; {
		_, err := c.Credentials(b.ctx())
		if errors.Is(err, pkichip.ErrClosed) {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("after the process ended: %v", err)
		}
		time.Sleep(time.Millisecond)
	}

	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(b.dir, name)
		must(t, os.WriteFile(p, []byte(text), 0o600))
		must(t, os.Chmod(p, mode))
		return p
	}
	for name, x := range map[string]struct {
		pin  pkichip.PINSource
		want string
	}{
		"readable by others": {pkichip.PINSource{File: write("p1", userPIN, 0o644)}, "chmod 600"},
		"readable by group":  {pkichip.PINSource{File: write("p2", userPIN, 0o640)}, "chmod 600"},
		"missing file":       {pkichip.PINSource{File: filepath.Join(b.dir, "none")}, "no such file"},
		"empty":              {pkichip.PINSource{File: write("p3", "\n", 0o600)}, "one line"},
		"two lines":          {pkichip.PINSource{File: write("p4", userPIN+"\nx\n", 0o600)}, "one line"},
		"too long":           {pkichip.PINSource{File: write("p5", strings.Repeat("1", 300), 0o600)}, "longer"},
		"folder":             {pkichip.PINSource{File: b.dir}, "regular"},
		"variable not set":   {pkichip.PINSource{Env: "NOT_SET_ANYWHERE"}, "not set"},
		"no credentials":     {pkichip.PINSource{Credential: "x"}, "LoadCredential"},
		"no source":          {pkichip.PINSource{}, ""},
	} {
		c := b.start(func(o *pkichip.Options) { o.PIN = x.pin })
		creds, err := c.Credentials(b.ctx())
		if name == "no source" { // certificates can be seen, keys cannot
			if err != nil || len(creds) != 0 {
				t.Errorf("%s: %d credentials, %v", name, len(creds), err)
			}
			continue
		}
		if !errors.Is(err, pkichip.ErrPINSource) || !errors.Is(err, pkichip.ErrPIN) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := pinState(t, b); s != 1 {
		t.Errorf("a PIN was tried: state %d", s)
	}
	// A file that appears, or is mended, is used at once.
	late := filepath.Join(b.dir, "late")
	c = b.start(func(o *pkichip.Options) { o.PIN = pkichip.PINSource{File: late} })
	wantText(t, waitEvent(t, c, pkichip.EventPINSource), "cannot be read", "pin_file")
	write("late", userPIN, 0o600)
	waitEvent(t, c, pkichip.EventInserted)
}

func TestStartErrors(t *testing.T) {
	b := newBench(t)
	for name, x := range map[string]struct {
		edit func(*pkichip.Options)
		want string
	}{
		"no module":     {func(o *pkichip.Options) { o.Module = filepath.Join(b.dir, "none.so") }, "cannot be loaded"},
		"not a module":  {func(o *pkichip.Options) { o.Module = b.pinFile() }, "cannot be loaded"},
		"no binary":     {func(o *pkichip.Options) { o.Binary = filepath.Join(b.dir, "none") }, "cannot be started"},
		"other binary":  {func(o *pkichip.Options) { o.Binary = "/bin/true" }, "ended before it answered"},
		"unknown user":  {func(o *pkichip.Options) { o.User = "nobody-of-that-name" }, "unknown user"},
		"empty":         {func(o *pkichip.Options) { o.Module = "" }, "expected the path"},
		"two PINs":      {func(o *pkichip.Options) { o.PIN.Env = "X" }, "expected one source"},
		"path for name": {func(o *pkichip.Options) { o.PIN = pkichip.PINSource{Credential: "../x"} }, "expected the name"},
	} {
		opt := b.opt
		x.edit(&opt)
		c, err := pkichip.Start(b.ctx(), opt)
		if err == nil {
			must(t, c.Close())
			t.Errorf("%s: started", name)
		} else if !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	b := newBench(t)
	c := b.ready(pkichip.P256)
	signer := deviceSigner(t, b, c)
	pid := c.Status().PID
	must(t, c.Close())
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d still exists: %v", pid, err)
	}
	if _, err := signer.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, pkichip.ErrClosed) {
		t.Errorf("signing after Close: %v", err)
	}
	for range c.Events() { // is closed
	}
	goleak.VerifyNone(t, goleak.IgnoreCurrent())
}

// A client that dies takes the chip process with it.
func TestProcessEndsWithItsClient(t *testing.T) {
	if os.Getenv("WARDGATE_TEST_CLIENT") != "" {
		return // this process is the client
	}
	b := newBench(t)
	b.initToken()
	cmd := exec.Command(os.Args[0], "-test.run=TestHelperClient")
	cmd.Env = append(os.Environ(), "WARDGATE_TEST_CLIENT="+strings.Join([]string{b.opt.Binary, b.module, b.pinFile(), b.opt.Env[0]}, "|"))
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var pid int
	_, err = fmt.Fscan(out, &pid)
	must(t, err)
	must(t, syscall.Kill(pid, 0))
	must(t, cmd.Process.Kill())
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait() // was killed
	for limit := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || isZombie(pid) {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("chip process %d outlives its client", pid)
		}
	}
}

func isZombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func TestHelperClient(t *testing.T) {
	v := os.Getenv("WARDGATE_TEST_CLIENT")
	if v == "" {
		return // only as a process that another test starts
	}
	f := strings.Split(v, "|")
	c, err := pkichip.Start(context.Background(), pkichip.Options{Binary: f[0], Module: f[1], TokenLabel: label, PIN: pkichip.PINSource{File: f[2]}, Env: f[3:]})
	must(t, err)
	fmt.Println(c.Status().PID)
	select {}
}

// missing skips a test that cannot run here; in CI that is a failure.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// With --user the process gives root's rights up, and still has the PIN from root's file.
func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, "only root can change the user")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		missing(t, "no user nobody")
	}
	uid, err := strconv.Atoi(nobody.Uid)
	must(t, err)
	b := newBench(t)
	b.ready(pkichip.P256)
	must(t, filepath.WalkDir(b.tokens(), func(p string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(p, uid, -1))
	}))
	for p := b.dir; p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
		must(t, os.Chmod(p, 0o755))
	}
	must(t, os.Chmod(filepath.Join(b.dir, "softhsm2.conf"), 0o644))
	c := b.start(func(o *pkichip.Options) { o.User = "nobody" })
	must(t, checkSignature(deviceSigner(t, b, c)))
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Status().PID))
	must(t, err)
	for _, want := range []string{fmt.Sprintf("Uid:\t%d\t%d\t%d\t%d\n", uid, uid, uid, uid), "CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the process's status lacks %q:\n%s", want, status)
		}
	}
}

// The PIN is neither in the arguments nor in the environment of the process, nor on any disk but
// in its file.
func TestPINStaysInside(t *testing.T) {
	b := newBench(t)
	c := b.ready(pkichip.P256)
	_, err := c.Device(b.ctx())
	must(t, err)
	pid := c.Status().PID
	for _, f := range []string{"cmdline", "environ"} {
		x, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, f))
		must(t, err)
		if strings.Contains(string(x), userPIN) {
			t.Errorf("the PIN is in %s", f)
		}
	}
	must(t, filepath.WalkDir(b.dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || p == b.pinFile() {
			return err
		}
		x, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(x), userPIN) {
			t.Errorf("the PIN is in %s", p)
		}
		return nil
	}))
}
