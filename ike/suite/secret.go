package suite

import (
	"crypto/subtle"
	"fmt"
)

// Secret is a key or another value that must not be seen: it prints as a placeholder with every
// verb, cannot be compared with ==, and can be wiped. Copies of a Secret share the octets, so
// one Wipe empties them all. The zero value is an empty secret.
type Secret struct {
	_   [0]func() // no ==
	box *secretBox
}

// secretBox puts the octets behind two pointers: fmt does not ask the unexported fields of a
// struct for their Formatter, and for a verb that does not fit a pointer it prints what that one
// points to, but never follows a second one.
type secretBox struct{ b *[]byte }

// secretHolder is a secretBox and what it points to, in one piece of memory.
type secretHolder struct {
	box secretBox
	b   []byte
}

// NewSecret takes b over: the caller must not use b afterwards. Wipe overwrites it.
func NewSecret(b []byte) Secret {
	h := &secretHolder{b: b}
	h.box.b = &h.b
	return Secret{box: &h.box}
}

// CopySecret returns a Secret with a copy of b; that of nothing is the zero value.
func CopySecret(b []byte) Secret {
	if len(b) == 0 {
		return Secret{}
	}
	return NewSecret(append(make([]byte, 0, len(b)), b...))
}

// Bytes returns the octets themselves, not a copy: they turn to zero with Wipe. Nil when empty.
func (s Secret) Bytes() []byte {
	if s.box == nil {
		return nil
	}
	return *s.box.b
}

// Clone returns a Secret with octets of its own, which outlives a Wipe of s.
func (s Secret) Clone() Secret { return CopySecret(s.Bytes()) }

// Len returns the number of octets; 0 for the zero value and after Wipe.
func (s Secret) Len() int { return len(s.Bytes()) }

// Equal compares in a time that depends on the lengths only.
func (s Secret) Equal(t Secret) bool { return subtle.ConstantTimeCompare(s.Bytes(), t.Bytes()) == 1 }

// Wipe overwrites the octets with zeros and empties the secret and all its copies. What the
// standard library keeps of a key (an expanded AES key, an HMAC state) is out of reach.
func (s Secret) Wipe() {
	if s.box != nil {
		clear(*s.box.b)
		*s.box.b = nil
	}
}

// String returns a placeholder with the length.
func (s Secret) String() string { return fmt.Sprintf("secret(%d octets)", s.Len()) }

// Format prints the placeholder with every verb, %x and %#v included.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// MarshalText returns the placeholder, so that JSON and logs carry nothing else.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
