package pkichip

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lastLines keeps what matters of what a process printed, for the message when it dies.
type lastLines struct {
	done chan struct{} // closed when nothing more comes

	mu     sync.Mutex // guards what follows
	text   string     // the last line
	signal string     // the signal that ended it, such as "SIGSEGV"
	panics string     // a panic of our own code
}

func (l *lastLines) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = s
	switch {
	case l.panics != "" || l.signal != "":
	case strings.HasPrefix(s, "panic: "):
		l.panics = s
	default:
		l.signal = signalIn(s)
	}
}

// signalIn finds the signal in what Go's runtime prints when foreign code crashes. The runtime then
// ends the process itself, with a status that says nothing:
//
//	SIGABRT: abort
//	[signal SIGSEGV: segmentation violation code=0x1 addr=0x0 pc=0x7f0000000000]
func signalIn(line string) string {
	line = strings.TrimPrefix(line, "[signal ")
	name, _, ok := strings.Cut(line, ":")
	if !ok || unix.SignalNum(name) == 0 {
		return ""
	}
	return name
}

func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text
}

// wait gives the last words of an ended process a moment to arrive.
func (l *lastLines) wait() {
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-l.done:
	case <-t.C:
	}
}

// ending says how a process ended that has been waited for, such as "crashed with SIGSEGV"; nothing
// when it was ended from here.
func (c *conn) ending() string {
	if c.killed {
		return ""
	}
	c.tail.mu.Lock()
	name, panics := c.tail.signal, c.tail.panics
	c.tail.mu.Unlock()
	switch {
	case panics != "":
		return "failed by a mistake of its own, " + panics
	case name != "":
		return "crashed with " + name
	}
	return describeEnd(c.cmd.ProcessState)
}

func describeEnd(s *os.ProcessState) string {
	if s == nil {
		return ""
	}
	w, ok := s.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return ""
	case w.Signaled():
		return "was ended by " + unix.SignalName(w.Signal())
	case s.ExitCode() == 0: // the conversation broke off, and it went as it should
		return ""
	}
	return fmt.Sprintf("ended with status %d", s.ExitCode())
}

// died says what is known about the end of a process that has been waited for.
func (c *Chip) died(p *conn, why error) error {
	p.tail.wait()
	how := p.ending()
	if how == "" {
		return why
	}
	e, _ := errors.AsType[*Error](why)
	if e == nil {
		e = processError(ErrChipRestarting, why.Error(), "")
	}
	text := "the chip process " + how
	do := "a new one is started; nothing is to be done unless it happens again"
	switch {
	case strings.HasPrefix(how, "crashed"):
		text += ", most likely in the PKCS#11 module " + c.opt.Module
		do = "a new one is started; if it happens again, use another version of the module and tell its maker"
	case strings.HasSuffix(how, unix.SignalName(unix.SIGKILL)):
		text += ": somebody killed it, or the machine's memory ran out"
	}
	if last := p.tail.String(); last != "" && strings.HasPrefix(how, "ended") {
		text += "; it last printed: " + last
	}
	return &Error{Text: text, Do: do, TriesLeft: -1, kinds: e.kinds, code: e.code}
}

// startFailed adds to the reason why a process could not be started when it is tried again.
func startFailed(err error, next time.Duration) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = processError(ErrModule, err.Error(), "")
	}
	out := *e
	out.Do = strings.TrimPrefix(fmt.Sprintf("%s; it is tried again in %v", e.Do, next), "; ")
	return &out
}
