package ike

import (
	"fmt"
	"maps"
	"net/netip"

	"wardgate/ike/message"
)

// Glimpse is what an endpoint holds, for the simulator (iketest.View).
type Glimpse struct {
	IKE, Up, SPIs, Half int
	HalfAt              map[netip.Addr]int
	ESP                 int
	Waiting, Versions   int
	Busy                bool
	Broken              string
}

// Inspect looks at everything that an endpoint holds.
func (ep *Endpoint) Inspect() (v Glimpse) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	v.IKE, v.SPIs, v.Half, v.ESP = len(ep.boxes), len(ep.spis), len(ep.half), len(ep.espSPIs)
	if len(ep.halfAddr) > 0 {
		v.HalfAt = maps.Clone(ep.halfAddr)
	}
	for _, b := range ep.boxes {
		b.step.Lock()
		b.inspect(&v)
		b.step.Unlock()
	}
	if len(ep.half) > ep.cfg.MaxHalfOpen {
		v.Broken = fmt.Sprintf("%d IKE SAs are half-open, the limit is %d", len(ep.half), ep.cfg.MaxHalfOpen)
	}
	if len(ep.espSPIs) != len(ep.children) {
		v.Broken = fmt.Sprintf("%d ESP SPIs for %d CHILD SAs", len(ep.espSPIs), len(ep.children))
	}
	return v
}

func (b *box) inspect(v *Glimpse) {
	sa := b.sa
	broken := func(format string, args ...any) {
		if v.Broken == "" {
			v.Broken = fmt.Sprintf("IKE SA %d: ", b.id) + fmt.Sprintf(format, args...)
		}
	}
	v.Waiting = max(v.Waiting, len(b.queue))
	v.Busy = v.Busy || len(b.queue) > 0
	if sa == nil || sa.state == StateClosed {
		return
	}
	v.Versions = max(v.Versions, len(sa.gens))
	v.Busy = v.Busy || sa.state != StateEstablished || len(sa.gens) > 1
	for _, g := range sa.gens {
		v.Waiting = max(v.Waiting, len(g.queue))
		v.Busy = v.Busy || g.req != nil || len(g.queue) > 0 || g.successor != nil || g.deleting
		if g.respDone && g.respFor != g.recvID-1 {
			broken("the answer that is kept is that to request %d, the last request was %d", g.respFor, g.recvID-1)
		}
		if g.req != nil && g.sendID != g.req.id+1 {
			broken("request %d is under way, the next one has ID %d", g.req.id, g.sendID)
		}
	}
	e := sa.est
	if e == nil {
		if sa.state >= StateEstablished && sa.state != StateDeleting {
			broken("%v, and nothing is proved", sa.state)
		}
		return
	}
	v.Up++
	v.Waiting = max(v.Waiting, len(e.later))
	v.Busy = v.Busy || len(e.later) > 0
	if n := sa.peer.rounds(); len(e.remoteIDs) != n || len(e.localIDs) != n || len(e.proofs) != n {
		broken("%d rounds are needed, the peer proved %d, we proved %d", n, len(e.remoteIDs), len(e.localIDs))
	}
	if sa.state != StateDeleting && sa.cur == nil {
		broken("no generation is in use")
	}
	limit := 0
	for i := range sa.peer.Children {
		limit += 2*max(sa.peer.Children[i].Queues, 1) + maxDuplicates
	}
	if len(e.children) > 2*limit {
		broken("%d CHILD SAs", len(e.children))
	}
	for _, c := range e.children {
		v.Busy = v.Busy || c.deleting || c.rekeying != nil || c.successor != nil || c.predec != nil || !c.useAt.IsZero()
		if b.ep.espSPIs[c.spiIn] != c.id {
			broken("CHILD SA %d has SPI %08x, which is that of %d", c.id, c.spiIn, b.ep.espSPIs[c.spiIn])
		}
	}
	for name, q := range sa.queues {
		if q.waiting || q.placing {
			v.Busy = true
		}
		if q.wanted > maxQueues {
			broken("%d queues are wanted for %s", q.wanted, name)
		}
	}
}

// SAPath is where an IKE SA is, for the simulator (iketest.SAPath).
type SAPath struct {
	ID                SAID
	Initiator, Mobike bool
	IKE, Data         Path
}

// SAPaths tells where the IKE SAs are that stand.
func (ep *Endpoint) SAPaths() (out []SAPath) {
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		if sa := b.sa; sa != nil && sa.est != nil && sa.state == StateEstablished {
			out = append(out, SAPath{b.id, sa.initiator, sa.mob != nil, sa.path, sa.espPath()})
		}
		b.step.Unlock()
	}
	return out
}

// ForgeOn encodes a message under the keys of one of the IKE SAs that have any, chosen by pick,
// with the message ID that would be next plus delta; of a response, that of the peer's last request
// plus delta.
func (ep *Endpoint) ForgeOn(pick int, exchange uint8, response bool, delta int, ps message.Payloads) (Path, [][]byte) {
	var able []*box
	for _, b := range ep.allBoxes() {
		if b.sa.cur != nil && b.sa.cur.prot != nil {
			able = append(able, b)
		}
	}
	if len(able) == 0 {
		return Path{}, nil
	}
	b := able[pick%len(able)]
	b.step.Lock()
	defer b.step.Unlock()
	g := b.sa.gens[pick%len(b.sa.gens)]
	if g.prot == nil {
		return Path{}, nil
	}
	id := g.sendID
	if response {
		id = g.recvID - 1
	}
	msgs, err := g.encode(exchange, id+uint32(delta), response, &outgoing{ps})
	if err != nil {
		return Path{}, nil
	}
	return b.sa.path, msgs
}
