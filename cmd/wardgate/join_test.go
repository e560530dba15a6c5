package main

import (
	"testing"

	"wardgate/router/control"
)

func TestJoin(t *testing.T) {
	t.Parallel()
	golden(t, "join", runWith(&fake{}, nil, false, "join", "https://sp.example:8443"))
	golden(t, "join-json", runWith(&fake{}, nil, false, "join", "--json"))
	f := &fake{}
	f.Err = &control.Error{Kind: control.KindUnavailable, Code: "centre-unreachable", Title: "The service provider's centre cannot be reached", Detail: "expected a connection to sp.example:8443, came: connection refused", Hint: "check network, address and firewall"}
	golden(t, "join-unreachable", runWith(f, nil, false, "join"))
	golden(t, "join-unreachable-json", runWith(f, nil, false, "join", "--json"))
	golden(t, "join-refused", runWith(f, nil, false, "join", "refused at once"))
	golden(t, "usage-join", runWith(f, nil, false, "join", "https://a", "https://b"))
	golden(t, "usage-join-wait", runWith(f, nil, false, "join", "--wait", "1h"))
	if calls := f.Calls(); len(calls) != 3 || calls[0] != "join  30s" {
		t.Errorf("asked: %q", calls)
	}
}
