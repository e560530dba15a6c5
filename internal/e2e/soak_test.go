package e2e

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/router/control"
)

// soakSize is how much is transferred unless WARDGATE_SOAK says otherwise (such as "20G").
const soakSize = 400 << 20

// congestion are the counters of what is lost because more came than the machine could take.
var congestion = []string{"drop_overload", "drop_tun_ring_full", "socket_in_dropped", "socket_out_no_buffer"}

// notLost is what no host has sent: what the kernel says on a new interface, and is for no tunnel.
var notLost = []string{"drop_not_unicast"}

// A long transfer over TCP while CHILD SAs are rekeyed every second by either side and the network
// loses one packet in a thousand in both directions: the sums are equal, the routers lose nothing of
// their own, and their memory stays what it was.
func TestSoak(t *testing.T) {
	needRoot(t)
	size, every := int64(soakSize), 200*time.Millisecond // the short one is over in seconds
	if s := os.Getenv("WARDGATE_SOAK"); s != "" {
		var err error
		size, err = parseSize(s)
		must(t, err)
		every = time.Second
	}
	n := newLine(t, "e2e-soak")
	keys := withKeylog(t, n, every)
	ctx := within(t, max(90*time.Second, time.Duration(size/(10<<20))*time.Second)) // 10 MiB/s would be a failure
	must(t, n.Singly(ctx))
	for _, f := range n.Sides {
		f.LogLevel = "info"
		// Segmented before it reaches the cable, so that single packets are lost, not runs of
		// them; and coalesced again behind it, which a veth does with what comes from a device
		// that segments nothing.
		must(t, f.Router.Offload(ctx, lab.WANDev, true, "gro"))
	}
	must(t, n.Start(ctx, false, "", nil), n.Lose(1))

	s := &tcpStream{from: n.Hosts[1], to: n.Hosts[0], src: n.Addr(1, false), dst: netip.AddrPortFrom(n.Addr(0, false), lab.LinePorts[0]), size: size, seed: 20}
	done := make(chan error, 1)
	start := time.Now()
	go func() { done <- s.run(ctx) }()
	rss := watchMemory(t, n, s, done)
	took := time.Since(start)

	by := rekeyed(t, keys)
	t.Logf("%d MiB in %v, %.0f Mbit/s; CHILD SAs rekeyed by A %d times, by B %d times", size>>20, took.Round(time.Millisecond), float64(size)*8e-6/took.Seconds(), by[0], by[1])
	for i, f := range n.Sides {
		rss[i].check(t, f.Title)
		c := counters(ctx, t, f)
		t.Logf("%s: %s", f.Title, notZero(c))
		for name, v := range c {
			if strings.HasPrefix(name, "drop_") && v > 0 && !slices.Contains(congestion, name) && !slices.Contains(notLost, name) {
				t.Errorf("%s: %s is %d; want 0", f.Title, name, v)
			}
		}
		if by[i] == 0 {
			t.Errorf("%s has rekeyed no CHILD SA", f.Title)
		}
		conn, err := f.Connection(ctx, "a-b")
		must(t, err)
		for _, sa := range conn.SAs {
			if sa.In.Replay+sa.In.Auth+sa.In.Malformed+sa.In.Exhausted+sa.Out.Exhausted > 0 {
				t.Errorf("%s: SA %08x: %+v; want no replay, nothing that is not authentic or malformed, nothing exhausted", f.Title, sa.SPIIn, sa)
			}
		}
	}
	accounted(ctx, t, n, true)
}

// accounted waits until every packet is accounted for: nothing that left one router did not come to
// the other but for what the network lost; and nothing that came out of one TUN device did not go
// into the other.
func accounted(ctx context.Context, t *testing.T, n *lab.Line, lossy bool) {
	t.Helper()
	must(t, lab.WaitFor(ctx, "every packet to be accounted for", 10*time.Second, func() error {
		var lost [2]uint64
		if lossy {
			var err error
			lost, err = n.Lost(ctx)
			must(t, err)
		}
		c := [2]map[string]uint64{counters(ctx, t, n.Sides[0]), counters(ctx, t, n.Sides[1])}
		for from := range 2 {
			to := 1 - from
			out, in := c[from]["socket_out_datagrams"], c[to]["socket_in_datagrams"]+c[to]["socket_in_dropped"]
			if out != in+lost[from] {
				return fmt.Errorf("%s sent %d datagrams; %d were lost on the way, %d came to the other side", n.Sides[from].Title, out, lost[from], in)
			}
			if lossy && lost[from] == 0 && out > 20_000 {
				return fmt.Errorf("nothing of what %s sent was lost: the test has not tested", n.Sides[from].Title)
			}
			traffic := [2]control.Traffic{traffic(ctx, t, n.Sides[from]), traffic(ctx, t, n.Sides[to])}
			if read, sealed := c[from]["tun_read_packets"]-c[from]["drop_not_unicast"], traffic[0].PacketsOut; read != sealed {
				return fmt.Errorf("%s read %d packets from its TUN device and sealed %d", n.Sides[from].Title, read, sealed)
			}
			if opened, written := traffic[1].PacketsIn, c[to]["tun_write_packets"]; opened != written {
				return fmt.Errorf("%s opened %d packets and wrote %d to its TUN device", n.Sides[to].Title, opened, written)
			}
		}
		if lossy {
			t.Logf("lost by the network: %d from A, %d from B", lost[0], lost[1])
		}
		return nil
	}))
}

func traffic(ctx context.Context, t *testing.T, f *lab.Facility) control.Traffic {
	t.Helper()
	c, err := f.Control().Counters(ctx)
	must(t, err)
	return c.Traffic
}

// memory is what a daemon had resident over a transfer.
type memory struct {
	warm    int64 // most until a fifth had arrived
	highest int64 // most since
	samples int
}

// memorySlack is by how much a daemon's resident memory may exceed what it was when warm: one
// garbage collection more or less.
const memorySlack = 8 << 20

func (m *memory) check(t *testing.T, who string) {
	t.Helper()
	t.Logf("%s: resident memory %.1f MiB when warm, at most %.1f MiB afterwards, %d samples", who, float64(m.warm)/(1<<20), float64(m.highest)/(1<<20), m.samples)
	if m.highest > m.warm+memorySlack {
		t.Errorf("%s: resident memory grew from %d to %d octets; want at most %d more", who, m.warm, m.highest, memorySlack)
	}
}

// watchMemory looks at both daemons until the stream ends.
func watchMemory(t *testing.T, n *lab.Line, s *tcpStream, done <-chan error) (m [2]memory) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		for i, f := range n.Sides {
			must(t, f.Daemon.Running())
			rss, err := f.Daemon.RSS()
			must(t, err)
			m[i].samples++
			if s.got.Load() < s.size/5 {
				m[i].warm = max(m[i].warm, rss)
			} else {
				m[i].highest = max(m[i].highest, rss)
			}
		}
		select {
		case err := <-done:
			must(t, err)
			return m
		case <-tick.C:
		}
	}
}

func notZero(c map[string]uint64) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(c)) {
		if c[k] != 0 {
			out = append(out, fmt.Sprintf("%s=%d", k, c[k]))
		}
	}
	return strings.Join(out, " ")
}

// parseSize reads "20G", "400M" or a number of octets.
func parseSize(s string) (int64, error) {
	shift := map[byte]int{'K': 10, 'M': 20, 'G': 30}[cmp.Or(s, " ")[len(cmp.Or(s, " "))-1]]
	n, err := strconv.ParseInt(strings.TrimRight(s, "KMG"), 10, 64)
	if err != nil || n <= 0 || n > 1<<50>>shift {
		return 0, fmt.Errorf("WARDGATE_SOAK=%q: want a size such as 400M or 20G", s)
	}
	return n << shift, nil
}

// Rekeying while packets flow loses none and doubles none: no network loses anything here, so
// whatever is missing is our doing. On one queue no packet overtakes another either.
func TestRekeyLosesAndReordersNothing(t *testing.T) {
	t.Parallel()
	n := newLine(t, "e2e-rekey")
	keys := withKeylog(t, n, 50*time.Millisecond)
	ctx := within(t, 60*time.Second)
	for _, queues := range []int{1, 2} {
		must(t, n.Start(ctx, false, fmt.Sprintf("queues = %d\n", queues), nil))
		ping(ctx, t, n, false) // a connection that does not stand yet holds few packets
		for from := range 2 {
			d := datagrams{
				from: n.Hosts[from], to: n.Hosts[1-from], src: n.Addr(from, false), dst: netip.AddrPortFrom(n.Addr(1-from, false), lab.LinePorts[0]),
				count: 60_000, ahead: 256, size: func(i int) int { return 8 + i%1200 },
			}
			before := rekeyed(t, keys)
			got, err := d.run(ctx)
			must(t, err)
			after := rekeyed(t, keys)
			rekeys := after[0] + after[1] - before[0] - before[1]
			t.Logf("%d queues, from %s: %d datagrams, %d rekeys, %d datagrams out of order", queues, n.Sides[from].Title, got, rekeys, d.disorder)
			if got != d.count || d.disorder != 0 {
				t.Errorf("%d of %d datagrams arrived, %d after later ones; want all, in order", got, d.count, d.disorder)
			}
			if rekeys < 5 {
				t.Errorf("%d rekeys during the transfer: too few to show anything", rekeys)
			}
		}
		for _, f := range n.Sides {
			for name, v := range counters(ctx, t, f) {
				if strings.HasPrefix(name, "drop_") && v > 0 && !slices.Contains(notLost, name) {
					t.Errorf("%d queues, %s: %s is %d; want 0", queues, f.Title, name, v)
				}
			}
		}
		must(t, n.Stop())
	}
}
