package tun

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"testing"

	"pgregory.net/rapid"
)

// eachSum runs f with every way of adding that this machine has.
func eachSum(t *testing.T, f func(t *testing.T)) {
	for _, name := range append([]string{"scalar"}, vectorNames...) {
		t.Run(name, func(t *testing.T) {
			onlyVector(t, name)
			f(t)
		})
	}
}

func TestOnesSum(t *testing.T) {
	eachSum(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			// A window into something larger: what lies around it must not count.
			from, n := rapid.IntRange(0, 70).Draw(t, "from"), rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 3000)).Draw(t, "n")
			all := make([]byte, from+n+70)
			seed := rapid.Uint64().Draw(t, "content")
			for i := range all {
				seed = seed*6364136223846793005 + 1442695040888963407
				all[i] = []byte{0, 1, 0x7f, 0x80, 0xfe, 0xff, 0xff, byte(seed >> 40)}[seed>>61]
			}
			b := all[from : from+n]
			initial := rapid.Uint16().Draw(t, "initial")
			if got, want := onesSum(b, initial), slowSum(binary.BigEndian.AppendUint16(nil, initial), b); got != want {
				t.Fatalf("%#04x, want %#04x", got, want)
			}
		})
		for _, v := range []byte{0, 0xff} { // every carry there is, or none
			for n := range 1500 {
				b := make([]byte, n)
				for i := range b {
					b[i] = v
				}
				for _, initial := range []uint16{0, 1, 0xfffe, 0xffff} {
					if got, want := onesSum(b, initial), slowSum(binary.BigEndian.AppendUint16(nil, initial), b); got != want {
						t.Fatalf("%d octets of %#x, initial %#x: %#04x, want %#04x", n, v, initial, got, want)
					}
				}
			}
		}
		for n := range 300 { // each octet counts, in its place
			b := make([]byte, n)
			for i := range b {
				b[i] = 0xa5
				if got, want := onesSum(b, 0), slowSum(b); got != want {
					t.Fatalf("octet %d of %d: %#04x, want %#04x", i, n, got, want)
				}
				b[i] = 0
			}
		}
	})
}

// 64 kB of ones and more: accumulators do not overflow.
func TestOnesSumLong(t *testing.T) {
	eachSum(t, func(t *testing.T) {
		b := make([]byte, 1<<20)
		for i := range b {
			b[i] = byte(0xff - i%2)
		}
		for _, n := range []int{0xffff, 0x10000, 1 << 20} {
			if got, want := onesSum(b[:n], 0xffff), slowSum(b[:n], []byte{0}[:n&1], []byte{0xff, 0xff}); got != want {
				t.Errorf("%d octets: %#04x, want %#04x", n, got, want)
			}
		}
	})
}

func TestChecksum(t *testing.T) {
	d := desc{proto: protoUDP, sp: 1, dp: 2, data: []byte("a datagram"), ttl: 64}
	p := d.build(false)
	if got := Checksum(p[:20], 0); got != 0xffff {
		t.Errorf("IPv4 header: %#04x", got)
	}
	if got := Checksum(p[20:], Checksum(d.pseudo(len(p)-20), 0)); got != 0xffff {
		t.Errorf("UDP: %#04x", got)
	}
	// RFC 1071 section 3: the example
	if got := Checksum([]byte{0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7}, 0); got != 0xddf2 {
		t.Errorf("RFC 1071: %#04x", got)
	}
}

// moveSum moves as copy does and adds up as wordSum does, also where the two slices overlap.
func TestMoveSum(t *testing.T) {
	eachSum(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			n := rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 3000)).Draw(t, "n")
			from := rapid.IntRange(0, 70).Draw(t, "from")
			to := from + rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 3300)).Draw(t, "distance")
			all := make([]byte, to+n+70)
			seed := rapid.Uint64().Draw(t, "content")
			for i := range all {
				seed = seed*6364136223846793005 + 1442695040888963407
				all[i] = byte(seed >> 40)
			}
			want := bytes.Clone(all)
			copy(want[to:], want[from:from+n])
			sum := slowSum(all[from : from+n])
			if got := bits.ReverseBytes16(fold(moveSum(all[to:to+n], all[from:from+n]))); got != sum {
				t.Fatalf("sum %#04x, want %#04x", got, sum)
			}
			if !bytes.Equal(all, want) {
				t.Fatal("moved differently")
			}
		})
	})
}

func BenchmarkOnesSum(b *testing.B) {
	for _, n := range []int{20, 40, 64, 100, 200, 512, 1420} {
		buf := make([]byte, n)
		for _, name := range append([]string{"scalar"}, vectorNames...) {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				onlyVector(b, name)
				b.SetBytes(int64(n))
				for b.Loop() {
					onesSum(buf, 0)
				}
			})
		}
	}
}
