package registry

import (
	"strconv"
	"strings"
)

// Protocols (IANA numbers) as package policy knows them.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoAny    = 256
)

// refused are protocols that no flow may name: tunnels, which would carry packets to hosts that no
// contract names, and numbers that are no upper layer. Package policy has the list with reasons; a
// test compares the two.
var refused = [256]bool{
	4: true, 41: true, 47: true, 55: true, 94: true, 97: true, 98: true, 115: true, 137: true,
	0: true, 43: true, 44: true, 59: true, 60: true, 135: true, 139: true, 140: true, 253: true, 254: true, 255: true,
}

func hasPorts(proto uint16) bool {
	switch proto {
	case protoTCP, protoUDP, 33, 132, 136:
		return true
	}
	return false
}

// parseProtocol reads a protocol; hint is the "do" part of a fault.
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
	if refused[n] {
		return 0, "a tunnel would carry packets to hosts that the contract does not name, and extension headers are no protocols: name the flows themselves", false
	}
	return uint16(n), "", true
}

// allowed is one entry of Rules.Allow.
type allowed struct {
	proto uint16
	ports []Ports // nil: all
}

// parseAllow reads an entry of Rules.Allow.
func parseAllow(s string) (a allowed, hint string, ok bool) {
	proto, ports, limited := strings.Cut(s, "/")
	if a.proto, hint, ok = parseProtocol(proto); !ok || !limited {
		return a, hint, ok
	}
	if !hasPorts(a.proto) {
		return a, "the protocol has no ports: leave them out", false
	}
	r, ok := parsePorts(ports)
	a.ports = []Ports{r}
	return a, "", ok
}

// permits reports whether the service's uniform rules allow what a flow says.
func (r *Rules) permits(proto uint16, ports []Ports) bool {
	if len(r.Allow) == 0 {
		return true
	}
	var may []Ports
	for _, s := range r.Allow {
		a, _, ok := parseAllow(s)
		switch {
		case !ok:
		case a.proto == protoAny, a.proto == proto && a.ports == nil:
			return true
		case a.proto == proto:
			may = append(may, a.ports...)
		}
	}
	return len(ports) > 0 && len(may) > 0 && portsWithin(ports, may)
}
