package main

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wardgate/internal/benchjson"
	"wardgate/internal/lab"
)

func TestParseIperf(t *testing.T) {
	t.Parallel()
	r, err := parseIperf([]byte(`{"start":{},"intervals":[],"end":{
		"sum_sent":{"bytes":300,"bits_per_second":2500.5,"retransmits":7},
		"sum_received":{"bytes":250,"bits_per_second":2000.25}}}`))
	if err != nil || r.End.Received.Bytes != 250 || r.End.Received.Bits != 2000.25 || r.End.Sent.Retransmits != 7 {
		t.Errorf("got %+v, %v", r, err)
	}
	for text, want := range map[string]string{
		`{"error":"unable to connect to server"}`:       "unable to connect",
		`iperf3: command not found`:                     "iperf3's output",
		`{"end":{}}`:                                    "nothing was received",
		`{"end":{"sum_received":{"bytes":0}}}`:          "nothing was received",
		`{"end":{"sum_received":{"bytes":1}}}{"end":{}`: "iperf3's output",
	} {
		if _, err := parseIperf([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	names := func(tests []netTest) (out []string) {
		for _, n := range tests {
			out = append(out, n.name)
		}
		return out
	}
	all := append(netTests(), netTest{name: "tunnels", scale: &scaleTest{}})
	got, err := chooseTests(all, "")
	if err != nil || len(got) != len(netTests()) || slices.Contains(names(got), "tunnels") {
		t.Errorf("all tests but those of scale: %q, %v", names(got), err)
	}
	if got, err = chooseTests(all, "udp200,tunnels,tcp1"); err != nil || !slices.Equal(names(got), []string{"udp200", "tunnels", "tcp1"}) {
		t.Errorf("three tests: %q, %v", names(got), err)
	}
	if _, err = chooseTests(all, "tcp1,tcp9"); !errors.Is(err, errUsage) || !strings.Contains(err.Error(), "lossfree200") {
		t.Errorf("unknown test: %v", err)
	}
	subjects := []lab.Subject{{Name: "a"}, {Name: "b", Extra: true}, {Name: "c"}}
	for names, want := range map[string]string{"": "a c", "b": "b", "c,a": "c a", "aead": ""} {
		list, err := chooseSubjects(subjects, names)
		var got []string
		for _, s := range list {
			got = append(got, s.Name)
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: got %q, %v; want %q", names, got, err, want)
		}
	}
	if _, err := chooseSubjects(subjects, "a,d"); !errors.Is(err, errUsage) || !strings.Contains(err.Error(), "a b c") {
		t.Errorf("unknown subject: %v", err)
	}
	if sizes, err := parseSizes("1,100,10000"); err != nil || !slices.Equal(sizes, []int{1, 100, 10_000}) {
		t.Errorf("sizes %v, %v", sizes, err)
	}
	for _, bad := range []string{"", "1,", "0", "1,x", "-5"} {
		if _, err := parseSizes(bad); !errors.Is(err, errUsage) {
			t.Errorf("sizes %q: %v", bad, err)
		}
	}
}

func TestSpread(t *testing.T) {
	t.Parallel()
	var all []netip.Addr
	for i := range 100 {
		all = append(all, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	if got := spread(all, 100); len(got) != 100 {
		t.Errorf("%d of 100", len(got))
	}
	got := spread(all, 4)
	if want := []netip.Addr{all[0], all[25], all[50], all[75]}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A peer that cannot be brought up is noted and the run goes on; Wardgate itself ends it.
func TestNotAvailable(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
	l, err := lab.New(t.Context(), lab.Options{Name: "t-bench", Bin: "."})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	out, err := os.Create(filepath.Join(t.TempDir(), "out.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	broken := errors.New("broken\nvery")
	up := func(context.Context, *lab.Pair) error { return broken }
	b := &netBench{lab: l, rounds: 1, out: out, tests: netTests()[:1], subjects: []lab.Subject{{Name: "peer", Up: up}, {Name: "other", Up: up}}}
	if err := b.run(t.Context()); err != nil {
		t.Errorf("a peer ended the run: %v", err)
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	results, err := benchjson.Read(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	missing := map[string]string{}
	for _, r := range results {
		if r.Test == benchjson.NotAvailable {
			missing[r.Subject] = r.Note
		}
	}
	if len(missing) != 2 || missing["peer"] != "broken; very" {
		t.Errorf("noted %q", missing)
	}
	b.subjects[1].Ours = true
	if err := b.run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("Wardgate that does not come up: %v, want %v", err, broken)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errInterrupted)
	if err := b.run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestBenchReport(t *testing.T) {
	t.Parallel()
	cmd := benchReportCommand()
	cmd.SetArgs([]string{filepath.Join(t.TempDir(), "none.jsonl")})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.ExecuteContext(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
