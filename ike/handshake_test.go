package ike_test

import (
	"testing"
	"time"

	"wardgate/ike"
)

func TestDoubleAuthentication(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	p.counts(1, 1)
	for _, i := range p.b.IKE {
		if len(i.RemoteIDs) != 2 || !i.RemoteIDs[0].Equal(fqdn("a.devices.example")) || !i.RemoteIDs[1].Equal(fqdn("a.group-a.example")) {
			t.Errorf("B knows its peer as %v", i.RemoteIDs)
		}
		if i.Suite != defaultIKE {
			t.Errorf("suite %s, want %s", i.Suite, defaultIKE)
		}
	}
	p.a.Endpoint.Terminate("a-b", "test")
	p.w.For(time.Second)
	p.empty()
	if got := p.b.Ended[0].Code; got != ike.ReasonDeletedByPeer {
		t.Errorf("B's reason is %q", got)
	}
}
