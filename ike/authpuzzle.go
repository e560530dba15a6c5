package ike

import (
	"encoding/binary"
	"io"
	"time"

	"wardgate/ike/suite"
)

// Puzzles in IKE_AUTH, as the responder (RFC 8019, section 7.2): when many IKE SAs of strangers get IKE_AUTH
// requests that are not authentic, the next ones that come with a solved puzzle are given a second one with
// the answer to IKE_SA_INIT. Their Diffie-Hellman value and keys are computed when the solution comes.
// Otherwise that is done with the answer: half of it has to be, and what was computed is kept, so that
// more of such requests cost no more than looking at them.
//
// Not with additional key exchanges: IKE_INTERMEDIATE comes before IKE_AUTH and needs the keys.

const (
	// RFC 8019, section 6: more than one a second indicates an attack.
	junkHalf  = 10 * time.Second
	junkScore = 10
	// authEasier is how many zero bits less are asked for than in IKE_SA_INIT: it is only to be more work
	// than one Diffie-Hellman value.
	authEasier = 4
)

// authPuzzle is what is asked for; difficulty 0: nothing.
type authPuzzle struct {
	prf        uint16
	difficulty uint8
}

// locked is a key exchange that goes on when the puzzle is solved.
type locked struct {
	authPuzzle
	kex  *suite.KeyExchange
	peer []byte // key exchange data
}

// mayLock tells whether the keys can wait: no IKE_INTERMEDIATE will need them, and our key exchange data
// does not depend on the initiator's, as with a KEM.
func mayLock(c suite.Chosen) bool {
	initiator, responder := suite.PublicLen(c.KE)
	return !c.HasAdditionalKE() && initiator == responder
}

func newLocked(z authPuzzle, g *generation, rand io.Reader, peer []byte) (*locked, error) {
	kex, err := suite.NewResponder(g.chosen.KE, rand, peer)
	if err != nil {
		return nil, err
	}
	return &locked{z, kex, peer}, nil
}

// unlock computes the keys of a half-open IKE SA, if ev has the solution of its puzzle; false: it is to be
// dropped in silence (RFC 8019, section 7.2.4).
func (g *generation) unlock(ev evDatagram) bool {
	sa := g.sa
	h := sa.handshake
	if h == nil || h.locked == nil || ev.head.exchange != exchangeAuth || ev.head.id != g.recvID {
		return false
	}
	l := h.locked
	m, ok := sealed(ev.msg)
	if !ok {
		return false
	}
	ps := m.Solution()
	var z puzzle
	if ps == nil || !z.set(l.prf, binary.BigEndian.AppendUint64(append([]byte(nil), h.nr...), g.spiR)) || z.check(ps.Data, int(l.difficulty)) < 0 {
		return false
	}
	shared, err := l.kex.Finish(l.peer)
	l.kex.Wipe()
	h.locked = nil
	if err != nil {
		sa.do(actStranger{sa.path, CodeBadKE, err.Error()})
		sa.close(Reason{Code: ReasonProtocol, Text: err.Error()})
		return false
	}
	defer shared.Wipe()
	prf, err := suite.NewPRF(g.chosen.PRF)
	if err == nil {
		err = g.protect(suite.SKEYSEED(prf, shared, h.ni, h.nr), h.ni, h.nr)
	}
	if err != nil {
		sa.fail(err)
		return false
	}
	return true
}

// noteJunk counts a half-open IKE SA for which something came that is not authentic, once. Fragments are
// left out: they may be good.
func (sa *SA) noteJunk(ev evDatagram) {
	h := sa.handshake
	if sa.initiator || sa.est != nil || h == nil || h.junk || !h.silentOnly() {
		return
	}
	if m, ok := sealed(ev.msg); ok && !m.Encrypted.IsFragment() {
		h.junk = true
		sa.host.noteJunk()
	}
}

// silentOnly tells that nothing authentic has come.
func (h *handshake) silentOnly() bool { return h.round == 0 && len(h.claimed) == 0 }

// noteJunk counts one.
func (b *box) noteJunk() {
	now := b.ep.cfg.Clock.Now()
	b.ep.mu.Lock()
	defer b.ep.mu.Unlock()
	j := &b.ep.junk
	*j = suspect{j.fading(now, junkHalf) + 1, now}
}

// junkComes tells that there are too many.
func (ep *Endpoint) junkComes(now time.Time) bool {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	return ep.junk.fading(now, junkHalf) >= junkScore
}
