package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"wardgate/internal/lab"
)

// A network that holds packets back until hundreds of others have passed, doubles them, and hands
// over forged copies of them: everything that was sent arrives, once, and what was too much is
// counted for what it was.
func TestBadNetwork(t *testing.T) {
	needRoot(t)
	t.Parallel()
	n := newLine(t, "e2e-bad")
	ctx := within(t, 60*time.Second)
	must(t, n.Singly(ctx), n.Start(ctx, false, "", nil))
	ping(ctx, t, n, false)

	const (
		held   = 20 // of one packet in ten: hundreds of others pass meanwhile, less than the window of 4096
		seed   = 3
		oneOf  = 10
		copies = 8 // one in so many is doubled, one in so many is forged
	)
	random := rand.New(rand.NewPCG(seed, seed))
	var (
		waiting               [][]byte
		late, doubled, forged int
		pick                  = func(i int) []byte { p := waiting[i]; waiting = append(waiting[:i], waiting[i+1:]...); return p }
		forge                 = func(p []byte) []byte {
			f := append([]byte(nil), p...)
			f[len(f)-1-random.IntN(len(f)-20-8-8)] ^= 1 << random.IntN(8) // behind SPI and sequence number
			f[20+6], f[20+7] = 0, 0                                       // no UDP checksum: it is ESP that has to notice
			return f
		}
	)
	d, err := n.Detour(0, oneOf, func(p []byte) (out [][]byte) {
		if p == nil {
			out, waiting = waiting, nil
			return out
		}
		switch random.IntN(copies) {
		case 0: // the copy comes first or last, wherever the packets are let go
			waiting = append(waiting, append([]byte(nil), p...))
			doubled++
		case 1:
			out = append(out, forge(p)) // before the true one
			forged++
		}
		for waiting = append(waiting, p); len(waiting) > held; {
			late++
			out = append(out, pick(random.IntN(len(waiting))))
		}
		return out
	})
	must(t, err)
	defer func() { must(t, d.Close()) }()

	u := datagrams{
		from: n.Hosts[0], to: n.Hosts[1], src: n.Addr(0, false), dst: netip.AddrPortFrom(n.Addr(1, false), lab.LinePorts[0]),
		count: 20_000, ahead: 1500, // and so the window bounds how late one can be
		size: func(i int) int { return 8 + i%1300 },
	}
	got, err := u.run(ctx)
	must(t, err)
	must(t, lab.WaitFor(ctx, "every copy to be counted", 5*time.Second, func() error {
		c := counters(ctx, t, n.Sides[1])
		var wait, dup, bad int
		d.Do(func() { wait, dup, bad = len(waiting), doubled, forged })
		if replay, auth := int(c["drop_replay"]), int(c["drop_not_authentic"]); wait > 0 || replay != dup || auth != bad {
			return fmt.Errorf("%d packets are held back; %d copies and %d forgeries were handed over, %d and %d counted", wait, dup, bad, replay, auth)
		}
		return nil
	}))
	if got != u.count || u.disorder == 0 || late < 100 || doubled < 100 || forged < 100 {
		t.Errorf("%d of %d datagrams arrived, %d after later ones; %d packets came late, %d twice, %d forged (seed %d); want all to arrive, and hundreds of each", got, u.count, u.disorder, late, doubled, forged, seed)
	}
	t.Logf("%d datagrams, %d out of order; %d packets late, %d doubled, %d forged", got, u.disorder, late, doubled, forged)
	for name, v := range counters(ctx, t, n.Sides[1]) {
		switch name {
		case "drop_unknown_spi", "drop_malformed", "drop_malformed_esp", "drop_outside_selectors", "drop_tun_write_failed":
			if v > 0 {
				t.Errorf("%s is %d; want 0", name, v)
			}
		}
	}
	// TCP has no bound on what is under way, so here packets may come later than the window is wide.
	s := &tcpStream{from: n.Hosts[0], to: n.Hosts[1], src: n.Addr(0, false), dst: netip.AddrPortFrom(n.Addr(1, false), lab.LinePorts[0]), size: 4 << 20}
	must(t, s.run(ctx))
}
