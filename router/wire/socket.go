package wire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Socket is one queue of a Group. One goroutine receives; any number send, each by its own Sender.
type Socket struct {
	g     *Group
	queue int
	fd    uintptr // used only inside of the calls of in and out, which hold off Close

	// The runtime's poller watches these instead of the socket. If it watched the socket itself,
	// each datagram that is received or has left would wake one of its threads, also while nobody
	// waits: that costs as much as the datagram.
	in, out gate

	closed  atomic.Bool // set before the gates are closed: RawConn's own error for it is not exported
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

// gate is an epoll instance with the socket in it, watched by the runtime's poller. It is open or
// shut: shut, nothing that happens at the socket but errors passes.
type gate struct {
	file *os.File
	conn syscall.RawConn
	fd   int
	open bool // belongs to who waits
}

func newGate(fd int) (gate, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return gate{}, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{}); err != nil {
		_ = unix.Close(ep)
		return gate{}, os.NewSyscallError("epoll_ctl", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil {
		_ = unix.Close(ep)
		return gate{}, os.NewSyscallError("fcntl", err)
	}
	// A non-blocking descriptor goes to the runtime's poller: waiting costs no thread, and Close
	// wakes who waits.
	g := gate{file: os.NewFile(uintptr(ep), "epoll"), fd: ep}
	if g.conn, err = g.file.SyscallConn(); err != nil {
		_ = g.file.Close()
		return gate{}, err
	}
	return g, nil
}

// set has the events pass from now on; if one is there already, who waits is woken.
func (g *gate) set(fd uintptr, events uint32) {
	if g.file != nil { // none in tests without a socket
		_ = unix.EpollCtl(g.fd, unix.EPOLL_CTL_MOD, int(fd), &unix.EpollEvent{Events: events})
	}
}

// newSocket takes fd over, also when it fails.
func newSocket(g *Group, queue, fd int) (*Socket, error) {
	s := &Socket{g: g, queue: queue, fd: uintptr(fd)}
	s.receive.init(s)
	var err error
	if s.in, err = newGate(fd); err == nil {
		if s.out, err = newGate(fd); err == nil {
			return s, nil
		}
		_ = s.in.file.Close()
	}
	_ = unix.Close(fd)
	return nil, err
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
	_ = s.in.conn.Control(func(uintptr) { // fails once it is closed
		if n, ok := drops(s.fd); ok {
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

// poke has the receiver look at the error queue. An error wakes it; but one that comes while it is
// busy, and that a sender is given, leaves no trace for it. Here pending is set before parked is
// read, and in Receive the other way round: one of the two sees the other.
func (s *Socket) poke() {
	s.pending.Store(true)
	if s.parked.Load() {
		s.in.set(s.fd, unix.EPOLLIN)
	}
}

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
	// After these nobody uses the socket any more.
	err := errors.Join(s.in.file.Close(), s.out.file.Close())
	return errors.Join(err, os.NewSyscallError("close", unix.Close(int(s.fd))))
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
