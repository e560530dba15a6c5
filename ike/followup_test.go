package ike_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
)

// asked sends a forged request of A to B and returns what B answers.
func (p *pair) asked(exchange byte, id uint32, ps message.Payloads) message.Payloads {
	p.t.Helper()
	_, msgs := p.a.Endpoint.Forge(exchange, id, false, ps)
	var answer [][]byte
	tap := p.w.Tap
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if from.Addr() == addrB && msg[19]&0x20 != 0 {
			answer = append(answer, slices.Clone(msg))
		}
		return false
	}
	for _, m := range msgs {
		p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), m)
	}
	p.w.For(time.Millisecond)
	p.w.Tap = tap
	return p.a.Endpoint.Peek(answer...)
}

// hybridChild is what A would ask B for: a hybrid CHILD SA of "net".
func hybridChild(spi byte) message.Payloads {
	prop := message.Proposal{Number: 1, Protocol: message.ProtocolESP, SPI: []byte{1, 2, 3, spi}, Transforms: []message.Transform{
		message.NewTransform(message.TransformENCR, 20, 256), message.NewTransform(message.TransformKE, 31, 0),
		message.NewTransform(message.TransformType(6), 36, 0), message.NewTransform(message.TransformType(5), 1, 0),
	}}
	sel := func(s string) message.Selector {
		x := netip.MustParsePrefix(s)
		return message.NewSelector(0, 0, 65535, x.Addr(), ike.PrefixSelector(x).End)
	}
	return message.Payloads{
		&message.SA{Proposals: []message.Proposal{prop}}, &message.Nonce{Data: make([]byte, 32)}, keOf(31, 32, 9),
		message.NewTSi(sel("10.1.0.0/24")), message.NewTSr(sel("10.2.0.0/24")),
	}
}

// TestFollowupHostileInitiator: what B answers to IKE_FOLLOWUP_KE requests that break the rules of
// RFC 9370, section 2.2.4. No CHILD SA comes of any, nothing is left, and the IKE SA stands.
func TestFollowupHostileInitiator(t *testing.T) {
	t.Parallel()
	good := goodKE(t)
	type ps = message.Payloads
	link := func(l []byte) *message.Notify { return message.NewNotify(message.NotifyAdditionalKeyExchange, l...) }
	for _, c := range []struct {
		name  string
		make  func(l []byte) ps
		want  message.NotifyType
		again message.NotifyType // what the right request is answered with afterwards; 0: it is no error
		ends  bool               // the IKE SA ends
	}{
		{"another link", func([]byte) ps { return ps{good, link([]byte{1, 2, 3})} }, message.NotifyStateNotFound, 0, false},
		{"empty link", func([]byte) ps { return ps{good, link(nil)} }, message.NotifyStateNotFound, 0, false},
		{"no link", func([]byte) ps { return ps{good} }, message.NotifyStateNotFound, 0, false},
		{"a longer link", func(l []byte) ps { return ps{good, link(append(slices.Clone(l), 0))} }, message.NotifyStateNotFound, 0, false},
		{"another method", func(l []byte) ps { return ps{keOf(37, 1568, 0), link(l)} }, message.NotifyNoProposalChosen, message.NotifyStateNotFound, false},
		{"the first method", func(l []byte) ps { return ps{keOf(31, 32, 9), link(l)} }, message.NotifyNoProposalChosen, message.NotifyStateNotFound, false},
		{"short key", func(l []byte) ps { return ps{keOf(36, 1183, 0), link(l)} }, message.NotifyNoProposalChosen, message.NotifyStateNotFound, false},
		{"empty key", func(l []byte) ps { return ps{keOf(36, 0, 0), link(l)} }, message.NotifyNoProposalChosen, message.NotifyStateNotFound, false},
		{"modulus check", func(l []byte) ps { return ps{badKE(t), link(l)} }, message.NotifyNoProposalChosen, message.NotifyStateNotFound, false},
		{"no key", func(l []byte) ps { return ps{link(l)} }, message.NotifyInvalidSyntax, 0, true},
		{"two keys", func(l []byte) ps { return ps{good, good, link(l)} }, message.NotifyInvalidSyntax, 0, true},
		{"a nonce", func(l []byte) ps { return ps{good, &message.Nonce{Data: make([]byte, 32)}, link(l)} }, message.NotifyInvalidSyntax, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: suites(t, hybridIKE, hybridESP)})
			p.up()
			id, _ := p.a.Endpoint.IDs()
			answer := p.asked(36, id, hybridChild(4))
			n := answer.Notify(message.NotifyAdditionalKeyExchange)
			if n == nil || answer.SA() == nil || answer.ErrorNotify() != nil {
				t.Fatalf("B answered %v", answer)
			}
			if len(p.b.Children) != 1 {
				t.Fatal("the CHILD SA stands before the additional key exchange")
			}
			answer = p.asked(44, id+1, c.make(n.Data))
			if e := answer.ErrorNotify(); e == nil || e.Type != c.want {
				t.Fatalf("B answered %v, want %v", answer, c.want)
			}
			if c.ends {
				p.w.For(time.Millisecond)
				if len(p.b.IKE) != 0 {
					t.Error("the IKE SA stands after malformed messages")
				}
			} else {
				answer = p.asked(44, id+2, ps{good, link(n.Data)})
				switch e := answer.ErrorNotify(); {
				case c.again == 0 && (e != nil || answer.KE() == nil || len(p.b.Children) != 2):
					t.Errorf("the right request was answered with %v", answer)
				case c.again != 0 && (e == nil || e.Type != c.again || len(p.b.Children) != 1):
					t.Errorf("the request was answered with %v, want %v", answer, c.again)
				}
				// One more than agreed on.
				answer = p.asked(44, id+3, ps{good, link(n.Data)})
				if e := answer.ErrorNotify(); e == nil || e.Type != message.NotifyStateNotFound {
					t.Errorf("one more was answered with %v", answer)
				}
			}
			p.w.Link.Cut = true
			p.w.For(10 * time.Minute)
			p.empty()
			p.sound()
		})
	}
}

// TestFollowupExpires: an initiator that never goes on costs nothing after 20 s, and is told so.
func TestFollowupExpires(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: suites(t, hybridIKE, hybridESP)})
	p.up()
	id, _ := p.a.Endpoint.IDs()
	var links [][]byte
	for i := range uint32(10) { // at most four wait at a time
		n := p.asked(36, id+i, hybridChild(byte(i))).Notify(message.NotifyAdditionalKeyExchange)
		if n == nil {
			t.Fatal("no link")
		}
		links = append(links, n.Data)
	}
	if _, _, _, esp, _, _ := p.b.Endpoint.Tables(); esp != 1+4 {
		t.Errorf("B holds %d ESP SPIs, want 5", esp)
	}
	p.w.Tap = func(netip.AddrPort, netip.AddrPort, []byte) bool { return false }
	p.w.For(19 * time.Second)
	if _, _, _, esp, _, _ := p.b.Endpoint.Tables(); esp != 1+4 {
		t.Errorf("B holds %d ESP SPIs after 19 s, want 5", esp)
	}
	p.w.For(2 * time.Second)
	if _, _, _, esp, _, _ := p.b.Endpoint.Tables(); esp != 1 {
		t.Errorf("B holds %d ESP SPIs after 21 s, want 1", esp)
	}
	answer := p.asked(44, id+10, message.Payloads{goodKE(t), message.NewNotify(message.NotifyAdditionalKeyExchange, links[9]...)})
	if e := answer.ErrorNotify(); e == nil || e.Type != message.NotifyStateNotFound {
		t.Errorf("B answered %v", answer)
	}
	p.sound()
}

// TestFollowupHostileResponder: what A does with answers that break the rules. Nothing is left.
func TestFollowupHostileResponder(t *testing.T) {
	t.Parallel()
	type ps = message.Payloads
	for _, c := range []struct {
		name string
		ps   ps
	}{
		{"STATE_NOT_FOUND", ps{message.NewNotify(message.NotifyStateNotFound)}},
		{"TEMPORARY_FAILURE", ps{message.NewNotify(message.NotifyTemporaryFailure)}},
		{"INVALID_SYNTAX", ps{message.NewNotify(message.NotifyInvalidSyntax)}},
		{"nothing", nil},
		{"short ciphertext", ps{keOf(36, 1087, 1)}},
		{"empty ciphertext", ps{keOf(36, 0, 1)}},
		{"another method", ps{keOf(37, 1568, 1)}},
		{"two", ps{keOf(36, 1088, 1), keOf(36, 1088, 1)}},
	} {
		for what, ask := range map[string]func(*pair){
			"CHILD SA": func(p *pair) { _ = p.a.Endpoint.RekeyChild(childOf(t, p.a).ID) },
			"IKE SA":   func(p *pair) { _ = p.a.Endpoint.RekeyIKE(ikeOf(t, p.a).ID) },
		} {
			t.Run(c.name+", "+what, func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{both: func(x *ike.PeerConfig) {
					suites(t, hybridIKE, hybridESP)(x)
					x.RekeyChild, x.RekeyIKE = 10*time.Minute, 10*time.Minute
				}})
				p.up()
				p.instead(addrA, func(msg []byte) bool { return msg[18] == 44 }, func() [][]byte {
					id, _ := p.a.Endpoint.IDs()
					_, msgs := p.b.Endpoint.Forge(44, id-1, true, c.ps)
					for _, m := range msgs {
						p.w.AfterFunc(time.Millisecond, func() { p.w.Deliver(netip.AddrPortFrom(addrB, 500), netip.AddrPortFrom(addrA, 500), m) })
					}
					return nil
				}, true)
				ask(p)
				p.w.For(100 * time.Millisecond)
				p.w.Tap = nil // B's IDs are one behind: it takes the next request for the one that it missed
				p.w.Link.Cut = true
				p.w.For(20 * time.Minute)
				p.empty()
				p.sound()
			})
		}
	}
}

// TestFollowupLostState: B forgets in the middle, because A was silent for too long; A begins anew,
// and no packet is lost.
func TestFollowupLostState(t *testing.T) {
	t.Parallel()
	for what, ask := range map[string]func(*pair){
		"CHILD SA": func(p *pair) { _ = p.a.Endpoint.RekeyChild(childOf(t, p.a).ID) },
		"IKE SA":   func(p *pair) { _ = p.a.Endpoint.RekeyIKE(ikeOf(t, p.a).ID) },
		"new":      func(p *pair) { _ = p.a.Endpoint.Initiate("a-b", "other") },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) {
				o := c.Children[0]
				o.Name, o.LocalTS, o.RemoteTS = "other", prefix("10.9.0.0/24"), prefix("10.9.0.0/24")
				c.Children = append(c.Children, o)
				suites(t, hybridIKE, hybridESP)(c)
				c.Retransmit = ike.Retransmit{Initial: 25 * time.Second, Factor: 1, Tries: 5}
			}})
			p.up()
			spi := p.a.Endpoint.Snapshot()[0].SPIi
			n := 0
			p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
				if from.Addr() == addrA && msg[18] == 44 {
					n++
				}
				return n != 1 && n != 2 || msg[18] != 44 // the two fragments of the first
			}
			traffic := p.w.Traffic(p.a, p.b, 20*time.Millisecond)
			ask(p)
			p.w.For(3 * time.Minute)
			traffic.Stop()
			p.w.Tap = nil
			if n < 4 {
				t.Errorf("%d datagrams of IKE_FOLLOWUP_KE", n)
			}
			want := 1
			switch what {
			case "new":
				want = 2
			case "IKE SA":
				if p.a.Endpoint.Snapshot()[0].SPIi == spi {
					t.Error("the IKE SA has its old keys")
				}
			default:
				if childOf(t, p.a).Replaces == 0 {
					t.Error("the CHILD SA has its old keys")
				}
			}
			p.counts(1, want)
			p.carries()
			p.agree()
			if traffic.Lost > 0 {
				t.Errorf("%d of %d packets were lost: %v", traffic.Lost, traffic.Sent, traffic.Why)
			}
		})
	}
}

// TestFollowupTemporaryFailure: who has begun additional key exchanges for an SA refuses the peer's
// rekey of the same one for the moment, and of the IKE SA (RFC 9370, section 2.2.4).
func TestFollowupTemporaryFailure(t *testing.T) {
	t.Parallel()
	for what, ask := range map[string]func(*iketest.Node){
		"CHILD SA": func(n *iketest.Node) { _ = n.Endpoint.RekeyChild(firstChild(n)) },
		"IKE SA":   func(n *iketest.Node) { _ = n.Endpoint.RekeyIKE(1) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: suites(t, hybridIKE, hybridESP)})
			p.up()
			// A's IKE_FOLLOWUP_KE is held until B asked, too.
			var held []func()
			hold := true
			var refused []message.Payloads
			p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
				m := slices.Clone(msg)
				switch {
				case from.Addr() == addrA && msg[18] == 44 && hold:
					held = append(held, func() { p.w.Deliver(from, to, m) })
					return false
				case from.Addr() == addrB && msg[18] == 36 && msg[19]&0x20 != 0:
					// B's answer to A comes at once; what B asks is seen below.
				case from.Addr() == addrA && msg[18] == 36 && msg[19]&0x20 != 0:
					refused = append(refused, p.b.Endpoint.Peek(m))
				}
				return true
			}
			ask(p.a)
			p.w.For(14 * time.Millisecond)
			if len(held) == 0 {
				t.Fatal("A does not go on")
			}
			// B does not begin while A's waits: what it sends now is as if it had crossed.
			id, _ := p.b.Endpoint.IDs()
			ps := message.Payloads{message.NewRekeySA(message.ProtocolESP, childOf(t, p.b).SPIIn)}
			if what == "IKE SA" {
				ps = nil
				ps = append(ps, &message.SA{Proposals: []message.Proposal{{Number: 1, Protocol: message.ProtocolIKE, SPI: []byte{1, 2, 3, 4, 5, 6, 7, 8}, Transforms: []message.Transform{
					message.NewTransform(message.TransformENCR, 20, 256), message.NewTransform(message.TransformPRF, 6, 0),
					message.NewTransform(message.TransformKE, 31, 0), message.NewTransform(message.TransformType(6), 36, 0),
				}}}}, &message.Nonce{Data: make([]byte, 32)}, keOf(31, 32, 9))
			} else {
				ps = append(ps, hybridChild(77)...)
			}
			_, msgs := p.b.Endpoint.Forge(36, id, false, ps)
			for _, m := range msgs {
				p.w.Deliver(netip.AddrPortFrom(addrB, 500), netip.AddrPortFrom(addrA, 500), m)
			}
			p.w.For(time.Millisecond)
			if len(refused) != 1 || !refused[0].HasNotify(message.NotifyTemporaryFailure) {
				t.Errorf("A answered %v", refused)
			}
			hold = false
			for _, f := range held {
				f()
			}
			p.w.For(time.Second)
			p.w.Link.Cut = true
			p.w.For(10 * time.Minute)
			p.empty()
			p.sound()
		})
	}
}
