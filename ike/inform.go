package ike

import (
	"crypto/x509"
	"fmt"
	"slices"

	"wardgate/ike/message"
)

// livenessTask asks the peer whether it lives: an empty INFORMATIONAL (RFC 7296, section 2.4).
type livenessTask struct{}

func (*livenessTask) build(sa *SA, g *generation) (uint8, *outgoing, bool) {
	out := newOutgoing()
	if sa.asksNAT() {
		sa.mob.asked = sa.now
		sa.addNATDetection(out, g, sa.path)
	}
	return exchangeInformational, out, sa.state == StateEstablished
}

func (*livenessTask) done(sa *SA, g *generation, in *parsed) { sa.natChanged(g, in) }

// deleteTask deletes CHILD SAs (RFC 7296, section 1.4.1): children, or bare inbound SPIs that the
// peer believes in.
type deleteTask struct {
	children []*child
	reason   Reason
	spis     []uint32
}

func (t *deleteTask) build(sa *SA, _ *generation) (uint8, *outgoing, bool) {
	if sa.state != StateEstablished {
		return 0, nil, false
	}
	spis := slices.Clone(t.spis)
	for _, c := range t.children {
		if slices.Contains(sa.est.children, c) { // else the peer was faster
			spis = append(spis, c.spiIn)
		}
	}
	if len(spis) == 0 {
		return 0, nil, false
	}
	return exchangeInformational, newOutgoing().add(&message.Delete{Protocol: message.ProtocolESP, SPIs: spis}), true
}

func (t *deleteTask) done(sa *SA, _ *generation, _ *parsed) {
	for _, c := range t.children {
		sa.est.remove(sa, c, t.reason)
	}
}

// deleteChild tells the peer that a CHILD SA is closed. The owner is told at once, except of one
// that was rekeyed: packets of the peer may still be on their way in it.
func (sa *SA) deleteChild(c *child, r Reason) {
	if c.deleting {
		return
	}
	c.deleting = true
	c.rekeyAt, c.dropAt = zeroTime, zeroTime
	if !r.Rekeyed {
		sa.est.down(sa, c, r)
		sa.queueGone(c, r)
	}
	sa.cur.enqueue(&deleteTask{children: []*child{c}, reason: r})
}

func (sa *SA) onDeleteChild(id ChildID, why string) {
	if sa.est == nil || sa.state != StateEstablished {
		return
	}
	if c := sa.est.byID(id); c != nil {
		sa.deleteChild(c, Reason{Code: ReasonDeleted, Text: why})
	}
}

// deleteIKE deletes the generation that it is sent on.
type deleteIKE struct{}

func (*deleteIKE) build(sa *SA, g *generation) (uint8, *outgoing, bool) {
	g.deleting = true
	if sa.state == StateDeleting {
		sa.childrenDown() // see terminate
	}
	return exchangeInformational, newOutgoing().add(&message.Delete{Protocol: message.ProtocolIKE}), true
}

func (*deleteIKE) done(sa *SA, g *generation, _ *parsed) {
	if g == sa.cur {
		sa.close(sa.ended)
		return
	}
	sa.dropGeneration(g)
}

// childrenDown tells the owner that the CHILD SAs of an IKE SA that is being deleted are down.
func (sa *SA) childrenDown() {
	for _, c := range sa.est.children {
		sa.est.down(sa, c, sa.ended)
	}
}

// terminate deletes the IKE SA. Its CHILD SAs end at once; but where others take their place, only when
// the Delete is sent, for which an exchange under way must end first: the peer sends on them until it
// has the Delete.
func (sa *SA) terminate(r Reason) {
	switch {
	case sa.state == StateDeleting || sa.state == StateClosed:
		return
	case sa.est == nil:
		sa.close(r)
		return
	}
	sa.forgetAll(nil)
	if g := sa.cur; g.successor != nil && !g.rekeying() {
		// The peer made it; a Delete of the old one would only end the rekey. Where our own crosses it, the
		// answer says which of the two has to be deleted, see doneTooLate.
		g.succeed(sa)
	}
	sa.state = StateDeleting
	sa.ended = r
	if !r.Rekeyed {
		sa.childrenDown()
	}
	for _, t := range sa.cur.queue {
		if x, ok := t.(retired); ok {
			x.retire(sa)
		}
	}
	sa.cur.queue = []task{&deleteIKE{}}
}

// onInformational answers an INFORMATIONAL request (RFC 7296, sections 1.4 and 2.25).
func (sa *SA) onInformational(g *generation, in *parsed) {
	if err := message.FormInformationalRequest.Check(in.ps); err != nil {
		sa.refuse(refused(CodeSyntax, -1, err, "an INFORMATIONAL request is malformed"))
		g.respond(in, newOutgoing().notify(notifyInvalidSyntax, nil))
		sa.close(Reason{Code: ReasonProtocol, Text: err.Error(), Remote: true})
		return
	}
	if in.has(notifyAuthFailed) {
		// Section 2.21.2: the initiator did not accept our last proof.
		sa.refuse(refused(CodePeerRefused, -1, nil, "the peer reports AUTHENTICATION_FAILED; its own records say why"))
		g.respond(in, newOutgoing())
		sa.close(Reason{Code: ReasonDeletedByPeer, Text: "the peer did not accept our authentication", Remote: true})
		return
	}
	if n := sa.fatalAfterAuth(g, in); n != nil {
		sa.refuse(refused(CodePeerRefused, -1, nil, "the peer reports %v about our last answer to IKE_AUTH; its own records say why", n.Type))
		g.respond(in, newOutgoing())
		sa.close(Reason{Code: ReasonDeletedByPeer, Text: fmt.Sprintf("the peer did not take our last answer to IKE_AUTH: %v", n.Type), Remote: true})
		return
	}
	sa.hear(in)
	out := newOutgoing()
	if !sa.onMobike(g, in, out) {
		g.respond(in, out)
		return
	}
	g.takeCrashToken(in)
	sa.takeAuthLifetime(in)
	if in.has(message.NotifyTicketRequest) {
		sa.giveTicket(out, g, nil)
	}
	if n := in.notify(message.NotifyRedirect); n != nil {
		sa.onLiveRedirect(n)
	}
	sa.answerConfig(sa.est, in.cp, true).addTo(out)
	var answer []uint32
	for _, d := range in.deletes {
		switch d.Protocol {
		case message.ProtocolIKE:
			g.respond(in, out)
			sa.peerDeleted(g)
			return
		case message.ProtocolESP:
			for _, spi := range d.SPIs {
				if own, ok := sa.peerDeletedChild(spi); ok {
					answer = append(answer, own)
				}
			}
		default: // AH is never negotiated: there is nothing to delete
		}
	}
	if len(answer) > 0 {
		out.add(&message.Delete{Protocol: message.ProtocolESP, SPIs: answer})
	}
	g.respond(in, out)
}

// fatalAfterAuth returns the error by which an initiator ends an IKE SA without a Delete, in the exchange
// right after IKE_AUTH (RFC 7296, section 2.21.2). In any other one it is no more than said.
func (sa *SA) fatalAfterAuth(g *generation, in *parsed) *message.Notify {
	if sa.initiator || sa.est.rekeyed > 0 || g != sa.cur || in.id != sa.est.afterAuth {
		return nil
	}
	for _, n := range in.notifies {
		if n.Type == notifyInvalidSyntax || n.Type == notifyUnsupportedCritical {
			return n
		}
	}
	return nil
}

// hear keeps for the records what a peer reports in a request: an error there changes nothing (RFC 7296,
// section 3.10.1), such as INVALID_SELECTORS or INVALID_SPI about a packet. At most one in ten seconds.
func (sa *SA) hear(in *parsed) {
	n := in.errorNotify()
	if n == nil || !due(sa.now, sa.est.heardAt.Add(hintInterval)) {
		return
	}
	sa.est.heardAt = sa.now
	about := ""
	if spi, ok := n.SPI32(); ok {
		about = fmt.Sprintf(" about SPI %08x", spi)
	}
	sa.refuse(refused(CodePeerRefused, -1, nil, "the peer reports %v%s; nothing is done about it", n.Type, about))
}

// maxStillborn bounds what is kept about a peer that deletes what nobody knows.
const maxStillborn = 16

// peerDeletedChild closes the CHILD SA that the peer receives on with spi, and returns our SPI
// of it for the answer. Where our own Delete crosses, the answer holds none (section 2.25.1).
func (sa *SA) peerDeletedChild(spi uint32) (uint32, bool) {
	c := sa.est.byOut(spi)
	if c == nil {
		if t := sa.creating(sa.cur); t != nil && len(t.stillborn) < maxStillborn {
			t.stillborn = append(t.stillborn, spi)
		}
		return 0, false
	}
	crossing := c.deleting
	sa.est.remove(sa, c, Reason{Code: ReasonDeletedByPeer, Text: "deleted by the peer", Remote: true})
	return c.spiIn, !crossing
}

// peerDeleted: the peer deleted a generation.
func (sa *SA) peerDeleted(g *generation) {
	if g == sa.cur {
		ng := g.successor
		if ng == nil {
			// Where another IKE SA stands, packets may still be on their way in this one.
			r := Reason{Code: ReasonDeletedByPeer, Text: "deleted by the peer", Remote: true}
			r.Rekeyed = sa.est != nil && sa.host.another(sa.peer.Name)
			sa.close(r)
			return
		}
		// The end of the peer's rekey. A rekey of our own that is under way is forgotten
		// (section 2.25.2).
		g.succeed(sa).dropAt = zeroTime
	}
	for _, o := range sa.gens {
		if o.successor == g {
			o.successor = nil // its redundant half of a collision
			o.dropAt = zeroTime
		}
	}
	sa.dropGeneration(g)
}

// onPeers takes the new set of connections.
func (sa *SA) onPeers(set *peerSet) {
	if sa.peer == nil {
		return // a responder looks the connection up when it knows who the peer is
	}
	next := set.successor(sa.peer)
	gone := Reason{Code: ReasonPolicy, Text: fmt.Sprintf("connection %q was taken away or its rights changed", sa.peer.Name)}
	switch {
	case next == nil && sa.est == nil:
		sa.close(gone)
	case next == nil:
		sa.terminate(gone)
	case next != sa.peer && sa.est != nil:
		sa.follow(next)
	case next != sa.peer:
		sa.peer = next
		sa.handshake.candidates = alone(next)
	}
}

// follow goes on under a connection with the same rights. Where revocation lists changed, the
// peer's certificates are judged again.
func (sa *SA) follow(next *PeerConfig) {
	old := sa.peer
	sa.peer = next
	for _, c := range sa.est.children {
		c.cfg = next.child(c.cfg.Name)
	}
	sa.judgeAgain(func(i int) bool { return !old.RemoteAuth[i].sameTrust(&next.RemoteAuth[i]) })
	sa.reauthIfRenewed()
}

// judgeAgain has the peer's certificates of those rounds judged again that are in doubt.
func (sa *SA) judgeAgain(doubt func(round int) bool) {
	var queries []CertQuery
	for i, p := range sa.est.proofs {
		if p.leaf == nil || !doubt(i) {
			continue
		}
		q := CertQuery{Peer: sa.peer, Round: i, Auth: &sa.peer.RemoteAuth[i], ID: p.id, Leaf: p.leaf, Intermediates: p.intermediates, OCSP: p.ocsp, At: sa.now}
		for _, e := range sa.est.proofs[:i] {
			var cert *x509.Certificate
			if e.leaf != nil {
				cert, _ = x509.ParseCertificate(e.leaf) // as it could be when it came
			}
			q.Earlier = append(q.Earlier, cert)
		}
		queries = append(queries, q)
	}
	if len(queries) == 0 {
		return
	}
	sa.rejudge = sa.job()
	sa.do(actVerify{job: sa.rejudge, check: func(verify func(CertQuery) error) []error {
		out := make([]error, len(queries))
		for i, q := range queries {
			if err := verify(q); err != nil {
				out[i] = refused(VerdictCode(err), q.Round, err, "the certificate of %v is not accepted any more", q.ID)
			}
		}
		return out
	}})
}

// onReverdict takes the verdict that judgeAgain asked for.
func (sa *SA) onReverdict(ev evVerdict) {
	if ev.job != sa.rejudge || sa.state != StateEstablished {
		return
	}
	for _, err := range ev.verdicts {
		if e, ok := err.(*RefusedError); ok && e != nil { //nolint:errorlint // made just above, never wrapped
			sa.refuse(e)
			sa.terminate(Reason{Code: ReasonPolicy, Text: e.Error()})
			return
		}
	}
}
