package iketest

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

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
			_ = ep.Initiate(r.plan.connection(o))
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
			name, _ := r.plan.connection(o)
			ep.Terminate(name, "the plan")
		}
	case OpQueues:
		if up {
			_ = ep.WantQueues(r.plan.connName(o.Node, o.Peer), "net", int(o.N%5))
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
	case OpFlood:
		r.flood(o, n)
	case OpRedirect:
		r.redirect(o, n)
	case OpFalseRedirect:
		r.falseRedirect(n)
	case OpNoUDP:
		r.noUDP = o.N%2 == 1
	case OpBreakTCP:
		n.breakTCP()
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
		_ = n.Endpoint.SetPeers(slices.DeleteFunc(slices.Clone(n.conns), func(c *ike.PeerConfig) bool { return c.Name == r.plan.connName(o.Node, o.Peer) }))
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
		kinds = 16
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
	case 15: // a gateway where nobody may go
		exchange = 37
		ps = message.Payloads{message.NewNotify(message.NotifyRedirect, append([]byte{1, 4}, attacker.AsSlice()...)...)}
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
