package ike

import (
	"errors"
	"fmt"
	"time"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// protection is the keys of one generation.
type protection struct {
	prf     suite.PRF
	keys    *suite.IKEKeys
	out, in *suite.Protector

	// before opened the request that was answered last, where that changed the keys
	// (IKE_INTERMEDIATE): it may come again.
	before *suite.Protector
}

// protect derives the keys of g from SKEYSEED, which it wipes.
func (g *generation) protect(seed suite.Secret, ni, nr []byte) error {
	defer seed.Wipe()
	prf, err := suite.NewPRF(g.chosen.PRF)
	if err != nil {
		return err
	}
	keys, err := suite.DeriveIKEKeys(g.chosen, seed, ni, nr, spiBytes(g.spiI), spiBytes(g.spiR))
	if err != nil {
		return err
	}
	out, in, err := keys.Protectors(g.chosen, g.initiator, g.sa.host.rand())
	if err != nil {
		keys.Wipe()
		return err
	}
	g.prot = &protection{prf: prf, keys: keys, out: out, in: in}
	g.logKeys()
	keys.WipeProtection() // out and in have them
	if g.sa.est != nil {
		keys.WipeAuth() // a rekey: both ends have proved who they are
	}
	return nil
}

// logKeys hands the keys to the log of tests.
func (g *generation) logKeys() {
	log, keys := g.sa.cfg.keyLog, g.prot.keys
	if log == nil {
		return
	}
	for _, k := range []struct {
		name string
		s    suite.Secret
	}{
		{"d", keys.SKd},
		{"ai", keys.SKai},
		{"ar", keys.SKar},
		{"ei", keys.SKei},
		{"er", keys.SKer},
		{"pi", keys.SKpi},
		{"pr", keys.SKpr},
	} {
		if keys.SKei.Len() == 0 && (k.name[0] == 'e' || k.name[0] == 'a') {
			continue // they were told when they were new
		}
		log(fmt.Sprintf("sk_%s-%016x", k.name, g.spiI), append([]byte(nil), k.s.Bytes()...))
	}
}

func (p *protection) wipe() {
	p.keys.Wipe()
	p.out.Wipe()
	if p.in != nil {
		p.in.Wipe()
	}
	p.dropBefore()
}

func (p *protection) dropBefore() {
	if p.before != nil {
		p.before.Wipe()
		p.before = nil
	}
}

// header returns the header of a message of ours.
func (g *generation) header(exchange uint8, id uint32, response bool) message.Header {
	h := message.Header{SPIi: spiBytes(g.spiI), SPIr: spiBytes(g.spiR), Exchange: message.ExchangeType(exchange), MessageID: id}
	if g.initiator {
		h.Flags |= message.FlagInitiator
	}
	if response {
		h.Flags |= message.FlagResponse
	}
	return h
}

// encode makes the datagrams of one protected message.
func (g *generation) encode(exchange uint8, id uint32, response bool, out *outgoing) ([][]byte, error) {
	in, err := message.EncodeInner(out.ps)
	if err != nil {
		return nil, err
	}
	return g.seal(g.header(exchange, id, response), in)
}

// seal makes the datagrams of one protected message, in fragments where the peer can take them
// and the message is too long.
func (g *generation) seal(h message.Header, in message.Inner) ([][]byte, error) {
	limit := 0
	if g.sa.fragment && g.sa.path.Stream == 0 { // TCP does it better: RFC 9329, section 7.5
		limit = g.sa.cfg.FragmentSize
	}
	return in.Seal(h, g.prot.out, limit)
}

// reassembly is the fragments of the one message that is expected in a direction.
type reassembly struct {
	parts   *message.Reassembler // nil: none came
	expires time.Time
}

// reassemblyTime is how long fragments wait for the missing ones. The sender repeats all of them
// sooner than that.
const reassemblyTime = 30 * time.Second

func (r *reassembly) reset() { *r = reassembly{} }

// Pending returns how many fragments of how many are there; 0 and 0 when none is.
func (r *reassembly) Pending() (have, total int) {
	if r.parts == nil {
		return 0, 0
	}
	return r.parts.Pending()
}

func (r *reassembly) expire(now time.Time) {
	if due(now, r.expires) {
		r.reset()
	}
}

// sealed parses a message that has to be encrypted, whatever its exchange: in an exchange that
// may come in the clear elsewhere (IKE_SESSION_RESUME) there is nothing for an IKE SA that has
// keys.
func sealed(msg []byte) (*message.Message, bool) {
	m, err := message.Parse(msg)
	if err != nil || m.CheckOuter() != nil || m.Encrypted == nil {
		return nil, false
	}
	return m, true
}

// open authenticates a message with the expected ID. nil, nil: it is to be dropped silently, or
// fragments are missing. An error is about an authentic message.
func (g *generation) open(re *reassembly, ev evDatagram) (*parsed, error) {
	m, ok := sealed(ev.msg)
	if !ok {
		return nil, nil // RFC 7296, section 2.21.4: nothing authentic, no answer
	}
	var err error
	var inner message.Inner
	if m.Encrypted.IsFragment() {
		// RFC 7383, section 2.3: only when both ends announced it.
		if !g.sa.fragment || re.parts != nil && re.parts.Wants(m) != nil {
			return nil, nil //nolint:nilerr // nothing authentic yet, no answer
		}
		f, err := m.OpenFragment(g.prot.in)
		if err != nil {
			return nil, nil //nolint:nilerr // not authentic
		}
		if re.parts == nil {
			re.parts = &message.Reassembler{}
		}
		var done bool
		inner, done, err = re.parts.Add(f)
		switch {
		case errors.Is(err, message.ErrReassemblyLimit):
			re.reset()
			return nil, err
		case err != nil:
			return nil, nil //nolint:nilerr // a fragment that does not fit the others (RFC 7383, section 2.6)
		case !done:
			if re.expires.IsZero() {
				re.expires = g.sa.now.Add(reassemblyTime)
			}
			return nil, nil
		}
	} else if inner, err = m.Decrypt(g.prot.in); err != nil {
		return nil, nil //nolint:nilerr // not authentic
	}
	re.reset()
	if err := inner.Parse(); err != nil {
		return nil, err
	}
	in, err := sort(inner.Payloads)
	if err != nil {
		return nil, err
	}
	from := ev.path
	in.from, in.head, in.inner = &from, m.Header, inner
	return in, nil
}

// authentic tells whether a repeated request comes from the holder of the keys; of a fragmented
// one only the first fragment counts.
func (g *generation) authentic(msg []byte) bool {
	m, ok := sealed(msg)
	if !ok || m.Encrypted.IsFragment() && m.Encrypted.Number != 1 {
		return false
	}
	opens := func(p *suite.Protector) bool {
		if p == nil {
			return false
		}
		var err error
		if m.Encrypted.IsFragment() {
			_, err = m.OpenFragment(p)
		} else {
			_, err = m.Decrypt(p)
		}
		return err == nil
	}
	return opens(g.prot.in) || opens(g.prot.before)
}
