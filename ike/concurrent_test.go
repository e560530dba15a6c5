package ike_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/internal/labca"
)

// counter is an Owner for many connections at once.
type counter struct {
	mu       sync.Mutex
	ikes     int
	children map[ike.ChildID]ike.ChildSA
	ups      int
	refused  []ike.Refusal
	failed   []error
	changed  chan struct{}
}

func newCounter() *counter {
	return &counter{children: map[ike.ChildID]ike.ChildSA{}, changed: make(chan struct{}, 1)}
}

func (c *counter) note(f func()) {
	c.mu.Lock()
	f()
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *counter) IKEUp(ike.SAInfo)               { c.note(func() { c.ikes++ }) }
func (c *counter) IKEDown(ike.SAInfo, ike.Reason) { c.note(func() { c.ikes-- }) }
func (c *counter) ChildUp(s ike.ChildSA)          { c.note(func() { c.children[s.ID] = s; c.ups++ }) }
func (c *counter) ChildSwitch(ike.ChildID)        {}
func (c *counter) ChildDown(id ike.ChildID, _ ike.Reason) {
	c.note(func() { delete(c.children, id) })
}
func (c *counter) PathChanged(ike.SAID, ike.Path) {}
func (c *counter) Refused(r ike.Refusal)          { c.note(func() { c.refused = append(c.refused, r) }) }

func (c *counter) InitiateFailed(_, _ string, err error) {
	c.note(func() { c.failed = append(c.failed, err) })
}

func (c *counter) wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	limit := time.After(60 * time.Second)
	for {
		c.mu.Lock()
		ok := f()
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-c.changed:
		case <-limit:
			c.mu.Lock()
			defer c.mu.Unlock()
			t.Fatalf("waited 60 s for %s: %d IKE SAs, %d CHILD SAs, refused %v, failed %v", what, c.ikes, len(c.children), texts(c.refused), c.failed)
		}
	}
}

type wallClock struct{}

func (wallClock) Now() time.Time { return time.Now() }
func (wallClock) AfterFunc(d time.Duration, f func()) func() {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}

// TestConcurrent runs many connections between two endpoints with real goroutines and the real
// clock: for the race detector.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	const n = 24
	f := facilities()
	var a, b *ike.Endpoint
	deliver := func(to **ike.Endpoint, me, peer netip.Addr) func(ike.Path, []byte) {
		return func(p ike.Path, msg []byte) {
			msg = bytes.Clone(msg)
			go (*to).HandleDatagram(ike.Path{
				Local: netip.AddrPortFrom(peer, p.Remote.Port()), Remote: netip.AddrPortFrom(me, p.Local.Port()), Encap: p.Encap,
			}, msg)
		}
	}
	nowish := func(r *labca.Request) { r.At = time.Now().Add(-time.Hour) }
	ad := issue(cas().device, "a.devices.example", labca.P256, nil, nowish)
	var ca, cb []*ike.PeerConfig
	var s *credential
	for i := range n {
		x := connection(t, fmt.Sprintf("c%d", i), f[0], f[1], f[0].groupA, f[1].groupA, addrB, fmt.Sprintf("10.1.%d.0/24", i), fmt.Sprintf("10.2.%d.0/24", i))
		y := connection(t, fmt.Sprintf("c%d", i), f[1], f[0], f[1].groupA, f[0].groupA, addrA, fmt.Sprintf("10.2.%d.0/24", i), fmt.Sprintf("10.1.%d.0/24", i))
		// Three connections share a service, and differ in their selectors alone.
		if i%3 == 0 {
			s = issue(cas().groupA, fmt.Sprintf("a%d.group-a.example", i), labca.P256, ad, nowish)
		}
		x.LocalAuth = []ike.LocalAuth{ad.auth("device"), s.auth("service")}
		y.RemoteAuth[1].IDs = []ike.Identity{s.id}
		ca, cb = append(ca, x), append(cb, y)
	}
	bd := issue(cas().device, "b.devices.example", labca.P256, nil, nowish)
	bs := issue(cas().groupA, "b.group-a.example", labca.P256, bd, nowish)
	for _, y := range cb {
		y.LocalAuth = []ike.LocalAuth{bd.auth("device"), bs.auth("service")}
	}
	oa, ob := newCounter(), newCounter()
	mk := func(o *counter, send func(ike.Path, []byte)) *ike.Endpoint {
		ep, err := ike.NewEndpoint(ike.Config{
			Clock: wallClock{}, Rand: rand.Reader, Owner: o, Send: send,
			SourceAddr: func(r netip.Addr) netip.Addr {
				if r == addrB {
					return addrA
				}
				return addrB
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		return ep
	}
	a, b = mk(oa, deliver(&b, addrA, addrB)), mk(ob, deliver(&a, addrB, addrA))
	if err := a.SetPeers(ca); err != nil {
		t.Fatal(err)
	}
	if err := b.SetPeers(cb); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		go func() {
			if err := a.Initiate(fmt.Sprintf("c%d", i), "net"); err != nil {
				t.Error(err)
			}
			_ = a.Snapshot()
		}()
	}
	for _, o := range []*counter{oa, ob} {
		o.wait(t, "all connections", func() bool { return len(o.children) == n && o.ikes == n })
	}
	for _, s := range a.Snapshot() {
		for _, c := range s.Children {
			if err := a.RekeyChild(c.ID); err != nil {
				t.Error(err)
			}
		}
		if err := a.RekeyIKE(s.ID); err != nil {
			t.Error(err)
		}
	}
	for _, o := range []*counter{oa, ob} {
		o.wait(t, "the rekeys", func() bool { return o.ups >= 2*n && len(o.children) == n })
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := a.Close(ctx); err != nil {
		t.Error(err)
	}
	ob.wait(t, "the end", func() bool { return ob.ikes == 0 && len(ob.children) == 0 })
	if err := b.Close(ctx); err != nil {
		t.Error(err)
	}
	if len(oa.refused)+len(ob.refused)+len(oa.failed) != 0 {
		t.Errorf("refused %s %s, failed %v", texts(oa.refused), texts(ob.refused), oa.failed)
	}
}
