package ike_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
)

var simHooks = iketest.Hooks{
	KeyLog:  ike.SetKeyLog,
	Inspect: func(ep *ike.Endpoint) iketest.View { return iketest.View(ep.Inspect()) },
	Paths: func(ep *ike.Endpoint) (out []iketest.SAPath) {
		for _, p := range ep.SAPaths() {
			out = append(out, iketest.SAPath(p))
		}
		return out
	},
	Forge: func(ep *ike.Endpoint, pick int, exchange uint8, response bool, delta int, ps message.Payloads) (ike.Path, [][]byte) {
		return ep.ForgeOn(pick, exchange, response, delta, ps)
	},
}

// sims is how many schedules the simulator plays, and the seed of the first: WARDGATE_SIM_N and
// WARDGATE_SIM_SEED in the environment (`make sim N=… SEED=…`), or few.
func sims(few int) (n int, first uint64) {
	n, first = few, 1
	if v, err := strconv.Atoi(os.Getenv("WARDGATE_SIM_N")); err == nil && v > 0 {
		n = v
	}
	if v, err := strconv.ParseUint(os.Getenv("WARDGATE_SIM_SEED"), 10, 64); err == nil && v > 0 {
		first = v
	}
	return n, first
}

// TestSimulator plays schedules until one breaks a rule (see iketest.Run and docs/simulator.md).
func TestSimulator(t *testing.T) {
	t.Parallel()
	n, first := sims(400)
	planted := os.Getenv("WARDGATE_SIM_PLANTED") != "" // the first violation will do, see planted_test.go
	var next, done, crossings, resumed, rekeys, datagrams, packets atomic.Int64
	var mu sync.Mutex
	var bad []iketest.Outcome
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(n) {
					return
				}
				out := iketest.Run(iketest.NewPlan(first+uint64(i)), simHooks, false)
				done.Add(1)
				crossings.Add(int64(out.Crossings))
				resumed.Add(int64(out.Resumed))
				rekeys.Add(int64(out.Rekeys))
				datagrams.Add(int64(out.Datagrams))
				packets.Add(int64(out.Packets))
				if out.Violation != "" {
					mu.Lock()
					bad = append(bad, out)
					if len(bad) >= 3 || planted {
						next.Store(int64(n))
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	for i, o := range bad {
		t.Errorf("seed %d: %s", o.Plan.Seed, o.Violation)
		if i == 0 && !planted {
			if n == 1 {
				t.Logf("all of it:\n%s", iketest.Run(o.Plan, simHooks, true).Diagram)
				return
			}
			p := iketest.Minimize(o.Plan, simHooks)
			least := iketest.Run(p, simHooks, true)
			t.Errorf("the least of it: %s\n%s\n%s", least.Violation, least.Diagram, p.JSON())
		}
	}
	line := fmt.Sprintf("simulator: %d schedules from seed %d, %d violations (%d datagrams, %d rekeys of CHILD SAs, %d crossings of rekeys, %d IKE SAs resumed, %d packets)",
		done.Load(), first, len(bad), datagrams.Load(), rekeys.Load(), crossings.Load(), resumed.Load(), packets.Load())
	t.Log(line)
	if name := os.Getenv("WARDGATE_SIM_OUT"); name != "" {
		if err := os.WriteFile(name, []byte(line+"\n"), 0o644); err != nil { //nolint:gosec // a line to read
			t.Error(err)
		}
	}
}

// TestSimulatorFound plays the schedules that once broke a rule; what was wrong is their name.
func TestSimulatorFound(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/sim/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no schedules in testdata/sim: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".json"), func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			p, err := iketest.ParsePlan(b)
			if err != nil {
				t.Fatal(err)
			}
			if out := iketest.Run(p, simHooks, true); out.Violation != "" {
				t.Errorf("%s\n%s", out.Violation, out.Diagram)
			}
		})
	}
}

// TestReauthDoesNotMultiply: both ends reauthenticate a connection with two CHILD SAs again and again,
// often at the same time. The IKE SAs stay few (found by the simulator: each time there were twice
// as many).
func TestReauthDoesNotMultiply(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		p := &iketest.Plan{
			Seed: seed, Nodes: 2, Liveness: 25 * time.Second, Retransmit: 500 * time.Millisecond, Reauth: 20 * time.Second,
			Link: iketest.Link{Delay: 100 * time.Millisecond, Jitter: 100 * time.Millisecond},
			Ops: []iketest.Op{
				{Kind: iketest.OpInitiate, Node: 0, Peer: 1},
				{Kind: iketest.OpInitiate, Node: 0, Peer: 1, N: 1, At: 3 * time.Second},
				{Kind: iketest.OpHeal, At: 10 * time.Minute},
			},
		}
		out := iketest.Run(p, simHooks, true)
		if out.Violation != "" {
			t.Fatalf("seed %d: %s\n%s", seed, out.Violation, out.Diagram)
		}
		if n := out.AtRest[0].IKE; n == 0 || n > 4 {
			t.Errorf("seed %d: %d IKE SAs after ten minutes", seed, n)
		}
	}
}
