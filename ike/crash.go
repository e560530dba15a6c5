package ike

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"slices"

	"wardgate/ike/message"
)

// Quick crash detection (RFC 6290): each end gives the other one, under the IKE SA's protection, a
// token that only it can make. Who has lost its state answers a request with the token, outside of any
// IKE SA, and the other end drops its half at once instead of after the last repetition.

const (
	crashTokenSize = 16 // octets; RFC 6290, section 5: 16 to 128
	maxCrashToken  = 128
	maxCrashTokens = 8 // looked at in one message; section 4.5: at least four

	// minCrashedRequest is the length of the shortest protected request, an empty one with an 8-octet IV and
	// a 16-octet tag. The answer has three octets more, so that nobody can use it to make more of few.
	minCrashedRequest = headerSize + 4 + 8 + 1 + 16
)

// crashToken returns the token for a pair of IKE SPIs, or nil where there is no secret (section 5.1).
// initiator tells whether the maker is the original initiator. Without that, somebody who knows the
// SPIs of an IKE SA that stands could ask for its token: a request whose I flag is wrong is looked up by
// the peer's SPI, and not found.
func (c *Config) crashToken(spiI, spiR uint64, initiator bool) []byte {
	if len(c.CrashSecret) == 0 {
		return nil
	}
	mac := hmac.New(sha256.New, c.CrashSecret)
	role := byte(0)
	if initiator {
		role = 1
	}
	b := append(make([]byte, 0, 17), role)
	b = binary.BigEndian.AppendUint64(b, spiI)
	mac.Write(binary.BigEndian.AppendUint64(b, spiR))
	return mac.Sum(nil)[:crashTokenSize]
}

// addCrashToken adds our token for g.
func (sa *SA) addCrashToken(out *outgoing, g *generation) {
	if t := sa.cfg.crashToken(g.spiI, g.spiR, g.initiator); t != nil {
		out.add(crashNotify(t))
	}
}

// crashNotify is QCD_TOKEN. RFC 6290, section 4.1: Protocol ID 1 and no SPI.
func crashNotify(token []byte) *message.Notify {
	n := message.NewNotify(message.NotifyQuickCrashDetection, token...)
	n.Protocol = message.ProtocolIKE
	return n
}

// takeCrashToken keeps the peer's token of g, which came in a protected message (section 4.4: at any
// time, and the newest counts).
func (g *generation) takeCrashToken(in *parsed) {
	if n := in.notify(message.NotifyQuickCrashDetection); n != nil && len(n.Data) >= crashTokenSize && len(n.Data) <= maxCrashToken {
		g.crashToken = slices.Clone(n.Data)
	}
}

// crashed reports whether a message outside of all protection holds the token of g.
func (g *generation) crashed(ps message.Payloads) bool {
	if len(g.crashToken) == 0 {
		return false
	}
	seen, ok := 0, 0
	for _, p := range ps {
		n, is := p.(*message.Notify)
		if !is || n.Type != message.NotifyQuickCrashDetection {
			continue
		}
		if seen++; seen > maxCrashTokens {
			break
		}
		ok |= subtle.ConstantTimeCompare(n.Data, g.crashToken)
	}
	return ok == 1
}

// crashTask tells the peer our token of a generation that we made (section 4.3).
type crashTask struct{}

func (crashTask) build(sa *SA, g *generation) (uint8, *outgoing, bool) {
	out := newOutgoing()
	sa.addCrashToken(out, g)
	return exchangeInformational, out, sa.state == StateEstablished && len(out.ps) > 0
}

func (crashTask) done(*SA, *generation, *parsed) {}
