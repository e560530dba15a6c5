package ike

import (
	"math"
	"net/netip"
	"slices"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// wish is the CHILD SA that a peer asks for.
type wish struct {
	local, remote []Selector // TSr and TSi
	offers        []suite.Offer
	opt           suite.SelectOptions
}

func newWish(tsi, tsr *message.TS, offers []suite.Offer, opt suite.SelectOptions) wish {
	return wish{local: fromWire(tsr), remote: fromWire(tsi), offers: offers, opt: opt}
}

// fit says how well a CHILD SA of ours is what a peer asks for. The zero value: not at all.
type fit struct {
	usable bool // a proposal in common too
	level  fitLevel
	size   volume // of what is left after narrowing; with fitWhole, of what our policy allows
}

// fitLevel orders fits (RFC 7296, section 2.9).
type fitLevel uint8

const (
	fitNone  fitLevel = iota // nothing in common
	fitPart                  // something is left after narrowing
	fitFirst                 // the first selectors, which may be the packet that all began with, among them: a MUST where possible
	fitWhole                 // nothing needs to be narrowed
)

// better tells whether f is to be preferred to o. Where nothing is narrowed, that is what is
// closest to the wish; otherwise, what leaves most of it. Of equals neither is better: the order
// of the policy decides.
func (f fit) better(o fit) bool {
	switch {
	case f.level == fitNone || o.level == fitNone:
		return f.level > o.level
	case f.usable != o.usable:
		return f.usable
	case f.level != o.level:
		return f.level > o.level
	case f.level == fitWhole:
		return f.size.less(o.size)
	default:
		return o.size.less(f.size)
	}
}

// of compares the wish with the selectors of a CHILD SA of the policy, at our end and at the peer's. usable is left to the caller.
func (w *wish) of(ours, theirs []Selector) (f fit, local, remote []Selector) {
	local, remote = pairUp(narrow(w.local, ours), narrow(w.remote, theirs))
	if len(local) == 0 || len(remote) == 0 {
		return fit{}, nil, nil
	}
	switch {
	case within(w.local, ours) && within(w.remote, theirs):
		return fit{level: fitWhole, size: volumeOf(ours, theirs)}, local, remote
	case within(w.local[:1], local) && within(w.remote[:1], remote):
		return fit{level: fitFirst, size: volumeOf(local, remote)}, local, remote
	default:
		return fit{level: fitPart, size: volumeOf(local, remote)}, local, remote
	}
}

// ofPeer is the best fit of the CHILD SAs of a connection. What it would refuse for the IKE suite
// that was agreed on, before anybody knew who the peer is, is not usable.
func (w *wish) ofPeer(p *PeerConfig, agreed suite.Chosen) fit {
	var best fit
	for i := range p.Children {
		f, _, _ := w.of(p.Children[i].LocalTS, p.Children[i].RemoteTS)
		if f.level == fitNone {
			continue
		}
		_, err := suite.Select(p.Children[i].Proposals, w.offers, w.opt)
		f.usable = err == nil && hasOffer(p.Proposals, agreed)
		if f.better(best) {
			best = f
		}
	}
	return best
}

// choose returns the connection that fits the wish best; of equals one that names the peer's address,
// then the first. The same identities may have several connections that differ in their selectors
// alone. What decides here must be no more than a wish: the peer has proved all that each
// connection of the list demands of it. nil: nothing in common with any.
func (w *wish) choose(list []*PeerConfig, agreed suite.Chosen, p Path) *PeerConfig {
	var best *PeerConfig
	var bestFit fit
	for _, c := range list {
		f := w.ofPeer(c, agreed)
		if f.better(bestFit) || best != nil && !bestFit.better(f) && c.names(p) && !best.names(p) {
			best, bestFit = c, f
		}
	}
	return best
}

// names tells whether the remote address of a path is a gateway of the connection.
func (p *PeerConfig) names(path Path) bool {
	return slices.ContainsFunc(p.Remote, func(a netip.AddrPort) bool { return a.Addr() == path.Remote.Addr() })
}

// volume is how much traffic selectors cover: IPv6, then IPv4, because the one would drown the
// other in a sum.
type volume [2]float64

func (v volume) less(o volume) bool { return slices.Compare(v[:], o[:]) < 0 }

func volumeOf(local, remote []Selector) volume {
	l, r := sideOf(local), sideOf(remote)
	return volume{l[0] * r[0], l[1] * r[1]}
}

func sideOf(ts []Selector) (v volume) {
	for _, s := range ts {
		size := span(s.Start, s.End)
		if s.Proto == 0 {
			size *= 256
		}
		if !opaque(s) {
			size *= float64(s.EndPort) - float64(s.StartPort) + 1
		}
		if s.Start.Is4() {
			v[1] += size
		} else {
			v[0] += size
		}
	}
	return v
}

// span is the number of addresses from a to b.
func span(a, b netip.Addr) float64 {
	x, y := a.As16(), b.As16()
	n := 0.0
	for i := range x {
		n = n*256 + float64(y[i]) - float64(x[i])
	}
	return math.Max(n+1, 1)
}
