package ike_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// keOf is key exchange data of a method, of n octets.
func keOf(method uint16, n int, octet byte) *message.KE {
	return &message.KE{Method: message.KEMethod(method), Data: bytes.Repeat([]byte{octet}, n)}
}

// goodKE is a valid encapsulation key of ML-KEM-768, and badKE one with a coefficient that is not
// reduced (FIPS 203, section 7.2).
func goodKE(t testing.TB) *message.KE {
	k := must(suite.NewInitiatorFromPrivate(suite.KEMLKEM768, make([]byte, 64)))
	return &message.KE{Method: message.KEMethod(suite.KEMLKEM768), Data: k.Public()}
}

func badKE(t testing.TB) *message.KE {
	ke := goodKE(t)
	ke.Data[0], ke.Data[1] = 0xff, ke.Data[1]|0x0f // the first one is 4095 then, q is 3329
	return ke
}

// instead replaces the first datagram of from that keep does not want by messages of make; what
// comes later from there vanishes, unless on is set.
func (p *pair) instead(from netip.Addr, is func(msg []byte) bool, forge func() [][]byte, on bool) {
	done := false
	p.w.Tap = func(f, to netip.AddrPort, msg []byte) bool {
		if f.Addr() != from {
			return true
		}
		switch {
		case done:
			return on
		case !is(msg):
			return true
		}
		done = true
		for _, m := range forge() {
			p.w.Deliver(f, to, m)
		}
		return false
	}
}

func exchangeIs(exchange byte, id byte) func([]byte) bool {
	return func(msg []byte) bool { return msg[18] == exchange && msg[23] == id }
}

// TestIntermediateHostileInitiator: what B does with an initiator that did the first key exchange
// and then breaks the rules of RFC 9242 and RFC 9370. B refuses, and nothing is left.
func TestIntermediateHostileInitiator(t *testing.T) {
	t.Parallel()
	const inter, auth = byte(43), byte(35)
	good := goodKE(t)
	note := message.NewNotify(40000)
	for _, c := range []struct {
		name     string
		at       byte // message ID of A's request that is replaced
		exchange byte
		ps       message.Payloads
		code     ike.Code
	}{
		{"empty key", 1, inter, message.Payloads{keOf(36, 0, 0)}, ike.CodeSyntax},
		{"short key", 1, inter, message.Payloads{keOf(36, 1183, 0)}, ike.CodeSyntax},
		{"long key", 1, inter, message.Payloads{keOf(36, 1185, 0)}, ike.CodeSyntax},
		{"a key as of ML-KEM-1024", 1, inter, message.Payloads{keOf(36, 1568, 0)}, ike.CodeSyntax},
		{"modulus check", 1, inter, message.Payloads{badKE(t)}, ike.CodeSyntax},
		{"all ones", 1, inter, message.Payloads{keOf(36, 1184, 0xff)}, ike.CodeSyntax},
		{"another method", 1, inter, message.Payloads{keOf(37, 1568, 0)}, ike.CodeSyntax},
		{"the first method again", 1, inter, message.Payloads{keOf(31, 32, 9)}, ike.CodeSyntax},
		{"unknown method", 1, inter, message.Payloads{keOf(35, 800, 0)}, ike.CodeSyntax},
		{"two keys", 1, inter, message.Payloads{good, good}, ike.CodeSyntax},
		{"a payload that does not belong there", 1, inter, message.Payloads{good, &message.Nonce{Data: make([]byte, 32)}}, ike.CodeSyntax},
		{"authentication before the key exchange", 1, auth, message.Payloads{message.NewIDi(2, []byte("a.devices.example")), &message.Auth{Method: 2, Data: make([]byte, 48)}}, ike.CodeUnexpected},
		{"CREATE_CHILD_SA", 1, 36, message.Payloads{&message.Nonce{Data: make([]byte, 32)}}, ike.CodeUnexpected},
		{"IKE_FOLLOWUP_KE", 1, 44, message.Payloads{good, message.NewNotify(message.NotifyAdditionalKeyExchange, 1)}, ike.CodeUnexpected},
		{"INFORMATIONAL", 1, 37, nil, ike.CodeUnexpected},
		{"one more than agreed", 2, inter, message.Payloads{good}, ike.CodeSyntax},
		{"authentication without anything", 2, auth, message.Payloads{note}, ike.CodeSyntax},
		{"after the first round", 3, inter, message.Payloads{good}, ike.CodeUnexpected},
		{"after the first round, without a key", 3, inter, nil, ike.CodeUnexpected},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: suites(t, hybridIKE, defaultESP)})
			p.instead(addrA, func(msg []byte) bool { return msg[23] == c.at && msg[18] != 34 }, func() [][]byte {
				_, msgs := p.a.Endpoint.Forge(c.exchange, uint32(c.at), false, c.ps)
				return msgs
			}, false)
			if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
			p.w.For(time.Second)
			if !slices.Contains(p.b.Codes(), c.code) {
				t.Errorf("B refused with %q, want %s", texts(p.b.Refusals), c.code)
			}
			if len(p.b.IKE)+len(p.b.Children) > 0 {
				t.Error("something came up")
			}
			p.w.For(3 * time.Minute)
			p.empty()
			p.sound()
		})
	}
}

// TestIntermediateHostileResponder: the same for answers.
func TestIntermediateHostileResponder(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		ps   message.Payloads
		code ike.Code
	}{
		{"nothing", nil, ike.CodeBadKE},
		{"empty ciphertext", message.Payloads{keOf(36, 0, 0)}, ike.CodeBadKE},
		{"short ciphertext", message.Payloads{keOf(36, 1087, 0)}, ike.CodeBadKE},
		{"long ciphertext", message.Payloads{keOf(36, 1089, 0)}, ike.CodeBadKE},
		{"the initiator's own key", message.Payloads{goodKE(t)}, ike.CodeBadKE},
		{"another method", message.Payloads{keOf(37, 1568, 0)}, ike.CodeBadKE},
		{"the first method", message.Payloads{keOf(31, 32, 9)}, ike.CodeBadKE},
		{"two ciphertexts", message.Payloads{keOf(36, 1088, 0), keOf(36, 1088, 0)}, ike.CodeSyntax},
		{"AUTH", message.Payloads{keOf(36, 1088, 0), &message.Auth{Method: 2, Data: make([]byte, 48)}}, ike.CodeSyntax},
		{"an error", message.Payloads{message.NewNotify(message.NotifyInvalidSyntax)}, ike.CodePeerRefused},
		{"zero ciphertext", message.Payloads{keOf(36, 1088, 0)}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: suites(t, hybridIKE, defaultESP)})
			p.instead(addrA, exchangeIs(43, 1), func() [][]byte {
				_, msgs := p.b.Endpoint.Forge(43, 1, true, c.ps)
				for _, m := range msgs {
					p.w.AfterFunc(time.Millisecond, func() { p.w.Deliver(netip.AddrPortFrom(addrB, 500), netip.AddrPortFrom(addrA, 500), m) })
				}
				return nil
			}, true)
			if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
			p.w.For(3 * time.Minute)
			if c.code != "" && !slices.Contains(p.a.Codes(), c.code) {
				t.Errorf("A refused with %q, want %s", texts(p.a.Refusals), c.code)
			}
			// A ciphertext that was not made for the key gives another secret (FIPS 203, section
			// 6.3): nothing can be read after it.
			if len(p.a.Failed) != 1 {
				t.Errorf("A failed with %v, want one error", p.a.Failed)
			}
			p.empty()
			p.sound()
		})
	}
}

// TestIntAuth: what an attacker adds to an IKE_INTERMEDIATE message, having broken the first key
// exchange, shows in the first round; what changes between the rounds, in the second one.
func TestIntAuth(t *testing.T) {
	t.Parallel()
	t.Run("message changed", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, pairOptions{both: suites(t, hybridIKE, defaultESP)})
		p.instead(addrA, exchangeIs(43, 1), func() [][]byte {
			_, msgs := p.a.Endpoint.Forge(43, 1, false, message.Payloads{p.a.Endpoint.IntermediateKE(), message.NewNotify(40000)})
			return msgs
		}, true)
		p.refusedAt(p.b, ike.CodeBadSignature, 0)
	})
	t.Run("answer changed", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, pairOptions{both: suites(t, hybridIKE, defaultESP)})
		// B answers a request that A did not make; A takes an answer with the same secret, and more.
		k := goodKE(t)
		p.instead(addrA, exchangeIs(43, 1), func() [][]byte {
			_, msgs := p.a.Endpoint.Forge(43, 1, false, message.Payloads{k})
			return msgs
		}, true)
		if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
			t.Fatal(err)
		}
		p.w.For(3 * time.Minute)
		p.empty()
		if len(p.a.Failed) != 1 {
			t.Errorf("A failed with %v", p.a.Failed)
		}
	})
	// The answer is on its way for 5 ms and judged for 2 ms before A signs again.
	for name, spoil := range map[string]func(*pair){
		"A": func(p *pair) { p.w.AfterFunc(6*time.Millisecond, p.a.Endpoint.SpoilIntAuth) },
		"B": func(p *pair) { p.b.Endpoint.SpoilIntAuth() },
	} {
		t.Run("second round, "+name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: suites(t, hybridIKE, defaultESP)})
			done := false
			p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
				if from.Addr() == addrB && msg[18] == 35 && !done {
					done = true
					spoil(p)
				}
				return true
			}
			p.refusedAt(p.b, ike.CodeBadSignature, 1)
		})
	}
}

// TestIntermediateRepeated: a request that comes again after it changed the keys gets the same
// answer, from whoever has the keys of before, and changes nothing.
func TestIntermediateRepeated(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: suites(t, hybridIKE, defaultESP)})
	var first [][]byte
	answers := map[string]int{}
	held := true
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		switch {
		case msg[18] == 43 && from.Addr() == addrA && held:
			first = append(first, slices.Clone(msg))
		case msg[18] == 43 && from.Addr() == addrB:
			answers[string(msg)]++
		case msg[18] == 35 && held:
			return false // IKE_AUTH waits
		}
		return true
	}
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(100 * time.Millisecond)
	if len(answers) == 0 || len(first) == 0 {
		t.Fatal("no IKE_INTERMEDIATE")
	}
	n := len(answers)
	for range 3 {
		for _, m := range first {
			p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), m)
			forged := slices.Clone(m)
			forged[len(forged)-1] ^= 1
			p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), forged)
		}
		p.w.For(10 * time.Millisecond)
	}
	for m, times := range answers {
		if times != 4 {
			t.Errorf("an answer of %d octets was sent %d times, want 4", len(m), times)
		}
	}
	if len(answers) != n {
		t.Errorf("%d different answers, want %d", len(answers), n)
	}
	held = false
	p.w.For(3 * time.Second)
	// Once the next request came, the one before is history.
	clear(answers)
	for _, m := range first {
		p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), m)
	}
	p.w.For(time.Second)
	if len(answers) != 0 {
		t.Errorf("%d answers to a request of long ago", len(answers))
	}
	p.counts(1, 1)
	p.carries()
}

// TestIntermediateNotAgreed: additional key exchanges need INTERMEDIATE_EXCHANGE_SUPPORTED of both
// ends (RFC 9242, section 3.1).
func TestIntermediateNotAgreed(t *testing.T) {
	t.Parallel()
	// strip makes the notify one that nobody knows, in the messages of one end.
	strip := func(p *pair, from netip.Addr) {
		p.w.Tap = func(f, to netip.AddrPort, msg []byte) bool {
			i := bytes.Index(msg, []byte{0, 8, 0, 0, 0x40, 0x36})
			if f.Addr() != from || msg[18] != 34 || i < 0 {
				return true
			}
			m := slices.Clone(msg)
			m[i+5] = 0xff
			p.w.AfterFunc(time.Millisecond, func() { p.w.Deliver(f, to, m) })
			return false
		}
	}
	t.Run("initiator without", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, pairOptions{both: suites(t, hybridIKE, defaultESP)})
		strip(p, addrA)
		p.refusedAt(p.b, ike.CodeNoProposal, -1)
	})
	t.Run("responder without", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, pairOptions{both: suites(t, hybridIKE, defaultESP)})
		strip(p, addrB)
		p.refusedAt(p.a, ike.CodeNoProposal, -1)
	})
	t.Run("exchange nevertheless", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, pairOptions{})
		strip(p, addrA)
		if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
			t.Fatal(err)
		}
		p.w.For(8 * time.Millisecond)
		_, msgs := p.b.Endpoint.Forge(43, 1, false, nil)
		for _, m := range msgs {
			m[19] ^= 8 // as if it came from the initiator: not authentic
			p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), m)
		}
		if len(p.b.Refusals) > 0 {
			t.Errorf("B refused %s", texts(p.b.Refusals))
		}
	})
}

// TestIntermediateWithoutKey: an exchange that carries nothing that we know is answered, and AUTH
// covers it; there is an end to it.
func TestIntermediateWithoutKey(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: suites(t, hybridIKE, defaultESP)})
	n := 0
	p.instead(addrA, exchangeIs(43, 1), func() [][]byte {
		var out [][]byte
		for id := range uint32(40) {
			_, msgs := p.a.Endpoint.Forge(43, id+1, false, message.Payloads{message.NewNotify(40000)})
			out = append(out, msgs...)
			n++
		}
		return out
	}, false)
	answers := 0
	tap := p.w.Tap
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if from.Addr() == addrB && msg[18] == 43 {
			answers++
		}
		return tap(from, to, msg)
	}
	if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
		t.Fatal(err)
	}
	p.w.For(time.Second)
	if n != 40 || answers < 2 || answers > 13 {
		t.Errorf("%d answers to %d exchanges", answers, n)
	}
	if !slices.Contains(p.b.Codes(), ike.CodeUnexpected) {
		t.Errorf("B refused %s", texts(p.b.Refusals))
	}
	p.w.For(3 * time.Minute)
	p.empty()
}

// TestIntermediateOutOfOrder: requests whose turn it is not, and requests under the keys of before
// the additional key exchange, change nothing: neither is in the window, or authentic.
func TestIntermediateOutOfOrder(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{both: suites(t, "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke2_ecp384", defaultESP)})
	var forged [][]byte
	deliver := func() {
		for _, m := range forged {
			p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), m)
		}
	}
	sent := 0
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if from.Addr() == addrA && msg[18] == 43 && msg[23] == 1 && forged == nil {
			for _, exchange := range []byte{35, 36, 37, 43, 44} {
				for _, id := range []uint32{0, 2, 3, 4, 7} {
					_, msgs := p.a.Endpoint.Forge(exchange, id, false, message.Payloads{goodKE(t)})
					forged = append(forged, msgs...)
				}
			}
			deliver() // before the first one
			for d := time.Millisecond; d < 60*time.Millisecond; d += time.Millisecond {
				p.w.AfterFunc(d, func() { sent++; deliver() })
			}
		}
		return true
	}
	p.up()
	if sent < 50 {
		t.Errorf("forged messages came %d times", sent)
	}
	if len(p.a.Refusals)+len(p.b.Refusals) > 0 {
		t.Errorf("refused: %s %s", texts(p.a.Refusals), texts(p.b.Refusals))
	}
	p.counts(1, 1)
}
