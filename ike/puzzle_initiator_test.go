package ike_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// initAnswer is an answer to an IKE_SA_INIT request without an IKE SA: what anybody can send who has seen
// the request.
func initAnswer(t testing.TB, request []byte, ps ...message.Payload) []byte {
	t.Helper()
	raw, err := message.Encode(message.Header{SPIi: message.SPI(request[:8]), Exchange: message.ExchangeIKESAInit, Flags: message.FlagResponse}, ps)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// forge has everything that A asks for in clear answered by answer, in front of the true answer; cut: in its
// place. It returns A's requests.
func (p *pair) forge(cut bool, answer func(i int) []message.Payload) *[]*message.Message {
	var seen []*message.Message
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if from.Addr() != addrA || msg[18] != 34 || msg[19]&0x20 != 0 {
			return true
		}
		m, err := message.Parse(bytes.Clone(msg))
		if err != nil {
			p.t.Fatal(err)
		}
		seen = append(seen, m)
		if ps := answer(len(seen) - 1); ps != nil {
			p.w.Deliver(to, from, initAnswer(p.t, msg, ps...))
		}
		return !cut
	}
	return &seen
}

func cookieOf(i int) *message.Notify {
	return message.NewNotify(message.NotifyCookie, bytes.Repeat([]byte{byte(i), 7}, 10)...)
}

func hasSolution(m *message.Message) bool { return m.Payloads.Count(message.PayloadPS) > 0 }

// TestPuzzleNotSolved: a puzzle that is too hard, or none that can be meant, is answered with the cookie
// alone, once told (RFC 8019, sections 7.1.2 and 9), and the connection comes up where the gateway draws lots.
func TestPuzzleNotSolved(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		puzzle *message.Notify
		ea     func(*ike.Config)
		text   string
	}{
		"too hard":       {message.NewPuzzle(message.PRFHMACSHA2384, 23), nil, "asks for 23 zero bits, the limit is 22"},
		"impossible":     {message.NewPuzzle(message.PRFHMACSHA2384, 255), nil, "asks for 255 zero bits"},
		"too much work":  {message.NewPuzzle(message.PRFHMACSHA2384, 20), cheap, "no solution was found with 32768 keys"},
		"never":          {message.NewPuzzle(message.PRFHMACSHA2384, 8), func(c *ike.Config) { c.SolveDifficulty = -1 }, "no puzzles are solved here"},
		"never, freely":  {message.NewPuzzle(message.PRFHMACSHA2384, 0), func(c *ike.Config) { c.SolveDifficulty = -1 }, "no puzzles are solved here"},
		"not offered":    {message.NewPuzzle(message.PRFHMACSHA2256, 8), nil, "PRF_HMAC_SHA2_256, which was not offered"},
		"unknown PRF":    {message.NewPuzzle(4711, 8), nil, "which was not offered"},
		"too easy":       {message.NewPuzzle(message.PRFHMACSHA2384, 7), nil, "difficulty of a puzzle is 7"},
		"half a notify":  {message.NewNotify(message.NotifyPuzzle, 0, 5), nil, "octets left for the difficulty"},
		"of a CHILD SA":  {&message.Notify{Type: message.NotifyPuzzle, Protocol: message.ProtocolESP, SPI: []byte{1, 2, 3, 4}, Data: []byte{0, 6, 8}}, nil, "protocol ID of PUZZLE"},
		"no time for it": {message.NewPuzzle(message.PRFHMACSHA2384, 20), func(c *ike.Config) { c.SolveTime = 5 * time.Millisecond }, "no solution was found"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: psk, ea: c.ea})
			seen := p.forge(false, func(i int) []message.Payload {
				if i > 0 {
					return nil
				}
				return []message.Payload{cookieOf(1), c.puzzle}
			})
			// The true answer to the first request is lost.
			tap := p.w.Tap
			p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool { return tap(from, to, msg) && len(*seen) != 1 }
			p.up()
			if n := len(*seen); n != 2 || hasSolution((*seen)[1]) || !bytes.Equal((*seen)[1].Payloads.Notifies(message.NotifyCookie)[0].Data, cookieOf(1).Data) {
				t.Errorf("%d requests, want a second one with the cookie alone", n)
			}
			if len(p.a.Refusals) != 1 || p.a.Refusals[0].Code != ike.CodePuzzle || !strings.Contains(texts(p.a.Refusals), c.text) {
				t.Errorf("told %s, want %s once, with %q", texts(p.a.Refusals), ike.CodePuzzle, c.text)
			}
		})
	}
}

// TestPuzzleWithoutCookie: MUST be ignored (RFC 8019, section 7.1.2).
func TestPuzzleWithoutCookie(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk})
	seen := p.forge(false, func(int) []message.Payload { return []message.Payload{message.NewPuzzle(message.PRFHMACSHA2384, 8)} })
	p.up()
	if len(*seen) != 1 || len(p.a.Refusals) != 0 {
		t.Errorf("%d requests, %s", len(*seen), texts(p.a.Refusals))
	}
}

// TestPuzzleForged: what somebody sends in front of the true answer is worked at until that comes, and no
// longer; where the true answer is lost, the gateway's own cookie follows the forged one's solution.
func TestPuzzleForged(t *testing.T) {
	t.Parallel()
	for _, lost := range []bool{false, true} {
		p := newPair(t, pairOptions{both: psk, eb: func(c *ike.Config) { c.CookieThreshold = -1 }})
		seen := p.forge(false, func(i int) []message.Payload {
			switch {
			case i == 1 && !lost:
				return []message.Payload{cookieOf(1), message.NewPuzzle(message.PRFHMACSHA2384, 20)}
			case i == 0 && lost:
				return []message.Payload{cookieOf(1), message.NewPuzzle(message.PRFHMACSHA2384, 12)}
			}
			return nil
		})
		p.up()
		if n := len(*seen); !lost && n != 2 || lost && (n < 3 || n > 5) {
			t.Errorf("lost %v: %d requests", lost, n)
		}
		p.w.For(time.Second)
		if n := p.a.Endpoint.Solving(); n != 0 {
			t.Errorf("lost %v: %d puzzles are still worked at", lost, n)
		}
	}
}

// TestPuzzleErrorsWhileSolving: forged errors do not end the attempt, and forged cookies do not begin others.
func TestPuzzleErrorsWhileSolving(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk, ea: cheap, eb: always})
	requests := 0
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if msg[18] != 34 {
			return true
		}
		if from.Addr() == addrA {
			requests++
			return true
		}
		if requests == 1 { // the true puzzle is on its way
			again := bytes.Clone(msg)
			p.w.AfterFunc(6*time.Millisecond, func() {
				for i, n := range []*message.Notify{
					message.NewNotify(message.NotifyNoProposalChosen), message.NewInvalidKE(message.KEMethod(suite.KEX25519)),
					message.NewInvalidKE(message.KEMethod(suite.KEECP256)), message.NewNotify(message.NotifyInvalidSyntax), cookieOf(3), cookieOf(4),
				} {
					_ = i
					p.w.Deliver(from, to, initAnswer(t, again, n))
				}
			})
		}
		return true
	}
	p.up()
	if requests != 2 || len(p.a.Failed) != 0 || len(p.a.Refusals) != 0 {
		t.Errorf("%d requests, want 2; %v, %s", requests, p.a.Failed, texts(p.a.Refusals))
	}
}

// TestPuzzleEverHarder: a gateway, or somebody in its place, that never has enough gets no more than the
// bounds of one attempt, and the attempt ends with what was the matter.
func TestPuzzleEverHarder(t *testing.T) {
	t.Parallel()
	const work = 1 << 16
	p := newPair(t, pairOptions{both: psk, ea: func(c *ike.Config) { c.SolveWork = work }})
	seen := p.forge(true, func(i int) []message.Payload {
		return []message.Payload{cookieOf(i + 1), message.NewPuzzle(message.PRFHMACSHA2384, uint8(8+2*i))}
	})
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	if !p.w.Until(10*time.Minute, func() bool { return len(p.a.Failed) > 0 }) {
		t.Fatal("the attempt does not end")
	}
	if s := p.a.Failed[0].Error(); !strings.Contains(s, "its puzzle was not solved") {
		t.Errorf("failed: %s", s)
	}
	solved := 0
	cookies := map[string]bool{}
	for _, m := range *seen {
		if hasSolution(m) {
			solved++
		}
		if n := m.Payloads.Notifies(message.NotifyCookie); len(n) > 0 {
			cookies[string(n[0].Data)] = true
		}
	}
	// 4 · 2^8 + 4 · 2^10 + 4 · 2^12 are 21,504 keys, and 4 · 2^14 are 65,536.
	if solved < 2 || solved > 4 || len(cookies) > 8 {
		t.Errorf("%d requests with solutions, %d cookies", solved, len(cookies))
	}
	p.w.For(time.Minute)
	emptyTables(t, p.a)
	if p.a.Endpoint.Solving() != 0 {
		t.Error("a puzzle is still worked at")
	}
}

// TestPuzzleAbandoned: nobody works at the puzzle of an attempt that was given up.
func TestPuzzleAbandoned(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk, ea: func(c *ike.Config) { c.SolveDifficulty = 28 }})
	p.forge(true, func(int) []message.Payload {
		return []message.Payload{cookieOf(1), message.NewPuzzle(message.PRFHMACSHA2384, 28)}
	})
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(10 * time.Millisecond)
	p.a.Endpoint.Terminate("a-b", "enough")
	if !p.w.Until(time.Second, func() bool { return len(p.a.Failed) > 0 && p.a.Endpoint.Solving() == 0 }) {
		t.Errorf("failed %v, %d puzzles wait", p.a.Failed, p.a.Endpoint.Solving())
	}
	emptyTables(t, p.a)
}

// authPuzzled is a pair whose responder asks for a puzzle with IKE_AUTH as well, and what A says in it.
type authPuzzled struct {
	*pair
	first  [][]byte // datagrams of A's first IKE_AUTH request
	answer *message.Message
}

func newAuthPuzzled(t testing.TB, o pairOptions) *authPuzzled {
	more := o.eb
	o.eb = func(c *ike.Config) {
		always(c)
		if more != nil {
			more(c)
		}
	}
	ea := o.ea
	o.ea = func(c *ike.Config) {
		cheap(c)
		if ea != nil {
			ea(c)
		}
	}
	a := &authPuzzled{pair: newPair(t, o)}
	a.b.Endpoint.FakeJunk(1000)
	a.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		m, err := message.Parse(bytes.Clone(msg))
		switch {
		case err != nil:
		case from.Addr() == addrA && msg[18] == 35 && msg[23] == 1:
			a.first = append(a.first, bytes.Clone(msg))
		case from.Addr() == addrB && msg[18] == 34 && m.Payloads.SA() != nil:
			a.answer = m
		}
		return true
	}
	return a
}

// TestAuthPuzzle: the second puzzle comes with the answer to IKE_SA_INIT, its solution in clear in the first
// IKE_AUTH request, in the first fragment only, for Nr | SPIr (RFC 8019, section 7.2); also when the first try
// is lost.
func TestAuthPuzzle(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]pairOptions{
		"whole":      {both: psk},
		"fragments":  {ea: func(c *ike.Config) { c.FragmentSize = 512 }},
		"two rounds": {ea: func(c *ike.Config) { c.FragmentSize = 60000 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAuthPuzzled(t, o)
			tap, lost := a.w.Tap, 0
			a.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
				tap(from, to, msg)
				if from.Addr() == addrA && msg[18] == 35 && lost == 0 {
					lost++
					return false
				}
				return true
			}
			a.up()
			n := a.answer.Payloads.Notifies(message.NotifyPuzzle)
			if len(n) != 1 || a.answer.Payloads.HasNotify(message.NotifyIntermediateExchangeSupported) || a.answer.Payloads.HasNotify(message.NotifyCookie) {
				t.Fatalf("the answer to IKE_SA_INIT holds %v", a.answer.Payloads)
			}
			prf, difficulty, err := n[0].Puzzle()
			if err != nil || difficulty != 8 {
				t.Fatalf("difficulty %d, %v; want 8", difficulty, err)
			}
			s := append(bytes.Clone(a.answer.Payloads.Nonce().Data), a.answer.SPIr[:]...)
			solutions := 0
			for _, raw := range a.first {
				m, err := message.Parse(raw)
				if err != nil {
					t.Fatal(err)
				}
				ps := m.Solution()
				if first := m.Encrypted.Number <= 1; (ps != nil) != first {
					t.Errorf("fragment %d: solution %v", m.Encrypted.Number, ps)
				}
				if ps == nil {
					continue
				}
				solutions++
				if got := ike.Zeros(uint16(prf), s, ps.Data); got < 8 {
					t.Errorf("the solution has %d zero bits", got)
				}
			}
			if solutions != 2 {
				t.Errorf("%d solutions were sent, want 2: once lost, and repeated", solutions)
			}
		})
	}
}

// TestAuthPuzzleNotAsked: never without a solved puzzle in IKE_SA_INIT (RFC 8019, section 7.2.1), never where
// IKE_INTERMEDIATE needs the keys, and not while IKE_AUTH requests are authentic.
func TestAuthPuzzleNotAsked(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]pairOptions{
		"no solution": {both: psk, ea: func(c *ike.Config) { c.SolveDifficulty = -1 }},
		"no puzzle":   {both: psk, eb: func(c *ike.Config) { c.PuzzleThreshold = 1 << 20 }},
		"hybrid": {ea: cheap, both: func(c *ike.PeerConfig) {
			psk(c)
			c.Proposals, _ = suite.ParseProposals(suite.ProtocolIKE, []string{"aes256gcm16-prfsha256-x25519-mlkem768"})
		}},
		"no junk": {both: psk, ea: cheap},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAuthPuzzled(t, o)
			if name == "no junk" {
				a.b.Endpoint.FakeJunk(5)
			}
			a.up()
			if a.answer.Payloads.HasNotify(message.NotifyPuzzle) {
				t.Error("a puzzle was asked for with IKE_AUTH")
			}
		})
	}
}

// TestAuthPuzzleHostile: nothing without the solution reaches the key exchange, and the true IKE_AUTH is
// taken after all of it (RFC 8019, section 7.2.4).
func TestAuthPuzzleHostile(t *testing.T) {
	t.Parallel()
	a := newAuthPuzzled(t, pairOptions{both: psk})
	tap, done := a.w.Tap, false
	a.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		tap(from, to, msg)
		if from.Addr() != addrA || msg[18] != 35 || done {
			return true
		}
		done = true
		m, err := message.Parse(bytes.Clone(msg))
		if err != nil {
			t.Fatal(err)
		}
		good := m.Solution().Data
		for name, solution := range map[string][]byte{
			"none":       nil,
			"one key":    bytes.Repeat(good[:4], 4),
			"zero":       make([]byte, 16),
			"too short":  good[:4],
			"of another": ike.Solve(suite.PRFHMACSHA384, []byte("another string"), 8),
		} {
			x := message.Message{Header: m.Header, Encrypted: m.Encrypted}
			if solution != nil {
				x.Payloads = message.Payloads{&message.PuzzleSolution{Data: solution}}
			}
			raw, err := x.Append(nil)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			a.w.Deliver(from, to, raw)
			for _, exchange := range []byte{36, 37, 43} {
				raw := bytes.Clone(msg)
				raw[18] = exchange
				a.w.Deliver(from, to, raw)
			}
		}
		a.w.AfterFunc(0, func() {
			if s := a.b.Endpoint.Snapshot(); len(s) != 1 || a.b.Endpoint.Locked() != 1 {
				t.Errorf("%d IKE SAs, %d of them without keys; want one", len(s), a.b.Endpoint.Locked())
			}
		})
		return true
	}
	a.up()
	if a.b.Endpoint.Locked() != 0 {
		t.Error("the IKE SA stands without keys")
	}
	// The same over again with junk that has a solution: the keys are computed once, and kept.
	a = newAuthPuzzled(t, pairOptions{both: psk})
	tap, done = a.w.Tap, false
	a.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		tap(from, to, msg)
		if from.Addr() == addrA && msg[18] == 35 && !done {
			done = true
			junk := bytes.Clone(msg)
			junk[len(junk)-1] ^= 1
			a.w.Deliver(from, to, junk)
		}
		return true
	}
	a.up()
}

// TestAuthPuzzleBadKE: a point that nobody can have a secret with is found when the keys are computed.
func TestAuthPuzzleBadKE(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk, eb: func(c *ike.Config) { always(c); c.PuzzleDifficulty, c.PuzzleMaxDifficulty = 12, 12 }})
	c := newClient(p)
	p.b.Endpoint.FakeJunk(1000)
	c.sa.KE().Data = make([]byte, 32) // a low-order point
	cookie, prf, _ := c.puzzle(c.ask())
	answer := c.ask(cookie, c.solve(cookie, prf, 12))
	if !isAnswer(answer) || p.b.Endpoint.HalfOpen() != 1 {
		t.Fatalf("answered with %v", answer)
	}
	id, difficulty, err := answer.Notifies(message.NotifyPuzzle)[0].Puzzle()
	if err != nil {
		t.Fatal(err)
	}
	s := p.b.Endpoint.Snapshot()[0]
	solution := ike.Solve(uint16(id), binary.BigEndian.AppendUint64(bytes.Clone(answer.Nonce().Data), s.SPIr), int(difficulty))
	m := message.Message{
		Header:   message.Header{SPIi: message.SPI{c.spi, 0xcc}, Exchange: message.ExchangeIKEAuth, Flags: message.FlagInitiator, MessageID: 1},
		Payloads: message.Payloads{&message.PuzzleSolution{Data: solution}}, Encrypted: &message.Encrypted{Sealed: make([]byte, 60)},
	}
	binary.BigEndian.PutUint64(m.SPIr[:], s.SPIr)
	raw, err := m.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	p.w.Deliver(c.from, netip.AddrPortFrom(addrB, 500), raw)
	p.w.For(time.Second)
	emptyTables(t, p.b)
	if len(p.b.Refusals) != 1 || p.b.Refusals[0].Code != ike.CodeBadKE {
		t.Errorf("refused %s", texts(p.b.Refusals))
	}
}

// TestPuzzleDowngrade: whoever adds a puzzle to the true answer, or takes it away, spoils what AUTH covers, and
// there is no IKE SA.
func TestPuzzleDowngrade(t *testing.T) {
	t.Parallel()
	for _, takeAway := range []bool{false, true} {
		a := newAuthPuzzled(t, pairOptions{both: psk})
		if !takeAway {
			a.b.Endpoint.FakeJunk(0)
		}
		done := false
		a.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
			m, err := message.Parse(bytes.Clone(msg))
			if err != nil || from.Addr() != addrB || msg[18] != 34 || m.Payloads.SA() == nil || done {
				return true
			}
			done = true
			if takeAway {
				m.Payloads = deleteNotify(m.Payloads, message.NotifyPuzzle)
			} else {
				m.Payloads = append(m.Payloads, message.NewPuzzle(message.PRFHMACSHA2384, 8))
			}
			raw, err := m.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			a.w.Deliver(from, to, raw)
			return false
		}
		if err := a.a.Endpoint.Initiate("a-b", "net"); err != nil {
			t.Fatal(err)
		}
		a.w.For(5 * time.Minute)
		if !done || len(a.a.Children)+len(a.b.Children) != 0 || len(a.a.Failed) != 1 {
			t.Errorf("taken away %v: done %v, %d and %d CHILD SAs, failed %v", takeAway, done, len(a.a.Children), len(a.b.Children), a.a.Failed)
		}
	}
}

func deleteNotify(ps message.Payloads, t message.NotifyType) (out message.Payloads) {
	for _, p := range ps {
		if n, ok := p.(*message.Notify); !ok || n.Type != t {
			out = append(out, p)
		}
	}
	return out
}
