package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A datagram of the generator begins with the number of its run, so that what is still on its way
// from the run before is not counted.
const floodHeader = 4

// floodBatch is how many datagrams the generator hands to the kernel, and the sink takes from it,
// in one system call.
const floodBatch = 64

// IMIX is the mix of packet lengths of the "simple IMIX": 7 of 64, 4 of 594 and 1 of 1400 octets
// (the original's 1518 does not fit), as UDP payloads that make inner IPv4 packets of these lengths.
// The order spreads the long ones.
var IMIX = []int{36, 566, 36, 36, 566, 36, 1372, 36, 566, 36, 566, 36}

// Flood is one run of the generator.
type Flood struct {
	// Sizes are the lengths of the UDP payloads, in turn. At least 4 octets.
	Sizes []int
	// Rate in packets per second; 0: as many as go.
	Rate float64
	For  time.Duration
	// Packets ends the run when so many have been sent; 0: For does.
	Packets uint64
	// Sources and Targets are pairs of addresses that take turns, Burst packets each. Empty: the
	// addresses of the two hosts.
	Sources, Targets []netip.Addr
	Burst            int
}

// FloodResult is what the sink saw of a run.
type FloodResult struct {
	Sent, Received uint64        // packets
	Octets         uint64        // of UDP payload, received
	Took           time.Duration // from the first packet to the last, at whichever end it was longer
}

// PPS is the rate in packets per second at which packets were received.
func (r FloodResult) PPS() float64 { return float64(r.Received) / r.Took.Seconds() }

// Mbit is the rate in Mbit/s of received UDP payload.
func (r FloodResult) Mbit() float64 { return float64(r.Octets) * 8 / 1e6 / r.Took.Seconds() }

// Loss is the part of the packets sent that were not received, in percent.
func (r FloodResult) Loss() float64 {
	if r.Sent == 0 {
		return 100
	}
	return 100 * (1 - float64(r.Received)/float64(r.Sent))
}

// mmsghdr is the kernel's struct mmsghdr; Go pads it as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

func mmsg(trap uintptr, fd int, msgs []mmsghdr, flags uintptr) (int, error) {
	n, _, e := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(msgs))), uintptr(len(msgs)), flags, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// Sink counts the datagrams of the generator on a host.
type Sink struct {
	fd   int
	to   netip.AddrPort
	stop atomic.Bool
	done chan struct{}

	mu          sync.Mutex // guards what follows
	run         uint32
	n, octets   uint64
	first, last time.Time
}

// udpSocket opens a UDP socket in the namespace, bound to a port of all addresses, with large
// buffers, and with a time limit on what blocks so that its users see when they shall stop.
func (n *Netns) udpSocket(port uint16) (fd int, err error) {
	err = n.Do(func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		limit := unix.NsecToTimeval(int64(50 * time.Millisecond))
		if err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
			unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}),
		); err != nil {
			unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("UDP socket in %s: %w", n.Name, err)
	}
	return fd, nil
}

// Sink starts a sink on a port of all addresses of the host.
func (h *Host) Sink(port uint16) (*Sink, error) {
	fd, err := h.udpSocket(port)
	if err != nil {
		return nil, err
	}
	s := &Sink{fd: fd, to: netip.AddrPortFrom(h.Addr, port), done: make(chan struct{})}
	go s.receive()
	return s, nil
}

// Close ends the sink.
func (s *Sink) Close() {
	s.stop.Store(true)
	<-s.done
	unix.Close(s.fd)
}

func (s *Sink) receive() {
	defer close(s.done)
	runtime.LockOSThread() // system calls that block for long: no need to move about
	defer runtime.UnlockOSThread()
	var (
		heads [floodBatch][floodHeader]byte
		iovs  [floodBatch]unix.Iovec
		msgs  = make([]mmsghdr, floodBatch)
	)
	for i := range msgs {
		iovs[i].Base = &heads[i][0]
		iovs[i].SetLen(floodHeader)
		msgs[i].hdr.Iov = &iovs[i]
		msgs[i].hdr.SetIovlen(1)
	}
	for !s.stop.Load() {
		// MSG_TRUNC: the whole length is told although only the head is copied.
		n, err := mmsg(unix.SYS_RECVMMSG, s.fd, msgs, unix.MSG_WAITFORONE|unix.MSG_TRUNC)
		if err != nil {
			continue // the time limit, or an interruption
		}
		now := time.Now()
		s.mu.Lock()
		for i := range n {
			if msgs[i].n < floodHeader || binary.BigEndian.Uint32(heads[i][:]) != s.run {
				continue
			}
			if s.n == 0 {
				s.first = now
			}
			s.last = now
			s.n++
			s.octets += uint64(msgs[i].n)
		}
		s.mu.Unlock()
	}
}

// begin makes the sink count a new run.
func (s *Sink) begin() (run uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run++
	s.n, s.octets, s.first, s.last = 0, 0, time.Time{}, time.Time{}
	return s.run
}

func (s *Sink) count() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// settle waits until done is true or, without done, until nothing has come in for a moment; at most
// for limit.
func (s *Sink) settle(ctx context.Context, done func() bool, limit time.Duration) {
	pause := 60 * time.Millisecond
	if done != nil {
		pause = 2 * time.Millisecond
	}
	for end, was := time.Now().Add(limit), s.count(); time.Now().Before(end) && ctx.Err() == nil; {
		if done != nil && done() {
			return
		}
		time.Sleep(pause)
		is := s.count()
		if done == nil && is == was {
			return
		}
		was = is
	}
}

// Flood sends datagrams from the host to the sink and returns what arrived there.
func (h *Host) Flood(ctx context.Context, to *Sink, f Flood) (FloodResult, error) {
	return h.flood(ctx, to, f, nil, time.Second)
}

// flood waits for what is still on its way until done is true; without done, until nothing more
// comes; at most for settle.
func (h *Host) flood(ctx context.Context, to *Sink, f Flood, done func() bool, settle time.Duration) (FloodResult, error) {
	if len(f.Sizes) == 0 || slices.Min(f.Sizes) < floodHeader || len(f.Sources) != len(f.Targets) {
		return FloodResult{}, fmt.Errorf("lab: flood of sizes %v from %d to %d addresses: want sizes of at least %d octets, and as many sources as targets", f.Sizes, len(f.Sources), len(f.Targets), floodHeader)
	}
	if len(f.Targets) == 0 {
		f.Sources, f.Targets, f.Burst = []netip.Addr{h.Addr}, []netip.Addr{to.to.Addr()}, math.MaxInt
	}
	fd, err := h.udpSocket(0)
	if err != nil {
		return FloodResult{}, err
	}
	defer unix.Close(fd)
	g := newGenerator(fd, to.begin(), to.to.Port(), f)
	var (
		r    FloodResult
		took time.Duration
	)
	sender := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		start := time.Now()
		r.Sent, err = g.send(ctx, start)
		took = time.Since(start)
		sender <- err
	}()
	if err := <-sender; err != nil {
		return r, fmt.Errorf("send from %s: %w", h.Name, err)
	}
	to.settle(ctx, done, settle)
	to.mu.Lock()
	defer to.mu.Unlock()
	r.Received, r.Octets, r.Took = to.n, to.octets, max(took, to.last.Sub(to.first))
	return r, ctx.Err()
}

// generator holds the messages of one flood: they are built before it starts.
type generator struct {
	fd   int
	f    Flood
	msgs []mmsghdr
	// what the messages point into
	iovs  []unix.Iovec
	names []unix.RawSockaddrInet4
	oob   [][]byte

	next int // number of the next packet, over all
}

func newGenerator(fd int, run uint32, port uint16, f Flood) *generator {
	payload := make([]byte, slices.Max(f.Sizes))
	binary.BigEndian.PutUint32(payload, run)
	g := &generator{
		fd: fd, f: f, msgs: make([]mmsghdr, floodBatch), iovs: make([]unix.Iovec, floodBatch),
		names: make([]unix.RawSockaddrInet4, len(f.Targets)), oob: make([][]byte, len(f.Sources)),
	}
	for i := range g.names {
		g.names[i].Family = unix.AF_INET
		g.names[i].Port = binary.NativeEndian.Uint16([]byte{byte(port >> 8), byte(port)})
		g.names[i].Addr = f.Targets[i].As4()
		g.oob[i] = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: f.Sources[i].As4()})
	}
	for i := range g.msgs {
		g.iovs[i].Base = &payload[0]
		h := &g.msgs[i].hdr
		h.Iov = &g.iovs[i]
		h.SetIovlen(1)
		h.Namelen = unix.SizeofSockaddrInet4
	}
	return g
}

// fill prepares the next n messages.
func (g *generator) fill(n int) []mmsghdr {
	for i := range n {
		k := (g.next + i) / g.f.Burst % len(g.names)
		g.iovs[i].SetLen(g.f.Sizes[(g.next+i)%len(g.f.Sizes)])
		h := &g.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&g.names[k]))
		h.Control = &g.oob[k][0]
		h.SetControllen(len(g.oob[k]))
	}
	return g.msgs[:n]
}

func (g *generator) send(ctx context.Context, start time.Time) (sent uint64, err error) {
	// Waits of a tenth of a millisecond are only that short when the timer's slack is.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	for ctx.Err() == nil { // who interrupts asks the context himself
		elapsed := time.Since(start)
		if elapsed >= g.f.For {
			break
		}
		n := floodBatch
		if g.f.Packets > 0 {
			if sent >= g.f.Packets {
				break
			}
			n = int(min(g.f.Packets-sent, floodBatch))
		}
		if g.f.Rate > 0 {
			due := uint64(g.f.Rate * elapsed.Seconds())
			if due <= sent {
				wait := unix.NsecToTimespec(int64(100 * time.Microsecond))
				_ = unix.Nanosleep(&wait, nil) // woken early: looks at the clock again
				continue
			}
			n = min(n, int(min(due-sent, floodBatch)))
		}
		k, err := mmsg(unix.SYS_SENDMMSG, g.fd, g.fill(n), 0)
		switch {
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue // the queue is full: not sent, so not lost
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EMSGSIZE):
			k = 1 // an ICMP error for an earlier packet is told in place of sending this one
		case err != nil:
			return sent, err
		}
		g.next += k
		sent += uint64(k)
	}
	return sent, nil
}

// LossFree is the highest rate in packets per second that arrives with at most maxLoss percent of
// loss, found by bisection between the rates lo and hi, on a logarithmic scale, in the given number
// of steps. A step that loses is tried once more, so that a hiccup of the machine does not decide.
// It is 0 when lo already loses.
func (h *Host) LossFree(ctx context.Context, to *Sink, f Flood, lo, hi, maxLoss float64, steps int) (float64, error) {
	return bisect(lo, hi, steps, func(rate float64) (float64, bool, error) {
		var r FloodResult
		for range 2 {
			var err error
			f.Rate = rate
			if r, err = h.Flood(ctx, to, f); err != nil {
				return 0, false, err
			}
			if r.Loss() <= maxLoss {
				return r.PPS(), true, nil
			}
		}
		return 0, false, nil
	})
}

// bisect looks for the highest rate that holds; try returns the rate that was really reached.
func bisect(lo, hi float64, steps int, try func(rate float64) (reached float64, ok bool, err error)) (best float64, err error) {
	for i := range steps {
		rate := math.Sqrt(lo * hi)
		if i == 0 {
			rate = lo
		}
		reached, ok, err := try(rate)
		switch {
		case err != nil:
			return best, err
		case ok && reached > best:
			best = reached
		case !ok && i == 0:
			return 0, nil
		}
		switch {
		case !ok:
			hi = rate
		case i > 0:
			lo = rate
		}
	}
	return best, nil
}

// Echo answers datagrams on a host, on a thread of its own.
type Echo struct {
	fd   int
	to   netip.AddrPort
	stop atomic.Bool
	done chan struct{}
}

// Echo starts an echo server on a port of all addresses of the host.
func (h *Host) Echo(port uint16) (*Echo, error) {
	fd, err := h.udpSocket(port)
	if err != nil {
		return nil, err
	}
	e := &Echo{fd: fd, to: netip.AddrPortFrom(h.Addr, port), done: make(chan struct{})}
	go func() {
		defer close(e.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		buf := make([]byte, 2048)
		for !e.stop.Load() {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err == nil {
				_ = unix.Sendto(fd, buf[:n], 0, from) // a lost answer shows at the other end
			}
		}
	}()
	return e, nil
}

// Close ends the server.
func (e *Echo) Close() {
	e.stop.Store(true)
	<-e.done
	unix.Close(e.fd)
}

// RoundTrips sends datagrams of 64 octets of payload to an echo server, one at a time with pause in
// between, and returns the times until the answers, sorted, and how many went unanswered for a
// second.
func (h *Host) RoundTrips(ctx context.Context, to *Echo, length, pause time.Duration) (times []time.Duration, lost int, err error) {
	fd, err := h.udpSocket(0)
	if err != nil {
		return nil, 0, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.to.Port()), Addr: to.to.Addr().As4()}); err != nil {
		return nil, 0, err
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		out, in := make([]byte, 64), make([]byte, 2048)
		wait := unix.NsecToTimespec(int64(pause))
		end := time.Now().Add(length)
		for number := uint64(1); time.Now().Before(end) && ctx.Err() == nil; number++ {
			binary.BigEndian.PutUint64(out, number)
			sent := time.Now()
			if _, err = unix.Write(fd, out); err != nil && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EHOSTUNREACH) {
				return
			}
			err = nil
			for {
				n, err := unix.Read(fd, in)
				now := time.Now()
				if err == nil && n == len(out) && binary.BigEndian.Uint64(in) == number {
					times = append(times, now.Sub(sent))
					break
				}
				if now.Sub(sent) > time.Second || ctx.Err() != nil {
					lost++
					break
				}
			}
			_ = unix.Nanosleep(&wait, nil) // woken early: the next one goes a little sooner
		}
	}()
	<-finished
	slices.Sort(times)
	return times, lost, errors.Join(err, ctx.Err())
}
