package router

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"sync"
	"sync/atomic"
)

// direction tells who opened a flow, or which way a packet goes.
type direction uint8

const (
	outbound direction = iota // from a local zone into a tunnel
	inbound                   // out of a tunnel into a local zone
)

func (d direction) String() string {
	if d == inbound {
		return "in"
	}
	return "out"
}

// flowKey names a flow the same way for both of its directions: by its remote and its local end.
// IPv4 addresses are held in their IPv6-mapped form; an IPv6 packet with such an address has been
// refused by packet.parse. It holds no pointer, so that the garbage collector has no work with
// the table.
type flowKey struct {
	remote, local         [16]byte
	remotePort, localPort uint16
	proto                 uint8
}

// keyOf makes the key of a packet that goes in direction dir.
func keyOf(p *packet, dir direction) flowKey {
	k := flowKey{proto: p.proto}
	sp, dp := p.srcPort, p.dstPort
	if p.proto == protoICMP || p.proto == protoICMPv6 {
		if p.icmpEcho {
			// An echo and its reply share the identifier, which stands at the end that asked:
			// two hosts that ping each other with one identifier are two flows.
			sp, dp = p.icmpID, 0
			if p.icmpReply {
				sp, dp = dp, sp
			}
		} else {
			// other messages stand alone; 255 is reserved by IANA, so none can meet an echo
			sp, dp = p.srcPort<<8|p.dstPort, p.srcPort<<8|p.dstPort
			k.proto = 255
		}
	}
	if dir == outbound {
		k.local, k.remote = p.src.As16(), p.dst.As16()
		k.localPort, k.remotePort = sp, dp
	} else {
		k.local, k.remote = p.dst.As16(), p.src.As16()
		k.localPort, k.remotePort = dp, sp
	}
	return k
}

// flow is one tracked flow.
type flow struct {
	key    flowKey
	conn   *connection
	gen    uint64    // policy generation that allowed it
	opener direction // who opened it
	rule   int

	// coveredOut and coveredIn are the CHILD SAs whose selectors were found to cover the flow.
	coveredOut, coveredIn atomic.Pointer[childSA]

	lastSeen atomic.Int64 // seconds on the router's clock
	closing  atomic.Bool  // TCP: FIN or RST was seen
	dead     atomic.Bool  // taken out of the table; caches must forget it
}

// Idle times after which a flow is forgotten, in seconds: RFC 5382 REQ-5 (TCP: 2 hours 4
// minutes), RFC 4787 REQ-5 (UDP: 5 minutes), RFC 5508 REQ-2 (ICMP: 60 seconds).
const (
	tcpIdle     = 2*3600 + 4*60
	tcpClosing  = 4 * 60
	udpIdle     = 5 * 60
	icmpIdle    = 60
	otherIdle   = 10 * 60
	flowShards  = 64
	cacheSize   = 1 << cacheBits
	cacheBits   = 15
	maxFragSets = 4096
	fragIdle    = 30 // RFC 8200, section 4.5: 60 s to reassemble; later fragments come at once
)

func (f *flow) idleLimit() int64 {
	switch f.key.proto {
	case protoTCP:
		if f.closing.Load() {
			return tcpClosing
		}
		return tcpIdle
	case protoUDP, protoUDPLite:
		return udpIdle
	case protoICMP, protoICMPv6, 255:
		return icmpIdle
	}
	return otherIdle
}

// flowTable remembers the flows that the policy has allowed, so that replies are let through as
// replies only (a rule names who may open a flow), and so that the policy is asked once a flow.
// It is bounded: when a shard is full, the longest-idle of a sample makes room.
type flowTable struct {
	seed   maphash.Seed
	limit  int // flows a shard
	shards [flowShards]flowShard

	fragMu sync.Mutex
	frags  map[fragKey]fragEntry
}

type flowShard struct {
	mu sync.Mutex
	m  map[flowKey]*flow // guarded by mu
	_  [40]byte          // keeps shards of two workers off one cache line
}

type fragKey struct {
	src, dst [16]byte
	id       uint32
	dir      direction
}

type fragEntry struct {
	flow *flow
	at   int64
}

func newFlowTable(limit int) *flowTable {
	t := &flowTable{seed: maphash.MakeSeed(), limit: max(limit/flowShards, 16), frags: make(map[fragKey]fragEntry)}
	for i := range t.shards {
		t.shards[i].m = make(map[flowKey]*flow)
	}
	return t
}

// hash mixes the key; seeded, so that a peer cannot aim at one shard.
func (t *flowTable) hash(k *flowKey) uint64 { return maphash.Comparable(t.seed, *k) }

func (t *flowTable) lookup(k *flowKey, h uint64) *flow {
	s := &t.shards[h%flowShards]
	s.mu.Lock()
	f := s.m[*k]
	s.mu.Unlock()
	return f
}

// insert adds f, or returns the flow that another worker added meanwhile under the same policy
// generation.
func (t *flowTable) insert(f *flow, h uint64) *flow {
	s := &t.shards[h%flowShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.m[f.key]; old != nil {
		if old.gen == f.gen && old.opener == f.opener && !old.dead.Load() {
			return old
		}
		old.dead.Store(true)
	} else if len(s.m) >= t.limit {
		var victim *flow
		n := 0
		for _, c := range s.m { // map order is random: a sample
			if victim == nil || c.lastSeen.Load() < victim.lastSeen.Load() {
				victim = c
			}
			if n++; n == 16 {
				break
			}
		}
		victim.dead.Store(true)
		delete(s.m, victim.key)
	}
	s.m[f.key] = f
	return f
}

// sweep forgets flows that have been idle for too long; now is in seconds.
func (t *flowTable) sweep(now int64) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for k, f := range s.m {
			if now-f.lastSeen.Load() > f.idleLimit() {
				f.dead.Store(true)
				delete(s.m, k)
			}
		}
		s.mu.Unlock()
	}
	t.fragMu.Lock()
	for k, e := range t.frags {
		if now-e.at > fragIdle {
			delete(t.frags, k)
		}
	}
	t.fragMu.Unlock()
}

func (t *flowTable) len() int {
	n := 0
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		n += len(s.m)
		s.mu.Unlock()
	}
	return n
}

func fragKeyOf(p *packet, dir direction) fragKey {
	return fragKey{src: p.src.As16(), dst: p.dst.As16(), id: p.fragID, dir: dir}
}

// noteFragment remembers that the fragments that follow p belong to flow f.
func (t *flowTable) noteFragment(p *packet, dir direction, f *flow, now int64) {
	t.fragMu.Lock()
	defer t.fragMu.Unlock()
	if len(t.frags) >= maxFragSets {
		for k := range t.frags {
			delete(t.frags, k)
			break
		}
	}
	t.frags[fragKeyOf(p, dir)] = fragEntry{f, now}
}

// fragmentFlow returns the flow whose first fragment came before p, or nil.
func (t *flowTable) fragmentFlow(p *packet, dir direction, now int64) *flow {
	t.fragMu.Lock()
	defer t.fragMu.Unlock()
	e, ok := t.frags[fragKeyOf(p, dir)]
	if !ok || now-e.at > fragIdle || e.flow.dead.Load() {
		return nil
	}
	return e.flow
}

// flowCache is one worker's own memory of recent flows: a hit costs no lock and touches nothing
// that another worker writes, but for the flow's time stamp once a second.
type flowCache struct {
	slots [cacheSize]*flow
}

// cacheSlot picks the slot of a key by mixing its words; collisions only cost a look-up.
func cacheSlot(k *flowKey) int {
	h := binary.LittleEndian.Uint64(k.remote[8:]) ^ bits.RotateLeft64(binary.LittleEndian.Uint64(k.local[8:]), 29)
	h ^= uint64(k.remotePort)<<32 | uint64(k.localPort)<<16 | uint64(k.proto)
	h *= 0x9e3779b97f4a7c15
	return int(h >> (64 - cacheBits))
}

func (c *flowCache) get(k *flowKey, gen uint64) *flow {
	f := c.slots[cacheSlot(k)]
	if f == nil || f.gen != gen || f.key != *k || f.dead.Load() {
		return nil
	}
	return f
}

func (c *flowCache) put(f *flow) { c.slots[cacheSlot(&f.key)] = f }

// touch notes that f was seen at now (seconds); it writes only when the second has changed.
func (f *flow) touch(now int64) {
	if f.lastSeen.Load() != now {
		f.lastSeen.Store(now)
	}
}
