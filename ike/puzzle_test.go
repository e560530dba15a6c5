package ike_test

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// always has a responder ask everybody for a puzzle, a cheap one, and an initiator spend little.
func always(c *ike.Config) { c.PuzzleThreshold, c.PuzzleDifficulty, c.PuzzleMaxDifficulty = -1, 8, 10 }

func cheap(c *ike.Config) { c.SolveWork = 1 << 15 }

// seen are the messages in clear that were sent, by what is in them.
func watchInit(w *iketest.World) *[]string {
	var out []string
	w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
		m, err := message.Parse(msg)
		if err != nil || m.Encrypted != nil {
			return true
		}
		var s []string
		for _, p := range m.Payloads {
			switch p := p.(type) {
			case *message.Notify:
				if p.Type == message.NotifyCookie || p.Type == message.NotifyPuzzle {
					s = append(s, p.Type.String())
				}
			case *message.PuzzleSolution, *message.SA:
				s = append(s, p.PayloadType().String())
			}
		}
		out = append(out, strings.Join(s, " "))
		return true
	}
	return &out
}

// TestPuzzle: COOKIE and PUZZLE, the request again with COOKIE and PS in front, nothing kept before (RFC 8019,
// section 7.1), with every PRF, over TCP, with another group asked for, and with a puzzle as hard as the
// responder says.
func TestPuzzle(t *testing.T) {
	t.Parallel()
	type c struct {
		suite string
		eb    func(*ike.Config)
		both  func(*ike.PeerConfig)
		edit  func(*pair)
		fakes int
		more  []string
	}
	for name, c := range map[string]c{
		"sha256":         {suite: "aes256gcm16-prfsha256-x25519"},
		"sha384":         {suite: "aes256gcm16-prfsha384-x25519"},
		"sha512":         {suite: "aes256gcm16-prfsha512-x25519"},
		"hybrid":         {suite: "aes256gcm16-prfsha384-x25519-mlkem768"},
		"TCP":            {suite: defaultIKE, both: withTCP(ike.TCPAlways)},
		"hard":           {suite: defaultIKE, fakes: 80, eb: func(c *ike.Config) { c.MaxHalfOpen = 100 }},
		"another cookie": {suite: defaultIKE, eb: func(c *ike.Config) { c.CookieThreshold = -1 }},
		"another group": {suite: "aes256gcm16-prfsha384-ecp256-x25519", edit: func(p *pair) {
			p.cb.Proposals = proposals(p.t, suite.ProtocolIKE, "aes256gcm16-prfsha384-x25519")
		}, more: []string{"", "COOKIE PS SA"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{ea: cheap, eb: func(cfg *ike.Config) {
				always(cfg)
				if c.eb != nil {
					c.eb(cfg)
				}
			}, both: func(x *ike.PeerConfig) {
				psk(x)
				x.Proposals = proposals(t, suite.ProtocolIKE, c.suite)
				if c.both != nil {
					c.both(x)
				}
			}, edit: c.edit})
			p.b.Endpoint.FakeHalfOpen(c.fakes, addrC, false)
			got := watchInit(p.w)
			if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
			p.w.Until(time.Minute, func() bool { return len(*got) == 2 })
			if n := p.b.Endpoint.HalfOpen(); n != c.fakes {
				t.Errorf("%d half-open IKE SAs while the puzzle is solved", n-c.fakes)
			}
			p.up()
			want := append([]string{"SA", "COOKIE PUZZLE", "COOKIE PS SA"}, append(c.more, "SA")...)
			if name != "TCP" && !slices.Equal(*got, want) { // streams are not watched
				t.Errorf("in clear: %q, want %q", *got, want)
			}
			if d := p.b.Endpoint.Defence(); d.Puzzles != 1 || d.Solved != 1 || d.Unsolved != 0 || d.Level != ike.DefencePuzzle {
				t.Errorf("B: %+v", d)
			}
		})
	}
}

// client is somebody at addrC who sends B what it likes.
type client struct {
	p    *pair
	from netip.AddrPort
	spi  byte
	last message.Payloads
	sa   message.Payloads // of A's request
}

func newClient(p *pair) *client {
	c := &client{p: p, from: netip.AddrPortFrom(addrC, 500), spi: 1}
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		m, err := message.Parse(msg)
		if err != nil || m.Encrypted != nil {
			return true
		}
		if from.Addr() == addrA && c.sa == nil {
			for _, x := range m.Payloads {
				if _, ok := x.(*message.Notify); !ok {
					c.sa = append(c.sa, x)
				}
			}
			return false
		}
		if to.Addr() == c.from.Addr() {
			c.last = m.Payloads
		}
		return true
	}
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		p.t.Fatal(err)
	}
	p.w.For(time.Millisecond)
	p.a.Endpoint.Terminate("a-b", "enough")
	p.w.For(time.Millisecond)
	if c.sa == nil {
		p.t.Fatal("A sent no IKE_SA_INIT")
	}
	return c
}

// ask sends a request with these payloads in front and returns the answer; nil: none came.
func (c *client) ask(front ...message.Payload) message.Payloads {
	return c.askRaw(slices.Concat(front, c.sa))
}

func (c *client) askRaw(ps message.Payloads) message.Payloads {
	c.p.t.Helper()
	raw, err := message.Encode(message.Header{SPIi: message.SPI{c.spi, 0xcc}, Exchange: message.ExchangeIKESAInit, Flags: message.FlagInitiator}, ps)
	if err != nil {
		c.p.t.Fatal(err)
	}
	c.last = nil
	c.p.w.Deliver(c.from, netip.AddrPortFrom(addrB, 500), raw)
	c.p.w.For(time.Millisecond)
	return c.last
}

// puzzle returns the cookie and the puzzle of an answer.
func (c *client) puzzle(ps message.Payloads) (cookie *message.Notify, prf uint16, difficulty int) {
	c.p.t.Helper()
	n, z := ps.Notifies(message.NotifyCookie), ps.Notifies(message.NotifyPuzzle)
	if len(n) != 1 || len(z) != 1 {
		c.p.t.Fatalf("answered with %v, want COOKIE and PUZZLE", ps)
	}
	id, d, err := z[0].Puzzle()
	if err != nil {
		c.p.t.Fatal(err)
	}
	return n[0], uint16(id), int(d)
}

func (c *client) solve(cookie *message.Notify, prf uint16, zeros int) *message.PuzzleSolution {
	c.p.t.Helper()
	s := ike.Solve(prf, cookie.Data, zeros)
	if s == nil {
		c.p.t.Fatal("no solution")
	}
	return &message.PuzzleSolution{Data: s}
}

func isAnswer(ps message.Payloads) bool { return ps.SA() != nil }

// TestPuzzleHostile: what is no solution of the puzzle that was given counts as none (RFC 8019, section 7.1.4).
// Lots are drawn for it: here there is no room left for those.
func TestPuzzleHostile(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk, eb: func(c *ike.Config) { always(c); c.MaxHalfOpen = 100 }})
	ep := p.b.Endpoint
	ep.FakeHalfOpen(60, netip.MustParseAddr("192.0.2.77"), true)
	c := newClient(p)
	fresh := func() (*message.Notify, uint16, int) {
		c.spi++
		return c.puzzle(c.ask())
	}
	cookie0, prf0, asked := fresh()
	if asked != 9 || prf0 != suite.PRFHMACSHA384 {
		t.Fatalf("%d zero bits of PRF %d are asked for, want 9 of the only one offered", asked, prf0)
	}
	elsewhere := c.solve(cookie0, prf0, 10)
	for name, f := range map[string]func(cookie *message.Notify) *message.PuzzleSolution{
		"none":               func(*message.Notify) *message.PuzzleSolution { return nil },
		"for another cookie": func(*message.Notify) *message.PuzzleSolution { return elsewhere },
		"too few zero bits":  func(n *message.Notify) *message.PuzzleSolution { return c.solve(n, prf0, asked-1) },
		"for another PRF":    func(n *message.Notify) *message.PuzzleSolution { return c.solve(n, suite.PRFHMACSHA256, asked+1) },
		"one key four times": func(n *message.Notify) *message.PuzzleSolution {
			return &message.PuzzleSolution{Data: bytes.Repeat(c.solve(n, prf0, asked).Data[:4], 4)}
		},
		"three keys, one twice": func(n *message.Notify) *message.PuzzleSolution {
			d := c.solve(n, prf0, asked).Data
			return &message.PuzzleSolution{Data: append(d[:12:12], d[4:8]...)}
		},
		"more keys than four": func(n *message.Notify) *message.PuzzleSolution {
			d := c.solve(n, prf0, asked).Data
			return &message.PuzzleSolution{Data: append(d, d...)}
		},
		"keys that are too long": func(n *message.Notify) *message.PuzzleSolution {
			return &message.PuzzleSolution{Data: make([]byte, 4*49)}
		},
		"zero": func(n *message.Notify) *message.PuzzleSolution {
			return &message.PuzzleSolution{Data: make([]byte, 16)}
		},
	} {
		before := ep.Defence()
		cookie, prf, _ := fresh()
		front := message.Payloads{cookie}
		if s := f(cookie); s != nil {
			front = append(front, s)
		}
		if prf != prf0 || c.ask(front...) != nil {
			t.Errorf("%s: answered with %v, want silence", name, c.last)
		}
		if d := ep.Defence(); d.HalfOpen != before.HalfOpen || d.Dropped != before.Dropped+1 || d.Solved != before.Solved {
			t.Errorf("%s: %+v, then %+v", name, before, d)
		}
	}
	// The puzzle was of this request: another PRF, an easier one, one of another request.
	for name, change := range map[string]func(b []byte){
		"easier":             func(b []byte) { b[4] = 8 },
		"free":               func(b []byte) { b[4] = 0 },
		"no puzzle":          func(b []byte) { b[6], b[7] = 0, 0 },
		"PRF":                func(b []byte) { b[7] = byte(suite.PRFHMACSHA256) },
		"the third one":      func(b []byte) { b[5] = 3 },
		"longer ago":         func(b []byte) { b[9]-- },
		"of the next secret": func(b []byte) { b[3]++ },
		"MAC":                func(b []byte) { b[len(b)-1] ^= 1 },
	} {
		cookie, prf, _ := fresh()
		forged := message.NewNotify(message.NotifyCookie, bytes.Clone(cookie.Data)...)
		change(forged.Data)
		if _, _, d := c.puzzle(c.ask(forged, c.solve(forged, prf, asked))); d != asked {
			t.Errorf("%s: not a new puzzle of %d zero bits but one of %d", name, asked, d)
		}
	}
	// An invalid cookie is as good as none, whatever solution it comes with; so is one for another SPI.
	cookie, prf, _ := fresh()
	c.spi++
	c.puzzle(c.ask(cookie, c.solve(cookie, prf, asked)))
	// And one of a minute and more ago.
	cookie, prf, _ = fresh()
	p.w.For(61 * time.Second)
	fresh()
	c.spi--
	good := c.solve(cookie, prf, asked)
	if !isAnswer(c.ask(cookie, good)) {
		t.Fatalf("a solution of a minute ago: %v", c.last)
	}
	cookie, prf, _ = fresh()
	p.w.For(61 * time.Second)
	fresh()
	p.w.For(61 * time.Second)
	c.spi--
	c.puzzle(c.ask(cookie, c.solve(cookie, prf, asked)))
	// Two solutions are no message.
	cookie, prf, _ = fresh()
	if c.ask(cookie, c.solve(cookie, prf, asked), good); isAnswer(c.last) {
		t.Error("two Puzzle Solution payloads are taken")
	}
}

// TestPuzzleReplayed: a solution is good once, also after the half-open IKE SA that it made is gone (RFC 8019,
// section 10); the same request again before gets the same answer.
func TestPuzzleReplayed(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk, eb: always})
	c := newClient(p)
	cookie, prf, _ := c.puzzle(c.ask())
	s := c.solve(cookie, prf, 9)
	first := c.ask(cookie, s)
	if !isAnswer(first) {
		t.Fatalf("answered with %v", first)
	}
	if again := c.ask(cookie, s); !isAnswer(again) || !bytes.Equal(again.Nonce().Data, first.Nonce().Data) {
		t.Errorf("the same request gets %v", again)
	}
	if n := p.b.Endpoint.HalfOpen(); n != 1 {
		t.Fatalf("%d half-open IKE SAs, want 1", n)
	}
	p.w.For(6 * time.Second) // silent: it is forgotten sooner than in quiet
	if n := p.b.Endpoint.HalfOpen(); n != 0 {
		t.Fatalf("%d half-open IKE SAs after 6 s of silence, want none", n)
	}
	c.puzzle(c.ask(cookie, s))
	if d := p.b.Endpoint.Defence(); d.Replayed != 1 || d.Solved != 1 {
		t.Errorf("%+v", d)
	}
}

// TestPuzzleIgnored: who was asked for a cookie alone gets a puzzle when the level has risen, and what it says
// of a solution does not matter (RFC 8019, section 7.1.4); and the other way round.
func TestPuzzleIgnored(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk, eb: func(c *ike.Config) {
		c.CookieThreshold, c.PuzzleThreshold, c.PuzzleDifficulty = -1, 10, 8
	}})
	ep := p.b.Endpoint
	c := newClient(p)
	cookie := c.ask().Notifies(message.NotifyCookie)
	if len(cookie) != 1 || len(c.last) != 1 {
		t.Fatalf("answered with %v, want COOKIE alone", c.last)
	}
	ep.FakeHalfOpen(10, netip.MustParseAddr("192.0.2.77"), false)
	solved, prf, _ := c.puzzle(c.ask(cookie[0], c.solve(cookie[0], suite.PRFHMACSHA384, 9)))
	if !isAnswer(c.ask(solved, c.solve(solved, prf, 9))) {
		t.Fatalf("answered with %v", c.last)
	}
	p.w.For(time.Minute)
	ep.NoFakes()
	c.spi++
	cookie = c.ask().Notifies(message.NotifyCookie)
	if !isAnswer(c.ask(cookie[0], &message.PuzzleSolution{Data: make([]byte, 4)})) {
		t.Errorf("answered with %v: a solution that nobody asked for counts", c.last)
	}
}

// TestPuzzleLevels: what is asked for follows the load, and at no load nothing is (RFC 8019, sections 4.2 and
// 6). One address that has many half-open IKE SAs gets puzzles alone, an IPv6 address with its /64.
func TestPuzzleLevels(t *testing.T) {
	t.Parallel()
	six := []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff:0:1"), netip.MustParseAddr("2001:db8:0:1::1")}
	other := netip.MustParseAddr("192.0.2.77")
	for name, s := range map[string]struct {
		fakes      int
		of, from   netip.Addr
		level      ike.DefenceLevel
		difficulty int
	}{
		"quiet":                     {0, other, addrC, ike.DefenceNone, 0},
		"below the first threshold": {39, other, addrC, ike.DefenceNone, 0},
		"the first threshold":       {40, other, addrC, ike.DefenceCookie, 0},
		"below the second":          {99, other, addrC, ike.DefenceCookie, 0},
		"the second":                {100, other, addrC, ike.DefencePuzzle, 0},
		"a fifth of the room":       {280, other, addrC, ike.DefencePuzzle, 0},
		"a third of the room":       {397, other, addrC, ike.DefencePuzzle, 17},
		"most of the room":          {850, other, addrC, ike.DefencePuzzle, 19},
		"no room":                   {1000, other, addrC, ike.DefencePuzzle, 20},
		"one address, not many":     {9, addrC, addrC, ike.DefenceNone, 0},
		"one address, some":         {10, addrC, addrC, ike.DefenceCookie, 0},
		"one address, many":         {15, addrC, addrC, ike.DefencePuzzle, 0},
		"one address, most":         {18, addrC, addrC, ike.DefencePuzzle, 18},
		"another address, most":     {18, other, addrC, ike.DefenceNone, 0},
		"the same /64":              {18, six[0], six[1], ike.DefencePuzzle, 18},
		"another /64":               {18, six[0], six[2], ike.DefenceNone, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: psk, eb: func(c *ike.Config) {
				c.CookieThreshold, c.PuzzleThreshold, c.MaxHalfOpen, c.MaxHalfOpenAddr = 40, 100, 1024, 20
			}})
			c := newClient(p)
			c.from = netip.AddrPortFrom(s.from, 500)
			p.b.Endpoint.FakeHalfOpen(s.fakes, s.of, false)
			ps := c.ask()
			switch s.level {
			case ike.DefenceNone:
				if !isAnswer(ps) && s.from.Is4() || ps.HasNotify(message.NotifyCookie) { // there is no connection for IPv6
					t.Errorf("answered with %v", ps)
				}
			case ike.DefenceCookie:
				if !ps.HasNotify(message.NotifyCookie) || ps.HasNotify(message.NotifyPuzzle) {
					t.Errorf("answered with %v", ps)
				}
			default:
				if _, _, d := c.puzzle(ps); d != s.difficulty {
					t.Errorf("%d zero bits are asked for, want %d", d, s.difficulty)
				}
			}
		})
	}
}

// TestPuzzleAgain: who solved too easy a puzzle gets another one, as hard as is needed by now, and is let in
// after three whatever the load has become (RFC 8019, section 7.1.5).
func TestPuzzleAgain(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk, eb: func(c *ike.Config) {
		c.PuzzleThreshold, c.PuzzleDifficulty, c.PuzzleMaxDifficulty, c.MaxHalfOpen = -1, 11, 14, 100
	}})
	c := newClient(p)
	cookie, prf, asked := c.puzzle(c.ask())
	if asked != 0 {
		t.Fatalf("%d zero bits are asked for in quiet, want as many as we can", asked)
	}
	for i, want := range []int{11, 14} {
		if i == 1 {
			p.b.Endpoint.FakeHalfOpen(95, netip.MustParseAddr("192.0.2.77"), false)
		}
		zeros := []int{8, 11}[i]
		if cookie, prf, asked = c.puzzle(c.ask(cookie, c.solve(cookie, prf, max(zeros, asked)))); asked != want {
			t.Fatalf("puzzle %d asks for %d zero bits, want %d", i+2, asked, want)
		}
	}
	if !isAnswer(c.ask(cookie, c.solve(cookie, prf, 14))) {
		t.Errorf("answered with %v after three puzzles", c.last)
	}
	if d := p.b.Endpoint.Defence(); d.Puzzles != 3 || d.Solved != 1 || d.Unsolved != 0 {
		t.Errorf("%+v", d)
	}
}

// TestPuzzleLot: requests without a solution draw lots, which take a return routability check first (RFC 8019,
// section 7.1), an address without half-open IKE SAs wins more often than one with some, and when their part
// of the room is full nobody does, while those with a solution go on.
func TestPuzzleLot(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk, eb: func(c *ike.Config) { always(c); c.MaxHalfOpen = 1000 }})
	ep := p.b.Endpoint
	c := newClient(p)
	host := byte(100)
	tries := func(n, had int) (won int) {
		for range n {
			host++
			c.from = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, host}), 500)
			ep.FakeHalfOpen(had, c.from.Addr(), false)
			cookie, _, _ := c.puzzle(c.ask())
			before := ep.Defence().LotWon
			if c.ask(cookie); ep.Defence().LotWon > before {
				won++
			}
			p.w.For(6 * time.Second) // what was won is forgotten
		}
		return won
	}
	if won := tries(4, 0); won != 4 {
		t.Errorf("%d of 4 won while there is room for all", won)
	}
	ep.FakeHalfOpen(242, netip.MustParseAddr("192.0.2.77"), true) // half of their room: one of four wins
	some, few := tries(20, 0), tries(20, 2)                       // and one of 36 with two half-open IKE SAs
	if some == 0 || some > 12 || few > some/2 {
		t.Errorf("%d of 20 won, and %d of those who have some; want some, and fewer", some, few)
	}
	ep.FakeHalfOpen(243, netip.MustParseAddr("192.0.2.78"), true)
	c.from = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.79"), 500)
	cookie, _, _ := c.puzzle(c.ask())
	for range 20 {
		if c.ask(cookie) != nil {
			t.Fatalf("answered with %v though the part of the room is full", c.last)
		}
	}
	cookie, prf, asked := c.puzzle(c.ask())
	if !isAnswer(c.ask(cookie, c.solve(cookie, prf, asked))) {
		t.Errorf("answered with %v though the puzzle was solved", c.last)
	}
}

// TestPuzzleNoAmplification: the answer is never longer than the request, and nothing that an initiator does
// not send is answered while a cookie is wanted.
func TestPuzzleNoAmplification(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk, eb: always})
	c := newClient(p)
	nonce := &message.Nonce{Data: make([]byte, 16)}
	for name, ps := range map[string]message.Payloads{
		"nothing":       {},
		"a nonce":       {nonce},
		"no nonce":      {c.sa.SA(), c.sa.KE()},
		"a long vendor": {&message.VendorID{Data: make([]byte, 200)}},
	} {
		if c.askRaw(ps) != nil {
			t.Errorf("%s: answered with %v", name, c.last)
		}
	}
	if d := p.b.Endpoint.Defence(); d.Puzzles+d.Cookies != 0 {
		t.Errorf("%+v", d)
	}
	// Without a PRF in common there is no puzzle and no IKE SA (RFC 8019, section 7.1.1.2).
	odd := &message.SA{Proposals: []message.Proposal{{Number: 1, Protocol: message.ProtocolIKE, Transforms: []message.Transform{
		message.NewTransform(message.TransformENCR, suite.EncrAESGCM16, 256), message.NewTransform(message.TransformPRF, 2, 0), message.NewTransform(message.TransformKE, suite.KEX25519, 0),
	}}}}
	if n := c.askRaw(message.Payloads{odd, c.sa.KE(), c.sa.Nonce()}).ErrorNotify(); n == nil || n.Type != message.NotifyNoProposalChosen {
		t.Errorf("no PRF in common: %v", c.last)
	}
}

// TestPuzzleSuspect: an address whose IKE SAs come to nothing again and again gets puzzles while there is no
// load (RFC 8019, section 4.2); not one that was only claimed. It is forgotten with time.
func TestPuzzleSuspect(t *testing.T) {
	t.Parallel()
	for _, proved := range []bool{true, false} {
		p := newPair(t, pairOptions{both: psk, eb: func(c *ike.Config) {
			if proved {
				c.CookieThreshold = -1
			}
		}})
		c := newClient(p)
		for range 12 {
			c.spi++
			if n := c.ask().Notifies(message.NotifyCookie); len(n) > 0 {
				c.ask(n[0])
			}
		}
		if !isAnswer(c.last) {
			t.Fatalf("answered with %v", c.last)
		}
		p.w.For(31 * time.Second)
		c.spi++
		if ps := c.ask(); ps.HasNotify(message.NotifyPuzzle) != proved {
			t.Errorf("proved %v: answered with %v", proved, ps)
		}
		c.from = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.79"), 500)
		if c.ask().HasNotify(message.NotifyPuzzle) {
			t.Error("another address gets a puzzle")
		}
		c.from = netip.AddrPortFrom(addrC, 500)
		p.w.For(5 * time.Minute)
		if c.ask().HasNotify(message.NotifyPuzzle) {
			t.Error("an address is suspect after five minutes")
		}
	}
}

// TestPuzzleSpareTheTicket: under attack a ticket is as good as a puzzle: a cookie is asked for, and room is
// kept (RFC 8019, section 4.5).
func TestPuzzleSpareTheTicket(t *testing.T) {
	t.Parallel()
	r := newResuming(t, pairOptions{both: psk, ea: cheap, eb: func(c *ike.Config) { always(c); c.MaxHalfOpen = 320 }})
	r.up()
	r.crash(nil)
	r.b.Endpoint.FakeHalfOpen(315, netip.MustParseAddr("192.0.2.77"), false)
	r.up()
	r.resumed()
	if d := r.b.Endpoint.Defence(); d.Cookies != 1 || d.Puzzles != 0 {
		t.Errorf("B: %+v", d)
	}
}

// TestPuzzleTold: the level is told when it rises, and when it has been lower for a while.
func TestPuzzleTold(t *testing.T) {
	t.Parallel()
	var told []string
	p := newPair(t, pairOptions{both: psk, eb: func(c *ike.Config) {
		c.CookieThreshold, c.PuzzleThreshold = 10, 20
		c.Defence = func(d ike.Defence) { told = append(told, d.Level.String()) }
	}})
	ep := p.b.Endpoint
	ep.FakeHalfOpen(10, addrC, false)
	p.w.For(time.Second)
	ep.NoFakes()
	p.w.For(time.Second)
	ep.FakeHalfOpen(25, addrC, false)
	p.w.For(time.Minute)
	ep.NoFakes()
	p.w.For(5 * time.Second)
	ep.FakeHalfOpen(12, addrC, false)
	p.w.For(time.Minute)
	ep.NoFakes()
	p.w.For(time.Minute)
	if want := []string{"cookie", "puzzle", "cookie", "none"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}
