package wire

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Socket is one queue of a Group. One goroutine receives; any number send, each by its own Sender.
type Socket struct {
	g     *Group
	queue int
	fd    uintptr // used only by who holds the receiver's, a sender's or the socket's mutex and saw the group open: see quiesce

	onError atomic.Pointer[func(PathError)]
	// pending says that something may lie in the error queue: a sender was given an error. A
	// receiver that waits sees that for itself; this is for one that is busy.
	pending atomic.Bool

	// errors is held by who reads the error queue, and by a sender that sends again because of an
	// error: each error that is read makes the next one in the queue pending.
	errors sync.Mutex

	receive receiver // belongs to the goroutine in Receive, but for its counters

	mu      sync.Mutex
	senders []*Sender // guarded by mu; for their counters
}

// newSocket takes fd over.
func newSocket(g *Group, queue, fd int) *Socket {
	s := &Socket{g: g, queue: queue, fd: uintptr(fd)}
	s.receive.init(s)
	return s
}

// Group returns the group that the socket is of.
func (s *Socket) Group() *Group { return s.g }

// Queue returns the socket's index in its group.
func (s *Socket) Queue() int { return s.queue }

// OnError has f called with what the network, or the own kernel, says about datagrams that were
// sent from this port. f is called by Receive, in its goroutine; it must not close the group. ICMP
// errors say nothing reliable: anybody can send them. An error about a group of UDP sockets comes
// to any one of them; for native ESP all come to the first.
func (s *Socket) OnError(f func(PathError)) { s.onError.Store(&f) }

// Counters returns what the socket did so far, all of its senders together.
func (s *Socket) Counters() Counters {
	c := s.counters()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.g.closed.Load() {
		if n, ok := drops(s.fd); ok {
			c.InDropped = uint64(n)
		}
	}
	return c
}

// counters are those that the kernel need not be asked for.
func (s *Socket) counters() (c Counters) {
	s.receive.into(&c)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.senders {
		x.into(&c)
	}
	return c
}

// quiesce waits until nobody uses the descriptor any more. The group's closed is set, and the stop
// eventfd is readable: who uses the descriptor does not wait, and who comes later sees closed.
func (s *Socket) quiesce() {
	s.receive.using.Lock()
	//lint:ignore SA2001 to have held it is all that is wanted
	s.receive.using.Unlock() //nolint:staticcheck // as above
	s.mu.Lock()              // Counters; and every sender that may have seen the group open is in senders
	senders := s.senders
	s.mu.Unlock()
	for _, x := range senders {
		x.using.Lock()
		//lint:ignore SA2001 as above
		x.using.Unlock() //nolint:staticcheck // as above
	}
}

// wrap makes the error that a caller sees of one that ends a socket's use.
func (s *Socket) wrap(op string, err error) error {
	return fmt.Errorf("wire: %s on port %d, queue %d: %w", op, s.g.opt.Port, s.queue, err)
}

// passing tells whether an error of a call may be about a datagram that was sent before (udp(7)):
// it was pending, the call did nothing, and the next one will not see it. These are the errors that
// Linux makes of ICMP messages.
func passing(e unix.Errno) bool {
	switch e {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EMSGSIZE, unix.ENOPROTOOPT, unix.EOPNOTSUPP,
		unix.EHOSTDOWN, unix.ENONET, unix.EACCES, unix.EPROTO:
		return true
	default:
		return false
	}
}
