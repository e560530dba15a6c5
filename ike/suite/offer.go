package suite

import (
	"fmt"
	"slices"
	"strings"
)

// TransformSpec is one transform substructure (RFC 7296, section 3.3.2).
type TransformSpec struct {
	Type    uint8  // TypeENCR, …
	ID      uint16 // IANA number within the type
	KeyBits int    // key length attribute in bits; 0: none; negative: an attribute that is not understood, which makes the transform unacceptable
}

// Offer is one proposal substructure (RFC 7296, section 3.3.1), offered or answered.
type Offer struct {
	Number     uint8
	Protocol   uint8
	SPI        []byte // empty in the first exchange of an IKE SA, 8 octets when it is rekeyed, 4 for ESP
	Transforms []TransformSpec
}

// Offers returns our proposals as they are sent, numbered from 1, each with the same SPI (a copy
// is not made). For IKE_AUTH, map the proposals through Proposal.WithoutKE first, or use
// OffersWithoutKE. Errors wrap ErrProposal.
func Offers(own []Proposal, spi []byte) ([]Offer, error) {
	if len(own) == 0 {
		return nil, wrap(ErrProposal, "no proposal to offer")
	}
	offers := make([]Offer, 0, len(own))
	for i, p := range own {
		if err := p.Validate(); err != nil {
			return nil, err
		}
		n, err := offerNumber(i)
		if err != nil {
			return nil, err
		}
		offers = append(offers, Offer{Number: n, Protocol: p.Protocol, SPI: spi, Transforms: p.transforms()})
	}
	return offers, nil
}

// OffersWithoutKE is Offers for the CHILD SA that is made by IKE_AUTH (RFC 7296, section 1.2).
func OffersWithoutKE(own []Proposal, spi []byte) ([]Offer, error) {
	plain := make([]Proposal, 0, len(own))
	for _, p := range own {
		p = p.WithoutKE()
		// Two proposals that differ in their groups only become one.
		if !slices.ContainsFunc(plain, p.Equal) {
			plain = append(plain, p)
		}
	}
	return Offers(plain, spi)
}

// String returns "#1 aes256gcm16-prfsha384-x25519", transforms in the order they came, shortened
// after 40.
func (o Offer) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "#%d ", o.Number)
	if len(o.Transforms) == 0 {
		b.WriteString("without transforms")
	}
	for i, t := range o.Transforms {
		if i == 40 {
			fmt.Fprintf(&b, "-and-%d-more", len(o.Transforms)-i)
			break
		}
		if i > 0 {
			b.WriteByte('-')
		}
		b.WriteString(TransformName(t))
	}
	return b.String()
}

func (o *Offer) has(t TransformSpec) bool { return slices.Contains(o.Transforms, t) }

func (o *Offer) hasType(typ uint8) bool {
	return slices.ContainsFunc(o.Transforms, func(t TransformSpec) bool { return t.Type == typ })
}

// of returns the acceptable-looking transforms of one type in the order they came.
func (o *Offer) of(typ uint8) []TransformSpec {
	var ts []TransformSpec
	for _, t := range o.Transforms {
		if t.Type == typ {
			ts = append(ts, t)
		}
	}
	return ts
}

// Chosen is one transform of each type: the result of a negotiation.
type Chosen struct {
	Protocol uint8
	Number   uint8  // of the proposal that was chosen
	SPI      []byte // the peer's SPI in it; shares memory with the Offer
	Encr     uint16
	KeyBits  int       // 0 for ChaCha20-Poly1305
	Integ    uint16    // IntegNone with AEAD
	PRF      uint16    // IKE only
	KE       uint16    // KENone: no key exchange
	AddKE    [7]uint16 // additional key exchanges (RFC 9370), KENone where not used
	ESN      bool      // ESP only

	// Transforms is the answer: exactly one of each type that was offered, a NONE included.
	Transforms []TransformSpec
}

// Answer returns the proposal that a responder sends back, with its own SPI.
func (c Chosen) Answer(spi []byte) Offer {
	return Offer{Number: c.Number, Protocol: c.Protocol, SPI: spi, Transforms: c.Transforms}
}

// HasAdditionalKE says whether key exchanges follow the first one.
func (c Chosen) HasAdditionalKE() bool { return c.AddKE != [7]uint16{} }

// AdditionalKE returns the methods of the key exchanges that follow the first one, in their order.
func (c Chosen) AdditionalKE() []uint16 {
	var out []uint16
	for _, id := range c.AddKE {
		if id != KENone {
			out = append(out, id)
		}
	}
	return out
}

// String returns "aes256gcm16-prfsha384-x25519" or "aes256-sha256-noesn"; NONE is left out.
func (c Chosen) String() string {
	var names []string
	for _, t := range c.Transforms {
		if t.ID == 0 && t.Type != TypeESN {
			continue
		}
		names = append(names, TransformName(t))
	}
	return strings.Join(names, "-")
}

// set files one transform under its type.
func (c *Chosen) set(t TransformSpec) {
	switch {
	case t.Type == TypeENCR:
		c.Encr, c.KeyBits = t.ID, t.KeyBits
	case t.Type == TypePRF:
		c.PRF = t.ID
	case t.Type == TypeINTEG:
		c.Integ = t.ID
	case t.Type == TypeKE:
		c.KE = t.ID
	case t.Type == TypeESN:
		c.ESN = t.ID == ESNYes
	case t.Type >= TypeADDKE1 && t.Type <= TypeADDKE7:
		c.AddKE[t.Type-TypeADDKE1] = t.ID
	}
	if c.Transforms == nil {
		c.Transforms = make([]TransformSpec, 0, 4) // what most choices have
	}
	c.Transforms = append(c.Transforms, t)
}
