package ike_test

import (
	"net/netip"
	"slices"
	"testing"

	"wardgate/ike"
	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// TestSupportedAuthMethods: the responder says in IKE_SA_INIT what it accepts, the initiator in the
// first IKE_AUTH request (RFC 9593, section 3.1).
func TestSupportedAuthMethods(t *testing.T) {
	t.Parallel()
	psks := message.NewSupportedAuthMethods([]message.AuthAnnouncement{{Method: message.AuthPSK}}).Data
	for name, c := range map[string]struct {
		both func(*ike.PeerConfig)
		n    int
	}{"psk": {psk, 1}, "two rounds": {func(*ike.PeerConfig) {}, len(suite.SignatureAnnouncements())}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{both: c.both})
			var frags [][]byte
			seen := 0
			check := func(who string, n *message.Notify) {
				if n == nil {
					t.Errorf("%s announces nothing", who)
					return
				}
				list, err := n.AuthAnnouncements()
				if err != nil || len(list) != c.n || (c.n == 1) != slices.Equal(n.Data, psks) {
					t.Errorf("%s announces %+v, %v", who, list, err)
				}
				seen++
			}
			p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
				switch {
				case msg[18] == 34:
					m := must(message.Parse(msg))
					n := m.Payloads.Notify(message.NotifySupportedAuthMethods)
					if from.Addr() == addrB {
						check("B", n)
					} else if n != nil {
						t.Error("A announces in IKE_SA_INIT")
					}
				case msg[18] == 35 && from.Addr() == addrA && msg[23] == 1:
					frags = append(frags, slices.Clone(msg))
					if ps := p.b.Endpoint.Peek(frags...); ps != nil {
						check("A", ps.Notify(message.NotifySupportedAuthMethods))
					}
				}
				return true
			}
			p.up()
			if seen != 2 {
				t.Errorf("%d announcements, want 2", seen)
			}
		})
	}
}
