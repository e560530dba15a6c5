package compile

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wardgate/policy"
	"wardgate/sp/registry"
)

// The rules that only a device's policy as a whole can be judged by.
const (
	RulePolicy = "policy"        // package policy refuses it
	RuleSuites = "policy-suites" // algorithms in common
	RuleTests  = "policy-tests"  // tests of contracts, against all contracts of the device
)

func (b *builder) fault(rule string, at registry.Place, expected, came, do string) {
	f := &registry.Fault{Rule: rule, Place: at, Expected: expected, Came: came, Do: do}
	f.File, f.Line = b.r.Locate(at)
	b.faults = append(b.faults, f)
}

// verify does with the document what the device will do, and returns all faults.
func (b *builder) verify() []*registry.Fault {
	if len(b.faults) > 0 {
		return b.faults
	}
	doc := b.doc
	doc.Serial, doc.NotBefore, doc.NotAfter = 1, time.Unix(0, 0), time.Unix(1, 0)
	table, err := policy.Compile(&doc)
	if err == nil {
		err = table.RunTests()
	}
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*policy.DocumentError](err); ok {
		for _, f := range e.Faults {
			b.fault(RulePolicy, b.place(f.Path), f.Expected, f.Came, f.Do)
		}
		return b.faults
	}
	if e, ok := errors.AsType[*policy.TestError](err); ok {
		for _, f := range e.Failures {
			o := b.test[f.Index]
			at := registry.Place{Kind: "contract", Name: o.contract.Name, Path: fmt.Sprintf("test[%d]", o.test)}
			b.fault(RuleTests, at, f.Expect+" at "+b.d.Name, f.Got+": "+strings.ReplaceAll(f.Explanation.Text, "\n", " "), "correct the test, or the contract that the answer names")
		}
		return b.faults
	}
	b.fault(RulePolicy, b.here(""), "a policy that the device accepts", err.Error(), "")
	return b.faults
}

func (b *builder) here(path string) registry.Place {
	return registry.Place{Kind: "device", Name: b.d.Name, Path: path}
}

// place translates a JSON pointer into the document to the registry's object that it came from.
func (b *builder) place(pointer string) registry.Place {
	part := strings.Split(strings.TrimPrefix(pointer, "/"), "/")
	num := func(i, n int) (int, bool) {
		if i >= len(part) {
			return 0, false
		}
		v, err := strconv.Atoi(part[i])
		return v, err == nil && v >= 0 && v < n
	}
	// rest writes part[i:] as in the files: "prefixes", "1" → ".prefixes[1]".
	rest := func(i int) string {
		s := ""
		for ; i < len(part); i++ {
			if _, err := strconv.Atoi(part[i]); err == nil {
				s += "[" + part[i] + "]"
			} else {
				s += "." + part[i]
			}
		}
		return s
	}
	switch part[0] {
	case "zones":
		if i, ok := num(1, len(b.zone)); ok {
			return b.here(fmt.Sprintf("zone[%d]%s", b.zone[i], rest(2)))
		}
		return b.here("zone")
	case "suites", "lifetimes":
		// Of several services no one is to blame.
		if len(b.joined) == 1 {
			return registry.Place{Kind: "service", Name: b.joined[0].Name, Path: "rules." + strings.TrimPrefix(rest(0), ".")}
		}
		return b.here("membership")
	case "services":
		if i, ok := num(1, len(b.joined)); ok {
			return registry.Place{Kind: "service", Name: b.joined[i].Name, Path: strings.TrimPrefix(rest(2), ".")}
		}
		return b.here("membership")
	case "peers":
		if i, ok := num(1, len(b.doc.Peers)); ok {
			return registry.Place{Kind: "device", Name: b.doc.Peers[i].Name, Path: strings.TrimPrefix(rest(2), ".")}
		}
	case "tests":
		if i, ok := num(1, len(b.test)); ok {
			return registry.Place{Kind: "contract", Name: b.test[i].contract.Name, Path: fmt.Sprintf("test[%d]%s", b.test[i].test, rest(2))}
		}
	case "connections":
		i, ok := num(1, len(b.contracts))
		if !ok {
			break
		}
		at := registry.Place{Kind: "contract", Name: b.contracts[i].Name, Path: strings.TrimPrefix(rest(2), ".")}
		if j, ok := num(3, len(b.flow[i])); ok && part[2] == "flows" {
			// Addresses are sorted and narrowed in the document: their numbers are not the file's.
			at.Path = fmt.Sprintf("flow[%d]", b.flow[i][j])
			if len(part) > 4 {
				at.Path += "." + map[string]string{"from": "sources", "to": "destinations"}[part[4]]
				if part[4] != "from" && part[4] != "to" {
					at.Path += part[4]
				}
			}
		}
		return at
	}
	return b.here("")
}

// Check looks at what registry.New cannot see: whether the policies of these devices (none: all),
// made of everything in the registry that is in force together at some instant, are such as the
// devices accept, and whether parties have algorithms in common. The error is a *registry.Error. It
// uses all processors.
func Check(r *registry.Registry, devices ...string) error {
	if len(devices) == 0 {
		for i := range r.Devices() {
			devices = append(devices, r.Devices()[i].Name)
		}
	}
	var (
		mu   sync.Mutex
		all  []*registry.Fault
		next atomic.Int64
		wg   sync.WaitGroup
	)
	for range min(runtime.GOMAXPROCS(0), len(devices)) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(devices) {
					return
				}
				if f := checkDevice(r, devices[i]); len(f) > 0 {
					mu.Lock()
					all = append(all, f...)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return refusal(all)
}

// refusal sorts faults, leaves out those that both parties of a contract have, and bounds them.
func refusal(all []*registry.Fault) error {
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b *registry.Fault) int {
		return cmp.Or(cmp.Compare(a.Place.Kind, b.Place.Kind), cmp.Compare(a.Place.Name, b.Place.Name), cmp.Compare(a.Place.Path, b.Place.Path),
			cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Expected, b.Expected), cmp.Compare(a.Came, b.Came))
	})
	all = slices.CompactFunc(all, func(a, b *registry.Fault) bool {
		return a.Rule == b.Rule && a.Place == b.Place && a.Expected == b.Expected && a.Came == b.Came
	})
	const most = 100
	e := &registry.Error{Faults: all[:min(len(all), most)]}
	e.More = len(all) - len(e.Faults)
	return e
}

func checkDevice(r *registry.Registry, name string) []*registry.Fault {
	d := r.Device(name)
	if d == nil {
		return []*registry.Fault{{Rule: registry.RuleReference, Place: registry.Place{Kind: "device", Name: name}, Expected: "a device that is registered", Came: name}}
	}
	if d.State == registry.Revoked {
		return nil
	}
	// Taking connections away makes no policy wrong that was right: if everything at once is, so is
	// every instant.
	if len(tryDevice(r, d, nil)) == 0 {
		return nil
	}
	var all []*registry.Fault
	for _, t := range beginnings(r, d) {
		all = append(all, tryDevice(r, d, &t)...)
	}
	return all
}

// alive reports whether a device has, or may again have, connections.
func alive(r *registry.Registry, name string) bool {
	d := r.Device(name)
	return d != nil && d.State != registry.Revoked
}

// tryDevice makes the policy of a device as of an instant (nil: all instants at once), suspended
// devices counting as active.
func tryDevice(r *registry.Registry, d *registry.Device, t *time.Time) []*registry.Fault {
	during := func(from, until time.Time) bool {
		return t == nil || !t.Before(from) && (until.IsZero() || t.Before(until))
	}
	b := builder{r: r, d: d, issuer: "check.invalid"}
	b.member = func(m *registry.Membership) bool { return during(m.From, m.Until) }
	b.force = func(c *registry.Contract) bool {
		for i := range c.Parties {
			m := r.Membership(c.Parties[i].Device, c.Service)
			if m == nil || !b.member(m) || !alive(r, c.Parties[i].Device) {
				return false
			}
		}
		return during(c.From, c.Until)
	}
	if err := b.build(); err != nil {
		b.fault(RulePolicy, b.here(""), "a policy", err.Error(), "")
	}
	b.commonSuites()
	return b.verify()
}

// commonSuites checks that each peer has suites in common with the device, whatever other services
// the two have joined.
func (b *builder) commonSuites() {
	for _, c := range b.contracts {
		other, _ := c.Other(b.d.Name)
		var joined []*registry.Service
		list := b.r.MembershipsOf(c.Parties[other].Device)
		for i := range list {
			if b.member(&list[i]) {
				joined = append(joined, b.r.Service(list[i].Service))
			}
		}
		theirs, _ := uniform(joined)
		if len(shared(b.doc.Suites.IKE, theirs.IKE)) == 0 || len(shared(b.doc.Suites.ESP, theirs.ESP)) == 0 {
			pair := []string{fmt.Sprintf("%s (%s)", b.d.Name, serviceNames(b.joined)), fmt.Sprintf("%s (%s)", c.Parties[other].Device, serviceNames(joined))}
			slices.Sort(pair)
			b.fault(RuleSuites, registry.Place{Kind: "contract", Name: c.Name}, "parties that have suites in common, for IKE and for ESP",
				strings.Join(pair, " and ")+", which have none", "let the rules.suites of all these services overlap")
		}
	}
}

// beginnings lists the instants at which something of the device begins to be in force: between
// two of them things only end.
func beginnings(r *registry.Registry, d *registry.Device) []time.Time {
	out := []time.Time{{}}
	of := func(name string) {
		for _, m := range r.MembershipsOf(name) {
			out = append(out, m.From)
		}
	}
	of(d.Name)
	for c := range r.ContractsOf(d.Name) {
		other, _ := c.Other(d.Name)
		of(c.Parties[other].Device)
		out = append(out, c.From)
	}
	slices.SortFunc(out, time.Time.Compare)
	return slices.CompactFunc(out, time.Time.Equal)
}
