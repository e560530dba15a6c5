package iketest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Plan is a schedule: everything that happens to some nodes from outside. What the endpoints do
// follows from it, so that the same plan gives the same run.
type Plan struct {
	Seed  uint64 // of everything random: keys, nonces, the fate of datagrams
	Nodes int    // 2 to 5, each connected with each
	Auth  Auth

	// Of all connections.
	RekeyIKE, RekeyChild time.Duration // 0: never in the time of a plan
	Liveness             time.Duration
	Retransmit           time.Duration // the first repetition; 4 in all
	Queues               [2]int        // of "net": in even and odd nodes (RFC 9611)
	Machine              [2]int        // ike.Config.Queues in even and odd nodes
	PFS                  bool          // CHILD SAs with a key exchange, of which odd nodes know one only
	Hybrid               Hybrid        // additional key exchanges (RFC 9370)
	Groups               bool          // odd nodes know only the second of the groups for the IKE SA
	Tickets              bool          // session resumption (RFC 5723)
	Crash                bool          // quick crash detection (RFC 6290)
	Childless            [2]bool       // of even and odd nodes (RFC 6023)
	PPK                  [2]bool       // of even and odd nodes (RFC 8784)
	Reauth               time.Duration // 0: only when the plan says so
	Hearing              bool          // endpoints are told when packets come in
	NAT                  bool          // node 0 is behind a NAT
	Fragments            bool          // messages longer than 512 octets are cut
	Addrs                [2]int        // how many addresses even and odd nodes begin with; 0: one
	Mobike               [2]bool       // of even and odd nodes (RFC 4555)
	Cookies              int           // the threshold from which cookies are asked for; 0: the default, negative: always
	Puzzles              int           // the same for puzzles (RFC 8019), not below Cookies; 0: never
	Redirect             bool          // connections may be served at other addresses too (RFC 5685)
	Twin                 bool          // node 2 is another gateway with node 1's identities and connections
	Second               bool          // each two nodes have two connections with each other
	Config               bool          // of two nodes the first one asks the other one for an address
	TCP                  [2]uint8      // ike.TCPMode of even and odd nodes (RFC 9329)

	// Traffic: packets go both ways all the time, and none may be lost. Such a plan has no losses
	// of datagrams but those of LoseOnce, and nothing that ends an SA.
	Traffic  bool
	Link     Link
	LoseOnce bool // a datagram that is lost is not lost when it is repeated

	Ops  []Op
	Calm []int `json:",omitempty"` // datagrams, by their number, that get through at once whatever Link says

	// Drop are datagrams that are lost besides.
	Drop []Drop `json:",omitempty"`

	// CutAtEnd ends everything by cutting all links; otherwise all IKE SAs are deleted.
	CutAtEnd bool
}

// Auth is how nodes prove who they are.
type Auth uint8

// The kinds of Auth.
const (
	AuthPSK   Auth = iota // one round with a pre-shared key
	AuthPSK2              // two rounds with pre-shared keys
	AuthCert2             // device and service certificate, Ed25519
	authKinds
)

// Hybrid is where key exchanges are followed by others.
type Hybrid uint8

// The kinds of Hybrid. The second key exchange is of P-256, which costs little; with HybridMLKEM it
// is ML-KEM-768.
const (
	HybridNone  Hybrid = iota
	HybridIKE          // of the IKE SA: IKE_INTERMEDIATE, and IKE_FOLLOWUP_KE when it is rekeyed
	HybridChild        // of CHILD SAs
	HybridBoth
	HybridMLKEM // both
	HybridThree // both, with a third one
)

// OpKind is something that happens to a node.
type OpKind string

// What can happen.
const (
	OpInitiate    OpKind = "initiate"       // CHILD SA N%2 with Peer
	OpRekeyChild  OpKind = "rekey child"    // the N-th
	OpRekeyIKE    OpKind = "rekey ike"      // the N-th
	OpDeleteChild OpKind = "delete child"   // the N-th
	OpTerminate   OpKind = "terminate"      // the connection with Peer
	OpQueues      OpKind = "want queues"    // N%5 with Peer
	OpCut         OpKind = "cut"            // the link to Peer
	OpHeal        OpKind = "heal"           // all links
	OpRestart     OpKind = "restart"        // all state is lost
	OpPause       OpKind = "pause"          // for N ms nothing happens there, and what comes in is lost
	OpClock       OpKind = "clock jump"     // by N ms; negative numbers go back
	OpNAT         OpKind = "nat change"     // the NAT in front of node 0 gives it another port
	OpTokenSlow   OpKind = "slow token"     // signatures take N ms
	OpTokenFail   OpKind = "token fails"    // N odd: signatures fail; even: no more
	OpReplay      OpKind = "replay"         // an old datagram to the node comes again
	OpReflect     OpKind = "reflect"        // an old datagram of the node comes back to it
	OpSpoof       OpKind = "spoof"          // the node hears, without protection, that its SPI is unknown
	OpForge       OpKind = "forge"          // the node sends Peer something that only a hostile one sends
	OpPolicy      OpKind = "policy"         // the connections are handed over again: the same, new ones with the same rights, without that with Peer
	OpReauth      OpKind = "reauthenticate" // the N-th IKE SA
	OpMutate      OpKind = "mutate"         // the next message under keys is changed inside, after N%8 that are not
)

// What can happen to addresses. The NAT of OpNAT is any that there is.
const (
	OpAddrs   OpKind = "addresses"    // the node has others, see run.roam
	OpCutPath OpKind = "cut path"     // between one address of the node and one of Peer
	OpNATGoes OpKind = "nat goes"     // the one in front of the N-th address
	OpSteal   OpKind = "other source" // the next datagram of the node comes from elsewhere
)

// What can happen to strangers, gateways and TCP connections.
const (
	OpFlood         OpKind = "flood"          // spoofed IKE_SA_INIT requests come to the node
	OpRedirect      OpKind = "redirect"       // the node sends initiators elsewhere, see run.redirect
	OpFalseRedirect OpKind = "false redirect" // somebody else does, who has not seen the node's IKE_SA_INIT request
	OpNoUDP         OpKind = "no UDP"         // N odd: no UDP gets through; even: it does
	OpBreakTCP      OpKind = "break TCP"      // connections of the node
)

// Op is something that happens at a time.
type Op struct {
	At   time.Duration // since the beginning
	Kind OpKind
	Node int
	Peer int
	N    int64
	Data []byte `json:",omitempty"` // of OpMutate: what to change; random, when it is used up
}

// Drop loses the first request, or response, that a node sends under keys from a time on.
type Drop struct {
	After    time.Duration
	Node     int
	Response bool
}

func (o Op) String() string {
	return fmt.Sprintf("%s (node %c, peer %c, %d)", o.Kind, 'A'+o.Node, 'A'+o.Peer, o.N)
}

// Hostile tells whether a node breaks the rules: then nodes need not agree, but what holds for
// each of them must still hold.
func (p *Plan) Hostile() bool {
	return slices.ContainsFunc(p.Ops, func(o Op) bool { return o.Kind == OpForge || o.Kind == OpMutate })
}

// connections is how many connections two nodes have with each other.
func (p *Plan) connections() int {
	if p.Second {
		return 2
	}
	return 1
}

// mobile tells whether nodes know their addresses, which may change.
func (p *Plan) mobile() bool { return p.Addrs != [2]int{} }

// JSON returns the plan as it is kept in testdata.
func (p *Plan) JSON() []byte {
	b, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		panic(err) // it holds nothing that cannot be encoded
	}
	return append(b, '\n')
}

// ParsePlan reads what JSON returned.
func ParsePlan(b []byte) (*Plan, error) {
	p := &Plan{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	if p.Nodes < 2 || p.Nodes > maxNodes {
		return nil, fmt.Errorf("plan: expected 2 to %d nodes, got %d", maxNodes, p.Nodes)
	}
	return p, nil
}

const maxNodes = 5

// NewPlan makes the plan of a seed.
func NewPlan(seed uint64) *Plan {
	r := rand.New(rand.NewPCG(seed, 0x706c616e))
	ms := func(n int) time.Duration { return time.Duration(r.IntN(n)) * time.Millisecond }
	p := &Plan{
		Seed: seed, Nodes: 2, Auth: AuthPSK,
		Liveness: 5*time.Second + ms(25000), Retransmit: 400*time.Millisecond + ms(600),
		Queues: [2]int{r.IntN(5), r.IntN(5)}, Machine: [2]int{r.IntN(5), r.IntN(5)},
		PFS: r.IntN(8) == 0, Groups: r.IntN(8) == 0, CutAtEnd: r.IntN(3) == 0,
		Link: Link{Delay: ms(60), Jitter: ms(200)},
	}
	if r.IntN(6) == 0 {
		p.Nodes = 3 + r.IntN(maxNodes-2)
	}
	switch r.IntN(24) {
	case 0:
		p.Auth = AuthCert2
	case 1, 2, 3, 4, 5:
		p.Auth = AuthPSK2
	}
	if r.IntN(4) == 0 {
		p.RekeyChild = 8*time.Second + ms(60000)
	}
	if r.IntN(4) == 0 {
		p.RekeyIKE = 8*time.Second + ms(90000)
	}
	switch v := r.IntN(100); {
	case v == 0:
		p.Hybrid = HybridMLKEM
	case v == 1:
		p.Hybrid = HybridThree
	case v < 6:
		p.Hybrid = HybridIKE
	case v < 14:
		p.Hybrid = HybridChild
	case v < 18:
		p.Hybrid = HybridBoth
	}
	p.Crash, p.Hearing = r.IntN(4) == 0, r.IntN(2) == 0
	if r.IntN(6) == 0 {
		p.PPK = [2]bool{r.IntN(3) > 0, r.IntN(3) > 0}
	}
	if r.IntN(6) == 0 {
		p.Childless = [2]bool{r.IntN(3) > 0, r.IntN(3) > 0}
	}
	p.Tickets = r.IntN(4) == 0
	if r.IntN(10) == 0 {
		p.Reauth = 20*time.Second + ms(60000)
	}
	if p.Nodes > 2 {
		// Many IKE SAs must not always be at it.
		p.RekeyChild, p.RekeyIKE, p.Reauth = 4*p.RekeyChild, 4*p.RekeyIKE, 4*p.Reauth
	}
	p.Fragments = p.Auth == AuthCert2 && r.IntN(2) == 0
	if r.IntN(5) == 0 {
		p.traffic(r)
		return p
	}
	p.NAT = r.IntN(8) == 0
	if r.IntN(6) == 0 {
		p.roaming(r)
	}
	p.more(r)
	if r.IntN(4) > 0 {
		p.Link.Loss = float64(r.IntN(35)) / 100
		p.Link.Dup = float64(r.IntN(30)) / 100
	}
	if p.Fragments && r.IntN(2) == 0 {
		p.Link.MTU = 600
	}
	kinds := []OpKind{
		OpInitiate, OpInitiate, OpRekeyChild, OpRekeyChild, OpRekeyChild, OpRekeyIKE, OpRekeyIKE,
		OpDeleteChild, OpQueues,
	}
	if r.IntN(2) == 0 {
		kinds = append(kinds, OpTerminate)
	}
	for _, some := range [][]OpKind{
		{OpCut, OpHeal},
		{OpRestart},
		{OpPause},
		{OpClock},
		{OpTokenSlow, OpTokenFail},
		{OpReplay, OpReplay, OpReflect},
		{OpSpoof},
		{OpPolicy},
		{OpForge, OpForge, OpForge},
		{OpMutate, OpMutate, OpMutate},
		{OpReauth},
		{OpQueues, OpQueues, OpQueues, OpQueues, OpQueues},
	} {
		if r.IntN(6) == 0 {
			kinds = append(kinds, some...)
		}
	}
	if p.NAT {
		kinds = append(kinds, OpNAT)
	}
	if p.mobile() {
		kinds = append(kinds, OpAddrs, OpAddrs, OpAddrs, OpAddrs, OpCutPath, OpHeal)
		for _, some := range [][]OpKind{{OpNAT, OpNATGoes}, {OpCutPath, OpCutPath}, {OpReplay, OpReplay}, {OpSteal, OpSteal}} {
			if r.IntN(3) == 0 {
				kinds = append(kinds, some...)
			}
		}
	}
	kinds = append(kinds, p.moreKinds()...)
	p.Ops = append(p.Ops, Op{Kind: OpInitiate, Node: r.IntN(2), N: int64(r.IntN(2))})
	p.Ops[0].Peer = 1 - p.Ops[0].Node
	if p.Config {
		p.Ops[0].Node, p.Ops[0].Peer = 0, 1
	}
	at := time.Duration(0)
	if slices.Contains(kinds, OpForge) && r.IntN(2) == 0 {
		// Before the other end is convinced.
		at = p.Link.Delay*time.Duration(2+r.IntN(5)) + ms(200)
		p.Ops = append(p.Ops, randomOp(r, p, OpForge, at))
		p.Ops[1].Node, p.Ops[1].Peer = p.Ops[0].Node, p.Ops[0].Peer
	} else if p.Redirect && r.IntN(2) == 0 {
		at = p.Link.Delay
		p.Ops = append(p.Ops, Op{At: at, Kind: OpFalseRedirect, Node: p.Ops[0].Node, Peer: p.Ops[0].Peer})
	} else if p.Tickets || r.IntN(3) > 0 {
		at = 3 * time.Second // what comes next finds it up
	}
	if p.Tickets && r.IntN(2) == 0 {
		// Both lose each other, and one comes back with its ticket.
		n := p.Ops[0]
		at = 70*time.Second + ms(20000)
		p.Ops = append(p.Ops, Op{At: 4 * time.Second, Kind: OpCut, Node: n.Node, Peer: n.Peer, N: 1}, Op{At: at, Kind: OpHeal, Node: n.Node, Peer: n.Peer})
		n.At = at
		p.Ops = append(p.Ops, n)
	}
	for range 4 + r.IntN(14) {
		// Most crossings happen within a round trip.
		at += ms([]int{1, 3, 30, 150, 400, 3000, 20000}[r.IntN(7)])
		p.Ops = append(p.Ops, randomOp(r, p, kinds[r.IntN(len(kinds))], at))
	}
	return p
}

func randomOp(r *rand.Rand, p *Plan, k OpKind, at time.Duration) Op {
	o := Op{At: at, Kind: k, Node: r.IntN(p.Nodes), N: int64(r.IntN(1000))}
	o.Peer = (o.Node + 1 + r.IntN(p.Nodes-1)) % p.Nodes
	switch k {
	case OpPause:
		o.N = int64(r.IntN(20000))
	case OpClock:
		o.N = int64(r.IntN(30000)) - 15000
		if r.IntN(4) == 0 {
			o.N = int64(r.IntN(4000000))
		}
	case OpTokenSlow:
		o.N = int64(r.IntN(3000))
	case OpReplay, OpReflect, OpForge, OpMutate, OpFlood:
		o.N = r.Int64N(1 << 40)
	default:
	}
	return o
}

// roaming gives the nodes several addresses, and MOBIKE.
func (p *Plan) roaming(r *rand.Rand) {
	p.Addrs = [2]int{1 + r.IntN(maxAddrs), 1 + r.IntN(maxAddrs)}
	p.Mobike = [2]bool{r.IntN(8) > 0, r.IntN(8) > 0}
	if p.Traffic {
		p.Mobike = [2]bool{true, true}
	}
}

// more is what few plans have.
func (p *Plan) more(r *rand.Rand) {
	p.Second = r.IntN(8) == 0
	if r.IntN(8) == 0 {
		p.wary(r)
	}
	if r.IntN(10) == 0 {
		p.Redirect = true
		if !p.mobile() && r.IntN(2) == 0 {
			p.Addrs = [2]int{1 + r.IntN(maxAddrs), 1 + r.IntN(maxAddrs)}
		}
		if r.IntN(2) == 0 {
			p.Twin, p.Nodes = true, 3
		}
	}
	p.Config = r.IntN(10) == 0
	if r.IntN(12) == 0 && !p.NAT {
		p.TCP = [2]uint8{uint8(r.IntN(3)), uint8(r.IntN(3))}
	}
}

// wary has nodes ask for cookies, and for solutions of puzzles, as soon as a few IKE SAs are half-open.
func (p *Plan) wary(r *rand.Rand) {
	p.Cookies = []int{-1, 1, 2, 3}[r.IntN(4)]
	switch r.IntN(4) {
	case 0:
		p.Puzzles = p.Cookies
	case 1:
		p.Puzzles = max(p.Cookies, 0) + 1 + r.IntN(2)
	}
}

// moreKinds is what happens there.
func (p *Plan) moreKinds() (kinds []OpKind) {
	if p.Cookies != 0 {
		kinds = append(kinds, OpFlood, OpFlood, OpInitiate, OpTerminate)
	}
	if p.Redirect {
		kinds = append(kinds, OpRedirect, OpRedirect, OpRedirect, OpRedirect, OpInitiate, OpTerminate, OpFalseRedirect)
	}
	if p.TCP != [2]uint8{} {
		kinds = append(kinds, OpNoUDP, OpNoUDP, OpBreakTCP, OpBreakTCP, OpInitiate, OpTerminate)
	}
	if p.Second || p.Config {
		kinds = append(kinds, OpInitiate, OpInitiate)
	}
	return kinds
}

// traffic makes p a plan whose packets all arrive.
func (p *Plan) traffic(r *rand.Rand) {
	p.Traffic, p.Nodes = true, 2
	p.Link.Dup = float64(r.IntN(30)) / 100
	if p.LoseOnce = r.IntN(2) == 0; p.LoseOnce {
		p.Link.Loss = float64(r.IntN(30)) / 100
	}
	p.Ops = []Op{{Kind: OpInitiate, Node: 0, Peer: 1}}
	if r.IntN(8) == 0 {
		p.wary(r)
		p.Ops = []Op{randomOp(r, p, OpFlood, 0), p.Ops[0]}
		p.Ops[0].Node = 1
	}
	if p.Queues[0] > 1 && p.Queues[1] > 1 && r.IntN(2) == 0 {
		o := Op{Kind: OpQueues, At: 6 * time.Second, Node: r.IntN(2), N: 4}
		o.Peer = 1 - o.Node
		p.Ops = append(p.Ops, o)
	}
	if r.IntN(4) == 0 {
		p.roaming(r)
	}
	at := 12 * time.Second
	for range 3 + r.IntN(8) {
		at += time.Duration(r.IntN([]int{3, 30, 150, 400, 3000}[r.IntN(5)])) * time.Millisecond
		k := OpRekeyChild
		switch v := r.IntN(12); {
		case v > 7 && p.mobile():
			k = OpAddrs
		case v < 4:
			k = OpRekeyIKE
		case v == 4 && !p.LoseOnce:
			// Where losses come together, the old IKE SA may take longer to go than packets are
			// accepted on it after its end.
			k = OpReauth
		}
		p.Ops = append(p.Ops, randomOp(r, p, k, at))
	}
	slices.SortStableFunc(p.Ops, func(a, b Op) int { return cmp.Compare(a.At, b.At) })
}
