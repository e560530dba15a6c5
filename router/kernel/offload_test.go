package kernel

import (
	"testing"
)

// The zones' interfaces hand over packets in one piece while we rule them, and are as they were
// before afterwards, also when another process cleans up.
func TestOffloads(t *testing.T) {
	l := newLab(t)
	k := l.open(t)
	active := func(want bool) {
		t.Helper()
		have, err := k.features("lan0")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range offloadFeatures {
			if s := have[f]; !s.Available || s.Active != want {
				t.Errorf("%s: %+v, want active %v", f, s, want)
			}
		}
	}
	active(false) // veth's own setting
	l.apply(t)
	k = l.k
	active(true)
	if changes, err := k.syncForTest(); err != nil || len(changes) != 0 {
		t.Errorf("a second time: changed %v, %v", changes, err)
	}
	// somebody switches it off: it is ours to keep on
	if n := k.switchOffloads(offloadPlan{off: []offload{{"lan0", offloadFeatures[1]}}}); n != 1 {
		t.Fatalf("%d switched", n)
	}
	if changes, err := k.syncForTest(); err != nil || len(changes) != 1 {
		t.Errorf("switched off by somebody: changed %v, %v", changes, err)
	}
	active(true)
	another := l.open(t)
	if err := another.Remove(); err != nil {
		t.Fatal(err)
	}
	active(false)
}

func TestOffloadNotes(t *testing.T) {
	for note, ok := range map[string]bool{
		"offload:lan0/rx-gro": true, "offload:lan0/tx-checksumming": false, "offload:/rx-gro": false, "offload:lan0": false,
		"lan0/rx-gro": false, "ipv4/conf/lan0/forwarding=1": false,
	} {
		if o, got := parseOffload(note); got != ok || ok && o.String() != note {
			t.Errorf("%q: %v, %+v", note, got, o)
		}
	}
}
