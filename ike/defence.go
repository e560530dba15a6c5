package ike

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"wardgate/ike/message"
)

// The defence against strangers that want IKE SAs faster than they can be made (RFC 8019). What counts is
// how many IKE SAs are half-open, over all and of one address (IPv6: of one /64). From CookieThreshold on
// initiators must return a cookie, which proves their address. From PuzzleThreshold on they are asked to
// solve a puzzle beside it. Whoever does is let in; whoever does not, because it cannot or because it does
// not want to, draws lots for a part of the room. Every half-open IKE SA that its address has, and had for
// nothing, makes its chance smaller: an honest peer of an address of its own comes up while a flood goes on,
// a little later. Room is
// kept for peers with a ticket (section 4.5), and whoever is silent after IKE_SA_INIT is forgotten sooner
// (section 4.1).

// DefenceLevel is what strangers have to do before anything is kept for them.
type DefenceLevel uint8

// The levels.
const (
	DefenceNone   DefenceLevel = iota
	DefenceCookie              // return a cookie
	DefencePuzzle              // and solve a puzzle, or draw lots
)

// String returns the name for status output.
func (l DefenceLevel) String() string {
	switch l {
	case DefenceNone:
		return "none"
	case DefenceCookie:
		return "cookie"
	case DefencePuzzle:
		return "puzzle"
	}
	return "unknown"
}

// Defence is how strangers are met at the moment, and what became of their requests since the beginning.
type Defence struct {
	Level      DefenceLevel
	Difficulty uint8 // zero bits that are asked for; 0: as many as the initiator can afford, or no puzzle at all
	HalfOpen   int   // IKE SAs
	ByLot      int   // of them those that were let in at DefencePuzzle without a solution

	Cookies   uint64 // requests answered with a cookie
	Puzzles   uint64 // with a cookie and a puzzle
	Solved    uint64 // let in with a solution
	Unsolved  uint64 // came back without one, or with one that was not good enough
	Replayed  uint64 // came with a solution that was used before
	LotWon    uint64 // of Unsolved, let in
	Dropped   uint64 // of Unsolved, not let in, without an answer
	Malformed uint64 // dropped while a cookie was demanded: nothing an initiator sends
	NoRoom    uint64 // dropped because of the bounds on half-open IKE SAs
}

// defenceCounters are those of Defence.
type defenceCounters struct {
	cookies, puzzles, solved, unsolved, replayed, lotWon, dropped, malformed, noRoom atomic.Uint64
}

// What the defence goes by.
const (
	maxPuzzles     = 3 // given in a row to who solves them; then it is let in
	suspectScore   = 8 // failures of one address, those of a minute ago half, from which on it gets puzzles
	suspectHalf    = time.Minute
	maxSuspects    = 4096
	calmAfter      = 10 * time.Second // a lower level is told after so long
	minPatience    = 2 * time.Second  // RFC 8019, section 4.1: as low as can realistically be used
	ticketPart     = 32               // one of so many half-open IKE SAs is kept free for peers with tickets
	puzzleFreely   = 0.25             // up to this part of the room the initiator says how hard its puzzle is
	halfOpenSilent = 3                // part of HalfOpenTimeout that a silent initiator has at DefenceCookie; half of it at DefencePuzzle
)

// pressure is how strangers press at one moment, and what that means for one of them.
type pressure struct {
	level   DefenceLevel
	fill    float64 // of the room above PuzzleThreshold, over all or of the address: 0 to 1
	chance  float64 // to win when lots are drawn
	suspect bool
}

// need is how many zero bits let a request in.
func (r *pressure) need(c *Config) int {
	low, high := float64(c.PuzzleDifficulty), float64(c.PuzzleMaxDifficulty)
	return int(math.Round(low + r.fill*(high-low)))
}

// asks is what the first puzzle asks for: RFC 8019, section 7.1.1.1, recommends 0 unless the volume is
// very high.
func (r *pressure) asks(c *Config) uint8 {
	if r.fill < puzzleFreely && !r.suspect {
		return 0
	}
	return uint8(r.need(c))
}

// limitAddr is what is counted as one: an address, or the /64 of an IPv6 address (RFC 8019, section 4.2).
func limitAddr(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// pressureLocked judges the moment for a request from p, beside which others wait for a worker.
func (ep *Endpoint) pressureLocked(now time.Time, p Path, others int) pressure {
	c := &ep.cfg
	addr := limitAddr(p.Remote.Addr())
	n, mine := len(ep.half)+others, ep.halfAddr[addr]
	hard := c.MaxHalfOpenAddr
	soft := max(hard*3/4, 1)
	room := c.MaxHalfOpen - c.ticketRoom()
	score := ep.suspects.score(addr, now)
	r := pressure{level: ep.levelLocked(n), suspect: score >= suspectScore}
	part := func(n, from, to int) float64 { return min(max(float64(n-from)/float64(max(to-from, 1)), 0), 1) }
	own := part(mine, soft, hard)
	switch {
	case mine >= soft || r.suspect:
		r.level = DefencePuzzle
	case r.level == DefenceNone && mine >= max(hard/2, 1):
		r.level = DefenceCookie
	}
	// The address of who has a TCP connection is proved: no cookie without a puzzle (RFC 9329, section 6.3).
	if p.Stream != 0 && r.level == DefenceCookie {
		r.level = DefenceNone
	}
	r.fill = max(part(n, c.PuzzleThreshold, room), own)
	r.chance = 1 - max(part(ep.byLot, 0, c.lotRoom()), own)
	r.chance /= 1 + float64(mine) + score
	r.chance *= r.chance
	return r
}

// levelLocked is the level over all for so many half-open IKE SAs.
func (ep *Endpoint) levelLocked(n int) DefenceLevel {
	switch {
	case n >= ep.cfg.PuzzleThreshold:
		return DefencePuzzle
	case n >= ep.cfg.CookieThreshold:
		return DefenceCookie
	}
	return DefenceNone
}

// ticketRoom is how many half-open IKE SAs are kept for peers with tickets.
func (c *Config) ticketRoom() int { return c.MaxHalfOpen / ticketPart }

// lotRoom is how many half-open IKE SAs may be of those that won their lot: half of what there is above
// PuzzleThreshold.
func (c *Config) lotRoom() int { return max((c.MaxHalfOpen-c.ticketRoom()-c.PuzzleThreshold)/2, 1) }

// admission is the right of a request to become a half-open IKE SA.
type admission struct {
	judged bool // it has done what the level wanted
	proved bool // its address
	ticket bool
	lot    bool // it was let in by lot
	solved bool
	cookie [cookieSize]byte // of the puzzle that was solved

	patience time.Duration // until something authentic comes; 0: HalfOpenTimeout counts
	puzzle   authPuzzle    // that is asked for with IKE_AUTH
}

// judge looks whether a request has done what the level wants, and tells its sender what that is if not:
// false. It keeps nothing and allocates nothing; what costs least comes first.
func (ep *Endpoint) judge(p Path, h header, msg []byte, r pressure) (admission, bool) {
	now := ep.cfg.Clock.Now()
	req, ok := peekFresh(msg)
	if !ok || req.sa == nil && h.exchange == exchangeSAInit {
		ep.count.malformed.Add(1)
		return admission{}, false
	}
	a := admission{judged: true, proved: true, patience: max(ep.cfg.HalfOpenTimeout/halfOpenSilent, minPatience)}
	puzzles := r.level == DefencePuzzle && h.exchange == exchangeSAInit // RFC 8019, section 4.5: a ticket is as good
	info, valid := cookieInfo{}, false
	if req.cookie != nil {
		info, valid = ep.cookies.valid(now, req.cookie, req.ni, p.cookieAddr(), h.spiI)
	}
	if !puzzles {
		if !valid {
			ep.challenge(now, p, h, len(msg), req.ni, cookieInfo{}, false)
		}
		return a, valid
	}
	a.patience = max(a.patience/2, minPatience)
	first := cookieInfo{prf: puzzlePRF(req.sa), difficulty: r.asks(&ep.cfg), puzzles: 1}
	if first.prf == 0 {
		// RFC 8019, section 7.1.1.2.
		ep.answerInit(p, h, message.NewNotify(message.NotifyNoProposalChosen))
		return a, false
	}
	if !valid || info.prf == 0 {
		// A cookie alone was asked for when there was less to fear: nothing was spent on it.
		ep.challenge(now, p, h, len(msg), req.ni, first, true)
		return a, false
	}
	if req.solution != nil {
		if ep.cookies.isSpent(req.cookie) {
			ep.count.replayed.Add(1)
			ep.challenge(now, p, h, len(msg), req.ni, first, true)
			return a, false
		}
		var z puzzle
		zeros := -1
		if z.set(info.prf, req.cookie) {
			zeros = z.check(req.solution, int(info.difficulty))
		}
		if zeros >= 0 {
			return ep.judgeSolution(now, p, h, len(msg), &req, r, a, info, zeros)
		}
	}
	// RFC 8019, section 7.1.4: the lowest priority. Who does not win will ask again.
	ep.count.unsolved.Add(1)
	if r.chance <= 0 || ep.draw() >= r.chance {
		ep.count.dropped.Add(1)
		return a, false
	}
	a.lot = true
	return a, true
}

// judgeSolution lets a request in that has solved its puzzle, or gives it another one (RFC 8019, sections
// 7.1.4 and 7.1.5).
func (ep *Endpoint) judgeSolution(now time.Time, p Path, h header, size int, req *freshRequest, r pressure, a admission, info cookieInfo, zeros int) (admission, bool) {
	need := r.need(&ep.cfg)
	score := zeros + int(info.puzzles) // one more than that for the first is what the load may have grown by meanwhile
	if ep.cookies.longAgo(now, info) {
		score++ // who took so long for its puzzles did what it could
	}
	if score >= need || info.puzzles >= maxPuzzles {
		a.solved = true
		copy(a.cookie[:], req.cookie)
		if ep.junkComes(now) {
			a.puzzle = authPuzzle{info.prf, uint8(max(ep.cfg.PuzzleDifficulty-authEasier, message.MinPuzzle))}
		}
		return a, true
	}
	next := cookieInfo{prf: info.prf, difficulty: uint8(need), puzzles: info.puzzles + 1, first: info.first}
	ep.challenge(now, p, h, size, req.ni, next, true)
	return a, false
}

// draw returns a random number from 0 up to 1; 1 without randomness.
func (ep *Endpoint) draw() float64 {
	v, err := randUint64(ep.cfg.Rand)
	if err != nil {
		return 1
	}
	return float64(v>>11) / (1 << 53)
}

// challengeSize is the longest answer: header, COOKIE and PUZZLE.
const challengeSize = headerSize + 8 + cookieSize + 8 + 3

var challenges = sync.Pool{New: func() any { return new([challengeSize]byte) }}

// challenge answers a request of size octets with a cookie, and perhaps a puzzle (RFC 7296, section 2.6; RFC
// 8019, section 7.1.1). The answer is never longer than the request: nobody shall be flooded with answers.
func (ep *Endpoint) challenge(now time.Time, p Path, h header, size int, ni []byte, info cookieInfo, puzzle bool) {
	n := challengeSize
	if !puzzle {
		n -= 8 + 3
	}
	if size < n {
		ep.count.malformed.Add(1)
		return
	}
	cookie := ep.cookies.make(now, info, ni, p.cookieAddr(), h.spiI)
	buf, _ := challenges.Get().(*[challengeSize]byte)
	defer challenges.Put(buf)
	b := binary.BigEndian.AppendUint64(buf[:0], h.spiI)
	b = binary.BigEndian.AppendUint64(b, 0)
	b = append(b, byte(message.PayloadNotify), 0x20, h.exchange, flagResponse)
	b = binary.BigEndian.AppendUint32(b, h.id)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	next := message.PayloadNone
	if puzzle {
		next = message.PayloadNotify
	}
	b = append(b, byte(next), 0, 0, byte(8+cookieSize), 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(message.NotifyCookie))
	b = append(b, cookie[:]...)
	if puzzle {
		b = append(b, 0, 0, 0, 8+3, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(message.NotifyPuzzle))
		b = binary.BigEndian.AppendUint16(b, info.prf)
		b = append(b, info.difficulty)
		ep.count.puzzles.Add(1)
	} else {
		ep.count.cookies.Add(1)
	}
	ep.cfg.Send(p, b)
}

// admitHalfOpen takes a request in: it makes the mailbox, or says which one already has it, or why there is
// no room.
func (ep *Endpoint) admitHalfOpen(p Path, spi uint64, adm admission, make func(*box) *SA) (b *box, known bool, err error) {
	key := halfKey{p.Remote, spi}
	addr := limitAddr(p.Remote.Addr())
	room := ep.cfg.MaxHalfOpen
	if !adm.ticket {
		room -= ep.cfg.ticketRoom()
	}
	ep.mu.Lock()
	defer ep.mu.Unlock()
	switch {
	case ep.closed:
		return nil, false, ErrClosed
	case ep.half[key] != nil:
		return ep.half[key], true, nil
	case len(ep.half) >= room:
		err = fmt.Errorf("%d IKE SAs are half-open, the limit is %d", len(ep.half), room)
	case ep.halfAddr[addr] >= ep.cfg.MaxHalfOpenAddr:
		err = fmt.Errorf("%d IKE SAs of %v are half-open, the limit is %d", ep.halfAddr[addr], addr, ep.cfg.MaxHalfOpenAddr)
	case adm.lot && ep.byLot >= ep.cfg.lotRoom():
		err = fmt.Errorf("%d IKE SAs are half-open whose initiators did not solve the puzzle, the limit is %d", ep.byLot, ep.cfg.lotRoom())
	case adm.solved && !ep.cookies.spend(adm.cookie[:]):
		ep.count.replayed.Add(1)
		return nil, false, errSpent
	}
	if err != nil {
		ep.count.noRoom.Add(1)
		return nil, false, err
	}
	switch {
	case adm.solved:
		ep.count.solved.Add(1)
	case adm.lot:
		ep.count.lotWon.Add(1)
		ep.byLot++
	}
	b = ep.newBoxLocked("")
	b.sa = make(b)
	b.halfKey, b.lot, b.reached = &key, adm.lot, adm.proved
	ep.half[key] = b
	ep.halfAddr[addr]++
	ep.raiseLocked()
	return b, false, nil
}

// unhalfLocked takes an IKE SA out of the half-open ones; proved: its initiator is authenticated.
func (ep *Endpoint) unhalfLocked(b *box, proved bool) {
	if b.halfKey == nil {
		return
	}
	delete(ep.half, *b.halfKey)
	addr := limitAddr(b.halfKey.remote.Addr())
	if ep.halfAddr[addr]--; ep.halfAddr[addr] <= 0 {
		delete(ep.halfAddr, addr)
	}
	if b.lot {
		ep.byLot--
	}
	if !proved && b.reached && !ep.closed {
		ep.suspects.note(addr, ep.cfg.Clock.Now())
	}
	b.halfKey = nil
}

// suspects are addresses whose IKE SAs came to nothing again and again, although somebody is there (RFC
// 8019, section 4.2). The number of them is bounded: when there are more, the level over all is a matter of
// time.
type suspects struct {
	by    map[netip.Addr]suspect
	swept time.Time
}

type suspect struct {
	score float64
	at    time.Time
}

func (s suspect) now(now time.Time) float64 { return s.fading(now, suspectHalf) }

// fading is the score, which halves again and again.
func (s suspect) fading(now time.Time, half time.Duration) float64 {
	return s.score * math.Exp2(-max(now.Sub(s.at), 0).Seconds()/half.Seconds())
}

// score is how much an address came to nothing lately.
func (s *suspects) score(a netip.Addr, now time.Time) float64 {
	if x, ok := s.by[a]; ok {
		return x.now(now)
	}
	return 0
}

func (s *suspects) note(a netip.Addr, now time.Time) {
	if _, known := s.by[a]; !known && len(s.by) >= maxSuspects {
		if now.Sub(s.swept) >= time.Second {
			s.swept = now
			for k, x := range s.by {
				if x.now(now) < 1 {
					delete(s.by, k)
				}
			}
		}
		if len(s.by) >= maxSuspects {
			return
		}
	}
	if s.by == nil {
		s.by = map[netip.Addr]suspect{}
	}
	s.by[a] = suspect{s.by[a].now(now) + 1, now}
}

// Defence returns how strangers are met.
func (ep *Endpoint) Defence() Defence {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	return ep.defenceLocked(ep.levelLocked(len(ep.half)))
}

func (ep *Endpoint) defenceLocked(l DefenceLevel) Defence {
	d := Defence{
		Level: l, HalfOpen: len(ep.half), ByLot: ep.byLot,
		Cookies: ep.count.cookies.Load(), Puzzles: ep.count.puzzles.Load(), Solved: ep.count.solved.Load(),
		Unsolved: ep.count.unsolved.Load(), Replayed: ep.count.replayed.Load(), LotWon: ep.count.lotWon.Load(),
		Dropped: ep.count.dropped.Load(), Malformed: ep.count.malformed.Load(), NoRoom: ep.count.noRoom.Load(),
	}
	if l == DefencePuzzle {
		r := ep.pressureLocked(ep.cfg.Clock.Now(), Path{}, 0)
		d.Difficulty = r.asks(&ep.cfg)
	}
	return d
}

// raiseLocked tells of a higher level than the one told last, and looks from time to time whether it is
// lower again.
func (ep *Endpoint) raiseLocked() {
	if ep.cfg.Defence == nil {
		return
	}
	l := ep.levelLocked(len(ep.half))
	ep.peak = max(ep.peak, l)
	if l <= ep.told {
		return
	}
	ep.told = l
	d := ep.defenceLocked(l)
	ep.cfg.Executor.Run(func() { ep.cfg.Defence(d) })
	if !ep.calming {
		ep.calming = true
		ep.cfg.Clock.AfterFunc(calmAfter, ep.calm)
	}
}

// calm tells of a lower level once it has been no higher for a while.
func (ep *Endpoint) calm() {
	ep.mu.Lock()
	l := ep.levelLocked(len(ep.half))
	highest := max(ep.peak, l)
	ep.peak = l
	lower := highest < ep.told && !ep.closed
	if lower {
		ep.told = highest
	}
	// What it is without any stranger needs no watching.
	ep.calming = !ep.closed && ep.told > ep.levelLocked(0)
	if ep.calming {
		ep.cfg.Clock.AfterFunc(calmAfter, ep.calm)
	}
	d := ep.defenceLocked(ep.told)
	ep.mu.Unlock()
	if lower {
		ep.cfg.Defence(d)
	}
}
