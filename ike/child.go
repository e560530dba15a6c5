package ike

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"wardgate/ike/suite"
)

// established is what an IKE SA has once every round was proved by both ends. It is made by
// (*SA).establish alone, which counts the rounds; and only its methods make CHILD SAs. So there
// is no CHILD SA without all rounds.
type established struct {
	localIDs    []Identity
	remoteIDs   []Identity
	remoteCerts [][]byte
	proofs      []proof // for judging again when revocation lists change

	net *NetConfig // SAInfo.Assigned

	localLeaves [][]byte // DER of the certificates that we proved, nil where a PSK was used

	created       time.Time
	authenticated time.Time // when all rounds were last proved in full
	resumed       bool      // by a ticket
	redirectable  bool      // the peer initiated it and announced RFC 5685
	ticketed      bool      // the peer gave us a ticket: another one is asked for when it is used up
	ticketAt      time.Time // ask for another one then

	reauthAt  time.Time // a new IKE SA is to take our place
	expireAt  time.Time // a certificate of the peer's ends
	rekeyed   int
	rekeyAt   time.Time // soft lifetime of the IKE SA
	children  []*child
	afterAuth uint32    // responder: message ID of the peer's next request after IKE_AUTH
	heardAt   time.Time // when an error that the peer reported was last put on record
	later     []delayed // exchanges that are to be tried again
}

// delayed is an exchange that waits, after TEMPORARY_FAILURE for instance.
type delayed struct {
	at  time.Time
	run func(sa *SA)
}

// child is one CHILD SA.
type child struct {
	id            ChildID
	cfg           *ChildConfig
	spiIn, spiOut uint32
	chosen        suite.Chosen
	localTS       []Selector
	remoteTS      []Selector
	created       time.Time
	rekeyAt       time.Time
	rekeyed       int
	queue         int // ChildSA.Queue

	known     bool        // the peer has it: our request made it, or the peer went on after our answer
	sendNow   bool        // the owner was told to send on it
	gen       *generation // that it was made with; nil: it is gone
	rekeying  *newChild   // our rekey of it that is queued or under way
	deleting  bool        // our Delete of it is queued or under way
	gone      bool        // the owner was told that it is down
	successor *child      // took its place; this one waits for its Delete
	predec    *child      // its place was taken by this one; not yet deleted
	useAt     time.Time   // the owner is to send on it then at the latest
	dropAt    time.Time   // a replaced one that the peer never deletes is deleted by us then
}

func (c *child) status(now time.Time) ChildStatus {
	return ChildStatus{
		ID: c.id, Child: c.cfg.Name, SPIIn: c.spiIn, SPIOut: c.spiOut, Suite: c.chosen.String(),
		LocalTS: c.localTS, RemoteTS: c.remoteTS, Age: now.Sub(c.created), Queue: c.queue, Rekeyed: c.rekeyed, Deleting: c.deleting,
	}
}

// Times of what waits.
const (
	maxRetryAfter = 10 * time.Second      // after TEMPORARY_FAILURE, plus up to as much again
	maxRetryLater = time.Minute           // a rekey that the peer refused for good reasons of its own
	patience      = time.Minute           // a rekey that takes long ends no SA before
	replacedFor   = 90 * time.Second      // a replaced SA whose Delete never comes is ours to delete
	silentFor     = 10 * time.Second      // a peer that has our answer and still says nothing
	answerTime    = 50 * time.Millisecond // what a peer needs to judge our answer; see useSoon
)

// keying is what a CREATE_CHILD_SA or IKE_AUTH exchange agreed for a CHILD SA.
type keying struct {
	id                ChildID
	spiIn, spiOut     uint32
	chosen            suite.Chosen
	shared            suite.Secret // of a key exchange; empty: none
	additional        []suite.Secret
	ni, nr            []byte
	initiator         bool // we began the exchange
	queue             int  // ChildSA.Queue
	localTS, remoteTS []Selector
	others            bool // the peer asks for more than this, some of which another CHILD SA may carry
	sendNow           bool
	replaces          *child
}

// install derives the keys of a new CHILD SA and hands it to the owner.
func (e *established) install(sa *SA, g *generation, cfg *ChildConfig, k keying) (*child, error) {
	keys, err := suite.DeriveChildKeys(g.prot.prf, g.prot.keys.SKd, k.chosen, k.shared, k.ni, k.nr, k.additional...)
	if err != nil {
		return nil, fmt.Errorf("ike: keys of the CHILD SA: %w", err)
	}
	defer keys.Wipe()
	encrOut, integOut, encrIn, integIn := keys.Directions(k.initiator)
	c := &child{
		id: k.id, cfg: cfg, spiIn: k.spiIn, spiOut: k.spiOut, chosen: k.chosen,
		localTS: k.localTS, remoteTS: k.remoteTS, created: sa.now, known: k.initiator, gen: g, sendNow: k.sendNow, queue: k.queue,
		rekeyAt: sa.rekeyAt(sa.peer.rekeyChild(), k.initiator),
	}
	out := ChildSA{
		ID: c.id, SA: sa.id, Peer: sa.peer.Name, Child: cfg.Name, Queue: c.queue, SPIIn: c.spiIn, SPIOut: c.spiOut,
		Encr: k.chosen.Encr, Integ: k.chosen.Integ, KeyBits: k.chosen.KeyBits, ESN: k.chosen.ESN,
		KeyIn: bytes.Clone(encrIn.Bytes()), KeyOut: bytes.Clone(encrOut.Bytes()),
		IntegIn: bytes.Clone(integIn.Bytes()), IntegOut: bytes.Clone(integOut.Bytes()),
		LocalTS: slices.Clone(c.localTS), RemoteTS: slices.Clone(c.remoteTS), Path: sa.espPath(),
		SendNow: k.sendNow, RemoteIDs: slices.Clone(e.remoteIDs), Created: sa.now,
	}
	if old := k.replaces; old != nil {
		out.Replaces = old.id
		c.rekeyed = old.rekeyed + 1
	}
	if log := sa.cfg.keyLog; log != nil {
		log(fmt.Sprintf("child-%08x-in", c.spiIn), append(bytes.Clone(out.KeyIn), out.IntegIn...))
		log(fmt.Sprintf("child-%08x-out", c.spiOut), append(bytes.Clone(out.KeyOut), out.IntegOut...))
	}
	e.children = append(e.children, c)
	sa.tell(func(o Owner) { o.ChildUp(out) })
	return c, nil
}

// replace notes that c took the place of old.
func (e *established) replace(old, c *child) {
	old.successor = c
	c.predec = old
	old.rekeyAt = time.Time{}
}

// use has the owner send on c from now on.
func (e *established) use(sa *SA, c *child) {
	if c.sendNow || c.gone {
		return
	}
	c.sendNow, c.useAt = true, zeroTime
	id := c.id
	sa.tell(func(o Owner) { o.ChildSwitch(id) })
}

// useSoon has the owner send on a new CHILD SA that the peer asked for, a moment after our answer
// went out: the peer must judge the answer before it can take packets, and what comes sooner
// would be lost. Where others carry the same traffic (RFC 9611, or another IKE SA, which is about to
// be replaced) there is time until the peer shows that it has the answer, which may have been lost:
// by its next request (see goesOn), or by a packet (ChildSA.SendNow), which ends the wait in any
// case.
func (e *established) useSoon(sa *SA, c *child) {
	after := answerTime
	if e.standing(c.cfg.Name) > 1 || sa.host.another(sa.peer.Name) {
		after = silentFor
	}
	c.useAt = sa.now.Add(after)
}

// goesOn: the peer sent a new request on g. With its window of 1 (RFC 7296, section 2.3) that means
// that it has all our answers of before.
func (e *established) goesOn(sa *SA, g *generation) {
	for _, c := range e.children {
		if !c.known && c.predec == nil && c.gen == g && !c.deleting && c.successor == nil {
			c.known = true
			e.use(sa, c)
		}
	}
}

// remove forgets a CHILD SA.
func (e *established) remove(sa *SA, c *child, r Reason) {
	i := slices.Index(e.children, c)
	if i < 0 {
		return
	}
	e.children = slices.Delete(e.children, i, i+1)
	if s := c.successor; s != nil && slices.Contains(e.children, s) {
		// RFC 7296, section 2.8: its end means that the peer has the new one.
		e.use(sa, s)
		r.Rekeyed = true
		if s.rekeyAt.IsZero() && s.rekeying == nil && !s.known {
			s.rekeyAt = sa.now // asked for before the peer had it, see rekeyChild
		}
	}
	if s := c.successor; s != nil && s.predec == c {
		s.predec = nil
	}
	if p := c.predec; p != nil && p.successor == c {
		p.successor = nil
	}
	sa.host.freeESPSPI(c.spiIn, c.id)
	e.down(sa, c, r)
	if !r.Rekeyed {
		sa.queueGone(c, r)
	}
}

// down tells the owner, once, that a CHILD SA must not be used any more.
func (e *established) down(sa *SA, c *child, r Reason) {
	if c.gone {
		return
	}
	c.gone, c.useAt = true, zeroTime
	id := c.id
	sa.tell(func(o Owner) { o.ChildDown(id, r) })
}

func (e *established) byID(id ChildID) *child {
	for _, c := range e.children {
		if c.id == id {
			return c
		}
	}
	return nil
}

// byOut finds the CHILD SA that the peer receives on with spi.
func (e *established) byOut(spi uint32) *child {
	for _, c := range e.children {
		if c.spiOut == spi {
			return c
		}
	}
	return nil
}

func (e *established) deadline(sa *SA) time.Time {
	var d time.Time
	add := func(t time.Time) {
		if !t.IsZero() && (d.IsZero() || t.Before(d)) {
			d = t
		}
	}
	for _, l := range e.later {
		add(l.at)
	}
	if sa.state != StateEstablished {
		return d
	}
	add(e.rekeyAt)
	add(e.ticketAt)
	add(e.reauthAt)
	add(e.expireAt)
	add(e.endAt(sa))
	for _, c := range e.children {
		add(c.useAt)
		add(c.rekeyAt)
		add(c.dropAt)
		add(c.endAt(sa))
	}
	add(e.livenessAt(sa))
	add(e.keepaliveAt(sa))
	return d
}

func (e *established) onTimer(sa *SA) {
	now := sa.now
	for i := 0; i < len(e.later); {
		l := e.later[i]
		if !due(now, l.at) {
			i++
			continue
		}
		e.later = slices.Delete(e.later, i, i+1)
		l.run(sa)
	}
	if sa.state != StateEstablished {
		return
	}
	if due(now, e.endAt(sa)) {
		sa.terminate(Reason{Code: ReasonExpired, Text: "the IKE SA could not be rekeyed in time"})
		return
	}
	if due(now, e.expireAt) {
		e.expireAt = zeroTime
		sa.judgeAgain(func(int) bool { return true })
	}
	if due(now, e.reauthAt) {
		e.reauthAt = now.Add(reauthRetry)
		sa.reauthenticate()
	}
	if due(now, e.rekeyAt) {
		e.rekeyAt = time.Time{}
		sa.rekeyIKE()
	}
	if due(now, e.ticketAt) {
		e.ticketAt = zeroTime
		sa.cur.enqueue(&ticketTask{})
	}
	for _, c := range slices.Clone(e.children) {
		if due(now, c.useAt) {
			c.useAt = zeroTime
			if c.successor == nil {
				e.use(sa, c)
			}
		}
		if due(now, c.rekeyAt) {
			c.rekeyAt = time.Time{}
			sa.rekeyChild(c)
		}
		if due(now, c.endAt(sa)) {
			sa.deleteChild(c, Reason{Code: ReasonExpired, Text: "the CHILD SA could not be rekeyed in time"})
			continue
		}
		if due(now, c.dropAt) {
			c.dropAt = time.Time{}
			sa.deleteChild(c, Reason{Code: ReasonRekeyed, Rekeyed: true, Text: "the peer did not delete the replaced CHILD SA"})
		}
	}
	if due(now, e.livenessAt(sa)) {
		sa.cur.enqueue(&livenessTask{})
	}
	if due(now, e.keepaliveAt(sa)) {
		sa.lastSent = now
		sa.do(actKeepalive{sa.path})
	}
}

// hard is how old an SA gets that could not be rekeyed: half as long again as the soft lifetime, and
// long enough for some repetitions of a rekey where that is short.
func hard(soft time.Duration) time.Duration { return soft + max(soft/2, patience) }

// endAt is when an IKE SA ends that could not be rekeyed.
func (e *established) endAt(sa *SA) time.Time { return sa.cur.created.Add(hard(sa.peer.rekeyIKE())) }

// endAt is the same for a CHILD SA.
func (c *child) endAt(sa *SA) time.Time {
	if c.deleting {
		return time.Time{}
	}
	return c.created.Add(hard(sa.peer.rekeyChild()))
}

// livenessAt is when the peer is asked whether it lives (RFC 7296, section 2.4); zero while
// something is under way that will show it anyway.
func (e *established) livenessAt(sa *SA) time.Time {
	every := sa.peer.liveness()
	if every < 0 || sa.cur.req != nil || len(sa.cur.queue) > 0 || sa.cur.successor != nil {
		return time.Time{}
	}
	last := sa.lastSeen
	asks := sa.asksNAT() && sa.mob.asked.Before(last)
	if asks {
		last = sa.mob.asked // other exchanges do not show that a NAT has changed or come (RFC 4555, section 3.8)
	}
	if f := sa.cfg.LastInbound; f != nil && due(sa.now, last.Add(every)) {
		for _, c := range e.children {
			if t := f(c.id); t.After(last) {
				last = t
			}
		}
		if last.After(sa.now) {
			last = sa.now
		}
		// So that the owner is not asked at every step.
		if asks {
			sa.mob.asked = last // what comes in was sent to where we are
		}
		if last.After(sa.lastSeen) {
			sa.lastSeen = last
		}
	}
	return last.Add(every)
}

// keepaliveAt is when the NAT in front of us wants a packet (RFC 3948, section 4).
func (e *established) keepaliveAt(sa *SA) time.Time {
	every := sa.peer.keepalive()
	if !sa.nat.local || !sa.path.Encap || sa.path.Stream != 0 || every < 0 { // not over TCP: RFC 9329, section 6.6
		return time.Time{}
	}
	return sa.lastSent.Add(every)
}

// retryAfter is when an exchange is tried again after TEMPORARY_FAILURE (RFC 7296, section 2.25),
// plus up to as much again: soon enough for short lifetimes.
func (sa *SA) retryAfter() time.Duration {
	return min(maxRetryAfter, sa.peer.rekeyChild(), sa.peer.rekeyIKE())
}

// retryLater is when a rekey is tried again that the peer refused for good reasons of its own.
func (sa *SA) retryLater() time.Duration {
	return min(maxRetryLater, 10*sa.peer.rekeyChild(), 10*sa.peer.rekeyIKE())
}

// delay tries something again later, at a time that two ends do not share.
func (e *established) delay(sa *SA, d time.Duration, run func(*SA)) {
	v, _ := randUint64(sa.host.rand())
	e.later = append(e.later, delayed{sa.now.Add(d + time.Duration(v%1000)*d/1000), run})
}
