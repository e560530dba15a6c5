package kernel

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestStateValidate(t *testing.T) {
	good := func() State {
		return State{
			TunName: "wg0", MTU: 1400, Zones: []Zone{{"hsz", pfx("10.1.1.0/24"), []string{"lan0"}}},
			Remotes: pfx("10.2.0.0/16", "10.2.1.0/24"), UDPPorts: []uint16{500},
		}
	}
	s := good()
	if err := s.Validate(); err != nil {
		t.Fatalf("good state: %v", err)
	}
	for _, c := range []struct {
		name string
		do   func(*State)
		want string
	}{
		{"no TUN name", func(s *State) { s.TunName = "" }, "TUN name"},
		{"TUN name too long", func(s *State) { s.TunName = strings.Repeat("x", 16) }, "16 bytes"},
		{"TUN name with a path", func(s *State) { s.TunName = "../all" }, "exact name"},
		{"MTU", func(s *State) { s.MTU = 100 }, "MTU 100"},
		{"no interface", func(s *State) { s.Zones[0].Interfaces = nil }, "names no interface"},
		{"wildcard", func(s *State) { s.Zones[0].Interfaces = []string{"lan*"} }, "lan*"},
		{"dots", func(s *State) { s.Zones[0].Interfaces = []string{".."} }, "not possible"},
		{"zone in the tunnel", func(s *State) { s.Zones[0].Interfaces = []string{"wg0"} }, "TUN device"},
		{"zone prefix", func(s *State) { s.Zones[0].Prefixes = []netip.Prefix{{}} }, "invalid prefix"},
		{"mapped prefix", func(s *State) { s.Zones[0].Prefixes = pfx("::ffff:10.0.0.0/104") }, "invalid prefix"},
		{"remote prefix", func(s *State) { s.Remotes[1] = netip.Prefix{} }, "remote prefix 1"},
		{"remote inside local", func(s *State) { s.Remotes = pfx("10.1.1.128/25") }, "10.1.1.128/25"},
		{"local inside remote", func(s *State) { s.Remotes = pfx("10.0.0.0/8") }, "10.0.0.0/8"},
		{"all remote", func(s *State) { s.Remotes = pfx("0.0.0.0/0") }, "0.0.0.0/0"},
		{"gateway", func(s *State) { s.Gateways = []netip.Addr{{}} }, "gateway"},
		{"port", func(s *State) { s.UDPPorts = []uint16{0} }, "UDP port 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := good()
			c.do(&s)
			err := s.Validate()
			if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want ErrState with %q", err, c.want)
			}
		})
	}
}

func TestReasonsHaveTexts(t *testing.T) {
	for _, r := range Reasons() {
		if strings.Contains(r.Text(), "kernel rules:") {
			t.Errorf("%s has no text of its own", r)
		}
		if len(r) > 60 {
			t.Errorf("%s is too long for an NFLOG prefix", r)
		}
	}
}

func genPrefix(v6 bool) *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		// Few different bits, so that prefixes meet.
		b := rapid.SampledFrom([]byte{0, 1, 127, 128, 255})
		if v6 {
			var a [16]byte
			for i := range a {
				if i < 2 || i > 13 {
					a[i] = b.Draw(t, "byte")
				}
			}
			return netip.PrefixFrom(netip.AddrFrom16(a), rapid.IntRange(0, 128).Draw(t, "bits"))
		}
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{b.Draw(t, "byte"), b.Draw(t, "byte"), b.Draw(t, "byte"), b.Draw(t, "byte")}), rapid.IntRange(0, 32).Draw(t, "bits"))
	})
}

// TestSpans: the ranges hold exactly the prefixes' addresses, in order, with gaps between them.
func TestSpans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		all := rapid.SliceOfN(rapid.OneOf(genPrefix(false), genPrefix(true)), 0, 12).Draw(t, "prefixes")
		ss := spans(all, v6)
		for i, s := range ss {
			if s.to.Less(s.from) || (i > 0 && !ss[i-1].to.Next().Less(s.from)) {
				t.Fatalf("not in order, or no gap: %v", ss)
			}
		}
		probe := func(a netip.Addr) {
			if !a.IsValid() || a.Is6() != v6 {
				return
			}
			in := false
			for _, s := range ss {
				in = in || (!a.Less(s.from) && !s.to.Less(a))
			}
			if in != within(a, all) {
				t.Fatalf("%v: in spans %v, in prefixes %v", a, in, !in)
			}
		}
		for _, p := range all {
			first, last := p.Masked().Addr(), lastOf(p.Masked())
			for _, a := range []netip.Addr{first, first.Prev(), last, last.Next(), p.Addr()} {
				probe(a)
			}
		}
	})
}

// TestOverlaps against the obvious way.
func TestOverlaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.SliceOfN(rapid.OneOf(genPrefix(false), genPrefix(true)), 0, 8)
		a, b := gen.Draw(t, "a"), gen.Draw(t, "b")
		want := 0
		for _, p := range a {
			for _, q := range b {
				if p.Masked().Overlaps(q.Masked()) {
					want++
					break
				}
			}
		}
		if got := overlaps(a, b); len(got) != want {
			t.Fatalf("%d prefixes overlap, want %d: %v", len(got), want, got)
		}
		for _, pair := range overlaps(a, b) {
			if !pair[0].Overlaps(pair[1].Masked()) {
				t.Fatalf("%v do not overlap", pair)
			}
		}
	})
}

func TestParsePacket(t *testing.T) {
	v4 := udpPacket("10.2.1.9:4242", "10.3.1.7:104", "x")
	v6 := udpPacket("[fd00::1]:4242", "[fd00::2]:104", "x")
	frag4 := append([]byte(nil), v4...)
	frag4[7] = 1
	ext := append(append([]byte(nil), v6[:40]...), 17, 0, 0, 0, 0, 0, 0, 0)
	ext[6] = 60 // destination options
	ext = append(ext, v6[40:]...)
	frag6 := append(append([]byte(nil), v6[:40]...), 17, 0, 0, 8, 0, 0, 0, 1)
	frag6[6] = 44
	for _, c := range []struct {
		name  string
		p     []byte
		proto uint8
		ports bool
	}{
		{"IPv4", v4, 17, true},
		{"IPv4, later fragment", frag4, 17, false},
		{"IPv6", v6, 17, true},
		{"IPv6, destination options", ext, 17, true},
		{"IPv6, later fragment", frag6, 17, false},
	} {
		var r Refusal
		if !parsePacket(c.p, &r) || r.Proto != c.proto || r.NoPorts == c.ports || (c.ports && (r.SrcPort != 4242 || r.DstPort != 104)) {
			t.Errorf("%s: %+v", c.name, r)
		}
		for n := range c.p {
			r = Refusal{}
			if parsePacket(c.p[:n], &r) && !r.Src.IsValid() {
				t.Errorf("%s: first %d bytes: accepted without an address", c.name, n)
			}
		}
	}
}

func FuzzNFLOG(f *testing.F) {
	f.Add(append([]byte{2, 0, 0, 0, 8, 0, 10, 0, 'r', 'e', 'l', 0, 37, 0, 9, 0}, append(udpPacket("10.2.1.9:1", "10.3.1.7:2", "hello"), 0, 0, 0)...))
	f.Add(append([]byte{10, 0, 0, 0, 8, 0, 1, 0, 0x86, 0xdd, 2, 0, 8, 0, 4, 0, 0, 0, 0, 3, 52, 0, 9, 0}, udpPacket("[fd00::1]:1", "[fd00::2]:2", "")...))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, _, _, ok := parseNFLOG(data)
		if ok && (!r.Src.IsValid() || !r.Dst.IsValid() || r.Reason == "") {
			t.Errorf("accepted without addresses or reason: %+v", r)
		}
	})
}

func TestUndoNotesAreNotTrusted(t *testing.T) {
	for _, note := range []string{
		"", "=", "ipv4/ip_forward=1", "ipv4/conf/lan0/rp_filter=0", "ipv4/conf/../../../kernel/forwarding=0",
		"ipv4/conf/lan0/forwarding=2", "ipv4/conf/lan0/forwarding", "core/forwarding=0", "ipv4/conf//forwarding=0",
	} {
		if s, ok := parseSysctl(note); ok {
			t.Errorf("%q taken as %+v", note, s)
		}
	}
	if _, ok := parseSysctl("ipv4/conf/eth0.100/forwarding=0"); !ok {
		t.Error("a good note is refused")
	}
}
