package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardgate/internal/benchjson"
	"wardgate/internal/ikeload"
	"wardgate/internal/lab"
)

func benchIKECommand() *cobra.Command {
	b := &ikeBench{}
	var bin, out, subjects, tests string
	cmd := &cobra.Command{
		Use:   "bench-ike --out FILE",
		Short: "IKE responders, ours and strongSwan's in turn, under thousands of initiators (as root)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if b.rounds < 1 || b.count < 10 || b.parallel < 1 {
				return fmt.Errorf("%w: ROUNDS=%d, COUNT=%d, PARALLEL=%d: want at least 1, 10 and 1", errUsage, b.rounds, b.count, b.parallel)
			}
			if b.tests, err = chooseIKETests(tests); err != nil {
				return err
			}
			if b.subjects, err = chooseResponders(subjects); err != nil {
				return err
			}
			if bin, err = filepath.Abs(bin); err != nil {
				return err
			}
			b.bin = bin
			ctx := cmd.Context()
			if b.lab, err = lab.New(ctx, lab.Options{Name: "bench-ike", Bin: bin}); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, b.lab.Close()) }()
			if b.out, err = os.OpenFile(out, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644); err != nil {
				return err
			}
			err = errors.Join(b.prepare(ctx), b.run(ctx), b.out.Close())
			return errors.Join(err, benchjson.Table(os.Stdout, b.results))
		},
	}
	f := cmd.Flags()
	f.StringVar(&bin, "bin", "build/bin", "folder of wardgate-lab and wardgate-chip")
	f.StringVar(&out, "out", "", "file for the JSON lines; they are added to what is there")
	f.StringVar(&subjects, "subjects", "", "responders, with commas between; empty: all")
	f.StringVar(&tests, "tests", "", "kinds of set-up, with commas between; empty: all")
	f.StringVar(&b.profile, "profile", "", "folder for profiles of our responder's processor time; empty: none")
	f.IntVar(&b.rounds, "rounds", 3, "rounds; the responders take turns in each")
	f.IntVar(&b.count, "count", 1000, "set-ups of one measurement, each of another initiator")
	f.IntVar(&b.parallel, "parallel", 16, "set-ups under way at once")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// ikeResponderCommand is our responder: bench-ike starts it.
func ikeResponderCommand() *cobra.Command {
	var profile string
	cmd := &cobra.Command{
		Use:    "ike-responder JOB",
		Short:  "The responder of bench-ike, as it says in the file JOB",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			j, err := ikeload.ReadJob(args[0])
			if err != nil {
				return err
			}
			return ikeload.Respond(cmd.Context(), j, profile)
		},
	}
	cmd.Flags().StringVar(&profile, "profile", "", "file for a profile of its processor time")
	return cmd
}

// ikeTest is one kind of set-up.
type ikeTest struct {
	name      string
	rounds    int    // authentication rounds with certificates; 0: a pre-shared key
	ike       string // proposal
	token     bool   // the responder's keys are on a SoftHSM token
	oursAlone bool   // strongSwan 5.9 does not have it
	resume    bool   // the responder is restarted, and the initiators come back with their tickets (RFC 5723)
}

// The suites: what strongSwan takes by default for a modern gateway, and the same with ML-KEM.
const (
	classicIKE = "aes256gcm16-prfsha384-x25519"
	hybridIKE  = "aes256gcm16-prfsha384-x25519-ke1_mlkem768"
	benchESP   = "aes256gcm16"
)

func ikeTests() []ikeTest {
	return []ikeTest{
		{name: "single", rounds: 1, ike: classicIKE},
		{name: "double", rounds: 2, ike: classicIKE},
		{name: "psk", ike: classicIKE},
		{name: "hybrid", rounds: 1, ike: hybridIKE, oursAlone: true},
		{name: "single-token", rounds: 1, ike: classicIKE, token: true},
		{name: "double-token", rounds: 2, ike: classicIKE, token: true},
		{name: "resume", rounds: 2, ike: classicIKE, oursAlone: true, resume: true},
		{name: "resume-psk", ike: classicIKE, oursAlone: true, resume: true},
	}
}

func chooseIKETests(names string) ([]ikeTest, error) {
	all := ikeTests()
	if names == "" {
		return all, nil
	}
	var out []ikeTest
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(t ikeTest) bool { return t.name == name })
		if i < 0 {
			var known []string
			for _, t := range all {
				known = append(known, t.name)
			}
			return nil, fmt.Errorf("%w: no test %q; there are: %s", errUsage, name, strings.Join(known, " "))
		}
		out = append(out, all[i])
	}
	return out, nil
}

// The two responders.
const (
	wardgateResponder   = "wardgate"
	strongSwanResponder = "strongswan"
)

func chooseResponders(names string) ([]string, error) {
	all := []string{wardgateResponder, strongSwanResponder}
	if names == "" {
		return all, nil
	}
	out := strings.Split(names, ",")
	for _, n := range out {
		if !slices.Contains(all, n) {
			return nil, fmt.Errorf("%w: no responder %q; there are: %s", errUsage, n, strings.Join(all, " "))
		}
	}
	return out, nil
}

// ikeBench is one run of the benchmark.
type ikeBench struct {
	lab                     *lab.Lab
	bin, profile            string
	subjects                []string
	tests                   []ikeTest
	rounds, count, parallel int
	out                     *os.File

	provider *lab.Provider
	facility *lab.Facility            // the responder's namespace and token
	clients  *lab.Netns               // the initiators' namespace
	own      [2][]*ikeload.Credential // the initiators', by round
	mine     [2]*ikeload.Credential   // the responder's, in software

	round   int
	results []benchjson.Result
}

// warmUp is how many set-ups go before what is measured.
const warmUp = 20

var ikeAddrs = [2]netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")} // responder, initiators

// names are the identities of each round, with %d for an initiator's number.
var ikeNames = [2]struct{ role, responder, clients string }{
	{"device", "r.devices.example", "i%d.devices.example"},
	{"service", "r." + lab.GroupA + ".example", "i%d." + lab.GroupA + ".example"},
}

// prepare makes the network and all credentials.
func (b *ikeBench) prepare(ctx context.Context) (err error) {
	if b.provider, err = lab.NewProvider(lab.GroupA); err != nil {
		return err
	}
	inet, err := b.lab.Internet()
	if err != nil {
		return err
	}
	if b.facility, err = b.lab.Facility(inet, "r", "the responder", ikeNames[0].responder, ikeAddrs[0].String()); err != nil {
		return err
	}
	// strongSwan's policies want an address of ours in the protected network.
	if err := b.facility.Router.Addr("lo", ikeload.ResponderTS[:len(ikeload.ResponderTS)-4]+"1/24"); err != nil {
		return err
	}
	if b.clients, err = b.lab.Netns("i"); err != nil {
		return err
	}
	if err := inet.Join(b.clients, lab.WANDev, ikeAddrs[1]); err != nil {
		return err
	}
	if slices.ContainsFunc(b.tests, func(t ikeTest) bool { return t.token }) {
		if err := b.facility.Enrol(ctx, b.provider, lab.GroupA); err != nil {
			return err
		}
	}
	cas := b.authorities()
	for k, ca := range cas {
		var device *ikeload.Credential
		if k > 0 {
			device = b.mine[0]
		}
		if b.mine[k], err = ikeload.Issue(ca, ikeNames[k].responder, device); err != nil {
			return err
		}
		for i := range b.count + warmUp {
			device = nil
			if k > 0 {
				device = b.own[0][i]
			}
			c, err := ikeload.Issue(ca, strings.Replace(ikeNames[k].clients, "%d", fmt.Sprint(i), 1), device)
			if err != nil {
				return err
			}
			b.own[k] = append(b.own[k], c)
		}
	}
	return ctx.Err()
}

// run has every responder do every kind of set-up once a round.
func (b *ikeBench) run(ctx context.Context) error {
	for b.round = 1; b.round <= b.rounds; b.round++ {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", b.round, b.rounds)
		for _, t := range b.tests {
			for _, s := range b.subjects {
				if s != wardgateResponder && t.oursAlone {
					continue
				}
				switch err := b.measure(ctx, s, t); {
				case ctx.Err() != nil:
					return ctx.Err()
				case err != nil && s == wardgateResponder:
					return fmt.Errorf("%s, %s: %w", s, t.name, err)
				case err != nil:
					if err := b.add(benchjson.Result{Subject: s, Test: benchjson.NotAvailable, Note: t.name + ": " + err.Error()}); err != nil {
						return err
					}
				}
			}
			b.ratio(t)
		}
	}
	return nil
}

func (b *ikeBench) add(r benchjson.Result) error {
	r.Round, r.Note = b.round, strings.ReplaceAll(r.Note, "\n", "; ")
	b.results = append(b.results, r)
	if r.Note != "" {
		fmt.Fprintf(os.Stderr, "  %-12s %-14s %s\n", r.Subject, r.Test, r.Note)
	} else {
		fmt.Fprintf(os.Stderr, "  %-12s %-14s %10.4g %s\n", r.Subject, r.Test, r.Value, r.Unit)
	}
	return benchjson.Write(b.out, []benchjson.Result{r})
}

// cpuUnit is the figure that decides: what one set-up costs the responder.
const cpuUnit = "ms-CPU/set-up"

// ratio sets ours against theirs, within this round.
func (b *ikeBench) ratio(t ikeTest) {
	var ours, theirs float64
	for _, r := range b.results {
		if r.Round == b.round && r.Test == t.name && r.Unit == cpuUnit {
			if r.Subject == wardgateResponder {
				ours = r.Value
			} else {
				theirs = r.Value
			}
		}
	}
	if ours > 0 && theirs > 0 {
		_ = b.add(benchjson.Result{Subject: strongSwanResponder + "÷" + wardgateResponder, Test: t.name, Value: theirs / ours, Unit: "times"})
	}
}

// responder is one that runs.
type responder struct {
	process *lab.Process
	helper  string                                        // its child process's name, whose time is its own; empty: none
	status  func(context.Context) (ikeload.Status, error) // nil: only what the kernel says
	stop    func() error
}

func (r *responder) cpu() (time.Duration, error) {
	pids := []int{r.process.PID}
	if r.helper != "" {
		more, err := r.process.Children(r.helper)
		if err != nil {
			return 0, err
		}
		if len(more) == 0 {
			return 0, fmt.Errorf("%s has no child process %s", r.process.Name, r.helper)
		}
		pids = append(pids, more...)
	}
	var sum time.Duration
	for _, p := range pids {
		d, err := lab.CPUTime(p)
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// measure has one responder do one kind of set-up.
func (b *ikeBench) measure(ctx context.Context, subject string, t ikeTest) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	job, err := b.job(t)
	if err != nil {
		return err
	}
	var r *responder
	if subject == wardgateResponder {
		r, err = b.startWardgate(ctx, job, t)
	} else {
		r, err = b.startStrongSwan(ctx, t)
	}
	if err != nil {
		return err
	}
	defer func() {
		if r == nil {
			return // it did not start again
		}
		if err != nil {
			err = fmt.Errorf("%w; the responder's last words: %s", err, r.process.Tail(5))
		}
		err = errors.Join(err, r.stop())
	}()
	peers, err := job.ClientPeers(ikeAddrs[1], [][]*ikeload.Credential{b.own[0], b.own[1]})
	if err != nil {
		return err
	}
	var n ikeload.Node
	if err := n.Start(ikeAddrs[1], b.clients.Do, peers, nil); err != nil {
		return errors.Join(err, n.Drop())
	}
	defer func() { err = errors.Join(err, n.Drop()) }()

	if t.resume {
		if r, err = b.restart(ctx, r, &n, job, t); err != nil {
			return err
		}
	}
	if _, err := b.drive(ctx, &n, 0, warmUp); err != nil {
		return err
	}
	heap0, rss0, err := b.memory(ctx, r)
	if err != nil {
		return err
	}
	debug.FreeOSMemory() // of the initiators: not in the middle of it
	before, err := r.cpu()
	if err != nil {
		return err
	}
	run, err := b.drive(ctx, &n, warmUp, b.count)
	if err != nil {
		return err
	}
	after, err := r.cpu()
	if err != nil {
		return err
	}
	heap1, rss1, err := b.memory(ctx, r)
	if err != nil {
		return err
	}
	if all := b.count + warmUp; t.resume && n.Resumed() != all {
		_, _, last := n.Counts()
		return errors.Join(fmt.Errorf("%d of %d IKE SAs were resumed", n.Resumed(), all), last)
	}
	per := float64(b.count)
	for _, m := range []benchjson.Result{
		{Value: (after - before).Seconds() * 1000 / per, Unit: cpuUnit},
		{Value: per / (after - before).Seconds(), Unit: "set-ups/core-s"},
		{Value: per / run.Took.Seconds(), Unit: "set-ups/s"},
		{Value: run.Times[len(run.Times)/2].Seconds() * 1000, Unit: "ms-median"},
		{Value: float64(rss1-rss0) / 1024 / per, Unit: "KiB-resident/SA"},
		{Value: float64(int64(heap1)-int64(heap0)) / 1024 / per, Unit: "KiB-heap/SA"},
	} {
		if m.Unit == "KiB-heap/SA" && r.status == nil {
			continue
		}
		m.Subject, m.Test = subject, t.name
		if err := b.add(m); err != nil {
			return err
		}
	}
	return nil
}

// restart has all initiators set up, restarts the responder, and returns it when all of them have found
// out.
func (b *ikeBench) restart(ctx context.Context, r *responder, n *ikeload.Node, job *ikeload.Job, t ikeTest) (*responder, error) {
	if _, err := b.drive(ctx, n, 0, warmUp+b.count); err != nil {
		return r, err
	}
	if err := r.stop(); err != nil {
		return r, err
	}
	r, err := b.startWardgate(ctx, job, t)
	if err != nil {
		return nil, err
	}
	return r, n.FindDead(ctx)
}

// drive has initiators set up, all of whom must succeed.
func (b *ikeBench) drive(ctx context.Context, n *ikeload.Node, from, count int) (ikeload.Run, error) {
	run, err := n.Drive(ctx, from, count, b.parallel)
	if err == nil && run.Failed > 0 {
		err = fmt.Errorf("%d of %d set-ups failed, first: %w", run.Failed, count, run.First)
	}
	return run, err
}

func (b *ikeBench) memory(ctx context.Context, r *responder) (heap uint64, rss int64, err error) {
	if r.status != nil {
		s, err := r.status(ctx)
		if err != nil {
			return 0, 0, err
		}
		heap = s.Heap
	}
	rss, err = r.process.RSS()
	return heap, rss, err
}
