package wire

import (
	"net"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	sendBatch = 64 // messages a call
	// maxSegments is UDP_MAX_SEGMENTS of Linux before 6.9.
	maxSegments = 64
	// The longest UDP payload that an IP packet can say the length of, also as a run.
	maxPayload4 = 65535 - 20 - 8
	maxPayload6 = 65535 - 8
	// An error that may have been pending is believed when it comes back passingTries times in a
	// row, or errors of that kind passingMost times. The first may be of an ICMP message, the
	// second of one that the receiver has just read (see Socket.errors); and another may come in
	// between.
	passingTries = 3
	passingMost  = 10
)

// Message is a datagram to send, or a run of datagrams.
type Message struct {
	Buf     []byte // payload
	Segment int    // 0: one datagram; otherwise it is cut into datagrams of this size, the last of which may be shorter
	Dest    *Dest
	TOS     uint8 // traffic class and ECN
	// Fragment lets datagrams of this message be fragmented on their way: without don't-fragment for
	// IPv4; of more than 1280 octets, headers included, fragmented at once for IPv6. That is slow, and
	// for the few packets that nobody can send any smaller: RFC 4301, section 8.2.1, and RFC 2473,
	// section 7.1 b, where the path takes less than what IPv6 asks of a link.
	Fragment bool
	Err      error // set by Send; nil: everything was handed to the network
}

// Sender sends from a socket. It belongs to one goroutine and lives as long as its socket.
type Sender struct {
	sendCounts
	s      *Socket
	hdrs   []mmsghdr
	iovs   []unix.Iovec
	at     []mark
	ctl    []byte
	limit  int        // octets of a message
	using  sync.Mutex // held in Send, for Close to wait for
	pieces []piece    // for fragments of IPv6; made when first needed

	fd    uintptr    // where to send hdrs: the socket, or that for fragments
	lo, n int        // headers to send: hdrs[lo:n]
	err   unix.Errno // what hdrs[lo] failed with
	again bool       // the send buffer is full
}

// mark is what a header stands for.
type mark struct {
	msg       int // index of the message
	off, size int // part of its Buf
	segment   int // 0: one datagram
}

// NewSender makes a sender for one goroutine.
func (s *Socket) NewSender() *Sender {
	x := &Sender{
		s:     s,
		hdrs:  make([]mmsghdr, sendBatch),
		iovs:  make([]unix.Iovec, sendBatch),
		at:    make([]mark, sendBatch),
		ctl:   make([]byte, sendBatch*sendControl),
		limit: maxPayload4,
		fd:    s.fd,
	}
	if s.g.v6 {
		x.limit = maxPayload6
	}
	for i := range x.hdrs {
		h := &x.hdrs[i].hdr
		h.Iov = &x.iovs[i]
		h.SetIovlen(1)
	}
	s.mu.Lock()
	s.senders = append(s.senders, x)
	s.mu.Unlock()
	return x
}

// Socket returns the socket that the sender sends from.
func (x *Sender) Socket() *Socket { return x.s }

// Send sends the messages in order and waits while the send buffer is full. It sets Err of each
// and returns how many failed. A failed message may have been sent in part, up to the datagram
// that failed; nothing is sent twice. After Close the rest fails with net.ErrClosed.
//
// EMSGSIZE means that a datagram is longer than the MTU of the link; ENOBUFS that the queue of the
// device dropped a part of the message, and the rest was sent. Between several messages the kernel
// may keep such a drop to itself: what it dropped is then offered once more.
func (x *Sender) Send(msgs []Message) (failed int) {
	x.using.Lock()
	defer x.using.Unlock()
	for m := range msgs {
		if msgs[m].Err = x.check(&msgs[m]); msgs[m].Err != nil {
			x.other.add(1)
			failed++
		}
	}
	var (
		i, off  int        // where to go on: message and octet of it
		plain   = -1       // index of the message that goes without segmentation, after a refusal
		refused unix.Errno // with which it was refused, until a datagram of it went singly
	)
	for i < len(msgs) {
		// Fill headers from there on.
		n := 0
		if msg := &msgs[i]; msg.Fragment && msg.Err == nil && x.s.g.fragments != nil {
			if closed := x.fragment(msg); closed {
				return failed + x.abandon(msgs[i:])
			}
			if msg.Err != nil {
				failed++
			}
			i++
			continue
		}
		for m, o := i, off; m < len(msgs) && n < len(x.hdrs); {
			msg := &msgs[m]
			if o == 0 && msg.Err != nil {
				if m++; n == 0 {
					i = m
				}
				continue
			}
			if refused != 0 && m > plain {
				break // what comes of the refused message decides how the next go
			}
			if msg.Fragment && x.s.g.fragments != nil {
				break // has its turn when all before it went
			}
			size, segment := x.cut(msg, o, m == plain)
			x.fill(n, msg, mark{m, o, size, segment})
			n++
			if o += size; o >= len(msg.Buf) {
				m, o = m+1, 0
			}
		}
		if n == 0 {
			continue
		}
		if closed := x.flush(n); closed {
			if x.lo < n {
				i = x.at[x.lo].msg
			}
			return failed + x.abandon(msgs[i:])
		}
		if x.lo > 0 && refused != 0 {
			// A datagram went where the run did not: it is the offload that is refused.
			x.hold(msgs[plain].Dest, refused)
			refused = 0
		}
		if x.lo == n {
			last := &x.at[n-1]
			if i, off = last.msg, last.off+last.size; off >= len(msgs[i].Buf) {
				i, off = i+1, 0
			}
			continue
		}
		at := &x.at[x.lo]
		i, off = at.msg, at.off
		if at.segment > 0 && isRefusal(x.err) {
			plain, refused = i, x.err
			continue
		}
		refused = 0
		msg := &msgs[i]
		if msg.Err == nil {
			failed++
			x.countError(x.err)
		}
		msg.Err = x.err
		if off += at.size; x.err != unix.ENOBUFS || off >= len(msg.Buf) {
			i, off = i+1, 0
		}
	}
	return failed
}

// abandon has the messages fail because of Close, and returns how many had not failed before.
func (x *Sender) abandon(msgs []Message) (failed int) {
	for i := range msgs {
		if msgs[i].Err == nil {
			x.other.add(1)
			failed++
		}
		msgs[i].Err = net.ErrClosed
	}
	return failed
}

func (x *Sender) check(m *Message) error {
	switch {
	case m.Dest == nil:
		return ErrNoDest
	case m.Dest.v6 != x.s.g.v6:
		return ErrFamily
	case m.Segment < 0 || m.Segment > 0xffff:
		return ErrSegment
	}
	return nil
}

// cut tells how much of a message goes with the next header, and the size of its segments (0: it
// is one datagram).
func (x *Sender) cut(m *Message, off int, plain bool) (size, segment int) {
	rest := len(m.Buf) - off
	if m.Segment == 0 || rest <= m.Segment {
		return rest, 0
	}
	if plain || !x.s.g.gso.Load() || m.Segment > x.limit {
		return m.Segment, 0
	}
	if hold := atomic.LoadInt32(&m.Dest.hold); hold > 0 {
		if rest <= 2*m.Segment { // once a message: the datagram before the last
			atomic.AddInt32(&m.Dest.hold, -1)
		}
		return m.Segment, 0
	}
	if rest <= x.limit && rest <= m.Segment*maxSegments {
		return rest, m.Segment
	}
	// More than the kernel takes at once: parts of about the same length.
	segments := (rest + m.Segment - 1) / m.Segment
	most := min(maxSegments, x.limit/m.Segment)
	parts := (segments + most - 1) / most
	size = (segments + parts - 1) / parts * m.Segment
	if size == m.Segment {
		return size, 0
	}
	return size, m.Segment
}

func (x *Sender) fill(n int, m *Message, at mark) {
	x.at[n] = at
	iov := &x.iovs[n]
	iov.Base = unsafe.SliceData(m.Buf[at.off:])
	iov.SetLen(at.size)
	d := m.Dest
	h := &x.hdrs[n].hdr
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(&d.name)), d.nameLen
	if x.s.g.native {
		h.Name = (*byte)(unsafe.Pointer(&d.raw))
	}
	ctl := x.ctl[n*sendControl:][:sendControl]
	used := copy(ctl, d.info[:d.infoLen])
	if m.TOS != 0 {
		level, typ := int32(unix.IPPROTO_IP), int32(unix.IP_TOS)
		if d.v6 {
			level, typ = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
		}
		data, k := putControl(ctl[used:], level, typ, 4)
		*(*int32)(unsafe.Pointer(&data[0])) = int32(m.TOS)
		used += k
	}
	if at.segment > 0 {
		data, k := putControl(ctl[used:], unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
		*(*uint16)(unsafe.Pointer(&data[0])) = uint16(at.segment)
		used += k
	}
	h.Control = nil
	if used > 0 {
		h.Control = &ctl[0]
	}
	h.SetControllen(used)
}

// flush sends hdrs[:n] and counts. Afterwards x.lo tells how many went, x.err why the next did not.
func (x *Sender) flush(n int) (closed bool) {
	closed = x.send(n)
	var datagrams, runs uint64
	size := 0
	for i := range x.lo {
		at := &x.at[i]
		size += at.size
		if at.segment > 0 {
			runs++
			datagrams += uint64((at.size + at.segment - 1) / at.segment)
		} else {
			datagrams++
		}
	}
	x.datagrams.add(datagrams)
	x.bytes.add(uint64(size))
	x.messages.add(uint64(x.lo))
	x.runs.add(runs)
	return closed
}

// errorPause is how long, in milliseconds, a sender that needs room leaves the receiver alone with
// an error that it has not read yet: until then the kernel lets nobody wait at the socket.
const errorPause = 1

// send sends hdrs[:n], and waits while there is no room.
func (x *Sender) send(n int) (closed bool) {
	s, g := x.s, x.s.g
	x.lo, x.n, x.err, x.again = 0, n, 0, false
	for !g.closed.Load() {
		x.try()
		if !x.again {
			return false
		}
		x.waits.add(1)
		revents, open := g.wait(int(x.fd), unix.POLLOUT, -1)
		if open && revents&unix.POLLERR != 0 {
			s.pending.Store(true)
			if revents&unix.POLLOUT == 0 {
				g.wait(-1, 0, errorPause)
			}
		}
	}
	return true
}

// try sends until everything went, something failed, or the send buffer is full.
func (x *Sender) try() {
	s, g, fd := x.s, x.s.g, x.fd
	x.again = false
	var (
		tries, all int        // calls for hdrs[x.lo] that met an error that may have been pending: the same, any
		before     unix.Errno // the one before
		short      bool       // the last call stopped half-way
		locked     bool       // s.errors
	)
	for x.lo < x.n {
		var e unix.Errno
		sent, want := 1, 1
		many := x.n-x.lo > 1 && g.mmsgOut.Load()
		if many {
			want = x.n - x.lo
			sent, e = g.sys.sendmmsg(fd, &x.hdrs[x.lo], want)
		} else {
			_, e = g.sys.sendmsg(fd, &x.hdrs[x.lo].hdr)
		}
		switch {
		case e == 0:
			x.calls.add(1)
			x.lo += sent
			tries, all, before = 0, 0, 0
			if locked {
				s.errors.Unlock()
				locked = false
			}
			// sendmmsg keeps the error to itself after it has sent something. If it was that of a
			// datagram before, it is gone now.
			if short {
				s.pending.Store(true)
			}
			short = sent < want
			continue
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			x.again = true
		case e == unix.ENOSYS && many:
			g.mmsgOut.Store(false) // perhaps another sender met it, too
			g.tell(noteNoSendmmsg, "the kernel has no sendmmsg: one message is sent a call")
			continue
		case passing(e) && (e != before || tries < passingTries) && all < passingMost:
			if !locked {
				s.errors.Lock()
				locked = true
			}
			s.pending.Store(true)
			x.retries.add(1)
			if e != before {
				tries, before = 0, e
			}
			tries++
			all++
			continue
		default:
			x.err = e
		}
		break // out of the loop
	}
	if locked {
		s.errors.Unlock()
	}
}

// isRefusal tells whether the kernel or the device may not be able to cut a run. EIO: the device
// computes no checksums (Linux before 6.11), or the packets are transformed. Others: the option is
// not known.
func isRefusal(e unix.Errno) bool {
	switch e {
	case unix.EIO, unix.EINVAL, unix.ENOPROTOOPT, unix.EOPNOTSUPP:
		return true
	default:
		return false
	}
}

// hold has messages to d go as single datagrams for a while.
func (x *Sender) hold(d *Dest, e unix.Errno) {
	atomic.StoreInt32(&d.hold, gsoHold)
	x.fallbacks.add(1)
	g := x.s.g
	if !g.told[noteGSORefused].Load() {
		g.tell(noteGSORefused, "a device does not segment datagrams (UDP_SEGMENT): they are sent to it singly", "error", e, "remote", d.remote)
	}
}

func (x *Sender) countError(e unix.Errno) {
	switch e {
	case unix.EMSGSIZE:
		x.tooBig.add(1)
	case unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ENETDOWN, unix.EHOSTDOWN, unix.ENONET, unix.EADDRNOTAVAIL:
		x.unreachable.add(1)
	case unix.ENOBUFS:
		x.noBuffer.add(1)
	case unix.EPERM, unix.EACCES, unix.ECONNREFUSED:
		x.refused.add(1)
	default:
		x.other.add(1)
	}
}
