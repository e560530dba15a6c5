package pathmtu

import (
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of an MTU, in octets.
const (
	MinIPv4 = 68   // RFC 791, section 3.2: every link carries this
	MinIPv6 = 1280 // RFC 8200, section 5: likewise
	maxMTU  = 65535
)

const (
	// DefaultFloor4 is what every IPv4 host can receive (RFC 791, section 3.1). RFC 1191 allows 68,
	// but a path of 68 octets is an attack (RFC 4301, section 6.1.1: "a trivial size").
	DefaultFloor4 = 576
	// DefaultRaiseAfter: RFC 1191, section 6.3; RFC 8899, section 5.1.1 (PMTU_RAISE_TIMER).
	DefaultRaiseAfter = 10 * time.Minute
	// minRaiseAfter: RFC 1191, section 3 and RFC 8201, section 4: MUST NOT be tried earlier.
	minRaiseAfter = 5 * time.Minute
	// DefaultWindow is how many packets ago the quoted packet may have been sent. At a million
	// packets a second 2^20 is one second, longer than the way there and back; 2^16 would be
	// shorter than many, and then a fast flow would never believe any router. Who forges has to
	// guess 32 bits of the SPI and 12 of the sequence number.
	DefaultWindow = 1 << 20
	// DefaultProbeTimeout is when a probe without a result counts as lost.
	DefaultProbeTimeout = 30 * time.Second

	icmpBurst    = 8           // believed ICMP messages in a row
	icmpInterval = time.Second // and then one in this time
)

// Config is what a Path is made from. The zero value of each field but Link is its default.
type Config struct {
	// V6: the outer packets are IPv6.
	V6 bool
	// Link is the MTU, in octets, of the link that the route to the peer uses.
	Link int
	// Floor is the MTU below which no ICMP message takes the path; DefaultFloor4, MinIPv6.
	// Less than MinIPv4, for V6 MinIPv6, counts as that.
	Floor int
	// RaiseAfter is how long a lowered MTU stands; DefaultRaiseAfter. At least five minutes;
	// negative: for ever (RFC 1191, section 6.3).
	RaiseAfter time.Duration
	// Window is how many packets ago the packet that an ICMP message quotes may have been sent;
	// DefaultWindow.
	Window uint32
	// ProbeTimeout is how long a probe may be without a result; DefaultProbeTimeout.
	ProbeTimeout time.Duration
}

// Path is the path MTU to one peer's address. All methods may be called by several goroutines at
// once; MTU costs one atomic load.
type Path struct {
	mtu atomic.Uint32 // written under mu

	// Immutable.
	v6           bool
	floor        int
	raiseAfter   time.Duration // 0: never
	window       uint32
	probeTimeout time.Duration

	mu      sync.Mutex // guards what follows
	link    int
	raiseAt time.Time // when the MTU is to be tried again; zero: never

	tokens    int // of icmpBurst
	filled    time.Time
	lowered   time.Time // by an ICMP message
	suspected time.Time // last time that a doubt began a round of probes
	search    search
}

// New makes a Path with the MTU of the link.
func New(c Config) *Path {
	p := &Path{v6: c.V6, floor: c.Floor, raiseAfter: c.RaiseAfter, window: c.Window, probeTimeout: c.ProbeTimeout}
	if p.floor == 0 && !c.V6 {
		p.floor = DefaultFloor4
	}
	p.floor = min(max(p.floor, p.least()), maxMTU)
	switch {
	case p.raiseAfter == 0:
		p.raiseAfter = DefaultRaiseAfter
	case p.raiseAfter < 0:
		p.raiseAfter = 0
	default:
		p.raiseAfter = max(p.raiseAfter, minRaiseAfter)
	}
	if p.window == 0 {
		p.window = DefaultWindow
	}
	if p.probeTimeout <= 0 {
		p.probeTimeout = DefaultProbeTimeout
	}
	p.reset(c.Link)
	return p
}

// MTU returns the length in octets of the longest outer IP packet, IP header included, that is to
// be sent on the path in one piece.
func (p *Path) MTU() int { return int(p.mtu.Load()) }

// Link returns the MTU of the link, in octets.
func (p *Path) Link() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link
}

func (p *Path) least() int {
	if p.v6 {
		return MinIPv6
	}
	return MinIPv4
}

// set stores the MTU and reports whether it is another one.
func (p *Path) set(mtu int) bool {
	return p.mtu.Swap(uint32(mtu)) != uint32(mtu)
}

func (p *Path) reset(link int) {
	p.link = min(max(link, p.least()), maxMTU)
	p.set(p.link)
	p.raiseAt, p.lowered, p.suspected = time.Time{}, time.Time{}, time.Time{}
	p.tokens, p.filled = icmpBurst, time.Time{}
}

// later is the time at which a lowered MTU is tried again.
func (p *Path) later(now time.Time) time.Time {
	if p.raiseAfter == 0 {
		return time.Time{}
	}
	return now.Add(p.raiseAfter)
}

// Reset forgets what was learnt, because the path is another one: the peer has another address,
// or the route leaves by another link, which has the given MTU in octets. It reports whether the
// MTU changed.
func (p *Path) Reset(link int, now time.Time) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.MTU()
	p.reset(link)
	p.search.hint = 0
	p.search.restart(now)
	return p.MTU() != old
}

// SetLink tells that the MTU of the link that the route uses is so many octets now. What routers
// further away said stays. It reports whether the path's MTU changed.
func (p *Path) SetLink(link int, now time.Time) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	link = min(max(link, p.least()), maxMTU)
	old, cur := p.link, p.MTU()
	p.link = link
	linkBound := cur == old // nothing but the link held the path down
	switch {
	case link == old:
	case link < cur:
		changed = p.set(link)
		p.search.restart(now)
	case p.search.state == Search, p.search.state != Off && linkBound:
		p.search.upward(p, now) // a peer that answers is asked first
	case linkBound:
		changed = p.set(link)
	}
	if p.MTU() == link {
		p.raiseAt = time.Time{}
	}
	return changed
}

// LocalTooBig tells that the own kernel refused a packet with EMSGSIZE, because the link's MTU is
// mtu octets. This is trusted, below the floor as well.
//
// It must be the kernel's own opinion, so of a socket that ignores the kernel's path MTU cache,
// which any ICMP message may fill (IP_PMTUDISC_PROBE; with IP_PMTUDISC_DO even SO_EE_ORIGIN_LOCAL
// quotes that cache), and that does not report ICMP errors (no IP_RECVERR: an EMSGSIZE may be the
// echo of an ICMP message then). Such a socket's EMSGSIZE tells no MTU: ask the route's link.
func (p *Path) LocalTooBig(mtu int, now time.Time) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if mtu < p.least() || mtu >= p.MTU() {
		return false
	}
	p.link = mtu
	changed = p.set(mtu)
	p.search.restart(now)
	return changed
}

// Quote is what an ICMP message quotes of the packet that it is about, and what the SA with the
// quoted SPI knows. A message whose SPI belongs to no SA is not handed to the Path at all.
type Quote struct {
	// HasSeq: the quotation reaches to the ESP sequence number. RFC 792 asks for 8 octets behind
	// the IP header only: with ESP in UDP that is the UDP header, which anybody can guess.
	HasSeq bool
	Seq    uint32 // ESP sequence number, low 32 bits
	Last   uint64 // last sequence number that the SA has sent
	Len    int    // total length of the quoted outer packet, octets; 0: not known
}

// recent reports whether the quoted packet is one of the last n that were sent.
func (q *Quote) recent(n uint32) bool {
	ago := uint32(q.Last) - q.Seq // modulo 2^32, which is right for extended sequence numbers
	return ago < n && uint64(ago) < q.Last
}

// Verdict is what became of an ICMP message.
type Verdict uint8

const (
	// Lowered: the MTU is what the message says (for an old-style message: the next plateau).
	Lowered Verdict = iota
	// LoweredToFloor: the message says less than the floor; the MTU is the floor. Longer outer
	// packets than the message's MTU may be lost: worth a line to the administrator.
	LoweredToFloor
	// Unproved: the quotation is too short to tell whether the packet was ours. Nothing changed,
	// but a peer that answers probes will be asked.
	Unproved
	// NotSent: no packet that was sent lately is quoted.
	NotSent
	// NotSmaller: the MTU is not less than the one in use; the packet was sent before it was lowered.
	NotSmaller
	// Impossible: an MTU that no link has, or that the quoted packet fits.
	Impossible
	// RateLimited: too many in a short time. Routers repeat themselves.
	RateLimited
)

var verdicts = [...]string{"lowered", "lowered to the floor", "unproved", "not sent", "not smaller", "impossible", "rate limited"}

func (v Verdict) String() string {
	if int(v) < len(verdicts) {
		return verdicts[v]
	}
	return "unknown verdict"
}

// Changed reports whether the path's MTU was lowered.
func (v Verdict) Changed() bool { return v == Lowered || v == LoweredToFloor }

// TooBig takes an ICMP "fragmentation needed" (type 3 code 4) or ICMPv6 "packet too big" (type 2)
// that quotes an ESP packet of this path. mtu is the message's MTU in octets, 0 if it has none.
func (p *Path) TooBig(q Quote, mtu int, now time.Time) Verdict {
	if q.HasSeq && !q.recent(p.window) {
		return NotSent // before the lock: a flood of forgeries holds up nobody
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	cur := p.MTU()
	old := mtu == 0 && !p.v6
	if old {
		mtu = p.oldStyle(q.Len, cur)
	}
	switch {
	case mtu < p.least():
		// RFC 8201, section 4: must discard. RFC 791: no link has less than 68.
		return Impossible
	case q.Len != 0 && q.Len <= mtu:
		return Impossible
	}
	target := max(mtu, p.floor)
	if target >= cur {
		return NotSmaller // RFC 1191, section 3; RFC 8201, section 4: never an increase
	}
	if !q.HasSeq {
		p.search.suspect(p, target, now)
		return Unproved
	}
	if old && q.Len == 0 && !p.lowered.IsZero() && now.Sub(p.lowered) < icmpInterval {
		// Nothing says which length was too long, so all that were on the way when the MTU was
		// lowered would each lower it by one more step.
		return RateLimited
	}
	if !p.allow(now) {
		return RateLimited
	}
	p.set(target)
	p.lowered, p.raiseAt = now, p.later(now)
	p.search.restart(now)
	if mtu < p.floor {
		return LoweredToFloor
	}
	return Lowered
}

// oldStyle returns the MTU that a message without one stands for (RFC 1191, section 5): the
// greatest plateau below the length of the packet that was too long, which some routers give with
// the header counted twice.
func (p *Path) oldStyle(length, cur int) int {
	if length == 0 {
		return max(p.floor, plateauBelow(cur))
	}
	if length >= cur {
		length -= 20
	}
	return max(p.floor, plateauBelow(length))
}

// allow takes a token for one message that is about to be believed. Those that are not believed
// take none, so that a flood of them does not hide a true one.
func (p *Path) allow(now time.Time) bool {
	if n := int64(now.Sub(p.filled) / icmpInterval); n > 0 {
		p.tokens = int(min(int64(p.tokens)+n, icmpBurst))
		p.filled = now
	}
	if p.tokens == 0 {
		return false
	}
	p.tokens--
	return true
}

// Tick does what is due at now, and reports whether the MTU changed. Calling it too often or too
// late does no harm.
func (p *Path) Tick(now time.Time) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tick(now)
}

func (p *Path) tick(now time.Time) (changed bool) {
	if p.search.state != Off {
		return p.search.tick(p, now)
	}
	if p.raiseAt.IsZero() || now.Before(p.raiseAt) {
		return false
	}
	// Back to the link's MTU at once (RFC 1191, section 6.3; RFC 4301, section 8.2.2), not plateau
	// by plateau: every step that is too long costs the same lost packets and the same ten minutes.
	p.raiseAt = time.Time{}
	return p.set(p.link)
}

// Next returns when Tick or NeedProbe will have something to do; zero if nothing is due.
func (p *Path) Next() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.search.state != Off {
		return p.search.next(p)
	}
	return p.raiseAt
}
