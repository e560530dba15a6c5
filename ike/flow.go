package ike

import (
	"fmt"
	"net/netip"
	"slices"

	"wardgate/ike/message"
)

// Flow is a packet for which a CHILD SA is made, as this end sends it.
type Flow struct {
	Proto                 uint8 // IP protocol
	Local, Remote         netip.Addr
	LocalPort, RemotePort uint16 // of TCP, UDP, SCTP, DCCP and UDP-Lite; not looked at otherwise
}

// ends returns the selectors of the packet.
func (f Flow) ends() (local, remote Selector) {
	sel := func(a netip.Addr, port uint16) Selector {
		s := Selector{Proto: f.Proto, StartPort: port, EndPort: port, Start: a.Unmap(), End: a.Unmap()}
		switch f.Proto {
		case 6, 17, 33, 132, 136:
		default:
			s.StartPort, s.EndPort = 0, 65535
		}
		return s
	}
	return sel(f.Local, f.LocalPort), sel(f.Remote, f.RemotePort)
}

// ahead puts the selectors of the packet in front of what is asked for, so that a responder that narrows
// keeps what is needed now (RFC 7296, section 2.9). A packet that the policy does not let through is
// left out (section 2.9.1).
func (f Flow) ahead(local, remote []Selector) (l, r []Selector) {
	a, b := f.ends()
	if a.check() != nil || b.check() != nil || !within([]Selector{a}, local) || !within([]Selector{b}, remote) ||
		len(local) >= maxSelectors || len(remote) >= maxSelectors {
		return local, remote
	}
	front := func(s Selector, list []Selector) []Selector {
		if list[0] == s {
			return list
		}
		return slices.Insert(slices.Clone(list), 0, s)
	}
	return front(a, local), front(b, remote)
}

// pair narrows to the two addresses of the packet (SINGLE_PAIR_REQUIRED).
func (f Flow) pair(local, remote []Selector) (l, r []Selector) {
	addr := func(a netip.Addr) []Selector { return []Selector{{EndPort: 65535, Start: a.Unmap(), End: a.Unmap()}} }
	return pairUp(narrow(addr(f.Local), local), narrow(addr(f.Remote), remote))
}

// InitiateFor is Initiate for a packet that waits: the responder is told what the CHILD SA is needed
// for, so that where it narrows the selectors, that is in. The packet counts when the CHILD SA does not
// stand yet, and is the policy's to let through.
func (ep *Endpoint) InitiateFor(peer, child string, packet Flow) error {
	if !packet.Local.IsValid() || !packet.Remote.IsValid() || packet.Local.Is4() != packet.Remote.Is4() {
		return fmt.Errorf("ike: InitiateFor: expected a packet with two addresses of one family, got %v to %v", packet.Local, packet.Remote)
	}
	return ep.initiate(peer, evInitiate{child: child, packet: packet})
}

// notePacket keeps the packet that a CHILD SA is wanted for.
func (sa *SA) notePacket(ev evInitiate) {
	if !ev.packet.Local.IsValid() || sa.peer.child(ev.child) == nil {
		return
	}
	if sa.packets == nil {
		sa.packets = map[string]Flow{}
	}
	if _, have := sa.packets[ev.child]; !have {
		sa.packets[ev.child] = ev.packet
	}
}

// takePacket returns the packet that a CHILD SA is asked for with, once.
func (sa *SA) takePacket(child string) Flow {
	f := sa.packets[child]
	delete(sa.packets, child)
	return f
}

// onePair answers SINGLE_PAIR_REQUIRED: the peer makes CHILD SAs for single pairs of addresses, so that
// of the packet is asked for (section 2.9). false: that is not it, or no packet is known.
func (sa *SA) onePair(n *message.Notify, cfg *ChildConfig, packet Flow, tried bool) bool {
	if n.Type != message.NotifySinglePairRequired || tried || !packet.Local.IsValid() || sa.state != StateEstablished {
		return false
	}
	local, remote := sa.selectorsOf(cfg)
	if local, _ = packet.pair(local, remote); len(local) == 0 {
		return false
	}
	sa.cur.enqueue(&newChild{cfg: cfg, packet: packet, pair: true})
	return true
}
