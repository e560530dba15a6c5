package est

import (
	"net/netip"
	"sync"
	"time"
)

// maxBuckets bounds the memory of a limiter: about 64 octets each.
const maxBuckets = 1 << 16

// Limiter holds a token bucket for each key. Its memory is bounded. It is safe for concurrent use.
type Limiter struct {
	limit Limit

	mu      sync.Mutex // guards buckets
	buckets map[string]bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

// NewLimiter makes a limiter.
func NewLimiter(l Limit) *Limiter { return &Limiter{limit: l, buckets: map[string]bucket{}} }

// Take takes a token, or says how long to wait for one.
func (l *Limiter) Take(key string, now time.Time) (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.buckets[key]
	switch {
	case !ok:
		if len(l.buckets) >= maxBuckets {
			l.sweep(now)
		}
		b = bucket{tokens: float64(l.limit.Burst), at: now}
	case now.After(b.at):
		b.tokens = min(float64(l.limit.Burst), b.tokens+now.Sub(b.at).Seconds()*l.limit.PerSecond)
		b.at = now
	}
	if b.tokens < 1 {
		l.buckets[key] = b
		wait := time.Minute
		if l.limit.PerSecond > 0 {
			wait = min(wait, time.Duration((1-b.tokens)/l.limit.PerSecond*float64(time.Second)))
		}
		return wait, false
	}
	b.tokens--
	l.buckets[key] = b
	return 0, true
}

// sweep forgets whoever has all tokens back, and everybody when that does not help: then a few get
// more than their share for a moment, but memory stays bounded.
func (l *Limiter) sweep(now time.Time) {
	for k, b := range l.buckets {
		if b.tokens+now.Sub(b.at).Seconds()*l.limit.PerSecond >= float64(l.limit.Burst) {
			delete(l.buckets, k)
		}
	}
	if len(l.buckets) >= maxBuckets {
		clear(l.buckets)
	}
}

// AddressKey is what requests of one place have in common: the address, and for IPv6 its /64.
func AddressKey(remote string) string {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
