package ike

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// Session resumption (RFC 5723), as the end that has the ticket: who loses its peer, because that
// one has restarted or does not answer any more, shows the ticket in IKE_SESSION_RESUME, and the
// IKE SA is back without a key exchange, a signature or a certificate on the wire. Whatever stands
// in the way, a full handshake follows in the same attempt.
//
// A resumed IKE SA has the rights of all rounds that the ticket stands for, and both ends judge
// them anew: by the connections, revocation lists and trust of today, and by the time. Its keys
// come of the old SK_d alone, so that they are no safer than the maker's ticket secret; the one who
// resumed therefore rekeys IKE and CHILD SA, with a key exchange, within two minutes.
const (
	resumeTries   = 2 // repetitions of IKE_SESSION_RESUME before it is done without
	resumeRekey   = time.Minute
	minTicketLife = time.Minute
)

// takeSessionLocked returns the session of a connection, once.
func (ep *Endpoint) takeSessionLocked(peer string) *session {
	s := ep.sessions[peer]
	delete(ep.sessions, peer)
	return s
}

// forgetSessions drops those of connections that are gone.
func (ep *Endpoint) forgetSessions(names map[string]bool) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	for peer, s := range ep.sessions {
		if !names[peer] {
			s.wipe()
			delete(ep.sessions, peer)
		}
	}
}

// keepSession keeps the newest session of a connection.
func (b *box) keepSession(s *session) {
	b.ep.mu.Lock()
	defer b.ep.mu.Unlock()
	b.ep.sessions[s.peer].wipe()
	delete(b.ep.sessions, s.peer)
	if b.gone || b.ep.closed || b.ep.peers.Load().byName[s.peer] == nil {
		s.wipe()
		return
	}
	b.ep.sessions[s.peer] = s
}

// dropSession forgets the session that was of an IKE SA.
func (b *box) dropSession(peer string, of SAID) {
	b.ep.mu.Lock()
	defer b.ep.mu.Unlock()
	if s := b.ep.sessions[peer]; s != nil && s.said == of {
		s.wipe()
		delete(b.ep.sessions, peer)
	}
}

// endSession forgets the ticket of an IKE SA that ends, unless it ends because the peer is gone: that
// is what the ticket is for (RFC 5723, section 6.2).
func (sa *SA) endSession(r Reason) {
	sa.resume.wipe()
	sa.resume = nil
	if sa.est != nil && sa.est.ticketed && r.Code != ReasonPeerDead && r.Code != ReasonPeerCrashed {
		sa.host.dropSession(sa.peer.Name, sa.id)
	}
}

// startResume begins an attempt with the ticket, if there is one that is good today; else with
// IKE_SA_INIT.
func (sa *SA) startResume() {
	s := sa.resume
	if s == nil {
		sa.startInit()
		return
	}
	known := sa.peer.mayGoTo(s.path.Remote.Addr())
	_, err := s.fits(sa.peer, sa.now)
	if err == nil && !known {
		err = badTicket("%v is no gateway of connection %q any more", s.path.Remote.Addr(), sa.peer.Name)
	}
	if err != nil {
		sa.resumeFailed(err)
		return
	}
	// The responder's certificates are judged as of now, before it is spoken to.
	queries := sa.queriesOf(s.proofs)
	if len(queries) == 0 { // pre-shared keys, whose marks fit
		convince(s.proofs, sa.peer)
		sa.presentTicket()
		return
	}
	h := sa.handshake
	h.session, sa.resume = s, nil
	h.job, h.verifying = sa.job(), true
	sa.do(judgeChains(h.job, queries))
}

// queriesOf asks for the certificates that were proved.
func (sa *SA) queriesOf(proofs []proof) []CertQuery {
	parseProofs(proofs)
	return certQueries(sa.peer, proofs, sa.now)
}

// presentTicket sends IKE_SESSION_RESUME.
func (sa *SA) presentTicket() {
	h := sa.handshake
	if sa.resume != nil {
		h.session, sa.resume = sa.resume, nil
	}
	s := h.session
	h.gateway = slices.IndexFunc(sa.peer.Remote, func(a netip.AddrPort) bool { return a.Addr() == s.path.Remote.Addr() })
	if h.gateway < 0 {
		sa.target = sa.redirectPath(s.path.Remote.Addr()) // where it had been redirected to
	}
	sa.aim()
	if !sa.onlyTCP() {
		sa.beginResume()
	}
}

// beginResume sends IKE_SESSION_RESUME on the path.
func (sa *SA) beginResume() {
	if err := sa.begin(); err != nil {
		sa.fail(err)
		return
	}
	sa.sendTicket()
}

func (sa *SA) sendTicket() {
	h, g := sa.handshake, sa.cur
	out := newOutgoing()
	if h.cookie != nil {
		out.notify(message.NotifyCookie, h.cookie)
	}
	out.nonce(h.ni).notify(message.NotifyTicketOpaque, h.session.ticket)
	sa.addInitNotifies(out, g.spiI, 0, sa.path, sa.claimsNAT())
	raw, err := message.Encode(message.Header{
		SPIi: spiBytes(g.spiI), Exchange: message.ExchangeIKESessionResume, Flags: message.FlagInitiator,
	}, out.ps)
	if err != nil {
		sa.fail(fmt.Errorf("ike: encoding IKE_SESSION_RESUME: %w", err))
		return
	}
	h.initReq = raw
	g.sendID = 0
	g.launch(initTask{}, exchangeResume, [][]byte{raw})
}

// resumeFailed goes on without the ticket: a full handshake, in the same attempt.
func (sa *SA) resumeFailed(err error) {
	h := sa.handshake
	sa.refuse(refused(CodeTicket, -1, err, "the IKE SA is not resumed, all rounds are proved again"))
	sa.resume.wipe()
	h.session.wipe()
	sa.resume, h.session = nil, nil
	if h.childID != 0 {
		sa.host.freeESPSPI(h.childSPI, h.childID)
		sa.wanted = append([]string{h.childCfg.Name}, sa.wanted...)
		h.childID, h.childSPI, h.childCfg = 0, 0, nil
	}
	if g := sa.cur; g != nil {
		sa.host.freeIKESPI(g.spiI)
		g.wipe()
		sa.gens, sa.cur = nil, nil
	}
	*h = handshake{authState: newAuthState()}
	h.candidates = alone(sa.peer)
	h.gateway = 0
	sa.state, sa.nat, sa.fragment, sa.ppk = StateInit, natState{}, false, ""
	if sa.path.Stream != 0 && sa.path.Stream == sa.stream.own {
		sa.beginInit() // the TCP connection is good
		return
	}
	sa.startInit()
}

// onResumeResponse takes the answer to IKE_SESSION_RESUME, which nothing protects yet.
func (sa *SA) onResumeResponse(ev evDatagram, in *parsed) {
	h, g := sa.handshake, sa.cur
	if n := in.notify(message.NotifyCookie); n != nil {
		if h.restarts++; len(n.Data) >= 1 && len(n.Data) <= 64 && h.restarts <= maxInitRestarts {
			h.cookie = slices.Clone(n.Data)
			sa.sendTicket()
		}
		return
	}
	// A forged refusal costs the full handshake that the peer would have had anyway.
	if in.has(message.NotifyTicketNack) {
		sa.resumeFailed(badTicket("the peer does not take it"))
		return
	}
	if n := in.errorNotify(); n != nil {
		sa.resumeFailed(peerError(n, "IKE_SESSION_RESUME"))
		return
	}
	if in.nonce == nil || ev.head.spiR == 0 {
		return
	}
	chosen, err := h.session.fits(sa.peer, sa.now)
	if err != nil {
		sa.resumeFailed(err)
		return
	}
	g.spiR, g.chosen = ev.head.spiR, chosen
	if err := g.protectResumed(h.session, h.ni, in.nonce); err != nil {
		g.spiR = 0
		return // not a nonce that can be meant; wait for a better answer
	}
	sa.takeInitResponse(ev, in)
	sa.sendResumeAuth()
}

// protectResumed derives the keys (RFC 5723, section 5.1).
func (g *generation) protectResumed(s *session, ni, nr []byte) error {
	prf, err := suite.NewPRF(g.chosen.PRF)
	if err != nil {
		return err
	}
	if err := prf.CheckNonce(nr); err != nil {
		return err
	}
	if err := prf.CheckNonce(ni); err != nil {
		return err
	}
	return g.protect(suite.NewSecret(prf.Sum(s.skd, []byte("Resumption"), ni, nr)), ni, nr)
}

// resumeAUTH is the AUTH value of one end: a MAC with SK_p (RFC 5723, section 4.3.3).
func (sa *SA) resumeAUTH(initiator bool, id *message.ID) []byte {
	h, g := sa.handshake, sa.cur
	msg, nonce := h.initResp, h.ni
	if initiator {
		msg, nonce = h.initReq, h.nr
	}
	key := skp(g.prot.keys, initiator)
	return g.prot.prf.Sum(key, suite.SignedOctets(g.prot.prf, key, msg, nonce, id.Body(), nil))
}

// sendResumeAuth sends the one IKE_AUTH request of a resumed IKE SA. It names the identities of the
// first round, as the ticket has them; those of the others, which it stands for too, have no place
// in it.
func (sa *SA) sendResumeAuth() {
	h := sa.handshake
	r := h.session.rounds[0]
	id := r.local.payload(false)
	out := newOutgoing().add(id, &message.Auth{Method: message.AuthMethod(suite.AuthPSK), Data: sa.resumeAUTH(true, id)})
	out.add(r.remote.payload(true))
	sa.addCrashToken(out, sa.cur)
	if sa.host.firstContact(sa.peer) {
		out.notify(message.NotifyInitialContact, nil)
	}
	out.notify(message.NotifyTicketRequest, nil)
	sa.announceMobike(out)
	sa.addConfigRequest(out)
	if !sa.addFirstChild(out) {
		return
	}
	sa.cur.start(resumeTask{}, exchangeAuth, out)
}

// resumeTask is the IKE_AUTH request.
type resumeTask struct{}

func (resumeTask) build(*SA, *generation) (uint8, *outgoing, bool) { return 0, nil, false }

func (resumeTask) done(sa *SA, g *generation, in *parsed) {
	h := sa.handshake
	if h == nil || h.session == nil || sa.state != StateAuth {
		return
	}
	if n := in.errorNotify(); n != nil && in.auth == nil {
		sa.resumeFailed(peerError(n, "IKE_AUTH after IKE_SESSION_RESUME"))
		return
	}
	bad := func(code Code, format string, args ...any) { sa.abort(refused(code, 0, nil, format, args...)) }
	s := h.session
	if err := message.FormIKEAuthOnlyResponse.Check(in.ps); err != nil {
		sa.abort(refused(CodeSyntax, 0, err, "the answer to IKE_AUTH after IKE_SESSION_RESUME is malformed"))
		return
	}
	switch {
	case in.idr == nil || in.auth == nil || len(in.certs) > 0:
		bad(CodeSyntax, "the answer to IKE_AUTH after IKE_SESSION_RESUME lacks IDr or AUTH, or holds a certificate")
	case in.has(message.NotifyAnotherAuthFollows):
		bad(CodeTooManyRounds, "the peer announces another round after a ticket, which stands for all")
	case identityOf(in.idr) != s.rounds[0].remote:
		bad(CodeIDMismatch, "the ticket is of %v, the peer says it is %v", s.rounds[0].remote, identityOf(in.idr))
	case uint8(in.auth.Method) != suite.AuthPSK || !sameMAC(in.auth.Data, sa.resumeAUTH(false, in.idr)):
		bad(CodeBadSignature, "the peer does not prove that it has the keys of the IKE SA that the ticket is of")
	default:
		if err := sa.takeSession(); err != nil {
			sa.abort(refused(CodeTicket, -1, err, "the IKE SA cannot be resumed"))
			return
		}
		sa.allProved(in)
	}
}

// takeSession has the ticket stand for all rounds. What it needs was judged by now; establish
// counts once more.
func (sa *SA) takeSession() error {
	h := sa.handshake
	s := h.session
	if _, err := s.fits(sa.peer, sa.now); err != nil {
		return err
	}
	if len(s.proofs) != len(s.rounds) || len(s.leaves) != len(s.rounds) {
		return badTicket("%d rounds, of which %d were judged", len(s.rounds), len(s.proofs))
	}
	for i, r := range s.rounds {
		p := s.proofs[i]
		if !p.id.Equal(r.remote) || len(p.convinced) == 0 {
			return badTicket("round %d was not judged", i+1)
		}
		h.claimed = append(h.claimed, r.remote)
		h.localIDs = append(h.localIDs, r.local)
		h.leaves = append(h.leaves, s.leaves[i])
		h.proofs = append(h.proofs, p)
	}
	sa.ppk = s.ppk
	return nil
}

// onResumeVerdict takes the verdicts about the certificates that a ticket stands for.
func (sa *SA) onResumeVerdict(ev evVerdict) {
	h := sa.handshake
	if ev.job != h.job || !h.verifying {
		return
	}
	h.job, h.verifying = 0, false
	var first error
	for _, err := range ev.verdicts {
		if err != nil && first == nil {
			first = err
		}
	}
	if !sa.initiator {
		sa.resumeJudged(first)
		return
	}
	if first != nil {
		sa.resumeFailed(first)
		return
	}
	convince(h.session.proofs, sa.peer)
	sa.presentTicket()
}

// convince notes that every round of the session was judged by what the connection trusts today.
func convince(proofs []proof, cfg *PeerConfig) {
	for i := range proofs {
		proofs[i].convinced = []*RemoteAuth{&cfg.RemoteAuth[i]}
	}
}

// takeTicket keeps what the peer gave us with an answer under the keys of g (section 4.2).
func (sa *SA) takeTicket(g *generation, in *parsed) {
	n := in.notify(message.NotifyTicketLTOpaque)
	if n == nil || len(n.Data) <= 4 || len(n.Data) > 4+maxPeerTicket || sa.state != StateEstablished || g != sa.cur || len(sa.peer.Remote) == 0 {
		return
	}
	life := time.Duration(binary.BigEndian.Uint32(n.Data)) * time.Second
	if life < minTicketLife {
		return
	}
	life = min(life, maxTicketLifetime)
	e := sa.est
	s := e.session(sa, g, sa.now.Add(life), nil)
	s.said, s.ticket, s.path = sa.id, slices.Clone(n.Data[4:]), sa.path
	s.proofs, s.leaves = slices.Clone(e.proofs), e.localLeaves
	e.ticketed = true
	e.ticketAt = sa.now.Add(life*3/4 - sa.spread(life/8))
	sa.host.keepSession(s)
}

// session is the state of an IKE SA that is resumed by a ticket, until expires at the latest. prior is one
// before with the same certificates, or nil.
func (e *established) session(sa *SA, g *generation, expires time.Time, prior *session) *session {
	s := &session{
		peer: sa.peer.Name, spiI: g.spiI, spiR: g.spiR, initiator: g.initiator, offer: g.chosen.Answer(nil),
		skd: g.prot.keys.SKd.Clone(), ppk: sa.ppk, authenticated: e.authenticated, expires: expires,
	}
	for i, p := range e.proofs {
		r := sessionRound{local: e.localIDs[i], remote: p.id}
		if prior != nil {
			r.localMark, r.remoteMark, r.path = prior.rounds[i].localMark, prior.rounds[i].remoteMark, prior.rounds[i].path
		}
		switch {
		case e.localLeaves[i] == nil:
			r.localMark = pskMark(s.skd, sa.peer.LocalAuth[i].PSK)
		case prior == nil:
			r.localMark = certMark(e.localLeaves[i])
		}
		switch {
		case p.leaf == nil:
			r.remoteMark = pskMark(s.skd, sa.peer.RemoteAuth[i].PSK)
		case prior == nil:
			r.remoteMark = certMark(p.leaf)
		}
		s.rounds = append(s.rounds, r)
	}
	return s
}

// renewTicket asks for another ticket after the keys were replaced, when there was one.
func (sa *SA) renewTicket() {
	if !sa.est.ticketed {
		return
	}
	sa.host.dropSession(sa.peer.Name, sa.id)
	sa.est.ticketAt = zeroTime
	sa.cur.enqueue(&ticketTask{})
}

// ticketTask asks for a ticket in an exchange of its own (section 4.1).
type ticketTask struct{}

func (*ticketTask) build(sa *SA, _ *generation) (uint8, *outgoing, bool) {
	return exchangeInformational, newOutgoing().notify(message.NotifyTicketRequest, nil), sa.state == StateEstablished && sa.est.ticketed
}

func (*ticketTask) done(sa *SA, g *generation, in *parsed) {
	if sa.state == StateEstablished {
		sa.takeTicket(g, in)
	}
}

// freshenResumed makes the rekeys due that give a resumed IKE SA, and then its CHILD SA, keys that no
// ticket can be opened for: not at once, because many may have been resumed at the same time.
func (sa *SA) freshenResumed() {
	e := sa.est
	if !e.resumed || sa.state != StateEstablished {
		return
	}
	soon := func(at *time.Time, after time.Duration) {
		if t := sa.now.Add(after + sa.spread(resumeRekey)); t.Before(*at) {
			*at = t
		}
	}
	soon(&e.rekeyAt, resumeRekey)
	for _, c := range e.children {
		soon(&c.rekeyAt, 2*resumeRekey)
	}
}
