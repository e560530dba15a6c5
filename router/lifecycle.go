package router

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"wardgate/audit"
	"wardgate/ike"
	"wardgate/router/pathmtu"
)

// lifecycle looks after the connections and the policy once a second: it ends what is idle,
// starts what is always to be up, and takes an expired policy out of force.
func (r *Router) lifecycle(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	sweep := 0
	var warned uint64 // serial of the policy whose end has been told
	for {
		select {
		case <-ctx.Done():
			r.recordRefusals()
			return
		case rec := <-r.refused.out:
			r.recordRefusal(rec)
			continue
		case <-t.C:
		}
		now := time.Now()
		r.refused.refill()
		if sweep++; sweep%10 == 0 {
			r.tendPaths(now)
			r.tendTickets(now)
			r.dp.flows.sweep(r.dp.now() / int64(time.Second))
			r.recordRefusals()
		}
		r.mu.Lock()
		doc := r.doc
		r.mu.Unlock()
		switch {
		case doc == nil:
		case !now.Before(doc.NotAfter):
			r.expirePolicy()
		case doc.Serial != warned && r.policyEndsSoon(doc, now):
			warned = doc.Serial
			r.log.Warn("the policy expires soon, and all connections with it", zap.Uint64("serial", doc.Serial), zap.Time("not_after", doc.NotAfter))
			r.record(audit.Record{
				Event: audit.EventPolicyEndsSoon, What: fmt.Sprintf("serial %d of %s", doc.Serial, doc.Issuer), Result: audit.ResultInfo,
				Detail: map[string]string{"not_after": doc.NotAfter.UTC().Format(time.RFC3339)},
			})
		}
		for _, c := range r.connections() {
			r.tend(c, now)
		}
		r.beat.Store(r.dp.now())
	}
}

// connectingMax is far beyond the end of the longest attempt (retransmit in peers.go, several
// gateways and rounds).
const connectingMax = 5 * time.Minute

// tend does for one connection what the time asks for.
func (r *Router) tend(c *connection, now time.Time) {
	spec := c.spec.Load()
	switch spec.start {
	case startAlways:
		c.mu.Lock()
		due := c.state == connIdle || c.state == connWaiting && !now.Before(c.retryAt)
		if due {
			c.setState(connConnecting, now)
			c.wokenAt = now
		}
		c.mu.Unlock()
		if due {
			r.wake(c)
		}
	case startOnDemand, startManual:
		c.mu.Lock()
		idle := time.Duration(r.dp.now() - c.lastUse.Load())
		over := spec.idle > 0 && c.state == connUp && now.Sub(c.since) >= spec.idle && idle >= spec.idle
		if over {
			c.setState(connClosing, now)
			c.stopSending()
		}
		c.mu.Unlock()
		if over {
			r.log.Info("connection is idle", zap.String("connection", c.name), zap.Duration("for", idle))
			r.ep.Terminate(c.name, fmt.Sprintf("idle for %s", idle.Round(time.Second)))
		}
	}
	if c.busyQueues() > 1 {
		if err := r.ep.WantQueues(c.name, c.name, len(c.own)); err != nil {
			r.log.Debug("no CHILD SAs for single queues", zap.String("connection", c.name), zap.Error(err))
		}
	}
	c.mu.Lock()
	if stuck := c.state == connConnecting && now.Sub(c.wokenAt) > connectingMax; stuck {
		// IKE has an end to every attempt; should one get lost all the same, the next begins here
		c.wokenAt = now
		r.wake(c)
	}
	if c.state == connWaiting && !now.Before(c.retryAt) && spec.start != startAlways {
		c.setState(connIdle, now) // the next packet may try again
	}
	c.mu.Unlock()
}

// busyPackets is how many packets in a second make a queue worth a CHILD SA of its own.
const busyPackets = 1000

// busyQueues returns how many queues the connection keeps busy; to be asked once a second.
func (c *connection) busyQueues() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != connUp || len(c.own) < 2 {
		return 0
	}
	if c.busy == nil {
		c.busy = make([]uint64, len(c.traffic))
	}
	n := 0
	for i := range c.traffic {
		now := c.traffic[i].packetsOut.Load()
		if now-c.busy[i] > busyPackets {
			n++
		}
		c.busy[i] = now
	}
	return n
}

// tendPaths keeps what is known of the paths to the peers.
func (r *Router) tendPaths(now time.Time) {
	used := make(map[ends]*pathmtu.Path)
	r.children.Range(func(_, v any) bool {
		if p := v.(*childSA).path.Load(); p != nil { //nolint:errcheck,forcetypeassert // the map holds nothing else
			used[ends{p.local, p.remote.Addr()}] = p.mtu
		}
		return true
	})
	r.paths.tend(used, r.mark(), now)
}

// --- records ------------------------------------------------------------------------------

// openAudit opens the audit record. One whose end somebody has changed is set aside as evidence
// and a new one begun: tampering shows, loudly, but it does not take a hospital off the network
// (RES-2).
func openAudit(path string, log *zap.Logger) (*audit.Log, error) {
	l, err := audit.Open(path, audit.Options{Now: time.Now})
	if !errors.Is(err, audit.ErrBroken) {
		return l, err
	}
	aside := path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000000000Z")
	log.Error("the audit record was changed by somebody; it is set aside and a new one begins", zap.String("evidence", aside), zap.Error(err))
	if err := os.Rename(path, aside); err != nil {
		return nil, err
	}
	l, err2 := audit.Open(path, audit.Options{Now: time.Now})
	if err2 != nil {
		return nil, err2
	}
	if err := l.Append(audit.Record{
		Event: audit.EventLogDamaged, What: filepath.Base(path), Where: aside, Result: audit.ResultFailed,
		Detail: map[string]string{"error": err.Error(), "text": "the last record did not verify: somebody changed the file; it is kept as evidence"},
	}); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// record hands a record to the writer. It never blocks: when the disk cannot follow, the loss is
// itself recorded.
func (r *Router) record(rec audit.Record) {
	if rec.Time.IsZero() {
		rec.Time = time.Now()
	}
	rec.Clock, rec.ClockError = clockQuality()
	r.events.add(rec)
	select {
	case r.records <- rec:
	default:
		r.refused.missed.Add(1)
		r.log.Error("audit record cannot be written fast enough", zap.String("event", string(rec.Event)), zap.String("what", rec.What))
	}
}

func (r *Router) writeRecords() {
	for rec := range r.records {
		if err := r.audit.Append(rec); err != nil {
			r.log.Error("audit record cannot be written", zap.Error(err), zap.String("event", string(rec.Event)), zap.String("what", rec.What))
		}
	}
}

// recordRefusals writes the refused packets that were counted since the last time.
func (r *Router) recordRefusals() {
	recs, missed := r.refused.flush()
	for _, rec := range recs {
		r.recordRefusal(rec)
	}
	if missed > 0 {
		r.record(audit.Record{
			Event: audit.EventFlowRefused, What: "many packets", Result: audit.ResultRefused,
			Detail: map[string]string{"count": fmt.Sprint(missed), "reason": "beyond the limit of single records; the counters have them by reason"},
		})
	}
}

func (r *Router) recordRefusal(rec refusalRecord) {
	ev := audit.EventFlowRefused
	switch rec.reason {
	case "relay", "no-relay", "not-a-local-zone", "tunnel-to-non-zone", "source-not-in-a-local-zone":
		ev = audit.EventRelayRefused
	}
	d := map[string]string{"reason": rec.reason, "count": fmt.Sprint(rec.n), "by": rec.where}
	if rec.where == "tunnel" {
		d["direction"] = rec.dir.String()
	}
	if rec.n > 1 {
		d["first"], d["last"] = rec.first.UTC().Format(time.RFC3339Nano), rec.last.UTC().Format(time.RFC3339Nano)
	}
	if rec.conn != "" {
		d["connection"] = rec.conn
	}
	who := ""
	if rec.src.IsValid() {
		who = rec.src.String()
	}
	what := "malformed packet"
	if rec.dst.IsValid() {
		what = rec.target()
	}
	r.record(audit.Record{Event: ev, Who: who, What: what, Where: rec.conn, Result: audit.ResultRefused, Detail: d})
}

// ikeRefusal records what IKE refused.
func (r *Router) ikeRefusal(f ike.Refusal) {
	if !r.ikeRefused.note(&f, time.Now()) {
		return
	}
	ids := idStrings(f.IDs)
	r.log.Warn("refused", zap.String("code", string(f.Code)), zap.String("connection", f.Peer), zap.Stringer("remote", f.Remote),
		zap.Int("round", f.Round), zap.String("role", f.Role), zap.Strings("ids", ids), zap.String("text", f.Text), zap.Error(f.Err))
	d := map[string]string{"code": string(f.Code), "text": f.Text}
	if f.Err != nil {
		d["error"] = f.Err.Error()
	}
	if f.Role != "" {
		d["round"] = f.Role
	}
	for i, id := range ids {
		d[fmt.Sprintf("id_%d", i+1)] = id
	}
	r.record(audit.Record{Time: f.At, Event: audit.EventAuthRefused, Who: joinOr(ids, "unknown"), What: f.Peer, Where: f.Remote.String(), Result: audit.ResultRefused, Detail: d})
}

func resultOf(err error) audit.Result {
	if err != nil {
		return audit.ResultFailed
	}
	return audit.ResultInfo
}

func errDetail(err error) map[string]string {
	if err == nil {
		return nil
	}
	return map[string]string{"error": err.Error()}
}
