package interop

import (
	"bytes"
	"net/netip"
	"testing"

	"wardgate/ike"
)

// TestStrongSwanReauth: both ends prove themselves anew (RFC 7296, section 2.8.3), each when it is told
// to. Who does it with strongSwan as the responder may lose what that sends on the new CHILD SA before its last
// answer was judged; 5.9.8 ends the old IKE SA before it makes the new one.
func TestStrongSwanReauth(t *testing.T) {
	versions(t, func(t *testing.T, o sceneOptions) {
		again := func(t *testing.T, sc *scene, old ike.SAInfo, f *flow) {
			t.Helper()
			sc.d.wait("another IKE SA", func() bool {
				_, there := sc.d.ike[old.ID]
				return !there && len(sc.d.ike) == 1 && len(sc.d.children) == 1
			})
			sc.ss.wait(1, 1)
			f.both("after the reauthentication")
		}
		t.Run("ours", func(t *testing.T) {
			t.Parallel()
			sc := newScene(t, o)
			sc.connect(t, true)
			f := sc.flow(t, false)
			f.both("before")
			old, _ := sc.d.only()
			if err := sc.d.ep.Reauthenticate(old.ID); err != nil {
				t.Fatal(err)
			}
			again(t, sc, old, f)
			lost, of, lost2, of2 := f.stop(t)
			if lost > 3+of/20 || lost2 > 3+of2/20 {
				t.Errorf("%d of %d and %d of %d pings were lost", lost, of, lost2, of2)
			}
		})
		t.Run("strongSwan's", func(t *testing.T) {
			t.Parallel()
			o := o
			// Else it says INITIAL_CONTACT while it still has the old IKE SA, which ends at once here, and then
			// repeats its Delete until it gives up.
			o.more = "unique = never"
			sc := newScene(t, o)
			sc.connect(t, false)
			f := sc.flow(t, false)
			f.both("before")
			old, _ := sc.d.only()
			_, _ = sc.ss.try("--rekey", "--ike", "dual", "--reauth")
			again(t, sc, old, f)
		})
	})
}

// TestStrongSwanCookies: each end asks the other one for a cookie when it has half-open IKE SAs enough.
func TestStrongSwanCookies(t *testing.T) {
	versions(t, func(t *testing.T, o sceneOptions) {
		t.Run("we ask", func(t *testing.T) {
			o := o
			o.config = func(c *ike.Config) { c.CookieThreshold = -1 }
			sc := newScene(t, o)
			sc.connect(t, false)
			if sc.ss.said("N(COOKIE)") == 0 {
				t.Error("no cookie")
			}
			sc.life(t, false)
		})
		t.Run("strongSwan asks", func(t *testing.T) {
			o := o
			o.charon = "cookie_threshold = 1\n"
			sc := newScene(t, o)
			// Somebody begins, and does not go on.
			var first []byte
			sc.d.sent.Store(&first)
			sc.connect(t, true)
			sc.d.ep.Terminate("clinic", "the test goes on")
			sc.ss.wait(0, 0)
			stranger := bytes.Clone(first)
			stranger[0] ^= 1 // another SPI
			if _, err := sc.d.plain.WriteToUDPAddrPort(stranger, netip.AddrPortFrom(sc.w.their, 500)); err != nil {
				t.Fatal(err)
			}
			sc.d.wait("strongSwan to answer", func() bool { return sc.ss.said("generating IKE_SA_INIT response") >= 2 })
			sc.connect(t, true)
			if sc.ss.said("N(COOKIE)") == 0 {
				t.Error("no cookie")
			}
			f := sc.flow(t, false)
			f.both("with a cookie")
			f.lossless(t)
		})
	})
}
