package lab

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/policy"
)

// What the benchmarks measure with, on plain forwarding: everything sent at a modest rate arrives,
// is counted once and with its length, and nothing is left behind.
func TestPair(t *testing.T) {
	t.Parallel()
	l := newLab(t, "t-pair")
	p, err := l.Pair()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.raw(); err != nil {
		t.Fatal(err)
	}
	if err := p.Ping(t.Context(), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	sink, err := p.HostB.Sink(SinkPort)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	mean := 0
	for _, n := range IMIX {
		mean += n
	}
	for range 2 { // a second run counts anew
		r, err := p.HostA.Flood(t.Context(), sink, Flood{Sizes: IMIX, Rate: 5000, For: 10 * time.Second, Packets: 1200})
		if err != nil {
			t.Fatal(err)
		}
		if r.Sent != 1200 || r.Received != 1200 || r.Octets != uint64(100*mean) || r.Loss() != 0 || r.PPS() <= 0 || r.Mbit() <= 0 {
			t.Errorf("1200 packets of IMIX: %+v", r)
		}
	}
	// Without a limit it ends by time, and sends more than a batch.
	r, err := p.HostA.Flood(t.Context(), sink, Flood{Sizes: []int{200}, For: 50 * time.Millisecond})
	if err != nil || r.Sent < floodBatch || r.Received > r.Sent || r.Took < 50*time.Millisecond {
		t.Errorf("flood: %+v, %v", r, err)
	}
	// The addresses behind the hosts can talk too.
	for i, n := range p.routers() {
		if err := n.IP("route", "add", pairMany[1-i].String(), "via", pairWAN[1-i].String()); err != nil {
			t.Fatal(err)
		}
	}
	sources, targets, err := Scale{Tunnels: 100}.pairs()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.HostA.Wake(t.Context(), sink, sources, targets, 5*time.Second); err != nil {
		t.Error(err)
	}
	if r, err = p.HostA.Flood(t.Context(), sink, Flood{Sizes: []int{64}, Packets: 3200, Rate: 10_000, For: 10 * time.Second, Sources: sources, Targets: targets, Burst: 16}); err != nil || r.Received != 3200 {
		t.Errorf("over 100 pairs: %+v, %v", r, err)
	}
	nobody := []netip.Addr{netip.MustParseAddr("10.2.1.99")}
	if err := p.HostA.Wake(t.Context(), sink, []netip.Addr{p.HostA.Addr}, nobody, 10*time.Millisecond); err == nil {
		t.Error("an address that nobody has was woken")
	}
	if _, err := p.HostA.Flood(t.Context(), sink, Flood{Sizes: []int{3}, For: time.Second}); err == nil {
		t.Error("packets too short for the run's number were sent")
	}
	best, err := p.HostA.LossFree(t.Context(), sink, Flood{Sizes: []int{200}, For: 20 * time.Millisecond}, 500, 1000, 50, 3)
	if err != nil || best <= 0 {
		t.Errorf("loss-free rate %v, %v", best, err)
	}

	echo, err := p.HostB.Echo(PingPort)
	if err != nil {
		t.Fatal(err)
	}
	times, lost, err := p.HostA.RoundTrips(t.Context(), echo, 50*time.Millisecond, time.Millisecond)
	if err != nil || lost != 0 || len(times) == 0 || times[0] <= 0 || !slices.IsSorted(times) {
		t.Errorf("round trips %v, %d lost, %v", times, lost, err)
	}
	echo.Close()

	if _, err := l.Start(p.A, "sleep", nil, "sleep", "100"); err != nil {
		t.Fatal(err)
	}
	before := spaces(t)
	if !slices.Contains(before, p.HostA.Name) {
		t.Fatalf("no %s among %q", p.HostA.Name, before)
	}
	names := []string{p.A.Name, p.B.Name, p.HostA.Name, p.HostB.Name}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	for _, n := range spaces(t) {
		if slices.Contains(names, n) {
			t.Errorf("%s is left behind", n)
		}
	}
	// The same lab goes on with the next pair.
	if p, err = l.Pair(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestProcessorTimes(t *testing.T) {
	t.Parallel()
	got, err := cpuTime("4242 (a (very) odd) name) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 7 0 12345")
	if err != nil || got != 1750*time.Millisecond {
		t.Errorf("of a process: %v, %v; want 1.75s", got, err)
	}
	for _, bad := range []string{"", "1 (x) S 1 2", "1 (x) S 1 2 3 4 5 6 7 8 9 10 a 25 0"} {
		if _, err := cpuTime(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	got, err = busyTime("cpu  100 10 50 9999 77 5 15 3 0 0")
	if err != nil || got != 1800*time.Millisecond {
		t.Errorf("of the machine: %v, %v; want 1.8s", got, err)
	}
	for _, bad := range []string{"", "cpu0 1 2 3 4 5 6 7", "cpu 1 2 3", "cpu 1 2 3 4 5 6 x"} {
		if _, err := busyTime(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if got, err := BusyCPU(); err != nil || got <= 0 {
		t.Errorf("this machine: %v, %v", got, err)
	}
}

func TestBisect(t *testing.T) {
	t.Parallel()
	for _, limit := range []float64{1500, 40_000, 299_000, 1e9} {
		best, err := bisect(1000, 300_000, 12, func(rate float64) (float64, bool, error) { return rate, rate <= limit, nil })
		want := min(limit, 300_000)
		if err != nil || best > want || best < 0.99*want {
			t.Errorf("limit %v: found %v, %v", limit, best, err)
		}
	}
	if best, err := bisect(1000, 300_000, 12, func(float64) (float64, bool, error) { return 0, false, nil }); err != nil || best != 0 {
		t.Errorf("nothing holds: %v, %v; want 0", best, err)
	}
	broken := errors.New("broken")
	if _, err := bisect(1, 2, 3, func(float64) (float64, bool, error) { return 0, false, broken }); !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
}

func TestFloodResult(t *testing.T) {
	t.Parallel()
	r := FloodResult{Sent: 2000, Received: 500, Octets: 500 * 1000, Took: 2 * time.Second}
	if r.PPS() != 250 || r.Mbit() != 2 || r.Loss() != 75 {
		t.Errorf("%v packets/s, %v Mbit/s, %v %% lost; want 250, 2, 75", r.PPS(), r.Mbit(), r.Loss())
	}
	if l := (FloodResult{}).Loss(); l != 100 {
		t.Errorf("nothing sent: %v %% lost, want 100", l)
	}
}

// The policies of the scale tests are policies: signed, which compiles them, for both sides.
func TestScalePolicies(t *testing.T) {
	t.Parallel()
	p, err := NewProvider(GroupA)
	if err != nil {
		t.Fatal(err)
	}
	w := &pairWardgate{provider: p}
	for i, name := range []string{"a", "b"} {
		f := &Facility{
			Name: name, Title: name, DeviceID: name + ".devices.example", WAN: pairWAN[i],
			Zones: []*Zone{{Name: "sz", Level: "SZ", Dev: "sz0", Prefix: pairLAN[i].Masked(), Gateway: pairLAN[i].Addr()}},
		}
		id, err := p.Forge(f, GroupA, nil)
		if err != nil {
			t.Fatal(err)
		}
		f.leafDER = id.Certs[0][0].Raw
		w.sides[i] = f
	}
	w.contract = w.benchContract()
	for _, c := range []struct {
		s                         Scale
		pairs, connections, flows int
	}{
		{Scale{Tunnels: 1}, 1, 1, 1},
		{Scale{Tunnels: 300}, 300, 300, 1},
		{Scale{Tunnels: 1, Rules: 25}, 25, 1, 25},
		{Scale{Tunnels: 1, Rules: 3000}, 3000, 1, 3000},
	} {
		sources, targets, err := c.s.pairs()
		if err != nil || len(sources) != c.pairs || len(targets) != c.pairs {
			t.Fatalf("%+v: %d sources, %d targets, %v", c.s, len(sources), len(targets), err)
		}
		seen := map[[2]netip.Addr]bool{}
		for i := range sources {
			if !pairMany[0].Contains(sources[i]) || !pairMany[1].Contains(targets[i]) {
				t.Fatalf("%+v: pair %d is %v, %v", c.s, i, sources[i], targets[i])
			}
			seen[[2]netip.Addr{sources[i], targets[i]}] = true
		}
		if len(seen) != c.pairs {
			t.Errorf("%+v: %d different pairs", c.s, len(seen))
		}
		files, flows, err := w.scalePolicies("aes128gcm16", c.s)
		if err != nil {
			t.Fatalf("%+v: %v", c.s, err)
		}
		if flows != c.flows*c.connections {
			t.Errorf("%+v: %d flows, want %d", c.s, flows, c.flows*c.connections)
		}
		for i := range files {
			if len(files[i]) > policy.MaxFileSize || len(files[i]) == 0 {
				t.Errorf("%+v: side %d has a file of %d octets", c.s, i, len(files[i]))
			}
		}
	}
	for _, s := range []Scale{{}, {Tunnels: maxScale + 1}, {Rules: -1}, {Rules: math.MaxInt32}} {
		if _, _, err := s.pairs(); err == nil {
			t.Errorf("%+v was taken", s)
		}
	}
}

func TestColons(t *testing.T) {
	t.Parallel()
	if got := colons([]byte{0, 0xab, 9}); got != "00:AB:09" {
		t.Errorf("got %s", got)
	}
}

// A wardgated that has a cipher is not taken for the limit.
func TestIsLimit(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{"wardgated v1\n": false, "": false, "wardgated v1 nocipher\n": true} {
		if err := saysNoCipher(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, program := range []string{"/bin/echo", "/bin/false", "/nonexistent/wardgated"} {
		if err := isLimit(t.Context(), program); err == nil {
			t.Errorf("%s was taken", program)
		}
	}
}
