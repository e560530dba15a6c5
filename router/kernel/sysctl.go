package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// sysctl is a value below /proc/sys/net. Names are paths such as "ipv4/conf/lan0/forwarding",
// because an interface name may hold a dot.
type sysctl struct{ name, value string }

func (s sysctl) String() string { return s.name + "=" + s.value }

func parseSysctl(note string) (sysctl, bool) {
	name, value, ok := strings.Cut(note, "=")
	// The notes come from a table that an administrator can write to: only what we write
	// ourselves is ever restored.
	if !ok || path.Clean(name) != name || !slices.Contains(undoable, path.Base(name)) ||
		(!strings.HasPrefix(name, "ipv4/conf/") && !strings.HasPrefix(name, "ipv6/conf/")) ||
		(value != "0" && value != "1") {
		return sysctl{}, false
	}
	return sysctl{name, value}, true
}

const (
	keyForwarding      = "forwarding"
	keyForceForwarding = "force_forwarding"
	keyAcceptRA        = "accept_ra"
	all6Forwarding     = "ipv6/conf/all/forwarding"
)

var undoable = []string{keyForwarding, keyForceForwarding, keyAcceptRA}

func conf4(ifn, key string) string { return "ipv4/conf/" + ifn + "/" + key }
func conf6(ifn, key string) string { return "ipv6/conf/" + ifn + "/" + key }

func (k *Kernel) sysctlGet(name string) (string, error) {
	var out string
	err := inNS(k.opt.NetNS, func() error {
		b, err := os.ReadFile("/proc/sys/net/" + name)
		out = strings.TrimSpace(string(b))
		return err
	})
	return out, err
}

func (k *Kernel) sysctlSet(name, value string) error {
	err := inNS(k.opt.NetNS, func() error {
		return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
	})
	if err != nil {
		return fmt.Errorf("kernel: setting sysctl net.%s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}

// ensure sets a value if it differs, and returns the number of changes (0 or 1).
func (k *Kernel) ensure(s sysctl) (int, error) {
	have, err := k.sysctlGet(s.name)
	if err != nil {
		return 0, fmt.Errorf("kernel: reading sysctl net.%s: %w", strings.ReplaceAll(s.name, "/", "."), err)
	}
	if have == s.value {
		return 0, nil
	}
	return 1, k.sysctlSet(s.name, s.value)
}

// tunSysctls sets what the TUN device needs. The device is ours, so nothing is remembered.
func (k *Kernel) tunSysctls(tun string) (int, error) {
	list := []sysctl{
		{conf4(tun, keyForwarding), "1"},
		// The source of a packet from the tunnel is checked by our rules, exactly. The reverse
		// path filter would add nothing and fail for a connection whose route is just being made.
		{conf4(tun, "rp_filter"), "0"},
		{conf4(tun, "send_redirects"), "0"},
		{conf4(tun, "accept_redirects"), "0"},
		{conf4(tun, "accept_local"), "0"},
	}
	if k.have6 {
		list = append(list,
			sysctl{conf6(tun, "disable_ipv6"), "0"},
			// No link-local address, hence no router solicitations into the tunnel.
			sysctl{conf6(tun, "addr_gen_mode"), "1"},
			sysctl{conf6(tun, "accept_ra"), "0"},
			sysctl{conf6(tun, "autoconf"), "0"},
			sysctl{conf6(tun, "accept_redirects"), "0"},
		)
		if k.force6 {
			list = append(list, sysctl{conf6(tun, keyForceForwarding), "1"})
		}
	}
	changed := 0
	for _, s := range list {
		n, err := k.ensure(s)
		if err != nil {
			return changed, err
		}
		changed += n
	}
	return changed, nil
}

// forwardPlan is what forwarding needs, and what the kernel had before us.
type forwardPlan struct {
	set     []sysctl // in this order
	restore []sysctl // of interfaces that are in no zone any more
	undo    []sysctl // to be remembered
	missing []string // interfaces of zones that do not exist
}

// planForwarding compares what the zones need with what is set. notes are the values from before
// our first change.
//
// IPv4 forwards per arriving interface, so it is switched on for the zones' interfaces only.
// IPv6 can do so since Linux 6.17 (force_forwarding); before, forwarding is one switch for the
// machine. Where that is thrown, interfaces that take their addresses from router
// advertisements would stop doing so, which accept_ra=2 prevents.
func (k *Kernel) planForwarding(s *State, notes []string) (*forwardPlan, error) {
	plan := &forwardPlan{}
	before := map[string]sysctl{}
	for _, n := range notes {
		if u, ok := parseSysctl(n); ok {
			before[u.name] = u
		}
	}
	// A global switch that is on and that we did not throw is the administrator's decision that
	// this machine is a router: what we noted about single interfaces is void.
	global4, err := k.sysctlGet("ipv4/conf/all/forwarding")
	if err != nil {
		return nil, fmt.Errorf("kernel: reading sysctl net.ipv4.conf.all.forwarding: %w", err)
	}
	var global6 string
	if k.have6 {
		if global6, err = k.sysctlGet(all6Forwarding); err != nil {
			return nil, fmt.Errorf("kernel: reading sysctl net.ipv6.conf.all.forwarding: %w", err)
		}
	}
	_, threw6 := before[all6Forwarding]
	for name := range before {
		if (global4 == "1" && strings.HasPrefix(name, "ipv4/")) || (global6 == "1" && !threw6 && strings.HasPrefix(name, "ipv6/")) {
			delete(before, name)
		}
	}
	want := func(name, value string) (bool, error) {
		have, err := k.sysctlGet(name)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("kernel: reading sysctl net.%s: %w", strings.ReplaceAll(name, "/", "."), err)
		}
		if old, ok := before[name]; ok {
			plan.undo = append(plan.undo, old)
			delete(before, name)
		} else if have != value {
			plan.undo = append(plan.undo, sysctl{name, have})
		}
		if have != value {
			plan.set = append(plan.set, sysctl{name, value})
		}
		return true, nil
	}
	ifs := zoneInterfaces(s)
	for _, ifn := range ifs {
		found, err := want(conf4(ifn, keyForwarding), "1")
		if err != nil {
			return nil, err
		}
		if !found {
			plan.missing = append(plan.missing, ifn)
		}
	}
	if k.have6 && needs6(s) {
		switch {
		case global6 == "1" && !threw6:
			// The machine forwards IPv6 anyway.
		case k.force6:
			for _, ifn := range ifs {
				if _, err := want(conf6(ifn, keyForceForwarding), "1"); err != nil {
					return nil, err
				}
			}
		default:
			names, err := k.interfaces6()
			if err != nil {
				return nil, err
			}
			for _, ifn := range names {
				ra := conf6(ifn, keyAcceptRA)
				have, err := k.sysctlGet(ra)
				if err != nil || ifn == s.TunName {
					continue // gone meanwhile, or ours
				}
				if _, noted := before[ra]; noted || have == "1" {
					if _, err := want(ra, "2"); err != nil {
						return nil, err
					}
				}
			}
			if _, err := want(all6Forwarding, "1"); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range sortedKeys(before) {
		plan.restore = append(plan.restore, before[name])
	}
	return plan, nil
}

// interfaces6 lists the interfaces that have IPv6 settings.
func (k *Kernel) interfaces6() ([]string, error) {
	var out []string
	err := inNS(k.opt.NetNS, func() error {
		entries, err := os.ReadDir("/proc/sys/net/ipv6/conf")
		if err != nil {
			return fmt.Errorf("kernel: listing IPv6 interfaces: %w", err)
		}
		for _, e := range entries {
			if n := e.Name(); n != "all" && n != "default" && n != "lo" {
				out = append(out, n)
			}
		}
		return nil
	})
	return out, err
}

// restore puts values back, where they still are what we made them.
func (k *Kernel) restore(list []sysctl) error {
	var errs []error
	for _, s := range list {
		ours := "1"
		if path.Base(s.name) == keyAcceptRA {
			ours = "2"
		}
		have, err := k.sysctlGet(s.name)
		if err != nil || have != ours {
			continue // the interface is gone, or somebody else decided since
		}
		errs = append(errs, k.sysctlSet(s.name, s.value))
	}
	return errors.Join(errs...)
}

// needs6 says whether IPv6 has to be forwarded at all.
func needs6(s *State) bool {
	for _, p := range s.Remotes {
		if p.Addr().Is6() {
			return true
		}
	}
	return false
}

func zoneInterfaces(s *State) []string {
	var out []string
	for _, z := range s.Zones {
		out = append(out, z.Interfaces...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// vpnOnly lists the interfaces that forward only because of us.
func vpnOnly(undo []sysctl, prefix, key string) []string {
	var out []string
	for _, s := range undo {
		if rest, ok := strings.CutPrefix(s.name, prefix); ok && s.value == "0" {
			if ifn, ok := strings.CutSuffix(rest, "/"+key); ok && ifn != "all" {
				out = append(out, ifn)
			}
		}
	}
	return out
}
