package ike

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"io"
	"net/netip"
	"sync"
	"time"

	"wardgate/ike/message"
)

// cookieJar makes and checks the cookies of IKE_SA_INIT and IKE_SESSION_RESUME (RFC 7296, section 2.6; RFC
// 8019, section 7.1.1.3): the number of a secret, what the initiator was asked for and roughly when, then a
// MAC over that and the initiator's nonce, address and SPI. The secret changes every minute; the one before
// it is still good, so that an answer is never late. A request that comes twice gets the same cookie twice:
// another one would make its initiator begin again, while the answer to the request with the first one is
// under way.
type cookieJar struct {
	rand io.Reader

	mu      sync.Mutex // guards what follows
	version uint32
	secret  [2][32]byte // the newest, the one before
	since   time.Time   // of the newest
	epoch   time.Time   // of all times in cookies
	// spent are the cookies whose puzzles have been solved and used, by the version of their secrets: RFC
	// 8019, section 10, wants no benefit from using a solution twice.
	spent [2]map[cookieMAC]struct{}
}

const (
	cookieLifetime = time.Minute
	cookieInfoSize = 4 + 1 + 1 + 2 + 2 // version, difficulty, number of puzzles, PRF, time of the first one
	cookieSize     = cookieInfoSize + len(cookieMAC{})

	// cookieTick is the unit of the time in a cookie.
	cookieTick = 8 * time.Second

	// maxSpent bounds the cookies that are remembered for one secret; when there are more, the secret
	// changes. Two hundred a second are a quarter of what the half-open table lets in.
	maxSpent = 16384
)

// cookieMAC makes a cookie what it is.
type cookieMAC [16]byte

// cookieInfo is what a cookie says about what its initiator was asked for.
type cookieInfo struct {
	prf        uint16 // of the puzzle; 0: only the cookie was asked for
	difficulty uint8  // zero bits; 0: as many as it can
	puzzles    uint8  // given in a row, with this one
	first      uint16 // when the first of them was given, in ticks of the jar's own time
}

func (j *cookieJar) init(r io.Reader) error {
	j.rand = r
	_, err := io.ReadFull(r, j.secret[0][:])
	if err == nil {
		_, err = io.ReadFull(r, j.secret[1][:])
	}
	return err
}

func (j *cookieJar) rotateLocked(now time.Time) {
	switch age := now.Sub(j.since); {
	case j.since.IsZero():
		j.since, j.epoch = now, now
	case age >= cookieLifetime || age < 0 || len(j.spent[j.version&1]) >= maxSpent:
		var fresh [32]byte
		if _, err := io.ReadFull(j.rand, fresh[:]); err != nil {
			return // the old secret is still secret
		}
		j.secret[1], j.secret[0] = j.secret[0], fresh
		j.version++
		j.since = now
		j.spent[j.version&1] = nil
	}
}

// make writes the cookie for a request. The time of the first puzzle is in info when this is another one.
func (j *cookieJar) make(now time.Time, info cookieInfo, ni []byte, remote netip.AddrPort, spiI uint64) (c [cookieSize]byte) {
	j.mu.Lock()
	j.rotateLocked(now)
	version, secret := j.version, j.secret[0]
	if info.puzzles == 1 {
		info.first = j.tickLocked(now)
	}
	j.mu.Unlock()
	info.put(&c, version)
	mac := cookieSum(&secret, c[:cookieInfoSize], ni, remote, spiI)
	copy(c[cookieInfoSize:], mac[:])
	return c
}

// valid tells whether the cookie is one of ours for this request, and what the initiator was asked for.
func (j *cookieJar) valid(now time.Time, c, ni []byte, remote netip.AddrPort, spiI uint64) (cookieInfo, bool) {
	if len(c) != cookieSize {
		return cookieInfo{}, false
	}
	version := binary.BigEndian.Uint32(c)
	j.mu.Lock()
	j.rotateLocked(now)
	age := j.version - version
	if age > 1 {
		j.mu.Unlock()
		return cookieInfo{}, false
	}
	secret := j.secret[age]
	j.mu.Unlock()
	mac := cookieSum(&secret, c[:cookieInfoSize], ni, remote, spiI)
	if subtle.ConstantTimeCompare(c[cookieInfoSize:], mac[:]) != 1 {
		return cookieInfo{}, false
	}
	return cookieInfo{
		difficulty: c[4], puzzles: c[5], prf: binary.BigEndian.Uint16(c[6:]),
		first: binary.BigEndian.Uint16(c[8:]),
	}, true
}

func (i *cookieInfo) put(c *[cookieSize]byte, version uint32) {
	binary.BigEndian.PutUint32(c[:], version)
	c[4], c[5] = i.difficulty, i.puzzles
	binary.BigEndian.PutUint16(c[6:], i.prf)
	binary.BigEndian.PutUint16(c[8:], i.first)
}

// spentOn is the name under which a valid cookie is remembered.
func spentOn(c []byte) (version uint32, mac cookieMAC) {
	return binary.BigEndian.Uint32(c), cookieMAC(c[cookieInfoSize:])
}

// isSpent tells whether the puzzle of a valid cookie was solved and used before.
func (j *cookieJar) isSpent(c []byte) bool {
	version, mac := spentOn(c)
	j.mu.Lock()
	defer j.mu.Unlock()
	_, used := j.spent[version&1][mac]
	return used || j.version-version > 1
}

// spend uses the cookie up; false: it was before, or is not good any more.
func (j *cookieJar) spend(c []byte) bool {
	version, mac := spentOn(c)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.version-version > 1 {
		return false
	}
	m := j.spent[version&1]
	if _, used := m[mac]; used || len(m) > maxSpent {
		return false
	}
	if m == nil {
		m = map[cookieMAC]struct{}{}
		j.spent[version&1] = m
	}
	m[mac] = struct{}{}
	return true
}

// tickLocked is a time in a cookie. It goes round after six days; what counts are differences.
func (j *cookieJar) tickLocked(now time.Time) uint16 { return uint16(now.Sub(j.epoch) / cookieTick) }

// longAgo tells that at least one whole tick has passed since the first puzzle was given.
func (j *cookieJar) longAgo(now time.Time, info cookieInfo) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.tickLocked(now)-info.first >= 2
}

// cookieSum is HMAC-SHA-256 (RFC 2104), cut to 16 octets, without anything that has to be allocated.
func cookieSum(secret *[32]byte, info, ni []byte, remote netip.AddrPort, spiI uint64) cookieMAC {
	const maxData = cookieInfoSize + 16 + 2 + 8 + maxNonce
	var inner [sha256.BlockSize + maxData]byte
	var outer [sha256.BlockSize + sha256.Size]byte
	for i := range sha256.BlockSize {
		var k byte
		if i < len(secret) {
			k = secret[i]
		}
		inner[i], outer[i] = k^0x36, k^0x5c
	}
	addr := remote.Addr().As16()
	b := append(inner[:sha256.BlockSize], info...)
	b = append(b, addr[:]...)
	b = binary.BigEndian.AppendUint16(b, remote.Port())
	b = binary.BigEndian.AppendUint64(b, spiI)
	b = append(b, ni[:min(len(ni), maxNonce)]...)
	h := sha256.Sum256(b)
	h = sha256.Sum256(append(outer[:sha256.BlockSize], h[:]...))
	return cookieMAC(h[:])
}

// The nonce's lengths (RFC 7296, section 2.10).
const (
	minNonce = 16
	maxNonce = 256
)

// freshRequest is what matters of an IKE_SA_INIT or IKE_SESSION_RESUME request before anything is done
// for it.
type freshRequest struct {
	ni, cookie, solution []byte // nil: none
	sa                   []byte // body of the SA payload
}

// peekFresh finds it, going by the payloads' lengths alone.
func peekFresh(msg []byte) (r freshRequest, ok bool) {
	const (
		genericHeader = 4 // next payload, flags, length (RFC 7296, section 3.2)
		notifyHeader  = 4 // protocol, SPI size, type (section 3.10)
		maxPayloads   = 64
	)
	next, rest := message.PayloadType(msg[16]), msg[headerSize:]
	for range maxPayloads {
		if next == 0 {
			break
		}
		if len(rest) < genericHeader {
			return r, false
		}
		n := int(binary.BigEndian.Uint16(rest[2:]))
		if n < genericHeader || n > len(rest) {
			return r, false
		}
		body := rest[genericHeader:n]
		switch {
		case next == message.PayloadNonce && r.ni == nil:
			r.ni = body
		case next == message.PayloadSA && r.sa == nil:
			r.sa = body
		case next == message.PayloadPS && r.solution == nil:
			r.solution = body
		case next == message.PayloadNotify && r.cookie == nil && len(body) >= notifyHeader && body[1] == 0 &&
			message.NotifyType(binary.BigEndian.Uint16(body[2:])) == message.NotifyCookie:
			r.cookie = body[notifyHeader:]
		}
		next, rest = message.PayloadType(rest[0]), rest[n:]
	}
	return r, len(r.ni) >= minNonce && len(r.ni) <= maxNonce
}

// offersPRF tells whether a proposal in the body of an SA payload has the PRF, going by the lengths alone
// (RFC 7296, section 3.3).
func offersPRF(sa []byte, prf uint16) bool {
	const proposalHeader, transformHeader = 8, 8
	for len(sa) >= proposalHeader {
		n, spi := int(binary.BigEndian.Uint16(sa[2:])), int(sa[6])
		if n < proposalHeader+spi || n > len(sa) {
			return false
		}
		ts := sa[proposalHeader+spi : n]
		sa = sa[n:]
		for len(ts) >= transformHeader {
			m := int(binary.BigEndian.Uint16(ts[2:]))
			if m < transformHeader || m > len(ts) {
				return false
			}
			if message.TransformType(ts[4]) == message.TransformPRF && binary.BigEndian.Uint16(ts[6:]) == prf {
				return true
			}
			ts = ts[m:]
		}
	}
	return false
}

// puzzlePRF returns the PRF for a puzzle: the first of ours that the initiator offers (RFC 8019, section
// 7.1.1.2); 0: none, and nothing will come of its request.
func puzzlePRF(sa []byte) uint16 {
	for _, prf := range puzzlePRFs {
		if offersPRF(sa, prf) {
			return prf
		}
	}
	return 0
}
