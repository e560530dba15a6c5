package tun

import (
	"cmp"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// queue is one file descriptor of the device. read… belongs to the caller of ReadBatch, write… to
// that of WriteBatch; the counters are written by them and read by anybody.
type queue struct {
	fd     uintptr // non-blocking. Only for who holds one of the two locks and found closed not set
	closed atomic.Bool

	read struct {
		use  sync.Mutex // held while fd is read, or waited for
		wait waiter
		sys  func(fd uintptr, b []byte) (int, unix.Errno) // read; tests put another kernel here
		raw  []byte                                       // header and packet as the kernel gave them
		seg  segmenter
		bufs [][]byte
		size []int
		off  int
		n    int

		burst burstReader

		packets, bytes, calls, malformed, tooLong atomic.Uint64
	}
	_ [64]byte

	write writer
}

// writer is what WriteBatch needs.
type writer struct {
	use  sync.Mutex // held while fd is written, or waited for
	wait waiter
	glue coalescer
	iov  []unix.Iovec
	sys  func(fd uintptr, iov []unix.Iovec) unix.Errno // writev; tests put a kernel that refuses here

	// Of the call.
	pkts   []Packet
	at     int   // which of glue.runs is being written
	single int32 // which packet of it, if the kernel did not take them together; or -1
	err    error // the first refusal

	packets, bytes, calls, failed int

	count struct {
		packets, bytes, calls, errors, fallbacks atomic.Uint64
	}
}

// newQueue takes fd, which must not block, over.
func newQueue(fd int, st *stop, off Offloads) *queue {
	q := &queue{fd: uintptr(fd)}
	q.read.raw = make([]byte, virtioHeaderLen+0xffff+ipv6HeaderLen)
	q.read.sys = read
	q.read.wait.init(fd, unix.POLLIN, st, &q.closed)
	q.write.sys = writev
	q.write.wait.init(fd, unix.POLLOUT, st, &q.closed)
	q.write.glue.tcp, q.write.glue.udp = off.TCP, off.UDP
	return q
}

// ReadBatch implements Queue.
func (q *queue) ReadBatch(bufs [][]byte, sizes []int, off int) (int, error) {
	if len(bufs) == 0 || len(sizes) < len(bufs) || off < 0 {
		return 0, ErrBufferSize
	}
	for _, b := range bufs {
		if len(b) <= off {
			return 0, ErrBufferSize
		}
	}
	r := &q.read
	r.bufs, r.size, r.off, r.n = bufs, sizes, off, 0
	q.segment()
	var err error
	if r.n < len(bufs) {
		r.use.Lock()
		err = q.readBatch()
		r.use.Unlock()
	}
	r.bufs, r.size = nil, nil
	if r.n == 0 && err != nil {
		return 0, q.wrap(err, "read")
	}
	var bytes uint64
	for _, s := range sizes[:r.n] {
		bytes += uint64(s)
	}
	r.packets.Add(uint64(r.n))
	r.bytes.Add(bytes)
	return r.n, nil
}

// readBatch reads what is there, and waits if that is nothing.
func (q *queue) readBatch() error {
	r := &q.read
	if q.closed.Load() {
		return ErrClosed
	}
	for r.n < len(r.bufs) {
		n, errno := r.sys(q.fd, r.raw)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN && r.n > 0:
			return nil
		case errno == unix.EAGAIN:
			if err := r.wait.wait(); err != nil {
				return err
			}
			continue
		case errno != 0:
			return errno
		case n < virtioHeaderLen:
			r.malformed.Add(1)
			continue
		}
		var h virtioHeader
		h.decode(r.raw)
		if err := r.seg.begin(&h, r.raw[virtioHeaderLen:n]); err != nil {
			r.malformed.Add(1)
			continue
		}
		r.calls.Add(1)
		q.segment()
	}
	return nil
}

// segment moves packets from the segmenter to the caller's buffers.
func (q *queue) segment() {
	r := &q.read
	for r.n < len(r.bufs) && !r.seg.done() {
		n, err := r.seg.next(r.bufs[r.n][r.off:])
		if err != nil {
			r.tooLong.Add(1)
			continue
		}
		r.size[r.n] = n
		r.n++
	}
}

// WriteBatch implements Queue.
func (q *queue) WriteBatch(pkts []Packet) (int, error) {
	w := &q.write
	w.packets, w.bytes, w.calls, w.failed, w.err = 0, 0, 0, 0, nil
	for i := range pkts {
		p := &pkts[i]
		var err error
		if p.Off < VirtioHeaderLen || p.Len < 0 || p.Off > len(p.Buf) || p.Len > len(p.Buf)-p.Off {
			err = ErrNoHeadroom
		} else if !isIP(p.Buf[p.Off : p.Off+p.Len]) {
			err = ErrNotIP
		}
		if err != nil {
			w.refused(err)
		}
		w.glue.add(pkts, i, err == nil)
	}
	w.pkts, w.at, w.single = pkts, 0, -1
	if len(w.glue.runs) > 0 {
		w.use.Lock()
		err := q.writeRuns()
		w.use.Unlock()
		if err != nil { // closed
			for _, r := range w.glue.runs[w.at:] {
				w.failed += int(r.count)
			}
			w.err = cmp.Or(w.err, err)
		}
	}
	w.pkts = nil
	w.glue.reset()
	w.count.packets.Add(uint64(w.packets))
	w.count.bytes.Add(uint64(w.bytes))
	w.count.calls.Add(uint64(w.calls))
	if w.failed > 0 {
		w.count.errors.Add(uint64(w.failed))
	}
	if w.err != nil {
		return w.packets, q.wrap(w.err, "write")
	}
	return w.packets, nil
}

// refused counts a packet that is not written.
func (w *writer) refused(err error) {
	w.failed++
	if w.err == nil {
		w.err = err
	}
}

// writeRuns writes the runs, waiting where the kernel has no room. An error ends it with those from
// w.at on not written.
func (q *queue) writeRuns() error {
	w := &q.write
	if q.closed.Load() {
		return ErrClosed
	}
	for w.at < len(w.glue.runs) {
		r := &w.glue.runs[w.at]
		if w.single < 0 {
			w.iov = r.vector(w.pkts, w.glue.next, w.iov[:0])
			switch err := w.write(q.fd); {
			case err == unix.EAGAIN:
				if r.count > 1 {
					r.restore(w.pkts) // vector is called again
				}
				if err := w.wait.wait(); err != nil {
					return err
				}
				continue
			case err == 0:
				w.calls++
				w.packets += int(r.count)
				w.bytes += int(r.total) + int(r.count-1)*int(r.payload)
				w.at++
				continue
			case err != unix.EINVAL || r.count == 1:
				w.calls++
				w.refused(err)
				w.failed += int(r.count) - 1
				w.at++
				continue
			}
			// The kernel does not take it as a super-packet.
			w.calls++
			w.count.fallbacks.Add(1)
			r.restore(w.pkts)
			w.single = r.head
		}
		for w.single >= 0 {
			p := &w.pkts[w.single]
			w.iov = single(p, w.iov[:0])
			switch err := w.write(q.fd); err {
			case unix.EAGAIN:
				if err := w.wait.wait(); err != nil {
					return err
				}
				continue
			case 0:
				w.packets++
				w.bytes += p.Len
			default:
				w.refused(err)
			}
			w.single = w.glue.next[w.single]
		}
		w.at++
	}
	return nil
}

// write writes w.iov, however often a signal comes.
func (w *writer) write(fd uintptr) unix.Errno {
	for {
		if err := w.sys(fd, w.iov); err != unix.EINTR {
			return err
		}
	}
}

// read is unix.Read without what it does for the race detector.
func read(fd uintptr, b []byte) (int, unix.Errno) {
	n, _, e := unix.Syscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), e
}

// writev is unix.Writev without its allocation.
func writev(fd uintptr, iov []unix.Iovec) unix.Errno {
	if len(iov) == 1 {
		_, _, e := unix.Syscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(iov[0].Base)), uintptr(iov[0].Len))
		return e
	}
	_, _, e := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
	return e
}

// Counters returns what this queue did so far.
func (q *queue) Counters() Counters {
	r, w := &q.read, &q.write.count
	return Counters{
		ReadPackets: r.packets.Load(), ReadBytes: r.bytes.Load(), ReadCalls: r.calls.Load(),
		Malformed: r.malformed.Load(), TooLong: r.tooLong.Load(),
		WritePackets: w.packets.Load(), WriteBytes: w.bytes.Load(), WriteCalls: w.calls.Load(),
		WriteErrors: w.errors.Load(), OffloadFallbacks: w.fallbacks.Load(),
	}
}

func isIP(b []byte) bool {
	return len(b) >= ipv4HeaderLen && b[0]>>4 == 4 || len(b) >= ipv6HeaderLen && b[0]>>4 == 6
}

// wrap makes the error that a caller sees.
func (q *queue) wrap(err error, op string) error {
	switch {
	case q.closed.Load():
		return ErrClosed
	case errors.Is(err, ErrNoHeadroom), errors.Is(err, ErrNotIP):
		return err
	}
	return fmt.Errorf("tun: %s: %w", op, err)
}

// release closes the descriptor when nobody uses it any more. closed was set and the stop raised
// before: so who comes later does not touch it, and who waits returns.
func (q *queue) release() error {
	q.read.use.Lock()
	defer q.read.use.Unlock()
	q.write.use.Lock()
	defer q.write.use.Unlock()
	return unix.Close(int(q.fd))
}
