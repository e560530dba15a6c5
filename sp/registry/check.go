package registry

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardgate/internal/certs"
	"wardgate/policy"
)

// The rules that a registry keeps. Package compile adds those of the policy as a whole (algorithms,
// flows of one device that exclude each other), under the codes "policy-…".
const (
	RuleFile        = "file"               // readable, within bounds, well-formed, known keys, right types
	RuleBounds      = "bounds"             // how many, how long
	RuleName        = "name"               // form of names
	RuleTwice       = "twice"              // what must be there once
	RuleText        = "text"               // titles and contacts
	RuleReference   = "reference"          // what is referred to is there
	RuleWord        = "word"               // one of a few words
	RuleTime        = "time"               // ends after it begins
	RuleCertificate = "device-certificate" // fits the device
	RuleGateway     = "gateway"            // form; belongs to one device
	RulePrefix      = "prefix"             // form of addresses
	RuleZoneOverlap = "zone-overlap"       // an address has one zone; parties' zones are disjoint
	RuleIdentity    = "service-identity"   // a service certificate's identity belongs to one device
	RuleDomain      = "service-domain"     // there where certificates are issued
	RuleParties     = "contract-parties"   // two different devices, one of which can be reached
	RuleMembership  = "contract-member"    // parties are members of the service
	RuleFlowZone    = "flow-zone"          // a flow's addresses lie in the parties' zones
	RuleFlow        = "flow"               // form: families, protocol, ports
	RuleUniform     = "uniform-rule"       // within the service's rules
	RuleHSZ         = "hsz"                // a high security zone exchanges nothing but remote maintenance
	RuleLevel       = "zone-level"         // what SZ and DMZ may exchange
	RuleMaintenance = "remote-maintenance" // ends at single hosts, named protocols, few ports
	RuleNarrow      = "narrow"             // a member's rule takes something away from what is there
	RuleTest        = "test"               // a contract's tests fit the contract
)

type checker struct {
	r      *Registry
	err    Error
	at     Place                        // the object that is looked at; Path is empty
	parsed map[string]*x509.Certificate // by PEM
}

// fault notes one; path is below the object that is looked at.
func (k *checker) fault(rule, path, expected, came, do string) {
	if len(k.err.Faults) >= maxFaults {
		k.err.More++
		return
	}
	f := &Fault{Rule: rule, Place: k.at, Expected: expected, Came: came, Do: do}
	f.Place.Path = path
	f.File, f.Line = k.r.Locate(f.Place)
	k.err.Faults = append(k.err.Faults, f)
}

func (k *checker) bounds() {
	c := &k.r.c
	for _, b := range []struct {
		what    string
		n, most int
	}{
		{"members", len(c.Members), MaxMembers},
		{"devices", len(c.Devices), MaxDevices},
		{"services", len(c.Services), MaxServices},
		{"memberships", len(c.Memberships), MaxDevices * 4},
		{"contracts", len(c.Contracts), MaxContracts},
	} {
		if b.n > b.most {
			k.fault(RuleBounds, "", fmt.Sprintf("at most %d %s", b.most, b.what), strconv.Itoa(b.n), "divide the registry")
		}
	}
}

// index fills the lookups; doubles and references to nothing are faults, and are left out.
func (k *checker) index() {
	r := k.r
	c := &r.c
	r.member = names(c.Members, func(m *Member) string { return m.Name }, k.twice("member"))
	r.device = names(c.Devices, func(d *Device) string { return d.Name }, k.twice("device"))
	r.service = names(c.Services, func(s *Service) string { return s.Name }, k.twice("service"))
	r.contract = names(c.Contracts, func(c *Contract) string { return c.Name }, k.twice("contract"))
	r.cert = make([]*x509.Certificate, len(c.Devices))
	r.devicesOf = make(map[string][]int, len(c.Members))
	for i := range c.Devices {
		r.devicesOf[c.Devices[i].Member] = append(r.devicesOf[c.Devices[i].Member], i)
	}
	r.joined = make([]span, len(c.Devices))
	r.joinedBy = make([][]int32, len(c.Services))
	for i := range c.Memberships {
		m := &c.Memberships[i]
		k.at = Place{Kind: "device", Name: m.Device}
		path := "membership[" + m.Service + "]"
		if i > 0 && c.Memberships[i-1].Device == m.Device && c.Memberships[i-1].Service == m.Service {
			k.fault(RuleTwice, path, "each service once", m.Service+" a second time", "remove one of the two")
			continue
		}
		d, ok := r.device[m.Device]
		if !ok {
			k.fault(RuleReference, path, "a device that is registered", certs.Quote(m.Device), "register the device or remove the membership")
			continue
		}
		if r.joined[d].to == 0 {
			r.joined[d].from = int32(i)
		}
		r.joined[d].to = int32(i) + 1
		s, ok := r.service[m.Service]
		if !ok {
			k.fault(RuleReference, path+".service", "the name of a service", certs.Quote(m.Service), "add services/NAME.toml or correct the name"+nearest(m.Service, r.service))
			continue
		}
		r.joinedBy[s] = append(r.joinedBy[s], int32(i))
	}
	r.contractsOf = make([][]int32, len(c.Devices))
	for i := range c.Contracts {
		for j := range c.Contracts[i].Parties {
			d, ok := r.device[c.Contracts[i].Parties[j].Device]
			if ok && (j == 0 || c.Contracts[i].Parties[0].Device != c.Contracts[i].Parties[1].Device) {
				r.contractsOf[d] = append(r.contractsOf[d], int32(i))
			}
		}
	}
}

func names[T any](list []T, name func(*T) string, twice func(string)) map[string]int {
	out := make(map[string]int, len(list))
	for i := range list {
		n := name(&list[i])
		if _, ok := out[n]; ok {
			twice(n)
			continue
		}
		out[n] = i
	}
	return out
}

func (k *checker) twice(kind string) func(string) {
	return func(name string) {
		k.at = Place{Kind: kind, Name: name}
		k.fault(RuleTwice, "", "a name that is used once", certs.Quote(name)+" a second time", "rename one of the two")
	}
}

// ValidName reports whether s can name a member, service or contract: it becomes a file name, part
// of a URL, a token's label and a name in policies.
func ValidName(s string) bool {
	if s == "" || len(s) > MaxName || strings.Contains(s, "..") {
		return false
	}
	for i, c := range []byte(s) {
		inner := c == '-' || c == '_' || c == '.'
		if inner && (i == 0 || i == len(s)-1) || !inner && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// ValidDNSName reports whether s is a DNS name in lower case of at least two labels (RFC 1123,
// section 2.1). Names of devices have at most MaxName octets, because they name peers in policies.
func ValidDNSName(s string) bool {
	labels := strings.Split(s, ".")
	if len(s) > 253 || len(labels) < 2 {
		return false
	}
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for _, c := range []byte(l) {
			if c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
				return false
			}
		}
	}
	return true
}

// validLabel is the form of names within an object, as in policies.
func validLabel(s string) bool {
	if s == "" || len(s) > MaxName || s[0] == '-' || s[0] == '.' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

func (k *checker) name(s string) {
	if !ValidName(s) {
		k.fault(RuleName, "", fmt.Sprintf("a name of 1 to %d lower-case letters, digits, '-', '_' and '.', with letters or digits at both ends", MaxName), certs.Quote(s), "rename it")
	}
}

// label checks a name within an object.
func (k *checker) label(path, s string, seen map[string]int, i int) {
	if !validLabel(s) {
		k.fault(RuleName, path, fmt.Sprintf("a name of 1 to %d letters, digits, '-', '_' and '.', not beginning with '-' or '.'", MaxName), certs.Quote(s), "")
		return
	}
	if first, twice := seen[s]; twice {
		k.fault(RuleTwice, path, "a name that is used once", fmt.Sprintf("%q, which entry %d has too", s, first), "rename one of them")
		return
	}
	seen[s] = i
}

func (k *checker) text(path, s string, required bool) {
	switch {
	case s == "" && required:
		k.fault(RuleText, path, "a text for people", "none", "add it")
	case len(s) > MaxText:
		k.fault(RuleText, path, fmt.Sprintf("at most %d octets", MaxText), strconv.Itoa(len(s)), "shorten it")
	case strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f || c == '\ufffd' }):
		k.fault(RuleText, path, "a line of text in UTF-8", certs.Quote(s), "remove control characters")
	}
}

func (k *checker) oneOf(path, s string, words ...string) bool {
	if slices.Contains(words, s) {
		return true
	}
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = strconv.Quote(w)
	}
	k.fault(RuleWord, path, "one of "+strings.Join(q, ", "), certs.Quote(s), "")
	return false
}

// count checks a number of entries.
func (k *checker) count(path string, n, least, most int) bool {
	if n >= least && n <= most {
		return true
	}
	expected := fmt.Sprintf("%d to %d entries", least, most)
	if least == 0 {
		expected = fmt.Sprintf("at most %d entries", most)
	}
	k.fault(RuleBounds, path, expected, strconv.Itoa(n), "")
	return false
}

// latest is the last instant that the files' and the policies' form of time can show.
var latest = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

func (k *checker) times(path string, from, until time.Time) {
	if path != "" {
		path += "."
	}
	for _, t := range []struct {
		key string
		t   time.Time
	}{{"from", from}, {"until", until}} {
		if !t.t.IsZero() && (t.t.Year() < 1970 || t.t.After(latest)) {
			k.fault(RuleTime, path+t.key, "a time from 1970 to 9999", stamp(t.t), "")
		}
	}
	if !until.IsZero() && !until.After(from) {
		k.fault(RuleTime, path+"until", "a time after from ("+stamp(from)+")", stamp(until), "correct one of the two")
	}
}

func nth(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }

func (k *checker) objects() {
	c := &k.r.c
	for i := range c.Members {
		m := &c.Members[i]
		k.at = Place{Kind: "member", Name: m.Name}
		k.name(m.Name)
		k.text("title", m.Title, true)
		k.text("contact", m.Contact, false)
	}
	for i := range c.Services {
		k.service(&c.Services[i])
	}
	gateways := make(map[netip.AddrPort]string)
	registered := make(map[string]string) // certificate → device
	for i := range c.Devices {
		k.device(i, gateways, registered)
	}
	k.memberships()
}

func (k *checker) service(s *Service) {
	k.at = Place{Kind: "service", Name: s.Name}
	k.name(s.Name)
	k.text("title", s.Title, true)
	k.oneOf("category", s.Category, policy.CategoryInformation, policy.CategoryInternet, policy.CategoryStorageRelay,
		policy.CategoryProcessing, policy.CategoryMaintenance, policy.CategoryAuthentication)
	if k.oneOf("auth", s.Auth, policy.AuthCertificate, policy.AuthPSK) {
		switch {
		case s.Auth == policy.AuthPSK && s.Domain != "":
			k.fault(RuleDomain, "domain", "none, because auth is \"psk\"", certs.Quote(s.Domain), "remove it")
		case s.Auth != policy.AuthPSK && !ValidDNSName(s.Domain):
			k.fault(RuleDomain, "domain", "the DNS domain of the names in the service's certificates, such as group-a.example", certs.Quote(s.Domain), "correct it")
		}
	}
	if s.Rules.Revocation != "" {
		k.oneOf("rules.revocation", s.Rules.Revocation, policy.RevocationIfKnown, policy.RevocationRequired)
	}
	if s.Rules.FirstChild != "" {
		k.oneOf("rules.first_child", s.Rules.FirstChild, policy.FirstChildWithIKE, policy.FirstChildOwn)
	}
	k.count("rules.suites.ike", len(s.Rules.Suites.IKE), 1, policy.MaxSuites)
	k.count("rules.suites.esp", len(s.Rules.Suites.ESP), 1, policy.MaxSuites)
	if k.count("rules.allow", len(s.Rules.Allow), 0, policy.MaxPorts) {
		for i, a := range s.Rules.Allow {
			if _, hint, ok := parseAllow(a); !ok {
				k.fault(RuleFlow, nth("rules.allow", i), "such as \"tcp\", \"udp/53\", \"tcp/5000-5010\", \"icmp\", \"any\" or a number from 1 to 252", certs.Quote(a), hint)
			}
		}
	}
}

func (k *checker) device(i int, gateways map[netip.AddrPort]string, registered map[string]string) {
	d := &k.r.c.Devices[i]
	k.at = Place{Kind: "device", Name: d.Name}
	if !ValidDNSName(d.Name) || len(d.Name) > MaxName {
		k.fault(RuleName, "", fmt.Sprintf("a DNS name of at most %d octets such as a.devices.example, as in the device certificate", MaxName), certs.Quote(d.Name), "rename it")
	}
	if _, ok := k.r.member[d.Member]; !ok {
		k.fault(RuleReference, "member", "the name of a member", certs.Quote(d.Member), "add members/NAME.toml or correct the name"+nearest(d.Member, k.r.member))
	}
	k.oneOf("state", string(d.State), string(Active), string(Suspended), string(Revoked))
	if d.ESP != "" {
		k.oneOf("esp", d.ESP, policy.ESPUDP, policy.ESPNative)
	}
	if d.Moves != "" && k.oneOf("moves", d.Moves, policy.MovesNamed, policy.MovesAnywhere, policy.MovesNever) && d.Moves == policy.MovesNamed && len(d.Gateways) == 0 {
		k.fault(RuleGateway, "moves", "\"anywhere\" or \"never\", because the device has no gateways", certs.Quote(d.Moves), "register the addresses that it moves between as its gateways")
	}
	k.certificate(i, registered)
	if k.count("gateways", len(d.Gateways), 0, policy.MaxGateways) {
		for j, s := range d.Gateways {
			k.gateway(d, j, s, gateways)
		}
	}
	k.zones(d)
}

func (k *checker) certificate(i int, registered map[string]string) {
	d := &k.r.c.Devices[i]
	const path, do = "certificate", "put the device certificate into devices/NAME.pem as one PEM block"
	if d.Certificate == "" {
		k.fault(RuleCertificate, path, "the device certificate", "none", do)
		return
	}
	leaf := k.parsed[d.Certificate]
	if leaf == nil {
		came := "several"
		if _, err := certs.ParseCertificates([]byte(d.Certificate)); err != nil {
			came = certs.Quote(err.Error())
		}
		k.fault(RuleCertificate, path, "one certificate in PEM", came, do)
		return
	}
	k.r.cert[i] = leaf
	if leaf.IsCA {
		k.fault(RuleCertificate, path, "a device's certificate", "that of a CA, "+certs.SubjectOf(leaf), do)
	}
	if err := certs.CheckPublicKey(leaf.PublicKey); err != nil {
		k.fault(RuleCertificate, path, "a strong key", err.Error(), "have a certificate issued for a strong key")
	}
	if !slices.ContainsFunc(leaf.DNSNames, func(n string) bool { return strings.EqualFold(n, d.Name) }) {
		k.fault(RuleCertificate, path, "a certificate for "+d.Name, "one for "+certs.Quote(strings.Join(leaf.DNSNames, ", ")), "register the device under the name in its certificate")
	}
	if other, twice := registered[string(leaf.Raw)]; twice {
		k.fault(RuleCertificate, path, "a certificate of this device alone", "the one of device "+other, "each device has its own")
	}
	registered[string(leaf.Raw)] = d.Name
}

const ikePort = 500 // RFC 7296, section 2

// ParseGateway reads an address, or address:port; without one it is IKE's.
func ParseGateway(s string) (netip.AddrPort, bool) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return ap, false
		}
		ap = netip.AddrPortFrom(a, ikePort)
	}
	a := ap.Addr()
	ok := plain(a) && ap.Port() != 0 && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return ap, ok
}

func plain(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

func (k *checker) gateway(d *Device, j int, s string, gateways map[netip.AddrPort]string) {
	ap, ok := ParseGateway(s)
	if !ok {
		k.fault(RuleGateway, nth("gateways", j), "an address, or address:port, such as 203.0.113.2 or [2001:db8::2]:500", certs.Quote(s), "")
		return
	}
	if d.State == Revoked {
		return // its place may be another's now
	}
	if other, taken := gateways[ap]; taken {
		k.fault(RuleGateway, nth("gateways", j), "a gateway of this device alone", fmt.Sprintf("%v, which device %s has", ap, other), "correct one of them")
		return
	}
	gateways[ap] = d.Name
}

// prefix checks the form of one; ok is false when it is at fault.
func (k *checker) prefix(path string, p netip.Prefix) bool {
	switch {
	case !p.IsValid() || !plain(p.Addr()):
		k.fault(RulePrefix, path, "an address such as 10.1.2.10 or a prefix such as 10.2.1.0/24", p.String(), "")
	case p != p.Masked():
		k.fault(RulePrefix, path, "a prefix without bits beyond its length", p.String(), fmt.Sprintf("write %v for the network or %v for the host", p.Masked(), p.Addr()))
	default:
		return true
	}
	return false
}

// prefixes checks a list; ok is false when any is at fault.
func (k *checker) prefixes(path string, list []netip.Prefix, least int) bool {
	if !k.count(path, len(list), least, policy.MaxPrefixes) {
		return false
	}
	ok := true
	seen := make(map[netip.Prefix]bool, len(list))
	for i, p := range list {
		if !k.prefix(nth(path, i), p) {
			ok = false
			continue
		}
		if seen[p] {
			k.fault(RuleTwice, nth(path, i), "each address once", showPrefix(p)+" a second time", "remove it")
			ok = false
		}
		seen[p] = true
	}
	return ok
}

// showPrefix writes a single host without its length.
func showPrefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func (k *checker) zones(d *Device) {
	k.count("zone", len(d.Zones), 1, policy.MaxZones)
	seen := make(map[string]int)
	var have overlaps
	for i := range d.Zones {
		z := &d.Zones[i]
		at := nth("zone", i)
		k.label(at+".name", z.Name, seen, i)
		k.oneOf(at+".level", z.Level, policy.LevelHSZ, policy.LevelSZ, policy.LevelDMZ)
		k.count(at+".interfaces", len(z.Interfaces), 1, 64)
		if !k.prefixes(at+".prefixes", z.Prefixes, 1) {
			continue
		}
		for j, p := range z.Prefixes {
			if o, ok := have.find(p); ok {
				k.fault(RuleZoneOverlap, nth(at+".prefixes", j), "addresses that are in no other zone and not in this one twice",
					fmt.Sprintf("%v, which overlaps zone %q (%v)", p, d.Zones[o.n].Name, o.p), "give each address to one zone")
			}
		}
		for _, p := range z.Prefixes {
			have.add(p, i)
		}
	}
}

// memberships looks at each, and at whether two devices have one identity in a service.
func (k *checker) memberships() {
	r := k.r
	for i := range r.c.Devices {
		d := &r.c.Devices[i]
		k.at = Place{Kind: "device", Name: d.Name}
		list := r.MembershipsOf(d.Name)
		k.count("membership", len(list), 0, MaxMemberships)
		for j := range list {
			m := &list[j]
			path := "membership[" + m.Service + "]"
			k.times(path, m.From, m.Until)
			s := r.Service(m.Service)
			switch {
			case m.ID == "" || s == nil:
			case s.Auth == policy.AuthPSK:
				k.fault(RuleIdentity, path+".id", "none, because service "+s.Name+" has a pre-shared key", certs.Quote(m.ID), "remove it")
			case !ValidDNSName(m.ID) || !strings.HasSuffix(m.ID, "."+s.Domain):
				k.fault(RuleIdentity, path+".id", "a DNS name below the service's domain "+s.Domain, certs.Quote(m.ID), "correct it or leave it out")
			}
		}
	}
	for i := range r.c.Services {
		s := &r.c.Services[i]
		if s.Auth == policy.AuthPSK {
			continue
		}
		who := make(map[string]string, len(r.joinedBy[i]))
		for m := range r.MembersOf(s.Name) {
			if d := r.Device(m.Device); d == nil || d.State == Revoked {
				continue // its place may be another's now
			}
			id := serviceID(m, s)
			if other, taken := who[id]; taken {
				k.at = Place{Kind: "device", Name: m.Device}
				k.fault(RuleIdentity, "membership["+m.Service+"]", "an identity in the service's certificates that is this device's alone",
					fmt.Sprintf("%s, which device %s has", id, other), "give one of the memberships an id")
			}
			who[id] = m.Device
		}
	}
}
