package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"wardgate/policy"
)

// Contract is what two facilities have agreed on with the service provider: a connection in the
// policy of either.
type Contract struct {
	Name    string // of the connection, the same on both sides
	Service string // the group
	// Category of the service (policy.Category…); empty: information provision.
	Category string
	Parties  [2]*Facility
	Flows    []Agreed
	Start    string        // policy.StartOnDemand where empty
	Idle     time.Duration // zero: never ended for idleness
}

// Agreed is a flow that a contract allows; From opens it.
type Agreed struct {
	Name     string // letters, digits, '-', '_' and '.'
	From     *Facility
	Src, Dst []string // addresses or prefixes
	Protocol string
	Ports    []string
}

// SuitesGCM is what the laboratory's policies allow unless told otherwise.
func SuitesGCM() policy.Suites {
	return policy.Suites{
		IKE: []string{"aes256gcm16-prfsha384-x25519-mlkem768", "aes256gcm16-prfsha384-x25519", "aes256gcm16-prfsha384-ecp384", "aes128gcm16-prfsha256-ecp256"},
		ESP: []string{"aes256gcm16", "aes128gcm16"},
	}
}

// other returns the contract's party that is not f, and whether f is a party at all.
func (c *Contract) other(f *Facility) (*Facility, bool) {
	switch f {
	case c.Parties[0]:
		return c.Parties[1], true
	case c.Parties[1]:
		return c.Parties[0], true
	}
	return nil, false
}

// ServiceID is the identity in a facility's certificate for a group.
func (f *Facility) ServiceID(service string) string {
	return f.Name + "." + service + ".example"
}

// Policy writes the policy document for one facility out of the contracts it is a party to, with
// the next serial.
func (p *Provider) Policy(f *Facility, contracts []*Contract) (*policy.Document, error) {
	f.serial++
	now := time.Now().UTC().Truncate(time.Second)
	d := &policy.Document{
		Format: policy.Format, Issuer: "sp.example", Serial: f.serial,
		Device:    policy.Device{ID: f.DeviceID, Fingerprint: fingerprint(f.leafDER)},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(30 * 24 * time.Hour),
		Suites:        SuitesGCM(),
		DeviceAnchors: []string{p.deviceAnchorPEM()},
	}
	for _, z := range f.Zones {
		d.Zones = append(d.Zones, policy.Zone{Name: z.Name, Level: z.Level, Prefixes: []string{z.Prefix.String()}, Interfaces: []string{z.Dev}})
	}
	services, peers := map[string]bool{}, map[string]bool{}
	for _, c := range contracts {
		peer, ok := c.other(f)
		if !ok {
			continue
		}
		if !services[c.Service] {
			services[c.Service] = true
			anchor, err := p.serviceAnchorPEM(c.Service)
			if err != nil {
				return nil, err
			}
			category := c.Category
			if category == "" {
				category = policy.CategoryInformation
			}
			d.Services = append(d.Services, policy.Service{Name: c.Service, Category: category, Anchors: []string{anchor}})
		}
		name := "facility-" + peer.Name
		if !peers[name] {
			peers[name] = true
			d.Peers = append(d.Peers, policy.Peer{Name: name, Gateways: []string{peer.WAN.String()}, DeviceID: peer.DeviceID})
		}
		conn := policy.Connection{
			Name: c.Name, Peer: name, Service: c.Service, ServiceID: peer.ServiceID(c.Service),
			Start: c.Start, Idle: policy.Duration(c.Idle),
		}
		if conn.Start == "" {
			conn.Start = policy.StartOnDemand
		}
		for _, a := range c.Flows {
			dir := policy.DirectionIn
			if a.From == f {
				dir = policy.DirectionOut
			}
			conn.Flows = append(conn.Flows, policy.FlowRule{Name: a.Name, From: a.Src, To: a.Dst, Protocol: a.Protocol, Ports: a.Ports, Direction: dir})
		}
		d.Connections = append(d.Connections, conn)
	}
	if len(d.Connections) == 0 {
		return nil, fmt.Errorf("lab: %s is party to no contract", f.Title)
	}
	d.Tests = policyTests(f, contracts)
	return d, nil
}

// policyTests says in the policy itself what it must allow and deny at f: every agreed flow, and
// nothing between two facilities that have no contract with each other.
func policyTests(f *Facility, contracts []*Contract) []policy.Test {
	var tests []policy.Test
	port := func(a Agreed) uint16 {
		if len(a.Ports) == 0 {
			return 0
		}
		n, err := strconv.ParseUint(a.Ports[0], 10, 16)
		if err != nil {
			return 0 // a range: policy.Sign refuses the test and names it
		}
		return uint16(n)
	}
	var peers []*Facility
	for _, c := range contracts {
		peer, ok := c.other(f)
		if !ok {
			continue
		}
		peers = append(peers, peer)
		for _, a := range c.Flows {
			tests = append(tests, policy.Test{
				Name: c.Name + "." + a.Name, From: firstAddr(a.Src[0]), To: firstAddr(a.Dst[0]),
				Protocol: a.Protocol, Port: port(a), Connection: c.Name, Expect: policy.ExpectAllow,
			})
		}
	}
	deny := func(from, to *Facility) {
		tests = append(tests, policy.Test{
			Name: "no-relay." + from.Name + "-" + to.Name, From: firstAddr(from.Zones[0].Prefix.String()), To: firstAddr(to.Zones[0].Prefix.String()),
			Protocol: "tcp", Port: DICOMPort, Expect: policy.ExpectDeny,
		})
	}
	for _, c := range contracts {
		if _, ok := c.other(f); ok {
			continue
		}
		for _, stranger := range c.Parties {
			if !slices.Contains(peers, stranger) {
				deny(f, stranger)
			}
		}
	}
	for i, a := range peers {
		for _, b := range peers[i+1:] {
			if a != b {
				deny(a, b)
				deny(b, a)
			}
		}
	}
	return tests
}

// firstAddr is an address, or the first usable one of a prefix.
func firstAddr(s string) string {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked().Addr().Next().String()
	}
	return s
}
