package esp

import "sync/atomic"

// replayWindow is the anti-replay window of RFC 4303 section 3.4.3, kept as the ring of 64-bit
// blocks of RFC 6479: the window moves by clearing whole blocks, nothing is ever shifted.
//
// check may be called at any time by anybody; update belongs to the holder of Inbound.mu. The
// words are atomic so that check needs no lock. What check says is advice that saves an ICV
// computation; the verdict is update's.
type replayWindow struct {
	size uint64 // in packets, a multiple of 64
	mask uint64 // number of blocks - 1; at least one block more than the window needs
	top  atomic.Uint64
	// ring is made when the first packet comes: many SAs wait for one for long. Nobody reads it before top,
	// which is stored after it, says that there was one.
	ring []atomic.Uint64
}

func (w *replayWindow) init(packets int) {
	w.size = (uint64(packets) + 63) &^ 63
	blocks := uint64(1)
	for blocks < w.size/64+1 {
		blocks <<= 1
	}
	w.mask = blocks - 1
}

// check reports whether seq could be accepted now.
func (w *replayWindow) check(seq uint64) bool {
	top := w.top.Load()
	if seq > top {
		return true
	}
	// A word that is recycled for newer packets while it is read means that top has moved more
	// than a window beyond seq: refusing is right then too.
	if seq == 0 || top-seq >= w.size {
		return false
	}
	i := seq / 64 & w.mask
	return i >= uint64(len(w.ring)) || w.ring[i].Load()&(1<<(seq%64)) == 0
}

// update marks seq as seen and reports whether it was acceptable. The caller holds the lock and
// has verified the packet.
func (w *replayWindow) update(seq uint64) bool {
	r := w.begin()
	ok := r.update(seq)
	r.end()
	return ok
}

// replayRun is a run of updates under one hold of the lock. It keeps the block it works on and the
// top to itself until it leaves them: an atomic store for each of them and packet costs more than
// all the rest. Until then others' checks see the window as it was, which is advice enough.
type replayRun struct {
	w     *replayWindow
	top   uint64
	block uint64 // number of the block that bits holds
	bits  uint64
}

func (w *replayWindow) begin() replayRun {
	if w.ring == nil {
		w.ring = make([]atomic.Uint64, w.mask+1)
	}
	top := w.top.Load()
	return replayRun{w: w, top: top, block: top / 64, bits: w.ring[top/64&w.mask].Load()}
}

// end publishes what the run has changed.
func (r *replayRun) end() {
	r.w.ring[r.block&r.w.mask].Store(r.bits)
	r.w.top.Store(r.top)
}

// update marks seq as seen and reports whether it was acceptable.
func (r *replayRun) update(seq uint64) bool {
	w := r.w
	block, bit := seq/64, uint64(1)<<(seq%64)
	switch {
	case seq > r.top:
		if top := r.top / 64; block != top {
			w.ring[r.block&w.mask].Store(r.bits)
			for i := range min(block-top, w.mask+1) {
				w.ring[(block-i)&w.mask].Store(0)
			}
			r.block, r.bits = block, 0
		} else if block != r.block {
			r.turn(block)
		}
		r.top = seq
	case seq == 0 || r.top-seq >= w.size:
		return false
	default:
		if block != r.block {
			r.turn(block)
		}
		if r.bits&bit != 0 {
			return false
		}
	}
	r.bits |= bit
	return true
}

// turn goes on with another block of the window.
func (r *replayRun) turn(block uint64) {
	r.w.ring[r.block&r.w.mask].Store(r.bits)
	r.block, r.bits = block, r.w.ring[block&r.w.mask].Load()
}

// reconstruct returns the 64-bit sequence number for the 32 bits that a packet carries
// (RFC 4303 appendix A2.2): the candidate that lies in the window or ahead of it.
func (w *replayWindow) reconstruct(low uint32) uint64 {
	top := w.top.Load()
	tl, th := uint32(top), uint32(top>>32)
	bottom := tl - uint32(w.size) + 1 // may wrap, as the appendix wants
	if uint64(tl) >= w.size-1 {       // case A: the window lies in one subspace
		if low < bottom {
			th++ // wraps only where sequence numbers end; the ICV fails then
		}
	} else if low >= bottom && th > 0 { // case B: the window spans two subspaces
		th--
	}
	return uint64(th)<<32 | uint64(low)
}
