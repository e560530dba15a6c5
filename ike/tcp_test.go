package ike_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
)

// TCP encapsulation (RFC 9329) in virtual time.

func withTCP(mode ike.TCPMode) func(*ike.PeerConfig) {
	return func(c *ike.PeerConfig) { c.TCP, c.ForceEncap = mode, true }
}

// noUDP drops every datagram, or those that keep does not want; sent counts them.
func noUDP(w *iketest.World, keep func(to netip.AddrPort) bool) (sent *[][]byte) {
	sent = new([][]byte)
	w.Tap = func(_, to netip.AddrPort, msg []byte) bool {
		if keep != nil && keep(to) {
			return true
		}
		*sent = append(*sent, msg)
		return false
	}
	return sent
}

// onTCP expects both ends to use the same TCP connection, for everything.
func (p *pair) onTCP() {
	p.t.Helper()
	for _, n := range []*iketest.Node{p.a, p.b} {
		for _, s := range n.Endpoint.Snapshot() {
			if s.Path.Stream == 0 || s.Path.Encap {
				p.t.Errorf("%s: IKE SA on path %v, want TCP", n.Name, s.Path)
			}
		}
		for _, c := range n.Children {
			if c.Path.Stream == 0 {
				p.t.Errorf("%s: CHILD SA on path %v, want TCP", n.Name, c.Path)
			}
		}
		if n.Streams() != 1 {
			p.t.Errorf("%s has %d TCP connections, want 1", n.Name, n.Streams())
		}
	}
}

func TestTCPFallback(t *testing.T) {
	p := newPair(t, pairOptions{both: withTCP(ike.TCPFallback)})
	sent := noUDP(p.w, nil)
	start := p.w.Now()
	p.up()
	p.onTCP()
	// 1 + 1.8 + 3.24 s of Retransmit's default; RFC 9329, section 5.1: at least one repetition.
	if took := p.w.Now().Sub(start); took < 6*time.Second || took > 8*time.Second {
		t.Errorf("it took %v, want a little more than 6 s", took)
	}
	if len(*sent) != 4 {
		t.Errorf("%d datagrams went out, want the first IKE_SA_INIT and three repetitions", len(*sent))
	}
	// Section 5.1: another SPI.
	for _, s := range p.a.Endpoint.Snapshot() {
		if string((*sent)[0][:8]) == string(spiOf(s.SPIi)) {
			t.Error("the SPI of the attempt over UDP was used again")
		}
	}
	// Section 6.6: no keepalives, whatever NAT detection says.
	p.w.For(5 * time.Minute)
	if n := p.a.Keepalives + p.b.Keepalives; n != 0 {
		t.Errorf("%d NAT keepalives, want none", n)
	}
	p.a.Endpoint.Terminate("a-b", "test")
	p.w.For(time.Minute)
	p.empty()
	if n := p.a.Streams() + p.b.Streams(); n != 0 {
		t.Errorf("%d ends of TCP connections are left", n)
	}
	if len(*sent) != 4 {
		t.Errorf("%d datagrams went out, want all but the first 4 on the TCP connection", len(*sent))
	}
}

func spiOf(v uint64) []byte {
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(v >> (56 - 8*i))
	}
	return b
}

// Where UDP gets through, TCP is not tried.
func TestTCPNotNeeded(t *testing.T) {
	p := newPair(t, pairOptions{both: withTCP(ike.TCPFallback)})
	p.up()
	if p.w.TCP.Opened != 0 || p.a.Endpoint.Snapshot()[0].Path.Stream != 0 {
		t.Errorf("%d TCP connections, path %v; want UDP", p.w.TCP.Opened, p.a.Endpoint.Snapshot()[0].Path)
	}
}

// An answer over UDP while the TCP connection is being opened is taken.
func TestTCPTooLate(t *testing.T) {
	p := newPair(t, pairOptions{both: withTCP(ike.TCPFallback)})
	n := 0
	p.w.Link.Delay = 50 * time.Millisecond // the handshake of TCP takes two of them
	p.w.Tap = func(from, _ netip.AddrPort, _ []byte) bool {
		if from.Addr() == addrA {
			n++
		}
		return n > 3 // the fourth gets through, and its answer before the TCP connection stands
	}
	p.w.TCP.Hang = true
	p.up()
	p.w.TCP.Hang = false
	p.w.For(time.Minute)
	if s := p.a.Endpoint.Snapshot(); len(s) != 1 || s[0].Path.Stream != 0 || p.a.Streams() != 0 {
		t.Errorf("%v, %d TCP connections; want one IKE SA over UDP", s, p.a.Streams())
	}
	p.carries()
}

// A gateway without TCP: the attempt over UDP goes on as long as without the fallback.
func TestTCPRefused(t *testing.T) {
	for _, hang := range []bool{false, true} {
		p := newPair(t, pairOptions{both: withTCP(ike.TCPFallback)})
		cut := true
		p.w.Tap = func(netip.AddrPort, netip.AddrPort, []byte) bool { return !cut }
		p.w.TCP.Refuse, p.w.TCP.Hang = !hang, hang
		if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
			t.Fatal(err)
		}
		p.w.For(12 * time.Second)
		cut = false
		if !p.w.Until(20*time.Second, func() bool { return len(p.a.Children) > 0 }) {
			t.Errorf("hang %v: it did not come up over UDP later: %v", hang, p.a.Failed)
		}
		p.carries()
	}
}

func TestTCPNothingWorks(t *testing.T) {
	for _, mode := range []ike.TCPMode{ike.TCPFallback, ike.TCPAlways} {
		for _, hang := range []bool{false, true} {
			p := newPair(t, pairOptions{both: withTCP(mode)})
			sent := noUDP(p.w, nil)
			p.w.TCP.Refuse, p.w.TCP.Hang = !hang, hang
			if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
			if !p.w.Until(time.Minute, func() bool { return len(p.a.Failed) > 0 }) {
				t.Errorf("mode %v, hang %v: it never failed", mode, hang)
			}
			if mode == ike.TCPAlways && len(*sent) > 0 {
				t.Errorf("%d datagrams over UDP, want none", len(*sent))
			}
			p.w.For(time.Minute)
			p.empty()
		}
	}
}

func TestTCPAlways(t *testing.T) {
	p := newPair(t, pairOptions{both: withTCP(ike.TCPAlways)})
	sent := noUDP(p.w, nil)
	p.up()
	p.onTCP()
	if len(*sent) > 0 {
		t.Errorf("%d datagrams over UDP, want none", len(*sent))
	}
	if i := p.a.Endpoint.Snapshot()[0]; i.NATLocal || i.NATRemote {
		t.Errorf("NAT detected where there is none: %+v", i)
	}
}

// RFC 9329, section 6.5: a NAT changes nothing.
func TestTCPBehindNAT(t *testing.T) {
	p := newPair(t, pairOptions{both: withTCP(ike.TCPAlways)})
	p.w.TCP.Shift = true
	p.up()
	p.onTCP()
	if i := p.a.Endpoint.Snapshot()[0]; !i.NATLocal {
		t.Errorf("no NAT detected: %+v", i)
	}
	p.w.For(5 * time.Minute)
	p.carries()
	if p.a.Keepalives != 0 {
		t.Errorf("%d NAT keepalives, want none", p.a.Keepalives)
	}
}

// Port 500 gets through, port 4500 does not.
func TestTCPWhenOnlyPort500(t *testing.T) {
	p := newPair(t, pairOptions{both: withTCP(ike.TCPFallback)})
	noUDP(p.w, func(to netip.AddrPort) bool { return to.Port() == 500 })
	p.up()
	p.w.For(time.Minute) // what was half-open is gone
	p.onTCP()
	p.counts(1, 1)
	p.carries()
	if n := p.b.Endpoint.HalfOpen(); n != 0 {
		t.Errorf("%d half-open IKE SAs are left", n)
	}
}

// RFC 9329, section 6.2: nothing is repeated on a TCP connection.
func TestTCPNoRetransmission(t *testing.T) {
	p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) { withTCP(ike.TCPAlways)(c); c.LivenessInterval = -1 }})
	p.up()
	p.w.TCP.Hang = true // what is broken stays broken
	p.w.BreakTCP()
	p.w.For(time.Second)
	from := strings.Count(p.w.Diary(), "CREATE_CHILD_SA request")
	for _, s := range p.a.Endpoint.Snapshot() {
		if err := p.a.Endpoint.RekeyIKE(s.ID); err != nil {
			t.Fatal(err)
		}
	}
	p.w.For(20 * time.Second)
	if n := strings.Count(p.w.Diary(), "CREATE_CHILD_SA request") - from; n != 1 {
		t.Errorf("the request was sent %d times, want once", n)
	}
	p.counts(1, 1) // it is still waited for
	p.w.For(30 * time.Second)
	if len(p.a.IKE) != 0 || len(p.a.Ended) != 1 || p.a.Ended[0].Code != ike.ReasonPeerDead {
		t.Errorf("IKE SAs %v, ended %v; want it to have ended without an answer", p.a.IKE, p.a.Ended)
	}
}

// RFC 9329, section 6.1: the IKE SA and its CHILD SAs survive the TCP connection.
func TestTCPBreaks(t *testing.T) {
	p := newPair(t, pairOptions{both: withTCP(ike.TCPAlways)})
	p.up()
	before := p.a.Endpoint.Snapshot()[0]
	for range 5 {
		p.w.BreakTCP()
		p.w.For(3 * time.Second)
		p.onTCP()
		p.carries()
	}
	if len(p.b.Paths) != 5 {
		t.Errorf("the responder moved %d times, want 5: %v", len(p.b.Paths), p.b.Paths)
	}
	after := p.a.Endpoint.Snapshot()[0]
	if before.ID != after.ID || before.SPIi != after.SPIi || len(p.a.Gone) != 0 || len(p.b.Gone) != 0 {
		t.Errorf("not the same SAs: %+v, before %+v", after, before)
	}
	// Both ends rekey over what stands now.
	for _, n := range []*iketest.Node{p.a, p.b} {
		if err := n.Endpoint.RekeyIKE(n.Endpoint.Snapshot()[0].ID); err != nil {
			t.Fatal(err)
		}
		p.w.For(5 * time.Second)
		for id := range n.Children {
			if err := n.Endpoint.RekeyChild(id); err != nil {
				t.Fatal(err)
			}
		}
		p.w.For(5 * time.Second)
	}
	p.counts(1, 1)
	p.onTCP()
	p.carries()
	if p.a.Endpoint.Snapshot()[0].Rekeyed != 2 {
		t.Errorf("rekeyed %d times, want 2", p.a.Endpoint.Snapshot()[0].Rekeyed)
	}
	// The responder of the rekeys is still not who opens connections: section 1.2.
	p.w.BreakTCP()
	p.w.For(3 * time.Second)
	p.onTCP()
	p.carries()
}

// RFC 9329, section 6.2: a request that waits for its answer is sent again on the new connection,
// by either end.
func TestTCPBreaksDuringRequest(t *testing.T) {
	for _, who := range []string{"A", "B"} {
		p := newPair(t, pairOptions{both: withTCP(ike.TCPAlways)})
		p.up()
		n := p.a
		if who == "B" {
			n = p.b
		}
		id := n.Endpoint.Snapshot()[0].ID
		if err := n.Endpoint.RekeyIKE(id); err != nil {
			t.Fatal(err)
		}
		p.w.For(2 * time.Millisecond) // the request is on its way
		p.w.BreakTCP()
		p.w.For(5 * time.Second)
		if s := n.Endpoint.Snapshot()[0]; s.Rekeyed != 1 {
			t.Errorf("%s: rekeyed %d times, want once", who, s.Rekeyed)
		}
		p.counts(1, 1)
		p.carries()
	}
}

// ESP that comes in on a new connection before any IKE message moves the responder too; what comes
// late on the old one does not move it back.
func TestTCPFollowsESP(t *testing.T) {
	p := newPair(t, pairOptions{both: withTCP(ike.TCPAlways)})
	p.up()
	old := p.b.Endpoint.Snapshot()[0].Path
	newer := old
	newer.Stream = p.b.Endpoint.NewStream()
	newer.Remote = netip.AddrPortFrom(addrC, 4711)
	id := p.b.Endpoint.Snapshot()[0].ID
	p.b.Endpoint.StreamUsed(id, newer)
	p.w.For(time.Second)
	p.b.Endpoint.StreamUsed(id, old)
	p.b.Endpoint.StreamUsed(id, ike.Path{Local: old.Local, Remote: old.Remote, Encap: true}) // not UDP either
	p.w.For(time.Second)
	if got := p.b.Endpoint.Snapshot()[0].Path; got != newer {
		t.Errorf("path %v (%d), want %v (%d)", got, got.Stream, newer, newer.Stream)
	}
	// Who opened the connection decides for itself which one it is.
	mine := p.a.Endpoint.Snapshot()[0]
	p.a.Endpoint.StreamUsed(mine.ID, newer)
	p.w.For(time.Second)
	if got := p.a.Endpoint.Snapshot()[0].Path; got != mine.Path {
		t.Errorf("the TCP originator moved to %v", got)
	}
}

// RFC 9329, section 6.3: no cookies; the bound on half-open IKE SAs holds.
func TestTCPNoCookies(t *testing.T) {
	p := newPair(t, pairOptions{both: withTCP(ike.TCPAlways), eb: func(c *ike.Config) { c.CookieThreshold = -1 }})
	p.up()
	if n := strings.Count(p.w.Diary(), "IKE_SA_INIT request"); n != 1 {
		t.Errorf("%d IKE_SA_INIT requests, want 1: no cookie was to be asked for", n)
	}
}

// RFC 9329, section 6.4: an error in IKE_SA_INIT counts at once.
func TestTCPErrorCountsAtOnce(t *testing.T) {
	p := newPair(t, pairOptions{both: withTCP(ike.TCPAlways), edit: func(p *pair) {
		p.cb.Proposals = proposals(t, 1, "aes128gcm16-prfsha256-ecp256")
	}})
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(100 * time.Millisecond)
	if len(p.a.Failed) != 1 {
		t.Errorf("failed %v, want one failure within 100 ms", p.a.Failed)
	}
	p.w.For(time.Minute)
	p.empty()
}

// A gateway that refuses over TCP is followed by the next one, over UDP first.
func TestTCPNextGateway(t *testing.T) {
	p := newPair(t, pairOptions{both: withTCP(ike.TCPFallback), edit: func(p *pair) {
		p.ca.Remote = []netip.AddrPort{netip.AddrPortFrom(addrC, 500), netip.AddrPortFrom(addrB, 500)}
	}})
	p.up()
	if s := p.a.Endpoint.Snapshot()[0]; s.Path.Stream != 0 {
		t.Errorf("path %v, want UDP", s.Path)
	}
}

// RFC 9329, sections 7.2 and 7.3: a new IKE SA in an old one's place begins with UDP again.
func TestTCPReauthenticationBeginsWithUDP(t *testing.T) {
	for _, who := range []string{"A", "B"} {
		p := newPair(t, pairOptions{both: withTCP(ike.TCPFallback)})
		cut := true
		p.w.Tap = func(netip.AddrPort, netip.AddrPort, []byte) bool { return !cut }
		p.up()
		p.onTCP()
		cut = false
		n := p.a
		if who == "B" {
			n = p.b
		}
		if err := n.Endpoint.Reauthenticate(n.Endpoint.Snapshot()[0].ID); err != nil {
			t.Fatal(err)
		}
		p.w.For(30 * time.Second)
		p.counts(1, 1)
		p.carries()
		if s := n.Endpoint.Snapshot()[0]; s.Path.Stream != 0 {
			t.Errorf("%s: path %v, want UDP", who, s.Path)
		}
		if k := p.a.Streams() + p.b.Streams(); k != 0 {
			t.Errorf("%s: %d ends of TCP connections are left", who, k)
		}
	}
}

// RFC 9329, section 7.5: no fragments on a TCP connection; they are understood.
func TestTCPNoFragments(t *testing.T) {
	small := func(c *ike.Config) { c.FragmentSize = 512 }
	p := newPair(t, pairOptions{both: withTCP(ike.TCPAlways), ea: small, eb: small})
	p.up()
	if strings.Contains(p.w.Diary(), "fragment") {
		t.Error("fragments were sent")
	}
}

// RFC 9329, section 7.3: resumption chooses its transport from scratch; the ticket is as good over TCP.
func TestTCPResume(t *testing.T) {
	for _, mode := range []ike.TCPMode{ike.TCPFallback, ike.TCPAlways} {
		r := newResuming(t, pairOptions{both: withTCP(mode)})
		r.up()
		r.crash(nil)
		if n := r.a.Streams(); n != 0 {
			t.Errorf("%d TCP connections are left", n)
		}
		sent := noUDP(r.w, nil)
		r.up()
		r.onTCP()
		for _, n := range []*iketest.Node{r.a, r.b} {
			if !ikeOf(t, n).Resumed {
				t.Errorf("mode %v: %s did not resume", mode, n.Name)
			}
		}
		if want := map[ike.TCPMode]int{ike.TCPFallback: 3}[mode]; len(*sent) != want {
			t.Errorf("mode %v: %d datagrams over UDP, want %d", mode, len(*sent), want)
		}
	}
}
