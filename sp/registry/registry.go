package registry

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/policy"
)

// Registry is an immutable snapshot that keeps every rule. Whatever its methods return is read-only.
type Registry struct {
	c Content // sorted, in canonical form

	member   map[string]int
	device   map[string]int
	service  map[string]int
	contract map[string]int

	cert        []*x509.Certificate // by device
	devicesOf   map[string][]int    // member → devices
	joined      []span              // device → its memberships, which lie side by side
	contractsOf [][]int32           // device → contracts, ascending
	joinedBy    [][]int32           // service → memberships

	where locator // nil: it came from no files
}

// locator returns the file and line of a place; "" and 0 when unknown.
type locator func(Place) (file string, line int)

type span struct{ from, to int32 }

// Content returns all objects in canonical order. Read-only.
func (r *Registry) Content() Content { return r.c }

// Members returns all members by name. Read-only.
func (r *Registry) Members() []Member { return r.c.Members }

// Devices returns all devices by name. Read-only.
func (r *Registry) Devices() []Device { return r.c.Devices }

// Services returns all services by name. Read-only.
func (r *Registry) Services() []Service { return r.c.Services }

// Contracts returns all contracts by name. Read-only.
func (r *Registry) Contracts() []Contract { return r.c.Contracts }

// Memberships returns all memberships by device and service. Read-only.
func (r *Registry) Memberships() []Membership { return r.c.Memberships }

// Member returns the member of that name, or nil.
func (r *Registry) Member(name string) *Member { return find(r.c.Members, r.member, name) }

// Device returns the device of that name, or nil. Names of devices are DNS names: without case.
func (r *Registry) Device(name string) *Device {
	return find(r.c.Devices, r.device, strings.ToLower(name))
}

// Service returns the service of that name, or nil.
func (r *Registry) Service(name string) *Service { return find(r.c.Services, r.service, name) }

// Contract returns the contract of that name, or nil.
func (r *Registry) Contract(name string) *Contract { return find(r.c.Contracts, r.contract, name) }

func find[T any](list []T, by map[string]int, name string) *T {
	if i, ok := by[name]; ok {
		return &list[i]
	}
	return nil
}

// Certificate returns the device certificate that a device was registered with; nil when there is
// no such device.
func (r *Registry) Certificate(device string) *x509.Certificate {
	if i, ok := r.device[strings.ToLower(device)]; ok {
		return r.cert[i]
	}
	return nil
}

// Fingerprint returns the SHA-256 of the device certificate; zero when there is no such device.
func (r *Registry) Fingerprint(device string) policy.Digest {
	c := r.Certificate(device)
	if c == nil {
		return policy.Digest{}
	}
	return sha256.Sum256(c.Raw)
}

// DevicesOf returns the devices of a member, by name.
func (r *Registry) DevicesOf(member string) iter.Seq[*Device] {
	return func(yield func(*Device) bool) {
		for _, i := range r.devicesOf[member] {
			if !yield(&r.c.Devices[i]) {
				return
			}
		}
	}
}

// MembershipsOf returns the memberships of a device, by service. Read-only.
func (r *Registry) MembershipsOf(device string) []Membership {
	i, ok := r.device[strings.ToLower(device)]
	if !ok {
		return nil
	}
	return r.c.Memberships[r.joined[i].from:r.joined[i].to]
}

// MembersOf returns the memberships in a service, by device.
func (r *Registry) MembersOf(service string) iter.Seq[*Membership] {
	return func(yield func(*Membership) bool) {
		i, ok := r.service[service]
		if !ok {
			return
		}
		for _, m := range r.joinedBy[i] {
			if !yield(&r.c.Memberships[m]) {
				return
			}
		}
	}
}

// ContractsOf returns the contracts that a device is party to, by name.
func (r *Registry) ContractsOf(device string) iter.Seq[*Contract] {
	return func(yield func(*Contract) bool) {
		i, ok := r.device[strings.ToLower(device)]
		if !ok {
			return
		}
		for _, c := range r.contractsOf[i] {
			if !yield(&r.c.Contracts[c]) {
				return
			}
		}
	}
}

// Membership returns a device's membership in a service, or nil.
func (r *Registry) Membership(device, service string) *Membership {
	list := r.MembershipsOf(device)
	i, ok := slices.BinarySearchFunc(list, service, func(m Membership, s string) int { return cmp.Compare(m.Service, s) })
	if !ok {
		return nil
	}
	return &list[i]
}

// ServiceID returns the identity that a member's service certificate carries: the membership's own,
// or the first label of the device's name below the service's domain. It is empty for services
// with a pre-shared key.
func (r *Registry) ServiceID(m *Membership) string {
	s := r.Service(m.Service)
	if s == nil || s.Auth == policy.AuthPSK {
		return ""
	}
	return serviceID(m, s)
}

func serviceID(m *Membership, s *Service) string {
	if m.ID != "" {
		return m.ID
	}
	label, _, _ := strings.Cut(m.Device, ".")
	return label + "." + s.Domain
}

// within reports whether now lies in a time from (zero: since ever) to, but not including, until
// (zero: for ever).
func within(from, until, now time.Time) bool {
	return !now.Before(from) && (until.IsZero() || now.Before(until))
}

// IsMember reports whether a device may have a certificate of a service now, and if not, why. The
// error is ErrNotMember, with the reason.
func (r *Registry) IsMember(device, service string, now time.Time) error {
	d := r.Device(device)
	if d == nil {
		return fmt.Errorf("%w: no device %s is registered; register it first", ErrNotMember, certs.Quote(device))
	}
	if d.State != Active {
		return fmt.Errorf("%w: device %s is %s", ErrNotMember, d.Name, d.State)
	}
	m := r.Membership(device, service)
	switch {
	case m == nil:
		return fmt.Errorf("%w: device %s has not joined service %s; give it a membership", ErrNotMember, d.Name, certs.Quote(service))
	case now.Before(m.From):
		return fmt.Errorf("%w: the membership of device %s in service %s begins on %s", ErrNotMember, d.Name, m.Service, stamp(m.From))
	case !within(m.From, m.Until, now):
		return fmt.Errorf("%w: the membership of device %s in service %s ended on %s", ErrNotMember, d.Name, m.Service, stamp(m.Until))
	}
	return nil
}

// InForce reports whether both parties have the connection of a contract now, and if not, why. The
// error is ErrNotInForce, with the reason.
func (r *Registry) InForce(c *Contract, now time.Time) error {
	switch {
	case now.Before(c.From):
		return fmt.Errorf("%w: contract %s begins on %s", ErrNotInForce, c.Name, stamp(c.From))
	case !within(c.From, c.Until, now):
		return fmt.Errorf("%w: contract %s ended on %s", ErrNotInForce, c.Name, stamp(c.Until))
	}
	for i := range c.Parties {
		if err := r.IsMember(c.Parties[i].Device, c.Service, now); err != nil {
			return fmt.Errorf("%w: contract %s: %w", ErrNotInForce, c.Name, err)
		}
	}
	return nil
}

// NextChange returns the first instant after now at which a membership or contract begins or ends,
// and false when there is none: policies made for now hold until then.
func (r *Registry) NextChange(now time.Time) (time.Time, bool) {
	var next time.Time
	look := func(t time.Time) {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for i := range r.c.Memberships {
		look(r.c.Memberships[i].From)
		look(r.c.Memberships[i].Until)
	}
	for i := range r.c.Contracts {
		look(r.c.Contracts[i].From)
		look(r.c.Contracts[i].Until)
	}
	return next, !next.IsZero()
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Errors of lookups.
var (
	ErrNotMember  = errors.New("not a member")
	ErrNotInForce = errors.New("contract not in force")
)

// MarshalJSON writes the canonical form: equal registries give equal octets.
func (r *Registry) MarshalJSON() ([]byte, error) { return json.Marshal(r.c) }

// Decode reads what MarshalJSON wrote, and checks it like New. An unknown key is an error.
func Decode(data []byte) (*Registry, error) {
	var c Content
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: expected one JSON object, came something after it", ErrRefused)
	}
	return New(c)
}

// New makes a registry of objects in any order. The error is a *Error of kind ErrRefused that lists
// what is wrong. The objects are copied.
func New(c Content) (*Registry, error) {
	return build(c, nil)
}

// Locate returns the file and line of a place, for registries that Load made: faults that are found
// later, for example when policies are made, can name them. Without it, "" and 0.
func (r *Registry) Locate(p Place) (file string, line int) {
	if r.where == nil {
		return "", 0
	}
	return r.where(p)
}

// build indexes and checks.
func build(c Content, where locator) (*Registry, error) {
	c, parsed := canonical(c)
	r := &Registry{c: c, where: where}
	k := checker{r: r, parsed: parsed}
	k.bounds()
	if len(k.err.Faults) == 0 {
		k.index()
		k.objects()
		k.contracts()
	}
	if len(k.err.Faults) > 0 {
		return nil, &k.err
	}
	return r, nil
}

// canonical returns a sorted deep copy: names of devices in lower case, times in UTC and whole
// seconds, empty lists nil. Lists within an object keep their order. The device certificates that can be read
// come along by their PEM.
func canonical(c Content) (Content, map[string]*x509.Certificate) {
	parsed := make(map[string]*x509.Certificate, len(c.Devices))
	out := Content{
		Members: slices.Clone(c.Members), Devices: slices.Clone(c.Devices), Services: slices.Clone(c.Services),
		Memberships: slices.Clone(c.Memberships), Contracts: slices.Clone(c.Contracts),
	}
	for i := range out.Devices {
		d := &out.Devices[i]
		d.Name = strings.ToLower(d.Name)
		d.Gateways = list(d.Gateways)
		d.Zones = list(d.Zones)
		for j := range d.Zones {
			d.Zones[j].Prefixes, d.Zones[j].Interfaces = list(d.Zones[j].Prefixes), list(d.Zones[j].Interfaces)
		}
		if d.State == "" {
			d.State = Active
		}
		if d.ESP == policy.ESPUDP {
			d.ESP = "" // the default has one form
		}
		if d.Moves == policy.MovesNamed && len(d.Gateways) > 0 || d.Moves == policy.MovesAnywhere && len(d.Gateways) == 0 {
			d.Moves = ""
		}
		if cs, err := certs.ParseCertificates([]byte(d.Certificate)); err == nil && len(cs) == 1 {
			d.Certificate = string(certs.EncodePEM(cs[0]))
			parsed[d.Certificate] = cs[0]
		}
	}
	for i := range out.Services {
		s := &out.Services[i]
		s.Domain = strings.ToLower(s.Domain)
		if s.Auth == "" {
			s.Auth = policy.AuthCertificate
		}
		s.Rules.Suites = policy.Suites{IKE: list(s.Rules.Suites.IKE), ESP: list(s.Rules.Suites.ESP)}
		s.Rules.Allow = list(s.Rules.Allow)
		if s.Rules.Revocation == policy.RevocationIfKnown {
			s.Rules.Revocation = ""
		}
		if s.Rules.FirstChild == policy.FirstChildWithIKE {
			s.Rules.FirstChild = ""
		}
	}
	for i := range out.Memberships {
		m := &out.Memberships[i]
		m.Device, m.ID = strings.ToLower(m.Device), strings.ToLower(m.ID)
		m.From, m.Until = instant(m.From), instant(m.Until)
	}
	for i := range out.Contracts {
		k := &out.Contracts[i]
		if k.PPK == policy.PPKOff {
			k.PPK = ""
		}
		for j := range k.Parties {
			p := &k.Parties[j]
			p.Device = strings.ToLower(p.Device)
			p.Hosts, p.Narrow = list(p.Hosts), list(p.Narrow)
			for n := range p.Narrow {
				w := &p.Narrow[n]
				w.Sources, w.Destinations, w.Ports = list(w.Sources), list(w.Destinations), list(w.Ports)
			}
		}
		k.Flows = list(k.Flows)
		for j := range k.Flows {
			f := &k.Flows[j]
			f.From = strings.ToLower(f.From)
			f.Sources, f.Destinations, f.Ports = list(f.Sources), list(f.Destinations), list(f.Ports)
		}
		k.Tests = list(k.Tests)
		if k.Start == "" {
			k.Start = policy.StartOnDemand
		}
		k.From, k.Until = instant(k.From), instant(k.Until)
	}
	slices.SortStableFunc(out.Members, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(out.Devices, func(a, b Device) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(out.Services, func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(out.Memberships, func(a, b Membership) int {
		return cmp.Or(cmp.Compare(a.Device, b.Device), cmp.Compare(a.Service, b.Service))
	})
	slices.SortStableFunc(out.Contracts, func(a, b Contract) int { return cmp.Compare(a.Name, b.Name) })
	return out, parsed
}

// list copies; an empty list has one form.
func list[T any](l []T) []T {
	if len(l) == 0 {
		return nil
	}
	return slices.Clone(l)
}

func instant(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Second)
}
