package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

func TestCompiles(t *testing.T) {
	w := newWorld(t)
	table := w.table(t)
	if err := table.RunTests(); err != nil {
		t.Fatal(err)
	}
	c := table.Connections()
	if len(c) != 3 || table.ConnectionIndex("a-c") != 1 || table.ConnectionIndex("x") != -1 || len(table.Zones()) != 3 {
		t.Fatalf("%d connections", len(c))
	}
	if want := []netip.AddrPort{netip.MustParseAddrPort("203.0.113.2:500"), netip.MustParseAddrPort("[2001:db8::2]:4500")}; !slices.Equal(c[0].Gateways, want) {
		t.Errorf("gateways %v", c[0].Gateways)
	}
	if c[0].DeviceID != "b.devices.example" || c[0].Category != CategoryInformation || len(c[0].Anchors) != 1 || c[0].Idle != time.Minute || c[2].Auth != AuthPSK {
		t.Errorf("%+v", c[0])
	}
	// Without "local" and "remote", the selectors are the union of the flows' addresses.
	if got := fmt.Sprint(c[1].Local, c[1].Remote); got != "[10.1.2.10/32 10.1.3.0/24] [10.3.1.7/32 10.3.2.0/24]" {
		t.Errorf("selectors %s", got)
	}
	l := table.Lifetimes()
	if l.IKE != Duration(8*time.Hour) || l.Child != Duration(time.Hour) || l.Liveness != Duration(30*time.Second) {
		t.Errorf("lifetimes %+v", l)
	}
	if len(table.DeviceAnchors()) != 1 || len(table.Suites().IKE) != 1 || table.Issuer() != "sp.example" || !table.NotAfter().After(table.NotBefore()) {
		t.Error("table not whole")
	}
	if len(table.Rules()) != table.NumRules() || table.NumRules() != 7 {
		t.Errorf("%d rules", table.NumRules())
	}
	if got := table.Rule(0); got.String() != "tcp from 10.2.1.0/24 to 10.1.2.10 port 104,5000-5010,11112" || got.Path() != "/connections/0/flows/0" {
		t.Errorf("%v at %s", got, got.Path())
	}
	v := table.Kernel()
	if len(v.Zones) != 3 || len(v.Remotes) != 3 || v.Remotes[0].Name != "a-b" || fmt.Sprint(v.Remotes[0].Prefixes) != "[10.2.0.0/16 fd02:1::/64]" {
		t.Errorf("%+v", v)
	}
	if a, b := table.Selectors(9); a != nil || b != nil {
		t.Error("selectors of nothing")
	}
}

// The Table keeps nothing that a later change of the document could reach.
func TestCompileCopies(t *testing.T) {
	w := newWorld(t)
	doc := w.document()
	table, err := Compile(doc)
	if err != nil {
		t.Fatal(err)
	}
	doc.Connections[0].Flows[0].Name = "changed"
	doc.Zones[0].Interfaces[0] = "changed"
	doc.Suites.IKE[0] = "changed"
	if table.Rule(0).Name != "dicom" || table.Zones()[0].Interfaces[0] != "lan0" || table.Suites().IKE[0] == "changed" {
		t.Error("the table changed with the document")
	}
}

// An empty policy is valid: a device in no group connects to nothing (DEM-3).
func TestNoConnections(t *testing.T) {
	w := newWorld(t)
	d := w.document()
	d.Services, d.Peers, d.Connections, d.Tests, d.DeviceAnchors = nil, nil, nil, nil, nil
	doc, err := Verify(w.signRaw(t, d), w.options())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []Flow{OpeningFlow(netip.MustParseAddr("10.1.2.10"), netip.MustParseAddr("10.2.1.9"), protoTCP, 80)} {
		if d := doc.Table().Outbound(f); d.Allow || d.Reply {
			t.Errorf("%+v", d)
		}
	}
}

// Every fault of meaning: where it is, and what the message says.
func TestCompileRefuses(t *testing.T) {
	w := newWorld(t)
	flow := func(d *Document) *FlowRule { return &d.Connections[0].Flows[0] }
	many := func(n int, f func(i int) string) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = f(i)
		}
		return out
	}
	leafPEM := string(certs.EncodePEM(w.device))
	crl := func(a *labca.Authority) string {
		l, err := a.CRLs(at, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return string(labca.EncodeCRLs(l[:1]))
	}
	addFlow := func(d *Document, conn int, f FlowRule) {
		if f.Name == "" {
			f.Name = "new"
		}
		d.Connections[conn].Flows = append(d.Connections[conn].Flows, f)
	}
	// second adds a second connection to clinic-b.
	second := func(d *Document, f FlowRule) {
		c := d.Connections[0]
		c.Name, c.Flows = "a-b2", []FlowRule{f}
		d.Connections = append(d.Connections, c)
	}
	category := func(d *Document, cat string) { // for a-c, a service of its own
		s := d.Services[0]
		s.Name, s.Category = "other", cat
		d.Services = append(d.Services, s)
		d.Connections[1].Service = "other"
	}
	for _, c := range []struct {
		name string
		f    func(d *Document)
		path string
		says string
	}{
		{"format", func(d *Document) { d.Format = 2 }, "/format", "expected 1, came 2"},
		{"issuer", func(d *Document) { d.Issuer = "sp example" }, "/issuer", "host name"},
		{"device", func(d *Document) { d.Device.ID = "" }, "/device/id", ""},
		{"fingerprint", func(d *Document) { d.Device.Fingerprint = "sha256:" + strings.Repeat("A", 64) }, "/device/fingerprint", "lower-case"},
		{"serial", func(d *Document) { d.Serial = 0 }, "/serial", ""},
		{"validity", func(d *Document) { d.NotAfter = d.NotBefore }, "/not_after", "after not_before"},
		{"no validity", func(d *Document) { d.NotBefore = time.Time{} }, "/not_before", ""},

		{"weak 3des", func(d *Document) { d.Suites.IKE[0] = "3des-sha1-modp1024" }, "/suites/ike/0", "64-bit blocks"},
		{"weak sha1", func(d *Document) { d.Suites.ESP[0] = "aes128-sha1" }, "/suites/esp/0", "SHA-1"},
		{"weak md5", func(d *Document) { d.Suites.ESP[0] = "aes128-md5" }, "/suites/esp/0", "broken"},
		{"weak group", func(d *Document) { d.Suites.IKE[0] = "aes256gcm16-prfsha256-modp1024" }, "/suites/ike/0", "too small"},
		{"weak prf", func(d *Document) { d.Suites.IKE[0] = "aes256gcm16-prfsha1-x25519" }, "/suites/ike/0", "SHA-1"},
		{"short tag", func(d *Document) { d.Suites.ESP[0] = "aes256gcm8" }, "/suites/esp/0", "truncated"},
		{"null", func(d *Document) { d.Suites.ESP[0] = "null-sha256" }, "/suites/esp/0", "no encryption"},
		{"gmac", func(d *Document) { d.Suites.ESP[0] = "aes256gmac" }, "/suites/esp/0", "no encryption"},
		{"suite syntax", func(d *Document) { d.Suites.ESP[0] = "AES 256" }, "/suites/esp/0", "lower case"},
		{"suite syntax", func(d *Document) { d.Suites.ESP[0] = "aes256gcm16-" }, "/suites/esp/0", "lower case"},
		{"no suites", func(d *Document) { d.Suites.IKE = nil }, "/suites/ike", "came 0"},
		{"moves", func(d *Document) { d.Peers[0].Moves = "away" }, "/peers/0/moves", "named"},
		{"moves among nothing", func(d *Document) {
			d.Peers[0].Moves, d.Peers[0].Gateways, d.Connections[0].Start = MovesNamed, nil, StartManual
		}, "/peers/0/moves", "no gateways"},
		{"ppk", func(d *Document) { d.Connections[0].PPK = "yes" }, "/connections/0/ppk", "required"},
		{"ppk without a name", func(d *Document) { d.Connections[0].PPK = PPKRequired }, "/connections/0/ppk_id", "the same on both devices"},
		{"name without a ppk", func(d *Document) { d.Connections[0].PPKID = "x" }, "/connections/0/ppk_id", "none, because"},
		{"ppk as a path", func(d *Document) { d.Connections[0].PPK, d.Connections[0].PPKID = PPKOptional, "../x" }, "/connections/0/ppk_id", "a name of 1 to 63"},
		{"first child", func(d *Document) { d.Connections[0].FirstChild = "no" }, "/connections/0/first_child", "own-exchange"},
		{"suite twice", func(d *Document) { d.Suites.ESP = []string{"aes256gcm16", "aes256gcm16"} }, "/suites/esp/1", "a second time"},
		{"lifetime", func(d *Document) { d.Lifetimes.IKE = Duration(time.Second / 2) }, "/lifetimes/ike", "1s to 24h"},
		{"lifetime negative", func(d *Document) { d.Lifetimes.Child = -1 }, "/lifetimes/child", ""},
		{"child longer", func(d *Document) { d.Lifetimes.IKE, d.Lifetimes.Child = Duration(time.Hour), Duration(2*time.Hour) }, "/lifetimes/child", "at most lifetimes.ike"},
		{"child bytes", func(d *Document) { d.Lifetimes.ChildBytes = 5 }, "/lifetimes/child_bytes", ""},
		{"child packets", func(d *Document) { d.Lifetimes.ChildPackets = 5 }, "/lifetimes/child_packets", ""},
		{"revocation", func(d *Document) { d.Revocation = "sometimes" }, "/revocation", "if-known"},
		{"liveness", func(d *Document) { d.Lifetimes.Liveness = Duration(2 * time.Hour) }, "/lifetimes/liveness", ""},

		{"no zones", func(d *Document) { d.Zones = nil }, "/zones", "1 to 64"},
		{"zone name", func(d *Document) { d.Zones[0].Name = "-x" }, "/zones/0/name", ""},
		{"zone name twice", func(d *Document) { d.Zones[1].Name = "hsz" }, "/zones/1/name", "which entry 0 has too"},
		{"level", func(d *Document) { d.Zones[0].Level = "hsz" }, "/zones/0/level", "HSZ"},
		{"no interface", func(d *Document) { d.Zones[0].Interfaces = nil }, "/zones/0/interfaces", ""},
		{"interface", func(d *Document) { d.Zones[0].Interfaces[0] = "a/b" }, "/zones/0/interfaces/0", ""},
		{"interface long", func(d *Document) { d.Zones[0].Interfaces[0] = strings.Repeat("x", 16) }, "/zones/0/interfaces/0", "15"},
		{"interface shared", func(d *Document) { d.Zones[0].Interfaces[0] = "lan1" }, "/zones/1/interfaces/0", "of its own"},
		{"interface twice", func(d *Document) { d.Zones[2].Interfaces[1] = "lan2" }, "/zones/2/interfaces/1", "once"},
		{"zones overlap", func(d *Document) { d.Zones[2].Prefixes[0] = "10.1.0.0/16" }, "/zones/2/prefixes/0", "overlaps zone \"hsz\""},
		{"zone within zone", func(d *Document) { d.Zones[2].Prefixes[0] = "10.1.2.64/26" }, "/zones/2/prefixes/0", "overlaps zone \"sz\""},
		{"host bits", func(d *Document) { d.Zones[0].Prefixes[0] = "10.1.1.1/24" }, "/zones/0/prefixes/0", "write 10.1.1.0/24 for the network or 10.1.1.1 for the host"},
		{"everything", func(d *Document) { d.Zones[0].Prefixes[0] = "0.0.0.0/0" }, "/zones/0/prefixes/0", "addresses of hosts"},
		{"everything v6", func(d *Document) { d.Zones[0].Prefixes[0] = "::/0" }, "/zones/0/prefixes/0", "addresses of hosts"},
		{"loopback", func(d *Document) { d.Zones[0].Prefixes[0] = "127.0.0.1" }, "/zones/0/prefixes/0", "loopback"},
		{"multicast", func(d *Document) { d.Zones[0].Prefixes[0] = "ff02::1" }, "/zones/0/prefixes/0", "multicast"},
		{"mapped", func(d *Document) { d.Zones[0].Prefixes[0] = "::ffff:10.1.1.1" }, "/zones/0/prefixes/0", "write 10.1.1.1"},
		{"mapped prefix", func(d *Document) { d.Zones[0].Prefixes[0] = "::ffff:10.1.1.0/120" }, "/zones/0/prefixes/0", ""},
		{"scoped", func(d *Document) { d.Zones[0].Prefixes[0] = "fd00::1%eth0" }, "/zones/0/prefixes/0", ""},
		{"leading zero", func(d *Document) { d.Zones[0].Prefixes[0] = "10.1.01.0/24" }, "/zones/0/prefixes/0", ""},
		{"garbage address", func(d *Document) { d.Zones[0].Prefixes[0] = "ten" }, "/zones/0/prefixes/0", "an address such as"},
		{"address twice", func(d *Document) { d.Zones[0].Prefixes = []string{"10.1.1.0/24", "10.1.1.0/24"} }, "/zones/0/prefixes/1", "once"},
		{"too many prefixes", func(d *Document) {
			d.Zones[0].Prefixes = many(MaxPrefixes+1, func(i int) string { return fmt.Sprintf("10.100.%d.%d", i/256, i%256) })
		}, "/zones/0/prefixes", "1 to 1024"},

		{"no device anchor", func(d *Document) { d.DeviceAnchors = nil }, "/device_anchors", "device CA"},
		{"anchor no PEM", func(d *Document) { d.DeviceAnchors[0] = "x" }, "/device_anchors/0", "one certificate in PEM"},
		{"anchor no CA", func(d *Document) { d.DeviceAnchors[0] = leafPEM }, "/device_anchors/0", "a CA's certificate"},
		{"anchor twice", func(d *Document) { d.DeviceAnchors = append(d.DeviceAnchors, d.DeviceAnchors[0]) }, "/device_anchors/1", "second time"},
		{"two in one", func(d *Document) { d.DeviceAnchors[0] += d.Services[0].Anchors[0] }, "/device_anchors/0", "one certificate"},
		{"crl no PEM", func(d *Document) { d.DeviceCRLs = []string{leafPEM} }, "/device_crls/0", "revocation list"},
		{"crl forged", func(d *Document) {
			other, err := labca.New(labca.Options{Kind: labca.Service, Name: "group-a", Domain: "group-a.example", At: at, Direct: true})
			if err != nil {
				t.Fatal(err)
			}
			mine, err := labca.New(labca.Options{Kind: labca.Service, Name: "group-a", Domain: "group-a.example", At: at, Direct: true})
			if err != nil {
				t.Fatal(err)
			}
			d.Services[0].Anchors = []string{string(certs.EncodePEM(mine.Anchor()))}
			d.Services[0].CRLs = []string{crl(other)}
		}, "/services/0/crls/0", "that its issuer signed"},
		{"service name twice", func(d *Document) { d.Services[1].Name = "group-a" }, "/services/1/name", ""},
		{"category", func(d *Document) { d.Services[0].Category = "mail" }, "/services/0/category", "information-provision"},
		{"no anchors", func(d *Document) { d.Services[0].Anchors = nil }, "/services/0/anchors", ""},
		{"psk with certificates", func(d *Document) { d.Services[0].PSK = NewSecret(make([]byte, 32)) }, "/services/0/psk", ""},
		{"psk short", func(d *Document) { d.Services[1].PSK = NewSecret(make([]byte, 31)) }, "/services/1/psk", "31 bytes"},
		{"psk and anchors", func(d *Document) { d.Services[1].Anchors = d.Services[0].Anchors }, "/services/1/anchors", ""},
		{"auth", func(d *Document) { d.Services[1].Auth = "password" }, "/services/1/auth", ""},

		{"peer name", func(d *Document) { d.Peers[0].Name = "clinic b" }, "/peers/0/name", ""},
		{"device twice", func(d *Document) { d.Peers[1].DeviceID = "B.devices.example" }, "/peers/1/device_id", "clinic-b"},
		{"myself", func(d *Document) { d.Peers[1].DeviceID = d.Device.ID }, "/peers/1/device_id", "another device"},
		{"gateway", func(d *Document) { d.Peers[0].Gateways[0] = "b.example:500" }, "/peers/0/gateways/0", "address:port"},
		{"gateway port", func(d *Document) { d.Peers[0].Gateways[0] = "203.0.113.2:0" }, "/peers/0/gateways/0", ""},
		{"gateway multicast", func(d *Document) { d.Peers[0].Gateways[0] = "224.0.0.1" }, "/peers/0/gateways/0", ""},
		{"gateway twice", func(d *Document) { d.Peers[1].Gateways[0] = "203.0.113.2:500" }, "/peers/1/gateways/0", "clinic-b"},
		{"gateway in tunnel", func(d *Document) { d.Peers[0].Gateways[0] = "10.3.1.7" }, "/peers/0/gateways/0", "connection \"a-c\""},
		{"no gateway", func(d *Document) { d.Peers[1].Gateways = nil }, "/connections/1/start", "only the peer"},

		{"connection name twice", func(d *Document) { d.Connections[1].Name = "a-b" }, "/connections/1/name", ""},
		{"peer unknown", func(d *Document) { d.Connections[0].Peer = "x" }, "/connections/0/peer", "in /peers"},
		{"service unknown", func(d *Document) { d.Connections[0].Service = "x" }, "/connections/0/service", "in /services"},
		{"service id", func(d *Document) { d.Connections[0].ServiceID = "" }, "/connections/0/service_id", ""},
		{"service id with psk", func(d *Document) { d.Connections[2].ServiceID = "x" }, "/connections/2/service_id", "pre-shared"},
		{"service id text", func(d *Document) { d.Connections[0].ServiceID = "a b" }, "/connections/0/service_id", ""},
		{"start", func(d *Document) { d.Connections[0].Start = "" }, "/connections/0/start", "on-demand"},
		{"idle", func(d *Document) { d.Connections[0].Idle = 1 }, "/connections/0/idle", ""},
		{"idle always", func(d *Document) { d.Connections[1].Idle = Duration(time.Minute) }, "/connections/1/idle", "always"},
		{"local outside", func(d *Document) { d.Connections[0].Local[0] = "10.8.0.0/24" }, "/connections/0/local/0", "no zone holds"},
		{"local too wide", func(d *Document) { d.Connections[0].Local[0] = "10.1.0.0/16" }, "/connections/0/local/0", "only a part"},
		{"local in HSZ", func(d *Document) { d.Connections[0].Local = append(d.Connections[0].Local, "10.1.1.5") }, "/connections/0/local/2", "high security zone"},
		{"remote local", func(d *Document) { d.Connections[0].Remote[0] = "10.0.0.0/8" }, "/connections/0/remote/0", "overlaps the local zone"},
		{"no flows", func(d *Document) { d.Connections[0].Flows = nil }, "/connections/0/flows", ""},

		{"flow name twice", func(d *Document) { d.Connections[0].Flows[1].Name = "dicom" }, "/connections/0/flows/1/name", ""},
		{"direction", func(d *Document) { flow(d).Direction = "both" }, "/connections/0/flows/0/direction", "\"in\", \"out\""},
		{"protocol", func(d *Document) { flow(d).Protocol = "TCP" }, "/connections/0/flows/0/protocol", "tcp, udp"},
		{"protocol number", func(d *Document) { flow(d).Protocol = "006" }, "/connections/0/flows/0/protocol", ""},
		{"tunnel", func(d *Document) { flow(d).Protocol = "47" }, "/connections/0/flows/0/protocol", "tunnel protocol"},
		{"extension header", func(d *Document) { flow(d).Protocol = "44" }, "/connections/0/flows/0/protocol", "upper-layer"},
		{"no ports", func(d *Document) { flow(d).Ports = nil }, "/connections/0/flows/0/ports", "1-65535"},
		{"port 0", func(d *Document) { flow(d).Ports[0] = "0" }, "/connections/0/flows/0/ports/0", ""},
		{"port big", func(d *Document) { flow(d).Ports[0] = "65536" }, "/connections/0/flows/0/ports/0", ""},
		{"port backwards", func(d *Document) { flow(d).Ports[0] = "9-8" }, "/connections/0/flows/0/ports/0", ""},
		{"port sign", func(d *Document) { flow(d).Ports[0] = "+80" }, "/connections/0/flows/0/ports/0", ""},
		{"ports of icmp", func(d *Document) { d.Connections[0].Flows[1].Ports = []string{"8"} }, "/connections/0/flows/1/ports", "has no ports"},
		{"too many ports", func(d *Document) {
			flow(d).Ports = many(MaxPorts+1, func(i int) string { return fmt.Sprint(1 + 2*i) })
		}, "/connections/0/flows/0/ports", ""},
		{"from empty", func(d *Document) { flow(d).From = nil }, "/connections/0/flows/0/from", ""},
		{"from local", func(d *Document) { flow(d).From[0] = "10.1.2.7" }, "/connections/0/flows/0/from/0", "a remote address"},
		{"to remote", func(d *Document) { flow(d).To[0] = "10.2.1.7" }, "/connections/0/flows/0/to/0", "local zone"},
		{"to not in local", func(d *Document) { flow(d).To[0] = "10.1.3.7" }, "/connections/0/flows/0/to/0", "\"local\""},
		{"from not in remote", func(d *Document) { flow(d).From[0] = "10.6.1.7" }, "/connections/0/flows/0/from/0", "\"remote\""},
		{"mixed families", func(d *Document) { flow(d).From = append(flow(d).From, "fd02:1::1") }, "/connections/0/flows/0/to", "families"},
		{"icmp for v6", func(d *Document) { d.Connections[0].Flows[3].Protocol, d.Connections[0].Flows[3].Ports = "icmp", nil }, "/connections/0/flows/3/protocol", "icmpv6"},
		{"icmpv6 for v4", func(d *Document) { d.Connections[0].Flows[1].Protocol = "icmpv6" }, "/connections/0/flows/1/protocol", "\"icmp\""},

		{"HSZ", func(d *Document) {
			addFlow(d, 1, FlowRule{From: []string{"10.3.1.7"}, To: []string{"10.1.1.5"}, Protocol: "tcp", Ports: []string{"22"}, Direction: DirectionIn})
		}, "/connections/1/flows/2/to/0", "nothing with the outside but remote maintenance"},
		{"HSZ outwards", func(d *Document) {
			addFlow(d, 1, FlowRule{From: []string{"10.1.1.5"}, To: []string{"10.3.1.7"}, Protocol: "tcp", Ports: []string{"22"}, Direction: DirectionOut})
		}, "/connections/1/flows/2/from/0", "nothing with the outside but remote maintenance"},
		{"maintenance of a network", func(d *Document) { d.Connections[2].Flows[0].To[0] = "10.1.1.4/31" }, "/connections/2/flows/0/to/0", "single hosts"},
		{"maintenance any", func(d *Document) { d.Connections[2].Flows[0].Protocol, d.Connections[2].Flows[0].Ports = "any", nil }, "/connections/2/flows/0/protocol", "a named protocol"},
		{"maintenance ports", func(d *Document) { d.Connections[2].Flows[0].Ports[0] = "1-65535" }, "/connections/2/flows/0/ports", "at most 64 ports"},
		{"any in SZ", func(d *Document) { d.Connections[1].Flows[1].From[0] = "10.1.2.10" }, "/connections/1/flows/1/protocol", "limited exchange"},
		{"internet in SZ", func(d *Document) { category(d, CategoryInternet) }, "/connections/1/flows/0/from/0", "a DMZ"},

		{"processing and relay", func(d *Document) {
			d.Services[0].Category = CategoryProcessing
			category(d, CategoryStorageRelay)
		}, "/connections/0/flows/0", "uses both processing and storage-relay"},
		{"processing and maintenance", func(d *Document) {
			d.Services[0].Category = CategoryProcessing
			d.Connections[2].Flows[0].To[0] = "10.1.2.77"
		}, "/connections/0/flows/1", "processing and remote-maintenance"},
		{"internet and relay", func(d *Document) {
			d.Services[0].Category = CategoryStorageRelay
			category(d, CategoryInternet)
			d.Connections[1].Flows = d.Connections[1].Flows[1:]
			d.Connections[0].Local = nil
			addFlow(d, 0, FlowRule{From: []string{"10.1.3.64/26"}, To: []string{"10.2.1.1"}, Protocol: "udp", Ports: []string{"53"}, Direction: DirectionOut})
		}, "/connections/1/flows/0", "internet and storage-relay"},

		{"two peers", func(d *Document) { d.Connections[1].Flows[0].To[0] = "10.2.1.80" }, "/connections/1/remote", "10.2.1.80 behind both connection \"a-b\" (peer \"clinic-b\") and connection \"a-c\""},
		{"two connections", func(d *Document) {
			second(d, FlowRule{Name: "x", From: []string{"10.2.1.9"}, To: []string{"10.1.2.0/25"}, Protocol: "tcp", Ports: []string{"5010"}, Direction: DirectionIn})
		}, "/connections/3/flows/0", "overlaps flow \"dicom\" of connection \"a-b\""},
		{"two connections, wider", func(d *Document) {
			second(d, FlowRule{Name: "x", From: []string{"10.2.0.0/16"}, To: []string{"10.1.2.10"}, Protocol: "tcp", Ports: []string{"1-200"}, Direction: DirectionIn})
		}, "/connections/3/flows/0", "overlaps flow \"dicom\""},
		{"two connections, crossed", func(d *Document) {
			second(d, FlowRule{Name: "x", From: []string{"10.2.0.0/16"}, To: []string{"10.1.2.10"}, Protocol: "icmp", Direction: DirectionIn})
		}, "/connections/3/flows/0", "overlaps flow \"ping\""},
		{"two connections, same prefixes", func(d *Document) {
			second(d, FlowRule{Name: "x", From: []string{"10.1.2.0/24"}, To: []string{"10.2.1.80"}, Protocol: "tcp", Ports: []string{"80", "443"}, Direction: DirectionOut})
		}, "/connections/3/flows/0", "overlaps flow \"web\""},

		{"test name twice", func(d *Document) { d.Tests[1].Name = "dicom" }, "/tests/1/name", ""},
		{"test address", func(d *Document) { d.Tests[0].From = "10.2.1.0/24" }, "/tests/0/from", ""},
		{"test protocol", func(d *Document) { d.Tests[0].Protocol = "any" }, "/tests/0/protocol", ""},
		{"test without port", func(d *Document) { d.Tests[0].Port = 0 }, "/tests/0/port", "destination port"},
		{"test icmp port", func(d *Document) { d.Tests[2].Port = 1 }, "/tests/2/port", "no ports"},
		{"test connection", func(d *Document) { d.Tests[0].Connection = "b-a" }, "/tests/0/connection", ""},
		{"test expect", func(d *Document) { d.Tests[0].Expect = "yes" }, "/tests/0/expect", ""},
		{"test families", func(d *Document) { d.Tests[0].To = "fd01:2::1" }, "/tests/0/to", "family"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := w.document()
			c.f(d)
			table, err := Compile(d)
			if err == nil || table != nil {
				t.Fatal("accepted")
			}
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("kind: %v", err)
			}
			var de *DocumentError
			if !errors.As(err, &de) {
				t.Fatalf("type %T", err)
			}
			found := false
			for _, f := range de.Faults {
				found = found || f.Path == c.path && strings.Contains(f.Error(), c.says)
			}
			if !found {
				t.Errorf("expected a fault at %s with %q, came %v", c.path, c.says, err)
			}
			if len(de.Faults) > 6 {
				t.Errorf("one mistake, %d faults: %v", len(de.Faults), err)
			}
		})
	}
}

// What looks alike but is in order.
func TestCompileAccepts(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		name string
		f    func(d *Document)
	}{
		{"second connection to a peer, other ports", func(d *Document) {
			c := d.Connections[0]
			c.Name = "a-b2"
			c.Flows = []FlowRule{{Name: "x", From: []string{"10.2.1.0/24"}, To: []string{"10.1.2.10"}, Protocol: "tcp", Ports: []string{"105-4999"}, Direction: DirectionIn}}
			d.Connections = append(d.Connections, c)
		}},
		{"same remote for other local addresses", func(d *Document) {
			d.Connections[0].Local, d.Connections[0].Remote = nil, nil
			d.Connections[0].Flows = d.Connections[0].Flows[:1]
			d.Connections[1].Flows = d.Connections[1].Flows[1:]
			d.Connections[1].Flows[0].To[0] = "10.2.1.0/24"
			d.Tests = nil
		}},
		{"all ports", func(d *Document) { d.Connections[0].Flows[0].Ports = []string{"1-65535"} }},
		{"flows of one connection overlap", func(d *Document) {
			d.Connections[0].Flows[1] = d.Connections[0].Flows[0]
			d.Connections[0].Flows[1].Name = "again"
		}},
		{"exclusive categories, different hosts", func(d *Document) {
			d.Services[0].Category = CategoryProcessing
		}},
		{"crl", func(d *Document) {
			l, err := w.service.CRLs(at, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			for i := range l {
				d.Services[0].CRLs = append(d.Services[0].CRLs, string(labca.EncodeCRLs(l[i:i+1])))
			}
		}},
		{"sctp by number", func(d *Document) {
			d.Connections[0].Flows[0].Protocol, d.Connections[0].Flows[0].Ports = "132", []string{"2905"}
		}},
	} {
		d := w.document()
		c.f(d)
		if _, err := Compile(d); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// All faults are reported, each with its line, and their number is bounded.
func TestAllFaults(t *testing.T) {
	w := newWorld(t)
	d := w.document()
	d.Serial = 0
	d.Zones[0].Level = "x"
	d.Connections[0].Start = "x"
	d.Tests[0].Expect = "x"
	payload, err := json.MarshalIndent(d, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := Parse(payload)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Compile(doc)
	var de *DocumentError
	if !errors.As(err, &de) || len(de.Faults) < 4 {
		t.Fatalf("%v", err)
	}
	lines := bytes.Split(payload, []byte("\n"))
	for _, f := range de.Faults {
		key := f.Path[strings.LastIndex(f.Path, "/")+1:]
		if f.Line == 0 || !bytes.Contains(lines[f.Line-1], []byte(`"`+key+`"`)) {
			t.Errorf("%v: line %d is %q", f, f.Line, lines[max(f.Line, 1)-1])
		}
	}
	d.Connections[0].Flows = nil
	for i := range 300 {
		d.Connections[0].Flows = append(d.Connections[0].Flows, FlowRule{Name: fmt.Sprint(i), Direction: "x"})
	}
	_, err = Compile(d)
	if !errors.As(err, &de) || len(de.Faults) != maxReported || de.More == 0 {
		t.Errorf("%d faults and %d more", len(de.Faults), de.More)
	}
}

// Counts are bounded, and a policy made to be slow to judge is refused in time.
func TestBounds(t *testing.T) {
	w := newWorld(t)
	if _, err := Parse(bytes.Repeat([]byte(" "), MaxFileSize+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	d := w.document()
	var wide []string
	for i := range 1000 {
		wide = append(wide, fmt.Sprintf("10.2.%d.%d", i/250, 1+i%250))
	}
	var in []string
	for i := range 200 {
		in = append(in, fmt.Sprintf("10.1.2.%d", 1+i))
	}
	d.Connections[0].Flows = nil
	for i := range 6 {
		d.Connections[0].Flows = append(d.Connections[0].Flows, FlowRule{Name: fmt.Sprint(i), From: wide, To: in, Protocol: "tcp", Ports: []string{fmt.Sprint(i + 1)}, Direction: DirectionIn})
	}
	if _, err := Compile(d); err == nil || !strings.Contains(err.Error(), fmt.Sprint(MaxEntries)) {
		t.Errorf("%v", err)
	}
	// Prefixes inside one another beyond the bound.
	d = w.document()
	d.Tests = nil
	d.Connections[0].Flows = d.Connections[0].Flows[:1]
	for bits := 16; bits <= 28; bits++ {
		d.Connections[0].Flows = append(d.Connections[0].Flows, FlowRule{
			Name: fmt.Sprint("n", bits), From: []string{netip.PrefixFrom(netip.MustParseAddr("10.2.0.0"), bits).String()}, To: []string{"10.1.2.1"}, Protocol: "udp", Ports: []string{"9"}, Direction: DirectionIn,
		})
	}
	if _, err := Compile(d); err == nil || !strings.Contains(err.Error(), "inside one another") {
		t.Errorf("%v", err)
	}
	// Two connections to one peer whose many wide and many narrow rules cross.
	d = w.document()
	d.Tests = nil
	other := d.Connections[0]
	other.Name = "a-b2"
	d.Connections[0].Flows, other.Flows = nil, nil
	var ports1, ports2 []string
	for i := range MaxPorts {
		ports1, ports2 = append(ports1, fmt.Sprint(1+4*i)), append(ports2, fmt.Sprint(3+4*i))
	}
	d.Connections[0].Flows = []FlowRule{{Name: "a", From: []string{"10.2.0.0/16"}, To: in, Protocol: "tcp", Ports: ports1, Direction: DirectionIn}}
	other.Flows = []FlowRule{{Name: "b", From: wide, To: []string{"10.1.2.0/24"}, Protocol: "tcp", Ports: ports2, Direction: DirectionIn}}
	d.Connections = append(d.Connections, other)
	if _, err := Compile(d); err == nil || !strings.Contains(err.Error(), "too many overlapping") {
		t.Errorf("%v", err)
	}
	// Too many traffic selectors.
	d = w.document()
	d.Connections[0].Remote = nil
	var odd []string
	for i := range 300 {
		odd = append(odd, fmt.Sprintf("10.2.%d.%d", 4+i/100, 1+2*(i%100)))
	}
	d.Connections[0].Flows[0].From = odd
	if _, err := Compile(d); err == nil || !strings.Contains(err.Error(), "traffic selectors") {
		t.Errorf("%v", err)
	}
}

func TestAggregate(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"10.0.0.0/24 10.0.1.0/24", "10.0.0.0/23"},
		{"10.0.1.0/24 10.0.2.0/24", "10.0.1.0/24 10.0.2.0/24"},
		{"10.0.0.0/24 10.0.0.7/32 10.0.1.0/24 10.0.2.0/23", "10.0.0.0/22"},
		{"10.0.0.0/32 10.0.0.1/32 10.0.0.2/32 10.0.0.3/32", "10.0.0.0/30"},
		{"fd00::/64 10.0.0.0/8", "10.0.0.0/8 fd00::/64"},
		{"", ""},
	} {
		var in []netip.Prefix
		for _, s := range strings.Fields(c.in) {
			in = append(in, netip.MustParsePrefix(s))
		}
		var got []string
		for _, p := range aggregate(in) {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: expected %s, came %v", c.in, c.want, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	w := newWorld(t)
	good, err := json.MarshalIndent(w.document(), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(good); err != nil {
		t.Fatal(err)
	}
	replace := func(old, with string) []byte {
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("no %q in the document", old)
		}
		return bytes.Replace(good, []byte(old), []byte(with), 1)
	}
	for _, c := range []struct {
		name    string
		payload []byte
		path    string
		says    string
	}{
		{"unknown member", replace(`"issuer":`, `"colour": 1, "issuer":`), "/colour", "unknown member \"colour\""},
		{"unknown member below", replace(`"level":`, `"lvl": "x", "level":`), "/zones/0/lvl", "unknown member"},
		{"wrong case", replace(`"issuer":`, `"Issuer":`), "/Issuer", "unknown member"},
		{"twice", replace(`"serial": 7`, `"serial": 7, "serial": 8`), "/serial", "second time"},
		{"twice, escaped", replace(`"serial": 7`, `"serial": 7, "\u0073erial": 8`), "/serial", "second time"},
		{"twice below", replace(`"level": "SZ"`, `"level": "SZ", "level": "DMZ"`), "/zones/1/level", "second time"},
		{"missing", replace(`"serial": 7,`, ``), "/serial", "the member \"serial\""},
		{"null", replace(`"serial": 7`, `"serial": null`), "/serial", "came null"},
		{"string for number", replace(`"serial": 7`, `"serial": "7"`), "/serial", "a number"},
		{"fraction", replace(`"serial": 7`, `"serial": 7.0`), "/serial", "whole number"},
		{"exponent", replace(`"serial": 7`, `"serial": 1e3`), "/serial", "whole number"},
		{"negative", replace(`"serial": 7`, `"serial": -7`), "/serial", "whole number"},
		{"too big", replace(`"serial": 7`, `"serial": 18446744073709551616`), "/serial", "whole number"},
		{"port too big", replace(`"port": 11112`, `"port": 70000`), "/tests/0/port", "65535"},
		{"format", replace(`"format": 1`, `"format": true`), "/format", "came true"},
		{"time", replace(`"not_before": "2026-04-01T11:00:00Z"`, `"not_before": "2026-04-01"`), "/not_before", "RFC 3339"},
		{"time number", replace(`"not_before": "2026-04-01T11:00:00Z"`, `"not_before": 5`), "/not_before", "a string"},
		{"duration", replace(`"ike": "8h0m0s"`, `"ike": "8 hours"`), "/lifetimes/ike", "a duration"},
		{"duration number", replace(`"ike": "8h0m0s"`, `"ike": 8`), "/lifetimes/ike", "a string"},
		{"psk", replace(`"psk": "AAAA`, `"psk": "*AAA`), "/services/1/psk", "not shown"},
		{"object for list", replace(`"tests": [`, `"tests": {}, "x": [`), "/tests", "a list"},
		{"list for object", replace(`"device": {`, `"device": [], "x": {`), "/device", "an object"},
		{"lone surrogate", replace(`"sp.example"`, `"sp\ud800"`), "/issuer", "Unicode"},
		{"not UTF-8", replace(`"sp.example"`, "\"sp\xff\""), "", "0xff"},
		{"trailing data", append(bytes.Clone(good), "{}"...), "", "nothing after it"},
		{"truncated", good[:len(good)-3], "", "unexpected end"},
		{"comma", replace(`"serial": 7,`, `"serial": 7,,`), "", "invalid character"},
		{"deep", []byte(strings.Repeat("[", 50) + strings.Repeat("]", 50)), "/0/0/0/0/0/0/0/0/0", "levels"},
		{"list", []byte("[]"), "", "an object"},
		{"nothing", nil, "", "JSON"},
	} {
		t.Run(c.name, func(t *testing.T) {
			doc, err := Parse(c.payload)
			if err == nil || doc != nil {
				t.Fatal("accepted")
			}
			var de *DocumentError
			if !errors.Is(err, ErrSyntax) || !errors.As(err, &de) {
				t.Fatalf("kind: %v", err)
			}
			found := false
			for _, f := range de.Faults {
				found = found || f.Path == c.path && strings.Contains(f.Error(), c.says) && f.Line > 0
			}
			if !found {
				t.Errorf("expected a fault at %q with %q, came %v", c.path, c.says, err)
			}
		})
	}
	for n := range good {
		if n%7 != 0 {
			continue
		}
		if _, err := Parse(good[:n]); err == nil {
			t.Fatalf("accepted the first %d bytes", n)
		}
	}
}

// What connections say of keys and addresses, and what is taken where they say nothing.
func TestConnectionDefaults(t *testing.T) {
	w := newWorld(t)
	d := w.document()
	c, p := &d.Connections[0], &d.Peers[0]
	compiled := func() ConnectionInfo {
		t.Helper()
		table, err := Compile(d)
		if err != nil {
			t.Fatal(err)
		}
		return table.Connections()[0]
	}
	if i := compiled(); i.Moves != MovesNamed || i.PPK != PPKOff || i.PPKID != "" || i.Childless {
		t.Errorf("with nothing said: %+v", i)
	}
	c.PPK, c.PPKID, c.FirstChild, p.Moves = PPKRequired, "ours-2026", FirstChildOwn, MovesNever
	if i := compiled(); i.Moves != MovesNever || i.PPK != PPKRequired || i.PPKID != "ours-2026" || !i.Childless {
		t.Errorf("%+v", i)
	}
	p.Moves, p.Gateways, c.Start, c.Idle = "", nil, StartManual, 0
	d.Connections = d.Connections[:1]
	d.Tests = nil
	if i := compiled(); i.Moves != MovesAnywhere {
		t.Errorf("without gateways it moves %q; want %q", i.Moves, MovesAnywhere)
	}
}
