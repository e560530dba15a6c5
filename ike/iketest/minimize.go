package iketest

import (
	"slices"
	"strings"
	"time"
	"unicode"
)

// Bounds of what Minimize does.
const (
	maxMinimize  = 600
	minimizeTime = 20 * time.Second
)

// Minimize takes away from a plan that fails what it does not need to fail: things that happen,
// losses and repetitions of datagrams, nodes and peculiarities of the configuration. The result
// fails in the same way.
func Minimize(p *Plan, h Hooks) *Plan {
	first := 0
	if p.Traffic {
		first = 1 + slices.IndexFunc(p.Ops, func(o Op) bool { return o.Kind == OpInitiate }) // without the beginning everything is lost
	}
	runs, begun := 0, time.Now()
	best := *p
	like := kindOf(Run(p, h, false).Violation)
	fails := func(c *Plan) bool {
		if runs >= maxMinimize || time.Since(begun) > minimizeTime {
			return false
		}
		runs++
		return kindOf(Run(c, h, false).Violation) == like
	}
	try := func(change func(*Plan)) bool {
		c := best
		c.Ops, c.Calm = slices.Clone(best.Ops), slices.Clone(best.Calm)
		change(&c)
		if !fails(&c) {
			return false
		}
		best = c
		return true
	}
	for again := true; again; {
		again = false
		for size := max(len(best.Ops)/2, 1); size > 0; size /= 2 {
			for i := first; i+size <= len(best.Ops); {
				if try(func(c *Plan) { c.Ops = slices.Delete(c.Ops, i, i+size) }) {
					again = true
				} else {
					i += size
				}
			}
		}
	}
	for _, change := range []func(*Plan){
		func(c *Plan) { c.Link = Link{Delay: c.Link.Delay} },
		func(c *Plan) { c.Link.Loss, c.Link.MTU = 0, 0 },
		func(c *Plan) { c.Link.Dup = 0 },
		func(c *Plan) { c.Link.Jitter = 0 },
		func(c *Plan) { c.Auth = AuthPSK },
		func(c *Plan) { c.Queues, c.Machine = [2]int{}, [2]int{} },
		func(c *Plan) { c.PFS, c.Groups, c.Fragments = false, false, false },
		func(c *Plan) { c.Hybrid = HybridNone },
		func(c *Plan) { c.NAT = false },
		func(c *Plan) { c.Crash, c.Hearing, c.Tickets = false, false, false },
		func(c *Plan) { c.Childless, c.PPK = [2]bool{}, [2]bool{} },
		func(c *Plan) { c.Second, c.Config = false, false },
		func(c *Plan) { c.Redirect, c.Twin = false, false },
		func(c *Plan) { c.TCP = [2]uint8{} },
		func(c *Plan) { c.Cookies, c.Puzzles = 0, 0 },
		func(c *Plan) { c.Puzzles = 0 },
		func(c *Plan) { c.Addrs, c.Mobike = [2]int{}, [2]bool{} },
		func(c *Plan) { c.Reauth = 0 },
		func(c *Plan) { c.RekeyChild = 0 },
		func(c *Plan) { c.RekeyIKE = 0 },
		func(c *Plan) { c.CutAtEnd = false },
	} {
		try(change)
	}
	// What is left of the losses, in halves.
	total := Run(&best, h, false).Datagrams
	for size := max(total/2, 1); size > 0 && runs < maxMinimize; size /= 2 {
		for from := 0; from < total; from += size {
			try(func(c *Plan) {
				for i := from; i < min(from+size, total); i++ {
					if !slices.Contains(c.Calm, i) {
						c.Calm = append(c.Calm, i)
					}
				}
			})
		}
	}
	return &best
}

// kindOf is the beginning of a violation without what differs from run to run.
func kindOf(v string) string {
	k := strings.Map(func(r rune) rune {
		if unicode.IsLower(r) {
			return r
		}
		return -1
	}, v)
	return k[:min(len(k), 24)]
}
