package interop

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/suite"
	"wardgate/internal/lab"
	"wardgate/internal/labca"
	"wardgate/internal/testvectors"
)

// pluto is libreswan in a guest, and the credentials that it has.
type pluto struct {
	*guestWire
	*lab.Libreswan
	ca    *labca.Authority
	certs map[string][2]*credential // ours and theirs, by nickname
}

const plutoSecrets = "@ours.example @theirs.example : PSK \"" + psk + "\"\n"

func newPluto(t *testing.T) *pluto {
	t.Helper()
	needsGuest(t)
	tree, err := lab.LibreswanTree(testvectors.Root())
	missing(t, err)
	p := &pluto{guestWire: newGuest(t, "libreswan", 256), ca: newCA(labca.Device, "device"), certs: map[string][2]*credential{}}
	if p.Libreswan, err = p.guest.StartLibreswan(t.Context(), tree, plutoSecrets); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("pluto said:\n%s", p.Log())
		}
	})
	return p
}

// issue gives both ends a certificate with keys of a kind and further names.
func (p *pluto) issue(t *testing.T, nickname string, key labca.KeyType, names ...string) {
	t.Helper()
	var both [2]*credential
	// NSS knows certificates of one subject by one nickname, so each has a name of its own.
	for i, name := range []string{"ours.example", nickname + ".theirs.example"} {
		c := &credential{name: name, key: must(labca.NewKey(key)), ca: p.ca}
		c.leaf = must(p.ca.Issue(labca.Request{Public: c.key.Public(), DNSNames: append([]string{name}, names...), At: time.Now().Add(-time.Hour)}))
		both[i] = c
	}
	chain := append([]*x509.Certificate{both[1].leaf}, p.ca.Intermediates()...)
	if err := p.AddIdentity(t.Context(), nickname, both[1].key, append(chain, p.ca.Anchor())...); err != nil {
		t.Fatal(err)
	}
	p.certs[nickname] = both
}

func (p *pluto) whack(t *testing.T, args string) {
	t.Helper()
	if out, err := p.Whack(context.WithoutCancel(t.Context()), args); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// plutoCase is a connection between us and libreswan.
type plutoCase struct {
	name     string
	cert     string // nickname; empty: PSK
	ike, esp string // ours
	theirs   []string
	native   bool // as protocol 50
	esn      bool
	six      bool // a second CHILD SA, for IPv6
	life     bool // all keys are changed
	once     bool // in one role
	peer     func(*ike.PeerConfig)
}

// connect makes the connection known to both ends.
func (p *pluto) connect(t *testing.T, c plutoCase) *driver {
	t.Helper()
	esp := must(suite.ParseProposals(suite.ProtocolESP, strings.Fields(c.esp)))
	peer := &ike.PeerConfig{
		Name: "libreswan", Local: p.our, Remote: []netip.AddrPort{netip.AddrPortFrom(p.their, 500)},
		Proposals: must(suite.ParseProposals(suite.ProtocolIKE, strings.Fields(c.ike))),
		Children:  []ike.ChildConfig{{Name: "net", LocalTS: ts("10.1.0.0/24"), RemoteTS: ts("10.2.0.0/24"), Proposals: esp}},
	}
	settings := append([]string{
		"ikev2=insist", "left=" + p.their.String(), "right=" + p.our.String(), "rightid=@ours.example", "auto=add",
		"encapsulation=" + map[bool]string{true: "no", false: "yes"}[c.native],
	}, c.theirs...)
	if c.cert == "" {
		id := func(s string) ike.Identity { return must(ike.ParseIdentity(s)) }
		peer.LocalAuth = []ike.LocalAuth{{ID: id("ours.example"), PSK: []byte(psk)}}
		peer.RemoteAuth = []ike.RemoteAuth{{IDs: []ike.Identity{id("theirs.example")}, PSK: []byte(psk), RelatedToRound: -1}}
		settings = append(settings, "leftid=@theirs.example", "authby=secret")
	} else {
		ours, theirs := p.certs[c.cert][0], p.certs[c.cert][1]
		peer.LocalAuth = []ike.LocalAuth{ours.auth("")}
		peer.RemoteAuth = []ike.RemoteAuth{{IDs: []ike.Identity{theirs.id()}, Anchors: []*x509.Certificate{p.ca.Anchor()}, RelatedToRound: -1}}
		settings = append(settings, "leftid=@"+theirs.name, "leftcert="+c.cert, "rightca=%same", "sendca=issuer")
	}
	if c.peer != nil {
		c.peer(peer)
	}
	add := func(name string, nets ...string) {
		if err := p.Add(t.Context(), name, slices.Concat(settings, nets)...); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.whack(t, "--name "+name+" --delete") })
	}
	add(c.name, "leftsubnet=10.2.0.0/24", "rightsubnet=10.1.0.0/24")
	if c.six {
		peer.Children = append(peer.Children, ike.ChildConfig{Name: "net6", LocalTS: ts("fd00:1::/64"), RemoteTS: ts("fd00:2::/64"), Proposals: esp})
		add(c.name+"6", "leftsubnet=fd00:2::/64", "rightsubnet=fd00:1::/64")
	}
	return p.driver(t, nil, peer)
}

// establish has one end set up the connection's first CHILD SA.
func (p *pluto) establish(t *testing.T, d *driver, c plutoCase, weInitiate bool) {
	t.Helper()
	if weInitiate {
		if err := d.ep.Initiate("libreswan", "net"); err != nil {
			t.Fatal(err)
		}
	} else {
		p.whack(t, "--initiate --name "+c.name)
	}
	d.wait("the connection", func() bool { return len(d.children) == 1 })
	i, child := d.only()
	if i.Initiator != weInitiate || child.ESN != c.esn || child.Path.Encap == c.native {
		t.Errorf("we initiated %v, ESN %v, in UDP %v; want %v, %v, %v", i.Initiator, child.ESN, child.Path.Encap, weInitiate, c.esn, !c.native)
	}
}

var plutoCases = []plutoCase{
	{
		name: "p256", cert: "p256", ike: "aes256gcm16-prfsha384-ecp384", esp: "aes256gcm16-ecp384-esn", native: true, esn: true, life: true,
		theirs: []string{"authby=ecdsa", "ike=aes_gcm256-sha2_384-dh20", "esp=aes_gcm256;dh20", "esn=yes"},
	},
	{
		name: "p384", cert: "p384", ike: "chacha20poly1305-prfsha256-x25519", esp: "chacha20poly1305-noesn",
		theirs: []string{"authby=ecdsa", "ike=chacha20_poly1305-sha2_256-dh31", "esp=chacha20_poly1305", "pfs=no", "esn=no"},
	},
	{
		name: "psk", ike: "aes128-sha256-prfsha256-ecp256", esp: "aes256-sha512-ecp256-esn", native: true, esn: true, once: true,
		theirs: []string{"ike=aes128-sha2_256-dh19", "esp=aes256-sha2_512;dh19", "esn=yes"},
	},
}

// TestLibreswan: libreswan 4.10 whose packets its kernel carries, in both roles, with all keys changed by
// either end while packets cross.
func TestLibreswan(t *testing.T) {
	t.Parallel() // it mostly waits for another kernel
	p := newPluto(t)
	var names []string
	for i := range 150 {
		names = append(names, fmt.Sprintf("a-name-to-make-the-certificate-longer-%d.example", i))
	}
	p.issue(t, "p256", labca.P256)
	p.issue(t, "p384", labca.P384)
	p.issue(t, "large", labca.RSA3072, names...)
	for _, weInitiate := range []bool{true, false} {
		role := map[bool]string{true: "-responds", false: "-initiates"}[weInitiate]
		for _, c := range plutoCases {
			if c.once && !weInitiate {
				continue
			}
			c.name += role
			t.Run(c.name, func(t *testing.T) {
				d := p.connect(t, c)
				p.establish(t, d, c, weInitiate)
				p.traffic(t, d, c.native)
				if c.life {
					p.life(t, d, c)
				}
				p.end(t, d, c, weInitiate)
			})
		}
		t.Run("fragments"+role, func(t *testing.T) { p.fragments(t, weInitiate) })
		t.Run("ipv6"+role, func(t *testing.T) { p.ipv6(t, weInitiate) })
	}
	t.Run("liveness", p.liveness)
}

// life changes all keys from both ends while packets cross.
func (p *pluto) life(t *testing.T, d *driver, c plutoCase) {
	t.Helper()
	stop := p.flow(t, d, false)
	defer stop()
	_, child := d.only()
	replaced := func(what string) {
		t.Helper()
		old := child.ID
		d.wait(what, func() bool {
			_, there := d.children[old]
			ok := !there && len(d.children) == 1
			for id := range d.children {
				ok = ok && d.switched[id]
			}
			return ok
		})
		_, child = d.only()
	}
	keys := func() uint64 { return d.ep.Snapshot()[0].SPIi }
	renewed := func(what string, old uint64) {
		t.Helper()
		d.wait(what, func() bool {
			all := d.ep.Snapshot()
			return len(all) == 1 && all[0].SPIi != old && all[0].State == ike.StateEstablished
		})
	}
	if err := d.ep.RekeyChild(child.ID); err != nil {
		t.Fatal(err)
	}
	replaced("we rekeyed the CHILD SA")
	old := keys()
	i, _ := d.only()
	if err := d.ep.RekeyIKE(i.ID); err != nil {
		t.Fatal(err)
	}
	renewed("we rekeyed the IKE SA", old)
	p.whack(t, "--rekey-ipsec --name "+c.name)
	replaced("libreswan rekeyed the CHILD SA")
	old = keys()
	p.whack(t, "--rekey-ike --name "+c.name)
	renewed("libreswan rekeyed the IKE SA", old)
	if err := d.ep.RekeyChild(child.ID); err != nil {
		t.Fatal(err)
	}
	replaced("we rekeyed the CHILD SA under libreswan's new keys")
	stop()
	p.ping(t, false)
}

// end has the end that initiated delete the connection: libreswan makes what it initiated anew when the
// other end deletes it.
func (p *pluto) end(t *testing.T, d *driver, c plutoCase, weInitiated bool) {
	t.Helper()
	if weInitiated {
		d.ep.Terminate("libreswan", "the test is over")
	} else {
		p.whack(t, "--terminate --name "+c.name)
		if c.six { // libreswan leaves an IKE SA that several connections used
			p.whack(t, "--terminate --name "+c.name+"6")
			d.wait("both CHILD SAs to end", func() bool { return len(d.children) == 0 })
			d.ep.Terminate("libreswan", "the test is over")
		}
	}
	p.ended(t, d, c.name)
}

// ended waits until neither end has an SA.
func (p *pluto) ended(t *testing.T, d *driver, name string) {
	t.Helper()
	d.wait("the end", func() bool { return len(d.ike) == 0 && len(d.children) == 0 })
	if err := p.WaitIdle(t.Context(), name, 20*time.Second); err != nil {
		t.Error(err)
	}
	if len(d.refusals)+len(d.failed) != 0 {
		t.Errorf("refused %v, failed %v", d.refusals, d.failed)
	}
}

// fragments: certificates of 9 kB in both directions, RSA.
func (p *pluto) fragments(t *testing.T, weInitiate bool) {
	c := plutoCase{
		cert: "large", ike: "aes256gcm16-prfsha512-ecp521", esp: "aes128gcm16-noesn", native: true,
		theirs: []string{"authby=rsa-sha2", "ike=aes_gcm256-sha2_512-dh21", "esp=aes_gcm128", "pfs=no", "esn=no", "fragmentation=yes"},
	}
	c.name = fmt.Sprintf("fragments-%v", weInitiate)
	d := p.connect(t, c)
	p.establish(t, d, c, weInitiate)
	p.ping(t, false)
	p.end(t, d, c, weInitiate)
}

// ipv6: two CHILD SAs of one IKE SA, for IPv4 and IPv6; either end makes the second one.
func (p *pluto) ipv6(t *testing.T, weInitiate bool) {
	c := plutoCases[0]
	c.name, c.six = fmt.Sprintf("ipv6-%v", weInitiate), true
	d := p.connect(t, c)
	p.establish(t, d, c, weInitiate)
	if weInitiate {
		if err := d.ep.Initiate("libreswan", "net6"); err != nil {
			t.Fatal(err)
		}
	} else {
		p.whack(t, "--initiate --name "+c.name+"6")
	}
	d.wait("the second CHILD SA", func() bool { return len(d.children) == 2 })
	if n := len(d.ep.Snapshot()); n != 1 {
		t.Errorf("%d IKE SAs, want one", n)
	}
	p.ping(t, false)
	p.ping(t, true)
	p.end(t, d, c, weInitiate)
}

// liveness: both ends ask whether the other lives; both end the connection when the cable is cut.
func (p *pluto) liveness(t *testing.T) {
	c := plutoCases[0]
	c.name = "liveness"
	c.theirs = append(slices.Clone(c.theirs), "dpddelay=1", "dpdtimeout=8", "retransmit-timeout=8s", "retransmit-interval=1000")
	c.peer = func(peer *ike.PeerConfig) {
		peer.LivenessInterval = time.Second
		peer.Retransmit = ike.Retransmit{Initial: time.Second, Factor: 1.5, Tries: 3}
	}
	d := p.connect(t, c)
	p.establish(t, d, c, true)
	d.signsOfLife(2)
	p.cut(t, true)
	d.wait("the peer to be dead", func() bool {
		return slices.ContainsFunc(d.ends, func(r ike.Reason) bool { return r.Code == ike.ReasonPeerDead })
	})
	p.ended(t, d, c.name)
	p.cut(t, false)
	p.establish(t, d, c, false)
	p.ping(t, false)
}
