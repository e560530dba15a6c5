package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"wardgate/sp/registry"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

// The test binary starts itself as an instance of the centre when this names a job: "write" or "drain".
const (
	helperEnv = "WARDGATE_STORE_HELPER"
	urlEnv    = "WARDGATE_STORE_URL"
	seedEnv   = "WARDGATE_STORE_SEED"
	killsEnv  = "WARDGATE_STORE_KILLS" // how often TestKilledWhileWriting kills; 10 without
)

func helper() int {
	seed, err := strconv.ParseUint(os.Getenv(seedEnv), 10, 64)
	if err == nil {
		ctx := context.Background()
		var s *store.Store
		if s, err = store.Open(ctx, store.Options{URL: os.Getenv(urlEnv)}); err == nil {
			if os.Getenv(helperEnv) == "drain" {
				err = drain(ctx, s, fmt.Sprint("instance ", seed))
			} else {
				err = writeForEver(ctx, s, seed)
			}
			err = errors.Join(err, s.Close())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// say tells the parent what the store has confirmed: one write, so one line or none.
func say(format string, args ...any) { fmt.Fprintf(os.Stdout, format+"\n", args...) }

// killedRegistry is what the registry is at a revision in the kill test: it follows from the number.
func killedRegistry(at store.Revision) (*registry.Registry, error) {
	rng := rand.New(rand.NewPCG(uint64(at), 1))
	var c registry.Content
	for i := range 60 {
		if rng.IntN(4) > 0 {
			c.Members = append(c.Members, registry.Member{Name: fmt.Sprintf("m%02d", i), Title: fmt.Sprint("title ", rng.IntN(3))})
		}
	}
	c.Members = append(c.Members, registry.Member{Name: "revision", Title: fmt.Sprint(at)})
	return registry.New(c)
}

// writeForEver writes all kinds of things at once until it is killed.
func writeForEver(ctx context.Context, s *store.Store, seed uint64) error {
	var wg sync.WaitGroup
	failed := make(chan error, 4)
	for worker, step := range []func(rng *rand.Rand, n int) error{
		func(_ *rand.Rand, _ int) error {
			h, err := s.Heads(ctx)
			if err != nil {
				return err
			}
			r, err := killedRegistry(h.Registry + 1)
			if err != nil {
				return err
			}
			a, err := s.Apply(ctx, store.Change{Expected: h.Registry, Registry: r, Who: "op", Jobs: []store.Job{{Kind: "compile", Item: "all"}}}, t0)
			say("applied %d", a.Revision)
			return err
		},
		func(rng *rand.Rand, n int) error {
			var batch []store.Policy
			for _, d := range rng.Perm(8)[:1+rng.IntN(5)] {
				h, err := s.LatestHead(ctx, fmt.Sprint("d", d))
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return err
				}
				p := pol(fmt.Sprint("d", d), h.Serial+1, fmt.Sprint(seed, n))
				p.JWS = append(p.JWS, strings.Repeat("x", rng.IntN(20_000))...)
				batch = append(batch, p)
			}
			heads, err := s.PutPolicies(ctx, "op", batch, nil, t0)
			for _, h := range heads {
				say("policy %s %d %s", h.Device, h.Serial, h.JWSHash)
			}
			return err
		},
		func(rng *rand.Rand, n int) error {
			c := cert("g", fmt.Sprint("d", rng.IntN(8)), int64(seed)<<32+int64(n)+1, t0, time.Hour)
			err := s.Issue(ctx, store.Issue{Certificate: c}, t0)
			if err == nil {
				say("issued %s", c.Serial)
			}
			return err
		},
		func(_ *rand.Rand, _ int) error {
			claims, err := s.Claim(ctx, "compile", "x", 10, time.Minute, t0)
			if err != nil {
				return err
			}
			return s.Finish(ctx, claims, t0)
		},
	} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(seed, uint64(worker)))
			for n := 0; ; n++ {
				if err := step(rng, n); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	return <-failed // the parent sees that it ended by itself
}

// instance starts the test binary as another process.
func instance(t *testing.T, job, url string, seed uint64) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	exe := get(os.Executable())(t)
	cmd := exec.Command(exe, "-test.run=^$")
	cmd.Env = append(os.Environ(), helperEnv+"="+job, urlEnv+"="+url, seedEnv+"="+strconv.FormatUint(seed, 10))
	cmd.Stderr = os.Stderr
	out := get(cmd.StdoutPipe())(t)
	ok(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd, bufio.NewScanner(out)
}

// A process is killed again and again while it writes. Afterwards the database is sound, everything
// that was confirmed is there, and nothing is there by half.
func TestKilledWhileWriting(t *testing.T) {
	t.Parallel()
	kills := 10
	if v := os.Getenv(killsEnv); v != "" {
		kills = get(strconv.Atoi(v))(t)
	}
	storetest.Each(t, func(t *testing.T, url string) {
		ctx := t.Context()
		var serials [8]uint64 // of each device, confirmed or seen
		for round := range kills {
			seed := uint64(round + 1)
			rng := rand.New(rand.NewPCG(seed, 7))
			cmd, lines := instance(t, "write", url, seed)
			var told []string
			for stop := 1 + rng.IntN(80); len(told) < stop && lines.Scan(); {
				told = append(told, lines.Text())
			}
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond) // any instant of what comes next
			ok(t, cmd.Process.Kill())
			for lines.Scan() {
				told = append(told, lines.Text())
			}
			if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
				t.Fatalf("seed %d: expected the instance to write until it is killed, it ended: %v", seed, err)
			}

			s := open(t, url)
			ok(t, s.Check(ctx))
			at := get(s.Heads(ctx))(t).Registry
			for _, line := range told {
				f := strings.Fields(line)
				switch f[0] {
				case "applied":
					rev := store.Revision(get(strconv.ParseUint(f[1], 10, 64))(t))
					if rev > at {
						t.Errorf("seed %d: revision %d was confirmed, the registry is at %d", seed, rev, at)
					}
				case "policy":
					p, err := s.Policy(ctx, f[1], get(strconv.ParseUint(f[2], 10, 64))(t))
					ok(t, err)
					if p.JWSHash.String() != f[3] {
						t.Errorf("seed %d: %s: another file than the one that was confirmed", seed, line)
					}
				case "issued":
					if _, err := s.Certificate(ctx, "g", "ca", f[1]); err != nil {
						t.Errorf("seed %d: %v", seed, err)
					}
				default:
					t.Fatalf("expected a line of the helper, came %q", line)
				}
			}
			for rev := range at {
				same(t, jsonOf(t, get(s.At(ctx, rev+1))(t)), jsonOf(t, get(killedRegistry(rev+1))(t)))
			}
			for d := range serials {
				// Each device's serials have no gap: a batch is there as a whole or not at all.
				h, err := s.LatestHead(ctx, fmt.Sprint("d", d))
				if errors.Is(err, store.ErrNotFound) {
					continue
				}
				ok(t, err)
				for serial := serials[d] + 1; serial <= h.Serial; serial++ {
					get(s.Policy(ctx, h.Device, serial))(t)
				}
				if h.Serial < serials[d] {
					t.Errorf("seed %d: %s went back from serial %d to %d", seed, h.Device, serials[d], h.Serial)
				}
				serials[d] = h.Serial
			}
			// The queue asks for the newest revision, or it was made.
			if at > 0 {
				ok(t, s.Enqueue(ctx, []store.Job{{Kind: "compile", Item: "all", Wanted: uint64(at)}}, t0))
				if q := get(s.Queue(ctx, "compile"))(t); q.Waiting+q.Leased > 1 {
					t.Errorf("seed %d: expected one job at most, came %+v", seed, q)
				}
			}
			ok(t, s.Close())
			if t.Failed() {
				t.FailNow()
			}
		}
	})
}

// drain makes policies until there is nothing to do, as an instance of the centre would.
func drain(ctx context.Context, s *store.Store, name string) error {
	for {
		now := time.Now()
		claims, err := s.Claim(ctx, "compile", name, 10, 500*time.Millisecond, now)
		if err != nil {
			return err
		}
		if len(claims) == 0 {
			q, err := s.Queue(ctx, "compile")
			if err != nil {
				return err
			}
			if q == (store.Queue{}) {
				return nil
			}
			time.Sleep(time.Until(q.Next)) // until the lease of one that died runs out
			continue
		}
		var batch []store.Policy
		for _, c := range claims {
			h, err := s.LatestHead(ctx, c.Item)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			batch = append(batch, pol(c.Item, h.Serial+1, fmt.Sprint("revision ", c.Wanted)))
		}
		heads, err := s.PutPolicies(ctx, name, batch, claims, now)
		switch {
		case errors.Is(err, store.ErrLeaseLost), errors.Is(err, store.ErrTooOld):
			continue // somebody else has it
		case err != nil:
			return err
		}
		for _, h := range heads {
			say("signed %s", h.Device)
		}
	}
}

// Two instances on one database make policies for 500 devices; one is killed. None is missed, none
// is made twice.
func TestInstanceKilledDuringChange(t *testing.T) {
	t.Parallel()
	const devices = 500
	storetest.Each(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := open(t, url)
		for change := 1; change <= 2; change++ {
			var jobs []store.Job
			for d := range devices {
				jobs = append(jobs, store.Job{Kind: "compile", Item: fmt.Sprintf("d%03d", d)})
			}
			get(s.Apply(ctx, store.Change{Expected: store.Revision(change - 1), Registry: members(t, 3, fmt.Sprint("change ", change)), Who: "op", Jobs: jobs}, t0))(t)
			victim, lines := instance(t, "drain", url, 1)
			other, more := instance(t, "drain", url, 2)
			for n := 0; n < 50*change && lines.Scan(); n++ {
				if !strings.HasPrefix(lines.Text(), "signed ") {
					t.Fatalf("expected a line of the helper, came %q", lines.Text())
				}
			}
			ok(t, victim.Process.Kill())
			for more.Scan() { // what it says must be read, or it waits
			}
			ok(t, other.Wait())
			same(t, get(s.Queue(ctx, "compile"))(t), store.Queue{})
			heads := get(s.ChangesSince(ctx, uint64(devices*(change-1)), 0))(t)
			same(t, len(heads), devices)
			for _, h := range heads {
				if h.Serial != uint64(change) || h.Content != hash(fmt.Sprint("revision ", change)) {
					t.Errorf("%s: expected serial %d of revision %d, came serial %d", h.Device, change, change, h.Serial)
				}
			}
			same(t, get(s.Heads(ctx))(t).Policy, uint64(devices*change))
		}
		ok(t, s.Check(ctx))
	})
}

// What somebody changed in the tables behind the program's back shows.
func TestCheckSees(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		ctx := t.Context()
		s := open(t, url)
		get(s.Apply(ctx, store.Change{Registry: members(t, 2, "x"), Who: "op"}, t0))(t)
		get(s.PutPolicies(ctx, "op", []store.Policy{pol("a", 1, "x"), pol("a", 2, "y")}, nil, t0))(t)
		ok(t, s.Issue(ctx, store.Issue{Certificate: store.Certificate{
			Service: "g", Issuer: "ca", Serial: store.SerialText(big.NewInt(77)), Device: "a", Key: hash("k"), Request: hash("r"), NotBefore: t0, NotAfter: t0.Add(time.Hour), DER: []byte("x"),
		}}, t0))
		ok(t, s.Check(ctx))
		for _, tamper := range []string{
			"UPDATE audit SET who = 'nobody' WHERE seq = 1", "DELETE FROM audit WHERE seq = 2",
		} {
			if err := s.Tamper(ctx, tamper); err == nil {
				t.Errorf("%s: expected the database to refuse it", tamper)
			}
		}
		for _, tamper := range []struct{ do, undo string }{
			{"UPDATE head SET value = 3 WHERE name = 'registry'", "UPDATE head SET value = 1 WHERE name = 'registry'"},
			{"UPDATE policy_head SET serial = 1, seq = 1 WHERE device = 'a'", "UPDATE policy_head SET serial = 2, seq = 2 WHERE device = 'a'"},
			{"UPDATE head SET value = 2 WHERE name = 'audit'", "UPDATE head SET value = 3 WHERE name = 'audit'"},
			{"UPDATE head SET value = 4 WHERE name = 'audit'", "UPDATE head SET value = 3 WHERE name = 'audit'"},
			{"UPDATE object SET until = 1 WHERE name = 'm0000'", "UPDATE object SET until = NULL WHERE name = 'm0000'"},
		} {
			ok(t, s.Tamper(ctx, tamper.do))
			want(t, s.Check(ctx), store.ErrDamaged)
			ok(t, s.Tamper(ctx, tamper.undo))
			ok(t, s.Check(ctx))
		}
		ok(t, s.Tamper(ctx, "UPDATE policy SET jws = ? WHERE serial = 2", []byte("another")))
		_, err := s.Latest(ctx, "a")
		want(t, err, store.ErrDamaged)
		ok(t, s.Tamper(ctx, "UPDATE object SET value = '{}' WHERE name = 'm0000'"))
		_, err = again(t, s).At(ctx, 1)
		want(t, err, store.ErrDamaged)
		// Tables of a program that is newer than this one.
		ok(t, s.Tamper(ctx, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, ?)", true))
		_, err = store.Open(ctx, store.Options{URL: url})
		want(t, err, store.ErrSchema)
	})
}
