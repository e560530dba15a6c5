// Package chipproto is the protocol between the chip process (wardgate-chip) and its client
// (pkichip): framed messages over a socket pair.
//
// A frame is a length (4 octets, big-endian, of what follows), a version (1 octet), a type
// (1 octet), a request number (4 octets) and fields. A field is a tag (1 octet), a length
// (4 octets) and a value. Tags come in ascending order; only some may be repeated, and each type
// of message has a table of the tags it may and must have. Whatever does not fit is an error, and
// an error ends the conversation: both sides are ours, so there is nothing to be lenient about.
//
// The client sends requests and gets one reply each, in any order; the process also sends events
// on its own accord, with request number 0. The PIN is never part of a message.
package chipproto
