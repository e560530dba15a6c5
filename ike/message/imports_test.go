package message_test

import (
	gobuild "go/build"
	"testing"
)

// The codec is pure: what it may import is listed, with the reason.
func TestImports(t *testing.T) {
	allowed := map[string]string{
		"encoding/binary": "byte order",
		"encoding/hex":    "printing SPIs and opaque identities",
		"errors":          "typed errors",
		"fmt":             "texts of errors",
		"math":            "limits of integer types",
		"math/bits":       "netmasks",
		"net/netip":       "addresses of selectors; net itself does I/O",
		"slices":          "growing a buffer once",
		"sort":            "binary search",
		"strconv":         "texts",
		"strings":         "texts",
		"unicode":         "which characters print",
		"unicode/utf8":    "peer's text",
	}
	p, err := gobuild.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range p.Imports {
		if allowed[i] == "" {
			t.Errorf("imports %s: the codec does no I/O, no cryptography, and reads no clock", i)
		}
	}
}
