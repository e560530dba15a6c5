package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/policy"
	"wardgate/router/control"
	"wardgate/sp/store"
)

// arrival bounds what takes a moment. Nothing waits for it unless something is broken.
const arrival = 30 * time.Second

// fromCentre makes the scenario with a centre: it runs, and so do the daemons, on tokens that have only
// their device certificates. Nobody has joined.
func fromCentre(t *testing.T, name string, settings map[string]string, change func(h *lab.Hospital)) *lab.Hospital {
	t.Helper()
	h, err := lab.NewHospital(t.Context(), newLab(t, name), 0)
	must(t, err)
	must(t, h.FromCentre(t.Context(), settings))
	if change != nil {
		change(h)
	}
	must(t, h.Start(t.Context()))
	return h
}

// joined is fromCentre, and everybody has joined.
func joined(t *testing.T, name string, settings map[string]string) *lab.Hospital {
	t.Helper()
	h := fromCentre(t, name, settings, nil)
	all, err := h.Join(t.Context())
	for f, j := range all {
		t.Logf("%s, `wardgate join`, %v:\n%s", f.Title, j.Took.Round(10*time.Millisecond), j.Said)
	}
	must(t, err)
	return h
}

// serial is that of the policy in force.
func serial(t *testing.T, f *lab.Facility) uint64 {
	t.Helper()
	s, err := f.Status(t.Context())
	must(t, err)
	return s.Policy.Serial
}

// latest waits until facilities have the newest policies that the centre has for them, and the centre has
// been told so.
func latest(t *testing.T, h *lab.Hospital, fs ...*lab.Facility) {
	t.Helper()
	for _, f := range fs {
		must(t, lab.WaitFor(t.Context(), "the newest policy at "+f.Title, arrival, func() error {
			d, err := h.SP.Device(t.Context(), f)
			if err != nil {
				return err
			}
			s, err := f.Status(t.Context())
			if err == nil && (s.Policy.Serial != d.Policy.Serial || d.Policy.Serial == 0) {
				err = fmt.Errorf("%d is in force, the centre has %d", s.Policy.Serial, d.Policy.Serial)
			}
			return err
		}))
	}
}

// echoes are the echo servers on hosts, which live as long as their tests.
var echoes sync.Map // *lab.Host to *lab.EchoServer

func echoOn(t *testing.T, to *lab.Host) *lab.EchoServer {
	t.Helper()
	if s, ok := echoes.Load(to); ok {
		return s.(*lab.EchoServer)
	}
	s, err := to.EchoUDP(addrPort(to, lab.EchoPort))
	must(t, err)
	echoes.Store(to, s)
	t.Cleanup(func() {
		echoes.Delete(to)
		s.Close()
	})
	return s
}

// reaches waits until a datagram from one host to another is answered.
func reaches(t *testing.T, from, to *lab.Host) {
	t.Helper()
	echoOn(t, to)
	must(t, lab.WaitFor(t.Context(), fmt.Sprintf("%v to reach %v", from.Addr, to.Addr), arrival, func() error {
		r, err := from.Burst(t.Context(), from.Addr, addrPort(to, lab.EchoPort), 1, time.Millisecond, 500*time.Millisecond)
		if err == nil && r.Received != 1 {
			err = errors.New("no answer")
		}
		return err
	}))
}

// cannotReach sends datagrams that nobody may answer.
func cannotReach(t *testing.T, from, to *lab.Host) {
	t.Helper()
	echo := echoOn(t, to)
	before := echo.Seen(from.Addr)
	r, err := from.Burst(t.Context(), from.Addr, addrPort(to, lab.EchoPort), 3, time.Millisecond, 300*time.Millisecond)
	must(t, err)
	if n := echo.Seen(from.Addr) - before; r.Received != 0 || n != 0 {
		t.Errorf("from %v to %v: %d datagrams arrived, %d were answered; want none", from.Addr, to.Addr, n, r.Received)
	}
}

// undisturbed runs do while datagrams flow from one host to another, none of which may be lost.
func undisturbed(t *testing.T, h *lab.Hospital, from, to *lab.Host, do func()) {
	t.Helper()
	reaches(t, from, to)
	s, err := from.Stream(from.Addr, addrPort(to, lab.EchoPort), 5*time.Millisecond)
	must(t, err)
	defer s.Stop(0)
	do()
	if r := s.Stop(2 * time.Second); len(r.Missing) > 0 {
		t.Errorf("from %v to %v: %d of %d datagrams were lost: %v", from.Addr, to.Addr, len(r.Missing), r.Sent, r.Missing)
		for _, f := range h.Facilities() {
			out, err := f.Wardgate(t.Context(), "counters")
			t.Logf("%s: %v\n%s", f.Title, err, out)
		}
	}
}

// services are the services that the token has a usable certificate for, in order; one a service.
func services(t *testing.T, f *lab.Facility) []string {
	t.Helper()
	s, err := f.Status(t.Context())
	must(t, err)
	var out []string
	for _, c := range s.Token.Certificates {
		if c.Layer == 2 && c.Error == "" {
			out = append(out, c.Service)
		}
	}
	slices.Sort(out)
	return out
}

// ends waits until a connection of a facility is gone or down.
func ends(t *testing.T, f *lab.Facility, conn string) {
	t.Helper()
	must(t, lab.WaitFor(t.Context(), fmt.Sprintf("connection %s of %s to end", conn, f.Title), arrival, func() error {
		s, err := f.Status(t.Context())
		if err != nil {
			return err
		}
		for _, c := range s.Connections {
			if c.Name == conn && c.State == control.ConnUp {
				return errors.New("it is up")
			}
		}
		return nil
	}))
}

// DEM-3, DEM-4, CHIP-2: nothing but a device certificate, and the network, takes three routers to their
// tunnels; while they run, one changes its group, and one is shut out.
func TestJoinMoveRevoke(t *testing.T) {
	t.Parallel()
	h := joined(t, "e2e-join", nil)
	for _, f := range h.Facilities() {
		if got, want := services(t, f), h.Services(f); !slices.Equal(got, want) {
			t.Errorf("the token of %s has certificates of %v; want %v", f.Title, got, want)
		}
		d, err := h.SP.Device(t.Context(), f)
		must(t, err)
		if len(d.Certificates) != len(h.Services(f)) {
			t.Errorf("the centre issued %d certificates to %s; want %d", len(d.Certificates), f.Title, len(h.Services(f)))
		}
	}
	reaches(t, h.Modality, h.Archive)
	reaches(t, h.Scanner, h.Centre)
	cannotReach(t, h.Modality, h.Centre)

	// B moves. What runs between A and C does not notice.
	undisturbed(t, h, h.Scanner, h.Centre, func() {
		_, err := h.SP.Apply(t.Context(), h.Moved())
		must(t, err)
		latest(t, h, h.Facilities()...)
		reaches(t, h.Modality, h.Centre)
	})
	for _, f := range []*lab.Facility{h.A, h.B} {
		if _, err := f.Connection(t.Context(), "a-b"); err == nil {
			t.Errorf("%s still has the connection a-b", f.Title)
		}
	}
	cannotReach(t, h.Modality, h.Archive)
	cannotReach(t, h.Archive, h.Modality)
	d, err := h.SP.Device(t.Context(), h.B)
	must(t, err)
	for _, c := range d.Certificates {
		if ended := !c.Ends.IsZero() && !c.Ends.After(time.Now()); ended != (c.Service == lab.GroupA) {
			t.Errorf("B's certificate of %s: revoked from %v; want that of %s, and no other, revoked", c.Service, c.Ends, lab.GroupA)
		}
	}

	// C is stolen: nobody talks to it any more, and it can make nothing anew.
	reaches(t, h.Scanner, h.Centre)
	reaches(t, h.Modality, h.Centre)
	after := lastAudit(t, h.C)
	out, err := h.SP.SP(t.Context(), "device", "revoke", h.C.DeviceID, "--reason", "stolen")
	must(t, err)
	t.Log(out)
	ends(t, h.A, "a-c")
	ends(t, h.B, "b-c")
	cannotReach(t, h.Scanner, h.Centre)
	cannotReach(t, h.Modality, h.Centre)
	wantAudit(t, h.C, after, "centre-failed", "which is revoked")
	if out, err := h.C.Wardgate(t.Context(), "up", "a-c"); err == nil {
		t.Errorf("the revoked router brought a connection up:\n%s", out)
	}
	if out, err := h.C.Join(t.Context(), "--wait", "0s"); err == nil || !strings.Contains(out+err.Error(), "revoked") {
		t.Errorf("the revoked router joined again: %v\n%s", err, out)
	}
}

// RES: the centre dies. What is in force goes on, also over a restart, the operator is told, and what changed
// meanwhile is caught up when the centre is back.
func TestCentreAway(t *testing.T) {
	t.Parallel()
	h := joined(t, "e2e-away", nil)
	reaches(t, h.Modality, h.Archive)
	before, after := serial(t, h.B), lastAudit(t, h.B)
	h.SP.Process.Kill()

	undisturbed(t, h, h.Modality, h.Archive, func() {
		wantAudit(t, h.B, after, "centre-failed")
		must(t, lab.WaitFor(t.Context(), "a warning at B", arrival, func() error {
			out, err := h.B.Wardgate(t.Context(), "status")
			if err == nil && !strings.Contains(out, "centre-unreachable") {
				err = fmt.Errorf("`wardgate status` says:\n%s", out)
			}
			return err
		}))
	})
	// B is switched off and on while nobody answers; so is A, without warning.
	must(t, h.B.Daemon.Stop(10*time.Second), h.B.StartDaemon(t.Context()))
	h.A.Daemon.Kill()
	must(t, h.A.StartDaemon(t.Context()))
	reaches(t, h.Modality, h.Archive)
	if now := serial(t, h.B); now != before {
		t.Errorf("B's policy is %d after a restart without the centre; want %d", now, before)
	}

	// The registry changes while no instance runs and C is off, too: everything is caught up.
	must(t, h.C.Daemon.Stop(10*time.Second))
	_, err := h.SP.Apply(t.Context(), h.Moved())
	must(t, err)
	after = lastAudit(t, h.B)
	must(t, h.SP.Start(t.Context()))
	latest(t, h, h.A, h.B)
	wantAudit(t, h.B, after, "centre-back")
	must(t, h.C.StartDaemon(t.Context()))
	latest(t, h, h.C)
	reaches(t, h.Modality, h.Centre)
	cannotReach(t, h.Modality, h.Archive)
	if now := serial(t, h.B); now <= before {
		t.Errorf("B's policy is %d after the change; want more than %d", now, before)
	}
}

// cutOff drops what comes from a facility at the centre, until the function that it returns is called.
func cutOff(t *testing.T, h *lab.Hospital, f *lab.Facility) (undo func()) {
	t.Helper()
	must(t, h.SP.Nft(fmt.Sprintf("table ip cut {\n chain in {\n  type filter hook input priority 0;\n  ip saddr %v drop\n }\n chain out {\n  type filter hook output priority 0;\n  ip daddr %v drop\n }\n}\n", f.WAN, f.WAN)))
	return func() { must(t, h.SP.Nft("delete table ip cut\n")) }
}

// policyFile is the newest policy that the centre has for a facility.
func policyFile(t *testing.T, h *lab.Hospital, f *lab.Facility) []byte {
	t.Helper()
	st := database(t, h)
	defer st.Close()
	p, err := st.Latest(t.Context(), f.DeviceID)
	must(t, err)
	return p.JWS
}

// database opens the centre's, beside it.
func database(t *testing.T, h *lab.Hospital) *store.Store {
	t.Helper()
	st, err := store.Open(t.Context(), store.Options{URL: "sqlite:" + h.SP.Dir + "/centre.db"})
	must(t, err)
	return st
}

// A router that the network keeps from its centre is given the same file by hand; what came by hand is not
// taken back by what comes over the network, nor by what is older.
func TestPolicyByHand(t *testing.T) {
	t.Parallel()
	h := joined(t, "e2e-hand", nil)
	reaches(t, h.Modality, h.Archive)
	reaches(t, h.Scanner, h.Centre)
	old := policyFile(t, h, h.A)
	undo := cutOff(t, h, h.A)

	// C is shut out. B, which is online, has no contract with it; A has, and hears of it by hand.
	out, err := h.SP.SP(t.Context(), "device", "revoke", h.C.DeviceID, "--reason", "stolen")
	must(t, err)
	t.Log(out)
	must(t, lab.WaitFor(t.Context(), "the centre to make A's policy", arrival, func() error {
		d, err := h.SP.Device(t.Context(), h.A)
		if err == nil && d.Policy.Serial <= serial(t, h.A) {
			err = errors.New("there is none yet")
		}
		return err
	}))
	jws := policyFile(t, h, h.A)
	undisturbed(t, h, h.Modality, h.Archive, func() {
		if out, err = h.A.InstallJWS(t.Context(), jws); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		ends(t, h.A, "a-c")
	})
	cannotReach(t, h.Scanner, h.Centre)
	byHand := serial(t, h.A)

	after := lastAudit(t, h.A)
	undo()
	must(t, h.A.Daemon.Stop(10*time.Second), h.A.StartDaemon(t.Context())) // asks the centre at once
	must(t, lab.WaitFor(t.Context(), "A's report at the centre", arrival, func() error {
		d, err := h.SP.Device(t.Context(), h.A)
		if err == nil && (d.Report == nil || d.Report.PolicySerial != byHand) {
			err = fmt.Errorf("the centre was told %+v; want policy %d", d.Report, byHand)
		}
		return err
	}))
	if _, err := h.A.InstallJWS(t.Context(), old); err == nil || !strings.Contains(err.Error(), "policy-serial-older") {
		t.Errorf("the older policy by hand: %v; want it refused", err)
	}
	wantAudit(t, h.A, after, "policy-refused", "policy-serial-older")
	if now := serial(t, h.A); now != byHand {
		t.Errorf("policy %d is in force; want %d, which came by hand", now, byHand)
	}
	reaches(t, h.Modality, h.Archive)
}

// verifiedSerial is the serial of the policy file in a facility's state directory, which must be whole and
// signed; zero where there is none.
func verifiedSerial(f *lab.Facility) (uint64, error) {
	jws, err := os.ReadFile(f.PolicyFile())
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	anchors, err := f.PolicyAnchors()
	if err != nil {
		return 0, err
	}
	d, err := policy.Verify(jws, policy.VerifyOptions{Anchors: anchors, DeviceCertDER: f.DeviceCertificate(), Now: time.Now()})
	if err != nil {
		return 0, fmt.Errorf("%s, %s: %w", f.Title, f.PolicyFile(), err)
	}
	return d.Serial, nil
}

// What the disk has lost, the centre still has: a policy file that is gone, or not whole, is fetched again.
func TestLostPolicyIsFetchedAgain(t *testing.T) {
	t.Parallel()
	h := joined(t, "e2e-lost", nil)
	reaches(t, h.Modality, h.Archive)
	before := serial(t, h.B)
	for _, c := range []struct {
		what   string
		damage func(path string) error
	}{
		{"gone", os.Remove},
		{"cut in half", func(path string) error { return os.Truncate(path, 500) }},
		{"empty", func(path string) error { return os.Truncate(path, 0) }},
	} {
		must(t, h.B.Daemon.Stop(10*time.Second), c.damage(h.B.PolicyFile()), h.B.StartDaemon(t.Context()))
		latest(t, h, h.B)
		reaches(t, h.Modality, h.Archive)
		if now, err := verifiedSerial(h.B); err != nil || now != before {
			t.Errorf("%s: the policy's file has %d, %v; want %d", c.what, now, err, before)
		}
	}
}
