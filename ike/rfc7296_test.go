package ike_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// What RFC 7296 demands of headers and payloads, and no other file is about; docs/rfc.md has all of it.

// TestVersions: RFC 7296, sections 1.5 and 2.5. A higher major version is told which one we speak, with the
// SPIs, exchange and message ID of the request and the flags of a response; lower ones, and responses, are
// dropped. The minor version and the V flag are ignored, and we send 0 and no V.
func TestVersions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		version byte
		flags   byte
		want    byte // flags of the answer, 0: none
	}{
		{"3.0, initiator", 0x30, 0x08, 0x20},
		{"3.0, responder", 0x30, 0x00, 0x28},
		{"3.7, with V", 0x37, 0x18, 0x20},
		{"15.15", 0xff, 0x08, 0x20},
		{"3.0, a response", 0x30, 0x28, 0},
		{"1.0", 0x10, 0x08, 0},
		{"0.0", 0x00, 0x08, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{})
			var got []byte
			p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
				got = bytes.Clone(msg)
				return true
			}
			msg := slices.Concat(bytes.Repeat([]byte{1}, 8), bytes.Repeat([]byte{2}, 8), []byte{0, c.version, 37, c.flags, 0, 0, 1, 7, 0, 0, 0, 28})
			p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), msg)
			p.w.For(time.Second)
			if c.want == 0 {
				if got != nil {
					t.Errorf("B sent %x", got)
				}
				return
			}
			want := slices.Concat(msg[:16], []byte{41, 0x20, 37, c.want, 0, 0, 1, 7, 0, 0, 0, 36, 0, 0, 0, 8, 0, 0, 0, 5})
			if !bytes.Equal(got, want) {
				t.Errorf("B sent %x, want %x", got, want)
			}
		})
	}
}

// TestReservedHeaderBits: RFC 7296, section 3.1: minor version, V and reserved flags of a request are
// ignored, as are the flags of its Encrypted payload (section 3.2); the answer has none of them.
func TestReservedHeaderBits(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func([]byte){
		"minor version":       func(b []byte) { b[17] |= 0x0f },
		"V":                   func(b []byte) { b[19] |= 0x10 },
		"reserved flags":      func(b []byte) { b[19] |= 0xc7 },
		"Encrypted, critical": func(b []byte) { b[29] |= 0x80 },
		"Encrypted, reserved": func(b []byte) { b[29] |= 0x7f },
		"all of them":         func(b []byte) { b[17] |= 0x0f; b[19] |= 0xd7; b[29] = 0xff },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: psk})
			p.up()
			id, _ := p.a.Endpoint.IDs()
			var answer []byte
			p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
				if from.Addr() == addrB {
					answer = bytes.Clone(msg)
				}
				return true
			}
			spi := childOf(t, p.a).SPIIn
			del := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 12, 3, 4, 0, 1}, spi)
			p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), p.a.Endpoint.ForgeHeader(37, id, 42, del, edit))
			p.w.For(time.Millisecond)
			if len(p.b.Children) != 0 || answer == nil || answer[17] != 0x20 || answer[19] != 0x20 || answer[29] != 0 {
				t.Errorf("B has %d CHILD SAs and answered %x", len(p.b.Children), answer)
			}
			p.sound()
		})
	}
}

// eachPayload calls f with each payload, its generic header included.
func eachPayload(in message.Inner, f func(t message.PayloadType, b []byte)) {
	for at, p := 0, in.First; p != 0 && at+4 <= len(in.Plain); {
		n := int(binary.BigEndian.Uint16(in.Plain[at+2:]))
		next := message.PayloadType(in.Plain[at])
		f(p, in.Plain[at:at+n])
		at, p = at+n, next
	}
}

// reserved sets every reserved bit and octet of a payload but those of an identity, which AUTH covers.
func reserved(t message.PayloadType, b []byte) {
	b[1] |= 0x7f
	fill := func(from, to int) {
		for i := from; i < to; i++ {
			b[i] = 0xff
		}
	}
	switch t {
	case message.PayloadKE:
		fill(6, 8)
	case message.PayloadAUTH, message.PayloadTSi, message.PayloadTSr, message.PayloadCP:
		fill(5, 8)
	case message.PayloadSA:
		for at := 4; at < len(b); {
			end := at + int(binary.BigEndian.Uint16(b[at+2:]))
			b[at+1] = 0xff
			for tr := at + 8 + int(b[at+6]); tr < end; tr += int(binary.BigEndian.Uint16(b[tr+2:])) {
				b[tr+1], b[tr+5] = 0xff, 0xff
			}
			at = end
		}
	default:
	}
}

// TestReservedIsIgnored: RFC 7296, sections 2.5 and 3.2: what is RESERVED in payloads and their substructures, and the critical flag
// of payloads that are known, change nothing. Payloads that are not known and not critical change nothing
// either, wherever they stand.
func TestReservedIsIgnored(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(message.Inner) message.Inner{
		"reserved": func(in message.Inner) message.Inner {
			eachPayload(in, reserved)
			return in
		},
		"critical": func(in message.Inner) message.Inner {
			eachPayload(in, func(_ message.PayloadType, b []byte) { b[1] |= 0x80 })
			return in
		},
		"protocol of notifies without an SPI": func(in message.Inner) message.Inner { // section 3.10
			eachPayload(in, func(t message.PayloadType, b []byte) {
				if t == message.PayloadNotify && b[5] == 0 {
					b[4] = 77
				}
			})
			return in
		},
		"unknown payloads": func(in message.Inner) message.Inner {
			// In front, the type of the first one behind; types of IKEv1, of nobody, and for private use.
			for _, typ := range []byte{1, 13, 32, 49, 100, 255} {
				in.Plain = append([]byte{byte(in.First), 0x7f, 0, 6, 1, 2}, in.Plain...)
				in.First = message.PayloadType(typ)
			}
			return in
		},
	} {
		for _, c := range situations() {
			t.Run(name+", "+c.name, func(t *testing.T) {
				t.Parallel()
				all, honest := recorded(t, &c)
				for _, s := range all {
					if s.Exchange == 34 || s.Exchange == 43 {
						continue // both ends sign it as it was sent
					}
					touched := false
					out := rewritten(&c, key(s), func(in message.Inner) message.Inner {
						touched = true
						return edit(in)
					})
					if out.Violation != "" || !touched || fmt.Sprint(out.AtRest) != fmt.Sprint(honest.AtRest) {
						t.Errorf("%s: %s\n%v, want %v\n%s", key(s), out.Violation, out.AtRest, honest.AtRest, out.Diagram)
					}
				}
			})
		}
	}
}

// TestNothingReservedIsSent: RFC 7296, sections 2.5, 3.1 and 3.2: what we send has zeroes in all that is reserved, no critical flag,
// no V, and version 2.0.
func TestNothingReservedIsSent(t *testing.T) {
	t.Parallel()
	for _, c := range situations() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			all, _ := recorded(t, &c)
			for _, s := range all {
				in := must(message.EncodeInner(s.Payloads)) // it keeps critical flags and an identity's reserved octets
				eachPayload(in, func(typ message.PayloadType, b []byte) {
					marked := bytes.Clone(b)
					reserved(typ, marked)
					if typ == message.PayloadIDi || typ == message.PayloadIDr {
						marked[5], marked[6], marked[7] = 0xff, 0xff, 0xff
					}
					marked[1] = 0xff
					for i := range b {
						if b[i] != 0 && b[i] != marked[i] {
							t.Errorf("%s: octet %d of %v is %02x", key(s), i, typ, b[i])
						}
					}
				})
			}
		})
	}
	p := newPair(t, pairOptions{both: psk})
	n := 0
	p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
		n++
		if msg[17] != 0x20 || msg[19]&^0x28 != 0 || msg[16] == 46 && msg[29] != 0 {
			t.Errorf("version %02x, flags %02x, Encrypted payload %02x", msg[17], msg[19], msg[29])
		}
		return true
	}
	p.up()
	p.rekeyEverything()
	if n < 20 {
		t.Errorf("%d messages", n)
	}
}

// TestUnknownCritical: RFC 7296, section 2.5: a request with a payload that is not known and critical is
// rejected with UNSUPPORTED_CRITICAL_PAYLOAD, whose data is its type; nothing of it is carried out. An
// answer with one does not count.
func TestUnknownCritical(t *testing.T) {
	t.Parallel()
	for _, c := range situations() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			all, _ := recorded(t, &c)
			for _, s := range all {
				if s.Exchange == 34 {
					continue // see below
				}
				out := altered(&c, key(s), func(ps message.Payloads) message.Payloads {
					return append(ps, &message.Unknown{Generic: message.Generic{Critical: true}, Type: 211})
				})
				if out.Violation != "" {
					t.Errorf("%s: %s\n%s", key(s), out.Violation, out.Diagram)
				}
				told := slices.ContainsFunc(out.Said, func(x iketest.Said) bool {
					n := x.Payloads.Notify(message.NotifyUnsupportedCriticalPayload)
					return x.Node == 1-s.Node && x.Response && n != nil && bytes.Equal(n.Data, []byte{211})
				})
				if told == s.Response {
					t.Errorf("%s: %c told: %v\n%s", key(s), 'B'-s.Node, told, out.Diagram)
				}
				if c.from == 0 && out.AtRest[1-s.Node].Children["net"] > 0 {
					t.Errorf("%s: %c has a CHILD SA\n%s", key(s), 'B'-s.Node, out.Diagram)
				}
			}
		})
	}
	t.Run("IKE_SA_INIT", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, pairOptions{both: psk})
		var answer *message.Message
		p.w.Tap = func(_, to netip.AddrPort, msg []byte) bool {
			_, response := exchangeOf(msg)
			m := must(message.Parse(bytes.Clone(msg)))
			if response && to.Addr() == addrC {
				answer = m
				return false
			}
			m.Payloads = append(m.Payloads, &message.Unknown{Generic: message.Generic{Critical: true}, Type: 211})
			p.w.Deliver(netip.AddrPortFrom(addrC, 500), to, must(message.Encode(m.Header, m.Payloads))) // a stranger's
			return false
		}
		initiate(t, p.a, "a-b")
		p.w.For(100 * time.Millisecond)
		if answer == nil || len(answer.Payloads) != 1 || !bytes.Equal(answer.Payloads[0].(*message.Notify).Data, []byte{211}) || answer.Payloads[0].(*message.Notify).Type != message.NotifyUnsupportedCriticalPayload {
			t.Errorf("B answers %v", answer)
		}
		if half := p.b.Endpoint.HalfOpen(); half != 0 {
			t.Errorf("%d half-open", half)
		}
		p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
			if x, response := exchangeOf(msg); x == 34 && response {
				m := must(message.Parse(bytes.Clone(msg)))
				m.Payloads = append(m.Payloads, &message.Unknown{Generic: message.Generic{Critical: true}, Type: 211})
				p.w.Deliver(from, to, must(message.Encode(m.Header, m.Payloads)))
			}
			return true
		}
		p.w.For(time.Minute)
		p.counts(1, 1)
	})
}

// TestCookieRoundTrips: RFC 7296, section 2.6.1: the initiator returns the cookie in the request that follows
// INVALID_KE_PAYLOAD too, so that two round trips are enough for both; everything else in the requests is as
// it was, but the key exchange.
func TestCookieRoundTrips(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{
		eb: func(c *ike.Config) { c.CookieThreshold = -1 },
		edit: func(p *pair) {
			p.ca.Proposals = proposals(t, suite.ProtocolIKE, "aes256gcm16-prfsha384-x25519-ecp384")
			p.cb.Proposals = proposals(t, suite.ProtocolIKE, "aes256gcm16-prfsha384-ecp384")
		},
	})
	var requests, answers []*message.Message
	p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
		if x, response := exchangeOf(msg); x == 34 {
			m := must(message.Parse(bytes.Clone(msg)))
			if response {
				answers = append(answers, m)
			} else {
				requests = append(requests, m)
			}
		}
		return true
	}
	p.up()
	if len(requests) != 3 || len(answers) != 3 || !answers[0].Payloads.HasNotify(message.NotifyCookie) || !answers[1].Payloads.HasNotify(message.NotifyInvalidKEPayload) {
		t.Fatalf("%d requests, %d answers", len(requests), len(answers))
	}
	if n, err := answers[1].Payloads.Notify(message.NotifyInvalidKEPayload).KEMethod(); err != nil || n != message.KEECP384 {
		t.Errorf("asked for group %v, %v", n, err)
	}
	cookie := answers[0].Payloads.Notify(message.NotifyCookie).Data
	for i, m := range requests {
		if !bytes.Equal(m.Payloads.Nonce().Data, requests[0].Payloads.Nonce().Data) || fmt.Sprint(m.Payloads.SA()) != fmt.Sprint(requests[0].Payloads.SA()) || m.SPIi != requests[0].SPIi || m.MessageID != 0 {
			t.Errorf("request %d has another SPI, nonce, message ID or SA payload", i+1)
		}
		if i == 0 {
			continue
		}
		// The cookie is the first payload (section 2.6), and the same.
		if n, ok := m.Payloads[0].(*message.Notify); !ok || n.Type != message.NotifyCookie || !bytes.Equal(n.Data, cookie) {
			t.Errorf("request %d begins with %v", i+1, m.Payloads[0])
		}
	}
	if !bytes.Equal(requests[0].Payloads.KE().Data, requests[1].Payloads.KE().Data) || requests[2].Payloads.KE().Method != message.KEECP384 {
		t.Error("the key exchange changes with the cookie, or not with INVALID_KE_PAYLOAD")
	}
}

// TestWrongCookie: RFC 7296, section 2.6: a cookie that is not the expected one is no cookie: where one is asked
// for another one comes, elsewhere it is ignored.
func TestWrongCookie(t *testing.T) {
	t.Parallel()
	for _, threshold := range []int{-1, 64} {
		p := newPair(t, pairOptions{eb: func(c *ike.Config) { c.CookieThreshold = threshold }})
		var init *message.Message
		var answer *message.Message
		p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
			if from.Addr() == addrA {
				init = must(message.Parse(bytes.Clone(msg)))
			} else if answer == nil {
				answer = must(message.Parse(bytes.Clone(msg)))
			}
			return false
		}
		initiate(t, p.a, "a-b")
		p.w.For(time.Millisecond)
		for _, data := range [][]byte{{}, {1}, make([]byte, 20), make([]byte, 64), make([]byte, 2000)} {
			answer = nil
			h := init.Header
			h.SPIi[0], h.SPIi[1] = 0xee, byte(len(data))
			ps := append(message.Payloads{message.NewNotify(message.NotifyCookie, data...)}, init.Payloads...)
			p.w.Deliver(netip.AddrPortFrom(addrC, 500), netip.AddrPortFrom(addrB, 500), must(message.Encode(h, ps)))
			p.w.For(10 * time.Millisecond)
			if answer == nil || answer.Payloads.HasNotify(message.NotifyCookie) != (threshold < 0) || (answer.Payloads.SA() != nil) == (threshold < 0) {
				t.Errorf("threshold %d, cookie of %d octets: B answers %v", threshold, len(data), answer)
			}
		}
	}
}

// TestNothingIsUsedTwice: RFC 7296, sections 2.2, 2.10, 2.12 and 2.18: key exchange values and nonces are new in
// each exchange, nonces of 128 bits and half the PRF's key at least, and message IDs begin at 0 with each set of keys.
func TestNothingIsUsedTwice(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk})
	values := map[string]string{}
	first := map[string]uint32{}
	n := 0
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		x, response := exchangeOf(msg)
		var ps message.Payloads
		if x == 34 {
			ps = must(message.Parse(bytes.Clone(msg))).Payloads
		} else if from.Addr() == addrA {
			ps = p.b.Endpoint.Peek(msg)
		} else {
			ps = p.a.Endpoint.Peek(msg)
		}
		if who := fmt.Sprintf("%x of %v", msg[:16], from); !response && x != 34 {
			if _, ok := first[who]; !ok {
				first[who] = binary.BigEndian.Uint32(msg[20:])
			}
		}
		add := func(what string, data []byte) {
			n++
			if at, ok := values[string(data)]; ok {
				t.Errorf("%s of %s was used before in %s", what, iketest.Describe(msg), at)
			}
			values[string(data)] = iketest.Describe(msg)
		}
		if ke := ps.KE(); ke != nil {
			add("KE", ke.Data)
		}
		if no := ps.Nonce(); no != nil {
			add("nonce", no.Data)
			if len(no.Data) < 24 {
				t.Errorf("a nonce of %d octets for a PRF with keys of 48", len(no.Data))
			}
		}
		return true
	}
	p.up()
	for range 3 {
		p.rekeyChild(p.a)
		p.rekeyChild(p.b)
		if err := p.a.Endpoint.RekeyIKE(ikeOf(t, p.a).ID); err != nil {
			t.Fatal(err)
		}
		p.w.For(5 * time.Second)
	}
	p.a.Endpoint.Terminate("a-b", "again")
	p.w.For(time.Second)
	p.up()
	if n < 40 {
		t.Errorf("%d values only", n)
	}
	zero := 0
	for who, id := range first {
		if id == 0 {
			zero++
		} else if id > 1 { // 1 after IKE_SA_INIT
			t.Errorf("the first request of %s has ID %d", who, id)
		}
	}
	if zero < 3 {
		t.Errorf("%d sets of keys began at 0: %v", zero, first)
	}
}

// TestIdentityTypes: RFC 7296, section 3.5: every type of identity can be claimed and demanded; it is the same
// when type and octets are, names and mailboxes without the case of their letters.
func TestIdentityTypes(t *testing.T) {
	t.Parallel()
	dn := string(facilities()[0].device.leaf.RawSubject)
	for name, c := range map[string]struct {
		is, want ike.Identity
		same     bool
	}{
		"IPv4":             {ike.Identity{Type: ike.IDIPv4, Data: "\xc0\x00\x02\x01"}, ike.Identity{Type: ike.IDIPv4, Data: "\xc0\x00\x02\x01"}, true},
		"IPv6":             {ike.Identity{Type: ike.IDIPv6, Data: "0123456789abcdef"}, ike.Identity{Type: ike.IDIPv6, Data: "0123456789abcdef"}, true},
		"FQDN":             {fqdn("a.example"), fqdn("A.Example"), true},
		"mailbox":          {ike.Identity{Type: ike.IDRFC822, Data: "ops@a.example"}, ike.Identity{Type: ike.IDRFC822, Data: "OPS@A.example"}, true},
		"DN":               {ike.DNIdentity([]byte(dn)), ike.DNIdentity([]byte(dn)), true},
		"key ID":           {ike.Identity{Type: ike.IDKeyID, Data: "\x00\x01"}, ike.Identity{Type: ike.IDKeyID, Data: "\x00\x01"}, true},
		"another case":     {ike.Identity{Type: ike.IDKeyID, Data: "a"}, ike.Identity{Type: ike.IDKeyID, Data: "A"}, false},
		"another type":     {fqdn("a.example"), ike.Identity{Type: ike.IDKeyID, Data: "a.example"}, false},
		"name of a suffix": {fqdn("a.example"), fqdn("x.a.example"), false},
		"a star":           {fqdn("x.a.example"), fqdn("*.a.example"), false},
		"dot at the end":   {fqdn("a.example"), fqdn("a.example."), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: psk, edit: func(p *pair) {
				p.ca.LocalAuth[0].ID, p.cb.RemoteAuth[0].IDs = c.is, []ike.Identity{c.want}
			}})
			if c.same {
				p.up()
				return
			}
			p.refusedAt(p.b, ike.CodeUnknownIdentity, 0)
		})
	}
}

// TestCertificateEncodings: RFC 7296, section 3.6: of the encodings X.509 (4) counts, the others are passed over.
// Hash and URL (12, 13) is never announced, nor followed: this package has no network at all.
func TestCertificateEncodings(t *testing.T) {
	t.Parallel()
	const url = "http://192.0.2.66/cert.der"
	for typ := range uint8(16) {
		t.Run(fmt.Sprint("encoding ", typ), func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{ea: whole, eb: whole})
			p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
				if x, _ := exchangeOf(msg); x == 34 && must(message.Parse(msg)).Payloads.HasNotify(message.NotifyHTTPCertLookupSupported) {
					t.Error("HTTP_CERT_LOOKUP_SUPPORTED is announced")
				}
				return true
			}
			touched := p.rewrites(p.a, 35, 1, false, func(ps message.Payloads) message.Payloads {
				for i, x := range ps {
					if c, ok := x.(*message.Cert); ok && typ != 4 {
						data := c.Data
						if typ >= 12 {
							data = append(make([]byte, 20), url...)
						}
						ps[i] = &message.Cert{Encoding: message.CertEncoding(typ), Data: data}
					}
				}
				return ps
			})
			if typ == 4 {
				p.up()
				return
			}
			p.nothingUp(p.b, touched, ike.CodeNoCert)
		})
	}
	// Beside one that counts the others do no harm, wherever they stand.
	p := newPair(t, pairOptions{ea: whole, eb: whole})
	p.rewrites(p.a, 35, 1, false, func(ps message.Payloads) message.Payloads {
		var more message.Payloads
		for _, typ := range []message.CertEncoding{1, 2, 11, 12, 13, 200} {
			more = append(more, &message.Cert{Encoding: typ, Data: []byte(url)})
		}
		return slices.Concat(more, ps, more)
	})
	p.up()
}

// TestCertificateRequests: RFC 7296, section 3.7: a request is a hint. Authorities that we know nothing of, other
// encodings, none at all, or half a hash do not keep us from proving ourselves.
func TestCertificateRequests(t *testing.T) {
	t.Parallel()
	for name, reqs := range map[string]message.Payloads{
		"none":              nil,
		"without hashes":    {&message.CertReq{Encoding: 4}},
		"another authority": {&message.CertReq{Encoding: 4, Data: bytes.Repeat([]byte{7}, 20)}},
		"a hundred":         {&message.CertReq{Encoding: 4, Data: bytes.Repeat([]byte{7}, 2000)}},
		"half a hash":       {&message.CertReq{Encoding: 4, Data: bytes.Repeat([]byte{7}, 10)}},
		"other encodings":   {&message.CertReq{Encoding: 1}, &message.CertReq{Encoding: 12, Data: make([]byte, 20)}, &message.CertReq{Encoding: 255, Data: []byte("x")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{ea: whole, eb: whole})
			touched := p.rewrites(p.a, 35, 1, false, func(ps message.Payloads) message.Payloads {
				ps = slices.DeleteFunc(ps, func(p message.Payload) bool { return p.PayloadType() == message.PayloadCERTREQ })
				return append(ps, reqs...)
			})
			p.up()
			if *touched == 0 {
				t.Error("the request was not rewritten")
			}
		})
	}
}

// TestTransportModeIsDeclined: RFC 7296, section 1.3.1: who asks for transport mode, IPComp, TFC padding or fragments gets
// a CHILD SA in tunnel mode without them: none of these notifies stands in the answer.
func TestTransportModeIsDeclined(t *testing.T) {
	t.Parallel()
	asked := []message.NotifyType{message.NotifyUseTransportMode, message.NotifyIPCompSupported, message.NotifyESPTFCPaddingNotSupported, message.NotifyNonFirstFragmentsAlso}
	p := newPair(t, pairOptions{both: psk, ea: whole, eb: whole})
	answers := 0
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if x, response := exchangeOf(msg); response && from.Addr() == addrB && (x == 35 || x == 36) {
			ps := p.a.Endpoint.Peek(msg)
			answers++
			for _, n := range asked {
				if ps.HasNotify(n) || ps.SA() == nil {
					t.Errorf("B answers %s", message.Header{Exchange: message.ExchangeType(x)}.Summary(ps))
				}
			}
		}
		return true
	}
	ask := func(ps message.Payloads) message.Payloads {
		for _, n := range asked {
			ps = append(ps, message.NewNotify(n, 0, 1, 2))
		}
		return ps
	}
	p.rewrites(p.a, 35, 1, false, ask)
	p.rewrites(p.a, 36, 2, false, ask)
	p.up()
	p.rekeyChild(p.a)
	p.carries()
	if answers < 2 {
		t.Errorf("%d answers", answers)
	}
}

// TestInitRepeated: RFC 7296, section 2.1: the same IKE_SA_INIT request again, while its IKE SA is half-open, gets the same
// octets for an answer and makes no other one; one that differs is another one's.
func TestInitRepeated(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{})
	var request []byte
	var answers [][]byte
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if from.Addr() == addrA {
			if request == nil {
				request = bytes.Clone(msg)
			}
			return false
		}
		answers = append(answers, bytes.Clone(msg))
		return true
	}
	initiate(t, p.a, "a-b")
	p.w.For(time.Millisecond)
	for range 3 {
		p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), request)
		p.w.For(time.Millisecond)
	}
	if len(answers) != 3 || !bytes.Equal(answers[0], answers[1]) || !bytes.Equal(answers[1], answers[2]) || p.b.Endpoint.HalfOpen() != 1 {
		t.Errorf("%d answers, %d half-open", len(answers), p.b.Endpoint.HalfOpen())
	}
	other := bytes.Clone(request)
	other[len(other)-1] ^= 1
	p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), other)
	p.w.For(time.Millisecond)
	if len(answers) != 3 || p.b.Endpoint.HalfOpen() != 1 {
		t.Errorf("a request that differs in an octet: %d answers, %d half-open", len(answers), p.b.Endpoint.HalfOpen())
	}
	// Section 3.1: no SPI is zero, and a first message has none of the responder's.
	for _, spi := range [][2]byte{{0, 0}, {9, 9}} {
		m := bytes.Clone(request)
		copy(m, bytes.Repeat(spi[:1], 8))
		copy(m[8:], bytes.Repeat(spi[1:], 8))
		p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), m)
		p.w.For(time.Millisecond)
	}
	if len(answers) != 3 || p.b.Endpoint.HalfOpen() != 1 {
		t.Errorf("with SPIs that cannot be: %d answers, %d half-open", len(answers), p.b.Endpoint.HalfOpen())
	}
}

// TestFirstCertificateCounts: RFC 7296, sections 1.2 and 3.6: the first certificate holds the key of AUTH; another order of the
// others does no harm.
func TestFirstCertificateCounts(t *testing.T) {
	t.Parallel()
	for _, good := range []bool{true, false} {
		p := newPair(t, pairOptions{ea: whole, eb: whole})
		touched := p.rewrites(p.a, 35, 1, false, func(ps message.Payloads) message.Payloads {
			var list message.Payloads
			for _, x := range ps {
				if _, ok := x.(*message.Cert); ok {
					list = append(list, x)
				}
			}
			slices.Reverse(list)
			if good {
				list = append(message.Payloads{list[len(list)-1]}, list...)
			}
			return append(list, slices.DeleteFunc(ps, func(p message.Payload) bool { return p.PayloadType() == message.PayloadCERT })...)
		})
		if good {
			p.up()
		} else {
			p.nothingUp(p.b, touched, ike.CodeBadCert, ike.CodeBadSignature)
		}
	}
}

// TestHintsAreLimited: RFC 7296, sections 2.4 and 2.21.4: unprotected errors about an IKE SA that stands end nothing, are never
// answered, and cause at most one question in ten seconds whether the peer lives.
func TestHintsAreLimited(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: func(c *ike.PeerConfig) {
		psk(c)
		c.LivenessInterval = -1
	}})
	p.up()
	sent := 0
	p.w.Tap = func(from, _ netip.AddrPort, _ []byte) bool {
		if from.Addr() == addrA {
			sent++
		}
		return true
	}
	s := p.a.Endpoint.Snapshot()[0]
	for range 95 {
		for _, n := range []message.NotifyType{message.NotifyInvalidIKESPI, message.NotifyInvalidSyntax, message.NotifyInvalidSPI, message.NotifyAuthenticationFailed} {
			for _, flags := range []message.HeaderFlags{message.FlagResponse, 0} {
				h := message.Header{Exchange: message.ExchangeInformational, Flags: flags, MessageID: 2}
				binary.BigEndian.PutUint64(h.SPIi[:], s.SPIi)
				binary.BigEndian.PutUint64(h.SPIr[:], s.SPIr)
				p.w.Deliver(netip.AddrPortFrom(addrB, 500), netip.AddrPortFrom(addrA, 500), must(message.Encode(h, message.Payloads{message.NewNotify(n, 1, 2, 3, 4)})))
			}
		}
		p.w.For(500 * time.Millisecond)
	}
	if sent == 0 || sent > 5 {
		t.Errorf("%d messages of A in 47 s, want one question in ten", sent)
	}
	p.counts(1, 1)
	p.carries()
}

// TestUnknownSPIAnswer: RFC 7296, sections 1.5 and 2.21.4: a request for an IKE SA that nobody knows is answered with the same
// SPIs, exchange and message ID and without protection; a response never is.
func TestUnknownSPIAnswer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		flags, exchange byte
		want            byte // flags of the answer, 0: none
	}{{0x08, 37, 0x20}, {0x00, 37, 0x28}, {0x08, 36, 0x20}, {0x08, 35, 0x20}, {0x28, 37, 0}, {0x20, 36, 0}, {0x08, 34, 0}} {
		p := newPair(t, pairOptions{})
		var got []byte
		p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
			got = bytes.Clone(msg)
			return true
		}
		msg := slices.Concat(bytes.Repeat([]byte{1}, 8), bytes.Repeat([]byte{2}, 8), []byte{46, 0x20, c.exchange, c.flags, 0, 0, 1, 7, 0, 0, 0, 32, 0, 0, 0, 4})
		p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), msg)
		p.w.For(time.Second)
		want := slices.Concat(msg[:16], []byte{41, 0x20, c.exchange, c.want, 0, 0, 1, 7, 0, 0, 0, 36, 0, 0, 0, 8, 0, 0, 0, 4})
		if c.want == 0 && got != nil || c.want != 0 && !bytes.Equal(got, want) {
			t.Errorf("exchange %d, flags %02x: %x", c.exchange, c.flags, got)
		}
	}
}

// TestRepetitionsBecomeRarer: RFC 7296, sections 2.1 and 2.4: a request that is not answered is repeated, the same octets, after times that
// grow by a factor, until the peer counts as dead.
func TestRepetitionsBecomeRarer(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: psk})
	p.up()
	p.w.Link.Cut = true
	var at []time.Time
	var first []byte
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if from.Addr() == addrA {
			if first == nil {
				first = bytes.Clone(msg)
			}
			if !bytes.Equal(first, msg) {
				t.Errorf("another message: %s", iketest.Describe(msg))
			}
			at = append(at, p.w.Now())
		}
		return true
	}
	if err := p.a.Endpoint.RekeyChild(childOf(t, p.a).ID); err != nil {
		t.Fatal(err)
	}
	p.w.For(5 * time.Minute)
	if len(at) < 5 || len(p.a.Ended) != 1 || p.a.Ended[0].Code != ike.ReasonPeerDead {
		t.Fatalf("sent %d times, ended %v", len(at), p.a.Ended)
	}
	for i := 2; i < len(at); i++ {
		if before, now := at[i-1].Sub(at[i-2]), at[i].Sub(at[i-1]); now < before*3/2 {
			t.Errorf("repeated after %v and then after %v", before, now)
		}
	}
}

// TestExpired: RFC 7296, sections 2.4 and 2.8: an SA that cannot be rekeyed ends when its keys are too old, with a Delete; and TEMPORARY_FAILURE
// (section 2.25) is never followed by the same request at once.
func TestExpired(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"CHILD SA", "IKE SA"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{ea: whole, eb: whole, both: func(c *ike.PeerConfig) {
				psk(c)
				c.RekeyChild, c.RekeyIKE = 10*time.Minute, 100*time.Hour
				if what == "IKE SA" {
					c.RekeyChild, c.RekeyIKE = c.RekeyIKE, c.RekeyChild
				}
			}})
			p.up()
			begun := p.w.Now()
			last := map[netip.Addr]time.Time{}
			requests, deletes := 0, 0
			p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
				x, response := exchangeOf(msg)
				other := p.b
				if from.Addr() == addrB {
					other = p.a
				}
				if x == 37 && !response && len(other.Endpoint.Peek(msg).Deletes()) > 0 {
					deletes++
				}
				if x != 36 || response {
					return true
				}
				requests++
				if before, ok := last[from.Addr()]; ok && p.w.Now().Sub(before) < 5*time.Second {
					t.Errorf("%v asks again after %v", from, p.w.Now().Sub(before))
				}
				last[from.Addr()] = p.w.Now()
				_, refused := other.Endpoint.Forge(36, binary.BigEndian.Uint32(msg[20:]), true, message.Payloads{message.NewNotify(message.NotifyTemporaryFailure)})
				for _, m := range refused {
					p.w.Deliver(to, from, m)
				}
				return false
			}
			gone := func() bool { return len(p.a.Children) == 0 && len(p.b.Children) == 0 }
			if !p.w.Until(30*time.Minute, gone) {
				t.Fatalf("it still stands; %d requests for new keys", requests)
			}
			if age := p.w.Now().Sub(begun); age < 14*time.Minute || age > 17*time.Minute {
				t.Errorf("it ended after %v, want half as much again as 10 min", age)
			}
			p.w.For(time.Minute)
			ended := append(slices.Clone(p.a.Gone), p.b.Gone...)
			if !slices.ContainsFunc(ended, func(r ike.Reason) bool { return r.Code == ike.ReasonExpired }) || deletes == 0 || requests < 5 {
				t.Errorf("ended %v, %d Deletes, %d requests", ended, deletes, requests)
			}
			if what == "IKE SA" {
				p.empty()
			}
			p.sound()
		})
	}
}

// TestRekeysAreJittered: RFC 7296, section 2.8.1: two ends with the same settings do not rekey at the same moment, and no two
// IKE SAs at the same age.
func TestRekeysAreJittered(t *testing.T) {
	t.Parallel()
	ages := map[time.Duration]bool{}
	for seed := range uint64(12) {
		p := newPair(t, pairOptions{seed: seed + 100, both: func(c *ike.PeerConfig) {
			psk(c)
			c.RekeyChild = 10 * time.Minute
		}})
		p.up()
		begun := p.w.Now()
		requests := 0
		p.w.Tap = func(_, _ netip.AddrPort, msg []byte) bool {
			if x, response := exchangeOf(msg); x == 36 && !response {
				requests++
			}
			return true
		}
		old := childOf(t, p.a).ID
		p.w.Until(11*time.Minute, func() bool { return p.a.Children[old] == nil })
		age := p.w.Now().Sub(begun)
		if requests != 1 || age < 8*time.Minute || age > 10*time.Minute+time.Second {
			t.Errorf("seed %d: %d requests, at %v", seed, requests, age)
		}
		ages[age.Truncate(time.Second)] = true
	}
	if len(ages) < 6 {
		t.Errorf("rekeyed at %v", ages)
	}
}

// TestInitialContactIsSentOnce: RFC 7296, section 2.4: INITIAL_CONTACT stands in the first IKE_AUTH request where no other IKE SA
// between the same identities stands, and nowhere else.
func TestInitialContactIsSentOnce(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{ea: whole, eb: whole})
	var in []string
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if x, _ := exchangeOf(msg); x != 34 {
			other := p.b
			if from.Addr() == addrB {
				other = p.a
			}
			if other.Endpoint.Peek(msg).HasNotify(message.NotifyInitialContact) {
				in = append(in, fmt.Sprintf("%v %s", from.Addr(), iketest.Describe(msg)[:18]))
			}
		}
		return true
	}
	p.up()
	p.rekeyEverything()
	if len(in) != 1 || in[0] != "192.0.2.1 IKE_AUTH request 1" {
		t.Errorf("INITIAL_CONTACT in %q", in)
	}
	// A new IKE SA beside the old one says nothing of the kind, and the old one goes when it stands.
	for _, n := range []*iketest.Node{p.a, p.b} {
		if err := n.Endpoint.Reauthenticate(ikeOf(t, n).ID); err != nil {
			t.Fatal(err)
		}
		p.w.For(time.Minute)
		for _, r := range append(slices.Clone(p.a.Ended), p.b.Ended...) {
			if r.Code == ike.ReasonReplaced {
				t.Errorf("an IKE SA ended: %+v", r)
			}
		}
	}
	p.counts(1, 1)
}
