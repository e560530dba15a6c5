package ike

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// The initiator's end of puzzles (RFC 8019, sections 7.1.2 and 7.2.2). Nobody has proved that it is the
// gateway that asks: what is done for it is bounded for each attempt, in difficulty, work and time, and one
// puzzle at a time is worked at for all IKE SAs of an endpoint, in slices that take turns. The true answer
// ends it whenever it comes.

// Bounds of solving.
const (
	solveSlice      = 1 << 13     // keys that are tried in one go, some milliseconds
	solveFree       = 16          // zero bits that are offered when the gateway leaves them to us
	solveFreeTime   = time.Second // and how long is tried for that
	solveSlots      = 1           // puzzles worked at at the same time
	maxAuthPuzzle   = 20          // zero bits of a puzzle in IKE_AUTH that are believed to be meant well, whatever SolveDifficulty says
	solveRetransmit = time.Second // how much later than the solution the request before it would be repeated
)

type (
	// evSolved: the answer to actSolve; nil: there is none within the bounds.
	evSolved struct {
		job      uint64
		solution []byte
		tried    uint64
	}
	// actSolve: solve a puzzle; the answer is evSolved. It is worked at until stopped is true.
	actSolve struct {
		job     uint64
		s       *solver
		by      time.Time
		best    bool // at the end of the time the best keys are good enough
		stopped *atomic.Bool
	}
)

func (evSolved) isEvent()  {}
func (actSolve) isAction() {}

// solveState is what an initiator knows of the puzzles of its attempt.
type solveState struct {
	job      uint64
	stopped  *atomic.Bool // nil: none is being solved
	tried    uint64       // keys, for all puzzles before
	by       time.Time    // no puzzle is worked at after that; zero: none came
	solution []byte       // to be sent with the next request
	refused  error        // why a puzzle was not solved
	then     func([]byte)
}

// stop abandons the puzzle that is being solved.
func (s *solveState) stop() {
	if s.stopped != nil {
		s.stopped.Store(true)
		s.stopped, s.job, s.then = nil, 0, nil
	}
}

// offersPRF tells whether we offered the PRF.
func (h *handshake) offersPRF(prf uint16) bool {
	for _, o := range h.offers {
		for _, t := range o.Transforms {
			if t.Type == suite.TypePRF && t.ID == prf {
				return true
			}
		}
	}
	return false
}

// solve works at the puzzle that n asks for with the string s, and goes on with then: at once, and with
// nil, when it is not to be solved.
func (sa *SA) solve(n *message.Notify, s []byte, most int, then func(solution []byte)) {
	h := sa.handshake
	h.solving.stop()
	prf, difficulty, err := n.Puzzle()
	work := solver{want: int(difficulty)}
	best := difficulty == 0
	if best {
		work.want = min(solveFree, max(sa.cfg.SolveDifficulty, message.MinPuzzle))
	}
	if h.solving.by.IsZero() {
		h.solving.by = sa.now.Add(sa.cfg.SolveTime)
	}
	by := h.solving.by
	if limit := sa.now.Add(solveFreeTime); best && limit.Before(by) {
		by = limit
	}
	spent := min(h.solving.tried, sa.cfg.SolveWork)
	work.left = sa.cfg.SolveWork - spent
	if best {
		work.left /= 2 // there may be others
	}
	switch {
	case err != nil:
	case sa.cfg.SolveDifficulty < 0:
		err = fmt.Errorf("it asks for %d zero bits, and no puzzles are solved here", difficulty)
	case int(difficulty) > most:
		err = fmt.Errorf("it asks for %d zero bits, the limit is %d", difficulty, most)
	case !h.offersPRF(uint16(prf)):
		err = fmt.Errorf("it is for %v, which was not offered", prf)
	case !work.set(uint16(prf), s):
		err = fmt.Errorf("it is for %v and a string of %d octets", prf, len(s))
	case work.left == 0 || !sa.now.Before(by):
		err = fmt.Errorf("%d keys were tried for the puzzles of this attempt, the limits are %d and %v", h.solving.tried, sa.cfg.SolveWork, sa.cfg.SolveTime)
	}
	if err != nil {
		sa.unsolved(err)
		then(nil)
		return
	}
	h.solving.job, h.solving.stopped, h.solving.then = sa.job(), &atomic.Bool{}, then
	sa.do(actSolve{job: h.solving.job, s: &work, by: by, best: best, stopped: h.solving.stopped})
}

// unsolved tells once for an attempt that a puzzle is not solved (RFC 8019, section 9).
func (sa *SA) unsolved(err error) {
	h := sa.handshake
	if h.solving.refused == nil {
		h.solving.refused = err
		sa.refuse(refused(CodePuzzle, -1, err, "the puzzle of %v is not solved; a gateway under attack serves those first who do", sa.path.Remote))
	}
}

// onSolved goes on with the solution.
func (sa *SA) onSolved(ev evSolved) {
	h := sa.handshake
	if h == nil || ev.job == 0 || ev.job != h.solving.job {
		return
	}
	then := h.solving.then
	h.solving.tried += ev.tried
	h.solving.stop()
	if ev.solution == nil {
		sa.unsolved(fmt.Errorf("no solution was found with %d keys", ev.tried))
	}
	then(ev.solution)
}

// solveInit answers COOKIE with PUZZLE in IKE_SA_INIT (RFC 8019, section 7.1.2).
func (sa *SA) solveInit(n *message.Notify) {
	h, g := sa.handshake, sa.cur
	h.solving.solution = nil
	sa.solve(n, h.cookie, sa.cfg.SolveDifficulty, func(solution []byte) {
		h.solving.solution = solution
		sa.tryInit(h.kex.ID())
	})
	if h.solving.stopped != nil && g.req != nil {
		// Another one of the request before would only bring another puzzle.
		g.req.next = h.solving.by.Add(solveRetransmit)
	}
}

// solveAuth solves the puzzle that came with the answer to IKE_SA_INIT, if one did, and goes on (RFC 8019,
// section 7.2.2). Without a solution the gateway drops our IKE_AUTH, so that there is no going on.
func (sa *SA) solveAuth(n *message.Notify) {
	h, g := sa.handshake, sa.cur
	if n == nil {
		sa.afterInit()
		return
	}
	_, difficulty, err := n.Puzzle()
	if err == nil && difficulty == 0 {
		err = fmt.Errorf("it asks for no number of zero bits")
	}
	if err != nil {
		sa.afterInit() // not one of RFC 8019, section 7.2.1.1: a status notify that says nothing
		return
	}
	s := binary.BigEndian.AppendUint64(append([]byte(nil), h.nr...), g.spiR)
	sa.solve(n, s, min(max(sa.cfg.SolveDifficulty, 0), maxAuthPuzzle), func(solution []byte) {
		if solution == nil {
			sa.fail(fmt.Errorf("ike: %v drops IKE_AUTH without the solution of its puzzle: %w", sa.path.Remote, h.solving.refused))
			return
		}
		h.solving.solution = solution
		sa.afterInit()
	})
}

// puzzles are those that the IKE SAs of an endpoint want solved.
type puzzles struct {
	mu      sync.Mutex
	waiting []*puzzleJob
	working int
}

type puzzleJob struct {
	b *box
	a actSolve
}

// solve works at a puzzle, in turn with the others.
func (ep *Endpoint) solve(b *box, a actSolve) {
	z := &ep.puzzles
	z.mu.Lock()
	z.waiting = append(z.waiting, &puzzleJob{b, a})
	start := z.working < solveSlots
	if start {
		z.working++
	}
	z.mu.Unlock()
	if start {
		ep.cfg.Executor.RunSlow(ep.solveNext)
	}
}

// solveNext works for a slice at the puzzle that has waited longest.
func (ep *Endpoint) solveNext() {
	z := &ep.puzzles
	z.mu.Lock()
	if len(z.waiting) == 0 {
		z.working--
		z.mu.Unlock()
		return
	}
	j := z.waiting[0]
	z.waiting[0] = nil
	z.waiting = z.waiting[1:]
	z.mu.Unlock()
	if !ep.solveSlice(j) {
		z.mu.Lock()
		z.waiting = append(z.waiting, j)
		z.mu.Unlock()
	}
	ep.cfg.Executor.RunSlow(ep.solveNext)
}

// solveSlice works at one puzzle; true: that was all.
func (ep *Endpoint) solveSlice(j *puzzleJob) bool {
	a := j.a
	if a.stopped.Load() {
		return true
	}
	done := a.s.work(solveSlice)
	late := !ep.cfg.Clock.Now().Before(a.by)
	if !done && !late {
		return false
	}
	solution, zeros := a.s.solution()
	if zeros < a.s.want && !a.best {
		solution = nil
	}
	j.b.post(evSolved{a.job, solution, a.s.tried})
	return true
}
