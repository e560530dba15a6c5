package ike_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
)

// errorTypes are the error notifies of RFC 7296, section 3.10.1, those of other RFCs that we know, unknown
// ones and private ones.
var errorTypes = []message.NotifyType{
	message.NotifyUnsupportedCriticalPayload, message.NotifyInvalidIKESPI, message.NotifyInvalidMajorVersion, message.NotifyInvalidSyntax,
	message.NotifyInvalidMessageID, message.NotifyInvalidSPI, message.NotifyNoProposalChosen, message.NotifyInvalidKEPayload,
	message.NotifyAuthenticationFailed, message.NotifySinglePairRequired, message.NotifyNoAdditionalSAs, message.NotifyInternalAddressFailure,
	message.NotifyFailedCPRequired, message.NotifyTSUnacceptable, message.NotifyInvalidSelectors, message.NotifyUnacceptableAddresses,
	message.NotifyUnexpectedNATDetected, message.NotifyTemporaryFailure, message.NotifyChildSANotFound, message.NotifyStateNotFound,
	message.NotifyTSMaxQueue, 13, 8191, 8192, 16383,
}

// refuses has B answer A's next request of an exchange with an error: B does not see it.
func (p *pair) refuses(exchange byte, n message.NotifyType) {
	done := false
	var swallow byte
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		x, response := exchangeOf(msg)
		switch {
		case !done && from.Addr() == addrA && x == exchange && !response:
			done = true
			id := uint32(msg[23])
			// So that B counts it.
			_, empty := p.a.Endpoint.Forge(37, id, false, nil)
			_, answer := p.b.Endpoint.Forge(x, id, true, message.Payloads{message.NewNotify(n)})
			for _, m := range empty {
				p.w.Deliver(from, to, m)
			}
			for _, m := range answer {
				p.w.Deliver(to, from, m)
			}
			swallow = msg[23]
			return false
		case done && from.Addr() == addrB && response && x == 37 && msg[23] == swallow && exchange != 37:
			return false
		}
		return true
	}
}

// became says what an error made of A's IKE SA and CHILD SA, and what A did about it within 5 minutes.
func (p *pair) became(before ike.SAID, child ike.ChildID, exchange byte) string {
	p.t.Helper()
	start := p.w.Now()
	var again, fresh time.Duration
	p.w.Tap = chain(p.w.Tap, func(from, _ netip.AddrPort, msg []byte) bool {
		x, response := exchangeOf(msg)
		if since := p.w.Now().Sub(start); from.Addr() == addrA && !response {
			if x == exchange && again == 0 && since > 100*time.Millisecond { // not the first one
				again = since
			}
			if x == 34 && fresh == 0 {
				fresh = since + 1
			}
		}
		return true
	})
	p.w.For(time.Second)
	var out []string
	if _, ok := p.a.IKE[before]; !ok {
		out = append(out, "the IKE SA ended")
	} else if _, ok := p.a.Children[child]; !ok {
		out = append(out, "the CHILD SA ended")
	}
	p.w.For(5 * time.Minute)
	switch {
	case fresh > 0:
		out = append(out, "a new IKE SA "+bucket(fresh))
	case again > 0 && exchange == 36:
		out = append(out, "again "+bucket(again))
	}
	if n := len(p.a.Failed); n > 0 {
		out = append(out, fmt.Sprintf("%d failed", n))
	}
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, ", ")
}

func bucket(d time.Duration) string {
	switch {
	case d < 5*time.Second:
		return "at once"
	case d <= 25*time.Second:
		return "soon"
	case d <= 3*time.Minute:
		return "later"
	}
	return "late"
}

func chain(first, then func(from, to netip.AddrPort, msg []byte) bool) func(from, to netip.AddrPort, msg []byte) bool {
	return func(from, to netip.AddrPort, msg []byte) bool {
		return (first == nil || first(from, to, msg)) && then(from, to, msg)
	}
}

// TestErrorAnswers: what each error does to a request of ours (RFC 7296, sections 2.21 and 3.10.1): to the IKE
// SA, to the CHILD SA, and whether and when it is tried again. Not listed: default.
func TestErrorAnswers(t *testing.T) {
	t.Parallel()
	const ends = "the IKE SA ended"
	for _, c := range []struct {
		name      string
		exchange  byte
		begin     func(p *pair) error
		otherwise string
		of        map[message.NotifyType]string
	}{
		{
			"another CHILD SA", 36, func(p *pair) error { return p.a.Endpoint.Initiate("a-b", "other") },
			"1 failed",
			map[message.NotifyType]string{
				message.NotifyInvalidSyntax:    ends,
				message.NotifyTemporaryFailure: "again soon", message.NotifyStateNotFound: "again soon",
			},
		},
		{
			"rekey of the CHILD SA", 36, func(p *pair) error { return p.a.Endpoint.RekeyChild(childOf(p.t, p.a).ID) },
			"again later",
			map[message.NotifyType]string{
				message.NotifyInvalidSyntax:    ends,
				message.NotifyTemporaryFailure: "again soon", message.NotifyStateNotFound: "again soon",
				message.NotifyChildSANotFound: "the CHILD SA ended", message.NotifyNoAdditionalSAs: "a new IKE SA at once",
			},
		},
		{
			"rekey of the IKE SA", 36, func(p *pair) error { return p.a.Endpoint.RekeyIKE(ikeOf(p.t, p.a).ID) },
			"again later",
			map[message.NotifyType]string{
				message.NotifyInvalidSyntax:    ends,
				message.NotifyTemporaryFailure: "again soon", message.NotifyStateNotFound: "again soon",
				message.NotifyNoAdditionalSAs: "a new IKE SA at once",
			},
		},
		{
			"delete of a CHILD SA", 37, func(p *pair) error { return p.a.Endpoint.DeleteChild(childOf(p.t, p.a).ID, "test") },
			"the CHILD SA ended",
			map[message.NotifyType]string{message.NotifyInvalidSyntax: ends},
		},
		{
			"liveness check", 37, func(p *pair) error { p.w.For(31 * time.Second); return nil },
			"nothing",
			map[message.NotifyType]string{message.NotifyInvalidSyntax: ends},
		},
	} {
		for _, n := range errorTypes {
			t.Run(c.name+", "+n.String(), func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{both: func(x *ike.PeerConfig) {
					psk(x)
					other := x.Children[0]
					other.Name, other.LocalTS, other.RemoteTS = "other", prefix("10.5.0.0/24"), prefix("10.5.0.0/24")
					x.Children = append(x.Children, other)
				}})
				p.up()
				before, child := ikeOf(t, p.a).ID, childOf(t, p.a).ID
				p.refuses(c.exchange, n)
				if err := c.begin(p); err != nil {
					t.Fatal(err)
				}
				want := c.otherwise
				if w, ok := c.of[n]; ok {
					want = w
				}
				if got := p.became(before, child, c.exchange); got != want {
					t.Errorf("%s, want %s; A refused %s", got, want, texts(p.a.Refusals))
				}
				if want == ends && !slices.Contains(p.a.Codes(), ike.CodePeerRefused) {
					t.Errorf("A's record: %s", texts(p.a.Refusals))
				}
				p.sound()
				if want == "again later" || want == "again soon" {
					p.agree()
				}
			})
		}
	}
}

// TestErrorAnswersToInit: nothing protects the answer to IKE_SA_INIT, so no error ends the attempt before
// there was time for a better answer (section 2.21.1); with one, the connection comes up.
func TestErrorAnswersToInit(t *testing.T) {
	t.Parallel()
	for _, n := range errorTypes {
		for _, better := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v, %v", n, better), func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{both: psk})
				p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
					x, response := exchangeOf(msg)
					if x != 34 || response {
						return true
					}
					h := must(message.Parse(msg)).Header
					h.Flags = message.FlagResponse
					p.w.Deliver(to, from, must(message.Encode(h, message.Payloads{message.NewNotify(n)})))
					return better
				}
				initiate(t, p.a, "a-b")
				p.w.For(200 * time.Millisecond)
				if len(p.a.Failed) > 0 {
					t.Errorf("A gave up at once: %v", p.a.Failed)
				}
				p.w.For(3 * time.Minute)
				if better {
					p.counts(1, 1)
				} else if len(p.a.Failed) != 1 {
					t.Errorf("A was told %v", p.a.Failed)
				}
				p.sound()
			})
		}
	}
}

// TestErrorAnswersToAuth: the answer to IKE_AUTH is an error and no proof: the attempt fails at once, without
// another word (section 2.21.2). With the proof, only the CHILD SA fails: the IKE SA was established, and is
// deleted by us because it protects nothing.
func TestErrorAnswersToAuth(t *testing.T) {
	t.Parallel()
	for _, n := range errorTypes {
		for _, proof := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v, %v", n, proof), func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{both: psk})
				touched := p.rewrites(p.b, 35, 1, true, func(ps message.Payloads) message.Payloads {
					ps = slices.DeleteFunc(ps, func(q message.Payload) bool {
						is := q.PayloadType()
						return is != message.PayloadIDr && is != message.PayloadAUTH || !proof
					})
					return append(ps, message.NewNotify(n))
				})
				ups := 0
				p.a.OnDown = func(ike.SAInfo, ike.Reason) { ups++ }
				initiate(t, p.a, "a-b")
				p.w.For(5 * time.Second)
				var e *ike.PeerNotifyError
				if *touched == 0 || len(p.a.Failed) != 1 || !errors.As(p.a.Failed[0], &e) || e.Type != uint16(n) || (ups == 1) != proof {
					t.Errorf("A was told %v, its IKE SA came up %d times", p.a.Failed, ups)
				}
				if proof {
					p.empty()
				}
				if len(p.a.IKE)+len(p.a.Children) > 0 {
					t.Error("A keeps something")
				}
				p.sound()
			})
		}
	}
}

// TestErrorBesideAnswer: an error beside what was asked for means that the request has failed entirely
// (section 3.10.1), also one that we do not know. Nobody keeps half of it.
func TestErrorBesideAnswer(t *testing.T) {
	t.Parallel()
	for _, n := range []message.NotifyType{message.NotifyTemporaryFailure, message.NotifyTSUnacceptable, 8191, 16383} {
		for name, c := range map[string]struct {
			exchange uint8
			id       uint32
			begin    func(p *pair) error
			children int // left at both ends
		}{
			"IKE_AUTH":              {35, 1, func(p *pair) error { return p.a.Endpoint.Initiate("a-b", "net") }, 0},
			"rekey of the CHILD SA": {36, 2, func(p *pair) error { return p.a.Endpoint.RekeyChild(childOf(p.t, p.a).ID) }, 1},
			"rekey of the IKE SA":   {36, 2, func(p *pair) error { return p.a.Endpoint.RekeyIKE(ikeOf(p.t, p.a).ID) }, 0},
		} {
			t.Run(fmt.Sprintf("%v, %s", n, name), func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{both: psk})
				if c.exchange == 36 {
					p.up()
				}
				touched := p.rewrites(p.b, c.exchange, c.id, true, func(ps message.Payloads) message.Payloads {
					return append(slices.Clone(ps), message.NewNotify(n))
				})
				if err := c.begin(p); err != nil {
					t.Fatal(err)
				}
				p.w.For(5 * time.Second)
				if name == "rekey of the IKE SA" {
					p.w.For(5 * time.Minute) // B has new keys, and finds that nobody else has
				}
				if *touched == 0 || !slices.Contains(p.a.Codes(), ike.CodePeerRefused) {
					t.Errorf("touched %d, A refused %s", *touched, texts(p.a.Refusals))
				}
				p.counts(c.children, c.children)
				p.sound()
			})
		}
	}
}

// TestErrorRequests: an error in a request of the peer's changes nothing, whatever it is (section 3.10.1),
// but for AUTHENTICATION_FAILED; in the initiator's first exchange after IKE_AUTH, INVALID_SYNTAX and
// UNSUPPORTED_CRITICAL_PAYLOAD mean the end too (section 2.21.2). It is put on record, once in a while.
func TestErrorRequests(t *testing.T) {
	t.Parallel()
	for _, n := range errorTypes {
		for _, from := range []string{"A, right after IKE_AUTH", "A, later", "B"} {
			t.Run(fmt.Sprintf("%v of %s", n, from), func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{both: psk})
				p.up()
				liar, judge, to := p.a, p.b, addrB
				if from == "B" {
					liar, judge, to = p.b, p.a, addrA
				}
				say := func(ps ...message.Payload) {
					next, _ := liar.Endpoint.IDs()
					_, msgs := liar.Endpoint.Forge(37, next, false, ps)
					for _, m := range msgs {
						p.w.Deliver(netip.AddrPortFrom(liar.Addr, 500), netip.AddrPortFrom(to, 500), m)
					}
					p.w.For(100 * time.Millisecond)
				}
				if from == "A, later" {
					p.rekeyIKE(p.a)
				}
				say(message.NewNotify(n), message.NewSPINotify(n, message.ProtocolESP, 0x01020304))
				dies := n == message.NotifyAuthenticationFailed ||
					from == "A, right after IKE_AUTH" && (n == message.NotifyInvalidSyntax || n == message.NotifyUnsupportedCriticalPayload)
				if dies != (len(judge.IKE) == 0) || dies != (len(judge.Children) == 0) {
					t.Errorf("%d IKE SAs, %d CHILD SAs are left", len(judge.IKE), len(judge.Children))
				}
				if !slices.Equal(judge.Codes(), []ike.Code{ike.CodePeerRefused}) || !strings.Contains(texts(judge.Refusals), n.String()) && !dies {
					t.Errorf("on record: %s", texts(judge.Refusals))
				}
				p.sound()
			})
		}
	}
}

// TestReportsAreBounded: a peer that reports errors all the time does not fill the record.
func TestReportsAreBounded(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk})
	p.up()
	for i := range uint32(1000) {
		next, _ := p.a.Endpoint.IDs()
		_, msgs := p.a.Endpoint.Forge(37, next+i, false, message.Payloads{message.NewSPINotify(message.NotifyInvalidSelectors, message.ProtocolESP, i)})
		p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), msgs[0])
		p.w.For(20 * time.Millisecond)
	}
	if n := len(p.b.Refusals); n < 2 || n > 3 || !strings.Contains(texts(p.b.Refusals), "INVALID_SELECTORS about SPI 00000000") {
		t.Errorf("%d on record: %s", n, texts(p.b.Refusals))
	}
}

// TestUnknownStatus: status notifies that nobody knows are ignored in every message of every exchange
// (section 3.10.1).
func TestUnknownStatus(t *testing.T) {
	t.Parallel()
	for _, c := range situations() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, want := recorded(t, &c)
			h := simHooks
			h.Rewrite = func(s iketest.Said) (message.Inner, bool) {
				if s.Exchange == 34 || s.Exchange == 43 {
					return message.Inner{}, false // AUTH covers them
				}
				ps := append(message.Payloads{message.NewNotify(39000, 1, 2, 3)}, s.Payloads...)
				in, err := message.EncodeInner(append(ps, message.NewNotify(40960), message.NewNotify(65535, make([]byte, 100)...)))
				return in, err == nil
			}
			out := iketest.Run(&c.plan, h, true)
			if out.Violation != "" || len(out.AtRest[0].Children) != len(want.AtRest[0].Children) || out.AtRest[0].IKE != want.AtRest[0].IKE {
				t.Errorf("%s: %+v, want %+v\n%s", out.Violation, out.AtRest, want.AtRest, out.Diagram)
			}
		})
	}
}

// TestBothSidesOnRecord: our own record of a refusal has what was asked for and what is allowed next to each
// other, and the peer is told no more than the notify.
func TestBothSidesOnRecord(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edit   func(p *pair)
		a, b   []string // on record there
		notify message.NotifyType
	}{
		"selectors": {
			func(p *pair) {
				p.cb.Children[0].LocalTS, p.cb.Children[0].RemoteTS = sels("10.7.0.0/24[6/443]"), prefix("10.8.0.0/24")
			},
			[]string{"10.1.0.0..10.1.0.255 to 10.2.0.0..10.2.0.255", "TS_UNACCEPTABLE"},
			[]string{"10.2.0.0..10.2.0.255 (ours) to 10.1.0.0..10.1.0.255 (its own)", "10.7.0.0..10.7.0.255[6/443] to 10.8.0.0..10.8.0.255"},
			message.NotifyTSUnacceptable,
		},
		"proposals of the CHILD SA": {
			func(p *pair) { p.cb.Children[0].Proposals = proposals(t, 3, "aes128-sha256") },
			[]string{"aes256gcm16", "NO_PROPOSAL_CHOSEN"},
			[]string{"we allow aes128-sha256", "the peer offered #1 aes256gcm16"},
			message.NotifyNoProposalChosen,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: psk, edit: c.edit})
			var told message.Payloads
			p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
				if from.Addr() == addrB && msg[18] == 35 {
					told = p.a.Endpoint.Peek(msg)
				}
				return true
			}
			initiate(t, p.a, "a-b")
			p.w.For(5 * time.Second)
			a, b := texts(p.a.Refusals), texts(p.b.Refusals)
			if !containsAll(a, c.a...) || !containsAll(b, c.b...) {
				t.Errorf("A: %s\nB: %s", a, b)
			}
			if n := told.ErrorNotify(); n == nil || n.Type != c.notify || len(n.Data)+len(n.SPI) > 0 || told.SA() != nil || told.TSi() != nil {
				t.Errorf("the peer was told %v", told)
			}
		})
	}
}

// TestErrorsInTheClear: what nothing protects ends nothing and changes nothing, whatever error it names and
// with every SPI and message ID right (section 2.21.4); the answer to our request counts when it comes.
func TestErrorsInTheClear(t *testing.T) {
	t.Parallel()
	for _, n := range errorTypes {
		t.Run(n.String(), func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: psk})
			p.up()
			i := ikeOf(t, p.a)
			p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
				if _, response := exchangeOf(msg); from.Addr() == addrA && !response {
					h := must(message.Parse(msg)).Header
					h.Flags = message.FlagResponse
					for _, exchange := range []message.ExchangeType{h.Exchange, 34, 35, 36, 37} {
						h.Exchange = exchange
						p.w.Deliver(to, from, must(message.Encode(h, message.Payloads{message.NewNotify(n)})))
					}
				}
				return true
			}
			if err := p.a.Endpoint.RekeyChild(childOf(t, p.a).ID); err != nil {
				t.Fatal(err)
			}
			p.w.For(5 * time.Second)
			if ikeOf(t, p.a).ID != i.ID || len(p.a.Gone) != 1 || !p.a.Gone[0].Rekeyed || len(p.a.Refusals) > 0 {
				t.Errorf("gone %v, refused %s", p.a.Gone, texts(p.a.Refusals))
			}
			p.counts(1, 1)
			p.carries()
		})
	}
}
