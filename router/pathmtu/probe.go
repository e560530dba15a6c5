package pathmtu

import "time"

const (
	maxProbes    = 3                // RFC 8899, section 5.1.2: MAX_PROBES
	base4        = 1200             // RFC 8899, section 5.1.2: BASE_PLPMTU of IPv4
	retryDown    = time.Minute      // a path on which not even the base passes is asked again
	suspectAgain = 30 * time.Second // two rounds because of doubts are so far apart
)

// ProbeState is what is being asked of a peer that answers probes.
//
//	       EnableProbes                3 lost               3 lost, of the floor too
//	Off ─────────────────▶ Confirm ─────────────▶ Base ─────────────────────────▶ Down
//	                       ▲  │                    │ answered: a black hole,        │
//	Suspect, SetLink, ICMP │  │ answered           ▼ the MTU becomes the base       │
//	lowered it, raise time │  │                  Search ◀─────────┐                 │
//	with MTU = link        │  ▼                    │ no size left │ raise time      │
//	                       ├─Done ◀────────────────┘              │ with MTU < link │
//	                       │  └───────────────────────────────────┘                 │
//	                       └────────────────────────────────────────────────────────┘
//	                                            after a minute
type ProbeState uint8

const (
	// Off: the peer answers no probes, or it is not known whether it does.
	Off ProbeState = iota
	// Confirm: does a packet of the MTU that is in use arrive?
	Confirm
	// Base: it does not. Does a short one?
	Base
	// Search: which is the longest between one that arrives and one that does not?
	Search
	// Done: found. Asked again at the raise time.
	Done
	// Down: nothing arrives. That is no matter of lengths, so the MTU is left alone.
	Down
)

var probeStates = [...]string{"off", "confirm", "base", "search", "done", "down"}

func (s ProbeState) String() string {
	if int(s) < len(probeStates) {
		return probeStates[s]
	}
	return "unknown state"
}

// search is the black-hole detector and search of RFC 8899, section 5.2, over whatever the owner
// uses as probes. Guarded by Path.mu.
type search struct {
	state ProbeState
	asked int       // size that a probe is under way with; 0: none
	sent  time.Time // when it was asked for
	lost  int       // probes of this size in a row

	// Of Base: the size asked. Of Search: lo arrives, hi does not (or is link+1).
	base, lo, hi int
	hint         int       // what an unproved ICMP message said; 0: none
	at           time.Time // when to ask next; zero: never
}

// EnableProbes tells that the peer answers probes: from now on NeedProbe asks for them, and a
// lowered MTU is raised only after a probe of the greater size was answered.
func (p *Path) EnableProbes(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.search.state == Off {
		p.search.enter(Confirm, now)
	}
}

// DisableProbes tells that there is nobody to answer probes now, because the IKE SA is gone.
func (p *Path) DisableProbes(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.search.state == Off {
		return
	}
	p.search = search{}
	p.raiseAt = time.Time{}
	if p.MTU() < p.link {
		p.raiseAt = p.later(now)
	}
}

// ProbeState returns what is being asked.
func (p *Path) ProbeState() ProbeState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.search.state
}

// Suspect tells that long packets may not arrive, for instance because the peer acknowledges
// short ones only. It costs the path one probe, and no more than one round in half a minute.
func (p *Path) Suspect(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.search.suspect(p, 0, now)
}

// NeedProbe asks for a probe: a message that the peer answers, with authentication, in one outer
// packet of exactly size octets (IP header included), with don't-fragment set, and short answers.
// After ok the owner calls ProbeResult; one probe is under way at a time.
//
// An IKE request is such a message, but it may not be dropped for being too long: its
// retransmissions are the same octets (RFC 7296, section 2.1), so a black hole would end the IKE
// SA. The way out is RFC 7383, section 2.5.2: the request goes out as one fragment of size octets,
// and when that is not answered in a few seconds, the same request in smaller fragments.
func (p *Path) NeedProbe(now time.Time) (size int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tick(now)
	s := &p.search
	if s.asked != 0 {
		return 0, false
	}
	switch s.state {
	case Confirm:
		size = p.MTU()
	case Base:
		size = s.base
	case Search:
		size = s.candidate(p)
	default:
		return 0, false
	}
	s.asked, s.sent = size, now
	return size, true
}

// ProbeResult tells whether the probe of that size was answered, and reports whether the MTU
// changed. Results of probes that were given up are ignored.
func (p *Path) ProbeResult(size int, acked bool, now time.Time) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.search.result(p, size, acked, now)
}

// enter begins a state, which has something to ask at the given time. A probe that is under way
// belongs to the last state and is forgotten.
func (s *search) enter(st ProbeState, at time.Time) {
	s.state, s.asked, s.lost, s.at = st, 0, 0, at
}

// restart asks about the MTU that is in use now.
func (s *search) restart(now time.Time) {
	if s.state != Off {
		s.enter(Confirm, now)
	}
}

// upward looks for a greater MTU than the one in use.
func (s *search) upward(p *Path, now time.Time) {
	s.enter(Search, now)
	s.lo, s.hi = p.MTU(), p.link+1
	s.settle(p, now)
}

func (s *search) done(p *Path, now time.Time) {
	s.enter(Done, p.later(now))
	s.hint = 0
}

func (s *search) suspect(p *Path, hint int, now time.Time) {
	if s.state == Off || !p.suspected.IsZero() && now.Sub(p.suspected) < suspectAgain {
		return
	}
	p.suspected = now
	s.hint = hint
	if s.state == Done || s.state == Down {
		s.enter(Confirm, now)
	}
}

// candidate returns the next size to try in Search; 0: none left.
func (s *search) candidate(p *Path) int {
	switch {
	case s.hi == p.link+1 && s.lo < p.link:
		return p.link // most likely, and the only one that ends the search at once
	case s.lo < s.hint && s.hint < s.hi:
		return s.hint
	}
	return plateauBetween(s.lo, s.hi)
}

func (s *search) tick(p *Path, now time.Time) (changed bool) {
	if s.asked != 0 && now.Sub(s.sent) >= p.probeTimeout {
		changed = s.result(p, s.asked, false, now)
	}
	if (s.state == Done || s.state == Down) && !s.at.IsZero() && !now.Before(s.at) {
		if s.state == Done && p.MTU() < p.link {
			s.upward(p, now)
		} else {
			s.enter(Confirm, now)
		}
	}
	return changed
}

func (s *search) next(p *Path) time.Time {
	if s.asked != 0 {
		return s.sent.Add(p.probeTimeout)
	}
	return s.at
}

func (s *search) result(p *Path, size int, acked bool, now time.Time) (changed bool) {
	if s.asked == 0 || size != s.asked {
		return false
	}
	s.asked, s.at = 0, now
	if !acked {
		if s.lost++; s.lost < maxProbes {
			return false
		}
	}
	s.lost = 0
	switch s.state {
	case Confirm:
		if acked {
			s.done(p, now)
			return false
		}
		s.beginBase(p, now)
	case Base:
		if acked {
			// The long ones are lost and the short ones arrive: a black hole (RFC 8899, section 4.3).
			s.lo, s.hi = s.base, p.MTU()
			s.state = Search
			changed = p.set(s.base)
			s.settle(p, now)
			return changed
		}
		if s.base > p.floor {
			s.base = p.floor
			return false
		}
		s.down(now)
	case Search:
		if acked {
			s.lo = size
			changed = p.set(size)
		} else {
			s.hi = size
		}
		s.settle(p, now)
	case Off, Done, Down: // ask nothing
	}
	return changed
}

// settle ends the search when no size is left to try.
func (s *search) settle(p *Path, now time.Time) {
	if s.candidate(p) == 0 {
		s.done(p, now)
	}
}

func (s *search) beginBase(p *Path, now time.Time) {
	s.enter(Base, now)
	s.base = max(p.floor, base4)
	if s.base >= p.MTU() {
		s.base = p.floor
	}
	if s.base >= p.MTU() {
		s.down(now)
	}
}

func (s *search) down(now time.Time) {
	s.enter(Down, now.Add(retryDown))
}
