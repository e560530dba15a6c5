package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Fixed numbers by which our objects in the kernel are recognised, so that they can be replaced
// and removed without touching anybody else's.
const (
	// DefaultTableName is the nftables table (family inet).
	DefaultTableName = "wardgate"
	// DefaultRouteTable holds all our routes. It is a table of its own, looked up before the
	// main table, because an administrator's more specific route or policy rule would otherwise
	// win over ours.
	DefaultRouteTable = 5747
	// DefaultRulePriority is the priority of the ip rule that leads to the route table: right
	// after the kernel's table "local" (0) and before what administrators usually add.
	DefaultRulePriority = 57
	// DefaultRouteProtocol marks our routes (rtm_protocol). Routes of our table with another
	// protocol number are not ours and stay.
	DefaultRouteProtocol = 157
	// DefaultMark is the fwmark (SO_MARK) for the daemon's own IKE and ESP sockets. Marked
	// packets do not use our route table: without it, a peer whose gateway address lies inside
	// one of its own remote prefixes could not be reached, for the ESP packets would be routed
	// back into the TUN device.
	DefaultMark = 0x57470001
	// DefaultLogGroup is the NFLOG group to which refused packets are copied.
	DefaultLogGroup = 5747
)

// Zone is one local zone: which addresses it has, and the interfaces at which they are found.
type Zone struct {
	Name       string
	Prefixes   []netip.Prefix
	Interfaces []string // Linux interface names, exact, 1 to 15 bytes, at least one
}

// State is everything the kernel is to know. It is plain data; Apply copies what it needs.
type State struct {
	TunName string // required; the device need not exist yet (its routes are then left out)
	MTU     int    // of the TUN device, bytes; 0 leaves it as it is; else 1280 to 65535
	Zones   []Zone
	// Remotes are the prefixes of all remote facilities, of all connections, whether a tunnel
	// stands or not. They must not overlap a zone's prefix. They may overlap each other.
	Remotes []netip.Prefix
	// Gateways are the peers' outer addresses. Only those that lie inside a remote prefix
	// matter: IKE and ESP from and to them are then let through in the clear, everything else
	// is not.
	Gateways []netip.Addr
	// UDPPorts are the local IKE ports (500, 4500). Needed for the exception above.
	UDPPorts []uint16
}

// Counter counts refused packets.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Reason says why the kernel refused a packet. The strings are stable: they name the nftables
// counters, prefix the NFLOG records and appear in the audit log.
type Reason string

// Reasons of refusal.
const (
	// ReasonRelay: came out of a tunnel and would go into a tunnel.
	ReasonRelay Reason = "relay"
	// ReasonTunnelSource: came out of a tunnel, and its source is in no remote prefix.
	ReasonTunnelSource Reason = "tunnel-source"
	// ReasonTunnelToOther: came out of a tunnel and is not for a zone's address at that zone's
	// interface.
	ReasonTunnelToOther Reason = "tunnel-to-non-zone"
	// ReasonTunnelToRouter: came out of a tunnel and is for the router itself.
	ReasonTunnelToRouter Reason = "tunnel-to-router"
	// ReasonNotFromZone: is for a remote facility and did not come from a zone's address at that
	// zone's interface.
	ReasonNotFromZone Reason = "not-from-zone"
	// ReasonFromRouter: is for a remote facility and was sent by the router itself.
	ReasonFromRouter Reason = "router-to-tunnel"
	// ReasonClearLeak: is for a remote facility and would leave by another way than the tunnel.
	ReasonClearLeak Reason = "clear-leak"
	// ReasonSpoofed: its source is an address of a remote facility, and it arrived (or would
	// leave) outside the tunnel.
	ReasonSpoofed Reason = "spoofed-remote"
	// ReasonDiverted: is for a remote facility and was diverted to the router itself
	// (transparent proxy, redirect).
	ReasonDiverted Reason = "diverted"
	// ReasonNotARouter: ordinary traffic from a zone interface on which forwarding was off
	// before Wardgate switched it on for VPN traffic.
	ReasonNotARouter Reason = "forwarding-is-for-vpn-only"
	// ReasonLocked: would enter or leave a tunnel while there is no valid policy (Lockdown).
	ReasonLocked Reason = "locked-down"
)

// Reasons lists all reasons in a fixed order.
func Reasons() []Reason {
	return []Reason{
		ReasonRelay, ReasonTunnelSource, ReasonTunnelToOther, ReasonTunnelToRouter, ReasonNotFromZone,
		ReasonFromRouter, ReasonClearLeak, ReasonSpoofed, ReasonDiverted, ReasonNotARouter, ReasonLocked,
	}
}

// Text is a sentence for the operator.
func (r Reason) Text() string {
	switch r {
	case ReasonRelay:
		return "a packet from one tunnel was to be passed on into another tunnel"
	case ReasonTunnelSource:
		return "a packet came out of a tunnel with a source address that belongs to no remote facility"
	case ReasonTunnelToOther:
		return "a packet from a tunnel was for an address or interface that belongs to no local zone"
	case ReasonTunnelToRouter:
		return "a packet from a tunnel was for the router itself"
	case ReasonNotFromZone:
		return "a packet for a remote facility did not come from a local zone's address and interface"
	case ReasonFromRouter:
		return "a program on the router itself tried to send to a remote facility"
	case ReasonClearLeak:
		return "a packet for a remote facility was about to leave unencrypted"
	case ReasonSpoofed:
		return "a packet with the source address of a remote facility arrived outside the tunnel"
	case ReasonDiverted:
		return "a packet for a remote facility was diverted to the router itself (proxy or redirect)"
	case ReasonNotARouter:
		return "ordinary traffic was to be forwarded from a zone interface that forwards VPN traffic only"
	case ReasonLocked:
		return "a packet was to enter or leave a tunnel while no valid policy was in force"
	}
	return "refused by the kernel rules: " + string(r)
}

// ErrState is the class of errors in a State handed to Apply; nothing was changed.
var ErrState = errors.New("kernel: state refused")

// Validate reports everything that is wrong with the state, as one error wrapping ErrState.
func (s *State) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := checkIfName(s.TunName); err != nil {
		bad("TUN name %w", err)
	}
	if s.MTU != 0 && (s.MTU < 1280 || s.MTU > 65535) {
		bad("MTU %d: expected 0 or 1280 to 65535 bytes", s.MTU)
	}
	var local []netip.Prefix
	for _, z := range s.Zones {
		if len(z.Interfaces) == 0 {
			bad("zone %q names no interface: expected at least one, for a packet is let into a tunnel only from a zone's interface", z.Name)
		}
		for _, ifn := range z.Interfaces {
			if err := checkIfName(ifn); err != nil {
				bad("zone %q: interface %w", z.Name, err)
			} else if ifn == s.TunName {
				bad("zone %q: interface %q is the TUN device; expected an interface of the LAN", z.Name, ifn)
			}
		}
		for _, p := range z.Prefixes {
			if !p.IsValid() || p.Addr().Is4In6() {
				bad("zone %q: invalid prefix %v", z.Name, p)
				continue
			}
			local = append(local, p)
		}
	}
	var remote []netip.Prefix
	for i, p := range s.Remotes {
		if !p.IsValid() || p.Addr().Is4In6() {
			bad("remote prefix %d is invalid: %v", i, p)
			continue
		}
		remote = append(remote, p)
	}
	for _, pair := range overlaps(local, remote) {
		bad("%s is a zone's prefix and %s a remote one: expected no overlap", pair[0], pair[1])
	}
	for _, g := range s.Gateways {
		if !g.IsValid() || g.Is4In6() || g.Zone() != "" {
			bad("invalid gateway address %v: expected a plain IPv4 or IPv6 address", g)
		}
	}
	for _, p := range s.UDPPorts {
		if p == 0 {
			bad("UDP port 0: expected the local IKE ports, such as 500 and 4500")
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrState, errors.Join(errs...))
}

// checkIfName refuses what is no exact interface name; the kernel's dev_valid_name, and the '*'
// that nftables would take for a wildcard.
func checkIfName(n string) error {
	switch {
	case n == "":
		return errors.New("is empty: expected 1 to 15 bytes")
	case len(n) > 15:
		return fmt.Errorf("%q has %d bytes: expected 1 to 15", n, len(n))
	case n == "." || n == "..":
		return fmt.Errorf("%q is not possible in Linux", n)
	case strings.ContainsFunc(n, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r == '*' || r >= 0x7f }):
		return fmt.Errorf("%q holds a blank, '/', ':', '*' or a non-ASCII letter: expected an exact name such as \"eth1\"", n)
	}
	return nil
}

// overlaps returns the first pair found for each prefix of a that overlaps one of b.
// Sorted intervals, so thousands against thousands are no burden.
func overlaps(a, b []netip.Prefix) [][2]netip.Prefix {
	if len(a) == 0 || len(b) == 0 {
		return nil
	}
	b = slices.Clone(b)
	slices.SortFunc(b, func(x, y netip.Prefix) int {
		return cmp.Or(x.Masked().Addr().Compare(y.Masked().Addr()), cmp.Compare(x.Bits(), y.Bits()))
	})
	// Prefixes are nested or disjoint: p overlaps one of b exactly if one of b starts inside p,
	// or one of p's ancestors is in b.
	index := make(map[netip.Prefix]struct{}, len(b))
	for _, q := range b {
		index[q.Masked()] = struct{}{}
	}
	var out [][2]netip.Prefix
	for _, p := range a {
		p = p.Masked()
		i, _ := slices.BinarySearchFunc(b, p, func(x, y netip.Prefix) int { return x.Masked().Addr().Compare(y.Addr()) })
		if i < len(b) && p.Contains(b[i].Masked().Addr()) {
			out = append(out, [2]netip.Prefix{p, b[i]})
			continue
		}
		for bits := p.Bits() - 1; bits >= 0; bits-- {
			q, err := p.Addr().Prefix(bits)
			if err != nil {
				break
			}
			if _, ok := index[q]; ok {
				out = append(out, [2]netip.Prefix{p, q})
				break
			}
		}
	}
	return out
}
