package ike

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// newChild is our CREATE_CHILD_SA exchange for a new CHILD SA, or for one that replaces old.
type newChild struct {
	cfg    *ChildConfig
	old    *child // nil: no rekey
	packet Flow   // that waits for it; the zero Flow: none
	pair   bool   // the peer makes it for two addresses alone: those of packet
	more   bool   // one more beside others with the same selectors (RFC 9611)
	queue  int    // ChildSA.Queue

	id     ChildID
	spi    uint32
	ni     []byte
	kex    *suite.KeyExchange
	group  uint16 // wanted by INVALID_KE_PAYLOAD; 0: our first
	tries  int
	offers []suite.Offer
	local  []Selector
	remote []Selector

	// stillborn are SPIs of the peer that it deleted while our request was under way: what it made
	// for us may be among them.
	stillborn []uint32

	// rival is what the peer made to replace old while our request was under way.
	rival *rival

	// follow, k and answer are set once CREATE_CHILD_SA was answered and additional key exchanges
	// come next.
	follow *followup
	k      keying
	answer *parsed
}

// rival is the other half of a simultaneous rekey (RFC 7296, sections 2.8.1 and 2.8.2).
type rival struct {
	child   *child
	gen     *generation
	pending *pending // what becomes one of them, when additional key exchanges come first
	ni, nr  []byte
}

// waits tells whether the rival is not made yet, and may be.
func (r *rival) waits(sa *SA) bool { return r.pending != nil && slices.Contains(sa.pending, r.pending) }

// ourLoss tells whether the SA that we made is the redundant one: the one made with the lowest
// of the four nonces is closed by who made it.
func (r *rival) ourLoss(ni, nr []byte) bool {
	return bytes.Compare(lower(ni, nr), lower(r.ni, r.nr)) < 0
}

func lower(a, b []byte) []byte {
	if bytes.Compare(a, b) < 0 {
		return a
	}
	return b
}

// wantChild makes a CHILD SA unless it stands or is being made.
func (sa *SA) wantChild(name string) {
	cfg := sa.peer.child(name)
	if cfg == nil {
		sa.tellInitiateFailed(name, fmt.Errorf("%w: connection %q has no CHILD SA %q", ErrUnknownChild, sa.peer.Name, name))
		return
	}
	if slices.ContainsFunc(sa.est.children, func(c *child) bool { return c.queue == 0 && c.stands(name) }) ||
		slices.ContainsFunc(sa.making(name), func(t *newChild) bool { return t.queue == 0 }) {
		return
	}
	if e := sa.withoutAddress(cfg); e != nil {
		sa.refuse(e)
		sa.tellInitiateFailed(name, e)
		return
	}
	sa.cur.enqueue(&newChild{cfg: cfg, packet: sa.takePacket(name)})
}

func (sa *SA) onRekeyChild(id ChildID) {
	if sa.est == nil || sa.state != StateEstablished {
		return
	}
	if c := sa.est.byID(id); c != nil {
		sa.rekeyChild(c)
	}
}

// rekeyChild replaces a CHILD SA unless that is under way or done.
func (sa *SA) rekeyChild(c *child) {
	if c.rekeying != nil || c.deleting || c.successor != nil || !slices.Contains(sa.est.children, c) || sa.state != StateEstablished {
		return
	}
	if !c.known && (c.predec != nil || !c.sendNow) {
		// The peer may not have our answer yet, and does not know the SPI then. It has it when it
		// deletes the old one (see remove), or soon.
		c.rekeyAt = zeroTime
		if c.predec == nil {
			c.rekeyAt = sa.now.Add(time.Second)
		}
		return
	}
	if p := sa.replacing(c); p != nil {
		c.rekeyAt = p.expires // the peer is at it
		return
	}
	c.rekeying = &newChild{cfg: c.cfg, old: c, queue: c.queue}
	sa.cur.enqueue(c.rekeying)
}

func (t *newChild) build(sa *SA, _ *generation) (uint8, *outgoing, bool) {
	if sa.state != StateEstablished {
		t.retire(sa)
		return 0, nil, false
	}
	if t.follow != nil {
		out, err := t.follow.request(sa)
		if err != nil {
			t.retire(sa)
			sa.fail(err)
			return 0, nil, false
		}
		return exchangeFollowupKE, out, true
	}
	if o := t.old; o != nil && (o.deleting || o.successor != nil || !slices.Contains(sa.est.children, o)) {
		t.retire(sa) // the peer was faster
		return 0, nil, false
	}
	if p := sa.replacing(t.old); p != nil {
		t.retire(sa)
		t.old.rekeyAt = p.expires
		return 0, nil, false
	}
	if t.more && !sa.lacks(t.cfg) {
		t.retire(sa)
		return 0, nil, false
	}
	err := t.prepare(sa)
	if err != nil {
		t.retire(sa)
		sa.fail(err)
		return 0, nil, false
	}
	out := newOutgoing()
	if t.old != nil {
		out.add(message.NewRekeySA(message.ProtocolESP, t.old.spiIn))
	}
	out.offers(t.offers...).nonce(t.ni)
	if t.kex != nil {
		out.ke(t.kex.ID(), t.kex.Public())
	}
	out.ts(t.local, t.remote).resourceInfo(t.cfg, t.queue)
	return exchangeCreateChild, out, true
}

func (t *newChild) prepare(sa *SA) error {
	var err error
	if t.id == 0 {
		t.id = sa.host.nextChild()
		if t.spi, err = sa.host.newESPSPI(t.id, sa.receiveQueueAfter(t.cfg, t.queue, t.old)); err != nil {
			return err
		}
	}
	if t.offers, err = suite.Offers(t.cfg.Proposals, spi4(t.spi)); err != nil {
		return err
	}
	if t.ni, err = sa.newNonce(); err != nil {
		return err
	}
	t.local, t.remote = sa.selectorsOf(t.cfg)
	like := t.old // RFC 7296, section 2.9.2: a rekey keeps what is in use
	if t.more {
		// RFC 9611, section 3: the same as the first one has.
		like = sa.est.children[slices.IndexFunc(sa.est.children, func(c *child) bool { return c.stands(t.cfg.Name) })]
	}
	switch {
	case like != nil:
		t.local, t.remote = like.localTS, like.remoteTS
	case t.pair:
		t.local, t.remote = t.packet.pair(t.local, t.remote)
	case t.packet.Local.IsValid():
		t.local, t.remote = t.packet.ahead(t.local, t.remote)
	}
	group := t.group
	for _, p := range t.cfg.Proposals {
		if group == 0 && len(p.KE) > 0 {
			group = p.KE[0]
		}
	}
	if t.kex != nil {
		t.kex.Wipe()
		t.kex = nil
	}
	if group != suite.KENone {
		t.kex, err = suite.NewInitiator(group, sa.host.rand())
	}
	return err
}

// retire frees what the exchange held.
func (t *newChild) retire(sa *SA) {
	if t.kex != nil {
		t.kex.Wipe()
		t.kex = nil
	}
	if t.follow != nil {
		t.follow.wipe()
		t.k.shared.Wipe()
	}
	if t.id != 0 {
		sa.host.freeESPSPI(t.spi, t.id)
		t.id = 0
	}
	if t.old != nil && t.old.rekeying == t {
		t.old.rekeying = nil
	}
}

func (t *newChild) done(sa *SA, g *generation, in *parsed) {
	if n := in.errorNotify(); n != nil && in.sa == nil {
		t.refused(sa, g, n)
		return
	}
	if sa.state != StateEstablished {
		t.retire(sa)
		return
	}
	if t.follow != nil {
		t.followed(sa, g, in)
		return
	}
	if n := in.errorNotify(); n != nil {
		// RFC 7296, section 3.10.1: the request has failed entirely, whatever else is said.
		t.broken(sa, refused(CodePeerRefused, -1, peerError(n, "CREATE_CHILD_SA for "+t.cfg.Name), "the peer answers with a CHILD SA and an error; it does not stand"), true)
		return
	}
	k := keying{id: t.id, spiIn: t.spi, ni: t.ni, nr: in.nonce, initiator: true, sendNow: true, queue: t.queue}
	err := t.accept(sa, g, &k, in)
	if err == nil && k.chosen.HasAdditionalKE() {
		if t.lost(sa, in.nonce) {
			// RFC 9370, section 2.2.4: nothing was made yet, so nothing needs to be closed.
			k.shared.Wipe()
			t.retire(sa)
			return
		}
		t.k, t.answer = k, in
		if t.follow, err = newFollowup(k.chosen, in); err == nil {
			t.outdo(sa)
			g.queue = append([]task{t}, g.queue...)
			return
		}
	}
	if err != nil {
		k.shared.Wipe()
		t.broken(sa, err, !k.chosen.HasAdditionalKE())
		return
	}
	t.finish(sa, g, k, in)
}

// followed takes the answer to an IKE_FOLLOWUP_KE request.
func (t *newChild) followed(sa *SA, g *generation, in *parsed) {
	last := t.follow.last()
	done, err := t.follow.take(in)
	switch {
	case err != nil:
		t.broken(sa, err, last)
	case !done:
		g.queue = append([]task{t}, g.queue...)
	default:
		t.k.additional = t.follow.shared
		t.finish(sa, g, t.k, t.answer)
	}
}

// lost tells whether the peer's rekey, which crossed ours, is the one that stays.
func (t *newChild) lost(sa *SA, nr []byte) bool {
	r := t.rival
	if r == nil || !r.ourLoss(t.ni, nr) {
		return false
	}
	// Where the answer came late, the peer may have closed the old one already, as the winner does.
	return r.waits(sa) || !slices.Contains(sa.est.children, t.old) || slices.Contains(sa.est.children, r.child)
}

// outdo drops the peer's rekey that crossed ours and lost, where it still waits: the peer does not
// go on with it.
func (t *newChild) outdo(sa *SA) {
	if r := t.rival; r != nil && r.waits(sa) {
		sa.forget(r.pending)
	}
}

// broken ends an exchange whose answer was no good; made: the peer believes that the CHILD SA
// stands.
func (t *newChild) broken(sa *SA, err *RefusedError, made bool) {
	if made {
		sa.cur.enqueue(&deleteTask{spis: []uint32{t.spi}})
	}
	t.retire(sa)
	sa.refuse(err)
	t.failed(sa, err)
}

// finish makes the CHILD SA; in is the answer to CREATE_CHILD_SA.
func (t *newChild) finish(sa *SA, g *generation, k keying, in *parsed) {
	if slices.Contains(t.stillborn, k.spiOut) {
		k.shared.Wipe()
		t.retire(sa)
		t.failed(sa, fmt.Errorf("%w: %q was deleted by the peer before its answer came", ErrTerminated, t.cfg.Name))
		return
	}
	defer k.shared.Wipe()
	if cfg := sa.peer.child(t.cfg.Name); cfg != nil {
		t.cfg = cfg // the connections may have been set anew
	}
	sa.takesPart(t.cfg, in, t.old != nil)
	old := t.old
	if old != nil && !slices.Contains(sa.est.children, old) {
		old = nil // the peer closed it meanwhile
	}
	lost := t.lost(sa, in.nonce)
	if !lost {
		t.outdo(sa)
	}
	// Both ends asked at once, and the peer's was made meanwhile.
	surplus := t.more && sa.est.standing(t.cfg.Name) >= t.cfg.Queues
	if t.more && !surplus && slices.ContainsFunc(sa.est.children, func(c *child) bool { return c.queue == t.queue && c.stands(t.cfg.Name) }) {
		k.queue = sa.freeQueue(t.cfg)
	}
	k.replaces = old
	k.sendNow = !lost && !surplus
	id := t.id
	t.id = 0 // belongs to the CHILD SA now
	c, ierr := sa.est.install(sa, g, t.cfg, k)
	t.retire(sa)
	switch {
	case ierr != nil:
		sa.host.freeESPSPI(t.spi, id)
		sa.fail(ierr)
	case lost:
		// RFC 7296, section 2.8.1: what we made is redundant and ours to close; the peer closes
		// the old one.
		sa.deleteChild(c, Reason{Code: ReasonRedundant, Rekeyed: true, Text: "both ends rekeyed the CHILD SA at once; the peer's stays"})
	case surplus:
		sa.deleteChild(c, Reason{Code: ReasonRedundant, Rekeyed: true, Text: "both ends made one more CHILD SA at once; the peer's stays"})
	case old == nil:
		sa.grown(c, true)
	default:
		if r := t.rival; r != nil && r.child != nil {
			// The peer will close its redundant one.
			r.child.predec = nil
			r.child.rekeyAt = time.Time{}
			r.child.successor = c
			r.child.dropAt = sa.now.Add(replacedFor)
		}
		sa.est.replace(old, c)
		old.dropAt = time.Time{}
		sa.deleteChild(old, Reason{Code: ReasonRekeyed, Rekeyed: true, Text: "replaced by new keys"})
	}
}

// accept checks the answer and fills in k.
func (t *newChild) accept(sa *SA, g *generation, k *keying, in *parsed) *RefusedError {
	form := message.FormNewChildResponse
	if t.old != nil {
		form = message.FormRekeyChildResponse
	}
	if err := form.Check(in.ps); err != nil {
		return refused(CodeSyntax, -1, err, "the answer to CREATE_CHILD_SA is malformed")
	}
	if err := sa.acceptChild(k, in, t.offers, t.local, t.remote); err != nil {
		return err
	}
	if err := g.prot.prf.CheckNonce(in.nonce); err != nil {
		return refused(CodeSyntax, -1, err, "the answer to CREATE_CHILD_SA has a bad nonce")
	}
	// RFC 7296, section 2.9.2: what replaces a CHILD SA must not carry less.
	if o := t.old; o != nil && !(within(o.localTS, k.localTS) && within(o.remoteTS, k.remoteTS)) {
		return refused(CodeTSUnacceptable, -1, nil, "the peer narrows the selectors of CHILD SA %q in a rekey: %s to %s are in use, answered %s to %s",
			t.cfg.Name, joinTS(o.localTS), joinTS(o.remoteTS), joinTS(k.localTS), joinTS(k.remoteTS))
	}
	if t.more && !(within(t.local, k.localTS) && within(t.remote, k.remoteTS)) {
		return refused(CodeTSUnacceptable, -1, nil, "the peer narrows the selectors of one more CHILD SA %q: asked for %s to %s, answered %s to %s",
			t.cfg.Name, joinTS(t.local), joinTS(t.remote), joinTS(k.localTS), joinTS(k.remoteTS))
	}
	if k.chosen.KE == suite.KENone {
		return nil
	}
	if t.kex == nil || in.ke == nil || uint16(in.ke.Method) != k.chosen.KE || k.chosen.KE != t.kex.ID() {
		return refused(CodeBadKE, -1, nil, "the answer to CREATE_CHILD_SA chose %s but holds no key exchange data for it", suite.KEName(k.chosen.KE))
	}
	shared, err := t.kex.Finish(in.ke.Data)
	if err != nil {
		return refused(CodeBadKE, -1, err, "the answer to CREATE_CHILD_SA has bad key exchange data")
	}
	k.shared = shared
	return nil
}

// refused: the peer did not make the CHILD SA.
func (t *newChild) refused(sa *SA, g *generation, n *message.Notify) {
	err := peerError(n, "CREATE_CHILD_SA for "+t.cfg.Name)
	if sa.state != StateEstablished {
		t.retire(sa)
		return
	}
	switch n.Type {
	case notifyInvalidKE:
		m, kerr := n.KEMethod()
		group := uint16(m)
		if kerr == nil && t.tries < 3 && t.kex != nil && group != t.kex.ID() &&
			slices.ContainsFunc(t.cfg.Proposals, func(p suite.Proposal) bool { return slices.Contains(p.KE, group) }) {
			t.tries++
			t.group = group
			g.queue = append([]task{t}, g.queue...)
			return
		}
	case notifyTemporaryFailure, notifyStateNotFound:
		// RFC 7296, section 2.25: never at once. RFC 9370, section 2.2.4: begin anew.
		t.retire(sa)
		after := sa.retryAfter()
		if t.more {
			after = min(after, askAgain)
		}
		t.again(sa, after)
		return
	case notifyTSMaxQueue, notifyNoAdditionalSAs:
		if sa.est.standing(t.cfg.Name) > 0 && t.old == nil {
			// The peer has enough (RFC 9611), or knows no more than one: there is one.
			t.retire(sa)
			sa.noMore(t.cfg.Name)
			return
		}
		if t.old != nil && sa.startOver(n) {
			t.retire(sa)
			return
		}
	case notifyChildNotFound:
		old := t.old
		t.retire(sa)
		if old != nil {
			// Section 2.25.1: the peer has it no more.
			sa.est.remove(sa, old, Reason{Code: ReasonDeletedByPeer, Text: "the peer does not know the CHILD SA any more", Remote: true})
			return
		}
	default:
		if sa.onePair(n, t.cfg, t.packet, t.pair || t.old != nil || t.more) {
			t.retire(sa)
			return
		}
	}
	offers := t.offers
	t.retire(sa)
	sa.refuse(childRefusal(n, err, offers, t.cfg))
	t.failed(sa, err)
}

// failed follows an exchange that made no CHILD SA, for reasons that will not soon go away.
func (t *newChild) failed(sa *SA, err error) {
	switch {
	case t.old != nil:
		t.again(sa, sa.retryLater())
	case t.more:
		sa.noMore(t.cfg.Name)
	default:
		sa.tellInitiateFailed(t.cfg.Name, err)
	}
}

// again repeats the exchange later, if it still makes sense then.
func (t *newChild) again(sa *SA, after time.Duration) {
	old, name := t.old, t.cfg.Name
	if t.more {
		sa.group(name).notBefore = sa.now.Add(after)
		sa.growLater(name, after)
		return
	}
	sa.est.delay(sa, after, func(sa *SA) {
		switch {
		case sa.state != StateEstablished:
		case old != nil:
			sa.rekeyChild(old)
		default:
			sa.wantChild(name)
		}
	})
}

// creating returns our request for a CHILD SA that is under way.
func (sa *SA) creating(g *generation) *newChild {
	if g.req == nil {
		return nil
	}
	t, _ := g.req.task.(*newChild)
	return t
}

// childRequest is a peer's wish for a CHILD SA.
type childRequest struct {
	offers    []suite.Offer
	tsi, tsr  *message.TS
	withoutKE bool         // IKE_AUTH
	ke        *message.KE  // CREATE_CHILD_SA
	resource  bool         // one of several with the same selectors (RFC 9611)
	only      *ChildConfig // a rekey stays what it was
}

// narrower tells that a rekey would have the CHILD SA carry less (RFC 7296, section 2.9.2).
func (r *childRequest) narrower(k *keying) bool {
	old := k.replaces
	return old != nil && !(within(old.localTS, k.localTS) && within(old.remoteTS, k.remoteTS))
}

// offerChild chooses proposal and selectors of a CHILD SA that the peer asks for and adds the
// answer to out: SA, Nr and KEr (not in IKE_AUTH), TSi, TSr; or the error notify. nil: refused.
func (sa *SA) offerChild(k *keying, out *outgoing, req childRequest) *ChildConfig {
	cfg, e, notify := sa.chooseChild(k, req)
	if e != nil {
		sa.refuse(e)
		out.notify(notify, nil)
		return nil
	}
	if notify := sa.admitChild(cfg, k, req.resource); notify != 0 {
		out.notify(notify, nil) // nothing for the records: a peer may ask for ever
		return nil
	}
	if k.chosen.KE != suite.KENone && (req.ke == nil || uint16(req.ke.Method) != k.chosen.KE) {
		out.add(message.NewInvalidKE(message.KEMethod(k.chosen.KE)))
		return nil
	}
	var public []byte
	if k.chosen.KE != suite.KENone {
		var err error
		public, k.shared, err = suite.Respond(k.chosen.KE, sa.host.rand(), req.ke.Data)
		if err != nil {
			sa.refuse(refused(CodeBadKE, -1, err, "CREATE_CHILD_SA has bad key exchange data"))
			out.notify(notifyBadKE, nil)
			return nil
		}
	}
	k.id = sa.host.nextChild()
	var err error
	if k.spiIn, err = sa.host.newESPSPI(k.id, sa.receiveQueueAfter(cfg, k.queue, k.replaces)); err == nil && k.nr == nil {
		k.nr, err = sa.newNonce()
	}
	if err != nil {
		sa.fail(err)
		return nil
	}
	out.offers(k.chosen.Answer(spi4(k.spiIn)))
	if !req.withoutKE {
		out.nonce(k.nr)
		if public != nil {
			out.ke(k.chosen.KE, public)
		}
	}
	out.ts(k.remoteTS, k.localTS)
	if k.others {
		out.notify(message.NotifyAdditionalTSPossible, nil)
	}
	if req.resource {
		sa.group(cfg.Name).peer = true
		out.resourceInfo(cfg, k.queue)
	}
	return cfg
}

// chooseChild finds the CHILD SA of the connection that the peer means: of those whose selectors
// and proposals both have something in common with the wish, the one that fits best.
func (sa *SA) chooseChild(k *keying, req childRequest) (*ChildConfig, *RefusedError, message.NotifyType) {
	opt := suite.SelectOptions{WithoutKE: req.withoutKE}
	if req.ke != nil {
		opt.PreferKE = uint16(req.ke.Method)
	}
	w := newWish(req.tsi, req.tsr, req.offers, opt)
	var noProposal error
	var ours []string
	var best, unassigned *ChildConfig
	var bestFit fit
	fits := 0
	for i := range sa.peer.Children {
		cfg := &sa.peer.Children[i]
		if req.only != nil && cfg.Name != req.only.Name {
			continue
		}
		local, remote := sa.selectorsOf(cfg)
		if cfg.RemoteAssigned && sa.est.net == nil {
			unassigned = cfg
			continue
		}
		if len(ours) < maxWanted {
			ours = append(ours, joinTS(local)+" to "+joinTS(remote))
		}
		f, local, remote := w.of(local, remote)
		if f.level == fitNone {
			continue
		}
		if fits++; best != nil && !f.better(bestFit) {
			continue
		}
		chosen, err := suite.Select(cfg.Proposals, req.offers, opt)
		if err != nil {
			noProposal = errors.Join(noProposal, err)
			continue
		}
		best, bestFit = cfg, f
		k.chosen, k.localTS, k.remoteTS = chosen, local, remote
		k.spiOut = binary.BigEndian.Uint32(chosen.SPI)
	}
	switch {
	case best != nil && req.narrower(k):
		return nil, refused(CodeTSUnacceptable, -1, nil, "the peer narrows the selectors of CHILD SA %q in a rekey: %s (ours) to %s are in use, it asks for %s to %s",
			best.Name, joinTS(k.replaces.localTS), joinTS(k.replaces.remoteTS), joinTS(w.local), joinTS(w.remote)), notifyTSUnacceptable
	case best != nil:
		k.others = fits > 1 && bestFit.level != fitWhole
		return best, nil, 0
	case noProposal != nil:
		return nil, refused(CodeNoProposal, -1, noProposal, "no proposal for the CHILD SA in common"), notifyNoProposal
	case unassigned != nil:
		// RFC 7296, section 2.19: the CHILD SA fails, the IKE SA stays.
		return nil, refused(CodeAddress, -1, nil, "CHILD SA %q is for peers with an address that we assign, and the peer has asked for none", unassigned.Name), message.NotifyFailedCPRequired
	}
	return nil, refused(CodeTSUnacceptable, -1, nil, "no selectors in common: the peer asks for %s (ours) to %s (its own), connection %q allows %s",
		joinTS(w.local), joinTS(w.remote), sa.peer.Name, strings.Join(ours, "; ")), notifyTSUnacceptable
}

// onCreateChild answers a CREATE_CHILD_SA request. nil: it was answered already.
func (sa *SA) onCreateChild(g *generation, in *parsed) *outgoing {
	form := message.ClassifyCreateChild(in.ps)
	if err := form.Check(in.ps); err != nil {
		sa.refuse(refused(CodeSyntax, -1, err, "a CREATE_CHILD_SA request is malformed"))
		g.respond(in, newOutgoing().notify(notifyInvalidSyntax, nil))
		sa.close(Reason{Code: ReasonProtocol, Text: err.Error(), Remote: true})
		return nil
	}
	temporary := newOutgoing().notify(notifyTemporaryFailure, nil)
	// RFC 7296, section 2.25: not while the IKE SA is on its way out or being replaced.
	if sa.state != StateEstablished || g != sa.cur || g.successor != nil || g.deleting {
		return temporary
	}
	if err := g.prot.prf.CheckNonce(in.nonce); err != nil {
		sa.refuse(refused(CodeSyntax, -1, err, "a CREATE_CHILD_SA request has a bad nonce"))
		return newOutgoing().notify(notifyInvalidSyntax, nil)
	}
	if form == message.FormRekeyIKERequest {
		return sa.onRekeyIKE(g, in)
	}
	if g.req != nil {
		if _, ours := g.req.task.(*rekeyIKE); ours {
			return temporary // section 2.25.2
		}
	}
	req := childRequest{offers: in.sa, tsi: in.tsi, tsr: in.tsr, ke: in.ke, resource: in.has(notifyResourceInfo)}
	k := keying{ni: in.nonce}
	if form == message.FormRekeyChildRequest {
		n := in.notify(message.NotifyRekeySA)
		spi, _ := n.SPI32()
		old := sa.est.byOut(spi)
		if n.Protocol != message.ProtocolESP {
			old = nil // an AH SA with this SPI is another SA, and there are none
		}
		switch {
		case old == nil && sa.creating(g) != nil:
			return temporary // it may be what we do not have the answer for yet
		case old == nil:
			return newOutgoing().add(message.NewSPINotify(notifyChildNotFound, n.Protocol, spi))
		case old.deleting || old.successor != nil:
			return temporary // section 2.25.1
		case old.rekeying != nil && old.rekeying.follow != nil:
			return temporary // RFC 9370, section 2.2.4
		}
		req.only = old.cfg
		k.replaces = old
	}
	out := newOutgoing()
	config := sa.answerConfig(sa.est, in.cp, false)
	config.addTo(out)
	if config.failed {
		return out
	}
	cfg := sa.offerChild(&k, out, req)
	if cfg == nil {
		return out
	}
	if k.chosen.HasAdditionalKE() {
		p := sa.await(&pending{gen: g, cfg: cfg, k: k}, k.chosen, out)
		sa.crosses(g, &k, &rival{pending: p, ni: k.ni, nr: k.nr})
		return out
	}
	defer k.shared.Wipe()
	if c := sa.installAnswered(g, in, out, cfg, k); c != nil {
		sa.crosses(g, &k, &rival{child: c, ni: k.ni, nr: k.nr})
	}
	return nil
}

// crosses notes a rekey of the peer's with our own of the same CHILD SA, if that is under way:
// who wins is known when our answer comes (RFC 7296, section 2.8.1).
func (sa *SA) crosses(g *generation, k *keying, r *rival) {
	if old := k.replaces; old != nil && old.rekeying != nil && g.req != nil && g.req.task == task(old.rekeying) {
		old.rekeying.rival = r
	}
}

// installAnswered makes a CHILD SA that the peer asked for, and sends the answer out to in. As in
// IKE_AUTH we receive before the peer can send, and send only afterwards. nil: it was not made.
func (sa *SA) installAnswered(g *generation, in *parsed, out *outgoing, cfg *ChildConfig, k keying) *child {
	c, err := sa.est.install(sa, g, cfg, k)
	if err != nil {
		sa.fail(err)
		return nil
	}
	g.respond(in, out)
	if sa.state != StateEstablished {
		return nil
	}
	if old := k.replaces; old != nil {
		sa.est.replace(old, c)
		old.dropAt = sa.now.Add(replacedFor)
		return c
	}
	sa.est.useSoon(sa, c)
	sa.grown(c, false)
	return c
}
