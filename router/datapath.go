package router

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"wardgate/policy"
	"wardgate/router/wire"
	"wardgate/tun"
)

// Space in front of and behind an inner packet that lies alone, in octets: in front the ESP header
// with the longest IV (16) and the virtio header that the TUN wants, behind padding, trailer and
// the longest ICV (32).
const (
	headroom = 64
	tailroom = 96
)

// ruleset is the policy in force as the data path sees it. It is read-only and swapped as a
// whole; gen grows with every swap, so that flows allowed under an older one are judged anew.
type ruleset struct {
	gen   uint64
	table *policy.Table // nil: nothing is allowed
	conns []*connection // by Decision.Conn
	index map[*connection]int
}

// datapath is what all workers share: tables that are read without a lock, and the ways to the
// rest of the router. Whatever a worker writes for every packet is its own (see worker).
type datapath struct {
	start   time.Time
	rules   atomic.Pointer[ruleset]
	flows   *flowTable
	sad     *sad
	refuse  func(refusedPacket) // records a refusal; must not block
	wake    func(*connection)   // starts IKE for a connection; must not block
	switch_ func(*childSA)      // the first packet came in on a pending CHILD SA
	rekey   func(*childSA)      // the soft limit of a CHILD SA is reached
	ike     func(g *wire.Group, d *wire.Datagram, msg []byte)

	queues []*tunWriter

	ringDrops atomic.Uint64 // packets that the kernel dropped because the TUN's ring was full, see fairness

	mu      sync.Mutex // guards workers
	workers []*worker
}

// worker is what every worker has for itself: the counters it writes lie on cache lines that no
// other queue writes.
type worker struct {
	*datapath
	queue int // of the TUN and of the sockets
	shard int // of connection.traffic
	w     *tunWriter
	cache flowCache

	_     [64]byte
	drops dropCounters
	count queueCounters
	_     [64]byte
}

// queueCounters are one worker's.
type queueCounters struct {
	packetsIn, bytesIn   atomic.Uint64 // inner packets
	packetsOut, bytesOut atomic.Uint64
	rounds               atomic.Uint64 // times that the worker took what was there
}

// newWorker makes worker number queue of one direction; shard is where it counts the traffic of
// connections.
func (d *datapath) newWorker(queue, shard int) *worker {
	w := &worker{datapath: d, queue: queue, shard: shard, w: d.queues[queue%len(d.queues)]}
	d.mu.Lock()
	d.workers = append(d.workers, w)
	d.mu.Unlock()
	return w
}

func (d *datapath) allWorkers() []*worker {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.workers[:len(d.workers):len(d.workers)]
}

// dropped sums the drops of all workers by name.
func (d *datapath) dropped() map[string]uint64 {
	m := make(map[string]uint64)
	for _, w := range d.allWorkers() {
		w.drops.addTo(m)
	}
	return m
}

// shards is how many shards connections count in: one a queue, and one for the flusher.
func (d *datapath) shards() int { return len(d.queues) + 1 }

// tunWriter is the writing half of a TUN queue. The sockets of several families share a queue.
type tunWriter struct {
	mu sync.Mutex
	q  tun.Queue
}

// write returns how many packets were not taken.
func (w *tunWriter) write(pkts []tun.Packet) (failed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.q.WriteBatch(pkts)
	if err == nil {
		return 0
	}
	return len(pkts) - n
}

// now is the time since the start on the monotonic clock, in nanoseconds.
func (d *datapath) now() int64 { return int64(time.Since(d.start)) }

// refusedPacket is a packet that was not let through, for the record.
type refusedPacket struct {
	reason string
	dir    direction
	conn   string
	src    netip.Addr
	dst    netip.Addr
	proto  uint8
	sport  uint16
	dport  uint16
	where  string // "tunnel": the daemon; "kernel": nftables
}

// verdict is the outcome of judging a packet.
type verdict struct {
	flow *flow
	drop dropReason // dropNone: let through
	// policyReason is the policy's own word for dropPolicy.
	policyReason policy.Reason
	conn         *connection // where it is known even though the packet is dropped
}

// judge decides about a packet that goes in direction dir. via is the connection on whose SA an
// inbound packet came, nil for outbound. cache is the worker's own.
func (d *datapath) judge(b []byte, p *packet, dir direction, via *connection, rs *ruleset, cache *flowCache, sec int64) verdict {
	if p.fragment && !p.first {
		f := d.flows.fragmentFlow(p, dir, sec)
		if f == nil || f.gen != rs.gen || dir == inbound && f.conn != via {
			return verdict{drop: dropFragment, conn: via}
		}
		f.touch(sec)
		return verdict{flow: f}
	}
	if p.icmpError {
		return d.judgeError(b, p, dir, via, rs, sec)
	}
	k := keyOf(p, dir)
	if f := cache.get(&k, rs.gen); f != nil && (dir == outbound || f.conn == via) {
		f.touch(sec)
		d.noteState(b, p, f, dir, sec)
		return verdict{flow: f}
	}
	h := d.flows.hash(&k)
	f := d.flows.lookup(&k, h)
	if f != nil && f.gen != rs.gen {
		f = d.renew(f, p, h, dir, rs)
	}
	if f != nil && (dir == outbound || f.conn == via) {
		f.touch(sec)
		cache.put(f)
		d.noteState(b, p, f, dir, sec)
		return verdict{flow: f}
	}
	if rs.table == nil {
		return verdict{drop: dropNoPolicy, conn: via}
	}
	var dec policy.Decision
	idx := -1
	if dir == inbound {
		var ok bool
		if idx, ok = rs.index[via]; !ok {
			// the connection is gone from the policy; its SA goes in a moment
			return verdict{drop: dropNoPolicy, conn: via}
		}
	}
	if dir == outbound {
		dec = rs.table.Outbound(policyFlow(p))
	} else {
		dec = rs.table.Inbound(idx, policyFlow(p))
	}
	if !dec.Allow && !dec.Reply {
		v := verdict{drop: dropPolicy, policyReason: dec.Reason, conn: via}
		if v.conn == nil && dec.Conn >= 0 && dec.Conn < len(rs.conns) {
			v.conn = rs.conns[dec.Conn]
		}
		return v
	}
	conn := rs.conns[dec.Conn]
	if !dec.Allow || p.icmpReply {
		// allowed only as the answer in a flow that the other side opened, and there is none
		return verdict{drop: dropNoState, conn: conn}
	}
	f = &flow{key: k, conn: conn, gen: rs.gen, opener: dir, rule: dec.Rule}
	f.lastSeen.Store(sec)
	f = d.flows.insert(f, h)
	cache.put(f)
	d.noteState(b, p, f, dir, sec)
	return verdict{flow: f}
}

// renew takes a flow that an earlier policy allowed into the one in force, where p is an answer in it:
// the answer is as good as what it answers, which may not come again for a long time. nil: the flow
// is not allowed any more, not by the same connection, or p is from its opener and is judged by itself.
func (d *datapath) renew(f *flow, p *packet, h uint64, dir direction, rs *ruleset) *flow {
	if rs.table == nil || dir == f.opener || f.dead.Load() {
		return nil
	}
	var dec policy.Decision
	if f.opener == outbound {
		dec = rs.table.Outbound(openingFlow(p))
	} else {
		idx, ok := rs.index[f.conn]
		if !ok {
			return nil
		}
		dec = rs.table.Inbound(idx, openingFlow(p))
	}
	if !dec.Allow || rs.conns[dec.Conn] != f.conn {
		return nil
	}
	next := &flow{key: f.key, conn: f.conn, gen: rs.gen, opener: f.opener, rule: dec.Rule}
	next.lastSeen.Store(f.lastSeen.Load())
	next.closing.Store(f.closing.Load())
	return d.flows.insert(next, h)
}

// openingFlow is the flow that p is an answer in, as its opener's packets have it.
func openingFlow(p *packet) policy.Flow {
	if p.icmpReply {
		return policy.OpeningFlow(p.dst, p.src, p.proto, 0) // the request, whose type is another
	}
	return policy.Flow{Src: p.dst, Dst: p.src, Proto: p.proto, SrcPort: p.dstPort, DstPort: p.srcPort, NoPorts: p.noPorts}
}

// judgeError lets an ICMP error through when it is about a packet of a flow that is known: the
// quoted packet went the other way (RFC 5508, section 4).
func (d *datapath) judgeError(b []byte, p *packet, dir direction, via *connection, rs *ruleset, sec int64) verdict {
	var q packet
	if p.embedded > len(b) || q.parseEmbedded(b[p.embedded:]) != nil || q.noPorts {
		return verdict{drop: dropMalformed, conn: via}
	}
	// The error goes to the sender of the quoted packet.
	if q.src != p.dst {
		return verdict{drop: dropNoState, conn: via}
	}
	k := keyOf(&q, 1-dir)
	f := d.flows.lookup(&k, d.flows.hash(&k))
	if f == nil || f.gen != rs.gen || dir == inbound && f.conn != via {
		return verdict{drop: dropNoState, conn: via}
	}
	// It may come from any router on the way, as long as the selectors of the SA cover that
	// router's address: child.covers is asked for every packet in both directions.
	return verdict{flow: f}
}

// noteState keeps the state of a flow that later packets are judged by.
func (d *datapath) noteState(b []byte, p *packet, f *flow, dir direction, sec int64) {
	if p.fragment {
		d.flows.noteFragment(p, dir, f, sec)
	}
	if p.proto == protoTCP && b[p.headerLen+13]&(tcpFIN|tcpRST) != 0 {
		f.closing.Store(true)
	}
}

func policyFlow(p *packet) policy.Flow {
	return policy.Flow{Src: p.src, Dst: p.dst, Proto: p.proto, SrcPort: p.srcPort, DstPort: p.dstPort, NoPorts: p.noPorts}
}

// note counts n packets that were not let through, and records the refusal.
func (w *worker) note(v verdict, p *packet, dir direction, n int) {
	if v.drop == dropPolicy {
		w.drops.addPolicy(v.policyReason, n)
	} else {
		w.drops.add(v.drop, n)
	}
	if !v.drop.recorded() {
		return
	}
	r := refusedPacket{
		reason: v.drop.String(), dir: dir, src: p.src, dst: p.dst, proto: p.proto,
		sport: p.srcPort, dport: p.dstPort, where: "tunnel",
	}
	if v.drop == dropPolicy {
		r.reason = v.policyReason.String()
	}
	if v.conn != nil {
		r.conn = v.conn.name
	}
	w.refuse(r)
}

// rekeyOnce asks IKE for a successor of child, once.
func (d *datapath) rekeyOnce(child *childSA) {
	if child.asked.CompareAndSwap(false, true) {
		d.rekey(child)
	}
}

// coversFlow tells whether the selectors of c allow packet p, on its way out, of flow f. The
// answer is the same for all packets of a flow that show their ports, so it is found once.
func (c *childSA) coversFlow(f *flow, p *packet) bool {
	if p.fragment || p.icmpError {
		return c.covers(p, outbound)
	}
	if f.coveredOut.Load() == c {
		return true
	}
	if !c.covers(p, outbound) {
		return false
	}
	f.coveredOut.Store(c)
	return true
}
