package pkichip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"wardgate/pkichip/chipproto"
)

// conn is one chip process and the conversation with it.
type conn struct {
	cmd     *exec.Cmd
	sock    *os.File
	tail    *lastLines    // what the process printed
	killed  bool          // it was ended from here; set before it is waited for
	dead    chan struct{} // closed when the conversation has ended; err says why
	adopted chan struct{} // closed when it serves: events come after that of the restart

	writeMu sync.Mutex

	mu       sync.Mutex // guards what follows
	next     uint32
	pending  map[uint32]*call
	progress time.Time // of the last reply other than to a ping
	err      error
}

type call struct {
	reply   chan *chipproto.Message // buffered: 1
	watch   *time.Timer
	ping    bool
	started time.Time
	limit   time.Duration // after which the process counts as hung
}

// maxPending bounds the requests under way, so that a slow token does not pile them up.
const maxPending = 128

func (c *conn) pid() int { return c.cmd.Process.Pid }

// fail ends the conversation. The first reason counts.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	for id, p := range c.pending {
		p.watch.Stop()
		delete(c.pending, id)
	}
	close(c.dead)
	_ = c.sock.Close() // ends the reader, and a healthy process with it
}

func (c *conn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read takes replies and events until the conversation ends.
func (c *conn) read(event func(*chipproto.Message)) {
	r := bufio.NewReader(c.sock) // one system call for a message, or for several
	for {
		m, err := chipproto.Read(r)
		if err != nil {
			why := err.Error()
			if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
				why = "it ended"
			}
			c.fail(processError(ErrChipRestarting, "the chip process broke off: "+why, "try again in a moment"))
			return
		}
		if m.Type == chipproto.TypeEvent {
			select {
			case <-c.adopted:
				event(m)
			case <-c.dead:
			}
			continue
		}
		c.mu.Lock()
		p := c.pending[m.ID]
		delete(c.pending, m.ID)
		if p != nil && !p.ping {
			c.progress = time.Now()
		}
		c.mu.Unlock()
		if p == nil {
			c.fail(processError(ErrChipRestarting, fmt.Sprintf("the chip process answered request %d, which nobody made", m.ID), "try again in a moment"))
			return
		}
		p.watch.Stop()
		p.reply <- m
	}
}

// hung reports whether it means that the process hangs when a request is not answered within its
// limit. It does not while other requests are being answered, and not while the token does
// something that may take longer, such as making an RSA key: many tokens do one thing after the
// other. c.mu is held.
func (c *conn) hung(p *call, now time.Time) bool {
	if p.ping {
		return true
	}
	if c.progress.After(p.started) && now.Sub(c.progress) < p.limit {
		return false
	}
	for _, other := range c.pending {
		if other.limit > p.limit && now.Sub(other.started) < other.limit {
			return false
		}
	}
	return true
}

// do sends a request and waits for its reply. A request that is not answered in time means that
// the process hangs (hung), whether or not somebody still waits for it.
func (c *conn) do(ctx context.Context, m *chipproto.Message, limit time.Duration) (*chipproto.Message, error) {
	p := &call{reply: make(chan *chipproto.Message, 1), ping: m.Type == chipproto.TypePing, started: time.Now(), limit: limit}
	typ := m.Type
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	if len(c.pending) >= maxPending && !p.ping {
		c.mu.Unlock()
		return nil, processError(ErrBusy, fmt.Sprintf("%d are under way", maxPending), "try again in a moment")
	}
	c.next++
	if c.next == 0 {
		c.next = 1
	}
	m.ID, m.Tries = c.next, -1
	p.watch = time.AfterFunc(limit, func() {
		c.mu.Lock()
		if c.err == nil && !c.hung(p, time.Now()) {
			p.watch.Reset(limit)
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		c.fail(processError(ErrChipHung, fmt.Sprintf("no answer to %v within %v", typ, limit), "it is being restarted; try again in a moment"))
	})
	c.pending[m.ID] = p
	c.mu.Unlock()

	b, err := chipproto.Append(nil, m)
	if err != nil {
		c.mu.Lock()
		delete(c.pending, m.ID)
		c.mu.Unlock()
		p.watch.Stop()
		return nil, processError(ErrBadRequest, err.Error(), "")
	}
	// A stopped process does not read: the watch closes the socket, which ends the write.
	c.writeMu.Lock()
	_, err = c.sock.Write(b)
	c.writeMu.Unlock()
	if err != nil {
		c.fail(processError(ErrChipRestarting, "the chip process cannot be reached: "+err.Error(), "try again in a moment"))
		return nil, c.reason()
	}
	select {
	case r := <-p.reply:
		if r.Type != typ|chipproto.ReplyBit {
			c.fail(processError(ErrChipRestarting, fmt.Sprintf("the chip process answered %v with %v", typ, r.Type), "try again in a moment"))
			return nil, c.reason()
		}
		if r.Code != chipproto.OK {
			return r, fromMessage(r)
		}
		return r, nil
	case <-c.dead:
		return nil, c.reason()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the token: %w", context.Cause(ctx))
	}
}
