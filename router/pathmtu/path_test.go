package pathmtu

import (
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// quote is about a packet of the given length that was sent just now.
func quote(length int) Quote { return Quote{HasSeq: true, Seq: 1000, Last: 1000, Len: length} }

func wantMTU(t *testing.T, why string, p *Path, want int) {
	t.Helper()
	if got := p.MTU(); got != want {
		t.Fatalf("%s: MTU %d, want %d", why, got, want)
	}
}

func wantVerdict(t *testing.T, why string, got, want Verdict) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %v, want %v", why, got, want)
	}
}

func TestStart(t *testing.T) {
	for _, c := range []struct {
		why  string
		c    Config
		want int
	}{
		{"the link's", Config{Link: 1500}, 1500},
		{"jumbo", Config{Link: 9000}, 9000},
		{"loopback has more than a packet", Config{Link: 65536}, 65535},
		{"no link has less", Config{Link: 0}, 68},
		{"nor under IPv6", Config{Link: 1000, V6: true}, 1280},
	} {
		p := New(c.c)
		wantMTU(t, c.why, p, c.want)
		if !p.Next().IsZero() {
			t.Errorf("%s: something is due at %v", c.why, p.Next())
		}
	}
}

func TestTooBig(t *testing.T) {
	last := func(seq uint32, last uint64) Quote { return Quote{HasSeq: true, Seq: seq, Last: last, Len: 1500} }
	for _, c := range []struct {
		why     string
		config  Config
		quote   Quote
		mtu     int
		verdict Verdict
		want    int
	}{
		{"PPPoE", Config{Link: 1500}, quote(1500), 1492, Lowered, 1492},
		{"the length need not be known", Config{Link: 1500}, quote(0), 1492, Lowered, 1492},
		{"the floor itself", Config{Link: 1500}, quote(1500), 576, Lowered, 576},
		{"less than the floor", Config{Link: 1500}, quote(1500), 575, LoweredToFloor, 576},
		{"the least of IPv4", Config{Link: 1500}, quote(1500), 68, LoweredToFloor, 576},
		{"less than any link has", Config{Link: 1500}, quote(1500), 67, Impossible, 1500},
		{"administrator's floor", Config{Link: 1500, Floor: 1400}, quote(1500), 1300, LoweredToFloor, 1400},
		{"administrator's floor of 68", Config{Link: 1500, Floor: 10}, quote(1500), 68, Lowered, 68},
		{"no increase", Config{Link: 1500}, quote(9000), 1501, NotSmaller, 1500},
		{"no change", Config{Link: 1500}, quote(9000), 1500, NotSmaller, 1500},
		{"below a link that is below the floor", Config{Link: 500}, quote(500), 400, NotSmaller, 500},
		{"the quoted packet fits", Config{Link: 1500}, quote(1400), 1400, Impossible, 1500},
		{"negative", Config{Link: 1500}, quote(1500), -1, Impossible, 1500},

		{"IPv6", Config{Link: 1500, V6: true}, quote(1500), 1400, Lowered, 1400},
		{"IPv6, the least", Config{Link: 1500, V6: true}, quote(1500), 1280, Lowered, 1280},
		{"IPv6, less (RFC 8201, section 4)", Config{Link: 1500, V6: true}, quote(1500), 1279, Impossible, 1500},
		{"IPv6 has no old style", Config{Link: 1500, V6: true}, quote(1500), 0, Impossible, 1500},
		{"IPv6, floor of 1400", Config{Link: 1500, V6: true, Floor: 1400}, quote(1500), 1280, LoweredToFloor, 1400},
		{"IPv6, 32 bits", Config{Link: 1500, V6: true}, quote(1500), 1 << 31, Impossible, 1500},

		{"old style: a plateau below the length with the header counted twice", Config{Link: 1500}, quote(1500), 0, Lowered, 1472},
		{"old style: a short one was too long", Config{Link: 1500}, quote(1400), 0, Lowered, 1376},
		{"old style: length not known", Config{Link: 1500}, quote(0), 0, Lowered, 1492},
		{"old style: not below the floor", Config{Link: 1500}, quote(600), 0, Lowered, 576},
		{"old style: a packet of less than the floor", Config{Link: 1500}, quote(300), 0, Impossible, 1500},
		{"old style: super-packet quoted", Config{Link: 1500}, quote(60000), 0, NotSmaller, 1500},

		{"the last one sent", Config{Link: 1500}, last(7, 7), 1400, Lowered, 1400},
		{"the first one sent", Config{Link: 1500}, last(1, 7), 1400, Lowered, 1400},
		{"never sent", Config{Link: 1500}, last(8, 7), 1400, NotSent, 1500},
		{"0 is never sent", Config{Link: 1500}, last(0, 7), 1400, NotSent, 1500},
		{"nothing was sent", Config{Link: 1500}, last(0, 0), 1400, NotSent, 1500},
		{"oldest in the window", Config{Link: 1500, Window: 100}, last(901, 1000), 1400, Lowered, 1400},
		{"too old", Config{Link: 1500, Window: 100}, last(900, 1000), 1400, NotSent, 1500},
		{"across 2^32, extended numbers", Config{Link: 1500}, last(0xfffffff0, 1<<32+5), 1400, Lowered, 1400},
		{"0 of a later round is sent", Config{Link: 1500}, last(0, 1<<32+5), 1400, Lowered, 1400},
		{"across 0 when there was no round before", Config{Link: 1500}, last(0xfffffff0, 5), 1400, NotSent, 1500},
		{"8 octets quoted of ESP in UDP", Config{Link: 1500}, Quote{Len: 1500}, 1400, Unproved, 1500},
	} {
		p := New(c.config)
		wantVerdict(t, c.why, p.TooBig(c.quote, c.mtu, epoch), c.verdict)
		wantMTU(t, c.why, p, c.want)
		if got := c.verdict.Changed(); got != (p.MTU() != p.Link()) {
			t.Errorf("%s: Changed %v", c.why, got)
		}
	}
}

// TestOldStyleConverges: the packets that were on the way when an MTU-less message came in each
// produce one more, and together they must not take the path down step by step.
func TestOldStyleConverges(t *testing.T) {
	p := New(Config{Link: 1500})
	for i := range 8 {
		p.TooBig(quote(1500), 0, epoch.Add(time.Duration(i)*time.Millisecond))
	}
	wantMTU(t, "packets of 1500", p, 1472)

	p = New(Config{Link: 1500})
	wantVerdict(t, "first", p.TooBig(quote(0), 0, epoch), Lowered)
	wantVerdict(t, "in flight", p.TooBig(quote(0), 0, epoch.Add(10*time.Millisecond)), RateLimited)
	wantMTU(t, "length not known", p, 1492)
	wantVerdict(t, "still too long", p.TooBig(quote(0), 0, epoch.Add(time.Second)), Lowered)
	wantMTU(t, "length not known", p, 1480)
}

func TestRateLimit(t *testing.T) {
	p, now := New(Config{Link: 9000}), epoch
	for i := range icmpBurst {
		wantVerdict(t, "within the burst", p.TooBig(quote(9000), 8000-i, now), Lowered)
	}
	wantVerdict(t, "after it", p.TooBig(quote(9000), 5000, now), RateLimited)
	for range 1000 { // what is not believed takes no token
		p.TooBig(Quote{HasSeq: true, Seq: 9, Last: 8}, 1400, now)
		p.TooBig(quote(9000), 8999, now)
	}
	now = now.Add(icmpInterval)
	wantVerdict(t, "one more", p.TooBig(quote(9000), 5000, now), Lowered)
	wantVerdict(t, "and no more", p.TooBig(quote(9000), 4000, now), RateLimited)
	wantVerdict(t, "the clock went back", p.TooBig(quote(9000), 4000, now.Add(-time.Hour)), RateLimited)
	now = now.Add(time.Hour)
	for range icmpBurst {
		wantVerdict(t, "a new burst", p.TooBig(quote(9000), p.MTU()-1, now), Lowered)
	}
	wantVerdict(t, "of the same size", p.TooBig(quote(9000), 1400, now), RateLimited)
}

func TestRaise(t *testing.T) {
	p := New(Config{Link: 1500})
	p.TooBig(quote(1500), 1400, epoch)
	p.TooBig(quote(1500), 1300, epoch.Add(time.Minute))
	due := epoch.Add(11 * time.Minute)
	if got := p.Next(); !got.Equal(due) {
		t.Fatalf("due at %v, want ten minutes after the last time it was lowered", got)
	}
	if p.Tick(due.Add(-1)) {
		t.Fatal("raised too early")
	}
	if !p.Tick(due) {
		t.Fatal("not raised")
	}
	wantMTU(t, "RFC 1191, section 6.3", p, 1500)
	if p.Tick(due.Add(time.Hour)) || !p.Next().IsZero() {
		t.Fatal("raised twice")
	}
	wantVerdict(t, "the path is still as narrow", p.TooBig(quote(1500), 1300, due.Add(1)), Lowered)
	wantMTU(t, "down again", p, 1300)

	p = New(Config{Link: 1500, RaiseAfter: time.Second})
	p.TooBig(quote(1500), 1400, epoch)
	if p.Tick(epoch.Add(5*time.Minute - 1)) {
		t.Fatal("raised within five minutes: RFC 8201, section 4")
	}
	if !p.Tick(epoch.Add(5 * time.Minute)) {
		t.Fatal("not raised after five minutes")
	}

	p = New(Config{Link: 1500, RaiseAfter: -1})
	p.TooBig(quote(1500), 1400, epoch)
	if p.Tick(epoch.Add(1000*time.Hour)) || !p.Next().IsZero() {
		t.Fatal("raised, though never was asked for")
	}
}

func TestLink(t *testing.T) {
	p := New(Config{Link: 1500})
	if !p.SetLink(1400, epoch) {
		t.Error("a narrower link changes nothing")
	}
	wantMTU(t, "narrower", p, 1400)
	if !p.SetLink(9000, epoch) {
		t.Error("a wider link changes nothing")
	}
	wantMTU(t, "wider", p, 9000)

	p.TooBig(quote(9000), 1450, epoch)
	if p.SetLink(1500, epoch) {
		t.Error("the narrow place is further away")
	}
	wantMTU(t, "what a router said stays", p, 1450)
	if !p.Tick(epoch.Add(10 * time.Minute)) {
		t.Error("and is tried again")
	}
	wantMTU(t, "back to the link of today", p, 1500)

	p.TooBig(quote(1500), 1450, epoch)
	p.SetLink(1400, epoch)
	if !p.Next().IsZero() {
		t.Error("nothing is left to be raised")
	}

	p.TooBig(quote(1400), 1300, epoch)
	if !p.Reset(1500, epoch) {
		t.Error("another path")
	}
	wantMTU(t, "another path is another path", p, 1500)
	if p.Reset(1500, epoch) {
		t.Error("nothing changed")
	}
}

func TestLocalTooBig(t *testing.T) {
	p := New(Config{Link: 1500})
	if !p.LocalTooBig(1400, epoch) || p.MTU() != 1400 || p.Link() != 1400 {
		t.Fatalf("MTU %d, link %d", p.MTU(), p.Link())
	}
	if p.Tick(epoch.Add(time.Hour)) {
		t.Error("raised above the link")
	}
	if p.LocalTooBig(1400, epoch) || p.LocalTooBig(1500, epoch) || p.LocalTooBig(0, epoch) || p.LocalTooBig(67, epoch) {
		t.Error("changed by what is no news")
	}
	if !p.LocalTooBig(500, epoch) || p.MTU() != 500 {
		t.Error("the kernel is trusted below the floor too")
	}
}

// TestPathHolds does anything in any order, and looks at what must always hold.
func TestPathHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Config{
			V6:    rapid.Bool().Draw(t, "v6"),
			Link:  rapid.IntRange(0, 70000).Draw(t, "link"),
			Floor: rapid.SampledFrom([]int{0, 1, 576, 1280, 1400}).Draw(t, "floor"),
		}
		p, now := New(c), epoch
		probe := 0
		mtu := rapid.OneOf(rapid.IntRange(-1, 70000), rapid.IntRange(1100, 1600))
		low := p.Link() // least link MTU so far
		t.Repeat(map[string]func(*rapid.T){
			"icmp": func(t *rapid.T) {
				before, tell := p.MTU(), mtu.Draw(t, "mtu")
				v := p.TooBig(Quote{HasSeq: rapid.Bool().Draw(t, "has"), Seq: 5, Last: 5, Len: rapid.SampledFrom([]int{0, 1300, 1500, 65535}).Draw(t, "len")}, tell, now)
				if after := p.MTU(); v.Changed() != (after < before) || after > before || v.Changed() && after < p.floor {
					t.Fatalf("%v: %d → %d, floor %d", v, before, after, p.floor)
				}
			},
			"forged": func(t *rapid.T) {
				before := p.MTU()
				if v := p.TooBig(Quote{HasSeq: true, Seq: 6, Last: 5}, mtu.Draw(t, "mtu"), now); v != NotSent || p.MTU() != before {
					t.Fatalf("%v", v)
				}
			},
			"link":    func(t *rapid.T) { p.SetLink(mtu.Draw(t, "mtu"), now); low = min(low, p.Link()) },
			"reset":   func(t *rapid.T) { p.Reset(mtu.Draw(t, "mtu"), now); low, probe = min(low, p.Link()), 0 },
			"local":   func(t *rapid.T) { p.LocalTooBig(mtu.Draw(t, "mtu"), now); low = min(low, p.Link()) },
			"on":      func(t *rapid.T) { p.EnableProbes(now) },
			"off":     func(t *rapid.T) { p.DisableProbes(now) },
			"suspect": func(t *rapid.T) { p.Suspect(now) },
			"tick":    func(t *rapid.T) { p.Tick(now) },
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.Int64Range(0, int64(20*time.Minute)).Draw(t, "for")))
			},
			"probe": func(t *rapid.T) {
				if size, ok := p.NeedProbe(now); ok {
					probe = size
					if size > p.Link() || size < p.least() {
						t.Fatalf("probe of %d, link %d", size, p.Link())
					}
				}
			},
			"result": func(t *rapid.T) {
				before := p.MTU()
				acked := rapid.Bool().Draw(t, "acked")
				if changed := p.ProbeResult(probe, acked, now); changed != (before != p.MTU()) {
					t.Fatal("changed?")
				}
				if !acked && p.MTU() > before {
					t.Fatal("raised by a probe that was lost")
				}
			},
			"": func(t *rapid.T) {
				if m := p.MTU(); m > p.Link() || m < min(p.floor, low) {
					t.Fatalf("MTU %d, link %d, floor %d", m, p.Link(), p.floor)
				}
				if p.ProbeState() == Off && p.MTU() < p.Link() && p.Next().IsZero() {
					t.Fatal("lowered for ever")
				}
			},
		})
	})
}

func TestConcurrent(t *testing.T) {
	p := New(Config{Link: 1500})
	p.EnableProbes(epoch)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 1000 {
				now := epoch.Add(time.Duration(i) * time.Second)
				switch g {
				case 0:
					p.TooBig(quote(1500), 1500-i%200, now)
				case 1:
					size, ok := p.NeedProbe(now)
					p.ProbeResult(size, ok && size < 1400, now)
				case 2:
					p.Tick(now)
				case 3:
					if m := p.MTU(); m > 1500 || m < 576 {
						t.Errorf("MTU %d", m)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestNames(t *testing.T) {
	for _, s := range []struct{ got, want string }{
		{Lowered.String(), "lowered"},
		{RateLimited.String(), "rate limited"},
		{Verdict(200).String(), "unknown verdict"},
		{Off.String(), "off"},
		{Down.String(), "down"},
		{ProbeState(200).String(), "unknown state"},
		{Fits.String(), "fits"},
		{FragmentOuter.String(), "fragment outer"},
		{Fit(200).String(), "unknown"},
		{Ignore.String(), "ignore"},
		{CheckEncap.String(), "check encapsulation"},
		{Action(200).String(), "unknown action"},
	} {
		if s.got != s.want {
			t.Errorf("%q, want %q", s.got, s.want)
		}
	}
}

func TestPlateaus(t *testing.T) {
	for i := 1; i < len(plateaus); i++ {
		if plateaus[i] <= plateaus[i-1] {
			t.Fatalf("%d after %d", plateaus[i], plateaus[i-1])
		}
	}
	for _, c := range []struct{ n, want int }{{65536, 65535}, {1500, 1492}, {1501, 1500}, {69, 68}, {68, 68}, {0, 68}} {
		if got := plateauBelow(c.n); got != c.want {
			t.Errorf("below %d: %d, want %d", c.n, got, c.want)
		}
	}
	for _, c := range []struct{ lo, hi, want int }{{1280, 1500, 1440}, {1480, 1500, 1492}, {1492, 1500, 0}, {65535, 65536, 0}, {1500, 1400, 0}} {
		if got := plateauBetween(c.lo, c.hi); got != c.want {
			t.Errorf("between %d and %d: %d, want %d", c.lo, c.hi, got, c.want)
		}
	}
}

func BenchmarkMTU(b *testing.B) {
	p := New(Config{Link: 1500})
	b.ReportAllocs()
	for b.Loop() {
		if p.MTU() != 1500 {
			b.Fatal("changed")
		}
	}
}

func BenchmarkForgedTooBig(b *testing.B) {
	p := New(Config{Link: 1500})
	q := Quote{HasSeq: true, Seq: 6, Last: 5}
	b.ReportAllocs()
	for b.Loop() {
		if p.TooBig(q, 1400, epoch) != NotSent {
			b.Fatal("believed")
		}
	}
}
