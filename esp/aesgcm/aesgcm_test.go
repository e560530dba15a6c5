package aesgcm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"unsafe"
)

var (
	_        cipher.AEAD = (*AEAD)(nil)
	keySizes             = []int{16, 24, 32}
)

// reference is AES-GCM of the standard library.
func reference(tb testing.TB, key []byte) cipher.AEAD {
	tb.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		tb.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		tb.Fatal(err)
	}
	return aead
}

// each runs f for every implementation that this machine has, and every key size.
func each(t *testing.T, f func(t *testing.T, a *AEAD, ref cipher.AEAD, rnd *random)) {
	for _, impl := range usable {
		for _, size := range keySizes {
			rnd := newRandom(uint64(size))
			key := rnd.bytes(size)
			a, err := newAs(impl, key)
			if err != nil {
				t.Fatal(err)
			}
			t.Run(fmt.Sprintf("%s/%d", a.Accelerated(), 8*size), func(t *testing.T) {
				t.Parallel()
				f(t, a, reference(t, key), rnd)
			})
		}
	}
}

// random is a generator whose seed is the same in every run.
type random struct{ *rand.ChaCha8 }

func newRandom(seed uint64) *random {
	var s [32]byte
	s[0] = byte(seed)
	return &random{rand.NewChaCha8(s)}
}

func (r *random) bytes(n int) []byte {
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

func (r *random) below(n int) int { return int(r.Uint64() % uint64(n)) }

const canary = 0xa5

// room returns n octets that lie at an address ≡ align (mod 64), and all of what they lie in,
// filled with canaries.
func room(n, align int) (b, all []byte) {
	all = bytes.Repeat([]byte{canary}, n+4*64)
	at := 64 + (align-64-addr(all))&63
	return all[at : at+n : at+n], all
}

// intact reports whether nothing around b was written to.
func intact(b, all []byte) bool {
	at := addr(b) - addr(all)
	const only = "\xa5"
	return len(bytes.Trim(all[:at], only)) == 0 && len(bytes.Trim(all[at+len(b):], only)) == 0
}

func addr(b []byte) int { return int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// check compares Seal and Open with the reference, in place or not, with canaries around all
// that is written.
func check(t *testing.T, a *AEAD, ref cipher.AEAD, rnd *random, n, aadLen, align int) {
	t.Helper()
	text, _ := room(n, rnd.below(64))
	copy(text, rnd.bytes(n))
	aad, _ := room(aadLen, rnd.below(64))
	copy(aad, rnd.bytes(aadLen))
	nonce := rnd.bytes(12)
	want := ref.Seal(nil, nonce, text, aad)
	where := fmt.Sprintf("%d octets, %d of AAD, at %d", n, aadLen, align)

	// Apart.
	out, all := room(n+16, align)
	if got := a.Seal(out[:0], nonce, text, aad); !bytes.Equal(got, want) || &got[0] != &out[0] {
		t.Fatalf("%s: sealed\n %x, want\n %x", where, got, want)
	}
	if !intact(out, all) {
		t.Fatalf("%s: Seal wrote outside its room", where)
	}
	back, backAll := room(n, 63-align)
	if got, err := a.Open(back[:0], nonce, out, aad); err != nil || !bytes.Equal(got, text) {
		t.Fatalf("%s: opened: %v\n %x, want\n %x", where, err, got, text)
	}
	if !intact(back, backAll) || !bytes.Equal(out, want) {
		t.Fatalf("%s: Open wrote outside its room", where)
	}

	// In place, behind a prefix.
	buf, all := room(5+n+16, align)
	copy(buf, "front")
	copy(buf[5:], text)
	if got := a.Seal(buf[:5], nonce, buf[5:5+n], aad); string(got[:5]) != "front" || !bytes.Equal(got[5:], want) {
		t.Fatalf("%s: sealed in place\n %x, want\n %x", where, got[5:], want)
	}
	if !intact(buf, all) {
		t.Fatalf("%s: Seal in place wrote outside its room", where)
	}
	if got, err := a.Open(buf[:5], nonce, buf[5:], aad); err != nil || string(got[:5]) != "front" || !bytes.Equal(got[5:], text) {
		t.Fatalf("%s: opened in place: %v\n %x, want\n %x", where, err, got, text)
	}
	if !intact(buf, all) || !bytes.Equal(buf[5+n:], want[n:]) {
		t.Fatalf("%s: Open in place wrote outside its room", where)
	}

	if aadLen <= 16 {
		checkPacket(t, a, where, nonce, aad, text, want, align)
	}

	// A forged one: one bit anywhere.
	bad := bytes.Clone(want)
	bad[rnd.below(len(bad))] ^= 1 << rnd.below(8)
	if got, err := a.Open(back[:0], nonce, bad, aad); err == nil || got != nil {
		t.Fatalf("%s: opened although one bit is wrong", where)
	}
	if !bytes.Equal(back, make([]byte, n)) || !intact(back, backAll) {
		t.Fatalf("%s: Open left something of a forgery: %x", where, back)
	}
}

// checkPacket is check for SealInPlace and OpenInPlace.
func checkPacket(t *testing.T, a *AEAD, where string, nonce, aad, text, want []byte, align int) {
	t.Helper()
	n := len(text)
	buf, all := room(n+16, align)
	copy(buf, text)
	a.SealInPlace(buf, words(nonce), words(aad), len(aad))
	if !bytes.Equal(buf, want) || !intact(buf, all) {
		t.Fatalf("%s: SealInPlace: room intact: %t\n %x, want\n %x", where, intact(buf, all), buf, want)
	}
	if !a.OpenInPlace(buf, words(nonce), words(aad), len(aad)) || !bytes.Equal(buf[:n], text) || !bytes.Equal(buf[n:], want[n:]) || !intact(buf, all) {
		t.Fatalf("%s: OpenInPlace: room intact: %t\n %x, want\n %x", where, intact(buf, all), buf[:n], text)
	}
	copy(buf, want)
	buf[n+align%16] ^= 0x10
	if a.OpenInPlace(buf, words(nonce), words(aad), len(aad)) || !bytes.Equal(buf[:n], make([]byte, n)) {
		t.Fatalf("%s: OpenInPlace of a forgery left %x", where, buf[:n])
	}
}

func words(b []byte) Words {
	var w [16]byte
	copy(w[:], b)
	return Words{binary.LittleEndian.Uint64(w[:]), binary.LittleEndian.Uint64(w[8:])}
}

// What does not fit is refused, not read past.
func TestInPlaceBounds(t *testing.T) {
	each(t, func(t *testing.T, a *AEAD, _ cipher.AEAD, rnd *random) {
		panics := func(f func()) (p bool) {
			defer func() { p = recover() != nil }()
			f()
			return false
		}
		for n := range 20 {
			if got := panics(func() { a.SealInPlace(make([]byte, n), Words{}, Words{}, 8) }); got != (n < 16) {
				t.Errorf("SealInPlace with %d octets: panics: %t", n, got)
			}
			if a.OpenInPlace(make([]byte, n), Words{}, Words{}, 8) {
				t.Errorf("OpenInPlace of %d zeroes: right", n)
			}
		}
		for _, aad := range []int{-1, 17, 1 << 40} {
			if !panics(func() { a.SealInPlace(make([]byte, 32), Words{}, Words{}, aad) }) ||
				!panics(func() { a.OpenInPlace(make([]byte, 32), Words{}, Words{}, aad) }) {
				t.Errorf("%d octets of additional data in two words: accepted", aad)
			}
		}
	})
}

func TestEveryLength(t *testing.T) {
	each(t, func(t *testing.T, a *AEAD, ref cipher.AEAD, rnd *random) {
		for n := range 4200 {
			check(t, a, ref, rnd, n, []int{0, 8, 12, n % 41}[n%4], rnd.below(64))
		}
		for _, n := range []int{8191, 9000, 1<<16 - 1, 1<<20 + 4095, 1<<20 + 4096 + 17} { // the counter carries into its third octet
			check(t, a, ref, rnd, n, 8, rnd.below(64))
		}
	})
}

func TestEveryAAD(t *testing.T) {
	each(t, func(t *testing.T, a *AEAD, ref cipher.AEAD, rnd *random) {
		for aad := range 41 {
			for _, n := range []int{0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 512, 513, 528, 529, 1024, 1420} {
				check(t, a, ref, rnd, n, aad, rnd.below(64))
			}
		}
		for _, aad := range []int{64, 255, 256, 1000, 4096} {
			check(t, a, ref, rnd, 100, aad, 0)
		}
	})
}

func TestEveryAlignment(t *testing.T) {
	each(t, func(t *testing.T, a *AEAD, ref cipher.AEAD, rnd *random) {
		for align := range 64 {
			for _, n := range []int{0, 1, 16, 64, 100, 200, 300, 512, 1420} {
				check(t, a, ref, rnd, n, 12, align)
			}
		}
	})
}

// Every bit of a small packet counts: of nonce, additional data, text and tag.
func TestEveryBit(t *testing.T) {
	each(t, func(t *testing.T, a *AEAD, ref cipher.AEAD, rnd *random) {
		for _, n := range []int{0, 1, 33, 70, 300} {
			nonce, aad := rnd.bytes(12), rnd.bytes(12)
			sealed := ref.Seal(nil, nonce, rnd.bytes(n), aad)
			out := make([]byte, n)
			for _, part := range [][]byte{nonce, aad, sealed} {
				for bit := range 8 * len(part) {
					part[bit/8] ^= 1 << (bit % 8)
					copy(out, bytes.Repeat([]byte{canary}, n))
					if _, err := a.Open(out[:0], nonce, sealed, aad); err == nil {
						t.Fatalf("%d octets: opened with bit %d of %d octets wrong", n, bit, len(part))
					}
					if !bytes.Equal(out, make([]byte, n)) {
						t.Fatalf("%d octets: text of a forgery is left", n)
					}
					part[bit/8] ^= 1 << (bit % 8)
				}
			}
			for cut := range len(sealed) {
				if _, err := a.Open(nil, nonce, sealed[:cut], aad); err == nil {
					t.Fatalf("opened with %d of %d octets", cut, len(sealed))
				}
			}
			if _, err := a.Open(nil, nonce, sealed, aad); err != nil {
				t.Fatalf("what nobody touched: %v", err)
			}
		}
	})
}

// The rules about overlaps, and what panics, are the standard library's.
func TestOverlap(t *testing.T) {
	panics := func(f func()) (p bool) {
		defer func() { p = recover() != nil }()
		f()
		return false
	}
	each(t, func(t *testing.T, a *AEAD, ref cipher.AEAD, rnd *random) {
		nonce := make([]byte, 12)
		for dst := range 30 {
			for aad := range 70 {
				seal := func(c cipher.AEAD) bool {
					buf := make([]byte, 100)
					return panics(func() { c.Seal(buf[dst:dst], nonce, buf[15:25], buf[aad:aad+8]) })
				}
				if got, want := seal(a), seal(ref); got != want {
					t.Fatalf("Seal of 10 octets at 15 to %d, AAD at %d: panics: %t, want %t", dst, aad, got, want)
				}
				open := func(c cipher.AEAD) bool {
					buf := make([]byte, 100)
					return panics(func() { _, _ = c.Open(buf[dst:dst], nonce, buf[15:45], buf[aad:aad+8]) })
				}
				if got, want := open(a), open(ref); got != want {
					t.Fatalf("Open of 30 octets at 15 to %d, AAD at %d: panics: %t, want %t", dst, aad, got, want)
				}
			}
		}
		for n := range 20 {
			seal := func(c cipher.AEAD) bool { return panics(func() { c.Seal(nil, make([]byte, n), nil, nil) }) }
			open := func(c cipher.AEAD) bool {
				return panics(func() { _, _ = c.Open(nil, make([]byte, n), make([]byte, 16), nil) })
			}
			if seal(a) != seal(ref) || open(a) != open(ref) || open(a) != (n != 12) {
				t.Fatalf("nonce of %d octets: panics otherwise than in the standard library", n)
			}
		}
		if n := a.NonceSize(); n != ref.NonceSize() {
			t.Fatalf("NonceSize %d", n)
		}
		if n := a.Overhead(); n != ref.Overhead() {
			t.Fatalf("Overhead %d", n)
		}
	})
}

// Without room the result is allocated, as by append.
func TestAppend(t *testing.T) {
	each(t, func(t *testing.T, a *AEAD, ref cipher.AEAD, rnd *random) {
		nonce, text, aad := rnd.bytes(12), rnd.bytes(50), rnd.bytes(8)
		for _, c := range []int{3, 40, 68, 69, 100} {
			got, want := a.Seal(make([]byte, 3, c), nonce, text, aad), ref.Seal(make([]byte, 3, c), nonce, text, aad)
			if !bytes.Equal(got, want) {
				t.Fatalf("capacity %d: %x, want %x", c, got, want)
			}
			back, err := a.Open(make([]byte, 3, c), nonce, got[3:], aad)
			if err != nil || !bytes.Equal(back, append(make([]byte, 3), text...)) {
				t.Fatalf("capacity %d: %v, %x", c, err, back)
			}
		}
	})
}

func TestKeyLength(t *testing.T) {
	for n := range 40 {
		a, err := New(make([]byte, n))
		if ok := n == 16 || n == 24 || n == 32; ok != (err == nil) || ok != (a != nil) {
			t.Fatalf("key of %d octets: %v", n, err)
		}
	}
}

func TestWipe(t *testing.T) {
	each(t, func(t *testing.T, a *AEAD, _ cipher.AEAD, rnd *random) {
		s, std := a.s, a.std
		sealed := a.Seal(nil, rnd.bytes(12), rnd.bytes(100), nil)
		a.Wipe()
		a.Wipe()
		if s != nil && *s != (schedule{}) {
			t.Fatal("the schedule is not wiped")
		}
		if std != nil {
			if got := fmt.Sprintf("%+v", std); strings.ContainsAny(got, "123456789") {
				t.Fatalf("the standard library's cipher is not wiped: %s", got)
			}
		}
		if *a != (AEAD{}) || a.Accelerated() != "wiped" {
			t.Fatalf("not wiped: %+v", a)
		}
		// An all-zero key must never seal or open anything.
		for _, f := range []func(){
			func() { a.Seal(nil, make([]byte, 12), nil, nil) },
			func() { _, _ = a.Open(nil, make([]byte, 12), sealed, nil) },
			func() { a.SealInPlace(make([]byte, 32), Words{}, Words{}, 0) },
			func() { a.OpenInPlace(make([]byte, 32), Words{}, Words{}, 0) },
		} {
			func() {
				defer func() {
					if r := recover(); r != "aesgcm: used after Wipe" {
						t.Fatalf("used after Wipe: %v", r)
					}
				}()
				f()
			}()
		}
	})
}

// One AEAD for many goroutines: nothing in it changes.
func TestConcurrent(t *testing.T) {
	each(t, func(t *testing.T, a *AEAD, ref cipher.AEAD, rnd *random) {
		nonce, text, aad := rnd.bytes(12), rnd.bytes(1420), rnd.bytes(12)
		want := ref.Seal(nil, nonce, text, aad)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				out := make([]byte, 0, len(want))
				for n := range 300 {
					if got := a.Seal(out, nonce, text, aad); !bytes.Equal(got, want) {
						t.Errorf("round %d: sealed otherwise", n)
					} else if _, err := a.Open(out, nonce, got, aad); err != nil {
						t.Errorf("round %d: %v", n, err)
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestAllocations(t *testing.T) {
	for _, impl := range usable {
		a, err := newAs(impl, make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		buf, nonce, aad := make([]byte, 1420+16), make([]byte, 12), make([]byte, 12)
		if n := testing.AllocsPerRun(100, func() {
			a.Seal(buf[:0], nonce, buf[:1420], aad)
			if _, err := a.Open(buf[:0], nonce, buf, aad); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", a.Accelerated(), n)
		}
		if n := testing.AllocsPerRun(100, func() {
			a.SealInPlace(buf, Words{}, Words{}, 12)
			if !a.OpenInPlace(buf, Words{}, Words{}, 12) {
				t.Fatal("wrong tag")
			}
		}); n != 0 && impl != std {
			t.Errorf("%s: %v allocations in place", a.Accelerated(), n)
		}
	}
}

// With the build tag purego, and where the machine has nothing better, the standard library works.
func TestAccelerated(t *testing.T) {
	if usable[len(usable)-1] != std {
		t.Fatalf("no fallback among %v", usable)
	}
	a, err := New(make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("this machine: %s of %d", a.Accelerated(), len(usable))
	if (a.Accelerated() == "std") != (len(usable) == 1) {
		t.Fatalf("%s is not the fastest of %v", a.Accelerated(), usable)
	}
}

// FuzzDifferential cuts everything out of one input, and wants the standard library's answer to
// all of it, also to forgeries.
func FuzzDifferential(f *testing.F) {
	for _, n := range []int{0, 1, 16, 64, 257, 1420} {
		f.Add(uint8(n), make([]byte, 32), make([]byte, 12), make([]byte, n%41), make([]byte, n), uint16(n), uint16(0), uint8(n))
	}
	f.Fuzz(func(t *testing.T, kind uint8, key, nonce, aad, text []byte, flip, grow uint16, align uint8) {
		size := keySizes[int(kind)%3]
		key = append(key, make([]byte, 32)...)[:size]
		nonce = append(nonce, make([]byte, 12)...)[:12]
		text = append(text, make([]byte, grow%9000)...)
		n := len(text)
		ref := reference(t, key)
		want := ref.Seal(nil, nonce, text, aad)
		bad := bytes.Clone(want)
		bad[int(flip)/8%len(bad)] ^= 1 << (flip % 8)
		for _, impl := range usable {
			a, err := newAs(impl, key)
			if err != nil {
				t.Fatal(err)
			}
			buf, all := room(n+16, int(align%64))
			copy(buf, text)
			if got := a.Seal(buf[:0], nonce, buf[:n], aad); !bytes.Equal(got, want) || !intact(buf, all) {
				t.Fatalf("%s: sealed\n %x, want\n %x; room intact: %t", a.Accelerated(), got, want, intact(buf, all))
			}
			if got, err := a.Open(buf[:0], nonce, buf, aad); err != nil || !bytes.Equal(got, text) || !intact(buf, all) {
				t.Fatalf("%s: opened: %v\n %x, want\n %x", a.Accelerated(), err, got, text)
			}
			short := aad[:min(len(aad), 16)]
			checkPacket(t, a, a.Accelerated(), nonce, short, text, ref.Seal(nil, nonce, text, short), int(align%64))
			copy(buf, bad)
			if got, err := a.Open(buf[:0], nonce, buf, aad); err == nil || got != nil || !bytes.Equal(buf[:n], make([]byte, n)) {
				t.Fatalf("%s: forgery: %v, %x", a.Accelerated(), err, buf[:n])
			}
		}
	})
}
