package ike_test

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/internal/testvectors"
)

func malformed(tb testing.TB) [][]byte {
	tb.Helper()
	var f struct {
		Messages []struct {
			Payload string `json:"udp_payload"`
		}
	}
	testvectors.JSON(tb, "malformed/ike_messages.json", &f)
	var out [][]byte
	for i, m := range f.Messages {
		b, err := hex.DecodeString(m.Payload)
		if err != nil {
			tb.Fatalf("message %d: %v", i, err)
		}
		out = append(out, b)
	}
	if len(out) < 300 {
		tb.Fatalf("%d malformed messages, want 303", len(out))
	}
	return out
}

// faces returns the message as it is, without a non-ESP marker, and addressed to the IKE SAs of
// node, as request and as response.
func faces(n *iketest.Node, msg []byte) [][]byte {
	out := [][]byte{msg}
	if bytes.HasPrefix(msg, []byte{0, 0, 0, 0}) {
		out = append(out, msg[4:])
		msg = msg[4:]
	}
	if len(msg) < 28 {
		return out
	}
	for _, s := range n.Endpoint.Snapshot() {
		for _, flags := range []byte{0x08, 0x28, 0x00, 0x20} {
			m := slices.Clone(msg)
			for i := range 8 {
				m[i], m[8+i] = byte(s.SPIi>>(56-8*i)), byte(s.SPIr>>(56-8*i))
			}
			m[17], m[19] = 0x20, flags
			m[24], m[25], m[26], m[27] = 0, 0, byte(len(m)>>8), byte(len(m))
			out = append(out, m)
		}
	}
	return out
}

// TestMalformed sends the 303 malformed messages to a router with an IKE SA that stands and one
// that is half-open: nothing happens to either, and nothing is left behind.
func TestMalformed(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	halfOpen(t, p)
	for _, m := range malformed(t) {
		for _, f := range faces(p.b, m) {
			for _, from := range []netip.Addr{addrA, addrC} {
				p.w.Deliver(netip.AddrPortFrom(from, 500), netip.AddrPortFrom(addrB, 500), f)
				p.w.Deliver(netip.AddrPortFrom(from, 4500), netip.AddrPortFrom(addrB, 4500), f)
			}
		}
		p.w.For(time.Millisecond)
	}
	p.w.For(31 * time.Second)
	p.counts(1, 1)
	p.carries()
	if got := p.b.Endpoint.HalfOpen(); got != 0 {
		t.Errorf("%d half-open IKE SAs are left", got)
	}
	p.rekeyEverything()
	for _, s := range []string{"rusticata/ike-sa-init-req.bin"} {
		p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), testvectors.Read(t, "malformed/"+s))
	}
	p.w.For(31 * time.Second)
	p.carries()
}

// TestEveryExchangeInTheClear sends a message without anything encrypted, in every exchange and as
// request and response, to an IKE SA that stands and one that is half-open (found by
// FuzzHandleDatagram: IKE_SESSION_RESUME, which may come in the clear, panicked).
func TestEveryExchangeInTheClear(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	halfOpen(t, p)
	for exchange := range 256 {
		for _, flags := range []byte{0, 8, 32, 40} {
			for id := range byte(8) {
				m := make([]byte, 28)
				m[0], m[17], m[18], m[19], m[23], m[27] = 1, 0x20, byte(exchange), flags, id, 28
				for _, f := range faces(p.b, m) {
					p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), f)
				}
			}
		}
		p.w.For(time.Millisecond)
	}
	p.w.For(31 * time.Second)
	p.counts(1, 1)
	p.carries()
}

// halfOpen has A's IKE_SA_INIT request repeated from another address with another SPI, which B
// answers.
func halfOpen(t testing.TB, p *pair) {
	t.Helper()
	c, err := p.w.NewNode("C", addrC, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Endpoint.SetPeers([]*ike.PeerConfig{p.ca}); err != nil {
		t.Fatal(err)
	}
	tap := p.w.Tap
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool { return from.Addr() != addrC || msg[18] == 34 }
	if err := c.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.Until(time.Second, func() bool { return p.b.Endpoint.HalfOpen() == 1 })
	p.w.For(20 * time.Millisecond)
	p.w.Tap = tap
	if n := p.b.Endpoint.HalfOpen(); n != 1 {
		t.Fatalf("%d IKE SAs are half-open, want 1", n)
	}
	c.Endpoint.Terminate("a-b", "enough")
}

// FuzzHandleDatagram throws octets at a router with an IKE SA that stands and one that is
// half-open. Without the keys nothing may happen to what stands.
func FuzzHandleDatagram(f *testing.F) {
	for _, m := range malformed(f) {
		if len(m) < 2000 {
			f.Add(m)
		}
	}
	var p *pair // one world for many inputs: what stands must stand whatever came before
	lives := 0
	f.Fuzz(func(t *testing.T, msg []byte) {
		if lives++; p == nil || lives%500 == 0 {
			p = newPair(t, pairOptions{both: psk})
			p.up()
		}
		p.t = t
		defer func() {
			if t.Failed() {
				p = nil // what broke it must not show in the inputs that follow
			}
		}()
		p.w.Forget()
		halfOpen(t, p)
		for _, m := range faces(p.b, msg) {
			p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), m)
		}
		p.w.For(31 * time.Second)
		p.counts(1, 1)
		p.carries()
		if got := p.b.Endpoint.HalfOpen(); got != 0 {
			t.Errorf("%d half-open IKE SAs are left", got)
		}
	})
}

// FuzzProtected has a peer with the right keys send anything, in the state that the first octet
// chooses. The IKE SA may end, but nothing may panic, no rule may be broken, and once the peer is
// gone nothing may be left.
func FuzzProtected(f *testing.F) {
	f.Add(byte(0), byte(35), byte(35), []byte{39, 0, 0, 12, 2, 0, 0, 0, 'a', 'b', 'c', 'd', 0, 0, 0, 9, 2, 0, 0, 0, 1})
	f.Add(byte(1), byte(37), byte(42), []byte{0, 0, 0, 8, 1, 0, 0, 0})
	f.Add(byte(1), byte(37), byte(42), []byte{0, 0, 0, 12, 3, 4, 0, 1, 1, 2, 3, 4})
	f.Add(byte(1), byte(36), byte(41), []byte{0, 0, 0, 12, 3, 4, 64, 9, 1, 2, 3, 4})
	f.Add(byte(2), byte(36), byte(33), []byte{0, 0, 0, 4})
	f.Add(byte(3), byte(37), byte(0), []byte{})
	f.Add(byte(4), byte(36), byte(41), []byte{0, 0, 0, 8, 0, 0, 0, 14})
	f.Fuzz(func(t *testing.T, state, exchange, first byte, plain []byte) {
		if len(plain) > 60000 {
			return
		}
		o := pairOptions{both: psk}
		if state%5 == 0 {
			o.both = nil // two rounds: speak between them
		}
		p := newPair(t, o)
		if state%5 == 0 {
			done := false
			p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
				if from.Addr() == addrA && msg[18] == 35 && msg[23] == 2 && !done {
					done = true
					for _, m := range p.a.Endpoint.ForgeRaw(exchange, 2, false, first, plain) {
						p.w.Deliver(from, to, m)
					}
				}
				return from.Addr() != addrA || msg[23] < 2
			}
			if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
			p.w.For(time.Second)
			if len(p.b.IKE)+len(p.b.Children) != 0 {
				t.Error("something came up after the first round")
			}
		} else {
			p.up()
			from, to := netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500)
			switch state % 5 {
			case 1: // a request
				id, _ := p.a.Endpoint.IDs()
				for _, m := range p.a.Endpoint.ForgeRaw(exchange, id, false, first, plain) {
					p.w.Deliver(from, to, m)
				}
			default: // the answer to a request of B
				switch state % 5 {
				case 2:
					_ = p.b.Endpoint.RekeyChild(childOf(t, p.b).ID)
				case 3:
					_ = p.b.Endpoint.DeleteChild(childOf(t, p.b).ID, "test")
				case 4:
					_ = p.b.Endpoint.RekeyIKE(ikeOf(t, p.b).ID)
				}
				done := false
				p.w.Tap = func(f, to netip.AddrPort, msg []byte) bool {
					if f.Addr() == addrB && msg[19]&0x20 == 0 && !done {
						done = true
						for _, m := range p.a.Endpoint.ForgeRaw(msg[18], uint32(msg[23]), true, first, plain) {
							p.w.Deliver(to, f, m)
						}
						return false
					}
					return true
				}
				p.w.For(time.Millisecond)
				p.w.Tap = nil
			}
			p.w.For(time.Second)
		}
		p.sound()
		p.w.Link.Cut = true
		p.w.For(10 * time.Minute)
		p.empty()
		p.sound()
	})
}
