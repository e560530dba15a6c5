package ike

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"time"

	"wardgate/ike/message"
)

// SA is one IKE SA through all its rekeys: a state machine without I/O. Its owner steps it with
// events and carries out the actions it returns; nothing else may touch it.
type SA struct {
	host      host
	cfg       *Config
	id        SAID
	initiator bool // of the first generation
	state     State
	peer      *PeerConfig // nil for a responder that does not know yet
	path      Path
	nat       natState
	stream    streamState
	fragment  bool // the peer supports fragmentation, as we do
	begun     time.Time
	lastSeen  time.Time // last authentic message that was no repetition
	lastSent  time.Time // last datagram or keepalive
	lastHint  time.Time // last unprotected hint that the peer lost its state
	silence   silence

	// handshake is what IKE_SA_INIT and IKE_AUTH need; nil once established.
	handshake *handshake
	// est is nil before every round was proved by both ends; CHILD SAs live in it.
	est *established

	// cur is the generation that new requests of ours use; gens are all that still have SPIs:
	// those of a rekey collision and those being deleted too.
	cur  *generation
	gens []*generation

	// pending are SAs of the peer's that wait for their additional key exchanges.
	pending  []*pending
	lastLink uint64

	ppk     string          // ID of the PPK in use
	wanted  []string        // CHILD SAs asked for before the IKE SA stood
	packets map[string]Flow // that wait for a CHILD SA that was not asked for yet; nil: none

	// Of an IKE SA that is made in another one's place: that one, and where to begin.
	replaces SAID
	target   Path

	redirects redirects
	mob       *mobike // nil: not in use

	resume *session // to be resumed by us; nil once it was, or cannot be

	queues map[string]*queueGroup

	// Of the running step.
	now     time.Time
	actions []action

	ended   Reason // why our Delete was sent
	rejudge uint64 // job of judgeAgain
	lastJob uint64
}

// silence is how long requests of ours go unanswered, through rekeys by the peer, whose requests may still
// come: one way of the path may be broken.
type silence struct {
	since time.Time // the first one of them was sent; zero: none
	last  time.Time // one of them was sent
}

// sent notes that a request was sent, or sent again.
func (s *silence) sent(now time.Time) {
	if s.since.IsZero() || now.Sub(s.last) > 2*maxWait {
		s.since = now // what was asked before is not asked any more
	}
	s.last = now
}

// natState is what NAT detection found (RFC 7296, section 2.23).
type natState struct {
	local, remote bool // we are, the peer is behind a NAT
}

// Step feeds one event. now never runs backwards for long: a clock that was set back only
// delays timers.
func (sa *SA) Step(now time.Time, ev event) []action {
	sa.now = now
	sa.actions = nil
	if i, ok := ev.(evInitiate); ok && sa.state >= StateDeleting && sa.peer != nil {
		return []action{actAgain{sa.peer.Name, i}} // it met us on our way out
	}
	if sa.state == StateClosed {
		return nil
	}
	switch ev := ev.(type) {
	case evDatagram:
		sa.onDatagram(ev)
	case evFresh:
		sa.onFresh(ev)
	case evResume:
		sa.onResume(ev)
	case evAddresses:
		sa.onAddresses()
	case evRedirect:
		if sa.state == StateEstablished {
			sa.cur.enqueue(&redirectTask{ev.to})
		}
	case evResumed:
		sa.onResumed(ev)
	case evTimer:
		sa.onTimer()
	case evSigned:
		sa.onSigned(ev)
	case evSolved:
		sa.onSolved(ev)
	case evVerdict:
		sa.onVerdict(ev)
	case evPeers:
		sa.onPeers(ev.set)
	case evInitiate:
		sa.onInitiate(ev)
	case evTerminate:
		sa.terminate(ev.reason)
	case evKill:
		sa.close(ev.reason)
	case evDeleteChild:
		sa.onDeleteChild(ev.id, ev.reason)
	case evRekeyChild:
		sa.onRekeyChild(ev.id)
	case evRekeyIKE:
		if sa.state == StateEstablished {
			sa.rekeyIKE()
		}
	case evReauth:
		if sa.state == StateEstablished {
			sa.reauthenticate()
		}
	case evWantQueues:
		sa.onWantQueues(ev)
	case evInitialContact:
		sa.onInitialContact(ev)
	case evStream:
		sa.onStream(ev)
	case evStreamUsed:
		sa.adoptStream(ev.path)
	}
	if sa.state != StateClosed {
		sa.pump()
	}
	out := sa.actions
	sa.actions = nil
	return out
}

func (sa *SA) do(a action) { sa.actions = append(sa.actions, a) }

func (sa *SA) tell(f func(Owner)) { sa.do(actTell(f)) }

func (sa *SA) send(p Path, msgs [][]byte) {
	sa.lastSent = sa.now
	sa.do(actSend{p, msgs})
}

// ending tells that no new CHILD SA is to be asked of this IKE SA.
func (sa *SA) ending() bool { return sa.state >= StateDeleting }

// onDatagram finds the generation of a message and feeds it.
func (sa *SA) onDatagram(ev evDatagram) {
	h := ev.head
	if h.exchange == exchangeSAInit || h.exchange == exchangeResume {
		sa.onInitDatagram(ev)
		return
	}
	for _, g := range sa.gens {
		// The I flag is the role in the generation; both SPIs must be the ones of it.
		if g.spiI == h.spiI && g.spiR == h.spiR && g.initiator != h.fromInitiator {
			if h.response {
				if sa.est != nil && sa.hint(g, ev.msg) {
					return
				}
				g.onResponse(ev)
			} else {
				g.onRequest(ev)
			}
			return
		}
	}
}

// hint takes an unprotected INVALID_IKE_SPI: the peer may have lost its state. Anybody can send
// that, so it ends nothing; the peer is asked whether it lives, at most every ten seconds (RFC
// 7296, section 2.4).
//
// With the peer's token it is no hint: only the peer can have sent it, and it has no state of g any
// more (RFC 6290, section 4.5).
func (sa *SA) hint(g *generation, msg []byte) bool {
	m, err := message.Parse(msg)
	if err != nil || m.Encrypted != nil {
		return false
	}
	if g.crashed(m.Payloads) {
		sa.peerForgot(g)
		return true
	}
	if m.Payloads.HasNotify(message.NotifyInvalidIKESPI) && sa.state == StateEstablished && sa.cur.req == nil &&
		len(sa.cur.queue) == 0 && due(sa.now, sa.lastHint.Add(hintInterval)) {
		sa.lastHint = sa.now
		sa.cur.enqueue(&livenessTask{})
	}
	return true
}

const hintInterval = 10 * time.Second

// peerForgot: the peer does not have g any more. Of one that was replaced that is no surprise: our
// request came twice, say, and the second time after its end. The peer is asked whether it has what
// took its place. The one in use ends without a word.
func (sa *SA) peerForgot(g *generation) {
	switch {
	case g != sa.cur || g.successor != nil:
		sa.dropOld(g)
		if sa.state == StateEstablished && sa.cur.req == nil && len(sa.cur.queue) == 0 {
			sa.cur.enqueue(&livenessTask{})
		}
	case sa.state == StateDeleting:
		sa.close(sa.ended)
	default:
		sa.close(Reason{Code: ReasonPeerCrashed, Text: "the peer lost this IKE SA and shows its token (RFC 6290)", Remote: true})
	}
}

// deadline is when the SA wants an evTimer; zero: never.
func (sa *SA) deadline() time.Time {
	var d time.Time
	add := func(t time.Time) {
		if !t.IsZero() && (d.IsZero() || t.Before(d)) {
			d = t
		}
	}
	if sa.state == StateClosed {
		return d
	}
	add(sa.stream.openBy)
	if sa.handshake != nil {
		add(sa.handshake.deadline)
		add(sa.handshake.silentBy)
		add(sa.handshake.giveUp)
	}
	for _, g := range sa.gens {
		add(g.deadline())
	}
	add(sa.pendingDeadline())
	if sa.est != nil {
		add(sa.est.deadline(sa))
	}
	return d
}

func (sa *SA) onTimer() {
	if h := sa.handshake; h != nil {
		if due(sa.now, h.deadline) || due(sa.now, h.silentBy) {
			sa.halfOpenExpired()
			return
		}
		if due(sa.now, h.giveUp) {
			sa.initFailed(h.giveUpErr)
			return
		}
	}
	if due(sa.now, sa.stream.openBy) {
		sa.nextGateway(ErrPeerDead)
		return
	}
	sa.expirePending()
	for _, g := range slices.Clone(sa.gens) {
		g.onTimer()
		if sa.state == StateClosed {
			return
		}
	}
	if sa.est != nil {
		sa.est.onTimer(sa)
	}
}

var zeroTime time.Time

func due(now, at time.Time) bool { return !at.IsZero() && !now.Before(at) }

// pump starts the next exchange wherever none is under way.
func (sa *SA) pump() {
	for _, g := range slices.Clone(sa.gens) {
		g.pump()
	}
}

// close ends the IKE SA here and now, without a word to the peer, and wipes its keys.
func (sa *SA) close(r Reason) {
	if sa.state == StateClosed {
		return
	}
	was := sa.state
	sa.state = StateClosed
	sa.endSession(r)
	if sa.est != nil {
		// The newest first: none of them takes another one's place now.
		for _, c := range slices.Backward(slices.Clone(sa.est.children)) {
			sa.est.remove(sa, c, r)
		}
		info := sa.info()
		sa.tell(func(o Owner) { o.IKEDown(info, r) })
	} else if sa.initiator && (was == StateInit || was == StateAuth) {
		err := sa.handshake.failure
		if err == nil {
			err = fmt.Errorf("%w: %s", ErrTerminated, r.Text)
		}
		sa.tellInitiateFailed("", err)
	}
	if sa.handshake != nil {
		sa.handshake.wipe()
		sa.handshake = nil
	}
	sa.forgetAll(nil)
	for _, g := range sa.gens {
		g.wipe()
	}
	sa.gens, sa.cur = nil, nil
	sa.dropStreams()
	sa.do(actClosed{})
}

func (sa *SA) tellInitiateFailed(child string, err error) {
	peer := sa.peer.Name
	sa.tell(func(o Owner) { o.InitiateFailed(peer, child, err) })
}

// refuse reports a refusal to the owner. What the peer is told is another matter.
func (sa *SA) refuse(e *RefusedError) {
	r := Refusal{At: sa.now, Remote: sa.path.Remote, Round: e.Round, Code: e.Code, Text: e.Text, Err: e.Err}
	if sa.peer != nil {
		r.Peer = sa.peer.Name
	}
	if h := sa.handshake; h != nil {
		r.IDs = slices.Clone(h.claimed)
		if sa.peer == nil && len(h.candidates) == 1 && h.candidates[0].n == 1 {
			r.Peer = h.candidates[0].first.Name
		}
		if e.Round >= 0 {
			r.Role = h.role(e.Round)
		}
	} else if sa.est != nil {
		r.IDs = slices.Clone(sa.est.remoteIDs)
	}
	sa.tell(func(o Owner) { o.Refused(r) })
}

func (sa *SA) info() SAInfo {
	i := SAInfo{
		ID: sa.id, Initiator: sa.initiator, Path: sa.espPath(),
		NATLocal: sa.nat.local, NATRemote: sa.nat.remote,
	}
	if sa.peer != nil {
		i.Peer = sa.peer.Name
	}
	if sa.cur != nil {
		i.SPIi, i.SPIr, i.Suite = sa.cur.spiI, sa.cur.spiR, sa.cur.chosen.String()
	}
	if sa.est != nil {
		i.LocalIDs, i.RemoteIDs = sa.est.localIDs, sa.est.remoteIDs
		i.RemoteCerts, i.Created, i.PPK = sa.est.remoteCerts, sa.est.created, sa.ppk
		i.Assigned = sa.est.net.clone()
		i.Resumed, i.Authenticated = sa.est.resumed, sa.est.authenticated
	}
	return i
}

func (sa *SA) status(now time.Time) SAStatus {
	s := SAStatus{SAInfo: sa.info(), State: sa.state, LastSeen: sa.lastSeen, Age: now.Sub(sa.begun)}
	if sa.est != nil {
		s.Age = now.Sub(sa.est.created)
		s.Rekeyed = sa.est.rekeyed
		for _, c := range sa.est.children {
			s.Children = append(s.Children, c.status(now))
		}
	}
	return s
}

// espPath is the path as the data path must know it: Encap says whether ESP is encapsulated.
// IKE may run over port 4500 without a NAT, but then ESP need not (RFC 7296, section 2.23).
func (sa *SA) espPath() Path {
	p, nat := sa.mob.dataPath(sa.path, sa.nat)
	p.Encap = p.Encap && (nat.local || nat.remote)
	return p
}

func (sa *SA) job() uint64 {
	sa.lastJob++
	return sa.lastJob
}

// rekeyAt is when an SA with the soft lifetime d that is made now is to be rekeyed by us. The end
// that made it is due first, up to a tenth of d early; the other one waits a moment longer, so that
// two ends with the same settings do not rekey at the same time (RFC 7296, section 2.8) however
// short d is.
func (sa *SA) rekeyAt(d time.Duration, made bool) time.Time {
	v, _ := randUint64(sa.host.rand()) // without randomness 0 is as good
	part := time.Duration(v % 1000)
	if made {
		return sa.now.Add(d - part*(d/10/1000))
	}
	return sa.now.Add(d + otherEnd/2 + part*(otherEnd/2/1000))
}

// otherEnd is how long, at most, the end that did not make an SA lets the other one rekey it first:
// a round trip, and one repetition.
const otherEnd = 3 * time.Second

func randUint64(r io.Reader) (uint64, error) {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, fmt.Errorf("ike: random source: %w", err)
	}
	return binary.BigEndian.Uint64(b[:]), nil
}
