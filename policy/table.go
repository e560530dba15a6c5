package policy

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gaissmai/bart"
)

// Table is a compiled policy: read-only, safe for concurrent use. Outbound, Inbound and the
// Related functions do not allocate.
type Table struct {
	doc    Document // without payload and table
	zones  []ZoneInfo
	conns  []ConnectionInfo
	byName map[string]int

	zone    *bart.Table[int32] // prefix → zone
	remotes *nodes             // the connections' remote prefixes
	behind  [][]int32          // by number in remotes: the connections with exactly that prefix, ascending

	rules []compiledRule
	index *index
	tests []compiledTest

	deviceAnchors []*x509.Certificate
	deviceCRLs    []*x509.RevocationList
}

// ZoneInfo is a compiled zone. Read-only.
type ZoneInfo struct {
	Name, Level string
	Prefixes    []netip.Prefix
	Interfaces  []string
}

// ConnectionInfo is a compiled connection: everything that the router needs to make an
// ike.PeerConfig and the kernel's routes. Read-only.
type ConnectionInfo struct {
	Name      string
	Peer      string
	DeviceID  string           // the peer's identity in its device certificate
	Gateways  []netip.AddrPort // in order; empty: only the peer can set up the connection
	NativeESP bool             // ESP as IP protocol 50 where there is no NAT; else always in UDP
	Moves     string           // MovesNamed, MovesAnywhere or MovesNever
	Service   string
	Category  string
	Auth      string // AuthCertificate or AuthPSK
	PSK       Secret
	Anchors   []*x509.Certificate
	CRLs      []*x509.RevocationList
	ServiceID string // the peer's identity in its service certificate
	Start     string
	PPK       string         // PPKOff, PPKOptional or PPKRequired
	PPKID     string         // empty with PPKOff
	Childless bool           // the IKE SA is made without its first CHILD SA
	Idle      time.Duration  // zero: never ended for idleness
	Local     []netip.Prefix // traffic selectors, our side, aggregated and sorted
	Remote    []netip.Prefix // traffic selectors, the peer's side, aggregated and sorted
}

// RuleInfo is a compiled flow.
type RuleInfo struct {
	Conn      int // index into Connections
	Flow      int // index into the connection's flows
	Name      string
	Direction string
	Protocol  string
	Ports     []PortRange // empty: no limit
	From, To  []netip.Prefix
}

// Path returns the JSON pointer of the flow in the document.
func (r RuleInfo) Path() string { return fmt.Sprintf("/connections/%d/flows/%d", r.Conn, r.Flow) }

// String writes the flow in one line, such as "tcp from 10.2.1.0/24 to 10.1.2.10 port 104,11112".
func (r RuleInfo) String() string {
	s := r.Protocol + " from "
	if s[0] >= '0' && s[0] <= '9' {
		s = "protocol " + s
	}
	s += showPrefixes(r.From) + " to " + showPrefixes(r.To)
	if len(r.Ports) > 0 {
		s += " port " + showPorts(r.Ports)
	}
	return s
}

func showPrefixes(list []netip.Prefix) string {
	s := make([]string, 0, min(len(list), 5))
	for i, p := range list {
		if i == 4 {
			s = append(s, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		s = append(s, showPrefix(p))
	}
	return strings.Join(s, ", ")
}

// Zones returns the local zones, in the order of the document. Read-only.
func (t *Table) Zones() []ZoneInfo { return t.zones }

// Connections returns the connections, in the order of the document. Read-only.
func (t *Table) Connections() []ConnectionInfo { return t.conns }

// NumRules returns the number of flows; Decision.Rule is below it.
func (t *Table) NumRules() int { return len(t.rules) }

// Rule describes the flow of a Decision. It panics when i is not below NumRules, as an index does.
func (t *Table) Rule(i int) RuleInfo {
	r := &t.rules[i]
	flow := &t.doc.Connections[r.conn].Flows[r.flow]
	info := RuleInfo{Conn: int(r.conn), Flow: int(r.flow), Name: flow.Name, Direction: flow.Direction, Protocol: protocolName(r.proto)}
	if hasPorts(r.proto) {
		info.Ports = slices.Clone(r.ports)
		if r.ports[0] == allPorts {
			info.Ports = nil
		}
	}
	info.From, info.To = slices.Clone(r.inside), slices.Clone(r.outside)
	if r.dir == opensIn {
		info.From, info.To = info.To, info.From
	}
	return info
}

// Rules describes all flows. It makes the list anew; Rule and NumRules are cheaper.
func (t *Table) Rules() []RuleInfo {
	out := make([]RuleInfo, len(t.rules))
	for i := range out {
		out[i] = t.Rule(i)
	}
	return out
}

// ConnectionIndex returns the index of the connection of that name, or -1.
func (t *Table) ConnectionIndex(name string) int {
	if i, ok := t.byName[name]; ok {
		return i
	}
	return -1
}

// ZoneOf returns the index of the local zone that holds a, or -1.
func (t *Table) ZoneOf(a netip.Addr) int {
	if z, ok := t.zone.Lookup(a); ok && plain(a) {
		return int(z)
	}
	return -1
}

// DeviceAnchors returns the trust anchors for the device round. Read-only.
func (t *Table) DeviceAnchors() []*x509.Certificate { return t.deviceAnchors }

// DeviceCRLs returns the revocation lists for the device round. Read-only.
func (t *Table) DeviceCRLs() []*x509.RevocationList { return t.deviceCRLs }

// Suites returns the document's.
func (t *Table) Suites() Suites { return t.doc.Suites }

// RevocationRequired reports whether the revocation state of every certificate of a peer must be known.
func (t *Table) RevocationRequired() bool { return t.doc.Revocation == RevocationRequired }

// Lifetimes returns the document's, with the defaults filled in.
func (t *Table) Lifetimes() Lifetimes { return t.doc.Lifetimes }

// Serial returns the document's serial number.
func (t *Table) Serial() uint64 { return t.doc.Serial }

// Digest returns the SHA-256 of the signed payload; zero for a document made in memory.
func (t *Table) Digest() Digest { return t.doc.digest }

// Issuer returns the document's issuer.
func (t *Table) Issuer() string { return t.doc.Issuer }

// NotBefore returns the first instant of the validity.
func (t *Table) NotBefore() time.Time { return t.doc.NotBefore }

// NotAfter returns the last instant of the validity.
func (t *Table) NotAfter() time.Time { return t.doc.NotAfter }

// plain reports whether an address is one that a packet's header holds and a policy can name.
func plain(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

func (f *Flow) plain() bool {
	return plain(f.Src) && plain(f.Dst) && f.Src.Is4() == f.Dst.Is4()
}

// opening returns what to look for when the packet opens a flow, answering when it answers one.
func (f *Flow) opening() probe {
	p := probe{ok: true, proto: uint32(f.Proto) << 16, anyToo: !tunnelling[f.Proto] && !notUpper[f.Proto]}
	switch {
	case isICMP(uint16(f.Proto)):
		// Only echo opens flows; errors belong to other flows (Related), the rest has no business
		// between facilities.
		p.ok = !f.NoPorts && f.DstPort == 0 &&
			(f.Proto == protoICMP && f.Src.Is4() && f.SrcPort == icmpEchoRequest ||
				f.Proto == protoICMPv6 && f.Src.Is6() && f.SrcPort == icmpv6EchoRequest)
	case hasPorts(uint16(f.Proto)):
		p.noPorts = f.NoPorts
		p.port = f.DstPort
	}
	return p
}

func (f *Flow) answering() probe {
	p := probe{ok: true, proto: uint32(f.Proto) << 16, anyToo: !tunnelling[f.Proto] && !notUpper[f.Proto]}
	switch {
	case isICMP(uint16(f.Proto)):
		p.ok = !f.NoPorts && f.DstPort == 0 &&
			(f.Proto == protoICMP && f.Src.Is4() && f.SrcPort == icmpEchoReply ||
				f.Proto == protoICMPv6 && f.Src.Is6() && f.SrcPort == icmpv6EchoReply)
	case hasPorts(uint16(f.Proto)):
		p.noPorts = f.NoPorts
		p.port = f.SrcPort
	}
	return p
}

// blind reports whether the packet does not show what its protocol's rules ask for.
func (f *Flow) blind() bool {
	return f.NoPorts && (hasPorts(uint16(f.Proto)) || isICMP(uint16(f.Proto)))
}

func (t *Table) isLocal(a netip.Addr) bool {
	_, ok := t.zone.Lookup(a)
	return ok
}

// behindConn returns the first connection that has a among its remote addresses (-1: none), and
// whether connection want has.
func (t *Table) behindConn(a netip.Addr, want int) (first int, has bool) {
	first = -1
	for n := t.remotes.lookup(a); n >= 0; n = t.remotes.parent[n] {
		list := t.behind[n]
		if first < 0 && len(list) > 0 {
			first = int(list[0])
		}
		if _, ok := slices.BinarySearch(list, int32(want)); ok {
			return first, true
		}
	}
	return first, false
}

// Outbound decides about a packet read from the TUN device: one that a host of a local zone, or
// somebody who got into the kernel's routing, sends towards a tunnel. Conn of an allowed packet is
// the connection to send it on.
func (t *Table) Outbound(f Flow) Decision {
	deny := func(conn int, why Reason) Decision { return Decision{Conn: conn, Rule: -1, Reason: why} }
	if !f.plain() {
		return deny(-1, ReasonBadAddress)
	}
	// No relay, first half: only a local zone's address may use a tunnel.
	if !t.isLocal(f.Src) {
		if first, _ := t.behindConn(f.Src, -1); first >= 0 {
			return deny(first, ReasonNoRelay)
		}
		return deny(-1, ReasonSourceNotLocal)
	}
	if t.isLocal(f.Dst) {
		return deny(-1, ReasonLocalTraffic)
	}
	on, in := t.index.outside.lookup(f.Dst), t.index.inside.lookup(f.Src)
	p := f.opening()
	if rule, _ := t.index.find(t.rules, on, in, opensOut, &p, -1); rule >= 0 {
		return Decision{Allow: true, Conn: int(t.rules[rule].conn), Rule: int(rule), Reason: ReasonAllowed}
	}
	p = f.answering()
	if rule, _ := t.index.find(t.rules, on, in, opensIn, &p, -1); rule >= 0 {
		return Decision{Reply: true, Conn: int(t.rules[rule].conn), Rule: int(rule), Reason: ReasonReply}
	}
	first, _ := t.behindConn(f.Dst, -1)
	switch {
	case first < 0:
		return deny(-1, ReasonNotRemote)
	case f.blind() && t.index.limited(t.rules, on, in, uint16(f.Proto), -1):
		return deny(first, ReasonNoPorts)
	}
	return deny(first, ReasonNoRule)
}

// Inbound decides about a packet that was decrypted on connection conn, an index into Connections.
func (t *Table) Inbound(conn int, f Flow) Decision {
	deny := func(why Reason) Decision { return Decision{Conn: conn, Rule: -1, Reason: why} }
	if conn < 0 || conn >= len(t.conns) {
		return Decision{Conn: -1, Rule: -1, Reason: ReasonBadConnection}
	}
	if !f.plain() {
		return deny(ReasonBadAddress)
	}
	// No relay, second half: what comes out of a tunnel goes to a local zone or nowhere.
	if !t.isLocal(f.Dst) {
		if first, _ := t.behindConn(f.Dst, -1); first >= 0 {
			return deny(ReasonNoRelay)
		}
		return deny(ReasonNotLocalZone)
	}
	if t.isLocal(f.Src) {
		return deny(ReasonSpoofedLocal)
	}
	on, in := t.index.outside.lookup(f.Src), t.index.inside.lookup(f.Dst)
	p := f.opening()
	rule, foreign := t.index.find(t.rules, on, in, opensIn, &p, int32(conn))
	if rule >= 0 {
		return Decision{Allow: true, Conn: conn, Rule: int(rule), Reason: ReasonAllowed}
	}
	p = f.answering()
	rule, foreign2 := t.index.find(t.rules, on, in, opensOut, &p, int32(conn))
	if rule >= 0 {
		return Decision{Reply: true, Conn: conn, Rule: int(rule), Reason: ReasonReply}
	}
	first, own := t.behindConn(f.Src, conn)
	switch {
	case first < 0:
		return deny(ReasonNotRemote)
	case !own || foreign >= 0 || foreign2 >= 0:
		return deny(ReasonWrongConnection)
	case f.blind() && t.index.limited(t.rules, on, in, uint16(f.Proto), int32(conn)):
		return deny(ReasonNoPorts)
	}
	return deny(ReasonNoRule)
}
