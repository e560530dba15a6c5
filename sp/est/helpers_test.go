package est_test

import (
	"context"
	"encoding/base64"
	"time"

	"wardgate/sp/est"
)

func decode(dst, src []byte) (int, error) { return base64.StdEncoding.Strict().Decode(dst, src) }

// holding is a registry that does not answer until it is released, whatever the deadline.
type holding struct {
	est.Registry
	release <-chan struct{}
	inside  chan<- struct{}
}

func (h *holding) Authorize(ctx context.Context, d est.Device, service string, now time.Time) (est.Grant, error) {
	h.inside <- struct{}{}
	<-h.release
	return h.Registry.Authorize(ctx, d, service, now)
}
