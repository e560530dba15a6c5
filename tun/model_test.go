package tun

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// What is in this file is slow and obviously right: packets are built field by field, checksums are
// added up two octets at a time, super-packets are cut by building each segment anew.

// slowSum is RFC 1071 as it is defined, modulo 0xffff, 0 only if everything is 0.
func slowSum(parts ...[]byte) uint16 {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	sum := 0
	for i := 0; i < len(b); i += 2 {
		sum += int(b[i])<<8 | int(b[i+1])
		if sum > 0xffff {
			sum -= 0xffff
		}
	}
	return uint16(sum)
}

// desc describes a TCP or UDP packet.
type desc struct {
	v6       bool
	proto    uint8
	tos, ttl uint8
	flow     uint32 // IPv6 flow label
	id       uint16
	df       bool
	ipOpt    []byte // IPv4 options, or an IPv6 destination options header
	src, dst uint8  // last octet of the addresses
	addrs    []byte // both addresses, instead of src and dst
	sp, dp   uint16
	seq, ack uint32
	flags    uint8
	window   uint16
	opt      []byte // TCP
	data     []byte
}

func (d desc) pseudo(n int) []byte {
	var b []byte
	if d.v6 {
		b = append(b, d.both()...)
		return append(b, 0, 0, byte(n>>8), byte(n), 0, 0, 0, d.proto)
	}
	b = append(b, d.both()...)
	return append(b, 0, d.proto, byte(n>>8), byte(n))
}

func (d desc) both() []byte {
	if d.addrs != nil {
		return d.addrs
	}
	return append(d.addr(d.src), d.addr(d.dst)...)
}

func (d desc) addr(last uint8) []byte {
	if d.v6 {
		return []byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, last}
	}
	return []byte{10, 20, 30, last}
}

// l4 returns the transport header and the data, with sum in the checksum's place.
func (d desc) l4(sum uint16) []byte {
	be := binary.BigEndian
	var b []byte
	b = be.AppendUint16(b, d.sp)
	b = be.AppendUint16(b, d.dp)
	if d.proto == protoUDP {
		b = be.AppendUint16(b, uint16(8+len(d.data)))
		b = be.AppendUint16(b, sum)
		return append(b, d.data...)
	}
	b = be.AppendUint32(b, d.seq)
	b = be.AppendUint32(b, d.ack)
	b = append(b, byte(5+len(d.opt)/4)<<4, d.flags)
	b = be.AppendUint16(b, d.window)
	b = be.AppendUint16(b, sum)
	b = append(b, 0, 0)
	b = append(b, d.opt...)
	return append(b, d.data...)
}

// build returns the packet with both checksums right, or for partial with the pseudo header's sum.
func (d desc) build(partial bool) []byte {
	n := len(d.l4(0))
	var sum uint16
	if partial {
		sum = slowSum(d.pseudo(n))
	} else {
		sum = ^slowSum(d.pseudo(n), d.l4(0))
		if d.proto == protoUDP && sum == 0 {
			sum = 0xffff
		}
	}
	l4 := d.l4(sum)
	be := binary.BigEndian
	if d.v6 {
		b := be.AppendUint32(nil, 6<<28|uint32(d.tos)<<20|d.flow)
		b = be.AppendUint16(b, uint16(len(d.ipOpt)+len(l4)))
		if len(d.ipOpt) > 0 {
			b = append(b, 60, d.ttl)
		} else {
			b = append(b, d.proto, d.ttl)
		}
		b = append(b, d.both()...)
		b = append(b, d.ipOpt...)
		return append(b, l4...)
	}
	b := []byte{byte(0x45 + len(d.ipOpt)/4), d.tos}
	b = be.AppendUint16(b, uint16(20+len(d.ipOpt)+len(l4)))
	b = be.AppendUint16(b, d.id)
	b = append(b, 0, 0, d.ttl, d.proto, 0, 0)
	if d.df {
		b[6] = 0x40
	}
	b = append(b, d.both()...)
	b = append(b, d.ipOpt...)
	be.PutUint16(b[10:], ^slowSum(b))
	return append(b, l4...)
}

// transport returns the offset of the transport header.
func (d desc) transport() int {
	if d.v6 {
		return 40 + len(d.ipOpt)
	}
	return 20 + len(d.ipOpt)
}

// super returns the super-packet and its header as the kernel would give them.
func (d desc) super(gso int) (virtioHeader, []byte) {
	h := virtioHeader{
		flags: flagNeedsCsum, gsoType: gsoUDPL4, gsoSize: uint16(gso),
		csumStart: uint16(d.transport()), csumOffset: udpCsumOffset, hdrLen: uint16(d.transport() + 8),
	}
	if d.proto == protoTCP {
		h.csumOffset, h.gsoType, h.hdrLen = tcpCsumOffset, gsoTCPv4, uint16(d.transport()+20+len(d.opt))
		if d.v6 {
			h.gsoType = gsoTCPv6
		}
		if d.flags&tcpCWR != 0 {
			h.gsoType |= gsoECN
		}
	}
	return h, d.build(true)
}

// segments is what GSO makes of the super-packet d.
func (d desc) segments(gso int) (pkts [][]byte) {
	data := d.data
	for i := 0; len(data) > 0; i++ {
		s := d
		n := min(gso, len(data))
		s.data = data[:n]
		data = data[n:]
		s.id += uint16(i)
		s.seq += uint32(i * gso)
		if len(data) > 0 {
			s.flags &^= tcpFIN | tcpPSH
		}
		if i > 0 {
			s.flags &^= tcpCWR
		}
		pkts = append(pkts, s.build(false))
	}
	return pkts
}

// parse is the reverse of build; ok false for what is not a packet that desc describes.
func parse(b []byte) (d desc, ok bool) {
	be := binary.BigEndian
	if len(b) < 20 {
		return d, false
	}
	var l4 []byte
	switch {
	case b[0]>>4 == 4:
		ihl := int(b[0]&15) * 4
		if ihl < 20 || len(b) < ihl || int(be.Uint16(b[2:])) != len(b) || be.Uint16(b[6:])&^0x4000 != 0 {
			return d, false
		}
		d.tos, d.id, d.df, d.ttl, d.proto = b[1], be.Uint16(b[4:]), b[6]&0x40 != 0, b[8], b[9]
		d.addrs = b[12:20]
		d.ipOpt = b[20:ihl]
		l4 = b[ihl:]
	case b[0]>>4 == 6 && len(b) >= 40 && int(be.Uint16(b[4:])) == len(b)-40:
		d.v6, d.tos, d.flow = true, uint8(be.Uint16(b)>>4), be.Uint32(b)&0xfffff
		d.proto, d.ttl, d.addrs = b[6], b[7], b[8:40]
		l4 = b[40:]
	default:
		return d, false
	}
	switch {
	case d.proto == protoUDP && len(l4) >= 8 && int(be.Uint16(l4[4:])) == len(l4):
		d.sp, d.dp, d.data = be.Uint16(l4), be.Uint16(l4[2:]), l4[8:]
	case d.proto == protoTCP && len(l4) >= 20:
		head := int(l4[12]>>4) * 4
		if head < 20 || head > len(l4) || l4[12]&15 != 0 || l4[18]|l4[19] != 0 {
			return d, false
		}
		d.sp, d.dp, d.seq, d.ack = be.Uint16(l4), be.Uint16(l4[2:]), be.Uint32(l4[4:]), be.Uint32(l4[8:])
		d.flags, d.window, d.opt, d.data = l4[13], be.Uint16(l4[14:]), l4[20:head], l4[head:]
	default:
		return d, false
	}
	return d, true
}

// kernel is what Linux does with something that is written to the TUN device.
func kernel(b []byte) ([][]byte, error) {
	var h virtioHeader
	h.decode(b)
	b = b[virtioHeaderLen:]
	if h == (virtioHeader{}) {
		return [][]byte{b}, nil
	}
	d, ok := parse(b)
	if !ok {
		return nil, fmt.Errorf("super-packet makes no sense: % x", b[:min(len(b), 80)])
	}
	want, pkt := d.super(int(h.gsoSize))
	if h != want {
		return nil, fmt.Errorf("header %+v, want %+v", h, want)
	}
	if !bytes.Equal(pkt, b) {
		return nil, fmt.Errorf("super-packet\n% x, want\n% x", b[:min(len(b), 80)], pkt[:min(len(pkt), 80)])
	}
	if len(d.data) <= int(h.gsoSize) {
		return nil, fmt.Errorf("super-packet of one segment: %d of %d octets", len(d.data), h.gsoSize)
	}
	if n := len(d.data); d.proto == protoUDP && n > int(h.gsoSize)*64 {
		return nil, fmt.Errorf("UDP super-packet of %d segments, Linux before 6.9 takes 64", n/int(h.gsoSize))
	}
	return d.segments(int(h.gsoSize)), nil
}
