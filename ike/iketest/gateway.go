package iketest

import (
	"net/netip"
	"time"

	"wardgate/ike"
	"wardgate/ike/message"
)

// gateways are the addresses at which the connections with node j may be served.
func (p *Plan) gateways(j int) (out []netip.Prefix) {
	for i := range p.Nodes {
		if p.role(i) != j {
			continue
		}
		for k := range maxAddrs {
			a := nodeAddr(i, k)
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// sendTo is where a node sends whom it is to serve (RFC 5685): when IKE_SA_INIT comes, and when all is
// proved. The zero Addr: nowhere else.
type sendTo struct {
	fresh, proved netip.Addr
	round         bool // fresh ones go from each address to the next one, and back in the end
}

// answer is the answer of a gateway to an initiator.
func (n *simNode) answer(q ike.RedirectQuery) netip.Addr {
	switch {
	case q.Peer != "":
		return n.sendTo.proved
	case n.sendTo.round:
		all := n.run.plan.gateways(n.run.plan.role(n.i))
		for i, g := range all {
			if g.Addr() == q.Path.Local.Addr() {
				return all[(i+1)%len(all)].Addr()
			}
		}
	}
	return n.sendTo.fresh
}

// redirect has a node send initiators elsewhere, those that it serves or those that come.
func (r *run) redirect(o Op, n *simNode) {
	v := int(o.N)
	all := r.plan.gateways(r.plan.role(n.i))
	to := all[v/32%len(all)].Addr()
	switch v % 4 {
	case 0, 1:
		name, _ := r.plan.connection(o)
		k, _ := n.Endpoint.Redirect(name, to)
		r.lively += k
	case 2:
		n.sendTo.fresh, n.sendTo.round = to, v/4%4 == 1
	case 3:
		n.sendTo.proved = to
	}
	if v/4%4 == 0 {
		n.sendTo = sendTo{}
	}
}

// falseRedirect has an attacker answer the last IKE_SA_INIT request of a node, without its nonce: it has
// not seen it.
func (r *run) falseRedirect(n *simNode) {
	if n.init.spi == (message.SPI{}) {
		return
	}
	h := message.Header{SPIi: n.init.spi, Exchange: message.ExchangeIKESAInit, Flags: message.FlagResponse}
	nonce := make([]byte, 32)
	_, _ = n.rand.Read(nonce)
	msg, err := message.Encode(h, message.Payloads{message.NewNotify(message.NotifyRedirect, append(append([]byte{1, 4}, decoy.AsSlice()...), nonce...)...)})
	if err == nil {
		r.deliver(n.init.to, r.seen(n.init.from), msg, true)
	}
}

// lastInit is the last IKE_SA_INIT request of a node, and how many there were.
type lastInit struct {
	spi           message.SPI
	from, to      netip.AddrPort
	begun, sentOn int
}

// maxSentOn is how often an initiator lets itself be sent on: five times in five minutes (RFC 5685,
// section 7), where each time another attempt may be needed because the group was the wrong one. What is
// tried again later, every thirty seconds at most, begins where it was sent.
const (
	maxSentOn  = 10
	triedAgain = 30 * time.Second
)

// initiates looks at an IKE_SA_INIT request: it goes where a node is, or was, and not for ever from one gateway to the next.
func (r *run) initiates(n *simNode, from, to netip.AddrPort, m *message.Message, fresh bool) {
	// Where the peer is now, behind a NAT or moved (RFC 4555), it is asked to prove itself anew.
	// Without MOBIKE an authentic packet from elsewhere moves who is behind a NAT (RFC 7296, section 2.23).
	if a := to.Addr(); a == decoy || r.owner[a] == nil && !n.told[a] && !n.moved[a] && !r.stolen {
		r.violate("%s goes to %v, where only an attacker sends it", n.Name, to)
	}
	n.init.spi, n.init.from, n.init.to = m.SPIi, from, to
	if !fresh {
		return
	}
	if m.Payloads.HasNotify(message.NotifyRedirectedFrom) {
		n.init.sentOn++
	} else {
		n.init.begun++
	}
	if n.init.sentOn > maxSentOn*(n.init.begun+r.lively+1+int(r.w.Now().Sub(Epoch)/triedAgain)) {
		r.violate("%s goes from one gateway to the next %d times (RFC 5685, section 7)", n.Name, n.init.sentOn)
	}
}
