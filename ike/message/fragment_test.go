package message_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"wardgate/ike/message"
)

func frag(number, total uint16, text string) message.Fragment {
	f := message.Fragment{Number: number, Total: total, Plain: []byte(text), Header: message.Header{MessageID: 1}}
	if number == 1 {
		f.First = message.PayloadIDi
	}
	return f
}

// RFC 7383, section 2.6, step by step.
func TestReassembler(t *testing.T) {
	var r message.Reassembler
	add := func(f message.Fragment, wantErr error) {
		t.Helper()
		if _, done, err := r.Add(f); done || !errors.Is(err, wantErr) {
			t.Errorf("fragment %d/%d: done %v, %v; want %v", f.Number, f.Total, done, err, wantErr)
		}
	}
	pending := func(have, total int) {
		t.Helper()
		if h, n := r.Pending(); h != have || n != total {
			t.Errorf("%d of %d pending, want %d of %d", h, n, have, total)
		}
	}
	finish := func(f message.Fragment, want string) {
		t.Helper()
		in, done, err := r.Add(f)
		if err != nil || !done || string(in.Plain) != want || in.First != message.PayloadIDi {
			t.Errorf("last fragment: done %v, %q from %v, %v; want %q from IDi", done, in.Plain, in.First, err, want)
		}
		pending(0, 0)
	}

	finish(frag(1, 1, "only"), "only")

	add(frag(3, 3, "c"), nil)
	add(frag(3, 3, "c"), message.ErrFragmentReplay)
	add(frag(3, 3, "other"), message.ErrFragmentReplay) // the first one counts
	add(frag(1, 3, "a"), nil)
	pending(2, 3)
	finish(frag(2, 3, "b"), "abc")

	// The sender refragments with a smaller size: the old set is forgotten.
	add(frag(1, 2, "ab"), nil)
	add(frag(2, 3, "b"), nil)
	pending(1, 3)
	add(frag(2, 2, "c"), message.ErrFragmentStale)
	add(frag(1, 3, "a"), nil)
	finish(frag(3, 3, "c"), "abc")

	// Another message, or another header, does not mix.
	add(frag(1, 2, "a"), nil)
	other := frag(2, 2, "b")
	other.Header.MessageID = 2
	add(other, message.ErrFragmentMismatch)
	other = frag(2, 2, "b")
	other.Header.Flags = message.FlagResponse
	add(other, message.ErrFragmentMismatch)
	finish(frag(2, 2, "b"), "ab")

	for _, f := range []message.Fragment{frag(0, 1, ""), frag(1, 0, ""), frag(2, 1, "")} {
		add(f, message.ErrSyntax)
	}
	pending(0, 0)

	add(frag(1, 256, "a"), message.ErrReassemblyLimit)
	pending(0, 0)
	add(frag(1, 3, string(make([]byte, 40000))), nil)
	add(frag(2, 3, string(make([]byte, 40000))), message.ErrReassemblyLimit)
	pending(0, 0)

	add(frag(1, 2, "a"), nil)
	r.Reset()
	pending(0, 0)

	// What Add keeps is its own.
	f := frag(1, 2, "mine")
	add(f, nil)
	copy(f.Plain, "XXXX")
	finish(frag(2, 2, ""), "mine")
}

// Wants says before decryption what Add would say after it.
func TestReassemblerWants(t *testing.T) {
	var r message.Reassembler
	msg := func(number, total uint16) *message.Message {
		return &message.Message{Header: message.Header{MessageID: 1}, Encrypted: &message.Encrypted{Number: number, Total: total}}
	}
	want := func(m *message.Message, want error) {
		t.Helper()
		if err := r.Wants(m); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	want(msg(1, 1), nil)
	want(msg(0, 0), message.ErrNotFragment)
	want(&message.Message{}, message.ErrNotFragment)
	if _, _, err := r.Add(frag(2, 3, "b")); err != nil {
		t.Fatal(err)
	}
	want(msg(1, 3), nil)
	want(msg(2, 3), message.ErrFragmentReplay)
	want(msg(2, 2), message.ErrFragmentStale)
	want(msg(2, 4), nil)
	m := msg(1, 3)
	m.MessageID = 9
	want(m, message.ErrFragmentMismatch)
	if have, total := r.Pending(); have != 1 || total != 3 {
		t.Errorf("Wants changed the queue to %d of %d", have, total)
	}
}

// modelReassembler is the obvious implementation: a map, looked through at every step.
type modelReassembler struct {
	total uint16
	parts map[uint16][]byte
}

func (m *modelReassembler) add(f message.Fragment) (plain []byte, done, ok bool) {
	if f.Number == 0 || f.Number > f.Total || f.Total < m.total || f.Total == m.total && m.parts[f.Number] != nil {
		return nil, false, false
	}
	if f.Total > m.total {
		*m = modelReassembler{total: f.Total, parts: map[uint16][]byte{}}
	}
	m.parts[f.Number] = append([]byte{}, f.Plain...)
	if len(m.parts) < int(m.total) {
		return nil, false, true
	}
	for i := range m.total {
		plain = append(plain, m.parts[i+1]...)
	}
	*m = modelReassembler{}
	return plain, true, true
}

func TestReassemblerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r message.Reassembler
		var model modelReassembler
		for i := range rapid.IntRange(1, 40).Draw(t, "fragments") {
			f := message.Fragment{
				Number: rapid.Uint16Range(0, 5).Draw(t, "number"),
				Total:  rapid.Uint16Range(0, 4).Draw(t, "total"),
				Plain:  fmt.Appendf(nil, "<%d>", i),
			}
			in, done, err := r.Add(f)
			plain, wantDone, ok := model.add(f)
			if done != wantDone || (err == nil) != ok || !bytes.Equal(in.Plain, plain) {
				t.Fatalf("%d/%d: done %v %q %v, want %v %q %v", f.Number, f.Total, done, in.Plain, err, wantDone, plain, ok)
			}
		}
	})
}
