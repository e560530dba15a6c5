package tun

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// burstReader is what ReadBurst needs of a queue; it belongs to its caller.
//
// The packet is read in one piece to where the first of the packets cut from it will lie. Reading
// each payload to its own place with readv was tried: the kernel takes as long for the many slices
// as Cut for moving the payloads while it adds them up.
type burstReader struct {
	fn  func(fd uintptr) bool
	sys func(fd uintptr, b []byte) (int, unix.Errno) // read; tests put another kernel here

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
	r.sys = read
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
	// The virtio header goes before the packet. With less room than that there is, Cut moves the packet.
	front := max(r.s.Front, virtioHeaderLen)
	for {
		n, err := r.sys(fd, r.buf[front-virtioHeaderLen:front+maxRead])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return !r.wait
		case err != 0:
			r.err = err
			return true
		}
		if !r.take(front, n-virtioHeaderLen) {
			q.read.malformed.Add(1)
			continue
		}
		q.read.calls.Add(1)
		r.ok = true
		return true
	}
}

// take makes the burst of the n octets that were read.
func (r *burstReader) take(front, n int) bool {
	if n < 0 || n >= maxRead {
		return false
	}
	pkt := r.buf[front:][:n]
	var h virtioHeader
	h.decode(r.buf[front-virtioHeaderLen:])
	var p super
	if err := p.parse(&h, pkt); err != nil {
		return false
	}
	r.b.begin(&p, r.buf, front, n)
	if left := r.b.limit(r.s); left > 0 {
		r.keep = append(r.keep[:0], r.buf[front-virtioHeaderLen:front+p.payload]...)
		r.keep = append(r.keep, pkt[n-left:]...)
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

// read is unix.Read without what it does for the race detector.
func read(fd uintptr, b []byte) (int, unix.Errno) {
	n, _, e := unix.Syscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), e
}
