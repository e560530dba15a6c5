package compile

import (
	"maps"
	"slices"
	"time"

	"wardgate/sp/registry"
)

// Affected returns, sorted, the devices whose policy can be another when now replaces old (nil:
// there was none): the policies of all others stay as they are. Devices that are gone or revoked are
// among them, because they had one.
func Affected(old, now *registry.Registry) []string {
	set := make(map[string]bool)
	for _, c := range now.Diff(old) {
		for _, r := range []*registry.Registry{old, now} {
			if r == nil {
				continue
			}
			switch c.Kind {
			case "device":
				touch(r, c.Name, set)
			case "contract":
				if k := r.Contract(c.Name); k != nil {
					set[k.Parties[0].Device], set[k.Parties[1].Device] = true, true
				}
			case "service":
				for m := range r.MembersOf(c.Name) {
					set[m.Device] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// touch adds a device and those that it has contracts with.
func touch(r *registry.Registry, device string, set map[string]bool) {
	d := r.Device(device)
	if d == nil {
		return
	}
	set[d.Name] = true
	for c := range r.ContractsOf(d.Name) {
		other, _ := c.Other(d.Name)
		set[c.Parties[other].Device] = true
	}
}

// Due returns, sorted, the devices whose policy can be another at now than it was at before, because
// a membership or contract began or ended in between.
func Due(r *registry.Registry, before, now time.Time) []string {
	set := make(map[string]bool)
	between := func(list ...time.Time) bool {
		return slices.ContainsFunc(list, func(t time.Time) bool { return !t.IsZero() && t.After(before) && !t.After(now) })
	}
	for i := range r.Memberships() {
		if m := &r.Memberships()[i]; between(m.From, m.Until) {
			touch(r, m.Device, set)
		}
	}
	for i := range r.Contracts() {
		if c := &r.Contracts()[i]; between(c.From, c.Until) {
			set[c.Parties[0].Device], set[c.Parties[1].Device] = true, true
		}
	}
	return slices.Sorted(maps.Keys(set))
}
