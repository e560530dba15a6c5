//go:build !amd64 || purego

package aesgcm

type schedule struct{}

var usable = []implementation{std}

func newSchedule([]byte) *schedule { panic("aesgcm: no code for this machine") }

func hashBlocks(*schedule, *byte, int) Words { panic("aesgcm: no code for this machine") }

func sealVector(_ *schedule, _ int, _, _ *byte, _ int, _, _ Words, _ int, _ *byte) {
	panic("aesgcm: no code for this machine")
}

func openVector(_ *schedule, _ int, _, _ *byte, _ int, _, _ Words, _ int, _ *byte) bool {
	panic("aesgcm: no code for this machine")
}
