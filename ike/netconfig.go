package ike

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"wardgate/ike/message"
)

// The configuration payload (RFC 7296, sections 2.19 and 3.15): an initiator asks for an address in
// the network behind the responder, and for its name servers. assign.go has the responder.

// Demand says how much something is wanted.
type Demand uint8

// The demands.
const (
	NotWanted Demand = iota
	Wanted
	Required // without it the connection is not made
)

// ConfigRequest is what an initiator asks of the network behind the peer: addresses, at least of one
// family (section 2.19), and the servers of the families of which it asks for an address.
type ConfigRequest struct {
	IPv4, IPv6 Demand
	DNS, DHCP  bool
}

// Assign is what a responder gives to peers that ask. Addresses come from Config.Addresses.
type Assign struct {
	IPv4, IPv6 bool           // an address of the family
	DNS, DHCP  []netip.Addr   // at most 8 of each
	Subnets    []netip.Prefix // told to be reached through us (section 3.15.2); what is, the selectors decide. At most 32
}

// NetConfig is what was assigned.
type NetConfig struct {
	// Addrs has at most one for each family. The length of its prefix is that of the network where it
	// belongs (INTERNAL_IP4_NETMASK, and the prefix length of INTERNAL_IP6_ADDRESS); 32 and 128 where
	// there is none.
	Addrs     []netip.Prefix
	DNS, DHCP []netip.Addr
	Subnets   []netip.Prefix // that the peer says it reaches; the selectors say what goes through a CHILD SA
}

// ErrNoAddress says that no internal address, or not all that are required, came of a
// ConfigRequest. It is no use to try again soon: section 3.15.4 speaks of several minutes.
var ErrNoAddress = errors.New("ike: the peer assigned no internal address")

// Bounds of what is taken of a peer, and given.
const (
	maxServers = 8
	maxSubnets = 32
)

// cfgFamily is the attributes of an address family.
type cfgFamily struct {
	v6                      bool
	addr, dns, dhcp, subnet message.CfgAttributeType
}

var cfgFamilies = []cfgFamily{
	{false, message.CfgAttrInternalIP4Address, message.CfgAttrInternalIP4DNS, message.CfgAttrInternalIP4DHCP, message.CfgAttrInternalIP4Subnet},
	{true, message.CfgAttrInternalIP6Address, message.CfgAttrInternalIP6DNS, message.CfgAttrInternalIP6DHCP, message.CfgAttrInternalIP6Subnet},
}

func (r *ConfigRequest) demand(v6 bool) Demand {
	if v6 {
		return r.IPv6
	}
	return r.IPv4
}

// address returns the address of a family.
func (n *NetConfig) address(v6 bool) (netip.Prefix, bool) {
	if n != nil {
		for _, p := range n.Addrs {
			if p.Addr().Is6() == v6 {
				return p, true
			}
		}
	}
	return netip.Prefix{}, false
}

// selectors are all traffic of the addresses.
func (n *NetConfig) selectors() []Selector {
	var out []Selector
	if n != nil {
		for _, p := range n.Addrs {
			out = append(out, Selector{EndPort: 65535, Start: p.Addr(), End: p.Addr()})
		}
	}
	return out
}

// clone copies what the owner is handed.
func (n *NetConfig) clone() *NetConfig {
	if n == nil {
		return nil
	}
	return &NetConfig{Addrs: slices.Clone(n.Addrs), DNS: slices.Clone(n.DNS), DHCP: slices.Clone(n.DHCP), Subnets: slices.Clone(n.Subnets)}
}

// payload makes the CFG_REQUEST. had are the addresses of the last time, which are asked for again
// (section 3.15.1: a suggestion).
func (r *ConfigRequest) payload(had *NetConfig) *message.CP {
	cp := &message.CP{Type: message.CfgRequest}
	for _, f := range cfgFamilies {
		if r.demand(f.v6) == NotWanted {
			continue
		}
		a := message.CfgAttribute{Type: f.addr}
		switch p, ok := had.address(f.v6); {
		case ok && f.v6:
			a = message.CfgPrefix(f.addr, p)
		case ok:
			a = message.CfgAddr(f.addr, p.Addr())
		}
		cp.Attributes = append(cp.Attributes, a)
		if r.DNS {
			cp.Attributes = append(cp.Attributes, message.CfgAttribute{Type: f.dns})
		}
		if r.DHCP {
			cp.Attributes = append(cp.Attributes, message.CfgAttribute{Type: f.dhcp})
		}
	}
	return cp
}

// take reads a CFG_REPLY. What was not asked for is left out, but for networks, which cannot be asked
// for reliably (section 3.15.2); unknown attributes are ignored. An error is about an attribute that
// makes no sense: nothing of such a reply is used.
func (r *ConfigRequest) take(cp *message.CP) (*NetConfig, error) {
	n := &NetConfig{}
	length4 := 32
	for _, a := range cp.Attributes {
		var err error
		if len(a.Value) == 0 {
			continue // no answer to this one
		}
		if a.Type == message.CfgAttrInternalIP4Netmask {
			if length4, err = a.MaskBits(); err != nil {
				return nil, err
			}
			continue
		}
		i := slices.IndexFunc(cfgFamilies, func(f cfgFamily) bool {
			return a.Type == f.addr || a.Type == f.dns || a.Type == f.dhcp || a.Type == f.subnet
		})
		if i < 0 || r.demand(cfgFamilies[i].v6) == NotWanted {
			continue
		}
		switch f := cfgFamilies[i]; {
		case a.Type == f.addr:
			err = n.takeAddress(f, a)
		case a.Type == f.dns && r.DNS:
			n.DNS, err = takeServer(n.DNS, a)
		case a.Type == f.dhcp && r.DHCP:
			n.DHCP, err = takeServer(n.DHCP, a)
		case a.Type == f.subnet:
			var p netip.Prefix
			if p, err = a.Prefix(); err == nil && len(n.Subnets) < maxSubnets {
				n.Subnets = append(n.Subnets, p.Masked())
			}
		}
		if err != nil {
			return nil, err
		}
	}
	for i, p := range n.Addrs {
		if p.Addr().Is4() {
			n.Addrs[i] = netip.PrefixFrom(p.Addr(), length4)
		}
	}
	return n, nil
}

// takeAddress keeps the first address of a family: one was asked for.
func (n *NetConfig) takeAddress(f cfgFamily, a message.CfgAttribute) error {
	p, err := cfgAddress(f, a)
	if err == nil {
		err = usable(p.Addr())
	}
	if _, have := n.address(f.v6); err == nil && !have {
		n.Addrs = append(n.Addrs, p)
	}
	return err
}

// cfgAddress reads INTERNAL_IP4_ADDRESS, or INTERNAL_IP6_ADDRESS, whose prefix length some leave out.
func cfgAddress(f cfgFamily, a message.CfgAttribute) (netip.Prefix, error) {
	if f.v6 && len(a.Value) == 17 {
		return a.Prefix()
	}
	addr, err := a.Addr()
	return netip.PrefixFrom(addr, addr.BitLen()), err
}

func takeServer(list []netip.Addr, a message.CfgAttribute) ([]netip.Addr, error) {
	addr, err := a.Addr()
	if err == nil {
		err = usable(addr)
	}
	if err != nil || len(list) >= 2*maxServers || slices.Contains(list, addr) {
		return list, err
	}
	return append(list, addr), nil
}

// usable tells what keeps an address from being that of one machine in a network.
func usable(a netip.Addr) error {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Is4In6() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return fmt.Errorf("ike: expected the address of one machine, got %v", a)
	}
	return nil
}

// addConfigRequest asks for addresses, before the SA payload (section 2.19) and in the first request
// of several.
func (sa *SA) addConfigRequest(out *outgoing) {
	if r := sa.peer.Request; r != nil {
		out.add(r.payload(sa.host.given(sa.peer.Name)))
	}
}

// takeConfig reads what the last answer to IKE_AUTH assigns to us. The error says what is missing that
// is required.
func (sa *SA) takeConfig(in *parsed) (*NetConfig, error) {
	r := sa.peer.Request
	if r == nil {
		return nil, nil
	}
	n := &NetConfig{}
	if in.cp != nil && in.cp.Type == message.CfgReply {
		got, err := r.take(in.cp)
		if err != nil {
			sa.refuse(refused(CodeAddress, -1, err, "what the peer assigns makes no sense; nothing of it is used"))
		} else {
			n = got
		}
	}
	var missing []string
	for _, f := range cfgFamilies {
		if _, ok := n.address(f.v6); !ok && r.demand(f.v6) == Required {
			missing = append(missing, f.addr.String())
		}
	}
	if len(missing) > 0 {
		cause := ErrNoAddress
		if e := in.errorNotify(); e != nil {
			cause = fmt.Errorf("%w: %w", ErrNoAddress, peerError(e, "the request for an address"))
		}
		return nil, refused(CodeAddress, -1, cause, "the peer did not assign %v, without which connection %q is not made; got %v", missing, sa.peer.Name, n.Addrs)
	}
	sa.host.keepGiven(sa.peer.Name, n)
	return n, nil
}

// withoutConfig ends an IKE SA in which we did not get the addresses that we need. The RFC allows
// this (section 3.15.4); the owner tries again when it wants to.
func (sa *SA) withoutConfig(h *handshake, e error) {
	if h.childID != 0 {
		sa.host.freeESPSPI(h.childSPI, h.childID)
	}
	var names []string
	if h.childCfg != nil {
		names = []string{h.childCfg.Name}
	}
	for _, name := range append(names, sa.wanted...) {
		sa.tellInitiateFailed(name, e)
	}
	sa.wanted = nil
	if r, ok := errors.AsType[*RefusedError](e); ok {
		sa.refuse(r)
	}
	sa.terminate(Reason{Code: ReasonDeleted, Text: e.Error()})
}

// selectorsOf is what a CHILD SA may carry at each end now: at an end whose addresses are assigned,
// these alone.
func (sa *SA) selectorsOf(c *ChildConfig) (local, remote []Selector) {
	local, remote = c.LocalTS, c.RemoteTS
	if c.LocalAssigned {
		local = narrow(sa.est.net.selectors(), local)
	}
	if c.RemoteAssigned {
		remote = narrow(sa.est.net.selectors(), remote)
	}
	return local, remote
}

// withoutAddress tells that a CHILD SA is for assigned addresses and there are none.
func (sa *SA) withoutAddress(c *ChildConfig) *RefusedError {
	local, remote := sa.selectorsOf(c)
	switch {
	case c.LocalAssigned && len(local) == 0:
		return refused(CodeAddress, -1, ErrNoAddress, "CHILD SA %q is for an address that the peer assigns, inside of %s", c.Name, joinTS(c.LocalTS))
	case c.RemoteAssigned && len(remote) == 0:
		return refused(CodeAddress, -1, nil, "CHILD SA %q is for an address that we assign, inside of %s, and the peer has none", c.Name, joinTS(c.RemoteTS))
	}
	return nil
}

// checkConfig tells what is wrong with the part of a connection that is about assigned addresses.
func (p *PeerConfig) checkConfig() error {
	r, a := p.Request, p.Assign
	switch {
	case r != nil && a != nil:
		return errors.New("both Request and Assign: an end asks for addresses or gives them")
	case r != nil && r.IPv4 == NotWanted && r.IPv6 == NotWanted:
		return errors.New("the Request asks for no address; expected one of IPv4 and IPv6 at least (RFC 7296, section 2.19)")
	case a != nil && len(p.Remote) > 0:
		return errors.New("Assign and Remote: whoever is assigned an address initiates, it is not initiated to")
	case a != nil && (len(a.DNS) > maxServers || len(a.DHCP) > maxServers || len(a.Subnets) > maxSubnets):
		return fmt.Errorf("Assign: at most %d servers of a kind and %d networks, got %d DNS, %d DHCP, %d networks", maxServers, maxSubnets, len(a.DNS), len(a.DHCP), len(a.Subnets))
	}
	if a != nil {
		for _, s := range slices.Concat(a.DNS, a.DHCP) {
			if err := usable(s); err != nil {
				return fmt.Errorf("Assign: a server: %w", err)
			}
		}
		if slices.ContainsFunc(a.Subnets, func(n netip.Prefix) bool { return !n.IsValid() }) {
			return errors.New("Assign: Subnets holds no network")
		}
	}
	for i := range p.Children {
		if c := &p.Children[i]; c.LocalAssigned && r == nil || c.RemoteAssigned && a == nil {
			return fmt.Errorf("CHILD SA %q: LocalAssigned needs Request, RemoteAssigned needs Assign", c.Name)
		}
	}
	return nil
}
