package ike

import (
	"slices"

	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// announcements are the authentication methods that we accept, for SUPPORTED_AUTH_METHODS (RFC
// 9593). The authorities are not named beside them: CERTREQ does that.
func announcements(psk, certificate bool) *message.Notify {
	var list []message.AuthAnnouncement
	if certificate {
		for _, a := range suite.SignatureAnnouncements() {
			list = append(list, message.AuthAnnouncement{Method: message.AuthMethod(a.Method), Algorithm: a.Algorithm})
		}
	}
	if psk {
		list = append(list, message.AuthAnnouncement{Method: message.AuthPSK})
	}
	return message.NewSupportedAuthMethods(list)
}

// accepts says what kinds of proof the rounds of a connection accept.
func (p *PeerConfig) accepts() (psk, certificate bool) {
	psk = slices.ContainsFunc(p.RemoteAuth, func(a RemoteAuth) bool { return len(a.PSK) > 0 })
	certificate = slices.ContainsFunc(p.RemoteAuth, func(a RemoteAuth) bool { return len(a.PSK) == 0 })
	return psk, certificate
}

// takeAnnouncements keeps what the peer announced; a list that makes no sense is as good as none.
func (h *handshake) takeAnnouncements(in *parsed) {
	n := in.notify(message.NotifySupportedAuthMethods)
	if n == nil {
		return
	}
	list, err := n.AuthAnnouncements()
	if err != nil {
		return
	}
	h.announces = true
	for _, a := range list {
		h.peerMethods = append(h.peerMethods, suite.Announcement{Method: uint8(a.Method), Algorithm: a.Algorithm})
	}
}
