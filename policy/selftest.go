package policy

import (
	"fmt"
	"net/netip"

	"wardgate/internal/certs"
)

// The tests that a policy carries: what its author says must be allowed or denied.

type compiledTest struct {
	index int
	name  string
	flow  Flow
	conn  int // -1: any
	allow bool
}

// ephemeralPort stands for the port that an opening host picks (RFC 6335, section 6).
const ephemeralPort = 49152

func (c *compiler) tests() {
	list := c.root.at("tests")
	if !c.count(list, len(c.doc.Tests), 0, MaxTests) {
		return
	}
	names := make(map[string]int)
	for i := range c.doc.Tests {
		test := &c.doc.Tests[i]
		p := list.nth(i)
		out := compiledTest{index: i, name: test.Name, conn: -1, allow: test.Expect == ExpectAllow}
		c.name(p.at("name"), test.Name, names, i)
		c.oneOf(p.at("expect"), test.Expect, ExpectAllow, ExpectDeny)
		from, ok1 := c.address(p.at("from"), test.From)
		to, ok2 := c.address(p.at("to"), test.To)
		proto, hint, ok := parseProtocol(test.Protocol)
		if !ok || proto == protoAny {
			c.fault(p.at("protocol"), "tcp, udp, icmp, icmpv6 or a number from 1 to 252", certs.Quote(test.Protocol), hint)
			continue
		}
		switch {
		case hasPorts(proto) && test.Port == 0:
			c.fault(p.at("port"), "the destination port, because the protocol has ports", "none", "add it")
		case !hasPorts(proto) && test.Port != 0:
			c.fault(p.at("port"), "none: protocol "+protocolName(proto)+" has no ports", fmt.Sprint(test.Port), "remove it")
		}
		if test.Connection != "" {
			if out.conn, ok = c.t.byName[test.Connection]; !ok {
				c.fault(p.at("connection"), "the name of a connection in /connections", certs.Quote(test.Connection), "correct or remove it")
			}
		}
		if !ok1 || !ok2 {
			continue
		}
		if from.Is4() != to.Is4() {
			c.fault(p.at("to"), "an address of the same family as \"from\"", test.To, "")
			continue
		}
		out.flow = OpeningFlow(from, to, uint8(proto), test.Port)
		c.t.tests = append(c.t.tests, out)
	}
}

func (c *compiler) address(p *path, s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil || !plain(a) {
		c.fault(p, "an address such as 10.1.2.10", certs.Quote(s), "")
		return a, false
	}
	return a, true
}

// OpeningFlow returns the first packet of a flow as a host would send it: from an ephemeral port
// where the protocol has ports, and an echo request for ICMP and ICMPv6 (where port is ignored).
func OpeningFlow(from, to netip.Addr, proto uint8, port uint16) Flow {
	f := Flow{Src: from, Dst: to, Proto: proto}
	switch {
	case proto == protoICMP:
		f.SrcPort = icmpEchoRequest
	case proto == protoICMPv6:
		f.SrcPort = icmpv6EchoRequest
	case hasPorts(uint16(proto)):
		f.SrcPort, f.DstPort = ephemeralPort, port
	}
	return f
}

// decide answers for a flow wherever it comes from: out of a local zone, or out of whatever tunnel
// its source is behind (conn names one, -1 tries all). Of several answers the most permissive
// counts, so that a test that expects "deny" means every connection.
func (t *Table) decide(f Flow, conn int) (d Decision, direction string) {
	if t.isLocal(f.Src) {
		d = t.Outbound(f)
		if conn >= 0 && (d.Allow || d.Reply) && d.Conn != conn {
			return Decision{Conn: conn, Rule: -1, Reason: ReasonWrongConnection}, DirectionOut
		}
		return d, DirectionOut
	}
	if conn >= 0 {
		return t.Inbound(conn, f), DirectionIn
	}
	if first, _ := t.behindConn(f.Src, -1); first < 0 {
		return t.Outbound(f), "" // from nowhere: Outbound says so
	}
	best := Decision{Conn: -1, Rule: -1}
	seen := false
	for n := t.remotes.lookup(f.Src); n >= 0; n = t.remotes.parent[n] {
		for _, i := range t.behind[n] {
			d := t.Inbound(int(i), f)
			if !seen || d.Allow && !best.Allow || d.Reply && !best.Allow && !best.Reply {
				best, seen = d, true
			}
		}
	}
	return best, DirectionIn
}

// RunTests runs the tests of the policy. The error is a *TestError that explains each failure.
func (t *Table) RunTests() error {
	var failed []TestFailure
	for _, test := range t.tests {
		d, _ := t.decide(test.flow, test.conn)
		if d.Allow == test.allow {
			continue
		}
		f := TestFailure{Index: test.index, Name: test.name, Expect: ExpectDeny, Got: ExpectAllow, Explanation: t.explain(test.flow, test.conn)}
		if test.allow {
			f.Expect, f.Got = ExpectAllow, ExpectDeny
		}
		failed = append(failed, f)
	}
	if len(failed) > 0 {
		return &TestError{Failures: failed}
	}
	return nil
}
