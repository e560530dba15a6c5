package policy

import (
	"fmt"
	"net/netip"
	"testing"
)

// bigDocument has n rules: one for each of many remote hosts, in several connections.
func bigDocument(w *world, n int) *Document {
	d := w.document()
	d.Tests = nil
	d.Peers, d.Connections = nil, nil
	const perConn = 2000
	for c := 0; c*perConn < n; c++ {
		peer := fmt.Sprint("peer", c)
		d.Peers = append(d.Peers, Peer{Name: peer, Gateways: []string{fmt.Sprintf("203.0.%d.%d", c/250, 1+c%250)}, DeviceID: peer + ".devices.example"})
		conn := Connection{
			Name: fmt.Sprint("c", c), Peer: peer, Service: "group-a", ServiceID: peer + ".group-a.example", Start: StartOnDemand,
			Local: []string{"10.1.2.0/24"}, Remote: []string{fmt.Sprintf("10.%d.0.0/16", 2+c)},
		}
		for i := 0; i < perConn && c*perConn+i < n; i++ {
			dir, from, to := DirectionIn, fmt.Sprintf("10.%d.%d.%d", 2+c, i/200, 1+i%200), "10.1.2.10"
			if i%2 == 1 {
				dir, from, to = DirectionOut, to, from
			}
			conn.Flows = append(conn.Flows, FlowRule{Name: fmt.Sprint("f", i), From: []string{from}, To: []string{to}, Protocol: "tcp", Ports: []string{"104", "11112", "5000-5010"}, Direction: dir})
		}
		d.Connections = append(d.Connections, conn)
	}
	return d
}

func bigTable(tb testing.TB, n int) *Table {
	tb.Helper()
	table, err := Compile(bigDocument(newWorld(tb), n))
	if err != nil {
		tb.Fatal(err)
	}
	if table.NumRules() != n {
		tb.Fatalf("%d rules", table.NumRules())
	}
	return table
}

// decisions are what the benchmarks ask: allowed, a reply, and denied.
func decisions(table *Table) (in Flow, inConn int, out, reply, denied Flow) {
	c := len(table.Connections()) - 1
	remote := table.Connections()[c].Remote[0].Addr().As4()
	host := func(x, y byte) netip.Addr { return netip.AddrFrom4([4]byte{remote[0], remote[1], x, y}) }
	local := addr("10.1.2.10")
	return OpeningFlow(host(0, 1), local, protoTCP, 11112), c, OpeningFlow(local, host(0, 2), protoTCP, 5005),
		Flow{Src: local, Dst: host(0, 1), Proto: protoTCP, SrcPort: 104, DstPort: 40000}, OpeningFlow(host(0, 1), local, protoTCP, 80)
}

func TestDecideDoesNotAllocate(t *testing.T) {
	table := bigTable(t, 1000)
	in, conn, out, reply, denied := decisions(table)
	e := Flow{Src: out.Dst, Dst: out.Src, Proto: protoICMP, SrcPort: 3, DstPort: 4}
	if d := table.RelatedInbound(conn, e, out); !d.Reply {
		t.Errorf("%+v (%v)", d, d.Reason)
	}
	n := testing.AllocsPerRun(100, func() {
		if !table.Inbound(conn, in).Allow || !table.Outbound(out).Allow || !table.Outbound(reply).Reply || table.Inbound(conn, denied).Allow || table.Outbound(Flow{}).Allow {
			t.Error("wrong decision")
		}
		relay := in
		relay.Dst = out.Dst
		blind := in
		blind.NoPorts = true
		if table.Inbound(conn, relay).Reason != ReasonNoRelay || table.Inbound(conn, blind).Reason != ReasonNoPorts {
			t.Error("wrong decision")
		}
		table.RelatedInbound(conn, e, out)
		table.RelatedOutbound(e, in)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		table := bigTable(b, n)
		in, conn, out, reply, denied := decisions(table)
		b.Run(fmt.Sprintf("rules=%d/inbound", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !table.Inbound(conn, in).Allow {
					b.Fatal("denied")
				}
			}
		})
		b.Run(fmt.Sprintf("rules=%d/outbound", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !table.Outbound(out).Allow {
					b.Fatal("denied")
				}
			}
		})
		b.Run(fmt.Sprintf("rules=%d/reply", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !table.Outbound(reply).Reply {
					b.Fatal("denied")
				}
			}
		})
		b.Run(fmt.Sprintf("rules=%d/denied", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if table.Inbound(conn, denied).Allow {
					b.Fatal("allowed")
				}
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		d := bigDocument(newWorld(b), n)
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Compile(d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
