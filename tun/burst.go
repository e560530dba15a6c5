package tun

import (
	"encoding/binary"
	"math/bits"
)

// MaxOverhead is what ReadBurst counts with, in octets, beside each packet: a burst that ReadBurst
// returned can be cut with any Spacing whose stride is at most the packet's length and this, or
// that of the Spacing that ReadBurst was given.
const MaxOverhead = 128

// BurstRoom is what ReadBurst needs behind Spacing.Front at least, in octets: any packet fits. A
// super-packet whose packets need more room, because they are many and small or because much is
// put between them, is handed out as several bursts; with 160 KiB that happens below about 120
// octets of payload.
const BurstRoom = maxRead + MaxOverhead

// maxRead is one octet more than the longest IP packet: whoever fills it was cut off.
const maxRead = ipv6HeaderLen + 0xffff + 1

// Spacing tells where the packets cut from one super-packet have to lie in the caller's buffer:
// packet i begins at Front + i*Stride(Full), so that each has what it will be wrapped in around it
// and all that are wrapped lie back to back. All are octets, none may be negative.
type Spacing struct {
	Front   int // before each packet
	Back    int // behind each packet and its padding, the trailer included
	Align   int // the packet, its padding and Trailer octets are together a multiple; 0 and 1: no padding
	Trailer int // the part of Back that Align counts in
}

// Stride returns what a packet of n octets takes up: Front, the packet, padding, Back.
func (s Spacing) Stride(n int) int {
	pad := 0
	switch a := s.Align; {
	case a <= 1:
	case a&(a-1) == 0:
		pad = -(n + s.Trailer) & (a - 1)
	default:
		pad = (a - (n+s.Trailer)%a) % a
	}
	return s.Front + n + pad + s.Back
}

func (s Spacing) valid() bool {
	return s.Front >= 0 && s.Back >= 0 && s.Align >= 0 && s.Trailer >= 0
}

// Burst is one packet, or the packets of one super-packet. The zero value is ready for ReadBurst,
// and a Burst is to be used again: it belongs to the buffer that ReadBurst was given until the
// next call.
type Burst struct {
	// First is the first packet, whole, with the lengths that it will have. Its TCP flags are those
	// of the super-packet (FIN shows before Cut takes it away from all packets but the last), and
	// its checksums are right only after Cut. All packets of a burst have addresses, ports, traffic
	// class and hop limit in common. It lies in the buffer; Cut may move the packet from there.
	First []byte

	Count int // packets
	Full  int // length of each but the last, in octets
	Last  int // length of the last, at most Full

	super
	buf   []byte // nil: nothing to cut
	front int    // where the super-packet lies in buf, in one piece
	more  bool   // the super-packet goes on in another burst
}

// begin takes a packet of n octets at buf[front:].
func (b *Burst) begin(p *super, buf []byte, front, n int) {
	b.super, b.buf, b.front, b.more = *p, buf, front, false
	if p.kind == gsoNone {
		b.Count, b.Full, b.Last = 1, n, n
		b.First = buf[front : front+n : front+n]
		return
	}
	data := n - p.payload
	b.Count = 1
	if data > p.size {
		b.Count = int(uint(data+p.size-1) / uint(p.size))
	}
	b.Last = p.payload + data - (b.Count-1)*p.size
	b.Full = b.Last
	if b.Count > 1 {
		b.Full = p.payload + p.size
	}
	b.First = buf[front : front+b.Full : front+b.Full]
	if b.First[0]>>4 == 4 {
		put16(b.First[2:], uint16(b.Full))
	} else {
		put16(b.First[4:], uint16(b.Full-ipv6HeaderLen))
	}
	if p.kind == gsoUDPL4 {
		put16(b.First[p.transport+4:], uint16(b.Full-p.transport))
	}
}

// limit keeps as many packets as will fit whatever the spacing, and returns how many octets of
// payload that leaves out.
func (b *Burst) limit(s Spacing) (left int) {
	fit := len(b.buf) / max(s.Stride(b.Full), b.Full+MaxOverhead)
	if fit >= b.Count || b.Count == 1 {
		return 0
	}
	left = (b.Count-fit-1)*b.size + b.Last - b.payload
	b.Count, b.Last, b.more = fit, b.Full, true
	return left
}

// Cut lays the packets out with spacing s and finishes them: lengths, IPv4 identifications, TCP
// sequence numbers and flags, checksums. Packet i is then
//
//	buf[s.Front+i*s.Stride(b.Full):][:b.Full]
//
// the last b.Last octets long, in the buffer that ReadBurst was given. It is cheapest with the
// Front that ReadBurst was given. What lies between the packets is not kept.
//
// ErrBufferSize: a stride of more than MaxOverhead octets beside the packet does not fit; nothing
// was changed. A second call after one without error gets it too.
func (b *Burst) Cut(s Spacing) error {
	stride := s.Stride(b.Full)
	if b.buf == nil || !s.valid() || (b.Count-1)*stride+s.Stride(b.Last) > len(b.buf) {
		return ErrBufferSize
	}
	buf := b.buf
	b.buf = nil
	n := (b.Count-1)*b.size + b.Last // of the super-packet
	if s.Front < b.front || s.Front > b.front && b.Count == 1 {
		copy(buf[s.Front:], buf[b.front:][:n])
		b.front = s.Front
	}
	switch {
	case b.kind != gsoNone:
		b.spread(buf, s.Front, stride)
	case b.csumAt != 0:
		b.complete(buf[s.Front:][:n])
	}
	return nil
}

// spread moves the payloads of the super-packet to their places, adding them up on the way, and
// writes the headers. The last packet comes first: none is written over before it was moved, as the
// first does not move forward and no stride is shorter than a payload. What the
// headers have in common is added up once.
func (b *Burst) spread(buf []byte, front, stride int) {
	last := b.Count - 1
	head := buf[b.front:][:b.payload]
	t := head[b.transport:]
	v4, udp := head[0]>>4 == 4, b.kind == gsoUDPL4
	var ipSum uint64 // of the IPv4 header without length, identification and checksum
	if v4 {
		put16(head[2:], 0)
		put16(head[4:], 0)
		put16(head[10:], 0)
		ipSum = uint64(onesSum(head[:b.transport], 0))
	}
	put16(head[b.csumAt:], 0)
	var flags uint8
	if udp {
		put16(t[4:], 0)
	} else {
		flags = t[13]
		put32(t[4:], 0)
		t[13] = 0
	}
	l4Sum := uint64(onesSum(t, b.partial)) // pseudo header and transport header without what differs

	for i := last; i >= 0; i-- {
		n, from := b.Full, buf[b.front+b.payload+i*b.size:]
		if i == last {
			n = b.Last
		}
		p := buf[front+i*stride:][:n]
		data := p[b.payload:]
		from = from[:len(data)]
		var words uint64
		if &data[0] == &from[0] {
			words = wordSum(data)
		} else {
			words = moveSum(data, from)
			copy(p, head)
		}
		length := uint64(n - b.transport)
		sum := l4Sum + length + uint64(bits.ReverseBytes16(fold(words)))
		if v4 {
			id := b.id + uint16(i) // RFC 6864 does not need it with DF set, but Linux does so and receivers glue by it
			put16(p[2:], uint16(n))
			put16(p[4:], id)
			put16(p[10:], ^fold(ipSum+uint64(n)+uint64(id)))
		} else {
			put16(p[4:], uint16(n-ipv6HeaderLen))
		}
		t := p[b.transport:]
		if udp {
			put16(t[4:], uint16(length))
			sum := ^fold(sum + length)
			if sum == 0 {
				sum = 0xffff // RFC 768
			}
			put16(p[b.csumAt:], sum)
			continue
		}
		f := flags
		if i != last || b.more {
			f &^= tcpFIN | tcpPSH
		}
		if i > 0 {
			f &^= tcpCWR // RFC 3168 section 6.1.2: said once
		}
		seq := b.seq + uint32(i*b.size)
		put32(t[4:], seq)
		t[13] = f
		put16(p[b.csumAt:], ^fold(sum+uint64(f)+uint64(seq)))
	}
}

// Load is for those who implement Queue. It makes a burst of raw, which is what the kernel hands
// over: a virtio header (VirtioHeaderLen octets, all zero for an ordinary packet) and the packet,
// which is copied into buf; that is as for ReadBurst. An error says what does not fit. rest, if not
// nil, has to be loaded next: the packets that found no room. It lies in raw, which is written over.
func (b *Burst) Load(raw, buf []byte, s Spacing) (rest []byte, err error) {
	if err := checkBurstRoom(buf, s); err != nil {
		return nil, err
	}
	if len(raw) < virtioHeaderLen || len(raw)-virtioHeaderLen >= maxRead {
		return nil, errHeader
	}
	var h virtioHeader
	h.decode(raw)
	pkt := raw[virtioHeaderLen:]
	var p super
	if err := p.parse(&h, pkt); err != nil {
		return nil, err
	}
	copy(buf[s.Front:], pkt)
	b.begin(&p, buf, s.Front, len(pkt))
	if left := b.limit(s); left > 0 {
		rest = raw[len(raw)-left-p.payload-virtioHeaderLen:]
		copy(rest[virtioHeaderLen:], pkt[:p.payload])
		copy(rest, raw[:virtioHeaderLen])
		b.following(rest[virtioHeaderLen:])
	}
	return rest, nil
}

// following makes pkt, the headers of the burst's super-packet and what limit left out of it, a
// super-packet of its own.
func (b *Burst) following(pkt []byte) {
	t := pkt[b.transport:]
	if pkt[0]>>4 == 4 {
		put16(pkt[4:], b.id+uint16(b.Count))
	}
	if b.kind != gsoUDPL4 {
		binary.BigEndian.PutUint32(t[4:], b.seq+uint32(b.Count*b.size))
		t[13] &^= tcpCWR
	}
	put16(pkt[b.csumAt:], addOnes(b.partial, uint16(len(t))))
}

func checkBurstRoom(buf []byte, s Spacing) error {
	if !s.valid() || len(buf)-BurstRoom < s.Front {
		return ErrBufferSize
	}
	return nil
}

func put16(b []byte, v uint16) { binary.BigEndian.PutUint16(b, v) }
func put32(b []byte, v uint32) { binary.BigEndian.PutUint32(b, v) }
