// Package esp seals and opens the packets of one security association: ESP (RFC 4303) in tunnel
// mode, in place, without allocating, many packets at a time.
//
// An [Outbound] turns inner IP packets into ESP packets, an [Inbound] turns ESP packets back. Both
// may be used by several goroutines at once; each is one direction of one SA and has one key.
// The package is told keys and limits and nothing else: it knows no peer, no policy, no socket
// and no clock. Limits by time belong to the SA's owner.
//
// Suites: AES-GCM with a 16-octet ICV (RFC 4106), ChaCha20-Poly1305 (RFC 7634), both also with
// implicit IV (RFC 8750), AES-CBC (RFC 3602) with HMAC-SHA2-256/384/512 (RFC 4868). Extended
// sequence numbers (RFC 4303, section 2.2.1) with all of them.
//
// # Buffers
//
// A caller keeps [Outbound.Headroom] octets free in front of the inner packet and
// [Outbound.Tailroom] octets behind it, in the same slice:
//
//	buf:  |<- Headroom ->| inner packet, n octets |<- Tailroom ->|
//	      off-Headroom   off                      off+n
//
// Seal writes the ESP header and the IV into the headroom, padding, trailer and ICV into the
// tailroom, and encrypts where the packet lies. Open does the reverse and needs no room. When
// Open returns an error, the octets it was given no longer mean anything.
//
// # Errors
//
// Everything that a single packet can cause is a preallocated value of errors.go, compared with
// errors.Is or ==. Only [NewOutbound] and [NewInbound] format texts.
package esp
