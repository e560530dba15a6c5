package iketest

import (
	"net/netip"
	"slices"
	"time"

	"wardgate/ike"
)

// maxAddrs is how many addresses a node can have: three of IPv4 and one of IPv6.
const maxAddrs = 4

// nodeAddr is the k-th address of a node.
func nodeAddr(i, k int) netip.Addr {
	b := byte(i + 1)
	switch k {
	case 0:
		return netip.AddrFrom4([4]byte{192, 0, 2, b})
	case 1:
		return netip.AddrFrom4([4]byte{198, 51, 100, b})
	case 2:
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: b})
	default:
		return netip.AddrFrom4([4]byte{192, 0, 2, 100 + b})
	}
}

func simAddr(i int) netip.Addr { return nodeAddr(i, 0) }

// Addresses of nobody.
var (
	attacker = netip.AddrFrom4([4]byte{203, 0, 113, 66}) // sends what it has seen
	decoy    = netip.AddrFrom4([4]byte{203, 0, 113, 77}) // what an attacker sends others to
)

// outside is the address of the NAT in front of an address, which it has when the plan says so.
func outside(i, k int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(9 + 10*k + i)}) }

// addAddresses gives the nodes their addresses.
func (r *run) addAddresses() {
	for i, n := range r.nodes {
		for k := range maxAddrs {
			r.owner[nodeAddr(i, k)], r.owner[outside(i, k)] = n, n
			if k < max(r.plan.Addrs[i%2], 1) {
				r.here[nodeAddr(i, k)] = true
				n.addrs = append(n.addrs, nodeAddr(i, k))
			}
		}
	}
	if r.plan.NAT {
		r.addNAT(0, 0)
	}
}

func (r *run) addNAT(i, k int) {
	r.nats[nodeAddr(i, k)] = &NAT{Inside: nodeAddr(i, k), Outside: outside(i, k), Shift: 1000}
}

// seen is how others see an address of a node.
func (r *run) seen(a netip.AddrPort) netip.AddrPort {
	if nat := r.nats[a.Addr()]; nat != nil {
		return nat.out(a)
	}
	return a
}

// inside is the address that gets what is sent to a. false: nobody does.
func (r *run) inside(a netip.AddrPort) (netip.AddrPort, bool) {
	n := r.owner[a.Addr()]
	if n == nil {
		return a, false
	}
	for k := range maxAddrs {
		nat := r.nats[nodeAddr(n.i, k)]
		switch {
		case nat == nil:
		case nat.Inside == a.Addr():
			return a, false // it is not known outside
		case nat.Outside == a.Addr():
			port := a.Port() - nat.Shift
			// Else the NAT has forgotten this port.
			return netip.AddrPortFrom(nat.Inside, port), r.here[nat.Inside] && (port == 500 || port == 4500)
		}
	}
	return a, r.here[a.Addr()] && (a.Port() == 500 || a.Port() == 4500)
}

// way tells why nothing gets from one address to another; empty: it does.
func (r *run) way(from, to netip.AddrPort) string {
	in, ok := r.inside(to)
	switch {
	case !ok:
		return "nobody has the address"
	case !r.here[from.Addr()]:
		return "from an address that is gone"
	case from.Addr().Is4() != to.Addr().Is4():
		return "another address family"
	case r.link.Cut || r.cut[[2]int{r.owner[from.Addr()].i, r.owner[in.Addr()].i}]:
		return "cut"
	case r.cutPath[[2]netip.Addr{from.Addr(), in.Addr()}]:
		return "this path is cut"
	}
	return ""
}

// carry is what happens to a datagram that a node sends.
func (r *run) carry(from, to netip.AddrPort, msg []byte) {
	n := r.owner[from.Addr()]
	number := r.seq
	r.seq++
	r.limit(n)
	r.oracle.sent(n, to, msg)
	msg = r.otherwise(n, msg)
	inside := from
	from = r.seen(from)
	if len(r.history) < 256 {
		r.history = append(r.history, carried{from, to, msg})
	} else {
		r.history[number%256] = carried{from, to, msg}
	}
	dest := r.owner[to.Addr()]
	fate := fateOf(r.plan.Seed, number)
	link := r.link
	if slices.Contains(r.plan.Calm, number) {
		link = Link{Delay: link.Delay, Cut: link.Cut}
	}
	lost := r.way(inside, to)
	switch {
	case lost != "":
	case r.noUDP:
		lost = "no UDP"
	case link.MTU > 0 && len(msg) > link.MTU:
		lost = "too long"
	case r.drops(n, msg):
		lost = "dropped"
	case fate.chance(0) < link.Loss && !(r.plan.LoseOnce && r.lostBefore(msg)):
		lost = "lost"
	}
	copies := 1
	if fate.chance(1) < link.Dup {
		copies = 2
	}
	if lost != "" {
		copies = 0
	}
	if src := n.stolen; src.IsValid() && copies > 0 {
		// Somebody on the way sends it on as if it came from elsewhere.
		r.stolen = true
		n.stolen, from = netip.AddrPort{}, netip.AddrPortFrom(src.Addr(), from.Port())
		r.note("the next one seems to come from %v", from)
	}
	var arrive [2]time.Duration
	for i := range copies {
		arrive[i] = link.Delay + time.Duration(fate.chance(2+i)*float64(link.Jitter))
		r.w.at(arrive[i], func() { r.deliver(from, to, msg, true) })
	}
	if r.diagram != nil {
		r.diagram.message(r.w.Now(), number, inside, from, to, n, dest, r.oracle.describe(msg), lost, arrive[:copies])
	}
}

// otherwise is what a hostile node sends in place of msg.
func (r *run) otherwise(n *simNode, msg []byte) []byte {
	if r.hooks.Rewrite != nil {
		if other := r.oracle.rewrite(n, msg); other != nil {
			r.note("%s sends the next one otherwise: %s", n.Name, r.oracle.describe(msg))
			msg = other
		}
	}
	if n.mutate != nil {
		if other := r.oracle.mutate(n.mutate, msg); other != nil {
			n.mutate = nil
			r.note("%s sends the next one otherwise: %s", n.Name, r.oracle.describe(msg))
			msg = other
		}
	}
	return msg
}

// drops tells whether Plan.Drop names a datagram.
func (r *run) drops(n *simNode, msg []byte) bool {
	h, ok := headOf(msg)
	for i, d := range r.plan.Drop {
		if ok && d.Node == n.i && d.Response == h.response && !r.w.Now().Before(Epoch.Add(d.After)) && !r.dropped[i] {
			if r.dropped == nil {
				r.dropped = map[int]bool{}
			}
			r.dropped[i] = true
			return true
		}
	}
	return false
}

// lostBefore tells whether the same message was lost before, and notes that it was.
func (r *run) lostBefore(msg []byte) bool {
	if r.lost == nil {
		r.lost = map[uint64]bool{}
	}
	h := hashOf(msg)
	was := r.lost[h]
	r.lost[h] = true
	return was
}

// limit bounds what a node may send: a storm is a fault.
func (r *run) limit(n *simNode) {
	if now := r.w.Now(); now.Sub(n.since) > rateWindow {
		n.since, n.rate = now, 0
	}
	limit := maxRate * (r.plan.Nodes - 1) * r.plan.connections()
	if n.rate++; n.rate > limit+n.asked {
		r.violate("%s sends more than %d datagrams in %v", n.Name, limit, rateWindow)
	}
}

// deliver hands a datagram to the node that has the address, as far as a NAT lets it. genuine: it
// came from the source that it names, or is the first of its kind.
func (r *run) deliver(from, to netip.AddrPort, msg []byte, genuine bool) {
	in, ok := r.inside(to)
	n := r.owner[to.Addr()]
	if !ok || n.paused.After(r.w.Now()) {
		return
	}
	r.oracle.delivered(n, from, msg, genuine)
	r.touched = n
	n.Endpoint.HandleDatagram(ike.Path{Local: in, Remote: from, Encap: in.Port() != 500}, msg)
}
