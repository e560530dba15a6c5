package ike_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/message"
)

func attr(t message.CfgAttributeType, v ...byte) message.CfgAttribute {
	return message.CfgAttribute{Type: t, Value: v}
}

func addrAttr(t message.CfgAttributeType, s string) message.CfgAttribute {
	return message.CfgAddr(t, netip.MustParseAddr(s))
}

// TestConfigReply: what is made of a responder's reply (RFC 7296, section 3.15.1).
func TestConfigReply(t *testing.T) {
	t.Parallel()
	const (
		ip4, mask, dns4, dhcp4 = message.CfgAttrInternalIP4Address, message.CfgAttrInternalIP4Netmask, message.CfgAttrInternalIP4DNS, message.CfgAttrInternalIP4DHCP
		ip6, dns6, net4, net6  = message.CfgAttrInternalIP6Address, message.CfgAttrInternalIP6DNS, message.CfgAttrInternalIP4Subnet, message.CfgAttrInternalIP6Subnet
	)
	six := func(s string) message.CfgAttribute { return message.CfgPrefix(ip6, netip.MustParsePrefix(s)) }
	both := &ike.ConfigRequest{IPv4: ike.Wanted, IPv6: ike.Wanted, DNS: true, DHCP: true}
	only4 := &ike.ConfigRequest{IPv4: ike.Wanted}
	many := slices.Repeat([]message.CfgAttribute{addrAttr(dns4, "10.0.0.53")}, 100)
	for i := range many {
		many[i] = attr(dns4, 10, 0, 1, byte(i+1))
	}
	for name, c := range map[string]struct {
		req  *ike.ConfigRequest
		as   []message.CfgAttribute
		want string // "": refused as a whole
	}{
		"nothing":              {both, nil, "[] [] [] []"},
		"address":              {both, []message.CfgAttribute{addrAttr(ip4, "10.9.0.1")}, "[10.9.0.1/32] [] [] []"},
		"netmask":              {both, []message.CfgAttribute{attr(mask, 255, 255, 255, 0), addrAttr(ip4, "10.9.0.1")}, "[10.9.0.1/24] [] [] []"},
		"netmask alone":        {both, []message.CfgAttribute{attr(mask, 255, 255, 255, 0)}, "[] [] [] []"},
		"both families":        {both, []message.CfgAttribute{six("2001:db8::1/64"), addrAttr(ip4, "10.9.0.1"), addrAttr(dns6, "2001:db8::53"), addrAttr(dns4, "10.0.0.53"), addrAttr(dhcp4, "10.0.0.67")}, "[2001:db8::1/64 10.9.0.1/32] [2001:db8::53 10.0.0.53] [10.0.0.67] []"},
		"IPv6, no length":      {both, []message.CfgAttribute{addrAttr(ip6, "2001:db8::1")}, "[2001:db8::1/128] [] [] []"},
		"several addresses":    {both, []message.CfgAttribute{addrAttr(ip4, "10.9.0.1"), addrAttr(ip4, "10.9.0.2")}, "[10.9.0.1/32] [] [] []"},
		"networks":             {both, []message.CfgAttribute{attr(net4, 10, 2, 0, 9, 255, 255, 0, 0), message.CfgPrefix(net6, netip.MustParsePrefix("2001:db8:2::/48"))}, "[] [] [] [10.2.0.0/16 2001:db8:2::/48]"},
		"empty attributes":     {both, []message.CfgAttribute{attr(ip4), attr(ip6), attr(dns4), attr(mask)}, "[] [] [] []"},
		"unknown attributes":   {both, []message.CfgAttribute{attr(999, 1, 2, 3), attr(message.CfgAttrApplicationVersion, 'x'), attr(message.CfgAttrInternalIP4NBNS, 1)}, "[] [] [] []"},
		"family not asked for": {only4, []message.CfgAttribute{addrAttr(ip4, "10.9.0.1"), six("2001:db8::1/64"), addrAttr(dns6, "2001:db8::53")}, "[10.9.0.1/32] [] [] []"},
		"server not asked for": {only4, []message.CfgAttribute{addrAttr(ip4, "10.9.0.1"), addrAttr(dns4, "10.0.0.53"), addrAttr(dhcp4, "10.0.0.53")}, "[10.9.0.1/32] [] [] []"},
		"the same server":      {both, []message.CfgAttribute{addrAttr(dns4, "10.0.0.53"), addrAttr(dns4, "10.0.0.53")}, "[] [10.0.0.53] [] []"},
		"many servers":         {both, many, "[] 16 [] []"},

		"short address":          {both, []message.CfgAttribute{attr(ip4, 10, 9, 0)}, ""},
		"long address":           {both, []message.CfgAttribute{attr(ip4, 10, 9, 0, 1, 0)}, ""},
		"IPv6, 15 octets":        {both, []message.CfgAttribute{attr(ip6, make([]byte, 15)...)}, ""},
		"IPv6, 129 bits":         {both, []message.CfgAttribute{attr(ip6, append(netip.MustParseAddr("2001:db8::1").AsSlice(), 129)...)}, ""},
		"unspecified":            {both, []message.CfgAttribute{addrAttr(ip4, "0.0.0.0")}, ""},
		"multicast":              {both, []message.CfgAttribute{addrAttr(ip4, "224.0.0.1")}, ""},
		"broadcast":              {both, []message.CfgAttribute{addrAttr(ip4, "255.255.255.255")}, ""},
		"loopback":               {both, []message.CfgAttribute{addrAttr(ip4, "127.0.0.1")}, ""},
		"IPv6 loopback":          {both, []message.CfgAttribute{six("::1/128")}, ""},
		"IPv4 in IPv6":           {both, []message.CfgAttribute{addrAttr(ip6, "::ffff:10.0.0.1")}, ""},
		"netmask with a gap":     {both, []message.CfgAttribute{attr(mask, 255, 0, 255, 0), addrAttr(ip4, "10.9.0.1")}, ""},
		"network of 7 octets":    {both, []message.CfgAttribute{attr(net4, make([]byte, 7)...)}, ""},
		"a server that is none":  {both, []message.CfgAttribute{addrAttr(dns4, "0.0.0.0")}, ""},
		"a server of two octets": {both, []message.CfgAttribute{addrAttr(ip4, "10.9.0.1"), attr(dns6, 1, 2)}, ""},
	} {
		n, err := ike.TakeConfig(c.req, &message.CP{Type: message.CfgReply, Attributes: c.as})
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%s: taken: %+v", name, n)
		case c.want != "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "":
			dns := fmt.Sprint(n.DNS)
			if len(n.DNS) > 8 {
				dns = fmt.Sprint(len(n.DNS))
			}
			if got := fmt.Sprint(n.Addrs, " ", dns, " ", n.DHCP, " ", n.Subnets); got != c.want {
				t.Errorf("%s: %s, want %s", name, got, c.want)
			}
		}
	}
}

// FuzzConfigReply: no reply makes the initiator have more than it asked for, or an address that is none.
func FuzzConfigReply(f *testing.F) {
	f.Add([]byte{0, 1, 0, 4, 10, 9, 0, 1, 0, 8, 0, 17, 32, 1, 13, 184, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 64}, byte(0))
	f.Add([]byte{0, 13, 0, 8, 10, 9, 0, 1, 255, 255, 0, 0, 0, 2, 0, 4, 255, 255, 255, 0}, byte(3))
	f.Fuzz(func(t *testing.T, body []byte, ask byte) {
		var as []message.CfgAttribute
		for len(body) >= 4 {
			n := min(int(body[2])<<8|int(body[3]), len(body)-4)
			as = append(as, attr(message.CfgAttributeType(body[0])<<8|message.CfgAttributeType(body[1]), body[4:4+n]...))
			body = body[4+n:]
		}
		r := &ike.ConfigRequest{IPv4: ike.Demand(ask % 3), IPv6: ike.Demand(ask / 3 % 3), DNS: ask&0x40 != 0, DHCP: ask&0x80 != 0}
		n, err := ike.TakeConfig(r, &message.CP{Type: message.CfgReply, Attributes: as})
		if err != nil {
			return
		}
		if len(n.Addrs) > 2 || len(n.DNS) > 16 || len(n.DHCP) > 16 || len(n.Subnets) > 32 || !r.DNS && len(n.DNS) > 0 || !r.DHCP && len(n.DHCP) > 0 {
			t.Errorf("%+v of %+v", n, r)
		}
		for _, a := range n.Addrs {
			if !a.IsValid() || a.Addr().IsUnspecified() || a.Addr().IsMulticast() || a.Addr().Is4() && r.IPv4 == ike.NotWanted || a.Addr().Is6() && r.IPv6 == ike.NotWanted {
				t.Errorf("%v of %+v", a, r)
			}
		}
	})
}

// TestConfigReplyHostile: a gateway that gives nothing, nonsense, or more than was agreed.
func TestConfigReplyHostile(t *testing.T) {
	t.Parallel()
	reply := func(as ...message.CfgAttribute) *message.CP {
		return &message.CP{Type: message.CfgReply, Attributes: as}
	}
	const ip4 = message.CfgAttrInternalIP4Address
	for name, c := range map[string]struct {
		cp      *message.CP // nil: none
		noChild bool
		code    ike.Code
		address bool // what A is told is about the address
	}{
		"no reply":         {nil, false, ike.CodeAddress, true},
		"empty":            {reply(), false, ike.CodeAddress, true},
		"zero length":      {reply(attr(ip4)), false, ike.CodeAddress, true},
		"nonsense":         {reply(attr(ip4, 1, 2)), false, ike.CodeAddress, true},
		"not one machine":  {reply(attr(ip4, 224, 0, 0, 1)), false, ike.CodeAddress, true},
		"a request":        {&message.CP{Type: message.CfgRequest, Attributes: []message.CfgAttribute{addrAttr(ip4, "10.9.0.1")}}, false, ike.CodeAddress, true},
		"a set":            {&message.CP{Type: message.CfgSet, Attributes: []message.CfgAttribute{addrAttr(ip4, "10.9.0.1")}}, false, ike.CodeAddress, true},
		"another address":  {reply(addrAttr(ip4, "10.9.0.5")), false, ike.CodeTSUnacceptable, false},
		"no CHILD SA":      {reply(addrAttr(ip4, "10.9.0.1")), true, ike.CodeTSUnacceptable, false},
		"outside of limit": {reply(addrAttr(ip4, "172.16.0.1")), false, ike.CodeAddress, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newWatchedPool(dialIn4)
			p := newPair(t, pairOptions{both: psk, eb: withPool(pool), edit: func(p *pair) {
				dialsIn(p)
				p.ca.Request = &ike.ConfigRequest{IPv4: ike.Required}
				p.ca.Children[0].LocalTS = prefix("10.0.0.0/8")
			}})
			p.rewritten(func(ps message.Payloads) message.Payloads {
				ps = slices.DeleteFunc(ps, func(q message.Payload) bool {
					return q.PayloadType() == message.PayloadCP || c.noChild && (q.PayloadType() == message.PayloadSA || q.PayloadType() == message.PayloadTSi || q.PayloadType() == message.PayloadTSr)
				})
				if c.cp != nil {
					ps = append(ps, c.cp)
				}
				if c.noChild {
					ps = append(ps, message.NewNotify(message.NotifyTSUnacceptable))
				}
				return ps
			})
			if err := p.a.Endpoint.Initiate("a-b", "net"); err != nil {
				t.Fatal(err)
			}
			p.w.For(time.Minute)
			if len(p.a.Failed) != 1 || errors.Is(p.a.Failed[0], ike.ErrNoAddress) != c.address || !slices.Contains(p.a.Codes(), c.code) {
				t.Errorf("A was told %v, refused %s, want %s", p.a.Failed, texts(p.a.Refusals), c.code)
			}
			p.empty()
			p.sound()
			if pool.out != 0 {
				t.Errorf("%d leases are left", pool.out)
			}
		})
	}
}

// rewritten has the only IKE_AUTH answer of B say something else, under the right keys.
func (p *pair) rewritten(change func(message.Payloads) message.Payloads) {
	p.w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		if from.Addr() != addrB || msg[18] != 35 || msg[19]&0x20 == 0 {
			return true
		}
		ps := p.a.Endpoint.Peek(msg)
		if ps == nil {
			return true
		}
		p.w.Tap = nil
		_, forged := p.b.Endpoint.Forge(35, 1, true, change(slices.Clone(ps)))
		for _, m := range forged {
			p.w.Deliver(from, to, m)
		}
		return false
	}
}
