package router

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"wardgate/esp"
	"wardgate/ike"
	"wardgate/policy"
	"wardgate/router/pathmtu"
	"wardgate/router/wire"
	"wardgate/tun"
	"wardgate/tun/tuntest"
)

// side is one appliance's data path without IKE and kernel: a fake TUN, a real socket on
// loopback, a real policy.
type side struct {
	*datapath
	t       testing.TB
	tun     *tuntest.Device
	group   *wire.Group
	refused []refusedPacket
	woken   []string
	out     *outWorker
	in      *inWorker
}

// policyFor compiles a policy with one connection "a-b" whose local and remote addresses are
// swapped for the other end.
func policyFor(t testing.TB, local, remote string, flows []policy.FlowRule, more ...policy.Connection) *policy.Table {
	t.Helper()
	doc := &policy.Document{
		Format: 1, Issuer: "sp.example", Serial: 1,
		Device:    policy.Device{ID: "a.devices.example", Fingerprint: "sha256:" + fmt.Sprintf("%064d", 0)},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<31, 0),
		Suites:   policy.Suites{IKE: []string{"aes256gcm16-prfsha384-x25519"}, ESP: []string{"aes128gcm16"}},
		Zones:    []policy.Zone{{Name: "sz", Level: policy.LevelSZ, Prefixes: []string{local}, Interfaces: []string{"lan0"}}},
		Services: []policy.Service{{Name: "group-a", Category: policy.CategoryInformation, Auth: policy.AuthPSK, PSK: policy.NewSecret(bytes.Repeat([]byte{7}, 32))}},
		Peers:    []policy.Peer{{Name: "b", Gateways: []string{"127.0.0.1"}, DeviceID: "b.devices.example"}, {Name: "c", Gateways: []string{"127.0.0.2"}, DeviceID: "c.devices.example"}},
		Connections: append([]policy.Connection{{
			Name: "a-b", Peer: "b", Service: "group-a", Start: policy.StartOnDemand, Idle: policy.Duration(time.Minute),
			Local: []string{local}, Remote: []string{remote}, Flows: flows,
		}}, more...),
	}
	table, err := policy.Compile(doc)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func newSide(t testing.TB, table *policy.Table) *side {
	t.Helper()
	return newSideAt(t, table, netip.MustParseAddr("127.0.0.1"))
}

// newSideAt is newSide with the outer address.
func newSideAt(t testing.TB, table *policy.Table, at netip.Addr) *side {
	t.Helper()
	group, err := wire.OpenUDP(wire.Options{Addr: at, Queues: 1, Steer: true})
	if err != nil {
		t.Fatal(err)
	}
	s := &side{t: t, tun: tuntest.New("t", 1, 256), group: group}
	s.datapath = &datapath{
		start: time.Now(), flows: newFlowTable(1000), sad: newSAD(),
		refuse:  func(p refusedPacket) { s.refused = append(s.refused, p) },
		wake:    func(c *connection) { s.woken = append(s.woken, c.name) },
		switch_: func(c *childSA) { c.pending.Store(false) },
		rekey:   func(*childSA) {}, ike: func(*wire.Group, *wire.Datagram, []byte) {},
	}
	rs := &ruleset{gen: 1, table: table, index: make(map[*connection]int)}
	for i, info := range table.Connections() {
		c := newConnection(info.Name, heldLimits{64, 1 << 18, 10 * time.Second}, 2, time.Now())
		c.spec.Store(&connSpec{start: info.Start, local: info.Local, remote: info.Remote})
		rs.conns = append(rs.conns, c)
		rs.index[c] = i
	}
	s.rules.Store(rs)
	w := &tunWriter{q: s.tun.Queues()[0]}
	s.queues = []*tunWriter{w}
	s.out = newOutWorker(s.newWorker(0, 0))
	s.in = newInWorker(s.newWorker(0, 0), group, group.Sockets()[0], true)
	t.Cleanup(func() { group.Close(); s.tun.Close() })
	return s
}

// join makes a CHILD SA between connection number i of both sides.
func join(t testing.TB, a, b *side, i int) (ca, cb *childSA) {
	t.Helper()
	key := func(n byte) []byte { return bytes.Repeat([]byte{n}, 20) }
	mk := func(s, o *side, in, out byte) *childSA {
		c := s.rules.Load().conns[i]
		info := s.rules.Load().table.Connections()[i]
		child := &childSA{id: ike.ChildID(i + 1), conn: c, spiIn: 0x1000 + uint32(in) + uint32(i)<<16}
		for _, p := range info.Local {
			child.localTS = append(child.localTS, ike.PrefixSelector(p))
		}
		for _, p := range info.Remote {
			child.remoteTS = append(child.remoteTS, ike.PrefixSelector(p))
		}
		var err error
		if child.in, err = esp.NewInbound(esp.Params{SPI: child.spiIn, Encr: esp.EncrAESGCM16, KeyBits: 128, Key: key(in)}); err != nil {
			t.Fatal(err)
		}
		if child.out, err = esp.NewOutbound(esp.Params{SPI: 0x1000 + uint32(out) + uint32(i)<<16, Encr: esp.EncrAESGCM16, KeyBits: 128, Key: key(out)}); err != nil {
			t.Fatal(err)
		}
		child.spacing = spacingOf(child.out)
		remote := netip.AddrPortFrom(o.group.Addr(), o.group.Port())
		dest, err := wire.NewDest(remote, netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		child.path.Store(&sendPath{group: s.group, dest: dest, remote: remote, encap: true, mtu: pathmtu.New(pathmtu.Config{V6: remote.Addr().Is6(), Link: 1500})})
		if err := s.sad.add(child); err != nil {
			t.Fatal(err)
		}
		c.children = map[ike.ChildID]*childSA{child.id: child}
		c.cur.Store(child)
		return child
	}
	return mk(a, b, 1, 2), mk(b, a, 2, 1)
}

// lan lets a packet from the LAN reach the router.
func (s *side) lan(b []byte) {
	s.t.Helper()
	if err := s.tun.Inject(0, b); err != nil {
		s.t.Fatal(err)
	}
	if err := s.out.round(false); err != nil {
		s.t.Fatal(err)
	}
}

// wire lets the router take what has come to its socket.
func (s *side) wire() {
	s.t.Helper()
	late := time.AfterFunc(5*time.Second, func() { s.group.Close() })
	defer late.Stop()
	if err := s.in.round(); err != nil {
		s.t.Fatal(err)
	}
}

// forge seals and sends an inner packet past the router's own judgement, as a hostile peer can.
func (s *side) forge(child *childSA, inner []byte) {
	s.t.Helper()
	buf := make([]byte, headroom+len(inner)+tailroom)
	copy(buf[headroom:], inner)
	start, end, err := child.out.Seal(buf, headroom, len(inner), 4)
	if err != nil {
		s.t.Fatal(err)
	}
	m := []wire.Message{{Buf: buf[start:end], Dest: &child.path.Load().dest}}
	if s.out.sender(s.group).Send(m) != 0 {
		s.t.Fatal(m[0].Err)
	}
}

// silent fails when the router has sent anything: a datagram that is sent now comes first.
func (s *side) silent(o *side) {
	s.t.Helper()
	conn, err := net.Dial("udp", netip.AddrPortFrom(o.group.Addr(), o.group.Port()).String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("nothing before this")); err != nil {
		s.t.Fatal(err)
	}
	b := wire.NewBatch(4, 0)
	late := time.AfterFunc(5*time.Second, func() { o.group.Close() })
	defer late.Stop()
	if err := o.in.sock.Receive(b); err != nil {
		s.t.Fatal(err)
	}
	if d := &b.Datagrams[0]; string(d.Buf[d.Off:d.Off+d.Len]) != "nothing before this" {
		s.t.Fatalf("%d octets were sent", d.Len)
	}
}

// arrived returns the next packet that came out at the LAN, and waits for it.
func (s *side) arrived() []byte {
	s.t.Helper()
	b := s.delivered()
	if b == nil {
		s.wire()
		b = s.delivered()
	}
	return b
}

// delivered returns the packet that came out at the LAN, or nil.
func (s *side) delivered() []byte {
	select {
	case b := <-s.tun.Written(0):
		return b
	default:
		return nil
	}
}

func (s *side) lastRefusal() string {
	if len(s.refused) == 0 {
		return "nothing"
	}
	return s.refused[len(s.refused)-1].reason
}

var (
	flowsAtA = []policy.FlowRule{
		{Name: "dicom", From: []string{"10.2.1.0/24"}, To: []string{"10.1.2.10"}, Protocol: "tcp", Ports: []string{"104"}, Direction: policy.DirectionIn},
		{Name: "dns", From: []string{"10.2.1.0/24"}, To: []string{"10.1.2.10"}, Protocol: "udp", Ports: []string{"53"}, Direction: policy.DirectionIn},
		{Name: "ping", From: []string{"10.2.1.0/24"}, To: []string{"10.1.2.10"}, Protocol: "icmp", Direction: policy.DirectionIn},
	}
	flowsAtB = []policy.FlowRule{
		{Name: "dicom", From: []string{"10.2.1.0/24"}, To: []string{"10.1.2.10"}, Protocol: "tcp", Ports: []string{"104"}, Direction: policy.DirectionOut},
		{Name: "dns", From: []string{"10.2.1.0/24"}, To: []string{"10.1.2.10"}, Protocol: "udp", Ports: []string{"53"}, Direction: policy.DirectionOut},
		{Name: "ping", From: []string{"10.2.1.0/24"}, To: []string{"10.1.2.10"}, Protocol: "icmp", Direction: policy.DirectionOut},
	}
)

func pairOfSides(t testing.TB) (a, b *side) {
	t.Helper()
	a = newSide(t, policyFor(t, "10.1.2.0/24", "10.2.1.0/24", flowsAtA))
	b = newSide(t, policyFor(t, "10.2.1.0/24", "10.1.2.0/24", flowsAtB))
	return a, b
}

func TestAcross(t *testing.T) {
	a, b := pairOfSides(t)
	join(t, a, b, 0)
	ask := tcp4(t, "10.2.1.9", "10.1.2.10", 4000, 104, false)
	b.lan(ask)
	a.wire()
	if got := a.delivered(); !bytes.Equal(got, ask) {
		t.Fatalf("B to A: %x, refused %v", got, a.refused)
	}
	answer := tcp4(t, "10.1.2.10", "10.2.1.9", 104, 4000, false)
	a.lan(answer)
	b.wire()
	if got := b.delivered(); !bytes.Equal(got, answer) {
		t.Fatalf("A to B: %x, refused %v", got, b.refused)
	}
	c := a.rules.Load().conns[0]
	if got := c.total(); got != (traffic{packetsIn: 1, packetsOut: 1, bytesIn: uint64(len(ask)), bytesOut: uint64(len(answer))}) {
		t.Errorf("counters: %+v", got)
	}
}

// IPv4 and IPv6 inside, over IPv4 and IPv6 outside.
func TestFamilies(t *testing.T) {
	for _, outer := range []string{"127.0.0.1", "::1"} {
		for _, v6 := range []bool{false, true} {
			local, remote, host, peer, proto := "10.1.2.0/24", "10.2.1.0/24", "10.1.2.10", "10.2.1.9", "icmp"
			if v6 {
				local, remote, host, peer, proto = "2001:db8:1:2::/64", "2001:db8:2:1::/64", "2001:db8:1:2::10", "2001:db8:2:1::9", "icmpv6"
			}
			t.Run(fmt.Sprintf("%s over %s", host, outer), func(t *testing.T) {
				at := netip.MustParseAddr(outer)
				if probe, err := wire.OpenUDP(wire.Options{Addr: at, Queues: 1}); err != nil && noIPv6(err) {
					t.Log("no IPv6 on this machine's loopback: the outer address stays untried")
					return
				} else if err == nil {
					probe.Close()
				}
				rules := func(direction string) []policy.FlowRule {
					return []policy.FlowRule{
						{Name: "dns", From: []string{remote}, To: []string{host}, Protocol: "udp", Ports: []string{"53"}, Direction: direction},
						{Name: "ping", From: []string{remote}, To: []string{host}, Protocol: proto, Direction: direction},
					}
				}
				a := newSideAt(t, policyFor(t, local, remote, rules(policy.DirectionIn)), at)
				b := newSideAt(t, policyFor(t, remote, local, rules(policy.DirectionOut)), at)
				join(t, a, b, 0)
				dgram := func(src, dst string, sport, dport uint16) []byte {
					u := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
					if !v6 {
						return udp4(t, src, dst, sport, dport, 100)
					}
					ip := ip6(src, dst, layers.IPProtocolUDP)
					ip.TrafficClass = 0xb8
					if err := u.SetNetworkLayerForChecksum(ip); err != nil {
						t.Fatal(err)
					}
					return serialize(t, ip, u, gopacket.Payload(make([]byte, 100)))
				}
				ask, answer := dgram(peer, host, 4000, 53), dgram(host, peer, 53, 4000)
				b.lan(ask)
				a.wire()
				if got := a.delivered(); !bytes.Equal(got, ask) {
					t.Fatalf("B to A: %x, %v %v", got, a.refused, b.refused)
				}
				a.lan(answer)
				b.wire()
				if got := b.delivered(); !bytes.Equal(got, answer) {
					t.Fatalf("A to B: %x, %v %v", got, a.refused, b.refused)
				}
				a.lan(dgram(host, peer, 53, 4001))
				if a.lastRefusal() != "not-a-reply" {
					t.Errorf("another port: %s", a.lastRefusal())
				}
			})
		}
	}
}

// What a rule allows in one direction to be opened is in the other direction only an answer.
func TestOnlyAnswers(t *testing.T) {
	a, b := pairOfSides(t)
	join(t, a, b, 0)
	for _, p := range [][]byte{
		tcp4(t, "10.1.2.10", "10.2.1.9", 104, 4000, false),
		udp4(t, "10.1.2.10", "10.2.1.9", 53, 4000, 10),
		echo4(t, "10.1.2.10", "10.2.1.9", 5, true),
	} {
		a.lan(p)
		if a.lastRefusal() != "not-a-reply" {
			t.Errorf("refused because of %s, want not-a-reply", a.lastRefusal())
		}
		if e := a.delivered(); e == nil || e[20] != 3 || e[21] != 13 {
			t.Error("the sender is not told")
		}
	}
	a.lan(echo4(t, "10.1.2.10", "10.2.1.9", 5, false))
	if a.lastRefusal() != "no-rule" {
		t.Errorf("ping from A: %s", a.lastRefusal())
	}
	a.silent(b)
	// and an echo reply after a request passes
	b.lan(echo4(t, "10.2.1.9", "10.1.2.10", 5, false))
	a.wire()
	a.delivered()
	a.lan(echo4(t, "10.1.2.10", "10.2.1.9", 5, true))
	b.wire()
	if b.delivered() == nil {
		t.Errorf("reply is refused: %v", b.refused)
	}
}

// Whatever B puts into its tunnel, A's LAN sees only what A's policy allows (ZONE-1, ZONE-2).
func TestHostilePeer(t *testing.T) {
	a, b := pairOfSides(t)
	ca, cb := join(t, a, b, 0)
	_ = ca
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"another port", tcp4(t, "10.2.1.9", "10.1.2.10", 4000, 22, false), "no-rule"},
		{"another host", tcp4(t, "10.2.1.9", "10.1.2.11", 4000, 104, false), "no-rule"},
		{"another zone", tcp4(t, "10.2.1.9", "10.1.1.10", 4000, 104, false), "outside-selectors"},
		{"a third facility", tcp4(t, "10.2.1.9", "10.3.1.10", 4000, 104, false), "outside-selectors"},
		{"the internet", tcp4(t, "10.2.1.9", "192.0.2.1", 4000, 104, false), "outside-selectors"},
		{"source of A", tcp4(t, "10.1.2.9", "10.1.2.10", 4000, 104, false), "outside-selectors"},
		{"source of a stranger", tcp4(t, "10.9.1.9", "10.1.2.10", 4000, 104, false), "outside-selectors"},
		{"an answer to nothing", tcp4(t, "10.2.1.9", "10.1.2.10", 104, 104, false)[:20], "malformed"},
		{"later fragment", func() []byte {
			p := udp4(t, "10.2.1.9", "10.1.2.10", 1, 53, 100)
			p[6], p[7] = 0, 10
			return p
		}(), "fragment-without-first"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a.refused = nil
			b.forge(cb, c.b)
			a.wire()
			if got := a.delivered(); got != nil {
				t.Fatalf("delivered %x", got)
			}
			if c.want != "malformed" && a.lastRefusal() != c.want {
				t.Errorf("refused because of %s, want %s", a.lastRefusal(), c.want)
			}
		})
	}
}

// Wider selectors than the contract do not help: the policy decides again.
func TestNoRelayWithAnySelectors(t *testing.T) {
	more := policy.Connection{
		Name: "a-c", Peer: "c", Service: "group-a", Start: policy.StartOnDemand, Idle: policy.Duration(time.Minute),
		Flows: []policy.FlowRule{{Name: "x", From: []string{"10.3.1.0/24"}, To: []string{"10.1.2.20"}, Protocol: "tcp", Ports: []string{"443"}, Direction: policy.DirectionIn}},
	}
	a := newSide(t, policyFor(t, "10.1.2.0/24", "10.2.1.0/24", flowsAtA, more))
	b := newSide(t, policyFor(t, "10.2.1.0/24", "10.1.2.0/24", flowsAtB))
	ca, cb := join(t, a, b, 0)
	ca.localTS, ca.remoteTS = []ike.Selector{ike.AnySelector(false)}, []ike.Selector{ike.AnySelector(false)}
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"to C", tcp4(t, "10.2.1.9", "10.3.1.10", 4000, 443, false), "no-relay"},
		{"to the internet", tcp4(t, "10.2.1.9", "192.0.2.1", 4000, 443, false), "not-a-local-zone"},
		{"as C", tcp4(t, "10.3.1.9", "10.1.2.20", 4000, 443, false), "wrong-connection"},
		{"as A", tcp4(t, "10.1.2.9", "10.1.2.10", 4000, 104, false), "spoofed-local-source"},
	} {
		a.refused = nil
		b.forge(cb, c.b)
		a.wire()
		if got := a.delivered(); got != nil {
			t.Fatalf("%s: delivered %x", c.name, got)
		}
		if a.lastRefusal() != c.want {
			t.Errorf("%s: refused because of %s, want %s", c.name, a.lastRefusal(), c.want)
		}
	}
	// B's packet that A's kernel reflected into the TUN again (NAT, a wrong route)
	a.refused = nil
	a.lan(tcp4(t, "10.2.1.9", "10.3.1.10", 4000, 443, false))
	if a.lastRefusal() != "no-relay" {
		t.Errorf("reflected: %s", a.lastRefusal())
	}
}

func TestHeldUntilUp(t *testing.T) {
	a, b := pairOfSides(t)
	var sent [][]byte
	for i := range 5 {
		p := udp4(t, "10.2.1.9", "10.1.2.10", 4000, 53, i)
		sent = append(sent, p)
		b.lan(p)
	}
	if len(b.woken) != 1 || b.woken[0] != "a-b" {
		t.Fatalf("woken: %v", b.woken)
	}
	_, cb := join(t, a, b, 0)
	cb.conn.cur.Store(nil)
	cb.conn.activate(cb, b.out.sendHeld)
	for i := range sent {
		if got := a.arrived(); !bytes.Equal(got, sent[i]) {
			t.Errorf("packet %d: %x", i, got)
		}
	}
}

// A flow that was allowed by the old policy is judged anew by the new one.
func TestPolicySwap(t *testing.T) {
	a, b := pairOfSides(t)
	join(t, a, b, 0)
	p := tcp4(t, "10.2.1.9", "10.1.2.10", 4000, 104, false)
	b.lan(p)
	a.wire()
	if a.delivered() == nil {
		t.Fatal("not delivered")
	}
	old := a.rules.Load()
	a.rules.Store(&ruleset{gen: 2, table: policyFor(t, "10.1.2.0/24", "10.2.1.0/24", flowsAtA[1:]), conns: old.conns, index: old.index})
	b.lan(p)
	a.wire()
	if a.delivered() != nil || a.lastRefusal() != "no-rule" {
		t.Errorf("after the swap: %s", a.lastRefusal())
	}
	a.rules.Store(&ruleset{gen: 3})
	b.lan(p)
	a.wire()
	if a.delivered() != nil || a.lastRefusal() != "no-policy" {
		t.Errorf("without a policy: %s", a.lastRefusal())
	}
}

// A policy is swapped between a question and its answer, at the side that was asked or at the one that
// asks: the answer passes when the question still would, and not otherwise.
func TestPolicySwapBeforeTheAnswer(t *testing.T) {
	dns := [2][]byte{udp4(t, "10.2.1.9", "10.1.2.10", 4000, 53, 20), udp4(t, "10.1.2.10", "10.2.1.9", 53, 4000, 20)}
	ping := [2][]byte{echo4(t, "10.2.1.9", "10.1.2.10", 7, false), echo4(t, "10.1.2.10", "10.2.1.9", 7, true)}
	for _, c := range []struct {
		name     string
		packets  [2][]byte
		atA, atB []policy.FlowRule // what is allowed after the swap
		sent     bool              // A puts the answer into the tunnel
		answered bool
	}{
		{"the same at the one that was asked", dns, flowsAtA, nil, true, true},
		{"the same at the one that asks", dns, nil, flowsAtB, true, true},
		{"less at the one that was asked", dns, flowsAtA[:1], nil, false, false},
		{"less at the one that asks", dns, nil, flowsAtB[:1], true, false},
		{"ping, the same on both sides", ping, flowsAtA, flowsAtB, true, true},
		{"ping, less at the one that was asked", ping, flowsAtA[:2], flowsAtB, false, false},
		{"ping, less at the one that asks", ping, flowsAtA, flowsAtB[:2], true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pairOfSides(t)
			join(t, a, b, 0)
			b.lan(c.packets[0])
			a.wire()
			if a.delivered() == nil {
				t.Fatal("the question was not delivered")
			}
			swap := func(s *side, local, remote string, flows []policy.FlowRule) {
				if old := s.rules.Load(); flows != nil {
					s.rules.Store(&ruleset{gen: old.gen + 1, table: policyFor(t, local, remote, flows), conns: old.conns, index: old.index})
				}
			}
			swap(a, "10.1.2.0/24", "10.2.1.0/24", c.atA)
			swap(b, "10.2.1.0/24", "10.1.2.0/24", c.atB)
			a.lan(c.packets[1])
			if c.sent {
				b.wire()
			}
			if got := b.delivered() != nil; got != c.answered {
				t.Errorf("answered: %v, want %v; refused at A: %q, at B: %q", got, c.answered, a.lastRefusal(), b.lastRefusal())
			}
		})
	}
}

func TestICMPErrors(t *testing.T) {
	a, b := pairOfSides(t)
	join(t, a, b, 0)
	ask := udp4(t, "10.2.1.9", "10.1.2.10", 4000, 53, 20)
	icmpError := func(about []byte, src, dst string) []byte {
		return serialize(t, ip4(src, dst, layers.IPProtocolICMPv4),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3)}, gopacket.Payload(about[:28]))
	}
	unreachable := icmpError(ask, "10.1.2.10", "10.2.1.9")
	a.lan(unreachable) // about a packet that never was
	if a.lastRefusal() != "not-a-reply" {
		t.Errorf("before the flow: %s", a.lastRefusal())
	}
	b.lan(ask)
	a.wire()
	a.delivered()
	a.lan(unreachable)
	b.wire()
	if got := b.delivered(); !bytes.Equal(got, unreachable) {
		t.Errorf("error is not delivered: %v", b.refused)
	}
	// an error to somebody else than the sender of the quoted packet
	a.refused = nil
	a.lan(icmpError(ask, "10.1.2.10", "10.2.1.77"))
	if a.lastRefusal() != "not-a-reply" {
		t.Errorf("to another host: %s", a.lastRefusal())
	}
}

func TestFragments(t *testing.T) {
	a, b := pairOfSides(t)
	join(t, a, b, 0)
	whole := udp4(t, "10.2.1.9", "10.1.2.10", 4000, 53, 1200)
	frag := func(id uint16, off, n int, more bool) []byte {
		f := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, Id: id, SrcIP: net.ParseIP("10.2.1.9"), DstIP: net.ParseIP("10.1.2.10"), FragOffset: uint16(off / 8)}
		if more {
			f.Flags = layers.IPv4MoreFragments
		}
		return serialize(t, f, gopacket.Payload(whole[20+off:20+off+n]))
	}
	first, second := frag(7, 0, 800, true), frag(7, 800, 408, false)
	b.lan(second)
	if b.lastRefusal() != "fragment-without-first" {
		t.Errorf("got %s", b.lastRefusal())
	}
	b.lan(first)
	b.lan(second)
	for _, want := range [][]byte{first, second} {
		if got := a.arrived(); !bytes.Equal(got, want) {
			t.Fatalf("got %x, %v", got, a.refused)
		}
	}
}

// The first packet that comes in on the successor of a CHILD SA proves that the peer has it.
func TestPendingSwitches(t *testing.T) {
	a, b := pairOfSides(t)
	ca, _ := join(t, a, b, 0)
	ca.pending.Store(true)
	b.lan(udp4(t, "10.2.1.9", "10.1.2.10", 4000, 53, 1))
	a.wire()
	if ca.pending.Load() {
		t.Error("still pending")
	}
}

func TestNoAllocationsPerPacket(t *testing.T) {
	a, b := pairOfSides(t)
	join(t, a, b, 0)
	sink := &sinkQueue{Queue: a.queues[0].q}
	a.queues[0].q = sink
	p := udp4(t, "10.2.1.9", "10.1.2.10", 4000, 53, 100)
	const n = 100
	through := func() {
		for sink.packets = 0; sink.packets < n; {
			if b.out.round(false) != nil || a.in.round() != nil {
				t.Fatal("round failed")
			}
		}
	}
	inject := func(d *tuntest.Device) {
		for range n {
			if err := d.Inject(0, p); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The fake TUN allocates for the injected packets.
	own := testing.AllocsPerRun(4, func() { inject(tuntest.New("x", 1, n)) })
	if d := testing.AllocsPerRun(20, func() { inject(b.tun); through() }) - own; d > n/20 {
		t.Errorf("%.0f allocations for %d packets on their way out and in", d, n)
	}
}

// sinkQueue counts what is written to it.
type sinkQueue struct {
	tun.Queue
	packets, bytes int
}

func (q *sinkQueue) WriteBatch(pkts []tun.Packet) (int, error) {
	q.packets += len(pkts)
	for i := range pkts {
		q.bytes += pkts[i].Len
	}
	return len(pkts), nil
}

// BenchmarkThrough takes packets of 1300 octets out of a TUN that is not there, through sockets on
// loopback, and to the other one; 64 of them a round, as under load.
func BenchmarkThrough(bm *testing.B) {
	a, b := pairOfSides(bm)
	join(bm, a, b, 0)
	sink := &sinkQueue{Queue: a.queues[0].q}
	a.queues[0].q = sink
	p := udp4(bm, "10.2.1.9", "10.1.2.10", 4000, 53, 1300)
	bm.SetBytes(64 * int64(len(p)))
	bm.ReportAllocs()
	for bm.Loop() {
		for range 64 {
			if err := b.tun.Inject(0, p); err != nil {
				bm.Fatal(err)
			}
		}
		for sink.packets = 0; sink.packets < 64; {
			if b.out.round(false) != nil || a.in.round() != nil {
				bm.Fatal("round failed")
			}
		}
	}
}
