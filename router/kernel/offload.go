package kernel

import (
	"slices"
	"strings"

	"github.com/safchain/ethtool"
)

// offloadFeatures are switched on for the interfaces of zones: the kernel then hands packets of
// one flow that arrive together to the TUN device in one piece, UDP as well as TCP, which makes
// the way to the tunnel several times as cheap for small packets. What leaves the tunnel at the
// other end are the same packets (the TUN device is told their size).
var offloadFeatures = []string{"rx-gro", "rx-udp-gro-forwarding"}

// offloadNote marks, in the list of what Remove has to restore, a feature that was off.
const offloadNote = "offload:"

// offload is a feature of an interface.
type offload struct{ ifn, feature string }

func (o offload) String() string { return offloadNote + o.ifn + "/" + o.feature }

func parseOffload(note string) (offload, bool) {
	// The notes come from a table that an administrator can write to: only what we switch on
	// ourselves is ever switched off.
	s, ok := strings.CutPrefix(note, offloadNote)
	ifn, feature, cut := strings.Cut(s, "/")
	return offload{ifn, feature}, ok && cut && ifn != "" && slices.Contains(offloadFeatures, feature)
}

// offloadPlan is what the zones' interfaces need.
type offloadPlan struct {
	on, off []offload // to be switched
	undo    []offload // to be remembered: what we switched on
}

// planOffloads compares what the interfaces of the zones have with what they should. What cannot
// be asked or does not exist is left alone: nothing but speed depends on it.
func (k *Kernel) planOffloads(s *State, notes []string) offloadPlan {
	var plan offloadPlan
	ours := map[offload]bool{}
	for _, n := range notes {
		if o, ok := parseOffload(n); ok {
			ours[o] = true
		}
	}
	for _, ifn := range zoneInterfaces(s) {
		have, err := k.features(ifn)
		if err != nil {
			continue
		}
		for _, f := range offloadFeatures {
			o := offload{ifn, f}
			state, exists := have[f]
			if !exists || !state.Available || state.NeverChanged {
				continue
			}
			switch {
			case ours[o]:
				plan.undo = append(plan.undo, o)
				delete(ours, o)
				if !state.Active {
					plan.on = append(plan.on, o)
				}
			case !state.Active:
				plan.undo = append(plan.undo, o)
				plan.on = append(plan.on, o)
			}
		}
	}
	for o := range ours { // in no zone any more
		plan.off = append(plan.off, o)
	}
	return plan
}

func (k *Kernel) features(ifn string) (have map[string]ethtool.FeatureState, err error) {
	err = inNS(k.opt.NetNS, func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		have, err = e.FeaturesWithState(ifn)
		return err
	})
	return have, err
}

// switchOffloads carries a plan out and returns how many features it switched. A driver that
// refuses is told about once.
func (k *Kernel) switchOffloads(plan offloadPlan) int {
	n := 0
	for _, x := range []struct {
		list []offload
		on   bool
	}{{plan.on, true}, {plan.off, false}} {
		for _, o := range x.list {
			err := inNS(k.opt.NetNS, func() error {
				e, err := ethtool.NewEthtool()
				if err != nil {
					return err
				}
				defer e.Close()
				return e.Change(o.ifn, map[string]bool{o.feature: x.on})
			})
			if err == nil {
				n++
				continue
			}
			if key := o.String(); !k.refusedOffload[key] {
				k.refusedOffload[key] = true
				k.opt.Log("offload cannot be switched; packets are forwarded one by one, which is slower",
					"interface", o.ifn, "feature", o.feature, "error", err)
			}
		}
	}
	return n
}
