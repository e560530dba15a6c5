package suite

import (
	"crypto/rand"
	"testing"
)

func BenchmarkKeyExchange(b *testing.B) {
	for _, id := range allKE {
		b.Run(KEName(id), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				k, err := NewInitiator(id, rand.Reader)
				if err != nil {
					b.Fatal(err)
				}
				pub, _, err := Respond(id, rand.Reader, k.Public())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := k.Finish(pub); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDeriveIKEKeys(b *testing.B) {
	c := choose(b, ProtocolIKE, "aes256gcm16-prfsha384-x25519")
	prf := mustPRF(b, c.PRF)
	ni, nr, shared := make([]byte, 32), make([]byte, 32), CopySecret(make([]byte, 32))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DeriveIKEKeys(c, SKEYSEED(prf, shared, ni, nr), ni, nr, [8]byte{1}, [8]byte{2}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkProtector(b *testing.B) {
	for _, s := range allSK {
		seal, open := protectors(b, s)
		aad, plain := make([]byte, 32), make([]byte, 1000)
		b.Run("seal/"+s, func(b *testing.B) {
			b.SetBytes(1000)
			b.ReportAllocs()
			dst := make([]byte, 0, 1200)
			for b.Loop() {
				if _, err := seal.AppendSealed(dst, aad, plain); err != nil {
					b.Fatal(err)
				}
			}
		})
		sealed, err := seal.AppendSealed(nil, aad, plain)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("open/"+s, func(b *testing.B) {
			b.SetBytes(1000)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := open.Open(aad, sealed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSelect(b *testing.B) {
	own := DefaultIKE()
	offers := offer(b, ProtocolIKE, "aes256-sha256-modp2048", "aes128gcm16-prfsha256-ecp256")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Select(own, offers, SelectOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifySignature(b *testing.B) {
	for name, key := range testKeys(b) {
		s, err := ChooseSignature(key.Public(), SignatureHashes())
		if err != nil {
			b.Fatal(err)
		}
		data := sign(b, s, key, []byte("octets"))
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := VerifySignature(key.Public(), s.Method(), data, []byte("octets"), SignatureHashes()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSelectHostile is the most that one datagram of 64 KiB can ask for before anybody is
// authenticated.
func BenchmarkSelectHostile(b *testing.B) {
	own := DefaultIKE()
	var few, many []Offer
	for i := range 255 {
		o := Offer{Number: uint8(i + 1), Protocol: ProtocolIKE}
		for j := range 31 {
			o.Transforms = append(o.Transforms, TransformSpec{TypeKE, uint16(1000 + j), 0})
		}
		o.Transforms[0] = TransformSpec{TypeENCR, EncrAESGCM16, 256}
		o.Transforms[1] = TransformSpec{TypePRF, PRFHMACSHA384, 0}
		many = append(many, o)
	}
	o := Offer{Number: 1, Protocol: ProtocolIKE}
	for i := range 8000 {
		o.Transforms = append(o.Transforms, TransformSpec{TypeENCR, uint16(1000 + i), 128})
	}
	few = append(few, o)
	for name, offers := range map[string][]Offer{"proposals": many, "transforms": few} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Select(own, offers, SelectOptions{}); err == nil {
					b.Fatal("chosen")
				}
			}
		})
	}
}
