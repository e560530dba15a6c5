package kernel

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// The model: the rules in the order in which one thinks of them, every packet through all of them,
// every set as ranges. It is slow and easy to read; TestRulesAgainstModel says that the rules of
// rules.go decide the same.

const modelGate = "gate"

func fillModel(b *builder, rs *ruleset) {
	b.lengths = -1 // ranges, always
	b.common(rs)
	gate := b.chain(modelGate)
	if rs.locked {
		b.rule(gate, iif(b.tun, true), refuse(ReasonLocked))
		b.rule(gate, oif(b.tun, true), refuse(ReasonLocked))
	}
	m := model{b}
	m.prerouting()
	m.input()
	m.forward(rs)
	m.output()
	m.postrouting()
}

type model struct{ *builder }

func (b model) in(f fam, off uint32, set string, is bool) match {
	return slices.Concat(f.is(), match{f.load(off, reg), b.lookup(reg, set+f.suffix, is)})
}

func (b model) pair(f fam, off uint32, key expr.MetaKey) match {
	return slices.Concat(f.is(), match{
		f.load(off, reg32),
		&expr.Meta{Key: key, Register: reg32 + f.size/4},
		b.lookup(reg32, setZone+f.suffix, true),
	})
}

func (b model) gated(h hook) *nftables.Chain {
	c := b.hooked(h)
	b.rule(c, b.jump())
	return c
}

func (b model) jump() match {
	return match{&expr.Verdict{Kind: expr.VerdictJump, Chain: modelGate}}
}

func (b model) prerouting() {
	c := b.gated(hookPrerouting)
	fromTun, notTun := iif(b.tun, true), iif(b.tun, false)
	for _, f := range fams {
		b.rule(c, fromTun, b.in(f, f.saddr, setRemote, false), refuse(ReasonTunnelSource))
		b.rule(c, fromTun, b.in(f, f.daddr, setRemote, true), refuse(ReasonRelay))
		b.rule(c, fromTun, b.in(f, f.daddr, setLocal, false), refuse(ReasonTunnelToOther))
	}
	b.rule(c, fromTun, notrack(), accept())
	for _, f := range fams {
		for _, p := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_ESP, f.icmp} {
			b.rule(c, notTun, b.in(f, f.saddr, setGateway, true), l4proto(p), toLocal(), accept())
		}
		for _, typ := range f.neighbour {
			b.rule(c, notTun, b.in(f, f.saddr, setGateway, true), icmpType(f.icmp, typ), accept())
		}
		b.rule(c, notTun, b.in(f, f.saddr, setRemote, true), refuse(ReasonSpoofed))
		b.rule(c, notTun, b.in(f, f.daddr, setRemote, true), b.pair(f, f.saddr, expr.MetaKeyIIFNAME), notrack(), accept())
		b.rule(c, notTun, b.in(f, f.daddr, setRemote, true), refuse(ReasonNotFromZone))
	}
}

func (b model) input() {
	c := b.gated(hookInput)
	b.rule(c, iif(b.tun, true), refuse(ReasonTunnelToRouter))
	for _, f := range fams {
		fromGateway := b.in(f, f.saddr, setGateway, true)
		b.rule(c, fromGateway, l4proto(unix.IPPROTO_ESP), accept())
		b.rule(c, fromGateway, b.udpPort(2), accept())
		for _, typ := range slices.Concat(f.icmpErrors, f.neighbour) {
			b.rule(c, fromGateway, icmpType(f.icmp, typ), accept())
		}
		b.rule(c, b.in(f, f.saddr, setRemote, true), refuse(ReasonSpoofed))
		b.rule(c, b.in(f, f.daddr, setRemote, true), refuse(ReasonDiverted))
	}
}

func (b model) forward(rs *ruleset) {
	c := b.gated(hookForward)
	fromTun, toTun := iif(b.tun, true), oif(b.tun, true)
	b.rule(c, fromTun, toTun, refuse(ReasonRelay))
	for _, f := range fams {
		b.rule(c, fromTun, b.pair(f, f.daddr, expr.MetaKeyOIFNAME), accept())
		b.rule(c, toTun, b.pair(f, f.saddr, expr.MetaKeyIIFNAME), accept())
	}
	b.rule(c, fromTun, refuse(ReasonTunnelToOther))
	b.rule(c, toTun, refuse(ReasonNotFromZone))
	for _, f := range fams {
		b.rule(c, b.in(f, f.daddr, setRemote, true), refuse(ReasonClearLeak))
		b.rule(c, b.in(f, f.saddr, setRemote, true), refuse(ReasonSpoofed))
	}
	b.rule(c, ip4.is(), b.ifIn(setVPNOnly+"4"), refuse(ReasonNotARouter))
	b.rule(c, ip6.is(), b.ifIn(setVPNOnly+"6"), refuse(ReasonNotARouter))
	if rs.allOnly6 {
		b.rule(c, ip6.is(), refuse(ReasonNotARouter))
	}
}

func (b model) output() {
	c := b.hooked(hookOutput)
	toTun := oif(b.tun, true)
	b.rule(c, toTun, match{
		&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: nativeU32(unix.RTN_MULTICAST)},
	}, drop())
	for _, f := range fams {
		for _, typ := range append(slices.Clone(f.icmpErrors), f.redirect) {
			b.rule(c, toTun, f.is(), icmpType(f.icmp, typ), drop())
		}
	}
	b.rule(c, b.jump())
	b.rule(c, toTun, refuse(ReasonFromRouter))
	for _, f := range fams {
		b.toGateway(c, f)
		b.rule(c, b.in(f, f.daddr, setRemote, true), refuse(ReasonFromRouter))
	}
}

func (b model) postrouting() {
	c := b.gated(hookPostrouting)
	fromTun, toTun := iif(b.tun, true), oif(b.tun, true)
	b.rule(c, fromTun, toTun, refuse(ReasonRelay))
	for _, f := range fams {
		b.rule(c, toTun, b.pair(f, f.saddr, expr.MetaKeyIIFNAME), accept())
	}
	b.rule(c, toTun, refuse(ReasonNotFromZone))
	for _, f := range fams {
		b.toGateway(c, f)
		b.rule(c, b.in(f, f.daddr, setRemote, true), refuse(ReasonClearLeak))
		b.rule(c, fromTun, b.pair(f, f.daddr, expr.MetaKeyOIFNAME), accept())
		b.rule(c, b.in(f, f.saddr, setRemote, true), refuse(ReasonSpoofed))
	}
	b.rule(c, fromTun, refuse(ReasonTunnelToOther))
}

func (b model) toGateway(c *nftables.Chain, f fam) {
	for _, typ := range f.neighbour {
		b.rule(c, b.in(f, f.daddr, setGateway, true), icmpType(f.icmp, typ), accept())
	}
	ours := slices.Concat(b.in(f, f.daddr, setGateway, true), match{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: nativeU32(b.mark)},
	})
	b.rule(c, ours, l4proto(unix.IPPROTO_ESP), accept())
	b.rule(c, ours, b.udpPort(0), accept())
}

// machine evaluates packets against a table as the kernel does.
type machine struct {
	bases  []*nftables.Chain
	chains map[string]bool
	rules  map[string][][]expr.Any
	sets   map[string]*machineSet

	// Of the packet that is evaluated:
	regs    [64]byte
	written [64]bool
	family  bool // the rule has asked for it
	out     outcome
	cost    int // expressions evaluated
}

type machineSet struct {
	set    *nftables.Set
	exact  map[string]bool
	ranges []nftables.SetElement // with KeyEnd
}

// outcome is what became of a packet at a hook.
type outcome struct {
	dropped bool
	notrack bool
	reason  Reason // counted
}

func newMachine(rs *ruleset, fill func(*builder, *ruleset)) (*machine, error) {
	m := &machine{chains: map[string]bool{}, rules: map[string][][]expr.Any{}, sets: map[string]*machineSet{}}
	b := newBuilder(m, &nftables.Table{Name: "model"}, rs.state.TunName)
	b.mark = DefaultMark
	fill(b, rs)
	slices.SortStableFunc(m.bases, func(x, y *nftables.Chain) int { return cmp.Compare(*x.Priority, *y.Priority) })
	return m, b.err
}

func (m *machine) AddChain(c *nftables.Chain) *nftables.Chain {
	if m.chains[c.Name] {
		panic("chain made twice: " + c.Name)
	}
	m.chains[c.Name] = true
	if c.Hooknum != nil {
		m.bases = append(m.bases, c)
	}
	return c
}

func (m *machine) FlushChain(c *nftables.Chain) { delete(m.rules, c.Name) }

func (m *machine) AddRule(r *nftables.Rule) *nftables.Rule {
	// The kernel wants it so: what a rule leads to is there before it.
	for _, e := range r.Exprs {
		if v, ok := e.(*expr.Verdict); ok && v.Chain != "" && !m.chains[v.Chain] {
			panic("no chain " + v.Chain)
		}
	}
	m.rules[r.Chain.Name] = append(m.rules[r.Chain.Name], r.Exprs)
	return r
}

func (m *machine) AddObj(o nftables.Obj) nftables.Obj { return o }

func (m *machine) AddSet(s *nftables.Set, elems []nftables.SetElement) error {
	if m.sets[s.Name] != nil {
		return fmt.Errorf("set made twice: %s", s.Name)
	}
	m.sets[s.Name] = &machineSet{set: s, exact: map[string]bool{}}
	return m.SetAddElements(s, elems)
}

func (m *machine) SetAddElements(s *nftables.Set, elems []nftables.SetElement) error {
	ms := m.sets[s.Name]
	for _, e := range elems {
		switch {
		case len(e.Key) != int(s.KeyType.Bytes):
			return fmt.Errorf("set %s: key of %d bytes, want %d", s.Name, len(e.Key), s.KeyType.Bytes)
		case !s.Interval:
			ms.exact[string(e.Key)] = true
			if len(ms.exact) > int(s.Size) {
				return fmt.Errorf("set %s: more elements than its size %d", s.Name, s.Size)
			}
		case s.Concatenation:
			ms.ranges = append(ms.ranges, e)
		case e.IntervalEnd:
			ms.ranges[len(ms.ranges)-1].KeyEnd = before(e.Key)
		default:
			ms.ranges = append(ms.ranges, nftables.SetElement{Key: e.Key, KeyEnd: bytes.Repeat([]byte{255}, len(e.Key))})
		}
	}
	return nil
}

func before(key []byte) []byte {
	a, _ := netip.AddrFromSlice(key)
	return a.Prev().AsSlice()
}

func (s *machineSet) has(key []byte) bool {
	if !s.set.Interval {
		return s.exact[string(key)]
	}
	n := len(key)
	if s.set.Concatenation {
		n -= unix.IFNAMSIZ
	}
	return slices.ContainsFunc(s.ranges, func(e nftables.SetElement) bool {
		return bytes.Compare(e.Key[:n], key[:n]) <= 0 && bytes.Compare(key[:n], e.KeyEnd[:n]) <= 0 && bytes.Equal(e.Key[n:], key[n:])
	})
}

// probe is a packet at a hook, as nftables sees it.
type probe struct {
	hook     hook
	src, dst netip.Addr
	iif, oif string
	mark     uint32
	addrType uint32 // of the destination, RTN_…
	proto    byte
	noL4     bool    // a later fragment
	l4       [4]byte // ports, or type and code
}

func (p *probe) fam() fam {
	if p.src.Is6() {
		return ip6
	}
	return ip4
}

func at(r uint32) int {
	if r >= reg32 {
		return int(r-reg32) * 4
	}
	return int(r-1) * 16
}

// set writes a register, filled up with zeros to a multiple of four bytes.
func (m *machine) set(r uint32, data []byte) {
	data = append(slices.Clone(data), make([]byte, -len(data)&3)...)
	copy(m.regs[at(r):], data)
	for i := range data {
		m.written[at(r)+i] = true
	}
}

// get reads a register, which the rule must have written: the kernel refuses a rule that has not.
func (m *machine) get(r uint32, n int) []byte {
	o := at(r)
	if slices.Contains(m.written[o:o+n], false) {
		panic(fmt.Sprintf("register %d read before it was written", r))
	}
	return m.regs[o : o+n]
}

// run sends the packet through all base chains of its hook.
func (m *machine) run(p *probe) outcome {
	m.out, m.cost = outcome{}, 0
	for _, c := range m.bases {
		if *c.Hooknum == *p.hook.hook {
			if v := m.walk(c.Name, p); v == expr.VerdictDrop {
				m.out.dropped = true
				break
			}
		}
	}
	return m.out
}

// walk returns accept, drop, or return where the chain ends.
func (m *machine) walk(chain string, p *probe) expr.VerdictKind {
	for _, r := range m.rules[chain] {
		m.written, m.family = [64]bool{}, false
		for _, e := range r {
			m.cost++
			v, ok := m.eval(e, p)
			if !ok {
				break
			}
			if v == nil {
				continue
			}
			switch v.Kind {
			case expr.VerdictGoto:
				return m.walk(v.Chain, p)
			case expr.VerdictJump:
				if k := m.walk(v.Chain, p); k != expr.VerdictReturn {
					return k
				}
			default:
				return v.Kind
			}
		}
	}
	return expr.VerdictReturn
}

// eval returns false where the rule does not match.
func (m *machine) eval(e expr.Any, p *probe) (*expr.Verdict, bool) {
	switch e := e.(type) {
	case *expr.Meta:
		switch e.Key {
		case expr.MetaKeyIIFNAME:
			m.set(e.Register, ifName(p.iif))
		case expr.MetaKeyOIFNAME:
			m.set(e.Register, ifName(p.oif))
		case expr.MetaKeyNFPROTO:
			m.set(e.Register, []byte{p.fam().proto})
			m.family = true
		case expr.MetaKeyL4PROTO:
			m.set(e.Register, []byte{p.proto})
		case expr.MetaKeyMARK:
			m.set(e.Register, nativeU32(p.mark))
		default:
			panic(fmt.Sprintf("meta key %d", e.Key))
		}
	case *expr.Payload:
		switch {
		case e.Base == expr.PayloadBaseNetworkHeader && !m.family:
			panic("an address is loaded by a rule that does not ask for the family: nft could not print it")
		case e.Base == expr.PayloadBaseTransportHeader && p.noL4:
			return nil, false
		case e.Base == expr.PayloadBaseTransportHeader:
			m.set(e.DestRegister, p.l4[e.Offset:e.Offset+e.Len])
		case e.Base == expr.PayloadBaseNetworkHeader && e.Len == p.fam().size && e.Offset == p.fam().saddr:
			m.set(e.DestRegister, p.src.AsSlice())
		case e.Base == expr.PayloadBaseNetworkHeader && e.Len == p.fam().size && e.Offset == p.fam().daddr:
			m.set(e.DestRegister, p.dst.AsSlice())
		default:
			// Of another family's packet: no rule may even look.
			panic(fmt.Sprintf("%+v of a packet from %v", e, p.src))
		}
	case *expr.Bitwise:
		data := slices.Clone(m.get(e.SourceRegister, int(e.Len)))
		for i := range data {
			data[i] = data[i]&e.Mask[i] ^ e.Xor[i]
		}
		m.set(e.DestRegister, data)
	case *expr.Fib:
		m.set(e.Register, nativeU32(p.addrType))
	case *expr.Cmp:
		return nil, bytes.Equal(m.get(e.Register, len(e.Data)), e.Data) == (e.Op == expr.CmpOpEq)
	case *expr.Lookup:
		s := m.sets[e.SetName]
		return nil, s.has(m.get(e.SourceRegister, int(s.set.KeyType.Bytes))) != e.Invert
	case *expr.Objref:
		m.out.reason = Reason(e.Name)
	case *expr.Notrack:
		m.out.notrack = true
	case *expr.Limit, *expr.Log:
	case *expr.Verdict:
		return e, true
	default:
		panic(fmt.Sprintf("%T", e))
	}
	return nil, true
}

// genRuleset draws zones and remotes that do not overlap, with gateways inside and outside.
func genRuleset(t *rapid.T) *ruleset {
	prefixes := rapid.SliceOfN(rapid.OneOf(genPrefix(false), genPrefix(true)), 0, 12).Draw(t, "prefixes")
	s := State{TunName: tunName, UDPPorts: []uint16{4500, 500, 500}}
	s.Zones = []Zone{{Name: "a", Interfaces: []string{"lan0"}}, {Name: "b", Interfaces: []string{"dmz0", "dmz1"}}, {Name: "c", Interfaces: []string{"lan0"}}}
	for _, p := range prefixes {
		where := rapid.IntRange(-3, len(s.Zones)-1).Draw(t, "where")
		with := State{TunName: tunName, Zones: slices.Clone(s.Zones), Remotes: append(slices.Clone(s.Remotes), p)}
		if where >= 0 {
			with.Remotes = s.Remotes
			with.Zones[where].Prefixes = append(slices.Clone(s.Zones[where].Prefixes), p)
		}
		if with.Validate() == nil {
			s.Zones, s.Remotes = with.Zones, with.Remotes
		}
	}
	for _, p := range s.Remotes {
		if rapid.Bool().Draw(t, "gateway") {
			s.Gateways = append(s.Gateways, lastOf(p.Masked()))
		}
	}
	if len(prefixes) > 0 {
		s.Gateways = append(s.Gateways, prefixes[0].Addr())
	}
	draw := func(what string, names ...string) []string {
		return names[:rapid.IntRange(0, len(names)).Draw(t, what)]
	}
	return &ruleset{
		state: s, locked: rapid.IntRange(0, 4).Draw(t, "locked") == 0, allOnly6: rapid.Bool().Draw(t, "allOnly6"),
		vpnOnly4: draw("vpnOnly4", "lan0", "dmz0"), vpnOnly6: draw("vpnOnly6", "dmz0", "lan0"),
	}
}

// probes makes packets of which many touch the edges of the sets.
func probes(rs *ruleset, rnd *rand.Rand, n int) []*probe {
	one := func(of ...byte) byte { return of[rnd.IntN(len(of))] }
	name := func(of ...string) string { return of[rnd.IntN(len(of))] }
	var edges [2][]netip.Addr
	edge := func(a netip.Addr) {
		if a.Is4() {
			edges[0] = append(edges[0], a)
		} else if a.IsValid() {
			edges[1] = append(edges[1], a)
		}
	}
	all := slices.Clone(rs.state.Remotes)
	for _, z := range rs.state.Zones {
		all = append(all, z.Prefixes...)
	}
	for _, p := range all {
		first, last := p.Masked().Addr(), lastOf(p.Masked())
		for _, a := range []netip.Addr{first, first.Prev(), first.Next(), last, last.Prev(), last.Next()} {
			edge(a)
		}
	}
	for _, g := range slices.Concat(rs.state.Gateways, rs.state.Gateways) {
		edge(g)
	}
	addr := func(v6 int) netip.Addr {
		if n := len(edges[v6]); n > 0 && rnd.IntN(8) > 0 {
			return edges[v6][rnd.IntN(n)]
		}
		a := make([]byte, 4+12*v6)
		for i := range a {
			a[i] = one(0, 1, 127, 128, 255)
		}
		out, _ := netip.AddrFromSlice(a)
		return out
	}
	var out []*probe
	for range n {
		v6 := rnd.IntN(2)
		p := &probe{hook: ourHooks()[rnd.IntN(5)], src: addr(v6), dst: addr(v6), noL4: rnd.IntN(8) == 0}
		// Names that begin alike, and none: the router's own packets.
		in := name(tunName, "lan0", "dmz0", "dmz1", "lan1", "wan0", tunName+"0", "")
		outName := name(tunName, "lan0", "dmz0", "dmz1", "lan1", "wan0", tunName+"0")
		switch p.hook {
		case hookPrerouting, hookInput:
			p.iif = in
		case hookOutput:
			p.oif = outName
		default:
			p.iif, p.oif = in, outName
		}
		p.mark = []uint32{0, DefaultMark, DefaultMark, DefaultMark + 1}[rnd.IntN(4)]
		p.addrType = uint32(one(unix.RTN_LOCAL, unix.RTN_UNICAST, unix.RTN_MULTICAST))
		p.proto = one(unix.IPPROTO_UDP, unix.IPPROTO_UDP, unix.IPPROTO_TCP, unix.IPPROTO_ESP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6)
		switch p.proto {
		case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
			p.l4[0] = one(0, 1, 2, 3, 4, 5, 8, 11, 12, 128, 135, 136, 137)
		default:
			for i := range 2 {
				port := []uint16{500, 4500, 22}[rnd.IntN(3)]
				binary.BigEndian.PutUint16(p.l4[2*i:], port)
			}
		}
		out = append(out, p)
	}
	return out
}

// TestRulesAgainstModel: whatever the sets and the packet, the rules refuse, count and take out of
// connection tracking what the model does.
func TestRulesAgainstModel(t *testing.T) {
	seen := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		rs := genRuleset(t)
		want, err := newMachine(rs, fillModel)
		if err != nil {
			t.Fatal(err)
		}
		lengths := rapid.SampledFrom([]int{maxLengths, 2, 0, -1, 200}).Draw(t, "lengths")
		got, err := newMachine(rs, func(b *builder, rs *ruleset) {
			b.lengths = lengths
			b.fill(rs)
		})
		if err != nil {
			t.Fatal(err)
		}
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)) //nolint:gosec // reproducible
		for _, p := range probes(rs, rnd, 500) {
			w, g := want.run(p), got.run(p)
			if w != g {
				t.Fatalf("at %s: %+v\ngot  %+v\nwant %+v\nrules for %+v", p.hook.name, p, g, w, rs)
			}
			seen[fmt.Sprintf("%s %+v", p.hook.name, w)]++
			if slices.Contains(rs.state.Gateways, p.src) && within(p.src, rs.state.Remotes) ||
				slices.Contains(rs.state.Gateways, p.dst) && within(p.dst, rs.state.Remotes) {
				seen[fmt.Sprintf("%s gateway %+v", p.hook.name, w)]++
			}
		}
	})
	// The draws must have touched everything, or the comparison says little.
	pass, quiet, vpn := outcome{}, outcome{dropped: true}, outcome{notrack: true}
	why := func(r Reason) outcome { return outcome{dropped: true, reason: r} }
	for at, outs := range map[string][]outcome{
		"prerouting": {
			pass, vpn, why(ReasonTunnelSource), why(ReasonRelay), why(ReasonTunnelToOther), why(ReasonSpoofed),
			why(ReasonNotFromZone), why(ReasonLocked),
		},
		"input": {pass, why(ReasonTunnelToRouter), why(ReasonSpoofed), why(ReasonDiverted), why(ReasonLocked)},
		"forward": {
			pass, why(ReasonRelay), why(ReasonTunnelToOther), why(ReasonNotFromZone), why(ReasonClearLeak),
			why(ReasonSpoofed), why(ReasonNotARouter), why(ReasonLocked),
		},
		"output": {pass, quiet, why(ReasonFromRouter), why(ReasonLocked)},
		"postrouting": {
			pass, why(ReasonRelay), why(ReasonNotFromZone), why(ReasonClearLeak), why(ReasonSpoofed),
			why(ReasonTunnelToOther), why(ReasonLocked),
		},
		"prerouting gateway": {pass, why(ReasonSpoofed)}, "input gateway": {pass, why(ReasonSpoofed)},
		"output gateway": {pass, why(ReasonFromRouter)}, "postrouting gateway": {pass, why(ReasonClearLeak)},
	} {
		for _, o := range outs {
			if seen[fmt.Sprintf("%s %+v", at, o)] == 0 {
				t.Errorf("no packet was drawn with %s %+v", at, o)
			}
		}
	}
}

// TestShortWay: the packets that come in great numbers pass few expressions. A number that grows
// is paid for by every packet: see BenchmarkRules.
func TestShortWay(t *testing.T) {
	rs := &ruleset{state: (&lab{}).state()}
	old, err := newMachine(rs, fillModel)
	if err != nil {
		t.Fatal(err)
	}
	now, err := newMachine(rs, (*builder).fill)
	if err != nil {
		t.Fatal(err)
	}
	in, out := []hook{hookPrerouting, hookForward, hookPostrouting}, []hook{hookPrerouting, hookInput}
	for _, c := range []struct {
		name     string
		hooks    []hook
		p        probe
		most     int
		untracks bool
	}{
		{"LAN to TUN", in, probe{src: netip.MustParseAddr("10.1.1.10"), dst: netip.MustParseAddr("10.2.1.9"), iif: "lan0", oif: tunName}, 38, true},
		{"LAN to TUN, IPv6", in, probe{src: netip.MustParseAddr("fd00:1:1::10"), dst: netip.MustParseAddr("fd00:2:1::9"), iif: "lan0", oif: tunName}, 43, true},
		{"TUN to LAN", in, probe{src: netip.MustParseAddr("10.2.1.9"), dst: netip.MustParseAddr("10.1.1.10"), iif: tunName, oif: "lan0"}, 41, true},
		{"TUN to LAN, IPv6", in, probe{src: netip.MustParseAddr("fd00:2:1::9"), dst: netip.MustParseAddr("fd00:1:1::10"), iif: tunName, oif: "lan0"}, 46, true},
		{"outer in", out, probe{src: netip.MustParseAddr("203.0.113.2"), dst: netip.MustParseAddr("198.51.100.1"), iif: "wan0", proto: unix.IPPROTO_UDP}, 28, false},
		{"outer out", []hook{hookOutput, hookPostrouting}, probe{src: netip.MustParseAddr("198.51.100.1"), dst: netip.MustParseAddr("203.0.113.2"), oif: "wan0", proto: unix.IPPROTO_UDP, mark: DefaultMark}, 25, false},
	} {
		cost, was := 0, 0
		for _, h := range c.hooks {
			p := c.p
			p.hook = h
			switch h {
			case hookPrerouting, hookInput:
				p.oif = ""
			}
			want := outcome{notrack: c.untracks && h == hookPrerouting}
			for m, sum := range map[*machine]*int{now: &cost, old: &was} {
				if o := m.run(&p); o != want {
					t.Errorf("%s at %s: %+v, want %+v", c.name, h.name, o, want)
				}
				*sum += m.cost
			}
		}
		t.Logf("%s: %d expressions, the model %d", c.name, cost, was)
		if cost > c.most {
			t.Errorf("%s passes %d expressions, want at most %d", c.name, cost, c.most)
		}
	}
}
