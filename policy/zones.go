package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"

	"wardgate/internal/certs"
)

// zones reads the local zones. Zones are disjoint: an address has one level.
func (c *compiler) zones() {
	before := len(c.f.list) + c.f.more
	list := c.root.at("zones")
	c.count(list, len(c.doc.Zones), 1, MaxZones)
	names := make(map[string]int)
	levelOf := make(map[string]int) // interface → zone
	for i := range c.doc.Zones {
		z := &c.doc.Zones[i]
		p := list.nth(i)
		c.name(p.at("name"), z.Name, names, i)
		c.oneOf(p.at("level"), z.Level, LevelHSZ, LevelSZ, LevelDMZ)
		info := ZoneInfo{Name: z.Name, Level: z.Level, Interfaces: slices.Clone(z.Interfaces)}
		c.count(p.at("interfaces"), len(z.Interfaces), 1, 64)
		for j, name := range z.Interfaces {
			at := p.at("interfaces").nth(j)
			if !validInterface(name) {
				c.fault(at, "the name of a network interface, at most 15 characters", certs.Quote(name), "")
				continue
			}
			if other, taken := levelOf[name]; taken {
				switch {
				case other == i:
					c.fault(at, "each interface once", name+" a second time", "remove it")
				case c.doc.Zones[other].Level != z.Level:
					// ZONE-3: nothing separates zones that share a wire.
					c.fault(at, "an interface of its own for each level", fmt.Sprintf("%s, which zone %q (%s) has too", name, c.doc.Zones[other].Name, c.doc.Zones[other].Level), "separate the zones, for example by VLANs")
				}
			}
			levelOf[name] = i
		}
		pfxs, _ := c.prefixes(p.at("prefixes"), z.Prefixes, 1)
		for j, pfx := range pfxs {
			if other, ok := overlapping(c.t.zone, pfx); ok {
				o := c.doc.Zones[other]
				c.fault(p.at("prefixes").nth(j), "addresses that are in no other zone and not in this one twice", fmt.Sprintf("%v, which overlaps zone %q", pfx, o.Name), "give each address to one zone")
				continue
			}
			c.t.zone.Insert(pfx, int32(i))
		}
		info.Prefixes = aggregate(pfxs)
		c.t.zones = append(c.t.zones, info)
	}
	c.zonesOK = len(c.f.list)+c.f.more == before
}

func validInterface(s string) bool {
	// Linux: IFNAMSIZ is 16 with the NUL, and dev_valid_name refuses '/', ':' and white space.
	if s == "" || len(s) > 15 || s == "." || s == ".." || strings.ContainsAny(s, "/:\"'\\*{}") {
		return false
	}
	for _, r := range []byte(s) {
		if r <= ' ' || r > '~' {
			return false
		}
	}
	return true
}

// overlapping returns the value of an entry that overlaps p.
func overlapping[V any](t *bart.Table[V], p netip.Prefix) (v V, ok bool) {
	if !t.OverlapsPrefix(p) {
		return v, false
	}
	if _, v, ok := t.LookupPrefixLPM(p); ok {
		return v, true
	}
	for _, v := range t.Subnets(p) {
		return v, true
	}
	return v, false
}

// inZone checks that a prefix lies within one local zone.
func (c *compiler) inZone(p *path, pfx netip.Prefix) bool {
	if !c.zonesOK {
		return false
	}
	if _, ok := c.t.zone.LookupPrefix(pfx); ok {
		return true
	}
	came, do := showPrefix(pfx)+", which no zone holds", "add the network to a zone, or correct the address"
	if z, ok := overlapping(c.t.zone, pfx); ok {
		came = fmt.Sprintf("%s, of which zone %q holds only a part", showPrefix(pfx), c.doc.Zones[z].Name)
		do = "name the zone's own prefixes"
	}
	c.fault(p, "an address of a local zone (one prefix of one zone must hold all of it)", came, do)
	return false
}

// notLocal checks that a remote prefix has nothing in common with a local zone: an address is
// local or remote, never both. "No relay" rests on this.
func (c *compiler) notLocal(p *path, pfx netip.Prefix) bool {
	if !c.zonesOK {
		return false
	}
	z, ok := overlapping(c.t.zone, pfx)
	if ok {
		c.fault(p, "a remote address", fmt.Sprintf("%s, which overlaps the local zone %q", showPrefix(pfx), c.doc.Zones[z].Name),
			"an address cannot be on both sides: correct one of them, or have the facilities' addresses matched in the domain")
	}
	return !ok
}

// MaxMaintenancePorts bounds the ports of one flow of remote maintenance.
const MaxMaintenancePorts = 64

// levels applies what the zone's level and the service's category allow (ZONE-5, SVC-3):
//
//	HSZ  no direct exchange with the outside but remote maintenance
//	SZ   limited exchange: protocols are named; no internet connection service
//	DMZ  any exchange
//
// and remote maintenance ends, in whatever zone, at single hosts and at named protocols and ports.
func (c *compiler) levels(p *path, insideKey string, f *FlowRule, r *compiledRule, conn *ConnectionInfo) {
	for j, pfx := range r.inside {
		zi, _ := c.t.zone.LookupPrefix(pfx)
		z := &c.t.zones[zi]
		at := p.at(insideKey).nth(j)
		zone := fmt.Sprintf("zone %q (%s)", z.Name, z.Level)
		if z.Level == LevelHSZ && conn.Category != CategoryMaintenance {
			c.fault(at, "no host of "+zone+": a high security zone exchanges nothing with the outside but remote maintenance",
				fmt.Sprintf("%s, for service %q of category %q", showPrefix(pfx), conn.Service, conn.Category), "put the host into an SZ or DMZ, or use a service of category remote-maintenance")
		}
		if z.Level != LevelDMZ && conn.Category == CategoryInternet {
			c.fault(at, "hosts of a DMZ for a service of category internet", showPrefix(pfx)+" in "+zone, "let the zone reach the internet through a proxy in a DMZ")
		}
		if z.Level != LevelDMZ && r.proto == protoAny {
			c.fault(p.at("protocol"), "a named protocol, because "+zone+" has limited exchange", "\"any\"", "make one flow for each protocol")
		}
		if conn.Category == CategoryMaintenance && !isHost(pfx) {
			c.fault(at, "single hosts: remote maintenance ends at the contracted hosts only", pfx.String(), "name each host")
		}
	}
	if conn.Category != CategoryMaintenance {
		return
	}
	if r.proto == protoAny {
		c.fault(p.at("protocol"), "a named protocol for remote maintenance", "\"any\"", "make one flow for each protocol")
	}
	if hasPorts(r.proto) && countPorts(r.ports) > MaxMaintenancePorts {
		c.fault(p.at("ports"), fmt.Sprintf("at most %d ports in a flow of remote maintenance", MaxMaintenancePorts), fmt.Sprint(countPorts(r.ports)), "name the ports that the work needs")
	}
}

// selectorLevel applies the level to explicit traffic selectors.
func (c *compiler) selectorLevel(p *path, local []netip.Prefix, conn *ConnectionInfo) {
	for j, pfx := range local {
		if zi, ok := c.t.zone.LookupPrefix(pfx); ok && c.t.zones[zi].Level == LevelHSZ && conn.Category != CategoryMaintenance {
			c.fault(p.at("local").nth(j), fmt.Sprintf("no addresses of zone %q (HSZ): a high security zone exchanges nothing with the outside but remote maintenance", c.t.zones[zi].Name),
				fmt.Sprintf("%v, for service %q of category %q", pfx, conn.Service, conn.Category), "remove it")
		}
	}
}

// exclusive are the categories that one host must not use both of (SVC-2; ISO/TR 11636, annex C
// 4-2-3, 4-5-3, 4-7-5, 4-8-3, 4-10-4; "ASP" is processing, "provider" internet).
var exclusive = [][2]string{
	{CategoryProcessing, CategoryStorageRelay},
	{CategoryProcessing, CategoryInternet},
	{CategoryProcessing, CategoryMaintenance},
	{CategoryInternet, CategoryStorageRelay},
}

// combinedUse refuses a policy that lets one local host use services of categories that must not
// be combined.
func (c *compiler) combinedUse() {
	byCategory := make(map[string]*bart.Table[int32]) // local prefix → a rule
	for i := range c.t.rules {
		cat := c.t.conns[c.t.rules[i].conn].Category
		if byCategory[cat] == nil {
			byCategory[cat] = new(bart.Table[int32])
		}
		for _, pfx := range c.t.rules[i].inside {
			if _, ok := byCategory[cat].Get(pfx); !ok {
				byCategory[cat].Insert(pfx, int32(i))
			}
		}
	}
	for _, pair := range exclusive {
		a, b := byCategory[pair[0]], byCategory[pair[1]]
		if a == nil || b == nil || !a.Overlaps(b) {
			continue
		}
		for pfx, ra := range a.AllSorted() {
			rb, ok := overlapping(b, pfx)
			if !ok {
				continue
			}
			ri, rj := c.t.Rule(int(ra)), c.t.Rule(int(rb))
			c.f.add(&FieldError{
				Path:     ri.Path(),
				Expected: fmt.Sprintf("no host that uses both %s and %s (ISO/TR 11636, annex C)", pair[0], pair[1]),
				Came: fmt.Sprintf("%s, which flow %q of connection %q and flow %q of connection %q (%s) both reach", showPrefix(pfx),
					ri.Name, c.t.conns[ri.Conn].Name, rj.Name, c.t.conns[rj.Conn].Name, rj.Path()),
				Do: "use different hosts for the two services",
			})
		}
	}
}
