package sp

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"sync"

	"wardgate/internal/certs"
	"wardgate/policy"
	"wardgate/sp/issue"
	"wardgate/sp/operator"
	"wardgate/sp/registry"
	"wardgate/sp/store"
)

// Operators is the section [operators]: the API for those who run the centre. Without socket and listen it
// is not served.
type Operators struct {
	Socket  string   `toml:"socket"`  // Unix socket, for root and one group
	Group   string   `toml:"group"`   // the group, by name or number; empty: root alone
	Listen  string   `toml:"listen"`  // TLS 1.3, with client certificates
	Anchors []string `toml:"anchors"` // PEM files: by these alone the certificates are judged
	CRLs    []string `toml:"crls"`    // PEM or DER files
}

func (o *Operators) files() [][]string { return [][]string{o.Anchors, o.CRLs} }

func (o *Operators) check(fault func(key, expected, came string)) {
	if o.Listen != "" && len(o.Anchors) == 0 {
		fault("operators.anchors", "PEM files with the roots of operators' certificates", "none: nobody could connect to operators.listen")
	}
	if o.Listen == "" && len(o.Anchors)+len(o.CRLs) > 0 {
		fault("operators.listen", "an address, as there are anchors or crls", "nothing")
	}
	if o.Socket == "" && o.Group != "" {
		fault("operators.socket", "a path, as there is a group", "nothing")
	}
}

// listenOperators opens the listeners that the configuration names.
func (c *Centre) listenOperators(ctx context.Context, l *Listeners) (err error) {
	o := &c.cfg.Operators
	if o.Listen != "" {
		if l.OperatorsTLS, err = new(net.ListenConfig).Listen(ctx, "tcp", o.Listen); err != nil {
			return fmt.Errorf("operators.listen: %w", err)
		}
	}
	if o.Socket != "" {
		l.Operators, err = operator.ListenUnix(o.Socket, o.Group)
	}
	return err
}

// served is a server and where it serves.
type served struct {
	server *http.Server
	on     net.Listener
	tls    bool
}

func (s *served) serve() error {
	if s.tls {
		return s.server.ServeTLS(s.on, "", "")
	}
	return s.server.Serve(s.on)
}

// operatorServers makes the servers for listeners of Listen.
func (c *Centre) operatorServers(l *Listeners, own *tls.Certificate, e *events) ([]served, error) {
	s := operator.New(operator.Options{Backend: &operators{Centre: c, events: e}, Log: c.log, Now: c.now})
	var out []served
	if l.Operators != nil {
		h, err := s.UnixServer(c.cfg.Operators.Group)
		if err != nil {
			return nil, err
		}
		c.log.Info("operators", "at", l.Operators.Addr().String())
		out = append(out, served{h, l.Operators, false})
	}
	if l.OperatorsTLS != nil {
		// Read anew for each connection and request, so that who is struck off is out at once.
		trust := func() (t operator.Trust, err error) {
			var err2 error
			t.Anchors, err = readAll(c.cfg.Operators.Anchors)
			t.CRLs, err2 = readCRLs(c.cfg.Operators.CRLs)
			return t, errors.Join(err, err2)
		}
		if _, err := trust(); err != nil {
			return nil, fmt.Errorf("operators: %w", err)
		}
		c.log.Info("operators", "at", "https://"+l.OperatorsTLS.Addr().String())
		out = append(out, served{s.TLSServer(own, trust), l.OperatorsTLS, true})
	}
	return out, nil
}

// OperatorAPI is what operators can do, in this process: for the command line.
func (c *Centre) OperatorAPI() operator.API {
	return &operator.Local{Backend: &operators{Centre: c}, Now: c.now}
}

// operators is the centre as package operator wants it.
type operators struct {
	*Centre
	events *events // nil: nobody from outside asks

	making sync.Mutex // one key at a time: what is half done lies in one folder
}

var _ operator.Backend = (*operators)(nil)

// told gives errors of the database the kinds that package operator knows.
func told(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrConflict):
		return fmt.Errorf("%w: %w", operator.ErrConflict, err)
	case errors.Is(err, store.ErrNotFound), errors.Is(err, ErrNoDevice):
		return fmt.Errorf("%w: %w", operator.ErrNotFound, err)
	case errors.Is(err, store.ErrInvalid):
		return fmt.Errorf("%w: %w", operator.ErrRequest, err)
	}
	return err
}

// Current implements operator.Backend.
func (o *operators) Current(ctx context.Context) (*registry.Registry, uint64, error) {
	r, rev, err := o.st.Current(ctx)
	return r, uint64(rev), err
}

// At implements operator.Backend.
func (o *operators) At(ctx context.Context, revision uint64) (*registry.Registry, error) {
	r, err := o.st.At(ctx, store.Revision(revision))
	return r, told(err)
}

func planOf(p *Plan) *operator.Plan {
	return &operator.Plan{From: uint64(p.From), Changes: orNone(p.Changes), Affected: orNone(p.Affected), Text: p.Text}
}

func orNone[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// Plan implements operator.Backend.
func (o *operators) Plan(ctx context.Context, files fs.FS) (*operator.Plan, error) {
	p, err := o.Centre.Plan(ctx, files)
	if err != nil {
		return nil, told(err)
	}
	return planOf(p), nil
}

// Apply implements operator.Backend.
func (o *operators) Apply(ctx context.Context, files fs.FS, from *uint64, by operator.By) (*operator.Plan, error) {
	p, err := o.Centre.Plan(ctx, files)
	if err == nil && from != nil && store.Revision(*from) != p.From {
		err = &store.ConflictError{Expected: store.Revision(*from), Current: p.From}
	}
	if err != nil {
		return nil, told(err)
	}
	done, err := o.Centre.Apply(ctx, p, by.Who, by.Why)
	if err != nil {
		return nil, told(err)
	}
	out := planOf(p)
	out.Applied = uint64(done.Revision)
	return out, nil
}

// DeviceState implements operator.Backend.
func (o *operators) DeviceState(ctx context.Context, device string) (*operator.DeviceState, error) {
	out := &operator.DeviceState{Certificates: []operator.Certificate{}}
	head, err := o.st.LatestHead(ctx, device)
	switch {
	case err == nil:
		out.Policy = &operator.Policy{Serial: head.Serial, Revision: uint64(head.Revision), Created: head.Created, NotAfter: head.NotAfter}
	case !errors.Is(err, store.ErrNotFound):
		return nil, err
	}
	list, err := o.st.CertificatesOf(ctx, device, 10)
	if err != nil {
		return nil, err
	}
	for i := range list {
		k := &list[i]
		out.Certificates = append(out.Certificates, operator.Certificate{Service: k.Service, Serial: k.Serial, NotAfter: k.NotAfter, Ends: k.Ends})
	}
	rep, err := o.st.Report(ctx, device)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return out, nil
	case err != nil:
		return nil, err
	}
	out.Report = &operator.Report{
		Seen: rep.Seen, Version: rep.Version, PolicySerial: rep.PolicySerial, NotAfter: rep.NotAfter,
		Connections: make([]operator.Connection, len(rep.Connections)), Errors: make([]operator.Error, len(rep.Errors)),
	}
	for i, k := range rep.Connections {
		out.Report.Connections[i] = operator.Connection(k)
	}
	for i, k := range rep.Errors {
		out.Report.Errors[i] = operator.Error(k)
	}
	return out, nil
}

var revokeReasons = map[string]store.Reason{
	"stolen": store.KeyCompromise, "left": store.AffiliationChanged, "gone": store.CessationOfOperation, "withdrawn": store.PrivilegeWithdrawn,
}

// RevokeDevice implements operator.Backend.
func (o *operators) RevokeDevice(ctx context.Context, device, reason string, by operator.By) (*operator.Revocation, error) {
	why, ok := revokeReasons[reason]
	if !ok {
		return nil, fmt.Errorf("%w: expected a reason to revoke, came %s", operator.ErrRequest, certs.Quote(reason))
	}
	done, err := o.Centre.RevokeDevice(ctx, device, why, by.Who, by.Why)
	if err != nil {
		return nil, told(err)
	}
	return &operator.Revocation{Device: done.Device, Revision: uint64(done.Revision), Certificates: done.Certificates, Peers: done.Peers}, nil
}

// MakeServiceKey implements operator.Backend.
func (o *operators) MakeServiceKey(ctx context.Context, service string, by operator.By) (*operator.Made, error) {
	r, _, err := o.st.Current(ctx)
	if err != nil {
		return nil, err
	}
	o.making.Lock()
	defer o.making.Unlock()
	made, err := o.Centre.MakeServiceKey(r, service)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, ErrUnfinished) {
		return nil, fmt.Errorf("%w: %w", operator.ErrInTheWay, err)
	}
	event := store.Event{At: o.now(), Event: "service-key-made", Who: by.Who, What: service, Result: store.ResultOK, Detail: map[string]string{"made": made, "why": by.Why}}
	if err != nil {
		event.Result, event.Detail["error"] = store.ResultFailed, err.Error()
	}
	if err := errors.Join(err, o.st.Record(ctx, event)); err != nil {
		return nil, err
	}
	return &operator.Made{Made: made}, nil
}

// ServiceCAs implements operator.Backend.
func (o *operators) ServiceCAs(ctx context.Context, service string) ([]operator.CA, error) {
	r, _, err := o.st.Current(ctx)
	if err != nil {
		return nil, err
	}
	if s := r.Service(service); s == nil || s.Auth == policy.AuthPSK {
		return nil, nil
	}
	o.making.Lock()
	defer o.making.Unlock()
	list, err := o.CAs(r, service)
	if err != nil {
		return nil, err
	}
	out := make([]operator.CA, len(list))
	for i, k := range list {
		out[i] = operator.CA(k)
	}
	return out, nil
}

// History implements operator.Backend.
func (o *operators) History(ctx context.Context, before uint64, limit int) ([]operator.Revision, error) {
	list, err := o.st.History(ctx, store.Revision(before), limit)
	if err != nil {
		return nil, err
	}
	out := make([]operator.Revision, len(list))
	for i := range list {
		a := &list[i]
		out[i] = operator.Revision{Revision: uint64(a.Revision), At: a.At, Who: a.Who, Why: a.Why, Added: a.Added, Changed: a.Changed, Removed: a.Removed, Hash: a.Hash.String()}
	}
	return out, nil
}

// Record implements operator.Backend.
func (o *operators) Record(ctx context.Context, after uint64, limit int) ([]operator.Entry, error) {
	list, err := o.st.Entries(ctx, after, limit)
	if err != nil {
		return nil, err
	}
	out := make([]operator.Entry, len(list))
	for i := range list {
		e := &list[i]
		out[i] = operator.Entry{Seq: e.Seq, At: e.At, Event: e.Event.Event, Who: e.Who, What: e.What, Where: e.Where, Result: e.Result, Detail: e.Detail, Hash: e.Hash.String()}
	}
	return out, nil
}

// VerifyRecord implements operator.Backend.
func (o *operators) VerifyRecord(ctx context.Context, from operator.Mark) (operator.Mark, error) {
	m := store.Mark{Seq: from.Seq}
	if from.Hash != "" {
		h, err := hex.DecodeString(from.Hash)
		if err != nil || len(h) != len(m.Hash) {
			return operator.Mark{}, fmt.Errorf("%w: expected a hash of %d hex digits, came %s", operator.ErrRequest, 2*len(m.Hash), certs.Quote(from.Hash))
		}
		m.Hash = store.Hash(h)
	}
	end, err := o.st.VerifyRecord(ctx, m)
	if errors.Is(err, store.ErrDamaged) {
		err = fmt.Errorf("%w: %w", operator.ErrDamaged, err)
	}
	if err != nil {
		return operator.Mark{}, err
	}
	return operator.Mark{Seq: end.Seq, Hash: end.Hash.String()}, nil
}

// CRLs implements operator.Backend.
func (o *operators) CRLs(ctx context.Context) ([]operator.CRL, error) {
	if _, _, err := o.current(ctx); err != nil { // a command line has not loaded the CAs yet
		return nil, err
	}
	var out []operator.CRL
	services := o.auth.issuing()
	slices.SortFunc(services, func(a, b *issue.Service) int { return cmp.Compare(a.Name(), b.Name()) })
	for _, s := range services {
		lists, err := s.CRLs(ctx, o.now())
		if err != nil {
			return nil, err
		}
		for _, l := range lists {
			out = append(out, operator.CRL{
				Service: s.Name(), Issuer: hex.EncodeToString(l.AuthorityKeyId), Number: l.Number.String(),
				ThisUpdate: l.ThisUpdate, NextUpdate: l.NextUpdate, Entries: len(l.RevokedCertificateEntries), PEM: encodeCRL(l),
			})
		}
	}
	return out, nil
}

// Health implements operator.Backend.
func (o *operators) Health(ctx context.Context) (*operator.Health, error) {
	heads, err := o.st.Heads(ctx)
	if err != nil {
		return nil, err
	}
	h := &operator.Health{Instance: o.name, Database: o.st.Kind(), Revision: uint64(heads.Registry)}
	for _, kind := range jobKinds {
		q, err := o.st.Queue(ctx, kind)
		if err != nil {
			return nil, err
		}
		h.Waiting, h.Leased, h.Failing = h.Waiting+q.Waiting, h.Leased+q.Leased, h.Failing+q.Failing
	}
	return h, nil
}

// Refused implements operator.Backend.
func (o *operators) Refused(_ context.Context, r operator.Refusal) {
	if o.events != nil {
		o.events.put(store.Event{Event: "operator-refused", Who: r.Who, What: r.What, Where: r.Where, Result: store.ResultRefused, Detail: map[string]string{"code": r.Code, "expected": r.Expected, "came": r.Came}})
	}
}
