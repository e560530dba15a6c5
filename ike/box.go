package ike

import (
	"cmp"
	"encoding/binary"
	"io"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// box is the mailbox of one IKE SA, and its host: it makes sure that one goroutine at a time
// steps the state machine, and carries out the actions.
type box struct {
	ep *Endpoint
	id SAID

	mu      sync.Mutex // guards queue, running
	queue   []event
	waiting int // datagrams in queue
	running bool

	step sync.Mutex // held while sa is stepped or looked at
	sa   *SA        // set once before the first post

	ending atomic.Bool // no new CHILD SA is to be asked of it
	up     atomic.Bool // every round was proved

	// Owned by the goroutine that runs the box.
	stopTimer func()
	armed     time.Time

	leased []leaseKey // guarded by ep.leases.mu

	// Guarded by ep.mu.
	peer     string
	halfKey  *halfKey
	spis     []uint64
	esp      []uint32
	childs   []ChildID
	streams  []uint64
	contacts []contact
	queues   map[string]wantMark // what WantQueues asked for last
	gone     bool
	lot      bool // let in by lot, see defence.go
	reached  bool // its initiator has proved its address
}

// post hands an event to the IKE SA. Datagrams beyond a bound are dropped: they are repeated.
func (b *box) post(ev event) {
	if b.take(ev) {
		b.ep.cfg.Executor.Run(b.run)
	}
}

// postHere is post for who is in a goroutine of the Executor's and has nothing else to do there.
func (b *box) postHere(ev event) {
	if b.take(ev) {
		b.run()
	}
}

// take puts an event into the queue; true: the caller has to see to it that run is called.
func (b *box) take(ev event) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := ev.(evDatagram); ok {
		if b.waiting >= maxBoxQueue {
			return false
		}
		b.waiting++
	}
	b.queue = append(b.queue, ev)
	if b.running {
		return false
	}
	b.running = true
	return true
}

func (b *box) run() {
	for {
		b.mu.Lock()
		queue := b.queue
		b.queue, b.waiting = nil, 0
		if len(queue) == 0 {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		for _, ev := range queue {
			if t, ok := ev.(evTimer); ok && t.at.Equal(b.armed) {
				b.stopTimer = nil // it has gone off
			}
			b.step.Lock()
			actions := b.sa.Step(b.ep.cfg.Clock.Now(), ev)
			deadline := b.sa.deadline()
			b.ending.Store(b.sa.ending())
			b.step.Unlock()
			for _, a := range actions {
				b.perform(a)
			}
			b.arm(deadline)
		}
	}
}

// perform carries out one action of the state machine.
func (b *box) perform(a action) {
	ep := b.ep
	switch a := a.(type) {
	case actSend:
		for _, m := range a.msgs {
			ep.cfg.Send(a.path, m)
		}
	case actKeepalive:
		ep.cfg.SendKeepalive(a.path)
	case actSign:
		ep.cfg.Executor.RunSlow(func() {
			sig, err := a.sign()
			b.post(evSigned{job: a.job, auth: sig, err: err})
		})
	case actVerify:
		ep.cfg.Executor.RunSlow(func() {
			b.post(evVerdict{job: a.job, verdicts: a.check(ep.cfg.Verify)})
		})
	case actSolve:
		ep.solve(b, a)
	case actTell:
		a(ep.cfg.Owner)
	case actStranger:
		ep.refuseStranger(a.path, a.code, a.text)
	case actEstablished:
		ep.established(b, a)
	case actAgain:
		b.ending.Store(true)
		if err := ep.initiate(a.peer, a.what); err != nil {
			ep.cfg.Owner.InitiateFailed(a.peer, a.what.child, err)
		}
	case actReauth:
		ep.reauthenticate(b, a)
	case actReplaced:
		ep.replaced(a, b.id)
	case actRedirect:
		ep.redirected(a)
	case actResumed:
		ep.mu.Lock()
		old := ep.spis[a.ours]
		ep.mu.Unlock()
		if old != nil && old != b {
			old.post(evResumed{a.spiI, a.spiR})
		}
	case actSaveChains:
		if !slices.ContainsFunc(a.proofs, func(p proof) bool { return p.leaf != nil }) {
			break
		}
		ep.cfg.Executor.RunSlow(func() {
			for _, p := range a.proofs {
				if p.leaf != nil {
					ep.cfg.Chains.SaveChain(certMark(p.leaf), append([][]byte{p.leaf}, p.intermediates...))
				}
			}
		})
	case actOpenStream:
		ep.cfg.OpenStream(a.stream, a.local, a.remote)
	case actCloseStream:
		b.closeStream(a.stream)
	case actClosed:
		b.release()
		ep.remove(b)
	}
}

// arm sets the one timer of the IKE SA. A timer that is already set for an earlier time is left
// alone: it finds nothing to do and the timer is set anew.
func (b *box) arm(deadline time.Time) {
	if b.stopTimer != nil && !deadline.IsZero() && !b.armed.After(deadline) {
		return
	}
	if b.stopTimer != nil {
		b.stopTimer()
		b.stopTimer = nil
	}
	if deadline.IsZero() {
		return
	}
	b.armed = deadline
	d := max(deadline.Sub(b.ep.cfg.Clock.Now()), 0)
	b.stopTimer = b.ep.cfg.Clock.AfterFunc(d, func() { b.post(evTimer{deadline}) })
}

func (b *box) status() (SAStatus, bool) {
	now := b.ep.cfg.Clock.Now()
	b.step.Lock()
	defer b.step.Unlock()
	if b.sa == nil || b.sa.state == StateClosed || b.sa.begun.IsZero() {
		return SAStatus{}, false // over, or its first message has not been read yet
	}
	return b.sa.status(now), true
}

// The methods below are the host of the state machine: what it needs to know of the world, and
// names that must be unique in it.

func (b *box) said() SAID      { return b.id }
func (b *box) config() *Config { return &b.ep.cfg }
func (b *box) rand() io.Reader { return b.ep.cfg.Rand }
func (b *box) addresses() []netip.Addr {
	if a := b.ep.addrs.Load(); a != nil {
		return *a
	}
	return nil
}

func (b *box) peers() *peerSet    { return b.ep.peers.Load() }
func (b *box) nextChild() ChildID { return ChildID(b.ep.nextChild.Add(1)) }

// newIKESPI returns a new SPI of ours, which from now on leads to this box.
func (b *box) newIKESPI() (uint64, error) {
	for {
		v, err := randUint64(b.ep.cfg.Rand)
		if err != nil {
			return 0, err
		}
		b.ep.mu.Lock()
		if _, used := b.ep.spis[v]; v != 0 && !used && !b.gone {
			b.ep.spis[v] = b
			b.spis = append(b.spis, v)
			b.ep.mu.Unlock()
			return v, nil
		}
		gone := b.gone
		b.ep.mu.Unlock()
		if gone {
			return 0, ErrClosed
		}
	}
}

func (b *box) freeIKESPI(spi uint64) {
	b.ep.mu.Lock()
	defer b.ep.mu.Unlock()
	if b.ep.spis[spi] == b {
		delete(b.ep.spis, spi)
		b.spis = remove(b.spis, spi)
	}
}

// newESPSPI returns a new inbound SPI (RFC 4303, section 2.1: not 0 to 255) for CHILD SA id. The
// receive queue (SPI modulo Config.Queues) is the one given; -1: any.
func (b *box) newESPSPI(id ChildID, queue int) (uint32, error) {
	for {
		v64, err := randUint64(b.ep.cfg.Rand)
		if err != nil {
			return 0, err
		}
		v := uint32(v64)
		if n := uint32(b.ep.cfg.Queues); queue >= 0 && n > 1 {
			if v -= v % n; v > math.MaxUint32-n {
				continue
			}
			v += uint32(queue) % n
		}
		if v < 256 {
			continue
		}
		b.ep.mu.Lock()
		if b.gone {
			b.ep.mu.Unlock()
			return 0, ErrClosed
		}
		if _, used := b.ep.espSPIs[v]; !used {
			b.ep.espSPIs[v] = id
			b.ep.children[id] = b
			b.esp = append(b.esp, v)
			b.childs = append(b.childs, id)
			b.ep.mu.Unlock()
			return v, nil
		}
		b.ep.mu.Unlock()
	}
}

func (b *box) freeESPSPI(spi uint32, id ChildID) {
	b.ep.mu.Lock()
	defer b.ep.mu.Unlock()
	if b.ep.espSPIs[spi] == id {
		delete(b.ep.espSPIs, spi)
		delete(b.ep.children, id)
		b.esp = remove(b.esp, spi)
		b.childs = remove(b.childs, id)
	}
}

// firstContact tells whether INITIAL_CONTACT is true in the IKE_AUTH request that is about to be
// sent for the connection (RFC 7296, section 2.4): no other IKE SA between the same identities
// stands, or has got as far as this. Other connections may have the same identities.
func (b *box) firstContact(peer *PeerConfig) bool {
	b.ep.mu.Lock()
	defer b.ep.mu.Unlock()
	if b.gone {
		return false
	}
	first := true
	for _, k := range contactsOf(peer) {
		first = first && b.ep.contacts[k].len() == 0
		b.ep.addContactLocked(k, b)
	}
	return first
}

// another tells whether another IKE SA of a connection stands.
func (b *box) another(peer string) bool {
	b.ep.mu.Lock()
	defer b.ep.mu.Unlock()
	for o := range b.ep.byPeer[peer].all() {
		if o != b && o.up.Load() && !o.ending.Load() {
			return true
		}
	}
	return false
}

// contact names the two parties of an IKE SA: all identities of ours, and the peer's last one.
// That is a little less than what makes two IKE SAs between the same identities, so that what it
// finds may be too much.
type contact string

func contactOf(local []Identity, remote Identity) contact {
	var k []byte
	add := func(id Identity) {
		k = append(k, byte(id.Type))
		k = binary.BigEndian.AppendUint32(k, uint32(len(id.Data)))
		k = append(k, id.folded()...)
	}
	for _, id := range local {
		add(id)
	}
	add(remote)
	return contact(k)
}

// contactsOf returns all contacts that an IKE SA of a connection may come to be of.
func contactsOf(p *PeerConfig) []contact {
	local := make([]Identity, len(p.LocalAuth))
	for i := range p.LocalAuth {
		local[i] = p.LocalAuth[i].ID
	}
	var out []contact
	for _, id := range p.RemoteAuth[p.rounds()-1].IDs {
		out = append(out, contactOf(local, id))
	}
	return out
}

func (ep *Endpoint) addContactLocked(k contact, b *box) {
	if s := ep.contacts[k]; !s.has(b) {
		ep.contacts[k] = s.with(b)
		b.contacts = append(b.contacts, k)
	}
}

func (ep *Endpoint) dropContactsLocked(b *box) {
	for _, k := range b.contacts {
		if s := ep.contacts[k].without(b); s.len() > 0 {
			ep.contacts[k] = s
		} else {
			delete(ep.contacts, k)
		}
	}
	b.contacts = nil
}

// host is what a state machine asks of the world around it.
type host interface {
	said() SAID
	config() *Config
	rand() io.Reader
	peers() *peerSet
	nextChild() ChildID
	newIKESPI() (uint64, error)
	freeIKESPI(uint64)
	newESPSPI(id ChildID, queue int) (uint32, error)
	freeESPSPI(uint32, ChildID)
	firstContact(*PeerConfig) bool
	another(peer string) bool
	addresses() []netip.Addr
	ticketKeys() ticketKeys
	useTicket(*session) bool
	keepSession(*session)
	dropSession(peer string, of SAID)
	newStream() uint64
	lease(LeaseQuery) (netip.Prefix, bool)
	given(peer string) *NetConfig
	keepGiven(peer string, n *NetConfig)
	noteJunk()
}

var _ host = (*box)(nil)

// established takes the IKE SA out of the half-open ones, and ends older ones between the same
// identities when the peer says that it knows of no other (RFC 7296, section 2.4). That is about
// all connections of the two: who lost its state lost all of it.
func (ep *Endpoint) established(b *box, a actEstablished) {
	k := contactOf(a.localIDs, a.remoteIDs[len(a.remoteIDs)-1])
	var others []*box
	b.up.Store(true)
	ep.mu.Lock()
	ep.unhalfLocked(b, true)
	if !b.gone {
		ep.addPeerLocked(a.peer, b)
		ep.dropContactsLocked(b)
		ep.addContactLocked(k, b)
	}
	if a.initialContact {
		for o := range ep.contacts[k].all() {
			if o != b {
				others = append(others, o)
			}
		}
	}
	ep.mu.Unlock()
	slices.SortFunc(others, func(x, y *box) int { return cmp.Compare(x.id, y.id) })
	for _, o := range others {
		o.post(evInitialContact{localIDs: a.localIDs, remoteIDs: a.remoteIDs, begun: a.begun})
	}
}

// remove forgets a closed IKE SA.
func (ep *Endpoint) remove(b *box) {
	if b.stopTimer != nil {
		b.stopTimer()
		b.stopTimer = nil
	}
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if b.gone {
		return
	}
	b.gone = true
	ep.unhalfLocked(b, false)
	ep.dropContactsLocked(b)
	for _, s := range b.spis {
		delete(ep.spis, s)
	}
	for _, s := range b.esp {
		delete(ep.espSPIs, s)
	}
	for _, c := range b.childs {
		delete(ep.children, c)
	}
	for _, s := range b.streams {
		delete(ep.streams, s)
	}
	if b.peer != "" {
		if s := ep.byPeer[b.peer].without(b); s.len() > 0 {
			ep.byPeer[b.peer] = s
		} else {
			delete(ep.byPeer, b.peer)
		}
	}
	delete(ep.boxes, b.id)
	if ep.closed && len(ep.boxes) == 0 {
		close(ep.idle)
	}
}

func remove[T comparable](s []T, v T) []T {
	for i, x := range s {
		if x == v {
			s[i] = s[len(s)-1]
			return s[:len(s)-1]
		}
	}
	return s
}
