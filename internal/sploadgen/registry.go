package sploadgen

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
	"wardgate/policy"
	"wardgate/sp/registry"
)

// The services of a scenario. Every device has joined Images, half of them Archive, a third Repair.
const (
	Images  = "images"
	Archive = "archive"
	Repair  = "repair"
)

// Services are the names of the services and their DNS domains.
var Services = map[string]string{Images: "images.example", Archive: "archive.example", Repair: "repair.example"}

// firstPort is what contracts allow; each change of a contract goes to the next one.
const firstPort = 11112

// Scenario is a registry of devices whose keys are at hand.
type Scenario struct {
	CA      *labca.Authority // of the device certificates
	Content registry.Content // as it was changed last

	keys    map[string]Key // by the device's name
	devices []string       // in the order in which they were made
	random  *rand.Rand
	joined  map[string][]string // device → services
	number  int                 // of contracts made
}

// Key is a device's certificate and key.
type Key struct {
	Cert    *x509.Certificate
	Private *ecdsa.PrivateKey
}

// New makes a scenario of n devices (2 to 65,536) with partners contracts each on average. Everything but
// keys and certificates follows from the seed. now is when certificates begin.
func New(n, partners int, seed uint64, now time.Time) (*Scenario, error) {
	if n < 2 || n > 1<<16 || partners < 1 || partners >= n {
		return nil, fmt.Errorf("scenario: expected 2 to 65536 devices and at least one partner each, but fewer than devices, came %d and %d", n, partners)
	}
	ca, err := labca.New(labca.Options{Kind: labca.Device, Name: "device", Domain: "devices.example", At: now.Add(-2 * time.Hour)})
	if err != nil {
		return nil, err
	}
	s := &Scenario{CA: ca, keys: map[string]Key{}, random: rand.New(rand.NewPCG(seed, 0)), joined: map[string][]string{}} //nolint:gosec // a scenario that can be made again
	s.services()
	certificates, err := s.certify(n, now)
	if err != nil {
		return nil, err
	}
	for i := range n {
		s.device(i, certificates[i])
	}
	for i := range n * partners / 2 {
		if err := s.contract(s.devices[i%n]); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Devices lists the devices' names.
func (s *Scenario) Devices() []string { return slices.Clone(s.devices) }

// Key returns a device's certificate and key.
func (s *Scenario) Key(device string) Key { return s.keys[device] }

// Joined lists the services that a device has joined.
func (s *Scenario) Joined(device string) []string { return s.joined[device] }

func name(i int) string { return fmt.Sprintf("d%05d.devices.example", i) }

// certify makes keys and certificates, on all processors.
func (s *Scenario) certify(n int, now time.Time) ([]string, error) {
	out, keys, errs := make([]string, n), make([]Key, n), make([]error, n)
	next := make(chan int)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range next {
				k, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
				if err == nil {
					keys[i].Private = k
					keys[i].Cert, err = s.CA.Issue(labca.Request{Public: k.Public(), DNSNames: []string{name(i)}, At: now.Add(-time.Hour)})
				}
				if errs[i] = err; err == nil {
					out[i] = string(certs.EncodePEM(keys[i].Cert))
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	for i := range n {
		if errs[i] != nil {
			return nil, errs[i]
		}
		s.keys[name(i)] = keys[i]
	}
	return out, nil
}

func (s *Scenario) services() {
	rules := registry.Rules{
		Suites: policy.Suites{
			IKE: []string{"aes256gcm16-prfsha384-x25519-mlkem768", "aes256gcm16-prfsha384-x25519", "aes256gcm16-prfsha384-ecp384", "aes128gcm16-prfsha256-ecp256"},
			ESP: []string{"aes256gcm16", "aes128gcm16"},
		},
		Lifetimes: policy.Lifetimes{IKE: policy.Duration(8 * time.Hour), Child: policy.Duration(time.Hour)},
	}
	for _, v := range []registry.Service{
		{Name: Images, Title: "Images", Category: policy.CategoryInformation},
		{Name: Archive, Title: "Archive outside", Category: policy.CategoryStorageRelay},
		{Name: Repair, Title: "Maintenance of scanners", Category: policy.CategoryMaintenance},
	} {
		v.Auth, v.Domain, v.Rules = policy.AuthCertificate, Services[v.Name], rules
		s.Content.Services = append(s.Content.Services, v)
	}
}

// sz and hsz are a device's networks.
func sz(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 25)
}

func hsz(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 128}), 25)
}

// host is the n-th address of a network.
func host(p netip.Prefix, n byte) netip.Addr {
	a := p.Addr().As4()
	a[3] += n
	return netip.AddrFrom4(a)
}

func (s *Scenario) device(i int, certificate string) {
	d := name(i)
	member := fmt.Sprintf("member-%05d", i)
	s.devices = append(s.devices, d)
	s.Content.Members = append(s.Content.Members, registry.Member{Name: member, Title: fmt.Sprintf("Member %d", i)})
	gateways := []string{netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}).String()}
	if i%4 == 0 { // a second line
		gateways = append(gateways, netip.AddrFrom4([4]byte{100, 65, byte(i >> 8), byte(i)}).String())
	}
	s.Content.Devices = append(s.Content.Devices, registry.Device{
		Name: d, Member: member, Certificate: certificate, Gateways: gateways, State: registry.Active,
		Zones: []registry.Zone{
			{Name: "hsz", Level: policy.LevelHSZ, Prefixes: []netip.Prefix{hsz(i)}, Interfaces: []string{"lan-hsz"}},
			{Name: "sz", Level: policy.LevelSZ, Prefixes: []netip.Prefix{sz(i)}, Interfaces: []string{"lan-sz"}},
		},
	})
	s.joined[d] = []string{Images}
	if i%2 == 0 {
		s.joined[d] = append(s.joined[d], Archive)
	}
	if i%3 == 0 {
		s.joined[d] = append(s.joined[d], Repair)
	}
	for _, v := range s.joined[d] {
		s.Content.Memberships = append(s.Content.Memberships, registry.Membership{Device: d, Service: v})
	}
}

// contract adds a contract of a device with another one, by a service that both have joined.
func (s *Scenario) contract(device string) error {
	const tries = 1000
	for range tries {
		other := s.devices[s.random.IntN(len(s.devices))]
		service := s.joined[device][s.random.IntN(len(s.joined[device]))]
		if other == device || !slices.Contains(s.joined[other], service) || s.have(device, other) {
			continue
		}
		s.Content.Contracts = append(s.Content.Contracts, s.between(device, other, service))
		return nil
	}
	return fmt.Errorf("scenario: no partner for %s among %d devices", device, len(s.devices))
}

func (s *Scenario) have(a, b string) bool {
	return slices.ContainsFunc(s.Content.Contracts, func(c registry.Contract) bool {
		x, y := c.Parties[0].Device, c.Parties[1].Device
		return x == a && y == b || x == b && y == a
	})
}

func (s *Scenario) between(a, b, service string) registry.Contract {
	i, j := slices.Index(s.devices, a), slices.Index(s.devices, b)
	s.number++
	from, to := sz(i), sz(j)
	source, target := netip.PrefixFrom(host(from, 16), 28), host(to, 10)
	if service == Repair { // single hosts alone, also of a high security zone
		source = netip.PrefixFrom(host(from, 17), 32)
		target = host(hsz(j), 10)
	}
	client := host(from, 17)
	one := func(p uint16) []registry.Ports { return []registry.Ports{{First: p, Last: p}} }
	destination := []netip.Prefix{netip.PrefixFrom(target, 32)}
	return registry.Contract{
		Name: fmt.Sprintf("c%06d", s.number), Title: "Studies of " + a, Service: service, Start: policy.StartOnDemand, Idle: policy.Duration(10 * time.Minute),
		Parties: [2]registry.Party{{Device: a}, {Device: b}},
		Flows: []registry.Flow{
			{Name: "studies", From: a, Sources: []netip.Prefix{source}, Destinations: destination, Protocol: "tcp", Ports: one(firstPort)},
			{Name: "web", From: a, Sources: []netip.Prefix{source}, Destinations: destination, Protocol: "tcp", Ports: one(443)},
			{Name: "back", From: b, Sources: destination, Destinations: []netip.Prefix{netip.PrefixFrom(client, 32)}, Protocol: "tcp", Ports: one(104)},
		},
		Tests: []registry.Test{
			{Name: "web", From: client, To: target, Protocol: "tcp", Port: 443, Expect: policy.ExpectAllow},
			{Name: "no-shell", From: client, To: target, Protocol: "tcp", Port: 22, Expect: policy.ExpectDeny},
		},
	}
}
