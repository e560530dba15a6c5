package iketest

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"wardgate/ike"
)

// lingers is how long a node still gets what is sent to an address that it has left, where the plan
// lets it: longer than it takes to tell the peer.
const lingers = time.Minute

// roam gives a node other addresses. The lowest bits of o.N say which ones it has from now on, the next
// one whether those that it leaves go on working for a while, the next four which of the new ones are
// behind a NAT, and the rest which one it likes best.
func (r *run) roam(o Op, n *simNode) {
	v := uint64(o.N)
	mask, soft, behind, first := v%16, v>>4&1 == 1 || r.plan.Traffic, v>>5%16, int(v>>9)
	if r.plan.Traffic {
		behind = 0
		if mask&0b1011 == 0 {
			mask |= 1 // the other end may not have IPv6
		}
	}
	var next []netip.Addr
	for k := range maxAddrs {
		a := nodeAddr(n.i, k)
		was := slices.Contains(n.addrs, a)
		if mask>>k&1 == 0 {
			if was {
				r.leave(n, a, soft)
			}
			continue
		}
		if !was && a.Is4() {
			if delete(r.nats, a); behind>>k&1 == 1 {
				r.addNAT(n.i, k)
			}
		}
		next = append(next, a)
		r.here[a] = true
	}
	if len(next) > 1 {
		i := first % len(next)
		next = append(slices.Clone(next[i:]), next[:i]...)
	}
	n.addrs = next
	r.note("%s has %v, %d of them behind a NAT", n.Name, next, r.behindNAT(next))
	n.Move(next...)
}

func (r *run) behindNAT(list []netip.Addr) (count int) {
	for _, a := range list {
		if r.nats[a] != nil {
			count++
		}
	}
	return count
}

// leave takes an address from a node, now or soon.
func (r *run) leave(n *simNode, a netip.Addr, soft bool) {
	n.left++
	if !soft {
		r.here[a] = false
		return
	}
	now := n.left
	r.w.at(lingers, func() {
		if n.left == now || !slices.Contains(n.addrs, a) {
			r.here[a] = slices.Contains(n.addrs, a)
		}
	})
}

// SAPath is where an IKE SA of an endpoint is.
type SAPath struct {
	ID                ike.SAID
	Initiator, Mobike bool // of the IKE SA; both ends can move it
	IKE, Data         ike.Path
}

// where is what the simulator knows of the addresses of an IKE SA.
type where struct {
	ike, data netip.Addr // of the peer
	begun     netip.Addr
}

// checkPaths expects of the IKE SAs of a node to which something happened that they moved for a reason:
// because the peer said so under its keys, from there (RFC 4555, section 3.5); and of the data that it goes
// where the peer has just shown that it is (section 3.7).
func (r *run) checkPaths(n *simNode) {
	if !r.plan.mobile() {
		return
	}
	seen := map[ike.SAID]*where{}
	for _, s := range r.hooks.Paths(n.Endpoint) {
		if !s.Mobike {
			continue
		}
		w := n.where[s.ID]
		at, data := s.IKE.Remote.Addr(), s.Data.Remote.Addr()
		if w == nil {
			w = &where{at, data, at}
		}
		seen[s.ID] = w
		switch {
		case at == w.ike:
		case at == attacker && r.plan.Hostile():
			// Under the right keys a peer may claim to be anywhere.
		case n.told[at], s.Initiator && (at == w.begun || n.heard[at] || r.names(n, at)), !s.Initiator && n.moved[at]:
		case r.plan.Fragments && r.owner[at] != nil: // it may have been told in a fragment, which is not read here
		default:
			r.violate("%s moves IKE SA %d from %v to %v, and the peer did not say that it is there (RFC 4555, section 3.5)", n.Name, s.ID, w.ike, at)
		}
		if data != w.data && !r.oracle.routable(n, data) {
			r.violate("%s sends data of IKE SA %d to %v, where the peer has not shown that it gets it (RFC 4555, section 3.7)", n.Name, s.ID, data)
		}
		w.ike, w.data = at, data
	}
	n.where = seen
}

// names tells whether a connection of a node names an address.
func (r *run) names(n *simNode, a netip.Addr) bool {
	for _, c := range n.conns {
		if slices.ContainsFunc(c.Remote, func(p netip.AddrPort) bool { return p.Addr() == a }) {
			return true
		}
		if slices.ContainsFunc(c.RedirectTo, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
	}
	return false
}

// apart says in what the ends of an IKE SA do not agree about where they are.
func (r *run) apart(n, o *simNode, s, t *SAPath) string {
	if s == nil || t == nil || !s.Mobike && !t.Mobike {
		return ""
	}
	if s.Mobike != t.Mobike {
		return fmt.Sprintf("%s can move IKE SA %d, %s cannot", n.Name, s.ID, o.Name)
	}
	if !s.Initiator {
		n, o, s, t = o, n, t, s
	}
	if r.nats[t.IKE.Local.Addr()] != nil {
		return "" // RFC 4555 is about initiators behind a NAT
	}
	for _, x := range [][2]netip.AddrPort{{s.IKE.Local, t.IKE.Remote}, {t.IKE.Local, s.IKE.Remote}} {
		if r.seen(x[0]) != x[1] {
			return fmt.Sprintf("IKE SA %d of %s is at %v, of %s at %v", s.ID, n.Name, s.IKE, o.Name, t.IKE)
		}
		if r.way(x[0], x[1]) != "" {
			return fmt.Sprintf("IKE SA %d of %s is at %v: %s", s.ID, n.Name, s.IKE, r.way(x[0], x[1]))
		}
	}
	if s.Data.Remote != s.IKE.Remote || t.Data.Remote != t.IKE.Remote || s.Data.Local != s.IKE.Local || t.Data.Local != t.IKE.Local {
		return fmt.Sprintf("the data of IKE SA %d of %s is at %v and %v, IKE at %v and %v", s.ID, n.Name, s.Data, t.Data, s.IKE, t.IKE)
	}
	if behind := r.nats[s.IKE.Local.Addr()] != nil; s.Data.Encap != t.Data.Encap || behind && !s.Data.Encap {
		return fmt.Sprintf("%s encapsulates ESP of IKE SA %d: %v, %s: %v; behind a NAT: %v", n.Name, s.ID, s.Data.Encap, o.Name, t.Data.Encap, behind)
	}
	return ""
}

// odd tells whether the responder of an IKE SA is behind a NAT, where RFC 4555 does not say how the
// initiator finds it, or an end has moved without MOBIKE: as long as it goes on rekeying, the other one has
// no reason to give up.
func (r *run) odd() bool {
	for _, n := range r.nodes {
		if !r.plan.mobile() {
			break
		}
		for _, s := range r.hooks.Paths(n.Endpoint) {
			if s.Mobike && !s.Initiator && r.behindNAT(n.addrs) > 0 || !s.Mobike && r.way(s.IKE.Local, s.IKE.Remote) != "" {
				return true
			}
		}
	}
	return false
}

// pathOf finds the path of an IKE SA.
func (r *run) pathOf(n *simNode, id ike.SAID) *SAPath {
	if r.hooks.Paths == nil {
		return nil
	}
	all := r.hooks.Paths(n.Endpoint)
	if i := slices.IndexFunc(all, func(s SAPath) bool { return s.ID == id }); i >= 0 {
		return &all[i]
	}
	return nil
}

// comeBack gives a node that has no address one, when all is to become good.
func (r *run) comeBack() {
	clear(r.cutPath)
	for _, n := range r.nodes {
		if len(n.addrs) == 0 {
			r.roam(Op{Kind: OpAddrs, Node: n.i, N: 1}, n)
		}
	}
}
