package pkichip

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wardgate/pkichip/chipproto"
)

// talk returns a conversation, and what the chip process reads and writes.
func talk(t *testing.T) (*conn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	c := &conn{sock: ours, dead: make(chan struct{}), adopted: make(chan struct{}), pending: map[uint32]*call{}}
	t.Cleanup(func() {
		c.fail(errors.New("the test has ended"))
		_ = theirs.Close()
	})
	go c.read(func(*chipproto.Message) {})
	return c, theirs
}

// A token that does one thing after the other lets a signature wait for a key that is being made: it
// is slow, not hung. When the key's own time is over as well, the process hangs.
func TestSlowIsNotHung(t *testing.T) {
	const short, long = 20 * time.Millisecond, 30 * time.Second
	type result struct {
		m   *chipproto.Message
		err error
	}
	ask := func(c *conn, typ chipproto.Type, limit time.Duration) chan result {
		out := make(chan result, 1)
		m := &chipproto.Message{Type: typ, Layer: chipproto.LayerDevice, KeyType: chipproto.P256}
		if typ == chipproto.TypeSign {
			m = &chipproto.Message{Type: typ, Layer: chipproto.LayerDevice, KeyID: []byte{1}, Scheme: chipproto.SchemeECDSA, Hash: chipproto.HashSHA256, Data: make([]byte, 32)}
		}
		go func() {
			r, err := c.do(context.Background(), m, limit)
			out <- result{r, err}
		}()
		return out
	}
	next := func(f *os.File) *chipproto.Message {
		t.Helper()
		if err := f.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		m, err := chipproto.Read(f)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	answer := func(f *os.File, to *chipproto.Message) {
		t.Helper()
		m := &chipproto.Message{Type: to.Type | chipproto.ReplyBit, ID: to.ID, Tries: -1, KeyID: []byte{1}, Public: []byte{1}}
		if to.Type == chipproto.TypeSign {
			m = &chipproto.Message{Type: to.Type | chipproto.ReplyBit, ID: to.ID, Tries: -1, Data: []byte{1}}
		}
		if err := chipproto.Write(f, m); err != nil {
			t.Fatal(err)
		}
	}

	c, chip := talk(t)
	made := ask(c, chipproto.TypeGenerate, long)
	generate := next(chip)
	signed := ask(c, chipproto.TypeSign, short)
	sign := next(chip)
	select {
	case r := <-signed:
		t.Fatalf("the signature did not wait for the key: %v", r.err)
	case <-c.dead:
		t.Fatal(c.reason())
	case <-time.After(10 * short): // its time is over several times
	}
	answer(chip, generate)
	if r := <-made; r.err != nil {
		t.Fatal(r.err)
	}
	answer(chip, sign)
	if r := <-signed; r.err != nil {
		t.Fatal(r.err)
	}

	// Nothing longer is under way: then it hangs.
	signed = ask(c, chipproto.TypeSign, short)
	next(chip)
	if r := <-signed; !errors.Is(r.err, ErrChipHung) {
		t.Errorf("no answer: %v", r.err)
	}

	// Neither is answered: the key's time ends both.
	c, _ = talk(t)
	made = ask(c, chipproto.TypeGenerate, 4*short)
	signed = ask(c, chipproto.TypeSign, short)
	for _, x := range []chan result{made, signed} {
		if r := <-x; !errors.Is(r.err, ErrChipHung) {
			t.Errorf("no answer: %v", r.err)
		}
	}
	// Who asks from now on is told at once.
	if _, err := c.do(context.Background(), &chipproto.Message{Type: chipproto.TypeList}, long); !errors.Is(err, ErrChipHung) {
		t.Errorf("after it hung: %v", err)
	}
}

// How a process ended is told in words that lead somewhere.
func TestEndings(t *testing.T) {
	for script, want := range map[string]string{
		"kill -KILL $$":       "was ended by SIGKILL: somebody killed it, or the machine's memory ran out",
		"kill -TERM $$":       "was ended by SIGTERM",
		"echo no room; false": "ended with status 1; it last printed: no room",
		"echo 'SIGBUS: bus error'; echo more; exit 2":                                      "crashed with SIGBUS, most likely in the PKCS#11 module /m.so",
		"echo '[signal SIGSEGV: segmentation violation code=0x1 addr=0x8 pc=0x1]'; exit 2": "crashed with SIGSEGV",
		"echo 'panic: oops'; echo '[signal SIGSEGV: segmentation violation]'; exit 2":      "failed by a mistake of its own, panic: oops",
		"true": "it ended",
	} {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
		out, err := cmd.Output()
		if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
			t.Fatal(exit, err)
		}
		tail := &lastLines{done: make(chan struct{})}
		close(tail.done)
		for line := range strings.Lines(string(out)) {
			tail.add(strings.TrimSpace(line))
		}
		chip := &Chip{opt: Options{Module: "/m.so"}}
		got := chip.died(&conn{cmd: cmd, tail: tail}, processError(ErrChipRestarting, "it ended", "try again"))
		if !strings.Contains(got.Error(), want) || !errors.Is(got, ErrChipRestarting) {
			t.Errorf("%s: got %v, want %s", script, got, want)
		}
	}
}
