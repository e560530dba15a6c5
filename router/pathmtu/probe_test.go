package pathmtu

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// network is a path that swallows what is longer than width without a word, and a peer that
// answers everything else. loss is the number of probes that are lost for other reasons.
type network struct {
	p      *Path
	now    time.Time
	width  int // 0: the peer is away
	loss   int
	probes int
}

// run lets time pass until there is nothing to ask before the given time from now on.
func (n *network) run(t testing.TB, d time.Duration) {
	t.Helper()
	end := n.now.Add(d)
	for range 1000 {
		if due := n.p.Next(); due.IsZero() || due.After(end) {
			n.now = end
			return
		} else if due.After(n.now) {
			n.now = due
		}
		n.p.Tick(n.now)
		size, ok := n.p.NeedProbe(n.now)
		if !ok {
			continue
		}
		n.probes++
		acked := size <= n.width
		if acked && n.loss > 0 {
			n.loss--
			acked = false
		}
		if acked {
			n.now = n.now.Add(20 * time.Millisecond)
		} else {
			n.now = n.now.Add(2 * time.Second)
		}
		n.p.ProbeResult(size, acked, n.now)
	}
	t.Fatal("the search does not end")
}

func newNetwork(width int, c Config) *network {
	n := &network{p: New(c), now: epoch, width: width}
	n.p.EnableProbes(n.now)
	return n
}

func (n *network) want(t *testing.T, why string, s ProbeState, mtu int) {
	t.Helper()
	if got := n.p.ProbeState(); got != s {
		t.Fatalf("%s: %v, want %v", why, got, s)
	}
	wantMTU(t, why, n.p, mtu)
}

func TestProbeConfirms(t *testing.T) {
	n := newNetwork(1500, Config{Link: 1500})
	n.want(t, "at first", Confirm, 1500)
	n.run(t, time.Minute)
	n.want(t, "all is well", Done, 1500)
	if n.probes != 1 {
		t.Errorf("%d probes", n.probes)
	}
	n.run(t, 10*time.Minute)
	n.want(t, "asked again", Done, 1500)
	if n.probes != 2 {
		t.Errorf("%d probes in eleven minutes", n.probes)
	}
}

func TestBlackHole(t *testing.T) {
	for _, c := range []struct {
		width, link int
		v6          bool
		want        int
	}{
		{1492, 1500, false, 1492},
		{1499, 1500, false, 1492},
		{1400, 1500, false, 1400},
		{1280, 1500, false, 1280},
		{1200, 1500, false, 1200},
		{1100, 1500, false, 1006},
		{600, 1500, false, 576},
		{1500, 9000, false, 1500},
		{1400, 1500, true, 1400},
		{1300, 1500, true, 1280},
	} {
		n := newNetwork(c.width, Config{Link: c.link, V6: c.v6})
		n.run(t, 3*time.Minute)
		n.want(t, "found", Done, c.want)
		if n.probes > 25 {
			t.Errorf("width %d: %d probes", c.width, n.probes)
		}
	}
}

// TestBlackHoleIsLeftAtOnce: the search takes time, and meanwhile packets go through.
func TestBlackHoleIsLeftAtOnce(t *testing.T) {
	n := newNetwork(1400, Config{Link: 1500})
	n.run(t, 7*time.Second)
	wantMTU(t, "three probes of 1500 and one of 1200 later", n.p, 1200)
}

// TestAway: a peer that answers nothing is away, and that is no reason for short packets.
func TestAway(t *testing.T) {
	n := newNetwork(0, Config{Link: 1500})
	n.run(t, 40*time.Second)
	n.want(t, "nothing arrives", Down, 1500)
	n.width = 1400
	n.run(t, 5*time.Minute)
	n.want(t, "it is back", Done, 1400)
}

func TestLossIsNoBlackHole(t *testing.T) {
	n := newNetwork(1500, Config{Link: 1500})
	n.loss = 2
	n.run(t, time.Minute)
	n.want(t, "two of three were lost", Done, 1500)
}

// TestProbesRaise: a peer that answers is asked before anything is sent that may be lost.
func TestProbesRaise(t *testing.T) {
	n := newNetwork(1400, Config{Link: 1500})
	n.run(t, time.Minute)
	n.want(t, "black hole", Done, 1400)
	n.run(t, 11*time.Minute)
	n.want(t, "still there", Done, 1400)
	n.width = 1500
	n.probes = 0
	n.run(t, 11*time.Minute)
	n.want(t, "gone", Done, 1500)
	if n.probes != 1 {
		t.Errorf("%d probes, the first of which is the link's MTU", n.probes)
	}

	wantVerdict(t, "a router", n.p.TooBig(quote(1500), 1450, n.now), Lowered)
	n.want(t, "lowered at once, confirmed later", Confirm, 1450)
	n.run(t, 9*time.Minute)
	n.want(t, "not asked for more before its time", Done, 1450)
	n.run(t, 2*time.Minute)
	n.want(t, "the router was wrong, or the path is another", Done, 1500)
}

// TestUnprovedICMP: a message that quotes too little only makes us ask, but its number is tried.
func TestUnprovedICMP(t *testing.T) {
	n := newNetwork(1500, Config{Link: 1500})
	n.run(t, time.Minute)
	n.width = 1433
	wantVerdict(t, "8 octets", n.p.TooBig(Quote{}, 1433, n.now), Unproved)
	n.want(t, "asks", Confirm, 1500)
	n.run(t, 3*time.Minute)
	n.want(t, "no plateau, and yet found", Done, 1433)

	n.probes = 0
	for range 100 {
		n.p.TooBig(Quote{}, 1300, n.now)
		n.run(t, 100*time.Millisecond)
	}
	if n.probes > 1 {
		t.Errorf("100 forged messages in ten seconds made %d probes", n.probes)
	}
	wantMTU(t, "and changed nothing", n.p, 1433)
}

func TestSuspect(t *testing.T) {
	n := newNetwork(1500, Config{Link: 1500})
	n.p.Suspect(n.now)
	n.run(t, time.Minute)
	n.width = 1400
	n.p.Suspect(n.now)
	n.run(t, 2*time.Minute)
	n.want(t, "found long before ten minutes", Done, 1400)

	p := New(Config{Link: 1500})
	p.Suspect(epoch)
	if _, ok := p.NeedProbe(epoch); ok || p.ProbeState() != Off {
		t.Error("nobody answers probes")
	}
}

func TestProbeTimeout(t *testing.T) {
	p, now := New(Config{Link: 1500, ProbeTimeout: 5 * time.Second}), epoch
	p.EnableProbes(now)
	for i, want := range []int{1500, 1500, 1500, 1200} {
		size, ok := p.NeedProbe(now)
		if !ok || size != want {
			t.Fatalf("probe %d: %d, %v, want %d", i, size, ok, want)
		}
		if _, ok := p.NeedProbe(now); ok {
			t.Fatal("two at a time")
		}
		if due := p.Next(); !due.Equal(now.Add(5 * time.Second)) {
			t.Fatalf("due at %v", due)
		}
		now = now.Add(5 * time.Second) // nobody ever tells the result
	}
	if p.ProbeResult(1500, true, now) || p.MTU() != 1500 {
		t.Error("an answer to what is not asked")
	}
}

func TestProbeLink(t *testing.T) {
	n := newNetwork(1400, Config{Link: 1400})
	n.run(t, time.Minute)
	n.width = 8999
	if n.p.SetLink(9000, n.now) {
		t.Error("raised before it was asked")
	}
	n.run(t, time.Minute)
	n.want(t, "wider link", Done, 8166)
	n.p.SetLink(1300, n.now)
	n.want(t, "narrower link", Confirm, 1300)
	n.run(t, time.Minute)
	n.want(t, "narrower link", Done, 1300)

	n.p.Reset(1500, n.now)
	n.want(t, "another path", Confirm, 1500)
	n.p.LocalTooBig(1450, n.now)
	n.want(t, "the kernel said so", Confirm, 1450)

	n.p.DisableProbes(n.now)
	n.p.DisableProbes(n.now)
	if n.p.ProbeState() != Off || !n.p.Next().IsZero() {
		t.Error("not off")
	}
	n.p.EnableProbes(n.now)
	n.width = 1400
	n.run(t, time.Minute)
	n.p.DisableProbes(n.now)
	if !n.p.Next().Equal(n.now.Add(10 * time.Minute)) {
		t.Errorf("without probes it is raised after ten minutes, not at %v", n.p.Next())
	}
}

// TestLinkShrinksInSearch: no probe is longer than the link that carries it.
func TestLinkShrinksInSearch(t *testing.T) {
	p, now := New(Config{Link: 1400}), epoch
	p.EnableProbes(now)
	size, _ := p.NeedProbe(now)
	p.ProbeResult(size, true, now)
	p.SetLink(9000, now)
	if size, ok := p.NeedProbe(now); !ok || size != 9000 {
		t.Fatalf("probe of %d", size)
	}
	if p.SetLink(9000, now); p.ProbeState() != Search || p.Next() != now.Add(DefaultProbeTimeout) {
		t.Fatal("no news changed something")
	}
	p.SetLink(1500, now)
	if size, ok := p.NeedProbe(now); !ok || size != 1500 {
		t.Fatalf("probe of %d, %v; the one of 9000 is void", size, ok)
	}
	if p.ProbeResult(9000, true, now); p.MTU() != 1400 {
		t.Errorf("MTU %d", p.MTU())
	}
}

// TestSearchFinds: on any path the search ends at the greatest plateau that the path carries.
func TestSearchFinds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		link := rapid.OneOf(rapid.IntRange(576, 65535), rapid.SampledFrom(plateaus[3:])).Draw(t, "link")
		width := rapid.IntRange(576, link).Draw(t, "width")
		n := &network{p: New(Config{Link: link}), now: epoch, width: width}
		n.p.EnableProbes(n.now)
		end := n.now.Add(9 * time.Minute)
		for n.p.ProbeState() != Done {
			size, ok := n.p.NeedProbe(n.now)
			if !ok || n.now.After(end) {
				t.Fatalf("%v at %v", n.p.ProbeState(), n.now)
			}
			n.now = n.now.Add(time.Second)
			n.p.ProbeResult(size, size <= width, n.now)
		}
		want := link
		if width < link {
			want = plateauBelow(width + 1)
		}
		if n.p.MTU() != want {
			t.Fatalf("MTU %d, want %d", n.p.MTU(), want)
		}
	})
}
