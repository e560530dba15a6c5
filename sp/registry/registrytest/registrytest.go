// Package registrytest makes registries for tests: the hospital scenario, ones of any size, and
// random ones.
package registrytest

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/policy"
	"wardgate/sp/registry"
)

// At is the time at which the certificates of this package are valid.
var At = time.Date(2026, 4, 1, 12, 0, 0, 0, time.UTC)

var authority = sync.OnceValues(func() (*labca.Authority, error) {
	return labca.New(labca.Options{Kind: labca.Device, Name: "device", Domain: "devices.example", At: At.Add(-time.Hour)})
})

var issued struct {
	sync.Mutex
	by map[string]string
}

// DeviceCA is the authority that Certificate issues from.
func DeviceCA(t testing.TB) *labca.Authority {
	t.Helper()
	a, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Certificate returns the device certificate for a name below devices.example, in PEM; the same for
// the same name as long as the tests run.
func Certificate(name string) string {
	a, err := authority()
	if err != nil {
		panic(err)
	}
	issued.Lock()
	defer issued.Unlock()
	if p, ok := issued.by[name]; ok {
		return p
	}
	k, err := labca.NewKey(labca.P256)
	if err != nil {
		panic(err)
	}
	c, err := a.Issue(labca.Request{Public: k.Public(), DNSNames: []string{name}, At: At.Add(-time.Hour)})
	if err != nil {
		panic(err)
	}
	if issued.by == nil {
		issued.by = make(map[string]string)
	}
	issued.by[name] = string(certs.EncodePEM(c))
	return issued.by[name]
}

// Suites are what the services of this package allow.
func Suites() policy.Suites {
	return policy.Suites{
		IKE: []string{"aes256gcm16-prfsha384-x25519-mlkem768", "aes256gcm16-prfsha384-x25519", "aes256gcm16-prfsha384-ecp384", "aes128gcm16-prfsha256-ecp256"},
		ESP: []string{"aes256gcm16", "aes128gcm16"},
	}
}

// Prefixes reads addresses and prefixes.
func Prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		p, err := registry.ParsePrefix(s)
		if err != nil {
			panic(err)
		}
		out[i] = p
	}
	return out
}

// Hospital is the demonstration's registry: hospital A has a contract with clinic B (teleradiology)
// and one with imaging centre C, which maintains a scanner in A's HSZ; B and C have none.
func Hospital() registry.Content {
	const a, b, c = "a.devices.example", "b.devices.example", "c.devices.example"
	flow := func(name, from, src, dst, protocol string, ports ...registry.Ports) registry.Flow {
		return registry.Flow{Name: name, From: from, Sources: Prefixes(src), Destinations: Prefixes(dst), Protocol: protocol, Ports: ports}
	}
	zone := func(name, level, prefix string, dev string) registry.Zone {
		return registry.Zone{Name: name, Level: level, Prefixes: Prefixes(prefix), Interfaces: []string{dev}}
	}
	test := func(name, from, to, protocol string, port uint16, expect string) registry.Test {
		return registry.Test{Name: name, From: netip.MustParseAddr(from), To: netip.MustParseAddr(to), Protocol: protocol, Port: port, Expect: expect}
	}
	one := func(p uint16) registry.Ports { return registry.Ports{First: p, Last: p} }
	return registry.Content{
		Members: []registry.Member{
			{Name: "hospital-a", Title: "Hospital A", Contact: "it@hospital-a.example"},
			{Name: "clinic-b", Title: "Clinic B"},
			{Name: "centre-c", Title: "Imaging centre C"},
		},
		Devices: []registry.Device{
			{Name: a, Member: "hospital-a", Certificate: Certificate(a), Gateways: []string{"198.18.0.1"}, State: registry.Active, Zones: []registry.Zone{
				zone("hsz", policy.LevelHSZ, "10.1.1.0/24", "lan-hsz"), zone("sz", policy.LevelSZ, "10.1.2.0/24", "lan-sz"),
			}},
			{Name: b, Member: "clinic-b", Certificate: Certificate(b), Gateways: []string{"198.18.0.2"}, State: registry.Active, Zones: []registry.Zone{zone("sz", policy.LevelSZ, "10.2.1.0/24", "lan-sz")}},
			{Name: c, Member: "centre-c", Certificate: Certificate(c), Gateways: []string{"198.18.0.3"}, State: registry.Active, Zones: []registry.Zone{zone("sz", policy.LevelSZ, "10.3.1.0/24", "lan-sz")}},
		},
		Services: []registry.Service{
			{Name: "group-a", Title: "Teleradiology", Category: policy.CategoryInformation, Auth: policy.AuthCertificate, Domain: "group-a.example", Rules: registry.Rules{Suites: Suites()}},
			{
				Name: "group-b", Title: "Maintenance of scanners", Category: policy.CategoryMaintenance, Auth: policy.AuthCertificate, Domain: "group-b.example",
				Rules: registry.Rules{Suites: Suites(), Allow: []string{"tcp/22", "tcp/443", "udp/7007", "icmp"}},
			},
		},
		Memberships: []registry.Membership{
			{Device: a, Service: "group-a"},
			{Device: a, Service: "group-b"},
			{Device: b, Service: "group-a"},
			{Device: c, Service: "group-b"},
		},
		Contracts: []registry.Contract{
			{
				Name: "a-b", Title: "Studies from B to A's archive", Service: "group-a", Start: policy.StartOnDemand, Idle: policy.Duration(time.Minute),
				Parties: [2]registry.Party{{Device: a}, {Device: b}},
				Flows: []registry.Flow{
					flow("studies", b, "10.2.1.0/24", "10.1.2.10", "tcp", one(11112)),
					flow("probe", b, "10.2.1.0/24", "10.1.2.10", "udp", one(7007)),
					flow("ping", b, "10.2.1.0/24", "10.1.2.10", "icmp"),
					flow("ping-back", a, "10.1.2.10", "10.2.1.0/24", "icmp"),
				},
				Tests: []registry.Test{
					test("studies", "10.2.1.9", "10.1.2.10", "tcp", 11112, policy.ExpectAllow),
					test("no-shell", "10.2.1.9", "10.1.2.10", "tcp", 22, policy.ExpectDeny),
					test("not-the-scanner", "10.2.1.9", "10.1.1.10", "tcp", 11112, policy.ExpectDeny),
					test("no-relay", "10.2.1.9", "10.3.1.7", "tcp", 11112, policy.ExpectDeny),
				},
			},
			{
				Name: "a-c", Title: "C maintains A's scanner", Service: "group-b", Start: policy.StartOnDemand, Idle: policy.Duration(time.Minute),
				Parties: [2]registry.Party{{Device: a}, {Device: c}},
				Flows: []registry.Flow{
					flow("console", c, "10.3.1.7", "10.1.1.10", "tcp", one(22)),
					flow("reports", a, "10.1.1.10", "10.3.1.7", "tcp", one(443)),
					flow("probe", a, "10.1.1.10", "10.3.1.7", "udp", one(7007)),
					flow("ping", a, "10.1.1.10", "10.3.1.7", "icmp"),
				},
				Tests: []registry.Test{
					test("console", "10.3.1.7", "10.1.1.10", "tcp", 22, policy.ExpectAllow),
					test("not-the-archive", "10.3.1.7", "10.1.2.10", "tcp", 11112, policy.ExpectDeny),
				},
			},
		},
	}
}

// Star is a registry with a hub and n devices that have a contract with it, for benchmarks. All
// devices have the hub's key size of certificate but one key each costs time: certificates are
// kept while the tests run.
func Star(n int) registry.Content {
	c := registry.Content{
		Members:  []registry.Member{{Name: "hub", Title: "Hub"}},
		Services: []registry.Service{{Name: "images", Title: "Images", Category: policy.CategoryInformation, Domain: "images.example", Rules: registry.Rules{Suites: Suites()}}},
	}
	device := func(name, member string, prefix netip.Prefix, gateway netip.Addr) {
		c.Devices = append(c.Devices, registry.Device{
			Name: name, Member: member, Certificate: Certificate(name), Gateways: []string{gateway.String()}, State: registry.Active,
			Zones: []registry.Zone{{Name: "sz", Level: policy.LevelSZ, Prefixes: []netip.Prefix{prefix}, Interfaces: []string{"lan0"}}},
		})
		c.Memberships = append(c.Memberships, registry.Membership{Device: name, Service: "images"})
	}
	hub := netip.MustParsePrefix("172.16.0.0/24")
	device("hub.devices.example", "hub", hub, netip.MustParseAddr("192.0.2.1"))
	for i := range n {
		member := fmt.Sprintf("member-%d", i)
		name := member + ".devices.example"
		c.Members = append(c.Members, registry.Member{Name: member, Title: fmt.Sprintf("Member %d", i)})
		at := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		own := netip.PrefixFrom(at, 24)
		device(name, member, own, netip.AddrFrom4([4]byte{100, byte(64 + i>>16), byte(i >> 8), byte(i)}))
		c.Contracts = append(c.Contracts, registry.Contract{
			Name: "hub-" + member, Service: "images", Start: policy.StartOnDemand,
			Parties: [2]registry.Party{{Device: "hub.devices.example"}, {Device: name}},
			Flows: []registry.Flow{{
				Name: "store", From: name, Sources: []netip.Prefix{own}, Destinations: Prefixes("172.16.0.10"), Protocol: "tcp", Ports: []registry.Ports{{First: 104, Last: 104}, {First: 11112, Last: 11112}},
			}},
		})
	}
	return c
}

// Random draws a registry in which every object is sound by itself and most are sound together;
// registry.New and compile.Check say which.
func Random(t *rapid.T) registry.Content {
	var c registry.Content
	members := rapid.IntRange(1, 3).Draw(t, "members")
	for i := range members {
		c.Members = append(c.Members, registry.Member{Name: fmt.Sprintf("m%d", i), Title: fmt.Sprintf("Member %d", i)})
	}
	randomServices(t, &c)
	devices := rapid.IntRange(2, 5).Draw(t, "devices")
	for i := range devices {
		randomDevice(t, &c, i, members)
	}
	for i := range rapid.IntRange(4, 9).Draw(t, "contracts") {
		randomContract(t, &c, i)
	}
	return c
}

func randomServices(t *rapid.T, c *registry.Content) {
	categories := []string{policy.CategoryInformation, policy.CategoryStorageRelay, policy.CategoryMaintenance, policy.CategoryAuthentication}
	if rapid.Bool().Draw(t, "other categories") {
		categories = []string{policy.CategoryInformation, policy.CategoryProcessing, policy.CategoryInternet, policy.CategoryMaintenance}
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "services") {
		s := registry.Service{Name: fmt.Sprintf("s%d", i), Title: "Service", Category: rapid.SampledFrom(categories).Draw(t, "category"), Rules: registry.Rules{Suites: Suites()}}
		if rapid.IntRange(0, 3).Draw(t, "psk") == 3 {
			s.Auth = policy.AuthPSK
		} else {
			s.Auth, s.Domain = policy.AuthCertificate, s.Name+".example"
		}
		if rapid.Bool().Draw(t, "fewer suites") {
			s.Rules.Suites.IKE = s.Rules.Suites.IKE[i%2:]
			s.Rules.Lifetimes.IKE = policy.Duration(time.Duration(i+1) * time.Hour)
		}
		if rapid.IntRange(0, 3).Draw(t, "uniform rule") == 3 {
			s.Rules.Allow = []string{"tcp/1-40000", "udp", "icmp", "icmpv6"}
		}
		c.Services = append(c.Services, s)
	}
}

// instants are where memberships and contracts begin and end.
var instants = []time.Time{{}, At.Add(-24 * time.Hour), At, At.Add(24 * time.Hour), At.Add(48 * time.Hour)}

func randomTimes(t *rapid.T) (from, until time.Time) {
	if rapid.IntRange(0, 4).Draw(t, "limited") < 4 {
		return from, until
	}
	i := rapid.IntRange(0, 3).Draw(t, "from")
	from = instants[i]
	if j := rapid.IntRange(i, 4).Draw(t, "until"); j > i {
		until = instants[j]
	}
	return from, until
}

func randomDevice(t *rapid.T, c *registry.Content, i, members int) {
	name := fmt.Sprintf("d%d.devices.example", i)
	d := registry.Device{Name: name, Member: fmt.Sprintf("m%d", rapid.IntRange(0, members-1).Draw(t, "member")), Certificate: Certificate(name), State: registry.Active}
	if rapid.IntRange(0, 5).Draw(t, "behind NAT") < 5 {
		d.Gateways = []string{fmt.Sprintf("192.0.2.%d", i+1)}
	}
	if rapid.IntRange(0, 9).Draw(t, "state") == 9 {
		d.State = rapid.SampledFrom([]registry.State{registry.Suspended, registry.Revoked}).Draw(t, "not active")
	}
	if rapid.IntRange(0, 4).Draw(t, "native") == 0 {
		d.ESP = policy.ESPNative
	}
	if d.Moves = rapid.SampledFrom([]string{"", "", policy.MovesNever, policy.MovesAnywhere, policy.MovesNamed}).Draw(t, "moves"); len(d.Gateways) == 0 && d.Moves == policy.MovesNamed {
		d.Moves = ""
	}
	levels := []string{policy.LevelDMZ, policy.LevelSZ, policy.LevelHSZ}
	for z := range rapid.IntRange(1, 3).Draw(t, "zones") {
		net := 10 * i
		if rapid.IntRange(0, 19).Draw(t, "collides") == 19 {
			net = 0
		}
		d.Zones = append(d.Zones, registry.Zone{
			Name: fmt.Sprintf("z%d", z), Level: rapid.SampledFrom(levels).Draw(t, "level"),
			Prefixes: Prefixes(fmt.Sprintf("10.%d.%d.0/24", net, z), fmt.Sprintf("fd00:%x:%d::/64", net+1, z)), Interfaces: []string{fmt.Sprintf("lan%d", z)},
		})
	}
	c.Devices = append(c.Devices, d)
	for j := range c.Services {
		if rapid.IntRange(0, 7).Draw(t, "joins") < 7 {
			m := registry.Membership{Device: name, Service: c.Services[j].Name}
			m.From, m.Until = randomTimes(t)
			if c.Services[j].Auth != policy.AuthPSK && rapid.IntRange(0, 3).Draw(t, "own id") == 0 {
				m.ID = fmt.Sprintf("site-%d.%s", i, c.Services[j].Domain)
			}
			c.Memberships = append(c.Memberships, m)
		}
	}
}

func randomContract(t *rapid.T, c *registry.Content, i int) {
	a := rapid.IntRange(0, len(c.Devices)-1).Draw(t, "party 0")
	b := (a + rapid.IntRange(1, len(c.Devices)-1).Draw(t, "party 1")) % len(c.Devices)
	// Mostly a service that both have joined.
	var both []string
	for _, s := range c.Services {
		n := 0
		for _, m := range c.Memberships {
			if m.Service == s.Name && (m.Device == c.Devices[a].Name || m.Device == c.Devices[b].Name) {
				n++
			}
		}
		if n == 2 {
			both = append(both, s.Name)
		}
	}
	if len(both) == 0 || len(c.Devices[a].Gateways)+len(c.Devices[b].Gateways) == 0 {
		return
	}
	k := registry.Contract{Name: fmt.Sprintf("c%d", i), Service: rapid.SampledFrom(both).Draw(t, "service"), Parties: [2]registry.Party{{Device: c.Devices[a].Name}, {Device: c.Devices[b].Name}}}
	k.From, k.Until = randomTimes(t)
	k.Start = rapid.SampledFrom([]string{policy.StartOnDemand, policy.StartManual, policy.StartAlways}).Draw(t, "start")
	if k.Start != policy.StartAlways && rapid.Bool().Draw(t, "idle") {
		k.Idle = policy.Duration(time.Minute)
	}
	category := ""
	for _, s := range c.Services {
		if s.Name == k.Service {
			category = s.Category
		}
	}
	for j := range rapid.IntRange(1, 4).Draw(t, "flows") {
		if f, ok := randomFlow(t, c, a, b, category, i, j); ok {
			k.Flows = append(k.Flows, f)
		}
	}
	if len(k.Flows) == 0 {
		return
	}
	for p := range k.Parties {
		randomNarrow(t, &k, p)
	}
	c.Contracts = append(c.Contracts, k)
}

// usable are zones that a category may reach; sometimes any.
func usable(t *rapid.T, d *registry.Device, category string) []registry.Zone {
	wild := rapid.IntRange(0, 39).Draw(t, "any zone") == 39
	var out []registry.Zone
	for _, z := range d.Zones {
		if wild || category == policy.CategoryMaintenance || z.Level == policy.LevelDMZ || z.Level == policy.LevelSZ && category != policy.CategoryInternet {
			out = append(out, z)
		}
	}
	return out
}

func randomFlow(t *rapid.T, c *registry.Content, a, b int, category string, contract, n int) (f registry.Flow, ok bool) {
	if rapid.Bool().Draw(t, "other way") {
		a, b = b, a
	}
	from, to := usable(t, &c.Devices[a], category), usable(t, &c.Devices[b], category)
	if len(from) == 0 || len(to) == 0 {
		return f, false
	}
	v6 := rapid.IntRange(0, 3).Draw(t, "IPv6") == 0
	f = registry.Flow{Name: fmt.Sprintf("f%d", n), From: c.Devices[a].Name}
	side := func(zones []registry.Zone) []netip.Prefix {
		z := rapid.SampledFrom(zones).Draw(t, "zone")
		p := z.Prefixes[0]
		if v6 {
			p = z.Prefixes[1]
		}
		if category != policy.CategoryMaintenance && rapid.Bool().Draw(t, "network") {
			return []netip.Prefix{p}
		}
		var out []netip.Prefix
		for range rapid.IntRange(1, 2).Draw(t, "hosts") {
			raw := p.Addr().AsSlice()
			raw[len(raw)-1] = byte(rapid.IntRange(1, 6).Draw(t, "host") + 6*len(out))
			h, _ := netip.AddrFromSlice(raw)
			out = append(out, netip.PrefixFrom(h, h.BitLen()))
		}
		return out
	}
	f.Sources, f.Destinations = side(from), side(to)
	f.Protocol = rapid.SampledFrom([]string{"tcp", "tcp", "udp", "icmp", "132", "89"}).Draw(t, "protocol")
	switch f.Protocol {
	case "icmp":
		if v6 {
			f.Protocol = "icmpv6"
		}
		// One contract of a pair only: echo has no ports to tell two apart.
		if contract%3 != 0 || n > 0 {
			f.Protocol, f.Ports = "tcp", []registry.Ports{{First: uint16(1000*contract + n + 1), Last: uint16(1000*contract + n + 1)}}
		}
	case "89":
		if contract%3 != 1 {
			f.Protocol, f.Ports = "udp", []registry.Ports{{First: uint16(1000*contract + n + 1), Last: uint16(1000*contract + n + 1)}}
		}
	default:
		for range rapid.IntRange(1, 2).Draw(t, "ports") {
			first := uint16(1000*contract + 1 + rapid.IntRange(0, 30).Draw(t, "first"))
			f.Ports = append(f.Ports, registry.Ports{First: first, Last: first + uint16(rapid.IntRange(0, 9).Draw(t, "more"))})
		}
	}
	return f, true
}

func randomNarrow(t *rapid.T, k *registry.Contract, party int) {
	p := &k.Parties[party]
	if rapid.IntRange(0, 5).Draw(t, "hosts") == 5 {
		f := rapid.SampledFrom(k.Flows).Draw(t, "whose hosts")
		list := f.Destinations
		if f.From == p.Device {
			list = f.Sources
		}
		p.Hosts = part(t, list)
	}
	for i := range k.Flows {
		f := &k.Flows[i]
		if rapid.IntRange(0, 3).Draw(t, "narrow") < 3 {
			continue
		}
		n := registry.Narrow{Flow: f.Name}
		switch rapid.IntRange(0, 3).Draw(t, "how") {
		case 3:
			n.Off = true
		case 1:
			n.Sources = part(t, f.Sources)
		case 2:
			n.Destinations = part(t, f.Destinations)
		case 0:
			if len(f.Ports) == 0 {
				continue
			}
			r := rapid.SampledFrom(f.Ports).Draw(t, "range")
			n.Ports = []registry.Ports{{First: r.First + (r.Last-r.First)/2, Last: r.Last}}
		}
		p.Narrow = append(p.Narrow, n)
	}
}

// part takes one of the prefixes, or the half of it.
func part(t *rapid.T, list []netip.Prefix) []netip.Prefix {
	p := rapid.SampledFrom(list).Draw(t, "part")
	if !p.IsSingleIP() && rapid.Bool().Draw(t, "half") {
		p = netip.PrefixFrom(p.Addr(), p.Bits()+1)
	}
	return []netip.Prefix{p}
}
