package ike

import (
	"encoding/binary"
	"slices"
	"time"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// rekeyIKE is our CREATE_CHILD_SA exchange that gives the IKE SA new keys (RFC 7296, section
// 2.18).
type rekeyIKE struct {
	spi    uint64
	ni     []byte
	kex    *suite.KeyExchange
	group  uint16
	tries  int
	offers []suite.Offer
	rival  *rival

	// Once CREATE_CHILD_SA was answered and additional key exchanges come next.
	follow *followup
	ng     *generation // without keys
	shared suite.Secret
	nr     []byte
}

// rekeyIKE gives the IKE SA new keys unless that is under way.
func (sa *SA) rekeyIKE() {
	g := sa.cur
	is := func(t task) bool { _, ok := t.(*rekeyIKE); return ok }
	if g.successor != nil || g.deleting || g.req != nil && is(g.req.task) || slices.ContainsFunc(g.queue, is) {
		return
	}
	g.enqueue(&rekeyIKE{})
}

func (t *rekeyIKE) build(sa *SA, g *generation) (uint8, *outgoing, bool) {
	if sa.state != StateEstablished || g != sa.cur || g.deleting {
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
	if err := t.prepare(sa, g); err != nil {
		t.retire(sa)
		sa.fail(err)
		return 0, nil, false
	}
	return exchangeCreateChild, newOutgoing().offers(t.offers...).nonce(t.ni).ke(t.kex.ID(), t.kex.Public()), true
}

func (t *rekeyIKE) prepare(sa *SA, g *generation) error {
	var err error
	if t.spi == 0 {
		if t.spi, err = sa.host.newIKESPI(); err != nil {
			return err
		}
	}
	spi := spiBytes(t.spi)
	if t.offers, err = suite.Offers(sa.peer.Proposals, spi[:]); err != nil {
		return err
	}
	if t.ni, err = sa.newNonce(); err != nil {
		return err
	}
	group := t.group
	if group == 0 {
		group = g.chosen.KE // known to suit both
	}
	if t.kex != nil {
		t.kex.Wipe()
	}
	t.kex, err = suite.NewInitiator(group, sa.host.rand())
	return err
}

func (t *rekeyIKE) retire(sa *SA) {
	if t.kex != nil {
		t.kex.Wipe()
		t.kex = nil
	}
	if t.follow != nil {
		t.follow.wipe()
	}
	t.shared.Wipe()
	if t.spi != 0 {
		sa.host.freeIKESPI(t.spi)
		t.spi = 0
	}
}

func (t *rekeyIKE) done(sa *SA, g *generation, in *parsed) {
	if sa.state != StateEstablished {
		t.doneTooLate(sa, g, in)
		return
	}
	if n := in.errorNotify(); n != nil && in.sa == nil {
		t.refused(sa, g, n)
		return
	}
	if t.follow != nil {
		t.followed(sa, g, in)
		return
	}
	if n := in.errorNotify(); n != nil {
		// RFC 7296, section 3.10.1: the request has failed entirely; the peer may see that in another way.
		t.broken(sa, refused(CodePeerRefused, -1, peerError(n, "the rekey of the IKE SA"), "the peer answers with new keys and an error"))
		return
	}
	if err := t.accept(sa, g, in); err != nil {
		t.broken(sa, err)
		return
	}
	if !t.ng.chosen.HasAdditionalKE() {
		t.finish(sa, g)
		return
	}
	if t.lost(sa) {
		// RFC 9370, section 2.2.4: nothing was made yet, so nothing needs to be closed.
		t.retire(sa)
		return
	}
	var err *RefusedError
	if t.follow, err = newFollowup(t.ng.chosen, in); err != nil {
		t.broken(sa, err)
		return
	}
	t.outdo(sa, g)
	g.queue = append([]task{t}, g.queue...)
}

// doneTooLate takes an answer that comes when the IKE SA is being deleted. If the peer has made the
// new keys, our Delete of the old ones means to it that the rekey is done: the new ones must be deleted
// as well.
func (t *rekeyIKE) doneTooLate(sa *SA, g *generation, in *parsed) {
	made := false
	switch n := in.errorNotify(); {
	case n != nil && in.sa == nil:
	case t.follow != nil:
		done, err := t.follow.take(in)
		made = done && err == nil
	default:
		err := t.accept(sa, g, in)
		made = err == nil && !t.ng.chosen.HasAdditionalKE()
	}
	if !made {
		t.retire(sa)
	} else {
		t.finish(sa, g)
	}
	switch {
	case sa.state != StateDeleting:
	case made && sa.cur == t.ng:
		t.ng.queue = []task{&deleteIKE{}}
	case sa.cur == g && g.successor != nil:
		g.succeed(sa) // the Delete goes where the peer's new keys are
	}
}

// rekeying tells whether our own rekey of g is under way.
func (g *generation) rekeying() bool {
	if g.req == nil {
		return false
	}
	_, ours := g.req.task.(*rekeyIKE)
	return ours
}

// succeed takes the generation that the peer made to replace g, the current one, into use.
func (g *generation) succeed(sa *SA) *generation {
	ng := g.successor
	g.successor = nil
	sa.switchTo(ng)
	return ng
}

// followed takes the answer to an IKE_FOLLOWUP_KE request.
func (t *rekeyIKE) followed(sa *SA, g *generation, in *parsed) {
	done, err := t.follow.take(in)
	switch {
	case err != nil:
		t.broken(sa, err)
	case !done:
		g.queue = append([]task{t}, g.queue...)
	default:
		t.finish(sa, g)
	}
}

// broken ends an IKE SA whose rekey was answered with nonsense: the ends may disagree about it.
func (t *rekeyIKE) broken(sa *SA, err *RefusedError) {
	t.retire(sa)
	sa.refuse(err)
	sa.terminate(Reason{Code: ReasonProtocol, Text: err.Error(), Remote: true})
}

// lost tells whether the peer's rekey, which crossed ours, is the one that stays.
func (t *rekeyIKE) lost(sa *SA) bool {
	r := t.rival
	if r == nil || !r.ourLoss(t.ni, t.nr) {
		return false
	}
	return r.waits(sa) || slices.Contains(sa.gens, r.gen) || r.pending != nil && slices.Contains(sa.gens, r.pending.ng)
}

// outdo drops the peer's rekey that crossed ours and lost.
func (t *rekeyIKE) outdo(sa *SA, g *generation) {
	if r := t.rival; r != nil && r.waits(sa) {
		sa.forget(r.pending) // the peer does not go on with it
	}
	if g.successor != nil {
		// The peer will close its redundant one.
		g.successor.dropAt = sa.now.Add(replacedFor)
		g.successor = nil
	}
}

// finish takes the new keys into use.
func (t *rekeyIKE) finish(sa *SA, g *generation) {
	ng := t.ng
	var additional []suite.Secret
	if t.follow != nil {
		additional = t.follow.shared
	}
	seed := suite.RekeySKEYSEED(g.prot.prf, g.prot.keys.SKd, t.shared, t.ni, t.nr, additional...)
	if err := ng.protect(seed, t.ni, t.nr); err != nil {
		t.broken(sa, refused(CodeBadKE, -1, err, "keys of the new IKE SA"))
		return
	}
	ng.created = sa.now
	lost := t.lost(sa)
	t.spi = 0 // belongs to the generation now
	t.retire(sa)
	sa.gens = append(sa.gens, ng)
	if lost {
		// RFC 7296, section 2.8.2: ours is redundant and ours to close. The peer's inherits
		// everything, and the peer closes the old one.
		ng.deleting = true
		ng.enqueue(&deleteIKE{})
		return
	}
	t.outdo(sa, g)
	sa.switchTo(ng)
	if len(sa.cfg.CrashSecret) > 0 {
		ng.enqueue(crashTask{}) // RFC 6290, section 4.3: ours comes in an exchange of its own
	}
	g.dropAt = time.Time{}
	g.deleting = true
	g.enqueue(&deleteIKE{})
}

// accept checks the answer to CREATE_CHILD_SA and keeps what it says.
func (t *rekeyIKE) accept(sa *SA, g *generation, in *parsed) *RefusedError {
	if err := message.FormRekeyIKEResponse.Check(in.ps); err != nil {
		return refused(CodeSyntax, -1, err, "the answer to the rekey of the IKE SA is malformed")
	}
	chosen, err := suite.Accept(t.offers, in.sa)
	if err != nil {
		return refused(CodeNoProposal, -1, err, "the peer's choice for the IKE SA was not offered: offered %s, answered %s", joinOffers(t.offers), joinOffers(in.sa))
	}
	if len(chosen.SPI) != 8 || uint16(in.ke.Method) != chosen.KE || chosen.KE != t.kex.ID() {
		return refused(CodeBadKE, -1, nil, "the answer to the rekey of the IKE SA has an SPI of %d octets and key exchange data of group %d for group %d", len(chosen.SPI), in.ke.Method, chosen.KE)
	}
	if err := g.prot.prf.CheckNonce(in.nonce); err != nil {
		return refused(CodeSyntax, -1, err, "the answer to the rekey of the IKE SA has a bad nonce")
	}
	if t.shared, err = t.kex.Finish(in.ke.Data); err != nil {
		return refused(CodeBadKE, -1, err, "the answer to the rekey of the IKE SA has bad key exchange data")
	}
	t.nr = in.nonce
	t.ng = &generation{sa: sa, initiator: true, spiI: t.spi, spiR: binary.BigEndian.Uint64(chosen.SPI), chosen: chosen, created: sa.now}
	t.ng.takeCrashToken(in)
	return nil
}

func (t *rekeyIKE) refused(sa *SA, g *generation, n *message.Notify) {
	if n.Type == notifyInvalidKE {
		m, err := n.KEMethod()
		if err == nil && t.tries < 3 && uint16(m) != t.kex.ID() && sa.offersGroup(uint16(m)) {
			t.tries++
			t.group = uint16(m)
			g.queue = append([]task{t}, g.queue...)
			return
		}
	}
	t.retire(sa)
	if sa.startOver(n) {
		return
	}
	after := sa.retryLater()
	if n.Type == notifyTemporaryFailure || n.Type == notifyStateNotFound {
		after = sa.retryAfter() // RFC 7296, section 2.25: never at once; RFC 9370, section 2.2.4: begin anew
	} else {
		sa.refuse(refused(CodePeerRefused, -1, peerError(n, "the rekey of the IKE SA"), "the peer refuses new keys for the IKE SA; we offered %s", joinOffers(t.offers)))
	}
	sa.est.delay(sa, after, func(sa *SA) {
		if sa.state == StateEstablished && sa.cur == g {
			sa.rekeyIKE()
		}
	})
}

// switchTo makes ng the generation for new requests of ours. CHILD SAs belong to the SA and come
// along by themselves.
func (sa *SA) switchTo(ng *generation) {
	old := sa.cur
	sa.cur = ng
	sa.forgetAll(old)
	for _, t := range old.queue {
		if _, ike := t.(*rekeyIKE); ike {
			continue
		}
		ng.enqueue(t)
	}
	old.queue = nil
	sa.est.rekeyed++
	sa.renewTicket() // RFC 5723, section 6.2: the old one is void
	sa.est.rekeyAt = sa.rekeyAt(sa.peer.rekeyIKE(), ng.initiator)
}

// onRekeyIKE answers the peer's rekey of the IKE SA.
func (sa *SA) onRekeyIKE(g *generation, in *parsed) *outgoing {
	var ours *rekeyIKE
	if g.req != nil {
		switch t := g.req.task.(type) {
		case *rekeyIKE:
			if t.follow != nil {
				return newOutgoing().notify(notifyTemporaryFailure, nil) // RFC 9370, section 2.2.4
			}
			ours = t
		case *newChild, *deleteTask:
			// RFC 7296, section 2.25.2.
			return newOutgoing().notify(notifyTemporaryFailure, nil)
		}
	}
	chosen, err := suite.Select(sa.peer.Proposals, in.sa, suite.SelectOptions{PreferKE: uint16(in.ke.Method)})
	if err != nil || len(chosen.SPI) != 8 {
		sa.refuse(refused(CodeNoProposal, -1, err, "no proposal for new keys of the IKE SA in common"))
		return newOutgoing().notify(notifyNoProposal, nil)
	}
	if chosen.KE != uint16(in.ke.Method) {
		return newOutgoing().add(message.NewInvalidKE(message.KEMethod(chosen.KE)))
	}
	public, shared, err := suite.Respond(chosen.KE, sa.host.rand(), in.ke.Data)
	if err != nil {
		sa.refuse(refused(CodeBadKE, -1, err, "the rekey of the IKE SA has bad key exchange data"))
		return newOutgoing().notify(notifyBadKE, nil)
	}
	nr, err := sa.newNonce()
	if err != nil {
		sa.fail(err)
		return nil
	}
	spi, err := sa.host.newIKESPI()
	if err != nil {
		sa.fail(err)
		return nil
	}
	ng := &generation{sa: sa, spiI: binary.BigEndian.Uint64(chosen.SPI), spiR: spi, chosen: chosen, created: sa.now}
	mine := spiBytes(spi)
	out := newOutgoing().offers(chosen.Answer(mine[:])).nonce(nr).ke(chosen.KE, public)
	sa.addCrashToken(out, ng)
	cross := &rival{ni: in.nonce, nr: nr}
	if ours != nil {
		ours.rival = cross
	}
	if chosen.HasAdditionalKE() {
		cross.pending = sa.await(&pending{gen: g, ng: ng, base: shared, ni: in.nonce, nr: nr}, chosen, out)
		return out
	}
	defer shared.Wipe()
	if err := ng.protect(suite.RekeySKEYSEED(g.prot.prf, g.prot.keys.SKd, shared, in.nonce, nr), in.nonce, nr); err != nil {
		sa.fail(err)
		return nil
	}
	sa.gens = append(sa.gens, ng)
	g.successor = ng
	g.dropAt = sa.now.Add(replacedFor)
	cross.gen = ng
	return out
}

// confirm: the peer used the generation that it made to replace another one, so it has it.
func (sa *SA) confirm(ng *generation) {
	for _, g := range sa.gens {
		if g.successor != ng {
			continue
		}
		if g.rekeying() {
			return // a collision; our answer decides
		}
		g.successor = nil
		if g == sa.cur {
			sa.switchTo(ng)
		}
	}
}

// dropOld forgets a generation that the peer replaced and never deleted.
func (sa *SA) dropOld(g *generation) {
	if g.successor != nil && g == sa.cur {
		g.succeed(sa)
	}
	if g != sa.cur {
		sa.dropGeneration(g)
	}
}
