package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pelletier/go-toml/v2"

	"wardgate/internal/certs"
	"wardgate/policy"
)

// The files' form. Keys are documented at the types of the model.

type memberFile struct {
	Title   string `toml:"title"`
	Contact string `toml:"contact"`
}

type deviceFile struct {
	Member     string           `toml:"member"`
	State      string           `toml:"state"`
	Gateways   []string         `toml:"gateways"`
	ESP        string           `toml:"esp"`
	Moves      string           `toml:"moves"`
	Zone       []zoneFile       `toml:"zone"`
	Membership []membershipFile `toml:"membership"`
}

type zoneFile struct {
	Name       string   `toml:"name"`
	Level      string   `toml:"level"`
	Prefixes   []string `toml:"prefixes"`
	Interfaces []string `toml:"interfaces"`
}

type membershipFile struct {
	Service string `toml:"service"`
	ID      string `toml:"id"`
	From    any    `toml:"from"`
	Until   any    `toml:"until"`
}

type serviceFile struct {
	Title    string    `toml:"title"`
	Category string    `toml:"category"`
	Auth     string    `toml:"auth"`
	Domain   string    `toml:"domain"`
	Rules    rulesFile `toml:"rules"`
}

type rulesFile struct {
	Revocation string   `toml:"revocation"`
	FirstChild string   `toml:"first_child"`
	Allow      []string `toml:"allow"`
	Suites     suites   `toml:"suites"`
	Lifetimes  lifetime `toml:"lifetimes"`
}

type suites struct {
	IKE []string `toml:"ike"`
	ESP []string `toml:"esp"`
}

type lifetime struct {
	IKE          string `toml:"ike"`
	Child        string `toml:"child"`
	ChildBytes   uint64 `toml:"child_bytes"`
	ChildPackets uint64 `toml:"child_packets"`
	Liveness     string `toml:"liveness"`
}

type contractFile struct {
	Title   string      `toml:"title"`
	Service string      `toml:"service"`
	Start   string      `toml:"start"`
	Idle    string      `toml:"idle"`
	From    any         `toml:"from"`
	Until   any         `toml:"until"`
	PPK     string      `toml:"ppk"`
	Party   []partyFile `toml:"party"`
	Flow    []flowFile  `toml:"flow"`
	Test    []testFile  `toml:"test"`
}

type partyFile struct {
	Device string       `toml:"device"`
	Hosts  []string     `toml:"hosts"`
	Narrow []narrowFile `toml:"narrow"`
}

type narrowFile struct {
	Flow         string   `toml:"flow"`
	Off          bool     `toml:"off"`
	Sources      []string `toml:"sources"`
	Destinations []string `toml:"destinations"`
	Ports        []any    `toml:"ports"`
}

type flowFile struct {
	Name         string   `toml:"name"`
	From         string   `toml:"from"`
	Sources      []string `toml:"sources"`
	Destinations []string `toml:"destinations"`
	Protocol     any      `toml:"protocol"`
	Ports        []any    `toml:"ports"`
}

type testFile struct {
	Name     string `toml:"name"`
	From     string `toml:"from"`
	To       string `toml:"to"`
	Protocol any    `toml:"protocol"`
	Port     uint16 `toml:"port"`
	Expect   string `toml:"expect"`
}

func decode(data []byte, into any) error {
	return toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(into)
}

// folders are the kinds of object and where they lie.
var folders = []struct {
	kind, dir string
	most      int
}{
	{"member", "members", MaxMembers},
	{"device", "devices", MaxDevices},
	{"service", "services", MaxServices},
	{"contract", "contracts", MaxContracts},
}

func fileOf(kind, name string) string {
	for _, f := range folders {
		if f.kind == kind {
			return f.dir + "/" + name + ".toml"
		}
	}
	return ""
}

// Load reads the folder that a registry is kept in and checks it. Faults name file and line. The
// folder's other sub-folders, hidden files and files that end in .md are left alone. The folder is
// read again when a fault is to be located.
func Load(fsys fs.FS) (*Registry, error) {
	l := loader{fs: fsys}
	found := false
	for _, f := range folders {
		entries, err := fs.ReadDir(fsys, f.dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			l.file(f.dir, 0, "a folder that can be read", err.Error(), "")
			continue
		}
		found = true
		if len(entries) > 2*f.most {
			l.file(f.dir, 0, fmt.Sprintf("at most %d files", 2*f.most), strconv.Itoa(len(entries)), "divide the registry")
			continue
		}
		for _, e := range entries {
			l.entry(f.kind, f.dir, e)
		}
	}
	if !found {
		l.file(".", 0, "the folders members, devices, services and contracts", "none of them", "give the folder that the registry is kept in")
	}
	if len(l.err.Faults) > 0 {
		return nil, &l.err
	}
	return build(l.c, l.locate)
}

type loader struct {
	fs  fs.FS
	c   Content
	err Error

	// The file that is read.
	at    Place
	where map[string]int // nil: not needed so far
	data  []byte

	mu    sync.Mutex // guards last and lines
	last  string     // the file whose lines were asked for last
	lines map[string]int
}

func (l *loader) add(f *Fault) {
	if len(l.err.Faults) >= maxFaults {
		l.err.More++
		return
	}
	l.err.Faults = append(l.err.Faults, f)
}

// file notes a fault of a file as a whole.
func (l *loader) file(name string, line int, expected, came, do string) {
	l.add(&Fault{Rule: RuleFile, Place: l.at, File: name, Line: line, Expected: expected, Came: came, Do: do})
}

// bad notes a fault of a value.
func (l *loader) bad(rule, where, expected, came, do string) {
	if l.where == nil {
		l.where = lines(l.data)
	}
	f := &Fault{Rule: rule, Place: l.at, File: fileOf(l.at.Kind, l.at.Name), Line: lineOf(l.where, where), Expected: expected, Came: came, Do: do}
	f.Place.Path = where
	l.add(f)
}

// locate implements locator.
func (l *loader) locate(p Place) (string, int) {
	if p.Kind == "device" && p.Path == "certificate" {
		return "devices/" + p.Name + ".pem", 0
	}
	name := fileOf(p.Kind, p.Name)
	if name == "" || p.Path == "" {
		return name, 0
	}
	// Faults of one object come one after the other.
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last != name {
		data, err := readFile(l.fs, name, MaxFileSize)
		if err != nil {
			return name, 0
		}
		l.last, l.lines = name, lines(data)
	}
	return name, lineOf(l.lines, p.Path)
}

// readFile reads a regular file of bounded size.
func readFile(fsys fs.FS, name string, most int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("more than %d octets", most)
	}
	return data, err
}

func (l *loader) entry(kind, dir string, e fs.DirEntry) {
	full := path.Join(dir, e.Name())
	l.at, l.where, l.data = Place{Kind: kind}, nil, nil
	name, isTOML := strings.CutSuffix(e.Name(), ".toml")
	switch {
	case strings.HasPrefix(e.Name(), "."), strings.HasSuffix(e.Name(), ".md"):
		return
	case !e.Type().IsRegular():
		l.file(full, 0, "files", e.Type().String(), "a registry's folders hold plain files: no links, no folders")
		return
	case kind == "device" && strings.HasSuffix(e.Name(), ".pem"):
		stem := strings.TrimSuffix(e.Name(), ".pem")
		if _, err := fs.Stat(l.fs, path.Join(dir, stem+".toml")); err != nil {
			l.file(full, 0, "a device "+stem+".toml beside the certificate", "none", "add it or remove the certificate")
		}
		return
	case !isTOML:
		// A name that is misspelt must not make an object vanish.
		l.file(full, 0, "files whose names end in .toml"+map[bool]string{true: " or .pem"}[kind == "device"], certs.Quote(e.Name()), "rename or remove it")
		return
	}
	l.at.Name = name
	if name != strings.ToLower(name) {
		l.file(full, 0, "a file name in lower case", certs.Quote(e.Name()), "rename it")
		return
	}
	data, err := readFile(l.fs, full, MaxFileSize)
	if err != nil {
		l.file(full, 0, "a file that can be read", err.Error(), "")
		return
	}
	l.data = data
	switch kind {
	case "member":
		var f memberFile
		if l.decode(full, &f) {
			l.c.Members = append(l.c.Members, Member{Name: name, Title: f.Title, Contact: f.Contact})
		}
	case "device":
		var f deviceFile
		if l.decode(full, &f) {
			l.device(name, &f)
		}
	case "service":
		var f serviceFile
		if l.decode(full, &f) {
			l.service(name, &f)
		}
	case "contract":
		var f contractFile
		if l.decode(full, &f) {
			l.contract(name, &f)
		}
	}
}

// decode reads the file at hand and says what is wrong with it as TOML.
func (l *loader) decode(full string, into any) bool {
	err := decode(l.data, into)
	if err == nil {
		return true
	}
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		known := keys(reflect.TypeOf(into).Elem())
		for i := range strict.Errors {
			d := &strict.Errors[i]
			row, _ := d.Position()
			key := d.Key()
			l.file(full, row, "a key that exists", certs.Quote(strings.Join(key, ".")), suggest(key, known))
		}
		return false
	}
	if d, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, _ := d.Position()
		l.file(full, row, "a TOML file with values of the right types", certs.Quote(strings.TrimPrefix(d.Error(), "toml: ")), "")
		return false
	}
	l.file(full, 0, "a TOML file", certs.Quote(err.Error()), "")
	return false
}

func (l *loader) prefixes(at string, list []string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(list))
	for i, s := range list {
		p, err := ParsePrefix(s)
		if err != nil {
			l.bad(RulePrefix, nth(at, i), "an address such as 10.1.2.10 or a prefix such as 10.2.1.0/24", certs.Quote(s), "")
		}
		out = append(out, p)
	}
	return out
}

// ParsePrefix reads an address or a prefix.
func ParsePrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return netip.ParsePrefix(s)
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return a.Prefix(a.BitLen())
}

func (l *loader) ports(at string, list []any) []Ports {
	out := make([]Ports, 0, len(list))
	for i, v := range list {
		r, ok := parsePorts(word(v))
		if !ok {
			l.bad(RuleFlow, nth(at, i), "a port such as \"104\" or a range such as \"5000-5010\", from 1 to 65535", certs.Quote(fmt.Sprint(v)), "")
		}
		out = append(out, r)
	}
	return out
}

// word returns a value that may be written as a number too.
func word(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case int64:
		return strconv.FormatInt(v, 10)
	}
	return ""
}

func (l *loader) protocol(at string, v any) string {
	s := word(v)
	if v != nil && s == "" {
		l.bad(RuleFlow, at, "tcp, udp, icmp, icmpv6, any or a number", certs.Quote(fmt.Sprint(v)), "")
	}
	return s
}

func (l *loader) time(at string, v any) time.Time {
	switch t := v.(type) {
	case nil:
		return time.Time{}
	case time.Time:
		if t.Nanosecond() != 0 {
			l.bad(RuleTime, at, "whole seconds", t.Format(time.RFC3339Nano), "")
		}
		return t
	default:
		l.bad(RuleTime, at, "a time with its zone, without quotes, such as 2026-04-01T00:00:00Z", certs.Quote(fmt.Sprint(v)), "a time without a zone means another instant in each place")
		return time.Time{}
	}
}

func (l *loader) duration(at, s string) policy.Duration {
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil || d == 0 {
		l.bad(RuleTime, at, "a duration such as \"30s\", \"5m\" or \"8h\"", certs.Quote(s), "leave it out for the default")
	}
	return policy.Duration(d)
}

func (l *loader) device(name string, f *deviceFile) {
	d := Device{Name: name, Member: f.Member, State: State(f.State), Gateways: f.Gateways, ESP: f.ESP, Moves: f.Moves}
	if pem, err := readFile(l.fs, "devices/"+name+".pem", 4*certs.MaxCertificateBytes); err == nil {
		d.Certificate = string(pem)
	} else {
		l.at.Path = "certificate"
		l.add(&Fault{
			Rule: RuleCertificate, Place: l.at, File: "devices/" + name + ".pem",
			Expected: "the device certificate in PEM", Came: err.Error(), Do: "put it beside the device's file",
		})
		l.at.Path = ""
	}
	for i, z := range f.Zone {
		d.Zones = append(d.Zones, Zone{Name: z.Name, Level: z.Level, Prefixes: l.prefixes(nth("zone", i)+".prefixes", z.Prefixes), Interfaces: z.Interfaces})
	}
	l.c.Devices = append(l.c.Devices, d)
	for i, m := range f.Membership {
		at := nth("membership", i)
		l.c.Memberships = append(l.c.Memberships, Membership{Device: name, Service: m.Service, ID: m.ID, From: l.time(at+".from", m.From), Until: l.time(at+".until", m.Until)})
	}
}

func (l *loader) service(name string, f *serviceFile) {
	t := &f.Rules.Lifetimes
	const at = "rules.lifetimes."
	l.c.Services = append(l.c.Services, Service{
		Name: name, Title: f.Title, Category: f.Category, Auth: f.Auth, Domain: f.Domain,
		Rules: Rules{
			Revocation: f.Rules.Revocation, FirstChild: f.Rules.FirstChild, Allow: f.Rules.Allow, Suites: policy.Suites{IKE: f.Rules.Suites.IKE, ESP: f.Rules.Suites.ESP},
			Lifetimes: policy.Lifetimes{
				IKE: l.duration(at+"ike", t.IKE), Child: l.duration(at+"child", t.Child), Liveness: l.duration(at+"liveness", t.Liveness),
				ChildBytes: t.ChildBytes, ChildPackets: t.ChildPackets,
			},
		},
	})
}

func (l *loader) contract(name string, f *contractFile) {
	c := Contract{
		Name: name, Title: f.Title, Service: f.Service, Start: f.Start, Idle: l.duration("idle", f.Idle),
		From: l.time("from", f.From), Until: l.time("until", f.Until), PPK: f.PPK,
	}
	if len(f.Party) != len(c.Parties) {
		l.bad(RuleParties, "party", "two [[party]] tables", strconv.Itoa(len(f.Party)), "name both parties")
		return
	}
	for i, p := range f.Party {
		at := nth("party", i)
		c.Parties[i] = Party{Device: p.Device, Hosts: l.prefixes(at+".hosts", p.Hosts)}
		for j, n := range p.Narrow {
			at := nth(at+".narrow", j)
			c.Parties[i].Narrow = append(c.Parties[i].Narrow, Narrow{
				Flow: n.Flow, Off: n.Off, Sources: l.prefixes(at+".sources", n.Sources),
				Destinations: l.prefixes(at+".destinations", n.Destinations), Ports: l.ports(at+".ports", n.Ports),
			})
		}
	}
	for i, w := range f.Flow {
		at := nth("flow", i)
		c.Flows = append(c.Flows, Flow{
			Name: w.Name, From: w.From, Sources: l.prefixes(at+".sources", w.Sources), Destinations: l.prefixes(at+".destinations", w.Destinations),
			Protocol: l.protocol(at+".protocol", w.Protocol), Ports: l.ports(at+".ports", w.Ports),
		})
	}
	for i, t := range f.Test {
		at := nth("test", i)
		c.Tests = append(c.Tests, Test{
			Name: t.Name, From: l.address(at+".from", t.From), To: l.address(at+".to", t.To),
			Protocol: l.protocol(at+".protocol", t.Protocol), Port: t.Port, Expect: t.Expect,
		})
	}
	l.c.Contracts = append(l.c.Contracts, c)
}

func (l *loader) address(at, s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		l.bad(RuleTest, at, "an address such as 10.1.2.10", certs.Quote(s), "")
	}
	return a
}

// keys lists the keys of a file's form by table, such as "flow" or "party.narrow".
func keys(t reflect.Type) map[string][]string {
	out := make(map[string][]string)
	var walk func(t reflect.Type, at string)
	walk = func(t reflect.Type, at string) {
		for i := range t.NumField() {
			f := t.Field(i)
			key := f.Tag.Get("toml")
			out[at] = append(out[at], key)
			ft := f.Type
			if ft.Kind() == reflect.Slice {
				ft = ft.Elem()
			}
			if ft.Kind() == reflect.Struct {
				walk(ft, join(at, key))
			}
		}
	}
	walk(t, "")
	for at := range out {
		slices.Sort(out[at])
	}
	return out
}

// suggest says what could be written instead of a key.
func suggest(key []string, known map[string][]string) string {
	if len(key) == 0 {
		return ""
	}
	table := strings.Join(key[:len(key)-1], ".")
	here, ok := known[table]
	if !ok {
		return "remove the table"
	}
	set := make(map[string]bool, len(here))
	for _, k := range here {
		set[k] = true
	}
	do := "the keys "
	if table != "" {
		do += "of " + table + " "
	}
	return do + "are " + strings.Join(here, ", ") + nearest(key[len(key)-1], set)
}
