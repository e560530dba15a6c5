package ike

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"
)

// peerSet is the set of connections, read-only after it was made.
type peerSet struct {
	byName    map[string]*PeerConfig
	ppk       bool // some have a PPK
	childless bool // some are Childless

	// What proofs some accept.
	psk, certificate bool

	// What candidates.go looks up.
	roots     map[netip.Addr]*branch // by PeerConfig.Local
	locals    []netip.Addr           // keys of roots
	byID      branchesByID
	entrances map[entranceKey]*entrance
	places    map[string][]place // of each identity, by Identity.key
}

func newPeerSet(peers []*PeerConfig) *peerSet {
	s := &peerSet{
		byName: make(map[string]*PeerConfig, len(peers)), roots: map[netip.Addr]*branch{},
		byID: branchesByID{}, entrances: map[entranceKey]*entrance{}, places: map[string][]place{},
	}
	for _, p := range peers {
		s.byName[p.Name] = p
		s.childless = s.childless || p.Childless
		psk, certificate := p.accepts()
		s.psk, s.certificate = s.psk || psk, s.certificate || certificate
		s.ppk = s.ppk || len(p.RemoteAuth) > 0 && len(p.RemoteAuth[0].PPKs) > 0
	}
	s.index(peers)
	return s
}

// successor returns the connection of s that took the place of old with the same rights, or nil.
func (s *peerSet) successor(old *PeerConfig) *PeerConfig {
	p := s.byName[old.Name]
	if p == old || p != nil && p.sameRights(old) {
		return p
	}
	return nil
}

func (p *PeerConfig) child(name string) *ChildConfig {
	for i := range p.Children {
		if p.Children[i].Name == name {
			return &p.Children[i]
		}
	}
	return nil
}

func (p *PeerConfig) rounds() int { return len(p.RemoteAuth) }

// leaves are our own certificates by their DER: many connections share few.
type leaves map[string]*x509.Certificate

func (l leaves) parse(der []byte) (*x509.Certificate, error) {
	if c := l[string(der)]; c != nil {
		return c, nil
	}
	c, err := x509.ParseCertificate(der)
	if err == nil {
		l[string(der)] = c
	}
	return c, err
}

// validate tells what is wrong with a connection: an authentication that would prove nothing is
// an error here, not a surprise later.
func (p *PeerConfig) validate(own leaves) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("ike: connection %q: "+format, append([]any{p.Name}, args...)...)
	}
	switch {
	case p.Name == "":
		return errors.New("ike: a connection has no name")
	case len(p.Proposals) == 0:
		return fail("no IKE proposal")
	case len(p.LocalAuth) == 0 || len(p.LocalAuth) != len(p.RemoteAuth):
		return fail("expected the same number of authentication rounds for both ends, at least one, got %d local and %d remote", len(p.LocalAuth), len(p.RemoteAuth))
	case len(p.LocalAuth) > 8:
		return fail("%d authentication rounds, at most 8", len(p.LocalAuth))
	case slices.ContainsFunc(p.RedirectTo, func(n netip.Prefix) bool { return !n.IsValid() }):
		return fail("RedirectTo holds no network")
	case len(p.Children) == 0:
		return fail("no CHILD SA")
	}
	for i, a := range p.LocalAuth {
		switch {
		case a.ID.IsZero():
			return fail("local round %d: no identity", i+1)
		case len(a.PSK) > 0 && (len(a.Chain) > 0 || a.Signer != nil):
			return fail("local round %d: both a PSK and a certificate", i+1)
		case len(a.PSK) > 0:
		case len(a.Chain) == 0 || a.Signer == nil:
			return fail("local round %d: neither a PSK nor a certificate with its key", i+1)
		default:
			leaf, err := own.parse(a.Chain[0])
			if err != nil {
				return fail("local round %d: certificate: %v", i+1, err)
			}
			type equaler interface{ Equal(crypto.PublicKey) bool }
			if pub, ok := leaf.PublicKey.(equaler); !ok || !pub.Equal(a.Signer.Public()) {
				return fail("local round %d: the key does not belong to the certificate of %q", i+1, leaf.Subject)
			}
		}
	}
	for i, a := range p.RemoteAuth {
		if err := a.validatePPK(i); err != nil {
			return fail("%v", err)
		}
		switch {
		case len(a.IDs) == 0:
			return fail("remote round %d: no identity", i+1)
		case slices.ContainsFunc(a.IDs, Identity.IsZero):
			return fail("remote round %d: an empty identity", i+1)
		case len(a.PSK) > 0 && len(a.Anchors) > 0:
			return fail("remote round %d: both a PSK and trust anchors", i+1)
		case len(a.PSK) > 0:
		case len(a.Anchors) == 0:
			return fail("remote round %d: neither a PSK nor a trust anchor", i+1)
		case a.RelatedToRound < -1 || a.RelatedToRound >= i:
			return fail("remote round %d: RelatedToRound %d names no earlier round; -1 means none", i+1, a.RelatedToRound)
		case a.RelatedToRound >= 0 && len(p.RemoteAuth[a.RelatedToRound].PSK) > 0:
			return fail("remote round %d: bound to round %d, which has no certificate but a PSK", i+1, a.RelatedToRound+1)
		}
	}
	if err := p.checkConfig(); err != nil {
		return fail("%v", err)
	}
	for i, c := range p.Children {
		switch {
		case c.Name == "":
			return fail("a CHILD SA has no name")
		case slices.ContainsFunc(p.Children[:i], func(o ChildConfig) bool { return o.Name == c.Name }):
			return fail("two CHILD SAs are named %q", c.Name)
		case len(c.Proposals) == 0:
			return fail("CHILD SA %q: no ESP proposal", c.Name)
		case c.Queues < 0 || c.Queues > maxQueues:
			return fail("CHILD SA %q: expected 0 to %d queues, got %d", c.Name, maxQueues, c.Queues)
		case len(c.LocalTS) == 0 || len(c.RemoteTS) == 0:
			return fail("CHILD SA %q: traffic selectors are missing", c.Name)
		case len(c.LocalTS) > maxSelectors || len(c.RemoteTS) > maxSelectors:
			return fail("CHILD SA %q: more than %d traffic selectors", c.Name, maxSelectors)
		}
		if l, _ := pairUp(c.LocalTS, c.RemoteTS); len(l) == 0 {
			return fail("CHILD SA %q: no packet fits both %s and %s: they have no address family and protocol in common", c.Name, joinTS(c.LocalTS), joinTS(c.RemoteTS))
		}
		for _, s := range slices.Concat(c.LocalTS, c.RemoteTS) {
			if err := s.check(); err != nil {
				return fail("CHILD SA %q: %v", c.Name, err)
			}
		}
	}
	return nil
}

// sameRights tells whether an IKE SA made under p may live on under o: who may come, what each
// proves, what may be reached and how it is protected are the same. Gateways and timers may
// differ.
func (p *PeerConfig) sameRights(o *PeerConfig) bool {
	if p.ForceEncap != o.ForceEncap || (p.Request == nil) != (o.Request == nil) || (p.Assign == nil) != (o.Assign == nil) || !reflect.DeepEqual(p.Proposals, o.Proposals) ||
		len(p.LocalAuth) != len(o.LocalAuth) || len(p.RemoteAuth) != len(o.RemoteAuth) ||
		!slices.EqualFunc(p.Children, o.Children, ChildConfig.sameRights) {
		return false
	}
	for i := range p.LocalAuth {
		// A renewed certificate is no other right: it is proved in a new IKE SA soon (reauth.go).
		a, b := &p.LocalAuth[i], &o.LocalAuth[i]
		if !a.ID.Equal(b.ID) || !bytes.Equal(a.PSK, b.PSK) {
			return false
		}
	}
	for i := range p.RemoteAuth {
		// Revocation lists may differ: the peer's certificates are judged again then.
		a, b := &p.RemoteAuth[i], &o.RemoteAuth[i]
		if !slices.EqualFunc(a.IDs, b.IDs, Identity.Equal) || !a.sameAuthority(b) {
			return false
		}
	}
	return true
}

// sameRights leaves the number of queues out: it is about speed.
func (c ChildConfig) sameRights(o ChildConfig) bool {
	c.Queues, o.Queues = 0, 0
	return reflect.DeepEqual(c, o)
}

// sameTrust tells whether the same certificates, or the same PSK, convince both.
func (a *RemoteAuth) sameTrust(b *RemoteAuth) bool {
	return a.sameAuthority(b) && a.RequireCRL == b.RequireCRL &&
		slices.EqualFunc(a.CRLs, b.CRLs, func(x, y *x509.RevocationList) bool { return bytes.Equal(x.Raw, y.Raw) })
}

// sameAuthority is sameTrust without revocation.
func (a *RemoteAuth) sameAuthority(b *RemoteAuth) bool {
	return a == b || a.RelatedToRound == b.RelatedToRound && bytes.Equal(a.PSK, b.PSK) && a.samePPKs(b) &&
		slices.EqualFunc(a.Anchors, b.Anchors, (*x509.Certificate).Equal)
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

func (p *PeerConfig) rekeyIKE() time.Duration   { return orDefault(p.RekeyIKE, defaultRekeyIKE) }
func (p *PeerConfig) rekeyChild() time.Duration { return orDefault(p.RekeyChild, defaultRekeyChild) }

func (p *PeerConfig) liveness() time.Duration { return orDefault(p.LivenessInterval, defaultLiveness) }

func (p *PeerConfig) keepalive() time.Duration {
	return orDefault(p.KeepaliveInterval, defaultKeepalive)
}

func (p *PeerConfig) retransmit() Retransmit {
	r := p.Retransmit
	if r.Initial <= 0 {
		r.Initial = defaultRetransmitInitial
	}
	if r.Factor < 1 {
		r.Factor = defaultRetransmitFactor
	}
	if r.Tries <= 0 {
		r.Tries = defaultRetransmitTries
	}
	return r
}
