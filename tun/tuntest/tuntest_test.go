package tuntest

import (
	"bytes"
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
