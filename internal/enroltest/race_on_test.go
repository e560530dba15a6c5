//go:build race

package enroltest

const raceEnabled = true
