package router

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"wardgate/audit"
	"wardgate/esp"
	"wardgate/ike"
	"wardgate/tun"
)

// rekeyGrace is how long the inbound half of a CHILD SA that was replaced still accepts packets
// that were on their way (RFC 7296, section 2.8).
const rekeyGrace = 5 * time.Second

// owner is the Router as package ike sees it. Its methods are called from IKE's goroutines and
// do not block: they change maps and counters, and send at most what a connection held back.
type owner struct{ r *Router }

var _ ike.Owner = owner{}

// IKEUp records that a peer has proved every round.
func (o owner) IKEUp(i ike.SAInfo) {
	o.r.log.Info("peer authenticated", zap.String("connection", i.Peer), zap.Stringer("path", i.Path),
		zap.String("suite", i.Suite), zap.Strings("remote_ids", idStrings(i.RemoteIDs)), zap.Bool("initiator", i.Initiator),
		zap.Bool("resumed", i.Resumed), zap.Time("proved", i.Authenticated))
	o.r.streams.use(i.ID, i.Path.Stream)
	c := o.r.connection(i.Peer)
	if c == nil {
		return
	}
	c.mu.Lock()
	c.remoteIDs = idStrings(i.RemoteIDs)
	c.opened, c.ike, c.provedAt = i.Initiator, i.ID, i.Authenticated
	c.suite, c.path, c.ppk = i.Suite, i.Path, i.PPK
	c.mu.Unlock()
}

// IKEDown records the end of an IKE SA.
func (o owner) IKEDown(i ike.SAInfo, why ike.Reason) {
	o.r.streams.use(i.ID, 0)
	o.r.log.Info("IKE SA ended", zap.String("connection", i.Peer), zap.Stringer("path", i.Path),
		zap.String("reason", why.Code), zap.String("text", why.Text))
}

// ChildUp installs a CHILD SA.
func (o owner) ChildUp(k ike.ChildSA) {
	r := o.r
	c := r.connection(k.Peer)
	if c == nil {
		// the policy was replaced between the negotiation and now
		wipeChild(&k)
		r.dropChild(k.ID, "the policy has no connection "+k.Peer)
		return
	}
	child, err := r.newChild(c, &k)
	wipeChild(&k)
	if err == nil {
		err = r.dp.sad.add(child)
	}
	if err != nil {
		r.log.Error("cannot install CHILD SA", zap.String("connection", k.Peer), zap.Error(err))
		r.record(audit.Record{
			Event: audit.EventConnectionFailed, Who: strings.Join(idStrings(k.RemoteIDs), " + "), What: c.name, Result: audit.ResultFailed,
			Detail: map[string]string{"error": err.Error()},
		})
		r.dropChild(k.ID, err.Error())
		return
	}
	r.children.Store(k.ID, child)

	now := time.Now()
	c.mu.Lock()
	if c.children == nil {
		c.children = make(map[ike.ChildID]*childSA)
	}
	first := len(c.children) == 0
	c.children[k.ID] = child
	c.setState(connUp, now)
	c.failures, c.lastErr = 0, ""
	if first {
		c.setUp = 0
		if !c.wokenAt.IsZero() {
			c.setUp = now.Sub(c.wokenAt)
		}
		c.up = c.total()
	}
	c.wokenAt = time.Time{}
	c.espSuite = child.suite
	setUp := c.setUp
	c.mu.Unlock()
	c.lastUse.Store(r.dp.now())

	if k.SendNow {
		r.activate(c, child)
	} else {
		child.pending.Store(true)
		if k.Replaces != 0 && c.cur.Load() == nil {
			r.switchTo(child) // what it replaces is gone already: there is nothing else to send on
		}
	}
	if first {
		r.log.Info("connection up", zap.String("connection", c.name), zap.Stringer("path", k.Path), zap.String("suite", child.suite), zap.Duration("set_up", setUp))
		d := map[string]string{
			"peer": c.spec.Load().peer, "service": c.spec.Load().service, "path": k.Path.String(), "suite": child.suite,
			"local": joinSelectors(k.LocalTS), "remote": joinSelectors(k.RemoteTS),
		}
		if setUp > 0 {
			d["set_up"] = setUp.Round(time.Millisecond).String()
		}
		r.record(audit.Record{Event: audit.EventConnectionUp, Who: strings.Join(idStrings(k.RemoteIDs), " + "), What: c.name, Where: k.Path.Remote.String(), Result: audit.ResultOK, Detail: d})
	} else {
		r.log.Debug("CHILD SA installed", zap.String("connection", c.name), zap.Uint32("spi_in", k.SPIIn), zap.Uint32("spi_out", k.SPIOut))
	}
}

// dropChild has IKE delete a CHILD SA that cannot be used.
func (r *Router) dropChild(id ike.ChildID, why string) {
	go func() {
		if err := r.ep.DeleteChild(id, why); err != nil {
			r.log.Debug("a CHILD SA that cannot be used is gone already", zap.Error(err))
		}
	}()
}

// newChild makes the data path's side of a CHILD SA.
func (r *Router) newChild(c *connection, k *ike.ChildSA) (*childSA, error) {
	child := &childSA{id: k.ID, sa: k.SA, conn: c, spiIn: k.SPIIn, queue: k.Queue, localTS: k.LocalTS, remoteTS: k.RemoteTS, suite: espSuiteName(k)}
	path, err := r.sendPath(k.Path)
	if err != nil {
		return nil, err
	}
	child.path.Store(path)
	limits := r.espLimits()
	child.in, err = esp.NewInbound(esp.Params{
		SPI: k.SPIIn, Encr: k.Encr, Integ: k.Integ, KeyBits: k.KeyBits, ESN: k.ESN,
		Key: k.KeyIn, IntegKey: k.IntegIn, Limits: limits,
	})
	if err != nil {
		return nil, err
	}
	child.out, err = esp.NewOutbound(esp.Params{
		SPI: k.SPIOut, Encr: k.Encr, Integ: k.Integ, KeyBits: k.KeyBits, ESN: k.ESN,
		Key: k.KeyOut, IntegKey: k.IntegOut, Limits: limits,
	})
	if err != nil {
		child.in.Close()
		return nil, err
	}
	child.spacing = spacingOf(child.out)
	r.logKeys(child, k)
	return child, nil
}

// spacingOf says how inner packets have to lie so that their ESP packets are back to back.
func spacingOf(o *esp.Outbound) tun.Spacing {
	return tun.Spacing{Front: o.Headroom(), Align: o.Align(), Trailer: espTrailerLen, Back: espTrailerLen + o.ICVLen()}
}

// espTrailerLen is the pad length and next header octets (RFC 4303, section 2).
const espTrailerLen = 2

// ChildSwitch makes a CHILD SA the one to send on.
func (o owner) ChildSwitch(id ike.ChildID) {
	if child := o.r.child(id); child != nil {
		o.r.switchTo(child)
	}
}

// switchTo is also called by the workers, for the first packet that comes in on a pending SA.
func (r *Router) switchTo(child *childSA) {
	if child.pending.CompareAndSwap(true, false) {
		r.activate(child.conn, child)
	}
}

func (r *Router) activate(c *connection, child *childSA) {
	c.activate(child, func(child *childSA, held []heldPacket) {
		r.flushMu.Lock()
		defer r.flushMu.Unlock()
		r.flusher.sendHeld(child, held)
	})
}

// ChildDown removes a CHILD SA.
func (o owner) ChildDown(id ike.ChildID, why ike.Reason) {
	r := o.r
	v, ok := r.children.LoadAndDelete(id)
	if !ok {
		return
	}
	child := v.(*childSA) //nolint:errcheck,forcetypeassert // the map holds nothing else
	c := child.conn
	now := time.Now()

	c.mu.Lock()
	delete(c.children, id)
	last := len(c.children) == 0
	closing := c.state == connClosing
	wake := false
	c.retire(child)
	if last && c.state != connBlocked {
		c.setState(connIdle, now)
		if wake = closing && len(c.held) > 0; wake {
			c.setState(connConnecting, now)
			c.wokenAt = now
		}
		if c.spec.Load().start == startAlways && why.Code != ike.ReasonDeleted && why.Code != ike.ReasonShutdown {
			c.retryAt = now.Add(backoffFirst)
			c.setState(connWaiting, now)
		}
	}
	t := c.total()
	detail := map[string]string{
		"reason": why.Code, "text": why.Text,
		"packets_in": fmt.Sprint(t.packetsIn - c.up.packetsIn), "packets_out": fmt.Sprint(t.packetsOut - c.up.packetsOut),
		"bytes_in": fmt.Sprint(t.bytesIn - c.up.bytesIn), "bytes_out": fmt.Sprint(t.bytesOut - c.up.bytesOut),
	}
	ids := strings.Join(c.remoteIDs, " + ")
	c.mu.Unlock()

	if why.Rekeyed || closing {
		// what the peer sent before it knew is still on its way
		time.AfterFunc(rekeyGrace, func() { r.dp.sad.remove(child); child.close() })
	} else {
		r.dp.sad.remove(child)
		child.close()
	}
	if last {
		r.log.Info("connection down", zap.String("connection", c.name), zap.String("reason", why.Code), zap.String("text", why.Text))
		r.record(audit.Record{Event: audit.EventConnectionDown, Who: ids, What: c.name, Where: child.path.Load().remote.String(), Result: audit.ResultInfo, Detail: detail})
	}
	if wake {
		r.wake(c)
	}
}

// Refused records an attempt that IKE refused.
func (o owner) Refused(f ike.Refusal) {
	if f.Code == ike.CodeTicket {
		// Nobody is refused: all proofs are asked for, and what comes of them is recorded.
		o.r.log.Info("an IKE SA is not resumed", zap.String("connection", f.Peer), zap.Stringer("remote", f.Remote), zap.String("text", f.Text), zap.Error(f.Err))
		return
	}
	o.r.ikeRefusal(f)
}

// InitiateFailed ends the wait for a connection.
func (o owner) InitiateFailed(peer, child string, err error) {
	r := o.r
	c := r.connection(peer)
	if c == nil {
		return
	}
	now := time.Now()
	c.mu.Lock()
	if len(c.children) > 0 || c.cur.Load() != nil {
		c.mu.Unlock() // the peer opened the connection meanwhile
		return
	}
	wait := c.failed(strings.TrimPrefix(err.Error(), "ike: "), now)
	held := c.takeHeld()
	c.mu.Unlock()

	code := "failed"
	var refused *ike.RefusedError
	var notify *ike.PeerNotifyError
	switch {
	case errors.As(err, &refused):
		code = string(refused.Code)
	case errors.As(err, &notify):
		code = "peer-refused"
	case errors.Is(err, ike.ErrPeerDead):
		code = "peer-silent"
	}
	r.log.Warn("connection failed", zap.String("connection", peer), zap.String("child", child), zap.String("code", code), zap.Error(err),
		zap.Duration("retry_in", wait), zap.Int("packets_dropped", len(held)))
	r.record(audit.Record{
		Event: audit.EventConnectionFailed, Who: c.spec.Load().peer, What: peer, Result: audit.ResultFailed,
		Detail: map[string]string{"code": code, "error": err.Error()},
	})
	r.flushMu.Lock()
	for _, h := range held {
		r.flusher.drops.add(dropWaiting, 1)
		r.flusher.unreachable(h.b, r.dp.now())
	}
	r.flushMu.Unlock()
}

func wipeChild(k *ike.ChildSA) {
	clear(k.KeyIn)
	clear(k.KeyOut)
	clear(k.IntegIn)
	clear(k.IntegOut)
}

func idStrings(ids []ike.Identity) []string {
	s := make([]string, len(ids))
	for i, id := range ids {
		s[i] = id.String()
	}
	return s
}

func joinSelectors(sel []ike.Selector) string {
	s := make([]string, len(sel))
	for i := range sel {
		s[i] = sel[i].String()
	}
	return strings.Join(s, " ")
}

// espSuiteName names the suite the way policy files do.
func espSuiteName(k *ike.ChildSA) string {
	var s string
	switch k.Encr {
	case esp.EncrAESGCM16:
		s = fmt.Sprintf("aes%dgcm16", k.KeyBits)
	case esp.EncrChaCha20Poly1305:
		s = "chacha20poly1305"
	case esp.EncrAESCBC:
		s = fmt.Sprintf("aes%d", k.KeyBits)
	default:
		s = fmt.Sprintf("encr-%d", k.Encr)
	}
	switch k.Integ {
	case esp.IntegNone:
	case esp.IntegSHA256_128:
		s += "-sha256"
	case esp.IntegSHA384_192:
		s += "-sha384"
	case esp.IntegSHA512_256:
		s += "-sha512"
	}
	if k.ESN {
		s += "-esn"
	}
	return s
}
