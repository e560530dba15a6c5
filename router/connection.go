package router

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"wardgate/ike"
)

// connState is where the life of a connection stands.
//
//	           first packet, click, schedule
//	┌──────┐ ────────────────────────────────► ┌────────────┐
//	│ idle │                                   │ connecting │
//	└──────┘ ◄──┐                              └─────┬──────┘
//	    ▲       │ back-off over         refused, dead│   │ CHILD SA stands
//	    │       │                                    │   ▼
//	    │   ┌───┴─────┐ ◄────────────────────────────┘ ┌────┐
//	    │   │ waiting │                                │ up │
//	    │   └─────────┘ ◄── always: lost ───────────── └─┬──┘
//	    └──────────── idle time over, down, peer left ───┘
//
// Any state goes to blocked while what the connection needs is missing: the token, its service
// certificate, a valid policy. A CHILD SA that the peer opens takes any state but blocked to up.
type connState uint8

const (
	connIdle connState = iota
	connConnecting
	connUp
	connClosing
	connWaiting
	connBlocked
)

func (s connState) String() string {
	switch s {
	case connIdle:
		return "idle"
	case connConnecting:
		return "connecting"
	case connUp:
		return "up"
	case connClosing:
		return "closing"
	case connWaiting:
		return "waiting"
	case connBlocked:
		return "blocked"
	}
	return "unknown"
}

// How a connection starts (policy: connections[].start).
const (
	startOnDemand = "on-demand"
	startManual   = "manual"
	startAlways   = "always"
)

// Bounds of the back-off between attempts.
const (
	backoffFirst = time.Second
	backoffMax   = time.Minute
)

// connection is one connection of the policy in force: a peer, a service, and the flows that the
// contract names.
type connection struct {
	name string
	spec atomic.Pointer[connSpec] // what the policy in force says; replaced with the policy
	lim  heldLimits

	// cur is the CHILD SA to send on; nil while there is none. Read by every worker.
	cur atomic.Pointer[childSA]

	// own are the CHILD SAs that single queues have for themselves (RFC 9611), by queue; nil: cur.
	own []atomic.Pointer[childSA]

	// lastUse is when the last allowed packet passed, in nanoseconds on the router's clock.
	lastUse atomic.Int64

	// traffic counts inner packets, each worker in a shard of its own.
	traffic []trafficShard

	mu        sync.Mutex // guards what follows
	state     connState
	since     time.Time // of state
	children  map[ike.ChildID]*childSA
	held      []heldPacket
	heldBytes int
	lastErr   string
	lastErrAt time.Time
	blockedBy string
	failures  int       // in a row
	retryAt   time.Time // connWaiting: not before
	wokenAt   time.Time // when the attempt in progress was begun
	setUp     time.Duration
	remoteIDs []string
	opened    bool // we initiated it
	ike       ike.SAID
	provedAt  time.Time // when all rounds of it were proved
	suite     string    // of IKE
	espSuite  string
	ppk       string // ID of the one in the keys
	path      ike.Path
	changed   chan struct{} // closed and replaced when the state changes; Up waits for it

	busy []uint64 // packetsOut of each shard when lifecycle last looked

	// the counters when the connection came up, for the record of its end
	up traffic
}

// trafficShard is on a cache line that no other queue writes.
type trafficShard struct {
	packetsIn, packetsOut atomic.Uint64
	bytesIn, bytesOut     atomic.Uint64
	window                int64 // see fairness; the outgoing worker's own
	inWindow, passed      int
	_                     [8]byte
}

// traffic is a sum of inner packets and octets.
type traffic struct{ packetsIn, packetsOut, bytesIn, bytesOut uint64 }

func (c *connection) total() traffic {
	var t traffic
	for i := range c.traffic {
		s := &c.traffic[i]
		t.packetsIn += s.packetsIn.Load()
		t.packetsOut += s.packetsOut.Load()
		t.bytesIn += s.bytesIn.Load()
		t.bytesOut += s.bytesOut.Load()
	}
	return t
}

// newConnection makes a connection whose traffic is counted by shards workers; all but the last
// of them, the flusher, read a queue.
func newConnection(name string, lim heldLimits, shards int, now time.Time) *connection {
	return &connection{
		name: name, lim: lim, since: now, changed: make(chan struct{}),
		traffic: make([]trafficShard, shards), own: make([]atomic.Pointer[childSA], shards-1),
	}
}

// sendOn returns the CHILD SA that a worker sends on, or nil.
func (c *connection) sendOn(queue int) *childSA {
	if queue < len(c.own) {
		if s := c.own[queue].Load(); s != nil {
			return s
		}
	}
	return c.cur.Load()
}

// stopSending lets packets wait again. c.mu is held.
func (c *connection) stopSending() {
	c.cur.Store(nil)
	for i := range c.own {
		c.own[i].Store(nil)
	}
}

// connSpec is what the policy says about a connection. Read-only.
type connSpec struct {
	peer, service string
	serviceID     string
	start         string
	idle          time.Duration // 0: never
	local, remote []netip.Prefix
	gateways      []netip.AddrPort
}

// heldLimits bounds what a connection holds back until it stands.
type heldLimits struct {
	packets, bytes int
	age            time.Duration
}

// heldPacket is an inner packet that waits for its CHILD SA.
type heldPacket struct {
	b  []byte // the inner packet, its own memory
	at time.Time
}

var (
	errConnReady   = errors.New("connection has just come up")
	errConnBlocked = errors.New("connection is blocked")
	errConnWaiting = errors.New("connection failed a moment ago and waits before it tries again")
	errConnManual  = errors.New("connection is started by hand only")
	errHeldFull    = errors.New("too many packets wait for the connection")
)

// hold keeps a copy of an inner packet until the connection stands, and tells whether IKE has to
// be started now. An error says why the packet is not kept.
func (c *connection) hold(b []byte, now time.Time) (wake bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cur.Load() != nil {
		return false, errConnReady
	}
	switch c.state {
	case connBlocked:
		return false, fmt.Errorf("%w: %s", errConnBlocked, c.blockedBy)
	case connWaiting:
		if now.Before(c.retryAt) {
			return false, errConnWaiting
		}
		wake = true
	case connIdle:
		if c.spec.Load().start == startManual {
			return false, errConnManual
		}
		wake = true
	case connConnecting, connClosing, connUp: // up: its last CHILD SA just went and the next is on its way
	}
	for len(c.held) > 0 && now.Sub(c.held[0].at) > c.lim.age {
		c.heldBytes -= len(c.held[0].b)
		c.held = c.held[1:]
	}
	if len(c.held) >= c.lim.packets || c.heldBytes+len(b) > c.lim.bytes {
		return wake, errHeldFull
	}
	c.held = append(c.held, heldPacket{append([]byte(nil), b...), now})
	c.heldBytes += len(b)
	if wake {
		c.setState(connConnecting, now)
		c.wokenAt = now
	}
	return wake, nil
}

// activate makes child the CHILD SA to send on: for its own queue alone when it has one, else for
// all. What was held back is handed to send first, in the order in which it came; only when
// nothing waits any more do the workers see child, so that no later packet overtakes an earlier
// one.
func (c *connection) activate(child *childSA, send func(*childSA, []heldPacket)) {
	for {
		c.mu.Lock()
		if c.children[child.id] != child || c.state == connClosing {
			c.mu.Unlock() // it went while its turn came
			return
		}
		if child.queue > 0 && child.queue < len(c.own) && c.cur.Load() != nil {
			c.own[child.queue].Store(child)
			c.mu.Unlock()
			return
		}
		h := c.held
		c.held, c.heldBytes = nil, 0
		if len(h) == 0 {
			c.cur.Store(child)
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		send(child, h)
	}
}

// retire takes a CHILD SA that is gone from the sending side. c.mu is held, and c.children has it
// no more.
func (c *connection) retire(child *childSA) {
	for q := range c.own {
		if c.own[q].Load() == child {
			c.own[q].Store(c.best(func(x *childSA) bool { return x.queue == q && !x.pending.Load() }))
		}
	}
	if c.cur.Load() != child {
		return
	}
	next := c.best(func(x *childSA) bool { return x.queue == 0 })
	if next == nil {
		next = c.best(func(*childSA) bool { return true })
	}
	if next != nil {
		next.pending.Store(false)
	}
	c.cur.Store(next)
}

// takeHeld hands over the packets that wait. c.mu is held.
func (c *connection) takeHeld() []heldPacket {
	h := c.held
	c.held, c.heldBytes = nil, 0
	return h
}

// setState changes the state; c.mu is held.
func (c *connection) setState(s connState, now time.Time) {
	if c.state != s {
		c.state, c.since = s, now
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

// block keeps the connection down until unblock, because of why. c.mu is held.
func (c *connection) block(why string, now time.Time) {
	c.blockedBy = why
	c.setState(connBlocked, now)
}

// unblock lets the connection start again. c.mu is held.
func (c *connection) unblock(now time.Time) {
	if c.state != connBlocked {
		return
	}
	c.blockedBy, c.failures = "", 0
	if len(c.children) > 0 {
		c.setState(connUp, now)
	} else {
		c.setState(connIdle, now)
	}
}

// failed notes that an attempt came to nothing and returns how long to wait before the next.
// c.mu is held.
func (c *connection) failed(err string, now time.Time) time.Duration {
	c.lastErr, c.lastErrAt = err, now
	c.failures++
	wait := backoffFirst << min(c.failures-1, 6)
	if wait > backoffMax {
		wait = backoffMax
	}
	c.retryAt = now.Add(wait)
	if c.state != connBlocked {
		c.setState(connWaiting, now)
	}
	return wait
}

// best picks, among the CHILD SAs that stand and that ok takes, the one to send on: the newest
// that is not waiting for the peer. c.mu is held.
func (c *connection) best(ok func(*childSA) bool) *childSA {
	var b *childSA
	for _, x := range c.children {
		if !ok(x) {
			continue
		}
		if b == nil || b.pending.Load() && !x.pending.Load() || b.pending.Load() == x.pending.Load() && x.id > b.id {
			b = x
		}
	}
	return b
}
