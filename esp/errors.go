package esp

import "errors"

// Errors of single packets. They are preallocated: an attacker who sends a million bad packets
// costs no allocation. Every drop is also counted, see [Counters].
var (
	// ErrClosed: Close was called, the keys are gone. Drop the packet and look the SA up again.
	ErrClosed = errors.New("esp: SA is closed")

	// ErrHardLimit: the SA has carried all the packets or bytes it may (Limits, or the end of the
	// sequence number space, RFC 4303 section 3.3.3). It never seals or opens again; rekey.
	ErrHardLimit = errors.New("esp: hard limit of packets or bytes reached, SA must be rekeyed")

	// ErrNoRoom: Seal found fewer than Headroom octets before or Tailroom octets after the inner
	// packet, or a range outside the buffer.
	ErrNoRoom = errors.New("esp: buffer has too little room around the inner packet")

	// ErrTooLong: the inner packet is longer than 65535 octets.
	ErrTooLong = errors.New("esp: inner packet longer than 65535 octets")

	// ErrReplay: the sequence number is zero, was seen before, or is older than the window
	// (RFC 4303 section 3.4.3).
	ErrReplay = errors.New("esp: sequence number was seen before or is older than the replay window")

	// ErrAuth: the integrity check value is wrong. Keys differ, or the packet was changed.
	ErrAuth = errors.New("esp: integrity check failed")

	// ErrMalformed: too short or of a wrong length for the suite, SPI of another SA, or, after a
	// right integrity check, padding that is not 1, 2, 3 …, a next header other than IPv4, IPv6 or
	// none, or an inner IP header that does not fit the packet.
	ErrMalformed = errors.New("esp: packet is malformed")

	// ErrDummy: next header 59, a packet made to hide traffic (RFC 4303 section 2.6). It was
	// authentic and is to be discarded; not a failure.
	ErrDummy = errors.New("esp: dummy packet, to be discarded")
)

// ErrParams: NewOutbound or NewInbound was given a suite, a key length or a limit it cannot use.
// The returned error wraps it and says what was expected and what came.
var ErrParams = errors.New("esp: bad SA parameters")
