package policy

import (
	"fmt"
	"net/netip"
	"strings"
)

// Verdicts of an Explanation.
const (
	VerdictAllow = "allow"
	VerdictReply = "reply-only" // passes only as the answer to a flow that the other side opened
	VerdictDeny  = "deny"
)

// Explanation is why a flow is allowed or denied, for people (Text) and, as JSON, for programs.
type Explanation struct {
	Flow       string          `json:"flow"` // "tcp from 10.2.1.9 to 10.1.2.10 port 104"
	Verdict    string          `json:"verdict"`
	Reason     Reason          `json:"reason"`
	Direction  string          `json:"direction,omitempty"` // DirectionIn, DirectionOut; empty: neither end is local
	From       ExplainedEnd    `json:"from"`
	To         ExplainedEnd    `json:"to"`
	Connection string          `json:"connection,omitempty"`
	Peer       string          `json:"peer,omitempty"`
	Service    string          `json:"service,omitempty"`
	Category   string          `json:"category,omitempty"`
	Rule       *ExplainedRule  `json:"rule,omitempty"` // the flow that allows it
	Near       []ExplainedRule `json:"near,omitempty"` // when denied: what is allowed between the two, at most 5
	Text       string          `json:"text"`           // sentences, one a line
}

// ExplainedEnd says where an address is.
type ExplainedEnd struct {
	Address     string   `json:"address"`
	Zone        string   `json:"zone,omitempty"`
	Level       string   `json:"level,omitempty"`
	Connections []string `json:"connections,omitempty"` // it is behind these; at most 5
}

// ExplainedRule names a flow of the policy.
type ExplainedRule struct {
	Connection string `json:"connection"`
	Name       string `json:"name"`
	Path       string `json:"path"`
	Text       string `json:"text"`
}

const maxNear = 5

// String writes a flow in one line.
func (f Flow) String() string {
	s := fmt.Sprintf("%s from %v to %v", showProtocol(uint16(f.Proto)), f.Src, f.Dst)
	switch {
	case f.NoPorts:
	case hasPorts(uint16(f.Proto)):
		s += fmt.Sprintf(" port %d", f.DstPort)
	case isICMP(uint16(f.Proto)):
		s += fmt.Sprintf(" type %d", f.SrcPort)
		switch {
		case f.opening().ok:
			s += " (echo request)"
		case f.answering().ok:
			s += " (echo reply)"
		}
	}
	return s
}

// Explain explains what would happen to a flow: out of a local zone when its source is in one,
// otherwise out of the tunnel that its source is behind.
func (t *Table) Explain(f Flow) Explanation { return t.explain(f, -1) }

// ExplainOn explains what would happen to a flow out of the tunnel of a connection, whatever its
// source is; a flow from a local zone is explained as by Explain.
func (t *Table) ExplainOn(conn int, f Flow) Explanation { return t.explain(f, conn) }

func (t *Table) explain(f Flow, conn int) Explanation {
	d, direction := t.decide(f, conn)
	e := Explanation{Flow: f.String(), Verdict: VerdictDeny, Reason: d.Reason, Direction: direction, From: t.end(f.Src), To: t.end(f.Dst)}
	switch {
	case d.Allow:
		e.Verdict = VerdictAllow
	case d.Reply:
		e.Verdict = VerdictReply
	}
	if d.Conn >= 0 {
		c := &t.conns[d.Conn]
		e.Connection, e.Peer, e.Service, e.Category = c.Name, c.Peer, c.Service, c.Category
	}
	if d.Rule >= 0 {
		r := t.explained(d.Rule)
		e.Rule = &r
	} else {
		e.Near = t.near(f)
	}
	e.Text = strings.Join(t.sentences(f, d, &e), "\n")
	return e
}

func (t *Table) end(a netip.Addr) ExplainedEnd {
	e := ExplainedEnd{Address: a.String()}
	if z := t.ZoneOf(a); z >= 0 {
		e.Zone, e.Level = t.zones[z].Name, t.zones[z].Level
	}
	if !plain(a) {
		return e
	}
	for n := t.remotes.lookup(a); n >= 0; n = t.remotes.parent[n] {
		for _, i := range t.behind[n] {
			if len(e.Connections) < maxNear {
				e.Connections = append(e.Connections, t.conns[i].Name)
			}
		}
	}
	return e
}

func (t *Table) explained(rule int) ExplainedRule {
	r := t.Rule(rule)
	return ExplainedRule{Connection: t.conns[r.Conn].Name, Name: r.Name, Path: r.Path(), Text: r.String()}
}

// near lists flows between the two addresses, whatever their protocol, port and direction.
func (t *Table) near(f Flow) (out []ExplainedRule) {
	if !f.plain() {
		return nil
	}
	holds := func(list []netip.Prefix, a netip.Addr) bool {
		for _, p := range list {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	for i := range t.rules {
		r := &t.rules[i]
		if len(out) < maxNear && (holds(r.inside, f.Src) && holds(r.outside, f.Dst) || holds(r.inside, f.Dst) && holds(r.outside, f.Src)) {
			out = append(out, t.explained(i))
		}
	}
	return out
}

func (e *ExplainedEnd) sentence() string {
	switch {
	case e.Zone != "":
		return fmt.Sprintf("%s is in the local zone %q (%s).", e.Address, e.Zone, e.Level)
	case len(e.Connections) > 0:
		return fmt.Sprintf("%s is behind the connection %s.", e.Address, strings.Join(e.Connections, ", "))
	}
	return e.Address + " is neither in a local zone nor behind a connection."
}

func (t *Table) sentences(f Flow, d Decision, e *Explanation) []string {
	verdict := map[string]string{VerdictAllow: "ALLOWED", VerdictReply: "allowed ONLY AS A REPLY", VerdictDeny: "DENIED"}[e.Verdict]
	out := []string{fmt.Sprintf("%s: %s.", e.Flow, verdict), e.From.sentence(), e.To.sentence()}
	var why string
	switch d.Reason {
	case ReasonAllowed:
		why = fmt.Sprintf("Connection %q (peer %q, service %q) allows it by flow %q: %s.", e.Connection, e.Peer, e.Service, e.Rule.Name, e.Rule.Text)
	case ReasonReply:
		why = fmt.Sprintf("No flow lets this side open it. As an answer it belongs to flow %q of connection %q: %s.", e.Rule.Name, e.Connection, e.Rule.Text)
	case ReasonRelated:
		why = "It passes as an ICMP error about a flow that is known."
	case ReasonNoRelay:
		why = "What comes out of one tunnel never goes on to another, and only local addresses may use a tunnel (no relay). No setting changes this."
	case ReasonNotLocalZone:
		why = "What comes out of a tunnel goes only to addresses of local zones."
	case ReasonSourceNotLocal:
		why = "Only addresses of local zones may use a tunnel. If the host is ours, the policy lacks its network."
	case ReasonLocalTraffic:
		why = "Both ends are local: this traffic does not belong in a tunnel. Look at the local network's routing."
	case ReasonSpoofedLocal:
		why = "A packet out of a tunnel has a local address as its source: it is forged."
	case ReasonWrongConnection:
		why = "The address belongs to another connection than the one that the packet came from, or was asked about."
	case ReasonNotRemote:
		why = "No connection leads to this address. A contract with the facility is needed."
	case ReasonNoRule:
		why = "The addresses are known, but no flow of the policy allows this protocol and port in this direction."
	case ReasonNoPorts:
		why = "The packet is a later fragment, or shows no ports, and the policy allows only certain ports between these addresses. It passes when its first fragment did."
	case ReasonBadAddress:
		why = "The addresses are not of one family, or not such as hosts use."
	case ReasonBadConnection:
		why = "There is no such connection."
	case ReasonNotAnError, ReasonErrorMismatch:
		why = "It is not an ICMP error that fits the packet it is about."
	case ReasonDefault:
		why = "Nothing allows it."
	default:
		why = "Nothing allows it."
	}
	out = append(out, why)
	if e.Verdict == VerdictDeny && (d.Reason == ReasonNoRule || d.Reason == ReasonNoPorts || d.Reason == ReasonWrongConnection) {
		if len(e.Near) == 0 {
			out = append(out, "The policy allows nothing between these two addresses. If it should, ask the service provider for a policy with the flow.")
		} else {
			out = append(out, "Between these addresses the policy allows:")
			for _, r := range e.Near {
				out = append(out, fmt.Sprintf("  %s (flow %q of connection %q)", r.Text, r.Name, r.Connection))
			}
		}
	}
	return out
}
