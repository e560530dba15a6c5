package ike_test

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"wardgate/ike"
)

// BenchmarkDoubleAuthentication is one connection with two rounds and ECDSA P-256 chains, both
// ends together, until it is deleted again.
func BenchmarkDoubleAuthentication(b *testing.B) {
	p := newPair(b, pairOptions{})
	for b.Loop() {
		p.up()
		p.a.Endpoint.Terminate("a-b", "again")
		p.w.For(time.Second)
		p.w.Forget()
	}
	p.empty()
}

// BenchmarkPSK is the same with one round and a PSK.
func BenchmarkPSK(b *testing.B) {
	p := newPair(b, pairOptions{both: psk})
	for b.Loop() {
		p.up()
		p.a.Endpoint.Terminate("a-b", "again")
		p.w.For(time.Second)
		p.w.Forget()
	}
	p.empty()
}

// many gives B n connections, A one of them as "a-b", by kind: what tells them apart.
func (p *pair) many(kind string, n int) {
	p.t.Helper()
	mine := n * 3 / 4
	esp, proposal := p.cb.Children[0].Proposals, p.cb.Proposals
	bs := make([]*ike.PeerConfig, n)
	for i := range bs {
		c := *p.cb
		c.Name = fmt.Sprintf("c%d", i)
		net := func(first byte) []ike.Selector {
			return []ike.Selector{ike.PrefixSelector(netip.PrefixFrom(netip.AddrFrom4([4]byte{first, byte(i >> 8), byte(i), 0}), 24))}
		}
		c.Children = []ike.ChildConfig{{Name: "net", LocalTS: net(20), RemoteTS: net(30), Proposals: esp}}
		c.Proposals = proposal
		c.RemoteAuth = append([]ike.RemoteAuth(nil), c.RemoteAuth...)
		switch kind {
		case "selectors": // one peer, one service
		case "services": // one peer, a service for each
			if i != mine {
				c.RemoteAuth[1].IDs = []ike.Identity{fqdn(fmt.Sprintf("a%d.group-a.example", i))}
			}
		case "peers", "psk": // a peer for each
			if i != mine {
				for r := range c.RemoteAuth {
					c.RemoteAuth[r].IDs = []ike.Identity{fqdn(fmt.Sprintf("a%d.peers.example", i))}
				}
				c.Remote = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)}), 500)}
			}
		}
		bs[i] = &c
		if i == mine {
			a := *p.ca
			a.Children = []ike.ChildConfig{{Name: "net", LocalTS: c.Children[0].RemoteTS, RemoteTS: c.Children[0].LocalTS, Proposals: esp}}
			if err := p.a.Endpoint.SetPeers([]*ike.PeerConfig{&a}); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	if err := p.b.Endpoint.SetPeers(bs); err != nil {
		p.t.Fatal(err)
	}
}

// BenchmarkSetup is one set-up and its end, both ends together, with a responder that has few or
// many connections. What it costs must not depend on their number.
func BenchmarkSetup(b *testing.B) {
	for _, kind := range []string{"selectors", "services", "peers", "psk"} {
		for _, n := range []int{10, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				var o pairOptions
				if kind == "psk" {
					o.both = psk
				}
				p := newPair(b, o)
				p.many(kind, n)
				for b.Loop() {
					initiate(b, p.a, "a-b")
					p.w.For(time.Second)
					if len(p.a.Children) != 1 || len(p.b.Children) != 1 {
						b.Fatalf("did not come up: %s, %s", texts(p.a.Refusals), texts(p.b.Refusals))
					}
					p.a.Endpoint.Terminate("a-b", "again")
					p.w.For(time.Second)
					p.w.Forget()
				}
				p.empty()
			})
		}
	}
}

// BenchmarkSetPeers hands connections over.
func BenchmarkSetPeers(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := newPair(b, pairOptions{})
			for b.Loop() {
				p.many("peers", n)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/connection")
		})
	}
}

// BenchmarkIdle is what a minute of nothing costs, for each of many IKE SAs with their liveness
// checks, both ends together.
func BenchmarkIdle(b *testing.B) {
	for _, n := range []int{100, 2_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := newPair(b, pairOptions{both: psk})
			var as, bs []*ike.PeerConfig
			for i := range n {
				x, y := *p.ca, *p.cb
				x.Name, y.Name = fmt.Sprintf("c%d", i), fmt.Sprintf("c%d", i)
				net := prefix(fmt.Sprintf("10.%d.%d.0/24", 1+i>>8, i&255))
				x.Children = []ike.ChildConfig{{Name: "net", LocalTS: net, RemoteTS: prefix("20.0.0.0/8"), Proposals: x.Children[0].Proposals}}
				y.Children = []ike.ChildConfig{{Name: "net", LocalTS: prefix("20.0.0.0/8"), RemoteTS: net, Proposals: y.Children[0].Proposals}}
				as, bs = append(as, &x), append(bs, &y)
			}
			if err := errors.Join(p.a.Endpoint.SetPeers(as), p.b.Endpoint.SetPeers(bs)); err != nil {
				b.Fatal(err)
			}
			heap := func() float64 {
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				return float64(m.HeapAlloc)
			}
			before := heap()
			for i := range n {
				initiate(b, p.a, as[i].Name)
				p.w.For(20 * time.Millisecond)
			}
			p.w.For(time.Second)
			p.w.Forget()
			if len(p.a.Children) != n || len(p.b.Children) != n {
				b.Fatalf("%d and %d of %d came up", len(p.a.Children), len(p.b.Children), n)
			}
			bytes := heap() - before
			for b.Loop() {
				p.w.For(time.Minute)
				p.w.Forget()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/SA/minute")
			b.ReportMetric(bytes/float64(n), "B/SA")
			if len(p.a.Children) != n || len(p.b.Children) != n {
				b.Fatalf("%d and %d of %d are left", len(p.a.Children), len(p.b.Children), n)
			}
		})
	}
}
