// Command gen writes seal_amd64.s: the loops that encrypt and authenticate, for every key size,
// with the instructions of the block cipher and those of GHASH woven into one another.
//
//	go generate ./esp/aesgcm
//
// It is a program because the same few building blocks occur in some thirty combinations (three
// key sizes, two directions, one to four vectors in the last group), and because weaving two
// streams of instructions is what a program does well and a person does not.
package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintf(os.Stderr, "gen: want one argument, the file to write; got %d\n", len(os.Args)-1)
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], Generate(), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// Layout of the struct schedule in schedule.go; its test compares.
const (
	powers  = 33                // H^33 … H^1, descending: a chunk of 32 blocks and the block of lengths
	chunk   = powers - 1        // blocks between two reductions
	keysOff = powers * 16       // the round keys follow
	hOff    = (powers - 1) * 16 // H^1
	group   = 256               // octets that one turn of the loop takes: four vectors
)

// Registers. Vectors are named by number; which width is meant is the instruction's business.
//
//	AX  the schedule       R8  where in the powers the next vector's stand
//	DI  dst - 16           R9  the end of the powers
//	SI  src - 16           R10 blocks not yet hashed, that of the lengths included
//	CX  octets left, 16 more than there are: J0 and the additional data's block come first
//	R11 groups until the counters' lowest octet runs over
//	R13 and BX: the lengths in bits
const (
	state = 0  // Z0–Z3: counters on their way to key stream, then text
	data  = 4  // Z4–Z7: what GHASH takes next, octets reversed
	lo    = 8  // Z8–Z10: the sum of products that is not reduced yet
	mid   = 9  //
	hi    = 10 //
	t0    = 11 //
	t1    = 12 //
	mask  = 13 // E(K, J0), from the first group on
	ctr   = 14 // the next four counters
	bswap = 15 // for VPSHUFB: reverses the octets of each block
	carry = 16 // Open: the reduced sum that goes into the next vector
	text  = 16 // Seal: text with the last round key added
	rk    = 16 // Z17–Z30: round keys 1 to 14, the same in all lanes
	t2    = 31 //
)

type gen struct {
	bytes.Buffer
	fn     string
	rounds int
	labels int
	later  code // out of the way
}

type code []string

func (c *code) add(format string, args ...any) { *c = append(*c, fmt.Sprintf(format, args...)) }

func (g *gen) emit(c code) {
	for _, s := range c {
		fmt.Fprintf(g, "\t%s\n", s)
	}
}

func (g *gen) op(format string, args ...any) { fmt.Fprintf(g, "\t"+format+"\n", args...) }

func (g *gen) label(name string) { fmt.Fprintf(g, "\n%s:\n", name) }

func (g *gen) newLabel(name string) string {
	g.labels++
	return fmt.Sprintf("%s%d", name, g.labels)
}

func (g *gen) comment(format string, args ...any) { fmt.Fprintf(g, "\n\t// "+format+"\n", args...) }

// weave spreads the instructions of b evenly among those of a; the order within each stays.
func weave(a, b code) code {
	if len(a) < len(b) {
		a, b = b, a
	}
	out, done := make(code, 0, len(a)+len(b)), 0
	for i, s := range a {
		out = append(out, s)
		for done < (i+1)*len(b)/len(a) {
			out = append(out, b[done])
			done++
		}
	}
	return append(out, b[done:]...)
}

// counters makes k vectors of counter blocks, with the first round key added. They are counted as
// they stand in memory, big-endian, by adding to the last octet alone: from 1 on, that one runs
// over in every 16th group, which is dealt with apart, in reversed order.
func (g *gen) counters(k int, first bool) {
	g.op("VBROADCASTI32X4 %d(AX), Z%d", keysOff, t0)
	if !first {
		slow, done := g.newLabel("carry"), g.newLabel("counted")
		g.op("SUBL $1, R11")
		g.op("JZ %s", slow)
		defer g.label(done)
		var c code
		c.add("VPSHUFB Z%d, Z%d, Z%d", bswap, ctr, ctr)
		for i := range k {
			c.add("VPSHUFB Z%d, Z%d, Z%d", bswap, ctr, state+i)
			c.add("VPADDD fourReversed<>(SB), Z%d, Z%d", ctr, ctr)
			c.add("VPXORQ Z%d, Z%d, Z%d", t0, state+i, state+i)
		}
		c.add("VPSHUFB Z%d, Z%d, Z%d", bswap, ctr, ctr)
		c.add("MOVL $16, R11")
		c.add("JMP %s", done)
		g.later = append(g.later, slow+":")
		g.later = append(g.later, c...)
	}
	for i := range k {
		g.op("VPXORQ Z%d, Z%d, Z%d", t0, ctr, state+i)
		g.op("VPADDD four<>(SB), Z%d, Z%d", ctr, ctr)
	}
}

// aes runs the rounds over k vectors. If masks are given, one for each vector, the text at SI is
// added too, by way of the last round key: so the last round's result is the ciphertext.
func (g *gen) aes(k int, masks ...string) (c code) {
	for r := 1; r < g.rounds; r++ {
		for i := range k {
			c.add("VAESENC Z%d, Z%d, Z%d", rk+r, state+i, state+i)
		}
	}
	for i := range k {
		last := rk + g.rounds
		switch {
		case masks == nil:
		case masks[i] == "":
			c.add("VPXORQ %d(SI), Z%d, Z%d", 64*i, last, text)
			last = text
		default:
			c.add("VMOVDQU8.Z %d(SI), %s, Z%d", 64*i, masks[i], text)
			c.add("VPXORQ Z%d, Z%d, Z%d", last, text, text)
			last = text
		}
		c.add("VAESENCLAST Z%d, Z%d, Z%d", last, state+i, state+i)
	}
	return c
}

// mul adds the product of the vector d and the powers at addr to the sum. It overwrites d.
func mul(w string, d int, addr string) (c code) {
	c.add("VMOVDQU64 %s, %s%d", addr, w, t1)
	c.mulMiddle(w, d)
	c.add("VPCLMULQDQ $0x00, %s%d, %s%d, %s%d", w, t1, w, d, w, t0)
	c.add("VPCLMULQDQ $0x11, %s%d, %s%d, %s%d", w, t1, w, d, w, d)
	c.add("VPXORQ Z%d, Z%d, Z%d", t0, lo, lo)
	c.add("VPXORQ Z%d, Z%d, Z%d", d, hi, hi)
	return c
}

// mulTwo adds two products, those of d with the powers at addr and of e with those at addr2; some
// sums of three take one instruction.
func mulTwo(d int, addr string, e int, addr2 string) (c code) {
	c.add("VMOVDQU64 %s, Z%d", addr, t1)
	c.mulMiddle("Z", d)
	c.add("VPCLMULQDQ $0x00, Z%d, Z%d, Z%d", t1, d, t0)
	c.add("VPCLMULQDQ $0x11, Z%d, Z%d, Z%d", t1, d, d)
	c.add("VMOVDQU64 %s, Z%d", addr2, t1)
	c.add("VPCLMULQDQ $0x00, Z%d, Z%d, Z%d", t1, e, t2)
	c.add("VPTERNLOGQ $0x96, Z%d, Z%d, Z%d", t0, t2, lo)
	c.mulMiddle("Z", e)
	c.add("VPCLMULQDQ $0x11, Z%d, Z%d, Z%d", t1, e, e)
	c.add("VPTERNLOGQ $0x96, Z%d, Z%d, Z%d", d, e, hi)
	return c
}

func (c *code) mulMiddle(w string, d int) {
	c.add("VPCLMULQDQ $0x01, %s%d, %s%d, %s%d", w, t1, w, d, w, t0)
	c.add("VPCLMULQDQ $0x10, %s%d, %s%d, %s%d", w, t1, w, d, w, t2)
	c.add("VPTERNLOGQ $0x96, Z%d, Z%d, Z%d", t0, t2, mid)
}

// hash adds k vectors of data to the sum. The first one comes last: what is carried into it
// comes out of a reduction and is the last to be ready.
func hash(k int) (c code) {
	addr := func(i int) string { return fmt.Sprintf("%d(R8)", i%k*64) }
	i := 1
	if k%2 != 0 {
		c = append(c, mul("Z", data+1%k, addr(1))...)
		i++
	}
	for ; i <= k; i += 2 {
		c = append(c, mulTwo(data+i, addr(i), data+(i+1)%k, addr(i+1))...)
	}
	return c
}

// reduce folds the sum to hi (mod the field's polynomial).
func reduce() (c code) {
	const w = "Z"
	for _, r := range [2][2]int{{lo, mid}, {mid, hi}} {
		c.add("VPCLMULQDQ $0x10, poly<>(SB), %s%d, %s%d", w, r[0], w, t0)
		c.add("VPSHUFD $0x4e, %s%d, %s%d", w, r[0], w, r[0])
		c.add("VPTERNLOGQ $0x96, %s%d, %s%d, %s%d", w, t0, w, r[0], w, r[1])
	}
	return c
}

// fold adds the four lanes of hi.
func fold() (c code) {
	c.add("VEXTRACTI64X4 $1, Z%d, Y%d", hi, t0)
	c.add("VPXOR Y%d, Y%d, Y%d", t0, hi, hi)
	c.add("VEXTRACTI128 $1, Y%d, X%d", hi, t0)
	c.add("VPXOR X%d, X%d, X%d", t0, hi, hi)
	return c
}

func clearSum() (c code) {
	for _, r := range []int{lo, mid, hi} {
		c.add("VPXOR X%d, X%d, X%d", r, r, r)
	}
	return c
}

// mulH multiplies the block d with H and leaves the reduced product in hi.
func mulH(d int) (c code) {
	c.add("VMOVDQU %d(AX), X%d", hOff, t1)
	c.add("VPCLMULQDQ $0x00, X%d, X%d, X%d", t1, d, lo)
	c.add("VPCLMULQDQ $0x01, X%d, X%d, X%d", t1, d, t0)
	c.add("VPCLMULQDQ $0x10, X%d, X%d, X%d", t1, d, mid)
	c.add("VPCLMULQDQ $0x11, X%d, X%d, X%d", t1, d, hi)
	c.add("VPXOR X%d, X%d, X%d", t0, mid, mid)
	return append(c, reduceVEX("X", lo, mid, hi, t0)...)
}

// reduceVEX is reduce without AVX-512.
func reduceVEX(w string, lo, mid, hi, t int) (c code) {
	for _, r := range [2][2]int{{lo, mid}, {mid, hi}} {
		c.add("VPCLMULQDQ $0x10, poly<>(SB), %s%d, %s%d", w, r[0], w, t)
		c.add("VPSHUFD $0x4e, %s%d, %s%d", w, r[0], w, r[0])
		c.add("VPXOR %s%d, %s%d, %s%d", w, t, w, r[1], w, r[1])
		c.add("VPXOR %s%d, %s%d, %s%d", w, r[0], w, r[1], w, r[1])
	}
	return c
}

// startChunk points R8 at the power of the next block to hash. If all that is left fits, that of
// the lengths gets H^1; else 32 blocks are hashed and reduced, which leaves one for later.
func startChunk() (c code) {
	c.add("MOVQ R10, DX")
	c.add("SHLQ $4, DX")
	c.add("MOVQ R9, R8")
	c.add("SUBQ DX, R8")
	c.add("LEAQ %d(AX), DX", (powers-chunk)*16)
	c.add("CMPQ R10, $%d", powers)
	c.add("CMOVQHI DX, R8")
	c.add("SUBQ $%d, R10", chunk)
	return c
}

// lengths is the last block (SP 800-38D section 7.1, step 5) times H, added to the sum. R13 and
// BX hold the numbers of bits.
func lengths() (c code) {
	c.add("VMOVQ BX, X%d", data)
	c.add("VPINSRQ $1, R13, X%d, X%d", data, data)
	return append(c, mul("X", data, fmt.Sprintf("%d(AX)", hOff))...)
}

// argSize is the size of the arguments and the result of seal or open.
func argSize(fn string) int {
	if strings.HasPrefix(fn, "open") { // openYMM too
		return 89
	}
	return 88
}

// choose writes the function that Go calls; it jumps to the one for the code: the number of
// rounds, and 10 more for the variant without AVX-512.
func (g *gen) choose(fn string) {
	fmt.Fprintf(g, "\n// func %sVector(s *schedule, code int, dst, src *byte, n int, nonce, aad Words, aadLen int, tag *byte)%s\n",
		fn, map[string]string{"open": " (ok bool)"}[fn])
	fmt.Fprintf(g, "TEXT ·%sVector(SB), NOSPLIT, $0-%d\n", fn, argSize(fn))
	g.op("MOVQ code+8(FP), AX")
	g.op("CMPQ AX, $20")
	g.op("JGE ymm")
	for _, kind := range []string{"", "YMM"} {
		if kind != "" {
			g.label("ymm")
			g.op("SUBQ $10, AX")
		}
		g.op("CMPQ AX, $12")
		g.op("JEQ r12%s", kind)
		g.op("JGT r14%s", kind)
		g.op("JMP %s%s10<>(SB)", fn, kind)
		for _, r := range []int{12, 14} {
			g.label(fmt.Sprintf("r%d%s", r, kind))
			g.op("JMP %s%s%d<>(SB)", fn, kind, r)
		}
	}
}

// prologue loads everything; the additional data's block goes to t1, not reversed.
func (g *gen) prologue() {
	fmt.Fprintf(g, "\nTEXT %s%d<>(SB), NOSPLIT, $0-%d\n", g.fn, g.rounds, argSize(g.fn))
	g.op("MOVQ s+0(FP), AX")
	g.op("VMOVQ nonce_Lo+40(FP), X%d", ctr)
	g.op("VPINSRQ $1, nonce_Hi+48(FP), X%d, X%d", ctr, ctr)
	g.op("VBROADCASTI32X4 bswap<>(SB), Z%d", bswap)
	g.comment("the counters: nonce || 1, 2, 3, 4; the first is J0 (SP 800-38D section 7.1)")
	g.op("VSHUFI64X2 $0, Z%d, Z%d, Z%d", ctr, ctr, ctr)
	g.op("VPADDD first<>(SB), Z%d, Z%d", ctr, ctr)
	for r := 1; r <= g.rounds; r++ {
		g.op("VBROADCASTI32X4 %d(AX), Z%d", keysOff+16*r, rk+r)
	}
	g.op("VMOVQ aad_Lo+56(FP), X%d", t1)
	g.op("VPINSRQ $1, aad_Hi+64(FP), X%d, X%d", t1, t1)
	g.op("MOVQ dst+16(FP), DI")
	g.op("MOVQ src+24(FP), SI")
	g.op("MOVQ n+32(FP), CX")
	g.op("MOVQ aadLen+72(FP), R13")
	g.op("SHLQ $3, R13")
	g.op("LEAQ (CX*8), BX")
	g.op("ADDQ $16, CX")
	g.op("SUBQ $16, DI")
	g.op("SUBQ $16, SI")
	g.op("LEAQ %d(AX), R9", keysOff)
	g.op("LEAQ 31(CX), R10")
	g.op("SHRQ $4, R10")
	g.op("MOVL $15, R11")
	g.emit(startChunk())
	g.emit(clearSum())
}

// The first vector's first block is J0's and the additional data's; notFirst sets K3 to the others.
func notFirst() (c code) {
	c.add("MOVQ $-65536, DX")
	c.add("KMOVQ DX, K3")
	return c
}

// tailMask sets K1 to the octets of text that the last of k vectors holds.
func tailMask(k int, first bool) (c code) {
	if k > 1 {
		c.add("SUBQ $%d, CX", 64*(k-1))
	}
	c.add("MOVQ $%d, DX", map[bool]int{true: -65536, false: -1}[first && k == 1])
	c.add("BZHIQ CX, DX, DX")
	c.add("KMOVQ DX, K1")
	if first && k > 1 {
		c = append(c, notFirst()...)
	}
	return c
}

// masks returns the mask register of each of k vectors, "" where it is whole. K1 and K3 are for a
// group that is the first, the last, or both.
func masks(k int, first, tail bool) []string {
	m := make([]string, k)
	if first {
		m[0] = "K3"
	}
	if tail {
		m[k-1] = "K1"
	}
	return m
}

// load loads the vector at off(SI), zeroes where the mask says.
func (g *gen) load(off int, mask string, to int) {
	if mask == "" {
		g.op("VMOVDQU64 %d(SI), Z%d", off, to)
	} else {
		g.op("VMOVDQU8.Z %d(SI), %s, Z%d", off, mask, to)
	}
}

// store stores the text.
func (g *gen) store(masks []string) {
	for i, m := range masks {
		if m == "" {
			g.op("VMOVDQU64 Z%d, %d(DI)", state+i, 64*i)
		} else {
			g.op("VMOVDQU8 Z%d, %s, %d(DI)", state+i, m, 64*i)
		}
	}
}

// finish makes the tag of the sum, deals with it, and leaves.
func (g *gen) finish() {
	g.label("finish")
	g.emit(reduce())
	g.emit(fold())
	g.op("VPSHUFB X%d, X%d, X%d", bswap, hi, hi)
	g.op("VPXOR X%d, X%d, X%d", mask, hi, hi)
	g.op("MOVQ tag+80(FP), BX")
	if g.fn == "seal" {
		g.op("VMOVDQU X%d, (BX)", hi)
	} else {
		g.op("VPXOR (BX), X%d, X%d", hi, hi)
		g.op("VPTEST X%d, X%d", hi, hi)
		g.op("SETEQ ok+88(FP)")
	}
	g.comment("neither keys nor key stream stay in registers")
	for _, r := range []int{0, 1, 2, 3, lo, mid, hi, t0, t1, mask} {
		g.op("VPXOR X%d, X%d, X%d", r, r, r)
	}
	for r := 1; r <= g.rounds; r++ {
		g.op("VPXORQ Z%d, Z%d, Z%d", rk+r, rk+r, rk+r)
	}
	g.op("VPXORQ Z%d, Z%d, Z%d", t2, t2, t2)
	g.op("VZEROUPPER")
	g.op("RET")

	g.emitLater()
}

// emitLater writes what happens rarely.
func (g *gen) emitLater() {
	for _, s := range g.later {
		if strings.HasSuffix(s, ":") {
			g.label(strings.TrimSuffix(s, ":"))
		} else {
			g.op("%s", s)
		}
	}
	g.later = nil
}

// chooseTail jumps to the code for the number of vectors that CX octets, 1 to 256, need.
func (g *gen) chooseTail(name string) {
	g.op("CMPQ CX, $64")
	g.op("JLE %s1", name)
	g.op("CMPQ CX, $128")
	g.op("JLE %s2", name)
	g.op("CMPQ CX, $192")
	g.op("JLE %s3", name)
	g.op("JMP %s4", name)
}

// reduceIfFull ends the chunk if its powers are used up; to takes the reduced sum.
func (g *gen) reduceIfFull(take code) {
	l := g.newLabel("more")
	g.op("CMPQ R8, R9")
	g.op("JNE %s", l)
	g.emit(reduce())
	g.emit(fold())
	g.emit(take)
	g.emit(clearSum())
	g.emit(startChunk())
	g.label(l)
}

// nextGroup moves on in text by one group.
func nextGroup() (c code) {
	c.add("ADDQ $%d, SI", group)
	c.add("ADDQ $%d, DI", group)
	c.add("SUBQ $%d, CX", group)
	return c
}

// seal: the hash follows the cipher at a distance of one group.
func (g *gen) seal() {
	g.fn = "seal"
	g.prologue()
	// reversed stores the ciphertext and moves it to where the hash takes it.
	reversed := func(first bool, masks []string) {
		if first {
			g.op("VMOVDQA X%d, X%d", state, mask)
		}
		g.store(masks)
		for i, m := range masks {
			if m != "" {
				g.op("VMOVDQU8.Z Z%d, %s, Z%d", state+i, m, state+i)
			}
			if first && i == 0 {
				g.op("VPORQ Z%d, Z%d, Z%d", t1, state, state)
			}
			g.op("VPSHUFB Z%d, Z%d, Z%d", bswap, state+i, data+i)
		}
	}
	g.op("CMPQ CX, $%d", group)
	g.op("JG whole")
	g.chooseTail("only")

	g.label("whole")
	g.emit(notFirst())
	g.counters(4, true)
	g.emit(g.aes(4, masks(4, true, false)...))
	reversed(true, masks(4, true, false))
	g.emit(nextGroup())
	g.op("CMPQ CX, $%d", group)
	g.op("JLE last")

	g.label("loop")
	g.counters(4, false)
	g.emit(weave(g.aes(4, masks(4, false, false)...), hash(4)))
	reversed(false, masks(4, false, false))
	g.emit(nextGroup())
	g.op("ADDQ $%d, R8", group)
	g.reduceIfFull(code{fmt.Sprintf("VPXORQ Z%d, Z%d, Z%d", hi, data, data)})
	g.op("CMPQ CX, $%d", group)
	g.op("JG loop")

	g.label("last")
	g.chooseTail("last")

	for k := 1; k <= 4; k++ {
		g.label(fmt.Sprintf("last%d", k))
		g.emit(tailMask(k, false))
		g.counters(k, false)
		g.emit(weave(g.aes(k, masks(k, false, true)...), hash(4)))
		reversed(false, masks(k, false, true))
		g.op("ADDQ $%d, R8", group)
		g.reduceIfFull(code{fmt.Sprintf("VPXORQ Z%d, Z%d, Z%d", hi, data, data)})
		g.emit(hash(k))
		g.emit(lengths())
		g.op("JMP finish")
	}
	for k := 1; k <= 4; k++ {
		g.label(fmt.Sprintf("only%d", k))
		g.emit(tailMask(k, true))
		g.op("VMOVDQA X%d, X%d", t1, data+1)
		g.counters(k, true)
		g.emit(weave(g.aes(k, masks(k, true, true)...), lengths()))
		g.op("VMOVDQA X%d, X%d", data+1, t1)
		reversed(true, masks(k, true, true))
		g.emit(hash(k))
		g.op("JMP finish")
	}
	g.finish()
}

// open: the hash runs beside the cipher.
func (g *gen) open() {
	g.fn = "open"
	g.prologue()
	// reversed loads the ciphertext to where the hash takes it.
	reversed := func(first bool, masks []string) {
		for i, m := range masks {
			g.load(64*i, m, data+i)
		}
		if first {
			g.op("VPORQ Z%d, Z%d, Z%d", t1, data, data)
		}
		for i := range masks {
			g.op("VPSHUFB Z%d, Z%d, Z%d", bswap, data+i, data+i)
		}
		if !first {
			g.op("VPXORQ Z%d, Z%d, Z%d", carry, data, data)
		}
	}
	// crypt adds the text to the key stream and stores the sum.
	crypt := func(first bool, masks []string) {
		if first {
			g.op("VMOVDQA X%d, X%d", state, mask)
		}
		for i, m := range masks {
			if m == "" {
				g.op("VPXORQ %d(SI), Z%d, Z%d", 64*i, state+i, state+i)
			} else {
				g.load(64*i, m, t0)
				g.op("VPXORQ Z%d, Z%d, Z%d", t0, state+i, state+i)
			}
		}
		g.store(masks)
	}
	g.op("CMPQ CX, $%d", group)
	g.op("JG whole")
	g.chooseTail("only")

	g.label("whole")
	g.op("VPXORQ Z%d, Z%d, Z%d", carry, carry, carry)
	g.emit(notFirst())
	reversed(true, masks(4, true, false))
	g.counters(4, true)
	g.emit(weave(g.aes(4), hash(4)))
	crypt(true, masks(4, true, false))
	g.emit(nextGroup())
	g.op("ADDQ $%d, R8", group)
	g.op("CMPQ CX, $%d", group)
	g.op("JLE last")

	g.label("loop")
	reversed(false, masks(4, false, false))
	g.op("VPXORQ Z%d, Z%d, Z%d", carry, carry, carry)
	g.counters(4, false)
	g.emit(weave(g.aes(4), hash(4)))
	crypt(false, masks(4, false, false))
	g.emit(nextGroup())
	g.op("ADDQ $%d, R8", group)
	g.reduceIfFull(code{fmt.Sprintf("VMOVDQA64 Z%d, Z%d", hi, carry)})
	g.op("CMPQ CX, $%d", group)
	g.op("JG loop")

	g.label("last")
	g.chooseTail("last")
	for _, first := range []bool{false, true} {
		for k := 1; k <= 4; k++ {
			g.label(fmt.Sprintf("%s%d", map[bool]string{false: "last", true: "only"}[first], k))
			g.emit(tailMask(k, first))
			reversed(first, masks(k, first, true))
			g.counters(k, first)
			g.emit(weave(g.aes(k), append(hash(k), lengths()...)))
			crypt(first, masks(k, first, true))
			g.op("JMP finish")
		}
	}
	g.finish()
}

// Generate returns the file.
func Generate() []byte {
	g := &gen{}
	fmt.Fprintf(g, `// Code generated by internal/gen; DO NOT EDIT.

//go:build amd64 && !purego

#include "textflag.h"

// reverses 16 octets
DATA bswap<>+0(SB)/8, $0x08090a0b0c0d0e0f
DATA bswap<>+8(SB)/8, $0x0001020304050607
GLOBL bswap<>(SB), RODATA|NOPTR, $16

`)
	table := func(name string, v ...uint64) {
		for i, x := range v {
			fmt.Fprintf(g, "DATA %s<>+%d(SB)/8, $%#016x\n", name, 8*i, x)
		}
		fmt.Fprintf(g, "GLOBL %s<>(SB), RODATA|NOPTR, $%d\n\n", name, 8*len(v))
	}
	const p = 0xc200000000000000 // x^128 = x^127 + x^126 + x^121 + 1, bits reversed
	table("poly", 1, p, 1, p, 1, p, 1, p)
	const one = 1 << 56 // in the block's last octet
	table("first", 0, 1*one, 0, 2*one, 0, 3*one, 0, 4*one)
	table("four", 0, 4*one, 0, 4*one, 0, 4*one, 0, 4*one)
	table("fourReversed", 4, 0, 4, 0, 4, 0, 4, 0)
	// For two lanes: what is added for vector i, and what then is for the next group.
	var steps, stepsReversed []uint64
	for i := range uint64(9) {
		steps = append(steps, 0, 2*i*one, 0, 2*i*one)
		stepsReversed = append(stepsReversed, 2*i, 0, 2*i, 0)
	}
	table("steps", steps...)
	table("stepsReversed", stepsReversed...)
	table("second", 0, 2*one, 0, 3*one)
	g.choose("seal")
	g.choose("open")
	for _, g.rounds = range []int{10, 12, 14} {
		g.seal()
		g.open()
	}
	y := &ymm{}
	for _, y.rounds = range []int{10, 12, 14} {
		y.seal()
		y.open()
	}
	g.Write(y.Bytes())
	g.powers()
	g.blocks()
	return g.Bytes()
}

// powers writes the function that fills the table of powers of H.
func (g *gen) powers() {
	fmt.Fprintf(g, "\n// func powers(s *schedule, rounds int)\nTEXT ·powers(SB), NOSPLIT, $0-16\n")
	g.op("MOVQ s+0(FP), AX")
	g.op("MOVQ rounds+8(FP), CX")
	g.op("VMOVDQU bswap<>(SB), X%d", bswap)
	g.comment("H = E(K, 0)")
	g.op("LEAQ %d(AX), BX", keysOff)
	g.op("VMOVDQU (BX), X0")
	g.label("rounds")
	g.op("ADDQ $16, BX")
	g.op("SUBQ $1, CX")
	g.op("JZ roundLast")
	g.op("VAESENC (BX), X0, X0")
	g.op("JMP rounds")
	g.label("roundLast")
	g.op("VAESENCLAST (BX), X0, X0")
	g.op("VPSHUFB X%d, X0, X0", bswap)
	g.comment("H * x, so that products need no shift: what is shifted out comes back as the polynomial")
	g.op("VPSHUFD $0xff, X0, X1")
	g.op("VPSRAD $31, X1, X1")
	g.op("VPAND poly<>(SB), X1, X1")
	g.op("VPSRLQ $63, X0, X2")
	g.op("VPSLLDQ $8, X2, X2")
	g.op("VPADDQ X0, X0, X0")
	g.op("VPOR X2, X0, X0")
	g.op("VPXOR X1, X0, X0")
	g.comment("H^1 … H^%d, from the end of the table to its beginning", powers)
	g.op("VMOVDQU X0, %d(AX)", hOff)
	g.op("VMOVDQA X0, X%d", hi)
	g.op("LEAQ %d(AX), BX", hOff)
	g.label("power")
	g.op("SUBQ $16, BX")
	g.op("VMOVDQA X%d, X%d", hi, data)
	g.emit(mulH(data))
	g.op("VMOVDQU X%d, (BX)", hi)
	g.op("CMPQ BX, AX")
	g.op("JA power")
	for _, r := range []int{0, 1, 2, data, lo, mid, hi, t0, t1} {
		g.op("VPXOR X%d, X%d, X%d", r, r, r)
	}
	g.op("VZEROUPPER")
	g.op("RET")
}

// blocks writes the function that hashes additional data before its last block: slow and short.
func (g *gen) blocks() {
	fmt.Fprintf(g, "\n// func hashBlocks(s *schedule, p *byte, n int) (sum Words)\nTEXT ·hashBlocks(SB), NOSPLIT, $0-40\n")
	g.op("MOVQ s+0(FP), AX")
	g.op("MOVQ p+8(FP), SI")
	g.op("MOVQ n+16(FP), CX")
	g.op("VMOVDQU bswap<>(SB), X%d", bswap)
	g.op("VPXOR X%d, X%d, X%d", hi, hi, hi)
	g.label("block")
	g.op("VMOVDQU (SI), X%d", data)
	g.op("VPSHUFB X%d, X%d, X%d", bswap, data, data)
	g.op("VPXOR X%d, X%d, X%d", hi, data, data)
	g.emit(mulH(data))
	g.op("ADDQ $16, SI")
	g.op("SUBQ $1, CX")
	g.op("JNZ block")
	g.op("VPSHUFB X%d, X%d, X%d", bswap, hi, hi)
	g.op("VMOVQ X%d, sum_Lo+24(FP)", hi)
	g.op("VPEXTRQ $1, X%d, sum_Hi+32(FP)", hi)
	for _, r := range []int{data, lo, mid, hi, t0, t1} {
		g.op("VPXOR X%d, X%d, X%d", r, r, r)
	}
	g.op("VZEROUPPER")
	g.op("RET")
}
