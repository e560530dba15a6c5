package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sort"
	"strings"
	"time"

	"wardgate/internal/lab"
	"wardgate/router/control"
)

// attempt is one way by which B could try to reach C through A.
type attempt struct {
	title string
	// setup is what has been configured wrongly, or on purpose; undo takes it back.
	setup, undo func() error
	// sender is where the packets come from; nil: B's modality. from is the source address
	// that it uses; to is what it aims at.
	sender *lab.Netns
	from   netip.Addr
	to     netip.AddrPort
	// harmless: the attempt has no effect, instead of being refused: the packets go where the
	// contract says, to A's archive.
	harmless bool
}

// relay tries to reach C from B through A in every way that we could think of. Nothing of it may
// arrive, and the refusals are in the routers' own records.
func (d *demo) relay(ctx context.Context) error {
	d.step("B tries to reach C through A; nothing may arrive, and every refusal is on record")
	centre := addrPort(d.Centre, lab.EchoPort)
	echo, err := d.Centre.EchoUDP(centre)
	if err != nil {
		return err
	}
	defer echo.Close()
	archiveEcho, err := d.Archive.EchoUDP(addrPort(d.Archive, lab.EchoPort))
	if err != nil {
		return err
	}
	defer archiveEcho.Close()

	d.say("before each attempt both tunnels, A-B and A-C, are up; forwarding is on in A's kernel")
	for i, a := range d.attempts() {
		if err := d.try(ctx, i+1, a, echo, archiveEcho); err != nil {
			return fmt.Errorf("relay attempt %d (%s): %w", i+1, a.title, err)
		}
	}
	return d.tail(ctx)
}

func (d *demo) attempts() []attempt {
	centre := addrPort(d.Centre, lab.EchoPort)
	archive := addrPort(d.Archive, lab.EchoPort)
	modality := d.Modality.Addr
	lanC := d.Centre.Zone.Prefix.String()
	tun := lab.TunDev
	// admin is a table of A's administrator; its chains run before the product's own.
	admin := func(chains string) (setup, undo func() error) {
		return func() error { return d.A.Router.Nft("table ip admin {\n" + chains + "\n}\n") },
			func() error { return d.A.Router.Nft("delete table ip admin\n") }
	}
	on := func(n *lab.Netns, args ...string) func() error {
		return func() error { return n.IP(args...) }
	}
	both := func(fs ...func() error) func() error {
		return func() error {
			var errs []error
			for _, f := range fs {
				errs = append(errs, f())
			}
			return errors.Join(errs...)
		}
	}
	dnat := fmt.Sprintf(` chain pre {
  type nat hook prerouting priority dstnat;
  ip daddr %v udp dport %d dnat to %v
 }
`, archive.Addr(), archive.Port(), centre)
	// Stateless rewriting needs no connection tracking, so taking VPN traffic out of tracking does not stop it.
	rewrite := fmt.Sprintf(` chain pre {
  type filter hook prerouting priority -450;
  iifname %q ip daddr %v udp dport %d ip daddr set %v
 }
`, tun, archive.Addr(), archive.Port(), centre.Addr())

	var list []attempt
	add := func(a attempt) { list = append(list, a) }

	add(attempt{title: "B's modality just sends to C", from: modality, to: centre})

	add(attempt{
		title: "B's administrator routes C's network into the tunnel device",
		setup: on(d.B.Router, "route", "add", lanC, "dev", tun),
		undo:  on(d.B.Router, "route", "del", lanC, "dev", tun),
		from:  modality, to: centre,
	})

	spoofArchive := d.Archive.Addr
	add(attempt{
		title: "the same, and B's modality uses the source address of A's archive",
		setup: both(on(d.B.Router, "route", "add", lanC, "dev", tun), on(d.Modality.Netns, "addr", "add", spoofArchive.String()+"/32", "dev", "lo")),
		undo:  both(on(d.B.Router, "route", "del", lanC, "dev", tun), on(d.Modality.Netns, "addr", "del", spoofArchive.String()+"/32", "dev", "lo")),
		from:  spoofArchive, to: centre,
	})

	viaA := []string{"route", "add", lanC, "via", d.A.WAN.String(), "dev", lab.WANDev}
	noViaA := []string{"route", "del", lanC, "via", d.A.WAN.String(), "dev", lab.WANDev}
	add(attempt{
		title: "B's router hands packets to A's internet address, in the clear",
		setup: on(d.B.Router, viaA...), undo: on(d.B.Router, noViaA...),
		sender: d.B.Router, from: d.Modality.Zone.Gateway, to: centre,
	})
	spoofScanner := d.Scanner.Addr
	add(attempt{
		title:  "the same, with the source address of A's scanner, which may talk to C",
		setup:  both(on(d.B.Router, viaA...), on(d.B.Router, "addr", "add", spoofScanner.String()+"/32", "dev", "lo")),
		undo:   both(on(d.B.Router, noViaA...), on(d.B.Router, "addr", "del", spoofScanner.String()+"/32", "dev", "lo")),
		sender: d.B.Router, from: spoofScanner, to: centre,
	})
	add(attempt{
		title: "the same, with B's internet address as the source, as masquerading would do",
		setup: on(d.B.Router, viaA...), undo: on(d.B.Router, noViaA...),
		sender: d.B.Router, from: d.B.WAN, to: centre,
	})

	setup, undo := admin(dnat)
	add(attempt{title: "A's administrator translates the archive's address to C's (DNAT)", setup: setup, undo: undo, from: modality, to: archive, harmless: true})
	setup, undo = admin(dnat + " chain post {\n  type nat hook postrouting priority srcnat;\n  masquerade\n }\n")
	add(attempt{title: "the same, and A masquerades everything", setup: setup, undo: undo, from: modality, to: archive, harmless: true})
	setup, undo = admin(dnat + fmt.Sprintf(" chain post {\n  type nat hook postrouting priority srcnat;\n  snat to %v\n }\n", d.Scanner.Addr))
	add(attempt{title: "the same, with A's scanner as the translated source", setup: setup, undo: undo, from: modality, to: archive, harmless: true})
	setup, undo = admin(rewrite)
	add(attempt{title: "A rewrites the destination without connection tracking", setup: setup, undo: undo, from: modality, to: archive})
	setup, undo = admin(strings.Replace(rewrite, "ip daddr set", fmt.Sprintf("ip saddr set %v ip daddr set", d.Scanner.Addr), 1))
	add(attempt{title: "the same, and the source becomes A's scanner", setup: setup, undo: undo, from: modality, to: archive})
	setup, undo = admin(rewrite + fmt.Sprintf(" chain post {\n  type filter hook postrouting priority 450;\n  ip daddr %v ip saddr set %v\n }\n", centre.Addr(), d.Scanner.Addr))
	add(attempt{title: "the same, on the way out", setup: setup, undo: undo, from: modality, to: archive})

	add(attempt{
		title: "A's archive passes on what B sends it (routing in the LAN)",
		setup: both(
			func() error { return d.Archive.Sysctl("net.ipv4.ip_forward=1") },
			func() error {
				return d.Archive.Nft("table ip admin {\n chain pre {\n  type filter hook prerouting priority -450;\n  udp dport 7007 ip daddr set " + centre.Addr().String() + "\n }\n}\n")
			}),
		undo: func() error { return d.Archive.Nft("delete table ip admin\n") },
		from: modality, to: archive,
	})
	add(attempt{
		title: "the same, and the archive masquerades, so that A's own host seems to ask C",
		setup: func() error {
			return d.Archive.Nft("table ip admin {\n chain pre {\n  type nat hook prerouting priority dstnat;\n  udp dport 7007 dnat to " + centre.Addr().String() +
				"\n }\n chain post {\n  type nat hook postrouting priority srcnat;\n  masquerade\n }\n}\n")
		},
		undo: func() error { return d.Archive.Nft("delete table ip admin\n") },
		from: modality, to: archive,
	})
	add(attempt{
		title: "the same, but with the source address of the scanner, which may talk to C",
		setup: func() error {
			return d.Archive.Nft("table ip admin {\n chain pre {\n  type nat hook prerouting priority dstnat;\n  udp dport 7007 dnat to " + centre.Addr().String() +
				"\n }\n chain post {\n  type nat hook postrouting priority srcnat;\n  snat to " + d.Scanner.Addr.String() + "\n }\n}\n")
		},
		undo: func() error { return d.Archive.Nft("delete table ip admin\n") },
		from: modality, to: archive,
	})
	return list
}

// snapshot is what the routers have on record at one time.
type snapshot struct {
	refused map[string]uint64 // facility, where, reason → packets
	text    map[string]string
	intoC   uint64 // packets that came to C through its tunnel
	centre  uint64 // IP packets that C's centre has received
}

func (d *demo) look(ctx context.Context) (snapshot, error) {
	s := snapshot{refused: map[string]uint64{}, text: map[string]string{}}
	for _, f := range d.Facilities() {
		st, err := f.Status(ctx)
		if err != nil {
			return s, err
		}
		for _, r := range st.Refused {
			key := fmt.Sprintf("%s: %s, %s", f.Title, r.Where, r.Reason)
			s.refused[key] += r.Packets
			s.text[key] = r.Text
			if r.Example != "" {
				s.text[key] = strings.TrimPrefix(r.Text+", such as "+r.Example, ", ")
			}
		}
		if f == d.C {
			s.intoC = st.Traffic.PacketsIn + st.Traffic.DroppedIn
		}
	}
	var err error
	s.centre, err = d.Centre.IPReceived()
	return s, err
}

// try carries out one attempt and judges it.
func (d *demo) try(ctx context.Context, i int, a attempt, centre, archive *lab.EchoServer) (err error) {
	// What the contracts allow still works: the tunnels are there to be abused.
	for _, allowed := range []struct {
		from *lab.Host
		to   *lab.Host
	}{{d.Modality, d.Archive}, {d.Scanner, d.Centre}} {
		r, err := allowed.from.Burst(ctx, allowed.from.Addr, addrPort(allowed.to, lab.EchoPort), 1, burstGap, setupLimit)
		if err != nil {
			return err
		}
		if r.Received != 1 {
			return fmt.Errorf("what the contract allows, from %v to %v, does not arrive any more", allowed.from.Addr, allowed.to.Addr)
		}
	}
	before, err := d.look(ctx)
	if err != nil {
		return err
	}
	seenC, seenA := centre.Total(), archive.Total()
	if a.setup != nil {
		if err := a.setup(); err != nil {
			return err
		}
	}
	sender := a.sender
	if sender == nil {
		sender = d.Modality.Netns
	}
	r, err := sender.Burst(ctx, a.from, a.to, 3, burstGap, 150*time.Millisecond)
	if a.undo != nil {
		err = errors.Join(err, a.undo())
	}
	if err != nil {
		return err
	}
	var after snapshot
	var news []string
	look := func() error {
		if after, err = d.look(ctx); err != nil {
			return err
		}
		news = news[:0]
		for key, n := range after.refused {
			if n > before.refused[key] {
				news = append(news, strings.TrimSuffix(fmt.Sprintf("%s (%d): %s", key, n-before.refused[key], after.text[key]), ": "))
			}
		}
		if len(news) == 0 && !a.harmless {
			return errors.New("no router has a refusal on record")
		}
		return nil
	}
	if err := lab.WaitFor(ctx, "the refusal", 10*time.Second, look); err != nil {
		return err
	}
	sort.Strings(news)
	switch {
	case centre.Total() != seenC || after.centre != before.centre:
		return fmt.Errorf("%d packets arrived at C's centre", after.centre-before.centre)
	case after.intoC != before.intoC:
		return fmt.Errorf("%d packets came to C through its tunnel with A", after.intoC-before.intoC)
	case a.harmless && archive.Total()-seenA != r.Sent:
		return fmt.Errorf("%d of %d datagrams arrived at A's archive; the translation was to have no effect", archive.Total()-seenA, r.Sent)
	}
	d.say("%2d. %s", i, a.title)
	if a.harmless {
		d.say("      no effect: the %d packets went to A's archive, as the contract says; none arrived at C", r.Sent)
		return nil
	}
	d.say("      %d packets sent, none arrived at C; on record:", r.Sent)
	for _, n := range news {
		d.say("      %s", n)
	}
	return nil
}

// tail prints the newest audit records of A and B, as the operator sees them.
func (d *demo) tail(ctx context.Context) error {
	for _, f := range []*lab.Facility{d.B, d.A} {
		out, err := f.Wardgate(ctx, "audit", "tail", "-n", "6")
		if err != nil {
			return err
		}
		d.say("the end of %s's audit record (`wardgate audit tail`):", f.Title)
		d.say("%s", out)
		s, err := f.Connection(ctx, "a-b")
		if err != nil {
			return err
		}
		if s.State != control.ConnUp {
			return fmt.Errorf("connection a-b of %s is %s after the attempts; want up: an attack must not end a tunnel", f.Title, s.State)
		}
	}
	return nil
}
