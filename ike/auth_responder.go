package ike

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// onAuthRequest takes an authentic request before the IKE SA stands. Nothing but IKE_AUTH is
// carried out then, whatever comes.
func (sa *SA) onAuthRequest(g *generation, in *parsed) {
	h := sa.handshake
	if h == nil || sa.state != StateAuth {
		return
	}
	if h.session != nil {
		sa.onResumeAuth(g, in)
		return
	}
	if in.exchange == exchangeIntermediate && !h.answering() {
		sa.onIntermediate(g, in)
		return
	}
	if in.exchange != exchangeAuth {
		if in.exchange == exchangeInformational && (in.has(notifyAuthFailed) || len(in.deletes) > 0) {
			// The initiator does not accept us, or gives up.
			sa.refuse(refused(CodePeerRefused, h.round, nil, "the initiator gave up in authentication round %d; its own records say why", h.round+1))
			g.respond(in, newOutgoing())
			sa.close(Reason{Code: ReasonDeletedByPeer, Text: "the initiator gave up before it was authenticated", Remote: true})
			return
		}
		sa.refuseAuth(refused(CodeUnexpected, h.round, nil, "%s before authentication round %d was done; only IKE_AUTH is allowed", exchangeName(in.exchange), h.round+1))
		return
	}
	h.req = in
	if n := len(h.inter.methods); n > 0 {
		// RFC 9242, section 3.2: all of them are done before.
		sa.refuseAuth(refused(CodeUnexpected, h.round, nil, "IKE_AUTH while %d of the additional key exchanges that were agreed on are missing, %s first", n, suite.KEName(h.inter.methods[0])))
		return
	}
	if h.round == 0 {
		h.inter.mid = in.id
	}
	if err := sa.takeRound(in); err != nil {
		sa.refuseAuth(err)
	}
}

// answering tells that a request is being judged, or its answer being signed.
func (h *handshake) answering() bool { return h != nil && (h.job != 0 || h.req != nil) }

// takeRound checks the request of the round under way and starts the judgement.
func (sa *SA) takeRound(in *parsed) *RefusedError {
	h := sa.handshake
	r := h.round
	form := message.FormIKEAuthNextRequest
	if r == 0 {
		form = message.FormIKEAuthFirstRequest
		if in.sa == nil && in.tsi == nil && in.tsr == nil && h.set.childless {
			form, h.childless = message.FormChildlessFirstRequest, true
		}
	}
	if in.idi != nil {
		h.claimed = append(h.claimed, identityOf(in.idi))
	}
	if r == 0 && in.auth == nil && in.idi != nil {
		return refused(CodeAuthMethod, r, nil, "the initiator asks for EAP, which is not offered here")
	}
	if err := form.Check(in.ps); err != nil {
		return refused(CodeSyntax, r, err, "the IKE_AUTH request of round %d is malformed", r+1)
	}
	if in.idi == nil || in.auth == nil {
		return refused(CodeSyntax, r, nil, "the IKE_AUTH request of round %d lacks IDi or AUTH", r+1)
	}
	if r == 0 {
		sa.takeFirstRequest(in)
	}
	id := h.claimed[r]
	known := follow(h.candidates, id)
	if len(known) == 0 {
		return sa.unknownIdentity(id)
	}
	h.candidates = known
	if in.idr != nil {
		want := identityOf(in.idr)
		meant := filter(known, func(b *branch) bool { return b.first.LocalAuth[r].ID.Equal(want) })
		if len(meant) == 0 {
			var ours []Identity
			for _, b := range known {
				if id := b.first.LocalAuth[r].ID; len(ours) < maxWanted && !containsID(ours, id) {
					ours = append(ours, id)
				}
			}
			return refused(CodeLocalIdentity, r, nil, "round %d: the peer wants to talk to %v, for it we are %s", r+1, want, joinIDs(ours))
		}
		h.candidates = meant
	}
	return sa.verify(in, in.idi)
}

// takeFirstRequest keeps what the first IKE_AUTH request says beside the proof.
func (sa *SA) takeFirstRequest(in *parsed) {
	h := sa.handshake
	h.takeAnnouncements(in)
	h.wantOCSP = h.wantOCSP || in.wantOCSP
	h.childSA, h.tsi, h.tsr, h.cp, h.resource = in.sa, in.tsi, in.tsr, in.cp, in.has(notifyResourceInfo)
	h.multipleAuth = h.multipleAuth || in.has(message.NotifyMultipleAuthSupported)
	h.initialContact = in.has(message.NotifyInitialContact)
	if in.has(message.NotifyMOBIKESupported) {
		h.mobike = in
	}
	h.wantsTicket = in.has(message.NotifyTicketRequest)
}

func filter(list []*branch, keep func(*branch) bool) []*branch {
	var out []*branch
	for _, b := range list {
		if keep(b) {
			out = append(out, b)
		}
	}
	return out
}

// unknownIdentity says as precisely as possible what is wrong with an identity.
func (sa *SA) unknownIdentity(id Identity) *RefusedError {
	h := sa.handshake
	r := h.round
	for _, p := range h.set.places[id.key()] {
		if p.round != r {
			code := CodeServiceFirst
			if p.round < r {
				code = CodeWrongRound
			}
			return refused(code, r, nil, "round %d: %v is an identity of round %d (%s) of connection %q; the rounds come in order", r+1, id, p.round+1, p.peer.RemoteAuth[p.round].Role, p.peer.Name)
		}
	}
	var want []Identity
	for _, b := range h.candidates {
		for _, x := range b.wanted {
			if len(want) < maxWanted && !containsID(want, x) {
				want = append(want, x)
			}
		}
	}
	return refused(CodeUnknownIdentity, r, nil, "round %d: no connection knows the identity %v; expected %s", r+1, id, joinIDs(want))
}

// peerProved: the initiator's proof of the round under way was accepted; our own comes next.
func (sa *SA) peerProved() {
	h := sa.handshake
	r := h.round
	follows := h.req.has(message.NotifyAnotherAuthFollows)
	fitting := filter(h.candidates, func(b *branch) bool { return follows && len(b.next) > 0 || !follows && b.leaf != nil })
	if len(fitting) == 0 {
		c := h.candidates[0].first
		if follows {
			sa.refuseAuth(refused(CodeTooManyRounds, r, nil, "the peer announces another authentication round after round %d, the last of connection %q", r+1, c.Name))
		} else {
			sa.refuseAuth(refused(CodeDeviceOnly, r, nil, "the peer proved round %d only and announces no other; connection %q needs %d", r+1, c.Name, c.rounds()))
		}
		return
	}
	if follows && !h.multipleAuth {
		sa.refuseAuth(refused(CodeNoMultipleAuth, r, nil, "the peer announces another round but not MULTIPLE_AUTH_SUPPORTED (RFC 4739)"))
		return
	}
	// We can prove one identity only: candidates that want another one of ours drop out.
	if slices.ContainsFunc(fitting, func(b *branch) bool { return b.local != fitting[0].local }) {
		mine := sa.mine(fitting, follows)
		fitting = filter(fitting, func(b *branch) bool { return b.local == mine })
	}
	h.candidates = fitting
	sa.sign(&fitting[0].first.LocalAuth[r])
}

// mine chooses among several credentials of ours, where the peer does not say with whom it wants
// to talk: that of the connection that fits its wish best.
func (sa *SA) mine(branches []*branch, follows bool) int {
	if sa.handshake.childless {
		return branches[0].local
	}
	of := map[*PeerConfig]int{}
	var list []*PeerConfig
	w := sa.firstWish()
	add := func(b *branch) func(*PeerConfig) {
		return func(c *PeerConfig) {
			of[c] = b.local
			list = append(list, c)
		}
	}
	for _, b := range branches {
		if !follows {
			b.leaf.each(&w, add(b))
			continue
		}
		for _, n := range b.next {
			n.each(add(b))
		}
	}
	if c := w.choose(list, sa.cur.chosen, sa.path); c != nil {
		return of[c]
	}
	return branches[0].local
}

// firstWish is the CHILD SA that the first request asks for.
func (sa *SA) firstWish() wish {
	h := sa.handshake
	return newWish(h.tsi, h.tsr, h.childSA, suite.SelectOptions{WithoutKE: true})
}

// chosenPeer returns the connection that the CHILD SA of the first request belongs to, as it is now:
// the connections may have been replaced since the candidates were found. nil: it is gone.
func (sa *SA) chosenPeer() *PeerConfig {
	h := sa.handshake
	if h.childless {
		return sa.childlessPeer()
	}
	w := sa.firstWish()
	now := sa.host.peers()
	var near, rest []*PeerConfig
	add := func(list *[]*PeerConfig) func(*PeerConfig) {
		return func(c *PeerConfig) {
			if now.successor(c) != nil {
				*list = append(*list, c)
			}
		}
	}
	for _, b := range h.candidates {
		b.leaf.each(&w, add(&near))
	}
	c := w.choose(near, sa.cur.chosen, sa.path)
	if c != nil {
		return now.successor(c)
	}
	// None has anything in common with the wish; the refusal is to be about that, and not about
	// the IKE suite.
	for _, b := range h.candidates {
		for _, c := range b.leaf.kinds {
			add(&rest)(c)
		}
	}
	if len(rest) == 0 {
		for _, b := range h.candidates {
			b.each(add(&rest))
		}
	}
	if len(rest) == 0 {
		return nil
	}
	c = rest[0]
	if i := slices.IndexFunc(rest, func(c *PeerConfig) bool { return hasOffer(c.Proposals, sa.cur.chosen) }); i > 0 {
		c = rest[i]
	}
	return now.successor(c)
}

// childlessPeer is chosenPeer where the peer asks for no CHILD SA (RFC 6023): the first connection
// that allows that, of those that fit otherwise. nil: there is none.
func (sa *SA) childlessPeer() (found *PeerConfig) {
	now := sa.host.peers()
	for _, b := range sa.handshake.candidates {
		b.each(func(c *PeerConfig) {
			if found == nil && c.Childless && hasOffer(c.Proposals, sa.cur.chosen) {
				found = now.successor(c)
			}
		})
	}
	return found
}

func (a *LocalAuth) sameAs(b *LocalAuth) bool {
	return a.ID.Equal(b.ID) && string(a.PSK) == string(b.PSK) &&
		slices.EqualFunc(a.Chain, b.Chain, func(x, y []byte) bool { return string(x) == string(y) })
}

// answerRound answers the IKE_AUTH request of the round under way.
func (sa *SA) answerRound(auth authValue) {
	h, g := sa.handshake, sa.cur
	r := h.round
	la := &h.candidates[0].first.LocalAuth[r]
	in := h.req
	out := newOutgoing()
	addIdentity(out, la, true, h.wantOCSP, auth)
	if r == 0 && h.ppk.key != nil {
		out.notify(message.NotifyPPKIdentity, nil)
	}
	h.proved(la)
	if in.has(message.NotifyAnotherAuthFollows) {
		out.notify(message.NotifyAnotherAuthFollows, nil)
		h.req = nil
		h.round++
		g.respond(in, out)
		return
	}
	if sa.peer = sa.chosenPeer(); sa.peer == nil && h.childless {
		sa.refuseAuth(refused(CodeNoConnection, -1, nil, "the peer asks for an IKE SA without a CHILD SA, which connection %q does not allow", h.candidates[0].first.Name))
		return
	}
	if sa.peer == nil {
		sa.refuseAuth(refused(CodeNoConnection, -1, nil, "connection %q was taken away meanwhile", h.candidates[0].first.Name))
		return
	}
	sa.answerLast(in, out)
}

// answerLast brings the IKE SA up, and answers the last IKE_AUTH request.
func (sa *SA) answerLast(in *parsed, out *outgoing) {
	h, g := sa.handshake, sa.cur
	e, err := sa.establish()
	if err != nil {
		sa.peer = nil
		var re *RefusedError
		if !errors.As(err, &re) {
			re = refused(CodeUnexpected, -1, err, "not established")
		}
		sa.refuseAuth(re)
		return
	}
	e.afterAuth = in.id + 1
	config := sa.answerConfig(e, h.cp, false)
	sa.goUp(e)
	g.takeCrashToken(in)
	sa.addCrashToken(out, g)
	if h.mobike != nil {
		sa.takeMobike(h.mobike)
		sa.announceMobike(out)
	}
	if h.wantsTicket {
		sa.giveTicket(out, g, h.session)
	}
	config.addTo(out)
	if h.childless || sa.redirectProved(out) || config.failed {
		g.respond(in, out)
		return
	}
	k := keying{ni: h.ni, nr: h.nr}
	cfg := sa.offerChild(&k, out, childRequest{offers: h.childSA, tsi: h.tsi, tsr: h.tsr, resource: h.resource, withoutKE: true})
	// The initiator may send on the CHILD SA as soon as it has our answer, so we receive on it
	// before the answer leaves, and send only afterwards.
	if cfg != nil {
		c, err := e.install(sa, g, cfg, k)
		if err != nil {
			sa.fail(err)
			return
		}
		e.useSoon(sa, c)
		sa.grown(c, false)
	}
	if sa.state == StateEstablished {
		g.respond(in, out)
	}
}

// refuseAuth refuses the initiator: it is told AUTHENTICATION_FAILED and nothing else; the owner
// is told everything (RFC 7296, section 2.21.2).
func (sa *SA) refuseAuth(e *RefusedError) {
	sa.refuse(e)
	if h := sa.handshake; h != nil && h.req != nil {
		notify := notifyAuthFailed
		if e.Code == CodeSyntax {
			notify = notifyInvalidSyntax
		}
		sa.cur.respond(h.req, newOutgoing().notify(notify, nil))
	}
	sa.close(Reason{Code: ReasonProtocol, Text: e.Error(), Remote: true})
}

// halfOpenExpired: the initiator did not finish in time.
func (sa *SA) halfOpenExpired() {
	h := sa.handshake
	text := fmt.Sprintf("authentication was not done after %v", sa.now.Sub(sa.begun).Round(time.Second))
	if h.round > 0 {
		sa.refuse(refused(CodeRoundMissing, h.round, nil, "authentication round %d never came within %v; rounds proved: %s", h.round+1, sa.cfg.HalfOpenTimeout, joinIDs(h.claimed[:min(h.round, len(h.claimed))])))
	} else {
		sa.do(actStranger{sa.path, CodeRoundMissing, text + ": no IKE_AUTH came"})
	}
	sa.close(Reason{Code: ReasonProtocol, Text: text, Remote: true})
}
