package control_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wardgate/router/control"
	"wardgate/router/control/controltest"
)

func joined(t *testing.T, f control.Backend, req control.JoinRequest) ([]control.JoinStep, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var steps []control.JoinStep
	err := control.NewClient(serve(t, f)).Join(ctx, req, func(s control.JoinStep) { steps = append(steps, s) })
	return steps, err
}

func TestJoin(t *testing.T) {
	f := &controltest.Fake{}
	steps, err := joined(t, f, control.JoinRequest{URL: "https://sp.example", Wait: "3s"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(controltest.Steps(), steps); diff != "" {
		t.Error(diff)
	}
	if calls := f.Calls(); len(calls) != 1 || calls[0] != "join https://sp.example 3s" {
		t.Errorf("asked: %q", calls)
	}
}

// TestJoinFails: the steps until then arrive, and the error as it is.
func TestJoinFails(t *testing.T) {
	want := &control.Error{Kind: control.KindUnavailable, Code: "centre-unreachable", Title: "T", Detail: "D", Hint: "H"}
	steps, err := joined(t, &controltest.Fake{Err: want}, control.JoinRequest{})
	var e *control.Error
	if !errors.As(err, &e) || *e != *want {
		t.Fatalf("got %v, want %v", err, want)
	}
	if len(steps) != 2 || steps[1].Error == nil || *steps[1].Error != *want {
		t.Errorf("steps: %+v", steps)
	}
	// before the first step: an ordinary error with its status
	steps, err = joined(t, &controltest.Fake{Err: want}, control.JoinRequest{URL: "refused at once"})
	if !errors.As(err, &e) || *e != *want || len(steps) != 0 {
		t.Fatalf("got %v and %d steps", err, len(steps))
	}
	// an error that is none of ours does not get lost
	_, err = joined(t, &controltest.Fake{Err: errors.New("disk full")}, control.JoinRequest{})
	if !errors.As(err, &e) || e.Code != "internal" || !strings.Contains(e.Detail, "disk full") {
		t.Fatalf("got %v", err)
	}
}

// TestJoinIsBrokenOff: who joins may go away; the backend is told.
func TestJoinIsBrokenOff(t *testing.T) {
	b := &endless{Fake: &controltest.Fake{}, ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	err := control.NewClient(serve(t, b)).Join(ctx, control.JoinRequest{}, func(control.JoinStep) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
	select {
	case <-b.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the backend goes on for nobody")
	}
}

// endless never ends by itself.
type endless struct {
	*controltest.Fake
	ended chan struct{}
}

func (b *endless) Join(ctx context.Context, _ control.JoinRequest, step func(control.JoinStep)) error {
	defer close(b.ended)
	for ctx.Err() == nil {
		step(control.JoinStep{Name: control.StepReach})
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	return ctx.Err()
}

func TestJoinRequestRefused(t *testing.T) {
	socket := serve(t, &controltest.Fake{})
	for _, body := range []string{"", "null x", `{"URL":"x","url2":1}`, strings.Repeat(" ", 65<<10) + "{}"} {
		if status, e, _ := raw(t, socket, http.MethodPost, "/v1/join", []byte(body)); status != http.StatusBadRequest || e.Code != "json" {
			t.Errorf("%.20q: %d, %v", body, status, e)
		}
	}
}
