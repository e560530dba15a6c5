package router

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"wardgate/ike"
	"wardgate/router/wire"
)

// Bounds of TCP encapsulation (RFC 9329). A stranger is a TCP connection that a peer opened and on
// which no IKE SA stands: it may cost 64 KiB and half a minute.
const (
	maxStrangers     = 256
	maxStrangersAddr = 16 // of one address
	prefixTime       = 10 * time.Second
	strangerTime     = 40 * time.Second // IKE gives all rounds 30 s, and a cookie is not asked for
	strangerMessages = 256              // IKE messages until then
	maxSuspect       = 64               // messages in a row that nobody knows
	idleStream       = 5 * time.Second  // after its last IKE SA, until we close it if the peer did not
	dialTime         = 10 * time.Second
	reopenFirst      = 100 * time.Millisecond // a broken connection is opened anew
	reopenMax        = 10 * time.Second
	reopenGood       = 30 * time.Second // having stood so long, a connection begins with reopenFirst again
)

var (
	errSuspect = fmt.Errorf("%d messages in a row are of no SA that is known here", maxSuspect)
	errCorrupt = errors.New("an ESP packet is not authentic: the octets were changed on their way")
	errFlood   = fmt.Errorf("more than %d IKE messages before anything was proved", strangerMessages)
)

// streams are the router's TCP connections.
type streams struct {
	r       *Router
	opt     wire.StreamOptions
	count   wire.StreamCounters
	refused atomic.Uint64 // connections that were closed at once: too many
	workers []streamWorker
	ctx     context.Context //nolint:containedctx // the streams' own life, which ends with stop
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu        sync.Mutex // guards what follows
	listeners []*net.TCPListener
	m         map[uint64]*stream
	bySA      map[ike.SAID]*stream // which one an IKE SA uses
	accepted  int                  // of m
	strangers int                  // of accepted
	byAddr    map[netip.Addr]int   // strangers
	closed    bool
}

// streamWorker takes what comes in on some of the streams to the TUN, for one of them at a time.
type streamWorker struct {
	mu        sync.Mutex
	*inWorker // nil: not needed yet
}

// stream is a TCP connection under its number. One that we have opened is opened anew when it breaks,
// so that it may be another one each time.
type stream struct {
	id     uint64
	t      *streams
	dialed bool
	conn   atomic.Pointer[wire.Stream] // nil: it does not stand
	path   atomic.Pointer[ike.Path]    // nil: it never stood
	known  atomic.Bool                 // not a stranger: an IKE SA stands on it, or we opened it
	stop   context.CancelFunc          // of one that we opened

	users  int      // IKE SAs; guarded by streams.mu
	told   ike.SAID // receiver's: whose ESP was told to IKE
	badRun int      // receiver's: messages of no known SA, in a row
	ikes   int      // receiver's: IKE messages from a stranger
}

func (r *Router) newStreams() *streams {
	t := &streams{r: r, m: make(map[uint64]*stream), bySA: make(map[ike.SAID]*stream), byAddr: make(map[netip.Addr]int)}
	t.opt = wire.StreamOptions{Mark: r.mark(), Count: &t.count}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.workers = make([]streamWorker, len(r.dp.queues))
	return t
}

// listen opens the port.
func (t *streams) listen(addr netip.AddrPort) error {
	l, err := wire.ListenStreams(addr, t.opt)
	if err != nil {
		return err
	}
	t.listeners = append(t.listeners, l)
	return nil
}

// run takes connections until close.
func (t *streams) run() {
	for _, l := range t.listeners {
		t.wg.Go(func() {
			for {
				c, err := l.AcceptTCP()
				switch {
				case err == nil:
					t.accept(c)
				case errors.Is(err, net.ErrClosed):
					return
				default: // too many files, say
					t.r.log.Warn("cannot take a TCP connection", zap.Error(err))
					select {
					case <-time.After(time.Second):
					case <-t.ctx.Done():
						return
					}
				}
			}
		})
	}
}

// accept takes a connection in, if there is room.
func (t *streams) accept(c *net.TCPConn) {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		_ = c.Close()
		return
	}
	addr := tcp.AddrPort().Addr().Unmap()
	t.mu.Lock()
	full := t.closed || t.accepted >= t.r.cfg.Limits.TCPConnections || t.strangers >= maxStrangers || t.byAddr[addr] >= maxStrangersAddr
	if !full {
		t.accepted++
		t.strangers++
		t.byAddr[addr]++
	}
	t.mu.Unlock()
	if full {
		t.refused.Add(1)
		_ = c.SetLinger(0) // it leaves nothing behind
		_ = c.Close()
		return
	}
	conn, err := wire.AcceptStream(c, t.opt)
	if err != nil {
		t.r.log.Warn("cannot take a TCP connection", zap.Stringer("remote", addr), zap.Error(err))
		t.mu.Lock()
		t.accepted--
		t.notStrangerLocked(addr)
		t.mu.Unlock()
		return
	}
	s := &stream{id: t.r.ep.NewStream(), t: t}
	s.stand(conn)
	conn.SetDeadline(time.Now().Add(prefixTime))
	t.mu.Lock()
	t.m[s.id] = s
	closed := t.closed
	t.mu.Unlock()
	if closed {
		conn.Close()
	}
	t.wg.Go(func() {
		err := s.receive(conn)
		conn.End() // what waits for the peer is sent
		t.mu.Lock()
		delete(t.m, s.id)
		t.accepted--
		if !s.known.Swap(true) {
			t.notStrangerLocked(addr)
		}
		t.mu.Unlock()
		s.conn.Store(nil)
		t.r.log.Debug("TCP connection ended", zap.Stringer("remote", conn.Remote()), zap.Error(err))
	})
}

func (t *streams) notStrangerLocked(addr netip.Addr) {
	t.strangers--
	if t.byAddr[addr]--; t.byAddr[addr] <= 0 {
		delete(t.byAddr, addr)
	}
}

// stand notes that the connection stands.
func (s *stream) stand(conn *wire.Stream) {
	s.path.Store(&ike.Path{Local: conn.Local(), Remote: conn.Remote(), Stream: s.id})
	s.conn.Store(conn)
}

// open opens a connection to a gateway and keeps it open; ike.Config.OpenStream.
func (t *streams) open(id uint64, local netip.Addr, remote netip.AddrPort) {
	ctx, stop := context.WithCancel(t.ctx)
	s := &stream{id: id, t: t, dialed: true, stop: stop}
	s.known.Store(true)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		stop()
		return
	}
	t.m[id] = s
	t.wg.Go(func() {
		defer stop()
		s.keepOpen(ctx, local, remote)
		t.mu.Lock()
		delete(t.m, id)
		t.mu.Unlock()
	})
}

// keepOpen opens the connection, and again when it breaks, until ctx ends.
func (s *stream) keepOpen(ctx context.Context, local netip.Addr, remote netip.AddrPort) {
	r, wait, stood := s.t.r, reopenFirst, false
	for ctx.Err() == nil {
		dial, cancel := context.WithTimeout(ctx, dialTime)
		conn, err := wire.DialStream(dial, local, remote, s.t.opt)
		cancel()
		if err == nil {
			r.log.Info("TCP connection to the peer's gateway stands", zap.Stringer("remote", remote), zap.Bool("again", stood))
			stood = true
			began := time.Now()
			s.stand(conn)
			end := context.AfterFunc(ctx, conn.End)
			r.ep.StreamUp(*s.path.Load())
			err = s.receive(conn)
			s.conn.Store(nil)
			end()
			conn.End()
			if time.Since(began) > reopenGood {
				wait = reopenFirst
			}
		}
		if ctx.Err() != nil {
			return
		}
		r.log.Info("TCP connection to the peer's gateway does not stand", zap.Stringer("remote", remote), zap.Error(err))
		r.ep.StreamDown(s.id, err)
		if !stood {
			<-ctx.Done() // IKE says what is next
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, reopenMax)
	}
}

// closeStream is ike.Config.CloseStream.
func (t *streams) closeStream(id uint64) {
	if s := t.get(id); s != nil && s.stop != nil {
		s.stop()
	}
}

func (t *streams) get(id uint64) *stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[id]
}

// sendIKE sends an IKE message. What cannot be sent is dropped: on the next connection IKE sends again
// what matters.
func (t *streams) sendIKE(p ike.Path, msg []byte) error {
	s := t.get(p.Stream)
	if s == nil {
		return errBrokenStream
	}
	conn := s.conn.Load()
	if conn == nil {
		return errBrokenStream
	}
	return conn.SendIKE(msg)
}

var errBrokenStream = errors.New("the TCP connection does not stand")

// of returns the stream for the ESP packets of a path: one that does not stand when it is gone.
func (t *streams) of(id uint64) *stream {
	if s := t.get(id); s != nil {
		return s
	}
	return &stream{id: id, t: t}
}

// use notes which stream an IKE SA uses; 0: none any more. A stream of the peer's that is not used any
// more is closed, if the peer does not do it (RFC 9329, section 6.1).
func (t *streams) use(sa ike.SAID, id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, s := t.bySA[sa], t.m[id]
	if old == s {
		return
	}
	if s == nil {
		delete(t.bySA, sa)
	} else {
		t.bySA[sa] = s
		s.users++
		if !s.known.Swap(true) {
			t.notStrangerLocked(s.path.Load().Remote.Addr())
		}
		if conn := s.conn.Load(); conn != nil && !s.dialed {
			conn.SetDeadline(time.Time{})
		}
	}
	if old != nil {
		if old.users--; old.users == 0 && !old.dialed {
			time.AfterFunc(idleStream, old.endIdle)
		}
	}
}

func (s *stream) endIdle() {
	s.t.mu.Lock()
	idle := s.users == 0
	s.t.mu.Unlock()
	if conn := s.conn.Load(); idle && conn != nil {
		conn.End()
	}
}

// receive takes what comes until the connection ends, and returns why.
func (s *stream) receive(conn *wire.Stream) error {
	x := wire.NewInbox(headroom, !s.dialed)
	begun, large := s.dialed, false
	queue := int(s.id % uint64(len(s.t.workers)))
	w := &s.t.workers[queue]
	for {
		err := conn.Receive(x)
		if !begun && x.Begun() {
			begun = true
			if !s.known.Load() {
				conn.SetDeadline(time.Now().Add(strangerTime))
			}
			if s.known.Load() {
				conn.SetDeadline(time.Time{})
			}
		}
		if len(x.Messages) > 0 {
			w.mu.Lock()
			if w.inWorker == nil {
				w.inWorker = newStreamInWorker(s.t.r.dp.newWorker(queue, queue))
			}
			e := w.streamRound(s, x)
			w.mu.Unlock()
			if e != nil {
				return e
			}
		}
		if err != nil {
			return err
		}
		if !large && s.known.Load() {
			large = true
			x.Enlarge()
		}
	}
}

// esp tells IKE that an authentic packet of child came in on the stream (RFC 9329, section 6.1): the
// peer may have opened it in the place of another one.
func (s *stream) esp(child *childSA) {
	s.badRun = 0
	if s.dialed || s.told == child.sa || child.path.Load().stream == s {
		return
	}
	s.told = child.sa
	s.t.r.ep.StreamUsed(child.sa, *s.path.Load())
}

// close ends all connections and waits for their goroutines.
func (t *streams) close() {
	t.mu.Lock()
	t.closed = true
	for _, l := range t.listeners {
		_ = l.Close()
	}
	var conns []*wire.Stream
	for _, s := range t.m {
		if c := s.conn.Load(); c != nil {
			conns = append(conns, c)
		}
	}
	t.mu.Unlock()
	t.cancel()
	for _, c := range conns {
		c.End()
	}
	done := make(chan struct{})
	go func() { t.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Second): // the last words had their time
	}
	for _, c := range conns {
		c.Close()
	}
	<-done
}

// counters are for the status.
func (t *streams) counters(to map[string]uint64) {
	c := &t.count
	t.mu.Lock()
	n, strangers := len(t.m), t.strangers
	t.mu.Unlock()
	for name, v := range map[string]uint64{
		"connections": uint64(n), "unproved": uint64(strangers), "refused": t.refused.Load(),
		"in_messages": c.InMessages.Load(), "in_bytes": c.InBytes.Load(), "in_calls": c.InCalls.Load(),
		"out_messages": c.OutMessages.Load(), "out_bytes": c.OutBytes.Load(), "out_calls": c.OutCalls.Load(),
		"out_waits": c.OutWaits.Load(), "out_dropped": c.OutDropped.Load(),
	} {
		to["tcp_"+name] = v
	}
}
