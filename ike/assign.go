package ike

import (
	"net/netip"
	"slices"

	"wardgate/ike/message"
)

// LeaseQuery is the question for an address for a peer.
type LeaseQuery struct {
	Peer string     // PeerConfig.Name
	IDs  []Identity // of the peer, one for each round, all proved
	IPv6 bool

	// Want is the address that the peer would like, the zero Addr for any: the one that it had before,
	// or for IPv6 one with the interface identifier that it wants (RFC 7296, section 3.15.3).
	Want netip.Addr
}

// AddressPool is where a responder takes the addresses that it assigns. A peer, which is known by its
// connection and identities, has one address of each family, however many IKE SAs it has; it keeps
// it through rekeys, reauthentication and resumption, until its last IKE SA is gone. The methods are
// called from several goroutines; they must not block and must not call the Endpoint.
type AddressPool interface {
	// Lease returns an address that nobody has, with the length of the prefix of its network (32 and
	// 128: none is told); false: there is none left, or none of the family.
	Lease(LeaseQuery) (netip.Prefix, bool)

	// Release gives an address back. Its peer may come again soon, and is better off with the same.
	Release(q LeaseQuery, a netip.Addr)
}

// configAnswer is the answer to a CFG_REQUEST: the reply, or INTERNAL_ADDRESS_FAILURE.
type configAnswer struct {
	reply  *message.CP // nil: no reply
	failed bool
}

func (a configAnswer) addTo(out *outgoing) {
	if a.failed {
		out.notify(message.NotifyInternalAddressFailure, nil)
	} else if a.reply != nil {
		out.add(a.reply)
	}
}

// answerConfig answers the configuration payload of a request. e is the state of the IKE SA, in which
// every round was proved. alone: the request is about nothing else (section 3.15), and any question
// is answered; with an SA payload, only by connections that assign addresses.
func (sa *SA) answerConfig(e *established, cp *message.CP, alone bool) configAnswer {
	switch {
	case cp == nil:
		return configAnswer{}
	case cp.Type == message.CfgSet && alone:
		return configAnswer{reply: &message.CP{Type: message.CfgAck}} // none of it is accepted
	case cp.Type != message.CfgRequest || !alone && sa.peer.Assign == nil:
		return configAnswer{}
	}
	asked := func(t message.CfgAttributeType) bool {
		return slices.ContainsFunc(cp.Attributes, func(a message.CfgAttribute) bool { return a.Type == t })
	}
	reply := &message.CP{Type: message.CfgReply}
	add := func(a message.CfgAttribute) { reply.Attributes = append(reply.Attributes, a) }
	wants, got := false, false
	if assign := sa.peer.Assign; assign != nil {
		for _, f := range cfgFamilies {
			if asked(f.addr) {
				wants = true
				if p, ok := sa.assignAddress(e, f, cp); ok {
					got = true
					addAddress(reply, f, p)
				}
			}
			if asked(f.dns) {
				addServers(reply, f.dns, f.v6, assign.DNS)
			}
			if asked(f.dhcp) {
				addServers(reply, f.dhcp, f.v6, assign.DHCP)
			}
			if asked(f.addr) || asked(f.subnet) {
				for _, n := range assign.Subnets {
					if n.Addr().Is6() == f.v6 {
						add(message.CfgPrefix(f.subnet, n.Masked()))
					}
				}
			}
		}
	}
	if wants && !got {
		// Section 3.15.4: not before all were tried.
		sa.refuse(refused(CodeAddress, -1, nil, "no internal address for the peer: connection %q has none left of the families that it asks for", sa.peer.Name))
		return configAnswer{failed: true}
	}
	if asked(message.CfgAttrApplicationVersion) {
		add(message.CfgAttribute{Type: message.CfgAttrApplicationVersion}) // section 2.20: an empty string tells nothing
	}
	if asked(message.CfgAttrSupportedAttributes) {
		var list []byte
		for _, t := range supportedAttributes {
			list = append(list, byte(t>>8), byte(t))
		}
		add(message.CfgAttribute{Type: message.CfgAttrSupportedAttributes, Value: list})
	}
	return configAnswer{reply: reply}
}

var supportedAttributes = []message.CfgAttributeType{
	message.CfgAttrInternalIP4Address, message.CfgAttrInternalIP4Netmask, message.CfgAttrInternalIP4DNS, message.CfgAttrInternalIP4DHCP,
	message.CfgAttrApplicationVersion, message.CfgAttrInternalIP6Address, message.CfgAttrInternalIP6DNS, message.CfgAttrInternalIP6DHCP,
	message.CfgAttrInternalIP4Subnet, message.CfgAttrSupportedAttributes, message.CfgAttrInternalIP6Subnet,
}

// assignAddress finds the peer's address of a family: the one that it has, or a lease.
func (sa *SA) assignAddress(e *established, f cfgFamily, cp *message.CP) (netip.Prefix, bool) {
	if p, ok := e.net.address(f.v6); ok {
		return p, true
	}
	if v6 := f.v6; v6 && !sa.peer.Assign.IPv6 || !v6 && !sa.peer.Assign.IPv4 {
		return netip.Prefix{}, false // section 3.15.4: ignored
	}
	q := LeaseQuery{Peer: sa.peer.Name, IDs: slices.Clone(e.remoteIDs), IPv6: f.v6}
	for _, a := range cp.Attributes {
		if a.Type == f.addr && !q.Want.IsValid() {
			if p, err := cfgAddress(f, a); err == nil && !p.Addr().IsUnspecified() {
				q.Want = p.Addr()
			}
		}
	}
	p, ok := sa.host.lease(q)
	if !ok {
		return p, false
	}
	if e.net == nil {
		e.net = &NetConfig{}
	}
	e.net.Addrs = append(e.net.Addrs, p)
	return p, true
}

func addAddress(cp *message.CP, f cfgFamily, p netip.Prefix) {
	if f.v6 {
		cp.Attributes = append(cp.Attributes, message.CfgPrefix(f.addr, p))
		return
	}
	cp.Attributes = append(cp.Attributes, message.CfgAddr(f.addr, p.Addr()))
	if p.Bits() < 32 {
		cp.Attributes = append(cp.Attributes, message.CfgAttribute{Type: message.CfgAttrInternalIP4Netmask, Value: message.Netmask(p.Bits())})
	}
}

func addServers(cp *message.CP, t message.CfgAttributeType, v6 bool, list []netip.Addr) {
	for _, a := range list {
		if a.Is6() == v6 {
			cp.Attributes = append(cp.Attributes, message.CfgAddr(t, a))
		}
	}
}
