package ike_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
)

// gateways is a pair with another gateway C that has B's identities.
type gateways struct {
	*pair
	c     *iketest.Node
	asked []ike.RedirectQuery // of B
	inits map[netip.Addr]int  // IKE_SA_INIT requests of A, by gateway
	where map[string]netip.Addr
}

// newGateways: B sends whom it serves to where["init"] when IKE_SA_INIT comes, to where["auth"] when
// all is proved; C to where["back"].
func newGateways(t testing.TB, edit func(*pair)) *gateways {
	t.Helper()
	g := &gateways{inits: map[netip.Addr]int{}, where: map[string]netip.Addr{}}
	g.pair = newPair(t, pairOptions{
		eb: func(c *ike.Config) {
			c.Redirect = func(q ike.RedirectQuery) netip.Addr {
				g.asked = append(g.asked, q)
				if q.Peer == "" {
					return g.where["init"]
				}
				return g.where["auth"]
			}
		},
		edit: func(p *pair) {
			p.ca.RedirectTo = []netip.Prefix{netip.PrefixFrom(addrC, 32)}
			if edit != nil {
				edit(p)
			}
		},
	})
	var err error
	if g.c, err = g.w.NewNode("C", addrC, func(c *ike.Config) {
		c.Redirect = func(ike.RedirectQuery) netip.Addr { return g.where["back"] }
	}); err != nil {
		t.Fatal(err)
	}
	if err := g.c.Endpoint.SetPeers([]*ike.PeerConfig{g.cb}); err != nil {
		t.Fatal(err)
	}
	g.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if x, response := exchangeOf(msg); x == 34 && !response && from.Addr() == addrA {
			g.inits[to.Addr()]++
		}
		return true
	}
	return g
}

// servedBy expects that A is served by n, and by nobody else.
func (g *gateways) servedBy(n *iketest.Node) {
	g.t.Helper()
	for _, o := range []*iketest.Node{g.b, g.c} {
		if want := map[bool]int{true: 1, false: 0}[o == n]; len(o.IKE) != want || len(o.Children) != want {
			g.t.Errorf("%s has %d IKE SAs, %d CHILD SAs, want %d", o.Name, len(o.IKE), len(o.Children), want)
		}
		for _, v := range o.Violations {
			g.t.Error(v)
		}
	}
	if len(g.a.IKE) != 1 || len(g.a.Children) != 1 || ikeOf(g.t, g.a).Path.Remote.Addr() != n.Addr {
		g.t.Errorf("A has %d IKE SAs, %d CHILD SAs; refused: %s; failed: %v", len(g.a.IKE), len(g.a.Children), texts(g.a.Refusals), g.a.Failed)
	}
	if err := g.a.Carries(n, "a-b/net"); err != nil {
		g.t.Error(err)
	}
}

// TestRedirectInit: the answer to IKE_SA_INIT sends A to C, which is told by whom; B keeps nothing.
func TestRedirectInit(t *testing.T) {
	t.Parallel()
	g := newGateways(t, nil)
	g.where["init"] = addrC
	var from []byte
	tap := g.w.Tap
	g.w.Tap = func(f, to netip.AddrPort, msg []byte) bool {
		if m, err := message.Parse(msg); err == nil && to.Addr() == addrC && m.Exchange == message.ExchangeIKESAInit {
			for _, n := range m.Payloads.Notifies(message.NotifyRedirectedFrom) {
				from = n.Data
			}
		}
		return tap(f, to, msg)
	}
	initiate(t, g.a, "a-b")
	g.w.For(5 * time.Second)
	g.servedBy(g.c)
	if !bytes.Equal(from, append([]byte{1, 4}, addrB.AsSlice()...)) {
		t.Errorf("C was told of %x", from)
	}
	if boxes, _, _, _, _, _ := g.b.Endpoint.Tables(); boxes > 0 {
		t.Error("B keeps state")
	}
}

// TestRedirectAuth: B sends A to C when all rounds are proved; no CHILD SA is made at B.
func TestRedirectAuth(t *testing.T) {
	t.Parallel()
	g := newGateways(t, nil)
	g.where["auth"] = addrC
	initiate(t, g.a, "a-b")
	g.w.For(5 * time.Second)
	g.servedBy(g.c)
	q := g.asked[len(g.asked)-1]
	if q.Peer != "a-b" || len(q.RemoteIDs) != 2 || len(g.b.Gone) > 0 || len(g.a.Failed) > 0 {
		t.Errorf("asked %+v; %d CHILD SAs went at B; A failed %v", q, len(g.b.Gone), g.a.Failed)
	}
}

// TestRedirectLive: the new IKE SA carries before the old one goes.
func TestRedirectLive(t *testing.T) {
	t.Parallel()
	g := newGateways(t, nil)
	g.up()
	if n, err := g.b.Endpoint.Redirect("a-b", addrC); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	gap := false
	if !g.w.Until(20*time.Second, func() bool {
		gap = gap || len(g.a.Children) == 0
		return len(g.c.Children) == 1 && len(g.b.IKE) == 0
	}) || gap {
		t.Errorf("gap %v", gap)
	}
	g.w.For(time.Minute)
	g.servedBy(g.c)
}

// TestRedirectLiveInVain: when nobody is there, the IKE SA stands until the gateway ends it; the
// connection then comes back.
func TestRedirectLiveInVain(t *testing.T) {
	t.Parallel()
	g := newGateways(t, nil)
	g.up()
	tap := g.w.Tap
	g.w.Tap = func(from, to netip.AddrPort, msg []byte) bool { return tap(from, to, msg) && to.Addr() != addrC }
	if _, err := g.b.Endpoint.Redirect("a-b", addrC); err != nil {
		t.Fatal(err)
	}
	g.w.For(29 * time.Second)
	if len(g.a.Children) != 1 || len(g.b.Children) != 1 {
		t.Errorf("A has %d CHILD SAs, B %d", len(g.a.Children), len(g.b.Children))
	}
	g.w.For(3 * time.Second)
	if len(g.b.IKE) != 0 || len(g.b.Ended) != 1 || g.b.Ended[0].Code != ike.ReasonRedirected {
		t.Errorf("B ended %+v", g.b.Ended)
	}
}

// TestRedirectRefused: A goes nowhere but where its connection allows, and where the same identities
// are proved.
func TestRedirectRefused(t *testing.T) {
	t.Parallel()
	elsewhere := netip.MustParseAddr("198.51.100.7")
	for name, c := range map[string]struct {
		edit func(*pair)
		to   netip.Addr
		code ike.Code
	}{
		"elsewhere":               {nil, elsewhere, ike.CodeRedirect},
		"another family":          {func(p *pair) { p.ca.Local = addrA; p.ca.RedirectTo = []netip.Prefix{netip.MustParsePrefix("::/0")} }, netip.MustParseAddr("2001:db8::1"), ike.CodeRedirect},
		"somebody else is there":  {nil, addrC, ike.CodePeerRefused},
		"the gateway of before":   {nil, addrB, ""},
		"redirects not announced": {func(p *pair) { p.ca.RedirectTo = nil }, addrC, ""},
		"a gateway of the list": {func(p *pair) {
			p.ca.RedirectTo = nil
			p.ca.Remote = append(p.ca.Remote, netip.AddrPortFrom(addrC, 500))
		}, addrC, "served"},
		"an address of v4 in v6":             {nil, netip.AddrFrom16(addrC.As16()), "served"},
		"the wildcard address":               {nil, netip.IPv4Unspecified(), ike.CodeRedirect},
		"a multicast address is not allowed": {nil, netip.MustParseAddr("224.0.0.1"), ike.CodeRedirect},
	} {
		for _, when := range []string{"init", "auth", "live"} {
			t.Run(name+"/"+when, func(t *testing.T) {
				t.Parallel()
				g := newGateways(t, c.edit)
				if name == "somebody else is there" {
					f := facilities()
					other := connection(t, "x", f[2], f[0], f[2].groupB, f[0].groupB, addrA, "10.3.0.0/24", "10.1.0.0/24")
					if err := g.c.Endpoint.SetPeers([]*ike.PeerConfig{other}); err != nil {
						t.Fatal(err)
					}
				}
				if when != "live" {
					g.where[when] = c.to
					initiate(t, g.a, "a-b")
				} else {
					g.up()
					if _, err := g.b.Endpoint.Redirect("a-b", c.to); err != nil {
						t.Fatal(err)
					}
				}
				g.w.For(20 * time.Second)
				switch c.code {
				case "served":
					g.w.For(10 * time.Second)
					g.servedBy(g.c)
				case "":
					if when == "live" && len(g.b.IKE) == 0 {
						break // B ended it, in the end
					}
					g.servedBy(g.b)
				default:
					if !slices.Contains(g.a.Codes(), c.code) || len(g.c.IKE) > 0 || g.inits[elsewhere] > 0 {
						t.Errorf("A refused %s, C has %d IKE SAs", texts(g.a.Refusals), len(g.c.IKE))
					}
				}
			})
		}
	}
}

// TestRedirectForged: who does not know the nonce sends A nowhere, and makes it give up nothing.
func TestRedirectForged(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]func(ni []byte) []byte{
		"another nonce": func(ni []byte) []byte {
			return append(append([]byte{1, 4}, addrC.AsSlice()...), make([]byte, len(ni))...)
		},
		"no nonce":    func([]byte) []byte { return append([]byte{1, 4}, addrC.AsSlice()...) },
		"cut off":     func([]byte) []byte { return []byte{1, 200, 1} },
		"empty":       func([]byte) []byte { return nil },
		"a name":      func(ni []byte) []byte { return append(append([]byte{3, 4}, "evil"...), ni...) },
		"a short one": func(ni []byte) []byte { return append(append([]byte{1, 3}, 1, 2, 3), ni...) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGateways(t, nil)
			tap := g.w.Tap
			g.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
				if m, err := message.Parse(msg); err == nil && from.Addr() == addrA && m.Exchange == message.ExchangeIKESAInit {
					h := message.Header{SPIi: m.SPIi, Exchange: m.Exchange, Flags: message.FlagResponse}
					var ni []byte
					for _, p := range m.Payloads {
						if n, ok := p.(*message.Nonce); ok {
							ni = n.Data
						}
					}
					g.w.Deliver(to, from, must(message.Encode(h, message.Payloads{message.NewNotify(message.NotifyRedirect, data(ni)...)})))
				}
				return tap(from, to, msg)
			}
			initiate(t, g.a, "a-b")
			g.w.For(5 * time.Second)
			g.servedBy(g.b)
			if g.inits[addrC] > 0 {
				t.Error("A went to C")
			}
		})
	}
}

// TestRedirectLoop: two gateways that send A to each other are left after five redirects (section 7).
func TestRedirectLoop(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"init", "auth"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			g := newGateways(t, nil)
			g.where[when], g.where["back"] = addrC, addrB
			initiate(t, g.a, "a-b")
			g.w.For(2 * time.Minute)
			if n := g.inits[addrB] + g.inits[addrC]; n < 6 || n > 14 || len(g.a.Failed) == 0 {
				t.Errorf("%d attempts, failed: %v", n, g.a.Failed)
			}
			if !slices.Contains(g.a.Codes(), ike.CodeRedirect) {
				t.Error(texts(g.a.Refusals))
			}
			boxes, _, _, _, _, _ := g.a.Endpoint.Tables()
			if boxes > 0 {
				t.Errorf("A holds %d IKE SAs", boxes)
			}
		})
	}
}

// TestRedirectHostile: an initiator redirects nobody, and a REDIRECT under the IKE SA's keys that is
// malformed changes nothing.
func TestRedirectHostile(t *testing.T) {
	t.Parallel()
	for name, data := range map[string][]byte{
		"with a nonce": append(append([]byte{1, 4}, addrC.AsSlice()...), make([]byte, 32)...),
		"cut off":      {2, 16, 0},
		"empty":        {},
		"a name":       append([]byte{3, 9}, "c.example"...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGateways(t, nil)
			g.up()
			next, _ := g.b.Endpoint.IDs()
			_, msgs := g.b.Endpoint.Forge(37, next, false, message.Payloads{message.NewNotify(message.NotifyRedirect, data...)})
			g.w.Deliver(netip.AddrPortFrom(addrB, 500), netip.AddrPortFrom(addrA, 500), msgs[0])
			g.w.For(time.Second)
			g.servedBy(g.b)
			if !slices.Contains(g.a.Codes(), ike.CodeRedirect) {
				t.Error(texts(g.a.Refusals))
			}
		})
	}
	t.Run("by the initiator", func(t *testing.T) {
		t.Parallel()
		g := newGateways(t, func(p *pair) { p.cb.RedirectTo = []netip.Prefix{netip.PrefixFrom(addrC, 32)} })
		g.up()
		if n, err := g.a.Endpoint.Redirect("a-b", addrC); n != 0 || err != nil {
			t.Error(n, err)
		}
		next, _ := g.a.Endpoint.IDs()
		_, msgs := g.a.Endpoint.Forge(37, next, false, message.Payloads{message.NewNotify(message.NotifyRedirect, append([]byte{1, 4}, addrC.AsSlice()...)...)})
		g.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), msgs[0])
		g.w.For(10 * time.Second)
		g.servedBy(g.b)
	})
	g := newGateways(t, nil)
	if _, err := g.a.Endpoint.Redirect("none", addrC); err == nil {
		t.Error("a connection that is not there was redirected")
	}
	if _, err := g.a.Endpoint.Redirect("a-b", netip.Addr{}); err == nil {
		t.Error("redirected to nowhere")
	}
}
