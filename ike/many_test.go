package ike_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"wardgate/ike"
	"wardgate/ike/iketest"
	"wardgate/ike/suite"
)

// manySAs is how many IKE SAs TestManyIKESAs makes, each with two ends in this process:
// WARDGATE_MANY_SAS in the environment (`make sim-many SAS=…`), or few.
func manySAs(few int) int {
	if v, err := strconv.Atoi(os.Getenv("WARDGATE_MANY_SAS")); err == nil && v > 0 {
		return v
	}
	return few
}

// manyOwner keeps books of very many SAs: little of each, so that the memory measured is the endpoint's.
type manyOwner struct {
	t                          *testing.T
	name                       string
	ikes                       map[ike.SAID]struct{}
	children                   map[ike.ChildID]manyChild
	ikeUps, childUps, rekeys   int
	ikesLost, childrenLost     int // that ended for another reason than a newer one, before the end
	ending                     bool
	refused, failed, unnatural int
}

// manyChild is the keys of a CHILD SA by their sum, so that both ends can be compared.
type manyChild struct {
	spiIn, spiOut uint32
	keys          [8]byte
}

func (o *manyOwner) IKEUp(i ike.SAInfo) {
	o.ikeUps++
	o.ikes[i.ID] = struct{}{}
}

func (o *manyOwner) IKEDown(i ike.SAInfo, r ike.Reason) {
	if _, ok := o.ikes[i.ID]; !ok {
		o.unnatural++
	}
	delete(o.ikes, i.ID)
	if !o.ending && o.ikesLost == 0 {
		o.t.Errorf("%s: IKE SA %d of %s ended: %s: %s", o.name, i.ID, i.Peer, r.Code, r.Text)
	}
	if !o.ending {
		o.ikesLost++
	}
}

func (o *manyOwner) ChildUp(c ike.ChildSA) {
	o.childUps++
	if c.Replaces != 0 {
		o.rekeys++
	}
	if _, ok := o.ikes[c.SA]; !ok || bytes.Equal(c.KeyIn, c.KeyOut) {
		o.unnatural++
	}
	k := manyChild{spiIn: c.SPIIn, spiOut: c.SPIOut}
	a, b := c.KeyIn, c.KeyOut
	if bytes.Compare(a, b) > 0 {
		a, b = b, a
	}
	sum := sha256.Sum256(append(bytes.Clone(a), b...))
	copy(k.keys[:], sum[:])
	o.children[c.ID] = k
}

func (o *manyOwner) ChildSwitch(ike.ChildID) {}

func (o *manyOwner) ChildDown(id ike.ChildID, r ike.Reason) {
	if _, ok := o.children[id]; !ok {
		o.unnatural++
	}
	delete(o.children, id)
	if !o.ending && !r.Rekeyed {
		o.childrenLost++
	}
}

func (o *manyOwner) PathChanged(ike.SAID, ike.Path) { o.unnatural++ }

func (o *manyOwner) Refused(r ike.Refusal) {
	if o.refused++; o.refused == 1 {
		o.t.Errorf("%s: refused: %s: %s: %v", o.name, r.Code, r.Text, r.Err)
	}
}

func (o *manyOwner) InitiateFailed(peer, child string, err error) {
	if o.failed++; o.failed == 1 {
		o.t.Errorf("%s: %s/%s: %v", o.name, peer, child, err)
	}
}

// manyWorld is two endpoints with a connection for each IKE SA.
type manyWorld struct {
	t     *testing.T
	w     *iketest.World
	nodes [2]*iketest.Node // initiator, responder
	own   [2]*manyOwner
	names []string
}

// The lifetimes: within an hour each IKE SA gets new keys once, and each CHILD SA too.
const (
	manyRekeyIKE   = 50 * time.Minute
	manyRekeyChild = 35 * time.Minute
	manyLiveness   = 5 * time.Minute
)

func newManyWorld(t *testing.T, n int) *manyWorld {
	t.Helper()
	m := &manyWorld{t: t, w: iketest.New(uint64(n))}
	m.w.Quiet = true
	addrs := [2]netip.Addr{addrA, addrB}
	for i, addr := range addrs {
		m.own[i] = &manyOwner{t: t, name: string(rune('A' + i)), ikes: map[ike.SAID]struct{}{}, children: map[ike.ChildID]manyChild{}}
		node, err := m.w.NewNode(m.own[i].name, addr, func(c *ike.Config) { c.Owner = m.own[i] })
		if err != nil {
			t.Fatal(err)
		}
		m.nodes[i] = node
	}
	ikes, esps := proposals(t, suite.ProtocolIKE, defaultIKE), proposals(t, suite.ProtocolESP, defaultESP)
	key, b := []byte("a secret of all of them"), fqdn("b.example")
	remote := []netip.AddrPort{netip.AddrPortFrom(addrB, 500)}
	netB := prefix("10.0.0.0/8")
	var peers [2][]*ike.PeerConfig
	for i := range n {
		name, a := fmt.Sprintf("c%d", i), fqdn(fmt.Sprintf("a%d.example", i))
		netA := []ike.Selector{ike.PrefixSelector(netip.PrefixFrom(netip.AddrFrom4([4]byte{11 + byte(i>>16), byte(i >> 8), byte(i), 0}), 24))}
		m.names = append(m.names, name)
		for end := range peers {
			ids, nets := [2]ike.Identity{a, b}, [2][]ike.Selector{netA, netB}
			c := &ike.PeerConfig{
				Name: name, Proposals: ikes,
				LocalAuth:  []ike.LocalAuth{{ID: ids[end], PSK: key}},
				RemoteAuth: []ike.RemoteAuth{{IDs: []ike.Identity{ids[1-end]}, PSK: key, RelatedToRound: -1}},
				Children:   []ike.ChildConfig{{Name: "net", LocalTS: nets[end], RemoteTS: nets[1-end], Proposals: esps}},
				RekeyIKE:   manyRekeyIKE, RekeyChild: manyRekeyChild, LivenessInterval: manyLiveness,
			}
			if end == 0 {
				c.Remote = remote
			}
			peers[end] = append(peers[end], c)
		}
	}
	for i := range m.nodes {
		if err := m.nodes[i].Endpoint.SetPeers(peers[i]); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// heapInUse is what is in use after a collection, stacks included.
func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what pools held is gone after the second
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// agree expects so many IKE and CHILD SAs at both ends, with the same keys.
func (m *manyWorld) agree(n int) {
	m.t.Helper()
	for _, o := range m.own {
		if len(o.ikes) != n || len(o.children) != n {
			m.t.Errorf("%s has %d IKE SAs and %d CHILD SAs, want %d", o.name, len(o.ikes), len(o.children), n)
		}
		if o.unnatural+o.childrenLost+o.ikesLost+o.refused+o.failed > 0 {
			m.t.Errorf("%s: %d IKE SAs and %d CHILD SAs ended, %d refusals, %d failures, %d calls that must not come",
				o.name, o.ikesLost, o.childrenLost, o.refused, o.failed, o.unnatural)
		}
	}
	byOut := map[uint32]manyChild{}
	for _, c := range m.own[0].children {
		byOut[c.spiOut] = c
	}
	for _, c := range m.own[1].children {
		if o, ok := byOut[c.spiIn]; !ok || o.spiIn != c.spiOut || o.keys != c.keys {
			m.t.Errorf("the CHILD SA that B receives on with %08x is not one of A's with the same keys", c.spiIn)
			break
		}
	}
	if m.t.Failed() {
		m.t.FailNow()
	}
}

// TestManyIKESAs has very many IKE SAs with a CHILD SA each in one process, both ends of all of them.
// They come up, are idle for an hour with liveness checks, get new keys, and go away, and nothing is
// left. What each end of an IKE SA keeps in memory is bounded all the time.
func TestManyIKESAs(t *testing.T) {
	n := manySAs(200)
	begun := time.Now()
	m := newManyWorld(t, n)
	before := heapInUse()
	perEnd := func() float64 { return float64(int64(heapInUse())-int64(before)) / float64(2*n) }
	note := func(what string, args ...any) {
		t.Logf("%6.1f s  %s", time.Since(begun).Seconds(), fmt.Sprintf(what, args...))
	}
	for i, name := range m.names {
		initiate(t, m.nodes[0], name)
		if i%32 == 31 || i == n-1 {
			m.w.For(25 * time.Millisecond)
		}
	}
	m.w.For(5 * time.Second)
	m.agree(n)
	up := perEnd()
	note("%d IKE SAs with a CHILD SA each stand, %.0f octets at each end", n, up)

	m.w.For(time.Hour)
	m.agree(n)
	idle := perEnd()
	for _, o := range m.own {
		if o.rekeys < n {
			t.Errorf("%s: %d CHILD SAs were rekeyed, want %d at least", o.name, o.rekeys, n)
		}
	}
	for _, node := range m.nodes {
		for _, s := range node.Endpoint.Snapshot() {
			if s.Rekeyed < 1 || len(s.Children) != 1 {
				t.Fatalf("%s: IKE SA %d was rekeyed %d times and has %d CHILD SAs", node.Name, s.ID, s.Rekeyed, len(s.Children))
			}
			if silent := m.w.Now().Sub(s.LastSeen); silent > 2*manyLiveness {
				t.Fatalf("%s: IKE SA %d heard nothing for %v", node.Name, s.ID, silent)
			}
		}
	}
	note("an hour later, all keys replaced, %.0f octets at each end", idle)
	for _, octets := range []float64{up, idle} {
		if octets > maxManyOctets {
			t.Errorf("%.0f octets at each end of an IKE SA, want %d at most", octets, maxManyOctets)
		}
	}
	for _, o := range m.own {
		o.ending = true
	}
	for i, name := range m.names {
		m.nodes[i%2].Endpoint.Terminate(name, "the end")
		if i%32 == 31 {
			m.w.For(time.Millisecond)
		}
	}
	m.w.For(time.Minute)
	m.agree(0)
	for _, node := range m.nodes {
		emptyTables(t, node)
	}
	note("all gone, %.0f octets left of each end", perEnd())
}

// maxManyOctets bounds the memory of one end of an idle IKE SA with a CHILD SA: half of what all of it may
// cost, because there are no certificates here, and no data path.
const maxManyOctets = 5000
