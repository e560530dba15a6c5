package wire

import (
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Who must wait blocks its thread in ppoll(2), on the socket and on an eventfd that Close makes
// readable. The runtime's poller knows nothing of the sockets: it would watch them edge-triggered,
// and wake one of its threads for each datagram that comes or has left, also while nobody waits.

// newStop makes the eventfd that ends all waiting in the group.
func newStop() (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return fd, os.NewSyscallError("eventfd", err)
}

// yieldEvery is how often a receiver that keeps waiting calls Gosched. Each time that wakes another
// thread, which finds nothing; but a goroutine that never calls it loses its processor to the
// runtime's monitor at every wait, after 10 ms, which costs more (measured on the TUN device). Who
// has made goroutines ready that should not wait for the monitor calls it before.
const yieldEvery = 4 * time.Millisecond

var started = time.Now()

// yield calls Gosched if that is due; last is when it was.
func yield(last *time.Duration) {
	if now := time.Since(started); now-*last >= yieldEvery {
		*last = now
		runtime.Gosched()
	}
}

// wait waits until one of the events, or an error, is at fd, and tells which. open is false once
// the group is being closed. fd -1: it waits for the time alone. millis -1: as long as it takes.
func (g *Group) wait(fd int, events int16, millis int) (revents int16, open bool) {
	for !g.closed.Load() {
		revents, e := g.sys.poll(fd, g.stop, events, millis)
		if e == unix.EINTR {
			continue
		}
		// Other errors are the moment's, like ENOMEM: the caller's next attempt tells.
		return revents, !g.closed.Load()
	}
	return 0, false
}
