package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Protocol numbers (IANA) that mean something to this package.
const (
	protoICMP    = 1
	protoTCP     = 6
	protoUDP     = 17
	protoDCCP    = 33
	protoICMPv6  = 58
	protoSCTP    = 132
	protoUDPLite = 136
	protoAny     = 256 // "any": every upper layer but tunnels
)

// ICMP echo (RFC 792; RFC 4443, section 4).
const (
	icmpEchoReply     = 0
	icmpEchoRequest   = 8
	icmpv6EchoRequest = 128
	icmpv6EchoReply   = 129
)

// tunnelling are protocols that carry other packets to hosts that the policy could not see: a relay
// by another name (ZONE-1, ZONE-2). No flow may name one, and "any" does not mean them.
var tunnelling = [256]bool{
	4:   true, // IPv4 in IP, RFC 2003
	41:  true, // IPv6 in IP, RFC 2473
	47:  true, // GRE, RFC 2784
	55:  true, // minimal encapsulation, RFC 2004
	94:  true, // IP within IP
	97:  true, // Ethernet within IP, RFC 3378
	98:  true, // encapsulation header, RFC 1241
	115: true, // L2TP, RFC 3931
	137: true, // MPLS in IP, RFC 4023
}

// notUpper are IPv6 extension headers (RFC 7045) and reserved numbers, which are no upper layer.
var notUpper = [256]bool{0: true, 43: true, 44: true, 59: true, 60: true, 135: true, 139: true, 140: true, 253: true, 254: true, 255: true}

func hasPorts(proto uint16) bool {
	switch proto {
	case protoTCP, protoUDP, protoDCCP, protoSCTP, protoUDPLite:
		return true
	}
	return false
}

func isICMP(proto uint16) bool { return proto == protoICMP || proto == protoICMPv6 }

func protocolName(p uint16) string {
	switch p {
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	case protoICMP:
		return "icmp"
	case protoICMPv6:
		return "icmpv6"
	case protoAny:
		return "any"
	}
	return strconv.Itoa(int(p))
}

// showProtocol is protocolName for sentences.
func showProtocol(p uint16) string {
	name := protocolName(p)
	if name[0] >= '0' && name[0] <= '9' {
		return "protocol " + name
	}
	return name
}

// parseProtocol reads a protocol of a flow or test. The error is the "do" part of a fault.
func parseProtocol(s string) (proto uint16, hint string, ok bool) {
	switch s {
	case "tcp":
		return protoTCP, "", true
	case "udp":
		return protoUDP, "", true
	case "icmp":
		return protoICMP, "", true
	case "icmpv6":
		return protoICMPv6, "", true
	case "any":
		return protoAny, "", true
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, "", false
	}
	switch {
	case tunnelling[n]:
		return 0, "a tunnel protocol would carry packets to hosts that the policy does not name; name the flows inside it", false
	case notUpper[n]:
		return 0, "this number is no upper-layer protocol", false
	}
	return uint16(n), "", true
}

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// String writes "104" or "5000-5010".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// allPorts is what a protocol without ports, and a flow not limited to any, is stored as.
var allPorts = PortRange{0, 65535}

func parsePorts(s string) (PortRange, bool) {
	port := func(s string) (uint16, bool) {
		n, err := strconv.ParseUint(s, 10, 16)
		return uint16(n), err == nil && n > 0 && strconv.FormatUint(n, 10) == s
	}
	a, b, isRange := strings.Cut(s, "-")
	first, ok := port(a)
	if !isRange {
		return PortRange{first, first}, ok
	}
	last, ok2 := port(b)
	return PortRange{first, last}, ok && ok2 && first <= last
}

// mergePorts sorts the ranges and joins those that touch.
func mergePorts(list []PortRange) []PortRange {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b PortRange) int { return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last)) })
	out := list[:0]
	for _, r := range list {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

func countPorts(list []PortRange) int {
	n := 0
	for _, r := range list {
		n += int(r.Last) - int(r.First) + 1
	}
	return n
}

// unlimited reports whether the ranges hold every port that a packet can have.
func unlimited(list []PortRange) bool {
	return len(list) == 1 && list[0].First <= 1 && list[0].Last == 65535
}

func showPorts(list []PortRange) string {
	s := make([]string, 0, min(len(list), 9))
	for i, r := range list {
		if i == 8 {
			s = append(s, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		s = append(s, r.String())
	}
	return strings.Join(s, ",")
}
