package ike

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

var cookieFrom = netip.MustParseAddrPort("192.0.2.7:500")

func newJar(t testing.TB) *cookieJar {
	t.Helper()
	j := &cookieJar{}
	if err := j.init(bytes.NewReader(bytes.Repeat([]byte("secret"), 1000))); err != nil {
		t.Fatal(err)
	}
	return j
}

// What a cookie says comes back, for the request that it was made for and no other, for a minute or two; the
// same request gets the same one.
func TestCookieJar(t *testing.T) {
	t.Parallel()
	j := newJar(t)
	now := time.Unix(1_700_000_000, 0)
	ni := bytes.Repeat([]byte{7}, 32)
	info := cookieInfo{prf: 5, difficulty: 18, puzzles: 1}
	c := j.make(now, info, ni, cookieFrom, 1)
	if again := j.make(now.Add(time.Second), info, ni, cookieFrom, 1); again != c {
		t.Error("the same request gets another cookie")
	}
	if got, ok := j.valid(now, c[:], ni, cookieFrom, 1); !ok || got != info {
		t.Errorf("%+v, %v; want %+v", got, ok, info)
	}
	for name, ok := range map[string]bool{
		"nonce":   second(j.valid(now, c[:], ni[1:], cookieFrom, 1)),
		"address": second(j.valid(now, c[:], ni, netip.MustParseAddrPort("192.0.2.8:500"), 1)),
		"port":    second(j.valid(now, c[:], ni, netip.MustParseAddrPort("192.0.2.7:501"), 1)),
		"SPI":     second(j.valid(now, c[:], ni, cookieFrom, 2)),
		"short":   second(j.valid(now, c[:cookieSize-1], ni, cookieFrom, 1)),
		"long":    second(j.valid(now, append(c[:], 0), ni, cookieFrom, 1)),
		"empty":   second(j.valid(now, nil, ni, cookieFrom, 1)),
	} {
		if ok {
			t.Errorf("another %s is as good", name)
		}
	}
	for i := range c {
		for bit := range 8 {
			d := c
			d[i] ^= 1 << bit
			if _, ok := j.valid(now, d[:], ni, cookieFrom, 1); ok {
				t.Fatalf("octet %d, bit %d may be any", i, bit)
			}
		}
	}
	later := now.Add(20 * time.Second)
	if j.longAgo(now.Add(7*time.Second), info) || !j.longAgo(later, info) {
		t.Error("the time since the puzzle is not known")
	}
	next := j.make(later, cookieInfo{prf: 5, difficulty: 19, puzzles: 2, first: info.first}, ni, cookieFrom, 1)
	if got, ok := j.valid(later, next[:], ni, cookieFrom, 1); !ok || got.first != info.first || got.puzzles != 2 {
		t.Errorf("the second puzzle: %+v, %v", got, ok)
	}
	j.valid(now.Add(time.Minute), nil, nil, cookieFrom, 0)
	j.make(now.Add(time.Minute), info, ni, cookieFrom, 1)
	if _, ok := j.valid(now.Add(time.Minute), c[:], ni, cookieFrom, 1); !ok {
		t.Error("the cookie is not good for a minute")
	}
	j.make(now.Add(2*time.Minute), info, ni, cookieFrom, 1)
	if _, ok := j.valid(now.Add(2*time.Minute), c[:], ni, cookieFrom, 1); ok {
		t.Error("the cookie is good for two minutes")
	}
}

func second[T any](_ T, ok bool) bool { return ok }

func TestCookieMAC(t *testing.T) {
	t.Parallel()
	secret := [32]byte{1, 2, 3}
	for n := minNonce; n <= maxNonce; n += 15 {
		ni, info := bytes.Repeat([]byte{byte(n)}, n), make([]byte, cookieInfoSize)
		m := hmac.New(sha256.New, secret[:])
		a := cookieFrom.Addr().As16()
		m.Write(info)
		m.Write(a[:])
		m.Write(binary.BigEndian.AppendUint16(nil, cookieFrom.Port()))
		m.Write(binary.BigEndian.AppendUint64(nil, 77))
		m.Write(ni)
		if got := cookieSum(&secret, info, ni, cookieFrom, 77); !bytes.Equal(got[:], m.Sum(nil)[:16]) {
			t.Fatalf("nonce of %d octets: %x", n, got)
		}
	}
}

// Solutions are remembered as long as their cookies are good, and no more of them than the bound: then the
// secret changes.
func TestCookieSpent(t *testing.T) {
	t.Parallel()
	j := newJar(t)
	now := time.Unix(1_700_000_000, 0)
	ni := make([]byte, 32)
	first := j.make(now, cookieInfo{prf: 5, puzzles: 1}, ni, cookieFrom, 0)
	if j.isSpent(first[:]) || !j.spend(first[:]) || j.spend(first[:]) || !j.isSpent(first[:]) {
		t.Fatal("a cookie can be spent twice")
	}
	for i := uint64(1); i < 3*maxSpent; i++ {
		c := j.make(now, cookieInfo{prf: 5, puzzles: 1}, ni, cookieFrom, i)
		if !j.spend(c[:]) {
			t.Fatalf("cookie %d cannot be spent", i)
		}
		if n := len(j.spent[0]) + len(j.spent[1]); n > 2*maxSpent {
			t.Fatalf("%d cookies are remembered", n)
		}
	}
	if _, ok := j.valid(now, first[:], ni, cookieFrom, 0); ok || !j.isSpent(first[:]) || j.spend(first[:]) {
		t.Error("a cookie of two secrets ago is good")
	}
}

// The PRF of a puzzle is one that both can (RFC 8019, section 7.1.1.2).
func TestPuzzlePRFChoice(t *testing.T) {
	t.Parallel()
	body := func(proposals ...[]uint16) []byte {
		sa := &message.SA{}
		for i, prfs := range proposals {
			p := message.Proposal{Number: uint8(i + 1), Protocol: message.ProtocolIKE, SPI: make([]byte, i), Transforms: []message.Transform{message.NewTransform(message.TransformENCR, suite.EncrAESGCM16, 256)}}
			for _, id := range prfs {
				p.Transforms = append(p.Transforms, message.NewTransform(message.TransformPRF, id, 0))
			}
			p.Transforms = append(p.Transforms, message.NewTransform(message.TransformKE, 5, 0))
			sa.Proposals = append(sa.Proposals, p)
		}
		_, raw, err := message.AppendPayloads(nil, message.Payloads{sa})
		if err != nil {
			t.Fatal(err)
		}
		return raw[4:]
	}
	for want, sa := range map[uint16][]byte{
		0:                   body([]uint16{1, 2}, []uint16{4}),
		suite.PRFHMACSHA256: body([]uint16{7, 6}, []uint16{2}, []uint16{5}),
		suite.PRFHMACSHA384: body([]uint16{2, 6}),
		suite.PRFHMACSHA512: body([]uint16{6, 7}),
	} {
		if got := puzzlePRF(sa); got != want {
			t.Errorf("PRF %d, want %d", got, want)
		}
		for n := range sa {
			puzzlePRF(sa[:n]) // must not read beyond
		}
	}
}

// FuzzPuzzlePRF: any octets; where the codec reads them, both see the same PRFs.
func FuzzPuzzlePRF(f *testing.F) {
	f.Add([]byte{0, 0, 0, 16, 1, 1, 0, 1, 0, 0, 0, 8, 2, 0, 0, 5})
	f.Fuzz(func(t *testing.T, sa []byte) {
		got := puzzlePRF(sa)
		p, err := message.ParseBody(message.PayloadSA, false, sa)
		if err != nil {
			return
		}
		want := false
		for _, o := range offersOf(p.(*message.SA)) { //nolint:forcetypeassert // ParseBody
			for _, x := range o.Transforms {
				want = want || x.Type == suite.TypePRF && (x.ID == suite.PRFHMACSHA256 || x.ID == suite.PRFHMACSHA384 || x.ID == suite.PRFHMACSHA512)
				if got != 0 && x.Type == suite.TypePRF && x.ID == got {
					got = 0xffff
				}
			}
		}
		if want != (got == 0xffff) {
			t.Errorf("%x: PRF %d, the codec finds one: %v", sa, got, want)
		}
	})
}

// benchEndpoint is an endpoint at the level given, and what it sent last.
func benchEndpoint(b testing.TB, level DefenceLevel) (ep *Endpoint, last *[]byte) {
	b.Helper()
	ep, last = &Endpoint{}, new([]byte)
	*last = make([]byte, 0, 2000)
	c, err := (&Config{
		Clock: fixedClock{}, Rand: bytes.NewReader(nil), Owner: noOwner{}, Executor: noExecutor{},
		Send:            func(_ Path, m []byte) { *last = append((*last)[:0], m...) },
		CookieThreshold: -1, PuzzleThreshold: map[DefenceLevel]int{DefenceCookie: 1 << 20, DefencePuzzle: -1}[level], PuzzleDifficulty: 8,
	}).withDefaults()
	if err != nil {
		b.Fatal(err)
	}
	ep.cfg = c
	if err := ep.cookies.init(bytes.NewReader(make([]byte, 64))); err != nil {
		b.Fatal(err)
	}
	return ep, last
}

type noOwner struct{ Owner }

type noExecutor struct{}

func (noExecutor) Run(func())     {}
func (noExecutor) RunSlow(func()) {}

// benchRequests are an IKE_SA_INIT request, and the same with cookie and solution, and with one that is none.
func benchRequests(b testing.TB) (ep *Endpoint, fresh, solved, bad []byte) {
	b.Helper()
	ep, last := benchEndpoint(b, DefencePuzzle)
	rest := []message.Payload{
		&message.SA{Proposals: []message.Proposal{{Number: 1, Protocol: message.ProtocolIKE, Transforms: []message.Transform{
			message.NewTransform(message.TransformENCR, suite.EncrAESGCM16, 256), message.NewTransform(message.TransformPRF, suite.PRFHMACSHA256, 0), message.NewTransform(message.TransformKE, suite.KEX25519, 0),
		}}}}, &message.KE{Method: 31, Data: make([]byte, 32)}, &message.Nonce{Data: make([]byte, 32)},
	}
	fresh = initRequest(b, rest...)
	ep.HandleDatagram(Path{Remote: cookieFrom}, fresh)
	m, err := message.Parse(*last)
	if err != nil {
		b.Fatal(err)
	}
	cookie := m.Payloads.Notifies(message.NotifyCookie)[0]
	cookie.Data = bytes.Clone(cookie.Data)
	s := Solve(suite.PRFHMACSHA256, cookie.Data, 16)
	solved = initRequest(b, append([]message.Payload{cookie, &message.PuzzleSolution{Data: s}}, rest...)...)
	bad = initRequest(b, append([]message.Payload{cookie, &message.PuzzleSolution{Data: bytes.Repeat(s[:4], 4)}}, rest...)...)
	return ep, fresh, solved, bad
}

// TestChallengeAllocates: nothing is allocated for a request that has not done what is wanted.
func TestChallengeAllocates(t *testing.T) {
	ep, fresh, _, bad := benchRequests(t)
	ep.byLot = 1 << 30 // no lots
	for name, msg := range map[string][]byte{"puzzle": fresh, "no solution": bad, "nothing in it": fresh[:headerSize]} {
		msg = bytes.Clone(msg)
		binary.BigEndian.PutUint32(msg[24:], uint32(len(msg)))
		// sync.Pool forgets at random under the race detector.
		if n := testing.AllocsPerRun(100, func() { ep.HandleDatagram(Path{Remote: cookieFrom}, msg) }); n >= 1 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// What a request costs that is answered with a cookie, with a puzzle, that has no solution, and that has one.
func BenchmarkChallenge(b *testing.B) {
	puzzles, fresh, solved, bad := benchRequests(b)
	puzzles.byLot = 1 << 30
	cookies, _ := benchEndpoint(b, DefenceCookie)
	for name, c := range map[string]struct {
		ep  *Endpoint
		msg []byte
	}{"cookie": {cookies, fresh}, "puzzle": {puzzles, fresh}, "no-solution": {puzzles, bad}, "solution": {puzzles, solved}} {
		b.Run(name, func(b *testing.B) {
			p, h := Path{Remote: cookieFrom}, peekHeader(c.msg)
			b.ReportAllocs()
			for b.Loop() {
				c.ep.mu.Lock()
				pr := c.ep.pressureLocked(c.ep.cfg.Clock.Now(), p, 0)
				c.ep.mu.Unlock()
				if _, ok := c.ep.judge(p, h, c.msg, pr); ok != (name == "solution") {
					b.Fatalf("let in: %v", ok)
				}
			}
		})
	}
}
