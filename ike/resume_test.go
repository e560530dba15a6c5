package ike_test

import (
	"bytes"
	"crypto/x509"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
	"wardgate/ike/suite"
	"wardgate/internal/labca"
)

// chains is a ChainStore on a disk that outlives a restart.
type chains map[[32]byte][][]byte

func (c chains) SaveChain(leaf [32]byte, chain [][]byte)   { c[leaf] = chain }
func (c chains) LoadChain(leaf [32]byte) [][]byte          { return c[leaf] }
func ticketSecret(b byte) []byte                           { return bytes.Repeat([]byte{b}, 32) }
func exchangeOf(msg []byte) (exchange byte, response bool) { return msg[18], msg[19]&0x20 != 0 }

// resuming is a pair whose B gives tickets, and detects its restarts.
type resuming struct {
	*pair
	disk  chains
	maker func(*ike.Config)
	seen  map[byte]int // datagrams by exchange
}

func newResuming(t testing.TB, o pairOptions) *resuming {
	t.Helper()
	r := &resuming{disk: chains{}, seen: map[byte]int{}}
	more := o.eb
	r.maker = func(c *ike.Config) {
		c.CrashSecret, c.TicketSecrets, c.Chains = ticketSecret(1), [][]byte{ticketSecret(2)}, r.disk
		if more != nil {
			more(c)
		}
	}
	o.eb = r.maker
	r.pair = newPair(t, o)
	r.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
		x, _ := exchangeOf(msg)
		r.seen[x]++
		return true
	}
	return r
}

// crash lets B lose everything but what lies on its disk, and A find out.
func (r *resuming) crash(edit func(*ike.Config)) {
	r.t.Helper()
	r.restart(func(c *ike.Config) {
		r.maker(c)
		if edit != nil {
			edit(c)
		}
	})
	n := len(r.a.Ended)
	if !r.w.Until(10*time.Minute, func() bool { return len(r.a.Ended) > n }) {
		r.t.Fatal("A did not find out")
	}
	clear(r.seen)
}

const exchangeResume = byte(message.ExchangeIKESessionResume)

// resumed expects that the connection came up again by the ticket alone.
func (r *resuming) resumed() {
	r.t.Helper()
	if r.seen[exchangeResume] == 0 || r.seen[34] > 0 {
		r.t.Errorf("exchanges %v, want IKE_SESSION_RESUME and no IKE_SA_INIT; A: %s; B: %s", r.seen, texts(r.a.Refusals), texts(r.b.Refusals))
	}
	for _, n := range []*iketest.Node{r.a, r.b} {
		i := ikeOf(r.t, n)
		if !i.Resumed || len(i.RemoteIDs) != len(r.ca.RemoteAuth) || len(i.LocalIDs) != len(r.ca.LocalAuth) || !i.Authenticated.Before(i.Created) {
			r.t.Errorf("%s: %+v", n.Name, i)
		}
	}
	r.counts(1, 1)
}

// anew expects that the connection came up with all proofs, in one attempt.
func (r *resuming) anew() {
	r.t.Helper()
	if r.seen[34] == 0 {
		r.t.Errorf("exchanges %v, want IKE_SA_INIT", r.seen)
	}
	for _, n := range []*iketest.Node{r.a, r.b} {
		if i := ikeOf(r.t, n); i.Resumed || i.Authenticated != i.Created {
			r.t.Errorf("%s: %+v", n.Name, i)
		}
	}
	if len(r.a.Failed) > 0 {
		r.t.Errorf("A was told of failures: %v", r.a.Failed)
	}
	r.counts(1, 1)
}

// TestResume: the maker restarts, and the connection is back after two exchanges, with the rights of
// both rounds, without a signature; again after its new keys, and after another restart.
func TestResume(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*ike.PeerConfig){
		"two rounds": func(*ike.PeerConfig) {}, "psk": psk, "hybrid": suites(t, hybridIKE, hybridESP),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newResuming(t, pairOptions{both: edit})
			r.up()
			want := ikeOf(t, r.b)
			for range 3 {
				r.crash(nil)
				before := r.w.Now()
				r.up()
				r.resumed()
				if r.seen[exchangeResume] != 2 || r.seen[35] != 2 {
					t.Errorf("exchanges %v, want two in all", r.seen)
				}
				i := ikeOf(t, r.b)
				if i.Created.Sub(before) > time.Second || !slices.Equal(i.RemoteIDs, want.RemoteIDs) || !slices.EqualFunc(i.RemoteCerts, want.RemoteCerts, bytes.Equal) {
					t.Errorf("B: %+v, want %+v", i, want)
				}
				// New keys follow that no ticket secret can reach.
				keys, child := i.SPIi, childOf(t, r.a).ID
				r.w.For(4 * time.Minute)
				if s := r.a.Endpoint.Snapshot(); len(s) != 1 || s[0].Rekeyed != 1 || s[0].SPIi == keys || childOf(t, r.a).ID == child {
					t.Errorf("A: %+v", s)
				}
				r.carries()
			}
		})
	}
}

// TestResumeByRole: the ticket of a generation that the maker's rekey made is as good.
func TestResumeAfterTheMakersRekey(t *testing.T) {
	t.Parallel()
	r := newResuming(t, pairOptions{})
	r.up()
	if err := r.b.Endpoint.RekeyIKE(ikeOf(t, r.b).ID); err != nil {
		t.Fatal(err)
	}
	r.w.For(5 * time.Second)
	r.crash(nil)
	r.up()
	r.resumed()
}

// TestResumeDead: without crash detection, the peer that answers nothing is found dead; the ticket is
// good all the same, and the half that the maker kept goes without a word (RFC 5723, section 4.3.4).
func TestResumeDead(t *testing.T) {
	t.Parallel()
	r := newResuming(t, pairOptions{edit: func(p *pair) { p.cb.LivenessInterval = -1 }})
	r.up()
	r.w.Link.Cut = true
	if !r.w.Until(10*time.Minute, func() bool { return len(r.a.Ended) > 0 }) {
		t.Fatal("A did not find out")
	}
	r.w.Link.Cut = false
	clear(r.seen)
	r.up()
	r.resumed()
	if len(r.b.Ended) != 1 || r.b.Ended[0].Code != ike.ReasonReplaced {
		t.Errorf("B ended %+v", r.b.Ended)
	}
}

// TestResumeLossy: over bad links, too.
func TestResumeLossy(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		r := newResuming(t, pairOptions{seed: seed + 1})
		r.up()
		r.crash(nil)
		r.w.Link = iketest.Link{Delay: 5 * time.Millisecond, Jitter: 200 * time.Millisecond, Loss: 0.2, Dup: 0.3}
		if err := r.a.Endpoint.Initiate("a-b", "net"); err != nil {
			t.Fatal(err)
		}
		r.w.For(2 * time.Minute)
		r.w.Link = iketest.Link{Delay: 5 * time.Millisecond}
		r.w.For(3 * time.Minute)
		r.counts(1, 1)
		r.carries()
	}
}

// TestResumeUnderLoad: IKE_SESSION_RESUME is answered with a cookie when IKE_SA_INIT would be.
func TestResumeUnderLoad(t *testing.T) {
	t.Parallel()
	r := newResuming(t, pairOptions{eb: func(c *ike.Config) { c.CookieThreshold = -1 }})
	r.up()
	r.crash(nil)
	r.up()
	r.resumed()
	if r.seen[exchangeResume] != 4 {
		t.Errorf("exchanges %v, want two of IKE_SESSION_RESUME", r.seen)
	}
}

// TestResumeBehindANAT: the NAT is found anew.
func TestResumeBehindANAT(t *testing.T) {
	t.Parallel()
	r := newResuming(t, pairOptions{})
	r.up()
	r.w.AddNAT(&iketest.NAT{Inside: addrA, Outside: addrC, Shift: 3000})
	r.crash(nil)
	r.up()
	r.resumed()
	if i := ikeOf(t, r.a); !i.NATLocal || !i.Path.Encap {
		t.Errorf("A: %+v", i)
	}
}

// TestNotResumed: whatever changed since the ticket was made, the ticket is not taken; the full
// handshake follows in the same attempt and decides.
func TestNotResumed(t *testing.T) {
	t.Parallel()
	renewed := func() *credential {
		f := facilities()
		return issue(cas().groupA, "a.group-a.example", labca.P256, f[0].device, nil)
	}
	policy := func(edit func(a, b *ike.PeerConfig)) func(*resuming) {
		return func(r *resuming) {
			r.t.Helper()
			a, b := *r.ca, *r.cb
			for _, c := range []*ike.PeerConfig{&a, &b} {
				c.LocalAuth, c.RemoteAuth = slices.Clone(c.LocalAuth), slices.Clone(c.RemoteAuth)
			}
			edit(&a, &b)
			for _, x := range []struct {
				n *iketest.Node
				c *ike.PeerConfig
			}{{r.a, &a}, {r.b, &b}} {
				if err := x.n.Endpoint.SetPeers([]*ike.PeerConfig{x.c}); err != nil {
					r.t.Fatal(err)
				}
			}
		}
	}
	for name, c := range map[string]struct {
		maker  func(*ike.Config) // after the restart
		change func(*resuming)
		asked  bool // A shows its ticket
	}{
		"another secret":     {maker: func(c *ike.Config) { c.TicketSecrets = [][]byte{ticketSecret(9)} }, asked: true},
		"no secret":          {maker: func(c *ike.Config) { c.TicketSecrets = nil }, asked: true},
		"certificates lost":  {maker: func(c *ike.Config) { c.Chains = nil }, asked: true},
		"certificates mixed": {maker: func(c *ike.Config) { c.Chains = mixed{} }, asked: true},
		"too late":           {change: func(r *resuming) { r.w.For(25 * time.Hour) }},
		"our suite changed": {change: policy(func(a, b *ike.PeerConfig) {
			a.Proposals = proposals(t, suite.ProtocolIKE, "aes256-sha256-ecp256")
			b.Proposals = a.Proposals
		})},
		"the maker's suite changed": {change: policy(func(a, b *ike.PeerConfig) {
			b.Proposals = proposals(t, suite.ProtocolIKE, "aes256-sha256-ecp256")
			a.Proposals = append(slices.Clone(a.Proposals), b.Proposals...)
		}), asked: true},
		"our certificate was renewed": {change: policy(func(a, _ *ike.PeerConfig) { a.LocalAuth[1] = renewed().auth("service") })},
		"the maker's certificate was renewed": {change: policy(func(_, b *ike.PeerConfig) {
			b.LocalAuth[1] = issue(cas().groupA, "b.group-a.example", labca.P256, facilities()[1].device, nil).auth("service")
		}), asked: true},
		"a round less": {change: policy(func(a, b *ike.PeerConfig) {
			for _, c := range []*ike.PeerConfig{a, b} {
				c.LocalAuth, c.RemoteAuth = c.LocalAuth[:1], c.RemoteAuth[:1]
			}
		})},
		"the gateway moved": {change: policy(func(a, _ *ike.PeerConfig) {
			a.Remote = []netip.AddrPort{netip.AddrPortFrom(addrB, 500)}
			a.Name = "a-b" // the name stays
			a.Remote[0] = netip.AddrPortFrom(addrC, 500)
			a.Remote = append(a.Remote, netip.AddrPortFrom(addrC, 4500))
		})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newResuming(t, pairOptions{})
			r.up()
			r.crash(c.maker)
			if c.change != nil {
				c.change(r)
			}
			if name == "the gateway moved" {
				initiate(t, r.a, "a-b")
				r.w.For(time.Minute)
				if r.seen[exchangeResume] > 0 || r.seen[34] == 0 || len(r.a.IKE) > 0 {
					t.Errorf("exchanges %v", r.seen)
				}
				return
			}
			clear(r.seen)
			r.up()
			r.anew()
			if got := r.seen[exchangeResume] > 0; got != c.asked {
				t.Errorf("the ticket was shown: %v, want %v", got, c.asked)
			}
			if !slices.Contains(append(r.a.Codes(), r.b.Codes()...), ike.CodeTicket) {
				t.Errorf("nobody says why: A %v, B %v", r.a.Codes(), r.b.Codes())
			}
		})
	}
}

// mixed is a ChainStore that gives away somebody else's certificates.
type mixed struct{}

func (mixed) SaveChain([32]byte, [][]byte) {}

func (mixed) LoadChain([32]byte) [][]byte { return facilities()[2].device.chain }

// TestResumedIsJudgedAnew: a certificate that was revoked, in either round, of either end, opens
// nothing by a ticket either.
func TestResumedIsJudgedAnew(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ end, round int }{
		"device of the taker": {0, 0}, "service of the taker": {0, 1}, "device of the maker": {1, 0}, "service of the maker": {1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := iketest.Epoch.Add(-24 * time.Hour)
			cas := [2]*labca.Authority{
				must(labca.New(labca.Options{Kind: labca.Device, Name: "own-device", At: at})),
				must(labca.New(labca.Options{Kind: labca.Service, Name: "own-group", At: at})),
			}
			var certs [2][2]*credential // by end and round
			r := newResuming(t, pairOptions{edit: func(p *pair) {
				for i, cfg := range []*ike.PeerConfig{p.ca, p.cb} {
					name := string('a' + rune(i))
					certs[i][0] = issue(cas[0], name+".devices.example", labca.P256, nil, nil)
					certs[i][1] = issue(cas[1], name+".own-group.example", labca.P256, certs[i][0], nil)
					cfg.LocalAuth = []ike.LocalAuth{certs[i][0].auth("device"), certs[i][1].auth("service")}
				}
				for i, cfg := range []*ike.PeerConfig{p.ca, p.cb} {
					for round := range cfg.RemoteAuth {
						cfg.RemoteAuth[round].IDs = []ike.Identity{certs[1-i][round].id}
						cfg.RemoteAuth[round].Anchors = []*x509.Certificate{cas[round].Anchor()}
					}
				}
			}})
			r.up()
			r.crash(nil)
			if err := cas[c.round].Revoke(certs[c.end][c.round].leaf.SerialNumber, r.w.Now(), 1); err != nil {
				t.Fatal(err)
			}
			judge, node := *r.cb, r.b
			if c.end == 1 {
				judge, node = *r.ca, r.a
			}
			judge.RemoteAuth = slices.Clone(judge.RemoteAuth)
			judge.RemoteAuth[c.round].CRLs = must(cas[c.round].CRLs(r.w.Now(), 24*time.Hour))
			if err := node.Endpoint.SetPeers([]*ike.PeerConfig{&judge}); err != nil {
				t.Fatal(err)
			}
			r.w.For(time.Second)
			initiate(t, r.a, "a-b")
			r.w.For(time.Minute)
			r.counts(0, 0)
			r.sound()
			revoked := 0
			for _, c := range node.Codes() {
				if c == ike.CodeRevoked {
					revoked++
				}
			}
			// Once for the ticket, once for the full handshake; A's own verdict is a reason not to show it.
			if revoked < 1 || c.end == 0 && (revoked != 2 || r.seen[exchangeResume] == 0) || c.end == 1 && r.seen[exchangeResume] > 0 {
				t.Errorf("%s says %s; exchanges %v", node.Name, texts(node.Refusals), r.seen)
			}
		})
	}
}

// TestResumeExpiredCertificate: nobody comes back after its certificate's end, nor does a ticket live
// longer.
func TestResumeExpiredCertificate(t *testing.T) {
	t.Parallel()
	f := facilities()
	short := issue(cas().groupA, "a.group-a.example", labca.P256, f[0].device, func(r *labca.Request) { r.At, r.Life = iketest.Epoch.Add(-20*time.Minute), time.Hour })
	r := newResuming(t, pairOptions{edit: func(p *pair) { p.ca.LocalAuth[1] = short.auth("service") }})
	r.up()
	r.crash(nil)
	r.w.For(iketest.Epoch.Add(40*time.Minute + time.Second).Sub(r.w.Now()))
	initiate(t, r.a, "a-b")
	r.w.For(time.Minute)
	r.counts(0, 0)
	if r.seen[exchangeResume] > 0 {
		t.Error("an expired ticket was shown")
	}
}

// TestTicketLimit: however often an IKE SA is resumed, all rounds are proved again in time.
func TestTicketLimit(t *testing.T) {
	t.Parallel()
	r := newResuming(t, pairOptions{eb: func(c *ike.Config) { c.TicketLifetime = time.Hour }})
	r.up()
	first := ikeOf(t, r.a).Authenticated
	for range 8 {
		r.crash(nil)
		r.up()
		i := ikeOf(t, r.a)
		if i.Resumed && !(i.Authenticated.Equal(first.Truncate(time.Second)) || i.Authenticated.Equal(first)) {
			t.Fatalf("resumed at %v as proved at %v, the proof was at %v", i.Created, i.Authenticated, first)
		}
		if age := i.Created.Sub(i.Authenticated); age > time.Hour {
			t.Fatalf("resumed %v after the last proof", age)
		}
		if !i.Resumed {
			if i.Created.Sub(first) < 58*time.Minute {
				t.Fatalf("not resumed after %v", i.Created.Sub(first))
			}
			return
		}
		r.w.For(10 * time.Minute)
	}
	t.Error("resumed for ever")
}

// TestTicketGoesWithTheSA: who ended an IKE SA on purpose does not bring it back (RFC 5723, section
// 6.2).
func TestTicketGoesWithTheSA(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(r *resuming){
		"by A":            func(r *resuming) { r.a.Endpoint.Terminate("a-b", "test") },
		"by B":            func(r *resuming) { r.b.Endpoint.Terminate("a-b", "test") },
		"after the crash": func(r *resuming) { r.crash(nil); r.a.Endpoint.Terminate("a-b", "test") },
		"by the policy": func(r *resuming) {
			for _, c := range [][]*ike.PeerConfig{nil, {r.ca}} {
				if err := r.a.Endpoint.SetPeers(c); err != nil {
					r.t.Fatal(err)
				}
				r.w.For(time.Second)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newResuming(t, pairOptions{})
			r.up()
			end(r)
			r.w.For(5 * time.Second)
			clear(r.seen)
			r.up()
			r.anew()
			if r.seen[exchangeResume] > 0 {
				t.Error("the ticket was shown")
			}
		})
	}
}

// TestTicketSecretsRotate: the secret before is good for opening, and no older one.
func TestTicketSecretsRotate(t *testing.T) {
	t.Parallel()
	r := newResuming(t, pairOptions{})
	r.up()
	r.maker = func(maker func(*ike.Config)) func(*ike.Config) {
		return func(c *ike.Config) {
			maker(c)
			c.TicketSecrets = [][]byte{ticketSecret(3), ticketSecret(2)}
		}
	}(r.maker)
	r.crash(nil)
	r.up()
	r.resumed()
	if err := r.b.Endpoint.SetTicketSecrets(ticketSecret(4), ticketSecret(3)); err != nil {
		t.Fatal(err)
	}
	r.crash(nil)
	r.up()
	r.resumed()
	for _, bad := range [][][]byte{{make([]byte, 31)}, {ticketSecret(1), ticketSecret(2), ticketSecret(3), ticketSecret(4), ticketSecret(5)}} {
		if r.b.Endpoint.SetTicketSecrets(bad...) == nil {
			t.Errorf("%d secrets of %d octets were taken", len(bad), len(bad[0]))
		}
	}
	if _, err := iketest.New(1).NewNode("X", addrA, func(c *ike.Config) { c.TicketSecrets = [][]byte{{1}} }); err == nil {
		t.Error("a secret of one octet was taken")
	}
}

// caught has r resume while what goes over the wire is caught, and returns the request with the
// ticket.
func (r *resuming) caught() []byte {
	r.t.Helper()
	var ticket []byte
	tap := r.w.Tap
	r.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if x, response := exchangeOf(msg); x == exchangeResume && !response {
			ticket = bytes.Clone(msg)
		}
		return tap(from, to, msg)
	}
	r.crash(nil)
	r.up()
	r.resumed()
	r.w.Tap = tap
	if ticket == nil {
		r.t.Fatal("no ticket was shown")
	}
	return ticket
}

// TestTicketReplayed: a ticket counts once, and whoever replays it has neither its keys nor makes
// anybody lose an IKE SA; a bit that was changed makes it worth nothing.
func TestTicketReplayed(t *testing.T) {
	t.Parallel()
	r := newResuming(t, pairOptions{})
	r.up()
	msg := r.caught()
	nacks, other := 0, 0
	r.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if to.Addr() == addrC {
			if m, err := message.Parse(msg); err == nil && from.Addr() == addrB && m.Exchange == message.ExchangeIKESessionResume && m.Payloads.HasNotify(message.NotifyTicketNack) && len(m.Payloads) == 1 {
				nacks++
			} else {
				other++
			}
		}
		return true
	}
	at := bytes.Index(msg, []byte{0x40, 0x1d}) + 2 // behind the type of TICKET_OPAQUE
	for i := 0; at+i < len(msg); i += 7 {
		x := bytes.Clone(msg)
		x[0] ^= byte(i) // another SPI
		x[1] ^= 0x55
		if i > 0 {
			x[at+i] ^= 1
		}
		r.w.Deliver(netip.AddrPortFrom(addrC, 500), netip.AddrPortFrom(addrB, 500), x)
		r.w.For(time.Millisecond)
	}
	r.w.For(time.Second)
	if nacks < 40 || r.b.Endpoint.HalfOpen() > 0 {
		t.Errorf("%d times refused, %d others, %d half-open", nacks, other, r.b.Endpoint.HalfOpen())
	}
	r.counts(1, 1)
	r.carries()
}

// TestTicketStolen: who caught a ticket before it was used has no keys: nothing comes of it but a
// half-open IKE SA, which ends; the owner can still use it.
func TestTicketStolen(t *testing.T) {
	t.Parallel()
	r := newResuming(t, pairOptions{})
	r.up()
	var ticket []byte
	r.crash(nil)
	r.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if x, response := exchangeOf(msg); x == exchangeResume && !response && from.Addr() == addrA && ticket == nil {
			ticket = bytes.Clone(msg)
			return false
		}
		return true
	}
	initiate(t, r.a, "a-b")
	r.w.For(100 * time.Millisecond)
	x := bytes.Clone(ticket)
	x[0]++
	r.w.Deliver(netip.AddrPortFrom(addrC, 500), netip.AddrPortFrom(addrB, 500), x)
	r.w.For(100 * time.Millisecond)
	if r.b.Endpoint.HalfOpen() != 1 || len(r.b.IKE) > 0 {
		t.Fatalf("%d half-open, %d IKE SAs", r.b.Endpoint.HalfOpen(), len(r.b.IKE))
	}
	r.w.For(10 * time.Second)
	r.counts(1, 1)
	if !ikeOf(t, r.b).Resumed {
		t.Error("A could not resume")
	}
	r.w.For(time.Minute)
	if n := r.b.Endpoint.HalfOpen(); n > 0 {
		t.Errorf("%d are half-open still", n)
	}
}

// TestNothingBeforeTheTicketIsProved: after IKE_SESSION_RESUME nothing but the one IKE_AUTH request
// counts, whatever is protected by the right keys.
func TestNothingBeforeTheTicketIsProved(t *testing.T) {
	t.Parallel()
	f := facilities()
	id := func(s string) *message.ID { return &message.ID{Type: message.IDType(ike.IDFQDN), Data: []byte(s)} }
	firstChild := func() message.Payloads {
		any := message.NewSelector(0, 0, 65535, netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255"))
		return message.Payloads{
			&message.SA{Proposals: []message.Proposal{{Number: 1, Protocol: message.ProtocolESP, SPI: []byte{1, 2, 3, 4}, Transforms: []message.Transform{
				message.NewTransform(message.TransformType(suite.TypeENCR), 20, 256), message.NewTransform(message.TransformType(suite.TypeESN), 0, 0),
			}}}}, message.NewTSi(any), message.NewTSr(any),
		}
	}
	auth := &message.Auth{Method: message.AuthMethod(suite.AuthPSK), Data: make([]byte, 48)}
	for name, c := range map[string]struct {
		exchange byte
		ps       message.Payloads
	}{
		"an empty request":     {37, nil},
		"a Delete":             {37, message.Payloads{&message.Delete{Protocol: message.ProtocolIKE}}},
		"a CHILD SA":           {36, message.Payloads{&message.Nonce{Data: make([]byte, 32)}}},
		"IKE_INTERMEDIATE":     {43, nil},
		"no AUTH":              {35, message.Payloads{id(f[0].device.id.Data)}},
		"a wrong AUTH":         {35, append(message.Payloads{id(f[0].device.id.Data), auth}, firstChild()...)},
		"another identity":     {35, append(message.Payloads{id(f[2].device.id.Data), auth}, firstChild()...)},
		"a certificate":        {35, append(message.Payloads{id(f[0].device.id.Data), auth, &message.Cert{Encoding: message.CertX509Signature, Data: f[0].device.leaf.Raw}}, firstChild()...)},
		"another round":        {35, append(message.Payloads{id(f[0].device.id.Data), auth, message.NewNotify(message.NotifyAnotherAuthFollows)}, firstChild()...)},
		"IKE_SESSION_RESUME":   {38, nil},
		"authentication twice": {35, append(message.Payloads{id(f[0].device.id.Data), auth, auth}, firstChild()...)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newResuming(t, pairOptions{})
			r.up()
			r.crash(nil)
			r.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
				x, _ := exchangeOf(msg)
				return !(from.Addr() == addrA && x == 35) && x != 34
			}
			initiate(t, r.a, "a-b")
			r.w.For(200 * time.Millisecond)
			if r.b.Endpoint.HalfOpen() != 1 {
				t.Fatal("A did not get as far as IKE_AUTH")
			}
			_, msgs := r.a.Endpoint.Forge(c.exchange, 1, false, c.ps)
			for _, m := range msgs {
				r.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), m)
			}
			r.w.For(200 * time.Millisecond)
			if len(r.b.IKE) > 0 || len(r.b.Children) > 0 {
				t.Errorf("B has %d IKE SAs, %d CHILD SAs", len(r.b.IKE), len(r.b.Children))
			}
			r.sound()
			r.w.For(2 * time.Minute)
			if n := r.b.Endpoint.HalfOpen(); n > 0 {
				t.Errorf("%d are half-open still", n)
			}
		})
	}
}

// TestResumeForgedRefusals: unprotected answers cost A its ticket at most, and bring the full
// handshake on.
func TestResumeForgedRefusals(t *testing.T) {
	t.Parallel()
	for name, ps := range map[string]message.Payloads{
		"TICKET_NACK":          {message.NewNotify(message.NotifyTicketNack)},
		"INVALID_SYNTAX":       {message.NewNotify(message.NotifyInvalidSyntax)},
		"INVALID_IKE_SPI":      {message.NewNotify(message.NotifyInvalidIKESPI)},
		"a short nonce":        {&message.Nonce{Data: make([]byte, 16)}},
		"nothing":              {},
		"a cookie without end": {message.NewNotify(message.NotifyCookie, make([]byte, 65)...)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newResuming(t, pairOptions{})
			r.up()
			r.crash(nil)
			tap := r.w.Tap
			r.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
				if x, response := exchangeOf(msg); x == exchangeResume && !response && from.Addr() == addrA {
					h := message.Header{Exchange: message.ExchangeIKESessionResume, Flags: message.FlagResponse}
					copy(h.SPIi[:], msg)
					if name == "a short nonce" || name == "nothing" {
						h.SPIr[0] = 1
					}
					raw := must(message.Encode(h, ps))
					r.w.Deliver(to, from, raw)
				}
				return tap(from, to, msg)
			}
			r.up()
			r.counts(1, 1)
		})
	}
}
