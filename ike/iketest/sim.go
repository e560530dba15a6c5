package iketest

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"runtime/debug"
	"slices"
	"time"

	"wardgate/ike"
	"wardgate/ike/message"
)

// Hooks is what the simulator needs to know of package ike that applications need not: the test
// of that package hands it in.
type Hooks struct {
	// KeyLog has every secret of an endpoint's IKE SAs handed to f.
	KeyLog func(c *ike.Config, f func(name string, secret []byte))

	// Inspect looks at everything that an endpoint holds.
	Inspect func(*ike.Endpoint) View

	// Forge encodes a message under the keys of one of the IKE SAs that have any, chosen by pick,
	// with the message ID that would be next plus delta; of a response, that of the peer's last
	// request plus delta. No messages: there is none.
	Forge func(ep *ike.Endpoint, pick int, exchange uint8, response bool, delta int, ps message.Payloads) (ike.Path, [][]byte)

	// Junk has an endpoint believe that it gets IKE_AUTH requests that are not authentic. nil: it does not.
	Junk func(*ike.Endpoint)

	// Paths tells where the IKE SAs of an endpoint are.
	Paths func(*ike.Endpoint) []SAPath

	// Rewrite, when not nil, may have a message that is whole sent with another content: nodes are
	// hostile then. It is asked for repetitions too.
	Rewrite func(Said) (message.Inner, bool)
}

// View is what an endpoint holds.
type View struct {
	IKE      int                // IKE SAs in any state
	Up       int                // established ones
	SPIs     int                // SPIs of IKE SAs
	Half     int                // half-open IKE SAs
	HalfAt   map[netip.Addr]int // of each address; nil: none
	ESP      int                // inbound SPIs of CHILD SAs
	Waiting  int                // the longest queue of requests, events or delayed exchanges
	Versions int                // the most generations that one IKE SA has
	Busy     bool               // an exchange is under way, or is going to be
	Broken   string             // a rule of the state machine that does not hold
}

// Outcome is what came of a plan.
type Outcome struct {
	Plan      *Plan
	Violation string // empty: none
	Datagrams int
	Rekeys    int // CHILD SAs that took another one's place
	Resumed   int // IKE SAs that a ticket brought up (RFC 5723), at both ends
	Crossings int // of rekeys of one SA by both ends, IKE and CHILD SAs
	Packets   int // of Plan.Traffic
	Diagram   string

	// When all was quiet, before the end.
	AtRest []Standing // of each node
	Said   []Said     // with draw: new messages under keys, in the order in which they were sent
}

// Standing is what a node had at the end.
type Standing struct {
	IKE      int
	Rekeyed  int // how often its IKE SAs were rekeyed, in all
	Children map[string]int
	Newest   map[string]int // how many CHILD SAs the newest succeeds
	SPIs     []uint64       // initiator's SPIs of the IKE SAs, and inbound SPIs of the CHILD SAs
}

// Said is a message of a node.
type Said struct {
	At       time.Duration
	Node     int
	ID       int64
	Exchange uint8
	Response bool
	Payloads message.Payloads
}

// Bounds of what an honest run may come to.
const (
	maxWaiting  = 96
	maxVersions = 6
	maxRate     = 400 // datagrams of one node in ten seconds of its time, for each connection
	rateWindow  = 10 * time.Second
	settleTime  = 5 * time.Minute
	roamTime    = 45 * time.Minute // with MOBIKE: the end that moves tries each path several times
	maxAtOnce   = 20000            // things that happen at one moment
)

// run is one plan being carried out.
type run struct {
	w       *World
	plan    *Plan
	hooks   Hooks
	nodes   []*simNode
	owner   map[netip.Addr]*simNode // of all addresses that a node can have, of the NATs' too
	here    map[netip.Addr]bool     // addresses that nodes have now
	nats    map[netip.Addr]*NAT     // by the address inside
	cut     map[[2]int]bool
	cutPath map[[2]netip.Addr]bool
	noUDP   bool
	stolen  bool // something came from another source than its own
	lively  int  // redirects that the plan asked for
	link    Link
	seq     int // datagrams so far
	lost    map[uint64]bool
	dropped map[int]bool
	touched *simNode
	instant time.Time
	busyFor int // things that happened at instant
	traffic *Traffic
	back    time.Duration // how far clocks were set back, in all
	out     Outcome
	oracle  oracle
	history []carried
	diagram *diagram // nil: none is wanted
}

// carried is a datagram of the past.
type carried struct {
	from, to netip.AddrPort
	msg      []byte
}

// simNode is a node that may lose its state and come back.
type simNode struct {
	*Node
	i       int
	run     *run
	life    int       // counts restarts: what an earlier life left behind does not happen
	paused  time.Time // nothing happens before
	offset  time.Duration
	token   time.Duration
	fail    bool
	rand    *fastRand
	conns   []*ike.PeerConfig
	rate    int
	since   time.Time
	ever    map[uint32]uint32    // SPIs of all CHILD SAs that there ever were: in → out
	doomed  map[ike.ChildID]bool // the plan deleted them, or they were too old
	mutate  *mutation            // nil: none
	counted int                  // violations of Node that were taken over

	addrs  []netip.Addr // that it has, the one that it likes best first
	left   int          // how often it left an address
	where  map[ike.SAID]*where
	moved  map[netip.Addr]bool // a peer said, from there, that it is there
	told   map[netip.Addr]bool // a peer said that it is there too
	heard  map[netip.Addr]bool // an authentic request came from there, for the first time
	stolen netip.AddrPort      // where the next datagram seems to come from
	asked  int                 // datagrams of strangers
	sendTo sendTo
	init   lastInit
	pool   *addresses
}

// Run carries out a plan. draw has the diagram made, which takes time.
func Run(p *Plan, h Hooks, draw bool) (out Outcome) {
	r := &run{
		plan: p, hooks: h, owner: map[netip.Addr]*simNode{}, here: map[netip.Addr]bool{}, nats: map[netip.Addr]*NAT{},
		cut: map[[2]int]bool{}, cutPath: map[[2]netip.Addr]bool{}, link: p.Link,
	}
	if draw {
		r.diagram = newDiagram(p)
	}
	defer func() {
		if e := recover(); e != nil {
			r.violate("panic: %v\n%s", e, debug.Stack())
			out = r.out
			out.Diagram = r.diagram.String()
		}
	}()
	r.out.Plan = p
	r.w = New(p.Seed)
	r.w.Quiet, r.w.sim = true, r
	r.oracle.init(r)
	for i := range p.Nodes {
		n := &simNode{i: i, run: r, rand: &fastRand{state: mix(p.Seed ^ mix(uint64(i)+77))}, token: 2 * time.Millisecond, ever: map[uint32]uint32{}}
		n.moved, n.told, n.heard = map[netip.Addr]bool{}, map[netip.Addr]bool{}, map[netip.Addr]bool{}
		r.nodes = append(r.nodes, n)
	}
	r.addAddresses()
	for _, n := range r.nodes {
		n.boot()
	}
	r.play()
	out = r.out
	out.Diagram = r.diagram.String()
	return out
}

func (r *run) violate(format string, args ...any) {
	if r.out.Violation == "" {
		r.out.Violation = fmt.Sprintf(format, args...)
		r.note("VIOLATION: %s", r.out.Violation)
	}
}

func (r *run) note(format string, args ...any) {
	if r.diagram != nil {
		r.diagram.note(r.w.Now(), fmt.Sprintf(format, args...))
	}
}

// boot gives a node an endpoint without state.
func (n *simNode) boot() {
	r := n.run
	n.life++
	life := n.life
	n.doomed = map[ike.ChildID]bool{}
	n.fail, n.token, n.counted, n.where = false, 2*time.Millisecond, 0, nil
	name := string(rune('A' + n.i))
	at := simAddr(n.i)
	if len(n.addrs) > 0 {
		at = n.addrs[0]
	}
	node, err := r.w.NewNode(name, at, func(c *ike.Config) {
		c.Owner = &watcher{c.Owner, n}
		c.Clock, c.Executor, c.Rand = simClock{n, life}, simExec{n, life}, n.rand
		c.Queues = r.plan.Machine[n.i%2]
		r.plan.defend(c)
		if r.plan.Redirect {
			c.Redirect = n.answer
		}
		if r.plan.Config {
			n.pool = r.newPool(n)
			c.Addresses = n.pool
		}
		if r.plan.Fragments {
			c.FragmentSize = 512
		}
		c.Verify = verifyKnown
		if r.plan.Crash {
			c.CrashSecret = bytes.Repeat([]byte{byte(n.i + 1)}, 32)
		}
		if r.plan.Tickets {
			c.TicketSecrets = [][]byte{bytes.Repeat([]byte{byte(n.i + 100)}, 32)}
		}
		if r.plan.Hearing {
			c.LastInbound = func(id ike.ChildID) time.Time {
				if r.traffic == nil || r.traffic.stop || n.Children[id] == nil {
					return time.Time{}
				}
				return r.w.Now().Add(n.offset)
			}
		}
		r.hooks.KeyLog(c, r.oracle.key)
	})
	if err != nil {
		panic(err)
	}
	n.Node, node.sim = node, n
	if r.plan.Puzzles != 0 && r.hooks.Junk != nil {
		r.hooks.Junk(node.Endpoint)
	}
	if n.conns == nil {
		n.conns = r.connections(n)
	}
	if err := node.Endpoint.SetPeers(n.conns); err != nil {
		panic(err)
	}
	if r.plan.mobile() {
		node.Move(n.addrs...)
	}
}

// guard wraps what happens to a node: it does not, once the node has lost its state, and later
// where the node is paused.
func (n *simNode) guard(life int, f func()) func() {
	var g func()
	g = func() {
		if n.life != life {
			return
		}
		if d := n.paused.Sub(n.run.w.Now()); d > 0 {
			n.run.w.at(d, g)
			return
		}
		n.run.touched = n
		f()
	}
	return g
}

// simClock is the clock of a node, which may be wrong.
type simClock struct {
	n    *simNode
	life int
}

func (c simClock) Now() time.Time { return c.n.run.w.Now().Add(c.n.offset) }

func (c simClock) AfterFunc(d time.Duration, f func()) func() {
	return c.n.run.w.AfterFunc(d, c.n.guard(c.life, f))
}

// simExec is the executor of a node: what is slow takes as long as its token does.
type simExec struct {
	n    *simNode
	life int
}

func (e simExec) Run(f func()) { e.n.run.w.at(0, e.n.guard(e.life, f)) }

func (e simExec) RunSlow(f func()) {
	d := e.n.token
	if d > 0 {
		d = time.Duration(e.n.rand.Uint64() % uint64(d))
	}
	e.n.run.w.at(d, e.n.guard(e.life, f))
}

// step lets the next thing happen, if it happens until end, and checks what must hold after it.
func (r *run) step(end time.Time) bool {
	f, ok := r.w.next(end)
	if !ok || r.out.Violation != "" {
		return false
	}
	if now := r.w.Now(); now.Equal(r.instant) {
		if r.busyFor++; r.busyFor > maxAtOnce {
			r.violate("more than %d things happen at one moment", maxAtOnce)
			return false
		}
	} else {
		r.instant, r.busyFor = now, 0
	}
	r.touched = nil
	f()
	if n := r.touched; n != nil {
		r.check(n)
	}
	return r.out.Violation == ""
}

func (r *run) until(end time.Time) {
	for r.step(end) {
	}
	r.w.advance(end)
}

// check looks at a node to which something happened.
func (r *run) check(n *simNode) {
	if len(n.Violations) > n.counted {
		r.violate("%s", n.Violations[n.counted])
		n.counted = len(n.Violations)
		return
	}
	v := r.hooks.Inspect(n.Endpoint)
	switch {
	case v.Broken != "":
		r.violate("%s: %s", n.Name, v.Broken)
	case v.Waiting > maxWaiting:
		r.violate("%s: %d things wait in one queue, at most %d may", n.Name, v.Waiting, maxWaiting)
	case v.Versions > maxVersions:
		r.violate("%s: an IKE SA has %d generations, at most %d may be", n.Name, v.Versions, maxVersions)
	}
	r.checkPaths(n)
	r.checkStrangers(n, &v)
	r.checkLeases(n)
}

// play carries out the plan.
func (r *run) play() {
	p := r.plan
	for _, o := range p.Ops {
		if p.Traffic && r.traffic == nil && o.At >= 5*time.Second {
			r.until(Epoch.Add(5 * time.Second))
			for i := 0; i < 60 && !r.carries(); i++ {
				r.until(r.w.Now().Add(time.Second))
			}
			if !r.isUp() { // with all that goes on it may never be quiet
				r.violate("the connection did not come up in a minute, and no datagram is lost twice")
				return
			}
			r.traffic = r.w.Traffic(r.nodes[0].Node, r.nodes[1].Node, 23*time.Millisecond)
			if p.mobile() {
				r.traffic.way = func(p ike.Path) string { return r.way(p.Local, p.Remote) }
			}
		}
		r.until(Epoch.Add(o.At)) // at once, when it took longer to come up
		if r.out.Violation != "" {
			return
		}
		r.note("%v", o)
		r.act(o)
		for _, n := range r.nodes {
			r.check(n)
		}
	}
	if r.traffic != nil {
		r.until(r.w.Now().Add(8 * time.Second))
		r.traffic.Stop()
		r.until(r.w.Now().Add(Grace))
		r.out.Packets = r.traffic.Sent
		if r.traffic.Lost > 0 {
			r.violate("%d of %d packets were lost: %v", r.traffic.Lost, r.traffic.Sent, r.traffic.Why)
		}
	}
	r.note("the links are good from now on")
	r.settle()
	r.finish()
	for _, n := range r.nodes {
		r.out.Datagrams = r.seq
		n.forget()
	}
}

// carries tells whether packets can go both ways.
func (r *run) carries() bool { return r.isUp() && !r.busy() }

func (r *run) isUp() bool { return len(r.nodes[0].Children) > 0 && len(r.nodes[1].Children) > 0 }

// settle makes everything good and waits until all nodes agree.
func (r *run) settle() {
	clear(r.cut)
	r.link, r.noUDP = Link{Delay: 5 * time.Millisecond}, false
	r.comeBack()
	for _, n := range r.nodes {
		n.fail, n.token, n.sendTo = false, 2*time.Millisecond, sendTo{}
		if d := n.paused.Sub(r.w.Now()); d > 0 {
			r.until(n.paused)
		}
	}
	end := r.w.Now().Add(r.patience())
	why := ""
	for r.out.Violation == "" {
		if !r.busy() {
			if why = r.disagree(); why == "" {
				break
			}
			if r.hostile() {
				break
			}
		}
		if !r.w.Now().Before(end) {
			if r.hostile() || r.odd() {
				break
			}
			if why == "" {
				why = "exchanges are still under way"
			}
			r.violate("no agreement %v after the links became good: %s", r.patience(), why)
			return
		}
		r.until(r.w.Now().Add(230 * time.Millisecond))
	}
	r.oracle.atRest()
	for _, n := range r.nodes {
		st := Standing{Children: map[string]int{}, Newest: map[string]int{}}
		for _, s := range n.Endpoint.Snapshot() {
			st.IKE++
			st.SPIs = append(st.SPIs, s.SPIi)
			st.Rekeyed += s.Rekeyed
			for _, c := range s.Children {
				st.Children[c.Child]++
				st.SPIs = append(st.SPIs, uint64(c.SPIIn))
				st.Newest[c.Child] = max(st.Newest[c.Child], c.Rekeyed)
			}
		}
		r.out.AtRest = append(r.out.AtRest, st)
	}
}

// patience is how long it may take until all is quiet.
func (r *run) patience() time.Duration {
	if r.plan.mobile() {
		return roamTime + r.back
	}
	return settleTime + r.back
}

// hostile tells whether nodes may break the rules.
func (r *run) hostile() bool { return r.hooks.Rewrite != nil || r.plan.Hostile() }

func (r *run) busy() bool {
	for _, n := range r.nodes {
		if r.hooks.Inspect(n.Endpoint).Busy {
			return true
		}
	}
	return false
}

// disagree says in what the nodes do not agree.
func (r *run) disagree() string {
	type half struct {
		n *simNode
		s ike.SAStatus
	}
	bySPI := map[[2]uint64][]half{}
	for _, n := range r.nodes {
		snap := n.Endpoint.Snapshot()
		children := 0
		for _, s := range snap {
			k := [2]uint64{s.SPIi, s.SPIr}
			bySPI[k] = append(bySPI[k], half{n, s})
			children += len(s.Children)
		}
		v := r.hooks.Inspect(n.Endpoint)
		if len(snap) != len(n.IKE) || v.IKE != len(n.IKE) || v.SPIs != len(n.IKE) || v.Half != 0 || v.ESP != children || children != len(n.Children) {
			return fmt.Sprintf("%s told its owner of %d IKE SAs and %d CHILD SAs, but holds %+v with %d CHILD SAs", n.Name, len(n.IKE), len(n.Children), v, children)
		}
	}
	for _, n := range r.nodes {
		for _, s := range n.Endpoint.Snapshot() {
			k := [2]uint64{s.SPIi, s.SPIr}
			hs := bySPI[k]
			if len(hs) != 2 || hs[0].n == hs[1].n || hs[0].s.State != hs[1].s.State {
				return fmt.Sprintf("%s has IKE SA %d (%x_%x), which nobody else has", n.Name, s.ID, s.SPIi, s.SPIr)
			}
			o := hs[0]
			if o.n == n {
				o = hs[1]
			}
			if why := r.apart(n, o.n, r.pathOf(n, s.ID), r.pathOf(o.n, o.s.ID)); why != "" {
				return why
			}
			if why := r.unlike(n, o.n, &s, &o.s); why != "" {
				return why
			}
			if len(o.s.Children) != len(s.Children) {
				return fmt.Sprintf("%s has %d CHILD SAs of IKE SA %x, %s has %d", n.Name, len(s.Children), s.SPIi, o.n.Name, len(o.s.Children))
			}
			queues := map[string]int{}
			for _, c := range s.Children {
				i := slices.IndexFunc(o.s.Children, func(d ike.ChildStatus) bool { return d.SPIIn == c.SPIOut && d.SPIOut == c.SPIIn })
				if i < 0 {
					return fmt.Sprintf("%s has CHILD SA %08x/%08x, %s has not its other half", n.Name, c.SPIIn, c.SPIOut, o.n.Name)
				}
				x, y := n.Children[c.ID], o.n.Children[o.s.Children[i].ID]
				if x == nil || y == nil || string(x.KeyOut) != string(y.KeyIn) || string(x.KeyIn) != string(y.KeyOut) || x.ChildSA.Child != y.ChildSA.Child {
					return fmt.Sprintf("%s and %s have different keys for CHILD SA %08x/%08x", n.Name, o.n.Name, c.SPIIn, c.SPIOut)
				}
				if q := max(r.plan.Queues[r.plan.role(n.i)%2], 1); c.Queue >= q || c.Queue > 0 && c.Child != "net" {
					return fmt.Sprintf("%s has queue %d of %s, and %d queues", n.Name, c.Queue, c.Child, q)
				}
				if queues[c.Child]++; c.Queue > 0 && queues[c.Child] > r.plan.Queues[r.plan.role(n.i)%2]+maxExtra {
					return fmt.Sprintf("%s has %d CHILD SAs of %s", n.Name, queues[c.Child], c.Child)
				}
				if !x.SendNow && !x.Switched {
					return fmt.Sprintf("%s never sends on CHILD SA %08x/%08x", n.Name, c.SPIIn, c.SPIOut)
				}
			}
		}
	}
	return ""
}

// maxExtra is how many CHILD SAs with the same selectors may stand beside those that are wanted: a
// peer may have several at any time (RFC 7296, section 2.8), and both may have begun at once.
const maxExtra = 8

// finish ends everything and expects that nothing is left.
func (r *run) finish() {
	if r.out.Violation != "" {
		return
	}
	if r.plan.CutAtEnd {
		r.note("all links are cut")
		r.link.Cut = true
	} else {
		r.note("everybody deletes everything")
		for _, n := range r.nodes {
			for _, c := range n.conns {
				n.Endpoint.Terminate(c.Name, "the end")
			}
		}
	}
	end := r.w.Now().Add(r.patience())
	for r.out.Violation == "" {
		left := ""
		for _, n := range r.nodes {
			v := r.hooks.Inspect(n.Endpoint)
			if v.IKE+v.SPIs+v.Half+v.ESP+len(n.IKE)+len(n.Children) > 0 {
				left = fmt.Sprintf("%s still holds %+v, and told its owner of %d IKE SAs and %d CHILD SAs", n.Name, v, len(n.IKE), len(n.Children))
			}
		}
		for _, n := range r.nodes {
			if n.pool != nil && len(n.pool.held) > 0 {
				left = fmt.Sprintf("%s still holds %v for its peers", n.Name, n.pool.held)
			}
			if len(n.streams) > 0 {
				left = fmt.Sprintf("%s still holds %d TCP connections", n.Name, len(n.streams))
			}
		}
		if left == "" {
			return
		}
		if !r.w.Now().Before(end) {
			r.violate("%v after the end %s", r.patience(), left)
			return
		}
		r.until(r.w.Now().Add(time.Second))
	}
}

// forget lets go of what a run needed.
func (n *simNode) forget() { n.life++ }

// fate is what chance has for one datagram.
type fate uint64

func fateOf(seed uint64, number int) fate { return fate(mix(seed ^ mix(uint64(number)+1))) }

func (f fate) chance(i int) float64 {
	return float64(mix(uint64(f)+uint64(i)*0x9e3779b97f4a7c15)>>11) / (1 << 53)
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// fastRand is the random source of a node: good for tests only.
type fastRand struct{ state uint64 }

func (r *fastRand) Uint64() uint64 {
	r.state += 0x9e3779b97f4a7c15
	return mix(r.state)
}

func (r *fastRand) Read(p []byte) (int, error) {
	var v uint64
	for i := range p {
		if i%8 == 0 {
			v = r.Uint64()
		}
		p[i] = byte(v >> (i % 8 * 8))
	}
	return len(p), nil
}

// advance sets the clock to end, when nothing happens before.
func (w *World) advance(end time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if end.After(w.now) {
		w.now = end
	}
}

func jump(ms int64) time.Duration {
	return time.Duration(min(max(ms, math.MinInt32), math.MaxInt32)) * time.Millisecond
}
