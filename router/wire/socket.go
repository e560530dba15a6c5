package wire

import (
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is one queue of a Group. One goroutine receives; any number send, each by its own Sender.
type Socket struct {
	g     *Group
	queue int
	file  *os.File
	conn  syscall.RawConn

	closed  atomic.Bool // set before file is closed: RawConn's own error for it is not exported
	onError atomic.Pointer[func(PathError)]
	// pending says that something may lie in the error queue: a sender was given an error. parked
	// says that the receiver waits, or is about to. See poke.
	pending, parked atomic.Bool

	// errors is held by who reads the error queue, and by a sender that sends again because of an
	// error: each error that is read makes the next one in the queue pending.
	errors sync.Mutex

	receive receiver // belongs to the goroutine in Receive, but for its counters

	mu      sync.Mutex
	senders []*Sender // guarded by mu; for their counters
}

func newSocket(g *Group, queue int, f *os.File, conn syscall.RawConn) *Socket {
	s := &Socket{g: g, queue: queue, file: f, conn: conn}
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
	_ = s.conn.Control(func(fd uintptr) { // fails once it is closed
		if n, ok := drops(fd); ok {
			c.InDropped = uint64(n)
		}
	})
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

// poke has the receiver look at the error queue. The poller wakes it for most errors; but one that
// comes while it is busy, and that a sender is given, leaves no trace for it. Here pending is set
// before parked is read, and in Receive the other way round: one of the two sees the other.
func (s *Socket) poke() {
	s.pending.Store(true)
	if s.parked.Load() {
		_ = s.file.SetReadDeadline(longAgo)
	}
}

// longAgo as a deadline wakes who waits.
var longAgo = time.Unix(1, 0)

// wrap makes the error that a caller sees of one that ends a socket's use.
func (s *Socket) wrap(op string, err error) error {
	if s.closed.Load() {
		return net.ErrClosed
	}
	return fmt.Errorf("wire: %s on port %d, queue %d: %w", op, s.g.opt.Port, s.queue, err)
}

func (s *Socket) close() error {
	if s.closed.Swap(true) {
		return nil
	}
	return s.file.Close()
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
