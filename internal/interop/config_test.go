package interop

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"wardgate/ike"
	"wardgate/internal/labca"
)

// The configuration payload with strongSwan's `pools` and `vips`, with one round of authentication and
// with two.
var configVariants = []sceneOptions{
	{ike: classicalIKE, esp: classicalESP, key: labca.P256, inner6: true},
	{six: true, ike: hybridIKE, esp: classicalESP, psk: true, inner6: true},
}

func (o sceneOptions) version() string {
	return map[bool]string{true: "6/", false: "5.9/"}[o.six] + o.name()
}

func both(v4, v6 string) []ike.Selector { return append(ts(v4), ts(v6)...) }

// selectors replaces strongSwan's selectors; empty: as they are.
func selectors(conf, local, remote string) string {
	lines := strings.Split(conf, "\n")
	for i, l := range lines {
		if local != "" && strings.HasPrefix(l, " local_ts = ") {
			lines[i] = " local_ts = " + local
		}
		if remote != "" && strings.HasPrefix(l, " remote_ts = ") {
			lines[i] = " remote_ts = " + remote
		}
	}
	return strings.Join(lines, "\n")
}

func addrsOf(n *ike.NetConfig) (out []string) {
	if n != nil {
		for _, p := range n.Addrs {
			out = append(out, p.String())
		}
	}
	return out
}

// TestStrongSwanAssigns: we ask for addresses of both families and name servers, and keep them through
// the rekeys of both ends and a reauthentication.
func TestStrongSwanAssigns(t *testing.T) {
	for _, o := range configVariants {
		t.Run(o.version(), func(t *testing.T) {
			o.peer = func(c *ike.PeerConfig) {
				c.Request = &ike.ConfigRequest{IPv4: ike.Required, IPv6: ike.Required, DNS: true}
				c.Children[0].LocalAssigned = true
				c.Children[0].LocalTS = both("0.0.0.0/0", "::/0")
			}
			o.more = "pools = four, six"
			o.edit = func(conf string) string {
				return selectors(conf, "", "dynamic") + "pools {\n four {\n addrs = 10.9.0.0/29\n dns = 10.2.0.53\n }\n six {\n addrs = 2001:db8:9::/125\n dns = 2001:db8:2::53\n }\n}\n"
			}
			sc := newScene(t, o)
			if err := sc.d.ep.Initiate("clinic", "net"); err != nil {
				t.Fatal(err)
			}
			sc.d.wait("the connection", func() bool { return len(sc.d.children) == 1 })
			i, c := sc.d.only()
			if got := addrsOf(i.Assigned); len(got) != 2 || !strings.HasPrefix(got[0], "10.9.0.") || !strings.HasPrefix(got[1], "2001:db8:9::") ||
				!slices.Equal(i.Assigned.DNS, []netip.Addr{netip.MustParseAddr("10.2.0.53"), netip.MustParseAddr("2001:db8:2::53")}) {
				t.Errorf("assigned %+v", i.Assigned)
			}
			if len(c.LocalTS) != 2 || c.LocalTS[0].Start != i.Assigned.Addrs[0].Addr() || c.LocalTS[0].Start != c.LocalTS[0].End {
				t.Errorf("the CHILD SA carries %v", c.LocalTS)
			}
			if err := sc.d.ep.Reauthenticate(i.ID); err != nil {
				t.Fatal(err)
			}
			sc.d.wait("a new IKE SA", func() bool { _, old := sc.d.ike[i.ID]; return !old && len(sc.d.ike) == 1 && len(sc.d.children) == 1 })
			if j, _ := sc.d.only(); !slices.Equal(addrsOf(j.Assigned), addrsOf(i.Assigned)) {
				t.Errorf("assigned %v, before %v", j.Assigned, i.Assigned)
			}
			for _, a := range i.Assigned.Addrs {
				sc.ourInner = append(sc.ourInner, a.Addr())
			}
			sc.life(t, true)
		})
	}
}

// TestStrongSwanIsAssigned: strongSwan asks us.
func TestStrongSwanIsAssigned(t *testing.T) {
	for _, o := range configVariants {
		t.Run(o.version(), func(t *testing.T) {
			pool := must(ike.NewPool([]netip.Prefix{netip.MustParsePrefix("10.9.0.0/29"), netip.MustParsePrefix("2001:db8:9::/125")}))
			o.config = func(c *ike.Config) { c.Addresses = pool }
			o.peer = func(c *ike.PeerConfig) {
				c.Remote = nil
				c.Assign = &ike.Assign{IPv4: true, IPv6: true, DNS: []netip.Addr{netip.MustParseAddr("10.1.0.53")}}
				c.Children[0].RemoteAssigned = true
				c.Children[0].RemoteTS = both("10.9.0.0/29", "2001:db8:9::/125")
			}
			o.more = "vips = 0.0.0.0, ::"
			o.edit = func(conf string) string { return selectors(conf, "dynamic", "") }
			sc := newScene(t, o)
			sc.ss.ctl("--initiate", "--child", "net")
			sc.d.wait("the connection", func() bool { return len(sc.d.children) == 1 })
			i, c := sc.d.only()
			if got := fmt.Sprint(addrsOf(i.Assigned), c.RemoteTS); got != "[10.9.0.1/32 2001:db8:9::1/128] [10.9.0.1 2001:db8:9::1]" {
				t.Errorf("assigned and carried: %s", got)
			}
			if sas := sc.ss.ctl("--list-sas"); !strings.Contains(sas, "[10.9.0.1 2001:db8:9::1]") || !strings.Contains(sas, "local  10.9.0.1/32 2001:db8:9::1/128") {
				t.Errorf("strongSwan has\n%s", sas)
			}
			for _, a := range i.Assigned.Addrs {
				sc.theirInner = append(sc.theirInner, a.Addr())
			}
			sc.life(t, false)
		})
	}
}

// TestStrongSwanAddressFailure: an exhausted pool, at either end: no CHILD SA, and both say why.
func TestStrongSwanAddressFailure(t *testing.T) {
	o := configVariants[0]
	o.psk, o.inner6 = true, false
	t.Run("theirs", func(t *testing.T) {
		o := o
		o.peer = func(c *ike.PeerConfig) {
			c.Request = &ike.ConfigRequest{IPv4: ike.Required}
			c.Children[0].LocalAssigned = true
			c.Children[0].LocalTS = ts("0.0.0.0/0")
		}
		o.more = "pools = none"
		o.edit = func(conf string) string {
			return selectors(conf, "", "dynamic") + "pools {\n none {\n addrs = 2001:db8:9::/125\n }\n}\n"
		}
		sc := newScene(t, o)
		if err := sc.d.ep.Initiate("clinic", "net"); err != nil {
			t.Fatal(err)
		}
		sc.d.wait("the failure", func() bool { return len(sc.d.failed) == 1 && len(sc.d.ike) == 0 })
		if text := sc.d.failed[0].Error(); !strings.Contains(text, "INTERNAL_ADDRESS_FAILURE") {
			t.Errorf("failed with %s", text)
		}
		sc.ss.wait(0, 0)
	})
	t.Run("ours", func(t *testing.T) {
		o := o
		pool := must(ike.NewPool([]netip.Prefix{netip.MustParsePrefix("10.9.0.1/32")}, netip.MustParseAddr("10.9.0.1")))
		o.config = func(c *ike.Config) { c.Addresses = pool }
		o.peer = func(c *ike.PeerConfig) {
			c.Remote, c.Assign = nil, &ike.Assign{IPv4: true}
			c.Children[0].RemoteAssigned, c.Children[0].RemoteTS = true, ts("10.9.0.0/29")
		}
		o.more = "vips = 0.0.0.0"
		o.edit = func(conf string) string { return selectors(conf, "dynamic", "") }
		sc := newScene(t, o)
		if out, err := sc.ss.try("--initiate", "--child", "net", "--timeout", "5"); err == nil || !strings.Contains(out, "received INTERNAL_ADDRESS_FAILURE notify, no CHILD_SA built") {
			t.Errorf("strongSwan says\n%s", out)
		}
		sc.d.wait("the refusal", func() bool { return len(sc.d.refusals) == 1 && sc.d.refusals[0].Code == ike.CodeAddress })
	})
}

// TestStrongSwanNarrows: several selectors with protocols, ports and ranges, narrowed by either end, both
// families; the packet first (RFC 7296, section 2.9).
func TestStrongSwanNarrows(t *testing.T) {
	for _, o := range configVariants {
		for _, weInitiate := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, %v", o.version(), weInitiate), func(t *testing.T) {
				narrow := "10.2.0.0/24[6/443], 10.2.0.0/24[17/53], 10.2.0.1-10.2.0.9, fd00:2::/64"
				want := "[10.2.0.0..10.2.0.255[6/443] 10.2.0.0..10.2.0.255[17/53] 10.2.0.1..10.2.0.9 fd00:2::..fd00:2::ffff:ffff:ffff:ffff]"
				o.peer = func(c *ike.PeerConfig) {
					c.Children[0].LocalTS, c.Children[0].RemoteTS = both("10.1.0.0/16", "fd00:1::/48"), both("10.2.0.0/16", "fd00:2::/48")
				}
				o.edit = func(conf string) string { return selectors(conf, narrow, "") }
				sc := newScene(t, o)
				if weInitiate {
					packet := ike.Flow{Proto: 17, Local: netip.MustParseAddr("10.1.0.9"), LocalPort: 4711, Remote: netip.MustParseAddr("10.2.0.9"), RemotePort: 53}
					if err := sc.d.ep.InitiateFor("clinic", "net", packet); err != nil {
						t.Fatal(err)
					}
				} else {
					sc.ss.ctl("--initiate", "--child", "net")
				}
				sc.d.wait("the connection", func() bool { return len(sc.d.children) == 1 })
				_, c := sc.d.only()
				for _, x := range []struct{ got, want string }{
					{fmt.Sprint(sorted(c.RemoteTS)), want},
					{fmt.Sprint(sorted(c.LocalTS)), "[10.1.0.0..10.1.0.255 fd00:1::..fd00:1::ffff:ffff:ffff:ffff]"},
				} {
					if x.got != x.want {
						t.Errorf("got  %s\nwant %s", x.got, x.want)
					}
				}
				sc.life(t, weInitiate)
			})
		}
	}
}

func sorted(list []ike.Selector) (out []ike.Selector) {
	out = slices.Clone(list)
	slices.SortFunc(out, func(a, b ike.Selector) int {
		if c := a.Start.Compare(b.Start); c != 0 {
			return c
		}
		return int(a.Proto) - int(b.Proto)
	})
	return out
}
