package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardgate/internal/lab"
	"wardgate/router/control"
)

const (
	sliceCount = 300
	idle       = 4 * time.Second // after which the demo's tunnels go away
	burst      = 40              // numbered datagrams; the first one wakes the tunnel
	burstGap   = 2 * time.Millisecond
	setupLimit = 10 * time.Second
)

func demoCommand() *cobra.Command {
	var (
		bin  string
		keep bool
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "From factory-fresh routers to the first image, in network namespaces (as root)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			ctx := cmd.Context()
			l, err := lab.New(ctx, lab.Options{Name: "demo", Bin: bin, Keep: keep})
			if err != nil {
				return err
			}
			d := &demo{out: os.Stdout, start: time.Now()}
			defer func() {
				d.step("Everything is torn down")
				if p := recover(); p != nil { // tear down first, whatever happened
					_ = l.Close()
					panic(p)
				}
				err = errors.Join(err, l.Close())
				if keep {
					d.say("logs, policies and audit records are kept in %s", l.Dir)
				}
				if err == nil {
					d.say("done in %.1f s", time.Since(d.start).Seconds())
				}
			}()
			return d.run(ctx, l)
		},
	}
	cmd.Flags().StringVar(&bin, "bin", "build/bin", "folder of wardgated, wardgate, wardgate-chip and wardgate-sp")
	cmd.Flags().BoolVar(&keep, "keep", false, "keep logs, policies and audit records")
	return cmd
}

// demo tells what it does as it does it.
type demo struct {
	out   io.Writer
	start time.Time
	n     int
	*lab.Hospital
}

// step prints a numbered heading with the time since the start.
func (d *demo) step(format string, args ...any) {
	d.n++
	fmt.Fprintf(d.out, "\n[%5.1f s] %d. %s\n", time.Since(d.start).Seconds(), d.n, fmt.Sprintf(format, args...))
}

// say prints a line below the heading.
func (d *demo) say(format string, args ...any) {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintf(d.out, "           %s\n", strings.TrimRight(line, "\n"))
	}
}

// run is the demo from the first namespace to the last tunnel. Whoever calls it tears down.
func (d *demo) run(ctx context.Context, l *lab.Lab) error {
	d.step("An internet, and three facilities on it")
	h, err := lab.NewHospital(ctx, l, idle)
	if err != nil {
		return err
	}
	d.Hospital = h
	for _, f := range h.Facilities() {
		var zones []string
		for _, z := range f.Zones {
			for name, host := range z.Hosts {
				zones = append(zones, fmt.Sprintf("%s %v with %q at %v", z.Level, z.Prefix, name, host.Addr))
			}
		}
		d.say("%-17s %-11v %s", f.Title, f.WAN, strings.Join(zones, "; "))
	}
	d.say("contracts: A and B in %s, A and C in %s; B and C have none", lab.GroupA, lab.GroupB)
	study := make(chan error, 1)
	go func() { study <- lab.CTSeries(ctx, l.Path("sent"), sliceCount) }() // made while the rest is set up

	d.step("The service provider's centre, and a token for each router as it comes from the factory")
	if err := h.FromCentre(ctx, nil); err != nil {
		return err
	}
	out, err := h.SP.SP(ctx, "device", "list")
	if err != nil {
		return err
	}
	d.say("wardgate-sp serves %s; its registry (`wardgate-sp device list`):", h.SP.URL())
	d.say("%s", out)
	if out, err = h.A.Wardgate(ctx, "token", "list", "--config", h.A.ConfigFile()); err != nil {
		return err
	}
	d.say("hospital A's token: a device key and certificate, nothing else (`wardgate token list`)")
	d.say("%s", out)

	d.step("The three routers start; they have no policy yet and let nothing through")
	wire, err := l.Capture(ctx, h.Internet.Netns, "internet", lab.InternetDev)
	if err != nil {
		return err
	}
	if err := h.Start(ctx); err != nil {
		return err
	}
	if err := d.join(ctx); err != nil {
		return err
	}
	if err := d.firstPacket(ctx); err != nil {
		return err
	}
	if err := <-study; err != nil {
		return fmt.Errorf("the study could not be made: %w", err)
	}
	if err := d.sendStudy(ctx); err != nil {
		return err
	}
	if err := d.onTheWire(wire); err != nil {
		return err
	}
	if err := d.relay(ctx); err != nil {
		return err
	}
	if err := d.status(ctx); err != nil {
		return err
	}
	if err := d.goAway(ctx); err != nil {
		return err
	}
	// From here on nobody sends anything in the clear on purpose, as the attacks did.
	if wire, err = l.Capture(ctx, h.Internet.Netns, "internet-after", lab.InternetDev); err != nil {
		return err
	}
	if err := d.move(ctx); err != nil {
		return err
	}
	if err := d.revoke(ctx); err != nil {
		return err
	}
	return d.onTheWire(wire)
}

// firstPacket shows that the first packet of a flow makes its tunnel, how long that takes, and
// that none is lost.
func (d *demo) firstPacket(ctx context.Context) error {
	d.step("On demand: the first packet makes the tunnel, and no packet is lost")
	for _, c := range []struct {
		from, to *lab.Host
		peer     *lab.Facility
		conn     string
		text     string
	}{
		{d.Modality, d.Archive, d.B, "a-b", "B's modality to A's archive"},
		{d.Scanner, d.Centre, d.A, "a-c", "A's scanner to C's centre"},
	} {
		conn, err := c.peer.Connection(ctx, c.conn)
		if err != nil {
			return err
		}
		if conn.State != control.ConnIdle {
			return fmt.Errorf("connection %s of %s is %s before its first packet; want idle", c.conn, c.peer.Title, conn.State)
		}
		echo, err := c.to.EchoUDP(addrPort(c.to, lab.EchoPort))
		if err != nil {
			return err
		}
		r, err := c.from.Burst(ctx, c.from.Addr, addrPort(c.to, lab.EchoPort), burst, burstGap, setupLimit)
		echo.Close()
		if err != nil {
			return err
		}
		if len(r.Missing) > 0 {
			return fmt.Errorf("%s: %d of %d numbered datagrams were lost: %v\n%s", c.text, len(r.Missing), burst, r.Missing, c.peer.Daemon.Tail(15))
		}
		if conn, err = c.peer.Connection(ctx, c.conn); err != nil {
			return err
		}
		d.say("%-28s first packet to first reply: %.1f ms (two certificates each way, keys on SoftHSM tokens)", c.text, float64(r.First.Microseconds())/1000)
		d.say("%-28s %d of %d numbered datagrams answered; %s, ESP %s", "", r.Received, r.Sent, conn.Suite, conn.ESPSuite)
	}
	d.say("waiting until both tunnels have gone away again, so that the study starts without one")
	return d.noTunnels(ctx)
}

// sendStudy sends the DICOM study over a tunnel that does not exist before.
func (d *demo) sendStudy(ctx context.Context) error {
	d.step("B's modality sends a CT study of %d slices to A's archive", sliceCount)
	if _, err := d.StartStoreSCP(ctx, d.Archive.Netns, "storescp", lab.ArchiveAE, d.Path("received"), lab.DICOMPort); err != nil {
		return err
	}
	start := time.Now()
	if err := d.Modality.SendStudy(ctx, d.Path("sent"), lab.ArchiveAE, d.Archive.Addr.String(), lab.DICOMPort); err != nil {
		return fmt.Errorf("%w\n%s", err, d.B.Daemon.Tail(15))
	}
	took := time.Since(start)
	c, err := lab.CompareStudies(d.Path("sent"), d.Path("received"))
	if err != nil {
		return err
	}
	if c.Images != sliceCount {
		return fmt.Errorf("%d images compared; want %d", c.Images, sliceCount)
	}
	d.say("sent with storescu in %.2f s, set-up of the tunnel included", took.Seconds())
	d.say("compared: %d images received, %d sent; %d bytes of pixel data, all equal", c.Images, sliceCount, c.Bytes)
	return nil
}

// status prints the state of the three routers as their operators see it.
func (d *demo) status(ctx context.Context) error {
	for _, f := range d.Facilities() {
		d.step("Status of %s (`wardgate status`)", f.Title)
		out, err := f.Wardgate(ctx, "status")
		if err != nil {
			return err
		}
		d.say("%s", out)
	}
	return nil
}

// goAway shows that idle tunnels go away.
func (d *demo) goAway(ctx context.Context) error {
	d.step("The tunnels go away when they are idle for %v", idle)
	if err := d.noTunnels(ctx); err != nil {
		return err
	}
	for _, f := range d.Facilities() {
		d.say("%-17s no tunnel", f.Title)
	}
	return nil
}

// noTunnels waits until there are none.
func (d *demo) noTunnels(ctx context.Context) error {
	for _, f := range d.Facilities() {
		s, err := f.Status(ctx)
		if err != nil {
			return err
		}
		for _, c := range s.Connections {
			if err := f.WaitState(ctx, c.Name, control.ConnIdle, idle+10*time.Second); err != nil {
				return err
			}
		}
	}
	return nil
}

// onTheWire ends a capture of the internet and shows that nothing went over it in the clear.
func (d *demo) onTheWire(wire *lab.Capture) error {
	if err := wire.Stop(); err != nil {
		return err
	}
	w, err := wire.Wire(lab.Private...)
	if err != nil {
		return err
	}
	d.say("seen on the internet until now: %d packets, of them %d of IKE, %d of ESP, %d in the clear", w.Packets, w.IKE, w.ESP, len(w.Clear))
	if len(w.Clear) > 0 {
		return fmt.Errorf("%d packets went over the internet in the clear, such as %s", len(w.Clear), w.Clear[0])
	}
	return nil
}

func addrPort(h *lab.Host, port uint16) netip.AddrPort { return netip.AddrPortFrom(h.Addr, port) }
