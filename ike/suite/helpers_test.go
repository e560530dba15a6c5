package suite

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// unhexT decodes hexadecimal test data of either case.
func unhexT(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		tb.Fatalf("bad hexadecimal %q: %v", s, err)
	}
	return b
}

// hexBytes is a JSON string of hexadecimal digits.
type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	d, err := hex.DecodeString(s)
	*h = d
	return err
}

// testPRF also knows SHA-1, which CAVS and ACVP use and which nothing else can reach.
func testPRF(tb testing.TB, name string) PRF {
	tb.Helper()
	switch strings.NewReplacer("SHA2-", "SHA-").Replace(name) {
	case "SHA-1":
		return PRF{2, sha1.Size, hmacPool(func() hash.Hash { return sha1.New() })}
	case "SHA-256":
		return mustPRF(tb, PRFHMACSHA256)
	case "SHA-384":
		return mustPRF(tb, PRFHMACSHA384)
	case "SHA-512":
		return mustPRF(tb, PRFHMACSHA512)
	}
	tb.Fatalf("unknown hash %q", name)
	return PRF{}
}

func mustPRF(tb testing.TB, id uint16) PRF {
	tb.Helper()
	p, err := NewPRF(id)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// testRand is a deterministic source of octets.
func testRand(seed uint64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(key)
}

func equal(tb testing.TB, what string, got, want []byte) {
	tb.Helper()
	if !bytes.Equal(got, want) {
		tb.Errorf("%s:\n got %x\nwant %x", what, got, want)
	}
}

// choose makes a Chosen out of a proposal string with one algorithm of each type.
func choose(tb testing.TB, protocol uint8, s string) Chosen {
	tb.Helper()
	p, err := ParseProposal(protocol, s)
	if err != nil {
		tb.Fatal(err)
	}
	c := Chosen{Protocol: protocol, Number: 1}
	seen := map[uint8]bool{}
	for _, t := range p.transforms() {
		if !seen[t.Type] {
			seen[t.Type] = true
			c.set(t)
		}
	}
	return c
}

func mustParseT(tb testing.TB, protocol uint8, list ...string) []Proposal {
	tb.Helper()
	ps, err := ParseProposals(protocol, list)
	if err != nil {
		tb.Fatal(err)
	}
	return ps
}

func name(parts ...any) string { return strings.ReplaceAll(fmt.Sprint(parts...), " ", "_") }
