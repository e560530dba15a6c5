package ike_test

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/message"
)

func ppkOf(id string) ike.PPK {
	return ike.PPK{ID: id, Secret: []byte("a postquantum preshared key " + id)}
}

// ppks gives the first round of a connection PPKs.
func ppks(c *ike.PeerConfig, require bool, keys ...ike.PPK) {
	c.RemoteAuth[0].PPKs, c.RemoteAuth[0].RequirePPK = keys, require
}

// TestPPK walks table 1 of RFC 8784, section 3, with a PSK, one certificate, and two rounds; with
// and without IKE_INTERMEDIATE.
func TestPPK(t *testing.T) {
	t.Parallel()
	one, two := ppkOf("one-0000"), ppkOf("two-0000")
	other := ike.PPK{ID: one.ID, Secret: two.Secret}
	none := []ike.PPK(nil)
	for _, c := range []struct {
		name       string
		a, b       []ike.PPK
		needA      bool
		needB      bool
		want       string   // PPK in use, with "" for none
		refusedAtB ike.Code // or the end
		refusedAtA ike.Code
	}{
		{"both", []ike.PPK{one}, []ike.PPK{one}, false, false, one.ID, "", ""},
		{"both require", []ike.PPK{one}, []ike.PPK{one}, true, true, one.ID, "", ""},
		{"responder knows more", []ike.PPK{two}, []ike.PPK{one, two}, true, false, two.ID, "", ""},
		{"initiator has none", none, []ike.PPK{one}, false, false, "", "", ""},
		{"initiator has none, required", none, []ike.PPK{one}, false, true, "", ike.CodePPK, ""},
		{"responder has none", []ike.PPK{one}, none, false, false, "", "", ""},
		{"responder has none, required", []ike.PPK{one}, none, true, false, "", "", ike.CodePPK},
		{"responder has another", []ike.PPK{one}, []ike.PPK{two}, false, false, "", "", ""},
		{"responder has another, initiator requires", []ike.PPK{one}, []ike.PPK{two}, true, false, "", ike.CodePPK, ""},
		{"responder has another, and requires it", []ike.PPK{one}, []ike.PPK{two}, false, true, "", ike.CodePPK, ""},
		{"the same name for another", []ike.PPK{one}, []ike.PPK{other}, false, false, "", ike.CodeBadSignature, ""},
	} {
		for how, both := range map[string]func(*ike.PeerConfig){"psk": psk, "certificate": single, "two rounds": func(*ike.PeerConfig) {}} {
			for _, s := range []string{defaultIKE, hybridIKE} {
				t.Run(strings.Join([]string{c.name, how, s}, ", "), func(t *testing.T) {
					t.Parallel()
					p := newPair(t, pairOptions{both: func(x *ike.PeerConfig) {
						both(x)
						suites(t, s, defaultESP)(x)
					}, edit: func(p *pair) {
						ppks(p.ca, c.needA, c.a...)
						ppks(p.cb, c.needB, c.b...)
					}})
					switch {
					case c.refusedAtB != "":
						p.refusedAt(p.b, c.refusedAtB, 0)
						return
					case c.refusedAtA != "":
						p.refusedAt(p.a, c.refusedAtA, -1)
						return
					}
					p.up()
					for _, n := range []string{ikeOf(t, p.a).PPK, ikeOf(t, p.b).PPK} {
						if n != c.want {
							t.Errorf("PPK %q in use, want %q", n, c.want)
						}
					}
					p.rekeyEverything()
				})
			}
		}
	}
}

// TestPPKKeys: SK_d, SK_pi and SK_pr are other ones with a PPK, what protects messages is not
// (RFC 8784, section 3).
func TestPPKKeys(t *testing.T) {
	t.Parallel()
	before, after := map[string]string{}, map[string]string{}
	log := func(c *ike.Config) {
		ike.SetKeyLog(c, func(name string, k []byte) {
			if _, ok := before[name]; ok {
				after[name] = string(k)
				return
			}
			before[name] = string(k)
		})
	}
	p := newPair(t, pairOptions{ea: log, both: func(c *ike.PeerConfig) { ppks(c, true, ppkOf("one-0000")) }})
	p.up()
	changed := 0
	for name, k := range after {
		mixed := strings.HasPrefix(name, "sk_d-") || strings.HasPrefix(name, "sk_p")
		if (k != before[name]) != mixed {
			t.Errorf("%s: changed %v", name, k != before[name])
		}
		if k != before[name] {
			changed++
		}
	}
	if changed != 3 {
		t.Errorf("%d keys changed, want 3", changed)
	}
}

// TestPPKHostile: notifies that are not what RFC 8784 has.
func TestPPKHostile(t *testing.T) {
	t.Parallel()
	one := ppkOf("one-0000")
	// rewrite changes the first bytes that are found, in the clear messages of one end.
	rewrite := func(p *pair, from netip.Addr, old, by []byte) {
		p.w.Tap = func(f, to netip.AddrPort, msg []byte) bool {
			i := bytes.Index(msg, old)
			if f.Addr() != from || msg[18] != 34 || i < 0 {
				return true
			}
			m := slices.Clone(msg)
			copy(m[i:], by)
			p.w.AfterFunc(time.Millisecond, func() { p.w.Deliver(f, to, m) })
			return false
		}
	}
	use, unknown := []byte{0, 8, 0, 0, 0x40, 0x33}, []byte{0, 8, 0, 0, 0xff, 0x33}
	t.Run("USE_PPK taken out of the request", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) { ppks(c, false, one) }})
		rewrite(p, addrA, use, unknown)
		p.refusedAt(p.b, ike.CodeBadSignature, 0) // AUTH covers the request
	})
	t.Run("USE_PPK taken out of the answer", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) { ppks(c, false, one) }})
		rewrite(p, addrB, use, unknown)
		p.refusedAt(p.b, ike.CodePPK, 0) // B expects an identity
	})
	t.Run("USE_PPK taken out, required", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) { ppks(c, true, one) }})
		rewrite(p, addrB, use, unknown)
		p.refusedAt(p.a, ike.CodePPK, -1)
	})
	id := func(data ...byte) *message.Notify { return message.NewNotify(message.NotifyPPKIdentity, data...) }
	for name, ps := range map[string]message.Payloads{
		"no identity":       {},
		"empty identity":    {id()},
		"type alone":        {id(2)},
		"opaque":            {id(append([]byte{1}, one.ID...)...)},
		"unknown type":      {id(append([]byte{9}, one.ID...)...)},
		"empty NO_PPK_AUTH": {id(2, 'x'), message.NewNotify(message.NotifyNoPPKAuth)},
		"wrong NO_PPK_AUTH": {id(2, 'x'), message.NewNotify(message.NotifyNoPPKAuth, make([]byte, 48)...)},
		"long identity":     {id(append([]byte{2}, make([]byte, 60000)...)...)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) { psk(c); ppks(c, false, one) }})
			p.instead(addrA, exchangeIs(35, 1), func() [][]byte {
				_, msgs := p.a.Endpoint.Forge(35, 1, false, append(message.Payloads{
					message.NewIDi(2, []byte("a.devices.example")), &message.Auth{Method: 2, Data: make([]byte, 48)},
				}, append(ps, hybridChild(4)[0], hybridChild(4)[3], hybridChild(4)[4])...))
				return msgs
			}, false)
			if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
			p.w.For(time.Second)
			if len(p.b.Refusals) != 1 || p.b.Refusals[0].Code != ike.CodePPK && p.b.Refusals[0].Code != ike.CodeBadSignature {
				t.Errorf("B refused %s", texts(p.b.Refusals))
			}
			p.w.For(3 * time.Minute)
			p.empty()
		})
	}
}

// TestPPKSetPeers: another PPK is another right: the IKE SA ends.
func TestPPKSetPeers(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) { ppks(c, true, ppkOf("one-0000")) }})
	p.up()
	next := *p.cb
	next.RemoteAuth = slices.Clone(next.RemoteAuth)
	ppks(&next, true, ppkOf("two-0000"))
	if err := p.b.Endpoint.SetPeers([]*ike.PeerConfig{&next}); err != nil {
		t.Fatal(err)
	}
	p.w.For(time.Second)
	p.empty()
}

// TestPPKValidate: what SetPeers refuses.
func TestPPKValidate(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	good := ppkOf("one-0000")
	for name, edit := range map[string]func(c *ike.PeerConfig){
		"required and none": func(c *ike.PeerConfig) { ppks(c, true) },
		"second round":      func(c *ike.PeerConfig) { c.RemoteAuth[1].PPKs = []ike.PPK{good} },
		"no ID":             func(c *ike.PeerConfig) { ppks(c, false, ike.PPK{Secret: good.Secret}) },
		"long ID":           func(c *ike.PeerConfig) { ppks(c, false, ike.PPK{ID: strings.Repeat("x", 256), Secret: good.Secret}) },
		"short":             func(c *ike.PeerConfig) { ppks(c, false, ike.PPK{ID: "x", Secret: good.Secret[:31]}) },
		"twice":             func(c *ike.PeerConfig) { ppks(c, false, good, good) },
	} {
		c := *p.ca
		c.RemoteAuth = slices.Clone(c.RemoteAuth)
		edit(&c)
		if err := p.a.Endpoint.SetPeers([]*ike.PeerConfig{&c}); err == nil || !strings.Contains(err.Error(), "PPK") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
