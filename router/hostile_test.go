package router

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"wardgate/audit"
	"wardgate/ike"
	"wardgate/ike/suite"
	"wardgate/internal/testvectors"
	"wardgate/router/wire"
)

// mute is a Router without kernel, TUN and token: real sockets on loopback, a real IKE endpoint
// with one PSK connection, a real data path.
func mute(t *testing.T) *Router {
	t.Helper()
	s := newSide(t, policyFor(t, "10.1.2.0/24", "10.2.1.0/24", flowsAtA))
	r := &Router{log: zap.NewNop(), dp: s.datapath, records: make(chan audit.Record, 10_000), conns: make(map[string]*connection)}
	r.refused = newRefusals(time.Now)
	r.dp.ike = r.ikeDatagram
	for _, c := range s.rules.Load().conns {
		r.conns[c.name] = c
	}
	r.flusher = s.out
	r.natt = make(map[*wire.Group]bool)
	for _, natt := range []bool{false, true} {
		g, err := wire.OpenUDP(wire.Options{Addr: netip.MustParseAddr("127.0.0.1"), Queues: 1, Steer: natt})
		if err != nil {
			t.Fatal(err)
		}
		r.groups = append(r.groups, g)
		r.natt[g] = natt
	}
	var err error
	r.ep, err = ike.NewEndpoint(ike.Config{Clock: systemClock{}, Rand: rand.Reader, Owner: owner{r}, Send: r.sendIKE, SendKeepalive: r.sendKeepalive, LastInbound: r.lastInbound})
	if err != nil {
		t.Fatal(err)
	}
	id := func(name string) ike.Identity {
		i, err := ike.ParseIdentity(name)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	psk := []byte("a pre-shared key for this test")
	err = r.ep.SetPeers([]*ike.PeerConfig{{
		Name: "a-b", Proposals: suite.DefaultIKE(),
		LocalAuth:  []ike.LocalAuth{{ID: id("a.devices.example"), PSK: psk}},
		RemoteAuth: []ike.RemoteAuth{{IDs: []ike.Identity{id("b.devices.example")}, PSK: psk, RelatedToRound: -1}},
		Children: []ike.ChildConfig{{
			Name: "a-b", Proposals: suite.DefaultESP(),
			LocalTS: []ike.Selector{ike.PrefixSelector(netip.MustParsePrefix("10.1.2.0/24"))}, RemoteTS: []ike.Selector{ike.PrefixSelector(netip.MustParsePrefix("10.2.1.0/24"))},
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// All recorded hostile and odd datagrams go through the real sockets: nothing panics, nothing is
// kept for longer than a half-open IKE SA may live, nothing reaches the LAN.
func TestMalformedThroughTheSockets(t *testing.T) {
	var f struct {
		Messages []struct {
			Ports   []string `json:"ports"`
			Payload string   `json:"udp_payload"`
		} `json:"messages"`
	}
	testvectors.JSON(t, "malformed/ike_messages.json", &f)
	if len(f.Messages) != 303 {
		t.Fatalf("%d messages, want 303", len(f.Messages))
	}
	r := mute(t)
	var wg sync.WaitGroup
	for _, g := range r.groups {
		w := newInWorker(r.dp.newWorker(0, 0), g, g.Sockets()[0], r.natt[g])
		wg.Go(func() {
			if err := w.run(); err == nil {
				t.Error("reader ended without an error")
			}
		})
	}
	out, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	var answers int
	wg.Go(func() {
		b := make([]byte, 65535)
		for {
			if _, err := out.Read(b); err != nil {
				return
			}
			answers++
		}
	})
	for i, m := range f.Messages {
		b, err := hex.DecodeString(m.Payload)
		if err != nil {
			t.Fatal(err)
		}
		// to both sockets, whichever it was recorded on: an attacker chooses the port
		for _, s := range r.groups {
			if _, err := out.WriteToUDPAddrPort(b, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.Port())); err != nil && len(b) > 0 {
				t.Fatalf("message %d: %v", i, err)
			}
		}
	}
	// A well-formed request of a stranger is still answered after all that: the router works. The
	// datagrams of loopback come in the order in which they were sent, so all the others have
	// been read when this one is.
	probe := probeRequest(t)
	alive := func() bool {
		before := r.ep.Snapshot()
		if _, err := out.WriteToUDPAddrPort(probe, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.groups[0].Port())); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(10 * time.Second)
		for time.Now().Before(deadline) {
			if now := r.ep.Snapshot(); len(now) > len(before) || slices.ContainsFunc(now, func(s ike.SAStatus) bool { return s.SPIi == probeSPI }) {
				return true
			}
			time.Sleep(time.Millisecond) // waits for another goroutine of the same process, not for time
		}
		return false
	}
	if !alive() {
		t.Error("a good IKE_SA_INIT request is not taken any more")
	}
	for _, s := range r.ep.Snapshot() {
		if s.State != ike.StateAuth || len(s.Children) > 0 {
			t.Errorf("left behind: %+v", s)
		}
	}
	if n := r.dp.sad.len(); n != 0 {
		t.Errorf("%d SAs for ESP", n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.ep.Close(ctx); err != nil {
		t.Error(err)
	}
	for _, g := range r.groups {
		g.Close()
	}
	out.Close()
	wg.Wait()
	if n := len(r.ep.Snapshot()); n != 0 {
		t.Errorf("%d IKE SAs are left", n)
	}
	t.Logf("%d answers, drops %v", answers, r.dp.dropped())
}

const probeSPI = 0x1122334455667788

// probeRequest is a good IKE_SA_INIT request.
func probeRequest(t *testing.T) []byte {
	t.Helper()
	var got []byte
	done := make(chan struct{})
	ep, err := ike.NewEndpoint(ike.Config{Clock: systemClock{}, Rand: rand.Reader, Owner: owner{&Router{log: zap.NewNop(), conns: map[string]*connection{}}}, Send: func(_ ike.Path, msg []byte) {
		if got == nil {
			got = append([]byte(nil), msg...)
			close(done)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	id, err := ike.ParseIdentity("x.example")
	if err != nil {
		t.Fatal(err)
	}
	sel := []ike.Selector{ike.AnySelector(false)}
	err = ep.SetPeers([]*ike.PeerConfig{{
		Name: "x", Remote: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:500")}, Proposals: suite.DefaultIKE(),
		LocalAuth: []ike.LocalAuth{{ID: id, PSK: []byte("x")}}, RemoteAuth: []ike.RemoteAuth{{IDs: []ike.Identity{id}, PSK: []byte("x"), RelatedToRound: -1}},
		Children: []ike.ChildConfig{{Name: "x", LocalTS: sel, RemoteTS: sel, Proposals: suite.DefaultESP()}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := ep.Initiate("x", "x"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("no request")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := ep.Close(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		got[i] = byte(uint64(probeSPI) >> (56 - 8*i))
	}
	return got
}
