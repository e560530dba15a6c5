package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
)

// Changes is the difference between two tables.
type Changes struct {
	Added, Removed []string // names of connections, in the order of the documents
	Changed        []ConnectionChange
	ZonesChanged   bool // routes and filters for zones must be made anew
}

// Empty reports whether nothing changed.
func (c Changes) Empty() bool {
	return len(c.Added)+len(c.Removed)+len(c.Changed) == 0 && !c.ZonesChanged
}

// ConnectionChange is what changed in a connection.
type ConnectionChange struct {
	Name   string
	Fields []string // "flows", "local", "gateways", "anchors" …
	EndsSA bool     // what the SAs rest on changed; false when swapping the Table is enough (flows, gateways, start, idle, lifetimes)
}

type comparedField struct {
	name  string
	value string
	ends  bool
}

func certList(list []*x509.Certificate) string {
	var b strings.Builder
	for _, c := range list {
		sum := sha256.Sum256(c.Raw)
		b.Write(sum[:])
	}
	return b.String()
}

func crlList(list []*x509.RevocationList) string {
	var b strings.Builder
	for _, c := range list {
		sum := sha256.Sum256(c.Raw)
		b.Write(sum[:])
	}
	return b.String()
}

// revoked lists issuer and serial of what the lists revoke.
func revoked(list []*x509.RevocationList) map[string]bool {
	out := make(map[string]bool)
	for _, c := range list {
		for i := range c.RevokedCertificateEntries {
			out[string(c.RawIssuer)+"\x00"+c.RevokedCertificateEntries[i].SerialNumber.String()] = true
		}
	}
	return out
}

// moreRevoked reports whether now revokes something that before did not: an SA may rest on it.
func moreRevoked(before, now []*x509.RevocationList) bool {
	old := revoked(before)
	for k := range revoked(now) {
		if !old[k] {
			return true
		}
	}
	return false
}

func (t *Table) comparedFields(i int, flows string) []comparedField {
	c := &t.conns[i]
	psk := sha256.Sum256(c.PSK.b)
	return []comparedField{
		{"peer", c.Peer, true},
		{"device_id", c.DeviceID, true},
		{"gateways", fmt.Sprint(c.Gateways), false},
		{"esp", fmt.Sprint(c.NativeESP), false},
		{"moves", c.Moves, false},
		{"ppk", c.PPK + " " + c.PPKID, true},
		{"first_child", fmt.Sprint(c.Childless), false},
		{"service", c.Service, true},
		{"category", c.Category, false},
		{"service_id", c.ServiceID, true},
		{"auth", c.Auth, true},
		{"psk", string(psk[:]), true},
		{"anchors", certList(c.Anchors), true},
		{"crls", crlList(c.CRLs), false}, // see moreRevoked
		{"device_anchors", certList(t.deviceAnchors), true},
		{"device_crls", crlList(t.deviceCRLs), false},
		{"revocation", fmt.Sprint(t.RevocationRequired()), false}, // certificates are judged again
		{"local", fmt.Sprint(c.Local), true},
		{"remote", fmt.Sprint(c.Remote), true},
		{"suites", fmt.Sprint(t.doc.Suites), true},
		{"lifetimes", fmt.Sprint(t.doc.Lifetimes), false},
		{"start", c.Start, false},
		{"idle", c.Idle.String(), false},
		{"flows", flows, false},
	}
}

// flowTexts returns what the flows of each connection allow, as a text to compare.
func (t *Table) flowTexts() []string {
	hashes := make([]strings.Builder, len(t.conns))
	for i := range t.rules {
		r := &t.rules[i]
		fmt.Fprintf(&hashes[r.conn], "%d %d %v %v %v;", r.dir, r.proto, r.ports, r.inside, r.outside)
	}
	out := make([]string, len(hashes))
	for i := range hashes {
		out[i] = hashes[i].String()
	}
	return out
}

// Diff tells what changes when t replaces old (nil: nothing was running). Connections are matched
// by name.
func (t *Table) Diff(old *Table) Changes {
	var ch Changes
	if old == nil {
		for i := range t.conns {
			ch.Added = append(ch.Added, t.conns[i].Name)
		}
		ch.ZonesChanged = true
		return ch
	}
	mine, theirs := t.flowTexts(), old.flowTexts()
	for i := range t.conns {
		name := t.conns[i].Name
		j := old.ConnectionIndex(name)
		if j < 0 {
			ch.Added = append(ch.Added, name)
			continue
		}
		change := ConnectionChange{Name: name}
		before := old.comparedFields(j, theirs[j])
		for k, f := range t.comparedFields(i, mine[i]) {
			if f.value != before[k].value {
				change.Fields = append(change.Fields, f.name)
				change.EndsSA = change.EndsSA || f.ends
			}
		}
		if moreRevoked(old.conns[j].CRLs, t.conns[i].CRLs) || moreRevoked(old.deviceCRLs, t.deviceCRLs) {
			change.EndsSA = true
		}
		if len(change.Fields) > 0 {
			ch.Changed = append(ch.Changed, change)
		}
	}
	for i := range old.conns {
		if t.ConnectionIndex(old.conns[i].Name) < 0 {
			ch.Removed = append(ch.Removed, old.conns[i].Name)
		}
	}
	ch.ZonesChanged = !slices.EqualFunc(t.zones, old.zones, func(a, b ZoneInfo) bool {
		return a.Name == b.Name && a.Level == b.Level && slices.Equal(a.Prefixes, b.Prefixes) && slices.Equal(a.Interfaces, b.Interfaces)
	})
	return ch
}
