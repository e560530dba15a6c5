package sploadgen

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"wardgate/policy"
	"wardgate/sp/registry"
)

// OneContract changes a port of one contract: two devices are concerned.
func (s *Scenario) OneContract() {
	s.Content.Contracts = slices.Clone(s.Content.Contracts)
	c := &s.Content.Contracts[s.random.IntN(len(s.Content.Contracts))]
	c.Flows = slices.Clone(c.Flows)
	p := c.Flows[0].Ports[0].First + 1
	c.Flows[0].Ports = []registry.Ports{{First: p, Last: p}}
}

// Rules changes the lifetimes of the service that all have joined: all devices are concerned.
func (s *Scenario) Rules() {
	s.Content.Services = slices.Clone(s.Content.Services)
	for i := range s.Content.Services {
		if v := &s.Content.Services[i]; v.Name == Images {
			if v.Rules.Lifetimes.IKE -= policy.Duration(time.Minute); time.Duration(v.Rules.Lifetimes.IKE) < 2*time.Hour {
				v.Rules.Lifetimes.IKE = policy.Duration(8 * time.Hour)
			}
		}
	}
}

// Move takes a device out of its contracts and gives it as many with others: it, those that it leaves and
// those that it comes to are concerned. It also leaves the service Archive, or joins it.
func (s *Scenario) Move() (string, error) {
	d := s.devices[s.random.IntN(len(s.devices))]
	n := 0
	s.Content.Contracts = slices.DeleteFunc(slices.Clone(s.Content.Contracts), func(c registry.Contract) bool {
		is := c.Parties[0].Device == d || c.Parties[1].Device == d
		if is {
			n++
		}
		return is
	})
	if i := slices.Index(s.joined[d], Archive); i >= 0 {
		s.joined[d] = slices.Delete(slices.Clone(s.joined[d]), i, i+1)
		s.Content.Memberships = slices.DeleteFunc(slices.Clone(s.Content.Memberships), func(m registry.Membership) bool { return m.Device == d && m.Service == Archive })
	} else {
		s.joined[d] = append(slices.Clone(s.joined[d]), Archive)
		s.Content.Memberships = append(slices.Clone(s.Content.Memberships), registry.Membership{Device: d, Service: Archive})
	}
	for range max(n, 1) {
		if err := s.contract(d); err != nil {
			return "", err
		}
	}
	return d, nil
}

// Victim picks a device that has contracts, and takes it out of the scenario as `wardgate-sp device
// revoke` does: the caller gives that order.
func (s *Scenario) Victim() string {
	c := &s.Content.Contracts[s.random.IntN(len(s.Content.Contracts))]
	d := c.Parties[0].Device
	s.Content.Devices = slices.Clone(s.Content.Devices)
	for i := range s.Content.Devices {
		if s.Content.Devices[i].Name == d {
			s.Content.Devices[i].State = registry.Revoked
		}
	}
	return d
}

// Wanted is what each device that takes part must be told, in a few words: a reckoning that shares nothing
// with the centre's compiler.
func (s *Scenario) Wanted() map[string]string {
	alive := map[string]bool{}
	for i := range s.Content.Devices {
		alive[s.Content.Devices[i].Name] = s.Content.Devices[i].State == registry.Active
	}
	life := map[string]time.Duration{}
	for i := range s.Content.Services {
		life[s.Content.Services[i].Name] = time.Duration(s.Content.Services[i].Rules.Lifetimes.IKE)
	}
	shortest := map[string]time.Duration{}
	services, contracts := map[string][]string{}, map[string][]string{}
	for _, m := range s.Content.Memberships {
		services[m.Device] = append(services[m.Device], m.Service)
		if t, ok := shortest[m.Device]; !ok || life[m.Service] < t {
			shortest[m.Device] = life[m.Service]
		}
	}
	for i := range s.Content.Contracts {
		c := &s.Content.Contracts[i]
		a, b := c.Parties[0].Device, c.Parties[1].Device
		if !alive[a] || !alive[b] {
			continue
		}
		for d, peer := range map[string]string{a: b, b: a} {
			contracts[d] = append(contracts[d], fmt.Sprintf("%s(%s %s %s)", c.Name, c.Service, peer, c.Flows[0].Ports[0]))
		}
	}
	out := map[string]string{}
	for d, is := range alive {
		if is {
			out[d] = words(services[d], shortest[d], contracts[d])
		}
	}
	return out
}

func words(services []string, life time.Duration, contracts []string) string {
	slices.Sort(services)
	slices.Sort(contracts)
	return fmt.Sprintf("%s; IKE %s; %s", strings.Join(services, " "), life, strings.Join(contracts, " "))
}

// Says is Wanted's form of a policy.
func Says(doc *policy.Document) string {
	var services, contracts []string
	for i := range doc.Services {
		services = append(services, doc.Services[i].Name)
	}
	for i := range doc.Connections {
		c := &doc.Connections[i]
		port := ""
		for j := range c.Flows {
			if c.Flows[j].Name == "studies" {
				port = strings.Join(c.Flows[j].Ports, " ")
			}
		}
		contracts = append(contracts, fmt.Sprintf("%s(%s %s %s)", c.Name, c.Service, c.Peer, port))
	}
	return words(services, time.Duration(doc.Lifetimes.IKE), contracts)
}
