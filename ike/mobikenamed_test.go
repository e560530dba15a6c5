package ike_test

import (
	"net/netip"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
)

// TestMobikeNamed: with MoveNamed a peer moves to the addresses that its connection names. Anywhere else
// it proves itself anew, at once and by itself; either end may be the one that moves.
func TestMobikeNamed(t *testing.T) {
	t.Parallel()
	named := func(also ...netip.Addr) pairOptions {
		return pairOptions{edit: func(p *pair) {
			p.ca.MoveNamed, p.cb.MoveNamed = true, true
			for _, a := range also {
				c := p.ca
				if a == addrA2 {
					c = p.cb
				}
				c.Remote = append(c.Remote, netip.AddrPortFrom(a, 500))
			}
		}}
	}
	for _, c := range []struct {
		name  string
		named bool
		move  func(p *pair)
		a, b  netip.Addr
	}{
		{"the initiator, to a named address", true, func(p *pair) { p.a.Move(addrA2) }, addrA2, addrB},
		{"the initiator, elsewhere", false, func(p *pair) { p.a.Move(addrA2) }, addrA2, addrB},
		{"the initiator, to several elsewhere", false, func(p *pair) { p.a.Move(addrA2, addrC) }, addrC, addrB},
		{"the responder, to a named address", true, func(p *pair) { p.b.Move(addrB2) }, addrA, addrB2},
		{"the responder, elsewhere", false, func(p *pair) { p.b.Move(addrB2) }, addrA, addrB2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := named()
			if c.named {
				o = named(addrA2, addrB2)
			}
			p := newMobile(t, o)
			p.up()
			before, moved := ikeOf(t, p.a), p.w.Now()
			c.move(p)
			p.w.For(10 * time.Second)
			p.at(c.a, c.b)
			switch after := ikeOf(t, p.a); {
			case c.named && after.Authenticated != before.Authenticated:
				t.Errorf("proved anew at %v; want none, the connection names the address", after.Authenticated)
			case !c.named && after.Authenticated.Sub(moved) < 0:
				t.Error("no new proof: the IKE SA moved to an address that the connection does not name")
			case !c.named && after.Authenticated.Sub(moved) > 2*time.Second:
				t.Errorf("proved anew after %v; want at once", after.Authenticated.Sub(moved))
			}
		})
	}
}

// TestMobikeNamedAddresses: an initiator does not go to addresses that the peer tells of and its
// connection does not name, also when the path in use is dead.
func TestMobikeNamedAddresses(t *testing.T) {
	t.Parallel()
	p := newMobile(t, pairOptions{both: func(c *ike.PeerConfig) { c.MoveNamed = true }})
	p.b.Move(addrB, addrB2)
	p.up()
	elsewhere := 0
	p.w.Tap = func(_, to netip.AddrPort, _ []byte) bool {
		if to.Addr() == addrB2 {
			elsewhere++
		}
		return false
	}
	p.w.For(3 * time.Minute)
	if elsewhere > 0 {
		t.Errorf("%d messages went to %v, which the connection does not name", elsewhere, addrB2)
	}
}

// TestMobikeNamedNAT: a NAT that takes another port moves nobody.
func TestMobikeNamedNAT(t *testing.T) {
	t.Parallel()
	p := newMobile(t, pairOptions{both: func(c *ike.PeerConfig) { c.MoveNamed = true }, edit: func(p *pair) {
		p.cb.Remote = append(p.cb.Remote, netip.AddrPortFrom(addrC, 500))
	}})
	p.up()
	before := ikeOf(t, p.a)
	nat := &iketest.NAT{Inside: addrA2, Outside: addrC, Shift: 1000}
	p.w.AddNAT(nat)
	p.a.Move(addrA2)
	p.w.For(5 * time.Second)
	nat.Shift = 2000 // it was rebooted
	p.w.For(time.Minute)
	b := p.b.Endpoint.Snapshot()[0]
	if b.Path.Remote != netip.AddrPortFrom(addrC, 6500) || ikeOf(t, p.a).Authenticated != before.Authenticated {
		t.Errorf("B uses %v, A proved itself at %v and before at %v", b.Path, ikeOf(t, p.a).Authenticated, before.Authenticated)
	}
}

// TestMobikeLastWords: the address is gone when the IKE SA is deleted; the peer hears of it all the same.
func TestMobikeLastWords(t *testing.T) {
	t.Parallel()
	p := newMobile(t, pairOptions{})
	p.up()
	p.w.Tap = func(from, _ netip.AddrPort, _ []byte) bool { return from.Addr() != addrA }
	p.a.Endpoint.Terminate("a-b", "no more")
	p.w.For(100 * time.Millisecond)
	p.a.Move(addrA2)
	p.w.For(10 * time.Second)
	p.counts(0, 0)
}
