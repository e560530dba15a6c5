package ike

import "wardgate/ike/message"

// SetKeyLog has every secret of an endpoint's IKE SAs handed to f. It exists in tests only: no
// configuration can reach the field.
func SetKeyLog(c *Config, f func(name string, secret []byte)) { c.keyLog = f }

// Tables returns the sizes of an endpoint's tables, to show that nothing is left.
func (ep *Endpoint) Tables() (boxes, spis, half, esp, children, byPeer int) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	return len(ep.boxes), len(ep.spis), len(ep.half), len(ep.espSPIs), len(ep.children), len(ep.byPeer)
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
