package router

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"wardgate/router/centre"
	"wardgate/router/config"
	"wardgate/router/control"
)

func TestJoinURL(t *testing.T) {
	for _, c := range []struct{ configured, last, asked, want, code string }{
		{"", "", "https://sp.example:8443", "https://sp.example:8443", ""},
		{"", "https://a", "", "https://a", ""},
		{"", "https://a", "https://b", "https://b", ""}, // the SP has moved
		{"https://a", "https://a", "", "https://a", ""},
		{"https://a", "https://a", "https://a", "https://a", ""},
		{"https://a", "https://a", "https://b", "", "centre-url"},
		{"", "", "", "", "centre-url"},
		{"", "", "http://sp.example", "", "centre-url"},
		{"", "", "https://sp.example/x", "", "centre-url"},
		{"", "", "https://u:p@sp.example", "", "centre-url"},
		{"", "", "sp.example\n", "", "centre-url"},
	} {
		l := &centreLink{r: &Router{cfg: &config.Config{SP: config.SP{URL: c.configured}}}, url: c.last}
		got, err := l.joinURL(c.asked)
		var e *control.Error
		if c.code != "" && (!errors.As(err, &e) || e.Code != c.code || e.Kind != control.KindInvalid) || c.code == "" && err != nil || got != c.want {
			t.Errorf("%+v: got %q, %v", c, got, err)
		}
	}
}

// TestJoinWithoutCentre: who is not configured for one is told how to be.
func TestJoinWithoutCentre(t *testing.T) {
	r := &Router{cfg: &config.Config{}}
	var e *control.Error
	if err := r.Join(context.Background(), control.JoinRequest{}, nil); !errors.As(err, &e) || e.Code != "no-centre" || e.Hint == "" {
		t.Errorf("got %v", err)
	}
}

// TestCentreErrors: every code of the agent has words of its own and the right kind, and what the centre
// said as the reason stays visible.
func TestCentreErrors(t *testing.T) {
	other := centreError(errors.New("x"))
	for _, c := range []centre.Code{
		centre.Unreachable, centre.TLS, centre.ClockWrong, centre.DeviceCert, centre.Refused, centre.Pending, centre.Busy, centre.TooLarge, centre.TooSlow,
		centre.Redirect, centre.ContentType, centre.Malformed, centre.UntrustedCA, centre.BadCert, centre.TokenFailed, centre.NoPolicy, centre.PolicyBad, centre.JournalError,
	} {
		e := centreError(fmt.Errorf("outer: %w", &centre.Error{Code: c, Service: "s", Reason: "r", Expected: "E", Got: "G", Do: "D"}))
		if e.Code != "centre-"+string(c)+"-r" || e.Title == other.Title || e.Detail != "service s: expected E, came G" || e.Hint != "D" {
			t.Errorf("%s: %+v", c, e)
		}
	}
	if e := centreError(&centre.Error{Code: centre.TokenFailed}); e.Kind != control.KindToken {
		t.Errorf("token: %v", e.Kind)
	}
	if e := centreError(&centre.Error{Code: centre.Refused}); e.Kind != control.KindRefused {
		t.Errorf("refused: %v", e.Kind)
	}
}

func TestEndsSoon(t *testing.T) {
	from := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	for _, c := range []struct {
		life, age time.Duration
		want      bool
	}{
		{3 * day, 2*day - time.Hour, false}, // the centre renews at half the life
		{3 * day, 2*day + time.Hour, true},
		{90 * day, 80 * day, false},
		{90 * day, 87*day + time.Hour, true},
		{time.Hour, 41 * time.Minute, true},
		{time.Hour, 2 * time.Hour, true},
	} {
		if got := endsSoon(from.Add(c.age), from, from.Add(c.life), warnPolicy, 3); got != c.want {
			t.Errorf("life %v, age %v: %v", c.life, c.age, got)
		}
	}
}
