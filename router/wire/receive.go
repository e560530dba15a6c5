package wire

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxPending is how many errors in a row a receiver skips before it looks whether the group is
// closed.
const maxPending = 1 << 10

// receiver is the receiving half of a socket.
type receiver struct {
	recvCounts
	using sync.Mutex // held in Receive, for Close to wait for
	s     *Socket
	b     *Batch
	errq  errorQueue

	yielded time.Duration // see yield
}

func (r *receiver) init(s *Socket) {
	r.s = s
	r.errq.init()
}

// Receive waits until there is something, receives as much as there is and b holds, and puts it
// into b.Datagrams. After Close it returns net.ErrClosed; other errors mean that the socket cannot
// be used any more. Errors about datagrams that were sent go to OnError and do not end it. A
// goroutine that waits keeps a thread.
func (s *Socket) Receive(b *Batch) error {
	r, g := &s.receive, s.g
	r.using.Lock()
	defer r.using.Unlock()
	b.Datagrams = b.all[:0]
	r.b = b
	for !g.closed.Load() {
		e := r.try()
		switch {
		case len(b.Datagrams) > 0:
			return nil
		case e == unix.EAGAIN:
			// An error about a datagram that was sent ends the wait as long as it is unread.
			r.waits.add(1)
			yield(&r.yielded)
			if revents, open := g.wait(int(s.fd), unix.POLLIN, -1); open && revents&unix.POLLERR != 0 {
				s.drain(s.fd)
			}
		case e != 0:
			return s.wrap("receive", e)
		}
	}
	return net.ErrClosed
}

// try receives what is there.
func (r *receiver) try() unix.Errno {
	s, b := r.s, r.b
	fd := s.fd
	for range maxPending {
		var n int
		var e unix.Errno
		many := s.g.mmsgIn.Load()
		if many {
			n, e = s.g.sys.recvmmsg(fd, &b.hdrs[0], b.vlen)
		} else {
			if n, e = s.g.sys.recvmsg(fd, &b.hdrs[0].hdr, 0); e == 0 {
				b.hdrs[0].len, n = uint32(n), 1
			}
		}
		switch e {
		case 0:
			r.calls.add(1)
			r.take(n)
			if len(b.Datagrams) > 0 {
				// A sender that met an error, or the kernel dropping because the error queue
				// fills the buffer, must not wait until there is nothing to receive.
				if s.pending.Load() {
					s.drain(fd)
				}
				return 0
			}
		case unix.EINTR:
		case unix.EAGAIN, unix.EBADF, unix.ENOTSOCK, unix.EFAULT, unix.EINVAL:
			return e
		case unix.ENOSYS:
			if !many {
				return e
			}
			s.g.mmsgIn.Store(false) // perhaps another queue met it, too
			s.g.tell(noteNoRecvmmsg, "the kernel has no recvmmsg: one message is received a call")
		default: // was pending, see passing; or the moment's, like ENOMEM
			r.pendingErrors.add(1)
			s.drain(fd)
		}
	}
	return 0
}

// take moves n messages from the headers to b.Datagrams.
func (r *receiver) take(n int) {
	b, v4raw := r.b, r.s.g.native && !r.s.g.v6
	var datagrams, runs, truncated, malformed uint64
	total, payload := 0, 0
	for i := range n {
		m := &b.hdrs[i]
		h := &m.hdr
		total += int(m.len)
		k := len(b.Datagrams)
		d := &b.all[k]
		d.Buf = b.message(i)
		d.Off, d.Len, d.Segment = b.headroom, int(m.len), 0
		d.Local, d.TOS = netip.Addr{}, 0
		d.Remote = addrPort(&b.names[i], r.s.g.native)
		if h.Controllen != 0 {
			d.parse(b.controls[i*recvControl:][:min(int(h.Controllen), recvControl)])
		}
		ok := true
		switch {
		case h.Flags&unix.MSG_TRUNC != 0:
			truncated++
			ok = false
		case v4raw:
			if ok = d.stripIPv4(); !ok {
				malformed++
			}
		}
		b.arm(i)
		if !ok {
			continue
		}
		payload += d.Len
		if d.Segment >= d.Len {
			d.Segment = 0
		}
		if d.Segment > 0 {
			datagrams += uint64((d.Len + d.Segment - 1) / d.Segment)
			runs++
		} else {
			datagrams++
		}
		b.Datagrams = b.all[:k+1]
	}
	b.adapt(n, total)
	r.datagrams.add(datagrams)
	r.bytes.add(uint64(payload))
	r.messages.add(uint64(len(b.Datagrams)))
	r.runs.add(runs)
	r.truncated.add(truncated)
	r.malformed.add(malformed)
}

// stripIPv4 takes the IP header, which raw IPv4 sockets deliver, off the datagram. The kernel has
// checked and reassembled the packet.
func (d *Datagram) stripIPv4() bool {
	p := d.Payload()
	if len(p) < 20 {
		return false
	}
	head, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
	if p[0]>>4 != 4 || head < 20 || total < head || total > len(p) {
		return false
	}
	d.TOS = p[1]
	d.Local = netip.AddrFrom4([4]byte(p[16:20]))
	d.Off += head
	d.Len = total - head
	return true
}
