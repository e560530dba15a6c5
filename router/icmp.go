package router

import (
	"net/netip"
	"time"

	"wardgate/router/pathmtu"
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

// unreachable tells the sender of packet b from the LAN that it is not let through:
// "communication administratively prohibited", ICMP type 3 code 13 (RFC 1812, section 5.2.7.1)
// or ICMPv6 type 1 code 1 (RFC 4443, section 3.1). So an application fails at once instead of
// waiting for a time-out.
func (w *outWorker) unreachable(b []byte, now int64) {
	w.tell(b, now, func(out []byte) int {
		if b[0]>>4 == 6 {
			return pathmtu.Unreachable(out, b, 1, 1, netip.Addr{})
		}
		return pathmtu.Unreachable(out, b, 3, 13, netip.Addr{})
	})
}

// tooBig tells the sender of packet b to keep to mtu octets.
func (w *outWorker) tooBig(b []byte, mtu int, now int64) {
	w.tell(b, now, func(out []byte) int { return pathmtu.TooBig(out, b, mtu, netip.Addr{}) })
}

// tell sends the ICMP error about b that write makes; it comes from the address that b was for,
// which is the one that the sender has a route to.
func (w *outWorker) tell(b []byte, now int64, write func(out []byte) int) {
	if len(b) == 0 || !w.icmp.allow(now) {
		return
	}
	buf := make([]byte, headroom+pathmtu.MaxICMP)
	n := write(buf[headroom:])
	if n > 0 && w.w.write([]tun.Packet{{Buf: buf, Off: headroom, Len: n}}) != 0 {
		w.drops.add(dropTUN, 1)
	}
}
