package lab

import (
	"context"
	"errors"
	"sync"
	"time"

	"wardgate/policy"
)

// Ports of the hospital scenario.
const (
	DICOMPort = 11112
	EchoPort  = 7007 // the numbered datagrams by which loss and set-up time are seen
	ArchiveAE = "ARCHIVE"
)

// Groups of the hospital scenario.
const (
	GroupA = "group-a" // hospital A and clinic B: teleradiology
	GroupB = "group-b" // hospital A and imaging centre C: remote maintenance
)

// Hospital is the scenario of the demo and of most end-to-end tests:
//
//	         198.18.0.0/24, "the internet"
//	   ┌─────────────────┼─────────────────┐
//	A .1              B .2              C .3
//	hospital          clinic            imaging centre
//	HSZ 10.1.1.0/24   SZ 10.2.1.0/24    SZ 10.3.1.0/24
//	    .10 scanner       .9 modality       .7 centre
//	SZ  10.1.2.0/24
//	    .10 archive
//
// A has a contract with B (group A: B's modality sends studies to A's archive) and one with C
// (group B: C maintains A's scanner, which stands in the HSZ and reports to C). B and C have none
// with each other, unless B is moved to group B; see [Hospital.Moved].
type Hospital struct {
	*Lab
	Internet *Internet
	Provider *Provider
	A, B, C  *Facility
	// Archive (behind A, SZ), Scanner (behind A, HSZ), Modality (behind B) and Centre (behind C).
	Archive, Scanner, Modality, Centre *Host

	AB, AC *Contract
	BC     *Contract // instead of AB, once B has moved

	SP *Centre // .9; see [Hospital.FromCentre]
}

// NewHospital makes the networks, authorities and contracts of the scenario. Nothing runs yet.
func NewHospital(ctx context.Context, l *Lab, idle time.Duration) (*Hospital, error) {
	h := &Hospital{Lab: l}
	var err error
	if h.Internet, err = l.Internet(); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		at               **Facility
		name, title, wan string
		zones            []zoneSpec
	}{
		{&h.A, "a", "hospital A", "198.18.0.1", []zoneSpec{
			{"hsz", "HSZ", "10.1.1.1/24", "scanner", "10.1.1.10"},
			{"sz", "SZ", "10.1.2.1/24", "archive", "10.1.2.10"},
		}},
		{&h.B, "b", "clinic B", "198.18.0.2", []zoneSpec{{"sz", "SZ", "10.2.1.1/24", "modality", "10.2.1.9"}}},
		{&h.C, "c", "imaging centre C", "198.18.0.3", []zoneSpec{{"sz", "SZ", "10.3.1.1/24", "centre", "10.3.1.7"}}},
	} {
		if *f.at, err = l.Facility(h.Internet, f.name, f.title, f.name+".devices.example", f.wan); err != nil {
			return nil, err
		}
		for _, z := range f.zones {
			if _, err := (*f.at).Zone(z.name, z.level, z.gateway, map[string]string{z.host: z.addr}); err != nil {
				return nil, err
			}
		}
	}
	// A's administrator uses the machine as an ordinary router too. B and C do not: what
	// wardgated needs, it switches on itself.
	if err := h.A.Router.Sysctl("net.ipv4.ip_forward=1"); err != nil {
		return nil, err
	}
	h.Archive, h.Scanner, h.Modality, h.Centre = h.A.Host("archive"), h.A.Host("scanner"), h.B.Host("modality"), h.C.Host("centre")
	if h.Provider, err = NewProvider(GroupA, GroupB); err != nil {
		return nil, err
	}
	lanB, centre := h.Modality.Zone.Prefix.String(), h.Centre.Addr.String()
	archive, scanner := h.Archive.Addr.String(), h.Scanner.Addr.String()
	h.AB = &Contract{
		Name: "a-b", Service: GroupA, Category: policy.CategoryInformation, Parties: [2]*Facility{h.A, h.B}, Idle: idle,
		Flows: []Agreed{
			{"studies", h.B, []string{lanB}, []string{archive}, "tcp", []string{"11112"}},
			{"probe", h.B, []string{lanB}, []string{archive}, "udp", []string{"7007"}},
			{"ping", h.B, []string{lanB}, []string{archive}, "icmp", nil},
			{"ping-back", h.A, []string{archive}, []string{lanB}, "icmp", nil},
		},
	}
	h.AC = &Contract{
		Name: "a-c", Service: GroupB, Category: policy.CategoryMaintenance, Parties: [2]*Facility{h.A, h.C}, Idle: idle,
		Flows: []Agreed{
			{"console", h.C, []string{centre}, []string{scanner}, "tcp", []string{"22"}},
			{"reports", h.A, []string{scanner}, []string{centre}, "tcp", []string{"443"}},
			{"probe", h.A, []string{scanner}, []string{centre}, "udp", []string{"7007"}},
			{"ping", h.A, []string{scanner}, []string{centre}, "icmp", nil},
		},
	}
	modality := h.Modality.Addr.String() // group B is for single hosts: remote maintenance
	h.BC = &Contract{
		Name: "b-c", Service: GroupB, Category: policy.CategoryMaintenance, Parties: [2]*Facility{h.B, h.C}, Idle: idle,
		Flows: []Agreed{
			{"studies", h.B, []string{modality}, []string{centre}, "tcp", []string{"11112"}},
			{"probe", h.B, []string{modality}, []string{centre}, "udp", []string{"7007"}},
			{"ping", h.B, []string{modality}, []string{centre}, "icmp", nil},
		},
	}
	return h, ctx.Err()
}

type zoneSpec struct{ name, level, gateway, host, addr string }

// Facilities are A, B and C.
func (h *Hospital) Facilities() []*Facility { return []*Facility{h.A, h.B, h.C} }

// Contracts are all contracts.
func (h *Hospital) Contracts() []*Contract { return []*Contract{h.AB, h.AC} }

// Services are the groups of a facility.
func (h *Hospital) Services(f *Facility) []string {
	var out []string
	for _, c := range h.Contracts() {
		if _, ok := c.other(f); ok {
			out = append(out, c.Service)
		}
	}
	return out
}

// Enrol makes the token of every facility, at once.
func (h *Hospital) Enrol(ctx context.Context) error {
	return each(h.Facilities(), func(f *Facility) error { return f.Enrol(ctx, h.Provider, h.Services(f)...) })
}

// FromCentre gives the scenario a centre of the service provider's, running, with the scenario in its
// registry, and gives every facility a token as it comes from the factory: with a device certificate and
// nothing else. settings are [Lab.Centre]'s.
func (h *Hospital) FromCentre(ctx context.Context, settings map[string]string) error {
	var err error
	if h.SP, err = h.Lab.Centre(ctx, h.Internet, h.Provider, settings, GroupA, GroupB); err != nil {
		return err
	}
	if err := each(h.Facilities(), func(f *Facility) error {
		f.SP = h.SP
		return f.Enrol(ctx, h.Provider)
	}); err != nil {
		return err
	}
	if _, err := h.SP.Apply(ctx, h.Register()); err != nil {
		return err
	}
	return h.SP.Start(ctx)
}

// Joined is how `wardgate join` went.
type Joined struct {
	Said string
	Took time.Duration
}

// Join runs `wardgate join` at every facility, at once. The daemons run.
func (h *Hospital) Join(ctx context.Context, args ...string) (map[*Facility]Joined, error) {
	var mu sync.Mutex
	all := map[*Facility]Joined{}
	err := each(h.Facilities(), func(f *Facility) error {
		start := time.Now()
		out, err := f.Join(ctx, args...)
		mu.Lock()
		defer mu.Unlock()
		all[f] = Joined{out, time.Since(start)}
		return err
	})
	return all, err
}

// Start writes every facility's configuration, starts the daemons and waits until they answer.
func (h *Hospital) Start(ctx context.Context) error {
	return each(h.Facilities(), func(f *Facility) error {
		if err := f.WriteConfig(""); err != nil {
			return err
		}
		return f.StartDaemon(ctx)
	})
}

// InstallPolicies signs and installs the policy of every facility.
func (h *Hospital) InstallPolicies(ctx context.Context) error {
	return each(h.Facilities(), func(f *Facility) error {
		d, err := h.Provider.Policy(f, h.Contracts())
		if err != nil {
			return err
		}
		return f.InstallPolicy(ctx, h.Provider, d)
	})
}

// each does something for all facilities at once.
func each(fs []*Facility, do func(*Facility) error) error {
	errs := make(chan error, len(fs))
	for _, f := range fs {
		go func() { errs <- do(f) }()
	}
	var all []error
	for range fs {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}
