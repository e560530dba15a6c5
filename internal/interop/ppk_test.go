package interop

import (
	"strings"
	"testing"

	"wardgate/ike"
	"wardgate/internal/labca"
)

// ppkUse is who has a postquantum preshared key (RFC 8784), and who demands it.
type ppkUse struct {
	ours, theirs           bool
	weRequire, theyRequire bool
	another                bool // theirs is another one
	anyID                  bool // strongSwan takes any that it knows
	inUse                  bool
}

const (
	ppkID     = "ppk.example"
	ppkSecret = "a postquantum preshared key of the two"
)

// configure gives both ends their keys.
func (u ppkUse) configure(peer *ike.PeerConfig, conf string) string {
	if u.ours {
		peer.RemoteAuth[0].PPKs = []ike.PPK{{ID: ppkID, Secret: []byte(ppkSecret)}}
		peer.RemoteAuth[0].RequirePPK = u.weRequire
	}
	if !u.theirs {
		return conf
	}
	id := ppkID
	if u.another {
		id = "another.example"
	}
	required := "no"
	if u.theyRequire {
		required = "yes"
	}
	if !u.anyID {
		conf = strings.Replace(conf, "version = 2\n", "version = 2\n ppk_id = "+id+"\n ppk_required = "+required+"\n", 1)
	}
	secret := " ppk-1 {\n id-1 = " + id + "\n secret = \"" + ppkSecret + "\"\n }\n"
	if strings.Contains(conf, "secrets {\n") {
		return strings.Replace(conf, "secrets {\n", "secrets {\n"+secret, 1)
	}
	return conf + "secrets {\n" + secret + "}\n"
}

// TestStrongSwanPPK: with 5.9.8 and with 6, both roles, a PSK and two rounds of certificates.
func TestStrongSwanPPK(t *testing.T) {
	for _, c := range []struct {
		name string
		use  ppkUse
	}{
		{"both require", ppkUse{ours: true, theirs: true, weRequire: true, theyRequire: true, inUse: true}},
		{"both, optional", ppkUse{ours: true, theirs: true, inUse: true}},
		{"theirs is another", ppkUse{ours: true, theirs: true, another: true}},
		{"ours alone", ppkUse{ours: true}},
		{"theirs alone", ppkUse{theirs: true}},
	} {
		for _, o := range []sceneOptions{
			{ike: classicalIKE, esp: classicalESP, key: labca.P256},
			{ike: "aes256gcm16-prfsha384-x25519", esp: "aes256gcm16", psk: true},
			{six: true, ike: hybridIKE, esp: hybridESP, key: labca.P256},
			{six: true, ike: "aes256gcm16-prfsha384-x25519", esp: "aes256gcm16", psk: true},
		} {
			for _, weInitiate := range []bool{true, false} {
				name := c.name + "/" + map[bool]string{true: "6", false: "5.9"}[o.six] + "/" + o.name() + map[bool]string{true: "/responds", false: "/initiates"}[weInitiate]
				t.Run(name, func(t *testing.T) {
					o.ppk = c.use
					o.ppk.anyID = weInitiate && c.use.another
					sc := newScene(t, o)
					if weInitiate {
						if err := sc.d.ep.Initiate("clinic", "net"); err != nil {
							t.Fatal(err)
						}
					} else {
						sc.ss.ctl("--initiate", "--child", "net")
					}
					sc.d.wait("the connection", func() bool { return len(sc.d.children) == 1 })
					i, _ := sc.d.only()
					if want := map[bool]string{true: ppkID, false: ""}[c.use.inUse]; i.PPK != want {
						t.Errorf("PPK %q in use, want %q", i.PPK, want)
					}
					if out := sc.ss.ctl("--list-sas"); strings.Contains(out, "/PPK") != c.use.inUse {
						t.Errorf("strongSwan says:\n%s", out)
					}
					sc.life(t, weInitiate)
				})
			}
		}
	}
}

// TestStrongSwanPPKRequired: who requires a PPK that the other end has not. Nothing comes up.
func TestStrongSwanPPKRequired(t *testing.T) {
	versions(t, func(t *testing.T, o sceneOptions) {
		roles(t, func(t *testing.T, weInitiate bool) {
			t.Run("we require", func(t *testing.T) {
				o.ppk = ppkUse{ours: true, weRequire: true}
				sc := newScene(t, o)
				sc.refused(t, weInitiate)
				if len(sc.d.refusals) != 1 || sc.d.refusals[0].Code != ike.CodePPK {
					t.Errorf("we say %+v", sc.d.refusals)
				}
			})
			t.Run("they require", func(t *testing.T) {
				o.ppk = ppkUse{theirs: true, theyRequire: true}
				sc := newScene(t, o)
				sc.refused(t, weInitiate)
				if weInitiate && (len(sc.d.refusals) != 1 || sc.d.refusals[0].Code != ike.CodePeerRefused) {
					t.Errorf("we say %+v", sc.d.refusals)
				}
				if sc.ss.said("PPK") == 0 {
					t.Error("strongSwan does not say why")
				}
			})
		})
	})
}
