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
