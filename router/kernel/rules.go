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

// Names of sets; those of addresses exist as …4 and …6, see addresses.go.
const (
	setRemote   = "remote"  // all remote facilities' addresses
	setLocal    = "local"   // all zones' addresses
	setZone     = "zone"    // zones' addresses with the interface where they are found
	setGateway  = "gateway" // peers' outer addresses inside a remote prefix
	setPorts    = "ike-ports"
	setVPNOnly  = "vpn-only" // interfaces that forward only because we switched it on
	chainUndo   = "undo"     // not hooked: comments that say what Remove has to restore
	chainLocked = "locked-"  // and a hook's name: the rules of Lockdown, which are there only then
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
const (
	prioFirst nftables.ChainPriority = -450
	prioLast  nftables.ChainPriority = 400
)

// hook is a place where packets meet our rules.
type hook struct {
	name string
	hook *nftables.ChainHook
	prio nftables.ChainPriority
}

var (
	hookPrerouting  = hook{"prerouting", nftables.ChainHookPrerouting, prioFirst}
	hookInput       = hook{"input", nftables.ChainHookInput, prioLast}
	hookForward     = hook{"forward", nftables.ChainHookForward, prioLast}
	hookOutput      = hook{"output", nftables.ChainHookOutput, prioLast}
	hookPostrouting = hook{"postrouting", nftables.ChainHookPostrouting, prioLast}
)

func ourHooks() []hook {
	return []hook{hookPrerouting, hookInput, hookForward, hookOutput, hookPostrouting}
}

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
	b := newBuilder(conn, t, rs.state.TunName)
	b.log, b.mark = k.opt.LogGroup, k.opt.Mark
	b.fill(rs)
	if b.err != nil {
		return b.err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("kernel: installing nftables table inet %s: %w", t.Name, hintNft(err))
	}
	return nil
}

// fill makes everything that is in the table.
//
// Every packet pays for every expression that it passes, so the order is: is the TUN device in it
// (a name is the dearest thing to compare, so once), the family, and then only what can matter
// still. It leans on what Validate and sets see to: a zone's prefix and a remote one never
// overlap, no zone has the TUN device as its interface, and every gateway of the set lies inside a
// remote prefix. So a packet from a zone's address is none from a remote one, and gateways need a
// look only where an address is remote. What must come out is written down in order in the tests'
// model (model_test.go), and both are compared there.
func (b *builder) fill(rs *ruleset) {
	b.common(rs)
	if rs.locked {
		b.lockdown()
	}
	b.shared()
	b.prerouting()
	b.input()
	b.forward(rs)
	b.output()
	b.postrouting()
}

// common makes the counters, the sets, the chains of refusal and the notes.
func (b *builder) common(rs *ruleset) {
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
	var gateways []netip.Prefix
	for _, g := range s.Gateways {
		if within(g, remotes) {
			gateways = append(gateways, netip.PrefixFrom(g, g.BitLen()))
		}
	}
	for _, f := range fams {
		b.addPrefixes(f, setRemote, remotes)
		b.addPrefixes(f, setLocal, local)
		b.addPrefixes(f, setGateway, gateways)
		b.addZonePairs(f, s.Zones)
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
	undo := b.chain(chainUndo)
	for _, u := range rs.undo {
		b.note(undo, u)
	}
}

// Chains that more than one hook leads to. Each ends with a verdict: behind a goto there is
// no way back, and the end of a chain would let the packet pass.
const (
	chainIntoTunnel = "into-tunnel"
	chainFromTunnel = "from-tunnel"
)

// shared makes the chain of what would enter the TUN device.
func (b *builder) shared() {
	c := b.chain(chainIntoTunnel)
	for _, f := range fams {
		b.each(c, b.pair(f, f.saddr, expr.MetaKeyIIFNAME), accept())
	}
	b.rule(c, iif(b.tun, true), refuse(ReasonRelay))
	b.rule(c, refuse(ReasonNotFromZone))
}

// lockdown shuts the TUN device: nothing enters or leaves it. It has base chains of its own, each
// right before the one it goes before, so that packets pay for it only while it is there, and so
// that it can be put before a table whose content is not known.
func (b *builder) lockdown() {
	for _, h := range ourHooks() {
		c := b.base(chainLocked+h.name, h.hook, h.prio-1)
		b.flush(c)
		if h.hook == nftables.ChainHookOutput {
			b.chatter(c)
		}
		b.rule(c, iif(b.tun, true), refuse(ReasonLocked))
		b.rule(c, oif(b.tun, true), refuse(ReasonLocked))
	}
}

// prerouting sees every packet that arrives, before connection tracking, NAT, transparent
// proxies and routing.
func (b *builder) prerouting() {
	tunnel := b.chain(chainFromTunnel)
	b.families(tunnel, chainFromTunnel, func(c *nftables.Chain, f fam) {
		// Out of a tunnel: from a remote facility, to a zone, and nothing else.
		b.rule(c, b.notIn(f, f.saddr, setRemote), refuse(ReasonTunnelSource))
		b.each(c, b.in(f, f.daddr, setLocal), notrack(), accept())
		b.each(c, b.in(f, f.daddr, setRemote), refuse(ReasonRelay))
		b.rule(c, refuse(ReasonTunnelToOther))
	})
	c := b.hooked(hookPrerouting)
	b.rule(c, iif(b.tun, true), goTo(chainFromTunnel))
	b.families(c, "arriving", func(c *nftables.Chain, f fam) {
		// A peer whose gateway has one of its own facility's addresses: ESP and IKE to the
		// router itself. Ports are checked at input, where fragments are whole again.
		spoofed := b.except(f, f.saddr, "arriving-gateway", ReasonSpoofed, func(c *nftables.Chain) {
			for _, p := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_ESP, f.icmp} {
				b.rule(c, l4proto(p), toLocal(), accept())
			}
			for _, typ := range f.neighbour {
				b.rule(c, icmpType(f.icmp, typ), accept())
			}
		})
		toRemote := b.chain("to-remote" + f.suffix)
		b.each(toRemote, b.pair(f, f.saddr, expr.MetaKeyIIFNAME), notrack(), accept())
		b.each(toRemote, b.in(f, f.saddr, setRemote), spoofed)
		b.rule(toRemote, refuse(ReasonNotFromZone))

		b.each(c, b.in(f, f.daddr, setRemote), goTo(toRemote.Name))
		b.each(c, b.in(f, f.saddr, setRemote), spoofed)
	})
}

// input sees what is for the router itself.
func (b *builder) input() {
	c := b.hooked(hookInput)
	b.rule(c, iif(b.tun, true), refuse(ReasonTunnelToRouter))
	b.families(c, "input", func(c *nftables.Chain, f fam) {
		b.each(c, b.in(f, f.saddr, setRemote), b.except(f, f.saddr, "input-gateway", ReasonSpoofed, func(c *nftables.Chain) {
			b.rule(c, l4proto(unix.IPPROTO_ESP), accept())
			b.rule(c, b.udpPort(2), accept())
			// Of ICMP the errors, what the gateway says about our IKE and ESP packets (their
			// size), and, should it be on our own link, neighbour discovery.
			for _, typ := range slices.Concat(f.icmpErrors, f.neighbour) {
				b.rule(c, icmpType(f.icmp, typ), accept())
			}
		}))
		b.each(c, b.in(f, f.daddr, setRemote), refuse(ReasonDiverted))
	})
}

// forward sees what passes through, with the interface that routing chose.
func (b *builder) forward(rs *ruleset) {
	tunnel := b.chain("tunnel-forward")
	for _, f := range fams {
		b.each(tunnel, b.pair(f, f.daddr, expr.MetaKeyOIFNAME), accept())
	}
	b.rule(tunnel, refuse(ReasonTunnelToOther))
	c := b.hooked(hookForward)
	b.rule(c, oif(b.tun, true), goTo(chainIntoTunnel))
	b.rule(c, iif(b.tun, true), goTo(tunnel.Name))
	// From here on neither end is the TUN device.
	b.families(c, "forward", func(c *nftables.Chain, f fam) {
		b.each(c, b.in(f, f.daddr, setRemote), refuse(ReasonClearLeak))
		b.each(c, b.in(f, f.saddr, setRemote), refuse(ReasonSpoofed))
		if only := map[bool][]string{false: rs.vpnOnly4, true: rs.vpnOnly6}[f.v6]; len(only) > 0 {
			b.rule(c, b.ifIn(setVPNOnly+f.suffix), refuse(ReasonNotARouter))
		}
		if f.v6 && rs.allOnly6 {
			b.rule(c, refuse(ReasonNotARouter))
		}
	})
}

// output sees what the router itself sends.
func (b *builder) output() {
	tunnel := b.chain("router-to-tunnel")
	b.chatter(tunnel)
	b.rule(tunnel, refuse(ReasonFromRouter))
	c := b.hooked(hookOutput)
	b.rule(c, oif(b.tun, true), goTo(tunnel.Name))
	b.families(c, "output", func(c *nftables.Chain, f fam) {
		b.each(c, b.in(f, f.daddr, setRemote), b.toGateway(f, "output-gateway", ReasonFromRouter))
	})
}

// chatter drops what the kernel itself would send into the TUN device, without counting it.
func (b *builder) chatter(c *nftables.Chain) {
	toTun := oif(b.tun, true)
	// Multicast, as on every device that is up; nobody's attempt.
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
}

// postrouting sees everything that leaves, as it leaves: after NAT, and with the interface of
// the last routing decision (an output rule that sets a mark can change it after "output").
func (b *builder) postrouting() {
	leaks := map[string]match{}
	for _, f := range fams {
		leaks[f.suffix] = b.toGateway(f, "leaving-gateway", ReasonClearLeak)
	}
	leaving := func(c *nftables.Chain, f fam) {
		b.each(c, b.in(f, f.daddr, setRemote), leaks[f.suffix])
		b.each(c, b.in(f, f.saddr, setRemote), refuse(ReasonSpoofed))
	}
	tunnel := b.chain("tunnel-leaving")
	for _, f := range fams {
		b.each(tunnel, b.pair(f, f.daddr, expr.MetaKeyOIFNAME), accept())
	}
	for _, f := range fams {
		leaving(tunnel, f)
	}
	b.rule(tunnel, refuse(ReasonTunnelToOther))
	c := b.hooked(hookPostrouting)
	b.rule(c, oif(b.tun, true), goTo(chainIntoTunnel))
	b.rule(c, iif(b.tun, true), goTo(tunnel.Name))
	b.families(c, "leaving", leaving)
}

// toGateway is where a packet for a remote address goes that is about to leave in the clear. It
// lets the daemon's own IKE and ESP packets out to a gateway inside a remote prefix: those that
// carry our mark, so no other program on the router may use the gap. The kernel's neighbour
// discovery, which has no mark, goes to a gateway on our own link.
func (b *builder) toGateway(f fam, name string, r Reason) match {
	return b.except(f, f.daddr, name, r, func(c *nftables.Chain) {
		for _, typ := range f.neighbour {
			b.rule(c, icmpType(f.icmp, typ), accept())
		}
		b.rule(c, match{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: nativeU32(b.mark)},
		}, refuse(r))
		b.rule(c, l4proto(unix.IPPROTO_ESP), accept())
		b.rule(c, b.udpPort(0), accept())
	})
}

// except is a refusal with exceptions for gateways: the verdict of a packet whose address at off
// is remote. Where there is no gateway it is the refusal itself, else a chain that looks the
// address up once and holds the exceptions.
func (b *builder) except(f fam, off uint32, name string, r Reason, fill func(*nftables.Chain)) match {
	if b.empty(f, setGateway) {
		return refuse(r)
	}
	c := b.chain(name + f.suffix)
	b.rule(c, b.notIn(f, off, setGateway), refuse(r))
	fill(c)
	b.rule(c, refuse(r))
	return goTo(c.Name)
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

// lockTable shuts the TUN device in a table whose other content is not known to this process.
func (k *Kernel) lockTable(tun string) error {
	conn, err := k.newConn()
	if err != nil {
		return fmt.Errorf("kernel: nftables connection: %w", err)
	}
	newBuilder(conn, k.table(), tun).lockdown()
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("kernel: shutting the TUN device in table inet %s: %w", k.opt.TableName, hintNft(err))
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
