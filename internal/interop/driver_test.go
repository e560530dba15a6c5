package interop

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wardgate/ike"
)

// driver is an Endpoint on two real UDP sockets, with an Owner that keeps books.
type driver struct {
	t     *testing.T
	ep    *ike.Endpoint
	plain *net.UDPConn // port 500
	natt  *net.UDPConn // port 4500

	more map[netip.AddrPort]*net.UDPConn // of further addresses; under mu

	lag atomic.Int64 // nanoseconds that every IKE message takes on its way, in each direction

	mu       sync.Mutex
	ike      map[ike.SAID]ike.SAInfo
	children map[ike.ChildID]ike.ChildSA
	switched map[ike.ChildID]bool
	downs    []ike.Reason
	ends     []ike.Reason
	refusals []ike.Refusal
	failed   []error
	esp      int
}

type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }
func (realClock) AfterFunc(d time.Duration, f func()) func() {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}

func newDriver(t *testing.T, w *wire, peers ...*ike.PeerConfig) *driver {
	t.Helper()
	d := &driver{
		t: t, ike: map[ike.SAID]ike.SAInfo{}, children: map[ike.ChildID]ike.ChildSA{}, switched: map[ike.ChildID]bool{},
		plain: listen(t, w.ours, netip.AddrPortFrom(w.our, 500)), natt: listen(t, w.ours, netip.AddrPortFrom(w.our, 4500)),
	}
	var err error
	d.ep, err = ike.NewEndpoint(ike.Config{
		Clock: realClock{}, Rand: rand.Reader, Owner: d,
		Send: d.send, SendKeepalive: func(p ike.Path) { _, _ = d.natt.WriteToUDPAddrPort([]byte{0xff}, p.Remote) },
		SourceAddr: func(netip.Addr) netip.Addr { return w.our },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.ep.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	go d.receive(d.plain, netip.AddrPortFrom(w.our, 500), false)
	go d.receive(d.natt, netip.AddrPortFrom(w.our, 4500), true)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_ = d.ep.Close(ctx)
	})
	return d
}

// later runs f after the time that messages take.
func (d *driver) later(f func()) {
	if lag := d.lag.Load(); lag > 0 {
		time.AfterFunc(time.Duration(lag), f)
		return
	}
	f()
}

func (d *driver) send(p ike.Path, msg []byte) {
	msg = bytes.Clone(msg)
	d.later(func() { d.write(p, msg) })
}

func (d *driver) write(p ike.Path, msg []byte) {
	d.mu.Lock()
	c := d.more[p.Local]
	d.mu.Unlock()
	if c != nil {
		if p.Encap {
			msg = append([]byte{0, 0, 0, 0}, msg...)
		}
		_, _ = c.WriteToUDPAddrPort(msg, p.Remote)
		return
	}
	if p.Encap {
		_, _ = d.natt.WriteToUDPAddrPort(append([]byte{0, 0, 0, 0}, msg...), p.Remote)
		return
	}
	_, _ = d.plain.WriteToUDPAddrPort(msg, p.Remote)
}

func (d *driver) receive(c *net.UDPConn, local netip.AddrPort, natt bool) {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		msg := buf[:n]
		if natt {
			if n < 5 || !bytes.Equal(msg[:4], []byte{0, 0, 0, 0}) {
				d.mu.Lock()
				d.esp++
				d.mu.Unlock()
				continue
			}
			msg = msg[4:]
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		msg = bytes.Clone(msg)
		d.later(func() { d.ep.HandleDatagram(ike.Path{Local: local, Remote: from, Encap: natt}, msg) })
	}
}

func (d *driver) locked(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *driver) IKEUp(i ike.SAInfo) { d.locked(func() { d.ike[i.ID] = i }) }
func (d *driver) IKEDown(i ike.SAInfo, r ike.Reason) {
	d.locked(func() { delete(d.ike, i.ID); d.ends = append(d.ends, r) })
}

func (d *driver) ChildUp(c ike.ChildSA) {
	d.locked(func() { d.children[c.ID] = c; d.switched[c.ID] = c.SendNow })
}
func (d *driver) ChildSwitch(id ike.ChildID) { d.locked(func() { d.switched[id] = true }) }
func (d *driver) ChildDown(id ike.ChildID, r ike.Reason) {
	d.locked(func() { delete(d.children, id); d.downs = append(d.downs, r) })
}
func (d *driver) PathChanged(ike.SAID, ike.Path) {}
func (d *driver) Refused(r ike.Refusal) {
	d.t.Logf("refused: %s: %s: %v", r.Code, r.Text, r.Err)
	d.locked(func() { d.refusals = append(d.refusals, r) })
}

func (d *driver) InitiateFailed(peer, child string, err error) {
	d.t.Logf("initiate failed: %s %s: %v", peer, child, err)
	d.locked(func() { d.failed = append(d.failed, err) })
}

// wait polls until f, under the lock, is true.
func (d *driver) wait(what string, f func() bool) {
	d.t.Helper()
	end := time.Now().Add(10 * time.Second)
	for {
		var ok bool
		d.locked(func() { ok = f() })
		if ok {
			return
		}
		if time.Now().After(end) {
			d.t.Fatalf("waited 10 s for: %s; %s", what, d.state())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (d *driver) state() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fmt.Sprintf("%d IKE SAs, %d CHILD SAs, failed %v, ended %v, down %v", len(d.ike), len(d.children), d.failed, d.ends, d.downs)
}

// only returns the IKE SA and CHILD SA, of which there must be one each.
func (d *driver) only() (i ike.SAInfo, c ike.ChildSA) {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.ike) != 1 || len(d.children) != 1 {
		d.t.Fatalf("%d IKE SAs and %d CHILD SAs, want one each", len(d.ike), len(d.children))
	}
	for _, x := range d.ike {
		i = x
	}
	for _, x := range d.children {
		c = x
	}
	return i, c
}
