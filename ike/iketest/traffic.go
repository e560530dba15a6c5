package iketest

import (
	"fmt"
	"time"

	"wardgate/ike"
)

// Traffic is a model of two data paths that send ESP packets to each other all the time, by the
// rules of ike.Owner and ike.ChildSA: packets are as late as Link says, in any order, and none is
// lost on its way. One that comes in without its CHILD SA counts as lost, and so does one for
// which there was nothing to send on.
type Traffic struct {
	Sent, Lost int
	// Why says of the first packets that were lost what was wrong.
	Why []string

	// way, when not nil, tells why nothing gets along a path; empty: it does.
	way func(ike.Path) string

	world *World
	stop  bool
	ends  [2]*Node
}

// grave is a replaced CHILD SA that still takes packets that were on their way.
type grave struct {
	key   string
	until time.Time
}

// Grace is how long a data path receives on a CHILD SA that was replaced (ike.Owner.ChildDown).
const Grace = 2 * time.Second

// Traffic sends a packet in each direction every so often, on all CHILD SAs that Node.Send names,
// until Stop.
func (w *World) Traffic(a, b *Node, every time.Duration) *Traffic {
	t := &Traffic{world: w, ends: [2]*Node{a, b}}
	var tick func()
	tick = func() {
		if t.stop {
			return
		}
		for i, n := range t.ends {
			for _, k := range n.sending() {
				t.send(n, t.ends[1-i], k)
			}
		}
		w.at(every, tick)
	}
	w.at(every, tick)
	return t
}

// Stop ends the sending.
func (t *Traffic) Stop() { t.stop = true }

func (t *Traffic) lost(format string, args ...any) {
	t.Lost++
	s := fmt.Sprintf("%.3f: ", t.world.Now().Sub(Epoch).Seconds()) + fmt.Sprintf(format, args...)
	t.world.Logf("LOST %s", s)
	if len(t.Why) < 5 {
		t.Why = append(t.Why, s)
	}
}

func (t *Traffic) send(from, to *Node, k string) {
	c := from.Children[from.Send[k]]
	if c != nil && c.pending() {
		if c = from.other(c); c == nil {
			return // it is held
		}
	}
	t.Sent++
	if c == nil {
		t.lost("%s has no CHILD SA to send on for %s", from.Name, k)
		return
	}
	spi, key := c.SPIOut, string(c.KeyOut)
	sent := t.world.Now()
	path := from.routes[c.SA]
	t.world.at(t.world.latency(), func() {
		if t.way != nil {
			if why := t.way(path); why != "" {
				t.lost("%s sent on CHILD SA %d at %.3f by %v: %s", from.Name, c.ID, sent.Sub(Epoch).Seconds(), path, why)
				return
			}
		}
		if !to.receive(spi, key) {
			t.lost("%s sent on CHILD SA %d at %.3f, SPI %08x is unknown at %s", from.Name, c.ID, sent.Sub(Epoch).Seconds(), spi, to.Name)
		}
	})
}

// pending tells whether nothing is to be sent on a new CHILD SA yet (ike.ChildSA.SendNow).
func (c *Child) pending() bool { return c.Replaces == 0 && !c.SendNow && !c.Switched && !c.heard }

// other returns a CHILD SA that carries the same traffic as c.
func (n *Node) other(c *Child) *Child {
	for _, o := range n.sorted() {
		if o.Peer == c.Peer && o.ChildSA.Child == c.ChildSA.Child && n.Send[key(&o.ChildSA)] == o.ID && !o.pending() {
			return o
		}
	}
	return nil
}

// sending returns the names that something was ever sent for; those of queues that are no more
// are left out.
func (n *Node) sending() []string {
	seen := map[string]bool{}
	var out []string
	for _, c := range n.sorted() {
		if k := key(&c.ChildSA); !seen[k] {
			seen[k] = true
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		out = append(out, "anything")
	}
	return out
}

// receive takes one packet with SPI spi that was sealed with key.
func (n *Node) receive(spi uint32, k string) bool {
	for _, c := range n.Children {
		if c.SPIIn != spi {
			continue
		}
		if string(c.KeyIn) != k {
			return false
		}
		if !c.SendNow && !c.Switched && !c.heard {
			// ike.ChildSA.SendNow: the first authentic packet.
			c.heard = true
			n.Send[key(&c.ChildSA)] = c.ID
		}
		return true
	}
	g, ok := n.graves[spi]
	return ok && g.key == k && !n.world.Now().After(g.until)
}

func (n *Node) bury(c *Child, r ike.Reason) {
	if r.Rekeyed {
		n.graves[c.SPIIn] = grave{string(c.KeyIn), n.world.Now().Add(Grace)}
	}
	for spi, g := range n.graves {
		if n.world.Now().After(g.until) {
			delete(n.graves, spi)
		}
	}
}
