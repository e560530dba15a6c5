package router

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"wardgate/esp"
	"wardgate/policy"
	"wardgate/tun"
)

// Space in front of and behind an inner packet, in octets: in front the ESP header with the
// longest IV (16) and the virtio header that the TUN wants, behind padding, trailer and the
// longest ICV (32).
const (
	headroom = 64
	tailroom = 96
)

// ruleset is the policy in force as the data path sees it. It is read-only and swapped as a
// whole; gen grows with every swap, so that flows allowed under an older one are judged anew.
type ruleset struct {
	gen   uint64
	table *policy.Table // nil: nothing is allowed
	conns []*connection // by Decision.Conn
	index map[*connection]int
}

// datapath is what all workers share.
type datapath struct {
	start   time.Time
	rules   atomic.Pointer[ruleset]
	flows   *flowTable
	sad     *sad
	drops   dropCounters
	refuse  func(refusedPacket) // records a refusal; must not block
	wake    func(*connection)   // starts IKE for a connection; must not block
	switch_ func(*childSA)      // the first packet came in on a pending CHILD SA
	rekey   func(*childSA)      // the soft limit of a CHILD SA is reached
	ike     func(sock *udpSocket, d datagram, msg []byte)

	queues []*tunWriter
}

// tunWriter is the writing half of a TUN queue. Readers of several sockets may share a queue.
type tunWriter struct {
	mu sync.Mutex
	q  tun.Queue
}

func (w *tunWriter) write(pkts []tun.Packet) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.q.WriteBatch(pkts)
	return err
}

// now is the time since the start on the monotonic clock, in nanoseconds.
func (d *datapath) now() int64 { return int64(time.Since(d.start)) }

// refusedPacket is a packet that was not let through, for the record.
type refusedPacket struct {
	reason string
	dir    direction
	conn   string
	src    netip.Addr
	dst    netip.Addr
	proto  uint8
	sport  uint16
	dport  uint16
	where  string // "tunnel": the daemon; "kernel": nftables
}

// verdict is the outcome of judging a packet.
type verdict struct {
	flow *flow
	drop dropReason // dropNone: let through
	// policyReason is the policy's own word for dropPolicy.
	policyReason policy.Reason
	conn         *connection // where it is known even though the packet is dropped
}

// judge decides about a packet that goes in direction dir. via is the connection on whose SA an
// inbound packet came, nil for outbound. cache is the worker's own.
func (d *datapath) judge(b []byte, p *packet, dir direction, via *connection, rs *ruleset, cache *flowCache, sec int64) verdict {
	if p.fragment && !p.first {
		f := d.flows.fragmentFlow(p, dir, sec)
		if f == nil || f.gen != rs.gen || dir == inbound && f.conn != via {
			return verdict{drop: dropFragment, conn: via}
		}
		f.touch(sec)
		return verdict{flow: f}
	}
	if p.icmpError {
		return d.judgeError(b, p, dir, via, rs, sec)
	}
	k := keyOf(p, dir)
	if f := cache.get(&k, rs.gen); f != nil && (dir == outbound || f.conn == via) {
		f.touch(sec)
		d.noteState(b, p, f, dir, sec)
		return verdict{flow: f}
	}
	h := d.flows.hash(&k)
	if f := d.flows.lookup(&k, h); f != nil && f.gen == rs.gen && (dir == outbound || f.conn == via) {
		f.touch(sec)
		cache.put(f)
		d.noteState(b, p, f, dir, sec)
		return verdict{flow: f}
	}
	if rs.table == nil {
		return verdict{drop: dropNoPolicy, conn: via}
	}
	var dec policy.Decision
	idx := -1
	if dir == inbound {
		var ok bool
		if idx, ok = rs.index[via]; !ok {
			// the connection is gone from the policy; its SA goes in a moment
			return verdict{drop: dropNoPolicy, conn: via}
		}
	}
	if dir == outbound {
		dec = rs.table.Outbound(policyFlow(p))
	} else {
		dec = rs.table.Inbound(idx, policyFlow(p))
	}
	if !dec.Allow && !dec.Reply {
		v := verdict{drop: dropPolicy, policyReason: dec.Reason, conn: via}
		if v.conn == nil && dec.Conn >= 0 && dec.Conn < len(rs.conns) {
			v.conn = rs.conns[dec.Conn]
		}
		return v
	}
	conn := rs.conns[dec.Conn]
	if !dec.Allow || p.icmpReply {
		// allowed only as the answer in a flow that the other side opened, and there is none
		return verdict{drop: dropNoState, conn: conn}
	}
	f := &flow{key: k, conn: conn, gen: rs.gen, opener: dir, rule: dec.Rule}
	f.lastSeen.Store(sec)
	f = d.flows.insert(f, h)
	cache.put(f)
	d.noteState(b, p, f, dir, sec)
	return verdict{flow: f}
}

// judgeError lets an ICMP error through when it is about a packet of a flow that is known: the
// quoted packet went the other way (RFC 5508, section 4).
func (d *datapath) judgeError(b []byte, p *packet, dir direction, via *connection, rs *ruleset, sec int64) verdict {
	var q packet
	if p.embedded > len(b) || q.parseEmbedded(b[p.embedded:]) != nil || q.noPorts {
		return verdict{drop: dropMalformed, conn: via}
	}
	// The error goes to the sender of the quoted packet.
	if q.src != p.dst {
		return verdict{drop: dropNoState, conn: via}
	}
	k := keyOf(&q, 1-dir)
	f := d.flows.lookup(&k, d.flows.hash(&k))
	if f == nil || f.gen != rs.gen || dir == inbound && f.conn != via {
		return verdict{drop: dropNoState, conn: via}
	}
	// It may come from any router on the way, as long as the selectors of the SA cover that
	// router's address: child.covers is asked for every packet in both directions.
	return verdict{flow: f}
}

// noteState keeps the state of a flow that later packets are judged by.
func (d *datapath) noteState(b []byte, p *packet, f *flow, dir direction, sec int64) {
	if p.fragment {
		d.flows.noteFragment(p, dir, f, sec)
	}
	if p.proto == protoTCP && b[p.headerLen+13]&(0x01|0x04) != 0 { // FIN, RST
		f.closing.Store(true)
	}
}

func policyFlow(p *packet) policy.Flow {
	return policy.Flow{Src: p.src, Dst: p.dst, Proto: p.proto, SrcPort: p.srcPort, DstPort: p.dstPort, NoPorts: p.noPorts}
}

func (d *datapath) note(v verdict, p *packet, dir direction, where string) {
	if v.drop == dropPolicy {
		d.drops.addPolicy(v.policyReason)
	} else {
		d.drops.add(v.drop)
	}
	if !v.drop.recorded() {
		return
	}
	r := refusedPacket{
		reason: v.drop.String(), dir: dir, src: p.src, dst: p.dst, proto: p.proto,
		sport: p.srcPort, dport: p.dstPort, where: where,
	}
	if v.drop == dropPolicy {
		r.reason = v.policyReason.String()
	}
	if v.conn != nil {
		r.conn = v.conn.name
	}
	d.refuse(r)
}

// outWorker takes the packets of one TUN queue to the sockets.
type outWorker struct {
	*datapath
	w     *tunWriter
	cache flowCache
	oob   [maxOOB]byte
	icmp  icmpLimiter
}

// run reads queue q until it is closed, and returns why.
func (w *outWorker) run(q tun.Queue, mtu int) error {
	const batch = 128
	bufs := make([][]byte, batch)
	sizes := make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, headroom+max(mtu, 1500)+tailroom)
	}
	for {
		n, err := q.ReadBatch(bufs, sizes, headroom)
		if err != nil {
			return err
		}
		rs, now := w.rules.Load(), w.now()
		for i := range n {
			w.packet(bufs[i], headroom, sizes[i], rs, now)
		}
	}
}

// packet takes the inner packet buf[off:off+n] to its tunnel.
func (w *outWorker) packet(buf []byte, off, n int, rs *ruleset, now int64) {
	var p packet
	b := buf[off : off+n]
	if err := p.parse(b); err != nil {
		w.note(verdict{drop: dropMalformed}, &p, outbound, "tunnel")
		return
	}
	if p.dst.IsMulticast() || p.dst.IsLinkLocalUnicast() || p.src.IsLinkLocalUnicast() || p.src.IsUnspecified() {
		// what every kernel says on a new interface (router solicitations, MLD); for no tunnel
		w.drops.add(dropNotUnicast)
		return
	}
	sec := now / int64(time.Second)
	v := w.judge(b, &p, outbound, nil, rs, &w.cache, sec)
	if v.drop != dropNone {
		w.note(v, &p, outbound, "tunnel")
		if v.conn != nil {
			w.unreachable(b, &p, now) // from an address behind that connection, as its route expects
		}
		return
	}
	w.deliver(v.flow, &p, buf, off, n, now)
}

// deliver seals and sends a packet that was judged, or holds it until the connection stands.
func (w *outWorker) deliver(f *flow, p *packet, buf []byte, off, n int, now int64) {
	c := f.conn
	child := c.cur.Load()
	if child == nil {
		wake, err := c.hold(buf[off:off+n], time.Now())
		if wake {
			w.wake(c)
		}
		if err == nil {
			return
		}
		if child = c.cur.Load(); child == nil {
			w.note(verdict{drop: dropFor(err), conn: c}, p, outbound, "tunnel")
			w.unreachable(buf[off:off+n], p, now)
			return
		}
	}
	w.send(child, p, buf, off, n, now)
}

// sendHeld sends what a connection held back.
func (w *outWorker) sendHeld(child *childSA, held []heldPacket) {
	for _, h := range held {
		buf := make([]byte, headroom+len(h.b)+tailroom)
		copy(buf[headroom:], h.b)
		var p packet
		if p.parse(h.b) == nil {
			w.send(child, &p, buf, headroom, len(h.b), w.now())
		}
	}
}

func (w *outWorker) send(child *childSA, p *packet, buf []byte, off, n int, now int64) {
	c := child.conn
	if !child.covers(p, outbound) {
		w.note(verdict{drop: dropSelectors, conn: c}, p, outbound, "tunnel")
		w.unreachable(buf[off:off+n], p, now)
		return
	}
	tos := esp.OuterTOS(buf[off : off+n])
	next := uint8(4) // IPv4 in ESP (RFC 4303, section 2.6)
	if buf[off]>>4 == 6 {
		next = 41
	}
	start, end, err := child.out.Seal(buf, off, n, next)
	if err == esp.ErrClosed { //nolint:errorlint // sentinels of the hot path are never wrapped
		// replaced since the worker looked; nothing was written yet
		if newer := c.cur.Load(); newer != nil && newer != child {
			child = newer
			start, end, err = child.out.Seal(buf, off, n, next)
		}
	}
	if err != nil {
		w.drops.add(dropSeal)
		if err == esp.ErrHardLimit { //nolint:errorlint // as above
			w.rekeyOnce(child)
		}
		return
	}
	if child.out.SoftLimitReached() {
		w.rekeyOnce(child)
	}
	path := child.path.Load()
	if err := path.sock.write(buf[start:end], path.sock.appendControl(w.oob[:0], path.local, tos), path.remote); err != nil {
		w.drops.add(dropSend)
		return
	}
	c.packetsOut.Add(1)
	c.bytesOut.Add(uint64(n))
	c.lastUse.Store(now)
}

// rekeyOnce asks IKE for a successor of child, once.
func (d *datapath) rekeyOnce(child *childSA) {
	if child.asked.CompareAndSwap(false, true) {
		d.rekey(child)
	}
}

// inWorker takes the datagrams of one socket to the TUN.
type inWorker struct {
	*datapath
	w     *tunWriter
	cache flowCache
	pkts  [1]tun.Packet // scratch
}

// run reads the socket until it is closed, and returns why.
func (w *inWorker) run(s *udpSocket) error {
	buf := make([]byte, headroom+maxDatagram+tailroom)
	oob := make([]byte, maxOOB)
	for {
		d, err := s.read(buf[headroom:headroom+maxDatagram], oob)
		if err != nil {
			if transient(err) {
				continue // an ICMP error about an earlier datagram of ours
			}
			return err
		}
		w.datagram(s, d, buf, headroom)
	}
}

// datagram tells keepalive, IKE and ESP apart (RFC 3948, section 2).
func (w *inWorker) datagram(s *udpSocket, d datagram, buf []byte, off int) {
	b := buf[off : off+d.n]
	if !s.natt {
		w.ike(s, d, b)
		return
	}
	switch {
	case len(b) == 1 && b[0] == 0xff: // NAT keepalive
		return
	case len(b) < nonESPMarker:
		w.drops.add(dropMalformed)
		return
	case binary.BigEndian.Uint32(b) == 0:
		w.ike(s, d, b[nonESPMarker:])
		return
	}
	w.esp(d, buf, off)
}

// esp opens one ESP packet and hands what was in it to the TUN, if the SA, the policy and the
// flow table all agree.
func (w *inWorker) esp(d datagram, buf []byte, off int) {
	spi, ok := esp.SPIOf(buf[off : off+d.n])
	if !ok {
		w.drops.add(dropMalformed)
		return
	}
	child := w.sad.lookup(spi)
	if child == nil {
		w.drops.add(dropUnknownSPI)
		return
	}
	start, end, next, err := child.in.Open(buf, off, d.n)
	if err != nil {
		w.drops.add(dropForOpen(err))
		if err == esp.ErrDummy { //nolint:errorlint // sentinels of the hot path are never wrapped
			child.lastIn.Store(w.now())
		}
		return
	}
	now := w.now()
	child.lastIn.Store(now)
	if child.pending.Load() {
		w.switch_(child)
	}
	b := buf[start:end]
	if next != 4 && next != 41 || (next == 4) != (b[0]>>4 == 4) {
		w.drops.add(dropMalformed)
		return
	}
	c := child.conn
	var p packet
	if err := p.parse(b); err != nil {
		w.note(verdict{drop: dropMalformed, conn: c}, &p, inbound, "tunnel")
		return
	}
	if !child.covers(&p, inbound) {
		w.note(verdict{drop: dropSelectors, conn: c}, &p, inbound, "tunnel")
		return
	}
	if drop := esp.DecapECN(d.tos, b); drop {
		w.drops.add(dropECN)
		return
	}
	rs := w.rules.Load()
	v := w.judge(b, &p, inbound, c, rs, &w.cache, now/int64(time.Second))
	if v.drop != dropNone {
		w.note(v, &p, inbound, "tunnel")
		return
	}
	c.packetsIn.Add(1)
	c.bytesIn.Add(uint64(len(b)))
	c.lastUse.Store(now)
	if child.in.SoftLimitReached() {
		w.rekeyOnce(child)
	}
	w.pkts[0] = tun.Packet{Buf: buf, Off: start, Len: end - start}
	if err := w.w.write(w.pkts[:]); err != nil {
		w.drops.add(dropTUN)
	}
}
