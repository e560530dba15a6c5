package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"wardgate/internal/benchjson"
	"wardgate/internal/lab"
)

// netTest is one measurement of a subject that is up, or one that brings it up itself.
type netTest struct {
	name  string
	run   func(m *measurer, ctx context.Context, test string) error
	scale *scaleTest // only when asked for by name
}

func netTests() []netTest {
	return []netTest{
		tcp("tcp1"), tcp("tcp4", "-P", "4"), tcp("tcp1r", "-R"), tcp("tcp4r", "-P", "4", "-R"),
		udp("udp64", 64), udp("udp200", 200), udp("udp512", 512), udp("udp1372", 1372), udp("imix", lab.IMIX...),
		{name: "lossfree200", run: (*measurer).lossFree},
		{name: "idle", run: (*measurer).idle},
		{name: "loaded", run: (*measurer).loaded},
		{name: "rss", run: (*measurer).rss},
	}
}

func tcp(name string, args ...string) netTest {
	return netTest{name: name, run: func(m *measurer, ctx context.Context, test string) error { return m.tcp(ctx, test, args...) }}
}

func udp(name string, sizes ...int) netTest {
	return netTest{name: name, run: func(m *measurer, ctx context.Context, test string) error { return m.udp(ctx, test, sizes) }}
}

func chooseTests(all []netTest, names string) ([]netTest, error) {
	var out []netTest
	if names == "" {
		for _, t := range all {
			if t.scale == nil {
				out = append(out, t)
			}
		}
		return out, nil
	}
next:
	for name := range strings.SplitSeq(names, ",") {
		known := make([]string, len(all))
		for i, t := range all {
			if t.name == name {
				out = append(out, t)
				continue next
			}
			known[i] = t.name
		}
		return nil, fmt.Errorf("%w: no test %q; there are: %s", errUsage, name, strings.Join(known, " "))
	}
	return out, nil
}

// measurer measures one subject that is up. What the tests share is started when first needed.
type measurer struct {
	*netBench
	pair *lab.Pair
	name string

	iperfServer *lab.Process
	sink        *lab.Sink
	echo        *lab.Echo
}

// close ends what the tests have started in this program; programs end with the pair.
func (m *measurer) close() {
	if m.sink != nil {
		m.sink.Close()
	}
	if m.echo != nil {
		m.echo.Close()
	}
}

func (m *measurer) all(ctx context.Context) error {
	for _, t := range m.tests {
		if t.scale != nil {
			continue
		}
		if err := t.run(m, ctx, t.name); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		for _, d := range m.pair.Daemons {
			if err := d.Running(); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
	}
	return nil
}

func (m *measurer) put(test string, value float64, unit string) error {
	return m.add(benchjson.Result{Subject: m.name, Test: test, Value: value, Unit: unit})
}

// daemonCPU is the processor time that the tunnel's daemons have used.
func (m *measurer) daemonCPU() (sum time.Duration, err error) {
	for _, d := range m.pair.Daemons {
		t, err := d.CPU()
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

func (m *measurer) tcp(ctx context.Context, test string, args ...string) error {
	before, err := m.daemonCPU()
	if err != nil {
		return err
	}
	busyBefore, err := lab.BusyCPU()
	if err != nil {
		return err
	}
	r, err := m.iperf(ctx, m.pair.HostB.Addr, m.length, args...)
	if err != nil {
		return err
	}
	after, err := m.daemonCPU()
	if err != nil {
		return err
	}
	busyAfter, err := lab.BusyCPU()
	if err != nil {
		return err
	}
	gigabytes := r.End.Received.Bytes / 1e9
	errs := []error{m.put(test, r.End.Received.Bits/1e6, "Mbit/s")}
	if len(m.pair.Daemons) > 0 {
		errs = append(errs, m.put(test, (after-before).Seconds()/gigabytes, "daemon-s/GB"))
	}
	errs = append(errs, m.put(test, (busyAfter-busyBefore).Seconds()/gigabytes, "machine-s/GB"), m.put(test, r.End.Sent.Retransmits, "retransmits"))
	return errors.Join(errs...)
}

// iperfResult is what is read of iperf3's JSON.
type iperfResult struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			Bits  float64 `json:"bits_per_second"`
			Bytes float64 `json:"bytes"`
		} `json:"sum_received"`
		Sent struct {
			Retransmits float64 `json:"retransmits"`
		} `json:"sum_sent"`
	} `json:"end"`
}

func parseIperf(text []byte) (*iperfResult, error) {
	r := &iperfResult{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("iperf3's output: %w", err)
	}
	if r.Error != "" {
		return nil, errors.New("iperf3: " + r.Error)
	}
	if r.End.Received.Bytes == 0 {
		return nil, errors.New("iperf3: nothing was received")
	}
	return r, nil
}

// iperf runs one iperf3 client on host A, for whole seconds.
func (m *measurer) iperf(ctx context.Context, to netip.Addr, length time.Duration, args ...string) (*iperfResult, error) {
	port := strconv.Itoa(lab.IperfPort)
	if m.iperfServer == nil {
		server, err := m.lab.Start(m.pair.HostB.Netns, "iperf3", nil, "iperf3", "-s", "-p", port)
		if err != nil {
			return nil, err
		}
		if err := m.pair.HostB.WaitListening(ctx, "tcp", lab.IperfPort, server); err != nil {
			return nil, err
		}
		m.iperfServer = server
	}
	seconds := max(1, int(length.Round(time.Second)/time.Second))
	m.iperfRuns++
	name := fmt.Sprintf("iperf3-client-%d", m.iperfRuns)
	client, err := m.lab.Start(m.pair.HostA.Netns, name, nil, append([]string{"iperf3", "-c", to.String(), "-p", port, "-t", strconv.Itoa(seconds), "-J"}, args...)...)
	if err != nil {
		return nil, err
	}
	select {
	case <-client.Done():
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(time.Duration(seconds)*time.Second + 20*time.Second):
		return nil, errors.Join(fmt.Errorf("iperf3 has not ended 20 s after its %d s", seconds), client.Stop(time.Second))
	}
	text, err := os.ReadFile(client.Log)
	if err != nil {
		return nil, err
	}
	r, err := parseIperf(text)
	return r, errors.Join(err, client.ExitErr())
}

func (m *measurer) startSink() (err error) {
	if m.sink == nil {
		m.sink, err = m.pair.HostB.Sink(lab.SinkPort)
	}
	return err
}

func (m *measurer) udp(ctx context.Context, test string, sizes []int) error {
	if err := m.startSink(); err != nil {
		return err
	}
	r, err := m.pair.HostA.Flood(ctx, m.sink, lab.Flood{Sizes: sizes, For: m.length})
	if err != nil {
		return err
	}
	return errors.Join(
		m.put(test, r.PPS()/1e3, "kpps"),
		m.put(test, r.Mbit(), "Mbit/s"),
		m.put(test, r.Loss(), "%lost"),
	)
}

// lossFree looks for the highest rate of 200-octet packets that arrive but for 0.5 %.
func (m *measurer) lossFree(ctx context.Context, test string) error {
	if err := m.startSink(); err != nil {
		return err
	}
	step := min(max(m.length/5, 300*time.Millisecond), time.Second)
	f := lab.Flood{Sizes: []int{200}, For: step}
	flood, err := m.pair.HostA.Flood(ctx, m.sink, f)
	if err != nil {
		return err
	}
	// What is offered in a flood is as much as can be offered; a flood itself can cost more
	// than it brings, so the answer may lie on either side of what it delivered.
	offered := float64(flood.Sent) / step.Seconds()
	pps, err := m.pair.HostA.LossFree(ctx, m.sink, f, min(1000, offered/2), offered, 0.5, 9)
	if err != nil {
		return err
	}
	return m.put(test, pps/1e3, "kpps")
}

func (m *measurer) roundTrips(ctx context.Context, test string) error {
	if m.echo == nil {
		var err error
		if m.echo, err = m.pair.HostB.Echo(lab.PingPort); err != nil {
			return err
		}
	}
	times, lost, err := m.pair.HostA.RoundTrips(ctx, m.echo, m.length, time.Millisecond)
	if err != nil {
		return err
	}
	if len(times) == 0 {
		return fmt.Errorf("none of %d datagrams was answered", lost)
	}
	us := func(part float64) float64 {
		return float64(times[min(len(times)-1, int(part*float64(len(times))))]) / float64(time.Microsecond)
	}
	return errors.Join(
		m.put(test+"-median", us(0.5), "µs"),
		m.put(test+"-p99", us(0.99), "µs"),
		m.put(test, 100*float64(lost)/float64(lost+len(times)), "%lost"),
	)
}

func (m *measurer) idle(ctx context.Context, test string) error { return m.roundTrips(ctx, test) }

// loaded measures round trips while one TCP stream runs.
func (m *measurer) loaded(ctx context.Context, test string) error {
	load := make(chan error, 1)
	go func() {
		_, err := m.iperf(ctx, m.pair.HostB.Addr, m.length+2*time.Second)
		load <- err
	}()
	select { // the stream gets up to speed
	case <-time.After(500 * time.Millisecond):
	case <-ctx.Done():
	}
	err := m.roundTrips(ctx, test)
	return errors.Join(err, <-load)
}

func (m *measurer) rss(_ context.Context, test string) error {
	if len(m.pair.Daemons) == 0 {
		return nil
	}
	var sum int64
	for _, d := range m.pair.Daemons {
		n, err := d.RSS()
		if err != nil {
			return err
		}
		sum += n
	}
	return m.put(test, float64(sum>>10)/1024, "MiB")
}
