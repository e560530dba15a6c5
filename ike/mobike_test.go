package ike_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
)

var (
	addrA2 = netip.MustParseAddr("198.51.100.1")
	addrB2 = netip.MustParseAddr("198.51.100.2")
	addrA6 = netip.MustParseAddr("2001:db8::a")
	addrB6 = netip.MustParseAddr("2001:db8::b")
)

func mobile(c *ike.PeerConfig) { c.Mobike = true }

// newMobile is a pair with MOBIKE whose ends know their addresses.
func newMobile(t testing.TB, o pairOptions) *pair {
	t.Helper()
	both := o.both
	o.both = func(c *ike.PeerConfig) {
		mobile(c)
		if both != nil {
			both(c)
		}
	}
	p := newPair(t, o)
	p.a.Move(addrA)
	p.b.Move(addrB)
	return p
}

// at expects both ends, and their CHILD SAs, to use these addresses.
func (p *pair) at(a, b netip.Addr) {
	p.t.Helper()
	for _, n := range []*iketest.Node{p.a, p.b} {
		l, r := a, b
		if n == p.b {
			l, r = b, a
		}
		s := n.Endpoint.Snapshot()
		if len(s) != 1 || s[0].Path.Local.Addr() != l || s[0].Path.Remote.Addr() != r {
			p.t.Errorf("%s: %d IKE SAs, %+v; want %v to %v", n.Name, len(s), s, l, r)
			continue
		}
		if len(n.Paths) > 0 {
			if last := n.Paths[len(n.Paths)-1]; last.Local.Addr() != l || last.Remote.Addr() != r {
				p.t.Errorf("%s sends data by %v", n.Name, last)
			}
		}
	}
	p.counts(1, 1)
	p.carries()
}

// TestMobikePort: both ends use port 4500 without a NAT, and ESP is not encapsulated.
func TestMobikePort(t *testing.T) {
	t.Parallel()
	p := newMobile(t, pairOptions{})
	p.up()
	if i := ikeOf(t, p.a); i.Path.Local.Port() != 4500 || i.Path.Remote.Port() != 4500 || i.Path.Encap {
		t.Errorf("A uses %v", i.Path)
	}
}

// TestMobikeMoves: either end gets another address, several times, to the other family and back; also
// while rekeys are under way and packets get lost.
func TestMobikeMoves(t *testing.T) {
	t.Parallel()
	for name, rekey := range map[string]func(p *pair){
		"quiet":          func(*pair) {},
		"while A rekeys": func(p *pair) { _ = p.a.Endpoint.RekeyIKE(ikeOf(p.t, p.a).ID) },
		"while B rekeys": func(p *pair) { _ = p.b.Endpoint.RekeyIKE(ikeOf(p.t, p.b).ID) },
		"while a CHILD SA is rekeyed": func(p *pair) {
			_ = p.a.Endpoint.RekeyChild(childOf(p.t, p.a).ID)
			_ = p.b.Endpoint.RekeyChild(childOf(p.t, p.b).ID)
		},
	} {
		for _, loss := range []float64{0, 0.15} {
			t.Run(name+map[bool]string{true: ", lossy"}[loss > 0], func(t *testing.T) {
				t.Parallel()
				p := newMobile(t, pairOptions{})
				p.up()
				p.w.Link.Loss = loss
				step := func(f func()) {
					rekey(p)
					f()
					p.w.Link.Loss = loss
					p.w.For(30 * time.Second)
					p.w.Link.Loss = 0
					p.w.For(90 * time.Second)
				}
				step(func() { p.a.Move(addrA2) })
				p.at(addrA2, addrB)
				step(func() { p.b.Move(addrB2) })
				p.at(addrA2, addrB2)
				step(func() { p.b.Move(addrB2, addrB6) })
				p.at(addrA2, addrB2)
				step(func() { p.a.Move(addrA6) })
				p.at(addrA6, addrB6)
				step(func() { p.a.Move(addrA, addrA6) })
				p.at(addrA6, addrB6)
				step(func() { p.a.Move(addrA) })
				p.at(addrA, addrB2)
			})
		}
	}
}

// TestMobikeNotAnnounced: with one end alone nothing moves.
func TestMobikeNotAnnounced(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(p *pair){
		"by A": func(p *pair) { p.cb.Mobike = true }, "by B": func(p *pair) { p.ca.Mobike = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{edit: edit})
			p.a.Move(addrA)
			p.b.Move(addrB)
			p.up()
			p.a.Move(addrA2)
			p.w.For(10 * time.Second)
			if i := p.b.Endpoint.Snapshot(); len(i) == 1 && i[0].Path.Remote.Addr() == addrA2 {
				t.Error("B followed")
			}
		})
	}
}

// TestMobikeDeadPath: the path in use carries nothing any more; the initiator finds another pair of
// addresses, also when the answer comes from one that it does not expect.
func TestMobikeDeadPath(t *testing.T) {
	t.Parallel()
	p := newMobile(t, pairOptions{})
	p.a.Move(addrA, addrA2)
	p.b.Move(addrB, addrB2)
	p.up()
	p.w.Tap = func(from, to netip.AddrPort, _ []byte) bool {
		return from.Addr() != addrB && to.Addr() != addrB && from.Addr() != addrA && to.Addr() != addrA
	}
	p.w.For(3 * time.Minute)
	p.at(addrA2, addrB2)
}

// TestMobikeNAT: a NAT appears, changes its port, and goes again.
func TestMobikeNAT(t *testing.T) {
	t.Parallel()
	p := newMobile(t, pairOptions{})
	p.up()
	nat := &iketest.NAT{Inside: addrA2, Outside: addrC, Shift: 1000}
	p.w.AddNAT(nat)
	p.a.Move(addrA2)
	p.w.For(5 * time.Second)
	expect := func(port uint16, behind bool, remote netip.Addr) {
		t.Helper()
		a, b := p.a.Endpoint.Snapshot()[0], p.b.Endpoint.Snapshot()[0]
		if a.NATLocal != behind || b.NATRemote != behind || a.Path.Encap != behind || b.Path.Encap != behind || b.Path.Remote != netip.AddrPortFrom(remote, port) {
			t.Errorf("A %+v, B %+v", a.SAInfo, b.SAInfo)
		}
		p.carries()
	}
	expect(5500, true, addrC)
	nat.Shift = 2000 // it was rebooted
	p.w.For(time.Minute)
	expect(6500, true, addrC)
	p.a.Move(addrA)
	p.w.For(5 * time.Second)
	expect(4500, false, addrA)
}

// TestMobikeNATWithinTheHandshake: a NAT gets between the ends after IKE_SA_INIT. The responder goes on where it
// knows the initiator, at the port of NAT traversal and not at one that only the NAT has, until the initiator
// has found out.
func TestMobikeNATWithinTheHandshake(t *testing.T) {
	t.Parallel()
	p := newMobile(t, pairOptions{})
	p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
		if _, response := exchangeOf(msg); response {
			p.w.AddNAT(&iketest.NAT{Inside: addrA, Outside: addrC, Shift: 1000})
			p.w.Tap = nil
		}
		return true
	}
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(5 * time.Second)
	if b := p.b.Endpoint.Snapshot(); len(b) != 1 || b[0].Path.Remote != netip.AddrPortFrom(addrA, 4500) {
		t.Errorf("B: %+v; want it to send to %v, port 4500", b, addrA)
	}
	p.w.For(5 * time.Minute)
	if b := p.b.Endpoint.Snapshot(); len(b) != 1 || b[0].Path.Remote != netip.AddrPortFrom(addrC, 5500) || !b[0].NATRemote {
		t.Errorf("B: %+v; want the NAT to be known", b)
	}
	p.carries()
}

// TestMobikeReturnRoutability: B sends data to A's new address only when A has answered from there;
// until then it goes to the old one.
func TestMobikeReturnRoutability(t *testing.T) {
	t.Parallel()
	p := newMobile(t, pairOptions{})
	p.up()
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		_, response := exchangeOf(msg)
		return to.Addr() != addrA2 || response // B's question does not get through
	}
	p.a.Move(addrA2)
	p.w.For(20 * time.Second)
	if len(p.b.Paths) > 0 || ikeOf(t, p.b).Path.Remote.Addr() != addrA {
		t.Errorf("B sends data by %v", p.b.Paths)
	}
	p.w.Tap = nil
	p.w.For(time.Minute)
	p.at(addrA2, addrB)
}

// TestMobikeHostile: what a packet's source says, replayed or under the keys of the responder, moves
// nothing; a COOKIE2 that is not repeated ends the IKE SA.
func TestMobikeHostile(t *testing.T) {
	t.Parallel()
	inject := func(p *pair, n, to *iketest.Node, from netip.Addr, ps message.Payloads) {
		next, _ := n.Endpoint.IDs()
		_, msgs := n.Endpoint.Forge(37, next, false, ps)
		p.w.Deliver(netip.AddrPortFrom(from, 4500), netip.AddrPortFrom(to.Addr, 4500), msgs[0])
		p.w.For(time.Second)
	}
	t.Run("another source", func(t *testing.T) {
		t.Parallel()
		p := newMobile(t, pairOptions{})
		p.up()
		inject(p, p.a, p.b, addrC, nil)
		p.at(addrA, addrB)
	})
	t.Run("replayed from elsewhere", func(t *testing.T) {
		t.Parallel()
		p := newMobile(t, pairOptions{})
		p.up()
		var sent [][]byte
		p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
			if from.Addr() == addrA2 {
				sent = append(sent, bytes.Clone(msg))
			}
			return true
		}
		p.a.Move(addrA2)
		p.w.For(time.Second)
		for _, msg := range sent {
			p.w.Deliver(netip.AddrPortFrom(addrC, 4500), netip.AddrPortFrom(addrB, 4500), msg)
		}
		p.w.For(5 * time.Second)
		p.at(addrA2, addrB)
		// An older update, once more, after a newer one.
		p.a.Move(addrA)
		p.w.For(time.Second)
		for _, msg := range sent {
			p.w.Deliver(netip.AddrPortFrom(addrA2, 4500), netip.AddrPortFrom(addrB, 4500), msg)
		}
		p.w.For(5 * time.Second)
		p.at(addrA, addrB)
	})
	t.Run("update by the responder", func(t *testing.T) {
		t.Parallel()
		p := newMobile(t, pairOptions{})
		p.up()
		inject(p, p.b, p.a, addrC, message.Payloads{message.NewNotify(message.NotifyUpdateSAAddresses)})
		if ikeOf(t, p.a).Path.Remote.Addr() != addrB || len(p.a.Paths) > 0 {
			t.Error("A followed")
		}
	})
	for name, from := range map[string]netip.Addr{"to nowhere": netip.IPv4Unspecified(), "to many": netip.MustParseAddr("224.0.0.1"), "to itself": netip.MustParseAddr("127.0.0.1")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newMobile(t, pairOptions{})
			p.up()
			inject(p, p.a, p.b, from, message.Payloads{message.NewNotify(message.NotifyUpdateSAAddresses)})
			if ikeOf(t, p.b).Path.Remote.Addr() != addrA || len(p.b.Refusals) == 0 {
				t.Errorf("B uses %v", ikeOf(t, p.b).Path)
			}
		})
	}
	t.Run("NATs not allowed", func(t *testing.T) {
		t.Parallel()
		p := newMobile(t, pairOptions{})
		p.up()
		at := func(a netip.Addr) []byte {
			return append(append(a.AsSlice(), addrB.AsSlice()...), 0x11, 0x94, 0x11, 0x94)
		}
		update := message.NewNotify(message.NotifyUpdateSAAddresses)
		inject(p, p.a, p.b, addrC, message.Payloads{update, message.NewNotify(message.NotifyNoNATsAllowed, at(addrA)...)})
		if p.b.Endpoint.Snapshot()[0].Path.Remote.Addr() != addrA || !slices.Contains(p.b.Codes(), ike.CodeUnexpected) {
			t.Errorf("B refused %s", texts(p.b.Refusals))
		}
	})
	t.Run("no COOKIE2", func(t *testing.T) {
		t.Parallel()
		p := newMobile(t, pairOptions{})
		p.up()
		p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
			if from.Addr() == addrA2 && msg[18] == 37 {
				_, msgs := p.b.Endpoint.Forge(37, uint32(msg[20])<<24|uint32(msg[23]), true, nil)
				p.w.Deliver(to, from, msgs[0])
				return false
			}
			return true
		}
		p.a.Move(addrA2)
		p.w.For(2 * time.Second)
		p.w.Tap = nil
		if len(p.a.Children) > 0 || !slices.Contains(p.a.Codes(), ike.CodeSyntax) {
			t.Errorf("A refused %s", texts(p.a.Refusals))
		}
	})
	t.Run("a flood of addresses", func(t *testing.T) {
		t.Parallel()
		p := newMobile(t, pairOptions{})
		p.up()
		var ps message.Payloads
		for i := range 60 {
			ps = append(ps, message.NewNotify(message.NotifyAdditionalIP4Address, 203, 0, 113, byte(i)))
		}
		ps = append(ps, message.NewNotify(message.NotifyAdditionalIP6Address, 1, 2, 3), message.NewNotify(message.NotifyAdditionalIP4Address), message.NewNotify(message.NotifyCookie2, 1))
		inject(p, p.b, p.a, addrB, ps)
		p.at(addrA, addrB)
	})
}

// TestMobikeResumed: a resumed IKE SA moves, too.
func TestMobikeResumed(t *testing.T) {
	t.Parallel()
	r := newResuming(t, pairOptions{both: mobile})
	r.a.Move(addrA)
	r.up()
	r.crash(nil)
	r.b.Move(addrB)
	r.up()
	r.resumed()
	r.a.Move(addrA2)
	r.w.For(5 * time.Second)
	r.at(addrA2, addrB)
}
