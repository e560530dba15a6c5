package store

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of what is kept, in octets unless a unit is named. More is refused with ErrInvalid.
const (
	MaxName        = 253      // a name or identity
	MaxText        = 4096     // a reason or message
	MaxCertificate = 16 << 10 // a certificate, DER
	MaxPolicy      = 32 << 20 // a signed policy: docs/policy.md
	MaxObject      = 16 << 20 // an object of the registry, JSON
	MaxReport      = 2 << 20  // a device's report, JSON
	MaxDetail      = 16 << 10 // details of a record, JSON
	MaxBatch       = 1000     // things in one call
	MaxBatchOctets = 64 << 20 // policies in one call
	MaxPage        = 10_000   // things in one answer
)

// checkText refuses what a person could not read, or what PostgreSQL could not keep.
func checkText(what, s string, limit int, required bool) error {
	switch {
	case required && s == "":
		return invalid("%s: expected a text, came none", what)
	case len(s) > limit:
		return invalid("%s: expected at most %d octets, came %d", what, limit, len(s))
	case !utf8.ValidString(s):
		return invalid("%s: expected UTF-8, came %q", what, s)
	}
	for _, r := range s {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return invalid("%s: expected no control characters, came %q", what, s)
		}
	}
	return nil
}

// readable makes a text of anything: at most MaxText octets, without control characters.
func readable(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), MaxText)], string(utf8.RuneError))
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return utf8.RuneError
		}
		return r
	}, s)
	return strings.ToValidUTF8(s[:min(len(s), MaxText)], "")
}

func checkName(what, s string) error { return checkText(what, s, MaxName, true) }

func checkSize(what string, n, limit int) error {
	if n == 0 || n > limit {
		return invalid("%s: expected 1 to %d octets, came %d", what, limit, n)
	}
	return nil
}

func checkCount(what string, n int) error {
	if n > MaxBatch {
		return invalid("%s: expected at most %d in one call, came %d: call several times", what, MaxBatch, n)
	}
	return nil
}

// page bounds how much an answer holds: 0 asks for the most.
func page(limit int) int {
	if limit <= 0 || limit > MaxPage {
		return MaxPage
	}
	return limit
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// micro is how a time is kept: microseconds since 1970 UTC, 0 for the zero time.
func micro(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicro(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// Hash is a SHA-256.
type Hash [32]byte

// String writes lower-case hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

func parseHash(s string) (Hash, error) {
	var h Hash
	if len(s) != 2*len(h) {
		return h, fmt.Errorf("%w: expected a hash of %d hex digits, came %q", ErrDamaged, 2*len(h), s)
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return h, fmt.Errorf("%w: expected a hash of %d hex digits, came %q", ErrDamaged, 2*len(h), s)
	}
	return h, nil
}
