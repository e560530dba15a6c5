package kernel

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// This file is the vocabulary: how a match, a set, a verdict is written for the kernel. What the
// rules are is in rules.go.

// Registers of the nftables machine. The 16-byte registers 1 to 4 and the 4-byte registers
// 8 to 23 are the same storage; a concatenation lies in consecutive 4-byte registers.
const (
	reg    = 1 // unix.NFT_REG_1
	reg32  = 8 // unix.NFT_REG32_00, the start of reg 1
	bigTxn = 8 << 20
)

// elemsPerMessage bounds one NEWSETELEM message: the list of elements is a netlink attribute
// with a 16-bit length, and the largest element (IPv6 and interface name, both ends) takes
// about 100 bytes.
const elemsPerMessage = 500

// newConn makes a connection for one transaction or one query. The socket buffers are enlarged
// because a transaction is sent as one message.
func (k *Kernel) newConn() (*nftables.Conn, error) {
	return nftables.New(
		nftables.WithNetNSFd(k.opt.NetNS),
		nftables.WithSockOptions(func(c *netlink.Conn) error {
			// The FORCE variants, which ignore the system's limit; needs CAP_NET_ADMIN as
			// everything here does.
			if err := c.SetWriteBuffer(bigTxn); err != nil {
				return err
			}
			return c.SetReadBuffer(bigTxn)
		}))
}

func (k *Kernel) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: k.opt.TableName}
}

// transaction is what a builder writes to: *nftables.Conn, and in tests a model that evaluates
// packets against what was written.
type transaction interface {
	AddChain(c *nftables.Chain) *nftables.Chain
	FlushChain(c *nftables.Chain)
	AddRule(r *nftables.Rule) *nftables.Rule
	AddObj(o nftables.Obj) nftables.Obj
	AddSet(s *nftables.Set, elems []nftables.SetElement) error
	SetAddElements(s *nftables.Set, elems []nftables.SetElement) error
}

// builder collects one transaction.
type builder struct {
	conn    transaction
	table   *nftables.Table
	sets    map[string]*nftables.Set
	masked  map[string][]int // for sets in parts: prefix lengths, see addresses.go
	none    map[string]bool  // sets of addresses without elements
	lengths int              // how many different prefix lengths are looked up one by one
	tun     []byte
	log     uint16
	mark    uint32
	err     error
}

func newBuilder(conn transaction, t *nftables.Table, tun string) *builder {
	return &builder{
		conn: conn, table: t, tun: ifName(tun), lengths: maxLengths,
		sets: map[string]*nftables.Set{}, masked: map[string][]int{}, none: map[string]bool{},
	}
}

func (b *builder) chain(name string) *nftables.Chain {
	return b.conn.AddChain(&nftables.Chain{Table: b.table, Name: name})
}

func (b *builder) base(name string, h *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return b.conn.AddChain(&nftables.Chain{
		Table: b.table, Name: name, Hooknum: h, Priority: &prio,
		Type: nftables.ChainTypeFilter, Policy: &accept,
	})
}

func (b *builder) hooked(h hook) *nftables.Chain { return b.base(h.name, h.hook, h.prio) }

func (b *builder) flush(c *nftables.Chain) { b.conn.FlushChain(c) }

// families fills the rest of a chain for each family: IPv6 in a chain of its own, IPv4 right
// there. Packets of others do not come to a table of family inet. Nothing may be added behind.
func (b *builder) families(c *nftables.Chain, name string, fill func(*nftables.Chain, fam)) {
	six := b.chain(name + ip6.suffix)
	b.rule(c, ip6.is(), goTo(six.Name))
	fill(six, ip6)
	fill(c, ip4)
}

// match is one condition (or action) of a rule: some expressions.
type match []expr.Any

func (b *builder) rule(c *nftables.Chain, ms ...match) {
	b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: c, Exprs: slices.Concat(ms...)})
}

// each adds a rule for each of the conditions, of which one is enough.
func (b *builder) each(c *nftables.Chain, ways []match, ms ...match) {
	for _, a := range ways {
		b.rule(c, append([]match{a}, ms...)...)
	}
}

// note adds a rule without effect that only carries a comment.
func (b *builder) note(c *nftables.Chain, text string) {
	b.conn.AddRule(&nftables.Rule{
		Table: b.table, Chain: c, Exprs: match{&expr.Counter{}},
		UserData: userdata.AppendString(nil, userdata.TypeComment, text),
	})
}

func (b *builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// ifName pads as the kernel stores it; comparing all 16 bytes makes the match exact.
func ifName(s string) []byte {
	out := make([]byte, unix.IFNAMSIZ)
	copy(out, s)
	return out
}

func cmpOp(is bool) expr.CmpOp {
	if is {
		return expr.CmpOpEq
	}
	return expr.CmpOpNeq
}

func iif(name []byte, is bool) match {
	return match{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg},
		&expr.Cmp{Op: cmpOp(is), Register: reg, Data: name},
	}
}

func oif(name []byte, is bool) match {
	return match{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg},
		&expr.Cmp{Op: cmpOp(is), Register: reg, Data: name},
	}
}

// fam is an address family with where its addresses are.
type fam struct {
	v6           bool
	suffix       string
	proto        byte
	saddr, daddr uint32 // offset in the IP header
	size         uint32
	dataType     nftables.SetDatatype
	icmp         byte
	icmpErrors   []byte // types
	redirect     byte
	neighbour    []byte // types of neighbour discovery; IPv4 has ARP
}

var (
	// RFC 792: destination unreachable, time exceeded, parameter problem.
	ip4 = fam{false, "4", unix.NFPROTO_IPV4, 12, 16, 4, nftables.TypeIPAddr, unix.IPPROTO_ICMP, []byte{3, 11, 12}, 5, nil}
	// RFC 4443: destination unreachable, packet too big, time exceeded, parameter problem.
	ip6  = fam{true, "6", unix.NFPROTO_IPV6, 8, 24, 16, nftables.TypeIP6Addr, unix.IPPROTO_ICMPV6, []byte{1, 2, 3, 4}, 137, []byte{135, 136}}
	fams = []fam{ip4, ip6}
)

func (f fam) is() match {
	return match{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{f.proto}},
	}
}

func (b *builder) ifIn(set string) match {
	return match{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, b.lookup(reg, set, true)}
}

func (b *builder) lookup(r uint32, set string, is bool) expr.Any {
	s := b.sets[set]
	if s == nil {
		b.fail(fmt.Errorf("kernel: no set %q", set))
		return &expr.Lookup{SourceRegister: r, SetName: set, Invert: !is}
	}
	return &expr.Lookup{SourceRegister: r, SetName: s.Name, SetID: s.ID, Invert: !is}
}

func l4proto(p byte) match {
	return match{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{p}},
	}
}

func icmpType(proto, typ byte) match {
	return append(l4proto(proto),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{typ}})
}

// udpPort matches the source (off 0) or destination (off 2) port against the set of IKE ports.
func (b *builder) udpPort(off uint32) match {
	return slices.Concat(l4proto(unix.IPPROTO_UDP), match{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: off, Len: 2},
		b.lookup(reg, setPorts, true),
	})
}

// toLocal matches packets that the routing would deliver to the router itself.
func toLocal() match {
	return match{
		&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: nativeU32(unix.RTN_LOCAL)},
	}
}

func verdict(k expr.VerdictKind) match { return match{&expr.Verdict{Kind: k}} }

func accept() match  { return verdict(expr.VerdictAccept) }
func drop() match    { return verdict(expr.VerdictDrop) }
func notrack() match { return match{&expr.Notrack{}} }

func refuse(r Reason) match { return goTo(refuseChain(r)) }

func refuseChain(r Reason) string { return "refuse-" + string(r) }

func goTo(chain string) match {
	return match{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

// count is the named counter of a reason.
func count(r Reason) match {
	return match{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: string(r)}}
}

// sample copies the packet's head to the NFLOG group, at a bounded rate.
func (b *builder) sample(r Reason) match {
	return match{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: sampleRate, Unit: expr.LimitTimeSecond, Burst: sampleBurst},
		&expr.Log{
			Key:     1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN,
			Group:   b.log,
			Snaplen: sampleBytes,
			Data:    []byte(r),
		},
	}
}

func (b *builder) addIfNames(name string, ifs []string) {
	// The byte order says to the nft command that it may print the names.
	set := &nftables.Set{
		Table: b.table, Name: name, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian,
	}
	var elems []nftables.SetElement
	for _, i := range ifs {
		elems = append(elems, nftables.SetElement{Key: ifName(i)})
	}
	b.addSet(set, elems)
}

func (b *builder) addPorts(name string, ports []uint16) {
	set := &nftables.Set{Table: b.table, Name: name, KeyType: nftables.TypeInetService}
	var elems []nftables.SetElement
	for _, p := range ports {
		elems = append(elems, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(p)})
	}
	b.addSet(set, elems)
}

func (b *builder) addSet(set *nftables.Set, elems []nftables.SetElement) {
	if !set.Interval {
		// With its size known the kernel takes its fixed hash table, twice as fast as the one
		// that grows.
		set.Size = uint32(len(elems))
	}
	if err := b.conn.AddSet(set, nil); err != nil {
		b.fail(fmt.Errorf("kernel: set %s: %w", set.Name, err))
		return
	}
	b.sets[set.Name] = set
	// elemsPerMessage is even, so both ends of an interval stay in one message.
	for part := range slices.Chunk(elems, elemsPerMessage) {
		if err := b.conn.SetAddElements(set, part); err != nil {
			b.fail(fmt.Errorf("kernel: elements of set %s: %w", set.Name, err))
			return
		}
	}
}

func nativeU32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// comment reads a rule's comment.
func comment(data []byte) (string, bool) { return userdata.GetString(data, userdata.TypeComment) }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// notFound says that the object asked for is not in the kernel.
func notFound(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, os.ErrNotExist)
}
