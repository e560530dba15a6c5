// Package message turns octets into IKEv2 messages and back (RFC 7296, section 3; RFC 7383).
//
// It does neither cryptography nor I/O. The Encrypted payload is opened and sealed by a
// [Protector] that the caller plugs in.
//
// # Receiving
//
//	m, err := message.Parse(datagram)       // header, payloads in clear, SK or SKF still sealed
//	inner, err := m.Open(protector)         // SK: authentic plaintext and its payloads
//	frag, err := m.OpenFragment(protector)  // SKF: give it to a Reassembler
//	err = message.FormIKEAuthFirstRequest.Check(inner.Payloads)
//
// # Sending
//
//	datagram, err := message.Encode(header, payloads)                  // IKE_SA_INIT
//	datagrams, err := message.Seal(header, payloads, protector, 1232)  // SK, or SKF fragments
//
// # Contract of the codec
//
//   - No function panics or loops on any input, of whatever length. What is wrong comes back as
//     a typed error: [SyntaxError], [LimitError], [VersionError], [UnsupportedCriticalError],
//     [CheckError]; [NotifyFor] says how to answer it.
//   - Nothing is allocated because a length or count field says so: every length is first
//     compared with the octets that are there, every count with a named limit (limits.go).
//   - Parsed values alias the input. Whoever reuses a receive buffer copies the datagram first
//     (one bytes.Clone), and nobody writes to it afterwards. [Message.Raw] gives the octets
//     that the signatures of IKE_SA_INIT cover.
//   - A canonical message (reserved fields zero) encodes again to the identical octets. Fields
//     that "MUST be ignored on receipt" are ignored and not kept, except the reserved octets of
//     ID payloads, because the AUTH payload covers them (RFC 7296, section 2.15).
//   - Values are not safe for concurrent writing; reading them concurrently is fine.
package message

//go:generate go run ./internal/gen
