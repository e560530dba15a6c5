package message

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// CP is the Configuration payload (RFC 7296, section 3.15).
type CP struct {
	Generic
	Type       CfgType
	Attributes []CfgAttribute
}

// CfgAttribute is one configuration attribute (RFC 7296, section 3.15.1).
type CfgAttribute struct {
	Type  CfgAttributeType // 15 bits
	Value []byte
}

// CfgAddr returns an attribute that is an address: INTERNAL_IP4_ADDRESS, a DNS or DHCP server.
func CfgAddr(t CfgAttributeType, a netip.Addr) CfgAttribute {
	return CfgAttribute{Type: t, Value: a.AsSlice()}
}

// CfgPrefix returns an attribute that is an address with the length of its prefix: a netmask in
// INTERNAL_IP4_SUBNET, an octet in INTERNAL_IP6_ADDRESS and INTERNAL_IP6_SUBNET.
func CfgPrefix(t CfgAttributeType, p netip.Prefix) CfgAttribute {
	v := p.Addr().AsSlice()
	if p.Addr().Is4() {
		v = append(v, Netmask(p.Bits())...)
	} else {
		v = append(v, byte(p.Bits()))
	}
	return CfgAttribute{Type: t, Value: v}
}

// Netmask returns the IPv4 netmask of a prefix of that length.
func Netmask(length int) []byte {
	return binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-min(max(length, 0), 32)))
}

// Addr returns the value as an address of 4 or 16 octets. Error: *SyntaxError.
func (a CfgAttribute) Addr() (netip.Addr, error) {
	want := 16
	switch a.Type {
	case CfgAttrInternalIP4Address, CfgAttrInternalIP4DNS, CfgAttrInternalIP4NBNS, CfgAttrInternalIP4DHCP:
		want = 4
	default:
	}
	if len(a.Value) != want {
		return netip.Addr{}, a.length(itoa(want))
	}
	addr, _ := netip.AddrFromSlice(a.Value)
	return addr, nil
}

// Prefix returns the value as an address with the length of its prefix: 8 octets with a netmask, or
// 17. The bits behind the prefix are kept. Error: *SyntaxError.
func (a CfgAttribute) Prefix() (netip.Prefix, error) {
	var length int
	n := 16
	if a.Type == CfgAttrInternalIP4Subnet {
		n = 4
	}
	switch {
	case n == 4 && len(a.Value) == 8:
		var err error
		if length, err = a.mask(a.Value[4:]); err != nil {
			return netip.Prefix{}, err
		}
	case n == 16 && len(a.Value) == 17:
		if length = int(a.Value[16]); length > 128 {
			return netip.Prefix{}, &SyntaxError{Payload: PayloadCP, Field: "prefix length of " + a.Type.String(), Want: "at most 128", Got: length}
		}
	case n == 4:
		return netip.Prefix{}, a.length("8")
	default:
		return netip.Prefix{}, a.length("17")
	}
	addr, _ := netip.AddrFromSlice(a.Value[:n])
	return netip.PrefixFrom(addr, length), nil
}

// MaskBits returns the number of bits of an INTERNAL_IP4_NETMASK. Error: *SyntaxError, also for a
// mask with a gap.
func (a CfgAttribute) MaskBits() (int, error) {
	if len(a.Value) != 4 {
		return 0, a.length("4")
	}
	return a.mask(a.Value)
}

func (a CfgAttribute) mask(b []byte) (int, error) {
	v := binary.BigEndian.Uint32(b)
	n := bits.LeadingZeros32(^v)
	if v != ^uint32(0)<<(32-n) {
		return 0, &SyntaxError{Payload: PayloadCP, Field: "bits behind the first zero in the netmask of " + a.Type.String(), Want: "none", Got: bits.OnesCount32(v) - n}
	}
	return n, nil
}

func (a CfgAttribute) length(want string) error {
	return &SyntaxError{Payload: PayloadCP, Field: "length of " + a.Type.String(), Want: want + " octets", Got: len(a.Value)}
}

// PayloadType implements Payload.
func (p *CP) PayloadType() PayloadType { return PayloadCP }

func parseCP(g Generic, r *reader) *CP {
	p := &CP{Generic: g, Type: CfgType(r.u8("the CFG type"))}
	r.take("the reserved octets", 3)
	for len(r.b) > 0 && r.err == nil {
		if !r.limit("configuration attributes", len(p.Attributes)+1, MaxCfgAttributes) {
			break
		}
		a := CfgAttribute{Type: CfgAttributeType(r.u16("a configuration attribute") &^ 0x8000)}
		a.Value = r.take("an attribute's value", int(r.u16("a configuration attribute")))
		p.Attributes = append(p.Attributes, a)
	}
	return p
}

func (p *CP) appendBody(dst []byte) ([]byte, error) {
	if n := len(p.Attributes); n > MaxCfgAttributes {
		return nil, &EncodeError{Payload: PayloadCP, Field: "number of attributes", Want: "at most 128", Got: n}
	}
	dst = append(dst, byte(p.Type), 0, 0, 0)
	for _, a := range p.Attributes {
		if a.Type > 0x7fff {
			return nil, &EncodeError{Payload: PayloadCP, Field: "attribute type", Want: "at most 32767", Got: int(a.Type)}
		}
		if len(a.Value) > 0xffff {
			return nil, &EncodeError{Payload: PayloadCP, Field: "attribute length", Want: "at most 65535", Got: len(a.Value)}
		}
		dst = binary.BigEndian.AppendUint16(dst, uint16(a.Type))
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(a.Value)))
		dst = append(dst, a.Value...)
	}
	return dst, nil
}
