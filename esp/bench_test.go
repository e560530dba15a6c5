package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"testing"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

var benchSizes = []int{64, 512, 1420}

// BenchmarkRaw is the yardstick: the cipher alone, in place, with ESP's 8 octets of AAD.
func BenchmarkRaw(b *testing.B) {
	for _, suite := range []int{0, 2, 3} {
		p := params(suite, false)
		var aead cipher.AEAD
		key := p.Key[:len(p.Key)-4]
		if p.Encr == EncrAESGCM16 {
			block, _ := aes.NewCipher(key)
			aead, _ = cipher.NewGCM(block)
		} else {
			aead, _ = chacha20poly1305.New(key)
		}
		for _, n := range benchSizes {
			buf, nonce, aad := make([]byte, n+16), make([]byte, 12), make([]byte, 8)
			b.Run(fmt.Sprintf("Seal/%s/%d", suites[suite].name, n), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					aead.Seal(buf[:0], nonce, buf[:n], aad)
				}
			})
			sealed := aead.Seal(nil, nonce, make([]byte, n), aad)
			b.Run(fmt.Sprintf("Open/%s/%d", suites[suite].name, n), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					copy(buf, sealed) // Open destroys it; ESP's benchmark copies too
					if _, err := aead.Open(buf[:0], nonce, buf, aad); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

const benchBatch = 32

// BenchmarkVersusRaw runs the cipher alone and the whole of ESP in turn, a batch of 32 packets
// each, and reports the best batch of the one as a percentage of the best of the other: what is
// left of the cipher's speed. Interleaving and the best of many make it hold on a busy machine.
func BenchmarkVersusRaw(b *testing.B) {
	for _, suite := range []int{0, 2, 3} {
		for _, n := range benchSizes {
			b.Run(fmt.Sprintf("%s/%d", suites[suite].name, n), func(b *testing.B) {
				p := params(suite, false)
				o, in := pair(b, p)
				aead, nonce := o.t.aead, make([]byte, 12)
				raw, pkts := make([][]byte, benchBatch), make([]Packet, benchBatch)
				for i := range raw {
					raw[i], pkts[i].Buf = make([]byte, n+200), make([]byte, n+200)
					copy(pkts[i].Buf[o.Headroom():], ipv4(n))
				}
				best := [4]time.Duration{}
				for b.Loop() {
					o.seq.Store(0)
					in.replay.forget()
					for i := range pkts {
						pkts[i].Off, pkts[i].Len, pkts[i].Next = o.Headroom(), n, NextIPv4
					}
					var at [5]time.Time
					at[0] = time.Now()
					for _, r := range raw {
						aead.Seal(r[16:16], nonce, r[16:16+n], r[:8])
					}
					at[1] = time.Now()
					if o.SealBatch(pkts) != benchBatch {
						b.Fatal(pkts[0].Err)
					}
					at[2] = time.Now()
					for _, r := range raw {
						if _, err := aead.Open(r[16:16], nonce, r[16:16+n+16], r[:8]); err != nil {
							b.Fatal(err)
						}
					}
					at[3] = time.Now()
					if in.OpenBatch(pkts) != benchBatch {
						b.Fatal(pkts[0].Err)
					}
					at[4] = time.Now()
					for i := range best {
						if d := at[i+1].Sub(at[i]); best[i] == 0 || d < best[i] {
							best[i] = d
						}
					}
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(100*float64(best[0])/float64(best[1]), "%seal")
				b.ReportMetric(100*float64(best[2])/float64(best[3]), "%open")
				b.ReportMetric(float64(best[1])/benchBatch, "ns/seal")
				b.ReportMetric(float64(best[3])/benchBatch, "ns/open")
			})
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	for i, s := range suites {
		for _, n := range benchSizes {
			b.Run(fmt.Sprintf("%s/%d", s.name, n), func(b *testing.B) {
				o, _ := pair(b, params(i, false))
				buf, off := make([]byte, n+200), o.Headroom()
				copy(buf[off:], ipv4(n))
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					if _, _, err := o.Seal(buf, off, n, NextIPv4); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkSealBatch counts packets: one operation is one packet of a batch of 32.
func BenchmarkSealBatch(b *testing.B) {
	for i, s := range suites {
		for _, n := range benchSizes {
			b.Run(fmt.Sprintf("%s/%d", s.name, n), func(b *testing.B) {
				o, _ := pair(b, params(i, false))
				pkts := make([]Packet, benchBatch)
				for k := range pkts {
					pkts[k].Buf = make([]byte, n+200)
				}
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for k := 0; k < b.N; k += benchBatch {
					for j := range pkts {
						pkts[j].Off, pkts[j].Len, pkts[j].Next = o.Headroom(), n, NextIPv4
					}
					if o.SealBatch(pkts) != benchBatch {
						b.Fatal(pkts[0].Err)
					}
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	benchOpen(b, func(in *Inbound, pkts []Packet) bool {
		for i := range pkts {
			if _, _, _, err := in.Open(pkts[i].Buf, pkts[i].Off, pkts[i].Len); err != nil {
				return false
			}
		}
		return true
	})
}

func BenchmarkOpenBatch(b *testing.B) {
	benchOpen(b, func(in *Inbound, pkts []Packet) bool { return in.OpenBatch(pkts) == len(pkts) })
}

// benchOpen opens the same packets again and again: the window is turned back after each batch,
// and the ciphertext copied as in BenchmarkRaw.
func benchOpen(b *testing.B, open func(*Inbound, []Packet) bool) {
	for i, s := range suites {
		for _, n := range benchSizes {
			b.Run(fmt.Sprintf("%s/%d", s.name, n), func(b *testing.B) {
				o, in := pair(b, params(i, false))
				var sealed [benchBatch][]byte
				for k := range sealed {
					sealed[k] = seal(b, o, ipv4(n), NextIPv4)
				}
				pkts := make([]Packet, benchBatch)
				for k := range pkts {
					pkts[k].Buf = make([]byte, n+200)
				}
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for k := 0; k < b.N; k += benchBatch {
					for j := range pkts {
						pkts[j].Off, pkts[j].Len = 0, copy(pkts[j].Buf, sealed[j])
					}
					if !open(in, pkts) {
						b.Fatal(pkts[0].Err)
					}
					in.replay.forget()
				}
			})
		}
	}
}

// forget makes all packets new again.
func (w *replayWindow) forget() {
	w.top.Store(0)
	if w.ring != nil {
		w.ring[0].Store(0)
	}
}
