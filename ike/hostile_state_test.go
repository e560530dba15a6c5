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
)

// named returns a situation by its name.
func named(t *testing.T, name string) situation {
	t.Helper()
	list := situations()
	i := slices.IndexFunc(list, func(s situation) bool { return s.name == name })
	if i < 0 {
		t.Fatalf("no situation is named %q", name)
	}
	return list[i]
}

// rewritten plays a situation with one message made by change of the encoded payloads, each time it
// is sent.
func rewritten(c *situation, which string, change func(message.Inner) message.Inner) iketest.Outcome {
	h := simHooks
	h.Rewrite = func(s iketest.Said) (message.Inner, bool) {
		if s.At < c.from || key(s) != which {
			return message.Inner{}, false
		}
		in, err := message.EncodeInner(s.Payloads)
		return change(in), err == nil
	}
	return iketest.Run(&c.plan, h, true)
}

// TestSuccessBeforeAuthentication: a responder that says that all is well, and does not prove who it
// is, or not in all rounds, gets nothing.
func TestSuccessBeforeAuthentication(t *testing.T) {
	t.Parallel()
	is := func(want ...message.PayloadType) func(message.Payloads) message.Payloads {
		return func(ps message.Payloads) message.Payloads {
			return slices.DeleteFunc(ps, func(p message.Payload) bool { return !slices.Contains(want, p.PayloadType()) })
		}
	}
	child := []message.PayloadType{message.PayloadSA, message.PayloadTSi, message.PayloadTSr}
	forged := func(ps message.Payloads) message.Payloads {
		for i, p := range ps {
			if a, ok := p.(*message.Auth); ok {
				ps[i] = &message.Auth{Method: a.Method, Data: make([]byte, len(a.Data))}
			}
		}
		return ps
	}
	early := func(ps message.Payloads) message.Payloads {
		sa := &message.SA{Proposals: []message.Proposal{{Number: 1, Protocol: message.ProtocolESP, SPI: []byte{1, 2, 3, 4}, Transforms: []message.Transform{
			message.NewTransform(message.TransformENCR, 20, 128), message.NewTransform(message.TransformSN, 0, 0),
		}}}}
		net := func(s string) message.Selector {
			p := prefix(s)[0]
			return message.NewSelector(0, 0, 65535, p.Start, p.End)
		}
		ps = slices.DeleteFunc(ps, func(p message.Payload) bool {
			n, ok := p.(*message.Notify)
			return ok && n.Type == message.NotifyAnotherAuthFollows
		})
		return append(ps, sa, message.NewTSi(net("10.0.0.0/24")), message.NewTSr(net("10.1.0.0/24")))
	}
	for name, c := range map[string]struct {
		state  string
		id     int
		change func(message.Payloads) message.Payloads
	}{
		"CHILD SA alone":                        {"one round", 1, is(child...)},
		"identity and CHILD SA":                 {"one round", 1, is(append(child, message.PayloadIDr)...)},
		"proof without identity":                {"one round", 1, is(append(child, message.PayloadAUTH)...)},
		"proof of zeros":                        {"one round", 1, forged},
		"nothing":                               {"one round", 1, is()},
		"CHILD SA alone, instead of round 1":    {"two rounds", 1, func(message.Payloads) message.Payloads { return is(child...)(early(nil)) }},
		"after round 1":                         {"two rounds", 1, early},
		"CHILD SA alone, instead of round 2":    {"two rounds", 2, is(child...)},
		"proof of zeros in round 2":             {"two rounds", 2, forged},
		"signature of zeros":                    {"two certificates", 1, forged},
		"signature of zeros in round 2":         {"two certificates", 2, forged},
		"certificates, CHILD SA, no signature":  {"two certificates", 2, is(append(child, message.PayloadIDr, message.PayloadCERT)...)},
		"proof of zeros, with a PPK":            {"PPK", 1, forged},
		"proof of zeros, without a CHILD SA":    {"without a CHILD SA", 1, forged},
		"proof of zeros after IKE_INTERMEDIATE": {"intermediate exchange", 2, forged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := named(t, c.state)
			touched := false
			out := altered(&s, fmt.Sprintf("IKE_AUTH response %d of B", c.id), func(ps message.Payloads) message.Payloads {
				touched = true
				return c.change(ps)
			})
			if out.Violation != "" || !touched || out.AtRest[0].IKE > 0 || len(out.AtRest[0].Children) > 0 {
				t.Errorf("touched %v, %s, A has %+v\n%s", touched, out.Violation, out.AtRest[0], out.Diagram)
			}
		})
	}
}

// TestRequestsBeforeInitiatorIsUp: what a responder asks for before it has proved everything is not
// even looked at.
func TestRequestsBeforeInitiatorIsUp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		exchange uint8
		ps       message.Payloads
	}{
		"delete":        {37, message.Payloads{&message.Delete{Protocol: message.ProtocolIKE}}},
		"informational": {37, nil},
		"rekey":         {36, message.Payloads{&message.Nonce{Data: make([]byte, 32)}}},
		"auth":          {35, message.Payloads{message.NewIDi(2, []byte("x"))}},
	} {
		for _, id := range []byte{1, 2} {
			t.Run(fmt.Sprintf("%s, before round %d", name, id), func(t *testing.T) {
				t.Parallel()
				p := newPair(t, pairOptions{})
				answers, done := 0, false
				p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
					switch {
					case from.Addr() == addrA && msg[19]&0x20 != 0:
						answers++
					case from.Addr() == addrB && msg[18] == 35 && msg[23] == id && !done:
						done = true
						_, forged := p.b.Endpoint.Forge(c.exchange, 0, false, c.ps)
						for _, m := range forged {
							p.w.Deliver(from, to, m)
						}
					}
					return true
				}
				p.up()
				if !done || answers > 0 {
					t.Errorf("asked: %v, answered %d times", done, answers)
				}
				p.counts(1, 1)
			})
		}
	}
}

// TestMessageIDReuse: another request with the ID of one that was answered gets the same answer
// again, and nothing is done; one with an ID of long ago, or from beyond the window, gets none.
func TestMessageIDReuse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		delta  int
		answer bool
	}{{"the last one", -1, true}, {"the one before", -2, false}, {"the first one", -1000, false}, {"one too far", 1, false}, {"far too far", 1 << 30, false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: psk})
			p.up()
			p.rekeyChild(p.a)
			var last, got []byte
			p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
				if from.Addr() == addrB && msg[19]&0x20 != 0 {
					last, got = slices.Clone(msg), slices.Clone(msg)
				}
				return true
			}
			id := ikeOf(t, p.a).ID
			_ = id
			p.rekeyChild(p.a)
			next, _ := p.a.Endpoint.IDs()
			got = nil
			before := childOf(t, p.b).ID
			n := uint32(int64(next) + int64(c.delta))
			if c.delta == -1000 {
				n = 0
			}
			for _, ps := range []message.Payloads{{&message.Delete{Protocol: message.ProtocolIKE}}, {&message.Delete{Protocol: message.ProtocolESP, SPIs: []uint32{childOf(t, p.a).SPIIn}}}} {
				_, msgs := p.a.Endpoint.Forge(37, n, false, ps)
				for _, m := range msgs {
					p.w.Deliver(netip.AddrPortFrom(addrA, 500), netip.AddrPortFrom(addrB, 500), m)
				}
			}
			p.w.For(100 * time.Millisecond)
			p.counts(1, 1)
			if childOf(t, p.b).ID != before {
				t.Error("something was done")
			}
			if c.answer && !bytes.Equal(got, last) || !c.answer && got != nil {
				t.Errorf("the answer is %x, the last one was %x", got, last)
			}
			p.w.Tap = nil
			p.carries()
		})
	}
}

// TestRekeySAWithAWrongProtocol: REKEY_SA that names another protocol, no SPI, one of the wrong
// length, or one that nobody has, replaces nothing.
func TestRekeySAWithAWrongProtocol(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*message.Notify){
		"AH":                  func(n *message.Notify) { n.Protocol = message.ProtocolAH },
		"IKE":                 func(n *message.Notify) { n.Protocol = message.ProtocolIKE },
		"none":                func(n *message.Notify) { n.Protocol = 0 },
		"unknown":             func(n *message.Notify) { n.Protocol = 99 },
		"no SPI":              func(n *message.Notify) { n.SPI = nil },
		"SPI of IKE":          func(n *message.Notify) { n.SPI = make([]byte, 8) },
		"SPI of 3 octets":     func(n *message.Notify) { n.SPI = n.SPI[:3] },
		"SPI of nobody":       func(n *message.Notify) { n.SPI = []byte{1, 2, 3, 4} },
		"SPI as data":         func(n *message.Notify) { n.Data, n.SPI = n.SPI, nil },
		"IKE with its SPI":    func(n *message.Notify) { n.Protocol, n.SPI = message.ProtocolIKE, make([]byte, 8) },
		"the responder's SPI": func(n *message.Notify) { slices.Reverse(n.SPI) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := named(t, "rekey of the CHILD SA")
			touched := false
			out := altered(&s, "CREATE_CHILD_SA request 2 of A", func(ps message.Payloads) message.Payloads {
				for i, p := range ps {
					if n, ok := p.(*message.Notify); ok && n.Type == message.NotifyRekeySA {
						m := *n
						m.SPI = slices.Clone(n.SPI)
						edit(&m)
						ps[i], touched = &m, true
					}
				}
				return ps
			})
			if out.Violation != "" || !touched || out.AtRest[1].Newest["net"] > 0 {
				t.Errorf("touched %v, %s, B has %+v\n%s", touched, out.Violation, out.AtRest[1], out.Diagram)
			}
		})
	}
}

// TestLengthsInside: lengths inside of a protected message that do not fit: of payloads, of selectors and
// their number, of a notify's SPI, of a proposal and its transforms. Nothing comes of the exchange,
// and both directions are tried.
func TestLengthsInside(t *testing.T) {
	t.Parallel()
	u16 := binary.BigEndian.PutUint16
	for name, c := range map[string]struct {
		in   message.PayloadType
		edit func(payload []byte)
	}{
		"payload of 0 octets":          {message.PayloadTSi, func(b []byte) { u16(b[2:], 0) }},
		"payload of 3 octets":          {message.PayloadTSi, func(b []byte) { u16(b[2:], 3) }},
		"payload one too long":         {message.PayloadTSr, func(b []byte) { u16(b[2:], uint16(len(b)+1)) }},
		"payload of 65535 octets":      {message.PayloadTSi, func(b []byte) { u16(b[2:], 65535) }},
		"no selectors":                 {message.PayloadTSi, func(b []byte) { b[4] = 0 }},
		"255 selectors":                {message.PayloadTSi, func(b []byte) { b[4] = 255 }},
		"selector of 0 octets":         {message.PayloadTSi, func(b []byte) { u16(b[10:], 0) }},
		"selector of 7 octets":         {message.PayloadTSi, func(b []byte) { u16(b[10:], 7) }},
		"selector one too short":       {message.PayloadTSi, func(b []byte) { u16(b[10:], 15) }},
		"selector one too long":        {message.PayloadTSi, func(b []byte) { u16(b[10:], 17) }},
		"selector of 65535 octets":     {message.PayloadTSr, func(b []byte) { u16(b[10:], 65535) }},
		"IPv4 selector as IPv6":        {message.PayloadTSr, func(b []byte) { b[8] = 8 }},
		"selector of an unknown type":  {message.PayloadTSr, func(b []byte) { b[8] = 200 }},
		"selector that ends first":     {message.PayloadTSi, func(b []byte) { copy(b[16:20], []byte{255, 255, 255, 255}) }},
		"proposal of 0 octets":         {message.PayloadSA, func(b []byte) { u16(b[6:], 0) }},
		"proposal too long":            {message.PayloadSA, func(b []byte) { u16(b[6:], uint16(len(b))) }},
		"SPI of 255 octets in SA":      {message.PayloadSA, func(b []byte) { b[10] = 255 }},
		"SPI of 0 octets in SA":        {message.PayloadSA, func(b []byte) { b[10] = 0 }},
		"255 transforms":               {message.PayloadSA, func(b []byte) { b[11] = 255 }},
		"no transforms":                {message.PayloadSA, func(b []byte) { b[11] = 0 }},
		"transform of 0 octets":        {message.PayloadSA, func(b []byte) { u16(b[18:], 0) }},
		"another proposal that is not": {message.PayloadSA, func(b []byte) { b[4] = 2 }},
		"SPI of 255 octets in notify":  {message.PayloadNotify, func(b []byte) { b[5] = 255 }},
		"SPI of 5 octets in notify":    {message.PayloadNotify, func(b []byte) { b[5] = 5 }},
	} {
		for _, which := range []string{"CREATE_CHILD_SA request 2 of A", "CREATE_CHILD_SA response 2 of B"} {
			if c.in == message.PayloadNotify && which[len(which)-1] == 'B' {
				continue // it holds none
			}
			t.Run(name+" in "+which, func(t *testing.T) {
				t.Parallel()
				s := named(t, "rekey of the CHILD SA")
				s.plan.Queues = [2]int{}
				touched := false
				out := rewritten(&s, which, func(in message.Inner) message.Inner {
					for at, p := 0, in.First; at+4 <= len(in.Plain); {
						n := int(binary.BigEndian.Uint16(in.Plain[at+2:]))
						next := message.PayloadType(in.Plain[at])
						if p == c.in {
							c.edit(in.Plain[at : at+n])
							touched = true
							break
						}
						at, p = at+n, next
					}
					return in
				})
				to := 1
				if which[len(which)-1] == 'B' {
					to = 0
				}
				// What was refused for good reasons is tried again later, and done then.
				again := slices.ContainsFunc(out.Said, func(s iketest.Said) bool { return s.Node == 0 && s.Exchange == 36 && !s.Response && s.ID > 2 })
				if out.Violation != "" || !touched || out.AtRest[to].Newest["net"] > 0 && !again || to == 1 && answer(&out, 0) == "made" {
					t.Errorf("touched %v, %s, %c has %+v\n%s", touched, out.Violation, 'A'+to, out.AtRest[to], out.Diagram)
				}
			})
		}
	}
}

// TestOwnCredentialMissingHalfWay: the key of the second round goes away between the rounds. We say
// that authentication failed, at both ends nothing comes of it, and the owner knows why.
func TestOwnCredentialMissingHalfWay(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"initiator", "responder"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			var n *iketest.Node
			p := newPair(t, pairOptions{edit: func(p *pair) {
				c := p.ca
				if who == "responder" {
					c = p.cb
				}
				c.LocalAuth[1].Signer = brokenSigner{c.LocalAuth[1].Signer, errGone}
			}})
			if n = p.a; who == "responder" {
				n = p.b
			}
			p.refusedAt(n, ike.CodeCredential, 1)
			p.w.For(time.Minute)
			p.sound()
			p.empty()
		})
	}
}

var errGone = fmt.Errorf("the token was pulled out")
