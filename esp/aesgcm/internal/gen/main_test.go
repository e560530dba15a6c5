package main

import (
	"bytes"
	"os"
	"slices"
	"testing"
)

// The assembly is what this program writes.
func TestGeneratedIsCurrent(t *testing.T) {
	got, err := os.ReadFile("../../seal_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, Generate()) {
		t.Error("seal_amd64.s is not what the generator writes; run: go generate ./esp/aesgcm")
	}
}

// Weaving loses nothing and keeps the order within each stream.
func TestWeave(t *testing.T) {
	for n := range 6 {
		for m := range 6 {
			var a, b, gotA, gotB code
			for i := range n {
				a.add("a%d", i)
			}
			for i := range m {
				b.add("b%d", i)
			}
			for _, s := range weave(a, b) {
				if s[0] == 'a' {
					gotA.add("%s", s)
				} else {
					gotB.add("%s", s)
				}
			}
			if !slices.Equal(gotA, a) || !slices.Equal(gotB, b) {
				t.Errorf("%d and %d: %v", n, m, weave(a, b))
			}
		}
	}
}
