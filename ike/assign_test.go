package ike_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
)

var (
	dialIn4 = netip.MustParsePrefix("10.9.0.0/29")
	dialIn6 = netip.MustParsePrefix("2001:db8:9::/64")
)

// watchedPool is a Pool that counts.
type watchedPool struct {
	*ike.Pool
	out   int // leases
	wants []netip.Addr
}

func newWatchedPool(networks ...netip.Prefix) *watchedPool {
	return &watchedPool{Pool: must(ike.NewPool(networks))}
}

func (p *watchedPool) Lease(q ike.LeaseQuery) (netip.Prefix, bool) {
	a, ok := p.Pool.Lease(q)
	if ok {
		p.out++
	}
	p.wants = append(p.wants, q.Want)
	return a, ok
}

func (p *watchedPool) Release(q ike.LeaseQuery, a netip.Addr) {
	p.out--
	p.Pool.Release(q, a)
}

// dialsIn makes A a peer that asks B for addresses.
func dialsIn(p *pair) {
	p.ca.Request = &ike.ConfigRequest{IPv4: ike.Required, IPv6: ike.Required, DNS: true}
	c := &p.ca.Children[0]
	c.LocalAssigned, c.LocalTS = true, []ike.Selector{ike.AnySelector(false), ike.AnySelector(true)}
	c.RemoteTS = append(prefix("10.2.0.0/24"), prefix("2001:db8:2::/64")...)
	p.cb.Remote = nil
	p.cb.Assign = &ike.Assign{
		IPv4: true, IPv6: true, DNS: []netip.Addr{netip.MustParseAddr("10.2.0.53"), netip.MustParseAddr("2001:db8:2::53")},
		DHCP: []netip.Addr{netip.MustParseAddr("10.2.0.67")}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")},
	}
	c = &p.cb.Children[0]
	c.RemoteAssigned, c.RemoteTS = true, append(prefix("10.9.0.0/29"), prefix("2001:db8:9::/64")...)
	c.LocalTS = append(prefix("10.2.0.0/24"), prefix("2001:db8:2::/64")...)
}

func withPool(pool ike.AddressPool) func(*ike.Config) {
	return func(c *ike.Config) { c.Addresses = pool }
}

// assigned expects A to have these addresses at both ends, and the CHILD SA to carry them and
// nothing else.
func (p *pair) assigned(want ...string) {
	p.t.Helper()
	var ts []ike.Selector
	for _, s := range want {
		a := netip.MustParseAddr(s)
		ts = append(ts, ike.PrefixSelector(netip.PrefixFrom(a, a.BitLen())))
	}
	for _, n := range []*iketest.Node{p.a, p.b} {
		got := ikeOf(p.t, n).Assigned
		if got == nil {
			p.t.Fatalf("%s: nothing is assigned", n.Name)
		}
		var list []string
		for _, a := range got.Addrs {
			list = append(list, a.Addr().String())
		}
		if !slices.Equal(list, want) {
			p.t.Errorf("%s: assigned %v, want %v", n.Name, list, want)
		}
		for _, c := range n.Children {
			end := c.LocalTS
			if n == p.b {
				end = c.RemoteTS
			}
			if !slices.Equal(end, ts) {
				p.t.Errorf("%s: CHILD SA carries %v of A, want %v", n.Name, end, ts)
			}
		}
	}
}

// TestAssign: addresses of both families and name servers, with each way of authentication; they stay
// through rekeys of everything by either end, and are free when the IKE SA is gone.
func TestAssign(t *testing.T) {
	t.Parallel()
	for name, both := range map[string]func(*ike.PeerConfig){
		"two rounds": func(*ike.PeerConfig) {}, "psk": psk, "hybrid": suites(t, hybridIKE, hybridESP),
		"childless": func(c *ike.PeerConfig) { c.Childless = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newWatchedPool(dialIn4, dialIn6)
			p := newPair(t, pairOptions{both: both, edit: dialsIn, eb: withPool(pool)})
			p.up()
			p.assigned("10.9.0.1", "2001:db8:9::1")
			got := ikeOf(t, p.a).Assigned
			if !slices.Equal(got.DNS, p.cb.Assign.DNS) || len(got.DHCP) > 0 || !slices.Equal(got.Subnets, p.cb.Assign.Subnets) {
				t.Errorf("A got %+v", got)
			}
			p.rekeyEverything()
			p.assigned("10.9.0.1", "2001:db8:9::1")
			if pool.out != 2 {
				t.Errorf("%d leases, want 2", pool.out)
			}
			p.a.Endpoint.Terminate("a-b", "test")
			p.w.For(time.Second)
			p.empty()
			if pool.out != 0 {
				t.Errorf("%d leases are left", pool.out)
			}
			if len(p.a.Refusals)+len(p.b.Refusals) > 0 {
				t.Errorf("refused: %s %s", texts(p.a.Refusals), texts(p.b.Refusals))
			}
		})
	}
}

// TestAssignWhere: the request stands in the first IKE_AUTH message, before SA; the reply in the last
// one, before SA too (RFC 7296, section 2.19).
func TestAssignWhere(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) { // two rounds, in messages of one piece
		for i := range c.LocalAuth {
			c.LocalAuth[i] = ike.LocalAuth{ID: c.LocalAuth[i].ID, PSK: []byte("secret of the two")}
			c.RemoteAuth[i] = ike.RemoteAuth{IDs: c.RemoteAuth[i].IDs, PSK: []byte("secret of the two"), RelatedToRound: -1}
		}
	}, edit: dialsIn, eb: withPool(newWatchedPool(dialIn4, dialIn6))})
	var where []string
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		n := p.a
		if from.Addr() == addrA {
			n = p.b
		}
		ps := n.Endpoint.Peek(msg)
		cp := slices.IndexFunc(ps, func(q message.Payload) bool { return q.PayloadType() == message.PayloadCP })
		sa := slices.IndexFunc(ps, func(q message.Payload) bool { return q.PayloadType() == message.PayloadSA })
		if cp >= 0 {
			where = append(where, fmt.Sprintf("%s %d before SA %v", n.Name, msg[23], cp < sa))
		}
		return true
	}
	p.up()
	if want := []string{"B 1 before SA true", "A 2 before SA true"}; !slices.Equal(where, want) {
		t.Errorf("configuration payloads: %v, want %v", where, want)
	}
}

// TestAssignKept: who comes back, whatever way, has the address that it had.
func TestAssignKept(t *testing.T) {
	t.Parallel()
	t.Run("reauthentication", func(t *testing.T) {
		t.Parallel()
		pool := newWatchedPool(dialIn4, dialIn6)
		p := newPair(t, pairOptions{edit: dialsIn, eb: withPool(pool)})
		p.up()
		for id := range p.a.IKE {
			if err := p.a.Endpoint.Reauthenticate(id); err != nil {
				t.Fatal(err)
			}
		}
		if !p.w.Until(time.Minute, func() bool { return ended(p.a, ike.ReasonReauthenticated) == 1 && len(p.b.IKE) == 1 }) {
			t.Fatal("not reauthenticated")
		}
		p.w.For(5 * time.Second)
		p.assigned("10.9.0.1", "2001:db8:9::1")
		p.carries()
		if pool.out != 2 {
			t.Errorf("%d leases, want 2", pool.out)
		}
	})
	t.Run("the gateway does not reauthenticate", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, pairOptions{edit: dialsIn, eb: withPool(newWatchedPool(dialIn4, dialIn6))})
		p.up()
		for id := range p.b.IKE {
			if err := p.b.Endpoint.Reauthenticate(id); err != nil {
				t.Fatal(err)
			}
		}
		p.w.For(time.Minute)
		p.counts(1, 1)
		p.assigned("10.9.0.1", "2001:db8:9::1")
	})
	t.Run("resumption after a restart of the gateway", func(t *testing.T) {
		t.Parallel()
		r := newResuming(t, pairOptions{edit: dialsIn, eb: withPool(newWatchedPool(dialIn4, dialIn6))})
		r.up()
		before := newWatchedPool(dialIn4, dialIn6)
		// The new life of the gateway knows of no lease; somebody else is faster.
		for _, v6 := range []bool{false, true} {
			before.Pool.Lease(ike.LeaseQuery{Peer: "x", IDs: []ike.Identity{fqdn("x.example")}, IPv6: v6, Want: netip.MustParseAddr("10.9.0.2")})
		}
		r.crash(withPool(before))
		r.up()
		r.resumed()
		if got := ikeOf(t, r.a).Assigned.Addrs[0].Addr(); got != netip.MustParseAddr("10.9.0.1") || before.wants[0] != got {
			t.Errorf("A has %v and asked for %v, want the one of before", got, before.wants)
		}
	})
	t.Run("A is restarted", func(t *testing.T) {
		t.Parallel()
		pool := newWatchedPool(dialIn4, dialIn6)
		p := newPair(t, pairOptions{edit: dialsIn, eb: withPool(pool)})
		p.up()
		p.a = must(p.w.NewNode("A2", addrA, nil))
		if err := p.a.Endpoint.SetPeers([]*ike.PeerConfig{p.ca}); err != nil {
			t.Fatal(err)
		}
		if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
			t.Fatal(err)
		}
		p.w.For(5 * time.Second)
		p.counts(1, 1)
		p.assigned("10.9.0.1", "2001:db8:9::1")
		if pool.out != 2 {
			t.Errorf("%d leases, want 2", pool.out)
		}
	})
}

// TestAssignExhausted: no address is left. The gateway says INTERNAL_ADDRESS_FAILURE and makes no
// CHILD SA; its IKE SA stays until the peer, who cannot do without, deletes it (section 3.15.4).
func TestAssignExhausted(t *testing.T) {
	t.Parallel()
	pool := newWatchedPool(netip.MustParsePrefix("10.9.0.1/32"))
	pool.Pool.Lease(ike.LeaseQuery{Peer: "x", IDs: []ike.Identity{fqdn("x.example")}})
	for name, edit := range map[string]func(p *pair){
		"required": dialsIn,
		"not required": func(p *pair) {
			dialsIn(p)
			p.ca.Request.IPv4, p.ca.Request.IPv6 = ike.Wanted, ike.Wanted
		},
		"one family": func(p *pair) {
			dialsIn(p)
			p.ca.Request.IPv4 = ike.NotWanted
		},
		"families of a connection without": func(p *pair) {
			dialsIn(p)
			p.cb.Assign.IPv4, p.cb.Assign.IPv6 = false, false
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, pairOptions{edit: edit, eb: withPool(pool)})
			if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
			if !p.w.Until(time.Minute, func() bool { return len(p.a.Failed) > 0 }) {
				t.Fatal("A was not told")
			}
			if len(p.b.IKE) != 1 || len(p.b.Children)+len(p.a.Children) != 0 || !slices.Equal(p.b.Codes(), []ike.Code{ike.CodeAddress}) {
				t.Errorf("B has %d IKE SAs and %d CHILD SAs, refused %s", len(p.b.IKE), len(p.b.Children), texts(p.b.Refusals))
			}
			var n *ike.PeerNotifyError
			if err := p.a.Failed[0]; !errors.As(err, &n) || n.Type != 36 || (name != "not required") != errors.Is(err, ike.ErrNoAddress) {
				t.Errorf("A was told %v", err)
			}
			p.w.For(time.Minute)
			p.empty()
			p.sound()
		})
	}
}

// TestAssignPart: one family is to be had, the other is not: the reply has the one, and the peer
// decides whether that is enough.
func TestAssignPart(t *testing.T) {
	t.Parallel()
	for _, enough := range []bool{true, false} {
		t.Run(fmt.Sprint(enough), func(t *testing.T) {
			t.Parallel()
			pool := newWatchedPool(dialIn4)
			p := newPair(t, pairOptions{edit: func(p *pair) {
				dialsIn(p)
				if enough {
					p.ca.Request.IPv6 = ike.Wanted
				}
			}, eb: withPool(pool)})
			if enough {
				p.up()
				p.assigned("10.9.0.1")
				return
			}
			if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
			p.w.For(time.Minute)
			p.empty()
			if len(p.a.Failed) != 1 || !errors.Is(p.a.Failed[0], ike.ErrNoAddress) || pool.out != 0 {
				t.Errorf("A was told %v, %d leases are left", p.a.Failed, pool.out)
			}
		})
	}
}

// TestAssignNotAskedFor: a peer that does not ask for the address that its CHILD SA needs is told
// FAILED_CP_REQUIRED; IKE SA and other CHILD SAs come to be. Once it asks, in an INFORMATIONAL
// exchange, it gets the CHILD SA (section 2.19).
func TestAssignNotAskedFor(t *testing.T) {
	t.Parallel()
	pool := newWatchedPool(dialIn4, dialIn6)
	p := newPair(t, pairOptions{edit: func(p *pair) {
		dialsIn(p)
		p.ca.Request, p.ca.Children[0].LocalAssigned = nil, false
		other := ike.ChildConfig{Name: "other", LocalTS: prefix("10.5.0.0/24"), RemoteTS: prefix("10.6.0.0/24"), Proposals: p.ca.Children[0].Proposals}
		p.ca.Children = append(p.ca.Children, other)
		other.LocalTS, other.RemoteTS = other.RemoteTS, other.LocalTS
		p.cb.Children = append(p.cb.Children, other)
	}, eb: withPool(pool)})
	for _, child := range []string{"net", "other"} {
		if err := p.a.Endpoint.Initiate("a-b", child); err != nil {
			t.Fatal(err)
		}
	}
	p.w.For(5 * time.Second)
	p.counts(1, 1)
	var n *ike.PeerNotifyError
	if len(p.a.Failed) != 1 || !errors.As(p.a.Failed[0], &n) || n.Type != 37 || !slices.Contains(p.a.Codes(), ike.CodeAddress) {
		t.Errorf("A was told %v", p.a.Failed)
	}
	if !slices.Equal(p.b.Codes(), []ike.Code{ike.CodeAddress}) || pool.out != 0 {
		t.Errorf("B refused %s, %d leases", texts(p.b.Refusals), pool.out)
	}
	p.b.Refusals = nil
	next, _ := p.a.Endpoint.IDs()
	got := configOf(p.asked(37, next, message.Payloads{&message.CP{Type: message.CfgRequest, Attributes: []message.CfgAttribute{{Type: message.CfgAttrInternalIP4Address}}}}))
	if got == nil || got.Type != message.CfgReply || pool.out != 1 {
		t.Fatalf("B answered %+v, %d leases", got, pool.out)
	}
	answer := p.asked(36, next+1, childRequest(0x10203040, prefix("0.0.0.0/0"), prefix("10.2.0.0/24")))
	if ts := answer.TSi(); ts == nil || len(ts.Selectors) != 1 || ts.Selectors[0].String() != "10.9.0.1-10.9.0.1" {
		t.Errorf("B answered %v, refused %s", answer, texts(p.b.Refusals))
	}
}

// childRequest asks for a CHILD SA.
func childRequest(spi uint32, tsi, tsr []ike.Selector) message.Payloads {
	sel := func(list []ike.Selector) (out []message.Selector) {
		for _, s := range list {
			out = append(out, message.NewSelector(s.Proto, s.StartPort, s.EndPort, s.Start, s.End))
		}
		return out
	}
	ps := hybridChild(4)
	sa := &message.SA{Proposals: []message.Proposal{{Number: 1, Protocol: message.ProtocolESP, SPI: []byte{byte(spi >> 24), byte(spi >> 16), byte(spi >> 8), byte(spi)}, Transforms: []message.Transform{
		message.NewTransform(message.TransformENCR, 20, 256), message.NewTransform(message.TransformKE, 31, 0), message.NewTransform(message.TransformSN, 0, 0),
	}}}}
	return message.Payloads{sa, ps[1], keOf(31, 32, 9), message.NewTSi(sel(tsi)...), message.NewTSr(sel(tsr)...)}
}

func configOf(ps message.Payloads) *message.CP {
	for _, p := range ps {
		if cp, ok := p.(*message.CP); ok {
			return cp
		}
	}
	return nil
}

// TestConfigRequests: what peers ask in an INFORMATIONAL exchange (sections 2.20 and 3.15), of a gateway
// that assigns addresses, and of one that does not. Nothing of it does harm.
func TestConfigRequests(t *testing.T) {
	t.Parallel()
	is := func(t message.CfgAttributeType, v ...byte) message.CfgAttribute {
		return message.CfgAttribute{Type: t, Value: v}
	}
	many := make([]message.CfgAttribute, 128)
	for i := range many {
		many[i] = is(message.CfgAttrInternalIP4Address)
	}
	const none = "no answer"
	for name, c := range map[string]struct {
		typ         message.CfgType
		ask         []message.CfgAttribute
		want, plain string // of a gateway that assigns nothing
	}{
		"version":           {message.CfgRequest, []message.CfgAttribute{is(message.CfgAttrApplicationVersion)}, "CFG_REPLY APPLICATION_VERSION()", "CFG_REPLY APPLICATION_VERSION()"},
		"version, with one": {message.CfgRequest, []message.CfgAttribute{is(message.CfgAttrApplicationVersion, 'x')}, "CFG_REPLY APPLICATION_VERSION()", "CFG_REPLY APPLICATION_VERSION()"},
		"what is known": {
			message.CfgRequest,
			[]message.CfgAttribute{is(message.CfgAttrSupportedAttributes)},
			"CFG_REPLY SUPPORTED_ATTRIBUTES(000100020003000600070008000a000c000d000e000f)", "CFG_REPLY SUPPORTED_ATTRIBUTES(000100020003000600070008000a000c000d000e000f)",
		},
		"nothing":            {message.CfgRequest, nil, "CFG_REPLY", "CFG_REPLY"},
		"unknown":            {message.CfgRequest, []message.CfgAttribute{is(16), is(999, 1, 2, 3), is(0x7fff)}, "CFG_REPLY", "CFG_REPLY"},
		"the same address":   {message.CfgRequest, []message.CfgAttribute{is(message.CfgAttrInternalIP4Address)}, "CFG_REPLY INTERNAL_IP4_ADDRESS(0a090001) INTERNAL_IP4_SUBNET(0a020000ffffff00)", "CFG_REPLY"},
		"another address":    {message.CfgRequest, []message.CfgAttribute{is(message.CfgAttrInternalIP4Address, 10, 9, 0, 5)}, "CFG_REPLY INTERNAL_IP4_ADDRESS(0a090001) INTERNAL_IP4_SUBNET(0a020000ffffff00)", "CFG_REPLY"},
		"many addresses":     {message.CfgRequest, many, "CFG_REPLY INTERNAL_IP4_ADDRESS(0a090001) INTERNAL_IP4_SUBNET(0a020000ffffff00)", "CFG_REPLY"},
		"a short address":    {message.CfgRequest, []message.CfgAttribute{is(message.CfgAttrInternalIP4Address, 10)}, "CFG_REPLY INTERNAL_IP4_ADDRESS(0a090001) INTERNAL_IP4_SUBNET(0a020000ffffff00)", "CFG_REPLY"},
		"servers":            {message.CfgRequest, []message.CfgAttribute{is(message.CfgAttrInternalIP4DNS), is(message.CfgAttrInternalIP6DNS), is(message.CfgAttrInternalIP4DHCP), is(message.CfgAttrInternalIP4NBNS)}, "CFG_REPLY INTERNAL_IP4_DNS(0a020035) INTERNAL_IP4_DHCP(0a020043) INTERNAL_IP6_DNS(20010db8000200000000000000000053)", "CFG_REPLY"},
		"networks":           {message.CfgRequest, []message.CfgAttribute{is(message.CfgAttrInternalIP4Subnet)}, "CFG_REPLY INTERNAL_IP4_SUBNET(0a020000ffffff00)", "CFG_REPLY"},
		"setting":            {message.CfgSet, []message.CfgAttribute{is(message.CfgAttrInternalIP4Address, 10, 0, 0, 1)}, "CFG_ACK", "CFG_ACK"},
		"a reply":            {message.CfgReply, []message.CfgAttribute{is(message.CfgAttrInternalIP4Address, 10, 0, 0, 1)}, none, none},
		"an acknowledgement": {message.CfgAck, nil, none, none},
		"another type":       {message.CfgType(77), nil, none, none},
	} {
		for _, assigns := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, %v", name, assigns), func(t *testing.T) {
				t.Parallel()
				pool := newWatchedPool(dialIn4, dialIn6)
				o := pairOptions{both: psk, eb: withPool(pool)}
				want := c.plain
				if assigns {
					o.edit, want = dialsIn, c.want
				}
				p := newPair(t, o)
				p.up()
				next, _ := p.a.Endpoint.IDs()
				got := none
				if cp := configOf(p.asked(37, next, message.Payloads{&message.CP{Type: c.typ, Attributes: c.ask}})); cp != nil {
					got = cp.Type.String()
					for _, a := range cp.Attributes {
						got += fmt.Sprintf(" %v(%x)", a.Type, a.Value)
					}
				}
				if got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				p.counts(1, 1)
			})
		}
	}
}

// TestAssignRefusesWhatMakesNoSense: connections that could not work.
func TestAssignRefusesWhatMakesNoSense(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(p *pair){
		"both":                  func(p *pair) { p.cb.Request = p.ca.Request },
		"no family":             func(p *pair) { p.cb.Assign, p.cb.Request = nil, &ike.ConfigRequest{DNS: true} },
		"assigns and initiates": func(p *pair) { p.cb.Remote = []netip.AddrPort{netip.AddrPortFrom(addrA, 500)} },
		"no Request":            func(p *pair) { p.cb.Children[0].LocalAssigned = true },
		"no Assign":             func(p *pair) { p.cb.Assign = nil },
		"a server":              func(p *pair) { p.cb.Assign.DNS = []netip.Addr{netip.IPv4Unspecified()} },
		"many servers":          func(p *pair) { p.cb.Assign.DNS = make([]netip.Addr, 9) },
		"no network":            func(p *pair) { p.cb.Assign.Subnets = []netip.Prefix{{}} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{edit: dialsIn, eb: withPool(newWatchedPool(dialIn4))})
			c := *p.cb
			a := *c.Assign
			c.Assign, c.Children = &a, slices.Clone(c.Children)
			p.cb = &c
			edit(p)
			if err := p.b.Endpoint.SetPeers([]*ike.PeerConfig{&c}); err == nil {
				t.Error("taken")
			}
		})
	}
	p := newPair(t, pairOptions{})
	dialsIn(p)
	if err := p.b.Endpoint.SetPeers([]*ike.PeerConfig{p.cb}); err == nil {
		t.Error("a connection without a pool was taken")
	}
}

// oneAddress is a pool that gives everybody the same address.
type oneAddress struct{ netip.Prefix }

func (o oneAddress) Lease(ike.LeaseQuery) (netip.Prefix, bool) { return o.Prefix, true }
func (o oneAddress) Release(ike.LeaseQuery, netip.Addr)        {}

// TestAssignTwoPeers: two peers have two addresses, also where the pool errs: the second one then has none.
func TestAssignTwoPeers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pool   ike.AddressPool
		second string
	}{
		"pool":                     {newWatchedPool(dialIn4), "10.9.0.2"},
		"the same address":         {oneAddress{netip.MustParsePrefix("10.9.0.1/32")}, ""},
		"of the other family":      {oneAddress{netip.MustParsePrefix("2001:db8:9::1/128")}, ""},
		"that is of no machine":    {oneAddress{netip.MustParsePrefix("0.0.0.0/32")}, ""},
		"without a prefix at all":  {oneAddress{}, ""},
		"outside of the selectors": {oneAddress{netip.MustParsePrefix("172.16.0.1/32")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := facilities()
			p := newPair(t, pairOptions{edit: dialsIn, eb: withPool(c.pool)})
			third := connection(t, "c-b", f[2], f[1], f[2].groupA, f[1].groupA, addrB, "10.1.0.0/24", "10.2.0.0/24")
			third.Request, third.Children = &ike.ConfigRequest{IPv4: ike.Required}, p.ca.Children
			p.ca.Request = third.Request
			atB := connection(t, "c-b", f[1], f[2], f[1].groupA, f[2].groupA, addrC, "10.2.0.0/24", "10.1.0.0/24")
			atB.Remote, atB.Assign, atB.Children = nil, p.cb.Assign, p.cb.Children
			if err := p.b.Endpoint.SetPeers([]*ike.PeerConfig{p.cb, atB}); err != nil {
				t.Fatal(err)
			}
			n := must(p.w.NewNode("C", addrC, nil))
			if err := n.Endpoint.SetPeers([]*ike.PeerConfig{third}); err != nil {
				t.Fatal(err)
			}
			initiate(t, p.a, "a-b")
			p.w.For(time.Second)
			initiate(t, n, "c-b")
			p.w.For(5 * time.Second)
			if c.second == "" {
				if len(n.Failed) != 1 || len(n.Children) > 0 {
					t.Errorf("C was told %v, has %d CHILD SAs", n.Failed, len(n.Children))
				}
				return
			}
			if got := ikeOf(t, n).Assigned.Addrs[0].Addr().String(); got != c.second || textOf(childOf(t, n).LocalTS) != c.second {
				t.Errorf("C has %s, want %s", got, c.second)
			}
		})
	}
}
