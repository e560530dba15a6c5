package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// feed gives an inbox a stream in pieces and returns the messages, until the first error.
func feed(t testing.TB, x *Inbox, stream []byte, piece func() int) (out [][]byte, err error) {
	t.Helper()
	for len(stream) > 0 {
		space := x.Space()
		if len(space) == 0 {
			t.Fatal("no space to read to")
		}
		n := copy(space, stream[:min(len(stream), max(piece(), 1))])
		stream = stream[n:]
		err = x.Took(n)
		for _, m := range x.Messages {
			if m.Off < x.headroom || m.Len < 1 || m.Off+m.Len > len(x.Buf) {
				t.Fatalf("message %+v outside of %d octets, headroom %d", m, len(x.Buf), x.headroom)
			}
			out = append(out, bytes.Clone(x.Buf[m.Off:m.Off+m.Len]))
		}
		if len(x.Buf) > x.limit {
			t.Fatalf("%d octets of memory, the limit is %d", len(x.Buf), x.limit)
		}
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + seed)
	}
	return b
}

// RFC 9329, sections 3 and 4: prefix, then messages of 1 to 65533 octets; empty ones are ignored.
func TestInbox(t *testing.T) {
	var want [][]byte
	stream := []byte(StreamPrefix)
	for i, n := range []int{1, 28, 1400, MaxMessage, 2, 9000, MaxMessage - 1, 3} {
		want = append(want, pattern(n, i))
		stream = appendMessage(stream, want[i])
		stream = append(stream, 0, 2) // empty
	}
	for _, size := range []int{1, 2, 3, 7, 1448, 4096, 65535, 1 << 20} {
		for _, large := range []bool{false, true} {
			x := NewInbox(64, true)
			if large {
				x.Enlarge()
			}
			if x.Begun() {
				t.Error("the prefix has come before anything came")
			}
			got, err := feed(t, x, stream, func() int { return size })
			if err != nil || len(got) != len(want) {
				t.Fatalf("pieces of %d: %d messages, %v; want %d", size, len(got), err, len(want))
			}
			for i := range want {
				if !bytes.Equal(got[i], want[i]) {
					t.Fatalf("pieces of %d: message %d is another", size, i)
				}
			}
		}
	}
}

// Memory follows what came, and not what a length says.
func TestInboxMemory(t *testing.T) {
	x := NewInbox(64, true)
	if _, err := feed(t, x, append([]byte(StreamPrefix), 0xff, 0xff, 1, 2, 3), func() int { return 100 }); err != nil {
		t.Fatal(err)
	}
	x.Space()
	if len(x.Buf) > 64+inboxFirst {
		t.Errorf("%d octets of memory for 11 that came", len(x.Buf))
	}
}

func TestInboxRefuses(t *testing.T) {
	for _, c := range []struct {
		name, stream string
		prefix       bool
		want         error
		before       int // messages
	}{
		{"HTTP", "GET / HTTP/1.1", true, ErrPrefix, 0},
		{"half a prefix, then another", "IKEUDP", true, ErrPrefix, 0},
		{"prefix of lower case", "iketcp", true, ErrPrefix, 0},
		{"length 0", "IKETCP\x00\x00", true, ErrLength, 0},
		{"length 1", "IKETCP\x00\x01", true, ErrLength, 0},
		{"length 1 behind a message", "\x00\x04ab\x00\x01", false, ErrLength, 1},
		{"the responder sends no prefix", "IKETCP", false, nil, 0}, // a message of 18,747 octets that never comes
	} {
		for _, size := range []int{1, 100} {
			got, err := feed(t, NewInbox(0, c.prefix), []byte(c.stream), func() int { return size })
			if !errors.Is(err, c.want) || len(got) != c.before {
				t.Errorf("%s, pieces of %d: %v and %d messages; want %v and %d", c.name, size, err, len(got), c.want, c.before)
			}
		}
	}
}

// FuzzInbox: whatever comes, in whatever pieces, is cut as the lengths say, and never leaves the memory.
func FuzzInbox(f *testing.F) {
	f.Add([]byte("IKETCP\x00\x03\xff\x00\x06\x00\x00\x00\x00"), uint16(3), true)
	f.Add([]byte("\x00\x02\x00\x04ab\x00\x00"), uint16(1), false)
	f.Add(append([]byte("IKETCP\xff\xff"), make([]byte, 70000)...), uint16(5000), true)
	f.Fuzz(func(t *testing.T, stream []byte, size uint16, prefix bool) {
		got, err := feed(t, NewInbox(64, prefix), stream, func() int { return int(size) })
		// The same by the book, all at once.
		var want [][]byte
		var wantErr error
		rest := stream
		if prefix {
			n := min(len(rest), len(StreamPrefix))
			if string(rest[:n]) != StreamPrefix[:n] {
				wantErr = ErrPrefix
			}
			rest = rest[n:]
		}
		for wantErr == nil && len(rest) >= 2 {
			n := int(binary.BigEndian.Uint16(rest))
			if n < 2 {
				wantErr = ErrLength
			} else if n > len(rest) {
				break
			} else {
				if n > 2 {
					want = append(want, rest[2:n])
				}
				rest = rest[n:]
			}
		}
		if !errors.Is(err, wantErr) || (err == nil) != (wantErr == nil) || len(got) != len(want) {
			t.Fatalf("%d messages, %v; want %d, %v", len(got), err, len(want), wantErr)
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("message %d is %x, want %x", i, got[i], want[i])
			}
		}
	})
}
