package ike_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
)

func crashSecret(b byte) func(*ike.Config) {
	return func(c *ike.Config) { c.CrashSecret = bytes.Repeat([]byte{b}, 32) }
}

// restart gives B's address to a new endpoint that knows nothing.
func (p *pair) restart(edit func(*ike.Config)) {
	p.t.Helper()
	fresh, err := p.w.NewNode("B2", addrB, edit)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := fresh.Endpoint.SetPeers([]*ike.PeerConfig{p.cb}); err != nil {
		p.t.Fatal(err)
	}
	p.b = fresh
}

// TestCrashIsDetected: a peer that lost its state shows its token, and A drops its half with the first
// question instead of after the last repetition; also after rekeys by either end (RFC 6290, sections 4.2
// to 4.5).
func TestCrashIsDetected(t *testing.T) {
	t.Parallel()
	for name, rekey := range map[string]func(p *pair) *iketest.Node{
		"first keys":   func(*pair) *iketest.Node { return nil },
		"A's new keys": func(p *pair) *iketest.Node { return p.a },
		"B's new keys": func(p *pair) *iketest.Node { return p.b },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{ea: crashSecret(1), eb: crashSecret(2)})
			p.up()
			if n := rekey(p); n != nil {
				for id := range n.IKE {
					if err := n.Endpoint.RekeyIKE(id); err != nil {
						t.Fatal(err)
					}
				}
				p.w.For(time.Second)
			}
			p.restart(crashSecret(2))
			asked := 0
			p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
				if from.Addr() == addrA && msg[18] == byte(message.ExchangeInformational) && msg[19]&0x20 == 0 {
					asked++
				}
				return true
			}
			// A finds out with its next liveness check, and needs no second one.
			if !p.w.Until(2*time.Minute, func() bool { return len(p.a.Ended) > 0 }) || p.a.Ended[0].Code != ike.ReasonPeerCrashed || asked != 1 {
				t.Fatalf("A ended %+v after %d questions", p.a.Ended, asked)
			}
			p.counts(0, 0)
			p.up()
		})
	}
}

// TestCrashOfTheInitiator: tokens go both ways.
func TestCrashOfTheInitiator(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{ea: crashSecret(1), eb: crashSecret(2)})
	p.up()
	fresh, err := p.w.NewNode("A2", addrA, crashSecret(1))
	if err != nil {
		t.Fatal(err)
	}
	p.a = fresh
	if !p.w.Until(2*time.Minute, func() bool { return len(p.b.Ended) > 0 }) || p.b.Ended[0].Code != ike.ReasonPeerCrashed {
		t.Fatalf("B ended %+v", p.b.Ended)
	}
}

// TestCrashTokenOfAnother: another secret's token ends nothing; A goes on asking as it always did.
func TestCrashTokenOfAnother(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*ike.Config){"another secret": crashSecret(3), "none": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, pairOptions{ea: crashSecret(1), eb: crashSecret(2)})
			p.up()
			p.restart(edit)
			p.w.For(4 * time.Minute)
			if len(p.a.Ended) != 1 || p.a.Ended[0].Code != ike.ReasonPeerDead {
				t.Errorf("A ended %+v", p.a.Ended)
			}
		})
	}
}

// TestCrashTokenIsNotGivenAway: whoever knows the SPIs of an IKE SA that stands cannot ask for its
// token, whatever the flags of his question; nor does a short question get a long answer.
func TestCrashTokenIsNotGivenAway(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{ea: crashSecret(1), eb: crashSecret(2)})
	p.up()
	var spiI, spiR uint64
	for _, i := range p.b.IKE {
		spiI, spiR = i.SPIi, i.SPIr
	}
	tokens, answers := 0, 0
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if m, err := message.Parse(msg); err == nil && m.Encrypted == nil && from.Addr() == addrB {
			answers++
			if m.Payloads.HasNotify(message.NotifyQuickCrashDetection) {
				tokens++
			}
		}
		return true
	}
	ask := func(i, r uint64, flags byte, size int) {
		msg := make([]byte, size)
		binary.BigEndian.PutUint64(msg, i)
		binary.BigEndian.PutUint64(msg[8:], r)
		copy(msg[16:], []byte{46, 0x20, byte(message.ExchangeInformational), flags, 0, 0, 0, 9})
		binary.BigEndian.PutUint32(msg[24:], uint32(size))
		if size >= 32 {
			binary.BigEndian.PutUint16(msg[30:], uint16(size-28))
		}
		p.w.Deliver(netip.AddrPortFrom(addrC, 500), netip.AddrPortFrom(addrB, 500), msg)
	}
	for _, flags := range []byte{0, 0x08, 0x10, 0x18} {
		ask(spiI, spiR, flags, 100)
		ask(spiR, spiI, flags, 100)
		ask(spiI+1, spiR, flags, 100)
	}
	ask(0, spiR+1, 8, 100)
	if tokens > 0 {
		t.Errorf("%d tokens given away", tokens)
	}
	ask(spiI+1, spiR+1, 8, 56)
	if answers == 0 || tokens > 0 {
		t.Errorf("%d answers with %d tokens to a short question", answers, tokens)
	}
	ask(spiI+1, spiR+1, 8, 57)
	if tokens != 1 {
		t.Errorf("%d tokens for an IKE SA that is not known, want 1", tokens)
	}
	p.w.For(time.Second)
	p.counts(1, 1)
	p.carries()
}

// TestCrashTokenForged: whoever does not know the token ends nothing, however many he shows at once.
func TestCrashTokenForged(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{ea: crashSecret(1), eb: crashSecret(2)})
	p.up()
	var spiI, spiR uint64
	for _, i := range p.a.IKE {
		spiI, spiR = i.SPIi, i.SPIr
	}
	ps := message.Payloads{message.NewNotify(message.NotifyInvalidIKESPI)}
	for i := range 30 {
		n := message.NewNotify(message.NotifyQuickCrashDetection, bytes.Repeat([]byte{byte(i)}, 16)...)
		n.Protocol = message.ProtocolIKE
		ps = append(ps, n)
	}
	ps = append(ps, message.NewNotify(message.NotifyQuickCrashDetection))
	h := message.Header{Exchange: message.ExchangeInformational, Flags: message.FlagResponse}
	binary.BigEndian.PutUint64(h.SPIi[:], spiI)
	binary.BigEndian.PutUint64(h.SPIr[:], spiR)
	raw, err := message.Encode(h, ps)
	if err != nil {
		t.Fatal(err)
	}
	p.w.Deliver(netip.AddrPortFrom(addrB, 500), netip.AddrPortFrom(addrA, 500), raw)
	p.w.For(5 * time.Second)
	p.counts(1, 1)
	p.carries()
}

func TestCrashSecretTooShort(t *testing.T) {
	t.Parallel()
	w := iketest.New(1)
	if _, err := w.NewNode("A", addrA, func(c *ike.Config) { c.CrashSecret = make([]byte, 31) }); err == nil {
		t.Error("31 octets were taken")
	}
}

// TestCrashTokenOfOldKeys: the answer to the Delete of the old keys is lost, and the peer that has
// dropped them shows their token. That is no crash: the new keys stand.
func TestCrashTokenOfOldKeys(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairOptions{ea: crashSecret(1), eb: crashSecret(2)})
	p.up()
	old, shown := ikeOf(t, p.a).SPIr, 0
	p.w.Tap = func(from, _ netip.AddrPort, msg []byte) bool {
		if from.Addr() != addrB || msg[18] != byte(message.ExchangeInformational) || binary.BigEndian.Uint64(msg[8:]) != old {
			return true
		}
		if m, err := message.Parse(msg); err == nil && m.Encrypted == nil && m.Payloads.HasNotify(message.NotifyQuickCrashDetection) {
			shown++
			return true
		}
		return false // the answer to the Delete
	}
	if err := p.a.Endpoint.RekeyIKE(ikeOf(t, p.a).ID); err != nil {
		t.Fatal(err)
	}
	p.w.For(time.Minute)
	if shown != 1 {
		t.Errorf("the token was shown %d times, want once", shown)
	}
	p.counts(1, 1)
	p.carries()
}
