package router

import (
	"errors"
	"sync/atomic"

	"wardgate/esp"
	"wardgate/policy"
)

// dropReason says why the data path did not let a packet through.
type dropReason uint8

const (
	dropNone dropReason = iota
	dropMalformed
	dropFragment
	dropNotUnicast
	dropNoPolicy
	dropPolicy
	dropNoState
	dropSelectors
	dropBlocked
	dropWaiting
	dropManual
	dropHeldFull
	dropSeal
	dropSend
	dropUnknownSPI
	dropReplay
	dropICV
	dropESP
	dropDummy
	dropECN
	dropTUN
	dropTooBig
	dropOverload
	numDropReasons
)

var dropNames = [numDropReasons]string{
	dropNone:       "none",
	dropMalformed:  "malformed",
	dropFragment:   "fragment-without-first",
	dropNotUnicast: "not-unicast",
	dropNoPolicy:   "no-policy",
	dropPolicy:     "policy",
	dropNoState:    "not-a-reply",
	dropSelectors:  "outside-selectors",
	dropBlocked:    "connection-blocked",
	dropWaiting:    "connection-failed",
	dropManual:     "connection-not-started",
	dropHeldFull:   "too-many-waiting",
	dropSeal:       "sa-exhausted",
	dropSend:       "send-failed",
	dropUnknownSPI: "unknown-spi",
	dropReplay:     "replay",
	dropICV:        "not-authentic",
	dropESP:        "malformed-esp",
	dropDummy:      "dummy",
	dropECN:        "ecn",
	dropTUN:        "tun-write-failed",
	dropTooBig:     "too-big",
	dropOverload:   "overload",
}

// String returns the stable name that counters and records use.
func (r dropReason) String() string { return dropNames[r] }

// recorded tells whether a drop is a refusal that belongs into the audit record (AUD-5), and not
// weather on the line.
func (r dropReason) recorded() bool {
	switch r {
	case dropMalformed, dropFragment, dropNoPolicy, dropPolicy, dropNoState, dropSelectors, dropBlocked, dropManual:
		return true
	case dropNone, dropNotUnicast, dropWaiting, dropHeldFull, dropSeal, dropSend, dropUnknownSPI, dropReplay, dropICV, dropESP, dropDummy, dropECN, dropTUN, dropTooBig, dropOverload, numDropReasons:
	}
	return false
}

// dropCounters counts drops by reason; those of the policy by the policy's own reason.
type dropCounters struct {
	by     [numDropReasons]atomic.Uint64
	policy [64]atomic.Uint64 // by policy.Reason
}

func (c *dropCounters) add(r dropReason, n int) { c.by[r].Add(uint64(n)) }

func (c *dropCounters) addPolicy(r policy.Reason, n int) {
	if int(r) < len(c.policy) {
		c.policy[r].Add(uint64(n))
		return
	}
	c.by[dropPolicy].Add(uint64(n))
}

// addTo adds what was counted to m, by name.
func (c *dropCounters) addTo(m map[string]uint64) {
	for r := dropMalformed; r < numDropReasons; r++ {
		if n := c.by[r].Load(); n != 0 {
			m[r.String()] += n
		}
	}
	for r := range c.policy {
		if n := c.policy[r].Load(); n != 0 {
			m[policy.Reason(r).String()] += n
		}
	}
}

// dropFor maps the errors of connection.hold.
func dropFor(err error) dropReason {
	switch {
	case errors.Is(err, errConnBlocked):
		return dropBlocked
	case errors.Is(err, errConnWaiting):
		return dropWaiting
	case errors.Is(err, errConnManual):
		return dropManual
	}
	return dropHeldFull
}

// dropForOpen maps the sentinels of esp.Inbound.Open, which are never wrapped.
func dropForOpen(err error) dropReason {
	//nolint:errorlint // hot path; see above
	switch err {
	case esp.ErrReplay:
		return dropReplay
	case esp.ErrAuth:
		return dropICV
	case esp.ErrDummy:
		return dropDummy
	}
	return dropESP
}
