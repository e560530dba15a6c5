package router

import (
	"encoding/binary"
	"time"

	"wardgate/tun"
)

// icmpLimiter bounds the ICMP errors that one worker sends (RFC 1812, section 4.3.2.8; RFC 4443,
// section 2.4 f): a bucket of 50, filled with 50 a second.
type icmpLimiter struct {
	tokens int
	filled int64 // nanoseconds
}

func (l *icmpLimiter) allow(now int64) bool {
	if l.filled == 0 || now-l.filled >= int64(time.Second) {
		l.tokens, l.filled = 50, now
	}
	if l.tokens == 0 {
		return false
	}
	l.tokens--
	return true
}

// unreachable tells the sender of a packet from the LAN that it is not let through:
// "communication administratively prohibited", ICMP type 3 code 13 (RFC 1812, section 5.2.7.1)
// or ICMPv6 type 1 code 1 (RFC 4443, section 3.1). So an application fails at once instead of
// waiting for a time-out. Never about an ICMP error, a later fragment or a multicast.
func (w *outWorker) unreachable(b []byte, p *packet, now int64) {
	if p.icmpError || p.fragment && !p.first || w.w == nil || !p.src.IsValid() || !w.icmp.allow(now) {
		return
	}
	buf := make([]byte, headroom+1280+tailroom)
	n := buildUnreachable(buf[headroom:headroom+1280], b, p)
	if n == 0 {
		return
	}
	if w.w.write([]tun.Packet{{Buf: buf, Off: headroom, Len: n}}) != nil {
		w.drops.add(dropTUN)
	}
}

// buildUnreachable writes the ICMP error about packet b into out and returns its length; it
// comes from the address that b was for, which is the one that the sender has a route to.
func buildUnreachable(out, b []byte, p *packet) int {
	if p.src.Is4() {
		quote := b[:min(len(b), 576-28)] // RFC 1812, section 4.3.2.3
		n := 28 + len(quote)
		clear(out[:28])
		out[0], out[8], out[9] = 0x45, 64, protoICMP
		out[1] = 0xc0 // precedence of internetwork control (RFC 1812, section 4.3.2.5)
		binary.BigEndian.PutUint16(out[2:], uint16(n))
		src, dst := p.dst.As4(), p.src.As4()
		copy(out[12:], src[:])
		copy(out[16:], dst[:])
		binary.BigEndian.PutUint16(out[10:], fold(sum(out[:20], 0)))
		out[20], out[21] = 3, 13
		copy(out[28:], quote)
		binary.BigEndian.PutUint16(out[22:], fold(sum(out[20:n], 0)))
		return n
	}
	quote := b[:min(len(b), 1280-48)] // RFC 4443, section 2.4 c
	n := 48 + len(quote)
	clear(out[:48])
	out[0], out[6], out[7] = 0x60, protoICMPv6, 64
	binary.BigEndian.PutUint16(out[4:], uint16(8+len(quote)))
	src, dst := p.dst.As16(), p.src.As16()
	copy(out[8:], src[:])
	copy(out[24:], dst[:])
	out[40], out[41] = 1, 1
	copy(out[48:], quote)
	// pseudo-header: addresses, length, next header (RFC 8200, section 8.1)
	pseudo := sum(out[8:40], 0) + uint32(8+len(quote)) + protoICMPv6
	binary.BigEndian.PutUint16(out[42:], fold(sum(out[40:n], pseudo)))
	return n
}

// sum adds b as 16-bit words to s (RFC 1071); fold makes the checksum of it.
func sum(b []byte, s uint32) uint32 {
	for len(b) >= 2 {
		s += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}
