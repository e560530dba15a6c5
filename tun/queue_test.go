package tun

import (
	"testing"

	"golang.org/x/sys/unix"
)

// socketQueue is a queue over a socket pair, which keeps message boundaries as the device does.
func socketQueue(t *testing.T) (q *queue, peer int) {
	t.Helper()
	q, _, peer = socketPair(t, unix.SOCK_DGRAM)
	return q, peer
}

// socketDevice is a device whose only queue is fd.
func socketDevice(fd int) (*Device, error) {
	st, err := newStop()
	if err != nil {
		return nil, err
	}
	off := Offloads{TCP: true, UDP: true}
	return &Device{name: "socket", offloads: off, stop: st, queues: []*queue{newQueue(fd, st, off)}}, nil
}

func superPacket(d desc, gso int) []byte {
	h, p := d.super(gso)
	b := make([]byte, virtioHeaderLen, virtioHeaderLen+len(p))
	h.encode(b)
	return append(b, p...)
}

// A super-packet of more segments than there are buffers is handed out in turn; garbage between
// super-packets is counted and does not stop the queue.
func TestReadBatchInTurn(t *testing.T) {
	q, peer := socketQueue(t)
	d := desc{proto: protoTCP, flags: tcpACK, data: make([]byte, 7*100)}
	var want [][]byte
	for i := range 3 {
		d.seq = uint32(i)
		for _, b := range [][]byte{superPacket(d, 100), {1, 2, 3}, make([]byte, 20)} {
			if _, err := unix.Write(peer, b); err != nil {
				t.Fatal(err)
			}
		}
		want = append(want, d.segments(100)...)
	}
	var got [][]byte
	for len(got) < len(want) {
		bufs, sizes := make([][]byte, 4), make([]int, 4)
		for i := range bufs {
			bufs[i] = make([]byte, 300)
		}
		n, err := q.ReadBatch(bufs, sizes, 17)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			got = append(got, bufs[i][17:17+sizes[i]])
		}
	}
	compare(t, got, want)
	if c := q.Counters(); c.ReadCalls != 3 || c.ReadPackets != 21 || c.ReadBytes != 21*140 || c.Malformed != 6 {
		t.Fatalf("counters %+v", c)
	}
}

func TestQueueAllocations(t *testing.T) {
	q, peer := socketQueue(t)
	d := desc{proto: protoTCP, flags: tcpACK, data: make([]byte, 20*1000)}
	in := superPacket(d, 1000)
	bufs, sizes, pkts := make([][]byte, 64), make([]int, 64), make([]Packet, 64)
	for i := range bufs {
		bufs[i] = make([]byte, 1600)
	}
	sink := make([]byte, 1<<16)
	if n := testing.AllocsPerRun(50, func() {
		if _, err := unix.Write(peer, in); err != nil {
			t.Fatal(err)
		}
		n, err := q.ReadBatch(bufs, sizes, 32)
		if err != nil || n != 20 {
			t.Fatal(n, err)
		}
		for i := range n {
			pkts[i] = Packet{Buf: bufs[i], Off: 32, Len: sizes[i]}
		}
		if n, err := q.WriteBatch(pkts[:n]); n != 20 || err != nil {
			t.Fatal(n, err)
		}
		if n, err := unix.Read(peer, sink); n != len(in) || err != nil {
			t.Fatal(n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
