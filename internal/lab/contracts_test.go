package lab

import (
	"crypto/x509"
	"net/netip"
	"testing"
	"time"

	"wardgate/policy"
)

// What the laboratory writes are policies that a device accepts, with tests that would fail if
// they allowed a relay.
func TestPoliciesAreAccepted(t *testing.T) {
	t.Parallel()
	p, err := NewProvider(GroupA, GroupB)
	if err != nil {
		t.Fatal(err)
	}
	facility := func(name, lan, wan string) *Facility {
		prefix := netip.MustParsePrefix(lan)
		f := &Facility{
			Name: name, Title: "facility " + name, DeviceID: name + ".devices.example", WAN: netip.MustParseAddr(wan),
			Zones: []*Zone{{Name: "sz", Level: "SZ", Dev: "sz0", Prefix: prefix, Gateway: prefix.Addr().Next()}},
		}
		id, err := p.Forge(f, GroupA, nil)
		if err != nil {
			t.Fatal(err)
		}
		f.leafDER = id.Certs[0][0].Raw
		return f
	}
	a, b, c := facility("a", "10.1.2.0/24", "198.18.0.1"), facility("b", "10.2.1.0/24", "198.18.0.2"), facility("c", "10.3.1.0/24", "198.18.0.3")
	contracts := []*Contract{
		{Name: "a-b", Service: GroupA, Parties: [2]*Facility{a, b}, Idle: time.Minute, Flows: []Agreed{
			{"studies", b, []string{"10.2.1.0/24"}, []string{"10.1.2.10"}, "tcp", []string{"11112"}},
			{"ping", b, []string{"10.2.1.0/24"}, []string{"10.1.2.10"}, "icmp", nil},
		}},
		{Name: "a-c", Service: GroupB, Parties: [2]*Facility{a, c}, Flows: []Agreed{
			{"probe", a, []string{"10.1.2.11"}, []string{"10.3.1.0/24"}, "udp", []string{"7007"}},
		}},
	}
	for _, f := range []*Facility{a, b, c} {
		for serial := uint64(1); serial <= 2; serial++ {
			d, err := p.Policy(f, contracts)
			if err != nil {
				t.Fatal(err)
			}
			if d.Serial != serial {
				t.Errorf("%s: serial %d, want %d", f.Title, d.Serial, serial)
			}
			deny := 0
			for _, test := range d.Tests {
				if test.Expect == policy.ExpectDeny {
					deny++
				}
			}
			if deny == 0 {
				t.Errorf("%s: the policy has no test that denies a relay", f.Title)
			}
			jws, err := p.Sign(d)
			if err != nil {
				t.Fatalf("%s: %v", f.Title, err)
			}
			got, err := policy.Verify(jws, policy.VerifyOptions{
				Anchors: []*x509.Certificate{p.CA.Policy.Anchor()}, DeviceCertDER: f.leafDER, Now: time.Now(),
			})
			if err != nil {
				t.Fatalf("%s: %v", f.Title, err)
			}
			if got.Table() == nil {
				t.Errorf("%s: no table", f.Title)
			}
		}
	}
	if _, err := p.Policy(facility("d", "10.4.0.0/24", "198.18.0.4"), contracts); err == nil {
		t.Error("a facility without a contract got a policy")
	}
}
