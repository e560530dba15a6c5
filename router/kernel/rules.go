package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names of sets; those of addresses exist as …4 and …6.
const (
	setRemote  = "remote"  // all remote facilities' addresses
	setLocal   = "local"   // all zones' addresses
	setZone    = "zone"    // zones' addresses with the interface where they are found
	setGateway = "gateway" // peers' outer addresses inside a remote prefix
	setPorts   = "ike-ports"
	setVPNOnly = "vpn-only" // interfaces that forward only because we switched it on
	chainGate  = "gate"     // empty, or the rules of Lockdown
	chainUndo  = "undo"     // not hooked: comments that say what Remove has to restore
)

// Samples of refused packets for the NFLOG group: per reason.
const (
	sampleRate  = 20 // per second
	sampleBurst = 50
	sampleBytes = 128 // IPv6 header, some extension headers, and the ports
)

// Priorities. Before everything that looks at a packet: raw (-300) and defragmentation (-400,
// which skips untracked packets), so that nobody has rewritten or stolen it. After everything
// that may rewrite: srcnat is 100, the last one that the kernel itself uses is
// conntrack-confirm at the highest possible number; administrators use up to 300.
var (
	prioFirst nftables.ChainPriority = -450
	prioLast  nftables.ChainPriority = 400
)

// ruleset is all that the table depends on.
type ruleset struct {
	state    State
	locked   bool
	vpnOnly4 []string // interfaces
	vpnOnly6 []string
	allOnly6 bool // IPv6 forwarding could be switched on for all interfaces at once only
	undo     []string
	counters map[Reason]Counter
}

// install replaces the table in one transaction: packets see the old rules or the new ones.
func (k *Kernel) install(rs *ruleset) error {
	conn, err := k.newConn()
	if err != nil {
		return fmt.Errorf("kernel: nftables connection: %w", err)
	}
	t := k.table()
	// "add" makes the following "delete" succeed where there is no table yet.
	conn.AddTable(t)
	conn.DelTable(t)
	conn.AddTable(t)
	b := &builder{conn: conn, table: t, sets: map[string]*nftables.Set{}, tun: ifName(rs.state.TunName), log: k.opt.LogGroup, mark: k.opt.Mark}
	b.fill(rs)
	if b.err != nil {
		return b.err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("kernel: installing nftables table inet %s: %w", t.Name, hintNft(err))
	}
	return nil
}

func (b *builder) fill(rs *ruleset) {
	s := &rs.state
	for _, r := range Reasons() {
		c := rs.counters[r]
		b.conn.AddObj(&nftables.NamedObj{
			Table: b.table, Name: string(r), Type: nftables.ObjTypeCounter,
			Obj: &expr.Counter{Packets: c.Packets, Bytes: c.Bytes},
		})
	}
	var local []netip.Prefix
	for _, z := range s.Zones {
		local = append(local, z.Prefixes...)
	}
	remotes := minimal(s.Remotes)
	var gateways []netip.Addr
	for _, g := range s.Gateways {
		if within(g, remotes) && !slices.Contains(gateways, g) {
			gateways = append(gateways, g)
		}
	}
	for _, f := range fams {
		b.addSpans(f, setRemote, spans(remotes, f.v6))
		b.addSpans(f, setLocal, spans(local, f.v6))
		b.addZonePairs(f, s.Zones)
		b.addAddrs(f, setGateway, gateways)
	}
	ports := slices.Clone(s.UDPPorts)
	slices.Sort(ports)
	b.addPorts(setPorts, slices.Compact(ports))
	b.addIfNames(setVPNOnly+"4", rs.vpnOnly4)
	b.addIfNames(setVPNOnly+"6", rs.vpnOnly6)

	for _, r := range Reasons() {
		c := b.chain(refuseChain(r))
		// Two rules: the rate limit holds for the copy only, never for the drop.
		b.rule(c, b.sample(r))
		b.rule(c, count(r), drop())
	}
	gate := b.chain(chainGate)
	if rs.locked {
		b.lock(gate)
	}
	undo := b.chain(chainUndo)
	for _, u := range rs.undo {
		b.note(undo, u)
	}
	b.prerouting()
	b.input()
	b.forward(rs)
	b.output()
	b.postrouting()
}

// lock fills the gate: nothing enters or leaves the TUN device.
func (b *builder) lock(gate *nftables.Chain) {
	b.rule(gate, iif(b.tun, true), refuse(ReasonLocked))
	b.rule(gate, oif(b.tun, true), refuse(ReasonLocked))
}

// prerouting sees every packet that arrives, before connection tracking, NAT, transparent
// proxies and routing.
func (b *builder) prerouting() {
	c := b.base("prerouting", nftables.ChainHookPrerouting, prioFirst)
	b.rule(c, jump(chainGate))
	fromTun, notTun := iif(b.tun, true), iif(b.tun, false)
	for _, f := range fams {
		// Out of a tunnel: from a remote facility, to a zone, and nothing else.
		b.rule(c, fromTun, b.in(f, f.saddr, setRemote, false), refuse(ReasonTunnelSource))
		b.rule(c, fromTun, b.in(f, f.daddr, setRemote, true), refuse(ReasonRelay))
		b.rule(c, fromTun, b.in(f, f.daddr, setLocal, false), refuse(ReasonTunnelToOther))
	}
	b.rule(c, fromTun, notrack(), accept())

	for _, f := range fams {
		// A peer whose gateway has one of its own facility's addresses: ESP and IKE to the
		// router itself. Ports are checked at input, where fragments are whole again.
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

// input sees what is for the router itself.
func (b *builder) input() {
	c := b.base("input", nftables.ChainHookInput, prioLast)
	b.rule(c, jump(chainGate))
	b.rule(c, iif(b.tun, true), refuse(ReasonTunnelToRouter))
	for _, f := range fams {
		fromGateway := b.in(f, f.saddr, setGateway, true)
		b.rule(c, fromGateway, l4proto(unix.IPPROTO_ESP), accept())
		b.rule(c, fromGateway, b.udpPort(2), accept())
		// Of ICMP the errors, what the gateway says about our IKE and ESP packets (their size),
		// and, should it be on our own link, neighbour discovery.
		for _, typ := range slices.Concat(f.icmpErrors, f.neighbour) {
			b.rule(c, fromGateway, icmpType(f.icmp, typ), accept())
		}
		b.rule(c, b.in(f, f.saddr, setRemote, true), refuse(ReasonSpoofed))
		b.rule(c, b.in(f, f.daddr, setRemote, true), refuse(ReasonDiverted))
	}
}

// forward sees what passes through, with the interface that routing chose.
func (b *builder) forward(rs *ruleset) {
	c := b.base("forward", nftables.ChainHookForward, prioLast)
	b.rule(c, jump(chainGate))
	fromTun, toTun := iif(b.tun, true), oif(b.tun, true)
	b.rule(c, fromTun, toTun, refuse(ReasonRelay))
	for _, f := range fams {
		b.rule(c, fromTun, b.pair(f, f.daddr, expr.MetaKeyOIFNAME), accept())
		b.rule(c, toTun, b.pair(f, f.saddr, expr.MetaKeyIIFNAME), accept())
	}
	b.rule(c, fromTun, refuse(ReasonTunnelToOther))
	b.rule(c, toTun, refuse(ReasonNotFromZone))
	// From here on neither end is the TUN device.
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

// output sees what the router itself sends.
func (b *builder) output() {
	c := b.base("output", nftables.ChainHookOutput, prioLast)
	toTun := oif(b.tun, true)
	// The kernel's own multicast chatter on every device that is up; nobody's attempt.
	b.rule(c, toTun, match{
		&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: nativeU32(unix.RTN_MULTICAST)},
	}, drop())
	// Its answers to packets that it refused or could not deliver (redirect, unreachable, ...):
	// the packet itself was counted. Neither rule has a counter, which would change the listing
	// by which Watch recognises our rules.
	for _, f := range fams {
		for _, typ := range append(slices.Clone(f.icmpErrors), f.redirect) {
			b.rule(c, toTun, f.is(), icmpType(f.icmp, typ), drop())
		}
	}
	b.rule(c, jump(chainGate))
	b.rule(c, toTun, refuse(ReasonFromRouter))
	for _, f := range fams {
		b.toGateway(c, f)
		b.rule(c, b.in(f, f.daddr, setRemote, true), refuse(ReasonFromRouter))
	}
}

// postrouting sees everything that leaves, as it leaves: after NAT, and with the interface of
// the last routing decision (an output rule that sets a mark can change it after "output").
func (b *builder) postrouting() {
	c := b.base("postrouting", nftables.ChainHookPostrouting, prioLast)
	b.rule(c, jump(chainGate))
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

// toGateway lets the daemon's own IKE and ESP packets out to a gateway inside a remote prefix:
// those that carry our mark, so no other program on the router may use the gap. The kernel's
// neighbour discovery, which has no mark, goes to a gateway on our own link.
func (b *builder) toGateway(c *nftables.Chain, f fam) {
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

// counters reads the named counters; an empty map where there is no table.
func (k *Kernel) counters() (map[Reason]Counter, error) {
	conn, err := k.newConn()
	if err != nil {
		return nil, fmt.Errorf("kernel: nftables connection: %w", err)
	}
	objs, err := conn.GetNamedObjects(k.table())
	if err != nil {
		if notFound(err) {
			return map[Reason]Counter{}, nil
		}
		return nil, fmt.Errorf("kernel: reading the counters of table inet %s: %w", k.opt.TableName, err)
	}
	out := make(map[Reason]Counter)
	for _, o := range objs {
		if n, ok := o.(*nftables.NamedObj); ok {
			if c, ok := n.Obj.(*expr.Counter); ok {
				out[Reason(n.Name)] = Counter{Packets: c.Packets, Bytes: c.Bytes}
			}
		}
	}
	return out, nil
}

// undoNotes reads what the table says about how things were before us; nil without a table.
func (k *Kernel) undoNotes() ([]string, error) {
	conn, err := k.newConn()
	if err != nil {
		return nil, fmt.Errorf("kernel: nftables connection: %w", err)
	}
	t := k.table()
	rules, err := conn.GetRules(t, &nftables.Chain{Table: t, Name: chainUndo})
	if err != nil {
		if notFound(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("kernel: reading table inet %s: %w", t.Name, err)
	}
	var out []string
	for _, r := range rules {
		if c, ok := comment(r.UserData); ok {
			out = append(out, c)
		}
	}
	return out, nil
}

// haveTable says whether our table is in the kernel.
func (k *Kernel) haveTable() (bool, error) {
	conn, err := k.newConn()
	if err != nil {
		return false, fmt.Errorf("kernel: nftables connection: %w", err)
	}
	ts, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("kernel: listing nftables tables: %w", hintNft(err))
	}
	return slices.ContainsFunc(ts, func(t *nftables.Table) bool { return t.Name == k.opt.TableName }), nil
}

// lockTable shuts the gate of a table whose other content is not known to this process.
func (k *Kernel) lockTable(tun string) error {
	conn, err := k.newConn()
	if err != nil {
		return fmt.Errorf("kernel: nftables connection: %w", err)
	}
	b := &builder{conn: conn, table: k.table(), tun: ifName(tun)}
	gate := &nftables.Chain{Table: b.table, Name: chainGate}
	conn.FlushChain(gate)
	b.lock(gate)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("kernel: shutting the gate of table inet %s: %w", k.opt.TableName, hintNft(err))
	}
	return nil
}

func (k *Kernel) removeTable() error {
	conn, err := k.newConn()
	if err != nil {
		return fmt.Errorf("kernel: nftables connection: %w", err)
	}
	conn.AddTable(k.table())
	conn.DelTable(k.table())
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("kernel: removing nftables table inet %s: %w", k.opt.TableName, hintNft(err))
	}
	return nil
}

// hintNft says what is usually behind an error of nftables.
func hintNft(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (the daemon needs CAP_NET_ADMIN)", err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("%w (the kernel lacks nftables or one of its modules nft_fib_inet, nft_ct, nft_log, nft_limit: Linux 5.10 or newer is needed)", err)
	}
	return err
}
