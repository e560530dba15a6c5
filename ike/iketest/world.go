// Package iketest runs IKE endpoints in a world of its own: a virtual clock, one goroutine, and
// links that lose, repeat, reorder and delay datagrams as a seed says. The same seed gives the
// same run.
package iketest

import (
	"bytes"
	"container/heap"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"wardgate/ike"
)

// Epoch is when every world begins.
var Epoch = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// World is the clock, the executor and the network of some endpoints. Everything in it happens
// in the goroutine that calls For or Until.
type World struct {
	Link  Link
	Token time.Duration // how long a signature or a verdict takes

	// Tap, when not nil, sees every datagram that is sent; false drops it.
	Tap func(from, to netip.AddrPort, msg []byte) bool

	// TCP is what happens to TCP connections.
	TCP TCPLink

	// Quiet keeps no diary.
	Quiet bool

	// sim, when not nil, decides the fate of datagrams in place of Link.
	sim *run

	// mu guards now, seq and queue: an endpoint may be called from another goroutine (Close).
	mu    sync.Mutex
	now   time.Time
	seq   uint64
	queue events
	rng   *rand.Rand
	nodes map[netip.Addr]*Node
	nats  map[netip.Addr]*NAT
	log   []string
}

// Link is what happens to datagrams on their way.
type Link struct {
	Delay  time.Duration // at least
	Jitter time.Duration // up to so much more, which reorders
	Loss   float64       // probability
	Dup    float64       // probability of a second copy
	MTU    int           // longer IKE messages vanish; 0: none do
	Cut    bool          // nothing gets through
}

// New returns an empty world.
func New(seed uint64) *World {
	return &World{
		Link: Link{Delay: 5 * time.Millisecond}, Token: 2 * time.Millisecond, now: Epoch,
		rng: rand.New(rand.NewPCG(seed, 0x77617264)), nodes: map[netip.Addr]*Node{}, nats: map[netip.Addr]*NAT{},
	}
}

// Now implements ike.Clock.
func (w *World) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// AfterFunc implements ike.Clock.
func (w *World) AfterFunc(d time.Duration, f func()) func() {
	e := w.at(d, f)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		e.f = nil
	}
}

// Run implements ike.Executor.
func (w *World) Run(f func()) { w.at(0, f) }

// RunSlow implements ike.Executor.
func (w *World) RunSlow(f func()) { w.at(w.Token, f) }

func (w *World) at(d time.Duration, f func()) *event {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seq++
	e := &event{at: w.now.Add(max(d, 0)), seq: w.seq, f: f}
	heap.Push(&w.queue, e)
	return e
}

// next takes the next thing out of the queue, if it happens until end.
func (w *World) next(end time.Time) (f func(), ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.queue.Len() > 0 {
		e := w.queue[0]
		if e.f != nil && e.at.After(end) {
			return nil, false
		}
		heap.Pop(&w.queue)
		if e.f == nil {
			continue
		}
		if e.at.After(w.now) {
			w.now = e.at
		}
		return e.f, true
	}
	return nil, false
}

// For lets time pass.
func (w *World) For(d time.Duration) {
	end := w.Now().Add(d)
	for {
		f, ok := w.next(end)
		if !ok {
			break
		}
		f()
	}
	w.mu.Lock()
	w.now = end
	w.mu.Unlock()
}

// Until lets things happen until done, for at most d; it returns whether done came true.
func (w *World) Until(d time.Duration, done func() bool) bool {
	end := w.Now().Add(d)
	for !done() {
		f, ok := w.next(end)
		if !ok {
			return done()
		}
		f()
	}
	return true
}

// Chance is true with probability p.
func (w *World) Chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

// Intn returns a number from 0 to n-1.
func (w *World) Intn(n int) int { return w.rng.IntN(n) }

// Rand returns a random source that follows the seed. It is good for tests only.
func (w *World) Rand() io.Reader { return worldRand{w} }

type worldRand struct{ w *World }

func (r worldRand) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r.w.rng.Uint32())
	}
	return len(p), nil
}

// Logf writes a line of the run's diary.
func (w *World) Logf(format string, args ...any) {
	if w.Quiet {
		return
	}
	w.log = append(w.log, fmt.Sprintf("%10.3f  ", w.Now().Sub(Epoch).Seconds())+fmt.Sprintf(format, args...))
}

// Diary returns the run as text, a line for every datagram and every call of an Owner.
func (w *World) Diary() string { return strings.Join(w.log, "\n") }

// Forget empties the diary.
func (w *World) Forget() { w.log = nil }

// NAT rewrites the source of what an address sends, as a NAT box does.
type NAT struct {
	Inside  netip.Addr
	Outside netip.Addr
	Shift   uint16 // added to the port
}

// AddNAT puts a NAT in front of an address.
func (w *World) AddNAT(n *NAT) { w.nats[n.Inside] = n }

func (n *NAT) out(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(n.Outside, a.Port()+n.Shift)
}

// send carries one datagram.
func (w *World) send(from, to netip.AddrPort, msg []byte) {
	msg = bytes.Clone(msg)
	if w.sim != nil {
		w.sim.carry(from, to, msg)
		return
	}
	gone := w.nodes[from.Addr()] == nil // an address that nobody has any more
	if n := w.nats[from.Addr()]; n != nil {
		from = n.out(from)
	}
	fate := ""
	switch {
	case gone:
		fate = " (not our address)"
	case w.Tap != nil && !w.Tap(from, to, msg):
		fate = " (dropped by the test)"
	case w.Link.Cut, w.Chance(w.Link.Loss):
		fate = " (lost)"
	case w.Link.MTU > 0 && len(msg) > w.Link.MTU:
		fate = " (too long)"
	}
	w.Logf("%v > %v  %s%s", from, to, Describe(msg), fate)
	if fate != "" {
		return
	}
	copies := 1
	if w.Chance(w.Link.Dup) {
		copies = 2
	}
	for range copies {
		w.at(w.latency(), func() { w.Deliver(from, to, msg) })
	}
}

// latency is how long the next datagram takes.
func (w *World) latency() time.Duration {
	d := w.Link.Delay
	if w.Link.Jitter > 0 {
		d += time.Duration(w.rng.Int64N(int64(w.Link.Jitter)))
	}
	return d
}

// Deliver hands a datagram to whoever has the address.
func (w *World) Deliver(from, to netip.AddrPort, msg []byte) {
	for _, n := range w.nats {
		if n.Outside == to.Addr() {
			to = netip.AddrPortFrom(n.Inside, to.Port()-n.Shift)
			break
		}
	}
	if n := w.nodes[to.Addr()]; n != nil && n.Endpoint != nil {
		n.Endpoint.HandleDatagram(ike.Path{Local: to, Remote: from, Encap: to.Port() != 500}, bytes.Clone(msg))
	}
}

// Describe names an IKE message by its header.
func Describe(msg []byte) string {
	if len(msg) < 28 {
		return fmt.Sprintf("%d octets", len(msg))
	}
	name := map[byte]string{34: "IKE_SA_INIT", 35: "IKE_AUTH", 36: "CREATE_CHILD_SA", 37: "INFORMATIONAL"}[msg[18]]
	if name == "" {
		name = fmt.Sprintf("exchange %d", msg[18])
	}
	kind := "request"
	if msg[19]&0x20 != 0 {
		kind = "response"
	}
	frag := ""
	if msg[16] == 53 && len(msg) >= 36 {
		frag = fmt.Sprintf(" fragment %d/%d", int(msg[32])<<8|int(msg[33]), int(msg[34])<<8|int(msg[35]))
	}
	return fmt.Sprintf("%s %s %d [%x_%x]%s %d octets", name, kind, uint32(msg[20])<<24|uint32(msg[21])<<16|uint32(msg[22])<<8|uint32(msg[23]), msg[0:2], msg[8:10], frag, len(msg))
}

// event is something that will happen; f nil: it was called off.
type event struct {
	at  time.Time
	seq uint64
	f   func()
}

type events []*event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	if q[i].at.Equal(q[j].at) {
		return q[i].seq < q[j].seq
	}
	return q[i].at.Before(q[j].at)
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(*event)) }
func (q *events) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return e
}
