package ike_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// botnet are attackers with addresses of their own: they return every cookie and solve no puzzle.
type botnet struct {
	w      *iketest.World
	victim netip.AddrPort
	bots   int
	every  time.Duration // a request of each
	sa     message.Payloads
	spi    uint64
	sent   int
	stop   bool
}

func (n *botnet) addr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}), 500)
}

func (n *botnet) send(bot int, spi uint64, front ...message.Payload) {
	h := message.Header{Exchange: message.ExchangeIKESAInit, Flags: message.FlagInitiator}
	binary.BigEndian.PutUint64(h.SPIi[:], spi)
	raw, err := message.Encode(h, append(front, n.sa...))
	if err != nil {
		panic(err)
	}
	n.sent++
	n.w.Deliver(n.addr(bot), n.victim, raw)
}

// attack has all bots send, one after the other.
func (n *botnet) attack() {
	if n.stop {
		return
	}
	n.spi++
	n.send(int(n.spi)%n.bots, n.spi)
	n.w.AfterFunc(n.every/time.Duration(n.bots), n.attack)
}

// answered is told of what the victim sends to addresses that no node has.
func (n *botnet) answered(to netip.AddrPort, msg []byte) {
	m, err := message.Parse(msg)
	if err != nil || m.Payloads.SA() != nil {
		return
	}
	a := to.Addr().As4()
	if c := m.Payloads.Notifies(message.NotifyCookie); len(c) > 0 {
		bot, spi := int(a[2])<<8|int(a[3]), binary.BigEndian.Uint64(m.SPIi[:])
		n.w.AfterFunc(20*time.Millisecond, func() { n.send(bot, spi, c[0]) })
	}
}

// TestFloodOfBots: against attackers that return cookies, initiators that solve puzzles come up at once,
// every one of them, and those that cannot come up too, later; the table stays bounded, and when the flood is
// over everything is as it was.
func TestFloodOfBots(t *testing.T) {
	t.Parallel()
	const honest = 8
	w := iketest.New(1)
	w.Quiet = true
	newNode := func(name string, addr netip.Addr, edit func(*ike.Config)) *iketest.Node {
		n, err := w.NewNode(name, addr, edit)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const room = 192
	victim := newNode("V", addrB, func(c *ike.Config) {
		c.CookieThreshold, c.PuzzleThreshold, c.MaxHalfOpen, c.PuzzleDifficulty, c.PuzzleMaxDifficulty = 16, 32, room, 8, 12
	})
	f := facilities()
	var conns []*ike.PeerConfig
	nodes := map[bool][]*iketest.Node{}
	for i := range 2 * honest {
		solves := i%2 == 0
		addr := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
		id := fqdn(fmt.Sprintf("n%d.example", i))
		mine := connection(t, "v", f[0], f[1], f[0].groupA, f[1].groupA, addrB, fmt.Sprintf("10.1.%d.0/24", i), "10.2.0.0/24")
		theirs := connection(t, fmt.Sprintf("n%d", i), f[1], f[0], f[1].groupA, f[0].groupA, addr, "10.2.0.0/24", fmt.Sprintf("10.1.%d.0/24", i))
		psk(mine)
		psk(theirs)
		mine.LocalAuth[0].ID, theirs.RemoteAuth[0].IDs = id, []ike.Identity{id}
		mine.Retransmit, mine.RekeyIKE = ike.Retransmit{Initial: time.Second, Factor: 1.8, Tries: 5}, 10000*time.Hour
		theirs.RekeyIKE = mine.RekeyIKE
		n := newNode(theirs.Name, addr, func(c *ike.Config) {
			if !solves {
				c.SolveDifficulty = -1
			}
			cheap(c)
		})
		if err := n.Endpoint.SetPeers([]*ike.PeerConfig{mine}); err != nil {
			t.Fatal(err)
		}
		nodes[solves] = append(nodes[solves], n)
		conns = append(conns, theirs)
	}
	if err := victim.Endpoint.SetPeers(conns); err != nil {
		t.Fatal(err)
	}
	bots := &botnet{w: w, victim: netip.AddrPortFrom(addrB, 500), bots: 200, every: 500 * time.Millisecond}
	bots.sa = message.Payloads{
		&message.SA{Proposals: []message.Proposal{{Number: 1, Protocol: message.ProtocolIKE, Transforms: []message.Transform{
			message.NewTransform(message.TransformENCR, suite.EncrAESGCM16, 256), message.NewTransform(message.TransformPRF, suite.PRFHMACSHA384, 0), message.NewTransform(message.TransformKE, suite.KEX25519, 0),
		}}}},
		&message.KE{Method: message.KEMethod(suite.KEX25519), Data: append([]byte{9}, make([]byte, 31)...)},
		&message.Nonce{Data: make([]byte, 32)},
	}
	most := 0
	w.Tap = func(from, to netip.AddrPort, msg []byte) bool {
		most = max(most, victim.Endpoint.HalfOpen())
		if from.Addr() == addrB && to.Addr().As4()[0] == 100 {
			bots.answered(to, msg)
		}
		return true
	}
	bots.attack()
	w.For(15 * time.Second)
	begun := w.Now()
	for i := range honest {
		for _, solves := range []bool{true, false} {
			n := nodes[solves][i]
			w.AfterFunc(time.Duration(i)*time.Second, func() {
				if err := n.Endpoint.Initiate("v", "net"); err != nil {
					t.Error(err)
				}
			})
		}
	}
	up := func(solves bool) (n int) {
		for _, x := range nodes[solves] {
			n += min(len(x.Children), 1)
		}
		return n
	}
	w.For(honest*time.Second + 500*time.Millisecond)
	if n := up(true); n != honest {
		t.Errorf("%d of %d that solve puzzles came up at once", n, honest)
	}
	at := victim.Endpoint.Defence()
	if at.Level != ike.DefencePuzzle || at.Dropped < 1000 {
		t.Errorf("the flood is none: %+v", at)
	}
	for tries := 0; up(false) < honest && tries < 3; tries++ {
		w.For(time.Minute)
		for _, n := range nodes[false] {
			if len(n.Children) == 0 { // as traffic on demand does
				_ = n.Endpoint.Initiate("v", "net")
			}
		}
	}
	if n := up(false); n != honest {
		t.Errorf("%d of %d that solve no puzzles came up eventually", n, honest)
	}
	t.Logf("%d requests of bots in %v; at most %d half-open; %+v", bots.sent, w.Now().Sub(begun), most, victim.Endpoint.Defence())
	if most > room {
		t.Errorf("%d half-open IKE SAs, the limit is %d", most, room)
	}
	bots.stop = true
	w.For(time.Minute)
	if d := victim.Endpoint.Defence(); d.HalfOpen != 0 || d.ByLot != 0 || d.Level != ike.DefenceNone {
		t.Errorf("after the flood: %+v", d)
	}
	for _, n := range append(nodes[true], victim) {
		for _, v := range n.Violations {
			t.Error(v)
		}
	}
}
