package ike

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"time"
)

// Config is what an Endpoint needs. Clock, Rand, Send and Owner are required.
type Config struct {
	Clock Clock
	Rand  io.Reader // cryptographically secure; safe for concurrent use

	// Send sends one datagram. p.Encap says on which socket; where it is true the caller puts
	// the non-ESP marker in front. It must not keep msg.
	Send func(p Path, msg []byte)

	// SendKeepalive sends one NAT keepalive: the octet 0xFF (RFC 3948, section 2.3).
	SendKeepalive func(p Path)

	// OpenStream opens a TCP connection for one IKE SA (RFC 9329), from any address when local is the
	// zero Addr, and tells Endpoint.StreamUp and StreamDown what comes of it. A connection that stood
	// and breaks is opened anew, as often as it takes, until CloseStream, which sends what waits before
	// it closes. Both return at once. Send sends on it; p.Stream names it. The caller puts length and
	// non-ESP marker in front. What cannot be sent because a connection is broken may be dropped.
	// nil: no TCP as initiator.
	OpenStream  func(stream uint64, local netip.Addr, remote netip.AddrPort)
	CloseStream func(stream uint64)

	Owner Owner

	// LastInbound is when the last authentic ESP packet came in on a CHILD SA, the zero Time
	// for none. It saves liveness checks while traffic flows; nil: not known.
	LastInbound func(ChildID) time.Time

	// Verify gives the verdict about a peer's certificate; nil: DefaultVerify. A verdict's
	// class is found with VerdictCode.
	Verify func(CertQuery) error

	// FragmentSize is the largest IKE message in octets, without UDP and IP headers, that is
	// sent in one piece once the peer supports fragmentation (RFC 7383). 0: 1220, which with
	// the non-ESP marker, UDP and IPv6 headers fits the 1280 of IPv6. At least 512.
	FragmentSize int

	HalfOpenTimeout time.Duration // for IKE_SA_INIT and all rounds of IKE_AUTH as responder; 0: 30 s, never more
	CookieThreshold int           // from so many half-open IKE SAs on, initiators must return a cookie; 0: 64, negative: always
	MaxHalfOpen     int           // more half-open IKE SAs are never kept; 0: 4096
	MaxHalfOpenAddr int           // for one source address; 0: 64

	// SourceAddr says which local address packets to remote leave from, the zero Addr when it
	// is not known. It is asked for connections without PeerConfig.Local. nil: not known, which
	// NAT detection takes for a NAT.
	SourceAddr func(remote netip.Addr) netip.Addr

	// Queues is the number n of the machine's receive queues among which ESP is spread by SPI % n.
	// With n > 1 the CHILD SAs of a connection that has several (ChildConfig.Queues) get inbound
	// SPIs with SPI % n = Queue % n. A CHILD SA that is alone has any SPI, so that many small
	// connections use all queues; it is rekeyed once when others join it. 0 and 1: any SPI.
	Queues int

	// CrashSecret are at least 32 random octets, kept for ever, by which peers find out at once that
	// this endpoint has lost its IKE SAs (RFC 6290, section 5.1). Nobody else may have them. nil: peers
	// find out by their liveness checks. Tokens of peers are understood in any case.
	CrashSecret []byte

	// TicketSecrets seal the tickets by which peers resume IKE SAs that this endpoint has lost
	// (RFC 5723): each at least 32 random octets that nobody else may have, the newest first, at
	// most four. Whoever has one can forge tickets, and with them be any peer, as long as it is in
	// use: replace it daily with Endpoint.SetTicketSecrets. Empty: no tickets are given. Tickets
	// of peers are used in any case.
	TicketSecrets [][]byte

	// TicketLifetime bounds how long a ticket of ours is good, and how long after the last full
	// proof of all rounds an IKE SA may be resumed at all. 0: 24 h, at most 7 days.
	TicketLifetime time.Duration

	// Chains keeps peers' certificates for tickets that come back after a restart; nil: they are
	// kept in memory, and a restarted endpoint takes no tickets for rounds with certificates.
	Chains ChainStore

	// Redirect says to which gateway an initiator that announces RFC 5685 is to go instead; the zero
	// Addr: it is served here. It is asked for IKE_SA_INIT (nothing is kept then), and again when all
	// rounds are proved. It must not block. nil: all are served here.
	Redirect func(RedirectQuery) netip.Addr

	// RedirectWait is how long a redirected peer has to delete its IKE SA before we do. 0: 30 s.
	RedirectWait time.Duration

	// Addresses is where the addresses come from that connections with PeerConfig.Assign give to their
	// peers; nil: there are no such connections. NewPool makes one.
	Addresses AddressPool

	// VendorIDs are sent in IKE_SA_INIT.
	VendorIDs [][]byte

	Executor Executor // nil: goroutines

	// keyLog is for tests alone: only a file of this package can set it.
	keyLog func(name string, secret []byte)
}

const (
	defaultFragmentSize    = 1220
	minFragmentSize        = 512
	defaultHalfOpenTimeout = 30 * time.Second
	defaultCookieThreshold = 64
	defaultMaxHalfOpen     = 4096
	defaultMaxHalfOpenAddr = 64

	defaultTicketLifetime = 24 * time.Hour
	maxTicketLifetime     = 7 * 24 * time.Hour

	defaultRekeyIKE   = 8 * time.Hour
	defaultRekeyChild = time.Hour
	defaultLiveness   = 30 * time.Second
	defaultKeepalive  = 20 * time.Second

	defaultRetransmitInitial = time.Second
	defaultRetransmitFactor  = 1.8
	defaultRetransmitTries   = 5
)

func (c *Config) withDefaults() (Config, error) {
	d := *c
	switch {
	case d.Clock == nil:
		return d, errors.New("ike: Config.Clock is required")
	case d.Rand == nil:
		return d, errors.New("ike: Config.Rand is required")
	case d.Send == nil:
		return d, errors.New("ike: Config.Send is required")
	case d.Owner == nil:
		return d, errors.New("ike: Config.Owner is required")
	}
	if d.SendKeepalive == nil {
		d.SendKeepalive = func(Path) {}
	}
	if d.Verify == nil {
		d.Verify = DefaultVerify
	}
	if d.FragmentSize == 0 {
		d.FragmentSize = defaultFragmentSize
	}
	if d.FragmentSize < minFragmentSize {
		return d, errors.New("ike: Config.FragmentSize must be at least 512")
	}
	if (d.OpenStream == nil) != (d.CloseStream == nil) {
		return d, errors.New("ike: Config.OpenStream and CloseStream: expected both or none")
	}
	if n := len(d.CrashSecret); n > 0 && n < 32 {
		return d, fmt.Errorf("ike: Config.CrashSecret: expected at least 32 octets, got %d", n)
	}
	switch {
	case d.TicketLifetime <= 0:
		d.TicketLifetime = defaultTicketLifetime
	case d.TicketLifetime > maxTicketLifetime:
		d.TicketLifetime = maxTicketLifetime
	}
	if d.RedirectWait <= 0 {
		d.RedirectWait = defaultRedirectEnd
	}
	if d.Chains == nil {
		d.Chains = &memoryChains{chains: map[[32]byte][][]byte{}}
	}
	if d.Queues < 0 || d.Queues > maxQueues {
		return d, fmt.Errorf("ike: Config.Queues: expected 0 to %d, got %d", maxQueues, d.Queues)
	}
	// RFC 4739 lengthens the time in which a stranger costs state; 30 s bound it in any case.
	if d.HalfOpenTimeout <= 0 || d.HalfOpenTimeout > defaultHalfOpenTimeout {
		d.HalfOpenTimeout = defaultHalfOpenTimeout
	}
	switch {
	case d.CookieThreshold == 0:
		d.CookieThreshold = defaultCookieThreshold
	case d.CookieThreshold < 0:
		d.CookieThreshold = 0
	}
	if d.MaxHalfOpen <= 0 {
		d.MaxHalfOpen = defaultMaxHalfOpen
	}
	if d.MaxHalfOpenAddr <= 0 {
		d.MaxHalfOpenAddr = defaultMaxHalfOpenAddr
	}
	if d.Executor == nil {
		d.Executor = newWorkers(d.Clock, runtime.GOMAXPROCS(0), 32)
	}
	return d, nil
}
