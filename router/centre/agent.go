package centre

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"wardgate/internal/certs"
)

// How often what is done. Waits are short enough to notice a clock that was set.
const (
	pollWait          = 50 * time.Second // what is asked for; below what boxes on the way cut off
	joinWait          = 10 * time.Second // for the first policy, while somebody watches
	pollPause         = 2 * time.Second  // at least between polls, when the centre does not wait
	lookEvery         = 15 * time.Minute // services, also when nothing says so
	firstBackoff      = 2 * time.Second
	maxPollBackoff    = 5 * time.Minute
	maxServiceBackoff = time.Hour
	maxSkew           = certs.MaxProofAhead // between the clocks
	keptErrors        = 8                   // told in reports
)

// Config says what an Agent works with. All but Dial, Notify and Version must be set.
type Config struct {
	URL     string              // https://HOST[:PORT]
	Anchors []*x509.Certificate // of the centre's TLS certificate; nothing else is trusted

	Token    Token
	Policies PolicySink
	Reporter Reporter
	Journal  JournalFile
	Clock    Clock
	Rand     io.Reader

	// Notify is told what happens. It must not block, and may be called from two goroutines.
	Notify func(Event)
	// Dial makes connections; nil: net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Agent keeps one device up to date. Join, Sync and Poll are its steps; Run does them all.
type Agent struct {
	cfg    Config
	client *client
	wake   chan struct{} // Sync is wanted: the policy is another

	mu      sync.Mutex // guards what follows
	journal *journal
	failing map[string]Code // activities that fail, so that it is told once
	errors  []ReportedError // the last ones, oldest first
	by      identity        // by which the centre is asked
	refused [][32]byte      // SHA-256 of those that it has refused

	tries map[string]*attempt // of Sync alone
}

// New makes an Agent and reads the journal.
func New(cfg Config) (*Agent, error) {
	switch {
	case cfg.Token == nil, cfg.Policies == nil, cfg.Reporter == nil, cfg.Journal == nil, cfg.Clock == nil, cfg.Rand == nil:
		return nil, errors.New("centre: expected token, policies, reporter, journal, clock and randomness, got not all of them")
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.Notify == nil {
		cfg.Notify = func(Event) {}
	}
	c, err := newClient(cfg.URL, cfg.Anchors, cfg.Clock, cfg.Dial)
	if err != nil {
		return nil, err
	}
	j, lost, err := readJournal(cfg.Journal)
	if err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, client: c, wake: make(chan struct{}, 1), journal: j, failing: map[string]Code{}, tries: map[string]*attempt{}}
	if lost != nil {
		a.tell(Event{Code: EventJournalLost, Text: lost.Error()})
	}
	return a, nil
}

// Close ends the connection that is kept.
func (a *Agent) Close() { a.client.close() }

// Wake makes Run look at the services at once: the policy came by another way, or the token is back.
func (a *Agent) Wake() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// update changes the journal and writes it.
func (a *Agent) update(f func(j *journal)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(a.journal)
	return a.journal.save(a.cfg.Journal)
}

// pending returns a copy of what the journal has about a service; nil: nothing.
func (a *Agent) pending(service string) *pending {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.journal.Services[service]
	if p == nil {
		return nil
	}
	c := *p
	return &c
}

// begun returns the services that the journal knows, in order.
func (a *Agent) begun() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	names := make([]string, 0, len(a.journal.Services))
	for n := range a.journal.Services {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (a *Agent) tell(e Event) {
	e.Time = a.cfg.Clock.Now()
	a.cfg.Notify(e)
}

// note tells that an activity fails or works again, once each.
func (a *Agent) note(what, service string, err error) {
	a.mu.Lock()
	was, failing := a.failing[what]
	var code Code
	if err == nil {
		delete(a.failing, what)
	} else {
		code = codeOf(err)
		a.failing[what] = code
		text := err.Error()
		if len(text) > maxText {
			text = text[:maxText]
		}
		if was != code {
			a.errors = append(a.errors, ReportedError{At: a.cfg.Clock.Now(), Code: string(code), Text: text})
			a.errors = a.errors[max(0, len(a.errors)-keptErrors):]
		}
	}
	a.mu.Unlock()
	switch {
	case err != nil && was != code:
		a.tell(Event{Code: EventFailed, Activity: what, Service: service, Text: err.Error(), Err: err})
	case err == nil && failing:
		a.tell(Event{Code: EventRecovered, Activity: what, Service: service, Text: what})
	}
}

// random returns a number in [0, 1).
func (a *Agent) random() float64 {
	var b [4]byte
	if _, err := io.ReadFull(a.cfg.Rand, b[:]); err != nil {
		return 0.5 // jitter is a courtesy
	}
	return float64(binary.BigEndian.Uint32(b[:])) / (1 << 32)
}

// backoff is the pause after so many failures in a row: doubled each time up to a limit, and between
// half and the whole of that.
func (a *Agent) backoff(failures int, limit time.Duration) time.Duration {
	d := limit
	if n := failures - 1; n < 20 {
		d = min(limit, firstBackoff<<max(n, 0))
	}
	return d/2 + time.Duration(a.random()*float64(d/2))
}

// Poll asks for the policy once and puts it in force when it is another. The centre is asked to hold its
// answer so long. changed says that the policy in force is another one. One call at a time.
func (a *Agent) Poll(ctx context.Context, wait time.Duration) (changed bool, err error) {
	before, err := a.cfg.Policies.Installed(ctx)
	if err != nil {
		return false, fail(PolicyBad, "the policy in force", err.Error(), "", err)
	}
	etag := ""
	a.mu.Lock()
	if before.Serial != 0 && a.journal.Serial == before.Serial { // else it was replaced by other means
		etag = a.journal.ETag
	}
	a.mu.Unlock()
	var got *answer
	if err := a.ask(ctx, before, func(who Key) (err error) { got, err = a.client.policy(ctx, who, etag, wait); return err }); err != nil {
		return false, err
	}
	if err := a.skew(got.header); err != nil {
		a.note("clock", "", err)
	} else {
		a.note("clock", "", nil)
	}
	switch got.status {
	case http.StatusNotModified:
		if etag == "" {
			return false, fail(Malformed, "a policy", "the answer that nothing changed, to a question that named none", "ask the SP to look at the centre", nil)
		}
		return false, nil
	case http.StatusOK:
	default: // 204, 404
		return false, fail(NoPolicy, "a policy for this device", "none yet", "the SP registers the device and its services; it is asked for again", nil)
	}
	after, err := a.cfg.Policies.Install(ctx, got.body)
	if err != nil {
		return false, fail(PolicyBad, "a policy that is newer, for this device, and signed by a signer that the anchors know", err.Error(), "the one before stays in force; ask the SP", err)
	}
	if tag := got.header.Get("ETag"); validETag(tag) && (tag != etag || after.Serial != before.Serial) {
		if err := a.update(func(j *journal) { j.ETag, j.Serial = tag, after.Serial }); err != nil {
			return after.Serial != before.Serial, err
		}
	}
	if after.Serial != before.Serial {
		a.tell(Event{Code: EventPolicy, Text: fmt.Sprintf("serial %d", after.Serial)})
	}
	return after.Serial != before.Serial, nil
}

// skew compares the clocks by the answer's Date.
func (a *Agent) skew(h http.Header) error {
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return nil //nolint:nilerr // a centre that says no time cannot be compared with
	}
	if d := a.cfg.Clock.Now().Sub(date); d > maxSkew || d < -maxSkew {
		return fail(ClockWrong, "a clock within "+maxSkew.String()+" of the centre's ("+date.UTC().Format(time.RFC3339)+")", a.cfg.Clock.Now().UTC().Format(time.RFC3339), "set the device's clock, and let it be kept by NTP", nil)
	}
	return nil
}

// Report tells the centre the state once.
func (a *Agent) Report(ctx context.Context) error {
	r := a.cfg.Reporter.Report(ctx)
	pol, err := a.cfg.Policies.Installed(ctx)
	if err == nil {
		r.PolicySerial = pol.Serial
	}
	if keys, err := a.cfg.Token.Services(ctx); err == nil {
		for _, k := range keys {
			if k.Cert != nil && k.Signer != nil && (r.NotAfter.IsZero() || k.Cert.NotAfter.Before(r.NotAfter)) {
				r.NotAfter = k.Cert.NotAfter
			}
		}
	}
	a.mu.Lock()
	r.Errors = append(slices.Clone(r.Errors), a.errors...)
	a.mu.Unlock()
	if r.Connections == nil {
		r.Connections = []ConnectionState{}
	}
	if r.Errors == nil {
		r.Errors = []ReportedError{}
	}
	return a.ask(ctx, pol, func(who Key) error { return a.client.report(ctx, who, r) })
}

// StepName is a step of Join. Names are stable.
type StepName string

// The steps, in order.
const (
	StepDevice  StepName = "device-certificate"
	StepReach   StepName = "reachability"
	StepPolicy  StepName = "policy"
	StepClock   StepName = "clock"
	StepService StepName = "enrolment"
	StepReport  StepName = "report"
)

// Step is how a step of Join went.
type Step struct {
	Name    StepName
	Service string // of StepService
	Text    string // when it worked
	Err     error  // *Error when it did not
}

// Join takes a device from its device certificate to a policy and to the service certificates that
// it calls for, once and without waiting, and tells each step. It can be repeated at any time. Run
// must not be running.
func (a *Agent) Join(ctx context.Context, progress func(Step)) error {
	step := func(name StepName, service, text string, err error) error {
		progress(Step{Name: name, Service: service, Text: text, Err: err})
		return err
	}
	device, err := a.device(ctx)
	if err != nil {
		return step(StepDevice, "", "", err)
	}
	_ = step(StepDevice, "", certs.SubjectOf(device.Cert)+", valid until "+device.Cert.NotAfter.UTC().Format(time.RFC3339), nil)
	conn, err := a.client.connect(ctx, device)
	if err != nil {
		return step(StepReach, "", "", err)
	}
	_ = conn.Close()
	_ = step(StepReach, "", a.client.host, nil)

	_, err = a.Poll(ctx, 0)
	if errors.Is(err, NoPolicy) { // it may be made just now
		_, err = a.Poll(ctx, joinWait)
	}
	if err != nil {
		if clock := a.clockError(); clock != nil {
			_ = step(StepClock, "", "", clock)
		}
		return step(StepPolicy, "", "", err)
	}
	if clock := a.clockError(); clock != nil {
		return step(StepClock, "", "", clock)
	}
	_ = step(StepClock, "", a.cfg.Clock.Now().UTC().Format(time.RFC3339), nil)
	pol, err := a.cfg.Policies.Installed(ctx)
	if err != nil {
		return step(StepPolicy, "", "", fail(PolicyBad, "the policy in force", err.Error(), "", err))
	}
	_ = step(StepPolicy, "", fmt.Sprintf("serial %d, %d services", pol.Serial, len(pol.Services)), nil)

	clear(a.tries) // whoever asks by hand does not wait
	var errs []error
	for _, s := range pol.Services {
		at, err := a.service(ctx, device, s)
		if err != nil {
			_, err = a.later(ctx, s.Name, time.Time{}, err)
			errs = append(errs, err)
		}
		_ = step(StepService, s.Name, "renewed from "+at.UTC().Format(time.RFC3339), err)
	}
	if err := a.leave(ctx, pol); err != nil {
		errs = append(errs, err)
	}
	if err := a.Report(ctx); err != nil {
		errs = append(errs, step(StepReport, "", "", err))
	} else {
		_ = step(StepReport, "", "", nil)
	}
	return errors.Join(errs...)
}

// clockError returns what the last poll said about the clock.
func (a *Agent) clockError() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, bad := a.failing["clock"]; !bad {
		return nil
	}
	for _, e := range slices.Backward(a.errors) {
		if e.Code == string(ClockWrong) {
			return fail(ClockWrong, "clocks that agree", e.Text, "set the device's clock", nil)
		}
	}
	return nil
}

// Run does everything until ctx ends, whose error it returns.
func (a *Agent) Run(ctx context.Context) error {
	defer a.Close()
	var wg sync.WaitGroup
	wg.Go(func() { a.keepPolicy(ctx) })
	wg.Go(func() { a.keepServices(ctx) })
	wg.Wait()
	return ctx.Err()
}

// keepPolicy is the long poll.
func (a *Agent) keepPolicy(ctx context.Context) {
	failures, untold := 0, 0
	var tell time.Time // not before
	for ctx.Err() == nil {
		if now := a.cfg.Clock.Now(); !now.Before(tell) {
			err := a.Report(ctx)
			if ctx.Err() != nil {
				return
			}
			a.note("report", "", err) // a centre that takes no reports may still have a policy
			if untold++; err == nil {
				untold = 0
			} else {
				tell = now.Add(max(a.backoff(untold, maxPollBackoff), retryAfter(err)))
			}
		}
		start := a.cfg.Clock.Now()
		changed, err := a.Poll(ctx, pollWait)
		if ctx.Err() != nil {
			return
		}
		a.note("policy", "", err)
		if changed {
			a.Wake()
		}
		pause := pollPause - a.cfg.Clock.Now().Sub(start)
		if err != nil {
			if failures++; errors.Is(err, NoPolicy) {
				failures = 1 // the centre answers and has waited: nobody is spared by asking less
			}
			pause = max(a.backoff(failures, maxPollBackoff), retryAfter(err))
		} else {
			failures = 0
		}
		if pause > 0 && a.cfg.Clock.Wait(ctx, min(pause, maxRetry), nil) != nil {
			return
		}
	}
}

// keepServices looks at the services whenever it is time, or the policy is another.
func (a *Agent) keepServices(ctx context.Context) {
	for ctx.Err() == nil {
		next, err := a.Sync(ctx)
		_ = err // told by note
		pause := min(max(next.Sub(a.cfg.Clock.Now()), time.Second), lookEvery)
		if a.cfg.Clock.Wait(ctx, pause, a.wake) != nil {
			return
		}
	}
}
