package esp

import (
	"bytes"
	"testing"
)

// TestImplicitIV: RFC 8750, section 4: the IV is the sequence number, and nothing else differs.
// Outbound uses the sequence number where the IV is sent, too, so both packets are the same but for
// those 8 octets.
func TestImplicitIV(t *testing.T) {
	for _, c := range []struct{ implicit, explicit uint16 }{
		{EncrAESGCM16IIV, EncrAESGCM16}, {EncrChaCha20Poly1305IIV, EncrChaCha20Poly1305},
	} {
		for _, esn := range []bool{false, true} {
			for _, keyLen := range []int{20, 36} {
				if c.explicit == EncrChaCha20Poly1305 && keyLen != 36 {
					continue
				}
				p := Params{SPI: testSPI, Encr: c.explicit, ESN: esn, Key: bytes.Repeat([]byte{7}, keyLen)}
				o, _ := pair(t, p)
				p.Encr = c.implicit
				oi, in := pair(t, p)
				if o.Headroom()-oi.Headroom() != 8 || o.SealedLen(100)-oi.SealedLen(100) != 8 {
					t.Errorf("headroom %d and %d, 100 octets become %d and %d", o.Headroom(), oi.Headroom(), o.SealedLen(100), oi.SealedLen(100))
				}
				for n := 20; n < 300; n++ {
					with, without := seal(t, o, ipv4(n), NextIPv4), seal(t, oi, ipv4(n), NextIPv4)
					if !bytes.Equal(with[:8], without[:8]) || !bytes.Equal(with[16:], without[8:]) {
						t.Fatalf("cipher %d, ESN %t, %d octets: more than the IV differs", c.implicit, esn, n)
					}
					// Another number is another IV, and not only another position in the window.
					bad := bytes.Clone(without)
					bad[7] ^= 1
					if _, _, err := open(in, bad); err == nil {
						t.Fatal("a packet with another sequence number opens")
					}
					got, next, err := open(in, without)
					if err != nil || next != NextIPv4 || !bytes.Equal(got, ipv4(n)) {
						t.Fatalf("%d octets: %v", n, err)
					}
					if _, _, err := open(in, with); err == nil {
						t.Fatal("a packet with an IV opens where it is implicit")
					}
				}
			}
		}
	}
}
