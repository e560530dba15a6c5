package lab

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"wardgate/ike/message"
)

// An attacker's second request is the first one with the cookie in front: the same SPI, nonce and source.
func TestSpoofWithCookie(t *testing.T) {
	t.Parallel()
	s := Spoof{To: netip.MustParseAddr("198.18.0.2")}
	template := spoofFrame(&net.Interface{HardwareAddr: make([]byte, 6)}, make([]byte, 6), s.To)
	const head = etherLen + ipv4Len + udpLen
	const number = 41
	spi := message.SPI{7: number + 1}
	ps := message.Payloads{message.NewNotify(message.NotifyCookie, []byte("a cookie")...), message.NewPuzzle(message.PRFHMACSHA2384, 18)}
	raw, err := message.Encode(message.Header{SPIi: spi, Exchange: message.ExchangeIKESAInit, Flags: message.FlagResponse}, ps)
	if err != nil {
		t.Fatal(err)
	}
	answer := append(append([]byte(nil), template[:head]...), raw...)
	from, to := s.To.As4(), [4]byte{100, 64, 1, 2}
	copy(answer[etherLen+12:], from[:])
	copy(answer[etherLen+16:], to[:])
	out := s.withCookie(template, answer)
	if out == nil {
		t.Fatal("no request")
	}
	m, err := message.Parse(out[head:])
	if err != nil {
		t.Fatal(err)
	}
	nonce := m.Payloads.Nonce()
	if err := message.FormIKESAInitRequest.Check(m.Payloads); err != nil || m.SPIi != spi || m.IsResponse() || nonce == nil || binary.BigEndian.Uint64(nonce.Data) != number ||
		string(m.Payloads[0].(*message.Notify).Data) != "a cookie" || m.Payloads.HasNotify(message.NotifyPuzzle) { //nolint:forcetypeassert // the cookie comes first
		t.Errorf("%v: %+v", err, m)
	}
	if [4]byte(out[etherLen+12:]) != to || [4]byte(out[etherLen+16:]) != from || int(binary.BigEndian.Uint16(out[etherLen+2:])) != len(out)-etherLen || int(binary.BigEndian.Uint16(out[etherLen+ipv4Len+4:])) != len(out)-etherLen-ipv4Len {
		t.Errorf("headers %x", out[:head])
	}
	for n := range answer {
		s.withCookie(template, answer[:n]) // must not read beyond
	}
	for name, at := range map[string]int{"victim": etherLen + 12, "protocol": etherLen + 9, "port": etherLen + ipv4Len + 1, "exchange": head + 18, "payload": head + 16, "notify": head + 35} {
		bad := append([]byte(nil), answer...)
		bad[at] ^= 4
		if s.withCookie(template, bad) != nil {
			t.Errorf("another %s makes a request as well", name)
		}
	}
}
