package ike

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Endpoint drives the IKE SAs of one router: it finds the SA of a datagram, keeps the bounds for
// strangers, owns the timers, and carries out what the state machines ask for. All its methods
// may be called from several goroutines.
type Endpoint struct {
	cfg     Config
	cookies cookieJar

	nextSA     atomic.Uint64
	nextChild  atomic.Uint64
	nextStream atomic.Uint64
	addrs      atomic.Pointer[[]netip.Addr]
	tickets    atomic.Pointer[ticketKeys]
	used       usedTickets
	leases     leases
	fresh      atomic.Int64 // IKE_SA_INIT requests of strangers that wait for a worker
	peers      atomic.Pointer[peerSet]
	count      defenceCounters
	puzzles    puzzles

	mu           sync.Mutex // guards everything below; never held during a callback
	closed       bool
	boxes        map[SAID]*box
	spis         map[uint64]*box    // our SPI of every generation
	waits        map[halfKey]bool   // IKE_SA_INIT requests that wait for a worker, see fresh
	half         map[halfKey]*box   // responder's half-open IKE SAs, for repeated IKE_SA_INIT requests
	halfAddr     map[netip.Addr]int // of half, for each limitAddr of the source
	byLot        int                // of half, those that were let in by lot
	suspects     suspects
	junk         suspect            // IKE SAs of strangers with IKE_AUTH requests that are not authentic
	told, peak   DefenceLevel       // the level that Config.Defence was told last, the highest since the last look
	calming      bool               // calm will be called
	espSPIs      map[uint32]ChildID // inbound SPIs in use
	children     map[ChildID]*box
	streams      map[uint64]*box     // that our IKE SAs have opened
	byPeer       map[string]boxSet   // connection → IKE SAs that are known to be of it
	contacts     map[contact]boxSet  // IKE SAs by the identities of both ends
	sessions     map[string]*session // connection → what may be resumed
	refusedAt    rateLimit           // refusals of strangers that are reported
	invalidSPIAt rateLimit           // INVALID_IKE_SPI answers
	idle         chan struct{}       // closed when closed and no box is left
}

type halfKey struct {
	remote netip.AddrPort
	spi    uint64
}

// Bounds of what strangers can make an endpoint do.
const (
	maxDatagram   = 65535
	maxFreshInits = 1024 // IKE_SA_INIT requests waiting for a worker; more are dropped
	maxBoxQueue   = 64   // datagrams waiting for one IKE SA; more are dropped
	headerSize    = 28   // IKE header (RFC 7296, section 3.1)
)

// NewEndpoint returns an endpoint without connections. Config.Clock, Rand, Send and Owner are
// required.
func NewEndpoint(cfg Config) (*Endpoint, error) {
	c, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	ep := &Endpoint{
		cfg:          c,
		boxes:        map[SAID]*box{},
		spis:         map[uint64]*box{},
		waits:        map[halfKey]bool{},
		half:         map[halfKey]*box{},
		halfAddr:     map[netip.Addr]int{},
		espSPIs:      map[uint32]ChildID{},
		children:     map[ChildID]*box{},
		streams:      map[uint64]*box{},
		byPeer:       map[string]boxSet{},
		contacts:     map[contact]boxSet{},
		sessions:     map[string]*session{},
		refusedAt:    rateLimit{perSecond: 20, burst: 100},
		invalidSPIAt: rateLimit{perSecond: 50, burst: 100},
		idle:         make(chan struct{}),
	}
	ep.peers.Store(newPeerSet(nil))
	if err := ep.SetTicketSecrets(c.TicketSecrets...); err != nil {
		return nil, err
	}
	if err := ep.cookies.init(c.Rand); err != nil {
		return nil, fmt.Errorf("ike: random source: %w", err)
	}
	return ep, nil
}

// SetPeers replaces the connections. IKE SAs whose connection is gone, or whose rights
// (identities, anchors, keys, selectors, algorithms) changed, are deleted with a Delete to the
// peer; the others live on. The error names the first connection that is not usable; nothing is
// changed then.
func (ep *Endpoint) SetPeers(peers []*PeerConfig) error {
	names := make(map[string]bool, len(peers))
	own := leaves{}
	for i, p := range peers {
		if p == nil {
			return fmt.Errorf("ike: connection %d is nil", i)
		}
		if err := p.validate(own); err != nil {
			return err
		}
		if names[p.Name] {
			return fmt.Errorf("ike: two connections are named %q", p.Name)
		}
		if p.Assign != nil && ep.cfg.Addresses == nil {
			return fmt.Errorf("ike: connection %q assigns addresses, and Config.Addresses is nil; expected a pool", p.Name)
		}
		names[p.Name] = true
	}
	set := newPeerSet(peers)
	ep.peers.Store(set)
	ep.forgetSessions(names)
	ep.leases.forget(names)
	for _, b := range ep.allBoxes() {
		b.post(evPeers{set})
	}
	return nil
}

// HandleDatagram takes one IKE message as it came in, without the non-ESP marker. It copies msg
// and returns soon. What is no IKEv2 message is dropped.
func (ep *Endpoint) HandleDatagram(p Path, msg []byte) {
	if len(msg) < headerSize || len(msg) > maxDatagram {
		return
	}
	h := peekHeader(msg)
	// RFC 7296, section 3.1: the length counts the whole message.
	if h.length != uint32(len(msg)) {
		return
	}
	if h.major != 2 {
		ep.answerVersion(p, h)
		return
	}
	// RFC 7296, section 2.6: an IKE SA is found by the SPI that the receiver chose.
	ours := h.spiI
	if h.fromInitiator {
		ours = h.spiR
	}
	if ours == 0 {
		if h.fromInitiator && !h.response && (h.exchange == exchangeSAInit || h.exchange == exchangeResume) && h.id == 0 && h.spiI != 0 {
			ep.handleFresh(p, h, msg)
		}
		return
	}
	ep.mu.Lock()
	b := ep.spis[ours]
	ep.mu.Unlock()
	if b == nil {
		if !h.response && h.exchange != exchangeSAInit {
			ep.answerUnknownSPI(p, h)
		}
		return
	}
	b.post(evDatagram{path: p, head: h, msg: bytes.Clone(msg)})
}

// handleFresh takes an IKE_SA_INIT request with an empty responder SPI: a new IKE SA, or a
// repetition for a half-open one.
func (ep *Endpoint) handleFresh(p Path, h header, msg []byte) {
	key := halfKey{p.Remote, h.spiI}
	ep.mu.Lock()
	b, closed := ep.half[key], ep.closed
	waits := ep.waits[key]
	reflected := ep.spis[h.spiI] != nil // our own request, sent back to us
	pr := ep.pressureLocked(ep.cfg.Clock.Now(), p, int(ep.fresh.Load()))
	ep.mu.Unlock()
	if closed || reflected || waits {
		// Of two copies that come at once the first one counts. To ask the second one for a cookie would
		// have the initiator come back with another request than the one that is answered.
		return
	}
	if b != nil {
		b.post(evDatagram{path: p, head: h, msg: bytes.Clone(msg)})
		return
	}
	adm := admission{proved: p.Stream != 0}
	if pr.level > DefenceNone {
		var ok bool
		if adm, ok = ep.judge(p, h, msg, pr); !ok {
			return
		}
	}
	if ep.fresh.Add(1) > maxFreshInits {
		ep.fresh.Add(-1)
		ep.count.noRoom.Add(1)
		ep.refuseStranger(p, CodeFlooding, fmt.Sprintf("more than %d IKE_SA_INIT requests wait for a worker", maxFreshInits))
		return
	}
	msg = bytes.Clone(msg)
	ep.mu.Lock()
	ep.waits[key] = true
	ep.mu.Unlock()
	ep.cfg.Executor.Run(func() {
		ep.acceptFresh(p, h, msg, adm)
		ep.fresh.Add(-1)
		ep.mu.Lock()
		delete(ep.waits, key)
		ep.mu.Unlock()
	})
}

// Initiate brings up the CHILD SA child of connection peer, with an IKE SA for it when there is
// none. It returns at once; the outcome is Owner.ChildUp or Owner.InitiateFailed. It does
// nothing when that CHILD SA stands or is being made.
func (ep *Endpoint) Initiate(peer, child string) error {
	return ep.initiate(peer, evInitiate{child: child})
}

func (ep *Endpoint) initiate(peer string, what evInitiate) error {
	child := what.child
	cfg := ep.peers.Load().byName[peer]
	if cfg == nil {
		return fmt.Errorf("%w: %q", ErrUnknownPeer, peer)
	}
	if cfg.child(child) == nil {
		return fmt.Errorf("%w: connection %q has no CHILD SA %q", ErrUnknownChild, peer, child)
	}
	ep.mu.Lock()
	if ep.closed {
		ep.mu.Unlock()
		return ErrClosed
	}
	// Over the oldest IKE SA of the connection that is not on its way out: two routers that
	// choose alike do not make two.
	for _, b := range ep.byPeer[peer].sorted() {
		if b.ending.Load() {
			continue
		}
		ep.mu.Unlock()
		b.post(what)
		return nil
	}
	if len(cfg.Remote) == 0 {
		ep.mu.Unlock()
		return fmt.Errorf("%w: %q", ErrNoGateway, peer)
	}
	b := ep.newBoxLocked(peer)
	b.sa = newInitiator(b, cfg)
	b.sa.resume = ep.takeSessionLocked(peer)
	ep.mu.Unlock()
	b.post(what)
	return nil
}

// Terminate deletes the IKE SAs of connection peer and with them its CHILD SAs. reason is for
// the owner's records.
func (ep *Endpoint) Terminate(peer, reason string) {
	ep.mu.Lock()
	boxes := ep.byPeer[peer].sorted()
	ep.takeSessionLocked(peer).wipe()
	ep.mu.Unlock()
	for _, b := range boxes {
		b.post(evTerminate{Reason{Code: ReasonDeleted, Text: reason}})
	}
}

// DeleteChild deletes one CHILD SA; reason is for the owner's records.
func (ep *Endpoint) DeleteChild(id ChildID, reason string) error {
	return ep.toChild(id, evDeleteChild{id, reason})
}

// RekeyChild replaces one CHILD SA by a new one with new keys, now: the owner saw a soft limit
// of packets or bytes.
func (ep *Endpoint) RekeyChild(id ChildID) error { return ep.toChild(id, evRekeyChild{id}) }

// RekeyIKE gives one IKE SA new keys, now.
func (ep *Endpoint) RekeyIKE(id SAID) error {
	ep.mu.Lock()
	b := ep.boxes[id]
	ep.mu.Unlock()
	if b == nil {
		return unknownSA(id)
	}
	b.post(evRekeyIKE{})
	return nil
}

func (ep *Endpoint) toChild(id ChildID, ev event) error {
	ep.mu.Lock()
	b := ep.children[id]
	ep.mu.Unlock()
	if b == nil {
		return fmt.Errorf("%w: %d", ErrUnknownChild, id)
	}
	b.post(ev)
	return nil
}

// Snapshot returns the state of all IKE SAs, oldest first.
func (ep *Endpoint) Snapshot() []SAStatus {
	boxes := ep.allBoxes()
	out := make([]SAStatus, 0, len(boxes))
	for _, b := range boxes {
		if s, ok := b.status(); ok {
			out = append(out, s)
		}
	}
	return out
}

// HalfOpen returns how many IKE SAs of strangers are half-open: made by an IKE_SA_INIT request,
// not yet authenticated.
func (ep *Endpoint) HalfOpen() int {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	return len(ep.half)
}

// Close deletes all IKE SAs, telling the peers, and waits until the peers answered or ctx is
// done; then whatever is left is dropped. Keys are wiped. The endpoint takes nothing any more.
func (ep *Endpoint) Close(ctx context.Context) error {
	ep.mu.Lock()
	if !ep.closed {
		ep.closed = true
		if len(ep.boxes) == 0 {
			close(ep.idle)
		}
	}
	for peer := range ep.sessions {
		ep.takeSessionLocked(peer).wipe()
	}
	ep.mu.Unlock()
	for _, b := range ep.allBoxes() {
		b.post(evTerminate{Reason{Code: ReasonShutdown, Text: "the router shuts down"}})
	}
	select {
	case <-ep.idle:
		return nil
	case <-ctx.Done():
	}
	for _, b := range ep.allBoxes() {
		b.post(evKill{Reason{Code: ReasonShutdown, Text: "the router shuts down"}})
	}
	<-ep.idle
	return ctx.Err()
}

func (ep *Endpoint) allBoxes() []*box {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	out := make([]*box, 0, len(ep.boxes))
	for _, id := range slices.Sorted(maps.Keys(ep.boxes)) {
		out = append(out, ep.boxes[id])
	}
	return out
}

// newBoxLocked makes the mailbox of a new IKE SA. peer is "" while it is not known.
func (ep *Endpoint) newBoxLocked(peer string) *box {
	b := &box{ep: ep, id: SAID(ep.nextSA.Add(1))}
	ep.boxes[b.id] = b
	if peer != "" {
		ep.addPeerLocked(peer, b)
	}
	return b
}

func (ep *Endpoint) addPeerLocked(peer string, b *box) {
	ep.byPeer[peer] = ep.byPeer[peer].with(b)
	b.peer = peer
}

// refuseStranger reports a refusal before there is an IKE SA, at a bounded rate.
func (ep *Endpoint) refuseStranger(p Path, code Code, text string) {
	now := ep.cfg.Clock.Now()
	ep.mu.Lock()
	ok := ep.refusedAt.allow(now)
	ep.mu.Unlock()
	if ok {
		ep.cfg.Owner.Refused(Refusal{At: now, Remote: p.Remote, Round: -1, Code: code, Text: text})
	}
}

// header is what the endpoint must know of a message to find its owner.
type header struct {
	spiI, spiR    uint64
	exchange      uint8
	major         uint8
	fromInitiator bool // the original initiator of the generation sent it
	response      bool
	id            uint32
	length        uint32
}

func peekHeader(msg []byte) header {
	return header{
		spiI:          binary.BigEndian.Uint64(msg),
		spiR:          binary.BigEndian.Uint64(msg[8:]),
		major:         msg[17] >> 4,
		exchange:      msg[18],
		fromInitiator: msg[19]&flagInitiator != 0,
		response:      msg[19]&flagResponse != 0,
		id:            binary.BigEndian.Uint32(msg[20:]),
		length:        binary.BigEndian.Uint32(msg[24:]),
	}
}

// rateLimit is a token bucket. The zero time means a full bucket.
type rateLimit struct {
	perSecond, burst float64
	tokens           float64
	last             time.Time
}

func (r *rateLimit) allow(now time.Time) bool {
	if r.last.IsZero() {
		r.tokens = r.burst
	} else if d := now.Sub(r.last); d > 0 {
		r.tokens = min(r.burst, r.tokens+d.Seconds()*r.perSecond)
	}
	r.last = now
	if r.tokens < 1 {
		return false
	}
	r.tokens--
	return true
}
