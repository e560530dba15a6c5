package ike_test

import (
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
)

// childOf returns the one CHILD SA of a node.
func childOf(t testing.TB, n *iketest.Node) *iketest.Child {
	t.Helper()
	if len(n.Children) != 1 {
		t.Fatalf("%s has %d CHILD SAs, want 1", n.Name, len(n.Children))
	}
	for _, c := range n.Children {
		return c
	}
	return nil
}

func ikeOf(t testing.TB, n *iketest.Node) ike.SAInfo {
	t.Helper()
	if len(n.IKE) != 1 {
		t.Fatalf("%s has %d IKE SAs, want 1", n.Name, len(n.IKE))
	}
	for _, i := range n.IKE {
		return i
	}
	return ike.SAInfo{}
}

// watch checks after every step of d that traffic flows both ways.
func (p *pair) watch(d time.Duration) {
	p.t.Helper()
	end := p.w.Now().Add(d)
	for p.w.Now().Before(end) {
		p.w.For(time.Millisecond)
		for _, x := range [][2]*iketest.Node{{p.a, p.b}, {p.b, p.a}} {
			if err := x[0].Carries(x[1], "a-b/net"); err != nil {
				p.t.Fatalf("a packet would be lost: %v", err)
			}
		}
	}
}

func (p *pair) rekeyChild(n *iketest.Node) {
	p.t.Helper()
	old := childOf(p.t, n).ID
	if err := n.Endpoint.RekeyChild(old); err != nil {
		p.t.Fatal(err)
	}
	p.watch(500 * time.Millisecond)
	c := childOf(p.t, n)
	if c.ID == old || c.Replaces != old {
		p.t.Errorf("%s: CHILD SA %d replaces %d, was %d", n.Name, c.ID, c.Replaces, old)
	}
	p.counts(1, 1)
	p.carries()
}

func (p *pair) rekeyIKE(n *iketest.Node) {
	p.t.Helper()
	i := ikeOf(p.t, n)
	before := n.Endpoint.Snapshot()[0].SPIi
	if err := n.Endpoint.RekeyIKE(i.ID); err != nil {
		p.t.Fatal(err)
	}
	p.watch(500 * time.Millisecond)
	for _, x := range []*iketest.Node{p.a, p.b} {
		s := x.Endpoint.Snapshot()[0]
		if s.SPIi == before || s.Rekeyed == 0 || len(s.Children) != 1 {
			p.t.Errorf("%s after the rekey of the IKE SA: %+v", x.Name, s)
		}
		if _, spis, _, _, _, _ := x.Endpoint.Tables(); spis != 1 {
			p.t.Errorf("%s holds %d IKE SPIs, want 1", x.Name, spis)
		}
	}
	p.carries()
}

// rekeyEverything rekeys IKE and CHILD SA from both ends, and again under the new keys.
func (p *pair) rekeyEverything() {
	p.t.Helper()
	for range 2 {
		p.rekeyChild(p.a)
		p.rekeyChild(p.b)
		p.rekeyIKE(p.a)
		p.rekeyChild(p.b)
		p.rekeyIKE(p.b)
		p.rekeyChild(p.a)
	}
}

func TestRekey(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	p.rekeyEverything()
	p.b.Endpoint.Terminate("a-b", "test")
	p.w.For(time.Second)
	p.empty()
}

// TestResponderKeepsOld: the responder of a rekey sends on the old CHILD SA until it is deleted.
func TestResponderKeepsOld(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	old := childOf(t, p.b).ID
	if err := p.a.Endpoint.RekeyChild(childOf(t, p.a).ID); err != nil {
		t.Fatal(err)
	}
	if !p.w.Until(time.Second, func() bool { return len(p.b.Children) == 2 }) {
		t.Fatal("no new CHILD SA at B")
	}
	if p.b.Send["a-b/net"] != old {
		t.Error("B sends on the new CHILD SA before A can have it")
	}
	p.w.For(time.Second)
	if p.b.Send["a-b/net"] == old {
		t.Error("B never switched")
	}
	p.carries()
}

func TestLifetimes(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) {
		c.RekeyChild, c.RekeyIKE = 10*time.Minute, 25*time.Minute
	}})
	p.up()
	for range 18 {
		p.watch(5 * time.Minute / 10)
		p.w.For(5*time.Minute - 5*time.Minute/10)
		p.carries()
	}
	p.counts(1, 1)
	s := p.a.Endpoint.Snapshot()[0]
	if s.Rekeyed < 3 || s.Children[0].Rekeyed < 8 {
		t.Errorf("after 90 minutes: IKE SA rekeyed %d times, CHILD SA %d times", s.Rekeyed, s.Children[0].Rekeyed)
	}
	if len(p.a.Refusals)+len(p.b.Refusals) > 0 {
		t.Errorf("refused: %v %v", texts(p.a.Refusals), texts(p.b.Refusals))
	}
}

// together runs f for A and B at the same moment and waits until everything is quiet.
func (p *pair) together(fa, fb func()) {
	p.t.Helper()
	fa()
	fb()
	p.watch(2 * time.Second)
	p.w.For(3 * time.Minute)
}

func TestSimultaneousRekey(t *testing.T) {
	t.Parallel()
	child := func(p *pair, n *iketest.Node) func() {
		return func() { _ = n.Endpoint.RekeyChild(childOf(p.t, n).ID) }
	}
	parent := func(p *pair, n *iketest.Node) func() {
		return func() { _ = n.Endpoint.RekeyIKE(ikeOf(p.t, n).ID) }
	}
	kinds := map[string]func(*pair, *iketest.Node) func(){"child": child, "ike": parent}
	for na, fa := range kinds {
		for nb, fb := range kinds {
			t.Run(na+" and "+nb, func(t *testing.T) {
				t.Parallel()
				for seed := uint64(1); seed <= 40; seed++ {
					p := newPair(t, pairOptions{seed: seed})
					p.up()
					p.w.Link.Jitter = 8 * time.Millisecond
					for range 3 {
						p.together(fa(p, p.a), fb(p, p.b))
						p.counts(1, 1)
						p.carries()
						for _, n := range []*iketest.Node{p.a, p.b} {
							if _, spis, _, esp, _, _ := n.Endpoint.Tables(); spis != 1 || esp != 1 {
								t.Errorf("%s holds %d IKE SPIs and %d ESP SPIs, want 1 and 1", n.Name, spis, esp)
							}
						}
					}
					if t.Failed() {
						t.Logf("seed %d", seed)
						return
					}
				}
			})
		}
	}
}

func TestSimultaneousDelete(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 20; seed++ {
		p := newPair(t, pairOptions{seed: seed})
		p.up()
		for _, n := range []*iketest.Node{p.a, p.b} {
			if err := n.Endpoint.DeleteChild(childOf(t, n).ID, "test"); err != nil {
				t.Fatal(err)
			}
		}
		p.w.For(time.Second)
		p.counts(1, 0)
		p.a.Endpoint.Terminate("a-b", "test")
		p.b.Endpoint.Terminate("a-b", "test")
		p.w.For(time.Second)
		p.sound()
		p.w.For(2 * time.Minute)
		p.empty()
	}
}

// TestCrossings: every command of A against every command of B at nearly the same time. Whatever
// wins, both ends agree in the end, and nothing is left behind.
func TestCrossings(t *testing.T) {
	t.Parallel()
	type command struct {
		name string
		run  func(n *iketest.Node)
	}
	first := func(n *iketest.Node) ike.ChildID {
		for _, s := range n.Endpoint.Snapshot() {
			for _, c := range s.Children {
				return c.ID
			}
		}
		return 0
	}
	commands := []command{
		{"rekey child", func(n *iketest.Node) { _ = n.Endpoint.RekeyChild(first(n)) }},
		{"delete child", func(n *iketest.Node) { _ = n.Endpoint.DeleteChild(first(n), "test") }},
		{"rekey ike", func(n *iketest.Node) { _ = n.Endpoint.RekeyIKE(1) }},
		{"delete ike", func(n *iketest.Node) { n.Endpoint.Terminate("a-b", "test") }},
		{"create child", func(n *iketest.Node) { _ = n.Endpoint.Initiate("a-b", "other") }},
	}
	for _, ca := range commands {
		for _, cb := range commands {
			t.Run(ca.name+" and "+cb.name, func(t *testing.T) {
				t.Parallel()
				for seed := uint64(1); seed <= 25; seed++ {
					p := newPair(t, pairOptions{seed: seed, both: func(c *ike.PeerConfig) {
						o := c.Children[0]
						o.Name, o.LocalTS, o.RemoteTS = "other", prefix("10.9.0.0/24"), prefix("10.9.0.0/24")
						c.Children = append(c.Children, o)
					}})
					p.up()
					p.w.Link.Jitter = 10 * time.Millisecond
					ca.run(p.a)
					p.w.For(time.Duration(p.w.Intn(25)) * time.Millisecond)
					cb.run(p.b)
					p.w.For(5 * time.Minute)
					p.agree()
					if t.Failed() {
						t.Logf("seed %d", seed)
						return
					}
				}
			})
		}
	}
}

// agree expects both ends to have the same SAs, and to hold nothing else.
func (p *pair) agree() {
	p.t.Helper()
	p.sound()
	for _, x := range [][2]*iketest.Node{{p.a, p.b}, {p.b, p.a}} {
		for _, c := range x[0].Children {
			found := false
			for _, o := range x[1].Children {
				found = found || o.SPIIn == c.SPIOut && o.SPIOut == c.SPIIn && string(o.KeyIn) == string(c.KeyOut)
			}
			if !found {
				p.t.Errorf("%s has CHILD SA %d, %s has not its other half", x[0].Name, c.ID, x[1].Name)
			}
		}
		boxes, spis, half, esp, children, _ := x[0].Endpoint.Tables()
		if boxes != len(x[0].IKE) || spis != len(x[0].IKE) || half != 0 || esp != len(x[0].Children) || children != len(x[0].Children) {
			p.t.Errorf("%s: %d IKE SAs and %d CHILD SAs, but %d boxes, %d SPIs, %d half-open, %d ESP SPIs, %d children",
				x[0].Name, len(x[0].IKE), len(x[0].Children), boxes, spis, half, esp, children)
		}
	}
	if len(p.a.IKE) != len(p.b.IKE) {
		p.t.Errorf("A has %d IKE SAs, B %d", len(p.a.IKE), len(p.b.IKE))
	}
}
