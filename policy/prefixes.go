package policy

import (
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// special are ranges that are no hosts of a facility: nothing may be allowed to or from them. A
// prefix that overlaps one is refused, which refuses 0.0.0.0/0 and ::/0 too.
var special = []struct {
	prefix netip.Prefix
	name   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "\"this network\", RFC 1122"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback, RFC 1122"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local, RFC 3927"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast, RFC 5771"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved and broadcast, RFC 1112"},
	{netip.MustParsePrefix("::/128"), "unspecified, RFC 4291"},
	{netip.MustParsePrefix("::1/128"), "loopback, RFC 4291"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped, RFC 4291"},
	{netip.MustParsePrefix("fe80::/10"), "link-local, RFC 4291"},
	{netip.MustParsePrefix("ff00::/8"), "multicast, RFC 4291"},
}

// covers reports whether a holds all of b.
func covers(a, b netip.Prefix) bool { return a.Bits() <= b.Bits() && a.Contains(b.Addr()) }

func isHost(p netip.Prefix) bool { return p.IsSingleIP() }

// showPrefix writes a single host without its length.
func showPrefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// aggregate returns the smallest sorted list of prefixes that holds the same addresses.
func aggregate(list []netip.Prefix) []netip.Prefix {
	list = slices.Clone(list)
	slices.SortFunc(list, netip.Prefix.Compare)
	out := make([]netip.Prefix, 0, len(list))
	for _, p := range list {
		if len(out) > 0 && covers(out[len(out)-1], p) {
			continue
		}
		out = append(out, p)
		// Two halves become the whole, as often as that goes.
		for len(out) >= 2 {
			a, b := out[len(out)-2], out[len(out)-1]
			if a.Bits() != b.Bits() || a.Bits() == 0 {
				break
			}
			whole := netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
			if whole != netip.PrefixFrom(b.Addr(), b.Bits()-1).Masked() {
				break
			}
			out = append(out[:len(out)-2], whole)
		}
	}
	return out
}

// nodes numbers the prefixes of one side in sorted order, so that what lies within a prefix is
// the range of numbers from it to last.
type nodes struct {
	table  *bart.Table[int32] // prefix → number
	prefix []netip.Prefix
	parent []int32 // the next larger prefix that holds this one; -1: none
	last   []int32 // the last number within this one
	depth  int     // the longest chain of prefixes inside one another
	deep   int32   // the prefix at its end
}

// newNodes numbers a list; it may hold prefixes more than once.
func newNodes(list []netip.Prefix) *nodes {
	list = slices.Clone(list)
	slices.SortFunc(list, netip.Prefix.Compare)
	list = slices.Compact(list)
	n := &nodes{table: new(bart.Table[int32]), prefix: list, parent: make([]int32, len(list)), last: make([]int32, len(list))}
	var stack []int32
	for i, p := range list {
		for len(stack) > 0 && !covers(list[stack[len(stack)-1]], p) {
			n.last[stack[len(stack)-1]] = int32(i) - 1
			stack = stack[:len(stack)-1]
		}
		n.parent[i] = -1
		if len(stack) > 0 {
			n.parent[i] = stack[len(stack)-1]
		}
		stack = append(stack, int32(i))
		if len(stack) > n.depth {
			n.depth, n.deep = len(stack), int32(i)
		}
		n.table.Insert(p, int32(i))
	}
	for _, s := range stack {
		n.last[s] = int32(len(list)) - 1
	}
	return n
}

// lookup returns the number of the longest prefix that holds a, or -1.
func (n *nodes) lookup(a netip.Addr) int32 {
	v, ok := n.table.Lookup(a)
	if !ok {
		return -1
	}
	return v
}

// number returns the number of exactly p, or -1.
func (n *nodes) number(p netip.Prefix) int32 {
	v, ok := n.table.Get(p)
	if !ok {
		return -1
	}
	return v
}

// rect is a pair of prefixes, outside × inside, that somebody owns.
type rect struct{ out, in, owner int32 }

// crossings calls visit for pairs of rects that share addresses and belong to different groups;
// some pairs are visited twice. It returns false when budget visits did not suffice. The rects must
// be sorted by out and in.
func crossings(out, in *nodes, rects []rect, group func(rect) int32, budget *int, visit func(a, b rect)) bool {
	const mixed = -1
	first := make([]int32, len(out.prefix)+1) // first[o] is where the rects of o begin
	sole := make([]int32, len(out.prefix))
	for i, r := range rects {
		if i == 0 || rects[i-1].out != r.out {
			sole[r.out] = group(r)
		} else if sole[r.out] != group(r) {
			sole[r.out] = mixed
		}
		first[r.out+1]++
	}
	for o := range out.prefix {
		first[o+1] += first[o]
	}
	for _, a := range rects {
		g := group(a)
		for o := a.out; o >= 0; o = out.parent[o] {
			row := rects[first[o]:first[o+1]]
			if len(row) == 0 || sole[o] == g {
				continue
			}
			from := func(in int32) int {
				i, _ := slices.BinarySearchFunc(row, in, func(r rect, in int32) int { return int(r.in) - int(in) })
				return i
			}
			try := func(lo, hi int32) bool {
				for i := from(lo); i < len(row) && row[i].in <= hi; i++ {
					if *budget--; *budget < 0 {
						return false
					}
					if group(row[i]) != g {
						visit(a, row[i])
					}
				}
				return true
			}
			if !try(a.in, in.last[a.in]) {
				return false
			}
			for i := in.parent[a.in]; i >= 0; i = in.parent[i] {
				if !try(i, i) {
					return false
				}
			}
		}
	}
	return true
}
