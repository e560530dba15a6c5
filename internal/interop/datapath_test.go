package interop

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"wardgate/esp"
	"wardgate/ike"
	"wardgate/internal/lab"
	"wardgate/tun"
)

// dataPath carries packets for a driver: between a TUN device and ESP, in UDP or as protocol 50. It
// is as simple as can be; wardgated's own is tested in internal/e2e.
type dataPath struct {
	d   *driver
	dev *tun.Device
	raw *net.IPConn

	mu      sync.Mutex
	sas     map[ike.ChildID]*tunnel
	newest  []*tunnel      // those to send on, the newest last
	native  int            // packets that came as protocol 50
	udp     int            // in UDP
	refused []error        // packets that were not opened
	early   int            // packets of CHILD SAs that came before the peer's answer about them
	strange map[uint32]int // packets of no CHILD SA, by SPI
}

// tunnel is one CHILD SA.
type tunnel struct {
	c   ike.ChildSA
	in  *esp.Inbound
	out *esp.Outbound
}

const tunDev = "wg0"

// attach gives the driver a data path with addresses on its TUN device, and routes through it.
func (d *driver) attach(n *lab.Netns, local netip.Addr, addrs, routes []string) {
	d.t.Helper()
	p := &dataPath{d: d, sas: map[ike.ChildID]*tunnel{}, strange: map[uint32]int{}}
	if err := n.Do(func() (err error) {
		if p.dev, err = tun.Open(tun.Options{Name: tunDev, MTU: 1400}); err != nil {
			return err
		}
		p.raw, err = net.ListenIP("ip4:50", &net.IPAddr{IP: local.AsSlice()})
		return err
	}); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = p.raw.Close(); _ = p.dev.Close() })
	if err := n.Addr(tunDev, addrs...); err != nil {
		d.t.Fatal(err)
	}
	for _, r := range routes {
		if err := n.IP("route", "add", r, "dev", tunDev); err != nil {
			d.t.Fatal(err)
		}
	}
	d.tun.Store(p)
	go p.outbound()
	go p.inbound()
}

func (p *dataPath) up(c ike.ChildSA) {
	params := esp.Params{Encr: c.Encr, Integ: c.Integ, KeyBits: c.KeyBits, ESN: c.ESN}
	params.SPI, params.Key, params.IntegKey = c.SPIIn, c.KeyIn, c.IntegIn
	in, err := esp.NewInbound(params)
	if err != nil {
		p.d.t.Errorf("inbound SA: %v", err)
		return
	}
	params.SPI, params.Key, params.IntegKey = c.SPIOut, c.KeyOut, c.IntegOut
	out, err := esp.NewOutbound(params)
	if err != nil {
		p.d.t.Errorf("outbound SA: %v", err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	x := &tunnel{c: c, in: in, out: out}
	p.sas[c.ID] = x
	p.early += p.strange[c.SPIIn]
	delete(p.strange, c.SPIIn)
	if c.SendNow {
		p.newest = append(p.newest, x)
	}
}

// use makes a CHILD SA the one to send on, once.
func (p *dataPath) use(x *tunnel) {
	if x != nil && !slices.Contains(p.newest, x) {
		p.newest = append(p.newest, x)
	}
}

func (p *dataPath) switched(id ike.ChildID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.use(p.sas[id])
}

// down stops sending on a CHILD SA. What is on its way still comes in on one that was replaced.
func (p *dataPath) down(id ike.ChildID, rekeyed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.sas[id]
	if !rekeyed {
		delete(p.sas, id)
	}
	p.newest = slices.DeleteFunc(p.newest, func(y *tunnel) bool { return y == x })
}

// outbound seals what comes out of the TUN device.
func (p *dataPath) outbound() {
	const head, room = 64, 2048
	bufs, sizes := make([][]byte, 16), make([]int, 16)
	for i := range bufs {
		bufs[i] = make([]byte, room)
	}
	for {
		// What is behind a packet has to fit too: an MTU of 1400 leaves enough.
		n, err := p.dev.Queues()[0].ReadBatch(bufs, sizes, head)
		if err != nil {
			return
		}
		for i := range n {
			p.send(bufs[i], head, sizes[i])
		}
	}
}

func (p *dataPath) send(buf []byte, off, n int) {
	dst, next := netip.AddrFrom4([4]byte(buf[off+16:off+20])), esp.NextIPv4
	if buf[off]>>4 == 6 {
		dst, next = netip.AddrFrom16([16]byte(buf[off+24:off+40])), esp.NextIPv6
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range slices.Backward(p.newest) {
		if !slices.ContainsFunc(x.c.RemoteTS, func(s ike.Selector) bool {
			return s.Start.Is4() == dst.Is4() && s.Start.Compare(dst) <= 0 && s.End.Compare(dst) >= 0
		}) {
			continue
		}
		start, end, err := x.out.Seal(buf, off, n, next)
		if err != nil {
			p.d.t.Errorf("seal: %v", err)
			return
		}
		// What cannot be sent is lost, as on any network.
		if x.c.Path.Encap {
			_, _ = p.d.natt.WriteToUDPAddrPort(buf[start:end], x.c.Path.Remote)
		} else {
			_, _ = p.raw.WriteToIP(buf[start:end], &net.IPAddr{IP: x.c.Path.Remote.Addr().AsSlice()})
		}
		return
	}
}

// inbound reads protocol 50; UDP comes from the driver.
func (p *dataPath) inbound() {
	buf := make([]byte, 65536)
	for {
		n, _, err := p.raw.ReadFromIP(buf)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
			return
		}
		if err == nil {
			p.open(bytes.Clone(buf[:n]), false)
		}
	}
}

func (p *dataPath) open(pkt []byte, udp bool) {
	if len(pkt) < 8 {
		return // a NAT keepalive
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if udp {
		p.udp++
	} else {
		p.native++
	}
	spi := uint32(pkt[0])<<24 | uint32(pkt[1])<<16 | uint32(pkt[2])<<8 | uint32(pkt[3])
	for _, x := range p.sas {
		if x.c.SPIIn != spi {
			continue
		}
		buf := append(make([]byte, tun.VirtioHeaderLen), pkt...)
		start, end, _, err := x.in.Open(buf, tun.VirtioHeaderLen, len(pkt))
		if err != nil {
			p.refused = append(p.refused, err)
			return
		}
		p.use(x)
		_, _ = p.dev.Queues()[0].WriteBatch([]tun.Packet{{Buf: buf, Off: start, Len: end - start}})
		return
	}
	p.strange[spi]++
}
