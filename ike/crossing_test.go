package ike_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wardgate/ike/iketest"
	"wardgate/ike/message"
)

// The exchange collisions of RFC 7296, section 2.25, one by one: what each end begins, in which
// order the requests arrive, and what is lost. A made the IKE SA. The simulator plays each, with
// all that it checks; what is written here is the answer to each first request and what stands in
// the end.

// crossing is one row: two commands, and what has to come of them.
type crossing struct {
	a, b     command
	order    order
	toA, toB string // the answers to the first requests of A and of B
	left     string // what stands in the end
	or       string // or this, where a loss has the requests arrive in another order
}

type command string

const (
	rekeyChild  command = "rekey child"
	deleteChild command = "delete child"
	createChild command = "create child"
	rekeyIKE    command = "rekey IKE"
	deleteIKE   command = "delete IKE"
	sibling     command = "one more queue"
)

type order string

// One way takes 10 ms.
const (
	crossed order = "crossed"        // both are sent before one arrives
	aFirst  order = "after A's came" // B begins when it has answered A, which has not got the answer
	bFirst  order = "after B's came"
)

// op returns what node does to carry out c.
func (c command) op(node int, at time.Duration) iketest.Op {
	o := iketest.Op{At: at, Node: node, Peer: 1 - node}
	switch c {
	case rekeyChild:
		o.Kind = iketest.OpRekeyChild
	case deleteChild:
		o.Kind = iketest.OpDeleteChild
	case createChild:
		o.Kind, o.N = iketest.OpInitiate, 1
	case rekeyIKE:
		o.Kind = iketest.OpRekeyIKE
	case deleteIKE:
		o.Kind = iketest.OpTerminate
	case sibling:
		o.Kind, o.N = iketest.OpQueues, 2
	}
	return o
}

const crossAt = 8 * time.Second

func (x *crossing) plan() *iketest.Plan {
	a, b := crossAt, crossAt
	switch x.order {
	case crossed:
		b += time.Millisecond
	case aFirst:
		b += 15 * time.Millisecond
	case bFirst:
		a += 15 * time.Millisecond
	}
	p := &iketest.Plan{
		Seed: 7, Nodes: 2, Liveness: 25 * time.Second, Retransmit: 500 * time.Millisecond,
		Queues: [2]int{2, 2}, Machine: [2]int{1, 1}, Link: iketest.Link{Delay: 10 * time.Millisecond},
		Ops: []iketest.Op{{Kind: iketest.OpInitiate, Node: 0, Peer: 1}, x.a.op(0, a), x.b.op(1, b)},
	}
	if b < a {
		p.Ops[1], p.Ops[2] = p.Ops[2], p.Ops[1]
	}
	lasting := func(c command) bool { return c == rekeyChild || c == rekeyIKE || c == sibling }
	p.Traffic = lasting(x.a) && lasting(x.b)
	return p
}

// answer says how the first request of a node after the first 5 s was answered.
func answer(out *iketest.Outcome, node int) string {
	var first *iketest.Said
	for i, s := range out.Said {
		switch {
		case s.At < 5*time.Second:
		case first == nil && s.Node == node && !s.Response && len(s.Payloads) > 0:
			first = &out.Said[i]
		case first != nil && s.Node != node && s.Response && s.ID == first.ID && s.Exchange == first.Exchange:
			for _, n := range message.All[*message.Notify](s.Payloads) {
				if n.Type.IsError() {
					return n.Type.String()
				}
			}
			if len(message.All[*message.SA](s.Payloads)) > 0 {
				return "made"
			}
			if len(message.All[*message.Delete](s.Payloads)) > 0 {
				return "deleted"
			}
			return "empty"
		}
	}
	if first == nil {
		return "not asked"
	}
	return "no answer"
}

// left says what stands in the end, with the number of rekeys; both ends agree on it, or the
// simulator complains.
func left(out *iketest.Outcome) string {
	s := out.AtRest[0]
	if s.IKE == 0 {
		return "nothing"
	}
	t := ""
	if s.IKE > 1 {
		t = fmt.Sprintf("%d IKE SAs: ", s.IKE)
	}
	if s.Rekeyed > 0 {
		t += fmt.Sprintf("IKE'%d ", s.Rekeyed)
	}
	for _, c := range []string{"net", "other"} {
		if n := s.Children[c]; n > 0 {
			t += fmt.Sprintf("%d %s'%d ", n, c, max(s.Newest[c], out.AtRest[1].Newest[c]))
		}
	}
	if t == "" {
		return "IKE SA"
	}
	return strings.TrimSpace(t)
}

// childCrossings are between CHILD SAs (RFC 7296, section 2.25.1).
var childCrossings = []crossing{
	{rekeyChild, rekeyChild, crossed, "made", "made", "1 net'1", ""},
	{rekeyChild, rekeyChild, aFirst, "made", "empty", "1 net'1", ""},
	{rekeyChild, rekeyChild, bFirst, "empty", "made", "1 net'1", ""},
	{rekeyChild, deleteChild, crossed, "TEMPORARY_FAILURE", "deleted", "IKE SA", ""},
	{rekeyChild, deleteChild, aFirst, "made", "empty", "1 net'1", "IKE SA"},
	{rekeyChild, deleteChild, bFirst, "empty", "deleted", "IKE SA", ""},
	{deleteChild, rekeyChild, crossed, "deleted", "TEMPORARY_FAILURE", "IKE SA", ""},
	{deleteChild, rekeyChild, aFirst, "deleted", "empty", "IKE SA", ""},
	{deleteChild, rekeyChild, bFirst, "empty", "made", "1 net'1", "IKE SA"},
	{deleteChild, deleteChild, crossed, "empty", "empty", "IKE SA", ""},
	{deleteChild, deleteChild, aFirst, "deleted", "empty", "IKE SA", ""},
	{deleteChild, deleteChild, bFirst, "empty", "deleted", "IKE SA", ""},
	{rekeyChild, createChild, crossed, "made", "made", "1 net'1 1 other'0", ""},
	{rekeyChild, createChild, aFirst, "made", "made", "1 net'1 1 other'0", ""},
	{rekeyChild, createChild, bFirst, "made", "made", "1 net'1 1 other'0", ""},
	{createChild, rekeyChild, crossed, "made", "made", "1 net'1 1 other'0", ""},
	{createChild, rekeyChild, aFirst, "made", "made", "1 net'1 1 other'0", ""},
	{createChild, rekeyChild, bFirst, "made", "made", "1 net'1 1 other'0", ""},
	{createChild, createChild, crossed, "made", "made", "1 net'0 2 other'0", ""},
	{createChild, createChild, aFirst, "made", "empty", "1 net'0 1 other'0", "1 net'0 2 other'0"},
	{createChild, createChild, bFirst, "empty", "made", "1 net'0 1 other'0", "1 net'0 2 other'0"},
	{createChild, deleteChild, crossed, "made", "deleted", "1 other'0", ""},
	{createChild, deleteChild, aFirst, "made", "deleted", "1 other'0", ""},
	{createChild, deleteChild, bFirst, "made", "deleted", "1 other'0", ""},
	{deleteChild, createChild, crossed, "deleted", "made", "1 other'0", ""},
	{deleteChild, createChild, aFirst, "deleted", "made", "1 other'0", ""},
	{deleteChild, createChild, bFirst, "deleted", "made", "1 other'0", ""},
	{rekeyChild, sibling, crossed, "made", "made", "2 net'1", ""},
	{rekeyChild, sibling, aFirst, "made", "made", "2 net'1", ""},
	{rekeyChild, sibling, bFirst, "made", "made", "2 net'1", ""},
	{sibling, rekeyChild, crossed, "made", "made", "2 net'1", ""},
	{sibling, rekeyChild, aFirst, "made", "made", "2 net'1", ""},
	{sibling, rekeyChild, bFirst, "made", "made", "2 net'1", ""},
	{sibling, sibling, crossed, "made", "TEMPORARY_FAILURE", "2 net'0", ""},
	{sibling, sibling, aFirst, "made", "empty", "2 net'0", ""},
	{sibling, sibling, bFirst, "empty", "made", "2 net'0", ""},
	{sibling, deleteChild, crossed, "made", "deleted", "1 net'0", ""},
	{sibling, deleteChild, aFirst, "made", "deleted", "1 net'0", ""},
	{sibling, deleteChild, bFirst, "empty", "deleted", "IKE SA", "1 net'0"},
	{deleteChild, sibling, crossed, "deleted", "made", "1 net'0", ""},
	{deleteChild, sibling, aFirst, "deleted", "empty", "IKE SA", "1 net'0"},
	{deleteChild, sibling, bFirst, "deleted", "made", "1 net'0", ""},
	{createChild, sibling, crossed, "made", "made", "2 net'0 1 other'0", ""},
	{createChild, sibling, aFirst, "made", "made", "2 net'0 1 other'0", ""},
	{createChild, sibling, bFirst, "made", "made", "2 net'0 1 other'0", ""},
}

// ikeCrossings are with the IKE SA (RFC 7296, section 2.25.2).
var ikeCrossings = []crossing{
	{rekeyIKE, rekeyIKE, crossed, "made", "made", "IKE'1 1 net'0", ""},
	{rekeyIKE, rekeyIKE, aFirst, "made", "empty", "IKE'1 1 net'0", ""},
	{rekeyIKE, rekeyIKE, bFirst, "empty", "made", "IKE'1 1 net'0", ""},
	{rekeyIKE, rekeyChild, crossed, "TEMPORARY_FAILURE", "TEMPORARY_FAILURE", "IKE'1 1 net'1", ""},
	{rekeyIKE, rekeyChild, aFirst, "made", "made", "IKE'1 1 net'1", ""},
	{rekeyIKE, rekeyChild, bFirst, "TEMPORARY_FAILURE", "made", "IKE'1 1 net'1", ""},
	{rekeyChild, rekeyIKE, crossed, "TEMPORARY_FAILURE", "TEMPORARY_FAILURE", "IKE'1 1 net'1", ""},
	{rekeyChild, rekeyIKE, aFirst, "made", "TEMPORARY_FAILURE", "IKE'1 1 net'1", ""},
	{rekeyChild, rekeyIKE, bFirst, "made", "made", "IKE'1 1 net'1", ""},
	{rekeyIKE, deleteChild, crossed, "TEMPORARY_FAILURE", "deleted", "IKE'1", ""},
	{rekeyIKE, deleteChild, aFirst, "made", "deleted", "IKE'1", ""},
	{rekeyIKE, deleteChild, bFirst, "made", "deleted", "IKE'1", ""},
	{deleteChild, rekeyIKE, crossed, "deleted", "TEMPORARY_FAILURE", "IKE'1", ""},
	{deleteChild, rekeyIKE, aFirst, "deleted", "made", "IKE'1", ""},
	{deleteChild, rekeyIKE, bFirst, "deleted", "made", "IKE'1", ""},
	{rekeyIKE, createChild, crossed, "TEMPORARY_FAILURE", "TEMPORARY_FAILURE", "IKE'1 1 net'0 1 other'0", ""},
	{rekeyIKE, createChild, aFirst, "made", "made", "IKE'1 1 net'0 1 other'0", ""},
	{rekeyIKE, createChild, bFirst, "made", "made", "IKE'1 1 net'0 1 other'0", ""},
	{createChild, rekeyIKE, crossed, "TEMPORARY_FAILURE", "TEMPORARY_FAILURE", "IKE'1 1 net'0 1 other'0", ""},
	{createChild, rekeyIKE, aFirst, "made", "made", "IKE'1 1 net'0 1 other'0", ""},
	{createChild, rekeyIKE, bFirst, "made", "made", "IKE'1 1 net'0 1 other'0", ""},
	{rekeyIKE, deleteIKE, crossed, "TEMPORARY_FAILURE", "empty", "nothing", ""},
	{rekeyIKE, deleteIKE, aFirst, "made", "empty", "nothing", ""},
	{rekeyIKE, deleteIKE, bFirst, "not asked", "empty", "nothing", ""},
	{deleteIKE, rekeyIKE, crossed, "empty", "TEMPORARY_FAILURE", "nothing", ""},
	{deleteIKE, rekeyIKE, aFirst, "empty", "not asked", "nothing", ""},
	{deleteIKE, rekeyIKE, bFirst, "empty", "made", "nothing", ""},
	{deleteIKE, deleteIKE, crossed, "empty", "empty", "nothing", ""},
	{deleteIKE, deleteIKE, aFirst, "empty", "not asked", "nothing", ""},
	{deleteIKE, deleteIKE, bFirst, "not asked", "empty", "nothing", ""},
	{deleteIKE, rekeyChild, crossed, "empty", "TEMPORARY_FAILURE", "nothing", ""},
	{deleteIKE, rekeyChild, aFirst, "empty", "not asked", "nothing", ""},
	{deleteIKE, rekeyChild, bFirst, "empty", "made", "nothing", ""},
	{rekeyChild, deleteIKE, crossed, "TEMPORARY_FAILURE", "empty", "nothing", ""},
	{rekeyChild, deleteIKE, aFirst, "made", "empty", "nothing", ""},
	{rekeyChild, deleteIKE, bFirst, "not asked", "empty", "nothing", ""},
	{deleteIKE, createChild, crossed, "empty", "TEMPORARY_FAILURE", "nothing", ""},
	{deleteIKE, createChild, aFirst, "empty", "made", "1 other'0", "nothing"},
	{deleteIKE, createChild, bFirst, "empty", "made", "nothing", ""},
	{createChild, deleteIKE, crossed, "TEMPORARY_FAILURE", "empty", "nothing", ""},
	{createChild, deleteIKE, aFirst, "made", "empty", "nothing", ""},
	{createChild, deleteIKE, bFirst, "made", "empty", "1 other'0", "nothing"},
	{rekeyIKE, sibling, crossed, "TEMPORARY_FAILURE", "TEMPORARY_FAILURE", "IKE'1 2 net'0", ""},
	{rekeyIKE, sibling, aFirst, "made", "made", "IKE'1 2 net'0", ""},
	{rekeyIKE, sibling, bFirst, "made", "made", "IKE'1 2 net'0", ""},
	{sibling, rekeyIKE, crossed, "TEMPORARY_FAILURE", "TEMPORARY_FAILURE", "IKE'1 2 net'0", ""},
	{sibling, rekeyIKE, aFirst, "made", "made", "IKE'1 2 net'0", ""},
	{sibling, rekeyIKE, bFirst, "made", "made", "IKE'1 2 net'0", ""},
	{deleteIKE, deleteChild, crossed, "empty", "deleted", "nothing", ""},
	{deleteIKE, deleteChild, aFirst, "empty", "not asked", "nothing", ""},
	{deleteIKE, deleteChild, bFirst, "empty", "deleted", "nothing", ""},
	{deleteChild, deleteIKE, crossed, "deleted", "empty", "nothing", ""},
	{deleteChild, deleteIKE, aFirst, "deleted", "empty", "nothing", ""},
	{deleteChild, deleteIKE, bFirst, "not asked", "empty", "nothing", ""},
	{deleteIKE, sibling, crossed, "empty", "TEMPORARY_FAILURE", "nothing", ""},
	{deleteIKE, sibling, aFirst, "empty", "not asked", "nothing", ""},
	{deleteIKE, sibling, bFirst, "empty", "made", "nothing", ""},
}

func TestChildCrossings(t *testing.T) { crossings(t, childCrossings) }

func TestIKECrossings(t *testing.T) { crossings(t, ikeCrossings) }

func crossings(t *testing.T, rows []crossing) {
	t.Parallel()
	for _, x := range rows {
		t.Run(fmt.Sprintf("%s and %s, %s", x.a, x.b, x.order), func(t *testing.T) {
			t.Parallel()
			out := iketest.Run(x.plan(), simHooks, true)
			if out.Violation != "" {
				t.Fatalf("%s\n%s", out.Violation, out.Diagram)
			}
			if toA, toB := answer(&out, 0), answer(&out, 1); toA != x.toA || toB != x.toB {
				t.Errorf("A's request is answered %q, B's %q; want %q and %q", toA, toB, x.toA, x.toB)
			}
			if l := left(&out); l != x.left {
				t.Errorf("left is %q, want %q", l, x.left)
			}
			if t.Failed() {
				t.Log(out.Diagram)
			}
			for name, d := range map[string]iketest.Drop{
				"A's request is lost": {Node: 0}, "B's request is lost": {Node: 1},
				"the answer to A is lost": {Node: 1, Response: true}, "the answer to B is lost": {Node: 0, Response: true},
			} {
				p := x.plan()
				d.After = crossAt
				p.Drop = []iketest.Drop{d}
				out := iketest.Run(p, simHooks, true)
				if out.Violation != "" {
					t.Errorf("%s: %s\n%s", name, out.Violation, out.Diagram)
					continue
				}
				if l := left(&out); l != x.left && (x.or == "" || l != x.or) {
					t.Errorf("%s: left is %q, want %q\n%s", name, l, x.left, out.Diagram)
				}
			}
		})
	}
}

// TestFourNonces: both ends rekey at the same time. The SA that was made with the lowest of the four
// nonces goes, and the other one stays (RFC 7296, sections 2.8.1 and 2.8.2), whichever end made
// it.
func TestFourNonces(t *testing.T) {
	t.Parallel()
	for _, c := range []command{rekeyChild, rekeyIKE} {
		t.Run(string(c), func(t *testing.T) {
			t.Parallel()
			var won [2]int
			for seed := range uint64(24) {
				x := crossing{a: c, b: c, order: crossed}
				p := x.plan()
				p.Seed = seed
				out := iketest.Run(p, simHooks, true)
				if out.Violation != "" {
					t.Fatalf("%s\n%s", out.Violation, out.Diagram)
				}
				// The initiator's SPI and the lower nonce of each exchange, by who asked.
				var spi [2]uint64
				var low [2][]byte
				for _, s := range out.Said {
					sa, ok := message.First[*message.SA](s.Payloads)
					if s.At < crossAt || !ok {
						continue
					}
					nonce, _ := message.First[*message.Nonce](s.Payloads)
					asked := s.Node
					if s.Response {
						asked = 1 - s.Node
					} else {
						for _, b := range sa.Proposals[0].SPI {
							spi[asked] = spi[asked]<<8 | uint64(b)
						}
					}
					if low[asked] == nil || bytes.Compare(nonce.Data, low[asked]) < 0 {
						low[asked] = nonce.Data
					}
				}
				winner := 0
				if bytes.Compare(low[0], low[1]) < 0 {
					winner = 1
				}
				// The initiator's SPI of an IKE SA is seen at both ends, the inbound one of a CHILD SA
				// where it was made.
				if !slices.Contains(out.AtRest[winner].SPIs, spi[winner]) || slices.Contains(out.AtRest[1-winner].SPIs, spi[1-winner]) {
					t.Errorf("seed %d: of %x (made with %x) and %x (made with %x) the wrong one is left: %x\n%s", seed, spi[0], low[0], spi[1], low[1], out.AtRest, out.Diagram)
				}
				won[winner]++
			}
			if won[0] == 0 || won[1] == 0 {
				t.Errorf("A won %d times, B %d times: want both", won[0], won[1])
			}
		})
	}
}
