package router

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"

	"wardgate/audit"
	"wardgate/ike"
	"wardgate/router/addresswatch"
)

// The machine's outer addresses change (another lease, another line), and so do the partners'. IKE moves
// its SAs (RFC 4555), and what is here takes the data path along.

// watchAddresses tells IKE of every change of our addresses until ctx ends.
func (r *Router) watchAddresses(ctx context.Context) {
	if err := addresswatch.Watch(ctx, r.tellAddresses); err != nil && ctx.Err() == nil {
		r.log.Error("our addresses are no longer watched: tunnels do not follow when they change", zap.Error(err))
	}
}

// tellAddresses tells IKE where this machine can be reached from outside. Without a policy nothing is
// told: which interfaces belong to zones is not known then.
func (r *Router) tellAddresses() {
	r.addressesMu.Lock()
	defer r.addressesMu.Unlock()
	table := r.table()
	if table == nil {
		return
	}
	q := addresswatch.Query{NotOn: []string{r.tunName}, Only: r.cfg.Network.Listen, Mark: r.mark()}
	for _, z := range table.Kernel().Zones {
		q.NotOn = append(q.NotOn, z.Interfaces...)
	}
	seen := make(map[netip.Addr]bool)
	towards := func(a netip.Addr) {
		if a.IsValid() && !seen[a] {
			seen[a] = true
			q.Towards = append(q.Towards, a)
		}
	}
	for _, c := range r.connections() { // who is connected first: see addresswatch.Query
		c.mu.Lock()
		if len(c.children) > 0 {
			q.InUse = append(q.InUse, c.path.Local.Addr())
			towards(c.path.Remote.Addr())
		}
		c.mu.Unlock()
	}
	for _, c := range r.connections() {
		for _, g := range c.spec.Load().gateways {
			towards(g.Addr())
		}
	}
	addrs, err := addresswatch.Outer(q)
	if err != nil {
		r.log.Warn("our addresses cannot be found", zap.Error(err))
		return
	}
	if !slices.Equal(addrs, r.addresses) {
		r.addresses = addrs
		r.log.Info("addresses to the outer network", zap.Stringers("addresses", addrs))
	}
	r.ep.AddressChanged(addrs)
}

// sourceAddr is ike.Config.SourceAddr: what IKE has to put into its NAT detection, and what answers
// come back to.
func (r *Router) sourceAddr(remote netip.Addr) netip.Addr {
	return addresswatch.Source(remote, r.mark())
}

// PathChanged moves the CHILD SAs of an IKE SA to a new path.
func (o owner) PathChanged(id ike.SAID, p ike.Path) {
	r := o.r
	r.streams.use(id, p.Stream)
	path, err := r.sendPath(p)
	if err != nil {
		r.log.Warn("cannot follow the peer to its new path", zap.Stringer("path", p), zap.Error(err))
		return
	}
	moved := make(map[*connection]bool)
	r.children.Range(func(_, v any) bool {
		if child := v.(*childSA); child.sa == id { //nolint:errcheck,forcetypeassert // the map holds nothing else
			child.path.Store(path)
			moved[child.conn] = true
		}
		return true
	})
	for c := range moved {
		c.mu.Lock()
		if c.ike != id || c.path == p {
			c.mu.Unlock()
			continue
		}
		from, ids := c.path, strings.Join(c.remoteIDs, " + ")
		c.path = p
		c.mu.Unlock()
		r.log.Info("path changed", zap.String("connection", c.name), zap.Stringer("path", p), zap.Stringer("was", from))
		r.record(audit.Record{
			Event: audit.EventConnectionMoved, Who: ids, What: c.name, Where: p.Remote.String(), Result: audit.ResultInfo,
			Detail: map[string]string{"path": p.String(), "before": from.String()},
		})
	}
}
