package lab

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"wardgate/esp"
	"wardgate/ike"
	"wardgate/ike/suite"
	"wardgate/internal/labca"
)

// Rogue is a router in the hands of an attacker: it has a member's identity and keys, speaks IKE
// and ESP as the product does, but knows no policy. What it puts into its tunnel, and which round
// of the authentication it leaves out, is up to the test.
type Rogue struct {
	ep    *ike.Endpoint
	ike   *net.UDPConn // port 500
	natt  *net.UDPConn // port 4500
	local netip.Addr
	done  sync.WaitGroup

	mu       sync.Mutex // guards what follows
	child    ike.ChildID
	out      *esp.Outbound
	in       *esp.Inbound
	path     ike.Path
	received [][]byte
	failed   error
	refused  []ike.Refusal
	changed  chan struct{} // closed and replaced with every change
}

// Identity is a member's identity with software keys, as somebody has who stole them or was
// issued them wrongly: the leaf certificates in the order of the rounds.
type Identity struct {
	IDs   []string
	Certs [][]*x509.Certificate // chains, leaf first
	Keys  []crypto.Signer
}

// Forge issues device and service certificate in a facility's name for new keys in software.
// change may alter the requests (role "device" or "service") before they are issued.
func (p *Provider) Forge(f *Facility, service string, change func(role string, r *labca.Request)) (*Identity, error) {
	return p.forge(f.DeviceID, f.ServiceID(service), service, change)
}

func (p *Provider) forge(deviceID, serviceID, service string, change func(role string, r *labca.Request)) (*Identity, error) {
	id := &Identity{}
	ca := p.CA.Services[service]
	if ca == nil {
		return nil, fmt.Errorf("lab: the provider has no service %q", service)
	}
	var device []byte
	for _, round := range []struct {
		role, name string
		ca         *labca.Authority
	}{{"device", deviceID, p.CA.Device}, {"service", serviceID, ca}} {
		key, err := labca.NewKey(labca.P256)
		if err != nil {
			return nil, err
		}
		r := labca.Request{Public: key.Public(), DNSNames: []string{round.name}, At: time.Now().Add(-time.Hour)}
		if round.role == "service" {
			r.Device = device
		}
		if change != nil {
			change(round.role, &r)
		}
		cert, err := round.ca.Issue(r)
		if err != nil {
			return nil, err
		}
		if round.role == "device" {
			device = cert.Raw
		}
		id.IDs = append(id.IDs, round.name)
		id.Certs = append(id.Certs, append([]*x509.Certificate{cert}, round.ca.Intermediates()...))
		id.Keys = append(id.Keys, key)
	}
	return id, nil
}

// RogueTarget says whom a Rogue connects to, and how.
type RogueTarget struct {
	Peer    *Facility
	Service string
	// Local and Remote are the traffic selectors that it asks for.
	Local, Remote []netip.Prefix
	// Rounds limits its authentication: 1 leaves the service round out (and says so). 0: both.
	Rounds int
	// Silent announces the second round and never sends it.
	Silent bool
}

// Rogue starts an attacker's router in a namespace, at an address on the internet.
func (l *Lab) Rogue(n *Netns, local netip.Addr) (*Rogue, error) {
	r := &Rogue{local: local, changed: make(chan struct{})}
	if err := n.Do(func() (err error) {
		if r.ike, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 500))); err != nil {
			return err
		}
		r.natt, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 4500)))
		return err
	}); err != nil {
		r.closeSockets()
		return nil, err
	}
	ep, err := ike.NewEndpoint(ike.Config{
		Clock: realClock{}, Rand: rand.Reader, Owner: (*rogueOwner)(r), Send: r.send,
		SendKeepalive: func(p ike.Path) { r.write(r.natt, p.Remote, []byte{0xff}) },
	})
	if err != nil {
		r.closeSockets()
		return nil, err
	}
	r.ep = ep
	r.done.Go(func() { r.read(r.ike, 500) })
	r.done.Go(func() { r.read(r.natt, 4500) })
	return r, nil
}

// Connect makes a tunnel to a facility in somebody's name; nil when a CHILD SA stands.
func (r *Rogue) Connect(ctx context.Context, p *Provider, id *Identity, t RogueTarget) error {
	// It offers what an appliance of the laboratory does: what it is refused for is something else.
	ikeProposals, err := suite.ParseProposals(suite.ProtocolIKE, SuitesGCM().IKE)
	if err != nil {
		return err
	}
	espProposals, err := suite.ParseProposals(suite.ProtocolESP, SuitesGCM().ESP)
	if err != nil {
		return err
	}
	cfg := &ike.PeerConfig{
		Name: "rogue", Local: r.local, Remote: []netip.AddrPort{netip.AddrPortFrom(t.Peer.WAN, 500)},
		Proposals: ikeProposals, ForceEncap: true,
		Children: []ike.ChildConfig{{Name: "net", Proposals: espProposals}},
	}
	for _, s := range t.Local {
		cfg.Children[0].LocalTS = append(cfg.Children[0].LocalTS, ike.PrefixSelector(s))
	}
	for _, s := range t.Remote {
		cfg.Children[0].RemoteTS = append(cfg.Children[0].RemoteTS, ike.PrefixSelector(s))
	}
	for i, name := range id.IDs {
		if t.Rounds != 0 && i >= t.Rounds {
			break
		}
		signer := id.Keys[i]
		if t.Silent && i == 1 {
			signer = mute{Signer: signer, never: ctx.Done()}
		}
		cfg.LocalAuth = append(cfg.LocalAuth, ike.LocalAuth{ID: fqdn(name), Chain: labca.DER(id.Certs[i]), Signer: signer})
	}
	for i, round := range []struct {
		name   string
		anchor *x509.Certificate
	}{{t.Peer.DeviceID, p.CA.Device.Anchor()}, {t.Peer.ServiceID(t.Service), p.CA.Services[t.Service].Anchor()}} {
		if t.Rounds != 0 && i >= t.Rounds {
			break
		}
		cfg.RemoteAuth = append(cfg.RemoteAuth, ike.RemoteAuth{IDs: []ike.Identity{fqdn(round.name)}, Anchors: []*x509.Certificate{round.anchor}, RelatedToRound: i - 1})
	}
	if err := r.ep.SetPeers([]*ike.PeerConfig{cfg}); err != nil {
		return err
	}
	if err := r.ep.Initiate("rogue", "net"); err != nil {
		return err
	}
	for {
		r.mu.Lock()
		up, failed, changed := r.out != nil, r.failed, r.changed
		r.mu.Unlock()
		switch {
		case up:
			return nil
		case failed != nil:
			return failed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Inject puts an inner packet into the tunnel.
func (r *Rogue) Inject(inner []byte) error {
	r.mu.Lock()
	out, path := r.out, r.path
	r.mu.Unlock()
	if out == nil {
		return errors.New("lab: the rogue has no tunnel")
	}
	head := out.Headroom()
	buf := make([]byte, head+len(inner)+out.Tailroom())
	copy(buf[head:], inner)
	next := esp.NextIPv4
	if inner[0]>>4 == 6 {
		next = esp.NextIPv6
	}
	start, end, err := out.Seal(buf, head, len(inner), next)
	if err != nil {
		return err
	}
	_, err = r.natt.WriteToUDPAddrPort(buf[start:end], path.Remote)
	return err
}

// Received returns the inner packets that came out of the tunnel.
func (r *Rogue) Received() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([][]byte(nil), r.received...)
}

// Close ends the rogue with a word to its peer.
func (r *Rogue) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := r.ep.Close(ctx)
	r.closeSockets()
	r.done.Wait()
	return err
}

func (r *Rogue) closeSockets() {
	for _, c := range []*net.UDPConn{r.ike, r.natt} {
		if c != nil {
			c.Close()
		}
	}
}

func (r *Rogue) send(p ike.Path, msg []byte) {
	if p.Encap {
		r.write(r.natt, p.Remote, append(make([]byte, esp.NonESPMarkerLen), msg...))
		return
	}
	r.write(r.ike, p.Remote, msg)
}

// write drops what cannot be sent, as the internet does; IKE sends again.
func (r *Rogue) write(c *net.UDPConn, to netip.AddrPort, b []byte) {
	_, _ = c.WriteToUDPAddrPort(b, to)
}

func (r *Rogue) read(c *net.UDPConn, port uint16) {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		msg := buf[:n]
		path := ike.Path{Local: netip.AddrPortFrom(r.local, port), Remote: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), Encap: port == 4500}
		if port == 500 {
			r.ep.HandleDatagram(path, append([]byte(nil), msg...))
			continue
		}
		switch esp.Classify(msg) {
		case esp.KindIKE:
			r.ep.HandleDatagram(path, append([]byte(nil), msg[esp.NonESPMarkerLen:]...))
		case esp.KindESP:
			r.open(msg)
		case esp.KindInvalid, esp.KindKeepalive:
		}
	}
}

func (r *Rogue) open(pkt []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.in == nil {
		return
	}
	start, end, _, err := r.in.Open(pkt, 0, len(pkt))
	if err != nil {
		return
	}
	r.received = append(r.received, append([]byte(nil), pkt[start:end]...))
	r.touch()
}

// touch tells whoever waits that something changed; r.mu is held.
func (r *Rogue) touch() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// rogueOwner is the Rogue as package ike sees it.
type rogueOwner Rogue

func (o *rogueOwner) IKEUp(ike.SAInfo) {}
func (o *rogueOwner) IKEDown(_ ike.SAInfo, why ike.Reason) {
	o.fail(fmt.Errorf("the IKE SA ended: %s %s", why.Code, why.Text))
}

func (o *rogueOwner) ChildUp(c ike.ChildSA) {
	p := esp.Params{Encr: c.Encr, Integ: c.Integ, KeyBits: c.KeyBits, ESN: c.ESN}
	p.SPI, p.Key, p.IntegKey = c.SPIOut, c.KeyOut, c.IntegOut
	out, err := esp.NewOutbound(p)
	if err == nil {
		p.SPI, p.Key, p.IntegKey = c.SPIIn, c.KeyIn, c.IntegIn
		var in *esp.Inbound
		if in, err = esp.NewInbound(p); err == nil {
			o.mu.Lock()
			o.child, o.out, o.in, o.path = c.ID, out, in, c.Path
			(*Rogue)(o).touch()
			o.mu.Unlock()
		}
	}
	if err != nil {
		o.fail(err)
	}
}

func (o *rogueOwner) ChildSwitch(ike.ChildID) {}

func (o *rogueOwner) ChildDown(id ike.ChildID, _ ike.Reason) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if id == o.child {
		o.out, o.in = nil, nil
		(*Rogue)(o).touch()
	}
}

func (o *rogueOwner) PathChanged(_ ike.SAID, p ike.Path) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.path = p
}

func (o *rogueOwner) Refused(r ike.Refusal) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refused = append(o.refused, r)
	(*Rogue)(o).touch()
}

func (o *rogueOwner) InitiateFailed(_, _ string, err error) { o.fail(err) }

func (o *rogueOwner) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failed = err
	(*Rogue)(o).touch()
}

// fqdn is a domain name as an IKE identity.
func fqdn(name string) ike.Identity { return ike.Identity{Type: ike.IDFQDN, Data: name} }

// mute is a key that never signs: its owner announces the round and then says nothing.
type mute struct {
	crypto.Signer
	never <-chan struct{}
}

func (m mute) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	<-m.never
	return nil, errors.New("lab: mute")
}

type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) AfterFunc(d time.Duration, f func()) func() {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}

// UDPPacket makes an IPv4 packet with a UDP datagram and right checksums.
func UDPPacket(src, dst netip.AddrPort, payload []byte) []byte {
	total := 28 + len(payload)
	b := make([]byte, total)
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(total))
	copy(b[12:], src.Addr().AsSlice())
	copy(b[16:], dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[10:], ^onesSum(0, b[:20]))
	u := b[20:]
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	copy(u[8:], payload)
	pseudo := onesSum(17+uint32(len(u)), b[12:20])
	if sum := ^onesSum(uint32(pseudo), u); sum != 0 {
		binary.BigEndian.PutUint16(u[6:], sum)
	} else {
		binary.BigEndian.PutUint16(u[6:], 0xffff) // RFC 768: 0 means no checksum
	}
	return b
}

// onesSum is the ones' complement sum of RFC 1071.
func onesSum(sum uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
