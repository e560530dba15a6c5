package kernel

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
)

// DefaultTunName is the TUN device that Lockdown shuts where no state was ever applied.
const DefaultTunName = "wardgate0"

// Kernel is the Controller of one network namespace. Its methods may be called concurrently.
type Kernel struct {
	opt    Options
	have6  bool // the kernel has IPv6
	force6 bool // and can forward it per interface

	mu             sync.Mutex // guards all below, and the order of changes
	nl             *netlink.Handle
	closed         bool
	state          *State // what was applied last; nil before
	locked         bool
	rules          *ruleset // what was installed last, without counters; nil before
	print          fingerprint
	warned         map[string]bool // missing interfaces that were logged
	refusedOffload map[string]bool // features that could not be switched, logged
}

var _ Controller = (*Kernel)(nil)

// Open checks that nftables can be used and returns a Kernel. Nothing is changed yet. The error
// says what is missing (CAP_NET_ADMIN, nftables).
func Open(opt Options) (*Kernel, error) {
	if opt.TableName == "" {
		opt.TableName = DefaultTableName
	}
	if opt.TunName == "" {
		opt.TunName = DefaultTunName
	}
	for _, d := range []struct {
		v   *int
		def int
	}{{&opt.RouteTable, DefaultRouteTable}, {&opt.RulePriority, DefaultRulePriority}, {&opt.RouteProtocol, DefaultRouteProtocol}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if opt.Mark == 0 {
		opt.Mark = DefaultMark
	}
	if opt.LogGroup == 0 {
		opt.LogGroup = DefaultLogGroup
	}
	if opt.Log == nil {
		opt.Log = func(string, ...any) {}
	}
	k := &Kernel{opt: opt, warned: map[string]bool{}, refusedOffload: map[string]bool{}}
	err := inNS(opt.NetNS, func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return fmt.Errorf("kernel: opening a netlink socket: %w", err)
		}
		k.nl = h
		_, err = os.Stat("/proc/sys/net/ipv6/conf/all/forwarding")
		k.have6 = err == nil
		_, err = os.Stat("/proc/sys/net/ipv6/conf/all/" + keyForceForwarding)
		k.force6 = err == nil && !opt.noForce6
		return nil
	})
	if err != nil {
		return nil, err
	}
	if _, err := k.haveTable(); err != nil {
		k.nl.Close()
		return nil, err
	}
	return k, nil
}

// Close ends the use of k; what is in the kernel stays, which is the point of it.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.closed = true
		k.nl.Close()
	}
	return nil
}

// Apply makes the kernel hold exactly this state, and ends a Lockdown. It is idempotent, and the
// nftables part is one transaction: where it fails nothing was changed, and where a later part
// fails (the error says which) the new rules hold already, so that nothing is open that should be
// shut; Apply may be called again. A TUN device or zone interface that does not exist yet is no
// error: Watch completes the work when it appears. The error wraps ErrState where the state
// itself is refused.
func (k *Kernel) Apply(s State) error {
	if err := s.Validate(); err != nil {
		return err
	}
	s = s.clone()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return ErrClosed
	}
	k.state, k.locked = &s, false
	_, err := k.sync()
	return err
}

// Lockdown shuts every way between zones and tunnels: routes into the TUN device go, and no
// packet enters or leaves it. What is known about remote prefixes, from this process or an
// earlier one, stays, so their traffic still does not leave in the clear. Apply ends it.
func (k *Kernel) Lockdown() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return ErrClosed
	}
	k.locked = true
	_, err := k.sync()
	return err
}

// Remove takes away everything that belongs to us: routes, rules, the nftables table, and the
// forwarding that we switched on. The TUN device is the daemon's and stays. It goes on after an
// error and returns all of them.
func (k *Kernel) Remove() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return ErrClosed
	}
	k.state, k.rules, k.locked, k.print = nil, nil, false, fingerprint{}
	var errs []error
	notes, err := k.undoNotes()
	errs = append(errs, err)
	var undo []sysctl
	for _, n := range notes {
		if s, ok := parseSysctl(n); ok {
			undo = append(undo, s)
		}
	}
	var offloads offloadPlan
	for _, n := range notes {
		if o, ok := parseOffload(n); ok {
			offloads.off = append(offloads.off, o)
		}
	}
	k.switchOffloads(offloads)
	// Forwarding goes before the walls do.
	errs = append(errs, k.restore(undo))
	_, err = k.syncRoutes(nil, 0)
	errs = append(errs, err, k.removeRules(), k.removeTable())
	return errors.Join(errs...)
}

// Counters reads how many packets were refused for which reason since the table was made;
// Apply keeps the numbers. All reasons are present.
func (k *Kernel) Counters() (map[Reason]Counter, error) {
	have, err := k.counters()
	if err != nil {
		return nil, err
	}
	out := make(map[Reason]Counter, len(have))
	for _, r := range Reasons() {
		out[r] = have[r]
	}
	return out, nil
}

// sync brings the kernel to what is wanted and returns what it had to change.
// Called with k.mu held.
func (k *Kernel) sync() ([]string, error) {
	if k.state == nil {
		return k.syncLocked()
	}
	s := k.state
	var changes []string
	did := func(n int, what string) {
		if n > 0 {
			changes = append(changes, what)
		}
	}
	notes, err := k.undoNotes()
	if err != nil {
		return nil, err
	}
	plan, err := k.planForwarding(s, notes)
	if err != nil {
		return nil, err
	}
	for _, ifn := range plan.missing {
		if !k.warned[ifn] {
			k.opt.Log("zone interface does not exist yet", "interface", ifn)
			k.warned[ifn] = true
		}
	}
	for ifn := range k.warned {
		if !slices.Contains(plan.missing, ifn) {
			delete(k.warned, ifn)
			changes = append(changes, "interface "+ifn)
		}
	}
	rs := &ruleset{
		state:    *s,
		locked:   k.locked,
		vpnOnly4: vpnOnly(plan.undo, "ipv4/conf/", keyForwarding),
		vpnOnly6: vpnOnly(plan.undo, "ipv6/conf/", keyForceForwarding),
		allOnly6: slices.ContainsFunc(plan.undo, func(u sysctl) bool { return u.name == all6Forwarding }),
	}
	for _, u := range plan.undo {
		rs.undo = append(rs.undo, u.String())
	}
	offloads := k.planOffloads(s, notes)
	for _, o := range offloads.undo {
		rs.undo = append(rs.undo, o.String())
	}
	// The walls first, so that at no moment a route or forwarding is there without them.
	n, err := k.syncTable(rs)
	if err != nil {
		return changes, err
	}
	did(n, "nftables table")
	if n, err = k.syncRules(); err != nil {
		return changes, err
	}
	did(n, "ip rule")
	link, n, err := k.syncLink(s)
	if err != nil {
		return changes, err
	}
	did(n, "TUN device")
	if k.locked {
		link = 0
	}
	if n, err = k.syncRoutes(s.Remotes, link); err != nil {
		return changes, err
	}
	did(n, fmt.Sprintf("routes (%d)", n))
	for _, v := range plan.set {
		if err := k.sysctlSet(v.name, v.value); err != nil && !errors.Is(err, os.ErrNotExist) {
			return changes, err
		}
	}
	did(len(plan.set), "forwarding")
	if err := k.restore(plan.restore); err != nil {
		return changes, err
	}
	did(k.switchOffloads(offloads), "offload")
	if len(changes) > 0 {
		k.opt.Log("kernel state set", "changed", strings.Join(changes, ", "), "locked", k.locked)
	}
	return changes, nil
}

// syncLocked is sync for a process that was never given a state: Lockdown after a start without
// a valid policy. The table of an earlier process is kept and its gate shut; where there is
// none, one is made that shuts the TUN device.
func (k *Kernel) syncLocked() ([]string, error) {
	if !k.locked {
		return nil, nil
	}
	have, err := k.haveTable()
	if err != nil {
		return nil, err
	}
	if have {
		same, err := k.print.holds(k)
		if err != nil {
			return nil, err
		}
		if same {
			return nil, nil
		}
		err = k.lockTable(k.opt.TunName)
		if err == nil {
			if err := k.dropTunRoutes(); err != nil {
				return nil, err
			}
			k.print, err = k.takeFingerprint()
			return []string{"nftables table"}, err
		}
		if !notFound(err) {
			return nil, err
		}
		// A table without a gate is not one of ours, or of another version: make it anew.
	}
	// The unreachable routes of an earlier process tell what its table knew of remote prefixes.
	routes, err := k.ourRoutes()
	if err != nil {
		return nil, err
	}
	s := State{TunName: k.opt.TunName}
	for r := range routes {
		s.Remotes = append(s.Remotes, r.dst)
	}
	s.Remotes = minimal(s.Remotes)
	n, err := k.syncTable(&ruleset{state: s, locked: true})
	if err != nil || n == 0 {
		return nil, err
	}
	return []string{"nftables table"}, k.dropTunRoutes()
}

// dropTunRoutes removes our routes into the TUN device and keeps the unreachable ones.
func (k *Kernel) dropTunRoutes() error {
	have, err := k.ourRoutes()
	if err != nil {
		return err
	}
	for r := range have {
		if r.link == 0 {
			continue
		}
		if err := k.nl.RouteDel(r.netlink(k)); err != nil {
			return fmt.Errorf("kernel: removing route %s: %w", r, err)
		}
	}
	return nil
}

// syncTable installs the rules unless they are in the kernel already, unaltered.
func (k *Kernel) syncTable(rs *ruleset) (int, error) {
	if k.rules != nil && reflect.DeepEqual(k.rules, rs) {
		same, err := k.print.holds(k)
		if err != nil {
			return 0, err
		}
		if same {
			return 0, nil
		}
	}
	counters, err := k.counters()
	if err != nil {
		return 0, err
	}
	with := *rs
	with.counters = counters
	if err := k.install(&with); err != nil {
		return 0, err
	}
	k.rules = rs
	k.print, err = k.takeFingerprint()
	return 1, err
}

// clone copies the slices, so that the caller may go on using his.
func (s State) clone() State {
	s.Zones = slices.Clone(s.Zones)
	for i := range s.Zones {
		s.Zones[i].Prefixes = slices.Clone(s.Zones[i].Prefixes)
		s.Zones[i].Interfaces = slices.Clone(s.Zones[i].Interfaces)
	}
	s.Remotes = slices.Clone(s.Remotes)
	s.Gateways = slices.Clone(s.Gateways)
	s.UDPPorts = slices.Clone(s.UDPPorts)
	return s
}
