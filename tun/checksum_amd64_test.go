package tun

import "testing"

// vectorNames are the sets of instructions that this machine has.
var vectorNames = func() (names []string) {
	if useAVX2 {
		names = append(names, "AVX2")
	}
	if useAVX512 {
		names = append(names, "AVX-512")
	}
	return names
}()

// onlyVector lets onesSum use the named instructions until the test ends.
func onlyVector(t testing.TB, name string) {
	old2, old512 := useAVX2, useAVX512
	t.Cleanup(func() { useAVX2, useAVX512 = old2, old512 })
	useAVX2, useAVX512 = name == "AVX2", name == "AVX-512"
}
