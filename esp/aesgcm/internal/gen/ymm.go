package main

import "fmt"

// The variant for processors with VAES and VPCLMULQDQ, but without AVX-512: two blocks at a time,
// 16 registers, no masks. It differs from the other one in these points:
//
//   - Round keys, counters and what is carried between chunks are loaded when they are needed.
//   - GHASH takes ciphertext from memory.
//   - J0 and the additional data are dealt with before the text.
//   - The last 1 to 256 octets are encrypted with a key stream that is computed for 64, 128, 192
//     or 256 octets and stored on the stack, 32 octets at a time; what is left goes through a
//     buffer on the stack. Both are cleared.
//
// The general registers have the same meaning. R12 and BX are scratch; RBITS and ABITS are kept
// in the frame.
const (
	yKey   = 8
	yLo    = 9
	yMid   = 10
	yHi    = 11
	yT0    = 12
	yT1    = 13
	yT2    = 14
	yBswap = 15

	stream  = 0   // 256 octets of key stream
	scratch = 256 // 32 octets of text
	counter = 288 // 32: the next two counters
	carried = 320 // 32: the reduced sum that goes into the next vector, or zeroes
	tagMask = 352 // 16: E(K, J0)
	lens    = 368 // 16: the block of lengths
	frame   = 384
)

type ymm struct{ gen }

func (g *ymm) counters(k int, slow bool) (c code) {
	if slow {
		c.add("VMOVDQU %d(SP), Y%d", counter, yT0)
		c.add("VPSHUFB Y%d, Y%d, Y%d", yBswap, yT0, yT0)
		for i := range k {
			c.add("VPADDD stepsReversed<>+%d(SB), Y%d, Y%d", 32*i, yT0, i)
			c.add("VPSHUFB Y%d, Y%d, Y%d", yBswap, i, i)
		}
		c.add("VPADDD stepsReversed<>+%d(SB), Y%d, Y%d", 32*k, yT0, yT0)
		c.add("VPSHUFB Y%d, Y%d, Y%d", yBswap, yT0, yT0)
	} else {
		c.add("VMOVDQU %d(SP), Y%d", counter, yT0)
		for i := range k {
			c.add("VPADDD steps<>+%d(SB), Y%d, Y%d", 32*i, yT0, i)
		}
		c.add("VPADDD steps<>+%d(SB), Y%d, Y%d", 32*k, yT0, yT0)
	}
	c.add("VMOVDQU Y%d, %d(SP)", yT0, counter)
	return c
}

// nextCounters is counters with the choice that gen.counters explains.
func (g *ymm) nextCounters(k int) {
	slow, done := g.newLabel("carry"), g.newLabel("counted")
	g.op("SUBL $1, R11")
	g.op("JZ %s", slow)
	g.emit(g.counters(k, false))
	g.label(done)
	g.later = append(g.later, slow+":")
	g.later = append(g.later, g.counters(k, true)...)
	g.later.add("MOVL $16, R11")
	g.later.add("JMP %s", done)
}

func (g *ymm) aes(k int) (c code) {
	for r := range g.rounds + 1 {
		op := "VAESENC"
		switch r {
		case 0:
			op = "VPXOR"
		case g.rounds:
			op = "VAESENCLAST"
		}
		c.add("VBROADCASTI128 %d(AX), Y%d", keysOff+16*r, yKey)
		for i := range k {
			c.add("%s Y%d, Y%d, Y%d", op, yKey, i, i)
		}
	}
	return c
}

// mul adds yT0 times the powers at addr to the sum.
func (g *ymm) mul(w, addr string) (c code) {
	c.add("VMOVDQU %s, %s%d", addr, w, yT1)
	for _, p := range []struct{ imm, to int }{{0x00, yLo}, {0x11, yHi}, {0x01, yMid}} {
		c.add("VPCLMULQDQ $0x%02x, %s%d, %s%d, %s%d", p.imm, w, yT1, w, yT0, w, yT2)
		c.add("VPXOR Y%d, Y%d, Y%d", yT2, p.to, p.to)
	}
	c.add("VPCLMULQDQ $0x10, %s%d, %s%d, %s%d", w, yT1, w, yT0, w, yT1)
	c.add("VPXOR Y%d, Y%d, Y%d", yT1, yMid, yMid)
	return c
}

// hash adds the eight vectors at off(ptr).
func (g *ymm) hash(off int, ptr string) (c code) {
	for _, i := range []int{1, 2, 3, 4, 5, 6, 7, 0} {
		c.add("VMOVDQU %d(%s), Y%d", off+32*i, ptr, yT0)
		c.add("VPSHUFB Y%d, Y%d, Y%d", yBswap, yT0, yT0)
		if i == 0 {
			c.add("VPXOR %d(SP), Y%d, Y%d", carried, yT0, yT0)
		}
		c = append(c, g.mul("Y", fmt.Sprintf("%d(R8)", 32*i))...)
	}
	return c
}

func (g *ymm) fold() (c code) {
	c.add("VEXTRACTI128 $1, Y%d, X%d", yHi, yT0)
	c.add("VPXOR X%d, X%d, X%d", yT0, yHi, yHi)
	return c
}

func (g *ymm) clearSum() (c code) {
	for _, r := range []int{yLo, yMid, yHi} {
		c.add("VPXOR X%d, X%d, X%d", r, r, r)
	}
	return c
}

// hashed moves on in the powers by a group, and ends the chunk if it is full.
func (g *ymm) hashed() {
	more, done := g.newLabel("more"), g.newLabel("hashed")
	g.op("ADDQ $%d, R8", group)
	g.op("CMPQ R8, R9")
	g.op("JNE %s", more)
	g.emit(reduceVEX("Y", yLo, yMid, yHi, yT0))
	g.emit(g.fold())
	g.op("VMOVDQU Y%d, %d(SP)", yHi, carried)
	g.emit(g.clearSum())
	g.emit(startChunk())
	g.op("JMP %s", done)
	g.label(more)
	g.op("VPXOR X%d, X%d, X%d", yT0, yT0, yT0)
	g.op("VMOVDQU Y%d, %d(SP)", yT0, carried)
	g.label(done)
}

// copyPart copies CX&31 octets from the one address to the other, whose registers it changes.
func (g *ymm) copyPart(from, to string) {
	for _, c := range []struct {
		n         int
		move, reg string
	}{
		{16, "VMOVDQU", fmt.Sprintf("X%d", yT0)},
		{8, "MOVQ", "R12"},
		{4, "MOVL", "R12"},
		{2, "MOVW", "R12"},
		{1, "MOVB", "R12"},
	} {
		l := g.newLabel("part")
		g.op("TESTQ $%d, CX", c.n)
		g.op("JZ %s", l)
		g.op("%s (%s), %s", c.move, from, c.reg)
		g.op("%s %s, (%s)", c.move, c.reg, to)
		g.op("ADDQ $%d, %s", c.n, from)
		g.op("ADDQ $%d, %s", c.n, to)
		g.label(l)
	}
}

// hashTail adds the CX octets at BX to the sum: 1 to 256, the last of the text. It keeps CX.
func (g *ymm) hashTail() {
	loop, part, done := g.newLabel("tail"), g.newLabel("tailPart"), g.newLabel("tailDone")
	g.op("VMOVDQU %d(SP), Y%d", carried, 8)
	g.op("MOVQ CX, R13")
	g.label(loop)
	g.op("SUBQ $32, R13")
	g.op("JLT %s", part)
	g.op("VMOVDQU (BX), Y%d", yT0)
	g.op("VPSHUFB Y%d, Y%d, Y%d", yBswap, yT0, yT0)
	g.op("VPXOR Y%d, Y%d, Y%d", 8, yT0, yT0)
	g.emit(g.mul("Y", "(R8)"))
	g.op("VPXOR X%d, X%d, X%d", 8, 8, 8)
	g.op("ADDQ $32, BX")
	g.op("ADDQ $32, R8")
	g.op("JMP %s", loop)
	g.label(part)
	g.op("TESTQ $31, CX")
	g.op("JZ %s", done)
	g.op("VPXOR X%d, X%d, X%d", yT0, yT0, yT0)
	g.op("VMOVDQU Y%d, %d(SP)", yT0, scratch)
	g.op("LEAQ %d(SP), DX", scratch)
	g.copyPart("BX", "DX")
	g.op("VMOVDQU %d(SP), Y%d", scratch, yT0)
	g.op("VPSHUFB Y%d, Y%d, Y%d", yBswap, yT0, yT0)
	g.op("VPXOR Y%d, Y%d, Y%d", 8, yT0, yT0)
	g.emit(g.mul("Y", "(R8)"))
	g.label(done)
}

// cryptTail encrypts or decrypts the last CX octets.
func (g *ymm) cryptTail() {
	g.op("CMPQ CX, $64")
	g.op("JLE stream2")
	g.op("CMPQ CX, $128")
	g.op("JLE stream4")
	g.op("CMPQ CX, $192")
	g.op("JLE stream6")
	for k := 8; k > 0; k -= 2 {
		g.label(fmt.Sprintf("stream%d", k))
		g.nextCounters(k)
		g.emit(g.aes(k))
		for i := range k {
			g.op("VMOVDQU Y%d, %d(SP)", i, stream+32*i)
		}
		if k > 2 {
			g.op("JMP streamed")
		}
	}
	g.label("streamed")
	g.op("LEAQ %d(SP), DX", stream)
	g.op("MOVQ CX, R13")
	g.label("xor")
	g.op("SUBQ $32, R13")
	g.op("JLT xorPart")
	g.op("VMOVDQU (SI), Y%d", yT0)
	g.op("VPXOR (DX), Y%d, Y%d", yT0, yT0)
	g.op("VMOVDQU Y%d, (DI)", yT0)
	g.op("ADDQ $32, SI")
	g.op("ADDQ $32, DI")
	g.op("ADDQ $32, DX")
	g.op("JMP xor")
	g.label("xorPart")
	g.op("TESTQ $31, CX")
	g.op("JZ crypted")
	g.op("VMOVDQU (DX), Y%d", yT1)
	g.op("LEAQ %d(SP), DX", scratch)
	g.copyPart("SI", "DX")
	g.op("VPXOR %d(SP), Y%d, Y%d", scratch, yT1, yT1)
	g.op("VMOVDQU Y%d, %d(SP)", yT1, scratch)
	g.op("LEAQ %d(SP), DX", scratch)
	g.copyPart("DX", "DI")
	g.label("crypted")
}

// text adds eight vectors of key stream to the text.
func (g *ymm) text() {
	for i := range 8 {
		g.op("VPXOR %d(SI), Y%d, Y%d", 32*i, i, i)
	}
	for i := range 8 {
		g.op("VMOVDQU Y%d, %d(DI)", i, 32*i)
	}
	g.emit(nextGroup())
}

func (g *ymm) prologue() {
	fmt.Fprintf(g, "\nTEXT %s%d<>(SB), NOSPLIT, $%d-%d\n", g.fn, g.rounds, frame, argSize(g.fn))
	g.op("MOVQ s+0(FP), AX")
	g.op("MOVQ dst+16(FP), DI")
	g.op("MOVQ src+24(FP), SI")
	g.op("MOVQ n+32(FP), CX")
	g.op("VBROADCASTI128 bswap<>(SB), Y%d", yBswap)

	g.comment("the counters: nonce || 2 and 3, J0 = nonce || 1 (SP 800-38D section 7.1)")
	g.op("VMOVQ nonce_Lo+40(FP), X0")
	g.op("VPINSRQ $1, nonce_Hi+48(FP), X0, X0")
	g.op("VINSERTI128 $1, X0, Y0, Y1")
	g.op("VPADDD second<>(SB), Y1, Y1")
	g.op("VMOVDQU Y1, %d(SP)", counter)
	g.op("VPADDD first<>(SB), X0, X0")
	var c code
	for r := range g.rounds + 1 {
		op := "VAESENC"
		switch r {
		case 0:
			op = "VPXOR"
		case g.rounds:
			op = "VAESENCLAST"
		}
		c.add("%s %d(AX), X0, X0", op, keysOff+16*r)
	}
	c.add("VMOVDQU X0, %d(SP)", tagMask)

	var h code
	h.add("VMOVQ aad_Lo+56(FP), X%d", yT0)
	h.add("VPINSRQ $1, aad_Hi+64(FP), X%d, X%d", yT0, yT0)
	h.add("VPSHUFB X%d, X%d, X%d", yBswap, yT0, yT0)
	h = append(h, g.clearSum()...)
	h = append(h, g.mul("X", fmt.Sprintf("%d(AX)", hOff))...)
	h = append(h, reduceVEX("X", yLo, yMid, yHi, yT0)...)
	h.add("VMOVDQU Y%d, %d(SP)", yHi, carried)
	g.emit(weave(c, h))

	g.op("MOVQ aadLen+72(FP), R13")
	g.op("SHLQ $3, R13")
	g.op("LEAQ (CX*8), BX")
	g.op("MOVQ BX, %d(SP)", lens)
	g.op("MOVQ R13, %d(SP)", lens+8)
	g.op("LEAQ %d(AX), R9", keysOff)
	g.op("LEAQ 31(CX), R10")
	g.op("SHRQ $4, R10")
	g.op("MOVL $16, R11")
	g.emit(startChunk())
	g.emit(g.clearSum())
	g.op("TESTQ CX, CX")
	g.op("JZ empty")
}

func (g *ymm) finish() {
	g.label("finish")
	g.op("VMOVDQU %d(SP), X%d", lens, yT0)
	g.emit(g.mul("X", fmt.Sprintf("%d(AX)", hOff)))
	g.emit(reduceVEX("Y", yLo, yMid, yHi, yT0))
	g.emit(g.fold())
	g.op("VPSHUFB X%d, X%d, X%d", yBswap, yHi, yHi)
	g.op("VPXOR %d(SP), X%d, X%d", tagMask, yHi, yHi)
	g.op("MOVQ tag+80(FP), BX")
	if g.fn == "seal" {
		g.op("VMOVDQU X%d, (BX)", yHi)
	} else {
		g.op("VPXOR (BX), X%d, X%d", yHi, yHi)
		g.op("VPTEST X%d, X%d", yHi, yHi)
		g.op("SETEQ ok+88(FP)")
	}
	g.comment("neither keys nor key stream stay in registers or on the stack")
	g.op("VZEROALL")
	for at := 0; at < frame; at += 32 {
		g.op("VMOVDQU Y0, %d(SP)", at)
	}
	g.op("VZEROUPPER")
	g.op("RET")

	g.label("empty")
	g.op("VMOVDQU %d(SP), X%d", carried, yT0)
	g.op("VPXOR %d(SP), X%d, X%d", lens, yT0, yT0)
	g.op("VMOVDQU X%d, %d(SP)", yT0, lens)
	g.op("JMP finish")
	g.emitLater()
}

func (g *ymm) seal() {
	g.fn = "sealYMM"
	g.prologue()
	g.fn = "seal"
	g.op("CMPQ CX, $%d", group)
	g.op("JLE last")

	g.nextCounters(8)
	g.emit(g.aes(8))
	g.text()
	g.op("CMPQ CX, $%d", group)
	g.op("JLE behind")

	g.label("loop")
	g.nextCounters(8)
	g.emit(weave(g.aes(8), g.hash(-group, "DI")))
	g.text()
	g.hashed()
	g.op("CMPQ CX, $%d", group)
	g.op("JG loop")

	g.label("behind")
	g.emit(g.hash(-group, "DI"))
	g.hashed()

	g.label("last")
	g.op("MOVQ DI, BX")
	g.cryptTail()
	g.hashTail()
	g.finish()
}

func (g *ymm) open() {
	g.fn = "openYMM"
	g.prologue()
	g.fn = "open"
	g.op("CMPQ CX, $%d", group)
	g.op("JLE last")

	g.label("loop")
	g.nextCounters(8)
	g.emit(weave(g.aes(8), g.hash(0, "SI")))
	g.text()
	g.hashed()
	g.op("CMPQ CX, $%d", group)
	g.op("JG loop")

	g.label("last")
	g.op("MOVQ SI, BX")
	g.hashTail()
	g.cryptTail()
	g.finish()
}
