package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"wardgate/internal/benchjson"
	"wardgate/internal/sploadgen"
)

func benchSPCommand() *cobra.Command {
	b := &spBench{}
	var out string
	cmd := &cobra.Command{
		Use:   "bench-sp --out FILE",
		Short: "Many devices at one instance of the centre: delivery of changes, memory, enrolment, restart",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if b.rounds < 1 {
				return fmt.Errorf("%w: ROUNDS=%d: want at least 1", errUsage, b.rounds)
			}
			if err := openFiles(b.devices); err != nil {
				return err
			}
			dir, err := os.MkdirTemp("", "wardgate-bench-sp-")
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
			b.centre.Dir = dir
			if b.out, err = os.Create(out); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, b.out.Close()) }()
			ctx, cancel := context.WithTimeout(cmd.Context(), b.limit)
			defer cancel()
			return errors.Join(b.run(ctx), benchjson.Report(os.Stdout, b.results, benchjson.Text))
		},
	}
	f := cmd.Flags()
	f.StringVar(&b.centre.Bin, "bin", "build/bin/wardgate-sp", "the centre's program")
	f.StringVar(&b.centre.Database, "database", "", "URL of the centre's database; empty: SQLite")
	f.StringVar(&out, "out", "", "file for the JSON lines; replaced")
	f.IntVar(&b.devices, "devices", 2000, "how many devices")
	f.IntVar(&b.partners, "partners", 5, "contracts of a device, on average")
	f.Uint64Var(&b.seed, "seed", 1, "what the registry follows from")
	f.IntVar(&b.rounds, "rounds", 3, "changes of each kind")
	f.DurationVar(&b.rest, "rest", 60*time.Second, "how long nothing happens before memory is measured")
	f.DurationVar(&b.limit, "limit", 20*time.Minute, "the whole run ends after that, at the latest")
	f.BoolVar(&b.noEnrol, "no-enrol", false, "leave the enrolments out")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// openFiles raises the limit of open files as far as it may be, and says when that is not enough. The
// centre inherits it.
func openFiles(devices int) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	need := uint64(devices) + 200
	if l.Max < need && l.Max != 0 {
		l.Max = need // root may
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("limit of open files: expected that %d are allowed: raise it with ulimit -n: %w", need, err)
	}
	return nil
}

// spBench is one run.
type spBench struct {
	centre            sploadgen.Centre
	devices, partners int
	seed              uint64
	rounds            int
	rest, limit       time.Duration
	noEnrol           bool
	out               *os.File

	scenario *sploadgen.Scenario
	judge    *sploadgen.Judge
	opt      sploadgen.Options
	fleet    *sploadgen.Fleet
	round    int
	results  []benchjson.Result
}

func (b *spBench) subject() string {
	kind := "sqlite"
	if b.centre.Database != "" {
		kind, _, _ = strings.Cut(b.centre.Database, ":")
	}
	return fmt.Sprintf("sp-%d-%s", b.devices, kind)
}

// put notes one measurement, in the file at once.
func (b *spBench) put(test string, value float64, unit string) error {
	r := benchjson.Result{Subject: b.subject(), Test: test, Value: value, Unit: unit, Round: max(b.round, 1)}
	b.results = append(b.results, r)
	fmt.Fprintf(os.Stderr, "  %-28s %12.5g %s\n", test, value, unit)
	return benchjson.Write(b.out, []benchjson.Result{r})
}

func (b *spBench) say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (b *spBench) run(ctx context.Context) (err error) {
	b.say("%d devices, seed %d, %d processors", b.devices, b.seed, runtime.GOMAXPROCS(0))
	if b.scenario, err = sploadgen.New(b.devices, b.partners, b.seed, time.Now()); err != nil {
		return err
	}
	b.centre.Bin, err = filepath.Abs(b.centre.Bin)
	if err = errors.Join(err, b.centre.Init(ctx, b.scenario), b.centre.Write(b.scenario)); err != nil {
		return err
	}
	roots, signers, err := b.centre.Pools()
	if err != nil {
		return err
	}
	b.judge = sploadgen.NewJudge(b.scenario, signers, time.Now)
	if err := b.centre.Start(ctx, "127.0.0.1:0"); err != nil {
		return err
	}
	defer func() {
		if b.fleet != nil {
			b.fleet.Stop()
		}
		err = errors.Join(err, b.centre.Stop())
		if said := b.centre.Said(); said != "" {
			b.say("the centre said:\n%s", said)
		}
	}()
	b.opt = sploadgen.Options{Addr: b.centre.Addr(), Name: "localhost", Roots: roots, Now: time.Now}
	for _, step := range []func(context.Context) error{b.first, b.enrol, b.join, b.changes, b.restarts, b.revoke} {
		b.round = 0
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// first applies the whole registry, while nobody waits yet.
func (b *spBench) first(ctx context.Context) error {
	b.say("the registry is applied")
	start := time.Now()
	if err := b.centre.Apply(ctx); err != nil {
		return err
	}
	return b.put("first-apply", time.Since(start).Seconds(), "s")
}

// atOnce is how many enrolments are under way at the same time.
const atOnce = 64

// enrol has all devices enrol for all their services.
func (b *spBench) enrol(ctx context.Context) error {
	if b.noEnrol {
		return nil
	}
	// The policies of all are made meanwhile: that is not to be measured.
	if err := b.quiet(ctx); err != nil {
		return err
	}
	b.say("all devices enrol for all their services")
	before, err := b.centre.Usage()
	if err != nil {
		return err
	}
	start := time.Now()
	n, err := sploadgen.Enrol(ctx, b.opt, b.scenario, b.scenario.Devices(), atOnce)
	if err != nil {
		return err
	}
	took := time.Since(start)
	after, err := b.centre.Usage()
	if err != nil {
		return err
	}
	cpu := (after.CPU - before.CPU).Seconds()
	return errors.Join(
		b.put("enrol", float64(n), "certificates"),
		b.put("enrol", float64(n)/took.Seconds(), "1/s"),
		b.put("enrol", float64(n)/cpu, "1/cpu-s"),
		b.put("enrol-disk", float64(after.Written-before.Written)/float64(n), "B/certificate"),
	)
}

// quiet waits until the centre has nothing to do: it uses next to no processor.
func (b *spBench) quiet(ctx context.Context) error {
	calm := 0
	last, err := b.centre.Usage()
	if err != nil {
		return err
	}
	for calm < 3 {
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		now, err := b.centre.Usage()
		if err != nil {
			return err
		}
		if now.CPU-last.CPU <= 50*time.Millisecond {
			calm++
		} else {
			calm = 0
		}
		last = now
	}
	return nil
}

// join lets all devices connect and fetch their first policy, and measures what they cost while they wait.
func (b *spBench) join(ctx context.Context) error {
	if err := b.quiet(ctx); err != nil {
		return err
	}
	b.say("nobody waits, for %s", b.rest)
	if err := b.pause(ctx); err != nil {
		return err
	}
	b.say("all devices connect")
	before, err := b.centre.Usage()
	if err != nil {
		return err
	}
	start := time.Now()
	b.fleet = sploadgen.Start(b.opt, b.scenario, nil)
	if err := b.fleet.Until(ctx, func() bool { return b.fleet.Waiting() == b.devices && b.fleet.Count() == b.devices }); err != nil {
		return err
	}
	took := time.Since(start)
	connected, err := b.centre.Usage()
	if err != nil {
		return err
	}
	if err := b.verdict("first policy"); err != nil {
		return err
	}
	b.say("all wait for %s", b.rest)
	if err := b.pause(ctx); err != nil {
		return err
	}
	rested, err := b.centre.Usage()
	if err != nil {
		return err
	}
	n := float64(b.devices)
	return errors.Join(
		b.put("connect-all", took.Seconds(), "s"),
		b.put("connect-all", (connected.CPU-before.CPU).Seconds()/n*1e3, "cpu-ms/device"),
		b.put("memory-without-devices", float64(before.RSS)/1e6, "MB"),
		b.put("memory-waiting", float64(rested.RSS)/1e6, "MB"),
		b.put("memory-waiting", float64(rested.RSS-before.RSS)/n/1e3, "kB/device"),
		b.put("memory-waiting-all", float64(rested.RSS)/n/1e3, "kB/device"),
		b.put("memory-highest", float64(rested.Max)/1e6, "MB"),
		b.put("heap-live-without-devices", float64(before.Heap)/1e6, "MB"),
		b.put("heap-live", float64(rested.Heap)/1e6, "MB"),
		b.put("stacks", float64(rested.Stacks)/1e6, "MB"),
		b.put("waiting", (rested.CPU-connected.CPU).Seconds()/b.rest.Seconds()*100, "%cpu"),
		b.put("database", float64(rested.Database)/1e6, "MB"),
	)
}

// pause lets the centre rest.
func (b *spBench) pause(ctx context.Context) error {
	select {
	case <-time.After(b.rest):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// verdict judges what was delivered, and fails when anything is wrong.
func (b *spBench) verdict(what string) error {
	return b.judged(what, b.fleet.Delivered())
}

func (b *spBench) judged(what string, got map[string][]sploadgen.Delivery) error {
	wrong := b.judge.Take(what, got)
	if len(wrong) == 0 {
		return nil
	}
	return errors.Join(append(wrong[:min(len(wrong), 10)], fmt.Errorf("%d things are wrong; failures of devices: %v", len(wrong), b.fleet.Failures()))...)
}

// changes makes changes of each kind, and measures how long they take to reach those concerned.
func (b *spBench) changes(ctx context.Context) error {
	for b.round = 1; b.round <= b.rounds; b.round++ {
		for _, k := range []struct {
			name string
			make func() error
		}{
			{"contract", func() error { b.scenario.OneContract(); return nil }},
			{"move", func() error { _, err := b.scenario.Move(); return err }},
			{"rules", func() error { b.scenario.Rules(); return nil }},
		} {
			if err := k.make(); err != nil {
				return err
			}
			if err := b.centre.Write(b.scenario); err != nil {
				return err
			}
			if err := b.change(ctx, k.name, b.centre.Apply); err != nil {
				return err
			}
		}
	}
	return nil
}

// revoke revokes devices. Those that are revoked go on asking, and are refused.
func (b *spBench) revoke(ctx context.Context) error {
	for b.round = 1; b.round <= b.rounds; b.round++ {
		victim := b.scenario.Victim()
		if err := b.change(ctx, "revoke", func(ctx context.Context) error { return b.centre.Revoke(ctx, victim) }); err != nil {
			return err
		}
	}
	return nil
}

// change gives an order and waits until it has reached everybody. Times are from the order's beginning.
func (b *spBench) change(ctx context.Context, name string, order func(context.Context) error) error {
	if err := b.quiet(ctx); err != nil {
		return err
	}
	concerned := b.judge.Concerned()
	before, err := b.centre.Usage()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := order(ctx); err != nil {
		return err
	}
	ordered := time.Since(start)
	if err := b.fleet.Until(ctx, func() bool { return b.fleet.Count() >= len(concerned) }); err != nil {
		return err
	}
	if err := b.quiet(ctx); err != nil { // also those who must get nothing have had the time to
		return err
	}
	after, err := b.centre.Usage()
	if err != nil {
		return err
	}
	var times []time.Duration
	got := b.fleet.Delivered()
	octets := 0
	for _, list := range got {
		times = append(times, list[0].At.Sub(start))
		octets += len(list[0].Policy)
	}
	if err := b.judged(name, got); err != nil {
		return err
	}
	n := float64(len(concerned))
	return errors.Join(
		b.put(name+"-concerned", n, "devices"),
		b.put(name+"-command", ordered.Seconds(), "s"),
		b.put(name+"-50%", sploadgen.Percentile(times, 50).Seconds(), "s"),
		b.put(name+"-99%", sploadgen.Percentile(times, 99).Seconds(), "s"),
		b.put(name+"-all", sploadgen.Percentile(times, 100).Seconds(), "s"),
		b.put(name, (after.CPU-before.CPU).Seconds()/n*1e3, "cpu-ms/device"),
		b.put(name+"-policy", float64(octets)/n, "B/device"),
		b.put(name+"-disk", float64(after.Written-before.Written)/n, "B/device"),
	)
}

// restarts ends the centre and starts it again, in order and by force, with devices that come back as
// routers do, and with devices that all come back at once.
func (b *spBench) restarts(ctx context.Context) error {
	alive := len(b.scenario.Wanted())
	herd := func(int) time.Duration { return 50 * time.Millisecond }
	for _, k := range []struct {
		name    string
		end     func() error
		backoff func(int) time.Duration
	}{
		{"restart", b.centre.Stop, sploadgen.RouterBackoff},
		{"restart-herd", b.centre.Kill, herd},
	} {
		b.fleet.Stop()
		b.opt.Backoff = k.backoff
		b.fleet = sploadgen.Start(b.opt, b.scenario, b.active())
		if err := b.fleet.Until(ctx, func() bool { return b.fleet.Waiting() == alive && b.fleet.Count() == alive }); err != nil {
			return err
		}
		b.fleet.Delivered() // devices that were started anew ask for the policy that they had
		if err := b.quiet(ctx); err != nil {
			return err
		}
		start := time.Now()
		if err := k.end(); err != nil {
			return err
		}
		ended := time.Since(start)
		if err := b.centre.Start(ctx, b.opt.Addr); err != nil {
			return err
		}
		up := time.Since(start)
		part := func(percent int) error {
			err := b.fleet.Until(ctx, func() bool { return b.fleet.Waiting()*100 >= alive*percent })
			return errors.Join(err, b.put(fmt.Sprintf("%s-%d%%", k.name, percent), (time.Since(start)-up).Seconds(), "s"))
		}
		if err := errors.Join(part(50), part(99), part(100)); err != nil {
			return err
		}
		if err := b.quiet(ctx); err != nil {
			return err
		}
		u, err := b.centre.Usage()
		if err != nil {
			return err
		}
		if got := b.fleet.Delivered(); len(got) > 0 {
			return fmt.Errorf("%s: %d devices were given a policy, nothing has changed", k.name, len(got))
		}
		if err := errors.Join(
			b.put(k.name+"-end", ended.Seconds(), "s"),
			b.put(k.name+"-start", (up-ended).Seconds(), "s"),
			b.put(k.name, u.CPU.Seconds()/float64(alive)*1e3, "cpu-ms/device"),
			b.put(k.name+"-memory-highest", float64(u.Max)/1e6, "MB"),
		); err != nil {
			return err
		}
	}
	return nil
}

// active lists the devices that take part.
func (b *spBench) active() []string {
	var out []string
	want := b.scenario.Wanted()
	for _, d := range b.scenario.Devices() {
		if _, is := want[d]; is {
			out = append(out, d)
		}
	}
	return out
}
