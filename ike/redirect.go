package ike

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"wardgate/ike/message"
)

// Redirect (RFC 5685): a gateway sends an initiator to another one, in its answer to IKE_SA_INIT, in
// its last answer to IKE_AUTH, or while the IKE SA stands. The initiator goes where its connection
// allows it to go, and there it asks for the same proofs of the same identities: what a gateway says
// changes the address and nothing else.
const (
	maxRedirects       = 5 // in redirectPeriod (section 7)
	redirectPeriod     = 300 * time.Second
	defaultRedirectEnd = 30 * time.Second

	gatewayIPv4 = 1
	gatewayIPv6 = 2
	gatewayFQDN = 3
)

// RedirectQuery is the question whether an initiator is to go to another gateway.
type RedirectQuery struct {
	Path Path       // it came by
	From netip.Addr // the gateway that has sent it here; the zero Addr: none has

	// Peer and RemoteIDs are the connection and all identities that were proved; Peer is empty when
	// IKE_SA_INIT came and nothing is proved.
	Peer      string
	RemoteIDs []Identity
}

// redirects is what an attempt remembers of the gateways that sent it on.
type redirects struct {
	times []time.Time
	from  netip.Addr // the last one
}

// count reports whether one more redirect is taken.
func (r *redirects) count(now time.Time) bool {
	r.times = slices.DeleteFunc(slices.Clone(r.times), func(t time.Time) bool { return now.Sub(t) >= redirectPeriod })
	if len(r.times) >= maxRedirects {
		return false
	}
	r.times = append(r.times, now)
	return true
}

// redirectable tells whether the connection can be sent anywhere else.
func (p *PeerConfig) redirectable() bool { return len(p.RedirectTo) > 0 || len(p.Remote) > 1 }

// mayGoTo tells whether the connection may be served by a gateway.
func (p *PeerConfig) mayGoTo(a netip.Addr) bool {
	a = a.Unmap()
	return slices.ContainsFunc(p.Remote, func(r netip.AddrPort) bool { return r.Addr() == a }) ||
		slices.ContainsFunc(p.RedirectTo, func(n netip.Prefix) bool { return n.Contains(a) })
}

// appendGateway writes a gateway identity (section 9.2).
func appendGateway(b []byte, a netip.Addr) []byte {
	typ := byte(gatewayIPv4)
	if a.Is6() {
		typ = gatewayIPv6
	}
	raw := a.AsSlice()
	return append(append(b, typ, byte(len(raw))), raw...)
}

// parseGateway reads a gateway identity; rest is what comes behind it, the nonce.
func parseGateway(b []byte) (a netip.Addr, rest []byte, err error) {
	if len(b) < 2 || len(b) < 2+int(b[1]) {
		return a, nil, fmt.Errorf("ike: a gateway identity of %d octets is cut off", len(b))
	}
	id, rest := b[2:2+b[1]], b[2+b[1]:]
	switch {
	case b[0] == gatewayIPv4 && len(id) == 4, b[0] == gatewayIPv6 && len(id) == 16:
		a, _ = netip.AddrFromSlice(id)
		return a.Unmap(), rest, nil
	case b[0] == gatewayFQDN:
		return a, rest, fmt.Errorf("ike: the gateway is named %s, only addresses are understood", clean(string(id)))
	}
	return a, rest, fmt.Errorf("ike: a gateway identity of type %d with %d octets", b[0], len(id))
}

// announceRedirect says that we may be redirected, or who redirected us (section 3).
func (sa *SA) announceRedirect(out *outgoing) {
	switch {
	case !sa.peer.redirectable():
	case sa.redirects.from.IsValid():
		out.notify(message.NotifyRedirectedFrom, appendGateway(nil, sa.redirects.from))
	default:
		out.notify(message.NotifyRedirectSupported, nil)
	}
}

// takesRedirect tells whether an IKE_SA_INIT request announces that its sender may be redirected, and
// by whom it was.
func takesRedirect(in *parsed) (from netip.Addr, ok bool) {
	if n := in.notify(message.NotifyRedirectedFrom); n != nil {
		if a, rest, err := parseGateway(n.Data); err == nil && len(rest) == 0 {
			return a, true
		}
	}
	return from, in.has(message.NotifyRedirectSupported)
}

// mayFollow judges a REDIRECT and counts it.
func (sa *SA) mayFollow(to netip.Addr) *RefusedError {
	here := sa.path.Remote.Addr()
	switch {
	case to == here:
		return refused(CodeRedirect, -1, nil, "%v redirects to itself", here)
	case !sa.peer.mayGoTo(to) || sa.peer.Local.IsValid() && sa.peer.Local.Is4() != to.Is4():
		return refused(CodeRedirect, -1, nil, "%v redirects to %v, which connection %q does not allow", here, to, sa.peer.Name)
	case !sa.redirects.count(sa.now):
		return refused(CodeRedirect, -1, nil, "%v redirects to %v, after %d redirects in %v: a loop", here, to, maxRedirects, redirectPeriod)
	}
	sa.redirects.from = here
	return nil
}

// redirectPath is where a gateway is tried: at the standard port, unless the one before was
// somewhere else.
func (sa *SA) redirectPath(to netip.Addr) Path {
	port := uint16(0)
	if p := sa.path.Remote.Port(); p != portIKE && p != portNATT && sa.path.Stream == 0 {
		port = p
	}
	return Path{Remote: netip.AddrPortFrom(to, port)}
}

// onInitRedirect takes a REDIRECT in the answer to IKE_SA_INIT. Anybody may have sent it: without our
// nonce it is nothing (section 3), and one that leads nowhere leaves time for a better answer.
func (sa *SA) onInitRedirect(n *message.Notify) {
	h := sa.handshake
	to, nonce, err := parseGateway(n.Data)
	if !bytes.Equal(nonce, h.ni) {
		return
	}
	if err != nil {
		sa.later(refused(CodeRedirect, -1, err, "%v redirects to somewhere unknown", sa.path.Remote))
		return
	}
	if e := sa.mayFollow(to); e != nil {
		sa.later(e)
		return
	}
	old := sa.cur
	sa.target = sa.redirectPath(to)
	sa.host.freeIKESPI(old.spiI)
	old.wipe()
	h.kex.Wipe()
	h.kex, h.gateway, h.giveUp = nil, -1, time.Time{}
	sa.startInit()
}

// followAuthRedirect takes a REDIRECT of the first or the last answer to IKE_AUTH, whose proof held
// (section 6): this IKE SA is deleted, another one is made elsewhere. true: that is what happens.
func (sa *SA) followAuthRedirect(in *parsed) bool {
	n := in.notify(message.NotifyRedirect)
	if n == nil || !sa.peer.redirectable() {
		return false
	}
	to, rest, err := parseGateway(n.Data)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("ike: REDIRECT with %d octets too many", len(rest))
	}
	var e *RefusedError
	if err != nil {
		e = refused(CodeRedirect, -1, err, "%v redirects to somewhere unknown", sa.path.Remote)
	} else {
		e = sa.mayFollow(to)
	}
	if e != nil {
		sa.abort(e)
		return true
	}
	h := sa.handshake
	a := actRedirect{peer: sa.peer.Name, path: sa.redirectPath(to), redirects: sa.redirects, children: sa.wanted}
	if h.childCfg != nil {
		a.children = append([]string{h.childCfg.Name}, a.children...)
		sa.host.freeESPSPI(h.childSPI, h.childID)
	}
	sa.wanted = nil
	sa.do(a)
	sa.ended = Reason{Code: ReasonRedirected, Text: fmt.Sprintf("redirected to %v", to)}
	sa.state = StateDeleting
	sa.cur.start(abortTask{}, exchangeInformational, newOutgoing().add(&message.Delete{Protocol: message.ProtocolIKE}))
	return true
}

// onLiveRedirect takes a REDIRECT of an IKE SA that stands (section 5): the new one is made first,
// and this one deleted when that carries traffic.
func (sa *SA) onLiveRedirect(n *message.Notify) {
	if !sa.initiator || !sa.peer.redirectable() {
		return // never announced
	}
	to, rest, err := parseGateway(n.Data)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("ike: REDIRECT with %d octets too many", len(rest))
	}
	if err != nil {
		sa.refuse(refused(CodeRedirect, -1, err, "%v redirects to somewhere unknown", sa.path.Remote))
		return
	}
	if e := sa.mayFollow(to); e != nil {
		sa.refuse(e)
		return
	}
	a := actRedirect{peer: sa.peer.Name, path: sa.redirectPath(to), redirects: sa.redirects, replaces: sa.id}
	for _, c := range sa.est.children {
		if c.queue == 0 && !c.deleting && c.successor == nil {
			a.children = append(a.children, c.cfg.Name)
		}
	}
	if len(a.children) == 0 {
		sa.terminate(Reason{Code: ReasonRedirected, Text: fmt.Sprintf("redirected to %v, with nothing to protect", to)})
		return
	}
	sa.do(a)
}

// redirected makes the IKE SA to which another one was redirected.
func (ep *Endpoint) redirected(a actRedirect) {
	cfg := ep.peers.Load().byName[a.peer]
	if cfg == nil || len(a.children) == 0 {
		return
	}
	ep.mu.Lock()
	if ep.closed {
		ep.mu.Unlock()
		return
	}
	b := ep.newBoxLocked(a.peer)
	b.sa = newInitiator(b, cfg)
	b.sa.replaces, b.sa.target, b.sa.redirects = a.replaces, a.path, a.redirects
	ep.mu.Unlock()
	for _, c := range a.children {
		b.post(evInitiate{child: c})
	}
}

// redirectFresh answers an IKE_SA_INIT request with REDIRECT where Config.Redirect says so. It keeps
// no state. false: it is to be served here.
func (ep *Endpoint) redirectFresh(p Path, h header, in *parsed) bool {
	from, ok := takesRedirect(in)
	if !ok || ep.cfg.Redirect == nil {
		return false // section 3: never without the announcement
	}
	to := ep.cfg.Redirect(RedirectQuery{Path: p, From: from})
	if !to.IsValid() || to.Unmap() == p.Local.Addr() {
		return false
	}
	ep.answerInit(p, h, message.NewNotify(message.NotifyRedirect, append(appendGateway(nil, to.Unmap()), in.nonce...)...))
	return true
}

// redirectProved adds REDIRECT to the last answer to IKE_AUTH where Config.Redirect says so (section
// 6). The IKE SA stands then without a CHILD SA until the initiator deletes it.
func (sa *SA) redirectProved(out *outgoing) bool {
	if !sa.est.redirectable || sa.cfg.Redirect == nil {
		return false
	}
	to := sa.cfg.Redirect(RedirectQuery{Path: sa.path, From: sa.redirects.from, Peer: sa.peer.Name, RemoteIDs: slices.Clone(sa.est.remoteIDs)})
	if !to.IsValid() || to.Unmap() == sa.path.Local.Addr() {
		return false
	}
	out.notify(message.NotifyRedirect, appendGateway(nil, to.Unmap()))
	sa.endRedirected(to)
	return true
}

// endRedirected deletes the IKE SA when the initiator has had its time to go.
func (sa *SA) endRedirected(to netip.Addr) {
	sa.est.later = append(sa.est.later, delayed{sa.now.Add(sa.cfg.RedirectWait), func(sa *SA) {
		sa.terminate(Reason{Code: ReasonRedirected, Text: fmt.Sprintf("redirected to %v", to)})
	}})
}

// Redirect sends the peers of a connection that initiated their IKE SAs here to another gateway. They
// make an IKE SA there and delete the one here; whoever does not within Config.RedirectWait loses it.
// It returns how many can be redirected; those that did not announce it stay.
func (ep *Endpoint) Redirect(peer string, to netip.Addr) (int, error) {
	if !to.IsValid() {
		return 0, fmt.Errorf("ike: redirect of %q: no address to go to", peer)
	}
	if ep.peers.Load().byName[peer] == nil {
		return 0, fmt.Errorf("%w: %q", ErrUnknownPeer, peer)
	}
	n := 0
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		ok := b.sa != nil && b.sa.est != nil && b.sa.est.redirectable && b.sa.peer.Name == peer && b.sa.state == StateEstablished
		b.step.Unlock()
		if ok {
			n++
			b.post(evRedirect{to.Unmap()})
		}
	}
	return n, nil
}

// redirectTask tells the initiator to go elsewhere.
type redirectTask struct{ to netip.Addr }

func (t *redirectTask) build(sa *SA, _ *generation) (uint8, *outgoing, bool) {
	out := newOutgoing().notify(message.NotifyRedirect, appendGateway(nil, t.to))
	return exchangeInformational, out, sa.state == StateEstablished
}

// retire sends it again: the initiator may never have got it before it rekeyed the IKE SA.
func (t *redirectTask) retire(sa *SA) {
	if sa.state == StateEstablished {
		sa.cur.enqueue(&redirectTask{t.to})
	}
}

func (t *redirectTask) done(sa *SA, _ *generation, _ *parsed) {
	if sa.state == StateEstablished {
		sa.endRedirected(t.to)
	}
}
