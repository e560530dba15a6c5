package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a stream may hold back while the network takes nothing, in octets. ESP beyond that is dropped,
// as every router drops what its link does not take; IKE has more, since nobody sends it again (RFC
// 9329, section 6.2).
const (
	streamQueue    = 256 << 10
	streamQueueIKE = streamQueue + 256<<10
	// unsentLimit is what the kernel holds back beside, of what it has not sent once.
	unsentLimit = 128 << 10
)

// How long a TCP connection may stand without an answer before it counts as broken. Whether the peer
// lives is IKE's to find out.
const (
	userTimeout   = 10 * time.Second // what was sent is not acknowledged
	keepIdle      = 15 * time.Second
	keepInterval  = 5 * time.Second
	keepCount     = 3
	lingerTimeout = 3 * time.Second // between our last octet and the peer's
)

// StreamCounters are what all streams of a router did.
type StreamCounters struct {
	InMessages, InBytes, InCalls, OutMessages, OutBytes, OutCalls, OutWaits, OutDropped atomic.Uint64
}

// Stream is a TCP connection that carries IKE and ESP messages (RFC 9329). One goroutine receives,
// any number send.
type Stream struct {
	c     *net.TCPConn
	raw   syscall.RawConn
	count *StreamCounters

	once sync.Once
	wake chan struct{} // to writer
	done chan struct{} // closed by Close

	mu      sync.Mutex // guards what follows
	queue   []byte     // whole messages, but for what of the first was written
	spare   []byte
	writing bool // writer has taken over
	ending  bool // nothing more is taken
	broken  bool
	write   func(fd uintptr) bool // one attempt to write queue
	wrote   int
	errno   error
}

// StreamOptions say how to make a TCP connection.
type StreamOptions struct {
	Mark  uint32 // fwmark, unless 0; needs CAP_NET_ADMIN
	Count *StreamCounters
}

// DialStream opens a TCP connection, from any address when local is the zero Addr, and sends the
// prefix.
func DialStream(ctx context.Context, local netip.Addr, remote netip.AddrPort, opt StreamOptions) (*Stream, error) {
	d := net.Dialer{Control: opt.control, KeepAlive: -1}
	if local.IsValid() && !local.IsUnspecified() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	c, err := d.DialContext(ctx, "tcp", remote.String())
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	s, err := newStream(c.(*net.TCPConn), opt.Count) //nolint:errcheck,forcetypeassert // "tcp" dials nothing else
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.queue = append(s.queue, StreamPrefix...) // goes with the first message
	s.mu.Unlock()
	return s, nil
}

// ListenStreams opens the port on which TCP connections are taken; addr may be unspecified.
func ListenStreams(addr netip.AddrPort, opt StreamOptions) (*net.TCPListener, error) {
	lc := net.ListenConfig{Control: opt.control, KeepAlive: -1}
	network := "tcp4"
	if addr.Addr().Is6() {
		network = "tcp6" // and nothing else: sets IPV6_V6ONLY
	}
	l, err := lc.Listen(context.Background(), network, addr.String())
	if err != nil {
		hint := ""
		if errors.Is(err, unix.EADDRINUSE) {
			hint = " (another program listens there: stop it, set network.tcp_port, or network.tcp = \"never\")"
		}
		return nil, fmt.Errorf("wire: %w%s", err, hint)
	}
	return l.(*net.TCPListener), nil //nolint:errcheck,forcetypeassert // "tcp4" and "tcp6" give nothing else
}

// AcceptStream makes a stream of a TCP connection that came in.
func AcceptStream(c *net.TCPConn, opt StreamOptions) (*Stream, error) { return newStream(c, opt.Count) }

// control sets what has to be set before a socket connects or listens.
func (opt StreamOptions) control(network, _ string, c syscall.RawConn) error {
	var err error
	e := c.Control(func(fd uintptr) {
		if opt.Mark != 0 {
			err = os.NewSyscallError("set SO_MARK", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(opt.Mark)))
		}
		if network == "tcp6" && err == nil {
			// RFC 9329, section 6.1: the flow label stays the same when the connection is opened anew. It
			// is zero then.
			err = os.NewSyscallError("set IPV6_AUTOFLOWLABEL", unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_AUTOFLOWLABEL, 0))
		}
	})
	return errors.Join(e, err)
}

func newStream(c *net.TCPConn, count *StreamCounters) (*Stream, error) {
	raw, err := c.SyscallConn()
	if err == nil {
		err = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: keepInterval, Count: keepCount})
	}
	if err == nil {
		var e error
		err = raw.Control(func(fd uintptr) {
			e = errors.Join(
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds())),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit))
		})
		err = errors.Join(err, e)
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("wire: TCP connection: %w", err)
	}
	if count == nil {
		count = &StreamCounters{}
	}
	s := &Stream{c: c, raw: raw, count: count, wake: make(chan struct{}, 1), done: make(chan struct{})}
	s.write = func(fd uintptr) bool {
		for {
			n, err := unix.SendmsgN(int(fd), s.queue, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if err == unix.EINTR { //nolint:errorlint // an Errno as it comes
				continue
			}
			s.wrote, s.errno = max(n, 0), err
			return true
		}
	}
	go s.writer()
	return s, nil
}

// Local returns the local address and port.
func (s *Stream) Local() netip.AddrPort { return addrOf(s.c.LocalAddr()) }

// Remote returns the peer's.
func (s *Stream) Remote() netip.AddrPort { return addrOf(s.c.RemoteAddr()) }

func addrOf(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// SetDeadline has Receive fail when nothing came until then; the zero time: it waits as long as it
// takes.
func (s *Stream) SetDeadline(t time.Time) {
	_ = s.c.SetReadDeadline(t) // fails on a closed connection only, and then Receive does, too
}

// Receive waits until something comes and puts the messages into x.Messages, which may be none. An
// error ends the stream: io.EOF when the peer closed it, ErrPrefix, ErrLength, or the system's.
// x.Messages holds what came before it.
func (s *Stream) Receive(x *Inbox) error {
	x.Messages = x.Messages[:0]
	n, err := s.c.Read(x.Space())
	if n > 0 {
		s.count.InCalls.Add(1)
		s.count.InBytes.Add(uint64(n))
		e := x.Took(n)
		s.count.InMessages.Add(uint64(len(x.Messages)))
		if e != nil {
			return e
		}
	}
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return err
	default:
		return fmt.Errorf("wire: TCP connection: %w", err)
	}
}

// Send sends the datagrams of the messages, each as one, without waiting. Those for which there is no
// room are dropped, with ENOBUFS; it returns their number. Destinations are not looked at.
func (s *Stream) Send(msgs []Message) (dropped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sent := 0
	for i := range msgs {
		m := &msgs[i]
		m.Err = nil
		size := m.Segment
		if size <= 0 {
			size = max(len(m.Buf), 1)
		}
		for b := m.Buf; len(b) > 0; {
			n := min(size, len(b))
			if s.broken || s.ending || n > MaxMessage || len(s.queue)+lengthField+n > streamQueue {
				m.Err = unix.ENOBUFS
				dropped++
			} else {
				s.queue = appendMessage(s.queue, b[:n])
				sent++
			}
			b = b[n:]
		}
	}
	s.count.OutMessages.Add(uint64(sent))
	s.count.OutDropped.Add(uint64(dropped))
	s.flush()
	return dropped
}

// nonESP stands before IKE messages (RFC 9329, section 3.1).
var nonESP [4]byte

// SendIKE sends an IKE message, without waiting. When there is no room even for that, the connection
// breaks: who waits for the message sends it again on the next one.
func (s *Stream) SendIKE(msg []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch n := len(nonESP) + len(msg); {
	case s.broken || s.ending:
		return net.ErrClosed
	case n > MaxMessage:
		return fmt.Errorf("wire: IKE message of %d octets: expected at most %d for TCP", len(msg), MaxMessage-len(nonESP))
	case len(s.queue)+lengthField+n > streamQueueIKE:
		s.breakOff()
		return unix.ENOBUFS
	}
	s.queue = appendMessage(s.queue, nonESP[:], msg)
	s.count.OutMessages.Add(1)
	s.flush()
	return nil
}

// flush writes as much as goes at once and leaves the rest to writer. s.mu is held.
func (s *Stream) flush() {
	if s.writing || s.broken || len(s.queue) == 0 {
		return
	}
	s.wrote, s.errno = 0, nil
	if err := s.raw.Write(s.write); err != nil {
		s.errno = err
	}
	s.count.OutCalls.Add(1)
	s.count.OutBytes.Add(uint64(s.wrote))
	if s.errno != nil && !errors.Is(s.errno, unix.EAGAIN) {
		s.breakOff()
		return
	}
	if s.queue = s.queue[:copy(s.queue, s.queue[s.wrote:])]; len(s.queue) > 0 {
		s.writing = true
		s.count.OutWaits.Add(1)
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// writer writes what did not go at once.
func (s *Stream) writer() {
	for {
		select {
		case <-s.wake:
		case <-s.done:
			return
		}
		for {
			s.mu.Lock()
			b := s.queue
			if len(b) == 0 {
				s.writing = false
				s.mu.Unlock()
				break
			}
			s.queue, s.spare = s.spare[:0], nil
			s.mu.Unlock()
			n, err := s.c.Write(b)
			s.count.OutCalls.Add(1)
			s.count.OutBytes.Add(uint64(n))
			s.mu.Lock()
			s.spare = b[:0]
			if err != nil {
				s.breakOff()
				s.mu.Unlock()
				return
			}
			if s.ending && len(s.queue) == 0 {
				s.finish()
			}
			s.mu.Unlock()
		}
	}
}

// breakOff ends the connection: who receives is told. s.mu is held.
func (s *Stream) breakOff() {
	s.broken, s.queue = true, nil
	_ = s.c.Close()
}

// finish tells the peer that nothing more comes. s.mu is held.
func (s *Stream) finish() {
	if s.c.CloseWrite() != nil {
		_ = s.c.Close()
	}
}

// End sends what waits, tells the peer that nothing more comes, and closes the connection when the peer
// did the same, or after a moment.
func (s *Stream) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending || s.broken {
		return
	}
	s.ending = true
	if len(s.queue) == 0 && !s.writing {
		s.finish()
	}
	time.AfterFunc(lingerTimeout, s.Close)
}

// Close closes the connection here and now. It may be called twice.
func (s *Stream) Close() {
	s.once.Do(func() { close(s.done) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.broken {
		s.breakOff()
	}
}
