package compile_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pgregory.net/rapid"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/policy"
	"wardgate/sp/compile"
	"wardgate/sp/registry"
	"wardgate/sp/registry/registrytest"
)

var update = flag.Bool("update", false, "write the golden files anew")

var at = registrytest.At

// newRegistry makes a registry that must be sound.
func newRegistry(t testing.TB, c registry.Content) *registry.Registry {
	t.Helper()
	r, err := registry.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// trust makes a CA or key for each service.
func trust(t testing.TB, c registry.Content) compile.Trust {
	t.Helper()
	out := compile.Trust{DeviceAnchors: []string{string(certs.EncodePEM(registrytest.DeviceCA(t).Anchor()))}, Services: map[string]compile.ServiceTrust{}}
	for _, s := range c.Services {
		if s.Auth == policy.AuthPSK {
			out.Services[s.Name] = compile.ServiceTrust{PSK: policy.NewSecret(bytes.Repeat([]byte(s.Name[:1]), 32))}
			continue
		}
		a, err := labca.New(labca.Options{Kind: labca.Service, Name: s.Name, Domain: s.Domain, At: at.Add(-time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		out.Services[s.Name] = compile.ServiceTrust{Anchors: []string{string(certs.EncodePEM(a.Anchor()))}}
	}
	return out
}

func input(t testing.TB, c registry.Content) *compile.Input {
	return &compile.Input{Registry: newRegistry(t, c), Trust: trust(t, c), Issuer: "sp.example", Now: at}
}

func device(t testing.TB, in *compile.Input, name string) *compile.Policy {
	t.Helper()
	p, err := in.Device(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return p
}

func document(t testing.TB, in *compile.Input, name string) *policy.Document {
	t.Helper()
	return device(t, in, name).Document(1, at, at.Add(time.Hour))
}

// TestGolden compares the policies of the demonstration, made of files, with files.
func TestGolden(t *testing.T) {
	r, err := registry.Load(os.DirFS(filepath.Join("..", "registry", "testdata", "hospital")))
	if err != nil {
		t.Fatal(err)
	}
	if err := compile.Check(r); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	in := &compile.Input{Registry: r, Issuer: "sp.example", Now: at, Trust: compile.Trust{
		DeviceAnchors: []string{read("device-ca.pem")},
		Services:      map[string]compile.ServiceTrust{"group-a": {Anchors: []string{read("group-a-ca.pem")}}, "group-b": {Anchors: []string{read("group-b-ca.pem")}}},
	}}
	n := 0
	for p, err := range in.All() {
		if err != nil {
			t.Fatal(err)
		}
		n++
		got, err := json.MarshalIndent(p.Document(12, at, at.Add(30*24*time.Hour)), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		name := p.Device + ".json"
		if *update {
			if err := os.WriteFile(filepath.Join("testdata", name), got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(read(name), string(got)); diff != "" {
			t.Errorf("%s (-want +got; -update writes it anew):\n%s", name, diff)
		}
		if _, err := policy.Compile(p.Document(12, at, at.Add(time.Hour))); err != nil {
			t.Error(err)
		}
	}
	if n != 3 {
		t.Errorf("%d policies, want 3", n)
	}
}

// TestMove: clinic B goes from one group to the other; it then reaches C and no longer A, and only
// who is concerned gets another policy.
func TestMove(t *testing.T) {
	c := registrytest.Hospital()
	in := input(t, c)
	after := registrytest.Hospital()
	for i := range after.Memberships {
		if after.Memberships[i].Device == "b.devices.example" {
			after.Memberships[i].Service = "group-b"
		}
	}
	k := &after.Contracts[0]
	k.Name, k.Service, k.Parties[0].Device, k.Tests = "b-c", "group-b", "c.devices.example", nil
	k.Flows = k.Flows[:1]
	k.Flows[0].Sources, k.Flows[0].Destinations = registrytest.Prefixes("10.2.1.9"), registrytest.Prefixes("10.3.1.7")
	k.Flows[0].Ports = []registry.Ports{{First: 443, Last: 443}}
	next := *in
	next.Registry = newRegistry(t, after)
	if err := compile.Check(next.Registry); err != nil {
		t.Fatal(err)
	}
	names := func(d *policy.Document) (out []string) {
		for _, c := range d.Connections {
			out = append(out, c.Name+" to "+c.Peer)
		}
		return out
	}
	for _, w := range []struct {
		device       string
		before, then []string
	}{
		{"a.devices.example", []string{"a-b to b.devices.example", "a-c to c.devices.example"}, []string{"a-c to c.devices.example"}},
		{"b.devices.example", []string{"a-b to a.devices.example"}, []string{"b-c to c.devices.example"}},
		{"c.devices.example", []string{"a-c to a.devices.example"}, []string{"a-c to a.devices.example", "b-c to b.devices.example"}},
	} {
		if diff := cmp.Diff(w.before, names(document(t, in, w.device))); diff != "" {
			t.Error(w.device, "before", diff)
		}
		if diff := cmp.Diff(w.then, names(document(t, &next, w.device))); diff != "" {
			t.Error(w.device, "after", diff)
		}
	}
	if got := compile.Affected(in.Registry, next.Registry); len(got) != 3 {
		t.Errorf("affected: %v", got)
	}
}

func edit(f func(c *registry.Content)) registry.Content {
	c := registrytest.Hospital()
	f(&c)
	return c
}

// TestState: who is suspended or revoked has no connections, and neither have the peers with it.
func TestState(t *testing.T) {
	for _, s := range []registry.State{registry.Suspended, registry.Revoked} {
		in := input(t, edit(func(c *registry.Content) { c.Devices[1].State = s }))
		if d := document(t, in, "a.devices.example"); len(d.Connections) != 1 || d.Connections[0].Name != "a-c" || len(d.Peers) != 1 {
			t.Errorf("%s: A has %v", s, d.Connections)
		}
		p, err := in.Device("b.devices.example")
		switch {
		case s == registry.Revoked && !errors.Is(err, compile.ErrRevoked):
			t.Errorf("revoked: got %v", err)
		case s == registry.Suspended && err != nil:
			t.Error(err)
		case s == registry.Suspended:
			if d := p.Document(1, at, at.Add(1)); len(d.Connections)+len(d.Peers)+len(d.Services) != 0 {
				t.Errorf("suspended: it has %v", d)
			}
		}
		n := 0
		for _, err := range in.All() {
			if err != nil {
				t.Error(err)
			}
			n++
		}
		if want := map[registry.State]int{registry.Suspended: 3, registry.Revoked: 2}[s]; n != want {
			t.Errorf("%s: %d policies, want %d", s, n, want)
		}
	}
}

// TestTimes: a contract is in force from its first instant to the one before its end, and so is a
// membership.
func TestTimes(t *testing.T) {
	from, until := at, at.Add(24*time.Hour)
	for _, c := range []registry.Content{
		edit(func(c *registry.Content) { c.Contracts[0].From, c.Contracts[0].Until = from, until }),
		edit(func(c *registry.Content) { c.Memberships[2].From, c.Memberships[2].Until = from, until }),
		edit(func(c *registry.Content) { c.Memberships[0].From, c.Contracts[0].Until = from, until }),
	} {
		in := input(t, c)
		for _, w := range []struct {
			at   time.Time
			want int
		}{{from.Add(-1), 1}, {from, 2}, {until.Add(-1), 2}, {until, 1}} {
			in.Now = w.at
			if d := document(t, in, "a.devices.example"); len(d.Connections) != w.want {
				t.Errorf("at %v: %d connections, want %d", w.at, len(d.Connections), w.want)
			}
		}
		if got := compile.Due(in.Registry, from.Add(-time.Hour), from); !slices.Contains(got, "a.devices.example") || !slices.Contains(got, "b.devices.example") {
			t.Errorf("due when it begins: %v", got)
		}
		if got := compile.Due(in.Registry, from, until.Add(-1)); len(got) != 0 {
			t.Errorf("due while nothing changes: %v", got)
		}
		if next, ok := in.Registry.NextChange(from.Add(-1)); !ok || !next.Equal(from) {
			t.Errorf("next change: %v", next)
		}
		if next, ok := in.Registry.NextChange(from); !ok || !next.Equal(until) {
			t.Errorf("next change: %v", next)
		}
		if _, ok := in.Registry.NextChange(until); ok {
			t.Error("a change after the last")
		}
	}
}

// TestUniform: of several services' rules the device gets what all allow, and the shortest.
func TestUniform(t *testing.T) {
	in := input(t, edit(func(c *registry.Content) {
		a, b := &c.Services[0].Rules, &c.Services[1].Rules
		a.Suites.IKE = []string{"aes256gcm16-prfsha384-ecp384", "aes256gcm16-prfsha384-x25519"}
		a.Lifetimes = policy.Lifetimes{IKE: policy.Duration(24 * time.Hour), ChildBytes: 1 << 30, Liveness: policy.Duration(time.Minute)}
		b.Lifetimes = policy.Lifetimes{Child: policy.Duration(30 * time.Minute), ChildBytes: 1 << 40}
	}))
	d := document(t, in, "a.devices.example")
	if diff := cmp.Diff([]string{"aes256gcm16-prfsha384-ecp384", "aes256gcm16-prfsha384-x25519"}, d.Suites.IKE); diff != "" {
		t.Error(diff)
	}
	want := policy.Lifetimes{IKE: policy.Duration(8 * time.Hour), Child: policy.Duration(30 * time.Minute), ChildBytes: 1 << 30, Liveness: policy.Duration(30 * time.Second)}
	if diff := cmp.Diff(want, d.Lifetimes); diff != "" {
		t.Error(diff)
	}
	if d := document(t, in, "c.devices.example"); d.Lifetimes.Child != policy.Duration(30*time.Minute) || len(d.Suites.IKE) != len(registrytest.Suites().IKE) {
		t.Errorf("C, in group-b alone: %v, %v", d.Lifetimes, d.Suites)
	}
}

// TestKeysAndAddresses: what registry says of revocation, keys and addresses that move reaches the
// policies of both sides.
func TestKeysAndAddresses(t *testing.T) {
	in := input(t, edit(func(c *registry.Content) {
		c.Services[0].Rules.Revocation = policy.RevocationRequired // of A and B; A has joined the other one, too
		c.Services[0].Rules.FirstChild = policy.FirstChildOwn
		c.Contracts[0].PPK = policy.PPKRequired
		for i := range c.Devices {
			if c.Devices[i].Name == "b.devices.example" {
				c.Devices[i].Moves = policy.MovesAnywhere
			}
		}
	}))
	connection := func(d *policy.Document, name string) policy.Connection {
		i := slices.IndexFunc(d.Connections, func(c policy.Connection) bool { return c.Name == name })
		if i < 0 {
			t.Fatalf("%s has no connection %s", d.Device.ID, name)
		}
		return d.Connections[i]
	}
	a, b, c := document(t, in, "a.devices.example"), document(t, in, "b.devices.example"), document(t, in, "c.devices.example")
	for _, d := range []*policy.Document{a, b} {
		k := connection(d, "a-b")
		if d.Revocation != policy.RevocationRequired || k.PPK != policy.PPKRequired || k.PPKID != "a-b" || k.FirstChild != policy.FirstChildOwn {
			t.Errorf("%s: revocation %q, connection %+v", d.Device.ID, d.Revocation, k)
		}
	}
	if k := connection(a, "a-c"); k.PPK != "" || k.PPKID != "" || k.FirstChild != "" || c.Revocation != "" {
		t.Errorf("the other service: revocation of C %q, connection %+v", c.Revocation, k)
	}
	for _, p := range append(a.Peers, b.Peers...) {
		if want := map[bool]string{true: policy.MovesAnywhere}[p.Name == "b.devices.example"]; p.Moves != want {
			t.Errorf("%s moves %q; want %q", p.Name, p.Moves, want)
		}
	}
}

// TestNarrow: what a party takes away is away on both sides.
func TestNarrow(t *testing.T) {
	in := input(t, edit(func(c *registry.Content) {
		c.Contracts[0].Parties[0].Narrow = []registry.Narrow{{Flow: "ping", Off: true}, {Flow: "studies", Sources: registrytest.Prefixes("10.2.1.0/28")}}
		c.Contracts[0].Parties[1].Hosts = registrytest.Prefixes("10.2.1.9", "10.2.1.200")
	}))
	for _, w := range []struct{ device, studies string }{{"a.devices.example", policy.DirectionIn}, {"b.devices.example", policy.DirectionOut}} {
		conn := document(t, in, w.device).Connections[0]
		want := []policy.FlowRule{
			{Name: "ping-back", From: []string{"10.1.2.10"}, To: []string{"10.2.1.9", "10.2.1.200"}, Protocol: "icmp", Direction: map[string]string{"in": "out", "out": "in"}[w.studies]},
			{Name: "probe", From: []string{"10.2.1.9", "10.2.1.200"}, To: []string{"10.1.2.10"}, Protocol: "udp", Ports: []string{"7007"}, Direction: w.studies},
			{Name: "studies", From: []string{"10.2.1.9"}, To: []string{"10.1.2.10"}, Protocol: "tcp", Ports: []string{"11112"}, Direction: w.studies},
		}
		if diff := cmp.Diff(want, conn.Flows); diff != "" {
			t.Error(w.device, diff)
		}
	}
	in = input(t, edit(func(c *registry.Content) {
		c.Contracts[0].Tests = nil
		c.Contracts[0].Parties[1].Hosts = registrytest.Prefixes("10.2.2.9")
	}))
	for _, name := range []string{"a.devices.example", "b.devices.example"} {
		if d := document(t, in, name); slices.ContainsFunc(d.Connections, func(c policy.Connection) bool { return c.Name == "a-b" }) {
			t.Errorf("%s has a connection of which nothing is left", name)
		}
	}
}

// TestNarrowFamilies: when a party's rule leaves one end without IPv6, the other end's goes too: an
// address without a counterpart would make the policy invalid.
func TestNarrowFamilies(t *testing.T) {
	in := input(t, edit(func(c *registry.Content) {
		c.Devices[0].Zones[1].Prefixes = registrytest.Prefixes("10.1.2.0/24", "fd01:2::/64")
		c.Devices[1].Zones[0].Prefixes = registrytest.Prefixes("10.2.1.0/24", "fd02:1::/64")
		f := &c.Contracts[0].Flows[0]
		f.Sources, f.Destinations = c.Devices[1].Zones[0].Prefixes, registrytest.Prefixes("10.1.2.10", "fd01:2::10")
		c.Contracts[0].Parties[0].Narrow = []registry.Narrow{{Flow: "studies", Destinations: registrytest.Prefixes("10.1.2.10")}}
	}))
	for _, name := range []string{"a.devices.example", "b.devices.example"} {
		flows := document(t, in, name).Connections[0].Flows
		f := flows[len(flows)-1]
		if !slices.Equal(f.From, []string{"10.2.1.0/24"}) || !slices.Equal(f.To, []string{"10.1.2.10"}) {
			t.Errorf("%s: %v", name, f)
		}
	}
}

// TestTransport: gateways and ESP from both sides.
func TestTransport(t *testing.T) {
	in := input(t, edit(func(c *registry.Content) {
		c.Devices[1].Gateways = nil
		c.Devices[2].ESP = policy.ESPNative
	}))
	a, b, c := document(t, in, "a.devices.example"), document(t, in, "b.devices.example"), document(t, in, "c.devices.example")
	if a.Connections[0].Start != policy.StartManual || b.Connections[0].Start != policy.StartOnDemand {
		t.Errorf("who has no gateway sets up the connection: A %s, B %s", a.Connections[0].Start, b.Connections[0].Start)
	}
	if a.Peers[0].ESP != "" || a.Peers[1].ESP != policy.ESPNative || c.Peers[0].ESP != policy.ESPNative {
		t.Errorf("ESP: %v, %v", a.Peers, c.Peers)
	}
}

// TestHash: the same content gives the same hash whatever its order, serial and validity are not in
// it, and everything else is.
func TestHash(t *testing.T) {
	in := input(t, registrytest.Hospital())
	want := hashOf(t, device(t, in, "a.devices.example"))
	mixed := registrytest.Hospital()
	slices.Reverse(mixed.Devices)
	slices.Reverse(mixed.Contracts)
	slices.Reverse(mixed.Memberships)
	for i := range mixed.Contracts {
		slices.Reverse(mixed.Contracts[i].Flows)
	}
	for i := range mixed.Devices {
		slices.Reverse(mixed.Devices[i].Zones)
	}
	other := *in
	other.Registry = newRegistry(t, mixed)
	other.Now = at.Add(time.Hour)
	if got := hashOf(t, device(t, &other, "a.devices.example")); got != want {
		t.Errorf("another order gives another hash: %v, %v", got, want)
	}
	other = *in
	other.Trust.DeviceAnchors = nil
	if _, err := other.Device("a.devices.example"); !errors.Is(err, compile.ErrTrust) {
		t.Errorf("without the device CA: %v", err)
	}
	other = *in
	other.Issuer = "sp2.example"
	if got := hashOf(t, device(t, &other, "a.devices.example")); got == want {
		t.Error("another issuer gives the same hash")
	}
	other = *in
	other.Trust = trust(t, registrytest.Hospital())
	if got := hashOf(t, device(t, &other, "a.devices.example")); got == want {
		t.Error("another CA gives the same hash")
	}
}

func TestTrust(t *testing.T) {
	c := registrytest.Hospital()
	c.Services[0].Auth, c.Services[0].Domain = policy.AuthPSK, ""
	in := input(t, c)
	d := document(t, in, "b.devices.example")
	if d.Services[0].PSK.Len() != 32 || d.Connections[0].ServiceID != "" {
		t.Errorf("service with a pre-shared key: %v", d.Connections[0])
	}
	in.Trust.Services = nil
	if _, err := in.Device("b.devices.example"); !errors.Is(err, compile.ErrTrust) || !strings.Contains(err.Error(), "group-a") {
		t.Errorf("got %v", err)
	}
	if _, err := in.Device("x.devices.example"); !errors.Is(err, compile.ErrNoDevice) {
		t.Errorf("got %v", err)
	}
}

// TestCheck: what only a whole policy shows is found before anything is signed, and named as the
// registry's object that is to be changed.
func TestCheck(t *testing.T) {
	// again makes contract 0 a second time under another name.
	again := func(c *registry.Content) *registry.Contract {
		k := c.Contracts[0]
		k.Name, k.Flows, k.Tests = "a-b-2", slices.Clone(k.Flows), nil
		c.Contracts = append(c.Contracts, k)
		return &c.Contracts[len(c.Contracts)-1]
	}
	for _, w := range []struct {
		name  string
		edit  func(c *registry.Content)
		rule  string
		place registry.Place
		text  string
	}{
		{"weak algorithm", func(c *registry.Content) { c.Services[1].Rules.Suites.ESP = []string{"aes256gcm16", "3des-sha1"} }, compile.RulePolicy, registry.Place{Kind: "service", Name: "group-b", Path: "rules.suites.esp[1]"}, "SHA-1"},
		{"lifetime", func(c *registry.Content) { c.Services[1].Rules.Lifetimes.IKE = policy.Duration(48 * time.Hour) }, compile.RulePolicy, registry.Place{Kind: "service", Name: "group-b", Path: "rules.lifetimes.ike"}, "24h"},
		{"no common algorithm of services", func(c *registry.Content) {
			c.Services[1].Rules.Suites.ESP = []string{"chacha20poly1305"}
		}, compile.RuleSuites, registry.Place{Kind: "device", Name: "a.devices.example", Path: "membership"}, "group-a, group-b"},
		{"interface", func(c *registry.Content) { c.Devices[1].Zones[0].Interfaces = []string{"a/b"} }, compile.RulePolicy, registry.Place{Kind: "device", Name: "b.devices.example", Path: "zone[0].interfaces[0]"}, "network interface"},
		{"one interface for two levels", func(c *registry.Content) { c.Devices[0].Zones[1].Interfaces = []string{"lan-hsz"} }, compile.RulePolicy, registry.Place{Kind: "device", Name: "a.devices.example", Path: "zone[1].interfaces[0]"}, "HSZ"},
		{"no hosts", func(c *registry.Content) {
			c.Devices[1].Zones[0].Prefixes = registrytest.Prefixes("10.2.1.0/24", "127.0.0.0/8")
		}, compile.RulePolicy, registry.Place{Kind: "device", Name: "b.devices.example", Path: "zone[0].prefixes[1]"}, "loopback"},
		{"gateway behind the tunnel", func(c *registry.Content) { c.Devices[1].Gateways = []string{"10.2.1.1"} }, compile.RulePolicy, registry.Place{Kind: "device", Name: "b.devices.example", Path: "gateways[0]"}, "tunnel"},
		{"flow of two contracts", func(c *registry.Content) { k := again(c); k.Flows = k.Flows[1:2] }, compile.RulePolicy, registry.Place{Kind: "contract", Name: "a-b-2", Path: "flow[0]"}, "a-b"},
		{"test against another contract", func(c *registry.Content) {
			k := again(c)
			k.Flows = k.Flows[:1]
			k.Flows[0].Ports = []registry.Ports{{First: 22, Last: 22}}
		}, compile.RuleTests, registry.Place{Kind: "contract", Name: "a-b", Path: "test[1]"}, "a-b-2"},
		{"addresses of two peers", func(c *registry.Content) {
			c.Devices[2].Zones = append(c.Devices[2].Zones, registry.Zone{Name: "sz2", Level: policy.LevelSZ, Prefixes: registrytest.Prefixes("10.2.1.0/24"), Interfaces: []string{"lan1"}})
			k := again(c)
			c.Memberships = append(c.Memberships, registry.Membership{Device: "c.devices.example", Service: "group-a"})
			k.Parties[1].Device = "c.devices.example"
			k.Flows = k.Flows[:1]
			k.Flows[0].From = "c.devices.example"
			k.Flows[0].Ports = []registry.Ports{{First: 1, Last: 1}}
		}, compile.RulePolicy, registry.Place{Kind: "contract", Name: "a-b-2", Path: "remote"}, "peer"},
		{"combined use", func(c *registry.Content) {
			c.Services = append(c.Services, registry.Service{Name: "asp", Title: "ASP", Category: policy.CategoryProcessing, Domain: "asp.example", Rules: registry.Rules{Suites: registrytest.Suites()}})
			c.Services[0].Category = policy.CategoryStorageRelay
			k := again(c)
			k.Service, k.Flows = "asp", k.Flows[:1]
			k.Flows[0].Ports = []registry.Ports{{First: 1, Last: 1}}
			for _, d := range []string{"a.devices.example", "b.devices.example"} {
				c.Memberships = append(c.Memberships, registry.Membership{Device: d, Service: "asp"})
			}
		}, compile.RulePolicy, registry.Place{Kind: "contract", Name: "a-b-2", Path: "flow[0]"}, "annex C"},
	} {
		t.Run(w.name, func(t *testing.T) {
			r := newRegistry(t, edit(w.edit))
			err := compile.Check(r)
			e, ok := errors.AsType[*registry.Error](err)
			if !ok || !errors.Is(err, registry.ErrRefused) {
				t.Fatalf("got %v", err)
			}
			for _, f := range e.Faults {
				if f.Rule == w.rule && f.Place == w.place && strings.Contains(f.Error(), w.text) {
					return
				}
			}
			t.Errorf("no fault of rule %s at %v with %q in:\n%v", w.rule, w.place, w.text, err)
		})
	}
	if err := compile.Check(newRegistry(t, registrytest.Hospital())); err != nil {
		t.Error(err)
	}
	if err := compile.Check(newRegistry(t, registrytest.Hospital()), "x.devices.example"); err == nil {
		t.Error("a device that is not there is checked")
	}
}

// TestCheckSuccession: contracts that exclude each other may follow each other.
func TestCheckSuccession(t *testing.T) {
	c := registrytest.Hospital()
	k := c.Contracts[0]
	k.Name, k.From = "a-b-2027", at
	k.Tests = nil
	c.Contracts = append(c.Contracts, k)
	if err := compile.Check(newRegistry(t, c)); err == nil {
		t.Fatal("two contracts for the same flows at the same time")
	}
	c.Contracts[0].Until = at
	if err := compile.Check(newRegistry(t, c)); err != nil {
		t.Error(err)
	}
	c.Contracts[0].Until = at.Add(time.Second)
	if err := compile.Check(newRegistry(t, c)); err == nil {
		t.Error("a second in which both are in force")
	}
}

// TestLongTestNames: names that a policy has no room for are shortened and stay unique.
func TestLongTestNames(t *testing.T) {
	c := registrytest.Hospital()
	long := strings.Repeat("x", 60)
	first := c.Contracts[0].Tests[0]
	c.Contracts[0].Tests = nil
	for _, s := range []string{"a", "b"} {
		first.Name = long + s
		c.Contracts[0].Tests = append(c.Contracts[0].Tests, first)
	}
	d := document(t, input(t, c), "a.devices.example")
	if a, b := d.Tests[0].Name, d.Tests[1].Name; a == b || len(a) > registry.MaxName || !strings.HasPrefix(a, "a-b.xxx") {
		t.Errorf("names %q and %q", a, b)
	}
}

func hashOf(t rapid.TB, p *compile.Policy) policy.Digest {
	t.Helper()
	h, err := p.Hash()
	if err != nil {
		t.Fatalf("hash: %v", err)
	}
	return h
}
