package registry

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/policy"
)

// Bounds of a registry. One that exceeds a bound is refused with a fault that names it.
const (
	MaxFileSize    = 1 << 20 // octets of one file
	MaxMembers     = 1_000_000
	MaxDevices     = 1_000_000
	MaxServices    = 10_000
	MaxMemberships = policy.MaxServices // of one device
	MaxContracts   = 10_000_000
	MaxOfDevice    = policy.MaxPeers // contracts of one device
	MaxFlows       = 1_000           // of one contract
	MaxTests       = 256             // of one contract
	MaxText        = 256             // octets of a title or contact
	MaxName        = 63              // octets of a name: it becomes a name in policies
)

// Member is an organisation that the SP serves: a hospital, a clinic, a maker of devices.
type Member struct {
	Name    string `json:"name"`
	Title   string `json:"title"`             // for people
	Contact string `json:"contact,omitempty"` // whom to ask, for people
}

// State says whether a device takes part.
type State string

// The states of a device.
const (
	// Active: it gets a policy with its connections.
	Active State = "active"
	// Suspended: it and its peers lose their connections, and it keeps its place.
	Suspended State = "suspended"
	// Revoked: it is stolen or gone. It gets nothing any more, and neither its addresses nor its
	// gateways are kept for it.
	Revoked State = "revoked"
)

// Device is a member's router.
type Device struct {
	Name        string   `json:"name"`               // a DNS name: its identity in the device certificate
	Member      string   `json:"member"`             // whose it is
	Certificate string   `json:"certificate"`        // PEM, one block: the device certificate that it was registered with
	Gateways    []string `json:"gateways,omitempty"` // where others reach it, as in policy.Peer; empty: it can only set up connections itself
	Zones       []Zone   `json:"zones"`
	State       State    `json:"state"`
	ESP         string   `json:"esp,omitempty"`   // policy.ESPUDP or policy.ESPNative; empty: ESPUDP
	Moves       string   `json:"moves,omitempty"` // one of policy.Moves…, for its partners; empty: MovesNamed with gateways, MovesAnywhere without
}

// Zone is a part of the member's own network, as agreed with it.
type Zone struct {
	Name       string         `json:"name"`
	Level      string         `json:"level"` // policy.LevelHSZ, LevelSZ or LevelDMZ
	Prefixes   []netip.Prefix `json:"prefixes"`
	Interfaces []string       `json:"interfaces"`
}

// Service is a VPN service: a group of devices with a category, and the SP's uniform rules.
type Service struct {
	Name     string `json:"name"`
	Title    string `json:"title"`
	Category string `json:"category"`         // one of policy.Category…
	Auth     string `json:"auth"`             // policy.AuthCertificate or policy.AuthPSK
	Domain   string `json:"domain,omitempty"` // DNS domain of the names in its certificates; none with AuthPSK
	Rules    Rules  `json:"rules"`
}

// Rules are the SP's uniform rules for a service. Contracts stay within them, and members can
// narrow them further.
//
// A device has one list of suites and one set of lifetimes for all its services: those that all
// of them allow, and the shortest.
type Rules struct {
	Suites    policy.Suites    `json:"suites"`
	Lifetimes policy.Lifetimes `json:"lifetimes,omitzero"`
	// Revocation is one of policy.Revocation…; empty: RevocationIfKnown. A device that has joined several
	// services keeps to the strictest.
	Revocation string `json:"revocation,omitempty"`
	// FirstChild is one of policy.FirstChild…, for all connections of the service; empty: FirstChildWithIKE.
	FirstChild string `json:"first_child,omitempty"`
	// Allow lists what flows of the service may be: "tcp", "udp/53", "tcp/5000-5010", "icmp",
	// "icmpv6", "any" or a number. Empty: whatever zone and category allow.
	Allow []string `json:"allow,omitempty"`
}

// Membership says that a device has joined a service: it may have a service certificate, and be
// party to contracts of the service.
type Membership struct {
	Device  string    `json:"device"`
	Service string    `json:"service"`
	ID      string    `json:"id,omitempty"`   // identity in the service certificate; empty: first label of Device, dot, Domain; none with AuthPSK
	From    time.Time `json:"from,omitzero"`  // zero: since ever
	Until   time.Time `json:"until,omitzero"` // first instant after it; zero: for ever
}

// Contract is what two devices may do with each other by a service. Each of them gets a connection
// of the contract's name.
type Contract struct {
	Name    string          `json:"name"`
	Title   string          `json:"title,omitempty"`
	Service string          `json:"service"`
	Parties [2]Party        `json:"parties"`
	Flows   []Flow          `json:"flows"`
	Start   string          `json:"start"`         // one of policy.Start…
	Idle    policy.Duration `json:"idle,omitzero"` // zero: never ended for idleness
	From    time.Time       `json:"from,omitzero"`
	Until   time.Time       `json:"until,omitzero"` // first instant after it
	PPK     string          `json:"ppk,omitempty"`  // one of policy.PPK…; empty: PPKOff. The key has the contract's name, and is brought by hand
	Tests   []Test          `json:"tests,omitempty"`
}

// Party is one side of a contract, with the member's own rules. They only ever take away: what is
// left of a flow is what the contract and the rules of both parties allow, and it is the same on
// both sides.
type Party struct {
	Device string         `json:"device"`
	Hosts  []netip.Prefix `json:"hosts,omitempty"`  // own addresses that may take part at all; empty: all of the flows'
	Narrow []Narrow       `json:"narrow,omitempty"` // at most one a flow
}

// Narrow takes something away from a flow.
type Narrow struct {
	Flow         string         `json:"flow"`
	Off          bool           `json:"off,omitempty"`          // the flow is not wanted at all
	Sources      []netip.Prefix `json:"sources,omitempty"`      // only these; empty: no change
	Destinations []netip.Prefix `json:"destinations,omitempty"` // only these
	Ports        []Ports        `json:"ports,omitempty"`        // only these
}

// Flow is what one party may open to the other; answers pass as answers only.
type Flow struct {
	Name         string         `json:"name"`
	From         string         `json:"from"` // the device of the party that opens
	Sources      []netip.Prefix `json:"sources"`
	Destinations []netip.Prefix `json:"destinations"`
	Protocol     string         `json:"protocol"` // as in policy.FlowRule
	Ports        []Ports        `json:"ports,omitempty"`
}

// Ports is a range of ports, both ends included.
type Ports struct{ First, Last uint16 }

// String writes "104" or "5000-5010".
func (p Ports) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// MarshalText implements encoding.TextMarshaler.
func (p Ports) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Ports) UnmarshalText(text []byte) error {
	v, ok := parsePorts(string(text))
	if !ok {
		return fmt.Errorf("expected a port such as \"104\" or a range such as \"5000-5010\", from 1 to 65535, came %s", certs.Quote(string(text)))
	}
	*p = v
	return nil
}

func parsePorts(s string) (Ports, bool) {
	port := func(s string) (uint16, bool) {
		n, err := strconv.ParseUint(s, 10, 16)
		return uint16(n), err == nil && n > 0 && strconv.FormatUint(n, 10) == s
	}
	a, b, isRange := strings.Cut(s, "-")
	first, ok := port(a)
	if !isRange {
		return Ports{first, first}, ok
	}
	last, ok2 := port(b)
	return Ports{first, last}, ok && ok2 && first <= last
}

// Test is a flow that the policies of both parties must allow, or deny, before they are signed.
type Test struct {
	Name     string     `json:"name"`
	From     netip.Addr `json:"from"`
	To       netip.Addr `json:"to"`
	Protocol string     `json:"protocol"`
	Port     uint16     `json:"port,omitempty"`
	Expect   string     `json:"expect"` // policy.ExpectAllow: by this contract; policy.ExpectDeny: by none
}

// Content is a registry's objects, in any order.
type Content struct {
	Members     []Member     `json:"members"`
	Devices     []Device     `json:"devices"`
	Services    []Service    `json:"services"`
	Memberships []Membership `json:"memberships"`
	Contracts   []Contract   `json:"contracts"`
}
