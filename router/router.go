package router

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"wardgate/audit"
	"wardgate/esp"
	"wardgate/ike"
	"wardgate/pkichip"
	"wardgate/policy"
	"wardgate/router/config"
	"wardgate/router/control"
	"wardgate/router/kernel"
	"wardgate/router/revocation"
	"wardgate/router/wire"
	"wardgate/tun"
)

// Token is what the router needs of the double-layered token; *pkichip.Chip implements it.
type Token interface {
	Credentials(ctx context.Context) ([]pkichip.Credential, error)
	Events() <-chan pkichip.Event
	Close() error
}

// Router is the appliance. New opens what it needs, Run works until its context ends.
type Router struct {
	cfg     *config.Config
	log     *zap.Logger
	version string
	started time.Time

	dp      *datapath
	tun     *tun.Device
	tunName string
	mtu     int                  // of the TUN device
	groups  []*wire.Group        // sockets, by family, address and port
	natt    map[*wire.Group]bool // those of the NAT traversal port
	paths   paths
	streams *streams // TCP connections (RFC 9329)
	kern    *kernel.Kernel
	ep      *ike.Endpoint
	chip    Token
	centre  *centreLink // nil: none is configured

	revocation    *revocation.Fetcher
	staples       staples
	staplesWanted chan struct{} // the token's certificates are others

	ticketsTended time.Time // of the lifecycle

	audit    *audit.Log
	store    policyStore
	ppks     ppkStore
	refused  *refusals
	children sync.Map // ike.ChildID → *childSA

	beat atomic.Int64 // last tick of lifecycle, on the router's clock; 0: not running yet

	flushMu sync.Mutex
	flusher *outWorker // sends what was held back; guarded by flushMu

	ikeMu   sync.Mutex // guards senders
	senders map[*wire.Group]*wire.Sender

	records    chan audit.Record // to the one writer of the audit record
	events     eventRing
	ikeRefused ikeRefusals

	installMu sync.Mutex // one policy installation at a time; taken before mu
	peersMu   sync.Mutex // one SetPeers at a time; taken before mu

	addressesMu sync.Mutex   // one look at our addresses at a time; taken before mu; guards addresses
	addresses   []netip.Addr // that IKE was told of

	mu          sync.Mutex // guards what follows
	anchors     []*x509.Certificate
	anchorCRLs  []*x509.RevocationList
	conns       map[string]*connection
	doc         *policy.Document // in force; nil: none
	policyAt    time.Time
	policyErr   *control.Error // why there is none
	remotesErr  *control.Error // what is wrong with former partners' addresses; nil: nothing
	creds       []pkichip.Credential
	deviceDER   []byte
	tokenState  string
	tokenErr    *control.Error
	kernRefused map[string]control.Refused
}

// Options of New.
type Options struct {
	Config  *config.Config
	Log     *zap.Logger
	Version string
	// Token replaces the chip process, in tests.
	Token Token
}

// New opens the audit record, the kernel's tables, the TUN device, the sockets and the chip
// process. It needs CAP_NET_ADMIN, CAP_NET_BIND_SERVICE and CAP_NET_RAW. Nothing passes before
// Run.
func New(opt Options) (_ *Router, err error) {
	cfg := opt.Config
	r := &Router{
		cfg: cfg, log: opt.Log, version: opt.Version, started: time.Now(),
		store:   policyStore{file: cfg.Policy.File, dir: cfg.Daemon.StateDir},
		ppks:    ppkStore{filepath.Join(cfg.Daemon.StateDir, ppkDir)},
		records: make(chan audit.Record, 1024), conns: make(map[string]*connection),
		kernRefused: make(map[string]control.Refused), tokenState: control.TokenStarting,
	}
	r.refused = newRefusals(time.Now)
	r.dp = &datapath{
		start: r.started, flows: newFlowTable(cfg.Limits.Flows), sad: newSAD(),
		refuse: r.refused.note, wake: r.wake, switch_: r.switchTo, rekey: r.rekeyChild, ike: r.ikeDatagram,
	}
	r.dp.rules.Store(&ruleset{})
	r.staplesWanted = make(chan struct{}, 1)
	r.revocation = revocation.New(revocation.Options{Now: time.Now, Log: func(msg string, kv ...any) { r.log.Sugar().Infow(msg, kv...) }})
	defer func() {
		if err != nil {
			r.closeAll()
		}
	}()
	if r.audit, err = openAudit(cfg.Audit.File, opt.Log); err != nil {
		return nil, fmt.Errorf("open the audit record %s: %w", cfg.Audit.File, err)
	}
	if err = r.loadAnchors(); err != nil {
		return nil, err
	}
	r.kern, err = kernel.Open(kernel.Options{
		TunName:    cfg.Network.TUN,
		RouteTable: cfg.Network.RouteTable, RulePriority: cfg.Network.RulePriority, Mark: cfg.Network.Mark, LogGroup: cfg.Network.NFLogGroup,
		Log: func(msg string, kv ...any) { r.log.Sugar().Infow("kernel: "+msg, kv...) },
	})
	if err != nil {
		return nil, err
	}
	queues := cfg.Network.Queues
	if queues == 0 {
		queues = min(runtime.NumCPU(), 8)
	}
	if r.mtu = cfg.Network.MTU; r.mtu == 0 {
		r.mtu = tunMTU(cfg.Network.Mark)
	}
	r.tun, err = tun.Open(tun.Options{Name: cfg.Network.TUN, MTU: r.mtu, Queues: queues, Offload: true})
	if err != nil {
		return nil, fmt.Errorf("open the TUN device %q: %w", cfg.Network.TUN, err)
	}
	r.tunName = r.tun.Name()
	if err = kernel.SetQueueLen(r.tunName, ringPackets); err != nil {
		r.log.Warn("the TUN device keeps its short queue", zap.Error(err))
		err = nil
	}
	for _, q := range r.tun.Queues() {
		r.dp.queues = append(r.dp.queues, &tunWriter{q: q})
	}
	r.flusher = newOutWorker(r.dp.newWorker(len(r.dp.queues), len(r.dp.queues)))
	r.flusher.mark = cfg.Network.Mark
	r.streams = r.newStreams()
	if err = r.openSockets(); err != nil {
		return nil, err
	}
	secret, err := crashSecret(cfg.Daemon.StateDir)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	tickets, err := ticketSecrets(cfg.Daemon.RunDir, now)
	if err != nil {
		return nil, err
	}
	r.ticketsTended = now
	r.ep, err = ike.NewEndpoint(ike.Config{
		CrashSecret: secret, Verify: r.verifyPeer,
		TicketSecrets: tickets, Chains: peerCerts{filepath.Join(cfg.Daemon.StateDir, peerCertsDir), r.log},
		Clock: systemClock{}, Rand: rand.Reader, Owner: owner{r},
		OpenStream: r.streams.open, CloseStream: r.streams.closeStream,
		Send: r.sendIKE, SendKeepalive: r.sendKeepalive, LastInbound: r.lastInbound, SourceAddr: r.sourceAddr,
		Queues: len(r.dp.queues), CookieThreshold: cfg.Limits.CookieThreshold, MaxHalfOpen: cfg.Limits.HalfOpen,
		PuzzleThreshold: cfg.Limits.PuzzleThreshold, PuzzleDifficulty: cfg.Limits.PuzzleDifficulty, PuzzleMaxDifficulty: cfg.Limits.PuzzleMaximum,
		SolveDifficulty: solveDifficulty(cfg.Limits.PuzzleSolve), Defence: r.defenceChanged,
	})
	if err != nil {
		return nil, err
	}
	r.chip = opt.Token
	if r.chip == nil {
		r.chip, err = r.startChip()
		if err != nil {
			return nil, err
		}
	}
	if c, ok := r.chip.(chip); ok {
		if r.centre, err = r.newCentreLink(c); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *Router) openSockets() error {
	addrs := r.cfg.Network.Listen
	everywhere := len(addrs) == 0
	if everywhere {
		addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	r.natt = make(map[*wire.Group]bool)
	for _, a := range addrs {
		opt := wire.Options{
			Addr: a, Queues: 1, Mark: r.cfg.Network.Mark,
			Log: func(msg string, kv ...any) { r.log.Sugar().Infow("socket: "+msg, kv...) },
		}
		open := func(f func(wire.Options) (*wire.Group, error)) (*wire.Group, error) {
			g, err := f(opt)
			if err == nil {
				r.groups = append(r.groups, g)
			}
			return g, err
		}
		opt.Port = r.cfg.Network.IKEPort
		if _, err := open(wire.OpenUDP); err != nil {
			if everywhere && a.Is6() && noIPv6(err) {
				r.log.Info("no IPv6 on this machine", zap.Error(err))
				continue
			}
			return err
		}
		opt.Port, opt.Queues, opt.Steer = r.cfg.Network.NATTPort, len(r.dp.queues), true
		g, err := open(wire.OpenUDP)
		if err != nil {
			return err
		}
		r.natt[g] = true
		if _, err := open(wire.OpenESP); err != nil {
			return err
		}
		if r.cfg.Network.TCP == config.TCPNever {
			continue
		}
		if err := r.streams.listen(netip.AddrPortFrom(a, r.cfg.Network.TCPPort)); err != nil {
			return err
		}
	}
	return nil
}

func (r *Router) mark() uint32 {
	if r.cfg == nil {
		return 0
	}
	return r.cfg.Network.Mark
}

// Run loads the policy and works until ctx ends; then it tells the peers, and leaves the kernel's
// filters in place so that nothing leaks. ready is called once when packets can flow.
func (r *Router) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg, writer sync.WaitGroup
	writer.Go(r.writeRecords)
	r.record(audit.Record{Event: audit.EventStarted, What: "wardgated " + r.version, Result: audit.ResultInfo})

	r.refreshCredentials(ctx)
	r.loadPolicy()
	r.setPeers()

	for i := range r.tun.Queues() {
		w := newOutWorker(r.dp.newWorker(i, i))
		w.mark = r.mark()
		wg.Go(func() {
			if err := w.run(); !errors.Is(err, tun.ErrClosed) {
				cancel(fmt.Errorf("TUN device %s: %w", r.tunName, err))
			}
		})
	}
	for _, g := range r.groups {
		for i, s := range g.Sockets() {
			queue := i % len(r.dp.queues)
			w := newInWorker(r.dp.newWorker(queue, queue), g, s, r.natt[g] || g.Native())
			s.OnError(r.pathError)
			wg.Go(func() {
				if err := w.run(); ctx.Err() == nil {
					cancel(fmt.Errorf("socket %s: %w", netip.AddrPortFrom(g.Addr(), g.Port()), err))
				}
			})
		}
	}
	r.streams.run()
	wg.Go(func() { r.lifecycle(ctx) })
	wg.Go(func() { r.tokenEvents(ctx) })
	wg.Go(func() {
		if err := r.watchRing(ctx.Done()); err != nil {
			r.log.Warn("overload cannot be seen: what is dropped then is not shared fairly", zap.Error(err))
		}
	})
	wg.Go(func() { r.watchKernel(ctx) })
	wg.Go(func() { r.watchAddresses(ctx) })
	wg.Go(func() { r.readKernelRefusals(ctx) })
	wg.Go(func() { r.keepStaples(ctx) })
	if r.centre != nil {
		wg.Go(func() { r.centre.keep(ctx) })
	}

	if ready != nil {
		ready()
	}
	<-ctx.Done()
	err := context.Cause(ctx)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	r.stop()
	wg.Wait()
	r.record(audit.Record{Event: audit.EventStopped, What: "wardgated " + r.version, Result: resultOf(err), Detail: errDetail(err)})
	close(r.records)
	writer.Wait()
	r.closeAll()
	return err
}

// stop tells the peers that we leave, and closes what the workers read from.
func (r *Router) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Limits.ShutdownDeadline)
	defer cancel()
	if err := r.ep.Close(ctx); err != nil {
		r.log.Warn("not every peer has confirmed the end", zap.Error(err))
	}
	r.streams.close()
	r.dp.rules.Store(&ruleset{gen: r.dp.rules.Load().gen + 1})
	r.children.Range(func(k, v any) bool {
		child := v.(*childSA) //nolint:errcheck,forcetypeassert // the map holds nothing else
		r.dp.sad.remove(child)
		child.close()
		r.children.Delete(k)
		return true
	})
	for _, g := range r.groups {
		if err := g.Close(); err != nil {
			r.log.Debug("closing a socket", zap.Error(err))
		}
	}
	r.tun.Close()
}

// closeAll releases what New opened; safe to call twice and half-way through New. The kernel's
// filters and unreachable routes stay.
func (r *Router) closeAll() {
	if r.streams != nil {
		r.streams.close()
	}
	for _, g := range r.groups {
		if err := g.Close(); err != nil {
			r.log.Debug("closing a socket", zap.Error(err))
		}
	}
	if r.tun != nil {
		r.tun.Close()
	}
	if r.chip != nil {
		if err := r.chip.Close(); err != nil {
			r.log.Warn("chip process", zap.Error(err))
		}
	}
	if r.revocation != nil {
		r.revocation.Close()
	}
	if r.kern != nil {
		r.kern.Close()
	}
	if r.audit != nil {
		if err := r.audit.Close(); err != nil {
			r.log.Error("audit record", zap.Error(err))
		}
	}
}

// Reload reads the policy anchors and the token again (SIGHUP).
func (r *Router) Reload(ctx context.Context) error {
	if err := r.loadAnchors(); err != nil {
		return err
	}
	r.refreshCredentials(ctx)
	if t := r.table(); t == nil {
		r.loadPolicy()
	} else if err := r.reapplyKernel(t); err != nil {
		return err
	}
	r.setPeers()
	r.centre.wake()
	return nil
}

// Health implements control.Backend: it fails when the keeper of connections, which ticks every
// second and takes every lock on its way, has stood still. systemd's watchdog asks for it.
func (r *Router) Health(context.Context) error {
	if at := r.beat.Load(); at != 0 {
		if still := time.Duration(r.dp.now() - at); still > maxStill {
			return fmt.Errorf("the router stands still since %s", still.Round(time.Second))
		}
	}
	return nil
}

const maxStill = 20 * time.Second

func (r *Router) connection(name string) *connection {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conns[name]
}

func (r *Router) connections() []*connection {
	rs := r.dp.rules.Load()
	return rs.conns
}

// table returns the policy in force, or nil.
func (r *Router) table() *policy.Table {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.doc == nil {
		return nil
	}
	return r.doc.Table()
}

func (r *Router) child(id ike.ChildID) *childSA {
	v, ok := r.children.Load(id)
	if !ok {
		return nil
	}
	return v.(*childSA) //nolint:errcheck,forcetypeassert // the map holds nothing else
}

// lastInbound tells IKE when a CHILD SA last proved that the peer lives.
func (r *Router) lastInbound(id ike.ChildID) time.Time {
	child := r.child(id)
	if child == nil {
		return time.Time{}
	}
	at := child.lastIn.Load()
	if at == 0 {
		return time.Time{}
	}
	return r.dp.start.Add(time.Duration(at))
}

// rekeyChild asks IKE for a successor of a CHILD SA that has carried enough.
func (r *Router) rekeyChild(child *childSA) {
	go func() {
		if err := r.ep.RekeyChild(child.id); err != nil {
			r.log.Warn("cannot rekey", zap.String("connection", child.conn.name), zap.Error(err))
		}
	}()
}

// wake starts IKE for a connection that hold has put into connConnecting.
func (r *Router) wake(c *connection) {
	go func() {
		if err := r.ep.Initiate(c.name, c.name); err != nil {
			owner{r}.InitiateFailed(c.name, c.name, err)
		}
	}()
}

// --- IKE's way to and from the sockets ------------------------------------------------------

func (r *Router) ikeDatagram(g *wire.Group, d *wire.Datagram, msg []byte) {
	local := d.Local
	if !local.IsValid() {
		local = netip.IPv4Unspecified()
	}
	r.ep.HandleDatagram(ike.Path{Local: netip.AddrPortFrom(local, g.Port()), Remote: d.Remote, Encap: r.natt[g]}, msg)
}

func (r *Router) sendIKE(p ike.Path, msg []byte) {
	if p.Stream != 0 {
		if err := r.streams.sendIKE(p, msg); err != nil {
			r.log.Debug("cannot send an IKE message", zap.Stringer("path", p), zap.Error(err))
		}
		return
	}
	g := r.ikeGroupFor(p)
	if g == nil {
		r.log.Warn("no socket for the path", zap.Stringer("path", p))
		return
	}
	b := msg
	if r.natt[g] {
		b = append(make([]byte, nonESPMarker, nonESPMarker+len(msg)), msg...)
	}
	// IKE itself is network control: DSCP CS6 (RFC 4594, section 3.2)
	if err := r.sendOne(g, p, b, 0xc0); err != nil {
		r.log.Debug("cannot send an IKE message", zap.Stringer("path", p), zap.Error(err))
	}
}

func (r *Router) sendKeepalive(p ike.Path) {
	if g := r.ikeGroupFor(p); g != nil && r.natt[g] {
		_ = r.sendOne(g, p, []byte{0xff}, 0) // the next one comes in seconds
	}
}

// sendOne sends a single datagram.
func (r *Router) sendOne(g *wire.Group, p ike.Path, b []byte, tos uint8) error {
	dest, err := wire.NewDest(p.Remote, p.Local.Addr())
	if err != nil {
		return err
	}
	r.ikeMu.Lock()
	defer r.ikeMu.Unlock()
	s := r.senders[g]
	if s == nil {
		if r.senders == nil {
			r.senders = make(map[*wire.Group]*wire.Sender)
		}
		s = g.Sockets()[0].NewSender()
		r.senders[g] = s
	}
	m := [1]wire.Message{{Buf: b, Dest: &dest, TOS: tos}}
	s.Send(m[:])
	return m[0].Err
}

// ringPackets is how many packets or super-packets wait in a queue of the TUN device for its worker:
// what comes while the processor does something else, some ten milliseconds of small packets at
// 100,000 a second. The kernel's own 500 lose some of them on a busy machine.
const ringPackets = 1500

// BuildNote names what makes this build unfit for use, such as the benchmark build that leaves the
// cipher out; empty for every build that ships.
func BuildNote() string {
	if esp.Cipherless {
		return " nocipher: FOR BENCHMARKS ONLY, NOTHING IS ENCRYPTED" + keylogNote
	}
	return keylogNote
}

// systemClock is the machine's clock.
type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) AfterFunc(d time.Duration, f func()) func() {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}

func (r *Router) auditPath() string { return filepath.Clean(r.cfg.Audit.File) }

// Close releases what New opened, for a Router that is not run.
func (r *Router) Close() error {
	r.closeAll()
	return nil
}
