package router

import (
	"context"
	"errors"
	"fmt"
	"time"

	"wardgate/audit"
	"wardgate/router/centre"
	"wardgate/router/config"
	"wardgate/router/control"
)

// maxJoinWait is the longest that somebody who joins waits for the first connection.
const maxJoinWait = 5 * time.Minute

// tryAgain is the pause between attempts to bring the first connection up while somebody waits.
const tryAgain = time.Second

// Join implements control.Backend.
func (r *Router) Join(ctx context.Context, req control.JoinRequest, step func(control.JoinStep)) error {
	l := r.centre
	if l == nil {
		return &control.Error{
			Kind: control.KindUnavailable, Code: "no-centre", Title: "This router is configured without a centre",
			Detail: "expected [sp] anchors in the configuration, came none",
			Hint:   "put the CA certificate that the service provider gave you for its centre into [sp] anchors, and restart wardgated",
		}
	}
	var wait time.Duration
	if req.Wait != "" {
		var err error
		if wait, err = time.ParseDuration(req.Wait); err != nil || wait < 0 || wait > maxJoinWait {
			return &control.Error{Kind: control.KindInvalid, Code: "wait", Title: "Wrong time to wait", Detail: fmt.Sprintf("expected a duration of 0s to %v such as 30s, came %.40q", maxJoinWait, req.Wait)}
		}
	}
	url, err := l.joinURL(req.URL)
	if err != nil {
		return err
	}
	r.record(audit.Record{Event: audit.EventOperator, Who: operator(ctx), What: "join " + url, Result: audit.ResultInfo})
	if err := l.join(ctx, url, step); err != nil {
		return err
	}
	r.firstConnection(ctx, wait, step)
	return nil
}

// joinURL is the centre that is meant.
func (l *centreLink) joinURL(asked string) (string, error) {
	invalid := func(detail, hint string) error {
		return &control.Error{Kind: control.KindInvalid, Code: "centre-url", Title: "That is not the centre's address", Detail: detail, Hint: hint}
	}
	configured := l.r.cfg.SP.URL
	l.mu.Lock()
	last := l.url
	l.mu.Unlock()
	switch {
	case asked == "" && last == "":
		return "", invalid("expected https://HOST or https://HOST:PORT, came nothing", "give the address that the service provider names: wardgate join URL")
	case asked == "":
		return last, nil
	case configured != "" && asked != configured:
		return "", invalid(fmt.Sprintf("the configuration names %s in [sp] url, came %.80q", configured, asked), "join without an address, or change the configuration")
	}
	if err := config.CheckURL(asked); err != nil {
		return "", invalid(err.Error(), "give the address that the service provider names")
	}
	return asked, nil
}

// join does it, with the agent stopped.
func (l *centreLink) join(ctx context.Context, url string, step func(control.JoinStep)) error {
	l.joinMu.Lock()
	defer l.joinMu.Unlock()
	l.pause()
	defer l.resume()
	agent, err := l.use(url)
	if err != nil {
		return centreError(err)
	}
	defer l.onKey(func(service string) {
		step(control.JoinStep{Name: control.StepServiceKey, Service: service, Text: "made on the token"})
	})()
	err = agent.Join(ctx, func(s centre.Step) {
		x := control.JoinStep{Name: string(s.Name), Service: s.Service, Text: s.Text}
		if s.Err != nil {
			x.Error = centreError(s.Err)
		}
		if s.Name == centre.StepReach && s.Err == nil && l.r.cfg.SP.URL == "" {
			// It is the centre, for the anchors know it: from now on also after a restart.
			if err := writeFile(l.urlFile(), []byte(url+"\n"), 0o600); err != nil {
				x.Error = &control.Error{Kind: control.KindInternal, Code: "state-dir", Title: "The centre's address cannot be written down", Detail: err.Error(), Hint: "make the state directory writable"}
			}
		}
		step(x)
	})
	if err != nil {
		e := centreError(err)
		if ctx.Err() != nil {
			e = &control.Error{Kind: control.KindTimeout, Code: "join-broken-off", Title: "Joining was broken off", Detail: ctx.Err().Error(), Hint: "it goes on by itself, and can be repeated at any time"}
		}
		return e
	}
	return nil
}

// onKey has f told of new keys until the function that it returns is called.
func (l *centreLink) onKey(f func(service string)) (stop func()) {
	l.keyTold.Store(&f)
	return func() { l.keyTold.Store(nil) }
}

// firstConnection tries to bring up any connection of the policy. That none comes up is told and no
// failure of joining: the partner may not have joined yet.
func (r *Router) firstConnection(ctx context.Context, wait time.Duration, step func(control.JoinStep)) {
	conns := r.connections()
	switch {
	case len(conns) == 0:
		step(control.JoinStep{Name: control.StepConnection, Text: "the policy names no partner yet"})
		return
	case wait == 0:
		return
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	const atOnce = 8
	type result struct {
		up  *control.Connection
		err error
	}
	results := make(chan result, atOnce)
	n := min(len(conns), atOnce)
	for _, c := range conns[:n] {
		go func() {
			var last error
			for {
				x, err := r.Up(ctx, c.name)
				if err == nil && x.State == control.ConnUp {
					results <- result{up: x}
					return
				}
				if err != nil {
					last = err
				}
				select {
				case <-ctx.Done():
					if last == nil {
						last = &control.Error{Kind: control.KindTimeout, Code: "not-up-yet", Title: "No connection is up yet", Detail: fmt.Sprintf("%s did not come up within %v", c.name, wait)}
					}
					results <- result{err: last}
					return
				case <-time.After(tryAgain):
				}
			}
		}()
	}
	var last error
	for range n {
		res := <-results
		if res.up != nil {
			step(control.JoinStep{Name: control.StepConnection, Text: fmt.Sprintf("%s is up, with %s", res.up.Name, joinOr(res.up.RemoteIDs, res.up.Peer))})
			return
		}
		last = res.err
	}
	e, ok := errors.AsType[*control.Error](last)
	if !ok {
		e = &control.Error{Kind: control.KindUnavailable, Code: "not-up", Title: "No connection is up yet", Detail: last.Error()}
	}
	e.Hint = "the partner may not have joined yet; connections come up by themselves when they are needed. See: wardgate status"
	step(control.JoinStep{Name: control.StepConnection, Error: e})
}
