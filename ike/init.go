package ike

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // NAT detection and CERTREQ are SHA-1 by definition (RFC 7296, sections 2.23 and 3.7); neither is a matter of security
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// The ports of IKE (RFC 7296, section 2) and of NAT traversal (section 2.23).
const (
	portIKE  = 500
	portNATT = 4500
)

// maxInitRestarts bounds how often one gateway may send us back to the start with COOKIE or
// INVALID_KE_PAYLOAD.
const maxInitRestarts = 8

// handshake is the state from IKE_SA_INIT to the end of the last authentication round.
type handshake struct {
	deadline time.Time // responder: all rounds are done by then, or it ends
	silentBy time.Time // responder: something authentic has come by then, or it ends; zero: no matter

	// Initiator, IKE_SA_INIT.
	gateway   int // of PeerConfig.Remote; -1: SA.target
	restarts  int
	cookie    []byte
	offers    []suite.Offer
	kex       *suite.KeyExchange
	solving   solveState
	locked    *locked   // responder: nothing is computed before a puzzle is solved
	junk      bool      // responder: something came that was not authentic
	giveUp    time.Time // an unauthenticated error answer came; a better one may come until then
	giveUpErr error
	failure   error // what InitiateFailed will say

	ni, nr            []byte
	initReq, initResp []byte   // as sent or received: AUTH covers them
	peerHashes        []uint16 // SIGNATURE_HASH_ALGORITHMS
	peerMethods       []suite.Announcement
	announces         bool // the peer sent SUPPORTED_AUTH_METHODS, whose content is peerMethods
	multipleAuth      bool // the peer announced RFC 4739
	wantOCSP          bool // the peer asked for OCSP responses (RFC 4806)
	redirectable      bool // responder: the peer announced RFC 5685
	initialContact    bool // responder: the peer sent INITIAL_CONTACT
	inter             intermediate
	session           *session // that is being resumed (RFC 5723)
	ppk               ppkState

	authState
}

func (h *handshake) wipe() {
	if h.kex != nil {
		h.kex.Wipe()
	}
	h.solving.stop()
	if h.locked != nil {
		h.locked.kex.Wipe()
	}
	h.inter.wipe()
	h.ppk.wipe()
	h.session.wipe()
}

// silentUntil ends the IKE SA when nothing authentic has come until patience is over (RFC 8019, section
// 4.1); 0: there is no need.
func (h *handshake) silentUntil(now time.Time, patience time.Duration) {
	if patience > 0 {
		h.silentBy = now.Add(patience)
	}
}

// newInitiator makes the IKE SA that evInitiate starts.
func newInitiator(h host, peer *PeerConfig) *SA {
	return &SA{host: h, cfg: h.config(), id: h.said(), initiator: true, peer: peer}
}

// onInitiate makes a CHILD SA, and the IKE SA first when this is the beginning.
func (sa *SA) onInitiate(ev evInitiate) {
	name := ev.child
	sa.notePacket(ev)
	switch {
	case sa.state == StateInit && sa.handshake == nil:
		sa.begun = sa.now
		sa.wanted = []string{name}
		sa.handshake = &handshake{authState: newAuthState()}
		sa.handshake.candidates = alone(sa.peer)
		// Which transport the old one uses says nothing (RFC 9329, section 7.3).
		if sa.target.Remote.IsValid() && (sa.target.Stream == 0 || len(sa.peer.Remote) == 0) {
			sa.handshake.gateway = -1
		}
		sa.startResume()
	case sa.est == nil:
		if !slices.Contains(sa.wanted, name) {
			sa.wanted = append(sa.wanted, name)
		}
	default:
		sa.wantChild(name)
	}
}

// aim sets the path to the current gateway, over UDP.
func (sa *SA) aim() {
	sa.dropStreams()
	h := sa.handshake
	var remote netip.AddrPort
	if h.gateway < 0 {
		remote = sa.target.Remote
	} else {
		remote = sa.peer.Remote[h.gateway]
	}
	if remote.Port() == 0 {
		remote = netip.AddrPortFrom(remote.Addr(), portIKE)
	}
	if h.gateway < 0 && sa.target.Stream != 0 {
		remote = netip.AddrPortFrom(remote.Addr(), portIKE)
	}
	local := sa.peer.Local
	if a := sa.target.Local.Addr(); h.gateway < 0 && a.IsValid() && !a.IsUnspecified() {
		local = sa.target.Local.Addr()
	}
	if !local.IsValid() && sa.cfg.SourceAddr != nil {
		local = sa.cfg.SourceAddr(remote.Addr())
	}
	if !local.IsValid() {
		local = netip.IPv4Unspecified()
		if remote.Addr().Is6() {
			local = netip.IPv6Unspecified()
		}
	}
	sa.path = Path{Local: netip.AddrPortFrom(local, portIKE), Remote: remote}
	if remote.Port() != portIKE {
		// Another port than 500 is a NAT traversal port: the non-ESP marker is used there.
		sa.path.Local, sa.path.Encap = netip.AddrPortFrom(local, portNATT), true
	}
}

// begin makes the generation, without keys yet, of the next attempt, and its nonce.
func (sa *SA) begin() error {
	h := sa.handshake
	h.cookie, h.restarts = nil, 0
	h.solving.stop()
	h.solving = solveState{}
	spi, err := sa.host.newIKESPI()
	if err != nil {
		return err
	}
	g := &generation{sa: sa, initiator: true, spiI: spi, created: sa.now}
	sa.gens, sa.cur = []*generation{g}, g
	h.ni, err = sa.newNonce()
	return err
}

// startInit sends the first IKE_SA_INIT request to the current gateway, or opens a TCP connection for it.
func (sa *SA) startInit() {
	sa.aim()
	if !sa.onlyTCP() {
		sa.beginInit()
	}
}

// beginInit sends the first IKE_SA_INIT request on the path.
func (sa *SA) beginInit() {
	h := sa.handshake
	err := sa.begin()
	if err != nil {
		sa.fail(err)
		return
	}
	if h.offers, err = suite.Offers(sa.peer.Proposals, nil); err != nil {
		sa.fail(err)
		return
	}
	sa.tryInit(sa.peer.Proposals[0].KE[0])
}

// tryInit sends IKE_SA_INIT with a key exchange of the given group.
func (sa *SA) tryInit(group uint16) {
	h, g := sa.handshake, sa.cur
	h.giveUp, h.giveUpErr = time.Time{}, nil
	if h.kex == nil || h.kex.ID() != group {
		if h.kex != nil {
			h.kex.Wipe()
		}
		var err error
		if h.kex, err = suite.NewInitiator(group, sa.host.rand()); err != nil {
			sa.fail(err)
			return
		}
	}
	out := newOutgoing()
	if h.cookie != nil {
		// RFC 7296, section 2.6: the cookie comes first, everything else is as it was.
		out.notify(message.NotifyCookie, h.cookie)
	}
	if h.solving.solution != nil {
		out.add(&message.PuzzleSolution{Data: h.solving.solution}) // RFC 8019, section 7.1.2
	}
	out.offers(h.offers...).ke(group, h.kex.Public()).nonce(h.ni)
	sa.addInitNotifies(out, g.spiI, 0, sa.path, sa.claimsNAT())
	out.notify(notifyIntermediate, nil)
	sa.announcePPK(out)
	sa.announceRedirect(out)
	for _, v := range sa.cfg.VendorIDs {
		out.add(&message.VendorID{Data: v})
	}
	raw, err := message.Encode(message.Header{
		SPIi: spiBytes(g.spiI), Exchange: message.ExchangeIKESAInit, Flags: message.FlagInitiator,
	}, out.ps)
	if err != nil {
		sa.fail(fmt.Errorf("ike: encoding IKE_SA_INIT: %w", err))
		return
	}
	h.initReq = raw
	g.sendID = 0
	g.launch(initTask{}, exchangeSAInit, [][]byte{raw})
}

// initTask stands for the IKE_SA_INIT request; its answers are taken by onInitDatagram, because
// they are not protected.
type initTask struct{}

func (initTask) build(*SA, *generation) (uint8, *outgoing, bool) { return 0, nil, false }
func (initTask) done(*SA, *generation, *parsed)                  {}

// addInitNotifies adds what both sides announce in IKE_SA_INIT.
func (sa *SA) addInitNotifies(out *outgoing, spiI, spiR uint64, p Path, force bool) {
	src := natHash(spiI, spiR, p.Local)
	if force {
		// An address that is not ours: the peer finds a NAT in front of us and encapsulates ESP.
		src = natHash(spiI, spiR, netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	}
	out.notify(message.NotifyNATDetectionSourceIP, src)
	out.notify(message.NotifyNATDetectionDestinationIP, natHash(spiI, spiR, p.Remote))
	out.notify(message.NotifyFragmentationSupported, nil)
	var hashes []message.HashAlgorithm
	for _, id := range suite.SignatureHashes() {
		hashes = append(hashes, message.HashAlgorithm(id))
	}
	out.add(message.NewSignatureHashAlgorithms(hashes...))
}

func natHash(spiI, spiR uint64, a netip.AddrPort) []byte {
	h := sha1.Sum(message.AppendNATDetection(nil, spiBytes(spiI), spiBytes(spiR), a)) //nolint:gosec // see the import
	return h[:]
}

// detectNAT compares what the peer saw with what we see (RFC 7296, section 2.23).
func detectNAT(in *parsed, spiI, spiR uint64, p Path, force bool) natState {
	var n natState
	var sources [][]byte
	for _, x := range in.notifies {
		switch x.Type {
		case message.NotifyNATDetectionSourceIP:
			sources = append(sources, x.Data)
		case message.NotifyNATDetectionDestinationIP:
			n.local = n.local || !bytes.Equal(x.Data, natHash(spiI, spiR, p.Local))
		default:
		}
	}
	if len(sources) > 0 {
		want := natHash(spiI, spiR, p.Remote)
		n.remote = !slices.ContainsFunc(sources, func(s []byte) bool { return bytes.Equal(s, want) })
	}
	// Only a peer that takes part can be floated to the other port.
	if force && len(sources) > 0 {
		n.local = true
	}
	return n
}

// takeInitNotifies keeps what the peer announced in IKE_SA_INIT.
func (sa *SA) takeInitNotifies(in *parsed) {
	h := sa.handshake
	sa.fragment = in.has(message.NotifyFragmentationSupported)
	h.multipleAuth = h.multipleAuth || in.has(message.NotifyMultipleAuthSupported)
	h.wantOCSP = h.wantOCSP || in.wantOCSP
	if n := in.notify(message.NotifySignatureHashAlgorithms); n != nil {
		if ids, err := n.HashAlgorithms(); err == nil {
			for _, id := range ids {
				h.peerHashes = append(h.peerHashes, uint16(id))
			}
		}
	}
}

func (sa *SA) newNonce() ([]byte, error) {
	n := make([]byte, suite.NonceLen)
	if _, err := io.ReadFull(sa.host.rand(), n); err != nil {
		return nil, fmt.Errorf("ike: random source: %w", err)
	}
	return n, nil
}

// onInitDatagram takes an IKE_SA_INIT message: the answer to ours, or the repetition of the
// request that made us.
func (sa *SA) onInitDatagram(ev evDatagram) {
	g := sa.cur
	if !ev.head.response {
		h := sa.handshake
		// RFC 7296, section 2.1: the same request gets the same answer.
		if !sa.initiator && h != nil && bytes.Equal(ev.msg, h.initReq) {
			sa.send(ev.path, [][]byte{h.initResp})
		}
		return
	}
	if sa.state != StateInit || !sa.initiator || g == nil || g.req == nil ||
		ev.head.spiI != g.spiI || ev.head.id != 0 || ev.head.fromInitiator {
		return
	}
	if ev.head.exchange != g.req.exchange {
		return
	}
	m, err := message.Parse(ev.msg)
	if err != nil || m.CheckOuter() != nil {
		return // anybody can have sent it: wait for a better one
	}
	in, err := sort(m.Payloads)
	if err == nil && g.req.exchange == exchangeResume {
		if message.FormResumeResponse.Check(m.Payloads) == nil {
			sa.onResumeResponse(ev, in)
		}
		return
	}
	if err != nil || message.FormIKESAInitResponse.Check(m.Payloads) != nil {
		return
	}
	sa.onInitResponse(ev, in)
}

func (sa *SA) onInitResponse(ev evDatagram, in *parsed) {
	h, g := sa.handshake, sa.cur
	restart := func() bool {
		h.restarts++
		return h.restarts <= maxInitRestarts
	}
	if h.solving.stopped != nil && in.sa == nil {
		return // only the true answer makes it worth to stop, and anybody can have sent the rest
	}
	if n := in.notify(message.NotifyCookie); n != nil {
		// RFC 7296, section 2.6: 1 to 64 octets.
		if len(n.Data) >= 1 && len(n.Data) <= 64 && !bytes.Equal(n.Data, h.cookie) && restart() {
			h.cookie = bytes.Clone(n.Data)
			h.solving.solution = nil
			if puzzle := in.notify(message.NotifyPuzzle); puzzle != nil {
				sa.solveInit(puzzle)
			} else {
				sa.tryInit(h.kex.ID())
			}
		}
		return
	}
	if in.sa == nil && in.has(message.NotifyPuzzle) {
		return // RFC 8019, section 7.1.2: a puzzle without a cookie
	}
	if n := in.notify(message.NotifyRedirect); n != nil && sa.peer.redirectable() {
		sa.onInitRedirect(n)
		return
	}
	if n := in.errorNotify(); n != nil {
		if n.Type == message.NotifyInvalidKEPayload {
			// Section 2.7: only a group that we offered, so that nobody talks us into a weak one.
			m, err := n.KEMethod()
			if err == nil && uint16(m) == h.kex.ID() {
				return // it asks for what we have sent meanwhile: a repeated answer to the request before
			}
			if err == nil && sa.offersGroup(uint16(m)) && restart() {
				sa.tryInit(uint16(m))
				return
			}
		}
		// Not authenticated: it may be forged. Wait a little for the true answer (section 2.21.1).
		if h.giveUp.IsZero() {
			h.giveUp = sa.now.Add(sa.patienceForBetter())
			h.giveUpErr = peerError(n, "IKE_SA_INIT")
		}
		return
	}
	if in.sa == nil || in.ke == nil || in.nonce == nil || ev.head.spiR == 0 {
		return
	}
	chosen, err := suite.Accept(h.offers, in.sa)
	if err != nil || chosen.KE != h.kex.ID() || uint16(in.ke.Method) != chosen.KE {
		sa.later(refused(CodeNoProposal, -1, err, "the answer to IKE_SA_INIT is no choice of what we offered: offered %s, answered %s", joinOffers(h.offers), joinOffers(in.sa)))
		return
	}
	if chosen.HasAdditionalKE() && !in.has(notifyIntermediate) {
		sa.later(refused(CodeNoProposal, -1, nil, "the peer chose %s without announcing IKE_INTERMEDIATE, which the additional key exchanges need", chosen))
		return
	}
	if err := sa.proposePPK(in); err != nil {
		sa.later(err)
		return
	}
	prf, err := suite.NewPRF(chosen.PRF)
	if err == nil {
		err = prf.CheckNonce(in.nonce)
	}
	if err != nil {
		sa.later(refused(CodeSyntax, -1, err, "the answer to IKE_SA_INIT has a bad nonce"))
		return
	}
	shared, err := h.kex.Finish(in.ke.Data)
	if err != nil {
		sa.later(refused(CodeBadKE, -1, err, "the answer to IKE_SA_INIT has bad key exchange data"))
		return
	}
	defer shared.Wipe()
	g.spiR, g.chosen = ev.head.spiR, chosen
	if err := g.protect(suite.SKEYSEED(prf, shared, h.ni, in.nonce), h.ni, in.nonce); err != nil {
		sa.fail(err)
		return
	}
	h.kex.Wipe()
	h.giveUp = time.Time{}
	h.inter.methods = chosen.AdditionalKE()
	sa.takeInitResponse(ev, in)
	h.takeAnnouncements(in)
	h.childless = sa.peer.Childless && in.has(message.NotifyChildlessIKEv2Supported)
	h.solving.stop()
	h.solving.solution = nil
	sa.solveAuth(in.notify(message.NotifyPuzzle))
}

// takeInitResponse keeps what the first answer says beside the keys, and finds the path.
func (sa *SA) takeInitResponse(ev evDatagram, in *parsed) {
	h, g := sa.handshake, sa.cur
	h.nr, h.initResp = in.nonce, ev.msg
	g.req = nil
	if sa.stream.opening != 0 {
		sa.do(actCloseStream{sa.stream.opening}) // UDP was faster
		sa.stream.opening = 0
	}
	sa.takeInitNotifies(in)
	sa.lastSeen = sa.now
	told := sa.path.Local
	if !ev.path.Local.Addr().IsUnspecified() && ev.path.Local.IsValid() {
		// Now it is known which of our addresses the packets leave from. If it is not the one that
		// we told the peer, the peer sees a NAT, and we must agree that there is one.
		sa.path.Local = ev.path.Local
	}
	force := sa.claimsNAT() || sa.path.Stream == 0 && (told.Addr().IsUnspecified() || told != sa.path.Local)
	sa.nat = detectNAT(in, g.spiI, g.spiR, sa.path, force)
	sa.float(sa.peer.Mobike && in.has(message.NotifyNATDetectionSourceIP))
	sa.state = StateAuth
}

// later keeps an error of an unauthenticated answer: the true answer may still come.
func (sa *SA) later(err *RefusedError) {
	if h := sa.handshake; h.giveUp.IsZero() {
		h.giveUp, h.giveUpErr = sa.now.Add(sa.patienceForBetter()), err
	}
}

// float moves to port 4500 when there is a NAT (RFC 7296, section 2.23), or may come to be one (RFC
// 4555, section 3.3).
func (sa *SA) float(always bool) {
	if sa.path.Encap || sa.path.Stream != 0 || !sa.nat.local && !sa.nat.remote && !always {
		return
	}
	sa.path = Path{
		Local:  netip.AddrPortFrom(sa.path.Local.Addr(), portNATT),
		Remote: netip.AddrPortFrom(sa.path.Remote.Addr(), portNATT),
		Encap:  true,
	}
}

func (sa *SA) offersGroup(group uint16) bool {
	return slices.ContainsFunc(sa.peer.Proposals, func(p suite.Proposal) bool { return slices.Contains(p.KE, group) })
}

// initFailed: the gateway refused IKE_SA_INIT.
func (sa *SA) initFailed(err error) {
	var r *RefusedError
	if errors.As(err, &r) {
		sa.refuse(r)
	} else {
		sa.refuse(refused(CodePeerRefused, -1, err, "%v refused IKE_SA_INIT; we offered %s", sa.path.Remote, joinOffers(sa.handshake.offers)))
	}
	sa.nextGateway(err)
}

// nextGateway tries the next address of the peer, or gives up with err.
func (sa *SA) nextGateway(err error) {
	h := sa.handshake
	h.gateway++
	if h.failure == nil {
		h.failure = fmt.Errorf("%v: %w", sa.path.Remote, err)
	} else {
		h.failure = fmt.Errorf("%w; %v: %w", h.failure, sa.path.Remote, err)
	}
	if h.gateway < len(sa.peer.Remote) {
		sa.dropHandshake()
		h.kex, h.session, h.giveUp = nil, nil, time.Time{}
		sa.startInit()
		return
	}
	sa.close(Reason{Code: ReasonPeerDead, Text: h.failure.Error()})
}

// chosenOffer is what a responder chose from an IKE_SA_INIT request.
type chosenOffer struct {
	chosen suite.Chosen
	offers []suite.Offer
}

// acceptFresh judges the IKE_SA_INIT request of a stranger without keeping any state: syntax,
// proposal, group, and once more whether it has to do anything for it. Only then an IKE SA is made.
func (ep *Endpoint) acceptFresh(p Path, h header, msg []byte, adm admission) {
	now := ep.cfg.Clock.Now()
	m, err := message.Parse(msg)
	if err != nil || m.CheckOuter() != nil {
		if payload, ok := criticalPayload(err); ok {
			// RFC 7296, section 2.5.
			ep.answerInit(p, h, message.NewNotify(message.NotifyUnsupportedCriticalPayload, payload))
		}
		return
	}
	in, err := sort(m.Payloads)
	form := message.FormIKESAInitRequest
	if h.exchange == exchangeResume {
		form = message.FormResumeRequest
	}
	if err != nil || form.Check(m.Payloads) != nil {
		// A stranger learns nothing about what was wrong, and costs nothing.
		ep.answerInit(p, h, message.NewNotify(message.NotifyInvalidSyntax))
		return
	}
	if !adm.judged {
		ep.mu.Lock()
		pr := ep.pressureLocked(now, p, int(ep.fresh.Load())-1)
		ep.mu.Unlock()
		if pr.level > DefenceNone {
			var ok bool
			if adm, ok = ep.judge(p, h, msg, pr); !ok {
				return
			}
		}
	}
	set := ep.peers.Load()
	if h.exchange == exchangeResume {
		ep.acceptResume(now, p, h, msg, in, set, adm)
		return
	}
	from := set.from(p)
	if len(from.roots) > 0 && ep.redirectFresh(p, h, in) {
		return
	}
	if len(from.roots) == 0 {
		ep.answerInit(p, h, message.NewNotify(message.NotifyNoProposalChosen))
		ep.refuseStranger(p, CodeNoConnection, fmt.Sprintf("no connection is configured for %v", p))
		return
	}
	offer, err := chooseOffer(from.kinds, in)
	if err != nil {
		ep.answerInit(p, h, message.NewNotify(message.NotifyNoProposalChosen))
		ep.refuseStranger(p, CodeNoProposal, err.Error())
		return
	}
	if offer.chosen.KE != uint16(in.ke.Method) {
		// RFC 7296, sections 1.2 and 2.7.
		ep.answerInit(p, h, message.NewInvalidKE(message.KEMethod(offer.chosen.KE)))
		return
	}
	b, known, err := ep.admitHalfOpen(p, h.spiI, adm, newResponder)
	switch {
	case err != nil:
		if !errors.Is(err, ErrClosed) && !errors.Is(err, errSpent) {
			ep.refuseStranger(p, CodeFlooding, err.Error())
		}
	case known:
		b.post(evDatagram{path: p, head: h, msg: msg})
	default:
		b.postHere(evFresh{path: p, raw: msg, req: in, offer: offer, set: set, from: from, patience: adm.patience, puzzle: adm.puzzle})
	}
}

// chooseOffer chooses the IKE proposal. Who the peer is, is not known yet, so what each connection
// allows is tried in turn. The one that it turns out to be may not allow the choice (see establish).
func chooseOffer(kinds []*PeerConfig, in *parsed) (chosenOffer, error) {
	opt := suite.SelectOptions{PreferKE: uint16(in.ke.Method), WithoutAddKE: !in.has(notifyIntermediate)}
	var first error
	for _, c := range kinds {
		chosen, err := suite.Select(c.Proposals, in.sa, opt)
		if err == nil {
			return chosenOffer{chosen, in.sa}, nil
		}
		if first == nil {
			first = err
		}
	}
	return chosenOffer{}, first
}

// answerInit answers an IKE_SA_INIT request without an IKE SA: the responder's SPI stays zero.
func (ep *Endpoint) answerInit(p Path, h header, n *message.Notify) {
	raw, err := message.Encode(message.Header{
		SPIi: spiBytes(h.spiI), Exchange: message.ExchangeType(h.exchange), Flags: message.FlagResponse, MessageID: h.id,
	}, message.Payloads{n})
	if err == nil {
		ep.cfg.Send(p, raw)
	}
}

// answerUnknownSPI tells the sender of a request that we have no such IKE SA, so that it finds
// out that we restarted. It is a hint only: outside of any IKE SA, and at a bounded rate
// (RFC 7296, sections 1.5 and 2.21.4).
func (ep *Endpoint) answerUnknownSPI(p Path, h header) {
	ep.mu.Lock()
	ok := ep.invalidSPIAt.allow(ep.cfg.Clock.Now())
	// The token of an IKE SA that stands must not be had for asking: a wrong I flag leads here, too.
	standing := ep.spis[h.spiI] != nil || ep.spis[h.spiR] != nil
	ep.mu.Unlock()
	if !ok {
		return
	}
	flags := message.FlagResponse
	if !h.fromInitiator {
		flags |= message.FlagInitiator
	}
	ps := message.Payloads{message.NewNotify(message.NotifyInvalidIKESPI)}
	if t := ep.cfg.crashToken(h.spiI, h.spiR, !h.fromInitiator); t != nil && !standing && h.spiI != 0 && h.spiR != 0 && h.length >= minCrashedRequest {
		ps = append(ps, crashNotify(t))
	}
	raw, err := message.Encode(message.Header{
		SPIi: spiBytes(h.spiI), SPIr: spiBytes(h.spiR), Exchange: message.ExchangeType(h.exchange), Flags: flags, MessageID: h.id,
	}, ps)
	if err == nil {
		ep.cfg.Send(p, raw)
	}
}

// answerVersion tells the sender of a higher major version which one we speak; IKEv1 is dropped
// (RFC 7296, section 2.5).
func (ep *Endpoint) answerVersion(p Path, h header) {
	if h.major < 2 || h.response {
		return
	}
	ep.mu.Lock()
	ok := ep.invalidSPIAt.allow(ep.cfg.Clock.Now())
	ep.mu.Unlock()
	if !ok {
		return
	}
	flags := message.FlagResponse
	if !h.fromInitiator {
		flags |= message.FlagInitiator
	}
	raw, err := message.Encode(message.Header{
		SPIi: spiBytes(h.spiI), SPIr: spiBytes(h.spiR), Exchange: message.ExchangeType(h.exchange), Flags: flags, MessageID: h.id,
	}, message.Payloads{message.NewNotify(message.NotifyInvalidMajorVersion)})
	if err == nil {
		ep.cfg.Send(p, raw)
	}
}

// newResponder makes the IKE SA that evFresh starts.
func newResponder(b *box) *SA {
	return &SA{host: b, cfg: b.config(), id: b.said(), state: StateInit}
}

// onFresh answers the first message of an IKE SA that acceptFresh let in.
func (sa *SA) onFresh(ev evFresh) {
	sa.begun, sa.path = sa.now, ev.path
	h := &handshake{deadline: sa.now.Add(sa.cfg.HalfOpenTimeout), authState: newAuthState()}
	h.set, h.candidates = ev.set, ev.from.roots
	h.silentUntil(sa.now, ev.patience)
	sa.handshake = h
	stranger := func(code Code, err error) {
		sa.do(actStranger{sa.path, code, err.Error()})
		sa.close(Reason{Code: ReasonProtocol, Text: err.Error()})
	}
	spi, err := sa.host.newIKESPI()
	if err != nil {
		sa.fail(err)
		return
	}
	g := &generation{sa: sa, spiI: spiOf(ev.raw), spiR: spi, chosen: ev.offer.chosen, created: sa.now, recvID: 1}
	sa.gens, sa.cur = []*generation{g}, g
	prf, err := suite.NewPRF(g.chosen.PRF)
	if err != nil {
		sa.fail(err)
		return
	}
	if err := prf.CheckNonce(ev.req.nonce); err != nil {
		stranger(CodeSyntax, err)
		return
	}
	var public []byte
	var shared suite.Secret
	if ev.puzzle.difficulty > 0 && mayLock(g.chosen) {
		if h.locked, err = newLocked(ev.puzzle, g, sa.host.rand(), ev.req.ke.Data); err == nil {
			public = h.locked.kex.Public()
		}
	} else {
		public, shared, err = suite.Respond(g.chosen.KE, sa.host.rand(), ev.req.ke.Data)
	}
	if err != nil {
		stranger(CodeBadKE, err)
		return
	}
	defer shared.Wipe()
	nr, err := sa.newNonce()
	if err == nil && h.locked == nil {
		err = g.protect(suite.SKEYSEED(prf, shared, ev.req.nonce, nr), ev.req.nonce, nr)
	}
	if err != nil {
		sa.fail(err)
		return
	}
	h.ni, h.nr, h.initReq = ev.req.nonce, nr, ev.raw
	force := ev.from.force && ev.path.Stream == 0
	sa.takeInitNotifies(ev.req)
	sa.redirects.from, h.redirectable = takesRedirect(ev.req)
	sa.nat = detectNAT(ev.req, g.spiI, 0, sa.path, force)

	out := newOutgoing().offers(g.chosen.Answer(nil)).ke(g.chosen.KE, public).nonce(nr)
	if ev.req.has(message.NotifyNATDetectionSourceIP) {
		sa.addInitNotifies(out, g.spiI, g.spiR, sa.path, force)
	} else {
		sa.addInitNotifies(out, g.spiI, g.spiR, sa.path, false)
	}
	if h.locked != nil {
		out.add(message.NewPuzzle(message.PRFID(h.locked.prf), h.locked.difficulty)) // RFC 8019, section 7.2.1
	} else if ev.req.has(notifyIntermediate) {
		out.notify(notifyIntermediate, nil)
		h.inter.agreed, h.inter.methods = true, g.chosen.AdditionalKE()
	}
	if h.set.childless {
		out.add(&message.Notify{Type: message.NotifyChildlessIKEv2Supported, Protocol: message.ProtocolIKE}) // RFC 6023, section 4
	}
	if h.set.ppk && ev.req.has(message.NotifyUsePPK) {
		out.notify(message.NotifyUsePPK, nil)
		h.ppk.agreed = true
	}
	out.add(announcements(h.set.psk, h.set.certificate))
	out.notify(message.NotifyMultipleAuthSupported, nil)
	addCertReqs(out, ev.from.anchors)
	for _, v := range sa.cfg.VendorIDs {
		out.add(&message.VendorID{Data: v})
	}
	h.initResp, err = message.Encode(message.Header{
		SPIi: spiBytes(g.spiI), SPIr: spiBytes(g.spiR), Exchange: message.ExchangeIKESAInit, Flags: message.FlagResponse,
	}, out.ps)
	if err != nil {
		sa.fail(fmt.Errorf("ike: encoding IKE_SA_INIT: %w", err))
		return
	}
	sa.state = StateAuth
	sa.send(sa.path, [][]byte{h.initResp})
}

func spiOf(raw []byte) uint64 { return peekHeader(raw).spiI }

// maxCertReqs bounds the authorities that we name in CERTREQ: it is a hint, and IKE_SA_INIT
// cannot be fragmented.
const maxCertReqs = 16

// certReq asks for certificates of the authorities with these key hashes, of all rounds: there is no
// CERTREQ in the second round (as strongSwan does it).
func certReq(anchors [][20]byte) *message.CertReq {
	if len(anchors) == 0 {
		return nil
	}
	return &message.CertReq{Encoding: message.CertX509Signature, Data: slices.Concat(slicesOf(anchors)...)}
}

func slicesOf(hashes [][20]byte) [][]byte {
	out := make([][]byte, len(hashes))
	for i := range hashes {
		out[i] = hashes[i][:]
	}
	return out
}

// anchorsOf returns the key hashes of the authorities that a connection trusts.
func anchorsOf(p *PeerConfig) [][20]byte {
	var out [][20]byte
	for i := range p.RemoteAuth {
		for _, a := range p.RemoteAuth[i].Anchors {
			if h, ok := keyHash(a); ok && len(out) < maxCertReqs && !slices.Contains(out, h) {
				out = append(out, h)
			}
		}
	}
	return out
}

// keyHash is SHA-1 over the SubjectPublicKeyInfo (RFC 7296, section 3.7).
func keyHash(c *x509.Certificate) ([20]byte, bool) {
	var raw asn1.RawValue
	if _, err := asn1.Unmarshal(c.RawSubjectPublicKeyInfo, &raw); err != nil {
		return [20]byte{}, false
	}
	return sha1.Sum(c.RawSubjectPublicKeyInfo), true //nolint:gosec // see the import
}
