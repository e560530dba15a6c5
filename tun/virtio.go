package tun

import "encoding/binary"

// virtioHeader is struct virtio_net_hdr of linux/virtio_net.h, in the machine's byte order.
type virtioHeader struct {
	flags      uint8
	gsoType    uint8
	hdrLen     uint16 // of all headers; a hint only
	gsoSize    uint16 // payload of each segment
	csumStart  uint16 // where the checksum begins: at the transport header
	csumOffset uint16 // where it is stored, from csumStart
}

const virtioHeaderLen = 10

// Values of linux/virtio_net.h.
const (
	flagNeedsCsum = 1
	flagDataValid = 2

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDPL4 = 5
	gsoECN   = 0x80 // a bit beside the TCP types: CWR is set in the super-packet
)

func (h *virtioHeader) decode(b []byte) {
	_ = b[virtioHeaderLen-1]
	h.flags, h.gsoType = b[0], b[1]
	h.hdrLen = binary.NativeEndian.Uint16(b[2:])
	h.gsoSize = binary.NativeEndian.Uint16(b[4:])
	h.csumStart = binary.NativeEndian.Uint16(b[6:])
	h.csumOffset = binary.NativeEndian.Uint16(b[8:])
}

func (h *virtioHeader) encode(b []byte) {
	_ = b[virtioHeaderLen-1]
	b[0], b[1] = h.flags, h.gsoType
	binary.NativeEndian.PutUint16(b[2:], h.hdrLen)
	binary.NativeEndian.PutUint16(b[4:], h.gsoSize)
	binary.NativeEndian.PutUint16(b[6:], h.csumStart)
	binary.NativeEndian.PutUint16(b[8:], h.csumOffset)
}
