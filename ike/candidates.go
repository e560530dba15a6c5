package ike

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"net/netip"
	"slices"

	"wardgate/ike/suite"
)

// Who a stranger is shows step by step: its address, the identities that it proves round by round,
// the selectors that it asks for. Each step must cost about the same whether there are ten
// connections or ten thousand, so what can be looked up was sorted when the connections were set
// (see indexer), and connections that no step so far can tell apart are carried along as one branch.

// branch is the connections that are the same to a peer up to the end of an authentication round:
// for each round the same identities and trust on its side, the same identity and credential on
// ours. A root, before the first round, is those of one local address.
type branch struct {
	first *PeerConfig // in the order of the policy
	order int         // of first
	n     int         // connections in it

	// Of the round, as numbered by the indexer: LocalAuth that are sameAs each other, RemoteAuth of
	// the sameTrust.
	local, trust int

	leaf   *leaf        // those that need no other round
	next   []*branch    // those that do
	wanted []Identity   // some identities of their next round, for messages
	byID   branchesByID // of the set
}

type branchKey struct {
	from *branch
	id   string // Identity.key
}

type branchesByID map[branchKey][]*branch

// maxWanted bounds the identities that a message names.
const maxWanted = 8

// alone is the branch of an initiator, who knows whom it talks to.
func alone(p *PeerConfig) []*branch { return []*branch{{first: p, n: 1}} }

// follow returns what is left of branches when the peer claims id in the next round.
func follow(branches []*branch, id Identity) []*branch {
	k := id.key()
	var out []*branch
	for _, b := range branches {
		out = append(out, b.byID[branchKey{b, k}]...)
	}
	if len(branches) > 1 {
		slices.SortStableFunc(out, func(x, y *branch) int { return x.order - y.order })
	}
	return out
}

// each calls f for all connections of a branch.
func (b *branch) each(f func(*PeerConfig)) {
	if b.leaf != nil {
		for _, c := range b.leaf.peers {
			f(c)
		}
	}
	for _, n := range b.next {
		n.each(f)
	}
}

// leaf is connections that differ in what they let through, and in nothing that a peer has to prove.
type leaf struct {
	peers         []*PeerConfig // in the order of the policy
	kinds         []*PeerConfig // the first of peers with each set of IKE proposals
	local, remote spans         // of the selectors of peers; nil where there are few
}

// fewPeers is how many connections are looked at one by one.
const fewPeers = 8

// each calls f for the connections that are near the wish.
func (l *leaf) each(w *wish, f func(*PeerConfig)) {
	for _, c := range l.near(w) {
		f(c)
	}
}

// near returns at least those of the connections that have selectors in common with the wish, in
// the order of the policy. The end whose addresses say more about it decides how long it takes.
func (l *leaf) near(w *wish) []*PeerConfig {
	if l.remote == nil {
		return l.peers
	}
	for limit := 4 * fewPeers; ; limit *= 4 {
		hits, ok := l.remote.overlapping(w.remote, limit)
		if !ok {
			hits, ok = l.local.overlapping(w.local, limit)
		}
		if ok {
			out := make([]*PeerConfig, len(hits))
			for i, n := range hits {
				out[i] = l.peers[n]
			}
			return out
		}
	}
}

// strangers is what is known of who may come by a path before a word was said.
type strangers struct {
	roots   []*branch
	kinds   []*PeerConfig // one for each set of IKE proposals, in order of preference
	anchors [][20]byte    // hashes for CERTREQ
	force   bool          // PeerConfig.ForceEncap
}

// entrance is the connections that a gateway address and a local address have in common.
type entrance struct {
	first   *PeerConfig
	order   int
	kinds   []kind
	anchors [][20]byte
}

type kind struct {
	first *PeerConfig
	order int
}

type entranceKey struct {
	remote netip.Addr // the zero Addr: all connections
	local  netip.Addr // PeerConfig.Local
}

// place is where an identity has to come.
type place struct {
	round int
	peer  *PeerConfig
}

// from returns who may come by path: those connections that name its source as a gateway first,
// then all, because a peer behind a NAT comes from anywhere. Who it is, is decided by what it
// proves.
func (s *peerSet) from(p Path) strangers {
	locals := s.locals
	if a := p.Local.Addr(); !a.IsUnspecified() {
		locals = []netip.Addr{{}, a}
	}
	var out strangers
	for _, l := range locals {
		if b := s.roots[l]; b != nil {
			out.roots = append(out.roots, b)
		}
	}
	slices.SortFunc(out.roots, func(x, y *branch) int { return x.order - y.order })
	forced := false
	for _, remote := range []netip.Addr{p.Remote.Addr(), {}} {
		var kinds []kind
		var first *entrance
		for _, l := range locals {
			q := s.entrances[entranceKey{remote, l}]
			if q == nil {
				continue
			}
			kinds = append(kinds, q.kinds...)
			if first == nil || q.order < first.order {
				first = q
			}
			for _, h := range q.anchors {
				if len(out.anchors) < maxCertReqs && !slices.Contains(out.anchors, h) {
					out.anchors = append(out.anchors, h)
				}
			}
		}
		slices.SortFunc(kinds, func(x, y kind) int { return x.order - y.order })
		for _, k := range kinds {
			out.kinds = append(out.kinds, k.first)
		}
		if first != nil && !forced {
			forced, out.force = true, first.first.ForceEncap
		}
	}
	return out
}

// indexer makes what a peerSet looks up, in a time that grows with the number of connections and
// no faster. What is compared often gets a number first.
type indexer struct {
	set       *peerSet
	numbers   map[string]int // of contents
	certs     map[*x509.Certificate]int
	crls      map[*x509.RevocationList]int
	hashes    map[int][20]byte // of anchors, by number
	proposals map[*suite.Proposal]int
	branches  map[branchID]*branch
	leaves    map[*branch]map[int]bool // proposals that occur in each
	entered   map[entranceKind]bool
	placed    map[placeID]bool
	buf       []byte
}

type (
	branchID struct {
		from              *branch
		local, trust, ids int
	}
	entranceKind struct {
		entrance *entrance
		kind     int
	}
	placeID struct {
		id    string
		round int
	}
)

func (s *peerSet) index(peers []*PeerConfig) {
	x := &indexer{
		set: s, numbers: map[string]int{}, certs: map[*x509.Certificate]int{}, crls: map[*x509.RevocationList]int{},
		hashes: map[int][20]byte{}, proposals: map[*suite.Proposal]int{}, branches: map[branchID]*branch{},
		leaves: map[*branch]map[int]bool{}, entered: map[entranceKind]bool{}, placed: map[placeID]bool{},
	}
	for i, p := range peers {
		kind := x.proposalsNumber(p.Proposals)
		x.toEntrances(i, p, kind)
		x.toBranches(i, p, kind)
	}
	for b := range x.leaves {
		b.leaf.index()
	}
}

func (x *indexer) toEntrances(order int, p *PeerConfig, k int) {
	remotes := make([]netip.Addr, 1, 4) // the zero Addr
	for _, r := range p.Remote {
		if !slices.Contains(remotes, r.Addr()) {
			remotes = append(remotes, r.Addr())
		}
	}
	for _, r := range remotes {
		key := entranceKey{r, p.Local}
		q := x.set.entrances[key]
		if q == nil {
			q = &entrance{first: p, order: order}
			x.set.entrances[key] = q
		}
		if !x.entered[entranceKind{q, k}] {
			x.entered[entranceKind{q, k}] = true
			q.kinds = append(q.kinds, kind{p, order})
		}
		for i := range p.RemoteAuth {
			for _, a := range p.RemoteAuth[i].Anchors {
				if len(q.anchors) >= maxCertReqs {
					break
				}
				if h, ok := x.keyHash(a); ok && !slices.Contains(q.anchors, h) {
					q.anchors = append(q.anchors, h)
				}
			}
		}
	}
}

func (x *indexer) toBranches(order int, p *PeerConfig, kind int) {
	b := x.set.roots[p.Local]
	if b == nil {
		b = x.branch(order, p)
		x.set.roots[p.Local] = b
		x.set.locals = append(x.set.locals, p.Local)
	}
	b.n++
	for r := range p.RemoteAuth {
		la, ra := &p.LocalAuth[r], &p.RemoteAuth[r]
		id := branchID{b, x.localNumber(la), x.trustNumber(ra), x.idsNumber(ra.IDs)}
		n := x.branches[id]
		if n == nil {
			n = x.branch(order, p)
			n.local, n.trust = id.local, id.trust
			x.branches[id] = n
			b.next = append(b.next, n)
			for _, id := range ra.IDs {
				k := branchKey{b, id.key()}
				if l := x.set.byID[k]; len(l) == 0 || l[len(l)-1] != n {
					x.set.byID[k] = append(l, n)
				}
				if len(b.wanted) < maxWanted && !containsID(b.wanted, id) {
					b.wanted = append(b.wanted, id)
				}
				if pid := (placeID{k.id, r}); !x.placed[pid] {
					x.placed[pid] = true
					x.set.places[k.id] = append(x.set.places[k.id], place{r, p})
				}
			}
		}
		n.n++
		b = n
	}
	if b.leaf == nil {
		b.leaf = &leaf{}
		x.leaves[b] = map[int]bool{}
	}
	b.leaf.peers = append(b.leaf.peers, p)
	if !x.leaves[b][kind] {
		x.leaves[b][kind] = true
		b.leaf.kinds = append(b.leaf.kinds, p)
	}
}

func (x *indexer) branch(order int, p *PeerConfig) *branch {
	return &branch{first: p, order: order, byID: x.set.byID}
}

// number returns the same number for the same octets.
func (x *indexer) number(content []byte) int {
	n, ok := x.numbers[string(content)]
	if !ok {
		n = len(x.numbers) + 1
		x.numbers[string(content)] = n
	}
	return n
}

// The kinds of content that are numbered.
const (
	isCert byte = iota
	isCRL
	isIDs
	isLocal
	isTrust
	isProposals
)

func (x *indexer) begin(kind byte) { x.buf = append(x.buf[:0], kind) }

func (x *indexer) add(octets string) {
	x.addInt(len(octets))
	x.buf = append(x.buf, octets...)
}

func (x *indexer) addInt(v int) { x.buf = binary.AppendVarint(x.buf, int64(v)) }

// addBytes adds what may be long, or secret, as its hash.
func (x *indexer) addBytes(b []byte) {
	if len(b) > 0 {
		h := sha256.Sum256(b)
		x.add(string(h[:]))
		return
	}
	x.addInt(0)
}

func (x *indexer) certNumber(c *x509.Certificate) int {
	n, ok := x.certs[c]
	if !ok {
		x.begin(isCert)
		x.addBytes(c.Raw)
		n = x.number(x.buf)
		x.certs[c] = n
	}
	return n
}

func (x *indexer) keyHash(c *x509.Certificate) ([20]byte, bool) {
	n := x.certNumber(c)
	h, ok := x.hashes[n]
	if !ok {
		if h, ok = keyHash(c); ok {
			x.hashes[n] = h
		}
	}
	return h, ok
}

func (x *indexer) crlNumber(c *x509.RevocationList) int {
	n, ok := x.crls[c]
	if !ok {
		x.begin(isCRL)
		x.addBytes(c.Raw)
		n = x.number(x.buf)
		x.crls[c] = n
	}
	return n
}

func (x *indexer) idsNumber(ids []Identity) int {
	x.begin(isIDs)
	for _, id := range ids {
		x.add(id.key())
	}
	return x.number(x.buf)
}

// localNumber is the same for those that are sameAs each other.
func (x *indexer) localNumber(a *LocalAuth) int {
	x.begin(isLocal)
	x.add(a.ID.key())
	x.addBytes(a.PSK)
	for _, der := range a.Chain {
		x.addBytes(der)
	}
	return x.number(x.buf)
}

// trustNumber is the same for those that are of the sameTrust.
func (x *indexer) trustNumber(a *RemoteAuth) int {
	numbers := make([]int, 0, 8)
	for _, c := range a.Anchors {
		numbers = append(numbers, x.certNumber(c))
	}
	for _, c := range a.CRLs {
		numbers = append(numbers, x.crlNumber(c))
	}
	x.begin(isTrust)
	x.addInt(a.RelatedToRound)
	x.addInt(len(a.PPKs))
	for _, k := range a.PPKs {
		x.add(k.ID)
		x.addBytes(k.Secret)
	}
	if a.RequirePPK {
		x.addInt(1)
	} else {
		x.addInt(0)
	}
	if a.RequireCRL {
		x.addInt(1)
	} else {
		x.addInt(0)
	}
	x.addBytes(a.PSK)
	x.addInt(len(a.Anchors))
	for _, n := range numbers {
		x.addInt(n)
	}
	return x.number(x.buf)
}

func (x *indexer) proposalsNumber(ps []suite.Proposal) int {
	n, ok := x.proposals[&ps[0]]
	if ok && len(ps) == 1 {
		return n
	}
	x.begin(isProposals)
	ids := func(l []uint16) {
		x.addInt(len(l))
		for _, v := range l {
			x.addInt(int(v))
		}
	}
	for i := range ps {
		p := &ps[i]
		x.addInt(int(p.Protocol))
		x.addInt(len(p.Encr))
		for _, c := range p.Encr {
			x.addInt(int(c.ID))
			x.addInt(c.KeyBits)
		}
		ids(p.Integ)
		ids(p.PRF)
		ids(p.KE)
		ids(p.ESN)
		for _, l := range p.AddKE {
			ids(l)
		}
	}
	n = x.number(x.buf)
	if len(ps) == 1 {
		x.proposals[&ps[0]] = n
	}
	return n
}

func (l *leaf) index() {
	if len(l.peers) <= fewPeers {
		return
	}
	for i, p := range l.peers {
		for j := range p.Children {
			l.local = l.local.add(p.Children[j].LocalTS, i)
			l.remote = l.remote.add(p.Children[j].RemoteTS, i)
		}
	}
	l.local.build()
	l.remote.build()
}

// spans finds ranges of addresses that overlap with a given one: an interval tree in an array,
// sorted by start, where the middle of each part is its root.
type spans []spanOf

type spanOf struct {
	start, end netip.Addr
	last       netip.Addr // of end in this part of the tree
	item       int
}

func (t spans) add(ts []Selector, item int) spans {
	for _, s := range ts {
		t = append(t, spanOf{start: s.Start, end: s.End, item: item})
	}
	return t
}

func (t spans) build() {
	slices.SortFunc(t, func(a, b spanOf) int { return a.start.Compare(b.start) })
	t.deepen()
}

func (t spans) deepen() netip.Addr {
	if len(t) == 0 {
		return netip.Addr{} // before any other
	}
	m := len(t) / 2
	last := t[m].end
	for _, half := range []spans{t[:m], t[m+1:]} {
		if a := half.deepen(); a.Compare(last) > 0 {
			last = a
		}
	}
	t[m].last = last
	return last
}

// overlapping returns the items of the ranges that overlap with one of ts, in ascending order;
// false: there are more than limit ranges.
func (t spans) overlapping(ts []Selector, limit int) ([]int, bool) {
	var hits []int
	for _, s := range ts {
		var ok bool
		if hits, ok = t.find(s.Start, s.End, hits, limit); !ok {
			return nil, false
		}
		// Selectors of one wish may overlap with each other.
		slices.Sort(hits)
		hits = slices.Compact(hits)
	}
	return hits, true
}

func (t spans) find(start, end netip.Addr, hits []int, limit int) ([]int, bool) {
	for len(t) > 0 {
		m := len(t) / 2
		if t[m].last.Compare(start) < 0 {
			return hits, true // all end before
		}
		var ok bool
		if hits, ok = t[:m].find(start, end, hits, limit); !ok {
			return hits, false
		}
		if t[m].start.Compare(end) > 0 {
			return hits, true // all others begin behind
		}
		if t[m].end.Compare(start) >= 0 {
			if len(hits) == limit {
				return hits, false
			}
			hits = append(hits, t[m].item)
		}
		t = t[m+1:]
	}
	return hits, true
}
