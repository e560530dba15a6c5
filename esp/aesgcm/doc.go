// Package aesgcm is AES-GCM (SP 800-38D) as IPsec uses it (RFC 4106): keys of 128, 192 and 256
// bits, nonces of 12 octets, tags of 16.
//
// On amd64 with VAES, VPCLMULQDQ and AVX-512, four blocks at a time go through each instruction;
// without AVX-512, two. Everywhere else, and with the build tag purego, the standard library does
// the work; [AEAD.Accelerated] says which.
//
// # How
//
// One call of assembly does a whole packet. Text goes through in groups of 256 octets, whose
// rounds of AES are woven with the multiplications of GHASH: of the same group when opening, of
// the one before when sealing, where the ciphertext must exist first. Products are summed
// unreduced over chunks of 32 blocks, for which the powers of H up to H^33 are at hand: together
// with the round keys 768 octets per key. Block i of the last chunk is multiplied by exactly the
// power that the number of blocks behind it calls for, so the block of lengths is one more summand
// and only the vector that is not full needs care: a mask, or a copy where there are no masks.
//
// With AVX-512, J0 takes the place of the block before the first one in the key stream, and the
// additional data's block takes it in GHASH, so that neither costs instructions of its own. The
// last group, of 1 to 256 octets, has code of its own for each number of vectors.
//
// What limits the speed is the one port that does AES on 64 octets a cycle, and then the two that
// take all other vector instructions. For small packets it is the latency of memory that was
// written in other pieces than it is read: [AEAD.SealInPlace].
//
// seal_amd64.s is written by internal/gen. H is kept times x (as in Gueron and Kounavis, "Intel
// Carry-Less Multiplication Instruction and its Usage for Computing the GCM Mode", 2010), so that
// products of reversed bits need no shift, and a reduction is two multiplications by the
// polynomial's upper half.
//
// # Constant time
//
// Secret are: the key, the round keys, H and its powers, key stream, plaintext, the tag that was
// computed, and whether it is right until the packet's end. Public are: all lengths, all
// addresses, the number of rounds, nonce, additional data, ciphertext and the tag that came with
// it.
//
//   - Branches (all conditional jumps and CMOVs of seal_amd64.s): the number of rounds, the lengths
//     of additional data and text, bits of these, and counts of blocks that follow from them.
//   - Addresses: arguments, constants, and offsets into the schedule that follow from counts of
//     blocks. There is no table that is indexed with data: the S-box is AESENC's and
//     AESKEYGENASSIST's, also while the key is expanded.
//   - Masks (K1, K2) follow from lengths.
//   - The carry of H times x is a mask from an arithmetic shift, not a branch.
//   - The tags are compared by XOR and VPTEST over all 16 octets; its one bit is the result, public
//     by what the caller does next.
//   - No instruction used has a latency that depends on its operands: vector AES, carry-less
//     multiplication, shuffles, logic, additions; BZHI and shifts act on lengths.
//
// Round keys, powers and key stream are cleared from the registers before each return. The code
// for AVX-512 stores nothing secret outside of the schedule, the text and the tag; that for AVX2
// keeps the key stream of the last group on the stack and clears it.
package aesgcm
