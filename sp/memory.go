package sp

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// collectAt is GOGC where the environment says nothing: most of the memory belongs to devices that
	// wait and lives long, so collecting more often costs little.
	collectAt = 50
	tidyEvery = 10 * time.Second
	tidyAgain = 30 * time.Second
	tidyFrom  = 8 << 20 // octets: less is not worth a collection
)

// tidy gives memory back to the system after a storm of connections or policies: what waits afterwards
// needs a fraction of it. The runtime does so too, but takes minutes.
func tidy(ctx context.Context) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	sample := []metrics.Sample{
		{Name: "/memory/classes/heap/free:bytes"},    // spans that nothing uses and that were not given back
		{Name: "/memory/classes/heap/objects:bytes"}, // in use, or garbage
		{Name: "/gc/heap/live:bytes"},                // what the last collection found in use
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
