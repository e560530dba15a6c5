package policy

// ICMP errors carry the header of the packet that they are about (RFC 792; RFC 4443, section 3).
// They are never rules of their own: one may pass only when the packet that it is about belongs to
// a flow that the caller's flow tracker knows (RFC 4301, section 6.2, asks for such a check).

// isICMPError reports whether the flow of an ICMP message is one of the errors that hosts need:
// destination unreachable (with "fragmentation needed"), time exceeded, parameter problem; for
// ICMPv6 also packet too big. Redirect and source quench are not let through (RFC 4301, section
// 6.1.1; RFC 6633).
func isICMPError(f *Flow) bool {
	if f.NoPorts {
		return false
	}
	switch f.Proto {
	case protoICMP:
		return f.Src.Is4() && (f.SrcPort == 3 || f.SrcPort == 11 || f.SrcPort == 12)
	case protoICMPv6:
		return f.Src.Is6() && f.SrcPort >= 1 && f.SrcPort <= 4
	}
	return false
}

// related does the checks that both directions share. It returns the reason to deny, or
// ReasonRelated.
func related(outer, inner *Flow) Reason {
	switch {
	case !outer.plain():
		return ReasonBadAddress
	case !isICMPError(outer):
		return ReasonNotAnError
	// The error goes to whoever sent the packet that it is about. An error about an error is
	// never sent (RFC 1122, section 3.2.2; RFC 4443, section 2.4 e).
	case !inner.plain() || inner.Src != outer.Dst || inner.Src.Is4() != outer.Src.Is4() || isICMPError(inner):
		return ReasonErrorMismatch
	}
	return ReasonRelated
}

// RelatedInbound decides about an ICMP error (outer) that came out of connection conn and carries
// the header of a packet (inner) that a local host sent into it. The answer is never Allow; Reply
// means: let it pass when the flow tracker knows the flow that inner belongs to.
//
// The error may come from any address behind the connection, because routers on the way send
// errors too; it must go to the local sender of inner, and inner must be a packet that the policy
// lets go out on this very connection.
func (t *Table) RelatedInbound(conn int, outer, inner Flow) Decision {
	deny := func(why Reason) Decision { return Decision{Conn: conn, Rule: -1, Reason: why} }
	if conn < 0 || conn >= len(t.conns) {
		return Decision{Conn: -1, Rule: -1, Reason: ReasonBadConnection}
	}
	if why := related(&outer, &inner); why != ReasonRelated {
		return deny(why)
	}
	if !t.isLocal(outer.Dst) {
		if first, _ := t.behindConn(outer.Dst, -1); first >= 0 {
			return deny(ReasonNoRelay)
		}
		return deny(ReasonNotLocalZone)
	}
	if t.isLocal(outer.Src) {
		return deny(ReasonSpoofedLocal)
	}
	if first, own := t.behindConn(outer.Src, conn); !own {
		if first < 0 {
			return deny(ReasonNotRemote)
		}
		return deny(ReasonWrongConnection)
	}
	d := t.Outbound(inner)
	if !d.Allow && !d.Reply {
		return deny(d.Reason)
	}
	if d.Conn != conn {
		return deny(ReasonWrongConnection)
	}
	return Decision{Reply: true, Conn: conn, Rule: d.Rule, Reason: ReasonRelated}
}

// RelatedOutbound decides about an ICMP error (outer) from a local zone that carries the header of
// a packet (inner) which came out of a tunnel. The answer is never Allow; Reply means: send it on
// connection Conn when the flow tracker knows the flow that inner belongs to.
func (t *Table) RelatedOutbound(outer, inner Flow) Decision {
	deny := func(conn int, why Reason) Decision { return Decision{Conn: conn, Rule: -1, Reason: why} }
	if why := related(&outer, &inner); why != ReasonRelated {
		return deny(-1, why)
	}
	if !t.isLocal(outer.Src) {
		if first, _ := t.behindConn(outer.Src, -1); first >= 0 {
			return deny(first, ReasonNoRelay)
		}
		return deny(-1, ReasonSourceNotLocal)
	}
	if t.isLocal(outer.Dst) {
		return deny(-1, ReasonLocalTraffic)
	}
	if !t.isLocal(inner.Dst) {
		return deny(-1, ReasonErrorMismatch)
	}
	// Which connection inner came from is what the rule says: between two addresses, a flow belongs
	// to one connection.
	on, in := t.index.outside.lookup(inner.Src), t.index.inside.lookup(inner.Dst)
	p := inner.opening()
	rule, _ := t.index.find(t.rules, on, in, opensIn, &p, -1)
	if rule < 0 {
		p = inner.answering()
		rule, _ = t.index.find(t.rules, on, in, opensOut, &p, -1)
	}
	if rule < 0 {
		first, _ := t.behindConn(outer.Dst, -1)
		if first < 0 {
			return deny(-1, ReasonNotRemote)
		}
		return deny(first, ReasonNoRule)
	}
	return Decision{Reply: true, Conn: int(t.rules[rule].conn), Rule: int(rule), Reason: ReasonRelated}
}
