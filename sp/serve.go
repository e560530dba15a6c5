package sp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/memory"
	"wardgate/sp/est"
	"wardgate/sp/issue"
	"wardgate/sp/registry"
	"wardgate/sp/store"
)

// shutdownTime is how long requests may take to end when the centre stops.
const shutdownTime = 10 * time.Second

// Listeners are where a centre serves. All but Devices may be nil: they are not served then.
type Listeners struct {
	Devices net.Listener // TCP; TLS is the centre's
	Status  net.Listener

	Operators    net.Listener // Unix
	OperatorsTLS net.Listener // TCP; TLS is the centre's
}

func (l *Listeners) close() error {
	var all []error
	for _, n := range []net.Listener{l.Devices, l.Status, l.Operators, l.OperatorsTLS} {
		if n != nil {
			all = append(all, n.Close())
		}
	}
	return errors.Join(all...)
}

// Listen opens the listeners that the configuration names.
func (c *Centre) Listen(ctx context.Context) (Listeners, error) {
	var l Listeners
	var lc net.ListenConfig
	var err error
	if l.Devices, err = lc.Listen(ctx, "tcp", c.cfg.Server.Listen); err != nil {
		return l, fmt.Errorf("server.listen: %w", err)
	}
	if c.cfg.Server.Status != "" {
		if l.Status, err = lc.Listen(ctx, "tcp", c.cfg.Server.Status); err != nil {
			return l, errors.Join(fmt.Errorf("server.status: %w", err), l.close())
		}
	}
	if err := c.listenOperators(ctx, &l); err != nil {
		return l, errors.Join(err, l.close())
	}
	return l, nil
}

// Serve serves devices and makes policies until ctx ends; then it lets go of those who wait, ends what is
// under way, and closes the listeners.
func (c *Centre) Serve(ctx context.Context, l Listeners) error {
	defer func() { _ = l.close() }() // the servers have closed them already, but where one was not started
	key, chain, err := c.readSigner(ctx, c.cfg.Policy.Key, c.cfg.Policy.Certificate)
	if err != nil {
		return fmt.Errorf("policy signer: %w", err)
	}
	tlsKey, tlsChain, err := c.readSigner(ctx, c.cfg.Server.Key, c.cfg.Server.Certificate)
	if err != nil {
		return fmt.Errorf("server certificate: %w", err)
	}
	own := &tls.Certificate{PrivateKey: tlsKey, Leaf: tlsChain[0]}
	for _, k := range tlsChain {
		own.Certificate = append(own.Certificate, k.Raw)
	}
	reg, rev, err := c.st.Current(ctx)
	if err != nil {
		return err
	}
	if err := c.auth.load(reg, rev, c.now()); err != nil {
		return err
	}
	seen, err := c.st.Heads(ctx)
	if err != nil {
		return err
	}

	// Work goes on until the servers have stopped.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	closing := make(chan struct{})
	a := &api{Centre: c, hub: newHub(c.cfg.Limits.Waiting), limits: newLimits(&c.cfg.Limits), events: newEvents(c), reports: make(chan reported, store.MaxBatch), closing: closing}
	w := &worker{Centre: c, signer: signer{key, chain}, wake: make(chan struct{}, 1)}
	enrol, err := est.New(est.Config{
		Service: c.enrolment, Registry: members{c.st}, Trust: c.auth.trust, Replays: replays{c.st}, Recorder: a.events, Now: c.now,
	})
	if err != nil {
		return err
	}
	operators, err := c.operatorServers(&l, own, a.events)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { w.run(work) })
	wg.Go(func() { a.follow(work, seen, w.wake) })
	wg.Go(func() { a.keepReports(work) })
	wg.Go(func() { memory.Keep(work, memory.Options{}) }) // most of it belongs to devices that wait
	wg.Go(func() { c.keepSmall(work) })

	var record sync.WaitGroup
	recording, stopRecord := context.WithCancel(context.WithoutCancel(ctx))
	record.Go(func() { a.events.run(recording) })

	secure := est.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own, nil })
	// Each connection shows that the device's key is there: a session that is resumed would show only that
	// it once was, and a token may have been removed since.
	secure.SessionTicketsDisabled = true
	devices := est.HTTPServer(a.handler(enrol), secure)
	devices.ConnContext = withVerdict
	servers := []*http.Server{devices}
	status := c.statusServer()
	if l.Status != nil {
		servers = append(servers, status)
	}
	for _, o := range operators {
		servers = append(servers, o.server)
	}
	for _, s := range servers {
		s.ErrorLog = slog.NewLogLogger(c.log.Handler(), slog.LevelDebug) // handshakes that fail: anybody can make them
	}
	failed := make(chan error, 2+len(operators))
	var serving sync.WaitGroup
	serving.Go(func() { failed <- devices.ServeTLS(l.Devices, "", "") })
	if l.Status != nil {
		serving.Go(func() { failed <- status.Serve(l.Status) })
	}
	for _, o := range operators {
		serving.Go(func() { failed <- o.serve() })
	}
	c.log.Info("ready", "devices", l.Devices.Addr().String(), "instance", c.name, "database", c.st.Kind())
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	close(closing)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	for _, s := range servers {
		if e := s.Shutdown(end); e != nil {
			err = errors.Join(err, s.Close())
		}
	}
	serving.Wait()
	stop()
	wg.Wait()
	stopRecord()
	record.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// handler is what devices see. A path is taken as it came: nothing in it is cleaned or redirected, and what
// is none of ours is refused, and recorded, by the enrolment.
func (a *api) handler(enrol http.Handler) http.Handler {
	only := func(method string, h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method != method {
				w.Header().Set("Allow", method)
				a.refuse(w, r, "", refuse(http.StatusMethodNotAllowed, "bad-method", method, certs.Quote(r.Method), "use "+method))
				return
			}
			h(w, r)
		}
	}
	own := map[string]http.Handler{
		"/v1/policy": only(http.MethodGet, a.servePolicy),
		"/v1/report": only(http.MethodPost, a.serveReport),
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := own[r.URL.EscapedPath()]; h != nil {
			h.ServeHTTP(w, r)
			return
		}
		enrol.ServeHTTP(w, r)
	})
}

// statusServer answers questions about certificates, over plain HTTP.
func (c *Centre) statusServer() *http.Server {
	mux := http.NewServeMux()
	(&issue.Responder{Services: c.auth.issuing, Now: c.now}).Register(mux, "")
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if _, err := c.st.Heads(r.Context()); err != nil {
			http.Error(w, "expected an answer from the database, came none", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
	}
}

// follow is the one goroutine of the instance that watches the database: it wakes the devices that have a
// new policy or are revoked, and the worker.
func (a *api) follow(ctx context.Context, seen store.Heads, work chan<- struct{}) {
	at := seen.Policy
	for {
		now, err := a.st.Wait(ctx, seen)
		if err == nil && now.Policy != at {
			at, err = a.wakeSince(ctx, at)
		}
		if err == nil && now.Registry != seen.Registry {
			err = a.registryChanged(ctx)
			select {
			case work <- struct{}{}:
			default:
			}
		}
		if err == nil {
			seen = now
			continue
		}
		if ctx.Err() != nil || errors.Is(err, store.ErrClosed) {
			return
		}
		a.log.Error("the database cannot be watched, it is tried again", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(tick):
		}
	}
}

// wakeSince wakes the devices with policies after a sequence number, and returns the last one.
func (a *api) wakeSince(ctx context.Context, at uint64) (uint64, error) {
	for {
		list, err := a.st.ChangesSince(ctx, at, 0)
		if err != nil || len(list) == 0 {
			return at, err
		}
		for i := range list {
			a.hub.wake(list[i].Device)
			at = list[i].Seq
		}
	}
}

func (a *api) registryChanged(ctx context.Context) error {
	reg, _, err := a.current(ctx)
	if err != nil {
		return err
	}
	a.hub.wakeIf(func(device string) bool {
		d := reg.Device(device)
		return d == nil || d.State == registry.Revoked
	})
	return nil
}
