package ike

import (
	"encoding/binary"
	"slices"

	"wardgate/ike/message"
)

// SetKeyLog has every secret of an endpoint's IKE SAs handed to f. It exists in tests only: no
// configuration can reach the field.
func SetKeyLog(c *Config, f func(name string, secret []byte)) { c.keyLog = f }

// Tables returns the sizes of an endpoint's tables, to show that nothing is left.
func (ep *Endpoint) Tables() (boxes, spis, half, esp, children, byPeer int) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	return len(ep.boxes), len(ep.spis), len(ep.half), len(ep.espSPIs), len(ep.children), len(ep.byPeer) + len(ep.contacts)
}

// Forge encodes a message under the keys of the only IKE SA of an endpoint: what a hostile peer
// that did the key exchange can send at any time.
func (ep *Endpoint) Forge(exchange uint8, id uint32, response bool, ps message.Payloads) (Path, [][]byte) {
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		defer b.step.Unlock()
		if b.sa.cur == nil || b.sa.cur.prot == nil {
			continue
		}
		msgs, err := b.sa.cur.encode(exchange, id, response, &outgoing{ps})
		if err != nil {
			panic(err)
		}
		return b.sa.path, msgs
	}
	return Path{}, nil
}

// ForgeRaw is Forge for a plaintext that need not be payloads.
func (ep *Endpoint) ForgeRaw(exchange uint8, id uint32, response bool, first uint8, plain []byte) [][]byte {
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		defer b.step.Unlock()
		g := b.sa.cur
		if g == nil || g.prot == nil {
			continue
		}
		h := message.Header{SPIi: spiBytes(g.spiI), SPIr: spiBytes(g.spiR), Exchange: message.ExchangeType(exchange), MessageID: id}
		if g.initiator {
			h.Flags |= message.FlagInitiator
		}
		if response {
			h.Flags |= message.FlagResponse
		}
		msgs, err := message.Inner{First: message.PayloadType(first), Plain: plain}.Seal(h, g.prot.out, 0)
		if err != nil {
			return nil
		}
		return msgs
	}
	return nil
}

// IDs returns the message IDs of the current generation of the only IKE SA: of our next request,
// and of the one under way.
func (ep *Endpoint) IDs() (next uint32, pending bool) {
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		defer b.step.Unlock()
		if g := b.sa.cur; g != nil {
			return g.sendID, g.req != nil
		}
	}
	return 0, false
}

// Peek opens a protected message, whole or in fragments, that came for the only IKE SA of an
// endpoint under its current keys; nil: it is none.
func (ep *Endpoint) Peek(msgs ...[]byte) message.Payloads {
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		defer b.step.Unlock()
		g := b.sa.cur
		if g == nil || g.prot == nil {
			continue
		}
		var re reassembly
		for _, msg := range msgs {
			if in, err := g.open(&re, evDatagram{head: peekHeader(msg), msg: msg}); err == nil && in != nil {
				return in.ps
			}
		}
	}
	return nil
}

// IntermediateKE returns the key exchange data of the IKE_INTERMEDIATE request under way.
func (ep *Endpoint) IntermediateKE() *message.KE {
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		defer b.step.Unlock()
		if h := b.sa.handshake; h != nil && h.inter.kex != nil {
			return &message.KE{Method: message.KEMethod(h.inter.kex.ID()), Data: h.inter.kex.Public()}
		}
	}
	return nil
}

// SpoilIntAuth changes what AUTH covers of the IKE_INTERMEDIATE exchanges.
func (ep *Endpoint) SpoilIntAuth() {
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		defer b.step.Unlock()
		if h := b.sa.handshake; h != nil {
			h.inter.mid++
		}
	}
}

// Lose has an endpoint find all its peers dead.
func (ep *Endpoint) Lose() {
	for _, b := range ep.allBoxes() {
		b.post(evKill{Reason{Code: ReasonPeerDead, Text: "test"}})
	}
}

// OpenTicket reads a ticket as its maker does.
func OpenTicket(ticket []byte, secrets ...[]byte) error {
	keys, err := newTicketKeys(secrets)
	if err != nil {
		return err
	}
	_, err = keys.open(ticket)
	return err
}

// DecodeSession reads what is sealed in a ticket, and returns how it would be written.
func DecodeSession(b []byte) ([]byte, error) {
	s, err := decodeSession(b)
	if err != nil {
		return nil, err
	}
	return s.encode(), nil
}

// ForgeSized is Forge with fragments of at most size octets, whatever was announced and configured.
func (ep *Endpoint) ForgeSized(exchange uint8, id uint32, response bool, size int, ps message.Payloads) [][]byte {
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		defer b.step.Unlock()
		g := b.sa.cur
		if g == nil || g.prot == nil {
			continue
		}
		in, err := message.EncodeInner(ps)
		if err != nil {
			panic(err)
		}
		msgs, err := in.Fragments(g.header(exchange, id, response), g.prot.out, size)
		if err != nil {
			panic(err)
		}
		return msgs
	}
	return nil
}

// NoFragments has the IKE SAs of an endpoint forget that the peer announced fragmentation.
func (ep *Endpoint) NoFragments() {
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		b.sa.fragment = false
		b.step.Unlock()
	}
}

// Fragments returns how many fragments an endpoint's IKE SAs wait for the rest of.
func (ep *Endpoint) Fragments() (n int) {
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		for _, g := range b.sa.gens {
			req, _ := g.inRequest.Pending()
			resp, _ := g.inResponse.Pending()
			n += req + resp
		}
		b.step.Unlock()
	}
	return n
}

// ForgeHeader is ForgeRaw with changes of the header of the message and of its Encrypted payload.
func (ep *Endpoint) ForgeHeader(exchange uint8, id uint32, first uint8, plain []byte, edit func(header []byte)) []byte {
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		defer b.step.Unlock()
		g := b.sa.cur
		if g == nil || g.prot == nil {
			continue
		}
		raw, err := message.Encode(g.header(exchange, id, false), nil)
		if err != nil {
			panic(err)
		}
		n := message.SealedSize(len(plain), g.prot.out)
		raw[16] = byte(message.PayloadSK)
		binary.BigEndian.PutUint32(raw[24:], uint32(n))
		raw = append(raw, first, 0, 0, 0)
		binary.BigEndian.PutUint16(raw[30:], uint16(n-message.HeaderLen))
		edit(raw)
		raw = slices.Grow(raw, n)
		if raw, err = g.prot.out.AppendSealed(raw, raw[:len(raw):len(raw)], plain); err != nil {
			panic(err)
		}
		return raw
	}
	return nil
}
