package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	minMTU6      = 1280 // RFC 8200, section 5
	ipv6Header   = 40
	udpHeader    = 8
	fragHeader   = 8                                 // RFC 8200, section 4.5
	fragmentSize = minMTU6 - ipv6Header - fragHeader // octets of the packet in a fragment: a multiple of 8
)

// What the socket for fragments is bound to, so that nothing ever comes to it: the dummy address of
// RFC 7600 and one of the prefix to be discarded of RFC 6666. Every datagram names its own source.
var (
	nowhere4 = netip.MustParseAddr("192.0.0.8")
	nowhere6 = netip.MustParseAddr("100::8")
)

// fragments is the socket of a group by which datagrams leave that may be fragmented. The options
// for that are the socket's, not the message's: changed on a socket that others send from, they
// would change what those send. What the network says of such datagrams comes to the group's other
// sockets, by the addresses and ports in the quotation.
//
// For IPv4 it is like those, only that don't-fragment is not set. For IPv6 it is a raw socket that
// takes fragments ready-made: Linux splits no packet that fits the own link (IPV6_MTU says how
// large the pieces are of one that does not), and the link that does not take it is further on.
type fragments struct {
	fd int

	mu    sync.Mutex
	route int // a socket that nothing is sent from: see source; guarded by mu
}

// piece is room for what precedes the payload in a fragment.
type piece struct {
	iov  [2]unix.Iovec
	head [fragHeader + udpHeader]byte
}

func (g *Group) openFragments() (_ *fragments, err error) {
	family, typ, proto := unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP
	level, discover, omit, free := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT, unix.IP_FREEBIND
	var nowhere unix.Sockaddr = &unix.SockaddrInet4{Addr: nowhere4.As4(), Port: int(g.opt.Port)}
	switch {
	case g.v6:
		family, typ, proto = unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_FRAGMENT
		level, discover, omit, free = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_OMIT, unix.IPV6_FREEBIND
		nowhere = &unix.SockaddrInet6{Addr: nowhere6.As16()}
	case g.native:
		typ, proto = unix.SOCK_RAW, unix.IPPROTO_ESP
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	route, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("socket", err)
	}
	f := &fragments{fd: fd, route: route}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
			_ = unix.Close(route)
		}
	}()
	set := func(fd, level, opt, value int, name string) {
		if err == nil {
			if err = g.sys.setInt(fd, level, opt, value); err != nil {
				err = fmt.Errorf("set %s: %w", name, err)
			}
		}
	}
	if g.opt.Mark != 0 {
		set(fd, unix.SOL_SOCKET, unix.SO_MARK, int(g.opt.Mark), "SO_MARK")
		set(route, unix.SOL_SOCKET, unix.SO_MARK, int(g.opt.Mark), "SO_MARK")
	}
	set(fd, level, discover, omit, "MTU_DISCOVER")
	set(fd, level, free, 1, "FREEBIND")
	// The port is taken, by those sockets that have it for every address; with SO_REUSEADDR on both
	// sides two may have it.
	share := !g.v6 && !g.native
	if share {
		set(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR")
		for _, s := range g.sockets {
			set(int(s.fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR")
		}
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, nowhere))
	}
	if share {
		for _, s := range g.sockets { // from now on nobody else
			if e := g.sys.setInt(int(s.fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 0); e != nil && err == nil {
				err = fmt.Errorf("reset SO_REUSEADDR: %w", e)
			}
		}
	}
	set(fd, level, free, 0, "FREEBIND") // else any source would do
	if err != nil {
		return nil, err
	}
	return f, nil
}

// source returns d with the address that datagrams to it leave from: the socket for fragments has
// none of its own. It allocates where d leaves the choice to the kernel.
func (g *Group) source(d *Dest) (*Dest, error) {
	if d.infoLen > 0 {
		return d, nil
	}
	from := g.opt.Addr
	if from.IsUnspecified() {
		var err error
		if from, err = g.fragments.from(d.remote.Addr()); err != nil {
			return nil, err
		}
	}
	bound, err := NewDest(d.remote, from)
	return &bound, err
}

// from asks the kernel from which address it would send to another.
func (f *fragments) from(to netip.Addr) (netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// It keeps the address that it was once given until it is disconnected.
	unspec := unix.RawSockaddrInet4{Family: unix.AF_UNSPEC}
	if _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(f.route), uintptr(unsafe.Pointer(&unspec)), unix.SizeofSockaddrInet4); e != 0 {
		return netip.Addr{}, e
	}
	const discard = 9 // nothing is sent
	var sa unix.Sockaddr
	if to.Is4() {
		sa = &unix.SockaddrInet4{Addr: to.As4(), Port: discard}
	} else {
		scope, err := zoneIndex(to.Zone())
		if err != nil {
			return netip.Addr{}, err
		}
		sa = &unix.SockaddrInet6{Addr: to.As16(), ZoneId: scope, Port: discard}
	}
	if err := unix.Connect(f.route, sa); err != nil {
		return netip.Addr{}, err
	}
	sa, err := unix.Getsockname(f.route)
	if err != nil {
		return netip.Addr{}, err
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr), nil
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr), nil
	}
	return netip.Addr{}, unix.EAFNOSUPPORT
}

// fragment sends a message whose datagrams may be fragmented, and sets its Err.
func (x *Sender) fragment(m *Message) (closed bool) {
	d, err := x.s.g.source(m.Dest)
	if err != nil {
		m.Err = err
		var e unix.Errno
		_ = errors.As(err, &e)
		x.countError(e)
		return false
	}
	defer func() { x.fd = x.s.fd }()
	bound := Message{Buf: m.Buf, Dest: d, TOS: m.TOS}
	for off := 0; ; {
		size := len(m.Buf) - off
		if m.Segment > 0 {
			size = min(size, m.Segment)
		}
		n := x.fillFragments(&bound, off, size)
		if x.send(n) {
			return true
		}
		for i := range n { // fillFragments may have changed them
			x.hdrs[i].hdr.Iov = &x.iovs[i]
			x.hdrs[i].hdr.SetIovlen(1)
		}
		if x.lo == n {
			x.datagrams.add(1)
			x.messages.add(1)
			x.bytes.add(uint64(size))
		} else {
			if m.Err == nil {
				x.countError(x.err)
			}
			if m.Err = x.err; x.err != unix.ENOBUFS {
				return false
			}
		}
		if off += size; off >= len(m.Buf) {
			return false
		}
	}
}

// fillFragments fills headers with one datagram, or its fragments, and tells how many.
func (x *Sender) fillFragments(m *Message, off, size int) (n int) {
	g := x.s.g
	head, next := udpHeader, byte(unix.IPPROTO_UDP)
	if g.native {
		head, next = 0, unix.IPPROTO_ESP
	}
	switch {
	case !g.v6:
		x.fd = uintptr(g.fragments.fd)
		x.fill(0, m, mark{off: off, size: size})
		return 1
	case ipv6Header+head+size <= minMTU6 || size > x.limit: // every link takes it; or none, and the kernel says so
		x.fd = x.s.fd
		x.fill(0, m, mark{off: off, size: size})
		return 1
	}
	x.fd = uintptr(g.fragments.fd)
	if x.pieces == nil {
		x.pieces = make([]piece, len(x.hdrs))
	}
	// RFC 7739, section 5.3: it must not be guessed.
	id := rand.Uint32()
	payload := m.Buf[off : off+size]
	for at := 0; at < head+size; at += fragmentSize { // of the packet, from the UDP header on
		p := &x.pieces[n]
		end := min(at+fragmentSize, head+size)
		begin := max(at-head, 0)
		x.fill(n, m, mark{off: off + begin, size: end - head - begin})
		offset := uint16(at) // in units of 8 octets, three bits to the left
		if end < head+size {
			offset |= 1 // more follow
		}
		p.head = [len(p.head)]byte{0: next}
		binary.BigEndian.PutUint16(p.head[2:], offset)
		binary.BigEndian.PutUint32(p.head[4:], id)
		taken := fragHeader
		if at == 0 && head > 0 {
			udp := p.head[fragHeader:]
			binary.BigEndian.PutUint16(udp, g.opt.Port)
			binary.BigEndian.PutUint16(udp[2:], m.Dest.remote.Port())
			binary.BigEndian.PutUint16(udp[4:], uint16(head+size))
			binary.BigEndian.PutUint16(udp[6:], checksumUDP(m.Dest.local, m.Dest.remote.Addr(), udp, payload))
			taken += udpHeader
		}
		p.iov[0].Base = &p.head[0]
		p.iov[0].SetLen(taken)
		p.iov[1] = x.iovs[n]
		h := &x.hdrs[n].hdr
		h.Iov = &p.iov[0]
		h.SetIovlen(len(p.iov))
		h.Name = (*byte)(unsafe.Pointer(&m.Dest.raw))
		n++
	}
	return n
}

// checksumUDP computes the checksum of a UDP datagram in IPv6 (RFC 8200, section 8.1).
func checksumUDP(from, to netip.Addr, header, payload []byte) uint16 {
	src, dst := from.As16(), to.As16()
	sum := uint64(len(header)+len(payload)) + unix.IPPROTO_UDP
	for _, b := range [...][]byte{src[:], dst[:], header, payload} { // all but the last of even length
		for ; len(b) >= 2; b = b[2:] {
			sum += uint64(binary.BigEndian.Uint16(b))
		}
		if len(b) > 0 {
			sum += uint64(b[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum == 0xffff {
		return 0xffff // 0 says that there is none
	}
	return ^uint16(sum)
}
