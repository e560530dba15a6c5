package router

import (
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"

	"wardgate/esp"
	"wardgate/ike"
	"wardgate/tun"
)

// childSA is one CHILD SA as the data path sees it: both directions, the selectors that were
// negotiated, and where its packets go.
type childSA struct {
	id    ike.ChildID
	sa    ike.SAID
	conn  *connection
	spiIn uint32
	queue int // RFC 9611: which of the SAs for the same selectors; 0: the first, which any queue may use
	suite string

	in  *esp.Inbound
	out *esp.Outbound

	localTS, remoteTS []ike.Selector

	path    atomic.Pointer[sendPath]
	spacing tun.Spacing // how inner packets lie so that their ESP packets are back to back

	// pending: made by a rekey that the peer began. The first authentic packet that comes in on it shows that
	// the peer has it, and makes it the one to send on (RFC 7296, section 2.8).
	pending atomic.Bool

	// asked: the soft limit was reached and IKE has been asked for a successor.
	asked atomic.Bool

	lastIn atomic.Int64 // nanoseconds on the router's clock of the last authentic packet
}

// sad is the security association database of the inbound side: SPI to CHILD SA. Reads take no
// lock; a change copies one shard, so that ten thousand SAs are set up in no time either.
type sad struct {
	mu     sync.Mutex // serialises changes
	shards [sadShards]atomic.Pointer[map[uint32]*childSA]
}

const sadShards = 256

func newSAD() *sad {
	s := &sad{}
	for i := range s.shards {
		s.shards[i].Store(&map[uint32]*childSA{})
	}
	return s
}

// shard picks by the middle bits: the low ones of an SPI may be the same for a whole queue.
func (s *sad) shard(spi uint32) *atomic.Pointer[map[uint32]*childSA] {
	return &s.shards[spi>>8%sadShards]
}

func (s *sad) lookup(spi uint32) *childSA { return (*s.shard(spi).Load())[spi] }

func (s *sad) add(c *childSA) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	shard := s.shard(c.spiIn)
	old := *shard.Load()
	if other := old[c.spiIn]; other != nil {
		return fmt.Errorf("inbound SPI %08x is already in use by CHILD SA %d", c.spiIn, other.id)
	}
	m := maps.Clone(old)
	m[c.spiIn] = c
	shard.Store(&m)
	return nil
}

func (s *sad) remove(c *childSA) {
	s.mu.Lock()
	defer s.mu.Unlock()
	shard := s.shard(c.spiIn)
	old := *shard.Load()
	if old[c.spiIn] != c {
		return
	}
	m := maps.Clone(old)
	delete(m, c.spiIn)
	shard.Store(&m)
}

// len returns how many SAs there are.
func (s *sad) len() int {
	n := 0
	for i := range s.shards {
		n += len(*s.shards[i].Load())
	}
	return n
}

// covers tells whether the selectors of the CHILD SA allow a packet of flow key k (RFC 4301,
// section 5.2: both ends and the protocol must match; ports of 0..65535 match what has none).
func (c *childSA) covers(p *packet, dir direction) bool {
	local, remote := p.src, p.dst
	localPort, remotePort := p.srcPort, p.dstPort
	if dir == inbound {
		local, remote = remote, local
		localPort, remotePort = remotePort, localPort
	}
	if p.proto == protoICMP || p.proto == protoICMPv6 {
		// RFC 7296, section 3.13.1: type and code are one 16-bit "port"
		localPort = p.srcPort<<8 | p.dstPort&0xff
		remotePort = localPort
	}
	return anySelector(c.localTS, local, p.proto, localPort, p.noPorts) &&
		anySelector(c.remoteTS, remote, p.proto, remotePort, p.noPorts)
}

func anySelector(sel []ike.Selector, a netip.Addr, proto uint8, port uint16, noPorts bool) bool {
	for i := range sel {
		s := &sel[i]
		if s.Proto != 0 && s.Proto != proto {
			continue
		}
		if a.BitLen() != s.Start.BitLen() || a.Less(s.Start) || s.End.Less(a) {
			continue
		}
		if s.StartPort == 0 && s.EndPort == 65535 || !noPorts && port >= s.StartPort && port <= s.EndPort {
			return true
		}
	}
	return false
}

// close wipes the keys of both directions.
func (c *childSA) close() {
	c.in.Close()
	c.out.Close()
}
