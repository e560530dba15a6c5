// Package suite holds the cryptographic transforms of IKEv2 and what is derived with them:
// proposals and their negotiation (RFC 7296, sections 2.7 and 3.3), key exchange, PRF and key
// derivation (2.13 to 2.18), the protection of SK payloads (3.14, RFC 5282, RFC 7634) and the
// computation of AUTH (2.15, RFC 7427, RFC 8420).
//
// It knows no messages and does no I/O: what belongs to the wire is exchanged in plain structs
// with IANA numbers ([Offer], [TransformSpec]) and byte slices. Random octets come from the
// io.Reader of the caller, with the one exception written at [Respond].
//
// # One negotiation
//
//	own, err := suite.ParseProposals(suite.ProtocolIKE, []string{"aes256gcm16-prfsha384-x25519"})
//	chosen, err := suite.Select(own, offers, suite.SelectOptions{}) // responder
//	chosen, err := suite.Accept(sent, answer)                       // initiator
//
// Additional key exchanges (RFC 9370) are part of a proposal, as in "x25519-mlkem768"; which ones were
// chosen says Chosen.AdditionalKE.
//
// # One set of keys
//
//	public, shared, err := suite.Respond(chosen.KE, rand, kei)
//	prf, err := suite.NewPRF(chosen.PRF)
//	seed := suite.SKEYSEED(prf, shared, ni, nr)
//	keys, err := suite.DeriveIKEKeys(chosen, seed, ni, nr, spii, spir)
//	out, in, err := keys.Protectors(chosen, false, rand)
//
// # What is not here
//
// SHA-1, 3DES, MD5, groups below 2048 bits, CBC without integrity, and integrity without
// encryption cannot be named, so nothing can negotiate them.
package suite
