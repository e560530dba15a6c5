package message

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

// TS is the Traffic Selector payload, TSi or TSr (RFC 7296, section 3.13).
type TS struct {
	Generic
	Responder bool // TSr
	Selectors []Selector
}

// Selector is one traffic selector (RFC 7296, section 3.13.1).
type Selector struct {
	Type               TSType
	Protocol           uint8  // IP protocol, 0 is any
	StartPort, EndPort uint16 // inclusive; 0–65535 is any, 65535–0 is OPAQUE; ICMP: type<<8 | code
	// Start and End are inclusive, of the family that Type says, Start ≤ End.
	Start, End netip.Addr
	// Data is the selector without its first four octets, for types other than address ranges;
	// the octet in the place of the IP protocol stays in Protocol.
	Data []byte
}

// NewTSi returns the initiator's traffic selectors.
func NewTSi(s ...Selector) *TS { return &TS{Selectors: s} }

// NewTSr returns the responder's traffic selectors.
func NewTSr(s ...Selector) *TS { return &TS{Responder: true, Selectors: s} }

// NewSelector returns the selector of an address range. start and end must be of one family
// (IPv4-mapped addresses count as IPv4).
func NewSelector(protocol uint8, startPort, endPort uint16, start, end netip.Addr) Selector {
	s := Selector{Type: TSIPv4AddrRange, Protocol: protocol, StartPort: startPort, EndPort: endPort, Start: start.Unmap(), End: end.Unmap()}
	if s.Start.Is6() {
		s.Type = TSIPv6AddrRange
	}
	return s
}

// IsRange reports whether s is an address range (TS_IPV4_ADDR_RANGE or TS_IPV6_ADDR_RANGE).
func (s Selector) IsRange() bool { return s.addrLen() != 0 }

// IsOpaque reports whether s means packets whose ports are not known (RFC 4301).
func (s Selector) IsOpaque() bool { return s.StartPort == 0xffff && s.EndPort == 0 }

func (s Selector) addrLen() int {
	switch s.Type {
	case TSIPv4AddrRange:
		return 4
	case TSIPv6AddrRange:
		return 16
	default:
		return 0
	}
}

// String returns, for instance, "10.1.0.0-10.1.0.255" or "10.1.0.7-10.1.0.7[6/104-104]".
func (s Selector) String() string {
	if !s.IsRange() {
		return s.Type.String()
	}
	out := s.Start.String() + "-" + s.End.String()
	if s.Protocol == 0 && s.StartPort == 0 && s.EndPort == 0xffff {
		return out
	}
	out += "[" + strconv.Itoa(int(s.Protocol)) + "/"
	if s.IsOpaque() {
		return out + "OPAQUE]"
	}
	return out + strconv.Itoa(int(s.StartPort)) + "-" + strconv.Itoa(int(s.EndPort)) + "]"
}

// PayloadType implements Payload.
func (p *TS) PayloadType() PayloadType {
	if p.Responder {
		return PayloadTSr
	}
	return PayloadTSi
}

func parseTS(g Generic, responder bool, r *reader) *TS {
	p := &TS{Generic: g, Responder: responder}
	count := int(r.u8("the number of selectors"))
	r.take("the reserved octets", 3)
	if r.err == nil && count == 0 {
		r.fail("number of selectors", "at least 1", 0)
	}
	for i := 0; i < count && r.err == nil; i++ {
		s := Selector{Type: TSType(r.u8("a selector")), Protocol: r.u8("a selector")}
		body := r.sub("selector", int(r.u16("a selector")), 4)
		if s.IsRange() {
			parseRange(&s, &body)
		} else {
			s.Data = body.rest()
		}
		if r.err = body.end(); r.err == nil {
			p.Selectors = append(p.Selectors, s)
		}
	}
	return p
}

func parseRange(s *Selector, r *reader) {
	s.StartPort = r.u16("the start port")
	s.EndPort = r.u16("the end port")
	s.Start, _ = netip.AddrFromSlice(r.take("the starting address", s.addrLen()))
	s.End, _ = netip.AddrFromSlice(r.take("the ending address", s.addrLen()))
	if r.err != nil {
		return
	}
	if s.StartPort > s.EndPort && !s.IsOpaque() {
		r.fail("start port", "at most the end port "+strconv.Itoa(int(s.EndPort))+", or 65535-0 for OPAQUE", int(s.StartPort))
	}
	if s.Start.Compare(s.End) > 0 {
		r.fail("starting address above the ending address", "0 such selectors", 1)
	}
}

func (p *TS) appendBody(dst []byte) ([]byte, error) {
	if n := len(p.Selectors); n == 0 || n > MaxSelectors {
		return nil, &EncodeError{Payload: p.PayloadType(), Field: "number of selectors", Want: "1 to 255", Got: n}
	}
	dst = append(dst, byte(len(p.Selectors)), 0, 0, 0)
	for i := range p.Selectors {
		s := &p.Selectors[i]
		start := len(dst)
		dst = append(dst, byte(s.Type), s.Protocol, 0, 0)
		if n := s.addrLen(); n == 0 {
			dst = append(dst, s.Data...)
		} else {
			// AsSlice, not As4: the latter panics on an address of the other family.
			from, to := s.Start.AsSlice(), s.End.AsSlice()
			if len(from) != n || len(to) != n {
				return nil, &EncodeError{Payload: p.PayloadType(), Field: "length of the starting address", Want: itoa(n) + " octets, as of the ending address", Got: len(from)}
			}
			if s.Start.Compare(s.End) > 0 || s.StartPort > s.EndPort && !s.IsOpaque() {
				return nil, &EncodeError{Payload: p.PayloadType(), Field: "empty range of selector", Want: "start not above end", Got: i}
			}
			dst = binary.BigEndian.AppendUint16(dst, s.StartPort)
			dst = binary.BigEndian.AppendUint16(dst, s.EndPort)
			dst = append(append(dst, from...), to...)
		}
		if err := putLength16(dst, start+2, start, p.PayloadType(), "selector length"); err != nil {
			return nil, err
		}
	}
	return dst, nil
}
