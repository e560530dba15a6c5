package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Metrics. The unreachable route of the same prefix is chosen when the one into the TUN device
// is gone, and so it needs nobody alive to take over.
const (
	metricTun         = 100
	metricUnreachable = 10000
)

// dumpTries is how often a listing is repeated that was disturbed by a change.
const dumpTries = 5

// routeKey is what distinguishes our routes from one another.
type routeKey struct {
	dst    netip.Prefix
	metric int
	link   int // 0: unreachable
}

func (r routeKey) netlink(k *Kernel) *netlink.Route {
	route := &netlink.Route{
		Dst:      ipNet(r.dst),
		Table:    k.opt.RouteTable,
		Protocol: netlink.RouteProtocol(k.opt.RouteProtocol),
		Priority: r.metric,
	}
	if r.link == 0 {
		route.Type = unix.RTN_UNREACHABLE
	} else {
		route.LinkIndex = r.link
		route.Scope = netlink.SCOPE_LINK
	}
	return route
}

func (r routeKey) String() string {
	if r.link == 0 {
		return "unreachable " + r.dst.String()
	}
	return r.dst.String() + " into the TUN device"
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// syncRoutes makes our routes exactly these: unreachable for every prefix and, where link is not
// 0, one into the TUN device. It returns how many were added or removed. Routes are added
// before stale ones are removed, unreachable ones first.
func (k *Kernel) syncRoutes(remotes []netip.Prefix, link int) (int, error) {
	var want []routeKey
	for _, p := range minimal(remotes) {
		want = append(want, routeKey{dst: p, metric: metricUnreachable})
	}
	if link != 0 {
		for _, p := range minimal(remotes) {
			want = append(want, routeKey{dst: p, metric: metricTun, link: link})
		}
	}
	have, err := k.ourRoutes()
	if err != nil {
		return 0, err
	}
	changed := 0
	wanted := make(map[routeKey]bool, len(want))
	for _, r := range want {
		wanted[r] = true
		if have[r] {
			continue
		}
		if err := k.nl.RouteReplace(r.netlink(k)); err != nil {
			return changed, fmt.Errorf("kernel: adding route %s in table %d: %w", r, k.opt.RouteTable, hint6(r.dst, err))
		}
		changed++
	}
	for r := range have {
		if wanted[r] {
			continue
		}
		if err := k.nl.RouteDel(r.netlink(k)); err != nil && !errors.Is(err, unix.ESRCH) {
			return changed, fmt.Errorf("kernel: removing route %s from table %d: %w", r, k.opt.RouteTable, err)
		}
		changed++
	}
	return changed, nil
}

// hint6 says what is usually behind an IPv6 route that cannot be added.
func hint6(p netip.Prefix, err error) error {
	if !p.Addr().Is6() {
		return err
	}
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w (IPv6 is switched off: the policy has IPv6 prefixes, so the kernel must have IPv6 and net.ipv6.conf.all.disable_ipv6 must be 0)", err)
	case errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("%w (IPv6 unreachable routes need the interface lo to be up)", err)
	}
	return err
}

// ourRoutes lists the routes of our table with our protocol number.
func (k *Kernel) ourRoutes() (map[routeKey]bool, error) {
	out := make(map[routeKey]bool)
	for _, f := range k.families() {
		routes, err := retryDump(func() ([]netlink.Route, error) {
			return k.nl.RouteListFiltered(f, &netlink.Route{
				Table: k.opt.RouteTable, Protocol: netlink.RouteProtocol(k.opt.RouteProtocol),
			}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return nil, fmt.Errorf("kernel: listing routes of table %d: %w", k.opt.RouteTable, err)
		}
		for _, r := range routes {
			key := routeKey{dst: prefixOf(r.Dst, f), metric: r.Priority}
			if r.Type != unix.RTN_UNREACHABLE {
				key.link = r.LinkIndex
			}
			out[key] = true
		}
	}
	return out, nil
}

// Held returns the prefixes of remote facilities that our routes are for, also those of an earlier
// process.
func (k *Kernel) Held() ([]netip.Prefix, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, ErrClosed
	}
	routes, err := k.ourRoutes()
	var out []netip.Prefix
	for r := range routes {
		out = append(out, r.dst)
	}
	return minimal(out), err
}

func prefixOf(n *net.IPNet, family int) netip.Prefix {
	if n == nil {
		if family == netlink.FAMILY_V6 {
			return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if family == netlink.FAMILY_V4 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}

// syncRules sees to the ip rule that leads to our table, per family, and returns the number of
// changes.
func (k *Kernel) syncRules() (int, error) {
	changed := 0
	for _, f := range k.families() {
		rules, err := k.ourRules(f)
		if err != nil {
			return changed, err
		}
		want := k.ruleFor(f)
		found := false
		for i := range rules {
			r := &rules[i]
			if !found && r.Invert && r.Mark == want.Mark && r.Mask != nil && *r.Mask == *want.Mask {
				found = true
				continue
			}
			if err := k.nl.RuleDel(r); err != nil && !errors.Is(err, unix.ENOENT) {
				return changed, fmt.Errorf("kernel: removing an outdated ip rule to table %d: %w", k.opt.RouteTable, err)
			}
			changed++
		}
		if found {
			continue
		}
		if err := k.nl.RuleAdd(want); err != nil && !errors.Is(err, unix.EEXIST) {
			return changed, fmt.Errorf("kernel: adding the ip rule of priority %d to table %d: %w", k.opt.RulePriority, k.opt.RouteTable, err)
		}
		changed++
	}
	return changed, nil
}

func (k *Kernel) ruleFor(family int) *netlink.Rule {
	r := netlink.NewRule()
	mask := uint32(0xffffffff)
	r.Family = family
	r.Priority = k.opt.RulePriority
	r.Table = k.opt.RouteTable
	r.Protocol = uint8(k.opt.RouteProtocol)
	r.Mark, r.Mask, r.Invert = k.opt.Mark, &mask, true
	return r
}

// ourRules lists the rules that bear our protocol number and lead to our table.
func (k *Kernel) ourRules(family int) ([]netlink.Rule, error) {
	rules, err := retryDump(func() ([]netlink.Rule, error) {
		return k.nl.RuleListFiltered(family, &netlink.Rule{Table: k.opt.RouteTable}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("kernel: listing ip rules: %w", err)
	}
	return slices.DeleteFunc(rules, func(r netlink.Rule) bool {
		return int(r.Protocol) != k.opt.RouteProtocol
	}), nil
}

func (k *Kernel) removeRules() error {
	var errs []error
	for _, f := range k.families() {
		rules, err := k.ourRules(f)
		errs = append(errs, err)
		for i := range rules {
			if err := k.nl.RuleDel(&rules[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("kernel: removing the ip rule to table %d: %w", k.opt.RouteTable, err))
			}
		}
	}
	return errors.Join(errs...)
}

// families are those that the kernel has.
func (k *Kernel) families() []int {
	if k.have6 {
		return []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	}
	return []int{netlink.FAMILY_V4}
}

// retryDump repeats a listing that a concurrent change made inconsistent.
func retryDump[T any](list func() (T, error)) (T, error) {
	for try := 1; ; try++ {
		v, err := list()
		if try == dumpTries || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return v, err
		}
	}
}

// link returns the TUN device's index, 0 when there is none, after setting it up.
func (k *Kernel) syncLink(s *State) (index, changed int, err error) {
	l, err := k.nl.LinkByName(s.TunName)
	if err != nil {
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return 0, 0, nil
		}
		return 0, 0, fmt.Errorf("kernel: looking for the TUN device %s: %w", s.TunName, err)
	}
	a := l.Attrs()
	if s.MTU != 0 && a.MTU != s.MTU {
		if err := k.nl.LinkSetMTU(l, s.MTU); err != nil {
			return 0, changed, fmt.Errorf("kernel: setting the MTU of %s to %d: %w", s.TunName, s.MTU, err)
		}
		changed++
	}
	n, err := k.tunSysctls(s.TunName)
	if err != nil {
		return 0, changed, err
	}
	changed += n
	if a.RawFlags&unix.IFF_UP == 0 {
		if err := k.nl.LinkSetUp(l); err != nil {
			return 0, changed, fmt.Errorf("kernel: setting %s up: %w", s.TunName, err)
		}
		changed++
	}
	return a.Index, changed, nil
}
