package tun

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

const (
	maxOpenRuns = 8   // flows that may be glued at the same time
	maxRun      = 128 // packets of a run
	maxRunUDP   = 64  // UDP_MAX_SEGMENTS of Linux before 6.9
)

// run is a sequence of packets of one flow that leaves as one super-packet, or a single packet.
type run struct {
	head, tail int // indexes of packets; the ones between are linked by coalescer.next
	count      int

	// Of a run that can still grow.
	proto     uint8 // 0: cannot be told or never glued
	transport int   // offset of the transport header
	payload   int   // offset of the payload
	size      int   // payload of every packet but the last
	total     int   // octets of the super-packet
	seq       uint32
	idStep    uint16 // IPv4: difference of the identifications, known from the second packet on
	verified  bool   // the head's checksums were found right
	closed    bool

	saved savedHeader
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

	runs   []run
	next   []int            // per packet: the following one of its run, -1 at the end
	open   [maxOpenRuns]int // indexes of runs: the latest of each flow that was seen lately
	n      int              // of open
	evict  int              // which of open is given up next
	cursor int              // which of runs is being written
}

func (c *coalescer) reset() {
	c.runs, c.next, c.n, c.evict, c.cursor = c.runs[:0], c.next[:0], 0, 0, 0
}

func (c *coalescer) first() *run {
	c.cursor = -1
	return c.following()
}

// following returns the run that is written after the one that first or following returned.
func (c *coalescer) following() *run {
	if c.cursor++; c.cursor < len(c.runs) {
		return &c.runs[c.cursor]
	}
	return nil
}

func (c *coalescer) after(i int) int { return c.next[i] }

// add takes the packet pkts[i]; all of a batch are added in turn, those that are not to be
// written too (use false).
func (c *coalescer) add(pkts []Packet, i int, use bool) {
	c.next = append(c.next, -1)
	if !use {
		return
	}
	r := run{head: i, tail: i, count: 1}
	pkt := pkts[i].Buf[pkts[i].Off : pkts[i].Off+pkts[i].Len]
	if c.tcp || c.udp {
		r.classify(pkt)
	}
	if r.proto == protoTCP && !c.tcp || r.proto == protoUDP && !c.udp {
		r.proto = 0
	}
	if r.proto == 0 { // a barrier for everybody
		c.n = 0
		c.runs = append(c.runs, r)
		return
	}
	slot := -1
	for k := c.n - 1; k >= 0; k-- {
		o := &c.runs[c.open[k]]
		head := &pkts[o.head]
		if !o.sameFlow(&r, head.Buf[head.Off:], pkt) {
			continue
		}
		if o.accept(&r, head.Buf[head.Off:head.Off+head.Len], pkt) {
			c.next[o.tail] = i
			o.tail = i
			return
		}
		slot = k // the flow goes on in a new run
		break
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
	c.open[slot] = len(c.runs)
	c.runs = append(c.runs, r)
}

// classify finds the transport header. proto stays 0 where the flow cannot be told; closed is set
// where the flow is known but the packet must stay alone.
func (r *run) classify(pkt []byte) {
	var proto uint8
	switch {
	case pkt[0] == 0x45:
		frag := binary.BigEndian.Uint16(pkt[6:])
		if int(binary.BigEndian.Uint16(pkt[2:])) != len(pkt) || frag&^0x4000 != 0 {
			return
		}
		proto, r.transport = pkt[9], ipv4HeaderLen
	case pkt[0]>>4 == 6:
		if int(binary.BigEndian.Uint16(pkt[4:]))+ipv6HeaderLen != len(pkt) {
			return
		}
		proto, r.transport = pkt[6], ipv6HeaderLen
	default:
		return
	}
	l4 := pkt[r.transport:]
	switch {
	case proto == protoTCP && len(l4) >= tcpHeaderLen:
		head := int(l4[12]>>4) * 4
		if head < tcpHeaderLen || head > len(l4) {
			return
		}
		r.payload = r.transport + head
		r.seq = binary.BigEndian.Uint32(l4[4:])
		// Only ACK, with PSH at the end. The low bits of octet 12 are reserved or AccECN.
		r.closed = l4[13] != tcpACK || l4[12]&15 != 0
		if l4[13] == tcpACK|tcpPSH && l4[12]&15 == 0 {
			r.closed = true // may be the last of a run, see accept
		}
	case proto == protoUDP && len(l4) >= udpHeaderLen:
		if int(binary.BigEndian.Uint16(l4[4:])) != len(l4) {
			return
		}
		r.payload = r.transport + udpHeaderLen
		r.closed = binary.BigEndian.Uint16(l4[udpCsumOffset:]) == 0 // no checksum: nothing to be gained safely
	default:
		return
	}
	r.proto = proto
	r.total = len(pkt)
	r.size = len(pkt) - r.payload
	r.seq += uint32(r.size)
	if r.size == 0 {
		r.closed = true
	}
}

// sameFlow compares protocol, addresses and ports.
func (r *run) sameFlow(o *run, head, pkt []byte) bool {
	if r.proto != o.proto || r.transport != o.transport {
		return false
	}
	// Source and destination are followed by the ports: no IP options were let through.
	from := 12
	if r.transport == ipv6HeaderLen {
		from = 8
	}
	return bytes.Equal(head[from:r.transport+4], pkt[from:r.transport+4])
}

// accept appends the packet p, a run of its own so far, to r if Linux' segmentation of the result
// gives back exactly the same packets. head is the first packet of r.
func (r *run) accept(p *run, head, pkt []byte) bool {
	limit := maxRun
	if r.proto == protoUDP {
		limit = maxRunUDP
	}
	if r.closed || r.count >= limit || p.payload != r.payload || p.size == 0 || p.size > r.size || r.total+p.size > 0xffff {
		return false
	}
	step := r.idStep
	if r.transport == ipv4HeaderLen {
		if head[1] != pkt[1] || head[6] != pkt[6] || head[8] != pkt[8] { // TOS, DF, TTL
			return false
		}
		// Identifications count up, as segmentation makes them. With DF set they carry no meaning
		// (RFC 6864 section 4.1), and many hosts keep them constant.
		diff := binary.BigEndian.Uint16(pkt[4:]) - binary.BigEndian.Uint16(head[4:])
		if r.count == 1 {
			step = diff
		}
		if step > 1 || step == 0 && pkt[6]&0x40 == 0 || diff != step*uint16(r.count) {
			return false
		}
	} else if !bytes.Equal(head[:4], pkt[:4]) || head[7] != pkt[7] { // class, flow label, hop limit
		return false
	}
	h, l := head[r.transport:r.payload], pkt[r.transport:r.payload]
	last := p.size < r.size
	if r.proto == protoTCP {
		if p.seq-uint32(p.size) != r.seq || l[13]&^tcpPSH != tcpACK || l[12] != h[12] ||
			!bytes.Equal(h[8:12], l[8:12]) || // acknowledgement
			!bytes.Equal(h[14:16], l[14:16]) || !bytes.Equal(h[18:], l[18:]) { // window; urgent pointer, options
			return false
		}
		last = last || l[13]&tcpPSH != 0
	} else if p.closed { // no checksum
		return false
	}
	if !r.verified && !r.checksumsRight(head) || !r.checksumsRight(pkt) {
		return false
	}
	r.verified, r.idStep = true, step
	r.count++
	r.total += p.size
	r.seq = p.seq
	r.closed = last
	return true
}

// checksumsRight verifies both checksums: the kernel takes those of a super-packet for granted, so
// that a damaged packet would be made whole. The all-ones form of zero, which adds up as well, is
// what segmentation writes for UDP alone.
func (r *run) checksumsRight(pkt []byte) bool {
	if r.transport == ipv4HeaderLen && (onesSum(pkt[:ipv4HeaderLen], 0) != 0xffff || pkt[10]&pkt[11] == 0xff) {
		return false
	}
	l4 := pkt[r.transport:]
	if r.proto == protoTCP && l4[tcpCsumOffset]&l4[tcpCsumOffset+1] == 0xff {
		return false
	}
	return onesSum(l4, pseudoSum(pkt, r.proto, len(l4))) == 0xffff
}

// vector appends to iov what is to be written: the head with its virtio header, and the payloads
// of the others.
func (r *run) vector(pkts []Packet, next []int, iov []unix.Iovec) []unix.Iovec {
	p := &pkts[r.head]
	if r.count == 1 {
		return single(p, iov)
	}
	h := virtioHeader{
		flags: flagNeedsCsum, gsoType: gsoUDPL4, hdrLen: uint16(r.payload), gsoSize: uint16(r.size),
		csumStart: uint16(r.transport), csumOffset: udpCsumOffset,
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
		l4[13] |= tail.Buf[tail.Off+r.transport+13] & tcpPSH
	} else {
		r.saved.udpLen = binary.BigEndian.Uint16(l4[4:])
		binary.BigEndian.PutUint16(l4[4:], uint16(r.total-r.transport))
	}
	binary.BigEndian.PutUint16(l4[h.csumOffset:], pseudoSum(pkt, r.proto, r.total-r.transport))

	h.encode(p.Buf[p.Off-virtioHeaderLen:])
	iov = appendIovec(iov, p.Buf[p.Off-virtioHeaderLen:p.Off+p.Len])
	for i := next[r.head]; i >= 0; i = next[i] {
		q := &pkts[i]
		iov = appendIovec(iov, q.Buf[q.Off+r.payload:q.Off+q.Len])
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
