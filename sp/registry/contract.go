package registry

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/policy"
)

// Other returns the index of the party that is not this device, and whether the device is a party.
func (c *Contract) Other(device string) (int, bool) {
	switch device {
	case c.Parties[0].Device:
		return 1, true
	case c.Parties[1].Device:
		return 0, true
	}
	return 0, false
}

// Effective returns what is left of the contract's flows after both parties' own rules, in the
// order of the contract. It is what the policies of both sides are made of. A flow of which nothing
// is left is not there.
func (c *Contract) Effective() []Flow {
	out := make([]Flow, 0, len(c.Flows))
	for i := range c.Flows {
		if f, ok := c.narrowed(&c.Flows[i]); ok {
			out = append(out, f)
		}
	}
	return out
}

// narrowed applies both parties' rules to a flow; ok is false when nothing is left.
func (c *Contract) narrowed(flow *Flow) (f Flow, ok bool) {
	f = *flow
	for i := range c.Parties {
		p := &c.Parties[i]
		if len(p.Hosts) > 0 {
			if p.Device == f.From {
				f.Sources = common(f.Sources, p.Hosts)
			} else {
				f.Destinations = common(f.Destinations, p.Hosts)
			}
		}
		for j := range p.Narrow {
			n := &p.Narrow[j]
			if n.Flow != f.Name {
				continue
			}
			if n.Off {
				return f, false
			}
			if len(n.Sources) > 0 {
				f.Sources = common(f.Sources, n.Sources)
			}
			if len(n.Destinations) > 0 {
				f.Destinations = common(f.Destinations, n.Destinations)
			}
			if len(n.Ports) > 0 {
				// A protocol with ports and none named means all of them.
				if len(f.Ports) > 0 {
					f.Ports = commonPorts(f.Ports, n.Ports)
				} else {
					f.Ports = merge(n.Ports)
				}
				if len(f.Ports) == 0 {
					return f, false
				}
			}
		}
	}
	f.Sources, f.Destinations = withCounterpart(f.Sources, f.Destinations)
	return f, len(f.Sources) > 0 && len(f.Destinations) > 0
}

// Allows reports whether the flow allows a first packet.
func (f *Flow) Allows(from, to netip.Addr, protocol string, port uint16) bool {
	mine, _, ok1 := parseProtocol(f.Protocol)
	proto, _, ok2 := parseProtocol(protocol)
	if !ok1 || !ok2 || mine != proto && mine != protoAny {
		return false
	}
	// "any" means of ICMP the family's own echo.
	if proto == protoICMP && !from.Is4() || proto == protoICMPv6 && !from.Is6() {
		return false
	}
	holds := func(list []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if from.Is4() != to.Is4() || !holds(f.Sources, from) || !holds(f.Destinations, to) {
		return false
	}
	return len(f.Ports) == 0 || slices.ContainsFunc(f.Ports, func(r Ports) bool { return r.First <= port && port <= r.Last })
}

// String writes the flow in one line, for people.
func (f *Flow) String() string {
	text := func(list []netip.Prefix) string {
		s := make([]string, len(list))
		for i, p := range list {
			s[i] = showPrefix(p)
		}
		return strings.Join(s, ", ")
	}
	s := f.Protocol
	if _, err := strconv.Atoi(s); err == nil {
		s = "protocol " + s
	}
	s += " from " + text(f.Sources) + " to " + text(f.Destinations)
	if len(f.Ports) > 0 {
		p := make([]string, len(f.Ports))
		for i, r := range f.Ports {
			p[i] = r.String()
		}
		s += " port " + strings.Join(p, ",")
	}
	return s
}

// side is what the checks of a contract know of one party.
type side struct {
	device *Device
	zones  overlaps
}

func (k *checker) contracts() {
	r := k.r
	sides := make(map[string]*side)
	for i := range r.c.Contracts {
		k.contract(&r.c.Contracts[i], sides)
	}
	for i := range r.c.Devices {
		if n := len(r.contractsOf[i]); n > MaxOfDevice {
			k.at = Place{Kind: "device", Name: r.c.Devices[i].Name}
			k.fault(RuleBounds, "", fmt.Sprintf("at most %d contracts of one device", MaxOfDevice), strconv.Itoa(n), "divide them between several devices")
		}
	}
}

func (k *checker) contract(c *Contract, sides map[string]*side) {
	k.at = Place{Kind: "contract", Name: c.Name}
	k.name(c.Name)
	k.text("title", c.Title, false)
	k.times("", c.From, c.Until)
	if k.oneOf("start", c.Start, policy.StartOnDemand, policy.StartManual, policy.StartAlways) && c.Start == policy.StartAlways && c.Idle != 0 {
		k.fault(RuleTime, "idle", "none, because start is \"always\"", c.Idle.String(), "remove it or change start")
	}
	if d := time.Duration(c.Idle); d != 0 && (d < time.Second || d > 24*time.Hour) {
		k.fault(RuleTime, "idle", "1s to 24h", c.Idle.String(), "")
	}
	if c.PPK != "" {
		k.oneOf("ppk", c.PPK, policy.PPKOff, policy.PPKOptional, policy.PPKRequired)
	}
	s := k.r.Service(c.Service)
	if s == nil {
		k.fault(RuleReference, "service", "the name of a service", certs.Quote(c.Service), "add services/NAME.toml or correct the name"+nearest(c.Service, k.r.service))
	}
	parties, ok := k.parties(c, s, sides)
	k.count("flow", len(c.Flows), 1, MaxFlows)
	names := make(map[string]int)
	sound := ok && s != nil
	for i := range c.Flows {
		f := &c.Flows[i]
		at := nth("flow", i)
		k.label(at+".name", f.Name, names, i)
		from := slices.IndexFunc(c.Parties[:], func(p Party) bool { return p.Device == f.From })
		if from < 0 {
			k.fault(RuleReference, at+".from", "one of the parties, "+c.Parties[0].Device+" or "+c.Parties[1].Device, certs.Quote(f.From), "name the device that opens the flow")
			sound = false
		}
		proto, good := k.flowForm(at, f)
		if !good {
			sound = false
		}
		if !sound {
			continue
		}
		if !s.Rules.permits(proto, f.Ports) {
			k.fault(RuleUniform, at+".protocol", fmt.Sprintf("what service %q allows: %s", s.Name, strings.Join(s.Rules.Allow, ", ")), f.String(), "change the flow, or the service's rules.allow")
		}
		k.flowZones(at+".sources", f.Sources, parties[from], parties[1-from], s, proto)
		k.flowZones(at+".destinations", f.Destinations, parties[1-from], parties[from], s, proto)
		k.flowLevel(at, f, parties, s, proto)
	}
	k.narrow(c, names)
	k.tests(c, sound)
}

// parties checks both sides; ok is false when there is no point in looking at flows.
func (k *checker) parties(c *Contract, s *Service, sides map[string]*side) (out [2]*side, ok bool) {
	ok = true
	reachable, gone := false, false
	for i := range c.Parties {
		p := &c.Parties[i]
		at := nth("party", i)
		d := k.r.Device(p.Device)
		if d == nil {
			k.fault(RuleReference, at+".device", "the name of a device", certs.Quote(p.Device), "register the device or correct the name"+nearest(p.Device, k.r.device))
			ok = false
			continue
		}
		reachable = reachable || len(d.Gateways) > 0
		gone = gone || d.State == Revoked
		if s != nil && k.r.Membership(p.Device, s.Name) == nil {
			k.fault(RuleMembership, at+".device", fmt.Sprintf("a member of service %q", s.Name), p.Device+", which has not joined it",
				"give the device a membership, or end the contract")
		}
		k.prefixes(at+".hosts", p.Hosts, 0)
		if out[i] = sides[p.Device]; out[i] == nil {
			out[i] = &side{device: d}
			for z := range d.Zones {
				for _, pfx := range d.Zones[z].Prefixes {
					if pfx.IsValid() && pfx == pfx.Masked() {
						out[i].zones.add(pfx, z)
					}
				}
			}
			sides[p.Device] = out[i]
		}
	}
	if ok && c.Parties[0].Device == c.Parties[1].Device {
		k.fault(RuleParties, "party[1].device", "another device than the first party's", c.Parties[1].Device, "name both parties")
		return out, false
	}
	if ok && !reachable && !gone {
		k.fault(RuleParties, "party", "a party that has a gateway", "two that can only set up connections themselves", "register a gateway for one of them")
	}
	return out, ok
}

// flowForm checks what can be said without the parties.
func (k *checker) flowForm(at string, f *Flow) (proto uint16, ok bool) {
	proto, hint, ok := parseProtocol(f.Protocol)
	if !ok {
		k.fault(RuleFlow, at+".protocol", "tcp, udp, icmp, icmpv6, any or a number from 1 to 252", certs.Quote(f.Protocol), hint)
		return 0, false
	}
	ok = k.prefixes(at+".sources", f.Sources, 1)
	ok = k.prefixes(at+".destinations", f.Destinations, 1) && ok
	ok = k.ports(at+".ports", f.Ports) && ok
	switch {
	case !hasPorts(proto) && len(f.Ports) > 0:
		k.fault(RuleFlow, at+".ports", "none: protocol "+f.Protocol+" has no ports", strconv.Itoa(len(f.Ports)), "remove them")
		ok = false
	case (proto == protoTCP || proto == protoUDP) && len(f.Ports) == 0:
		k.fault(RuleFlow, at+".ports", "the ports that may be reached", "none", "name them, or write [\"1-65535\"] when all are meant")
		ok = false
	}
	if !ok {
		return proto, false
	}
	s4, s6 := families(f.Sources)
	d4, d6 := families(f.Destinations)
	switch {
	case s4 != d4 || s6 != d6:
		k.fault(RuleFlow, at+".destinations", "addresses of the same families as sources", "others", "give IPv4 with IPv4 and IPv6 with IPv6")
		ok = false
	case proto == protoICMP && s6:
		k.fault(RuleFlow, at+".protocol", "\"icmpv6\" for IPv6 addresses", "\"icmp\"", "make one flow for each family")
		ok = false
	case proto == protoICMPv6 && s4:
		k.fault(RuleFlow, at+".protocol", "\"icmp\" for IPv4 addresses", "\"icmpv6\"", "make one flow for each family")
		ok = false
	}
	return proto, ok
}

func (k *checker) ports(path string, list []Ports) bool {
	if !k.count(path, len(list), 0, policy.MaxPorts) {
		return false
	}
	ok := true
	for i, r := range list {
		if r.First == 0 || r.First > r.Last {
			k.fault(RuleFlow, nth(path, i), "a port such as \"104\" or a range such as \"5000-5010\", from 1 to 65535", certs.Quote(r.String()), "")
			ok = false
		}
	}
	return ok
}

// flowZones checks that a flow's addresses on one side lie in that party's zones and share nothing
// with the other's: an address is local or remote, never both.
func (k *checker) flowZones(path string, list []netip.Prefix, own, other *side, s *Service, proto uint16) {
	for i, p := range list {
		at := nth(path, i)
		z, ok := own.zones.holder(p)
		if !ok {
			came, do := showPrefix(p)+", which no zone of it holds", "correct the address, or add it to the device's zones"
			if z, part := own.zones.find(p); part {
				came = fmt.Sprintf("%s, of which zone %q holds only a part (%v)", showPrefix(p), own.device.Zones[z.n].Name, z.p)
				do = "name addresses within one prefix of one zone"
			}
			k.fault(RuleFlowZone, at, "addresses of "+own.device.Name, came, do)
			continue
		}
		if o, both := other.zones.find(p); both {
			k.fault(RuleZoneOverlap, at, "addresses that only "+own.device.Name+" has", fmt.Sprintf("%s, which overlaps zone %q (%v) of %s", showPrefix(p), other.device.Zones[o.n].Name, o.p, other.device.Name),
				"an address cannot be on both sides: have the members' addresses matched in the domain")
		}
		k.level(at, p, &own.device.Zones[z.n], own.device, s)
	}
}

// level applies what a zone's level and the service's category allow to one address, as package
// policy will on the device (ZONE-5, SVC-3).
func (k *checker) level(at string, p netip.Prefix, z *Zone, d *Device, s *Service) {
	zone := fmt.Sprintf("zone %q (%s) of %s", z.Name, z.Level, d.Name)
	came := fmt.Sprintf("%s, for service %q of category %q", showPrefix(p), s.Name, s.Category)
	if z.Level == policy.LevelHSZ && s.Category != policy.CategoryMaintenance {
		k.fault(RuleHSZ, at, "no host of "+zone+": a high security zone exchanges nothing with the outside but remote maintenance", came,
			"put the host into an SZ or DMZ, or use a service of category remote-maintenance")
	}
	if z.Level != policy.LevelDMZ && s.Category == policy.CategoryInternet {
		k.fault(RuleLevel, at, "hosts of a DMZ for a service of category internet", showPrefix(p)+" in "+zone, "let the zone reach the internet through a proxy in a DMZ")
	}
	if s.Category == policy.CategoryMaintenance && !p.IsSingleIP() {
		k.fault(RuleMaintenance, at, "single hosts: remote maintenance ends at the contracted hosts only", p.String(), "name each host")
	}
}

// flowLevel is level for what belongs to the flow as a whole.
func (k *checker) flowLevel(at string, f *Flow, parties [2]*side, s *Service, proto uint16) {
	maintenance := s.Category == policy.CategoryMaintenance
	if proto == protoAny {
		for _, p := range slices.Concat(f.Sources, f.Destinations) {
			for _, own := range parties {
				z, ok := own.zones.holder(p)
				if ok && own.device.Zones[z.n].Level != policy.LevelDMZ {
					zone := own.device.Zones[z.n]
					k.fault(RuleLevel, at+".protocol", fmt.Sprintf("a named protocol, because zone %q (%s) of %s has limited exchange", zone.Name, zone.Level, own.device.Name), "\"any\"", "make one flow for each protocol")
					return
				}
			}
		}
		if maintenance {
			k.fault(RuleMaintenance, at+".protocol", "a named protocol for remote maintenance", "\"any\"", "make one flow for each protocol")
		}
		return
	}
	if !maintenance || !hasPorts(proto) {
		return
	}
	n := countPorts(f.Ports)
	if len(f.Ports) == 0 {
		n = 1 << 16 // none named: all
	}
	if n > policy.MaxMaintenancePorts {
		k.fault(RuleMaintenance, at+".ports", fmt.Sprintf("at most %d ports in a flow of remote maintenance", policy.MaxMaintenancePorts), strconv.Itoa(n), "name the ports that the work needs")
	}
}

// narrow checks the parties' own rules: each is about a flow of the contract, and takes something
// away from it.
func (k *checker) narrow(c *Contract, flows map[string]int) {
	for i := range c.Parties {
		seen := make(map[string]int)
		list := c.Parties[i].Narrow
		k.count(nth("party", i)+".narrow", len(list), 0, MaxFlows)
		for j := range list {
			n := &list[j]
			at := nth(nth("party", i)+".narrow", j)
			n1, known := flows[n.Flow]
			if !known {
				k.fault(RuleReference, at+".flow", "the name of a flow of this contract", certs.Quote(n.Flow), "correct the name"+nearest(n.Flow, flows))
				continue
			}
			k.label(at+".flow", n.Flow, seen, j)
			f := &c.Flows[n1]
			some := len(n.Sources)+len(n.Destinations)+len(n.Ports) > 0
			if n.Off == some {
				k.fault(RuleNarrow, at, "either off = true, or some of sources, destinations and ports", map[bool]string{true: "both", false: "neither"}[some], "a rule takes something away")
				continue
			}
			if k.prefixes(at+".sources", n.Sources, 0) {
				k.narrower(at+".sources", n.Sources, f.Sources, f)
			}
			if k.prefixes(at+".destinations", n.Destinations, 0) {
				k.narrower(at+".destinations", n.Destinations, f.Destinations, f)
			}
			if len(n.Ports) == 0 || !k.ports(at+".ports", n.Ports) {
				continue
			}
			proto, _, ok := parseProtocol(f.Protocol)
			switch {
			case ok && !hasPorts(proto):
				k.fault(RuleNarrow, at+".ports", fmt.Sprintf("none: flow %q has no ports", f.Name), strconv.Itoa(len(n.Ports)), "remove them")
			case len(f.Ports) > 0 && !portsWithin(n.Ports, f.Ports):
				k.fault(RuleNarrow, at+".ports", fmt.Sprintf("ports of flow %q: %s", f.Name, f), fmt.Sprint(n.Ports), "a member's rule can only narrow the contract")
			}
		}
	}
}

func (k *checker) narrower(path string, list, of []netip.Prefix, f *Flow) {
	for i, p := range list {
		if !coveredBy(of, p) {
			k.fault(RuleNarrow, nth(path, i), fmt.Sprintf("addresses of flow %q: %s", f.Name, f), showPrefix(p), "a member's rule can only narrow the contract")
		}
	}
}

// tests checks the contract's tests; with sound flows it also runs them against what is left of
// those.
func (k *checker) tests(c *Contract, sound bool) {
	k.count("test", len(c.Tests), 0, MaxTests)
	var left []Flow
	if sound && len(c.Tests) > 0 {
		left = c.Effective()
	}
	seen := make(map[string]int)
	for i := range c.Tests {
		t := &c.Tests[i]
		at := nth("test", i)
		k.label(at+".name", t.Name, seen, i)
		good := k.oneOf(at+".expect", t.Expect, policy.ExpectAllow, policy.ExpectDeny)
		for _, a := range []struct {
			key string
			a   netip.Addr
		}{{"from", t.From}, {"to", t.To}} {
			if !plain(a.a) {
				k.fault(RuleTest, at+"."+a.key, "an address such as 10.1.2.10", a.a.String(), "")
				good = false
			}
		}
		if good && t.From.Is4() != t.To.Is4() {
			k.fault(RuleTest, at+".to", "an address of the same family as from", t.To.String(), "")
			good = false
		}
		proto, hint, ok := parseProtocol(t.Protocol)
		switch {
		case !ok || proto == protoAny:
			k.fault(RuleTest, at+".protocol", "tcp, udp, icmp, icmpv6 or a number from 1 to 252", certs.Quote(t.Protocol), hint)
			good = false
		case hasPorts(proto) && t.Port == 0:
			k.fault(RuleTest, at+".port", "the destination port, because the protocol has ports", "none", "add it")
			good = false
		case !hasPorts(proto) && t.Port != 0:
			k.fault(RuleTest, at+".port", "none: protocol "+t.Protocol+" has no ports", strconv.Itoa(int(t.Port)), "remove it")
			good = false
		}
		if !good || !sound {
			continue
		}
		by := slices.IndexFunc(left, func(f Flow) bool { return f.Allows(t.From, t.To, t.Protocol, t.Port) })
		switch {
		case t.Expect == policy.ExpectAllow && by < 0:
			came, do := "one that no flow of the contract allows", "correct the test or the contract"
			if n := slices.IndexFunc(c.Flows, func(f Flow) bool { return f.Allows(t.From, t.To, t.Protocol, t.Port) }); n >= 0 {
				came = fmt.Sprintf("one that flow %q allows, but a party's own rules take away", c.Flows[n].Name)
				do = "agree with the party: the test, or its hosts and narrow rules"
			}
			k.fault(RuleTest, at, "a flow that is allowed", came, do)
		case t.Expect == policy.ExpectDeny && by >= 0:
			k.fault(RuleTest, at, "a flow that is denied", fmt.Sprintf("one that flow %q allows", left[by].Name), "correct the test or the contract")
		}
	}
}
