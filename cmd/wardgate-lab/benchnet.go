package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardgate/internal/benchjson"
	"wardgate/internal/lab"
)

func benchNetCommand() *cobra.Command {
	b := &netBench{}
	var bin, out, subjects, tests, tunnels, rules string
	var seconds float64
	cmd := &cobra.Command{
		Use:   "bench-net --out FILE",
		Short: "Wardgate and other tunnels between two routers in turn, in network namespaces (as root)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if b.rounds < 1 || seconds < 0.2 {
				return fmt.Errorf("%w: ROUNDS=%d SECONDS=%v: want at least 1 round and 0.2 seconds", errUsage, b.rounds, seconds)
			}
			b.length = time.Duration(seconds * float64(time.Second))
			all := netTests()
			for name, sizes := range map[string]string{"tunnels": tunnels, "rules": rules} {
				t := scaleTest{name: name, scale: func(n int) lab.Scale { return lab.Scale{Tunnels: n} }}
				if name == "rules" {
					t.scale = func(n int) lab.Scale { return lab.Scale{Tunnels: 1, Rules: n} }
				}
				if t.sizes, err = parseSizes(sizes); err != nil {
					return err
				}
				all = append(all, netTest{name: name, scale: &t})
			}
			if b.tests, err = chooseTests(all, tests); err != nil {
				return err
			}
			ctx := cmd.Context()
			if b.lab, err = lab.New(ctx, lab.Options{Name: "bench", Bin: bin}); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, b.lab.Close()) }()
			there, err := b.lab.Subjects(ctx, b.tools)
			if err != nil {
				return err
			}
			if b.subjects, err = chooseSubjects(there, subjects); err != nil {
				return err
			}
			if b.out, err = os.Create(out); err != nil {
				return err
			}
			err = errors.Join(b.run(ctx), b.out.Close())
			return errors.Join(err, benchjson.Report(os.Stdout, b.results, benchjson.Text))
		},
	}
	f := cmd.Flags()
	f.StringVar(&bin, "bin", "build/bin", "folder of wardgated, wardgate and wardgate-chip")
	f.StringVar(&b.tools.Dir, "tools", "build/tools", "folder of wireguard and nebula")
	f.StringVar(&b.tools.Limit, "limit", "build/bench/bin/wardgated", "the wardgated that was built without a cipher")
	f.StringVar(&out, "out", "", "file for the JSON lines; replaced")
	f.StringVar(&subjects, "subjects", "", "what to measure, with commas between; empty: all but variants")
	f.StringVar(&tests, "tests", "", "tests to run, with commas between; empty: all but tunnels and rules")
	f.StringVar(&tunnels, "tunnels", "1,100,10000", "the test tunnels: how many there are, one after the other")
	f.StringVar(&rules, "rules", "10,100000", "the test rules: how many there are, one after the other")
	f.IntVar(&b.rounds, "rounds", 3, "rounds; the subjects take turns in each")
	f.Float64Var(&seconds, "seconds", 5, "length of one measurement")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// netBench is one run of the benchmark.
type netBench struct {
	lab      *lab.Lab
	tools    lab.Tools
	subjects []lab.Subject
	tests    []netTest
	rounds   int
	length   time.Duration
	out      *os.File

	round     int
	iperfRuns int // clients started: each has an output of its own
	results   []benchjson.Result
}

func chooseSubjects(all []lab.Subject, names string) ([]lab.Subject, error) {
	var out []lab.Subject
	if names == "" {
		for _, s := range all {
			if !s.Extra {
				out = append(out, s)
			}
		}
		return out, nil
	}
	for name := range strings.SplitSeq(names, ",") {
		if name == aeadSubject {
			continue // is always measured
		}
		i := slices.IndexFunc(all, func(s lab.Subject) bool { return s.Name == name })
		if i < 0 {
			known := make([]string, len(all))
			for i, s := range all {
				known[i] = s.Name
			}
			return nil, fmt.Errorf("%w: no subject %q; there are: %s", errUsage, name, strings.Join(known, " "))
		}
		out = append(out, all[i])
	}
	return out, nil
}

// run measures every subject once a round. What Wardgate itself cannot do ends the run; what a peer
// cannot do is noted.
func (b *netBench) run(ctx context.Context) error {
	for b.round = 1; b.round <= b.rounds; b.round++ {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", b.round, b.rounds)
		if err := b.aead(ctx); err != nil {
			return err
		}
		for _, s := range b.subjects {
			switch err := b.measure(ctx, s); {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil && s.Ours:
				return fmt.Errorf("%s: %w", s.Name, err)
			case err != nil:
				why := err.Error()
				if err := b.add(benchjson.Result{Subject: s.Name, Test: benchjson.NotAvailable, Note: why}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// aeadSubject names what one core reaches without any network.
const aeadSubject = "aead"

// aeadSize is the inner packet of the limit: the longest that the tunnels carry.
const aeadSize = lab.PairMTU

func (b *netBench) aead(ctx context.Context) error {
	for _, bits := range []int{128, 256} {
		v, err := lab.MeasureAEAD(ctx, bits, aeadSize, min(b.length/10, 300*time.Millisecond))
		if err != nil {
			return err
		}
		for _, m := range []struct {
			test  string
			value float64
		}{{"go-seal-%d", v.Raw}, {"esp-seal-%d", v.Seal}, {"esp-open-%d", v.OpenBatch}} {
			if err := b.add(benchjson.Result{Subject: aeadSubject, Test: fmt.Sprintf(m.test, bits), Value: m.value * 8, Unit: "Mbit/s"}); err != nil {
				return err
			}
		}
	}
	return nil
}

// add notes one measurement of this round: in the file at once, so that an interrupted run leaves
// what it has.
func (b *netBench) add(r benchjson.Result) error {
	r.Round = b.round
	r.Note = strings.ReplaceAll(r.Note, "\n", "; ")
	b.results = append(b.results, r)
	if r.Note != "" {
		fmt.Fprintf(os.Stderr, "  %-28s %-12s %s\n", r.Subject, r.Test, r.Note)
	} else {
		fmt.Fprintf(os.Stderr, "  %-28s %-12s %10.4g %s\n", r.Subject, r.Test, r.Value, r.Unit)
	}
	return benchjson.Write(b.out, []benchjson.Result{r})
}

// measure runs all tests on one subject.
func (b *netBench) measure(ctx context.Context, s lab.Subject) error {
	if slices.ContainsFunc(b.tests, func(t netTest) bool { return t.scale == nil }) {
		if err := b.subject(ctx, s); err != nil {
			return err
		}
	}
	for _, t := range b.tests {
		if t.scale != nil && s.Scale != nil {
			if err := b.scaled(ctx, s, *t.scale); err != nil {
				return err
			}
		}
	}
	return nil
}

// subject brings one subject up, measures and takes it down again.
func (b *netBench) subject(ctx context.Context, s lab.Subject) (err error) {
	p, err := b.lab.Pair()
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := p.Close(); closeErr != nil {
			fmt.Fprintf(os.Stderr, "  %s: %v\n", s.Name, closeErr) // it has been cleared up all the same
		}
	}()
	err = s.Up(ctx, p)
	if err == nil {
		err = p.Ping(ctx, 10*time.Second)
	}
	if err != nil {
		return withLogs(err, p)
	}
	m := &measurer{netBench: b, pair: p, name: s.Name}
	defer m.close()
	return m.all(ctx)
}

func benchReportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "bench-report FILE...",
		Short: "The JSON lines of bench-net as Markdown tables",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, files []string) error {
			var all []benchjson.Result
			for _, name := range files {
				f, err := os.Open(filepath.Clean(name))
				if err != nil {
					return err
				}
				results, err := benchjson.Read(f)
				f.Close()
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				all = append(all, results...)
			}
			return benchjson.Report(os.Stdout, all, benchjson.Markdown)
		},
	}
}
