package enroltest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/policy"
	"wardgate/sp"
	"wardgate/sp/compile"
	"wardgate/sp/registry"
	"wardgate/sp/registry/registrytest"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

func TestMain(m *testing.M) {
	code := storetest.Main(m)
	if chipDir != "" {
		_ = os.RemoveAll(chipDir)
	}
	os.Exit(code)
}

// patience bounds what a test waits for; it is never what passes.
const patience = time.Minute

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// world is a centre with its folder and database, a clock, and devices.
type world struct {
	*testing.T
	cfg        *sp.Config
	web        []*x509.Certificate // roots of the server
	signers    []*x509.Certificate // roots of the policy signer
	dir        string
	ca         *labca.Authority // of device certificates
	content    registry.Content
	running    *instance
	signerCRLs atomic.Pointer[[]*x509.RevocationList] // of the policy signer, as devices know them
	enrolled   map[string]int                         // "device service": certificates that are rightly there
	waiting    chan struct{}                          // a device waits for a policy

	mu    sync.Mutex // guards what follows
	now   time.Time
	moved chan struct{} // closed when the clock was moved
	addr  string
}

// Now implements centre.Clock.
func (w *world) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// Wait implements centre.Clock: it returns when the test has moved the clock that far.
func (w *world) Wait(ctx context.Context, d time.Duration, wake <-chan struct{}) error {
	w.mu.Lock()
	until := w.now.Add(d)
	w.mu.Unlock()
	for {
		w.mu.Lock()
		now, moved := w.now, w.moved
		w.mu.Unlock()
		if !now.Before(until) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
			return nil
		case <-moved:
		}
	}
}

// pass moves the clock.
func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
	close(w.moved)
	w.moved = make(chan struct{})
}

func (w *world) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	w.Cleanup(cancel)
	return ctx
}

// eventually asks until the answer is yes; each time the clock goes on by step.
func (w *world) eventually(what string, step time.Duration, is func() bool) {
	w.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for !is() {
		select {
		case <-t.C:
			w.pass(step)
		case <-deadline.C:
			w.Fatalf("never: %s", what)
		}
	}
}

// services are those of the test's registry.
var services = []string{"group-a", "group-b", "group-c"}

// newWorld makes a folder by Init, a database, and a registry with devices that are members of services.
func newWorld(t *testing.T, url string, at time.Time, devices map[string][]string) *world {
	t.Helper()
	w := &world{T: t, now: at, enrolled: map[string]int{}, moved: make(chan struct{}), waiting: make(chan struct{}, 1000)}
	w.ca = must(labca.New(labca.Options{Kind: labca.Device, Name: "device", Domain: "devices.example", At: at.Add(-48 * time.Hour)}))(t)
	w.content.Members = []registry.Member{{Name: "clinic", Title: "Clinic"}}
	domains := map[string]string{}
	for _, s := range services {
		domains[s] = s + ".example"
		w.content.Services = append(w.content.Services, registry.Service{
			Name: s, Title: s, Category: policy.CategoryInformation, Auth: policy.AuthCertificate, Domain: domains[s], Rules: registry.Rules{Suites: registrytest.Suites()},
		})
	}
	for i, name := range slices.Sorted(maps.Keys(devices)) {
		w.content.Devices = append(w.content.Devices, registry.Device{
			Name: name, Member: "clinic", Gateways: []string{fmt.Sprintf("198.18.%d.%d", i/250, i%250+1)}, State: registry.Active, Certificate: registrytest.Certificate(name), // until the device has its own
			Zones: []registry.Zone{{Name: "sz", Level: policy.LevelSZ, Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 250), byte(i % 250), 0}), 24)}, Interfaces: []string{"lan0"}}},
		})
		w.join(name, devices[name]...)
	}
	w.dir = filepath.Join(t.TempDir(), "centre")
	if err := sp.Init(w.dir, sp.InitOptions{
		Issuer: "sp.example", Organization: "SP", Hosts: []string{"localhost"}, Services: domains,
		DeviceAnchors: certs.EncodePEM(w.ca.Anchor()), DeviceCAs: certs.EncodePEM(w.ca.Intermediates()...),
		Listen: "127.0.0.1:0", Status: "127.0.0.1:0", StatusURL: "http://sp.example",
	}, at, rand.Reader); err != nil {
		t.Fatal(err)
	}
	w.cfg = must(sp.LoadConfig(filepath.Join(w.dir, "wardgate-sp.toml")))(t)
	w.cfg.Database.URL = url
	w.cfg.Database.Poll = sp.Duration(20 * time.Millisecond)
	w.web, w.signers = w.pem("web-root.pem"), w.pem("policy-root.pem")
	return w
}

func (w *world) pem(name string) []*x509.Certificate {
	w.Helper()
	return must(certs.ParseCertificates(must(os.ReadFile(filepath.Join(w.dir, name)))(w)))(w)
}

// join makes a device a member of services, leave ends that; both in the content alone.
func (w *world) join(name string, services ...string) {
	for _, s := range services {
		w.content.Memberships = append(w.content.Memberships, registry.Membership{Device: name, Service: s})
	}
}

func (w *world) leave(name string, services ...string) {
	w.content.Memberships = slices.DeleteFunc(slices.Clone(w.content.Memberships), func(m registry.Membership) bool {
		return m.Device == name && slices.Contains(services, m.Service)
	})
}

// entry returns a device's entry in the content.
func (w *world) entry(name string) *registry.Device {
	w.Helper()
	i := slices.IndexFunc(w.content.Devices, func(d registry.Device) bool { return d.Name == name })
	if i < 0 {
		w.Fatalf("no device %s", name)
	}
	w.content.Devices = slices.Clone(w.content.Devices)
	return &w.content.Devices[i]
}

// instance is a running centre.
type instance struct {
	*sp.Centre
	w    *world
	stop func()
}

// start starts the centre, or another one after it was stopped. It may get another port; devices find it.
func (w *world) start() *instance {
	w.Helper()
	log := slog.New(&watched{slog.NewTextHandler(w.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}), w})
	c := must(sp.Open(w.context(), sp.Options{Config: w.cfg, Now: w.Now, Log: log}))(w)
	l := must(c.Listen(w.context()))(w)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Serve(ctx, l) }()
	i := &instance{Centre: c, w: w}
	i.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("serve: %v", err)
		}
		if err := c.Close(); err != nil {
			w.Errorf("close: %v", err)
		}
	})
	w.Cleanup(i.stop)
	w.mu.Lock()
	w.addr = l.Devices.Addr().String()
	w.mu.Unlock()
	w.running = i
	return i
}

// watched tells from the log when a device waits.
type watched struct {
	slog.Handler
	w *world
}

func (l *watched) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "a device waits for a policy" {
		select {
		case l.w.waiting <- struct{}{}:
		default:
		}
	}
	return l.Handler.Handle(ctx, r)
}

// apply makes the content the registry and waits until all policies are made.
func (w *world) apply() {
	w.Helper()
	i := w.running
	next := must(registry.New(w.content))(w)
	old, rev, err := i.Store().Current(w.context())
	if err != nil {
		w.Fatal(err)
	}
	must(i.Apply(w.context(), &sp.Plan{From: rev, Registry: next, Affected: compile.Affected(old, next)}, "test", ""))(w)
	w.settle()
}

// settle waits until no work is queued at the centre.
func (w *world) settle() {
	w.Helper()
	w.eventually("no work is left", 0, func() bool {
		for _, kind := range []string{"policy", "policy-time", "policy-renew"} {
			if q := must(w.running.Store().Queue(w.context(), kind))(w); q.Waiting+q.Leased > 0 {
				return false
			}
		}
		return true
	})
}

// recorded returns the events on the centre's record that have a code.
func (w *world) recorded(event, code string) []store.Entry {
	w.Helper()
	return slices.DeleteFunc(w.entries(), func(e store.Entry) bool { return e.Event.Event != event || e.Detail["code"] != code })
}

// entries returns the centre's record.
func (w *world) entries() []store.Entry {
	w.Helper()
	var all []store.Entry
	for after := uint64(0); ; after = all[len(all)-1].Seq {
		list := must(w.running.Store().Entries(w.context(), after, 0))(w)
		if all = append(all, list...); len(list) == 0 {
			return all
		}
	}
}

// valid returns the certificates of a service that a device has by the centre's record, without those that
// were replaced.
func (w *world) valid(device, service string) []store.Certificate {
	w.Helper()
	return slices.DeleteFunc(must(w.running.Store().CertificatesOf(w.context(), device, 0))(w), func(c store.Certificate) bool {
		return c.Service != service || !c.Ends.IsZero() || w.Now().After(c.NotAfter)
	})
}

// head is the newest policy that the centre has for a device.
func (w *world) head(device string) store.PolicyHead {
	w.Helper()
	h, err := w.running.Store().LatestHead(w.context(), device)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		w.Fatal(err)
	}
	return h
}

// waits waits until a device waits for its policy.
func (w *world) waits() {
	w.Helper()
	for len(w.waiting) > 0 {
		<-w.waiting
	}
	w.eventually("a device waits", 0, func() bool { return len(w.waiting) > 0 })
}

// rollCA makes a service's next CA, which the centre takes up within a minute.
func (w *world) rollCA(service string) {
	w.Helper()
	reg, _, err := w.running.Store().Current(w.context())
	if err != nil {
		w.Fatal(err)
	}
	must(w.running.MakeServiceKey(reg, service))(w)
	before := w.policySeq()
	w.eventually("the centre has the next CA", 10*time.Second, func() bool { return w.policySeq() > before })
	w.settle()
}

// policySeq is the number of policies that were made.
func (w *world) policySeq() uint64 {
	w.Helper()
	return must(w.running.Store().Heads(w.context()))(w).Policy
}

// reply is what came back to a client that is no agent.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// code is that of a refusal.
func (r *reply) code(t testing.TB) string {
	t.Helper()
	var p struct{ Code string }
	if err := json.Unmarshal(r.body, &p); err != nil {
		t.Fatalf("%d %s: %v", r.status, r.body, err)
	}
	return p.Code
}

// do asks the centre with a client certificate (nil: none).
func (w *world) do(by *tls.Certificate, method, path string, header http.Header, body []byte) *reply {
	w.Helper()
	w.mu.Lock()
	addr := w.addr
	w.mu.Unlock()
	cfg := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost", MinVersion: tls.VersionTLS13, Time: w.Now}
	for _, c := range w.web {
		cfg.RootCAs.AddCert(c)
	}
	if by != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return by, nil }
	}
	r := must(http.NewRequestWithContext(w.context(), method, "https://"+addr+path, bytes.NewReader(body)))(w)
	for k, v := range header {
		r.Header[k] = v
	}
	tr := &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}
	res := must((&http.Client{Transport: tr}).Do(r))(w)
	defer res.Body.Close()
	return &reply{res.StatusCode, res.Header, must(io.ReadAll(res.Body))(w)}
}
