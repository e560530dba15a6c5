package addresswatch

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxTowards is for how many partners the kernel is asked by which way it would reach them. Few machines
// have more than a handful of ways out.
const maxTowards = 512

// somewhere stands for the rest of the outer network: wherever the default routes lead (RFC 5737, RFC 3849).
var somewhere = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// Query is the question for the outer addresses.
type Query struct {
	// Towards are partners' addresses: the ways there are ways to the outer network.
	Towards []netip.Addr

	// InUse are addresses of ours that IKE SAs use: they stay as long as the machine has them.
	InUse []netip.Addr

	// NotOn are names of interfaces that are not of the outer network: those of zones, and the tunnel's.
	NotOn []string

	// Only are the addresses that the daemon listens at; empty: at all.
	Only []netip.Addr

	// Mark is the fwmark of the daemon's sockets.
	Mark uint32
}

// Outer returns the addresses at which this machine can be reached from the outer network: those from
// which it would send now first, then the others of the same links. Addresses of zones are never among
// them, nor those that are not good yet (duplicate address detection) or not to be used any more, unless
// they are in use. The list is empty while there is no way out.
func Outer(q Query) ([]netip.Addr, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("addresswatch: opening a netlink socket: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("addresswatch: listing links: %w", err)
	}
	outside := make(map[int]bool, len(links)) // index → may be a way out
	for _, l := range links {
		a := l.Attrs()
		outside[a.Index] = a.Flags&net.FlagUp != 0 && !slices.Contains(q.NotOn, a.Name)
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresswatch: listing addresses: %w", err)
	}
	type owned struct {
		addr  netip.Addr
		link  int
		ready bool
	}
	var own []owned
	for i := range addrs {
		a, ok := netip.AddrFromSlice(addrs[i].IP)
		const notReady = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
		if a = a.Unmap(); !ok || addrs[i].Flags&notReady != 0 || !outside[addrs[i].LinkIndex] || !a.IsGlobalUnicast() ||
			len(q.Only) > 0 && !slices.Contains(q.Only, a) {
			continue
		}
		passing := addrs[i].Flags & unix.IFA_F_DEPRECATED
		if a.Is6() {
			passing |= addrs[i].Flags & unix.IFA_F_TEMPORARY // of IPv4 the bit means another thing
		}
		own = append(own, owned{a, addrs[i].LinkIndex, passing == 0})
	}
	var out []netip.Addr
	add := func(a netip.Addr) {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	ways := make(map[int]bool) // links by which somebody is reached
	towards := q.Towards[:min(len(q.Towards), maxTowards)]
	for _, r := range append(slices.Clone(towards), somewhere...) {
		src, link, err := source(h, r, q.Mark)
		if err != nil || !outside[link] {
			continue
		}
		ways[link] = true
		if slices.ContainsFunc(own, func(o owned) bool { return o.addr == src }) {
			add(src)
		}
	}
	for link, ok := range outside { // other lines, that stand by
		ways[link] = ways[link] || ok && leadsOut(h, link, q.Mark)
	}
	for _, o := range own {
		if slices.Contains(q.InUse, o.addr) || slices.Contains(q.Only, o.addr) || o.ready && ways[o.link] {
			add(o.addr)
		}
	}
	return out, nil
}

// Source returns the address from which the machine reaches remote, and the zero Addr where there is no
// way. mark is the fwmark of the packets in question.
func Source(remote netip.Addr, mark uint32) netip.Addr {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return netip.Addr{}
	}
	defer h.Close()
	a, _, err := source(h, remote, mark)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// leadsOut tells whether there is a default route, of whatever metric, by a link.
func leadsOut(h *netlink.Handle, link int, mark uint32) bool {
	for _, a := range somewhere {
		routes, err := h.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{OifIndex: link, Mark: mark, FIBMatch: true})
		if err == nil && slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Type == unix.RTN_UNICAST }) {
			return true
		}
	}
	return false
}

var errNoWay = errors.New("no way there")

func source(h *netlink.Handle, remote netip.Addr, mark uint32) (netip.Addr, int, error) {
	routes, err := h.RouteGetWithOptions(remote.AsSlice(), &netlink.RouteGetOptions{Mark: mark})
	if err != nil {
		return netip.Addr{}, 0, err
	}
	for i := range routes {
		if rt := &routes[i]; rt.Type == unix.RTN_UNICAST || rt.Type == unix.RTN_LOCAL {
			if a, ok := netip.AddrFromSlice(rt.Src); ok {
				return a.Unmap(), rt.LinkIndex, nil
			}
		}
	}
	return netip.Addr{}, 0, errNoWay
}

// Connected returns the networks of the machine's own addresses, of all links that are up.
func Connected() ([]netip.Prefix, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresswatch: listing addresses: %w", err)
	}
	var out []netip.Prefix
	for i := range list {
		a, ok := netip.AddrFromSlice(list[i].IP)
		ones, _ := list[i].Mask.Size()
		if ok {
			out = append(out, netip.PrefixFrom(a.Unmap(), ones).Masked())
		}
	}
	return out, nil
}
