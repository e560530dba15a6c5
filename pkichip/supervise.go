package pkichip

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wardgate/pkichip/chipproto"
)

// The life of the chip process:
//
//	spawn ──hello──▶ serving ──died, hung──▶ killed ──pause──▶ spawn …
//
// The pause doubles from MinBackoff to MaxBackoff and starts anew after a minute of health.

const healthy = time.Minute

// File descriptors of the chip process, beside the standard ones.
const (
	fdSocket = 3
	fdPIN    = 4
)

// spawn starts a chip process and says hello.
func (c *Chip) spawn(ctx context.Context) (*conn, *chipproto.Message, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("chip: socket pair: %w", err)
	}
	// Ours is non-blocking, so that closing it ends a blocked read or write.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
		return nil, nil, fmt.Errorf("chip: socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "chip"), os.NewFile(uintptr(fds[1]), "chip")
	closeTheirs := sync.OnceFunc(func() { _ = theirs.Close() })
	defer closeTheirs()

	cmd := exec.Command(c.opt.Binary, c.args()...)
	cmd.Env = append(environment(), c.opt.Env...)
	cmd.ExtraFiles = []*os.File{theirs}
	handOver, err := c.pinPipe(cmd)
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	// Not cmd.StderrPipe: Wait would close it before the last line was read.
	output, theirOutput, err := os.Pipe()
	if err == nil {
		cmd.Stderr = theirOutput
		err = cmd.Start()
		closeTheirs() // so that the process's end is seen on ours
		_ = theirOutput.Close()
		if err != nil {
			_ = output.Close()
		}
	}
	if err != nil {
		ours.Close()
		handOver(false)
		return nil, nil, processError(ErrModule, "the chip process cannot be started: "+err.Error(), "check [token] chip: it must be the path of wardgate-chip")
	}
	handOver(true)
	tail := &lastLines{done: make(chan struct{})}
	p := &conn{cmd: cmd, sock: ours, tail: tail, dead: make(chan struct{}), adopted: make(chan struct{}), pending: map[uint32]*call{}}
	go c.copyOutput(output, tail)
	go p.read(c.chipEvent)
	hello, err := p.do(ctx, &chipproto.Message{Type: chipproto.TypeHello}, chipproto.TypeHello.Timeout())
	if err == nil {
		return p, hello, nil
	}
	p.fail(err)
	reap(p)
	if e, ok := errors.AsType[*Error](err); ok && errors.Is(err, ErrChipRestarting) {
		e.Text = "the chip process ended before it answered" // what it printed says why
		e.Do = "check [token] in the configuration"
		tail.wait()
		if how := p.ending(); how != "" {
			e.Text = "the chip process " + how + " before it answered"
		}
		if t := tail.String(); t != "" {
			e.Text += ": " + t
		}
		e.kinds = []error{ErrModule}
	}
	return nil, nil, err
}

func (c *Chip) args() []string {
	o := &c.opt
	a := []string{
		"--fd", strconv.Itoa(fdSocket), "--module", o.Module, "--sessions", strconv.Itoa(o.Sessions),
		"--poll", o.Poll.String(),
	}
	add := func(flag, v string) {
		if v != "" {
			a = append(a, flag, v)
		}
	}
	add("--token", o.TokenLabel)
	add("--user", o.User)
	add("--pin-file", o.PIN.File)
	add("--pin-credential", o.PIN.Credential)
	add("--pin-env", o.PIN.Env)
	if o.PIN.Value != nil || o.PIN.SOPIN != nil {
		add("--pin-fd", strconv.Itoa(fdPIN))
	}
	c.mu.Lock()
	add("--refused", c.refused)
	c.mu.Unlock()
	return a
}

// environment is ours without what is meant for this process alone.
func environment() []string {
	var out []string
	for _, e := range os.Environ() {
		switch n, _, _ := strings.Cut(e, "="); n {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES":
		default:
			out = append(out, e)
		}
	}
	return out
}

// pinPipe hands over PINs that a person typed: each with a length octet, the user's, then the
// security officer's. They are wiped here; a pipe holds them until the chip process has read them.
func (c *Chip) pinPipe(cmd *exec.Cmd) (handOver func(ok bool), err error) {
	pin, so := c.opt.PIN.Value, c.opt.PIN.SOPIN
	if pin == nil && so == nil {
		return func(bool) {}, nil
	}
	if len(pin) > 255 || len(so) > 255 {
		return nil, errors.New("PIN: expected at most 255 octets")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("chip: pipe for the PIN: %w", err)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, r)
	return func(ok bool) {
		b := make([]byte, 0, 512)
		b = append(append(append(append(b, byte(len(pin))), pin...), byte(len(so))), so...)
		if ok {
			_, _ = w.Write(b) // less than a pipe holds; a dead reader shows up on the socket
		}
		clear(b[:cap(b)])
		clear(pin)
		clear(so)
		_ = w.Close()
		_ = r.Close()
	}, nil
}

// reap ends a process and waits for it. It is killed by its own PID; a stopped one dies as well.
func reap(p *conn) {
	// Closing the socket lets a healthy process end by itself, and give the token back.
	ended := make(chan struct{})
	go func() {
		_ = p.cmd.Wait()
		close(ended)
	}()
	grace := time.NewTimer(300 * time.Millisecond)
	defer grace.Stop()
	if !errors.Is(p.reason(), ErrChipHung) {
		select {
		case <-ended:
			return
		case <-grace.C:
		}
	}
	p.killed = true
	_ = p.cmd.Process.Kill()
	<-ended
}

// adopt makes p the process that serves requests.
func (c *Chip) adopt(p *conn, hello *chipproto.Message) {
	c.mu.Lock()
	c.conn, c.module, c.lastErr = p, hello.Module, nil
	c.mu.Unlock()
}

// supervise watches the process and replaces it, until run ends.
func (c *Chip) supervise(run context.Context, p *conn) {
	defer close(c.done)
	defer func() {
		c.emitMu.Lock()
		defer c.emitMu.Unlock()
		c.ended = true // a reader may still hold an event
		close(c.events)
	}()
	backoff := c.opt.MinBackoff
	for {
		born := time.Now()
		err := c.watch(run, p)
		c.mu.Lock()
		c.conn = nil
		c.lastErr = err
		c.mu.Unlock()
		p.fail(err)
		reap(p)
		if run.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, errPINChanged):
		case errors.Is(err, ErrChipHung):
			c.emitError(EventHung, err)
		default:
			err = c.died(p, err)
			c.mu.Lock()
			c.lastErr = err
			c.mu.Unlock()
			c.emitError(EventDied, err)
		}
		if c.once {
			c.mu.Lock()
			c.lastErr = processError(ErrClosed, "the chip process ended, and the PIN was given to it alone", "run the command again")
			c.mu.Unlock()
			<-run.Done()
			return
		}
		if time.Since(born) > healthy {
			backoff = c.opt.MinBackoff
		}
		for p = nil; p == nil; {
			if !pause(run, backoff) {
				return
			}
			backoff = min(2*backoff, c.opt.MaxBackoff)
			next, hello, err := c.spawn(run)
			if err != nil {
				if run.Err() != nil {
					return
				}
				c.mu.Lock()
				c.lastErr = err
				c.mu.Unlock()
				c.emitError(EventStartFailed, startFailed(err, backoff))
				continue
			}
			p = next
			c.mu.Lock()
			c.restarts++
			c.mu.Unlock()
			c.adopt(p, hello)
			c.emit(EventRestarted, fmt.Sprintf("chip process %d answers", p.pid()))
			close(p.adopted)
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

var errPINChanged = errors.New("the PIN's source has changed")

// watch pings the process until it ends, hangs or is no longer wanted.
func (c *Chip) watch(run context.Context, p *conn) error {
	tick := time.NewTicker(c.opt.PingInterval)
	defer tick.Stop()
	for {
		select {
		case <-run.Done():
			return processError(ErrClosed, "", "")
		case <-p.dead:
			return p.reason()
		case <-tick.C:
		}
		if _, err := p.do(run, &chipproto.Message{Type: chipproto.TypePing}, c.opt.PingTimeout); err != nil {
			if run.Err() != nil {
				return processError(ErrClosed, "", "")
			}
			return err
		}
		if c.pinChanged() {
			e := processError(ErrChipRestarting, "the PIN file has changed", "try again in a moment")
			e.kinds = append(e.kinds, errPINChanged)
			return e
		}
	}
}

// pinChanged reports whether the PIN file that was refused is another one now. A new process
// reads it and tries it once.
func (c *Chip) pinChanged() bool {
	c.mu.Lock()
	refused := c.refused
	c.mu.Unlock()
	if refused == "" || c.opt.PIN.File == "" {
		return false
	}
	fi, err := os.Stat(c.opt.PIN.File)
	if err != nil || chipproto.FileMark(fi) == refused {
		return false
	}
	c.setRefused("")
	return true
}

func (c *Chip) setRefused(mark string) {
	c.mu.Lock()
	changed := c.refused != mark
	c.refused = mark
	c.mu.Unlock()
	if !changed || c.opt.StateFile == "" || (mark != "" && !strings.HasPrefix(mark, "file:")) {
		return
	}
	if err := writeRefused(c.opt.StateFile, c.opt.TokenLabel, mark); err != nil {
		c.emit(EventTokenFailed, "remembering that the PIN was refused: "+err.Error())
	}
}

type refusedState struct {
	Token   string `json:"token"`
	Refused string `json:"refused_pin_source"`
}

func readRefused(path, token string) string {
	if path == "" {
		return ""
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var s refusedState
	if json.Unmarshal(b, &s) != nil || s.Token != token || len(s.Refused) > 256 {
		return ""
	}
	return s.Refused
}

func writeRefused(path, token, mark string) error {
	b, err := json.Marshal(refusedState{token, mark})
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// chipEvent handles what the process tells on its own accord.
func (c *Chip) chipEvent(m *chipproto.Message) {
	kind := EventTokenFailed
	unusable := true
	switch m.Event {
	case chipproto.EventInserted:
		c.setRefused("")
		c.mu.Lock()
		c.lastErr = nil
		c.mu.Unlock()
		c.emit(EventInserted, m.Text)
		return
	case chipproto.EventRemoved:
		kind = EventRemoved
	case chipproto.EventPIN:
		kind = pinEvents[m.Code]
		if kind == "" {
			kind = EventPINRefused
		}
		if m.Source != "" {
			c.setRefused(m.Source)
		}
	case chipproto.EventFull:
		kind, unusable = EventTokenFull, false
	case chipproto.EventReadOnly:
		kind, unusable = EventReadOnly, false
	case chipproto.EventFailed:
	}
	e := fromMessage(m)
	if unusable {
		c.mu.Lock()
		c.lastErr = e
		c.mu.Unlock()
	}
	c.emitError(kind, e)
}

var pinEvents = map[chipproto.Code]EventKind{
	chipproto.CodePINWrong: EventPINRefused, chipproto.CodePINNotRetried: EventPINNotTried, chipproto.CodePINLastTry: EventPINLastTry,
	chipproto.CodePINLocked: EventPINLocked, chipproto.CodePINSource: EventPINSource,
}

// emitError tells everybody what went wrong.
func (c *Chip) emitError(kind EventKind, err error) {
	e := Event{Kind: kind, Text: err.Error()}
	e.Err, _ = errors.AsType[*Error](err)
	c.tell(e)
}

func (c *Chip) emit(kind EventKind, text string) { c.tell(Event{Kind: kind, Text: text}) }

// tell tells everybody. Nobody who does not read can stop it: the oldest event goes.
func (c *Chip) tell(e Event) {
	e.Time = time.Now()
	kind := e.Kind
	if c.opt.Log != nil {
		c.opt.Log(e)
	}
	if kind == EventModuleOutput {
		return
	}
	c.emitMu.Lock()
	defer c.emitMu.Unlock()
	for !c.ended {
		select {
		case c.events <- e:
			return
		default:
		}
		select {
		case <-c.events:
		default:
		}
	}
}

// request sends one request to the process that serves at the moment.
func (c *Chip) request(ctx context.Context, m *chipproto.Message) (*chipproto.Message, error) {
	c.mu.Lock()
	p, last, closed := c.conn, c.lastErr, c.closed
	c.mu.Unlock()
	switch {
	case closed:
		return nil, processError(ErrClosed, "", "")
	case p == nil && errors.Is(last, ErrClosed):
		return nil, last
	case p == nil:
		why := ""
		if last != nil {
			why = last.Error()
		}
		return nil, processError(ErrChipRestarting, why, "try again in a moment")
	}
	r, err := p.do(ctx, m, m.Type.Timeout())
	if err != nil && r != nil && r.Source != "" {
		c.setRefused(r.Source)
	}
	return r, err
}

// copyOutput passes on what the process and its module print, line by line, escaped and bounded.
func (c *Chip) copyOutput(r io.ReadCloser, tail *lastLines) {
	defer close(tail.done)
	defer r.Close()
	b := bufio.NewReaderSize(r, 4096)
	for {
		line, err := b.ReadSlice('\n')
		if line = bytes.TrimSpace(line); len(line) > 0 {
			if len(line) > 1000 {
				line = line[:1000]
			}
			q := strconv.QuoteToASCII(string(line))
			q = q[1 : len(q)-1]
			tail.add(q)
			c.emit(EventModuleOutput, q)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}
