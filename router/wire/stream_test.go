package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// streams makes both ends of a TCP connection on the loopback.
func streams(t *testing.T) (a, b *Stream, counts [2]*StreamCounters) {
	t.Helper()
	counts = [2]*StreamCounters{{}, {}}
	l, err := ListenStreams(netip.MustParseAddrPort("127.0.0.1:0"), StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = DialStream(t.Context(), netip.MustParseAddr("127.0.0.1"), addrOf(l.Addr()), StreamOptions{Count: counts[0]}); err != nil {
		t.Fatal(err)
	}
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	if b, err = AcceptStream(c, StreamOptions{Count: counts[1]}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	if a.Local() != b.Remote() || a.Remote() != b.Local() {
		t.Errorf("%v-%v and %v-%v are no two ends", a.Local(), a.Remote(), b.Local(), b.Remote())
	}
	for _, s := range []*Stream{a, b} {
		s.SetDeadline(time.Now().Add(20 * time.Second)) // a test that hangs shall end
	}
	return a, b, counts
}

// collect receives n messages.
func collect(t *testing.T, s *Stream, x *Inbox, n int) (out [][]byte) {
	t.Helper()
	for len(out) < n {
		err := s.Receive(x)
		for _, m := range x.Messages {
			out = append(out, bytes.Clone(x.Buf[m.Off:m.Off+m.Len]))
		}
		if err != nil {
			t.Fatalf("after %d of %d messages: %v", len(out), n, err)
		}
	}
	return out
}

func TestStream(t *testing.T) {
	a, b, counts := streams(t)
	ike := pattern(500, 1)
	if err := a.SendIKE(ike); err != nil {
		t.Fatal(err)
	}
	run := pattern(1400*9+77, 2)
	msgs := []Message{{Buf: run, Segment: 1400}, {Buf: run[:1]}}
	if n := a.Send(msgs); n != 0 || msgs[0].Err != nil {
		t.Fatalf("%d dropped, %v", n, msgs[0].Err)
	}
	x := NewInbox(64, true)
	got := collect(t, b, x, 12)
	if !bytes.Equal(got[0], append(make([]byte, 4), ike...)) {
		t.Error("the IKE message is another, or has no non-ESP marker")
	}
	if !bytes.Equal(bytes.Join(got[1:11], nil), run) || len(got[10]) != 77 || !bytes.Equal(got[11], run[:1]) {
		t.Error("the ESP packets are others")
	}
	// The other way there is no prefix (RFC 9329, section 4).
	if err := b.SendIKE(ike); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, a, NewInbox(0, false), 1); !bytes.Equal(got[0][4:], ike) {
		t.Error("the answer is another")
	}
	if n := counts[0].OutMessages.Load(); n != 12 {
		t.Errorf("%d messages counted, want 12", n)
	}
}

// A peer that reads nothing: nobody waits, ESP is dropped, IKE has room still, and what was taken
// arrives in order once the peer reads.
func TestStreamNeverWaits(t *testing.T) {
	a, b, counts := streams(t)
	var sent [][]byte
	dropped := 0
	for i := 0; dropped == 0; i++ {
		if i > 100_000 {
			t.Fatal("nothing is ever dropped: the queue has no bound")
		}
		p := pattern(1400, i)
		m := []Message{{Buf: p}}
		if dropped = a.Send(m); dropped == 0 {
			sent = append(sent, p)
		} else if !errors.Is(m[0].Err, unix.ENOBUFS) {
			t.Errorf("dropped with %v, want ENOBUFS", m[0].Err)
		}
	}
	if err := a.SendIKE(pattern(9, 1)); err != nil {
		t.Errorf("no room for an IKE message: %v", err)
	}
	x := NewInbox(0, true)
	x.Enlarge()
	got := collect(t, b, x, len(sent)+1)
	for i := range sent {
		if !bytes.Equal(got[i], sent[i]) {
			t.Fatalf("message %d of %d is another", i, len(sent))
		}
	}
	if len(got[len(sent)]) != 13 || counts[0].OutDropped.Load() != 1 || counts[0].OutWaits.Load() == 0 {
		t.Errorf("last message of %d octets, %d dropped, %d waits", len(got[len(sent)]), counts[0].OutDropped.Load(), counts[0].OutWaits.Load())
	}
	// And it goes on.
	if n := a.Send([]Message{{Buf: pattern(8, 3)}}); n != 0 {
		t.Error("dropped although everything was read")
	}
	collect(t, b, x, 1)
}

// Too much IKE for a peer that reads nothing breaks the connection: IKE messages are not dropped.
func TestStreamBreaksForIKE(t *testing.T) {
	a, _, _ := streams(t)
	big := pattern(60_000, 1)
	for i := 0; ; i++ {
		if err := a.SendIKE(big); err != nil {
			if !errors.Is(err, unix.ENOBUFS) {
				t.Errorf("%v, want ENOBUFS", err)
			}
			break
		}
		if i > 10_000 {
			t.Fatal("the queue has no bound")
		}
	}
	if err := a.SendIKE(big); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
	if err := a.Receive(NewInbox(0, false)); err == nil {
		t.Error("who receives was not told")
	}
	if n := a.Send([]Message{{Buf: big, Segment: 1000}}); n != 60 {
		t.Errorf("%d dropped, want all 60", n)
	}
}

// End sends what waits first.
func TestStreamEnd(t *testing.T) {
	a, b, _ := streams(t)
	n := 0
	for a.Send([]Message{{Buf: pattern(1400, n)}}) == 0 {
		n++
	}
	a.End()
	if err := a.SendIKE(nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
	x := NewInbox(0, true)
	got := 0
	for {
		err := b.Receive(x)
		got += len(x.Messages)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
	}
	if got != n {
		t.Errorf("%d of %d messages arrived", got, n)
	}
}

func TestListenStreamsSaysWhat(t *testing.T) {
	l, err := ListenStreams(netip.MustParseAddrPort("[::1]:0"), StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := ListenStreams(addrOf(l.Addr()), StreamOptions{}); !errors.Is(err, unix.EADDRINUSE) || !bytes.Contains([]byte(err.Error()), []byte("network.tcp")) {
		t.Errorf("%v; want what to do about a port in use", err)
	}
	if _, err := DialStream(t.Context(), netip.Addr{}, netip.MustParseAddrPort("[::1]:1"), StreamOptions{}); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%v, want ECONNREFUSED", err)
	}
}
