package ike

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	mrand "math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"wardgate/ike/suite"
)

// model is what candidates.go looks up, found by going through all connections one by one.
type model []*PeerConfig

// from returns those that may come by a path, those that name its source first.
func (m model) from(p Path) []*PeerConfig {
	var named, others []*PeerConfig
	for _, c := range m {
		switch {
		case c.Local.IsValid() && c.Local != p.Local.Addr() && !p.Local.Addr().IsUnspecified():
		case c.names(p):
			named = append(named, c)
		default:
			others = append(others, c)
		}
	}
	return append(named, others...)
}

func (m model) filter(keep func(*PeerConfig) bool) model {
	var out model
	for _, c := range m {
		if keep(c) {
			out = append(out, c)
		}
	}
	return out
}

// policy makes connections that have much in common.
type policy struct {
	*mrand.Rand
	anchors   []*x509.Certificate
	crls      []*x509.RevocationList
	proposals [][]suite.Proposal
}

func newPolicy(t *testing.T, seed uint64) *policy {
	t.Helper()
	p := &policy{Rand: mrand.New(mrand.NewPCG(seed, 4))}
	for i := range 4 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		p.anchors = append(p.anchors, &x509.Certificate{Raw: []byte{byte(i)}, RawSubjectPublicKeyInfo: spki})
		p.crls = append(p.crls, &x509.RevocationList{Raw: []byte{byte(i)}})
	}
	for _, s := range []string{"aes256gcm16-prfsha384-x25519", "aes128gcm16-prfsha256-ecp256", "aes256gcm16-prfsha384-x25519-ecp256"} {
		ps, err := suite.ParseProposals(suite.ProtocolIKE, []string{s})
		if err != nil {
			t.Fatal(err)
		}
		p.proposals = append(p.proposals, ps)
	}
	return p
}

func (p *policy) id(what string) Identity {
	name := fmt.Sprintf("%s%d.example", what, p.IntN(5))
	if p.IntN(2) == 0 {
		name = "X" + name[1:]
	} else {
		name = "x" + name[1:] // is the same
	}
	return Identity{IDFQDN, name}
}

// some returns up to n of list, some of them as copies.
func some[T any](p *policy, list []*T, n int) []*T {
	var out []*T
	for range p.IntN(n + 1) {
		x := list[p.IntN(len(list))]
		if p.IntN(2) == 0 {
			y := *x
			x = &y
		}
		out = append(out, x)
	}
	return out
}

func (p *policy) selectors() []Selector {
	var out []Selector
	for range 1 + p.IntN(3) {
		a := netip.AddrFrom4([4]byte{10, byte(p.IntN(3)), byte(p.IntN(8) << 5), 0})
		if p.IntN(4) == 0 {
			a = netip.AddrFrom16([16]byte{0xfd, 1, byte(p.IntN(8) << 5)})
		}
		s := PrefixSelector(netip.PrefixFrom(a, 8+p.IntN(17)))
		switch p.IntN(6) { // the ends of others, where a mistake by one would show
		case 0:
			s.Start = s.End
		case 1:
			s.End = s.Start
		}
		switch p.IntN(5) {
		case 0:
			s.Proto = 6
			s.StartPort = uint16(p.IntN(3))
			s.EndPort = s.StartPort + uint16(p.IntN(3))
		case 1:
			s.Proto, s.StartPort, s.EndPort = 1, 65535, 0 // OPAQUE
		}
		out = append(out, s)
	}
	return out
}

func (p *policy) connection(i int) *PeerConfig {
	c := &PeerConfig{Name: fmt.Sprint("c", i), Proposals: slices.Clone(p.proposals[p.IntN(len(p.proposals))]), ForceEncap: p.IntN(2) == 0}
	if p.IntN(3) == 0 {
		c.Local = netip.AddrFrom4([4]byte{192, 0, 2, byte(p.IntN(3))})
	}
	for range p.IntN(3) {
		c.Remote = append(c.Remote, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(p.IntN(4))}), uint16(p.IntN(2))))
	}
	for r := range 1 + p.IntN(2) {
		la, ra := LocalAuth{ID: p.id("l")}, RemoteAuth{RelatedToRound: p.IntN(2) - 1, RequireCRL: p.IntN(3) == 0}
		if p.IntN(3) == 0 {
			la.PSK, ra.PSK = []byte{byte(p.IntN(2))}, []byte{byte(p.IntN(2))}
		} else {
			la.Chain = [][]byte{{byte(p.IntN(2))}, {byte(p.IntN(2))}}
			ra.Anchors, ra.CRLs = some(p, p.anchors, 2), some(p, p.crls, 2)
		}
		for range 1 + p.IntN(2) {
			ra.IDs = append(ra.IDs, p.id(fmt.Sprint("r", r)))
		}
		c.LocalAuth, c.RemoteAuth = append(c.LocalAuth, la), append(c.RemoteAuth, ra)
	}
	for j := range 1 + p.IntN(2) {
		esp, err := suite.ParseProposals(suite.ProtocolESP, []string{[]string{"aes256gcm16", "aes128gcm16"}[p.IntN(2)]})
		if err != nil {
			panic(err)
		}
		c.Children = append(c.Children, ChildConfig{Name: fmt.Sprint("n", j), LocalTS: p.selectors(), RemoteTS: p.selectors(), Proposals: esp})
	}
	return c
}

// like is c with a name and selectors of its own.
func (p *policy) like(c *PeerConfig, i int) *PeerConfig {
	o, other := *c, p.connection(i)
	o.Name, o.Children, o.Remote, o.Proposals = other.Name, other.Children, other.Remote, other.Proposals
	return &o
}

func members(branches []*branch) []string {
	var out []string
	for _, b := range branches {
		b.each(func(c *PeerConfig) { out = append(out, c.Name) })
	}
	slices.Sort(out)
	return out
}

func names(m model) []string {
	out := make([]string, 0, len(m))
	for _, c := range m {
		out = append(out, c.Name)
	}
	slices.Sort(out)
	return out
}

// kindsOf returns the sets of proposals in their order, each once.
func kindsOf(list []*PeerConfig) [][]suite.Proposal {
	var out [][]suite.Proposal
	for _, c := range list {
		if !slices.ContainsFunc(out, func(p []suite.Proposal) bool { return reflect.DeepEqual(p, c.Proposals) }) {
			out = append(out, c.Proposals)
		}
	}
	return out
}

// TestCandidatesModel compares what is looked up with the model, step by step.
func TestCandidatesModel(t *testing.T) {
	t.Parallel()
	rounds, chosen, none := 0, 0, 0
	for seed := uint64(1); seed <= 300; seed++ {
		p := newPolicy(t, seed)
		var m model
		for i := range p.IntN(80) {
			if len(m) > 0 && p.IntN(3) > 0 {
				m = append(m, p.like(m[p.IntN(len(m))], i))
			} else {
				m = append(m, p.connection(i))
			}
		}
		set := newPeerSet(m)
		path := Path{
			Local:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(p.IntN(4))}), 500),
			Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(p.IntN(5))}), 500),
		}
		if p.IntN(4) == 0 {
			path.Local = netip.AddrPortFrom(netip.IPv4Unspecified(), 500)
		}
		got, want := set.from(path), m.from(path)
		if g, w := members(got.roots), names(want); !slices.Equal(g, w) {
			t.Fatalf("seed %d: from %v: %v, want %v", seed, path, g, w)
		}
		if len(want) == 0 {
			continue
		}
		if g, w := kindsOf(got.kinds), kindsOf(want); !reflect.DeepEqual(g, w) {
			t.Errorf("seed %d: proposals %v, want %v", seed, g, w)
		}
		if got.force != want[0].ForceEncap {
			t.Errorf("seed %d: force %v, %s says %v", seed, got.force, want[0].Name, want[0].ForceEncap)
		}
		var anchors [][20]byte
		for _, c := range want {
			for _, h := range anchorsOf(c) {
				if !slices.Contains(anchors, h) {
					anchors = append(anchors, h)
				}
			}
		}
		if len(anchors) != len(got.anchors) || slices.ContainsFunc(anchors, func(h [20]byte) bool { return !slices.Contains(got.anchors, h) }) {
			t.Errorf("seed %d: %d anchors, want %d", seed, len(got.anchors), len(anchors))
		}

		branches, left := got.roots, model(want)
		for r := 0; ; r++ {
			id := p.id(fmt.Sprint("r", r))
			branches = follow(branches, id)
			left = left.filter(func(c *PeerConfig) bool { return r < c.rounds() && containsID(c.RemoteAuth[r].IDs, id) })
			if g, w := members(branches), names(left); !slices.Equal(g, w) {
				t.Fatalf("seed %d: round %d, %v: %v, want %v", seed, r, id, g, w)
			}
			if len(left) == 0 {
				break
			}
			rounds++
			for _, b := range branches {
				n := 0
				b.each(func(c *PeerConfig) {
					n++
					for i := range r + 1 {
						if !c.RemoteAuth[i].sameTrust(&b.first.RemoteAuth[i]) || !c.LocalAuth[i].sameAs(&b.first.LocalAuth[i]) {
							t.Fatalf("seed %d: %s and %s differ in round %d", seed, c.Name, b.first.Name, i)
						}
					}
				})
				if n != b.n {
					t.Errorf("seed %d: a branch of %d says %d", seed, n, b.n)
				}
				for _, o := range branches {
					if (b.trust == o.trust) != b.first.RemoteAuth[r].sameTrust(&o.first.RemoteAuth[r]) ||
						(b.local == o.local) != b.first.LocalAuth[r].sameAs(&o.first.LocalAuth[r]) {
						t.Fatalf("seed %d: %s and %s are numbered wrongly in round %d", seed, b.first.Name, o.first.Name, r)
					}
				}
				if b.leaf == nil {
					continue
				}
				for range 8 {
					w := wish{local: p.selectors(), remote: p.selectors(), offers: must1(suite.OffersWithoutKE(b.first.Children[0].Proposals, []byte{1, 2, 3, 4})), opt: suite.SelectOptions{WithoutKE: true}}
					agreed := must1(suite.Select(b.first.Proposals, must1(suite.Offers(b.first.Proposals, nil)), suite.SelectOptions{}))
					near, all := w.choose(b.leaf.near(&w), agreed, path), w.choose(b.leaf.peers, agreed, path)
					if near != all {
						t.Fatalf("seed %d: for %v to %v: %v, want %v", seed, w.remote, w.local, near, all)
					}
					if all == nil {
						none++
					} else if len(b.leaf.peers) > fewPeers {
						chosen++
					}
				}
			}
		}
	}
	if rounds < 100 || chosen < 100 || none < 10 {
		t.Errorf("too little was tried: %d rounds, %d choices among many, %d without any", rounds, chosen, none)
	}
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestNearIsFew: of ten thousand connections one or two are looked at.
func TestNearIsFew(t *testing.T) {
	t.Parallel()
	net := func(first byte, i int) []Selector {
		return []Selector{PrefixSelector(netip.PrefixFrom(netip.AddrFrom4([4]byte{first, byte(i >> 8), byte(i), 0}), 24))}
	}
	wide := []Selector{AnySelector(false)}
	for name, of := range map[string]func(i int) (local, remote []Selector){
		"both differ":       func(i int) ([]Selector, []Selector) { return net(20, i), net(30, i) },
		"remote differs":    func(i int) ([]Selector, []Selector) { return wide, net(30, i) },
		"local differs":     func(i int) ([]Selector, []Selector) { return net(20, i), wide },
		"a hundred squared": func(i int) ([]Selector, []Selector) { return net(20, i%100), net(30, i/100) },
	} {
		l := &leaf{}
		for i := range 10_000 {
			a, b := of(i)
			l.peers = append(l.peers, &PeerConfig{Name: fmt.Sprint(i), Children: []ChildConfig{{LocalTS: a, RemoteTS: b}}})
		}
		l.index()
		for _, i := range []int{0, 1, 4711, 9999} {
			var w wish
			w.local, w.remote = of(i)
			near := l.near(&w)
			if len(near) > 100 || !slices.Contains(near, l.peers[i]) {
				t.Errorf("%s: %d connections near %d, or without it", name, len(near), i)
			}
		}
	}
}
