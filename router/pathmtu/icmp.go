package pathmtu

// Action is what an ICMP error about our own ESP packets leads to. It comes from outside and is
// not authenticated, whatever it quotes, so none of them ends, pauses or moves an SA.
type Action uint8

const (
	// Ignore: count it.
	Ignore Action = iota
	// LowerMTU: Path.TooBig.
	LowerMTU
	// CheckPeer: ask the peer, within the bounds of a rate, whether it lives. RFC 7296, section
	// 2.4: a peer is never concluded to be dead because of ICMP, but it is a reason to ask. Only
	// when the peer does not answer that, the inner senders learn of it (Rule.Inner4, Inner6).
	CheckPeer
	// CheckEncap: CheckPeer, and a hint that protocol 50 does not get through: native ESP should
	// give way to ESP in UDP when the peer answers on UDP.
	CheckEncap
)

var actions = [...]string{"ignore", "lower MTU", "check peer", "check encapsulation"}

func (a Action) String() string {
	if int(a) < len(actions) {
		return actions[a]
	}
	return "unknown action"
}

// TypeCode is the type and code of an ICMP error; {0, 0} is none.
type TypeCode struct{ Type, Code uint8 }

// Rule is what is done about one outer ICMP error.
type Rule struct {
	V6       bool
	Type     uint8
	Code     uint8
	AnyCode  bool // for all codes that have no rule of their own
	Action   Action
	Inner4   TypeCode // for IPv4 senders, when the peer proved to be away; with LowerMTU for what is too long
	Inner6   TypeCode // for IPv6 senders
	Sections string   // where it is written
	Why      string
}

var (
	none     = TypeCode{}
	tooBig4  = TypeCode{3, 4}
	tooBig6  = TypeCode{2, 0}
	hostAway = TypeCode{3, 1}
	// RFC 2473, sections 8.2 and 8.3: whatever makes the tunnel's end unreachable is "unreachable"
	// to those whose packets went into the tunnel; its topology is none of their business.
	addrAway = TypeCode{1, 3}
)

// Rules is the table of RFC 4301, section 6.1.1: which outer ICMP errors are acted upon, by type
// and code. What is not in it is ignored.
var Rules = []Rule{
	{false, 3, 4, false, LowerMTU, tooBig4, tooBig6, "RFC 4301 8.2.1, RFC 1191 3", "fragmentation needed"},
	{false, 3, 2, false, CheckEncap, hostAway, addrAway, "RFC 7296 2.4, RFC 4301 6.1.1", "protocol unreachable: the peer, or a firewall in its name, takes no ESP"},
	{false, 3, 3, false, CheckPeer, hostAway, addrAway, "RFC 7296 2.4, RFC 4301 6.1.1", "port unreachable: nobody listens, the peer is starting or gone"},
	{false, 3, 10, false, CheckEncap, hostAway, addrAway, "RFC 7296 2.4, RFC 4301 6.1.1", "host administratively prohibited"},
	{false, 3, 13, false, CheckEncap, hostAway, addrAway, "RFC 7296 2.4, RFC 4301 6.1.1, RFC 1812 5.2.7.1", "communication administratively prohibited: a filter"},
	{false, 3, 0, true, CheckPeer, hostAway, addrAway, "RFC 7296 2.4, RFC 4301 6.1.1, RFC 1122 3.2.2.1", "unreachable, in every other way: a hint only, routes change"},
	{false, 4, 0, true, Ignore, none, none, "RFC 6633 3", "source quench: must be ignored"},
	{false, 5, 0, true, Ignore, none, none, "RFC 4301 6.1.2", "redirect: the kernel's routes are not ours to change"},
	{false, 11, 0, false, CheckPeer, hostAway, addrAway, "RFC 7296 2.4, RFC 2473 8.1", "time to live exceeded: a routing loop"},
	{false, 11, 1, false, Ignore, none, none, "RFC 4301 8.2", "reassembly time exceeded: a fragment was lost; the next packet is another one"},
	{false, 12, 0, true, CheckPeer, hostAway, addrAway, "RFC 7296 2.4, RFC 2473 8.2", "parameter problem: our outer header has no options, so something on the way is broken"},

	{true, 2, 0, true, LowerMTU, tooBig4, tooBig6, "RFC 4301 8.2.1, RFC 8201 4, RFC 4443 3.2", "packet too big; the code is ignored by receivers"},
	{true, 1, 1, false, CheckEncap, hostAway, addrAway, "RFC 7296 2.4, RFC 4301 6.1.1", "administratively prohibited: a filter"},
	{true, 1, 4, false, CheckPeer, hostAway, addrAway, "RFC 7296 2.4, RFC 4301 6.1.1", "port unreachable: nobody listens, the peer is starting or gone"},
	{true, 1, 0, true, CheckPeer, hostAway, addrAway, "RFC 7296 2.4, RFC 4301 6.1.1, RFC 2473 8.2", "unreachable, in every other way: a hint only, routes change"},
	{true, 3, 0, false, CheckPeer, hostAway, addrAway, "RFC 7296 2.4, RFC 2473 8.1", "hop limit exceeded: a routing loop"},
	{true, 3, 1, false, Ignore, none, none, "RFC 4301 8.2", "reassembly time exceeded: a fragment was lost; the next packet is another one"},
	{true, 4, 1, false, CheckEncap, hostAway, addrAway, "RFC 7296 2.4, RFC 4443 3.4", "unrecognized next header: the peer takes no ESP"},
	{true, 4, 0, true, CheckPeer, hostAway, addrAway, "RFC 7296 2.4, RFC 2473 8.2", "parameter problem"},
	{true, 137, 0, true, Ignore, none, none, "RFC 4301 6.1.2", "redirect: the kernel's routes are not ours to change"},
}

// RuleFor returns the rule for an ICMP (v6: ICMPv6) error about one of our ESP packets. For what
// is not in the table it is the zero Rule, which ignores.
func RuleFor(v6 bool, typ, code uint8) Rule {
	var other Rule
	for i := range Rules {
		r := &Rules[i]
		if r.V6 != v6 || r.Type != typ {
			continue
		}
		if !r.AnyCode && r.Code == code {
			return *r
		}
		if r.AnyCode {
			other = *r
		}
	}
	return other
}
