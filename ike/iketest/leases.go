package iketest

import (
	"fmt"
	"net/netip"
	"slices"

	"wardgate/ike"
)

// The configuration payload (RFC 7296, section 2.19): of two nodes the one that comes first asks the
// other one for addresses for the CHILD SA "net", which that one has a few of.

// addresses is the pool of a node, with a book of what it gave out.
type addresses struct {
	*ike.Pool
	n    *simNode
	held map[netip.Addr]string
}

func (r *run) newPool(n *simNode) *addresses {
	net := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 250, byte(n.i), 0}), 29)}
	if r.plan.Seed%3 == 0 {
		net[0] = netip.PrefixFrom(net[0].Addr(), 31) // too few, sometimes
	}
	p, err := ike.NewPool(net)
	if err != nil {
		panic(err) // the network is always the same
	}
	return &addresses{p, n, map[netip.Addr]string{}}
}

// Lease implements ike.AddressPool.
func (a *addresses) Lease(q ike.LeaseQuery) (netip.Prefix, bool) {
	p, ok := a.Pool.Lease(q)
	if ok {
		holder := fmt.Sprint(q.Peer, q.IDs)
		if old, held := a.held[p.Addr()]; held {
			a.n.run.violate("%s gives %v to %s, and %s has it", a.n.Name, p.Addr(), holder, old)
		}
		a.held[p.Addr()] = holder
	}
	return p, ok
}

// Release implements ike.AddressPool.
func (a *addresses) Release(q ike.LeaseQuery, addr netip.Addr) {
	if a.held[addr] != fmt.Sprint(q.Peer, q.IDs) {
		a.n.run.violate("%s takes %v back from %v, who does not have it", a.n.Name, addr, q.IDs)
	}
	delete(a.held, addr)
	a.Pool.Release(q, addr)
}

// assigns has the connection of n with node j assign an address, or ask for one.
func (r *run) assigns(c *ike.PeerConfig, n *simNode, j int) {
	inside := ike.PrefixSelector(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 250, 0, 0}), 16))
	child := &c.Children[0]
	if r.plan.role(n.i) < j {
		c.Request = &ike.ConfigRequest{IPv4: ike.Wanted, DNS: true}
		if r.plan.Seed%5 == 0 {
			c.Request.IPv4 = ike.Required
		}
		child.LocalAssigned, child.LocalTS = true, []ike.Selector{inside}
		return
	}
	c.Remote = nil // who is assigned an address initiates
	c.Assign = &ike.Assign{IPv4: true, DNS: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, 53})}}
	child.RemoteAssigned, child.RemoteTS = true, []ike.Selector{inside}
}

// checkLeases expects of a node that no two peers have one address, and that what an end sends and
// takes in a CHILD SA is the address that was assigned.
func (r *run) checkLeases(n *simNode) {
	if !r.plan.Config {
		return
	}
	has := map[netip.Addr]string{}
	for _, id := range sortedKeys(n.IKE) {
		i := n.IKE[id]
		if i.Assigned == nil || r.asks(n, i.Peer) {
			continue
		}
		for _, p := range i.Assigned.Addrs {
			holder := fmt.Sprint(i.Peer, i.RemoteIDs)
			if old, taken := has[p.Addr()]; taken && old != holder {
				r.violate("%s has assigned %v to %s and to %s", n.Name, p.Addr(), old, holder)
			}
			has[p.Addr()] = holder
			if n.pool != nil && n.pool.held[p.Addr()] == "" {
				r.violate("%s has given %v back, and IKE SA %d still has it", n.Name, p.Addr(), id)
			}
		}
	}
	for _, c := range n.sorted() {
		i, up := n.IKE[c.SA]
		if !up || c.ChildSA.Child != "net" {
			continue
		}
		ts := c.RemoteTS
		if r.asks(n, c.Peer) {
			ts = c.LocalTS
		}
		for _, s := range ts {
			if i.Assigned == nil || s.Start != s.End || !slices.ContainsFunc(i.Assigned.Addrs, func(p netip.Prefix) bool { return p.Addr() == s.Start }) {
				r.violate("%s has CHILD SA %d for %v, which was not assigned in IKE SA %d: %v", n.Name, c.ID, ts, c.SA, i.Assigned)
			}
		}
	}
}

// asks tells whether a node is the end of a connection that asks for addresses.
func (r *run) asks(n *simNode, peer string) bool {
	return slices.ContainsFunc(n.conns, func(c *ike.PeerConfig) bool { return c.Name == peer && c.Request != nil })
}

// unlike says in what the ends of an IKE SA do not agree about the assigned addresses.
func (r *run) unlike(n, o *simNode, s, t *ike.SAStatus) string {
	addrs := func(s *ike.SAStatus) []netip.Prefix {
		if s.Assigned == nil {
			return nil // as good as an empty answer: the pool had none left
		}
		return s.Assigned.Addrs
	}
	if r.plan.Config && !slices.Equal(addrs(s), addrs(t)) {
		return fmt.Sprintf("%s knows of %v in IKE SA %d, %s of %v", n.Name, s.Assigned, s.ID, o.Name, t.Assigned)
	}
	return ""
}
