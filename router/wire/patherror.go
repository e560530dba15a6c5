package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Origin tells who says that something is wrong.
type Origin uint8

// Origins, by their numbers in Linux' struct sock_extended_err.
const (
	OriginLocal Origin = unix.SO_EE_ORIGIN_LOCAL // the own kernel
	OriginICMP  Origin = unix.SO_EE_ORIGIN_ICMP
	OriginICMP6 Origin = unix.SO_EE_ORIGIN_ICMP6
)

func (o Origin) String() string {
	switch o {
	case OriginLocal:
		return "local"
	case OriginICMP:
		return "icmp"
	case OriginICMP6:
		return "icmp6"
	}
	return fmt.Sprintf("Origin(%d)", uint8(o))
}

// PathError is what became of a datagram that was sent, as far as somebody on its way says so.
type PathError struct {
	Remote     netip.AddrPort // where the datagram was sent to; native ESP, and a local error: port 0
	MTU        int            // of the next hop, whole IP packets; 0 if the error is another, or an old router did not say (RFC 1191, section 4)
	V6         bool
	Type, Code uint8 // of the ICMP message
	Origin     Origin
	Errno      unix.Errno
	Offender   netip.Addr // who sent the ICMP message; zero for a local error
	// Quoted is the beginning of the datagram's payload as the ICMP message quotes it, for ESP the
	// SPI and the sequence number; it may be empty. It is valid during the call.
	Quoted []byte
}

// errorQueue is memory to read a socket's error queue.
type errorQueue struct {
	hdr     unix.Msghdr
	iov     unix.Iovec
	name    unix.RawSockaddrInet6
	control [512]byte
	quoted  [2048]byte
}

func (q *errorQueue) init() {
	q.iov.Base = &q.quoted[0]
	q.iov.SetLen(len(q.quoted))
	q.hdr.Name = (*byte)(unsafe.Pointer(&q.name))
	q.hdr.Iov = &q.iov
	q.hdr.SetIovlen(1)
	q.hdr.Control = &q.control[0]
}

// maxDrain is how many errors are read before datagrams have their turn again.
const maxDrain = 64

// drain reads the error queue and tells OnError. It runs in Receive.
func (s *Socket) drain(fd uintptr) {
	r := &s.receive
	q := &r.errq
	s.pending.Store(false)
	for range maxDrain {
		q.hdr.Namelen = unix.SizeofSockaddrInet6
		q.hdr.SetControllen(len(q.control))
		q.hdr.Flags = 0
		q.name = unix.RawSockaddrInet6{}
		s.errors.Lock()
		n, e := s.g.sys.recvmsg(fd, &q.hdr, unix.MSG_ERRQUEUE)
		s.errors.Unlock()
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return
		}
		pe := PathError{Remote: addrPort(&q.name, s.g.native), V6: s.g.v6, Quoted: q.quoted[:min(n, len(q.quoted))]}
		if !pe.parse(q.control[:min(int(q.hdr.Controllen), len(q.control))]) {
			continue
		}
		r.pathErrors.add(1)
		if f := s.onError.Load(); f != nil && *f != nil {
			(*f)(pe)
		}
	}
	s.pending.Store(true) // there may be more
}

// parse reads the extended error (ip(7), IP_RECVERR) from the control messages.
func (e *PathError) parse(control []byte) bool {
	for {
		level, typ, data, rest := nextControl(control)
		if data == nil {
			return false
		}
		control = rest
		if !(level == unix.IPPROTO_IP && typ == unix.IP_RECVERR || level == unix.IPPROTO_IPV6 && typ == unix.IPV6_RECVERR) || len(data) < 16 {
			continue
		}
		e.Errno = unix.Errno(binary.NativeEndian.Uint32(data))
		e.Origin, e.Type, e.Code = Origin(data[4]), data[5], data[6]
		if e.Errno == unix.EMSGSIZE {
			e.MTU = int(binary.NativeEndian.Uint32(data[8:]))
		}
		// struct sockaddr of the offender follows, where there is one.
		if len(data) >= 16+unix.SizeofSockaddrInet4 {
			var sa unix.RawSockaddrInet6
			copy((*[unix.SizeofSockaddrInet6]byte)(unsafe.Pointer(&sa))[:], data[16:])
			e.Offender = addrPort(&sa, true).Addr()
		}
		return true
	}
}
