package kernel

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// fingerprint recognises our table as the kernel lists it: chains, rules, sets and their
// elements, but not the counters. gen is the number of the last nftables transaction of the
// whole namespace, so an unchanged number saves the listing.
type fingerprint struct {
	valid bool
	gen   uint32
	hash  [sha256.Size]byte
}

// holds says whether the table is still as it was when the fingerprint was taken.
func (f *fingerprint) holds(k *Kernel) (bool, error) {
	if !f.valid {
		return false, nil
	}
	conn, err := k.dialNetfilter()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	gen, err := generation(conn)
	if err != nil {
		return false, err
	}
	if gen == f.gen {
		return true, nil
	}
	now, err := k.fingerprintOver(conn)
	if err != nil {
		return false, err
	}
	if now.hash != f.hash {
		return false, nil
	}
	*f = now
	return true, nil
}

func (k *Kernel) takeFingerprint() (fingerprint, error) {
	conn, err := k.dialNetfilter()
	if err != nil {
		return fingerprint{}, err
	}
	defer conn.Close()
	return k.fingerprintOver(conn)
}

func (k *Kernel) dialNetfilter() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.opt.NetNS})
	if err != nil {
		return nil, fmt.Errorf("kernel: opening a netfilter netlink socket: %w", err)
	}
	return conn, nil
}

// nft makes a request of the nftables subsystem.
func nft(typ int, flags netlink.HeaderFlags, family byte, attrs []netlink.Attribute) (netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return netlink.Message{}, fmt.Errorf("kernel: encoding a netfilter request: %w", err)
	}
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ),
			Flags: netlink.Request | flags,
		},
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, data...),
	}, nil
}

func generation(conn *netlink.Conn) (uint32, error) {
	// Without asking for an acknowledgement, which would come beside the answer.
	req, err := nft(unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC, nil)
	if err != nil {
		return 0, err
	}
	msgs, err := conn.Execute(req)
	if err != nil {
		return 0, fmt.Errorf("kernel: asking for the nftables generation: %w", err)
	}
	for _, m := range msgs {
		if len(m.Data) < 4 {
			continue
		}
		attrs, err := netlink.UnmarshalAttributes(m.Data[4:])
		if err != nil {
			return 0, fmt.Errorf("kernel: nftables generation: %w", err)
		}
		for _, a := range attrs {
			if a.Type == unix.NFTA_GEN_ID && len(a.Data) == 4 {
				return binary.BigEndian.Uint32(a.Data), nil
			}
		}
	}
	return 0, errors.New("kernel: the kernel's answer holds no nftables generation")
}

// fingerprintOver lists until no transaction came in between.
func (k *Kernel) fingerprintOver(conn *netlink.Conn) (fingerprint, error) {
	for try := 1; ; try++ {
		before, err := generation(conn)
		if err != nil {
			return fingerprint{}, err
		}
		hash, err := k.hashTable(conn)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fingerprint{}, err
		}
		after, gerr := generation(conn)
		if gerr != nil {
			return fingerprint{}, gerr
		}
		if (err == nil && before == after) || try == dumpTries {
			return fingerprint{valid: err == nil, gen: before, hash: hash}, nil
		}
	}
}

func (k *Kernel) hashTable(conn *netlink.Conn) (sum [sha256.Size]byte, err error) {
	name := append([]byte(k.opt.TableName), 0)
	h := sha256.New()
	// The listed objects have the table's name in attribute 1, all three kinds of them.
	const attrTable = 1
	list := func(typ int, attrs ...netlink.Attribute) ([][]byte, error) {
		req, err := nft(typ, netlink.Dump, unix.NFPROTO_INET, attrs)
		if err != nil {
			return nil, err
		}
		msgs, err := conn.Execute(req)
		if err != nil {
			if notFound(err) {
				return nil, nil
			}
			return nil, fmt.Errorf("kernel: listing table inet %s: %w", k.opt.TableName, err)
		}
		var out [][]byte
		for _, m := range msgs {
			if len(m.Data) < 4 {
				continue
			}
			body := m.Data[4:] // the header holds the generation
			as, err := netlink.UnmarshalAttributes(body)
			if err != nil {
				return nil, fmt.Errorf("kernel: listing table inet %s: %w", k.opt.TableName, err)
			}
			if slices.ContainsFunc(as, func(a netlink.Attribute) bool {
				return a.Type == attrTable && slices.Equal(a.Data, name)
			}) {
				out = append(out, body)
			}
		}
		return out, nil
	}
	add := func(what string, bodies [][]byte) {
		fmt.Fprintf(h, "%s %d\n", what, len(bodies))
		for _, b := range bodies {
			fmt.Fprintf(h, "%d\n", len(b))
			h.Write(b)
		}
	}
	chains, err := list(unix.NFT_MSG_GETCHAIN)
	if err != nil {
		return sum, err
	}
	add("chains", chains)
	rules, err := list(unix.NFT_MSG_GETRULE, netlink.Attribute{Type: unix.NFTA_RULE_TABLE, Data: name})
	if err != nil {
		return sum, err
	}
	add("rules", rules)
	sets, err := list(unix.NFT_MSG_GETSET, netlink.Attribute{Type: unix.NFTA_SET_TABLE, Data: name})
	if err != nil {
		return sum, err
	}
	add("sets", sets)
	for _, s := range sets {
		as, err := netlink.UnmarshalAttributes(s)
		if err != nil {
			return sum, fmt.Errorf("kernel: listing table inet %s: %w", k.opt.TableName, err)
		}
		for _, a := range as {
			if a.Type != unix.NFTA_SET_NAME {
				continue
			}
			elems, err := list(unix.NFT_MSG_GETSETELEM,
				netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: name},
				netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: a.Data})
			if err != nil {
				return sum, err
			}
			add("elements "+string(a.Data), elems)
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}
