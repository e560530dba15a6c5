package router

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"

	"wardgate/audit"
	"wardgate/router/control"
)

// Redirect implements control.Backend. It sends only to addresses of this machine that the outer network
// reaches and that IKE was told of: a partner follows only to those that its own policy names.
func (r *Router) Redirect(ctx context.Context, req control.RedirectRequest) (*control.RedirectReport, error) {
	r.addressesMu.Lock()
	ours := slices.Clone(r.addresses)
	r.addressesMu.Unlock()
	if !slices.Contains(ours, req.To) {
		return nil, &control.Error{
			Kind: control.KindRefused, Code: "not-our-address", Title: fmt.Sprintf("%v is not an address at which partners reach this router", req.To),
			Detail: fmt.Sprintf("expected one of %v", ours), Hint: "bring up the other line first, and let the daemon listen there ([network] listen)",
		}
	}
	names := req.Connections
	if len(names) == 0 {
		for _, c := range r.connections() {
			names = append(names, c.name)
		}
	}
	for _, name := range names {
		if r.connection(name) == nil {
			return nil, noConnection(name)
		}
	}
	r.record(audit.Record{Event: audit.EventOperator, Who: operator(ctx), What: fmt.Sprintf("redirect to %v: %s", req.To, joinOr(req.Connections, "all")), Result: audit.ResultInfo})
	rep := &control.RedirectReport{To: req.To, Connections: []control.Redirected{}}
	for _, name := range names {
		x := control.Redirected{Name: name}
		switch x.Why = r.staysHere(name, req); {
		case x.Why != "":
		default:
			n, err := r.ep.Redirect(name, req.To)
			switch {
			case err != nil:
				x.Why = strings.TrimPrefix(err.Error(), "ike: ")
			case n == 0:
				x.Why = "the partner did not say that it can be sent elsewhere (RFC 5685): its policy names one address of ours only, perhaps"
			default:
				x.Told = true
				r.log.Info("partner redirected", zap.String("connection", name), zap.Stringer("to", req.To))
			}
		}
		rep.Connections = append(rep.Connections, x)
	}
	return rep, nil
}

// staysHere says why a connection's partner is not redirected; empty: it can be.
func (r *Router) staysHere(name string, req control.RedirectRequest) string {
	c := r.connection(name)
	if c == nil {
		return "the policy does not name it any more"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case len(c.children) == 0:
		return "it is not up"
	case c.path.Local.Addr() == req.To:
		return "it is there already"
	case c.opened:
		return "we opened it, not the partner"
	}
	return ""
}
