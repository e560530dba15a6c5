package lab

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"wardgate/policy"
	"wardgate/sp/registry"
)

// Register is what the service provider knows of its members: what the files of the centre's
// registry are written from.
type Register struct {
	Facilities []*Facility
	Services   map[string]string // name to category (policy.Category…)
	Joined     map[*Facility][]string
	Contracts  []*Contract
}

// Register is the scenario's: each facility has joined the groups that it has contracts in.
func (h *Hospital) Register() *Register {
	r := &Register{Facilities: h.Facilities(), Services: map[string]string{}, Joined: map[*Facility][]string{}, Contracts: h.Contracts()}
	for _, c := range r.Contracts {
		r.Services[c.Service] = cmp.Or(c.Category, policy.CategoryInformation)
	}
	for _, f := range r.Facilities {
		r.Joined[f] = h.Services(f)
	}
	return r
}

// Moved is the scenario's register after B has left group A for group B, where it has a contract with C.
// A keeps its place in group A.
func (h *Hospital) Moved() *Register {
	r := h.Register()
	r.Joined[h.B] = []string{GroupB}
	r.Contracts = []*Contract{h.AC, h.BC}
	return r
}

// Write makes a folder of registry files out of it, as `wardgate-sp plan` and `apply` read them.
// What the folder had before is gone.
func (r *Register) Write(dir string) error {
	content, err := r.content()
	if err != nil {
		return err
	}
	reg, err := registry.New(content)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for name, data := range reg.Export() {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			return err
		}
	}
	return nil
}

func (r *Register) content() (c registry.Content, err error) {
	for name, category := range r.Services {
		c.Services = append(c.Services, registry.Service{
			Name: name, Title: name, Category: category, Auth: policy.AuthCertificate, Domain: name + ".example",
			Rules: registry.Rules{Suites: SuitesGCM()},
		})
	}
	for _, f := range r.Facilities {
		if len(f.leafDER) == 0 {
			return c, fmt.Errorf("lab: %s has no device certificate to register", f.Title)
		}
		member := strings.ReplaceAll(strings.ToLower(f.Title), " ", "-")
		d := registry.Device{Name: f.DeviceID, Member: member, Certificate: derPEM(f.leafDER), Gateways: []string{f.WAN.String()}, State: registry.Active}
		for _, z := range f.Zones {
			d.Zones = append(d.Zones, registry.Zone{Name: z.Name, Level: z.Level, Prefixes: []netip.Prefix{z.Prefix}, Interfaces: []string{z.Dev}})
		}
		c.Members = append(c.Members, registry.Member{Name: member, Title: f.Title})
		c.Devices = append(c.Devices, d)
		for _, s := range r.Joined[f] {
			c.Memberships = append(c.Memberships, registry.Membership{Device: f.DeviceID, Service: s})
		}
	}
	for _, k := range r.Contracts {
		one, err := k.registered()
		if err != nil {
			return c, err
		}
		one.Tests = r.tests(k)
		c.Contracts = append(c.Contracts, one)
	}
	return c, nil
}

func (c *Contract) registered() (registry.Contract, error) {
	out := registry.Contract{
		Name: c.Name, Service: c.Service, Start: cmp.Or(c.Start, policy.StartOnDemand), Idle: policy.Duration(c.Idle),
		Parties: [2]registry.Party{{Device: c.Parties[0].DeviceID}, {Device: c.Parties[1].DeviceID}},
	}
	for _, a := range c.Flows {
		f := registry.Flow{Name: a.Name, From: a.From.DeviceID, Protocol: a.Protocol}
		var err error
		if f.Sources, err = prefixesOf(a.Src); err != nil {
			return out, err
		}
		if f.Destinations, err = prefixesOf(a.Dst); err != nil {
			return out, err
		}
		for _, p := range a.Ports {
			n, err := strconv.ParseUint(p, 10, 16)
			if err != nil {
				return out, fmt.Errorf("lab: contract %s, flow %s: want a port, came %q", c.Name, a.Name, p)
			}
			f.Ports = append(f.Ports, registry.Ports{First: uint16(n), Last: uint16(n)})
		}
		out.Flows = append(out.Flows, f)
	}
	return out, nil
}

// tests are those that the contract itself brings: what it is for is allowed, and nobody gets from a
// party of it to a facility that this party has no contract with.
func (r *Register) tests(c *Contract) []registry.Test {
	var out []registry.Test
	add := func(name string, from, to netip.Addr, protocol string, port uint16, expect string) {
		out = append(out, registry.Test{Name: name, From: from, To: to, Protocol: protocol, Port: port, Expect: expect})
	}
	for _, a := range c.Flows[:min(len(c.Flows), 1)] {
		var port uint16
		if len(a.Ports) > 0 {
			n, err := strconv.ParseUint(a.Ports[0], 10, 16)
			if err != nil {
				continue // registered has said so
			}
			port = uint16(n)
		}
		add(a.Name, netip.MustParseAddr(firstAddr(a.Src[0])), netip.MustParseAddr(firstAddr(a.Dst[0])), a.Protocol, port, policy.ExpectAllow)
	}
	agreed := func(a, b *Facility) bool {
		for _, k := range r.Contracts {
			if other, ok := k.other(a); ok && other == b {
				return true
			}
		}
		return false
	}
	for _, p := range c.Parties {
		for _, x := range r.Facilities {
			if x == c.Parties[0] || x == c.Parties[1] || agreed(p, x) {
				continue
			}
			add("no-relay."+p.Name+"-"+x.Name, p.Zones[0].Prefix.Addr().Next(), x.Zones[0].Prefix.Addr().Next(), "tcp", DICOMPort, policy.ExpectDeny)
		}
	}
	return out
}

func prefixesOf(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("lab: want an address or a prefix, came %q", s)
		}
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out, nil
}
