#include "textflag.h"

// One's complement addition needs no carries if 32-bit words are added into 64-bit lanes: the lower
// halves of the lanes into one accumulator, the upper halves into another.

#define ADD32(off, x, t, lo, hi) \
	VMOVDQU off(SI), x  \
	VPAND   Y15, x, t   \
	VPSRLQ  $32, x, x   \
	VPADDQ  t, lo, lo   \
	VPADDQ  x, hi, hi

// func sumAVX2(p *byte, n int) uint64
// n is a multiple of 32, and not 0.
TEXT ·sumAVX2(SB), NOSPLIT, $0-24
	MOVQ     p+0(FP), SI
	MOVQ     n+8(FP), CX
	VPXOR    Y0, Y0, Y0
	VPXOR    Y1, Y1, Y1
	VPXOR    Y2, Y2, Y2
	VPXOR    Y3, Y3, Y3
	VPCMPEQD Y15, Y15, Y15
	VPSRLQ   $32, Y15, Y15
	SUBQ     $128, CX
	JLT      rest

loop:
	ADD32(0, Y4, Y8, Y0, Y1)
	ADD32(32, Y5, Y9, Y2, Y3)
	ADD32(64, Y6, Y10, Y0, Y1)
	ADD32(96, Y7, Y11, Y2, Y3)
	ADDQ $128, SI
	SUBQ $128, CX
	JGE  loop

rest:
	ADDQ $128, CX
	JZ   done

one:
	ADD32(0, Y4, Y8, Y0, Y1)
	ADDQ $32, SI
	SUBQ $32, CX
	JNZ  one

done:
	VPADDQ       Y1, Y0, Y0
	VPADDQ       Y3, Y2, Y2
	VPADDQ       Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDQ       X1, X0, X0
	VPSRLDQ      $8, X0, X1
	VPADDQ       X1, X0, X0
	VMOVQ        X0, AX
	VZEROUPPER
	MOVQ         AX, ret+16(FP)
	RET

#define ADD64(off, x, t, lo, hi) \
	VMOVDQU64 off(SI), x  \
	VPANDQ    Z15, x, t   \
	VPSRLQ    $32, x, x   \
	VPADDQ    t, lo, lo   \
	VPADDQ    x, hi, hi

// func sumAVX512(p *byte, n int) uint64
// n is not 0. The octets behind the last word count as zero.
TEXT ·sumAVX512(SB), NOSPLIT, $0-24
	MOVQ       p+0(FP), SI
	MOVQ       n+8(FP), CX
	VPXORQ     Z0, Z0, Z0
	VPXORQ     Z1, Z1, Z1
	VPTERNLOGD $0xff, Z15, Z15, Z15
	VPSRLQ     $32, Z15, Z15
	SUBQ       $256, CX
	JLT        rest
	VPXORQ     Z2, Z2, Z2
	VPXORQ     Z3, Z3, Z3

loop:
	ADD64(0, Z4, Z8, Z0, Z1)
	ADD64(64, Z5, Z9, Z2, Z3)
	ADD64(128, Z6, Z10, Z0, Z1)
	ADD64(192, Z7, Z11, Z2, Z3)
	ADDQ   $256, SI
	SUBQ   $256, CX
	JGE    loop
	VPADDQ Z2, Z0, Z0
	VPADDQ Z3, Z1, Z1

rest:
	ADDQ $192, CX
	JLT  last

one:
	ADD64(0, Z4, Z8, Z0, Z1)
	ADDQ $64, SI
	SUBQ $64, CX
	JGE  one

last:
	ADDQ       $64, CX
	JZ         done
	MOVQ       $-1, DX
	SHLXQ      CX, DX, DX
	NOTQ       DX
	KMOVQ      DX, K1
	VMOVDQU8.Z (SI), K1, Z4
	VPANDQ     Z15, Z4, Z8
	VPSRLQ     $32, Z4, Z4
	VPADDQ     Z8, Z0, Z0
	VPADDQ     Z4, Z1, Z1

done:
	VPADDQ        Z1, Z0, Z0
	VEXTRACTI64X4 $1, Z0, Y1
	VPADDQ        Y1, Y0, Y0
	VEXTRACTI128  $1, Y0, X1
	VPADDQ        X1, X0, X0
	VPSRLDQ       $8, X0, X1
	VPADDQ        X1, X0, X0
	VMOVQ         X0, AX
	VZEROUPPER
	MOVQ          AX, ret+16(FP)
	RET

// The functions below go from the end to the beginning, so that dst may overlap with the end of src.

#define MOVE32(off, x, t, lo, hi) \
	VMOVDQU off(SI)(CX*1), x \
	VMOVDQU x, off(DI)(CX*1) \
	VPAND   Y15, x, t        \
	VPSRLQ  $32, x, x        \
	VPADDQ  t, lo, lo        \
	VPADDQ  x, hi, hi

// func moveSumAVX2(dst, src *byte, n int) uint64
// n is a multiple of 32, and not 0.
TEXT ·moveSumAVX2(SB), NOSPLIT, $0-32
	MOVQ     dst+0(FP), DI
	MOVQ     src+8(FP), SI
	MOVQ     n+16(FP), CX
	VPXOR    Y0, Y0, Y0
	VPXOR    Y1, Y1, Y1
	VPXOR    Y2, Y2, Y2
	VPXOR    Y3, Y3, Y3
	VPCMPEQD Y15, Y15, Y15
	VPSRLQ   $32, Y15, Y15
	SUBQ     $128, CX
	JLT      rest

loop:
	MOVE32(96, Y4, Y8, Y0, Y1)
	MOVE32(64, Y5, Y9, Y2, Y3)
	MOVE32(32, Y6, Y10, Y0, Y1)
	MOVE32(0, Y7, Y11, Y2, Y3)
	SUBQ $128, CX
	JGE  loop

rest:
	ADDQ $96, CX
	JLT  done

one:
	MOVE32(0, Y4, Y8, Y0, Y1)
	SUBQ $32, CX
	JGE  one

done:
	VPADDQ       Y1, Y0, Y0
	VPADDQ       Y3, Y2, Y2
	VPADDQ       Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDQ       X1, X0, X0
	VPSRLDQ      $8, X0, X1
	VPADDQ       X1, X0, X0
	VMOVQ        X0, AX
	VZEROUPPER
	MOVQ         AX, ret+24(FP)
	RET

#define MOVE64(off, x, t, lo, hi) \
	VMOVDQU64 off(SI)(CX*1), x \
	VMOVDQU64 x, off(DI)(CX*1) \
	VPANDQ    Z15, x, t        \
	VPSRLQ    $32, x, x        \
	VPADDQ    t, lo, lo        \
	VPADDQ    x, hi, hi

// func moveSumAVX512(dst, src *byte, n int) uint64
// n is not 0. The octets behind the last word count as zero.
TEXT ·moveSumAVX512(SB), NOSPLIT, $0-32
	MOVQ       dst+0(FP), DI
	MOVQ       src+8(FP), SI
	MOVQ       n+16(FP), DX
	VPXORQ     Z0, Z0, Z0
	VPXORQ     Z1, Z1, Z1
	VPXORQ     Z2, Z2, Z2
	VPXORQ     Z3, Z3, Z3
	VPTERNLOGD $0xff, Z15, Z15, Z15
	VPSRLQ     $32, Z15, Z15
	MOVQ       DX, CX
	ANDQ       $-64, CX
	ANDQ       $63, DX
	JZ         blocks
	MOVQ       $-1, AX
	SHLXQ      DX, AX, AX
	NOTQ       AX
	KMOVQ      AX, K1
	VMOVDQU8.Z (SI)(CX*1), K1, Z4
	VMOVDQU8   Z4, K1, (DI)(CX*1)
	VPANDQ     Z15, Z4, Z8
	VPSRLQ     $32, Z4, Z4
	VPADDQ     Z8, Z0, Z0
	VPADDQ     Z4, Z1, Z1

blocks:
	SUBQ $256, CX
	JLT  rest

loop:
	MOVE64(192, Z4, Z8, Z0, Z1)
	MOVE64(128, Z5, Z9, Z2, Z3)
	MOVE64(64, Z6, Z10, Z0, Z1)
	MOVE64(0, Z7, Z11, Z2, Z3)
	SUBQ $256, CX
	JGE  loop

rest:
	ADDQ $192, CX
	JLT  done

one:
	MOVE64(0, Z4, Z8, Z0, Z1)
	SUBQ $64, CX
	JGE  one

done:
	VPADDQ        Z1, Z0, Z0
	VPADDQ        Z3, Z2, Z2
	VPADDQ        Z2, Z0, Z0
	VEXTRACTI64X4 $1, Z0, Y1
	VPADDQ        Y1, Y0, Y0
	VEXTRACTI128  $1, Y0, X1
	VPADDQ        X1, X0, X0
	VPSRLDQ       $8, X0, X1
	VPADDQ        X1, X0, X0
	VMOVQ         X0, AX
	VZEROUPPER
	MOVQ          AX, ret+24(FP)
	RET
