package ike_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/suite"
	"wardgate/internal/labca"
)

func TestDoubleAuthentication(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	p.counts(1, 1)
	for _, i := range p.b.IKE {
		if len(i.RemoteIDs) != 2 || !i.RemoteIDs[0].Equal(fqdn("a.devices.example")) || !i.RemoteIDs[1].Equal(fqdn("a.group-a.example")) {
			t.Errorf("B knows its peer as %v", i.RemoteIDs)
		}
		if i.Suite != defaultIKE {
			t.Errorf("suite %s, want %s", i.Suite, defaultIKE)
		}
		if i.NATLocal || i.NATRemote || i.Path.Encap {
			t.Errorf("B found a NAT where there is none: %+v", i)
		}
	}
	for _, c := range p.a.Children {
		if c.Path.Encap || c.Path.Remote.Port() != 500 || len(c.RemoteIDs) != 2 {
			t.Errorf("path %v, identities %v", c.Path, c.RemoteIDs)
		}
	}
	p.a.Endpoint.Terminate("a-b", "test")
	p.w.For(time.Second)
	p.empty()
	if got := p.b.Ended[0].Code; got != ike.ReasonDeletedByPeer {
		t.Errorf("B's reason is %q", got)
	}
}

// oneRound makes both sides authenticate with a PSK.
func psk(c *ike.PeerConfig) {
	c.LocalAuth = []ike.LocalAuth{{ID: c.LocalAuth[0].ID, PSK: []byte("secret of the two")}}
	c.RemoteAuth = []ike.RemoteAuth{{IDs: c.RemoteAuth[0].IDs, PSK: []byte("secret of the two"), RelatedToRound: -1}}
}

func single(c *ike.PeerConfig) {
	c.LocalAuth, c.RemoteAuth = c.LocalAuth[:1], c.RemoteAuth[:1]
}

func TestOneRound(t *testing.T) {
	t.Parallel()
	for name, both := range map[string]func(*ike.PeerConfig){"psk": psk, "certificate": single} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: both})
			p.up()
			p.counts(1, 1)
		})
	}
}

func TestSuites(t *testing.T) {
	t.Parallel()
	for _, s := range [][2]string{
		{"aes256gcm16-prfsha384-x25519", "aes256gcm16-x25519"},
		{"aes128gcm16-prfsha256-ecp256", "aes128gcm16-ecp256"},
		{"aes256gcm16-prfsha512-ecp384", "aes256gcm16-ecp384"},
		{"aes256gcm16-prfsha512-ecp521", "aes256gcm16-ecp521"},
		{"aes256gcm16-prfsha256-modp2048", "aes256gcm16-modp2048"},
		{"aes128-sha256-prfsha256-modp3072", "aes128-sha256-modp3072"},
		{"aes256-sha384-prfsha384-ecp384", "aes256-sha384"},
		{"aes256-sha512-prfsha512-x25519", "aes256-sha512"},
		{"chacha20poly1305-prfsha256-x25519", "chacha20poly1305"},
		{"aes256gcm16-prfsha384-x25519", "aes128gcm16-esn"},
	} {
		t.Run(s[0]+"/"+s[1], func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) {
				c.Proposals = proposals(t, suite.ProtocolIKE, s[0])
				c.Children[0].Proposals = proposals(t, suite.ProtocolESP, s[1])
			}})
			p.up()
			for _, i := range p.a.IKE {
				if i.Suite != s[0] {
					t.Errorf("suite %s, want %s", i.Suite, s[0])
				}
			}
			p.rekeyEverything()
		})
	}
}

func TestKeyTypes(t *testing.T) {
	t.Parallel()
	for _, k := range []labca.KeyType{labca.P384, labca.RSA2048, labca.Ed25519} {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			f, g := newFacility("x", k), newFacility("y", k)
			p := newPair(t, pairOptions{edit: func(p *pair) {
				p.ca = connection(t, "a-b", f, g, f.groupA, g.groupA, addrB, "10.1.0.0/24", "10.2.0.0/24")
				p.cb = connection(t, "a-b", g, f, g.groupA, f.groupA, addrA, "10.2.0.0/24", "10.1.0.0/24")
			}})
			p.up()
		})
	}
}

func TestCookie(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{eb: func(c *ike.Config) { c.CookieThreshold = -1 }})
	made := 0
	p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
		if msg[18] == 34 && msg[19]&0x20 != 0 {
			made++
			if made == 1 && p.b.Endpoint.HalfOpen() != 0 {
				t.Error("B keeps state for an initiator whose address it has not seen proved")
			}
		}
		return true
	}
	p.up()
	if made != 2 {
		t.Errorf("B answered %d IKE_SA_INIT requests, want 2: the cookie, then the real answer", made)
	}
}

func TestInvalidKE(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{edit: func(p *pair) {
		p.ca.Proposals = proposals(t, suite.ProtocolIKE, "aes256gcm16-prfsha384-x25519-ecp384")
		p.cb.Proposals = proposals(t, suite.ProtocolIKE, "aes256gcm16-prfsha384-ecp384")
		p.ca.Children[0].Proposals = proposals(t, suite.ProtocolESP, "aes256gcm16-x25519-ecp256")
		p.cb.Children[0].Proposals = proposals(t, suite.ProtocolESP, "aes256gcm16-ecp256")
	}})
	p.up()
	for _, i := range p.a.IKE {
		if i.Suite != "aes256gcm16-prfsha384-ecp384" {
			t.Errorf("suite %s", i.Suite)
		}
	}
	// The same in CREATE_CHILD_SA.
	p.rekeyEverything()
}

func TestCookieAndInvalidKE(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{
		eb: func(c *ike.Config) { c.CookieThreshold = -1 },
		edit: func(p *pair) {
			p.ca.Proposals = proposals(t, suite.ProtocolIKE, "aes256gcm16-prfsha384-x25519-ecp384")
			p.cb.Proposals = proposals(t, suite.ProtocolIKE, "aes256gcm16-prfsha384-ecp384")
		},
	})
	p.up()
}

// TestHostileInvalidKE: a group that we did not offer is not taken, whoever asks for it.
func TestHostileInvalidKE(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	forged := false
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if msg[18] == 34 && msg[19]&0x20 == 0 && !forged {
			forged = true
			// INVALID_KE_PAYLOAD for MODP-2048, NO_PROPOSAL_CHOSEN, and rubbish, all in front of the answer.
			for _, n := range [][]byte{{0, 0, 0, 10, 0, 0, 0, 17, 0, 14}, {0, 0, 0, 8, 0, 0, 0, 14}, {0, 0, 0, 9, 0, 0, 0, 1, 1}} {
				f := slices.Concat(msg[:8], make([]byte, 8), []byte{41, 0x20, 34, 0x20, 0, 0, 0, 0, 0, 0, 0, byte(28 + len(n))}, n)
				p.w.Deliver(to, from, f)
			}
		}
		return true
	}
	p.up()
	if len(p.a.Failed) != 0 {
		t.Errorf("A failed: %v", p.a.Failed)
	}
}

func TestFragmentation(t *testing.T) {
	t.Parallel()
	small := func(c *ike.Config) { c.FragmentSize = 512 }
	p := newPair(t, pairOptions{seed: 7, ea: small, eb: small})
	p.w.Link.MTU = 600
	fragments := 0
	p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
		if msg[16] == 53 {
			fragments++
			if len(msg) > 512 {
				t.Errorf("a fragment of %d octets", len(msg))
			}
		}
		return true
	}
	p.w.Link.Loss, p.w.Link.Dup, p.w.Link.Jitter = 0.15, 0.2, 40*time.Millisecond
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	if !p.w.Until(time.Minute, func() bool { return len(p.a.Children) == 1 && len(p.b.Children) == 1 }) {
		t.Fatal("did not come up")
	}
	if fragments < 10 {
		t.Errorf("%d fragments only", fragments)
	}
	p.sound()
}

func TestForceEncap(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*pair){
		"initiator": func(p *pair) { p.ca.ForceEncap = true },
		"responder": func(p *pair) { p.cb.ForceEncap = true },
		"both":      func(p *pair) { p.ca.ForceEncap, p.cb.ForceEncap = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{edit: edit})
			p.up()
			for _, n := range []*iketest.Node{p.a, p.b} {
				for _, c := range n.Children {
					if !c.Path.Encap || c.Path.Remote.Port() != 4500 || c.Path.Local.Port() != 4500 {
						t.Errorf("%s uses %v", n.Name, c.Path)
					}
				}
			}
			p.rekeyEverything()
		})
	}
}

func TestNAT(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	nat := &iketest.NAT{Inside: addrA, Outside: netip.MustParseAddr("203.0.113.9"), Shift: 1000}
	p.w.AddNAT(nat)
	p.up()
	for _, i := range p.a.IKE {
		if !i.NATLocal || i.NATRemote {
			t.Errorf("A: %+v", i)
		}
	}
	for _, c := range p.b.Children {
		if !c.Path.Encap || c.Path.Remote != netip.MustParseAddrPort("203.0.113.9:5500") {
			t.Errorf("B uses %v", c.Path)
		}
	}
	// Keepalives come from the end behind the NAT alone.
	p.w.For(2 * time.Minute)
	if p.a.Keepalives == 0 || p.b.Keepalives != 0 {
		t.Errorf("keepalives: A %d, B %d", p.a.Keepalives, p.b.Keepalives)
	}
	// The NAT forgets, and gives another port: B follows with the next authentic message.
	nat.Shift = 2000
	p.w.For(2 * time.Minute)
	if len(p.b.Paths) != 1 || p.b.Paths[0].Remote != netip.MustParseAddrPort("203.0.113.9:6500") || len(p.a.Paths) != 0 {
		t.Errorf("B's paths %v, A's %v", p.b.Paths, p.a.Paths)
	}
	p.rekeyEverything()
}

// TestPathIsNotFollowedBlindly: a repeated or forged message from elsewhere moves nothing.
func TestPathIsNotFollowedBlindly(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.w.AddNAT(&iketest.NAT{Inside: addrA, Outside: netip.MustParseAddr("203.0.113.9"), Shift: 1000})
	var last []byte
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if from.Addr() != addrB {
			last = slices.Clone(msg)
		}
		return true
	}
	p.up()
	p.w.For(time.Minute)
	thief := netip.MustParseAddrPort("198.51.100.66:4500")
	p.w.Deliver(thief, netip.AddrPortFrom(addrB, 4500), last)
	last[len(last)-1] ^= 1
	p.w.Deliver(thief, netip.AddrPortFrom(addrB, 4500), last)
	last[23]++ // the next message ID
	p.w.Deliver(thief, netip.AddrPortFrom(addrB, 4500), last)
	p.w.For(time.Second)
	if len(p.b.Paths) != 0 {
		t.Errorf("B followed to %v", p.b.Paths)
	}
}

func TestUnknownSourceAddress(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{ea: func(c *ike.Config) { c.SourceAddr = nil }})
	p.up()
}

func TestSecondGateway(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{edit: func(p *pair) {
		p.ca.Remote = []netip.AddrPort{netip.AddrPortFrom(addrC, 0), netip.AddrPortFrom(addrB, 0)}
		p.ca.Retransmit = ike.Retransmit{Initial: 500 * time.Millisecond, Tries: 2}
	}})
	p.up()
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.w.Link.Cut = true
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(2 * time.Minute)
	if len(p.a.Failed) != 1 {
		t.Errorf("failed %v", p.a.Failed)
	}
	p.empty()
}

// TestServiceDecides: two connections with one peer differ in the service alone. The identity of
// the second round decides which it is, and so which own credential answers.
func TestServiceDecides(t *testing.T) {
	t.Parallel()
	f := facilities()
	p := newPair(t, pairOptions{})
	mk := func(me, peer *facility, remote netip.Addr, l, r string) []*ike.PeerConfig {
		a := connection(t, "group-a", me, peer, me.groupA, peer.groupA, remote, "10."+l+".1.0/24", "10."+r+".1.0/24")
		b := connection(t, "group-b", me, peer, me.groupB, peer.groupB, remote, "10."+l+".2.0/24", "10."+r+".2.0/24")
		return []*ike.PeerConfig{a, b}
	}
	if err := p.a.Endpoint.SetPeers(mk(f[0], f[1], addrB, "1", "2")); err != nil {
		t.Fatal(err)
	}
	if err := p.b.Endpoint.SetPeers(mk(f[1], f[0], addrA, "2", "1")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"group-b", "group-a"} {
		if err := p.a.Endpoint.Initiate(name, "net"); err != nil {
			t.Fatal(err)
		}
	}
	p.w.For(5 * time.Second)
	p.counts(2, 2)
	for _, n := range []*iketest.Node{p.a, p.b} {
		for _, c := range n.Children {
			if got := c.RemoteIDs[1].Data; got[2:] != c.Peer+".example" {
				t.Errorf("%s: connection %s with the service identity %s", n.Name, c.Peer, got)
			}
		}
	}
	for _, name := range []string{"group-a/net", "group-b/net"} {
		if err := p.a.Carries(p.b, name); err != nil {
			t.Error(err)
		}
	}
	p.sound()
}

// TestUnauthorisedService: B has no contract for group B; A proves group B all the same.
func TestUnauthorisedService(t *testing.T) {
	t.Parallel()
	f := facilities()
	p := newPair(t, pairOptions{edit: func(p *pair) {
		p.ca.LocalAuth[1] = f[0].groupB.auth("service")
	}})
	p.refusedAt(p.b, ike.CodeUnknownIdentity, 1)
}

func TestBothInitiate(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 20; seed++ {
		p := newPair(t, pairOptions{seed: seed})
		p.w.Link.Jitter = 20 * time.Millisecond
		for _, n := range []*iketest.Node{p.a, p.b} {
			if err := n.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
		}
		p.w.For(10 * time.Second)
		if len(p.a.IKE) != len(p.b.IKE) || len(p.a.IKE) == 0 || len(p.a.Children) != len(p.b.Children) {
			t.Errorf("seed %d: A has %d IKE SAs and %d CHILD SAs, B %d and %d", seed, len(p.a.IKE), len(p.a.Children), len(p.b.IKE), len(p.b.Children))
		}
		p.sound()
	}
}

func TestNarrowing(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{edit: func(p *pair) {
		p.ca.Children[0].LocalTS = append(prefix("10.1.0.0/16"), prefix("fd00:1::/32")...)
		p.ca.Children[0].RemoteTS = append(prefix("10.2.0.0/16"), prefix("fd00:2::/32")...)
		p.cb.Children[0].LocalTS = []ike.Selector{{Proto: 6, StartPort: 104, EndPort: 104, Start: netip.MustParseAddr("10.2.3.4"), End: netip.MustParseAddr("10.2.3.9")}}
		p.cb.Children[0].RemoteTS = append(prefix("10.1.7.0/24"), prefix("10.1.9.0/24")...)
	}})
	p.up()
	for _, c := range p.a.Children {
		if len(c.LocalTS) != 2 || c.LocalTS[0].String() != "10.1.7.0..10.1.7.255" || len(c.RemoteTS) != 1 || c.RemoteTS[0].String() != "10.2.3.4..10.2.3.9[6/104]" {
			t.Errorf("A protects %v to %v", c.LocalTS, c.RemoteTS)
		}
	}
	p.rekeyEverything()
}

func TestSecondChild(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) {
		o := c.Children[0]
		o.Name = "other"
		o.LocalTS, o.RemoteTS = prefix("10.9.0.0/24"), prefix("10.9.0.0/24")
		c.Children = append(c.Children, o)
	}})
	// Both are asked for before the IKE SA stands, one of them twice.
	for _, c := range []string{"net", "other", "net"} {
		if err := p.a.Endpoint.Initiate("a-b", c); err != nil {
			t.Fatal(err)
		}
	}
	p.w.For(5 * time.Second)
	p.counts(1, 2)
	for _, name := range []string{"a-b/net", "a-b/other"} {
		if err := p.a.Carries(p.b, name); err != nil {
			t.Error(err)
		}
	}
	// One is deleted, the other stays.
	for id, c := range p.a.Children {
		if c.Child == "net" {
			if err := p.a.Endpoint.DeleteChild(id, "idle"); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.w.For(time.Second)
	p.counts(1, 1)
	// And comes back from the other end, over the same IKE SA.
	if err := p.b.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(time.Second)
	p.counts(1, 2)
	p.carries()
}

// TestNoCommonChild: the IKE SA stands for a moment, no CHILD SA, and both sides say why.
func TestNoCommonChild(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edit func(*pair)
		code ike.Code
	}{
		"selectors": {func(p *pair) { p.cb.Children[0].RemoteTS = prefix("10.7.0.0/24") }, ike.CodeTSUnacceptable},
		"proposals": {func(p *pair) { p.cb.Children[0].Proposals = proposals(t, suite.ProtocolESP, "aes128-sha256") }, ike.CodeNoProposal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{edit: c.edit})
			if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
			p.w.For(5 * time.Second)
			for _, n := range []*iketest.Node{p.a, p.b} {
				if !slices.Contains(n.Codes(), c.code) {
					t.Errorf("%s refused with %v, want %s", n.Name, n.Codes(), c.code)
				}
				t.Logf("%s: %s", n.Name, texts(n.Refusals))
			}
			if len(p.a.Failed) != 1 {
				t.Errorf("A failed %v", p.a.Failed)
			}
			p.empty()
			p.sound()
		})
	}
}

func TestSetPeersRefusesWhatProvesNothing(t *testing.T) {
	t.Parallel()
	f := facilities()
	good := func() *ike.PeerConfig {
		return connection(t, "a-b", f[0], f[1], f[0].groupA, f[1].groupA, addrB, "10.1.0.0/24", "10.2.0.0/24")
	}
	p := newPair(t, pairOptions{})
	for name, spoil := range map[string]func(*ike.PeerConfig){
		"no name":            func(c *ike.PeerConfig) { c.Name = "" },
		"no proposals":       func(c *ike.PeerConfig) { c.Proposals = nil },
		"no rounds":          func(c *ike.PeerConfig) { c.LocalAuth, c.RemoteAuth = nil, nil },
		"uneven rounds":      func(c *ike.PeerConfig) { c.RemoteAuth = c.RemoteAuth[:1] },
		"no identity":        func(c *ike.PeerConfig) { c.RemoteAuth[1].IDs = nil },
		"no anchor":          func(c *ike.PeerConfig) { c.RemoteAuth[1].Anchors = nil },
		"bound to itself":    func(c *ike.PeerConfig) { c.RemoteAuth[1].RelatedToRound = 1 },
		"first round bound":  func(c *ike.PeerConfig) { c.RemoteAuth[0].RelatedToRound = 0 },
		"psk and anchor":     func(c *ike.PeerConfig) { c.RemoteAuth[0].PSK = []byte("x") },
		"no signer":          func(c *ike.PeerConfig) { c.LocalAuth[0].Signer = nil },
		"key of another":     func(c *ike.PeerConfig) { c.LocalAuth[0].Signer = f[1].device.key },
		"no child":           func(c *ike.PeerConfig) { c.Children = nil },
		"no selectors":       func(c *ike.PeerConfig) { c.Children[0].LocalTS = nil },
		"selector backwards": func(c *ike.PeerConfig) { s := &c.Children[0].LocalTS[0]; s.Start, s.End = s.End, s.Start },
		"no ESP proposal":    func(c *ike.PeerConfig) { c.Children[0].Proposals = nil },
		"two of a name":      func(c *ike.PeerConfig) { c.Children = append(c.Children, c.Children[0]) },
		"empty local ID":     func(c *ike.PeerConfig) { c.LocalAuth[0].ID = ike.Identity{} },
	} {
		c := good()
		spoil(c)
		if err := p.a.Endpoint.SetPeers([]*ike.PeerConfig{c}); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	if err := p.a.Endpoint.SetPeers([]*ike.PeerConfig{good(), good()}); err == nil {
		t.Error("two connections of one name: accepted")
	}
	p.up() // what was there before still is
}
