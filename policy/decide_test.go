package policy

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"wardgate/internal/certs"
	"wardgate/internal/labca"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// pkt makes a Flow of "src dst proto sport dport".
func pkt(src, dst string, proto uint8, sport, dport uint16) Flow {
	return Flow{Src: addr(src), Dst: addr(dst), Proto: proto, SrcPort: sport, DstPort: dport}
}

const outbound = -2 // in place of a connection: the packet was read from the TUN device

func TestDecide(t *testing.T) {
	w := newWorld(t)
	table := w.table(t)
	noPorts := func(f Flow) Flow { f.NoPorts = true; return f }
	const b, c, m = 0, 1, 2
	for _, x := range []struct {
		name   string
		on     int
		f      Flow
		reason Reason
		conn   int
	}{
		// In by the contract, its answers, and nothing beside it.
		{"in allowed", b, pkt("10.2.1.9", "10.1.2.10", 6, 40000, 104), ReasonAllowed, b},
		{"in allowed, range", b, pkt("10.2.1.9", "10.1.2.10", 6, 40000, 5010), ReasonAllowed, b},
		{"its answer", outbound, pkt("10.1.2.10", "10.2.1.9", 6, 104, 40000), ReasonReply, b},
		{"other port", b, pkt("10.2.1.9", "10.1.2.10", 6, 40000, 5011), ReasonNoRule, b},
		{"other protocol", b, pkt("10.2.1.9", "10.1.2.10", 17, 40000, 104), ReasonNoRule, b},
		{"other host", b, pkt("10.2.1.9", "10.1.2.11", 6, 40000, 104), ReasonNoRule, b},
		{"other source", b, pkt("10.2.2.9", "10.1.2.10", 6, 40000, 104), ReasonNoRule, b},
		{"opened from the wrong side", outbound, pkt("10.1.2.10", "10.2.1.9", 6, 40000, 104), ReasonNoRule, b},
		{"in by the wrong tunnel", c, pkt("10.2.1.9", "10.1.2.10", 6, 40000, 104), ReasonWrongConnection, c},
		{"in by no tunnel", 3, pkt("10.2.1.9", "10.1.2.10", 6, 40000, 104), ReasonBadConnection, -1},
		{"in by no tunnel", -1, pkt("10.2.1.9", "10.1.2.10", 6, 40000, 104), ReasonBadConnection, -1},
		{"to an HSZ", b, pkt("10.2.1.9", "10.1.1.5", 6, 40000, 22), ReasonNoRule, b},
		{"maintenance", m, pkt("10.9.0.7", "10.1.1.5", 6, 40000, 22), ReasonAllowed, m},
		{"maintenance beyond", m, pkt("10.9.0.7", "10.1.1.6", 6, 40000, 22), ReasonNoRule, m},

		// Out.
		{"out allowed", outbound, pkt("10.1.2.77", "10.2.1.80", 6, 40000, 443), ReasonAllowed, b},
		{"its answer in", b, pkt("10.2.1.80", "10.1.2.77", 6, 443, 40000), ReasonReply, b},
		{"its answer by another tunnel", c, pkt("10.2.1.80", "10.1.2.77", 6, 443, 40000), ReasonWrongConnection, c},
		{"out allowed v6", outbound, pkt("fd01:2::7", "fd02:1::53", 17, 40000, 53), ReasonAllowed, b},
		{"out to the other peer", outbound, pkt("10.1.2.10", "10.3.1.7", 6, 40000, 104), ReasonAllowed, c},
		{"out from another host", outbound, pkt("10.1.2.11", "10.3.1.7", 6, 40000, 104), ReasonNoRule, c},
		{"out to nowhere", outbound, pkt("10.1.2.10", "8.8.8.8", 6, 40000, 53), ReasonNotRemote, -1},
		{"local to local", outbound, pkt("10.1.2.10", "10.1.3.1", 6, 40000, 80), ReasonLocalTraffic, -1},
		{"out from outside", outbound, pkt("192.0.2.1", "10.2.1.80", 6, 40000, 443), ReasonSourceNotLocal, -1},
		{"any, tcp", outbound, pkt("10.1.3.4", "10.3.2.9", 6, 1, 9), ReasonAllowed, c},
		{"any, ospf", outbound, pkt("10.1.3.4", "10.3.2.9", 89, 0, 0), ReasonAllowed, c},
		{"any, echo", outbound, pkt("10.1.3.4", "10.3.2.9", 1, 8, 0), ReasonAllowed, c},
		{"any, redirect", outbound, pkt("10.1.3.4", "10.3.2.9", 1, 5, 0), ReasonNoRule, c},
		{"any, gre", outbound, pkt("10.1.3.4", "10.3.2.9", 47, 0, 0), ReasonNoRule, c},
		{"any, ip in ip", outbound, pkt("10.1.3.4", "10.3.2.9", 4, 0, 0), ReasonNoRule, c},
		{"any, no ports", outbound, noPorts(pkt("10.1.3.4", "10.3.2.9", 6, 0, 0)), ReasonAllowed, c},

		// No relay.
		{"B to C through A", b, pkt("10.2.1.9", "10.3.1.7", 6, 40000, 104), ReasonNoRelay, b},
		{"B to B through A", b, pkt("10.2.1.9", "10.2.1.8", 6, 40000, 104), ReasonNoRelay, b},
		{"B to the internet through A", b, pkt("10.2.1.9", "8.8.8.8", 6, 40000, 104), ReasonNotLocalZone, b},
		{"B's source into C's tunnel", outbound, pkt("10.2.1.9", "10.3.1.7", 6, 40000, 104), ReasonNoRelay, b},
		{"masqueraded: A's own address that is in no zone", outbound, pkt("203.0.113.1", "10.3.1.7", 6, 40000, 104), ReasonSourceNotLocal, -1},
		{"A's address as source out of B's tunnel", b, pkt("10.1.2.10", "10.1.2.11", 6, 40000, 104), ReasonSpoofedLocal, b},
		{"C's source out of B's tunnel", b, pkt("10.3.1.7", "10.1.2.10", 6, 104, 40000), ReasonWrongConnection, b},
		{"unknown source out of B's tunnel", b, pkt("8.8.8.8", "10.1.2.10", 6, 40000, 104), ReasonNotRemote, b},

		// Echo, fragments, odd addresses.
		{"ping", b, pkt("10.2.1.9", "10.1.2.1", 1, 8, 0), ReasonAllowed, b},
		{"pong", outbound, pkt("10.1.2.1", "10.2.1.9", 1, 0, 0), ReasonReply, b},
		{"unasked pong", b, pkt("10.2.1.9", "10.1.2.1", 1, 0, 0), ReasonNoRule, b},
		{"ping back", outbound, pkt("10.1.2.1", "10.2.1.9", 1, 8, 0), ReasonNoRule, b},
		{"ping with a code", b, pkt("10.2.1.9", "10.1.2.1", 1, 8, 1), ReasonNoRule, b},
		{"unreachable is no rule's", b, pkt("10.2.1.9", "10.1.2.1", 1, 3, 1), ReasonNoRule, b},
		{"fragment", b, noPorts(pkt("10.2.1.9", "10.1.2.10", 6, 0, 0)), ReasonNoPorts, b},
		{"fragment of a ping", b, noPorts(pkt("10.2.1.9", "10.1.2.10", 1, 0, 0)), ReasonNoPorts, b},
		{"fragment of what is not allowed", b, noPorts(pkt("10.2.1.9", "10.1.2.10", 17, 0, 0)), ReasonNoRule, b},
		{"mapped", b, pkt("::ffff:10.2.1.9", "::ffff:10.1.2.10", 6, 40000, 104), ReasonBadAddress, b},
		{"mixed", outbound, pkt("10.1.2.10", "fd02:1::53", 6, 40000, 104), ReasonBadAddress, -1},
		{"scoped", outbound, pkt("fd01:2::7%eth0", "fd02:1::53", 17, 40000, 53), ReasonBadAddress, -1},
		{"none", b, Flow{}, ReasonBadAddress, b},
		{"none out", outbound, Flow{}, ReasonBadAddress, -1},
	} {
		t.Run(x.name, func(t *testing.T) {
			var d Decision
			if x.on == outbound {
				d = table.Outbound(x.f)
			} else {
				d = table.Inbound(x.on, x.f)
			}
			want := Decision{Allow: x.reason == ReasonAllowed, Reply: x.reason == ReasonReply, Conn: x.conn, Rule: d.Rule, Reason: x.reason}
			if d != want || (d.Rule >= 0) != (d.Allow || d.Reply) {
				t.Errorf("%v: expected %+v (%v), came %+v (%v)", x.f, want, want.Reason, d, d.Reason)
			}
		})
	}
}

func TestRelated(t *testing.T) {
	w := newWorld(t)
	table := w.table(t)
	const b, c = 0, 1
	sent := pkt("10.1.2.77", "10.2.1.80", 6, 40000, 443)  // out to B
	came := pkt("10.2.1.9", "10.1.2.10", 6, 40000, 104)   // in from B
	answer := pkt("10.1.2.10", "10.2.1.9", 6, 104, 40000) // out to B, as an answer
	sent6 := pkt("fd01:2::7", "fd02:1::53", 17, 40000, 53)
	icmp := func(src, dst string, typ, code uint16) Flow { return pkt(src, dst, 1, typ, code) }
	for _, x := range []struct {
		name         string
		on           int
		outer, inner Flow
		reason       Reason
	}{
		{"fragmentation needed, from the host", b, icmp("10.2.1.80", "10.1.2.77", 3, 4), sent, ReasonRelated},
		{"time exceeded, from a router there", b, icmp("10.2.200.1", "10.1.2.77", 11, 0), sent, ReasonRelated},
		{"about an answer of ours", b, icmp("10.2.1.9", "10.1.2.10", 3, 3), answer, ReasonRelated},
		{"packet too big", b, pkt("fd02:1::53", "fd01:2::7", 58, 2, 0), sent6, ReasonRelated},
		{"redirect", b, icmp("10.2.1.80", "10.1.2.77", 5, 0), sent, ReasonNotAnError},
		{"echo", b, icmp("10.2.1.80", "10.1.2.77", 8, 0), sent, ReasonNotAnError},
		{"neighbour advertisement", b, pkt("fd02:1::53", "fd01:2::7", 58, 136, 0), sent6, ReasonNotAnError},
		{"tcp", b, pkt("10.2.1.80", "10.1.2.77", 6, 3, 0), sent, ReasonNotAnError},
		{"by another tunnel", c, icmp("10.3.1.7", "10.1.2.77", 3, 4), sent, ReasonWrongConnection},
		{"another tunnel's router", b, icmp("10.3.1.7", "10.1.2.77", 3, 4), sent, ReasonWrongConnection},
		{"from nowhere", b, icmp("8.8.8.8", "10.1.2.77", 3, 4), sent, ReasonNotRemote},
		{"to another host than the sender", b, icmp("10.2.1.80", "10.1.2.78", 3, 4), sent, ReasonErrorMismatch},
		{"about what the policy denies", b, icmp("10.2.1.80", "10.1.2.77", 3, 4), pkt("10.1.2.77", "10.2.1.80", 6, 40000, 80), ReasonNoRule},
		{"about a packet of their own", b, icmp("10.2.1.80", "10.1.2.10", 3, 4), came, ReasonErrorMismatch},
		{"about an error", b, icmp("10.2.1.80", "10.1.2.77", 3, 4), icmp("10.1.2.77", "10.2.1.80", 3, 4), ReasonErrorMismatch},
		{"on to C", b, icmp("10.2.1.80", "10.3.1.7", 3, 4), pkt("10.3.1.7", "10.2.1.80", 6, 1, 443), ReasonNoRelay},
		{"to no zone", b, icmp("10.2.1.80", "8.8.8.8", 3, 4), pkt("8.8.8.8", "10.2.1.80", 6, 1, 443), ReasonNotLocalZone},
		{"forged local source", b, icmp("10.1.2.1", "10.1.2.77", 3, 4), sent, ReasonSpoofedLocal},
		{"families mixed", b, icmp("10.2.1.80", "10.1.2.77", 3, 4), sent6, ReasonErrorMismatch},
		{"no connection", 9, icmp("10.2.1.80", "10.1.2.77", 3, 4), sent, ReasonBadConnection},
		{"nothing", b, Flow{}, Flow{}, ReasonBadAddress},

		{"out: port unreachable", outbound, icmp("10.1.2.10", "10.2.1.9", 3, 3), came, ReasonRelated},
		{"out: from a router of ours", outbound, icmp("10.1.3.1", "10.2.1.9", 3, 1), came, ReasonRelated},
		{"out: about an answer", outbound, icmp("10.1.2.77", "10.2.1.80", 3, 3), pkt("10.2.1.80", "10.1.2.77", 6, 443, 40000), ReasonRelated},
		{"out: about what is denied", outbound, icmp("10.1.2.10", "10.2.1.9", 3, 3), pkt("10.2.1.9", "10.1.2.10", 6, 40000, 105), ReasonNoRule},
		{"out: from a stranger", outbound, icmp("192.0.2.1", "10.2.1.9", 3, 3), came, ReasonSourceNotLocal},
		{"out: from B about C", outbound, icmp("10.2.1.9", "10.3.1.7", 3, 3), pkt("10.3.1.7", "10.1.2.10", 6, 104, 4), ReasonNoRelay},
		{"out: to nowhere", outbound, icmp("10.1.2.10", "8.8.8.8", 3, 3), pkt("8.8.8.8", "10.1.2.10", 6, 1, 104), ReasonNotRemote},
		{"out: local", outbound, icmp("10.1.2.10", "10.1.3.1", 3, 3), pkt("10.1.3.1", "10.1.2.10", 6, 1, 104), ReasonLocalTraffic},
		{"out: about a packet to elsewhere", outbound, icmp("10.1.2.10", "10.2.1.9", 3, 3), pkt("10.2.1.9", "10.3.1.7", 6, 1, 104), ReasonErrorMismatch},
		{"out: mismatch", outbound, icmp("10.1.2.10", "10.2.1.8", 3, 3), came, ReasonErrorMismatch},
		{"out: no error", outbound, icmp("10.1.2.10", "10.2.1.9", 0, 0), came, ReasonNotAnError},
	} {
		t.Run(x.name, func(t *testing.T) {
			var d Decision
			if x.on == outbound {
				d = table.RelatedOutbound(x.outer, x.inner)
			} else {
				d = table.RelatedInbound(x.on, x.outer, x.inner)
			}
			if d.Reason != x.reason || d.Allow || d.Reply != (x.reason == ReasonRelated) {
				t.Errorf("expected %v, came %+v (%v)", x.reason, d, d.Reason)
			}
			if d.Reply && d.Conn != b {
				t.Errorf("connection %d", d.Conn)
			}
		})
	}
}

// The most specific rule is the one that is named, and it decides nothing but the name.
func TestPrecedence(t *testing.T) {
	w := newWorld(t)
	d := w.document()
	d.Tests = nil
	d.Connections = d.Connections[:1]
	d.Connections[0].Local = nil
	d.Connections[0].Flows = []FlowRule{
		{Name: "wide", From: []string{"10.2.0.0/16"}, To: []string{"10.1.3.0/24"}, Protocol: "tcp", Ports: []string{"1-65535"}, Direction: DirectionIn},
		{Name: "host", From: []string{"10.2.1.9"}, To: []string{"10.1.3.0/24"}, Protocol: "tcp", Ports: []string{"80"}, Direction: DirectionIn},
		{Name: "to-host", From: []string{"10.2.0.0/16"}, To: []string{"10.1.3.5"}, Protocol: "tcp", Ports: []string{"80", "90"}, Direction: DirectionIn},
		{Name: "any", From: []string{"10.2.0.0/16"}, To: []string{"10.1.3.0/24"}, Protocol: "any", Direction: DirectionIn},
		{Name: "later", From: []string{"10.2.0.0/16"}, To: []string{"10.1.3.0/24"}, Protocol: "tcp", Ports: []string{"70"}, Direction: DirectionIn},
	}
	table, err := Compile(d)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		f    Flow
		want string
	}{
		{pkt("10.2.1.9", "10.1.3.5", 6, 1, 80), "host"},
		{pkt("10.2.1.9", "10.1.3.5", 6, 1, 90), "to-host"},
		{pkt("10.2.1.8", "10.1.3.5", 6, 1, 80), "to-host"},
		{pkt("10.2.1.8", "10.1.3.6", 6, 1, 80), "wide"},
		{pkt("10.2.1.8", "10.1.3.6", 6, 1, 70), "wide"},
		{pkt("10.2.1.8", "10.1.3.6", 17, 1, 80), "any"},
		{Flow{Src: addr("10.2.1.9"), Dst: addr("10.1.3.5"), Proto: 6, NoPorts: true}, "wide"},
		{Flow{Src: addr("10.2.1.9"), Dst: addr("10.1.3.5"), Proto: 17, NoPorts: true}, "any"},
	} {
		if got := table.Inbound(0, x.f); !got.Allow || table.Rule(got.Rule).Name != x.want {
			t.Errorf("%v: expected %s, came %+v", x.f, x.want, got)
		}
	}
}

func TestReasonNames(t *testing.T) {
	seen := map[string]bool{}
	for r := range numReasons {
		s := r.String()
		if s == "" || seen[s] || strings.ContainsAny(s, " _") {
			t.Errorf("reason %d: %q", r, s)
		}
		seen[s] = true
	}
	if Reason(200).String() != "unknown" || (Decision{}).Allow || (Decision{}).Reason.String() != "default-deny" {
		t.Error("the zero Decision must deny")
	}
}

func TestSelfTests(t *testing.T) {
	w := newWorld(t)
	d := w.document()
	d.Tests = []Test{
		{Name: "ok", From: "10.2.1.9", To: "10.1.2.10", Protocol: "tcp", Port: 104, Expect: ExpectAllow},
		{Name: "out", From: "10.1.2.7", To: "10.2.1.80", Protocol: "tcp", Port: 443, Connection: "a-b", Expect: ExpectAllow},
		{Name: "wrong-connection", From: "10.2.1.9", To: "10.1.2.10", Protocol: "tcp", Port: 104, Connection: "a-c", Expect: ExpectAllow},
		{Name: "wrong-connection-out", From: "10.1.2.7", To: "10.2.1.80", Protocol: "tcp", Port: 443, Connection: "a-c", Expect: ExpectAllow},
		{Name: "reply-is-no-open", From: "10.1.2.10", To: "10.2.1.9", Protocol: "tcp", Port: 104, Expect: ExpectAllow},
		{Name: "denied", From: "10.2.1.9", To: "10.1.2.10", Protocol: "tcp", Port: 104, Expect: ExpectDeny},
		{Name: "from-nowhere", From: "8.8.8.8", To: "10.1.2.10", Protocol: "tcp", Port: 104, Expect: ExpectAllow},
		{Name: "v6", From: "fd01:2::7", To: "fd02:1::53", Protocol: "udp", Port: 53, Expect: ExpectAllow},
	}
	table, err := Compile(d)
	if err != nil {
		t.Fatal(err)
	}
	err = table.RunTests()
	var te *TestError
	if !errors.Is(err, ErrTests) || !errors.As(err, &te) {
		t.Fatalf("%v", err)
	}
	var names []string
	for _, f := range te.Failures {
		names = append(names, f.Name)
		if f.Expect == f.Got || !strings.Contains(err.Error(), f.Explanation.Flow) {
			t.Errorf("%+v", f)
		}
	}
	want := []string{"wrong-connection", "wrong-connection-out", "reply-is-no-open", "denied", "from-nowhere"}
	if !reflect.DeepEqual(names, want) {
		t.Errorf("expected %v, came %v", want, names)
	}
	t.Log(err)
}

func TestExplain(t *testing.T) {
	w := newWorld(t)
	table := w.table(t)
	for _, x := range []struct {
		f    Flow
		verd string
		says []string
	}{
		{pkt("10.2.1.9", "10.1.2.10", 6, 40000, 104), VerdictAllow, []string{"ALLOWED", `"sz" (SZ)`, "behind the connection a-b", `flow "dicom"`}},
		{pkt("10.2.1.9", "10.1.2.10", 6, 40000, 105), VerdictDeny, []string{"DENIED", "no flow of the policy allows", "tcp from 10.2.1.0/24 to 10.1.2.10 port 104,5000-5010,11112"}},
		{pkt("10.2.1.9", "10.1.2.11", 17, 40000, 105), VerdictDeny, []string{"icmp from"}},
		{pkt("10.2.2.9", "10.1.2.11", 17, 40000, 105), VerdictDeny, []string{"allows nothing between these two"}},
		{pkt("10.2.1.9", "10.3.1.7", 6, 40000, 104), VerdictDeny, []string{"no relay"}},
		{pkt("10.1.2.10", "10.2.1.9", 6, 104, 40000), VerdictReply, []string{"ONLY AS A REPLY", `flow "dicom"`}},
		{pkt("10.1.2.10", "8.8.8.8", 6, 40000, 53), VerdictDeny, []string{"neither in a local zone nor behind", "No connection leads"}},
		{pkt("192.0.2.7", "10.2.1.80", 6, 40000, 53), VerdictDeny, []string{"Only addresses of local zones"}},
		{pkt("10.2.1.9", "10.1.2.10", 1, 8, 0), VerdictAllow, []string{"echo request"}},
		{Flow{}, VerdictDeny, []string{"not of one family"}},
	} {
		e := table.Explain(x.f)
		if e.Verdict != x.verd {
			t.Errorf("%v: %+v", x.f, e)
		}
		for _, s := range x.says {
			if !strings.Contains(e.Text, s) {
				t.Errorf("%v: expected %q in:\n%s", x.f, s, e.Text)
			}
		}
		b, err := json.Marshal(e)
		if err != nil || !strings.Contains(string(b), `"reason":"`+e.Reason.String()+`"`) {
			t.Errorf("%s: %v", b, err)
		}
		t.Log("\n" + e.Text)
	}
	if e := table.ExplainOn(1, pkt("10.2.1.9", "10.1.2.10", 6, 40000, 104)); e.Verdict != VerdictDeny || e.Reason != ReasonWrongConnection || e.Connection != "a-c" {
		t.Errorf("%+v", e)
	}
}

func TestDiff(t *testing.T) {
	w := newWorld(t)
	base := w.table(t)
	if ch := base.Diff(nil); len(ch.Added) != 3 || !ch.ZonesChanged || ch.Empty() {
		t.Errorf("%+v", ch)
	}
	if ch := base.Diff(w.table(t)); !ch.Empty() {
		t.Errorf("nothing changed: %+v", ch)
	}
	revoked, err := labca.New(labca.Options{Kind: labca.Service, Name: "group-a", At: at, Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	key, err := labca.NewKey(labca.P256)
	if err != nil {
		t.Fatal(err)
	}
	crlOf := func() string {
		l, err := revoked.CRLs(at, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return string(labca.EncodeCRLs(l[:1]))
	}
	empty := crlOf()
	leaf, err := revoked.Issue(labca.Request{Public: key.Public(), DNSNames: []string{"x.group-a.example"}, At: at, Unbound: true, Device: w.device.Raw})
	if err != nil {
		t.Fatal(err)
	}
	if err := revoked.Revoke(leaf.SerialNumber, at, 1); err != nil {
		t.Fatal(err)
	}
	full := crlOf()
	withCRL := func(d *Document, crl string) {
		d.Services[0].Anchors = []string{string(certs.EncodePEM(revoked.Anchor()))}
		d.Services[0].CRLs = []string{crl}
	}
	for _, x := range []struct {
		name   string
		before func(d *Document)
		after  func(d *Document)
		conn   string
		fields string
		ends   bool
		zones  bool
	}{
		{"flows", nil, func(d *Document) { d.Connections[0].Flows[0].Ports[0] = "105" }, "a-b", "flows", false, false},
		{"selectors", nil, func(d *Document) { d.Connections[0].Remote[0] = "10.2.0.0/17" }, "a-b", "remote", true, false},
		{"flow that moves selectors", nil, func(d *Document) { d.Connections[1].Flows[0].To[0] = "10.3.1.8" }, "a-c", "remote flows", true, false},
		{"gateways", nil, func(d *Document) { d.Peers[1].Gateways[0] = "203.0.113.9" }, "a-c", "gateways", false, false},
		{"peer's identity", nil, func(d *Document) { d.Peers[1].DeviceID = "c2.devices.example" }, "a-c", "device_id", true, false},
		{"service identity", nil, func(d *Document) { d.Connections[1].ServiceID = "c2.group-a.example" }, "a-c", "service_id", true, false},
		{"key", nil, func(d *Document) { d.Services[1].PSK = NewSecret([]byte(strings.Repeat("x", 32))) }, "a-m", "psk", true, false},
		{"start", nil, func(d *Document) { d.Connections[1].Start = StartManual }, "a-c", "start", false, false},
		{"idle", nil, func(d *Document) { d.Connections[0].Idle = 0 }, "a-b", "idle", false, false},
		{"suites", nil, func(d *Document) { d.Suites.IKE[0] = "aes128gcm16-prfsha256-x25519" }, "a-b", "suites", true, false},
		{"lifetimes", nil, func(d *Document) { d.Lifetimes.Child = Duration(time.Minute) }, "a-b", "lifetimes", false, false},
		{"revocation", nil, func(d *Document) { d.Revocation = RevocationRequired }, "a-b", "revocation", false, false},
		{"zones", nil, func(d *Document) { d.Zones[0].Interfaces[0] = "lan9" }, "", "", false, true},
		{"CRL that revokes", func(d *Document) { withCRL(d, empty) }, func(d *Document) { withCRL(d, full) }, "a-b", "crls", true, false},
		{"CRL that revokes the same", func(d *Document) { withCRL(d, full) }, func(d *Document) { withCRL(d, crlOf()) }, "a-b", "crls", false, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			a, b := w.document(), w.document()
			if x.before != nil {
				x.before(a)
			}
			x.after(b)
			ta, err := Compile(a)
			if err != nil {
				t.Fatal(err)
			}
			tb, err := Compile(b)
			if err != nil {
				t.Fatal(err)
			}
			ch := tb.Diff(ta)
			var found *ConnectionChange
			for i := range ch.Changed {
				if ch.Changed[i].Name == x.conn {
					found = &ch.Changed[i]
				}
			}
			if len(ch.Added)+len(ch.Removed) != 0 || ch.ZonesChanged != x.zones || (x.conn != "") != (found != nil) {
				t.Fatalf("%+v", ch)
			}
			if found != nil && (strings.Join(found.Fields, " ") != x.fields || found.EndsSA != x.ends) {
				t.Errorf("%+v", *found)
			}
		})
	}
	d := w.document()
	d.Connections = d.Connections[:2]
	d.Connections[1].Name = "a-c2"
	fewer, err := Compile(d)
	if err != nil {
		t.Fatal(err)
	}
	ch := fewer.Diff(base)
	if !reflect.DeepEqual(ch.Added, []string{"a-c2"}) || !reflect.DeepEqual(ch.Removed, []string{"a-c", "a-m"}) || len(ch.Changed) != 0 {
		t.Errorf("%+v", ch)
	}
}
