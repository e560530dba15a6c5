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
	ring []atomic.Uint64
}

func (w *replayWindow) init(packets int) {
	w.size = (uint64(packets) + 63) &^ 63
	blocks := uint64(1)
	for blocks < w.size/64+1 {
		blocks <<= 1
	}
	w.mask = blocks - 1
	w.ring = make([]atomic.Uint64, blocks)
}

// check reports whether seq could be accepted now.
func (w *replayWindow) check(seq uint64) bool {
	top := w.top.Load()
	if seq > top {
		return true
	}
	// A word that is recycled for newer packets while it is read means that top has moved more
	// than a window beyond seq: refusing is right then too.
	return seq != 0 && top-seq < w.size && w.ring[seq/64&w.mask].Load()&(1<<(seq%64)) == 0
}

// update marks seq as seen and reports whether it was acceptable. The caller holds the lock and
// has verified the packet.
func (w *replayWindow) update(seq uint64) bool {
	if seq == 0 {
		return false
	}
	top := w.top.Load()
	bit := uint64(1) << (seq % 64)
	word := &w.ring[seq/64&w.mask]
	if seq > top {
		steps := seq/64 - top/64
		if steps > w.mask+1 {
			steps = w.mask + 1
		}
		for i := uint64(1); i <= steps; i++ {
			w.ring[(top/64+i)&w.mask].Store(0)
		}
		word.Store(word.Load() | bit)
		w.top.Store(seq)
		return true
	}
	if top-seq >= w.size || word.Load()&bit != 0 {
		return false
	}
	word.Store(word.Load() | bit)
	return true
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
