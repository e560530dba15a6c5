package esp

import (
	"fmt"
	"io"
	"sync/atomic"
)

// Outbound seals packets. All methods may be called by several goroutines at once.
type Outbound struct {
	t      transform
	limits Limits

	// Written for every packet or batch, on cache lines of their own.
	_     [64]byte
	seq   atomic.Uint64 // last one given out
	bytes atomic.Uint64
	_     [64]byte

	overLimit atomic.Uint64
	noRoom    atomic.Uint64
}

// NewOutbound makes the sending half of an SA. The error wraps ErrParams. p's keys are copied.
func NewOutbound(p Params) (*Outbound, error) {
	o := new(Outbound)
	if err := o.t.init(&p); err != nil {
		return nil, err
	}
	o.limits = p.effective()
	return o, nil
}

// SPI returns the SPI that the packets carry.
func (o *Outbound) SPI() uint32 { return o.t.spi }

// Headroom returns the octets that Seal needs before the inner packet: ESP header and IV.
func (o *Outbound) Headroom() int { return o.t.headroom() }

// Tailroom returns the octets that Seal needs behind the inner packet, at most: padding, trailer
// and ICV.
func (o *Outbound) Tailroom() int { return o.t.tailroom() }

// Align returns what inner packet, padding and trailer together are padded to a multiple of, in
// octets (RFC 4303, section 2.4).
func (o *Outbound) Align() int { return o.t.align }

// ICVLen returns the length of the integrity check value in octets.
func (o *Outbound) ICVLen() int { return o.t.icv }

// SealedLen returns the length of the ESP packet, SPI to ICV, for an inner packet of n octets.
func (o *Outbound) SealedLen(n int) int {
	return o.t.headroom() + n + o.t.padLen(n) + trailerLen + o.t.icv
}

// MaxInner returns the longest inner packet whose ESP packet is at most n octets long; 0 when
// there is none.
func (o *Outbound) MaxInner(n int) int {
	return max(0, (n-o.t.headroom()-o.t.icv)&^(o.t.align-1)-trailerLen)
}

// Seal turns the inner packet buf[off:off+n] into the ESP packet buf[start:end], in place. next is
// NextIPv4, NextIPv6 or NextNone. Errors: ErrClosed, ErrHardLimit, ErrNoRoom, ErrTooLong; buf is
// unchanged then.
func (o *Outbound) Seal(buf []byte, off, n int, next uint8) (start, end int, err error) {
	if err := o.room(buf, off, n); err != nil {
		return 0, 0, err
	}
	w, err := o.t.get()
	if err != nil {
		return 0, 0, err
	}
	defer o.t.put(w)
	seq, got := o.reserve(1, uint64(n))
	if got == 0 {
		return 0, 0, ErrHardLimit
	}
	start = off - o.t.headroom()
	return start, o.t.seal(w, buf, start, n, next, seq), nil
}

// SealBatch seals every packet of pkts in order with consecutive sequence numbers, moves Off and
// Len to the ESP packet, and sets Err: nil, or what Seal would have returned. It returns the
// number of packets that were sealed.
func (o *Outbound) SealBatch(pkts []Packet) (n int) {
	var total uint64
	ready := 0
	for i := range pkts {
		p := &pkts[i]
		if p.Err = o.room(p.Buf, p.Off, p.Len); p.Err == nil {
			ready++
			total += uint64(p.Len)
		}
	}
	if ready == 0 {
		return 0
	}
	w, err := o.t.get()
	if err != nil {
		for i := range pkts {
			if pkts[i].Err == nil {
				pkts[i].Err = err
			}
		}
		return 0
	}
	defer o.t.put(w)
	seq, got := o.reserve(ready, total)
	if got != ready {
		return o.sealUpToLimit(w, pkts, seq, got)
	}
	for i := range pkts {
		p := &pkts[i]
		if p.Err != nil {
			continue
		}
		o.sealPacket(w, p, seq)
		seq++
	}
	return ready
}

// sealUpToLimit seals the tail of an SA: the got packets from seq on that were reserved, then one
// by one as far as the limits go.
func (o *Outbound) sealUpToLimit(w *worker, pkts []Packet, seq uint64, got int) (n int) {
	for i := range pkts {
		p := &pkts[i]
		if p.Err != nil {
			continue
		}
		if got == 0 {
			if seq, got = o.reserve(1, uint64(p.Len)); got == 0 {
				p.Err = ErrHardLimit
				continue
			}
		}
		o.sealPacket(w, p, seq)
		seq, got, n = seq+1, got-1, n+1
	}
	return n
}

func (o *Outbound) sealPacket(w *worker, p *Packet, seq uint64) {
	start := p.Off - o.t.headroom()
	end := o.t.seal(w, p.Buf, start, p.Len, p.Next, seq)
	p.Off, p.Len = start, end-start
}

// reserve takes n sequence numbers and total bytes, all or (n > 1) none; got is n or 0. The
// numbers are used only once and in full: they are the IVs.
func (o *Outbound) reserve(n int, total uint64) (first uint64, got int) {
	if b := o.bytes.Add(total); b > o.limits.HardBytes {
		o.bytes.Add(-total)
		if n == 1 {
			o.overLimit.Add(1)
		}
		return 0, 0
	}
	for {
		last := o.seq.Load()
		if last > o.limits.HardPackets || o.limits.HardPackets-last < uint64(n) {
			o.bytes.Add(-total)
			if n == 1 {
				o.overLimit.Add(1)
			}
			return 0, 0
		}
		if o.seq.CompareAndSwap(last, last+uint64(n)) {
			return last + 1, n
		}
	}
}

func (o *Outbound) room(buf []byte, off, n int) error {
	if n > maxInner {
		o.noRoom.Add(1)
		return ErrTooLong
	}
	if n < 0 || off < o.t.headroom() || off > len(buf) || len(buf)-off < n+o.t.padLen(n)+trailerLen+o.t.icv {
		o.noRoom.Add(1)
		return ErrNoRoom
	}
	return nil
}

// Counters returns what was done so far.
func (o *Outbound) Counters() Counters {
	seq := o.seq.Load()
	return Counters{
		Packets: seq, Bytes: o.bytes.Load(), LastSeq: seq,
		HardLimit: o.overLimit.Load(), NoRoom: o.noRoom.Load(),
	}
}

// SoftLimitReached reports that it is time to rekey: a soft limit is reached, or seven eighths of
// a hard limit (that of the sequence numbers included) for which no soft one was given.
func (o *Outbound) SoftLimitReached() bool {
	return o.seq.Load() >= o.limits.SoftPackets || o.bytes.Load() >= o.limits.SoftBytes
}

// Close wipes the keys; later calls return ErrClosed. Packets being sealed by others at this
// moment are finished first, their key state is wiped when they are done. Counters stay readable.
func (o *Outbound) Close() { o.t.close() }

// Format prints the SPI only, whatever the verb.
func (o *Outbound) Format(w fmt.State, _ rune) {
	_, _ = io.WriteString(w, fmt.Sprintf("esp.Outbound{SPI:%#08x}", o.t.spi))
}
