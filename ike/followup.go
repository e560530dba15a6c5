package ike

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// followup is the additional key exchanges that follow a CREATE_CHILD_SA exchange in
// IKE_FOLLOWUP_KE exchanges, one each, one after the other (RFC 9370, section 2.2.4). The SA is
// made when all are done.
type followup struct {
	methods []uint16 // still to be run, in their order
	shared  []suite.Secret
	link    []byte // of ADDITIONAL_KEY_EXCHANGE: what the next request names

	kex *suite.KeyExchange // initiator
}

func (f *followup) wipe() {
	for _, s := range f.shared {
		s.Wipe()
	}
	f.shared = nil
	if f.kex != nil {
		f.kex.Wipe()
		f.kex = nil
	}
}

// newFollowup begins as initiator with the answer to CREATE_CHILD_SA.
func newFollowup(c suite.Chosen, in *parsed) (*followup, *RefusedError) {
	f := &followup{methods: c.AdditionalKE()}
	return f, f.takeLink(in)
}

func (f *followup) takeLink(in *parsed) *RefusedError {
	n := in.notify(notifyAdditionalKE)
	if n == nil {
		return refused(CodeSyntax, -1, nil, "the answer to %s lacks ADDITIONAL_KEY_EXCHANGE, but %s comes next", exchangeName(in.exchange), suite.KEName(f.methods[0]))
	}
	f.link = n.Data
	return nil
}

// request makes the next IKE_FOLLOWUP_KE request.
func (f *followup) request(sa *SA) (*outgoing, error) {
	var err error
	if f.kex, err = suite.NewInitiator(f.methods[0], sa.host.rand()); err != nil {
		return nil, err
	}
	return newOutgoing().ke(f.kex.ID(), f.kex.Public()).notify(notifyAdditionalKE, f.link), nil
}

// take takes the answer; done says that it was the last one.
func (f *followup) take(in *parsed) (done bool, e *RefusedError) {
	if err := message.FormFollowupKEResponse.Check(in.ps); err != nil {
		return false, refused(CodeSyntax, -1, err, "the answer to IKE_FOLLOWUP_KE is malformed")
	}
	if uint16(in.ke.Method) != f.kex.ID() {
		return false, refused(CodeBadKE, -1, nil, "the answer to IKE_FOLLOWUP_KE has key exchange data of %s, expected %s", suite.KEName(uint16(in.ke.Method)), suite.KEName(f.kex.ID()))
	}
	s, err := f.kex.Finish(in.ke.Data)
	if err != nil {
		return false, refused(CodeBadKE, -1, err, "the answer to IKE_FOLLOWUP_KE has bad key exchange data")
	}
	f.kex.Wipe()
	f.kex, f.shared, f.methods = nil, append(f.shared, s), f.methods[1:]
	if len(f.methods) == 0 {
		return true, nil
	}
	return false, f.takeLink(in)
}

// last tells whether the exchange under way is the last one: the peer has made the SA then.
func (f *followup) last() bool { return len(f.methods) <= 1 }

// pending is an SA that the peer asks for in CREATE_CHILD_SA and that waits for its additional key
// exchanges: a CHILD SA (cfg and k), or new keys of the IKE SA (ng).
type pending struct {
	followup
	gen     *generation // of the exchanges
	expires time.Time

	cfg *ChildConfig
	k   keying

	ng     *generation // without keys
	base   suite.Secret
	ni, nr []byte
}

// followupTime is how long a peer may take for the next IKE_FOLLOWUP_KE request: RFC 9370, section
// 2.2.4, finds 5 to 20 s appropriate.
const followupTime = 20 * time.Second

// maxPending bounds the SAs of one peer that wait for their additional key exchanges.
const maxPending = 4

// await keeps an SA of the peer that waits, and adds the link to it to the answer.
func (sa *SA) await(p *pending, c suite.Chosen, out *outgoing) *pending {
	for _, o := range slices.Clone(sa.pending) {
		// The peer begins anew.
		if p.ng != nil && o.ng != nil || p.k.replaces != nil && o.k.replaces == p.k.replaces {
			sa.forget(o)
		}
	}
	if len(sa.pending) >= maxPending {
		sa.forget(sa.pending[0])
	}
	p.methods = c.AdditionalKE()
	sa.pending = append(sa.pending, p)
	sa.linkNext(p, out)
	return p
}

// linkNext tells the peer what to name in the next request, and waits for that.
func (sa *SA) linkNext(p *pending, out *outgoing) {
	sa.lastLink++
	p.link = binary.BigEndian.AppendUint64(nil, sa.lastLink)
	p.expires = sa.now.Add(followupTime)
	out.notify(notifyAdditionalKE, p.link)
}

// forget drops an SA of the peer that waits.
func (sa *SA) forget(p *pending) {
	if !sa.unlist(p) {
		return
	}
	p.wipe()
	p.base.Wipe()
	p.k.shared.Wipe()
	switch {
	case p.ng != nil:
		sa.host.freeIKESPI(p.ng.ourSPI())
	case p.k.id != 0:
		sa.host.freeESPSPI(p.k.spiIn, p.k.id)
	}
}

// unlist takes p from the list; false: it was not there any more.
func (sa *SA) unlist(p *pending) bool {
	i := slices.Index(sa.pending, p)
	if i < 0 {
		return false
	}
	sa.pending = slices.Delete(sa.pending, i, i+1)
	return true
}

// forgetAll drops what waits on g; nil: everything.
func (sa *SA) forgetAll(g *generation) {
	for _, p := range slices.Clone(sa.pending) {
		if g == nil || p.gen == g {
			sa.forget(p)
		}
	}
}

// replacing returns what of the peer's waits to take the place of c.
func (sa *SA) replacing(c *child) *pending {
	for _, p := range sa.pending {
		if c != nil && p.k.replaces == c {
			return p
		}
	}
	return nil
}

// rekeyed tells whether the peer is giving g new keys: nothing of ours is begun on it then.
func (g *generation) rekeyed() bool {
	return slices.ContainsFunc(g.sa.pending, func(p *pending) bool { return p.gen == g && p.ng != nil })
}

func (sa *SA) pendingDeadline() (d time.Time) {
	for _, p := range sa.pending {
		if d.IsZero() || p.expires.Before(d) {
			d = p.expires
		}
	}
	return d
}

// expirePending drops what the peer began and did not go on with. What it wanted to replace is
// ours to replace.
func (sa *SA) expirePending() {
	for _, p := range slices.Clone(sa.pending) {
		if !due(sa.now, p.expires) {
			continue
		}
		old, rekey := p.k.replaces, p.ng != nil
		sa.forget(p)
		switch {
		case sa.est == nil || sa.state != StateEstablished:
		case rekey && sa.est.rekeyAt.IsZero():
			sa.est.rekeyAt = sa.now
		case old != nil && old.rekeyAt.IsZero() && old.rekeying == nil && old.successor == nil && !old.deleting:
			old.rekeyAt = sa.now
		}
	}
}

// onFollowupKE answers an IKE_FOLLOWUP_KE request. nil: it was answered already.
func (sa *SA) onFollowupKE(g *generation, in *parsed) *outgoing {
	if err := message.FormFollowupKERequest.Check(in.ps); err != nil {
		sa.refuse(refused(CodeSyntax, -1, err, "an IKE_FOLLOWUP_KE request is malformed"))
		g.respond(in, newOutgoing().notify(notifyInvalidSyntax, nil))
		sa.close(Reason{Code: ReasonProtocol, Text: err.Error(), Remote: true})
		return nil
	}
	if sa.state != StateEstablished || g.deleting {
		return newOutgoing().notify(notifyTemporaryFailure, nil)
	}
	n := in.notify(notifyAdditionalKE)
	i := slices.IndexFunc(sa.pending, func(p *pending) bool { return n != nil && p.gen == g && bytes.Equal(p.link, n.Data) })
	if i < 0 || g != sa.cur || g.successor != nil {
		return newOutgoing().notify(notifyStateNotFound, nil)
	}
	p := sa.pending[i]
	bad := func(err error) *outgoing {
		sa.forget(p)
		sa.refuse(refused(CodeBadKE, -1, err, "IKE_FOLLOWUP_KE has key exchange data of %s; expected is %s", suite.KEName(uint16(in.ke.Method)), suite.KEName(p.methods[0])))
		return newOutgoing().notify(notifyBadKE, nil)
	}
	if uint16(in.ke.Method) != p.methods[0] {
		return bad(nil)
	}
	public, shared, err := suite.Respond(p.methods[0], sa.host.rand(), in.ke.Data)
	if err != nil {
		return bad(err)
	}
	out := newOutgoing().ke(p.methods[0], public)
	p.shared, p.methods = append(p.shared, shared), p.methods[1:]
	if len(p.methods) > 0 {
		sa.linkNext(p, out)
		return out
	}
	defer p.wipe()
	if p.ng != nil {
		return sa.finishRekey(g, p, out)
	}
	return sa.finishChild(g, in, p, out)
}

// finishRekey ends the peer's rekey of the IKE SA.
func (sa *SA) finishRekey(g *generation, p *pending, out *outgoing) *outgoing {
	sa.unlist(p)
	defer p.base.Wipe()
	seed := suite.RekeySKEYSEED(g.prot.prf, g.prot.keys.SKd, p.base, p.ni, p.nr, p.shared...)
	if err := p.ng.protect(seed, p.ni, p.nr); err != nil {
		sa.fail(err)
		return nil
	}
	p.ng.created = sa.now
	sa.gens = append(sa.gens, p.ng)
	g.successor = p.ng
	g.dropAt = sa.now.Add(replacedFor)
	return out
}

// finishChild makes the CHILD SA that the peer asked for.
func (sa *SA) finishChild(g *generation, in *parsed, p *pending, out *outgoing) *outgoing {
	defer p.k.shared.Wipe()
	if old := p.k.replaces; old != nil {
		switch {
		case old.deleting || old.successor != nil:
			sa.forget(p)
			return newOutgoing().notify(notifyTemporaryFailure, nil) // RFC 7296, section 2.25.1
		case !slices.Contains(sa.est.children, old):
			p.k.replaces = nil // closed meanwhile
		}
	}
	sa.unlist(p)
	if cfg := sa.peer.child(p.cfg.Name); cfg != nil {
		p.cfg = cfg // the connections may have been set anew
	}
	p.k.additional = p.shared
	c := sa.installAnswered(g, in, out, p.cfg, p.k)
	if c != nil && p.k.replaces != nil {
		if t := p.k.replaces.rekeying; t != nil && t.rival != nil && t.rival.pending == p {
			t.rival.child = c
		}
	}
	return nil
}
