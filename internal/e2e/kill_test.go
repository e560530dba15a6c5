package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/router/control"
	"wardgate/sp/store"
)

// kills is how many instants are tried unless WARDGATE_KILLS says otherwise; WARDGATE_SEED repeats a run.
const kills = 10

// recovery bounds what may take until everything is as it should be after a crash. It is the agent's
// pauses after failures and a few renewals; nothing waits for it unless something is broken.
const recovery = 90 * time.Second

// killing is a run of TestKillAtAnyInstant.
type killing struct {
	*testing.T
	h      *lab.Hospital
	rng    *rand.Rand
	serial map[*lab.Facility]uint64 // of the newest policy that was seen in force
	wide   bool                     // the register has the additional flow
}

// A router (with its chip process or without) and the centre are killed at random instants while a device
// joins, renews its certificates, and is given another policy. Whatever the instant: they recover by
// themselves; the policy in force is never older than it was, and its file always whole; the token ends with
// exactly one key with one certificate for each service, and no key lies outside of it; the centre's record
// is unbroken, and a device has no two certificates of a service that are good beyond the overlap.
func TestKillAtAnyInstant(t *testing.T) {
	t.Parallel()
	n, seed := kills, uint64(1)
	for env, set := range map[string]func(uint64){"WARDGATE_KILLS": func(v uint64) { n = int(v) }, "WARDGATE_SEED": func(v uint64) { seed = v }} {
		if s := os.Getenv(env); s != "" {
			v, err := strconv.ParseUint(s, 10, 31)
			must(t, err)
			set(v)
		}
	}
	h, err := lab.NewHospital(t.Context(), newLab(t, "e2e-kill"), 0)
	must(t, err)
	must(t, h.FromCentre(t.Context(), shortLives))
	for _, f := range h.Facilities() {
		f.SPURL = h.SP.URL() // it joins by itself, whenever it starts
		must(t, f.Keep())
	}
	must(t, h.Start(t.Context()))
	k := &killing{T: t, h: h, rng: rand.New(rand.NewPCG(seed, 0)), serial: map[*lab.Facility]uint64{}}
	k.settle()
	acts := []func(f *lab.Facility, centre bool) string{k.join, k.renew, k.change}
	for i := range n {
		f, centre := []*lab.Facility{h.A, h.B}[k.rng.IntN(2)], k.rng.IntN(3) == 0
		start := time.Now()
		what := acts[i%len(acts)](f, centre)
		k.settle()
		t.Logf("%d: %s; as it should be %v later", i, what, time.Since(start).Round(10*time.Millisecond))
		if t.Failed() {
			t.Fatalf("seed %d, kill %d: %s", seed, i, what)
		}
	}
}

// after is a random time up to a limit.
func (k *killing) after(limit time.Duration) time.Duration {
	return time.Duration(k.rng.Int64N(int64(limit)))
}

// kill ends the facility's router or the centre at this very moment, looks at what lies about, and starts
// it again.
func (k *killing) kill(f *lab.Facility, centre bool) string {
	k.Helper()
	if centre {
		k.h.SP.Process.Kill()
		k.records()
		must(k.T, k.h.SP.Start(k.Context()))
		return "the centre"
	}
	how := f.Title + "'s wardgated"
	if k.rng.IntN(2) == 0 {
		f.Daemon.Kill()
	} else {
		how += " and wardgate-chip"
		must(k.T, f.Daemon.KillAll())
	}
	k.files(f)
	must(k.T, f.StartDaemon(k.Context()))
	return how
}

// join takes everything from a router but its device certificate, starts it, and kills.
func (k *killing) join(f *lab.Facility, centre bool) string {
	must(k.T, f.Daemon.Stop(15*time.Second), f.Freshen())
	_, err := f.LaunchDaemon()
	must(k.T, err)
	at := k.after(1200 * time.Millisecond)
	time.Sleep(at) // the instant is the test's input, here and below
	return fmt.Sprintf("%v into the joining of %s: %s", at, f.Title, k.kill(f, centre))
}

// renew kills at about the time at which a certificate is renewed.
func (k *killing) renew(f *lab.Facility, centre bool) string {
	s, err := f.Status(k.Context())
	must(k.T, err)
	if s.Centre == nil || s.Centre.Renewal.IsZero() {
		k.Errorf("%s does not know when it renews its certificates: %+v", f.Title, s.Centre)
		return "no renewal"
	}
	at := k.after(500*time.Millisecond) - 50*time.Millisecond
	time.Sleep(time.Until(s.Centre.Renewal.Add(at)))
	return fmt.Sprintf("%v into the renewal of %s: %s", at, f.Title, k.kill(f, centre))
}

// change kills while a change of the registry is on its way; with the centre also whoever applies it.
func (k *killing) change(f *lab.Facility, centre bool) string {
	k.wide = !k.wide
	r := k.register()
	must(k.T, r.Write(k.h.SP.Folder))
	ctx, cancel := context.WithCancel(k.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := k.h.SP.SP(ctx, "apply", k.h.SP.Folder)
		done <- err
	}()
	at := k.after(700 * time.Millisecond)
	time.Sleep(at)
	if centre {
		cancel()
	}
	what := k.kill(f, centre)
	if err := <-done; err != nil && !centre {
		k.Errorf("apply: %v", err)
	} else if centre {
		_, err := k.h.SP.SP(k.Context(), "apply", k.h.SP.Folder) // it was carried out or it was not
		must(k.T, err)
	}
	return fmt.Sprintf("%v into a change of A's and B's policy: %s", at, what)
}

// register is the scenario's, with one flow more every other time.
func (k *killing) register() *lab.Register {
	r := k.h.Register()
	if k.wide {
		ab := *k.h.AB
		ab.Flows = append(slices.Clone(ab.Flows), lab.Agreed{Name: "more", From: k.h.B, Src: ab.Flows[0].Src, Dst: ab.Flows[0].Dst, Protocol: "udp", Ports: []string{"7009"}})
		r.Contracts = []*lab.Contract{&ab, k.h.AC}
	}
	return r
}

// settle waits until everything is as it should be, without doing anything for it.
func (k *killing) settle() {
	k.Helper()
	for _, f := range []*lab.Facility{k.h.A, k.h.B} {
		must(k.T, lab.WaitFor(k.Context(), f.Title+" to be as it should be", recovery, func() error { return k.right(f) }))
	}
	reaches(k.T, k.h.Modality, k.h.Archive)
	for _, f := range []*lab.Facility{k.h.A, k.h.B} {
		k.files(f)
	}
	k.records()
}

// right says what is not as it should be at a facility.
func (k *killing) right(f *lab.Facility) error {
	s, err := f.Status(k.Context())
	if err != nil {
		return err
	}
	if s.Policy.Installed {
		k.seen(f, s.Policy.Serial)
	}
	d, err := k.h.SP.Device(k.Context(), f)
	if err != nil {
		return err
	}
	if !s.Policy.Installed || s.Policy.Serial != d.Policy.Serial {
		return fmt.Errorf("policy %d is in force, the centre has %d", s.Policy.Serial, d.Policy.Serial)
	}
	if has := slices.ContainsFunc(s.Connections, func(c control.Connection) bool { return c.Name == "a-b" }); !has {
		return errors.New("no connection a-b")
	}
	out, err := f.Wardgate(k.Context(), "token", "service", "list", "--json", "--config", f.ConfigFile())
	if err != nil {
		return err
	}
	var token struct {
		Services []struct {
			Service, Key, Serial, State string
		} `json:"services"`
	}
	if err := json.Unmarshal([]byte(out), &token); err != nil {
		return fmt.Errorf("wardgate token service list: %w", err)
	}
	var have []string
	for _, e := range token.Services {
		if e.State != "ok" || e.Key == "" || e.Serial == "" {
			return fmt.Errorf("the token has %+v", token.Services)
		}
		have = append(have, e.Service)
	}
	slices.Sort(have)
	if !slices.Equal(have, k.h.Services(f)) {
		return fmt.Errorf("the token has %+v", token.Services)
	}
	return nil
}

// seen notes which policy is in force, which must be none that is older than those before.
func (k *killing) seen(f *lab.Facility, serial uint64) {
	k.Helper()
	if serial < k.serial[f] {
		k.Errorf("%s: policy %d is in force after %d was", f.Title, serial, k.serial[f])
	}
	k.serial[f] = max(k.serial[f], serial)
}

// files looks at what a router has in files.
func (k *killing) files(f *lab.Facility) {
	k.Helper()
	serial, err := verifiedSerial(f)
	if err != nil {
		k.Errorf("the policy's file is not whole: %v", err)
	} else if serial != 0 { // a router that is about to join has none
		k.seen(f, serial)
	}
	for _, dir := range []string{"state", "run", "etc"} {
		if err := filepath.WalkDir(filepath.Join(f.Dir, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return ignoreGone(err)
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return ignoreGone(err)
			}
			if kind := privateKey(data); kind != "" {
				k.Errorf("%s: %s lies in %s, outside the token", f.Title, kind, path)
			}
			return nil
		}); err != nil {
			k.Error(err)
		}
	}
}

// ignoreGone forgets that a temporary file was renamed while it was looked for.
func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// records looks at the centre's database.
func (k *killing) records() {
	k.Helper()
	st := database(k.T, k.h)
	defer st.Close()
	if _, err := st.VerifyRecord(k.Context(), store.Mark{}); err != nil {
		k.Errorf("the centre's record: %v", err)
	}
	for _, f := range k.h.Facilities() {
		all, err := st.CertificatesOf(k.Context(), f.DeviceID, 0)
		if err != nil {
			k.Error(err)
			continue
		}
		slices.SortFunc(all, func(a, b store.Certificate) int { return a.Issued.Compare(b.Issued) })
		next := map[string]*store.Certificate{} // of a service
		for i := range slices.Backward(all) {
			c := &all[i]
			if n := next[c.Service]; n != nil && c.NotAfter.After(n.Issued) {
				if ends := n.Issued.Add(overlap + time.Second); c.Ends.IsZero() || c.Ends.After(ends) {
					k.Errorf("%s has two certificates of %s that are good: that of %v ends at %v; want at %v, because there is one of %v", f.Title, c.Service, c.Issued, c.Ends, ends, n.Issued)
				}
			}
			next[c.Service] = c
		}
	}
}
