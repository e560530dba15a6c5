package sploadgen

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	pollWait    = 50 * time.Second // what routers ask for (router/centre)
	dialTime    = 15 * time.Second
	answerTime  = 2 * time.Minute // beside the wait
	maxHeader   = 16 << 10
	maxPolicy   = 32 << 20
	dialsAtOnce = 256 // connections that are being made at the same time: this process has other things to do
)

// Options say how a fleet behaves.
type Options struct {
	Addr  string         // host:port of the centre
	Name  string         // in its certificate
	Roots *x509.CertPool // by which that is judged
	Now   func() time.Time
	// Backoff is the pause after so many failures in a row: RouterBackoff, or what a test of hard cases
	// wants.
	Backoff func(failures int) time.Duration
	// Wait is what is asked for; zero: as long as routers do, 50 s.
	Wait time.Duration
}

// RouterBackoff is router/centre's: 2 s doubled each time up to 5 minutes, and between half and the whole of
// that.
func RouterBackoff(failures int) time.Duration {
	d := min(5*time.Minute, 2*time.Second<<min(failures-1, 20))
	return d/2 + rand.N(d/2) //nolint:gosec // a pause
}

// Delivery is a policy as it arrived.
type Delivery struct {
	At     time.Time
	ETag   string
	Policy []byte
}

// Fleet is devices that keep a long poll each.
type Fleet struct {
	opt     Options
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	devices []*device
	dials   chan struct{}

	waiting atomic.Int64 // devices whose request the centre holds
	changed atomic.Pointer[chan struct{}]

	mu       sync.Mutex // guards failures
	failures map[string]int
}

// device is one simulated router.
type device struct {
	f    *Fleet
	name string
	key  Key
	tls  *tls.Config

	mu        sync.Mutex // guards what follows
	delivered []Delivery
	newest    string // entity tag

	etag    string // its goroutine's
	waiting bool   // its goroutine's: it is counted in the fleet's
}

// Start starts the devices of a scenario; nil names: all. Stop it.
func Start(opt Options, s *Scenario, names []string) *Fleet {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Backoff == nil {
		opt.Backoff = RouterBackoff
	}
	if opt.Wait == 0 {
		opt.Wait = pollWait
	}
	if names == nil {
		names = s.devices
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &Fleet{opt: opt, cancel: cancel, dials: make(chan struct{}, dialsAtOnce), failures: map[string]int{}}
	c := make(chan struct{})
	f.changed.Store(&c)
	for _, n := range names {
		d := &device{f: f, name: n, key: s.keys[n]}
		d.tls = tlsConfig(opt, d.key, s.CA.Intermediates())
		f.devices = append(f.devices, d)
	}
	for _, d := range f.devices {
		f.wg.Go(func() { d.run(ctx) })
	}
	return f
}

func tlsConfig(opt Options, k Key, between []*x509.Certificate) *tls.Config {
	own := &tls.Certificate{Certificate: [][]byte{k.Cert.Raw}, PrivateKey: k.Private, Leaf: k.Cert}
	for _, c := range between {
		own.Certificate = append(own.Certificate, c.Raw)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: opt.Roots, ServerName: opt.Name, NextProtos: []string{"http/1.1"}, Time: opt.Now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own, nil },
	}
}

// Stop ends all connections, and returns when nothing is left.
func (f *Fleet) Stop() {
	f.cancel()
	f.wg.Wait()
}

// Waiting is how many devices' requests the centre holds: those that sent one for a policy after the centre
// answered their report on the same connection.
func (f *Fleet) Waiting() int { return int(f.waiting.Load()) }

// Failures are what went wrong, and how often.
func (f *Fleet) Failures() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]int{}
	for k, v := range f.failures {
		out[k] = v
	}
	return out
}

// failed counts a failure by its text, without what is different each time.
func (f *Fleet) failed(err error) {
	text := err.Error()
	if op, ok := errors.AsType[*net.OpError](err); ok {
		text = op.Op + ": " + op.Err.Error()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failures[text]++
}

// happened wakes those who wait for a condition.
func (f *Fleet) happened() {
	c := make(chan struct{})
	close(*f.changed.Swap(&c))
}

// Until waits for a condition, which is asked again whenever something happened.
func (f *Fleet) Until(ctx context.Context, is func() bool) error {
	for {
		c := *f.changed.Load()
		if is() {
			return nil
		}
		select {
		case <-c:
		case <-ctx.Done():
			return fmt.Errorf("the fleet does not come to it: %d of %d devices wait, failures: %v: %w", f.Waiting(), len(f.devices), f.Failures(), context.Cause(ctx))
		}
	}
}

// Delivered returns what each device was given since it was asked last.
func (f *Fleet) Delivered() map[string][]Delivery {
	out := map[string][]Delivery{}
	for _, d := range f.devices {
		d.mu.Lock()
		if len(d.delivered) > 0 {
			out[d.name] = d.delivered
			d.delivered = nil
		}
		d.mu.Unlock()
	}
	return out
}

// Count is how many devices were given something since Delivered was asked last.
func (f *Fleet) Count() int {
	n := 0
	for _, d := range f.devices {
		d.mu.Lock()
		if len(d.delivered) > 0 {
			n++
		}
		d.mu.Unlock()
	}
	return n
}

// Serials are the serial numbers of the newest policies that the devices were given; 0: none.
func (f *Fleet) Serials() map[string]uint64 {
	out := map[string]uint64{}
	for _, d := range f.devices {
		d.mu.Lock()
		out[d.name] = serialOf(d.newest)
		d.mu.Unlock()
	}
	return out
}

// serialOf reads the serial number in an entity tag of the centre, which begins with it; 0: there is none.
func serialOf(etag string) uint64 {
	text, _, _ := strings.Cut(strings.Trim(etag, `"`), "-")
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// run keeps one device connected.
func (d *device) run(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		good, err := d.connection(ctx)
		d.waits(false)
		if ctx.Err() != nil {
			return
		}
		if good {
			failures = 0
		}
		if err == nil {
			continue // the centre asked for a new connection
		}
		d.f.failed(err)
		failures++
		select {
		case <-time.After(d.f.opt.Backoff(failures)):
		case <-ctx.Done():
		}
	}
}

func (d *device) waits(is bool) {
	if is == d.waiting {
		return
	}
	d.waiting = is
	if is {
		d.f.waiting.Add(1)
	} else {
		d.f.waiting.Add(-1)
	}
	d.f.happened()
}

// dial makes the connection.
func (d *device) dial(ctx context.Context) (*tls.Conn, error) {
	select {
	case d.f.dials <- struct{}{}:
		defer func() { <-d.f.dials }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	var nd net.Dialer
	raw, err := nd.DialContext(ctx, "tcp", d.f.opt.Addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, d.tls)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return c, nil
}

// connection reports and polls in turn until the connection ends; good says that the centre answered.
func (d *device) connection(ctx context.Context) (good bool, err error) {
	c, err := d.dial(ctx)
	if err != nil {
		return false, err
	}
	defer c.NetConn().Close()
	defer context.AfterFunc(ctx, func() { _ = c.NetConn().Close() })()
	in := bufio.NewReaderSize(c, 2048)
	for {
		closing, err := d.report(c, in)
		if err != nil || closing {
			return good, err
		}
		good = true
		if closing, err = d.poll(c, in); err != nil || closing {
			return true, err
		}
	}
}

func (d *device) report(c *tls.Conn, in *bufio.Reader) (closing bool, err error) {
	body := `{"version":"load","policy_serial":` + strconv.FormatUint(serialOf(d.etag), 10) + `}`
	r, err := d.ask(c, in, "POST /v1/report", "Content-Type: application/json\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n", body, answerTime)
	if err != nil {
		return false, err
	}
	if r.status != http.StatusNoContent {
		return false, fmt.Errorf("report: expected 204, came %d", r.status)
	}
	return r.closing, nil
}

func (d *device) poll(c *tls.Conn, in *bufio.Reader) (closing bool, err error) {
	header := "Prefer: wait=" + strconv.Itoa(int(d.f.opt.Wait/time.Second)) + "\r\n"
	if d.etag != "" {
		header += "If-None-Match: " + d.etag + "\r\n"
	}
	r, err := d.ask(c, in, "GET /v1/policy", header, "", d.f.opt.Wait+answerTime)
	at := time.Now()
	d.waits(false)
	if err != nil {
		return false, err
	}
	switch r.status {
	case http.StatusNotModified:
		return r.closing, nil
	case http.StatusOK:
	default:
		return false, fmt.Errorf("policy: expected 200 or 304, came %d", r.status)
	}
	d.etag = r.etag
	d.mu.Lock()
	d.delivered, d.newest = append(d.delivered, Delivery{At: at, ETag: d.etag, Policy: r.body}), d.etag
	d.mu.Unlock()
	d.f.happened()
	return r.closing, nil
}

// answer is what came back.
type answer struct {
	status  int
	etag    string
	body    []byte
	closing bool // the connection ends with it
}

// ask sends a request and reads its answer.
func (d *device) ask(c *tls.Conn, in *bufio.Reader, what, header, body string, within time.Duration) (*answer, error) {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, what+" HTTP/1.1\r\nHost: "+d.f.opt.Name+"\r\n"+header+"\r\n"+body); err != nil {
		return nil, err
	}
	if body == "" {
		d.waits(true)
	}
	r, err := http.ReadResponse(in, nil)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	got, err := io.ReadAll(io.LimitReader(r.Body, maxPolicy))
	return &answer{r.StatusCode, r.Header.Get("ETag"), got, r.Close}, err
}

// Percentile returns the time by which so many percent (0 to 100) of the times had come.
func Percentile(times []time.Duration, percent float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(times))
	i := int(float64(len(s))*percent/100+0.9999) - 1
	return s[min(max(i, 0), len(s)-1)]
}
