package interop

import (
	"net/netip"
	"strings"
	"testing"

	"wardgate/ike"
	"wardgate/internal/labca"
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
// redirect strongSwan in the same way.
func TestStrongSwanRedirect(t *testing.T) {
	other := netip.MustParseAddr("198.18.7.13")
	base := sceneOptions{ike: "aes256gcm16-prfsha384-x25519", esp: "aes256gcm16-x25519", key: labca.P256, edit: anyAddress}
	t.Run("we are redirected", func(t *testing.T) {
		o := base
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
	t.Run("we redirect", func(t *testing.T) {
		o := base
		o.peer = func(c *ike.PeerConfig) { c.Local = netip.Addr{} }
		o.edit = func(conf string) string {
			return strings.Replace(anyAddress(conf), " remote_addrs = 198.18.7.1\n", " remote_addrs = 198.18.7.1, 198.18.7.13\n", 1)
		}
		sc := newScene(t, o)
		sc.reach(t, other)
		sc.ss.ctl("--initiate", "--child", "net")
		sc.uses("the connection", sc.w.our, sc.w.their)
		if n, err := sc.d.ep.Redirect("clinic", other); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		sc.uses("strongSwan at our other address", other, sc.w.their)
		// It may make its CHILD SA there twice: for the old one, and for what it was told to initiate.
		sc.ss.ctl("--terminate", "--ike", "dual")
		sc.d.wait("the end", func() bool { return len(sc.d.ike) == 0 && len(sc.d.children) == 0 })
	})
}
