package aesgcm

import (
	"bytes"
	"crypto/cipher"
	"testing"

	"golang.org/x/sys/unix"
)

// guarded returns a page with one before and one behind it that nobody can read or write.
func guarded(t *testing.T) []byte {
	t.Helper()
	page := unix.Getpagesize()
	m, err := unix.Mmap(-1, 0, 3*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(m) })
	for _, guard := range [][]byte{m[:page], m[2*page:]} {
		if err := unix.Mprotect(guard, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	return m[page : 2*page]
}

// Nothing is read or written outside of what was given, not even where it would not be noticed:
// every buffer lies at the beginning and at the end of a page between forbidden ones.
func TestGuardPages(t *testing.T) {
	each(t, func(t *testing.T, a *AEAD, ref cipher.AEAD, rnd *random) {
		textPage, aadPage, noncePage, outPage := guarded(t), guarded(t), guarded(t), guarded(t)
		place := func(page []byte, n int, atEnd bool) []byte {
			if atEnd {
				return page[len(page)-n:]
			}
			return page[:n:n]
		}
		for n := range 1500 {
			aadLen := n % 41
			if n > 600 {
				n = n*7%2900 + 1
			}
			for _, atEnd := range []bool{false, true} {
				text, aad := place(textPage, n, atEnd), place(aadPage, aadLen, atEnd)
				nonce, out := place(noncePage, 12, atEnd), place(outPage, n+16, atEnd)
				copy(text, rnd.bytes(n))
				copy(aad, rnd.bytes(aadLen))
				copy(nonce, rnd.bytes(12))
				want := ref.Seal(nil, nonce, text, aad)
				if got := a.Seal(out[:0], nonce, text, aad); !bytes.Equal(got, want) {
					t.Fatalf("%d octets, %d of AAD: %x, want %x", n, aadLen, got, want)
				}
				plain := bytes.Clone(text)
				if got, err := a.Open(text[:0:n], nonce, out, aad); err != nil || !bytes.Equal(got, plain) {
					t.Fatalf("%d octets, %d of AAD: %v", n, aadLen, err)
				}
				if got, err := a.Open(out[:0], nonce, out, aad); err != nil || !bytes.Equal(got, plain) {
					t.Fatalf("%d octets, %d of AAD, in place: %v", n, aadLen, err)
				}
			}
		}
	})
}
