package ike

import (
	"fmt"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// beginRound starts the round under way: our identity is proved first (RFC 4739, section 2.4).
func (sa *SA) beginRound() {
	h := sa.handshake
	if h.round > 0 && !h.multipleAuth {
		// Announced in the IKE_SA_INIT response; strongSwan and we always do.
		sa.abort(refused(CodeNoMultipleAuth, h.round, nil, "the peer did not announce MULTIPLE_AUTH_SUPPORTED, but connection %q needs %d rounds", sa.peer.Name, sa.peer.rounds()))
		return
	}
	sa.sign(&sa.peer.LocalAuth[h.round])
}

// sendRound sends the IKE_AUTH request of the round under way.
func (sa *SA) sendRound(auth authValue) {
	h := sa.handshake
	la, ra := &sa.peer.LocalAuth[h.round], &sa.peer.RemoteAuth[h.round]
	last := h.round == sa.peer.rounds()-1
	if len(h.localIDs) != h.round {
		sa.fail(fmt.Errorf("ike: round %d begun twice", h.round+1))
		return
	}
	h.proved(la)
	out := newOutgoing()
	addIdentity(out, la, false, h.wantOCSP, auth)
	if h.round == 0 && h.ppk.key != nil {
		out.notify(message.NotifyPPKIdentity, append([]byte{ppkIDFixed}, h.ppk.key.ID...))
		if auth.plain != nil {
			out.notify(notifyNoPPK, auth.plain)
		}
	}
	if len(ra.IDs) == 1 {
		// Whom we want to talk to: the responder may be several.
		out.add(ra.IDs[0].payload(true))
	}
	if !last {
		out.notify(message.NotifyAnotherAuthFollows, nil)
	} else {
		sa.addCrashToken(out, sa.cur)
	}
	if h.round == 0 {
		addCertReqs(out, anchorsOf(sa.peer))
		out.notify(message.NotifyMultipleAuthSupported, nil)
		if h.announces {
			// RFC 9593, section 3.1: the responder does it, so it wants to know.
			out.add(announcements(sa.peer.accepts()))
		}
		if sa.host.firstContact(sa.peer) {
			// RFC 7296, section 2.4.
			out.notify(message.NotifyInitialContact, nil)
		}
		sa.announceMobike(out)
		out.notify(message.NotifyTicketRequest, nil) // RFC 5723, section 4.2: in the first request
		sa.addConfigRequest(out)
		if !h.childless && !sa.addFirstChild(out) {
			return
		}
	}
	sa.cur.start(authTask{}, exchangeAuth, out)
}

// addFirstChild asks for the first CHILD SA: SA and TS stand in the first request, the answer
// comes in the last response.
func (sa *SA) addFirstChild(out *outgoing) bool {
	h := sa.handshake
	h.childCfg = sa.peer.child(sa.wanted[0])
	if h.childCfg == nil {
		sa.fail(fmt.Errorf("%w: connection %q has no CHILD SA %q", ErrUnknownChild, sa.peer.Name, sa.wanted[0]))
		return false
	}
	sa.wanted = sa.wanted[1:]
	var err error
	h.childID = sa.host.nextChild()
	if h.childSPI, err = sa.host.newESPSPI(h.childID, sa.receiveQueue(h.childCfg, 0)); err != nil {
		sa.fail(err)
		return false
	}
	if h.offered, err = suite.OffersWithoutKE(h.childCfg.Proposals, spi4(h.childSPI)); err != nil {
		sa.fail(err)
		return false
	}
	local, remote := h.childCfg.LocalTS, h.childCfg.RemoteTS
	if h.packet = sa.takePacket(h.childCfg.Name); h.packet.Local.IsValid() {
		local, remote = h.packet.ahead(local, remote)
	}
	out.offers(h.offered...).ts(local, remote).resourceInfo(h.childCfg, 0)
	return true
}

// authTask is one IKE_AUTH request.
type authTask struct{}

func (authTask) build(*SA, *generation) (uint8, *outgoing, bool) { return 0, nil, false }

func (authTask) done(sa *SA, _ *generation, in *parsed) {
	h := sa.handshake
	if h == nil || sa.state != StateAuth {
		return
	}
	r, last := h.round, h.round == sa.peer.rounds()-1
	if in.auth == nil {
		if n := in.errorNotify(); n != nil {
			err := peerError(n, fmt.Sprintf("IKE_AUTH round %d", r+1))
			sa.refuse(refused(CodePeerRefused, r, err, "the peer refused us in authentication round %d; its own records say why", r+1))
			h.failure = err
			sa.close(Reason{Code: ReasonDeletedByPeer, Text: err.Error(), Remote: true})
			return
		}
		sa.abort(refused(CodeSyntax, r, nil, "the answer to IKE_AUTH round %d holds no AUTH", r+1))
		return
	}
	form := message.FormIKEAuthNextResponse
	switch {
	case r == 0 && last && h.childless:
		form = message.FormChildlessOnlyResponse
	case r == 0 && last:
		form = message.FormIKEAuthOnlyResponse
	case r == 0:
		form = message.FormIKEAuthFirstResponse
	case last && h.childless:
		form = message.FormChildlessLastResponse
	case last:
		form = message.FormIKEAuthLastResponse
	}
	if err := form.Check(in.ps); err != nil {
		sa.abort(refused(CodeSyntax, r, err, "the answer to IKE_AUTH round %d is malformed", r+1))
		return
	}
	if in.idr == nil {
		sa.abort(refused(CodeSyntax, r, nil, "the answer to IKE_AUTH round %d holds no IDr", r+1))
		return
	}
	id := identityOf(in.idr)
	h.claimed = append(h.claimed, id)
	ra := &sa.peer.RemoteAuth[r]
	if !containsID(ra.IDs, id) {
		sa.abort(refused(CodeUnknownIdentity, r, nil, "round %d: expected the peer to be %s, it says it is %v", r+1, joinIDs(ra.IDs), id))
		return
	}
	if r == 0 {
		if err := sa.answeredPPK(in); err != nil {
			sa.abort(err)
			return
		}
	}
	h.resp = in
	if err := sa.verify(in, in.idr); err != nil {
		sa.abort(err)
	}
}

// roundProved: the responder's proof of the round under way was accepted.
func (sa *SA) roundProved() {
	h := sa.handshake
	in, r := h.resp, h.round
	follows := in.has(message.NotifyAnotherAuthFollows)
	last := r == sa.peer.rounds()-1
	// RFC 5685, section 6: in the first answer and in the last one, and nowhere between.
	if (r == 0 || last) && !follows && sa.followAuthRedirect(in) {
		return
	}
	switch {
	case follows && last:
		sa.abort(refused(CodeTooManyRounds, r, nil, "the peer announces another authentication round after round %d, the last of connection %q", r+1, sa.peer.Name))
		return
	case !follows && !last:
		sa.abort(refused(CodeDeviceOnly, r, nil, "the peer proved round %d only and announces no other; connection %q needs %d", r+1, sa.peer.Name, sa.peer.rounds()))
		return
	case !last:
		h.resp = nil
		h.round++
		sa.beginRound()
		return
	}
	sa.allProved(in)
}

// allProved brings the IKE SA up: what the last answer to IKE_AUTH says comes into force.
func (sa *SA) allProved(in *parsed) {
	h := sa.handshake
	if sa.host.peers().successor(sa.peer) == nil {
		sa.abort(refused(CodeNoConnection, -1, nil, "connection %q was taken away meanwhile", sa.peer.Name))
		return
	}
	e, err := sa.establish()
	if err != nil {
		sa.abort(refused(CodeSuiteNotAllowed, -1, err, "not established"))
		return
	}
	var missing error
	e.net, missing = sa.takeConfig(in)
	sa.goUp(e)
	if missing != nil {
		sa.withoutConfig(h, missing)
		return
	}
	sa.cur.takeCrashToken(in)
	sa.takeAuthLifetime(in)
	sa.takeTicket(sa.cur, in)
	sa.takeMobike(in)
	if !h.childless {
		sa.finishFirstChild(h, in)
	}
	sa.freshenResumed()
	for _, name := range sa.wanted {
		sa.wantChild(name)
	}
	sa.wanted = nil
}

// finishFirstChild takes the CHILD SA of the last IKE_AUTH response.
func (sa *SA) finishFirstChild(h *handshake, in *parsed) {
	fail := func(err error) {
		sa.host.freeESPSPI(h.childSPI, h.childID)
		sa.tellInitiateFailed(h.childCfg.Name, err)
		// An IKE SA that protects nothing is of no use to anybody.
		if len(sa.wanted) == 0 && len(sa.est.children) == 0 {
			sa.terminate(Reason{Code: ReasonDeleted, Text: "no CHILD SA could be made"})
		}
	}
	if in.sa == nil {
		if n := in.errorNotify(); n != nil {
			if sa.onePair(n, h.childCfg, h.packet, false) {
				sa.host.freeESPSPI(h.childSPI, h.childID)
				return
			}
			err := peerError(n, "the CHILD SA "+h.childCfg.Name)
			sa.refuse(childRefusal(n, err, h.offered, h.childCfg))
			fail(err)
			return
		}
		fail(refused(CodeSyntax, -1, nil, "the last answer to IKE_AUTH holds no CHILD SA"))
		return
	}
	withdraw := func(err *RefusedError) {
		sa.refuse(err)
		fail(err)
		// The responder believes that it stands: say that it does not.
		if sa.state == StateEstablished {
			sa.cur.enqueue(&deleteTask{spis: []uint32{h.childSPI}})
		}
	}
	if n := in.errorNotify(); n != nil {
		// RFC 7296, section 3.10.1: the request has failed entirely, whatever else is said.
		withdraw(refused(CodePeerRefused, -1, peerError(n, "the CHILD SA "+h.childCfg.Name), "the peer answers with a CHILD SA and an error; it does not stand"))
		return
	}
	k := keying{id: h.childID, spiIn: h.childSPI, ni: h.ni, nr: h.nr, initiator: true, sendNow: true}
	local, remote := sa.selectorsOf(h.childCfg)
	err := sa.withoutAddress(h.childCfg)
	if err == nil {
		err = sa.acceptChild(&k, in, h.offered, local, remote)
	}
	if err != nil {
		withdraw(err)
		return
	}
	c, ierr := sa.est.install(sa, sa.cur, h.childCfg, k)
	if ierr != nil {
		fail(ierr)
		return
	}
	sa.takesPart(h.childCfg, in, false)
	sa.grown(c, true)
}

// acceptChild checks the responder's choice for a CHILD SA and fills in k.
func (sa *SA) acceptChild(k *keying, in *parsed, offered []suite.Offer, local, remote []Selector) *RefusedError {
	if in.sa == nil || in.tsi == nil || in.tsr == nil {
		return refused(CodeSyntax, -1, nil, "the answer lacks SA, TSi or TSr")
	}
	chosen, err := suite.Accept(offered, in.sa)
	if err != nil {
		return refused(CodeNoProposal, -1, err, "the peer's choice for the CHILD SA was not offered: offered %s, answered %s", joinOffers(offered), joinOffers(in.sa))
	}
	if len(chosen.SPI) != 4 {
		return refused(CodeSyntax, -1, nil, "the peer's choice for the CHILD SA has an SPI of %d octets", len(chosen.SPI))
	}
	k.chosen = chosen
	k.spiOut = uint32(chosen.SPI[0])<<24 | uint32(chosen.SPI[1])<<16 | uint32(chosen.SPI[2])<<8 | uint32(chosen.SPI[3])
	k.localTS, k.remoteTS = fromWire(in.tsi), fromWire(in.tsr)
	if len(k.localTS) != len(in.tsi.Selectors) || len(k.remoteTS) != len(in.tsr.Selectors) {
		return refused(CodeTSUnacceptable, -1, nil, "the peer answers with selectors of a kind that was not offered: offered %s to %s, answered %v to %v", joinTS(local), joinTS(remote), in.tsi.Selectors, in.tsr.Selectors)
	}
	if l, _ := pairUp(k.localTS, k.remoteTS); len(l) == 0 {
		return refused(CodeTSUnacceptable, -1, nil, "no packet fits the selectors that the peer answers with: ours %s to %s, answered %s to %s", joinTS(local), joinTS(remote), joinTS(k.localTS), joinTS(k.remoteTS))
	}
	// RFC 7296, section 2.9: a subset of what was proposed.
	if !within(k.localTS, local) || !within(k.remoteTS, remote) {
		return refused(CodeTSUnacceptable, -1, nil, "the peer's selectors are wider than ours: ours %s to %s, answered %s to %s", joinTS(local), joinTS(remote), joinTS(k.localTS), joinTS(k.remoteTS))
	}
	return nil
}

// childRefusal is the refusal of a CHILD SA by the peer, with what we had asked for.
func childRefusal(n *message.Notify, err error, offered []suite.Offer, cfg *ChildConfig) *RefusedError {
	switch n.Type {
	case notifyNoProposal:
		return refused(CodeNoProposal, -1, err, "the peer takes none of our proposals for CHILD SA %q: %s", cfg.Name, joinOffers(offered))
	case notifyTSUnacceptable:
		return refused(CodeTSUnacceptable, -1, err, "the peer does not take the selectors of CHILD SA %q: %s to %s", cfg.Name, joinTS(cfg.LocalTS), joinTS(cfg.RemoteTS))
	case message.NotifyInternalAddressFailure, message.NotifyFailedCPRequired:
		return refused(CodeAddress, -1, err, "the peer makes no CHILD SA %q without an internal address: it has none for us, or expects us to ask for one", cfg.Name)
	default:
		return refused(CodePeerRefused, -1, err, "the peer refuses CHILD SA %q", cfg.Name)
	}
}

// abort ends an IKE SA whose responder is not who it should be: it is told that authentication
// failed, in an exchange of its own (RFC 7296, section 2.21.2), and not why.
func (sa *SA) abort(e *RefusedError) {
	h := sa.handshake
	sa.refuse(e)
	h.failure = e
	sa.tellInitiateFailed("", e)
	if h.childID != 0 {
		sa.host.freeESPSPI(h.childSPI, h.childID)
	}
	sa.ended = Reason{Code: ReasonProtocol, Text: e.Error()}
	if h.round == 0 && len(h.localIDs) == 0 {
		// Nothing was sent that the peer keeps for more than a moment.
		sa.state = StateDeleting
		sa.close(sa.ended)
		return
	}
	sa.state = StateDeleting
	sa.cur.start(abortTask{}, exchangeInformational, newOutgoing().notify(notifyAuthFailed, nil))
}

type abortTask struct{}

func (abortTask) build(*SA, *generation) (uint8, *outgoing, bool) { return 0, nil, false }
func (abortTask) done(sa *SA, _ *generation, _ *parsed)           { sa.close(sa.ended) }
