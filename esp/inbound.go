package esp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// Inbound opens packets. All methods may be called by several goroutines at once.
type Inbound struct {
	t      transform
	limits Limits
	replay replayWindow

	_  [64]byte
	mu sync.Mutex // guards the window's update and the counters of authentic packets
	c  Counters

	// Drops before the integrity check; anybody can cause them.
	_           [64]byte
	earlyReplay atomic.Uint64
	auth        atomic.Uint64
	short       atomic.Uint64
}

// NewInbound makes the receiving half of an SA. The error wraps ErrParams. p's keys are copied.
func NewInbound(p Params) (*Inbound, error) {
	in := new(Inbound)
	if err := in.t.init(&p); err != nil {
		return nil, err
	}
	in.limits = p.effective()
	if p.Replay == 0 {
		p.Replay = DefaultReplayWindow
	}
	in.replay.init(p.Replay)
	return in, nil
}

// SPI returns the SPI that the packets must carry.
func (in *Inbound) SPI() uint32 { return in.t.spi }

// Open verifies and decrypts the ESP packet buf[off:off+n] in place. The inner IP packet is
// buf[start:end], exactly as long as its IP header says; next is NextIPv4 or NextIPv6 and agrees
// with the header's version. Errors: ErrClosed, ErrMalformed, ErrReplay, ErrAuth, ErrDummy,
// ErrHardLimit. ErrDummy, and ErrMalformed of an authentic packet, have moved the window.
func (in *Inbound) Open(buf []byte, off, n int) (start, end int, next uint8, err error) {
	w, err := in.t.get()
	if err != nil {
		return 0, 0, 0, err
	}
	defer in.t.put(w)
	p := Packet{Buf: buf, Off: off, Len: n}
	if in.verify(w, &p); p.Err == nil {
		inner(&p)
		in.mu.Lock()
		run := in.replay.begin()
		in.commit(&run, &p)
		run.end()
		in.mu.Unlock()
	}
	if p.Err != nil {
		return 0, 0, p.Next, p.Err
	}
	return p.Off, p.Off + p.Len, p.Next, nil
}

// OpenBatch opens every packet of pkts in order, moves Off and Len to the inner packet, and sets
// Next and Err: nil, or what Open would have returned. It returns the number of packets whose Err
// is nil. Packets of one batch must not overlap.
func (in *Inbound) OpenBatch(pkts []Packet) (n int) {
	w, err := in.t.get()
	if err != nil {
		for i := range pkts {
			pkts[i].Err = err
		}
		return 0
	}
	defer in.t.put(w)
	for i := range pkts {
		p := &pkts[i]
		p.seq, p.Next = 0, 0
		if in.verify(w, p); p.Err == nil {
			inner(p)
		}
	}
	in.mu.Lock()
	run := in.replay.begin()
	for i := range pkts {
		p := &pkts[i]
		if p.seq != 0 {
			in.commit(&run, p)
		}
		if p.Err == nil {
			n++
		}
	}
	run.end()
	in.mu.Unlock()
	return n
}

// verify does what RFC 4303 section 3.4 wants before the window moves: lengths, SPI, a look at
// the window, ICV, decryption. Afterwards p is payload, padding and trailer, and p.seq is not zero,
// or p.Err says why not.
func (in *Inbound) verify(w *worker, p *Packet) {
	t := &in.t
	p.Err = nil
	if p.Off < 0 || p.Len < t.minLen() || p.Off > len(p.Buf) || p.Len > len(p.Buf)-p.Off ||
		(p.Len-headerLen-t.ivLen-t.icv)&(t.align-1) != 0 {
		in.short.Add(1)
		p.Err = ErrMalformed
		return
	}
	pkt := p.Buf[p.Off : p.Off+p.Len : p.Off+p.Len]
	if binary.BigEndian.Uint32(pkt) != t.spi {
		in.short.Add(1)
		p.Err = ErrMalformed
		return
	}
	low := binary.BigEndian.Uint32(pkt[4:])
	seq := uint64(low)
	if t.esn {
		seq = in.replay.reconstruct(low)
	}
	if !in.replay.check(seq) {
		in.earlyReplay.Add(1)
		p.Err = ErrReplay
		return
	}
	start, end, ok := t.open(w, pkt, seq)
	if !ok {
		in.auth.Add(1)
		p.Err = ErrAuth
		return
	}
	p.Off, p.Len, p.seq = p.Off+start, end-start, seq
}

// commit moves the window and counts an authentic packet; p.Err is nil or what inner found.
// The caller holds mu.
func (in *Inbound) commit(run *replayRun, p *Packet) {
	if !run.update(p.seq) {
		in.c.Replay++
		p.Err = ErrReplay
		return
	}
	if in.c.Packets >= in.limits.HardPackets || in.c.Bytes >= in.limits.HardBytes {
		in.c.HardLimit++
		p.Err = ErrHardLimit
		return
	}
	in.c.Packets++
	switch {
	case p.Err == nil:
		in.c.Bytes += uint64(p.Len)
	case errors.Is(p.Err, ErrDummy):
		in.c.Dummy++
	default:
		in.c.Malformed++
	}
}

// Counters returns what was done so far.
func (in *Inbound) Counters() Counters {
	in.mu.Lock()
	c := in.c
	in.mu.Unlock()
	c.LastSeq = in.replay.top.Load()
	c.Replay += in.earlyReplay.Load()
	c.Auth += in.auth.Load()
	c.Malformed += in.short.Load()
	return c
}

// SoftLimitReached reports that it is time to rekey, as for Outbound; the highest sequence number
// seen counts too, because the peer cannot send beyond the end of the space.
func (in *Inbound) SoftLimitReached() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return max(in.c.Packets, in.replay.top.Load()) >= in.limits.SoftPackets || in.c.Bytes >= in.limits.SoftBytes
}

// Close wipes the keys; later calls return ErrClosed. Packets being opened by others at this
// moment are finished first. Counters stay readable.
func (in *Inbound) Close() { in.t.close() }

// Format prints the SPI only, whatever the verb.
func (in *Inbound) Format(w fmt.State, _ rune) {
	_, _ = io.WriteString(w, fmt.Sprintf("esp.Inbound{SPI:%#08x}", in.t.spi))
}
