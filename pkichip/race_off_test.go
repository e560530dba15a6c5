//go:build !race

package pkichip_test

const raceEnabled = false
