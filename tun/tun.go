package tun

// VirtioHeaderLen is the room that WriteBatch needs in front of each packet, in octets: that of
// struct virtio_net_hdr. What was there is overwritten.
const VirtioHeaderLen = virtioHeaderLen

// MaxSegments is the largest number of packets that one super-packet of ordinary size becomes:
// buffers for so many make a good batch. Larger and smaller batches work too.
const MaxSegments = 128

// Packet is an IP packet in a buffer: Buf[Off:Off+Len].
type Packet struct {
	Buf []byte
	Off int
	Len int
}

// Queue is one queue of a device. One goroutine at a time may call ReadBatch or ReadBurst, and one
// WriteBatch; both directions may run at once. The fake is in tun/tuntest.
//
// There are two ways to read: a queue should be read in one of them, as what ReadBatch or ReadBurst
// could not hand out at once is only returned by the same.
type Queue interface {
	// ReadBatch waits for at least one packet and returns those that are there without waiting
	// further, at most len(bufs). Packet i lies in bufs[i][off:off+sizes[i]], with all its
	// checksums complete. What did not fit is returned by the next call. ErrClosed after Close;
	// any other error means that the device is gone.
	//
	// A packet that is longer than its buffer is dropped and counted (Counters.TooLong).
	ReadBatch(bufs [][]byte, sizes []int, off int) (n int, err error)

	// ReadBurst reads one packet or one super-packet into buf, so that Burst.Cut can cut it there
	// with spacing s, or with another one for more work. The caller looks at b.First and decides
	// about all packets of the burst at once; who drops them does not call Cut, and calls ReadBurst
	// again with the same buf.
	//
	// If there is none, wait says whether to wait for it; if not, ok is false and err nil. That
	// costs one system call. ErrClosed after Close, ErrBufferSize if buf has less than
	// BurstRoom octets behind s.Front; any other error means that the device is gone.
	// What makes no sense is counted (Counters.Malformed) and skipped.
	ReadBurst(b *Burst, buf []byte, s Spacing, wait bool) (ok bool, err error)

	// WriteBatch hands all packets to the kernel, in order (see the package comment), and returns
	// how many it took. A packet that is refused does not hold up the others; err is the first
	// refusal. The buffers may be changed: VirtioHeaderLen octets before each packet and the
	// packet's headers.
	WriteBatch(pkts []Packet) (n int, err error)
}

// Options for Open.
type Options struct {
	// Name of the interface, at most 15 octets; "wg%d" lets the kernel choose the number.
	Name string
	// MTU in octets; 0 leaves the kernel's (1500).
	MTU int
	// Queues: 0 means 1.
	Queues int
	// Offload asks for super-packets. Kernels that refuse a part of it (UDP before 6.2) get the
	// rest; see Device.Offloads.
	Offload bool
}

// Offloads says what the kernel granted.
type Offloads struct {
	Checksum bool // packets may leave the kernel and enter it with checksums to be completed
	TCP      bool // TCP super-packets, IPv4 and IPv6
	UDP      bool // UDP super-packets, IPv4 and IPv6
}

// Counters of a queue, or of all queues of a device.
type Counters struct {
	ReadPackets, ReadBytes, ReadCalls    uint64 // packets after segmentation; calls that gave one or more
	WritePackets, WriteBytes, WriteCalls uint64 // packets before coalescing
	Malformed                            uint64 // super-packets from the kernel that make no sense
	TooLong                              uint64 // packets that did not fit into the caller's buffer
	WriteErrors                          uint64 // packets that the kernel refused
	OffloadFallbacks                     uint64 // super-packets refused by the kernel and written singly
}

func (c *Counters) add(d Counters) {
	c.ReadPackets += d.ReadPackets
	c.ReadBytes += d.ReadBytes
	c.ReadCalls += d.ReadCalls
	c.WritePackets += d.WritePackets
	c.WriteBytes += d.WriteBytes
	c.WriteCalls += d.WriteCalls
	c.Malformed += d.Malformed
	c.TooLong += d.TooLong
	c.WriteErrors += d.WriteErrors
	c.OffloadFallbacks += d.OffloadFallbacks
}
