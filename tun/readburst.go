package tun

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// burstReader is what ReadBurst needs of a queue; it belongs to its caller.
type burstReader struct {
	fn  func(fd uintptr) bool
	sys func(fd uintptr, iov []unix.Iovec) (int, unix.Errno) // readv; tests put another kernel here

	head [virtioHeaderLen]byte
	iov  []unix.Iovec
	rest []byte // what the next burst is, instead of reading
	keep []byte // room for rest

	// Of the call.
	b    *Burst
	buf  []byte
	s    Spacing
	wait bool
	ok   bool
	err  error
}

func (r *burstReader) init(q *queue) {
	r.fn = q.burstReady
	r.sys = readv
	r.iov = make([]unix.Iovec, 0, 2)
}

// ReadBurst implements Queue.
func (q *queue) ReadBurst(b *Burst, buf []byte, s Spacing, wait bool) (bool, error) {
	if err := checkBurstRoom(buf, s); err != nil {
		return false, err
	}
	r := &q.read.burst
	r.b, r.buf, r.s, r.wait, r.ok, r.err = b, buf, s, wait, false, nil
	if r.rest != nil {
		r.again()
	} else if err := q.conn.Read(r.fn); err != nil {
		r.err = err
	}
	r.b, r.buf = nil, nil
	if !r.ok {
		if r.err != nil {
			return false, q.wrap(r.err, "read")
		}
		return false, nil
	}
	q.read.packets.Add(uint64(b.Count))
	q.read.bytes.Add(uint64((b.Count-1)*b.Full + b.Last))
	return true, nil
}

// burstReady reads what is there; false lets the poller wait.
func (q *queue) burstReady(fd uintptr) bool {
	r := &q.read.burst
	for {
		r.iov = appendIovec(r.iov[:0], r.head[:])
		r.iov = appendIovec(r.iov, r.buf[r.s.Front:r.s.Front+maxRead])
		n, err := r.sys(fd, r.iov)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return !r.wait
		case err != 0:
			r.err = err
			return true
		}
		if !r.take(n - virtioHeaderLen) {
			q.read.malformed.Add(1)
			continue
		}
		q.read.calls.Add(1)
		r.ok = true
		return true
	}
}

// take makes the burst of the n octets that were read.
func (r *burstReader) take(n int) bool {
	if n < 0 || n >= maxRead {
		return false
	}
	var h virtioHeader
	h.decode(r.head[:])
	var p super
	if err := p.parse(&h, r.buf[r.s.Front:][:n], n); err != nil {
		return false
	}
	r.b.begin(&p, r.buf, r.s.Front, p.size, n)
	if left := r.b.limit(r.s); left > 0 {
		r.keep = append(r.keep[:0], r.head[:]...)
		r.keep = append(r.keep, r.b.First[:p.payload]...)
		r.keep = append(r.keep, r.buf[r.s.Front+n-left:][:left]...)
		r.rest = r.keep
		r.b.following(r.rest[virtioHeaderLen:])
	}
	return true
}

// again makes the burst of what the last one left.
func (r *burstReader) again() {
	r.rest, r.err = r.b.Load(r.rest, r.buf, r.s)
	r.ok = r.err == nil
}

// readv is unix.Readv without its allocation.
func readv(fd uintptr, iov []unix.Iovec) (int, unix.Errno) {
	n, _, e := unix.Syscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
	return int(n), e
}
