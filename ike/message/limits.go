package message

// Limits on what is accepted from a peer. They are far above what real peers send and keep
// the memory that one datagram can claim within a small multiple of its size.
const (
	// MaxMessage is the largest message, whole or reassembled, in octets (RFC 7383, section 5:
	// more than 64 KB is not recommended; UDP carries no more).
	MaxMessage = 65535
	// MaxPayloads is the largest number of payloads in one chain.
	MaxPayloads = 128
	// MaxProposals is the largest number of proposals in one SA payload.
	MaxProposals = 64
	// MaxTransforms is the largest number of transforms in one proposal.
	MaxTransforms = 128
	// MaxAttributes is the largest number of attributes in one transform.
	MaxAttributes = 8
	// MaxSelectors is the largest number of selectors in one TS payload (a one-octet count).
	MaxSelectors = 255
	// MaxDeleteSPIs is the largest number of SPIs in one Delete payload.
	MaxDeleteSPIs = 1024
	// MaxCfgAttributes is the largest number of attributes in one CP payload.
	MaxCfgAttributes = 128
	// MaxHashAlgorithms is the largest number of entries in SIGNATURE_HASH_ALGORITHMS.
	MaxHashAlgorithms = 64
	// MaxAuthMethods is the largest number of entries in SUPPORTED_AUTH_METHODS.
	MaxAuthMethods = 64
	// MaxFragments is the largest number of fragments that one message may have.
	MaxFragments = 255
	// MinNonce and MaxNonce bound the nonce in octets (RFC 7296, section 3.9).
	MinNonce = 16
	MaxNonce = 256
)
