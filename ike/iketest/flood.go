package iketest

import (
	"net/netip"
	"time"

	"wardgate/ike"
	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// spoofed is the network where nobody is, whose addresses a flood comes from.
var spoofed = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 0, 0}), 15)

// flood sends a node IKE_SA_INIT requests from addresses whose owners do not get the answers: one after
// the other, or all at once; from many addresses or from one; some with a cookie that was not asked for.
func (r *run) flood(o Op, n *simNode) {
	rng := fastRand{state: uint64(o.N)}
	count := 1 + int(rng.Uint64()%80)
	gap := time.Duration(rng.Uint64()%3) * 20 * time.Millisecond
	alone := rng.Uint64()%3 == 0
	n.asked += count
	group, size := suite.KEX25519, 32
	if r.plan.Groups && n.i%2 == 1 {
		return // the point of another group costs more to make than it shows
	}
	to := netip.AddrPortFrom(simAddr(n.i), 500)
	if len(n.addrs) > 0 {
		to = netip.AddrPortFrom(n.addrs[0], 500)
	}
	for i := range count {
		v := rng.Uint64()
		from := netip.AddrFrom4([4]byte{198, 18 + byte(v&1), byte(v >> 8), byte(v >> 16)})
		if alone {
			from = netip.AddrFrom4([4]byte{198, 18, 0, 1})
		}
		msg := stranger(&rng, group, size, v>>40%3 == 0)
		r.w.at(time.Duration(i)*gap, func() { r.deliver(netip.AddrPortFrom(from, 500), to, msg, true) })
	}
}

// stranger is an IKE_SA_INIT request as anybody can make it.
func stranger(rng *fastRand, group uint16, size int, cookie bool) []byte {
	h := message.Header{Exchange: message.ExchangeIKESAInit, Flags: message.FlagInitiator}
	nonce, ke, c := make([]byte, 32), make([]byte, size), make([]byte, 26) // as long as ours are
	for _, b := range [][]byte{h.SPIi[:], nonce, ke, c} {
		_, _ = rng.Read(b)
	}
	p := message.Proposal{Number: 1, Protocol: message.ProtocolIKE, Transforms: []message.Transform{
		message.NewTransform(message.TransformENCR, suite.EncrAESGCM16, 128),
		message.NewTransform(message.TransformPRF, suite.PRFHMACSHA256, 0),
		message.NewTransform(message.TransformKE, group, 0),
	}}
	ps := message.Payloads{&message.SA{Proposals: []message.Proposal{p}}, &message.KE{Method: message.KEMethod(group), Data: ke}, &message.Nonce{Data: nonce}}
	if cookie {
		ps = append(message.Payloads{message.NewNotify(message.NotifyCookie, c...)}, ps...)
	}
	msg, err := message.Encode(h, ps)
	if err != nil {
		panic(err) // nothing in it can be wrong
	}
	return msg
}

// defend sets the bounds of what strangers can make a node keep.
func (p *Plan) defend(c *ike.Config) {
	if p.Cookies != 0 {
		c.CookieThreshold = p.Cookies
		c.MaxHalfOpen = max(p.Cookies, 0) + 12
		c.PuzzleThreshold = c.MaxHalfOpen + 1 // never
	}
	if p.Puzzles != 0 {
		// As easy as they can be.
		c.PuzzleThreshold, c.PuzzleDifficulty, c.PuzzleMaxDifficulty = p.Puzzles, 8, 9
		c.SolveWork = 1 << 14 // and no more is done where the responder leaves it to the initiator
	}
}

// checkStrangers expects that a flood costs a node no more than it is willing to pay.
func (r *run) checkStrangers(n *simNode, v *View) {
	if r.plan.Cookies == 0 {
		return
	}
	count := 0
	for a, c := range v.HalfAt {
		if spoofed.Contains(a) {
			count += c
		}
	}
	if limit := max(r.plan.Cookies, 0); count > limit {
		r.violate("%s keeps %d half-open IKE SAs of initiators that never returned a cookie, at most %d may be (RFC 7296, section 2.6)", n.Name, count, limit)
	}
}
