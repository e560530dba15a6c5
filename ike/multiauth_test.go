package ike_test

import (
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

// TestErrorsOfBothEnds: RFC 4739 with proofs that are no good, of either end or both, in either round, over
// links that repeat and reorder, and lose the one error or the other: whoever finds it first, nothing comes
// up for longer than the other end's word takes, nothing is left, and each end's record is about the round
// where it happened.
func TestErrorsOfBothEnds(t *testing.T) {
	t.Parallel()
	rogue := [2]*labca.Authority{
		must(labca.New(labca.Options{Kind: labca.Device, Name: "device", At: iketest.Epoch.Add(-time.Hour)})),
		must(labca.New(labca.Options{Kind: labca.Service, Name: "group-a", At: iketest.Epoch.Add(-time.Hour)})),
	}
	f := facilities()
	spoil := func(c *ike.PeerConfig, who, round int) {
		if round < 0 {
			return
		}
		own := []*credential{f[who].device, f[who].groupA}[round]
		c.LocalAuth[round] = issue(rogue[round], own.id.Data, labca.P256, f[who].device, nil).auth(c.LocalAuth[round].Role)
	}
	links := map[string]func(p *pair){
		"clean":                func(*pair) {},
		"repeats and reorders": func(p *pair) { p.w.Link.Dup, p.w.Link.Jitter = 0.7, 300*time.Millisecond },
		"the responder's error is lost three times": func(p *pair) {
			n := 0
			p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
				x, response := exchangeOf(msg)
				if from.Addr() == addrB && x == 35 && response && len(msg) < 150 {
					n++
					return n > 3
				}
				return true
			}
		},
		"the initiator's error never comes": func(p *pair) {
			p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
				x, _ := exchangeOf(msg)
				return from.Addr() != addrA || x != 37
			}
		},
		"the initiator's error overtakes": func(p *pair) {
			// The request of the round is repeated behind it.
			var last []byte
			p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
				x, response := exchangeOf(msg)
				if from.Addr() == addrA && !response && x == 35 {
					last = slices.Clone(msg)
				}
				if from.Addr() == addrA && !response && x == 37 && last != nil {
					p.w.Deliver(from, to, msg)
					p.w.Deliver(from, to, last)
					return false
				}
				return true
			}
		},
	}
	for name, link := range links {
		for ra := -1; ra < 2; ra++ {
			for rb := -1; rb < 2; rb++ {
				if ra < 0 && rb < 0 {
					continue
				}
				t.Run(fmt.Sprintf("%s, initiator's %d, responder's %d", name, ra+1, rb+1), func(t *testing.T) {
					t.Parallel()
					p := newPair(t, pairOptions{seed: uint64(10*ra + rb + 20), edit: func(p *pair) {
						spoil(p.ca, 0, ra)
						spoil(p.cb, 1, rb)
					}})
					link(p)
					initiate(t, p.a, "a-b")
					p.w.For(8 * time.Minute) // a responder that hears nothing asks whether the initiator lives
					p.sound()
					p.empty()
					// The responder judges a round before it proves its own.
					if judge, round := p.b, ra; ra >= 0 && (rb < 0 || ra <= rb) {
						if !slices.ContainsFunc(judge.Refusals, func(r ike.Refusal) bool { return r.Code == ike.CodeUnknownCA && r.Round == round }) {
							t.Errorf("B: %s", texts(judge.Refusals))
						}
					} else if !slices.ContainsFunc(p.a.Refusals, func(r ike.Refusal) bool { return r.Code == ike.CodeUnknownCA && r.Round == rb }) {
						t.Errorf("A: %s", texts(p.a.Refusals))
					}
					if len(p.a.IKE) > 0 || len(p.a.Failed) != 1 {
						t.Errorf("A has %d IKE SAs, and failed %v", len(p.a.IKE), p.a.Failed)
					}
				})
			}
		}
	}
}

// TestRoundsAnnouncedOtherwise: RFC 4739, sections 2.1 and 3: ANOTHER_AUTH_FOLLOWS where no round follows, its
// absence where one does, and rounds without MULTIPLE_AUTH_SUPPORTED.
func TestRoundsAnnouncedOtherwise(t *testing.T) {
	t.Parallel()
	without := func(n message.NotifyType) func(message.Payloads) message.Payloads {
		return func(ps message.Payloads) message.Payloads {
			return slices.DeleteFunc(ps, func(p message.Payload) bool {
				x, ok := p.(*message.Notify)
				return ok && x.Type == n
			})
		}
	}
	also := func(ps message.Payloads) message.Payloads {
		return append(ps, message.NewNotify(message.NotifyAnotherAuthFollows))
	}
	for _, c := range []struct {
		name   string
		liar   int // 0: A
		id     uint32
		change func(message.Payloads) message.Payloads
		code   ike.Code
	}{
		{"no round follows the first, says the initiator", 0, 1, without(message.NotifyAnotherAuthFollows), ike.CodeDeviceOnly},
		{"no round follows the first, says the responder", 1, 1, without(message.NotifyAnotherAuthFollows), ike.CodeDeviceOnly},
		{"a third round follows, says the initiator", 0, 2, also, ike.CodeTooManyRounds},
		{"a third round follows, says the responder", 1, 2, also, ike.CodeTooManyRounds},
		{"several rounds are not announced", 0, 1, without(message.NotifyMultipleAuthSupported), ike.CodeNoMultipleAuth},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{ea: whole, eb: whole})
			nodes := []*iketest.Node{p.a, p.b}
			touched := p.rewrites(nodes[c.liar], 35, c.id, c.liar == 1, c.change)
			p.nothingUp(nodes[1-c.liar], touched, c.code)
		})
	}
}

// TestForgedErrorsBetweenRounds: errors in the clear, of which anybody can send as many as it likes, at any
// moment of the rounds and to either end, change nothing.
func TestForgedErrorsBetweenRounds(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	forged := 0
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		x, _ := exchangeOf(msg)
		if x == 34 {
			return true
		}
		h := must(message.Parse(msg)).Header
		for _, flags := range []message.HeaderFlags{0, message.FlagInitiator, message.FlagResponse, message.FlagInitiator | message.FlagResponse} {
			for _, n := range []message.NotifyType{message.NotifyAuthenticationFailed, message.NotifyInvalidSyntax, message.NotifyInvalidIKESPI, message.NotifyNoProposalChosen, message.NotifyInvalidMajorVersion} {
				for d := range uint32(3) {
					g := h
					g.Flags, g.MessageID = flags, h.MessageID+d-1
					m := must(message.Encode(g, message.Payloads{message.NewNotify(n)}))
					p.w.Deliver(from, to, m)
					p.w.Deliver(to, from, m)
					forged++
				}
			}
		}
		return true
	}
	p.up()
	p.w.Tap = nil
	p.counts(1, 1)
	p.rekeyEverything()
	if forged < 100 {
		t.Errorf("%d forged errors", forged)
	}
	if len(p.a.Refusals)+len(p.b.Refusals) > 0 {
		t.Errorf("refused: %s %s", texts(p.a.Refusals), texts(p.b.Refusals))
	}
}
