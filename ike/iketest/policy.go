package iketest

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"wardgate/ike"
	"wardgate/ike/suite"
)

// role is whose identities and connections a node has: with Plan.Twin the last node is another
// gateway for what the one before it serves.
func (p *Plan) role(i int) int {
	if p.Twin && i == 2 {
		return 1
	}
	return i
}

// connName names the connection of two nodes.
func (p *Plan) connName(a, b int) string {
	a, b = p.role(a), p.role(b)
	return fmt.Sprintf("%c-%c", 'A'+min(a, b), 'A'+max(a, b))
}

// connection is what o is about: a connection, and a CHILD SA of it.
func (p *Plan) connection(o Op) (name, child string) {
	name = p.connName(o.Node, o.Peer)
	if p.Second && o.N%4 == 3 {
		return name + " far", "far"
	}
	return name, []string{"net", "other"}[o.N%2]
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

// proposals are those of a node for IKE and CHILD SAs.
func (p *Plan) proposals(me int) (forIKE, forESP []suite.Proposal) {
	ikeKE, espKE := "-x25519", ""
	if p.Groups {
		ikeKE = []string{"-x25519-ecp256", "-ecp256"}[me%2]
	}
	if p.PFS {
		espKE = []string{"-x25519-ecp256", "-ecp256"}[me%2]
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
	return proposalsOf(suite.ProtocolIKE, "aes128gcm16-prfsha256"+ikeKE), proposalsOf(suite.ProtocolESP, "aes128gcm16"+espKE)
}

// network is what is behind a node, for one of the CHILD SAs.
func network(hi, i int) []ike.Selector {
	return []ike.Selector{ike.PrefixSelector(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(hi + i), 0, 0}), 24))}
}

// connections are those of a node with all others.
func (r *run) connections(n *simNode) []*ike.PeerConfig {
	p, me := r.plan, r.plan.role(n.i)
	forIKE, forESP := p.proposals(me)
	var out []*ike.PeerConfig
	for j := range p.Nodes {
		if j == me || p.Twin && (j == 2 || me > 0 && j > 0) {
			continue
		}
		c := &ike.PeerConfig{
			Name: p.connName(me, j), Proposals: forIKE,
			RekeyIKE: p.RekeyIKE, RekeyChild: p.RekeyChild, LivenessInterval: p.Liveness,
			Retransmit: ike.Retransmit{Initial: p.Retransmit, Factor: 1.8, Tries: 4},
			Children: []ike.ChildConfig{
				{Name: "net", LocalTS: network(0, me), RemoteTS: network(0, j), Proposals: forESP, Queues: p.Queues[me%2]},
				{Name: "other", LocalTS: network(100, me), RemoteTS: network(100, j), Proposals: forESP},
			},
			Mobike: p.Mobike[me%2], TCP: ike.TCPMode(p.TCP[me%2]),
		}
		if p.RekeyIKE == 0 {
			c.RekeyIKE = 10000 * time.Hour
		}
		if p.RekeyChild == 0 {
			c.RekeyChild = 10000 * time.Hour
		}
		c.Reauth, c.Childless = p.Reauth, p.Childless[me%2]
		for k := range max(p.Addrs[j%2], 1) {
			if !(p.NAT && j == 0 && k == 0) { // what is behind a NAT cannot be reached
				c.Remote = append(c.Remote, netip.AddrPortFrom(nodeAddr(j, k), 500))
			}
		}
		if p.Redirect {
			c.RedirectTo = append(p.gateways(j), netip.PrefixFrom(decoy, 32))
		}
		if p.Config {
			r.assigns(c, n, j)
		}
		r.prove(c, n, j)
		out = append(out, c)
		if p.Second {
			far := *c
			far.Name += " far"
			far.Children = []ike.ChildConfig{{Name: "far", LocalTS: network(200, me), RemoteTS: network(200, j), Proposals: forESP}}
			far.Request, far.Assign = nil, nil
			out = append(out, &far)
		}
	}
	return out
}

// prove says how both ends of a connection prove who they are.
func (r *run) prove(c *ike.PeerConfig, n *simNode, j int) {
	p, me := r.plan, r.plan.role(n.i)
	for round := range p.rounds() {
		l := ike.LocalAuth{ID: nodeID(me, round)}
		a := ike.RemoteAuth{IDs: []ike.Identity{nodeID(j, round)}, RelatedToRound: -1}
		if p.Auth == AuthCert2 {
			cred := credentials()[me][round]
			l.Chain, l.Signer = [][]byte{cred.der}, &signer{cred.key, n}
			a.Anchors = []*x509.Certificate{authority().cert}
		} else {
			l.PSK = fmt.Appendf(nil, "%s round %d", c.Name, round)
			a.PSK = l.PSK
		}
		if round == 0 && p.PPK[me%2] {
			a.PPKs = []ike.PPK{{ID: c.Name, Secret: bytes.Repeat([]byte(c.Name), 16)}}
		}
		c.LocalAuth, c.RemoteAuth = append(c.LocalAuth, l), append(c.RemoteAuth, a)
	}
}
