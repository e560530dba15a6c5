package policy

import "net/netip"

// KernelView is what the kernel is told: pure data. A route to each remote prefix leads into the
// TUN device, and the filter lets only zone addresses on their own interfaces use it.
type KernelView struct {
	Zones   []ZoneInfo
	Remotes []KernelRemote
}

// KernelRemote are the prefixes behind one connection, aggregated and sorted.
type KernelRemote struct {
	Conn     int
	Name     string
	Prefixes []netip.Prefix
}

// Kernel returns the prefixes that routes and nftables sets are made of. Read-only. No prefix of
// Remotes overlaps one of Zones; prefixes of different connections may.
func (t *Table) Kernel() KernelView {
	v := KernelView{Zones: t.zones, Remotes: make([]KernelRemote, len(t.conns))}
	for i := range t.conns {
		v.Remotes[i] = KernelRemote{Conn: i, Name: t.conns[i].Name, Prefixes: t.conns[i].Remote}
	}
	return v
}

// Selectors returns the traffic selectors of a connection, local and remote; nil for an index that
// there is none of. Read-only.
func (t *Table) Selectors(conn int) (local, remote []netip.Prefix) {
	if conn < 0 || conn >= len(t.conns) {
		return nil, nil
	}
	return t.conns[conn].Local, t.conns[conn].Remote
}
