package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// socketBuffer is what the kernel may queue in each direction, in octets: enough for some ten
	// milliseconds of a burst at 10 Gbit/s. SO_*BUFFORCE needs CAP_NET_ADMIN; without it the
	// kernel's limits hold.
	socketBuffer = 8 << 20
	maxQueues    = 256
)

// Options say what to open.
type Options struct {
	Addr   netip.Addr // local address; unspecified (0.0.0.0 or ::): every address of that version
	Port   uint16     // 0: the kernel chooses one, the same for all queues
	Queues int        // sockets; 0 is 1
	Mark   uint32     // fwmark of everything that is sent, unless 0; needs CAP_NET_ADMIN
	// Steer is for the NAT traversal port: a datagram whose first 32 bits are n comes to socket
	// n % Queues, and runs of datagrams may come glued together. The first datagram of a run
	// decides for all of it, and the kernel looks at addresses and ports alone when it glues: who
	// receives must be able to take what belongs to another queue.
	Steer bool
	// Log is told, once each, what the kernel refused and what is done instead. It may be nil, and
	// is called by any goroutine that sends or receives.
	Log func(msg string, kv ...any)
}

// Group is all sockets of one local address and port, or of native ESP at one address.
type Group struct {
	opt     Options
	native  bool
	v6      bool
	sys     calls
	sockets []*Socket

	fragments *fragments // nil: the kernel does not let us
	stop      int        // eventfd, readable once the group is being closed; -1: none yet
	closed    atomic.Bool
	closing   sync.Once

	// What the kernel does for us. Fallbacks turn these off while the sockets are in use.
	gso, mmsgOut, mmsgIn atomic.Bool
	gro, steered         bool
	told                 [numNotes]atomic.Bool
}

// What is told once.
type note int

const (
	noteNoGRO note = iota
	noteNoGSO
	noteGSORefused
	noteNoSendmmsg
	noteNoRecvmmsg
	noteNoSteer
	noteNoErrors
	noteNoFragments
	numNotes
)

// OpenUDP opens UDP sockets. Errors wrap the system's: EAFNOSUPPORT or EADDRNOTAVAIL where the
// machine has no IPv6.
func OpenUDP(opt Options) (*Group, error) { return open(opt, false, linux) }

// OpenESP opens sockets for ESP right above IP (RFC 4303, protocol 50). It needs CAP_NET_RAW.
// Each packet comes to the socket SPI % Queues; Port and Steer are not used.
func OpenESP(opt Options) (*Group, error) { return open(opt, true, linux) }

func open(opt Options, native bool, sys calls) (*Group, error) {
	if opt.Queues == 0 {
		opt.Queues = 1
	}
	if opt.Queues < 0 || opt.Queues > maxQueues {
		return nil, fmt.Errorf("wire: %d queues, want 1 to %d", opt.Queues, maxQueues)
	}
	if !opt.Addr.IsValid() {
		return nil, errors.New("wire: no local address: give 0.0.0.0 or :: for all addresses of that version")
	}
	opt.Addr = opt.Addr.Unmap()
	if native {
		opt.Port = 0
	}
	g := &Group{opt: opt, native: native, v6: opt.Addr.Is6(), sys: sys, stop: -1}
	g.mmsgIn.Store(true)
	g.mmsgOut.Store(true)
	if err := g.open(); err != nil {
		_ = g.Close()
		return nil, g.explain(err)
	}
	return g, nil
}

func (g *Group) explain(err error) error {
	what, hint := "UDP socket on "+netip.AddrPortFrom(g.opt.Addr, g.opt.Port).String(), ""
	if g.native {
		what = "ESP socket on " + g.opt.Addr.String()
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		hint = " (another IKE daemon runs on this machine: stop it, or give wardgate other ports)"
	case errors.Is(err, unix.EACCES):
		hint = " (ports below 1024 need CAP_NET_BIND_SERVICE)"
	case errors.Is(err, unix.EPERM) && g.native:
		hint = " (raw sockets need CAP_NET_RAW, a mark needs CAP_NET_ADMIN)"
	case errors.Is(err, unix.EPERM):
		hint = " (a mark needs CAP_NET_ADMIN)"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		hint = " (no interface of this machine has the address)"
	case errors.Is(err, unix.EAFNOSUPPORT):
		hint = " (this kernel has no support for that IP version)"
	}
	return fmt.Errorf("wire: open %s: %w%s", what, err, hint)
}

func (g *Group) open() (err error) {
	if g.stop, err = newStop(); err != nil {
		return err
	}
	if !g.native && g.opt.Queues > 1 {
		if err := g.alone(); err != nil {
			return err
		}
	}
	for q := range g.opt.Queues {
		fd, err := g.newSocket()
		if err != nil {
			return err
		}
		if err := g.prepare(fd, q); err != nil {
			_ = unix.Close(fd)
			return err
		}
		g.sockets = append(g.sockets, newSocket(g, q, fd))
	}
	if g.fragments, err = g.openFragments(); err != nil {
		g.tell(noteNoFragments, "no socket for packets that may be fragmented: they are sent like others, with don't-fragment", "error", err)
	}
	return nil
}

// alone makes sure that nobody else has the port: sockets that share one by SO_REUSEPORT would
// otherwise share it with a second daemon, too, and each get half of the packets.
func (g *Group) alone() error {
	if g.opt.Port == 0 {
		return nil
	}
	fd, err := g.newSocket()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if g.v6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fmt.Errorf("set IPV6_V6ONLY: %w", err)
		}
	}
	return g.bind(fd)
}

func (g *Group) newSocket() (int, error) {
	family, typ, proto := unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP
	if g.v6 {
		family = unix.AF_INET6
	}
	if g.native {
		typ, proto = unix.SOCK_RAW, unix.IPPROTO_ESP
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	return fd, nil
}

func (g *Group) bind(fd int) error {
	if !g.v6 {
		return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Port: int(g.opt.Port), Addr: g.opt.Addr.As4()}))
	}
	scope, err := zoneIndex(g.opt.Addr.Zone())
	if err != nil {
		return err
	}
	return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet6{Port: int(g.opt.Port), Addr: g.opt.Addr.As16(), ZoneId: scope}))
}

// prepare sets the options of the socket for queue q and binds it.
func (g *Group) prepare(fd, q int) error {
	if err := g.setOptions(fd, q); err != nil {
		return err
	}
	switch {
	case g.native && g.opt.Queues > 1:
		// Every raw socket is given a copy of every packet: each keeps its own.
		if err := g.sys.filter(fd, unix.SO_ATTACH_FILTER, ownSPI(g.v6, q, g.opt.Queues)); err != nil {
			return fmt.Errorf("set SO_ATTACH_FILTER: %w", err)
		}
	case !g.native && g.opt.Queues > 1:
		if err := g.sys.setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return fmt.Errorf("set SO_REUSEPORT: %w", err)
		}
		// Attached before the first is bound, so that no datagram ever went astray.
		if g.opt.Steer && q == 0 {
			if err := g.sys.filter(fd, unix.SO_ATTACH_REUSEPORT_CBPF, steerSPI(g.opt.Queues)); err != nil {
				g.tell(noteNoSteer, "the kernel does not steer datagrams by SPI: all from one peer come to one queue", "error", err)
			} else {
				g.steered = true
			}
		}
	}
	if err := g.bind(fd); err != nil {
		return err
	}
	if g.opt.Port == 0 && !g.native {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			g.opt.Port = uint16(sa.Port)
		case *unix.SockaddrInet6:
			g.opt.Port = uint16(sa.Port)
		}
	}
	return nil
}

func (g *Group) setOptions(fd, q int) error {
	set := func(level, opt, value int, name string) error {
		if err := g.sys.setInt(fd, level, opt, value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
		return nil
	}
	for _, o := range [...]struct{ force, plain int }{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if g.sys.setInt(fd, unix.SOL_SOCKET, o.force, socketBuffer) != nil {
			if err := set(unix.SOL_SOCKET, o.plain, socketBuffer, "socket buffer size"); err != nil {
				return err
			}
		}
	}
	if g.opt.Mark != 0 {
		// by which package kernel knows our own packets and keeps them off the tunnels' routes
		if err := set(unix.SOL_SOCKET, unix.SO_MARK, int(g.opt.Mark), "SO_MARK"); err != nil {
			return err
		}
	}
	// PROBE: don't-fragment is set, and only the link's MTU limits what leaves. The path MTU that
	// the kernel learns from ICMP is not heeded: package router judges those messages by the
	// packet that they quote.
	var err error
	if g.v6 {
		if !g.native { // raw IPv6 sockets never see IPv4, and refuse the option
			err = set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY")
		}
		err = errors.Join(err,
			set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO"),
			set(unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1, "IPV6_RECVTCLASS"),
			set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE, "IPV6_MTU_DISCOVER"),
			set(unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1, "IPV6_DONTFRAG"))
	} else {
		err = set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE, "IP_MTU_DISCOVER")
		if !g.native { // there the IP header itself comes along
			err = errors.Join(err,
				set(unix.IPPROTO_IP, unix.IP_PKTINFO, 1, "IP_PKTINFO"),
				set(unix.IPPROTO_IP, unix.IP_RECVTOS, 1, "IP_RECVTOS"))
		}
	}
	if err != nil {
		return err
	}
	// Every raw socket would be told of every ICMP error: one of them is enough.
	if !g.native || q == 0 {
		level, opt := unix.IPPROTO_IP, unix.IP_RECVERR
		if g.v6 {
			level, opt = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
		}
		if err := g.sys.setInt(fd, level, opt, 1); err != nil {
			g.tell(noteNoErrors, "the kernel does not report ICMP errors: path MTUs are not learned", "error", err)
		}
	}
	if g.native {
		return nil
	}
	if q == 0 {
		// Segmentation is asked for message by message; the option's default is none.
		if _, err := g.sys.getInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT); err != nil {
			g.tell(noteNoGSO, "the kernel does not segment datagrams (UDP_SEGMENT): they are sent singly", "error", err)
		} else {
			g.gso.Store(true)
		}
	}
	if g.opt.Steer {
		if err := g.sys.setInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
			g.tell(noteNoGRO, "the kernel does not glue datagrams together (UDP_GRO): they are received singly", "error", err)
		} else {
			g.gro = true
		}
	}
	return nil
}

// tell logs a fallback the first time.
func (g *Group) tell(n note, msg string, kv ...any) {
	if !g.told[n].Swap(true) && g.opt.Log != nil {
		g.opt.Log(msg, append(kv, "address", g.opt.Addr, "port", g.opt.Port, "native", g.native)...)
	}
}

// Sockets returns the sockets, one a queue.
func (g *Group) Sockets() []*Socket { return g.sockets }

// Addr returns the local address that the group is bound to, which may be unspecified.
func (g *Group) Addr() netip.Addr { return g.opt.Addr }

// Port returns the local port; 0 for native ESP.
func (g *Group) Port() uint16 { return g.opt.Port }

// V6 tells whether the group speaks IPv6, and not IPv4.
func (g *Group) V6() bool { return g.v6 }

// Native tells whether the group is native ESP, and not UDP.
func (g *Group) Native() bool { return g.native }

// Offloads are what the kernel does for a group; see Group.Offloads.
type Offloads struct {
	Steer bool // datagrams come to the queue of their SPI
	GRO   bool // runs of datagrams may be received as one
	GSO   bool // runs of datagrams are sent as one; a device may still refuse it
}

// Offloads tells what the kernel grants.
func (g *Group) Offloads() Offloads {
	return Offloads{Steer: g.steered || g.native && g.opt.Queues > 1, GRO: g.gro, GSO: g.gso.Load()}
}

// Close closes all sockets: who waits in Receive or Send gets net.ErrClosed. It returns when nobody
// uses them any more, so it must not be called in what OnError calls. A second call does nothing.
func (g *Group) Close() (err error) {
	g.closing.Do(func() { err = g.close() })
	return err
}

func (g *Group) close() (err error) {
	g.closed.Store(true)
	if g.stop < 0 {
		return nil
	}
	// Nobody reads it: it is readable from now on.
	if _, err := unix.Write(g.stop, binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
		return os.NewSyscallError("write", err)
	}
	for _, s := range g.sockets {
		s.quiesce()
	}
	fds := []int{g.stop}
	for _, s := range g.sockets {
		fds = append(fds, int(s.fd))
	}
	if g.fragments != nil {
		fds = append(fds, g.fragments.fd, g.fragments.route)
	}
	for _, fd := range fds {
		err = errors.Join(err, os.NewSyscallError("close", g.sys.close(fd)))
	}
	return err
}
