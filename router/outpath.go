package router

import (
	"errors"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"wardgate/esp"
	"wardgate/router/pathmtu"
	"wardgate/router/wire"
	"wardgate/tun"
)

// Sizes of an outWorker's batch. What waits is sent as soon as the TUN has nothing more to give,
// so an idle machine adds no delay; under load these bound it, and keep the batch in the
// processor's cache.
const (
	flushBytes   = 48 << 10
	flushPackets = 128
	arenaSize    = flushBytes + 208<<10 // and one super-packet with all its ESP overhead, see tun.Queue.ReadBurst
)

// outWorker takes the packets of one TUN queue to the sockets, to completion: no other goroutine
// touches a packet between the read and the send.
//
// Packets are read to where they are sealed: they lie in the arena in such distances that their
// ESP packets are back to back, and those of one destination and size leave in one message with
// UDP segmentation offload.
type outWorker struct {
	*worker
	q    tun.Queue
	icmp icmpLimiter
	mark uint32 // of the sockets

	arena   []byte
	used    int
	burst   tun.Burst
	spacing tun.Spacing // of the last SA: the guess for the next read
	pkts    []esp.Packet
	groups  []sealGroup
	msgs    []wire.Message
	owners  []*sendPath // of msgs
	senders []groupSender
	frags   []byte // scratch for inner fragments
	fair    fairness
}

// sealGroup is a run of packets of one burst: pkts[first:first+count].
type sealGroup struct {
	child        *childSA
	path         *sendPath
	first, count int
	bytes        int // of inner packets
	tos          uint8
	fragment     bool // longer than the path takes, and there is no other way: see pathmtu.FragmentOuter
}

type groupSender struct {
	group  *wire.Group
	sender *wire.Sender
}

func newOutWorker(w *worker) *outWorker {
	o := &outWorker{
		worker: w, q: w.w.q, arena: make([]byte, arenaSize),
		spacing: tun.Spacing{Front: 16, Align: 4, Trailer: 2, Back: 18}, // AES-GCM and ChaCha20-Poly1305
		pkts:    make([]esp.Packet, 0, flushPackets+tun.MaxSegments),
		groups:  make([]sealGroup, 0, flushPackets+1),
		msgs:    make([]wire.Message, 0, flushPackets+1),
		owners:  make([]*sendPath, 0, flushPackets+1),
	}
	return o
}

// run reads the TUN queue until it is closed, and returns why.
func (w *outWorker) run() error {
	for {
		if err := w.round(true); err != nil {
			return err
		}
	}
}

// round takes what the TUN queue has, up to a batch, to the sockets. wait says whether to wait
// for the first packet.
func (w *outWorker) round(wait bool) error {
	ok, err := w.q.ReadBurst(&w.burst, w.arena, w.spacing, wait)
	if err != nil || !ok {
		return err
	}
	rs, now := w.rules.Load(), w.now()
	w.fair.begin(now, w.ringDrops.Load())
	for ok {
		w.take(rs, now)
		if w.used >= flushBytes || len(w.pkts) >= flushPackets {
			break
		}
		if ok, err = w.q.ReadBurst(&w.burst, w.arena[w.used:], w.spacing, false); err != nil {
			break
		}
	}
	w.flush(now)
	w.count.rounds.Add(1)
	return err
}

// take judges the burst, once for all its packets, and queues them behind the others.
func (w *outWorker) take(rs *ruleset, now int64) {
	var p packet
	b := &w.burst
	if err := p.parse(b.First); err != nil {
		w.note(verdict{drop: dropMalformed}, &p, outbound, b.Count)
		return
	}
	if p.dst.IsMulticast() || p.dst.IsLinkLocalUnicast() || p.src.IsLinkLocalUnicast() || p.src.IsUnspecified() {
		// what every kernel says on a new interface (router solicitations, MLD); for no tunnel
		w.drops.add(dropNotUnicast, b.Count)
		return
	}
	v := w.judge(b.First, &p, outbound, nil, rs, &w.cache, now/int64(time.Second))
	if v.drop != dropNone {
		w.note(v, &p, outbound, b.Count)
		if v.conn != nil {
			w.unreachable(b.First, now) // from an address behind that connection, as its route expects
		}
		return
	}
	c := v.flow.conn
	child := c.sendOn(w.queue)
	if child == nil {
		w.hold(c, &p, now)
		return
	}
	if !child.coversFlow(v.flow, &p) {
		w.note(verdict{drop: dropSelectors, conn: c}, &p, outbound, b.Count)
		w.unreachable(b.First, now)
		return
	}
	if !w.fair.admit(&c.traffic[w.shard], b.Count) {
		w.drops.add(dropOverload, b.Count)
		return
	}
	if err := b.Cut(child.spacing); err != nil {
		w.drops.add(dropMalformed, b.Count)
		return
	}
	w.spacing = child.spacing
	w.enqueue(child, &p, b.Count, b.Full, b.Last, now)
}

// hold keeps the burst's packets until the connection stands.
func (w *outWorker) hold(c *connection, p *packet, now int64) {
	b := &w.burst
	if err := b.Cut(w.spacing); err != nil {
		w.drops.add(dropMalformed, b.Count)
		return
	}
	at := w.arena[w.used:]
	var rest []heldPacket
	for i := range b.Count {
		pkt := packetAt(at, w.spacing, i, b.Count, b.Full, b.Last)
		if rest != nil {
			rest = append(rest, heldPacket{b: append([]byte(nil), pkt...)})
			continue
		}
		wake, err := c.hold(pkt, time.Now())
		if wake {
			w.wake(c)
			runtime.Gosched() // IKE first: this goroutine may now sleep in a system call with its processor
		}
		switch {
		case err == nil:
		case c.sendOn(w.queue) != nil:
			// it has just come up: this and what is left of the burst go out
			rest = append(rest, heldPacket{b: append([]byte(nil), pkt...)})
		default:
			w.note(verdict{drop: dropFor(err), conn: c}, p, outbound, 1)
			w.unreachable(pkt, now)
		}
	}
	if rest != nil {
		if child := c.sendOn(w.queue); child != nil {
			w.sendHeld(child, rest)
		} else {
			w.drops.add(dropHeldFull, len(rest))
		}
	}
}

// packetAt is packet i of count, which lie in at with spacing sp.
func packetAt(at []byte, sp tun.Spacing, i, count, full, last int) []byte {
	n := full
	if i == count-1 {
		n = last
	}
	off := sp.Front + i*sp.Stride(full)
	return at[off : off+n : off+n]
}

// enqueue queues packets, which lie in the arena behind the others as child's spacing says: count
// packets of full octets but for the last one.
func (w *outWorker) enqueue(child *childSA, p *packet, count, full, last int, now int64) {
	path := child.path.Load()
	mtu := path.innerMTU(child)
	sp := child.spacing
	first := packetAt(w.arena[w.used:], sp, 0, count, full, last)
	fragment := full > mtu
	if fragment && !w.longer(child, first, mtu, count, full, last, now) {
		return
	}
	if p.proto == protoTCP && !p.fragment && first[p.headerLen+13]&tcpSYN != 0 {
		pathmtu.ClampMSS(first, mtu)
	}
	next := esp.NextIPv4
	if p.src.Is6() {
		next = esp.NextIPv6
	}
	w.groups = append(w.groups, sealGroup{child: child, path: path, first: len(w.pkts), count: count, bytes: (count-1)*full + last, tos: esp.OuterTOS(first), fragment: fragment})
	stride, off := sp.Stride(full), w.used+sp.Front
	for range count - 1 {
		w.pkts = append(w.pkts, esp.Packet{Buf: w.arena, Off: off, Len: full, Next: next})
		off += stride
	}
	w.pkts = append(w.pkts, esp.Packet{Buf: w.arena, Off: off, Len: last, Next: next})
	w.used = off - sp.Front + sp.Stride(last)
}

// longer deals with packets of full octets that are longer than the path lets through, and tells
// whether they are to be sealed as they are. Else the sender has been told (RFC 1191, RFC 8201, RFC
// 4301 section 8.2.1), or, where it allows that, they were fragmented before they are sealed, so
// that the outer packets never are.
func (w *outWorker) longer(child *childSA, first []byte, mtu, count, full, last int, now int64) bool {
	switch pathmtu.Judge(first, full, mtu) {
	case pathmtu.Fits, pathmtu.FragmentOuter:
		return true
	case pathmtu.TellSender:
		w.drops.add(dropTooBig, count)
		w.tooBig(first, mtu, now)
		return false
	case pathmtu.FragmentInner:
	}
	// Copies first: the fragments take the place of what they are made from.
	// They belong to this call: should the path take still less by now, enqueue comes back here.
	at, sp := w.arena[w.used:], child.spacing
	copies := w.frags[:0]
	w.frags = nil
	for i := range count {
		copies = append(copies, packetAt(at, sp, i, count, full, last)...)
	}
	defer func() { w.frags = copies }()
	for src := copies; len(src) > 0; {
		n := min(full, len(src))
		f, err := pathmtu.FragmentIPv4(src[:n], mtu)
		if err != nil {
			w.drops.add(dropTooBig, 1)
		}
		for i := range f.Count() {
			size := f.Len(i)
			w.room(sp.Stride(size), now)
			f.Put(packetAt(w.arena[w.used:], sp, 0, 1, size, size), i)
			var p packet
			p.src, p.fragment = netip.IPv4Unspecified(), true // all that enqueue looks at
			w.enqueue(child, &p, 1, size, size, now)
		}
		src = src[n:]
	}
	return false
}

// room makes sure that n octets and a packet more fit into the batch.
func (w *outWorker) room(n int, now int64) {
	if len(w.arena)-w.used < n || len(w.pkts) >= flushPackets+tun.MaxSegments {
		w.flush(now)
	}
}

// flush seals and sends what waits.
func (w *outWorker) flush(now int64) {
	if len(w.groups) > 0 {
		for i := 0; i < len(w.groups); {
			j := i + 1
			for j < len(w.groups) && w.groups[j].child == w.groups[i].child {
				j++
			}
			w.seal(w.groups[i:j], now)
			i = j
		}
		w.send()
	}
	w.used = 0
	w.pkts, w.groups = w.pkts[:0], w.groups[:0]
}

// seal seals the packets of neighbouring groups, all of one CHILD SA.
func (w *outWorker) seal(groups []sealGroup, now int64) {
	g0, last := &groups[0], &groups[len(groups)-1]
	child, c := g0.child, g0.child.conn
	pkts := w.pkts[g0.first : last.first+last.count]
	if sealed := child.out.SealBatch(pkts); sealed != len(pkts) {
		w.sealAgain(child, pkts)
	}
	if child.out.SoftLimitReached() {
		w.rekeyOnce(child)
	}
	bytes := 0
	for i := range groups {
		bytes += groups[i].bytes
	}
	t := &c.traffic[w.shard]
	t.packetsOut.Add(uint64(len(pkts)))
	t.bytesOut.Add(uint64(bytes))
	w.count.packetsOut.Add(uint64(len(pkts)))
	w.count.bytesOut.Add(uint64(bytes))
	c.lastUse.Store(now)
}

// sealAgain gives packets that a CHILD SA has just refused to its successor.
func (w *outWorker) sealAgain(child *childSA, pkts []esp.Packet) {
	for i := range pkts {
		p := &pkts[i]
		if p.Err == nil {
			continue
		}
		if p.Err == esp.ErrClosed { //nolint:errorlint // sentinels of the hot path are never wrapped
			// replaced since the worker looked; nothing was written yet
			if newer := child.conn.sendOn(w.queue); newer != nil && newer != child && newer.spacing == child.spacing {
				start, end, err := newer.out.Seal(p.Buf, p.Off, p.Len, p.Next)
				if p.Err = err; err == nil {
					p.Off, p.Len = start, end-start
					continue
				}
			}
		}
		if p.Err == esp.ErrHardLimit { //nolint:errorlint // as above
			w.rekeyOnce(child)
		}
		w.drops.add(dropSeal, 1)
	}
}

// send makes messages of the sealed packets and sends them.
func (w *outWorker) send() {
	w.msgs, w.owners = w.msgs[:0], w.owners[:0]
	var (
		path    *sendPath
		tos     uint8
		end     int // of the last message, where the next packet has to begin to join it
		open    bool
		current *wire.Message
	)
	start := 0
	for i := range w.groups {
		g := &w.groups[i]
		if g.path != path || g.tos != tos {
			if path != nil && (g.path.group != path.group || g.path.stream != path.stream) {
				w.sendTo(path)
			}
			path, tos, open = g.path, g.tos, false
		}
		for _, p := range w.pkts[g.first : g.first+g.count] {
			if p.Err != nil {
				open = false
				continue
			}
			if open && !g.fragment && p.Off == end && p.Len <= current.Segment {
				open = p.Len == current.Segment
				end += p.Len
				current.Buf = w.arena[start:end]
				continue
			}
			start, end, open = p.Off, p.Off+p.Len, !g.fragment
			w.msgs = append(w.msgs, wire.Message{Buf: w.arena[start:end], Segment: p.Len, Dest: &path.dest, TOS: tos, Fragment: g.fragment})
			w.owners = append(w.owners, path)
			current = &w.msgs[len(w.msgs)-1]
		}
	}
	if path != nil {
		w.sendTo(path)
	}
}

// sendTo sends the messages so far through the sockets of the path, or its TCP connection.
func (w *outWorker) sendTo(path *sendPath) {
	if len(w.msgs) == 0 {
		return
	}
	if path.stream != nil {
		w.sendStream(path.stream)
		return
	}
	if w.sender(path.group).Send(w.msgs) > 0 {
		for i := range w.msgs {
			m := &w.msgs[i]
			if m.Err == nil {
				continue
			}
			n := (len(m.Buf) + m.Segment - 1) / m.Segment
			if errors.Is(m.Err, unix.EMSGSIZE) {
				w.drops.add(dropTooBig, n)
				w.owners[i].linkTooSmall(w.mark, time.Now())
				continue
			}
			w.drops.add(dropSend, n)
		}
	}
	w.msgs, w.owners = w.msgs[:0], w.owners[:0]
}

// sendStream sends the messages so far on a TCP connection. It never waits: what finds no room is
// dropped.
func (w *outWorker) sendStream(s *stream) {
	dropped := 0
	if conn := s.conn.Load(); conn != nil {
		dropped = conn.Send(w.msgs)
	} else {
		for i := range w.msgs {
			m := &w.msgs[i]
			dropped += (len(m.Buf) + m.Segment - 1) / m.Segment
		}
	}
	if dropped > 0 {
		w.drops.add(dropSend, dropped)
	}
	w.msgs, w.owners = w.msgs[:0], w.owners[:0]
}

// sender returns this worker's sender for group: the socket of its queue.
func (w *outWorker) sender(group *wire.Group) *wire.Sender {
	for i := range w.senders {
		if w.senders[i].group == group {
			return w.senders[i].sender
		}
	}
	socks := group.Sockets()
	s := socks[w.queue%len(socks)].NewSender()
	w.senders = append(w.senders, groupSender{group, s})
	return s
}

// sendHeld sends what a connection held back.
func (w *outWorker) sendHeld(child *childSA, held []heldPacket) {
	now := w.now()
	w.flush(now)
	for _, h := range held {
		var p packet
		if p.parse(h.b) != nil {
			continue
		}
		if !child.covers(&p, outbound) {
			w.note(verdict{drop: dropSelectors, conn: child.conn}, &p, outbound, 1)
			continue
		}
		w.room(child.spacing.Stride(len(h.b)), now)
		copy(w.arena[w.used+child.spacing.Front:], h.b)
		w.enqueue(child, &p, 1, len(h.b), len(h.b), now)
	}
	w.flush(now)
}
