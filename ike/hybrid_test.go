package ike_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/suite"
)

const (
	hybridIKE = "aes256gcm16-prfsha384-x25519-mlkem768"
	hybridESP = "aes256gcm16-x25519-mlkem768"
)

// suites sets the proposals of a connection.
func suites(t testing.TB, ikeSuite, espSuite string) func(*ike.PeerConfig) {
	return func(c *ike.PeerConfig) {
		c.Proposals = proposals(t, suite.ProtocolIKE, strings.Fields(ikeSuite)...)
		for i := range c.Children {
			c.Children[i].Proposals = proposals(t, suite.ProtocolESP, strings.Fields(espSuite)...)
		}
	}
}

// exchanges counts the requests of each exchange that are sent, repetitions and fragments once.
func (p *pair) exchanges() map[byte]int {
	seen, out := map[string]bool{}, map[byte]int{}
	p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
		if key := string(msg[:16]) + string(msg[18:24]); msg[19]&0x20 == 0 && !seen[key] {
			seen[key] = true
			out[msg[18]]++
		}
		return true
	}
	return out
}

// TestHybrid: X25519 with ML-KEM and others behind it in every exchange that makes keys, both
// rounds of authentication, fragments, rekeys from both ends (RFC 9242, RFC 9370).
func TestHybrid(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, ike, esp     string
		inter, follow      int
		wantIKE, wantChild string
	}{
		{"ML-KEM-768", hybridIKE, hybridESP, 1, 1, "aes256gcm16-prfsha384-x25519-ke1_mlkem768", "aes256gcm16-x25519-ke1_mlkem768-esn"},
		{"ML-KEM-1024", "aes256gcm16-prfsha384-ecp384-mlkem1024", "aes256gcm16-ecp384-mlkem1024", 1, 1, "aes256gcm16-prfsha384-ecp384-ke1_mlkem1024", "aes256gcm16-ecp384-ke1_mlkem1024-esn"},
		{"CBC", "aes256-sha256-ecp256-mlkem768", "aes256-sha256-ecp256-mlkem768", 1, 1, "aes256-sha256-prfsha256-ecp256-ke1_mlkem768", "aes256-sha256-ecp256-ke1_mlkem768-esn"},
		{
			"seven", "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke2_ecp256-ke3_ecp384-ke4_mlkem1024-ke5_ecp521-ke6_modp2048-ke7_modp3072",
			"aes256gcm16-ecp256-ke2_mlkem768-ke4_x25519-ke7_mlkem1024", 7, 3,
			"aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke2_ecp256-ke3_ecp384-ke4_mlkem1024-ke5_ecp521-ke6_modp2048-ke7_modp3072", "aes256gcm16-ecp256-ke2_mlkem768-ke4_x25519-ke7_mlkem1024-esn",
		},
		{"ML-KEM alone for CHILD SAs", hybridIKE, "aes256gcm16-mlkem1024", 1, 0, "aes256gcm16-prfsha384-x25519-ke1_mlkem768", "aes256gcm16-mlkem1024-esn"},
		{"gaps", "aes256gcm16-prfsha384-x25519-ke2_mlkem768-ke5_ecp384", "aes256gcm16", 2, 0, "aes256gcm16-prfsha384-x25519-ke2_mlkem768-ke5_ecp384", "aes256gcm16-esn"},
		{"implicit IV", hybridIKE, "aes256gcm16iiv-x25519-mlkem768", 1, 1, "aes256gcm16-prfsha384-x25519-ke1_mlkem768", "aes256gcm16iiv-x25519-ke1_mlkem768-esn"},
		{"classical", defaultIKE, defaultESP, 0, 0, "aes256gcm16-prfsha384-x25519", "aes256gcm16-x25519-esn"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: suites(t, c.ike, c.esp)})
			count := p.exchanges()
			p.up()
			if count[43] != c.inter || count[35] != 2 {
				t.Errorf("%d IKE_INTERMEDIATE and %d IKE_AUTH exchanges, want %d and 2", count[43], count[35], c.inter)
			}
			if got := ikeOf(t, p.a).Suite; got != c.wantIKE {
				t.Errorf("IKE SA with %s, want %s", got, c.wantIKE)
			}
			clear(count)
			p.rekeyChild(p.b)
			if count[36] != 1 || count[44] != c.follow {
				t.Errorf("rekey of a CHILD SA: %d CREATE_CHILD_SA and %d IKE_FOLLOWUP_KE exchanges, want 1 and %d", count[36], count[44], c.follow)
			}
			for _, n := range []*iketest.Node{p.a, p.b} {
				if got := n.Endpoint.Snapshot()[0].Children[0].Suite; got != c.wantChild {
					t.Errorf("CHILD SA with %s at %s, want %s", got, n.Name, c.wantChild)
				}
			}
			clear(count)
			p.rekeyIKE(p.b)
			if count[36] != 1 || count[44] != c.inter {
				t.Errorf("rekey of the IKE SA: %d CREATE_CHILD_SA and %d IKE_FOLLOWUP_KE exchanges, want 1 and %d", count[36], count[44], c.inter)
			}
			p.rekeyEverything()
			for _, n := range []*iketest.Node{p.a, p.b} {
				if s := n.Endpoint.Snapshot()[0]; s.Suite != c.wantIKE {
					t.Errorf("IKE SA with %s at %s after rekeys", s.Suite, n.Name)
				}
			}
			if len(p.a.Refusals)+len(p.b.Refusals) > 0 {
				t.Errorf("refused: %s %s", texts(p.a.Refusals), texts(p.b.Refusals))
			}
			p.a.Endpoint.Terminate("a-b", "test")
			p.w.For(time.Second)
			p.empty()
		})
	}
}

// TestHybridFallback: who knows no additional key exchanges is talked to without, unless our policy
// has nothing else; an optional one is left out.
func TestHybridFallback(t *testing.T) {
	t.Parallel()
	const classical = "aes256gcm16-prfsha384-x25519"
	for _, c := range []struct{ a, b, want string }{
		{hybridIKE + " " + classical, classical, classical},
		{classical, hybridIKE + " " + classical, classical},
		{hybridIKE + " " + classical, hybridIKE, classical + "-ke1_mlkem768"},
		{hybridIKE + " " + classical, classical + " " + hybridIKE, classical}, // the responder's order
		{hybridIKE, classical, ""},
		{classical, hybridIKE, ""},
		{hybridIKE, "aes256gcm16-prfsha384-x25519-mlkem1024", ""},
		{classical, hybridIKE + "-ke1_none", classical},
		{hybridIKE + "-ke1_none", hybridIKE, classical + "-ke1_mlkem768"},
		{hybridIKE + "-ke1_none", classical, classical},
		{hybridIKE + "-ke1_none", classical + "-mlkem1024-ke1_none", classical},
	} {
		t.Run(c.a+" to "+c.b, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{edit: func(p *pair) {
				suites(t, c.a, defaultESP)(p.ca)
				suites(t, c.b, defaultESP)(p.cb)
			}})
			if c.want == "" {
				p.refusedAt(p.b, ike.CodeNoProposal, -1)
				return
			}
			p.up()
			if got := ikeOf(t, p.b).Suite; got != c.want {
				t.Errorf("IKE SA with %s, want %s", got, c.want)
			}
			p.rekeyEverything()
		})
	}
}

// TestHybridChildFallback: the same for CHILD SAs, which the IKE SA survives.
func TestHybridChildFallback(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{edit: func(p *pair) {
		suites(t, hybridIKE, hybridESP+" "+defaultESP)(p.ca)
		suites(t, hybridIKE, defaultESP)(p.cb)
	}})
	p.up()
	p.rekeyEverything()
	if got := p.b.Endpoint.Snapshot()[0].Children[0].Suite; got != "aes256gcm16-x25519-esn" {
		t.Errorf("CHILD SA with %s", got)
	}
}

// TestHybridLoss: every datagram of the set-up and of the rekeys is lost once, or comes twice.
func TestHybridLoss(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"lost", "twice", "late"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			for n := range 40 {
				p := newPair(t, pairOptions{seed: uint64(n + 1), both: suites(t, hybridIKE, hybridESP)})
				i := 0
				p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
					i++
					if i != n+1 {
						return true
					}
					again := append([]byte(nil), msg...)
					switch mode {
					case "twice":
						p.w.AfterFunc(7*time.Millisecond, func() { p.w.Deliver(from, to, again) })
						return true
					case "late":
						p.w.AfterFunc(1200*time.Millisecond, func() { p.w.Deliver(from, to, again) })
					}
					return false
				}
				p.up()
				_ = p.a.Endpoint.RekeyChild(childOf(t, p.a).ID)
				p.w.For(6 * time.Second)
				_ = p.b.Endpoint.RekeyIKE(ikeOf(t, p.b).ID)
				p.w.For(2 * time.Minute) // a lost answer to a Delete is waited for
				p.counts(1, 1)
				p.carries()
				p.agree()
				if i <= n {
					return
				}
			}
		})
	}
}

// TestHybridLives: random lives with additional key exchanges at both ends, or at one with a way
// out.
func TestHybridLives(t *testing.T) {
	t.Parallel()
	n := uint64(60)
	if testing.Short() {
		n = 15
	}
	for seed := uint64(1); seed <= n; seed++ {
		esp := []string{hybridESP, hybridESP + " " + defaultESP, "aes256gcm16-x25519-mlkem768-ke2_ecp256", "aes256gcm16-mlkem768"}
		a, b := esp[seed%4], esp[seed%4]
		if seed%4 == 1 {
			b = defaultESP
		}
		i := []string{hybridIKE, "aes256gcm16-prfsha384-x25519-mlkem768-ke3_ecp256"}[seed/4%2]
		if !randomLifeOf(t, seed, func(p *pair) {
			suites(t, i, a)(p.ca)
			suites(t, i, b)(p.cb)
		}) {
			return
		}
	}
}

// TestHybridSimultaneousRekey: RFC 9370, section 2.2.4: of two rekeys that cross one is made, and
// who loses does not go on.
func TestHybridSimultaneousRekey(t *testing.T) {
	t.Parallel()
	child := func(n *iketest.Node) { _ = n.Endpoint.RekeyChild(firstChild(n)) }
	parent := func(n *iketest.Node) { _ = n.Endpoint.RekeyIKE(1) }
	kinds := map[string]func(*iketest.Node){"child": child, "ike": parent}
	for _, mixed := range []bool{false, true} {
		for na, fa := range kinds {
			for nb, fb := range kinds {
				t.Run(fmt.Sprintf("%s and %s, mixed %v", na, nb, mixed), func(t *testing.T) {
					t.Parallel()
					for seed := uint64(1); seed <= 40; seed++ {
						p := newPair(t, pairOptions{seed: seed, both: suites(t, hybridIKE, hybridESP), edit: func(p *pair) {
							if mixed { // what A asks for is hybrid, what B asks for is not
								suites(t, hybridIKE+" "+defaultIKE, hybridESP+" "+defaultESP)(p.ca)
								suites(t, defaultIKE+" "+hybridIKE, defaultESP+" "+hybridESP)(p.cb)
							}
						}})
						p.up()
						p.w.Link.Jitter = 8 * time.Millisecond
						for range 3 {
							fa(p.a)
							p.w.For(time.Duration(p.w.Intn(12)) * time.Millisecond)
							fb(p.b)
							p.watch(2 * time.Second)
							p.w.For(3 * time.Minute)
							p.counts(1, 1)
							p.carries()
							p.agree()
							for _, n := range []*iketest.Node{p.a, p.b} {
								if len(n.Refusals) > 0 {
									t.Errorf("%s refused %s", n.Name, texts(n.Refusals))
								}
							}
						}
						if t.Failed() {
							t.Logf("seed %d", seed)
							return
						}
					}
				})
			}
		}
	}
}

func firstChild(n *iketest.Node) ike.ChildID {
	for _, s := range n.Endpoint.Snapshot() {
		for _, c := range s.Children {
			return c.ID
		}
	}
	return 0
}

// TestHybridRekeyEverySecond: no packet is lost while keys change with additional exchanges.
func TestHybridRekeyEverySecond(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{seed: 3, both: func(c *ike.PeerConfig) {
		psk(c)
		suites(t, hybridIKE, hybridESP)(c)
		c.RekeyChild, c.RekeyIKE = 2*time.Second, 7*time.Second
	}})
	p.up()
	p.w.Link.Jitter, p.w.Link.Loss = 100*time.Millisecond, 0.01
	traffic := p.w.Traffic(p.a, p.b, 10*time.Millisecond)
	for range 100 {
		p.w.For(2 * time.Second)
		p.w.Forget()
	}
	traffic.Stop()
	if traffic.Lost > 0 {
		t.Errorf("%d of %d packets were lost: %v", traffic.Lost, traffic.Sent, traffic.Why)
	}
	if s := p.a.Endpoint.Snapshot(); len(s) != 1 || s[0].Rekeyed < 15 || s[0].Children[0].Rekeyed < 50 {
		t.Errorf("rekeyed too seldom: %+v", s)
	}
	p.sound()
	if len(p.a.Refusals)+len(p.b.Refusals) > 0 {
		t.Errorf("refused: %v %v", texts(p.a.Refusals), texts(p.b.Refusals))
	}
}
