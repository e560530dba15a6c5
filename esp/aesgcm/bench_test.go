package aesgcm

import (
	"fmt"
	"testing"
)

// BenchmarkAEAD compares the implementations with the standard library in one run, in place, with
// ESP's 8 octets of AAD. Each call takes the next of 32 packets, as a batch from a queue would.
func BenchmarkAEAD(b *testing.B) {
	for _, size := range []int{16, 32} {
		for _, n := range []int{64, 200, 512, 1420, 8192} {
			for _, impl := range usable {
				a, err := newAs(impl, make([]byte, size))
				if err != nil {
					b.Fatal(err)
				}
				var pkts [32][]byte
				for i := range pkts {
					pkts[i] = make([]byte, 8+n+16)
				}
				nonce := make([]byte, 12)
				name := fmt.Sprintf("%d/%d/%s", 8*size, n, a.Accelerated())
				b.Run("Seal/"+name, func(b *testing.B) {
					b.SetBytes(int64(n))
					b.ReportAllocs()
					for i := 0; b.Loop(); i++ {
						p := pkts[i%len(pkts)]
						a.Seal(p[8:8], nonce, p[8:8+n], p[:8])
					}
				})
				out := make([]byte, 0, n)
				for _, p := range pkts {
					a.Seal(p[8:8], nonce, p[8:8+n], p[:8])
				}
				b.Run("Open/"+name, func(b *testing.B) {
					b.SetBytes(int64(n))
					b.ReportAllocs()
					for i := 0; b.Loop(); i++ {
						p := pkts[i%len(pkts)]
						// In place a packet could be opened once only.
						if _, err := a.Open(out, nonce, p[8:], p[:8]); err != nil {
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
