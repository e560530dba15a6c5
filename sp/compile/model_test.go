package compile_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"wardgate/policy"
	"wardgate/sp/compile"
	"wardgate/sp/registry"
	"wardgate/sp/registry/registrytest"
)

// model says slowly what contracts allow, packet by packet. It shares no code with package compile.
type model struct {
	c   registry.Content
	now time.Time
}

func (m model) device(name string) registry.Device {
	for _, d := range m.c.Devices {
		if d.Name == name {
			return d
		}
	}
	panic(name)
}

func (m model) during(from, until time.Time) bool {
	return !m.now.Before(from) && (until.IsZero() || m.now.Before(until))
}

// force: the contract, both devices and both memberships.
func (m model) force(k registry.Contract) bool {
	joined := 0
	for _, p := range k.Parties {
		for _, j := range m.c.Memberships {
			if j.Device == p.Device && j.Service == k.Service && m.during(j.From, j.Until) && m.device(p.Device).State == registry.Active {
				joined++
			}
		}
	}
	return joined == 2 && m.during(k.From, k.Until)
}

func holds(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

type packet struct {
	src, dst netip.Addr
	proto    uint8
	port     uint16
}

func (p packet) flow() policy.Flow { return policy.OpeningFlow(p.src, p.dst, p.proto, p.port) }

// allows: from opens to the other party, by a flow that nobody takes away.
func (m model) allows(k registry.Contract, from string, p packet) bool {
	if !m.force(k) {
		return false
	}
	names := map[string]uint8{"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "132": 132, "89": 89}
	inPorts := func(list []registry.Ports) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(r registry.Ports) bool { return r.First <= p.port && p.port <= r.Last })
	}
	for _, f := range k.Flows {
		ok := f.From == from && holds(f.Sources, p.src) && holds(f.Destinations, p.dst) && names[f.Protocol] == p.proto && inPorts(f.Ports)
		for _, party := range k.Parties {
			own := p.dst
			if party.Device == from {
				own = p.src
			}
			ok = ok && (len(party.Hosts) == 0 || holds(party.Hosts, own))
			for _, n := range party.Narrow {
				if n.Flow != f.Name {
					continue
				}
				ok = ok && !n.Off && (len(n.Sources) == 0 || holds(n.Sources, p.src)) && (len(n.Destinations) == 0 || holds(n.Destinations, p.dst)) && inPorts(n.Ports)
			}
		}
		if ok {
			return true
		}
	}
	return false
}

// randomAddr draws an address that some flow names, or of a device's zones.
func randomAddr(t *rapid.T, d registry.Device, k *registry.Contract, v6 bool) netip.Addr {
	var list []netip.Prefix
	add := func(ps []netip.Prefix) {
		for _, p := range ps {
			if p.Addr().Is6() == v6 {
				list = append(list, p)
			}
		}
	}
	for _, z := range d.Zones {
		add(z.Prefixes)
	}
	if k != nil {
		for _, f := range k.Flows {
			if f.From == d.Name {
				add(f.Sources)
				add(f.Sources)
			} else {
				add(f.Destinations)
				add(f.Destinations)
			}
		}
	}
	p := rapid.SampledFrom(list).Draw(t, "network")
	raw := p.Addr().AsSlice()
	if !p.IsSingleIP() {
		raw[len(raw)-1] = byte(rapid.SampledFrom([]int{1, 2, 3, 6, 7, 9, 127, 128, 255}).Draw(t, "host"))
	}
	a, _ := netip.AddrFromSlice(raw)
	return a
}

// randomPacket draws one between two devices; with a flow, one that is or nearly is of it.
func randomPacket(t *rapid.T, from, to registry.Device, k *registry.Contract, f *registry.Flow) packet {
	v6 := rapid.IntRange(0, 3).Draw(t, "IPv6 packet") == 0
	if f != nil {
		v6 = f.Sources[0].Addr().Is6()
	}
	p := packet{src: randomAddr(t, from, k, v6), dst: randomAddr(t, to, k, v6)}
	p.proto = rapid.SampledFrom([]uint8{6, 17, 1, 58, 132, 89, 47}).Draw(t, "protocol")
	p.port = uint16(rapid.IntRange(1, 6100).Draw(t, "port"))
	if f == nil {
		return p
	}
	near := func() bool { return rapid.IntRange(0, 7).Draw(t, "of the flow") > 0 }
	if near() {
		p.src = randomAddr(t, registry.Device{Zones: []registry.Zone{{Prefixes: f.Sources}}}, nil, v6)
	}
	if near() {
		p.dst = randomAddr(t, registry.Device{Zones: []registry.Zone{{Prefixes: f.Destinations}}}, nil, v6)
	}
	if near() {
		p.proto = map[string]uint8{"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "132": 132, "89": 89}[f.Protocol]
	}
	if len(f.Ports) > 0 && near() {
		r := rapid.SampledFrom(f.Ports).Draw(t, "ports")
		span := int(r.Last) - int(r.First)
		p.port = uint16(max(1, int(r.First)+rapid.SampledFrom([]int{-1, 0, span / 2, span, span + 1}).Draw(t, "near")))
	}
	return p
}

// sound draws a registry that is accepted; ok is false when it is not.
func sound(t *rapid.T) (c registry.Content, r *registry.Registry, ok bool) {
	c = registrytest.Random(t)
	r, err := registry.New(c)
	if err != nil {
		return c, nil, false
	}
	return c, r, compile.Check(r) == nil
}

// fixedTrust makes keys and anchors for s0, s1 and s2, whatever they are.
func fixedTrust(t testing.TB) (cert, psk compile.Trust) {
	var c registry.Content
	for i := range 3 {
		c.Services = append(c.Services, registry.Service{Name: fmt.Sprintf("s%d", i), Domain: fmt.Sprintf("s%d.example", i), Auth: policy.AuthCertificate})
	}
	cert = trust(t, c)
	for i := range c.Services {
		c.Services[i].Auth = policy.AuthPSK
	}
	return cert, trust(t, c)
}

func mixedTrust(c registry.Content, cert, psk compile.Trust) compile.Trust {
	out := compile.Trust{DeviceAnchors: cert.DeviceAnchors, Services: map[string]compile.ServiceTrust{}}
	for _, s := range c.Services {
		out.Services[s.Name] = cert.Services[s.Name]
		if s.Auth == policy.AuthPSK {
			out.Services[s.Name] = psk.Services[s.Name]
		}
	}
	return out
}

// TestModel: for any registry that is accepted, at any time: both sides' tables say of every packet
// what the contract says; nobody has a connection that no contract names; nothing is relayed.
func TestModel(t *testing.T) {
	cert, psk := fixedTrust(t)
	runs, accepted, allowed, denied := 0, 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		c, r, ok := sound(t)
		if !ok {
			return
		}
		accepted++
		now := at.Add(time.Duration(rapid.IntRange(-2, 2).Draw(t, "days")) * 24 * time.Hour)
		m := model{c, now}
		in := &compile.Input{Registry: r, Trust: mixedTrust(c, cert, psk), Issuer: "sp.example", Now: now}
		tables := make(map[string]*policy.Table)
		for p, err := range in.All() {
			if err != nil {
				t.Fatalf("Check accepted it, and yet: %v", err)
			}
			doc := p.Document(1, now, now.Add(time.Hour))
			table, err := policy.Compile(doc)
			if err != nil {
				t.Fatal(err)
			}
			tables[p.Device] = table
			// No connection that no contract names.
			peers := make(map[string]bool)
			for _, conn := range doc.Connections {
				i := slices.IndexFunc(c.Contracts, func(k registry.Contract) bool { return k.Name == conn.Name })
				if i < 0 {
					t.Fatalf("%s: connection %s, which no contract names", p.Device, conn.Name)
				}
				k := c.Contracts[i]
				other, party := k.Other(p.Device)
				if !party || !m.force(k) || k.Parties[other].Device != conn.Peer || k.Service != conn.Service {
					t.Fatalf("%s: connection %v is not contract %v", p.Device, conn, k)
				}
				peers[conn.Peer] = true
			}
			if len(peers) != len(doc.Peers) {
				t.Fatalf("%s: peers %v, connections to %v", p.Device, doc.Peers, peers)
			}
		}
		for range 40 {
			// A packet between any two devices, mostly of one contract.
			a := rapid.IntRange(0, len(c.Devices)-1).Draw(t, "from")
			b := (a + rapid.IntRange(1, len(c.Devices)-1).Draw(t, "to")) % len(c.Devices)
			from, to := c.Devices[a], c.Devices[b]
			var k *registry.Contract
			var f *registry.Flow
			if len(c.Contracts) > 0 && rapid.IntRange(0, 4).Draw(t, "contract") > 0 {
				k = &c.Contracts[rapid.IntRange(0, len(c.Contracts)-1).Draw(t, "which")]
				f = &k.Flows[rapid.IntRange(0, len(k.Flows)-1).Draw(t, "flow")]
				other, _ := k.Other(f.From)
				from, to = m.device(f.From), m.device(k.Parties[other].Device)
				if rapid.IntRange(0, 7).Draw(t, "back") == 0 {
					from, to, f = to, from, nil
				}
			}
			p := randomPacket(t, from, to, k, f)
			by := ""
			for _, k := range c.Contracts {
				if other, party := k.Other(from.Name); party && k.Parties[other].Device == to.Name && m.allows(k, from.Name, p) {
					by = k.Name
				}
			}
			if from.State == registry.Revoked || to.State == registry.Revoked {
				if by != "" {
					t.Fatal("the model allows something to a revoked device")
				}
				continue
			}
			out := tables[from.Name].Outbound(p.flow())
			// A packet that goes to another member that shares the address is that one's.
			conn := ""
			if out.Allow {
				conn = tables[from.Name].Connections()[out.Conn].Name
				if tables[from.Name].Connections()[out.Conn].Peer != to.Name {
					continue
				}
			}
			if conn != by {
				t.Fatalf("%s to %s, %+v: contract %q allows it, %s sends it into %q (%v)", from.Name, to.Name, p, by, from.Name, conn, out.Reason)
			}
			for i, other := range tables[to.Name].Connections() {
				d := tables[to.Name].Inbound(i, p.flow())
				if other.Peer == from.Name && d.Allow != (other.Name == by) {
					t.Fatalf("%s to %s, %+v: contract %q allows it, %s lets it in by %q: %v (%v)", from.Name, to.Name, p, by, to.Name, other.Name, d.Allow, d.Reason)
				}
			}
			if by == "" {
				denied++
			} else {
				allowed++
			}
		}
		noRelay(t, c, tables)
	})
	t.Logf("%d registries, %d accepted; %d packets allowed, %d denied", runs, accepted, allowed, denied)
	if accepted*5 < runs || allowed*50 < denied {
		t.Error("too few registries are accepted, or packets allowed, for the test to say anything")
	}
}

// noRelay: what comes from one peer never goes on to another, whatever it looks like.
func noRelay(t *rapid.T, c registry.Content, tables map[string]*policy.Table) {
	for name, table := range tables {
		conns := table.Connections()
		for i := range conns {
			for j := range conns {
				for _, from := range conns[i].Remote {
					for _, to := range conns[j].Remote {
						if from.Addr().Is4() != to.Addr().Is4() {
							continue
						}
						p := packet{src: from.Addr(), dst: to.Addr(), proto: 6, port: uint16(rapid.IntRange(1, 6000).Draw(t, "relay port"))}
						if d := table.Inbound(i, p.flow()); d.Allow || d.Reply {
							t.Fatalf("%s relays %+v from %s to %s", name, p, conns[i].Name, conns[j].Name)
						}
						if d := table.Outbound(p.flow()); d.Allow || d.Reply {
							t.Fatalf("%s relays %+v from %s to %s", name, p, conns[i].Name, conns[j].Name)
						}
					}
				}
			}
		}
	}
}

// TestStable: the order of the registry's objects and lists means nothing, and exporting and loading
// changes nothing.
func TestStable(t *testing.T) {
	cert, psk := fixedTrust(t)
	rapid.Check(t, func(t *rapid.T) {
		c, r, ok := sound(t)
		if !ok {
			return
		}
		mixed := c
		mixed.Devices = rapid.Permutation(c.Devices).Draw(t, "devices")
		mixed.Contracts = rapid.Permutation(c.Contracts).Draw(t, "contracts")
		mixed.Memberships = rapid.Permutation(c.Memberships).Draw(t, "memberships")
		mixed.Contracts = slices.Clone(mixed.Contracts)
		for i := range mixed.Contracts {
			mixed.Contracts[i].Flows = rapid.Permutation(mixed.Contracts[i].Flows).Draw(t, "flows")
		}
		other, err := registry.New(mixed)
		if err != nil {
			t.Fatal(err)
		}
		in := &compile.Input{Registry: r, Trust: mixedTrust(c, cert, psk), Issuer: "sp.example", Now: at}
		in2 := *in
		in2.Registry = other
		a, b := hashes(t, in), hashes(t, &in2)
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("another order, other policies: %v, %v", a, b)
		}
	})
}

func hashes(t rapid.TB, in *compile.Input) map[string]policy.Digest {
	out := make(map[string]policy.Digest)
	for p, err := range in.All() {
		if err != nil {
			t.Fatal(err)
		}
		out[p.Device] = hashOf(t, p)
	}
	return out
}

// TestAffected: who is not said to be affected by a change keeps its policy.
func TestAffected(t *testing.T) {
	cert, psk := fixedTrust(t)
	changed, spared := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		c, r, ok := sound(t)
		if !ok {
			return
		}
		next := c
		next.Devices, next.Services = slices.Clone(c.Devices), slices.Clone(c.Services)
		next.Memberships, next.Contracts = slices.Clone(c.Memberships), slices.Clone(c.Contracts)
		switch rapid.IntRange(0, 8).Draw(t, "what") {
		case 0:
			d := &next.Devices[rapid.IntRange(0, len(next.Devices)-1).Draw(t, "device")]
			d.State = rapid.SampledFrom([]registry.State{registry.Active, registry.Suspended, registry.Revoked}).Draw(t, "state")
		case 1:
			d := &next.Devices[rapid.IntRange(0, len(next.Devices)-1).Draw(t, "device")]
			if len(d.Gateways) > 0 {
				d.Gateways = []string{"198.51.100.1"}
			}
		case 2:
			if len(next.Contracts) > 0 {
				i := rapid.IntRange(0, len(next.Contracts)-1).Draw(t, "contract")
				next.Contracts = slices.Delete(next.Contracts, i, i+1)
			}
		case 3:
			if len(next.Memberships) > 0 {
				m := &next.Memberships[rapid.IntRange(0, len(next.Memberships)-1).Draw(t, "membership")]
				m.From, m.Until = time.Time{}, at
			}
		case 4:
			s := &next.Services[rapid.IntRange(0, len(next.Services)-1).Draw(t, "service")]
			s.Rules.Lifetimes.Child = policy.Duration(10 * time.Minute)
		case 6:
			s := &next.Services[rapid.IntRange(0, len(next.Services)-1).Draw(t, "service")]
			s.Rules.Revocation, s.Rules.FirstChild = policy.RevocationRequired, policy.FirstChildOwn
		case 7:
			next.Devices[rapid.IntRange(0, len(next.Devices)-1).Draw(t, "device")].Moves = policy.MovesNever
		case 8:
			if len(next.Contracts) > 0 {
				next.Contracts[rapid.IntRange(0, len(next.Contracts)-1).Draw(t, "contract")].PPK = policy.PPKOptional
			}
		case 5:
			if len(next.Contracts) > 0 {
				k := &next.Contracts[rapid.IntRange(0, len(next.Contracts)-1).Draw(t, "contract")]
				k.Parties[1].Narrow = []registry.Narrow{{Flow: k.Flows[0].Name, Off: true}}
			}
		}
		now, err := registry.New(next)
		if err != nil || compile.Check(now) != nil {
			return
		}
		in := &compile.Input{Registry: r, Trust: mixedTrust(c, cert, psk), Issuer: "sp.example", Now: at}
		then := *in
		then.Registry = now
		before, after := hashes(t, in), hashes(t, &then)
		affected := compile.Affected(r, now)
		for _, d := range c.Devices {
			if before[d.Name] == after[d.Name] {
				if !slices.Contains(affected, d.Name) {
					spared++
				}
				continue
			}
			changed++
			if !slices.Contains(affected, d.Name) {
				t.Fatalf("%s gets another policy and is not among %s", d.Name, strings.Join(affected, ", "))
			}
		}
		// Time alone.
		later := at.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "later")) * 24 * time.Hour)
		then = *in
		then.Now = later
		due := compile.Due(r, at, later)
		for name, h := range hashes(t, &then) {
			if h != before[name] && !slices.Contains(due, name) {
				t.Fatalf("%s gets another policy by %v and is not among %s", name, later, strings.Join(due, ", "))
			}
		}
	})
	t.Logf("%d policies changed, %d devices spared", changed, spared)
	if changed == 0 || spared == 0 {
		t.Error("too little happened for the test to say anything")
	}
}
