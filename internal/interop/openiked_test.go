package interop

import (
	"context"
	"crypto/x509"
	"errors"
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
)

// iked is OpenIKED in a guest.
type iked struct {
	*guestWire
	*lab.OpenIKED
	ours, theirs *credential
}

func newIked(t *testing.T) *iked {
	t.Helper()
	needsGuest(t)
	missing(t, lab.OpenIKEDMissing())
	o := &iked{guestWire: newGuest(t, "openiked", 192)}
	// iked sends its own certificate alone, so the authority issues it itself.
	ca := must(labca.New(labca.Options{Kind: labca.Device, Name: "device", At: time.Now().Add(-time.Hour), Direct: true}))
	o.ours, o.theirs = issue(ca, "ours.example", labca.P256, nil), issue(ca, "theirs.example", labca.P384, nil)
	var err error
	if o.OpenIKED, err = o.guest.OpenIKED(t.Context(), o.theirs.name, o.theirs.key, o.theirs.leaf, ca.Anchor()); err != nil {
		t.Fatal(err)
	}
	return o
}

// ikedCase is a connection between us and OpenIKED.
type ikedCase struct {
	esp     string // ours
	childsa string // theirs
	first   string // lines before the connection
	times   string // how long keys live
	config  func(*ike.Config)
	peer    func(*ike.PeerConfig)
}

// connect starts iked with the connection, and a driver that knows it.
func (o *iked) connect(t *testing.T, c ikedCase, weInitiate bool) *driver {
	t.Helper()
	peer := &ike.PeerConfig{
		Name: "openiked", Local: o.our, Remote: []netip.AddrPort{netip.AddrPortFrom(o.their, 500)},
		Proposals:  must(suite.ParseProposals(suite.ProtocolIKE, []string{"aes256gcm16-prfsha384-ecp384"})),
		LocalAuth:  []ike.LocalAuth{o.ours.auth("")},
		RemoteAuth: []ike.RemoteAuth{{IDs: []ike.Identity{o.theirs.id()}, Anchors: []*x509.Certificate{o.ours.ca.Anchor()}, RelatedToRound: -1}},
		Children: []ike.ChildConfig{{
			Name: "net", LocalTS: ts("10.1.0.0/24"), RemoteTS: ts("10.2.0.0/24"),
			Proposals: must(suite.ParseProposals(suite.ProtocolESP, strings.Fields(c.esp))),
		}},
	}
	if c.peer != nil {
		c.peer(peer)
	}
	d := o.driver(t, c.config, peer)
	mode := map[bool]string{true: "passive", false: "active"}[weInitiate]
	if err := o.Start(t.Context(), fmt.Sprintf(`%s
ikev2 "wardgate" %s esp from 10.2.0.0/24 to 10.1.0.0/24 local %v peer %v \
	ikesa enc aes-256-gcm prf hmac-sha2-384 group ecp384 childsa %s \
	srcid %s dstid %s %s
`, c.first, mode, o.their, o.our, c.childsa, o.theirs.name, o.ours.name, c.times)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("iked said:\n%s", o.Log())
		}
		if err := o.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if weInitiate {
		if err := d.ep.Initiate("openiked", "net"); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// TestOpenIKED: OpenIKED 7.2 whose packets its kernel carries, in both roles. On Linux it talks to its
// kernel by PF_KEY, which knows no AEAD, no 64-bit sequence numbers and no HMAC-SHA2-256 (it agrees to the last
// two, and then carries nothing): ESP is AES-CBC with HMAC-SHA2-384 or 512, which a policy of ours has to name.
func TestOpenIKED(t *testing.T) {
	t.Parallel() // it mostly waits for another kernel
	o := newIked(t)
	t.Run("responds", o.responds)
	t.Run("initiates", o.initiates)
	t.Run("nothing in common", o.nothing)
	t.Run("empty SA payload", o.emptySA)
	t.Run("liveness", o.liveness)
}

// renewed waits until old is replaced and what replaced it is in use, or, with an IKE SA's SPI, until the
// IKE SA has other keys.
func (o *iked) renewed(d *driver, what string, old ike.ChildID, spi uint64) {
	d.t.Helper()
	d.wait(what, func() bool {
		all := d.ep.Snapshot()
		_, there := d.children[old]
		ok := !there && len(d.children) == 1 && len(all) == 1 && all[0].State == ike.StateEstablished && all[0].SPIi != spi
		for id := range d.children {
			ok = ok && d.switched[id]
		}
		return ok
	})
}

// responds: we set up, change all keys, and end the connection.
func (o *iked) responds(t *testing.T) {
	d := o.connect(t, ikedCase{esp: "aes256-sha384-ecp384-noesn", childsa: "enc aes-256 auth hmac-sha2-384 group ecp384 noesn"}, true)
	d.wait("the connection", func() bool { return len(d.children) == 1 })
	o.reach(t)
	o.traffic(t, d, true)
	// OpenIKED answers before its kernel has the new CHILD SA.
	stop := o.flow(t, d, true)
	defer stop()
	_, child := d.only()
	if err := d.ep.RekeyChild(child.ID); err != nil {
		t.Fatal(err)
	}
	o.renewed(d, "we rekeyed the CHILD SA", child.ID, 0)
	i, child := d.only()
	spi := d.ep.Snapshot()[0].SPIi
	if err := d.ep.RekeyIKE(i.ID); err != nil {
		t.Fatal(err)
	}
	o.renewed(d, "we rekeyed the IKE SA", 0, spi)
	if err := d.ep.RekeyChild(child.ID); err != nil {
		t.Fatal(err)
	}
	o.renewed(d, "we rekeyed the CHILD SA under the new keys", child.ID, 0)
	stop()
	o.ping(t, false)
	d.ep.Terminate("openiked", "the test is over")
	o.ended(t, d)
}

// initiates: iked sets up, changes all keys when they have lived a few seconds, and ends the connection. We
// send fragments.
func (o *iked) initiates(t *testing.T) {
	d := o.connect(t, ikedCase{
		esp: "aes128-sha256-noesn aes256-sha512-noesn", childsa: "enc aes-256 auth hmac-sha2-512 noesn",
		first: "set fragmentation", times: "ikelifetime 6 lifetime 4",
		config: func(c *ike.Config) { c.FragmentSize = 576 },
	}, false)
	d.wait("the connection", func() bool { return len(d.children) == 1 })
	_, child := d.only()
	spi := d.ep.Snapshot()[0].SPIi
	o.reach(t)
	o.traffic(t, d, true)
	// OpenIKED deletes the old CHILD SA before its kernel has the new one.
	stop := o.flow(t, d, true)
	defer stop()
	o.renewed(d, "OpenIKED to rekey both SAs", child.ID, spi)
	stop()
	o.reach(t)
	if out, err := o.Ctl(t.Context(), "reset id FQDN/"+o.ours.name); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	d.wait("OpenIKED to delete", func() bool { return len(d.ends) > 0 && d.ends[0].Remote })
}

// ended waits until neither end has an SA.
func (o *iked) ended(t *testing.T, d *driver) {
	t.Helper()
	d.wait("the end", func() bool { return len(d.ike) == 0 && len(d.children) == 0 })
	if err := lab.WaitFor(t.Context(), "OpenIKED to have no SA", patience, func() error {
		out, err := o.Ctl(t.Context(), "show sa")
		if err == nil && strings.Contains(out, "ESTABLISHED") {
			err = errors.New(out)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if len(d.refusals)+len(d.failed) != 0 {
		t.Errorf("refused %v, failed %v", d.refusals, d.failed)
	}
}

// nothing: no ESP suite in common ends in a clean refusal, which our record explains.
func (o *iked) nothing(t *testing.T) {
	d := o.connect(t, ikedCase{esp: "aes256gcm16", childsa: "enc aes-256 auth hmac-sha2-384 noesn"}, true)
	d.wait("the refusal", func() bool { return len(d.failed) == 1 })
	if err := d.failed[0]; !strings.Contains(err.Error(), "NO_PROPOSAL_CHOSEN") {
		t.Errorf("%v; want NO_PROPOSAL_CHOSEN", err)
	}
	d.wait("nothing to be left", func() bool { return len(d.ike) == 0 && len(d.ep.Snapshot()) == 0 })
}

// emptySA: told to use an AEAD, iked has no proposal that its kernel could do, and asks for a CHILD SA with an
// SA payload in which there is nothing. It is refused, and nothing is left.
func (o *iked) emptySA(t *testing.T) {
	for _, enc := range []string{"aes-256-gcm", "chacha20-poly1305"} {
		t.Run(enc, func(t *testing.T) {
			d := o.connect(t, ikedCase{esp: "aes256gcm16 chacha20poly1305", childsa: "enc " + enc}, false)
			d.wait("the refusal", func() bool { return len(d.refusals) == 1 })
			if r := d.refusals[0]; r.Code != ike.CodeSyntax || !strings.Contains(r.Err.Error(), "number of proposals is 0") {
				t.Errorf("refused: %+v", r)
			}
			d.wait("nothing to be left", func() bool { return len(d.ike) == 0 && len(d.ep.Snapshot()) == 0 })
			if err := lab.WaitFor(t.Context(), "OpenIKED to be told", patience, func() error {
				if !strings.Contains(o.Log(), "type INVALID_SYNTAX") {
					return errors.New("it was not")
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

// liveness: both ends ask whether the other lives; both forget the connection when the cable is cut.
func (o *iked) liveness(t *testing.T) {
	d := o.connect(t, ikedCase{
		esp: "aes256-sha384-noesn", childsa: "enc aes-256 auth hmac-sha2-384 noesn", first: "set dpd_check_interval 1",
		peer: func(p *ike.PeerConfig) {
			p.LivenessInterval = time.Second
			p.Retransmit = ike.Retransmit{Initial: time.Second, Factor: 1.5, Tries: 3}
		},
	}, true)
	d.wait("the connection", func() bool { return len(d.children) == 1 })
	d.signsOfLife(2)
	o.cut(t, true)
	d.wait("the peer to be dead", func() bool {
		return slices.ContainsFunc(d.ends, func(r ike.Reason) bool { return r.Code == ike.ReasonPeerDead })
	})
	o.cut(t, false)
	// A new connection takes the place of the old one, whether iked has given that up or not.
	if err := d.ep.Initiate("openiked", "net"); err != nil {
		t.Fatal(err)
	}
	d.wait("the connection", func() bool { return len(d.children) == 1 })
	o.reach(t)
	o.ping(t, false)
}
