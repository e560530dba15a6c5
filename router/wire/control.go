package wire

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	cmsgHeader = unix.SizeofCmsghdr
	// Room for control messages: packet info, traffic class and segment size.
	recvControl = 128
	sendControl = 128
)

// controls steps through control messages (cmsg(3)): each is a header, its data, and padding to
// the size of a word. data is nil at the end.
func nextControl(b []byte) (level, typ int32, data, rest []byte) {
	if len(b) < cmsgHeader {
		return 0, 0, nil, nil
	}
	size := binary.NativeEndian.Uint64(b)
	if size < cmsgHeader || size > uint64(len(b)) {
		return 0, 0, nil, nil
	}
	level = int32(binary.NativeEndian.Uint32(b[8:]))
	typ = int32(binary.NativeEndian.Uint32(b[12:]))
	data = b[cmsgHeader:size:size]
	if step := unix.CmsgSpace(int(size) - cmsgHeader); step < len(b) {
		rest = b[step:]
	}
	return level, typ, data, rest
}

// putControl writes the header of a control message with n octets of data at the start of b and
// returns the data, zeroed with its padding, and the number of octets taken.
func putControl(b []byte, level, typ int32, n int) (data []byte, taken int) {
	binary.NativeEndian.PutUint64(b, uint64(cmsgHeader+n))
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(typ))
	taken = unix.CmsgSpace(n)
	clear(b[cmsgHeader:taken])
	return b[cmsgHeader : cmsgHeader+n], taken
}

// parse reads what the kernel says about a datagram beside its payload.
func (d *Datagram) parse(control []byte) {
	for {
		level, typ, data, rest := nextControl(control)
		switch {
		case data == nil:
			return
		case level == unix.IPPROTO_UDP && typ == unix.UDP_GRO && len(data) >= 4:
			d.Segment = int(binary.NativeEndian.Uint32(data))
		case level == unix.IPPROTO_IP && typ == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: interface index, local address, destination address of the header
			d.Local = netip.AddrFrom4([4]byte(data[8:12]))
		case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			d.Local = netip.AddrFrom16([16]byte(data[:16]))
		case level == unix.IPPROTO_IP && typ == unix.IP_TOS && len(data) >= 1:
			d.TOS = data[0]
		case level == unix.IPPROTO_IPV6 && typ == unix.IPV6_TCLASS && len(data) >= 4:
			d.TOS = uint8(binary.NativeEndian.Uint32(data))
		}
		control = rest
	}
}

// addrPort reads a socket address. Only link-local addresses carry a zone, which is the number of
// the interface; that allocates once an interface.
func addrPort(sa *unix.RawSockaddrInet6, native bool) netip.AddrPort {
	b := (*[unix.SizeofSockaddrInet6]byte)(unsafe.Pointer(sa))
	var a netip.Addr
	switch sa.Family {
	case unix.AF_INET:
		a = netip.AddrFrom4([4]byte(b[4:8]))
	case unix.AF_INET6:
		a = netip.AddrFrom16(sa.Addr)
		if sa.Scope_id != 0 && a.IsLinkLocalUnicast() {
			a = a.WithZone(strconv.Itoa(int(sa.Scope_id)))
		}
	default:
		return netip.AddrPort{}
	}
	if native { // raw sockets have the protocol there, or nothing
		return netip.AddrPortFrom(a, 0)
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[2:]))
}
