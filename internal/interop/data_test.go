package interop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"wardgate/esp"
	"wardgate/ike"
)

// plane is our end's ESP, always in UDP: what package router does, in small. It answers pings to any
// address of ours, and sends some.
type plane struct {
	d *driver

	mu     sync.Mutex // guards what follows; held while a packet is sealed and sent, so that none is sent late
	in     map[uint32]*inbound
	out    []*outbound // oldest first; the last one that may be used is
	seq    uint16      // of the pings
	asked  map[uint16]bool
	got    int // pings of ours that were answered
	served int // of strongSwan's
	errs   []error
	begun  bool

	unsent, unknown int // packets of ours with no CHILD SA to go by, and strongSwan's of SPIs that are not here
}

type inbound struct {
	*esp.Inbound
	id ike.ChildID
}

type outbound struct {
	*esp.Outbound
	id   ike.ChildID
	sa   ike.SAID
	path ike.Path
	use  bool
}

func newPlane(d *driver) *plane {
	return &plane{d: d, in: map[uint32]*inbound{}, asked: map[uint16]bool{}}
}

// up installs both directions. The keys are copied.
func (p *plane) up(c ike.ChildSA) {
	p.mu.Lock()
	defer p.mu.Unlock()
	in, err := esp.NewInbound(esp.Params{SPI: c.SPIIn, Encr: c.Encr, Integ: c.Integ, KeyBits: c.KeyBits, ESN: c.ESN, Key: c.KeyIn, IntegKey: c.IntegIn})
	out, err2 := esp.NewOutbound(esp.Params{SPI: c.SPIOut, Encr: c.Encr, Integ: c.Integ, KeyBits: c.KeyBits, ESN: c.ESN, Key: c.KeyOut, IntegKey: c.IntegOut})
	if err = errors.Join(err, err2); err != nil {
		p.errs = append(p.errs, err)
		return
	}
	p.in[c.SPIIn] = &inbound{in, c.ID}
	p.out = append(p.out, &outbound{Outbound: out, id: c.ID, sa: c.SA, path: c.Path, use: c.SendNow})
}

func (p *plane) change(f func(*outbound)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.out {
		f(o)
	}
}

// down removes a CHILD SA. What was under way when it was rekeyed may come in still.
func (p *plane) down(id ike.ChildID, rekeyed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out = slices.DeleteFunc(p.out, func(o *outbound) bool { return o.id == id })
	if !rekeyed {
		p.begun = p.begun && len(p.out) > 0
		for spi, in := range p.in {
			if in.id == id {
				delete(p.in, spi)
			}
		}
	}
}

// receive takes one ESP packet.
func (p *plane) receive(msg []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	spi, ok := esp.SPIOf(msg)
	in := p.in[spi]
	if !ok || in == nil {
		p.unknown++
		return
	}
	start, end, next, err := in.Open(msg, 0, len(msg))
	if err != nil {
		p.errs = append(p.errs, fmt.Errorf("ESP of SPI %08x: %w", spi, err))
		return
	}
	for _, o := range p.out { // what came in on it shows that the peer has it
		o.use = o.use || o.id == in.id
	}
	pkt := msg[start:end]
	src, dst, icmp := unwrap(next, pkt)
	switch {
	case icmp == nil:
	case icmp[0] == 8 || icmp[0] == 128: // echo request; 8 bits: ICMP and ICMPv6 do not overlap
		reply := echo(dst, src, false, icmp[4:])
		if p.send(reply) {
			p.served++
		}
	case icmp[0] == 0 || icmp[0] == 129:
		if seq := binary.BigEndian.Uint16(icmp[6:]); p.asked[seq] {
			delete(p.asked, seq)
			p.got++
		}
	}
}

// send encrypts a packet on the newest CHILD SA that may be used.
func (p *plane) send(pkt []byte) bool {
	for _, o := range slices.Backward(p.out) {
		if !o.use {
			continue
		}
		next := esp.NextIPv4
		if pkt[0]>>4 == 6 {
			next = esp.NextIPv6
		}
		buf := make([]byte, o.Headroom()+len(pkt)+o.Tailroom())
		copy(buf[o.Headroom():], pkt)
		start, end, err := o.Seal(buf, o.Headroom(), len(pkt), next)
		if err != nil {
			p.errs = append(p.errs, err)
			return false
		}
		c := p.d.socket(o.path)
		_, err = c.WriteToUDPAddrPort(buf[start:end], o.path.Remote)
		return err == nil
	}
	p.unsent++
	return false
}

// ping asks one of strongSwan's addresses.
func (p *plane) ping(from, to netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Who responded holds its packets until it knows that the peer has the CHILD SA (ike.ChildSA.SendNow).
	p.begun = p.begun || slices.ContainsFunc(p.out, func(o *outbound) bool { return o.use })
	if !p.begun {
		return
	}
	p.seq++
	p.asked[p.seq] = true
	body := make([]byte, 4, 36)
	binary.BigEndian.PutUint16(body, 7)
	binary.BigEndian.PutUint16(body[2:], p.seq)
	p.send(echo(from, to, true, append(body, "what the two ends agree about ..."[:32]...)))
}

// counts are the pings of ours that were answered, and strongSwan's that we answered.
func (p *plane) counts() (got, served int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.got, p.served
}

// unwrap returns the ICMP message in an IP packet, nil when there is none.
func unwrap(next uint8, pkt []byte) (src, dst netip.Addr, icmp []byte) {
	switch {
	case next == esp.NextIPv4 && len(pkt) >= 28 && pkt[0] == 0x45 && pkt[9] == 1:
		return netip.AddrFrom4([4]byte(pkt[12:16])), netip.AddrFrom4([4]byte(pkt[16:20])), pkt[20:]
	case next == esp.NextIPv6 && len(pkt) >= 48 && pkt[0]>>4 == 6 && pkt[6] == 58:
		return netip.AddrFrom16([16]byte(pkt[8:24])), netip.AddrFrom16([16]byte(pkt[24:40])), pkt[40:]
	}
	return src, dst, nil
}

// echo makes an echo request or its answer; body begins with the identifier.
func echo(src, dst netip.Addr, request bool, body []byte) []byte {
	var head, pseudo []byte
	kind := byte(0)
	size := 4 + len(body)
	if src.Is4() {
		head = append([]byte{0x45, 0, byte((20 + size) >> 8), byte(20 + size), 0, 0, 0, 0, 64, 1, 0, 0}, append(src.AsSlice(), dst.AsSlice()...)...)
		binary.BigEndian.PutUint16(head[10:], checksum(head))
		if request {
			kind = 8
		}
	} else {
		head = append([]byte{0x60, 0, 0, 0, byte(size >> 8), byte(size), 58, 64}, append(src.AsSlice(), dst.AsSlice()...)...)
		pseudo = append(append(src.AsSlice(), dst.AsSlice()...), 0, 0, byte(size>>8), byte(size), 0, 0, 0, 58) // RFC 8200, section 8.1
		kind = 129
		if request {
			kind = 128
		}
	}
	icmp := append([]byte{kind, 0, 0, 0}, body...)
	binary.BigEndian.PutUint16(icmp[2:], checksum(append(pseudo, icmp...)))
	return append(head, icmp...)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// flow is pings from both ends, all the time.
type flow struct {
	sc    *scene
	cmd   *exec.Cmd
	out   *lockedBuffer
	quit  chan struct{}
	done  chan struct{}
	inner int // index of the family in ourInner
	first int // sequence number of the ping before our first one
}

// flow begins to ping both ways, every 5 ms, from strongSwan's side through the kernel and its TUN device.
func (sc *scene) flow(t *testing.T, v6 bool) *flow {
	t.Helper()
	f := &flow{sc: sc, quit: make(chan struct{}), done: make(chan struct{}), out: &lockedBuffer{}}
	if v6 {
		f.inner = 1
	}
	p := sc.d.data
	p.mu.Lock()
	f.first = int(p.seq)
	clear(p.asked)
	p.mu.Unlock()
	our, their := ourInner[f.inner], theirInner[f.inner]
	if sc.ourInner != nil {
		our = sc.ourInner[f.inner]
	}
	if sc.theirInner != nil {
		their = sc.theirInner[f.inner]
	}
	f.cmd = exec.Command("ip", "netns", "exec", sc.w.theirs, "ping", "-q", "-n", "-i", "0.005", "-I", their.String(), our.String())
	f.cmd.Stdout, f.cmd.Stderr = f.out, f.out
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // where the test ended early
		_ = f.cmd.Process.Kill()
		_ = f.cmd.Wait()
	})
	go func() {
		defer close(f.done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-f.quit:
				return
			case <-tick.C:
				sc.d.data.ping(our, their)
			}
		}
	}()
	return f
}

// both waits until pings are answered both ways, from now on.
func (f *flow) both(what string) {
	got, served := f.sc.d.data.counts()
	f.sc.d.t.Helper()
	f.sc.d.wait("data both ways: "+what, func() bool {
		g, s := f.sc.d.data.counts()
		return g >= got+3 && s >= served+3
	})
}

// stop ends both, and returns how many pings of ours and of strongSwan's were sent and not answered.
func (f *flow) stop(t *testing.T) (ourLost, ours, theirLost, theirs int) {
	t.Helper()
	close(f.quit)
	<-f.done
	_ = f.cmd.Process.Signal(syscall.SIGINT)
	_ = f.cmd.Wait()
	var sent, received int
	words := f.out.String()
	for i := range words {
		if n, _ := fmt.Sscanf(words[i:], "\n%d packets transmitted, %d received", &sent, &received); n == 2 {
			break
		}
	}
	if sent == 0 {
		t.Fatalf("ping said:\n%s", words)
	}
	p := f.sc.d.data
	for end := time.Now().Add(time.Second); ; time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		left, seq := len(p.asked), int(p.seq)
		p.mu.Unlock()
		if left == 0 || time.Now().After(end) {
			return left, seq - f.first, max(0, sent-received-1), sent // the last one is still under way
		}
	}
}

// lossless ends a flow during which next to nothing may have been lost: strongSwan spreads its ESP over
// threads, which may take up a Delete before a packet that came earlier. That we lose nothing is shown by
// TestStrongSwan of package e2e and in virtual time.
func (f *flow) lossless(t *testing.T) {
	t.Helper()
	a, of, b, of2 := f.stop(t)
	p := f.sc.d.data
	p.mu.Lock()
	defer p.mu.Unlock()
	if a > 1+of/50 || b > 1+of2/50 || p.unsent > 0 || p.unknown > 0 {
		t.Errorf("%d of %d pings of ours were lost, %d of %d of strongSwan's; no CHILD SA for %d of our packets, and for %d of strongSwan's", a, of, b, of2, p.unsent, p.unknown)
	}
	if len(p.errs) > 0 {
		t.Errorf("our ESP: %v", errors.Join(p.errs...))
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, b...)
	return len(b), nil
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}
