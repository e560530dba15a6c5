package suite

import "crypto/subtle"

// SignedOctets returns the octets that AUTH is computed over (RFC 7296, section 2.15):
//
//	RealMessage | NonceData of the other side | prf(SK_p, RestOfIDPayload) | IntAuth
//
// For InitiatorSignedOctets, message is the initiator's IKE_SA_INIT request with its IKE header
// and without non-ESP marker, otherNonce is Nr, skp is SK_pi and idBody is IDi; for
// ResponderSignedOctets they are the response, Ni, SK_pr and IDr. idBody is the ID payload
// without its generic header (type, three reserved octets as received, data). intAuth is empty
// without IKE_INTERMEDIATE (RFC 9242, section 3.3.2). A further round of authentication
// (RFC 4739) takes its own ID payload and is the same otherwise.
func SignedOctets(prf PRF, skp Secret, message, otherNonce, idBody, intAuth []byte) []byte {
	return concat(message, otherNonce, prf.Sum(skp, idBody), intAuth)
}

// IntAuth returns the next link of one direction of IKE_INTERMEDIATE (RFC 9242, section 3.3.2):
// IntAuth_N = prf(SK_p, IntAuth_(N-1) | IntAuth_NA | IntAuth_NP). skp is SK_pi or SK_pr as it was
// when the exchange was protected, previous is empty for the first exchange, a is the message
// from its IKE header to the header of the SK payload with the lengths adjusted as if unencrypted,
// and p is the plaintext of the SK payload.
func IntAuth(prf PRF, skp Secret, previous, a, p []byte) []byte {
	return prf.Sum(skp, previous, a, p)
}

// keyPad is written without a final zero (RFC 7296, section 2.15).
const keyPad = "Key Pad for IKEv2"

// PSKAuth returns the AUTH data of a pre-shared key: prf(prf(PSK, "Key Pad for IKEv2"), octets).
// Both sides use the PSK as it is, octet for octet. Errors wrap ErrKeyLength when it is empty.
func PSKAuth(prf PRF, psk Secret, octets []byte) ([]byte, error) {
	if psk.Len() == 0 {
		return nil, wrap(ErrKeyLength, "the pre-shared key is empty; give both sides the same random one of 32 octets or more")
	}
	padded := NewSecret(prf.Sum(psk, []byte(keyPad)))
	defer padded.Wipe()
	return prf.Sum(padded, octets), nil
}

// VerifyPSK compares AUTH data in constant time with what PSKAuth gives. Errors wrap
// ErrSignature, or ErrKeyLength when the PSK is empty.
func VerifyPSK(prf PRF, psk Secret, octets, authData []byte) error {
	want, err := PSKAuth(prf, psk, octets)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(want, authData) != 1 {
		return wrap(ErrSignature, "AUTH of the pre-shared key differs; check that both sides have the same key and identities")
	}
	return nil
}
