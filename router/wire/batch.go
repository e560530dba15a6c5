package wire

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxMessage is room for whatever is received at once: an IP packet or a run of them.
	maxMessage = 64 << 10
	// Tailroom is how many octets of Datagram.Buf lie behind the longest message.
	Tailroom = 64
	// batchBytes is how much one call should receive at most where messages are large: more would
	// fall out of the core's cache before it is worked on.
	batchBytes = 256 << 10
	minBatch   = 2
)

// Datagram is a datagram that was received, or a run of them.
type Datagram struct {
	Buf     []byte         // all of the message's memory: the receiver may write anywhere in it
	Off     int            // where the payload begins: at least the batch's headroom
	Len     int            // octets of payload
	Segment int            // 0: one datagram; otherwise a run of datagrams of this size, the last of which may be shorter
	Remote  netip.AddrPort // where it came from; native ESP: port 0
	Local   netip.Addr     // where it was sent to; zero if the kernel did not say
	TOS     uint8          // traffic class and ECN of the (first) packet
}

// Payload returns what was received.
func (d *Datagram) Payload() []byte { return d.Buf[d.Off : d.Off+d.Len] }

// Batch is memory to receive into.
type Batch struct {
	// Datagrams are what the last Receive received. They are valid until the next.
	Datagrams []Datagram

	all      []Datagram
	headroom int
	stride   int
	memory   []byte
	hdrs     []mmsghdr
	iovs     []unix.Iovec
	names    []unix.RawSockaddrInet6
	controls []byte
	vlen     int // messages that the next call asks for
}

// NewBatch makes a batch of at most n messages, with headroom octets free before each. It takes
// address space for n messages of 64 KiB; memory is used only where something was received.
func NewBatch(n, headroom int) *Batch {
	n, headroom = max(n, 1), max(headroom, 0)
	// The starts of the messages do not lie a multiple of the page size apart: all of them would
	// compete for a few lines of the cache.
	const line, page = 64, 4096
	stride := (headroom+maxMessage+Tailroom+page-1)/page*page + 5*line
	b := &Batch{
		all:      make([]Datagram, n),
		headroom: headroom,
		stride:   stride,
		memory:   make([]byte, n*stride),
		hdrs:     make([]mmsghdr, n),
		iovs:     make([]unix.Iovec, n),
		names:    make([]unix.RawSockaddrInet6, n),
		controls: make([]byte, n*recvControl),
		vlen:     n,
	}
	for i := range n {
		b.iovs[i].Base = &b.memory[i*stride+headroom]
		b.iovs[i].SetLen(maxMessage)
		h := &b.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		h.Iov = &b.iovs[i]
		h.SetIovlen(1)
		h.Control = &b.controls[i*recvControl]
		b.arm(i)
	}
	return b
}

// message returns the memory of message i.
func (b *Batch) message(i int) []byte {
	return b.memory[i*b.stride : (i+1)*b.stride : (i+1)*b.stride]
}

// arm resets what the kernel changed in header i.
func (b *Batch) arm(i int) {
	h := &b.hdrs[i].hdr
	h.Namelen = unix.SizeofSockaddrInet6
	h.SetControllen(recvControl)
	h.Flags = 0
}

// adapt chooses how many messages to ask for next, from the last n with size octets together.
func (b *Batch) adapt(n, size int) {
	b.vlen = len(b.all)
	if size > 0 {
		b.vlen = min(max(batchBytes*n/size, minBatch), len(b.all))
	}
}
