package suite

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Cipher is an encryption transform with its key length.
type Cipher struct {
	ID      uint16 // EncrAESGCM16, …
	KeyBits int    // key length attribute in bits; 0 where the transform has none (ChaCha20)
}

// Proposal is a set of transforms of our own that may be combined freely, each list strongest
// first. It is made by ParseProposal and not changed afterwards.
type Proposal struct {
	Protocol uint8       // ProtocolIKE or ProtocolESP
	Encr     []Cipher    // all AEAD or none AEAD
	Integ    []uint16    // empty with AEAD
	PRF      []uint16    // IKE only
	KE       []uint16    // IKE: at least one; ESP: empty means without perfect forward secrecy
	ESN      []uint16    // ESP only: ESNYes, ESNNo or both
	AddKE    [7][]uint16 // additional key exchanges 1 to 7 (RFC 9370); KENone in a list makes it optional
}

// Limits of what is parsed.
const (
	maxProposalString = 512 // octets
	maxProposals      = 64
)

// DefaultIKE returns the IKE proposals where a policy names none: AEAD only, SHA-2, groups of at
// least 128 bits of strength (REQUIREMENTS, CHAN-3). What a later quantum computer cannot read is
// tried first: X25519 together with ML-KEM-768; a peer that does not know that takes one of the
// others.
func DefaultIKE() []Proposal {
	return mustParse(ProtocolIKE,
		"aes256gcm16-chacha20poly1305-prfsha384-prfsha512-x25519-mlkem768",
		"aes256gcm16-prfsha384-prfsha512-x25519-ecp384-ecp521-ecp256",
		"chacha20poly1305-prfsha384-prfsha512-prfsha256-x25519-ecp384-ecp521-ecp256",
		"aes128gcm16-prfsha256-prfsha384-x25519-ecp256-ecp384")
}

// DefaultESP returns the ESP proposals where a policy names none: AEAD only, extended sequence
// numbers preferred, and perfect forward secrecy on every rekeying, as DefaultIKE with ML-KEM-768
// first.
func DefaultESP() []Proposal {
	return mustParse(ProtocolESP,
		"aes256gcm16-chacha20poly1305-x25519-mlkem768",
		"aes256gcm16-x25519-ecp384-ecp521-ecp256",
		"chacha20poly1305-x25519-ecp384-ecp521-ecp256",
		"aes128gcm16-x25519-ecp256-ecp384")
}

// mustParse parses the constants above; a test parses them too, so it cannot fail later.
func mustParse(protocol uint8, list ...string) []Proposal {
	ps, err := ParseProposals(protocol, list)
	if err != nil {
		panic(err)
	}
	return ps
}

// ParseProposals parses a list of proposal strings, strongest first. An error says which string.
func ParseProposals(protocol uint8, list []string) ([]Proposal, error) {
	if len(list) == 0 {
		return nil, wrap(ErrProposal, "no %s proposal given; name at least one, for example %q", protocolName(protocol), example(protocol))
	}
	if len(list) > maxProposals {
		return nil, wrap(ErrProposal, "%d %s proposals given, at most %d are possible; several algorithms fit into one", len(list), protocolName(protocol), maxProposals)
	}
	ps := make([]Proposal, 0, len(list))
	for _, s := range list {
		p, err := ParseProposal(protocol, s)
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// ParseProposal parses one proposal string, such as "aes256gcm16-prfsha384-x25519" for IKE or
// "aes256-sha256-x25519-esn" for ESP. Several algorithms of one type may stand in one string:
// "aes256gcm16-aes128gcm16-prfsha384-x25519-ecp384" means any combination, earlier ones
// preferred. An IKE proposal with integrity algorithms and without a PRF takes the PRFs of the
// same hashes; an ESP proposal that names neither "esn" nor "noesn" allows both, preferring
// extended sequence numbers.
//
// Additional key exchanges (RFC 9370) are written "ke1_mlkem768" to "ke7_…", and "ke1_none" beside
// others makes the first one optional. "mlkem768" beside a group is short for "ke1_mlkem768":
// "x25519-mlkem768" is both exchanges, one after the other. In an ESP proposal without groups it is
// the only key exchange; an IKE proposal needs a group, because the key of ML-KEM does not fit into
// IKE_SA_INIT, which has no fragments.
//
// Errors wrap ErrProposal or ErrUnsupported and say what to write.
func ParseProposal(protocol uint8, s string) (Proposal, error) {
	p := Proposal{Protocol: protocol}
	if protocol != ProtocolIKE && protocol != ProtocolESP {
		return Proposal{}, wrap(ErrProposal, "protocol %d; expected %d (IKE) or %d (ESP)", protocol, ProtocolIKE, ProtocolESP)
	}
	if len(s) > maxProposalString {
		return Proposal{}, wrap(ErrProposal, "string of %d octets; at most %d are allowed", len(s), maxProposalString)
	}
	if s == "" {
		return Proposal{}, wrap(ErrProposal, "empty %s proposal; expected something like %q", protocolName(protocol), example(protocol))
	}
	for token := range strings.SplitSeq(s, "-") {
		if err := p.add(token); err != nil {
			return Proposal{}, wrap(err, "in %s proposal %q", protocolName(protocol), s)
		}
	}
	p.complete()
	if err := p.Validate(); err != nil {
		return Proposal{}, err
	}
	return p, nil
}

// add puts one token into its list.
func (p *Proposal) add(token string) error {
	a, ok := byName(token)
	list, name := (*[]uint16)(nil), token
	if n, kem, is := additional(token); is {
		a, ok = kem, kem.name != ""
		if ok {
			list = &p.AddKE[n]
		}
	}
	if !ok {
		return wrap(ErrUnsupported, "%q; known are %s", token, known())
	}
	switch a.typ {
	case TypeENCR:
		c := Cipher{a.id, a.keyBits}
		if slices.Contains(p.Encr, c) {
			return wrap(ErrProposal, "%q stands twice", name)
		}
		p.Encr = append(p.Encr, c)
		return nil
	case TypePRF:
		list = &p.PRF
	case TypeINTEG:
		list = &p.Integ
	case TypeKE:
		if list == nil {
			list = &p.KE
		}
	case TypeESN:
		list = &p.ESN
	}
	if slices.Contains(*list, a.id) {
		return wrap(ErrProposal, "%q stands twice", name)
	}
	*list = append(*list, a.id)
	return nil
}

// additional recognises "ke1_mlkem768" to "ke7_…", and "mlkem768" for the first, and returns the
// index 0 to 6 and the method; its name is empty when the method is unknown.
func additional(token string) (int, algorithm, bool) {
	for _, a := range kemAlgorithms {
		if a.name == token {
			return 0, a, true
		}
	}
	rest, ok := strings.CutPrefix(token, "ke")
	if !ok || len(rest) < 2 || rest[0] < '1' || rest[0] > '7' || rest[1] != '_' {
		return 0, algorithm{}, false
	}
	n, name := int(rest[0]-'1'), rest[2:]
	if name == noneName {
		return n, algorithm{typ: TypeKE, id: KENone, name: noneName}, true
	}
	for _, a := range kemAlgorithms {
		if a.name == name {
			return n, a, true
		}
	}
	if a, ok := byName(name); ok && a.typ == TypeKE {
		return n, a, true
	}
	return n, algorithm{}, true
}

// noneName is the transform NONE of an additional key exchange.
const noneName = "none"

// complete fills in what a string may leave out.
func (p *Proposal) complete() {
	if p.Protocol == ProtocolESP && len(p.KE) == 0 && p.onlyKEM() {
		p.KE, p.AddKE[0] = p.AddKE[0], nil
	}
	if p.Protocol == ProtocolIKE && len(p.PRF) == 0 {
		for _, i := range p.Integ {
			switch i {
			case IntegHMACSHA256128:
				p.PRF = append(p.PRF, PRFHMACSHA256)
			case IntegHMACSHA384192:
				p.PRF = append(p.PRF, PRFHMACSHA384)
			case IntegHMACSHA512256:
				p.PRF = append(p.PRF, PRFHMACSHA512)
			}
		}
	}
	if p.Protocol == ProtocolESP && len(p.ESN) == 0 {
		p.ESN = []uint16{ESNYes, ESNNo}
	}
}

// onlyKEM says whether the first additional key exchange is a KEM and stands alone.
func (p *Proposal) onlyKEM() bool {
	for _, l := range p.AddKE[1:] {
		if len(l) > 0 {
			return false
		}
	}
	return len(p.AddKE[0]) > 0 && !slices.ContainsFunc(p.AddKE[0], func(id uint16) bool { return !isKEM(id) })
}

// Validate checks a Proposal that was not made by ParseProposal: every transform known, and the
// set complete for its protocol (RFC 7296, section 3.3.3). Errors wrap ErrProposal.
func (p Proposal) Validate() error {
	fail := func(format string, args ...any) error {
		return wrap(ErrProposal, "%s proposal %q: %s", protocolName(p.Protocol), p.String(), fmt.Sprintf(format, args...))
	}
	if p.Protocol != ProtocolIKE && p.Protocol != ProtocolESP {
		return wrap(ErrProposal, "protocol %d; expected %d (IKE) or %d (ESP)", p.Protocol, ProtocolIKE, ProtocolESP)
	}
	for t := range p.all {
		if _, ok := byID(t.Type, t.ID, t.KeyBits); !ok {
			return fail("transform %s is not allowed", TransformName(t))
		}
		if p.count(t) > 1 {
			return fail("%s stands twice", TransformName(t))
		}
	}
	if len(p.Encr) == 0 {
		return fail("no encryption algorithm; add one, for example aes256gcm16")
	}
	if p.Protocol == ProtocolIKE && slices.ContainsFunc(p.Encr, func(c Cipher) bool { return isIIV(c.ID) }) {
		return fail("implicit IVs are for ESP only (RFC 8750); write the cipher without iiv")
	}
	aead := isAEAD(p.Encr[0].ID)
	for _, c := range p.Encr[1:] {
		// RFC 7296, section 3.3: combined-mode and other ciphers go into separate proposals.
		if isAEAD(c.ID) != aead {
			return fail("AEAD and other ciphers together; write two proposals")
		}
	}
	switch {
	case aead && len(p.Integ) > 0:
		if p.Protocol == ProtocolIKE {
			return fail("an AEAD cipher takes no integrity algorithm; for the PRF write prfsha384 instead of sha384")
		}
		return fail("an AEAD cipher takes no integrity algorithm; leave it out")
	case !aead && len(p.Integ) == 0:
		return fail("AES-CBC needs an integrity algorithm; add one, for example sha256")
	}
	if err := p.validateKE(fail); err != nil {
		return err
	}
	if p.Protocol == ProtocolESP {
		if len(p.PRF) > 0 {
			return fail("a PRF belongs to IKE proposals only; leave it out")
		}
		if len(p.ESN) == 0 {
			return fail("neither esn nor noesn")
		}
		return nil
	}
	if len(p.ESN) > 0 {
		return fail("esn and noesn belong to ESP proposals only; leave them out")
	}
	if len(p.PRF) == 0 {
		return fail("no PRF; add one, for example prfsha384")
	}
	if len(p.KE) == 0 {
		return fail("no key exchange group; add one, for example x25519")
	}
	return nil
}

// validateKE checks the key exchanges against each other.
func (p Proposal) validateKE(fail func(string, ...any) error) error {
	kems := 0
	for _, id := range p.KE {
		if isKEM(id) {
			kems++
		}
	}
	switch {
	case kems > 0 && p.Protocol == ProtocolIKE:
		return fail("ML-KEM does not fit into IKE_SA_INIT, which has no fragments; write it beside a group, as in x25519-mlkem768")
	case kems > 0 && kems < len(p.KE):
		return fail("ML-KEM and groups as alternatives for the first key exchange; write two proposals")
	case len(p.KE) == 0 && p.Protocol == ProtocolESP && p.hasAddKE():
		return fail("an additional key exchange needs a first one; add one, for example x25519")
	}
	for i, l := range p.AddKE {
		if len(l) == 1 && l[0] == KENone {
			return fail("additional key exchange %d is none; leave it out", i+1)
		}
	}
	return nil
}

// HasAdditionalKE says whether the proposal has additional key exchanges (RFC 9370), optional ones
// among them.
func (p Proposal) HasAdditionalKE() bool { return p.hasAddKE() }

func (p *Proposal) hasAddKE() bool {
	return slices.ContainsFunc(p.AddKE[:], func(l []uint16) bool { return len(l) > 0 })
}

// HasLegacy says whether the proposal has a transform that is kept for old peers only
// (modp2048, modp3072); a status page may warn.
func (p Proposal) HasLegacy() bool {
	for t := range p.all {
		if a, ok := byID(t.Type, t.ID, t.KeyBits); ok && a.legacy {
			return true
		}
	}
	return false
}

// WithoutKE returns the ESP proposal as it is offered in IKE_AUTH, without key exchange: that
// exchange has no KE payload (RFC 7296, section 1.2).
func (p Proposal) WithoutKE() Proposal {
	p.KE, p.AddKE = nil, [7][]uint16{}
	return p
}

// Equal says whether both mean the same in the same order of preference.
func (p Proposal) Equal(q Proposal) bool {
	return p.Protocol == q.Protocol && slices.Equal(p.transforms(), q.transforms())
}

// String returns the canonical string, which ParseProposal reads back to an equal Proposal.
func (p Proposal) String() string {
	var names []string
	for t := range p.all {
		if t.Type == TypeESN && slices.Equal(p.ESN, []uint16{ESNYes, ESNNo}) {
			continue // the default
		}
		names = append(names, TransformName(t))
	}
	return strings.Join(names, "-")
}

// transforms lists all transforms in the order in which they are sent.
func (p *Proposal) transforms() []TransformSpec {
	n := len(p.Encr) + len(p.Integ) + len(p.PRF) + len(p.KE) + len(p.ESN)
	for _, ids := range p.AddKE {
		n += len(ids)
	}
	ts := make([]TransformSpec, 0, n)
	for t := range p.all {
		ts = append(ts, t)
	}
	return ts
}

// all yields all transforms in the order in which they are sent.
func (p *Proposal) all(yield func(TransformSpec) bool) {
	_ = p.each(TypeENCR, yield) && p.each(TypeINTEG, yield) && p.each(TypePRF, yield) && p.each(TypeKE, yield) &&
		p.eachAddKE(yield) && p.each(TypeESN, yield)
}

func (p *Proposal) eachAddKE(yield func(TransformSpec) bool) bool {
	for typ := TypeADDKE1; typ <= TypeADDKE7; typ++ {
		if !p.each(typ, yield) {
			return false
		}
	}
	return true
}

// each yields the transforms of one type, strongest first; false: it was told to stop.
func (p *Proposal) each(typ uint8, yield func(TransformSpec) bool) bool {
	if typ == TypeENCR {
		for _, c := range p.Encr {
			if !yield(TransformSpec{Type: TypeENCR, ID: c.ID, KeyBits: c.KeyBits}) {
				return false
			}
		}
		return true
	}
	for _, id := range p.ids(typ) {
		if !yield(TransformSpec{Type: typ, ID: id}) {
			return false
		}
	}
	return true
}

// ids returns the list of a type other than that of encryption.
func (p *Proposal) ids(typ uint8) []uint16 {
	switch {
	case typ == TypeINTEG:
		return p.Integ
	case typ == TypePRF:
		return p.PRF
	case typ == TypeKE:
		return p.KE
	case typ == TypeESN:
		return p.ESN
	case typ >= TypeADDKE1 && typ <= TypeADDKE7:
		return p.AddKE[typ-TypeADDKE1]
	}
	return nil
}

// count returns how often a transform stands in p.
func (p *Proposal) count(t TransformSpec) (n int) {
	p.each(t.Type, func(o TransformSpec) bool {
		if o == t {
			n++
		}
		return true
	})
	return n
}

func example(protocol uint8) string {
	if protocol == ProtocolESP {
		return "aes256gcm16-x25519"
	}
	return "aes256gcm16-prfsha384-x25519"
}

func known() string {
	var names []string
	for _, a := range slices.Concat(algorithms, kemAlgorithms) {
		names = append(names, a.name)
	}
	return strings.Join(names, " ")
}

// offerNumber is the number of the i-th proposal of an SA payload (RFC 7296, section 3.3.1).
func offerNumber(i int) (uint8, error) {
	if i < 0 || i >= 255 {
		return 0, wrap(ErrProposal, "proposal number %s; at most 255 fit into one SA payload", strconv.Itoa(i+1))
	}
	return uint8(i + 1), nil
}
