package ikeload

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Run is how a series of set-ups went.
type Run struct {
	OK, Failed int
	Took       time.Duration
	Times      []time.Duration // of each set-up, sorted
	First      error           // of the failures
}

// Drive has the initiators number from to from+n−1 set up their connections, at most parallel of
// them at once, and waits until all of them are done. One series at a time.
func (n *Node) Drive(ctx context.Context, from, count, parallel int) (Run, error) {
	var (
		mu    sync.Mutex
		r     Run
		begun = make(map[string]time.Time, count)
		slots = make(chan struct{}, parallel)
		over  = make(chan struct{})
	)
	end := func(peer string, err error) {
		mu.Lock()
		defer mu.Unlock()
		at, ok := begun[peer]
		if !ok {
			return
		}
		delete(begun, peer)
		if err == nil {
			r.OK++
			r.Times = append(r.Times, time.Since(at))
		} else {
			r.Failed++
			if r.First == nil {
				r.First = fmt.Errorf("%s: %w", peer, err)
			}
		}
		<-slots
		if r.OK+r.Failed == count {
			close(over)
		}
	}
	n.mu.Lock()
	n.over = end
	n.mu.Unlock()
	start := time.Now()
	for i := range count {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return r, ctx.Err()
		}
		name := fmt.Sprintf("c%d", from+i)
		mu.Lock()
		begun[name] = time.Now()
		mu.Unlock()
		if err := n.Initiate(name, "net"); err != nil {
			end(name, err)
		}
	}
	select {
	case <-over:
	case <-ctx.Done():
		mu.Lock()
		defer mu.Unlock()
		return r, fmt.Errorf("%d of %d set-ups ended: %w", r.OK+r.Failed, count, ctx.Err())
	}
	r.Took = time.Since(start)
	slices.Sort(r.Times)
	return r, nil
}
