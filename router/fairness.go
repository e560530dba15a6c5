package router

import (
	"errors"
	"math"
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
	fairBurst  = 32                           // packets in a row that are nobody's fault
	ringLook   = 5 * fairWindow               // how often the ring's drops are looked at, and the limit is moved
)

// fairness is one outgoing worker's part. The zero value lets everything through.
type fairness struct {
	on      bool   // the ring ran over lately
	drops   uint64 // of the ring, when the limit was moved last
	moved   int64  // window of that
	window  int64
	limit   int // packets that a connection may have in a window
	allowed int // of these, by now: the limit is spread over the window, for the ring is short
	active  int // connections that sent in the window
	sent    int // packets in the window
	busiest int // packets of the busiest connection in the window, admitted or not
	peak    int // most packets in a window, of late: what this machine can carry
}

// begin is called for every round; drops is how many packets the ring has dropped.
func (f *fairness) begin(now int64, drops uint64) {
	w := now / fairWindow
	if f.on {
		f.allowed = fairBurst + int(float64(f.limit)*float64(now%fairWindow)/float64(fairWindow))
	}
	if w == f.window {
		return
	}
	if f.on {
		f.peak = max(f.peak-f.peak/256, f.sent)
	}
	if w-f.moved >= ringLook/fairWindow {
		f.move(drops)
		f.moved = w
	}
	f.window, f.active, f.sent, f.busiest = w, 0, 0, 0
}

// move lowers the limit while the ring runs over, and raises it slowly while it does not.
func (f *fairness) move(drops uint64) {
	over := drops != f.drops
	f.drops = drops
	switch {
	case over && !f.on:
		f.on, f.limit, f.allowed, f.peak = true, math.MaxInt32, math.MaxInt32, 0 // the next windows tell what is going on
	case over && f.active > 1:
		// An equal share is what each is entitled to; half of one, because reading and dropping
		// the rest costs something too.
		f.limit = max(min(f.limit, f.busiest)/4*3, f.peak/f.active/2, 1)
	case !over && f.on:
		if f.limit > 2*f.busiest {
			*f = fairness{drops: f.drops, window: f.window}
			return
		}
		f.limit += f.limit/16 + 1
	}
}

// admit counts n packets and tells whether they may go on. s is the connection's shard that this
// worker alone counts in.
func (f *fairness) admit(s *trafficShard, n int) bool {
	if !f.on {
		return true
	}
	if s.window != f.window {
		s.window, s.inWindow, s.passed = f.window, 0, 0
		f.active++
	}
	before := s.inWindow
	s.inWindow += n
	f.busiest = max(f.busiest, s.inWindow)
	if before > 0 && s.passed+n > f.allowed {
		return false
	}
	s.passed += n
	f.sent += n
	return true
}

// ringWatch looks at how many packets the kernel dropped at the TUN's ring.
type ringWatch struct {
	f       *os.File
	last    uint64
	begun   bool
	dropped *atomic.Uint64
}

// look takes up the counter; the first call only reads it.
func (r *ringWatch) look() error {
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
	w := ringWatch{f: f, dropped: &r.dp.ringDrops}
	t := time.NewTicker(time.Duration(ringLook))
	defer t.Stop()
	for {
		if err := w.look(); err != nil {
			return err
		}
		select {
		case <-stop:
			return nil
		case <-t.C:
		}
	}
}
