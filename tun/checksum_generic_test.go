//go:build !amd64

package tun

import "testing"

// vectorNames are the sets of instructions that this machine has.
var vectorNames []string

func onlyVector(testing.TB, string) {}
