package tun

import (
	"encoding/binary"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func TestOnesSum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0x80, 0xfe, 0xff}), 0, 300).Draw(t, "b")
		initial := rapid.Uint16().Draw(t, "initial")
		if got, want := onesSum(b, initial), slowSum(binary.BigEndian.AppendUint16(nil, initial), b); got != want {
			t.Fatalf("%#04x, want %#04x", got, want)
		}
	})
	for n := range 200 { // all ones: every carry there is
		b := make([]byte, n)
		for i := range b {
			b[i] = 0xff
		}
		for _, initial := range []uint16{0, 1, 0xfffe, 0xffff} {
			if got, want := onesSum(b, initial), slowSum(binary.BigEndian.AppendUint16(nil, initial), b); got != want {
				t.Fatalf("%d octets of ones, initial %#x: %#04x, want %#04x", n, initial, got, want)
			}
		}
	}
}

func BenchmarkOnesSum(b *testing.B) {
	for _, n := range []int{20, 64, 512, 1420} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			buf := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				onesSum(buf, 0)
			}
		})
	}
}
