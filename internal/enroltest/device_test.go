package enroltest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/policy"
	"wardgate/router/centre"
	"wardgate/sp/registry"
)

// device is a router as far as the centre sees it. Token, journal and policy stay when the power fails.
type device struct {
	w       *world
	name    string
	key     *ecdsa.PrivateKey
	cert    *x509.Certificate
	power   *power
	token   centre.Token
	soft    *token // the same, unless it is a real one
	journal *journal
	sink    *sink

	mu      sync.Mutex // guards what follows
	events  []centre.Event
	dialErr error
}

// newDevice makes a device with a certificate, and puts that into the content of the registry where the
// device is in it.
func (w *world) newDevice(name string) *device {
	w.Helper()
	d := &device{w: w, name: name, power: &power{off: func() {}}}
	d.key = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(w)
	d.cert = must(w.ca.Issue(labca.Request{Public: d.key.Public(), DNSNames: []string{name}, At: w.Now().Add(-36 * time.Hour)}))(w)
	d.soft = &token{p: d.power, now: w, device: centre.Key{Signer: d.key, Cert: d.cert, Chain: w.ca.Intermediates()}}
	d.token = d.soft
	d.journal, d.sink = &journal{p: d.power}, &sink{d: d}
	d.register()
	return d
}

// register puts the device's certificate into the content.
func (d *device) register() {
	d.w.Helper()
	if slices.ContainsFunc(d.w.content.Devices, func(x registry.Device) bool { return x.Name == d.name }) {
		d.w.entry(d.name).Certificate = string(certs.EncodePEM(d.cert))
	}
}

// tls is the device certificate for a client that is no agent.
func (d *device) tls() *tls.Certificate {
	return &tls.Certificate{Certificate: append([][]byte{d.cert.Raw}, labca.DER(d.w.ca.Intermediates())...), PrivateKey: d.key, Leaf: d.cert}
}

// service is a service certificate of the device, for a client that is no agent.
func (d *device) service(name string) *tls.Certificate {
	d.w.Helper()
	k := d.held(name)
	return &tls.Certificate{Certificate: append([][]byte{k.Cert.Raw}, labca.DER(k.Chain)...), PrivateKey: k.Signer, Leaf: k.Cert}
}

// counting counts signatures.
type counting struct {
	crypto.Signer
	n int // of one goroutine at a time
}

// Sign implements crypto.Signer.
func (c *counting) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	c.n++
	return c.Signer.Sign(rand, digest, opts)
}

// journal is a journal file in memory.
type journal struct {
	p  *power
	mu sync.Mutex // guards what follows
	b  []byte
}

// Load implements centre.JournalFile.
func (j *journal) Load() ([]byte, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.b), nil
}

// Save implements centre.JournalFile.
func (j *journal) Save(b []byte) error {
	return j.p.step("writing the journal", func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.b = slices.Clone(b)
	})
}

// sink verifies policies as the router does, with package policy.
type sink struct {
	d   *device
	mu  sync.Mutex // guards what follows
	doc *policy.Document
	all []uint64 // serial numbers that were in force, in order
}

// serial is that of the policy in force.
func (s *sink) serial() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.doc == nil {
		return 0
	}
	return s.doc.Serial
}

// Installed implements centre.PolicySink.
func (s *sink) Installed(context.Context) (centre.Policy, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy()
}

func (s *sink) policy() (centre.Policy, error) {
	if s.doc == nil {
		return centre.Policy{}, nil
	}
	p := centre.Policy{Serial: s.doc.Serial}
	for i := range s.doc.Services {
		v := &s.doc.Services[i]
		if v.Auth == policy.AuthPSK {
			continue
		}
		out := centre.Service{Name: v.Name}
		for _, text := range v.Anchors {
			list, err := certs.ParseCertificates([]byte(text))
			if err != nil {
				return centre.Policy{}, err
			}
			out.Anchors = append(out.Anchors, list...)
		}
		for _, text := range v.CRLs {
			list, err := certs.ParseCRLs([]byte(text))
			if err != nil {
				return centre.Policy{}, err
			}
			out.CRLs = append(out.CRLs, list...)
		}
		p.Services = append(p.Services, out)
	}
	return p, nil
}

// Install implements centre.PolicySink.
func (s *sink) Install(_ context.Context, jws []byte) (centre.Policy, error) {
	s.mu.Lock()
	var before policy.Installed
	if s.doc != nil {
		before = s.doc.Installed()
	}
	s.mu.Unlock()
	var crls []*x509.RevocationList
	if list := s.d.w.signerCRLs.Load(); list != nil {
		crls = *list
	}
	doc, err := policy.Verify(jws, policy.VerifyOptions{
		Anchors: s.d.w.signers, CRLs: crls, DeviceCertDER: s.d.cert.Raw, Installed: before, Now: s.d.w.Now(),
	})
	if err != nil {
		return centre.Policy{}, fmt.Errorf("%s: %w", policy.Code(err), err)
	}
	if !before.Same(doc) {
		if err := s.d.power.step("putting a policy in force", func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.doc, s.all = doc, append(s.all, doc.Serial)
		}); err != nil {
			return centre.Policy{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy()
}

// Report implements centre.Reporter.
func (d *device) Report(context.Context) centre.Report {
	return centre.Report{Version: "test", Connections: []centre.ConnectionState{{Name: "x", Up: true}}}
}

// boot switches the device on; its power fails after so many steps (0: it does not).
func (d *device) boot(failAt int) (*centre.Agent, context.Context) {
	d.w.Helper()
	ctx, off := context.WithCancel(context.Background())
	d.w.Cleanup(off)
	d.power.on(failAt, off)
	a, err := centre.New(centre.Config{
		URL: "https://localhost", Anchors: d.w.web, Token: d.token, Policies: d.sink, Reporter: d, Journal: d.journal,
		Clock: d.w, Rand: rand.Reader, Notify: d.notify,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d.w.mu.Lock()
			addr := d.w.addr
			d.w.mu.Unlock()
			d.mu.Lock()
			err := d.dialErr
			d.mu.Unlock()
			if err != nil {
				return nil, err
			}
			return d.power.dial(ctx, addr)
		},
	})
	if err != nil {
		d.w.Fatal(err)
	}
	return a, ctx
}

func (d *device) notify(e centre.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, e)
}

// told returns the events of a code.
func (d *device) told(code centre.EventCode) []centre.Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []centre.Event
	for _, e := range d.events {
		if e.Code == code {
			out = append(out, e)
		}
	}
	return out
}

// join is one Join from power-on to power-off.
func (d *device) join(failAt int) error {
	d.w.Helper()
	a, ctx := d.boot(failAt)
	defer a.Close()
	return a.Join(ctx, func(centre.Step) {})
}

// run starts Run, and returns how to stop it.
func (d *device) run() (*centre.Agent, func()) {
	d.w.Helper()
	a, ctx := d.boot(0)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			d.w.Errorf("Run: %v", err)
		}
	})
	d.w.Cleanup(stop)
	return a, stop
}

// keys lists layer 2.
func (d *device) keys() []centre.Key {
	d.w.Helper()
	if d.soft != nil {
		return d.soft.list()
	}
	return must(d.token.Services(d.w.context()))(d.w)
}

// held returns the key and certificate of a service.
func (d *device) held(service string) centre.Key {
	d.w.Helper()
	for _, k := range d.keys() {
		if k.Service == service && k.Cert != nil && k.Signer != nil {
			return k
		}
	}
	d.w.Fatalf("%s has no certificate of %s", d.name, service)
	return centre.Key{}
}

// faults says what is wrong when the device is to have exactly these services: one key with one valid
// certificate for each, which is the one that counts by the centre's record, nothing else on the token,
// no policy older than one before it, and the centre's newest in force.
func (d *device) faults(services ...string) error {
	d.w.Helper()
	var all []error
	var have []string
	for _, k := range d.keys() {
		have = append(have, k.Service)
		switch {
		case k.Cert == nil:
			all = append(all, fmt.Errorf("service %s: a key without certificate is left", k.Service))
			continue
		case k.Signer == nil:
			all = append(all, fmt.Errorf("service %s: a certificate without key is left", k.Service))
			continue
		case !certs.SamePublicKey(k.Signer.Public(), k.Cert.PublicKey):
			all = append(all, fmt.Errorf("service %s: key and certificate do not belong together", k.Service))
		}
		if err := certs.CheckRelated(k.Cert, d.cert.Raw); err != nil {
			all = append(all, err)
		}
		if now := d.w.Now(); now.After(k.Cert.NotAfter) || now.Before(k.Cert.NotBefore) {
			all = append(all, fmt.Errorf("service %s: not valid", k.Service))
		}
		if list := d.w.valid(d.name, k.Service); len(list) != 1 || !bytes.Equal(list[0].DER, k.Cert.Raw) {
			all = append(all, fmt.Errorf("service %s: %d certificates count by the centre's record, want the one on the token", k.Service, len(list)))
		}
	}
	slices.Sort(have)
	if want := slices.Sorted(slices.Values(services)); !slices.Equal(have, want) {
		all = append(all, fmt.Errorf("on the token: %v, want %v", have, want))
	}
	d.sink.mu.Lock()
	if !slices.IsSorted(d.sink.all) {
		all = append(all, fmt.Errorf("policies went back: %v", d.sink.all))
	}
	d.sink.mu.Unlock()
	serial := d.sink.serial()
	if h := d.w.head(d.name); h.Serial != serial {
		all = append(all, fmt.Errorf("policy %d is in force, the centre's newest is %d", serial, h.Serial))
	}
	if n := len(d.told(centre.EventJournalLost)); n != 0 {
		all = append(all, fmt.Errorf("%d times the journal could not be read", n))
	}
	return errors.Join(all...)
}

// has checks faults.
func (d *device) has(services ...string) {
	d.w.Helper()
	if err := d.faults(services...); err != nil {
		d.w.Errorf("%s: %v", d.name, err)
	}
}
