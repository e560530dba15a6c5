package pathmtu

import "encoding/binary"

// InnerMTU returns the length in octets of the longest inner packet that fits one outer packet of
// outer octets: outer IP header without options (v6: of IPv6), the UDP header if encap, and ESP,
// for which maxInner says the longest inner packet in so many octets. It returns the number as
// it is, 0 at least, also when it is less than a sender can be asked for; Judge knows that.
//
// AES-GCM in UDP leaves 1198 octets of an IPv6 path of 1280, which is the least it may have: too
// few for inner IPv6 packets of 1280. From 1364 (IPv6) or 1344 octets (IPv4) on, all fit.
func InnerMTU(outer int, v6, encap bool, maxInner func(n int) int) int {
	n := outer - ipv4HeaderLen
	if v6 {
		n = outer - ipv6HeaderLen
	}
	if encap {
		n -= udpHeaderLen
	}
	if n <= 0 {
		return 0
	}
	return min(max(maxInner(n), 0), maxMTU)
}

// Fit is what is to be done with an inner packet.
type Fit uint8

const (
	// Fits: seal it.
	Fits Fit = iota
	// TellSender: drop it and answer with TooBig (RFC 4301, section 8.2.1, cases 1 and 3).
	TellSender
	// FragmentInner: FragmentIPv4, seal the pieces (RFC 4301, section 8.2.1, case 2).
	FragmentInner
	// FragmentOuter: seal it whole, let the outer packet be fragmented on the way: outer IPv4
	// without don't-fragment, outer IPv6 with a fragment header. A link below IPv6 that cannot
	// carry 1280 octets has to fragment below IPv6 (RFC 8200, section 5), a tunnel that is such
	// a link fragments its own packets (RFC 2473, section 7.1 b), and no sender obeys an MTU of
	// less. For IPv4 the same holds of 68 octets.
	FragmentOuter
)

var fits = [...]string{"fits", "tell sender", "fragment inner", "fragment outer"}

func (f Fit) String() string {
	if int(f) < len(fits) {
		return fits[f]
	}
	return "unknown"
}

// Judge says what to do with the inner packet pkt, of n octets, when the inner MTU is mtu octets
// (RFC 4301, section 8.2.1). Of a super-packet n is the length of its longest segment with headers.
// pkt holds at least its IP header; what is no IP packet gets TellSender when it is too long, and
// TooBig answers nothing to it.
func Judge(pkt []byte, n, mtu int) Fit {
	if n <= mtu {
		return Fits
	}
	return judgeTooLong(pkt, n)
}

func judgeTooLong(pkt []byte, n int) Fit {
	if len(pkt) < ipv4HeaderLen {
		return TellSender
	}
	switch pkt[0] >> 4 {
	case 4:
		if n <= MinIPv4 {
			return FragmentOuter
		}
		if binary.BigEndian.Uint16(pkt[6:])&flagDF == 0 {
			return FragmentInner
		}
	case 6:
		if n <= MinIPv6 {
			return FragmentOuter
		}
	}
	return TellSender
}
