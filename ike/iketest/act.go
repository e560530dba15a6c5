package iketest

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/netip"
	"slices"
	"sync"
	"time"

	"wardgate/ike"
	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// act carries out one Op.
func (r *run) act(o Op) {
	n := r.nodes[o.Node]
	ep := n.Endpoint
	up := !n.paused.After(r.w.Now())
	switch o.Kind {
	case OpInitiate:
		if up {
			_ = ep.Initiate(connName(o.Node, o.Peer), []string{"net", "other"}[o.N%2])
		}
	case OpRekeyChild:
		if c := n.pick(o.N); c != nil && up {
			_ = ep.RekeyChild(c.ID)
		}
	case OpDeleteChild:
		if c := n.pick(o.N); c != nil && up {
			n.doomed[c.ID] = true
			_ = ep.DeleteChild(c.ID, "the plan")
		}
	case OpRekeyIKE:
		if ids := sortedKeys(n.IKE); len(ids) > 0 && up {
			_ = ep.RekeyIKE(ids[int(o.N)%len(ids)])
		}
	case OpTerminate:
		if up {
			ep.Terminate(connName(o.Node, o.Peer), "the plan")
		}
	case OpQueues:
		if up {
			_ = ep.WantQueues(connName(o.Node, o.Peer), "net", int(o.N%5))
		}
	case OpPolicy:
		if up {
			r.policy(o, n)
		}
	case OpCut:
		r.cut[[2]int{o.Node, o.Peer}] = true
		if o.N%3 > 0 { // else in one direction only
			r.cut[[2]int{o.Peer, o.Node}] = true
		}
	case OpHeal:
		clear(r.cut)
		clear(r.cutPath)
	case OpRestart:
		n.boot()
	case OpPause:
		n.paused = r.w.Now().Add(jump(o.N))
	case OpClock:
		n.offset += jump(o.N)
		r.back += max(0, -jump(o.N))
	case OpNAT:
		for _, nat := range r.nats {
			nat.Shift += 10
		}
	case OpAddrs:
		r.roam(o, n)
	case OpCutPath:
		r.cutOne(o)
	case OpNATGoes:
		delete(r.nats, nodeAddr(o.Node, int(o.N%maxAddrs)))
	case OpSteal:
		n.stolen = netip.AddrPortFrom(attacker, 500)
	case OpTokenSlow:
		n.token = jump(o.N)
	case OpTokenFail:
		n.fail = o.N%2 == 1
	case OpReplay, OpReflect:
		r.again(o, n)
	case OpSpoof:
		r.spoof(o, n)
	case OpForge:
		r.forge(o, n)
	case OpReauth:
		if ids := sortedKeys(n.IKE); len(ids) > 0 && up {
			_ = ep.Reauthenticate(ids[int(o.N)%len(ids)])
		}
	case OpMutate:
		n.mutate = &mutation{skip: int(o.N % 8), choices: &choices{data: o.Data, rand: fastRand{state: uint64(o.N)}}}
	}
}

// cutOne cuts the path between one address of each of two nodes.
func (r *run) cutOne(o Op) {
	v := int(o.N)
	a, b := nodeAddr(o.Node, v%maxAddrs), nodeAddr(o.Peer, v/maxAddrs%maxAddrs)
	r.cutPath[[2]netip.Addr{a, b}] = true
	if v/maxAddrs/maxAddrs%4 > 0 { // else in one direction only
		r.cutPath[[2]netip.Addr{b, a}] = true
	}
}

// policy hands a node its connections again.
func (r *run) policy(o Op, n *simNode) {
	switch o.N % 3 {
	case 0: // those that it was made with, all of them
		n.conns = r.connections(n)
		_ = n.Endpoint.SetPeers(n.conns)
	case 1: // the same objects
		_ = n.Endpoint.SetPeers(n.conns)
	case 2:
		_ = n.Endpoint.SetPeers(slices.DeleteFunc(slices.Clone(n.conns), func(c *ike.PeerConfig) bool { return c.Name == connName(o.Node, o.Peer) }))
	}
}

// pick returns the N-th CHILD SA of a node.
func (n *simNode) pick(i int64) *Child {
	if l := n.sorted(); len(l) > 0 {
		return l[int(i)%len(l)]
	}
	return nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// again delivers an old datagram of or to a node once more.
func (r *run) again(o Op, n *simNode) {
	var of []carried
	for _, c := range r.history {
		if o.Kind == OpReplay && r.owner[c.to.Addr()] == n || o.Kind == OpReflect && r.owner[c.from.Addr()] == n {
			of = append(of, c)
		}
	}
	if len(of) == 0 {
		return
	}
	c := of[int(o.N)%len(of)]
	if o.Kind == OpReflect {
		c.from, c.to = c.to, c.from
	}
	if o.Kind == OpReplay && r.plan.mobile() && o.N%2 == 1 {
		c.from = netip.AddrPortFrom(attacker, c.from.Port())
	}
	r.note("again, from %v: %s", c.from, r.oracle.describe(c.msg))
	r.deliver(c.from, c.to, bytes.Clone(c.msg), c.from.Addr() != attacker)
}

// spoof tells a node, without protection, that one of its IKE SAs is unknown.
func (r *run) spoof(o Op, n *simNode) {
	snap := n.Endpoint.Snapshot()
	if len(snap) == 0 {
		return
	}
	s := snap[int(o.N)%len(snap)]
	h := message.Header{Exchange: message.ExchangeInformational, MessageID: uint32(o.N % 4), Flags: message.FlagResponse}
	for i := range 8 {
		h.SPIi[i], h.SPIr[i] = byte(s.SPIi>>(56-8*i)), byte(s.SPIr>>(56-8*i))
	}
	for _, f := range []message.HeaderFlags{0, message.FlagInitiator} {
		h.Flags = message.FlagResponse | f
		msg, err := message.Encode(h, message.Payloads{message.NewNotify(message.NotifyInvalidIKESPI)})
		if err == nil {
			r.deliver(s.Path.Remote, r.seen(s.Path.Local), msg, true)
		}
	}
}

// forge has a node send its peer what only a hostile one sends, under the right keys.
func (r *run) forge(o Op, n *simNode) {
	x := uint64(o.N)
	next := func(m int) int {
		v := int(x % uint64(m))
		x /= uint64(m)
		return v
	}
	kinds := 12
	if r.plan.mobile() {
		kinds = 15
	}
	pick, kind, response, victim := next(7), next(kinds), next(4) == 0, false
	delta := []int{0, 0, 0, 0, 1, 2, -1, -2, 5, 1 << 20}[next(10)]
	exchange := []uint8{36, 36, 37, 37, 35, 34, 43, 44}[next(8)]
	spi := binarySPI(next(1 << 16))
	if c := n.pick(int64(next(8))); c != nil && next(2) == 0 {
		spi = c.SPIIn
	}
	ts := message.NewSelector(0, 0, 65535, netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.255.255.255"))
	sa := func(proto message.ProtocolID, spi []byte, ke uint16) message.Payload {
		p := message.Proposal{Number: 1, Protocol: proto, SPI: spi, Transforms: []message.Transform{message.NewTransform(message.TransformENCR, suite.EncrAESGCM16, 128)}}
		if proto == message.ProtocolIKE {
			p.Transforms = append(p.Transforms, message.NewTransform(message.TransformPRF, suite.PRFHMACSHA256, 0), message.NewTransform(message.TransformKE, ke, 0))
		} else {
			p.Transforms = append(p.Transforms, message.NewTransform(message.TransformSN, 0, 0))
		}
		return &message.SA{Proposals: []message.Proposal{p}}
	}
	nonce := make([]byte, 32)
	_, _ = n.rand.Read(nonce)
	ke := make([]byte, 32)
	_, _ = n.rand.Read(ke)
	four := []byte{9, 8, byte(spi >> 8), byte(spi)}
	var ps message.Payloads
	switch kind {
	case 0, 1: // a new CHILD SA
		exchange = 36
		ps = message.Payloads{sa(message.ProtocolESP, four, 0), &message.Nonce{Data: nonce}, message.NewTSi(ts), message.NewTSr(ts)}
	case 2, 3: // new keys for a CHILD SA
		exchange = 36
		ps = message.Payloads{message.NewRekeySA(message.ProtocolESP, spi), sa(message.ProtocolESP, four, 0), &message.Nonce{Data: nonce}, message.NewTSi(ts), message.NewTSr(ts)}
	case 4, 5: // new keys for the IKE SA
		exchange = 36
		ps = message.Payloads{sa(message.ProtocolIKE, append(four, four...), suite.KEX25519), &message.Nonce{Data: nonce}, &message.KE{Method: message.KEMethod(suite.KEX25519), Data: ke}}
	case 6:
		exchange = 37
		ps = message.Payloads{&message.Delete{Protocol: message.ProtocolESP, SPIs: []uint32{spi, spi + 1, spi}}}
	case 7:
		exchange = 37
		ps = message.Payloads{&message.Delete{Protocol: message.ProtocolIKE}}
	case 8: // nothing in it
	case 9: // success where there was none
		ps = message.Payloads{message.NewIDr(2, []byte("b.example")), &message.Auth{Method: message.AuthMethod(suite.AuthPSK), Data: nonce}, sa(message.ProtocolESP, four, 0), message.NewTSi(ts), message.NewTSr(ts)}
	case 10:
		ps = message.Payloads{message.NewNotify([]message.NotifyType{
			message.NotifyTemporaryFailure, message.NotifyChildSANotFound, message.NotifyNoAdditionalSAs, message.NotifyInvalidSyntax, message.NotifyAuthenticationFailed,
		}[next(5)])}
	case 12: // it is somewhere else, says who cannot get anything there
		exchange, victim = 37, true
		ps = message.Payloads{message.NewNotify(message.NotifyUpdateSAAddresses), message.NewNotify(message.NotifyNoAdditionalAddresses)}
	case 13: // it is everywhere
		exchange = 37
		for range 1 + next(30) {
			ps = append(ps, message.NewNotify(message.NotifyAdditionalIP4Address, attacker.AsSlice()...), message.NewNotify(message.NotifyAdditionalIP4Address, 198, 18, 0, byte(next(200))))
		}
	case 14: // it answers what it has not seen
		exchange, response = 37, true
		ps = message.Payloads{message.NewNotify(message.NotifyCookie2, nonce[:16]...)}
	default:
		ps = message.Payloads{&message.Unknown{Generic: message.Generic{Critical: next(2) == 0}, Type: 200, Data: nonce[:4]}}
	}
	path, msgs := r.hooks.Forge(n.Endpoint, pick, exchange, response, delta, ps)
	for _, m := range msgs {
		r.note("forged by %s: %s", n.Name, r.oracle.describe(m))
		from := r.seen(n.local(path))
		if victim {
			from = netip.AddrPortFrom(attacker, from.Port())
		}
		r.deliver(from, path.Remote, m, true)
	}
}

func binarySPI(v int) uint32 { return 0x09080000 | uint32(v) }

func connName(a, b int) string {
	return fmt.Sprintf("%c-%c", 'A'+min(a, b), 'A'+max(a, b))
}

// proposalCache holds what is the same in all runs; what is in it is read-only.
var proposalCache sync.Map

func proposalsOf(protocol uint8, s string) []suite.Proposal {
	if p, ok := proposalCache.Load(s); ok {
		return p.([]suite.Proposal) //nolint:forcetypeassert // nothing else is stored
	}
	p, err := suite.ParseProposals(protocol, []string{s})
	if err != nil {
		panic(err)
	}
	proposalCache.Store(s, p)
	return p
}

// connections are those of a node with all others.
func (r *run) connections(n *simNode) []*ike.PeerConfig {
	p := r.plan
	ikeKE, espKE := "-x25519", ""
	if p.Groups {
		ikeKE = []string{"-x25519-ecp256", "-ecp256"}[n.i%2]
	}
	if p.PFS {
		espKE = []string{"-x25519-ecp256", "-ecp256"}[n.i%2]
	}
	switch p.Hybrid {
	case HybridNone:
	case HybridIKE, HybridBoth:
		ikeKE = "-x25519-ke1_ecp256"
	case HybridMLKEM:
		ikeKE, espKE = "-x25519-ke1_mlkem768", "-x25519-ke1_mlkem768"
	case HybridThree:
		ikeKE, espKE = "-x25519-ke1_ecp256-ke2_ecp384", "-x25519-ke1_ecp256-ke2_ecp384"
	default:
	}
	if p.Hybrid == HybridChild || p.Hybrid == HybridBoth {
		espKE = "-x25519-ke1_ecp256"
	}
	ikeProps := proposalsOf(suite.ProtocolIKE, "aes128gcm16-prfsha256"+ikeKE)
	espProps := proposalsOf(suite.ProtocolESP, "aes128gcm16"+espKE)
	net := func(hi, i int) []ike.Selector {
		return []ike.Selector{ike.PrefixSelector(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(hi + i), 0, 0}), 24))}
	}
	var out []*ike.PeerConfig
	for j := range p.Nodes {
		if j == n.i {
			continue
		}
		c := &ike.PeerConfig{
			Name: connName(n.i, j), Proposals: ikeProps,
			RekeyIKE: p.RekeyIKE, RekeyChild: p.RekeyChild, LivenessInterval: p.Liveness,
			Retransmit: ike.Retransmit{Initial: p.Retransmit, Factor: 1.8, Tries: 4},
			Children: []ike.ChildConfig{
				{Name: "net", LocalTS: net(0, n.i), RemoteTS: net(0, j), Proposals: espProps, Queues: p.Queues[n.i%2]},
				{Name: "other", LocalTS: net(100, n.i), RemoteTS: net(100, j), Proposals: espProps},
			},
		}
		if p.RekeyIKE == 0 {
			c.RekeyIKE = 10000 * time.Hour
		}
		if p.RekeyChild == 0 {
			c.RekeyChild = 10000 * time.Hour
		}
		c.Reauth, c.Childless = p.Reauth, p.Childless[n.i%2]
		c.Mobike = p.Mobike[n.i%2]
		for k := range max(p.Addrs[j%2], 1) {
			if !(p.NAT && j == 0 && k == 0) { // what is behind a NAT cannot be reached
				c.Remote = append(c.Remote, netip.AddrPortFrom(nodeAddr(j, k), 500))
			}
		}
		for round := range p.rounds() {
			l := ike.LocalAuth{ID: nodeID(n.i, round)}
			a := ike.RemoteAuth{IDs: []ike.Identity{nodeID(j, round)}, RelatedToRound: -1}
			if p.Auth == AuthCert2 {
				cred := credentials()[n.i][round]
				l.Chain, l.Signer = [][]byte{cred.der}, &signer{cred.key, n}
				a.Anchors = []*x509.Certificate{authority().cert}
			} else {
				l.PSK = fmt.Appendf(nil, "%s round %d", c.Name, round)
				a.PSK = l.PSK
			}
			if round == 0 && p.PPK[n.i%2] {
				a.PPKs = []ike.PPK{{ID: c.Name, Secret: bytes.Repeat([]byte(c.Name), 16)}}
			}
			c.LocalAuth, c.RemoteAuth = append(c.LocalAuth, l), append(c.RemoteAuth, a)
		}
		out = append(out, c)
	}
	return out
}

func (p *Plan) rounds() int {
	if p.Auth == AuthPSK {
		return 1
	}
	return 2
}

func nodeID(i, round int) ike.Identity {
	return ike.Identity{Type: ike.IDFQDN, Data: fmt.Sprintf("%c%d.example", 'a'+i, round)}
}

// signer is a token that is as slow, and fails, as the plan says.
type signer struct {
	key ed25519.PrivateKey
	n   *simNode
}

func (s *signer) Public() crypto.PublicKey { return s.key.Public() }

var errToken = errors.New("the token does not answer")

func (s *signer) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.n.fail {
		return nil, errToken
	}
	return s.key.Sign(rand, digest, opts)
}

type authorityKey struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

type credential struct {
	der []byte
	key ed25519.PrivateKey
}

// The certificates are the same in every process, so that a seed always gives the same run.
var authority = sync.OnceValue(func() authorityKey {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "simulator"},
		NotBefore: Epoch.Add(-24 * time.Hour), NotAfter: Epoch.Add(1000 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert, err := x509.ParseCertificate(create(t, t, key.Public(), key))
	if err != nil {
		panic(err)
	}
	return authorityKey{cert, key}
})

var credentials = sync.OnceValue(func() (out [maxNodes][2]credential) {
	ca := authority()
	for i := range out {
		for round := range out[i] {
			key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(16*i + round + 2)}, ed25519.SeedSize))
			t := &x509.Certificate{
				SerialNumber: big.NewInt(int64(16*i + round + 2)), Subject: pkix.Name{CommonName: nodeID(i, round).Data},
				NotBefore: Epoch.Add(-time.Hour), NotAfter: Epoch.Add(1000 * 24 * time.Hour), DNSNames: []string{nodeID(i, round).Data},
				KeyUsage: x509.KeyUsageDigitalSignature,
			}
			out[i][round] = credential{create(t, ca.cert, key.Public(), ca.key), key}
		}
	}
	return out
})

func create(t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) []byte {
	der, err := x509.CreateCertificate(zeroReader{}, t, parent, pub, key)
	if err != nil {
		panic(err)
	}
	return der
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// verifyKnown accepts the certificates of the simulator for their names, without the cost of
// looking at a chain: that is tested elsewhere.
func verifyKnown(q ike.CertQuery) error {
	for i, c := range credentials() {
		for round := range c {
			if bytes.Equal(c[round].der, q.Leaf) && round == q.Round && q.ID.Equal(nodeID(i, round)) {
				return nil
			}
		}
	}
	return errors.New("not a certificate of the simulator for this identity and round")
}
