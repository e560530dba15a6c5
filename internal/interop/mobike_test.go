package interop

import (
	"net/netip"
	"testing"

	"wardgate/ike"
	"wardgate/internal/labca"
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

var mobikeScene = sceneOptions{
	ike: "aes256gcm16-prfsha384-x25519", esp: "aes256gcm16-x25519", key: labca.P256, mobike: true,
	peer: func(c *ike.PeerConfig) { c.Mobike, c.Local = true, netip.Addr{} },
	edit: anyAddress,
}

// TestStrongSwanMobike: who initiated moves to another address, and back; the other one follows. Rekeys
// of both ends go on there.
func TestStrongSwanMobike(t *testing.T) {
	ours, theirs := netip.MustParseAddr("198.18.7.11"), netip.MustParseAddr("198.18.7.12")
	t.Run("we move", func(t *testing.T) {
		sc := newScene(t, mobikeScene)
		sc.reach(t, ours)
		sc.d.ep.AddressChanged([]netip.Addr{sc.w.our})
		if err := sc.d.ep.Initiate("clinic", "net"); err != nil {
			t.Fatal(err)
		}
		sc.uses("the connection", sc.w.our, sc.w.their)
		sc.d.ep.AddressChanged([]netip.Addr{ours})
		sc.uses("the move", ours, sc.w.their)
		sc.follows(t, "198.18.7.11")
		sc.d.ep.AddressChanged([]netip.Addr{sc.w.our, ours})
		sc.life(t, true)
	})
	t.Run("strongSwan moves", func(t *testing.T) {
		sc := newScene(t, mobikeScene)
		sc.d.ep.AddressChanged([]netip.Addr{sc.w.our})
		sc.ss.ctl("--initiate", "--child", "net")
		sc.uses("the connection", sc.w.our, sc.w.their)
		run(t, "ip", "-n", sc.w.theirs, "addr", "add", theirs.String()+"/25", "dev", "eth0") // a net of its own, which stays
		run(t, "ip", "-n", sc.w.theirs, "addr", "del", sc.w.their.String()+"/24", "dev", "eth0")
		sc.uses("strongSwan's move", sc.w.our, theirs)
		sc.life(t, false)
	})
}
