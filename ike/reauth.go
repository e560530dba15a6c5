package ike

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"wardgate/ike/message"
)

// Reauthentication (RFC 7296, section 2.8.3): a new IKE SA is made from scratch, with its CHILD SAs,
// and the old one is deleted when the new one carries traffic, so that nothing is interrupted. It
// happens when a certificate of ours was renewed, shortly before a certificate of the peer's ends, when
// the peer asks for it (RFC 4478), and every PeerConfig.Reauth. An IKE SA never outlives the peer's
// certificates.
const (
	reauthSpread = 30 * time.Second // a router that renews a certificate does not reauthenticate everybody at once
	reauthLead   = 5 * time.Minute  // before a certificate of the peer's ends
	reauthRetry  = time.Minute      // when it came to nothing
	reauthGrace  = 2 * time.Second  // until the old IKE SA is deleted: the peer sends on the new one by then
)

// spread returns a random part of d.
func (sa *SA) spread(d time.Duration) time.Duration {
	v, _ := randUint64(sa.host.rand()) // without randomness 0 is as good
	return time.Duration(v%1000) * (d / 1000)
}

// planReauth sets the times of a new IKE SA's end, by the proofs with which it was made.
func (e *established) planReauth(sa *SA, proofs []proof) {
	for _, p := range proofs {
		c := p.cert
		if c == nil {
			continue
		}
		// It is valid until NotAfter included.
		if end := c.NotAfter.Add(time.Second); e.expireAt.IsZero() || end.Before(e.expireAt) {
			e.expireAt = end
		}
		// A peer that has shown it so late will tell by itself when it has another one.
		lead := min(reauthLead, c.NotAfter.Sub(c.NotBefore)/20)
		if at := c.NotAfter.Add(-lead - sa.spread(lead)); at.After(sa.now) {
			e.reauthBy(at)
		}
	}
	if d := sa.peer.Reauth; d > 0 {
		e.reauthBy(e.authenticated.Add(d - sa.spread(d/10)))
	}
}

// reauthBy makes reauthentication due at t, unless it is due before.
func (e *established) reauthBy(t time.Time) {
	if e.reauthAt.IsZero() || t.Before(e.reauthAt) {
		e.reauthAt = t
	}
}

// reauthIfRenewed makes reauthentication due soon when a certificate of ours is another than the one
// that the peer knows: before that one ends.
func (sa *SA) reauthIfRenewed() {
	e := sa.est
	wait, renewed := reauthSpread, false
	for i := range sa.peer.LocalAuth {
		la := &sa.peer.LocalAuth[i]
		if len(la.Chain) == 0 || bytes.Equal(la.Chain[0], e.localLeaves[i]) {
			continue
		}
		renewed = true
		if c, err := x509.ParseCertificate(e.localLeaves[i]); err == nil {
			wait = min(wait, max(0, c.NotAfter.Sub(sa.now)/4))
		}
	}
	if renewed {
		e.reauthBy(sa.now.Add(sa.spread(wait)))
	}
}

// takeAuthLifetime: the peer tells how long it takes our proof for good (RFC 4478, section 3): four
// octets, seconds. Only the original initiator is told.
func (sa *SA) takeAuthLifetime(in *parsed) {
	n := in.notify(message.NotifyAuthLifetime)
	if n == nil || len(n.Data) != 4 || !sa.initiator {
		return
	}
	d := time.Duration(binary.BigEndian.Uint32(n.Data)) * time.Second
	sa.est.reauthBy(sa.now.Add(d - d/10 - sa.spread(d/20)))
}

// reauthenticate asks for the new IKE SA.
func (sa *SA) reauthenticate() {
	if sa.peer.Assign != nil && !sa.initiator {
		return // the peer has to ask for its address
	}
	a := actReauth{peer: sa.peer.Name, path: sa.path, spi: sa.cur.spiI}
	for _, c := range sa.est.children {
		if c.queue == 0 && !c.deleting && c.successor == nil {
			a.children = append(a.children, c.cfg.Name)
		}
	}
	if len(a.children) == 0 {
		return // it protects nothing now
	}
	sa.do(a)
}

// startOver: the peer gives nothing new keys in this IKE SA (NO_ADDITIONAL_SAS). Another one takes its
// place (RFC 7296, section 4), and is tried for as often as it takes. false: that is not it, or it is not
// ours to do.
func (sa *SA) startOver(n *message.Notify) bool {
	if n.Type != notifyNoAdditionalSAs || sa.peer.Assign != nil && !sa.initiator {
		return false
	}
	sa.refuse(refused(CodePeerRefused, -1, peerError(n, "CREATE_CHILD_SA"), "the peer takes no more SAs in this IKE SA; another one takes its place"))
	sa.est.reauthBy(sa.now)
	return true
}

// takeOver ends the IKE SA in whose place this one was made.
func (sa *SA) takeOver() {
	old := sa.replaces
	if old == 0 {
		return
	}
	sa.est.later = append(sa.est.later, delayed{sa.now.Add(reauthGrace), func(sa *SA) {
		if sa.state == StateEstablished && len(sa.est.children) > 0 {
			sa.do(actReplaced{old})
		}
	}})
}

func reauthenticated(by SAID) Reason {
	return Reason{Code: ReasonReauthenticated, Rekeyed: true, Text: fmt.Sprintf("IKE SA %d with new proofs took its place", by)}
}

func unknownSA(id SAID) error { return fmt.Errorf("%w: %d", ErrUnknownSA, id) }

// reauthenticate makes an IKE SA that is to take the place of old.
func (ep *Endpoint) reauthenticate(old *box, a actReauth) {
	cfg := ep.peers.Load().byName[a.peer]
	if cfg == nil {
		return // it ends anyway
	}
	if id, ok, settled := ep.covering(old, a); ok {
		if settled { // else it is tried again, see reauthRetry
			old.post(evTerminate{reauthenticated(id)})
		}
		return
	}
	ep.mu.Lock()
	if ep.closed {
		ep.mu.Unlock()
		return
	}
	b := ep.newBoxLocked(a.peer)
	b.sa = newInitiator(b, cfg)
	b.sa.replaces, b.sa.target = old.id, a.path
	ep.mu.Unlock()
	for _, c := range a.children {
		b.post(evInitiate{child: c})
	}
}

// covering finds a younger IKE SA of the connection with all the CHILD SAs of old. Where both ends
// reauthenticate at the same time there are two, which would become four the next time: so one of
// them ends instead, when its time comes. It must be the younger one that stays: the older one may be
// about to end. And it must have the higher SPI, because which one is younger may not be the same at
// both ends, and they must not end both. settled: the peer has it too, and sends on it.
func (ep *Endpoint) covering(old *box, a actReauth) (id SAID, ok, settled bool) {
	now := ep.cfg.Clock.Now()
	ep.mu.Lock()
	var others []*box
	for o := range ep.byPeer[a.peer].all() {
		if o.id > old.id && o.up.Load() && !o.ending.Load() {
			others = append(others, o)
		}
	}
	ep.mu.Unlock()
	slices.SortFunc(others, func(x, y *box) int { return cmp.Compare(x.id, y.id) }) // the same in every run of a schedule
	for _, o := range others {
		o.step.Lock()
		ok, settled := o.sa.covers(a, now)
		o.step.Unlock()
		if ok {
			return o.id, true, settled
		}
	}
	return 0, false, false
}

func (sa *SA) covers(a actReauth, now time.Time) (ok, settled bool) {
	if sa.state != StateEstablished || sa.cur.spiI <= a.spi {
		return false, false
	}
	settled = now.Sub(sa.est.created) >= reauthGrace
	for _, name := range a.children {
		i := slices.IndexFunc(sa.est.children, func(c *child) bool { return c.queue == 0 && c.stands(name) })
		if i < 0 {
			return false, false
		}
		settled = settled && sa.est.children[i].sendNow
	}
	return true, settled
}

// replaced ends an IKE SA whose place was taken.
func (ep *Endpoint) replaced(a actReplaced, by SAID) {
	ep.mu.Lock()
	b := ep.boxes[a.old]
	ep.mu.Unlock()
	if b != nil {
		b.post(evTerminate{reauthenticated(by)})
	}
}

// Reauthenticate has one IKE SA replaced by a new one with new proofs of both ends, now.
func (ep *Endpoint) Reauthenticate(id SAID) error {
	ep.mu.Lock()
	b := ep.boxes[id]
	ep.mu.Unlock()
	if b == nil {
		return unknownSA(id)
	}
	b.post(evReauth{})
	return nil
}
