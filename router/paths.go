package router

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"wardgate/ike"
	"wardgate/router/kernel"
	"wardgate/router/pathmtu"
	"wardgate/router/wire"
)

// defaultLinkMTU is taken where the kernel cannot say which link a path uses.
const defaultLinkMTU = 1500

// sendPath is where the ESP packets of a CHILD SA go. Read-only but for what mtu learns.
type sendPath struct {
	group  *wire.Group // nil: stream
	stream *stream     // ESP in TCP (RFC 9329)
	dest   wire.Dest
	local  netip.Addr
	remote netip.AddrPort
	encap  bool          // ESP in UDP (RFC 3948)
	mtu    *pathmtu.Path // shared by all SAs of that address
}

// innerMTU is the longest inner packet, in octets, that child may send on the path without its
// ESP packet being fragmented.
func (p *sendPath) innerMTU(child *childSA) int {
	if p.stream != nil {
		// TCP cuts and puts together as it likes. Packets are as long as in UDP (RFC 9329, section 3); what a
		// small link on the way would take is TCP's to find out.
		return pathmtu.InnerMTU(max(p.mtu.MTU(), defaultLinkMTU), p.remote.Addr().Is6(), true, child.out.MaxInner)
	}
	return pathmtu.InnerMTU(p.mtu.MTU(), p.remote.Addr().Is6(), p.encap, child.out.MaxInner)
}

// paths keeps what is known of the way to each address of a peer, from each of ours: another line is
// another way.
type paths struct {
	mu     sync.Mutex // guards what follows
	m      map[ends]*pathmtu.Path
	errors int       // looked at since second
	second time.Time // see allow
}

// ends are the two ends of a way.
type ends struct{ local, remote netip.Addr }

// maxPathErrors is how many messages about packets that were too big are looked at in a second:
// each costs a walk over the CHILD SAs.
const maxPathErrors = 50

// allow tells whether one more may be looked at.
func (p *paths) allow(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.second) >= time.Second {
		p.second, p.errors = now, 0
	}
	p.errors++
	return p.errors <= maxPathErrors
}

// between returns the path between e, beginning with the MTU of the link that leads there.
func (p *paths) between(e ends, mark uint32) *pathmtu.Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x := p.m[e]; x != nil {
		return x
	}
	if p.m == nil {
		p.m = make(map[ends]*pathmtu.Path)
	}
	x := pathmtu.New(pathmtu.Config{V6: e.remote.Is6(), Link: linkMTU(e.remote, mark)})
	p.m[e] = x
	return x
}

func linkMTU(remote netip.Addr, mark uint32) int {
	n, err := kernel.LinkMTU(remote, mark)
	if err != nil {
		return defaultLinkMTU
	}
	return n
}

// tunMTU is the MTU of the TUN device where none is configured: the longest packet that fits one
// packet of the link to the internet, in the suite and encapsulation that are usual (AES-GCM in UDP
// over IPv4). Paths that take less are dealt with packet by packet.
func tunMTU(mark uint32) int {
	const headAndICV, align, trailer = 8 + 8 + 16, 4, 2 // RFC 4106
	link := defaultLinkMTU
	for _, somewhere := range []string{"192.0.2.1", "2001:db8::1"} { // RFC 5737, RFC 3849: wherever the default route leads
		if n, err := kernel.LinkMTU(netip.MustParseAddr(somewhere), mark); err == nil {
			link = n
			break
		}
	}
	n := pathmtu.InnerMTU(link, false, true, func(n int) int { return (n-headAndICV)&^(align-1) - trailer })
	return min(max(n, pathmtu.MinIPv6), 65535)
}

// tend looks at the links again, lets paths recover, and forgets those that no SA uses. used are
// those of all SAs: one that was made while it was being forgotten comes back with them.
func (p *paths) tend(used map[ends]*pathmtu.Path, mark uint32, now time.Time) {
	p.mu.Lock()
	p.m = maps.Clone(used)
	p.mu.Unlock()
	for e, x := range used {
		x.SetLink(linkMTU(e.remote, mark), now)
		x.Tick(now)
	}
}

// sendPath picks the sockets for the ESP packets of a path: those of the NAT traversal port where
// ESP is encapsulated, else those of protocol 50.
func (r *Router) sendPath(p ike.Path) (*sendPath, error) {
	mtu := r.paths.between(ends{p.Local.Addr(), p.Remote.Addr()}, r.mark())
	if p.Stream != 0 {
		return &sendPath{stream: r.streams.of(p.Stream), local: p.Local.Addr(), remote: p.Remote, mtu: mtu}, nil
	}
	g := r.groupFor(p)
	if g == nil {
		return nil, fmt.Errorf("no socket of this machine fits the path %s", p)
	}
	remote := p.Remote
	if g.Native() {
		remote = netip.AddrPortFrom(remote.Addr(), 0)
	}
	dest, err := wire.NewDest(remote, p.Local.Addr())
	if err != nil {
		return nil, fmt.Errorf("path %s: %w", p, err)
	}
	return &sendPath{group: g, dest: dest, local: p.Local.Addr(), remote: p.Remote, encap: p.Encap, mtu: mtu}, nil
}

// groupFor finds the sockets that the ESP packets of a path leave from.
func (r *Router) groupFor(p ike.Path) *wire.Group {
	return r.pick(p, func(g *wire.Group) bool {
		if p.Encap {
			return !g.Native() && r.natt[g]
		}
		return g.Native()
	})
}

// ikeGroupFor finds the sockets that the IKE messages of a path leave from.
func (r *Router) ikeGroupFor(p ike.Path) *wire.Group {
	return r.pick(p, func(g *wire.Group) bool { return !g.Native() && r.natt[g] == p.Encap })
}

// pick prefers, among the sockets that ok takes, those on the path's own local address.
func (r *Router) pick(p ike.Path, ok func(*wire.Group) bool) *wire.Group {
	var found *wire.Group
	for _, g := range r.groups {
		if g.V6() != p.Remote.Addr().Is6() || !ok(g) {
			continue
		}
		if g.Addr() == p.Local.Addr() {
			return g
		}
		if found == nil || g.Addr().IsUnspecified() {
			found = g
		}
	}
	return found
}

// pathError takes up what a router on the way, or our own kernel, said about a packet of ours.
// What a router says nobody has signed: it is believed only when it quotes an ESP packet that was
// sent lately (RFC 4301, section 8.2). Other errors than that of the size are no more than a
// hint: whether the peer lives is IKE's to find out.
func (r *Router) pathError(e wire.PathError) {
	if e.Errno != unix.EMSGSIZE {
		return
	}
	now := time.Now()
	if !r.paths.allow(now) {
		return // anybody can send these; a true one comes again with the next packet
	}
	r.children.Range(func(_, v any) bool {
		child := v.(*childSA) //nolint:errcheck,forcetypeassert // the map holds nothing else
		path := child.path.Load()
		if path == nil || path.remote.Addr() != e.Remote.Addr() {
			return true
		}
		before := path.mtu.MTU()
		if e.Origin == wire.OriginLocal {
			if path.mtu.LocalTooBig(e.MTU, now) {
				r.log.Info("the link to the peer takes smaller packets", zap.Stringer("remote", path.remote), zap.Int("mtu", path.mtu.MTU()), zap.Int("was", before))
			}
			return false
		}
		if len(e.Quoted) < 4 || binary.BigEndian.Uint32(e.Quoted) != child.out.SPI() {
			return true
		}
		q := pathmtu.Quote{HasSeq: len(e.Quoted) >= 8, Last: child.out.Counters().LastSeq}
		if q.HasSeq {
			q.Seq = binary.BigEndian.Uint32(e.Quoted[4:])
		}
		if v := path.mtu.TooBig(q, e.MTU, now); v.Changed() {
			r.log.Info("the path to the peer takes smaller packets", zap.String("connection", child.conn.name), zap.Stringer("remote", path.remote),
				zap.Int("mtu", path.mtu.MTU()), zap.Int("was", before), zap.Stringer("said_by", e.Offender), zap.Stringer("verdict", v))
		}
		return false
	})
}

// linkTooSmall notes that our own kernel would not send an ESP packet of size octets: the link is
// smaller than was known.
func (p *sendPath) linkTooSmall(mark uint32, now time.Time) {
	p.mtu.SetLink(linkMTU(p.remote.Addr(), mark), now)
}

// noIPv6 tells whether a socket could not be opened because the machine has no IPv6.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)
}
