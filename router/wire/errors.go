package wire

import "errors"

var (
	// ErrNoDest says that a [Message] has no Dest.
	ErrNoDest = errors.New("wire: message without destination: make one with NewDest")
	// ErrFamily says that a [Message] for an IPv4 address was given to a socket for IPv6, or the
	// other way round.
	ErrFamily = errors.New("wire: destination is of another IP version than the socket: send by the group of its version")
	// ErrSegment says that a [Message] has a negative segment size or one beyond 65535 octets.
	ErrSegment = errors.New("wire: segment size outside of 0 to 65535 octets")
)
