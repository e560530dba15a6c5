package router

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"wardgate/audit"
	"wardgate/ike"
	"wardgate/policy"
	"wardgate/router/control"
	"wardgate/router/kernel"
	"wardgate/router/wire"
)

var _ control.Backend = (*Router)(nil)

// Warn this long before a policy or a certificate runs out, but not before the last third of a policy's
// life and the last fifth of a certificate's: the centre renews them earlier than that.
const (
	warnPolicy      = 72 * time.Hour
	warnCertificate = 7 * 24 * time.Hour
)

// endsSoon reports whether what lives from notBefore to notAfter is in the last part of its life.
func endsSoon(now, notBefore, notAfter time.Time, most time.Duration, part int) bool {
	return notAfter.Sub(now) < min(most, notAfter.Sub(notBefore)/time.Duration(part))
}

func (r *Router) policyEndsSoon(doc *policy.Document, now time.Time) bool {
	return endsSoon(now, doc.NotBefore, doc.NotAfter, warnPolicy, 3)
}

// Status implements control.Backend.
func (r *Router) Status(ctx context.Context) (*control.Status, error) {
	now := time.Now()
	s := &control.Status{Version: r.version, Now: now, Started: r.started}
	conns, err := r.Connections(ctx)
	if err != nil {
		return nil, err
	}
	s.Connections = conns
	for i := range conns {
		s.Traffic = addTraffic(s.Traffic, conns[i].Traffic)
	}
	r.mu.Lock()
	s.Token = control.TokenStatus{State: r.tokenState, Label: r.cfg.Token.Label, Error: r.tokenErr}
	for i := range r.creds {
		c := &r.creds[i]
		if c.Cert == nil {
			continue
		}
		x := control.Certificate{
			Layer: int(c.Layer), Service: c.Service, Subject: c.Cert.Subject.String(), Issuer: c.Cert.Issuer.String(),
			NotBefore: c.Cert.NotBefore, NotAfter: c.Cert.NotAfter,
		}
		if int(c.Layer) == 1 && len(c.Cert.DNSNames) > 0 {
			s.DeviceID = c.Cert.DNSNames[0]
		}
		what := "device certificate"
		if c.Service != "" {
			what = "certificate of service " + c.Service
		}
		switch {
		case now.After(c.Cert.NotAfter):
			x.Error = "expired"
			s.Warnings = append(s.Warnings, control.Warning{Code: "cert-expired", Title: "The " + what + " has expired", Text: "valid until " + c.Cert.NotAfter.UTC().Format(time.RFC3339), Hint: "ask the service provider for a new one"})
		case now.Before(c.Cert.NotBefore):
			x.Error = "not yet valid"
			s.Warnings = append(s.Warnings, control.Warning{Code: "cert-not-yet-valid", Title: "The " + what + " is not yet valid", Text: "valid from " + c.Cert.NotBefore.UTC().Format(time.RFC3339), Hint: "check the clock of this machine"})
		case endsSoon(now, c.Cert.NotBefore, c.Cert.NotAfter, warnCertificate, 5):
			s.Warnings = append(s.Warnings, control.Warning{Code: "cert-expires-soon", Title: "The " + what + " expires soon", Text: "valid until " + c.Cert.NotAfter.UTC().Format(time.RFC3339), Hint: "ask the service provider for a new one"})
		}
		s.Token.Certificates = append(s.Token.Certificates, x)
	}
	if r.tokenErr != nil {
		s.Warnings = append(s.Warnings, control.Warning{Code: r.tokenErr.Code, Title: r.tokenErr.Title, Text: r.tokenErr.Detail, Hint: r.tokenErr.Hint})
	}
	if r.doc != nil {
		if s.DeviceID == "" {
			s.DeviceID = r.doc.Device.ID
		}
		s.Policy = control.PolicyStatus{
			Installed: true, Issuer: r.doc.Issuer, Serial: r.doc.Serial, NotBefore: r.doc.NotBefore, NotAfter: r.doc.NotAfter, InstalledAt: r.policyAt,
		}
		if r.policyEndsSoon(r.doc, now) {
			s.Warnings = append(s.Warnings, control.Warning{Code: "policy-expires-soon", Title: "The policy expires soon", Text: "valid until " + r.doc.NotAfter.UTC().Format(time.RFC3339) + "; after that all connections are down", Hint: "ask the service provider for a new policy file"})
		}
	} else if r.policyErr != nil {
		s.Policy.Error = r.policyErr
		s.Warnings = append(s.Warnings, control.Warning{Code: r.policyErr.Code, Title: r.policyErr.Title, Text: r.policyErr.Detail, Hint: r.policyErr.Hint})
	}
	if e := r.remotesErr; e != nil {
		s.Warnings = append(s.Warnings, control.Warning{Code: e.Code, Title: e.Title, Text: e.Detail, Hint: e.Hint})
	}
	r.mu.Unlock()
	if q, _ := clockQuality(); q == audit.ClockUnsynced {
		s.Warnings = append(s.Warnings, control.Warning{Code: "clock-unsynchronised", Title: "The clock is not synchronised", Text: "records and certificates need the right time", Hint: "switch on time synchronisation (NTP) on this machine"})
	}
	centre, warnings := r.centre.status(ctx)
	s.Centre, s.Warnings = centre, append(s.Warnings, warnings...)
	s.Refused = r.refusedStatus()
	s.Events = r.events.latest(10)
	return s, nil
}

// clockQuality asks the kernel how good the clock is (AUD-3, ntp_adjtime(2)).
func clockQuality() (quality string, maxError time.Duration) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return audit.ClockUnknown, 0
	}
	const timeError, staUnsync = 5, 0x0040
	if state == timeError || t.Status&staUnsync != 0 {
		return audit.ClockUnsynced, 0
	}
	return audit.ClockSynchronised, time.Duration(t.Maxerror) * time.Microsecond
}

func addTraffic(a, b control.Traffic) control.Traffic {
	a.PacketsIn += b.PacketsIn
	a.BytesIn += b.BytesIn
	a.PacketsOut += b.PacketsOut
	a.BytesOut += b.BytesOut
	return a
}

func (r *Router) refusedStatus() []control.Refused {
	var out []control.Refused
	for reason, n := range r.dp.dropped() {
		out = append(out, control.Refused{Where: "tunnel", Reason: reason, Packets: n})
	}
	r.ikeRefused.mu.Lock()
	for code, c := range r.ikeRefused.codes {
		out = append(out, control.Refused{Where: "ike", Reason: string(code), Packets: c.n, Last: c.last, Example: c.example})
	}
	r.ikeRefused.mu.Unlock()
	if counters, err := r.kern.Counters(); err == nil {
		r.mu.Lock()
		for reason, c := range counters {
			if c.Packets > 0 {
				x := r.kernRefused[string(reason)]
				x.Where, x.Reason, x.Text, x.Packets, x.Bytes = "kernel", string(reason), reason.Text(), c.Packets, c.Bytes
				out = append(out, x)
			}
		}
		r.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b control.Refused) int {
		return strings.Compare(a.Where+a.Reason, b.Where+b.Reason)
	})
	return out
}

// Connections implements control.Backend.
func (r *Router) Connections(context.Context) ([]control.Connection, error) {
	r.mu.Lock()
	conns := make([]*connection, 0, len(r.conns))
	for _, c := range r.conns {
		conns = append(conns, c)
	}
	r.mu.Unlock()
	slices.SortFunc(conns, func(a, b *connection) int { return strings.Compare(a.name, b.name) })
	out := make([]control.Connection, len(conns))
	for i, c := range conns {
		out[i] = r.connectionStatus(c)
	}
	return out, nil
}

func (r *Router) connectionStatus(c *connection) control.Connection {
	spec, t := c.spec.Load(), c.total()
	x := control.Connection{
		Name: c.name, Peer: spec.peer, Service: spec.service, Start: spec.start,
		Local: prefixStrings(spec.local), Remote: prefixStrings(spec.remote),
		Traffic: control.Traffic{PacketsIn: t.packetsIn, BytesIn: t.bytesIn, PacketsOut: t.packetsOut, BytesOut: t.bytesOut},
	}
	if spec.idle > 0 {
		x.IdleAfter = spec.idle.String()
	}
	if at := c.lastUse.Load(); at != 0 {
		x.LastTraffic = r.dp.start.Add(time.Duration(at))
	}
	if len(spec.gateways) > 0 {
		x.Gateway = spec.gateways[0].String()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	x.Since, x.HeldPackets = c.since, len(c.held)
	switch c.state {
	case connIdle:
		x.State = control.ConnIdle
	case connConnecting:
		x.State = control.ConnConnecting
	case connClosing:
		x.State = control.ConnClosing
	case connUp:
		x.State = control.ConnUp
		x.Gateway, x.RemoteIDs, x.Suite, x.ESPSuite, x.Encap = c.path.Remote.String(), c.remoteIDs, c.suite, c.espSuite, c.path.Encap
		x.PPK = c.ppk
		x.LocalAddr, x.IKESA, x.ProvedAt = c.path.Local.Addr().String(), uint64(c.ike), c.provedAt
		if cur := c.cur.Load(); cur != nil {
			path := cur.path.Load()
			x.Gateway, x.PathMTU, x.InnerMTU, x.Encap, x.TCP = path.remote.String(), path.mtu.MTU(), path.innerMTU(cur), path.encap, path.stream != nil
		}
		for _, child := range c.children {
			x.SAs = append(x.SAs, saStatus(child))
		}
		slices.SortFunc(x.SAs, func(a, b control.SA) int {
			return cmp.Or(cmp.Compare(a.Queue, b.Queue), cmp.Compare(a.SPIIn, b.SPIIn))
		})
	case connWaiting, connBlocked:
		x.State = control.ConnFailed
	}
	if c.setUp > 0 {
		x.SetupTime = c.setUp.Round(time.Millisecond / 10).String()
	}
	switch {
	case c.state == connBlocked:
		x.LastError, x.LastErrorAt = &control.Error{Kind: control.KindUnavailable, Code: "connection-blocked", Title: "The connection cannot be used now", Detail: c.blockedBy}, c.since
	case c.lastErr != "":
		x.LastError, x.LastErrorAt = &control.Error{Kind: control.KindRefused, Code: "connection-failed", Title: "The last attempt to connect failed", Detail: c.lastErr, Hint: failureHint(c.lastErr)}, c.lastErrAt
	}
	return x
}

// saStatus is what one CHILD SA did; c.mu of its connection is held.
func saStatus(child *childSA) control.SA {
	c, in, out := child.conn, child.in.Counters(), child.out.Counters()
	return control.SA{
		SPIIn: child.spiIn, SPIOut: child.out.SPI(), Queue: child.queue,
		Sending: c.cur.Load() == child || child.queue < len(c.own) && c.own[child.queue].Load() == child,
		In: control.SATraffic{
			Packets: in.Packets, Bytes: in.Bytes, Sequence: in.LastSeq, Replay: in.Replay, Auth: in.Auth,
			Malformed: in.Malformed, Dummy: in.Dummy, Exhausted: in.HardLimit,
		},
		Out: control.SATraffic{Packets: out.Packets, Bytes: out.Bytes, Sequence: out.LastSeq, Exhausted: out.HardLimit},
	}
}

// failureHint says what a person can do about a failed attempt.
func failureHint(text string) string {
	switch {
	case strings.Contains(text, ike.ErrPeerDead.Error()), strings.Contains(text, "does not answer"):
		return "check the internet line here and at the partner, and that UDP ports 500 and 4500, or TCP port 4500, are open between both"
	case strings.Contains(text, "AUTHENTICATION_FAILED"):
		return "the partner refused our certificates: its own record says which and why; ask it, or the service provider"
	case strings.Contains(text, "cert-"):
		return "the partner's certificate is not good: ask the service provider"
	case strings.Contains(text, string(ike.CodeCredential)):
		return "our own token could not sign: wardgate token check"
	}
	return "see the record: wardgate audit tail"
}

func prefixStrings(p []netip.Prefix) []string {
	s := make([]string, len(p))
	for i := range p {
		s[i] = p[i].String()
	}
	return s
}

// Up implements control.Backend.
func (r *Router) Up(ctx context.Context, name string) (*control.Connection, error) {
	c := r.connection(name)
	if c == nil {
		return nil, noConnection(name)
	}
	r.record(audit.Record{Event: audit.EventOperator, Who: operator(ctx), What: "up " + name, Result: audit.ResultInfo})
	now := time.Now()
	c.mu.Lock()
	if c.state == connBlocked {
		why := c.blockedBy
		c.mu.Unlock()
		return nil, &control.Error{Kind: control.KindUnavailable, Code: "connection-blocked", Title: "The connection " + name + " cannot be started", Detail: why}
	}
	start := c.state == connIdle || c.state == connWaiting
	if start {
		c.setState(connConnecting, now)
		c.wokenAt = now
	}
	c.mu.Unlock()
	if start {
		r.wake(c)
	}
	for {
		c.mu.Lock()
		state, changed := c.state, c.changed
		c.mu.Unlock()
		if state == connUp {
			break
		}
		if state != connConnecting {
			s := r.connectionStatus(c)
			if s.LastError != nil {
				return nil, s.LastError
			}
			return &s, nil
		}
		select {
		case <-ctx.Done():
			s := r.connectionStatus(c)
			return &s, nil
		case <-changed:
		}
	}
	s := r.connectionStatus(c)
	return &s, nil
}

// Down implements control.Backend.
func (r *Router) Down(ctx context.Context, name string) (*control.Connection, error) {
	c := r.connection(name)
	if c == nil {
		return nil, noConnection(name)
	}
	r.record(audit.Record{Event: audit.EventOperator, Who: operator(ctx), What: "down " + name, Result: audit.ResultInfo})
	c.mu.Lock()
	ended := slices.Collect(maps.Keys(c.children)) // packets that wait may bring it up again at once
	c.mu.Unlock()
	r.ep.Terminate(name, "ended by the operator")
	for {
		c.mu.Lock()
		up, changed := c.state == connUp || c.state == connConnecting || c.state == connClosing, c.changed
		if len(ended) > 0 && !slices.ContainsFunc(ended, func(id ike.ChildID) bool { return c.children[id] != nil }) {
			up = false
		}
		c.mu.Unlock()
		if !up {
			break
		}
		select {
		case <-ctx.Done():
			s := r.connectionStatus(c)
			return &s, nil
		case <-changed:
		}
	}
	s := r.connectionStatus(c)
	return &s, nil
}

func noConnection(name string) error {
	return &control.Error{Kind: control.KindNotFound, Code: "no-such-connection", Title: "There is no connection " + fmt.Sprintf("%q", name), Hint: "see the names with: wardgate connections"}
}

// AuditTail implements control.Backend.
func (r *Router) AuditTail(_ context.Context, n int) ([]control.AuditRecord, error) {
	recs, err := audit.Tail(r.auditPath(), n)
	if err != nil {
		return nil, err
	}
	out := make([]control.AuditRecord, len(recs))
	for i, rec := range recs {
		out[i] = controlRecord(rec)
	}
	return out, nil
}

func controlRecord(rec audit.Record) control.AuditRecord {
	return control.AuditRecord{
		Seq: rec.Seq, Time: rec.Time, Event: string(rec.Event), Who: rec.Who, What: rec.What, Where: rec.Where, Result: string(rec.Result), Detail: rec.Detail,
	}
}

// Counters implements control.Backend.
func (r *Router) Counters(ctx context.Context) (*control.Counters, error) {
	conns, err := r.Connections(ctx)
	if err != nil {
		return nil, err
	}
	c := &control.Counters{Connections: make(map[string]control.Traffic, len(conns)), Refused: r.refusedStatus(), Other: make(map[string]uint64)}
	for i := range conns {
		c.Connections[conns[i].Name] = conns[i].Traffic
		c.Traffic = addTraffic(c.Traffic, conns[i].Traffic)
	}
	for name, n := range r.dp.dropped() {
		c.Other["drop_"+strings.ReplaceAll(name, "-", "_")] = n
	}
	t := r.tun.Counters()
	c.Other["tun_read_packets"], c.Other["tun_read_calls"] = t.ReadPackets, t.ReadCalls
	c.Other["tun_write_packets"], c.Other["tun_write_calls"] = t.WritePackets, t.WriteCalls
	c.Other["tun_offload_fallbacks"], c.Other["drop_tun_ring_full"] = t.OffloadFallbacks, r.dp.ringDrops.Load()
	var w wire.Counters
	for _, g := range r.groups {
		for _, sock := range g.Sockets() {
			x := sock.Counters()
			w.Add(&x)
		}
	}
	for name, n := range map[string]uint64{
		"in_datagrams": w.InDatagrams, "in_calls": w.InCalls, "in_runs": w.InRuns, "in_dropped": w.InDropped, "in_truncated": w.InTruncated,
		"out_datagrams": w.OutDatagrams, "out_calls": w.OutCalls, "out_runs": w.OutRuns, "out_fallbacks": w.Fallbacks,
		"out_too_big": w.OutTooBig, "out_unreachable": w.OutUnreachable, "out_no_buffer": w.OutNoBuffer, "out_refused": w.OutRefused, "out_other": w.OutOther,
	} {
		c.Other["socket_"+name] = n
	}
	r.streams.counters(c.Other)
	r.defenceCounters(c.Other)
	c.Queues = r.dp.queueStatus()
	c.Other["flows"] = uint64(r.dp.flows.len())
	c.Other["child_sas"] = uint64(r.dp.sad.len())
	return c, nil
}

// queueStatus sums the workers of each queue.
func (d *datapath) queueStatus() []control.Queue {
	qs := make([]control.Queue, d.shards())
	for i := range qs {
		qs[i] = control.Queue{Queue: i, Dropped: make(map[string]uint64)}
	}
	for _, w := range d.allWorkers() {
		q := &qs[w.shard]
		q.PacketsIn += w.count.packetsIn.Load()
		q.BytesIn += w.count.bytesIn.Load()
		q.PacketsOut += w.count.packetsOut.Load()
		q.BytesOut += w.count.bytesOut.Load()
		q.Rounds += w.count.rounds.Load()
		w.drops.addTo(q.Dropped)
	}
	return qs
}

// operator names who uses the control API, for the record.
func operator(ctx context.Context) string {
	if who := control.Caller(ctx); who != "" {
		return who
	}
	return "operator"
}

// controlError gives an error the form that the operator sees.
func (r *Router) controlError(err error) *control.Error {
	var e *control.Error
	if errors.As(err, &e) {
		return e
	}
	if code := policy.Code(err); code != "" {
		return &control.Error{Kind: control.KindRefused, Code: code, Title: "The policy is refused", Detail: err.Error(), Hint: "what was in force before stays in force; ask the service provider for a correct file"}
	}
	return &control.Error{Kind: control.KindInternal, Code: "internal", Title: "That did not work", Detail: err.Error()}
}

// eventRing keeps the latest events for the status.
type eventRing struct {
	mu   sync.Mutex // guards recs
	recs []control.AuditRecord
}

func (e *eventRing) add(rec audit.Record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.recs) == 64 {
		e.recs = append(e.recs[:0], e.recs[1:]...)
	}
	e.recs = append(e.recs, controlRecord(rec))
}

func (e *eventRing) latest(n int) []control.AuditRecord {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := slices.Clone(e.recs[max(0, len(e.recs)-n):])
	slices.Reverse(out)
	return out
}

// watchKernel keeps the kernel's side as it was told, and records when it had been changed.
func (r *Router) watchKernel(ctx context.Context) {
	err := r.kern.Watch(ctx, func(ev kernel.Event) {
		d := map[string]string{"code": ev.Code, "detail": ev.Detail}
		res := audit.ResultInfo
		if ev.Err != nil {
			d["error"], res = ev.Err.Error(), audit.ResultFailed
		}
		r.record(audit.Record{Event: audit.EventKernel, What: "kernel filters and routes", Result: res, Detail: d})
	})
	if err != nil && ctx.Err() == nil {
		r.log.Error("kernel is no longer watched", zap.Error(err))
	}
}

// readKernelRefusals takes over what the kernel's filters refused, for the record.
func (r *Router) readKernelRefusals(ctx context.Context) {
	err := r.kern.Refusals(ctx, func(f kernel.Refusal) {
		r.refused.note(refusedPacket{
			reason: string(f.Reason), src: f.Src, dst: f.Dst, proto: f.Proto, sport: f.SrcPort, dport: f.DstPort, where: "kernel " + f.Hook,
		})
		r.mu.Lock()
		x := r.kernRefused[string(f.Reason)]
		x.Last, x.Example = f.Time, fmt.Sprintf("%s %s -> %s", protoName(f.Proto), f.Src, f.Dst)
		r.kernRefused[string(f.Reason)] = x
		r.mu.Unlock()
	})
	if err != nil && ctx.Err() == nil {
		r.log.Error("the kernel's refusals are no longer recorded", zap.Error(err))
	}
}

// Explain implements control.Backend.
func (r *Router) Explain(_ context.Context, f control.Flow) (*control.Explanation, error) {
	table := r.table()
	if table == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.policyErr != nil {
			return nil, r.policyErr
		}
		return nil, &control.Error{Kind: control.KindUnavailable, Code: "no-policy", Title: "No policy is in force"}
	}
	pf := policy.Flow{Src: f.From, Dst: f.To, SrcPort: f.FromPort, DstPort: f.ToPort}
	switch f.Protocol {
	case "tcp":
		pf.Proto = protoTCP
	case "udp":
		pf.Proto = protoUDP
	case "icmp", "icmpv6":
		pf.Proto = protoICMP
		if f.Protocol == "icmpv6" {
			pf.Proto = protoICMPv6
		}
		pf.SrcPort, pf.DstPort = f.ToPort>>8, f.ToPort&0xff
		if f.ToPort == 0 { // the question a person means: may it be pinged?
			if pf.SrcPort = 8; pf.Proto == protoICMPv6 {
				pf.SrcPort = 128
			}
		}
	case "any", "":
		pf.NoPorts = true
	default:
		n, err := strconv.ParseUint(f.Protocol, 10, 8)
		if err != nil {
			return nil, &control.Error{Kind: control.KindInvalid, Code: "protocol", Title: "Unknown protocol", Detail: fmt.Sprintf("expected tcp, udp, icmp, icmpv6, any or a number from 0 to 255, came %q", f.Protocol)}
		}
		pf.Proto = uint8(n)
		pf.NoPorts = pf.Proto != protoSCTP && pf.Proto != protoUDPLite && pf.Proto != protoDCCP
	}
	e := table.Explain(pf)
	out := &control.Explanation{
		Flow: f, Allow: e.Verdict == policy.VerdictAllow, Reason: e.Reason.String(), Direction: e.Direction,
		FromZone: e.From.Zone, ToZone: e.To.Zone, Connection: e.Connection, Text: strings.Split(e.Text, "\n"),
	}
	if e.Rule != nil {
		out.Rule = e.Rule.Name
	}
	if c := r.connection(e.Connection); c != nil {
		out.State = r.connectionStatus(c).State
	}
	return out, nil
}
