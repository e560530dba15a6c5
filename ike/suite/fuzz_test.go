package suite

import (
	"bytes"
	"crypto"
	"errors"
	"strings"
	"testing"
)

func FuzzParseProposal(f *testing.F) {
	for _, s := range []string{"aes256gcm16-prfsha384-x25519", "aes256-sha256-modp2048", "chacha20poly1305-noesn-esn", "aes128-sha512-x25519-ke1_mlkem768", "aes256gcm16-mlkem768", "aes256gcm16-x25519-mlkem768-ke1_none", "-", "ke1_", "ke9_x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, protocol := range []uint8{ProtocolIKE, ProtocolESP} {
			p, err := ParseProposal(protocol, s)
			if err != nil {
				if !errors.Is(err, ErrProposal) && !errors.Is(err, ErrUnsupported) {
					t.Fatalf("untyped error %v", err)
				}
				continue
			}
			q, err := ParseProposal(protocol, p.String())
			if err != nil || !q.Equal(p) {
				t.Fatalf("%q is %s, read back %s, %v", s, p, q, err)
			}
			if _, err := Offers([]Proposal{p}, testSPI); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// fuzzOffers reads offers out of arbitrary octets, seven per transform.
func fuzzOffers(b []byte) []Offer {
	var offers []Offer
	for len(b) >= 4 {
		o := Offer{Number: b[0], Protocol: []uint8{ProtocolIKE, ProtocolESP, b[1]}[b[1]%3]}
		o.SPI = bytes.Repeat([]byte{b[2]}, int([]byte{0, 4, 8, b[3]}[b[3]%4]))
		n := int(b[3] >> 2)
		for b = b[4:]; n > 0 && len(b) >= 4; n-- {
			o.Transforms = append(o.Transforms, TransformSpec{Type: b[0] % 15, ID: uint16(b[1]) % 40, KeyBits: int(int8(b[2])) * 64})
			b = b[4:]
		}
		offers = append(offers, o)
	}
	return offers
}

func FuzzSelect(f *testing.F) {
	f.Add([]byte{1, 0, 0, 16 << 2, 1, 20, 4, 0, 2, 6, 0, 0, 4, 31, 0, 0}, false, uint16(31))
	f.Add([]byte{1, 1, 9, 16<<2 | 1, 1, 20, 4, 0, 5, 1, 0, 0, 5, 0, 0, 0, 4, 19, 0, 0}, true, uint16(0))
	f.Add([]byte{1, 1, 9, 16<<2 | 1, 1, 12, 4, 0, 3, 12, 0, 0, 5, 1, 0, 0}, true, uint16(19))
	own := map[uint8][]Proposal{
		ProtocolIKE: append(DefaultIKE(), mustParse(ProtocolIKE, "aes256-aes128-sha256-sha384-modp2048-ecp256")...),
		ProtocolESP: append(DefaultESP(), mustParse(ProtocolESP, "aes256-sha256", "aes128gcm16-noesn")...),
	}
	f.Fuzz(func(t *testing.T, b []byte, withoutKE bool, prefer uint16) {
		offers := fuzzOffers(b)
		for protocol, ps := range own {
			c, err := Select(ps, offers, SelectOptions{WithoutKE: withoutKE, PreferKE: prefer})
			if err != nil {
				var e *NoProposalError
				if !errors.As(err, &e) || len(err.Error()) > 64<<10 {
					t.Fatalf("%T of %d octets", err, len(err.Error()))
				}
				continue
			}
			// What was chosen is complete, ours, and has keys.
			if _, _, err := keyLengths(c); err != nil {
				t.Fatal(err)
			}
			if withoutKE != (c.KE == KENone) && (withoutKE || protocol == ProtocolIKE) || c.HasAdditionalKE() {
				t.Fatalf("chose %s", c)
			}
			for _, tr := range c.Transforms {
				if _, ok := byID(tr.Type, tr.ID, tr.KeyBits); !ok && tr.ID != 0 {
					t.Fatalf("chose %s", TransformName(tr))
				}
			}
			// The numbers of two offers may be the same here, so look the offer up by content.
			var sent []Offer
			for _, o := range offers {
				if o.Number == c.Number && bytes.Equal(o.SPI, c.SPI) && o.Protocol == c.Protocol {
					sent = append(sent, o)
				}
			}
			ok := false
			for _, o := range sent {
				a, err := Accept([]Offer{o}, []Offer{c.Answer(c.SPI)})
				ok = ok || err == nil && a.String() == c.String()
			}
			if !ok {
				t.Fatalf("the answer %s is not accepted", c)
			}
			if strings.Contains(c.String(), ":") {
				t.Fatalf("chose %s", c)
			}
		}
		if _, err := Accept(offers, offers); err != nil && !errors.Is(err, ErrAnswer) {
			t.Fatal(err)
		}
	})
}

func FuzzVerifySignature(f *testing.F) {
	keys := testKeys(f)
	octets := []byte("octets")
	for _, key := range keys {
		list, err := SignatureSchemes(key.Public(), SignatureHashes())
		if err != nil {
			f.Fatal(err)
		}
		for _, s := range list {
			f.Add(s.Method(), sign(f, s, key, octets))
		}
		if s, err := ChooseSignature(key.Public(), nil); err == nil {
			f.Add(s.Method(), sign(f, s, key, octets))
		}
	}
	f.Add(uint8(14), []byte{})
	f.Add(uint8(14), []byte{0xff, 0x30})
	f.Fuzz(func(t *testing.T, method uint8, data []byte) {
		_ = DescribeAuth(method, data)
		for _, key := range keys {
			// The keys are new in every process, so no input can verify over these octets.
			err := VerifySignature(key.Public(), method, data, []byte("other octets"), SignatureHashes())
			if !errors.Is(err, ErrSignature) && !errors.Is(err, ErrAuthMethod) {
				t.Fatalf("%x: %v", data, err)
			}
		}
	})
}

func FuzzAlgorithmIdentifier(f *testing.F) {
	for id := range algorithmIDs {
		f.Add([]byte(id))
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		if len(der) > 255 {
			return
		}
		a, sig, err := splitAuthData(concat([]byte{byte(len(der))}, der, []byte("sig")))
		if err != nil {
			if !errors.Is(err, ErrAuthMethod) || len(err.Error()) > 2048 {
				t.Fatal(err)
			}
			return
		}
		if string(sig) != "sig" || algorithmIDs[string(der)] != a || canonicalIDs[a] == "" {
			t.Fatalf("%x: %v %q", der, a, sig)
		}
		if h, ok := cryptoHash(a.hash); ok == (a.kind == sigEd25519) || ok && h == crypto.SHA1 {
			t.Fatalf("%v", a)
		}
	})
}

func FuzzOpen(f *testing.F) {
	var ps []*Protector
	aad := []byte("header")
	for i, s := range allSK {
		seal, open := protectors(f, s)
		ps = append(ps, open)
		for _, n := range []int{0, 1, 15, 16, 100} {
			b, err := seal.AppendSealed(nil, aad, make([]byte, n))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(i, b)
			f.Add(i, b[:len(b)-1])
		}
	}
	f.Fuzz(func(t *testing.T, i int, sealed []byte) {
		p := ps[(i%len(ps)+len(ps))%len(ps)]
		before := bytes.Clone(sealed)
		plain, err := p.Open(aad, sealed)
		if !bytes.Equal(before, sealed) {
			t.Fatal("Open changed its input")
		}
		if err != nil {
			if !errors.Is(err, ErrOpen) {
				t.Fatal(err)
			}
			return
		}
		// Only the seeds can open (a forgery is out of a fuzzer's reach): same length, all zero.
		if len(plain) > len(sealed) || bytes.ContainsFunc(plain, func(r rune) bool { return r != 0 }) {
			t.Fatalf("opened %x to %x", sealed, plain)
		}
	})
}

func FuzzPublicValue(f *testing.F) {
	ks := map[uint16]*KeyExchange{}
	for _, id := range []uint16{KEX25519, KEECP256, KEECP384, KEECP521} {
		k, err := NewInitiator(id, testRand(1))
		if err != nil {
			f.Fatal(err)
		}
		ks[id] = k
		f.Add(id, k.Public())
		f.Add(id, make([]byte, len(k.Public())))
	}
	f.Fuzz(func(t *testing.T, id uint16, peer []byte) {
		k := ks[id]
		if k == nil {
			return
		}
		s, err := k.Finish(peer)
		if err != nil {
			if !errors.Is(err, ErrPublicValue) {
				t.Fatal(err)
			}
			return
		}
		if bytes.Count(s.Bytes(), []byte{0}) == s.Len() {
			t.Fatal("all-zero secret")
		}
	})
}
