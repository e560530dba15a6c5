package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"wardgate/internal/benchjson"
	"wardgate/internal/lab"
)

// scaleTest is a measurement with a policy of its own, in several sizes; the first is what the
// others are set against.
type scaleTest struct {
	name  string // with the size and the subject behind it, what results are about
	scale func(n int) lab.Scale
	sizes []int
}

// parseSizes reads "1,100,10000".
func parseSizes(text string) ([]int, error) {
	var out []int
	for s := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%w: sizes %q: want numbers above 0 with commas between", errUsage, text)
		}
		out = append(out, n)
	}
	return out, nil
}

// scaled measures one subject in all sizes of a test.
func (b *netBench) scaled(ctx context.Context, s lab.Subject, t scaleTest) error {
	base := map[string]float64{}
	for _, n := range t.sizes {
		name := fmt.Sprintf("%s-%d %s", t.name, n, s.Name)
		got, err := b.oneScale(ctx, s, t.scale(n), name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			// Larger sizes are no use then, but everything else is.
			return b.add(benchjson.Result{Subject: name, Test: benchjson.NotAvailable, Note: err.Error()})
		}
		for _, kind := range scaleKinds {
			v, ok := got[kind]
			switch {
			case !ok:
			case n == t.sizes[0]:
				base[kind] = v
			case base[kind] > 0:
				r := benchjson.Result{
					Subject: name, Test: kind, Unit: fmt.Sprintf("%%-of-%s-%d", t.name, t.sizes[0]),
					Value: math.Round(1000*v/base[kind]) / 10,
				}
				if err := b.add(r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// scaleKinds are the measurements of a scale that are set against the smallest size.
var scaleKinds = []string{"udp1372", "tcp1"}

// scalePairs is over how many pairs of addresses the traffic is spread at most: fewer than a router
// remembers flows.
const scalePairs = 10_000

func (b *netBench) oneScale(ctx context.Context, s lab.Subject, scale lab.Scale, name string) (got map[string]float64, err error) {
	p, err := b.lab.Pair()
	if err != nil {
		return nil, err
	}
	defer func() {
		if closeErr := p.Close(); closeErr != nil {
			fmt.Fprintf(os.Stderr, "  %s: %v\n", s.Name, closeErr)
		}
	}()
	up, err := s.Scale(ctx, p, scale)
	if err != nil {
		return nil, withLogs(err, p)
	}
	m := &measurer{netBench: b, pair: p, name: name}
	defer m.close()
	if err := errors.Join(m.startSink(), m.put("install", up.Install.Seconds(), "s")); err != nil {
		return nil, err
	}
	if scale.Rules > 0 && up.Flows < scale.Rules {
		fmt.Fprintf(os.Stderr, "  %s: %d rules in %d flows, for the policy's size\n", s.Name, scale.Rules, up.Flows)
	}
	sources, targets := spread(up.Sources, scalePairs), spread(up.Targets, scalePairs)
	start := time.Now()
	if err := p.HostA.Wake(ctx, m.sink, sources, targets, 20*time.Second); err != nil {
		return nil, withLogs(err, p)
	}
	if err := m.put("setup", time.Since(start).Seconds(), "s"); err != nil {
		return nil, err
	}
	if err := m.resting(ctx); err != nil {
		return nil, err
	}
	r, err := p.HostA.Flood(ctx, m.sink, lab.Flood{Sizes: []int{1372}, For: b.length, Sources: sources, Targets: targets, Burst: 16})
	if err != nil {
		return nil, err
	}
	stream, err := m.iperf(ctx, targets[0], b.length, "-B", sources[0].String())
	if err != nil {
		return nil, err
	}
	got = map[string]float64{"udp1372": r.Mbit(), "tcp1": stream.End.Received.Bits / 1e6}
	return got, errors.Join(
		m.put("udp1372", r.Mbit(), "Mbit/s"),
		m.put("udp1372", r.Loss(), "%lost"),
		m.put("tcp1", got["tcp1"], "Mbit/s"),
		m.rss(ctx, "rss"),
	)
}

// resting measures what standing tunnels cost while nobody uses them.
func (m *measurer) resting(ctx context.Context) error {
	const length = time.Second
	before, err := m.daemonCPU()
	if err != nil {
		return err
	}
	select {
	case <-time.After(length):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := m.daemonCPU()
	if err != nil {
		return err
	}
	return m.put("resting", 100*(after-before).Seconds()/length.Seconds(), "%-of-a-core")
}

// spread takes at most n addresses, evenly, the first among them.
func spread(all []netip.Addr, n int) []netip.Addr {
	if len(all) <= n {
		return all
	}
	out := make([]netip.Addr, n)
	for i := range out {
		out[i] = all[i*len(all)/n]
	}
	return out
}

// withLogs adds the daemons' last words to an error: their logs go with the lab.
func withLogs(err error, p *lab.Pair) error {
	for _, d := range p.Daemons {
		err = fmt.Errorf("%w; %s: %s", err, d.Name, strings.TrimSpace(d.Tail(2)))
	}
	return err
}
