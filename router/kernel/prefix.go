package kernel

import (
	"cmp"
	"net/netip"
	"slices"
)

// span is a closed range of addresses of one family.
type span struct{ from, to netip.Addr }

// minimal returns the prefixes, masked, sorted, without duplicates and without those that lie
// inside another one: the routes that say the same as all of them.
func minimal(prefixes []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	// Prefixes are nested or disjoint, and the wider one sorts first.
	n := 0
	for _, p := range out {
		if n > 0 && out[n-1].Overlaps(p) {
			continue
		}
		out[n] = p
		n++
	}
	return out[:n]
}

// spans returns the addresses of one family as disjoint, non-adjacent ranges in ascending order:
// what an nftables interval set takes without complaint.
func spans(prefixes []netip.Prefix, v6 bool) []span {
	var out []span
	for _, p := range minimal(prefixes) {
		if p.Addr().Is6() != v6 {
			continue
		}
		s := span{p.Addr(), lastOf(p)}
		if n := len(out); n > 0 && out[n-1].to.Next() == s.from {
			out[n-1].to = s.to
			continue
		}
		out = append(out, s)
	}
	return out
}

// lastOf returns the highest address of p.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		switch host := (i+1)*8 - p.Bits(); {
		case host >= 8:
			b[i] = 0xff
		case host > 0:
			b[i] |= 1<<host - 1
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// within says whether a lies in one of the prefixes (linear: for the few gateways).
func within(a netip.Addr, prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
