package pathmtu

import "encoding/binary"

// Fragments are the pieces of an IPv4 packet, as a router makes them (RFC 791, section 3.2). It
// refers to the packet that it was made of.
type Fragments struct {
	pkt    []byte // the packet, header and payload
	hl     int    // of the packet, and of its first fragment
	first  int    // payload octets of the first fragment
	each   int    // of the others, but the last
	count  int
	frag   uint16 // flags and offset of the packet
	header [60]byte
	later  int // length of header, which the other fragments have
}

// FragmentIPv4 divides pkt into packets of at most mtu octets. A packet that fits is its only
// fragment; a packet that is itself a fragment is divided further. Options without the copy flag
// are in the first fragment only (RFC 791, section 3.1). Errors: ErrHeader, ErrDontFragment,
// ErrMTU.
//
// Before it is used on packets for an SA whose selectors name ports, mind RFC 4301, section 7:
// the other side has to expect later fragments, which show no ports.
func FragmentIPv4(pkt []byte, mtu int) (f Fragments, err error) {
	u, ok := parse(pkt)
	if !ok || u.v6 {
		return f, ErrHeader
	}
	f.pkt, f.hl, f.count = pkt[:u.end], u.off, 1
	f.frag = binary.BigEndian.Uint16(pkt[6:])
	payload := u.end - u.off
	if u.end <= mtu {
		f.first = payload
		return f, nil
	}
	if f.frag&flagDF != 0 {
		return Fragments{}, ErrDontFragment
	}
	start := int(f.frag&maskOffset) * 8
	if start+payload > maxMTU || f.frag&flagMF != 0 && payload%8 != 0 {
		// It could never be put together: too long (the "ping of death"), or not the last one and
		// yet no multiple of 8 octets.
		return Fragments{}, ErrHeader
	}
	if !f.laterHeader() {
		return Fragments{}, ErrHeader
	}
	f.first, f.each = (mtu-f.hl)&^7, (mtu-f.later)&^7
	if mtu < f.hl+8 {
		return Fragments{}, ErrMTU
	}
	f.count += (payload - f.first + f.each - 1) / f.each
	return f, nil
}

// laterHeader makes the header of the fragments after the first.
func (f *Fragments) laterHeader() bool {
	h, n := f.pkt[:f.hl], ipv4HeaderLen
	copy(f.header[:], h[:n])
	for o := n; o < len(h) && h[o] != optEnd; {
		if h[o] == optNop {
			o++
			continue
		}
		if o+1 >= len(h) {
			return false
		}
		size := int(h[o+1])
		if size < 2 || o+size > len(h) {
			return false
		}
		if h[o]&0x80 != 0 {
			n += copy(f.header[n:], h[o:o+size])
		}
		o += size
	}
	f.later = (n + 3) &^ 3 // what is behind n is zero: end of options
	f.header[0] = 0x40 | byte(f.later/4)
	return true
}

// Count returns the number of fragments, 1 or more.
func (f *Fragments) Count() int { return f.count }

// bounds returns the payload of fragment i and the length of its header.
func (f *Fragments) bounds(i int) (from, to, hl int) {
	payload := len(f.pkt) - f.hl
	if i == 0 {
		return 0, min(f.first, payload), f.hl
	}
	from = f.first + (i-1)*f.each
	return from, min(from+f.each, payload), f.later
}

// Len returns the length in octets of fragment i, 0 ≤ i < Count.
func (f *Fragments) Len(i int) int {
	from, to, hl := f.bounds(i)
	return hl + to - from
}

// Put writes fragment i into dst and returns its length; 0 when dst is too short or there is no
// such fragment.
//
// dst may overlap the packet when the fragments are put from the last to the first, fragment 0
// where the packet lies and each other one at least Len(0) octets further on than the one before
// it. So a packet becomes fragments in the buffer that it came in.
func (f *Fragments) Put(dst []byte, i int) int {
	if i < 0 || i >= f.count {
		return 0
	}
	from, to, hl := f.bounds(i)
	n := hl + to - from
	if len(dst) < n {
		return 0
	}
	copy(dst[hl:n], f.pkt[f.hl+from:f.hl+to]) // before the header, which may lie on it
	if i == 0 {
		copy(dst[:hl], f.pkt[:hl])
	} else {
		copy(dst[:hl], f.header[:hl])
	}
	if f.count == 1 {
		return n
	}
	frag := f.frag + uint16(from/8)
	if i < f.count-1 {
		frag |= flagMF
	}
	binary.BigEndian.PutUint16(dst[2:], uint16(n))
	binary.BigEndian.PutUint16(dst[6:], frag)
	dst[10], dst[11] = 0, 0
	binary.BigEndian.PutUint16(dst[10:], ^sum(dst[:hl], 0))
	return n
}
