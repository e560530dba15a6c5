package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// crossingBudget bounds the comparisons that look for overlaps, so that no policy, however
// contrived, costs more than seconds to refuse.
const crossingBudget = 5_000_000

// overlaps looks for flows that could belong to two connections, and makes the index. Between two
// addresses a flow must belong to one connection: otherwise an answer, or the packet that wakes a
// connection, could go to the wrong facility.
func (c *compiler) overlaps() {
	t := c.t
	var local, remote []netip.Prefix
	for i := range t.conns {
		local = append(local, t.conns[i].Local...)
		remote = append(remote, t.conns[i].Remote...)
	}
	t.remotes = newNodes(remote)
	t.behind = make([][]int32, len(t.remotes.prefix))
	for i := range t.conns {
		for _, p := range t.conns[i].Remote {
			n := t.remotes.number(p)
			t.behind[n] = append(t.behind[n], int32(i))
		}
	}
	budget := crossingBudget
	c.gatewaysOutside()
	c.onePeer(newNodes(local), &budget)
	reported := make(map[[2]int32]bool)
	conflict := func(a, b int32) { c.conflict(a, b, reported) }
	t.index = newIndex(t.rules, conflict)
	for _, side := range []struct {
		what string
		n    *nodes
	}{{"local", t.index.inside}, {"remote", t.index.outside}} {
		if side.n.depth > MaxNesting {
			c.fault(c.root.at("connections"), fmt.Sprintf("at most %d prefixes inside one another among the flows' %s addresses", MaxNesting, side.what),
				fmt.Sprintf("%d around %v", side.n.depth, side.n.prefix[side.n.deep]), "use fewer different prefix lengths")
		}
	}
	if !c.oneConnection(conflict, &budget) {
		c.fault(c.root.at("connections"), "a policy whose overlaps can be judged", "too many overlapping prefixes", "use prefixes that do not overlap between connections")
	}
}

// gatewaysOutside refuses a gateway whose own address is behind a tunnel: its packets would be sent
// into the tunnel that they carry.
func (c *compiler) gatewaysOutside() {
	for i := range c.doc.Peers {
		for j, s := range c.doc.Peers[i].Gateways {
			g, ok := parseGateway(s)
			if !ok {
				continue
			}
			if conn, _ := c.t.behindConn(g.Addr(), -1); conn >= 0 {
				c.fault(c.root.at("peers").nth(i).at("gateways").nth(j), "a gateway outside the networks that tunnels lead to",
					fmt.Sprintf("%v, which is among the remote addresses of connection %q", g.Addr(), c.t.conns[conn].Name), "take the gateway's address out of the connection's remote addresses")
			}
		}
	}
}

// onePeer refuses that the same pair of a local and a remote address belongs to two facilities.
func (c *compiler) onePeer(local *nodes, budget *int) {
	t := c.t
	peers := make(map[string]int32)
	peerOf := make([]int32, len(t.conns))
	total := 0
	for i := range t.conns {
		id, ok := peers[t.conns[i].Peer]
		if !ok {
			id = int32(len(peers))
			peers[t.conns[i].Peer] = id
		}
		peerOf[i] = id
		total += len(t.conns[i].Local) * len(t.conns[i].Remote)
	}
	if total > MaxEntries {
		c.fault(c.root.at("connections"), fmt.Sprintf("at most %d pairs of local and remote prefixes in all connections", MaxEntries), fmt.Sprint(total), "use wider prefixes in \"local\" and \"remote\"")
		return
	}
	rects := make([]rect, 0, total)
	for i := range t.conns {
		for _, r := range t.conns[i].Remote {
			for _, l := range t.conns[i].Local {
				if r.Addr().Is4() == l.Addr().Is4() {
					rects = append(rects, rect{t.remotes.number(r), local.number(l), int32(i)})
				}
			}
		}
	}
	slices.SortFunc(rects, func(a, b rect) int {
		return cmp.Or(cmp.Compare(a.out, b.out), cmp.Compare(a.in, b.in), cmp.Compare(peerOf[a.owner], peerOf[b.owner]), cmp.Compare(a.owner, b.owner))
	})
	// One connection stands for all of its peer with the same pair of prefixes.
	rects = slices.CompactFunc(rects, func(a, b rect) bool {
		return a.out == b.out && a.in == b.in && peerOf[a.owner] == peerOf[b.owner]
	})
	reported := make(map[[2]int32]bool)
	done := crossings(t.remotes, local, rects, func(r rect) int32 { return peerOf[r.owner] }, budget, func(a, b rect) {
		x, y := min(a.owner, b.owner), max(a.owner, b.owner)
		if reported[[2]int32{x, y}] {
			return
		}
		reported[[2]int32{x, y}] = true
		p := t.remotes.prefix[a.out]
		if q := t.remotes.prefix[b.out]; q.Bits() > p.Bits() {
			p = q
		}
		c.fault(c.root.at("connections").nth(int(y)).at("remote"), "addresses that belong to one peer",
			fmt.Sprintf("%s behind both connection %q (peer %q) and connection %q (peer %q), for the same local addresses",
				showPrefix(p), t.conns[x].Name, t.conns[x].Peer, t.conns[y].Name, t.conns[y].Peer),
			"correct one of them; facilities whose private addresses collide must have them matched in the domain")
	})
	if !done {
		c.fault(c.root.at("connections"), "a policy whose overlaps can be judged", "too many overlapping prefixes", "use prefixes that do not overlap between connections")
	}
}

// oneConnection looks for overlaps between rule sets of different prefixes; newIndex has looked
// within each. It returns false when the budget did not suffice.
func (c *compiler) oneConnection(conflict conflictFunc, budget *int) bool {
	ix, rules := c.t.index, c.t.rules
	rects := make([]rect, 0, len(ix.sets))
	sole := make([]int32, len(ix.sets)) // the connection that owns all of a set; -2-set when there are several
	for key, set := range ix.pairs {
		rects = append(rects, rect{int32(key >> 32), int32(key & 0xffffffff), set})
		s := ix.sets[set]
		sole[set] = -2 - set
		first := true
		for _, sp := range s.span {
			for _, e := range ix.entries[sp.from:sp.to] {
				if first {
					sole[set], first = rules[e.rule].conn, false
				} else if sole[set] != rules[e.rule].conn {
					sole[set] = -2 - set
				}
			}
		}
	}
	slices.SortFunc(rects, func(a, b rect) int { return cmp.Or(cmp.Compare(a.out, b.out), cmp.Compare(a.in, b.in)) })
	within := true
	done := crossings(ix.outside, ix.inside, rects, func(r rect) int32 { return sole[r.owner] }, budget, func(a, b rect) {
		if a.owner == b.owner || !within {
			return
		}
		for dir := range 2 {
			within = within && ix.meetings(ix.sets[a.owner].span[dir], ix.sets[b.owner].span[dir], budget, func(x, y int32) {
				if rules[x].conn != rules[y].conn {
					conflict(x, y)
				}
			})
		}
	})
	return done && within
}

// meetings calls visit for the rules of two sets, of one direction, that fit the same packet. It
// returns false when the budget did not suffice.
func (ix *index) meetings(a, b span, budget *int, visit func(x, y int32)) bool {
	if a.to-a.from > b.to-b.from {
		a, b = b, a
	}
	spend := func() bool { *budget--; return *budget >= 0 }
	for _, e := range ix.entries[a.from:a.to] {
		if e.key >= wholeKey {
			break // the entries with the ports stand for these
		}
		lo, hi := e.key, e.key&^0xffff|uint32(e.last)
		if e.key>>16 == protoAny {
			lo, hi = 0, wholeKey-1
		} else if y := ix.floor(b, protoAny<<16); y != nil && y.key == protoAny<<16 {
			if !spend() {
				return false
			}
			visit(e.rule, y.rule)
		}
		// The ranges of b are disjoint and sorted: those that meet e lie side by side.
		for at := b; ; {
			y := ix.floor(at, hi)
			if !spend() {
				return false
			}
			if y == nil || y.key&^0xffff|uint32(y.last) < lo {
				break
			}
			visit(e.rule, y.rule)
			if y.key == 0 {
				break
			}
			hi = y.key - 1
		}
	}
	return true
}

// conflict reports two flows of different connections, once for each pair of connections.
func (c *compiler) conflict(a, b int32, reported map[[2]int32]bool) {
	if c.t.rules[a].conn > c.t.rules[b].conn {
		a, b = b, a
	}
	ri, rj := c.t.Rule(int(a)), c.t.Rule(int(b))
	ci, cj := &c.t.conns[ri.Conn], &c.t.conns[rj.Conn]
	key := [2]int32{int32(ri.Conn), int32(rj.Conn)}
	if ri.Conn == rj.Conn || ci.Peer != cj.Peer || reported[key] { // other peers: onePeer has said so
		return
	}
	reported[key] = true
	c.f.add(&FieldError{
		Path: rj.Path(), Expected: "flows that belong to one connection",
		Came: fmt.Sprintf("flow %q (%v), which overlaps flow %q of connection %q (%v, %s)", rj.Name, rj, ri.Name, ci.Name, ri, ri.Path()),
		Do:   "give each flow to one connection",
	})
}
