package operator_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wardgate/sp/operator"
	"wardgate/sp/operator/operatortest"
	"wardgate/sp/registry"
	"wardgate/sp/registry/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for; it is never what passes.
const patience = 20 * time.Second

// fake is a centre without a database.
type fake struct {
	mu      sync.Mutex // guards what follows
	states  []*registry.Registry
	history []operator.Revision
	record  []operator.Entry
	asked   []string // of what would change keys
	block   chan struct{}
	fail    error
	keys    error         // of MakeServiceKey
	planned chan struct{} // not nil: told of each plan, which then waits for block
	plans   int           // at the moment
	most    int           // of plans at the same time
	between func()        // called between a plan and its being carried out
}

var _ operator.Backend = (*fake)(nil)

func newFake(t testing.TB) *fake {
	t.Helper()
	empty, err1 := registry.New(registry.Content{})
	hospital, err2 := registry.New(registrytest.Hospital())
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	f := &fake{states: []*registry.Registry{empty}}
	f.put(hospital, operator.By{Who: "test", Why: "the beginning"})
	return f
}

// put makes a revision; the caller holds the lock, or is alone.
func (f *fake) put(r *registry.Registry, by operator.By) {
	f.states = append(f.states, r)
	f.history = append(f.history, operator.Revision{Revision: uint64(len(f.states) - 1), At: registrytest.At, Who: by.Who, Why: by.Why, Hash: fmt.Sprintf("%064x", len(f.states))})
	f.note("registry-applied", by.Who, "ok")
}

func (f *fake) note(event, who, result string) {
	f.record = append(f.record, operator.Entry{Seq: uint64(len(f.record) + 1), At: registrytest.At, Event: event, Who: who, Result: result, Hash: fmt.Sprintf("%064x", len(f.record)+1)})
}

func (f *fake) Current(context.Context) (*registry.Registry, uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.states[len(f.states)-1], uint64(len(f.states) - 1), f.fail
}

func (f *fake) At(_ context.Context, at uint64) (*registry.Registry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at >= uint64(len(f.states)) {
		return nil, fmt.Errorf("%w: revision %d", operator.ErrNotFound, at)
	}
	return f.states[at], nil
}

func (f *fake) Plan(ctx context.Context, files fs.FS) (*operator.Plan, error) {
	f.mu.Lock()
	f.plans++
	f.most = max(f.most, f.plans)
	f.mu.Unlock()
	if f.planned != nil {
		f.planned <- struct{}{}
		<-f.block
	}
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.plans--
	}()
	p, _, err := f.plan(ctx, files)
	return p, err
}

func (f *fake) plan(ctx context.Context, files fs.FS) (*operator.Plan, *registry.Registry, error) {
	next, err := registry.Load(files)
	if err != nil {
		return nil, nil, err
	}
	old, rev, err := f.Current(ctx)
	if err != nil {
		return nil, nil, err
	}
	p := &operator.Plan{From: rev, Changes: next.Diff(old), Affected: []string{}, Text: next.Plan(old)}
	if p.Changes == nil {
		p.Changes = []registry.Change{}
	}
	return p, next, nil
}

func (f *fake) Apply(ctx context.Context, files fs.FS, from *uint64, by operator.By) (*operator.Plan, error) {
	p, next, err := f.plan(ctx, files)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.between; b != nil {
		f.between = nil
		b()
	}
	if now := uint64(len(f.states) - 1); p.From != now || from != nil && *from != now {
		return nil, fmt.Errorf("%w: it is at %d", operator.ErrConflict, now)
	}
	if p.Applied = p.From; len(p.Changes) > 0 {
		f.put(next, by)
		p.Applied++
	}
	return p, nil
}

func (f *fake) DeviceState(_ context.Context, device string) (*operator.DeviceState, error) {
	at := registrytest.At
	s := &operator.DeviceState{Certificates: []operator.Certificate{}}
	if device == "a.devices.example" {
		s.Policy = &operator.Policy{Serial: 7, Revision: 1, Created: at, NotAfter: at}
		s.Certificates = append(s.Certificates, operator.Certificate{Service: "group-a", Serial: "0f", NotAfter: at, Ends: at})
		s.Report = &operator.Report{
			Seen: at, Version: "1", PolicySerial: 7, NotAfter: at,
			Connections: []operator.Connection{{Name: "a-b", Up: true, Since: at, Detail: "x"}}, Errors: []operator.Error{{At: at, Code: "x", Text: "y"}},
		}
	}
	return s, nil
}

func (f *fake) ask(what, name string, by operator.By) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, what+" "+name)
	f.note(what, by.Who, "ok")
}

func (f *fake) RevokeDevice(ctx context.Context, device, reason string, by operator.By) (*operator.Revocation, error) {
	if f.planned != nil {
		f.planned <- struct{}{}
		<-f.block
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	f.ask("revoke", device+" "+reason+" "+by.Why, by)
	return &operator.Revocation{Device: device, Revision: 2, Certificates: 1, Peers: []string{"a.devices.example"}}, nil
}

func (f *fake) MakeServiceKey(_ context.Context, service string, by operator.By) (*operator.Made, error) {
	if f.keys != nil {
		return nil, f.keys
	}
	f.ask("key", service, by)
	return &operator.Made{Made: "services/" + service + "/2"}, nil
}

func (f *fake) ServiceCAs(context.Context, string) ([]operator.CA, error) {
	return []operator.CA{{Number: 2, State: "published", Folder: "2", Key: "file", Root: "x", From: registrytest.At, NotAfter: registrytest.At, Fault: "x"}, {Number: 1, State: "issues", Folder: "1"}}, f.fail
}

func (f *fake) History(_ context.Context, before uint64, limit int) ([]operator.Revision, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []operator.Revision
	for _, r := range slices.Backward(f.history) {
		if (before == 0 || r.Revision < before) && len(out) < limit {
			out = append(out, r)
		}
	}
	return out, nil
}

func (f *fake) Record(_ context.Context, after uint64, limit int) ([]operator.Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := min(after, uint64(len(f.record)))
	return slices.Clone(f.record[n:min(n+uint64(limit), uint64(len(f.record)))]), nil
}

func (f *fake) VerifyRecord(_ context.Context, from operator.Mark) (operator.Mark, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if from.Seq > 0 && (from.Seq > uint64(len(f.record)) || f.record[from.Seq-1].Hash != from.Hash) {
		return operator.Mark{}, fmt.Errorf("%w: entry %d", operator.ErrDamaged, from.Seq)
	}
	last := f.record[len(f.record)-1]
	return operator.Mark{Seq: last.Seq, Hash: last.Hash}, nil
}

func (f *fake) CRLs(context.Context) ([]operator.CRL, error) {
	return []operator.CRL{{Service: "group-a", Issuer: "0f", Number: "1", ThisUpdate: registrytest.At, NextUpdate: registrytest.At, PEM: "x"}}, nil
}

func (f *fake) Health(ctx context.Context) (*operator.Health, error) {
	if f.block != nil {
		select {
		case <-f.block:
		case <-ctx.Done():
		}
	}
	return &operator.Health{Instance: "one", Database: "sqlite", Revision: 1}, f.fail
}

func (f *fake) Refused(_ context.Context, r operator.Refusal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note("operator-refused", r.Who, "refused")
}

// world is a served API.
type world struct {
	*testing.T
	fake   *fake
	doc    *operatortest.Document
	socket string
	client *operator.Client
	http   *http.Client
}

func newWorld(t *testing.T, change ...func(*operator.Options, *http.Server)) *world {
	t.Helper()
	w := &world{T: t, fake: newFake(t), doc: operatortest.Parse(t), socket: filepath.Join(t.TempDir(), "o.sock")}
	o := operator.Options{Backend: w.fake, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: func() time.Time { return registrytest.At }}
	for _, c := range change {
		c(&o, &http.Server{})
	}
	h, err := operator.New(o).UnixServer("")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(&operator.Options{}, h)
	}
	l, err := operator.ListenUnix(w.socket, "")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- h.Serve(l) }()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.socket)
	}}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	w.http = &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if w.client, err = operator.NewClient(w.socket, nil); err != nil {
		t.Fatal(err)
	}
	return w
}

// reply is what came back.
type reply struct {
	status int
	header http.Header
	body   string
}

// code is a problem's; empty: it is none.
func (r *reply) code() string {
	var p operator.Problem
	_ = json.Unmarshal([]byte(r.body), &p) // an answer that is no problem has none
	return p.Code
}

// do asks, and holds the answer against the document.
func (w *world) do(method, path, body string, header ...string) *reply {
	w.Helper()
	u, err := url.Parse("http://operator" + path)
	if err != nil {
		w.Fatal(err)
	}
	r, err := http.NewRequestWithContext(w.Context(), method, u.String(), bytes.NewReader([]byte(body)))
	if err != nil {
		w.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := w.http.Do(r)
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	w.doc.Answer(w, method, u, resp.StatusCode, resp.Header, data)
	return &reply{resp.StatusCode, resp.Header, string(data)}
}

// want asks and wants a status, and (where it is an error) a code.
func (w *world) want(status int, code, method, path, body string, header ...string) *reply {
	w.Helper()
	r := w.do(method, path, body, header...)
	if r.status != status || r.code() != code && status >= 400 {
		w.Errorf("%s %s: %d %s, want %d %s", method, path, r.status, r.body, status, code)
	}
	return r
}

func into[T any](w *world, r *reply) *T {
	w.Helper()
	v := new(T)
	if err := json.Unmarshal([]byte(r.body), v); err != nil {
		w.Fatalf("%v: %s", err, r.body)
	}
	return v
}

func filesBody(t testing.TB, files map[string]*string) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"files": files})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func ptr[T any](v T) *T { return &v }
