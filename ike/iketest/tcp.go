package iketest

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"time"

	"wardgate/ike"
)

// TCP connections in the simulator (RFC 9329): what is sent arrives once and in order, later when the
// link is cut meanwhile, and not at all when that takes too long: then the connection breaks.
const (
	tcpPatience = 30 * time.Second
	tcpAgain    = 500 * time.Millisecond
)

// dial begins to open a connection, and goes on until it stands or nobody wants it any more.
func (r *run) dial(e *streamEnd) {
	sn := e.node.sim
	r.w.at(2*r.link.Delay, func() {
		if sn.Node != e.node || e.node.streams[e.id] != e || e.other != nil {
			return
		}
		e.local = e.node.source(e.remote.Addr())
		in, ok := r.inside(netip.AddrPortFrom(e.remote.Addr(), 4500))
		if !ok || r.apartBy(e.local, in.Addr()) != "" || r.owner[in.Addr()].paused.After(r.w.Now()) {
			r.w.at(tcpAgain, func() { r.dial(e) })
			return
		}
		r.w.TCP.Opened++
		to := r.owner[in.Addr()]
		e.path = ike.Path{Local: netip.AddrPortFrom(e.local, tcpPorts+uint16(r.w.TCP.Opened)), Remote: e.remote, Stream: e.id}
		o := &streamEnd{id: to.Endpoint.NewStream(), node: to.Node, other: e, local: in.Addr()}
		o.path = ike.Path{Local: netip.AddrPortFrom(in.Addr(), e.remote.Port()), Remote: r.seen(e.path.Local), Stream: o.id}
		e.other, to.streams[o.id] = o, o
		r.note("TCP connection %d of %s to %s, which calls it %d", e.id, sn.Name, to.Name, o.id)
		r.touched = sn
		sn.Endpoint.StreamUp(e.path)
	})
}

// carryStream is what happens to a message that a node sends on a TCP connection.
func (r *run) carryStream(e *streamEnd, msg []byte) {
	n := e.node.sim
	number := r.seq
	r.seq++
	r.limit(n)
	r.oracle.sent(n, e.path.Remote, msg)
	msg = r.otherwise(n, bytes.Clone(msg))
	if r.diagram != nil {
		r.diagram.message(r.w.Now(), number, e.path.Local, r.seen(e.path.Local), e.path.Remote, n, e.other.node.sim, r.oracle.describe(msg), "TCP", nil)
	}
	if e.queue = append(e.queue, msg); len(e.queue) == 1 {
		e.stuck = time.Time{}
		r.pump(e, r.link.Delay+time.Duration(fateOf(r.plan.Seed, number).chance(2)*float64(r.link.Jitter)))
	}
}

// pump delivers what waits on a TCP connection.
func (r *run) pump(e *streamEnd, d time.Duration) {
	r.w.at(d, func() {
		o, now := e.other, r.w.Now()
		if o == nil {
			e.queue = nil
			return
		}
		to := o.node.sim
		if r.apartBy(e.local, o.local) != "" || to.paused.After(now) {
			if e.stuck.IsZero() {
				e.stuck = now
			}
			if now.Sub(e.stuck) > tcpPatience {
				e.reset()
				return
			}
			r.pump(e, tcpAgain)
			return
		}
		msgs := e.queue
		e.queue = nil
		for _, m := range msgs {
			r.oracle.delivered(to, o.path.Remote, m, true)
			r.touched = to
			to.Endpoint.HandleDatagram(o.path, m)
		}
	})
}

// hangUp closes a connection when what was sent has arrived, or cannot.
func (r *run) hangUp(e *streamEnd, since time.Time) {
	r.w.at(r.link.Delay+tcpAgain/10, func() {
		o := e.other
		switch {
		case o == nil:
		case len(e.queue) > 0 || r.apartBy(e.local, o.local) != "" && r.w.Now().Sub(since) < tcpPatience:
			r.w.at(tcpAgain, func() { r.hangUp(e, since) })
		default:
			delete(o.node.streams, o.id)
			e.other, o.other = nil, nil
		}
	})
}

// apartBy tells why nothing gets from one address to another, both as their nodes know them.
func (r *run) apartBy(from, to netip.Addr) string {
	switch {
	case !r.here[from], !r.here[to]:
		return "gone"
	case from.Is4() != to.Is4():
		return "another address family"
	case r.link.Cut || r.cut[[2]int{r.owner[from].i, r.owner[to].i}] || r.cut[[2]int{r.owner[to].i, r.owner[from].i}]:
		return "cut"
	case r.cutPath[[2]netip.Addr{from, to}] || r.cutPath[[2]netip.Addr{to, from}]:
		return "this path is cut"
	}
	return ""
}

// sortedStreams are the connections of a node, in an order that is always the same.
func (n *Node) sortedStreams() (out []*streamEnd) {
	for _, id := range slices.Sorted(maps.Keys(n.streams)) {
		out = append(out, n.streams[id])
	}
	return out
}
