package enroltest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wardgate/sp/registry/registrytest"
	"wardgate/sp/store"
	"wardgate/sp/store/storetest"
)

// fleet is how many devices a scenario has: one for each instant at which the power may fail, and some more.
const fleet = 80

// together is how many devices do something at the same time: the centre writes their reports together.
const together = 8

// stride is how many instants lie between those that are tried: the race detector makes each ten times as
// expensive.
func stride() int {
	if raceEnabled {
		return 5
	}
	return 1
}

// scenario is something that the device does when it is switched on.
type scenario struct {
	name string
	// before takes the world, whose devices have joined, to where they are switched on.
	before func(w *world, devices []*device)
	fresh  bool     // the devices have not joined
	want   []string // services in the end
	// always: while it goes on, this service never lacks a valid certificate.
	always string
	least  int // instants that there must be: fewer, and nothing was tried
}

// anew lets the centre make the policies of which half the life is over.
func anew(w *world, devices []*device) {
	w.eventually("the centre has made the policies anew", time.Second, func() bool {
		for _, d := range devices {
			if !w.head(d.name).NotAfter.After(w.Now()) {
				return false
			}
		}
		return true
	})
	w.settle()
}

// joinAll lets all devices join.
func joinAll(w *world, devices []*device) {
	w.Helper()
	for batch := range slices.Chunk(devices, together) {
		w.pass(time.Second) // the centre limits how often one address asks
		var wg sync.WaitGroup
		for _, d := range batch {
			wg.Go(func() {
				if err := d.join(0); err != nil {
					w.Errorf("%s: %v", d.name, err)
				}
			})
		}
		wg.Wait()
	}
	if w.Failed() {
		w.FailNow()
	}
}

var scenarios = []scenario{
	{name: "join", fresh: true, want: []string{"group-a", "group-b"}, least: 30},
	{
		name: "renewal", want: []string{"group-a", "group-b"}, always: "group-a", least: 30,
		before: func(w *world, devices []*device) { w.pass(renewal); anew(w, devices) },
	},
	{
		name: "after a long time without power", want: []string{"group-a", "group-b"}, least: 30,
		before: func(w *world, devices []*device) { w.pass(10 * week); anew(w, devices) },
	},
	{
		// group-a stays on the token until its certificate has ended.
		name: "another service", want: []string{"group-a", "group-b", "group-c"}, always: "group-b", least: 15,
		before: func(w *world, devices []*device) {
			for _, d := range devices {
				w.leave(d.name, "group-a")
				w.join(d.name, "group-c")
			}
			w.apply()
		},
	},
	{
		name: "leaving a service", want: []string{"group-b"}, least: 20,
		before: func(w *world, devices []*device) {
			for _, d := range devices {
				w.leave(d.name, "group-a")
			}
			w.apply()
			w.pass(week)
			anew(w, devices)
		},
	},
	{
		name: "coming back to a service", want: []string{"group-a", "group-b"}, always: "group-b", least: 20,
		before: func(w *world, devices []*device) {
			for _, d := range devices {
				w.leave(d.name, "group-a")
			}
			w.apply()
			joinAll(w, devices)
			for _, d := range devices {
				w.join(d.name, "group-a")
			}
			w.apply()
		},
	},
	{
		name: "roll-over of a CA", want: []string{"group-a", "group-b"}, always: "group-b", least: 30,
		before: func(w *world, devices []*device) {
			w.rollCA("group-a")
			w.pass(renewal)
			anew(w, devices)
		},
	},
}

// The power fails after each single step, of token, journal, policy and network, at the real centre. When it
// is back, the device puts everything right by itself: one valid key for each service, which is the one
// that the centre counts, nothing else on the token, no older policy, a journal that can be read.
func TestPowerFailsAtEveryInstant(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			members := map[string][]string{}
			n := fleet / stride()
			for i := range n {
				members[fmt.Sprintf("d%03d.devices.example", i)] = []string{"group-a", "group-b"}
			}
			w := newWorld(t, storetest.SQLite(t), registrytest.At, members)
			var devices []*device
			for i := range n {
				devices = append(devices, w.newDevice(fmt.Sprintf("d%03d.devices.example", i)))
			}
			w.start()
			w.apply()
			if !s.fresh {
				joinAll(w, devices)
			}
			if s.before != nil {
				s.before(w, devices)
			}
			for i := 0; i < n; i += together {
				batch := devices[i:min(i+together, n)]
				whole := make([]bool, len(batch))
				var wg sync.WaitGroup
				for k, d := range batch {
					wg.Go(func() { whole[k] = s.fail(w, d, (i+k)*stride()+1) })
				}
				wg.Wait()
				if t.Failed() {
					return
				}
				if slices.Contains(whole, true) {
					instants := (i + slices.Index(whole, true)) * stride()
					if t.Logf("%d instants", instants); instants < s.least {
						t.Errorf("%d instants: the scenario does nothing", instants)
					}
					if !raceEnabled && len(s.want) > 1 && !w.again() {
						t.Error("no answer was lost: the centre handed out no certificate again")
					}
					return
				}
			}
			t.Errorf("more than %d instants", fleet)
		})
	}
}

// fail lets the power of a device fail after so many steps, and switches it on again. It reports whether it
// did not fail, because there are no more steps.
func (s *scenario) fail(w *world, d *device, at int) (whole bool) {
	w.Helper()
	var lacks atomic.Int32
	if s.always != "" {
		d.power.watch(func() {
			for _, k := range d.soft.list() {
				if k.Service == s.always && k.Cert != nil && k.Signer != nil && w.Now().Before(k.Cert.NotAfter) {
					return
				}
			}
			lacks.Add(1)
		})
	}
	err := d.join(at)
	when := d.power.failed()
	whole = when == ""
	if whole && err != nil {
		w.Errorf("without a failure: %v", err)
	}
	if !whole {
		w.pass(time.Second) // limits of the centre on how often somebody may ask
		if err := d.join(0); err != nil {
			w.Errorf("switched on again: %v", err)
		}
	}
	d.power.watch(nil)
	if n := lacks.Load(); n > 0 {
		w.Errorf("%d times without a certificate of %s", n, s.always)
	}
	if err := d.settled(s.want); err != nil {
		w.Error(err)
	}
	if w.Failed() {
		w.Logf("%s, the power failed after step %d (%s)", d.name, at, when)
	}
	return whole
}

// again reports whether the centre has handed out a certificate once more, to a device that had lost it.
func (w *world) again() bool {
	w.Helper()
	return slices.ContainsFunc(w.entries(), func(e store.Entry) bool { return e.Event.Event == "enrolment" && e.Detail["again"] == "true" })
}

// settled is faults, but for certificates of services that were left: they stay until they end, and do not
// count at the centre.
func (d *device) settled(want []string) error {
	err := d.faults(want...)
	if err == nil {
		return nil
	}
	p, perr := d.sink.Installed(d.w.context())
	if perr != nil {
		return perr
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		left := ""
		for _, name := range services {
			if strings.HasPrefix(line, "service "+name+": 0 certificates count") {
				left = name
			}
		}
		for _, s := range p.Services {
			if s.Name == left {
				left = ""
			}
		}
		if left == "" {
			return err
		}
	}
	return nil
}
