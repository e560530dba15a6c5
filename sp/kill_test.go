package sp_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wardgate/sp"
	"wardgate/sp/compile"
	"wardgate/sp/registry/registrytest"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

// The environment of a centre that a test kills: its configuration, database, and clock.
const (
	killConfig = "WARDGATE_TEST_SP_CONFIG"
	killURL    = "WARDGATE_TEST_SP_DATABASE"
	killNow    = "WARDGATE_TEST_SP_NOW"
)

// deadLease is how long after a centre was killed the next one is started: its leases are over then.
const deadLease = 31 * time.Second

// serveToBeKilled is the process that the test kills.
func serveToBeKilled() error {
	cfg, err := sp.LoadConfig(os.Getenv(killConfig))
	if err != nil {
		return err
	}
	now, err := time.Parse(time.RFC3339, os.Getenv(killNow))
	if err != nil {
		return err
	}
	cfg.Database.URL = os.Getenv(killURL)
	ctx := context.Background()
	c, err := sp.Open(ctx, sp.Options{Config: cfg, Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(os.Stdout, nil))})
	if err != nil {
		return err
	}
	l, err := c.Listen(ctx)
	if err != nil {
		return err
	}
	return c.Serve(ctx, l)
}

// A centre that is killed at any instant of its work leaves nothing that the next one does not put right:
// every device has the policy of the newest registry, each policy was made once, and no serial went back.
func TestKilledWhileMakingPolicies(t *testing.T) {
	t.Parallel()
	const rounds, devices = 8, 150
	storetest.Each(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		w.content = registrytest.Star(devices)
		seed := uint64(20261122)
		random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // instants of a test, reproducible
		t.Logf("seed %d", seed)
		operator := must(sp.Open(w.context(), sp.Options{Config: w.cfg, Now: w.Now}))(t)
		defer operator.Close()
		for range rounds {
			w.pass(deadLease) // leases of whoever was killed are over
			cmd := exec.CommandContext(w.context(), os.Args[0])
			cmd.Env = append(os.Environ(), killConfig+"="+w.configFile, killURL+"="+url, killNow+"="+w.Now().Format(time.RFC3339))
			out := must(cmd.StdoutPipe())(t)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			for lines.Scan() && !strings.Contains(lines.Text(), "msg=ready") {
				t.Log(lines.Text())
			}
			w.content.Services[0].Rules.Lifetimes.IKE += 1e9 * 3600
			reg := w.registry()
			old, rev, err := operator.Store().Current(w.context())
			if err != nil {
				t.Fatal(err)
			}
			p := &sp.Plan{From: rev, Registry: reg, Affected: compile.Affected(old, reg)}
			must(operator.Apply(w.context(), p, "test", ""))(t)
			time.Sleep(time.Duration(random.IntN(600)) * time.Millisecond) // the instant; nothing is concluded from it
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			for lines.Scan() { // until the pipe ends with the process
				continue
			}
			if err := cmd.Wait(); err == nil {
				t.Fatal("the centre ended by itself")
			}
		}
		w.pass(deadLease)
		i := w.start()
		i.settled()
		_, rev, err := i.Store().Current(w.context())
		if err != nil {
			t.Fatal(err)
		}
		list := must(i.Store().ChangesSince(w.context(), 0, 0))(t)
		if rev != rounds || len(list) != devices+1 {
			t.Fatalf("revision %d, %d devices with policies; want %d and %d", rev, len(list), rounds, devices+1)
		}
		for _, h := range list {
			if h.Revision != rev {
				t.Errorf("%s: its newest policy is of revision %d, want %d", h.Device, h.Revision, rev)
			}
		}
		policiesOnce(w, i, list)
		if err := i.Store().Check(w.context()); err != nil {
			t.Error(err)
		}
	})
}

// policiesOnce looks at all that were signed, by the record: for no device are two in a row the same.
func policiesOnce(w *world, i *instance, newest []store.PolicyHead) {
	w.Helper()
	signed := 0
	for _, e := range must(i.Store().Entries(w.context(), 0, 0))(w) {
		n := 0
		if _, err := fmt.Sscanf(e.What, "%d policies", &n); err == nil && e.Event.Event == "policies-signed" {
			signed += n
		}
	}
	found := 0
	for _, h := range newest {
		var contents []store.Hash
		// A serial number is the time, or one more than the last: the clock moved by deadLease each round.
		first := uint64(registrytest.At.Unix())
		for serial := first; serial <= h.Serial; serial++ {
			if (serial-first)%uint64(deadLease/time.Second) > 3 {
				continue
			}
			if p, err := i.Store().Policy(w.context(), h.Device, serial); err == nil {
				contents = append(contents, p.Content)
			}
		}
		for k := 1; k < len(contents); k++ {
			if contents[k] == contents[k-1] {
				w.Errorf("%s: the same policy was made twice", h.Device)
			}
		}
		found += len(contents)
	}
	w.Logf("%d policies were signed", signed)
	if signed != found {
		w.Errorf("%d policies signed, %d found", signed, found)
	}
}
