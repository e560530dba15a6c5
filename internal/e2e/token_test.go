package e2e

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/router/control"
)

func waitToken(t *testing.T, f *lab.Facility, state string, limit time.Duration) {
	t.Helper()
	must(t, lab.WaitFor(t.Context(), "the token of "+f.Title+" to be "+state, limit, func() error {
		s, err := f.Status(t.Context())
		if err == nil && s.Token.State != state {
			err = fmt.Errorf("it is %s", s.Token.State)
			if s.Token.Error != nil {
				err = fmt.Errorf("%w: %w", err, s.Token.Error)
			}
		}
		return err
	}))
}

// A wrong PIN is tried once, said and recorded; the daemon runs and passes nothing. With the right
// one everything works.
func TestWrongPIN(t *testing.T) {
	t.Parallel()
	h := bareHospital(t, "e2e-pin")
	must(t, h.A.SetPIN("000000"))
	must(t, h.Start(t.Context()))
	waitToken(t, h.A, control.TokenPINRefused, 5*time.Second)
	rec := wantAudit(t, h.A, 0, "pin-refused")
	t.Logf("%s %v", rec.Event, rec.Detail)
	s, err := h.A.Status(t.Context())
	must(t, err)
	if s.Token.Error == nil || s.Token.Error.Hint == "" {
		t.Errorf("status says %+v; want what is wrong and what to do", s.Token.Error)
	}
	for _, f := range []*lab.Facility{h.B, h.C} {
		d, err := h.Provider.Policy(f, h.Contracts())
		must(t, err, f.InstallPolicy(t.Context(), h.Provider, d))
	}
	echo, err := h.Archive.EchoUDP(addrPort(h.Archive, lab.EchoPort))
	must(t, err)
	r, err := h.Modality.Burst(t.Context(), h.Modality.Addr, addrPort(h.Archive, lab.EchoPort), 3, time.Millisecond, time.Second)
	echo.Close()
	must(t, err)
	if r.Received != 0 {
		t.Errorf("%d answers from a facility whose token is locked", r.Received)
	}
	must(t, h.A.Daemon.Stop(10*time.Second), h.A.SetPIN(lab.TokenPIN), h.A.StartDaemon(t.Context()))
	waitToken(t, h.A, control.TokenReady, 5*time.Second)
	d, err := h.Provider.Policy(h.A, h.Contracts())
	must(t, err, h.A.InstallPolicy(t.Context(), h.Provider, d))
	must(t, lab.WaitFor(t.Context(), "the connection to come back", 20*time.Second, func() error {
		_, err := h.B.Control().Up(t.Context(), "a-b")
		return err
	}))
	burst(t, h.Modality, h.Archive, 3, time.Millisecond)
}

// CHIP-6: the chip process dies: no packet of a standing tunnel is lost, and it comes back. The
// token is pulled: the tunnels that depend on it end, with an event; they come back with it.
func TestTokenGoes(t *testing.T) {
	t.Parallel()
	h := hospital(t, "e2e-token", nil)
	burst(t, h.Modality, h.Archive, 10, time.Millisecond)
	after := lastAudit(t, h.A)
	chips, err := h.A.Daemon.Children("wardgate-chip")
	must(t, err)
	if len(chips) != 1 {
		t.Fatalf("chip processes of A's wardgated: %v; want one", chips)
	}
	must(t, syscall.Kill(chips[0], syscall.SIGKILL)) // our own grandchild, found by its parent
	burst(t, h.Modality, h.Archive, 100, time.Millisecond)
	must(t, lab.WaitFor(t.Context(), "another chip process", 10*time.Second, func() error {
		now, err := h.A.Daemon.Children("wardgate-chip")
		if err == nil && (len(now) != 1 || now[0] == chips[0]) {
			err = fmt.Errorf("there are %v", now)
		}
		return err
	}))
	waitToken(t, h.A, control.TokenReady, 10*time.Second)
	wantAudit(t, h.A, after, "chip-restarted")

	after = lastAudit(t, h.A)
	back, err := h.A.PullToken()
	must(t, err)
	waitToken(t, h.A, control.TokenRemoved, 10*time.Second)
	wantAudit(t, h.A, after, "token-removed")
	must(t, lab.WaitFor(t.Context(), "A's tunnel to end", 10*time.Second, func() error {
		c, err := h.A.Connection(t.Context(), "a-b")
		if err == nil && c.State == control.ConnUp {
			err = errors.New("it is still up")
		}
		return err
	}))
	must(t, back())
	waitToken(t, h.A, control.TokenReady, 20*time.Second)
	must(t, lab.WaitFor(t.Context(), "the connection to come back", 20*time.Second, func() error {
		_, err := h.B.Control().Up(t.Context(), "a-b")
		return err
	}))
	burst(t, h.Modality, h.Archive, 10, time.Millisecond)
}
