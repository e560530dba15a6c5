package pathmtu

import "errors"

// Errors of FragmentIPv4, preallocated because single packets cause them.
var (
	// ErrHeader: not an IPv4 packet, shorter than its header says, or options that overrun it.
	// Drop the packet.
	ErrHeader = errors.New("pathmtu: malformed IPv4 packet")
	// ErrDontFragment: the packet is longer than the MTU and its sender forbids fragmenting. Answer
	// with TooBig.
	ErrDontFragment = errors.New("pathmtu: packet is longer than the MTU and has don't-fragment set")
	// ErrMTU: the MTU has no room for the header and 8 octets. RFC 791: 68 octets always do.
	ErrMTU = errors.New("pathmtu: MTU has no room for an IPv4 header and 8 octets")
)
