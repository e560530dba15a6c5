package ike_test

import (
	"crypto"
	"crypto/x509"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/suite"
	"wardgate/internal/labca"
)

var (
	addrA = netip.MustParseAddr("192.0.2.1")
	addrB = netip.MustParseAddr("192.0.2.2")
	addrC = netip.MustParseAddr("192.0.2.3")
)

// authorities are made once: RSA and chains take time.
type authorities struct {
	device, groupA, groupB, rogue *labca.Authority
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var cas = sync.OnceValue(func() authorities {
	at := iketest.Epoch.Add(-24 * time.Hour)
	mk := func(kind labca.Kind, name string) *labca.Authority {
		return must(labca.New(labca.Options{Kind: kind, Name: name, At: at}))
	}
	return authorities{mk(labca.Device, "device"), mk(labca.Service, "group-a"), mk(labca.Service, "group-b"), mk(labca.Service, "group-a")}
})

// credential is one key with its certificate.
type credential struct {
	id     ike.Identity
	key    crypto.Signer
	leaf   *x509.Certificate
	chain  [][]byte
	anchor *x509.Certificate
}

func fqdn(s string) ike.Identity { return must(ike.ParseIdentity(s)) }

// issue makes a credential named name; edit may spoil the request.
func issue(ca *labca.Authority, name string, key labca.KeyType, device *credential, edit func(*labca.Request)) *credential {
	c := &credential{id: fqdn(name), key: must(labca.NewKey(key)), anchor: ca.Anchor()}
	r := labca.Request{Public: c.key.Public(), DNSNames: []string{name}, At: iketest.Epoch.Add(-time.Hour)}
	if device != nil {
		r.Device = device.leaf.Raw
	}
	if edit != nil {
		edit(&r)
	}
	c.leaf = must(ca.Issue(r))
	c.chain = append([][]byte{c.leaf.Raw}, labca.DER(ca.Intermediates())...)
	return c
}

func (c *credential) auth(role string) ike.LocalAuth {
	return ike.LocalAuth{ID: c.id, Chain: c.chain, Signer: c.key, Role: role}
}

// facility has a device credential and one for each service.
type facility struct {
	name           string
	device         *credential
	groupA, groupB *credential
}

func newFacility(name string, key labca.KeyType) *facility {
	a := cas()
	f := &facility{name: name}
	f.device = issue(a.device, name+".devices.example", key, nil, nil)
	f.groupA = issue(a.groupA, name+".group-a.example", key, f.device, nil)
	f.groupB = issue(a.groupB, name+".group-b.example", key, f.device, nil)
	return f
}

var facilities = sync.OnceValue(func() [3]*facility {
	return [3]*facility{newFacility("a", labca.P256), newFacility("b", labca.P256), newFacility("c", labca.P256)}
})

func proposals(t testing.TB, protocol uint8, s ...string) []suite.Proposal {
	t.Helper()
	p, err := suite.ParseProposals(protocol, s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func prefix(s string) []ike.Selector {
	return []ike.Selector{ike.PrefixSelector(netip.MustParsePrefix(s))}
}

const (
	defaultIKE = "aes256gcm16-prfsha384-x25519"
	defaultESP = "aes256gcm16-x25519"
)

// connection is what me needs to talk to peer with the service credentials given.
func connection(t testing.TB, name string, me, peer *facility, mine, theirs *credential, remote netip.Addr, local, remoteNet string) *ike.PeerConfig {
	return &ike.PeerConfig{
		Name: name, Remote: []netip.AddrPort{netip.AddrPortFrom(remote, 500)},
		Proposals: proposals(t, suite.ProtocolIKE, defaultIKE),
		LocalAuth: []ike.LocalAuth{me.device.auth("device"), mine.auth("service")},
		RemoteAuth: []ike.RemoteAuth{
			{IDs: []ike.Identity{peer.device.id}, Anchors: []*x509.Certificate{cas().device.Anchor()}, RelatedToRound: -1, Role: "device"},
			{IDs: []ike.Identity{theirs.id}, Anchors: []*x509.Certificate{theirs.anchor}, RelatedToRound: 0, Role: "service"},
		},
		Children: []ike.ChildConfig{{Name: "net", LocalTS: prefix(local), RemoteTS: prefix(remoteNet), Proposals: proposals(t, suite.ProtocolESP, defaultESP)}},
	}
}

// pair is two endpoints, A at addrA and B at addrB, with one connection called "a-b" each.
type pair struct {
	t      testing.TB
	w      *iketest.World
	a, b   *iketest.Node
	ca, cb *ike.PeerConfig
}

type pairOptions struct {
	seed   uint64
	ea, eb func(*ike.Config)
	edit   func(p *pair) // of the connections, before SetPeers
	both   func(c *ike.PeerConfig)
}

func newPair(t testing.TB, o pairOptions) *pair {
	t.Helper()
	if o.seed == 0 {
		o.seed = 1
	}
	p := &pair{t: t, w: iketest.New(o.seed)}
	var err error
	if p.a, err = p.w.NewNode("A", addrA, o.ea); err != nil {
		t.Fatal(err)
	}
	if p.b, err = p.w.NewNode("B", addrB, o.eb); err != nil {
		t.Fatal(err)
	}
	f := facilities()
	p.ca = connection(t, "a-b", f[0], f[1], f[0].groupA, f[1].groupA, addrB, "10.1.0.0/24", "10.2.0.0/24")
	p.cb = connection(t, "a-b", f[1], f[0], f[1].groupA, f[0].groupA, addrA, "10.2.0.0/24", "10.1.0.0/24")
	if o.both != nil {
		o.both(p.ca)
		o.both(p.cb)
	}
	if o.edit != nil {
		o.edit(p)
	}
	if err := p.a.Endpoint.SetPeers([]*ike.PeerConfig{p.ca}); err != nil {
		t.Fatal(err)
	}
	if err := p.b.Endpoint.SetPeers([]*ike.PeerConfig{p.cb}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d\n%s", o.seed, p.w.Diary())
		}
	})
	return p
}

// up initiates from A and expects the connection to stand.
func (p *pair) up() {
	p.t.Helper()
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		p.t.Fatal(err)
	}
	if !p.w.Until(time.Minute, func() bool { return len(p.a.Children) > 0 && len(p.b.Children) > 0 }) {
		p.t.Fatalf("the connection did not come up; A failed: %v, refused: %v; B refused: %v", p.a.Failed, p.a.Refusals, p.b.Refusals)
	}
	p.w.For(time.Second)
	p.carries()
}

// carries expects traffic to flow both ways and no rule to be broken.
func (p *pair) carries() {
	p.t.Helper()
	if err := p.a.Carries(p.b, "a-b/net"); err != nil {
		p.t.Error(err)
	}
	if err := p.b.Carries(p.a, "a-b/net"); err != nil {
		p.t.Error(err)
	}
	p.sound()
}

func (p *pair) sound() {
	p.t.Helper()
	for _, n := range []*iketest.Node{p.a, p.b} {
		for _, v := range n.Violations {
			p.t.Error("violation:", v)
		}
	}
}

// counts expects so many IKE and CHILD SAs at each end.
func (p *pair) counts(ikes, children int) {
	p.t.Helper()
	for _, n := range []*iketest.Node{p.a, p.b} {
		if len(n.IKE) != ikes || len(n.Children) != children {
			p.t.Errorf("%s has %d IKE SAs and %d CHILD SAs, want %d and %d", n.Name, len(n.IKE), len(n.Children), ikes, children)
		}
	}
}

// empty expects that nothing is left of anything in both endpoints.
func (p *pair) empty() {
	p.t.Helper()
	p.counts(0, 0)
	for _, n := range []*iketest.Node{p.a, p.b} {
		emptyTables(p.t, n)
	}
}

func emptyTables(t testing.TB, n *iketest.Node) {
	t.Helper()
	boxes, spis, half, esp, children, byPeer := n.Endpoint.Tables()
	if boxes+spis+half+esp+children+byPeer != 0 {
		t.Errorf("%s holds %d boxes, %d SPIs, %d half-open, %d ESP SPIs, %d CHILD SAs, %d connections; want nothing", n.Name, boxes, spis, half, esp, children, byPeer)
	}
}

func texts(rs []ike.Refusal) string {
	var out []string
	for _, r := range rs {
		s := string(r.Code) + ": " + r.Text
		if r.Err != nil {
			s += ": " + r.Err.Error()
		}
		out = append(out, s)
	}
	return strings.Join(out, "\n")
}
