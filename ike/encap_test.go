package ike_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
)

// TestEncap: both ends always agree whether ESP goes in UDP: when one of them claims a NAT, when
// there is one, or when the initiator does not know its address. Else it is protocol 50, also
// where IKE runs over port 4500. Rekeys change nothing.
func TestEncap(t *testing.T) {
	t.Parallel()
	outside := netip.MustParseAddr("203.0.113.9")
	claims := map[string][2]bool{"nobody claims": {}, "A claims": {true, false}, "B claims": {false, true}, "both claim": {true, true}}
	nats := map[string]netip.Addr{"no NAT": {}, "NAT of A": addrA, "NAT of B": addrB}
	sources := map[string]netip.Addr{"address known": addrA, "address unknown": {}, "address wrong": addrC}
	for claim, c := range claims {
		for nat, behind := range nats {
			for source, src := range sources {
				for _, port := range []uint16{500, 4500} {
					t.Run(fmt.Sprintf("%s, %s, %s, port %d", claim, nat, source, port), func(t *testing.T) {
						t.Parallel()
						p := newPair(t, pairOptions{ea: func(c *ike.Config) {
							c.SourceAddr = func(netip.Addr) netip.Addr { return src }
						}, edit: func(p *pair) {
							psk(p.ca)
							psk(p.cb)
							p.ca.ForceEncap, p.cb.ForceEncap = c[0], c[1]
							remote := addrB
							if behind == addrB {
								remote = outside
							}
							p.ca.Remote = []netip.AddrPort{netip.AddrPortFrom(remote, port)}
						}})
						if behind.IsValid() {
							n := &iketest.NAT{Inside: behind, Outside: outside}
							if behind == addrA {
								n.Shift = 1000
							}
							p.w.AddNAT(n)
						}
						want := c[0] || c[1] || behind.IsValid() || src != addrA
						p.up()
						truth := func() {
							t.Helper()
							for _, n := range []*iketest.Node{p.a, p.b} {
								for _, i := range n.IKE {
									if i.Path.Encap != want {
										t.Errorf("%s: the IKE SA says %v, want encapsulation %v", n.Name, i.Path, want)
									}
								}
								for _, x := range n.Children {
									if x.Path.Encap != want || want && x.Path.Local.Port() != 4500 {
										t.Errorf("%s: CHILD SA %d uses %v, want encapsulation %v", n.Name, x.ID, x.Path, want)
									}
									if x.Path.Local.Addr() != n.Addr {
										t.Errorf("%s: CHILD SA %d leaves from %v, want %v", n.Name, x.ID, x.Path.Local, n.Addr)
									}
								}
								if len(n.Paths) > 0 {
									t.Errorf("%s was told of the paths %v", n.Name, n.Paths)
								}
							}
						}
						truth()
						p.rekeyChild(p.b)
						p.rekeyIKE(p.b)
						p.rekeyChild(p.a)
						truth()
					})
				}
			}
		}
	}
}

// TestEncapFollowsNAT: when the NAT gives another address, the new path is encapsulated as well,
// and a message that comes to port 500 instead does not change that.
func TestEncapFollowsNAT(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk})
	nat := &iketest.NAT{Inside: addrA, Outside: netip.MustParseAddr("203.0.113.9"), Shift: 1000}
	p.w.AddNAT(nat)
	p.up()
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if from.Addr() == nat.Outside && msg[19]&0x20 == 0 {
			p.w.Deliver(netip.AddrPortFrom(nat.Outside, 1500), netip.AddrPortFrom(addrB, 500), msg)
			return false
		}
		return true
	}
	_ = p.a.Endpoint.RekeyChild(childOf(t, p.a).ID)
	p.w.For(time.Second)
	if len(p.b.Paths) > 0 {
		t.Fatalf("B followed to port 500: %v", p.b.Paths)
	}
	p.w.Tap = nil
	nat.Outside, nat.Shift = netip.MustParseAddr("203.0.113.77"), 2000
	p.w.For(2 * time.Minute)
	if want := netip.MustParseAddrPort("203.0.113.77:6500"); len(p.b.Paths) != 1 || p.b.Paths[0].Remote != want || !p.b.Paths[0].Encap {
		t.Errorf("B was told of the paths %v, want %v in UDP", p.b.Paths, want)
	}
	p.rekeyEverything()
}
