package ike

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"wardgate/ike/message"
)

// Several CHILD SAs for one pair of selectors, so that each processor has one to itself (RFC
// 9611). In short:
//
//   - SA_RESOURCE_INFO with the request for the first CHILD SA says that its sender would like
//     several; with the answer, that the peer takes part. The others are ordinary CREATE_CHILD_SA
//     exchanges for the very same selectors, with SA_RESOURCE_INFO in request and answer.
//   - Whoever does not want more answers TS_MAX_QUEUE, never NO_ADDITIONAL_SAS, which would speak
//     for other selectors too.
//   - What the notify holds is for debugging only: each end numbers for itself, and the numbers of
//     processors need not be the same. What was agreed to must be received on.
//   - A rekey keeps the resource, with or without the notify.
//   - What the peer deletes must not be made again at once.
//
// Sources: the IANA numbers, and what strongSwan and libreswan document; the RFC's own text was not
// at hand, so section numbers given here are from memory.
//
// The RFC knows no first among equals. Ours is queue 0, the fallback: it is what Initiate makes.

// maxQueues bounds ChildConfig.Queues and Config.Queues.
const maxQueues = 256

const (
	fullFor    = 10 * time.Minute // so long a peer that took no more is not asked again
	wantEvery  = time.Second      // WantQueues with the same number counts once in so long a time
	askAgain   = time.Second      // after TEMPORARY_FAILURE, plus up to as much again
	placeAfter = time.Second      // plus up to as much again, see place

	// maxDuplicates is how many CHILD SAs of one ChildConfig may stand beyond twice its queues:
	// those being replaced, and those that a peer makes for reasons of its own.
	maxDuplicates = 8
)

// queueGroup is what is known about the CHILD SAs of one ChildConfig together.
type queueGroup struct {
	wanted    int       // so many in all, as far as both ends allow
	peer      bool      // the peer takes part
	full      int       // the peer took no more than so many …
	fullUntil time.Time // … and is not asked for more until then
	notBefore time.Time // no request until then
	waiting   bool      // grow is going to be called
	placing   bool      // place is going to be called
}

// wantMark is the last call of WantQueues for a CHILD SA.
type wantMark struct {
	n  int
	at time.Time
}

// WantQueues says that the CHILD SA child of connection peer is busy enough for n CHILD SAs side
// by side (RFC 9611). Those that are missing are made one by one, as far as ChildConfig.Queues of
// both ends allows; Owner.ChildUp tells of each. It returns at once and may be called as often as
// the owner likes. It never removes any (DeleteChild does), and does nothing where no IKE SA of
// the connection stands or the peer does not take part. What it asked for ends with the IKE SA,
// and with the deletion of one of the CHILD SAs: the owner asks again when there is need again.
func (ep *Endpoint) WantQueues(peer, child string, n int) error {
	cfg := ep.peers.Load().byName[peer]
	if cfg == nil {
		return fmt.Errorf("%w: %q", ErrUnknownPeer, peer)
	}
	c := cfg.child(child)
	if c == nil {
		return fmt.Errorf("%w: connection %q has no CHILD SA %q", ErrUnknownChild, peer, child)
	}
	if n = min(n, c.Queues); n < 2 {
		return nil
	}
	now := ep.cfg.Clock.Now()
	ep.mu.Lock()
	if ep.closed {
		ep.mu.Unlock()
		return ErrClosed
	}
	// The IKE SA that Initiate uses.
	var b *box
	for x := range ep.byPeer[peer].all() {
		if !x.ending.Load() && (b == nil || x.id < b.id) {
			b = x
		}
	}
	if b == nil {
		ep.mu.Unlock()
		return nil
	}
	if m := b.queues[child]; m.n >= n && now.Sub(m.at) < wantEvery && !now.Before(m.at) {
		ep.mu.Unlock()
		return nil
	}
	if b.queues == nil {
		b.queues = map[string]wantMark{}
	}
	b.queues[child] = wantMark{n, now}
	ep.mu.Unlock()
	b.post(evWantQueues{child, n})
	return nil
}

func (sa *SA) onWantQueues(ev evWantQueues) {
	q := sa.group(ev.child)
	q.wanted = max(q.wanted, ev.n)
	sa.grow(ev.child)
}

func (sa *SA) group(name string) *queueGroup {
	q := sa.queues[name]
	if q == nil {
		if sa.queues == nil {
			sa.queues = map[string]*queueGroup{}
		}
		q = &queueGroup{}
		sa.queues[name] = q
	}
	return q
}

// stands tells whether c counts: one that was replaced, or that is being deleted, does not.
func (c *child) stands(name string) bool {
	return c.cfg.Name == name && !c.deleting && !c.gone && c.successor == nil
}

func (e *established) standing(name string) int {
	n := 0
	for _, c := range e.children {
		if c.stands(name) {
			n++
		}
	}
	return n
}

// making returns our exchanges for new CHILD SAs, no rekeys, that are queued or under way.
func (sa *SA) making(name string) []*newChild {
	var out []*newChild
	add := func(t task) {
		if n, ok := t.(*newChild); ok && n.old == nil && n.cfg.Name == name {
			out = append(out, n)
		}
	}
	if sa.cur.req != nil {
		add(sa.cur.req.task)
	}
	for _, t := range sa.cur.queue {
		add(t)
	}
	return out
}

// asking tells whether our request for one more is under way.
func (sa *SA) asking(name string) bool {
	t := sa.creating(sa.cur)
	return t != nil && t.more && t.cfg.Name == name
}

// freeQueue returns the lowest queue number without a CHILD SA; 0 when there is none, for one that
// goes at once. One that we are making does not count: the peer may not take it, and it can have
// another number when it comes.
func (sa *SA) freeQueue(cfg *ChildConfig) int {
	var stands [maxQueues]bool
	for _, c := range sa.est.children {
		if c.stands(cfg.Name) {
			stands[c.queue] = true
		}
	}
	return max(slices.Index(stands[:max(cfg.Queues, 1)], false), 0)
}

// receiveQueue is the receive queue that the SPI of a CHILD SA is to lead to; -1: any.
func (sa *SA) receiveQueue(cfg *ChildConfig, queue int) int {
	if q := sa.queues[cfg.Name]; queue > 0 || q != nil && min(q.wanted, cfg.Queues) > 1 || sa.several(cfg.Name) {
		return queue
	}
	return -1
}

// receiveQueueAfter is receiveQueue for a CHILD SA that may take the place of old (nil: it takes
// nobody's). The successor of one that is alone keeps to the queue of its inbound packets: in
// another, packets on the new SA could overtake those on the old one.
func (sa *SA) receiveQueueAfter(cfg *ChildConfig, queue int, old *child) int {
	q := sa.receiveQueue(cfg, queue)
	if q < 0 && old != nil && sa.cfg.Queues > 1 {
		return int(old.spiIn % uint32(sa.cfg.Queues))
	}
	return q
}

// several tells whether CHILD SAs stand beside the fallback.
func (sa *SA) several(name string) bool {
	return sa.est != nil && slices.ContainsFunc(sa.est.children, func(c *child) bool { return c.queue > 0 && c.stands(name) })
}

// resourceInfo announces RFC 9611, with our number of the resource for the eyes of whoever
// debugs.
func (o *outgoing) resourceInfo(cfg *ChildConfig, queue int) {
	if cfg.Queues > 1 {
		o.notify(notifyResourceInfo, binary.BigEndian.AppendUint32(nil, uint32(queue)))
	}
}

// admitChild decides whether one more CHILD SA of cfg is taken from the peer, and as which queue
// of ours; k holds what was chosen. The answer is 0 or the error notify.
func (sa *SA) admitChild(cfg *ChildConfig, k *keying, resource bool) message.NotifyType {
	e, n := sa.est, max(cfg.Queues, 1)
	all := 0
	var like *child
	for _, c := range e.children {
		if c.cfg.Name == cfg.Name {
			all++
		}
		if like == nil && c.stands(cfg.Name) {
			like = c
		}
	}
	room := all < 2*n+maxDuplicates
	if old := k.replaces; old != nil {
		k.queue = old.queue
		if !room {
			return notifyTemporaryFailure // it replaces and never deletes
		}
		return 0
	}
	if !resource || like != nil && !(sameSelectors(like.localTS, k.localTS) && sameSelectors(like.remoteTS, k.remoteTS)) {
		// RFC 7296, section 2.8: a peer may have several with the same selectors at any time.
		if !room {
			return notifyNoAdditionalSAs
		}
		return 0
	}
	switch standing := e.standing(cfg.Name); {
	case standing >= n, !room:
		return notifyTSMaxQueue
	case sa.initiator && standing > 0 && sa.asking(cfg.Name):
		// Both ends ask for one more at once: that of the initiator of the IKE SA is made.
		return notifyTemporaryFailure
	}
	k.queue = sa.freeQueue(cfg)
	return 0
}

func sameSelectors(a, b []Selector) bool { return within(a, b) && within(b, a) }

// takesPart notes what the peer said about RFC 9611 with a CHILD SA. It need not say anything
// with a rekey.
func (sa *SA) takesPart(cfg *ChildConfig, in *parsed, rekey bool) {
	has := in.has(notifyResourceInfo)
	if has {
		sa.group(cfg.Name).peer = true
	} else if q := sa.queues[cfg.Name]; q != nil && !rekey {
		q.peer = false
	}
}

// grow makes the next of the CHILD SAs that are wanted, if one is missing and the peer may want
// it.
func (sa *SA) grow(name string) {
	q := sa.queues[name]
	if q == nil || !q.peer || sa.est == nil || sa.state != StateEstablished {
		return
	}
	cfg := sa.peer.child(name)
	if cfg == nil || !sa.lacks(cfg) || len(sa.making(name)) > 0 {
		return
	}
	if d := q.notBefore.Sub(sa.now); d > 0 {
		sa.growLater(name, d)
		return
	}
	sa.cur.enqueue(&newChild{cfg: cfg, more: true, queue: sa.freeQueue(cfg)})
}

// lacks tells whether a CHILD SA is missing beside those that stand.
func (sa *SA) lacks(cfg *ChildConfig) bool {
	q := sa.queues[cfg.Name]
	if q == nil {
		return false
	}
	want := min(q.wanted, cfg.Queues)
	if sa.now.Before(q.fullUntil) {
		want = min(want, q.full)
	}
	n := sa.est.standing(cfg.Name)
	return n > 0 && n < want
}

func (sa *SA) growLater(name string, d time.Duration) {
	q := sa.group(name)
	if q.waiting {
		return
	}
	q.waiting = true
	sa.est.delay(sa, d, func(sa *SA) {
		q.waiting = false
		sa.grow(name)
	})
}

// grown follows a new CHILD SA: the next one, and the places of all.
func (sa *SA) grown(c *child, ours bool) {
	name := c.cfg.Name
	if sa.cfg.Queues > 1 && sa.several(name) {
		sa.place(name)
	}
	switch {
	case ours:
		sa.grow(name)
	case sa.lacks(c.cfg):
		sa.growLater(name, answerTime) // our answer first
	}
}

// place rekeys a CHILD SA whose SPI leads to the receive queue of another one: the fallback, which
// was alone when it was made, or one whose number the peer's took while both were being made. The
// peer may have the same reason; one rekey is enough for both.
func (sa *SA) place(name string) {
	q := sa.group(name)
	if q.placing {
		return
	}
	q.placing = true
	sa.est.delay(sa, placeAfter, func(sa *SA) {
		q.placing = false
		if sa.state != StateEstablished || !sa.several(name) {
			return
		}
		for _, c := range slices.Clone(sa.est.children) {
			if n := uint32(sa.cfg.Queues); c.stands(name) && c.spiIn%n != uint32(c.queue)%n {
				sa.rekeyChild(c)
			}
		}
	})
}

// noMore: the peer does not make one more CHILD SA beside those that stand.
func (sa *SA) noMore(name string) {
	q := sa.group(name)
	q.full, q.fullUntil = sa.est.standing(name), sa.now.Add(fullFor)
}

// queueGone: a CHILD SA ended and has no successor. Others are left alone, and none is made in its
// place by itself: two ends that disagree would go on for ever (RFC 9611, section 6).
func (sa *SA) queueGone(c *child, r Reason) {
	q := sa.queues[c.cfg.Name]
	if q == nil {
		return
	}
	q.wanted = min(q.wanted, sa.est.standing(c.cfg.Name))
	if r.Remote {
		q.notBefore = sa.now.Add(sa.retryAfter())
	}
}
