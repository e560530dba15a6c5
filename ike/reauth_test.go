package ike_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
	"wardgate/internal/labca"
)

// renewed is another certificate for the same name and device, valid for life from now (issue begins an
// hour before).
func renewed(c *credential, ca *labca.Authority, device *credential, life time.Duration) *credential {
	return issue(ca, c.id.Data, labca.P256, device, func(r *labca.Request) { r.Life = life + time.Hour })
}

// withService is the connection of p's end n with another service certificate.
func (p *pair) withService(n *iketest.Node, c *credential) {
	p.t.Helper()
	old := &p.ca
	if n == p.b {
		old = &p.cb
	}
	next := **old
	next.LocalAuth = append([]ike.LocalAuth(nil), next.LocalAuth...)
	next.LocalAuth[1] = c.auth("service")
	*old = &next
	if err := n.Endpoint.SetPeers([]*ike.PeerConfig{&next}); err != nil {
		p.t.Fatal(err)
	}
}

func ended(n *iketest.Node, code string) int {
	k := 0
	for _, r := range n.Ended {
		if r.Code == code {
			k++
		}
	}
	return k
}

// serviceCert is the service certificate that the peer of n's only IKE SA has proved.
func serviceCert(t *testing.T, n *iketest.Node) string {
	t.Helper()
	for _, i := range n.IKE {
		return string(i.RemoteCerts[1])
	}
	t.Fatalf("%s has no IKE SA", n.Name)
	return ""
}

// TestRenewedCertificate: who has a new certificate proves it in a new IKE SA that takes the old one's
// place, and no packet is lost on the way, whichever end it is.
func TestRenewedCertificate(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"initiator", "responder", "responder that cannot be reached", "both"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{edit: func(p *pair) {
				if who == "responder that cannot be reached" {
					p.cb.Remote = nil // A's address is not in its policy
				}
			}})
			p.up()
			p.w.Link.Jitter = 30 * time.Millisecond
			traffic := p.w.Traffic(p.a, p.b, 5*time.Millisecond)
			f := facilities()
			var na, nb *credential
			if who == "initiator" || who == "both" {
				na = renewed(f[0].groupA, cas().groupA, f[0].device, 90*24*time.Hour)
				p.withService(p.a, na)
			}
			if who != "initiator" {
				nb = renewed(f[1].groupA, cas().groupA, f[1].device, 90*24*time.Hour)
				p.withService(p.b, nb)
			}
			p.w.For(2 * time.Minute)
			traffic.Stop()
			if traffic.Lost > 0 {
				t.Errorf("%d of %d packets were lost: %v", traffic.Lost, traffic.Sent, traffic.Why)
			}
			if na != nil && serviceCert(t, p.b) != string(na.leaf.Raw) {
				t.Error("B has not seen A's new certificate")
			}
			if nb != nil && serviceCert(t, p.a) != string(nb.leaf.Raw) {
				t.Error("A has not seen B's new certificate")
			}
			if n := ended(p.a, ike.ReasonReauthenticated) + ended(p.b, ike.ReasonReauthenticated); n == 0 {
				t.Errorf("no end says why: %+v, %+v", p.a.Ended, p.b.Ended)
			}
			if n := len(p.a.IKE); n != len(p.b.IKE) || n < 1 || n > 2 || who != "both" && n != 1 {
				t.Errorf("%d and %d IKE SAs", n, len(p.b.IKE))
			}
			p.carries()
			if len(p.a.Refusals)+len(p.b.Refusals)+len(p.a.Failed)+len(p.b.Failed) > 0 {
				t.Errorf("refused: %v %v %v %v", texts(p.a.Refusals), texts(p.b.Refusals), p.a.Failed, p.b.Failed)
			}
		})
	}
}

// TestManyRenewals: both ends renew at the same time, again and again; IKE SAs do not pile up.
func TestManyRenewals(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	f := facilities()
	for range 6 {
		p.withService(p.a, renewed(f[0].groupA, cas().groupA, f[0].device, 90*24*time.Hour))
		p.withService(p.b, renewed(f[1].groupA, cas().groupA, f[1].device, 90*24*time.Hour))
		p.w.For(2 * time.Minute)
		if len(p.a.IKE) < 1 || len(p.a.IKE) > 2 || len(p.b.IKE) != len(p.a.IKE) {
			t.Fatalf("%d and %d IKE SAs", len(p.a.IKE), len(p.b.IKE))
		}
	}
	p.carries()
}

// TestCertificateEnds: an IKE SA does not outlive a certificate of the peer's that is not renewed. We
// try to have a new one shown before, and refuse the old one afterwards.
func TestCertificateEnds(t *testing.T) {
	t.Parallel()
	f := facilities()
	short := renewed(f[1].groupA, cas().groupA, f[1].device, 20*time.Minute)
	p := newPair(t, pairOptions{edit: func(p *pair) { p.cb.LocalAuth[1] = short.auth("service") }})
	p.up()
	p.w.For(21 * time.Minute)
	p.counts(0, 0)
	if n := len(p.a.Refusals); n == 0 || p.a.Refusals[n-1].Code != ike.CodeExpired {
		t.Errorf("A refused %v", texts(p.a.Refusals))
	}
	if ended(p.a, ike.ReasonReauthenticated) == 0 {
		t.Error("A did not ask for a new proof before")
	}
}

// TestReauthByTime: PeerConfig.Reauth, and AUTH_LIFETIME of RFC 4478 from a peer, with traffic.
func TestReauthByTime(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{edit: func(p *pair) { p.ca.Reauth = 10 * time.Minute }})
	p.up()
	traffic := p.w.Traffic(p.a, p.b, 20*time.Millisecond)
	p.w.For(61 * time.Minute)
	traffic.Stop()
	if n := ended(p.a, ike.ReasonReauthenticated); n < 5 || n > 8 || traffic.Lost > 0 {
		t.Errorf("%d times in an hour, %d packets lost: %v", n, traffic.Lost, traffic.Why)
	}
	p.counts(1, 1)
}

func TestAuthLifetime(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	tell := func(n *iketest.Node, from, to netip.Addr, data []byte) {
		next, _ := n.Endpoint.IDs()
		_, msgs := n.Endpoint.Forge(uint8(message.ExchangeInformational), next, false, message.Payloads{message.NewNotify(message.NotifyAuthLifetime, data...)})
		for _, m := range msgs {
			p.w.Deliver(netip.AddrPortFrom(from, 500), netip.AddrPortFrom(to, 500), m)
		}
	}
	tell(p.b, addrB, addrA, binary.BigEndian.AppendUint32(nil, 300))
	p.w.For(4 * time.Minute)
	if ended(p.a, ike.ReasonReauthenticated) != 0 {
		t.Error("too soon")
	}
	p.w.For(90 * time.Second)
	if ended(p.a, ike.ReasonReauthenticated) != 1 {
		t.Errorf("A ended %+v", p.a.Ended)
	}
	p.carries()
}

// TestReauthFails: a gateway that is away does not cost the IKE SA that stands.
func TestReauthFails(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	p.up()
	p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool { return msg[18] != byte(message.ExchangeIKESAInit) }
	for id := range p.a.IKE {
		if err := p.a.Endpoint.Reauthenticate(id); err != nil {
			t.Fatal(err)
		}
	}
	p.w.For(3 * time.Minute)
	p.counts(1, 1)
	p.carries()
	if err := p.a.Endpoint.Reauthenticate(4711); err == nil {
		t.Error("an IKE SA that there is not")
	}
}
