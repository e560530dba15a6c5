package router

import (
	"encoding/binary"
	"runtime"
	"time"

	"wardgate/esp"
	"wardgate/router/pathmtu"
	"wardgate/router/wire"
	"wardgate/tun"
)

const (
	nonESPMarker = 4 // octets of zero before an IKE message on the NAT-T port (RFC 3948, section 2.2)

	// receiveMessages is how many messages one system call may bring; with UDP_GRO each may hold
	// a whole run of datagrams.
	receiveMessages = 64
)

// inWorker takes the datagrams of one socket to the TUN, to completion.
type inWorker struct {
	*worker
	group *wire.Group
	sock  *wire.Socket
	natt  bool // ESP may come: the NAT traversal port, or native ESP
	batch *wire.Batch

	stream  *stream // of the running round; nil: the socket
	corrupt bool    // a packet of the stream was not authentic

	asked bool         // IKE was given something in this round
	child *childSA     // whose packets pkts are
	pkts  []esp.Packet // not opened yet
	tos   []uint8      // of the outer headers of pkts
	out   []tun.Packet // opened and let through
}

func newInWorker(w *worker, g *wire.Group, s *wire.Socket, natt bool) *inWorker {
	return &inWorker{
		worker: w, group: g, sock: s, natt: natt, batch: wire.NewBatch(receiveMessages, headroom),
		pkts: make([]esp.Packet, 0, 256), tos: make([]uint8, 0, 256), out: make([]tun.Packet, 0, 1024),
	}
}

// run reads the socket until it is closed, and returns why.
func (w *inWorker) run() error {
	for {
		if err := w.round(); err != nil {
			return err
		}
	}
}

// round takes what has come, up to a batch, to the TUN.
func (w *inWorker) round() error {
	if err := w.sock.Receive(w.batch); err != nil {
		return err
	}
	rs, now := w.rules.Load(), w.now()
	for i := range w.batch.Datagrams {
		w.take(&w.batch.Datagrams[i], rs, now)
	}
	w.finish(rs, now)
	return nil
}

// finish hands what a round has collected to the TUN.
func (w *inWorker) finish(rs *ruleset, now int64) {
	w.open(rs, now)
	if len(w.out) > 0 {
		if n := w.w.write(w.out); n > 0 {
			w.drops.add(dropTUN, n)
		}
		w.out = w.out[:0]
	}
	w.count.rounds.Add(1)
	if w.asked {
		// IKE's goroutines go first: this one may now sleep in a system call with its processor
		w.asked = false
		runtime.Gosched()
	}
}

// newStreamInWorker makes a worker for what comes in on TCP connections.
func newStreamInWorker(w *worker) *inWorker {
	return &inWorker{worker: w, pkts: make([]esp.Packet, 0, 256), tos: make([]uint8, 0, 256), out: make([]tun.Packet, 0, 256)}
}

// streamRound takes what a TCP connection has brought to the TUN, where it is opened in place. An error
// means that the connection is to be closed (RFC 9329, section 6.1).
func (w *inWorker) streamRound(s *stream, x *wire.Inbox) (err error) {
	w.stream, w.corrupt = s, false
	defer func() { w.stream = nil }()
	rs, now := w.rules.Load(), w.now()
	d := wire.Datagram{Buf: x.Buf}
	for _, m := range x.Messages {
		b := x.Buf[m.Off : m.Off+m.Len]
		switch {
		case m.Len == 1 && b[0] == 0xff: // NAT keepalive: not an error (section 6.6)
		case m.Len < nonESPMarker:
			w.drops.add(dropMalformed, 1)
			s.badRun++
		case binary.BigEndian.Uint32(b) == 0:
			if s.ikes++; s.ikes > strangerMessages && !s.known.Load() {
				return errFlood
			}
			s.t.r.ep.HandleDatagram(*s.path.Load(), b[nonESPMarker:])
			w.asked = true
		default:
			if !w.esp(&d, m.Off, m.Len, rs, now) {
				s.badRun++
			}
		}
		if s.badRun > maxSuspect {
			err = errSuspect
			break
		}
	}
	w.finish(rs, now)
	if w.corrupt {
		err = errCorrupt
	}
	return err
}

// take tells keepalive, IKE and ESP apart (RFC 3948, section 2), datagram by datagram.
func (w *inWorker) take(d *wire.Datagram, rs *ruleset, now int64) {
	size := d.Segment
	if size == 0 {
		size = d.Len
	}
	for off, end := d.Off, d.Off+d.Len; off < end || d.Len == 0; off += size {
		n := min(size, end-off)
		b := d.Buf[off : off+n]
		switch {
		case !w.natt:
			w.toIKE(d, b)
		case len(b) == 1 && b[0] == 0xff: // NAT keepalive
		case len(b) < nonESPMarker:
			w.drops.add(dropMalformed, 1)
		case binary.BigEndian.Uint32(b) == 0 && !w.group.Native():
			w.toIKE(d, b[nonESPMarker:])
		default:
			w.esp(d, off, n, rs, now)
		}
		if d.Len == 0 {
			return
		}
	}
}

// toIKE hands a message to IKE.
func (w *inWorker) toIKE(d *wire.Datagram, msg []byte) {
	w.ike(w.group, d, msg)
	w.asked = true
}

// esp puts one ESP packet to the others of its SA, and tells whether there is one.
func (w *inWorker) esp(d *wire.Datagram, off, n int, rs *ruleset, now int64) bool {
	spi, ok := esp.SPIOf(d.Buf[off : off+n])
	if !ok {
		w.drops.add(dropMalformed, 1)
		return false
	}
	if w.child == nil || w.child.spiIn != spi {
		w.open(rs, now)
		if w.child = w.sad.lookup(spi); w.child == nil {
			w.drops.add(dropUnknownSPI, 1)
			return false
		}
	}
	w.pkts = append(w.pkts, esp.Packet{Buf: d.Buf, Off: off, Len: n})
	w.tos = append(w.tos, d.TOS)
	return true
}

// open opens the packets that were collected, all of one SA, and keeps for the TUN what the SA,
// the policy and the flow table all agree with.
func (w *inWorker) open(rs *ruleset, now int64) {
	child := w.child
	w.child = nil // it may be replaced before the next packet comes
	if len(w.pkts) == 0 {
		return
	}
	child.in.OpenBatch(w.pkts)
	c := child.conn
	authentic, packets, bytes := false, 0, 0
	for i := range w.pkts {
		p := &w.pkts[i]
		if p.Err != nil {
			w.drops.add(dropForOpen(p.Err), 1)
			w.corrupt = w.corrupt || p.Err == esp.ErrAuth  //nolint:errorlint // as below
			authentic = authentic || p.Err == esp.ErrDummy //nolint:errorlint // sentinels of the hot path are never wrapped
			continue
		}
		authentic = true
		if w.deliver(child, p, w.tos[i], rs, now) {
			packets++
			bytes += p.Len
		}
	}
	w.pkts, w.tos = w.pkts[:0], w.tos[:0]
	if authentic {
		child.lastIn.Store(now)
		if w.stream != nil {
			w.stream.esp(child)
		}
		if child.pending.Load() {
			w.switch_(child)
		}
	}
	if packets > 0 {
		t := &c.traffic[w.shard]
		t.packetsIn.Add(uint64(packets))
		t.bytesIn.Add(uint64(bytes))
		w.count.packetsIn.Add(uint64(packets))
		w.count.bytesIn.Add(uint64(bytes))
		c.lastUse.Store(now)
	}
	if child.in.SoftLimitReached() {
		w.rekeyOnce(child)
	}
}

// deliver judges an inner packet and tells whether it goes on to the TUN.
func (w *inWorker) deliver(child *childSA, e *esp.Packet, tos uint8, rs *ruleset, now int64) bool {
	b := e.Buf[e.Off : e.Off+e.Len]
	c := child.conn
	var p packet
	if err := p.parse(b); err != nil {
		w.note(verdict{drop: dropMalformed, conn: c}, &p, inbound, 1)
		return false
	}
	sec := now / int64(time.Second)
	if f := w.known(&p, child, rs.gen); f != nil {
		if esp.DecapECN(tos, b) {
			w.drops.add(dropECN, 1)
			return false
		}
		f.touch(sec)
		w.noteState(b, &p, f, inbound, sec)
	} else {
		if !child.covers(&p, inbound) {
			w.note(verdict{drop: dropSelectors, conn: c}, &p, inbound, 1)
			return false
		}
		if esp.DecapECN(tos, b) {
			w.drops.add(dropECN, 1)
			return false
		}
		v := w.judge(b, &p, inbound, c, rs, &w.cache, sec)
		if v.drop != dropNone {
			w.note(v, &p, inbound, 1)
			return false
		}
		if !p.fragment && !p.icmpError {
			v.flow.coveredIn.Store(child)
		}
	}
	if p.proto == protoTCP && !p.fragment && b[p.headerLen+13]&tcpSYN != 0 {
		pathmtu.ClampMSS(b, child.path.Load().innerMTU(child))
	}
	w.out = append(w.out, tun.Packet{Buf: e.Buf, Off: e.Off, Len: e.Len})
	return true
}

// known returns the flow of a packet that came on child before and was let through, under the
// policy of generation gen; nil when everything has to be asked.
func (w *inWorker) known(p *packet, child *childSA, gen uint64) *flow {
	if p.fragment || p.icmpError {
		return nil
	}
	k := keyOf(p, inbound)
	f := w.cache.get(&k, gen)
	if f == nil || f.conn != child.conn || f.coveredIn.Load() != child {
		return nil
	}
	return f
}
