package ike

import (
	"sync"
	"time"
)

// workers is the default Executor: a fixed number of goroutines for the state machines and a
// bounded number, made when needed, for signatures and certificates. Its queues are bounded by
// what feeds them: an SA has at most one step and two slow jobs under way, and the number of
// SAs of strangers is bounded by the Endpoint.
type workers struct {
	fast, slow pool
}

func newWorkers(clock Clock, fast, slow int) *workers {
	return &workers{fast: pool{max: fast, clock: clock}, slow: pool{max: slow, clock: clock}}
}

func (w *workers) Run(f func())     { w.fast.run(f) }
func (w *workers) RunSlow(f func()) { w.slow.run(f) }

// pool runs functions in at most max goroutines, which end when there was nothing to do for a while:
// a new goroutine has to grow its stack before it can do any arithmetic.
type pool struct {
	max   int
	clock Clock

	mu      sync.Mutex
	queue   []func()
	head    int
	running int
	idle    []chan func() // goroutines that wait for work, or for nil, which ends them
	reaping bool          // reap will be called
}

// poolLinger is how long a goroutine waits for work, at most.
const poolLinger = 200 * time.Millisecond

func (p *pool) run(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch n := len(p.idle); {
	case n > 0:
		p.idle[n-1] <- f // has room for one
		p.idle = p.idle[:n-1]
	case p.running < p.max:
		p.running++
		go p.work(f)
	default:
		p.queue = append(p.queue, f)
	}
}

func (p *pool) work(f func()) {
	more := make(chan func(), 1)
	for f != nil {
		f()
		if f = p.next(more); f == nil {
			f = <-more
		}
	}
}

// next returns what is to be done next; nil: more has been noted as idle.
func (p *pool) next(more chan func()) func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.head == len(p.queue) {
		p.queue, p.head = p.queue[:0], 0
		p.idle = append(p.idle, more)
		if !p.reaping {
			p.reaping = true
			p.clock.AfterFunc(poolLinger, p.reap)
		}
		return nil
	}
	f := p.queue[p.head]
	p.queue[p.head] = nil
	p.head++
	if p.head > 1024 && p.head*2 > len(p.queue) {
		p.queue = append(p.queue[:0], p.queue[p.head:]...)
		p.head = 0
	}
	return f
}

// reap ends the goroutines that wait.
func (p *pool) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, more := range p.idle {
		more <- nil // has room for one
	}
	p.running -= len(p.idle)
	p.idle, p.reaping = nil, false
}
