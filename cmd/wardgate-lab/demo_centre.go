package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"wardgate/internal/lab"
	"wardgate/router/control"
)

const (
	streamGap   = 5 * time.Millisecond
	changeLimit = 30 * time.Second // a change that has not arrived by then never will
	revokeLimit = 5 * time.Second  // for the tunnels of a revoked device to be down
)

// join takes the three routers from their device certificates to certificates and policies.
func (d *demo) join(ctx context.Context) error {
	d.step("`wardgate join`: from a device certificate to service certificates and a policy, over the network")
	start := time.Now()
	all, err := d.Join(ctx)
	if err != nil {
		return err
	}
	took := time.Since(start)
	d.say("hospital A (`wardgate join %s`):", d.SP.URL())
	d.say("%s", all[d.A].Said)
	for _, f := range d.Facilities() {
		s, err := f.Status(ctx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(s.Connections, func(c control.Connection) bool { return c.State == control.ConnUp }) {
			return fmt.Errorf("%s has joined, and no connection is up:\n%s", f.Title, all[f].Said)
		}
		d.say("%-17s policy %d, valid until %s; from `wardgate join` to the first tunnel: %.2f s", f.Title, s.Policy.Serial, s.Policy.NotAfter.Format("2 Jan 2006 15:04"), all[f].Took.Seconds())
	}
	d.say("all three, at the same time: %.2f s; no hand was laid on a router, and no key left its token", took.Seconds())
	d.say("waiting until the tunnels have gone away again, so that the next step starts without one")
	return d.noTunnels(ctx)
}

// move changes the registry while everything runs: B leaves group A for group B.
func (d *demo) move(ctx context.Context) error {
	d.step("While everything runs, the service provider moves clinic B from %s to %s", lab.GroupA, lab.GroupB)
	centre, archive := addrPort(d.Centre, lab.EchoPort), addrPort(d.Archive, lab.EchoPort)
	for _, h := range []*lab.Host{d.Centre, d.Archive} {
		echo, err := h.EchoUDP(addrPort(h, lab.EchoPort))
		if err != nil {
			return err
		}
		defer echo.Close()
	}
	r, err := d.Modality.Burst(ctx, d.Modality.Addr, archive, 1, burstGap, setupLimit)
	if err != nil {
		return err
	}
	if r.Received != 1 {
		return errors.New("before the change B's modality does not reach A's archive")
	}
	stream, err := d.Scanner.Stream(d.Scanner.Addr, centre, streamGap)
	if err != nil {
		return err
	}
	defer stream.Stop(0)
	if err := d.A.WaitState(ctx, "a-c", control.ConnUp, setupLimit); err != nil {
		return err
	}
	d.say("B reaches A; a stream of datagrams runs between A and C")

	if err := d.Moved().Write(d.SP.Folder); err != nil {
		return err
	}
	out, err := d.SP.SP(ctx, "plan", d.SP.Folder)
	if err != nil {
		return err
	}
	d.say("the registry's files are edited; `wardgate-sp plan` says:")
	d.say("%s", out)
	start := time.Now()
	if out, err = d.SP.SP(ctx, "apply", d.SP.Folder, "--why", "clinic B joins the maintenance group"); err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	d.say("`wardgate-sp apply`: %s", lines[len(lines)-1])
	if err := lab.WaitFor(ctx, "B's new policy", changeLimit, func() error {
		_, err := d.B.Connection(ctx, "b-c")
		return err
	}); err != nil {
		return err
	}
	d.say("from the command to B's new policy in force: %.2f s", time.Since(start).Seconds())
	if err := lab.WaitFor(ctx, "B's modality to reach C's centre", changeLimit, func() error {
		r, err := d.Modality.Burst(ctx, d.Modality.Addr, centre, 1, burstGap, 250*time.Millisecond)
		if err == nil && r.Received != 1 {
			err = errors.New("no answer")
		}
		return err
	}); err != nil {
		return fmt.Errorf("%w\n%s", err, d.B.Daemon.Tail(15))
	}
	d.say("B now reaches C: first reply %.2f s after the command, with a certificate of %s that it did not have before", time.Since(start).Seconds(), lab.GroupB)

	if r, err = d.Modality.Burst(ctx, d.Modality.Addr, archive, 3, burstGap, 300*time.Millisecond); err != nil {
		return err
	}
	if r.Received > 0 {
		return fmt.Errorf("%d of %d datagrams of B's modality are still answered by A's archive", r.Received, r.Sent)
	}
	_, err = d.B.Wardgate(ctx, "explain", "--from", d.Modality.Addr.String(), "--to", d.Archive.Addr.String(), "--protocol", "udp", "--port", fmt.Sprint(lab.EchoPort))
	if err == nil {
		return errors.New("after the change B's policy still allows what goes to A")
	}
	d.say("B no longer reaches A: %d datagrams sent, none answered; `wardgate explain` at B:", r.Sent)
	_, why, _ := strings.Cut(err.Error(), "exit status")
	_, why, _ = strings.Cut(why, ":")
	d.say("%s", strings.TrimSpace(why))
	s := stream.Stop(time.Second)
	if len(s.Missing) > 0 {
		return fmt.Errorf("between A and C %d of %d datagrams were lost during the change: %v", len(s.Missing), s.Sent, s.Missing)
	}
	d.say("between A and C meanwhile: %d of %d datagrams answered", s.Received, s.Sent)
	return nil
}

// revoke shuts a device out.
func (d *demo) revoke(ctx context.Context) error {
	d.step("C's router is stolen: the service provider revokes it")
	centre := addrPort(d.Centre, lab.EchoPort)
	echo, err := d.Centre.EchoUDP(centre)
	if err != nil {
		return err
	}
	defer echo.Close()
	type tunnel struct {
		peer   *lab.Facility
		conn   string
		stream *lab.Stream
		down   time.Duration
	}
	tunnels := []*tunnel{{peer: d.A, conn: "a-c"}, {peer: d.B, conn: "b-c"}}
	for i, from := range []*lab.Host{d.Scanner, d.Modality} {
		t := tunnels[i]
		if t.stream, err = from.Stream(from.Addr, centre, streamGap); err != nil {
			return err
		}
		defer t.stream.Stop(0)
		if err := t.peer.WaitState(ctx, t.conn, control.ConnUp, setupLimit); err != nil {
			return err
		}
	}
	start := time.Now()
	out, err := d.SP.SP(ctx, "device", "revoke", d.C.DeviceID, "--reason", "stolen", "--why", "reported by the member")
	if err != nil {
		return err
	}
	d.say("`wardgate-sp device revoke %s`: %s", d.C.DeviceID, strings.TrimSpace(out))
	if err := lab.WaitFor(ctx, "C's tunnels to be down", changeLimit, func() error {
		for _, t := range tunnels {
			if t.down > 0 {
				continue
			}
			s, err := t.peer.Status(ctx)
			if err != nil {
				return err
			}
			for _, c := range s.Connections {
				if c.Name == t.conn && c.State == control.ConnUp {
					return fmt.Errorf("%s of %s is up", t.conn, t.peer.Title)
				}
			}
			t.down = time.Since(start)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, t := range tunnels {
		last := t.stream.LastAnswer()
		s := t.stream.Stop(300 * time.Millisecond)
		if now := t.stream.LastAnswer(); now.Sub(last) > time.Second {
			return fmt.Errorf("%s of %s is down, and datagrams are still answered", t.conn, t.peer.Title)
		}
		d.say("%-17s %s is down %.2f s after the command; %d of %d datagrams were answered until then", t.peer.Title, t.conn, t.down.Seconds(), s.Received, s.Sent)
		if t.down > revokeLimit {
			return fmt.Errorf("%s of %s was down %.2f s after the device was revoked; want at most %v", t.conn, t.peer.Title, t.down.Seconds(), revokeLimit)
		}
	}
	for _, from := range []*lab.Host{d.Scanner, d.Modality} {
		r, err := from.Burst(ctx, from.Addr, centre, 3, burstGap, 300*time.Millisecond)
		if err != nil {
			return err
		}
		if r.Received > 0 {
			return fmt.Errorf("%d of %d datagrams from %v to the revoked facility are answered", r.Received, r.Sent, from.Addr)
		}
	}
	d.say("neither A nor B reaches C any more; new connections are not made")
	said, err := d.C.Join(ctx, "--wait", "0s")
	if err == nil {
		return fmt.Errorf("the revoked router has joined again:\n%s", said)
	}
	d.say("whoever has C's router now tries `wardgate join`:")
	d.say("%s", said)
	return nil
}
