package tun

import "golang.org/x/sys/unix"

// burstReader is what ReadBurst needs of a queue; it belongs to its caller.
//
// The packet is read in one piece to where the first of the packets cut from it will lie. Reading
// each payload to its own place with readv was tried: the kernel takes as long for the many slices
// as Cut for moving the payloads while it adds them up.
type burstReader struct {
	rest []byte // what the next burst is, instead of reading
	keep []byte // room for rest
}

// ReadBurst implements Queue.
func (q *queue) ReadBurst(b *Burst, buf []byte, s Spacing, wait bool) (bool, error) {
	if err := checkBurstRoom(buf, s); err != nil {
		return false, err
	}
	r := &q.read.burst
	if r.rest != nil {
		var err error
		if r.rest, err = b.Load(r.rest, buf, s); err != nil { // what the last burst left
			return false, q.wrap(err, "read")
		}
	} else {
		q.read.use.Lock()
		ok, err := q.readBurst(b, buf, s, wait)
		q.read.use.Unlock()
		if err != nil {
			return false, q.wrap(err, "read")
		}
		if !ok {
			return false, nil
		}
	}
	q.read.packets.Add(uint64(b.Count))
	q.read.bytes.Add(uint64((b.Count-1)*b.Full + b.Last))
	return true, nil
}

// readBurst reads what is there; if that is nothing, wait says whether to wait.
func (q *queue) readBurst(b *Burst, buf []byte, s Spacing, wait bool) (bool, error) {
	if q.closed.Load() {
		return false, ErrClosed
	}
	// The virtio header goes before the packet. With less room than that there is, Cut moves the packet.
	front := max(s.Front, virtioHeaderLen)
	for {
		n, errno := q.read.sys(q.fd, buf[front-virtioHeaderLen:front+maxRead])
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN && !wait:
			return false, nil
		case errno == unix.EAGAIN:
			if err := q.read.wait.wait(); err != nil {
				return false, err
			}
			continue
		case errno != 0:
			return false, errno
		}
		if !q.read.burst.take(b, buf, s, front, n-virtioHeaderLen) {
			q.read.malformed.Add(1)
			continue
		}
		q.read.calls.Add(1)
		return true, nil
	}
}

// take makes the burst of the n octets that were read.
func (r *burstReader) take(b *Burst, buf []byte, s Spacing, front, n int) bool {
	if n < 0 || n >= maxRead {
		return false
	}
	pkt := buf[front:][:n]
	var h virtioHeader
	h.decode(buf[front-virtioHeaderLen:])
	var p super
	if err := p.parse(&h, pkt); err != nil {
		return false
	}
	b.begin(&p, buf, front, n)
	if left := b.limit(s); left > 0 {
		r.keep = append(r.keep[:0], buf[front-virtioHeaderLen:front+p.payload]...)
		r.keep = append(r.keep, pkt[n-left:]...)
		r.rest = r.keep
		b.following(r.rest[virtioHeaderLen:])
	}
	return true
}
