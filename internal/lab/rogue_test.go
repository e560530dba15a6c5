package lab

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// The laboratory's attacker must be a real peer, or what is refused to it proves nothing: it
// talks to strongSwan, with two rounds of certificates, and its packets are answered.
func TestRogueIsARealPeer(t *testing.T) {
	needFile(t, charonPath)
	l := newLab(t, "t-rogue")
	a, b := pair(t, l)
	if err := b.Addr("lo", "10.2.0.1/24"); err != nil {
		t.Fatal(err)
	}
	p, err := NewProvider(GroupA)
	if err != nil {
		t.Fatal(err)
	}
	f := &Facility{Name: "b", DeviceID: "b.devices.example", WAN: netip.MustParseAddr("198.18.9.2")}
	id, err := p.Forge(f, GroupA, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.StartStrongSwan(t.Context(), b, "swan-b", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.LoadIdentity(p, id, GroupA); err != nil {
		t.Fatal(err)
	}
	if err := s.Load(t.Context(), SwanPeer{
		LocalAddr: "198.18.9.2", RemoteAddr: "%any",
		LocalDevice: id.IDs[0], LocalService: id.IDs[1],
		RemoteDevice: "a.devices.example", RemoteService: "a.group-a.example",
		DeviceCA: "device-ca.pem", ServiceCA: "service-ca.pem",
		LocalTS: "10.2.0.0/24", RemoteTS: "10.1.0.0/24",
		IKE: "aes256gcm16-prfsha384-x25519", ESP: "aes256gcm16",
	}.Config()); err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddr("198.18.9.1")
	mine, err := p.Forge(&Facility{Name: "a", DeviceID: "a.devices.example"}, GroupA, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Rogue(a, local)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	target := RogueTarget{Peer: f, Service: GroupA, Local: prefixes("10.1.0.0/24"), Remote: prefixes("10.2.0.0/24")}
	if err := r.Connect(ctx, p, mine, target); err != nil {
		t.Fatalf("%v\n%s", err, s.Log())
	}
	echo, err := b.EchoUDP(netip.MustParseAddrPort("10.2.0.1:7007"))
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	pkt := UDPPacket(netip.MustParseAddrPort("10.1.0.9:4242"), netip.MustParseAddrPort("10.2.0.1:7007"), []byte("hello, a"))
	if err := WaitFor(ctx, "an answer through the tunnel", 5*time.Second, func() error {
		if err := r.Inject(pkt); err != nil {
			return err
		}
		if len(r.Received()) == 0 {
			return errNothing
		}
		return nil
	}); err != nil {
		t.Fatalf("%v\n%s", err, s.Log())
	}
	if got := r.Received()[0]; !strings.HasSuffix(string(got), "hello, a") {
		t.Errorf("came back: %x", got)
	}
}

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}
