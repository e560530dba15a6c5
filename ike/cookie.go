package ike

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"io"
	"net/netip"
	"sync"
	"time"

	"wardgate/ike/message"
)

// cookieJar makes and checks the cookies of IKE_SA_INIT (RFC 7296, section 2.6): a number of the
// secret, then a MAC over the initiator's nonce, address and SPI. The secret changes every
// minute; the one before it is still good, so that an answer is never late.
type cookieJar struct {
	mu      sync.Mutex
	rand    io.Reader
	version uint32
	secret  [2][32]byte // the newest, the one before
	since   time.Time
}

const (
	cookieLifetime = time.Minute
	cookieSize     = 4 + 16
)

func (j *cookieJar) init(r io.Reader) error {
	j.rand = r
	_, err := io.ReadFull(r, j.secret[0][:])
	if err == nil {
		_, err = io.ReadFull(r, j.secret[1][:])
	}
	return err
}

func (j *cookieJar) rotate(now time.Time) {
	switch age := now.Sub(j.since); {
	case j.since.IsZero():
		j.since = now
	case age >= cookieLifetime || age < 0:
		var fresh [32]byte
		if _, err := io.ReadFull(j.rand, fresh[:]); err != nil {
			return // the old secret is still secret
		}
		j.secret[1], j.secret[0] = j.secret[0], fresh
		j.version++
		j.since = now
	}
}

func (j *cookieJar) make(now time.Time, ni []byte, remote netip.AddrPort, spiI uint64) []byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rotate(now)
	return cookie(&j.secret[0], j.version, ni, remote, spiI)
}

func (j *cookieJar) valid(now time.Time, c, ni []byte, remote netip.AddrPort, spiI uint64) bool {
	if len(c) != cookieSize {
		return false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rotate(now)
	i := j.version - binary.BigEndian.Uint32(c)
	if i > 1 {
		return false
	}
	return subtle.ConstantTimeCompare(c, cookie(&j.secret[i], j.version-i, ni, remote, spiI)) == 1
}

func cookie(secret *[32]byte, version uint32, ni []byte, remote netip.AddrPort, spiI uint64) []byte {
	mac := hmac.New(sha256.New, secret[:])
	addr := remote.Addr().As16()
	mac.Write(addr[:])
	mac.Write(binary.BigEndian.AppendUint16(nil, remote.Port()))
	mac.Write(binary.BigEndian.AppendUint64(nil, spiI))
	mac.Write(ni)
	out := binary.BigEndian.AppendUint32(make([]byte, 0, cookieSize), version)
	return append(out, mac.Sum(nil)[:cookieSize-4]...)
}

// waryLocked tells whether initiators must return a cookie now: many IKE SAs are half-open, or many
// of one address. The address of who has a TCP connection is proved: no cookie (RFC 9329, section 6.3).
func (ep *Endpoint) waryLocked(p Path) bool {
	return p.Stream == 0 &&
		(len(ep.half) >= ep.cfg.CookieThreshold || ep.halfAddr[p.Remote.Addr()] >= max(ep.cfg.MaxHalfOpenAddr/2, 1))
}

func (ep *Endpoint) wary(p Path) bool {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	return ep.waryLocked(p)
}

// answerCookie asks a stranger for a cookie, at once and without looking at more of the request than
// goes into the cookie: what a flood costs is this. It does nothing, and returns false, when the request
// has a good cookie, or when it is none that could have one.
func (ep *Endpoint) answerCookie(p Path, h header, msg []byte) bool {
	ni, c, ok := peekCookie(msg)
	if !ok {
		return false
	}
	now := ep.cfg.Clock.Now()
	if c != nil && ep.cookies.valid(now, c, ni, p.cookieAddr(), h.spiI) {
		return false
	}
	ep.answerInit(p, h, message.NewNotify(message.NotifyCookie, ep.cookies.make(now, ni, p.cookieAddr(), h.spiI)...))
	return true
}

// peekCookie finds the nonce of an IKE_SA_INIT request, and its COOKIE notify (nil: none), going by the
// payloads' lengths alone.
func peekCookie(msg []byte) (ni, cookie []byte, ok bool) {
	const (
		genericHeader = 4 // next payload, flags, length (RFC 7296, section 3.2)
		notifyHeader  = 4 // protocol, SPI size, type (section 3.10)
		minNonce      = 16
		maxNonce      = 256
		maxPayloads   = 64
	)
	next, rest := message.PayloadType(msg[16]), msg[headerSize:]
	for range maxPayloads {
		if next == 0 {
			break
		}
		if len(rest) < genericHeader {
			return nil, nil, false
		}
		n := int(binary.BigEndian.Uint16(rest[2:]))
		if n < genericHeader || n > len(rest) {
			return nil, nil, false
		}
		body := rest[genericHeader:n]
		switch {
		case next == message.PayloadNonce && ni == nil:
			ni = body
		case next == message.PayloadNotify && cookie == nil && len(body) >= notifyHeader && body[1] == 0 &&
			message.NotifyType(binary.BigEndian.Uint16(body[2:])) == message.NotifyCookie:
			cookie = body[notifyHeader:]
		}
		next, rest = message.PayloadType(rest[0]), rest[n:]
	}
	return ni, cookie, len(ni) >= minNonce && len(ni) <= maxNonce
}
