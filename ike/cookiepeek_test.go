package ike

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"wardgate/ike/message"
)

func initRequest(t testing.TB, ps ...message.Payload) []byte {
	t.Helper()
	raw, err := message.Encode(message.Header{
		SPIi: message.SPI{1}, Exchange: message.ExchangeIKESAInit, Flags: message.FlagInitiator,
	}, ps)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// What decides about a flood by the payloads' lengths alone sees the same nonce and cookie as the
// codec, wherever they stand, and gives up on what has no proper nonce.
func TestPeekCookie(t *testing.T) {
	nonce := &message.Nonce{Data: bytes.Repeat([]byte{7}, 32)}
	cookie := message.NewNotify(message.NotifyCookie, []byte("a cookie of twenty o")...)
	ke := &message.KE{Method: 31, Data: make([]byte, 32)}
	for name, c := range map[string]struct {
		msg    []byte
		cookie []byte
		ok     bool
	}{
		"none":           {initRequest(t, ke, nonce), nil, true},
		"first":          {initRequest(t, cookie, ke, nonce), cookie.Data, true},
		"last":           {initRequest(t, ke, nonce, cookie), cookie.Data, true},
		"another notify": {initRequest(t, message.NewNotify(message.NotifyRedirectSupported), ke, nonce), nil, true},
		"no nonce":       {initRequest(t, cookie, ke), cookie.Data, false},
	} {
		t.Run(name, func(t *testing.T) {
			req, ok := peekFresh(c.msg)
			ni, got := req.ni, req.cookie
			if ok != c.ok || !bytes.Equal(got, c.cookie) || ok && !bytes.Equal(ni, nonce.Data) {
				t.Errorf("nonce %x, cookie %x, %v; want %x, %v", ni, got, ok, c.cookie, c.ok)
			}
			for n := headerSize; n < len(c.msg); n++ {
				peekFresh(c.msg[:n]) // must not read beyond
			}
		})
	}
}

// FuzzPeekCookie: any octets, no panic; and where the codec reads the message, both see the same.
func FuzzPeekCookie(f *testing.F) {
	nonce := &message.Nonce{Data: make([]byte, 32)}
	f.Add(initRequest(f, message.NewNotify(message.NotifyCookie, 1, 2, 3), nonce))
	f.Add(initRequest(f, nonce))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) < headerSize {
			return
		}
		req, ok := peekFresh(msg)
		ni, cookie := req.ni, req.cookie
		binary.BigEndian.PutUint32(msg[24:], uint32(len(msg)))
		m, err := message.Parse(msg)
		if err != nil || !ok || m.Encrypted != nil {
			return
		}
		in, err := sort(m.Payloads)
		if err != nil || in.nonce == nil {
			return
		}
		if !bytes.Equal(in.nonce, ni) {
			t.Errorf("nonce %x, the codec says %x", ni, in.nonce)
		}
		if n := in.notify(message.NotifyCookie); n != nil && len(n.SPI) == 0 && !bytes.Equal(n.Data, cookie) {
			t.Errorf("cookie %x, the codec says %x", cookie, n.Data)
		}
	})
}

type fixedClock struct{ Clock }

func (fixedClock) Now() time.Time { return time.Unix(1_700_000_000, 0) }
