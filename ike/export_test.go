package ike

// SetKeyLog has every secret of an endpoint's IKE SAs handed to f. It exists in tests only: no
// configuration can reach the field.
func SetKeyLog(c *Config, f func(name string, secret []byte)) { c.keyLog = f }

// Tables returns the sizes of an endpoint's tables, to show that nothing is left.
func (ep *Endpoint) Tables() (boxes, spis, half, esp, children, byPeer int) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	return len(ep.boxes), len(ep.spis), len(ep.half), len(ep.espSPIs), len(ep.children), len(ep.byPeer)
}
