package ike

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// generation is one pair of IKE SPIs with its keys and message IDs. An IKE SA has one, and more
// while it is rekeyed.
type generation struct {
	sa         *SA
	initiator  bool // we initiated it: our requests carry the I flag
	spiI, spiR uint64
	chosen     suite.Chosen
	prot       *protection // nil until the keys are known
	created    time.Time

	// RFC 7296, section 2.2: message IDs count requests, for each direction on its own.
	sendID uint32 // of our next request
	recvID uint32 // of the peer's next request

	req   *request // our request that waits for its answer: own window 1 (section 2.3)
	queue []task   // our next ones

	// The answer to the peer's last request, as sent; it is repeated when the request is.
	resp     [][]byte
	respFor  uint32
	respDone bool

	inRequest, inResponse reassembly

	// successor is the generation that the peer made to replace this one, until it is known
	// that the peer has it. Nothing of ours is sent on this one meanwhile.
	successor *generation
	dropAt    time.Time // forget this one then, if the peer does not delete it

	deleting bool // our Delete of this generation is queued or sent

	crashToken []byte // of the peer (RFC 6290); nil: none came
}

// request is one request of ours on its way.
type request struct {
	id       uint32
	exchange uint8
	task     task
	msgs     [][]byte
	next     time.Time
	wait     time.Duration
	tries    int
}

// task is one exchange that we start.
type task interface {
	// build makes the request; false: there is nothing to do any more.
	build(sa *SA, g *generation) (exchange uint8, out *outgoing, ok bool)

	// done takes the answer.
	done(sa *SA, g *generation, in *parsed)
}

// retired is implemented by tasks that must know when their request ends without an answer,
// because the generation was closed or the peer is gone.
type retired interface{ retire(sa *SA) }

func (g *generation) ourSPI() uint64 {
	if g.initiator {
		return g.spiI
	}
	return g.spiR
}

// start sends a request.
func (g *generation) start(t task, exchange uint8, out *outgoing) {
	in, err := message.EncodeInner(out.ps)
	var msgs [][]byte
	if err == nil {
		if h := g.sa.handshake; h != nil && exchange == exchangeAuth && h.solving.solution != nil {
			// RFC 8019, section 7.2.2: in the first one, in clear.
			in.Solution, h.solving.solution = &message.PuzzleSolution{Data: h.solving.solution}, nil
		}
		msgs, err = g.seal(g.header(exchange, g.sendID, false), in)
	}
	if err != nil {
		g.sa.fail(fmt.Errorf("ike: encoding a request: %w", err))
		return
	}
	g.launch(t, exchange, msgs)
}

func (g *generation) launch(t task, exchange uint8, msgs [][]byte) {
	r := g.sa.peer.retransmit()
	g.req = &request{
		id: g.sendID, exchange: exchange, task: t, msgs: msgs,
		wait: r.Initial,
	}
	g.req.next = g.sa.now.Add(g.sa.waitFor(g.req))
	g.sendID++
	if g == g.sa.cur {
		g.sa.silence.sent(g.sa.now)
	}
	g.sa.send(g.sa.path, msgs)
}

// pump starts the next task when none is under way.
func (g *generation) pump() {
	for g.req == nil && len(g.queue) > 0 && g.successor == nil && !g.rekeyed() && g.prot != nil && g.sa.est != nil && g.sa.state != StateClosed {
		t := g.queue[0]
		g.queue = g.queue[1:]
		exchange, out, ok := t.build(g.sa, g)
		if !ok {
			continue
		}
		g.start(t, exchange, out)
	}
}

func (g *generation) enqueue(t task) { g.queue = append(g.queue, t) }

func (g *generation) deadline() time.Time {
	d := g.dropAt
	if g.req != nil && (d.IsZero() || g.req.next.Before(d)) {
		d = g.req.next
	}
	if t := g.inRequest.expires; !t.IsZero() && (d.IsZero() || t.Before(d)) {
		d = t
	}
	if t := g.inResponse.expires; !t.IsZero() && (d.IsZero() || t.Before(d)) {
		d = t
	}
	return d
}

func (g *generation) onTimer() {
	now := g.sa.now
	g.inRequest.expire(now)
	g.inResponse.expire(now)
	if due(now, g.dropAt) {
		g.sa.dropOld(g)
		return
	}
	r := g.req
	if r == nil || !due(now, r.next) {
		return
	}
	cfg := g.sa.peer.retransmit()
	tries := cfg.Tries
	if r.exchange == exchangeResume {
		tries = min(tries, resumeTries)
	}
	if g == g.sa.cur {
		// Of a generation that was replaced the peer may know nothing any more: its silence says nothing
		// about the path.
		tries += g.sa.repeated(r.tries + 1)
	}
	cfg.Tries = tries
	if r.tries >= tries || g.sa.path.Stream != 0 || r.tries > probeAfter && g == g.sa.cur && now.Sub(g.sa.silence.since) >= cfg.total() {
		g.sa.unanswered(g)
		return
	}
	if r.tries++; g == g.sa.cur {
		g.sa.silence.sent(now)
	}
	r.wait = min(time.Duration(float64(r.wait)*cfg.Factor), maxWait)
	r.next = now.Add(r.wait)
	if t, ok := r.task.(*updateTask); ok {
		t.repeated = true
	}
	// RFC 7296, section 2.1: a repetition is the same octets; with RFC 7383 all fragments again.
	g.sa.send(g.sa.path, r.msgs)
	g.sa.tryTCP(r)
}

// onRequest takes a request of the peer.
func (g *generation) onRequest(ev evDatagram) {
	sa := g.sa
	if g.prot == nil && !g.unlock(ev) {
		return
	}
	if sa.est == nil && sa.initiator {
		return // overtook the last IKE_AUTH response, or its verdict; it will be repeated
	}
	switch ev.head.id {
	case g.recvID:
		if sa.est == nil && ev.head.exchange == exchangeAuth && sa.handshake.answering() {
			return // window of 1 (section 2.3): the one before is not answered yet
		}
	case g.recvID - 1:
		// A repetition: the same answer again (section 2.1), but only to somebody who has the
		// keys, and once for all its fragments (RFC 7383, section 2.6.1).
		if g.respDone && g.respFor == ev.head.id && g.authentic(ev.msg) {
			sa.send(ev.path, g.resp)
		}
		return
	default:
		return // outside of our window of 1
	}
	in, err := g.open(&g.inRequest, ev)
	if in == nil && err == nil {
		sa.noteJunk(ev)
		return // not authentic, or fragments are missing
	}
	// From here on the request is authentic and its ID is used up.
	g.recvID++
	g.respDone, g.resp = false, nil
	g.prot.dropBefore()
	sa.lastSeen = sa.now
	sa.adoptPath(ev.path)
	if sa.handshake != nil {
		sa.handshake.silentBy = zeroTime
	}
	if sa.est != nil {
		sa.est.goesOn(sa, g)
	}
	if g.successorOf(sa) {
		sa.confirm(g)
	}
	if err != nil {
		g.rejectMalformed(ev, err)
		return
	}
	in.id, in.exchange = ev.head.id, ev.head.exchange
	if sa.est == nil {
		sa.onAuthRequest(g, in)
		return
	}
	switch ev.head.exchange {
	case exchangeCreateChild:
		if out := sa.onCreateChild(g, in); out != nil {
			g.respondOrEnd(in, out)
		}
	case exchangeInformational:
		sa.onInformational(g, in)
	case exchangeFollowupKE:
		if out := sa.onFollowupKE(g, in); out != nil {
			g.respondOrEnd(in, out)
		}
	default:
		sa.refuseSyntax(g, in, refused(CodeUnexpected, -1, nil, "%s makes no sense in an IKE SA that stands", exchangeName(ev.head.exchange)))
	}
}

// rejectMalformed answers a request that is authentic but not understood.
func (g *generation) rejectMalformed(ev evDatagram, err error) {
	sa := g.sa
	in := &parsed{id: ev.head.id, exchange: ev.head.exchange}
	payload, critical := criticalPayload(err)
	if critical && sa.est != nil {
		// RFC 7296, section 2.5: name the payload, the IKE SA stays.
		sa.refuse(refused(CodeUnsupported, -1, err, "a request holds an unknown critical payload"))
		g.respond(in, newOutgoing().notify(notifyUnsupportedCritical, []byte{payload}))
		return
	}
	sa.refuse(refused(CodeSyntax, sa.round(), err, "a protected request is malformed"))
	notify := newOutgoing().notify(notifyInvalidSyntax, nil)
	if critical {
		notify = newOutgoing().notify(notifyUnsupportedCritical, []byte{payload})
	}
	g.respond(in, notify)
	// Section 2.21.3: INVALID_SYNTAX in a protected exchange ends the IKE SA on both sides.
	sa.close(Reason{Code: ReasonProtocol, Text: "the peer sent a malformed request: " + err.Error(), Remote: true})
}

// refuseSyntax answers a request with INVALID_SYNTAX, which ends the IKE SA at both ends (RFC 7296, section
// 2.21.3). The peer is not told more.
func (sa *SA) refuseSyntax(g *generation, in *parsed, e *RefusedError) {
	sa.refuse(e)
	g.respond(in, newOutgoing().notify(notifyInvalidSyntax, nil))
	sa.close(Reason{Code: ReasonProtocol, Text: e.Error(), Remote: true})
}

// respondOrEnd sends an answer. INVALID_SYNTAX among it ends the IKE SA: see refuseSyntax.
func (g *generation) respondOrEnd(in *parsed, out *outgoing) {
	g.respond(in, out)
	if out.has(notifyInvalidSyntax) {
		g.sa.close(Reason{Code: ReasonProtocol, Text: "the peer sent a malformed " + exchangeName(in.exchange), Remote: true})
	}
}

// respond sends the answer to in and keeps it for repetitions.
func (g *generation) respond(in *parsed, out *outgoing) {
	msgs, err := g.encode(in.exchange, in.id, true, out)
	if err != nil {
		g.sa.fail(fmt.Errorf("ike: encoding a response: %w", err))
		return
	}
	g.answer(in, msgs)
}

// answer sends the encoded answer to in and keeps it for repetitions.
func (g *generation) answer(in *parsed, msgs [][]byte) {
	g.resp, g.respFor, g.respDone = msgs, in.id, true
	g.sa.send(g.sa.replyPath(in), msgs)
}

// onResponse takes the answer to our request.
func (g *generation) onResponse(ev evDatagram) {
	sa := g.sa
	r := g.req
	if g.prot == nil || r == nil || ev.head.id != r.id || ev.head.exchange != r.exchange {
		return
	}
	in, err := g.open(&g.inResponse, ev)
	if in == nil && err == nil {
		return
	}
	sa.lastSeen = sa.now
	sa.adoptPath(ev.path)
	sa.found(ev.path)
	g.req, sa.silence = nil, silence{}
	if err != nil {
		// Section 2.21.3: a malformed answer cannot be answered; the IKE SA is of no use.
		sa.refuse(refused(CodeSyntax, sa.round(), err, "the answer to our %s is malformed", exchangeName(r.exchange)))
		if sa.handshake != nil {
			sa.handshake.failure = err
		}
		if x, ok := r.task.(retired); ok {
			x.retire(sa)
		}
		sa.close(Reason{Code: ReasonProtocol, Text: "the peer sent a malformed answer: " + err.Error(), Remote: true})
		return
	}
	in.id, in.exchange = ev.head.id, ev.head.exchange
	if in.has(notifyInvalidSyntax) && sa.state == StateEstablished && g == sa.cur {
		// Section 2.21.3: fatal in both peers, without a Delete.
		if x, ok := r.task.(retired); ok {
			x.retire(sa)
		}
		err := peerError(in.notify(notifyInvalidSyntax), exchangeName(r.exchange))
		sa.refuse(refused(CodePeerRefused, -1, err, "the peer takes our %s for malformed, which ends the IKE SA at both ends; its own records say why", exchangeName(r.exchange)))
		sa.close(Reason{Code: ReasonProtocol, Text: err.Error(), Remote: true})
		return
	}
	r.task.done(sa, g, in)
}

// successorOf tells that g is a generation that the peer made and that waits for confirmation.
func (g *generation) successorOf(sa *SA) bool {
	return slices.ContainsFunc(sa.gens, func(o *generation) bool { return o.successor == g })
}

func (g *generation) wipe() {
	if g.prot != nil {
		g.prot.wipe()
	}
	g.inRequest.reset()
	g.inResponse.reset()
	g.req, g.queue, g.resp, g.crashToken = nil, nil, nil, nil
}

// fail ends an IKE SA that cannot go on for a reason of our own (no randomness, say).
func (sa *SA) fail(err error) {
	if sa.handshake != nil && sa.handshake.failure == nil {
		sa.handshake.failure = err
	}
	sa.close(Reason{Code: ReasonProtocol, Text: err.Error()})
}

// unanswered: the request of g was repeated often enough.
func (sa *SA) unanswered(g *generation) {
	switch {
	case sa.state == StateInit && g.req.exchange == exchangeResume:
		sa.resumeFailed(ErrPeerDead)
	case sa.state == StateInit:
		err := ErrPeerDead
		if why := sa.handshake.solving.refused; why != nil {
			err = fmt.Errorf("%w; its puzzle was not solved: %w", err, why)
		}
		sa.nextGateway(err)
	case sa.state == StateDeleting:
		sa.close(sa.ended)
	case g != sa.cur && g.deleting:
		// The peer forgot the old generation sooner than we did.
		sa.dropGeneration(g)
	default:
		if sa.handshake != nil {
			sa.handshake.failure = fmt.Errorf("%w: %v, %s repeated %d times", ErrPeerDead, sa.path.Remote, exchangeName(g.req.exchange), g.req.tries)
		}
		sa.close(Reason{Code: ReasonPeerDead, Text: fmt.Sprintf("%v does not answer: %s repeated %d times", sa.path.Remote, exchangeName(g.req.exchange), g.req.tries)})
	}
}

// dropGeneration forgets a generation that is not the current one.
func (sa *SA) dropGeneration(g *generation) {
	sa.gens = slices.DeleteFunc(sa.gens, func(o *generation) bool { return o == g })
	sa.forgetAll(g)
	sa.host.freeIKESPI(g.ourSPI())
	if g.req != nil {
		if x, ok := g.req.task.(retired); ok {
			x.retire(sa)
		}
	}
	g.wipe()
	if sa.est != nil {
		for _, c := range sa.est.children {
			if c.gen == g {
				c.gen = nil
			}
		}
	}
}

// adoptPath follows the peer to a new address. Called with an authentic message that is no
// repetition.
func (sa *SA) adoptPath(p Path) {
	if p == sa.path || sa.est != nil && sa.mob != nil { // RFC 4555, section 3.8: never by a packet's source
		return
	}
	if p.Stream != 0 || sa.path.Stream != 0 {
		sa.adoptStream(p)
		return
	}
	old := sa.path
	switch {
	case sa.est == nil && !sa.initiator:
		// The initiator moves to port 4500 with its first IKE_AUTH (RFC 7296, section 2.23). Its address is
		// the one to which the answer to IKE_SA_INIT came, unless there is a NAT, which may have several:
		// else one who has a packet on its way, and sends it on from elsewhere, would move the IKE SA.
		if !sa.nat.remote {
			if p.Local.Addr().Is4() != sa.path.Remote.Addr().Is4() {
				return
			}
			port := p.Remote.Port()
			if p.Remote.Addr() != sa.path.Remote.Addr() && p.Encap {
				port = portNATT // what a NAT that came just now made of it says nothing about that address
			}
			p.Remote = netip.AddrPortFrom(sa.path.Remote.Addr(), port)
		}
		sa.path = p
	case sa.est == nil:
		if p.Remote == sa.path.Remote && p.Encap == sa.path.Encap {
			sa.path.Local = p.Local
		}
	case sa.nat.remote && !sa.nat.local && p.Encap == sa.path.Encap:
		// Section 2.23: only the end that is not behind a NAT follows the other one, which is; and
		// never off port 4500, where ESP would leave the encapsulation that the NAT needs.
		sa.path = p
	}
	if sa.est != nil && sa.path != old {
		id, path := sa.id, sa.espPath()
		sa.tell(func(o Owner) { o.PathChanged(id, path) })
	}
}

// replyPath is where the answer to a request goes: back to where it came from (section 2.11).
func (sa *SA) replyPath(in *parsed) Path {
	if in.from != nil {
		return *in.from
	}
	return sa.path
}
