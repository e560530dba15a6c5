package kernel

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// LinkMTU returns the MTU, in octets of IP packet, of the link over which the machine reaches
// remote, or that of the route where it has one of its own. mark is the fwmark of the packets in
// question. What the kernel has learned about the path from ICMP is not in it.
func LinkMTU(remote netip.Addr, mark uint32) (int, error) {
	routes, err := netlink.RouteGetWithOptions(remote.AsSlice(), &netlink.RouteGetOptions{Mark: mark, FIBMatch: true})
	if err != nil {
		return 0, fmt.Errorf("route to %s: %w", remote, err)
	}
	for i := range routes {
		rt := &routes[i]
		if rt.MTU > 0 {
			return rt.MTU, nil
		}
		index := rt.LinkIndex
		if index == 0 && len(rt.MultiPath) > 0 {
			index = rt.MultiPath[0].LinkIndex
		}
		if index == 0 {
			continue
		}
		l, err := netlink.LinkByIndex(index)
		if err != nil {
			return 0, fmt.Errorf("link of the route to %s: %w", remote, err)
		}
		return l.Attrs().MTU, nil
	}
	return 0, fmt.Errorf("the route to %s names no link", remote)
}

// SetQueueLen sets how many packets wait at an interface before the kernel drops what comes.
func SetQueueLen(name string, n int) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetTxQLen(l, n)
	}
	if err != nil {
		return fmt.Errorf("queue length %d of %s: %w", n, name, err)
	}
	return nil
}
