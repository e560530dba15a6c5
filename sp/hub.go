package sp

import "sync"

// seat is where one device waits for its next policy.
type seat struct {
	device string
	wake   chan struct{} // one place: there may be something new
	gone   chan struct{} // closed when another request of the same device took the seat
}

// hub knows who waits. A device has one seat: its next request takes it over, so that connections that
// are dead without our knowing cost nothing for long.
type hub struct {
	mu    sync.Mutex // guards what follows
	seats map[string]*seat
	limit int
}

func newHub(limit int) *hub { return &hub{seats: map[string]*seat{}, limit: limit} }

// sit returns a seat, or nil when there are too many.
func (h *hub) sit(device string) *seat {
	s := &seat{device: device, wake: make(chan struct{}, 1), gone: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if was := h.seats[device]; was != nil {
		close(was.gone)
	} else if len(h.seats) >= h.limit {
		return nil
	}
	h.seats[device] = s
	return s
}

func (h *hub) leave(s *seat) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.seats[s.device] == s {
		delete(h.seats, s.device)
	}
}

func (h *hub) wake(device string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.seats[device]; s != nil {
		s.knock()
	}
}

// wakeIf wakes those for whom a condition holds.
func (h *hub) wakeIf(is func(device string) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for d, s := range h.seats {
		if is(d) {
			s.knock()
		}
	}
}

func (s *seat) knock() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
