package wire

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// gsoHold is how many messages go to a destination as single datagrams after its device, or the
// kernel, refused to cut one, before that is tried again: routes change.
const gsoHold = 4096

// Dest is where messages go: the remote address and the local one they leave from, in the form
// that the kernel reads. It is made once a path, does not change, and may be used by many
// goroutines.
type Dest struct {
	name    unix.RawSockaddrInet6 // or RawSockaddrInet4
	nameLen uint32
	raw     unix.RawSockaddrInet6 // the same without the port, which raw IPv6 sockets take for a protocol
	v6      bool
	info    [64]byte // control message with the local address
	infoLen int
	remote  netip.AddrPort
	local   netip.Addr

	// hold is how many messages are still to go as single datagrams; atomic, and not an
	// atomic.Int32 because a Dest may be copied until it is used.
	hold int32
}

// NewDest makes a destination. An unspecified or zero local address leaves the choice to the
// kernel. For native ESP the port is not used. A link-local remote address needs a zone, by name
// or number of the interface.
func NewDest(remote netip.AddrPort, local netip.Addr) (Dest, error) {
	to, from := remote.Addr().Unmap(), local.Unmap()
	if !to.IsValid() || to.IsUnspecified() {
		return Dest{}, fmt.Errorf("wire: destination %s: want the address of a host", remote)
	}
	bound := from.IsValid() && !from.IsUnspecified()
	if bound && from.Is4() != to.Is4() {
		return Dest{}, fmt.Errorf("wire: destination %s from %s: want both of one IP version", remote, local)
	}
	scope, err := zoneIndex(to.Zone())
	if err == nil && scope == 0 && from.IsValid() {
		scope, err = zoneIndex(from.Zone())
	}
	if err != nil {
		return Dest{}, fmt.Errorf("wire: destination %s: %w", remote, err)
	}
	d := Dest{v6: to.Is6(), remote: netip.AddrPortFrom(to, remote.Port()), local: from}
	b := (*[unix.SizeofSockaddrInet6]byte)(unsafe.Pointer(&d.name))
	if d.v6 {
		d.nameLen = unix.SizeofSockaddrInet6
		d.name.Family = unix.AF_INET6
		d.name.Addr = to.As16()
		if to.IsLinkLocalUnicast() {
			d.name.Scope_id = scope
		}
		d.raw = d.name
	} else {
		d.nameLen = unix.SizeofSockaddrInet4
		d.name.Family = unix.AF_INET
		a := to.As4()
		copy(b[4:8], a[:])
		d.raw = d.name
	}
	binary.BigEndian.PutUint16(b[2:], remote.Port())
	if !bound {
		return d, nil
	}
	var data []byte
	if d.v6 {
		data, d.infoLen = putControl(d.info[:], unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		a := from.As16()
		copy(data, a[:])
		if from.IsLinkLocalUnicast() {
			binary.NativeEndian.PutUint32(data[16:], scope)
		}
	} else {
		data, d.infoLen = putControl(d.info[:], unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		a := from.As4()
		copy(data[4:], a[:]) // after the interface index: any
	}
	return d, nil
}

// Remote returns where messages go.
func (d *Dest) Remote() netip.AddrPort { return d.remote }

// Local returns the address that they leave from; the zero one if the kernel chooses.
func (d *Dest) Local() netip.Addr { return d.local }

func zoneIndex(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("zone %q is no interface: %w", zone, err)
	}
	return uint32(i.Index), nil
}
