package message_test

import (
	"net/netip"
	"testing"

	"wardgate/ike/message"
)

// TestCfgAttributes: the values of RFC 7296, section 3.15.1, both ways, and what is none.
func TestCfgAttributes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a    message.CfgAttribute
		want string
	}{
		{message.CfgAddr(message.CfgAttrInternalIP4Address, netip.MustParseAddr("10.0.0.1")), "\x0a\x00\x00\x01"},
		{message.CfgAddr(message.CfgAttrInternalIP6DNS, netip.MustParseAddr("2001:db8::1")), "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"},
	} {
		if string(c.a.Value) != c.want {
			t.Errorf("%v: %x", c.a.Type, c.a.Value)
		}
		if _, err := c.a.Addr(); err != nil {
			t.Error(err)
		}
		for n := range c.a.Value {
			c.a.Value = c.a.Value[:n]
			if _, err := c.a.Addr(); err == nil {
				t.Errorf("%v of %d octets was taken", c.a.Type, n)
			}
		}
	}
	for _, c := range []struct {
		t      message.CfgAttributeType
		prefix string
		want   string
	}{
		{message.CfgAttrInternalIP4Subnet, "10.1.0.0/16", "\x0a\x01\x00\x00\xff\xff\x00\x00"},
		{message.CfgAttrInternalIP4Subnet, "0.0.0.0/0", "\x00\x00\x00\x00\x00\x00\x00\x00"},
		{message.CfgAttrInternalIP4Subnet, "10.1.0.1/32", "\x0a\x01\x00\x01\xff\xff\xff\xff"},
		{message.CfgAttrInternalIP6Address, "2001:db8::5/64", "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x40"},
		{message.CfgAttrInternalIP6Subnet, "2001:db8::/0", "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	} {
		p := netip.MustParsePrefix(c.prefix)
		a := message.CfgPrefix(c.t, p)
		if string(a.Value) != c.want {
			t.Errorf("%s: %x", c.prefix, a.Value)
		}
		if got, err := a.Prefix(); err != nil || got != p {
			t.Errorf("%s: %v %v", c.prefix, got, err)
		}
		for n := range a.Value {
			short := message.CfgAttribute{Type: c.t, Value: a.Value[:n]}
			if _, err := short.Prefix(); err == nil {
				t.Errorf("%v of %d octets was taken", c.t, n)
			}
		}
	}
	for mask, want := range map[string]int{
		"\xff\xff\xff\xff": 32, "\xff\xff\xff\x00": 24, "\x80\x00\x00\x00": 1, "\x00\x00\x00\x00": 0,
		"\xff\x00\xff\x00": -1, "\x00\x00\x00\x01": -1, "\x7f\xff\xff\xff": -1, "\xff\xff": -1, "": -1,
	} {
		n, err := message.CfgAttribute{Type: message.CfgAttrInternalIP4Netmask, Value: []byte(mask)}.MaskBits()
		if (err == nil) != (want >= 0) || err == nil && n != want {
			t.Errorf("netmask %x: %d %v, want %d", mask, n, err, want)
		}
	}
	bad := message.CfgAttribute{Type: message.CfgAttrInternalIP6Subnet, Value: append(make([]byte, 16), 129)}
	if _, err := bad.Prefix(); err == nil {
		t.Error("a prefix of 129 bits was taken")
	}
	bad = message.CfgAttribute{Type: message.CfgAttrInternalIP4Subnet, Value: []byte{10, 0, 0, 0, 255, 0, 255, 0}}
	if _, err := bad.Prefix(); err == nil {
		t.Error("a netmask with a gap was taken")
	}
}
