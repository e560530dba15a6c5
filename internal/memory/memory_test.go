package memory

import (
	"context"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

func TestPercent(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		o    Options
		live uint64
		want int
	}{
		{Options{}, 1 << 20, 50},
		{Options{Percent: 70}, 1 << 40, 70},
		{Options{Burst: 64 << 20}, 0, 1600},
		{Options{Burst: 64 << 20}, 1 << 20, 1600},
		{Options{Burst: 64 << 20}, 16 << 20, 400},
		{Options{Burst: 64 << 20}, 96 << 20, 66},
		{Options{Burst: 64 << 20}, 128 << 20, 50},
		{Options{Burst: 64 << 20}, 1 << 40, 50},
		{Options{Burst: 1 << 62}, 1 << 30, 100 * 1024},
	} {
		if got := c.o.percent(c.live); got != c.want {
			t.Errorf("%+v with %d octets in use: %d; want %d", c.o, c.live, got, c.want)
		}
	}
}

var sink []byte

// With a burst allowed there are far fewer collections than without, the setting follows what is in use,
// and what was set before comes back. Not parallel: the collector belongs to the process.
func TestKeep(t *testing.T) {
	t.Setenv("GOGC", "")
	collections := func() uint64 {
		s := []metrics.Sample{{Name: "/gc/cycles/automatic:gc-cycles"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	percent := func() uint64 {
		s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	work := func() uint64 {
		before := collections()
		for range 256 << 20 / 4096 {
			sink = make([]byte, 4096)
		}
		return collections() - before
	}
	was := percent()
	run := func(o Options) (n uint64) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { Keep(ctx, o); close(done) }()
		for end := time.Now().Add(10 * time.Second); percent() == was && time.Now().Before(end); {
			runtime.Gosched()
		}
		runtime.GC()
		n = work()
		cancel()
		<-done
		return n
	}
	small, large := run(Options{Percent: 50}), run(Options{Percent: 50, Burst: 64 << 20})
	if small < 4*large {
		t.Errorf("%d collections with a burst, %d without", large, small)
	}
	if now := percent(); now != was {
		t.Errorf("GOGC is %d afterwards; it was %d", now, was)
	}

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { Keep(ctx, Options{Percent: 50, Burst: 64 << 20}); close(done) }()
	defer func() { cancel(); <-done }()
	hold := make([]byte, 256<<20)
	for end := time.Now().Add(10 * time.Second); percent() != 50; {
		if runtime.GC(); time.Now().After(end) {
			t.Fatalf("GOGC is %d with %d octets in use; want 50", percent(), len(hold))
		}
	}
	runtime.KeepAlive(hold)
}
