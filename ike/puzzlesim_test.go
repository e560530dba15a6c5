package ike_test

import (
	"testing"

	"wardgate/ike"
	"wardgate/ike/iketest"
)

// TestSimulatorPuzzles plays schedules in which everybody asks everybody for puzzles, with losses,
// repetitions, restarts and hostile peers, and in the second half of them with IKE_AUTH too. Addresses stay:
// what becomes of them has nothing to do with puzzles.
func TestSimulatorPuzzles(t *testing.T) {
	t.Parallel()
	puzzles := 0
	for seed := range uint64(120) {
		hooks := simHooks
		if seed >= 60 {
			hooks.Junk = func(ep *ike.Endpoint) { ep.FakeJunk(1e300) }
		}
		p := iketest.NewPlan(80190 + seed)
		if p.Addrs != [2]int{} || p.Mobike != [2]bool{} {
			continue
		}
		p.Cookies, p.Puzzles = -1, -1
		puzzles++
		if out := iketest.Run(p, hooks, true); out.Violation != "" {
			t.Errorf("seed %d: %s\n%s", p.Seed, out.Violation, out.Diagram)
		}
	}
	if puzzles < 40 {
		t.Errorf("%d schedules were played", puzzles)
	}
}
