package suite

import (
	"fmt"
	"slices"
	"strings"
)

// SelectOptions are the circumstances of a choice.
type SelectOptions struct {
	// WithoutKE: the CHILD SA of IKE_AUTH, which has no key exchange. Our groups are ignored and
	// a group in the offer must be NONE (RFC 7296, section 1.2).
	WithoutKE bool

	// PreferKE is the group of the KE payload that came with the offer, 0 if none came. Where
	// our proposal allows it, it is chosen before our own order of groups, which spares an
	// INVALID_KE_PAYLOAD round trip. It never overrides the order of our proposals.
	PreferKE uint16

	// WithoutAddKE: the peer offers additional key exchanges without being able to run them (it did
	// not announce IKE_INTERMEDIATE): what has one that is not optional is not chosen.
	WithoutAddKE bool
}

// Select chooses as responder (RFC 7296, sections 2.7 and 3.3.6). Our own order decides: first
// the proposals, then the algorithms within one. Offers of another protocol are ignored. The
// error is a *NoProposalError, or wraps ErrProposal when one of own is invalid.
func Select(own []Proposal, offered []Offer, opt SelectOptions) (Chosen, error) {
	fail := &NoProposalError{Own: own, Offered: offered, Reasons: make([]string, len(offered))}
	best := make([]int, len(offered)) // how far each offer came, for the most telling reason
	for i, p := range own {
		if err := p.Validate(); err != nil {
			return Chosen{}, err
		}
		if p.Protocol != own[0].Protocol {
			return Chosen{}, wrap(ErrProposal, "own proposals 1 and %d are of different protocols", i+1)
		}
		fail.Protocol = p.Protocol
		for j, o := range offered {
			c, m := match(p, o, opt)
			if m == nil {
				return c, nil
			}
			if fail.Reasons[j] == "" || m.stage > best[j] {
				fail.Reasons[j], best[j] = m.text, m.stage
			}
		}
	}
	return Chosen{}, fail
}

// mismatch says why a pair of proposals does not go together; stage is how far it went.
type mismatch struct {
	stage int
	text  string
}

// match combines one own and one offered proposal.
func match(p Proposal, o Offer, opt SelectOptions) (Chosen, *mismatch) {
	c := Chosen{Protocol: p.Protocol, Number: o.Number, SPI: o.SPI}
	if m := fits(p, o); m != nil {
		return Chosen{}, m
	}
	take := func(stage int, typ uint8, own []TransformSpec) *mismatch {
		offered := o.of(typ)
		for _, t := range own {
			if slices.Contains(offered, t) {
				c.set(t)
				return nil
			}
		}
		return &mismatch{stage, fmt.Sprintf("no common %s: we allow %s, it has %s", kind(typ), names(own), names(offered))}
	}
	// none takes the transform NONE of an optional type where it is offered, nothing where the
	// type is absent.
	none := func(stage int, typ uint8, why string) *mismatch {
		offered := o.of(typ)
		if len(offered) == 0 {
			return nil
		}
		if t := (TransformSpec{Type: typ}); slices.Contains(offered, t) {
			c.set(t)
			return nil
		}
		return &mismatch{stage, fmt.Sprintf("%s, it has only %s", why, names(offered))}
	}

	if m := take(1, TypeENCR, specs(p, TypeENCR)); m != nil {
		return Chosen{}, m
	}
	if isAEAD(c.Encr) {
		if m := none(2, TypeINTEG, "an AEAD cipher goes without integrity algorithm"); m != nil {
			return Chosen{}, m
		}
	} else if m := take(2, TypeINTEG, specs(p, TypeINTEG)); m != nil {
		return Chosen{}, m
	}
	if p.Protocol == ProtocolIKE {
		if m := take(3, TypePRF, specs(p, TypePRF)); m != nil {
			return Chosen{}, m
		}
	}
	for typ := TypeKE; typ <= TypeADDKE7; typ++ {
		if typ == TypeESN {
			continue
		}
		own := specs(p, typ)
		var m *mismatch
		switch {
		case opt.WithoutKE:
			m = none(4, typ, "IKE_AUTH has no key exchange")
		case typ >= TypeADDKE1 && len(own) > 0:
			m = additionalKE(&c, typ, own, o.of(typ), opt)
		case len(own) == 0:
			m = none(4, typ, fmt.Sprintf("we allow no %s", kind(typ)))
		default:
			if t := (TransformSpec{Type: TypeKE, ID: opt.PreferKE}); typ == TypeKE && slices.Contains(own, t) {
				own = append([]TransformSpec{t}, own...)
			}
			m = take(4, typ, own)
		}
		if m != nil {
			return Chosen{}, m
		}
	}
	if p.Protocol == ProtocolESP {
		if m := take(5, TypeESN, specs(p, TypeESN)); m != nil {
			return Chosen{}, m
		}
	}
	return c, nil
}

// additionalKE chooses one additional key exchange. Each must be another method than those before,
// NONE excepted (RFC 9370, section 2.2.1). Where ours may be NONE, the type may be absent.
func additionalKE(c *Chosen, typ uint8, own, offered []TransformSpec, opt SelectOptions) *mismatch {
	optional := TransformSpec{Type: typ}
	if len(offered) == 0 && slices.Contains(own, optional) {
		return nil
	}
	for _, t := range own {
		used := t.ID == c.KE || slices.Contains(c.AddKE[:], t.ID)
		if t != optional && (used || opt.WithoutAddKE) {
			continue
		}
		if slices.Contains(offered, t) {
			c.set(t)
			return nil
		}
	}
	if opt.WithoutAddKE && len(offered) > 0 {
		return &mismatch{4, "the peer does not announce IKE_INTERMEDIATE, which additional key exchanges need"}
	}
	return &mismatch{4, fmt.Sprintf("no common %s that is not used already: we allow %s, it has %s", kind(typ), names(own), names(offered))}
}

// fits checks what needs no algorithm: protocol, SPI, and that every transform type is known and
// belongs to the protocol (RFC 7296, section 3.3.6).
func fits(p Proposal, o Offer) *mismatch {
	if o.Protocol != p.Protocol {
		return &mismatch{0, fmt.Sprintf("is for %s, wanted is %s", protocolName(o.Protocol), protocolName(p.Protocol))}
	}
	if err := checkSPI(o); err != "" {
		return &mismatch{0, err}
	}
	for _, t := range o.Transforms {
		switch {
		case t.Type < TypeENCR || t.Type > TypeADDKE7,
			t.Type == TypePRF && p.Protocol == ProtocolESP,
			t.Type == TypeESN && p.Protocol == ProtocolIKE:
			return &mismatch{0, fmt.Sprintf("transform type %d is not one of %s", t.Type, protocolName(p.Protocol))}
		}
	}
	return nil
}

// checkSPI returns what is wrong with the SPI of a proposal, or nothing.
func checkSPI(o Offer) string {
	zero := !slices.ContainsFunc(o.SPI, func(b byte) bool { return b != 0 })
	switch o.Protocol {
	case ProtocolIKE:
		// RFC 7296, section 3.3.1: 0 octets in the first negotiation, 8 when rekeying.
		if len(o.SPI) != 0 && len(o.SPI) != 8 {
			return fmt.Sprintf("SPI of %d octets, an IKE proposal has 0 or 8", len(o.SPI))
		}
		if len(o.SPI) == 8 && zero {
			return "SPI is zero"
		}
	case ProtocolESP:
		if len(o.SPI) != 4 {
			return fmt.Sprintf("SPI of %d octets, an ESP proposal has 4", len(o.SPI))
		}
		// RFC 4303, section 2.1: 1 to 255 are reserved, 0 is for local use.
		if o.SPI[0] == 0 && o.SPI[1] == 0 && o.SPI[2] == 0 {
			return fmt.Sprintf("SPI %d is reserved, it must be 256 or more", o.SPI[3])
		}
	}
	return ""
}

// Accept checks as initiator that answer is a choice of what was sent: one proposal, with the
// number and protocol of one of ours, and exactly one transform of each type in it, unchanged
// (RFC 7296, sections 2.7 and 3.3.6). Errors wrap ErrAnswer; the exchange must then be ended.
func Accept(sent, answer []Offer) (Chosen, error) {
	if len(answer) != 1 {
		return Chosen{}, wrap(ErrAnswer, "%d proposals came, a responder sends exactly one", len(answer))
	}
	a := answer[0]
	i := slices.IndexFunc(sent, func(o Offer) bool { return o.Number == a.Number })
	if i < 0 {
		return Chosen{}, wrap(ErrAnswer, "proposal number %d was not sent; sent were %d proposals", a.Number, len(sent))
	}
	o := sent[i]
	if a.Protocol != o.Protocol {
		return Chosen{}, wrap(ErrAnswer, "proposal %d is for %s, sent was %s", a.Number, protocolName(a.Protocol), protocolName(o.Protocol))
	}
	if len(a.SPI) != len(o.SPI) {
		return Chosen{}, wrap(ErrAnswer, "SPI of %d octets came, expected %d", len(a.SPI), len(o.SPI))
	}
	if text := checkSPI(a); text != "" {
		return Chosen{}, wrap(ErrAnswer, "%s", text)
	}
	c := Chosen{Protocol: a.Protocol, Number: a.Number, SPI: a.SPI}
	var seen [TypeADDKE7 + 1]bool
	for _, t := range a.Transforms {
		if !slices.Contains(o.Transforms, t) {
			return Chosen{}, wrap(ErrAnswer, "transform %s was not offered; offered was %s", TransformName(t), o)
		}
		if int(t.Type) >= len(seen) {
			return Chosen{}, wrap(ErrAnswer, "transform type %d is unknown", t.Type)
		}
		if seen[t.Type] {
			return Chosen{}, wrap(ErrAnswer, "two transforms of type %d came in %s, expected one", t.Type, a)
		}
		seen[t.Type] = true
		c.set(t)
	}
	for _, t := range o.Transforms {
		if int(t.Type) < len(seen) && !seen[t.Type] && !slices.Contains(o.Transforms, TransformSpec{Type: t.Type}) {
			return Chosen{}, wrap(ErrAnswer, "no %s in %s; offered was %s", kind(t.Type), a, o)
		}
	}
	all := append([]uint16{c.KE}, c.AdditionalKE()...)
	for i, id := range all {
		if slices.Contains(all[:i], id) {
			// RFC 9370, section 2.2.1.
			return Chosen{}, wrap(ErrAnswer, "%s stands twice among the key exchanges of %s", KEName(id), a)
		}
	}
	return c, nil
}

// specs lists our transforms of one type.
func specs(p Proposal, typ uint8) []TransformSpec {
	var ts []TransformSpec
	for _, t := range p.transforms() {
		if t.Type == typ {
			ts = append(ts, t)
		}
	}
	return ts
}

func names(ts []TransformSpec) string {
	if len(ts) == 0 {
		return "none"
	}
	var b strings.Builder
	for i, t := range ts {
		if i == 20 {
			fmt.Fprintf(&b, " and %d more", len(ts)-i)
			break
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(TransformName(t))
	}
	return b.String()
}

func kind(typ uint8) string {
	switch typ {
	case TypeENCR:
		return "encryption algorithm"
	case TypePRF:
		return "PRF"
	case TypeINTEG:
		return "integrity algorithm"
	case TypeKE:
		return "key exchange group"
	case TypeESN:
		return "kind of sequence numbers"
	}
	return "additional key exchange " + typeName(typ)
}
