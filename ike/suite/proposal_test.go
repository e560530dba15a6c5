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
		{ProtocolIKE, "aes256gcm16-prfsha384-mlkem768", ErrUnsupported, `"mlkem768"`},
		{ProtocolIKE, "aes256gcm16-prfsha384-x25519-ke1_mlkem768", ErrUnsupported, "RFC 9370"},
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
	p, err := ParseHybrid(ProtocolIKE, "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke1_mlkem1024-ke2_ecp384")
	if err != nil {
		t.Fatal(err)
	}
	if !p.HasAdditionalKE() || !slices.Equal(p.AddKE[0], []uint16{KEMLKEM768, KEMLKEM1024}) || !slices.Equal(p.AddKE[1], []uint16{KEECP384}) {
		t.Errorf("%+v", p)
	}
	if q, err := ParseHybrid(ProtocolIKE, p.String()); err != nil || !q.Equal(p) {
		t.Errorf("%s does not read back: %v %v", p, q, err)
	}
	for _, bad := range []string{"ke0_mlkem768", "ke8_mlkem768", "ke1_", "ke1_mlkem512", "ke1_aes256", "ke1mlkem768"} {
		if _, err := ParseHybrid(ProtocolIKE, "aes256gcm16-prfsha384-x25519-"+bad); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := ParseHybrid(ProtocolESP, "aes256gcm16-ke1_mlkem768"); !errors.Is(err, ErrProposal) {
		t.Errorf("without first exchange: %v", err)
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
			if p.HasLegacy() || p.HasAdditionalKE() || len(p.Integ) > 0 || len(p.KE) == 0 {
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
	tokens := some("encr", TypeENCR, func(a algorithm) bool { return isAEAD(a.id) == aead }, 1)
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
