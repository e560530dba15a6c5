package suite

import (
	"errors"
	"fmt"
	"strings"
)

// Sentinels; the errors that are returned wrap them and say what was expected and what came.
var (
	// ErrUnsupported: an algorithm that this package does not do.
	ErrUnsupported = errors.New("suite: unsupported algorithm")

	// ErrProposal: a proposal string or Proposal that makes no sense.
	ErrProposal = errors.New("suite: bad proposal")

	// ErrNoProposal: no offered proposal fits ours. The error is a *NoProposalError; the peer
	// is told NO_PROPOSAL_CHOSEN.
	ErrNoProposal = errors.New("suite: no proposal chosen")

	// ErrAnswer: the responder's SA payload is not a choice of what was offered.
	ErrAnswer = errors.New("suite: answer does not fit the offer")

	// ErrPublicValue: the peer's key exchange data has the wrong length or is not a valid
	// public value of its group.
	ErrPublicValue = errors.New("suite: invalid key exchange data")

	// ErrOpen: an SK payload that is too short, or whose integrity check fails, or whose
	// padding is impossible.
	ErrOpen = errors.New("suite: SK payload does not open")

	// ErrIVExhausted: a key has sealed 2^64-1 messages.
	ErrIVExhausted = errors.New("suite: no IV left under this key, rekey")

	// ErrWiped: the keys were wiped.
	ErrWiped = errors.New("suite: keys were wiped")

	// ErrKeyLength: a key has not the length its transform needs.
	ErrKeyLength = errors.New("suite: wrong key length")

	// ErrNonce: a nonce is shorter or longer than RFC 7296, section 2.10 allows.
	ErrNonce = errors.New("suite: bad nonce length")

	// ErrSignature: an AUTH signature does not verify.
	ErrSignature = errors.New("suite: signature does not verify")

	// ErrAuthMethod: an authentication method, signature algorithm or hash that is not allowed.
	ErrAuthMethod = errors.New("suite: authentication method not allowed")

	// ErrPublicKey: a certificate key that must not be used for AUTH.
	ErrPublicKey = errors.New("suite: public key not allowed")
)

// NoProposalError says why nothing was chosen, both sides next to each other.
type NoProposalError struct {
	Protocol uint8
	Own      []Proposal
	Offered  []Offer
	Reasons  []string // one per offered proposal, in the same order
}

// shown is the most offered proposals that an error text holds: a peer can send 255.
const shown = 8

func (e *NoProposalError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "suite: no proposal chosen for %s: we allow ", protocolName(e.Protocol))
	if len(e.Own) == 0 {
		b.WriteString("nothing")
	}
	for i, p := range e.Own {
		if i > 0 {
			b.WriteString(" | ")
		}
		b.WriteString(p.String())
	}
	b.WriteString("; the peer offered ")
	if len(e.Offered) == 0 {
		b.WriteString("nothing")
	}
	for i, o := range e.Offered {
		if i == shown {
			fmt.Fprintf(&b, " | and %d more", len(e.Offered)-shown)
			break
		}
		if i > 0 {
			b.WriteString(" | ")
		}
		b.WriteString(o.String())
		if i < len(e.Reasons) && e.Reasons[i] != "" {
			b.WriteString(" (" + e.Reasons[i] + ")")
		}
	}
	b.WriteString("; allow one of these in the policy, or change the peer")
	return b.String()
}

// Unwrap makes errors.Is(err, ErrNoProposal) true.
func (e *NoProposalError) Unwrap() error { return ErrNoProposal }

// wrap builds an error that is base and says more.
func wrap(base error, format string, args ...any) error {
	return fmt.Errorf("%w: %s", base, fmt.Sprintf(format, args...))
}
