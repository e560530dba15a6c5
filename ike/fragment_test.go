package ike_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/message"
)

// fragmented is a pair that stands, and what B answers to A.
type fragmented struct {
	*pair
	answers int
	id      uint32 // of A's next request
}

func newFragmented(t testing.TB) *fragmented {
	p := &fragmented{pair: newPair(t, pairOptions{both: func(c *ike.PeerConfig) {
		psk(c)
		c.LivenessInterval = -1 // it takes the message ID
	}})}
	p.up()
	p.id, _ = p.a.Endpoint.IDs()
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if x, response := exchangeOf(msg); from.Addr() == addrB && x == 37 && response {
			p.answers++
		}
		return true
	}
	return p
}

// deleting is an INFORMATIONAL request of A that deletes the CHILD SA, with n octets beside, in fragments.
func (p *fragmented) deleting(size, n int) [][]byte {
	return p.a.Endpoint.ForgeSized(37, p.id, false, size, message.Payloads{
		&message.VendorID{Data: make([]byte, n)},
		&message.Delete{Protocol: message.ProtocolESP, SPIs: []uint32{childOf(p.t, p.a).SPIIn}},
	})
}

func (p *fragmented) deliver(msgs ...[]byte) {
	for _, m := range msgs {
		p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), m)
	}
	p.w.For(time.Millisecond)
}

// done expects that B has carried out the request, and answered so often.
func (p *fragmented) done(what string, yes bool, answers int) {
	p.t.Helper()
	if got := len(p.b.Children) == 0; got != yes || p.answers != answers {
		p.t.Errorf("%s: carried out: %v, want %v; %d answers, want %d", what, got, yes, p.answers, answers)
	}
	p.sound()
}

func spoilt(m []byte, at int) []byte {
	m = bytes.Clone(m)
	if at < 0 {
		at += len(m)
	}
	m[at] ^= 1
	return m
}

// TestFragmentsByTheRules: RFC 7383, sections 2.5 and 2.6, in an IKE SA that stands.
func TestFragmentsByTheRules(t *testing.T) {
	t.Parallel()
	for name, play := range map[string]func(p *fragmented, f [][]byte){
		"in order": func(p *fragmented, f [][]byte) { p.deliver(f...) },
		"backwards": func(p *fragmented, f [][]byte) {
			slices.Reverse(f)
			p.deliver(f...)
		},
		"each twice": func(p *fragmented, f [][]byte) {
			for _, m := range f[:len(f)-1] {
				p.deliver(m, m)
			}
			p.done("one is missing", false, 0)
			p.deliver(f[len(f)-1])
		},
		"the first one missing, then all again": func(p *fragmented, f [][]byte) {
			p.deliver(f[1:]...)
			p.done("the first one is missing", false, 0)
			p.deliver(f[0])
		},
		"again in smaller pieces": func(p *fragmented, f [][]byte) {
			p.deliver(f[:len(f)-1]...)
			small := p.deleting(400, 3000)
			p.deliver(small[:3]...)
			p.deliver(f[len(f)-1]) // of the set that was given up
			p.done("pieces of two sizes", false, 0)
			p.deliver(small[3:]...)
		},
		"again in larger pieces, which do not count": func(p *fragmented, f [][]byte) {
			p.deliver(f[:len(f)-1]...)
			p.deliver(p.deleting(1000, 3000)...)
			p.done("fewer pieces than before", false, 0)
			p.deliver(f[len(f)-1])
		},
		"again in one piece": func(p *fragmented, f [][]byte) {
			p.deliver(f[:2]...)
			p.deliver(p.a.Endpoint.ForgeSized(37, p.id, false, 60000, message.Payloads{&message.Delete{Protocol: message.ProtocolESP, SPIs: []uint32{childOf(p.t, p.a).SPIIn}}})...)
			p.done("one fragment is fewer than what came before", false, 0)
			_, whole := p.a.Endpoint.Forge(37, p.id, false, message.Payloads{&message.Delete{Protocol: message.ProtocolESP, SPIs: []uint32{childOf(p.t, p.a).SPIIn}}})
			p.deliver(whole...)
		},
		"between forged ones": func(p *fragmented, f [][]byte) {
			more := bytes.Clone(f[0])
			more[35]++ // one fragment more, it says
			for _, m := range f {
				p.deliver(spoilt(m, -1), spoilt(m, 60), more, m)
			}
		},
		"late, then in time": func(p *fragmented, f [][]byte) {
			p.deliver(f[:2]...)
			if n := p.b.Endpoint.Fragments(); n != 2 {
				p.t.Errorf("%d fragments wait, want 2", n)
			}
			p.w.For(31 * time.Second)
			if n := p.b.Endpoint.Fragments(); n != 0 {
				p.t.Errorf("%d fragments wait after 31 s", n)
			}
			p.deliver(f[2:]...)
			p.done("some came too late", false, 0)
			p.deliver(f[:2]...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newFragmented(t)
			f := p.deleting(600, 3000)
			if len(f) < 5 {
				t.Fatalf("%d fragments", len(f))
			}
			play(p, slices.Clone(f))
			p.done("all is there", true, 1)
			if n := p.b.Endpoint.Fragments(); n != 0 {
				t.Errorf("%d fragments are left", n)
			}
			if name == "again in one piece" {
				return
			}
			// A repetition: the answer again, once for all its fragments (section 2.6.1).
			p.deliver(f...)
			if name != "again in smaller pieces" {
				p.done("all again", true, 2)
			}
			p.deliver(spoilt(f[0], -1))
			p.deliver(f[1:]...)
			if p.answers > 2 {
				t.Errorf("%d answers", p.answers)
			}
		})
	}
}

// TestFragmentsOfBothDirections: a request and an answer of one peer are put together side by side.
func TestFragmentsOfBothDirections(t *testing.T) {
	t.Parallel()
	p := newFragmented(t)
	held := false
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		x, response := exchangeOf(msg)
		if from.Addr() == addrB && x == 37 && response {
			p.answers++
		}
		if from.Addr() == addrB && x == 36 && !response {
			held = true
			return false // A does not get it: its answer is made below
		}
		return true
	}
	next, _ := p.b.Endpoint.IDs()
	if err := p.b.Endpoint.RekeyIKE(ikeOf(t, p.b).ID); err != nil {
		t.Fatal(err)
	}
	p.w.For(time.Millisecond)
	request := p.a.Endpoint.ForgeSized(37, p.id, false, 600, message.Payloads{&message.VendorID{Data: make([]byte, 3000)}})
	answer := p.a.Endpoint.ForgeSized(36, next, true, 500, message.Payloads{&message.VendorID{Data: make([]byte, 3000)}, message.NewNotify(message.NotifyNoAdditionalSAs)})
	if !held || len(request) < 4 || len(answer) < 5 {
		t.Fatal(held, len(request), len(answer))
	}
	for i := range max(len(request), len(answer)) {
		if i < len(answer) {
			p.deliver(answer[len(answer)-1-i])
		}
		if i < len(request) {
			p.deliver(request[i])
		}
	}
	if p.answers != 1 {
		t.Errorf("%d answers to the request", p.answers)
	}
	if _, pending := p.b.Endpoint.IDs(); pending || !slices.Contains(p.b.Codes(), ike.CodePeerRefused) {
		t.Errorf("the answer did not count: pending %v, refused %s", pending, texts(p.b.Refusals))
	}
	p.counts(1, 1)
	p.sound()
}

// TestHostileFragments: more than may be kept ends the IKE SA (RFC 7383, section 5) where it is authentic;
// numbers that make no sense, and what nobody announced, are dropped.
func TestHostileFragments(t *testing.T) {
	t.Parallel()
	t.Run("more than 64 KiB", func(t *testing.T) {
		t.Parallel()
		p := newFragmented(t)
		three := p.a.Endpoint.ForgeSized(37, p.id, false, 30000, message.Payloads{&message.VendorID{Data: make([]byte, 60000)}, &message.VendorID{Data: make([]byte, 20000)}})
		p.deliver(three...)
		if len(p.b.IKE) != 0 {
			t.Errorf("B goes on after %d octets, %s", 80000, texts(p.b.Refusals))
		}
		if n := p.b.Endpoint.Fragments(); n != 0 {
			t.Errorf("%d fragments are left", n)
		}
		p.sound()
	})
	t.Run("numbers", func(t *testing.T) {
		t.Parallel()
		p := newFragmented(t)
		f := p.deleting(600, 3000)
		for _, n := range [][2]uint16{{0, 6}, {7, 6}, {1, 0}, {0, 0}, {65535, 65535}, {1, 256}, {1, 65535}, {255, 254}} {
			m := bytes.Clone(f[0])
			m[32], m[33], m[34], m[35] = byte(n[0]>>8), byte(n[0]), byte(n[1]>>8), byte(n[1])
			p.deliver(m)
		}
		m := bytes.Clone(f[1])
		m[28] = 33 // a later fragment names no payload
		p.deliver(m)
		if n := p.b.Endpoint.Fragments(); n != 0 {
			t.Errorf("%d fragments wait", n)
		}
		p.done("nothing authentic came", false, 0)
		p.deliver(f...)
		p.done("all is there", true, 1)
	})
	t.Run("255", func(t *testing.T) {
		t.Parallel()
		p := newFragmented(t)
		f := p.deleting(28+8+8+16+1+100, 25200)
		if len(f) < 250 || len(f) > 255 {
			t.Fatalf("%d fragments", len(f))
		}
		for _, m := range f { // no more than a box's queue holds at once
			p.deliver(m)
		}
		p.done("all is there", true, 1)
	})
	t.Run("not announced", func(t *testing.T) {
		t.Parallel()
		p := newFragmented(t)
		p.b.Endpoint.NoFragments()
		p.deliver(p.deleting(600, 3000)...)
		p.done("nobody announced fragments", false, 0)
		if n := p.b.Endpoint.Fragments(); n != 0 {
			t.Errorf("%d fragments wait", n)
		}
	})
	t.Run("IKE_SA_INIT", func(t *testing.T) {
		t.Parallel()
		p := newFragmented(t)
		p.w.Tap = func(from, to netip.AddrPort, _ []byte) bool {
			if to.Addr() == addrC {
				t.Errorf("%v answers", from)
			}
			return true
		}
		for _, f := range p.a.Endpoint.ForgeSized(34, 0, false, 600, message.Payloads{&message.VendorID{Data: make([]byte, 3000)}}) {
			p.w.Deliver(netip.AddrPortFrom(addrC, 500), netip.AddrPortFrom(addrB, 500), f)
			for i := range 8 {
				f[8+i] = 0
			}
			p.w.Deliver(netip.AddrPortFrom(addrC, 500), netip.AddrPortFrom(addrB, 500), f)
		}
		p.w.For(time.Second)
		if n := p.b.Endpoint.HalfOpen(); n != 0 {
			t.Errorf("%d IKE SAs are half-open", n)
		}
	})
}

// TestNoFragmentsWithoutAnnouncement: with a peer that does not announce RFC 7383 nothing is sent in fragments,
// however long it is; with one that does, nothing that is short enough.
func TestNoFragmentsWithoutAnnouncement(t *testing.T) {
	t.Parallel()
	for _, announced := range []bool{false, true} {
		p := newPair(t, pairOptions{ea: func(c *ike.Config) { c.FragmentSize = 600 }})
		whole, fragments := 0, 0
		p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
			switch x, response := exchangeOf(msg); {
			case x == 34 && response && !announced:
				// As from a peer without; what is sent next does not depend on the proof that follows.
				m := must(message.Parse(msg))
				m.Payloads = slices.DeleteFunc(m.Payloads, func(p message.Payload) bool {
					n, ok := p.(*message.Notify)
					return ok && n.Type == message.NotifyFragmentationSupported
				})
				p.w.Deliver(from, to, must(message.Encode(m.Header, m.Payloads)))
				return false
			case x == 34 || from.Addr() != addrA:
			case msg[16] == 53:
				fragments++
			default:
				whole = max(whole, len(msg))
			}
			return true
		}
		initiate(t, p.a, "a-b")
		p.w.For(100 * time.Millisecond)
		if announced && (fragments < 3 || whole > 600) || !announced && (fragments > 0 || whole < 1200) {
			t.Errorf("announced: %v, but %d fragments and %d octets in one piece", announced, fragments, whole)
		}
	}
}

// TestAllFragmentsAreRepeated: a request that is not answered is repeated with all its fragments, the same
// octets (RFC 7383, section 2.6.1; RFC 7296, section 2.1).
func TestAllFragmentsAreRepeated(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	rounds := [][][]byte{}
	var last time.Time
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		x, response := exchangeOf(msg)
		if from.Addr() != addrA || x != 35 || response {
			return true
		}
		if p.w.Now().Sub(last) > 100*time.Millisecond {
			rounds = append(rounds, nil)
		}
		last = p.w.Now()
		rounds[len(rounds)-1] = append(rounds[len(rounds)-1], bytes.Clone(msg))
		return len(rounds[len(rounds)-1]) > 1 // the first fragment is always lost
	}
	initiate(t, p.a, "a-b")
	p.w.For(10 * time.Second)
	if len(rounds) < 3 || len(rounds[0]) < 2 {
		t.Fatalf("%d rounds of %d", len(rounds), len(rounds[0]))
	}
	for _, r := range rounds[1:] {
		if !slices.EqualFunc(r, rounds[0], bytes.Equal) {
			t.Errorf("%d fragments in another form, %d at first", len(r), len(rounds[0]))
		}
	}
}
