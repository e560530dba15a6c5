package suite

import (
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"sync"
)

// modpExponentLen is the length in octets of our private exponents: 512 bits, twice what RFC
// 3526, section 8 asks for groups 14 and 15 (a short exponent is safe in a safe-prime group).
const modpExponentLen = 64

// modpPrivate is a MODP group of RFC 3526. Go's math/big is not used with secrets: the time of
// its exponentiation depends on them.
type modpPrivate struct {
	id       uint16
	exponent []byte // big-endian
}

func newMODP(id uint16, source func(int) ([]byte, error)) ([]byte, kexPrivate, error) {
	g := modpGroups(id)
	x, err := source(modpExponentLen)
	if err != nil {
		return nil, nil, err
	}
	if len(x) == 0 || len(x) > g.len {
		return nil, nil, wrap(ErrKeyLength, "private value of %d octets, %s has 1 to %d", len(x), KEName(id), g.len)
	}
	if subtle.ConstantTimeCompare(x, make([]byte, len(x))) == 1 {
		return nil, nil, wrap(ErrKeyLength, "private value is zero: the random source is broken")
	}
	two := make([]byte, g.len)
	two[g.len-1] = 2
	return g.exp(two, x), &modpPrivate{id, x}, nil
}

func (p *modpPrivate) shared(peer []byte) (Secret, error) {
	g := modpGroups(p.id)
	// RFC 7296, section 3.4: as long as the prime, zeros in front if necessary.
	if len(peer) != g.len {
		return Secret{}, badLength(p.id, len(peer), g.len)
	}
	// RFC 6989, section 2.1: in a safe-prime group, 1 < y < p-1 leaves no small subgroup.
	if !g.valid(peer) {
		return Secret{}, wrap(ErrPublicValue, "public value of %s is not between 1 and p-1", KEName(p.id))
	}
	return NewSecret(g.exp(peer, p.exponent)), nil
}

func (p *modpPrivate) wipe() { clear(p.exponent) }

// modpGroup is arithmetic modulo an odd prime p in Montgomery form with R = 2^(64*words). Limbs
// are little-endian. Nothing here branches or indexes by a secret.
type modpGroup struct {
	len   int      // octets
	p     []uint64 // modulus
	inv   uint64   // -p^-1 mod 2^64
	one   []uint64 // R mod p
	rr    []uint64 // R^2 mod p
	prime []byte
}

var (
	modp2048 = sync.OnceValue(func() *modpGroup { return newModpGroup(modp2048Prime) })
	modp3072 = sync.OnceValue(func() *modpGroup { return newModpGroup(modp3072Prime) })
)

func modpGroups(id uint16) *modpGroup {
	if id == KEMODP3072 {
		return modp3072()
	}
	return modp2048()
}

func newModpGroup(primeHex string) *modpGroup {
	prime, err := hex.DecodeString(primeHex)
	if err != nil {
		panic(err) // a constant
	}
	g := &modpGroup{len: len(prime), prime: prime}
	g.p = g.limbs(prime)
	// Newton's iteration doubles the number of correct bits of p^-1 mod 2^64.
	inv := g.p[0]
	for range 6 {
		inv *= 2 - g.p[0]*inv
	}
	g.inv = -inv
	// The top bit of p is set, so R mod p = R - p; doubling it 64*words times gives R^2 mod p.
	n := len(g.p)
	g.one = make([]uint64, n)
	var borrow uint64
	for i := range g.one {
		g.one[i], borrow = bits.Sub64(0, g.p[i], borrow)
	}
	g.rr = append([]uint64(nil), g.one...)
	for range 64 * n {
		var carry uint64
		for i := range g.rr {
			g.rr[i], carry = bits.Add64(g.rr[i], g.rr[i], carry)
		}
		g.reduce(g.rr, carry)
	}
	return g
}

// valid says whether 1 < y < p-1; y is public.
func (g *modpGroup) valid(y []byte) bool {
	x := g.limbs(y)
	var high uint64
	for _, w := range x[1:] {
		high |= w
	}
	if high == 0 && x[0] <= 1 {
		return false
	}
	// p-1-y must not be zero or negative; p is odd, so p-1 only changes the lowest limb.
	limit := append([]uint64(nil), g.p...)
	limit[0]--
	var borrow, or uint64
	for i := range limit {
		limit[i], borrow = bits.Sub64(limit[i], x[i], borrow)
		or |= limit[i]
	}
	return borrow == 0 && or != 0
}

// exp returns base^exponent mod p as g.len octets. base is below p; the time depends on the
// lengths only.
func (g *modpGroup) exp(base, exponent []byte) []byte {
	n := len(g.p)
	x, t := make([]uint64, n), make([]uint64, n+2)
	g.mul(x, g.limbs(base), g.rr, t)
	// table[i] = x^i in Montgomery form, for windows of four bits.
	var table [16][]uint64
	table[0], table[1] = g.one, x
	for i := 2; i < 16; i++ {
		table[i] = make([]uint64, n)
		g.mul(table[i], table[i-1], x, t)
	}
	acc, pick := append([]uint64(nil), g.one...), make([]uint64, n)
	for _, b := range exponent {
		for _, digit := range [2]byte{b >> 4, b & 15} {
			for range 4 {
				g.mul(acc, acc, acc, t)
			}
			// Every entry is read, so the cache does not tell which one was wanted.
			clear(pick)
			for i, entry := range table {
				mask := -uint64(subtle.ConstantTimeByteEq(byte(i), digit))
				for j := range pick {
					pick[j] |= entry[j] & mask
				}
			}
			g.mul(acc, acc, pick, t)
		}
	}
	unit := make([]uint64, n)
	unit[0] = 1
	g.mul(acc, acc, unit, t)
	out := make([]byte, g.len)
	for i, w := range acc {
		binary.BigEndian.PutUint64(out[g.len-8*(i+1):], w)
	}
	for i := 1; i < 16; i++ {
		clear(table[i])
	}
	clear(acc)
	clear(pick)
	clear(t)
	return out
}

// mul sets z = x*y/R mod p (Montgomery, coarsely integrated operand scanning). z may be x or y;
// t is scratch of len(p)+2 limbs.
func (g *modpGroup) mul(z, x, y, t []uint64) {
	n := len(g.p)
	p := g.p
	t = t[:n+2]
	clear(t)
	for i := range n {
		var carry uint64
		xi := x[i]
		for j := range n {
			carry, t[j] = mulAdd(xi, y[j], t[j], carry)
		}
		var c uint64
		t[n], c = bits.Add64(t[n], carry, 0)
		t[n+1] = c
		m := t[0] * g.inv
		carry, _ = mulAdd(m, p[0], t[0], 0)
		for j := 1; j < n; j++ {
			carry, t[j-1] = mulAdd(m, p[j], t[j], carry)
		}
		t[n-1], c = bits.Add64(t[n], carry, 0)
		t[n] = t[n+1] + c
	}
	copy(z, t[:n])
	g.reduce(z, t[n])
}

// mulAdd returns x*y + a + b, which fits into 128 bits.
func mulAdd(x, y, a, b uint64) (hi, lo uint64) {
	hi, lo = bits.Mul64(x, y)
	var c uint64
	lo, c = bits.Add64(lo, a, 0)
	hi += c
	lo, c = bits.Add64(lo, b, 0)
	hi += c
	return hi, lo
}

// reduce subtracts p from z + carry*R if that is p or more; z + carry*R is below 2p.
func (g *modpGroup) reduce(z []uint64, carry uint64) {
	var borrow uint64
	for i := range z {
		_, borrow = bits.Sub64(z[i], g.p[i], borrow)
	}
	// Subtract unless the subtraction borrowed from nothing.
	_, keep := bits.Sub64(carry, borrow, 0)
	mask := keep - 1
	borrow = 0
	for i := range z {
		z[i], borrow = bits.Sub64(z[i], g.p[i]&mask, borrow)
	}
}

// limbs turns g.len big-endian octets into limbs.
func (g *modpGroup) limbs(b []byte) []uint64 {
	w := make([]uint64, g.len/8)
	for i := range w {
		w[i] = binary.BigEndian.Uint64(b[g.len-8*(i+1):])
	}
	return w
}
