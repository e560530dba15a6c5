package ike

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// IDType is the type of an identity (RFC 7296, section 3.5).
type IDType uint8

// The identity types that are understood.
const (
	IDIPv4   IDType = 1
	IDFQDN   IDType = 2
	IDRFC822 IDType = 3
	IDIPv6   IDType = 5
	IDDN     IDType = 9
	IDKeyID  IDType = 11
)

// Identity is what a party calls itself in IDi or IDr. It is comparable; compare FQDN and mail
// addresses with Equal, which ignores the case of ASCII letters.
type Identity struct {
	Type IDType
	Data string // the octets on the wire
}

// ParseIdentity reads an identity as people write it: an IP address, "name@domain" (mail
// address), "@#hex" (key ID), otherwise a domain name.
func ParseIdentity(s string) (Identity, error) {
	switch {
	case s == "":
		return Identity{}, fmt.Errorf("ike: empty identity: expected a domain name, an address, name@domain or @#hex")
	case strings.HasPrefix(s, "@#"):
		b, err := hex.DecodeString(s[2:])
		if err != nil || len(b) == 0 {
			return Identity{}, fmt.Errorf("ike: identity %q: expected hex digits after @#", s)
		}
		return Identity{IDKeyID, string(b)}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		if a.Is4() {
			return Identity{IDIPv4, string(a.AsSlice())}, nil
		}
		return Identity{IDIPv6, string(a.AsSlice())}, nil
	}
	for _, r := range s {
		if r <= ' ' || r == 0x7f {
			return Identity{}, fmt.Errorf("ike: identity %q: no spaces or control characters allowed", s)
		}
	}
	if strings.Contains(s, "@") {
		return Identity{IDRFC822, s}, nil
	}
	return Identity{IDFQDN, s}, nil
}

// DNIdentity is the distinguished name in DER (of a certificate: Certificate.RawSubject).
func DNIdentity(der []byte) Identity { return Identity{IDDN, string(der)} }

// Equal tells whether both are the same identity: same type and octets, where domain names and
// mail addresses compare without the case of ASCII letters (RFC 4945, section 3.1).
func (id Identity) Equal(o Identity) bool {
	if id.Type != o.Type {
		return false
	}
	if id.Type == IDFQDN || id.Type == IDRFC822 {
		return equalFoldASCII(id.Data, o.Data)
	}
	return id.Data == o.Data
}

// folded returns the octets such that those of equal identities are the same.
func (id Identity) folded() string {
	if id.Type != IDFQDN && id.Type != IDRFC822 {
		return id.Data
	}
	b := []byte(id.Data) // octets, not characters: they need not be UTF-8
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// key is the same for equal identities, and for no others.
func (id Identity) key() string { return string(rune(id.Type)) + id.folded() }

// IsZero tells whether it is no identity at all.
func (id Identity) IsZero() bool { return id.Type == 0 && id.Data == "" }

// String returns the identity for people. What a peer sent is quoted where it holds control
// characters, so that it can be put into a log line.
func (id Identity) String() string {
	switch id.Type {
	case IDIPv4, IDIPv6:
		if a, ok := netip.AddrFromSlice([]byte(id.Data)); ok {
			return a.String()
		}
	case IDFQDN, IDRFC822:
		return clean(id.Data)
	case IDDN:
		var rdn pkix.RDNSequence
		if rest, err := asn1.Unmarshal([]byte(id.Data), &rdn); err == nil && len(rest) == 0 {
			return clean(rdn.String())
		}
	case IDKeyID:
		return "@#" + hex.EncodeToString([]byte(clip(id.Data, 64)))
	}
	if id.IsZero() {
		return "(none)"
	}
	return fmt.Sprintf("(type %d) %s", id.Type, hex.EncodeToString([]byte(clip(id.Data, 64))))
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// clean makes peer-supplied text safe for a log: bounded, printable, on one line.
func clean(s string) string {
	cut := ""
	if len(s) > 256 {
		s, cut = s[:256], "…"
	}
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s + cut
	}
	return fmt.Sprintf("%q", s) + cut
}

func equalFoldASCII(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		x, y := a[i], b[i]
		if 'A' <= x && x <= 'Z' {
			x += 'a' - 'A'
		}
		if 'A' <= y && y <= 'Z' {
			y += 'a' - 'A'
		}
		if x != y {
			return false
		}
	}
	return true
}

func containsID(list []Identity, id Identity) bool {
	for _, x := range list {
		if x.Equal(id) {
			return true
		}
	}
	return false
}

func joinIDs(ids []Identity) string {
	if len(ids) == 0 {
		return "(none)"
	}
	s := make([]string, len(ids))
	for i, id := range ids {
		s[i] = id.String()
	}
	return strings.Join(s, ", ")
}
