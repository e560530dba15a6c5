package iketest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/maphash"
	"net/netip"
	"slices"
	"time"

	"wardgate/ike"
	"wardgate/ike/message"
	"wardgate/ike/suite"
)

// oracle looks at the messages of all nodes, with their keys, and knows what must never be seen:
// a message ID outside of the window or with another content than before, an IV or a nonce twice,
// a key in use before both ends proved everything, the wrong SA going after both ends rekeyed.
type oracle struct {
	r        *run
	keys     map[uint64]*[2][][]byte // all SK_ei and SK_er by the initiator's SPI
	sessions map[[2]uint64]*session
	nonces   map[string]uint64 // → what it was used for
	fresh    map[uint64]bool   // initiator SPIs that IKE_SA_INIT made
	rekeys   []*rekey
	shown    []shown // at this moment
}

// session is one generation of an IKE SA.
type session struct {
	key     [2]uint64
	prot    [2][]*guarded // by direction: 0 is from its initiator
	dir     [2]direction
	pending [2]*rekey
	deletes [2][]uint32            // what the last request of a direction deletes, if it is an INFORMATIONAL
	auths   [2]map[uint64]bool     // IKE_AUTH messages that hold AUTH, by their hash; true: delivered
	probes  [2]probe               // the last COOKIE2 of a direction
	moves   [2]map[uint64]struct{} // UPDATE_SA_ADDRESSES and lists of addresses, by their hash
}

// probe is a request with COOKIE2 (RFC 4555, section 3.7).
type probe struct {
	id     int64
	cookie []byte
	to     []netip.Addr // it went to
}

// shown is the answer to such a request.
type shown struct {
	n  *simNode
	at time.Time
	to []netip.Addr
}

// guarded is one key and the IVs that were used with it.
type guarded struct {
	p      *suite.Protector
	key    []byte
	last   uint64
	used   bool
	forger *suite.Protector // for messages that a hostile node makes, with IVs of its own
}

// direction is what a node sent on a session.
type direction struct {
	node      *simNode
	req, resp track
	answered  bool  // the answer to the last request came
	heard     int64 // the last request of this direction that came to the other end
}

// track is the last message of a kind.
type track struct {
	id   int64
	hash map[uint16]uint64 // of each fragment
}

// rekey is a CREATE_CHILD_SA exchange that replaces an SA.
type rekey struct {
	node     *simNode // that asked
	id       int64
	ike      bool
	parent   *session
	old      uint32 // of a CHILD SA, as the node receives on it
	spi      uint64 // of the new one
	ni, nr   []byte
	made     bool // the peer made it
	got      bool // and the answer came
	sent     time.Time
	came     time.Time // the answer
	answer   uint64
	rival    *rekey
	oldOther uint32 // of a CHILD SA, as the peer receives on it
}

var hashSeed = maphash.MakeSeed()

func hashOf(b []byte) uint64 { return maphash.Bytes(hashSeed, b) }

func (o *oracle) init(r *run) {
	o.r = r
	o.keys, o.sessions, o.nonces, o.fresh = map[uint64]*[2][][]byte{}, map[[2]uint64]*session{}, map[string]uint64{}, map[uint64]bool{}
}

// simCipher is what all IKE SAs of the simulator are encrypted with.
var simCipher = suite.Chosen{Protocol: suite.ProtocolIKE, Encr: suite.EncrAESGCM16, KeyBits: 128, PRF: suite.PRFHMACSHA256}

// key takes a secret of an endpoint: "sk_ei-" and "sk_er-" with the initiator's SPI behind them.
func (o *oracle) key(name string, secret []byte) {
	if len(name) != 22 || name[:4] != "sk_e" {
		return
	}
	b, err := hex.DecodeString(name[6:])
	if err != nil {
		return
	}
	spi := binary.BigEndian.Uint64(b)
	k := o.keys[spi]
	if k == nil {
		k = &[2][][]byte{}
		o.keys[spi] = k
	}
	i := 0
	if name[4] == 'r' {
		i = 1
	}
	if slices.ContainsFunc(k[i], func(old []byte) bool { return bytes.Equal(old, secret) }) {
		return // the other end has it too
	}
	k[i] = append(k[i], bytes.Clone(secret))
	for _, s := range o.sessions {
		if s.key[0] == spi {
			o.equip(s, i, secret)
		}
	}
}

// equip gives a session a key of a direction.
func (o *oracle) equip(s *session, d int, key []byte) {
	p, err := suite.NewProtector(simCipher, suite.CopySecret(key), suite.Secret{}, nil)
	if err != nil {
		o.r.violate("a key of %d octets for an IKE SA of the simulator: %v", len(key), err)
		return
	}
	s.prot[d] = append(s.prot[d], &guarded{p: p, key: bytes.Clone(key)})
}

func (o *oracle) session(msg []byte) *session {
	k := [2]uint64{binary.BigEndian.Uint64(msg), binary.BigEndian.Uint64(msg[8:])}
	s := o.sessions[k]
	if s == nil {
		s = &session{key: k}
		for d := range s.dir {
			s.dir[d] = direction{req: track{id: -1}, resp: track{id: -1}, answered: true, heard: -1}
			if all := o.keys[k[0]]; all != nil {
				for _, key := range all[d] {
					o.equip(s, d, key)
				}
			}
		}
		if o.fresh[k[0]] { // message ID 0 was IKE_SA_INIT
			s.dir[0].req.id, s.dir[1].resp.id, s.dir[0].heard = 0, 0, 0
		}
		o.sessions[k] = s
	}
	return s
}

// head is what the header of a protected message says.
type head struct {
	d        int
	response bool
	exchange uint8
	id       int64
	fragment uint16
	iv       uint64
}

func headOf(msg []byte) (h head, ok bool) {
	if len(msg) < 44 {
		return h, false
	}
	first, at := msg[16], 28
	if first == 54 { // the solution of a puzzle stands in clear in front (RFC 8019, section 7.2.2)
		first, at = msg[28], at+int(binary.BigEndian.Uint16(msg[30:]))
	}
	if len(msg) < at+16 || first != 46 && first != 53 {
		return h, false
	}
	h = head{d: 1, response: msg[19]&0x20 != 0, exchange: msg[18], id: int64(binary.BigEndian.Uint32(msg[20:])), iv: binary.BigEndian.Uint64(msg[at+4:])}
	if msg[19]&8 != 0 {
		h.d = 0
	}
	if first == 53 {
		h.fragment, h.iv = binary.BigEndian.Uint16(msg[at+4:]), binary.BigEndian.Uint64(msg[at+8:])
	}
	return h, true
}

// open decrypts a message, or says with which key a fragment is sealed.
func (s *session) open(d int, msg []byte) (message.Payloads, *guarded) {
	m, err := message.Parse(msg)
	if err != nil || m.Encrypted == nil {
		return nil, nil
	}
	for i := len(s.prot[d]) - 1; i >= 0; i-- {
		g := s.prot[d][i]
		if m.Encrypted.IsFragment() {
			if _, err := m.OpenFragment(g.p); err == nil {
				return nil, g
			}
			continue
		}
		if in, err := m.Open(g.p); err == nil {
			return in.Payloads, g
		}
	}
	return nil, nil
}

// sent looks at a datagram that a node sends.
func (o *oracle) sent(n *simNode, to netip.AddrPort, msg []byte) {
	h, ok := headOf(msg)
	if !ok {
		if len(msg) >= 28 && (msg[18] == 34 || msg[18] == 38) {
			o.init0(n, to, msg)
		}
		return
	}
	s := o.session(msg)
	dir, peer := &s.dir[h.d], &s.dir[1-h.d]
	dir.node = n
	defer func() {
		if p := &s.probes[h.d]; p.cookie != nil && !h.response && p.id == h.id && !slices.Contains(p.to, to.Addr()) {
			p.to = append(p.to, to.Addr())
		}
	}()
	t := &dir.req
	if h.response {
		t = &dir.resp
	}
	hash := hashOf(msg)
	switch {
	case h.id == t.id:
		if old, seen := t.hash[h.fragment]; seen || t.hash == nil {
			if old != hash {
				o.r.violate("%s sends message ID %d twice with different content (RFC 7296, section 2.1)", n.Name, h.id)
			}
			return
		}
	case h.id != t.id+1:
		o.r.violate("%s sends message ID %d after %d", n.Name, h.id, t.id)
		return
	case !h.response && !dir.answered:
		o.r.violate("%s sends request %d before the answer to %d came: the window is 1", n.Name, h.id, t.id)
		return
	case h.response && peer.heard < h.id:
		o.r.violate("%s answers request %d, which never came", n.Name, h.id)
		return
	default:
		t.id, t.hash = h.id, map[uint16]uint64{}
		if !h.response {
			dir.answered = false
		}
	}
	t.hash[h.fragment] = hash
	ps, g := s.open(h.d, msg)
	if g == nil {
		o.r.violate("%s sends message ID %d under a key that nobody knows", n.Name, h.id)
		return
	}
	if g.used && h.iv <= g.last {
		o.r.violate("%s uses the IV %x after %x under one key", n.Name, h.iv, g.last)
		return
	}
	g.used, g.last = true, h.iv
	o.learn(n, s, h, hash, ps)
}

// init0 looks at an IKE_SA_INIT or IKE_SESSION_RESUME message.
func (o *oracle) init0(n *simNode, to netip.AddrPort, msg []byte) {
	spi := binary.BigEndian.Uint64(msg)
	request, fresh := msg[19]&0x20 == 0, !o.fresh[spi]
	if request {
		o.fresh[spi] = true
	}
	m, err := message.Parse(msg)
	if err != nil {
		o.r.violate("%s sends a first message that cannot be parsed: %v", n.Name, err)
		return
	}
	o.nonce(n, m.Payloads, spi^uint64(msg[19]))
	if request {
		o.r.initiates(n, netip.AddrPortFrom(n.Addr, 500), to, m, fresh)
	}
}

// nonce expects a nonce that was not used for anything else.
func (o *oracle) nonce(n *simNode, ps message.Payloads, what uint64) []byte {
	x, ok := message.First[*message.Nonce](ps)
	if !ok {
		return nil
	}
	if old, used := o.nonces[string(x.Data)]; used && old != what {
		o.r.violate("%s uses a nonce twice", n.Name)
	}
	o.nonces[string(x.Data)] = what
	return x.Data
}

// learn looks at what stands in a new message.
func (o *oracle) learn(n *simNode, s *session, h head, hash uint64, ps message.Payloads) {
	if o.r.diagram != nil {
		o.r.out.Said = append(o.r.out.Said, Said{o.r.w.Now().Sub(Epoch), n.i, h.id, h.exchange, h.response, ps})
	}
	switch h.exchange {
	case 35:
		o.tell(n, ps)
		_, holds := message.First[*message.Auth](ps)
		if holds || h.fragment == 1 {
			if s.auths[h.d] == nil {
				s.auths[h.d] = map[uint64]bool{}
			}
			s.auths[h.d][hash] = false
		}
	case 37:
		o.learnMobike(s, h, hash, ps)
		if !h.response {
			s.deletes[h.d] = nil
			for _, x := range message.All[*message.Delete](ps) {
				if x.Protocol == message.ProtocolESP {
					s.deletes[h.d] = append(s.deletes[h.d], x.SPIs...)
				}
			}
			return
		}
		for _, spi := range s.deletes[1-h.d] {
			if o.r.hostile() {
				break // the request may have been another one with the same ID
			}
			for _, c := range n.Children {
				if c.SPIOut == spi {
					o.r.violate("%s answers the Delete of CHILD SA %08x and still has it", n.Name, spi)
				}
			}
		}
	case 36:
		nonce := o.nonce(n, ps, hash)
		sa, _ := message.First[*message.SA](ps)
		if !h.response {
			s.pending[h.d] = nil
			if sa == nil || len(sa.Proposals) == 0 {
				return
			}
			k := &rekey{node: n, id: h.id, parent: s, sent: o.r.w.Now(), ni: bytes.Clone(nonce), ike: sa.Proposals[0].Protocol == message.ProtocolIKE}
			for _, x := range message.All[*message.Notify](ps) {
				if x.Type == message.NotifyRekeySA {
					k.old, _ = x.SPI32()
					k.oldOther = n.ever[k.old]
				}
			}
			if k.ike || k.old != 0 {
				k.spi = spiOf(sa)
				s.pending[h.d] = k
			}
			return
		}
		if k := s.pending[1-h.d]; k != nil && k.id == h.id && sa != nil {
			k.made, k.nr, k.answer = true, bytes.Clone(nonce), hash
			o.rekeys = append(o.rekeys, k)
			o.match(k)
		}
	}
}

func spiOf(sa *message.SA) (v uint64) {
	for _, b := range sa.Proposals[0].SPI {
		v = v<<8 | uint64(b)
	}
	return v
}

// match finds the rekey of the other end that crossed k.
func (o *oracle) match(k *rekey) {
	for _, x := range o.rekeys {
		if x.node == k.node || x.ike != k.ike || x.rival != nil || x.got && x.came.Before(k.sent) {
			continue // it was over: what it made was deleted, say, and the old one is rekeyed again
		}
		if k.ike && x.parent == k.parent || !k.ike && x.old == k.oldOther && x.oldOther == k.old {
			k.rival, x.rival = x, k
			o.r.out.Crossings++
		}
	}
}

// loses tells whether k is the redundant one: the one that was made with the lowest of the four
// nonces (RFC 7296, section 2.8.1).
func (k *rekey) loses() bool {
	return bytes.Compare(lowest(k.ni, k.nr), lowest(k.rival.ni, k.rival.nr)) < 0
}

func lowest(a, b []byte) []byte {
	if bytes.Compare(a, b) < 0 {
		return a
	}
	return b
}

// delivered looks at a datagram that comes to a node.
func (o *oracle) delivered(n *simNode, from netip.AddrPort, msg []byte, genuine bool) {
	h, ok := headOf(msg)
	if !ok {
		return
	}
	if o.keys[binary.BigEndian.Uint64(msg)] == nil {
		return // nobody has keys for it
	}
	s := o.session(msg)
	if s.dir[h.d].node == n {
		return // it is reflected
	}
	hash := uint64(0)
	mobike := h.exchange == 37 && o.r.plan.mobile()
	if h.exchange == 35 || h.response || mobike {
		hash = hashOf(msg)
	}
	if mobike {
		o.deliveredMobike(n, s, h, from, hash, msg, genuine)
	}
	if _, ok := s.auths[h.d][hash]; ok && h.exchange == 35 {
		s.auths[h.d][hash] = true
	}
	if !h.response {
		s.dir[h.d].heard = max(s.dir[h.d].heard, h.id)
		return
	}
	if asked := &s.dir[1-h.d]; asked.req.id == h.id {
		asked.answered = true
		if k := s.pending[1-h.d]; k != nil && k.made && k.answer == hash && !k.got {
			k.got, k.came = true, o.r.w.Now()
		}
	}
}

// describe prints a message with what is in it.
func (o *oracle) describe(msg []byte) string {
	m, err := message.Parse(msg)
	if err != nil {
		return Describe(msg)
	}
	tag := func(b []byte) string { return hex.EncodeToString(b[:2]) }
	who := " {" + tag(msg[0:8]) + "_" + tag(msg[8:16]) + "}"
	if h, ok := headOf(msg); ok {
		if s := o.sessions[[2]uint64{binary.BigEndian.Uint64(msg), binary.BigEndian.Uint64(msg[8:])}]; s != nil {
			if ps, _ := s.open(h.d, msg); ps != nil || h.fragment == 0 {
				return m.Summary(append(message.Payloads{}, ps...)) + who
			}
		}
	}
	return m.Summary(nil) + who
}

// watcher is the owner of a node: what it is told goes into the books of Node, after a look at
// what the oracle knows.
type watcher struct {
	ike.Owner
	n *simNode
}

// IKEUp implements ike.Owner.
func (w *watcher) IKEUp(i ike.SAInfo) {
	o := &w.n.run.oracle
	w.n.run.note("%s: IKE SA %d is up", w.n.Name, i.ID)
	need := w.n.run.plan.rounds()
	if i.Resumed {
		need = 1 // the ticket stands for what was proved before (RFC 5723)
		w.n.run.out.Resumed++
	}
	s := o.sessions[[2]uint64{i.SPIi, i.SPIr}]
	theirs, ours := 0, 0
	if s != nil {
		d := 0
		if i.Initiator {
			d = 1
		}
		for _, came := range s.auths[d] {
			if came {
				theirs++
			}
		}
		ours = len(s.auths[1-d])
		if !i.Initiator {
			ours++ // the last answer is on its way
		}
	}
	if theirs < need || ours < need {
		o.r.violate("%s has IKE SA %d up after %d rounds of the peer and %d of its own, %d are needed", w.n.Name, i.ID, theirs, ours, need)
	}
	w.Owner.IKEUp(i)
}

// IKEDown implements ike.Owner.
func (w *watcher) IKEDown(i ike.SAInfo, r ike.Reason) {
	w.n.run.note("%s: IKE SA %d is down: %s (%s)", w.n.Name, i.ID, r.Code, r.Text)
	w.Owner.IKEDown(i, r)
}

// ChildUp implements ike.Owner.
func (w *watcher) ChildUp(c ike.ChildSA) {
	n := w.n
	n.run.note("%s: CHILD SA %d in %08x out %08x queue %d is up, replaces %d, send now: %v", n.Name, c.ID, c.SPIIn, c.SPIOut, c.Queue, c.Replaces, c.SendNow)
	n.ever[c.SPIIn] = c.SPIOut
	if c.Replaces != 0 {
		n.run.out.Rekeys++
		if c.SendNow {
			n.run.oracle.known(n, &c)
		}
	}
	w.Owner.ChildUp(c)
}

// ChildSwitch implements ike.Owner.
func (w *watcher) ChildSwitch(id ike.ChildID) {
	w.n.run.note("%s: sends on CHILD SA %d", w.n.Name, id)
	if c := w.n.Children[id]; c != nil && c.Replaces != 0 {
		w.n.run.oracle.known(w.n, &c.ChildSA)
	}
	w.Owner.ChildSwitch(id)
}

// deleteWait is how long, at least, the peer may take to delete a CHILD SA that was replaced.
const deleteWait = 30 * time.Second

// known expects that some other node receives on what n is going to send on, or did.
func (o *oracle) known(n *simNode, c *ike.ChildSA) {
	if n.doomed[c.Replaces] || n.offset != 0 {
		return // there is nothing better to send on, or the wait for the peer's Delete ended too soon
	}
	for _, x := range o.r.nodes {
		if _, ok := x.ever[c.SPIOut]; ok && x != n {
			return
		}
	}
	if own := n.Children[c.ID]; own != nil && o.r.w.Now().Sub(own.Up) > deleteWait {
		return // the peer had its time to delete the old one, and nothing of it came through
	}
	if !o.r.hostile() {
		o.r.violate("%s sends on CHILD SA %d (out %08x) before anybody can receive on it", n.Name, c.ID, c.SPIOut)
	}
}

// ChildDown implements ike.Owner.
func (w *watcher) ChildDown(id ike.ChildID, r ike.Reason) {
	w.n.run.note("%s: CHILD SA %d is down: %s (%s)", w.n.Name, id, r.Code, r.Text)
	if r.Code == ike.ReasonExpired {
		w.n.doomed[id] = true
	}
	if c := w.n.Children[id]; c != nil && r.Code == ike.ReasonRedundant && c.Replaces != 0 {
		w.n.run.oracle.redundant(w.n, c)
	}
	w.Owner.ChildDown(id, r)
}

// redundant expects that c, which n gives up because both ends rekeyed, is the one to give up.
func (o *oracle) redundant(n *simNode, c *Child) {
	if o.r.hostile() {
		return // its nonces may not be those that it sent
	}
	for _, k := range o.rekeys {
		if k.node != n || k.ike || k.spi != uint64(c.SPIIn) {
			continue
		}
		if k.rival != nil && !k.loses() {
			o.r.violate("%s gives up CHILD SA %08x, but the one that was made with the lowest of the four nonces is %08x (RFC 7296, section 2.8.1)", n.Name, c.SPIIn, k.rival.spi)
		}
		if k.rival == nil {
			o.r.violate("%s gives up CHILD SA %08x as redundant, and the peer rekeyed nothing", n.Name, c.SPIIn)
		}
	}
}

// atRest expects, when all is quiet, that of two IKE SAs which crossed the right one is left.
func (o *oracle) atRest() {
	if o.r.hostile() {
		return
	}
	for _, k := range o.rekeys {
		if !k.ike || k.rival == nil || !k.got || !k.rival.got || !k.loses() || o.keys[k.rival.spi] == nil {
			continue // or the other one was given up before its last key exchange (RFC 9370)
		}
		for _, n := range o.r.nodes {
			for _, s := range n.Endpoint.Snapshot() {
				if s.SPIi == k.spi {
					o.r.violate("%s keeps IKE SA %x, which was made with the lowest of the four nonces (RFC 7296, section 2.8.2)", n.Name, k.spi)
				}
			}
		}
	}
}
