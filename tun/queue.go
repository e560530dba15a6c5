package tun

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// queue is one file descriptor of the device. read… belongs to the caller of ReadBatch, write… to
// that of WriteBatch; the counters are written by them and read by anybody.
type queue struct {
	f      *os.File
	conn   syscall.RawConn
	closed atomic.Bool // set before f is closed: RawConn's own error for it is not exported

	read struct {
		raw  []byte // header and packet as the kernel gave them
		seg  segmenter
		fn   func(fd uintptr) bool
		bufs [][]byte
		size []int
		off  int
		n    int
		err  error

		burst burstReader

		packets, bytes, calls, malformed, tooLong atomic.Uint64
	}
	_ [64]byte

	write struct {
		glue coalescer
		iov  []unix.Iovec
		fn   func(fd uintptr) bool
		sys  func(fd uintptr, iov []unix.Iovec) unix.Errno // writev; tests put a kernel that refuses here
		err  error

		packets, bytes, calls, errors, fallbacks atomic.Uint64
	}
}

func newQueue(f *os.File, off Offloads) (*queue, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("tun: descriptor cannot be polled: %w", err)
	}
	q := &queue{f: f, conn: conn}
	q.read.raw = make([]byte, virtioHeaderLen+0xffff+ipv6HeaderLen)
	q.read.fn = q.readReady
	q.read.burst.init(q)
	q.write.fn = q.writeReady
	q.write.sys = writev
	q.write.glue.tcp, q.write.glue.udp = off.TCP, off.UDP
	return q, nil
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
	r.bufs, r.size, r.off, r.n, r.err = bufs, sizes, off, 0, nil
	q.segment()
	if r.n < len(bufs) {
		if err := q.conn.Read(r.fn); err != nil && r.err == nil {
			r.err = err
		}
	}
	r.bufs, r.size = nil, nil
	if r.n == 0 && r.err != nil {
		return 0, q.wrap(r.err, "read")
	}
	var bytes uint64
	for _, s := range sizes[:r.n] {
		bytes += uint64(s)
	}
	r.packets.Add(uint64(r.n))
	r.bytes.Add(bytes)
	return r.n, nil
}

// readReady reads what is there; false lets the poller wait.
func (q *queue) readReady(fd uintptr) bool {
	r := &q.read
	for r.n < len(r.bufs) {
		n, err := unix.Read(int(fd), r.raw)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return r.n > 0
		case err != nil:
			r.err = err
			return true
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
	return true
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
	var first error
	var packets, bytes, calls, failed uint64
	for i := range pkts {
		p := &pkts[i]
		var err error
		if p.Off < VirtioHeaderLen || p.Len < 0 || p.Off > len(p.Buf) || p.Len > len(p.Buf)-p.Off {
			err = ErrNoHeadroom
		} else if !isIP(p.Buf[p.Off : p.Off+p.Len]) {
			err = ErrNotIP
		}
		if err != nil {
			failed++
			if first == nil {
				first = err
			}
		}
		w.glue.add(pkts, i, err == nil)
	}
	for r := w.glue.first(); r != nil; r = w.glue.following() {
		calls++
		n, size, err := q.writeRun(pkts, r)
		packets += uint64(n)
		bytes += uint64(size)
		failed += uint64(r.count - n)
		if err != nil && first == nil {
			first = err
		}
	}
	w.glue.reset()
	w.packets.Add(packets)
	w.bytes.Add(bytes)
	w.calls.Add(calls)
	w.errors.Add(failed)
	if first != nil {
		first = q.wrap(first, "write")
	}
	return int(packets), first
}

// writeRun writes one run; when the kernel refuses it as a super-packet, its packets one by one.
func (q *queue) writeRun(pkts []Packet, r *run) (packets, bytes int, err error) {
	w := &q.write
	w.iov = r.vector(pkts, w.glue.next, w.iov[:0])
	for i := r.head; i >= 0; i = w.glue.after(i) {
		bytes += pkts[i].Len
	}
	if err = q.writev(); err == nil {
		return r.count, bytes, nil
	}
	if r.count == 1 || !errors.Is(err, unix.EINVAL) {
		return 0, 0, err
	}
	w.fallbacks.Add(1)
	r.restore(pkts)
	bytes, err = 0, nil
	for i := r.head; i >= 0; i = w.glue.after(i) {
		p := &pkts[i]
		w.iov = single(p, w.iov[:0])
		if e := q.writev(); e != nil {
			err = e
			continue
		}
		packets++
		bytes += p.Len
	}
	return packets, bytes, err
}

func (q *queue) writev() error {
	w := &q.write
	w.err = nil
	if err := q.conn.Write(w.fn); err != nil {
		return err
	}
	return w.err
}

// writeReady writes; false lets the poller wait.
func (q *queue) writeReady(fd uintptr) bool {
	w := &q.write
	for {
		switch e := w.sys(fd, w.iov); e {
		case 0:
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default:
			w.err = e
			return true
		}
	}
}

// writev is unix.Writev without its allocation.
func writev(fd uintptr, iov []unix.Iovec) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
	return e
}

// Counters returns what this queue did so far.
func (q *queue) Counters() Counters {
	r, w := &q.read, &q.write
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

func (q *queue) close() error {
	if q.closed.Swap(true) {
		return nil
	}
	return q.f.Close()
}
