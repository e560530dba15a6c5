package interop

import (
	"net/netip"
	"strings"
	"testing"

	"wardgate/ike"
)

// anyAddress has strongSwan take the connection at each of its addresses, and not say INITIAL_CONTACT of
// the IKE SA to which it was redirected: the one before would end by that.
func anyAddress(conf string) string {
	return strings.Replace(conf, " local_addrs = 198.18.7.2\n", " local_addrs = %any\n unique = never\n", 1)
}

// follows waits until strongSwan sends to our address.
func (sc *scene) follows(t *testing.T, our string) {
	t.Helper()
	sc.d.wait("strongSwan at "+our, func() bool {
		out, err := sc.ss.try("--list-sas")
		return err == nil && strings.Contains(out, "@ "+our+"[")
	})
}

// TestStrongSwanRedirect: strongSwan redirects us to its other address while the IKE SA stands, and we
// redirect strongSwan in the same way, and in our answers to IKE_SA_INIT and IKE_AUTH (RFC 5685).
func TestStrongSwanRedirect(t *testing.T) {
	other := netip.MustParseAddr("198.18.7.13")
	versions(t, func(t *testing.T, o sceneOptions) {
		o.edit = anyAddress
		t.Run("we are redirected", func(t *testing.T) {
			o.peer = func(c *ike.PeerConfig) { c.RedirectTo = []netip.Prefix{netip.PrefixFrom(other, 32)} }
			sc := newScene(t, o)
			run(t, "ip", "-n", sc.w.theirs, "addr", "add", other.String()+"/24", "dev", "eth0")
			if err := sc.d.ep.Initiate("clinic", "net"); err != nil {
				t.Fatal(err)
			}
			sc.uses("the connection", sc.w.our, sc.w.their)
			sc.ss.ctl("--redirect", "--ike", "dual", "--gateway", other.String())
			sc.uses("the other gateway", sc.w.our, other)
			sc.life(t, true)
		})
		o.peer = func(c *ike.PeerConfig) { c.Local = netip.Addr{} }
		o.edit = func(conf string) string {
			return strings.Replace(anyAddress(conf), " remote_addrs = 198.18.7.1\n", " remote_addrs = 198.18.7.1, 198.18.7.13\n", 1)
		}
		t.Run("we redirect", func(t *testing.T) {
			sc := newScene(t, o)
			sc.reach(t, other)
			sc.ss.ctl("--initiate", "--child", "net")
			sc.uses("the connection", sc.w.our, sc.w.their)
			if n, err := sc.d.ep.Redirect("clinic", other); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			sc.uses("strongSwan at our other address", other, sc.w.their)
			// It may make its CHILD SA there twice: for the old one, and for what it was told to initiate.
			sc.flow(t, false).both("there")
			sc.ss.ctl("--terminate", "--ike", "dual")
			sc.d.wait("the end", func() bool { return len(sc.d.ike) == 0 && len(sc.d.children) == 0 })
		})
		for _, when := range []string{"IKE_SA_INIT", "IKE_AUTH"} {
			if when == "IKE_AUTH" && !o.six {
				continue // charon 5.9.8 ends with a segmentation fault when it follows
			}
			t.Run("we redirect in "+when, func(t *testing.T) {
				o := o
				o.config = func(c *ike.Config) {
					c.Redirect = func(q ike.RedirectQuery) netip.Addr {
						if q.Path.Local.Addr() == other || (q.Peer != "") != (when == "IKE_AUTH") {
							return netip.Addr{}
						}
						return other
					}
				}
				sc := newScene(t, o)
				sc.reach(t, other)
				_, _ = sc.ss.try("--initiate", "--child", "net") // that the first IKE SA ends may count as a failure
				sc.uses("strongSwan at our other address", other, sc.w.their)
				sc.flow(t, false).both("there")
			})
		}
	})
}
