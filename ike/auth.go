package ike

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"

	"wardgate/ike/message"
	"wardgate/ike/suite"
	"wardgate/internal/certs"
)

// authState is where the authentication rounds stand (RFC 4739). Both ends prove one round in
// each pair of IKE_AUTH messages.
type authState struct {
	round      int        // the one under way, from 0
	candidates []*branch  // connections that everything so far fits; one for an initiator
	claimed    []Identity // what the peer claimed, for each round begun
	proofs     []proof    // what the peer proved, for each round done
	localIDs   []Identity // what we proved, for each round whose AUTH we made
	leaves     [][]byte   // of localIDs: our certificates, DER; nil: PSK
	job        uint64     // the signature or verdict we wait for; 0: none
	verifying  bool       // job is a verdict
	checked    *verifyJob // job, where it is about a signature
	childless  bool       // no CHILD SA comes with the rounds (RFC 6023)

	// Responder.
	req         *parsed       // the IKE_AUTH request under way
	set         *peerSet      // that candidates are of
	trusts      []*branch     // one candidate for each trust, in the order of the verdicts
	ppkProofs   []ppkProof    // for each of trusts
	childSA     []suite.Offer // from the first request
	tsi         *message.TS
	tsr         *message.TS
	cp          *message.CP
	mobike      *parsed // the first request, with MOBIKE_SUPPORTED
	wantsTicket bool    // the first request asks for a ticket
	resource    bool    // the first request wants several CHILD SAs (RFC 9611)

	// Initiator.
	resp     *parsed // the answer under judgement
	childCfg *ChildConfig
	childID  ChildID
	childSPI uint32
	packet   Flow
	offered  []suite.Offer
}

func newAuthState() authState { return authState{} }

// proof is what a peer proved in one round.
type proof struct {
	id            Identity
	leaf          []byte // DER; nil: PSK
	intermediates [][]byte
	ocsp          [][]byte
	cert          *x509.Certificate // leaf, until the IKE SA is established
	convinced     []*RemoteAuth     // whom it was good enough for
}

// authValue is the content of an AUTH payload.
type authValue struct {
	method uint8
	data   []byte
	plain  []byte // of NO_PPK_AUTH (RFC 8784); nil: none
}

// round returns the round under way, -1 outside of the rounds.
func (sa *SA) round() int {
	if sa.handshake == nil || sa.state != StateAuth {
		return -1
	}
	return sa.handshake.round
}

func (h *handshake) role(round int) string {
	for _, b := range h.candidates {
		if c := b.first; round < c.rounds() && c.RemoteAuth[round].Role != "" {
			return c.RemoteAuth[round].Role
		}
	}
	return ""
}

// sign starts the signature of our AUTH payload of the round under way.
func (sa *SA) sign(la *LocalAuth) {
	h, g := sa.handshake, sa.cur
	msg, nonce := h.initReq, h.nr
	if !g.initiator {
		msg, nonce = h.initResp, h.ni
	}
	idBody := la.ID.payload(!g.initiator).Body()
	octets := func(k *suite.IKEKeys) []byte {
		return suite.SignedOctets(g.prot.prf, skp(k, g.initiator), msg, nonce, idBody, h.inter.octets())
	}
	first, plain := octets(g.prot.keys), []byte(nil)
	if p := &h.ppk; h.round == 0 && g.initiator && p.key != nil {
		var err error
		if p.mixed, err = g.prot.mix(p.key); err != nil {
			sa.fail(err)
			return
		}
		if !sa.peer.RemoteAuth[0].RequirePPK {
			plain = first
		}
		first = octets(p.mixed)
	}
	h.job, h.verifying = sa.job(), false
	if len(la.PSK) > 0 {
		psk := suite.CopySecret(la.PSK)
		defer psk.Wipe()
		auth := authValue{method: suite.AuthPSK}
		var err error
		if auth.data, err = suite.PSKAuth(g.prot.prf, psk, first); err == nil && plain != nil {
			auth.plain, err = suite.PSKAuth(g.prot.prf, psk, plain)
		}
		sa.onSigned(evSigned{job: h.job, auth: auth, err: err})
		return
	}
	hashes, methods, rand := h.peerHashes, h.peerMethods, sa.host.rand()
	sa.do(actSign{job: h.job, sign: func() (authValue, error) {
		auth, err := signAUTH(la, hashes, methods, first, rand)
		if err != nil || plain == nil {
			return auth, err
		}
		second, err := signAUTH(la, hashes, methods, plain, rand)
		if err == nil && second.method != auth.method {
			err = fmt.Errorf("ike: the key signs with method %d, then with %d", auth.method, second.method)
		}
		auth.plain = second.data
		return auth, err
	}})
}

// signAUTH computes an AUTH payload with a key that may be anywhere. It runs in a worker.
func signAUTH(la *LocalAuth, peerHashes []uint16, announced []suite.Announcement, octets []byte, rand io.Reader) (authValue, error) {
	pub := la.Signer.Public()
	schemes, err := suite.SignatureSchemes(pub, peerHashes)
	if err != nil {
		return authValue{}, err
	}
	schemes = suite.Announced(schemes, announced)
	var first error
	for i, s := range schemes {
		in, opts := s.SignRequest(octets)
		if _, isPSS := opts.(*rsa.PSSOptions); i > 0 && isPSS {
			continue // a token without PSS has no PSS with another hash either
		}
		sig, err := la.Signer.Sign(rand, in, opts)
		if err == nil {
			var data []byte
			if data, err = s.Wrap(sig); err == nil && !inSoftware(la.Signer) {
				// A token that answers nonsense must not look like a peer that refuses us.
				err = suite.VerifySignature(pub, s.Method(), data, octets, suite.SignatureHashes())
			}
			if err == nil {
				return authValue{method: s.Method(), data: data}, nil
			}
		}
		if first == nil {
			first = err
		}
		if _, isRSA := pub.(*rsa.PublicKey); !isRSA || i > 0 {
			break
		}
	}
	return authValue{}, first
}

// inSoftware tells whether a key is of the standard library's own, which needs no watching.
func inSoftware(k crypto.Signer) bool {
	switch k.(type) {
	case *ecdsa.PrivateKey, *rsa.PrivateKey, ed25519.PrivateKey:
		return true
	}
	return false
}

// onSigned takes our AUTH payload.
func (sa *SA) onSigned(ev evSigned) {
	h := sa.handshake
	if h == nil || ev.job != h.job || h.verifying || sa.state != StateAuth {
		return
	}
	h.job = 0
	if ev.err != nil {
		e := refused(CodeCredential, h.round, ev.err, "our own key of authentication round %d cannot sign", h.round+1)
		if sa.initiator {
			sa.abort(e)
		} else {
			sa.refuseAuth(e)
		}
		return
	}
	if sa.initiator {
		sa.sendRound(ev.auth)
	} else {
		sa.answerRound(ev.auth)
	}
}

// addIdentity adds ID, CERT and AUTH of one round.
func addIdentity(out *outgoing, la *LocalAuth, responder, wantOCSP bool, auth authValue) {
	out.add(la.ID.payload(responder))
	for _, der := range la.Chain {
		if len(la.PSK) == 0 {
			out.add(&message.Cert{Encoding: message.CertX509Signature, Data: der})
		}
	}
	if wantOCSP {
		if der := la.staple(); der != nil {
			out.add(&message.Cert{Encoding: message.CertOCSP, Data: der})
		}
	}
	out.add(&message.Auth{Method: message.AuthMethod(auth.method), Data: auth.data})
}

// verifyJob is one AUTH payload of the peer that waits for its verdict.
type verifyJob struct {
	method uint8
	proofs []ppkProof // for each query: what is signed, and the signature
	leaf   []byte
	cert   *x509.Certificate // leaf, once check has parsed it
}

// verify starts the judgement of the peer's AUTH payload in the message in, once for all
// candidates that the same proof convinces.
func (sa *SA) verify(in *parsed, id *message.ID) *RefusedError {
	h, g := sa.handshake, sa.cur
	msg, nonce := h.initResp, h.ni // of a responder
	if !g.initiator {
		msg, nonce = h.initReq, h.nr
	}
	method := uint8(in.auth.Method)

	// Only candidates that expect this kind of proof can be convinced by it.
	r := h.round
	kept := h.candidates[:0:0]
	for _, c := range h.candidates {
		if psk := len(c.first.RemoteAuth[r].PSK) > 0; psk == (method == suite.AuthPSK) {
			kept = append(kept, c)
		}
	}
	if len(kept) == 0 {
		want := "a certificate's signature"
		if len(h.candidates[0].first.RemoteAuth[r].PSK) > 0 {
			want = "a pre-shared key"
		}
		return refused(CodeAuthMethod, r, nil, "expected %s, got %s", want, suite.DescribeAuth(method, in.auth.Data))
	}
	h.candidates = kept
	h.trusts = nil
	seen := map[int]bool{}
	for _, c := range kept {
		if !seen[c.trust] {
			seen[c.trust] = true
			h.trusts = append(h.trusts, c)
		}
	}
	proofs := sa.ppkProofs(in, func(skp suite.Secret) []byte {
		return suite.SignedOctets(g.prot.prf, skp, msg, nonce, id.Body(), h.inter.octets())
	})
	h.ppkProofs = proofs
	h.job, h.verifying = sa.job(), true
	if method == suite.AuthPSK {
		verdicts := make([]error, len(h.trusts))
		for i, b := range h.trusts {
			if verdicts[i] = proofs[i].err; verdicts[i] != nil {
				continue
			}
			psk := suite.CopySecret(b.first.RemoteAuth[r].PSK)
			if err := suite.VerifyPSK(g.prot.prf, psk, proofs[i].octets, proofs[i].data); err != nil {
				verdicts[i] = refused(CodeBadSignature, r, err, "the pre-shared key does not match")
			}
			psk.Wipe()
		}
		sa.onVerdict(evVerdict{h.job, verdicts})
		return nil
	}
	chain := x509Chain(in.certs)
	if len(chain) == 0 {
		return refused(CodeNoCert, r, nil, "the peer sent no X.509 certificate with its signature")
	}
	if len(chain) > maxCerts {
		return refused(CodeBadCert, r, nil, "the peer sent %d certificates, at most %d are looked at", len(chain), maxCerts)
	}
	responses := ocspResponses(in.certs)
	queries := make([]CertQuery, len(h.trusts))
	for i, b := range h.trusts {
		queries[i] = CertQuery{
			Peer: b.first, Round: r, Auth: &b.first.RemoteAuth[r], ID: identityOf(id),
			Leaf: chain[0], Intermediates: chain[1:], OCSP: responses, At: sa.now,
		}
		for _, p := range h.proofs {
			queries[i].Earlier = append(queries[i].Earlier, p.cert)
		}
	}
	job := &verifyJob{method: method, proofs: proofs, leaf: chain[0]}
	h.checked = job
	sa.do(actVerify{job: h.job, check: func(verify func(CertQuery) error) []error { return job.check(queries, verify) }})
	return nil
}

// maxCerts bounds the certificates of one round: a leaf and its intermediates.
const maxCerts = 9

func x509Chain(certs []*message.Cert) [][]byte {
	var out [][]byte
	for _, c := range certs {
		if c.Encoding == message.CertX509Signature {
			out = append(out, c.Data)
		}
	}
	return out
}

// check judges chain and signature; both must hold. It runs in a worker.
func (j *verifyJob) check(queries []CertQuery, verify func(CertQuery) error) []error {
	out := make([]error, len(queries))
	done := -1                                 // the query whose signature was checked last
	j.cert, _ = certs.ParseCertificate(j.leaf) // what is wrong with it is said below
	for i, q := range queries {
		q.parsed = j.cert
		p := &j.proofs[i]
		if p.err != nil {
			out[i] = p.err
			continue
		}
		if err := verify(q); err != nil {
			out[i] = refused(VerdictCode(err), q.Round, err, "the certificate of %v was refused", q.ID)
			continue
		}
		if done < 0 || !bytes.Equal(j.proofs[done].octets, p.octets) {
			out[i] = j.signature(q.Round, p)
		} else {
			out[i] = out[done]
		}
		done = i
	}
	return out
}

func (j *verifyJob) signature(round int, p *ppkProof) error {
	if j.cert == nil {
		_, err := certs.ParseCertificate(j.leaf)
		return refused(CodeBadCert, round, err, "the certificate cannot be parsed")
	}
	if err := suite.VerifySignature(j.cert.PublicKey, j.method, p.data, p.octets, suite.SignatureHashes()); err != nil {
		code := CodeBadSignature
		if errors.Is(err, suite.ErrAuthMethod) {
			code = CodeAuthMethod
		}
		return refused(code, round, err, "the peer does not prove that it has the key of its certificate")
	}
	return nil
}

// onVerdict takes the verdict about the peer's AUTH payload.
func (sa *SA) onVerdict(ev evVerdict) {
	if sa.est != nil {
		sa.onReverdict(ev)
		return
	}
	h := sa.handshake
	if h != nil && h.session != nil {
		sa.onResumeVerdict(ev)
		return
	}
	if h == nil || ev.job != h.job || !h.verifying || sa.state != StateAuth {
		return
	}
	h.job = 0
	p := proof{id: h.claimed[h.round]}
	convinced := map[int]bool{}
	var first error
	for i, b := range h.trusts {
		switch {
		case i < len(ev.verdicts) && ev.verdicts[i] == nil:
			convinced[b.trust] = true
		case first == nil && i < len(ev.verdicts):
			first = ev.verdicts[i]
		}
	}
	sa.settlePPK(convinced)
	for _, b := range h.trusts {
		if convinced[b.trust] {
			p.convinced = append(p.convinced, &b.first.RemoteAuth[h.round])
		}
	}
	h.trusts = nil
	if len(convinced) == 0 {
		e, ok := errors.AsType[*RefusedError](first)
		if !ok {
			e = refused(CodeBadCert, h.round, first, "the peer was not verified")
		}
		if sa.initiator {
			sa.abort(e)
		} else {
			sa.refuseAuth(e)
		}
		return
	}
	in := h.req
	if sa.initiator {
		in = h.resp
	}
	h.candidates = filter(h.candidates, func(b *branch) bool { return convinced[b.trust] })
	if in.auth.Method != message.AuthMethod(suite.AuthPSK) {
		chain := x509Chain(in.certs)
		// Copies, so that the whole message is not kept for as long as the IKE SA stands.
		p.leaf, p.intermediates, p.ocsp = bytes.Clone(chain[0]), cloneCAs(chain[1:]), cloneAll(ocspResponses(in.certs))
		p.cert = h.checked.cert
	}
	h.checked = nil
	h.proofs = append(h.proofs, p)
	if sa.initiator {
		sa.roundProved()
	} else {
		sa.peerProved()
	}
}

// cloneCAs is cloneAll where those that many peers send are kept once.
func cloneCAs(list [][]byte) [][]byte {
	var out [][]byte
	for _, b := range list {
		if c := certs.KnownCA(b); c != nil {
			out = append(out, c.Raw)
		} else {
			out = append(out, bytes.Clone(b))
		}
	}
	return out
}

func cloneAll(list [][]byte) [][]byte {
	var out [][]byte
	for _, b := range list {
		out = append(out, bytes.Clone(b))
	}
	return out
}

// establish makes the state of an IKE SA in which everything is proved. It is the only place
// where that state is made, and it counts.
func (sa *SA) establish() (*established, error) {
	h := sa.handshake
	n := sa.peer.rounds()
	if n == 0 || len(h.proofs) != n || len(h.localIDs) != n || len(h.claimed) != n {
		return nil, fmt.Errorf("ike: %d rounds needed, the peer proved %d, we proved %d", n, len(h.proofs), len(h.localIDs))
	}
	e := &established{created: sa.now, authenticated: sa.now, localIDs: h.localIDs, localLeaves: h.leaves}
	e.redirectable = h.redirectable
	if h.session != nil {
		e.resumed, e.authenticated = true, h.session.authenticated
	}
	for i, p := range h.proofs {
		if !containsID(sa.peer.RemoteAuth[i].IDs, p.id) || !sa.peer.LocalAuth[i].ID.Equal(h.localIDs[i]) {
			return nil, fmt.Errorf("ike: identities of round %d are not those of connection %q", i+1, sa.peer.Name)
		}
		if !slices.ContainsFunc(p.convinced, sa.peer.RemoteAuth[i].sameAuthority) {
			return nil, fmt.Errorf("ike: round %d was not proved to whom connection %q trusts", i+1, sa.peer.Name)
		}
		e.remoteIDs = append(e.remoteIDs, p.id)
		e.remoteCerts = append(e.remoteCerts, p.leaf)
		// A parsed certificate is several times as large as its octets, and seldom needed again.
		p.cert = nil
		e.proofs = append(e.proofs, p)
	}
	if ra := &sa.peer.RemoteAuth[0]; ra.RequirePPK && sa.ppk == "" {
		return nil, refused(CodePPK, -1, nil, "connection %q requires a PPK, and none is in the keys", sa.peer.Name)
	}
	if !hasOffer(sa.peer.Proposals, sa.cur.chosen) {
		return nil, refused(CodeSuiteNotAllowed, -1, nil, "%v was negotiated before it was known who the peer is; connection %q does not allow it", sa.cur.chosen, sa.peer.Name)
	}
	e.rekeyAt = sa.rekeyAt(sa.peer.rekeyIKE(), sa.initiator)
	e.planReauth(sa, h.proofs)
	return e, nil
}

// goUp enters StateEstablished.
func (sa *SA) goUp(e *established) {
	h := sa.handshake
	sa.est, sa.state = e, StateEstablished
	sa.handshake = nil
	h.wipe()
	sa.cur.prot.keys.WipeAuth()
	sa.do(actEstablished{
		peer: sa.peer.Name, initialContact: h.initialContact, begun: sa.begun,
		localIDs: e.localIDs, remoteIDs: e.remoteIDs,
	})
	info := sa.info()
	sa.tell(func(o Owner) { o.IKEUp(info) })
	sa.takeOver()
	sa.reauthIfRenewed() // while the rounds were under way
	// The revocation lists may have been replaced since a round was judged.
	sa.judgeAgain(func(i int) bool {
		return !slices.ContainsFunc(e.proofs[i].convinced, sa.peer.RemoteAuth[i].sameTrust)
	})
	for i := range e.proofs {
		e.proofs[i].convinced = nil
	}
}

// proved notes what we prove in the round under way.
func (h *handshake) proved(la *LocalAuth) {
	h.localIDs = append(h.localIDs, la.ID)
	var leaf []byte
	if len(la.Chain) > 0 {
		leaf = la.Chain[0]
	}
	h.leaves = append(h.leaves, leaf)
}

// onInitialContact: the peer of a newer IKE SA with our identities knows of no other one. One
// that was made while the newer one was under way is no leftover: both ends initiated at once.
func (sa *SA) onInitialContact(ev evInitialContact) {
	if sa.est == nil || !sa.est.created.Before(ev.begun) ||
		!slices.EqualFunc(sa.est.remoteIDs, ev.remoteIDs, Identity.Equal) ||
		!slices.EqualFunc(sa.est.localIDs, ev.localIDs, Identity.Equal) {
		return
	}
	sa.close(Reason{Code: ReasonReplaced, Text: "the peer lost this IKE SA and made a new one (INITIAL_CONTACT)", Remote: true})
}
