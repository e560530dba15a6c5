package router

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"wardgate/audit"
	"wardgate/ike"
)

func parsed(t testing.TB, b []byte) *packet {
	t.Helper()
	p := new(packet)
	if err := p.parse(b); err != nil {
		t.Fatal(err)
	}
	return p
}

// A packet and its answer have the same key, seen from either router.
func TestKeyOfBothDirections(t *testing.T) {
	for _, c := range []struct {
		name      string
		ask, repl []byte
	}{
		{"UDP", udp4(t, "10.1.0.1", "10.2.0.1", 4000, 53, 0), udp4(t, "10.2.0.1", "10.1.0.1", 53, 4000, 0)},
		{"TCP", tcp4(t, "10.1.0.1", "10.2.0.1", 4000, 104, false), tcp4(t, "10.2.0.1", "10.1.0.1", 104, 4000, false)},
		{"echo", echo4(t, "10.1.0.1", "10.2.0.1", 9, false), echo4(t, "10.2.0.1", "10.1.0.1", 9, true)},
	} {
		ask, repl := parsed(t, c.ask), parsed(t, c.repl)
		if keyOf(ask, outbound) != keyOf(repl, inbound) {
			t.Errorf("%s: at the router of the one who asks: %v and %v", c.name, keyOf(ask, outbound), keyOf(repl, inbound))
		}
		if keyOf(ask, inbound) != keyOf(repl, outbound) {
			t.Errorf("%s: at the router of the one who answers: %v and %v", c.name, keyOf(ask, inbound), keyOf(repl, outbound))
		}
	}
	// both ends ping each other with the same identifier: two flows
	a, b := parsed(t, echo4(t, "10.1.0.1", "10.2.0.1", 9, false)), parsed(t, echo4(t, "10.2.0.1", "10.1.0.1", 9, false))
	if keyOf(a, outbound) == keyOf(b, inbound) {
		t.Error("echo requests of both ends share a flow")
	}
}

func testFlow(i int, at int64) *flow {
	f := &flow{key: flowKey{proto: protoUDP, localPort: uint16(i), remotePort: uint16(i >> 16)}, gen: 1}
	f.lastSeen.Store(at)
	return f
}

func TestFlowTableIsBounded(t *testing.T) {
	const limit = 64 * 32
	tab := newFlowTable(limit)
	for i := range 10 * limit {
		f := testFlow(i, int64(i))
		if got := tab.insert(f, tab.hash(&f.key)); got != f {
			t.Fatal("insert returned another flow")
		}
	}
	if n := tab.len(); n > limit {
		t.Errorf("%d flows, limit %d", n, limit)
	}
}

func TestFlowTableForgets(t *testing.T) {
	tab := newFlowTable(1000)
	f := testFlow(1, 100)
	tab.insert(f, tab.hash(&f.key))
	var cache flowCache
	cache.put(f)
	tab.sweep(100 + udpIdle)
	if tab.lookup(&f.key, tab.hash(&f.key)) != f {
		t.Error("forgotten too early")
	}
	tab.sweep(101 + udpIdle)
	if tab.lookup(&f.key, tab.hash(&f.key)) != nil {
		t.Error("not forgotten")
	}
	if cache.get(&f.key, 1) != nil {
		t.Error("a worker's cache still knows a flow that is forgotten")
	}
}

func TestCacheKnowsOnlyItsGeneration(t *testing.T) {
	f := testFlow(1, 0)
	var cache flowCache
	cache.put(f)
	if cache.get(&f.key, 1) != f || cache.get(&f.key, 2) != nil {
		t.Error("a flow allowed under one policy must be judged anew under the next")
	}
}

func testConnection(start string) *connection {
	c := newConnection("a-b", heldLimits{packets: 4, bytes: 100, age: 10 * time.Second}, 2, time.Time{})
	c.spec.Store(&connSpec{start: start})
	return c
}

func TestHold(t *testing.T) {
	now := time.Unix(1000, 0)
	t.Run("wakes once", func(t *testing.T) {
		c := testConnection(startOnDemand)
		for i := range 4 {
			wake, err := c.hold([]byte{byte(i)}, now)
			if err != nil || wake != (i == 0) {
				t.Fatalf("packet %d: wake %v, %v", i, wake, err)
			}
		}
		if _, err := c.hold([]byte{9}, now); !errors.Is(err, errHeldFull) {
			t.Fatalf("fifth packet: %v", err)
		}
		// those that nobody waits for any more make room
		if _, err := c.hold([]byte{9}, now.Add(11*time.Second)); err != nil {
			t.Fatal(err)
		}
		if len(c.held) != 1 || c.heldBytes != 1 {
			t.Errorf("%d packets of %d octets are held", len(c.held), c.heldBytes)
		}
	})
	t.Run("octets are bounded", func(t *testing.T) {
		c := testConnection(startOnDemand)
		if _, err := c.hold(make([]byte, 60), now); err != nil {
			t.Fatal(err)
		}
		if _, err := c.hold(make([]byte, 60), now); !errors.Is(err, errHeldFull) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("manual", func(t *testing.T) {
		c := testConnection(startManual)
		if _, err := c.hold([]byte{1}, now); !errors.Is(err, errConnManual) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("waits after a failure", func(t *testing.T) {
		c := testConnection(startOnDemand)
		for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
			if got := c.failed("x", now); got != want*time.Second {
				t.Errorf("failure %d: waits %v", i, got)
			}
		}
		if _, err := c.hold([]byte{1}, now.Add(59*time.Second)); !errors.Is(err, errConnWaiting) {
			t.Fatalf("got %v", err)
		}
		if wake, err := c.hold([]byte{1}, now.Add(60*time.Second)); err != nil || !wake {
			t.Fatalf("got %v, %v", wake, err)
		}
	})
	t.Run("blocked", func(t *testing.T) {
		c := testConnection(startOnDemand)
		c.block("no token", now)
		if _, err := c.hold([]byte{1}, now); dropFor(err) != dropBlocked {
			t.Fatalf("got %v", err)
		}
		c.unblock(now)
		if wake, err := c.hold([]byte{1}, now); err != nil || !wake {
			t.Fatalf("got %v, %v", wake, err)
		}
	})
}

// What was held leaves in order, before the workers may send on the new CHILD SA, and packets
// that are held meanwhile are not left behind.
func TestActivateKeepsOrder(t *testing.T) {
	c := testConnection(startOnDemand)
	child := &childSA{id: 1, conn: c}
	c.children = map[ike.ChildID]*childSA{1: child}
	now := time.Unix(1000, 0)
	for i := range 3 {
		if _, err := c.hold([]byte{byte(i)}, now); err != nil {
			t.Fatal(err)
		}
	}
	var got []byte
	c.activate(child, func(_ *childSA, held []heldPacket) {
		if c.cur.Load() != nil {
			t.Error("workers see the CHILD SA while packets still wait")
		}
		for _, h := range held {
			got = append(got, h.b[0])
		}
		if len(got) == 3 {
			if _, err := c.hold([]byte{3}, now); err != nil {
				t.Error(err)
			}
		}
	})
	if !bytes.Equal(got, []byte{0, 1, 2, 3}) || c.cur.Load() != child {
		t.Errorf("sent %v", got)
	}
	if _, err := c.hold([]byte{4}, now); !errors.Is(err, errConnReady) {
		t.Errorf("hold on a connection that stands: %v", err)
	}
	// a CHILD SA that is gone is never activated
	gone := &childSA{id: 2, conn: c}
	c.activate(gone, nil)
	if c.cur.Load() != child {
		t.Error("sends on a CHILD SA that is gone")
	}
}

func TestCovers(t *testing.T) {
	child := &childSA{
		localTS:  []ike.Selector{ike.PrefixSelector(netip.MustParsePrefix("10.1.0.0/24"))},
		remoteTS: []ike.Selector{{Proto: protoTCP, StartPort: 100, EndPort: 200, Start: netip.MustParseAddr("10.2.0.5"), End: netip.MustParseAddr("10.2.0.9")}},
	}
	for _, c := range []struct {
		b    []byte
		dir  direction
		want bool
	}{
		{tcp4(t, "10.1.0.3", "10.2.0.5", 1, 100, false), outbound, true},
		{tcp4(t, "10.2.0.9", "10.1.0.3", 200, 1, false), inbound, true},
		{tcp4(t, "10.1.0.3", "10.2.0.10", 1, 100, false), outbound, false},
		{tcp4(t, "10.1.0.3", "10.2.0.5", 1, 99, false), outbound, false},
		{tcp4(t, "10.1.1.3", "10.2.0.5", 1, 100, false), outbound, false},
		{udp4(t, "10.1.0.3", "10.2.0.5", 1, 100, 0), outbound, false},
		{tcp4(t, "10.2.0.5", "10.1.0.3", 100, 1, false), outbound, false},
	} {
		if got := child.covers(parsed(t, c.b), c.dir); got != c.want {
			t.Errorf("%+v %v: %v", parsed(t, c.b), c.dir, got)
		}
	}
}

func TestRefusalsAreBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	r := newRefusals(func() time.Time { return now })
	p := refusedPacket{reason: "no-rule", src: netip.MustParseAddr("10.2.0.1"), dst: netip.MustParseAddr("10.1.0.1"), proto: protoTCP, dport: 22, where: "tunnel"}
	for range 100 {
		r.note(p)
	}
	if first := <-r.out; first.n != 1 || first.target() != "10.1.0.1 tcp/22" {
		t.Errorf("first record %+v", first)
	}
	recs, missed := r.flush()
	if len(recs) != 1 || recs[0].n != 99 || missed != 0 {
		t.Errorf("then %+v, missed %d", recs, missed)
	}
	for i := range 3 * refusalBudget { // a scan
		p.dport = uint16(i)
		r.note(p)
	}
	recs, missed = r.flush()
	total := missed
	for _, rec := range recs {
		total += rec.n
	}
	for len(r.out) > 0 {
		total += (<-r.out).n
	}
	if total != 3*refusalBudget {
		t.Errorf("%d of %d refusals are accounted for", total, 3*refusalBudget)
	}
	now = now.Add(refusalWindow + 1)
	r.flush()
	if len(r.kinds) != 0 {
		t.Errorf("%d kinds are kept for ever", len(r.kinds))
	}
}

// A record that somebody changed is kept as evidence, and the router goes on with a new one.
func TestAuditSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l, err := openAudit(path, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(audit.Record{Event: audit.EventStarted, What: "x", Result: audit.ResultInfo}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(b, []byte(`"x"`), []byte(`"y"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err = openAudit(path, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	aside, err := filepath.Glob(path + ".damaged-*")
	if err != nil || len(aside) != 1 {
		t.Fatalf("set aside: %v, %v", aside, err)
	}
	recs, err := audit.Tail(path, 10)
	if err != nil || len(recs) == 0 || !slices.ContainsFunc(recs, func(r audit.Record) bool { return r.Event == audit.EventLogDamaged && r.Where == aside[0] }) {
		t.Fatalf("records: %v, %v", recs, err)
	}
}
