// Package controltest holds the fake daemon for tests of the control API and the command line.
package controltest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"wardgate/router/control"
)

// Now is the fake's time.
var Now = time.Date(2026, 11, 20, 9, 30, 0, 0, time.UTC)

// Fake is a Backend with fixed answers that records what it was asked.
type Fake struct {
	mu    sync.Mutex // guards calls
	calls []string

	// Err is returned by every method, when set.
	Err error
	// Block makes every method wait until its context ends.
	Block bool
	// Answer is what Status returns; Hospital() by default.
	Answer *control.Status
}

var _ control.Backend = (*Fake)(nil)

// Calls returns what was asked, in order.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

func (f *Fake) did(ctx context.Context, what string) error {
	f.mu.Lock()
	f.calls = append(f.calls, what)
	f.mu.Unlock()
	if f.Block {
		<-ctx.Done()
		return ctx.Err()
	}
	return f.Err
}

// Hospital is the status of a hospital's router with something of everything.
func Hospital() *control.Status {
	return &control.Status{
		Facility: "Hospital A", DeviceID: "a.devices.example", Version: "0.1.0", Now: Now, Started: Now.Add(-50 * time.Hour),
		Policy: control.PolicyStatus{
			Installed: true, Issuer: "sp.example", Serial: 7,
			NotBefore: Now.Add(-24 * time.Hour), NotAfter: Now.Add(30 * 24 * time.Hour), InstalledAt: Now.Add(-23 * time.Hour),
		},
		Token: control.TokenStatus{
			State: control.TokenReady, Label: "facility-a",
			Certificates: []control.Certificate{
				{Layer: 1, Subject: "CN=a.devices.example", Issuer: "CN=Device CA", NotBefore: Now.Add(-time.Hour), NotAfter: Now.Add(3650 * 24 * time.Hour)},
				{Layer: 2, Service: "group-a", Subject: "CN=a.group-a.example", Issuer: "CN=Group A CA", NotBefore: Now.Add(-time.Hour), NotAfter: Now.Add(5 * 24 * time.Hour)},
				{Layer: 2, Service: "group-b", Subject: "CN=a.group-b.example", Issuer: "CN=Group B CA", NotBefore: Now.Add(-time.Hour), NotAfter: Now.Add(-time.Minute), Error: "expired"},
			},
		},
		Centre:      &control.CentreStatus{URL: "https://sp.example:8443", Heard: Now.Add(-20 * time.Second), Renewal: Now.Add(3 * 24 * time.Hour)},
		Connections: []control.Connection{Up(), Failed()},
		Traffic:     control.Traffic{PacketsIn: 1200, BytesIn: 160 << 20, PacketsOut: 800, BytesOut: 52100},
		Refused: []control.Refused{
			{Where: "kernel", Reason: "relay", Text: "a packet from one tunnel was to be passed on into another tunnel", Packets: 12, Bytes: 1008, Last: Now.Add(-time.Minute), Example: "tcp 10.2.1.9:4242 -> 10.3.1.7:104"},
			{Where: "policy", Reason: "no-rule", Text: "no flow of the policy allows it", Packets: 1, Last: Now.Add(-2 * time.Hour), Example: "udp 10.2.1.9:53 -> 10.1.2.10:53"},
		},
		Events: Records()[1:],
		Warnings: []control.Warning{{
			Code: "cert-expires-soon", Title: "The certificate of service group-a expires soon",
			Text: "valid until 2026-11-25T09:30:00Z", Hint: "ask the service provider for a new one",
		}},
	}
}

// Up is a connection that stands.
func Up() control.Connection {
	return control.Connection{
		Name: "a-b", Peer: "clinic-b", Service: "group-a", Start: "on-demand", State: control.ConnUp, Since: Now.Add(-3 * time.Minute),
		Local: []string{"10.1.2.0/24"}, Remote: []string{"10.2.1.0/24"}, Gateway: "203.0.113.2:4500",
		RemoteIDs: []string{"b.devices.example", "b.group-a.example"}, Suite: "aes256gcm16-prfsha384-x25519", ESPSuite: "aes256gcm16", Encap: true,
		Traffic:   control.Traffic{PacketsIn: 1200, BytesIn: 160 << 20, PacketsOut: 800, BytesOut: 52100, DroppedIn: 3},
		IdleAfter: "60s", SetupTime: "84ms", LastTraffic: Now.Add(-2 * time.Second),
	}
}

// Failed is a connection that could not be made.
func Failed() control.Connection {
	return control.Connection{
		Name: "a-c", Peer: "imaging-c", Service: "group-b", Start: "on-demand", State: control.ConnFailed, Since: Now.Add(-10 * time.Minute),
		Local: []string{"10.1.1.0/24"}, Remote: []string{"10.3.1.0/24"}, HeldPackets: 2, IdleAfter: "60s",
		LastError: &control.Error{
			Kind: control.KindRefused, Code: "cert-expired", Title: "The last attempt to connect failed",
			Detail: "the peer refused our certificate of group-b: expired", Hint: "ask the service provider for a new service certificate",
		},
		LastErrorAt: Now.Add(-10 * time.Minute),
	}
}

// Records are some audit records.
func Records() []control.AuditRecord {
	return []control.AuditRecord{
		{Seq: 41, Time: Now.Add(-50 * time.Hour), Event: "started", What: "wardgated 0.1.0", Result: "info"},
		{Seq: 42, Time: Now.Add(-3 * time.Minute), Event: "connection-up", Who: "b.devices.example", What: "a-b", Where: "203.0.113.2:4500", Result: "ok", Detail: map[string]string{"service": "group-a", "setup": "84ms"}},
		{Seq: 43, Time: Now.Add(-time.Minute), Event: "refused", Who: "b.devices.example", What: "tcp 10.2.1.9:4242 -> 10.3.1.7:104", Where: "kernel prerouting", Result: "refused", Detail: map[string]string{"reason": "relay"}},
	}
}

// Status implements control.Backend.
func (f *Fake) Status(ctx context.Context) (*control.Status, error) {
	if err := f.did(ctx, "status"); err != nil {
		return nil, err
	}
	if f.Answer != nil {
		return f.Answer, nil
	}
	return Hospital(), nil
}

// Connections implements control.Backend.
func (f *Fake) Connections(ctx context.Context) ([]control.Connection, error) {
	if err := f.did(ctx, "connections"); err != nil {
		return nil, err
	}
	if f.Answer != nil {
		return f.Answer.Connections, nil
	}
	return Hospital().Connections, nil
}

func (f *Fake) connection(name string) (*control.Connection, error) {
	for _, c := range []control.Connection{Up(), Failed()} {
		if c.Name == name {
			return &c, nil
		}
	}
	return nil, &control.Error{
		Kind: control.KindNotFound, Code: "no-such-connection", Title: "There is no connection of that name",
		Hint: "see the names with: wardgate connections",
	}
}

// Up implements control.Backend.
func (f *Fake) Up(ctx context.Context, name string) (*control.Connection, error) {
	if err := f.did(ctx, "up "+name); err != nil {
		return nil, err
	}
	return f.connection(name)
}

// Down implements control.Backend.
func (f *Fake) Down(ctx context.Context, name string) (*control.Connection, error) {
	if err := f.did(ctx, "down "+name); err != nil {
		return nil, err
	}
	c, err := f.connection(name)
	if c != nil {
		c.State, c.LastError = control.ConnIdle, nil
	}
	return c, err
}

// Explain implements control.Backend.
func (f *Fake) Explain(ctx context.Context, flow control.Flow) (*control.Explanation, error) {
	if err := f.did(ctx, "explain "+flow.From.String()+" "+flow.To.String()+" "+flow.Protocol); err != nil {
		return nil, err
	}
	if flow.To == netip.MustParseAddr("10.1.2.10") {
		return &control.Explanation{
			Flow: flow, Allow: true, Reason: "allowed", Direction: "in", ToZone: "sz", Connection: "a-b", Rule: "dicom", State: control.ConnUp,
			Text: []string{"10.2.1.9 belongs to the remote side of connection a-b.", "Flow \"dicom\" of that connection allows it."},
		}, nil
	}
	return &control.Explanation{
		Flow: flow, Reason: "no-relay", Direction: "in", Connection: "a-b",
		Text: []string{"10.3.1.7 is no address of a local zone: what comes out of a tunnel goes to a local zone or nowhere."},
	}, nil
}

// PolicyCheck implements control.Backend.
func (f *Fake) PolicyCheck(ctx context.Context, jws []byte) (*control.PolicyReport, error) {
	if err := f.did(ctx, "check "+string(jws)); err != nil {
		return nil, err
	}
	return &control.PolicyReport{
		Issuer: "sp.example", Device: "a.devices.example", Serial: 8, NotBefore: Now, NotAfter: Now.Add(30 * 24 * time.Hour),
		Connections: 2, Flows: 3, Tests: 5, Added: []string{"a-d"}, Changed: []string{"a-b"}, Removed: []string{"a-c"},
	}, nil
}

// PolicyInstall implements control.Backend.
func (f *Fake) PolicyInstall(ctx context.Context, jws []byte) (*control.PolicyReport, error) {
	if err := f.did(ctx, "install "+string(jws)); err != nil {
		return nil, err
	}
	r, err := (&Fake{}).PolicyCheck(ctx, jws)
	if r != nil {
		r.Installed = true
	}
	return r, err
}

// AuditTail implements control.Backend.
func (f *Fake) AuditTail(ctx context.Context, n int) ([]control.AuditRecord, error) {
	if err := f.did(ctx, "audit"); err != nil {
		return nil, err
	}
	all := Records()
	return all[max(0, len(all)-n):], nil
}

// Counters implements control.Backend.
func (f *Fake) Counters(ctx context.Context) (*control.Counters, error) {
	if err := f.did(ctx, "counters"); err != nil {
		return nil, err
	}
	h := Hospital()
	return &control.Counters{
		Traffic: h.Traffic, Connections: map[string]control.Traffic{"a-b": Up().Traffic}, Refused: h.Refused,
		Other: map[string]uint64{"flows": 3, "child_sas": 1},
	}, nil
}

// Reload implements control.Backend.
func (f *Fake) Reload(ctx context.Context) error { return f.did(ctx, "reload") }

// Health implements control.Backend.
func (f *Fake) Health(ctx context.Context) error { return f.did(ctx, "health") }

// Steps are how a router joins whose partner has not joined yet.
func Steps() []control.JoinStep {
	return []control.JoinStep{
		{Name: control.StepDevice, Text: "a.devices.example, valid until 2036-11-20T09:30:00Z"},
		{Name: control.StepReach, Text: "sp.example:8443"},
		{Name: control.StepClock, Text: "2026-11-20T09:30:00Z"},
		{Name: control.StepPolicy, Text: "serial 8, 1 services"},
		{Name: control.StepServiceKey, Service: "group-a", Text: "made on the token"},
		{Name: control.StepEnrolment, Service: "group-a", Text: "renewed from 2026-11-25T09:30:00Z"},
		{Name: control.StepReport},
		{Name: control.StepConnection, Error: &control.Error{
			Kind: control.KindTimeout, Code: "peer-silent", Title: "The partner does not answer", Detail: "b.devices.example at 203.0.113.2",
			Hint: "the partner may not have joined yet",
		}},
	}
}

// Join implements control.Backend. With Err it fails at the second step.
func (f *Fake) Join(ctx context.Context, req control.JoinRequest, step func(control.JoinStep)) error {
	err := f.did(ctx, "join "+req.URL+" "+req.Wait)
	if req.URL == "refused at once" {
		return err
	}
	steps := Steps()
	if e, ok := errors.AsType[*control.Error](err); ok {
		steps = steps[:2]
		steps[1] = control.JoinStep{Name: control.StepReach, Error: e}
	}
	for _, s := range steps {
		step(s)
	}
	return err
}

// Redirect implements control.Backend.
func (f *Fake) Redirect(ctx context.Context, req control.RedirectRequest) (*control.RedirectReport, error) {
	if err := f.did(ctx, fmt.Sprintf("redirect %v %v", req.To, req.Connections)); err != nil {
		return nil, err
	}
	return &control.RedirectReport{To: req.To, Connections: []control.Redirected{
		{Name: "a-b", Told: true}, {Name: "a-c", Why: "it is not up"},
	}}, nil
}

// PPKs implements control.Backend.
func (f *Fake) PPKs(ctx context.Context) ([]control.PPK, error) {
	if err := f.did(ctx, "ppk"); err != nil {
		return nil, err
	}
	return []control.PPK{
		{ID: "clinic-b-2026", Present: true, Check: "1f2e-3d4c", Added: Now.Add(-time.Hour), Connections: []string{"a-b"}, Required: true},
		{ID: "imaging", Connections: []string{"a-c", "a-d"}, Required: true},
		{ID: "old", Present: true, Check: "0000-1111", Added: Now.Add(-100 * time.Hour)},
	}, nil
}

// PPKAdd implements control.Backend.
func (f *Fake) PPKAdd(ctx context.Context, id string, secret []byte, replace bool) (*control.PPK, error) {
	if err := f.did(ctx, fmt.Sprintf("ppk add %s %d octets %v", id, len(secret), replace)); err != nil {
		return nil, err
	}
	return &control.PPK{ID: id, Present: true, Check: "1f2e-3d4c", Added: Now, Connections: []string{"a-b"}}, nil
}

// PPKRemove implements control.Backend.
func (f *Fake) PPKRemove(ctx context.Context, id string) (*control.PPK, error) {
	if err := f.did(ctx, "ppk remove "+id); err != nil {
		return nil, err
	}
	return &control.PPK{ID: id, Connections: []string{"a-b"}, Required: true}, nil
}
