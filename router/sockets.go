package router

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sizes of the sockets' buffers in bytes: enough for some ten milliseconds of a burst at
// 10 Gbit/s. SO_*BUFFORCE needs CAP_NET_ADMIN; without it the kernel's limits hold.
const (
	socketBuffer  = 8 << 20
	maxDatagram   = 65535
	nonESPMarker  = 4 // octets of zero before an IKE message on the NAT-T port (RFC 3948, section 2.2)
	maxOOB        = 128
	cmsgHeaderLen = unix.SizeofCmsghdr
)

// udpSocket is one of the appliance's UDP sockets. It knows which address of the machine a
// datagram was sent to, and lets an answer leave from there; it carries the traffic class of the
// outer header in both directions (RFC 6040 needs the received one).
type udpSocket struct {
	conn *net.UDPConn
	addr netip.Addr // what it is bound to
	port uint16
	natt bool // the NAT traversal port: ESP in UDP, IKE behind the non-ESP marker
	v6   bool
}

// datagram is what a read returns beside the payload.
type datagram struct {
	n      int
	remote netip.AddrPort
	local  netip.Addr // zero when the kernel did not say
	tos    uint8
}

// openSocket opens the UDP socket for family and port on addr (unspecified: every address);
// what it sends carries the fwmark mark unless that is 0.
func openSocket(addr netip.Addr, port uint16, natt bool, mark uint32) (*udpSocket, error) {
	network := "udp4"
	if addr.Is6() {
		network = "udp6"
	}
	var optErr error
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { optErr = setSocketOptions(int(fd), addr.Is6(), mark) })
	}}
	pc, err := lc.ListenPacket(context.Background(), network, netip.AddrPortFrom(addr, port).String())
	if err == nil && optErr != nil {
		pc.Close()
		err = optErr
	}
	if err != nil {
		hint := ""
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			hint = " (another IKE daemon runs on this machine: stop it, or give wardgate other ports)"
		case errors.Is(err, unix.EACCES):
			hint = " (ports below 1024 need CAP_NET_BIND_SERVICE)"
		}
		return nil, fmt.Errorf("open UDP socket on %s: %w%s", netip.AddrPortFrom(addr, port), err, hint)
	}
	conn, ok := pc.(*net.UDPConn)
	if !ok {
		pc.Close()
		return nil, fmt.Errorf("open UDP socket on %s: the system gave a %T", netip.AddrPortFrom(addr, port), pc)
	}
	if port == 0 {
		port = conn.LocalAddr().(*net.UDPAddr).AddrPort().Port() //nolint:errcheck,forcetypeassert // a UDP socket's address
	}
	return &udpSocket{conn: conn, addr: addr, port: port, natt: natt, v6: addr.Is6()}, nil
}

func setSocketOptions(fd int, v6 bool, mark uint32) error {
	set := func(level, opt, value int, name string) error {
		if err := unix.SetsockoptInt(fd, level, opt, value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
		return nil
	}
	for _, o := range [...]struct{ force, plain int }{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o.force, socketBuffer) != nil {
			if err := set(unix.SOL_SOCKET, o.plain, socketBuffer, "socket buffer size"); err != nil {
				return err
			}
		}
	}
	if mark != 0 {
		// by which package kernel knows our own packets and keeps them off the tunnels' routes
		if err := set(unix.SOL_SOCKET, unix.SO_MARK, int(mark), "SO_MARK"); err != nil {
			return err
		}
	}
	if v6 {
		// The inner MTU keeps outer packets below the path's usual MTU; where it does not, the
		// outer packet is fragmented rather than lost (RFC 4303, section 3.3.4).
		return errors.Join(
			set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"),
			set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO"),
			set(unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1, "IPV6_RECVTCLASS"),
			set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT, "IPV6_MTU_DISCOVER"))
	}
	return errors.Join(
		set(unix.IPPROTO_IP, unix.IP_PKTINFO, 1, "IP_PKTINFO"),
		set(unix.IPPROTO_IP, unix.IP_RECVTOS, 1, "IP_RECVTOS"),
		set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT, "IP_MTU_DISCOVER"))
}

// read receives one datagram into b; oob is scratch space of maxOOB octets.
func (s *udpSocket) read(b, oob []byte) (datagram, error) {
	n, on, flags, from, err := s.conn.ReadMsgUDPAddrPort(b, oob)
	if err != nil {
		return datagram{}, err
	}
	d := datagram{n: n, remote: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
	if flags&unix.MSG_TRUNC != 0 {
		d.n = 0 // longer than any IP packet: nothing of ours
	}
	d.parseControl(oob[:on])
	return d, nil
}

// parseControl reads the control messages without allocating: cmsg(3), each header followed by
// its data and padded to the size of a word.
func (d *datagram) parseControl(oob []byte) {
	for len(oob) >= cmsgHeaderLen {
		size := int(binary.NativeEndian.Uint64(oob))
		if size < cmsgHeaderLen || size > len(oob) {
			return
		}
		level := int32(binary.NativeEndian.Uint32(oob[8:]))
		typ := int32(binary.NativeEndian.Uint32(oob[12:]))
		data := oob[cmsgHeaderLen:size]
		switch {
		case level == unix.IPPROTO_IP && typ == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: interface index, local address, destination address of the header
			d.local = netip.AddrFrom4([4]byte(data[8:12]))
		case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			d.local = netip.AddrFrom16([16]byte(data[:16]))
		case level == unix.IPPROTO_IP && typ == unix.IP_TOS && len(data) >= 1:
			d.tos = data[0]
		case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_TCLASS && len(data) >= 4:
			d.tos = uint8(binary.NativeEndian.Uint32(data))
		}
		step := unix.CmsgSpace(size - cmsgHeaderLen)
		if step > len(oob) {
			return
		}
		oob = oob[step:]
	}
}

// appendControl appends the control messages that make a datagram leave from local (unless zero)
// with traffic class tos.
func (s *udpSocket) appendControl(oob []byte, local netip.Addr, tos uint8) []byte {
	var level, infoType, tosType uint32 = unix.IPPROTO_IP, unix.IP_PKTINFO, unix.IP_TOS
	if s.v6 {
		level, infoType, tosType = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.IPV6_TCLASS
	}
	header := func(b []byte, typ uint32, n int) []byte {
		b = binary.NativeEndian.AppendUint64(b, uint64(cmsgHeaderLen+n))
		b = binary.NativeEndian.AppendUint32(b, level)
		return binary.NativeEndian.AppendUint32(b, typ)
	}
	if local.IsValid() && !local.IsUnspecified() {
		if s.v6 {
			oob = header(oob, infoType, unix.SizeofInet6Pktinfo)
			a := local.As16()
			oob = append(oob, a[:]...)
			oob = append(oob, 0, 0, 0, 0) // any interface
			oob = append(oob, 0, 0, 0, 0) // pad to a word
		} else if local.Is4() {
			oob = header(oob, infoType, unix.SizeofInet4Pktinfo)
			a := local.As4()
			oob = append(oob, 0, 0, 0, 0) // any interface
			oob = append(oob, a[:]...)    // source address
			oob = append(oob, 0, 0, 0, 0)
			oob = append(oob, 0, 0, 0, 0) // pad to a word
		}
	}
	if tos != 0 {
		oob = header(oob, tosType, 4)
		oob = binary.NativeEndian.AppendUint32(oob, uint32(tos))
		oob = append(oob, 0, 0, 0, 0)
	}
	return oob
}

// write sends b to remote with the control messages that appendControl made.
func (s *udpSocket) write(b, oob []byte, remote netip.AddrPort) error {
	_, _, err := s.conn.WriteMsgUDPAddrPort(b, oob, remote)
	return err
}

// noIPv6 tells whether a socket could not be opened because the machine has no IPv6.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// transient tells whether a send error is one of the moment (no route, no buffer, refused by the
// far host) rather than a broken socket.
func transient(err error) bool {
	return !errors.Is(err, net.ErrClosed)
}
