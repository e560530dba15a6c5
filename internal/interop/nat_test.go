package interop

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wardgate/ike"
)

// TestStrongSwanNAT: a NAT between the two, which one of them is behind. Where that one initiates, the NAT
// changes the ports in the middle of it, as one does that was restarted: data goes on, with MOBIKE and
// without it. Where the other one initiates, the NAT's own ports lead inside.
func TestStrongSwanNAT(t *testing.T) {
	versions(t, func(t *testing.T, o sceneOptions) {
		for _, inside := range []behind{we, they} {
			for _, weInitiate := range []bool{true, false} {
				for _, mobike := range []bool{false, true} {
					name := map[behind]string{we: "we are behind it", they: "strongSwan is behind it"}[inside] +
						map[bool]string{true: ", we initiate", false: ", strongSwan initiates"}[weInitiate] + map[bool]string{true: ", MOBIKE"}[mobike]
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						testNAT(t, o, inside, weInitiate, mobike)
					})
				}
			}
		}
	})
}

func testNAT(t *testing.T, o sceneOptions, inside behind, weInitiate, mobike bool) {
	t.Helper()
	forward := weInitiate != (inside == we)
	o.way.nat, o.mobike = inside, mobike
	// Who is behind the NAT finds out by itself that nothing comes in any more.
	o.more, o.charon = "dpd_delay = 2s", "keep_alive = 1s\n"
	o.peer = func(c *ike.PeerConfig) {
		c.Mobike, c.KeepaliveInterval = mobike, time.Second
		if inside == we {
			c.LivenessInterval = 2 * time.Second
		}
	}
	sc := newScene(t, o)
	sc.d.ep.AddressChanged([]netip.Addr{sc.w.our})
	sc.w.translate(10_000, forward)
	sc.connect(t, weInitiate)
	i, _ := sc.d.only()
	// strongSwan with ESP in user space claims a NAT of its own in any case.
	if i.NATLocal != (inside == we) || !i.NATRemote || !i.Path.Encap {
		t.Errorf("NAT in front of us %v, of strongSwan %v, path %v", i.NATLocal, i.NATRemote, i.Path)
	}
	if n := sc.ss.said("remote host is behind NAT"); (n > 0) != (inside == we) {
		t.Errorf("strongSwan says %d times that we are behind a NAT", n)
	}
	sc.seenAt(t, inside, 14_500, forward)
	sc.d.wait("a keepalive", func() bool { return sc.w.keepalives() > 0 })
	if inside == they && mobike && !forward {
		// strongSwan learns what the NAT makes of it by its first question after the set-up, and notices
		// changes from then on (RFC 4555, section 3.8, has no packet's source move it).
		sc.d.wait("strongSwan to ask", func() bool { return sc.ss.said("sending DPD request") > 0 })
	}
	f := sc.flow(t, false)
	f.both("before")
	if !forward {
		sc.w.translate(20_000, false)
		sc.seenAt(t, inside, 24_500, false)
		f.both("with other ports")
	}
	f.stop(t)
	sc.life(t, weInitiate)
}

// seenAt waits until the one outside has the one inside at the NAT's address and one of ten ports, or at
// port 4500 where the NAT's ports lead inside.
func (sc *scene) seenAt(t *testing.T, inside behind, port uint16, forward bool) {
	t.Helper()
	in := func(p uint16) bool { return forward && p == 4500 || !forward && p >= port && p < port+10 }
	sc.d.wait(fmt.Sprintf("port %d of the NAT", port), func() bool {
		if inside == they {
			s := sc.d.ep.Snapshot()
			return len(s) == 1 && s[0].Path.Remote.Addr() == sc.w.outside && in(s[0].Path.Remote.Port())
		}
		out, err := sc.ss.try("--list-sas")
		_, at, ok := strings.Cut(out, "@ "+sc.w.outside.String()+"[")
		var p uint16
		_, serr := fmt.Sscanf(at, "%d]", &p)
		return err == nil && ok && serr == nil && in(p)
	})
}
