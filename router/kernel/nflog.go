package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of linux/netfilter/nfnetlink_log.h.
const (
	nfulnlMsgPacket = 0
	nfulnlMsgConfig = 1

	nfulaCfgCmd   = 1
	nfulaCfgMode  = 2
	nfulnlCmdBind = 1
	nfulnlCopyPkt = 2

	nfulaPacketHdr = 1
	nfulaIndev     = 4
	nfulaOutdev    = 5
	nfulaPayload   = 9
	nfulaPrefix    = 10
)

// Refusals reports refused packets until ctx ends, and then returns ctx.Err(); see Refusal for
// how they are sampled. Only one process at a time can listen to an NFLOG group: a second one
// gets an error wrapping EPERM.
func (k *Kernel) Refusals(ctx context.Context, report func(Refusal)) error {
	conn, err := k.dialNetfilter()
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	for _, attr := range []netlink.Attribute{
		{Type: nfulaCfgCmd, Data: []byte{nfulnlCmdBind}},
		// struct nfulnl_msg_config_mode: range (big endian), mode, padding.
		{Type: nfulaCfgMode, Data: []byte{0, 0, 0, sampleBytes, nfulnlCopyPkt, 0}},
	} {
		data, err := netlink.MarshalAttributes([]netlink.Attribute{attr})
		if err != nil {
			return fmt.Errorf("kernel: encoding an NFLOG request: %w", err)
		}
		g := k.opt.LogGroup
		_, err = conn.Execute(netlink.Message{
			Header: netlink.Header{
				Type:  netlink.HeaderType(unix.NFNL_SUBSYS_ULOG<<8 | nfulnlMsgConfig),
				Flags: netlink.Request | netlink.Acknowledge,
			},
			Data: append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, byte(g >> 8), byte(g)}, data...),
		})
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, unix.EPERM) {
				err = fmt.Errorf("%w (another process listens to this group, then set [network] nflog_group to a free number; or CAP_NET_ADMIN is missing)", err)
			}
			return fmt.Errorf("kernel: listening to NFLOG group %d: %w", g, err)
		}
	}
	names := &linkNames{k: k, byIndex: map[uint32]string{}}
	for {
		msgs, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			continue // samples were lost; the counters were not
		case err != nil:
			return fmt.Errorf("kernel: receiving from NFLOG group %d: %w", k.opt.LogGroup, err)
		}
		for _, m := range msgs {
			if m.Header.Type != unix.NFNL_SUBSYS_ULOG<<8|nfulnlMsgPacket {
				continue
			}
			r, in, out, ok := parseNFLOG(m.Data)
			if !ok {
				continue
			}
			r.Time = time.Now()
			r.In, r.Out = names.of(in), names.of(out)
			report(r)
		}
	}
}

// linkNames caches interface names. A name is looked up again after it could not be found only,
// for an index is not used twice.
type linkNames struct {
	k       *Kernel
	byIndex map[uint32]string
}

func (n *linkNames) of(index uint32) string {
	if index == 0 {
		return ""
	}
	if name, ok := n.byIndex[index]; ok {
		return name
	}
	n.k.mu.Lock()
	defer n.k.mu.Unlock()
	if n.k.closed {
		return ""
	}
	l, err := n.k.nl.LinkByIndex(int(index))
	if err != nil {
		return fmt.Sprintf("#%d", index)
	}
	if len(n.byIndex) > 1024 {
		clear(n.byIndex) // devices that came and went
	}
	n.byIndex[index] = l.Attrs().Name
	return l.Attrs().Name
}

// hooks by number (enum nf_inet_hooks).
var hooks = [...]string{"prerouting", "input", "forward", "output", "postrouting"}

// parseNFLOG reads one NFLOG message: nfgenmsg and attributes. ok is false where it is none of
// ours or holds no readable packet.
func parseNFLOG(data []byte) (r Refusal, in, out uint32, ok bool) {
	if len(data) < 4 {
		return r, 0, 0, false
	}
	attrs, err := netlink.UnmarshalAttributes(data[4:])
	if err != nil {
		return r, 0, 0, false
	}
	for _, a := range attrs {
		switch a.Type {
		case nfulaPacketHdr: // hw_protocol (2), hook (1), padding
			if len(a.Data) >= 3 && int(a.Data[2]) < len(hooks) {
				r.Hook = hooks[a.Data[2]]
			}
		case nfulaIndev:
			if len(a.Data) == 4 {
				in = binary.BigEndian.Uint32(a.Data)
			}
		case nfulaOutdev:
			if len(a.Data) == 4 {
				out = binary.BigEndian.Uint32(a.Data)
			}
		case nfulaPrefix:
			r.Reason = Reason(strings.TrimRight(string(a.Data), "\x00"))
		case nfulaPayload:
			ok = parsePacket(a.Data, &r)
		}
	}
	return r, in, out, ok && r.Reason != ""
}

// parsePacket reads addresses, protocol and ports of an IP packet, of which the end may be
// missing. It returns false where not even the addresses are there.
func parsePacket(p []byte, r *Refusal) bool {
	if len(p) == 0 {
		return false
	}
	r.NoPorts = true
	switch p[0] >> 4 {
	case 4: // RFC 791, section 3.1
		if len(p) < 20 {
			return false
		}
		r.Src, _ = netip.AddrFromSlice(p[12:16])
		r.Dst, _ = netip.AddrFromSlice(p[16:20])
		r.Proto = p[9]
		r.Length = int(binary.BigEndian.Uint16(p[2:]))
		ihl := int(p[0]&15) * 4
		firstFragment := binary.BigEndian.Uint16(p[6:])&0x1fff == 0
		if firstFragment && ihl >= 20 && ihl <= len(p) {
			parsePorts(p[ihl:], r)
		}
		return true
	case 6: // RFC 8200, section 3
		if len(p) < 40 {
			return false
		}
		r.Src, _ = netip.AddrFromSlice(p[8:24])
		r.Dst, _ = netip.AddrFromSlice(p[24:40])
		r.Proto = p[6]
		r.Length = 40 + int(binary.BigEndian.Uint16(p[4:]))
		rest := p[40:]
		for {
			size := 0
			switch r.Proto {
			case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
				if len(rest) >= 2 {
					size = (int(rest[1]) + 1) * 8
				}
			case unix.IPPROTO_AH:
				if len(rest) >= 2 {
					size = (int(rest[1]) + 2) * 4
				}
			case unix.IPPROTO_FRAGMENT:
				if len(rest) < 8 {
					return true
				}
				size = 8
				if binary.BigEndian.Uint16(rest[2:])&^7 != 0 {
					r.Proto = rest[0]
					return true
				}
			default:
				parsePorts(rest, r)
				return true
			}
			if size == 0 || size > len(rest) {
				return true
			}
			r.Proto, rest = rest[0], rest[size:]
		}
	}
	return false
}

func parsePorts(p []byte, r *Refusal) {
	switch r.Proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE:
		if len(p) >= 4 {
			r.SrcPort, r.DstPort = binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:])
			r.NoPorts = false
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if len(p) >= 2 {
			r.SrcPort, r.DstPort = uint16(p[0]), uint16(p[1])
			r.NoPorts = false
		}
	}
}
