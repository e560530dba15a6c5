package iketest

import (
	"bytes"
	"slices"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// mutation is a message that a node is going to send otherwise than it should.
type mutation struct {
	skip    int // protected messages that are left alone before
	choices *choices
}

// choices are numbers from some octets, and from a random source when those are used up.
type choices struct {
	data []byte
	rand fastRand
}

// n returns a number from 0 to m-1.
func (c *choices) n(m int) int {
	if m <= 1 {
		return 0
	}
	if len(c.data) > 0 {
		v := int(c.data[0])
		c.data = c.data[1:]
		if m > 256 && len(c.data) > 0 {
			v = v<<8 | int(c.data[0])
			c.data = c.data[1:]
		}
		return v % m
	}
	return int(c.rand.Uint64() % uint64(m))
}

// mutate returns what a hostile node sends in place of a protected message that is whole: the same
// with changes inside, under the same keys. nil: this one is let alone.
func (o *oracle) mutate(m *mutation, msg []byte) []byte {
	h, ok := headOf(msg)
	if !ok || h.fragment != 0 {
		return nil
	}
	if m.skip > 0 {
		m.skip--
		return nil
	}
	s := o.session(msg)
	ps, g := s.open(h.d, msg)
	parsed, err := message.Parse(msg)
	if g == nil || err != nil {
		return nil
	}
	header := parsed.Header
	in := alter(&header, slices.Clone(ps), m.choices)
	return s.forge(g, h, header, in, ps)
}

// forge seals a message that a hostile node makes of one with the payloads ps.
func (s *session) forge(g *guarded, h head, header message.Header, in message.Inner, ps message.Payloads) []byte {
	if g.forger == nil {
		p, err := suite.NewProtector(simCipher, suite.CopySecret(g.key), suite.Secret{}, nil)
		if err != nil {
			return nil
		}
		g.forger = p
	}
	sealed, err := in.Seal(header, g.forger, 0)
	if err != nil || len(sealed) != 1 {
		return nil
	}
	// With the same proof it still is a proof.
	if a, was := message.First[*message.Auth](ps); was && h.exchange == 35 && bytes.Contains(in.Plain, a.Data) {
		s.auths[h.d][hashOf(sealed[0])] = false
	}
	return sealed[0]
}

// rewrite has Hooks.Rewrite change a message. nil: it stays as it is.
func (o *oracle) rewrite(n *simNode, msg []byte) []byte {
	parsed, err := message.Parse(msg)
	if err != nil {
		return nil
	}
	said := Said{
		At: o.r.w.Now().Sub(Epoch), Node: n.i, ID: int64(parsed.MessageID), Exchange: uint8(parsed.Exchange),
		Response: parsed.IsResponse(), Payloads: parsed.Payloads,
	}
	h, protected := headOf(msg)
	var s *session
	var g *guarded
	if protected {
		if h.fragment != 0 {
			return nil
		}
		s = o.session(msg)
		if said.Payloads, g = s.open(h.d, msg); g == nil {
			return nil
		}
	}
	in, ok := o.r.hooks.Rewrite(said)
	if !ok {
		return nil
	}
	if protected {
		return s.forge(g, h, parsed.Header, in, said.Payloads)
	}
	out, err := message.Encode(parsed.Header, in.Payloads)
	if err != nil {
		return nil
	}
	return out
}

// alter changes a message: payloads that are missing, there twice, in another order, of other
// content; another exchange or message ID; octets.
func alter(h *message.Header, ps message.Payloads, c *choices) message.Inner {
	for range 1 + c.n(3) {
		i := c.n(len(ps))
		switch c.n(14) {
		case 0: // a payload is missing
			if len(ps) > 0 {
				ps = slices.Delete(ps, i, i+1)
			}
		case 1:
			if len(ps) > 0 {
				ps = slices.Insert(ps, c.n(len(ps)), ps[i])
			}
		case 2:
			if len(ps) > 1 {
				j := c.n(len(ps))
				ps[i], ps[j] = ps[j], ps[i]
			}
		case 3: // an error
			ps = message.Payloads{message.NewNotify(errorNotifies[c.n(len(errorNotifies))])}
		case 4:
			ps = append(ps, message.NewNotify(statusNotifies[c.n(len(statusNotifies))], make([]byte, c.n(20))...))
		case 5:
			ps = nil
		case 6:
			p := message.ProtocolESP
			if c.n(2) == 0 {
				p = message.ProtocolIKE
			}
			d := &message.Delete{Protocol: p}
			if p == message.ProtocolESP {
				d.SPIs = []uint32{0x01020304}
			}
			ps = append(ps, d)
		case 7: // REKEY_SA of another protocol, or of nothing
			ps = slices.Insert(ps, 0, message.Payload(message.NewRekeySA([]message.ProtocolID{message.ProtocolAH, message.ProtocolIKE, message.ProtocolESP, 0}[c.n(4)], 0x01020304)))
		case 8:
			h.Exchange = message.ExchangeType([]uint8{34, 35, 36, 37, 38, 43, 44, 99}[c.n(8)])
		case 9:
			h.MessageID += uint32(c.n(5) - 2)
		case 10: // key exchange data and nonces of another length, or zero
			for k, p := range ps {
				switch p := p.(type) {
				case *message.KE:
					ps[k] = &message.KE{Method: p.Method, Data: make([]byte, []int{0, 1, len(p.Data), len(p.Data) + 1, 2000}[c.n(5)])}
				case *message.Nonce:
					ps[k] = &message.Nonce{Data: make([]byte, []int{0, 1, 15, 16, 256, 300}[c.n(6)])}
				}
			}
		case 11: // selectors of nothing, or of everything
			for k, p := range ps {
				if p, ok := p.(*message.TS); ok {
					q := *p
					if q.Selectors = nil; c.n(2) == 0 {
						q.Selectors = slices.Repeat(p.Selectors, c.n(64))
					}
					ps[k] = &q
				}
			}
		case 12:
			ps = append(ps, &message.Unknown{Generic: message.Generic{Critical: c.n(2) == 0}, Type: message.PayloadType(c.n(256)), Data: make([]byte, c.n(10))})
		case 13: // octets
			in, err := message.EncodeInner(ps)
			if err != nil {
				continue
			}
			for range 1 + c.n(4) {
				if len(in.Plain) == 0 {
					break
				}
				at := c.n(len(in.Plain))
				switch c.n(4) {
				case 0:
					in.Plain[at] ^= 1 << c.n(8)
				case 1:
					in.Plain[at] = []byte{0, 1, 0x7f, 0x80, 0xff}[c.n(5)]
				case 2:
					in.Plain = in.Plain[:at]
				default:
					in.Plain = append(in.Plain, make([]byte, c.n(8))...)
				}
			}
			return in
		}
	}
	in, err := message.EncodeInner(ps)
	if err != nil {
		return message.Inner{} // too absurd to be encoded: nothing
	}
	return in
}

var errorNotifies = []message.NotifyType{
	message.NotifyTemporaryFailure, message.NotifyChildSANotFound, message.NotifyNoAdditionalSAs, message.NotifyInvalidSyntax,
	message.NotifyAuthenticationFailed, message.NotifyInvalidKEPayload, message.NotifyNoProposalChosen, message.NotifyTSUnacceptable,
	message.NotifyInvalidIKESPI, message.NotifyUnsupportedCriticalPayload, message.NotifyTSMaxQueue, 8191,
}

var statusNotifies = []message.NotifyType{
	message.NotifyAnotherAuthFollows, message.NotifyMultipleAuthSupported, message.NotifyInitialContact, message.NotifyCookie,
	message.NotifySAResourceInfo, message.NotifyRekeySA, message.NotifyQuickCrashDetection, message.NotifyAuthLifetime, 16385, 40000,
}
