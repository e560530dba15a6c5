package registry

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Op is what happens to an object.
type Op string

// The kinds of change.
const (
	Add    Op = "add"
	Modify Op = "change"
	Remove Op = "remove"
)

// Change is what happens to one object, as one member sees it: a contract between two members is
// there for each of them.
type Change struct {
	Member string        `json:"member,omitempty"` // whose; empty: the SP's own, which services are
	Op     Op            `json:"op"`
	Kind   string        `json:"kind"`
	Name   string        `json:"name"`
	Fields []FieldChange `json:"fields,omitempty"` // of Modify and Add
}

// FieldChange is one value. An entry that is new or gone as a whole is one, with all its values.
type FieldChange struct {
	Path string `json:"path"`          // such as "zone[sz].prefixes"
	Old  string `json:"old,omitempty"` // empty: was not there
	New  string `json:"new,omitempty"` // empty: is not there any more
}

// object is one of a registry's, for comparing.
type object struct {
	kind, name string
	members    []string
}

var kindOrder = map[string]int{"service": 0, "member": 1, "device": 2, "contract": 3}

func (o *object) compare(p *object) int {
	return cmp.Or(cmp.Compare(kindOrder[o.kind], kindOrder[p.kind]), cmp.Compare(o.name, p.name))
}

func (r *Registry) owner(device string) string {
	if d := r.Device(device); d != nil {
		return d.Member
	}
	return ""
}

// objects lists a registry's in the order of compare; nil has none.
func (r *Registry) objects() []object {
	if r == nil {
		return nil
	}
	var out []object
	for i := range r.c.Services {
		out = append(out, object{kind: "service", name: r.c.Services[i].Name, members: []string{""}})
	}
	for i := range r.c.Members {
		out = append(out, object{kind: "member", name: r.c.Members[i].Name, members: []string{r.c.Members[i].Name}})
	}
	for i := range r.c.Devices {
		out = append(out, object{kind: "device", name: r.c.Devices[i].Name, members: []string{r.c.Devices[i].Member}})
	}
	for i := range r.c.Contracts {
		c := &r.c.Contracts[i]
		a, b := r.owner(c.Parties[0].Device), r.owner(c.Parties[1].Device)
		o := object{kind: "contract", name: c.Name, members: []string{a, b}}
		if a == b {
			o.members = o.members[:1]
		}
		out = append(out, o)
	}
	return out
}

// fields lists the values of one object.
func (r *Registry) fields(kind, name string) []field {
	switch kind {
	case "service":
		return r.Service(name).export().fields
	case "member":
		return r.Member(name).export().fields
	case "device":
		w := r.Device(name).export(r.MembershipsOf(name))
		return append(w.fields, field{"certificate", r.Fingerprint(name).String()})
	case "contract":
		return r.Contract(name).export().fields
	}
	return nil
}

// same reports whether an object is the same in both, which is quicker to see than what its values
// are.
func (r *Registry) same(old *Registry, kind, name string) bool {
	switch kind {
	case "service":
		return reflect.DeepEqual(r.Service(name), old.Service(name))
	case "member":
		return *r.Member(name) == *old.Member(name)
	case "device":
		return reflect.DeepEqual(r.Device(name), old.Device(name)) && slices.Equal(r.MembershipsOf(name), old.MembershipsOf(name))
	case "contract":
		return reflect.DeepEqual(r.Contract(name), old.Contract(name))
	}
	return false
}

// Diff tells what changes when r replaces old (nil: there was none), by member, then services,
// members, devices and contracts, by name. The SP's own come first.
func (r *Registry) Diff(old *Registry) []Change {
	var out []Change
	note := func(members []string, c Change) {
		for _, m := range members {
			c.Member = m
			out = append(out, c)
		}
	}
	before, now := old.objects(), r.objects()
	for len(before)+len(now) > 0 {
		order := 1
		if len(now) == 0 {
			order = -1
		} else if len(before) > 0 {
			order = before[0].compare(&now[0])
		}
		switch {
		case order < 0:
			o := before[0]
			note(o.members, Change{Op: Remove, Kind: o.kind, Name: o.name})
			before = before[1:]
		case order > 0:
			o := now[0]
			note(o.members, Change{Op: Add, Kind: o.kind, Name: o.name, Fields: compare(nil, r.fields(o.kind, o.name))})
			now = now[1:]
		default:
			was, o := before[0], now[0]
			if before, now = before[1:], now[1:]; r.same(old, o.kind, o.name) {
				break
			}
			if f := compare(old.fields(o.kind, o.name), r.fields(o.kind, o.name)); len(f) > 0 {
				// What moves to another member is a change of both.
				all := slices.Concat(was.members, o.members)
				slices.Sort(all)
				note(slices.Compact(all), Change{Op: Modify, Kind: o.kind, Name: o.name, Fields: f})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Change) int { return cmp.Compare(a.Member, b.Member) })
	return out
}

// whole collects the values of the entry that begins at list[0], such as a flow: its text, and how
// many values that are.
func whole(list []field) (text string, n int) {
	head := list[0].path + "."
	var parts []string
	for n = 1; n < len(list) && strings.HasPrefix(list[n].path, head); n++ {
		if list[n].value != "" {
			parts = append(parts, list[n].path[len(head):]+" "+list[n].value)
		}
	}
	if len(parts) == 0 {
		return "nothing else", n
	}
	return strings.Join(parts, "; "), n
}

// compare lists what is different: first what changed or is new, in the order of now, then what is
// gone.
func compare(before, now []field) []FieldChange {
	var out []FieldChange
	missing := func(list, in []field, note func(path, text string)) {
		have := make(map[string]bool, len(in))
		for _, f := range in {
			have[f.path] = true
		}
		for i := 0; i < len(list); i++ {
			f := list[i]
			switch {
			case have[f.path]:
			case f.value == "":
				text, n := whole(list[i:])
				note(f.path, text)
				i += n - 1
			default:
				note(f.path, f.value)
			}
		}
	}
	old := make(map[string]string, len(before))
	for _, f := range before {
		old[f.path] = f.value
	}
	for _, f := range now {
		if was, ok := old[f.path]; ok && was != f.value {
			out = append(out, FieldChange{Path: f.path, Old: was, New: f.value})
		}
	}
	missing(now, before, func(path, text string) { out = append(out, FieldChange{Path: path, New: text}) })
	missing(before, now, func(path, text string) { out = append(out, FieldChange{Path: path, Old: text}) })
	return out
}

// Plan writes what Diff finds for people, member by member. It is empty when nothing changes.
func (r *Registry) Plan(old *Registry) string {
	changes := r.Diff(old)
	if len(changes) == 0 {
		return ""
	}
	var b strings.Builder
	counted := make(map[string]bool)
	n := make(map[Op]int)
	members := 0
	for i, c := range changes {
		if i == 0 || changes[i-1].Member != c.Member {
			if i > 0 {
				b.WriteByte('\n')
			}
			if c.Member == "" {
				b.WriteString("services\n")
			} else {
				members++
				fmt.Fprintf(&b, "member %s%s\n", c.Member, title(c.Member, r, old))
			}
		}
		fmt.Fprintf(&b, "  %s %s %s%s\n", map[Op]string{Add: "+", Modify: "~", Remove: "-"}[c.Op], c.Kind, c.Name, about(c, r, old))
		for _, f := range c.Fields {
			switch {
			case f.Old == "":
				fmt.Fprintf(&b, "      + %s: %s\n", f.Path, f.New)
			case f.New == "":
				fmt.Fprintf(&b, "      - %s: %s\n", f.Path, f.Old)
			default:
				fmt.Fprintf(&b, "      ~ %s: %s → %s\n", f.Path, f.Old, f.New)
			}
		}
		if key := c.Kind + " " + c.Name; !counted[key] {
			counted[key] = true
			n[c.Op]++
		}
	}
	fmt.Fprintf(&b, "\n%d to add, %d to change, %d to remove; members concerned: %d\n", n[Add], n[Modify], n[Remove], members)
	return b.String()
}

// title returns a member's title in brackets.
func title(member string, rs ...*Registry) string {
	for _, r := range rs {
		if r == nil {
			continue
		}
		if m := r.Member(member); m != nil {
			return " (" + m.Title + ")"
		}
	}
	return ""
}

// about says with whom a contract is.
func about(c Change, rs ...*Registry) string {
	if c.Kind == "service" && c.Op == Modify {
		n := 0
		for range rs[0].MembersOf(c.Name) {
			n++
		}
		return fmt.Sprintf(", which %d devices have joined", n)
	}
	if c.Kind != "contract" {
		return ""
	}
	for _, r := range rs {
		if r == nil {
			continue
		}
		k := r.Contract(c.Name)
		if k == nil {
			continue
		}
		for i := range k.Parties {
			if other := r.owner(k.Parties[1-i].Device); r.owner(k.Parties[i].Device) == c.Member {
				return " with " + other + title(other, r) + " for " + k.Service
			}
		}
	}
	return ""
}
