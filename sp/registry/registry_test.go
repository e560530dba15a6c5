package registry_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"wardgate/policy"
	"wardgate/sp/registry"
	"wardgate/sp/registry/registrytest"
)

var at = registrytest.At

const a, b, c = "a.devices.example", "b.devices.example", "c.devices.example"

func newRegistry(t testing.TB, content registry.Content) *registry.Registry {
	t.Helper()
	r, err := registry.New(content)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// folder is what Export writes.
func folder(r *registry.Registry) fstest.MapFS {
	out := fstest.MapFS{}
	for name, data := range r.Export() {
		out[name] = &fstest.MapFile{Data: data}
	}
	return out
}

func asJSON(t rapid.TB, r *registry.Registry) string {
	t.Helper()
	j, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(j)
}

// TestGolden: the demonstration's folder is what the model of it is, and is written as it was read.
func TestGolden(t *testing.T) {
	root := os.DirFS(filepath.Join("testdata", "hospital"))
	r, err := registry.Load(root)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for name, data := range r.Export() {
		n++
		want, err := os.ReadFile(filepath.Join("testdata", "hospital", filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(data)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if n != 13 {
		t.Errorf("%d files, want 13", n)
	}
	// The certificates of the files are older.
	content := registrytest.Hospital()
	for i := range content.Devices {
		content.Devices[i].Certificate = r.Device(content.Devices[i].Name).Certificate
	}
	if diff := cmp.Diff(asJSON(t, newRegistry(t, content)), asJSON(t, r)); diff != "" {
		t.Error(diff)
	}
}

// TestRoundTrip: files and JSON give the same registry again, and the same octets.
func TestRoundTrip(t *testing.T) {
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		content := registrytest.Random(t)
		content.Members[0].Contact = rapid.StringMatching(`[ -~äß→"\\]{0,20}`).Draw(t, "contact")
		for i := range content.Contracts {
			k := &content.Contracts[i]
			if f := k.Flows[0]; k.Parties[0].Hosts == nil && k.Parties[1].Hosts == nil && k.Parties[0].Narrow == nil && k.Parties[1].Narrow == nil && f.Protocol == "tcp" {
				k.Tests = []registry.Test{{Name: "t", From: f.Sources[0].Addr(), To: f.Destinations[0].Addr(), Protocol: "tcp", Port: f.Ports[0].First, Expect: policy.ExpectAllow}}
			}
		}
		for i := range content.Services {
			rules := &content.Services[i].Rules
			rules.Revocation = rapid.SampledFrom([]string{"", policy.RevocationIfKnown, policy.RevocationRequired}).Draw(t, "revocation")
			rules.FirstChild = rapid.SampledFrom([]string{"", policy.FirstChildWithIKE, policy.FirstChildOwn}).Draw(t, "first child")
		}
		for i := range content.Contracts {
			content.Contracts[i].PPK = rapid.SampledFrom([]string{"", policy.PPKOff, policy.PPKOptional, policy.PPKRequired}).Draw(t, "ppk")
		}
		r, err := registry.New(content)
		if err != nil {
			return
		}
		accepted++
		files := folder(r)
		again, err := registry.Load(files)
		if err != nil {
			t.Fatalf("what was exported is refused: %v", err)
		}
		if x, y := asJSON(t, r), asJSON(t, again); x != y {
			t.Fatalf("another registry: %s", cmp.Diff(x, y))
		}
		if diff := cmp.Diff(files, folder(again)); diff != "" {
			t.Fatalf("other files: %s", diff)
		}
		decoded, err := registry.Decode([]byte(asJSON(t, r)))
		if err != nil {
			t.Fatal(err)
		}
		if x, y := asJSON(t, r), asJSON(t, decoded); x != y {
			t.Fatalf("another registry from JSON: %s", cmp.Diff(x, y))
		}
		if d := again.Diff(r); len(d) != 0 || again.Plan(r) != "" {
			t.Fatalf("differences: %v", d)
		}
	})
	if accepted == 0 {
		t.Error("no registry was accepted")
	}
}

func TestDecode(t *testing.T) {
	for _, s := range []string{"", "{", "[]", `{"memberz":[]}`, `{} {}`, `{"members":[{"name":"x"}]}`, `{"contracts":[{"flows":[{"ports":["0"]}]}]}`} {
		if _, err := registry.Decode([]byte(s)); !errors.Is(err, registry.ErrRefused) {
			t.Errorf("%s: got %v", s, err)
		}
	}
	if _, err := registry.Decode([]byte("{}")); err != nil {
		t.Errorf("an empty registry: %v", err)
	}
}

// TestImmutable: a registry does not change when what it was made of does.
func TestImmutable(t *testing.T) {
	content := registrytest.Hospital()
	r := newRegistry(t, content)
	before := asJSON(t, r)
	content.Devices[0].Zones[0].Prefixes[0] = registrytest.Prefixes("10.9.9.0/24")[0]
	content.Contracts[0].Flows[0].Ports[0].First = 1
	content.Contracts[0].Parties[0].Device = "x"
	content.Services[0].Rules.Suites.IKE[0] = "x"
	content.Members[0].Title = "x"
	if after := asJSON(t, r); after != before {
		t.Error(cmp.Diff(before, after))
	}
}

func TestLookups(t *testing.T) {
	content := registrytest.Hospital()
	content.Memberships[2].From, content.Memberships[2].Until = at, at.Add(time.Hour)
	content.Memberships[3].ID = "imaging.group-b.example"
	r := newRegistry(t, content)
	if r.Device("A.Devices.Example") == nil || r.Device("x") != nil || r.Member("hospital-a") == nil || r.Service("group-c") != nil || r.Contract("a-c") == nil {
		t.Error("objects by name")
	}
	if got := r.ServiceID(r.Membership(b, "group-a")); got != "b.group-a.example" {
		t.Errorf("identity by default: %s", got)
	}
	if got := r.ServiceID(r.Membership(c, "group-b")); got != "imaging.group-b.example" {
		t.Errorf("identity of its own: %s", got)
	}
	var of, devices, members []string
	for k := range r.ContractsOf(a) {
		of = append(of, k.Name)
	}
	for d := range r.DevicesOf("clinic-b") {
		devices = append(devices, d.Name)
	}
	for m := range r.MembersOf("group-b") {
		members = append(members, m.Device)
	}
	if !slices.Equal(of, []string{"a-b", "a-c"}) || !slices.Equal(devices, []string{b}) || !slices.Equal(members, []string{a, c}) {
		t.Error(of, devices, members)
	}
	for _, w := range []struct {
		device, service string
		now             time.Time
		want            string
	}{
		{a, "group-a", at, ""},
		{b, "group-a", at, ""},
		{b, "group-a", at.Add(-1), "begins on 2026-04-01T12:00:00Z"},
		{b, "group-a", at.Add(time.Hour), "ended on 2026-04-01T13:00:00Z"},
		{b, "group-b", at, "has not joined"},
		{"x.devices.example", "group-a", at, "no device"},
	} {
		err := r.IsMember(w.device, w.service, w.now)
		if (err == nil) != (w.want == "") || err != nil && (!errors.Is(err, registry.ErrNotMember) || !strings.Contains(err.Error(), w.want)) {
			t.Errorf("%s in %s at %v: got %v, want %q", w.device, w.service, w.now, err, w.want)
		}
	}
	if err := r.InForce(r.Contract("a-b"), at.Add(-1)); !errors.Is(err, registry.ErrNotInForce) || !errors.Is(err, registry.ErrNotMember) {
		t.Errorf("got %v", err)
	}
	if err := r.InForce(r.Contract("a-b"), at); err != nil {
		t.Error(err)
	}
	if got := r.Fingerprint(a); got.IsZero() || r.Certificate("x") != nil || !r.Fingerprint("x").IsZero() {
		t.Error("fingerprints")
	}
}

// replace edits a file of the demonstration.
func replace(file, old, text string) func(fstest.MapFS) {
	return func(f fstest.MapFS) {
		s := string(f[file].Data)
		if !strings.Contains(s, old) {
			panic(fmt.Sprintf("%s has no %q", file, old))
		}
		f[file] = &fstest.MapFile{Data: []byte(strings.Replace(s, old, text, 1))}
	}
}

func write(file, text string) func(fstest.MapFS) {
	return func(f fstest.MapFS) { f[file] = &fstest.MapFile{Data: []byte(text)} }
}

func all(list ...func(fstest.MapFS)) func(fstest.MapFS) {
	return func(f fstest.MapFS) {
		for _, e := range list {
			e(f)
		}
	}
}

const (
	fileA  = "devices/a.devices.example.toml"
	fileB  = "devices/b.devices.example.toml"
	fileAB = "contracts/a-b.toml"
	fileAC = "contracts/a-c.toml"
)

// TestFaults: every rule, with the file and line where it is broken, what came and what to do.
func TestFaults(t *testing.T) {
	for _, w := range []struct {
		name string
		edit func(fstest.MapFS)
		rule string
		want []string // the beginning of the error, and what else is in it
	}{
		{"not TOML", replace(fileAB, "title = ", "title "), registry.RuleFile, []string{"contracts/a-b.toml:1: "}},
		{"unknown key", replace(fileAB, "start =", "stat ="), registry.RuleFile, []string{"contracts/a-b.toml:3: ", `"stat"`, `did you mean "start"?`}},
		{"unknown key in a list", replace(fileAB, "protocol =", "protocoll ="), registry.RuleFile, []string{"contracts/a-b.toml:17: ", "the keys of flow are", `did you mean "protocol"?`}},
		{"wrong type", replace(fileAB, `"on-demand"`, "5"), registry.RuleFile, []string{"contracts/a-b.toml:3: "}},
		{"unknown file", write("members/x.tml", ""), registry.RuleFile, []string{"members/x.tml: ", "rename or remove it"}},
		{"link", func(f fstest.MapFS) { f["members/x.toml"] = &fstest.MapFile{Mode: os.ModeSymlink} }, registry.RuleFile, []string{"members/x.toml: ", "plain files"}},
		{"folder", write("members/x.toml/y.toml", ""), registry.RuleFile, []string{"members/x.toml: ", "plain files"}},
		{"too large", write("members/x.toml", "#"+strings.Repeat(" ", registry.MaxFileSize)), registry.RuleFile, []string{"members/x.toml: ", "1048576 octets"}},
		{"nothing", func(f fstest.MapFS) { clear(f) }, registry.RuleFile, []string{".: ", "contracts"}},
		{"certificate without device", write("devices/x.pem", ""), registry.RuleFile, []string{"devices/x.pem: "}},
		{"upper case", write("members/X.toml", "title = 'x'"), registry.RuleFile, []string{"members/X.toml: ", "lower case"}},

		{"name", write("members/x..y.toml", "title = 'x'"), registry.RuleName, []string{"members/x..y.toml: "}},
		{"device name", func(f fstest.MapFS) { f["devices/a_b.toml"], f["devices/a_b.pem"] = f[fileB], f["devices/"+b+".pem"] }, registry.RuleName, []string{"devices/a_b.toml: ", "DNS name"}},
		{"no title", write("members/x.toml", ""), registry.RuleText, []string{"members/x.toml: title: "}},
		{"control character", write("members/x.toml", `title = "a\u0007"`), registry.RuleText, []string{"members/x.toml:1: title: "}},
		{"no member", replace(fileB, "clinic-b", "clinik-b"), registry.RuleReference, []string{fileB + ":1: member: ", `did you mean "clinic-b"?`}},
		{"state", replace(fileB, `"active"`, `"actve"`), registry.RuleWord, []string{fileB + ":2: state: ", `"active", "suspended", "revoked"`}},
		{"no certificate", func(f fstest.MapFS) { delete(f, "devices/"+b+".pem") }, registry.RuleCertificate, []string{"devices/" + b + ".pem: "}},
		{"no PEM", write("devices/"+b+".pem", "hello"), registry.RuleCertificate, []string{"devices/" + b + ".pem: "}},
		{"another's certificate", func(f fstest.MapFS) { f["devices/"+b+".pem"] = f["devices/"+a+".pem"] }, registry.RuleCertificate, []string{"devices/" + b + ".pem: ", "one for \"a.devices.example\""}},
		{"CA certificate", func(f fstest.MapFS) {
			data, err := os.ReadFile(filepath.Join("..", "compile", "testdata", "device-ca.pem"))
			if err != nil {
				panic(err)
			}
			f["devices/"+b+".pem"] = &fstest.MapFile{Data: data}
		}, registry.RuleCertificate, []string{"devices/" + b + ".pem: ", "CA"}},
		{"gateway", replace(fileB, "198.18.0.2", "b.example"), registry.RuleGateway, []string{fileB + ":3: gateways[0]: "}},
		{"another's gateway", replace(fileB, "198.18.0.2", "198.18.0.1:500"), registry.RuleGateway, []string{fileB + ":3: gateways[0]: ", a}},
		{"prefix", replace(fileB, "10.2.1.0/24", "10.2.1.0/33"), registry.RulePrefix, []string{fileB + ":8: zone[0].prefixes[0]: "}},
		{"bits beyond the length", replace(fileB, "10.2.1.0/24", "10.2.1.9/24"), registry.RulePrefix, []string{fileB + ":8: zone[0].prefixes[0]: ", "10.2.1.0/24 for the network or 10.2.1.9 for the host"}},
		{"prefix twice", replace(fileB, `"10.2.1.0/24"`, "\"10.2.1.0/24\",\n\"10.2.1.0/24\""), registry.RuleTwice, []string{fileB + ":9: zone[0].prefixes[1]: "}},
		{"no zone", replace(fileA, "[[zone]]\nname = \"hsz\"\nlevel = \"HSZ\"\nprefixes = [\"10.1.1.0/24\"]\ninterfaces = [\"lan-hsz\"]\n\n[[zone]]\nname = \"sz\"\nlevel = \"SZ\"\nprefixes = [\"10.1.2.0/24\"]\ninterfaces = [\"lan-sz\"]\n", ""), registry.RuleBounds, []string{fileA + ": zone: "}},
		{"zone twice", replace(fileA, `name = "sz"`, `name = "hsz"`), registry.RuleTwice, []string{fileA + ":12: zone[1].name: "}},
		{"zones overlap", replace(fileA, "10.1.2.0/24", "10.1.0.0/16"), registry.RuleZoneOverlap, []string{fileA + ":14: zone[1].prefixes[0]: ", `"hsz"`}},
		{"level", replace(fileA, `"HSZ"`, `"high"`), registry.RuleWord, []string{fileA + ":7: zone[0].level: "}},
		{"service of membership", replace(fileB, `service = "group-a"`, `service = "group-x"`), registry.RuleReference, []string{fileB + ":12: membership[group-x].service: "}},
		{"membership twice", replace(fileA, `service = "group-b"`, `service = "group-a"`), registry.RuleTwice, []string{fileA + ":20: membership[group-a]: "}},
		{"times of membership", replace(fileB, `service = "group-a"`, "service = \"group-a\"\nfrom = 2026-01-02T00:00:00Z\nuntil = 2026-01-01T00:00:00Z"), registry.RuleTime, []string{fileB + ":14: membership[group-a].until: "}},
		{"time without a zone", replace(fileAB, `idle = "1m"`, "from = 2026-01-01"), registry.RuleTime, []string{fileAB + ":4: from: ", "with its zone"}},
		{"time in quotes", replace(fileAB, `idle = "1m"`, `from = "2026-01-01T00:00:00Z"`), registry.RuleTime, []string{fileAB + ":4: from: ", "without quotes"}},
		{"identity outside the domain", replace(fileB, `service = "group-a"`, "service = \"group-a\"\nid = \"b.example\""), registry.RuleIdentity, []string{fileB + ":13: membership[group-a].id: ", "group-a.example"}},
		{"identity twice", replace(fileB, `service = "group-a"`, "service = \"group-a\"\nid = \"a.group-a.example\""), registry.RuleIdentity, []string{fileB + ":11: membership[group-a]: ", a}},
		{"category", replace("services/group-a.toml", `"information-provision"`, `"mail"`), registry.RuleWord, []string{"services/group-a.toml:2: category: "}},
		{"domain", replace("services/group-a.toml", `domain = "group-a.example"`, ""), registry.RuleDomain, []string{"services/group-a.toml: domain: "}},
		{"uniform rule's form", replace("services/group-b.toml", `"tcp/22"`, `"tcp/0"`), registry.RuleFlow, []string{"services/group-b.toml:7: rules.allow[0]: "}},
		{"revocation", replace("services/group-a.toml", "[rules.suites]", "[rules]\nrevocation = \"yes\"\n[rules.suites]"), registry.RuleWord, []string{"services/group-a.toml:7: rules.revocation: ", `"required"`}},
		{"first child", replace("services/group-a.toml", "[rules.suites]", "[rules]\nfirst_child = \"yes\"\n[rules.suites]"), registry.RuleWord, []string{"services/group-a.toml:7: rules.first_child: ", `"own-exchange"`}},
		{"ppk", replace(fileAB, `idle = "1m"`, `ppk = "always"`), registry.RuleWord, []string{fileAB + ":4: ppk: ", `"optional"`}},
		{"moves", replace(fileB, `gateways =`, "moves = \"away\"\ngateways ="), registry.RuleWord, []string{fileB + ":3: moves: ", `"anywhere"`}},
		{"moves among nothing", replace(fileB, `gateways = ["198.18.0.2"]`, `moves = "named"`), registry.RuleGateway, []string{fileB + ":3: moves: ", "no gateways"}},
		{"duration", replace("services/group-a.toml", "[rules.suites]", "[rules.lifetimes]\nike = \"8\"\n[rules.suites]"), registry.RuleTime, []string{"services/group-a.toml:7: rules.lifetimes.ike: "}},

		{"one party", replace(fileAB, "[[party]]\ndevice = \"b.devices.example\"\n", ""), registry.RuleParties, []string{fileAB + ":6: party: ", "two [[party]] tables"}},
		{"party with itself", replace(fileAB, `device = "b.devices.example"`, `device = "a.devices.example"`), registry.RuleParties, []string{fileAB + ":10: party[1].device: "}},
		{"party that is not there", replace(fileAB, `device = "b.devices.example"`, `device = "bb.devices.example"`), registry.RuleReference, []string{fileAB + ":10: party[1].device: ", `did you mean "b.devices.example"?`}},
		{"no gateways", all(replace(fileB, `gateways = ["198.18.0.2"]`, ""), replace(fileA, `gateways = ["198.18.0.1"]`, "")), registry.RuleParties, []string{fileAB + ":6: party: "}},
		{"no member of the service", replace(fileB, "[[membership]]\nservice = \"group-a\"\n", ""), registry.RuleMembership, []string{fileAB + ":10: party[1].device: ", "group-a"}},
		{"service of contract", replace(fileAB, `"group-a"`, `"group-z"`), registry.RuleReference, []string{fileAB + ":2: service: "}},
		{"idle with always", replace(fileAB, "on-demand", "always"), registry.RuleTime, []string{fileAB + ":4: idle: "}},
		{"idle", replace(fileAB, `"1m"`, `"25h"`), registry.RuleTime, []string{fileAB + ":4: idle: "}},
		{"flow from a stranger", replace(fileAB, `from = "b.devices.example"`, `from = "c.devices.example"`), registry.RuleReference, []string{fileAB + ":14: flow[0].from: "}},
		{"flow twice", replace(fileAB, `name = "probe"`, `name = "studies"`), registry.RuleTwice, []string{fileAB + ":21: flow[1].name: "}},
		{"source outside the zones", replace(fileAB, "10.2.1.0/24", "10.2.2.0/24"), registry.RuleFlowZone, []string{fileAB + ":15: flow[0].sources[0]: ", "no zone"}},
		{"source wider than the zone", replace(fileAB, "10.2.1.0/24", "10.2.0.0/16"), registry.RuleFlowZone, []string{fileAB + ":15: flow[0].sources[0]: ", "only a part"}},
		{"destination of the wrong party", replace(fileAB, `"10.1.2.10"`, `"10.2.1.10"`), registry.RuleFlowZone, []string{fileAB + ":16: flow[0].destinations[0]: ", a}},
		{"both have the address", replace(fileA, "10.1.2.0/24", "10.1.2.0/24\", \"10.2.1.0/25"), registry.RuleZoneOverlap, []string{fileAB + ":15: flow[0].sources[0]: ", "matched in the domain"}},
		{"families", replace(fileAB, `sources = ["10.2.1.0/24"]`, `sources = ["10.2.1.0/24", "fd00::/64"]`), registry.RuleFlow, []string{fileAB + ":16: flow[0].destinations: "}},
		{"protocol", replace(fileAB, `protocol = "tcp"`, `protocol = "http"`), registry.RuleFlow, []string{fileAB + ":17: flow[0].protocol: "}},
		{"tunnel", replace(fileAB, "protocol = \"tcp\"\nports = [\"11112\"]", "protocol = 47"), registry.RuleFlow, []string{fileAB + ":17: flow[0].protocol: ", "tunnel"}},
		{"no ports", replace(fileAB, `ports = ["11112"]`, ""), registry.RuleFlow, []string{fileAB + ":12: flow[0].ports: "}},
		{"port", replace(fileAB, `ports = ["11112"]`, "ports = [\n104,\n0]"), registry.RuleFlow, []string{fileAB + ":20: flow[0].ports[1]: "}},
		{"ports of icmp", replace(fileAB, `protocol = "icmp"`, "protocol = \"icmp\"\nports = [1]"), registry.RuleFlow, []string{fileAB + ":34: flow[2].ports: "}},
		{"outside the uniform rules", replace(fileAC, `"22"`, `"23"`), registry.RuleUniform, []string{fileAC + ":17: flow[0].protocol: ", "tcp/22"}},
		{"HSZ", replace("services/group-b.toml", "remote-maintenance", "processing"), registry.RuleHSZ, []string{fileAC + ":16: flow[0].destinations[0]: ", "high security zone"}},
		{"internet from an SZ", replace("services/group-a.toml", "information-provision", "internet"), registry.RuleLevel, []string{fileAB + ":15: flow[0].sources[0]: ", "DMZ"}},
		{"maintenance of a network", replace(fileAC, `"10.3.1.7"`, `"10.3.1.0/28"`), registry.RuleMaintenance, []string{fileAC + ":15: flow[0].sources[0]: ", "single hosts"}},
		{"maintenance of many ports", all(replace(fileAC, `"22"`, `"100-200"`), replace("services/group-b.toml", "tcp/22", "tcp")), registry.RuleMaintenance, []string{fileAC + ":18: flow[0].ports: ", "at most 64"}},
		{"any from an SZ", replace(fileAB, "protocol = \"tcp\"\nports = [\"11112\"]", "protocol = \"any\""), registry.RuleLevel, []string{fileAB + ":17: flow[0].protocol: "}},

		{"narrow nothing", replace(fileAB, "[[flow]]", "[[party.narrow]]\nflow = \"studies\"\n[[flow]]"), registry.RuleNarrow, []string{fileAB + ":12: party[1].narrow[0]: "}},
		{"narrow an unknown flow", replace(fileAB, "[[flow]]", "[[party.narrow]]\nflow = \"study\"\noff = true\n[[flow]]"), registry.RuleReference, []string{fileAB + ":13: party[1].narrow[0].flow: "}},
		{"widen sources", replace(fileAB, "[[flow]]", "[[party.narrow]]\nflow = \"studies\"\nsources = [\"10.2.0.0/16\"]\n[[flow]]"), registry.RuleNarrow, []string{fileAB + ":14: party[1].narrow[0].sources[0]: ", "can only narrow"}},
		{"widen ports", replace(fileAB, "[[flow]]", "[[party.narrow]]\nflow = \"studies\"\nports = [\"11112-11113\"]\n[[flow]]"), registry.RuleNarrow, []string{fileAB + ":14: party[1].narrow[0].ports: ", "can only narrow"}},
		{"narrow ports of icmp", replace(fileAB, "[[flow]]", "[[party.narrow]]\nflow = \"ping\"\nports = [1]\n[[flow]]"), registry.RuleNarrow, []string{fileAB + ":14: party[1].narrow[0].ports: "}},
		{"test that a party takes away", replace(fileAB, "[[flow]]", "[[party.narrow]]\nflow = \"studies\"\noff = true\n[[flow]]"), registry.RuleTest, []string{fileAB + ":45: test[0]: ", "a party's own rules take away"}},
		{"test that fails", replace(fileAB, "port = 22", "port = 11112"), registry.RuleTest, []string{fileAB + ":50: test[1]: ", "studies"}},
		{"test without port", replace(fileAB, "port = 22", ""), registry.RuleTest, []string{fileAB + ":50: test[1].port: "}},
		{"test's address", replace(fileAB, `from = "10.2.1.9"`, `from = "10.2.1.0/24"`), registry.RuleTest, []string{fileAB + ":44: test[0].from: "}},
		{"expectation", replace(fileAB, `expect = "deny"`, `expect = "refuse"`), registry.RuleWord, []string{fileAB + ":56: test[1].expect: "}},
	} {
		t.Run(w.name, func(t *testing.T) {
			files := folder(newRegistry(t, registrytest.Hospital()))
			w.edit(files)
			_, err := registry.Load(files)
			e, ok := errors.AsType[*registry.Error](err)
			if !ok || !errors.Is(err, registry.ErrRefused) {
				t.Fatalf("got %v", err)
			}
			if slices.ContainsFunc(e.Faults, func(f *registry.Fault) bool {
				s := f.Error()
				return f.Rule == w.rule && strings.HasPrefix(s, w.want[0]) && !slices.ContainsFunc(w.want, func(x string) bool { return !strings.Contains(s, x) })
			}) {
				return
			}
			t.Errorf("no fault of rule %q with %q in:\n%v", w.rule, w.want, err)
		})
	}
}

// TestEveryRuleIsTested looks for rules that TestFaults does not break.
func TestEveryRuleIsTested(t *testing.T) {
	source, err := os.ReadFile("check.go")
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile("registry_test.go")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(source)) {
		name, _, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || !strings.HasPrefix(name, "Rule") || !strings.HasPrefix(line, "\tRule") {
			continue
		}
		n++
		if !strings.Contains(string(tests), "registry."+name+", []string") {
			t.Errorf("%s is broken by no test", name)
		}
	}
	if n < 20 {
		t.Errorf("%d rules found in check.go", n)
	}
}

// TestLeftAlone: files that are none of the registry's.
func TestLeftAlone(t *testing.T) {
	files := folder(newRegistry(t, registrytest.Hospital()))
	for _, name := range []string{"README.md", "members/README.md", "members/.a.toml.swp", ".git/config", "drawings/net.svg"} {
		files[name] = &fstest.MapFile{Data: []byte("x")}
	}
	if _, err := registry.Load(files); err != nil {
		t.Error(err)
	}
}

// TestManyFaults: a refusal is bounded.
func TestManyFaults(t *testing.T) {
	content := registrytest.Hospital()
	for i := range 150 {
		content.Members = append(content.Members, registry.Member{Name: fmt.Sprintf("m%d", i)})
	}
	_, err := registry.New(content)
	e, ok := errors.AsType[*registry.Error](err)
	if !ok || len(e.Faults) != 100 || e.More != 50 || !strings.HasSuffix(err.Error(), "and 50 more") {
		t.Errorf("got %v", err)
	}
}

// TestRevokedKeepsNoPlace: a device that replaces a revoked one has its addresses, gateway and
// identity.
func TestRevokedKeepsNoPlace(t *testing.T) {
	content := registrytest.Hospital()
	old := content.Devices[1]
	content.Devices[1].State = registry.Revoked
	old.Name, old.Certificate = "b2.devices.example", registrytest.Certificate("b2.devices.example")
	content.Devices = append(content.Devices, old)
	content.Memberships = append(content.Memberships, registry.Membership{Device: old.Name, Service: "group-a", ID: "b.group-a.example"})
	if _, err := registry.New(content); err != nil {
		t.Error(err)
	}
	content.Devices[1].State = registry.Suspended
	if _, err := registry.New(content); err == nil {
		t.Error("a suspended device's place was given away")
	}
}

// TestPlan is what a person reads before applying.
func TestPlan(t *testing.T) {
	old := newRegistry(t, registrytest.Hospital())
	content := registrytest.Hospital()
	content.Members = append(content.Members, registry.Member{Name: "clinic-d", Title: "Clinic D"})
	content.Members[0].Contact = ""
	content.Devices[1].Gateways = []string{"198.18.0.2", "198.18.0.22"}
	content.Services[1].Rules.Lifetimes.IKE = policy.Duration(4 * time.Hour)
	content.Memberships[3].Until = at
	k := &content.Contracts[0]
	k.Flows = slices.Clone(k.Flows[1:])
	k.Tests = k.Tests[1:]
	k.Parties[1].Narrow = []registry.Narrow{{Flow: "ping", Off: true}}
	k.Flows[0].Ports = []registry.Ports{{First: 7007, Last: 7009}}
	content.Contracts = content.Contracts[:1]
	r := newRegistry(t, content)
	want := `services
  ~ service group-b, which 2 devices have joined
      + rules.lifetimes.ike: 4h

member centre-c (Imaging centre C)
  ~ device c.devices.example
      + membership[group-b].until: 2026-04-01T12:00:00Z
  - contract a-c with hospital-a (Hospital A) for group-b

member clinic-b (Clinic B)
  ~ device b.devices.example
      ~ gateways: 198.18.0.2 → 198.18.0.2, 198.18.0.22
  ~ contract a-b with hospital-a (Hospital A) for group-a
      ~ flow[probe].ports: 7007 → 7007-7009
      + party[b.devices.example].narrow[ping]: off true
      - flow[studies]: from b.devices.example; sources 10.2.1.0/24; destinations 10.1.2.10; protocol tcp; ports 11112
      - test[studies]: from 10.2.1.9; to 10.1.2.10; protocol tcp; port 11112; expect allow

member clinic-d (Clinic D)
  + member clinic-d
      + title: Clinic D

member hospital-a (Hospital A)
  ~ member hospital-a
      - contact: it@hospital-a.example
  ~ contract a-b with clinic-b (Clinic B) for group-a
      ~ flow[probe].ports: 7007 → 7007-7009
      + party[b.devices.example].narrow[ping]: off true
      - flow[studies]: from b.devices.example; sources 10.2.1.0/24; destinations 10.1.2.10; protocol tcp; ports 11112
      - test[studies]: from 10.2.1.9; to 10.1.2.10; protocol tcp; port 11112; expect allow
  - contract a-c with centre-c (Imaging centre C) for group-b

1 to add, 5 to change, 1 to remove; members concerned: 4
`
	if diff := cmp.Diff(want, r.Plan(old)); diff != "" {
		t.Error(diff)
	}
	if got := old.Plan(nil); !strings.Contains(got, "10 to add, 0 to change, 0 to remove; members concerned: 3") {
		t.Error(got)
	}
}

// TestDiffDetects: whatever differs in JSON is a change, but for the order of lists.
func TestDiffDetects(t *testing.T) {
	seen := make(map[string]bool)
	for _, f := range []func(c *registry.Content){
		func(c *registry.Content) { c.Members[0].Title = "x" },
		func(c *registry.Content) { c.Devices[0].State = registry.Suspended },
		func(c *registry.Content) { c.Devices[0].ESP = policy.ESPNative },
		func(c *registry.Content) { c.Devices[0].Member = "clinic-b" },
		func(c *registry.Content) { c.Devices[0].Zones[0].Interfaces = []string{"x"} },
		func(c *registry.Content) { c.Memberships[0].ID = "x.group-a.example" },
		func(c *registry.Content) { c.Services[0].Rules.Suites.ESP = []string{"x"} },
		func(c *registry.Content) { c.Services[0].Rules.Lifetimes.ChildPackets = 5 },
		func(c *registry.Content) { c.Contracts[0].Start = policy.StartManual },
		func(c *registry.Content) { c.Contracts[0].Until = at },
		func(c *registry.Content) { c.Contracts[0].Parties[0].Hosts = registrytest.Prefixes("10.1.2.10") },
		func(c *registry.Content) { c.Contracts[0].Tests[1].Port = 23 },
		func(c *registry.Content) { c.Contracts[0].PPK = policy.PPKRequired },
		func(c *registry.Content) { c.Devices[0].Moves = policy.MovesNever },
	} {
		content := registrytest.Hospital()
		f(&content)
		d := newRegistry(t, content).Diff(newRegistry(t, registrytest.Hospital()))
		if len(d) == 0 || len(d) > 2 || d[0].Op != registry.Modify || len(d[0].Fields) != 1 {
			t.Errorf("got %+v", d)
			continue
		}
		seen[d[0].Fields[0].Path] = true
	}
	if len(seen) != 14 {
		t.Errorf("paths %v", slices.Sorted(maps.Keys(seen)))
	}
}

// TestLevels: zone levels and categories are judged as the device's policy will judge them.
func TestLevels(t *testing.T) {
	refused := 0
	for _, level := range []string{policy.LevelHSZ, policy.LevelSZ, policy.LevelDMZ} {
		for _, category := range []string{
			policy.CategoryInformation, policy.CategoryInternet, policy.CategoryStorageRelay,
			policy.CategoryProcessing, policy.CategoryMaintenance, policy.CategoryAuthentication,
		} {
			for _, end := range []string{"10.2.1.9", "10.2.1.0/24"} {
				for _, what := range []registry.Flow{
					{Protocol: "tcp", Ports: []registry.Ports{{First: 1, Last: 64}}},
					{Protocol: "tcp", Ports: []registry.Ports{{First: 1, Last: 64}, {First: 64, Last: 65}}},
					{Protocol: "132"},
					{Protocol: "icmp"},
					{Protocol: "any"},
				} {
					for _, from := range []string{a, b} {
						// B's end is judged; A's is a host of a DMZ, where everything that is allowed at
						// all is allowed.
						content := registrytest.Hospital()
						content.Contracts = content.Contracts[:1]
						content.Services[0].Category = category
						content.Devices[0].Zones[1].Level = policy.LevelDMZ
						content.Devices[1].Zones[0].Level = level
						f := what
						f.Name, f.From = "f", from
						f.Sources, f.Destinations = registrytest.Prefixes("10.1.2.10"), registrytest.Prefixes(end)
						direction, local, remote := policy.DirectionIn, []string{end}, []string{"10.1.2.10"}
						ends := [2][]string{remote, local}
						if from == b {
							f.Sources, f.Destinations = f.Destinations, f.Sources
							direction, ends = policy.DirectionOut, [2][]string{local, remote}
						}
						content.Contracts[0].Flows, content.Contracts[0].Tests = []registry.Flow{f}, nil
						_, err := registry.New(content)

						rule := policy.FlowRule{Name: "f", From: ends[0], To: ends[1], Protocol: f.Protocol, Direction: direction}
						for _, p := range f.Ports {
							rule.Ports = append(rule.Ports, p.String())
						}
						_, want := policy.Compile(&policy.Document{
							Format: policy.Format, Issuer: "sp.example", Serial: 1, NotBefore: at, NotAfter: at.Add(1),
							Device:      policy.Device{ID: b, Fingerprint: policy.Digest{1}.String()},
							Suites:      registrytest.Suites(),
							Zones:       []policy.Zone{{Name: "sz", Level: level, Prefixes: []string{"10.2.1.0/24"}, Interfaces: []string{"lan0"}}},
							Services:    []policy.Service{{Name: "s", Category: category, Auth: policy.AuthPSK, PSK: policy.NewSecret(make([]byte, 32))}},
							Peers:       []policy.Peer{{Name: "a", DeviceID: a, Gateways: []string{"198.18.0.1"}}},
							Connections: []policy.Connection{{Name: "k", Peer: "a", Service: "s", Start: policy.StartManual, Flows: []policy.FlowRule{rule}}},
						})
						if (err == nil) != (want == nil) {
							t.Errorf("%s in %s for %s: registry says %v, policy %v", f.String(), level, category, err, want)
						}
						if err != nil {
							refused++
						}
					}
				}
			}
		}
	}
	if refused < 100 {
		t.Errorf("%d refused", refused)
	}
}

// TestProtocols: which protocols a flow may name is what package policy says.
func TestProtocols(t *testing.T) {
	for n := range 257 {
		content := registrytest.Hospital()
		content.Contracts = content.Contracts[:1]
		content.Contracts[0].Tests = nil
		f := &content.Contracts[0].Flows[0]
		f.Protocol = fmt.Sprint(n)
		if n != 6 && n != 17 {
			f.Ports = nil
		}
		_, err := registry.New(content)
		rule := policy.FlowRule{Name: "f", From: []string{"10.2.1.9"}, To: []string{"10.1.2.10"}, Protocol: f.Protocol, Direction: policy.DirectionIn}
		if len(f.Ports) > 0 {
			rule.Ports = []string{"11112"}
		}
		_, want := policy.Compile(&policy.Document{
			Format: policy.Format, Issuer: "sp.example", Serial: 1, NotBefore: at, NotAfter: at.Add(1),
			Device:      policy.Device{ID: a, Fingerprint: policy.Digest{1}.String()},
			Suites:      registrytest.Suites(),
			Zones:       []policy.Zone{{Name: "sz", Level: policy.LevelSZ, Prefixes: []string{"10.1.2.0/24"}, Interfaces: []string{"lan0"}}},
			Services:    []policy.Service{{Name: "s", Category: policy.CategoryInformation, Auth: policy.AuthPSK, PSK: policy.NewSecret(make([]byte, 32))}},
			Peers:       []policy.Peer{{Name: "b", DeviceID: b}},
			Connections: []policy.Connection{{Name: "k", Peer: "b", Service: "s", Start: policy.StartManual, Flows: []policy.FlowRule{rule}}},
		})
		if (err == nil) != (want == nil) {
			t.Errorf("protocol %d: registry says %v, policy %v", n, err, want)
		}
	}
}

func TestNames(t *testing.T) {
	for s, want := range map[string]bool{
		"a": true, "group-a": true, "a.b_c-1": true, "": false, "-a": false, "a-": false, ".a": false, "a..b": false, "A": false,
		"../etc": false, "a/b": false, "a\x00": false, "ä": false, strings.Repeat("a", 63): true, strings.Repeat("a", 64): false, "a%2f": false,
	} {
		if got := registry.ValidName(s); got != want {
			t.Errorf("name %q: %v", s, got)
		}
		if want && path.Clean(s) != s {
			t.Errorf("name %q is no clean path", s)
		}
	}
	for s, want := range map[string]bool{"a.example": true, "a": false, "a..b": false, "a-.b": false, "A.b": false, "a_b.c": false, strings.Repeat("a", 64) + ".b": false, "": false, ".": false} {
		if got := registry.ValidDNSName(s); got != want {
			t.Errorf("DNS name %q: %v", s, got)
		}
	}
}

// FuzzLoad: whatever is in a file, there is an answer, and what is accepted can be written.
func FuzzLoad(f *testing.F) {
	hospital, err := registry.New(registrytest.Hospital())
	if err != nil {
		f.Fatal(err)
	}
	files := folder(hospital)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f.Add(name, files[name].Data)
	}
	f.Add(fileAB, []byte("party = [{device = 'a', narrow = [{flow = 'x', ports = [1, '2-3', 4.5]}]}]\nflow = 5\n[[test]]\n[test.x]"))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		if files[name] == nil {
			name = fileAB
		}
		mine := maps.Clone(files)
		mine[name] = &fstest.MapFile{Data: data}
		r, err := registry.Load(mine)
		if err != nil {
			if !errors.Is(err, registry.ErrRefused) || err.Error() == "" {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		again, err := registry.Load(folder(r))
		if err != nil {
			t.Fatalf("what was exported is refused: %v", err)
		}
		if x, y := asJSON(t, r), asJSON(t, again); x != y {
			t.Fatalf("another registry: %s", cmp.Diff(x, y))
		}
	})
}

func BenchmarkNew(b *testing.B) {
	content := registrytest.Star(1000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := registry.New(content); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	files := folder(newRegistry(b, registrytest.Star(1000)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := registry.Load(files); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDiff(b *testing.B) {
	content := registrytest.Star(1000)
	old := newRegistry(b, content)
	content.Contracts[7].Idle = policy.Duration(time.Minute)
	now := newRegistry(b, content)
	b.ReportAllocs()
	for b.Loop() {
		if len(now.Diff(old)) != 2 {
			b.Fatal("wrong")
		}
	}
}
