package compile

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"

	"wardgate/policy"
	"wardgate/sp/registry"
)

// Errors of this package. What is wrong with the registry is a *registry.Error.
var (
	// ErrNoDevice: the registry does not have the device.
	ErrNoDevice = errors.New("no such device")
	// ErrRevoked: a revoked device gets no policy any more.
	ErrRevoked = errors.New("device is revoked")
	// ErrTrust: anchors or a key for a service are missing, or do not fit how it authenticates.
	ErrTrust = errors.New("trust of a service is incomplete")
)

// Trust is what certificates are judged by. All are PEM, one block each.
type Trust struct {
	DeviceAnchors []string // CAs of device certificates
	DeviceCRLs    []string
	Services      map[string]ServiceTrust
}

// ServiceTrust belongs to one service: Anchors and CRLs, or the key of one that authenticates by
// pre-shared key.
type ServiceTrust struct {
	Anchors []string
	CRLs    []string
	PSK     policy.Secret
}

// Input is what policies are made of. It may be used by several goroutines at once.
type Input struct {
	Registry *registry.Registry
	Trust    Trust
	Issuer   string    // who makes the policies: a host name
	Now      time.Time // what is in force at this instant counts
}

// Policy is what a device's next policy says, without serial number and validity.
type Policy struct {
	Device string
	doc    policy.Document
}

// Hash is the hash of everything but serial and validity.
func (p *Policy) Hash() (policy.Digest, error) { return contentHash(&p.doc) }

// Document returns the document with serial number and validity. What it points to is shared and
// read-only.
func (p *Policy) Document(serial uint64, notBefore, notAfter time.Time) *policy.Document {
	d := p.doc
	d.Serial, d.NotBefore, d.NotAfter = serial, notBefore, notAfter
	return &d
}

// Device makes the policy of one device, and does with it what the device will do: compiles it and runs
// its tests. Besides the errors of this package it returns a *registry.Error when the device would refuse
// it.
func (in *Input) Device(name string) (*Policy, error) {
	d := in.Registry.Device(name)
	switch {
	case d == nil:
		return nil, fmt.Errorf("%w: %q; register it first", ErrNoDevice, name)
	case d.State == registry.Revoked:
		return nil, fmt.Errorf("%w: %s; give the member another device", ErrRevoked, d.Name)
	}
	b := builder{
		r: in.Registry, d: d, issuer: in.Issuer,
		trust:  &in.Trust,
		member: func(m *registry.Membership) bool { return in.Registry.IsMember(m.Device, m.Service, in.Now) == nil },
		force:  func(c *registry.Contract) bool { return in.Registry.InForce(c, in.Now) == nil },
	}
	if err := b.build(); err != nil {
		return nil, err
	}
	if faults := b.verify(); len(faults) > 0 {
		return nil, &registry.Error{Faults: faults}
	}
	return &Policy{Device: d.Name, doc: b.doc}, nil
}

// All makes the policy of every device that gets one, by name.
func (in *Input) All() iter.Seq2[*Policy, error] {
	return func(yield func(*Policy, error) bool) {
		for i := range in.Registry.Devices() {
			d := &in.Registry.Devices()[i]
			if d.State == registry.Revoked {
				continue
			}
			if !yield(in.Device(d.Name)) {
				return
			}
		}
	}
}

// contentHash is the hash of a document without serial and validity.
func contentHash(doc *policy.Document) (policy.Digest, error) {
	d := *doc
	d.Serial, d.NotBefore, d.NotAfter = 0, time.Time{}, time.Time{}
	data, err := json.Marshal(d)
	if err != nil {
		return policy.Digest{}, fmt.Errorf("policy for %s: %w", doc.Device.ID, err)
	}
	return sha256.Sum256(data), nil
}

// builder makes one document, and remembers where each part of it comes from.
type builder struct {
	r      *registry.Registry
	d      *registry.Device
	issuer string
	trust  *Trust // nil: a stand-in, for checking a registry without it
	member func(*registry.Membership) bool
	force  func(*registry.Contract) bool

	doc       policy.Document
	zone      []int                // index in the document → in the device
	joined    []*registry.Service  // by index in the document
	contracts []*registry.Contract // by index of the connection
	flow      [][]int              // connection, flow in the document → in the contract
	test      []origin
	faults    []*registry.Fault
}

// origin is where a test comes from.
type origin struct {
	contract *registry.Contract
	test     int
}

// standIn is the key of every service when a registry is checked without its trust: never signed.
var standIn = policy.NewSecret(make([]byte, 32))

func (b *builder) build() error {
	b.doc = policy.Document{
		Format: policy.Format, Issuer: b.issuer,
		Device: policy.Device{ID: b.d.Name, Fingerprint: b.r.Fingerprint(b.d.Name).String()},
	}
	if b.trust != nil {
		b.doc.DeviceAnchors, b.doc.DeviceCRLs = b.trust.DeviceAnchors, b.trust.DeviceCRLs
	}
	b.zones()
	if err := b.services(); err != nil {
		return err
	}
	b.rules()
	b.connections()
	return nil
}

func (b *builder) zones() {
	for i := range b.d.Zones {
		b.zone = append(b.zone, i)
	}
	slices.SortFunc(b.zone, func(i, j int) int { return strings.Compare(b.d.Zones[i].Name, b.d.Zones[j].Name) })
	for _, i := range b.zone {
		z := &b.d.Zones[i]
		b.doc.Zones = append(b.doc.Zones, policy.Zone{Name: z.Name, Level: z.Level, Prefixes: texts(z.Prefixes), Interfaces: z.Interfaces})
	}
}

// services lists what the device has joined, also where it has no contract (yet): the device keeps
// a certificate for each.
func (b *builder) services() error {
	list := b.r.MembershipsOf(b.d.Name)
	for i := range list {
		if !b.member(&list[i]) {
			continue
		}
		s := b.r.Service(list[i].Service)
		out := policy.Service{Name: s.Name, Category: s.Category, Auth: s.Auth}
		if b.trust == nil {
			out.Auth, out.PSK = policy.AuthPSK, standIn
		} else {
			t, ok := b.trust.Services[s.Name]
			switch {
			case !ok, s.Auth == policy.AuthPSK && t.PSK.IsZero(), s.Auth != policy.AuthPSK && (len(t.Anchors) == 0 || len(b.trust.DeviceAnchors) == 0):
				want := "the anchors of its CA and of the device CA"
				if s.Auth == policy.AuthPSK {
					want = "its pre-shared key"
				}
				return fmt.Errorf("%w: service %s: expected %s, came none; make the service's CA or key first", ErrTrust, s.Name, want)
			case s.Auth == policy.AuthPSK:
				out.PSK = t.PSK
			default:
				out.Anchors, out.CRLs = t.Anchors, t.CRLs
			}
		}
		b.joined = append(b.joined, s)
		b.doc.Services = append(b.doc.Services, out)
	}
	return nil
}

// unused are the suites of a device that has joined nothing: a policy must name some, and no
// connection uses them.
var unused = policy.Suites{IKE: []string{"aes256gcm16-prfsha384-x25519-mlkem768"}, ESP: []string{"aes256gcm16-x25519"}}

// rules combines the uniform rules of the services: a policy has one set for all its connections,
// so it is what all of them allow.
func (b *builder) rules() {
	b.doc.Suites, b.doc.Lifetimes = uniform(b.joined)
	for _, s := range b.joined {
		if s.Rules.Revocation == policy.RevocationRequired {
			b.doc.Revocation = policy.RevocationRequired // no service gets less than it asks for
		}
	}
	switch {
	case len(b.joined) == 0:
		b.doc.Suites = unused
	case len(b.doc.Suites.IKE) == 0 || len(b.doc.Suites.ESP) == 0:
		b.fault(RuleSuites, registry.Place{Kind: "device", Name: b.d.Name, Path: "membership"}, "services that have suites in common, for IKE and for ESP",
			serviceNames(b.joined)+", which have none", "let the services' rules.suites overlap, or use one device for each")
	}
}

func serviceNames(list []*registry.Service) string {
	s := make([]string, len(list))
	for i := range list {
		s[i] = list[i].Name
	}
	return strings.Join(s, ", ")
}

// uniform returns the suites that all services allow, in the order of the first, and the shortest
// lifetimes.
func uniform(services []*registry.Service) (s policy.Suites, l policy.Lifetimes) {
	for i, v := range services {
		r := &v.Rules
		if i == 0 {
			s, l = r.Suites, r.Lifetimes
			continue
		}
		s = policy.Suites{IKE: shared(s.IKE, r.Suites.IKE), ESP: shared(s.ESP, r.Suites.ESP)}
		l = policy.Lifetimes{
			IKE:        shorter(l.IKE, r.Lifetimes.IKE, 8*time.Hour),
			Child:      shorter(l.Child, r.Lifetimes.Child, time.Hour),
			Liveness:   shorter(l.Liveness, r.Lifetimes.Liveness, 30*time.Second),
			ChildBytes: fewer(l.ChildBytes, r.Lifetimes.ChildBytes), ChildPackets: fewer(l.ChildPackets, r.Lifetimes.ChildPackets),
		}
	}
	if len(services) > 1 && l.Child != 0 && l.IKE != 0 {
		l.Child = min(l.Child, l.IKE)
	}
	return s, l
}

func shared(a, b []string) []string {
	var out []string
	for _, s := range a {
		if slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

// shorter returns the shorter of two; zero stands for the default, and is kept where both are.
func shorter(a, b policy.Duration, standard time.Duration) policy.Duration {
	if a == 0 && b == 0 {
		return 0
	}
	of := func(d policy.Duration) policy.Duration {
		if d == 0 {
			return policy.Duration(standard)
		}
		return d
	}
	return min(of(a), of(b))
}

// fewer returns the smaller of two limits; zero is none.
func fewer(a, b uint64) uint64 {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

func (b *builder) connections() {
	peers := make(map[string]bool)
	names := make(map[string]bool)
	for c := range b.r.ContractsOf(b.d.Name) {
		if !b.force(c) {
			continue
		}
		flows := c.Effective()
		if len(flows) == 0 {
			continue // the parties' own rules leave nothing
		}
		other, _ := c.Other(b.d.Name)
		peer := b.r.Device(c.Parties[other].Device)
		if !peers[peer.Name] {
			peers[peer.Name] = true
			b.doc.Peers = append(b.doc.Peers, policy.Peer{Name: peer.Name, Gateways: peer.Gateways, DeviceID: peer.Name, ESP: transport(b.d, peer), Moves: peer.Moves})
		}
		conn := policy.Connection{
			Name: c.Name, Peer: peer.Name, Service: c.Service, Start: c.Start, Idle: c.Idle,
			PPK: c.PPK, FirstChild: b.r.Service(c.Service).Rules.FirstChild,
		}
		if c.PPK != "" {
			conn.PPKID = c.Name // the same on both sides
		}
		if len(peer.Gateways) == 0 {
			conn.Start = policy.StartManual // only the peer can set it up
		}
		if b.trust != nil {
			conn.ServiceID = b.r.ServiceID(b.r.Membership(peer.Name, c.Service))
		}
		var at []int
		at, conn.Flows = b.flows(c, flows)
		b.contracts, b.flow = append(b.contracts, c), append(b.flow, at)
		b.doc.Connections = append(b.doc.Connections, conn)
		b.tests(c, names)
	}
	slices.SortFunc(b.doc.Peers, func(a, c policy.Peer) int { return strings.Compare(a.Name, c.Name) })
}

// transport is the same on both sides: native when one of the two asks for it.
func transport(a, b *registry.Device) string {
	if a.ESP == policy.ESPNative || b.ESP == policy.ESPNative {
		return policy.ESPNative
	}
	return ""
}

// flows writes a contract's flows from the device's side, by name, and where they come from.
func (b *builder) flows(c *registry.Contract, list []registry.Flow) (at []int, out []policy.FlowRule) {
	slices.SortFunc(list, func(a, c registry.Flow) int { return strings.Compare(a.Name, c.Name) })
	for i := range list {
		f := &list[i]
		rule := policy.FlowRule{Name: f.Name, From: sorted(f.Sources), To: sorted(f.Destinations), Protocol: f.Protocol, Direction: policy.DirectionIn}
		if f.From == b.d.Name {
			rule.Direction = policy.DirectionOut
		}
		ports := slices.Clone(f.Ports)
		slices.SortFunc(ports, func(a, b registry.Ports) int {
			if a.First != b.First {
				return int(a.First) - int(b.First)
			}
			return int(a.Last) - int(b.Last)
		})
		for _, p := range slices.Compact(ports) {
			rule.Ports = append(rule.Ports, p.String())
		}
		at = append(at, slices.IndexFunc(c.Flows, func(o registry.Flow) bool { return o.Name == f.Name }))
		out = append(out, rule)
	}
	return at, out
}

// tests adds the contract's, under names that are unique in the document.
func (b *builder) tests(c *registry.Contract, names map[string]bool) {
	for i := range c.Tests {
		t := &c.Tests[i]
		out := policy.Test{Name: testName(c.Name+"."+t.Name, names), From: t.From.String(), To: t.To.String(), Protocol: t.Protocol, Port: t.Port, Expect: t.Expect}
		if t.Expect == policy.ExpectAllow {
			out.Connection = c.Name
		}
		b.doc.Tests = append(b.doc.Tests, out)
		b.test = append(b.test, origin{c, i})
	}
}

// testName shortens a name where a policy has no room for it, and keeps it unique.
func testName(s string, names map[string]bool) string {
	for n := 0; len(s) > registry.MaxName || names[s]; n++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", s, n))
		s = s[:min(len(s), registry.MaxName-12)] + "-" + base64.RawURLEncoding.EncodeToString(sum[:8])
	}
	names[s] = true
	return s
}

func texts(list []netip.Prefix) []string {
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = p.String()
		if p.IsSingleIP() {
			out[i] = p.Addr().String()
		}
	}
	return out
}

func sorted(list []netip.Prefix) []string {
	list = slices.Clone(list)
	slices.SortFunc(list, netip.Prefix.Compare)
	return texts(list)
}
