package operator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"wardgate/sp/registry"
)

// Kinds of errors, for errors.Is.
var (
	// ErrNotFound: there is no such thing.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the registry is not as the caller expected.
	ErrConflict = errors.New("the registry is not as expected")
	// ErrInTheWay: something that is there already, or half done, is in the way.
	ErrInTheWay = errors.New("something is in the way")
	// ErrDamaged: the record is not as it was.
	ErrDamaged = errors.New("the record is damaged")
	// ErrRequest: the request makes no sense.
	ErrRequest = errors.New("request refused")
	// ErrDenied: the caller may not use the API.
	ErrDenied = errors.New("denied")
	// ErrUnreachable: nobody answers.
	ErrUnreachable = errors.New("centre not reachable")
)

// Problem is an error as the API tells it (RFC 9457, type about:blank).
type Problem struct {
	Title    string            `json:"title"`
	Status   int               `json:"status"`
	Code     string            `json:"code"` // stable
	Expected string            `json:"expected"`
	Came     string            `json:"came"`
	Do       string            `json:"do,omitempty"`
	Faults   []*registry.Fault `json:"faults,omitempty"` // of code registry-refused
	More     int               `json:"more,omitempty"`   // faults that are not listed

	allow string // header Allow of 405
	cause error  // for the log: of our own failures the client is told nothing
}

// The codes of problems.
const (
	CodeDenied       = "denied"
	CodeBusy         = "busy"
	CodeBadPath      = "bad-path"
	CodeNoPath       = "no-such-path"
	CodeMethod       = "method-not-allowed"
	CodeOrigin       = "cross-origin"
	CodeParameter    = "bad-parameter"
	CodeType         = "bad-type"
	CodeTooLarge     = "too-large"
	CodeMalformed    = "malformed"
	CodeBadName      = "bad-name"
	CodeNotFound     = "not-found"
	CodeRefused      = "registry-refused"
	CodeConflict     = "conflict"
	CodePrecondition = "precondition-required"
	CodeInTheWay     = "in-the-way"
	CodeDamaged      = "record-damaged"
	CodeUnavailable  = "unavailable"
)

func problem(status int, code, expected, came, do string) *Problem {
	return &Problem{Title: http.StatusText(status), Status: status, Code: code, Expected: expected, Came: came, Do: do}
}

// Error says what was expected, what came, and what to do.
func (p *Problem) Error() string {
	if len(p.Faults) > 0 {
		return (&registry.Error{Faults: p.Faults, More: p.More}).Error()
	}
	s := fmt.Sprintf("%s: expected %s, came %s", strings.ToLower(p.Title), p.Expected, p.Came)
	if p.Do != "" {
		s += "; " + p.Do
	}
	return s
}

// Is gives a problem its kind.
func (p *Problem) Is(target error) bool {
	switch p.Code {
	case CodeNotFound:
		return target == ErrNotFound
	case CodeConflict, CodePrecondition:
		return target == ErrConflict
	case CodeRefused:
		return target == registry.ErrRefused
	case CodeInTheWay:
		return target == ErrInTheWay
	case CodeDamaged:
		return target == ErrDamaged
	case CodeDenied:
		return target == ErrDenied
	case CodeBadPath, CodeNoPath, CodeMethod, CodeParameter, CodeType, CodeTooLarge, CodeMalformed, CodeBadName:
		return target == ErrRequest
	}
	return false
}

// problemOf tells any error. What is the centre's own trouble goes to the log and not to the client.
func problemOf(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	if e, ok := errors.AsType[*registry.Error](err); ok {
		p := problem(http.StatusUnprocessableEntity, CodeRefused, "a registry that keeps the rules", plural(len(e.Faults)+e.More, "fault"), "correct what faults names")
		p.Faults, p.More = e.Faults, e.More
		return p
	}
	switch {
	case errors.Is(err, ErrConflict):
		return problem(http.StatusPreconditionFailed, CodeConflict, "the registry as the plan found it", "another one: "+err.Error(), "make the plan again")
	case errors.Is(err, ErrNotFound):
		return problem(http.StatusNotFound, CodeNotFound, "something that there is", err.Error(), "see the list")
	case errors.Is(err, registry.ErrRefused):
		return problem(http.StatusUnprocessableEntity, CodeRefused, "a registry that keeps the rules", err.Error(), "")
	case errors.Is(err, ErrInTheWay):
		return problem(http.StatusConflict, CodeInTheWay, "nothing in the way", err.Error(), "see docs/sp.md: service ca")
	case errors.Is(err, ErrDamaged):
		return problem(http.StatusConflict, CodeDamaged, "a record that is as it was", err.Error(), "compare with a backup, and find out who had access to the database")
	case errors.Is(err, ErrRequest):
		return problem(http.StatusBadRequest, CodeMalformed, "a request that makes sense", err.Error(), "see openapi.json")
	}
	p := problem(http.StatusServiceUnavailable, CodeUnavailable, "an answer from the centre", "none", "ask again later; the centre's log says why")
	if errors.Is(err, context.DeadlineExceeded) {
		p.Came = "none in time"
	}
	p.cause = err
	return p
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
