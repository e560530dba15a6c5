package ike

import (
	"net/netip"
	"slices"
	"sync"
)

// leases is the addresses that peers of an endpoint have, and those that its own connections had
// last.
type leases struct {
	mu    sync.Mutex // held while the pool is asked
	held  map[leaseKey]*heldLease
	addrs map[netip.Addr]leaseKey
	given map[string]*NetConfig // connection → what we were assigned last
}

// leaseKey names a peer and a family.
type leaseKey struct {
	peer   string
	holder contact
	v6     bool
}

type heldLease struct {
	query LeaseQuery
	addr  netip.Prefix
	users map[SAID]bool // IKE SAs of the peer, each of which has the key in box.leased
}

// lease has the peer of an IKE SA keep its address, or finds one.
func (b *box) lease(q LeaseQuery) (netip.Prefix, bool) {
	l, pool := &b.ep.leases, b.ep.cfg.Addresses
	if pool == nil || len(q.IDs) == 0 {
		return netip.Prefix{}, false
	}
	k := leaseKey{q.Peer, contactOf(q.IDs[:len(q.IDs)-1], q.IDs[len(q.IDs)-1]), q.IPv6}
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.held[k]; h != nil {
		b.useLeaseLocked(k, h)
		return h.addr, true
	}
	p, ok := pool.Lease(q)
	if !ok {
		return p, false
	}
	a := p.Addr()
	if _, taken := l.addrs[a]; taken || usable(a) != nil || a.Is6() != q.IPv6 || !p.IsValid() {
		return netip.Prefix{}, false // a pool that errs must not give two peers one address
	}
	if l.held == nil {
		l.held, l.addrs = map[leaseKey]*heldLease{}, map[netip.Addr]leaseKey{}
	}
	h := &heldLease{query: q, addr: p, users: map[SAID]bool{}}
	l.held[k], l.addrs[a] = h, k
	b.useLeaseLocked(k, h)
	return p, true
}

func (b *box) useLeaseLocked(k leaseKey, h *heldLease) {
	if !h.users[b.id] {
		h.users[b.id] = true
		b.leased = append(b.leased, k)
	}
}

// release gives back the addresses of a peer whose last IKE SA this one was.
func (b *box) release() {
	l := &b.ep.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range b.leased {
		h := l.held[k]
		if delete(h.users, b.id); len(h.users) == 0 {
			delete(l.held, k)
			delete(l.addrs, h.addr.Addr())
			b.ep.cfg.Addresses.Release(h.query, h.addr.Addr())
		}
	}
	b.leased = nil
}

// given is what the peer of a connection assigned to us last; nil: nothing.
func (b *box) given(peer string) *NetConfig {
	l := &b.ep.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.given[peer]
}

// keepGiven remembers what was assigned, for the next time.
func (b *box) keepGiven(peer string, n *NetConfig) {
	l := &b.ep.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.given == nil {
		l.given = map[string]*NetConfig{}
	}
	if len(n.Addrs) > 0 && b.ep.peers.Load().byName[peer] != nil {
		l.given[peer] = &NetConfig{Addrs: slices.Clone(n.Addrs)}
	}
}

// forget drops what is known about connections that are gone.
func (l *leases) forget(names map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for peer := range l.given {
		if !names[peer] {
			delete(l.given, peer)
		}
	}
}
