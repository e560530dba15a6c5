package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// model is slow and obviously right: it reads the document's strings and tries every flow. It
// shares no code with the Table.
type model struct{ doc *Document }

func within(a netip.Addr, list []string) (bits int, ok bool) {
	for _, s := range list {
		if !strings.Contains(s, "/") {
			s += map[bool]string{true: "/32", false: "/128"}[!strings.Contains(s, ":")]
		}
		p := netip.MustParsePrefix(s)
		if p.Contains(a) && (!ok || p.Bits() > bits) {
			bits, ok = p.Bits(), true
		}
	}
	return bits, ok
}

func (m model) local(a netip.Addr) bool {
	for _, z := range m.doc.Zones {
		if _, ok := within(a, z.Prefixes); ok {
			return true
		}
	}
	return false
}

// fits reports whether a rule lets a packet open a flow (reply: answer one), and how well.
func (m model) fits(r *FlowRule, f Flow, reply bool) (fromBits, toBits int, specific, ok bool) {
	src, dst, sport, dport := f.Src, f.Dst, f.SrcPort, f.DstPort
	if reply {
		src, dst, sport, dport = dst, src, dport, sport
	}
	fromBits, ok1 := within(src, r.From)
	toBits, ok2 := within(dst, r.To)
	if !ok1 || !ok2 || f.Src.Is4() != f.Dst.Is4() {
		return 0, 0, false, false
	}
	switch f.Proto {
	case 4, 41, 47, 55, 94, 97, 98, 115, 137, 0, 43, 44, 59, 60, 135, 139, 140, 253, 254, 255:
		return 0, 0, false, false
	case 1, 58:
		// Only echo, in its own family. The type is in SrcPort and the code in DstPort.
		var want uint16
		switch {
		case f.Proto == 1 && f.Src.Is4():
			want = 8
			if reply {
				want = 0
			}
		case f.Proto == 58 && f.Src.Is6():
			want = 128
			if reply {
				want = 129
			}
		default:
			return 0, 0, false, false
		}
		if f.NoPorts || f.SrcPort != want || f.DstPort != 0 {
			return 0, 0, false, false
		}
	}
	_ = sport
	name := map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}[f.Proto]
	switch r.Protocol {
	case "any":
		return fromBits, toBits, false, true
	case name, strconv.Itoa(int(f.Proto)):
	default:
		return 0, 0, false, false
	}
	if len(r.Ports) == 0 {
		return fromBits, toBits, true, true
	}
	if f.NoPorts {
		// All ports are covered when port 1 is, and each port after the end of a range.
		probes := []int{1}
		for _, s := range r.Ports {
			if _, hi := ports(s); hi < 65535 {
				probes = append(probes, hi+1)
			}
		}
		for _, p := range probes {
			covered := false
			for _, s := range r.Ports {
				lo, hi := ports(s)
				covered = covered || p >= lo && p <= hi
			}
			if !covered {
				return 0, 0, false, false
			}
		}
		return fromBits, toBits, true, true
	}
	for _, s := range r.Ports {
		if lo, hi := ports(s); int(dport) >= lo && int(dport) <= hi {
			return fromBits, toBits, true, true
		}
	}
	return 0, 0, false, false
}

func ports(s string) (lo, hi int) {
	a, b, ok := strings.Cut(s, "-")
	lo, _ = strconv.Atoi(a)
	hi = lo
	if ok {
		hi, _ = strconv.Atoi(b)
	}
	return lo, hi
}

// best returns the connection and number of the best rule; conns lists all connections whose
// rules fit.
func (m model) best(f Flow, direction string, reply bool, only int) (conn, rule int, conns map[int]bool) {
	conn, rule, n := -1, -1, -1
	var bestOut, bestIn int
	var bestSpecific bool
	conns = map[int]bool{}
	for ci := range m.doc.Connections {
		for fi := range m.doc.Connections[ci].Flows {
			n++
			r := &m.doc.Connections[ci].Flows[fi]
			if r.Direction != direction {
				continue
			}
			fb, tb, specific, ok := m.fits(r, f, reply)
			if !ok {
				continue
			}
			conns[ci] = true
			if only >= 0 && ci != only {
				continue
			}
			out, in := fb, tb // the outside's prefix first
			if direction == DirectionOut {
				out, in = tb, fb
			}
			better := rule < 0 || out > bestOut || out == bestOut && (in > bestIn || in == bestIn && specific && !bestSpecific)
			if better {
				conn, rule, bestOut, bestIn, bestSpecific = ci, n, out, in, specific
			}
		}
	}
	return conn, rule, conns
}

func (m model) outbound(f Flow) Decision {
	if f.plain() && m.local(f.Src) && !m.local(f.Dst) {
		if conn, rule, _ := m.best(f, DirectionOut, false, -1); rule >= 0 {
			return Decision{Allow: true, Conn: conn, Rule: rule}
		}
		if conn, rule, _ := m.best(f, DirectionIn, true, -1); rule >= 0 {
			return Decision{Reply: true, Conn: conn, Rule: rule}
		}
	}
	return Decision{Rule: -1}
}

func (m model) inbound(conn int, f Flow) Decision {
	if conn >= 0 && conn < len(m.doc.Connections) && f.plain() && m.local(f.Dst) && !m.local(f.Src) {
		if _, rule, _ := m.best(f, DirectionIn, false, conn); rule >= 0 {
			return Decision{Allow: true, Conn: conn, Rule: rule}
		}
		if _, rule, _ := m.best(f, DirectionOut, true, conn); rule >= 0 {
			return Decision{Reply: true, Conn: conn, Rule: rule}
		}
	}
	return Decision{Rule: -1}
}

// remoteOf reports whether a is among a connection's remote addresses.
func (m model) remoteOf(conn int, a netip.Addr) bool {
	c := &m.doc.Connections[conn]
	if len(c.Remote) > 0 {
		_, ok := within(a, c.Remote)
		return ok
	}
	for i := range c.Flows {
		side := c.Flows[i].From
		if c.Flows[i].Direction == DirectionOut {
			side = c.Flows[i].To
		}
		if _, ok := within(a, side); ok {
			return true
		}
	}
	return false
}

// drawPrefix draws an address or a prefix in base, a /24 or /64, from few enough that they meet.
func drawPrefix(t *rapid.T, base string, label string) string {
	p := netip.MustParsePrefix(base)
	max := p.Addr().BitLen()
	bits := max - rapid.SampledFrom([]int{0, 0, 0, 1, 2, 3, 8}).Draw(t, label+" length")
	a := p.Addr().AsSlice()
	a[len(a)-1] = byte(rapid.IntRange(0, 11).Draw(t, label+" host"))
	addr, _ := netip.AddrFromSlice(a)
	out := netip.PrefixFrom(addr, bits).Masked()
	if bits == max && rapid.Bool().Draw(t, label+" bare") {
		return addr.String()
	}
	return out.String()
}

func drawPrefixes(t *rapid.T, bases []string, label string) []string {
	n := rapid.IntRange(1, 3).Draw(t, label+" number")
	seen := map[string]bool{}
	var out []string
	for range n {
		s := drawPrefix(t, rapid.SampledFrom(bases).Draw(t, label+" network"), label)
		key := strings.TrimSuffix(strings.TrimSuffix(s, "/32"), "/128")
		if !seen[key] {
			seen[key] = true
			out = append(out, s)
		}
	}
	return out
}

// drawDocument draws policies around three facilities; most of them compile.
func drawDocument(t *rapid.T, w *world) *Document {
	d := w.document()
	d.Tests = nil
	d.Services = append(d.Services, Service{Name: "psk", Category: CategoryAuthentication, Auth: AuthPSK, PSK: NewSecret(make([]byte, 32))})
	d.Zones = []Zone{
		{Name: "hsz", Level: LevelHSZ, Prefixes: []string{"10.1.1.0/24"}, Interfaces: []string{"lan0"}},
		{Name: "dmz", Level: LevelDMZ, Prefixes: []string{"10.1.2.0/24", "fd01::/64"}, Interfaces: []string{"lan1"}},
		{Name: "sz", Level: LevelSZ, Prefixes: []string{"10.1.3.0/24"}, Interfaces: []string{"lan2"}},
	}
	d.Connections = nil
	remote4 := map[string]string{"clinic-b": "10.2.1.0/24", "centre-c": "10.3.1.0/24"}
	remote6 := map[string]string{"clinic-b": "fd02::/64", "centre-c": "fd03::/64"}
	for i := range rapid.IntRange(1, 4).Draw(t, "connections") {
		peer := rapid.SampledFrom([]string{"clinic-b", "centre-c"}).Draw(t, "peer")
		c := Connection{Name: fmt.Sprint("c", i), Peer: peer, Service: "psk", Start: StartOnDemand}
		if rapid.IntRange(0, 9).Draw(t, "selectors") == 0 {
			c.Remote = []string{remote4[peer], remote6[peer]}
		}
		for j := range rapid.IntRange(1, 6).Draw(t, "flows") {
			r := FlowRule{Name: fmt.Sprint("f", j), Direction: rapid.SampledFrom([]string{DirectionIn, DirectionOut}).Draw(t, "direction")}
			r.Protocol = rapid.SampledFrom([]string{"tcp", "tcp", "tcp", "udp", "icmp", "any", "50", "132", "icmpv6"}).Draw(t, "protocol")
			outer, inner := remote4[peer], []string{"10.1.2.0/24", "10.1.3.0/24"}
			if r.Protocol == "any" {
				inner = inner[:1]
			}
			if r.Protocol == "icmpv6" || r.Protocol != "icmp" && rapid.IntRange(0, 3).Draw(t, "family") == 0 {
				outer, inner = remote6[peer], []string{"fd01::/64"}
			}
			r.From, r.To = drawPrefixes(t, []string{outer}, "remote"), drawPrefixes(t, inner, "local")
			if r.Direction == DirectionOut {
				r.From, r.To = r.To, r.From
			}
			switch r.Protocol {
			case "tcp", "udp", "132":
				r.Ports = rapid.SampledFrom([][]string{{"1"}, {"2"}, {"1-3"}, {"3", "5"}, {"4-65535"}, {"1-65535"}, {"1-100", "101-65535"}}).Draw(t, "ports")
				if r.Protocol == "132" && rapid.Bool().Draw(t, "no ports") {
					r.Ports = nil
				}
			}
			c.Flows = append(c.Flows, r)
		}
		d.Connections = append(d.Connections, c)
	}
	return d
}

var someAddrs = func() []netip.Addr {
	var out []netip.Addr
	for _, s := range []string{"10.1.1.", "10.1.2.", "10.1.3.", "10.2.1.", "10.3.1.", "10.9.9.", "fd01::", "fd02::", "fd03::", "fd09::"} {
		for i := range 13 {
			if strings.Contains(s, ":") {
				out = append(out, netip.MustParseAddr(fmt.Sprintf("%s%x", s, i)))
			} else {
				out = append(out, netip.MustParseAddr(fmt.Sprintf("%s%d", s, i)))
			}
		}
	}
	for _, s := range []string{"::ffff:10.1.2.1", "::", "0.0.0.0", "fe80::1%eth0", "fd01::1%x", "224.0.0.1", "255.255.255.255", "ff02::1"} {
		out = append(out, netip.MustParseAddr(s))
	}
	return append(out, netip.Addr{})
}()

func drawAddr(t *rapid.T, label string) netip.Addr {
	if rapid.IntRange(0, 19).Draw(t, label+" wild") == 0 {
		b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label)
		a, _ := netip.AddrFromSlice(b)
		return a
	}
	return rapid.SampledFrom(someAddrs).Draw(t, label)
}

func drawFlow(t *rapid.T) Flow {
	port := func(label string) uint16 {
		return rapid.SampledFrom([]uint16{0, 1, 2, 3, 4, 5, 8, 100, 128, 129, 65535}).Draw(t, label)
	}
	return Flow{
		Src: drawAddr(t, "src"), Dst: drawAddr(t, "dst"),
		Proto:   rapid.SampledFrom([]uint8{6, 6, 6, 17, 1, 58, 50, 132, 47, 4, 41, 89, 0}).Draw(t, "proto"),
		SrcPort: port("sport"), DstPort: port("dport"), NoPorts: rapid.IntRange(0, 7).Draw(t, "noports") == 0,
	}
}

// drawAimed draws a flow that likely fits some rule, or nearly.
func drawAimed(t *rapid.T, d *Document) Flow {
	c := rapid.SampledFrom(d.Connections).Draw(t, "aim connection")
	r := rapid.SampledFrom(c.Flows).Draw(t, "aim flow")
	f := drawFlow(t)
	pick := func(list []string, label string) netip.Addr {
		s, _, _ := strings.Cut(rapid.SampledFrom(list).Draw(t, label), "/")
		return netip.MustParseAddr(s)
	}
	f.Src, f.Dst = pick(r.From, "aim from"), pick(r.To, "aim to")
	switch r.Protocol {
	case "icmp":
		f.Proto, f.SrcPort, f.DstPort = 1, rapid.SampledFrom([]uint16{8, 0, 3, 5, 13}).Draw(t, "type"), 0
	case "icmpv6":
		f.Proto, f.SrcPort, f.DstPort = 58, rapid.SampledFrom([]uint16{128, 129, 1, 135}).Draw(t, "type"), 0
	case "tcp":
		f.Proto = 6
	case "udp":
		f.Proto = 17
	case "132":
		f.Proto = 132
	case "50":
		f.Proto = 50
	}
	if rapid.Bool().Draw(t, "answer") {
		f.Src, f.Dst = f.Dst, f.Src
	}
	return f
}

// propDecide compares the Table with the model and checks what must hold of every policy.
func propDecide(w *world) func(t *rapid.T) {
	return func(t *rapid.T) {
		doc := drawDocument(t, w)
		m := model{doc}
		table, err := Compile(doc)
		var flows []Flow
		for i := range rapid.IntRange(1, 12).Draw(t, "packets") {
			if i%4 == 0 {
				flows = append(flows, drawFlow(t))
			} else {
				flows = append(flows, drawAimed(t, doc))
			}
		}
		if err != nil {
			var de *DocumentError
			if !errors.As(err, &de) {
				t.Fatal(err)
			}
			for _, f := range de.Faults {
				if !strings.Contains(f.Expected, "belong to one") {
					t.Fatalf("an unexpected fault: %v", f)
				}
			}
			return
		}
		for _, f := range flows {
			checkFlow(t, table, m, f)
		}
		inner := drawAimed(t, doc)
		outer := drawFlow(t)
		if rapid.IntRange(0, 3).Draw(t, "fitting error") != 0 {
			outer.Dst, outer.NoPorts = inner.Src, false
			outer.Proto, outer.SrcPort = 1, rapid.SampledFrom([]uint16{3, 11, 12, 5}).Draw(t, "error type")
			if inner.Src.Is6() {
				outer.Proto, outer.SrcPort = 58, rapid.SampledFrom([]uint16{1, 2, 3, 4, 137}).Draw(t, "error type 6")
			}
			outer.Src = inner.Dst
		}
		checkRelated(t, table, m, outer, inner)
	}
}

func same(got, want Decision) bool {
	if got.Allow != want.Allow || got.Reply != want.Reply || got.Rule != want.Rule {
		return false
	}
	return !got.Allow && !got.Reply || got.Conn == want.Conn
}

func checkFlow(t *rapid.T, table *Table, m model, f Flow) {
	out := table.Outbound(f)
	if want := m.outbound(f); !same(out, want) {
		t.Fatalf("outbound %v: expected %+v, came %+v (%v)", f, want, out, out.Reason)
	}
	if out.Allow && out.Reply || out.Reason == ReasonDefault || out.Allow != (out.Reason == ReasonAllowed) || out.Reply != (out.Reason == ReasonReply) {
		t.Fatalf("outbound %v: %+v", f, out)
	}
	if out.Allow || out.Reply {
		if !m.local(f.Src) || m.local(f.Dst) || !m.remoteOf(out.Conn, f.Dst) {
			t.Fatalf("RELAY: outbound %v: %+v", f, out)
		}
	}
	for conn := -1; conn <= len(m.doc.Connections); conn++ {
		in := table.Inbound(conn, f)
		if want := m.inbound(conn, f); !same(in, want) {
			t.Fatalf("inbound on %d %v: expected %+v, came %+v (%v)", conn, f, want, in, in.Reason)
		}
		if in.Allow && in.Reply || in.Reason == ReasonDefault || in.Allow != (in.Reason == ReasonAllowed) || in.Reply != (in.Reason == ReasonReply) {
			t.Fatalf("inbound on %d %v: %+v", conn, f, in)
		}
		if in.Allow || in.Reply {
			// No relay, whatever the policy says: to a local zone, from this connection's peer.
			if !m.local(f.Dst) || m.local(f.Src) || !m.remoteOf(conn, f.Src) || in.Conn != conn {
				t.Fatalf("RELAY: inbound on %d %v: %+v", conn, f, in)
			}
			// What came in by one connection never goes out again as it is.
			if o := table.Outbound(f); o.Allow || o.Reply {
				t.Fatalf("RELAY: %v may come in on %d and go out on %d", f, conn, o.Conn)
			}
		}
	}
	// A flow belongs to one connection.
	if f.plain() {
		for _, dir := range []string{DirectionIn, DirectionOut} {
			if _, _, conns := m.best(f, dir, false, -1); len(conns) > 1 {
				t.Fatalf("%v belongs to connections %v, but the policy was accepted", f, conns)
			}
		}
	}
	// An explanation says what the decision says, and does not fail on anything.
	e := table.Explain(f)
	d, _ := table.decide(f, -1)
	if (e.Verdict == VerdictAllow) != d.Allow || (e.Verdict == VerdictReply) != d.Reply || e.Text == "" {
		t.Fatalf("%v: decision %+v, explanation %+v", f, d, e)
	}
}

func checkRelated(t *rapid.T, table *Table, m model, outer, inner Flow) {
	o := table.RelatedOutbound(outer, inner)
	if o.Allow {
		t.Fatalf("an error may never open a flow: %+v", o)
	}
	if o.Reply {
		back := m.inbound(o.Conn, inner)
		if !m.local(outer.Src) || m.local(outer.Dst) || outer.Dst != inner.Src || (!back.Allow && !back.Reply) || !m.remoteOf(o.Conn, outer.Dst) {
			t.Fatalf("RELAY: error %v about %v: %+v", outer, inner, o)
		}
	}
	for conn := -1; conn <= len(m.doc.Connections); conn++ {
		i := table.RelatedInbound(conn, outer, inner)
		if i.Allow {
			t.Fatalf("an error may never open a flow: %+v", i)
		}
		if !i.Reply {
			continue
		}
		sent := m.outbound(inner)
		if !m.local(outer.Dst) || m.local(outer.Src) || !m.remoteOf(conn, outer.Src) || outer.Dst != inner.Src || (!sent.Allow && !sent.Reply) || sent.Conn != conn {
			t.Fatalf("RELAY: error %v about %v on %d: %+v", outer, inner, conn, i)
		}
	}
}

func TestDecideAgreesWithModel(t *testing.T) { rapid.Check(t, propDecide(newWorld(t))) }

func FuzzDecide(f *testing.F) { f.Fuzz(rapid.MakeFuzz(propDecide(newWorld(f)))) }

// Enough of the drawn policies compile, and enough of the drawn packets are allowed, for the
// property to mean something.
func TestModelIsExercised(t *testing.T) {
	w := newWorld(t)
	var policies, compiled, packets, allowed, replies, errs, related int
	rapid.Check(t, func(t *rapid.T) {
		d := drawDocument(t, w)
		policies++
		table, err := Compile(d)
		if err != nil {
			return
		}
		compiled++
		for range 5 {
			f := drawAimed(t, d)
			packets++
			for conn := range d.Connections {
				for _, x := range []Decision{table.Inbound(conn, f), table.Outbound(f)} {
					if x.Allow {
						allowed++
					}
					if x.Reply {
						replies++
					}
				}
			}
			if out := table.Outbound(f); out.Allow {
				e := Flow{Src: f.Dst, Dst: f.Src, Proto: 1, SrcPort: 3}
				if f.Src.Is6() {
					e.Proto, e.SrcPort = 58, 2
				}
				errs++
				if table.RelatedInbound(out.Conn, e, f).Reply {
					related++
				}
			}
		}
	})
	t.Logf("%d of %d policies compiled; %d packets, %d allowed, %d replies; %d of %d errors related", compiled, policies, packets, allowed, replies, related, errs)
	if compiled*3 < policies || allowed*20 < packets || replies*20 < packets || related != errs || errs == 0 {
		t.Error("the drawn policies and packets exercise too little")
	}
}
