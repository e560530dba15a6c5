package e2e

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"wardgate/internal/lab"
	"wardgate/router/control"
)

func addrPort(h *lab.Host, port uint16) netip.AddrPort { return netip.AddrPortFrom(h.Addr, port) }

// DEM-2: a tunnel comes up with its first packet, which is not lost, and goes away when idle;
// from either side, any number of times.
func TestOnDemand(t *testing.T) {
	t.Parallel()
	const idle = 3 * time.Second
	h := hospital(t, "e2e-demand", func(h *lab.Hospital) { h.AB.Idle, h.AC.Idle = idle, idle })
	wire, err := h.Capture(t.Context(), h.Internet.Netns, "wire", lab.InternetDev)
	must(t, err)

	for round := range 2 {
		r := burst(t, h.Modality, h.Archive, 50, time.Millisecond)
		t.Logf("round %d, B to A: first packet to first reply %v", round, r.First)
		r = burst(t, h.Scanner, h.Centre, 50, time.Millisecond)
		t.Logf("round %d, A to C: first packet to first reply %v", round, r.First)
		for _, f := range h.Facilities() {
			s, err := f.Status(t.Context())
			must(t, err)
			for _, c := range s.Connections {
				if c.State != control.ConnUp || c.Traffic.PacketsIn == 0 || c.Traffic.PacketsOut == 0 {
					t.Errorf("%s, %s: %s, %+v; want up, with traffic both ways", f.Title, c.Name, c.State, c.Traffic)
				}
			}
		}
		for _, f := range h.Facilities() {
			for _, c := range h.Contracts() {
				if _, err := f.Connection(t.Context(), c.Name); err == nil {
					must(t, f.WaitState(t.Context(), c.Name, control.ConnIdle, idle+10*time.Second))
				}
			}
		}
	}

	// The other way round: A's archive pings B's modality, one packet, on an idle connection.
	out, err := h.Archive.Run(t.Context(), "ping", "-c", "1", "-W", "5", h.Modality.Addr.String())
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}

	must(t, wire.Stop())
	w, err := wire.Wire(lab.Private...)
	must(t, err)
	if w.ESP == 0 || w.IKE == 0 || len(w.Clear) > 0 {
		t.Errorf("on the internet: %d packets, %d of IKE, %d of ESP, in the clear: %v", w.Packets, w.IKE, w.ESP, w.Clear)
	}
	for _, f := range h.Facilities() {
		rss, err := f.Daemon.RSS()
		must(t, err)
		t.Logf("%s: wardgated has %d MiB resident", f.Title, rss>>20)
		if rss > 40<<20 {
			t.Errorf("%s: wardgated has %d MiB resident; want at most 40", f.Title, rss>>20)
		}
	}
}

// What the contract does not name does not pass, and is on record; the operator can ask why.
func TestOnlyWhatTheContractNames(t *testing.T) {
	t.Parallel()
	h := hospital(t, "e2e-deny", nil)
	burst(t, h.Modality, h.Archive, 3, time.Millisecond) // the tunnel is up

	for _, c := range []struct {
		name     string
		from, to *lab.Host
		port     uint16
		where    *lab.Facility
	}{
		{"a port that is not named", h.Modality, h.Archive, lab.EchoPort + 1, h.B},
		{"a host that is not named", h.Modality, h.Scanner, lab.EchoPort, h.B},
		{"the direction that is not named", h.Archive, h.Modality, lab.EchoPort, h.A},
		{"a facility without a contract", h.Modality, h.Centre, lab.EchoPort, h.B},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			echo, err := c.to.EchoUDP(addrPort(c.to, c.port))
			must(t, err)
			defer echo.Close()
			r, err := c.from.Burst(t.Context(), c.from.Addr, addrPort(c.to, c.port), 3, time.Millisecond, 300*time.Millisecond)
			must(t, err)
			if r.Received != 0 || echo.Total() != 0 {
				t.Errorf("%d datagrams arrived", echo.Total())
			}
			out, err := c.where.Wardgate(t.Context(), "explain", "--from", c.from.Addr.String(), "--to", c.to.Addr.String(), "--protocol", "udp", "--port", strconv.Itoa(int(c.port)))
			if err == nil || !strings.Contains(err.Error(), "DENIED") {
				t.Errorf("explain: %v\n%s", err, out)
			}
		})
	}
}

// RES-2: after a crash, a restart, or a reboot of the peer the tunnel comes back by itself; and
// ZONE-8: while the daemon is dead nothing leaves in the clear.
func TestCrashLeaksNothingAndRestartHeals(t *testing.T) {
	t.Parallel()
	h := hospital(t, "e2e-crash", nil)
	burst(t, h.Modality, h.Archive, 3, time.Millisecond)
	for _, how := range []string{"killed", "stopped"} {
		wire, err := h.Capture(t.Context(), h.Internet.Netns, "wire-"+how, lab.InternetDev)
		must(t, err)
		if how == "killed" {
			h.A.Daemon.Kill()
		} else {
			must(t, h.A.Daemon.Stop(10*time.Second))
		}
		// Hosts on both sides go on sending; so does A's own scanner, to the other facility.
		for _, s := range []struct{ from, to *lab.Host }{{h.Archive, h.Modality}, {h.Scanner, h.Centre}, {h.Modality, h.Archive}} {
			r, err := s.from.Burst(t.Context(), s.from.Addr, addrPort(s.to, lab.EchoPort), 20, time.Millisecond, 200*time.Millisecond)
			must(t, err)
			if r.Received != 0 {
				t.Errorf("%s: %d answers through a router whose daemon is dead", how, r.Received)
			}
		}
		must(t, wire.Stop())
		w, err := wire.Wire(lab.Private...)
		must(t, err)
		if len(w.Clear) > 0 {
			t.Errorf("%s: %d packets left in the clear, such as %s", how, len(w.Clear), w.Clear[0])
		}
		must(t, h.A.StartDaemon(t.Context()))
		// A lost its state. Its own traffic makes a new tunnel, and B takes it.
		out, err := h.Archive.Run(t.Context(), "ping", "-c", "1", "-W", "10", h.Modality.Addr.String())
		if err != nil {
			t.Errorf("%s, then started again: %v\n%s", how, err, out)
		}
		burst(t, h.Modality, h.Archive, 10, time.Millisecond)
	}
}

// Up and down by hand.
func TestUpAndDown(t *testing.T) {
	t.Parallel()
	h := hospital(t, "e2e-updown", nil)
	out, err := h.B.Wardgate(t.Context(), "up", "a-b")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, f := range []*lab.Facility{h.A, h.B} {
		must(t, f.WaitState(t.Context(), "a-b", control.ConnUp, 5*time.Second))
	}
	if out, err = h.A.Wardgate(t.Context(), "down", "a-b"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, f := range []*lab.Facility{h.A, h.B} {
		must(t, f.WaitState(t.Context(), "a-b", control.ConnIdle, 5*time.Second))
	}
	if out, err = h.A.Wardgate(t.Context(), "up", "no-such"); err == nil || !strings.Contains(err.Error(), "no-such") {
		t.Errorf("up of a connection that does not exist: %v\n%s", err, out)
	}
}
