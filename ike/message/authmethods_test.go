package message_test

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"wardgate/ike/message"
)

func TestAuthMethods(t *testing.T) {
	alg := []byte{0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70} // Ed25519
	list := []message.AuthAnnouncement{
		{Method: message.AuthPSK},
		{Method: message.AuthECDSA256},
		{Method: message.AuthRSA, Link: 2},
		{Method: message.AuthDigitalSignature, Link: 1, Algorithm: alg},
		{Method: message.AuthNull},
	}
	n := message.NewSupportedAuthMethods(list)
	want := append([]byte{2, 2, 3, 9, 0, 3, 1, 2, 10, 14, 1}, alg...)
	want = append(want, 2, 13)
	if !bytes.Equal(n.Data, want) || n.Type != message.NotifySupportedAuthMethods {
		t.Errorf("% x, want % x", n.Data, want)
	}
	got, err := n.AuthAnnouncements()
	if err != nil || len(got) != len(list) {
		t.Fatal(got, err)
	}
	for i := range got {
		if got[i].Method != list[i].Method || got[i].Link != list[i].Link || !bytes.Equal(got[i].Algorithm, list[i].Algorithm) {
			t.Errorf("%+v, want %+v", got[i], list[i])
		}
	}
	// All prefixes: the end of an announcement, or an error.
	ends := map[int]bool{0: true, 2: true, 5: true, 8: true, 18: true, 20: true}
	for i := range want {
		_, err := (&message.Notify{Data: want[:i]}).AuthAnnouncements()
		if (err == nil) != ends[i] {
			t.Errorf("%d octets: %v", i, err)
		}
		if se := new(message.SyntaxError); err != nil && !errors.As(err, &se) {
			t.Errorf("%d octets: %v is no SyntaxError", i, err)
		}
	}
	for _, bad := range [][]byte{{0}, {1}, {1, 2}, {0, 0, 0}, {255, 14, 0}, {3, 1}, {2}} {
		if got, err := (&message.Notify{Data: bad}).AuthAnnouncements(); err == nil {
			t.Errorf("% x: %+v", bad, got)
		}
	}
	if got, err := (&message.Notify{}).AuthAnnouncements(); err != nil || len(got) != 0 {
		t.Errorf("empty: %+v, %v", got, err)
	}
	var limit *message.LimitError
	if _, err := (&message.Notify{Data: bytes.Repeat([]byte{2, 2}, message.MaxAuthMethods+1)}).AuthAnnouncements(); !errors.As(err, &limit) {
		t.Errorf("too many: %v", err)
	}
	if n := message.NewSupportedAuthMethods([]message.AuthAnnouncement{{Method: message.AuthDigitalSignature, Algorithm: make([]byte, 253)}}); len(n.Data) != 0 {
		t.Errorf("an announcement of %d octets", len(n.Data))
	}
}

func FuzzAuthMethods(f *testing.F) {
	f.Add([]byte{2, 2, 3, 9, 0, 10, 14, 1, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70})
	f.Add([]byte{0})
	f.Add([]byte{255, 14})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := (&message.Notify{Data: b}).AuthAnnouncements()
		if err != nil {
			return
		}
		again, err := message.NewSupportedAuthMethods(list).AuthAnnouncements()
		if err != nil || len(again) != len(list) {
			t.Fatalf("%+v became %+v, %v", list, again, err)
		}
		for i := range list {
			if len(list[i].Algorithm) == 0 {
				list[i].Algorithm, again[i].Algorithm = nil, nil
			}
			if !reflect.DeepEqual(list[i], again[i]) {
				t.Errorf("%+v became %+v", list[i], again[i])
			}
		}
	})
}
