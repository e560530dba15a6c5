package suite

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseProposal(t *testing.T) {
	for _, c := range []struct {
		protocol uint8
		in, out  string // out empty: the same
	}{
		{ProtocolIKE, "aes256gcm16-prfsha384-x25519", ""},
		{ProtocolIKE, "aes128gcm16-prfsha256-ecp256", ""},
		{ProtocolIKE, "aes256-sha256-prfsha256-ecp384", ""},
		{ProtocolIKE, "chacha20poly1305-prfsha256-x25519", ""},
		{ProtocolIKE, "aes256-sha384-ecp521", "aes256-sha384-prfsha384-ecp521"},
		{ProtocolIKE, "aes256-aes128-sha256-sha512-modp2048-modp3072", "aes256-aes128-sha256-sha512-prfsha256-prfsha512-modp2048-modp3072"},
		{ProtocolIKE, "x25519-prfsha512-aes256gcm16", "aes256gcm16-prfsha512-x25519"},
		{ProtocolIKE, "aes256gcm128-prfsha384-curve25519", "aes256gcm16-prfsha384-x25519"},
		{ProtocolESP, "aes256gcm16", ""},
		{ProtocolESP, "aes128gcm16-esn", ""},
		{ProtocolESP, "aes128gcm16-noesn", ""},
		{ProtocolESP, "aes128gcm16-esn-noesn", "aes128gcm16"},
		{ProtocolESP, "aes128gcm16-noesn-esn", ""},
		{ProtocolESP, "chacha20poly1305", ""},
		{ProtocolESP, "aes256-sha256", ""},
		{ProtocolESP, "aes256gcm16-x25519", ""},
	} {
		p, err := ParseProposal(c.protocol, c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		want := c.out
		if want == "" {
			want = c.in
		}
		if p.String() != want {
			t.Errorf("%s: %s, expected %s", c.in, p, want)
		}
		if q, err := ParseProposal(c.protocol, p.String()); err != nil || !q.Equal(p) {
			t.Errorf("%s does not read back: %v %v", p, q, err)
		}
	}
}

func TestParseProposalErrors(t *testing.T) {
	for _, c := range []struct {
		protocol uint8
		in       string
		want     error
		says     string
	}{
		{ProtocolIKE, "", ErrProposal, "empty"},
		{ProtocolIKE, "-", ErrUnsupported, "known are"},
		{ProtocolIKE, "aes256gcm16-prfsha384-x25519-", ErrUnsupported, "known are"},
		{ProtocolIKE, "3des-sha256-ecp256", ErrUnsupported, `"3des"`},
		{ProtocolIKE, "aes256-sha1-prfsha1-modp2048", ErrUnsupported, `"sha1"`},
		{ProtocolIKE, "aes256-sha256-prfsha1-modp2048", ErrUnsupported, `"prfsha1"`},
		{ProtocolIKE, "aes256-sha256-modp1024", ErrUnsupported, `"modp1024"`},
		{ProtocolIKE, "null-sha256-modp2048", ErrUnsupported, `"null"`},
		{ProtocolIKE, "AES256GCM16-prfsha384-x25519", ErrUnsupported, `"AES256GCM16"`},
		{ProtocolIKE, "aes256gcm16-x25519", ErrProposal, "prfsha384"},
		{ProtocolIKE, "aes256gcm16-sha384-x25519", ErrProposal, "instead of sha384"},
		{ProtocolIKE, "aes256gcm16-prfsha384", ErrProposal, "x25519"},
		{ProtocolIKE, "aes256-prfsha384-x25519", ErrProposal, "sha256"},
		{ProtocolIKE, "prfsha384-x25519", ErrProposal, "no encryption"},
		{ProtocolIKE, "aes256gcm16-aes256-sha256-prfsha256-x25519", ErrProposal, "two proposals"},
		{ProtocolIKE, "aes256gcm16-prfsha384-x25519-esn", ErrProposal, "ESP proposals only"},
		{ProtocolIKE, "aes256gcm16-aes256gcm16-prfsha384-x25519", ErrProposal, "twice"},
		{ProtocolIKE, "aes256gcm16-prfsha384-x25519-curve25519", ErrProposal, "twice"},
		{ProtocolIKE, "aes256gcm16-prfsha384-mlkem768", ErrProposal, "x25519"},
		{ProtocolIKE, "aes256gcm16-prfsha384-x25519-ke1_none", ErrProposal, "leave it out"},
		{ProtocolIKE, "aes256gcm16-prfsha384-x25519-mlkem768-ke1_mlkem768", ErrProposal, "twice"},
		{ProtocolESP, "aes256gcm16-ke2_mlkem768", ErrProposal, "first one"},
		{ProtocolIKE, "aes256gcm16iiv-prfsha256-x25519", ErrProposal, "RFC 8750"},
		{ProtocolIKE, "aes256gcm16-chacha20poly1305iiv-prfsha256-x25519", ErrProposal, "RFC 8750"},
		{ProtocolESP, "aes256gcm16-prfsha256", ErrProposal, "IKE proposals only"},
		{ProtocolESP, "aes256", ErrProposal, "sha256"},
		{ProtocolESP, "sha256", ErrProposal, "no encryption"},
		{ProtocolESP, "aes256gcm16-sha256", ErrProposal, "leave it out"},
		{2, "aes256-sha256", ErrProposal, "protocol 2"},
		{ProtocolESP, strings.Repeat("aes256gcm16-", 100), ErrProposal, "at most"},
	} {
		_, err := ParseProposal(c.protocol, c.in)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %v, expected %v with %q", c.in, err, c.want, c.says)
		}
	}
	if _, err := ParseProposals(ProtocolESP, nil); !errors.Is(err, ErrProposal) {
		t.Errorf("empty list: %v", err)
	}
	if _, err := ParseProposals(ProtocolESP, slices.Repeat([]string{"aes256gcm16"}, 65)); !errors.Is(err, ErrProposal) {
		t.Errorf("long list: %v", err)
	}
}

func TestParseHybrid(t *testing.T) {
	p, err := ParseProposal(ProtocolIKE, "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke1_mlkem1024-ke1_none-ke2_ecp384")
	if err != nil {
		t.Fatal(err)
	}
	if !p.HasAdditionalKE() || !slices.Equal(p.AddKE[0], []uint16{KEMLKEM768, KEMLKEM1024, KENone}) || !slices.Equal(p.AddKE[1], []uint16{KEECP384}) {
		t.Errorf("%+v", p)
	}
	if q, err := ParseProposal(ProtocolIKE, p.String()); err != nil || !q.Equal(p) {
		t.Errorf("%s does not read back: %v %v", p, q, err)
	}
	for _, bad := range []string{"ke0_mlkem768", "ke8_mlkem768", "ke1_", "mlkem512", "ke1_mlkem512", "ke1_aes256", "ke1mlkem768"} {
		if _, err := ParseProposal(ProtocolIKE, "aes256gcm16-prfsha384-x25519-"+bad); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for in, want := range map[string]string{
		"aes256gcm16-x25519-mlkem768":       "aes256gcm16-x25519-ke1_mlkem768",
		"aes256gcm16-mlkem768":              "aes256gcm16-mlkem768", // the only one
		"aes256gcm16-mlkem1024-ke2_ecp384":  "",                     // what comes first?
		"aes256gcm16-mlkem768-mlkem1024":    "aes256gcm16-mlkem768-mlkem1024",
		"aes256gcm16-ecp384-ke3_mlkem1024":  "aes256gcm16-ecp384-ke3_mlkem1024",
		"aes256gcm16-x25519-ke1_none":       "",
		"aes256gcm16-x25519-ke8_mlkem768":   "",
		"aes256gcm16-ke1_none-ke1_mlkem768": "",
	} {
		p, err := ParseProposal(ProtocolESP, in)
		if (err == nil) != (want != "") || err == nil && p.String() != want {
			t.Errorf("%s: %s, %v; want %q", in, p, err, want)
		}
	}
}

// TestSelectAdditional: RFC 9370, section 2.2.1.
func TestSelectAdditional(t *testing.T) {
	const base = "aes256gcm16-prfsha384-"
	for _, c := range []struct {
		own, offered, want string
		opt                SelectOptions
	}{
		{"x25519-mlkem768", "x25519-mlkem768", "x25519-ke1_mlkem768", SelectOptions{}},
		{"x25519-mlkem768", "x25519", "", SelectOptions{}},
		{"x25519", "x25519-mlkem768", "", SelectOptions{}},
		{"x25519", "x25519-mlkem768-ke1_none", "x25519", SelectOptions{}},
		{"x25519-mlkem768-ke1_none", "x25519", "x25519", SelectOptions{}},
		{"x25519-mlkem768-ke1_none", "x25519-mlkem1024", "", SelectOptions{}},
		{"x25519-mlkem768-ke1_none", "x25519-mlkem1024-ke1_none", "x25519", SelectOptions{}},
		{"x25519-mlkem768-ke1_none", "x25519-mlkem768-ke1_none", "x25519", SelectOptions{WithoutAddKE: true}},
		{"x25519-mlkem768", "x25519-mlkem768", "", SelectOptions{WithoutAddKE: true}},
		{"x25519-ecp384-ke1_ecp384-ke1_ecp521", "x25519-ecp384-ke1_ecp384-ke1_ecp521", "ecp384-ke1_ecp521", SelectOptions{PreferKE: KEECP384}},
		{"x25519-ke1_mlkem768-ke2_mlkem768", "x25519-ke1_mlkem768-ke2_mlkem768", "", SelectOptions{}},
		{"x25519-ke1_mlkem768-ke2_mlkem768-ke2_mlkem1024", "x25519-ke1_mlkem768-ke2_mlkem768-ke2_mlkem1024", "x25519-ke1_mlkem768-ke2_mlkem1024", SelectOptions{}},
		{"x25519-ke1_mlkem768-ke3_ecp521", "x25519-ke1_mlkem768-ke3_ecp521", "x25519-ke1_mlkem768-ke3_ecp521", SelectOptions{}},
		{"x25519-ke1_mlkem768-ke3_ecp521", "x25519-ke1_mlkem768-ke2_ecp521", "", SelectOptions{}},
	} {
		own, offered := mustParse(ProtocolIKE, base+c.own), mustParse(ProtocolIKE, base+c.offered)
		offers, err := Offers(offered, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Select(own, offers, c.opt)
		if (err == nil) != (c.want != "") || err == nil && got.String() != base+c.want {
			t.Errorf("we allow %s, the peer offers %s: chose %s, %v; want %q", c.own, c.offered, got, err, c.want)
			continue
		}
		if err != nil {
			continue
		}
		if _, err := Accept(offers, []Offer{got.Answer(nil)}); err != nil {
			t.Errorf("our own choice %s is not accepted: %v", got, err)
		}
	}
}

// TestAcceptAdditional: an answer must not use a method twice, nor leave one out.
func TestAcceptAdditional(t *testing.T) {
	offers, err := Offers(mustParse(ProtocolIKE, "aes256gcm16-prfsha384-x25519-ecp384-ke1_mlkem768-ke2_mlkem768-ke2_ecp384-ke3_ecp521-ke3_none"), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer := func(ke ...TransformSpec) []Offer {
		ts := append([]TransformSpec{{TypeENCR, EncrAESGCM16, 256}, {TypePRF, PRFHMACSHA384, 0}}, ke...)
		return []Offer{{Number: 1, Protocol: ProtocolIKE, Transforms: ts}}
	}
	one, two := TransformSpec{TypeKE, KEX25519, 0}, TransformSpec{TypeADDKE1 + 1, KEECP384, 0}
	first := TransformSpec{TypeADDKE1, KEMLKEM768, 0}
	for i, c := range []struct {
		offer []Offer
		ok    bool
	}{
		{answer(one, first, two, TransformSpec{TypeADDKE1 + 2, KENone, 0}), true},
		{answer(one, first, two), true}, // NONE left out
		{answer(two, first, one), true}, // any order
		{answer(one, first, two, TransformSpec{TypeADDKE1 + 2, KEECP521, 0}), true},
		{answer(one, first), false},
		{answer(one, two), false},
		{answer(one, first, TransformSpec{TypeADDKE1 + 1, KEMLKEM768, 0}), false},
		{answer(two, first, TransformSpec{TypeKE, KEECP384, 0}), false},
		{answer(one, first, first, two), false},
		{answer(one, TransformSpec{TypeADDKE1, KEMLKEM1024, 0}, two), false},
		{answer(one, first, two, TransformSpec{TypeADDKE7, KEECP521, 0}), false},
	} {
		_, err := Accept(offers, c.offer)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrAnswer) {
			t.Errorf("answer %d %s: %v", i, c.offer[0], err)
		}
	}
}

// TestDefaults: REQUIREMENTS, CHAN-3: nothing in the default lists is legacy, CBC or below 128
// bits of strength.
func TestDefaults(t *testing.T) {
	for _, list := range [][]Proposal{DefaultIKE(), DefaultESP()} {
		for _, p := range list {
			if err := p.Validate(); err != nil {
				t.Error(err)
			}
			if p.HasLegacy() || len(p.Integ) > 0 || len(p.KE) == 0 {
				t.Errorf("%s is no default", p)
			}
		}
	}
	p := mustParseT(t, ProtocolIKE, "aes256-sha256-modp2048")[0]
	if !p.HasLegacy() {
		t.Error("modp2048 is not marked as legacy")
	}
}

func TestValidateByHand(t *testing.T) {
	good := mustParseT(t, ProtocolIKE, "aes256-sha256-x25519")[0]
	for what, change := range map[string]func(p *Proposal){
		"SHA-1 PRF":      func(p *Proposal) { p.PRF = []uint16{2} },
		"MD5":            func(p *Proposal) { p.Integ = []uint16{1} },
		"no integrity":   func(p *Proposal) { p.Integ = []uint16{IntegNone} },
		"modp1024":       func(p *Proposal) { p.KE = []uint16{2} },
		"KE NONE":        func(p *Proposal) { p.KE = []uint16{KENone} },
		"AES-192":        func(p *Proposal) { p.Encr = []Cipher{{EncrAESCBC, 192}} },
		"AES without it": func(p *Proposal) { p.Encr = []Cipher{{EncrAESCBC, 0}} },
		"null cipher":    func(p *Proposal) { p.Encr = []Cipher{{11, 0}} },
		"twice":          func(p *Proposal) { p.KE = []uint16{KEX25519, KEX25519} },
		"AH":             func(p *Proposal) { p.Protocol = 2 },
		"ML-KEM alone":   func(p *Proposal) { p.KE = []uint16{KEMLKEM768} },
	} {
		p := good
		change(&p)
		if err := p.Validate(); !errors.Is(err, ErrProposal) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := Offers([]Proposal{p}, nil); !errors.Is(err, ErrProposal) {
			t.Errorf("%s offered: %v", what, err)
		}
		if _, err := Select([]Proposal{p}, []Offer{{Number: 1, Protocol: p.Protocol, Transforms: p.transforms()}}, SelectOptions{}); !errors.Is(err, ErrProposal) {
			t.Errorf("%s selected: %v", what, err)
		}
	}
}

// genProposal draws any valid proposal.
func genProposal(t *rapid.T, protocol uint8) Proposal {
	some := func(what string, typ uint8, from func(a algorithm) bool, low int) []string {
		var names []string
		for _, a := range algorithms {
			if a.typ == typ && from(a) {
				names = append(names, a.name)
			}
		}
		names = rapid.Permutation(names).Draw(t, what)
		return names[:rapid.IntRange(low, len(names)).Draw(t, what+" count")]
	}
	aead := rapid.Bool().Draw(t, "aead")
	all := func(algorithm) bool { return true }
	tokens := some("encr", TypeENCR, func(a algorithm) bool { return isAEAD(a.id) == aead && (protocol == ProtocolESP || !isIIV(a.id)) }, 1)
	if !aead {
		tokens = append(tokens, some("integ", TypeINTEG, all, 1)...)
	}
	if protocol == ProtocolIKE {
		tokens = append(tokens, some("prf", TypePRF, all, 1)...)
		tokens = append(tokens, some("ke", TypeKE, all, 1)...)
	} else {
		tokens = append(tokens, some("ke", TypeKE, all, 0)...)
		tokens = append(tokens, some("esn", TypeESN, all, 0)...)
	}
	p, err := ParseProposal(protocol, strings.Join(rapid.Permutation(tokens).Draw(t, "order"), "-"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestProposalRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := genProposal(t, rapid.SampledFrom([]uint8{ProtocolIKE, ProtocolESP}).Draw(t, "protocol"))
		q, err := ParseProposal(p.Protocol, p.String())
		if err != nil || !q.Equal(p) {
			t.Fatalf("%s read back as %s: %v", p, q, err)
		}
	})
}
