package ike_test

import (
	"slices"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
)

// refusedAt initiates from A and expects node to refuse with code in round, and nothing to come
// up anywhere.
func (p *pair) refusedAt(node *iketest.Node, code ike.Code, round int) {
	p.t.Helper()
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		p.t.Fatal(err)
	}
	p.w.For(3 * time.Minute)
	p.sound()
	p.empty()
	p.t.Log(texts(node.Refusals))
	ok := slices.ContainsFunc(node.Refusals, func(r ike.Refusal) bool { return r.Code == code && r.Round == round && r.Text != "" })
	if !ok {
		p.t.Errorf("%s refused with %v, want %s in round %d", node.Name, texts(node.Refusals), code, round)
	}
	if len(p.a.Failed) != 1 {
		p.t.Errorf("InitiateFailed came %d times, want once: %v", len(p.a.Failed), p.a.Failed)
	}
}
