package ike_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// queued has A allow a and B allow b CHILD SAs for the same selectors, on machines with four and
// two receive queues.
func queued(a, b int, o pairOptions) pairOptions {
	edit := o.edit
	o.edit = func(p *pair) {
		p.ca.Children[0].Queues, p.cb.Children[0].Queues = a, b
		if edit != nil {
			edit(p)
		}
	}
	o.ea = func(c *ike.Config) { c.Queues = 4 }
	o.eb = func(c *ike.Config) { c.Queues = 2 }
	return o
}

// want calls WantQueues.
func (p *pair) want(n *iketest.Node, queues int) {
	p.t.Helper()
	if err := n.Endpoint.WantQueues("a-b", "net", queues); err != nil {
		p.t.Fatal(err)
	}
}

// queues expects the CHILD SAs of queues 0 to n-1 at both ends, each carried both ways and each in
// its receive queue.
func (p *pair) queues(n int) {
	p.t.Helper()
	p.counts(1, n)
	for _, x := range []struct {
		me, peer *iketest.Node
		machine  uint32
	}{{p.a, p.b, 4}, {p.b, p.a, 2}} {
		seen := map[int]bool{}
		for _, c := range x.me.Children {
			if seen[c.Queue] {
				p.t.Errorf("%s has two CHILD SAs of queue %d", x.me.Name, c.Queue)
			}
			seen[c.Queue] = true
			if n > 1 && c.SPIIn%x.machine != uint32(c.Queue)%x.machine {
				p.t.Errorf("%s: queue %d has SPI %08x, which leads to queue %d of %d", x.me.Name, c.Queue, c.SPIIn, c.SPIIn%x.machine, x.machine)
			}
		}
		for k := range n {
			if err := x.me.Carries(x.peer, queueName(k)); err != nil {
				p.t.Error(err)
			}
		}
		for _, s := range x.me.Endpoint.Snapshot() {
			for _, c := range s.Children {
				if x.me.Children[c.ID] == nil || x.me.Children[c.ID].Queue != c.Queue {
					p.t.Errorf("%s: the snapshot has CHILD SA %d as queue %d", x.me.Name, c.ID, c.Queue)
				}
			}
		}
	}
	p.sound()
}

func queueName(k int) string {
	if k == 0 {
		return "a-b/net"
	}
	return fmt.Sprintf("a-b/net#%d", k)
}

func ofQueue(t testing.TB, n *iketest.Node, k int) *iketest.Child {
	t.Helper()
	for _, c := range n.Children {
		if c.Queue == k {
			return c
		}
	}
	t.Fatalf("%s has no CHILD SA of queue %d", n.Name, k)
	return nil
}

// requests counts the CREATE_CHILD_SA requests that are sent.
func (p *pair) requests() *int {
	n := new(int)
	p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
		if msg[18] == 36 && msg[19]&0x20 == 0 {
			*n++
		}
		return true
	}
	return n
}

// TestQueues: the CHILD SAs of a connection come when one end wants them, as many as both allow.
func TestQueues(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ a, b, wanted, stand int }{
		{4, 4, 4, 4},
		{4, 4, 2, 2},
		{4, 4, 100, 4},
		{8, 3, 8, 3},
		{3, 8, 8, 3},
		{2, 2, 2, 2},
		{8, 1, 8, 1},
		{1, 8, 8, 1},
		{0, 0, 8, 1},
		{256, 256, 20, 20},
	} {
		for _, who := range []string{"initiator", "responder"} {
			t.Run(fmt.Sprintf("%d and %d, the %s wants %d", c.a, c.b, who, c.wanted), func(t *testing.T) {
				t.Parallel()
				p := newPair(t, queued(c.a, c.b, pairOptions{both: psk}))
				p.up()
				p.w.For(time.Minute)
				p.counts(1, 1) // not before somebody wants them
				n := p.a
				if who == "responder" {
					n = p.b
				}
				for range 20 {
					p.want(n, c.wanted)
					p.want(n, 2)
				}
				p.w.For(20 * time.Second)
				p.queues(c.stand)
				// That is all: nothing is asked for again and again.
				sent := p.requests()
				for range 60 {
					p.want(n, c.wanted)
					p.w.For(time.Second)
				}
				if *sent > 0 {
					t.Errorf("%d requests when everything stood", *sent)
				}
				if len(p.a.Failed)+len(p.b.Failed)+len(p.a.Refusals)+len(p.b.Refusals) > 0 {
					t.Errorf("failed: %v %v, refused: %v %v", p.a.Failed, p.b.Failed, texts(p.a.Refusals), texts(p.b.Refusals))
				}
				p.queues(c.stand)
				n.Endpoint.Terminate("a-b", "test")
				p.w.For(time.Minute)
				p.empty()
			})
		}
	}
}

// TestQueuesBeforeUp: what is wanted while the IKE SA is being made comes with it, and all SPIs
// lead where they belong from the beginning.
func TestQueuesBeforeUp(t *testing.T) {
	t.Parallel()
	p := newPair(t, queued(4, 4, pairOptions{both: psk}))
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.want(p.a, 4)
	p.w.For(900 * time.Millisecond) // no fallback was moved by a rekey
	p.counts(1, 4)
	for k := range 4 {
		if c := ofQueue(t, p.a, k); c.SPIIn%4 != uint32(k) || c.Replaces != 0 {
			t.Errorf("queue %d has SPI %08x and replaces %d", k, c.SPIIn, c.Replaces)
		}
	}
	p.w.For(10 * time.Second)
	p.queues(4)
	if err := p.a.Endpoint.WantQueues("x", "net", 2); err == nil {
		t.Error("an unknown connection is no error")
	}
	if err := p.a.Endpoint.WantQueues("a-b", "x", 2); err == nil {
		t.Error("an unknown CHILD SA is no error")
	}
}

// TestAloneUsesAllQueues: connections with one CHILD SA each are spread over all receive queues.
func TestAloneUsesAllQueues(t *testing.T) {
	t.Parallel()
	var seen [4]int
	for seed := uint64(1); seed <= 40; seed++ {
		p := newPair(t, queued(4, 4, pairOptions{seed: seed, both: psk}))
		p.up()
		seen[childOf(t, p.a).SPIIn%4]++
	}
	if slices.Min(seen[:]) == 0 {
		t.Errorf("of 40 connections the queues got %v", seen)
	}
}

// TestSuccessorKeepsItsQueue: the packets of a CHILD SA that is alone go on coming to the same
// receive queue when it is rekeyed, from whichever end; in another they could overtake each other.
func TestSuccessorKeepsItsQueue(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 10; seed++ {
		p := newPair(t, queued(4, 4, pairOptions{seed: seed, both: psk}))
		p.up()
		atA, atB := childOf(t, p.a).SPIIn%4, childOf(t, p.b).SPIIn%2
		for i := range 6 {
			n := []*iketest.Node{p.a, p.b}[i%2]
			old := childOf(t, n).SPIIn
			if err := n.Endpoint.RekeyChild(childOf(t, n).ID); err != nil {
				t.Fatal(err)
			}
			p.w.For(2 * time.Minute)
			if childOf(t, n).SPIIn == old {
				t.Fatal("not rekeyed")
			}
			if a, b := childOf(t, p.a).SPIIn%4, childOf(t, p.b).SPIIn%2; a != atA || b != atB {
				t.Errorf("seed %d, rekey %d: queues %d and %d, before %d and %d", seed, i, a, b, atA, atB)
			}
		}
	}
}

// TestQueuesAtOnce: both ends want them at the same time, on a link that reorders and loses. Both
// end with as many as both allow, no more.
func TestQueuesAtOnce(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 60; seed++ {
		a, b := 2+int(seed%4), 2+int(seed/4%4)
		p := newPair(t, queued(a, b, pairOptions{seed: seed, both: psk}))
		p.up()
		p.w.Link.Jitter = 30 * time.Millisecond
		p.w.Link.Loss = float64(seed%3) / 10
		p.want(p.a, 8)
		p.w.For(time.Duration(p.w.Intn(30)) * time.Millisecond)
		p.want(p.b, 8)
		p.w.For(3 * time.Minute)
		p.agree()
		if n := len(p.a.Children); n != min(a, b) {
			t.Errorf("%d and %d are allowed, %d stand", a, b, n)
		}
		p.queues(min(a, b))
		if t.Failed() {
			t.Logf("seed %d", seed)
			return
		}
	}
}

// TestRekeyQueues: each CHILD SA is rekeyed by itself, from either end and from both at once, keeps
// its queue, and the others do not notice; the IKE SA's rekey carries all over.
func TestRekeyQueues(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 20; seed++ {
		p := newPair(t, queued(3, 3, pairOptions{seed: seed, both: psk}))
		p.up()
		p.want(p.a, 3)
		p.w.For(20 * time.Second)
		p.queues(3)
		p.w.Link.Jitter = 8 * time.Millisecond
		for k := range 3 {
			ids := map[int]ike.ChildID{}
			for j := range 3 {
				ids[j] = ofQueue(t, p.a, j).ID
			}
			both := seed%2 == 0
			if err := p.a.Endpoint.RekeyChild(ids[k]); err != nil {
				t.Fatal(err)
			}
			if both {
				for _, c := range p.b.Children {
					if c.SPIOut == ofQueue(t, p.a, k).SPIIn {
						if err := p.b.Endpoint.RekeyChild(c.ID); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			p.w.For(2 * time.Minute)
			p.queues(3)
			for j := range 3 {
				if same := ofQueue(t, p.a, j).ID == ids[j]; same == (j == k) {
					t.Errorf("after the rekey of queue %d: queue %d is the same CHILD SA: %v", k, j, same)
				}
			}
		}
		_ = p.b.Endpoint.RekeyIKE(ikeOf(t, p.b).ID)
		p.w.For(5 * time.Second)
		p.queues(3)
		if s := p.b.Endpoint.Snapshot()[0]; s.Rekeyed != 1 || len(s.Children) != 3 {
			t.Errorf("after the rekey of the IKE SA: %+v", s)
		}
		if t.Failed() {
			t.Logf("seed %d", seed)
			return
		}
	}
}

// TestDeleteQueue: a CHILD SA that is deleted leaves the others alone, and comes back only when it
// is wanted again. That holds for the fallback too; Initiate makes a new one.
func TestDeleteQueue(t *testing.T) {
	t.Parallel()
	for k := range 3 {
		for _, who := range []string{"A", "B"} {
			t.Run(fmt.Sprintf("queue %d, by %s", k, who), func(t *testing.T) {
				t.Parallel()
				p := newPair(t, queued(3, 3, pairOptions{both: psk}))
				p.up()
				p.want(p.a, 3)
				p.w.For(20 * time.Second)
				p.queues(3)
				id := ofQueue(t, p.a, k).ID
				if who == "B" {
					for _, c := range p.b.Children {
						if c.SPIOut == p.a.Children[id].SPIIn {
							id = c.ID
						}
					}
					_ = p.b.Endpoint.DeleteChild(id, "idle")
				} else {
					_ = p.a.Endpoint.DeleteChild(id, "idle")
				}
				p.w.For(5 * time.Minute)
				p.counts(1, 2)
				p.agree()
				if k == 0 {
					if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
						t.Fatal(err)
					}
				} else {
					p.want(p.a, 3)
				}
				p.w.For(time.Minute)
				p.counts(1, 3)
				p.agree()
				ofQueue(t, p.a, k)
			})
		}
	}
}

// TestNarrowedQueues: all CHILD SAs have the selectors that the first one got, also where the
// responder allows less than it was asked for.
func TestNarrowedQueues(t *testing.T) {
	t.Parallel()
	p := newPair(t, queued(3, 3, pairOptions{both: psk, edit: func(p *pair) { p.cb.Children[0].RemoteTS = prefix("10.1.0.128/25") }}))
	p.up()
	p.want(p.b, 3)
	p.w.For(20 * time.Second)
	p.queues(3)
	for _, c := range p.a.Children {
		if !slices.Equal(c.LocalTS, prefix("10.1.0.128/25")) {
			t.Errorf("queue %d has %v", c.Queue, c.LocalTS)
		}
	}
}

// TestDeleteTwoQueues: what was wanted before does not come back with a new fallback.
func TestDeleteTwoQueues(t *testing.T) {
	t.Parallel()
	p := newPair(t, queued(3, 3, pairOptions{both: psk}))
	p.up()
	p.want(p.a, 3)
	p.w.For(20 * time.Second)
	_ = p.a.Endpoint.DeleteChild(ofQueue(t, p.a, 0).ID, "idle")
	_ = p.a.Endpoint.DeleteChild(ofQueue(t, p.a, 1).ID, "idle")
	p.w.For(time.Minute)
	p.counts(1, 1)
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(time.Minute)
	p.counts(1, 2)
	ofQueue(t, p.a, 0)
	ofQueue(t, p.a, 2)
}

// TestPeerDeletesWantedQueue: two ends of which one wants and the other deletes do not do so at
// full speed (RFC 9611, section 6).
func TestPeerDeletesWantedQueue(t *testing.T) {
	t.Parallel()
	p := newPair(t, queued(2, 2, pairOptions{both: psk}))
	p.up()
	p.want(p.a, 2)
	p.w.For(20 * time.Second)
	asked := p.requests()
	for range 60 {
		for _, c := range p.b.Children {
			if c.Queue == 1 {
				_ = p.b.Endpoint.DeleteChild(c.ID, "idle")
			}
		}
		for range 4 {
			p.want(p.a, 2)
			p.w.For(250 * time.Millisecond)
		}
	}
	if *asked < 3 || *asked > 6 {
		t.Errorf("%d requests in a minute of disagreement, want one in 10 to 20 s", *asked)
	}
	p.carries()
}

// TestSwitchWhenKnown: the end that was asked for one more CHILD SA sends on it as soon as the
// peer's next request shows that it has the answer.
func TestSwitchWhenKnown(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) {
		psk(c)
		c.Children[0].Queues = 3
	}})
	p.up()
	p.want(p.a, 2)
	p.w.For(time.Second)
	if c := ofQueue(t, p.b, 1); c.Switched || c.SendNow {
		t.Error("B sends on it and cannot know whether A has it")
	}
	p.want(p.a, 3)
	p.w.For(time.Second)
	if c := ofQueue(t, p.b, 1); !c.Switched {
		t.Error("B does not send on it, though A went on")
	}
	if c := ofQueue(t, p.b, 2); c.Switched {
		t.Error("B sends on the next one already")
	}
	p.w.For(20 * time.Second)
	if c := ofQueue(t, p.b, 2); !c.Switched {
		t.Error("B never sends on the last one")
	}
}

// TestPeerRefusesQueues: a peer that said that it takes part and then takes none, whatever it
// answers: the first CHILD SA goes on, and it is not asked again and again.
func TestPeerRefusesQueues(t *testing.T) {
	t.Parallel()
	for _, n := range []message.NotifyType{message.NotifyTSMaxQueue, message.NotifyNoAdditionalSAs, message.NotifyTSUnacceptable, message.NotifyNoProposalChosen, 8191} {
		t.Run(n.String(), func(t *testing.T) {
			t.Parallel()
			p := newPair(t, queued(4, 4, pairOptions{both: func(c *ike.PeerConfig) {
				psk(c)
				c.LivenessInterval = -1 // B does not count the requests that are answered in its place
			}}))
			p.up()
			asked := 0
			p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
				if from.Addr() != addrA || msg[18] != 36 || msg[19]&0x20 != 0 {
					return true
				}
				asked++
				_, answer := p.b.Endpoint.Forge(msg[18], binary.BigEndian.Uint32(msg[20:]), true, message.Payloads{message.NewNotify(n)})
				for _, m := range answer {
					p.w.Deliver(to, from, m)
				}
				return false
			}
			for range 20 * 60 {
				p.want(p.a, 4)
				p.w.For(time.Second)
			}
			if asked < 2 || asked > 3 {
				t.Errorf("asked %d times in 20 minutes, want once in 10 minutes", asked)
			}
			if len(p.a.Failed) > 0 || len(p.a.Refusals) > asked {
				t.Errorf("failed: %v, refused: %s", p.a.Failed, texts(p.a.Refusals))
			}
			p.counts(1, 1)
			p.carries()
		})
	}
}

// TestPolicyTakesQueues: the number of queues is no right: it may change under a connection that
// stands, which then counts for what comes.
func TestPolicyTakesQueues(t *testing.T) {
	t.Parallel()
	p := newPair(t, queued(4, 4, pairOptions{both: psk}))
	p.up()
	c := *p.cb
	c.Children = slices.Clone(c.Children)
	c.Children[0].Queues = 2
	if err := p.b.Endpoint.SetPeers([]*ike.PeerConfig{&c}); err != nil {
		t.Fatal(err)
	}
	p.want(p.a, 4)
	p.w.For(20 * time.Second)
	p.queues(2)
	c.Children[0].Queues = 257
	if err := p.b.Endpoint.SetPeers([]*ike.PeerConfig{&c}); err == nil {
		t.Error("257 queues are no error")
	}
}

// TestPeerAsksForEver: a peer with the keys that asks for one CHILD SA after the other gets a
// bounded number, with SA_RESOURCE_INFO (TS_MAX_QUEUE) and without (NO_ADDITIONAL_SAS), and with
// rekeys whose old ones it never deletes.
func TestPeerAsksForEver(t *testing.T) {
	t.Parallel()
	type request struct {
		notify message.Payload
		rekey  bool
		bound  int
		refuse bool
	}
	for name, r := range map[string]request{
		"resource": {notify: message.NewNotify(message.NotifySAResourceInfo), bound: 3, refuse: false},
		"plain":    {bound: 2*3 + 8},
		"rekeys":   {rekey: true, bound: 2*3 + 8},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, queued(3, 3, pairOptions{both: func(c *ike.PeerConfig) {
				psk(c)
				c.Children[0].Proposals = proposals(t, suite.ProtocolESP, "aes256gcm16")
			}}))
			p.up()
			first := childOf(t, p.a)
			next, _ := p.a.Endpoint.IDs()
			p.w.Tap = func(from, _ netip.AddrPort, _ []byte) bool { return from.Addr() != addrA }
			most := 0
			spi := first.SPIIn
			for i := range uint32(200) {
				var ps message.Payloads
				if r.rekey {
					ps = append(ps, message.NewRekeySA(message.ProtocolESP, spi))
				}
				mine := binary.BigEndian.AppendUint32(nil, 0x10000+i)
				offers := must(suite.Offers(p.ca.Children[0].Proposals, mine))
				sa := &message.SA{}
				for _, o := range offers {
					q := message.Proposal{Number: o.Number, Protocol: message.ProtocolESP, SPI: o.SPI}
					for _, x := range o.Transforms {
						q.Transforms = append(q.Transforms, message.NewTransform(message.TransformType(x.Type), x.ID, x.KeyBits))
					}
					sa.Proposals = append(sa.Proposals, q)
				}
				ts := func(s ike.Selector) message.Selector {
					return message.NewSelector(s.Proto, s.StartPort, s.EndPort, s.Start, s.End)
				}
				ps = append(ps, sa, &message.Nonce{Data: make([]byte, 32)},
					message.NewTSi(ts(first.LocalTS[0])), message.NewTSr(ts(first.RemoteTS[0])))
				if r.notify != nil {
					ps = append(ps, r.notify)
				}
				before := len(p.b.Children)
				_, msgs := p.a.Endpoint.Forge(36, next+i, false, ps)
				for _, m := range msgs {
					p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), m)
				}
				p.w.For(20 * time.Millisecond)
				if len(p.b.Children) > before && r.rekey {
					spi = 0x10000 + i
				}
				most = max(most, len(p.b.Children))
			}
			if most != r.bound {
				t.Errorf("%d CHILD SAs at once, want %d", most, r.bound)
			}
			if len(p.b.Refusals) > 0 {
				t.Errorf("refused: %s", texts(p.b.Refusals))
			}
			p.sound()
		})
	}
}

// TestRequestBeforeUp: a request of the responder that overtakes its last IKE_AUTH response is
// not lost for good (found with WantQueues: the IKE SA died of it after 41 s).
func TestRequestBeforeUp(t *testing.T) {
	t.Parallel()
	p := newPair(t, queued(2, 2, pairOptions{both: psk}))
	held := false
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if from.Addr() == addrB && msg[18] == 35 && !held {
			held = true
			m := slices.Clone(msg)
			p.w.AfterFunc(400*time.Millisecond, func() { p.w.Deliver(from, to, m) })
			return false
		}
		return true
	}
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	if !p.w.Until(time.Second, func() bool { return len(p.b.Children) == 1 }) || len(p.a.Children) > 0 {
		t.Fatal("the last response is not late")
	}
	p.want(p.b, 2)
	p.w.For(3 * time.Minute)
	p.queues(2)
}

func BenchmarkWantQueues(b *testing.B) {
	p := newPair(b, queued(4, 4, pairOptions{both: psk}))
	p.up()
	p.want(p.a, 4)
	p.w.For(10 * time.Second)
	p.want(p.a, 4)
	b.ReportAllocs()
	for b.Loop() {
		_ = p.a.Endpoint.WantQueues("a-b", "net", 4)
	}
}
