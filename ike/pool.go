package ike

import (
	"container/list"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// Pool is an AddressPool in memory. It gives each peer the address that the peer had before as long as
// it can: addresses that never were in use come first, then those that were given back longest ago.
type Pool struct {
	mu       sync.Mutex
	networks []netip.Prefix
	next     []netip.Addr // of each network: the first one that never was in use; the zero Addr: none
	reserved map[netip.Addr]bool
	byAddr   map[netip.Addr]*poolEntry
	byHolder map[leaseKey]*poolEntry
	idle     *list.List // entries that nobody uses, the one given back longest ago in front
}

type poolEntry struct {
	addr netip.Addr
	key  leaseKey
	idle *list.Element // nil: in use
}

// maxIdle bounds the addresses that are kept for peers that are not here.
const maxIdle = 1 << 16

// NewPool returns a pool of the addresses of some networks, without the first and the last one of an
// IPv4 network and the first one of an IPv6 network, where these are larger than two addresses, and
// without reserved. Networks must not overlap.
func NewPool(networks []netip.Prefix, reserved ...netip.Addr) (*Pool, error) {
	p := &Pool{
		reserved: map[netip.Addr]bool{}, byAddr: map[netip.Addr]*poolEntry{},
		byHolder: map[leaseKey]*poolEntry{}, idle: list.New(),
	}
	for i, n := range networks {
		if !n.IsValid() || n.Addr().Is4In6() {
			return nil, fmt.Errorf("ike: address pool: network %d is none: %v", i+1, n)
		}
		n = n.Masked()
		if j := slices.IndexFunc(p.networks, n.Overlaps); j >= 0 {
			return nil, fmt.Errorf("ike: address pool: %v and %v overlap", p.networks[j], n)
		}
		p.networks = append(p.networks, n)
		first := n.Addr()
		if n.Bits() < first.BitLen()-1 {
			p.reserved[first] = true
			if first.Is4() {
				p.reserved[lastAddr(n)] = true
			}
		}
		p.next = append(p.next, first)
	}
	if len(p.networks) == 0 {
		return nil, errors.New("ike: address pool: no network; expected one at least")
	}
	for _, a := range reserved {
		p.reserved[a.Unmap()] = true
	}
	return p, nil
}

// Lease implements AddressPool.
func (p *Pool) Lease(q LeaseQuery) (netip.Prefix, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(q.IDs) == 0 {
		return netip.Prefix{}, false
	}
	k := leaseKey{q.Peer, contactOf(q.IDs[:len(q.IDs)-1], q.IDs[len(q.IDs)-1]), q.IPv6}
	e := p.byHolder[k]
	if e == nil {
		e = p.find(k, q)
	}
	if e == nil {
		return netip.Prefix{}, false
	}
	if e.idle != nil {
		p.idle.Remove(e.idle)
		e.idle = nil
	}
	return netip.PrefixFrom(e.addr, e.addr.BitLen()), true
}

// find gives a peer an address that it has not had: the one that it wants, a new one, another's of long
// ago.
func (p *Pool) find(k leaseKey, q LeaseQuery) *poolEntry {
	if a := p.near(q.Want); a.IsValid() && a.Is6() == q.IPv6 && p.holds(a) {
		if e := p.byAddr[a]; e == nil {
			return p.take(a, k)
		} else if e.idle != nil {
			return p.move(e, k)
		}
	}
	for i, n := range p.networks {
		if n.Addr().Is6() != q.IPv6 {
			continue
		}
		for a := p.next[i]; a.IsValid() && n.Contains(a); a = p.next[i] {
			if p.next[i] = a.Next(); !p.reserved[a] && p.byAddr[a] == nil {
				return p.take(a, k)
			}
		}
		p.next[i] = netip.Addr{}
	}
	for l := p.idle.Front(); l != nil; l = l.Next() {
		if e := l.Value.(*poolEntry); e.key.v6 == q.IPv6 { //nolint:forcetypeassert // the list holds nothing else
			return p.move(e, k)
		}
	}
	return nil
}

// near returns an address that is wanted, for IPv6 in one of our networks: there the interface
// identifier counts (RFC 7296, section 3.15.3).
func (p *Pool) near(a netip.Addr) netip.Addr {
	if !a.Is6() || p.holds(a) {
		return a
	}
	for _, n := range p.networks {
		if n.Addr().Is6() && n.Bits() <= 64 {
			b, id := n.Addr().As16(), a.As16()
			copy(b[8:], id[8:])
			return netip.AddrFrom16(b)
		}
	}
	return a
}

func (p *Pool) holds(a netip.Addr) bool {
	return !p.reserved[a] && slices.ContainsFunc(p.networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

func (p *Pool) take(a netip.Addr, k leaseKey) *poolEntry {
	e := &poolEntry{addr: a, key: k}
	p.byAddr[a], p.byHolder[k] = e, e
	return e
}

// move gives an idle address to another peer.
func (p *Pool) move(e *poolEntry, k leaseKey) *poolEntry {
	delete(p.byHolder, e.key)
	e.key = k
	p.byHolder[k] = e
	return e
}

// Release implements AddressPool.
func (p *Pool) Release(_ LeaseQuery, a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.byAddr[a]
	if e == nil || e.idle != nil {
		return
	}
	e.idle = p.idle.PushBack(e)
	if p.idle.Len() > maxIdle {
		// Room for others; where all of a network were in use once, it is counted from the beginning.
		old := p.idle.Remove(p.idle.Front()).(*poolEntry) //nolint:forcetypeassert // the list holds nothing else
		delete(p.byHolder, old.key)
		delete(p.byAddr, old.addr)
		for i, n := range p.networks {
			if n.Contains(old.addr) && (!p.next[i].IsValid() || old.addr.Less(p.next[i])) {
				p.next[i] = old.addr
			}
		}
	}
}
