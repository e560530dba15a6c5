package ike

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"time"

	"wardgate/ike/message"
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
	MaxHalfOpenAddr int           // for one source address, in IPv6 for one /64; 0: 64

	// From PuzzleThreshold half-open IKE SAs on, initiators are asked to solve a puzzle as well (RFC 8019).
	// Those that do not may still draw lots. 0: a quarter of MaxHalfOpen, and not below CookieThreshold;
	// negative: always; above MaxHalfOpen: never over all, but for one address from three quarters of
	// MaxHalfOpenAddr on.
	PuzzleThreshold int

	// PuzzleDifficulty is how many zero bits such a puzzle asks for at first, and PuzzleMaxDifficulty when
	// there is hardly any room left: each one more doubles the work, which is some 4 · 2^n times HMAC. 0:
	// 16, some 0.1 s of one core, and 20, some 2 s. 8 to 28.
	PuzzleDifficulty, PuzzleMaxDifficulty int

	// SolveDifficulty is the hardest puzzle that is solved as initiator; a harder one is answered without
	// a solution, for what that is worth. SolveTime bounds how long is spent on the puzzles of one attempt;
	// SolveWork how often the PRF is computed for them. 0: 22, 30 s and 2^26; SolveDifficulty at most 28,
	// negative: no puzzles are solved.
	SolveDifficulty int
	SolveTime       time.Duration
	SolveWork       uint64

	// Defence is told when the level rises, and when it has been lower for ten seconds. It must not block.
	// nil: nobody is told.
	Defence func(Defence)

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

	defaultPuzzle    = 16
	defaultMaxPuzzle = 20
	highestPuzzle    = 28 // a solver has 2^32 keys
	defaultSolve     = 22
	defaultSolveTime = 30 * time.Second
	defaultSolveWork = 1 << 26

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
	if err := d.puzzleDefaults(); err != nil {
		return d, err
	}
	if d.Executor == nil {
		d.Executor = newWorkers(d.Clock, runtime.GOMAXPROCS(0), 32)
	}
	return d, nil
}

// puzzleDefaults completes what is about puzzles.
func (c *Config) puzzleDefaults() error {
	switch {
	case c.PuzzleThreshold == 0:
		c.PuzzleThreshold = max(c.MaxHalfOpen/4, c.CookieThreshold, 1)
	case c.PuzzleThreshold < 0:
		c.PuzzleThreshold = 0
	}
	if c.PuzzleDifficulty == 0 {
		c.PuzzleDifficulty = defaultPuzzle
	}
	if c.PuzzleMaxDifficulty == 0 {
		c.PuzzleMaxDifficulty = max(defaultMaxPuzzle, c.PuzzleDifficulty)
	}
	if c.PuzzleDifficulty < message.MinPuzzle || c.PuzzleMaxDifficulty < c.PuzzleDifficulty || c.PuzzleMaxDifficulty > highestPuzzle {
		return fmt.Errorf("ike: Config.PuzzleDifficulty and PuzzleMaxDifficulty: expected %d to %d zero bits, the second not below the first, got %d and %d", message.MinPuzzle, highestPuzzle, c.PuzzleDifficulty, c.PuzzleMaxDifficulty)
	}
	if c.SolveDifficulty == 0 {
		c.SolveDifficulty = defaultSolve
	}
	if c.SolveDifficulty > highestPuzzle {
		return fmt.Errorf("ike: Config.SolveDifficulty: expected at most %d zero bits, got %d", highestPuzzle, c.SolveDifficulty)
	}
	if c.SolveTime <= 0 {
		c.SolveTime = defaultSolveTime
	}
	if c.SolveWork == 0 {
		c.SolveWork = defaultSolveWork
	}
	return nil
}
