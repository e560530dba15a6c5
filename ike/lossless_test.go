package ike_test

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
)

// TestRekeyEverySecond rekeys a thousand times, once a second, while packets go both ways over a
// link that takes 0 to 200 ms for each, in any order, and loses 1 % of the IKE messages. Every
// packet has a CHILD SA to go out on, and finds its CHILD SA where it arrives.
func TestRekeyEverySecond(t *testing.T) {
	t.Parallel()
	never := 1000 * time.Hour
	seconds := 1000
	if testing.Short() {
		seconds = 100
	}
	for _, c := range []struct {
		name       string
		child, ike [2]time.Duration // lifetimes of A and B
		queues     int
		ask        bool // both call RekeyChild every second
		rekeys     int  // at least
	}{
		{"lifetimes of both", [2]time.Duration{time.Second, time.Second}, [2]time.Duration{never, never}, 1, false, 800},
		{"lifetime of the responder", [2]time.Duration{never, time.Second}, [2]time.Duration{never, never}, 1, false, 800},
		{"the same moment", [2]time.Duration{never, never}, [2]time.Duration{never, never}, 1, true, 800},
		{"IKE SA too", [2]time.Duration{time.Second, time.Second}, [2]time.Duration{3 * time.Second, 3 * time.Second}, 1, false, 500},
		{"IKE SA and CHILD SA every second", [2]time.Duration{time.Second, time.Second}, [2]time.Duration{time.Second, time.Second}, 1, false, 300},
		{"IKE SA every second", [2]time.Duration{never, never}, [2]time.Duration{time.Second, time.Second}, 1, false, 0},
		{"all four of a connection", [2]time.Duration{4 * time.Second, 4 * time.Second}, [2]time.Duration{never, never}, 4, false, 800},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{seed: 3, both: psk, edit: func(p *pair) {
				for i, x := range []*ike.PeerConfig{p.ca, p.cb} {
					x.RekeyChild, x.RekeyIKE = c.child[i], c.ike[i]
					x.Children[0].Queues = c.queues
				}
			}})
			p.up()
			p.want(p.a, c.queues)
			if !p.w.Until(time.Minute, func() bool { return len(p.a.Children) >= c.queues && len(p.b.Children) >= c.queues }) {
				t.Fatalf("%d and %d CHILD SAs, want %d", len(p.a.Children), len(p.b.Children), c.queues)
			}
			p.w.Link.Delay, p.w.Link.Jitter, p.w.Link.Loss = 0, 200*time.Millisecond, 0.01
			sent := p.requests()
			traffic := p.w.Traffic(p.a, p.b, time.Duration(4+6*c.queues)*time.Millisecond)
			var first ike.ChildID
			for id := range p.a.Children {
				first = max(first, id)
			}
			most := 0
			for range seconds {
				if c.ask {
					rekeyAll(p.a)
					p.w.For(time.Duration(p.w.Intn(100)) * time.Millisecond)
					rekeyAll(p.b)
				}
				p.w.For(time.Second)
				most = max(most, len(p.a.Children), len(p.b.Children))
				if traffic.Lost > 0 {
					break
				}
				p.w.Forget()
			}
			traffic.Stop()
			p.w.Link.Loss = 0
			var last ike.ChildID
			for id := range p.a.Children {
				last = max(last, id)
			}
			t.Logf("%d packets, %d lost; %d CHILD SAs were made, at most %d at once; %d CREATE_CHILD_SA requests", traffic.Sent, traffic.Lost, last-first, most, *sent)
			if traffic.Lost > 0 {
				t.Errorf("%d of %d packets were lost: %v", traffic.Lost, traffic.Sent, traffic.Why)
			}
			if n := int(last - first); n < c.rekeys*seconds/1000 {
				t.Errorf("%d rekeys, want at least %d", n, c.rekeys*seconds/1000)
			}
			if c.rekeys == 0 {
				if s := p.a.Endpoint.Snapshot(); len(s) != 1 || s[0].Rekeyed < seconds/2 {
					t.Errorf("the IKE SA was rekeyed too seldom: %+v", s)
				}
			}
			// No storm: two requests for each rekey at most, with those that are repeated.
			if *sent > seconds*5/2 {
				t.Errorf("%d CREATE_CHILD_SA requests", *sent)
			}
			// A few replaced ones wait for their Delete, no more.
			if most > 6*c.queues {
				t.Errorf("%d CHILD SAs at once", most)
			}
			p.sound()
			if len(p.a.Refusals)+len(p.b.Refusals) > 0 {
				t.Errorf("refused: %v %v", texts(p.a.Refusals), texts(p.b.Refusals))
			}
		})
	}
}

func rekeyAll(n *iketest.Node) {
	for _, id := range slices.Sorted(maps.Keys(n.Children)) {
		_ = n.Endpoint.RekeyChild(id)
	}
}

// late has the next CREATE_CHILD_SA answer of B come to A only after d.
func (p *pair) late(d time.Duration) {
	done := false
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if done || from.Addr() != addrB || msg[18] != 36 || msg[19]&0x20 == 0 {
			return true
		}
		done = true
		m := slices.Clone(msg)
		p.w.AfterFunc(d, func() { p.w.Deliver(from, to, m) })
		return false
	}
}

// TestBeforeTheAnswer: B rekeys or deletes a CHILD SA that it just made for A, which does not have
// the answer yet and cannot know it. Both ends agree afterwards; nothing is lost by a rekey.
func TestBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	newest := func(n *iketest.Node) ike.ChildID { return slices.Max(slices.Collect(maps.Keys(n.Children))) }
	asks := map[string]func(*pair){
		"new":   func(p *pair) { _ = p.a.Endpoint.Initiate("a-b", "other") },
		"rekey": func(p *pair) { _ = p.a.Endpoint.RekeyChild(childOf(p.t, p.a).ID) },
		"queue": func(p *pair) { p.want(p.a, 2) },
	}
	does := map[string]func(*pair){
		"rekeys":  func(p *pair) { _ = p.b.Endpoint.RekeyChild(newest(p.b)) },
		"deletes": func(p *pair) { _ = p.b.Endpoint.DeleteChild(newest(p.b), "test") },
	}
	for what, ask := range asks {
		for then, do := range does {
			t.Run(what+", and B "+then+" it", func(t *testing.T) {
				t.Parallel()
				for wait := range 6 {
					p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) {
						psk(c)
						c.RekeyIKE, c.RekeyChild = 1000*time.Hour, 1000*time.Hour
						o := c.Children[0]
						o.Name, o.LocalTS, o.RemoteTS = "other", prefix("10.9.0.0/24"), prefix("10.9.0.0/24")
						c.Children = append(c.Children, o)
						c.Children[0].Queues = 2
					}})
					p.up()
					p.late(400 * time.Millisecond)
					traffic := p.w.Traffic(p.a, p.b, 4*time.Millisecond)
					ask(p)
					if !p.w.Until(time.Second, func() bool { return len(p.b.Children) == 2 }) {
						t.Fatal("B made nothing")
					}
					p.w.For(time.Duration(wait*60) * time.Millisecond)
					made, asked := newest(p.b), 0
					do(p)
					p.w.Until(395*time.Millisecond-time.Duration(wait*60)*time.Millisecond, func() bool {
						_, busy := p.b.Endpoint.IDs()
						if busy {
							asked++
						}
						return busy
					})
					if then == "rekeys" && what != "new" && asked > 0 {
						t.Error("B asks for what A cannot know yet")
					}
					p.w.For(20 * time.Second)
					if then == "rekeys" && p.b.Children[made] != nil {
						t.Error("B did not rekey it")
					}
					traffic.Stop()
					p.agree()
					// There is nothing but the new one for the first packets of "other".
					if then == "rekeys" && what != "new" && traffic.Lost > 0 {
						t.Errorf("%d packets were lost: %v", traffic.Lost, traffic.Why)
					}
					if want := map[string]int{"new": 2, "rekey": 1, "queue": 2}[what]; then == "rekeys" && len(p.a.Children) != want {
						t.Errorf("%d CHILD SAs stand, want %d", len(p.a.Children), want)
					}
					if t.Failed() {
						t.Logf("after %d ms", wait*60)
						return
					}
				}
			})
		}
	}
}
