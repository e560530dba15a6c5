package ike_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"wardgate/ike"
	"wardgate/ike/message"
)

// sel reads "10.0.0.0/24", "10.0.0.3-10.0.0.9", with "[6/80]", "[6/80-90]", "[6/opaque]" or "[6]" behind.
func sel(s string) ike.Selector {
	addrs, rest, _ := strings.Cut(s, "[")
	var out ike.Selector
	if from, to, ok := strings.Cut(addrs, "-"); ok {
		out = ike.Selector{EndPort: 65535, Start: netip.MustParseAddr(from), End: netip.MustParseAddr(to)}
	} else {
		out = ike.PrefixSelector(netip.MustParsePrefix(addrs))
	}
	proto, ports, _ := strings.Cut(strings.TrimSuffix(rest, "]"), "/")
	num := func(s string) uint16 { return uint16(must(strconv.ParseUint(s, 10, 16))) }
	if proto != "" {
		out.Proto = uint8(num(proto))
	}
	switch from, to, ok := strings.Cut(ports, "-"); {
	case ports == "":
	case ports == "opaque":
		out.StartPort, out.EndPort = 65535, 0
	case ok:
		out.StartPort, out.EndPort = num(from), num(to)
	default:
		out.StartPort, out.EndPort = num(from), num(from)
	}
	return out
}

func sels(s string) (out []ike.Selector) {
	for _, x := range strings.Fields(s) {
		out = append(out, sel(x))
	}
	return out
}

func textOf(ts []ike.Selector) string {
	var out []string
	for _, s := range ts {
		out = append(out, s.String())
	}
	return strings.Join(out, " ")
}

// TestNarrow: what a responder makes of a wish (RFC 7296, section 2.9).
func TestNarrow(t *testing.T) {
	t.Parallel()
	const none, part, first, whole = 0, 1, 2, 3
	for name, c := range map[string]struct {
		tsr, tsi, ours, theirs string
		level                  int
		local, remote          string
	}{
		"the same":            {"10.2.0.0/24", "10.1.0.0/24", "10.2.0.0/24", "10.1.0.0/24", whole, "10.2.0.0..10.2.0.255", "10.1.0.0..10.1.0.255"},
		"less than allowed":   {"10.2.0.7/32", "10.1.0.0/25", "10.2.0.0/24", "10.1.0.0/24", whole, "10.2.0.7", "10.1.0.0..10.1.0.127"},
		"more than allowed":   {"0.0.0.0/0", "0.0.0.0/0", "10.2.0.0/24", "10.1.0.0/24", part, "10.2.0.0..10.2.0.255", "10.1.0.0..10.1.0.255"},
		"nothing in common":   {"10.3.0.0/24", "10.1.0.0/24", "10.2.0.0/24", "10.1.0.0/24", none, "", ""},
		"one end in common":   {"10.2.0.0/24", "10.3.0.0/24", "10.2.0.0/24", "10.1.0.0/24", none, "", ""},
		"two halves, allowed": {"10.2.0.0/24", "10.1.0.0/24", "10.2.0.0/25 10.2.0.128/25", "10.1.0.0/24", whole, "10.2.0.0..10.2.0.127 10.2.0.128..10.2.0.255", "10.1.0.0..10.1.0.255"},
		"a range, no prefix":  {"10.2.0.3-10.2.0.200", "10.1.0.0/24", "10.2.0.100-10.2.1.7", "10.1.0.0/24", part, "10.2.0.100..10.2.0.200", "10.1.0.0..10.1.0.255"},
		"the packet first":    {"10.2.0.9/32[6/443] 0.0.0.0/0", "10.1.0.9/32[6/4711] 0.0.0.0/0", "10.2.0.0/24", "10.1.0.0/24", first, "10.2.0.0..10.2.0.255", "10.1.0.0..10.1.0.255"},
		"the packet and ports": {
			"10.2.0.9/32[6/443] 10.2.0.0/24", "10.1.0.9/32[6/4711] 10.1.0.0/24", "10.2.0.0/24[6/443] 10.2.0.0/24[17/53]", "10.1.0.0/24", first,
			"10.2.0.0..10.2.0.255[6/443] 10.2.0.0..10.2.0.255[17/53]", "10.1.0.0..10.1.0.255",
		},
		"the packet is not allowed": {"10.2.7.9/32[6/443] 0.0.0.0/0", "10.1.0.9/32[6/4711] 0.0.0.0/0", "10.2.0.0/24", "10.1.0.0/24", part, "10.2.0.0..10.2.0.255", "10.1.0.0..10.1.0.255"},
		"protocols":                 {"10.2.0.0/24[6/443]", "10.1.0.0/24[6]", "10.2.0.0/24", "10.1.0.0/24", whole, "10.2.0.0..10.2.0.255[6/443]", "10.1.0.0..10.1.0.255[6]"},
		"another protocol":          {"10.2.0.0/24[6/443]", "10.1.0.0/24[6]", "10.2.0.0/24[17]", "10.1.0.0/24", none, "", ""},
		"ports overlap":             {"10.2.0.0/24[6/400-500]", "10.1.0.0/24[6]", "10.2.0.0/24[6/450-600]", "10.1.0.0/24[6]", part, "10.2.0.0..10.2.0.255[6/450-500]", "10.1.0.0..10.1.0.255[6]"},
		"ICMP echo":                 {"10.2.0.0/24[1/2048]", "10.1.0.0/24[1]", "10.2.0.0/24[1/2048-2303]", "10.1.0.0/24", whole, "10.2.0.0..10.2.0.255[1/2048]", "10.1.0.0..10.1.0.255[1]"},
		"opaque within any":         {"10.2.0.0/24[6/opaque]", "10.1.0.0/24[6/opaque]", "10.2.0.0/24", "10.1.0.0/24[6]", whole, "10.2.0.0..10.2.0.255[6/opaque]", "10.1.0.0..10.1.0.255[6/opaque]"},
		"opaque, not a port":        {"10.2.0.0/24[6/opaque]", "10.1.0.0/24[6]", "10.2.0.0/24[6/443]", "10.1.0.0/24", none, "", ""},
		"both families": {
			"10.2.0.0/24 2001:db8:2::/64", "10.1.0.0/24 2001:db8:1::/64", "2001:db8:2::/64 10.2.0.0/24", "2001:db8:1::/64 10.1.0.0/24", whole,
			"10.2.0.0..10.2.0.255 2001:db8:2::..2001:db8:2:0:ffff:ffff:ffff:ffff", "10.1.0.0..10.1.0.255 2001:db8:1::..2001:db8:1:0:ffff:ffff:ffff:ffff",
		},
		"a family that one end has alone":      {"10.2.0.0/24 2001:db8:2::/64", "10.1.0.0/24 2001:db8:1::/64", "10.2.0.0/24 2001:db8:2::/64", "10.1.0.0/24", first, "10.2.0.0..10.2.0.255", "10.1.0.0..10.1.0.255"},
		"families that do not meet":            {"10.2.0.0/24 2001:db8:2::/64", "10.1.0.0/24 2001:db8:1::/64", "10.2.0.0/24", "2001:db8:1::/64", none, "", ""},
		"protocols that do not meet":           {"10.2.0.0/24", "10.1.0.0/24", "10.2.0.0/24[6/443]", "10.1.0.0/24[17]", none, "", ""},
		"a protocol that one end has alone":    {"10.2.0.0/24", "10.1.0.0/24", "10.2.0.0/24[6/443] 10.2.0.0/24[17/53]", "10.1.0.0/24[6]", part, "10.2.0.0..10.2.0.255[6/443]", "10.1.0.0..10.1.0.255[6]"},
		"the same twice, and what it contains": {"10.2.0.0/24 10.2.0.0/24 10.2.0.7/32", "10.1.0.0/24", "10.2.0.0/16", "10.1.0.0/24", whole, "10.2.0.0..10.2.0.255", "10.1.0.0..10.1.0.255"},
		"several policies, several wishes":     {"10.2.0.0/23 10.4.0.0/24", "10.1.0.0/24", "10.2.1.0/24 10.4.0.0/16 10.5.0.0/16", "10.1.0.0/24", part, "10.2.1.0..10.2.1.255 10.4.0.0..10.4.0.255", "10.1.0.0..10.1.0.255"},
		"the end of all addresses":             {"255.255.255.255/32", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128 10.1.0.1/32", "0.0.0.0/0", "0.0.0.0/0", part, "255.255.255.255", "10.1.0.1"},
	} {
		level, local, remote := ike.Wish(sels(c.ours), sels(c.theirs), sels(c.tsr), sels(c.tsi))
		if level != c.level || textOf(local) != c.local || textOf(remote) != c.remote {
			t.Errorf("%s:\ngot  %d, %q to %q\nwant %d, %q to %q", name, level, textOf(local), textOf(remote), c.level, c.local, c.remote)
		}
	}
}

// TestWithin: a subset, also of several together.
func TestWithin(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"10.0.0.0/24", "10.0.0.0/24", true},
		{"10.0.0.0/24", "10.0.0.0/25 10.0.0.128/25", true},
		{"10.0.0.0/24", "10.0.0.0/25 10.0.0.129-10.0.0.255", false},
		{"10.0.0.0/24[6/1-100]", "10.0.0.0/25[6/1-50] 10.0.0.0/24[6/51-100] 10.0.0.128/25", true},
		{"10.0.0.0/24[6/1-100]", "10.0.0.0/25[6/1-50] 10.0.0.0/24[6/52-100] 10.0.0.128/25", false},
		{"10.0.0.0/24", "10.0.0.0/24[6]", false},
		{"10.0.0.0/24[6]", "10.0.0.0/24[6/0-65534]", false},
		{"10.0.0.0/24[6]", "10.0.0.0/24[6/0-100] 10.0.0.0/24[6/101-65535]", false}, // opaque is missing
		{"10.0.0.0/24[6]", "10.0.0.0/24[6/0-100] 10.0.0.0/24[6/opaque] 10.0.0.0/24[6/101-65535]", true},
		{"10.0.0.0/24[6/opaque]", "10.0.0.0/24[6/opaque]", true},
		{"10.0.0.0/24[6/opaque]", "10.0.0.0/24[6/1-100]", false},
		{"0.0.0.0/0", "0.0.0.0/1 128.0.0.0/1", true},
		{"::/0", "::/1 8000::/1", true},
		{"::/0", "0.0.0.0/0", false},
		{"10.0.0.0/24 10.0.1.0/24", "10.0.0.0/24", false},
		{"10.0.0.0/24", "", false},
		{"", "10.0.0.0/24", false},
	} {
		if got := ike.Within(sels(c.a), sels(c.b)); got != c.want {
			t.Errorf("%q within %q: %v", c.a, c.b, got)
		}
	}
}

// packet is one that a selector may match: opaque stands for unknown ports.
type packet struct {
	addr   netip.Addr
	proto  uint8
	port   uint16
	opaque bool
}

func (p packet) in(ts []ike.Selector) bool {
	return slices.ContainsFunc(ts, func(s ike.Selector) bool {
		ports := p.port >= s.StartPort && p.port <= s.EndPort
		if p.opaque {
			ports = s.StartPort == 65535 && s.EndPort == 0 || s.StartPort == 0 && s.EndPort == 65535
		}
		return s.Start.Is4() == p.addr.Is4() && s.Start.Compare(p.addr) <= 0 && p.addr.Compare(s.End) <= 0 &&
			(s.Proto == 0 || s.Proto == p.proto) && ports
	})
}

// A small world, in which all packets can be tried: 8 addresses of each family, 2 protocols, ports at
// both ends and in the middle, and unknown ones.
func allPackets() (out []packet) {
	for a := range byte(8) {
		for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, a}), netip.AddrFrom16([16]byte{0x20, 1, 15: a})} {
			for _, proto := range []uint8{6, 17} {
				for _, port := range []uint16{0, 1, 2, 3, 65534, 65535} {
					out = append(out, packet{addr, proto, port, false})
				}
				out = append(out, packet{addr, proto, 0, true})
			}
		}
	}
	return out
}

// smallSelector makes a selector of the small world of four octets.
func smallSelector(v uint32) ike.Selector {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	from, to := b[0]%8, b[0]>>3%8
	if from > to {
		from, to = to, from
	}
	s := ike.Selector{EndPort: 65535, Start: netip.AddrFrom4([4]byte{10, 0, 0, from}), End: netip.AddrFrom4([4]byte{10, 0, 0, to})}
	if b[0]&0x40 != 0 {
		s.Start, s.End = netip.AddrFrom16([16]byte{0x20, 1, 15: from}), netip.AddrFrom16([16]byte{0x20, 1, 15: to})
	}
	if s.Proto = []uint8{0, 6, 17}[b[1]%3]; s.Proto == 0 {
		return s
	}
	ports := []uint16{0, 1, 2, 3, 65534, 65535}
	s.StartPort, s.EndPort = ports[b[2]%6], ports[b[3]%6]
	if s.StartPort > s.EndPort {
		s.StartPort, s.EndPort = s.EndPort, s.StartPort
	}
	if b[1]&0x40 != 0 {
		s.StartPort, s.EndPort = 65535, 0
	}
	return s
}

func smallSelectors(b []byte) (out []ike.Selector) {
	for ; len(b) >= 4; b = b[4:] {
		out = append(out, smallSelector(binary.BigEndian.Uint32(b)))
	}
	return out
}

// checkSelectors tries every packet of the small world: what is narrowed is what both have, neither more
// nor less; a subset is one; the first selectors stay, where the policy has them (RFC 7296, section 2.9).
func checkSelectors(t interface{ Fatalf(string, ...any) }, wanted, policy []ike.Selector) {
	got := ike.Narrow(wanted, policy)
	subset := len(wanted) > 0
	for _, p := range allPackets() {
		both := p.in(wanted) && p.in(policy)
		if p.in(got) != both {
			t.Fatalf("%q and %q give %q: packet %+v is in it: %v, want %v", textOf(wanted), textOf(policy), textOf(got), p, p.in(got), both)
		}
		subset = subset && (!p.in(wanted) || p.in(policy))
	}
	if len(got) > 0 && (!ike.Within(got, wanted) || !ike.Within(got, policy)) {
		t.Fatalf("%q of %q and %q is not within both", textOf(got), textOf(wanted), textOf(policy))
	}
	// All protocols are more than the two of the small world, and all ports more than its six.
	if within := ike.Within(wanted, policy); within && !subset {
		t.Fatalf("%q is not within %q", textOf(wanted), textOf(policy))
	}
	if len(wanted) > 0 && ike.Within(wanted[:1], policy) && !ike.Within(wanted[:1], got) {
		t.Fatalf("the first of %q is allowed by %q, and not in %q", textOf(wanted), textOf(policy), textOf(got))
	}
	for i, s := range got {
		for j, o := range got {
			if i != j && ike.Within([]ike.Selector{s}, []ike.Selector{o}) {
				t.Fatalf("%q: %v says what %v says", textOf(got), s, o)
			}
		}
	}
}

func TestSelectorProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		some := func(name string) []ike.Selector {
			return smallSelectors(rapid.SliceOfN(rapid.Byte(), 0, 24).Draw(t, name))
		}
		wanted, policy := some("wanted"), some("policy")
		checkSelectors(t, wanted, policy)
		l, r := ike.PairUp(wanted, policy)
		if (len(l) == 0) != (len(r) == 0) {
			t.Fatalf("%q and %q pair up to %q and %q", textOf(wanted), textOf(policy), textOf(l), textOf(r))
		}
	})
}

func FuzzSelectors(f *testing.F) {
	f.Add([]byte{0x78, 1, 2, 3, 0, 0, 0, 0}, []byte{0x38, 2, 0, 5})
	f.Fuzz(func(t *testing.T, wanted, policy []byte) {
		if len(wanted) <= 64 && len(policy) <= 64 {
			checkSelectors(t, smallSelectors(wanted), smallSelectors(policy))
		}
	})
}

// TestManySelectors: the most that a payload can have, against as many, in the least favourable order,
// is bounded in size.
func TestManySelectors(t *testing.T) {
	t.Parallel()
	var a, b []ike.Selector
	for i := range 255 {
		a = append(a, sel(fmt.Sprintf("10.%d.0.0/16[6/%d-%d]", i, i, 60000-i)))
		b = append(b, sel(fmt.Sprintf("10.0.0.%d-10.255.255.0[6/%d-%d]", i, i, 65000-i)))
	}
	if got := ike.Narrow(a, b); len(got) == 0 || len(got) > 255 || !ike.Within(got[:1], a) {
		t.Errorf("%d selectors", len(got))
	}
	ike.Within(a, b) // ends
}

// TestPacketFirst: the packet that a CHILD SA is made for decides which of several it becomes, in IKE_AUTH
// and in CREATE_CHILD_SA; one that the policy does not let through is not told (section 2.9.1); rekeys do
// not name it (section 2.9.2).
func TestPacketFirst(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		packet ike.Flow
		want   string // B's CHILD SA
		first  string // TSr of A's request
	}{
		"first CHILD SA of B":  {ike.Flow{Proto: 6, Local: netip.MustParseAddr("10.1.0.9"), LocalPort: 4711, Remote: netip.MustParseAddr("10.2.0.9"), RemotePort: 443}, "net", "10.2.0.9-10.2.0.9[6/443-443]"},
		"second CHILD SA of B": {ike.Flow{Proto: 17, Local: netip.MustParseAddr("10.1.0.9"), LocalPort: 4711, Remote: netip.MustParseAddr("10.2.1.9"), RemotePort: 53}, "other", "10.2.1.9-10.2.1.9[17/53-53]"},
		"ICMP":                 {ike.Flow{Proto: 1, Local: netip.MustParseAddr("10.1.0.9"), Remote: netip.MustParseAddr("10.2.1.9"), RemotePort: 53}, "other", "10.2.1.9-10.2.1.9[1/0-65535]"},
		"outside":              {ike.Flow{Proto: 6, Local: netip.MustParseAddr("10.7.0.9"), LocalPort: 4711, Remote: netip.MustParseAddr("10.2.1.9"), RemotePort: 443}, "net", "10.2.0.0-10.2.255.255"},
	} {
		for _, childless := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %v", name, childless), func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) { psk(c); c.Childless = childless }, edit: func(p *pair) {
					p.ca.Children[0].RemoteTS = prefix("10.2.0.0/16")
					other := p.cb.Children[0]
					other.Name, other.LocalTS = "other", prefix("10.2.1.0/24")
					p.cb.Children = append(p.cb.Children, other)
				}})
				var asked []string
				more := false
				p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
					n := p.b
					if from.Addr() == addrB {
						n = p.a
					}
					ps := n.Endpoint.Peek(msg)
					if ts := ps.TSr(); ts != nil && from.Addr() == addrA {
						asked = append(asked, ts.Selectors[0].String())
					}
					more = more || ps.HasNotify(message.NotifyAdditionalTSPossible)
					return true
				}
				if err := p.a.Endpoint.InitiateFor("a-b", "net", c.packet); err != nil {
					t.Fatal(err)
				}
				p.w.For(5 * time.Second)
				p.counts(1, 1)
				for _, x := range p.b.Children {
					if x.Child != c.want {
						t.Errorf("B made %q, want %q", x.Child, c.want)
					}
				}
				if len(asked) != 1 || asked[0] != c.first {
					t.Errorf("A asked for %v, want %s first", asked, c.first)
				}
				if !more {
					t.Error("B did not say that others are possible")
				}
				if err := p.a.Endpoint.RekeyChild(childOf(t, p.a).ID); err != nil {
					t.Fatal(err)
				}
				p.w.For(5 * time.Second)
				if len(asked) != 2 || strings.Contains(asked[1], "[") {
					t.Errorf("A asked for %v in the rekey", asked)
				}
				p.counts(1, 1)
			})
		}
	}
	p := newPair(t, pairOptions{})
	if err := p.a.Endpoint.InitiateFor("a-b", "net", ike.Flow{Local: netip.MustParseAddr("10.1.0.9"), Remote: netip.IPv6Unspecified()}); err == nil {
		t.Error("a packet of two families was taken")
	}
}

// TestSinglePairRequired: a peer that makes CHILD SAs for single pairs of addresses is asked for that of
// the packet, once; without a packet the attempt fails.
func TestSinglePairRequired(t *testing.T) {
	t.Parallel()
	flow := ike.Flow{Proto: 6, Local: netip.MustParseAddr("10.1.0.9"), LocalPort: 4711, Remote: netip.MustParseAddr("10.2.0.9"), RemotePort: 443}
	for name, c := range map[string]struct {
		packet, childless, always bool
	}{
		"packet": {packet: true}, "packet, CREATE_CHILD_SA": {packet: true, childless: true}, "no packet": {}, "always": {packet: true, always: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: func(x *ike.PeerConfig) { psk(x); x.Childless = c.childless }, edit: func(p *pair) {
				// B's own refusal is turned into the other one.
				p.cb.Children[0].LocalTS, p.cb.Children[0].RemoteTS = prefix("10.2.0.9/32"), prefix("10.1.0.9/32")
			}})
			asked := 0
			p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
				if from.Addr() != addrB || msg[18] != 35 && msg[18] != 36 || msg[19]&0x20 == 0 {
					return true
				}
				ps := p.a.Endpoint.Peek(msg)
				if ps.SA() == nil {
					return true
				}
				if asked++; asked > 1 && !c.always {
					return true
				}
				ps = slices.DeleteFunc(slices.Clone(ps), func(q message.Payload) bool {
					return q.PayloadType() != message.PayloadIDr && q.PayloadType() != message.PayloadAUTH
				})
				ps = append(ps, message.NewNotify(message.NotifySinglePairRequired))
				_, forged := p.b.Endpoint.Forge(msg[18], uint32(msg[23]), true, ps)
				for _, m := range forged {
					p.w.Deliver(from, to, m)
				}
				return false
			}
			var err error
			if c.packet {
				err = p.a.Endpoint.InitiateFor("a-b", "net", flow)
			} else {
				err = p.a.Endpoint.Initiate("a-b", "net")
			}
			if err != nil {
				t.Fatal(err)
			}
			p.w.For(5 * time.Second)
			if up := c.packet && !c.always; up != (len(p.a.Children) == 1) || up == (len(p.a.Failed) == 1) || asked > 2 {
				t.Errorf("asked %d times, A has %d CHILD SAs, was told %v", asked, len(p.a.Children), p.a.Failed)
			}
			for _, x := range p.a.Children {
				if textOf(x.LocalTS) != "10.1.0.9" || textOf(x.RemoteTS) != "10.2.0.9" {
					t.Errorf("A protects %v to %v", x.LocalTS, x.RemoteTS)
				}
			}
		})
	}
}

// TestAnswerOutside: a responder whose answer is no subset of what was offered, or that no packet fits,
// gets no CHILD SA, and is told that it has none; both sides' selectors are in the record.
func TestAnswerOutside(t *testing.T) {
	t.Parallel()
	alien := message.Selector{Type: message.TSType(9), Data: []byte{0, 0, 0, 1}}
	for name, c := range map[string]struct {
		tsi, tsr string
		alien    bool
	}{
		"wider":              {"10.1.0.0/16", "10.2.0.0/24", false},
		"elsewhere":          {"10.1.0.0/24", "10.3.0.0/24", false},
		"one of two outside": {"10.1.0.0/24", "10.2.0.0/24 10.3.0.0/24", false},
		"another family":     {"2001:db8::/64", "10.2.0.0/24", false},
		"no packet fits":     {"10.1.0.0/24[6]", "10.2.0.0/24[17]", false},
		"unknown kind":       {"10.1.0.0/24", "10.2.0.0/24", true},
	} {
		for _, rekey := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, rekey %v", name, rekey), func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{both: psk})
				change := func(ps message.Payloads) message.Payloads {
					tsi, tsr := wire(sels(c.tsi)), wire(sels(c.tsr))
					if c.alien {
						tsr = append(tsr, alien)
					}
					for i, q := range ps {
						if ts, ok := q.(*message.TS); ok && ts.Responder {
							ps[i] = message.NewTSr(tsr...)
						} else if ok {
							ps[i] = message.NewTSi(tsi...)
						}
					}
					return ps
				}
				if rekey {
					p.up()
				}
				exchange := byte(35)
				if rekey {
					exchange = 36
				}
				p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
					if from.Addr() != addrB || msg[18] != exchange || msg[19]&0x20 == 0 {
						return true
					}
					ps := p.a.Endpoint.Peek(msg)
					if ps.SA() == nil {
						return true
					}
					p.w.Tap = nil
					_, forged := p.b.Endpoint.Forge(exchange, uint32(msg[23]), true, change(slices.Clone(ps)))
					for _, m := range forged {
						p.w.Deliver(from, to, m)
					}
					return false
				}
				if rekey {
					if err := p.a.Endpoint.RekeyChild(childOf(t, p.a).ID); err != nil {
						t.Fatal(err)
					}
				} else if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
					t.Fatal(err)
				}
				p.w.For(5 * time.Second)
				text := texts(p.a.Refusals)
				if !slices.Contains(p.a.Codes(), ike.CodeTSUnacceptable) || !containsAll(text, "10.1.0.0", "10.2.0.0") {
					t.Errorf("A refused %s", text)
				}
				if rekey {
					p.counts(1, 1)
					p.carries()
				} else {
					p.empty()
				}
				p.sound()
			})
		}
	}
}

func wire(ts []ike.Selector) (out []message.Selector) {
	for _, s := range ts {
		out = append(out, message.NewSelector(s.Proto, s.StartPort, s.EndPort, s.Start, s.End))
	}
	return out
}

// TestRekeyNarrower: what replaces a CHILD SA must not carry less (section 2.9.2): a peer that asks for it
// is refused, and one that answers so is too; the old one goes on.
func TestRekeyNarrower(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk})
	p.up()
	next, _ := p.a.Endpoint.IDs()
	ps := childRequest(0x01020304, prefix("10.1.0.0/25"), prefix("10.2.0.0/24"))
	answer := p.asked(36, next, append(message.Payloads{message.NewRekeySA(message.ProtocolESP, childOf(t, p.a).SPIIn)}, ps...))
	if n := answer.ErrorNotify(); n == nil || n.Type != message.NotifyTSUnacceptable {
		t.Errorf("B answered %v", answer)
	}
	if text := texts(p.b.Refusals); !containsAll(text, "10.1.0.0..10.1.0.127", "10.1.0.0..10.1.0.255", "10.2.0.0..10.2.0.255") {
		t.Errorf("B refused %s", text)
	}
	p.counts(1, 1)

	p = newPair(t, pairOptions{both: psk})
	p.up()
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if ps := p.a.Endpoint.Peek(msg); from.Addr() == addrB && msg[18] == 36 && ps.SA() != nil {
			p.w.Tap = nil
			for i, q := range ps {
				if ts, ok := q.(*message.TS); ok && ts.Responder {
					ps[i] = message.NewTSr(wire(prefix("10.2.0.0/25"))...)
				}
			}
			_, forged := p.b.Endpoint.Forge(36, uint32(msg[23]), true, ps)
			for _, m := range forged {
				p.w.Deliver(from, to, m)
			}
			return false
		}
		return true
	}
	if err := p.a.Endpoint.RekeyChild(childOf(t, p.a).ID); err != nil {
		t.Fatal(err)
	}
	p.w.For(5 * time.Second)
	if text := texts(p.a.Refusals); !slices.Equal(p.a.Codes(), []ike.Code{ike.CodeTSUnacceptable}) || !containsAll(text, "10.2.0.0..10.2.0.127", "10.2.0.0..10.2.0.255") {
		t.Errorf("A refused %s", text)
	}
	p.counts(1, 1)
	p.carries()
}

// TestSelectorsThatCarryNothing: no connection is made for what no packet can have.
func TestSelectorsThatCarryNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string][2]string{
		"families":                 {"10.1.0.0/24", "2001:db8::/64"},
		"protocols":                {"10.1.0.0/24[6/443]", "10.2.0.0/24[17]"},
		"ports without a protocol": {"10.1.0.0/24[0/443]", "10.2.0.0/24"},
	} {
		p := newPair(t, pairOptions{})
		p.ca.Children[0].LocalTS, p.ca.Children[0].RemoteTS = sels(c[0]), sels(c[1])
		if err := p.a.Endpoint.SetPeers([]*ike.PeerConfig{p.ca}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
