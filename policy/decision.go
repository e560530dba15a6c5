package policy

import "net/netip"

// Flow is what a Table decides about: the addresses and ports of one packet.
type Flow struct {
	Src, Dst netip.Addr
	Proto    uint8  // IANA protocol number of the upper layer
	SrcPort  uint16 // ICMP and ICMPv6: the type
	DstPort  uint16 // ICMP and ICMPv6: the code
	NoPorts  bool   // the ports could not be read: non-first fragment, or an upper layer without ports
}

// Decision is the answer for one packet.
//
// There are three verdicts:
//
//	Allow           the packet may pass, and may open a flow
//	!Allow, Reply   the packet may pass only when the caller's flow tracker knows the flow that it
//	                answers (the opposite direction, on connection Conn); otherwise it is denied
//	!Allow, !Reply  denied, for Reason
//
// Allow is false for a reply so that a caller that forgets to look at Reply denies too much
// rather than too little.
type Decision struct {
	Allow  bool
	Reply  bool
	Conn   int // index into Table.Connections; -1 when no connection is concerned
	Rule   int // index into Table.Rules of the flow that allowed it; -1 when none did
	Reason Reason
}

// Reason says why a Decision is as it is.
type Reason uint8

// The reasons. Their strings are stable: audit records and the control API carry them.
const (
	ReasonDefault         Reason = iota // never decided: the zero Decision denies
	ReasonAllowed                       // a flow of the policy allows it
	ReasonReply                         // it can only be the answer to a flow that the policy allows
	ReasonRelated                       // it can only be an ICMP error about such a flow
	ReasonNoRelay                       // from one tunnel to another, or from a remote address into a tunnel
	ReasonNotLocalZone                  // came out of a tunnel for an address of no local zone
	ReasonSourceNotLocal                // for a tunnel, but its source is in no local zone
	ReasonLocalTraffic                  // between two local addresses: no business of a tunnel
	ReasonSpoofedLocal                  // came out of a tunnel with a local address as its source
	ReasonWrongConnection               // its remote address belongs to another connection
	ReasonNotRemote                     // its remote address belongs to no connection
	ReasonNoRule                        // addresses known, but no flow allows this
	ReasonNoPorts                       // only flows limited to ports (or to ICMP echo) fit, and the packet shows none
	ReasonBadAddress                    // invalid, of mixed families, IPv4-mapped or scoped
	ReasonBadConnection                 // there is no connection of that index
	ReasonNotAnError                    // Related was asked about something that is no ICMP error
	ReasonErrorMismatch                 // an ICMP error whose embedded packet does not fit its outer header
	numReasons
)

var reasonNames = [numReasons]string{
	ReasonDefault:         "default-deny",
	ReasonAllowed:         "allowed",
	ReasonReply:           "reply",
	ReasonRelated:         "related",
	ReasonNoRelay:         "no-relay",
	ReasonNotLocalZone:    "not-a-local-zone",
	ReasonSourceNotLocal:  "source-not-in-a-local-zone",
	ReasonLocalTraffic:    "local-traffic",
	ReasonSpoofedLocal:    "spoofed-local-source",
	ReasonWrongConnection: "wrong-connection",
	ReasonNotRemote:       "no-connection",
	ReasonNoRule:          "no-rule",
	ReasonNoPorts:         "no-ports",
	ReasonBadAddress:      "bad-address",
	ReasonBadConnection:   "bad-connection",
	ReasonNotAnError:      "not-an-icmp-error",
	ReasonErrorMismatch:   "icmp-error-mismatch",
}

// String returns the stable name.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return "unknown"
}

// MarshalText implements encoding.TextMarshaler.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }
