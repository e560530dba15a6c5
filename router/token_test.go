package router

import (
	"fmt"
	"testing"

	"wardgate/pkichip"
	"wardgate/router/control"
)

// TestTokenTroubles: each kind of trouble has a code, a title and a state of its own for the operator.
func TestTokenTroubles(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range []struct {
		err         error
		code, state string
	}{
		{pkichip.ErrTokenRemoved, "token-removed", control.TokenRemoved},
		{pkichip.ErrPINWrong, "token-failed", control.TokenFailed}, // always comes with ErrPIN
		{pkichip.ErrPIN, "pin-refused", control.TokenPINRefused},
		{pkichip.ErrPINNotRetried, "pin-not-retried", control.TokenPINRefused},
		{pkichip.ErrPINLastTry, "pin-last-try", control.TokenPINRefused},
		{pkichip.ErrPINLocked, "pin-locked", control.TokenPINRefused},
		{pkichip.ErrPINSource, "pin-source", control.TokenPINRefused},
		{pkichip.ErrChipRestarting, "token-starting", control.TokenStarting},
		{pkichip.ErrChipHung, "chip-hung", control.TokenStarting},
		{pkichip.ErrModule, "token-failed", control.TokenFailed},
	} {
		state, e := tokenTrouble(fmt.Errorf("outer: %w", c.err))
		if state != c.state || e.Code != c.code || e.Kind != control.KindToken || e.Title == "" || e.Hint == "" {
			t.Errorf("%v: %s, %+v", c.err, state, e)
		}
		if c.code != "token-failed" && seen[e.Title] {
			t.Errorf("%v: the title %q is another one's", c.err, e.Title)
		}
		seen[e.Title] = true
	}
}
