package sp

import (
	"fmt"
	"math"
	"net/http"
	"time"

	"wardgate/sp/est"
)

// Those whose requests are refused before it is known who they are: of one address (a /64 of IPv6), where
// a whole hospital may sit.
const (
	strangersPerSecond = 20
	strangersBurst     = 300
)

// limits bound how often somebody is answered, and how often it is recorded that somebody was refused for
// asking too often. Their memory is bounded (est.Limiter).
type limits struct {
	policies, reports *est.Limiter // by device
	strangers         *est.Limiter // by address
	told              *est.Limiter // by device or address
}

func newLimits(cfg *Limits) *limits {
	own := est.Limit{PerSecond: cfg.Requests, Burst: cfg.Burst}
	return &limits{
		policies: est.NewLimiter(own), reports: est.NewLimiter(own),
		strangers: est.NewLimiter(est.Limit{PerSecond: strangersPerSecond, Burst: strangersBurst}),
		told:      est.NewLimiter(est.Limit{PerSecond: 1.0 / 60, Burst: 1}),
	}
}

// allow takes one request of a device off its share. Nil: it is answered.
func (l *limits) allow(of *est.Limiter, device string, now time.Time) *refusal {
	wait, ok := of.Take(device, now)
	if ok {
		return nil
	}
	return l.tooMany("fewer requests of this device", device, wait, now)
}

// stranger takes one refusal off an address's share, and returns what it is refused with.
func (l *limits) stranger(r *http.Request, f *refusal, now time.Time) *refusal {
	if f.cause != nil {
		return f // our own failure
	}
	key := est.AddressKey(r.RemoteAddr)
	wait, ok := l.strangers.Take(key, now)
	if ok {
		return f
	}
	return l.tooMany("fewer requests of this address that are refused", key, wait, now)
}

func (l *limits) tooMany(expected, who string, wait time.Duration, now time.Time) *refusal {
	f := refuse(http.StatusTooManyRequests, "too-many", expected, "more than the limit", fmt.Sprintf("ask again in %v", wait.Round(time.Second)))
	f.retry = max(1, int(math.Ceil(wait.Seconds())))
	_, first := l.told.Take(who, now)
	f.quiet = !first // the record is for what happens, not for how often somebody knocks
	return f
}
