package iketest

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"wardgate/ike"
)

// Node is one endpoint with an Owner that keeps books and checks what it is told.
type Node struct {
	Name     string
	Addr     netip.Addr
	Endpoint *ike.Endpoint

	IKE      map[ike.SAID]ike.SAInfo
	Children map[ike.ChildID]*Child
	// Send is the CHILD SA that a data path would send on, for each connection, CHILD SA and queue:
	// "peer/child" is queue 0, "peer/child#2" queue 2.
	Send       map[string]ike.ChildID
	Refusals   []ike.Refusal
	Failed     []error
	Ended      []ike.Reason // of IKE SAs
	Gone       []ike.Reason // of CHILD SAs
	Keepalives int
	// OnDown, when not nil, is told of each IKE SA that goes down, before anything else happens.
	OnDown func(ike.SAInfo, ike.Reason)
	Paths  []ike.Path
	// Violations are calls that must not have come.
	Violations []string
	// Keys are all keys that were ever installed for sending, by their octets.
	keys   map[string]ike.ChildID
	had    map[netip.Addr]bool // addresses of before, see Move
	graves map[uint32]grave    // by inbound SPI, see Traffic
	routes map[ike.SAID]ike.Path
	world  *World

	streams map[uint64]*streamEnd
	sim     *simNode // nil: outside of the simulator
}

// Child is a CHILD SA as the data path sees it.
type Child struct {
	ike.ChildSA
	Up       time.Time
	Switched bool
	heard    bool // a packet came in, see Traffic
}

// NewNode adds an endpoint at addr. edit may change its configuration.
func (w *World) NewNode(name string, addr netip.Addr, edit func(*ike.Config)) (*Node, error) {
	n := &Node{
		Name: name, Addr: addr, world: w, IKE: map[ike.SAID]ike.SAInfo{}, Children: map[ike.ChildID]*Child{},
		Send: map[string]ike.ChildID{}, keys: map[string]ike.ChildID{},
		graves: map[uint32]grave{}, routes: map[ike.SAID]ike.Path{}, had: map[netip.Addr]bool{}, streams: map[uint64]*streamEnd{},
	}
	cfg := ike.Config{
		Clock: w, Rand: w.Rand(), Executor: w, Owner: n,
		Send: func(p ike.Path, msg []byte) {
			if p.Stream != 0 {
				n.sendStream(p.Stream, msg)
				return
			}
			w.send(n.local(p), p.Remote, msg)
		},
		OpenStream: n.openStream, CloseStream: n.closeStream,
		SendKeepalive: func(ike.Path) { n.Keepalives++ },
		SourceAddr:    n.source,
	}
	if edit != nil {
		edit(&cfg)
	}
	ep, err := ike.NewEndpoint(cfg)
	if err != nil {
		return nil, err
	}
	n.Endpoint = ep
	if old := w.nodes[addr]; old != nil {
		old.breakTCP() // it was restarted
	}
	w.nodes[addr] = n
	return n, nil
}

// local is the address that a packet for p leaves from.
func (n *Node) local(p ike.Path) netip.AddrPort {
	port := uint16(500)
	if p.Encap {
		port = 4500
	}
	a := n.Addr
	if l := p.Local.Addr(); n.had[l] || n.world.nodes[l] == n {
		a = l // also when it is gone
	}
	return netip.AddrPortFrom(a, port)
}

func (n *Node) violate(format string, args ...any) {
	s := n.Name + ": " + fmt.Sprintf(format, args...)
	n.Violations = append(n.Violations, s)
	n.world.Logf("%s: VIOLATION %s", n.Name, s)
}

// IKEUp implements ike.Owner.
func (n *Node) IKEUp(i ike.SAInfo) {
	n.world.Logf("%s: IKEUp %d %s %v/%v", n.Name, i.ID, i.Peer, i.LocalIDs, i.RemoteIDs)
	if _, ok := n.IKE[i.ID]; ok {
		n.violate("IKE SA %d came up twice", i.ID)
	}
	n.IKE[i.ID], n.routes[i.ID] = i, i.Path
}

// IKEDown implements ike.Owner.
func (n *Node) IKEDown(i ike.SAInfo, r ike.Reason) {
	n.world.Logf("%s: IKEDown %d %s: %s %s", n.Name, i.ID, i.Peer, r.Code, r.Text)
	if _, ok := n.IKE[i.ID]; !ok {
		n.violate("IKE SA %d went down without having been up", i.ID)
	}
	for _, c := range n.Children {
		if c.SA == i.ID {
			n.violate("IKE SA %d went down before its CHILD SA %d", i.ID, c.ID)
		}
	}
	delete(n.IKE, i.ID)
	delete(n.routes, i.ID)
	n.Ended = append(n.Ended, r)
	if n.OnDown != nil {
		n.OnDown(i, r)
	}
}

func key(c *ike.ChildSA) string {
	s := c.Peer + "/" + c.Child
	if c.Queue > 0 {
		s += fmt.Sprintf("#%d", c.Queue)
	}
	return s
}

// ChildUp implements ike.Owner.
func (n *Node) ChildUp(c ike.ChildSA) {
	n.world.Logf("%s: ChildUp %d %s replaces %d in %08x out %08x now=%v", n.Name, c.ID, key(&c), c.Replaces, c.SPIIn, c.SPIOut, c.SendNow)
	if _, ok := n.IKE[c.SA]; !ok {
		n.violate("CHILD SA %d of IKE SA %d, which is not up", c.ID, c.SA)
	}
	if _, ok := n.Children[c.ID]; ok {
		n.violate("CHILD SA %d came up twice", c.ID)
	}
	for _, o := range n.Children {
		if o.SPIIn == c.SPIIn {
			n.violate("CHILD SAs %d and %d have the same inbound SPI", o.ID, c.ID)
		}
	}
	if old := n.Children[c.Replaces]; old != nil && (old.Queue != c.Queue || old.Child != c.Child) {
		n.violate("CHILD SA %d of %s replaces %d of %s", c.ID, key(&c), old.ID, key(&old.ChildSA))
	}
	if len(c.KeyIn) == 0 || bytes.Equal(c.KeyIn, c.KeyOut) {
		n.violate("CHILD SA %d: bad keys", c.ID)
	}
	if old, ok := n.keys[string(c.KeyOut)]; ok {
		n.violate("CHILD SA %d has the outbound key of CHILD SA %d: its IVs would repeat", c.ID, old)
	}
	n.keys[string(c.KeyOut)] = c.ID
	n.Children[c.ID] = &Child{ChildSA: c, Up: n.world.Now()}
	if c.SendNow || n.Children[n.Send[key(&c)]] == nil {
		n.Send[key(&c)] = c.ID
	}
}

// ChildSwitch implements ike.Owner.
func (n *Node) ChildSwitch(id ike.ChildID) {
	n.world.Logf("%s: ChildSwitch %d", n.Name, id)
	c := n.Children[id]
	if c == nil {
		n.violate("switch to CHILD SA %d, which is not up", id)
		return
	}
	if c.SendNow || c.Switched {
		n.violate("switch to CHILD SA %d, which is in use", id)
	}
	c.Switched = true
	n.Send[key(&c.ChildSA)] = id
}

// ChildDown implements ike.Owner.
func (n *Node) ChildDown(id ike.ChildID, r ike.Reason) {
	n.world.Logf("%s: ChildDown %d: %s %s", n.Name, id, r.Code, r.Text)
	c := n.Children[id]
	if c == nil {
		n.violate("CHILD SA %d went down without having been up", id)
		return
	}
	delete(n.Children, id)
	n.Gone = append(n.Gone, r)
	n.bury(c, r)
	if k := key(&c.ChildSA); n.Send[k] == id {
		delete(n.Send, k)
		// A data path goes on with another one of the same kind, the newest that the peer has.
		usable := false
		for _, o := range n.sorted() {
			if now := o.SendNow || o.Switched || o.heard; key(&o.ChildSA) == k && (now || !usable) {
				n.Send[k], usable = o.ID, usable || now
			}
		}
	}
}

func (n *Node) sorted() []*Child {
	var out []*Child
	for _, c := range n.Children {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *Child) int { return int(a.ID) - int(b.ID) })
	return out
}

// PathChanged implements ike.Owner.
func (n *Node) PathChanged(id ike.SAID, p ike.Path) {
	n.world.Logf("%s: PathChanged %d %v", n.Name, id, p)
	n.Paths = append(n.Paths, p)
	n.routes[id] = p
}

// Refused implements ike.Owner.
func (n *Node) Refused(r ike.Refusal) {
	n.world.Logf("%s: Refused %s round %d %s %v: %s: %v", n.Name, r.Code, r.Round, r.Role, r.IDs, r.Text, r.Err)
	n.Refusals = append(n.Refusals, r)
}

// InitiateFailed implements ike.Owner.
func (n *Node) InitiateFailed(peer, child string, err error) {
	n.world.Logf("%s: InitiateFailed %s %s: %v", n.Name, peer, child, err)
	n.Failed = append(n.Failed, err)
}

// Refused1 returns the code of the only refusal, or a text that says otherwise.
func (n *Node) Codes() []ike.Code {
	var out []ike.Code
	for _, r := range n.Refusals {
		out = append(out, r.Code)
	}
	return out
}

// Carries checks that what n sends now for the connection and CHILD SA name arrives at o and
// would be understood there; it returns what is wrong.
func (n *Node) Carries(o *Node, name string) error {
	id, ok := n.Send[name]
	if !ok {
		return fmt.Errorf("%s has nothing to send on for %s", n.Name, name)
	}
	c := n.Children[id]
	for _, p := range o.Children {
		if p.SPIIn == c.SPIOut {
			if !bytes.Equal(p.KeyIn, c.KeyOut) || !bytes.Equal(p.IntegIn, c.IntegOut) || p.Encr != c.Encr || p.ESN != c.ESN {
				return fmt.Errorf("%s sends CHILD SA %d with SPI %08x, %s has another key for it", n.Name, id, c.SPIOut, o.Name)
			}
			return nil
		}
	}
	return fmt.Errorf("%s sends CHILD SA %d with SPI %08x, which %s does not know", n.Name, id, c.SPIOut, o.Name)
}

// Move gives a node other addresses, the first of which it sends from when it may choose, and tells
// its endpoint.
func (n *Node) Move(addrs ...netip.Addr) {
	w := n.world
	for a, o := range w.nodes {
		if o == n {
			n.had[a] = true
			delete(w.nodes, a)
		}
	}
	for _, a := range addrs {
		w.nodes[a] = n
	}
	if len(addrs) > 0 {
		n.Addr = addrs[0] // else it has lost all of them
	}
	w.Logf("%s: has %v", n.Name, addrs)
	n.Endpoint.AddressChanged(addrs)
}

// source is the address that packets to remote leave from.
func (n *Node) source(remote netip.Addr) netip.Addr {
	if n.Addr.Is4() == remote.Is4() {
		return n.Addr
	}
	var best netip.Addr
	for a, o := range n.world.nodes {
		if o == n && a.Is4() == remote.Is4() && (!best.IsValid() || a.Less(best)) {
			best = a
		}
	}
	return best
}
