package policy

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

// at is the time of every test.
var at = time.Date(2026, 4, 1, 12, 0, 0, 0, time.UTC)

// world is what a device and its service provider have.
type world struct {
	signers  *labca.Authority
	signer   crypto.Signer
	chain    []*x509.Certificate
	device   *x509.Certificate
	deviceCA *labca.Authority
	service  *labca.Authority
}

var theWorld = sync.OnceValues(func() (*world, error) {
	w := &world{}
	var err error
	for _, a := range []struct {
		to           **labca.Authority
		kind         labca.Kind
		name, domain string
	}{
		{&w.signers, labca.Policy, "policy", ""},
		{&w.deviceCA, labca.Device, "device", "devices.example"},
		{&w.service, labca.Service, "group-a", "group-a.example"},
	} {
		if *a.to, err = labca.New(labca.Options{Kind: a.kind, Name: a.name, Domain: a.domain, At: at.Add(-time.Hour)}); err != nil {
			return nil, err
		}
	}
	if w.signer, err = labca.NewKey(labca.P256); err != nil {
		return nil, err
	}
	leaf, err := w.signers.Issue(labca.Request{Public: w.signer.Public(), DNSNames: []string{"sp.example"}, At: at.Add(-time.Hour)})
	if err != nil {
		return nil, err
	}
	w.chain = append([]*x509.Certificate{leaf}, w.signers.Intermediates()...)
	k, err := labca.NewKey(labca.P256)
	if err != nil {
		return nil, err
	}
	w.device, err = w.deviceCA.Issue(labca.Request{Public: k.Public(), DNSNames: []string{"a.devices.example"}, At: at.Add(-time.Hour)})
	return w, err
})

func newWorld(t testing.TB) *world {
	t.Helper()
	w, err := theWorld()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) options() VerifyOptions {
	return VerifyOptions{Anchors: []*x509.Certificate{w.signers.Anchor()}, DeviceCertDER: w.device.Raw, Now: at}
}

// document is hospital A's policy: HSZ and SZ, a contract with clinic B and one with centre C, and
// the maker of a device in the HSZ.
func (w *world) document() *Document {
	pem := func(a *labca.Authority) string { return string(certs.EncodePEM(a.Anchor())) }
	return &Document{
		Format: Format, Issuer: "sp.example", Serial: 7,
		Device:    Device{ID: "a.devices.example", Fingerprint: Digest(sha256.Sum256(w.device.Raw)).String()},
		NotBefore: at.Add(-time.Hour), NotAfter: at.Add(30 * 24 * time.Hour),
		Suites:    Suites{IKE: []string{"aes256gcm16-prfsha384-x25519"}, ESP: []string{"aes256gcm16-x25519"}},
		Lifetimes: Lifetimes{IKE: Duration(8 * time.Hour), Child: Duration(time.Hour)},
		Zones: []Zone{
			{Name: "hsz", Level: LevelHSZ, Prefixes: []string{"10.1.1.0/24"}, Interfaces: []string{"lan0"}},
			{Name: "sz", Level: LevelSZ, Prefixes: []string{"10.1.2.0/24", "fd01:2::/64"}, Interfaces: []string{"lan1"}},
			{Name: "dmz", Level: LevelDMZ, Prefixes: []string{"10.1.3.0/24"}, Interfaces: []string{"lan2", "lan3"}},
		},
		DeviceAnchors: []string{pem(w.deviceCA)},
		Services: []Service{
			{Name: "group-a", Category: CategoryInformation, Anchors: []string{pem(w.service)}},
			{Name: "maker", Category: CategoryMaintenance, Auth: AuthPSK, PSK: NewSecret(make([]byte, 32))},
		},
		Peers: []Peer{
			{Name: "clinic-b", Gateways: []string{"203.0.113.2", "[2001:db8::2]:4500"}, DeviceID: "b.devices.example"},
			{Name: "centre-c", Gateways: []string{"203.0.113.3"}, DeviceID: "c.devices.example"},
			{Name: "maker-m", DeviceID: "m.devices.example"},
		},
		Connections: []Connection{
			{
				Name: "a-b", Peer: "clinic-b", Service: "group-a", ServiceID: "b.group-a.example", Start: StartOnDemand, Idle: Duration(time.Minute),
				Local: []string{"10.1.2.0/24", "fd01:2::/64"}, Remote: []string{"10.2.0.0/16", "fd02:1::/64"},
				Flows: []FlowRule{
					{Name: "dicom", From: []string{"10.2.1.0/24"}, To: []string{"10.1.2.10"}, Protocol: "tcp", Ports: []string{"104", "11112", "5000-5010"}, Direction: DirectionIn},
					{Name: "ping", From: []string{"10.2.1.0/24"}, To: []string{"10.1.2.0/24"}, Protocol: "icmp", Direction: DirectionIn},
					{Name: "web", From: []string{"10.1.2.0/24"}, To: []string{"10.2.1.80"}, Protocol: "tcp", Ports: []string{"443"}, Direction: DirectionOut},
					{Name: "v6", From: []string{"fd01:2::/64"}, To: []string{"fd02:1::53"}, Protocol: "udp", Ports: []string{"53"}, Direction: DirectionOut},
				},
			},
			{
				Name: "a-c", Peer: "centre-c", Service: "group-a", ServiceID: "c.group-a.example", Start: StartAlways,
				Flows: []FlowRule{
					{Name: "images", From: []string{"10.1.2.10"}, To: []string{"10.3.1.7"}, Protocol: "tcp", Ports: []string{"104"}, Direction: DirectionOut},
					{Name: "anything", From: []string{"10.1.3.0/24"}, To: []string{"10.3.2.0/24"}, Protocol: "any", Direction: DirectionOut},
				},
			},
			{
				Name: "a-m", Peer: "maker-m", Service: "maker", Start: StartManual,
				Flows: []FlowRule{
					{Name: "ssh", From: []string{"10.9.0.0/24"}, To: []string{"10.1.1.5"}, Protocol: "tcp", Ports: []string{"22"}, Direction: DirectionIn},
				},
			},
		},
		Tests: []Test{
			{Name: "dicom", From: "10.2.1.9", To: "10.1.2.10", Protocol: "tcp", Port: 11112, Connection: "a-b", Expect: ExpectAllow},
			{Name: "no-relay", From: "10.2.1.9", To: "10.3.1.7", Protocol: "tcp", Port: 104, Expect: ExpectDeny},
			{Name: "ping", From: "10.2.1.9", To: "10.1.2.10", Protocol: "icmp", Expect: ExpectAllow},
			{Name: "hsz", From: "10.2.1.9", To: "10.1.1.5", Protocol: "tcp", Port: 22, Expect: ExpectDeny},
		},
	}
}

func (w *world) table(t testing.TB) *Table {
	t.Helper()
	table, err := Compile(w.document())
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// signRaw signs whatever the document says, right or wrong.
func (w *world) signRaw(t testing.TB, doc *Document) []byte {
	t.Helper()
	payload, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	jws, err := SignPayload(payload, w.signer, w.chain)
	if err != nil {
		t.Fatal(err)
	}
	return jws
}
