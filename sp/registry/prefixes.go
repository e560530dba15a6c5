package registry

import (
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// owned is a prefix and whose it is.
type owned struct {
	p netip.Prefix
	n int
}

// overlaps is a set of prefixes, each somebody's.
type overlaps struct{ t bart.Table[owned] }

func (o *overlaps) add(p netip.Prefix, n int) { o.t.Insert(p, owned{p, n}) }

// find returns an entry that shares addresses with p.
func (o *overlaps) find(p netip.Prefix) (owned, bool) {
	if v, ok := o.t.LookupPrefix(p); ok {
		return v, true
	}
	for _, v := range o.t.Subnets(p) {
		return v, true
	}
	return owned{}, false
}

// holder returns the entry that holds all of p.
func (o *overlaps) holder(p netip.Prefix) (owned, bool) { return o.t.LookupPrefix(p) }

// covers reports whether a holds all of b.
func covers(a, b netip.Prefix) bool { return a.Bits() <= b.Bits() && a.Contains(b.Addr()) }

// coveredBy reports whether one of a list holds all of p.
func coveredBy(list []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(list, func(a netip.Prefix) bool { return covers(a, p) })
}

// common returns what two lists of prefixes share, none within another.
func common(a, b []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range a {
		for _, q := range b {
			switch {
			case covers(p, q):
				out = append(out, q)
			case covers(q, p):
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	// A prefix sorts before what lies within it.
	last := netip.Prefix{}
	return slices.DeleteFunc(out, func(p netip.Prefix) bool {
		if last.IsValid() && covers(last, p) {
			return true
		}
		last = p
		return false
	})
}

func families(list []netip.Prefix) (v4, v6 bool) {
	for _, p := range list {
		if p.Addr().Is4() {
			v4 = true
		} else {
			v6 = true
		}
	}
	return v4, v6
}

// withCounterpart returns the two lists without addresses of a family that the other lacks.
func withCounterpart(a, b []netip.Prefix) (x, y []netip.Prefix) {
	a4, a6 := families(a)
	b4, b6 := families(b)
	keep := func(list []netip.Prefix) []netip.Prefix {
		return slices.DeleteFunc(slices.Clone(list), func(p netip.Prefix) bool {
			if p.Addr().Is4() {
				return !a4 || !b4
			}
			return !a6 || !b6
		})
	}
	return keep(a), keep(b)
}

// commonPorts returns what two lists of ranges share.
func commonPorts(a, b []Ports) []Ports {
	var out []Ports
	for _, p := range a {
		for _, q := range b {
			if r := (Ports{max(p.First, q.First), min(p.Last, q.Last)}); r.First <= r.Last {
				out = append(out, r)
			}
		}
	}
	return merge(out)
}

// merge sorts ranges and joins those that touch.
func merge(list []Ports) []Ports {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Ports) int { return int(a.First) - int(b.First) })
	out := list[:0]
	for _, r := range list {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// portsWithin reports whether every port of a is one of b.
func portsWithin(a, b []Ports) bool {
	b = merge(b)
	for _, r := range a {
		if !slices.ContainsFunc(b, func(o Ports) bool { return o.First <= r.First && r.Last <= o.Last }) {
			return false
		}
	}
	return true
}

func countPorts(list []Ports) int {
	n := 0
	for _, r := range merge(list) {
		n += int(r.Last) - int(r.First) + 1
	}
	return n
}
