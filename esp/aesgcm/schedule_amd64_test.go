//go:build !purego

package aesgcm

import (
	"bytes"
	"encoding/hex"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/cpu"
)

// The assembly has these numbers too (internal/gen).
func TestLayout(t *testing.T) {
	var s schedule
	if unsafe.Offsetof(s.powers) != 0 || unsafe.Offsetof(s.keys) != 33*16 || unsafe.Sizeof(s) != 768 {
		t.Fatalf("schedule: powers at %d, keys at %d, %d octets; want 0, 528, 768", unsafe.Offsetof(s.powers), unsafe.Offsetof(s.keys), unsafe.Sizeof(s))
	}
}

// What the package finds out about the processor is what others find out.
func TestDetect(t *testing.T) {
	x := cpu.X86
	wide := x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL && x.HasAVX512VAES && x.HasAVX512VPCLMULQDQ && x.HasBMI2
	if got := slices.Contains(usable, zmm); got != wide {
		t.Errorf("usable %v, but AVX-512 with VAES and VPCLMULQDQ: %t", usable, wide)
	}
	if got := slices.Contains(usable, ymm); got && !(x.HasAVX2 && x.HasAES && x.HasPCLMULQDQ) || wide && !got {
		t.Errorf("usable %v, but AVX2 %t, AES %t, PCLMULQDQ %t", usable, x.HasAVX2, x.HasAES, x.HasPCLMULQDQ)
	}
}

// FIPS 197 appendix A: the last round key of the examples for the three key sizes.
func TestKeyExpansion(t *testing.T) {
	if usable[0] == std {
		return // the expansion needs the instructions it is for
	}
	for _, c := range []struct{ key, last string }{
		{"2b7e151628aed2a6abf7158809cf4f3c", "d014f9a8c9ee2589e13f0cc8b6630ca6"},
		{"8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b", "e98ba06f448c773c8ecc720401002202"},
		{"603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4", "fe4890d1e6188d0b046df344706c631e"},
	} {
		key, _ := hex.DecodeString(c.key)
		s := newSchedule(key)
		if got := hex.EncodeToString(s.keys[len(key)/4+6][:]); got != c.last {
			t.Errorf("key %s: last round key %s, want %s", c.key, got, c.last)
		}
		if !bytes.Equal(append(s.keys[0][:], s.keys[1][:]...)[:len(key)], key) {
			t.Errorf("key %s: the schedule does not begin with it", c.key)
		}
	}
}
