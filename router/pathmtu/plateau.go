package pathmtu

import "sort"

// plateaus are the MTUs that paths are likely to have, rising. It is RFC 1191, section 7.1, with
// the two values of that table that have died out replaced by what is found today: between 1200
// and 1500 lie the tunnels of other people.
var plateaus = []int{
	68,    // RFC 791: what every IPv4 link carries
	296,   // point-to-point links, low delay
	508,   // X.25, ARCNET
	576,   // RFC 791: what every IPv4 host receives
	1006,  // SLIP
	1200,  // RFC 8899, section 5.1.2: what nearly every IPv4 path carries
	1280,  // RFC 8200, section 5: what every IPv6 link carries
	1320,  //
	1350,  //
	1376,  // IPsec in IPsec
	1400,  // mobile networks, tunnels set up with a margin
	1420,  // WireGuard
	1440,  // GRE and IPsec transport mode
	1450,  // VXLAN over IPv4
	1460,  // GRE with key; clouds
	1472,  // IPv6 over PPPoE with 6in4
	1480,  // 6in4, IP in IP
	1492,  // PPPoE, IEEE 802.3
	1500,  // Ethernet
	2002,  // wide-band networks, token ring
	4352,  // FDDI
	8166,  // 16 Mbit/s token ring
	9000,  // jumbo frames
	17914, // token ring
	32000, //
	65535, // the longest IPv4 packet
}

// plateauBelow returns the greatest plateau less than n, or the smallest of all.
func plateauBelow(n int) int {
	return plateaus[max(0, sort.SearchInts(plateaus, n)-1)]
}

// plateauBetween returns the middle one of the plateaus greater than lo and less than hi; 0 when
// there is none.
func plateauBetween(lo, hi int) int {
	i, j := sort.SearchInts(plateaus, lo+1), sort.SearchInts(plateaus, hi)
	if i >= j {
		return 0
	}
	return plateaus[i+(j-i)/2]
}
