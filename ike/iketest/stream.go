package iketest

import (
	"bytes"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"wardgate/ike"
)

// TCPLink is what happens to TCP connections between nodes (RFC 9329). What is sent on one arrives
// once and in order, or not at all when the connection breaks first.
type TCPLink struct {
	Refuse bool // connections are refused
	Hang   bool // nothing comes back when one is opened
	Shift  bool // a NAT is on the way: the other end sees other addresses
	Opened int  // how many connections were opened
}

// streamEnd is a TCP connection as one end sees it.
type streamEnd struct {
	id     uint64
	path   ike.Path
	node   *Node
	other  *streamEnd // nil: it does not stand
	dialed bool
	local  netip.Addr
	remote netip.AddrPort

	// In the simulator: what is on its way, and since when it cannot arrive.
	queue [][]byte
	stuck time.Time
}

var (
	errRefused = errors.New("connection refused")
	errBroken  = errors.New("connection reset by peer")
)

// reopenAfter is how long an owner waits before it opens a broken connection anew.
const reopenAfter = 100 * time.Millisecond

// tcpPorts is where the ports of the nodes' ends begin.
const tcpPorts = 40000

func (n *Node) openStream(id uint64, local netip.Addr, remote netip.AddrPort) {
	e := &streamEnd{id: id, node: n, dialed: true, local: n.Addr, remote: remote}
	n.streams[id] = e
	e.open()
}

// open begins to open the connection.
func (e *streamEnd) open() {
	n, w := e.node, e.node.world
	if n.sim != nil {
		n.sim.run.dial(e)
		return
	}
	w.at(2*w.Link.Delay, func() {
		if n.streams[e.id] != e || e.other != nil || w.TCP.Hang {
			return
		}
		to := w.nodes[e.remote.Addr()]
		if w.TCP.Refuse || to == nil || to.Endpoint == nil {
			w.Logf("%s: TCP connection %d to %v refused", n.Name, e.id, e.remote)
			n.Endpoint.StreamDown(e.id, errRefused)
			return
		}
		w.TCP.Opened++
		e.path = ike.Path{Local: netip.AddrPortFrom(e.local, tcpPorts+uint16(w.TCP.Opened)), Remote: e.remote, Stream: e.id}
		seen := e.path.Local
		if w.TCP.Shift {
			seen = netip.AddrPortFrom(seen.Addr().Next(), seen.Port()+1000)
		}
		o := &streamEnd{id: to.Endpoint.NewStream(), node: to, other: e}
		o.path = ike.Path{Local: e.remote, Remote: seen, Stream: o.id}
		e.other, to.streams[o.id] = o, o
		w.Logf("%s: TCP connection %d to %s, which calls it %d", n.Name, e.id, to.Name, o.id)
		n.Endpoint.StreamUp(e.path)
	})
}

func (n *Node) closeStream(id uint64) {
	e := n.streams[id]
	if e == nil {
		return
	}
	delete(n.streams, id)
	if n.sim != nil {
		n.sim.run.hangUp(e, n.world.Now())
		return
	}
	// What was sent before arrives before.
	n.world.at(n.world.Link.Delay, func() {
		if o := e.other; o != nil {
			delete(o.node.streams, o.id)
		}
	})
}

func (n *Node) sendStream(id uint64, msg []byte) {
	w, e := n.world, n.streams[id]
	if e == nil || e.other == nil {
		if n.sim != nil {
			n.sim.run.oracle.sent(n.sim, netip.AddrPort{}, msg)
		}
		w.Logf("%s: no TCP connection %d for %s", n.Name, id, Describe(msg))
		return
	}
	if n.sim != nil {
		n.sim.run.carryStream(e, msg)
		return
	}
	msg = bytes.Clone(msg)
	o := e.other
	w.Logf("%v > %v  %s (TCP)", e.path.Local, e.path.Remote, Describe(msg))
	w.at(w.Link.Delay, func() {
		if o.other == nil {
			return // it broke
		}
		o.node.Endpoint.HandleDatagram(o.path, msg)
	})
}

// Streams returns how many TCP connections of the node stand.
func (n *Node) Streams() int {
	count := 0
	for _, e := range n.streams {
		if e.other != nil {
			count++
		}
	}
	return count
}

// BreakTCP resets every TCP connection. Who opened one is told, and opens it anew.
func (w *World) BreakTCP() {
	for _, a := range slices.SortedFunc(maps.Keys(w.nodes), netip.Addr.Compare) {
		w.nodes[a].breakTCP()
	}
}

func (n *Node) breakTCP() {
	for _, e := range n.sortedStreams() {
		e.reset()
	}
}

// reset breaks the connection.
func (e *streamEnd) reset() {
	o := e.other
	if o == nil {
		return
	}
	e.other, o.other = nil, nil
	for _, x := range []*streamEnd{e, o} {
		if x.queue = nil; !x.dialed {
			delete(x.node.streams, x.id)
			continue
		}
		w := x.node.world
		w.Logf("%s: TCP connection %d broke", x.node.Name, x.id)
		x.node.Endpoint.StreamDown(x.id, errBroken)
		w.at(reopenAfter, x.open)
	}
}
