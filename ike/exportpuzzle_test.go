package ike

import (
	"encoding/binary"
	"net/netip"
)

// FakeHalfOpen has an endpoint believe that n IKE SAs of strangers with the address are half-open, which
// nothing will come of; lot: let in by lot.
func (ep *Endpoint) FakeHalfOpen(n int, addr netip.Addr, lot bool) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	for range n {
		ep.half[halfKey{spi: uint64(len(ep.half)) + 1}] = &box{ep: ep}
		ep.halfAddr[limitAddr(addr)]++
		if lot {
			ep.byLot++
		}
	}
	ep.raiseLocked()
}

// NoFakes forgets them.
func (ep *Endpoint) NoFakes() {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	clear(ep.half)
	clear(ep.halfAddr)
	ep.byLot = 0
}

// FakeJunk has an endpoint believe that IKE_AUTH requests come that are not authentic.
func (ep *Endpoint) FakeJunk(n float64) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	ep.junk = suspect{n, ep.cfg.Clock.Now()}
}

// Solve returns a solution of the puzzle with exactly the number of zero bits, no more; nil: none was found.
func Solve(prf uint16, s []byte, zeros int) []byte {
	z := solver{want: zeros, left: 1 << 24}
	if !z.set(prf, s) {
		return nil
	}
	var key, out []byte
	for i := uint32(0); i < 1<<24 && len(out) < 16; i++ {
		key = binary.BigEndian.AppendUint32(key[:0], i)
		if n := z.zeros(key); n == zeros || n > zeros && len(out) > 0 {
			out = append(out, key...)
		}
	}
	if len(out) < 16 {
		return nil
	}
	return out
}

// Zeros returns how many zero bits a solution is good for; -1: it is none.
func Zeros(prf uint16, s, solution []byte) int {
	var z puzzle
	if !z.set(prf, s) {
		return -1
	}
	return z.check(solution, 0)
}

// Solving returns how many puzzles wait to be worked at.
func (ep *Endpoint) Solving() int {
	ep.puzzles.mu.Lock()
	defer ep.puzzles.mu.Unlock()
	return len(ep.puzzles.waiting)
}

// Locked returns how many half-open IKE SAs wait for the solution of a puzzle before their keys are computed.
func (ep *Endpoint) Locked() (n int) {
	for _, b := range ep.allBoxes() {
		b.step.Lock()
		if h := b.sa.handshake; h != nil && h.locked != nil && b.sa.cur.prot == nil {
			n++
		}
		b.step.Unlock()
	}
	return n
}
