package router

import (
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"wardgate/ike"
)

// Bounds of the record of refused packets. A scan or a flood must not fill the disk, and must not
// slow the workers: beyond refusalBudget packets a second only counters count; of the rest, the
// first of each kind is recorded at once and the others with their number when the window ends.
const (
	refusalBudget = 2000
	refusalKinds  = 512
	refusalWindow = 10 * time.Second
	refusalQueue  = 256
)

// refusalKind is what refused packets have in common when they are counted together.
type refusalKind struct {
	where, reason, conn string
	dir                 direction
	src, dst            netip.Addr
	proto               uint8
	port                uint16
}

// refusalRecord is one line for the audit record: n packets of one kind.
type refusalRecord struct {
	refusalKind
	n     uint64
	first time.Time
	last  time.Time
}

// refusals gathers refused packets and hands them on, bounded.
type refusals struct {
	budget atomic.Int64
	missed atomic.Uint64

	mu    sync.Mutex // guards kinds
	kinds map[refusalKind]*refusalRecord

	out chan refusalRecord
	now func() time.Time
}

func newRefusals(now func() time.Time) *refusals {
	r := &refusals{kinds: make(map[refusalKind]*refusalRecord), out: make(chan refusalRecord, refusalQueue), now: now}
	r.budget.Store(refusalBudget)
	return r
}

// note takes one refused packet. It never blocks.
func (r *refusals) note(p refusedPacket) {
	if r.budget.Add(-1) < 0 {
		r.missed.Add(1)
		return
	}
	k := refusalKind{p.where, p.reason, p.conn, p.dir, p.src, p.dst, p.proto, p.dport}
	now := r.now()
	r.mu.Lock()
	rec := r.kinds[k]
	if rec != nil {
		rec.n++
		rec.last = now
		r.mu.Unlock()
		return
	}
	if len(r.kinds) >= refusalKinds {
		r.mu.Unlock()
		r.missed.Add(1)
		return
	}
	// n counts what is not yet recorded; this one is, below
	r.kinds[k] = &refusalRecord{refusalKind: k, first: now, last: now}
	r.mu.Unlock()
	select {
	case r.out <- refusalRecord{refusalKind: k, n: 1, first: now, last: now}:
	default:
		r.missed.Add(1)
	}
}

// refill is called once a second.
func (r *refusals) refill() { r.budget.Store(refusalBudget) }

// flush returns what has been counted since the last call and forgets the kinds that are over.
func (r *refusals) flush() (recs []refusalRecord, missed uint64) {
	now := r.now()
	r.mu.Lock()
	for k, rec := range r.kinds {
		if rec.n > 0 {
			recs = append(recs, *rec)
			rec.n, rec.first = 0, now
		} else if now.Sub(rec.last) > refusalWindow {
			delete(r.kinds, k)
		}
	}
	r.mu.Unlock()
	return recs, r.missed.Swap(0)
}

func protoName(p uint8) string {
	switch p {
	case protoICMP:
		return "icmp"
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	case protoICMPv6:
		return "icmpv6"
	}
	return strconv.Itoa(int(p))
}

// target names what the packet was for: "10.1.2.10 tcp/104".
func (k refusalKind) target() string {
	s := fmt.Sprintf("%s %s", k.dst, protoName(k.proto))
	if k.proto == protoTCP || k.proto == protoUDP {
		s += "/" + strconv.Itoa(int(k.port))
	}
	return s
}

// ikeRefusals counts what IKE refused, by code, and bounds how much of it is recorded singly: a
// stranger must not be able to fill the disk.
type ikeRefusals struct {
	mu     sync.Mutex // guards what follows
	codes  map[ike.Code]*ikeRefused
	recent map[ikeRefusalKind]time.Time
	second int64
	budget int
}

type ikeRefusalKind struct {
	code ike.Code
	peer string
	from netip.Addr
}

type ikeRefused struct {
	n       uint64
	last    time.Time
	example string
}

// ikeRefusalsPerSecond bounds the records of refused authentications; one code of one address is
// recorded once in refusalWindow.
const ikeRefusalsPerSecond = 20

// note counts f and tells whether it is to be recorded singly.
func (r *ikeRefusals) note(f *ike.Refusal, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.codes == nil {
		r.codes, r.recent = make(map[ike.Code]*ikeRefused), make(map[ikeRefusalKind]time.Time)
	}
	c := r.codes[f.Code]
	if c == nil {
		c = &ikeRefused{}
		r.codes[f.Code] = c
	}
	c.n++
	c.last, c.example = now, f.Remote.String()
	if s := now.Unix(); s != r.second {
		r.second, r.budget = s, ikeRefusalsPerSecond
		for k, at := range r.recent {
			if now.Sub(at) > refusalWindow {
				delete(r.recent, k)
			}
		}
	}
	k := ikeRefusalKind{f.Code, f.Peer, f.Remote.Addr()}
	if _, seen := r.recent[k]; seen || r.budget <= 0 {
		return false
	}
	r.budget--
	r.recent[k] = now
	return true
}
