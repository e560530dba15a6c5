package ike_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wardgate/ike/iketest"
	"wardgate/ike/message"
)

// situation is a state of an IKE SA with what is sent in it.
type situation struct {
	name string
	plan iketest.Plan
	from time.Duration // what is sent before is left alone
}

// situations are the exchanges of an IKE SA, each as it is when nobody is hostile.
func situations() []situation {
	base := func(edit func(*iketest.Plan), ops ...iketest.Op) iketest.Plan {
		p := iketest.Plan{
			Seed: 3, Nodes: 2, Liveness: 25 * time.Second, Retransmit: 500 * time.Millisecond, Queues: [2]int{2, 2},
			Link: iketest.Link{Delay: 10 * time.Millisecond},
			Ops:  append([]iketest.Op{{Kind: iketest.OpInitiate, Node: 0, Peer: 1}}, ops...),
		}
		if edit != nil {
			edit(&p)
		}
		// Time for what comes of it.
		p.Ops = append(p.Ops, iketest.Op{At: 12 * time.Second, Kind: iketest.OpHeal})
		return p
	}
	at := 5 * time.Second
	op := func(k iketest.OpKind, node int) iketest.Op {
		return iketest.Op{At: at, Kind: k, Node: node, Peer: 1 - node, N: 2}
	}
	hybrid := func(p *iketest.Plan) { p.Hybrid = iketest.HybridBoth }
	return []situation{
		{"one round", base(nil), 0},
		{"two rounds", base(func(p *iketest.Plan) { p.Auth = iketest.AuthPSK2 }), 0},
		{"two certificates", base(func(p *iketest.Plan) { p.Auth = iketest.AuthCert2 }), 0},
		{"intermediate exchange", base(hybrid), 0},
		{"without a CHILD SA", base(func(p *iketest.Plan) { p.Childless, p.PFS = [2]bool{true, true}, true }), 0},
		{"PPK", base(func(p *iketest.Plan) { p.PPK = [2]bool{true, true} }), 0},
		{"rekey of the CHILD SA", base(nil, op(iketest.OpRekeyChild, 0)), at},
		{"rekey of the CHILD SA by the responder", base(func(p *iketest.Plan) { p.PFS = true }, op(iketest.OpRekeyChild, 1)), at},
		{"rekey of the IKE SA", base(func(p *iketest.Plan) { p.Crash = true }, op(iketest.OpRekeyIKE, 0)), at},
		{"rekey of the IKE SA by the responder", base(nil, op(iketest.OpRekeyIKE, 1)), at},
		{"rekey of the CHILD SA with a second key exchange", base(hybrid, op(iketest.OpRekeyChild, 1)), at},
		{"rekey of the IKE SA with a second key exchange", base(hybrid, op(iketest.OpRekeyIKE, 1)), at},
		{"one more queue", base(nil, op(iketest.OpQueues, 0)), at},
		{"delete of the CHILD SA", base(nil, op(iketest.OpDeleteChild, 1)), at},
		{"delete of the IKE SA", base(nil, op(iketest.OpTerminate, 0)), at},
		{"both rekey the CHILD SA", base(nil, op(iketest.OpRekeyChild, 0), op(iketest.OpRekeyChild, 1)), at},
		{"both rekey the IKE SA", base(nil, op(iketest.OpRekeyIKE, 0), op(iketest.OpRekeyIKE, 1)), at},
		{"reauthentication", base(nil, op(iketest.OpReauth, 1)), at},
	}
}

// others are exchanges in which a message that is missing or there twice need not be noticed: who moves
// or is sent elsewhere may do so without it.
func others() []situation {
	base := func(edit func(*iketest.Plan), ops ...iketest.Op) iketest.Plan {
		p := iketest.Plan{
			Seed: 5, Nodes: 2, Liveness: 6 * time.Second, Retransmit: 500 * time.Millisecond,
			Link: iketest.Link{Delay: 10 * time.Millisecond},
			Ops:  append([]iketest.Op{{Kind: iketest.OpInitiate, Node: 0, Peer: 1}}, ops...),
		}
		edit(&p)
		p.Ops = append(p.Ops, iketest.Op{At: 25 * time.Second, Kind: iketest.OpHeal})
		return p
	}
	at := 5 * time.Second
	mobile := func(p *iketest.Plan) { p.Addrs, p.Mobike = [2]int{2, 2}, [2]bool{true, true} }
	away := func(p *iketest.Plan) { p.Addrs, p.Redirect = [2]int{2, 2}, true }
	op := func(k iketest.OpKind, node int, n int64) iketest.Op {
		return iketest.Op{At: at, Kind: k, Node: node, Peer: 1 - node, N: n}
	}
	return []situation{
		{"MOBIKE is agreed", base(mobile), 0},
		{"the initiator moves", base(mobile, op(iketest.OpAddrs, 0, 2)), at},
		{"the responder moves", base(mobile, op(iketest.OpAddrs, 1, 2)), at},
		{"both move", base(mobile, op(iketest.OpAddrs, 0, 18), op(iketest.OpAddrs, 1, 18)), at},
		{"the initiator moves behind a NAT", base(mobile, op(iketest.OpAddrs, 0, 8<<5|8)), at},
		{"both move while the IKE SA is rekeyed", base(mobile, op(iketest.OpRekeyIKE, 1, 0), op(iketest.OpAddrs, 0, 2), op(iketest.OpRekeyIKE, 0, 0)), at},
		{"sent on when IKE_SA_INIT comes", base(away, iketest.Op{Kind: iketest.OpRedirect, Node: 1, N: 32 + 8 + 2}, op(iketest.OpInitiate, 0, 1)), 0},
		{"sent on when it stands", base(away, op(iketest.OpRedirect, 1, 32+8+1)), at},
		{"resumed after a restart", base(func(p *iketest.Plan) { p.Tickets, p.Crash = true, true }, op(iketest.OpRestart, 1, 0), iketest.Op{At: 20 * time.Second, Kind: iketest.OpInitiate, Node: 0, Peer: 1}), at},
		{"an address is assigned", base(func(p *iketest.Plan) { p.Config = true }), 0},
		{"cookies and puzzles", base(func(p *iketest.Plan) { p.Cookies, p.Puzzles = -1, -1 }), 0},
		{"TCP", base(func(p *iketest.Plan) { p.TCP = [2]uint8{2, 2} }, op(iketest.OpBreakTCP, 0, 0)), 0},
	}
}

// TestOtherSituations: nobody is hostile in them, and all is well.
func TestOtherSituations(t *testing.T) {
	t.Parallel()
	for _, c := range others() {
		if out := iketest.Run(&c.plan, simHooks, true); out.Violation != "" || out.AtRest[0].IKE == 0 || len(out.Said) < 4 {
			t.Errorf("%s: %d IKE SAs, %d messages, %s\n%s", c.name, out.AtRest[0].IKE, len(out.Said), out.Violation, out.Diagram)
		}
	}
}

// key names a message of a run.
func key(s iketest.Said) string {
	kind := "request"
	if s.Response {
		kind = "response"
	}
	return fmt.Sprintf("%v %s %d of %c", message.ExchangeType(s.Exchange), kind, s.ID, 'A'+s.Node)
}

// recorded plays a situation and returns its messages, and how it ends.
func recorded(t *testing.T, c *situation) ([]iketest.Said, iketest.Outcome) {
	t.Helper()
	var all []iketest.Said
	seen := map[string]bool{}
	h := simHooks
	h.Rewrite = func(s iketest.Said) (message.Inner, bool) {
		if k := key(s); s.At >= c.from && s.At < 12*time.Second && !seen[k] {
			seen[k] = true
			all = append(all, s)
		}
		return message.Inner{}, false
	}
	out := iketest.Run(&c.plan, h, false)
	if out.Violation != "" || len(all) == 0 {
		t.Fatalf("%s: %d messages, %s", c.name, len(all), out.Violation)
	}
	return all, out
}

// altered plays a situation with one message altered, each time it is sent.
func altered(c *situation, which string, change func(message.Payloads) message.Payloads) iketest.Outcome {
	h := simHooks
	h.Rewrite = func(s iketest.Said) (message.Inner, bool) {
		if s.At < c.from || key(s) != which {
			return message.Inner{}, false
		}
		in, err := message.EncodeInner(change(slices.Clone(s.Payloads)))
		return in, err == nil
	}
	return iketest.Run(&c.plan, h, true)
}

// mandatory tells whether an exchange makes no sense without p, or with p twice.
func mandatory(s iketest.Said, p message.Payload) bool {
	switch p.(type) {
	case *message.SA, *message.KE, *message.Nonce, *message.Auth, *message.TS:
		return true
	case *message.ID:
		// The initiator need not say whom it wants to talk to.
		return p.PayloadType() == message.PayloadIDi || s.Response
	default:
		return false
	}
}

// says tells whether a node sent a notify.
func says(out *iketest.Outcome, node int, n message.NotifyType) bool {
	return slices.ContainsFunc(out.Said, func(s iketest.Said) bool {
		return s.Node == node && s.Payloads.HasNotify(n)
	})
}

// TestPayloadMissing has each payload of each message of a peer missing, in turn: what the exchange
// was for does not come to be, at the end that got the message.
func TestPayloadMissing(t *testing.T) {
	spoiled(t, "without", func(ps message.Payloads, i int) message.Payloads { return slices.Delete(ps, i, i+1) })
}

// TestPayloadTwice has each payload that may stand once there twice.
func TestPayloadTwice(t *testing.T) {
	spoiled(t, "with two", func(ps message.Payloads, i int) message.Payloads { return slices.Insert(ps, i, ps[i]) })
}

func spoiled(t *testing.T, how string, change func(message.Payloads, int) message.Payloads) {
	t.Parallel()
	for _, c := range situations() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			all, honest := recorded(t, &c)
			for _, s := range all {
				for i, p := range s.Payloads {
					name := fmt.Sprintf("%s %s %v", key(s), how, p.PayloadType())
					out := altered(&c, key(s), func(ps message.Payloads) message.Payloads {
						if i >= len(ps) {
							return ps // a later message with the same number
						}
						return change(ps, i)
					})
					if out.Violation != "" {
						t.Errorf("%s: %s\n%s", name, out.Violation, out.Diagram)
						continue
					}
					// Where both ends do the same, the other one's exchange may have done it; and one that
					// is told which group to use (RFC 7296, section 1.3) does better the next time.
					if !mandatory(s, p) || strings.HasPrefix(c.name, "both") || says(&out, 1-s.Node, message.NotifyInvalidKEPayload) {
						continue
					}
					// The node that got it.
					before, after := honest.AtRest[1-s.Node], out.AtRest[1-s.Node]
					if c.from == 0 {
						if after.Children["net"] > 0 {
							t.Errorf("%s: %c has a CHILD SA\n%s", name, 'B'-s.Node, out.Diagram)
						}
					} else if fmt.Sprint(before.SPIs) == fmt.Sprint(after.SPIs) && before.IKE > 0 && c.name != "reauthentication" {
						t.Errorf("%s: %c goes on as if nothing was wrong\n%s", name, 'B'-s.Node, out.Diagram)
					}
				}
			}
		})
	}
}

// TestPayloadsInAnotherOrder: payloads may come in any order (RFC 7296, section 2), and the exchange
// succeeds. IKE_SA_INIT is left out: both ends sign it as it was sent.
func TestPayloadsInAnotherOrder(t *testing.T) {
	t.Parallel()
	for _, c := range situations() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			all, honest := recorded(t, &c)
			for _, s := range all {
				if s.Exchange == 34 || s.Exchange == 43 {
					continue
				}
				out := altered(&c, key(s), func(ps message.Payloads) message.Payloads {
					slices.Reverse(ps)
					return ps
				})
				if out.Violation != "" || fmt.Sprint(out.AtRest) != fmt.Sprint(honest.AtRest) {
					t.Errorf("%s reversed: %s\n%v, want %v\n%s", key(s), out.Violation, out.AtRest, honest.AtRest, out.Diagram)
				}
			}
		})
	}
}

// FuzzStates has a node send one message otherwise than it should, in any state: it is changed after
// encryption was taken off, and sealed again. data says what is changed (see iketest.OpMutate).
// Whatever comes of it, what the simulator checks of each node by itself holds, and nothing is left in
// the end.
func FuzzStates(f *testing.F) {
	list := append(situations(), others()...)
	n := len(list)
	for s := range n {
		for k := range 4 {
			f.Add(byte(s), byte(k), []byte{byte(k), byte(s), 13, 1, 2, 3})
			f.Add(byte(s), byte(k), []byte{byte(k % 3), byte(s + k), 0})
		}
	}
	f.Fuzz(func(t *testing.T, which, message byte, data []byte) {
		if len(data) > 64 {
			return
		}
		p := list[int(which)%n].plan
		p.Ops = slices.Clone(p.Ops)
		m := iketest.Op{At: list[int(which)%n].from, Kind: iketest.OpMutate, Node: int(message) % 2, Peer: 1 - int(message)%2, N: int64(message / 2 % 8), Data: data}
		p.Ops = slices.Insert(p.Ops, 1, m)
		if out := iketest.Run(&p, simHooks, false); out.Violation != "" {
			t.Errorf("%s\n%s", out.Violation, iketest.Run(&p, simHooks, true).Diagram)
		}
	})
}
