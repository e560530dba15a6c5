package ike

import (
	"fmt"
	"net/netip"
	"time"
)

// TCP encapsulation (RFC 9329). A stream is a TCP connection that carries one IKE SA and its CHILD
// SAs. Who initiated the IKE SA opens it, and opens it anew whenever it breaks (section 6.1): the
// owner of the Endpoint does that, under one number; the state machine says when, and is told when
// the stream stands. The other end follows the newest stream on which something authentic came.

// TCPMode says when an initiator uses TCP encapsulation. A responder takes what comes.
type TCPMode uint8

// The modes. With TCPFallback IKE_SA_INIT goes over UDP first, and over TCP when a few of them were
// not answered and the gateway takes the TCP connection; UDP goes on until then. So does an IKE_AUTH
// that is not answered: where port 500 gets through and port 4500 does not.
const (
	TCPNever TCPMode = iota
	TCPFallback
	TCPAlways
)

// How many times a request is repeated over UDP before TCP is tried. A peer may take its time for
// the signatures of IKE_AUTH.
const (
	tcpAfterInit   = 3
	tcpAfterResume = resumeTries // then a full handshake begins, over UDP first
	tcpAfterAuth   = 4
)

// openingTime is how long a gateway may take to accept the TCP connection when there is nothing else to
// wait for.
const openingTime = 15 * time.Second

type (
	// evStream: the stream stands, again perhaps, or (err) could not be opened, or broke.
	evStream struct {
		path Path
		err  error
	}
	// evStreamUsed: an authentic ESP packet came in on it.
	evStreamUsed struct{ path Path }

	// actOpenStream: open a stream, and keep it open.
	actOpenStream struct {
		stream uint64
		local  netip.Addr
		remote netip.AddrPort
	}
	// actCloseStream: send what waits, and close it.
	actCloseStream struct{ stream uint64 }
)

func (evStream) isEvent()        {}
func (evStreamUsed) isEvent()    {}
func (actOpenStream) isAction()  {}
func (actCloseStream) isAction() {}

// streamState is what an IKE SA knows of the streams that it opens. Zero: none.
type streamState struct {
	opening uint64    // not standing yet; UDP may still answer meanwhile
	openBy  time.Time // there is nothing but the stream to wait for; zero: there is
	own     uint64    // the one in use
}

// usesTCP tells whether the initiator may use TCP.
func (sa *SA) usesTCP() bool { return sa.cfg.OpenStream != nil && sa.peer.TCP != TCPNever }

// onlyTCP opens a stream where UDP is not to be tried, and tells whether it did.
func (sa *SA) onlyTCP() bool {
	if !sa.usesTCP() || sa.peer.TCP != TCPAlways {
		return false
	}
	sa.stream.openBy = sa.now.Add(openingTime)
	sa.openStream(sa.path.Local.Addr(), sa.path.Remote)
	return true
}

// claimsNAT tells whether a NAT is claimed so that ESP is encapsulated in UDP. In TCP it is anyway.
func (sa *SA) claimsNAT() bool { return sa.peer.ForceEncap && sa.path.Stream == 0 }

// openStream begins to open a stream to the gateway.
func (sa *SA) openStream(local netip.Addr, gateway netip.AddrPort) {
	port := sa.peer.TCPPort
	if port == 0 {
		port = portNATT // RFC 9329, section 2
	}
	sa.stream.opening = sa.host.newStream()
	sa.do(actOpenStream{sa.stream.opening, local, netip.AddrPortFrom(gateway.Addr(), port)})
}

// dropStreams closes what the IKE SA has opened.
func (sa *SA) dropStreams() {
	for _, s := range []uint64{sa.stream.opening, sa.stream.own} {
		if s != 0 {
			sa.do(actCloseStream{s})
		}
	}
	sa.stream = streamState{}
}

// tryTCP is called when a request over UDP is repeated: it is time to open a stream beside it.
func (sa *SA) tryTCP(r *request) {
	if !sa.initiator || sa.est != nil || !sa.usesTCP() || sa.path.Stream != 0 || sa.stream.opening != 0 {
		return
	}
	after := tcpAfterInit
	switch {
	case sa.state == StateAuth:
		after = tcpAfterAuth
	case r.exchange == exchangeResume:
		after = tcpAfterResume
	}
	if r.tries >= after {
		sa.openStream(sa.path.Local.Addr(), sa.path.Remote)
	}
}

// onStream: a stream that this IKE SA opened stands, or does not.
func (sa *SA) onStream(ev evStream) {
	id := ev.path.Stream
	switch {
	case id == 0:
	case id == sa.stream.opening && ev.err == nil && sa.unheard():
		sa.stream.opening, sa.stream.own, sa.stream.openBy = 0, id, time.Time{}
		sa.startOverTCP(ev.path)
	case id == sa.stream.opening:
		sa.do(actCloseStream{id})
		sa.stream.opening = 0
		if !sa.stream.openBy.IsZero() {
			sa.stream.openBy = time.Time{}
			sa.nextGateway(ev.err)
		}
		// Else UDP goes on as if there were no TCP, and the next repetition tries again.
	case id != sa.stream.own:
	case ev.err == nil:
		sa.moveTo(ev.path)
		if sa.state == StateEstablished && sa.cur.req == nil && len(sa.cur.queue) == 0 {
			// RFC 9329, section 6.1: so that the peer learns where we are.
			sa.cur.enqueue(&livenessTask{})
		}
	case sa.state == StateInit && sa.handshake.solving.stopped != nil:
		// RFC 9329, section 6.3: the gateway keeps no state while a puzzle is solved, and the answer may
		// come over another connection, which is being opened.
	case sa.state == StateInit:
		// Whoever took the connection does not want to talk to us.
		sa.nextGateway(ev.err)
	}
}

// unheard tells that the gateway has not answered over UDP.
func (sa *SA) unheard() bool {
	return sa.state == StateInit || sa.state == StateAuth && sa.cur.req != nil && sa.cur.req.tries >= tcpAfterAuth
}

// startOverTCP begins the IKE SA anew on a stream: with another SPI and NAT detection for the TCP
// ports (RFC 9329, section 5.1).
func (sa *SA) startOverTCP(p Path) {
	old := sa.handshake
	session := old.session // the ticket is as good as before
	old.session = nil
	sa.dropHandshake()
	if old.childCfg != nil { // the first CHILD SA was asked for
		sa.wanted = append([]string{old.childCfg.Name}, sa.wanted...)
		sa.host.freeESPSPI(old.childSPI, old.childID)
	}
	sa.handshake = &handshake{authState: newAuthState(), gateway: old.gateway, failure: old.failure}
	sa.handshake.candidates, sa.handshake.session = alone(sa.peer), session
	sa.state, sa.nat, sa.fragment, sa.ppk, sa.path = StateInit, natState{}, false, "", p
	if session != nil {
		sa.beginResume()
		return
	}
	sa.beginInit()
}

// dropHandshake wipes what an attempt at a gateway has made.
func (sa *SA) dropHandshake() {
	if g := sa.cur; g != nil {
		sa.host.freeIKESPI(g.spiI)
		g.wipe()
	}
	sa.gens, sa.cur = nil, nil
	sa.handshake.wipe()
}

// adoptStream follows the peer to the stream on which something authentic came that was no
// repetition (RFC 9329, section 6.1). Streams are numbered in the order in which they were opened: what
// the old one still had under way does not lead back to it.
func (sa *SA) adoptStream(p Path) {
	switch {
	case p.Stream == 0 || sa.stream.own != 0:
		// Who opens the streams knows which one is in use.
	case sa.est == nil && !sa.initiator && sa.path.Stream != 0, sa.est != nil && p.Stream > sa.path.Stream && sa.path.Stream != 0:
		sa.moveTo(p)
	}
}

// moveTo goes on over another TCP connection. A request that waits for its answer is sent again
// there: nobody knows what of it the old one delivered (RFC 9329, section 6.2).
func (sa *SA) moveTo(p Path) {
	moved := p != sa.path
	sa.path = p
	for _, g := range sa.gens {
		if r := g.req; r != nil {
			r.next = sa.now.Add(sa.waitFor(r))
			sa.send(sa.path, r.msgs)
		}
	}
	if moved && sa.est != nil {
		id, path := sa.id, sa.espPath()
		sa.tell(func(o Owner) { o.PathChanged(id, path) })
	}
}

// waitFor is how long to wait for the answer to a request. TCP repeats for us (RFC 9329, section 6.2):
// there it is as long as all repetitions would take.
func (sa *SA) waitFor(r *request) time.Duration {
	if sa.path.Stream == 0 {
		return r.wait
	}
	return sa.peer.retransmit().total()
}

// total is how long a request may go without an answer.
func (r Retransmit) total() time.Duration {
	sum, wait := time.Duration(0), r.Initial
	for range r.Tries + 1 {
		sum += wait
		wait = min(time.Duration(float64(wait)*r.Factor), maxWait)
	}
	return sum
}

// patienceForBetter is how long an error in an answer to IKE_SA_INIT waits for a better answer. On a TCP
// connection there will be none (RFC 9329, section 6.4).
func (sa *SA) patienceForBetter() time.Duration {
	if sa.path.Stream != 0 {
		return 0
	}
	return sa.peer.retransmit().Initial / 2
}

// cookieAddr is what a cookie is bound to: it may come back over another TCP connection, from
// another port (RFC 9329, section 6.3).
func (p Path) cookieAddr() netip.AddrPort {
	if p.Stream != 0 {
		return netip.AddrPortFrom(p.Remote.Addr(), 0)
	}
	return p.Remote
}

// NewStream returns a number for a TCP connection that a peer has opened.
func (ep *Endpoint) NewStream() uint64 { return ep.nextStream.Add(1) }

// newStream returns a number for a TCP connection that the IKE SA opens; what becomes of it is told
// to this box.
func (b *box) newStream() uint64 {
	id := b.ep.NewStream()
	b.ep.mu.Lock()
	defer b.ep.mu.Unlock()
	if !b.gone {
		b.ep.streams[id] = b
		b.streams = append(b.streams, id)
	}
	return id
}

// closeStream forgets a stream that the IKE SA opened, and has it closed.
func (b *box) closeStream(id uint64) {
	b.ep.mu.Lock()
	delete(b.ep.streams, id)
	b.streams = remove(b.streams, id)
	b.ep.mu.Unlock()
	if f := b.ep.cfg.CloseStream; f != nil {
		f(id)
	}
}

// StreamUp tells that a TCP connection that Config.OpenStream was asked for stands, for the first
// time or again.
func (ep *Endpoint) StreamUp(p Path) { ep.streamEvent(evStream{path: p}) }

// StreamDown tells that it could not be opened, or broke; why must not be nil.
func (ep *Endpoint) StreamDown(stream uint64, why error) {
	ep.streamEvent(evStream{path: Path{Stream: stream}, err: fmt.Errorf("ike: TCP connection: %w", why)})
}

func (ep *Endpoint) streamEvent(ev evStream) {
	ep.mu.Lock()
	b := ep.streams[ev.path.Stream]
	ep.mu.Unlock()
	if b != nil {
		b.post(ev)
	}
}

// StreamUsed tells that an authentic ESP packet of a CHILD SA of this IKE SA, no replay, came in on a
// TCP connection that the peer has opened and that is not the path of the IKE SA.
func (ep *Endpoint) StreamUsed(id SAID, p Path) {
	ep.mu.Lock()
	b := ep.boxes[id]
	ep.mu.Unlock()
	if b != nil {
		b.post(evStreamUsed{p})
	}
}
