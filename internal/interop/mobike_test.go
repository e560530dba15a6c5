package interop

import (
	"net/netip"
	"testing"

	"wardgate/ike"
)

// reach gives us another address, at which the driver listens too.
func (sc *scene) reach(t *testing.T, a netip.Addr) {
	t.Helper()
	run(t, "ip", "-n", sc.w.ours, "addr", "add", a.String()+"/24", "dev", "eth0")
	for _, port := range []uint16{500, 4500} {
		at := netip.AddrPortFrom(a, port)
		c := listen(t, sc.w.ours, at)
		sc.d.more.Store(at, c)
		go sc.d.receive(c, at, port == 4500)
	}
}

// uses waits until we have one IKE SA, between these addresses.
func (sc *scene) uses(what string, our, their netip.Addr) {
	sc.d.wait(what, func() bool {
		s := sc.d.ep.Snapshot()
		return len(s) == 1 && s[0].State == ike.StateEstablished && s[0].Path.Local.Addr() == our && s[0].Path.Remote.Addr() == their && len(s[0].Children) == 1
	})
}

// TestStrongSwanMobike: who initiated moves to another address, and back; the other one follows, and the
// data with it. Rekeys of both ends go on there.
func TestStrongSwanMobike(t *testing.T) {
	ours, theirs := netip.MustParseAddr("198.18.7.11"), netip.MustParseAddr("198.18.7.12")
	versions(t, func(t *testing.T, o sceneOptions) {
		o.mobike, o.edit = true, anyAddress
		o.peer = func(c *ike.PeerConfig) { c.Mobike, c.Local = true, netip.Addr{} }
		t.Run("we move", func(t *testing.T) {
			sc := newScene(t, o)
			sc.reach(t, ours)
			sc.d.ep.AddressChanged([]netip.Addr{sc.w.our})
			sc.connect(t, true)
			f := sc.flow(t, false)
			f.both("before")
			sc.uses("the connection", sc.w.our, sc.w.their)
			sc.d.ep.AddressChanged([]netip.Addr{ours})
			sc.uses("the move", ours, sc.w.their)
			sc.follows(t, "198.18.7.11")
			f.both("there")
			f.stop(t)
			sc.d.ep.AddressChanged([]netip.Addr{sc.w.our, ours})
			sc.life(t, true)
		})
		t.Run("strongSwan moves", func(t *testing.T) {
			sc := newScene(t, o)
			sc.d.ep.AddressChanged([]netip.Addr{sc.w.our})
			sc.connect(t, false)
			sc.uses("the connection", sc.w.our, sc.w.their)
			run(t, "ip", "-n", sc.w.theirs, "addr", "add", theirs.String()+"/25", "dev", "eth0") // a net of its own, which stays
			run(t, "ip", "-n", sc.w.theirs, "addr", "del", sc.w.their.String()+"/24", "dev", "eth0")
			sc.uses("strongSwan's move", sc.w.our, theirs)
			sc.life(t, false)
		})
	})
}
