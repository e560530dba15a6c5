package centre

import (
	"context"
	"time"
)

// State is how the agent stands with the centre.
type State struct {
	Heard   time.Time // the centre's last answer to a poll or a report, whatever it said; zero: none yet
	Renewal time.Time // when the next certificate is renewed; zero: there is none
}

// State returns how the agent stands with the centre. It asks the token.
func (a *Agent) State(ctx context.Context) (State, error) {
	var s State
	if at := a.client.heard.Load(); at != 0 {
		s.Heard = time.Unix(0, at)
	}
	keys, err := a.cfg.Token.Services(ctx)
	if err != nil {
		return s, tokenFailed("the list of keys and certificates", err)
	}
	for _, k := range keys {
		if k.Cert == nil || k.Signer == nil {
			continue
		}
		if at := renewAt(k.Cert); s.Renewal.IsZero() || at.Before(s.Renewal) {
			s.Renewal = at
		}
	}
	return s, nil
}
