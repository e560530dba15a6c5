package suite

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

var allKE = []uint16{KEX25519, KEECP256, KEECP384, KEECP521, KEMODP2048, KEMODP3072, KEMLKEM768, KEMLKEM1024}

func TestKeyExchange(t *testing.T) {
	for _, id := range allKE {
		t.Run(KEName(id), func(t *testing.T) {
			k, err := NewInitiator(id, testRand(1))
			if err != nil {
				t.Fatal(err)
			}
			again, err := NewInitiator(id, testRand(1))
			if err != nil {
				t.Fatal(err)
			}
			// The same octets give the same exchange, so that a seed reproduces a simulation.
			equal(t, "public value with the same randomness", again.Public(), k.Public())
			other, err := NewInitiator(id, testRand(2))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(other.Public(), k.Public()) {
				t.Error("other randomness, same public value")
			}
			ni, nr := PublicLen(id)
			if len(k.Public()) != ni || k.ID() != id {
				t.Errorf("public value of %d octets, PublicLen says %d", len(k.Public()), ni)
			}
			public, shared, err := Respond(id, testRand(3), k.Public())
			if err != nil {
				t.Fatal(err)
			}
			if len(public) != nr {
				t.Errorf("responder's public value of %d octets, PublicLen says %d", len(public), nr)
			}
			for range 2 { // the first response may have been forged
				mine, err := k.Finish(public)
				if err != nil {
					t.Fatal(err)
				}
				if mine.Len() == 0 || !mine.Equal(shared) {
					t.Error("the two sides differ")
				}
			}
			// Every truncated prefix and one octet more.
			pub := k.Public()
			for n := 0; n <= len(pub)+1; n++ {
				if n == len(pub) {
					continue
				}
				b := append(bytes.Clone(pub), 0)[:n]
				if _, _, err := Respond(id, testRand(3), b); !errors.Is(err, ErrPublicValue) {
					t.Fatalf("%d octets to the responder: %v", n, err)
				}
				if n < 100 {
					if _, err := k.Finish(b); n != nr && !errors.Is(err, ErrPublicValue) {
						t.Fatalf("%d octets to the initiator: %v", n, err)
					}
				}
			}
			k.Wipe()
			k.Wipe()
			if _, err := k.Finish(public); !errors.Is(err, ErrPublicValue) {
				t.Errorf("after Wipe: %v", err)
			}
			if id != KEMLKEM768 && id != KEMLKEM1024 {
				if _, err := NewInitiator(id, bytes.NewReader(make([]byte, 7))); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("short random source: %v", err)
				}
			}
			if _, err := NewInitiatorFromPrivate(id, []byte{}); !errors.Is(err, ErrKeyLength) {
				t.Errorf("empty private value: %v", err)
			}
		})
	}
	for _, id := range []uint16{0, 1, 2, 5, 16, 22, 23, 24, 32, 35, 38, 65535} {
		if _, err := NewInitiator(id, testRand(1)); !errors.Is(err, ErrUnsupported) {
			t.Errorf("method %d: %v", id, err)
		}
		if _, _, err := Respond(id, testRand(1), nil); !errors.Is(err, ErrUnsupported) {
			t.Errorf("method %d: %v", id, err)
		}
	}
}

// TestECPBadValues: RFC 6989, section 2.3: points that are not on the curve, coordinates that are
// not in the field.
func TestECPBadValues(t *testing.T) {
	for _, id := range []uint16{KEECP256, KEECP384, KEECP521} {
		k, err := NewInitiator(id, testRand(1))
		if err != nil {
			t.Fatal(err)
		}
		n := ecpLen(id)
		p := ecdhCurve(id)
		off := k.Public()
		off[2*n-1] ^= 1
		for what, bad := range map[string][]byte{
			"zero":       make([]byte, 2*n),
			"all ones":   bytes.Repeat([]byte{0xff}, 2*n),
			"off curve":  off,
			"SEC 1":      append([]byte{4}, k.Public()...)[:2*n],
			"x alone":    append(k.Public()[:n], make([]byte, n)...),
			"compressed": append([]byte{2}, k.Public()[:2*n-1]...),
		} {
			if _, err := k.Finish(bad); !errors.Is(err, ErrPublicValue) {
				t.Errorf("%v %s: %v", p, what, err)
			}
		}
		// Private values outside of 1 to n-1.
		for _, bad := range [][]byte{make([]byte, n), bytes.Repeat([]byte{0xff}, n)} {
			if _, err := NewInitiatorFromPrivate(id, bad); !errors.Is(err, ErrKeyLength) {
				t.Errorf("%v private %x…: %v", p, bad[:2], err)
			}
		}
	}
	// A random source that is stuck gives an error, not an endless loop.
	for _, id := range []uint16{KEECP256, KEECP384, KEECP521, KEMODP2048} {
		if _, err := NewInitiator(id, stuck{}); !errors.Is(err, ErrKeyLength) {
			t.Errorf("stuck source for %s: %v", KEName(id), err)
		}
	}
}

type stuck struct{}

func (stuck) Read(b []byte) (int, error) { clear(b); return len(b), nil }
