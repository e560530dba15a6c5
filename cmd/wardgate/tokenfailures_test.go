package main

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"wardgate/pkichip"
)

func TestTokenFailures(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, k := range tokenKinds {
		if seen[k.code] {
			t.Errorf("code %s twice", k.code)
		}
		seen[k.code] = true
		c := &cli{err: &bytes.Buffer{}}
		e, exit := c.explainFailure(fmt.Errorf("importing: %w", k.err))
		if e.Code != k.code || exit != exitOf(k.kind) || exit != exitToken && exit != exitRefused || e.Hint == "" {
			t.Errorf("%v: %+v, exit %d", k.err, e, exit)
		}
	}
	var b bytes.Buffer
	c := &cli{err: &b}
	if exit := c.report(fmt.Errorf("x: %w", &pkichip.Error{Text: "Wrong PIN, 2 tries left", Do: "correct the PIN file"})); exit != exitToken {
		t.Errorf("exit %d", exit)
	}
	if got, want := b.String(), "wardgate: wrong PIN, 2 tries left (token-error)\nhint: correct the PIN file\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if e := tokenFailure(errors.New("something else")); e != nil {
		t.Errorf("a failure of the token: %v", e)
	}
}
