package ike

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"wardgate/ike/suite"
)

// A ticket (RFC 5723) is the state of an IKE SA by value: the end that makes it seals it with a key
// that only it has, hands it to the other end, and forgets it. Whoever brings it back and has the
// IKE SA's SK_d goes on where the IKE SA ended, without another proof of any round, for which the
// ticket stands.

const (
	ticketVersion  = 2
	ticketKeyID    = 4
	ticketNonce    = 12
	ticketOverhead = 1 + ticketKeyID + ticketNonce + 16 // with AES-GCM's tag
	maxTicket      = 1024                               // octets that we open
	maxPeerTicket  = 2048                               // octets of a peer's that we keep
	minTicketKey   = 32
	maxTicketKeys  = 4
)

// ticketKeys are the keys that seal tickets: the first one seals, all of them open (RFC 5723,
// section 6.1: a ticket names its key).
type ticketKeys []ticketKey

type ticketKey struct {
	id   [ticketKeyID]byte
	aead cipher.AEAD
}

func newTicketKeys(secrets [][]byte) (ticketKeys, error) {
	if len(secrets) > maxTicketKeys {
		return nil, fmt.Errorf("ike: ticket secrets: expected at most %d, got %d", maxTicketKeys, len(secrets))
	}
	var keys ticketKeys
	for i, s := range secrets {
		if len(s) < minTicketKey {
			return nil, fmt.Errorf("ike: ticket secret %d: expected at least %d octets, got %d", i+1, minTicketKey, len(s))
		}
		derive := func(label string) []byte {
			m := hmac.New(sha256.New, s)
			m.Write([]byte(label))
			return m.Sum(nil)
		}
		block, err := aes.NewCipher(derive("ticket key"))
		if err != nil {
			return nil, fmt.Errorf("ike: ticket secret %d: %w", i+1, err)
		}
		k := ticketKey{}
		if k.aead, err = cipher.NewGCM(block); err != nil {
			return nil, fmt.Errorf("ike: ticket secret %d: %w", i+1, err)
		}
		copy(k.id[:], derive("ticket key id"))
		keys = append(keys, k)
	}
	return keys, nil
}

// session is what a ticket stands for (RFC 5723, section 5): the maker reads it out of the ticket,
// the taker keeps it beside the ticket.
type session struct {
	peer          string // PeerConfig.Name
	spiI, spiR    uint64 // of the IKE SA, for finding it where it still stands
	initiator     bool   // we initiated that generation of it
	offer         suite.Offer
	skd           suite.Secret
	ppk           string
	authenticated time.Time // when all rounds were last proved in full
	expires       time.Time
	rounds        []sessionRound

	// The connection that it was found to fit, and the suite that came of it.
	fitted *PeerConfig
	chosen suite.Chosen

	// Of the taker.
	said   SAID
	ticket []byte
	path   Path
	proofs []proof
	leaves [][]byte

	// Of the maker.
	nonce [ticketNonce]byte // names the ticket among those that were used
}

// sessionRound is what both ends proved in one round.
type sessionRound struct {
	local, remote         Identity
	localMark, remoteMark [32]byte // see certMark and pskMark

	// Of the maker: the path of the peer's certificates on which every signature held (certs.PathKey), so
	// that they need not be checked again; zero: none is known.
	path [32]byte
}

func certMark(der []byte) [32]byte { return sha256.Sum256(der) }

// pskMark ties a ticket to a pre-shared key without holding anything that could be tried against it
// by who has not opened the ticket.
func pskMark(skd suite.Secret, psk []byte) (m [32]byte) {
	copy(m[:], markPRF.Sum(skd, pskMarkLabel, psk))
	return m
}

var pskMarkLabel = []byte("ticket psk")

// markPRF is HMAC-SHA-256, which is always there.
var markPRF, _ = suite.NewPRF(suite.PRFHMACSHA256)

func (s *session) wipe() {
	if s != nil {
		s.skd.Wipe()
	}
}

// errTicket says why a ticket is not taken.
var errTicket = errors.New("ike: ticket not taken")

func badTicket(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errTicket}, args...)...)
}

// seal makes the ticket.
func (k ticketKeys) seal(s *session, rand io.Reader) ([]byte, error) {
	if len(k) == 0 {
		return nil, badTicket("no key to seal it with")
	}
	plain := s.encode()
	defer clear(plain)
	out := make([]byte, 1+ticketKeyID+ticketNonce, ticketOverhead+len(plain))
	out[0] = ticketVersion
	copy(out[1:], k[0].id[:])
	nonce := out[1+ticketKeyID:]
	if _, err := io.ReadFull(rand, nonce); err != nil {
		return nil, fmt.Errorf("ike: random source: %w", err)
	}
	out = k[0].aead.Seal(out, nonce, plain, out[:1+ticketKeyID])
	if len(out) > maxTicket {
		return nil, badTicket("it would have %d octets, at most %d are sent in one datagram", len(out), maxTicket)
	}
	return out, nil
}

// open reads a ticket of ours. Everything about it but its length may be forged until the tag held.
func (k ticketKeys) open(ticket []byte) (*session, error) {
	if len(ticket) < ticketOverhead || len(ticket) > maxTicket || ticket[0] != ticketVersion {
		return nil, badTicket("%d octets of another format", len(ticket))
	}
	head := ticket[:1+ticketKeyID]
	i := slices.IndexFunc(k, func(k ticketKey) bool { return bytes.Equal(k.id[:], head[1:]) })
	if i < 0 {
		return nil, badTicket("sealed with a key that is not ours, or not any more")
	}
	nonce := ticket[len(head) : len(head)+ticketNonce]
	plain, err := k[i].aead.Open(nil, nonce, ticket[len(head)+ticketNonce:], head)
	if err != nil {
		return nil, badTicket("it was altered")
	}
	defer clear(plain)
	s, err := decodeSession(plain)
	if err != nil {
		return nil, err
	}
	copy(s.nonce[:], nonce)
	return s, nil
}

// encode writes the session into one piece of memory, which holds a key.
func (s *session) encode() []byte {
	b := make([]byte, 0, 128+len(s.rounds)*192) // enough for most
	str := func(v string) {
		b = binary.BigEndian.AppendUint16(b, uint16(len(v)))
		b = append(b, v...)
	}
	str(s.peer)
	b = binary.BigEndian.AppendUint64(b, s.spiI)
	b = binary.BigEndian.AppendUint64(b, s.spiR)
	role := byte(0)
	if s.initiator {
		role = 1
	}
	b = append(b, role, s.offer.Number, byte(len(s.offer.Transforms)))
	for _, t := range s.offer.Transforms {
		b = append(b, t.Type)
		b = binary.BigEndian.AppendUint16(b, t.ID)
		b = binary.BigEndian.AppendUint16(b, uint16(t.KeyBits))
	}
	b = binary.BigEndian.AppendUint16(b, uint16(s.skd.Len()))
	b = append(b, s.skd.Bytes()...)
	str(s.ppk)
	b = binary.BigEndian.AppendUint64(b, uint64(s.authenticated.Unix()))
	b = binary.BigEndian.AppendUint64(b, uint64(s.expires.Unix()))
	b = append(b, byte(len(s.rounds)))
	for _, r := range s.rounds {
		for _, id := range []Identity{r.local, r.remote} {
			b = append(b, byte(id.Type))
			str(id.Data)
		}
		b = append(b, r.localMark[:]...)
		b = append(b, r.remoteMark[:]...)
		b = append(b, r.path[:]...)
	}
	return b
}

func decodeSession(b []byte) (*session, error) {
	s, ok := &session{offer: suite.Offer{Protocol: suite.ProtocolIKE}}, true
	take := func(n int) []byte {
		if n > len(b) {
			ok, b = false, nil
			return make([]byte, n)
		}
		v := b[:n]
		b = b[n:]
		return v
	}
	u8 := func() byte { return take(1)[0] }
	u16 := func() uint16 { return binary.BigEndian.Uint16(take(2)) }
	u64 := func() uint64 { return binary.BigEndian.Uint64(take(8)) }
	str := func() string { return string(take(int(u16()))) }
	s.peer = str()
	s.spiI, s.spiR = u64(), u64()
	s.initiator = u8() == 1
	s.offer.Number = u8()
	for range u8() {
		s.offer.Transforms = append(s.offer.Transforms, suite.TransformSpec{Type: u8(), ID: u16(), KeyBits: int(u16())})
	}
	s.skd = suite.CopySecret(take(int(u16())))
	s.ppk = str()
	s.authenticated, s.expires = time.Unix(int64(u64()), 0), time.Unix(int64(u64()), 0)
	for range u8() {
		var r sessionRound
		for _, id := range []*Identity{&r.local, &r.remote} {
			id.Type = IDType(u8())
			id.Data = str()
		}
		copy(r.localMark[:], take(32))
		copy(r.remoteMark[:], take(32))
		copy(r.path[:], take(32))
		s.rounds = append(s.rounds, r)
	}
	if !ok || len(b) > 0 || s.skd.Len() == 0 || len(s.rounds) == 0 {
		s.wipe()
		return nil, badTicket("it does not hold a session")
	}
	return s, nil
}

// fits judges a session by the connection as it is today, all but the peer's certificates, which
// are judged by who has them. chosen is the session's suite, which the connection still allows.
func (s *session) fits(cfg *PeerConfig, now time.Time) (chosen suite.Chosen, err error) {
	switch {
	case cfg == nil:
		return chosen, badTicket("connection %q is gone", clean(s.peer))
	case !now.Before(s.expires):
		return chosen, badTicket("it expired at %s", s.expires.UTC().Format(time.RFC3339))
	case now.Before(s.authenticated.Add(-clockSlack)):
		return chosen, badTicket("it is of the future: it was made after %s", s.authenticated.UTC().Format(time.RFC3339))
	case cfg == s.fitted: // which nobody may change
		return s.chosen, nil
	case len(s.rounds) != cfg.rounds():
		return chosen, badTicket("it stands for %d rounds, connection %q needs %d", len(s.rounds), cfg.Name, cfg.rounds())
	}
	for i, r := range s.rounds {
		la, ra := &cfg.LocalAuth[i], &cfg.RemoteAuth[i]
		if !la.ID.Equal(r.local) || !containsID(ra.IDs, r.remote) {
			return chosen, badTicket("the identities of round %d are not those of connection %q any more", i+1, cfg.Name)
		}
		var ours [32]byte
		if len(la.PSK) == 0 {
			ours = certMark(la.Chain[0])
		} else {
			ours = pskMark(s.skd, la.PSK)
		}
		if ours != r.localMark {
			return chosen, badTicket("our credential of round %d is another one now", i+1)
		}
		if len(ra.PSK) > 0 && pskMark(s.skd, ra.PSK) != r.remoteMark {
			return chosen, badTicket("the pre-shared key of round %d is another one now", i+1)
		}
	}
	ra := &cfg.RemoteAuth[0]
	known := slices.ContainsFunc(ra.PPKs, func(k PPK) bool { return k.ID == s.ppk })
	if s.ppk == "" && ra.RequirePPK || s.ppk != "" && !known {
		return chosen, badTicket("its PPK %q is not one of connection %q", clean(s.ppk), cfg.Name)
	}
	chosen, err = suite.Select(cfg.Proposals, []suite.Offer{s.offer}, suite.SelectOptions{})
	if err != nil || !slices.Equal(chosen.Transforms, s.offer.Transforms) {
		return chosen, badTicket("connection %q does not allow its algorithms %v any more", cfg.Name, s.offer)
	}
	s.fitted, s.chosen = cfg, chosen
	return chosen, nil
}

// clockSlack is how far a clock may have been set back since a ticket was made.
const clockSlack = 5 * time.Minute

// usedTickets remembers the tickets of ours that came back, until they expire, so that each counts
// once (RFC 5723, section 4.3.1). It is bounded: what is forgotten for want of room can be shown
// again, but nobody gains anything by that who has not the IKE SA's SK_d.
type usedTickets struct {
	mu   sync.Mutex
	seen map[[ticketNonce]byte]time.Time
}

const maxUsedTickets = 1 << 16

func (u *usedTickets) used(n [ticketNonce]byte) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, ok := u.seen[n]
	return ok
}

// use marks a ticket as used; false: it was before.
func (u *usedTickets) use(n [ticketNonce]byte, expires, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, ok := u.seen[n]; ok {
		return false
	}
	if len(u.seen) >= maxUsedTickets {
		for k, t := range u.seen {
			if !now.Before(t) {
				delete(u.seen, k)
			}
		}
		for k := range u.seen { // any: the map's order is as good as chance
			if len(u.seen) < maxUsedTickets {
				break
			}
			delete(u.seen, k)
		}
	}
	if u.seen == nil {
		u.seen = map[[ticketNonce]byte]time.Time{}
	}
	u.seen[n] = expires
	return true
}

// ChainStore keeps the certificates that peers have proved, by the SHA-256 of the leaf, so that the
// maker of a ticket can judge them anew when it comes back: the ticket holds the hash alone, because
// IKE_SESSION_RESUME cannot be fragmented. Nothing in it is secret, and nothing is believed that has
// not the hash. Both methods may wait for a disk, and are called from several goroutines.
type ChainStore interface {
	SaveChain(leaf [32]byte, chain [][]byte)
	LoadChain(leaf [32]byte) [][]byte // leaf first; nil: not known
}

// memoryChains is the ChainStore of an endpoint that has no other.
type memoryChains struct {
	mu     sync.Mutex
	chains map[[32]byte][][]byte
}

const maxMemoryChains = 8192

func (m *memoryChains) SaveChain(leaf [32]byte, chain [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.chains {
		if len(m.chains) < maxMemoryChains {
			break
		}
		delete(m.chains, k)
	}
	m.chains[leaf] = chain
}

func (m *memoryChains) LoadChain(leaf [32]byte) [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.chains[leaf]
}
