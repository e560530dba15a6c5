package control

import (
	"errors"
	"fmt"
	"net/http"
)

// Kind says which sort of failure an Error is; the HTTP status and the exit code of the command
// line follow from it.
type Kind string

// Kinds of failures.
const (
	KindInvalid     Kind = "invalid"     // the request makes no sense: 400
	KindDenied      Kind = "denied"      // the caller may not: 403
	KindNotFound    Kind = "not-found"   // no such connection: 404
	KindRefused     Kind = "refused"     // understood, and refused by policy or by the peer: 409
	KindTooLarge    Kind = "too-large"   // 413
	KindToken       Kind = "token"       // the token is missing, or cannot sign: 424
	KindInternal    Kind = "internal"    // 500
	KindUnavailable Kind = "unavailable" // not now: starting, stopping, or busy: 503
	KindTimeout     Kind = "timeout"     // 504
)

// status is the HTTP status of a kind; an unknown kind is an internal error.
func (k Kind) status() int {
	switch k {
	case KindInvalid:
		return http.StatusBadRequest
	case KindDenied:
		return http.StatusForbidden
	case KindNotFound:
		return http.StatusNotFound
	case KindRefused:
		return http.StatusConflict
	case KindTooLarge:
		return http.StatusRequestEntityTooLarge
	case KindToken:
		return http.StatusFailedDependency
	case KindUnavailable:
		return http.StatusServiceUnavailable
	case KindTimeout:
		return http.StatusGatewayTimeout
	case KindInternal:
	}
	return http.StatusInternalServerError
}

// Error is a failure as the operator sees it.
type Error struct {
	Kind   Kind   `json:"kind"`
	Code   string `json:"code"`             // stable, such as "policy-serial-older"
	Title  string `json:"title"`            // one line
	Detail string `json:"detail,omitempty"` // what was expected and what came
	Hint   string `json:"hint,omitempty"`   // what to do about it
}

func (e *Error) Error() string {
	if e.Detail == "" {
		return fmt.Sprintf("%s (%s)", e.Title, e.Code)
	}
	return fmt.Sprintf("%s: %s (%s)", e.Title, e.Detail, e.Code)
}

// ErrUnreachable is what the Client's errors wrap when no daemon answers at the socket.
var ErrUnreachable = errors.New("the daemon cannot be reached")

// errorBody is the JSON of every response that is no success.
type errorBody struct {
	Error *Error `json:"error"`
}
