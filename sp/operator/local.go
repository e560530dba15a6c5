package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/sp/registry"
)

// Local is the API on a Backend.
type Local struct {
	Backend Backend
	Now     func() time.Time
}

var _ API = (*Local)(nil)

// Health implements API.
func (l *Local) Health(ctx context.Context) (*Health, error) { return l.Backend.Health(ctx) }

// Registry implements API.
func (l *Local) Registry(ctx context.Context) (*Summary, error) {
	r, rev, err := l.Backend.Current(ctx)
	if err != nil {
		return nil, err
	}
	s := &Summary{Revision: rev, Members: len(r.Members()), Devices: len(r.Devices()), Services: len(r.Services()), Contracts: len(r.Contracts())}
	if rev == 0 {
		return s, nil
	}
	list, err := l.Backend.History(ctx, rev+1, 1)
	if err != nil {
		return nil, err
	}
	if len(list) > 0 {
		s.Applied = &list[0]
	}
	return s, nil
}

func limit(n int) int { return min(cmp.Or(max(n, 0), DefaultPage), MaxPage) }

// History implements API.
func (l *Local) History(ctx context.Context, before uint64, n int) (*History, error) {
	n = limit(n)
	list, err := l.Backend.History(ctx, before, n)
	if err != nil {
		return nil, err
	}
	h := &History{Items: orNone(list)}
	if len(list) == n && list[n-1].Revision > 1 {
		h.Next = list[n-1].Revision
	}
	return h, nil
}

// Files implements API.
func (l *Local) Files(ctx context.Context, at *uint64) (*Files, error) {
	r, rev, err := l.Backend.Current(ctx)
	if err == nil && at != nil && *at != rev {
		rev = *at
		r, err = l.Backend.At(ctx, rev)
	}
	if err != nil {
		return nil, err
	}
	return &Files{rev, filesOf(r)}, nil
}

// File implements API.
func (l *Local) File(ctx context.Context, path string) (*File, error) {
	if p := checkPath(path); p != nil {
		return nil, p
	}
	r, _, err := l.Backend.Current(ctx)
	if err != nil {
		return nil, err
	}
	for name, data := range r.Export() {
		if name == path {
			return &File{path, string(data), fileETag(string(data))}, nil
		}
	}
	return nil, notFound("file", path)
}

func notFound(what, name string) *Problem {
	return problem(http.StatusNotFound, CodeNotFound, "a "+what+" that there is", certs.Quote(name), "see the list of "+what+"s")
}

// attempts bound how often an edit is made again because others changed something else meanwhile.
const attempts = 5

// PutFile implements API.
func (l *Local) PutFile(ctx context.Context, path string, text *string, had string, by By) (*Plan, error) {
	if p := checkPath(path); p != nil {
		return nil, p
	}
	return l.change(ctx, map[string]*string{path: text}, nil, func(now map[string]string) error {
		was, there := now[path]
		switch {
		case !there && text == nil:
			return notFound("file", path)
		case there && had == "":
			return problem(http.StatusPreconditionFailed, CodeConflict, "no file "+path, "one that exists", "fetch it, and send its ETag as If-Match")
		case !there && had != "":
			return problem(http.StatusPreconditionFailed, CodeConflict, "a file "+path, "none", "somebody removed it; send If-None-Match: * to make it")
		case there && had != "*" && had != fileETag(was):
			return problem(http.StatusPreconditionFailed, CodeConflict, path+" with ETag "+certs.Quote(had), fileETag(was), "somebody changed it: fetch it again")
		}
		return nil
	}, by)
}

// change applies a patch to the registry as it is. look may refuse by what there is.
func (l *Local) change(ctx context.Context, patch map[string]*string, from *uint64, look func(map[string]string) error, by By) (*Plan, error) {
	for n := 1; ; n++ {
		now, err := l.Files(ctx, nil)
		if err == nil && from != nil && *from != now.Revision {
			err = overtaken(*from, now.Revision)
		}
		if err == nil {
			err = look(now.Files)
		}
		if err != nil {
			return nil, err
		}
		p, err := l.Backend.Apply(ctx, memory(patched(now.Files, patch)), &now.Revision, by)
		if from != nil || n == attempts || !errors.Is(err, ErrConflict) {
			return p, err
		}
	}
}

func overtaken(expected, came uint64) error {
	return problem(http.StatusPreconditionFailed, CodeConflict, fmt.Sprintf("the registry at revision %d", expected), fmt.Sprintf("it is at %d: somebody else changed it", came), "make the plan again")
}

func anything(map[string]string) error { return nil }

// checkInput looks at the names of a patch. Files are the registry's own to judge.
func (in *Input) check() error {
	for name := range in.Patch {
		if p := checkPath(name); p != nil {
			return p
		}
	}
	return nil
}

// Plan implements API.
func (l *Local) Plan(ctx context.Context, in Input) (*Plan, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	if in.Patch == nil {
		return l.Backend.Plan(ctx, in.Files)
	}
	now, err := l.Files(ctx, nil)
	if err != nil {
		return nil, err
	}
	return l.Backend.Plan(ctx, memory(patched(now.Files, in.Patch)))
}

// Apply implements API.
func (l *Local) Apply(ctx context.Context, in Input, from *uint64, by By) (*Plan, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	if in.Patch != nil {
		return l.change(ctx, in.Patch, from, anything, by)
	}
	return l.Backend.Apply(ctx, in.Files, from, by)
}

// pageOf returns the part of a list that is sorted by name.
func pageOf[T, U any](ctx context.Context, l *Local, p Page, all func(*registry.Registry) []T, name func(*T) string, item func(*registry.Registry, *T) U) (*List[U], error) {
	r, rev, err := l.Backend.Current(ctx)
	if err != nil {
		return nil, err
	}
	list := all(r)
	i, found := slices.BinarySearchFunc(list, p.After, func(v T, s string) int { return strings.Compare(name(&v), s) })
	if found {
		i++
	}
	end := min(i+limit(p.Limit), len(list))
	out := &List[U]{Revision: rev, Items: make([]U, 0, end-i)}
	for ; i < end; i++ {
		out.Items = append(out.Items, item(r, &list[i]))
	}
	if end < len(list) {
		out.Next = name(&list[end-1])
	}
	return out, nil
}

// Members implements API.
func (l *Local) Members(ctx context.Context, p Page) (*List[MemberItem], error) {
	return pageOf(ctx, l, p, (*registry.Registry).Members, func(m *registry.Member) string { return m.Name }, func(r *registry.Registry, m *registry.Member) MemberItem {
		return MemberItem{*m, count(r.DevicesOf(m.Name))}
	})
}

// Devices implements API.
func (l *Local) Devices(ctx context.Context, p Page) (*List[registry.Device], error) {
	return pageOf(ctx, l, p, (*registry.Registry).Devices, func(d *registry.Device) string { return d.Name }, same)
}

// Services implements API.
func (l *Local) Services(ctx context.Context, p Page) (*List[ServiceItem], error) {
	return pageOf(ctx, l, p, (*registry.Registry).Services, func(s *registry.Service) string { return s.Name }, func(r *registry.Registry, s *registry.Service) ServiceItem {
		return ServiceItem{*s, count(r.MembersOf(s.Name))}
	})
}

// Contracts implements API.
func (l *Local) Contracts(ctx context.Context, p Page) (*List[registry.Contract], error) {
	return pageOf(ctx, l, p, (*registry.Registry).Contracts, func(c *registry.Contract) string { return c.Name }, same)
}

func same[T any](_ *registry.Registry, v *T) T { return *v }

func count[T any](seq func(func(T) bool)) int {
	n := 0
	for range seq {
		n++
	}
	return n
}

func orNone[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// Member implements API.
func (l *Local) Member(ctx context.Context, name string) (*Member, error) {
	r, _, err := l.Backend.Current(ctx)
	if err != nil {
		return nil, err
	}
	m := r.Member(name)
	if m == nil {
		return nil, notFound("member", name)
	}
	out := &Member{*m, []string{}}
	for d := range r.DevicesOf(m.Name) {
		out.Devices = append(out.Devices, d.Name)
	}
	return out, nil
}

// Device implements API.
func (l *Local) Device(ctx context.Context, name string) (*Device, error) {
	r, _, err := l.Backend.Current(ctx)
	if err != nil {
		return nil, err
	}
	d := r.Device(name)
	if d == nil {
		return nil, notFound("device", name)
	}
	state, err := l.Backend.DeviceState(ctx, d.Name)
	if err != nil {
		return nil, err
	}
	out := &Device{*d, orNone(r.MembershipsOf(d.Name)), []string{}, *state}
	for c := range r.ContractsOf(d.Name) {
		out.Contracts = append(out.Contracts, c.Name)
	}
	return out, nil
}

// Service implements API.
func (l *Local) Service(ctx context.Context, name string) (*Service, error) {
	r, _, err := l.Backend.Current(ctx)
	if err != nil {
		return nil, err
	}
	s := r.Service(name)
	if s == nil {
		return nil, notFound("service", name)
	}
	out := &Service{*s, []registry.Membership{}}
	for m := range r.MembersOf(s.Name) {
		out.Memberships = append(out.Memberships, *m)
	}
	return out, nil
}

// Contract implements API.
func (l *Local) Contract(ctx context.Context, name string) (*Contract, error) {
	r, _, err := l.Backend.Current(ctx)
	if err != nil {
		return nil, err
	}
	c := r.Contract(name)
	if c == nil {
		return nil, notFound("contract", name)
	}
	state := "in force"
	if err := r.InForce(c, l.Now()); err != nil {
		state = err.Error()
	}
	return &Contract{*c, state}, nil
}

// RevokeDevice implements API.
func (l *Local) RevokeDevice(ctx context.Context, device, reason string, by By) (*Revocation, error) {
	if !slices.Contains(Reasons, reason) {
		return nil, problem(http.StatusBadRequest, CodeMalformed, "a reason: "+strings.Join(Reasons, ", "), certs.Quote(reason), "")
	}
	r, _, err := l.Backend.Current(ctx)
	if err != nil {
		return nil, err
	}
	if r.Device(device) == nil {
		return nil, notFound("device", device)
	}
	return l.Backend.RevokeDevice(ctx, device, reason, by)
}

// MakeServiceKey implements API.
func (l *Local) MakeServiceKey(ctx context.Context, service string, by By) (*Made, error) {
	r, _, err := l.Backend.Current(ctx)
	if err != nil {
		return nil, err
	}
	if r.Service(service) == nil {
		return nil, notFound("service", service)
	}
	return l.Backend.MakeServiceKey(ctx, service, by)
}

// ServiceCAs implements API.
func (l *Local) ServiceCAs(ctx context.Context, service string) (*CAs, error) {
	r, _, err := l.Backend.Current(ctx)
	if err != nil {
		return nil, err
	}
	if r.Service(service) == nil {
		return nil, notFound("service", service)
	}
	list, err := l.Backend.ServiceCAs(ctx, service)
	if err != nil {
		return nil, err
	}
	return &CAs{orNone(list)}, nil
}

// Record implements API.
func (l *Local) Record(ctx context.Context, after uint64, n int) (*Record, error) {
	list, err := l.Backend.Record(ctx, after, limit(n))
	if err != nil {
		return nil, err
	}
	r := &Record{Items: orNone(list), Next: after}
	if len(list) > 0 {
		r.Next = list[len(list)-1].Seq
	}
	return r, nil
}

// VerifyRecord implements API.
func (l *Local) VerifyRecord(ctx context.Context, from Mark) (Mark, error) {
	return l.Backend.VerifyRecord(ctx, from)
}

// CRLs implements API.
func (l *Local) CRLs(ctx context.Context) (*CRLs, error) {
	list, err := l.Backend.CRLs(ctx)
	if err != nil {
		return nil, err
	}
	return &CRLs{orNone(list)}, nil
}
