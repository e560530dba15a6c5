package interop

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/suite"
	"wardgate/internal/labca"
)

type credential struct {
	name string
	key  crypto.Signer
	leaf *x509.Certificate
	ca   *labca.Authority
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newCA(kind labca.Kind, name string) *labca.Authority {
	return must(labca.New(labca.Options{Kind: kind, Name: name, At: time.Now().Add(-time.Hour)}))
}

func issue(ca *labca.Authority, name string, key labca.KeyType, device *credential) *credential {
	c := &credential{name: name, key: must(labca.NewKey(key)), ca: ca}
	r := labca.Request{Public: c.key.Public(), DNSNames: []string{name}, At: time.Now().Add(-time.Hour)}
	if device != nil {
		r.Device = device.leaf.Raw
	}
	c.leaf = must(ca.Issue(r))
	return c
}

func (c *credential) id() ike.Identity { return must(ike.ParseIdentity(c.name)) }

func (c *credential) auth(role string) ike.LocalAuth {
	return ike.LocalAuth{ID: c.id(), Chain: append([][]byte{c.leaf.Raw}, labca.DER(c.ca.Intermediates())...), Signer: c.key, Role: role}
}

func ts(s string) []ike.Selector { return []ike.Selector{ike.PrefixSelector(netip.MustParsePrefix(s))} }

// scene is strongSwan and us with a connection in common.
type scene struct {
	w  *wire
	ss *strongswan
	d  *driver
	v6 bool // IPv6 in the tunnel, in what life does
	// Where they were assigned, the addresses in the tunnel, of each family.
	ourInner, theirInner []netip.Addr
	// The credentials of both; nil with a PSK.
	ourDevice, ourService, theirDevice, theirService *credential
}

type sceneOptions struct {
	ike, esp string
	key      labca.KeyType
	psk      bool
	single   bool // one round of certificates, the devices'
	inner6   bool // IPv6 as well in the tunnel
	way      way
	ppk      ppkUse
	mobike   bool
	six      bool   // a strongSwan of the tree of strongswan6.sh
	theirIKE string // strongSwan's proposals where they are not ike and esp
	theirESP string
	more     string // of the strongSwan connection
	spoil    func(sc *scene)
	edit     func(conf string) string
	peer     func(*ike.PeerConfig)
	config   func(*ike.Config)
	charon   string // settings of charon's
}

// The suites of most tests.
const (
	classicalIKE, classicalESP = "aes256gcm16-prfsha384-x25519", "aes256gcm16-x25519"
	hybridIKE, hybridESP       = classicalIKE + "-ke1_mlkem768", classicalESP + "-ke1_mlkem768"
)

const psk = "a pre-shared key of 32 octets!!!"

func newScene(t *testing.T, o sceneOptions) *scene {
	t.Helper()
	root := ""
	if o.way.nat != nobody {
		needs(t, "nft")
	}
	if o.six {
		needs(t, "ip", "nsenter", "chroot")
		root = needs6(t)
	} else {
		needs(t, "ip", "nsenter", charon, swanctl)
	}
	sc := &scene{w: newWire(t, o.way)}
	inner := 1
	if o.inner6 {
		inner = 2
	}
	var local, remote []ike.Selector
	for i := range inner {
		local, remote = append(local, ts(ourNets[i])...), append(remote, ts(theirNets[i])...)
	}
	peer := &ike.PeerConfig{
		Name: "clinic", Local: sc.w.our, Remote: []netip.AddrPort{netip.AddrPortFrom(sc.w.their, 500)},
		Proposals: must(suite.ParseProposals(suite.ProtocolIKE, strings.Fields(o.ike))),
		Children: []ike.ChildConfig{{
			Name: "net", LocalTS: local, RemoteTS: remote,
			Proposals: must(suite.ParseProposals(suite.ProtocolESP, strings.Fields(o.esp))),
		}},
	}
	sc.ss = startStrongSwan(t, sc.w, root, o.charon)
	if o.theirIKE == "" {
		o.theirIKE = o.ike
	}
	if o.theirESP == "" {
		o.theirESP = o.esp
	}
	mobike := "no"
	if o.mobike {
		mobike = "yes"
	}
	ourAddr := sc.w.our
	switch o.way.nat {
	case nobody:
	case we:
		ourAddr = sc.w.outside
	case they:
		peer.Remote = []netip.AddrPort{netip.AddrPortFrom(sc.w.outside, 500)}
	}
	conf := fmt.Sprintf("connections {\n dual {\n version = 2\n mobike = %s\n local_addrs = %v\n remote_addrs = %v\n proposals = %s\n %s\n", mobike, sc.w.their, ourAddr, o.theirIKE, o.more)
	child := fmt.Sprintf(" children {\n net {\n local_ts = %s\n remote_ts = %s\n esp_proposals = %s\n }\n }\n }\n}\n", strings.Join(theirNets[:inner], ", "), strings.Join(ourNets[:inner], ", "), o.theirESP)
	if o.psk {
		id := func(s string) ike.Identity { return must(ike.ParseIdentity(s)) }
		peer.LocalAuth = []ike.LocalAuth{{ID: id("ours.example"), PSK: []byte(psk)}}
		peer.RemoteAuth = []ike.RemoteAuth{{IDs: []ike.Identity{id("theirs.example")}, PSK: []byte(psk), RelatedToRound: -1}}
		conf += " local {\n auth = psk\n id = theirs.example\n }\n remote {\n auth = psk\n id = ours.example\n }\n" + child
		conf += fmt.Sprintf("secrets {\n ike-1 {\n id-1 = ours.example\n id-2 = theirs.example\n secret = \"%s\"\n }\n}\n", psk)
	} else {
		device, service := newCA(labca.Device, "device"), newCA(labca.Service, "group-a")
		sc.ourDevice, sc.theirDevice = issue(device, "ours.devices.example", o.key, nil), issue(device, "theirs.devices.example", o.key, nil)
		sc.ourService, sc.theirService = issue(service, "ours.group-a.example", o.key, sc.ourDevice), issue(service, "theirs.group-a.example", o.key, sc.theirDevice)
		if o.spoil != nil {
			o.spoil(sc)
			device, service = sc.ourDevice.ca, sc.ourService.ca
		}
		peer.LocalAuth = []ike.LocalAuth{sc.ourDevice.auth("device"), sc.ourService.auth("service")}
		peer.RemoteAuth = []ike.RemoteAuth{
			{IDs: []ike.Identity{sc.theirDevice.id()}, Anchors: []*x509.Certificate{device.Anchor()}, RelatedToRound: -1, Role: "device"},
			{IDs: []ike.Identity{sc.theirService.id()}, Anchors: []*x509.Certificate{service.Anchor()}, RelatedToRound: 0, Role: "service"},
		}
		sc.ss.ca("device", device)
		sc.ss.ca("service", service)
		sc.ss.own("device", sc.theirDevice)
		sc.ss.own("service", sc.theirService)
		conf += fmt.Sprintf(" local-1 {\n auth = pubkey\n certs = device.pem\n id = %s\n }\n local-2 {\n auth = pubkey\n certs = service.pem\n id = %s\n }\n", sc.theirDevice.name, sc.theirService.name)
		conf += fmt.Sprintf(" remote-1 {\n auth = pubkey\n id = %s\n cacerts = device.pem\n }\n remote-2 {\n auth = pubkey\n id = %s\n cacerts = service.pem\n }\n", sc.ourDevice.name, sc.ourService.name)
		if o.single {
			peer.LocalAuth, peer.RemoteAuth = peer.LocalAuth[:1], peer.RemoteAuth[:1]
			conf = without(without(conf, " local-2 {"), " remote-2 {")
		}
		conf += child
	}
	conf = o.ppk.configure(peer, conf)
	if o.peer != nil {
		o.peer(peer)
	}
	if o.edit != nil {
		conf = o.edit(conf)
	}
	sc.ss.configure(conf)
	sc.d = newDriver(t, sc.w, o.config, peer)
	return sc
}

// without returns a configuration without one of its sections, which begins so.
func without(conf, begin string) string {
	from := strings.Index(conf, begin)
	return conf[:from] + conf[from+strings.Index(conf[from:], " }\n")+3:]
}

// connect makes the connection, from our end or strongSwan's.
func (sc *scene) connect(t *testing.T, weInitiate bool) {
	t.Helper()
	if weInitiate {
		if err := sc.d.ep.Initiate("clinic", "net"); err != nil {
			t.Fatal(err)
		}
	} else {
		sc.ss.ctl("--initiate", "--child", "net")
	}
	sc.d.wait("the connection", func() bool { return len(sc.d.children) == 1 })
}

// versions runs a test with both strongSwans: 5.9.8, and 6 with ML-KEM in every key exchange. Two rounds of
// certificates.
func versions(t *testing.T, test func(t *testing.T, o sceneOptions)) {
	t.Helper()
	t.Run("5.9", func(t *testing.T) { test(t, sceneOptions{ike: classicalIKE, esp: classicalESP, key: labca.P256}) })
	t.Run("6", func(t *testing.T) { test(t, sceneOptions{six: true, ike: hybridIKE, esp: hybridESP, key: labca.P256}) })
}

// roles runs a test with strongSwan as the responder and as the initiator.
func roles(t *testing.T, test func(t *testing.T, weInitiate bool)) {
	t.Helper()
	t.Run("responds", func(t *testing.T) { test(t, true) })
	t.Run("initiates", func(t *testing.T) { test(t, false) })
}

// life rekeys a standing connection from both ends, while data flows both ways, and ends it
// from one, which is who has initiated it.
func (sc *scene) life(t *testing.T, weDelete bool) {
	t.Helper()
	d := sc.d
	sc.ss.wait(1, 1)
	f := sc.flow(t, sc.v6)
	f.both("after the set-up")

	// Who initiated begins: who responded waits for a second before it asks for anything, unless the other
	// end asks first.
	for i, by := range []bool{weDelete, weDelete, !weDelete, !weDelete, weDelete} {
		who := map[bool]string{true: "we", false: "strongSwan"}[by]
		if i%2 == 0 {
			_, c := d.only()
			if !by {
				sc.ss.ctl("--rekey", "--child", "net")
			} else if err := d.ep.RekeyChild(c.ID); err != nil {
				t.Fatal(err)
			}
			sc.rekeyed(t, who+" rekeyed the CHILD SA", c)
			continue
		}
		old := d.ep.Snapshot()[0].SAInfo
		if !by {
			sc.ss.ctl("--rekey", "--ike", "dual")
		} else if err := d.ep.RekeyIKE(old.ID); err != nil {
			t.Fatal(err)
		}
		sc.newKeys(t, who+" rekeyed the IKE SA", old)
	}
	f.both("after the last rekey")
	f.lossless(t)

	if weDelete {
		d.ep.Terminate("clinic", "the test is over")
	} else {
		sc.ss.ctl("--terminate", "--ike", "dual")
	}
	d.wait("the end", func() bool { return len(d.ike) == 0 && len(d.children) == 0 })
	sc.ss.wait(0, 0)
	if len(d.refusals)+len(d.failed) != 0 {
		t.Errorf("refused %v, failed %v", d.refusals, d.failed)
	}
}

// rekeyed waits until old is gone and another CHILD SA is in use at both ends.
func (sc *scene) rekeyed(t *testing.T, what string, old ike.ChildSA) {
	t.Helper()
	d := sc.d
	d.wait(what, func() bool {
		_, there := d.children[old.ID]
		ok := !there && len(d.children) == 1
		for id := range d.children {
			ok = ok && d.switched[id]
		}
		return ok
	})
	sc.ss.wait(1, 1)
}

// newKeys waits until the IKE SA has other SPIs than in old.
func (sc *scene) newKeys(t *testing.T, what string, old ike.SAInfo) {
	t.Helper()
	sc.d.wait(what, func() bool {
		for _, s := range sc.d.ep.Snapshot() {
			if s.SPIi != old.SPIi && s.State == ike.StateEstablished {
				return true
			}
		}
		return false
	})
	sc.ss.wait(1, 1)
}

var variants = []sceneOptions{
	{ike: "aes256gcm16-prfsha384-x25519", esp: "aes256gcm16-x25519", key: labca.P256},
	{ike: "aes128gcm16-prfsha256-ecp256", esp: "aes128gcm16-ecp256", key: labca.P384},
	{ike: "aes256-sha256-prfsha256-ecp384", esp: "aes256-sha256", key: labca.RSA2048},
	{ike: "chacha20poly1305-prfsha256-x25519", esp: "chacha20poly1305", key: labca.P256, mobike: true},
	{ike: "aes256gcm16-prfsha384-ecp521", esp: "aes256gcm16-ecp521", key: labca.Ed25519},
	{ike: "aes256gcm16-prfsha384-x25519", esp: "aes256gcm16", psk: true},
}

func (o sceneOptions) name() string {
	kind := "cert-" + string(o.key)
	if o.psk {
		kind = "psk"
	}
	return kind + "/" + o.ike + "/" + o.esp
}

func TestStrongSwanResponder(t *testing.T) {
	for _, o := range variants {
		t.Run(o.name(), func(t *testing.T) {
			sc := newScene(t, o)
			if err := sc.d.ep.Initiate("clinic", "net"); err != nil {
				t.Fatal(err)
			}
			sc.d.wait("the connection", func() bool { return len(sc.d.children) == 1 })
			sc.life(t, true)
		})
	}
}

func TestStrongSwanInitiator(t *testing.T) {
	for _, o := range variants {
		t.Run(o.name(), func(t *testing.T) {
			sc := newScene(t, o)
			sc.ss.ctl("--initiate", "--child", "net")
			sc.d.wait("the connection", func() bool { return len(sc.d.children) == 1 })
			sc.life(t, false)
		})
	}
}

// TestStrongSwanSingle: one round of certificates.
func TestStrongSwanSingle(t *testing.T) {
	versions(t, func(t *testing.T, o sceneOptions) {
		roles(t, func(t *testing.T, weInitiate bool) {
			o.single = true
			sc := newScene(t, o)
			sc.connect(t, weInitiate)
			if i, _ := sc.d.only(); len(i.RemoteIDs) != 1 || i.RemoteIDs[0] != sc.theirDevice.id() {
				t.Errorf("proved: %v", i.RemoteIDs)
			}
			sc.life(t, weInitiate)
		})
	})
}

// TestStrongSwanIPv6: nothing but IPv6 between the two, IPv4 and IPv6 in the tunnel.
func TestStrongSwanIPv6(t *testing.T) {
	versions(t, func(t *testing.T, o sceneOptions) {
		roles(t, func(t *testing.T, weInitiate bool) {
			o.way.v6, o.inner6 = true, true
			sc := newScene(t, o)
			sc.connect(t, weInitiate)
			if i, c := sc.d.only(); !i.Path.Remote.Addr().Is6() || len(c.LocalTS) != 2 || len(c.RemoteTS) != 2 {
				t.Errorf("path %v, selectors %v and %v", i.Path, c.LocalTS, c.RemoteTS)
			}
			f := sc.flow(t, false)
			f.both("IPv4")
			f.lossless(t)
			sc.v6 = true
			sc.life(t, weInitiate)
		})
	})
}

// TestStrongSwanFragments: both ends cut IKE_AUTH, the one by 600 octets, the other by 700, and put
// together again what the other one cut; and where strongSwan does not do it, we do not.
func TestStrongSwanFragments(t *testing.T) {
	versions(t, func(t *testing.T, o sceneOptions) {
		roles(t, func(t *testing.T, weInitiate bool) {
			o.key, o.charon = labca.RSA2048, "fragment_size = 700\n"
			o.config = func(c *ike.Config) { c.FragmentSize = 600 }
			sc := newScene(t, o)
			sc.connect(t, weInitiate)
			sc.life(t, weInitiate)
			cut, whole := sc.ss.said("splitting IKE message"), sc.ss.said("reassembled fragmented IKE message")
			if cut < 2 || whole < 2 {
				t.Errorf("strongSwan cut %d messages and put %d together", cut, whole)
			}
		})
		t.Run("strongSwan does not", func(t *testing.T) {
			if o.six {
				o.ike, o.esp = classicalIKE, classicalESP
			}
			o.key, o.charon, o.more = labca.RSA2048, "fragment_size = 700\n", "fragmentation = no"
			sc := newScene(t, o)
			sc.connect(t, true)
			sc.life(t, true)
			if n := sc.ss.said("EF("); n > 0 {
				t.Errorf("%d fragments", n)
			}
		})
	})
}

// TestStrongSwanRefused: strongSwan as the initiator that must not come up, and the words of our
// own record for it.
func TestStrongSwanRefused(t *testing.T) {
	base := variants[0]
	for _, c := range []struct {
		name  string
		spoil func(sc *scene)
		code  ike.Code
	}{
		{"service certificate of another device", func(sc *scene) {
			other := issue(sc.theirDevice.ca, "other.devices.example", labca.P256, nil)
			sc.theirService = issue(sc.theirService.ca, sc.theirService.name, labca.P256, other)
		}, ike.CodeNotBound},
		{"service certificate of another CA", func(sc *scene) {
			ca := newCA(labca.Service, "rogue")
			sc.theirService = issue(ca, sc.theirService.name, labca.P256, sc.theirDevice)
			sc.ss.ca("rogue", ca)
		}, ike.CodeUnknownCA},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := base
			o.spoil = c.spoil
			sc := newScene(t, o)
			if out, err := sc.ss.try("--initiate", "--child", "net", "--timeout", "10"); err == nil {
				t.Errorf("strongSwan came up:\n%s", out)
			}
			sc.d.wait("the refusal", func() bool { return len(sc.d.refusals) == 1 && sc.d.refusals[0].Code == c.code })
			sc.ss.wait(0, 0)
			if s := sc.d.state(); len(sc.d.ep.Snapshot()) != 0 {
				t.Error("state is left:", s)
			}
		})
	}
}

// TestStrongSwanDeviceOnly: strongSwan proves its device and stops.
func TestStrongSwanDeviceOnly(t *testing.T) {
	o := variants[0]
	o.edit = func(conf string) string {
		from, to := strings.Index(conf, " local-2 {"), strings.Index(conf, " remote-1 {")
		return conf[:from] + conf[to:]
	}
	sc := newScene(t, o)
	if out, err := sc.ss.try("--initiate", "--child", "net", "--timeout", "10"); err == nil {
		t.Errorf("strongSwan came up:\n%s", out)
	}
	sc.d.wait("the refusal", func() bool { return len(sc.d.refusals) == 1 && sc.d.refusals[0].Code == ike.CodeDeviceOnly })
	sc.ss.wait(0, 0)
}
