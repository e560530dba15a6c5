package policy

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gaissmai/bart"

	"wardgate/internal/certs"
)

// Compile checks the meaning of a document and makes the Table. All faults are collected (at most
// 100 are listed); the error is a *DocumentError of kind ErrInvalid. The document is not changed,
// and the Table keeps no reference to its slices that a later change could reach.
func Compile(doc *Document) (*Table, error) {
	if doc == nil {
		return nil, fmt.Errorf("%w: expected a document, came nil", ErrOptions)
	}
	c := compiler{doc: doc, root: &path{}, t: &Table{doc: copyDocument(doc), byName: map[string]int{}, zone: new(bart.Table[int32])}}
	c.header()
	c.suites()
	c.lifetimes()
	if c.doc.Revocation != "" {
		c.oneOf(c.root.at("revocation"), c.doc.Revocation, RevocationIfKnown, RevocationRequired)
	}
	c.zones()
	c.services()
	c.peers()
	c.connections()
	c.tests()
	c.combinedUse()
	c.overlaps()
	if len(c.f.list) > 0 {
		fillLines(doc.payload, c.f.list)
		slices.SortStableFunc(c.f.list, func(a, b *FieldError) int { return a.Line - b.Line })
		return nil, c.f.err(ErrInvalid)
	}
	return c.t, nil
}

// copyDocument copies what the Table refers to.
func copyDocument(doc *Document) Document {
	d := *doc
	d.payload, d.table = nil, nil
	d.Suites = Suites{IKE: slices.Clone(doc.Suites.IKE), ESP: slices.Clone(doc.Suites.ESP)}
	d.Connections = slices.Clone(doc.Connections)
	for i := range d.Connections {
		d.Connections[i].Flows = slices.Clone(doc.Connections[i].Flows)
	}
	d.Zones, d.DeviceAnchors, d.DeviceCRLs, d.Services, d.Peers, d.Tests = nil, nil, nil, nil, nil, nil
	return d
}

type compiler struct {
	doc  *Document
	t    *Table
	f    faults
	root *path

	zonesOK  bool          // false: what depends on zones would only repeat their faults
	trust    []serviceInfo // by index in the document
	service  map[string]int
	peer     map[string]int
	gateways [][]netip.AddrPort
	flowsN   int
	entriesN int
}

type serviceInfo struct {
	anchors []*x509.Certificate
	crls    []*x509.RevocationList
}

func (c *compiler) fault(p *path, expected, came, do string) {
	c.f.add(&FieldError{Path: p.String(), Expected: expected, Came: came, Do: do})
}

func (p *path) at(key string) *path { return &path{up: p, key: key} }
func (p *path) nth(i int) *path     { return &path{up: p, idx: i} }

// count checks how many there are of something.
func (c *compiler) count(p *path, n, least, most int) bool {
	if n < least || n > most {
		expected := fmt.Sprintf("%d to %d entries", least, most)
		if least == 0 {
			expected = fmt.Sprintf("at most %d entries", most)
		}
		c.fault(p, expected, strconv.Itoa(n), "")
		return false
	}
	return true
}

// oneOf checks a word.
func (c *compiler) oneOf(p *path, s string, words ...string) bool {
	if slices.Contains(words, s) {
		return true
	}
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = strconv.Quote(w)
	}
	c.fault(p, "one of "+strings.Join(q, ", "), certs.Quote(s), "")
	return false
}

const maxName = 63

// name checks a name and that it is new. Names appear in logs, in nftables and on command lines.
func (c *compiler) name(p *path, s string, seen map[string]int, i int) bool {
	ok := s != "" && len(s) <= maxName && s[0] != '-' && s[0] != '.'
	for _, r := range []byte(s) {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}
	if !ok {
		c.fault(p, fmt.Sprintf("a name of 1 to %d letters, digits, '-', '_' and '.', not beginning with '-' or '.'", maxName), certs.Quote(s), "")
		return false
	}
	if first, twice := seen[s]; twice {
		c.fault(p, "a name that is used once", fmt.Sprintf("%q, which entry %d has too", s, first), "rename one of them")
		return false
	}
	seen[s] = i
	return true
}

// identity checks an identity that a certificate can vouch for (RFC 4945, section 3.1).
func (c *compiler) identity(p *path, s string) bool {
	ok := s != "" && len(s) <= 253
	for _, r := range []byte(s) {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.IndexByte("-_.@+:", r) >= 0)
	}
	if a, err := netip.ParseAddr(s); err == nil {
		ok = ok && plain(a)
	} else if strings.Contains(s, ":") || strings.Count(s, "@") > 1 || strings.HasPrefix(s, "@") || strings.HasSuffix(s, "@") ||
		strings.HasPrefix(s, ".") || strings.HasSuffix(s, ".") || strings.Contains(s, "..") {
		ok = false
	}
	if !ok {
		c.fault(p, "an identity: a host name such as b.devices.example, a mailbox, or an address", certs.Quote(s), "write it as it stands in the certificate")
	}
	return ok
}

func (c *compiler) header() {
	d, root := c.doc, c.root
	if d.Format != Format {
		c.fault(root.at("format"), strconv.Itoa(Format), strconv.Itoa(d.Format), "install a version of Wardgate that knows this format, or have the policy written in format "+strconv.Itoa(Format))
	}
	c.identity(root.at("issuer"), d.Issuer)
	dev := root.at("device")
	c.identity(dev.at("id"), d.Device.ID)
	if _, err := ParseDigest(d.Device.Fingerprint); err != nil {
		c.fault(dev.at("fingerprint"), "\"sha256:\" and the 64 lower-case hex digits of the device certificate's SHA-256", certs.Quote(d.Device.Fingerprint), "")
	}
	if d.Serial == 0 {
		c.fault(root.at("serial"), "a number from 1", "0", "")
	}
	if d.NotBefore.IsZero() {
		c.fault(root.at("not_before"), "a time", "none", "")
	}
	if !d.NotAfter.After(d.NotBefore) {
		c.fault(root.at("not_after"), "a time after not_before ("+d.NotBefore.UTC().Format(time.RFC3339)+")", d.NotAfter.UTC().Format(time.RFC3339), "")
	}
}

func (c *compiler) duration(p *path, d Duration, least, most time.Duration) bool {
	if time.Duration(d) < least || time.Duration(d) > most {
		c.fault(p, fmt.Sprintf("%v to %v", least, most), d.String(), "")
		return false
	}
	return true
}

// Bounds and defaults of lifetimes.
const (
	defaultIKE      = 8 * time.Hour
	defaultChild    = time.Hour
	defaultLiveness = 30 * time.Second
	minLifetime     = time.Second
	maxLifetime     = 24 * time.Hour
	minLiveness     = time.Second
	maxLiveness     = time.Hour
	minChildBytes   = 1 << 20
	minChildPackets = 1000
	minIdle         = time.Second
	maxIdle         = 24 * time.Hour
)

func (c *compiler) lifetimes() {
	l := &c.t.doc.Lifetimes
	p := c.root.at("lifetimes")
	set := func(d *Duration, key string, standard, least, most time.Duration) bool {
		if *d == 0 {
			*d = Duration(standard)
		}
		return c.duration(p.at(key), *d, least, most)
	}
	ok := set(&l.IKE, "ike", defaultIKE, minLifetime, maxLifetime)
	ok = set(&l.Child, "child", min(defaultChild, time.Duration(l.IKE)), minLifetime, maxLifetime) && ok
	set(&l.Liveness, "liveness", defaultLiveness, minLiveness, maxLiveness)
	if ok && l.Child > l.IKE {
		c.fault(p.at("child"), "at most lifetimes.ike ("+l.IKE.String()+")", l.Child.String(), "")
	}
	if l.ChildBytes != 0 && l.ChildBytes < minChildBytes {
		c.fault(p.at("child_bytes"), fmt.Sprintf("0 (no limit but the algorithm's) or at least %d", minChildBytes), strconv.FormatUint(l.ChildBytes, 10), "")
	}
	if l.ChildPackets != 0 && l.ChildPackets < minChildPackets {
		c.fault(p.at("child_packets"), fmt.Sprintf("0 (no limit but the algorithm's) or at least %d", minChildPackets), strconv.FormatUint(l.ChildPackets, 10), "")
	}
}

// prefix reads an address or a prefix.
func (c *compiler) prefix(p *path, s string) (netip.Prefix, bool) {
	const expected = "an address such as 10.1.2.10 or a prefix such as 10.2.1.0/24"
	var pfx netip.Prefix
	if strings.Contains(s, "/") {
		v, err := netip.ParsePrefix(s)
		if err != nil {
			c.fault(p, expected, certs.Quote(s), "")
			return pfx, false
		}
		pfx = v
	} else {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			c.fault(p, expected, certs.Quote(s), "")
			return pfx, false
		}
		pfx = netip.PrefixFrom(a, a.BitLen())
	}
	if pfx.Addr().Is4In6() {
		c.fault(p, "an IPv4 address in its own form", certs.Quote(s), "write "+pfx.Addr().Unmap().String())
		return pfx, false
	}
	if pfx != pfx.Masked() {
		c.fault(p, "a prefix without bits beyond its length", s, fmt.Sprintf("write %v for the network or %v for the host", pfx.Masked(), pfx.Addr()))
		return pfx, false
	}
	for _, x := range special {
		if x.prefix.Overlaps(pfx) {
			c.fault(p, "addresses of hosts", fmt.Sprintf("%s, which holds addresses of %v (%s)", s, x.prefix, x.name), "name the hosts or networks that are meant")
			return pfx, false
		}
	}
	return pfx, true
}

// prefixes reads a list of addresses; ok is false when any is at fault.
func (c *compiler) prefixes(p *path, list []string, least int) (out []netip.Prefix, ok bool) {
	if !c.count(p, len(list), least, MaxPrefixes) {
		return nil, false
	}
	ok = true
	seen := make(map[netip.Prefix]int, len(list))
	for i, s := range list {
		pfx, good := c.prefix(p.nth(i), s)
		if !good {
			ok = false
			continue
		}
		if first, twice := seen[pfx]; twice {
			c.fault(p.nth(i), "each address once", fmt.Sprintf("%s, which entry %d has too", s, first), "remove it")
			ok = false
			continue
		}
		seen[pfx] = i
		out = append(out, pfx)
	}
	return out, ok
}

func (c *compiler) anchors(p *path, list []string) (out []*x509.Certificate) {
	if !c.count(p, len(list), 0, MaxAnchors) {
		return nil
	}
	for i, s := range list {
		const do = "write one CA certificate in PEM, \"-----BEGIN CERTIFICATE-----\" first"
		cs, err := certs.ParseCertificates([]byte(s))
		if err == nil && (len(cs) != 1 || !strings.HasPrefix(s, "-----BEGIN")) {
			err = errors.New("not one PEM block")
		}
		if err != nil {
			c.fault(p.nth(i), "one certificate in PEM", err.Error(), do)
			continue
		}
		ca := cs[0]
		if !ca.BasicConstraintsValid || !ca.IsCA {
			c.fault(p.nth(i), "a CA's certificate", certs.SubjectOf(ca)+", which may not issue", do)
			continue
		}
		if err := certs.CheckPublicKey(ca.PublicKey); err != nil {
			c.fault(p.nth(i), "a CA with a strong key", err.Error(), "")
			continue
		}
		if slices.ContainsFunc(out, ca.Equal) {
			c.fault(p.nth(i), "each certificate once", certs.SubjectOf(ca)+" a second time", "remove it")
			continue
		}
		out = append(out, ca)
	}
	return out
}

func (c *compiler) crls(p *path, list []string, anchors []*x509.Certificate) (out []*x509.RevocationList) {
	if !c.count(p, len(list), 0, MaxAnchors) {
		return nil
	}
	for i, s := range list {
		ls, err := certs.ParseCRLs([]byte(s))
		if err == nil && (len(ls) != 1 || !strings.HasPrefix(s, "-----BEGIN")) {
			err = errors.New("not one PEM block")
		}
		if err != nil {
			c.fault(p.nth(i), "one revocation list in PEM", err.Error(), "write one \"-----BEGIN X509 CRL-----\" block")
			continue
		}
		// A list by an intermediate CA is judged when the intermediate is there; one that claims to
		// be an anchor's can be judged now.
		good := true
		for _, a := range anchors {
			if string(a.RawSubject) != string(ls[0].RawIssuer) {
				continue
			}
			if err := certs.CheckCRL(ls[0], a); err != nil {
				c.fault(p.nth(i), "a revocation list that its issuer signed", err.Error(), "fetch the list again")
				good = false
			}
		}
		if good {
			out = append(out, ls[0])
		}
	}
	return out
}

const minPSK, maxPSK = 32, 1024 // bytes: the key is pushed, nobody types it

func (c *compiler) services() {
	c.service = make(map[string]int)
	c.trust = make([]serviceInfo, len(c.doc.Services))
	list := c.root.at("services")
	c.count(list, len(c.doc.Services), 0, MaxServices)
	c.t.deviceAnchors = c.anchors(c.root.at("device_anchors"), c.doc.DeviceAnchors)
	c.t.deviceCRLs = c.crls(c.root.at("device_crls"), c.doc.DeviceCRLs, c.t.deviceAnchors)
	for i := range c.doc.Services {
		s := &c.doc.Services[i]
		p := list.nth(i)
		c.name(p.at("name"), s.Name, c.service, i)
		c.oneOf(p.at("category"), s.Category, CategoryInformation, CategoryInternet, CategoryStorageRelay, CategoryProcessing, CategoryMaintenance, CategoryAuthentication)
		info := &c.trust[i]
		info.anchors = c.anchors(p.at("anchors"), s.Anchors)
		info.crls = c.crls(p.at("crls"), s.CRLs, info.anchors)
		switch authOf(s) {
		case AuthCertificate:
			if len(s.Anchors) == 0 {
				c.fault(p.at("anchors"), "the service's CA, because auth is \"certificate\"", "none", "add it")
			}
			if len(c.doc.DeviceAnchors) == 0 {
				c.fault(c.root.at("device_anchors"), fmt.Sprintf("the device CA, because service %q authenticates with certificates", s.Name), "none", "add it")
			}
			if !s.PSK.IsZero() {
				c.fault(p.at("psk"), "none, because auth is \"certificate\"", "one", "remove it or set auth to \"psk\"")
			}
		case AuthPSK:
			if s.PSK.Len() < minPSK || s.PSK.Len() > maxPSK {
				c.fault(p.at("psk"), fmt.Sprintf("a random key of %d to %d bytes, because auth is \"psk\"", minPSK, maxPSK), fmt.Sprintf("%d bytes", s.PSK.Len()), "generate one, for example with: openssl rand -base64 32")
			}
			if len(s.Anchors)+len(s.CRLs) > 0 {
				c.fault(p.at("anchors"), "no anchors and no crls, because auth is \"psk\"", "some", "remove them or set auth to \"certificate\"")
			}
		default:
			c.oneOf(p.at("auth"), s.Auth, AuthCertificate, AuthPSK)
		}
	}
}

func authOf(s *Service) string {
	if s.Auth == "" {
		return AuthCertificate
	}
	return s.Auth
}

const ikePort = 500 // RFC 7296, section 2

func parseGateway(s string) (netip.AddrPort, bool) {
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

func (c *compiler) peers() {
	c.peer = make(map[string]int)
	c.gateways = make([][]netip.AddrPort, len(c.doc.Peers))
	list := c.root.at("peers")
	c.count(list, len(c.doc.Peers), 0, MaxPeers)
	devices := make(map[string]int)
	where := make(map[netip.AddrPort]int)
	for i := range c.doc.Peers {
		peer := &c.doc.Peers[i]
		p := list.nth(i)
		c.name(p.at("name"), peer.Name, c.peer, i)
		if c.identity(p.at("device_id"), peer.DeviceID) {
			id := strings.ToLower(peer.DeviceID)
			if first, twice := devices[id]; twice {
				c.fault(p.at("device_id"), "a device that is one peer", fmt.Sprintf("%s, which peer %q is too", peer.DeviceID, c.doc.Peers[first].Name), "make one peer of the two")
			}
			devices[id] = i
			if id == strings.ToLower(c.doc.Device.ID) {
				c.fault(p.at("device_id"), "another device", "the one that this policy is for", "remove this peer from the device's own policy")
			}
		}
		if peer.ESP != "" {
			c.oneOf(p.at("esp"), peer.ESP, ESPUDP, ESPNative)
		}
		if peer.Moves != "" && c.oneOf(p.at("moves"), peer.Moves, MovesNamed, MovesAnywhere, MovesNever) && peer.Moves == MovesNamed && len(peer.Gateways) == 0 {
			c.fault(p.at("moves"), fmt.Sprintf("%q or %q, because the peer has no gateways", MovesAnywhere, MovesNever), certs.Quote(peer.Moves), "name the addresses that it moves between as its gateways, or change moves")
		}
		c.count(p.at("gateways"), len(peer.Gateways), 0, MaxGateways)
		for j, g := range peer.Gateways {
			ap, ok := parseGateway(g)
			if !ok {
				c.fault(p.at("gateways").nth(j), "an address, or address:port, such as 203.0.113.2 or [2001:db8::2]:500", certs.Quote(g), "")
				continue
			}
			if first, twice := where[ap]; twice {
				c.fault(p.at("gateways").nth(j), "a gateway that is named once", fmt.Sprintf("%v, which peer %q has already", ap, c.doc.Peers[first].Name), "")
				continue
			}
			where[ap] = i
			c.gateways[i] = append(c.gateways[i], ap)
		}
	}
}

func (c *compiler) connections() {
	list := c.root.at("connections")
	c.count(list, len(c.doc.Connections), 0, MaxConnections)
	for i := range c.doc.Connections {
		c.flowsN += len(c.doc.Connections[i].Flows)
	}
	c.count(list, c.flowsN, 0, MaxFlows)
	if c.flowsN > MaxFlows || len(c.doc.Connections) > MaxConnections {
		return
	}
	for i := range c.doc.Connections {
		c.connection(i)
	}
	if c.entriesN > MaxEntries {
		c.t.rules = nil // refused already: not worth the work of looking for more
	}
}

// ppk checks what a connection says of its postquantum preshared key. Several connections may have the
// same.
func (c *compiler) ppk(p *path, conn *Connection, info *ConnectionInfo) {
	if info.PPK = conn.PPK; conn.PPK == "" {
		info.PPK = PPKOff
	}
	if !c.oneOf(p.at("ppk"), info.PPK, PPKOff, PPKOptional, PPKRequired) {
		return
	}
	switch {
	case info.PPK == PPKOff && conn.PPKID != "":
		c.fault(p.at("ppk_id"), fmt.Sprintf("none, because ppk is %q", PPKOff), certs.Quote(conn.PPKID), fmt.Sprintf("remove it, or write ppk %q", PPKRequired))
	case info.PPK != PPKOff && conn.PPKID == "":
		c.fault(p.at("ppk_id"), "the name of the key, the same on both devices", "none", "add it")
	case info.PPK != PPKOff:
		c.name(p.at("ppk_id"), conn.PPKID, make(map[string]int), 0)
	}
	info.PPKID = conn.PPKID
}

func (c *compiler) connection(i int) {
	conn := &c.doc.Connections[i]
	p := c.root.at("connections").nth(i)
	c.name(p.at("name"), conn.Name, c.t.byName, i)
	info := ConnectionInfo{Name: conn.Name, Peer: conn.Peer, Service: conn.Service, ServiceID: conn.ServiceID, Start: conn.Start, Idle: time.Duration(conn.Idle)}
	if n, ok := c.peer[conn.Peer]; ok {
		info.DeviceID, info.Gateways = c.doc.Peers[n].DeviceID, slices.Clone(c.gateways[n])
		info.NativeESP = c.doc.Peers[n].ESP == ESPNative
		if info.Moves = c.doc.Peers[n].Moves; info.Moves == "" {
			info.Moves = MovesNamed
			if len(c.doc.Peers[n].Gateways) == 0 {
				info.Moves = MovesAnywhere
			}
		}
		if len(c.doc.Peers[n].Gateways) == 0 && conn.Start != StartManual {
			c.fault(p.at("start"), fmt.Sprintf("%q, because peer %q has no gateways: only the peer can set up the connection", StartManual, conn.Peer), certs.Quote(conn.Start), "add the peer's gateway, or change start")
		}
	} else {
		c.fault(p.at("peer"), "the name of a peer in /peers", certs.Quote(conn.Peer), "add the peer or correct the name")
	}
	if n, ok := c.service[conn.Service]; ok {
		s := &c.doc.Services[n]
		info.Category, info.Auth, info.PSK = s.Category, authOf(s), NewSecret(s.PSK.b)
		info.Anchors, info.CRLs = c.trust[n].anchors, c.trust[n].crls
		switch {
		case info.Auth == AuthPSK && conn.ServiceID != "":
			c.fault(p.at("service_id"), fmt.Sprintf("none, because service %q has a pre-shared key", conn.Service), certs.Quote(conn.ServiceID), "remove it")
		case info.Auth != AuthPSK && conn.ServiceID == "":
			c.fault(p.at("service_id"), "the peer's identity in its service certificate", "none", "add it")
		case conn.ServiceID != "":
			c.identity(p.at("service_id"), conn.ServiceID)
		}
	} else {
		c.fault(p.at("service"), "the name of a service in /services", certs.Quote(conn.Service), "add the service or correct the name")
	}
	c.ppk(p, conn, &info)
	if conn.FirstChild != "" {
		c.oneOf(p.at("first_child"), conn.FirstChild, FirstChildWithIKE, FirstChildOwn)
		info.Childless = conn.FirstChild == FirstChildOwn
	}
	c.oneOf(p.at("start"), conn.Start, StartOnDemand, StartManual, StartAlways)
	if conn.Idle != 0 {
		c.duration(p.at("idle"), conn.Idle, minIdle, maxIdle)
		if conn.Start == StartAlways {
			c.fault(p.at("idle"), "none, because start is \"always\"", conn.Idle.String(), "remove it or change start")
		}
	}

	local, localOK := c.prefixes(p.at("local"), conn.Local, 0)
	remote, remoteOK := c.prefixes(p.at("remote"), conn.Remote, 0)
	for j, pfx := range local {
		if localOK {
			c.inZone(p.at("local").nth(j), pfx)
		}
	}
	for j, pfx := range remote {
		if remoteOK {
			c.notLocal(p.at("remote").nth(j), pfx)
		}
	}
	if len(local) > 0 && localOK {
		c.selectorLevel(p, local, &info)
	}

	c.count(p.at("flows"), len(conn.Flows), 1, MaxFlows)
	names := make(map[string]int, len(conn.Flows))
	first := len(c.t.rules)
	inLocal, inRemote := newCover(local, localOK), newCover(remote, remoteOK)
	for j := range conn.Flows {
		c.flow(i, j, p.at("flows").nth(j), &info, names, inLocal, inRemote)
	}
	var inside, outside []netip.Prefix
	for _, r := range c.t.rules[first:] {
		inside = append(inside, r.inside...)
		outside = append(outside, r.outside...)
	}
	if len(conn.Local) > 0 {
		inside = local
	}
	if len(conn.Remote) > 0 {
		outside = remote
	}
	info.Local, info.Remote = aggregate(inside), aggregate(outside)
	for _, side := range []struct {
		key  string
		list []netip.Prefix
	}{{"local", info.Local}, {"remote", info.Remote}} {
		if len(side.list) > MaxSelectors {
			c.fault(p.at(side.key), fmt.Sprintf("at most %d prefixes as traffic selectors (RFC 7296, section 3.13)", MaxSelectors), fmt.Sprint(len(side.list)),
				fmt.Sprintf("give %q with few, wider prefixes; the flows still decide what is allowed", side.key))
		}
	}
	c.t.conns = append(c.t.conns, info)
}

// cover answers whether a prefix lies within one of a list; an absent list covers all.
type cover struct {
	table *bart.Lite
}

func newCover(list []netip.Prefix, ok bool) cover {
	if len(list) == 0 || !ok {
		return cover{}
	}
	t := new(bart.Lite)
	for _, p := range list {
		t.Insert(p)
	}
	return cover{t}
}

func (v cover) holds(p netip.Prefix) bool { return v.table == nil || v.table.LookupPrefix(p) }

func families(list []netip.Prefix) (v4, v6 bool) {
	for _, p := range list {
		if p.Addr().Is4() {
			v4 = true
		} else {
			v6 = true
		}
	}
	return v4, v6
}

func (c *compiler) flow(connIdx, flowIdx int, p *path, conn *ConnectionInfo, names map[string]int, local, remote cover) {
	f := &c.doc.Connections[connIdx].Flows[flowIdx]
	c.name(p.at("name"), f.Name, names, flowIdx)
	from, ok1 := c.prefixes(p.at("from"), f.From, 1)
	to, ok2 := c.prefixes(p.at("to"), f.To, 1)
	ok := ok1 && ok2
	r := compiledRule{conn: int32(connIdx), flow: int32(flowIdx), inside: from, outside: to}
	insideKey, outsideKey := "from", "to"
	switch {
	case !c.oneOf(p.at("direction"), f.Direction, DirectionIn, DirectionOut):
		ok = false
	case f.Direction == DirectionIn:
		r.dir = opensIn
		r.inside, r.outside = to, from
		insideKey, outsideKey = "to", "from"
	}
	proto, hint, good := parseProtocol(f.Protocol)
	r.proto = proto
	if !good {
		c.fault(p.at("protocol"), "tcp, udp, icmp, icmpv6, any or a number from 1 to 252", certs.Quote(f.Protocol), hint)
		return
	}
	r.ports, good = c.ports(p, f, proto)
	if !ok || !good {
		return
	}
	r.whole = unlimited(r.ports) && proto != protoAny && !isICMP(proto)

	f4, f6 := families(from)
	t4, t6 := families(to)
	switch {
	case f4 != t4 || f6 != t6:
		c.fault(p.at("to"), "addresses of the same families as \"from\"", "others", "give IPv4 with IPv4 and IPv6 with IPv6; an address without a counterpart could never be used")
		return
	case proto == protoICMP && f6:
		c.fault(p.at("protocol"), "\"icmpv6\" for IPv6 addresses", "\"icmp\"", "make one flow for each family")
		return
	case proto == protoICMPv6 && f4:
		c.fault(p.at("protocol"), "\"icmp\" for IPv4 addresses", "\"icmpv6\"", "make one flow for each family")
		return
	}
	good = true
	for j, pfx := range r.inside {
		at := p.at(insideKey).nth(j)
		good = c.inZone(at, pfx) && good
		if !local.holds(pfx) {
			c.fault(at, "an address within the connection's \"local\"", showPrefix(pfx), "widen \"local\" or correct the flow")
			good = false
		}
	}
	for j, pfx := range r.outside {
		at := p.at(outsideKey).nth(j)
		good = c.notLocal(at, pfx) && good
		if !remote.holds(pfx) {
			c.fault(at, "an address within the connection's \"remote\"", showPrefix(pfx), "widen \"remote\" or correct the flow")
			good = false
		}
	}
	if !good {
		return
	}
	c.levels(p, insideKey, f, &r, conn)
	c.entriesN += len(r.inside) * len(r.outside) * len(r.ports)
	if c.entriesN > MaxEntries {
		if c.entriesN-len(r.inside)*len(r.outside)*len(r.ports) <= MaxEntries {
			c.fault(p, fmt.Sprintf("at most %d combinations of from, to and ports in all flows", MaxEntries), "more", "use prefixes and ranges of ports")
		}
		return
	}
	c.t.rules = append(c.t.rules, r)
}

// ports reads the ports of a flow.
func (c *compiler) ports(p *path, f *FlowRule, proto uint16) ([]PortRange, bool) {
	at := p.at("ports")
	if !hasPorts(proto) {
		if len(f.Ports) > 0 {
			c.fault(at, "none: protocol "+protocolName(proto)+" has no ports", fmt.Sprintf("%d", len(f.Ports)), "remove them")
			return nil, false
		}
		return []PortRange{allPorts}, true
	}
	if len(f.Ports) == 0 {
		if proto == protoTCP || proto == protoUDP {
			// ZONE-2: a contract names hosts, protocols and ports. Forgetting them must not open all.
			c.fault(at, "the ports that may be reached", "none", "name them, or write [\"1-65535\"] when all are meant")
			return nil, false
		}
		return []PortRange{allPorts}, true
	}
	if !c.count(at, len(f.Ports), 1, MaxPorts) {
		return nil, false
	}
	ok := true
	var list []PortRange
	for i, s := range f.Ports {
		r, good := parsePorts(s)
		if !good {
			c.fault(at.nth(i), "a port such as \"104\" or a range such as \"5000-5010\", from 1 to 65535", certs.Quote(s), "")
			ok = false
		}
		list = append(list, r)
	}
	if !ok {
		return nil, false
	}
	return mergePorts(list), true
}
