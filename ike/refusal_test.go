package ike_test

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
	"wardgate/ike/suite"
	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

// refusedAt initiates from A and expects node to refuse with code in round, and nothing to come
// up anywhere.
func (p *pair) refusedAt(node *iketest.Node, code ike.Code, round int) {
	p.t.Helper()
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		p.t.Fatal(err)
	}
	p.w.For(3 * time.Minute)
	p.sound()
	p.empty()
	p.t.Log(texts(node.Refusals))
	ok := slices.ContainsFunc(node.Refusals, func(r ike.Refusal) bool { return r.Code == code && r.Round == round && r.Text != "" })
	if !ok {
		p.t.Errorf("%s refused with %v, want %s in round %d", node.Name, texts(node.Refusals), code, round)
	}
	if len(p.a.Failed) != 1 {
		p.t.Errorf("InitiateFailed came %d times, want once: %v", len(p.a.Failed), p.a.Failed)
	}
}

// TestRefused spoils one thing of one end and expects the other end to refuse it. Each case runs
// twice: with the spoilt end as initiator, and as responder.
func TestRefused(t *testing.T) {
	t.Parallel()
	f := facilities()
	clientAuth := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
	ca := cas()
	// spoilt credentials of facility i, named as they should be.
	device := func(i int, edit func(*labca.Request)) *credential {
		return issue(ca.device, f[i].device.id.Data, labca.P256, nil, edit)
	}
	service := func(i int, from *labca.Authority, edit func(*labca.Request)) *credential {
		return issue(from, f[i].groupA.id.Data, labca.P256, f[i].device, edit)
	}
	revoked := [2]*credential{}
	for i := range revoked {
		revoked[i] = service(i, ca.groupA, nil)
		if err := ca.groupA.Revoke(revoked[i].leaf.SerialNumber, iketest.Epoch.Add(-time.Minute), 1); err != nil {
			t.Fatal(err)
		}
	}
	crls := must(ca.groupA.CRLs(iketest.Epoch.Add(-time.Second), 24*time.Hour))
	intruder := issue(ca.device, "intruder.devices.example", labca.P256, nil, nil)

	cases := []struct {
		name  string
		spoil func(i int, bad, judge *ike.PeerConfig) // bad: what facility i uses, judge: what the other uses
		code  ike.Code
		round int
	}{
		{"service certificate of another CA", func(i int, bad, _ *ike.PeerConfig) {
			bad.LocalAuth[1] = service(i, ca.rogue, nil).auth("service")
		}, ike.CodeUnknownCA, 1},
		{"device certificate of another CA", func(i int, bad, _ *ike.PeerConfig) {
			rogue := must(labca.New(labca.Options{Kind: labca.Device, Name: "device", At: iketest.Epoch.Add(-time.Hour)}))
			bad.LocalAuth[0] = issue(rogue, f[i].device.id.Data, labca.P256, nil, nil).auth("device")
		}, ike.CodeUnknownCA, 0},
		{"service certificate from the device CA", func(i int, bad, _ *ike.PeerConfig) {
			bad.LocalAuth[1] = issue(ca.device, f[i].groupA.id.Data, labca.P256, nil, nil).auth("service")
		}, ike.CodeUnknownCA, 1},
		{"expired", func(i int, bad, _ *ike.PeerConfig) {
			bad.LocalAuth[1] = service(i, ca.groupA, func(r *labca.Request) {
				r.At, r.Life = iketest.Epoch.Add(-2*time.Hour), time.Hour
			}).auth("service")
		}, ike.CodeExpired, 1},
		{"not yet valid", func(i int, bad, _ *ike.PeerConfig) {
			bad.LocalAuth[1] = service(i, ca.groupA, func(r *labca.Request) { r.At = iketest.Epoch.Add(time.Hour) }).auth("service")
		}, ike.CodeNotYetValid, 1},
		{"expired device", func(i int, bad, _ *ike.PeerConfig) {
			bad.LocalAuth[0] = device(i, func(r *labca.Request) { r.At, r.Life = iketest.Epoch.Add(-2*time.Hour), time.Hour }).auth("device")
		}, ike.CodeExpired, 0},
		{"revoked", func(i int, bad, judge *ike.PeerConfig) {
			bad.LocalAuth[1] = revoked[i].auth("service")
			judge.RemoteAuth[1].CRLs = crls
		}, ike.CodeRevoked, 1},
		{"revocation unknown", func(_ int, _, judge *ike.PeerConfig) { judge.RemoteAuth[1].RequireCRL = true }, ike.CodeNoCRL, 1},
		{"wrong EKU", func(i int, bad, _ *ike.PeerConfig) {
			bad.LocalAuth[1] = service(i, ca.groupA, func(r *labca.Request) { r.EKUs = []asn1.ObjectIdentifier{clientAuth} }).auth("service")
		}, ike.CodeWrongEKU, 1},
		{"no EKU", func(i int, bad, _ *ike.PeerConfig) {
			bad.LocalAuth[1] = service(i, ca.groupA, func(r *labca.Request) { r.NoEKU = true }).auth("service")
		}, ike.CodeWrongEKU, 1},
		{"a CA certificate as leaf, for keys", func(i int, bad, _ *ike.PeerConfig) {
			bad.LocalAuth[1] = service(i, ca.groupA, func(r *labca.Request) { r.KeyUsage = x509.KeyUsageKeyEncipherment }).auth("service")
		}, ike.CodeBadCert, 1},
		{"not bound to a device", func(i int, bad, _ *ike.PeerConfig) {
			bad.LocalAuth[1] = service(i, ca.groupA, func(r *labca.Request) { r.Unbound = true }).auth("service")
		}, ike.CodeNotBound, 1},
		{"bound to another device", func(i int, bad, _ *ike.PeerConfig) {
			bad.LocalAuth[1] = service(i, ca.groupA, func(r *labca.Request) { r.Device = intruder.leaf.Raw }).auth("service")
		}, ike.CodeNotBound, 1},
		{"certificate for another name", func(i int, bad, _ *ike.PeerConfig) {
			a := intruder.auth("device")
			a.ID = f[i].device.id
			bad.LocalAuth[0] = a
		}, ike.CodeIDMismatch, 0},
		{"unknown device", func(_ int, bad, _ *ike.PeerConfig) { bad.LocalAuth[0] = intruder.auth("device") }, ike.CodeUnknownIdentity, 0},
		{"no certificate of the path between", func(i int, bad, _ *ike.PeerConfig) {
			bad.LocalAuth[0].Chain = bad.LocalAuth[0].Chain[:1]
		}, ike.CodeUnknownCA, 0},
		{"PSK where a certificate is due", func(_ int, bad, judge *ike.PeerConfig) {
			bad.LocalAuth[0] = ike.LocalAuth{ID: bad.LocalAuth[0].ID, PSK: []byte("guessed")}
		}, ike.CodeAuthMethod, 0},
		{"certificate where a PSK is due", func(_ int, _, judge *ike.PeerConfig) {
			judge.RemoteAuth[0] = ike.RemoteAuth{IDs: judge.RemoteAuth[0].IDs, PSK: []byte("x"), RelatedToRound: -1}
			judge.RemoteAuth[1].RelatedToRound = -1
		}, ike.CodeAuthMethod, 0},
		{"wrong PSK", func(_ int, bad, judge *ike.PeerConfig) {
			bad.LocalAuth[0] = ike.LocalAuth{ID: bad.LocalAuth[0].ID, PSK: []byte("guessed")}
			judge.RemoteAuth[0] = ike.RemoteAuth{IDs: judge.RemoteAuth[0].IDs, PSK: []byte("x"), RelatedToRound: -1}
			judge.RemoteAuth[1].RelatedToRound = -1
		}, ike.CodeBadSignature, 0},
	}
	for _, c := range cases {
		t.Run(c.name+"/initiator", func(t *testing.T) {
			p := newPair(t, pairOptions{edit: func(p *pair) { c.spoil(0, p.ca, p.cb) }})
			p.refusedAt(p.b, c.code, c.round)
			// The wire says AUTHENTICATION_FAILED and no more.
			var ne *ike.PeerNotifyError
			if len(p.a.Failed) > 0 && (!errors.As(p.a.Failed[0], &ne) || ne.Type != uint16(message.NotifyAuthenticationFailed)) {
				t.Errorf("A was told %v", p.a.Failed)
			}
		})
		t.Run(c.name+"/responder", func(t *testing.T) {
			p := newPair(t, pairOptions{edit: func(p *pair) {
				c.spoil(1, p.cb, p.ca)
				for i := range p.ca.RemoteAuth { // or A would name whom it wants, and B would say that it is another
					p.ca.RemoteAuth[i].IDs = append(p.ca.RemoteAuth[i].IDs, fqdn("another.example"))
				}
			}})
			p.refusedAt(p.a, c.code, c.round)
			if !slices.Contains(p.b.Codes(), ike.CodePeerRefused) && len(p.b.Ended) == 0 {
				t.Errorf("B never learnt that A refused it: %v", p.b.Codes())
			}
			if len(p.b.Children) != 0 {
				t.Error("B keeps a CHILD SA")
			}
		})
	}
}

func TestRounds(t *testing.T) {
	t.Parallel()
	swap := func(c *ike.PeerConfig) {
		l := c.LocalAuth
		c.LocalAuth = []ike.LocalAuth{l[1], l[0]}
		r := c.RemoteAuth
		c.RemoteAuth = []ike.RemoteAuth{r[1], r[0]}
		c.RemoteAuth[0].RelatedToRound = -1
	}
	for _, c := range []struct {
		name  string
		edit  func(p *pair)
		code  ike.Code
		round int
	}{
		{"device certificate alone", func(p *pair) { single(p.ca) }, ike.CodeDeviceOnly, 0},
		{"service certificate alone", func(p *pair) { swap(p.ca); single(p.ca) }, ike.CodeServiceFirst, 0},
		{"service certificate first", func(p *pair) { swap(p.ca) }, ike.CodeServiceFirst, 0},
		{"device certificate twice", func(p *pair) { p.ca.LocalAuth[1] = p.ca.LocalAuth[0] }, ike.CodeWrongRound, 1},
		{"a third round", func(p *pair) {
			p.ca.LocalAuth = append(p.ca.LocalAuth, p.ca.LocalAuth[1])
			p.ca.RemoteAuth = append(p.ca.RemoteAuth, p.ca.RemoteAuth[1])
		}, ike.CodeTooManyRounds, 1},
		{"two rounds for one", func(p *pair) { single(p.cb) }, ike.CodeTooManyRounds, 0},
		{"wants to talk to somebody else", func(p *pair) {
			p.ca.RemoteAuth[1].IDs = []ike.Identity{fqdn("c.group-a.example")}
		}, ike.CodeLocalIdentity, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{edit: c.edit})
			p.refusedAt(p.b, c.code, c.round)
		})
	}
}

// TestSecondRoundNeverSent: B forgets A after 30 s, and says so; no CHILD SA, no traffic.
func TestSecondRoundNeverSent(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		return from.Addr() != addrA || msg[18] != 35 || msg[23] < 2
	}
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(29 * time.Second)
	if got := p.b.Endpoint.HalfOpen(); got != 1 {
		t.Errorf("after 29 s B has %d half-open IKE SAs, want 1", got)
	}
	p.w.For(2 * time.Second)
	if got := p.b.Endpoint.HalfOpen(); got != 0 {
		t.Errorf("after 31 s B has %d half-open IKE SAs, want none", got)
	}
	emptyTables(t, p.b)
	if got := p.b.Codes(); len(got) != 1 || got[0] != ike.CodeRoundMissing || p.b.Refusals[0].Role != "service" {
		t.Errorf("B refused %v", texts(p.b.Refusals))
	}
	p.w.For(2 * time.Minute)
	p.sound()
	p.empty()
}

func TestNothingAfterInit(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool { return msg[18] == 34 }
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(31 * time.Second)
	emptyTables(t, p.b)
}

func TestNoProposal(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{edit: func(p *pair) {
		p.cb.Proposals = proposals(t, suite.ProtocolIKE, "aes128-sha256-ecp256")
	}})
	p.refusedAt(p.b, ike.CodeNoProposal, -1)
	if got := texts(p.b.Refusals); !containsAll(got, "aes128-sha256", "aes256gcm16-prfsha384-x25519") {
		t.Errorf("both lists should be in %q", got)
	}
}

// TestSuiteOfAnotherConnection: what was negotiated before the peer was known must be allowed by
// the connection that it turns out to be.
func TestSuiteOfAnotherConnection(t *testing.T) {
	t.Parallel()
	f := facilities()
	p := newPair(t, pairOptions{edit: func(p *pair) {
		p.ca.Proposals = proposals(t, suite.ProtocolIKE, "aes128-sha256-ecp256")
	}})
	weak := connection(t, "other", f[1], f[2], f[1].groupA, f[2].groupA, addrC, "10.2.0.0/24", "10.3.0.0/24")
	weak.Proposals = proposals(t, suite.ProtocolIKE, "aes128-sha256-ecp256")
	if err := p.b.Endpoint.SetPeers([]*ike.PeerConfig{p.cb, weak}); err != nil {
		t.Fatal(err)
	}
	p.refusedAt(p.b, ike.CodeSuiteNotAllowed, -1)
}

func TestNoConnectionForAddress(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{edit: func(p *pair) { p.cb.Local = addrC }})
	p.refusedAt(p.b, ike.CodeNoConnection, -1)
}

// brokenSigner has the right public key and cannot sign.
type brokenSigner struct {
	crypto.Signer
	err error
}

func (s brokenSigner) Sign(r io.Reader, d []byte, o crypto.SignerOpts) ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	sig, err := s.Signer.Sign(r, d, o)
	sig[len(sig)-1] ^= 1
	return sig, err
}

func TestOwnKeyFails(t *testing.T) {
	t.Parallel()
	removed := errors.New("token removed")
	for name, e := range map[string]error{"removed": removed, "nonsense": nil} {
		for round := range 2 {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{edit: func(p *pair) {
					p.ca.LocalAuth[round].Signer = brokenSigner{p.ca.LocalAuth[round].Signer, e}
				}})
				p.refusedAt(p.a, ike.CodeCredential, round)
				if e != nil && !errors.Is(p.a.Failed[0], removed) {
					t.Errorf("failed with %v", p.a.Failed[0])
				}
			})
			t.Run(name+" responder", func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{edit: func(p *pair) {
					p.cb.LocalAuth[round].Signer = brokenSigner{p.cb.LocalAuth[round].Signer, e}
				}})
				p.refusedAt(p.b, ike.CodeCredential, round)
			})
		}
	}
}

// TestFlood: strangers cost a bounded amount of state, and a peer that returns its cookie still
// gets through.
func TestFlood(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{eb: func(c *ike.Config) { c.CookieThreshold, c.MaxHalfOpen, c.MaxHalfOpenAddr = 50, 200, 100 }})
	var template []byte
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if from.Addr() == addrA && template == nil {
			template = slices.Clone(msg)
		}
		return true
	}
	p.up()
	for i := range 3000 {
		m := slices.Clone(template)
		m[0], m[1], m[2] = byte(i>>8), byte(i), 0xee
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i % 7), byte(i)}), 500)
		p.w.Deliver(src, netip.AddrPortFrom(addrB, 500), m)
	}
	p.w.For(time.Second)
	if got := p.b.Endpoint.HalfOpen(); got != 50 {
		t.Errorf("%d half-open IKE SAs, want the 50 before cookies", got)
	}
	p.a.Endpoint.Terminate("a-b", "again")
	p.w.For(time.Second)
	p.up()
	p.w.For(31 * time.Second)
	if got := p.b.Endpoint.HalfOpen(); got != 0 {
		t.Errorf("%d half-open IKE SAs after 31 s", got)
	}
	if len(p.b.Refusals) > 200 {
		t.Errorf("%d refusals for strangers: the audit record can be flooded", len(p.b.Refusals))
	}
	p.sound()
}

// TestFloodWithCookies: whoever returns cookies is bounded too.
func TestFloodWithoutCookies(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{eb: func(c *ike.Config) { c.CookieThreshold, c.MaxHalfOpen, c.MaxHalfOpenAddr = 1000, 20, 1000 }})
	var template []byte
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if from.Addr() == addrA && template == nil {
			template = slices.Clone(msg)
		}
		return true
	}
	p.up()
	for i := range 100 {
		m := slices.Clone(template)
		m[0], m[1] = 0xee, byte(i)
		p.w.Deliver(netip.AddrPortFrom(addrC, 500), netip.AddrPortFrom(addrB, 500), m)
	}
	p.w.For(time.Second)
	if got := p.b.Endpoint.HalfOpen(); got != 20 {
		t.Errorf("%d half-open IKE SAs, want 20", got)
	}
	if !slices.Contains(p.b.Codes(), ike.CodeFlooding) {
		t.Errorf("refused %v, want flooding", p.b.Codes())
	}
}

// TestHostileBetweenRounds: a peer that proved its device and not its service, or nothing at all,
// tries to get something out of us.
func TestHostileBetweenRounds(t *testing.T) {
	t.Parallel()
	sa := &message.SA{Proposals: []message.Proposal{{Number: 1, Protocol: message.ProtocolESP, SPI: []byte{1, 2, 3, 4}, Transforms: []message.Transform{
		message.NewTransform(message.TransformENCR, suite.EncrAESGCM16, 256), message.NewTransform(message.TransformSN, 0, 0),
	}}}}
	any4 := message.NewSelector(0, 0, 65535, netip.MustParseAddr("10.1.0.0"), netip.MustParseAddr("10.1.0.255"))
	to4 := message.NewSelector(0, 0, 65535, netip.MustParseAddr("10.2.0.0"), netip.MustParseAddr("10.2.0.255"))
	nonce := &message.Nonce{Data: make([]byte, 32)}
	for name, c := range map[string]struct {
		exchange uint8
		ps       message.Payloads
	}{
		"CREATE_CHILD_SA":       {36, message.Payloads{sa, nonce, message.NewTSi(any4), message.NewTSr(to4)}},
		"rekey":                 {36, message.Payloads{message.NewRekeySA(message.ProtocolESP, 0x01020304), sa, nonce, message.NewTSi(any4), message.NewTSr(to4)}},
		"INFORMATIONAL":         {37, nil},
		"delete":                {37, message.Payloads{&message.Delete{Protocol: message.ProtocolIKE}}},
		"delete child":          {37, message.Payloads{&message.Delete{Protocol: message.ProtocolESP, SPIs: []uint32{1}}}},
		"IKE_AUTH without AUTH": {35, message.Payloads{message.NewIDi(2, []byte("a.group-a.example"))}},
		"IKE_AUTH with child":   {35, message.Payloads{sa, message.NewTSi(any4), message.NewTSr(to4)}},
		"empty IKE_AUTH":        {35, nil},
		"unknown exchange":      {99, nil},
		"unknown critical":      {35, message.Payloads{&message.Unknown{Generic: message.Generic{Critical: true}, Type: 200}}},
		"two IDi":               {35, message.Payloads{message.NewIDi(2, []byte("x")), message.NewIDi(2, []byte("y"))}},
	} {
		for _, id := range []uint32{1, 2} {
			name := fmt.Sprintf("%s, before round %d", name, id)
			hostileBefore(t, name, id, c.exchange, c.ps)
		}
	}
}

// hostileBefore has A send something else than the request of a round.
func hostileBefore(t *testing.T, name string, id uint32, exchange uint8, ps message.Payloads) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		p := newPair(t, pairOptions{})
		done := false
		p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
			if from.Addr() == addrA && msg[18] == 35 && uint32(msg[23]) == id {
				if !done {
					done = true
					_, forged := p.a.Endpoint.Forge(exchange, id, false, ps)
					for _, m := range forged {
						p.w.Deliver(from, to, m)
					}
				}
				return false
			}
			return true
		}
		if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
			t.Fatal(err)
		}
		p.w.For(time.Second)
		if !done {
			t.Fatal("the round never began")
		}
		if len(p.b.IKE)+len(p.b.Children)+len(p.a.IKE)+len(p.a.Children) != 0 {
			t.Error("something came up")
		}
		if len(p.b.Refusals) == 0 {
			t.Error("B refused nothing")
		}
		t.Log(texts(p.b.Refusals))
		p.w.For(3 * time.Minute)
		p.sound()
		p.empty()
	})
}

// TestReflection: our own messages sent back to us do nothing.
func TestReflection(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		p.w.Deliver(to, from, msg)
		return true
	}
	p.up()
	p.rekeyEverything()
	p.counts(1, 1)
}

func containsAll(s string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(s, p) })
}

// The classes of the certificate package are told apart.
func TestVerdictCodes(t *testing.T) {
	t.Parallel()
	for class, code := range map[certs.Class]ike.Code{
		certs.UnknownCA: ike.CodeUnknownCA, certs.Expired: ike.CodeExpired, certs.NotYetValid: ike.CodeNotYetValid,
		certs.Revoked: ike.CodeRevoked, certs.CRLMissing: ike.CodeNoCRL, certs.WrongEKU: ike.CodeWrongEKU,
		certs.NotBound: ike.CodeNotBound, certs.IDMismatch: ike.CodeIDMismatch, certs.Malformed: ike.CodeBadCert,
	} {
		if got := ike.VerdictCode(&certs.Error{Class: class}); got != code {
			t.Errorf("%v: %s, want %s", class, got, code)
		}
	}
}
