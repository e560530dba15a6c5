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

	more sync.Map // of further addresses: netip.AddrPort → *net.UDPConn
	data *plane   // our ESP

	tun atomic.Pointer[dataPath] // our ESP in place of data, where it is set

	lag     atomic.Int64           // nanoseconds that every IKE message takes on its way, in each direction
	arrival atomic.Pointer[func()] // called once, when a message of strongSwan's is there, which is taken up a lag later

	sent atomic.Pointer[[]byte] // the next IKE message of ours goes there, too

	requests atomic.Int64 // requests of ours, with the repeated ones
	messages atomic.Int64 // IKE messages of both ends

	mu       sync.Mutex
	ike      map[ike.SAID]ike.SAInfo
	children map[ike.ChildID]ike.ChildSA
	switched map[ike.ChildID]bool
	downs    []ike.Reason
	ends     []ike.Reason
	refusals []ike.Refusal
	failed   []error
}

type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }
func (realClock) AfterFunc(d time.Duration, f func()) func() {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}

func newDriver(t *testing.T, w *wire, change func(*ike.Config), peers ...*ike.PeerConfig) *driver {
	t.Helper()
	d := &driver{
		t: t, ike: map[ike.SAID]ike.SAInfo{}, children: map[ike.ChildID]ike.ChildSA{}, switched: map[ike.ChildID]bool{},
		plain: listen(t, w.ours, netip.AddrPortFrom(w.our, 500)), natt: listen(t, w.ours, netip.AddrPortFrom(w.our, 4500)),
	}
	d.data = newPlane(d)
	c := ike.Config{
		Clock: realClock{}, Rand: rand.Reader, Owner: d,
		Send: d.send, SendKeepalive: func(p ike.Path) { _, _ = d.socket(p).WriteToUDPAddrPort([]byte{0xff}, p.Remote) },
		SourceAddr: func(netip.Addr) netip.Addr { return w.our },
	}
	if change != nil {
		change(&c)
	}
	var err error
	if d.ep, err = ike.NewEndpoint(c); err != nil {
		t.Fatal(err)
	}
	if err := d.ep.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	go d.receive(d.plain, netip.AddrPortFrom(w.our, 500), false)
	go d.receive(d.natt, netip.AddrPortFrom(w.our, 4500), true)
	t.Cleanup(func() {
		// An IKE SA that the peer has deleted stays for a second, to answer the Delete again.
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
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
	d.messages.Add(1)
	if msg[19]&0x20 == 0 { // the flag of a response
		d.requests.Add(1)
	}
	msg = bytes.Clone(msg)
	if first := d.sent.Swap(nil); first != nil {
		*first = msg
	}
	d.later(func() { d.write(p, msg) })
}

func (d *driver) write(p ike.Path, msg []byte) {
	if p.Encap {
		msg = append([]byte{0, 0, 0, 0}, msg...)
	}
	_, _ = d.socket(p).WriteToUDPAddrPort(msg, p.Remote)
}

// socket returns the one that packets on a path leave from.
func (d *driver) socket(p ike.Path) *net.UDPConn {
	port := uint16(500)
	if p.Encap {
		port = 4500
	}
	if c, ok := d.more.Load(netip.AddrPortFrom(p.Local.Addr(), port)); ok {
		return c.(*net.UDPConn)
	}
	if p.Encap {
		return d.natt
	}
	return d.plain
}

// onArrival has f called when the nth message of strongSwan's from now on has arrived, but was not taken up
// yet. Meanwhile whatever we begin crosses it.
func (d *driver) onArrival(n int, f func()) {
	var seen atomic.Int32
	g := func() {
		if int(seen.Add(1)) == n {
			d.arrival.Store(nil)
			f()
		}
	}
	d.arrival.Store(&g)
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
				if p := d.tun.Load(); p != nil {
					p.open(bytes.Clone(msg), true)
				} else if n > 5 { // and no keepalive
					d.data.receive(bytes.Clone(msg))
				}
				continue
			}
			msg = msg[4:]
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		msg = bytes.Clone(msg)
		d.messages.Add(1)
		if f := d.arrival.Load(); f != nil {
			(*f)()
		}
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
	if p := d.tun.Load(); p != nil {
		p.up(c)
	} else {
		d.data.up(c)
	}
	d.locked(func() { d.children[c.ID] = c; d.switched[c.ID] = c.SendNow })
}

func (d *driver) ChildSwitch(id ike.ChildID) {
	if p := d.tun.Load(); p != nil {
		p.switched(id)
	}
	d.data.change(func(o *outbound) { o.use = o.use || o.id == id })
	d.locked(func() { d.switched[id] = true })
}

func (d *driver) ChildDown(id ike.ChildID, r ike.Reason) {
	if p := d.tun.Load(); p != nil {
		p.down(id, r.Rekeyed)
	}
	d.data.down(id, r.Rekeyed)
	d.locked(func() { delete(d.children, id); d.downs = append(d.downs, r) })
}

func (d *driver) PathChanged(id ike.SAID, path ike.Path) {
	d.data.change(func(o *outbound) {
		if o.sa == id {
			o.path = path
		}
	})
}

func (d *driver) Refused(r ike.Refusal) {
	d.t.Logf("refused: %s: %s: %v", r.Code, r.Text, r.Err)
	d.locked(func() { d.refusals = append(d.refusals, r) })
}

func (d *driver) InitiateFailed(peer, child string, err error) {
	d.t.Logf("initiate failed: %s %s: %v", peer, child, err)
	d.locked(func() { d.failed = append(d.failed, err) })
}

// patience is how long anything may take; what hangs is all that it is there for.
const patience = 30 * time.Second

// wait polls until f, under the lock, is true.
func (d *driver) wait(what string, f func() bool) {
	d.t.Helper()
	end := time.Now().Add(patience)
	for {
		var ok bool
		d.locked(func() { ok = f() })
		if ok {
			return
		}
		if time.Now().After(end) {
			d.t.Fatalf("waited %v for: %s; %s", patience, what, d.state())
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
