package suite

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var testSPI = []byte{0xc0, 1, 2, 3}

// offer is what a peer sends for a list of strings.
func offer(tb testing.TB, protocol uint8, list ...string) []Offer {
	tb.Helper()
	var spi []byte
	if protocol == ProtocolESP {
		spi = testSPI
	}
	o, err := Offers(mustParseT(tb, protocol, list...), spi)
	if err != nil {
		tb.Fatal(err)
	}
	return o
}

func with(o Offer, ts ...TransformSpec) []Offer {
	o.Transforms = append(slices.Clone(o.Transforms), ts...)
	return []Offer{o}
}

func without(o Offer, typ uint8) []Offer {
	o.Transforms = slices.DeleteFunc(slices.Clone(o.Transforms), func(t TransformSpec) bool { return t.Type == typ })
	return []Offer{o}
}

func TestSelect(t *testing.T) {
	const ike = "aes256gcm16-prfsha384-x25519"
	ikeOffer := func(list ...string) []Offer { return offer(t, ProtocolIKE, list...) }
	espOffer := func(list ...string) []Offer { return offer(t, ProtocolESP, list...) }
	for _, c := range []struct {
		what   string
		own    []string
		offer  []Offer
		opt    SelectOptions
		want   string // empty: none chosen
		number uint8
		says   string
	}{
		{"same", []string{ike}, ikeOffer(ike), SelectOptions{}, ike, 1, ""},
		{"our order of proposals", []string{ike, "aes128gcm16-prfsha256-ecp256"}, ikeOffer("aes128gcm16-prfsha256-ecp256", ike), SelectOptions{}, ike, 2, ""},
		{"our order of algorithms", []string{"aes256gcm16-aes128gcm16-prfsha512-prfsha384-ecp384-x25519"}, ikeOffer("aes128gcm16-aes256gcm16-prfsha384-prfsha512-x25519-ecp384"), SelectOptions{}, "aes256gcm16-prfsha512-ecp384", 1, ""},
		{"group of the KE payload", []string{"aes256gcm16-prfsha384-ecp384-x25519"}, ikeOffer("aes256gcm16-prfsha384-x25519-ecp384"), SelectOptions{PreferKE: KEX25519}, ike, 1, ""},
		{"group of the KE payload that we refuse", []string{"aes256gcm16-prfsha384-ecp384"}, ikeOffer("aes256gcm16-prfsha384-x25519-ecp384"), SelectOptions{PreferKE: KEX25519}, "aes256gcm16-prfsha384-ecp384", 1, ""},
		{"group preferred but not offered", []string{"aes256gcm16-prfsha384-ecp384-x25519"}, ikeOffer("aes256gcm16-prfsha384-ecp384"), SelectOptions{PreferKE: KEX25519}, "aes256gcm16-prfsha384-ecp384", 1, ""},
		{"CBC", []string{"aes256-sha512-prfsha512-ecp521"}, ikeOffer("aes128-aes256-sha256-sha512-prfsha256-prfsha512-ecp521"), SelectOptions{}, "aes256-sha512-prfsha512-ecp521", 1, ""},
		{"AEAD with INTEG NONE", []string{ike}, with(ikeOffer(ike)[0], TransformSpec{Type: TypeINTEG}), SelectOptions{}, ike, 1, ""},
		{"AEAD with INTEG", []string{ike}, with(ikeOffer(ike)[0], TransformSpec{Type: TypeINTEG, ID: IntegHMACSHA256128}), SelectOptions{}, "", 0, "without integrity"},
		{"CBC with INTEG NONE only", []string{"aes256-sha256-prfsha256-x25519"}, with(without(ikeOffer("aes256-sha256-x25519")[0], TypeINTEG)[0], TransformSpec{Type: TypeINTEG}), SelectOptions{}, "", 0, "integrity algorithm"},
		{"CBC without INTEG", []string{"aes256-sha256-prfsha256-x25519"}, without(ikeOffer("aes256-sha256-x25519")[0], TypeINTEG), SelectOptions{}, "", 0, "integrity algorithm"},
		{"IKE without PRF", []string{ike}, without(ikeOffer(ike)[0], TypePRF), SelectOptions{}, "", 0, "PRF"},
		{"IKE without KE", []string{ike}, without(ikeOffer(ike)[0], TypeKE), SelectOptions{}, "", 0, "key exchange group"},
		{"IKE with KE NONE only", []string{ike}, with(without(ikeOffer(ike)[0], TypeKE)[0], TransformSpec{Type: TypeKE}), SelectOptions{}, "", 0, "key exchange group"},
		{"no transforms", []string{ike}, []Offer{{Number: 1, Protocol: ProtocolIKE}}, SelectOptions{}, "", 0, "without transforms"},
		{"key length differs", []string{ike}, ikeOffer("aes128gcm16-prfsha384-x25519"), SelectOptions{}, "", 0, "aes128gcm16"},
		{"key length missing", []string{ike}, with(without(ikeOffer(ike)[0], TypeENCR)[0], TransformSpec{Type: TypeENCR, ID: EncrAESGCM16}), SelectOptions{}, "", 0, "encryption"},
		{"key length where none belongs", []string{"chacha20poly1305-prfsha384-x25519"}, with(without(ikeOffer("chacha20poly1305-prfsha384-x25519")[0], TypeENCR)[0], TransformSpec{TypeENCR, EncrChaCha20Poly1305, 256}), SelectOptions{}, "", 0, "chacha20poly1305/256"},
		{"attribute that is not understood", []string{ike}, with(without(ikeOffer(ike)[0], TypeENCR)[0], TransformSpec{TypeENCR, EncrAESGCM16, -1}), SelectOptions{}, "", 0, "unknown-attribute"},
		{"transform type that is not understood", []string{ike}, with(ikeOffer(ike)[0], TransformSpec{Type: 13, ID: 1}), SelectOptions{}, "", 0, "type 13"},
		{"ESN in IKE", []string{ike}, with(ikeOffer(ike)[0], TransformSpec{Type: TypeESN}), SelectOptions{}, "", 0, "type 5"},
		{"additional KE that we do not do", []string{ike}, with(ikeOffer(ike)[0], TransformSpec{Type: TypeADDKE1, ID: KEMLKEM768}), SelectOptions{}, "", 0, "ke1_mlkem768"},
		{"additional KE that is optional", []string{ike}, with(ikeOffer(ike)[0], TransformSpec{Type: TypeADDKE1, ID: KEMLKEM768}, TransformSpec{Type: TypeADDKE1}), SelectOptions{}, ike, 1, ""},
		{"ESP for IKE", []string{ike}, espOffer("aes256gcm16"), SelectOptions{}, "", 0, "is for ESP"},
		{"IKE with an SPI of 4", []string{ike}, []Offer{{1, ProtocolIKE, testSPI, ikeOffer(ike)[0].Transforms}}, SelectOptions{}, "", 0, "SPI of 4"},
		{"IKE with a zero SPI", []string{ike}, []Offer{{1, ProtocolIKE, make([]byte, 8), ikeOffer(ike)[0].Transforms}}, SelectOptions{}, "", 0, "zero"},
		{"nothing offered", []string{ike}, nil, SelectOptions{}, "", 0, "offered nothing"},

		{"ESN preferred", []string{"aes256gcm16"}, espOffer("aes256gcm16-noesn-esn"), SelectOptions{}, "aes256gcm16-esn", 1, ""},
		{"ESN not offered", []string{"aes256gcm16"}, espOffer("aes256gcm16-noesn"), SelectOptions{}, "aes256gcm16-noesn", 1, ""},
		{"ESN wanted and not offered", []string{"aes256gcm16-esn"}, espOffer("aes256gcm16-noesn"), SelectOptions{}, "", 0, "sequence numbers"},
		{"ESN type missing", []string{"aes256gcm16"}, without(espOffer("aes256gcm16")[0], TypeESN), SelectOptions{}, "", 0, "sequence numbers"},
		{"PFS wanted, not offered", []string{"aes256gcm16-x25519"}, espOffer("aes256gcm16"), SelectOptions{}, "", 0, "key exchange group"},
		{"PFS offered, not wanted", []string{"aes256gcm16"}, espOffer("aes256gcm16-x25519"), SelectOptions{}, "", 0, "we allow no key exchange"},
		{"PFS optional there, not wanted", []string{"aes256gcm16-esn"}, with(espOffer("aes256gcm16-x25519-esn")[0], TransformSpec{Type: TypeKE}), SelectOptions{}, "aes256gcm16-esn", 1, ""},
		{"IKE_AUTH ignores our groups", []string{"aes256gcm16-x25519-esn"}, espOffer("aes256gcm16-esn"), SelectOptions{WithoutKE: true}, "aes256gcm16-esn", 1, ""},
		{"IKE_AUTH with KE NONE", []string{"aes256gcm16-x25519-esn"}, with(espOffer("aes256gcm16-esn")[0], TransformSpec{Type: TypeKE}), SelectOptions{WithoutKE: true}, "aes256gcm16-esn", 1, ""},
		{"IKE_AUTH with a group", []string{"aes256gcm16-x25519-esn"}, espOffer("aes256gcm16-x25519-esn"), SelectOptions{WithoutKE: true}, "", 0, "no key exchange"},
		{"ESP with a PRF", []string{"aes256gcm16"}, with(espOffer("aes256gcm16")[0], TransformSpec{Type: TypePRF, ID: PRFHMACSHA256}), SelectOptions{}, "", 0, "type 2"},
		{"ESP without SPI", []string{"aes256gcm16"}, []Offer{{1, ProtocolESP, nil, espOffer("aes256gcm16")[0].Transforms}}, SelectOptions{}, "", 0, "SPI of 0"},
		{"ESP with a reserved SPI", []string{"aes256gcm16"}, []Offer{{1, ProtocolESP, []byte{0, 0, 0, 255}, espOffer("aes256gcm16")[0].Transforms}}, SelectOptions{}, "", 0, "reserved"},
		{"second proposal fits", []string{"aes256gcm16-esn"}, append(espOffer("aes256-sha256"), Offer{7, ProtocolESP, testSPI, espOffer("aes256gcm16-esn")[0].Transforms}), SelectOptions{}, "aes256gcm16-esn", 7, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			protocol := ProtocolESP
			if strings.Contains(c.own[0], "prf") || strings.Contains(c.own[0], "sha256-x25519") {
				protocol = ProtocolIKE
			}
			own := mustParseT(t, protocol, c.own...)
			got, err := Select(own, c.offer, c.opt)
			if c.want == "" {
				var e *NoProposalError
				if !errors.As(err, &e) || !errors.Is(err, ErrNoProposal) {
					t.Fatalf("%v %v, expected a NoProposalError", got, err)
				}
				for _, s := range append([]string{c.says}, c.own...) {
					if !strings.Contains(err.Error(), s) {
						t.Errorf("%q does not say %q", err, s)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != c.want || got.Number != c.number {
				t.Errorf("#%d %s, expected #%d %s", got.Number, got, c.number, c.want)
			}
			// The initiator accepts what we answer.
			var spi []byte
			if protocol == ProtocolESP {
				spi = []byte{9, 9, 9, 9}
			}
			acc, err := Accept(c.offer, []Offer{got.Answer(spi)})
			if err != nil || acc.String() != got.String() {
				t.Errorf("Accept: %v %v", acc, err)
			}
		})
	}
}

func TestAccept(t *testing.T) {
	sent := offer(t, ProtocolESP, "aes256gcm16-x25519-ecp384", "aes256-sha256-x25519")
	chosen, err := Select(mustParseT(t, ProtocolESP, "aes256gcm16-ecp384-noesn"), sent, SelectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	good := chosen.Answer([]byte{1, 2, 3, 4})
	c, err := Accept(sent, []Offer{good})
	if err != nil || c.String() != "aes256gcm16-ecp384-noesn" || c.Encr != EncrAESGCM16 || c.KeyBits != 256 || c.KE != KEECP384 || c.ESN {
		t.Fatalf("%+v %v", c, err)
	}
	change := func(f func(o *Offer)) []Offer {
		o := good
		o.Transforms = slices.Clone(o.Transforms)
		f(&o)
		return []Offer{o}
	}
	for what, answer := range map[string][]Offer{
		"none":               nil,
		"two":                {good, good},
		"other number":       change(func(o *Offer) { o.Number = 3 }),
		"number of another":  change(func(o *Offer) { o.Number = 2 }),
		"other protocol":     change(func(o *Offer) { o.Protocol = ProtocolIKE }),
		"no SPI":             change(func(o *Offer) { o.SPI = nil }),
		"reserved SPI":       change(func(o *Offer) { o.SPI = []byte{0, 0, 0, 1} }),
		"type missing":       change(func(o *Offer) { o.Transforms = o.Transforms[1:] }),
		"two of one type":    change(func(o *Offer) { o.Transforms = append(o.Transforms, TransformSpec{Type: TypeKE, ID: KEX25519}) }),
		"not offered":        change(func(o *Offer) { o.Transforms[0].KeyBits = 128 }),
		"NONE not offered":   change(func(o *Offer) { o.Transforms = append(o.Transforms, TransformSpec{Type: TypeINTEG}) }),
		"type not offered":   change(func(o *Offer) { o.Transforms = append(o.Transforms, TransformSpec{Type: 200}) }),
		"KE NONE":            change(func(o *Offer) { o.Transforms[1].ID = KENone }),
		"without transforms": change(func(o *Offer) { o.Transforms = nil }),
	} {
		if _, err := Accept(sent, answer); !errors.Is(err, ErrAnswer) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// RFC 7296, section 3.3: a responder may name the types in any order, as libreswan does. What was chosen is
// the same, and is among the proposals that it came from.
func TestAcceptAnyOrder(t *testing.T) {
	own := mustParseT(t, ProtocolIKE, "aes128-sha256-prfsha256-ecp256")
	sent := offer(t, ProtocolIKE, "aes128-sha256-prfsha256-ecp256")
	want, err := Select(own, sent, SelectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(want.Transforms) {
		answer := want.Answer(nil)
		answer.Transforms = slices.Concat(want.Transforms[i:], want.Transforms[:i])
		got, err := Accept(sent, []Offer{answer})
		if err != nil || !slices.Equal(got.Transforms, want.Transforms) || got.String() != want.String() {
			t.Errorf("%v became %v: %v", answer, got, err)
		}
	}
}

func TestOffers(t *testing.T) {
	own := mustParseT(t, ProtocolESP, "aes256gcm16-x25519", "aes256gcm16-ecp384", "aes256-sha256-x25519")
	o, err := OffersWithoutKE(own, testSPI)
	if err != nil {
		t.Fatal(err)
	}
	if len(o) != 2 || o[0].String() != "#1 aes256gcm16-esn-noesn" || o[1].String() != "#2 aes256-sha256-esn-noesn" {
		t.Errorf("%v", o)
	}
	if len(own[0].KE) != 1 {
		t.Error("own proposal was changed")
	}
	if _, err := Offers(nil, nil); !errors.Is(err, ErrProposal) {
		t.Errorf("nothing to offer: %v", err)
	}
	if _, err := Offers(slices.Repeat(own[:1], 256), testSPI); !errors.Is(err, ErrProposal) {
		t.Errorf("256 proposals: %v", err)
	}
}

// TestNoProposalErrorIsBounded: a peer must not be able to write our log full.
func TestNoProposalErrorIsBounded(t *testing.T) {
	o := Offer{Number: 1, Protocol: ProtocolIKE}
	for i := range 255 {
		o.Transforms = append(o.Transforms, TransformSpec{TypeENCR, uint16(60000 + i), 256})
	}
	_, err := Select(DefaultIKE(), slices.Repeat([]Offer{o}, 255), SelectOptions{})
	if !errors.Is(err, ErrNoProposal) || len(err.Error()) > 16<<10 {
		t.Errorf("%d octets of error", len(err.Error()))
	}
}

// modelSelect is Select by trying every combination, slow and obviously right, for proposals of
// our own kind without NONE.
func modelSelect(own, offered []Proposal) string {
	for _, p := range own {
		for _, q := range offered {
			if len(p.KE) == 0 != (len(q.KE) == 0) || len(p.Integ) == 0 != (len(q.Integ) == 0) {
				continue
			}
			var names []string
			for typ := TypeENCR; typ <= TypeESN; typ++ {
				for _, a := range specs(&p, typ) {
					if slices.Contains(specs(&q, typ), a) {
						names = append(names, TransformName(a))
						break
					}
				}
			}
			need := 0
			for typ := TypeENCR; typ <= TypeESN; typ++ {
				if len(specs(&p, typ)) > 0 {
					need++
				}
			}
			if len(names) == need {
				slices.Sort(names)
				return strings.Join(names, "-")
			}
		}
	}
	return ""
}

func TestSelectModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		protocol := rapid.SampledFrom([]uint8{ProtocolIKE, ProtocolESP}).Draw(t, "protocol")
		list := func(what string) []Proposal {
			n := rapid.IntRange(1, 3).Draw(t, what)
			var ps []Proposal
			for range n {
				ps = append(ps, genProposal(t, protocol))
			}
			return ps
		}
		own, theirs := list("own"), list("theirs")
		var spi []byte
		if protocol == ProtocolESP {
			spi = testSPI
		}
		offers, err := Offers(theirs, spi)
		if err != nil {
			t.Fatal(err)
		}
		want := modelSelect(own, theirs)
		c, err := Select(own, offers, SelectOptions{})
		got := ""
		if err == nil {
			names := strings.Split(c.String(), "-")
			slices.Sort(names)
			got = strings.Join(names, "-")
			if _, err := Accept(offers, []Offer{c.Answer(spi)}); err != nil {
				t.Fatalf("our answer is refused: %v", err)
			}
		}
		if got != want {
			t.Fatalf("chose %q, expected %q (%v)", got, want, err)
		}
	})
}
