package main

import (
	"bytes"
	"os"
	"testing"
)

// numbers_gen.go is what the table says.
func TestGeneratedIsCurrent(t *testing.T) {
	want, err := render()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../numbers_gen.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("numbers_gen.go is not what the table says; run: go generate ./ike/message")
	}
}

// A name stands for one number, and the numbers are in order, as IANA lists them.
func TestTable(t *testing.T) {
	types := map[string]bool{}
	for _, e := range table {
		if types[e.Name] {
			t.Errorf("type %s twice", e.Name)
		}
		types[e.Name] = true
		limit := 255
		if e.Base == "uint16" {
			limit = 65535
		}
		names, last := map[string]bool{}, -1
		for _, v := range e.Values {
			if v.Num <= last || v.Num > limit {
				t.Errorf("%s: %s = %d out of order or range", e.Name, v.Go, v.Num)
			}
			last = v.Num
			for _, n := range []string{"go " + v.Go, "IANA " + v.IANA, "short " + v.Short} {
				if names[n] && v.Short != "" {
					t.Errorf("%s: name %q twice", e.Name, n)
				}
				names[n] = true
			}
		}
	}
}
