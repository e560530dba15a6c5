// Package tuntest is a TUN device without a kernel, for tests of those who use package tun.
package tuntest

import (
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
	case d.queues[i].in <- append([]byte(nil), pkt...):
		return nil
	case <-d.closed:
		return tun.ErrClosed
	}
}

// Written returns the channel of packets that were written to queue i. It is never closed.
func (d *Device) Written(i int) <-chan []byte { return d.queues[i].out }

type queue struct {
	d       *Device
	in, out chan []byte
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
	if len(p) > len(bufs[n])-off {
		return n
	}
	sizes[n] = copy(bufs[n][off:], p)
	return n + 1
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
