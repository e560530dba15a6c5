package ike_test

import (
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// TestChildless: RFC 6023: the IKE SA comes without a CHILD SA, which then has a key exchange of
// its own; with a responder that does not take part, everything is as ever.
func TestChildless(t *testing.T) {
	t.Parallel()
	for how, both := range map[string]func(*ike.PeerConfig){"psk": psk, "certificate": single, "two rounds": func(*ike.PeerConfig) {}} {
		for _, c := range []struct {
			name    string
			a, b    bool
			creates int
		}{{"both", true, true, 1}, {"initiator alone", true, false, 0}, {"responder alone", false, true, 0}} {
			for _, s := range [][2]string{{defaultIKE, defaultESP}, {hybridIKE, hybridESP}} {
				t.Run(how+", "+c.name+", "+s[0], func(t *testing.T) {
					t.Parallel()
					p := newPair(t, pairOptions{both: func(x *ike.PeerConfig) {
						both(x)
						suites(t, s[0], s[1])(x)
					}, edit: func(p *pair) { p.ca.Childless, p.cb.Childless = c.a, c.b }})
					count := p.exchanges()
					p.up()
					if count[36] != c.creates {
						t.Errorf("%d CREATE_CHILD_SA exchanges, want %d", count[36], c.creates)
					}
					if want := s[1] == hybridESP && c.creates > 0; (count[44] > 0) != want {
						t.Errorf("%d IKE_FOLLOWUP_KE exchanges", count[44])
					}
					p.rekeyEverything()
					if len(p.a.Refusals)+len(p.b.Refusals) > 0 {
						t.Errorf("refused: %s %s", texts(p.a.Refusals), texts(p.b.Refusals))
					}
				})
			}
		}
	}
}

// TestChildlessRefused: an IKE SA without a CHILD SA that was not offered, that the connection does
// not allow, or that is half of one.
func TestChildlessRefused(t *testing.T) {
	t.Parallel()
	auth := message.Payloads{message.NewIDi(2, []byte("a.devices.example")), &message.Auth{Method: 2, Data: make([]byte, 48)}}
	child := hybridChild(4)
	for name, c := range map[string]struct {
		childless bool
		ps        message.Payloads
		code      ike.Code
	}{
		"not offered":   {false, auth, ike.CodeSyntax},
		"without TS":    {true, append(slices.Clone(auth), child[0]), ike.CodeSyntax},
		"without SA":    {true, append(slices.Clone(auth), child[3], child[4]), ike.CodeSyntax},
		"one TS":        {true, append(slices.Clone(auth), child[0], child[3]), ike.CodeSyntax},
		"a nonce":       {true, append(slices.Clone(auth), child[1]), ike.CodeSyntax},
		"without IDi":   {true, auth[1:], ike.CodeSyntax},
		"without proof": {true, auth, ike.CodeBadSignature},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: func(x *ike.PeerConfig) {
				psk(x)
				x.Childless = c.childless
			}})
			p.instead(addrA, exchangeIs(35, 1), func() [][]byte {
				_, msgs := p.a.Endpoint.Forge(35, 1, false, c.ps)
				return msgs
			}, false)
			if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
			p.w.For(time.Second)
			if !slices.Equal(p.b.Codes(), []ike.Code{c.code}) || len(p.b.IKE) > 0 {
				t.Errorf("B refused %s, want %s", texts(p.b.Refusals), c.code)
			}
			p.w.For(3 * time.Minute)
			p.empty()
		})
	}
	t.Run("another connection allows it", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, pairOptions{both: func(x *ike.PeerConfig) { psk(x); x.Childless = true }})
		other := *p.cb
		other.Name, other.RemoteAuth = "other", []ike.RemoteAuth{{IDs: []ike.Identity{fqdn("x.example")}, PSK: []byte("x"), RelatedToRound: -1}}
		own := *p.cb
		own.Childless = false
		if err := p.b.Endpoint.SetPeers([]*ike.PeerConfig{&own, &other}); err != nil {
			t.Fatal(err)
		}
		p.refusedAt(p.b, ike.CodeNoConnection, -1)
	})
}

// TestChildlessChildRefused: the CHILD SA that comes after is refused; the IKE SA stands.
func TestChildlessChildRefused(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: func(x *ike.PeerConfig) { x.Childless = true }, edit: func(p *pair) {
		p.cb.Children[0].Proposals = proposals(t, suite.ProtocolESP, "aes128gcm16")
	}})
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(5 * time.Second)
	p.counts(1, 0)
	if !slices.Contains(p.b.Codes(), ike.CodeNoProposal) || len(p.a.Failed) != 1 {
		t.Errorf("B refused %s; A failed with %v", texts(p.b.Refusals), p.a.Failed)
	}
}
