package ike

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"slices"
	"strings"
	"testing"

	"wardgate/ike/suite"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func puzzleOf(t testing.TB, prf uint16, s []byte) *puzzle {
	t.Helper()
	var z puzzle
	if !z.set(prf, s) {
		t.Fatalf("no puzzle of PRF %d and %d octets", prf, len(s))
	}
	return &z
}

// The cookie of the examples in RFC 8019, section 4.4, whose keys do not reproduce: no reading of them (the
// cookie's other spelling in table 2, keys of three or four octets, either order of octets) gives the
// results that table 1 prints. These keys come from another implementation of HMAC: the first ones of
// four octets, counted up from 0, that end in twelve zero bits.
var rfcCookie = unhex("739ae7492d8a810cf5e8dc0f9626c9dda773c5a3")

var rfcSolution = map[uint16]struct {
	keys  string
	zeros int
}{
	suite.PRFHMACSHA256: {"000000df 000028b7 00002ed1 0000340a", 12},
	suite.PRFHMACSHA384: {"00002b81 0000344a 00004c68 00005e58", 12},
	suite.PRFHMACSHA512: {"00001c34 00002bf3 0000440d 000052a8", 12},
}

func TestPuzzleExamples(t *testing.T) {
	t.Parallel()
	for prf, c := range rfcSolution {
		solution := unhex(strings.ReplaceAll(c.keys, " ", ""))
		z := puzzleOf(t, prf, rfcCookie)
		for least, want := range map[int]int{0: 12, 12: 12, 13: -1} {
			if got := z.check(solution, least); got != want {
				t.Errorf("PRF %d, at least %d: %d, want %d", prf, least, got, want)
			}
		}
		s := solver{puzzle: *z, want: 12, left: 1 << 20}
		for !s.work(1 << 20) {
		}
		found, zeros := s.solution()
		var sorted []string
		for i := range 4 {
			sorted = append(sorted, hex.EncodeToString(found[4*i:4*i+4]))
		}
		slices.Sort(sorted)
		if strings.Join(sorted, " ") != c.keys || zeros != 12 {
			t.Errorf("PRF %d: solved with %v, %d zero bits; want %s", prf, sorted, zeros, c.keys)
		}
	}
	if got := puzzleOf(t, suite.PRFHMACSHA256, rfcCookie).zeros(unhex("000000df")); got != 13 {
		t.Errorf("%d zero bits, want 13", got)
	}
}

// Every PRF is HMAC, with keys and strings of every length in turn.
func TestPuzzlePRF(t *testing.T) {
	t.Parallel()
	for prf, h := range map[uint16]func() hash.Hash{suite.PRFHMACSHA256: sha256.New, suite.PRFHMACSHA384: sha512.New384, suite.PRFHMACSHA512: sha512.New} {
		s := bytes.Repeat([]byte{0xa5, 7, 3}, 100)[:maxPuzzleString]
		for n := 1; n <= maxPuzzleString; n += 13 {
			z := puzzleOf(t, prf, s[:n])
			for i := range 200 {
				key := bytes.Repeat([]byte{byte(i), byte(n)}, 40)[:1+i*7%z.longest]
				m := hmac.New(h, key)
				m.Write(s[:n])
				if got, want := z.zeros(key), trailingZeros(m.Sum(nil)); got != want {
					t.Fatalf("PRF %d, string of %d, key %x: %d, want %d", prf, n, key, got, want)
				}
			}
		}
	}
	var z puzzle
	if z.set(2, s16) || z.set(suite.PRFHMACSHA256, nil) || z.set(suite.PRFHMACSHA256, make([]byte, maxPuzzleString+1)) {
		t.Error("an unknown PRF, or a string of no possible length, became a puzzle")
	}
}

var s16 = make([]byte, 16)

func TestTrailingZeros(t *testing.T) {
	t.Parallel()
	for i := range 256 {
		b := make([]byte, 32)
		b[31-i/8] = 1 << (i % 8)
		if i < 200 {
			b[0] |= 0x80 // what comes before does not count
		}
		if got := trailingZeros(b); got != i {
			t.Errorf("bit %d: %d", i, got)
		}
	}
	if got := trailingZeros(make([]byte, 64)); got != 512 {
		t.Errorf("all zero: %d", got)
	}
}

// RFC 8019, sections 7.1.3 and 8.2: four different keys of one length, at most the PRF's.
func TestPuzzleSolutionRefused(t *testing.T) {
	t.Parallel()
	cookie := rfcCookie
	z := puzzleOf(t, suite.PRFHMACSHA256, cookie)
	good := unhex("000000df000028b700002ed10000340a")
	for name, c := range map[string]struct {
		solution []byte
		want     int
	}{
		"good":                     {good, 12},
		"empty":                    {nil, -1},
		"three keys":               {good[:12], -1},
		"five keys":                {append(bytes.Clone(good), good[:4]...), -1},
		"the same key four times":  {bytes.Repeat(good[4:8], 4), -1},
		"two equal keys":           {append(bytes.Clone(good[:12]), good[4:8]...), -1},
		"one octet off":            {unhex("000000df000028b700002ed10000340b"), -1},
		"keys longer than the PRF": {make([]byte, 4*33), -1},
	} {
		if got := z.check(c.solution, 12); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if got := puzzleOf(t, suite.PRFHMACSHA384, cookie).check(good, 12); got != -1 {
		t.Errorf("a solution for another PRF: %d", got)
	}
	if got := puzzleOf(t, suite.PRFHMACSHA256, append(bytes.Clone(cookie), 1)).check(good, 12); got != -1 {
		t.Errorf("a solution for another cookie: %d", got)
	}
}

func TestSolver(t *testing.T) {
	t.Parallel()
	for _, prf := range puzzlePRFs {
		s := solver{puzzle: *puzzleOf(t, prf, []byte("a cookie")), want: 10, left: 1 << 20}
		for !s.work(1000) {
		}
		solution, zeros := s.solution()
		if zeros < 10 || s.check(solution, 10) != zeros || s.tried < 100 {
			t.Errorf("PRF %d: solution %x of %d zero bits after %d keys", prf, solution, zeros, s.tried)
		}
	}
	// A bound that is too low ends with the best of what was tried.
	s := solver{puzzle: *puzzleOf(t, suite.PRFHMACSHA256, []byte("a cookie")), want: 200, left: 5000}
	rounds := 0
	for !s.work(300) {
		rounds++
	}
	solution, zeros := s.solution()
	if s.tried != 5000 || rounds != 16 || zeros < 6 || zeros > 20 || s.check(solution, 0) != zeros {
		t.Errorf("%d keys tried in %d rounds, solution %x of %d zero bits", s.tried, rounds, solution, zeros)
	}
	s = solver{puzzle: *puzzleOf(t, suite.PRFHMACSHA256, []byte("a cookie")), want: 8, left: 3}
	if !s.work(10) {
		t.Error("the bound is not kept")
	}
	if solution, _ := s.solution(); solution != nil {
		t.Errorf("solution %x of three keys", solution)
	}
}

// FuzzPuzzleCheck: any string and solution; what counts is what HMAC says.
func FuzzPuzzleCheck(f *testing.F) {
	f.Add(uint16(5), rfcCookie, unhex("000000df000028b700002ed10000340a"), 12)
	f.Add(uint16(7), []byte{1}, make([]byte, 64), 0)
	f.Fuzz(func(t *testing.T, prf uint16, s, solution []byte, least int) {
		var z puzzle
		if !z.set(prf, s) {
			return
		}
		got := z.check(solution, least)
		if got < 0 {
			return
		}
		p, err := suite.NewPRF(prf)
		if err != nil || len(solution)%4 != 0 || len(solution) == 0 {
			t.Fatalf("%x counts as a solution: %v", solution, err)
		}
		n := len(solution) / 4
		for i := range 4 {
			if z := trailingZeros(p.Sum(suite.CopySecret(solution[i*n:(i+1)*n]), s)); z < got || z < least {
				t.Errorf("key %d has %d zero bits, the solution counts as %d", i, z, got)
			}
		}
	})
}

func BenchmarkPuzzleZeros(b *testing.B) {
	for name, prf := range map[string]uint16{"sha256": suite.PRFHMACSHA256, "sha384": suite.PRFHMACSHA384, "sha512": suite.PRFHMACSHA512} {
		b.Run(name, func(b *testing.B) {
			s := solver{puzzle: *puzzleOf(b, prf, make([]byte, 28)), want: 512, left: 1 << 62}
			b.ReportAllocs()
			for b.Loop() {
				s.work(1)
			}
		})
	}
}
