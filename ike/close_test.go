package ike_test

import (
	"testing"
	"time"

	"wardgate/ike/iketest"
)

// TestDeadPeerDuringRekey: the peer dies before it has the answer to its rekey. The owner is told
// that both CHILD SAs are down, and neither that one took the other's place nor that it is to send
// on the new one (found by the simulator, seed 17).
func TestDeadPeerDuringRekey(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk})
	p.up()
	if err := p.b.Endpoint.RekeyChild(childOf(t, p.b).ID); err != nil {
		t.Fatal(err)
	}
	if !p.w.Until(time.Second, func() bool { return len(p.a.Children) == 2 }) {
		t.Fatal("A made no new CHILD SA")
	}
	var newest *iketest.Child
	for _, c := range p.a.Children {
		if c.Replaces != 0 {
			newest = c
		}
	}
	p.w.Link.Cut = true
	p.w.For(3 * time.Minute)
	p.empty()
	if newest.Switched {
		t.Error("A was told to send on the new CHILD SA of a dead peer")
	}
	for _, n := range []*iketest.Node{p.a, p.b} {
		for _, r := range n.Gone {
			if r.Rekeyed {
				t.Errorf("%s: %+v", n.Name, r)
			}
		}
	}
}
