package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Multicast groups of the kernel's notifications that concern us.
var (
	routeGroups = []uint32{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
	}
	nftGroups = []uint32{unix.NFNLGRP_NFTABLES}
)

const (
	// settle is how long a burst of notifications is let pass before it is looked at. Until
	// then the daemon's own decision stands alone, and for a removed table nothing else does
	// for traffic that bypasses the TUN device, so it is short.
	settle = 10 * time.Millisecond
	// again is when a failed restoration is tried again without a new notification.
	again = time.Second
)

// Watch puts back what is changed from outside (a flushed nftables ruleset, removed routes or
// rules, forwarding switched off) and completes what Apply could not do yet because the TUN
// device or an interface of a zone was missing. It tells report of each case, from one
// goroutine, and returns ctx.Err() when ctx ends, or an error when it cannot listen.
func (k *Kernel) Watch(ctx context.Context, report func(Event)) error {
	wake := make(chan struct{}, 1)
	poke := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	for _, src := range []struct {
		family  int
		groups  []uint32
		matters func(netlink.Message) bool
	}{
		{unix.NETLINK_ROUTE, routeGroups, k.routeMatters},
		{unix.NETLINK_NETFILTER, nftGroups, func(netlink.Message) bool { return true }},
	} {
		conn, err := netlink.Dial(src.family, &netlink.Config{NetNS: k.opt.NetNS})
		if err != nil {
			return fmt.Errorf("kernel: opening a netlink socket for notifications: %w", err)
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer func() {
			if stop() {
				conn.Close()
			}
		}()
		for _, g := range src.groups {
			if err := conn.JoinGroup(g); err != nil {
				return fmt.Errorf("kernel: subscribing to netlink group %d: %w", g, err)
			}
		}
		wg.Go(func() {
			for {
				msgs, err := conn.Receive()
				switch {
				case ctx.Err() != nil:
					return
				case errors.Is(err, unix.ENOBUFS):
					poke() // notifications were lost: look at everything
				case err != nil:
					cancel(fmt.Errorf("kernel: receiving notifications: %w", err))
					return
				case slices.ContainsFunc(msgs, src.matters):
					poke()
				}
			}
		})
	}
	poke()
	timer := time.NewTimer(0)
	if !timer.Stop() {
		<-timer.C
	}
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-wake:
			timer.Reset(settle)
		case <-timer.C:
			if err := k.mend(report); err != nil {
				timer.Reset(again)
			}
		}
	}
}

// mend looks at everything and reports what had to be changed.
func (k *Kernel) mend(report func(Event)) error {
	k.mu.Lock()
	var changes []string
	var err error
	if !k.closed {
		changes, err = k.sync()
	}
	k.mu.Unlock()
	detail := strings.Join(changes, ", ")
	switch {
	case err != nil:
		report(Event{Time: time.Now(), Code: "restore-failed", Detail: detail, Err: err})
	case slices.ContainsFunc(changes, func(c string) bool {
		return c == "TUN device" || strings.HasPrefix(c, "interface ")
	}):
		report(Event{Time: time.Now(), Code: "interface", Detail: detail})
	case len(changes) > 0:
		report(Event{Time: time.Now(), Code: "restored", Detail: detail})
	}
	return err
}

// routeMatters drops the notifications of other routing tables: a machine with a dynamic routing
// protocol has many of them.
func (k *Kernel) routeMatters(m netlink.Message) bool {
	if m.Header.Type != unix.RTM_NEWROUTE && m.Header.Type != unix.RTM_DELROUTE {
		return true
	}
	const rtmsg = 12 // sizeof(struct rtmsg); the table's low byte is at 4
	if len(m.Data) < rtmsg {
		return true
	}
	table := uint32(m.Data[4])
	attrs, err := netlink.UnmarshalAttributes(m.Data[rtmsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Type == unix.RTA_TABLE && len(a.Data) == 4 {
			table = binary.NativeEndian.Uint32(a.Data)
		}
	}
	return table == uint32(k.opt.RouteTable)
}
