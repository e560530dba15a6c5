package ike_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/suite"
)

// siblings gives both ends of p n connections "s0" … that differ in name and selectors alone:
// 10.1.i.0/24 at A, 10.2.i.0/24 at B. edit may change the two ends of one.
func (p *pair) siblings(n int, both func(*ike.PeerConfig), edit func(i int, a, b *ike.PeerConfig)) {
	p.t.Helper()
	f := facilities()
	var as, bs []*ike.PeerConfig
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		l, r := fmt.Sprintf("10.1.%d.0/24", i), fmt.Sprintf("10.2.%d.0/24", i)
		a := connection(p.t, name, f[0], f[1], f[0].groupA, f[1].groupA, addrB, l, r)
		b := connection(p.t, name, f[1], f[0], f[1].groupA, f[0].groupA, addrA, r, l)
		if both != nil {
			both(a)
			both(b)
		}
		if edit != nil {
			edit(i, a, b)
		}
		as, bs = append(as, a), append(bs, b)
	}
	slices.Reverse(bs) // the order of one end means nothing to the other
	if err := p.a.Endpoint.SetPeers(as); err != nil {
		p.t.Fatal(err)
	}
	if err := p.b.Endpoint.SetPeers(bs); err != nil {
		p.t.Fatal(err)
	}
}

func initiate(t testing.TB, n *iketest.Node, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := n.Endpoint.Initiate(name, "net"); err != nil {
			t.Fatal(err)
		}
	}
}

// stand expects exactly these connections to stand at both ends, each of them carrying traffic.
func (p *pair) stand(names ...string) {
	p.t.Helper()
	p.counts(len(names), len(names))
	for _, n := range []*iketest.Node{p.a, p.b} {
		if len(n.Refusals)+len(n.Failed) != 0 {
			p.t.Errorf("%s refused %s, failed %v", n.Name, texts(n.Refusals), n.Failed)
		}
		for _, c := range n.Children {
			if i := n.IKE[c.SA]; i.Peer != c.Peer {
				p.t.Errorf("%s: CHILD SA of connection %s in an IKE SA of %s", n.Name, c.Peer, i.Peer)
			}
		}
	}
	for _, name := range names {
		if err := p.a.Carries(p.b, name+"/net"); err != nil {
			p.t.Error(err)
		}
		if err := p.b.Carries(p.a, name+"/net"); err != nil {
			p.t.Error(err)
		}
	}
	p.sound()
}

// TestSiblings: several connections between the same identities, one IKE SA each. The selectors
// alone tell a responder which one is meant, and none ends another.
func TestSiblings(t *testing.T) {
	t.Parallel()
	all := []string{"s0", "s1", "s2", "s3"}
	for name, both := range map[string]func(*ike.PeerConfig){"certificates": nil, "psk": psk} {
		for way, begin := range map[string]func(p *pair){
			"at once": func(p *pair) { initiate(p.t, p.a, all...) },
			"at once, reordered": func(p *pair) {
				p.w.Link.Jitter, p.w.Link.Loss = 50*time.Millisecond, 0.1
				initiate(p.t, p.a, all...)
			},
			"one by one": func(p *pair) {
				for _, s := range all {
					initiate(p.t, p.a, s)
					p.w.For(2 * time.Second)
				}
			},
			"backwards, from B": func(p *pair) {
				for i := range all {
					initiate(p.t, p.b, all[len(all)-1-i])
					p.w.For(2 * time.Second)
				}
			},
			"in turn": func(p *pair) {
				for i, s := range all {
					initiate(p.t, []*iketest.Node{p.a, p.b}[i%2], s)
					p.w.For(2 * time.Second)
				}
			},
		} {
			t.Run(name+"/"+way, func(t *testing.T) {
				t.Parallel()
				for seed := uint64(1); seed <= 3; seed++ {
					p := newPair(t, pairOptions{seed: seed})
					p.siblings(len(all), both, nil)
					begin(p)
					p.w.For(30 * time.Second)
					p.w.Link.Loss = 0
					p.stand(all...)
					// Rekeys stay in their connection, whoever asks.
					for _, n := range []*iketest.Node{p.a, p.b} {
						for id := range n.Children {
							_ = n.Endpoint.RekeyChild(id)
						}
						p.w.For(5 * time.Second)
						for id := range n.IKE {
							_ = n.Endpoint.RekeyIKE(id)
						}
						p.w.For(5 * time.Second)
					}
					p.stand(all...)
				}
			})
		}
	}
}

// TestSiblingsAfterRestart: what A has left of all connections ends when B comes back, with the
// first of them, and none that is made afterwards.
func TestSiblingsAfterRestart(t *testing.T) {
	t.Parallel()
	all := []string{"s0", "s1", "s2"}
	for name, gap := range map[string]time.Duration{"at once": 0, "one by one": 2 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{})
			p.siblings(len(all), nil, nil)
			initiate(t, p.a, all...)
			p.w.For(5 * time.Second)
			p.stand(all...)
			var err error
			if p.b, err = p.w.NewNode("B2", addrB, nil); err != nil {
				t.Fatal(err)
			}
			a := p.a
			p.siblings(len(all), nil, nil)
			for _, s := range all {
				initiate(t, p.b, s)
				p.w.For(gap)
			}
			p.w.For(2 * time.Second)
			p.stand(all...)
			if len(a.Ended) != len(all) {
				t.Errorf("A ended %d IKE SAs, want the %d old ones: %+v", len(a.Ended), len(all), a.Ended)
			}
			for _, r := range a.Ended {
				if r.Code != ike.ReasonReplaced {
					t.Errorf("A ended %+v", r)
				}
			}
		})
	}
}

// TestInitialContactIsOfOnePair: B comes back with one service; what stands between other
// identities of the same device is none of its business.
func TestInitialContactIsOfOnePair(t *testing.T) {
	t.Parallel()
	f := facilities()
	p := newPair(t, pairOptions{})
	mk := func(me, peer *facility, remote netip.Addr, l, r string) []*ike.PeerConfig {
		return []*ike.PeerConfig{
			connection(t, "group-a", me, peer, me.groupA, peer.groupA, remote, "10."+l+".1.0/24", "10."+r+".1.0/24"),
			connection(t, "group-b", me, peer, me.groupB, peer.groupB, remote, "10."+l+".2.0/24", "10."+r+".2.0/24"),
		}
	}
	set := func(n *iketest.Node, peers []*ike.PeerConfig) {
		t.Helper()
		if err := n.Endpoint.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
	}
	set(p.a, mk(f[0], f[1], addrB, "1", "2"))
	set(p.b, mk(f[1], f[0], addrA, "2", "1"))
	initiate(t, p.a, "group-a", "group-b")
	p.w.For(5 * time.Second)
	p.stand("group-a", "group-b")
	fresh := must(p.w.NewNode("B2", addrB, nil))
	set(fresh, mk(f[1], f[0], addrA, "2", "1"))
	initiate(t, fresh, "group-a")
	p.w.For(2 * time.Second)
	var peers []string
	for _, i := range p.a.IKE {
		peers = append(peers, i.Peer)
	}
	slices.Sort(peers)
	if !slices.Equal(peers, []string{"group-a", "group-b"}) || len(p.a.Ended) != 1 || p.a.Ended[0].Code != ike.ReasonReplaced {
		t.Errorf("A has %v, ended %+v", peers, p.a.Ended)
	}
}

// TestBestFit: which of several connections an initiator means.
func TestBestFit(t *testing.T) {
	t.Parallel()
	type ts = [2]string // local and remote, as B sees it
	for name, c := range map[string]struct {
		asks ts
		has  []ts
		want int // of has; -1: TS_UNACCEPTABLE
	}{
		"the same":                     {ts{"10.2.3.0/24", "10.1.3.0/24"}, []ts{{"10.2.1.0/24", "10.1.1.0/24"}, {"10.2.3.0/24", "10.1.3.0/24"}}, 1},
		"the closest around":           {ts{"10.2.3.0/24", "10.1.3.0/24"}, []ts{{"10.0.0.0/8", "10.0.0.0/8"}, {"10.2.0.0/16", "10.1.0.0/16"}, {"10.2.0.0/15", "10.1.0.0/16"}}, 1},
		"around, not a part":           {ts{"10.2.3.0/24", "10.1.3.0/24"}, []ts{{"10.2.3.0/25", "10.1.3.0/24"}, {"0.0.0.0/0", "0.0.0.0/0"}, {"10.2.3.128/25", "10.1.3.0/24"}}, 1},
		"the largest part":             {ts{"10.2.0.0/16", "10.1.0.0/16"}, []ts{{"10.2.1.0/24", "10.1.1.0/24"}, {"10.2.2.0/23", "10.1.2.0/24"}, {"10.2.5.0/24", "10.1.5.0/24"}}, 1},
		"the first of equals":          {ts{"10.2.0.0/16", "10.1.0.0/16"}, []ts{{"10.2.1.0/24", "10.1.1.0/24"}, {"10.2.2.0/24", "10.1.2.0/24"}}, 0},
		"one side alone decides":       {ts{"10.2.0.0/24", "10.1.7.0/24"}, []ts{{"10.2.0.0/24", "10.1.1.0/24"}, {"10.2.0.0/24", "10.1.7.0/24"}}, 1},
		"the other side alone decides": {ts{"10.2.7.0/24", "10.1.0.0/24"}, []ts{{"10.2.1.0/24", "10.1.0.0/24"}, {"10.2.7.0/24", "10.1.0.0/24"}}, 1},
		"both sides must fit":          {ts{"10.2.1.0/24", "10.1.2.0/24"}, []ts{{"10.2.1.0/24", "10.1.1.0/24"}, {"10.2.2.0/24", "10.1.2.0/24"}}, -1},
		"IPv6":                         {ts{"fd00:2:7::/48", "fd00:1::/32"}, []ts{{"10.2.1.0/24", "10.1.1.0/24"}, {"fd00:2::/32", "fd00:1::/32"}, {"fd00:2:7::/48", "fd00:1::/32"}}, 2},
		"nothing":                      {ts{"10.9.0.0/24", "10.1.0.0/24"}, []ts{{"10.2.1.0/24", "10.1.1.0/24"}, {"10.2.2.0/24", "10.1.2.0/24"}}, -1},
	} {
		for kind, both := range map[string]func(*ike.PeerConfig){"certificates": func(*ike.PeerConfig) {}, "psk": psk} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				f := facilities()
				p := newPair(t, pairOptions{both: both, edit: func(p *pair) {
					p.ca.Children[0].RemoteTS, p.ca.Children[0].LocalTS = prefix(c.asks[0]), prefix(c.asks[1])
				}})
				var bs []*ike.PeerConfig
				for i, h := range c.has {
					b := connection(t, fmt.Sprint("s", i), f[1], f[0], f[1].groupA, f[0].groupA, addrA, h[0], h[1])
					both(b)
					bs = append(bs, b)
				}
				if err := p.b.Endpoint.SetPeers(bs); err != nil {
					t.Fatal(err)
				}
				initiate(t, p.a, "a-b")
				p.w.For(5 * time.Second)
				p.sound()
				if c.want < 0 {
					p.empty()
					if !slices.Equal(p.b.Codes(), []ike.Code{ike.CodeTSUnacceptable}) {
						t.Errorf("B refused %s", texts(p.b.Refusals))
					}
					return
				}
				p.counts(1, 1)
				for _, x := range p.b.Children {
					if x.Peer != fmt.Sprint("s", c.want) {
						t.Errorf("B took it for %s, want s%d: %v to %v", x.Peer, c.want, x.LocalTS, x.RemoteTS)
					}
				}
			})
		}
	}
}

// TestFitNeverOutweighsProof: the selectors of a connection whose identity, anchor or key the peer
// has not proved help nobody, however well they fit.
func TestFitNeverOutweighsProof(t *testing.T) {
	t.Parallel()
	f := facilities()
	// s0 is what A may do; s1 is what A asks for, and belongs to somebody else.
	for name, edit := range map[string]func(b *ike.PeerConfig){
		"service identity": func(b *ike.PeerConfig) { b.RemoteAuth[1].IDs = []ike.Identity{fqdn("other.group-a.example")} },
		"device identity":  func(b *ike.PeerConfig) { b.RemoteAuth[0].IDs = []ike.Identity{f[2].device.id} },
		"anchor":           func(b *ike.PeerConfig) { b.RemoteAuth[1].Anchors = b.RemoteAuth[0].Anchors },
		"revocation":       func(b *ike.PeerConfig) { b.RemoteAuth[1].RequireCRL = true },
		"another key": func(b *ike.PeerConfig) {
			psk(b)
			b.RemoteAuth[0].PSK = []byte("not yours")
		},
		"rounds": func(b *ike.PeerConfig) { single(b) },
		"our own identity": func(b *ike.PeerConfig) {
			b.LocalAuth[1] = f[1].groupB.auth("service") // A asks for group A's
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{})
			p.siblings(2, nil, func(i int, a, b *ike.PeerConfig) {
				if name == "another key" {
					psk(a)
					psk(b)
				}
				if i == 1 {
					edit(b)
				}
			})
			initiate(t, p.a, "s1")
			p.w.For(5 * time.Second)
			p.empty()
			p.sound()
			// Authenticated for s0, which does not allow it.
			if !slices.Equal(p.b.Codes(), []ike.Code{ike.CodeTSUnacceptable}) || p.b.Refusals[0].Peer != "s0" {
				t.Errorf("B refused %s", texts(p.b.Refusals))
			}
			initiate(t, p.a, "s0")
			p.w.For(5 * time.Second)
			p.counts(1, 1)
		})
	}
}

// TestFitKnowsProposals: selectors first, but not a connection that must refuse while another one
// need not.
func TestFitKnowsProposals(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, c *ike.PeerConfig){
		"ESP": func(t *testing.T, c *ike.PeerConfig) {
			c.Children[0].Proposals = proposals(t, suite.ProtocolESP, "aes128-sha256")
		},
		"IKE": func(t *testing.T, c *ike.PeerConfig) {
			c.Proposals = proposals(t, suite.ProtocolIKE, "aes128gcm16-prfsha256-ecp256")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{})
			p.siblings(2, nil, func(i int, _, b *ike.PeerConfig) {
				if i == 1 {
					spoil(t, b)
				} else {
					b.Children[0].LocalTS, b.Children[0].RemoteTS = prefix("10.2.0.0/16"), prefix("10.1.0.0/16")
				}
			})
			initiate(t, p.a, "s1")
			p.w.For(5 * time.Second)
			p.counts(1, 1)
			for _, c := range p.b.Children {
				if c.Peer != "s0" {
					t.Errorf("B took it for %s", c.Peer)
				}
			}
		})
	}
}

// TestBestChild: the same choice among the CHILD SAs of one connection, in IKE_AUTH and in
// CREATE_CHILD_SA. A CREATE_CHILD_SA never leaves the connection of its IKE SA.
func TestBestChild(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.siblings(2, nil, func(i int, a, b *ike.PeerConfig) {
		if i != 0 {
			return
		}
		add := func(c *ike.PeerConfig, name, l, r string) {
			x := c.Children[0]
			x.Name, x.LocalTS, x.RemoteTS = name, prefix(l), prefix(r)
			c.Children = append(c.Children, x)
		}
		add(a, "host", "10.1.0.7/32", "10.2.0.7/32")
		add(a, "sister", "10.1.1.0/24", "10.2.1.0/24") // that is s1 at B
		add(b, "host", "10.2.0.7/32", "10.1.0.7/32")
	})
	for _, child := range []string{"host", "net", "sister"} {
		if err := p.a.Endpoint.Initiate("s0", child); err != nil {
			t.Fatal(err)
		}
		p.w.For(2 * time.Second)
	}
	p.counts(1, 2)
	for _, c := range p.b.Children {
		if got := c.LocalTS[0].String(); (c.Child == "host") != (got == "10.2.0.7") {
			t.Errorf("B took %v for %q", got, c.Child)
		}
	}
	if !slices.Equal(p.b.Codes(), []ike.Code{ike.CodeTSUnacceptable}) {
		t.Errorf("B refused %s", texts(p.b.Refusals))
	}
	initiate(t, p.a, "s1") // has an IKE SA of its own
	p.w.For(2 * time.Second)
	p.counts(2, 3)
}

// TestRandomSiblings: several connections between the same identities begin, end and are forgotten
// by restarts, on a bad link. INITIAL_CONTACT must never end what the other end still has; and
// once the link is good, all of them stand.
func TestRandomSiblings(t *testing.T) {
	t.Parallel()
	n, first := sims(150)
	n = n/5 + 1
	if testing.Short() {
		n = 10
	}
	replaced := 0
	for seed := first; seed < first+uint64(n) && !t.Failed(); seed++ {
		replaced += randomSiblings(t, seed)
	}
	if replaced == 0 {
		t.Error("no INITIAL_CONTACT ended anything")
	}
}

func randomSiblings(t *testing.T, seed uint64) (replaced int) {
	t.Helper()
	all := []string{"s0", "s1", "s2", "s3"}
	p := newPair(t, pairOptions{seed: seed})
	w := p.w
	both := func(c *ike.PeerConfig) {
		if seed%2 == 0 {
			psk(c)
		}
		c.RekeyChild, c.RekeyIKE = 4*time.Minute, 9*time.Minute
	}
	watch := func() {
		for _, x := range [][2]*iketest.Node{{p.a, p.b}, {p.b, p.a}} {
			x[0].OnDown = func(i ike.SAInfo, r ike.Reason) {
				if r.Code != ike.ReasonReplaced {
					return
				}
				replaced++
				for _, o := range x[1].Endpoint.Snapshot() {
					if o.SPIi == i.SPIi && o.State == ike.StateEstablished {
						t.Errorf("seed %d: INITIAL_CONTACT ended an IKE SA of %s that %s still has", seed, i.Peer, x[1].Name)
					}
				}
			}
		}
	}
	p.siblings(len(all), both, nil)
	watch()
	w.Link = iketest.Link{
		Delay: time.Duration(1+w.Intn(100)) * time.Millisecond, Jitter: time.Duration(1+w.Intn(300)) * time.Millisecond,
		Loss: float64(w.Intn(30)) / 100, Dup: float64(w.Intn(30)) / 100,
	}
	w.Token = time.Duration(w.Intn(800)) * time.Millisecond
	for range 40 {
		node, name := []*iketest.Node{p.a, p.b}[w.Intn(2)], all[w.Intn(len(all))]
		switch w.Intn(10) {
		case 0:
			node.Endpoint.Terminate(name, "random")
		case 1:
			w.Link.Cut = w.Intn(4) == 0
		case 2:
			for _, s := range node.Endpoint.Snapshot() {
				_ = node.Endpoint.RekeyIKE(s.ID)
			}
		case 3:
			fresh := must(w.NewNode(node.Name, node.Addr, nil))
			if node == p.a {
				p.a = fresh
			} else {
				p.b = fresh
			}
			p.siblings(len(all), both, nil)
			watch()
		default:
			initiate(t, node, name)
		}
		w.For(time.Duration(w.Intn([]int{30, 300, 3000, 30000}[w.Intn(4)])) * time.Millisecond)
		p.sound()
	}
	w.Link, w.Token = iketest.Link{Delay: 5 * time.Millisecond}, time.Millisecond
	w.For(6 * time.Minute) // the dead are found
	initiate(t, p.a, all...)
	w.For(10 * time.Second)
	for end := 0; end < 60 && busy(p); end++ {
		w.For(time.Second)
	}
	p.agree()
	for _, name := range all {
		if err := p.a.Carries(p.b, name+"/net"); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	for _, c := range p.a.Children {
		for _, o := range p.b.Children {
			if c.SPIIn == o.SPIOut && c.Peer != o.Peer {
				t.Errorf("seed %d: a CHILD SA is of %s at A and of %s at B", seed, c.Peer, o.Peer)
			}
		}
	}
	return replaced
}
