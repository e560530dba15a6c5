package ike

import (
	"bytes"
	"cmp"
	"crypto/subtle"
	"encoding/binary"
	"io"
	"net/netip"
	"slices"
	"time"

	"wardgate/ike/message"
)

// MOBIKE (RFC 4555): the addresses of an IKE SA and its CHILD SAs change without a handshake. The
// original initiator decides which pair of addresses is used, tells the other end with
// UPDATE_SA_ADDRESSES, and looks for another pair when the one in use carries nothing any more. The
// responder follows, and sends data to a new address only when the peer has shown there that it gets
// what is sent to it (section 3.7). Nothing else makes either end follow a packet's source.
//
// We always do NAT detection, so that NO_NATS_ALLOWED is never sent; it is honoured (section 3.9).
const (
	maxPeerAddrs   = 16 // of a peer that are kept
	maxOwnAddrs    = 8  // of ours that are told
	cookie2Size    = 16 // octets; section 4.2.5: 8 to 64
	probeAfter     = 2  // repetitions of a request until other paths are tried
	mobikePatience = 6  // more repetitions as a responder: five minutes (section 3.11)
)

// mobike is the state of an IKE SA that both ends can move.
type mobike struct {
	peerAddrs []netip.Addr   // that the peer told beside the one in use
	port      uint16         // of the peer, where no NAT has made another one of it
	from      netip.AddrPort // where its last request came from: one more that may work

	// seq counts the changes, so that the answer to an update that was overtaken by the next change
	// is told from the newest one's (pending_update of section 3.5), and the answer to a check of an
	// address from one that may have come from the address before or after.
	seq uint64

	// Initiator.
	probing int       // of the paths, the one that is tried next; 0: none is
	refused int       // updates in a row that the peer has not taken
	seen    []byte    // NAT_DETECTION_DESTINATION_IP of the last update
	seenSPI uint64    // of the generation it was of
	asked   time.Time // when we last asked whether the NAT in front of us has changed
	lost    bool      // we had no address at all meanwhile

	// Responder. chosen is the address of ours that the initiator uses.
	chosen netip.Addr

	// Until a new address is checked, data goes by the path before.
	checking bool
	data     Path
	dataNAT  natState
}

// AddressChanged tells the addresses that this machine can be reached at from now on. IKE SAs with
// MOBIKE (PeerConfig.Mobike) that used another one move, and the peers are told; it is also to be called
// once at the start.
func (ep *Endpoint) AddressChanged(addrs []netip.Addr) {
	list := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		if a = a.Unmap(); a.IsValid() && usableAddr(a) && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	if old := ep.addrs.Swap(&list); old != nil && slices.Equal(*old, list) {
		return
	}
	for _, b := range ep.allBoxes() {
		b.post(evAddresses{})
	}
}

func usableAddr(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && a.Zone() == ""
}

// ownAddrs are the addresses of ours that the connection may use.
func (sa *SA) ownAddrs() []netip.Addr {
	addrs := sa.host.addresses()
	if l := sa.peer.Local; l.IsValid() {
		if !slices.Contains(addrs, l) {
			return nil
		}
		return []netip.Addr{l}
	}
	return addrs
}

// mayMove tells whether the peer may be at an address without new proofs.
func (sa *SA) mayMove(a netip.Addr) bool {
	return !sa.peer.MoveNamed || a == sa.path.Remote.Addr() || sa.peer.mayGoTo(a)
}

// announceMobike adds MOBIKE_SUPPORTED and our other addresses to the IKE_AUTH message with the SA
// payload (sections 3.2 and 3.4).
func (sa *SA) announceMobike(out *outgoing) {
	if sa.peer.Mobike && sa.path.Stream == 0 { // an IKE SA over TCP moves by another connection (RFC 9329)
		out.notify(message.NotifyMOBIKESupported, nil)
		sa.addAddresses(out)
	}
}

// addAddresses lists our addresses beside the one in the IP header; it returns how many.
func (sa *SA) addAddresses(out *outgoing) int {
	n := 0
	for _, a := range sa.ownAddrs() {
		if a == sa.path.Local.Addr() || n == maxOwnAddrs {
			continue
		}
		n++
		if a.Is4() {
			out.notify(message.NotifyAdditionalIP4Address, a.AsSlice())
		} else {
			out.notify(message.NotifyAdditionalIP6Address, a.AsSlice())
		}
	}
	return n
}

// peerAddrsOf reads ADDITIONAL_*_ADDRESS; ok: there is a list, which may be empty.
func peerAddrsOf(in *parsed) (list []netip.Addr, ok bool) {
	ok = in.has(message.NotifyNoAdditionalAddresses)
	for _, n := range in.notifies {
		var want int
		switch n.Type {
		case message.NotifyAdditionalIP4Address:
			want = 4
		case message.NotifyAdditionalIP6Address:
			want = 16
		default:
			continue
		}
		ok = true
		a, valid := netip.AddrFromSlice(n.Data)
		if a = a.Unmap(); valid && len(n.Data) == want && usableAddr(a) && len(list) < maxPeerAddrs && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list, ok
}

// takeMobike starts MOBIKE when both ends announced it, in the messages of this IKE SA.
func (sa *SA) takeMobike(in *parsed) {
	if sa.peer.Mobike && sa.path.Stream == 0 && in.has(message.NotifyMOBIKESupported) {
		sa.mob = &mobike{chosen: sa.path.Local.Addr(), port: sa.path.Remote.Port(), asked: sa.now}
		sa.mob.peerAddrs, _ = peerAddrsOf(in)
		sa.mob.peerAddrs = append(sa.mob.peerAddrs, sa.path.Remote.Addr())
	}
}

// onAddresses: our addresses are others.
func (sa *SA) onAddresses() {
	m := sa.mob
	if m == nil || sa.state != StateEstablished && sa.state != StateDeleting {
		return
	}
	own := sa.ownAddrs()
	here := sa.path.Local.Addr()
	switch {
	case len(own) == 0:
		m.lost = true
		return // nowhere to go; what comes next may be better
	case sa.state == StateDeleting:
		if p := sa.paths(); len(p) > 0 && !slices.Contains(own, here) {
			sa.path = p[0] // the peer shall hear of the end
		}
	case !sa.initiator && here != m.chosen && slices.Contains(own, m.chosen):
		sa.answerFrom(m.chosen) // it is back, and maybe the initiator never noticed
	case sa.initiator && m.lost && slices.Contains(own, here):
		sa.changePath(sa.path) // the same address, but maybe not the same network: with a NAT in front, say
	case slices.Contains(own, here):
		sa.cur.enqueue(&addressesTask{})
	case sa.initiator:
		if p := sa.paths(); len(p) > 0 {
			sa.changePath(p[0])
		}
	default:
		// Section 3.5: where the source address is gone, the responder may change it on its own.
		i := slices.IndexFunc(own, func(a netip.Addr) bool { return a.Is4() == here.Is4() })
		if i >= 0 {
			sa.answerFrom(own[i])
		}
	}
}

// answerFrom gives a responder another source address.
func (sa *SA) answerFrom(a netip.Addr) {
	sa.path.Local = netip.AddrPortFrom(a, sa.path.Local.Port())
	if sa.mob.checking {
		sa.mob.data.Local = sa.path.Local
	}
	sa.tellPath()
	sa.cur.enqueue(&addressesTask{})
}

// paths are the pairs of addresses that an initiator can use, the best first: those to the peer's
// address in use, from the address that the machine would send from.
func (sa *SA) paths() []Path {
	m := sa.mob
	remotes := []netip.AddrPort{sa.path.Remote}
	if m.from.IsValid() && m.from != sa.path.Remote && usableAddr(m.from.Addr()) && sa.mayMove(m.from.Addr()) {
		remotes = append(remotes, m.from)
	}
	// The port that a NAT gives one address is not that of another one.
	add := func(a netip.Addr) {
		if r := netip.AddrPortFrom(a, m.port); !slices.Contains(remotes, r) {
			remotes = append(remotes, r)
		}
	}
	add(sa.path.Remote.Addr())
	for _, r := range sa.peer.Remote {
		if r.Port() == 0 || r.Port() == portIKE || r.Port() == portNATT {
			add(r.Addr())
		}
	}
	for _, a := range m.peerAddrs {
		if sa.mayMove(a) {
			add(a)
		}
	}
	own := sa.ownAddrs()
	var out []Path
	for _, r := range remotes {
		var best netip.Addr
		if f := sa.cfg.SourceAddr; f != nil {
			best = f(r.Addr())
		}
		for pass := range 2 {
			for _, l := range own {
				if l.Is4() == r.Addr().Is4() && (l == best) == (pass == 0) {
					out = append(out, Path{Local: netip.AddrPortFrom(l, sa.path.Local.Port()), Remote: r, Encap: sa.path.Encap})
				}
			}
		}
	}
	return out
}

// changePath changes the path of an initiator and tells the peer (section 3.5). Data follows at once when
// the peer's address stays, which was proved to work, else when the peer has answered from there.
func (sa *SA) changePath(p Path) {
	m := sa.mob
	m.lost = false
	sa.keepData(p)
	sa.path = p
	m.seq++
	if !m.checking {
		sa.tellPath()
	}
	sa.update()
}

// update sends UPDATE_SA_ADDRESSES before anything else that waits.
func (sa *SA) update() {
	is := func(t task) bool { _, ok := t.(*updateTask); return ok }
	if !slices.ContainsFunc(sa.cur.queue, is) {
		sa.cur.queue = append([]task{&updateTask{}}, sa.cur.queue...)
	}
}

// keepData has data go on by the path before until p is checked, if p leads to another address.
func (sa *SA) keepData(p Path) {
	m := sa.mob
	if !m.checking && p.Remote.Addr() != sa.path.Remote.Addr() {
		m.checking, m.data, m.dataNAT = true, sa.path, sa.nat
	}
}

func (sa *SA) tellPath() {
	id, path := sa.id, sa.espPath()
	sa.tell(func(o Owner) { o.PathChanged(id, path) })
}

// checked: the peer has answered from the address in use.
func (sa *SA) checked() {
	sa.mob.checking = false
	sa.tellPath()
}

// cookie2 is COOKIE2 of a request, which the answer must repeat (section 3.7).
type cookie2 []byte

func (c *cookie2) add(sa *SA, out *outgoing) bool {
	*c = make([]byte, cookie2Size)
	if _, err := io.ReadFull(sa.host.rand(), *c); err != nil {
		sa.fail(err)
		return false
	}
	out.notify(message.NotifyCookie2, *c)
	return true
}

// verify closes the IKE SA of a peer that answers what it has not seen: MUST, section 3.7.
func (c cookie2) verify(sa *SA, in *parsed) bool {
	if n := in.notify(message.NotifyCookie2); n != nil && subtle.ConstantTimeCompare(n.Data, c) == 1 {
		return true
	}
	e := refused(CodeSyntax, -1, nil, "the answer does not hold the COOKIE2 of the request")
	sa.refuse(e)
	sa.terminate(Reason{Code: ReasonProtocol, Text: e.Error(), Remote: true})
	return false
}

// updateTask is UPDATE_SA_ADDRESSES.
type updateTask struct {
	seq      uint64
	path     Path
	cookie   cookie2
	repeated bool
}

func (t *updateTask) build(sa *SA, g *generation) (uint8, *outgoing, bool) {
	if sa.mob == nil || sa.state != StateEstablished {
		return 0, nil, false
	}
	t.seq, t.path = sa.mob.seq, sa.path
	out := newOutgoing().notify(message.NotifyUpdateSAAddresses, nil)
	sa.addNATDetection(out, g, sa.path)
	if sa.addAddresses(out) == 0 {
		out.notify(message.NotifyNoAdditionalAddresses, nil)
	}
	return exchangeInformational, out, t.cookie.add(sa, out)
}

// addNATDetection adds what NAT detection needs of a message by path.
func (sa *SA) addNATDetection(out *outgoing, g *generation, p Path) {
	src := natHash(g.spiI, g.spiR, p.Local)
	if sa.peer.ForceEncap {
		src = natHash(g.spiI, g.spiR, netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	}
	out.notify(message.NotifyNATDetectionSourceIP, src)
	out.notify(message.NotifyNATDetectionDestinationIP, natHash(g.spiI, g.spiR, p.Remote))
}

func (t *updateTask) done(sa *SA, g *generation, in *parsed) {
	m := sa.mob
	if sa.state != StateEstablished || !t.cookie.verify(sa, in) || m.seq != t.seq {
		return // the next update is under way
	}
	if in.has(message.NotifyUnacceptableAddresses) || in.has(message.NotifyUnexpectedNATDetected) {
		sa.refuse(refused(CodePeerRefused, -1, nil, "the peer does not take the addresses %v", t.path))
		if m.refused++; m.refused >= len(sa.paths()) || !sa.probe() {
			sa.est.reauthBy(sa.now) // where we are now we have to prove ourselves anew
		}
		return
	}
	m.probing, m.refused = 0, 0
	sa.takeNATDetection(g, in)
	sa.checked()
	if t.repeated && sa.nat.local {
		// The answer is that to the copy that came first, with the source that this one had. A NAT may
		// have another port by now, or none may be there at all.
		sa.update()
	}
}

// retire sends it again: the peer may never have got it before it rekeyed the IKE SA.
func (t *updateTask) retire(sa *SA) {
	if sa.mob != nil && sa.state == StateEstablished {
		sa.update()
	}
}

// takeNATDetection finds out anew which end is behind a NAT, and how the peer sees us.
func (sa *SA) takeNATDetection(g *generation, in *parsed) {
	n := in.notify(message.NotifyNATDetectionDestinationIP)
	if n == nil || !in.has(message.NotifyNATDetectionSourceIP) {
		return
	}
	sa.nat = detectNAT(in, g.spiI, g.spiR, sa.path, sa.peer.ForceEncap)
	sa.mob.seen, sa.mob.seenSPI = bytes.Clone(n.Data), g.spiI
}

// probe tries the next path, after one that leads nowhere (section 3.10). false: there is no other.
func (sa *SA) probe() bool {
	m := sa.mob
	paths := sa.paths()
	// In an order that does not depend on the path in use, so that each one is tried in turn.
	slices.SortStableFunc(paths, func(x, y Path) int {
		return cmp.Or(x.Remote.Compare(y.Remote), x.Local.Addr().Compare(y.Local.Addr()))
	})
	if len(paths) == 0 || len(paths) == 1 && paths[0] == sa.path {
		return false
	}
	p := paths[m.probing%len(paths)]
	if m.probing++; p == sa.path {
		p = paths[m.probing%len(paths)]
		m.probing++
	}
	sa.changePath(p)
	return true
}

// repeated is asked before a request is sent again for the nth time: it may go by another path. more
// is how many repetitions more there are.
func (sa *SA) repeated(n int) (more int) {
	switch {
	case sa.mob == nil || sa.state != StateEstablished:
		return 0
	case !sa.initiator:
		return mobikePatience
	}
	paths := len(sa.paths())
	if n >= probeAfter {
		sa.probe()
	}
	return min(2*paths, 2*maxPeerAddrs)
}

// found: an answer came while several paths were tried. It came by one that works.
func (sa *SA) found(p Path) {
	m := sa.mob
	if m == nil || m.probing == 0 || !sa.initiator || sa.state != StateEstablished {
		return
	}
	m.probing = 0
	if p.Local.Addr().IsUnspecified() {
		p.Local = sa.path.Local
	}
	if p != sa.path && slices.Contains(sa.paths(), p) {
		sa.changePath(p)
	}
}

// addressesTask tells the peer our addresses (section 3.6).
type addressesTask struct{ cookie cookie2 }

func (t *addressesTask) build(sa *SA, _ *generation) (uint8, *outgoing, bool) {
	if sa.mob == nil || sa.state != StateEstablished {
		return 0, nil, false
	}
	out := newOutgoing()
	if sa.addAddresses(out) == 0 {
		out.notify(message.NotifyNoAdditionalAddresses, nil)
	}
	return exchangeInformational, out, t.cookie.add(sa, out)
}

func (t *addressesTask) done(sa *SA, _ *generation, in *parsed) {
	if sa.state == StateEstablished && t.cookie.verify(sa, in) && in.has(message.NotifyUnacceptableAddresses) {
		sa.refuse(refused(CodePeerRefused, -1, nil, "the peer does not take the address %v", sa.path.Local))
		sa.est.reauthBy(sa.now)
	}
}

func (t *addressesTask) retire(sa *SA) {
	if sa.mob != nil && sa.state == StateEstablished {
		sa.cur.enqueue(&addressesTask{})
	}
}

// routableTask checks that the peer gets what is sent to its new address (section 3.7).
type routableTask struct {
	seq    uint64
	cookie cookie2
}

func (t *routableTask) build(sa *SA, _ *generation) (uint8, *outgoing, bool) {
	if sa.mob == nil || sa.state != StateEstablished || !sa.mob.checking {
		return 0, nil, false
	}
	t.seq = sa.mob.seq
	out := newOutgoing()
	return exchangeInformational, out, t.cookie.add(sa, out)
}

func (t *routableTask) retire(sa *SA) {
	if sa.mob != nil && sa.state == StateEstablished {
		sa.cur.enqueue(&routableTask{})
	}
}

func (t *routableTask) done(sa *SA, _ *generation, in *parsed) {
	if sa.state != StateEstablished || !t.cookie.verify(sa, in) {
		return
	}
	switch {
	case !sa.mob.checking:
	case t.seq != sa.mob.seq:
		sa.cur.enqueue(&routableTask{}) // it went to several addresses: which one answered is not known
	default:
		sa.checked()
	}
}

// onMobike takes what an INFORMATIONAL request says about addresses, and adds the answer. false: the
// addresses are refused, and nothing else of the request counts.
func (sa *SA) onMobike(g *generation, in *parsed, out *outgoing) bool {
	if n := in.notify(message.NotifyCookie2); n != nil && len(n.Data) >= 8 && len(n.Data) <= 64 {
		out.notify(message.NotifyCookie2, n.Data) // copied as it is, with MOBIKE or without
	}
	m := sa.mob
	if m == nil || in.from == nil {
		return true
	}
	from := *in.from
	if from.Local.Addr().IsUnspecified() {
		from.Local = sa.path.Local
	}
	m.from = from.Remote
	list, listed := peerAddrsOf(in)
	update := in.has(message.NotifyUpdateSAAddresses)
	if n := in.notify(message.NotifyNoNATsAllowed); n != nil && (listed || update) && !bytes.Equal(n.Data, noNATs(from)) {
		sa.refuse(refused(CodeUnexpected, -1, nil, "the peer allows no NAT, and its packet came by %v", from))
		out.notify(message.NotifyUnexpectedNATDetected, nil)
		return false
	}
	if update && sa.initiator {
		update = false // the initiator decides (section 3.5)
		sa.refuse(refused(CodeUnexpected, -1, nil, "UPDATE_SA_ADDRESSES from the original responder"))
	}
	away := listed && sa.initiator && from.Remote.Addr() != sa.path.Remote.Addr() && !slices.Contains(list, sa.path.Remote.Addr())
	if update && (!usableAddr(from.Remote.Addr()) && from.Remote.Addr() != sa.path.Remote.Addr() || sa.peer.Local.IsValid() && sa.peer.Local != from.Local.Addr()) ||
		(update || away) && !sa.mayMove(from.Remote.Addr()) {
		sa.refuse(refused(CodeUnexpected, -1, nil, "the peer is at %v now, which connection %q does not allow without new proofs", from, sa.peer.Name))
		out.notify(message.NotifyUnacceptableAddresses, nil)
		return false
	}
	if listed {
		// Section 3.6: the one in the IP header is of the set.
		m.peerAddrs = append(list, from.Remote.Addr())
	}
	nat := in.has(message.NotifyNATDetectionSourceIP) && in.has(message.NotifyNATDetectionDestinationIP)
	if nat {
		sa.addNATDetection(out, g, from)
	}
	switch {
	case update:
		sa.keepData(from)
		if from.Remote.Addr() != sa.path.Remote.Addr() {
			m.seq++
		}
		sa.path, m.chosen = from, from.Local.Addr()
		if nat {
			sa.nat = detectNAT(in, g.spiI, g.spiR, sa.path, sa.peer.ForceEncap)
		}
		if m.checking {
			sa.cur.enqueue(&routableTask{})
		} else {
			sa.tellPath()
		}
	case away:
		sa.changePath(from) // the responder has lost the address in use
	}
	return true
}

// noNATs is the content of NO_NATS_ALLOWED in a message that came by a path (section 4.2.6).
func noNATs(p Path) []byte {
	b := append(p.Remote.Addr().AsSlice(), p.Local.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, p.Remote.Port())
	return binary.BigEndian.AppendUint16(b, p.Local.Port())
}

// asksNAT tells whether a liveness check is to find out whether the NAT in front of us has changed, or
// there is one now: what we send gets through it, and nothing comes back to where the peer believes us
// (section 3.8).
func (sa *SA) asksNAT() bool { return sa.mob != nil && sa.initiator }

// natChanged takes the answer to that.
func (sa *SA) natChanged(g *generation, in *parsed) {
	n := in.notify(message.NotifyNATDetectionDestinationIP)
	if n == nil || !sa.asksNAT() || sa.state != StateEstablished {
		return
	}
	was, known := sa.mob.seen, sa.mob.seenSPI == g.spiI
	if !sa.nat.local {
		was, known = natHash(g.spiI, g.spiR, sa.path.Local), true
	}
	if !known || !bytes.Equal(was, n.Data) {
		sa.changePath(sa.path)
	}
}

// dataPath is the path of the CHILD SAs, where p and nat are those of the IKE SA.
func (m *mobike) dataPath(p Path, nat natState) (Path, natState) {
	if m != nil && m.checking {
		return m.data, m.dataNAT
	}
	return p, nat
}
