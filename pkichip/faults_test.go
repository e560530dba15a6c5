package pkichip_test

import (
	"crypto"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardgate/internal/testvectors"
	"wardgate/pkichip"
)

// faulty puts the module of testdata/faultymodule.c between the chip process and SoftHSM.
type faulty struct {
	*bench
	faults, logins string
}

func newFaulty(t *testing.T) *faulty {
	t.Helper()
	b := newBench(t)
	cc, err := exec.LookPath("cc")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("no C compiler")
		}
		t.Skip("no C compiler")
	}
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11")
	list.Dir = testvectors.Root()
	include, err := list.Output() // the binding brings the standard's header
	must(t, err)
	f := &faulty{b, filepath.Join(b.dir, "faults"), filepath.Join(b.dir, "logins")}
	so := filepath.Join(b.dir, "faulty.so")
	out, err := exec.Command(cc, "-shared", "-fPIC", "-I", strings.TrimSpace(string(include)), "-o", so, "testdata/faultymodule.c", "-ldl").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.opt.Env = append(b.opt.Env, "REAL_MODULE="+b.module, "FAULTS="+f.faults, "LOGINS="+f.logins)
	b.opt.Module = so
	f.set()
	return f
}

func (f *faulty) set(names ...string) {
	f.tb.Helper()
	must(f.tb, os.WriteFile(f.faults, []byte(strings.Join(names, " ")), 0o600))
}

// tried returns how often C_Login was called since the last time.
func (f *faulty) tried() int {
	f.tb.Helper()
	b, err := os.ReadFile(f.logins)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.tb.Fatal(err)
	}
	must(f.tb, os.WriteFile(f.logins, nil, 0o600))
	return strings.Count(string(b), "\n")
}

func TestModuleCrashes(t *testing.T) {
	f := newFaulty(t)
	c := f.ready(pkichip.P256)
	s := deviceSigner(t, f.bench, c)
	f.set("crash-sign")
	start := time.Now()
	_, err := s.Sign(nil, digest[:], crypto.SHA256)
	if !errors.Is(err, pkichip.ErrChipRestarting) {
		t.Errorf("a crash while signing: %v", err)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("the error took %v", d)
	}
	waitEvent(t, c, pkichip.EventDied)
	f.set()
	waitEvent(t, c, pkichip.EventRestarted)
	must(t, checkSignature(s))
}

// A module that hangs, while the chip process itself is well: the request's time runs out, the
// process is killed, and other callers go on.
func TestModuleHangs(t *testing.T) {
	f := newFaulty(t)
	c := f.ready(pkichip.P256)
	s := deviceSigner(t, f.bench, c)
	f.set("hang-sign")
	start := time.Now()
	_, err := s.Sign(nil, digest[:], crypto.SHA256)
	if !errors.Is(err, pkichip.ErrChipHung) || !strings.Contains(err.Error(), "sign") {
		t.Errorf("a hanging signature: %v", err)
	}
	if d := time.Since(start); d > 12*time.Second {
		t.Errorf("the error took %v", d)
	}
	f.set()
	waitEvent(t, c, pkichip.EventRestarted)
	must(t, checkSignature(s))
}

func TestLastTryIsNotSpent(t *testing.T) {
	f := newFaulty(t)
	must(t, f.ready(pkichip.P256).Close())
	f.set("final-try count-low")
	f.tried()
	c := f.start(nil)
	_, err := c.Credentials(f.ctx())
	e, _ := errors.AsType[*pkichip.Error](err)
	if !errors.Is(err, pkichip.ErrPINLastTry) || !errors.Is(err, pkichip.ErrPIN) || e.TriesLeft != 1 || !strings.Contains(e.Do, "--ask-pin") {
		t.Errorf("last try: %v", err)
	}
	if n := f.tried(); n != 0 {
		t.Errorf("the PIN was tried %d times", n)
	}
	// A person may.
	typed := f.start(func(o *pkichip.Options) { o.PIN = pkichip.PINSource{Value: []byte(userPIN)} })
	if _, err := typed.Device(f.ctx()); err != nil {
		t.Error(err)
	}
	if n := f.tried(); n != 1 {
		t.Errorf("the typed PIN was tried %d times", n)
	}
	must(t, typed.Close())
	f.set() // which gave the tries back: the daemon goes on by itself
	waitEvent(t, c, pkichip.EventInserted)
	if _, err := c.Device(f.ctx()); err != nil {
		t.Error(err)
	}
}

func TestLockedPIN(t *testing.T) {
	f := newFaulty(t)
	must(t, f.ready(pkichip.P256).Close())
	f.tried()
	f.set("locked")
	c := f.start(nil)
	_, err := c.Credentials(f.ctx())
	e, _ := errors.AsType[*pkichip.Error](err)
	if !errors.Is(err, pkichip.ErrPINLocked) || !errors.Is(err, pkichip.ErrPIN) || e.TriesLeft != 0 || !strings.Contains(e.Do, "security officer") {
		t.Errorf("locked: %v", err)
	}
	if n := f.tried(); n != 0 {
		t.Errorf("a locked PIN was tried %d times", n)
	}
}

// A wrong PIN that leaves one try is reported so, and tried exactly once however often one asks.
func TestTriesLeft(t *testing.T) {
	f := newFaulty(t)
	must(t, f.ready(pkichip.P256).Close())
	f.setPIN("000000")
	f.tried()
	c := f.start(nil)
	for range 5 {
		if _, err := c.Credentials(f.ctx()); !errors.Is(err, pkichip.ErrPINWrong) {
			t.Errorf("wrong PIN: %v", err)
		}
	}
	if n := f.tried(); n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
	must(t, c.Close())
	f.set("final-try")
	typed := f.start(func(o *pkichip.Options) { o.PIN = pkichip.PINSource{Value: []byte("000000")} })
	_, err := typed.Credentials(f.ctx())
	if e, _ := errors.AsType[*pkichip.Error](err); !errors.Is(err, pkichip.ErrPINWrong) || e.TriesLeft != 1 || !strings.Contains(e.Text, "one try is left") {
		t.Errorf("wrong PIN with one try left: %v", err)
	}
}

func TestFullToken(t *testing.T) {
	f := newFaulty(t)
	c := f.ready(pkichip.P256)
	cert := f.request(c, "group-a", pkichip.P256)
	f.set("full")
	err := c.Store(f.ctx(), f.storeService("group-a", cert))
	if e, _ := errors.AsType[*pkichip.Error](err); !errors.Is(err, pkichip.ErrTokenFull) || e.Op != "C_CreateObject" || !strings.Contains(e.Do, "delete a service") {
		t.Errorf("full token: %v", err)
	}
	f.set()
	must(t, c.Store(f.ctx(), f.storeService("group-a", cert)))
}

// A token that hands out keys that can be read is of no use.
func TestExtractableKeyIsRefused(t *testing.T) {
	f := newFaulty(t)
	f.initToken()
	c := f.start(nil)
	f.set("soft-key")
	_, err := c.Generate(f.ctx(), pkichip.LayerDevice, "", pkichip.P256)
	if !errors.Is(err, pkichip.ErrUnsupported) || !strings.Contains(err.Error(), "read out") {
		t.Errorf("extractable key: %v", err)
	}
	f.set()
	all, err := c.List(f.ctx())
	must(t, err)
	if len(all) != 0 {
		t.Errorf("the key was left on the token: %+v", all)
	}
}

// A token that logs idle sessions out gets its PIN again.
func TestLoggedOut(t *testing.T) {
	f := newFaulty(t)
	c := f.ready(pkichip.P256)
	s := deviceSigner(t, f.bench, c)
	f.set("logged-out")
	if err := checkSignature(s); err != nil {
		t.Error(err)
	}
}
