// Package tuntest is a TUN device without a kernel, for tests of those who use package tun.
package tuntest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"wardgate/tun"
)

// Device is a fake device: what a test injects is read from its queues, and what is written to its
// queues the test receives. Nothing is segmented or coalesced.
type Device struct {
	name   string
	queues []*queue
	closed chan struct{}
	once   sync.Once
}

// New returns a device with the given number of queues, each of which holds depth packets in each
// direction before its writers wait.
func New(name string, queues, depth int) *Device {
	d := &Device{name: name, closed: make(chan struct{})}
	for range queues {
		d.queues = append(d.queues, &queue{d: d, in: make(chan []byte, depth), out: make(chan []byte, depth)})
	}
	return d
}

// Name returns the name that New was given.
func (d *Device) Name() string { return d.name }

// Queues returns the queues.
func (d *Device) Queues() []tun.Queue {
	qs := make([]tun.Queue, len(d.queues))
	for i, q := range d.queues {
		qs[i] = q
	}
	return qs
}

// Close wakes everybody who waits, with tun.ErrClosed.
func (d *Device) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// Inject lets ReadBatch of queue i return a copy of pkt. It waits while the queue is full, and
// returns tun.ErrClosed after Close.
func (d *Device) Inject(i int, pkt []byte) error {
	select {
	case <-d.closed:
		return tun.ErrClosed
	default:
	}
	select {
	case d.queues[i].in <- append(make([]byte, tun.VirtioHeaderLen), pkt...):
		return nil
	case <-d.closed:
		return tun.ErrClosed
	}
}

// InjectSuper lets ReadBurst of queue i return a super-packet that Burst.Cut cuts into pkts: TCP or
// UDP packets of one flow as a sender's segmentation makes them, without IPv4 options and IPv6
// extension headers, all of the length of the first but the last, which may be shorter. ReadBatch
// cannot read it. It waits while the queue is full, and returns tun.ErrClosed after Close.
func (d *Device) InjectSuper(i int, pkts ...[]byte) error {
	raw, err := super(pkts)
	if err != nil {
		return err
	}
	select {
	case <-d.closed:
		return tun.ErrClosed
	default:
	}
	select {
	case d.queues[i].in <- raw:
		return nil
	case <-d.closed:
		return tun.ErrClosed
	}
}

// super puts together what the kernel would have handed over: struct virtio_net_hdr and the packet.
func super(pkts [][]byte) ([]byte, error) {
	if len(pkts) < 2 || len(pkts[0]) < 28 {
		return nil, fmt.Errorf("tuntest: %d packets, want two or more TCP or UDP packets", len(pkts))
	}
	raw := append(make([]byte, tun.VirtioHeaderLen), pkts[0]...)
	p := raw[tun.VirtioHeaderLen:]
	transport, proto, addrs, gso := 20, p[9], p[12:20], byte(1)
	if p[0]>>4 == 6 {
		if len(p) < 48 {
			return nil, fmt.Errorf("tuntest: IPv6 packet of %d octets, want at least 48", len(p))
		}
		transport, proto, addrs, gso = 40, p[6], p[8:40], 4
	}
	payload, sum := transport+8, 6
	switch {
	case proto == 6 && len(p) >= transport+20:
		payload, sum = transport+int(p[transport+12]>>4)*4, 16
	case proto == 17:
		gso = 5
	default:
		return nil, fmt.Errorf("tuntest: protocol %d, want TCP or UDP", proto)
	}
	size := len(p) - payload
	if size <= 0 {
		return nil, fmt.Errorf("tuntest: no payload in a packet of %d octets", len(p))
	}
	for i, q := range pkts[1:] {
		if len(q) <= payload || len(q) > len(p) || len(q) < len(p) && i+2 < len(pkts) {
			return nil, fmt.Errorf("tuntest: packet %d of %d has %d octets, the first %d", i+1, len(pkts), len(q), len(p))
		}
		raw = append(raw, q[payload:]...)
	}
	p = raw[tun.VirtioHeaderLen:]
	raw[0], raw[1] = 1, gso // VIRTIO_NET_HDR_F_NEEDS_CSUM
	for i, v := range []int{payload, size, transport, sum} {
		binary.NativeEndian.PutUint16(raw[2+2*i:], uint16(v))
	}
	if proto == 6 {
		p[transport+13] |= pkts[len(pkts)-1][transport+13] & 0x09 // FIN, PSH
	}
	// in the checksum's place the sum of the pseudo header
	binary.BigEndian.PutUint16(p[transport+sum:], tun.Checksum(addrs, tun.Checksum([]byte{0, proto}, uint16(len(p)-transport))))
	return raw, nil
}

// Written returns the channel of packets that were written to queue i. It is never closed.
func (d *Device) Written(i int) <-chan []byte { return d.queues[i].out }

type queue struct {
	d       *Device
	in, out chan []byte
	rest    []byte // what ReadBurst returns next
}

// ReadBatch implements tun.Queue.
func (q *queue) ReadBatch(bufs [][]byte, sizes []int, off int) (n int, err error) {
	if len(bufs) == 0 || len(sizes) < len(bufs) || off < 0 {
		return 0, tun.ErrBufferSize
	}
	for _, b := range bufs {
		if len(b) <= off {
			return 0, tun.ErrBufferSize
		}
	}
	for n == 0 { // packets that do not fit are dropped, as the real device does
		select {
		case <-q.d.closed:
			return 0, tun.ErrClosed
		case p := <-q.in:
			n = put(p, bufs, sizes, off, n)
		}
	}
	for n < len(bufs) {
		select {
		case p := <-q.in:
			n = put(p, bufs, sizes, off, n)
		default:
			return n, nil
		}
	}
	return n, nil
}

func put(p []byte, bufs [][]byte, sizes []int, off, n int) int {
	p = p[tun.VirtioHeaderLen:]
	if len(p) > len(bufs[n])-off {
		return n
	}
	sizes[n] = copy(bufs[n][off:], p)
	return n + 1
}

// ReadBurst implements tun.Queue.
func (q *queue) ReadBurst(b *tun.Burst, buf []byte, s tun.Spacing, wait bool) (bool, error) {
	for { // what makes no sense is skipped, as the real device does
		raw := q.rest
		q.rest = nil
		if raw == nil && wait {
			select {
			case <-q.d.closed:
				return false, tun.ErrClosed
			case raw = <-q.in:
			}
		} else if raw == nil {
			select {
			case <-q.d.closed:
				return false, tun.ErrClosed
			case raw = <-q.in:
			default:
				return false, nil
			}
		}
		rest, err := b.Load(raw, buf, s)
		if errors.Is(err, tun.ErrBufferSize) {
			q.rest = raw
			return false, err
		}
		if err == nil {
			q.rest = rest
			return true, nil
		}
	}
}

// WriteBatch implements tun.Queue.
func (q *queue) WriteBatch(pkts []tun.Packet) (n int, err error) {
	for i := range pkts {
		p := &pkts[i]
		if p.Off < tun.VirtioHeaderLen || p.Len < 0 || p.Off > len(p.Buf) || p.Len > len(p.Buf)-p.Off {
			err = first(err, tun.ErrNoHeadroom)
			continue
		}
		b := p.Buf[p.Off : p.Off+p.Len]
		if len(b) < 20 || b[0]>>4 != 4 && (b[0]>>4 != 6 || len(b) < 40) {
			err = first(err, tun.ErrNotIP)
			continue
		}
		// The real device overwrites this; a caller that relies on it must fail here too.
		for j := range tun.VirtioHeaderLen {
			p.Buf[p.Off-1-j] = 0xa5
		}
		select {
		case <-q.d.closed:
			return n, tun.ErrClosed
		default:
		}
		select {
		case q.out <- append([]byte(nil), b...):
			n++
		case <-q.d.closed:
			return n, tun.ErrClosed
		}
	}
	return n, err
}

func first(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
