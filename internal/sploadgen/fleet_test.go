package sploadgen_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/sploadgen"
	"wardgate/sp"
	"wardgate/sp/registry"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// patience bounds what a test waits for; it is never what passes.
const patience = 8 * time.Minute

// centre is one in this process.
type centre struct {
	*testing.T
	ctx      context.Context
	cfg      *sp.Config
	scenario *sploadgen.Scenario
	addr     string
	running  *sp.Centre
	stop     func()
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c *centre) start() {
	c.Helper()
	running, err := sp.Open(c.ctx, sp.Options{Config: c.cfg})
	ok(c, err)
	if c.addr != "" {
		c.cfg.Server.Listen = c.addr
	}
	l, err := running.Listen(c.ctx)
	ok(c, err)
	c.running, c.addr = running, l.Devices.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- running.Serve(ctx, l) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, running.Close()); err != nil {
			c.Error(err)
		}
	})
	c.Cleanup(c.stop)
}

// apply makes the scenario the registry.
func (c *centre) apply(by *sp.Centre) {
	c.Helper()
	r, err := registry.New(c.scenario.Content)
	ok(c, err)
	files := fstest.MapFS{}
	for name, data := range r.Export() {
		files[name] = &fstest.MapFile{Data: data}
	}
	p, err := by.Plan(c.ctx, files)
	ok(c, err)
	_, err = by.Apply(c.ctx, p, "test", "")
	ok(c, err)
}

// settled waits until no work is left and every device has been given its newest policy.
func (c *centre) settled(f *sploadgen.Fleet) {
	c.Helper()
	for {
		left := 0
		for _, kind := range []string{"policy", "policy-time", "policy-renew"} {
			q, err := c.running.Store().Queue(c.ctx, kind)
			ok(c, err)
			left += q.Waiting + q.Leased
		}
		if left == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	heads, err := c.running.Store().ChangesSince(c.ctx, 0, 0)
	ok(c, err)
	want := c.scenario.Wanted()
	ok(c, f.Until(c.ctx, func() bool {
		has := f.Serials()
		for _, h := range heads {
			if _, takesPart := want[h.Device]; takesPart && has[h.Device] != h.Serial {
				return false
			}
		}
		return true
	}))
}

// Many devices with real TLS and long polls: every change reaches those that it concerns, once, and nobody
// else; also those that happen while the centre is away.
func TestEveryDeviceGetsEveryChangeOnce(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, url string) {
		const devices, partners, seed = 100, 5, 20261122
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		now := time.Now()
		s, err := sploadgen.New(devices, partners, seed, now)
		ok(t, err)
		dir := filepath.Join(t.TempDir(), "centre")
		ok(t, sp.Init(dir, sp.InitOptions{
			Issuer: "sp.example", Hosts: []string{"localhost"}, Services: sploadgen.Services, Listen: "127.0.0.1:0",
			DeviceAnchors: certs.EncodePEM(s.CA.Anchor()), DeviceCAs: certs.EncodePEM(s.CA.Intermediates()...),
		}, now, rand.Reader))
		cfg, err := sp.LoadConfig(filepath.Join(dir, "wardgate-sp.toml"))
		ok(t, err)
		cfg.Database.URL = url
		c := &centre{T: t, ctx: ctx, cfg: cfg, scenario: s}
		c.start()
		c.apply(c.running)

		roots := x509.NewCertPool()
		web, err := os.ReadFile(filepath.Join(dir, "web-root.pem"))
		ok(t, err)
		roots.AppendCertsFromPEM(web)
		pol, err := os.ReadFile(filepath.Join(dir, "policy-root.pem"))
		ok(t, err)
		signers, err := certs.ParseCertificates(pol)
		ok(t, err)
		opt := sploadgen.Options{Addr: c.addr, Name: "localhost", Roots: roots, Now: time.Now, Backoff: func(int) time.Duration { return 500 * time.Millisecond }}

		n, err := sploadgen.Enrol(ctx, opt, s, s.Devices()[:20], 8)
		ok(t, err)
		want := 0
		for _, d := range s.Devices()[:20] {
			want += len(s.Joined(d))
		}
		if n != want {
			t.Errorf("%d certificates, want %d", n, want)
		}

		judge := sploadgen.NewJudge(s, signers, time.Now)
		fleet := sploadgen.Start(opt, s, nil)
		defer fleet.Stop()
		ok(t, fleet.Until(ctx, func() bool { return fleet.Waiting() == devices && fleet.Count() == devices }))
		check := func(what string, concerned int) {
			t.Helper()
			list := judge.Concerned()
			if concerned >= 0 && len(list) != concerned {
				t.Errorf("%s: %d devices are concerned, want %d", what, len(list), concerned)
			}
			c.settled(fleet)
			for _, err := range judge.Take(what, fleet.Delivered()) {
				t.Error(err)
			}
			if t.Failed() {
				t.Fatalf("failures of devices: %v", fleet.Failures())
			}
		}
		check("first policy", devices)

		s.OneContract()
		c.apply(c.running)
		check("one contract", 2)
		s.Rules()
		c.apply(c.running)
		check("rules", devices)
		_, err = s.Move()
		ok(t, err)
		c.apply(c.running)
		check("move", -1)
		victim := s.Victim()
		_, err = c.running.RevokeDevice(ctx, victim, store.KeyCompromise, "test", "stolen")
		ok(t, err)
		check("revocation", -1)

		// The centre is away, and changes are made by another program meanwhile.
		c.stop()
		operator, err := sp.Open(ctx, sp.Options{Config: cfg})
		ok(t, err)
		for range 3 {
			s.OneContract()
			c.apply(operator)
		}
		s.Rules()
		c.apply(operator)
		ok(t, operator.Close())
		c.start()
		ok(t, fleet.Until(ctx, func() bool { return fleet.Waiting() == devices-1 }))
		check("after a restart", devices-1)

		// Nothing has changed: nobody is given anything.
		c.stop()
		c.start()
		ok(t, fleet.Until(ctx, func() bool { return fleet.Waiting() == devices-1 }))
		check("after another restart", 0)
	})
}
