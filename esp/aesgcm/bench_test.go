package aesgcm

import (
	"fmt"
	"testing"
)

// BenchmarkAEAD compares the implementations with the standard library in one run, in place, with
// ESP's 8 octets of AAD. Each call takes the next of 32 packets, which lie one behind the other as
// those of a super-packet do.
func BenchmarkAEAD(b *testing.B) {
	for _, size := range []int{16, 32} {
		for _, n := range []int{64, 200, 512, 1420, 8192} {
			for _, impl := range usable {
				a, err := newAs(impl, make([]byte, size))
				if err != nil {
					b.Fatal(err)
				}
				var pkts [32][]byte
				stride := 16 + n + TagSize
				arena := make([]byte, 64+len(pkts)*stride+64)[64:]
				for i := range pkts {
					pkts[i] = arena[i*stride:][:stride:stride]
				}
				nonce := make([]byte, NonceSize)
				name := fmt.Sprintf("%d/%d/%s", 8*size, n, a.Accelerated())
				b.Run("Seal/"+name, func(b *testing.B) {
					b.SetBytes(int64(n))
					b.ReportAllocs()
					for i := 0; b.Loop(); i++ {
						p := pkts[i%len(pkts)]
						a.Seal(p[16:16], nonce, p[16:16+n], p[:8])
					}
				})
				b.Run("SealInPlace/"+name, func(b *testing.B) {
					b.SetBytes(int64(n))
					b.ReportAllocs()
					for i := uint64(0); b.Loop(); i++ {
						a.SealInPlace(pkts[i%32][16:], Words{Hi: i}, Words{Lo: i}, 8)
					}
				})
				out := make([]byte, 64+n+64)[64 : 64 : 64+n]
				for _, p := range pkts {
					a.Seal(p[16:16], nonce, p[16:16+n], p[:8])
				}
				b.Run("Open/"+name, func(b *testing.B) {
					b.SetBytes(int64(n))
					b.ReportAllocs()
					for i := 0; b.Loop(); i++ {
						p := pkts[i%len(pkts)]
						// In place a packet could be opened once only.
						if _, err := a.Open(out, nonce, p[16:], p[:8]); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

func BenchmarkNew(b *testing.B) {
	for _, impl := range usable {
		for _, size := range keySizes {
			key := make([]byte, size)
			a, err := newAs(impl, key)
			if err != nil {
				b.Fatal(err)
			}
			b.Run(fmt.Sprintf("%s/%d", a.Accelerated(), 8*size), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := newAs(impl, key); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
