package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

// The index answers "which flow of the policy allows this?" at a cost that hardly depends on how
// many there are: the longest prefix that holds the outside address and the longest that holds the
// inside address are looked up in two prefix tables; each pair of them and of the at most
// MaxNesting prefixes around them leads, by a map, to a set of rules; in the set, protocol and
// port are found by binary search in disjoint ranges.
//
// When several rules fit, the one with the longest outside prefix counts, then the one with the
// longest inside prefix, then the one that names the protocol before "any", then the first. All
// of them belong to one connection: overlap.go refuses the policy otherwise.
type index struct {
	inside, outside *nodes
	mask            []uint64         // by outside number: bit i&63 is set when there is a set with inside number i
	pairs           map[uint64]int32 // outside number << 32 | inside number → set
	sets            []ruleSet
	entries         []entry
}

// ruleSet is where the rules of a pair lie in entries, by who opens the flow.
type ruleSet struct {
	span [2]span
}

type span struct{ from, to uint32 }

// Indexes of ruleSet.span.
const (
	opensOut = 0 // the local side opens
	opensIn  = 1 // the remote side opens
)

// entry is a range of ports of a protocol, sorted by key. Ranges of one protocol are disjoint.
type entry struct {
	key  uint32 // protocol<<16 | first port; wholeKey | protocol<<16 for rules that fit any port
	last uint16
	rule int32
}

// wholeKey marks the entry that answers for packets whose ports cannot be read.
const wholeKey = 512 << 16

// rawEntry is what is sorted into sets: one rule, pair of prefixes and range of ports.
type rawEntry struct {
	out, in int32
	dir     uint8
	proto   uint16
	ports   PortRange
	rule    int32
}

// compiledRule is a flow of the document, understood.
type compiledRule struct {
	conn, flow      int32
	dir             uint8
	proto           uint16
	ports           []PortRange // allPorts when there is no limit
	whole           bool        // fits packets whose ports cannot be read
	inside, outside []netip.Prefix
}

// fits reports whether the rule means packets of an address family.
func (r *compiledRule) fits(is4 bool) bool {
	switch r.proto {
	case protoICMP:
		return is4
	case protoICMPv6:
		return !is4
	}
	return true
}

// conflictFunc is told of two rules of different connections that both allow some flow.
type conflictFunc func(a, b int32)

// newIndex compiles the rules. conflict is called for rules of different connections that fit the
// same flow between the same two prefixes.
func newIndex(rules []compiledRule, conflict conflictFunc) *index {
	var in, out []netip.Prefix
	for i := range rules {
		in = append(in, rules[i].inside...)
		out = append(out, rules[i].outside...)
	}
	ix := &index{inside: newNodes(in), outside: newNodes(out), pairs: make(map[uint64]int32)}
	ix.mask = make([]uint64, len(ix.outside.prefix))

	var raw []rawEntry
	for i := range rules {
		r := &rules[i]
		for _, o := range r.outside {
			if !r.fits(o.Addr().Is4()) {
				continue
			}
			on := ix.outside.number(o)
			for _, n := range r.inside {
				if n.Addr().Is4() != o.Addr().Is4() {
					continue
				}
				nn := ix.inside.number(n)
				for _, p := range r.ports {
					raw = append(raw, rawEntry{on, nn, r.dir, r.proto, p, int32(i)})
				}
			}
		}
	}
	slices.SortFunc(raw, func(a, b rawEntry) int {
		return cmp.Or(cmp.Compare(a.out, b.out), cmp.Compare(a.in, b.in), cmp.Compare(a.dir, b.dir),
			cmp.Compare(a.proto, b.proto), cmp.Compare(a.rule, b.rule), cmp.Compare(a.ports.First, b.ports.First))
	})
	b := builder{ix: ix, rules: rules, conflict: conflict}
	for len(raw) > 0 {
		n := 1
		for n < len(raw) && raw[n].out == raw[0].out && raw[n].in == raw[0].in {
			n++
		}
		b.set(raw[:n])
		raw = raw[n:]
	}
	ix.entries = slices.Clip(ix.entries)
	ix.sets = slices.Clip(ix.sets)
	return ix
}

type builder struct {
	ix       *index
	rules    []compiledRule
	conflict conflictFunc
	owner    *[65536]int32 // scratch of disjoint
	next     *[65537]int32
}

// set makes the rule set of one pair of prefixes.
func (b *builder) set(raw []rawEntry) {
	ix := b.ix
	on, in := raw[0].out, raw[0].in
	ix.mask[on] |= 1 << (in & 63)
	ix.pairs[uint64(on)<<32|uint64(in)] = int32(len(ix.sets))
	var s ruleSet
	for dir := range s.span {
		n := 0
		for n < len(raw) && int(raw[n].dir) == dir {
			n++
		}
		s.span[dir].from = uint32(len(ix.entries))
		b.direction(raw[:n])
		s.span[dir].to = uint32(len(ix.entries))
		raw = raw[n:]
	}
	ix.sets = append(ix.sets, s)
}

// direction adds the entries of one pair and direction; raw is sorted by protocol and rule.
func (b *builder) direction(raw []rawEntry) {
	all := raw
	anyRule := int32(-1)
	var wholes []entry
	for len(raw) > 0 {
		proto := raw[0].proto
		n := 1
		for n < len(raw) && raw[n].proto == proto {
			n++
		}
		group := raw[:n]
		raw = raw[n:]
		b.crossing(group)
		b.disjoint(group)
		if proto == protoAny {
			anyRule = group[0].rule
			continue
		}
		for i := range group {
			if b.rules[group[i].rule].whole {
				wholes = append(wholes, entry{wholeKey | uint32(proto)<<16, 65535, group[i].rule})
				break
			}
		}
	}
	b.ix.entries = append(b.ix.entries, wholes...)
	if anyRule < 0 {
		return
	}
	for i := range all { // "any" fits what every other rule fits
		if b.rules[all[i].rule].conn != b.rules[anyRule].conn {
			b.conflict(anyRule, all[i].rule)
		}
	}
}

// crossing looks for ranges of different connections that overlap.
func (b *builder) crossing(group []rawEntry) {
	conn := func(i int) int32 { return b.rules[group[i].rule].conn }
	same := true
	for i := range group {
		same = same && conn(i) == conn(0)
	}
	if same {
		return
	}
	order := make([]int, len(group))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(x, y int) int { return cmp.Compare(group[x].ports.First, group[y].ports.First) })
	// The furthest end so far, and the furthest end of another connection than that one's.
	best, second := -1, -1
	for _, i := range order {
		for _, j := range []int{best, second} {
			if j >= 0 && conn(j) != conn(i) && group[j].ports.Last >= group[i].ports.First {
				b.conflict(group[j].rule, group[i].rule)
			}
		}
		switch {
		case best < 0 || conn(best) == conn(i):
			if best < 0 || group[i].ports.Last > group[best].ports.Last {
				best = i
			}
		case group[i].ports.Last > group[best].ports.Last:
			best, second = i, best
		case second < 0 || group[i].ports.Last > group[second].ports.Last:
			second = i
		}
	}
}

// disjoint adds the ranges of one protocol so that they do not overlap: where they do, the first
// rule has the ports. group is sorted by rule.
func (b *builder) disjoint(group []rawEntry) {
	add := func(first, last uint16, rule int32) {
		b.ix.entries = append(b.ix.entries, entry{uint32(group[0].proto)<<16 | uint32(first), last, rule})
	}
	if len(group) == 1 || group[0].ports == allPorts {
		add(group[0].ports.First, group[0].ports.Last, group[0].rule)
		return
	}
	start := len(b.ix.entries)
	if len(group) <= 32 {
		var taken []PortRange // sorted, disjoint
		for _, g := range group {
			at := int(g.ports.First)
			var fresh []PortRange
			for _, t := range taken {
				if int(t.Last) < at || t.First > g.ports.Last {
					continue
				}
				if int(t.First) > at {
					fresh = append(fresh, PortRange{uint16(at), t.First - 1})
				}
				at = int(t.Last) + 1
			}
			if at <= int(g.ports.Last) {
				fresh = append(fresh, PortRange{uint16(at), g.ports.Last})
			}
			for _, f := range fresh {
				add(f.First, f.Last, g.rule)
			}
			taken = append(taken, fresh...)
			slices.SortFunc(taken, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
		}
	} else {
		if b.owner == nil {
			b.owner, b.next = new([65536]int32), new([65537]int32)
		}
		for p := range b.next {
			b.next[p] = int32(p) // the first free port from p on
		}
		for p := range b.owner {
			b.owner[p] = -1
		}
		free := func(p int32) int32 {
			for b.next[p] != p {
				b.next[p] = b.next[b.next[p]]
				p = b.next[p]
			}
			return p
		}
		for _, g := range group {
			for p := free(int32(g.ports.First)); p <= int32(g.ports.Last); p = free(p) {
				b.owner[p] = g.rule
				b.next[p] = p + 1
			}
		}
		for p := 0; p < len(b.owner); {
			q := p
			for q < len(b.owner) && b.owner[q] == b.owner[p] {
				q++
			}
			if b.owner[p] >= 0 {
				add(uint16(p), uint16(q-1), b.owner[p])
			}
			p = q
		}
	}
	slices.SortFunc(b.ix.entries[start:], func(x, y entry) int { return cmp.Compare(x.key, y.key) })
}

// probe is what is looked for in a set.
type probe struct {
	ok      bool   // false: nothing can fit, such as an ICMP message that is no echo
	noPorts bool   // only rules that fit any port can
	proto   uint32 // protocol << 16
	port    uint16
	anyToo  bool // "any" may fit
}

// search returns the rule of a set that fits, or -1.
func (ix *index) search(s span, p *probe) int32 {
	if s.from == s.to || !p.ok {
		return -1
	}
	key := p.proto | uint32(p.port)
	if p.noPorts {
		key = wholeKey | p.proto
	}
	if e := ix.floor(s, key); e != nil && e.key&^0xffff == key&^0xffff && e.last >= p.port {
		return e.rule
	}
	if p.anyToo {
		if e := ix.floor(s, protoAny<<16); e != nil && e.key == protoAny<<16 {
			return e.rule
		}
	}
	return -1
}

// floor returns the last entry whose key is not greater than key.
func (ix *index) floor(s span, key uint32) *entry {
	lo, hi := s.from, s.to
	for lo < hi {
		m := (lo + hi) / 2
		if ix.entries[m].key <= key {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo == s.from {
		return nil
	}
	return &ix.entries[lo-1]
}

// find walks the pairs of prefixes around two addresses, given by their longest ones, from the most
// specific outwards, and returns the first rule that fits and belongs to connection conn (-1: any).
// foreign is a rule that fits but belongs to another connection, or -1.
func (ix *index) find(rules []compiledRule, on, in int32, dir int, p *probe, conn int32) (rule, foreign int32) {
	foreign = -1
	if !p.ok {
		return -1, -1
	}
	for o := on; o >= 0; o = ix.outside.parent[o] {
		mask := ix.mask[o]
		for i := in; i >= 0; i = ix.inside.parent[i] {
			if mask&(1<<(i&63)) == 0 {
				continue
			}
			set, ok := ix.pairs[uint64(o)<<32|uint64(i)]
			if !ok {
				continue
			}
			r := ix.search(ix.sets[set].span[dir], p)
			if r < 0 {
				continue
			}
			if conn < 0 || rules[r].conn == conn {
				return r, foreign
			}
			foreign = r
		}
	}
	return -1, foreign
}

// limited reports whether some rule between the two addresses has the protocol but only for some
// ports: the reason why a packet without ports is denied.
func (ix *index) limited(rules []compiledRule, on, in int32, proto uint16, conn int32) bool {
	for o := on; o >= 0; o = ix.outside.parent[o] {
		for i := in; i >= 0; i = ix.inside.parent[i] {
			set, ok := ix.pairs[uint64(o)<<32|uint64(i)]
			if !ok {
				continue
			}
			for _, s := range ix.sets[set].span {
				for _, p := range []uint16{proto, protoAny} {
					e := ix.floor(s, uint32(p)<<16|65535)
					if e != nil && e.key>>16 == uint32(p) && (conn < 0 || rules[e.rule].conn == conn) {
						return true
					}
				}
			}
		}
	}
	return false
}
