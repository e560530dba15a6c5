package router

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Overload: more packets come from the LAN than this machine can seal and send, and the TUN's ring
// runs over. The kernel then drops whatever comes next, so a flood in one contract would cost all
// the others their packets too. Reading and dropping a packet is cheaper than sealing and sending
// it: while the ring runs over, the heaviest connections are cut back before their packets cost
// anything, down to an equal share, until there is room in the ring for the others again.
const (
	fairWindow = int64(20 * time.Millisecond) // for which a connection's packets are counted
	overloadOn = 300 * time.Millisecond       // for how long a drop of the ring counts as overload
	ringLook   = 100 * time.Millisecond       // how often the ring's drops are looked at
)

// fairness is one outgoing worker's part. The zero value lets everything through.
type fairness struct {
	overloaded bool
	window     int64
	cap        int // packets that a connection may have in the window; 0: no limit
	active     int // connections that sent in the window
	admitted   int // packets in the window
	heaviest   int // packets of the busiest connection in the window
}

// begin is called for every round; until is the time up to which overload is assumed.
func (f *fairness) begin(now, until int64) {
	f.overloaded = now < until
	w := now / fairWindow
	if w == f.window {
		return
	}
	switch share := f.admitted / max(f.active, 1); {
	case !f.overloaded || f.active < 2:
		f.cap = 0
	case f.cap == 0:
		f.cap = max(f.heaviest*9/10, share, 1)
	default:
		f.cap = max(f.cap*9/10, share, 1)
	}
	f.window, f.active, f.admitted, f.heaviest = w, 0, 0, 0
}

// admit counts n packets and tells whether they may go on. s is the connection's shard that this
// worker alone counts in.
func (f *fairness) admit(s *trafficShard, n int) bool {
	if !f.overloaded {
		return true
	}
	if s.window != f.window {
		s.window, s.inWindow = f.window, 0
		f.active++
	}
	if f.cap > 0 && s.inWindow+n > f.cap && s.inWindow > 0 {
		return false
	}
	s.inWindow += n
	f.admitted += n
	f.heaviest = max(f.heaviest, s.inWindow)
	return true
}

// ringWatch looks at how many packets the kernel dropped at the TUN's ring.
type ringWatch struct {
	f     *os.File
	last  uint64
	begun bool
	// until is the time on the router's clock up to which overload is assumed.
	until   *atomic.Int64
	dropped *atomic.Uint64
}

// look takes up the counter; the first call only reads it.
func (r *ringWatch) look(now int64) error {
	var b [24]byte
	n, err := r.f.ReadAt(b[:], 0)
	if n == 0 {
		return err
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b[:n])), 10, 64)
	if err != nil {
		return err
	}
	if v > r.last && r.begun {
		r.dropped.Add(v - r.last)
		r.until.Store(now + int64(overloadOn))
	}
	r.last, r.begun = v, true
	return nil
}

// watchRing looks at the ring of the TUN device until stop is closed.
func (r *Router) watchRing(stop <-chan struct{}) error {
	f, err := os.Open("/sys/class/net/" + r.tunName + "/statistics/tx_dropped")
	if errors.Is(err, os.ErrNotExist) {
		return nil // no sysfs here: the kernel alone decides what is dropped
	}
	if err != nil {
		return err
	}
	defer f.Close()
	w := ringWatch{f: f, until: &r.dp.overloadUntil, dropped: &r.dp.ringDrops}
	t := time.NewTicker(ringLook)
	defer t.Stop()
	for {
		if err := w.look(r.dp.now()); err != nil {
			return err
		}
		select {
		case <-stop:
			return nil
		case <-t.C:
		}
	}
}
