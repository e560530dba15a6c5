package registry

import (
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"wardgate/policy"
)

// Export returns the files that Load reads, by name, in the order of their names within each
// folder. What is exported and loaded is the same registry, and exported again it is the same
// octets.
func (r *Registry) Export() iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for i := range r.c.Members {
			if m := &r.c.Members[i]; !yield(fileOf("member", m.Name), m.export().bytes()) {
				return
			}
		}
		for i := range r.c.Devices {
			d := &r.c.Devices[i]
			if !yield("devices/"+d.Name+".pem", []byte(d.Certificate)) || !yield(fileOf("device", d.Name), d.export(r.MembershipsOf(d.Name)).bytes()) {
				return
			}
		}
		for i := range r.c.Services {
			if s := &r.c.Services[i]; !yield(fileOf("service", s.Name), s.export().bytes()) {
				return
			}
		}
		for i := range r.c.Contracts {
			if c := &r.c.Contracts[i]; !yield(fileOf("contract", c.Name), c.export().bytes()) {
				return
			}
		}
	}
}

// field is one value of an object, by its path in the file. Entries that have a name are called by
// it, so that a new zone or flow does not look like a change of those after it.
type field struct{ path, value string }

// writer writes an object as TOML in one form, and lists its values.
type writer struct {
	toml   strings.Builder
	at     string // path of the table that is written
	fields []field
}

// put writes a key with a value in TOML, and its text for people.
func (w *writer) put(key, value, text string) {
	fmt.Fprintf(&w.toml, "%s = %s\n", key, value)
	w.fields = append(w.fields, field{join(w.at, key), text})
}

// quote writes a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", c)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// text writes a key with a string, and nothing for an empty one.
func (w *writer) text(key, s string) {
	if s != "" {
		w.put(key, quote(s), s)
	}
}

// list writes a key with a list of strings, and nothing for an empty one. Long lists have an entry
// a line, so that a change of one is a line in version control.
func (w *writer) list(key string, list []string) {
	if len(list) == 0 {
		return
	}
	value := "[" + strings.Join(texts(list, quote), ", ") + "]"
	if len(value) > 80 {
		value = "[\n  " + strings.Join(texts(list, quote), ",\n  ") + ",\n]"
	}
	w.put(key, value, strings.Join(list, ", "))
}

func (w *writer) prefixes(key string, list []netip.Prefix) { w.list(key, texts(list, showPrefix)) }

func (w *writer) ports(key string, list []Ports) { w.list(key, texts(list, Ports.String)) }

func texts[T any](list []T, text func(T) string) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = text(v)
	}
	return out
}

func (w *writer) time(key string, t time.Time) {
	if !t.IsZero() {
		w.put(key, stamp(t), stamp(t))
	}
}

// duration writes "8h", not "8h0m0s".
func duration(d policy.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

func (w *writer) duration(key string, d policy.Duration) {
	if d != 0 {
		w.text(key, duration(d))
	}
}

func (w *writer) number(key string, n uint64) {
	if n != 0 {
		w.put(key, strconv.FormatUint(n, 10), strconv.FormatUint(n, 10))
	}
}

// table begins [path].
func (w *writer) table(path string) {
	fmt.Fprintf(&w.toml, "\n[%s]\n", path)
	w.at = path
}

// entry begins [[path]], which the key names.
func (w *writer) entry(path, up, key, name string) {
	fmt.Fprintf(&w.toml, "\n[[%s]]\n%s = %s\n", path, key, quote(name))
	w.at = join(up, path[strings.LastIndexByte(path, '.')+1:]) + "[" + name + "]"
	w.fields = append(w.fields, field{w.at, ""})
}

func (w *writer) bytes() []byte { return []byte(strings.TrimPrefix(w.toml.String(), "\n")) }

func (m *Member) export() *writer {
	var w writer
	w.text("title", m.Title)
	w.text("contact", m.Contact)
	return &w
}

func (d *Device) export(joined []Membership) *writer {
	var w writer
	w.text("member", d.Member)
	w.text("state", string(d.State))
	w.list("gateways", d.Gateways)
	w.text("esp", d.ESP)
	w.text("moves", d.Moves)
	for i := range d.Zones {
		z := &d.Zones[i]
		w.entry("zone", "", "name", z.Name)
		w.text("level", z.Level)
		w.prefixes("prefixes", z.Prefixes)
		w.list("interfaces", z.Interfaces)
	}
	for i := range joined {
		m := &joined[i]
		w.entry("membership", "", "service", m.Service)
		w.text("id", m.ID)
		w.time("from", m.From)
		w.time("until", m.Until)
	}
	return &w
}

func (s *Service) export() *writer {
	var w writer
	w.text("title", s.Title)
	w.text("category", s.Category)
	w.text("auth", s.Auth)
	w.text("domain", s.Domain)
	if len(s.Rules.Allow) > 0 || s.Rules.Revocation != "" || s.Rules.FirstChild != "" {
		w.table("rules")
		w.text("revocation", s.Rules.Revocation)
		w.text("first_child", s.Rules.FirstChild)
		w.list("allow", s.Rules.Allow)
	}
	w.table("rules.suites")
	w.list("ike", s.Rules.Suites.IKE)
	w.list("esp", s.Rules.Suites.ESP)
	if t := &s.Rules.Lifetimes; *t != (policy.Lifetimes{}) {
		w.table("rules.lifetimes")
		w.duration("ike", t.IKE)
		w.duration("child", t.Child)
		w.number("child_bytes", t.ChildBytes)
		w.number("child_packets", t.ChildPackets)
		w.duration("liveness", t.Liveness)
	}
	return &w
}

func (c *Contract) export() *writer {
	var w writer
	w.text("title", c.Title)
	w.text("service", c.Service)
	w.text("start", c.Start)
	w.duration("idle", c.Idle)
	w.time("from", c.From)
	w.time("until", c.Until)
	w.text("ppk", c.PPK)
	for i := range c.Parties {
		p := &c.Parties[i]
		w.entry("party", "", "device", p.Device)
		party := w.at
		w.prefixes("hosts", p.Hosts)
		for j := range p.Narrow {
			n := &p.Narrow[j]
			w.entry("party.narrow", party, "flow", n.Flow)
			if n.Off {
				w.put("off", "true", "true")
			}
			w.prefixes("sources", n.Sources)
			w.prefixes("destinations", n.Destinations)
			w.ports("ports", n.Ports)
		}
	}
	for i := range c.Flows {
		f := &c.Flows[i]
		w.entry("flow", "", "name", f.Name)
		w.text("from", f.From)
		w.prefixes("sources", f.Sources)
		w.prefixes("destinations", f.Destinations)
		w.text("protocol", f.Protocol)
		w.ports("ports", f.Ports)
	}
	for i := range c.Tests {
		t := &c.Tests[i]
		w.entry("test", "", "name", t.Name)
		w.text("from", t.From.String())
		w.text("to", t.To.String())
		w.text("protocol", t.Protocol)
		w.number("port", uint64(t.Port))
		w.text("expect", t.Expect)
	}
	return &w
}
