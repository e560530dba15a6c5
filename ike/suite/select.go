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
	for i := range own {
		p := &own[i]
		if err := p.Validate(); err != nil {
			return Chosen{}, err
		}
		if p.Protocol != own[0].Protocol {
			return Chosen{}, wrap(ErrProposal, "own proposals 1 and %d are of different protocols", i+1)
		}
		for j := range offered {
			m := matcher{p: p, o: &offered[j], opt: opt}
			if m.match() {
				return m.c, nil
			}
		}
	}
	return Chosen{}, noProposal(own, offered, opt)
}

// noProposal says why nothing was chosen. That is found out in a second pass, because most pairs of
// proposals do not go together, and nobody asks why.
func noProposal(own []Proposal, offered []Offer, opt SelectOptions) *NoProposalError {
	fail := &NoProposalError{Own: own, Offered: offered, Reasons: make([]string, len(offered))}
	best := make([]int, len(offered)) // how far each offer came, for the most telling reason
	for i := range own {
		fail.Protocol = own[i].Protocol
		for j := range offered {
			m := matcher{p: &own[i], o: &offered[j], opt: opt, explain: true}
			if !m.match() && (fail.Reasons[j] == "" || m.stage > best[j]) {
				fail.Reasons[j], best[j] = m.text, m.stage
			}
		}
	}
	return fail
}

// matcher combines one own and one offered proposal.
type matcher struct {
	p   *Proposal
	o   *Offer
	opt SelectOptions
	c   Chosen

	// How far it went, and why no further: text only with explain.
	explain bool
	stage   int
	text    string
}

// no is the end of a match.
func (m *matcher) no(stage int, why func() string) bool {
	m.stage = stage
	if m.explain {
		m.text = why()
	}
	return false
}

// match combines the two; false: they do not go together.
func (m *matcher) match() bool {
	p, o := m.p, m.o
	if text := fits(p, o, m.explain); text != "" {
		return m.no(0, func() string { return text })
	}
	m.c = Chosen{Protocol: p.Protocol, Number: o.Number, SPI: o.SPI}
	if !m.take(1, TypeENCR) {
		return false
	}
	if isAEAD(m.c.Encr) {
		if !m.none(2, TypeINTEG, func() string { return "an AEAD cipher goes without integrity algorithm" }) {
			return false
		}
	} else if !m.take(2, TypeINTEG) {
		return false
	}
	if p.Protocol == ProtocolIKE && !m.take(3, TypePRF) {
		return false
	}
	for typ := TypeKE; typ <= TypeADDKE7; typ++ {
		if typ != TypeESN && !m.keyExchange(typ) {
			return false
		}
	}
	return p.Protocol != ProtocolESP || m.take(5, TypeESN)
}

// take chooses the first transform of a type of ours that is offered.
func (m *matcher) take(stage int, typ uint8) bool {
	taken := false
	m.p.each(typ, func(t TransformSpec) bool {
		if m.o.has(t) {
			m.c.set(t)
			taken = true
		}
		return !taken
	})
	return taken || m.no(stage, func() string {
		return fmt.Sprintf("no common %s: we allow %s, it has %s", kind(typ), names(specs(m.p, typ)), names(m.o.of(typ)))
	})
}

// none takes the transform NONE of an optional type where it is offered, nothing where the type is
// absent.
func (m *matcher) none(stage int, typ uint8, why func() string) bool {
	t := TransformSpec{Type: typ}
	switch {
	case !m.o.hasType(typ):
		return true
	case m.o.has(t):
		m.c.set(t)
		return true
	}
	return m.no(stage, func() string { return why() + ", it has only " + names(m.o.of(typ)) })
}

// keyExchange chooses the first key exchange, or one of the additional ones.
func (m *matcher) keyExchange(typ uint8) bool {
	own := m.p.ids(typ)
	switch {
	case m.opt.WithoutKE:
		return m.none(4, typ, func() string { return "IKE_AUTH has no key exchange" })
	case typ >= TypeADDKE1 && len(own) > 0:
		return m.additionalKE(typ, own)
	case len(own) == 0:
		return m.none(4, typ, func() string { return "we allow no " + kind(typ) })
	}
	t := TransformSpec{Type: TypeKE, ID: m.opt.PreferKE}
	if typ == TypeKE && slices.Contains(own, t.ID) && m.o.has(t) {
		m.c.set(t)
		return true
	}
	return m.take(4, typ)
}

// additionalKE chooses one additional key exchange. Each must be another method than those before,
// NONE excepted (RFC 9370, section 2.2.1). Where ours may be NONE, the type may be absent.
func (m *matcher) additionalKE(typ uint8, own []uint16) bool {
	there := m.o.hasType(typ)
	if !there && slices.Contains(own, KENone) {
		return true
	}
	for _, id := range own {
		used := id == m.c.KE || slices.Contains(m.c.AddKE[:], id)
		if id != KENone && (used || m.opt.WithoutAddKE) {
			continue
		}
		if t := (TransformSpec{Type: typ, ID: id}); m.o.has(t) {
			m.c.set(t)
			return true
		}
	}
	if m.opt.WithoutAddKE && there {
		return m.no(4, func() string {
			return "the peer does not announce IKE_INTERMEDIATE, which additional key exchanges need"
		})
	}
	return m.no(4, func() string {
		return fmt.Sprintf("no common %s that is not used already: we allow %s, it has %s", kind(typ), names(specs(m.p, typ)), names(m.o.of(typ)))
	})
}

// fits checks what needs no algorithm: protocol, SPI, and that every transform type is known and
// belongs to the protocol (RFC 7296, section 3.3.6). It returns what is wrong, with explain in
// words, or nothing.
func fits(p *Proposal, o *Offer, explain bool) string {
	say := func(format string, args ...any) string {
		if !explain {
			return "no"
		}
		return fmt.Sprintf(format, args...)
	}
	if o.Protocol != p.Protocol {
		return say("is for %s, wanted is %s", protocolName(o.Protocol), protocolName(p.Protocol))
	}
	if err := checkSPI(*o); err != "" {
		return err
	}
	for _, t := range o.Transforms {
		switch {
		case t.Type < TypeENCR || t.Type > TypeADDKE7,
			t.Type == TypePRF && p.Protocol == ProtocolESP,
			t.Type == TypeESN && p.Protocol == ProtocolIKE:
			return say("transform type %d is not one of %s", t.Type, protocolName(p.Protocol))
		}
	}
	return ""
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
	}
	for _, t := range o.Transforms {
		// The order in which the responder names types means nothing (RFC 7296, section 3.3); the choice
		// has them in ours, so that the same choices are equal.
		if slices.Contains(a.Transforms, t) {
			c.set(t)
		}
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
func specs(p *Proposal, typ uint8) []TransformSpec {
	var ts []TransformSpec
	p.each(typ, func(t TransformSpec) bool {
		ts = append(ts, t)
		return true
	})
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
