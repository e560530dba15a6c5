package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"pgregory.net/rapid"

	"wardgate/audit"
	"wardgate/router/control"
	"wardgate/router/control/controltest"
)

var update = flag.Bool("update", false, "write the golden files and the reference part of docs/cli.md anew")

// The times in golden files are those of one zone, not of the machine.
func TestMain(m *testing.M) {
	time.Local = time.FixedZone("JST", 9*3600)
	os.Exit(m.Run())
}

// fake is the shared fake daemon with answers that a test can replace.
type fake struct {
	controltest.Fake
	connections []control.Connection
	connection  func(ctx context.Context, name string) (*control.Connection, error)
	explain     func(control.Flow) (*control.Explanation, error)
	counters    *control.Counters
	records     []control.AuditRecord
	flow        control.Flow
}

func (f *fake) Connections(ctx context.Context) ([]control.Connection, error) {
	if f.connections != nil {
		return f.connections, nil
	}
	return f.Fake.Connections(ctx)
}

func (f *fake) Up(ctx context.Context, name string) (*control.Connection, error) {
	if f.connection != nil {
		return f.connection(ctx, name)
	}
	return f.Fake.Up(ctx, name)
}

func (f *fake) Down(ctx context.Context, name string) (*control.Connection, error) {
	if f.connection != nil {
		return f.connection(ctx, name)
	}
	return f.Fake.Down(ctx, name)
}

func (f *fake) Explain(ctx context.Context, flow control.Flow) (*control.Explanation, error) {
	f.flow = flow
	if f.explain != nil {
		return f.explain(flow)
	}
	return f.Fake.Explain(ctx, flow)
}

func (f *fake) Counters(ctx context.Context) (*control.Counters, error) {
	if f.counters != nil {
		return f.counters, nil
	}
	return f.Fake.Counters(ctx)
}

func (f *fake) AuditTail(ctx context.Context, n int) ([]control.AuditRecord, error) {
	if f.records != nil {
		return f.records, nil
	}
	return f.Fake.AuditTail(ctx, n)
}

// result is what one command line did.
type result struct {
	out, err string
	exit     int
}

// runWith runs a command line against a daemon.
func runWith(d daemon, env map[string]string, terminal bool, args ...string) result {
	var out, errs bytes.Buffer
	c := &cli{
		in: strings.NewReader("policy from standard input"), out: &out, err: &errs,
		now:      func() time.Time { return controltest.Now },
		dial:     func(string) (daemon, error) { return d, nil },
		getenv:   func(name string) string { return env[name] },
		terminal: terminal,
	}
	exit := c.run(args)
	return result{out.String(), errs.String(), exit}
}

func golden(t *testing.T, name string, r result) {
	t.Helper()
	got := fmt.Sprintf("exit %d\n--- standard output\n%s--- standard error\n%s", r.exit, r.out, r.err)
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; make it with: go test ./cmd/wardgate -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// hospital is a router with a connection in every state and something of everything.
func hospital() *control.Status {
	s := controltest.Hospital()
	now := controltest.Now
	idle := func(name, start string) control.Connection {
		return control.Connection{Name: name, Peer: "clinic-" + name, Service: "group-a", Start: start, State: control.ConnIdle, Since: now.Add(-time.Hour)}
	}
	healing := idle("a-g", "on-demand")
	healing.LastError = &control.Error{Kind: control.KindTimeout, Code: "connection-failed", Title: "The last attempt to connect failed", Detail: "the peer does not answer", Hint: "check the internet line here and at the partner"}
	healing.LastErrorAt = now.Add(-42 * time.Second)
	s.Connections = append(
		s.Connections,
		control.Connection{Name: "a-d", Peer: "東京病院", Service: "group-a", Start: "on-demand", State: control.ConnConnecting, Since: now.Add(-2 * time.Second), HeldPackets: 1},
		control.Connection{Name: "a-h", Peer: "clinic-h", Service: "group-a", State: control.ConnClosing, Since: now},
		control.Connection{Name: "a-i", Peer: "clinic-i", Service: "group-a", State: control.ConnUp, Since: now.Add(-26 * time.Hour), ESPSuite: "aes128gcm16", Gateway: "[2001:db8::2]:500"},
		idle("a-e", "on-demand"), idle("a-f", "manual"), idle("a-j", "always"), healing,
	)
	s.Refused = append(
		s.Refused,
		control.Refused{Where: "ike", Reason: "cert-not-bound", Packets: 2, Last: now.Add(-30 * time.Minute), Example: "203.0.113.9:500"},
		control.Refused{Where: "tunnel", Reason: "a-reason-of-tomorrow", Packets: 123456},
	)
	s.Events = append(
		[]control.AuditRecord{
			{Time: now, Event: string(audit.EventRelayRefused), Who: "b.devices.example", What: "10.3.1.7 tcp/104", Where: "10.2.1.9", Result: "refused", Detail: map[string]string{"reason": "no-relay", "count": "12"}},
			{Time: now.Add(-time.Minute), Event: string(audit.EventConnectionFailed), What: "a-c", Result: "failed", Detail: map[string]string{"error": "expired"}},
		},
		s.Events...,
	)
	return s
}

func TestStatus(t *testing.T) {
	t.Parallel()
	bare := &control.Status{
		Version: "0.1.0", Now: controltest.Now, Started: controltest.Now.Add(-300 * time.Millisecond),
		Policy: control.PolicyStatus{Error: &control.Error{Kind: control.KindUnavailable, Code: "no-policy", Title: "No policy is installed", Hint: "install it: wardgate policy install FILE"}},
		Token:  control.TokenStatus{State: control.TokenPINRefused, Label: "facility-a", Error: &control.Error{Kind: control.KindToken, Code: "pin", Title: "The token refuses the PIN", Detail: "2 tries left", Hint: "correct the PIN file"}},
	}
	empty := controltest.Hospital()
	empty.Connections, empty.Refused, empty.Events, empty.Warnings, empty.Token.Certificates = nil, nil, nil, nil, nil
	empty.Policy.NotAfter = controltest.Now.Add(-time.Hour)
	for name, s := range map[string]*control.Status{"status": hospital(), "status-bare": bare, "status-empty": empty, "status-nothing": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &fake{}
			f.Answer = s
			golden(t, name, runWith(f, nil, false, "status"))
		})
	}
	f := &fake{}
	f.Answer = hospital()
	golden(t, "status-json", runWith(f, nil, false, "status", "--json"))
}

func TestOutput(t *testing.T) {
	t.Parallel()
	for name, args := range map[string]string{
		"connections":           "connections",
		"connections-json":      "connections --json",
		"up":                    "up a-b",
		"up-json":               "up a-b --json",
		"up-failed":             "up a-c",
		"up-failed-json":        "up a-c --json",
		"up-unknown":            "up a-x",
		"up-unknown-json":       "--json up a-x",
		"down":                  "down a-b",
		"down-json":             "down a-b --json",
		"explain-allowed":       "explain --from 10.2.1.9 --to 10.1.2.10 --protocol tcp --port 104",
		"explain-denied":        "explain --from 10.2.1.9 --to 10.3.1.7 --protocol TCP --port 104",
		"explain-denied-json":   "explain --from 10.2.1.9 --to 10.3.1.7 --protocol tcp --port 104 --json",
		"explain-ping":          "explain --from 10.2.1.9 --to 10.1.2.10 --protocol icmp",
		"policy-check":          "policy check -",
		"policy-check-json":     "policy check - --json",
		"policy-install":        "policy install -",
		"audit-tail":            "audit tail -n 2",
		"audit-tail-json":       "audit tail --json",
		"counters":              "counters",
		"counters-json":         "counters --json",
		"redirect":              "redirect --to 203.0.113.20 --all",
		"redirect-json":         "redirect --to 203.0.113.20 a-b --json",
		"ppk-add":               "ppk add clinic-b-2026",
		"ppk-list":              "ppk list",
		"ppk-list-json":         "ppk list --json",
		"ppk-remove":            "ppk remove imaging",
		"usage-redirect-to":     "redirect --to pacs.example --all",
		"usage-redirect-whom":   "redirect --to 203.0.113.20",
		"usage-no-such-command": "statsu",
		"usage-no-such-sub":     "policy chekc x",
		"usage-no-sub":          "audit",
		"usage-flag":            "status --all",
		"usage-argument":        "status now",
		"usage-missing":         "up",
		"usage-json":            "policy --json check",
		"usage-required":        "explain --from 10.2.1.9",
		"usage-no-port":         "explain --from 10.2.1.9 --to 10.1.2.10 --protocol tcp",
		"usage-icmp-port":       "explain --from 10.2.1.9 --to 10.1.2.10 --protocol icmp --port 8",
		"usage-tcp-type":        "explain --from 10.2.1.9 --to 10.1.2.10 --protocol tcp --port 8 --icmp-type 8",
		"usage-families":        "explain --from 10.2.1.9 --to 2001:db8::1 --protocol udp --port 8",
		"usage-name":            "explain --from pacs.example --to 10.1.2.10 --protocol udp --port 8",
		"usage-protocol":        "explain --from 10.2.1.9 --to 10.1.2.10 --protocol tpc",
		"usage-wait":            "up a-b --wait 2m",
		"usage-tail":            "audit tail -n 0",
		"usage-offline":         "policy check - --offline",
		"usage-online":          "policy check - --anchors x",
		"usage-help":            "help statsu",
		"help":                  "",
		"help-policy":           "help policy",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			golden(t, name, runWith(&fake{}, nil, false, strings.Fields(args)...))
		})
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	kinds := map[control.Kind]int{
		control.KindInvalid: exitUsage, control.KindDenied: exitRefused, control.KindRefused: exitRefused, control.KindToken: exitToken,
		control.KindNotFound: exitFailure, control.KindTooLarge: exitFailure, control.KindInternal: exitFailure,
		control.KindUnavailable: exitFailure, control.KindTimeout: exitFailure, "of-tomorrow": exitFailure,
	}
	errs := map[string]struct {
		err  error
		exit int
		says []string
	}{
		"unreachable": {fmt.Errorf("%w: nobody answers at /run/x.sock", control.ErrUnreachable), exitUnreachable, []string{"cannot be reached", "hint: start the daemon"}},
		"deadline":    {context.DeadlineExceeded, exitFailure, []string{"too long", "hint: "}},
		"other":       {errors.New("something else"), exitFailure, []string{"something else"}},
	}
	for k, exit := range kinds {
		errs["kind "+string(k)] = struct {
			err  error
			exit int
			says []string
		}{fmt.Errorf("wrapped: %w", &control.Error{Kind: k, Code: "a-code", Title: "A title", Detail: "a detail", Hint: "a hint"}), exit, []string{"wardgate: a title: a detail (a-code)\nhint: a hint\n"}}
	}
	commands := []string{
		"status", "connections", "up a", "down a", "explain --from 10.2.1.9 --to 10.1.2.10 --protocol any", "policy check -", "policy install -", "audit tail", "counters",
	}
	for name, c := range errs {
		for _, command := range commands {
			f := &fake{}
			f.Err = c.err
			args := strings.Fields(command)
			r := runWith(f, nil, false, args...)
			if r.exit != c.exit {
				t.Errorf("%s: %s: exit %d, want %d", name, command, r.exit, c.exit)
			}
			for _, s := range c.says {
				if !strings.Contains(r.err, s) || r.out != "" {
					t.Errorf("%s: %s: want %q on standard error and nothing on standard output, got\n%s\n%s", name, command, s, r.err, r.out)
				}
			}
			r = runWith(f, nil, false, append(args, "--json")...)
			var v struct {
				Error *control.Error `json:"error"`
			}
			if err := json.Unmarshal([]byte(r.out), &v); err != nil || v.Error == nil || v.Error.Title == "" || v.Error.Kind == "" {
				t.Errorf("%s: %s --json: %v: %s", name, command, err, r.out)
			}
			if r.exit != c.exit || r.err != "" {
				t.Errorf("%s: %s --json: exit %d, want %d; standard error %q", name, command, r.exit, c.exit, r.err)
			}
		}
	}
}

// The answer itself decides about the exit code of up, down and explain.
func TestExitCodeOfAnswers(t *testing.T) {
	t.Parallel()
	state := func(s string, e *control.Error) func(context.Context, string) (*control.Connection, error) {
		return func(_ context.Context, name string) (*control.Connection, error) {
			return &control.Connection{Name: name, State: s, LastError: e}, nil
		}
	}
	nothing := func(context.Context, string) (*control.Connection, error) { return nil, nil }
	for _, c := range []struct {
		args       string
		connection func(context.Context, string) (*control.Connection, error)
		exit       int
		says       string
	}{
		{"up a", state(control.ConnUp, nil), exitOK, ""},
		{"up a", state(control.ConnConnecting, nil), exitFailure, "is not up after 30s"},
		{"up a --wait 1s", state(control.ConnConnecting, nil), exitFailure, "is not up after 1s"},
		{"up a", state(control.ConnIdle, nil), exitFailure, "it is idle"},
		{"up a", state(control.ConnFailed, &control.Error{Kind: control.KindRefused, Code: "cert-expired", Title: "Refused"}), exitRefused, "cert-expired"},
		{"up a", state(control.ConnFailed, &control.Error{Kind: control.KindToken, Code: "token-removed", Title: "No token"}), exitToken, "token-removed"},
		{"up a", nothing, exitFailure, "is not up"},
		{"down a", state(control.ConnIdle, nil), exitOK, ""},
		{"down a", state(control.ConnFailed, nil), exitOK, ""},
		{"down a", state(control.ConnUp, nil), exitFailure, "still up"},
		{"down a", state(control.ConnClosing, nil), exitFailure, "still closing"},
		{"down a", nothing, exitFailure, "answered with nothing"},
	} {
		r := runWith(&fake{connection: c.connection}, nil, false, strings.Fields(c.args)...)
		if r.exit != c.exit || !strings.Contains(r.err, c.says) {
			t.Errorf("%s: exit %d, want %d and %q, got\n%s", c.args, r.exit, c.exit, c.says, r.err)
		}
	}
	for _, e := range []*control.Explanation{nil, {Reason: "reply"}, {Reason: "no-rule"}, {Allow: true, Reason: "allowed"}} {
		want := exitRefused
		switch {
		case e == nil:
			want = exitFailure
		case e.Allow:
			want = exitOK
		}
		r := runWith(&fake{explain: func(control.Flow) (*control.Explanation, error) { return e, nil }}, nil, false, "explain", "--from", "10.2.1.9", "--to", "10.1.2.10", "--protocol", "any")
		if r.exit != want {
			t.Errorf("%+v: exit %d, want %d\n%s%s", e, r.exit, want, r.out, r.err)
		}
		if e != nil && e.Reason == "reply" && !strings.HasPrefix(r.out, "ONLY AS AN ANSWER") {
			t.Errorf("reply: %s", r.out)
		}
	}
}

func TestExplainAsks(t *testing.T) {
	t.Parallel()
	from, to := netip.MustParseAddr("10.2.1.9"), netip.MustParseAddr("10.1.2.10")
	from6, to6 := netip.MustParseAddr("2001:db8:2::9"), netip.MustParseAddr("2001:db8:1::10")
	for args, want := range map[string]control.Flow{
		"--from 10.2.1.9 --to 10.1.2.10 --protocol tcp --port 104 --from-port 4242":           {From: from, To: to, Protocol: "tcp", FromPort: 4242, ToPort: 104},
		"--from 10.2.1.9 --to 10.1.2.10 --protocol icmp":                                      {From: from, To: to, Protocol: "icmp", ToPort: 0x0800},
		"--from 10.2.1.9 --to 10.1.2.10 --protocol icmp --icmp-type 3 --icmp-code 4":          {From: from, To: to, Protocol: "icmp", ToPort: 0x0304},
		"--from 2001:db8:2::9 --to 2001:db8:1::10 --protocol icmpv6":                          {From: from6, To: to6, Protocol: "icmpv6", ToPort: 0x8000},
		"--from 2001:db8:2::9 --to 2001:db8:1::10 --protocol 132 --port 0":                    {From: from6, To: to6, Protocol: "132"},
		"--from 10.2.1.9 --to 10.1.2.10 --protocol any":                                       {From: from, To: to, Protocol: "any"},
		"--from 2001:db8:2::9 --to 2001:db8:1::10 --protocol udp --port 53 --socket /run/abc": {From: from6, To: to6, Protocol: "udp", ToPort: 53},
	} {
		f := &fake{explain: func(control.Flow) (*control.Explanation, error) { return &control.Explanation{Allow: true}, nil }}
		r := runWith(f, nil, false, append([]string{"explain"}, strings.Fields(args)...)...)
		if r.exit != exitOK || f.flow != want {
			t.Errorf("%s: exit %d, asked %+v, want %+v\n%s", args, r.exit, f.flow, want, r.err)
		}
	}
}

func TestSocket(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		env  map[string]string
		want string
	}{
		{[]string{"status"}, nil, control.DefaultSocket},
		{[]string{"status"}, map[string]string{socketVariable: "/run/env.sock"}, "/run/env.sock"},
		{[]string{"--socket", "/run/flag.sock", "status"}, map[string]string{socketVariable: "/run/env.sock"}, "/run/flag.sock"},
	} {
		var asked string
		cl := &cli{
			out: &bytes.Buffer{}, err: &bytes.Buffer{}, now: time.Now, getenv: func(n string) string { return c.env[n] },
			dial: func(s string) (daemon, error) { asked = s; return &fake{}, nil },
		}
		if exit := cl.run(c.args); exit != exitOK || asked != c.want {
			t.Errorf("%v: exit %d, asked at %q, want %q", c.args, exit, asked, c.want)
		}
	}
}

// The real client, at a socket that is not there.
func TestNoDaemon(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "control.sock")
	d, err := dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	r := runWith(d, nil, false, "--socket", socket, "status")
	if r.exit != exitUnreachable || !strings.Contains(r.err, socket) || !strings.Contains(r.err, "\nhint: ") {
		t.Errorf("exit %d\n%s", r.exit, r.err)
	}
}

func TestColour(t *testing.T) {
	t.Parallel()
	f := &fake{}
	f.Answer = hospital()
	without := runWith(f, nil, false, "status").out
	for _, c := range []struct {
		env      map[string]string
		terminal bool
		want     bool
	}{
		{nil, true, true},
		{nil, false, false},
		{map[string]string{"NO_COLOR": "1"}, true, false},
		{map[string]string{"TERM": "dumb"}, true, false},
	} {
		out := runWith(f, c.env, c.terminal, "status").out
		if got := strings.Contains(out, "\x1b["); got != c.want {
			t.Errorf("%v, terminal %v: colours %v, want %v", c.env, c.terminal, got, c.want)
		}
		if !c.want && out != without {
			t.Errorf("%v: differs from the output without a terminal", c.env)
		}
	}
	if out := runWith(f, nil, true, "status", "--json").out; strings.Contains(out, "\x1b") {
		t.Error("JSON with colours")
	}
}

// evil is what a peer, a policy or a file might choose as a name: it clears the screen, forges a
// line, turns the direction of writing, and is no proper UTF-8.
const evil = "x\x1b[2J\r\nwardgate: all is well\x9b31m\u009b\u202e\x00\x7f\xff"

func evilError() *control.Error {
	return &control.Error{Kind: control.KindRefused, Code: evil, Title: evil, Detail: evil, Hint: evil}
}

func evilConnection() control.Connection {
	return control.Connection{
		Name: evil, Peer: evil, Service: evil, Start: evil, State: evil, Local: []string{evil}, Remote: []string{evil}, Gateway: evil,
		RemoteIDs: []string{evil, evil}, Suite: evil, ESPSuite: evil, IdleAfter: evil, SetupTime: evil, LastError: evilError(),
	}
}

// TestInjection: whatever comes from outside, no control character reaches the terminal and no
// line begins as somebody else chose.
func TestInjection(t *testing.T) {
	t.Parallel()
	rec := control.AuditRecord{Event: evil, Who: evil, What: evil, Where: evil, Result: evil, Detail: map[string]string{evil: evil, "reason": evil, "text": evil, "count": evil}}
	warn := []control.Warning{{Code: evil, Title: evil, Text: evil, Hint: evil}}
	refused := []control.Refused{{Where: evil, Reason: evil, Text: evil, Example: evil}, {Where: evil, Reason: evil}}
	s := &control.Status{
		Facility: evil, DeviceID: evil, Version: evil, Warnings: warn, Refused: refused, Events: []control.AuditRecord{rec},
		Policy: control.PolicyStatus{Installed: true, Issuer: evil},
		Token: control.TokenStatus{State: evil, Label: evil, Error: evilError(), Certificates: []control.Certificate{
			{Layer: 1, Subject: evil, Issuer: evil, Error: evil},
			{Layer: 2, Service: evil, Subject: evil, Issuer: evil, NotAfter: time.Now().AddDate(9, 0, 0), Error: evil},
		}},
	}
	for _, state := range []string{evil, control.ConnIdle, control.ConnConnecting, control.ConnUp, control.ConnClosing, control.ConnFailed} {
		for _, start := range []string{evil, "manual", "always"} {
			x := evilConnection()
			x.State, x.Start = state, start
			s.Connections = append(s.Connections, x)
		}
	}
	withError := *s
	withError.Policy = control.PolicyStatus{Error: evilError()}
	withError.DeviceID = ""
	report := &control.PolicyReport{Issuer: evil, Device: evil, Added: []string{evil}, Removed: []string{evil}, Changed: []string{evil}, Warnings: warn}
	explanation := &control.Explanation{Reason: evil, FromZone: evil, ToZone: evil, Connection: evil, Rule: evil, State: evil, Text: []string{evil}}
	file := filepath.Join(t.TempDir(), evil[:len(evil)-5])
	for i, r := range []struct {
		args []string
		fake func(*fake)
	}{
		{[]string{"status"}, func(f *fake) { f.Answer = s }},
		{[]string{"status"}, func(f *fake) { f.Answer = &withError }},
		{[]string{"connections"}, func(f *fake) { f.connections = s.Connections }},
		{[]string{"up", evil}, func(f *fake) {
			f.connection = func(context.Context, string) (*control.Connection, error) {
				x := evilConnection()
				x.State = control.ConnUp
				return &x, nil
			}
		}},
		{[]string{"up", evil}, func(f *fake) {
			f.connection = func(context.Context, string) (*control.Connection, error) { x := evilConnection(); return &x, nil }
		}},
		{[]string{"down", evil}, func(f *fake) {
			f.connection = func(context.Context, string) (*control.Connection, error) { x := evilConnection(); return &x, nil }
		}},
		{[]string{"explain", "--from", "10.2.1.9", "--to", "10.1.2.10", "--protocol", "any"}, func(f *fake) {
			f.explain = func(control.Flow) (*control.Explanation, error) { return explanation, nil }
		}},
		{[]string{"audit", "tail"}, func(f *fake) { f.records = []control.AuditRecord{rec} }},
		{[]string{"counters"}, func(f *fake) {
			f.counters = &control.Counters{Connections: map[string]control.Traffic{evil: {}}, Refused: refused, Other: map[string]uint64{evil: 1}}
		}},
		{[]string{"status"}, func(f *fake) { f.Err = evilError() }},
		{[]string{"status"}, func(f *fake) { f.Err = errors.New(evil) }},
		{[]string{"status"}, func(f *fake) { f.Err = fmt.Errorf("%w: %s", control.ErrUnreachable, evil) }},
		{[]string{evil}, nil},
		{[]string{"policy", evil}, nil},
		{[]string{"status", evil}, nil},
		{[]string{"status", "--" + evil}, nil},
		{[]string{"explain", "--from", evil, "--to", "10.1.2.10", "--protocol", "any"}, nil},
		{[]string{"explain", "--from", "10.2.1.9", "--to", "10.1.2.10", "--protocol", evil}, nil},
		{[]string{"policy", "check", file}, nil},
		{[]string{"audit", "verify", file}, nil},
		{[]string{"audit", "tail", "--file", file}, nil},
	} {
		f := &fake{}
		if r.fake != nil {
			r.fake(f)
		}
		for _, args := range [][]string{r.args, append([]string{"--json"}, r.args...)} {
			res := runWith(f, nil, false, args...)
			checkClean(t, fmt.Sprintf("%d: %q", i, args), res.out+res.err)
		}
	}
	p := &printer{}
	printPolicy(p, report, false, controltest.Now)
	printVerified(p, &audit.Report{Break: &audit.Break{File: evil, Text: evil}})
	checkClean(t, "policy report", p.b.String())
}

func checkClean(t *testing.T, what, out string) {
	t.Helper()
	if !utf8.ValidString(out) {
		t.Errorf("%s: broken UTF-8 reaches the terminal:\n%q", what, out)
	}
	for _, r := range out {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%s: the character %U reaches the terminal:\n%q", what, r, out)
			return
		}
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "wardgate: all is well") {
			t.Errorf("%s: a forged line:\n%s", what, out)
		}
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                       "",
		"b.devices.example":      "b.devices.example",
		"CN=東京病院, O=\"x\"":       "CN=東京病院, O=\"x\"",
		"a\nb":                   `"a\nb"`,
		"\x1b[2J":                `"\x1b[2J"`,
		"\xff":                   `"\xff"`,
		"\u202egnp.exe":          `"\u202egnp.exe"`,
		strings.Repeat("a", 500): strings.Repeat("a", maxText) + "…",
	} {
		if got := plain(in); got != want {
			t.Errorf("plain(%q) = %q, want %q", in, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		for _, r := range plain(rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "text")) {
			if !unicode.IsPrint(r) {
				t.Fatalf("%U passes", r)
			}
		}
	})
}

// JSON stays the same value when characters are written as \u….
func TestJSONRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		in := map[string]string{rapid.String().Draw(t, "key"): rapid.String().Draw(t, "value"), "tag": "\U000e0041\u009b\u2028"}
		var b bytes.Buffer
		if err := (&cli{out: &b}).writeJSON(in); err != nil {
			t.Fatal(err)
		}
		var out map[string]string
		if err := json.Unmarshal(b.Bytes(), &out); err != nil {
			t.Fatalf("%v: %s", err, b.String())
		}
		if diff := cmp.Diff(in, out); diff != "" {
			t.Fatal(diff)
		}
		for _, r := range b.String() {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Fatalf("%U passes", r)
			}
		}
	})
}

func TestUnits(t *testing.T) {
	t.Parallel()
	for n, want := range map[uint64]string{0: "nothing", 1: "1 byte", 999: "999 bytes", 1000: "1.0 kB", 11_312_345: "11.3 MB", 999_960: "1.0 MB", 5_000_000_000_000: "5.0 TB", 1 << 63: "9.2 EB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		-time.Second: "0.0 ms", 300 * time.Microsecond: "0.3 ms", 31 * time.Millisecond: "31 ms", 2 * time.Second: "2 s", 2300 * time.Millisecond: "2.3 s", 42 * time.Second: "42 s",
		4 * time.Minute: "4 min", 4*time.Minute + 5*time.Second: "4 min 5 s", 42*time.Minute + 5*time.Second: "42 min", 184 * time.Minute: "3 h 4 min",
		24 * time.Hour: "1 day", 26 * time.Hour: "1 day 2 h", 203 * time.Hour: "8 days 11 h", 365 * 24 * time.Hour: "365 days",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
	for s, want := range map[string]int{"abc": 3, "東京": 4, "e\u0301": 1, "ｱ": 1, "Ａ": 2, "한": 2} {
		if got := width(s); got != want {
			t.Errorf("width(%q) = %d, want %d", s, got, want)
		}
	}
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	c := &cli{dial: func(string) (daemon, error) { return &fake{}, nil }, getenv: os.Getenv}
	cmd := &cobra.Command{}
	cmd.SetContext(t.Context())
	got, _ := c.completeConnection(cmd, nil, "")
	if diff := cmp.Diff([]string{"a-b\tclinic-b, group-a", "a-c\timaging-c, group-b"}, got); diff != "" {
		t.Error(diff)
	}
	r := runWith(&fake{}, nil, false, "completion", "bash")
	if r.exit != exitOK || !strings.Contains(r.out, "wardgate") {
		t.Errorf("completion: exit %d %s", r.exit, r.err)
	}
}
