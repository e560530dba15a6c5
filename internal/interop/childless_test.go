package interop

import (
	"strings"
	"testing"

	"wardgate/ike"
	"wardgate/internal/labca"
)

// TestStrongSwanChildless: RFC 6023 with both versions and roles: the first CHILD SA comes by
// CREATE_CHILD_SA, with its own key exchange.
func TestStrongSwanChildless(t *testing.T) {
	for _, o := range []sceneOptions{
		{ike: "aes256gcm16-prfsha384-x25519", esp: "aes256gcm16-x25519", key: labca.P256},
		{six: true, ike: "aes256gcm16-prfsha384-x25519-ke1_mlkem768", esp: "aes256gcm16-x25519-ke1_mlkem768", key: labca.P256},
		{six: true, ike: "aes256gcm16-prfsha384-x25519", esp: "aes256gcm16-x25519", psk: true},
	} {
		for _, weInitiate := range []bool{true, false} {
			t.Run(map[bool]string{true: "6/", false: "5.9/"}[o.six]+o.name()+map[bool]string{true: "/responds", false: "/initiates"}[weInitiate], func(t *testing.T) {
				o.peer = func(c *ike.PeerConfig) { c.Childless = true }
				o.edit = func(conf string) string {
					return strings.Replace(conf, "version = 2\n", "version = 2\n childless = force\n", 1)
				}
				sc := newScene(t, o)
				if weInitiate {
					if err := sc.d.ep.Initiate("clinic", "net"); err != nil {
						t.Fatal(err)
					}
				} else {
					sc.ss.ctl("--initiate", "--child", "net")
				}
				sc.d.wait("the connection", func() bool { return len(sc.d.children) == 1 })
				if s := sc.d.ep.Snapshot()[0].Children[0].Suite; !strings.Contains(s, "x25519") {
					t.Errorf("the first CHILD SA has no key exchange of its own: %s", s)
				}
				sc.life(t, weInitiate)
			})
		}
	}
}
