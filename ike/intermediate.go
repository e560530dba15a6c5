package ike

import (
	"encoding/binary"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// intermediate is where the IKE_INTERMEDIATE exchanges stand (RFC 9242), which lie between
// IKE_SA_INIT and IKE_AUTH and carry one additional key exchange each (RFC 9370, section 2.2.2).
type intermediate struct {
	agreed  bool     // both ends announced INTERMEDIATE_EXCHANGE_SUPPORTED
	methods []uint16 // additional key exchanges still to be run, in their order
	count   int      // exchanges done
	kex     *suite.KeyExchange

	// IntAuth_i and IntAuth_r so far (RFC 9242, section 3.3.2); nil: no exchange took place.
	i, r []byte
	// mid is the message ID of the first IKE_AUTH request.
	mid uint32
}

// maxIntermediate bounds the IKE_INTERMEDIATE exchanges of a stranger. Seven can carry a key
// exchange; what others are for is not defined yet.
const maxIntermediate = 12

func (m *intermediate) wipe() {
	if m.kex != nil {
		m.kex.Wipe()
		m.kex = nil
	}
}

// octets returns IntAuth, which the AUTH payload of every round covers: all rounds are one
// IKE_AUTH exchange with one first message (RFC 4739). nil: there was no IKE_INTERMEDIATE.
func (m *intermediate) octets() []byte {
	if m.i == nil {
		return nil
	}
	out := append(append([]byte(nil), m.i...), m.r...)
	return binary.BigEndian.AppendUint32(out, m.mid)
}

// afterInit goes on when the initiator has the answer to IKE_SA_INIT.
func (sa *SA) afterInit() {
	if len(sa.handshake.inter.methods) > 0 {
		sa.sendIntermediate()
		return
	}
	sa.beginAuth()
}

// beginAuth starts the first authentication round.
func (sa *SA) beginAuth() {
	sa.handshake.inter.mid = sa.cur.sendID
	sa.beginRound()
}

// sendIntermediate starts the next additional key exchange.
func (sa *SA) sendIntermediate() {
	m, g := &sa.handshake.inter, sa.cur
	m.wipe()
	var err error
	if m.kex, err = suite.NewInitiator(m.methods[0], sa.host.rand()); err != nil {
		sa.fail(err)
		return
	}
	in, err := message.EncodeInner(newOutgoing().ke(m.kex.ID(), m.kex.Public()).ps)
	if err != nil {
		sa.fail(err)
		return
	}
	h := g.header(exchangeIntermediate, g.sendID, false)
	msgs, err := g.seal(h, in)
	if err != nil {
		sa.fail(err)
		return
	}
	m.i = suite.IntAuth(g.prot.prf, g.prot.keys.SKpi, m.i, in.IntAuth(h), in.Plain)
	g.launch(intermediateTask{}, exchangeIntermediate, msgs)
}

// intermediateTask is one IKE_INTERMEDIATE request.
type intermediateTask struct{}

func (intermediateTask) build(*SA, *generation) (uint8, *outgoing, bool) { return 0, nil, false }

func (intermediateTask) done(sa *SA, g *generation, in *parsed) {
	if sa.handshake == nil || sa.state != StateAuth {
		return
	}
	h := sa.handshake
	m := &h.inter
	if n := in.errorNotify(); n != nil {
		// RFC 9242, section 3.4, and RFC 7296, section 2.21.2: as in IKE_AUTH.
		err := peerError(n, "IKE_INTERMEDIATE")
		sa.refuse(refused(CodePeerRefused, -1, err, "the peer refused the additional key exchange %s; its own records say why", suite.KEName(m.methods[0])))
		h.failure = err
		sa.close(Reason{Code: ReasonDeletedByPeer, Text: err.Error(), Remote: true})
		return
	}
	if err := message.FormIntermediateResponse.Check(in.ps); err != nil {
		sa.abort(refused(CodeSyntax, -1, err, "the answer to IKE_INTERMEDIATE is malformed"))
		return
	}
	if in.ke == nil || uint16(in.ke.Method) != m.kex.ID() {
		sa.abort(refused(CodeBadKE, -1, nil, "the answer to IKE_INTERMEDIATE holds no key exchange data for %s", suite.KEName(m.kex.ID())))
		return
	}
	shared, err := m.kex.Finish(in.ke.Data)
	if err != nil {
		sa.abort(refused(CodeBadKE, -1, err, "the answer to IKE_INTERMEDIATE has bad key exchange data"))
		return
	}
	defer shared.Wipe()
	m.r = suite.IntAuth(g.prot.prf, g.prot.keys.SKpr, m.r, in.inner.IntAuth(in.head), in.inner.Plain)
	if err := sa.mixIn(g, shared); err != nil {
		sa.fail(err)
		return
	}
	sa.afterInit()
}

// mixIn gives g the keys that come after an additional key exchange (RFC 9370, section 2.2.2).
func (sa *SA) mixIn(g *generation, shared suite.Secret) error {
	h := sa.handshake
	h.inter.wipe()
	h.inter.methods = h.inter.methods[1:]
	h.inter.count++
	old := g.prot
	err := g.protect(suite.AdditionalSKEYSEED(old.prf, old.keys.SKd, shared, h.ni, h.nr), h.ni, h.nr)
	if err != nil {
		return err
	}
	if !g.initiator {
		// The request may come again, under the keys that it came with.
		g.prot.before, old.in = old.in, nil
	}
	old.wipe()
	return nil
}

// onIntermediate answers an IKE_INTERMEDIATE request.
func (sa *SA) onIntermediate(g *generation, in *parsed) {
	h := sa.handshake
	m := &h.inter
	refuse := func(code Code, err error, format string, args ...any) {
		h.req = in
		sa.refuseAuth(refused(code, -1, err, format, args...))
	}
	switch {
	case !m.agreed:
		refuse(CodeUnexpected, nil, "IKE_INTERMEDIATE, which was not agreed on")
		return
	case h.round > 0 || len(h.claimed) > 0:
		refuse(CodeUnexpected, nil, "IKE_INTERMEDIATE after IKE_AUTH began")
		return
	case m.count >= maxIntermediate:
		refuse(CodeUnexpected, nil, "%d IKE_INTERMEDIATE exchanges", m.count+1)
		return
	}
	if err := message.FormIntermediateRequest.Check(in.ps); err != nil {
		refuse(CodeSyntax, err, "the IKE_INTERMEDIATE request is malformed")
		return
	}
	out := newOutgoing()
	var shared suite.Secret
	if in.ke != nil {
		if len(m.methods) == 0 {
			refuse(CodeSyntax, nil, "IKE_INTERMEDIATE with %s, which is one key exchange more than agreed on", suite.KEName(uint16(in.ke.Method)))
			return
		}
		if uint16(in.ke.Method) != m.methods[0] {
			refuse(CodeSyntax, nil, "IKE_INTERMEDIATE with %s, %s comes next", suite.KEName(uint16(in.ke.Method)), suite.KEName(m.methods[0]))
			return
		}
		var public []byte
		var err error
		if public, shared, err = suite.Respond(m.methods[0], sa.host.rand(), in.ke.Data); err != nil {
			refuse(CodeSyntax, err, "IKE_INTERMEDIATE has bad key exchange data")
			return
		}
		defer shared.Wipe()
		out.ke(m.methods[0], public)
	}
	inner, err := message.EncodeInner(out.ps)
	if err != nil {
		sa.fail(err)
		return
	}
	head := g.header(in.exchange, in.id, true)
	msgs, err := g.seal(head, inner)
	if err != nil {
		sa.fail(err)
		return
	}
	keys := g.prot.keys
	m.i = suite.IntAuth(g.prot.prf, keys.SKpi, m.i, in.inner.IntAuth(in.head), in.inner.Plain)
	m.r = suite.IntAuth(g.prot.prf, keys.SKpr, m.r, inner.IntAuth(head), inner.Plain)
	g.answer(in, msgs)
	if in.ke == nil {
		m.count++
		return
	}
	if err := sa.mixIn(g, shared); err != nil {
		sa.fail(err)
	}
}
