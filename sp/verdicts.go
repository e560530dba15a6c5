package sp

import (
	"bytes"
	"context"
	"crypto/x509"
	"net"
	"slices"
	"sync"
	"time"

	"wardgate/sp/est"
)

// verdict is that a connection's client certificate is a good device certificate. It belongs to the
// connection, whose certificate does not change, and holds as long as what it was judged by: the trust in
// devices, revocation lists included, and the time. What the registry says of the device is asked each time.
type verdict struct {
	mu    sync.Mutex // guards what follows
	good  bool
	trust uint64    // generation
	from  time.Time // when it was judged: before, for all we know, it was not valid
	until time.Time
}

type verdictKey struct{}

// withVerdict gives a connection its place for a verdict: for http.Server.ConnContext.
func withVerdict(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, verdictKey{}, new(verdict))
}

// holds reports whether the certificate was found good by the same trust, and is still.
func (v *verdict) holds(trust uint64, now time.Time) bool {
	if v == nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.good && v.trust == trust && !now.Before(v.from) && !now.After(v.until)
}

func (v *verdict) keep(trust uint64, now, until time.Time) {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.good, v.trust, v.from, v.until = true, trust, now, until
}

// sameTrust reports whether two trusts judge alike: they were read from the same octets.
func sameTrust(a, b *est.Trust) bool {
	certificate := func(x, y *x509.Certificate) bool { return bytes.Equal(x.Raw, y.Raw) }
	return a.RequireCRL == b.RequireCRL &&
		slices.EqualFunc(a.Anchors, b.Anchors, certificate) &&
		slices.EqualFunc(a.Intermediates, b.Intermediates, certificate) &&
		slices.EqualFunc(a.CRLs, b.CRLs, func(x, y *x509.RevocationList) bool { return bytes.Equal(x.Raw, y.Raw) })
}
