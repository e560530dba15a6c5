package addresswatch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// groups are the kernel's notifications that concern us.
var groups = []uint32{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
}

const (
	// settle is how long a burst of notifications is let pass: a lease that is replaced is an address less,
	// an address more, and routes. Packets are lost meanwhile, so it is short.
	settle = 50 * time.Millisecond
	// atMost is how often it is looked at all: a machine with a dynamic routing protocol has many notifications.
	atMost = 200 * time.Millisecond
	// anyway is when it is looked without a notification.
	anyway = 30 * time.Second
)

// Watch calls changed, from one goroutine, at once and whenever addresses, links or routes may have
// changed. It returns the cause when ctx ends, or an error when it cannot listen.
func Watch(ctx context.Context, changed func()) error {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return fmt.Errorf("addresswatch: opening a netlink socket: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if stop() {
			conn.Close()
		}
	}()
	for _, g := range groups {
		if err := conn.JoinGroup(g); err != nil {
			return fmt.Errorf("addresswatch: subscribing to netlink group %d: %w", g, err)
		}
	}
	wake := make(chan struct{}, 1)
	wg.Go(func() {
		for {
			_, err := conn.Receive()
			switch {
			case ctx.Err() != nil:
				return
			case err != nil && !errors.Is(err, unix.ENOBUFS): // some were lost: look, too
				cancel(fmt.Errorf("addresswatch: receiving notifications: %w", err))
				return
			}
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	})
	for {
		changed()
		if !pause(ctx, atMost-settle) {
			return context.Cause(ctx)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-wake:
		case <-time.After(anyway):
		}
		if !pause(ctx, settle) {
			return context.Cause(ctx)
		}
		select { // of the same burst
		case <-wake:
		default:
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
