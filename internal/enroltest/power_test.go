package enroltest

import (
	"context"
	"errors"
	"net"
	"sync"
)

var errDead = errors.New("the power has failed")

// power is a device's: it fails after the effect of a step of token, journal, policy or network. What is
// before a step's effect is after the one before it, so that each instant is there once.
//
// That the centre did something and its answer was lost is the failure after an answer was read and
// before anybody has seen it.
type power struct {
	mu    sync.Mutex // guards what follows
	n     int
	at    int // 0: never
	dead  bool
	when  string // the step after which it failed
	off   context.CancelFunc
	conns map[net.Conn]bool
	each  func() // looked at after each step
}

// on switches it on, to fail after so many steps.
func (p *power) on(at int, off context.CancelFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n, p.at, p.dead, p.when, p.off, p.conns = 0, at, false, "", off, map[net.Conn]bool{}
}

func (p *power) gone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// failed returns the step after which it failed, or nothing.
func (p *power) failed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.when
}

// watch has something looked at after each step.
func (p *power) watch(each func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.each = each
}

// step does a step, unless the power is gone.
func (p *power) step(what string, effect func()) error {
	if p.gone() {
		return errDead
	}
	effect()
	p.mu.Lock()
	each := p.each
	p.mu.Unlock()
	if each != nil {
		each()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return errDead
	}
	if p.n++; p.n == p.at {
		p.dead, p.when = true, what
		p.off()
		for c := range p.conns {
			_ = c.Close()
		}
		return errDead
	}
	return nil
}

// wire is the device's end of a connection.
type wire struct {
	net.Conn
	p *power
}

func (p *power) dial(ctx context.Context, addr string) (net.Conn, error) {
	if p.gone() {
		return nil, errDead
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
	return &wire{c, p}, nil
}

func (c *wire) Write(b []byte) (n int, err error) {
	if dead := c.p.step("writing to the network", func() { n, err = c.Conn.Write(b) }); dead != nil {
		return 0, dead
	}
	return n, err
}

func (c *wire) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		if dead := c.p.step("reading from the network", func() {}); dead != nil {
			return 0, dead
		}
	}
	return n, err
}

func (c *wire) Close() error {
	c.p.mu.Lock()
	delete(c.p.conns, c.Conn)
	c.p.mu.Unlock()
	return c.Conn.Close()
}
