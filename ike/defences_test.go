package ike_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
	"wardgate/ike/suite"
	"wardgate/internal/labca"
)

// The classes of docs/defences.md at work: what the parts refuse is refused by a whole endpoint, in each
// role, and nothing is left of it.

// whole keeps messages in one piece, so that they can be rewritten.
func whole(c *ike.Config) { c.FragmentSize = 60000 }

// rewrites has node from send the protected message with that exchange, ID and direction with other payloads,
// each time it is sent; it returns how often that was.
func (p *pair) rewrites(from *iketest.Node, exchange uint8, id uint32, response bool, change func(message.Payloads) message.Payloads) *int {
	times := new(int)
	to := p.b
	if from == p.b {
		to = p.a
	}
	before := p.w.Tap
	p.w.Tap = func(f, t netip.AddrPort, msg []byte) bool {
		if before != nil && !before(f, t, msg) {
			return false
		}
		x, isResponse := exchangeOf(msg)
		if f.Addr() != from.Addr || x != exchange || isResponse != response || uint32(msg[23]) != id {
			return true
		}
		ps := to.Endpoint.Peek(msg)
		if ps == nil {
			return true
		}
		*times++
		_, forged := from.Endpoint.Forge(exchange, id, response, change(slices.Clone(ps)))
		for _, m := range forged {
			p.w.Deliver(f, t, m)
		}
		return false
	}
	return times
}

// replaced is ps with the first payload of type T made anew.
func replaced[T message.Payload](ps message.Payloads, change func(T) message.Payload) message.Payloads {
	for i, p := range ps {
		if x, ok := p.(T); ok {
			ps[i] = change(x)
			break
		}
	}
	return ps
}

// nothingUp initiates from A and expects that judge refuses with one of codes, and that nothing comes up
// there, nor stays anywhere.
func (p *pair) nothingUp(judge *iketest.Node, touched *int, codes ...ike.Code) {
	p.t.Helper()
	initiate(p.t, p.a, "a-b")
	p.w.For(5 * time.Second)
	if *touched == 0 {
		p.t.Fatal("the message was never sent")
	}
	if len(judge.IKE)+len(judge.Children) > 0 {
		p.t.Errorf("%s has %d IKE SAs and %d CHILD SAs", judge.Name, len(judge.IKE), len(judge.Children))
	}
	if !slices.ContainsFunc(judge.Refusals, func(r ike.Refusal) bool { return slices.Contains(codes, r.Code) }) {
		p.t.Errorf("%s refused with %s, want %v", judge.Name, texts(judge.Refusals), codes)
	}
	p.w.For(3 * time.Minute)
	p.sound()
	p.empty()
}

// TestForgedSignatures: AUTH payloads that no key has made, in either round and of either end.
func TestForgedSignatures(t *testing.T) {
	t.Parallel()
	ecdsaID := []byte{12, 0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2}
	pssID := []byte{13, 0x30, 11, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10}
	pkcs1ID := []byte{15, 0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11, 5, 0}
	with := func(id []byte, sig ...byte) []byte { return slices.Concat(id, sig) }
	for name, forged := range map[string]message.Auth{
		"nothing":                        {Method: 14},
		"no algorithm":                   {Method: 14, Data: []byte{0}},
		"algorithm longer than the AUTH": {Method: 14, Data: []byte{255, 0x30, 10}},
		"ECDSA, empty":                   {Method: 14, Data: ecdsaID},
		"ECDSA, r and s 0":               {Method: 14, Data: with(ecdsaID, 0x30, 6, 2, 1, 0, 2, 1, 0)},
		"ECDSA, empty sequence":          {Method: 14, Data: with(ecdsaID, 0x30, 0)},
		"ECDSA of RFC 4754, zeroes":      {Method: 9, Data: make([]byte, 64)},
		"ECDSA of RFC 4754, empty":       {Method: 9},
		"PSS without parameters":         {Method: 14, Data: with(pssID, make([]byte, 256)...)},
		"PKCS #1 with another key":       {Method: 14, Data: with(pkcs1ID, bytes.Repeat([]byte{0, 1}, 128)...)},
		"RSA with SHA-1":                 {Method: 1, Data: make([]byte, 256)},
		"a pre-shared key's":             {Method: 2, Data: make([]byte, 48)},
		"NULL authentication":            {Method: 13, Data: make([]byte, 48)},
		"method 0":                       {Method: 0, Data: make([]byte, 48)},
		"method 255":                     {Method: 255, Data: make([]byte, 48)},
		"of 60,000 octets":               {Method: 14, Data: make([]byte, 60000)},
	} {
		for _, id := range []uint32{1, 2} {
			for _, who := range []string{"initiator", "responder"} {
				t.Run(fmt.Sprintf("%s, round %d, %s", name, id, who), func(t *testing.T) {
					t.Parallel()
					p := newPair(t, pairOptions{ea: whole, eb: whole})
					liar, judge := p.a, p.b
					if who == "responder" {
						liar, judge = p.b, p.a
					}
					touched := p.rewrites(liar, 35, id, who == "responder", func(ps message.Payloads) message.Payloads {
						return replaced(ps, func(*message.Auth) message.Payload { return &forged })
					})
					p.nothingUp(judge, touched, ike.CodeBadSignature, ike.CodeAuthMethod, ike.CodeSyntax)
				})
			}
		}
	}
}

// TestProofsOfOthers: an AUTH that is good elsewhere: the other end's own, sent back, and that of the round
// before. With a pre-shared key both ends have the same key, and here the same identity too.
func TestProofsOfOthers(t *testing.T) {
	t.Parallel()
	twins := func(c *ike.PeerConfig) {
		psk(c)
		c.LocalAuth[0].ID, c.RemoteAuth[0].IDs = fqdn("twin.example"), []ike.Identity{fqdn("twin.example")}
	}
	twoRounds := func(c *ike.PeerConfig) {
		twins(c)
		c.LocalAuth, c.RemoteAuth = append(c.LocalAuth, c.LocalAuth[0]), append(c.RemoteAuth, c.RemoteAuth[0])
		c.LocalAuth[1].PSK, c.RemoteAuth[1].PSK = []byte("another secret"), []byte("another secret")
	}
	for _, c := range []struct {
		name     string
		both     func(*ike.PeerConfig)
		take, at uint32 // message IDs
		from, by int    // whose AUTH, who sends it again
	}{
		{"the initiator's, by the responder", nil, 1, 1, 0, 1},
		{"the initiator's of round 2, by the responder", nil, 2, 2, 0, 1},
		{"of round 1 again, by the initiator", nil, 1, 2, 0, 0},
		{"of round 1 again, by the responder", nil, 1, 2, 1, 1},
		{"pre-shared key, the initiator's, by the responder", twins, 1, 1, 0, 1},
		{"pre-shared keys, the initiator's of round 2, by the responder", twoRounds, 2, 2, 0, 1},
		{"pre-shared keys, of round 1 again, by the initiator", twoRounds, 1, 2, 0, 0},
		{"pre-shared keys, of round 1 again, by the responder", twoRounds, 1, 2, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{ea: whole, eb: whole, both: c.both})
			nodes := []*iketest.Node{p.a, p.b}
			var stolen *message.Auth
			p.w.Tap = func(f, _ netip.AddrPort, msg []byte) bool {
				if x, response := exchangeOf(msg); f.Addr() == nodes[c.from].Addr && x == 35 && uint32(msg[23]) == c.take && response == (c.from == 1) {
					if a := nodes[1-c.from].Endpoint.Peek(msg).Auth(); a != nil {
						stolen = &message.Auth{Method: a.Method, Data: bytes.Clone(a.Data)}
					}
				}
				return true
			}
			touched := p.rewrites(nodes[c.by], 35, c.at, c.by == 1, func(ps message.Payloads) message.Payloads {
				return replaced(ps, func(*message.Auth) message.Payload { return stolen })
			})
			p.nothingUp(nodes[1-c.by], touched, ike.CodeBadSignature)
			if stolen == nil {
				t.Error("there was nothing to send again")
			}
		})
	}
}

// badKEs are values that no method has, for one with values of n octets.
func badKEs(n int) map[string][]byte {
	one := make([]byte, n)
	one[n-1] = 1
	out := map[string][]byte{
		"empty": {}, "one octet": {4}, "short": bytes.Repeat([]byte{9}, n-1), "long": bytes.Repeat([]byte{9}, n+1),
		"very long": make([]byte, 60000), "zero": make([]byte, n), "big-endian one": one, "all ones": bytes.Repeat([]byte{0xff}, n),
	}
	if n == 32 {
		delete(out, "big-endian one") // a value like any other
		delete(out, "all ones")
		out["little-endian one"] = append([]byte{1}, make([]byte, 31)...)
		out["all ones below the top bit"] = append([]byte{0xec}, append(bytes.Repeat([]byte{0xff}, 30), 0x7f)...)
	}
	return out
}

// TestHostileKE: key exchange values that are zero, short, long, or of small order: in IKE_SA_INIT of
// either end nothing comes of them, and a stranger's leaves no state; in CREATE_CHILD_SA nothing is
// replaced.
func TestHostileKE(t *testing.T) {
	t.Parallel()
	for group, n := range map[string]int{"x25519": 32, "ecp256": 64, "modp2048": 256} {
		both := func(c *ike.PeerConfig) {
			psk(c)
			c.Proposals = proposals(t, suite.ProtocolIKE, "aes256gcm16-prfsha384-"+group)
			c.Children[0].Proposals = proposals(t, suite.ProtocolESP, "aes256gcm16-"+group)
		}
		for name, value := range badKEs(n) {
			for _, who := range []string{"request", "response"} {
				t.Run(group+", "+name+", IKE_SA_INIT "+who, func(t *testing.T) {
					t.Parallel()
					p := newPair(t, pairOptions{both: both})
					touched := 0
					p.w.Tap = func(f, to netip.AddrPort, msg []byte) bool {
						x, response := exchangeOf(msg)
						if x != 34 || response != (who == "response") {
							return true
						}
						touched++
						m := must(message.Parse(msg))
						replaced(m.Payloads, func(k *message.KE) message.Payload { return &message.KE{Method: k.Method, Data: value} })
						p.w.Deliver(f, to, must(message.Encode(m.Header, m.Payloads)))
						return false
					}
					initiate(t, p.a, "a-b")
					p.w.For(100 * time.Millisecond)
					judge := p.b
					if who == "request" {
						if half := p.b.Endpoint.HalfOpen(); half != 0 {
							t.Errorf("%d IKE SAs are half-open", half)
						}
					} else {
						judge = p.a
					}
					p.w.For(3 * time.Minute)
					if touched == 0 || !slices.Contains(judge.Codes(), ike.CodeBadKE) {
						t.Errorf("touched %d, refused %s", touched, texts(judge.Refusals))
					}
					p.sound()
					p.empty()
				})
				t.Run(group+", "+name+", CREATE_CHILD_SA "+who, func(t *testing.T) {
					t.Parallel()
					p := newPair(t, pairOptions{both: both, ea: whole, eb: whole})
					p.up()
					liar, judge, next := p.a, p.b, uint32(2)
					if who == "response" {
						liar, judge = p.b, p.a
					}
					before := childOf(t, judge).ID
					touched := p.rewrites(liar, 36, next, who == "response", func(ps message.Payloads) message.Payloads {
						return replaced(ps, func(k *message.KE) message.Payload { return &message.KE{Method: k.Method, Data: value} })
					})
					if err := p.a.Endpoint.RekeyChild(childOf(t, p.a).ID); err != nil {
						t.Fatal(err)
					}
					p.w.For(time.Second)
					if *touched == 0 || !slices.Contains(judge.Codes(), ike.CodeBadKE) {
						t.Errorf("touched %d, refused %s", *touched, texts(judge.Refusals))
					}
					if c := judge.Children[before]; c == nil || len(judge.Children) != 1 {
						t.Errorf("%s has %d CHILD SAs, and the one before: %v", judge.Name, len(judge.Children), c != nil)
					}
					p.sound()
				})
			}
		}
	}
}

// TestIdentityLengths: identities of lengths that their type does not have, of none, of very many octets,
// and distinguished names that are none.
func TestIdentityLengths(t *testing.T) {
	t.Parallel()
	deep := bytes.Repeat([]byte{0x30, 0x80}, 5000)
	for name, id := range map[string]message.ID{
		"empty name":               {Type: message.IDFQDN},
		"empty key ID":             {Type: message.IDKeyID},
		"IPv4 of 0 octets":         {Type: message.IDIPv4Addr},
		"IPv4 of 3 octets":         {Type: message.IDIPv4Addr, Data: []byte{192, 0, 2}},
		"IPv4 of 5 octets":         {Type: message.IDIPv4Addr, Data: []byte{192, 0, 2, 1, 0}},
		"IPv4 of 60,000 octets":    {Type: message.IDIPv4Addr, Data: make([]byte, 60000)},
		"IPv6 of 4 octets":         {Type: message.IDIPv6Addr, Data: []byte{192, 0, 2, 1}},
		"IPv6 of 17 octets":        {Type: message.IDIPv6Addr, Data: make([]byte, 17)},
		"name of 60,000 octets":    {Type: message.IDFQDN, Data: bytes.Repeat([]byte("a"), 60000)},
		"name, zero behind":        {Type: message.IDFQDN, Data: []byte("a.devices.example\x00")},
		"name, one octet less":     {Type: message.IDFQDN, Data: []byte("a.devices.exampl")},
		"mailbox without a domain": {Type: message.IDRFC822Addr, Data: []byte("a@")},
		"DN of no octets":          {Type: message.IDDERASN1DN},
		"DN that is none":          {Type: message.IDDERASN1DN, Data: []byte("CN=a.devices.example")},
		"DN, length beyond":        {Type: message.IDDERASN1DN, Data: []byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff}},
		"DN, deep":                 {Type: message.IDDERASN1DN, Data: deep},
		"DN of 60,000 octets":      {Type: message.IDDERASN1DN, Data: append([]byte{0x30, 0x83, 0, 0xea, 0x5b}, bytes.Repeat([]byte{0x31, 0}, 29997)...)},
		"GN, deep":                 {Type: message.IDDERASN1GN, Data: deep},
		"type 0":                   {Data: []byte("a.devices.example")},
		"type 4":                   {Type: 4, Data: []byte{192, 0, 2, 0, 255, 255, 255, 0}},
		"type 255":                 {Type: 255, Data: []byte("a.devices.example")},
		"NULL":                     {Type: message.IDNull},
	} {
		for _, who := range []string{"initiator", "responder"} {
			t.Run(name+", "+who, func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{ea: whole, eb: whole})
				liar, judge := p.a, p.b
				if who == "responder" {
					liar, judge = p.b, p.a
				}
				touched := p.rewrites(liar, 35, 1, who == "responder", func(ps message.Payloads) message.Payloads {
					return replaced(ps, func(old *message.ID) message.Payload {
						x := id
						x.Responder = old.Responder
						return &x
					})
				})
				p.nothingUp(judge, touched, ike.CodeSyntax, ike.CodeUnknownIdentity)
				clean(t, judge)
			})
		}
	}
}

// clean expects that what an owner was told about a peer is short and fit for a log.
func clean(t testing.TB, n *iketest.Node) {
	t.Helper()
	var all []string
	for _, r := range n.Refusals {
		all = append(all, r.Text)
		if r.Err != nil {
			all = append(all, r.Err.Error())
		}
		for _, id := range r.IDs {
			all = append(all, id.String())
		}
	}
	for _, r := range append(slices.Clone(n.Ended), n.Gone...) {
		all = append(all, r.Text)
	}
	for _, err := range n.Failed {
		all = append(all, err.Error())
	}
	for _, s := range all {
		if len(s) > 4096 {
			t.Errorf("%s was told %d octets: %.100q…", n.Name, len(s), s)
		}
		if i := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }); i >= 0 {
			t.Errorf("%s was told %q, which does not print at %d", n.Name, s, i)
		}
		if strings.Contains(s, "%!") {
			t.Errorf("%s was told %q: a peer's text was taken for a format", n.Name, s)
		}
	}
}

// TestPeerTextInLogs: text that a peer chose (identity, subject and names of a certificate, an answer's
// data, vendor ID) with control characters, directions of writing, format directives and octets that are
// no text reaches the owner escaped, wherever it turns up.
func TestPeerTextInLogs(t *testing.T) {
	t.Parallel()
	const evil = "%s%n%1000000d\x00\x1b[2J\r\nNov 22 root: accepted \u202egnp.exe\u2028\xff\xfe\\x"
	evilID := ike.Identity{Type: ike.IDFQDN, Data: evil}
	named := issue(cas().device, "evil.devices.example", labca.P256, nil, func(r *labca.Request) {
		r.Subject.CommonName = strings.ToValidUTF8(evil, "?") + strings.Repeat("é", 300)
	})
	for name, c := range map[string]struct {
		edit    func(*pair)
		rewrite func(*pair) *int
		judge   int // who is told
	}{
		"identity of the initiator": {func(p *pair) { p.ca.LocalAuth[0].ID = evilID }, nil, 1},
		"identity that is wanted":   {func(p *pair) { p.ca.RemoteAuth[0].IDs = []ike.Identity{evilID} }, nil, 1},
		"subject of a certificate": {func(p *pair) {
			x := named.auth("device")
			x.ID = p.ca.LocalAuth[0].ID
			p.ca.LocalAuth[0] = x
		}, nil, 1},
		"identity of the responder": {nil, func(p *pair) *int {
			return p.rewrites(p.b, 35, 1, true, func(ps message.Payloads) message.Payloads {
				return replaced(ps, func(*message.ID) message.Payload { return message.NewIDr(message.IDFQDN, []byte(evil)) })
			})
		}, 0},
		"identity of every type": {nil, func(p *pair) *int {
			typ := uint8(0)
			return p.rewrites(p.a, 35, 1, false, func(ps message.Payloads) message.Payloads {
				typ++
				return replaced(ps, func(*message.ID) message.Payload { return message.NewIDi(message.IDType(typ), []byte(evil)) })
			})
		}, 1},
		"answer": {nil, func(p *pair) *int {
			return p.rewrites(p.b, 35, 1, true, func(message.Payloads) message.Payloads {
				return message.Payloads{message.NewNotify(8192, []byte(evil)...), &message.VendorID{Data: []byte(evil)}}
			})
		}, 0},
		"algorithm": {nil, func(p *pair) *int {
			return p.rewrites(p.a, 35, 1, false, func(ps message.Payloads) message.Payloads {
				return replaced(ps, func(*message.Auth) message.Payload {
					return &message.Auth{Method: 14, Data: append([]byte{byte(len(evil))}, evil...)}
				})
			})
		}, 1},
		"certificate that is none": {nil, func(p *pair) *int {
			return p.rewrites(p.a, 35, 1, false, func(ps message.Payloads) message.Payloads {
				return replaced(ps, func(*message.Cert) message.Payload {
					return &message.Cert{Encoding: message.CertX509Signature, Data: []byte(evil)}
				})
			})
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{ea: whole, eb: whole, edit: c.edit})
			times := new(int)
			if c.rewrite != nil {
				times = c.rewrite(p)
			}
			initiate(t, p.a, "a-b")
			p.w.For(5 * time.Minute)
			if c.rewrite != nil && *times == 0 {
				t.Error("nothing was rewritten")
			}
			if n := []*iketest.Node{p.a, p.b}[c.judge]; len(n.Refusals) == 0 {
				t.Errorf("%s was told nothing", n.Name)
			}
			clean(t, p.a)
			clean(t, p.b)
			p.sound()
			p.empty()
		})
	}
}

// TestFloodOfUnknownPayloads: payloads that nobody knows and that are not critical are passed over, up to
// as many as a message may hold; with more it is none. Neither costs state.
func TestFloodOfUnknownPayloads(t *testing.T) {
	t.Parallel()
	many := func(n int) (ps message.Payloads) {
		for i := range n {
			ps = append(ps, &message.Unknown{Type: message.PayloadType(200 + i%50), Data: make([]byte, i%3)})
		}
		return ps
	}
	for _, c := range []struct {
		n        int
		answered bool
	}{{100, true}, {message.MaxPayloads + 1, false}, {10000, false}} {
		t.Run(fmt.Sprintf("IKE_SA_INIT, %d", c.n), func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: psk})
			var init *message.Message
			answers := 0
			p.w.Tap = func(f, to netip.AddrPort, msg []byte) bool {
				if x, response := exchangeOf(msg); x == 34 && !response && init == nil {
					init = must(message.Parse(bytes.Clone(msg)))
				}
				if to.Addr() == addrC {
					answers++
				}
				return true
			}
			p.up()
			half := p.b.Endpoint.HalfOpen()
			init.SPIi[0]++
			p.w.Deliver(netip.AddrPortFrom(addrC, 500), netip.AddrPortFrom(addrB, 500), must(message.Encode(init.Header, append(many(c.n), init.Payloads...))))
			p.w.For(10 * time.Millisecond)
			if got := p.b.Endpoint.HalfOpen() - half; (answers == 1) != c.answered || (got == 1) != c.answered {
				t.Errorf("%d answers, %d half-open", answers, got)
			}
			p.sound()
		})
		t.Run(fmt.Sprintf("IKE_AUTH, %d", c.n), func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: psk, ea: whole, eb: whole})
			touched := p.rewrites(p.a, 35, 1, false, func(ps message.Payloads) message.Payloads { return append(many(c.n), ps...) })
			if !c.answered {
				p.nothingUp(p.b, touched, ike.CodeSyntax)
				return
			}
			p.up()
			p.counts(1, 1)
		})
		t.Run(fmt.Sprintf("INFORMATIONAL, %d", c.n), func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: psk, ea: whole, eb: whole})
			p.up()
			path, msgs := p.a.Endpoint.Forge(37, 2, false, many(c.n))
			for _, m := range msgs {
				p.w.Deliver(netip.AddrPortFrom(addrA, path.Local.Port()), path.Remote, m)
			}
			p.w.For(time.Millisecond)
			if up := len(p.b.IKE) == 1; up != c.answered {
				t.Errorf("B's IKE SA stands: %v", up)
			}
			p.sound()
		})
	}
}

// TestTooManyCertificates: a peer's chain is bounded in number and in size, whatever it would prove.
func TestTooManyCertificates(t *testing.T) {
	t.Parallel()
	f := facilities()
	large := issue(cas().device, "a.devices.example", labca.P256, nil, func(r *labca.Request) {
		for i := range 900 {
			r.DNSNames = append(r.DNSNames, fmt.Sprintf("name-number-%04d.devices.example", i))
		}
	})
	for name, c := range map[string]struct {
		more [][]byte // behind the true ones, which are two
		only [][]byte
		ok   bool
	}{
		"nine":        {slices.Repeat([][]byte{f[2].device.leaf.Raw}, 7), nil, true},
		"ten":         {slices.Repeat([][]byte{f[2].device.leaf.Raw}, 8), nil, false},
		"a hundred":   {slices.Repeat([][]byte{{0x30, 0}}, 98), nil, false},
		"one, 30 KiB": {nil, large.chain, false},
	} {
		for i, who := range []string{"initiator", "responder"} {
			t.Run(name+", "+who, func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{ea: whole, eb: whole})
				liar, judge := p.a, p.b
				if who == "responder" {
					liar, judge = p.b, p.a
				}
				touched := p.rewrites(liar, 35, 1, who == "responder", func(ps message.Payloads) message.Payloads {
					ps = slices.DeleteFunc(ps, func(p message.Payload) bool { return p.PayloadType() == message.PayloadCERT })
					list := c.only
					if list == nil {
						list = slices.Concat(f[i].device.chain, c.more)
					}
					for _, der := range list {
						ps = append(ps, &message.Cert{Encoding: message.CertX509Signature, Data: der})
					}
					return ps
				})
				if c.ok {
					p.up()
					return
				}
				p.nothingUp(judge, touched, ike.CodeBadCert)
			})
		}
	}
}

// TestNothingIsShownToWhoIsNotProved: who does not prove the first round to us learns nothing of the second
// one: an initiator does not go on, and a responder says nothing about itself at all. So the constraints
// on a peer (its CA, identity, purpose) count before anything is given away.
func TestNothingIsShownToWhoIsNotProved(t *testing.T) {
	t.Parallel()
	f := facilities()
	for name, spoil := range map[string]func(c *ike.PeerConfig, i int){
		"another CA": func(c *ike.PeerConfig, i int) {
			rogue := must(labca.New(labca.Options{Kind: labca.Device, Name: "device", At: iketest.Epoch.Add(-time.Hour)}))
			c.LocalAuth[0] = issue(rogue, f[i].device.id.Data, labca.P256, nil, nil).auth("device")
		},
		"another purpose": func(c *ike.PeerConfig, i int) {
			c.LocalAuth[0] = issue(cas().device, f[i].device.id.Data, labca.P256, nil, func(r *labca.Request) { r.NoEKU = true }).auth("device")
		},
		"another identity": func(c *ike.PeerConfig, i int) { c.LocalAuth[0] = f[2].device.auth("device") },
		"another name in the certificate": func(c *ike.PeerConfig, i int) {
			x := f[2].device.auth("device")
			x.ID = f[i].device.id
			c.LocalAuth[0] = x
		},
	} {
		for i, who := range []string{"initiator", "responder"} {
			t.Run(name+" of the "+who, func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{ea: whole, eb: whole, edit: func(p *pair) {
					spoil([]*ike.PeerConfig{p.ca, p.cb}[i], i)
					for r := range p.ca.RemoteAuth { // A does not say whom it wants, or B would object
						p.ca.RemoteAuth[r].IDs = append(p.ca.RemoteAuth[r].IDs, fqdn("another.example"))
					}
				}})
				p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
					x, _ := exchangeOf(msg)
					switch {
					case x == 35 && from.Addr() == addrA && msg[23] > 1:
						t.Errorf("A begins another round")
					case x == 35 && from.Addr() == addrB && who == "initiator":
						if ps := p.a.Endpoint.Peek(msg); len(ps) != 1 || !ps.HasNotify(message.NotifyAuthenticationFailed) || len(ps.ErrorNotify().Data) > 0 {
							t.Errorf("B answers %s", message.Header{Exchange: 35}.Summary(ps))
						}
					}
					return true
				}
				initiate(t, p.a, "a-b")
				p.w.For(3 * time.Minute)
				if judge := []*iketest.Node{p.b, p.a}[i]; len(judge.Refusals) == 0 {
					t.Errorf("%s refused nothing", judge.Name)
				}
				p.sound()
				p.empty()
			})
		}
	}
}

// TestWireSaysNothing: whatever is wrong with an IKE_SA_INIT request, the answer is the same; and whatever is
// wrong with an IKE_AUTH request, it is one notify without data: INVALID_SYNTAX where payloads are wrong,
// AUTHENTICATION_FAILED for everything that proofs and identities are about. Our own records tell all of
// them apart.
func TestWireSaysNothing(t *testing.T) {
	t.Parallel()
	var first []byte
	drop := func(typ message.PayloadType) func(message.Payloads) message.Payloads {
		return func(ps message.Payloads) message.Payloads {
			return slices.DeleteFunc(ps, func(p message.Payload) bool { return p.PayloadType() == typ })
		}
	}
	double := func(typ message.PayloadType) func(message.Payloads) message.Payloads {
		return func(ps message.Payloads) message.Payloads {
			i := slices.IndexFunc(ps, func(p message.Payload) bool { return p.PayloadType() == typ })
			return append(ps, ps[i])
		}
	}
	p := newPair(t, pairOptions{both: psk})
	var init *message.Message
	var answer []byte
	p.w.Tap = func(_, to netip.AddrPort, msg []byte) bool {
		if init == nil {
			init = must(message.Parse(bytes.Clone(msg)))
		}
		if to.Addr() == addrC {
			answer = bytes.Clone(msg)
		}
		return true
	}
	p.up()
	for name, change := range map[string]func(message.Payloads) message.Payloads{
		"no SA": drop(message.PayloadSA), "no KE": drop(message.PayloadKE), "no nonce": drop(message.PayloadNonce),
		"two SA": double(message.PayloadSA), "two KE": double(message.PayloadKE), "two nonces": double(message.PayloadNonce),
		"nothing": func(message.Payloads) message.Payloads { return nil },
		"AUTH": func(ps message.Payloads) message.Payloads {
			return append(ps, &message.Auth{Method: 2, Data: []byte{1}})
		},
		"proposal number 2": func(ps message.Payloads) message.Payloads {
			return replaced(ps, func(sa *message.SA) message.Payload {
				x := *sa
				x.Proposals = slices.Clone(sa.Proposals)
				x.Proposals[0].Number = 2
				return &x
			})
		},
	} {
		answer = nil
		h := init.Header
		h.SPIi[0]++
		p.w.Deliver(netip.AddrPortFrom(addrC, 500), netip.AddrPortFrom(addrB, 500), must(message.Encode(h, change(slices.Clone(init.Payloads)))))
		p.w.For(time.Millisecond)
		m, err := message.Parse(answer)
		if err != nil || len(m.Payloads) != 1 || !m.Payloads.HasNotify(message.NotifyInvalidSyntax) || len(m.Payloads.ErrorNotify().Data) > 0 {
			t.Errorf("IKE_SA_INIT, %s: B answers %x (%v)", name, answer, err)
		}
		if first == nil {
			first = answer
		} else if !bytes.Equal(first, answer) {
			t.Errorf("IKE_SA_INIT, %s: %x, other mistakes get %x", name, answer, first)
		}
	}
	for name, c := range map[string]struct {
		change func(message.Payloads) message.Payloads
		want   message.NotifyType
	}{
		"no AUTH":   {drop(message.PayloadAUTH), message.NotifyAuthenticationFailed}, // it asks for EAP
		"no IDi":    {drop(message.PayloadIDi), message.NotifyInvalidSyntax},
		"no SA":     {drop(message.PayloadSA), message.NotifyInvalidSyntax},
		"two AUTH":  {double(message.PayloadAUTH), message.NotifyInvalidSyntax},
		"half a TS": {drop(message.PayloadTSi), message.NotifyInvalidSyntax},
		"no CERT":   {drop(message.PayloadCERT), message.NotifyAuthenticationFailed},
		"other name": {func(ps message.Payloads) message.Payloads {
			return replaced(ps, func(*message.ID) message.Payload { return message.NewIDi(message.IDFQDN, []byte("x.example")) })
		}, message.NotifyAuthenticationFailed},
		"other signature": {func(ps message.Payloads) message.Payloads {
			return replaced(ps, func(a *message.Auth) message.Payload {
				x := *a
				x.Data = bytes.Clone(a.Data)
				x.Data[len(x.Data)-1] ^= 1
				return &x
			})
		}, message.NotifyAuthenticationFailed},
		"other certificate": {func(ps message.Payloads) message.Payloads {
			return replaced(ps, func(a *message.Cert) message.Payload {
				return &message.Cert{Encoding: a.Encoding, Data: facilities()[2].device.leaf.Raw}
			})
		}, message.NotifyAuthenticationFailed},
	} {
		t.Run("IKE_AUTH, "+name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{ea: whole, eb: whole})
			var said []message.Payloads
			p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
				if x, response := exchangeOf(msg); x == 35 && response {
					said = append(said, p.a.Endpoint.Peek(msg))
				}
				return true
			}
			touched := p.rewrites(p.a, 35, 1, false, c.change)
			initiate(t, p.a, "a-b")
			p.w.For(time.Second)
			if *touched == 0 || len(said) == 0 || len(said[0]) != 1 || !said[0].HasNotify(c.want) || len(said[0].ErrorNotify().Data) > 0 {
				t.Errorf("B answers %v", said)
			}
			if len(p.b.Refusals) != 1 || p.b.Refusals[0].Text == "" {
				t.Errorf("B's record: %s", texts(p.b.Refusals))
			}
		})
	}
}
