package ike_test

import (
	"net/netip"
	"testing"
	"time"

	"wardgate/ike"
)

// FuzzHybrid has a peer with the right keys send anything where an additional key exchange is due:
// as IKE_INTERMEDIATE request or answer before anybody is known, and as IKE_FOLLOWUP_KE request or
// answer. Nothing may panic, nothing may come up that was not proved, no rule may be broken, and
// nothing may be left.
func FuzzHybrid(f *testing.F) {
	ke := goodKE(f)
	body := append([]byte{0, 0, 4, 168, 0, 36, 0, 0}, ke.Data...)
	f.Add(byte(0), byte(43), byte(34), body)
	f.Add(byte(0), byte(43), byte(34), body[:1000])
	f.Add(byte(0), byte(43), byte(0), []byte{})
	f.Add(byte(0), byte(35), byte(35), []byte{39, 0, 0, 12, 2, 0, 0, 0, 'a', 'b', 'c', 'd', 0, 0, 0, 9, 2, 0, 0, 0, 1})
	f.Add(byte(1), byte(43), byte(34), append([]byte{0, 0, 4, 72, 0, 36, 0, 0}, make([]byte, 1088)...))
	f.Add(byte(1), byte(43), byte(41), []byte{0, 0, 0, 8, 0, 0, 0, 7})
	f.Add(byte(2), byte(44), byte(34), append(append([]byte{41}, body[1:]...), 0, 0, 0, 16, 0, 0, 0x40, 0x39, 0, 0, 0, 0, 0, 0, 0, 1))
	f.Add(byte(2), byte(44), byte(41), []byte{0, 0, 0, 9, 0, 0, 0x40, 0x39, 1})
	f.Add(byte(3), byte(44), byte(34), append([]byte{0, 0, 4, 72, 0, 36, 0, 0}, make([]byte, 1088)...))
	f.Add(byte(3), byte(44), byte(41), []byte{0, 0, 0, 8, 0, 0, 0, 47})
	f.Add(byte(4), byte(44), byte(41), []byte{0, 0, 0, 8, 0, 0, 0, 43})
	from, to := netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500)
	f.Fuzz(func(t *testing.T, state, exchange, first byte, plain []byte) {
		if len(plain) > 20000 {
			return
		}
		p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) {
			psk(c)
			suites(t, hybridIKE, hybridESP)(c)
		}})
		switch state %= 5; state {
		case 0, 1:
			p.instead(addrA, exchangeIs(43, 1), func() [][]byte {
				if state == 0 {
					return p.a.Endpoint.ForgeRaw(exchange, 1, false, first, plain)
				}
				for _, m := range p.b.Endpoint.ForgeRaw(43, 1, true, first, plain) {
					p.w.AfterFunc(time.Millisecond, func() { p.w.Deliver(to, from, m) })
				}
				return nil
			}, false)
			if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
			p.w.For(time.Second)
			if len(p.a.IKE)+len(p.b.IKE)+len(p.a.Children)+len(p.b.Children) != 0 {
				t.Error("something came up")
			}
		case 2:
			p.up()
			id, _ := p.a.Endpoint.IDs()
			p.asked(36, id, hybridChild(4))
			for _, m := range p.a.Endpoint.ForgeRaw(exchange, id+1, false, first, plain) {
				p.w.Deliver(from, to, m)
			}
		default:
			p.up()
			p.instead(addrA, func(msg []byte) bool { return msg[18] == 44 }, func() [][]byte {
				id, _ := p.a.Endpoint.IDs()
				for _, m := range p.b.Endpoint.ForgeRaw(44, id-1, true, first, plain) {
					p.w.AfterFunc(time.Millisecond, func() { p.w.Deliver(to, from, m) })
				}
				return nil
			}, false)
			if state == 3 {
				_ = p.a.Endpoint.RekeyChild(childOf(t, p.a).ID)
			} else {
				_ = p.a.Endpoint.RekeyIKE(ikeOf(t, p.a).ID)
			}
		}
		p.w.For(time.Second)
		p.sound()
		p.w.Link.Cut = true
		p.w.For(10 * time.Minute)
		p.empty()
		p.sound()
	})
}
