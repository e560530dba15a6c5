package control

import (
	"context"

	"wardgate/internal/localsocket"
)

// Caller says who made the request of this context, for audit records: the user's name and
// number and the process, such as "root (uid 0, pid 4242)". It is empty outside a request.
func Caller(ctx context.Context) string {
	return localsocket.From(ctx).String()
}
