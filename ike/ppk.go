package ike

import (
	"bytes"
	"fmt"
	"slices"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// PPK is a postquantum preshared key (RFC 8784): a secret of both ends that is mixed into the keys
// of an IKE SA, beside what authenticates them. A quantum computer that breaks the key exchange
// gains nothing without it. It is used in the first authentication round, and what comes after is
// protected by it too.
type PPK struct {
	// ID names the key to the peer, which chooses by it (PPK_ID_FIXED). Printable characters of
	// base64 serve best; 1 to 255 octets.
	ID string

	// Secret is the key: random, 32 octets or more (RFC 8784, section 6: 256 bits for 128 bits
	// against a quantum computer).
	Secret []byte
}

const (
	ppkIDFixed  = 2 // PPK_ID_FIXED (RFC 8784, section 5.1)
	maxPPKID    = 255
	minPPK      = 32
	maxPPKs     = 64
	notifyNoPPK = message.NotifyNoPPKAuth
)

func (a *RemoteAuth) validatePPK(round int) error {
	switch {
	case len(a.PPKs) == 0 && a.RequirePPK:
		return fmt.Errorf("remote round %d: a PPK is required and none is given", round+1)
	case len(a.PPKs) > 0 && round > 0:
		return fmt.Errorf("remote round %d: a PPK belongs to the first round", round+1)
	case len(a.PPKs) > maxPPKs:
		return fmt.Errorf("remote round %d: %d PPKs, at most %d", round+1, len(a.PPKs), maxPPKs)
	}
	for i, k := range a.PPKs {
		switch {
		case k.ID == "" || len(k.ID) > maxPPKID:
			return fmt.Errorf("remote round %d: PPK %d has an ID of %d octets, expected 1 to %d", round+1, i+1, len(k.ID), maxPPKID)
		case len(k.Secret) < minPPK:
			return fmt.Errorf("remote round %d: PPK %q has %d octets, expected %d or more", round+1, k.ID, len(k.Secret), minPPK)
		case slices.ContainsFunc(a.PPKs[:i], func(o PPK) bool { return o.ID == k.ID }):
			return fmt.Errorf("remote round %d: two PPKs are named %q", round+1, k.ID)
		}
	}
	return nil
}

func (a *RemoteAuth) samePPKs(b *RemoteAuth) bool {
	return a.RequirePPK == b.RequirePPK && slices.EqualFunc(a.PPKs, b.PPKs, func(x, y PPK) bool {
		return x.ID == y.ID && bytes.Equal(x.Secret, y.Secret)
	})
}

// ppk returns the key that a PPK_IDENTITY notify names.
func (a *RemoteAuth) ppk(n *message.Notify) *PPK {
	if n == nil || len(n.Data) < 2 || n.Data[0] != ppkIDFixed {
		return nil
	}
	i := slices.IndexFunc(a.PPKs, func(k PPK) bool { return k.ID == string(n.Data[1:]) })
	if i < 0 {
		return nil
	}
	return &a.PPKs[i]
}

// ppkState is where the agreement about a PPK stands.
type ppkState struct {
	agreed bool // both ends announced USE_PPK
	key    *PPK // in use, or what the initiator proposes
	mixed  *suite.IKEKeys
}

func (p *ppkState) wipe() {
	if p.mixed != nil {
		p.mixed.Wipe()
		p.mixed = nil
	}
}

// mix returns SK_d, SK_pi and SK_pr with a PPK in them (RFC 8784, section 3).
func (p *protection) mix(k *PPK) (*suite.IKEKeys, error) {
	out := &suite.IKEKeys{SKd: p.keys.SKd.Clone(), SKpi: p.keys.SKpi.Clone(), SKpr: p.keys.SKpr.Clone()}
	secret := suite.CopySecret(k.Secret)
	defer secret.Wipe()
	if err := out.MixPPK(p.prf, secret); err != nil {
		out.Wipe()
		return nil, err
	}
	return out, nil
}

// usePPK takes a PPK into use for good.
func (sa *SA) usePPK(k *PPK, mixed *suite.IKEKeys) {
	keys := sa.cur.prot.keys
	for _, s := range []suite.Secret{keys.SKd, keys.SKpi, keys.SKpr} {
		s.Wipe()
	}
	keys.SKd, keys.SKpi, keys.SKpr = mixed.SKd, mixed.SKpi, mixed.SKpr
	sa.handshake.ppk.key, sa.ppk = k, k.ID
	sa.cur.logKeys()
}

// announcePPK tells the responder of a PPK.
func (sa *SA) announcePPK(out *outgoing) {
	if len(sa.peer.RemoteAuth[0].PPKs) > 0 {
		out.notify(message.NotifyUsePPK, nil)
	}
}

// proposePPK chooses the PPK of the initiator when the responder has some; an error: there must be
// one.
func (sa *SA) proposePPK(in *parsed) *RefusedError {
	ra, p := &sa.peer.RemoteAuth[0], &sa.handshake.ppk
	p.agreed = len(ra.PPKs) > 0 && in.has(message.NotifyUsePPK)
	switch {
	case p.agreed:
		p.key = &ra.PPKs[0]
	case ra.RequirePPK:
		return refused(CodePPK, -1, nil, "the responder has no PPK, but connection %q requires one", sa.peer.Name)
	}
	return nil
}

// skp returns the SK_p of one end for the AUTH payload of the round under way.
func skp(k *suite.IKEKeys, initiator bool) suite.Secret {
	if initiator {
		return k.SKpi
	}
	return k.SKpr
}

// answeredPPK takes the responder's word about the PPK in the answer to the first round.
func (sa *SA) answeredPPK(in *parsed) *RefusedError {
	p := &sa.handshake.ppk
	switch {
	case !p.agreed:
	case in.has(message.NotifyPPKIdentity):
		sa.usePPK(p.key, p.mixed)
		p.mixed = nil
	case sa.peer.RemoteAuth[0].RequirePPK:
		return refused(CodePPK, 0, nil, "the responder does not know the PPK %q, which connection %q requires", p.key.ID, sa.peer.Name)
	default:
		p.key = nil
		p.wipe()
	}
	return nil
}

// ppkProof is what an AUTH payload of the first round has to prove to one candidate.
type ppkProof struct {
	key    *PPK
	mixed  *suite.IKEKeys
	octets []byte
	data   []byte // of AUTH, or of NO_PPK_AUTH
	err    error
}

// ppkProofs finds for each candidate of h.trusts whether a PPK counts, by table 1 of RFC 8784.
func (sa *SA) ppkProofs(in *parsed, octets func(suite.Secret) []byte) []ppkProof {
	h, g := sa.handshake, sa.cur
	out := make([]ppkProof, len(h.trusts))
	for i, b := range h.trusts {
		p := &out[i]
		p.data = in.auth.Data
		ra := &b.first.RemoteAuth[h.round]
		if h.round > 0 || sa.initiator || !h.ppk.agreed {
			p.octets = octets(skp(g.prot.keys, !g.initiator))
			if h.round == 0 && !sa.initiator && ra.RequirePPK {
				p.err = refused(CodePPK, 0, nil, "the initiator has no PPK, but connection %q requires one", b.first.Name)
			}
			continue
		}
		n := in.notify(message.NotifyPPKIdentity)
		plain := in.notify(notifyNoPPK)
		p.key = ra.ppk(n)
		switch {
		case n == nil:
			p.err = refused(CodePPK, 0, nil, "the initiator announced a PPK and names none")
		case p.key != nil:
			if p.mixed, p.err = g.prot.mix(p.key); p.err == nil {
				p.octets = octets(p.mixed.SKpi)
			}
		case ra.RequirePPK || plain == nil:
			p.err = refused(CodePPK, 0, nil, "the initiator's PPK %q is not one of connection %q, and one is required by %s",
				ppkName(n), b.first.Name, map[bool]string{true: "us", false: "the initiator"}[ra.RequirePPK])
		default:
			p.octets, p.data = octets(g.prot.keys.SKpi), plain.Data
		}
	}
	return out
}

func ppkName(n *message.Notify) string {
	if len(n.Data) < 1 {
		return ""
	}
	return string(n.Data[1:min(len(n.Data), 65)])
}

// settlePPK takes the PPK of the first candidate that was convinced into use; candidates that would
// have it otherwise drop out.
func (sa *SA) settlePPK(convinced map[int]bool) {
	h := sa.handshake
	defer func() {
		for i := range h.ppkProofs {
			if m := h.ppkProofs[i].mixed; m != nil {
				m.Wipe()
			}
		}
		h.ppkProofs = nil
	}()
	if h.round > 0 || sa.initiator || !h.ppk.agreed {
		return
	}
	first := slices.IndexFunc(h.trusts, func(b *branch) bool { return convinced[b.trust] })
	if first < 0 {
		return
	}
	p := &h.ppkProofs[first]
	for i, b := range h.trusts {
		o := h.ppkProofs[i].key
		if (o == nil) != (p.key == nil) || o != nil && !bytes.Equal(o.Secret, p.key.Secret) {
			delete(convinced, b.trust)
		}
	}
	if p.key != nil {
		sa.usePPK(p.key, p.mixed)
		p.mixed = nil
	}
}
