package ike

import (
	"crypto/subtle"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"wardgate/ike/message"
	"wardgate/ike/suite"
	"wardgate/internal/certs"
)

// Session resumption (RFC 5723), as the end that makes tickets and takes them back.

// SetTicketSecrets replaces Config.TicketSecrets: the newest first, with those before that may still
// have sealed a ticket that is good. None: no tickets are given or taken.
func (ep *Endpoint) SetTicketSecrets(secrets ...[]byte) error {
	keys, err := newTicketKeys(secrets)
	if err != nil {
		return err
	}
	ep.tickets.Store(&keys)
	return nil
}

func (b *box) ticketKeys() ticketKeys { return *b.ep.tickets.Load() }

// useTicket marks a ticket of ours as used; false: it was used before.
func (b *box) useTicket(s *session) bool {
	return b.ep.used.use(s.nonce, s.expires, b.ep.cfg.Clock.Now())
}

func sameMAC(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

// giveTicket answers TICKET_REQUEST (section 4.1). The ticket ends with the last full proof's time,
// with the peer's certificates and with the reauthentication that is due (section 6.2).
//
// prior is the session that this IKE SA was made of, if its certificates are still those; or nil.
func (sa *SA) giveTicket(out *outgoing, g *generation, prior *session) {
	keys := sa.host.ticketKeys()
	if len(keys) == 0 {
		return // this end does not do RFC 5723
	}
	e := sa.est
	end := e.authenticated.Add(sa.cfg.TicketLifetime)
	for _, t := range []time.Time{e.expireAt, e.reauthAt} {
		if !t.IsZero() && t.Before(end) {
			end = t
		}
	}
	life := end.Sub(sa.now).Truncate(time.Second)
	if life < minTicketLife || g != sa.cur {
		out.notify(message.NotifyTicketNack, nil)
		return
	}
	s := e.session(sa, g, sa.now.Add(life), prior)
	defer s.wipe()
	for i, p := range e.proofs {
		if p.leaf != nil && prior == nil {
			s.rounds[i].path, _ = certs.AcceptedPath(p.leaf, p.intermediates, sa.peer.RemoteAuth[i].Anchors)
		}
	}
	ticket, err := keys.seal(s, sa.host.rand())
	if err != nil {
		sa.refuse(refused(CodeTicket, -1, err, "no ticket is given"))
		out.notify(message.NotifyTicketNack, nil)
		return
	}
	out.notify(message.NotifyTicketLTOpaque, append(binary.BigEndian.AppendUint32(nil, uint32(life/time.Second)), ticket...))
	sa.do(actSaveChains{e.proofs})
}

// acceptResume judges IKE_SESSION_RESUME of a stranger without keeping any state.
func (ep *Endpoint) acceptResume(now time.Time, p Path, h header, msg []byte, in *parsed, set *peerSet, adm admission) {
	n := in.notify(message.NotifyTicketOpaque)
	keys := *ep.tickets.Load()
	if n == nil || len(keys) == 0 {
		ep.answerInit(p, h, message.NewNotify(message.NotifyTicketNack))
		return
	}
	s, err := keys.open(n.Data)
	var chosen suite.Chosen
	if err == nil {
		cfg := set.byName[s.peer]
		if chosen, err = s.fits(cfg, now); err == nil && cfg.Local.IsValid() && !p.Local.Addr().IsUnspecified() && cfg.Local != p.Local.Addr() {
			err = badTicket("connection %q is not to be had at %v", cfg.Name, p.Local.Addr())
		}
		if err == nil && ep.used.used(s.nonce) {
			err = badTicket("it was used before")
		}
		if prf, e := suite.NewPRF(chosen.PRF); err == nil && (e != nil || prf.CheckNonce(in.nonce) != nil) {
			err = badTicket("it comes with a bad nonce")
		}
	}
	if err != nil {
		s.wipe()
		ep.answerInit(p, h, message.NewNotify(message.NotifyTicketNack))
		ep.refuseStranger(p, CodeTicket, err.Error())
		return
	}
	adm.ticket = true
	b, known, err := ep.admitHalfOpen(p, h.spiI, adm, newResponder)
	switch {
	case err != nil:
		s.wipe()
		if !errors.Is(err, ErrClosed) {
			ep.refuseStranger(p, CodeFlooding, err.Error())
		}
	case known:
		s.wipe()
		b.post(evDatagram{path: p, head: h, msg: msg})
	default:
		b.postHere(evResume{path: p, raw: msg, req: in, session: s, patience: adm.patience})
	}
}

// onResume answers IKE_SESSION_RESUME.
func (sa *SA) onResume(ev evResume) {
	sa.begun, sa.path = sa.now, ev.path
	h := &handshake{deadline: sa.now.Add(sa.cfg.HalfOpenTimeout), authState: newAuthState(), session: ev.session}
	h.silentUntil(sa.now, ev.patience)
	sa.handshake = h
	set := sa.host.peers()
	cfg := set.byName[h.session.peer]
	chosen, err := h.session.fits(cfg, sa.now)
	if err != nil {
		sa.close(Reason{Code: ReasonProtocol, Text: err.Error()})
		return
	}
	h.set, h.candidates = set, alone(cfg)
	spi, err := sa.host.newIKESPI()
	if err != nil {
		sa.fail(err)
		return
	}
	g := &generation{sa: sa, spiI: spiOf(ev.raw), spiR: spi, chosen: chosen, created: sa.now, recvID: 1}
	sa.gens, sa.cur = []*generation{g}, g
	nr, err := sa.newNonce()
	if err == nil {
		err = g.protectResumed(h.session, ev.req.nonce, nr)
	}
	if err != nil {
		sa.fail(err)
		return
	}
	h.ni, h.nr, h.initReq = ev.req.nonce, nr, ev.raw
	sa.takeInitNotifies(ev.req)
	force := cfg.ForceEncap && sa.path.Stream == 0
	sa.nat = detectNAT(ev.req, g.spiI, 0, sa.path, force)
	out := newOutgoing().nonce(nr)
	sa.addInitNotifies(out, g.spiI, g.spiR, sa.path, force && ev.req.has(message.NotifyNATDetectionSourceIP))
	h.initResp, err = message.Encode(message.Header{
		SPIi: spiBytes(g.spiI), SPIr: spiBytes(g.spiR), Exchange: message.ExchangeIKESessionResume, Flags: message.FlagResponse,
	}, out.ps)
	if err != nil {
		sa.fail(fmt.Errorf("ike: encoding IKE_SESSION_RESUME: %w", err))
		return
	}
	sa.state = StateAuth
	sa.send(sa.path, [][]byte{h.initResp})
}

// onResumeAuth takes the request after IKE_SESSION_RESUME: IKE_AUTH, and nothing else (section
// 4.3.2).
func (sa *SA) onResumeAuth(_ *generation, in *parsed) {
	h := sa.handshake
	if in.exchange != exchangeAuth {
		sa.refuseAuth(refused(CodeUnexpected, 0, nil, "%s after IKE_SESSION_RESUME; only IKE_AUTH is allowed", exchangeName(in.exchange)))
		return
	}
	h.req = in
	cfg := h.candidates[0].first
	r := h.session.rounds[0]
	if in.idi != nil {
		h.claimed = []Identity{identityOf(in.idi)}
	}
	bad := func(code Code, format string, args ...any) { sa.refuseAuth(refused(code, 0, nil, format, args...)) }
	if err := message.FormIKEAuthFirstRequest.Check(in.ps); err != nil {
		sa.refuseAuth(refused(CodeSyntax, 0, err, "the IKE_AUTH request after IKE_SESSION_RESUME is malformed"))
		return
	}
	switch {
	case in.idi == nil || in.auth == nil || len(in.certs) > 0:
		bad(CodeSyntax, "the IKE_AUTH request after IKE_SESSION_RESUME lacks IDi or AUTH, or holds a certificate")
	case in.has(message.NotifyAnotherAuthFollows):
		bad(CodeTooManyRounds, "the peer announces another round after a ticket, which stands for all")
	case identityOf(in.idi) != r.remote || in.idr != nil && identityOf(in.idr) != r.local:
		bad(CodeIDMismatch, "the ticket is of %v with %v, the peer says it is %v", r.remote, r.local, identityOf(in.idi))
	case uint8(in.auth.Method) != suite.AuthPSK || !sameMAC(in.auth.Data, sa.resumeAUTH(true, in.idi)):
		bad(CodeBadSignature, "the peer does not prove that it has the keys of the IKE SA that the ticket is of")
	default:
		h.claimed = nil
		sa.takeFirstRequest(in)
		h.job, h.verifying = sa.job(), true
		judge := sa.judgeSession(cfg)
		if !slices.ContainsFunc(cfg.RemoteAuth, func(a RemoteAuth) bool { return len(a.PSK) == 0 }) {
			sa.onVerdict(evVerdict{judge.job, judge.check(nil)}) // pre-shared keys, whose marks fit
			return
		}
		sa.do(judge)
	}
}

// judgeSession judges the certificates that a ticket names by their hashes, as of today: the peer
// has proved by now that the ticket is its own.
func (sa *SA) judgeSession(cfg *PeerConfig) actVerify {
	s, chains, now := sa.handshake.session, sa.cfg.Chains, sa.now
	proofs := make([]proof, len(s.rounds))
	s.proofs = proofs
	for i := range cfg.LocalAuth {
		var leaf []byte
		if c := cfg.LocalAuth[i].Chain; len(c) > 0 {
			leaf = c[0]
		}
		s.leaves = append(s.leaves, leaf)
	}
	rounds := s.rounds
	return actVerify{job: sa.handshake.job, check: func(verify func(CertQuery) error) []error {
		for i, r := range rounds {
			proofs[i].id = r.remote
			if len(cfg.RemoteAuth[i].PSK) > 0 {
				continue // the key's mark was compared
			}
			chain := chains.LoadChain(r.remoteMark)
			if len(chain) == 0 || len(chain) > maxCerts || certMark(chain[0]) != r.remoteMark {
				return []error{badTicket("the certificate of %v is not known any more", r.remote)}
			}
			proofs[i].leaf, proofs[i].intermediates = chain[0], chain[1:]
			if r.path != ([32]byte{}) {
				// We have seen its signatures hold, and sealed that. Everything else is judged as of today.
				certs.AcceptPath(r.path)
			}
		}
		parseProofs(proofs)
		return checkChains(certQueries(cfg, proofs, now), verify)
	}}
}

// resumeJudged: the certificates behind the ticket are good, or not.
func (sa *SA) resumeJudged(err error) {
	h := sa.handshake
	in := h.req
	set := sa.host.peers()
	cfg := set.successor(h.candidates[0].first)
	switch {
	case sa.state != StateAuth || in == nil:
		return
	case err != nil:
		sa.refuseAuth(refused(VerdictCode(err), -1, err, "what the ticket stands for is not accepted any more"))
		return
	case cfg == nil:
		sa.refuseAuth(refused(CodeNoConnection, -1, nil, "connection %q was taken away meanwhile", h.session.peer))
		return
	}
	sa.peer = cfg
	convince(h.session.proofs, h.candidates[0].first)
	s := h.session
	if err = sa.takeSession(); err == nil && !sa.host.useTicket(s) {
		err = badTicket("it was used before")
	}
	if err != nil {
		sa.peer = nil
		sa.refuseAuth(refused(CodeTicket, -1, err, "the IKE SA is not resumed"))
		return
	}
	id := s.rounds[0].local.payload(true)
	out := newOutgoing().add(id, &message.Auth{Method: message.AuthMethod(suite.AuthPSK), Data: sa.resumeAUTH(false, id)})
	ours := s.spiR
	if s.initiator {
		ours = s.spiI
	}
	// Section 4.3.4: without a word. First, so that the CHILD SAs of the old one go first.
	sa.do(actResumed{ours, s.spiI, s.spiR})
	sa.answerLast(in, out)
}

// onResumed: this IKE SA lives on in another one.
func (sa *SA) onResumed(ev evResumed) {
	for _, g := range sa.gens {
		if sa.est != nil && g.spiI == ev.spiI && g.spiR == ev.spiR {
			sa.close(Reason{Code: ReasonReplaced, Text: "the peer lost this IKE SA and resumed it (RFC 5723)", Remote: true})
			return
		}
	}
}

// certQueries asks for the certificates that were proved in some rounds.
func certQueries(cfg *PeerConfig, proofs []proof, at time.Time) []CertQuery {
	var queries []CertQuery
	var earlier []*x509.Certificate
	for i, p := range proofs {
		if p.leaf != nil {
			queries = append(queries, CertQuery{
				Peer: cfg, Round: i, Auth: &cfg.RemoteAuth[i], ID: p.id, Leaf: p.leaf, Intermediates: p.intermediates, OCSP: p.ocsp,
				Earlier: earlier[:i:i], At: at, parsed: p.cert,
			})
		}
		earlier = append(earlier, p.cert)
	}
	return queries
}

// parseProofs parses what the session of a ticket holds as octets.
func parseProofs(proofs []proof) {
	for i := range proofs {
		if p := &proofs[i]; p.leaf != nil && p.cert == nil {
			p.cert, _ = x509.ParseCertificate(p.leaf) // as it could be when it came
		}
	}
}

// checkChains judges certificates whose keys were proved before.
func checkChains(queries []CertQuery, verify func(CertQuery) error) []error {
	out := make([]error, len(queries))
	for i, q := range queries {
		if err := verify(q); err != nil {
			out[i] = refused(VerdictCode(err), q.Round, err, "the certificate of %v is not accepted any more", q.ID)
		}
	}
	return out
}

func judgeChains(job uint64, queries []CertQuery) actVerify {
	return actVerify{job: job, check: func(verify func(CertQuery) error) []error { return checkChains(queries, verify) }}
}
