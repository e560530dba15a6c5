package main

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The assembly is what this program writes.
func TestGeneratedIsCurrent(t *testing.T) {
	got, err := os.ReadFile("../../seal_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, Generate()) {
		t.Error("seal_amd64.s is not what the generator writes; run: go generate ./esp/aesgcm")
	}
}

// Weaving loses nothing and keeps the order within each stream.
func TestWeave(t *testing.T) {
	for n := range 6 {
		for m := range 6 {
			var a, b, gotA, gotB code
			for i := range n {
				a.add("a%d", i)
			}
			for i := range m {
				b.add("b%d", i)
			}
			for _, s := range weave(a, b) {
				if s[0] == 'a' {
					gotA.add("%s", s)
				} else {
					gotB.add("%s", s)
				}
			}
			if !slices.Equal(gotA, a) || !slices.Equal(gotB, b) {
				t.Errorf("%d and %d: %v", n, m, weave(a, b))
			}
		}
	}
}

// instruction is one line of assembly in a function.
type instruction struct{ fn, op, args string }

func parse() (all []instruction) {
	fn := ""
	for line := range strings.Lines(string(Generate())) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "TEXT "); ok {
			fn, _, _ = strings.Cut(name, "(")
			fn = strings.Trim(fn, "·<>")
			continue
		}
		if fn == "" || line == "" || strings.HasPrefix(line, "//") || strings.HasSuffix(line, ":") {
			continue
		}
		op, args, _ := strings.Cut(line, " ")
		all = append(all, instruction{fn, op, args})
	}
	return all
}

// What the package comment says about constant time, as far as a program can see it: only
// instructions whose time does not depend on their operands, no address with an index, and no
// jump on anything but the outcome of a comparison of lengths, counts and pointers.
func TestConstantTime(t *testing.T) {
	vector := strings.Fields(`VAESENC VAESENCLAST VPCLMULQDQ VPSHUFB VPSHUFD VSHUFI64X2 VPADDD VPADDQ VPXOR VPXORQ VPOR VPORQ VPAND
		VPTERNLOGQ VPSRAD VPSRLQ VPSLLDQ VEXTRACTI64X4 VEXTRACTI128 VINSERTI128 VPINSRQ VPEXTRQ VMOVQ VMOVDQA VMOVDQA64 VMOVDQU VMOVDQU8
		VMOVDQU8.Z VMOVDQU64 VBROADCASTI128 VBROADCASTI32X4 VPTEST VZEROUPPER VZEROALL KMOVQ`)
	scalar := strings.Fields(`MOVB MOVW MOVL MOVQ LEAQ ADDQ SUBQ SUBL SHLQ SHRQ CMPQ TESTQ BZHIQ CMOVQHI SETEQ
		JMP JEQ JNE JZ JL JLE JLT JG JGE JGT JA JNZ RET`)
	index := regexp.MustCompile(`\(\w+\*\d\)`)
	var last instruction
	for _, i := range parse() {
		if !slices.Contains(vector, i.op) && !slices.Contains(scalar, i.op) {
			t.Errorf("%s: %s is not among the instructions that were looked at", i.fn, i.op)
		}
		if index.MatchString(i.args) && i.op != "LEAQ" {
			t.Errorf("%s: %s %s: an address with an index", i.fn, i.op, i.args)
		}
		if i.op[0] == 'J' && i.op != "JMP" && slices.Contains(vector, last.op) {
			t.Errorf("%s: %s behind %s %s: a jump that depends on data", i.fn, i.op, last.op, last.args)
		}
		// Vectors reach general registers nowhere but as the result of hashBlocks.
		if (i.op == "VPTEST" && !strings.HasPrefix(i.fn, "open")) || (i.op == "VPEXTRQ" && i.fn != "hashBlocks") {
			t.Errorf("%s: %s %s", i.fn, i.op, i.args)
		}
		if i.op == "RET" && last.op != "VZEROUPPER" {
			t.Errorf("%s: returns behind %s, not VZEROUPPER", i.fn, last.op)
		}
		last = i
	}
}

// What runs without AVX-512 contains none of it: a machine that has it would not notice.
func TestNoAVX512InAVX2(t *testing.T) {
	evex := regexp.MustCompile(`\b(Z\d+|K\d|[XY](1[6-9]|2\d|3[01]))\b`)
	ops := regexp.MustCompile(`^(KMOV|VPTERNLOG|VPXORQ|VPXORD|VPORQ|VMOVDQU(8|16|32|64)|VMOVDQA(32|64)|VSHUFI|VBROADCASTI(32|64)|.*\.Z$|.*64X)`)
	seen := map[string]int{}
	for _, i := range parse() {
		if !strings.Contains(i.fn, "YMM") && i.fn != "powers" && i.fn != "hashBlocks" {
			continue
		}
		seen[i.fn]++
		if evex.MatchString(i.args) || ops.MatchString(i.op) {
			t.Errorf("%s: %s %s needs AVX-512", i.fn, i.op, i.args)
		}
	}
	if len(seen) != 8 {
		t.Errorf("%d functions without AVX-512, want 8: %v", len(seen), seen)
	}
}
