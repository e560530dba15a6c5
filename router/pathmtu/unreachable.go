package pathmtu

import (
	"encoding/binary"
	"net/netip"
)

const (
	maxICMPv4 = 576  // RFC 1812, section 4.3.2.3
	maxICMPv6 = 1280 // RFC 4443, section 2.4 c

	// MaxICMP is room for every packet that TooBig and Unreachable write, in octets.
	MaxICMP = maxICMPv6
)

// TooBig writes into out the ICMP error that tells the sender of pkt to keep to mtu octets: type 3
// code 4 with the next-hop MTU (RFC 1191, section 4), ICMPv6 type 2 (RFC 4443, section 3.2). It
// never tells less than MinIPv4 or MinIPv6, because no sender has to obey that (RFC 8200, section
// 5); see FragmentOuter. from, the result and the packets that get no answer are as with
// Unreachable.
func TooBig(out, pkt []byte, mtu int, from netip.Addr) (n int) {
	if len(pkt) == 0 {
		return 0
	}
	if pkt[0]>>4 == 6 {
		return icmpError(out, pkt, 2, 0, uint32(min(max(mtu, MinIPv6), maxMTU)), from)
	}
	return icmpError(out, pkt, 3, 4, uint32(min(max(mtu, MinIPv4), maxMTU)), from)
}

// Unreachable writes into out the ICMP or ICMPv6 error of that type and code about pkt, and
// returns its length; 0 when pkt gets no answer or out has no room for the headers. The error
// quotes as much of pkt as out and the RFCs permit (RFC 1812, section 4.3.2.3: 576 octets in all;
// RFC 4443, section 2.4 c: 1280).
//
// It comes from from, or, when that is the zero Addr or of the other family, from the address that
// pkt is for: the sender has a route to that one, and no route of ours needs to be shown.
//
// No answer get (RFC 1812, section 4.3.2.7; RFC 4443, section 2.4 e): ICMP errors and redirects;
// fragments after the first, of which IPv6's do not show whether they are an ICMP error; packets
// to a multicast or broadcast address (RFC 4443 would allow "packet too big" there; nothing here
// carries multicast), from one, from the unspecified or a loopback address; what is malformed.
// A directed broadcast cannot be told from an address here.
func Unreachable(out, pkt []byte, typ, code uint8, from netip.Addr) (n int) {
	return icmpError(out, pkt, typ, code, 0, from)
}

func icmpError(out, pkt []byte, typ, code uint8, word uint32, from netip.Addr) int {
	u, ok := parse(pkt)
	if !ok || u.later || isICMPError(pkt, &u) {
		return 0
	}
	pkt = pkt[:u.end]
	from = from.Unmap()
	if u.v6 {
		return icmpError6(out, pkt, typ, code, word, from)
	}
	return icmpError4(out, pkt, typ, code, word, from)
}

// isICMPError reports whether the packet is an ICMP error or a redirect, or may be one.
func isICMPError(pkt []byte, u *upper) bool {
	icmp := uint8(protoICMP)
	if u.v6 {
		icmp = protoICMPv6
	}
	if u.proto != icmp {
		return false
	}
	if u.off >= u.end {
		return true
	}
	t := pkt[u.off]
	if u.v6 {
		return t < 128 || t == 137 // RFC 4443, section 2.1; a redirect
	}
	return t == 3 || t == 4 || t == 5 || t == 11 || t == 12 // RFC 1122, section 3.2.2
}

func icmpError4(out, pkt []byte, typ, code uint8, word uint32, from netip.Addr) int {
	// RFC 1812, section 4.3.2.7: a source that is no host. 240/4 has the limited broadcast.
	if s := pkt[12]; s == 0 || s == 127 || s >= 224 {
		return 0
	}
	if d := pkt[16]; d == 0 || d >= 224 {
		return 0
	}
	n := min(ipv4HeaderLen+icmpHeaderLen+len(pkt), maxICMPv4, len(out))
	if n < ipv4HeaderLen+icmpHeaderLen {
		return 0
	}
	out = out[:n]
	src := [4]byte(pkt[16:20])
	if from.Is4() {
		src = from.As4()
	}
	const head = ipv4HeaderLen + icmpHeaderLen
	clear(out[:head])
	out[0] = 0x45
	out[1] = 0xc0 // RFC 1812, section 4.3.2.5: precedence of internetwork control
	binary.BigEndian.PutUint16(out[2:], uint16(n))
	binary.BigEndian.PutUint16(out[6:], flagDF) // so that no identification is needed (RFC 6864, section 4.1)
	out[8], out[9] = 64, protoICMP
	copy(out[12:], src[:])
	copy(out[16:], pkt[12:16])
	binary.BigEndian.PutUint16(out[10:], ^sum(out[:ipv4HeaderLen], 0))
	icmp := out[ipv4HeaderLen:]
	icmp[0], icmp[1] = typ, code
	binary.BigEndian.PutUint32(icmp[4:], word)
	copy(icmp[icmpHeaderLen:], pkt)
	binary.BigEndian.PutUint16(icmp[2:], ^sum(icmp, 0))
	return n
}

func icmpError6(out, pkt []byte, typ, code uint8, word uint32, from netip.Addr) int {
	s, d := netip.AddrFrom16([16]byte(pkt[8:24])), netip.AddrFrom16([16]byte(pkt[24:40]))
	if s.IsUnspecified() || s.IsMulticast() || s.IsLoopback() || d.IsUnspecified() || d.IsMulticast() {
		return 0
	}
	n := min(ipv6HeaderLen+icmpHeaderLen+len(pkt), maxICMPv6, len(out))
	if n < ipv6HeaderLen+icmpHeaderLen {
		return 0
	}
	out = out[:n]
	src := [16]byte(pkt[24:40])
	if from.Is6() {
		src = from.As16()
	}
	const head = ipv6HeaderLen + icmpHeaderLen
	clear(out[:head])
	out[0], out[6], out[7] = 0x60, protoICMPv6, 64
	binary.BigEndian.PutUint16(out[4:], uint16(n-ipv6HeaderLen))
	copy(out[8:], src[:])
	copy(out[24:], pkt[8:24])
	icmp := out[ipv6HeaderLen:]
	icmp[0], icmp[1] = typ, code
	binary.BigEndian.PutUint32(icmp[4:], word)
	copy(icmp[icmpHeaderLen:], pkt)
	// RFC 8200, section 8.1: the pseudo-header is addresses, length, next header.
	pseudo := add(sum(out[8:40], protoICMPv6), uint16(len(icmp)))
	binary.BigEndian.PutUint16(icmp[2:], ^sum(icmp, pseudo))
	return n
}
