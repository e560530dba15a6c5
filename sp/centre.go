package sp

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/compile"
	"wardgate/sp/est"
	"wardgate/sp/registry"
	"wardgate/sp/store"
)

// Options say how a centre is opened.
type Options struct {
	Config *Config
	Log    *slog.Logger     // nil: nothing is logged
	Now    func() time.Time // nil: time.Now
	Rand   io.Reader        // nil: crypto/rand
}

// Centre is the service provider's centre: one instance of it.
type Centre struct {
	cfg  *Config
	log  *slog.Logger
	now  func() time.Time
	rand io.Reader

	st    *store.Store
	token *keyToken
	auth  *authorities
	name  string // of this instance, in leases
}

// Open opens the database and reads the services' CAs. Close it.
func Open(ctx context.Context, o Options) (*Centre, error) {
	c := &Centre{cfg: o.Config, log: o.Log, now: o.Now, rand: o.Rand}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.rand == nil {
		c.rand = rand.Reader
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	var id [6]byte
	if _, err := io.ReadFull(c.rand, id[:]); err != nil {
		return nil, err
	}
	c.name = fmt.Sprintf("%s-%d-%s", host[:min(len(host), 64)], os.Getpid(), hex.EncodeToString(id[:]))
	c.st, err = store.Open(ctx, store.Options{URL: c.cfg.Database.URL, Poll: time.Duration(c.cfg.Database.Poll)})
	if err != nil {
		return nil, err
	}
	c.token = newKeyToken(c.cfg.Token, filepath.Join(c.cfg.Services.Dir, ".token.json"), c.log)
	c.auth = newAuthorities(c.cfg, c.token, &recorder{st: c.st, overlap: time.Duration(c.cfg.Services.Overlap), now: c.now}, c.rand)
	return c, nil
}

// Close closes the database, and ends the chip process where there is one.
func (c *Centre) Close() error { return errors.Join(c.st.Close(), c.token.close()) }

// Store returns the database, to look things up.
func (c *Centre) Store() *store.Store { return c.st }

// current returns the registry as it is now, and sees to it that its services' CAs are in use here: another
// instance may have told a device of a service that this one has not heard of.
func (c *Centre) current(ctx context.Context) (*registry.Registry, store.Revision, error) {
	reg, rev, err := c.st.Current(ctx)
	if err == nil && !c.auth.has(rev) {
		c.load(reg, rev)
	}
	return reg, rev, err
}

// fresh is how old the registry may be by which a request for a policy, or a report, is judged: such
// requests come by the thousand. Those that wait are told of changes as soon as they are seen.
const fresh = time.Second

// recent is current for what may be judged by the registry of a moment ago.
func (c *Centre) recent(ctx context.Context) (*registry.Registry, store.Revision, error) {
	reg, rev, err := c.st.Recent(ctx, fresh)
	if err == nil && !c.auth.has(rev) {
		c.load(reg, rev)
	}
	return reg, rev, err
}

// load reads the services' CAs and the trust in devices.
func (c *Centre) load(reg *registry.Registry, rev store.Revision) {
	if err := c.auth.load(reg, rev, c.now()); err != nil {
		c.log.Error("a service's CA or the trust in devices cannot be read; what was in use stays in use", "error", err)
	}
}

// enrolment is what package est asks for.
func (c *Centre) enrolment(name string) (est.Service, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	if _, _, err := c.current(ctx); err != nil {
		c.log.Error("enrolment without a look at the registry: the service is as it was", "error", err)
	}
	return c.auth.enrolment(name)
}

// Plan is what a folder would change.
type Plan struct {
	From     store.Revision
	Registry *registry.Registry // as it would be
	Changes  []registry.Change
	Affected []string // devices whose policy may become another
	Text     string   // for people, member by member; empty: nothing changes
}

// Plan reads a folder of registry files, checks it as a whole, and compares it with the registry.
func (c *Centre) Plan(ctx context.Context, dir fs.FS) (*Plan, error) {
	// What there is, is read while the files are: the store keeps it for the comparison.
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _, _ = c.st.Current(ctx) // asked again, and judged, below
	}()
	next, err := registry.Load(dir)
	<-read
	if err != nil {
		return nil, err
	}
	return c.plan(ctx, next)
}

func (c *Centre) plan(ctx context.Context, next *registry.Registry) (*Plan, error) {
	old, rev, err := c.st.Current(ctx)
	if err != nil {
		return nil, err
	}
	p := &Plan{From: rev, Registry: next, Changes: next.Diff(old), Affected: compile.Affected(old, next), Text: next.Plan(old)}
	var check []string
	for _, name := range p.Affected {
		if d := next.Device(name); d != nil && d.State != registry.Revoked {
			check = append(check, name)
		}
	}
	if len(check) > 0 { // no name at all means all devices
		if err := compile.Check(next, check...); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Apply carries out a plan, as one revision, and queues the policies that it makes necessary. Where the
// registry changed since the plan was made, the error is store.ErrConflict and nothing changes.
func (c *Centre) Apply(ctx context.Context, p *Plan, who, why string) (store.Applied, error) {
	jobs := make([]store.Job, len(p.Affected))
	for i, d := range p.Affected {
		jobs[i] = store.Job{Kind: jobRegistry, Item: d}
	}
	return c.st.Apply(ctx, store.Change{Expected: p.From, Registry: p.Registry, Who: who, Why: why, Jobs: jobs}, c.now())
}

// Revocation is what became of an order to revoke a device.
type Revocation struct {
	Device       string         `json:"device"`
	Revision     store.Revision `json:"revision"`
	Certificates int            `json:"certificates"` // that were revoked now
	Peers        []string       `json:"peers"`        // whose policies are made anew
}

// RevokeDevice revokes a device: its service certificates at once, and its place in the registry, so that
// its peers get policies without it. It can be repeated.
func (c *Centre) RevokeDevice(ctx context.Context, name string, reason store.Reason, who, why string) (*Revocation, error) {
	var out *Revocation
	var err error
	for range 5 { // others may change the registry at the same time
		if out, err = c.revokeDevice(ctx, name, reason, who, why); !errors.Is(err, store.ErrConflict) {
			return out, err
		}
	}
	return nil, err
}

func (c *Centre) revokeDevice(ctx context.Context, name string, reason store.Reason, who, why string) (*Revocation, error) {
	reg, rev, err := c.st.Current(ctx)
	if err != nil {
		return nil, err
	}
	d := reg.Device(name)
	if d == nil {
		return nil, fmt.Errorf("%w: expected a device of the registry, came %s; see: wardgate-sp device list", ErrNoDevice, certs.Quote(name))
	}
	content := reg.Content()
	content.Devices = slices.Clone(content.Devices)
	for i := range content.Devices {
		if content.Devices[i].Name == d.Name {
			content.Devices[i].State = registry.Revoked
		}
	}
	next, err := registry.New(content)
	if err != nil {
		return nil, err
	}
	p := &Plan{From: rev, Registry: next, Affected: compile.Affected(reg, next)}
	// The certificates first: the policies that the change leads to carry lists that name them.
	ended, err := c.st.Revoke(ctx, store.Revocation{Device: d.Name, Reason: reason, Who: who, Why: why}, c.now())
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	done, err := c.Apply(ctx, p, who, why)
	if err != nil {
		return nil, err
	}
	// A certificate may have been issued between the two.
	more, err := c.st.Revoke(ctx, store.Revocation{Device: d.Name, Reason: reason, Who: who, Why: why}, c.now())
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	out := &Revocation{Device: d.Name, Revision: done.Revision, Certificates: len(ended) + len(more), Peers: []string{}}
	for _, a := range p.Affected {
		if a != d.Name {
			out.Peers = append(out.Peers, a)
		}
	}
	return out, nil
}
