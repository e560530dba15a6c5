// Package memory keeps the heap of a daemon that mostly waits small: a storm of work may fill some memory
// with garbage before it is collected, and what is free afterwards goes back to the system.
package memory

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// Options say how much memory may be garbage.
type Options struct {
	// Percent is that part of what is in use (as GOGC); below 1: 50.
	Percent int

	// Burst is that many octets at least, however little is in use: every collection looks at all that
	// is in use, so that few of them cost less.
	Burst uint64
}

// Router is what a router takes: packets allocate nothing, so the collector works for handshakes alone,
// and memory is dear until there are many of them at once.
func Router() Options { return Options{Percent: 50, Burst: 16 << 20} }

const (
	defaultPercent = 50
	leastLive      = 4 << 20 // octets: the runtime reckons with no less in use
	maxBurst       = 1 << 40 // octets

	tidyEvery = 10 * time.Second
	tidyAgain = 30 * time.Second
	tidyFrom  = 8 << 20 // octets: less is not worth a collection
)

// percent is GOGC for so many octets in use.
func (o Options) percent(live uint64) int {
	p := o.Percent
	if p < 1 {
		p = defaultPercent
	}
	live = max(live, leastLive)
	return max(p, int(min(o.Burst, maxBurst)*100/live))
}

// Keep sets the collector, and gives memory back to the system when a storm is over (the runtime does so
// too, but takes minutes), until ctx is done. Where the environment names GOGC, that stands. At most one
// is to run in a process.
func Keep(ctx context.Context, o Options) {
	if os.Getenv("GOGC") == "" {
		k := &keeper{options: o}
		before := k.adjust()
		k.watch()
		defer func() {
			k.stop()
			debug.SetGCPercent(before)
		}()
	}
	tidy(ctx)
}

// keeper sets the collector anew after every collection.
type keeper struct {
	options Options
	mu      sync.Mutex
	set     int
	ended   bool
}

// adjust returns what was set before.
func (k *keeper) adjust() (before int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return k.set
	}
	s := []metrics.Sample{{Name: liveMetric}}
	metrics.Read(s)
	p := k.options.percent(s[0].Value.Uint64())
	if p > k.set+k.set/8 || p < k.set-k.set/8 || k.set == 0 { // setting it stops the world for a moment
		before = debug.SetGCPercent(p)
		k.set = p
	}
	return before
}

func (k *keeper) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
}

// watch has adjust called after the next collection, which finds that nothing needs the mark.
func (k *keeper) watch() {
	mark := &struct{ *keeper }{}
	runtime.AddCleanup(mark, func(k *keeper) {
		k.adjust()
		k.mu.Lock()
		ended := k.ended
		k.mu.Unlock()
		if !ended {
			k.watch()
		}
	}, k)
}

const liveMetric = "/gc/heap/live:bytes" // what the last collection found in use

// tidy gives memory back.
func tidy(ctx context.Context) {
	sample := []metrics.Sample{
		{Name: "/memory/classes/heap/free:bytes"},    // spans that nothing uses and that were not given back
		{Name: "/memory/classes/heap/objects:bytes"}, // in use, or garbage
		{Name: liveMetric},
	}
	t := time.NewTicker(tidyEvery)
	defer t.Stop()
	last, freed := uint64(0), time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		metrics.Read(sample)
		free, objects, live := sample[0].Value.Uint64(), sample[1].Value.Uint64(), sample[2].Value.Uint64()
		spare := free + objects - min(live, objects)
		// Only when what is in use stays as it is: while it grows, what is free is needed at once.
		calm := live <= last+last/16
		if last = live; calm && spare >= max(tidyFrom, live/8) && time.Since(freed) >= tidyAgain {
			debug.FreeOSMemory()
			freed = time.Now()
		}
	}
}
