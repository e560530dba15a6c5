package ike_test

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
	"wardgate/internal/labca"
)

func TestLiveness(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	asked := 0
	p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
		if msg[18] == 37 && msg[19]&0x20 == 0 {
			asked++
		}
		return true
	}
	p.w.For(10 * time.Minute)
	if asked < 15 || asked > 45 {
		t.Errorf("%d liveness checks in 10 quiet minutes", asked)
	}
	p.counts(1, 1)
	// A peer that is gone is noticed.
	p.w.Link.Cut = true
	p.w.For(3 * time.Minute)
	p.empty()
	for _, n := range []*iketest.Node{p.a, p.b} {
		if n.Ended[0].Code != ike.ReasonPeerDead {
			t.Errorf("%s: %+v", n.Name, n.Ended)
		}
	}
}

// TestOneWay: requests of A get no answer, while B goes on rekeying, which gets through and is answered. A gives up
// as if there were no rekeys: data does not get through either.
func TestOneWay(t *testing.T) {
	t.Parallel()
	p := newMobile(t, pairOptions{edit: func(p *pair) { p.cb.RekeyIKE = 20 * time.Second }})
	p.up()
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		_, response := exchangeOf(msg)
		return from.Addr() != addrA || response
	}
	p.a.Move(addrA, addrA6) // B has to know
	p.w.For(4 * time.Minute)
	if len(p.a.IKE) > 0 {
		t.Errorf("A holds %+v", p.a.Endpoint.Snapshot())
	}
}

// TestTrafficSparesLiveness: while ESP comes in, nobody asks.
func TestTrafficSparesLiveness(t *testing.T) {
	t.Parallel()
	var p *pair
	last := func(c *ike.Config) { c.LastInbound = func(ike.ChildID) time.Time { return p.w.Now() } }
	p = newPair(t, pairOptions{ea: last, eb: last})
	p.up()
	sent := 0
	p.w.Tap = func(_, _ netip.AddrPort, _ []byte) bool { sent++; return true }
	p.w.For(20 * time.Minute)
	if sent != 0 {
		t.Errorf("%d messages while traffic flows", sent)
	}
}

// TestRestart: B loses its state and comes back; its INITIAL_CONTACT removes what A has left.
func TestRestart(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	old := p.b
	fresh, err := p.w.NewNode("B2", addrB, nil) // takes the address over
	if err != nil {
		t.Fatal(err)
	}
	if err := fresh.Endpoint.SetPeers([]*ike.PeerConfig{p.cb}); err != nil {
		t.Fatal(err)
	}
	p.b = fresh
	if err := p.b.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(2 * time.Second)
	p.counts(1, 1)
	p.carries()
	if len(p.a.Ended) != 1 || p.a.Ended[0].Code != ike.ReasonReplaced {
		t.Errorf("A ended %+v", p.a.Ended)
	}
	_ = old
}

// TestUnknownSPI: a restarted peer says that it does not know the IKE SA, at a bounded rate, and
// an unprotected word ends nothing.
func TestUnknownSPI(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	answers := 0
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if m, err := message.Parse(msg); err == nil && m.Encrypted == nil && len(m.Payloads) == 1 {
			if n, ok := m.Payloads[0].(*message.Notify); ok && n.Type == message.NotifyInvalidIKESPI {
				answers++
				if m.IsResponse() == false {
					t.Error("INVALID_IKE_SPI as a request")
				}
			}
		}
		return true
	}
	msg := make([]byte, 32)
	copy(msg, []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9, 9, 9, 9, 9, 46, 0x20, 37, 8})
	binary.BigEndian.PutUint32(msg[24:], 32)
	copy(msg[28:], []byte{0, 0, 0, 4})
	for range 500 {
		p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), msg)
	}
	if answers == 0 || answers > 110 {
		t.Errorf("%d answers to 500 requests for an unknown SPI", answers)
	}
	p.w.For(time.Second)
	p.counts(1, 1)
	p.carries()
}

func TestHigherVersion(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	got := 0
	p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
		m, err := message.Parse(msg)
		if err != nil || len(m.Payloads) != 1 || m.Payloads[0].(*message.Notify).Type != message.NotifyInvalidMajorVersion {
			t.Errorf("B sent %x", msg)
		}
		got++
		return true
	}
	msg := make([]byte, 28)
	msg[7], msg[17], msg[18], msg[19], msg[27] = 1, 0x30, 34, 8, 28
	p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), msg)
	msg[17] = 0x10 // IKEv1 is dropped
	p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), msg)
	p.w.For(time.Second)
	if got != 1 {
		t.Errorf("%d answers, want 1", got)
	}
}

func TestSetPeers(t *testing.T) {
	t.Parallel()
	f := facilities()
	base := func() *ike.PeerConfig {
		return connection(t, "a-b", f[1], f[0], f[1].groupA, f[0].groupA, addrA, "10.2.0.0/24", "10.1.0.0/24")
	}
	for name, c := range map[string]struct {
		edit  func(*ike.PeerConfig)
		lives bool
	}{
		"the same":        {func(*ike.PeerConfig) {}, true},
		"timers":          {func(c *ike.PeerConfig) { c.RekeyChild = time.Hour * 2 }, true},
		"gateway":         {func(c *ike.PeerConfig) { c.Remote = nil }, true},
		"selectors":       {func(c *ike.PeerConfig) { c.Children[0].LocalTS = prefix("10.2.0.0/25") }, false},
		"ESP proposal":    {func(c *ike.PeerConfig) { c.Children[0].Proposals = proposals(t, 3, "aes128gcm16") }, false},
		"identity":        {func(c *ike.PeerConfig) { c.RemoteAuth[1].IDs = []ike.Identity{fqdn("x.example")} }, false},
		"anchor":          {func(c *ike.PeerConfig) { c.RemoteAuth[1].Anchors = []*x509.Certificate{cas().rogue.Anchor()} }, false},
		"name":            {func(c *ike.PeerConfig) { c.Name = "b-a" }, false},
		"own certificate": {func(c *ike.PeerConfig) { c.LocalAuth[1] = f[1].groupB.auth("service") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{})
			p.up()
			next := base()
			c.edit(next)
			if err := p.b.Endpoint.SetPeers([]*ike.PeerConfig{next}); err != nil {
				t.Fatal(err)
			}
			p.w.For(time.Second)
			if c.lives {
				p.counts(1, 1)
				p.rekeyEverything()
				return
			}
			p.empty()
			if p.b.Ended[0].Code != ike.ReasonPolicy || p.a.Ended[0].Code != ike.ReasonDeletedByPeer {
				t.Errorf("B ended with %+v, A with %+v", p.b.Ended, p.a.Ended)
			}
		})
	}
}

// TestRevokedWhileUp: a new revocation list ends the IKE SA of whom it names, and of nobody else.
func TestRevokedWhileUp(t *testing.T) {
	t.Parallel()
	at := iketest.Epoch.Add(-time.Hour)
	ca := must(labca.New(labca.Options{Kind: labca.Service, Name: "group-r", At: at}))
	f := facilities()
	sa := issue(ca, "a.group-r.example", labca.P256, f[0].device, nil)
	sb := issue(ca, "b.group-r.example", labca.P256, f[1].device, nil)
	mk := func() *ike.PeerConfig {
		return connection(t, "a-b", f[1], f[0], sb, sa, addrA, "10.2.0.0/24", "10.1.0.0/24")
	}
	p := newPair(t, pairOptions{edit: func(p *pair) {
		p.ca = connection(t, "a-b", f[0], f[1], sa, sb, addrB, "10.1.0.0/24", "10.2.0.0/24")
		p.cb = mk()
	}})
	p.up()
	set := func() {
		t.Helper()
		next := mk()
		next.RemoteAuth[1].CRLs = must(ca.CRLs(p.w.Now(), 24*time.Hour))
		if err := p.b.Endpoint.SetPeers([]*ike.PeerConfig{next}); err != nil {
			t.Fatal(err)
		}
		p.w.For(time.Second)
	}
	set()
	p.counts(1, 1)
	if err := ca.Revoke(sa.leaf.SerialNumber, p.w.Now(), 1); err != nil {
		t.Fatal(err)
	}
	set()
	p.empty()
	if !slices.Contains(p.b.Codes(), ike.CodeRevoked) {
		t.Errorf("B refused %v", p.b.Codes())
	}
}

// TestRevokedDuringHandshake: a certificate that was good when it was judged, and was revoked before
// the IKE SA stood, is of no use at either end.
func TestRevokedDuringHandshake(t *testing.T) {
	t.Parallel()
	f := facilities()
	up := 0
	for d := time.Duration(0); d < 500*time.Millisecond; d += 15 * time.Millisecond {
		for bad := range 2 {
			ca := must(labca.New(labca.Options{Kind: labca.Service, Name: "group-r", At: iketest.Epoch.Add(-time.Hour)}))
			var c [2]*credential
			for i := range c {
				c[i] = issue(ca, f[i].name+".group-r.example", labca.P256, f[i].device, nil)
			}
			mk := func(i int, crls []*x509.RevocationList) *ike.PeerConfig {
				x := connection(t, "a-b", f[i], f[1-i], c[i], c[1-i], []netip.Addr{addrB, addrA}[i], fmt.Sprintf("10.%d.0.0/24", 1+i), fmt.Sprintf("10.%d.0.0/24", 2-i))
				x.RemoteAuth[1].CRLs = crls
				return x
			}
			good := must(ca.CRLs(iketest.Epoch.Add(-time.Minute), 24*time.Hour))
			p := newPair(t, pairOptions{edit: func(p *pair) { p.ca, p.cb = mk(0, good), mk(1, good) }})
			p.w.Token = 50 * time.Millisecond
			initiate(t, p.a, "a-b")
			p.w.For(d)
			if err := ca.Revoke(c[bad].leaf.SerialNumber, p.w.Now(), 1); err != nil {
				t.Fatal(err)
			}
			judge := []*iketest.Node{p.b, p.a}[bad]
			if err := judge.Endpoint.SetPeers([]*ike.PeerConfig{mk(1-bad, must(ca.CRLs(p.w.Now(), 24*time.Hour)))}); err != nil {
				t.Fatal(err)
			}
			p.w.For(time.Minute)
			p.empty()
			if !slices.Contains(judge.Codes(), ike.CodeRevoked) {
				t.Errorf("%s, %v after the beginning: refused %s", judge.Name, d, texts(judge.Refusals))
			}
			if len(judge.Ended) > 0 {
				up++
			}
		}
	}
	if up == 0 {
		t.Error("the list never came late")
	}
}

func TestPeerVanishesDuringHandshake(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if from.Addr() == addrA && msg[18] == 35 && msg[23] == 2 {
			if err := p.b.Endpoint.SetPeers(nil); err != nil {
				t.Error(err)
			}
		}
		return true
	}
	p.refusedAt(p.b, ike.CodeNoConnection, -1)
}

func TestClose(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	done := make(chan error, 1)
	// Close waits for the peer; the world goes on meanwhile in this goroutine.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	go func() { done <- p.a.Endpoint.Close(ctx) }()
	for {
		select {
		case err := <-done:
			if err != nil && err != context.Canceled { //nolint:errorlint // as it is
				t.Error(err)
			}
			p.w.For(time.Minute * 3)
			p.empty()
			if err := p.a.Endpoint.Initiate("a-b", "net"); err == nil {
				t.Error("a closed endpoint initiates")
			}
			return
		default:
			time.Sleep(time.Millisecond) // the real one: Close runs in a goroutine of its own
			p.w.For(time.Millisecond)
		}
	}
}

// TestKeysStayInside: the key log can be set from this package's own files only, and gives what
// the peer derives as well.
func TestKeyLog(t *testing.T) {
	t.Parallel()
	keys := [2]map[string]string{{}, {}}
	log := func(i int) func(*ike.Config) {
		return func(c *ike.Config) { ike.SetKeyLog(c, func(n string, k []byte) { keys[i][n] = string(k) }) }
	}
	p := newPair(t, pairOptions{ea: log(0), eb: log(1)})
	p.up()
	n := 0
	for name, k := range keys[0] {
		if name[:3] != "sk_" {
			continue
		}
		n++
		if keys[1][name] != k {
			t.Errorf("%s differs", name)
		}
	}
	if n != 7 {
		t.Errorf("%d keys of the IKE SA, want 7", n)
	}
}

// TestResponseRepeated: a lost answer is repeated octet for octet, and nothing is done twice.
func TestResponseRepeated(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	answers := map[uint32][]string{}
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if from.Addr() != addrB || msg[19]&0x20 == 0 {
			return true
		}
		id := uint32(msg[18])<<8 | uint32(msg[23])
		answers[id] = append(answers[id], string(msg))
		return len(answers[id]) > 3
	}
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(25 * time.Second)
	p.counts(1, 1)
	p.carries()
	for id, a := range answers {
		for _, x := range a {
			if x != a[0] && msgIsWhole(a[0]) {
				t.Errorf("exchange %d: the repeated answer differs", id)
			}
		}
	}
}

func msgIsWhole(m string) bool { return m[16] != 53 }

// TestRandomLives lets everything happen to two routers on a bad link, and expects them to agree
// once the link is good and quiet.
func TestRandomLives(t *testing.T) {
	t.Parallel()
	n, first := 150, uint64(1)
	if testing.Short() {
		n = 30
	}
	for seed := first; seed < first+uint64(n); seed++ {
		if !randomLife(t, seed) {
			return
		}
	}
}

func randomLife(t *testing.T, seed uint64) bool { return randomLifeOf(t, seed, func(*pair) {}) }

// randomLifeOf is randomLife after a change of the connections.
func randomLifeOf(t *testing.T, seed uint64, edit func(*pair)) bool {
	p := newPair(t, pairOptions{seed: seed, both: func(c *ike.PeerConfig) {
		c.RekeyChild, c.RekeyIKE = 4*time.Minute, 9*time.Minute
		o := c.Children[0]
		o.Name, o.LocalTS, o.RemoteTS = "other", prefix("10.9.0.0/24"), prefix("10.9.0.0/24")
		c.Children = append(c.Children, o)
	}, edit: func(p *pair) {
		p.ca.Children[0].Queues, p.cb.Children[0].Queues = p.w.Intn(5), p.w.Intn(5)
		p.ca.Children[1].Queues, p.cb.Children[1].Queues = p.w.Intn(3), p.w.Intn(3)
		edit(p)
	}, ea: func(c *ike.Config) { c.Queues = int(seed % 5) }, eb: func(c *ike.Config) { c.Queues = int(seed / 5 % 5) }})
	w := p.w
	w.Link = iketest.Link{
		Delay: time.Duration(1+w.Intn(100)) * time.Millisecond, Jitter: time.Duration(1+w.Intn(300)) * time.Millisecond,
		Loss: float64(w.Intn(30)) / 100, Dup: float64(w.Intn(30)) / 100,
	}
	w.Token = time.Duration(w.Intn(800)) * time.Millisecond
	nodes := []*iketest.Node{p.a, p.b}
	for range 40 {
		n := nodes[w.Intn(2)]
		snap := n.Endpoint.Snapshot()
		var some ike.SAStatus
		if len(snap) > 0 {
			some = snap[w.Intn(len(snap))]
		}
		var child ike.ChildID
		if len(some.Children) > 0 {
			child = some.Children[w.Intn(len(some.Children))].ID
		}
		do := w.Intn(13)
		if child == 0 {
			do = 0
		}
		switch do {
		case 0, 1, 2:
			_ = n.Endpoint.Initiate("a-b", []string{"net", "other"}[w.Intn(2)])
		case 3, 4:
			_ = n.Endpoint.RekeyChild(child)
		case 5, 6:
			_ = n.Endpoint.RekeyIKE(some.ID)
		case 7:
			_ = n.Endpoint.DeleteChild(child, "random")
		case 8:
			if w.Intn(3) == 0 {
				n.Endpoint.Terminate("a-b", "random")
			}
		case 9:
			w.Link.Cut = w.Intn(4) == 0
		case 10, 11, 12:
			_ = n.Endpoint.WantQueues("a-b", []string{"net", "other"}[w.Intn(2)], 1+w.Intn(5))
		}
		w.For(time.Duration(w.Intn([]int{30, 300, 3000, 30000}[w.Intn(4)])) * time.Millisecond)
		p.sound()
	}
	w.Link = iketest.Link{Delay: 5 * time.Millisecond}
	w.For(6 * time.Minute) // the dead are found
	for end := 0; end < 60 && busy(p); end++ {
		w.For(time.Second)
	}
	p.agree()
	for _, x := range []struct {
		n *iketest.Node
		c *ike.PeerConfig
	}{{p.a, p.ca}, {p.b, p.cb}} {
		for _, c := range x.n.Children {
			for _, cfg := range x.c.Children {
				if cfg.Name == c.Child && c.Queue >= max(cfg.Queues, 1) {
					t.Errorf("%s: queue %d of %s, which has %d", x.n.Name, c.Queue, c.Child, cfg.Queues)
				}
			}
		}
	}
	for _, n := range nodes {
		n.Endpoint.Terminate("a-b", "the end")
	}
	w.For(3 * time.Minute)
	p.empty()
	if t.Failed() {
		t.Logf("seed %d", seed)
		return false
	}
	return true
}

// busy tells whether a rekey is under way: the ends may differ for the moment.
func busy(p *pair) bool {
	for _, n := range []*iketest.Node{p.a, p.b} {
		_, spis, half, esp, _, _ := n.Endpoint.Tables()
		if half > 0 || spis != len(n.IKE) || esp != len(n.Children) {
			return true
		}
	}
	return len(p.a.Children) != len(p.b.Children) || len(p.a.IKE) != len(p.b.IKE)
}
