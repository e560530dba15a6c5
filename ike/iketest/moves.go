package iketest

import (
	"bytes"
	"net/netip"
	"slices"

	"wardgate/ike/message"
)

// learnMobike notes what a new INFORMATIONAL message has to do with addresses (RFC 4555).
func (o *oracle) learnMobike(s *session, h head, hash uint64, ps message.Payloads) {
	if h.response {
		return
	}
	s.probes[h.d] = probe{id: h.id}
	if n := ps.Notify(message.NotifyCookie2); n != nil {
		s.probes[h.d].cookie = bytes.Clone(n.Data)
	}
	if ps.HasNotify(message.NotifyUpdateSAAddresses) || len(addressesIn(ps)) > 0 || ps.HasNotify(message.NotifyNoAdditionalAddresses) {
		if s.moves[h.d] == nil {
			s.moves[h.d] = map[uint64]struct{}{}
		}
		s.moves[h.d][hash] = struct{}{}
	}
}

// addressesIn are those that a message lists.
func addressesIn(ps message.Payloads) (out []netip.Addr) {
	for _, n := range message.All[*message.Notify](ps) {
		if n.Type == message.NotifyAdditionalIP4Address || n.Type == message.NotifyAdditionalIP6Address {
			if a, ok := netip.AddrFromSlice(n.Data); ok {
				out = append(out, a)
			}
		}
	}
	return out
}

// tell notes the addresses that a node lists in IKE_AUTH.
func (o *oracle) tell(n *simNode, ps message.Payloads) {
	for _, a := range addressesIn(ps) {
		for _, x := range o.r.nodes {
			x.told[a] = x.told[a] || x != n
		}
	}
}

// deliveredMobike notes what a node is told about its peer's addresses, and from where.
func (o *oracle) deliveredMobike(n *simNode, s *session, h head, from netip.AddrPort, hash uint64, msg []byte, genuine bool) {
	ps, _ := s.open(h.d, msg)
	// What was answered cannot mean anything any more.
	_, moves := s.moves[h.d][hash]
	came := s.dir[1-h.d].resp.id >= h.id
	if moves && (genuine || !came) && !h.response || o.r.hostile() {
		n.moved[from.Addr()] = true
		n.told[from.Addr()] = true // who lost the address in use says so from another one
	}
	if !h.response && (genuine || !came) {
		n.heard[from.Addr()] = true // an initiator that looks for a way may try that one
	}
	for _, a := range addressesIn(ps) {
		n.told[a] = true
	}
	if asked := s.probes[1-h.d]; h.response && asked.cookie != nil && asked.id == h.id {
		if c := ps.Notify(message.NotifyCookie2); c != nil && bytes.Equal(c.Data, asked.cookie) {
			now := o.r.w.Now()
			if len(o.shown) > 0 && !o.shown[0].at.Equal(now) {
				o.shown = nil
			}
			o.shown = append(o.shown, shown{n, now, slices.Clone(asked.to)})
		}
	}
}

// routable tells whether a node has just got the answer to a COOKIE2 that it sent to an address, and
// nowhere else.
func (o *oracle) routable(n *simNode, a netip.Addr) bool {
	return slices.ContainsFunc(o.shown, func(s shown) bool {
		return s.n == n && s.at.Equal(o.r.w.Now()) && slices.Equal(s.to, []netip.Addr{a})
	})
}
