package ike

import "sync"

// workers is the default Executor: a fixed number of goroutines for the state machines and a
// bounded number, made when needed, for signatures and certificates. Its queues are bounded by
// what feeds them: an SA has at most one step and two slow jobs under way, and the number of
// SAs of strangers is bounded by the Endpoint.
type workers struct {
	fast, slow pool
}

func newWorkers(fast, slow int) *workers {
	return &workers{fast: pool{max: fast}, slow: pool{max: slow}}
}

func (w *workers) Run(f func())     { w.fast.run(f) }
func (w *workers) RunSlow(f func()) { w.slow.run(f) }

// pool runs functions in at most max goroutines, which end when there is nothing to do.
type pool struct {
	max int

	mu      sync.Mutex
	queue   []func()
	head    int
	running int
}

func (p *pool) run(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running < p.max {
		p.running++
		go p.work(f)
		return
	}
	p.queue = append(p.queue, f)
}

func (p *pool) work(f func()) {
	for {
		f()
		p.mu.Lock()
		if p.head == len(p.queue) {
			p.queue, p.head = p.queue[:0], 0
			p.running--
			p.mu.Unlock()
			return
		}
		f = p.queue[p.head]
		p.queue[p.head] = nil
		p.head++
		if p.head > 1024 && p.head*2 > len(p.queue) {
			p.queue = append(p.queue[:0], p.queue[p.head:]...)
			p.head = 0
		}
		p.mu.Unlock()
	}
}
