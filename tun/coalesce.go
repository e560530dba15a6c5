package tun

import (
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/unix"
)

const (
	maxOpenRuns = 8   // flows that may be glued at the same time
	maxRun      = 128 // packets of a run
	maxRunUDP   = 64  // UDP_MAX_SEGMENTS of Linux before 6.9
)

// run is a sequence of packets of one flow that leaves as one super-packet, or a single packet.
type run struct {
	head, tail int32 // indexes of packets; the ones between are linked by coalescer.next
	count      int32
	total      int32 // octets of the super-packet

	// Of a run that can still grow.
	size      uint16 // payload of every packet but the last
	transport uint16 // offset of the transport header
	payload   uint16 // offset of the payload
	idStep    uint16 // IPv4: difference of the identifications, known from the second packet on
	seq       uint32 // TCP: of the packet that goes on
	proto     uint8  // 0: cannot be told or never glued
	verified  bool   // the head's checksums were found right, and pseudo is set
	closed    bool

	saved  savedHeader
	pseudo uint64 // sum of the words of addresses and protocol, as onesSum's
}

// savedHeader is what vector changes in the head packet.
type savedHeader struct {
	length, ipSum, l4Sum, udpLen uint16
	tcpFlags                     uint8
}

// coalescer sorts a batch into runs. Packets of one flow stay in order, runs are written in the
// order of their first packets; a packet whose flow cannot be told closes all runs.
type coalescer struct {
	tcp, udp bool // what may be glued

	runs []run
	next []int32 // per packet: the following one of its run, -1 at the end

	// The latest run of each flow that was seen lately.
	hash  [maxOpenRuns]uint32
	open  [maxOpenRuns]int32 // index of the run
	n     int                // how many there are
	evict int                // which one is given up next
}

func (c *coalescer) reset() {
	c.runs, c.next, c.n, c.evict = c.runs[:0], c.next[:0], 0, 0
}

// add takes the packet pkts[i]; all of a batch are added in turn, those that are not to be
// written too (use false).
func (c *coalescer) add(pkts []Packet, i int, use bool) {
	c.next = append(c.next, -1)
	if !use {
		return
	}
	pkt := pkts[i].Buf[pkts[i].Off:][:pkts[i].Len]
	var f fields
	if !(c.tcp || c.udp) || !f.classify(pkt) || f.proto == protoTCP && !c.tcp || f.proto == protoUDP && !c.udp {
		c.n = 0 // a barrier for everybody
		c.start(i, &fields{}, len(pkt))
		return
	}
	slot := -1
	for k := range c.n {
		if c.hash[k] == f.hash {
			r := &c.runs[c.open[k]]
			head := &pkts[r.head]
			if r.proto == f.proto && r.transport == f.transport && sameFlow(head.Buf[head.Off:], pkt, f.transport) {
				if r.accept(&f, head.Buf[head.Off:][:head.Len], pkt) {
					c.next[r.tail] = int32(i)
					r.tail = int32(i)
					return
				}
				slot = k // the flow goes on in a new run
				break
			}
		}
	}
	if slot < 0 {
		if c.n < maxOpenRuns {
			slot = c.n
			c.n++
		} else {
			slot = c.evict
			c.evict = (c.evict + 1) % maxOpenRuns
		}
	}
	c.hash[slot], c.open[slot] = f.hash, int32(len(c.runs))
	c.start(i, &f, len(pkt))
}

// start makes a run of one packet.
func (c *coalescer) start(i int, f *fields, n int) {
	if len(c.runs) == cap(c.runs) {
		c.runs = append(c.runs, run{})
	} else {
		c.runs = c.runs[:len(c.runs)+1]
	}
	r := &c.runs[len(c.runs)-1]
	r.head, r.tail, r.count, r.total = int32(i), int32(i), 1, int32(n)
	r.size, r.transport, r.payload, r.proto = f.size, f.transport, f.payload, f.proto
	r.seq, r.closed, r.verified = f.seq+uint32(f.size), f.alone, false
}

// fields are what the coalescer looks at first in a packet.
type fields struct {
	transport uint16 // offset of the transport header
	payload   uint16 // offset of the payload
	size      uint16 // of the payload
	proto     uint8
	alone     bool // the flow is known, but nothing may be glued behind this packet
	seq       uint32
	hash      uint32 // of the flow
}

// classify finds the transport header; false where the flow cannot be told.
func (f *fields) classify(pkt []byte) bool {
	var hash uint64
	switch {
	case pkt[0] == 0x45:
		frag := be16(pkt[6:])
		if int(be16(pkt[2:])) != len(pkt) || frag&^0x4000 != 0 || len(pkt) < ipv4HeaderLen+udpHeaderLen {
			return false
		}
		f.proto, f.transport = pkt[9], ipv4HeaderLen
		hash = word64(pkt[12:])
	case pkt[0]>>4 == 6:
		if int(be16(pkt[4:]))+ipv6HeaderLen != len(pkt) || len(pkt) < ipv6HeaderLen+udpHeaderLen {
			return false
		}
		f.proto, f.transport = pkt[6], ipv6HeaderLen
		hash = word64(pkt[8:])*3 ^ word64(pkt[16:]) ^ word64(pkt[24:])*5 ^ bits.RotateLeft64(word64(pkt[32:]), 32)
	default:
		return false
	}
	l4 := pkt[f.transport:]
	f.hash = uint32((hash ^ uint64(word32(l4))<<16 ^ uint64(f.proto)) * 0x9e3779b97f4a7c15 >> 32)
	switch f.proto {
	case protoTCP:
		if len(l4) < tcpHeaderLen {
			return false
		}
		n := int(l4[12]>>4) * 4
		if n < tcpHeaderLen || n > len(l4) {
			return false
		}
		f.payload, f.size = f.transport+uint16(n), uint16(len(l4)-n)
		f.seq = binary.BigEndian.Uint32(l4[4:])
		// Only ACK; with PSH it can only be the last of a run, see accept. The low bits of octet 12
		// are reserved or AccECN.
		f.alone = l4[13] != tcpACK || l4[12]&15 != 0 || f.size == 0
	case protoUDP:
		if int(be16(l4[4:])) != len(l4) {
			return false
		}
		f.payload, f.size = f.transport+udpHeaderLen, uint16(len(l4)-udpHeaderLen)
		f.alone = f.size == 0 || be16(l4[udpCsumOffset:]) == 0 // no checksum: nothing to be gained safely
	default:
		return false
	}
	return true
}

// sameFlow compares addresses and ports, which lie together: no IP options were let through.
func sameFlow(a, b []byte, transport uint16) bool {
	if transport == ipv4HeaderLen {
		return word64(a[12:]) == word64(b[12:]) && word32(a[20:]) == word32(b[20:])
	}
	return word64(a[8:]) == word64(b[8:]) && word64(a[16:]) == word64(b[16:]) &&
		word64(a[24:]) == word64(b[24:]) && word64(a[32:]) == word64(b[32:]) && word32(a[40:]) == word32(b[40:])
}

// accept appends the packet f to r if Linux' segmentation of the result gives back exactly the same
// packets. head is the first packet of r.
func (r *run) accept(f *fields, head, pkt []byte) bool {
	limit := int32(maxRun)
	if r.proto == protoUDP {
		limit = maxRunUDP
	}
	if r.closed || r.count >= limit || f.payload != r.payload || f.size == 0 || f.size > r.size || r.total+int32(f.size) > 0xffff {
		return false
	}
	step := r.idStep
	if r.transport == ipv4HeaderLen {
		// TOS; flags and fragment offset, TTL and protocol
		if word16(head) != word16(pkt) || word32(head[6:]) != word32(pkt[6:]) {
			return false
		}
		// Identifications count up, as segmentation makes them. With DF set they carry no meaning
		// (RFC 6864 section 4.1), and many hosts keep them constant.
		diff := be16(pkt[4:]) - be16(head[4:])
		if r.count == 1 {
			step = diff
		}
		if step > 1 || step == 0 && pkt[6]&0x40 == 0 || diff != step*uint16(r.count) {
			return false
		}
	} else if word32(head) != word32(pkt) || word16(head[6:]) != word16(pkt[6:]) { // class, flow label; next header, hop limit
		return false
	}
	h, l := head[r.transport:r.payload], pkt[r.transport:r.payload]
	last := f.size < r.size
	if r.proto == protoTCP {
		if f.seq != r.seq || l[13]&^tcpPSH != tcpACK || l[12] != h[12] ||
			word32(h[8:]) != word32(l[8:]) || // acknowledgement
			word16(h[14:]) != word16(l[14:]) || word16(h[18:]) != word16(l[18:]) { // window; urgent pointer
			return false
		}
		for i := tcpHeaderLen; i+4 <= len(h) && i+4 <= len(l); i += 4 { // options
			if word32(h[i:]) != word32(l[i:]) {
				return false
			}
		}
		last = last || l[13]&tcpPSH != 0
	} else if f.alone { // no checksum
		return false
	}
	if !r.verified {
		from := 12
		if r.transport == ipv6HeaderLen {
			from = 8
		}
		r.pseudo = scalarSum(head[from:r.transport]) + uint64(r.proto)<<8
		if !r.checksumsRight(head) {
			return false
		}
		r.verified = true
	}
	if !r.checksumsRight(pkt) {
		return false
	}
	r.idStep = step
	r.count++
	r.total += int32(f.size)
	r.seq += uint32(f.size)
	r.closed = last
	return true
}

// checksumsRight verifies both checksums: the kernel takes those of a super-packet for granted, so
// that a damaged packet would be made whole. The all-ones form of zero, which adds up as well, is
// what segmentation writes for UDP alone.
func (r *run) checksumsRight(pkt []byte) bool {
	if r.transport == ipv4HeaderLen {
		a, b := word64(pkt), word64(pkt[8:])
		sum := a>>32 + a&0xffffffff + b>>32 + b&0xffffffff + uint64(word32(pkt[16:]))
		if fold(sum) != 0xffff || pkt[10]&pkt[11] == 0xff {
			return false
		}
	}
	l4 := pkt[r.transport:]
	if r.proto == protoTCP && l4[tcpCsumOffset]&l4[tcpCsumOffset+1] == 0xff {
		return false
	}
	return fold(wordSum(l4)+r.pseudo+uint64(bits.ReverseBytes16(uint16(len(l4))))) == 0xffff
}

// What only has to be equal, or added up, is read as it lies.
func word16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }
func word32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
func word64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
func be16(b []byte) uint16   { return binary.BigEndian.Uint16(b) }

// vector appends to iov what is to be written: the head with its virtio header, and the payloads
// of the others.
func (r *run) vector(pkts []Packet, next []int32, iov []unix.Iovec) []unix.Iovec {
	p := &pkts[r.head]
	if r.count == 1 {
		return single(p, iov)
	}
	h := virtioHeader{
		flags: flagNeedsCsum, gsoType: gsoUDPL4, hdrLen: r.payload, gsoSize: r.size,
		csumStart: r.transport, csumOffset: udpCsumOffset,
	}
	pkt := p.Buf[p.Off : p.Off+p.Len]
	l4 := pkt[r.transport:]
	if r.proto == protoTCP {
		h.csumOffset, h.gsoType = tcpCsumOffset, gsoTCPv4
		if r.transport == ipv6HeaderLen {
			h.gsoType = gsoTCPv6
		}
	}
	r.saved.l4Sum = binary.BigEndian.Uint16(l4[h.csumOffset:])
	if r.transport == ipv4HeaderLen {
		r.saved.length, r.saved.ipSum = binary.BigEndian.Uint16(pkt[2:]), binary.BigEndian.Uint16(pkt[10:])
		binary.BigEndian.PutUint16(pkt[2:], uint16(r.total))
		putIPv4Checksum(pkt[:ipv4HeaderLen])
	} else {
		r.saved.length = binary.BigEndian.Uint16(pkt[4:])
		binary.BigEndian.PutUint16(pkt[4:], uint16(r.total-ipv6HeaderLen))
	}
	if r.proto == protoTCP {
		r.saved.tcpFlags = l4[13]
		tail := &pkts[r.tail]
		l4[13] |= tail.Buf[tail.Off+int(r.transport)+13] & tcpPSH
	} else {
		r.saved.udpLen = binary.BigEndian.Uint16(l4[4:])
		binary.BigEndian.PutUint16(l4[4:], uint16(r.total-int32(r.transport)))
	}
	binary.BigEndian.PutUint16(l4[h.csumOffset:], pseudoSum(pkt, r.proto, int(r.total)-int(r.transport)))

	h.encode(p.Buf[p.Off-virtioHeaderLen:])
	iov = appendIovec(iov, p.Buf[p.Off-virtioHeaderLen:p.Off+p.Len])
	for i := next[r.head]; i >= 0; i = next[i] {
		q := &pkts[i]
		iov = appendIovec(iov, q.Buf[q.Off+int(r.payload):q.Off+q.Len])
	}
	return iov
}

// restore undoes what vector did to the head.
func (r *run) restore(pkts []Packet) {
	p := &pkts[r.head]
	pkt := p.Buf[p.Off : p.Off+p.Len]
	l4 := pkt[r.transport:]
	if r.transport == ipv4HeaderLen {
		binary.BigEndian.PutUint16(pkt[2:], r.saved.length)
		binary.BigEndian.PutUint16(pkt[10:], r.saved.ipSum)
	} else {
		binary.BigEndian.PutUint16(pkt[4:], r.saved.length)
	}
	if r.proto == protoTCP {
		l4[13] = r.saved.tcpFlags
		binary.BigEndian.PutUint16(l4[tcpCsumOffset:], r.saved.l4Sum)
	} else {
		binary.BigEndian.PutUint16(l4[4:], r.saved.udpLen)
		binary.BigEndian.PutUint16(l4[udpCsumOffset:], r.saved.l4Sum)
	}
}

// single appends a packet as it is, with an empty virtio header.
func single(p *Packet, iov []unix.Iovec) []unix.Iovec {
	clear(p.Buf[p.Off-virtioHeaderLen : p.Off])
	return appendIovec(iov, p.Buf[p.Off-virtioHeaderLen:p.Off+p.Len])
}

func appendIovec(iov []unix.Iovec, b []byte) []unix.Iovec {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return append(iov, v)
}
