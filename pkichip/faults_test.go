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
	f.set()
	// Go's runtime turns a signal in foreign code into an end of its own making; the event still
	// names the signal, and the module.
	wantText(t, waitEvent(t, c, pkichip.EventDied), "crashed with SIGABRT", "faulty.so", "another version of the module")
	waitEvent(t, c, pkichip.EventRestarted)
	must(t, checkSignature(s))

	f.set("segv-sign")
	if _, err := s.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, pkichip.ErrChipRestarting) {
		t.Errorf("a crash while signing: %v", err)
	}
	f.set()
	wantText(t, waitEvent(t, c, pkichip.EventDied), "crashed with SIGSEGV")
	waitEvent(t, c, pkichip.EventRestarted)
	must(t, checkSignature(s))
}

// wantText checks what an event says, and that it says it twice: as text and as an error.
func wantText(t *testing.T, e pkichip.Event, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(e.Text, w) {
			t.Errorf("event %s lacks %q: %s", e.Kind, w, e.Text)
		}
	}
	if e.Err == nil || e.Err.Do == "" || !strings.Contains(e.Text, e.Err.Text) || !strings.Contains(e.Text, e.Err.Do) {
		t.Errorf("event %s: text %q, error %#v", e.Kind, e.Text, e.Err)
	}
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
	wantText(t, waitEvent(t, c, pkichip.EventPINLastTry), "one PIN try left", "--ask-pin")
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
	wantText(t, waitEvent(t, c, pkichip.EventPINLocked), "locked the PIN", "security officer")
	f.set() // unlocked: the daemon goes on by itself
	waitEvent(t, c, pkichip.EventInserted)
	if _, err := c.Device(f.ctx()); err != nil {
		t.Error(err)
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
	wantText(t, waitEvent(t, c, pkichip.EventTokenFull), "no room left", "token service delete", "group-a (has only a key that waits for its certificate)")
	if s := c.Status(); s.LastErr != nil {
		t.Errorf("a full token still signs; status: %+v", s)
	}
	f.set()
	must(t, c.Store(f.ctx(), f.storeService("group-a", cert)))
}

// No room for another key: a key that waits makes room for the next one of its service, and
// what is in use stays.
func TestFullTokenGenerate(t *testing.T) {
	f := newFaulty(t)
	c := f.ready(pkichip.P256)
	must(t, c.Store(f.ctx(), f.storeService("group-a", f.request(c, "group-a", pkichip.P256))))
	waits, err := c.Generate(f.ctx(), pkichip.LayerService, "group-a", pkichip.P256)
	must(t, err)
	f.set("no-room 3")
	next, err := c.Generate(f.ctx(), pkichip.LayerService, "group-a", pkichip.P256)
	must(t, err)
	f.wantService(c, "group-a", 1, 1)
	must(t, checkSignature(next.Signer))
	if err := checkSignature(waits.Signer); !errors.Is(err, pkichip.ErrNoKey) {
		t.Errorf("the key that made room: %v", err)
	}
	_, err = c.Generate(f.ctx(), pkichip.LayerService, "group-b", pkichip.P256)
	if e, _ := errors.AsType[*pkichip.Error](err); !errors.Is(err, pkichip.ErrTokenFull) || e.Op != "C_GenerateKeyPair" || !strings.Contains(e.Do, "group-a") {
		t.Errorf("full token: %v", err)
	}
	waitEvent(t, c, pkichip.EventTokenFull)
	f.wantService(c, "group-a", 1, 1)
}

// A token that may only be read signs; writes are refused with a reason of their own.
func TestWriteProtectedToken(t *testing.T) {
	f := newFaulty(t)
	c := f.ready(pkichip.P256)
	cert := f.request(c, "group-a", pkichip.P256)
	must(t, c.Close())
	f.set("read-only")
	c = f.start(nil)
	must(t, checkSignature(deviceSigner(t, f.bench, c)))
	for what, do := range map[string]func() error{
		"store":    func() error { return c.Store(f.ctx(), f.storeService("group-a", cert)) },
		"delete":   func() error { return c.Delete(f.ctx(), "group-a") },
		"generate": func() error { _, err := c.Generate(f.ctx(), pkichip.LayerService, "group-a", pkichip.P256); return err },
	} {
		if err := do(); !errors.Is(err, pkichip.ErrReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
		wantText(t, waitEvent(t, c, pkichip.EventReadOnly), "may only be read", "can be written to")
	}
	f.wantService(c, "group-a", 0, 1)
	if s := c.Status(); s.LastErr != nil {
		t.Errorf("it still signs; status: %+v", s)
	}
}

// A key takes its time on a card, and much longer than a signature may: signatures and lists go on.
func TestSlowKeyDoesNotBlock(t *testing.T) {
	f := newFaulty(t)
	c := f.ready(pkichip.P256)
	s := deviceSigner(t, f.bench, c)
	f.set("slow-key")
	made := make(chan error, 1)
	go func() {
		_, err := c.Generate(f.ctx(), pkichip.LayerService, "group-a", pkichip.P256)
		made <- err
	}()
	for range 20 {
		must(t, checkSignature(s))
		_, err := c.List(f.ctx())
		must(t, err)
	}
	select {
	case err := <-made:
		t.Fatalf("the key is not slow: %v", err)
	default:
	}
	f.set()
	must(t, <-made)
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
