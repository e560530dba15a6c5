package tuntest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"wardgate/tun"
)

var packet = append([]byte{0x45}, make([]byte, 27)...)

func TestFake(t *testing.T) {
	d := New("fake0", 2, 8)
	if d.Name() != "fake0" || len(d.Queues()) != 2 {
		t.Fatal(d.Name(), len(d.Queues()))
	}
	for i := range 3 {
		if err := d.Inject(1, append(packet, byte(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Inject(1, make([]byte, 200)); err != nil { // too long for the buffers below
		t.Fatal(err)
	}
	q := d.Queues()[1]
	bufs, sizes := [][]byte{make([]byte, 100), make([]byte, 100)}, make([]int, 2)
	n, err := q.ReadBatch(bufs, sizes, 20)
	if n != 2 || err != nil || sizes[1] != 29 || bufs[1][20+28] != 1 {
		t.Fatalf("%d, %v, %v", n, err, sizes)
	}
	if n, err = q.ReadBatch(bufs, sizes, 20); n != 1 || err != nil || bufs[0][20+28] != 2 {
		t.Fatalf("%d, %v", n, err)
	}
	if _, err := q.ReadBatch(nil, nil, 0); !errors.Is(err, tun.ErrBufferSize) {
		t.Fatal(err)
	}

	buf := append(make([]byte, 20), packet...)
	n, err = q.WriteBatch([]tun.Packet{
		{Buf: buf, Off: 20, Len: 28},
		{Buf: buf, Off: 5, Len: 28},
		{Buf: buf, Off: 20, Len: 29},
		{Buf: make([]byte, 60), Off: 20, Len: 28},
	})
	if n != 1 || !errors.Is(err, tun.ErrNoHeadroom) {
		t.Fatalf("%d, %v", n, err)
	}
	if got := <-d.Written(1); !bytes.Equal(got, packet) {
		t.Fatalf("% x", got)
	}
}

func TestFakeClose(t *testing.T) {
	d := New("fake0", 1, 1)
	q := d.Queues()[0]
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := q.ReadBatch([][]byte{make([]byte, 100)}, make([]int, 1), 0); !errors.Is(err, tun.ErrClosed) {
			t.Errorf("read: %v", err)
		}
	})
	wg.Go(func() {
		for {
			buf := append(make([]byte, 20), packet...)
			if _, err := q.WriteBatch([]tun.Packet{{Buf: buf, Off: 20, Len: 28}}); err != nil {
				if !errors.Is(err, tun.ErrClosed) {
					t.Errorf("write: %v", err)
				}
				return
			}
		}
	})
	<-d.Written(0)
	_ = d.Close()
	_ = d.Close()
	wg.Wait()
	if err := d.Inject(0, packet); !errors.Is(err, tun.ErrClosed) {
		t.Error(err)
	}
}

// udp returns an IPv4 packet whose UDP checksum is right.
func udp(id uint16, data []byte) []byte {
	p := make([]byte, 28, 28+len(data))
	copy(p, []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 0, 2, 0})
	p = append(p, data...)
	be := binary.BigEndian
	be.PutUint16(p[2:], uint16(len(p)))
	be.PutUint16(p[4:], id)
	be.PutUint16(p[10:], ^tun.Checksum(p[:20], 0))
	be.PutUint16(p[24:], uint16(len(p)-20))
	be.PutUint16(p[26:], ^tun.Checksum(p[12:], 17+uint16(len(p)-20)))
	return p
}

func TestFakeBurst(t *testing.T) {
	d := New("fake0", 1, 8)
	pkts := [][]byte{udp(7, []byte("first.")), udp(8, []byte("second")), udp(9, []byte("end"))}
	if err := d.InjectSuper(0, pkts...); err != nil {
		t.Fatal(err)
	}
	for _, p := range [][]byte{packet, {1, 2, 3}, pkts[1]} {
		if err := d.Inject(0, p); err != nil {
			t.Fatal(err)
		}
	}
	q := d.Queues()[0]
	s := tun.Spacing{Front: 16, Back: 18, Align: 4, Trailer: 2}
	buf := make([]byte, s.Front+tun.BurstRoom)
	var b tun.Burst
	if _, err := q.ReadBurst(&b, buf[1:], s, true); !errors.Is(err, tun.ErrBufferSize) {
		t.Fatal(err)
	}
	for i, want := range [][][]byte{pkts, {packet}, {pkts[1]}} { // nothing was lost by the error
		ok, err := q.ReadBurst(&b, buf, s, i > 0)
		if !ok || err != nil || b.Count != len(want) {
			t.Fatalf("%d: %t, %v, %d packets", i, ok, err, b.Count)
		}
		if err := b.Cut(s); err != nil {
			t.Fatal(err)
		}
		for k, w := range want {
			if got := buf[s.Front+k*s.Stride(b.Full):][:len(w)]; !bytes.Equal(got, w) {
				t.Errorf("%d, packet %d: % x, want % x", i, k, got, w)
			}
		}
	}
	if ok, err := q.ReadBurst(&b, buf, s, false); ok || err != nil {
		t.Fatal(ok, err)
	}
	for _, wrong := range [][][]byte{nil, pkts[:1], {packet, packet}, {pkts[2], pkts[0]}, {pkts[0], pkts[2], pkts[1]}} {
		if err := d.InjectSuper(0, wrong...); err == nil {
			t.Errorf("%d packets that are no super-packet: no error", len(wrong))
		}
	}
	_ = d.Close()
	for _, wait := range []bool{false, true} {
		if _, err := q.ReadBurst(&b, buf, s, wait); !errors.Is(err, tun.ErrClosed) {
			t.Error(err)
		}
	}
	if err := d.InjectSuper(0, pkts...); !errors.Is(err, tun.ErrClosed) {
		t.Error(err)
	}
}
