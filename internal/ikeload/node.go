package ikeload

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"wardgate/esp"
	"wardgate/ike"
)

// Node is an Endpoint on the two UDP ports of one address.
type Node struct {
	*ike.Endpoint
	local       netip.Addr
	plain, natt *net.UDPConn

	mu       sync.Mutex                   // guards what follows; not held while over is called
	over     func(peer string, err error) // told of each CHILD SA that came up, and of each attempt that ended in nothing
	ikes     map[ike.SAID]struct{}
	resumed  int // IKE SAs that came up by a ticket
	children map[ike.ChildID]pair
	lastErr  error
}

// pair is what the data path keeps of a CHILD SA.
type pair struct {
	in  *esp.Inbound
	out *esp.Outbound
}

type wallClock struct{}

func (wallClock) Now() time.Time { return time.Now() }

func (wallClock) AfterFunc(d time.Duration, f func()) func() {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}

// socketBuffer is how much waits in the kernel, in octets: everybody's initiators start at once.
const socketBuffer = 4 << 20

// listen opens the sockets. inside, when it is not nil, calls its argument in the network namespace
// that they are to belong to.
func (n *Node) listen(inside func(func() error) error) error {
	if inside == nil {
		inside = func(f func() error) error { return f() }
	}
	return inside(func() (err error) {
		for _, s := range []struct {
			conn **net.UDPConn
			port uint16
		}{{&n.plain, 500}, {&n.natt, 4500}} {
			if *s.conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.local, s.port))); err != nil {
				return fmt.Errorf("ikeload: port %d of %v: %w", s.port, n.local, err)
			}
			if err := errors.Join((*s.conn).SetReadBuffer(socketBuffer), (*s.conn).SetWriteBuffer(socketBuffer)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Start opens the sockets and begins to receive. See listen for inside; edit, when it is not nil, may
// change the configuration.
func (n *Node) Start(local netip.Addr, inside func(func() error) error, peers []*ike.PeerConfig, edit func(*ike.Config)) error {
	n.local, n.ikes, n.children = local, map[ike.SAID]struct{}{}, map[ike.ChildID]pair{}
	var err error
	// Everybody comes from one address at once, which is what the bounds against strangers are for.
	const bound = 1 << 16
	cfg := ike.Config{
		Clock: wallClock{}, Rand: rand.Reader, Owner: (*owner)(n), Send: n.send,
		SourceAddr:      func(netip.Addr) netip.Addr { return local },
		CookieThreshold: bound, MaxHalfOpen: bound, MaxHalfOpenAddr: bound,
	}
	if edit != nil {
		edit(&cfg)
	}
	if n.Endpoint, err = ike.NewEndpoint(cfg); err != nil {
		return err
	}
	if err := n.SetPeers(peers); err != nil {
		return err
	}
	if err := n.listen(inside); err != nil {
		return err
	}
	go n.receive(n.plain, 500, false)
	go n.receive(n.natt, 4500, true)
	return nil
}

// Drop closes the sockets; nobody is told that the SAs are gone.
func (n *Node) Drop() error {
	var errs []error
	for _, c := range []*net.UDPConn{n.plain, n.natt} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// Counts returns how many IKE SAs and CHILD SAs stand, and what was refused last.
func (n *Node) Counts() (ikes, children int, last error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.ikes), len(n.children), n.lastErr
}

// Resumed returns how many IKE SAs came up by a ticket.
func (n *Node) Resumed() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.resumed
}

// FindDead has every IKE SA ask its peer something, and waits until all of them are dead, because the
// peer was restarted. Their tickets are left.
func (n *Node) FindDead(ctx context.Context) error {
	n.mu.Lock()
	all := slices.Collect(maps.Keys(n.ikes))
	n.mu.Unlock()
	for _, id := range all {
		if err := n.RekeyIKE(id); err != nil && !errors.Is(err, ike.ErrUnknownSA) {
			return err
		}
	}
	for {
		left, _, _ := n.Counts()
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d initiators do not find out that the responder was restarted: %w", left, len(all), ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (n *Node) send(p ike.Path, msg []byte) {
	c := n.plain
	if p.Encap {
		c = n.natt
		msg = append(make([]byte, esp.NonESPMarkerLen, esp.NonESPMarkerLen+len(msg)), msg...)
	}
	_, _ = c.WriteToUDPAddrPort(msg, p.Remote) // what is not sent is sent again
}

func (n *Node) receive(c *net.UDPConn, port uint16, natt bool) {
	buf := make([]byte, 65536)
	local := netip.AddrPortFrom(n.local, port)
	for {
		k, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error that came for something sent
		}
		msg := buf[:k]
		if natt {
			if k <= esp.NonESPMarkerLen || [4]byte(msg) != [4]byte{} {
				continue
			}
			msg = msg[esp.NonESPMarkerLen:]
		}
		n.HandleDatagram(ike.Path{Local: local, Remote: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), Encap: natt}, msg)
	}
}

// owner is what the Endpoint tells the Node.
type owner Node

func (o *owner) IKEUp(i ike.SAInfo) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ikes[i.ID] = struct{}{}
	if i.Resumed {
		o.resumed++
	}
}

func (o *owner) IKEDown(i ike.SAInfo, _ ike.Reason) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.ikes, i.ID)
}

func (o *owner) ChildUp(c ike.ChildSA) {
	in, err := esp.NewInbound(esp.Params{SPI: c.SPIIn, Encr: c.Encr, Integ: c.Integ, KeyBits: c.KeyBits, ESN: c.ESN, Key: c.KeyIn, IntegKey: c.IntegIn})
	var out *esp.Outbound
	if err == nil {
		out, err = esp.NewOutbound(esp.Params{SPI: c.SPIOut, Encr: c.Encr, Integ: c.Integ, KeyBits: c.KeyBits, ESN: c.ESN, Key: c.KeyOut, IntegKey: c.IntegOut})
	}
	for _, k := range [][]byte{c.KeyIn, c.KeyOut, c.IntegIn, c.IntegOut} {
		clear(k)
	}
	o.mu.Lock()
	if err != nil {
		o.lastErr = err
	} else {
		o.children[c.ID] = pair{in, out}
	}
	over := o.over
	o.mu.Unlock()
	if over != nil {
		over(c.Peer, err)
	}
}

func (o *owner) ChildSwitch(ike.ChildID) {}

func (o *owner) ChildDown(id ike.ChildID, _ ike.Reason) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.children, id)
}

func (o *owner) PathChanged(ike.SAID, ike.Path) {}

func (o *owner) Refused(r ike.Refusal) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lastErr = fmt.Errorf("refused: %s: %s", r.Code, r.Text)
}

func (o *owner) InitiateFailed(peer, _ string, err error) {
	o.mu.Lock()
	o.lastErr = err
	over := o.over
	o.mu.Unlock()
	if over != nil {
		over(peer, err)
	}
}
