package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Sets of addresses. The kernel's interval sets are searched step by step, and a concatenation with
// an interval even more dearly, while a hash table answers at once. Prefixes of one length can be
// in a hash table: the address is masked before it is looked up. So a set of prefixes is kept in
// parts, one for each prefix length: remote4-24, remote4-16. Facilities have few different
// lengths. With more than maxLengths of them one interval set (remote4) is faster again.

// maxLengths: a look into a part costs about 20 ns, into an interval set 50 ns for two ranges,
// 150 ns for 200 of them, and still more for thousands.
const maxLengths = 4

func partName(set string, f fam, bits int) string { return fmt.Sprintf("%s%s-%d", set, f.suffix, bits) }

func (f fam) bits() int { return int(f.size) * 8 }

// lengthsOf returns the different prefix lengths, in ascending order.
func lengthsOf(prefixes []netip.Prefix) []int {
	var out []int
	for _, p := range prefixes {
		out = append(out, p.Bits())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ofFamily returns the prefixes of f, minimal.
func ofFamily(f fam, prefixes []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(minimal(prefixes), func(p netip.Prefix) bool { return p.Addr().Is6() != f.v6 })
}

// addPrefixes makes a set of addresses, in parts or as intervals.
func (b *builder) addPrefixes(f fam, name string, prefixes []netip.Prefix) {
	prefixes = ofFamily(f, prefixes)
	lengths := lengthsOf(prefixes)
	b.none[name+f.suffix] = len(prefixes) == 0
	if len(lengths) > b.lengths {
		b.addSpans(f, name, spans(prefixes, f.v6))
		return
	}
	b.masked[name+f.suffix] = lengths
	for _, bits := range lengths {
		var elems []nftables.SetElement
		for _, p := range prefixes {
			if p.Bits() == bits {
				elems = append(elems, nftables.SetElement{Key: p.Addr().AsSlice()})
			}
		}
		b.addSet(&nftables.Set{Table: b.table, Name: partName(name, f, bits), KeyType: f.dataType}, elems)
	}
}

// addSpans makes an interval set of addresses.
func (b *builder) addSpans(f fam, name string, ss []span) {
	set := &nftables.Set{Table: b.table, Name: name + f.suffix, KeyType: f.dataType, Interval: true}
	var elems []nftables.SetElement
	for _, s := range ss {
		elems = append(elems, nftables.SetElement{Key: s.from.AsSlice()})
		// The end of an interval is the first address after it; without one it is open.
		if after := s.to.Next(); after.IsValid() {
			elems = append(elems, nftables.SetElement{Key: after.AsSlice(), IntervalEnd: true})
		}
	}
	b.addSet(set, elems)
}

// addZonePairs makes the set of address and interface name.
func (b *builder) addZonePairs(f fam, zones []Zone) {
	kt, err := nftables.ConcatSetType(f.dataType, nftables.TypeIFName)
	if err != nil {
		b.fail(err)
		return
	}
	byIf := map[string][]netip.Prefix{}
	var all []netip.Prefix
	for _, z := range zones {
		for _, i := range z.Interfaces {
			byIf[i] = append(byIf[i], z.Prefixes...)
		}
	}
	names := sortedKeys(byIf)
	for _, i := range names {
		byIf[i] = ofFamily(f, byIf[i])
		all = append(all, byIf[i]...)
	}
	lengths := lengthsOf(all)
	b.none[setZone+f.suffix] = len(all) == 0
	if len(lengths) > b.lengths {
		var elems []nftables.SetElement
		for _, i := range names {
			for _, s := range spans(byIf[i], f.v6) {
				elems = append(elems, nftables.SetElement{
					Key:    append(s.from.AsSlice(), ifName(i)...),
					KeyEnd: append(s.to.AsSlice(), ifName(i)...),
				})
			}
		}
		b.addSet(&nftables.Set{
			Table: b.table, Name: setZone + f.suffix, KeyType: kt, Interval: true, Concatenation: true,
		}, elems)
		return
	}
	b.masked[setZone+f.suffix] = lengths
	for _, bits := range lengths {
		var elems []nftables.SetElement
		for _, i := range names {
			for _, p := range byIf[i] {
				if p.Bits() == bits {
					elems = append(elems, nftables.SetElement{Key: append(p.Addr().AsSlice(), ifName(i)...)})
				}
			}
		}
		b.addSet(&nftables.Set{
			Table: b.table, Name: partName(setZone, f, bits), KeyType: kt, Concatenation: true,
		}, elems)
	}
}

// empty says that no address of the family is in the set.
func (b *builder) empty(f fam, set string) bool { return b.none[set+f.suffix] }

func (f fam) load(off uint32, r uint32) expr.Any {
	return &expr.Payload{DestRegister: r, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: f.size}
}

// mask leaves the first bits of the address in the register.
func (f fam) mask(bits int) match {
	if bits == f.bits() {
		return nil
	}
	return match{&expr.Bitwise{
		SourceRegister: reg, DestRegister: reg, Len: f.size,
		Mask: net.CIDRMask(bits, f.bits()), Xor: make([]byte, f.size),
	}}
}

// in matches the address at off against a set: one of the conditions must hold. There is none where
// the set is empty. Each asks for the family even where the chain is of one family only, because
// the nft command needs it to print an address as one, and to read back what it has printed: an
// administrator may keep his whole ruleset that way.
func (b *builder) in(f fam, off uint32, set string) []match {
	lengths, ok := b.masked[set+f.suffix]
	if !ok {
		return []match{slices.Concat(f.is(), match{f.load(off, reg), b.lookup(reg, set+f.suffix, true)})}
	}
	var out []match
	for _, bits := range lengths {
		out = append(out, slices.Concat(f.is(), match{f.load(off, reg)}, f.mask(bits),
			match{b.lookup(reg, partName(set, f, bits), true)}))
	}
	return out
}

// notIn is the complement of in: a single condition.
func (b *builder) notIn(f fam, off uint32, set string) match {
	lengths, ok := b.masked[set+f.suffix]
	if !ok {
		return slices.Concat(f.is(), match{f.load(off, reg), b.lookup(reg, set+f.suffix, false)})
	}
	out := f.is()
	for _, bits := range lengths {
		out = slices.Concat(out, match{f.load(off, reg)}, f.mask(bits), match{b.lookup(reg, partName(set, f, bits), false)})
	}
	return out
}

// pair matches address and interface name together against the zones: one of the conditions.
func (b *builder) pair(f fam, off uint32, key expr.MetaKey) []match {
	ifn := &expr.Meta{Key: key, Register: reg32 + f.size/4}
	lengths, ok := b.masked[setZone+f.suffix]
	if !ok {
		return []match{slices.Concat(f.is(), match{f.load(off, reg), ifn, b.lookup(reg, setZone+f.suffix, true)})}
	}
	var out []match
	for _, bits := range lengths {
		out = append(out, slices.Concat(f.is(), match{f.load(off, reg)}, f.mask(bits),
			match{ifn, b.lookup(reg, partName(setZone, f, bits), true)}))
	}
	return out
}
